//! The system calls of file devices that the standard library lacks.
//!
//! # Unsafe
//! Each function makes one system call; pointers lead to locals, or to memory that a task owns (see
//! [`Op`](super::task::Op)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::task::Op;

/// `_IOR(0x12, 114, size_t)`: size of a block device in bytes. Not in libc; the encoding is that of the generic
/// architectures, and elsewhere the call fails and seeking is used.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// `_IO(0x12, 119)`: discard a range of bytes.
const BLKDISCARD: libc::c_ulong = 0x1277;
/// `_IO(0x12, 94)`: is the block device read-only?
const BLKROGET: libc::c_ulong = 0x125e;

/// Logical block size of a block device.
pub(super) fn logical_block_bytes(file: &File) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: writes one int to a local.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET as _, &raw mut bytes) })?;
    u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Size of a block device.
pub(super) fn device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    // SAFETY: writes one 64-bit number to a local.
    if check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) }).is_ok() {
        return Ok(bytes);
    }
    // SAFETY: no pointers. All other accesses name their offset, so the position is nobody's.
    let end = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
    u64::try_from(end).map_err(|_| io::Error::last_os_error())
}

/// True when the kernel refuses writes to a block device.
pub(super) fn write_protected(file: &File) -> bool {
    let mut read_only: libc::c_int = 0;
    // SAFETY: writes one int to a local.
    let asked = unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET as _, &raw mut read_only) };
    asked == 0 && read_only != 0
}

/// Alignment that direct I/O needs, of memory and of offsets and lengths; `None` = the kernel does not tell
/// (before 6.1), or direct I/O does not work.
pub(super) fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    // SAFETY: all-zero bytes are a valid value of this plain C struct.
    let mut stat: libc::statx = unsafe { core::mem::zeroed() };
    let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: an empty path that lives for the call, and a local to write to.
    let asked = unsafe { libc::statx(fd, c"".as_ptr(), flags, libc::STATX_DIOALIGN, &raw mut stat) };
    let told = asked == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0;
    (told && stat.stx_dio_mem_align > 0).then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
}

/// Switches direct I/O off.
pub(super) fn go_buffered(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_DIRECT) }).map(|_| ())
}

/// Gives a range back, where the file system can. With an empty range: tries whether it can.
pub(super) fn punch_hole(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (offset_bytes as libc::off_t, len_bytes as libc::off_t);
    // SAFETY: no pointers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(|_| ())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Does an operation now; gives what a completion queue entry would: the result, or minus an errno.
///
/// # Safety
/// The memory that `op` names is valid, and left alone, for the time of the call.
pub(super) unsafe fn run(file: &File, op: &Op) -> i32 {
    let fd = file.as_raw_fd();
    let result: libc::ssize_t = match *op {
        Op::Transfer { write, iov, count, offset_bytes, dsync } => {
            let (count, offset) = (count as libc::c_int, offset_bytes as libc::off_t);
            let flags = if dsync { libc::RWF_DSYNC } else { 0 };
            if write {
                // SAFETY: the caller's promise.
                unsafe { libc::pwritev2(fd, iov, count, offset, flags) }
            } else {
                // SAFETY: the caller's promise.
                unsafe { libc::preadv2(fd, iov, count, offset, 0) }
            }
        }
        // SAFETY: no pointers.
        Op::Sync => unsafe { libc::fdatasync(fd) as libc::ssize_t },
        Op::Allocate { mode, offset_bytes, len_bytes } => {
            // SAFETY: no pointers.
            unsafe {
                libc::fallocate(fd, mode, offset_bytes as libc::off_t, len_bytes as libc::off_t)
                    as libc::ssize_t
            }
        }
        Op::Discard { offset_bytes, len_bytes } => {
            let range = [offset_bytes, len_bytes];
            // SAFETY: reads two 64-bit numbers from a local.
            unsafe { libc::ioctl(fd, BLKDISCARD as _, range.as_ptr()) as libc::ssize_t }
        }
    };
    if result < 0 { -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { result as i32 }
}
