//! Volumes from cores other than their pool's: reactors on threads, real memory, real races.
//!
//! Needs `unsafe` to submit I/Os: each names a buffer that its owner keeps until the completion or the drop of the channel.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use aio::reactor::{CoreHandle, EngineChoice, Turn, spawn_thread};
use aio::{
    BlockCount, BlockDevice, CoreId, DeviceError, DeviceUri, Io, IoChannel, IoFlags, IoStatus, Lba, Opcode,
    Reactor, ReactorConfig, RegionId, SgEntry, Sleep, Token, check,
};
use lvs::info::{CreatePool, CreateSnapshot, CreateVolume};
use lvs::{Pool, Volume};
use uuid::Uuid;

/// How long anything may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;

fn config(id: u32) -> ReactorConfig {
    ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(id)) }
}

/// A core that this thread turns.
struct Here(Reactor);

impl Here {
    fn new(id: u32) -> Self {
        Self(Reactor::new(config(id)).unwrap())
    }

    fn turn(&mut self) {
        if self.0.turn() == Turn::Idle {
            thread::yield_now();
        }
    }

    fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let started = Instant::now();
        loop {
            let polled = self.0.enter(|| future.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            match polled {
                Poll::Ready(value) => return value,
                Poll::Pending => self.turn(),
            }
            assert!(started.elapsed() < PATIENCE, "a hang");
        }
    }

    fn open(&mut self, device: &Arc<Volume>) -> Result<Box<dyn IoChannel>, DeviceError> {
        self.run(device.open_channel())
    }
}

fn pool(here: &mut Here, home: &CoreHandle, name: &str) -> Pool {
    let disk: DeviceUri = format!("malloc:///{name}?size_mb=96&blk_size=4096").parse().unwrap();
    let disk = aio::devices::create(&disk).unwrap();
    let spec = CreatePool { name: name.to_owned(), uuid: None, force: false };
    here.run(Pool::create(home.clone(), vec![disk], spec)).unwrap()
}

fn volume(here: &mut Here, pool: &Pool, blocks: u64) -> Arc<Volume> {
    let spec = CreateVolume {
        name: format!("v{blocks}"),
        uuid: None,
        size_bytes: blocks * BLOCK as u64,
        thin: true,
        entity_id: None,
    };
    here.run(pool.create_volume(spec)).unwrap()
}

/// A small generator of numbers.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// An I/O in flight with its memory.
struct InFlight {
    /// Never touched through this while in flight.
    memory: Box<[u8]>,
    /// Memory of the device's; `memory` is only read after it.
    list: Vec<SgEntry>,
    lba: u64,
    /// A read expects one of the versions from this on.
    least: Option<u64>,
    /// A write's version.
    version: Option<u64>,
}

impl InFlight {
    /// One block in up to `pieces` pieces.
    fn new(mut memory: Box<[u8]>, lba: u64, pieces: u64) -> Self {
        let base = NonNull::new(memory.as_mut_ptr()).unwrap();
        let piece = BLOCK / pieces as usize;
        let entry = |at: u64| {
            // SAFETY: within the buffer.
            let ptr = unsafe { base.add(at as usize * piece) };
            SgEntry { ptr, len_bytes: piece as u32, region: RegionId::NONE }
        };
        Self { list: (0..pieces).map(entry).collect(), memory, lba, least: None, version: None }
    }
}

fn stamped(lba: u64, version: u64) -> Box<[u8]> {
    let mut memory = vec![0; BLOCK].into_boxed_slice();
    for (at, chunk) in memory.chunks_exact_mut(16).enumerate() {
        chunk[..8].copy_from_slice(&(lba << 32 | version).to_le_bytes());
        chunk[8..].copy_from_slice(&(at as u64).to_le_bytes());
    }
    memory
}

