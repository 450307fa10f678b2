//! Several channels, several threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use aio::{BlockDevice, Capabilities, IoStatus, Opcode};

use super::data::stamp;
use super::has;
use crate::PATIENCE;
use crate::bench::{Bench, Request, World};
use crate::buf::Buf;

/// Runs `work` with a channel of `device` on `n` threads.
fn on_threads(world: &World<'_>, device: &Arc<dyn BlockDevice>, n: u64, work: impl Fn(u64, Bench) + Sync) {
    let (fixture, block_bytes) = (world.fixture, world.block_bytes);
    thread::scope(|scope| {
        for id in 0..n {
            let work = &work;
            scope.spawn(move || {
                let world = World::new(fixture, fixture.driver(), block_bytes);
                work(id, world.open(device));
            });
        }
    });
}

/// What one channel wrote, the other reads; completions come where the I/O was submitted.
pub(super) fn two_channels(world: &World<'_>) -> bool {
    let device = world.device();
    let (mut a, mut b) = (world.open(&device), world.open(&device));
    let len = world.block_bytes as usize;
    for round in 0..50u64 {
        let mut block = vec![0; len];
        stamp(&mut block, round % 8, round);
        a.write(round % 8, &block);
        if !world.options.retains_data {
            block.fill(0);
        }
        assert!(b.read(round % 8, 1) == block);
        core::mem::swap(&mut a, &mut b);
    }
    // Equal tokens on both channels: each gets its own.
    let request = |lba| Request::new(Opcode::Read, lba, 1).data(Buf::new(len), &[]);
    for lba in 0..32 {
        a.start_soon(request(lba));
        b.start_soon(request(lba));
    }
    b.settle();
    a.settle();
    true
}

/// Threads work on blocks of their own at the same time; nothing gets mixed up.
pub(super) fn own_blocks(world: &World<'_>) -> bool {
    if world.options.one_thread {
        return false;
    }
    let device = world.device();
    let retains = world.options.retains_data;
    on_threads(world, &device, 4, |id, mut bench| {
        let len = bench.bytes(1);
        for version in 0..40u64 {
            let blocks = || (0..8u64).map(|i| i * 4 + id);
            for lba in blocks() {
                let mut block = Buf::new(len);
                stamp(block.bytes_mut(), lba, version);
                bench.start_soon(Request::new(Opcode::Write, lba, 1).data(block, &[]));
            }
            bench.settle();
            for lba in blocks() {
                let mut expected = vec![0; len];
                if retains {
                    stamp(&mut expected, lba, version);
                }
                assert!(bench.read(lba, 1) == expected, "thread {id}, block {lba}, version {version}");
            }
        }
    });
    true
}

/// After a write completed on one thread and that was told to another, the other reads it.
pub(super) fn hand_over(world: &World<'_>) -> bool {
    if world.options.one_thread {
        return false;
    }
    if !world.options.retains_data {
        return false;
    }
    let device = world.device();
    let barrier = Barrier::new(2);
    on_threads(world, &device, 2, |id, mut bench| {
        let len = bench.bytes(1);
        for round in 0..60u64 {
            let mut block = vec![0; len];
            stamp(&mut block, 5, round);
            if round % 2 == id {
                bench.write(5, &block);
            }
            barrier.wait();
            assert!(bench.read(5, 1) == block, "thread {id} in round {round}");
            barrier.wait();
        }
    });
    true
}

/// Threads count up one number with Compare and Write; no step is lost.
pub(super) fn counters(world: &World<'_>) -> bool {
    if world.options.one_thread {
        return false;
    }
    if !has(world, Capabilities::COMPARE_AND_WRITE) {
        return false;
    }
    const STEPS: u64 = 100;
    const THREADS: u64 = 3;
    let device = world.device();
    world.open(&device).write(0, &vec![0; world.block_bytes as usize]);
    on_threads(world, &device, THREADS, |_, mut bench| {
        let mut done = 0;
        while done < STEPS {
            let old = bench.read(0, 1);
            let count = u64::from_le_bytes(old[..8].try_into().expect("eight bytes"));
            let mut new = old.clone();
            new[..8].copy_from_slice(&(count + 1).to_le_bytes());
            let request = Request::new(Opcode::CompareAndWrite, 0, 1).data(Buf::of(&old), &[]);
            match bench.run(request.second(Buf::of(&new))).status {
                status if status.is_success() => done += 1,
                status => assert_eq!(status.code(), IoStatus::COMPARE_FAILURE.code()),
            }
        }
    });
    let end = world.open(&device).read(0, 1);
    assert_eq!(u64::from_le_bytes(end[..8].try_into().expect("eight bytes")), STEPS * THREADS);
    true
}

/// A plain write that races with Compare and Write is before it (the compare fails) or after it: it is
/// never overwritten by a step that compared the block as it was before the write.
pub(super) fn against_writes(world: &World<'_>) -> bool {
    if world.options.one_thread {
        return false;
    }
    if !has(world, Capabilities::COMPARE_AND_WRITE) {
        return false;
    }
    let device = world.device();
    // Long enough that the copies really overlap.
    let blocks =
        (256 * 1024 / u64::from(world.block_bytes)).min(device.geometry().compare_write_blocks.into());
    let len = blocks as usize * world.block_bytes as usize;
    world.open(&device).write(0, &vec![0; len]);
    let barrier = SpinBarrier(AtomicU64::new(0));
    on_threads(world, &device, 2, |id, mut bench| {
        let mut before = vec![0; len];
        for round in 1..=100u64 {
            let (mut plain, mut step) = (vec![0; len], vec![0; len]);
            stamp(&mut plain, 0, round * 2);
            stamp(&mut step, 0, round * 2 + 1);
            let request = if id == 0 {
                Request::new(Opcode::Write, 0, blocks).data(Buf::of(&plain), &[])
            } else {
                let request = Request::new(Opcode::CompareAndWrite, 0, blocks).data(Buf::of(&before), &[]);
                request.second(Buf::of(&step))
            };
            barrier.wait();
            let status = bench.run(request).status;
            assert!(status.is_success() || (id == 1 && status.code() == IoStatus::COMPARE_FAILURE.code()));
            barrier.wait();
            assert!(bench.read(0, blocks) == plain, "round {round}: the plain write was lost");
            before = plain;
        }
    });
    true
}

/// Lets two threads go at the same moment, unlike one that sleeps and has to be woken.
struct SpinBarrier(AtomicU64);

impl SpinBarrier {
    fn wait(&self) {
        let arrived = self.0.fetch_add(1, Ordering::AcqRel) + 1;
        let all = arrived.next_multiple_of(2);
        let started = Instant::now();
        while self.0.load(Ordering::Acquire) < all {
            assert!(started.elapsed() < PATIENCE, "the other thread is gone");
            thread::yield_now();
        }
    }
}
