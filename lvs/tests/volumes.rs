//! Volumes on simulated disks: what is written is read, over export, import and power cuts.

#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::collections::BTreeMap;
use std::sync::Arc;

use aio::devices::sim::SimDisk;
use aio::{BlockDevice, Descriptor, DmaBuf};
use lvs::info::{CreatePool, CreateSnapshot, CreateVolume, ImportPool};
use lvs::{Pool, Volume};
use rig::{Rig, Rng, on};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

fn spec(name: &str) -> CreatePool {
    CreatePool { name: name.to_owned(), uuid: None, force: false }
}

fn thin(name: &str, size_bytes: u64) -> CreateVolume {
    CreateVolume { name: name.to_owned(), uuid: None, size_bytes, thin: true, entity_id: None }
}

fn snap(name: &str, n: u128) -> CreateSnapshot {
    CreateSnapshot {
        name: name.to_owned(),
        uuid: Uuid::from_u128(n),
        txn_id: "t".to_owned(),
        entity_id: "e".to_owned(),
        created: std::time::SystemTime::UNIX_EPOCH,
    }
}

fn create(rig: &Rig, disks: &[&SimDisk]) -> Pool {
    let devices = disks.iter().map(|d| on(d)).collect();
    rig.run(Pool::create(rig.home(), devices, spec("tpool"))).unwrap()
}

fn import(rig: &Rig, disks: &[&SimDisk]) -> Pool {
    let devices = disks.iter().map(|d| on(d)).collect();
    rig.run(Pool::import(rig.home(), devices, ImportPool::default())).unwrap()
}

/// The offline checker finds nothing wrong.
fn assert_clean(rig: &Rig, disks: &[&SimDisk], what: &str) {
    let devices = disks.iter().map(|d| on(d)).collect();
    let report = rig.run(lvs::check(rig.home(), devices, lvs::info::CheckWish::everything())).unwrap();
    assert_eq!(report.findings, Vec::<String>::new(), "{what}");
}

/// A buffer whose every 8 bytes say `stamp`.
fn stamped(rig: &Rig, len: u32, stamp: u64) -> DmaBuf {
    let mut buf = rig.core().pools().unwrap().alloc(len).unwrap();
    for chunk in buf[..len as usize].chunks_exact_mut(8) {
        chunk.copy_from_slice(&stamp.to_le_bytes());
    }
    buf
}

fn open(rig: &Rig, volume: &Arc<Volume>) -> Descriptor {
    let device: Arc<dyn BlockDevice> = volume.clone();
    rig.run(Descriptor::open(device)).unwrap()
}

fn write(rig: &Rig, d: &Descriptor, offset: u64, len: u32, stamp: u64) {
    let buf = stamped(rig, len, stamp);
    rig.run(d.write_at(offset, len, buf)).0.unwrap();
}

/// The stamps of each `step` bytes; a piece that is not of one stamp is a failure.
fn read(rig: &Rig, d: &Descriptor, offset: u64, len: u32, step: usize) -> Vec<u64> {
    let buf = rig.core().pools().unwrap().alloc(len).unwrap();
    let (result, buf) = rig.run(d.read_at(offset, len, buf));
    result.unwrap();
    buf[..len as usize]
        .chunks_exact(step)
        .map(|piece| {
            let stamp = u64::from_le_bytes(piece[..8].try_into().unwrap());
            assert!(piece.chunks_exact(8).all(|c| c == stamp.to_le_bytes()), "a mixed block");
            stamp
        })
        .collect()
}

