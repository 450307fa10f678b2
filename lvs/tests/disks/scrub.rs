//! The online checker: what it finds, names and repairs, and what it must not take for an error.

use std::time::Duration;

use lvs::info::{CreateSnapshot, Harm, HarmKind, ScrubReport, ScrubState};
use uuid::Uuid;

use super::*;

/// As fast as it can.
const FAST: Option<u64> = Some(1 << 40);

fn scrub(rig: &Rig, pool: &Pool) -> ScrubReport {
    let begun = rig.run(pool.start_scrub(FAST)).unwrap();
    assert_eq!(begun.state, ScrubState::Running);
    let report = rig.run(pool.scrub_ended()).unwrap();
    assert_eq!((report.state, &report.failure), (ScrubState::Finished, &None), "{report:?}");
    report
}

fn assert_sound(report: &ScrubReport) {
    assert_eq!((report.wrong_checksums, report.unreadable, report.repaired), (0, 0, 0), "{report:?}");
    assert_eq!((&report.harmed[..], &report.metadata[..]), (&[][..], &[][..]));
}

fn snapshot(rig: &Rig, pool: &Pool, volume: &Volume, name: &str) -> Uuid {
    let uuid = Uuid::new_v4();
    let spec = CreateSnapshot {
        name: name.to_owned(),
        uuid,
        txn_id: "1".to_owned(),
        entity_id: "e".to_owned(),
        created: std::time::SystemTime::UNIX_EPOCH,
    };
    rig.run(pool.create_snapshot(volume.uuid(), spec)).unwrap();
    uuid
}

/// Where the block with this stamp is; the newest of several copies is not known, so all of them.
fn stamped(disk: &SimDisk, stamp: u64) -> Vec<Lba> {
    blocks_that(disk, 40, |block| block.chunks_exact(8).all(|c| c == stamp.to_le_bytes()))
}

/// Flips a bit in every place where the stamp is found, looks, and flips it back.
fn spoilt<T>(disk: &SimDisk, stamp: u64, look: impl FnOnce() -> T) -> T {
    let places = stamped(disk, stamp);
    assert!(!places.is_empty(), "no block has the stamp {stamp}");
    places.iter().for_each(|&lba| disk.flip_bit(lba, 100));
    let seen = look();
    places.iter().for_each(|&lba| disk.flip_bit(lba, 100));
    seen
}

fn harms(report: &ScrubReport) -> Vec<(String, u64, u64, HarmKind)> {
    let mut harms: Vec<_> = report
        .harmed
        .iter()
        .map(|Harm { name, offset_bytes, len_bytes, kind, .. }| {
            (name.clone(), offset_bytes / BLOCK, len_bytes / BLOCK, *kind)
        })
        .collect();
    harms.sort_by_key(|(name, at, ..)| (name.clone(), *at));
    harms
}

#[test]
fn a_scrub_of_a_sound_pool_looks_at_everything_and_changes_nothing() {
    let rig = Rig::new();
    let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
    let disks = disks.each_ref();
    let (pool, volume) = filled(&rig, &disks);
    assert_eq!(rig.run(pool.scrub_report()).unwrap().state, ScrubState::Never);
    // Some of it is in the log only.
    let d = open(&rig, &volume);
    (0..20).for_each(|block| write(&rig, &d, block * 2 + 1, 5000 + block));
    let before = disks.map(|d| (d.stats().writes, d.digest()));
    let report = scrub(&rig, &pool);
    assert_sound(&report);
    assert_eq!((report.data_bytes, report.data_bytes_in_all), ((BLOCKS + 20) * BLOCK, (BLOCKS + 20) * BLOCK));
    assert_eq!((report.superblocks, report.tables), (8, 6), "{report:?}");
    let map = rig.run(pool.info()).unwrap().map_pages;
    assert_eq!(report.map_pages, map, "each page, and each copy of one");
    assert!(report.read_bytes >= report.data_bytes && report.started.is_some() && report.ended.is_some());
    assert_eq!(before, disks.map(|d| (d.stats().writes, d.digest())));
    assert_eq!(rig.run(pool.scrub_report()).unwrap(), report);
}

