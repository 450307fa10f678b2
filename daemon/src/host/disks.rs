//! The host's disks and partitions, and which of them are free to be used.

use std::fs;
use std::path::{Path, PathBuf};

use rpc::mayastor::v1::BlockDevice;
use rpc::mayastor::v1::block_device::{Filesystem, Partition};

use super::mounts::{self, Mount};
use super::udev::Entry;

/// Partition types that mean "Linux data": free unless a file system is on it.
const LINUX_PARTITIONS: [(&str, &str); 2] =
    [("gpt", "0fc63daf-8483-4772-8e79-3d69d8477de4"), ("dos", "0x83")];

/// Models of disks that an engine exports: using those again would make a loop.
const OWN_MODELS: [&str; 2] = ["Mayastor NVMe controller", "Nexus_CAS_Driver"];

/// Where the kernel and udev tell of disks.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `/sys`.
    pub sysfs: PathBuf,
    /// `/run/udev/data`.
    pub udev: PathBuf,
    /// `/proc/self/mountinfo`.
    pub mounts: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self { sysfs: "/sys".into(), udev: "/run/udev/data".into(), mounts: "/proc/self/mountinfo".into() }
    }
}

/// Disks and partitions, ordered by name. `all` = also those that are in use or of unsuitable kinds.
///
/// What cannot be read is left out: a disk may vanish at any moment. Reads files: not for reactor threads.
pub fn list(sources: &Sources, all: bool) -> Vec<BlockDevice> {
    let mounts = mounts::read(&sources.mounts);
    let classes = fs::read_dir(sources.sysfs.join("class/block")).into_iter().flatten().flatten();
    let mut devices: Vec<BlockDevice> =
        classes.filter_map(|entry| read_device(sources, &mounts, &entry.path())).collect();
    devices.sort_by(|a, b| a.devname.cmp(&b.devname));
    let parents: Vec<String> =
        devices.iter().filter_map(|d| d.partition.as_ref().map(|p| p.parent.clone())).collect();
    for device in &mut devices {
        device.available = is_available(device, parents.contains(&device.devname));
    }
    devices.retain(|d| all || d.available);
    devices
}

fn is_available(device: &BlockDevice, has_partitions: bool) -> bool {
    let kind = match &device.partition {
        None => !has_partitions,
        Some(p) => LINUX_PARTITIONS.contains(&(p.scheme.as_str(), p.typeid.as_str())),
    };
    kind && device.size > 0
        && is_suitable_major(device.devmajor)
        && device.filesystem.is_none()
        && !OWN_MODELS.contains(&device.model.as_str())
}

/// Loop devices, SCSI disks, NBD, locally assigned (NVMe of old kernels, virtio) and extended minors (NVMe).
fn is_suitable_major(major: u32) -> bool {
    matches!(major, 7 | 8 | 43 | 240..=255 | 259)
}

/// `class` is a symbolic link below `/sys/class/block`.
fn read_device(sources: &Sources, mounts: &[Mount], class: &Path) -> Option<BlockDevice> {
    let sysfs = sources.sysfs.canonicalize().ok()?;
    let dir = class.canonicalize().ok()?;
    let kernel_name = dir.file_name()?.to_str()?.to_owned();
    let uevent = read(&dir.join("uevent"));
    let devnumber = read(&dir.join("dev"));
    let (major, minor) = devnumber.split_once(':')?;
    let (devmajor, devminor) = (major.parse().ok()?, minor.parse().ok()?);
    let devname = format!("/dev/{}", uevent_value(&uevent, "DEVNAME").unwrap_or(&kernel_name));
    let udev = Entry::read(&sources.udev, devmajor, devminor);
    // A partition's folder lies in its disk's.
    let number = read(&dir.join("partition")).parse::<u32>().ok();
    let disk_dir = if number.is_some() { dir.parent()? } else { &dir };
    let partition = number.and_then(|n| read_partition(disk_dir, &udev, n));
    let rotational = read(&disk_dir.join("queue/rotational"));
    Some(BlockDevice {
        devtype: if number.is_some() { "partition" } else { "disk" }.to_owned(),
        devmajor,
        devminor,
        model: udev.get("ID_MODEL"),
        devpath: format!("/{}", dir.strip_prefix(&sysfs).ok()?.to_str()?),
        size: read(&dir.join("size")).parse().unwrap_or(0),
        partition,
        filesystem: filesystem(&udev, mounts, &devname, &devnumber),
        available: false,
        connection_type: udev.get("ID_BUS"),
        is_rotational: match rotational.as_str() {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        },
        devlinks: udev.links,
        devname,
    })
}

fn read_partition(disk_dir: &Path, udev: &Entry, number: u32) -> Option<Partition> {
    let disk_uevent = read(&disk_dir.join("uevent"));
    let disk_name = uevent_value(&disk_uevent, "DEVNAME").or_else(|| disk_dir.file_name()?.to_str())?;
    Some(Partition {
        parent: format!("/dev/{disk_name}"),
        number,
        name: udev.get("ID_PART_ENTRY_NAME"),
        scheme: udev.get("ID_PART_ENTRY_SCHEME"),
        typeid: udev.get("ID_PART_ENTRY_TYPE"),
        uuid: udev.get("ID_PART_ENTRY_UUID"),
    })
}

