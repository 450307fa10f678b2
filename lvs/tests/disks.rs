//! Pools of several simulated disks: second copies, disks that fail or are missing, disks added and removed.

#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aio::device::{EventSink, Subscription};
use aio::devices::sim::SimDisk;
use aio::{
    BlockCount, BlockDevice, Capabilities, Descriptor, DeviceError, Geometry, IoChannel, Lba, LocalBoxFuture,
};
use lvs::info::{CreatePool, CreateVolume, DiskState, ImportPool};
use lvs::{LvsError, Pool, Volume};
use rig::{Rig, Rng, on};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn create(rig: &Rig, disks: &[&SimDisk]) -> Pool {
    let spec = CreatePool { name: "tpool".to_owned(), uuid: None, force: false };
    rig.run(Pool::create(rig.home(), powered(disks), spec)).unwrap()
}

fn import(rig: &Rig, disks: &[&SimDisk]) -> Result<Pool, LvsError> {
    rig.run(Pool::import(rig.home(), powered(disks), ImportPool::default()))
}

fn powered(disks: &[&SimDisk]) -> Vec<Arc<dyn BlockDevice>> {
    disks.iter().map(|d| on(d)).collect()
}

fn thin(rig: &Rig, pool: &Pool, name: &str, size_bytes: u64) -> Arc<Volume> {
    let name = name.to_owned();
    let spec = CreateVolume { name, uuid: None, size_bytes, thin: true, entity_id: None };
    rig.run(pool.create_volume(spec)).unwrap()
}

fn open(rig: &Rig, volume: &Arc<Volume>) -> Descriptor {
    let device: Arc<dyn BlockDevice> = volume.clone();
    rig.run(Descriptor::open(device)).unwrap()
}

fn try_write(rig: &Rig, d: &Descriptor, block: u64, stamp: u64) -> bool {
    let mut buf = rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
    for chunk in buf[..BLOCK as usize].chunks_exact_mut(8) {
        chunk.copy_from_slice(&stamp.to_le_bytes());
    }
    rig.run(d.write_at(block * BLOCK, BLOCK as u32, buf)).0.is_ok()
}

fn write(rig: &Rig, d: &Descriptor, block: u64, stamp: u64) {
    assert!(try_write(rig, d, block, stamp), "block {block}");
}

/// The stamp of a block; `None` = an error. A mixed block is a failure.
fn read(rig: &Rig, d: &Descriptor, block: u64) -> Option<u64> {
    let buf = rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
    let (result, buf) = rig.run(d.read_at(block * BLOCK, BLOCK as u32, buf));
    result.ok()?;
    let stamp = u64::from_le_bytes(buf[..8].try_into().unwrap());
    assert!(buf[..BLOCK as usize].chunks_exact(8).all(|c| c == stamp.to_le_bytes()), "a mixed block");
    Some(stamp)
}

fn findings(rig: &Rig, disks: &[&SimDisk]) -> Vec<String> {
    rig.run(lvs::check(rig.home(), powered(disks), lvs::info::CheckWish::everything())).unwrap().findings
}

/// A pool on disks of 40 MiB with a volume whose map has interior pages; block `b` of it holds `b + 1`.
fn filled(rig: &Rig, disks: &[&SimDisk]) -> (Pool, Arc<Volume>) {
    let pool = create(rig, disks);
    let volume = fill(rig, &pool);
    (pool, volume)
}

fn fill(rig: &Rig, pool: &Pool) -> Arc<Volume> {
    let volume = thin(rig, pool, "v", 8 * MIB);
    let d = open(rig, &volume);
    (0..BLOCKS).for_each(|block| write(rig, &d, block * 2, block + 1));
    rig.run(pool.checkpoint()).unwrap();
    rig.run(d.close());
    volume
}

const BLOCKS: u64 = 600;

/// Every block holds what [`filled`] wrote.
fn assert_filled(rig: &Rig, pool: &Pool, volume: &Volume) {
    let d = open(rig, &pool.volume(volume.uuid()).unwrap());
    for block in 0..BLOCKS {
        assert_eq!(read(rig, &d, block * 2), Some(block + 1), "block {block}");
    }
    rig.run(d.close());
}

/// Blocks of a disk, behind the superblock area, for which `wanted` is true.
fn blocks_that(disk: &SimDisk, mib: u64, wanted: impl Fn(&[u8]) -> bool) -> Vec<Lba> {
    (256..mib * 256).map(Lba).filter(|&b| wanted(&disk.block(b))).collect()
}

fn is_map_page(block: &[u8], interior: bool) -> bool {
    block.starts_with(b"KSmp") && (block[5] > 0) == interior
}

