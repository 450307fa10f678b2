//! Second copies of map pages and tables, and what happens when no copy is left.

use super::*;

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

/// What is written below a map that cannot be read goes aside, and when a checkpoint finds more of it than has room there, the
/// pool takes no more writes: nobody waits for a checkpoint that can never be made.
#[test]
fn a_checkpoint_that_can_never_be_made_ends_the_writes() {
    let rig = Rig::new();
    let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
    let disks = [&disks[0], &disks[1]];
    let (pool, volume) = filled(&rig, &disks);
    crash(&rig, pool, &disks);
    for disk in disks {
        blocks_that(disk, 40, |block| is_map_page(block, true)).iter().for_each(|&b| disk.damage(b));
    }
    let pool = import(&rig, &disks).unwrap();
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    // Between two checkpoints: more ranges than there is room for.
    for n in 0..300 {
        let range = aio::facade::ByteRange { offset_bytes: n * 6 * BLOCK, len_bytes: 5 * BLOCK };
        rig.run(d.unmap(&[range])).unwrap();
    }
    rig.run(d.flush()).unwrap();
    rig.run(pool.checkpoint()).unwrap_err();
    assert!(rig.run(pool.info()).unwrap().fault.is_some());
    assert!(!try_write(&rig, &d, 0, 78));
    rig.run(pool.checkpoint()).unwrap_err();
    rig.run(d.close());
    // Nothing of it is lost: the next import has it in its log.
    crash(&rig, pool, &disks);
    let pool = import(&rig, &disks).unwrap();
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    (0..300).for_each(|n| assert_eq!(read(&rig, &d, n * 6), Some(0)));
    rig.run(d.close());
}