#[test]
fn what_was_written_is_read_and_the_rest_is_zero() {
    for block_bytes in [512, 4096] {
        let rig = Rig::new();
        let disk = rig.disk("a", block_bytes, 64, true, 1);
        let pool = create(&rig, &[&disk]);
        let volume = rig.run(pool.create_volume(thin("v", 8 * MIB))).unwrap();
        let d = open(&rig, &volume);
        write(&rig, &d, 4096, 8192, 7);
        write(&rig, &d, 3 * MIB, 65536, 8);
        write(&rig, &d, 8192, 4096, 9);
        assert_eq!(read(&rig, &d, 0, 16384, 4096), [0, 7, 9, 0]);
        assert_eq!(read(&rig, &d, 3 * MIB, 65536, 4096), [8; 16]);
        rig.run(d.close());
        rig.run(pool.export()).unwrap();
        let pool = import(&rig, &[&disk]);
        let info = rig.run(pool.volumes()).unwrap();
        let volume = pool.volume(info[0].uuid).unwrap();
        let d = open(&rig, &volume);
        assert_eq!(read(&rig, &d, 0, 16384, 4096), [0, 7, 9, 0]);
        assert_eq!(read(&rig, &d, 3 * MIB, 65536, 4096), [8; 16]);
        assert_eq!(info[0].allocated_bytes, 18 * 4096);
    }
}

/// After a crash the log holds what no merge has counted: it counts all the same.
#[test]
fn what_a_crash_left_in_the_log_is_in_use() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 64, true, 1);
    let pool = create(&rig, &[&disk]);
    let volume = rig.run(pool.create_volume(thin("v", 8 * MIB))).unwrap();
    let d = open(&rig, &volume);
    write(&rig, &d, 0, 65536, 7);
    rig.run(d.flush()).unwrap();
    rig.run(d.close());
    disk.cut_power();
    let _ = rig.run(pool.export());
    let pool = import(&rig, &[&disk]);
    assert_eq!(rig.run(pool.info()).unwrap().used_bytes, 65536);
    rig.run(pool.checkpoint()).unwrap();
    assert_eq!(rig.run(pool.info()).unwrap().used_bytes, 65536);
}

#[test]
fn parts_of_blocks_are_written_and_zeroed_exactly() {
    let rig = Rig::new();
    let disk = rig.disk("a", 512, 64, true, 1);
    let pool = create(&rig, &[&disk]);
    let volume = rig.run(pool.create_volume(thin("v", 8 * MIB))).unwrap();
    let d = open(&rig, &volume);
    write(&rig, &d, 0, 12288, 1);
    write(&rig, &d, 512, 512, 2);
    write(&rig, &d, 3584, 5120, 3);
    let mut want = vec![1; 24];
    want[1] = 2;
    want[7..17].fill(3);
    assert_eq!(read(&rig, &d, 0, 12288, 512), want);
    let zeroed = aio::facade::ByteRange { offset_bytes: 1024, len_bytes: 8192 };
    rig.run(d.write_zeroes(zeroed, true)).unwrap();
    want[2..18].fill(0);
    assert_eq!(read(&rig, &d, 0, 12288, 512), want);
    assert_eq!(read(&rig, &d, 512, 1536, 512), [2, 0, 0]);
}

#[test]
fn a_snapshot_keeps_what_was_and_a_clone_goes_its_own_way() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 64, true, 1);
    let pool = create(&rig, &[&disk]);
    let volume = rig.run(pool.create_volume(thin("v", 8 * MIB))).unwrap();
    let d = open(&rig, &volume);
    write(&rig, &d, 0, 16384, 1);
    rig.run(pool.create_snapshot(volume.uuid(), snap("s1", 1))).unwrap();
    write(&rig, &d, 4096, 4096, 2);
    rig.run(pool.create_snapshot(volume.uuid(), snap("s2", 2))).unwrap();
    write(&rig, &d, 8192, 4096, 3);
    let clone = rig.run(pool.create_clone(Uuid::from_u128(1), thin("c", 1))).unwrap();
    let c = open(&rig, &clone);
    write(&rig, &c, 0, 4096, 9);
    let check = |pool: &Pool, d: &Descriptor, c: &Descriptor| {
        let s1 = open(&rig, &rig.run(pool.open_snapshot(Uuid::from_u128(1))).unwrap());
        let s2 = open(&rig, &rig.run(pool.open_snapshot(Uuid::from_u128(2))).unwrap());
        assert_eq!(read(&rig, d, 0, 16384, 4096), [1, 2, 3, 1]);
        assert_eq!(read(&rig, &s1, 0, 16384, 4096), [1, 1, 1, 1]);
        assert_eq!(read(&rig, &s2, 0, 16384, 4096), [1, 2, 1, 1]);
        assert_eq!(read(&rig, c, 0, 16384, 4096), [9, 1, 1, 1]);
    };
    check(&pool, &d, &c);
    rig.run(pool.checkpoint()).unwrap();
    check(&pool, &d, &c);
    drop((d, c));
    rig.run(pool.export()).unwrap();
    let pool = import(&rig, &[&disk]);
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    let c = open(&rig, &pool.volume(clone.uuid()).unwrap());
    check(&pool, &d, &c);
}

