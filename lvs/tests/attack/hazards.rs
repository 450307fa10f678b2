//! Hazards that the attacks by seeds meet only by chance, each met on purpose.
//!
//! Needs `unsafe` to submit I/Os whose memory changes while they are in flight: it lives longer, as
//! [`aio::IoChannel::submit`] demands.

use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::rc::Rc;

use aio::{BlockCount, BlockDevice, Io, IoStatus, Lba, RegionId, SgEntry, Token};
use lvs::Pool;

use crate::harness::crash::{durable, end, import};
use crate::harness::disk::{Disk, Image};
use crate::harness::live::{Live, word};
use crate::harness::look::look;
use crate::harness::model::{Model, Op, UNREADABLE};
use crate::harness::tape::Tape;
use crate::harness::walk::pool_spec;
use crate::review::{again, pool, write};
use crate::rig::Rig;

fn incarnation(pool: &Pool, volume: uuid::Uuid) -> u128 {
    pool.volume(volume).unwrap().incarnation().expect("a volume says which incarnation it is of")
}

/// H1: what was acknowledged and not flushed may be gone after every import that follows no clean export. Each of them, and none
/// else, has an incarnation that was never there before, also when imports are cut off.
#[test]
fn h1_an_import_has_a_new_incarnation_unless_a_clean_export_came_before() {
    let (mut disk, mut live, volume, _) = pool(4096, 24, Ok(64));
    let mut seen = BTreeSet::from([incarnation(&live.pool, volume)]);
    let reopen = |disk: &Disk, live: Live| {
        let disk = Disk::new(0, disk.image(), true, 3, None);
        let pool = import(&live.rig, std::slice::from_ref(&disk)).unwrap();
        let live = live.on(pool);
        (disk, live)
    };
    for round in 0..4 {
        // A crash, with what was not flushed gone or not.
        live.good(write(volume, round, 1));
        (disk, live) = again(&disk, live);
        assert!(
            seen.insert(incarnation(&live.pool, volume)),
            "round {round}: after a crash it is an old one"
        );
        // A crash right after an import.
        (disk, live) = again(&disk, live);
        assert!(
            seen.insert(incarnation(&live.pool, volume)),
            "round {round}: nothing was written, and nobody knows"
        );
        // A clean export keeps it; what comes after the import does not.
        let before = incarnation(&live.pool, volume);
        live.close();
        live.rig.run(live.pool.export()).unwrap();
        disk.cut();
        (disk, live) = reopen(&disk, live);
        assert_eq!(incarnation(&live.pool, volume), before, "round {round}: the export was clean");
        live.good(write(volume, round, 1));
        (disk, live) = again(&disk, live);
        assert!(
            seen.insert(incarnation(&live.pool, volume)),
            "round {round}: the clean export was before that"
        );
        // An export that is cut off: clean or not, but never the old one with less than it had.
        live.good(write(volume, round + 8, 1));
        live.close();
        let export = live.pool.clone();
        let mut export = Box::pin(async move { export.export().await });
        let ended = live.rig.run_for(20 + round * 60, export.as_mut());
        disk.cut();
        let _ = ended.unwrap_or_else(|| live.rig.run(export));
        let before = live.model.borrow().clone();
        (disk, live) = reopen(&disk, live);
        let now = incarnation(&live.pool, volume);
        let kept = !seen.insert(now);
        before.check(&live.rig.run(look(&live.pool)).unwrap(), !kept).unwrap();
    }
    end(&live.rig, &[disk], &live.pool);
}

