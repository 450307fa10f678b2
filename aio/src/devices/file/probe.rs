//! Opens a file or block device and finds out what it is.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::sys;
use crate::device::DeviceError;
use crate::devices::prng::mix;
use crate::uri::FileUri;

/// Block size of files that are not told another one.
const FILE_BLOCK_BYTES: u32 = 512;

/// What was found.
pub(super) struct Probed {
    pub(super) file: File,
    /// A block device, not a file.
    pub(super) is_device: bool,
    /// I/O bypasses the page cache.
    pub(super) direct: bool,
    pub(super) read_only: bool,
    pub(super) block_bytes: u32,
    /// Alignment of memory.
    pub(super) buf_align: u32,
    /// Alignment of lengths.
    pub(super) len_align: u32,
    pub(super) size_bytes: u64,
    /// Completed writes survive power failure without a flush.
    pub(super) durable: bool,
    /// Takes `BLKDISCARD`, or punches holes.
    pub(super) can_unmap: bool,
    /// I/Os should not cross multiples of this many bytes; 0 = any.
    pub(super) boundary_bytes: u64,
    /// Same for the same medium after a restart, different for any other.
    pub(super) identity: u128,
}

/// Opens what `uri` names.
pub(super) fn probe(uri: &FileUri) -> Result<Probed, DeviceError> {
    let device = || uri.path.clone();
    let os = |op| move |source| DeviceError::Os { op, device: uri.path.clone(), source };
    let meta = fs::metadata(&uri.path).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => DeviceError::Missing { device: device() },
        _ => os("looking at the path")(e),
    })?;
    let is_device = meta.file_type().is_block_device();
    if !is_device && !meta.is_file() {
        return Err(DeviceError::NotBlocks { device: device() });
    }
    let opened = open(uri, is_device)?;
    let (file, mut direct) = (opened.file, opened.direct);
    let own_bytes = if is_device {
        sys::logical_block_bytes(&file).map_err(os("asking for the block size"))?
    } else {
        FILE_BLOCK_BYTES
    };
    let block_bytes = uri.block_bytes.unwrap_or(own_bytes);
    if block_bytes < own_bytes || !block_bytes.is_multiple_of(own_bytes) {
        return Err(DeviceError::BlockSize { device: device(), block_bytes, needed_bytes: own_bytes });
    }
    let size_bytes = size_bytes(&file, is_device).map_err(os("asking for the size"))?;
    if size_bytes < u64::from(block_bytes) {
        return Err(DeviceError::TooSmall { device: device(), size_bytes, block_bytes });
    }
    if direct && !direct_works(&file, block_bytes) {
        sys::go_buffered(&file).map_err(os("switching direct I/O off"))?;
        direct = false;
    }
    let (buf_align, len_align) = alignment(&file, direct, block_bytes, own_bytes);
    let limits = is_device.then(|| Limits::read(meta.rdev()));
    let read_only = opened.read_only || (is_device && sys::write_protected(&file));
    let can_unmap = match &limits {
        Some(limits) => limits.number("discard_max_bytes") > 0,
        // Beyond the end of the file, where there is nothing to lose.
        None => !read_only && sys::punch_hole(&file, size_bytes, u64::from(block_bytes)).is_ok(),
    };
    Ok(Probed {
        is_device,
        direct,
        read_only,
        block_bytes,
        buf_align,
        len_align,
        size_bytes,
        // A file would have to be opened with O_DSYNC, which costs a flush per write: its cache is volatile.
        durable: direct && limits.as_ref().is_some_and(|l| l.text("write_cache") == "write through"),
        can_unmap,
        boundary_bytes: limits.as_ref().map_or(0, |l| l.number("chunk_sectors") * 512),
        identity: identity(uri, &meta, limits.as_ref()),
        file,
    })
}

/// Size of a file or block device now.
pub(super) fn size_bytes(file: &File, is_device: bool) -> io::Result<u64> {
    if is_device { sys::device_bytes(file) } else { file.metadata().map(|meta| meta.len()) }
}

/// A value that is new after each start of this machine, for this identity: completed writes can only have been
/// lost with the machine.
pub(super) fn incarnation(identity: u128) -> Option<u128> {
    let boot = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    Some(hash(&[&identity.to_le_bytes(), &boot]))
}

struct Opened {
    file: File,
    direct: bool,
    read_only: bool,
}

