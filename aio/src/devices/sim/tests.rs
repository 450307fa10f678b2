//! The simulated disk does what it says: nothing flushed is ever lost, everything else may be, and every
//! fault that is asked for happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::device::IoChannel;
use crate::io::{Io, IoFlags, Opcode, Token};
use crate::sg::{RegionId, SgEntry};
use crate::{BlockRange, IoStatus};

const BLOCK: usize = 512;

/// A disk with its clock, driven one I/O at a time.
struct Rig {
    disk: SimDisk,
    time: Arc<AtomicU64>,
    channel: Box<dyn IoChannel>,
}

impl Rig {
    fn new(config: SimConfig) -> Self {
        let time = Arc::new(AtomicU64::new(0));
        let source = time.clone();
        let disk = SimDisk::new(config, Arc::new(move || Instant::from_ns(source.load(Ordering::Relaxed))));
        let channel = open(&disk.power_on());
        Self { disk, time, channel }
    }

    fn power_cycle(&mut self) {
        self.disk.cut_power();
        self.channel = open(&self.disk.power_on());
    }

    fn submit(&mut self, io: &Io<'_>, token: u64) {
        loop {
            // SAFETY: the tests keep their buffers until the completion or the end of the channel.
            if unsafe { self.channel.submit(io, Token(token)) }.is_ok() {
                return;
            }
            while !self.channel.take_ready() {
                self.time.fetch_add(1000, Ordering::Relaxed);
            }
        }
    }

    fn run(&mut self, io: &Io<'_>) -> IoStatus {
        self.submit(io, 1);
        let mut out = Vec::with_capacity(1);
        while self.channel.poll(&mut out, 1) == 0 {
            self.time.fetch_add(10_000, Ordering::Relaxed);
        }
        out[0].status
    }

    fn write(&mut self, lba: u64, blocks: u64, fill: u8, flags: IoFlags) -> IoStatus {
        let mut data = vec![fill; blocks as usize * BLOCK];
        let list = [entry(&mut data)];
        self.run(&Io::write(Lba(lba), BlockCount(blocks), &list).with_flags(flags))
    }

    fn read(&mut self, lba: u64, blocks: u64) -> (IoStatus, Vec<u8>) {
        let mut data = vec![0xff; blocks as usize * BLOCK];
        let list = [entry(&mut data)];
        (self.run(&Io::read(Lba(lba), BlockCount(blocks), &list)), data)
    }

    fn flush(&mut self) -> IoStatus {
        self.run(&Io::flush())
    }
}

fn open(device: &Sim) -> Box<dyn IoChannel> {
    channel_of(device).expect("power is on")
}

fn channel_of(device: &Sim) -> Result<Box<dyn IoChannel>, DeviceError> {
    let mut future = device.open_channel();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => panic!("opening a simulated disk waits for nothing"),
    }
}

fn entry(data: &mut [u8]) -> SgEntry {
    let ptr = core::ptr::NonNull::from(&mut *data).cast();
    SgEntry { ptr, len_bytes: data.len() as u32, region: RegionId::NONE }
}

#[test]
fn flushed_and_fua_writes_survive_every_cut() {
    for seed in 0..300 {
        let mut rig = Rig::new(SimConfig::new(512, 256, seed));
        rig.write(0, 8, 1, IoFlags::empty());
        rig.write(8, 8, 2, IoFlags::FUA);
        rig.flush();
        rig.write(16, 4, 3, IoFlags::empty());
        rig.write(16, 4, 4, IoFlags::FUA);
        rig.power_cycle();
        assert!(rig.read(0, 8).1.iter().all(|b| *b == 1), "seed {seed}: flushed");
        assert!(rig.read(8, 8).1.iter().all(|b| *b == 2), "seed {seed}: FUA");
        assert!(rig.read(16, 4).1.iter().all(|b| *b == 4), "seed {seed}: FUA over a cached write");
    }
}