/// H12: a part of a block that is bad is not written: the rest of it would get a valid checksum.
#[test]
fn h12_a_write_of_part_of_a_bad_block_fails_and_the_block_stays_bad() {
    let (disk, live, volume, _) = pool(512, 24, Ok(64));
    let id = live.next();
    live.good(write(volume, 7, 1));
    live.good(Op::Flush { volume });
    let first = word(id, 7 * 8).to_le_bytes();
    let lba = *disk.image().blocks.iter().find(|(_, b)| b.bytes()[..8] == first).unwrap().0;
    live.good(Op::Checkpoint);
    live.close();
    end(&live.rig, std::slice::from_ref(&disk), &live.pool);
    for flips in [true, false] {
        let mut image = disk.image();
        if flips {
            image.flip(lba + 5, 77);
        }
        let disk = Disk::new(0, image, true, 4, None);
        let pool = import(&live.rig, std::slice::from_ref(&disk)).unwrap();
        if !flips {
            disk.damage(lba + 5);
        }
        let live = live.on(pool);
        let part = |first: u64| Op::Write { volume, first, count: 1, fua: false };
        assert!(live.run(part(7 * 8 + 1)).is_err(), "a part of a bad block was written");
        assert!(live.run(Op::Zeroes { volume, first: 7 * 8 + 2, count: 1 }).is_err());
        let seen = live.rig.run(look(&live.pool)).unwrap();
        assert_eq!(seen.volumes[&volume].blocks[7], [UNREADABLE; 8]);
        live.good(Op::Checkpoint);
        let seen = live.rig.run(look(&live.pool)).unwrap();
        assert_eq!(seen.volumes[&volume].blocks[7], [UNREADABLE; 8]);
        // As a whole it can be written, and then in part.
        let whole = live.next();
        live.good(write(volume, 7, 1));
        let stamp = live.next();
        live.good(part(7 * 8 + 1));
        let seen = live.rig.run(look(&live.pool)).unwrap();
        let mut expected = [whole; 8];
        expected[1] = stamp;
        assert_eq!(seen.volumes[&volume].blocks[7], expected);
        assert_eq!(live.rig.run(live.pool.info()).unwrap().fault, None);
        live.close();
        end(&live.rig, &[disk], &live.pool);
    }
}

/// H12: memory that its owner changes during the write: what is written has the checksum that is written.
#[test]
fn h12_memory_that_changes_during_a_write_gives_no_bad_block() {
    for turns in 0..12 {
        let (disk, live, volume, blocks) = pool(4096, 24, Ok(64));
        let mut memory = vec![[1u64; 512]; blocks as usize];
        let mut channel = live.rig.run(live.pool.volume(volume).unwrap().open_channel()).unwrap();
        for (i, buf) in memory.iter_mut().enumerate() {
            let sg = [SgEntry { ptr: NonNull::from(buf).cast(), len_bytes: 4096, region: RegionId::NONE }];
            let io = Io::write(Lba(i as u64), BlockCount(1), &sg);
            // SAFETY: the memory lives until the channel is gone. It changes meanwhile, which the I/O does not rule out.
            unsafe { channel.submit(&io, Token::new(i as u32, 0)) }.unwrap();
        }
        channel.kick();
        let mut done = Vec::new();
        for turn in 0.. {
            if turn == turns {
                memory.iter_mut().for_each(|buf| buf[100] = 2);
            }
            live.rig.turn();
            channel.poll(&mut done, 1000);
            if done.len() == blocks as usize {
                break;
            }
        }
        assert!(done.iter().all(|c| c.status == IoStatus::SUCCESS));
        drop(channel);
        for (i, buf) in memory.iter_mut().enumerate() {
            buf.fill(9);
            let mut channel = live.rig.run(live.pool.volume(volume).unwrap().open_channel()).unwrap();
            let sg =
                [SgEntry { ptr: NonNull::from(&mut *buf).cast(), len_bytes: 4096, region: RegionId::NONE }];
            // SAFETY: the memory lives until the channel is gone.
            unsafe { channel.submit(&Io::read(Lba(i as u64), BlockCount(1), &sg), Token::new(0, 0)) }
                .unwrap();
            channel.kick();
            let mut done = Vec::new();
            while done.is_empty() {
                live.rig.turn();
                channel.poll(&mut done, 10);
            }
            drop(channel);
            assert_eq!(done[0].status, IoStatus::SUCCESS, "block {i}, changed after {turns} turns");
            assert!(buf[100] == 1 || buf[100] == 2);
        }
        assert_eq!(live.rig.run(live.pool.info()).unwrap().errors.checksums, 0);
        end(&live.rig, &[disk], &live.pool);
    }
}

