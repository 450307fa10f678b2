//! Ten thousand snapshots of a volume, and clones a hundred deep.

#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::collections::BTreeMap;
use std::sync::Arc;

use aio::devices::sim::SimDisk;
use aio::{BlockDevice, Descriptor, DmaBuf};
use lvs::info::{CheckWish, CreatePool, CreateSnapshot, CreateVolume, ImportPool};
use lvs::{Pool, Volume};
use rig::{Rig, Rng, on};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// A pool on one disk.
struct Bed {
    rig: Rig,
    disk: SimDisk,
    pool: Pool,
}

impl Bed {
    fn new(mib: u64) -> Self {
        let rig = Rig::new();
        let disk = rig.disk("a", 4096, mib, true, 1);
        let spec = CreatePool { name: "tpool".into(), uuid: None, force: false };
        let pool = rig.run(Pool::create(rig.home(), vec![on(&disk)], spec)).unwrap();
        Self { rig, disk, pool }
    }

    /// The power fails and comes back: nothing is wrong, and the pool is there again.
    fn crash(&mut self) {
        self.disk.cut_power();
        let _ = self.rig.run(self.pool.export());
        let report = self.rig.run(lvs::check(self.rig.home(), vec![on(&self.disk)], CheckWish::everything()));
        assert_eq!(report.unwrap().findings, Vec::<String>::new());
        let imported = Pool::import(self.rig.home(), vec![on(&self.disk)], ImportPool::default());
        self.pool = self.rig.run(imported).unwrap();
    }

    fn open(&self, volume: &Arc<Volume>) -> Descriptor {
        let device: Arc<dyn BlockDevice> = volume.clone();
        self.rig.run(Descriptor::open(device)).unwrap()
    }

    fn write(&self, d: &Descriptor, block: u64, stamp: u64) {
        let mut buf = self.rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
        buf[..BLOCK as usize].chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&stamp.to_le_bytes()));
        self.rig.run(d.write_at(block * BLOCK, BLOCK as u32, buf)).0.unwrap();
    }

    fn read(&self, d: &Descriptor, block: u64) -> u64 {
        let buf: DmaBuf = self.rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
        let (result, buf) = self.rig.run(d.read_at(block * BLOCK, BLOCK as u32, buf));
        result.unwrap();
        let stamp = u64::from_le_bytes(buf[..8].try_into().unwrap());
        assert!(buf[..BLOCK as usize].chunks_exact(8).all(|c| c == stamp.to_le_bytes()), "a mixed block");
        stamp
    }

    /// What was asked of the disk while `work` ran: writes and flushes.
    fn asked<T>(&self, work: impl FnOnce() -> T) -> (T, u64, u64) {
        let before = self.disk.stats();
        let done = work();
        let after = self.disk.stats();
        (done, after.writes - before.writes, after.flushes - before.flushes)
    }

    /// Checkpoints until nothing that was deleted is left.
    fn until_used(&self, blocks: u64) {
        for _ in 0..2_000 {
            self.rig.run(self.pool.checkpoint()).unwrap();
            if self.rig.run(self.pool.info()).unwrap().used_bytes == blocks * BLOCK {
                return;
            }
        }
        panic!("{} bytes are used still", self.rig.run(self.pool.info()).unwrap().used_bytes);
    }
}

fn thin(name: &str, n: u64, size_bytes: u64) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        uuid: Some(volume_uuid(n)),
        size_bytes,
        thin: true,
        entity_id: None,
    }
}

fn volume_uuid(n: u64) -> Uuid {
    Uuid::from_u64_pair(1, n)
}

fn snapshot_uuid(n: u64) -> Uuid {
    Uuid::from_u64_pair(2, n)
}

/// With texts as long as control planes make them.
fn snapshot(n: u64) -> CreateSnapshot {
    CreateSnapshot {
        name: format!("{}/{n}", Uuid::nil()),
        uuid: snapshot_uuid(n),
        txn_id: n.to_string(),
        entity_id: Uuid::nil().to_string(),
        created: std::time::SystemTime::UNIX_EPOCH,
    }
}

fn shuffled<T>(mut list: Vec<T>, rng: &mut Rng) -> Vec<T> {
    for at in (1..list.len()).rev() {
        list.swap(at, rng.below(at as u64 + 1) as usize);
    }
    list
}

/// Snapshot n was taken after block n mod 256 had been written for the nth time: what it holds there, and elsewhere.
fn held(n: u64, block: u64) -> u64 {
    (0..=n).rev().find(|at| at % BLOCKS == block).map_or(0, |at| at + 1)
}

const BLOCKS: u64 = 256;
const SNAPSHOTS: u64 = 10_000;

