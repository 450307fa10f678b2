//! The offline checker and what it repairs, on simulated disks.

#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::sync::Arc;

use aio::devices::sim::SimDisk;
use aio::{BlockDevice, Descriptor, Lba};
use lvs::info::{CheckReport, CheckWish, CreatePool, CreateVolume, ImportPool};
use lvs::{LvsError, Pool};
use rig::{Rig, Rng, on};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Blocks that are written.
const BLOCKS: u64 = 300;

fn powered(disks: &[&SimDisk]) -> Vec<Arc<dyn BlockDevice>> {
    disks.iter().map(|d| on(d)).collect()
}

/// An exported pool; block `b` of its volume holds `b + 1`.
fn filled(rig: &Rig, disks: &[&SimDisk]) -> Uuid {
    let spec = CreatePool { name: "tpool".to_owned(), uuid: None, force: false };
    let pool = rig.run(Pool::create(rig.home(), powered(disks), spec)).unwrap();
    let spec =
        CreateVolume { name: "v".to_owned(), uuid: None, size_bytes: 2 * MIB, thin: true, entity_id: None };
    let volume = rig.run(pool.create_volume(spec)).unwrap();
    let device: Arc<dyn BlockDevice> = volume.clone();
    let d = rig.run(Descriptor::open(device)).unwrap();
    for block in 0..BLOCKS {
        let mut buf = rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
        buf[..BLOCK as usize].chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&(block + 1).to_le_bytes()));
        rig.run(d.write_at(block * BLOCK, BLOCK as u32, buf)).0.unwrap();
    }
    rig.run(d.close());
    rig.run(pool.export()).unwrap();
    volume.uuid()
}

fn check(rig: &Rig, disks: &[&SimDisk]) -> CheckReport {
    rig.run(lvs::check(rig.home(), powered(disks), CheckWish::everything())).unwrap()
}

fn assert_whole(rig: &Rig, disks: &[&SimDisk], volume: Uuid) {
    let pool = rig.run(Pool::import(rig.home(), powered(disks), ImportPool::default())).unwrap();
    let device: Arc<dyn BlockDevice> = pool.volume(volume).unwrap();
    let d = rig.run(Descriptor::open(device)).unwrap();
    for block in 0..BLOCKS {
        let buf = rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
        let (result, buf) = rig.run(d.read_at(block * BLOCK, BLOCK as u32, buf));
        result.unwrap();
        assert!(buf[..BLOCK as usize].chunks_exact(8).all(|c| c == (block + 1).to_le_bytes()));
    }
    rig.run(d.close());
    rig.run(pool.export()).unwrap();
}

/// Blocks of the newest anchor, copies A and B.
fn newest_anchor(disk: &SimDisk) -> [u64; 2] {
    // The checkpoint's number is at 48, FORMAT.md section 9.4.
    let number = |slot: &u64| {
        let block = disk.block(Lba(16 + slot * 16));
        u64::from_le_bytes(block[48..56].try_into().unwrap())
    };
    let slot = (0..4).max_by_key(number).unwrap();
    [16 + slot * 16, 80 + slot * 16]
}

#[test]
fn a_clean_pool_has_no_findings_and_stays_as_it_is() {
    let rig = Rig::new();
    for block_bytes in [512, 4096] {
        let disks = [1, 2].map(|n| rig.disk(&format!("d{n}"), block_bytes, 32, true, n));
        let disks = disks.each_ref();
        filled(&rig, &disks);
        let before = disks.map(|d| (d.digest(), d.stats()));
        let wish = CheckWish::everything();
        let progress = wish.progress.clone();
        let report = rig.run(lvs::check(rig.home(), powered(&disks), wish)).unwrap();
        assert_eq!((report.findings, report.wrong, report.repairable), (vec![], 0, vec![]));
        assert_eq!((report.pool.as_str(), report.lines, report.blocks), ("tpool", 1, BLOCKS));
        assert_eq!(report.verified_bytes, BLOCKS * BLOCK);
        let of = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((of(&progress.blocks), of(&progress.blocks_in_all)), (BLOCKS, BLOCKS));
        assert_eq!((of(&progress.verified_bytes), of(&progress.pages)), (BLOCKS * BLOCK, report.pages));
        for (disk, (digest, stats)) in disks.iter().zip(before) {
            assert_eq!(disk.digest(), digest, "a byte changed");
            assert_eq!((disk.stats().writes, disk.stats().flushes), (stats.writes, stats.flushes));
        }
        // What is repaired of a clean pool: nothing.
        assert!(rig.run(lvs::repair(rig.home(), powered(&disks))).unwrap().is_empty());
        assert!(disks.iter().zip(before).all(|(d, (digest, _))| d.digest() == digest));
    }
}