/// H14: a snapshot or a clone writes the same, and reads nothing, however large what it is made of; no count of each page has to
/// change.
#[test]
fn h14_snapshots_and_clones_cost_the_same_at_any_size() {
    let mut costs = Vec::new();
    for blocks in [8, 5000] {
        let (disk, live, volume, _) = pool(4096, 64, Ok(blocks));
        (0..blocks).step_by(32).for_each(|block| live.good(write(volume, block, 32.min(blocks - block))));
        live.good(Op::Checkpoint);
        let (disk, live) = again(&disk, live);
        live.good(Op::Flush { volume });
        let before = disk.counts();
        for _ in 0..5 {
            let snapshot = live.next_uuid();
            live.good(Op::CreateSnapshot { volume, uuid: snapshot });
            live.good(Op::CreateClone { snapshot, uuid: live.next_uuid() });
        }
        let after = disk.counts();
        costs.push((
            after.reads - before.reads,
            after.writes - before.writes,
            after.flushes - before.flushes,
        ));
        live.check();
        live.close();
        end(&live.rig, &[disk], &live.pool);
    }
    assert_eq!(costs[0], costs[1], "reads, writes, flushes");
    assert!(costs[0].0 == 0 && costs[0].1 <= 12, "{costs:?}: a record each, and a note");
}

/// H17: a snapshot is the same after its reply whatever a power cut takes of what was not flushed.
#[test]
fn h17_a_snapshot_does_not_change_after_its_reply() {
    for seed in 0..12 {
        let (rig, tape) = (Rc::new(Rig::new()), Tape::default());
        let start = Image::empty(4096, 20);
        let disk = Disk::new(0, start.clone(), true, seed, Some(tape.clone()));
        let pool = rig.run(Pool::create(rig.home(), vec![disk.device()], pool_spec())).unwrap();
        let live = Live::new(rig, pool, Model::default(), Some(tape.clone()), 1);
        let volume = live.next_uuid();
        live.good(Op::CreateVolume { uuid: volume, blocks: 64, thin: true });
        live.run_all((0..8).map(|n| write(volume, n * 8, 8)).collect()).into_iter().for_each(Result::unwrap);
        // Acknowledged and not flushed, and others on their way.
        let snapshot = uuid::Uuid::from_u128(77);
        let mut ops: Vec<Op> = (0..12).map(|n| write(volume, n * 5, 2)).collect();
        ops.insert(seed as usize, Op::CreateSnapshot { volume, uuid: snapshot });
        live.run_all(ops).into_iter().for_each(Result::unwrap);
        (0..4).for_each(|n| live.good(write(volume, n * 16, 3)));
        let at_reply = live.rig.run(look(&live.pool)).unwrap().snapshots[&snapshot].clone();
        let recording = tape.recording();
        let all = disk.image();
        live.close();
        end(&live.rig, &[disk], &live.pool);
        let least = durable(vec![start], &recording).remove(0);
        for (what, image) in [("all", all), ("nothing", least)] {
            let disk = Disk::new(0, image, true, seed, None);
            let pool = import(&live.rig, std::slice::from_ref(&disk)).unwrap();
            let found = live.rig.run(look(&pool)).unwrap();
            assert_eq!(
                found.snapshots.get(&snapshot),
                Some(&at_reply),
                "seed {seed}: {what} of what was volatile is there"
            );
            end(&live.rig, &[disk], &pool);
        }
    }
}