fn is_table(block: &[u8]) -> bool {
    [b"KSsegmts", b"KSlines\0", b"KScatalg"].iter().any(|magic| block.starts_with(*magic))
}

fn crash(rig: &Rig, pool: Pool, disks: &[&SimDisk]) {
    disks.iter().for_each(|d| d.cut_power());
    let _ = rig.run(pool.export());
}

/// H10: metadata above the leaves stands twice, on two disks when there are two, and else in two segments.
#[test]
fn h10_interior_pages_and_tables_are_read_from_their_second_copy() {
    for count in [1, 2] {
        for damaged in 0..2 {
            let rig = Rig::new();
            let disks: Vec<SimDisk> =
                (0..count).map(|i| rig.disk(&format!("d{i}"), 4096, 40, true, i)).collect();
            let disks: Vec<&SimDisk> = disks.iter().collect();
            let (pool, volume) = filled(&rig, &disks);
            crash(&rig, pool, &disks);
            assert_eq!(findings(&rig, &disks), Vec::<String>::new());
            let wanted = |block: &[u8]| is_map_page(block, true) || is_table(block);
            if count == 2 {
                let gone = blocks_that(disks[damaged], 40, wanted);
                assert!(gone.len() > 4, "{}", gone.len());
                gone.iter().for_each(|&b| disks[damaged].damage(b));
            } else {
                // All that stands in one of the two segments of pages.
                let found = blocks_that(disks[0], 40, wanted);
                let segment = |lba: &Lba| (lba.0 - 256) / 256;
                let (one, other) = (segment(&found[0]), segment(found.last().unwrap()));
                assert_ne!(one, other);
                let lost = if damaged == 0 { one } else { other };
                found.iter().filter(|b| segment(b) == lost).for_each(|&b| disks[0].flip_bit(b, 99));
            }
            let found = findings(&rig, &disks);
            assert!(found.iter().any(|f| f.contains("map page")), "{found:?}");
            assert!(found.iter().any(|f| f.contains("copy of the table of segments")), "{found:?}");
            let pool = import(&rig, &disks).unwrap();
            assert_filled(&rig, &pool, &volume);
            // What was read from its copy is written anew, twice.
            let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
            write(&rig, &d, 0, 1);
            rig.run(d.close());
            rig.run(pool.checkpoint()).unwrap();
            rig.run(pool.export()).unwrap();
            assert_eq!(findings(&rig, &disks), Vec::<String>::new());
            assert_filled(&rig, &import(&rig, &disks).unwrap(), &volume);
        }
    }
}

/// A damaged leaf: what only it knew is an error, everything else goes on, and nothing that is written is lost.
#[test]
fn a_damaged_leaf_concerns_its_own_blocks_only() {
    let rig = Rig::new();
    let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
    let disks = [&disks[0], &disks[1]];
    let (pool, volume) = filled(&rig, &disks);
    let other = thin(&rig, &pool, "w", 8 * MIB);
    let d = open(&rig, &other);
    (0..BLOCKS).for_each(|block| write(&rig, &d, block, block + 7));
    rig.run(d.close());
    crash(&rig, pool, &disks);
    // The second leaf of the first volume: line 0, and its first entry is not block 0.
    let leaf = |block: &[u8]| is_map_page(block, false) && block[8] == 0 && block[67..72] != [0; 5];
    let (disk, lba) = (0..2).find_map(|i| Some((i, *blocks_that(disks[i], 40, leaf).first()?))).unwrap();
    let page = disks[disk].block(lba);
    let entries = u64::from(page[6]);
    let first = u64::from(page[67]) | u64::from(page[68]) << 8;
    assert!(entries > 50 && first > 50, "{entries} from {first}");
    disks[disk].flip_bit(lba, 4000);
    let mut pool = import(&rig, &disks).unwrap();
    let mut holds: Vec<Option<u64>> =
        (0..BLOCKS * 2).map(|b| Some(if b % 2 == 0 { b / 2 + 1 } else { 0 })).collect();
    let hit = first..first + 2 * entries;
    hit.clone().for_each(|b| holds[b as usize] = None);
    let mut rng = Rng::new(9);
    for round in 0..4 {
        let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
        let w = open(&rig, &pool.volume(other.uuid()).unwrap());
        for n in 0..100 {
            let block = if n % 3 == 0 { hit.start + rng.below(2 * entries) } else { rng.below(2 * BLOCKS) };
            let stamp = 10_000 + round * 1000 + n;
            write(&rig, &d, block, stamp);
            holds[block as usize] = Some(stamp);
            write(&rig, &w, rng.below(BLOCKS), 5);
        }
        let range = aio::facade::ByteRange { offset_bytes: (hit.end - 9) * BLOCK, len_bytes: 20 * BLOCK };
        rig.run(d.unmap(&[range])).unwrap();
        (hit.end - 9..hit.end + 11).for_each(|b| holds[b as usize] = Some(0));
        rig.run(d.flush()).unwrap();
        let check = |d: &Descriptor| {
            for (block, &want) in holds.iter().enumerate() {
                assert_eq!(read(&rig, d, block as u64), want, "round {round}: block {block}");
            }
        };
        check(&d);
        rig.run(pool.checkpoint()).unwrap();
        check(&d);
        rig.run(d.close());
        rig.run(w.close());
        assert_eq!(rig.run(pool.info()).unwrap().fault, None);
        match round % 2 {
            0 => rig.run(pool.export()).unwrap(),
            _ => crash(&rig, pool, &disks),
        }
        pool = import(&rig, &disks).unwrap();
        let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
        check(&d);
        rig.run(d.close());
    }
    // The damaged volume can be deleted, and the pool goes on.
    rig.run(pool.destroy_volume(volume.uuid())).unwrap();
    (0..4).for_each(|_| rig.run(pool.checkpoint()).unwrap());
    assert_eq!(rig.run(pool.info()).unwrap().fault, None);
    let w = open(&rig, &pool.volume(other.uuid()).unwrap());
    write(&rig, &w, 0, 77);
    assert_eq!(read(&rig, &w, 0), Some(77));
}