/// The version that all of the block is of.
fn version_of(memory: &[u8], lba: u64) -> u64 {
    if memory.iter().all(|b| *b == 0) {
        return 0;
    }
    let version = u64::from_le_bytes(memory[..8].try_into().unwrap()) & 0xffff_ffff;
    assert!(*memory == *stamped(lba, version), "block {lba} is torn or another one's");
    version
}

/// A channel with the accounts of what is in flight on it.
struct Worker {
    channel: Option<Box<dyn IoChannel>>,
    in_flight: HashMap<Token, InFlight>,
    next: u64,
    /// The newest version of each block that was written completely, and whether a write is in flight.
    blocks: Vec<(u64, bool)>,
    out: Vec<aio::Completion>,
    done: u64,
}

impl Worker {
    fn new(channel: Box<dyn IoChannel>, blocks: u64) -> Self {
        Self {
            channel: Some(channel),
            in_flight: HashMap::new(),
            next: 0,
            blocks: vec![(0, false); blocks as usize],
            out: Vec::with_capacity(256),
            done: 0,
        }
    }

    fn channel(&mut self) -> &mut dyn IoChannel {
        self.channel.as_deref_mut().unwrap()
    }

    /// Offers one random I/O; false when the channel is busy.
    fn offer(&mut self, rng: &mut Rng, base: u64) -> bool {
        self.next += 1;
        let token = Token(self.next << 20 | rng.below(1 << 20));
        let at = rng.below(self.blocks.len() as u64);
        let (newest, writing) = self.blocks[at as usize];
        let pieces = 1 << rng.below(5);
        let mut io = InFlight::new(vec![0; BLOCK].into(), base + at, pieces);
        let opcode = match rng.below(16) {
            0 => Opcode::Flush,
            1..=7 if !writing => {
                io = InFlight::new(stamped(base + at, newest + 1), base + at, pieces);
                io.version = Some(newest + 1);
                Opcode::Write
            }
            _ => {
                io.least = Some(newest);
                Opcode::Read
            }
        };
        let request = Io {
            flags: if rng.below(8) == 0 { IoFlags::FUA } else { IoFlags::STABLE },
            sg: if opcode == Opcode::Flush { &[] } else { &io.list },
            ..Io::new(opcode, Lba(io.lba), BlockCount(1))
        };
        // SAFETY: the memory is the I/O's, which stays in `in_flight` until its completion; `Drop` and `abandon` drop the
        // channel first.
        let taken = unsafe { self.channel().submit(&request, token) }.is_ok();
        if taken {
            if io.version.is_some() {
                self.blocks[at as usize].1 = true;
            }
            self.in_flight.insert(token, io);
        }
        taken
    }

    /// Takes completions and checks them. `may_fail`: what was going on may end in errors.
    fn collect(&mut self, base: u64, may_fail: bool) -> usize {
        let mut out = core::mem::take(&mut self.out);
        let count = self.channel().poll(&mut out, 200);
        for done in out.drain(..) {
            let io = self.in_flight.remove(&done.token).expect("one completion for each token");
            self.done += 1;
            let block = &mut self.blocks[(io.lba - base) as usize];
            if let Some(version) = io.version {
                block.1 = false;
                if done.status.is_success() {
                    block.0 = version;
                }
            }
            assert!(may_fail || done.status.is_success(), "{:?}", done.status);
            if let (Some(least), true) = (io.least, done.status.is_success()) {
                let found = version_of(&io.memory, io.lba);
                assert!((least..=least + 1_000).contains(&found), "block {}: {found} after {least}", io.lba);
            }
        }
        self.out = out;
        count
    }

    /// Drops the channel with what is in flight, and writes over its memory: nobody else may after that.
    fn abandon(&mut self) -> Vec<Box<[u8]>> {
        self.channel = None;
        let mut memory: Vec<_> = self.in_flight.drain().map(|(_, io)| io.memory).collect();
        memory.iter_mut().for_each(|m| m.fill(0x3c));
        memory
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.channel = None;
    }
}

