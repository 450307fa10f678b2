//! What a review of the running store found.
//!
//! Needs `unsafe` to drop a channel with I/Os in flight: their memory lives longer, as [`aio::IoChannel::submit`] demands.

use std::ptr::NonNull;
use std::rc::Rc;

use aio::{BlockCount, BlockDevice, Descriptor, Io, Lba, RegionId, SgEntry, Token};
use lvs::Pool;

use crate::harness::crash::{end, import};
use crate::harness::disk::{Disk, Fault, Image};
use crate::harness::live::{Live, word};
use crate::harness::look::look;
use crate::harness::model::{Model, Op};
use crate::harness::walk::pool_spec;
use crate::rig::{Rig, Rng};

/// A pool with one volume of so many blocks, or of so much of its capacity in percent.
pub(crate) fn pool(block_bytes: u32, mib: u64, blocks: Result<u64, u64>) -> (Disk, Live, uuid::Uuid, u64) {
    let rig = Rc::new(Rig::new());
    let disk = Disk::new(0, Image::empty(block_bytes, mib), true, 1, None);
    let pool = rig.run(Pool::create(rig.home(), vec![disk.device()], pool_spec())).unwrap();
    let capacity = rig.run(pool.info()).unwrap().capacity_bytes / 4096;
    let blocks = blocks.unwrap_or_else(|percent| capacity * percent / 100);
    let live = Live::new(rig, pool, Model::default(), None, 1);
    let volume = live.next_uuid();
    live.good(Op::CreateVolume { uuid: volume, blocks, thin: true });
    (disk, live, volume, blocks)
}

pub(crate) fn write(volume: uuid::Uuid, block: u64, count: u64) -> Op {
    Op::Write { volume, first: block * 8, count: count * 8, fua: false }
}

/// The same after a crash: the rig and the new pool of the old model.
pub(crate) fn again(disk: &Disk, live: Live) -> (Disk, Live) {
    live.close();
    end(&live.rig, std::slice::from_ref(disk), &live.pool);
    let disk = Disk::new(0, disk.image(), true, 2, None);
    let pool = import(&live.rig, std::slice::from_ref(&disk)).unwrap();
    let (model, next) = (live.model.borrow().clone(), live.next());
    (disk, Live::new(live.rig.clone(), pool, model, None, next))
}

/// A checkpoint that failed: the next one left out what was frozen for it, and freed what it stood in.
#[test]
fn a_checkpoint_that_fails_costs_nothing() {
    for read in 0..6 {
        let (disk, live, volume, blocks) = pool(4096, 24, Ok(1900));
        (0..blocks).step_by(25).for_each(|block| live.good(write(volume, block, 25.min(blocks - block))));
        live.good(Op::Flush { volume });
        live.good(Op::Checkpoint);
        let (disk, live) = again(&disk, live);
        (0..blocks).step_by(150).for_each(|block| live.good(write(volume, block, 2)));
        live.good(Op::Flush { volume });
        disk.strike(Fault::FailRead(read));
        let failed = live.run(Op::Checkpoint).is_err();
        let _ = live.run(Op::Checkpoint);
        let faulted = live.rig.run(live.pool.info()).unwrap().fault.is_some();
        assert!(!failed || faulted, "read {read}: goes on after a checkpoint that failed");
        let before = live.model.borrow().clone();
        let (_disk, live) = again(&disk, live);
        before.check(&live.rig.run(look(&live.pool)).unwrap(), true).unwrap();
    }
}

/// A channel that was dropped while it waited for a map page waited for ever: only its own core could have read the page.
#[test]
fn a_channel_that_goes_while_it_waits_for_the_map_is_gone() {
    for turns in (0..24).step_by(4) {
        let (disk, live, volume, blocks) = pool(4096, 24, Ok(1900));
        (0..blocks).step_by(25).for_each(|block| live.good(write(volume, block, 25.min(blocks - block))));
        live.good(Op::Checkpoint);
        let (disk, live) = again(&disk, live);
        let rig = live.rig.clone();
        let mut channel = rig.run(live.pool.volume(volume).unwrap().open_channel()).unwrap();
        let mut memory = vec![[0u64; 512]; 8];
        for (i, buf) in memory.iter_mut().enumerate() {
            let sg = [SgEntry { ptr: NonNull::from(buf).cast(), len_bytes: 4096, region: RegionId::NONE }];
            let io = Io::read(Lba(i as u64 * 230), BlockCount(1), &sg);
            // SAFETY: the memory lives until the channel is gone.
            unsafe { channel.submit(&io, Token::new(i as u32, 0)) }.unwrap();
        }
        channel.kick();
        (0..turns).for_each(|_| rig.turn());
        drop(channel);
        // The others go on, and so does everything else.
        live.check();
        live.close();
        rig.run_for(2_000_000, live.pool.export()).expect("the export hangs").unwrap();
        disk.cut();
    }
}