#[test]
fn a_flipped_bit_is_found_and_the_volumes_and_snapshots_that_see_it_are_named() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 40, true, 1);
    let (pool, volume) = filled(&rig, &[&disk]);
    let d = open(&rig, &volume);
    // Only a snapshot sees 11; the volume and the snapshot see 21; only the volume sees 5000.
    snapshot(&rig, &pool, &volume, "s1");
    write(&rig, &d, 20, 5000);
    let s2 = snapshot(&rig, &pool, &volume, "s2");
    // A clone sees 31, and wrote over 41.
    let spec = CreateVolume { name: "c".into(), uuid: None, size_bytes: 0, thin: true, entity_id: None };
    let clone = rig.run(pool.create_clone(s2, spec)).unwrap();
    let c = open(&rig, &clone);
    write(&rig, &c, 80, 6000);
    write(&rig, &d, 60, 7000);
    for merged in [false, true] {
        if merged {
            rig.run(pool.checkpoint()).unwrap();
        }
        assert_sound(&scrub(&rig, &pool));
        let report = spoilt(&disk, 11, || scrub(&rig, &pool));
        assert_eq!(harms(&report), [("s1".into(), 20, 1, HarmKind::Checksum)]);
        assert!(report.harmed[0].snapshot && report.unrepaired() == 1);
        // The volume wrote over it.
        let report = spoilt(&disk, 31, || scrub(&rig, &pool));
        let all = ["c", "s1", "s2"].map(|name| (name.to_owned(), 60, 1, HarmKind::Checksum));
        assert_eq!((harms(&report), report.wrong_checksums), (all.to_vec(), 1));
        let report = spoilt(&disk, 41, || scrub(&rig, &pool));
        let all = ["s1", "s2", "v"].map(|name| (name.to_owned(), 80, 1, HarmKind::Checksum));
        assert_eq!(harms(&report), all, "not the clone");
        let report = spoilt(&disk, 5000, || scrub(&rig, &pool));
        let all = ["c", "s2", "v"].map(|name| (name.to_owned(), 20, 1, HarmKind::Checksum));
        assert_eq!(harms(&report), all);
    }
    assert_sound(&scrub(&rig, &pool));
    assert_eq!(rig.run(pool.info()).unwrap().errors.checksums, 8);
}

#[test]
fn what_a_disk_does_not_read_is_named_in_pieces_until_it_is_written_anew() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 40, true, 1);
    let (pool, volume) = filled(&rig, &[&disk]);
    let d = open(&rig, &volume);
    (100..140).for_each(|block| write(&rig, &d, block, 9000 + block));
    (110..120).for_each(|block| stamped(&disk, 9000 + block).iter().for_each(|&lba| disk.damage(lba)));
    let report = scrub(&rig, &pool);
    assert_eq!(harms(&report), [("v".into(), 110, 10, HarmKind::Unreadable)]);
    assert_eq!((report.unreadable, report.wrong_checksums, report.repaired), (10, 0, 0));
    assert_eq!(rig.run(pool.info()).unwrap().errors.reads, 10);
    (110..115).for_each(|block| write(&rig, &d, block, 1));
    let report = scrub(&rig, &pool);
    assert_eq!(harms(&report), [("v".into(), 115, 5, HarmKind::Unreadable)]);
    // What is unmapped is not missed.
    let range = aio::facade::ByteRange { offset_bytes: 100 * BLOCK, len_bytes: 40 * BLOCK };
    rig.run(d.unmap(&[range])).unwrap();
    assert_sound(&scrub(&rig, &pool));
}