/// H10: without a disk there is no import for writing; for reading only, what is on the others is there, and the rest is an
/// error.
#[test]
fn h10_a_missing_disk_is_named_and_a_degraded_import_reads_what_is_there() {
    for clean in [true, false] {
        let rig = Rig::new();
        let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
        let disks = [&disks[0], &disks[1]];
        let (pool, volume) = filled(&rig, &disks);
        let members = rig.run(pool.disks()).unwrap();
        match clean {
            true => rig.run(pool.export()).unwrap(),
            false => crash(&rig, pool, &disks),
        }
        let mut readable = Vec::new();
        for left in 0..2 {
            let missing = &members[1 - left];
            let error = import(&rig, &[disks[left]]).map(|_| ()).unwrap_err();
            assert!(matches!(&error, LvsError::DiskMissing { members: 2, .. }), "{error}");
            let text = error.to_string();
            for part in [format!("disk {}", missing.index), missing.uuid.to_string(), missing.name.clone()] {
                assert!(text.contains(&part), "{text}");
            }
            let spec = ImportPool { degraded: true, ..ImportPool::default() };
            let pool = rig.run(Pool::import(rig.home(), powered(&[disks[left]]), spec)).unwrap();
            let info = rig.run(pool.info()).unwrap();
            assert!(info.read_only.is_some_and(|why| why.contains(&format!("disk {}", missing.index))));
            let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
            let there: Vec<Option<u64>> = (0..BLOCKS).map(|block| read(&rig, &d, block * 2)).collect();
            for (block, found) in (1..).zip(&there) {
                assert!(found.is_none_or(|found| found == block), "block {block}: {found:?}");
            }
            let found = there.iter().enumerate().filter(|(_, found)| found.is_some());
            readable.extend(found.map(|(block, _)| block));
            assert!(!try_write(&rig, &d, 0, 5));
            rig.run(d.flush()).unwrap();
            rig.run(d.close());
            let spec = CreateVolume {
                name: "x".to_owned(),
                uuid: None,
                size_bytes: MIB,
                thin: true,
                entity_id: None,
            };
            assert!(matches!(rig.run(pool.create_volume(spec)), Err(LvsError::ReadOnly { .. })));
            rig.run(pool.export()).unwrap();
        }
        // A block is read where its data and the leaf that leads there are.
        let count = readable.len();
        assert!(count > 100, "{count} of {BLOCKS}");
        readable.sort_unstable();
        readable.dedup();
        assert_eq!(readable.len(), count, "read without either disk");
        // Nothing was written: with both disks everything is there.
        assert_filled(&rig, &import(&rig, &disks).unwrap(), &volume);
    }
}