/// Two cores beside the home core keep thousands of I/Os in flight on blocks of their own, sleep, cancel, and drop
/// channels with I/O in flight; every completion comes once, every read is right, no memory is touched after a drop.
#[test]
fn two_cores_at_full_depth_with_cancels_and_drops() {
    const BLOCKS: u64 = 700;
    let home = spawn_thread(config(7)).unwrap();
    let mut here = Here::new(3);
    let pool = pool(&mut here, &home, "stress");
    let device = volume(&mut here, &pool, 2 * BLOCKS);
    let total = Arc::new(AtomicUsize::new(0));
    let work = |core: u32| {
        let (device, total) = (device.clone(), total.clone());
        move || {
            let mut rng = Rng(u64::from(core) * 77 + 5);
            let mut here = Here::new(core);
            let base = u64::from(core) * BLOCKS;
            let mut worker = Worker::new(here.open(&device).unwrap(), BLOCKS);
            let (mut drops, mut deepest) = (0, 0);
            let started = Instant::now();
            // Long lists take several cells of the ring: fewer than a thousand I/Os, and a quick home core leaves few.
            while worker.done < 40_000 || drops < 12 || deepest <= 300 {
                assert!(
                    started.elapsed() < PATIENCE,
                    "{} done, {drops} drops, at most {deepest} in flight",
                    worker.done
                );
                let want = rng.below(1_400);
                while (worker.in_flight.len() as u64) < want && worker.offer(&mut rng, base) {}
                deepest = deepest.max(worker.in_flight.len());
                if rng.below(4) > 0 {
                    worker.channel().kick();
                }
                if rng.below(8) == 0
                    && let Some(token) = worker.in_flight.keys().next().copied()
                {
                    // Whatever it answers: the completion comes, and is checked.
                    worker.channel().cancel(token);
                }
                if worker.collect(base, false) == 0 {
                    // As a reactor does it: kick, arm, and wait for the wake-up.
                    worker.channel().kick();
                    if worker.channel().prepare_sleep() != Sleep::KeepPolling && !worker.in_flight.is_empty()
                    {
                        let before = Instant::now();
                        here.0.sleep(Some(Duration::from_secs(20)));
                        assert!(
                            before.elapsed() < Duration::from_secs(19),
                            "a completion came, and no wake-up"
                        );
                    }
                    here.turn();
                }
                worker.channel().take_ready();
                if worker.done > 3_000 * (drops + 1) {
                    drops += 1;
                    let memory = worker.abandon();
                    // What was written is not known; the next version is above all.
                    worker.blocks.iter_mut().for_each(|b| *b = (b.0, false));
                    worker.channel = Some(here.open(&device).unwrap());
                    assert!(memory.iter().all(|m| m.iter().all(|b| *b == 0x3c)), "touched after the drop");
                }
            }
            while !worker.in_flight.is_empty() {
                assert!(started.elapsed() < PATIENCE, "{} I/Os never complete", worker.in_flight.len());
                worker.channel().kick();
                worker.collect(base, false);
                here.turn();
            }
            assert!(worker.channel().drained());
            total.fetch_add(worker.done as usize, Ordering::Relaxed);
        }
    };
    let threads = [thread::spawn(work(0)), thread::spawn(work(1))];
    for t in threads {
        t.join().unwrap();
    }
    assert!(total.load(Ordering::Relaxed) >= 80_000);
    here.run(pool.export()).unwrap();
    home.stop();
    home.join();
}

/// Submits reads until `count` are in flight.
fn reads(worker: &mut Worker, count: usize) {
    while worker.in_flight.len() < count {
        worker.next += 1;
        let token = Token(worker.next);
        let io = InFlight::new(vec![0; BLOCK].into(), worker.next % 64, 1);
        // SAFETY: as in `offer`.
        let taken =
            unsafe { worker.channel().submit(&Io::read(Lba(io.lba), BlockCount(1), &io.list), token) };
        assert!(taken.is_ok());
        worker.in_flight.insert(token, io);
    }
}