/// The cleaner at work: many times the size of the pool is written to a volume that fills most of it.
#[test]
fn overwrites_go_on_for_ever_and_lose_nothing() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 48, true, 3);
    let pool = create(&rig, &[&disk]);
    let before = rig.run(pool.info()).unwrap();
    let blocks = before.capacity_bytes / 4096 * 9 / 10;
    let volume = rig.run(pool.create_volume(thin("v", blocks * 4096))).unwrap();
    let d = open(&rig, &volume);
    let mut rng = Rng::new(5);
    let mut holds = vec![0; blocks as usize];
    for stamp in 1..=(blocks * 3) {
        let block = if stamp <= blocks { stamp - 1 } else { rng.below(blocks) };
        write(&rig, &d, block * 4096, 4096, stamp);
        holds[block as usize] = stamp;
        if rng.one_in(500) {
            rig.run(d.flush()).unwrap();
        }
    }
    let check = |d: &Descriptor| {
        for (block, &stamp) in holds.iter().enumerate() {
            assert_eq!(read(&rig, d, block as u64 * 4096, 4096, 4096), [stamp], "block {block}");
        }
    };
    check(&d);
    rig.run(d.flush()).unwrap();
    rig.run(d.close());
    disk.cut_power();
    let _ = rig.run(pool.export());
    assert_clean(&rig, &[&disk], "after the cleaner");
    let pool = import(&rig, &[&disk]);
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    check(&d);
    assert_eq!(rig.run(pool.volumes()).unwrap()[0].allocated_bytes / 4096, blocks);
}

/// Corruption: wherever a bit flips, no wrong byte is ever read, and nothing panics.
#[test]
fn a_flipped_bit_is_found_or_harmless_wherever_it_is() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 24, true, 11);
    let pool = create(&rig, &[&disk]);
    let volume = rig.run(pool.create_volume(thin("v", 2 * MIB))).unwrap();
    let uuid = volume.uuid();
    let d = open(&rig, &volume);
    for block in 0..400 {
        write(&rig, &d, block * 4096, 4096, block + 1);
    }
    rig.run(pool.create_snapshot(uuid, snap("s", 1))).unwrap();
    rig.run(pool.checkpoint()).unwrap();
    for block in 0..100 {
        write(&rig, &d, block * 4096, 4096, 1000 + block);
    }
    rig.run(d.flush()).unwrap();
    rig.run(d.close());
    // As a crash leaves it a while later: a tail of the log behind the checkpoint.
    (0..4000).for_each(|_| rig.turn());
    disk.flush_cache();
    disk.cut_power();
    let _ = rig.run(pool.export());
    let used: Vec<u64> =
        (0..24 * 256).filter(|&b| disk.block(aio::Lba(b)).iter().any(|&byte| byte != 0)).collect();
    let image: Vec<(u64, Vec<u8>)> = used.iter().map(|&b| (b, disk.block(aio::Lba(b)))).collect();
    let mut rng = Rng::new(12);
    let (mut refused, mut errors) = (0, 0);
    for round in 0..150 {
        // Superblock blocks each get their turn, the others are drawn.
        let at = if round < 24 { used[round as usize] } else { used[rng.below(used.len() as u64) as usize] };
        let bit = rng.below(4096 * 8);
        let copy = rig.disk("copy", 4096, 24, true, 100 + round);
        restore(&rig, &copy, &image);
        copy.flip_bit(aio::Lba(at), bit);
        let imported = rig.run(Pool::import(rig.home(), vec![on(&copy)], ImportPool::default()));
        let Ok(pool) = imported else {
            refused += 1;
            continue;
        };
        let d = open(&rig, &pool.volume(uuid).unwrap());
        for block in 0..512 {
            let buf = rig.core().pools().unwrap().alloc(4096).unwrap();
            let (result, buf) = rig.run(d.read_at(block * 4096, 4096, buf));
            if result.is_err() {
                errors += 1;
                continue;
            }
            let want = if block < 100 {
                1000 + block
            } else if block < 400 {
                block + 1
            } else {
                0
            };
            assert!(
                buf[..4096].chunks_exact(8).all(|c| c == want.to_le_bytes()),
                "block {at} bit {bit}: {block}"
            );
        }
        rig.run(d.close());
        // A damaged map page keeps the last checkpoint from being made.
        let _ = rig.run(pool.export());
    }
    assert!(errors > 10, "{errors} reads failed: data was hit and found");
    assert!(refused < 30, "{refused} of 150 imports were refused");
}

