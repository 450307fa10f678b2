//! Disks that are missing, stale, foreign, or have the only anchors.

use super::*;

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

/// Whatever is asked of a pool that was opened without a disk, and whenever power fails meanwhile: nothing is written to the others, so
/// that with it everything is there.
#[test]
fn h10_a_degraded_import_writes_nothing_whenever_it_is_cut_off() {
    for turns in (20..400).step_by(60).chain([u64::MAX]) {
        let rig = Rig::new();
        let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
        let disks = [&disks[0], &disks[1]];
        let (pool, volume) = filled(&rig, &disks);
        let d = open(&rig, &volume);
        (0..BLOCKS).step_by(7).for_each(|block| write(&rig, &d, block * 2, block + 1));
        rig.run(d.flush()).unwrap();
        rig.run(d.close());
        crash(&rig, pool, &disks);
        for left in disks {
            // A label and an anchor that want repair, too.
            (8..9).chain(80..144).for_each(|block| left.flip_bit(Lba(block), 700));
            let before = (left.stats().writes, left.stats().flushes);
            let spec = ImportPool { degraded: true, ..ImportPool::default() };
            let mut import = Box::pin(Pool::import(rig.home(), powered(&[left]), spec));
            if let Some(pool) = rig.run_for(turns.min(1_000_000), import.as_mut()) {
                let pool = pool.unwrap();
                let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
                (0..BLOCKS).for_each(|block| _ = read(&rig, &d, block * 2));
                assert!(!try_write(&rig, &d, 0, 5));
                rig.run(d.flush()).unwrap();
                rig.run(d.close());
                if rig.run(pool.start_scrub(None)).is_ok() {
                    rig.run(pool.scrub_ended()).unwrap();
                }
                assert!(rig.run(pool.checkpoint()).is_err());
                assert!(rig.run(pool.remove_disk(left_name(left, &disks))).is_err());
                assert!(rig.run(pool.destroy()).is_err());
                // What is due when nobody asks for anything: notes, merges.
                let _ = rig.run_for(300_000, std::future::pending::<()>());
                let _ = rig.run(pool.export());
            } else {
                left.cut_power();
                // It ends, well or not, now that its disk is gone.
                if let Ok(pool) = rig.run(import) {
                    let _ = rig.run(pool.export());
                }
            }
            assert_eq!((left.stats().writes, left.stats().flushes), before, "after {turns} turns");
        }
        assert_filled(&rig, &import(&rig, &disks).unwrap(), &volume);
    }
}