#[test]
fn a_stale_disk_and_a_foreign_disk_are_refused_in_words() {
    let rig = Rig::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| rig.disk(name, 4096, 40, true, 1));
    let (pool, volume) = filled(&rig, &[&a, &b]);
    rig.run(pool.export()).unwrap();
    // An older copy of a disk.
    let old = rig.disk("old", 4096, 40, true, 9);
    copy(&rig, &b, &old);
    let pool = import(&rig, &[&a, &b]).unwrap();
    (0..3).for_each(|_| rig.run(pool.checkpoint()).unwrap());
    rig.run(pool.export()).unwrap();
    let refused = |disks: &[&SimDisk]| import(&rig, disks).map(|_| ()).unwrap_err().to_string();
    assert!(refused(&[&a, &old]).contains("older copy"), "{}", refused(&[&a, &old]));
    let twice = rig.disk("twice", 4096, 40, true, 9);
    copy(&rig, &b, &twice);
    assert!(refused(&[&a, &b, &twice]).contains("twice is not a disk of pool tpool (it is a copy"));
    // One of another pool, one of none, and one that was removed.
    let other = create(&rig, &[&c]);
    rig.run(other.export()).unwrap();
    assert!(refused(&[&a, &b, &c]).contains("c holds pool tpool"), "{}", refused(&[&a, &b, &c]));
    let empty = rig.disk("empty", 4096, 40, true, 9);
    assert!(refused(&[&a, &b, &empty]).contains("no pool on empty"));
    let pool = import(&rig, &[&a, &b]).unwrap();
    let before = rig.disk("before", 4096, 40, true, 9);
    rig.run(pool.remove_disk("b".to_owned())).unwrap();
    copy(&rig, &twice, &before);
    rig.run(pool.export()).unwrap();
    assert!(refused(&[&a, &before]).contains("it was removed"), "{}", refused(&[&a, &before]));
    assert!(refused(&[&a, &b]).contains("no pool on b"), "{}", refused(&[&a, &b]));
    assert_filled(&rig, &import(&rig, &[&a]).unwrap(), &volume);
}

/// Everything on a disk as it is.
fn copy(rig: &Rig, from: &SimDisk, to: &SimDisk) {
    let d = rig.run(Descriptor::open(on(to))).unwrap();
    for block in 0..40 * 256 {
        let bytes = from.block(Lba(block));
        if bytes.iter().any(|&b| b != 0) {
            let mut buf = rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
            buf[..BLOCK as usize].copy_from_slice(&bytes);
            rig.run(d.write_at(block * BLOCK, BLOCK as u32, buf)).0.unwrap();
        }
    }
    rig.run(d.flush()).unwrap();
    rig.run(d.close());
}

#[test]
fn disks_are_added_and_removed_while_volumes_are_in_use() {
    let rig = Rig::new();
    let [a, b, c] = [("a", 1), ("b", 2), ("c", 3)].map(|(name, seed)| rig.disk(name, 4096, 40, true, seed));
    let (pool, volume) = filled(&rig, &[&a]);
    let before = rig.run(pool.info()).unwrap();
    rig.run(pool.add_disk(on(&b), false)).unwrap();
    let third = on(&c);
    rig.run(pool.add_disk(third.clone(), false)).unwrap();
    let after = rig.run(pool.info()).unwrap();
    assert!(after.capacity_bytes > 2 * before.capacity_bytes);
    assert_eq!(after.disks, ["a", "b", "c"]);
    let error = rig.run(pool.add_disk(third, false)).unwrap_err();
    assert!(matches!(error, LvsError::DiskOfPool { .. }), "{error}");
    // Writes go on while two of the three leave.
    let d = open(&rig, &volume);
    let mut rng = Rng::new(3);
    let mut holds: Vec<u64> = (0..BLOCKS * 2).map(|b| if b % 2 == 0 { b / 2 + 1 } else { 0 }).collect();
    for (disk, left) in [("a", ["b", "c"].as_slice()), ("b", &["c"])] {
        let mut removal = Box::pin(pool.remove_disk(disk.to_owned()));
        let mut stamp = 10_000;
        loop {
            if let Some(removed) = rig.run_for(3, removal.as_mut()) {
                removed.unwrap();
                break;
            }
            let block = rng.below(BLOCKS * 2);
            stamp += 1;
            write(&rig, &d, block, stamp);
            holds[block as usize] = stamp;
            let block = rng.below(BLOCKS * 2);
            assert_eq!(read(&rig, &d, block), Some(holds[block as usize]));
        }
        assert_eq!(rig.run(pool.info()).unwrap().disks, left);
        assert!(stamp > 10_010, "nothing was written meanwhile");
    }
    assert!(matches!(rig.run(pool.remove_disk("c".to_owned())), Err(LvsError::DiskStays { .. })));
    assert!(matches!(rig.run(pool.remove_disk("b".to_owned())), Err(LvsError::NoSuchDisk { .. })));
    (0..BLOCKS * 2).for_each(|block| assert_eq!(read(&rig, &d, block), Some(holds[block as usize])));
    rig.run(d.close());
    rig.run(pool.export()).unwrap();
    assert_eq!(findings(&rig, &[&c]), Vec::<String>::new());
    let pool = import(&rig, &[&c]).unwrap();
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    (0..BLOCKS * 2).for_each(|block| assert_eq!(read(&rig, &d, block), Some(holds[block as usize])));
    // A disk that was removed can come back.
    rig.run(pool.add_disk(on(&a), false)).unwrap();
    let disks = rig.run(pool.disks()).unwrap();
    assert_eq!(disks.iter().map(|d| d.index).collect::<Vec<_>>(), [2, 3]);
}