/// What the home core did not do comes as errors when it is gone, later I/O fails, and dropping a channel waits for nobody.
#[test]
fn a_home_core_that_stops_leaves_errors_and_no_hang() {
    let home = spawn_thread(config(7)).unwrap();
    let mut here = Here::new(3);
    let pool = pool(&mut here, &home, "stops");
    let device = volume(&mut here, &pool, 64);
    let mut worker = Worker::new(here.open(&device).unwrap(), 64);
    let mut dropped = Worker::new(here.open(&device).unwrap(), 64);
    // A core that is kept from its work has everything still before it when it stops.
    let kept = home.post(|| thread::sleep(Duration::from_millis(50)));
    assert!(kept.is_ok());
    for w in [&mut worker, &mut dropped] {
        reads(w, 200);
        w.channel().kick();
    }
    home.stop();
    let sleeps = worker.channel().prepare_sleep();
    assert_ne!(sleeps, Sleep::KeepPolling, "nothing is there yet");
    here.0.sleep(Some(Duration::from_secs(20)));
    let started = Instant::now();
    while !worker.in_flight.is_empty() {
        worker.collect(0, true);
        here.turn();
        assert!(started.elapsed() < Duration::from_secs(15), "no completions, or no wake-up");
    }
    drop(dropped);
    home.join();
    reads(&mut worker, 5);
    worker.channel().kick();
    let mut out = Vec::with_capacity(8);
    assert_eq!(worker.channel().poll(&mut out, 8), 5);
    assert!(out.iter().all(|c| c.status == IoStatus::INTERNAL_ERROR));
    assert!(worker.channel().drained());
    assert!(matches!(here.open(&device), Err(DeviceError::Gone(_))));
    assert!(here.run(pool.info()).is_err());
}

/// Each of two cores is home to one pool and drops channels of the other's at the same time: each waits for the other,
/// and ends what that one waits for.
#[test]
fn two_cores_that_wait_for_each_other_do_not_hang() {
    let cores = [spawn_thread(config(0)).unwrap(), spawn_thread(config(1)).unwrap()];
    let mut here = Here::new(3);
    let pools: Vec<_> =
        cores.iter().enumerate().map(|(i, core)| pool(&mut here, core, &format!("cross{i}"))).collect();
    let volumes: Vec<_> = pools.iter().map(|p| volume(&mut here, p, 64)).collect();
    for _ in 0..20 {
        let waiting: Vec<_> = cores
            .iter()
            .zip([volumes[1].clone(), volumes[0].clone()])
            .map(|(core, other)| {
                core.call(move || async move {
                    let mut worker = Worker::new(other.open_channel().await.unwrap(), 64);
                    reads(&mut worker, 300);
                    worker.channel().kick();
                    let memory = worker.abandon();
                    memory.iter().all(|m| m.iter().all(|b| *b == 0x3c))
                })
            })
            .map(|call| {
                // Both begin before either is awaited, and may be done by then.
                let mut call = Box::pin(call);
                let first = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                (call, first)
            })
            .collect();
        for (call, first) in waiting {
            let answer = match first {
                Poll::Ready(answer) => answer,
                Poll::Pending => here.run(call),
            };
            assert!(answer.unwrap());
        }
    }
    cores.iter().for_each(CoreHandle::stop);
    cores.iter().for_each(CoreHandle::join);
}