#[test]
fn pages_with_another_good_copy_are_written_anew() {
    let rig = Rig::new();
    for damaged in 0..2 {
        let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
        let disks = disks.each_ref();
        let (pool, volume) = filled(&rig, &disks);
        let gone = blocks_that(disks[damaged], 40, |block| is_map_page(block, true));
        assert!(!gone.is_empty());
        gone.iter().for_each(|&lba| disks[damaged].damage(lba));
        let report = scrub(&rig, &pool);
        assert!(report.unreadable > 0 && report.unrepaired() == 0, "{report:?}");
        assert_eq!((report.harmed.len(), report.metadata.len() as u64), (0, report.unreadable));
        assert_sound(&scrub(&rig, &pool));
        // The other ones are not needed any more.
        let other = blocks_that(disks[1 - damaged], 40, |block| is_map_page(block, true));
        other.iter().for_each(|&lba| disks[1 - damaged].damage(lba));
        let report = scrub(&rig, &pool);
        assert!(report.unreadable > 0 && report.unrepaired() == 0, "{report:?}");
        assert_filled(&rig, &pool, &volume);
        rig.run(pool.export()).unwrap();
        assert_eq!(findings(&rig, &disks), Vec::<String>::new());
    }
}

/// Leaves stand once: one that is in memory is written anew from there, and of one that is not its blocks are named.
#[test]
fn a_damaged_leaf_is_written_anew_while_it_is_in_memory() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 40, true, 1);
    let (pool, volume) = filled(&rig, &[&disk]);
    assert_filled(&rig, &pool, &volume);
    let live = |disk: &SimDisk| blocks_that(disk, 40, |block| is_map_page(block, false));
    live(&disk).iter().for_each(|&lba| disk.flip_bit(lba, 4000));
    let report = scrub(&rig, &pool);
    assert!(report.wrong_checksums > 3 && report.unrepaired() == 0, "{report:?}");
    assert_sound(&scrub(&rig, &pool));
    assert_filled(&rig, &pool, &volume);
    rig.run(pool.export()).unwrap();
    assert_eq!(findings(&rig, &[&disk]), Vec::<String>::new());

    // Not in memory: the last leaf, so that its end is that of the volume.
    let pool = import(&rig, &[&disk]).unwrap();
    let first = |lba: &Lba| {
        let page = disk.block(*lba);
        u64::from(page[67]) | u64::from(page[68]) << 8
    };
    let last = live(&disk).iter().map(first).max().unwrap();
    assert!(last > 100);
    live(&disk).iter().filter(|lba| first(lba) == last).for_each(|&lba| disk.damage(lba));
    let report = scrub(&rig, &pool);
    let count = 8 * MIB / BLOCK - last;
    assert_eq!(harms(&report), [("v".into(), last, count, HarmKind::Map)]);
    assert_eq!((report.unreadable, report.repaired), (1, 0), "{report:?}");
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    assert_eq!((read(&rig, &d, last - 2), read(&rig, &d, last)), (Some(last / 2), None));
}

#[test]
fn damaged_labels_anchors_and_tables_are_written_anew() {
    let rig = Rig::new();
    let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
    let disks = disks.each_ref();
    let (pool, volume) = filled(&rig, &disks);
    // Copy A of one label, copy B of the other, all anchors of one disk.
    disks[0].flip_bit(Lba(0), 700);
    disks[1].damage(Lba(8));
    (16..144).for_each(|block| disks[0].flip_bit(Lba(block), 3));
    let report = scrub(&rig, &pool);
    let told = [
        "copy A of the label of a is not what was written",
        "copy B of the label of b cannot be read",
        "copy A of the newest anchor of a is not what was written",
        "copy B of the newest anchor of a is not what was written",
    ];
    assert_eq!((&report.metadata[..], report.unrepaired()), (&told.map(str::to_owned)[..], 0));
    assert_sound(&scrub(&rig, &pool));
    // The tables on one of the disks, old ones among them.
    let tables = blocks_that(disks[1], 40, is_table);
    tables.iter().for_each(|&lba| disks[1].flip_bit(lba, 600));
    let report = scrub(&rig, &pool);
    let about = |what: &str| report.metadata.iter().filter(|line| line.contains(what)).count();
    let each = ["the catalogue", "the table of lines", "the table of segments"].map(about);
    assert_eq!((each, report.wrong_checksums, report.unrepaired()), ([1, 1, 1], 3, 0), "{report:?}");
    assert_sound(&scrub(&rig, &pool));
    assert_eq!(rig.run(pool.info()).unwrap().fault, None);
    rig.run(pool.export()).unwrap();
    assert_eq!(findings(&rig, &disks), Vec::<String>::new());
    assert_filled(&rig, &import(&rig, &disks).unwrap(), &volume);
}