/// Runs `operation` on a filled pool on `disks`, and cuts the power at the `n`th write after it began. False when it ended before.
fn cut_at_write<'a, F: Future<Output = Result<(), LvsError>> + 'a>(
    rig: &Rig,
    disks: &[&SimDisk],
    pool: &Pool,
    n: u64,
    operation: F,
) -> bool {
    let writes = || disks.iter().map(|d| d.stats().writes).sum::<u64>();
    let before = writes();
    let mut operation = Box::pin(operation);
    let mut ended = false;
    while !ended && writes() < before + n {
        ended =
            rig.run_for(1, operation.as_mut()).inspect(|done| assert!(done.is_ok(), "{done:?}")).is_some();
    }
    disks.iter().for_each(|d| d.cut_power());
    drop(operation);
    let _ = rig.run(pool.export());
    !ended
}

/// Every write of an addition: before it counts the pool is as it was, from then on the disk belongs to it.
#[test]
fn an_addition_is_safe_at_every_write() {
    let (mut without, mut with) = (0, 0);
    for n in 1.. {
        let rig = Rig::new();
        let (a, b) = (rig.disk("a", 4096, 40, true, n), rig.disk("b", 4096, 40, true, n + 1));
        let (pool, volume) = filled(&rig, &[&a]);
        let cut = cut_at_write(&rig, &[&a, &b], &pool, n, pool.add_disk(on(&b), false));
        match import(&rig, &[&a]) {
            Ok(pool) => {
                without += 1;
                assert_filled(&rig, &pool, &volume);
                rig.run(pool.export()).unwrap();
                let both = import(&rig, &[&a, &b]).map(|_| ()).unwrap_err();
                assert!(matches!(both, LvsError::StaleDisk { .. } | LvsError::NoPool { .. }), "{both}");
                let pool = import(&rig, &[&a]).unwrap();
                // Again, without force: what was left of it is the pool's own.
                rig.run(pool.add_disk(on(&b), false)).unwrap();
                rig.run(pool.export()).unwrap();
            }
            Err(error) => {
                with += 1;
                assert!(matches!(error, LvsError::DiskMissing { missing: _, members: 2, .. }), "{error}");
            }
        }
        assert_eq!(findings(&rig, &[&a, &b]), Vec::<String>::new(), "write {n}");
        let pool = import(&rig, &[&a, &b]).unwrap();
        assert_filled(&rig, &pool, &volume);
        assert_eq!(rig.run(pool.disks()).unwrap().len(), 2);
        if !cut {
            break;
        }
    }
    assert!(without > 5 && with > 0, "{without} {with}");
}

/// Every write of a removal, or as many as there is time for: it goes on after the next import.
#[test]
fn a_removal_is_safe_at_every_write() {
    let step = std::env::var("KEELSON_LVS_STEP").ok().and_then(|s| s.parse().ok()).unwrap_or(9);
    ["a", "b"].into_iter().for_each(|leaving| cut_removals(leaving, step));
}

fn cut_removals(leaving: &str, step: usize) {
    let (mut again, mut done) = (0, 0);
    for n in (1..).step_by(step) {
        let rig = Rig::new();
        let (a, b) = (rig.disk("a", 4096, 40, true, n), rig.disk("b", 4096, 40, true, n + 1));
        let (pool, volume) = filled(&rig, &[&a, &b]);
        let (gone, stays) = if leaving == "a" { (&a, &b) } else { (&b, &a) };
        let cut = cut_at_write(&rig, &[&a, &b], &pool, n, pool.remove_disk(leaving.to_owned()));
        match import(&rig, &[&a, &b]) {
            Ok(pool) => {
                again += 1;
                assert_filled(&rig, &pool, &volume);
                rig.run(pool.export()).unwrap();
                assert_eq!(findings(&rig, &[&a, &b]), Vec::<String>::new(), "write {n}");
                let pool = import(&rig, &[&a, &b]).unwrap();
                rig.run(pool.remove_disk(leaving.to_owned())).unwrap();
                rig.run(pool.export()).unwrap();
            }
            Err(error) => {
                done += 1;
                let known = matches!(error, LvsError::StaleDisk { .. } | LvsError::NoPool { .. });
                // Its superblock area was being erased.
                assert!(known || matches!(error, LvsError::Damaged { .. }), "{error}");
            }
        }
        assert_eq!(findings(&rig, &[stays]), Vec::<String>::new(), "write {n}");
        let pool = import(&rig, &[stays]).unwrap();
        assert_filled(&rig, &pool, &volume);
        // What left is as good as new.
        rig.run(pool.add_disk(on(gone), !known_empty(gone))).unwrap();
        if !cut {
            break;
        }
    }
    assert!(again > 1 && done > 0, "{again} {done}");
}