/// One thread that turns two reactors is both sides: a drop with I/O in flight ends all the same.
#[test]
fn two_reactors_of_one_thread() {
    let mut home = Here::new(7);
    let handle = home.0.core().handle();
    let pool = pool(&mut home, &handle, "one");
    let device = volume(&mut home, &pool, 64);
    let away = Here(Reactor::new(ReactorConfig { engine: EngineChoice::None, ..config(8) }).unwrap());
    let mut worker = {
        let mut opening = pin!(device.open_channel());
        loop {
            let mut cx = Context::from_waker(Waker::noop());
            let polled = away.0.enter(|| opening.as_mut().poll(&mut cx));
            if let Poll::Ready(channel) = polled {
                break Worker::new(channel.unwrap(), 64);
            }
            home.turn();
        }
    };
    reads(&mut worker, 100);
    worker.channel().kick();
    home.turn();
    reads(&mut worker, 150);
    let memory = worker.abandon();
    (0..20).for_each(|_| home.turn());
    assert!(memory.iter().all(|m| m.iter().all(|b| *b == 0x3c)));
    home.run(pool.export()).unwrap();
}

/// Snapshots open on any core, and refuse writes there; a channel is closed; a removed volume says so.
#[test]
fn snapshots_removal_and_close_on_another_core() {
    let home = spawn_thread(config(7)).unwrap();
    let mut here = Here::new(3);
    let pool = pool(&mut here, &home, "snaps");
    let device = volume(&mut here, &pool, 64);
    let mut rng = Rng(9);
    let mut worker = Worker::new(here.open(&device).unwrap(), 64);
    let mut fill = |worker: &mut Worker, here: &mut Here, many| {
        while worker.done < many {
            worker.offer(&mut rng, 0);
            worker.channel().kick();
            worker.collect(0, false);
            here.turn();
        }
        while !worker.in_flight.is_empty() {
            worker.collect(0, false);
            here.turn();
        }
    };
    fill(&mut worker, &mut here, 2_000);
    let uuid = Uuid::from_u128(77);
    let spec = CreateSnapshot {
        name: "s".into(),
        uuid,
        txn_id: "t".into(),
        entity_id: "e".into(),
        created: std::time::SystemTime::UNIX_EPOCH,
    };
    here.run(pool.create_snapshot(device.uuid(), spec)).unwrap();
    let then = worker.blocks.clone();
    fill(&mut worker, &mut here, 4_000);

    let snapshot = here.run(pool.open_snapshot(uuid)).unwrap();
    let mut old = Worker::new(here.open(&snapshot).unwrap(), 64);
    for (lba, (version, _)) in then.iter().enumerate() {
        let io = InFlight::new(vec![0; BLOCK].into(), lba as u64, 2);
        // SAFETY: the memory stays until the completion, a few lines below.
        unsafe { old.channel().submit(&Io::read(Lba(lba as u64), BlockCount(1), &io.list), Token(1)) }
            .unwrap();
        let mut out = Vec::with_capacity(1);
        while old.channel().poll(&mut out, 1) == 0 {
            old.channel().kick();
            here.turn();
        }
        assert!(out[0].status.is_success());
        assert_eq!(version_of(&io.memory, lba as u64), *version);
    }
    let mut answer = |worker: &mut Worker, io: &Io<'_>| {
        // SAFETY: the I/O transfers nothing, or is refused.
        unsafe { worker.channel().submit(io, Token(2)) }.unwrap();
        let mut out = Vec::with_capacity(1);
        while worker.channel().poll(&mut out, 1) == 0 {
            worker.channel().kick();
            here.turn();
        }
        out[0].status
    };
    let zeroes = Io::new(Opcode::WriteZeroes, Lba(0), BlockCount(1));
    assert_eq!(answer(&mut old, &zeroes), IoStatus::NAMESPACE_WRITE_PROTECTED);
    assert_eq!(answer(&mut worker, &zeroes), IoStatus::SUCCESS);
    assert!(pool.volume_io_stats(device.uuid()).unwrap().writes > 0);
    device.remove();
    assert_eq!(answer(&mut worker, &zeroes), check::REMOVED);
    old.channel().close();
    assert_eq!(answer(&mut old, &Io::flush()), check::CLOSED);
    assert!(old.channel().drained());
    home.stop();
    home.join();
}