/// What udev recognised, or what is mounted from there although udev does not run.
fn filesystem(udev: &Entry, mounts: &[Mount], devname: &str, devnumber: &str) -> Option<Filesystem> {
    let mounted: Vec<&Mount> =
        mounts.iter().filter(|m| m.device == devnumber || m.source == devname).collect();
    let fstype = match udev.get("ID_FS_TYPE") {
        known if !known.is_empty() => known,
        _ => mounted.first()?.fstype.clone(),
    };
    let mut mountpoints: Vec<String> = mounted.iter().map(|m| m.point.clone()).collect();
    mountpoints.sort();
    mountpoints.dedup();
    Some(Filesystem { fstype, label: udev.get("ID_FS_LABEL"), uuid: udev.get("ID_FS_UUID"), mountpoints })
}

/// A file's text without the line end; empty when it cannot be read.
fn read(path: &Path) -> String {
    let text = fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    text.trim_end().to_owned()
}

fn uevent_value<'a>(uevent: &'a str, key: &str) -> Option<&'a str> {
    uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small host: `sda` with two partitions (one mounted), `sdb` empty, an optical drive, an own export.
    struct FakeHost {
        dir: tempfile::TempDir,
    }

    impl FakeHost {
        fn new() -> Self {
            let host = Self { dir: tempfile::tempdir().unwrap() };
            fs::create_dir_all(host.path("sys/class/block")).unwrap();
            fs::create_dir_all(host.path("udev")).unwrap();
            host.disk("sda", None, "8:0", 1000, "E:ID_MODEL=DISK\nE:ID_BUS=ata\nS:disk/by-id/a\n");
            let linux = "0fc63daf-8483-4772-8e79-3d69d8477de4";
            let part = format!("E:ID_PART_ENTRY_SCHEME=gpt\nE:ID_PART_ENTRY_TYPE={linux}\n");
            host.disk("sda1", Some(("sda", 1)), "8:1", 100, &format!("{part}E:ID_FS_TYPE=ext4\n"));
            host.disk("sda2", Some(("sda", 2)), "8:2", 100, &part);
            let swap = part.replace(linux, "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f");
            host.disk("sda3", Some(("sda", 3)), "8:3", 100, &swap);
            host.disk("sdb", None, "8:16", 1000, "");
            host.disk("sdc", None, "8:32", 0, "");
            host.disk("sdd", None, "8:48", 1000, "");
            host.disk("sr0", None, "11:0", 1000, "");
            host.disk("nvme0n1", None, "259:0", 1000, "E:ID_MODEL=Mayastor NVMe controller\n");
            let mounts = "1 0 8:1 / /data rw - ext4 /dev/sda1 rw\n2 0 0:9 / /b rw - btrfs /dev/sdd rw\n";
            fs::write(host.path("mounts"), mounts).unwrap();
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn disk(&self, name: &str, parent: Option<(&str, u32)>, number: &str, sectors: u64, udev: &str) {
            let dir = match parent {
                None => self.path(&format!("sys/devices/x/block/{name}")),
                Some((disk, _)) => self.path(&format!("sys/devices/x/block/{disk}/{name}")),
            };
            fs::create_dir_all(dir.join("queue")).unwrap();
            let put = |file: &str, text: String| fs::write(dir.join(file), text).unwrap();
            put("dev", format!("{number}\n"));
            put("size", format!("{sectors}\n"));
            put("uevent", format!("MAJOR=8\nDEVNAME={name}\n"));
            match parent {
                Some((_, n)) => put("partition", format!("{n}\n")),
                None => put("queue/rotational", "1\n".to_owned()),
            }
            std::os::unix::fs::symlink(&dir, self.path("sys/class/block").join(name)).unwrap();
            fs::write(self.path("udev").join(format!("b{number}")), udev).unwrap();
        }

        fn list(&self, all: bool) -> Vec<BlockDevice> {
            let (sysfs, udev, mounts) = (self.path("sys"), self.path("udev"), self.path("mounts"));
            list(&Sources { sysfs, udev, mounts }, all)
        }
    }

    fn names(devices: &[BlockDevice]) -> Vec<&str> {
        devices.iter().map(|d| d.devname.as_str()).collect()
    }

    #[test]
    fn only_what_is_free_is_available() {
        let host = FakeHost::new();
        assert_eq!(names(&host.list(false)), ["/dev/sda2", "/dev/sdb"]);
        assert_eq!(host.list(true).len(), 9);
    }

    #[test]
    fn fields_come_from_sysfs_udev_and_the_mount_table() {
        let host = FakeHost::new();
        let all = host.list(true);
        let find = |name: &str| all.iter().find(|d| d.devname == name).unwrap().clone();
        let sda = find("/dev/sda");
        assert_eq!((sda.devtype.as_str(), sda.devmajor, sda.devminor, sda.size), ("disk", 8, 0, 1000));
        assert_eq!((sda.model.as_str(), sda.connection_type.as_str()), ("DISK", "ata"));
        assert_eq!(sda.devpath, "/devices/x/block/sda");
        assert_eq!(sda.devlinks, ["/dev/disk/by-id/a"]);
        assert_eq!(sda.is_rotational, Some(true));
        let sda1 = find("/dev/sda1");
        let partition = sda1.partition.unwrap();
        assert_eq!((partition.parent.as_str(), partition.number), ("/dev/sda", 1));
        assert_eq!(sda1.filesystem.unwrap().mountpoints, ["/data"]);
        assert_eq!(sda1.is_rotational, Some(true), "asked of the disk");
        // Known to the mount table only, and by name: btrfs has a device number of its own.
        assert_eq!(find("/dev/sdd").filesystem.unwrap().fstype, "btrfs");
    }

    #[test]
    fn a_host_without_anything_has_no_disks() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("none");
        let sources = Sources { sysfs: nowhere.clone(), udev: nowhere.clone(), mounts: nowhere };
        assert!(list(&sources, true).is_empty());
    }
}