/// Opens for direct I/O and for writing, as far as the system allows, and for nobody else.
fn open(uri: &FileUri, is_device: bool) -> Result<Opened, DeviceError> {
    let exclusive = if is_device { libc::O_EXCL } else { 0 };
    let attempt = |write: bool, direct: bool| {
        let direct = if direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new().read(true).write(write).custom_flags(exclusive | direct).open(&uri.path)
    };
    let mut opened = Err(io::Error::from(ErrorKind::Unsupported));
    for (write, direct) in [(true, true), (true, false), (false, true), (false, false)] {
        opened = attempt(write, direct).map(|file| Opened { file, direct, read_only: !write });
        let again = match &opened {
            Ok(_) => false,
            Err(e) => match e.raw_os_error() {
                // The file system has no direct I/O.
                Some(libc::EINVAL) => true,
                Some(libc::EROFS | libc::EACCES | libc::EPERM | libc::ETXTBSY) => write,
                _ => false,
            },
        };
        if !again {
            break;
        }
    }
    let opened = opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => DeviceError::InUse { device: uri.path.clone() },
        Some(libc::ENOENT) => DeviceError::Missing { device: uri.path.clone() },
        _ => DeviceError::Os { op: "opening", device: uri.path.clone(), source },
    })?;
    let locked = if opened.read_only { opened.file.try_lock_shared() } else { opened.file.try_lock() };
    match locked {
        Err(TryLockError::WouldBlock) => Err(DeviceError::InUse { device: uri.path.clone() }),
        // A file system without locks: nothing can be said about other users.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(opened),
    }
}

/// Tries whether direct I/O takes blocks of this size.
fn direct_works(file: &File, block_bytes: u32) -> bool {
    let block = block_bytes as usize;
    let mut memory = vec![0; block + 4096];
    let start = memory.as_ptr().align_offset(4096);
    // Other errors are the medium's, and show when its blocks are read.
    let read = file.read_at(&mut memory[start..start + block], 0);
    !read.is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
}

/// Alignment of memory and of lengths.
fn alignment(file: &File, direct: bool, block_bytes: u32, own_bytes: u32) -> (u32, u32) {
    if !direct {
        return (1, 1);
    }
    let (memory, length) = sys::direct_alignment(file).unwrap_or((own_bytes, own_bytes));
    let memory = if memory.is_power_of_two() { memory } else { 4096 };
    let length = if length.is_power_of_two() { length } else { block_bytes };
    (memory.min(4096), length.clamp(own_bytes, block_bytes))
}

/// The queue limits of a block device, as sysfs shows them.
struct Limits {
    /// Of the whole disk: a partition has none of its own.
    disk: PathBuf,
    /// The number of the partition; empty for a whole disk.
    partition: String,
}

impl Limits {
    fn read(rdev: u64) -> Self {
        let dir = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(rdev), libc::minor(rdev)));
        match fs::read_to_string(dir.join("partition")) {
            Ok(number) => Self { disk: dir.join(".."), partition: number.trim().to_owned() },
            Err(_) => Self { disk: dir, partition: String::new() },
        }
    }

    fn text(&self, name: &str) -> String {
        read_trimmed(&self.disk.join("queue").join(name))
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// The name that the disk itself has, if it has one.
    fn world_wide_id(&self) -> String {
        let wwid = read_trimmed(&self.disk.join("wwid"));
        if wwid.is_empty() { read_trimmed(&self.disk.join("device/wwid")) } else { wwid }
    }
}

fn read_trimmed(path: &Path) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// A disk is its world-wide name; anything else is its path on this machine, and for files also their inode,
/// so that a file that was made anew is a new device.
fn identity(uri: &FileUri, meta: &fs::Metadata, limits: Option<&Limits>) -> u128 {
    if let Some(limits) = limits {
        let wwid = limits.world_wide_id();
        if !wwid.is_empty() {
            return hash(&[b"disk", wwid.as_bytes(), limits.partition.as_bytes()]);
        }
    }
    let path = fs::canonicalize(&uri.path).unwrap_or_else(|_| PathBuf::from(&uri.path));
    let inode = if limits.is_some() { 0 } else { meta.ino() };
    let machine = read_trimmed(Path::new("/etc/machine-id"));
    hash(&[b"path", machine.as_bytes(), path.as_os_str().as_encoded_bytes(), &inode.to_le_bytes()])
}

/// 128 bits that depend on all parts. Not cryptographic: nobody gains by a collision on their own machine.
fn hash(parts: &[&[u8]]) -> u128 {
    let lane = |seed: u64| {
        parts.iter().fold(seed, |hash, part| {
            let hash =
                part.iter().fold(hash, |h, b| mix(h ^ u64::from(*b)).wrapping_add(0x9e37_79b9_7f4a_7c15));
            mix(hash ^ part.len() as u64)
        })
    };
    u128::from(lane(1)) << 64 | u128::from(lane(2))
}