#[test]
fn ten_thousand_snapshots_come_are_read_and_go_in_any_order() {
    let mut bed = Bed::new(192);
    let volume = bed.rig.run(bed.pool.create_volume(thin("v", 0, MIB))).unwrap();
    let d = bed.open(&volume);
    // One write that is on its way, one record, one flush of what is before it; sometimes a checkpoint comes between.
    let mut dearer = 0;
    for n in 0..SNAPSHOTS {
        bed.write(&d, n % BLOCKS, n + 1);
        let taken = bed.pool.create_snapshot(volume_uuid(0), snapshot(n));
        let (made, writes, flushes) = bed.asked(|| bed.rig.run(taken));
        made.unwrap();
        dearer += u64::from(writes > 2 || flushes > 1);
    }
    assert!(
        dearer < SNAPSHOTS / 50,
        "{dearer} of {SNAPSHOTS} snapshots took more than a flush and two writes"
    );
    bed.rig.run(d.close());
    assert_eq!(bed.rig.run(bed.pool.snapshots()).unwrap().len() as u64, SNAPSHOTS);
    bed.crash();

    // Until a merge has counted them, what the log holds is nobody's.
    bed.rig.run(bed.pool.checkpoint()).unwrap();
    let listed = bed.rig.run(bed.pool.snapshots()).unwrap();
    let own: u64 = listed.iter().map(|s| s.allocated_bytes).sum();
    let volume = bed.rig.run(bed.pool.volume_info(volume_uuid(0))).unwrap();
    assert_eq!((own, volume.allocated_bytes, volume.snapshots_bytes), (SNAPSHOTS * BLOCK, 0, own));
    let last = listed.iter().find(|s| s.uuid == snapshot_uuid(SNAPSHOTS - 1)).unwrap();
    assert_eq!((last.allocated_bytes, last.ancestors_bytes), (BLOCK, own - BLOCK));
    // What tables of such length take, beyond what is hidden for them, counts as used.
    let used = bed.rig.run(bed.pool.info()).unwrap().used_bytes;
    assert!((own..own + 16 * MIB).contains(&used), "{used} bytes are used");
    let mut rng = Rng::new(4);
    let mut left: Vec<u64> = shuffled((0..SNAPSHOTS).collect(), &mut rng);
    let look = |bed: &Bed, left: &[u64], rng: &mut Rng| {
        for _ in 0..40 {
            let Some(&n) = left.get(rng.below(left.len().max(1) as u64) as usize) else { return };
            let d = bed.open(&bed.rig.run(bed.pool.open_snapshot(snapshot_uuid(n))).unwrap());
            for block in [n % BLOCKS, rng.below(BLOCKS), rng.below(BLOCKS)] {
                assert_eq!(bed.read(&d, block), held(n, block), "block {block} of snapshot {n}");
            }
            bed.rig.run(d.close());
        }
    };
    look(&bed, &left, &mut rng);
    for round in 0..4 {
        let cheap = left.len() / 2;
        for n in left.split_off(if round == 3 { 0 } else { cheap }) {
            bed.rig.run(bed.pool.destroy_snapshot(snapshot_uuid(n))).unwrap();
        }
        look(&bed, &left, &mut rng);
        if round == 1 {
            bed.crash();
            look(&bed, &left, &mut rng);
        }
    }
    bed.until_used(BLOCKS);
    bed.crash();
    assert!(bed.rig.run(bed.pool.snapshots()).unwrap().is_empty());
    let d = bed.open(&bed.pool.volume(volume_uuid(0)).unwrap());
    for block in 0..BLOCKS {
        assert_eq!(bed.read(&d, block), held(SNAPSHOTS - 1, block));
    }
}

const DEPTH: u64 = 100;

/// Volume n is a clone of a snapshot of volume n - 1. Each writes block 0, and block n + 1, before its snapshot is taken.
fn stamp_of(volume: u64, block: u64) -> u64 {
    match block {
        0 => 1_000 + volume,
        _ if block <= volume + 1 => block,
        _ => 0,
    }
}

/// What is left of the clones: volumes and snapshots that were not deleted.
#[derive(Default)]
struct Left {
    volumes: BTreeMap<u64, ()>,
    snapshots: BTreeMap<u64, ()>,
}

impl Left {
    fn look(&self, bed: &Bed, rng: &mut Rng) {
        let volumes = self.volumes.keys().map(|&n| (n, bed.pool.volume(volume_uuid(n)).unwrap()));
        let snapshots = self.snapshots.keys();
        let snapshots =
            snapshots.map(|&n| (n, bed.rig.run(bed.pool.open_snapshot(snapshot_uuid(n))).unwrap()));
        for (n, device) in volumes.chain(snapshots).collect::<Vec<_>>() {
            let d = bed.open(&device);
            for block in [0, 1, n + 1, n + 2, rng.below(DEPTH)] {
                assert_eq!(bed.read(&d, block), stamp_of(n, block), "block {block} of {n}");
            }
            bed.rig.run(d.close());
        }
    }
}

