//! Pools that earlier versions wrote: they are imported for ever.
//!
//! Each image is a file beside this one, written once by the version that it is named after and never again.
//! `KEELSON_WRITE_GOLDEN=1 cargo test -p lvs --test golden -- --ignored` writes those that are not there.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../harness/mod.rs"]
mod harness;
mod image;
#[allow(dead_code, reason = "another test's, too")]
#[path = "../rig/mod.rs"]
mod rig;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aio::facade::ByteRange;
use aio::{BlockDevice, Descriptor};
use harness::disk::{Disk, Image};
use lvs::info::{
    CheckWish, CreatePool, CreateSnapshot, CreateVolume, DiskState, ImportPool, VolumeProperties,
};
use lvs::{Pool, Volume};
use rig::Rig;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// What a volume or snapshot holds, by block; zero elsewhere.
type Held = BTreeMap<u64, u64>;

/// Everything in a pool that is looked at, by name.
#[derive(Default)]
struct Expected {
    volumes: BTreeMap<&'static str, Held>,
    snapshots: BTreeMap<&'static str, Held>,
}

fn uuid(name: &str) -> Uuid {
    let mut bytes = [0x42; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Uuid::from_bytes(bytes)
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A pool that is open, and what it is to hold.
struct Bed {
    rig: Rig,
    disks: Vec<Disk>,
    pool: Pool,
    expected: Expected,
}

impl Bed {
    fn new(images: Vec<Image>) -> Self {
        let rig = Rig::new();
        let disks: Vec<Disk> =
            images.into_iter().enumerate().map(|(at, image)| Disk::new(at, image, true, 7, None)).collect();
        let spec = CreatePool { name: "golden".into(), uuid: Some(uuid("pool")), force: false };
        let first = vec![disks[0].device()];
        let pool = rig.run(Pool::create(rig.home(), first, spec)).unwrap();
        Self { rig, disks, pool, expected: Expected::default() }
    }

    /// The pool on these images.
    fn import(images: Vec<Image>, expected: Expected) -> Self {
        let rig = Rig::new();
        let disks: Vec<Disk> =
            images.into_iter().enumerate().map(|(at, image)| Disk::new(at, image, true, 8, None)).collect();
        let devices = || disks.iter().map(Disk::device).collect::<Vec<_>>();
        let wish = CheckWish::everything();
        let report = rig.run(lvs::check(rig.home(), devices(), wish)).unwrap();
        assert_eq!(report.findings, Vec::<String>::new());
        let pool = rig.run(Pool::import(rig.home(), devices(), ImportPool::default())).unwrap();
        Self { rig, disks, pool, expected }
    }

    fn open(&self, volume: &Arc<Volume>) -> Descriptor {
        let device: Arc<dyn BlockDevice> = volume.clone();
        self.rig.run(Descriptor::open(device)).unwrap()
    }

    fn volume(&mut self, name: &'static str, size_bytes: u64, thin: bool) {
        let spec = CreateVolume {
            name: name.into(),
            uuid: Some(uuid(name)),
            size_bytes,
            thin,
            entity_id: Some(format!("owner of {name}")),
        };
        self.rig.run(self.pool.create_volume(spec)).unwrap();
        self.expected.volumes.insert(name, Held::new());
    }

    /// Writes blocks with `stamp` and what follows it.
    fn write(&mut self, name: &'static str, blocks: impl IntoIterator<Item = u64>, stamp: u64) {
        let d = self.open(&self.pool.volume(uuid(name)).unwrap());
        let blocks: Vec<(u64, u64)> = blocks.into_iter().zip(stamp..).collect();
        // Neighbours go together.
        for piece in blocks.chunk_by(|a, b| a.0 + 1 == b.0).flat_map(|piece| piece.chunks(16)) {
            let len_bytes = piece.len() as u32 * BLOCK as u32;
            let mut buf = self.rig.core().pools().unwrap().alloc(len_bytes).unwrap();
            for (bytes, (block, stamp)) in buf.chunks_exact_mut(BLOCK as usize).zip(piece) {
                bytes.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&stamp.to_le_bytes()));
                self.expected.volumes.get_mut(name).unwrap().insert(*block, *stamp);
            }
            self.rig.run(d.write_at(piece[0].0 * BLOCK, len_bytes, buf)).0.unwrap();
        }
        self.rig.run(d.flush()).unwrap();
        self.rig.run(d.close());
    }

    fn unmap(&mut self, name: &'static str, first: u64, count: u64) {
        let d = self.open(&self.pool.volume(uuid(name)).unwrap());
        let range = ByteRange { offset_bytes: first * BLOCK, len_bytes: count * BLOCK };
        self.rig.run(d.unmap(&[range])).unwrap();
        self.rig.run(d.flush()).unwrap();
        self.rig.run(d.close());
        let held = self.expected.volumes.get_mut(name).unwrap();
        held.retain(|block, _| !(first..first + count).contains(block));
    }

    fn snapshot(&mut self, of: &'static str, name: &'static str) {
        let spec = CreateSnapshot {
            name: name.into(),
            uuid: uuid(name),
            txn_id: "7".into(),
            entity_id: "owner".into(),
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        self.rig.run(self.pool.create_snapshot(uuid(of), spec)).unwrap();
        self.expected.snapshots.insert(name, self.expected.volumes[of].clone());
    }

    fn clone_of(&mut self, snapshot: &'static str, name: &'static str) {
        let spec = CreateVolume {
            name: name.into(),
            uuid: Some(uuid(name)),
            size_bytes: 0,
            thin: true,
            entity_id: None,
        };
        self.rig.run(self.pool.create_clone(uuid(snapshot), spec)).unwrap();
        self.expected.volumes.insert(name, self.expected.snapshots[snapshot].clone());
    }

    fn checkpoint(&self) {
        self.rig.run(self.pool.checkpoint()).unwrap();
    }

    /// What is on the disks, and the pool is over.
    fn end(self) -> Vec<Image> {
        let images = self.disks.iter().map(Disk::image).collect();
        self.disks.iter().for_each(Disk::cut);
        let _ = self.rig.run(self.pool.export());
        images
    }

    /// Everything is as it was written, and nothing else is there.
    fn look(&self) {
        let volumes = self.rig.run(self.pool.volumes()).unwrap();
        assert_eq!(volumes.len(), self.expected.volumes.len());
        for info in volumes {
            let held = &self.expected.volumes[&*info.name];
            assert_eq!(info.uuid, uuid(&info.name));
            self.holds(&self.pool.volume(info.uuid).unwrap(), held);
        }
        let snapshots = self.rig.run(self.pool.snapshots()).unwrap();
        assert_eq!(snapshots.len(), self.expected.snapshots.len());
        for info in snapshots {
            assert_eq!((info.uuid, &*info.txn_id, &*info.entity_id), (uuid(&info.name), "7", "owner"));
            let held = &self.expected.snapshots[&*info.name];
            self.holds(&self.rig.run(self.pool.open_snapshot(info.uuid)).unwrap(), held);
        }
    }

    fn holds(&self, device: &Arc<Volume>, held: &Held) {
        let d = self.open(device);
        for block in 0..d.len_bytes() / BLOCK {
            let buf = self.rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
            let (result, buf) = self.rig.run(d.read_at(block * BLOCK, BLOCK as u32, buf));
            result.unwrap();
            let want = held.get(&block).copied().unwrap_or(0);
            let good = buf[..BLOCK as usize].chunks_exact(8).all(|c| c == want.to_le_bytes());
            assert!(good, "block {block} of {} is not {want}", device.name());
        }
        self.rig.run(d.close());
    }
}

/// What can stand on a disk of 4096-byte blocks after a crash: trees of two levels, holes of both kinds, snapshots, a discarded
/// one, clones, a volume that is being purged, and a log behind it.
fn crashed() -> Bed {
    let mut bed = Bed::new(vec![Image::empty(4096, 40)]);
    bed.volume("v", 12 * MIB, true);
    bed.volume("thick", MIB, false);
    bed.write("v", 0..500, 10_000);
    bed.write("thick", 3..9, 20_000);
    bed.checkpoint();
    bed.snapshot("v", "s1");
    bed.write("v", (0..400).step_by(3), 30_000);
    bed.clone_of("s1", "c");
    bed.write("c", [0, 7, 399, 1500], 40_000);
    bed.unmap("v", 100, 3);
    bed.unmap("v", 200, 700);
    bed.checkpoint();
    bed.snapshot("v", "s2");
    bed.write("v", (0..400).step_by(5), 50_000);
    bed.rig.run(bed.pool.destroy_snapshot(uuid("s1"))).unwrap();
    let shared = VolumeProperties {
        shared: true,
        allowed_hosts: vec!["nqn.2014-08.org.example:h".into()],
        entity_id: Some("somebody".into()),
    };
    bed.rig.run(bed.pool.set_properties(uuid("thick"), shared)).unwrap();
    bed.volume("gone", MIB, true);
    bed.write("gone", 0..100, 60_000);
    bed.checkpoint();
    bed.rig.run(bed.pool.destroy_volume(uuid("gone"))).unwrap();
    bed.expected.volumes.remove("gone");
    bed.write("v", 2_000..2_050, 70_000);
    bed.unmap("c", 600, 900);
    bed.volume("late", MIB, true);
    bed.write("late", [0, 255], 80_000);
    bed.rig.run(bed.pool.resize_volume(uuid("thick"), 2 * MIB)).unwrap();
    bed
}

/// Two disks of 512-byte blocks, one of which is being emptied: blocks were moved in the log behind an import that found a log.
fn two_disks() -> Bed {
    let mut bed = Bed::new(vec![Image::empty(512, 20), Image::empty(512, 20)]);
    bed.rig.run(bed.pool.add_disk(bed.disks[1].device(), false)).unwrap();
    bed.volume("v", 8 * MIB, true);
    bed.write("v", (0..2_000).step_by(11), 10_000);
    bed.snapshot("v", "s");
    bed.write("v", 0..64, 20_000);
    let expected = core::mem::take(&mut bed.expected);
    let images = bed.end();
    let mut bed = Bed::import(images, expected);
    // A delta stands as a blob now.
    bed.write("v", 64..80, 30_000);
    let first = bed.disks[0].called().to_owned();
    let live = |bed: &Bed| bed.rig.run(bed.pool.disks()).unwrap()[0].live_bytes;
    let before = live(&bed);
    let mut leaves = Box::pin(bed.pool.remove_disk(first));
    while live(&bed) > before / 2 {
        assert!(bed.rig.run_for(20, &mut leaves).is_none(), "it has left");
    }
    drop(leaves);
    bed
}

/// What makes a pool.
type Script = fn() -> Bed;

fn scripts() -> [(&'static str, Script); 2] {
    [("version-1-crashed", crashed), ("version-1-two-disks", two_disks)]
}

fn golden(name: &str) -> Vec<Image> {
    let bytes = std::fs::read(path(name)).unwrap_or_else(|e| panic!("{}: {e}", path(name).display()));
    image::decode(&bytes)
}

#[test]
#[ignore = "writes images, once for each version of the format"]
fn write_what_is_missing() {
    assert!(
        std::env::var_os("KEELSON_WRITE_GOLDEN").is_some(),
        "KEELSON_WRITE_GOLDEN=1 is how it is asked for"
    );
    for (name, bed) in scripts() {
        if !path(name).exists() {
            let bytes = image::encode(&bed().end());
            println!("{name}: {} bytes", bytes.len());
            std::fs::write(path(name), bytes).unwrap();
        }
    }
}

/// What was written then is read now, and the pool goes on: over a crash, and over an export.
#[test]
fn pools_of_version_1_are_imported() {
    for (name, script) in scripts() {
        let mut written = script();
        let expected = core::mem::take(&mut written.expected);
        written.end();
        let mut bed = Bed::import(golden(name), expected);
        bed.look();
        bed.write("v", 300..340, 90_000);
        bed.snapshot("v", "new");
        bed.checkpoint();
        bed.write("v", 320..360, 91_000);
        let expected = core::mem::take(&mut bed.expected);
        let mut bed = Bed::import(bed.end(), expected);
        bed.look();
        let expected = core::mem::take(&mut bed.expected);
        bed.rig.run(bed.pool.export()).unwrap();
        let bed = Bed::import(bed.end(), expected);
        bed.look();
        bed.end();
    }
}

/// What is told of them.
#[test]
fn what_pools_of_version_1_say() {
    let bed = Bed::import(golden("version-1-crashed"), Expected::default());
    assert_eq!((bed.pool.name(), bed.pool.uuid()), ("golden", uuid("pool")));
    let volume = |name| bed.rig.run(bed.pool.volume_info(uuid(name))).unwrap();
    let thick = volume("thick");
    assert_eq!((thick.thin, thick.size_bytes, thick.allocated_bytes), (false, 2 * MIB, 2 * MIB));
    assert!(thick.properties.shared && thick.properties.allowed_hosts == ["nqn.2014-08.org.example:h"]);
    assert_eq!(thick.properties.entity_id.as_deref(), Some("somebody"));
    assert_eq!(volume("v").properties.entity_id.as_deref(), Some("owner of v"));
    assert_eq!((volume("c").clone_of, volume("c").thin), (Some(uuid("s1")), true));
    let snapshots = bed.rig.run(bed.pool.snapshots()).unwrap();
    let discarded = |name| snapshots.iter().find(|s| s.uuid == uuid(name)).unwrap().discarded;
    assert_eq!((discarded("s1"), discarded("s2")), (true, false));
    let disks = bed.rig.run(bed.pool.disks()).unwrap();
    assert_eq!((disks.len(), disks[0].state), (1, DiskState::Active));

    bed.end();

    let bed = Bed::import(golden("version-1-two-disks"), Expected::default());
    assert_eq!(bed.rig.run(bed.pool.info()).unwrap().block_bytes, 512);
    // What was begun then is done now.
    bed.rig.run(bed.pool.remove_disk(bed.disks[0].called().to_owned())).unwrap();
    let disks = bed.rig.run(bed.pool.disks()).unwrap();
    assert_eq!((disks.len(), disks[0].index), (1, 1));
}