/// Each damaged copy of a label and of the newest anchor, alone and several at once, on one of two disks or on both.
#[test]
fn damaged_copies_are_found_and_written_anew() {
    let (rig, mut rng) = (Rig::new(), Rng::new(3));
    for round in 0..7 {
        let disks = [1, 2].map(|n| rig.disk(&format!("d{n}"), 4096, 32, true, 10 * round + n));
        let disks = disks.each_ref();
        let volume = filled(&rig, &disks);
        let [a, b] = newest_anchor(disks[0]);
        let hit: &[(usize, u64)] = match round {
            0 => &[(0, 0)],
            1 => &[(1, 8)],
            2 => &[(0, a)],
            3 => &[(1, b)],
            4 => &[(0, 8), (1, 0), (0, b), (1, a)],
            5 => &[(0, a), (0, b)],
            // Behind the end of the anchor.
            _ => &[(0, a + 15)],
        };
        for &(disk, block) in hit {
            match round == 6 || rng.one_in(3) {
                true => disks[disk].damage(Lba(block)),
                false => disks[disk].flip_bit(Lba(block), rng.below(800)),
            }
        }
        let report = check(&rig, &disks);
        assert_eq!((report.findings.len(), report.wrong as usize), (hit.len(), hit.len()), "{report:?}");
        assert!(report.findings.iter().all(|f| f.contains("is damaged")), "{report:?}");
        assert!(!report.repairable.is_empty());
        let done = rig.run(lvs::repair(rig.home(), powered(&disks))).unwrap();
        assert_eq!(done.len(), hit.len(), "{done:?}");
        let report = check(&rig, &disks);
        assert_eq!((report.findings, report.repairable), (vec![], vec![]), "after {done:?}");
        assert_whole(&rig, &disks, volume);
    }
}

/// What cannot be derived is told and left alone.
#[test]
fn damaged_data_is_found_and_not_repaired() {
    let rig = Rig::new();
    let disk = rig.disk("d", 4096, 32, true, 5);
    filled(&rig, &[&disk]);
    let is_data = |b: &u64| disk.block(Lba(*b)).chunks_exact(8).all(|c| c == 77u64.to_le_bytes());
    let at = (256..32 * 256).find(is_data).unwrap();
    disk.flip_bit(Lba(at), 9);
    let digest = disk.digest();
    let report = check(&rig, &[&disk]);
    assert_eq!((report.wrong, report.repairable.len()), (1, 0));
    assert!(report.findings[0].starts_with("block 76 of line"), "{:?}", report.findings);
    assert!(report.findings[0].ends_with("has a wrong checksum"), "{:?}", report.findings);
    let shallow = rig.run(lvs::check(rig.home(), powered(&[&disk]), CheckWish::default())).unwrap();
    assert_eq!((shallow.wrong, shallow.verified_bytes), (0, 0), "without data nobody looks there");
    disk.damage(Lba(at));
    let report = check(&rig, &[&disk]);
    assert!(report.findings[0].ends_with("cannot be read"), "{:?}", report.findings);
    assert_eq!(report.verified_bytes, BLOCKS * BLOCK, "its neighbours were read");
    assert!(rig.run(lvs::repair(rig.home(), powered(&[&disk]))).unwrap().is_empty());
    assert_eq!(disk.digest(), digest);
}

#[test]
fn what_cannot_be_looked_at_is_an_error_and_what_cannot_be_right_a_finding() {
    let rig = Rig::new();
    let disks = [1, 2].map(|n| rig.disk(&format!("d{n}"), 4096, 32, true, n));
    let disks = disks.each_ref();
    filled(&rig, &disks);
    let look = |disks: &[&SimDisk]| rig.run(lvs::check(rig.home(), powered(disks), CheckWish::default()));
    assert!(matches!(look(&disks[..1]), Err(LvsError::DiskMissing { .. })));
    let empty = rig.disk("e", 4096, 32, true, 9);
    assert!(matches!(look(&[&empty]), Err(LvsError::NoPool { .. })));
    // Every copy of the newest anchor is gone: the log says that there was one.
    for disk in disks {
        (16..144).for_each(|block| disk.flip_bit(Lba(block), 3));
    }
    let report = look(&disks).unwrap();
    assert_eq!((report.pool.as_str(), report.wrong, report.repairable.len()), ("tpool", 1, 0));
    assert!(matches!(rig.run(lvs::repair(rig.home(), powered(&disks))), Err(LvsError::Damaged { .. })));
}

/// The power fails at any moment of a repair: the pool can be imported, and a second repair makes it whole.
#[test]
fn power_cuts_during_a_repair_lose_nothing() {
    let rig = Rig::new();
    let (mut unrepaired, mut repaired) = (0, 0);
    for cut in 0..16 {
        let disk = rig.disk("d", 4096, 32, true, 100 + cut);
        let volume = filled(&rig, &[&disk]);
        let [a, _] = newest_anchor(&disk);
        disk.flip_bit(Lba(0), 700);
        disk.flip_bit(Lba(a), 700);
        let _ = rig.run_for(150 * cut, lvs::repair(rig.home(), powered(&[&disk])));
        disk.cut_power();
        // What it was about ends with the disk.
        (0..20_000).for_each(|_| rig.turn());
        let report = check(&rig, &[&disk]);
        assert!(report.findings.iter().all(|f| f.contains("is damaged")), "{cut}: {report:?}");
        match report.findings.len() {
            0 => repaired += 1,
            _ => unrepaired += 1,
        }
        rig.run(lvs::repair(rig.home(), powered(&[&disk]))).unwrap();
        assert_eq!(check(&rig, &[&disk]).findings, Vec::<String>::new(), "{cut}");
        assert_whole(&rig, &[&disk], volume);
    }
    assert!(unrepaired > 2 && repaired > 2, "{unrepaired} before its end, {repaired} after");
}