#[test]
fn clones_a_hundred_deep_are_read_and_deleted_in_any_order() {
    let mut rng = Rng::new(9);
    for round in 0..3 {
        let mut bed = Bed::new(64);
        let mut left = Left::default();
        let mut volume = bed.rig.run(bed.pool.create_volume(thin("0", 0, MIB))).unwrap();
        for n in 0..=DEPTH {
            let d = bed.open(&volume);
            bed.write(&d, 0, 1_000 + n);
            bed.write(&d, n + 1, n + 1);
            bed.rig.run(d.close());
            left.volumes.insert(n, ());
            if n == DEPTH {
                break;
            }
            let snapshot = bed.pool.create_snapshot(volume_uuid(n), snapshot(n));
            let (made, writes, flushes) = bed.asked(|| bed.rig.run(snapshot));
            made.unwrap();
            assert!(writes <= 2 && flushes <= 1, "snapshot {n}: {writes} writes, {flushes} flushes");
            let clone = bed.pool.create_clone(snapshot_uuid(n), thin(&(n + 1).to_string(), n + 1, MIB));
            let (made, writes, flushes) = bed.asked(|| bed.rig.run(clone));
            assert!(writes <= 2 && flushes <= 1, "clone {n}: {writes} writes, {flushes} flushes");
            volume = made.unwrap();
            left.snapshots.insert(n, ());
        }
        left.look(&bed, &mut rng);
        // Through a hundred trees.
        let d = bed.open(&volume);
        bed.rig.run(bed.pool.checkpoint()).unwrap();
        let before = bed.disk.stats().reads;
        assert_eq!(bed.read(&d, 1), 1);
        let reads = bed.disk.stats().reads - before;
        assert!(
            reads <= DEPTH + 1,
            "{reads} reads of the disk for a block that is found in the last of {DEPTH} trees"
        );
        bed.rig.run(d.close());
        bed.crash();
        left.look(&bed, &mut rng);

        let all = (0..=DEPTH).map(|n| (true, n)).chain((0..DEPTH).map(|n| (false, n))).collect();
        for (at, (is_volume, n)) in shuffled(all, &mut rng).into_iter().enumerate() {
            match is_volume {
                true => {
                    bed.rig.run(bed.pool.destroy_volume(volume_uuid(n))).unwrap();
                    left.volumes.remove(&n);
                }
                false => {
                    // One that was discarded may have gone with its last clone.
                    bed.rig.run(bed.pool.destroy_snapshot(snapshot_uuid(n))).unwrap();
                    left.snapshots.remove(&n);
                }
            }
            if at % 20 == round {
                left.look(&bed, &mut rng);
            }
            if at % 67 == 66 {
                bed.crash();
                left.look(&bed, &mut rng);
            }
        }
        bed.until_used(0);
        assert!(bed.rig.run(bed.pool.snapshots()).unwrap().is_empty());
        assert!(bed.rig.run(bed.pool.volumes()).unwrap().is_empty());
        bed.crash();
    }
}

/// A bug: what describes volumes and snapshots is written as a whole by checkpoints, and could become longer than an anchor
/// can point to. That faulted the pool, and no import could mend it.
#[test]
fn what_describes_volumes_has_a_bound_and_the_pool_goes_on() {
    for (mib, most) in [(64, 2 * MIB), (512, 7 * MIB)] {
        let mut bed = Bed::new(mib);
        let volume = bed.rig.run(bed.pool.create_volume(thin("v", 0, MIB))).unwrap();
        let long = |n: u64| CreateSnapshot { entity_id: "e".repeat(200_000), ..snapshot(n) };
        let mut made = 0;
        let refused = loop {
            let d = bed.open(&volume);
            bed.write(&d, made % BLOCKS, made + 1);
            bed.rig.run(d.close());
            match bed.rig.run(bed.pool.create_snapshot(volume_uuid(0), long(made))) {
                Ok(_) => made += 1,
                Err(refused) => break refused,
            }
            if made % 7 == 0 {
                bed.rig.run(bed.pool.checkpoint()).unwrap();
            }
        };
        assert!(matches!(refused, lvs::LvsError::CatalogueFull { .. }), "{refused}");
        assert!((most * 8 / 10..=most).contains(&(made * 200_500)), "{mib} MiB: {made} snapshots");
        // What makes it no larger goes on, and so does the pool.
        for n in 0..3 {
            bed.rig.run(bed.pool.resize_volume(volume_uuid(0), (2 + n) * MIB)).unwrap();
            bed.rig.run(bed.pool.checkpoint()).unwrap();
            bed.crash();
        }
        assert_eq!(bed.rig.run(bed.pool.snapshots()).unwrap().len() as u64, made);
        bed.rig.run(bed.pool.destroy_snapshot(snapshot_uuid(0))).unwrap();
        bed.rig.run(bed.pool.create_snapshot(volume_uuid(0), long(made))).unwrap();
        bed.crash();
        let d = bed.open(&bed.rig.run(bed.pool.open_snapshot(snapshot_uuid(made))).unwrap());
        assert_eq!(bed.read(&d, made % BLOCKS), made + 1);
    }
}