/// H4: a read that takes long gets what it was led to: nobody writes there before it ended.
#[test]
fn h4_what_a_slow_read_was_led_to_stays_until_it_ends() {
    let (disk, live, volume, blocks) = pool(4096, 20, Err(80));
    (0..blocks).step_by(32).for_each(|block| live.good(write(volume, block, 32.min(blocks - block))));
    let (target, id) = (blocks / 2, live.next());
    live.good(write(volume, target, 1));
    live.good(Op::Flush { volume });
    let first = word(id, target * 8).to_le_bytes();
    let stands = |disk: &Disk| disk.image().blocks.iter().any(|(_, b)| b.bytes()[..8] == first);
    let lba = *disk.image().blocks.iter().find(|(_, b)| b.bytes()[..8] == first).expect("it was written").0;
    disk.stall(Some(lba));
    let device: std::sync::Arc<dyn BlockDevice> = live.pool.volume(volume).unwrap();
    let mut slow = Box::pin(async move {
        let d = aio::Descriptor::open(device).await.unwrap();
        let buf = aio::Core::current().unwrap().pools().unwrap().alloc(4096).unwrap();
        let (result, buf) = d.read_at(target * 4096, 4096, buf).await;
        d.close().await;
        result.map(|()| buf[..8].to_vec())
    });
    assert!(live.rig.run_for(200, slow.as_mut()).is_none(), "it waits for the disk");
    // Everything is overwritten, many times; it may wait for the read, as what it needs does not become free.
    let device: std::sync::Arc<dyn BlockDevice> = live.pool.volume(volume).unwrap();
    let mut rest = Box::pin(async move {
        let d = aio::Descriptor::open(device).await.unwrap();
        let mut rng = crate::rig::Rng::new(3);
        for _ in 0..12_000 {
            let buf = aio::Core::current().unwrap().pools().unwrap().alloc(4096).unwrap();
            d.write_at(rng.below(blocks) * 4096, 4096, buf).await.0.unwrap();
        }
        d.close().await;
    });
    let _ = live.rig.run_for(150_000, rest.as_mut());
    assert!(stands(&disk), "somebody wrote where it reads");
    disk.stall(None);
    assert_eq!(live.rig.run(slow).unwrap(), first);
    live.rig.run(rest);
    assert!(!stands(&disk), "nobody came there at all: this is no test");
    assert_eq!(live.rig.run(live.pool.info()).unwrap().errors.checksums, 0);
    live.close();
    end(&live.rig, &[disk], &live.pool);
}

/// H4: the catalogue stays where it is while nothing changes it. Its segment is counted by nobody, and is in use all the same,
/// however many checkpoints write their tables elsewhere.
#[test]
fn h4_tables_that_stay_are_not_written_over_by_those_that_come() {
    let (disk, live, volume, _) = pool(4096, 20, Ok(16));
    // Each takes some blocks of a segment: all segments come again, more than once. There is no map, whose pages would count.
    (0..1500).for_each(|_| live.good(Op::Checkpoint));
    live.good(write(volume, 3, 2));
    live.good(Op::Flush { volume });
    let before = live.rig.run(look(&live.pool)).unwrap();
    let (disk, live) = again(&disk, live);
    assert_eq!(live.rig.run(look(&live.pool)).unwrap(), before);
    live.close();
    end(&live.rig, &[disk], &live.pool);
}