fn left_name(left: &SimDisk, disks: &[&SimDisk; 2]) -> String {
    if std::ptr::eq(left, disks[0]) { "a".to_owned() } else { "b".to_owned() }
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

/// H10: the newest checkpoint is damaged wherever it stands, and what was written after it says that it was there: no silent step
/// back to the one before.
#[test]
fn h10_an_older_checkpoint_is_not_taken_for_the_newest() {
    let mut refused = 0;
    for slot in 0..4 {
        let rig = Rig::new();
        let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
        let disks = [&disks[0], &disks[1]];
        let (pool, volume) = filled(&rig, &disks);
        let d = open(&rig, &volume);
        for block in 0..4 {
            write(&rig, &d, block * 2, block + 1);
        }
        rig.run(d.flush()).unwrap();
        rig.run(d.close());
        crash(&rig, pool, &disks);
        for (disk, copy) in [(0, 16), (0, 80), (1, 16), (1, 80)] {
            disks[disk].flip_bit(Lba(copy + slot * 16), 700);
        }
        match import(&rig, &disks) {
            Ok(pool) => assert_filled(&rig, &pool, &volume),
            Err(error) => {
                assert!(error.to_string().contains("its newest checkpoint was"), "slot {slot}: {error}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 1, "slots that hold the newest checkpoint");
}

/// Runs `operation` until it ends or the `n`th write since then; then power fails. What came of it, and how many writes.
fn cut_at<T>(
    rig: &Rig,
    disks: &[&SimDisk],
    n: u64,
    operation: impl Future<Output = Result<T, LvsError>>,
) -> (Option<T>, u64) {
    let writes = || disks.iter().map(|d| d.stats().writes).sum::<u64>();
    let (before, mut operation) = (writes(), Box::pin(operation));
    let mut ended = None;
    while ended.is_none() && writes() - before < n {
        ended = rig.run_for(1, operation.as_mut()).map(Result::unwrap);
    }
    let made = writes() - before;
    disks.iter().for_each(|d| d.cut_power());
    // What is under way finds that out.
    let _ = rig.run_for(2_000, std::future::pending::<()>());
    (ended, made)
}

/// A checkpoint that is cut off, and then an import. How many writes both made.
fn cut_twice(seed: u64, (first, second): (u64, u64)) -> (u64, u64) {
    let rig = Rig::new();
    let disks = [rig.disk("a", 4096, 40, true, 2 * seed), rig.disk("b", 4096, 40, true, 2 * seed + 1)];
    let disks = [&disks[0], &disks[1]];
    let pool = create(&rig, &disks);
    let volume = thin(&rig, &pool, "v", MIB);
    let d = open(&rig, &volume);
    (0..20).for_each(|block| write(&rig, &d, block, block + 1));
    rig.run(d.flush()).unwrap();
    rig.run(d.close());
    let first = cut_at(&rig, &disks, first, pool.checkpoint()).1;
    let _ = rig.run(pool.export());
    let again = Pool::import(rig.home(), powered(&disks), ImportPool::default());
    let (opened, second) = cut_at(&rig, &disks, second, again);
    if let Some(pool) = opened {
        let _ = rig.run(pool.export());
    }
    let what = format!("seed {seed}: cut at {first}, then at {second}");
    let pool = import(&rig, &disks).unwrap_or_else(|e| panic!("{what}: {e}"));
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    (0..20).for_each(|block| assert_eq!(read(&rig, &d, block), Some(block + 1), "{what}"));
    rig.run(d.close());
    (first, second)
}

/// An import that is cut off does not leave a disk two checkpoints behind: the next one would take it for an older copy of
/// itself, and without it there is none.
#[test]
fn h10_imports_that_are_cut_off_leave_no_disk_behind() {
    // Anchors are what both write last.
    let (writes, _) = cut_twice(0, (u64::MAX, u64::MAX));
    for seed in 1..6 {
        for first in writes - 4..writes {
            let (_, writes) = cut_twice(seed, (first, u64::MAX));
            for second in writes - 5..writes {
                cut_twice(seed, (first, second));
            }
        }
    }
}

/// Segments of the log in which everything is superseded already are not free before the import's own anchor is durable: the next
/// import, should this one be cut off, needs every record of them.
#[test]
fn h4_an_import_does_not_write_over_the_log_that_it_found() {
    // After so many rounds the log is in the segments that come first among the free ones.
    for rounds in 3..6 {
        for n in 1.. {
            if !cut_import_of_a_long_log(rounds, n) {
                assert!(n > 5, "{n} writes");
                break;
            }
        }
    }
}

fn cut_import_of_a_long_log(rounds: u64, n: u64) -> bool {
    const LONG: u32 = 32 * BLOCK as u32;
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 24, true, n);
    let disks = [&disk];
    let pool = create(&rig, &disks);
    let volume = thin(&rig, &pool, "v", MIB);
    let d = open(&rig, &volume);
    let mut stamp = 0;
    for round in 0..=rounds {
        for _ in 0..32 {
            stamp += 1;
            let mut buf = rig.core().pools().unwrap().alloc(LONG).unwrap();
            buf[..LONG as usize]
                .chunks_exact_mut(8)
                .for_each(|c| c.copy_from_slice(&u64::to_le_bytes(stamp)));
            rig.run(d.write_at(0, LONG, buf)).0.unwrap();
        }
        if round < rounds {
            rig.run(pool.checkpoint()).unwrap();
        }
    }
    rig.run(d.flush()).unwrap();
    rig.run(d.close());
    // The log says that it is durable: none of it may be missing.
    let _ = rig.run_for(3_000, std::future::pending::<()>());
    crash(&rig, pool, &disks);
    let again = Pool::import(rig.home(), powered(&disks), ImportPool::default());
    let opened = cut_at(&rig, &disks, n, again).0;
    if let Some(pool) = &opened {
        let _ = rig.run(pool.export());
    }
    let what = format!("after {rounds} rounds, cut at write {n}");
    let pool = import(&rig, &disks).unwrap_or_else(|e| panic!("{what}: {e}"));
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    (0..32).for_each(|block| assert_eq!(read(&rig, &d, block), Some(stamp), "{what}"));
    rig.run(d.close());
    opened.is_none()
}