/// H10: one copy of labels and anchors is enough, whichever; without the newest anchor there is no silent step back.
#[test]
fn h10_one_copy_is_enough_and_an_older_checkpoint_is_never_taken_for_the_newest() {
    let rig = Rig::new();
    for lost in 0..3 {
        let disk = rig.disk("a", 4096, 24, true, 21);
        let pool = create(&rig, &[&disk]);
        let volume = rig.run(pool.create_volume(thin("v", 2 * MIB))).unwrap();
        let d = open(&rig, &volume);
        for stamp in 1..=3 {
            write(&rig, &d, 0, 4096, stamp);
            rig.run(pool.checkpoint()).unwrap();
        }
        write(&rig, &d, 4096, 4096, 9);
        rig.run(d.flush()).unwrap();
        rig.run(d.close());
        disk.cut_power();
        let _ = rig.run(pool.export());
        // Copy A of everything cannot be read, copy B cannot, or both copies of the newest anchor are damaged.
        let slots = |first: u64| (0..4).map(move |slot| first + slot * 16);
        match lost {
            0 => std::iter::once(0).chain(slots(16)).for_each(|b| disk.damage(aio::Lba(b))),
            1 => std::iter::once(8).chain(slots(80)).for_each(|b| disk.damage(aio::Lba(b))),
            _ => {
                let checkpoint =
                    |b: &u64| u64::from_le_bytes(disk.block(aio::Lba(*b))[48..56].try_into().unwrap());
                let newest = slots(16).max_by_key(checkpoint).unwrap();
                [newest, newest + 64].into_iter().for_each(|b| disk.flip_bit(aio::Lba(b), 8 * 300));
            }
        }
        let imported = rig.run(Pool::import(rig.home(), vec![on(&disk)], ImportPool::default()));
        if lost == 2 {
            assert!(matches!(imported, Err(lvs::LvsError::Damaged { .. })), "a step back");
            continue;
        }
        let pool = imported.unwrap();
        let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
        assert_eq!(read(&rig, &d, 0, 8192, 4096), [3, 9]);
        rig.run(d.close());
        rig.run(pool.destroy()).unwrap();
    }
}

/// Writes an image to a disk.
fn restore(rig: &Rig, disk: &SimDisk, image: &[(u64, Vec<u8>)]) {
    let d = rig.run(Descriptor::open(on(disk))).unwrap();
    for (block, bytes) in image {
        let mut buf = rig.core().pools().unwrap().alloc(4096).unwrap();
        buf[..4096].copy_from_slice(bytes);
        rig.run(d.write_at(block * 4096, 4096, buf)).0.unwrap();
    }
    rig.run(d.flush()).unwrap();
    rig.run(d.close());
}

/// What blocks of a volume may hold after a crash.
#[derive(Default)]
struct Model {
    /// Durable, then everything that was written since, acknowledged or not.
    blocks: BTreeMap<u64, Vec<u64>>,
}

impl Model {
    fn wrote(&mut self, block: u64, stamp: u64) {
        self.blocks.entry(block).or_insert_with(|| vec![0]).push(stamp);
    }

    fn flushed(&mut self) {
        for stamps in self.blocks.values_mut() {
            stamps.drain(..stamps.len() - 1);
        }
    }

    fn found(&mut self, block: u64, stamp: u64) -> bool {
        let stamps = self.blocks.entry(block).or_insert_with(|| vec![0]);
        let known = stamps.contains(&stamp);
        *stamps = vec![stamp];
        known
    }
}