/// Both labels are gone.
fn known_empty(disk: &SimDisk) -> bool {
    [0, 8].iter().all(|&b| disk.block(Lba(b)).iter().all(|&byte| byte == 0))
}

/// A disk that cannot read a range: exactly its blocks are errors, and it leaves once nothing needs them.
#[test]
fn a_disk_with_bad_blocks_is_emptied_when_nothing_needs_them_any_more() {
    let rig = Rig::new();
    let (a, b) = (rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2));
    let (pool, volume) = filled(&rig, &[&a, &b]);
    rig.run(pool.export()).unwrap();
    // Where blocks 100 to 119 of the volume are, by their stamps.
    let stamped = |disk: &SimDisk, stamp: u64| {
        blocks_that(disk, 40, |block| block.chunks_exact(8).all(|c| c == stamp.to_le_bytes())).pop()
    };
    let disk = if stamped(&a, 101).is_some() { &a } else { &b };
    let name = if stamped(&a, 101).is_some() { "a" } else { "b" };
    let places: Vec<Lba> = (101..121).map(|stamp| stamped(disk, stamp).unwrap()).collect();
    let pool = import(&rig, &[&a, &b]).unwrap();
    places.iter().for_each(|&lba| disk.damage(lba));
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    for block in 0..BLOCKS {
        let want = if (100..120).contains(&block) { None } else { Some(block + 1) };
        assert_eq!(read(&rig, &d, block * 2), want, "block {block}");
    }
    let errors = rig.run(pool.info()).unwrap().errors;
    assert_eq!((errors.reads, errors.checksums, errors.map_pages), (20, 0, 0));
    let stays = rig.run(pool.remove_disk(name.to_owned())).unwrap_err();
    assert!(matches!(&stays, LvsError::DiskStays { why, .. } if why.contains("20 blocks")), "{stays}");
    // What could be moved was, and the pool goes on.
    assert_eq!(rig.run(pool.info()).unwrap().fault, None);
    let left = rig.run(pool.disks()).unwrap().into_iter().find(|disk| disk.name == name).unwrap();
    assert_eq!((left.state, left.live_bytes), (DiskState::Evacuating, 20 * BLOCK));
    (100..120).for_each(|block| write(&rig, &d, block * 2, block + 1));
    rig.run(pool.remove_disk(name.to_owned())).unwrap();
    rig.run(d.close());
    assert_filled(&rig, &pool, &volume);
    rig.run(pool.export()).unwrap();
    let other = if name == "a" { &b } else { &a };
    assert_eq!(findings(&rig, &[other]), Vec::<String>::new());
}

/// A disk of which only a part was there when the pool was made.
struct Part {
    of: Arc<dyn BlockDevice>,
    blocks: AtomicU64,
}

impl Part {
    fn new(disk: &SimDisk, blocks: u64) -> Arc<Self> {
        Arc::new(Self { of: on(disk), blocks: AtomicU64::new(blocks) })
    }
}

impl BlockDevice for Part {
    fn name(&self) -> &str {
        self.of.name()
    }

    fn uuid(&self) -> uuid::Uuid {
        self.of.uuid()
    }

    fn driver(&self) -> &'static str {
        self.of.driver()
    }

    fn geometry(&self) -> Geometry {
        self.of.geometry()
    }

    fn size(&self) -> BlockCount {
        BlockCount(self.blocks.load(Ordering::Relaxed))
    }

    fn capabilities(&self) -> Capabilities {
        self.of.capabilities()
    }

    fn incarnation(&self) -> Option<u128> {
        self.of.incarnation()
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.of.subscribe(sink)
    }

    fn remove(&self) {
        self.of.remove();
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        self.of.open_channel()
    }
}