/// Overwrites, trims, snapshots that come and go, checkpoints and the cleaner, and a disk that leaves, all while it runs.
#[test]
fn h4_what_changes_meanwhile_is_no_error() {
    let rig = Rig::new();
    let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
    let disks = disks.each_ref();
    let pool = create(&rig, &disks);
    let volume = thin(&rig, &pool, "v", 16 * MIB);
    let d = open(&rig, &volume);
    let mut rng = Rng::new(5);
    (0..3500).for_each(|block| write(&rig, &d, block, block + 1));
    let (mut scrubs, mut snapshots) = (0, Vec::new());
    rig.run(pool.start_scrub(FAST)).unwrap();
    for step in 0..15_000_u64 {
        write(&rig, &d, rng.below(4096), 10_000 + step);
        if step % 1500 == 0 {
            snapshots.push(snapshot(&rig, &pool, &volume, &format!("s{step}")));
        }
        if step % 1500 == 750 {
            rig.run(pool.destroy_snapshot(snapshots.remove(0))).unwrap();
        }
        if step % 100 == 0 {
            let (first, count) = (rng.below(4000), 1 + rng.below(90));
            let range = aio::facade::ByteRange {
                offset_bytes: first * BLOCK,
                len_bytes: count.min(4096 - first) * BLOCK,
            };
            rig.run(d.unmap(&[range])).unwrap();
        }
        if step % 700 == 0 {
            rig.run(pool.checkpoint()).unwrap();
        }
        if step % 16 == 0 {
            let report = rig.run(pool.scrub_report()).unwrap();
            if report.state != ScrubState::Running {
                assert_eq!(report.state, ScrubState::Finished, "{report:?}");
                assert_sound(&report);
                scrubs += 1;
                rig.run(pool.start_scrub(FAST)).unwrap();
            }
        }
    }
    let moved = rig.run(pool.info()).unwrap().written.moved_bytes;
    assert!(scrubs > 5 && moved > 2 * MIB, "{scrubs} scrubs, {moved} bytes moved");
    // A disk that goes takes its blocks along.
    (0..4096).for_each(|block| write(&rig, &d, block, 1));
    for s in snapshots {
        rig.run(pool.destroy_snapshot(s)).unwrap();
    }
    rig.run(pool.stop_scrub()).unwrap();
    rig.run(pool.add_disk(on(&rig.disk("c", 4096, 40, true, 3)), false)).unwrap();
    rig.run(pool.start_scrub(Some(16 << 20))).unwrap();
    rig.run(pool.remove_disk("a".to_owned())).unwrap();
    let report = rig.run(pool.scrub_ended()).unwrap();
    assert_eq!(report.state, ScrubState::Finished);
    assert_sound(&report);
}