/// Writes, flushes, unmaps, snapshots and checkpoints at random, cuts the power at random, and looks.
fn crashes(seed: u64, rounds: u64) {
    let mut rng = Rng::new(seed);
    let rig = Rig::new();
    let block_bytes = if rng.one_in(2) { 512 } else { 4096 };
    let volatile = !rng.one_in(4);
    let disks: Vec<SimDisk> = (0..1 + rng.below(2))
        .map(|i| rig.disk(&format!("d{i}"), block_bytes, 40, volatile, seed * 7 + i))
        .collect();
    let disks: Vec<&SimDisk> = disks.iter().collect();
    let mut pool = create(&rig, &disks);
    let size = 4 * MIB;
    let volume = rig.run(pool.create_volume(thin("v", size))).unwrap();
    let uuid = volume.uuid();
    let mut model = Model::default();
    let mut stamp = 1;
    let mut snapshots = 0;
    for round in 0..rounds {
        let d = open(&rig, &pool.volume(uuid).unwrap());
        for _ in 0..rng.below(120) {
            match rng.below(40) {
                0..=29 => {
                    let count = if rng.one_in(4) { 1 + rng.below(16) } else { 1 };
                    let block = rng.below(size / 4096 - count);
                    let len = (count * 4096) as u32;
                    let buf = stamped(&rig, len, stamp);
                    let (result, _) = rig.run(d.write_at(block * 4096, len, buf));
                    result.unwrap();
                    (block..block + count).for_each(|b| model.wrote(b, stamp));
                    stamp += 1;
                }
                30..=32 => {
                    rig.run(d.flush()).unwrap();
                    model.flushed();
                }
                33..=35 => {
                    let count = 1 + rng.below(100);
                    let block = rng.below(size / 4096 - count);
                    let range =
                        aio::facade::ByteRange { offset_bytes: block * 4096, len_bytes: count * 4096 };
                    rig.run(d.unmap(&[range])).unwrap();
                    (block..block + count).for_each(|b| model.wrote(b, 0));
                }
                36..=37 => {
                    let block = rng.below(size / 4096);
                    let stamps = model.blocks.get(&block).map_or(0, |s| *s.last().unwrap());
                    assert_eq!(
                        read(&rig, &d, block * 4096, 4096, 4096),
                        [stamps],
                        "seed {seed} block {block}"
                    );
                }
                38 => rig.run(pool.checkpoint()).unwrap(),
                _ if snapshots < 6 => {
                    snapshots += 1;
                    rig.run(pool.create_snapshot(uuid, snap(&format!("s{snapshots}"), snapshots))).unwrap();
                    model.flushed();
                }
                _ => {}
            }
        }
        // Some that are in flight when the power goes.
        let mut writes = Vec::new();
        for _ in 0..rng.below(12) {
            let block = rng.below(size / 4096);
            let buf = stamped(&rig, 4096, stamp);
            model.wrote(block, stamp);
            stamp += 1;
            let d = d.clone();
            writes.push(Box::pin(async move { d.write_at(block * 4096, 4096, buf).await }));
        }
        for write in &mut writes {
            let _ = rig.run_for(1, write.as_mut());
        }
        (0..rng.below(60)).for_each(|_| rig.turn());
        disks.iter().for_each(|disk| disk.cut_power());
        drop(writes);
        drop(d);
        // The dead pool's own end.
        let _ = rig.run(pool.export());
        assert_clean(&rig, &disks, &format!("seed {seed} round {round}"));
        pool = import(&rig, &disks);
        let d = open(&rig, &pool.volume(uuid).unwrap());
        for block in 0..size / 4096 {
            let found = read(&rig, &d, block * 4096, 4096, 4096)[0];
            assert!(model.found(block, found), "seed {seed} round {round}: block {block} holds {found}");
        }
        rig.run(d.close());
    }
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    let seeds = std::env::var("KEELSON_LVS_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    let first = std::env::var("KEELSON_LVS_FIRST").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        crashes(seed, 4);
    }
}