/// Every write of a growth: the pool has one size or the other, and everything that was in it.
#[test]
fn a_growth_is_safe_at_every_write() {
    let (mut smaller, mut larger) = (0, 0);
    for n in 1.. {
        let rig = Rig::new();
        let disk = rig.disk("a", 4096, 40, true, n);
        let part = Part::new(&disk, 28 * 256);
        let spec = CreatePool { name: "tpool".to_owned(), uuid: None, force: false };
        let pool = rig.run(Pool::create(rig.home(), vec![part.clone()], spec)).unwrap();
        let volume = fill(&rig, &pool);
        let before = rig.run(pool.info()).unwrap().capacity_bytes;
        let d = open(&rig, &volume);
        (0..50).for_each(|block| write(&rig, &d, block * 2, block + 1));
        rig.run(d.flush()).unwrap();
        rig.run(d.close());
        part.blocks.store(40 * 256, Ordering::Relaxed);
        let cut = cut_at_write(&rig, &[&disk], &pool, n, async { pool.grow().await.map(|_| ()) });
        assert_eq!(findings(&rig, &[&disk]), Vec::<String>::new(), "write {n}");
        let pool = import(&rig, &[&disk]).unwrap();
        match rig.run(pool.info()).unwrap().capacity_bytes > before {
            true => larger += 1,
            false => smaller += 1,
        }
        assert_filled(&rig, &pool, &volume);
        rig.run(pool.grow()).unwrap();
        assert!(rig.run(pool.info()).unwrap().capacity_bytes > before);
        assert_filled(&rig, &pool, &volume);
        if !cut {
            break;
        }
    }
    assert!(smaller > 2 && larger > 0, "{smaller} {larger}");
}

/// H10: the superblocks of one disk are enough, when those of the other cannot be read, or are wrong.
#[test]
fn h10_the_anchors_of_one_disk_are_enough() {
    for damaged in 0..2 {
        for flip in [true, false] {
            let rig = Rig::new();
            let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
            let disks = [&disks[0], &disks[1]];
            let (pool, volume) = filled(&rig, &disks);
            crash(&rig, pool, &disks);
            for block in 16..144 {
                match flip {
                    true if disks[damaged].block(Lba(block)).iter().any(|&b| b != 0) => {
                        disks[damaged].flip_bit(Lba(block), 700);
                    }
                    true => {}
                    false => disks[damaged].damage(Lba(block)),
                }
            }
            let pool = import(&rig, &disks).unwrap();
            assert_filled(&rig, &pool, &volume);
            rig.run(pool.export()).unwrap();
            // Blocks of a slot that the anchor does not fill stay as they are.
            let found = findings(&rig, &disks);
            let disk = ["a", "b"][damaged];
            assert!(found.iter().all(|f| f.contains(&format!("newest anchor of {disk}"))), "{found:?}");
        }
    }
}

/// When no copy of the root can be read, everything that is written goes aside; when that is half full the volume takes no
/// more, and others go on.
#[test]
fn a_volume_without_a_readable_map_is_write_protected_before_there_is_too_much() {
    let rig = Rig::new();
    let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
    let disks = [&disks[0], &disks[1]];
    let (pool, volume) = filled(&rig, &disks);
    let other = thin(&rig, &pool, "w", 8 * MIB);
    crash(&rig, pool, &disks);
    for disk in disks {
        blocks_that(disk, 40, |block| is_map_page(block, true)).iter().for_each(|&b| disk.damage(b));
    }
    let pool = import(&rig, &disks).unwrap();
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    let w = open(&rig, &pool.volume(other.uuid()).unwrap());
    assert_eq!(read(&rig, &d, 0), None);
    write(&rig, &d, 0, 77);
    assert_eq!(read(&rig, &d, 0), Some(77));
    let unmap = |first: u64| {
        let range = aio::facade::ByteRange { offset_bytes: first * BLOCK, len_bytes: 6 * BLOCK };
        rig.run(d.unmap(&[range])).is_ok()
    };
    let mut taken = 0;
    for n in 0..200 {
        if !unmap(10 + n * 8) {
            break;
        }
        taken += 1;
        if n % 20 == 0 {
            rig.run(pool.checkpoint()).unwrap();
        }
        write(&rig, &w, n, n);
    }
    assert!((100..200).contains(&taken), "{taken}");
    assert!(!try_write(&rig, &d, 0, 78), "write-protected");
    write(&rig, &w, 5, 5);
    let check = |pool: &Pool, d: &Descriptor| {
        assert_eq!(rig.run(pool.info()).unwrap().fault, None);
        assert_eq!(read(&rig, d, 0), Some(77));
        (0..taken).for_each(|n| assert_eq!(read(&rig, d, 10 + n * 8), Some(0)));
        assert_eq!(read(&rig, d, 9), None);
    };
    check(&pool, &d);
    rig.run(d.close());
    rig.run(w.close());
    rig.run(pool.export()).unwrap();
    let pool = import(&rig, &disks).unwrap();
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    check(&pool, &d);
    // It is the volume's damage only: without it the pool is whole.
    rig.run(d.close());
    rig.run(pool.destroy_volume(volume.uuid())).unwrap();
    (0..3).for_each(|_| rig.run(pool.checkpoint()).unwrap());
    assert_eq!(rig.run(pool.info()).unwrap().fault, None);
}