#[test]
fn cuts_keep_lose_and_tear_what_was_not_flushed() {
    let (mut kept, mut lost, mut torn, mut mixed) = (0, 0, 0, 0);
    for seed in 0..300 {
        let mut rig = Rig::new(SimConfig::new(512, 256, seed));
        rig.write(0, 32, 1, IoFlags::empty());
        rig.flush();
        for lba in 0..4 {
            rig.write(lba * 8, 8, 2, IoFlags::empty());
        }
        rig.power_cycle();
        let mut outcomes = Vec::new();
        for lba in 0..4 {
            let data = rig.read(lba * 8, 8).1;
            let blocks: Vec<u8> = data.chunks(BLOCK).map(|block| block[0]).collect();
            let whole = data.chunks(BLOCK).all(|block| block.iter().all(|b| *b == block[0]));
            assert!(whole && blocks.iter().all(|b| [1, 2].contains(b)), "seed {seed}: a block is old or new");
            let new = blocks.iter().filter(|b| **b == 2).count();
            torn += usize::from(new != 0 && new != 8);
            outcomes.push(new == 8);
        }
        kept += usize::from(outcomes.iter().all(|new| *new));
        lost += usize::from(outcomes.iter().all(|new| !new));
        // A later write survived although an earlier one did not.
        mixed += usize::from(outcomes.windows(2).any(|w| !w[0] && w[1]));
    }
    assert!(kept > 10 && lost > 10 && torn > 10 && mixed > 10, "{kept} {lost} {torn} {mixed}");
}

#[test]
fn small_writes_are_atomic_and_large_ones_in_flight_are_not() {
    let mut torn_large = 0;
    for seed in 0..200 {
        let mut rig = Rig::new(SimConfig { atomic_blocks: 8, ..SimConfig::new(512, 256, seed) });
        let mut data = vec![7; 16 * BLOCK];
        let (small, large) = ([entry(&mut data[..8 * BLOCK])], [entry(&mut data[..])]);
        rig.submit(&Io::write(Lba(0), BlockCount(8), &small), 1);
        rig.submit(&Io::write(Lba(100), BlockCount(16), &large), 2);
        rig.power_cycle();
        let new = |data: Vec<u8>| data.chunks(BLOCK).filter(|block| block[0] == 7).count();
        assert!([0, 8].contains(&new(rig.read(0, 8).1)), "seed {seed}: an atomic write was torn");
        torn_large += usize::from(![0, 16].contains(&new(rig.read(100, 16).1)));
    }
    assert!(torn_large > 10, "{torn_large}");
}

#[test]
fn without_a_volatile_cache_completed_writes_stay() {
    for seed in 0..100 {
        let mut rig = Rig::new(SimConfig { volatile_cache: false, ..SimConfig::new(512, 256, seed) });
        rig.write(0, 32, 1, IoFlags::empty());
        rig.power_cycle();
        assert!(rig.read(0, 32).1.iter().all(|b| *b == 1));
    }
}

#[test]
fn a_cut_fails_what_is_in_flight_and_changes_the_incarnation() {
    let mut rig = Rig::new(SimConfig::new(512, 256, 1));
    let first = rig.disk.power_on();
    rig.channel = open(&first);
    let mut data = vec![1; BLOCK];
    let list = [entry(&mut data)];
    rig.submit(&Io::write(Lba(0), BlockCount(1), &list), 1);
    rig.disk.cut_power();
    let mut out = Vec::with_capacity(4);
    assert_eq!(rig.channel.poll(&mut out, 4), 1);
    assert_eq!(out[0].status, crate::check::REMOVED);
    assert!(rig.channel.drained());
    assert_eq!(rig.run(&Io::flush()), crate::check::REMOVED);
    assert!(channel_of(&first).is_err());
    let second = rig.disk.power_on();
    assert_ne!(first.incarnation(), second.incarnation());
    assert_eq!(first.uuid(), second.uuid());
}