/// H8: a flush of a volume is not done before one that a checkpoint began is.
#[test]
fn h8_a_flush_beside_a_checkpoint_waits_for_the_disk() {
    for turns in 0..60 {
        let rig = Rig::new();
        let disk = rig.disk("a", 4096, 40, true, turns);
        let pool = create(&rig, &[&disk]);
        let volume = rig.run(pool.create_volume(thin("v", MIB))).unwrap();
        let d = open(&rig, &volume);
        (0..16).for_each(|block| write(&rig, &d, block * 4096, 4096, 7));
        let mut checkpoint = Box::pin(pool.checkpoint());
        let _ = rig.run_for(turns, checkpoint.as_mut());
        rig.run(d.flush()).unwrap();
        disk.cut_power();
        drop((checkpoint, d));
        let _ = rig.run(pool.export());
        let pool = import(&rig, &[&disk]);
        let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
        assert_eq!(read(&rig, &d, 0, 65536, 4096), [7; 16], "cut {turns} turns after the checkpoint began");
    }
}

#[test]
fn a_snapshot_of_a_clone_outlives_the_clone_and_what_it_was_made_of() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 64, true, 1);
    let pool = create(&rig, &[&disk]);
    let volume = rig.run(pool.create_volume(thin("v", MIB))).unwrap();
    let d = open(&rig, &volume);
    write(&rig, &d, 0, 8192, 1);
    rig.run(pool.create_snapshot(volume.uuid(), snap("s1", 1))).unwrap();
    write(&rig, &d, 0, 8192, 2);
    let clone = rig.run(pool.create_clone(Uuid::from_u128(1), thin("c", 1))).unwrap();
    let c = open(&rig, &clone);
    write(&rig, &c, 0, 4096, 3);
    rig.run(pool.create_snapshot(clone.uuid(), snap("s2", 2))).unwrap();
    rig.run(c.close());
    rig.run(d.close());
    rig.run(pool.destroy_volume(clone.uuid())).unwrap();
    rig.run(pool.destroy_snapshot(Uuid::from_u128(1))).unwrap();
    rig.run(pool.destroy_volume(volume.uuid())).unwrap();
    (0..4).for_each(|_| rig.run(pool.checkpoint()).unwrap());
    let check = |pool: &Pool| {
        let s2 = open(&rig, &rig.run(pool.open_snapshot(Uuid::from_u128(2))).unwrap());
        assert_eq!(read(&rig, &s2, 0, 8192, 4096), [3, 1]);
        rig.run(s2.close());
    };
    check(&pool);
    rig.run(pool.export()).unwrap();
    let pool = import(&rig, &[&disk]);
    check(&pool);
    rig.run(pool.destroy_snapshot(Uuid::from_u128(2))).unwrap();
    assert!(rig.run(pool.snapshots()).unwrap().is_empty(), "the discarded one went with its last reader");
    (0..4).for_each(|_| rig.run(pool.checkpoint()).unwrap());
    assert_eq!(rig.run(pool.info()).unwrap().used_bytes, 0);
    rig.run(pool.export()).unwrap();
    import(&rig, &[&disk]);
}

#[test]
fn a_clone_its_snapshot_and_its_source_can_be_deleted_at_once() {
    for turns in [0, 5, 20, 60, 200] {
        let rig = Rig::new();
        let disk = rig.disk("a", 4096, 64, true, 1);
        let pool = create(&rig, &[&disk]);
        let volume = rig.run(pool.create_volume(thin("v", MIB))).unwrap();
        let d = open(&rig, &volume);
        write(&rig, &d, 0, 65536, 1);
        rig.run(pool.create_snapshot(volume.uuid(), snap("s1", 1))).unwrap();
        write(&rig, &d, 0, 8192, 2);
        let clone = rig.run(pool.create_clone(Uuid::from_u128(1), thin("c", 1))).unwrap();
        let c = open(&rig, &clone);
        write(&rig, &c, 0, 4096, 3);
        rig.run(c.close());
        rig.run(d.close());
        rig.run(pool.checkpoint()).unwrap();
        rig.run(pool.destroy_volume(clone.uuid())).unwrap();
        rig.run(pool.destroy_snapshot(Uuid::from_u128(1))).unwrap();
        let mut purging = Box::pin(pool.checkpoint());
        let _ = rig.run_for(turns, purging.as_mut());
        rig.run(pool.destroy_volume(volume.uuid())).unwrap();
        (0..4).for_each(|_| rig.run(pool.checkpoint()).unwrap());
        let info = rig.run(pool.info()).unwrap();
        assert_eq!((info.used_bytes, info.fault), (0, None));
        rig.run(pool.export()).unwrap();
        import(&rig, &[&disk]);
    }
}