/// Imports what is left of a pool after a cut: a disk that is none of it any more, or not yet, is left out.
fn import_what_belongs(rig: &Rig, disks: &mut Vec<&SimDisk>) -> Pool {
    let mut left_out = Vec::new();
    loop {
        let error = match import(rig, disks) {
            Ok(pool) => return pool,
            Err(error) => error,
        };
        let (LvsError::StaleDisk { disk, .. } | LvsError::NoPool { disk }) = &error else {
            panic!("{left_out:?}, and then: {error}");
        };
        left_out.push(error.to_string());
        let at = disks.iter().position(|d| on_name(d) == *disk).unwrap();
        disks.remove(at);
    }
}

fn on_name(disk: &SimDisk) -> String {
    on(disk).name().to_owned()
}

/// Disks come and go under writes while the power is cut at any time: nothing that was flushed is lost.
fn disks_change_under_cuts(seed: u64) {
    let mut rng = Rng::new(seed);
    let rig = Rig::new();
    let all: Vec<SimDisk> =
        ["a", "b", "c"].iter().zip(seed..).map(|(name, s)| rig.disk(name, 4096, 40, true, s * 3)).collect();
    let mut disks: Vec<&SimDisk> = all[..2].iter().collect();
    let (mut pool, volume) = filled(&rig, &disks);
    // What each block may hold: the last value that was flushed, then all that were written since.
    let mut holds: Vec<Vec<u64>> =
        (0..BLOCKS * 2).map(|b| vec![if b % 2 == 0 { b / 2 + 1 } else { 0 }]).collect();
    let mut stamp = 10_000;
    for round in 0..5 {
        let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
        let spare = all.iter().find(|d| !disks.iter().any(|have| std::ptr::eq(*have, *d)));
        let adds = disks.len() == 1 || (spare.is_some() && rng.one_in(2));
        let which = rng.below(2);
        let change = async {
            match spare.filter(|_| adds) {
                Some(disk) => pool.add_disk(on(disk), true).await,
                None => pool.remove_disk(on_name_of(&pool, which).await).await,
            }
        };
        let mut change = Box::pin(change);
        let mut ended = None;
        for _ in 0..rng.below(150) {
            if ended.is_none() {
                ended = rig.run_for(1 + rng.below(8), change.as_mut());
            }
            if rng.one_in(12) {
                rig.run(d.flush()).unwrap();
                holds.iter_mut().for_each(|h| drop(h.drain(..h.len() - 1)));
                continue;
            }
            let block = rng.below(BLOCKS * 2);
            stamp += 1;
            holds[block as usize].push(stamp);
            write(&rig, &d, block, stamp);
        }
        if let Some(ended) = ended {
            ended.unwrap();
        }
        all.iter().for_each(SimDisk::cut_power);
        drop(change);
        drop(d);
        let _ = rig.run(pool.export());
        disks = all.iter().collect();
        pool = import_what_belongs(&rig, &mut disks);
        let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
        for (block, may) in holds.iter_mut().enumerate() {
            let found = read(&rig, &d, block as u64).unwrap();
            assert!(
                may.contains(&found),
                "seed {seed} round {round}: block {block} holds {found}, not {may:?}"
            );
            *may = vec![found];
        }
        rig.run(d.close());
        rig.run(pool.export()).unwrap();
        assert_eq!(findings(&rig, &disks), Vec::<String>::new(), "seed {seed} round {round}");
        pool = import(&rig, &disks).unwrap();
    }
}

/// Name of one of the pool's disks that may go.
async fn on_name_of(pool: &Pool, n: u64) -> String {
    let disks = pool.disks().await.unwrap();
    // What was begun goes on.
    if let Some(leaving) = disks.iter().find(|d| d.state == DiskState::Evacuating) {
        return leaving.name.clone();
    }
    disks[n as usize % disks.len()].name.clone()
}

#[test]
fn disks_change_under_writes_and_power_cuts_and_nothing_is_lost() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse().ok());
    let first = number("KEELSON_LVS_FIRST").unwrap_or(0);
    for seed in first..first + number("KEELSON_LVS_SEEDS").unwrap_or(4) {
        disks_change_under_cuts(seed);
    }
}