/// An export held the gate of checkpoints while it waited for background work that wanted to pass it.
#[test]
fn an_export_of_a_busy_pool_ends() {
    for round in 0..6u64 {
        let (disk, live, volume, blocks) = pool(4096, 20, Err(85));
        let mut rng = Rng::new(round);
        (0..blocks).step_by(32).for_each(|block| live.good(write(volume, block, 32.min(blocks - block))));
        for _ in 0..20 {
            live.run_all((0..8).map(|_| write(volume, rng.below(blocks), 1)).collect());
        }
        // Some in flight, so that the cleaner has something to wait for.
        live.abandon((0..60).map(|_| write(volume, rng.below(blocks), 1)).collect(), 2 + round * 15);
        let before = live.model.borrow().clone();
        live.close();
        live.rig.run_for(3_000_000, live.pool.export()).expect("the export hangs").unwrap();
        disk.cut();
        let disk = Disk::new(0, disk.image(), true, 2, None);
        let pool = import(&live.rig, std::slice::from_ref(&disk)).unwrap();
        before.check(&live.rig.run(look(&pool)).unwrap(), false).unwrap();
        end(&live.rig, &[disk], &pool);
    }
}

/// H4: a write of part of a block reads the rest of it. Nothing kept the cleaner from moving the block meanwhile, and others from
/// writing where it had been.
#[test]
fn h4_what_a_partial_write_reads_stays_where_it_is() {
    let (disk, live, volume, blocks) = pool(512, 20, Err(80));
    (0..blocks).step_by(32).for_each(|block| live.good(write(volume, block, 32.min(blocks - block))));
    let (target, id) = (blocks / 2, live.next());
    live.good(write(volume, target, 1));
    live.good(Op::Flush { volume });
    let first = word(id, target * 8).to_le_bytes();
    let stands =
        |disk: &Disk| disk.image().blocks.iter().find(|(_, b)| b.bytes()[..8] == first).map(|(&lba, _)| lba);
    let lba = stands(&disk).expect("it was written");
    disk.stall(Some(lba));
    let device: std::sync::Arc<dyn BlockDevice> = live.pool.volume(volume).unwrap();
    let rig = live.rig.clone();
    let mut part = Box::pin(async move {
        let d = Descriptor::open(device).await.unwrap();
        let mut buf = aio::Core::current().unwrap().pools().unwrap().alloc(4096).unwrap();
        buf[..512].fill(7);
        let result = d.write_at(target * 4096 + 512, 512, buf).await.0;
        d.close().await;
        result
    });
    assert!(rig.run_for(200, part.as_mut()).is_none(), "it waits for the disk");
    // Everything else is overwritten many times; it may wait for the read, as what it needs does not become free.
    let device: std::sync::Arc<dyn BlockDevice> = live.pool.volume(volume).unwrap();
    let mut rest = Box::pin(async move {
        let d = Descriptor::open(device).await.unwrap();
        let mut rng = Rng::new(3);
        for _ in 0..12_000 {
            let block = rng.below(blocks);
            let buf = aio::Core::current().unwrap().pools().unwrap().alloc(4096).unwrap();
            if block != target {
                d.write_at(block * 4096, 4096, buf).await.0.unwrap();
            }
        }
        d.close().await;
    });
    let _ = rig.run_for(150_000, rest.as_mut());
    disk.stall(None);
    rig.run(part).unwrap();
    rig.run(rest);
}

/// A segment that a disk cannot read whole stopped the cleaner, and with it the pool.
#[test]
fn a_block_that_cannot_be_read_does_not_stop_the_cleaner() {
    let (disk, live, volume, blocks) = pool(4096, 20, Err(80));
    (0..blocks).step_by(32).for_each(|block| live.good(write(volume, block, 32.min(blocks - block))));
    live.good(Op::Flush { volume });
    let used: Vec<u64> = disk.image().blocks.keys().copied().filter(|&lba| lba >= 256).collect();
    let mut rng = Rng::new(9);
    (0..6).for_each(|_| disk.damage(used[rng.below(used.len() as u64) as usize]));
    live.model.borrow_mut().damaged = true;
    for _ in 0..800 {
        let ops = (0..8).map(|_| write(volume, rng.below(blocks / 8) * 8, 1)).collect();
        live.run_all(ops).into_iter().for_each(Result::unwrap);
    }
    live.check();
    assert_eq!(live.rig.run(live.pool.info()).unwrap().fault, None);
}