/// H5: what a checkpoint wrote of the catalogue is newer than the records that are read again after it.
#[test]
fn h5_snapshots_that_came_and_went_during_a_checkpoint_do_not_stop_an_import() {
    for turns in (0..400).step_by(20) {
        let rig = Rig::new();
        let disk = rig.disk("a", 4096, 64, false, turns);
        let pool = create(&rig, &[&disk]);
        let volume = rig.run(pool.create_volume(thin("v", 8 * MIB))).unwrap();
        let d = open(&rig, &volume);
        (0..512).for_each(|i| write(&rig, &d, i * 16384, 4096, 1));
        let mut checkpoint = Box::pin(pool.checkpoint());
        let _ = rig.run_for(1, checkpoint.as_mut());
        rig.run(pool.create_snapshot(volume.uuid(), snap("s1", 1))).unwrap();
        rig.run(pool.create_snapshot(volume.uuid(), snap("s2", 2))).unwrap();
        rig.run(pool.destroy_snapshot(Uuid::from_u128(1))).unwrap();
        let _ = rig.run_for(turns, checkpoint.as_mut());
        disk.cut_power();
        drop((checkpoint, d));
        let _ = rig.run(pool.export());
        let pool = import(&rig, &[&disk]);
        let snapshots = rig.run(pool.snapshots()).unwrap();
        assert_eq!(snapshots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["s2"]);
    }
}

/// H16: a tail is what was being merged, and as much again that came meanwhile.
#[test]
fn h16_a_crash_while_a_full_delta_is_merged_leaves_a_pool_that_can_be_imported() {
    for turns in [100, 400, 800, 1200] {
        let rig = Rig::new();
        let disk = rig.disk("a", 4096, 64, false, turns);
        let pool = create(&rig, &[&disk]);
        let volume = rig.run(pool.create_volume(thin("v", 32 * MIB))).unwrap();
        let d = open(&rig, &volume);
        let unmap = |i: u64| {
            let range = aio::facade::ByteRange { offset_bytes: i * 32768, len_bytes: 20480 };
            let d = d.clone();
            async move { d.unmap(&[range]).await }
        };
        (0..500).for_each(|i| rig.run(unmap(i)).unwrap());
        let mut checkpoint = Box::pin(pool.checkpoint());
        let _ = rig.run_for(1, checkpoint.as_mut());
        let mut more: Vec<_> = (500..1000).map(|i| Box::pin(unmap(i))).collect();
        for one in &mut more {
            let _ = rig.run_for(1, one.as_mut());
        }
        let _ = rig.run_for(turns, checkpoint.as_mut());
        disk.cut_power();
        drop((checkpoint, more));
        drop(d);
        let _ = rig.run(pool.export());
        let pool = import(&rig, &[&disk]);
        rig.run(pool.export()).unwrap();
    }
}

#[test]
fn checkpoints_go_on_while_the_log_opens_segments() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 64, true, 1);
    let pool = create(&rig, &[&disk]);
    let volume = rig.run(pool.create_volume(thin("v", 4 * MIB))).unwrap();
    let d = open(&rig, &volume);
    for round in 0..40 {
        let mut writes: Vec<_> = (0..24)
            .map(|i| {
                let (d, buf) = (d.clone(), stamped(&rig, 131072, round));
                Box::pin(async move { d.write_at(i * 131072, 131072, buf).await.0 })
            })
            .collect();
        for write in &mut writes {
            let _ = rig.run_for(1, write.as_mut());
        }
        rig.run(pool.checkpoint()).unwrap();
        drop(writes);
    }
    assert_eq!(rig.run(pool.info()).unwrap().fault, None);
}
