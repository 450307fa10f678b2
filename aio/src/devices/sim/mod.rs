//! `sim`: a disk that fails on purpose, for tests and simulation.
//!
//! # Map
//! - [`SimDisk`]: the disk as the test holds it: power, faults, counters, a look at single blocks. It stays
//!   when power goes; [`SimDisk::power_on`] gives a [`Sim`], the block device, with what survived.
//! - [`medium`]: blocks, volatile cache, and what each fault does to them. - `channel`: the data side.
//!
//! # What it does
//! I/Os complete after a random time, so they are reordered unless the submitter waits. Completed writes stay
//! in a volatile cache until a Flush, FUA, or now and then by themselves. A power cut keeps any subset of what
//! was not flushed, some of it torn; also of writes that were still in flight. On request writes are torn,
//! lost or put elsewhere, reads fail or give wrong bits, flushes fail and forget what they should have saved,
//! and the channel refuses I/O for a while.
//!
//! Everything is decided by one seed and the order of calls: the same calls at the same times give the same
//! disk. Time is what the given function says.
//!
//! A lock protects the disk: this device is made for control, not for speed.

mod channel;
pub mod medium;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::{Builder, Uuid};

use super::events::EventHub;
use super::prng::{Prng, mix};
use crate::device::{
    BlockDevice, Capabilities, DeviceError, DeviceEvent, EventSink, Geometry, IoChannel, LocalBoxFuture,
    Subscription,
};
use crate::io::{BlockCount, Lba};
use crate::time::Instant;

use medium::Medium;
pub use medium::SimStats;

/// Gives the current time, on any thread.
pub type TimeSource = Arc<dyn Fn() -> Instant + Send + Sync>;

/// A simulated disk.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Name of the device.
    pub name: String,
    /// Logical block size.
    pub block_bytes: u32,
    /// Size.
    pub blocks: u64,
    /// Decides everything random.
    pub seed: u64,
    /// Completed writes are volatile until a Flush.
    pub volatile_cache: bool,
    /// Writes up to this many blocks are never torn.
    pub atomic_blocks: u32,
    /// I/Os that a channel takes.
    pub queue_depth: u32,
    /// How long I/Os take.
    pub latency: Latency,
    /// What goes wrong.
    pub faults: Faults,
}

impl SimConfig {
    /// A well-behaved disk with a volatile cache.
    pub fn new(block_bytes: u32, blocks: u64, seed: u64) -> Self {
        Self {
            name: "sim".to_owned(),
            block_bytes,
            blocks,
            seed,
            volatile_cache: true,
            atomic_blocks: 1,
            queue_depth: 128,
            latency: Latency::default(),
            faults: Faults::default(),
        }
    }
}

/// How long I/Os take.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// At least, in nanoseconds.
    pub min_ns: u64,
    /// Usually at most.
    pub max_ns: u64,
    /// One in so many I/Os is slow; 0 = none.
    pub slow_one_in: u32,
    /// How long a slow one takes.
    pub slow_ns: u64,
}

impl Default for Latency {
    /// A flash disk with a hiccup now and then.
    fn default() -> Self {
        Self { min_ns: 10_000, max_ns: 100_000, slow_one_in: 500, slow_ns: 5_000_000 }
    }
}

/// What goes wrong: each number says "one in so many", 0 = never.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    /// A write fails with Write Fault and changes nothing.
    pub write_error: u32,
    /// A read fails with Unrecovered Read Error, once.
    pub read_error: u32,
    /// A write leaves one of its blocks unreadable until that is written again.
    pub latent: u32,
    /// A write succeeds and changes nothing.
    pub lost_write: u32,
    /// A write succeeds and changes other blocks than its own.
    pub misdirected: u32,
    /// A write of more than `atomic_blocks` blocks succeeds and changes only some of them.
    pub torn_write: u32,
    /// A write succeeds and one bit on the medium is wrong.
    pub flipped_bit: u32,
    /// A flush fails, and some of what it should have saved is only saved when it is written again, even
    /// though later flushes succeed.
    pub flush_error: u32,
    /// A submission begins a storm, in which the channel is busy.
    pub busy: u32,
}

/// A simulated disk, with or without power. Clones are handles of the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Disk>);

struct Disk {
    config: SimConfig,
    uuid: Uuid,
    time: TimeSource,
    state: Mutex<State>,
}

struct State {
    medium: Medium,
    /// The device that has the power, if any.
    powered: Option<Arc<Shared>>,
    power_ons: u64,
}

impl SimDisk {
    /// A disk full of zeroes, without power.
    pub fn new(config: SimConfig, time: TimeSource) -> Self {
        let mut rng = Prng::new(config.seed);
        let mut bytes = [0; 16];
        rng.fill(&mut bytes);
        let medium = Medium::new(&config, rng.fork());
        Self(Arc::new(Disk {
            uuid: Builder::from_random_bytes(bytes).into_uuid(),
            state: Mutex::new(State { medium, powered: None, power_ons: 0 }),
            config,
            time,
        }))
    }