/// H8: a flush covers what was complete when it began. A header that states more would make an import miss what a power cut may
/// take.
#[test]
fn h8_a_flush_covers_only_what_was_complete_when_it_began() {
    for seed in 0..24 {
        let (rig, tape) = (Rc::new(Rig::new()), Tape::default());
        let start = Image::empty(4096, 20);
        let disk = Disk::new(0, start.clone(), true, seed, Some(tape.clone()));
        let pool = rig.run(Pool::create(rig.home(), vec![disk.device()], pool_spec())).unwrap();
        let live = Live::new(rig, pool, Model::default(), Some(tape.clone()), 1);
        let volume = live.next_uuid();
        live.good(Op::CreateVolume { uuid: volume, blocks: 64, thin: true });
        // Writes on their way when the flush begins, some of which are done before it is.
        live.abandon((0..6).map(|n| write(volume, n * 8, 8)).collect(), 1 + seed % 3);
        live.good(Op::Flush { volume });
        live.good(Op::Write { volume, first: 63 * 8, count: 8, fua: true });
        let image = durable(vec![start], &tape.recording()).remove(0);
        let model = live.model.borrow().clone();
        live.close();
        end(&live.rig, &[disk], &live.pool);
        let disk = Disk::new(0, image, true, seed, None);
        let pool =
            import(&live.rig, std::slice::from_ref(&disk)).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        model.check(&live.rig.run(look(&pool)).unwrap(), true).unwrap();
        end(&live.rig, &[disk], &pool);
    }
}

/// H9: writes of parts of one block that are in flight together read the rest of it one after the other: none takes back
/// what another one wrote.
#[test]
fn h9_parts_of_a_block_that_are_written_together_are_all_there() {
    let (disk, live, volume, _) = pool(512, 24, Ok(64));
    for round in 0..20 {
        let block = round % 5;
        let first = live.next();
        let parts = (0..8).map(|part| Op::Write { volume, first: block * 8 + part, count: 1, fua: false });
        live.run_all(parts.collect()).into_iter().for_each(Result::unwrap);
        let seen = live.rig.run(look(&live.pool)).unwrap();
        let expected: Vec<u64> = (first..first + 8).collect();
        assert_eq!(seen.volumes[&volume].blocks[block as usize].to_vec(), expected, "round {round}");
    }
    live.close();
    end(&live.rig, &[disk], &live.pool);
}

/// H8, a bug: a flush beside one that a checkpoint had begun of the same disk was done before the disk had answered.
#[test]
fn h8_a_flush_beside_that_of_a_checkpoint_waits_for_it() {
    let mut beside = 0;
    for turns in (0..320).step_by(4) {
        let (rig, tape) = (Rc::new(Rig::new()), Tape::default());
        let start = Image::empty(4096, 20);
        let disk = Disk::new(0, start.clone(), true, 5, Some(tape.clone()));
        let pool = rig.run(Pool::create(rig.home(), vec![disk.device()], pool_spec())).unwrap();
        let live = Live::new(rig, pool, Model::default(), Some(tape.clone()), 1);
        let volume = live.next_uuid();
        live.good(Op::CreateVolume { uuid: volume, blocks: 64, thin: true });
        live.run_all((0..8).map(|n| write(volume, n * 8, 8)).collect()).into_iter().for_each(Result::unwrap);
        let pool = live.pool.clone();
        let mut checkpoint = Box::pin(async move { drop(pool.checkpoint().await) });
        let ended = live.rig.run_for(turns, checkpoint.as_mut()).is_some();
        let flushes = disk.counts().flushes;
        live.good(Op::Flush { volume });
        beside += u32::from(!ended && disk.counts().flushes > flushes);
        // What a power cut leaves at least, at this moment.
        let image = durable(vec![start], &tape.recording()).remove(0);
        let model = live.model.borrow().clone();
        live.close();
        end(&live.rig, &[disk], &live.pool);
        let disk = Disk::new(0, image, true, 6, None);
        let pool = import(&live.rig, std::slice::from_ref(&disk)).unwrap();
        let found = model.check(&live.rig.run(look(&pool)).unwrap(), true);
        found.unwrap_or_else(|e| panic!("flushed {turns} turns after a checkpoint began: {e}"));
        end(&live.rig, &[disk], &pool);
        if ended {
            break;
        }
    }
    assert!(beside > 10, "{beside}: no checkpoint was under way");
}
