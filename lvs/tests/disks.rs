//! Pools of several simulated disks: second copies, disks that fail or are missing, disks added and removed.

#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::sync::Arc;

use aio::devices::sim::SimDisk;
use aio::{BlockDevice, Descriptor, Lba};
use lvs::info::{CreatePool, CreateVolume, ImportPool};
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
    rig.run(lvs::check(rig.home(), powered(disks), true)).unwrap().findings
}

/// A pool on disks of 40 MiB with a volume whose map has interior pages; block `b` of it holds `b + 1`.
fn filled(rig: &Rig, disks: &[&SimDisk]) -> (Pool, Arc<Volume>) {
    let pool = create(rig, disks);
    let volume = thin(rig, &pool, "v", 8 * MIB);
    let d = open(rig, &volume);
    (0..BLOCKS).for_each(|block| write(rig, &d, block * 2, block + 1));
    rig.run(pool.checkpoint()).unwrap();
    rig.run(d.close());
    (pool, volume)
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