#[test]
fn a_failed_flush_forgets_for_good() {
    let mut forgotten = 0;
    for seed in 0..200 {
        let mut rig = Rig::new(SimConfig::new(512, 256, seed));
        rig.disk.set_faults(Faults { flush_error: 1, ..Faults::default() });
        rig.write(0, 1, 9, IoFlags::empty());
        assert_eq!(rig.flush(), IoStatus::WRITE_FAULT);
        rig.disk.set_faults(Faults::default());
        assert!(rig.flush().is_success());
        assert!(rig.read(0, 1).1.iter().all(|b| *b == 9), "the cache still has it");
        rig.power_cycle();
        forgotten += usize::from(rig.read(0, 1).1[0] == 0);
        // What is written and flushed again is safe again.
        rig.write(0, 1, 8, IoFlags::empty());
        assert!(rig.flush().is_success());
        rig.power_cycle();
        assert_eq!(rig.read(0, 1).1[0], 8);
    }
    assert!(forgotten > 10, "{forgotten}");
}

/// Random work with every fault; gives what it left behind.
fn storm(seed: u64) -> (u64, SimStats, u64) {
    let mut rig = Rig::new(SimConfig::new(512, 256, seed));
    rig.disk.set_faults(Faults {
        write_error: 20,
        read_error: 20,
        latent: 20,
        lost_write: 20,
        misdirected: 20,
        torn_write: 20,
        flipped_bit: 20,
        flush_error: 5,
        busy: 20,
    });
    let mut rng = Prng::new(seed ^ 0xabc);
    let mut bad = 0;
    for i in 0..400u64 {
        let (lba, blocks) = (rng.below(240), rng.between(1, 16));
        let status = match rng.below(8) {
            0 => rig.flush(),
            1 => {
                let ranges = [BlockRange { start: Lba(lba), blocks: BlockCount(blocks) }];
                rig.run(&Io::unmap(&ranges))
            }
            2 => rig.run(&Io::new(Opcode::WriteZeroes, Lba(lba), BlockCount(blocks))),
            3 => rig.read(lba, blocks).0,
            _ => rig.write(lba, blocks, i as u8, IoFlags::empty()),
        };
        bad += u64::from(!status.is_success());
        if i % 100 == 99 {
            rig.power_cycle();
        }
    }
    (rig.disk.digest(), rig.disk.stats(), bad)
}

#[test]
fn every_fault_happens_and_the_seed_decides_everything() {
    let (digest, stats, bad) = storm(5);
    assert_eq!((digest, stats, bad), storm(5));
    assert_ne!(digest, storm(6).0);
    for (what, count) in [
        ("errors", stats.errors.min(bad)),
        ("lost", stats.lost_writes),
        ("misdirected", stats.misdirected),
        ("torn", stats.torn_writes),
        ("latent", stats.latent),
        ("flipped", stats.flipped_bits),
        ("flush errors", stats.flush_errors),
        ("storms", stats.busy_storms),
        ("kept", stats.blocks_kept_by_cuts),
        ("lost by cuts", stats.blocks_lost_by_cuts),
    ] {
        assert!(count > 0, "no {what} in {stats:?}");
    }
    assert_eq!(stats.power_cuts, 4);
}

#[test]
fn damage_is_repaired_by_writing() {
    let mut rig = Rig::new(SimConfig::new(512, 256, 3));
    rig.write(4, 2, 1, IoFlags::empty());
    rig.disk.damage(Lba(5));
    assert_eq!(rig.read(4, 1).0, IoStatus::SUCCESS);
    assert_eq!(rig.read(4, 2).0, IoStatus::UNRECOVERED_READ);
    assert_eq!(rig.run(&Io::new(Opcode::Verify, Lba(0), BlockCount(256))), IoStatus::UNRECOVERED_READ);
    rig.write(5, 1, 2, IoFlags::empty());
    assert_eq!(rig.read(4, 2).0, IoStatus::SUCCESS);
    rig.disk.flip_bit(Lba(4), 3);
    assert_eq!(rig.disk.block(Lba(4))[0], 1 ^ 8);
}