#[test]
fn one_at_a_time_and_it_stops_when_it_is_told_to_and_with_the_pool() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 40, true, 1);
    let (pool, _) = filled(&rig, &[&disk]);
    assert_eq!(rig.run(pool.stop_scrub()).unwrap().state, ScrubState::Never, "nothing to stop is no error");
    // A rate at which it would take half an hour.
    rig.run(pool.start_scrub(Some(1400))).unwrap();
    let again = rig.run(pool.start_scrub(FAST)).unwrap_err();
    assert!(matches!(&again, LvsError::ScrubRuns { pool } if pool == "tpool"), "{again}");
    rig.run(rig.core().sleep(Duration::from_millis(300)));
    let began = rig.core().now();
    let stopped = rig.run(pool.stop_scrub()).unwrap();
    assert!(rig.core().now().since(began) < Duration::from_millis(100));
    assert_eq!((stopped.state, stopped.unrepaired()), (ScrubState::Stopped, 0));
    assert!(stopped.data_bytes < stopped.data_bytes_in_all && stopped.ended.is_some());
    assert_sound(&scrub(&rig, &pool));
    for destroy in [false, true] {
        rig.run(pool.checkpoint()).unwrap();
        rig.run(pool.start_scrub(Some(1400))).unwrap();
        rig.run(rig.core().sleep(Duration::from_millis(10)));
        let began = rig.core().now();
        if destroy {
            rig.run(pool.destroy()).unwrap();
            assert!(matches!(rig.run(pool.start_scrub(FAST)), Err(LvsError::Closed { .. })));
            break;
        }
        rig.run(pool.export()).unwrap();
        assert!(rig.core().now().since(began) < Duration::from_secs(1));
        rig.run(import(&rig, &[&disk]).unwrap().scrub_report())
            .map(|r| assert_eq!(r.state, ScrubState::Never))
            .unwrap();
    }
}

/// It reads no more than it may, and gives way while volumes are in use.
#[test]
fn its_rate_is_kept_and_volumes_go_first() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 40, true, 1);
    let (pool, volume) = filled(&rig, &[&disk]);
    let time = |rate| {
        rig.run(rig.core().sleep(Duration::from_millis(10)));
        let began = rig.core().now();
        rig.run(pool.start_scrub(Some(rate))).unwrap();
        while rig.run(pool.scrub_report()).unwrap().state == ScrubState::Running {
            rig.turn();
        }
        let report = rig.run(pool.scrub_report()).unwrap();
        assert_sound(&report);
        (rig.core().now().since(began), report.read_bytes)
    };
    let (alone, bytes) = time(1 << 40);
    let (slow, _) = time(2 << 20);
    let by_rate = Duration::from_nanos(bytes * 1_000_000_000 / (2 << 20));
    // What is read last needs no rest behind it.
    assert!(slow + Duration::from_millis(150) > by_rate && slow < by_rate * 2, "{slow:?} for {by_rate:?}");
    assert!(alone * 4 < slow, "{alone:?} {slow:?}");
    // The same under load.
    let d = open(&rig, &volume);
    let began = rig.core().now();
    rig.run(pool.start_scrub(FAST)).unwrap();
    let mut block = 0;
    while rig.run(pool.scrub_report()).unwrap().state == ScrubState::Running {
        block = (block + 1) % BLOCKS;
        read(&rig, &d, block);
    }
    let beside = rig.core().now().since(began);
    assert!(beside > alone * 2, "{beside:?} beside reads, {alone:?} alone");
}

/// What is on a missing disk cannot be read, and a pool that is only read is not written to.
#[test]
fn a_degraded_pool_is_scrubbed_without_a_write() {
    let rig = Rig::new();
    let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
    let disks = disks.each_ref();
    let (pool, _) = filled(&rig, &disks);
    rig.run(pool.export()).unwrap();
    disks[1].flip_bit(Lba(8), 700);
    let spec = ImportPool { degraded: true, ..ImportPool::default() };
    let before = disks[1].digest();
    let pool = rig.run(Pool::import(rig.home(), vec![on(disks[1])], spec)).unwrap();
    let report = scrub(&rig, &pool);
    assert!(report.unreadable > 0 && !report.harmed.is_empty(), "{report:?}");
    assert_eq!((report.wrong_checksums, report.repaired), (1, 0), "the label {report:?}");
    let info = rig.run(pool.info()).unwrap();
    assert_eq!((info.fault, disks[1].digest()), (None, before));
}