/// Open channels without I/O keep no core awake, neither do channels that came and went.
#[test]
fn idle_channels_let_both_cores_sleep() {
    let home = spawn_thread(config(7)).unwrap();
    let away = spawn_thread(config(8)).unwrap();
    let mut here = Here::new(3);
    let pool = pool(&mut here, &home, "idle");
    let device = volume(&mut here, &pool, 64);
    let turned = here
        .run(away.call(move || async move {
            let mut channels = Vec::new();
            for _ in 0..4 {
                let mut worker = Worker::new(device.open_channel().await.unwrap(), 64);
                reads(&mut worker, 20);
                worker.channel().kick();
                channels.push(worker);
            }
            // One that nobody waited for, and one with I/O in flight.
            let mut opening = device.open_channel();
            drop(opening.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            drop(opening);
            channels.pop();
            let core = aio::Core::current().unwrap();
            let started = Instant::now();
            while channels.iter().any(|w| !w.in_flight.is_empty()) {
                for w in &mut channels {
                    w.collect(0, false);
                }
                core.sleep(Duration::from_micros(100)).await;
                assert!(started.elapsed() < PATIENCE);
            }
            // The pool's own work after I/O ends at some time.
            let turned = loop {
                let before = (home.stats().turns, core.stats().turns);
                core.sleep(Duration::from_secs(1)).await;
                let turned = (home.stats().turns - before.0, core.stats().turns - before.1);
                if (turned.0 < 2_000 && turned.1 < 2_000) || started.elapsed() > PATIENCE {
                    break turned;
                }
            };
            drop(channels);
            home.stop();
            home.join();
            turned
        }))
        .unwrap();
    assert!(turned.0 < 2_000 && turned.1 < 2_000, "turns of an idle second: {turned:?}");
    drop(pool);
    away.stop();
    away.join();
}

/// Facets are asked on any core, and on none.
#[test]
fn facets_of_a_volume_are_asked_from_other_cores() {
    let home = spawn_thread(config(7)).unwrap();
    let mut here = Here::new(8);
    let pool = pool(&mut here, &home, "facets");
    let volume = volume(&mut here, &pool, 64);
    let at = here.run(volume.marks().unwrap().position()).unwrap();
    let device: Arc<dyn BlockDevice> = volume.clone();
    let d = here.run(aio::Descriptor::open(device)).unwrap();
    let buf = here.0.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
    here.run(d.write_at(5 * BLOCK as u64, BLOCK as u32, buf)).0.unwrap();
    let range = aio::BlockRange { start: Lba(0), blocks: BlockCount(64) };
    let piece = aio::facets::Piece { range, most: 10 };
    let since = aio::facets::Since::Position(at);
    let found = here.run(volume.ranges().unwrap().changed(since, piece)).unwrap();
    let one = aio::BlockRange { start: Lba(5), blocks: BlockCount(1) };
    assert_eq!(found.extents, [aio::facets::Extent { range: one, data: true }]);
    let snapshot = CreateSnapshot {
        name: "s".into(),
        uuid: Uuid::from_u128(77),
        txn_id: String::new(),
        entity_id: String::new(),
        created: std::time::SystemTime::UNIX_EPOCH,
    };
    here.run(volume.snapshots().unwrap().create_snapshot(snapshot)).unwrap();
    // From a thread without a core.
    let asked = volume.clone();
    let elsewhere = thread::spawn(move || {
        let mut question = asked.ranges().unwrap().allocated(piece);
        let started = Instant::now();
        loop {
            if let Poll::Ready(page) = question.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return page.unwrap();
            }
            assert!(started.elapsed() < PATIENCE, "a hang");
            thread::yield_now();
        }
    });
    assert_eq!(elsewhere.join().unwrap(), found);
    here.run(d.close());
    here.run(pool.export()).unwrap();
    home.stop();
    home.join();
}