    /// Turns the power on: a new device with what is on the medium. A device that had the power loses it, as in
    /// [`cut_power`](Self::cut_power).
    pub fn power_on(&self) -> Arc<Sim> {
        self.cut_power();
        let mut state = self.0.lock();
        state.power_ons += 1;
        let shared = Arc::new(Shared {
            disk: self.0.clone(),
            incarnation: u128::from(mix(self.0.config.seed)) << 64 | u128::from(state.power_ons),
            blocks: AtomicU64::new(state.medium.blocks()),
            alive: AtomicBool::new(true),
            events: EventHub::default(),
        });
        state.powered = Some(shared.clone());
        Arc::new(Sim(shared))
    }

    /// The power goes at this moment. What was not flushed survives in part; I/Os in flight fail. Does nothing
    /// without power.
    pub fn cut_power(&self) {
        let Some(shared) = ({
            let mut state = self.0.lock();
            let shared = state.powered.take();
            if let Some(shared) = &shared {
                shared.alive.store(false, Ordering::Release);
                state.medium.cut_power();
            }
            shared
        }) else {
            return;
        };
        shared.events.send(DeviceEvent::Faulted);
    }

    /// Everything that completed becomes durable, as if flushed, before power is cut the next time.
    pub fn flush_cache(&self) {
        self.0.lock().medium.flush_all();
    }

    /// From now on these things go wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().medium.set_faults(faults);
    }

    /// Makes a block unreadable until it is written.
    pub fn damage(&self, lba: Lba) {
        self.0.lock().medium.damage(lba.0);
    }

    /// Flips one bit of a block, on medium and in cache.
    pub fn flip_bit(&self, lba: Lba, bit: u64) {
        self.0.lock().medium.flip_bit(lba.0, bit);
    }

    /// What a read of the block would give now, without faults.
    pub fn block(&self, lba: Lba) -> Vec<u8> {
        self.0.lock().medium.block(lba.0)
    }

    /// How often what has happened.
    pub fn stats(&self) -> SimStats {
        self.0.lock().medium.stats()
    }

    /// A hash of everything on the medium and in the cache: equal disks give equal numbers.
    pub fn digest(&self) -> u64 {
        self.0.lock().medium.digest()
    }
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A simulated disk under power.
pub struct Sim(Arc<Shared>);

struct Shared {
    disk: Arc<Disk>,
    incarnation: u128,
    blocks: AtomicU64,
    /// Neither removed nor without power.
    alive: AtomicBool,
    events: EventHub,
}

impl Shared {
    fn geometry(&self) -> Geometry {
        let config = &self.disk.config;
        Geometry {
            block_bytes: config.block_bytes,
            meta_bytes: 0,
            buf_align: 4,
            sg_elem_align: 4,
            max_sg: 128,
            max_blocks: (1 << 20) / config.block_bytes,
            boundary_blocks: 0,
            atomic_blocks: config.atomic_blocks,
            compare_write_blocks: (1 << 20) / config.block_bytes,
            queue_depth: config.queue_depth,
        }
    }

    fn capabilities(&self) -> Capabilities {
        let all = Capabilities::FUA
            | Capabilities::UNMAP
            | Capabilities::UNMAP_ZEROES
            | Capabilities::WRITE_ZEROES
            | Capabilities::COMPARE
            | Capabilities::COMPARE_AND_WRITE
            | Capabilities::VERIFY
            | Capabilities::COPY;
        if self.disk.config.volatile_cache { all | Capabilities::VOLATILE_CACHE } else { all }
    }

    fn size(&self) -> BlockCount {
        BlockCount(self.blocks.load(Ordering::Acquire))
    }

    fn alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }
}

impl BlockDevice for Sim {
    fn name(&self) -> &str {
        &self.0.disk.config.name
    }

    fn uuid(&self) -> Uuid {
        self.0.disk.uuid
    }

    fn driver(&self) -> &'static str {
        "sim"
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn size(&self) -> BlockCount {
        self.0.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn incarnation(&self) -> Option<u128> {
        Some(self.0.incarnation)
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.0.events.subscribe(sink)
    }

    /// Grows the disk.
    fn resize(&self, blocks: BlockCount) -> Result<BlockCount, DeviceError> {
        let device = || self.name().to_owned();
        if !self.0.alive() {
            return Err(DeviceError::Gone(device()));
        }
        if blocks < self.size() || blocks.0.checked_mul(u64::from(self.geometry().block_bytes)).is_none() {
            return Err(DeviceError::Unsupported { op: "shrinking", device: device() });
        }
        if self.0.blocks.fetch_max(blocks.0, Ordering::AcqRel) < blocks.0 {
            self.0.disk.lock().medium.grow(blocks.0);
            self.0.events.send(DeviceEvent::Resized(blocks));
        }
        Ok(self.size())
    }

    fn remove(&self) {
        if self.0.alive.swap(false, Ordering::AcqRel) {
            self.0.events.send(DeviceEvent::Removed);
        }
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        let shared = self.0.clone();
        Box::pin(async move {
            if !shared.alive() {
                return Err(DeviceError::Gone(shared.disk.config.name.clone()));
            }
            Ok(Box::new(channel::Channel::new(shared)) as Box<dyn IoChannel>)
        })
    }
}

#[cfg(test)]
mod tests;
