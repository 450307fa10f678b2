//! I/O at a depth, and how long each took.

#![allow(unsafe_code, reason = "submissions promise that their memory stays valid")]

use aio::{
    BlockCount, Completion, DmaBuf, DmaPool, Instant, Io, IoChannel, IoFlags, Lba, Memory, Poller, Sleep,
    Token,
};
use anyhow::{Context, Result};
use std::time::Duration;

/// What is asked of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) io_bytes: u32,
    pub(crate) depth: u32,
    /// Of a hundred I/Os, how many read.
    pub(crate) read_percent: u64,
    pub(crate) random: bool,
    /// From the device's beginning.
    pub(crate) span_bytes: u64,
}

impl Work {
    pub(crate) const fn random(depth: u32, read_percent: u64, span_bytes: u64) -> Self {
        Self { io_bytes: 4096, depth, read_percent, random: true, span_bytes }
    }

    pub(crate) const fn sequential(read_percent: u64, span_bytes: u64) -> Self {
        Self { io_bytes: 128 << 10, depth: 32, read_percent, random: false, span_bytes }
    }
}

/// When it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Time(Duration),
    Ios(u64),
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) ios: u64,
    pub(crate) iops: f64,
    /// From the turn of the submission to the turn of the completion.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

/// Keeps `depth` I/Os in flight. A poller of the reactor until it is done.
pub(crate) struct Load {
    // Before the buffers, which it may still use.
    channel: Box<dyn IoChannel>,
    buffers: Vec<DmaBuf>,
    work: Work,
    until: Until,
    block_bytes: u64,
    seed: u64,
    next: u64,
    begun: Vec<Instant>,
    free: Vec<u32>,
    completions: Vec<Completion>,
    latencies_ns: Vec<u32>,
    first: Option<Instant>,
    last: Instant,
    done: u64,
    failed: u64,
    stop: bool,
}

impl Load {
    pub(crate) fn new(
        channel: Box<dyn IoChannel>,
        block_bytes: u32,
        work: Work,
        until: Until,
    ) -> Result<Self> {
        let depth = work.depth;
        let pool = DmaPool::new(&Memory::process(), work.io_bytes, depth).context("memory for I/Os")?;
        let mut seed = 0x243f_6a88_85a3_08d3;
        let mut buffers = Vec::new();
        for _ in 0..depth {
            let mut buf = pool.alloc().context("memory for I/Os")?;
            for word in buf.chunks_exact_mut(8) {
                word.copy_from_slice(&random(&mut seed).to_le_bytes());
            }
            buffers.push(buf);
        }
        let most = match until {
            Until::Time(time) => (time.as_secs_f64() * 4e6) as usize,
            Until::Ios(ios) => ios as usize,
        };
        Ok(Self {
            channel,
            buffers,
            work,
            until,
            block_bytes: u64::from(block_bytes),
            seed,
            next: 0,
            begun: vec![Instant::default(); depth as usize],
            free: (0..depth).collect(),
            completions: Vec::with_capacity(depth as usize),
            latencies_ns: Vec::with_capacity(most + depth as usize),
            first: None,
            last: Instant::default(),
            done: 0,
            failed: 0,
            stop: false,
        })
    }

    /// No more I/Os begin, and none is in flight.
    pub(crate) fn is_over(&self) -> bool {
        self.stop && self.free.len() == self.buffers.len()
    }

    /// I/Os that ended with an error.
    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }

    /// After its end.
    pub(crate) fn sample(&mut self) -> Sample {
        let elapsed = self.last.since(self.first.unwrap_or(self.last));
        self.latencies_ns.sort_unstable();
        let at = |share: f64| {
            let index = (self.latencies_ns.len() as f64 * share) as usize;
            let last = self.latencies_ns.len().saturating_sub(1);
            self.latencies_ns.get(index.min(last)).map_or(0.0, |&ns| f64::from(ns) / 1e3)
        };
        Sample {
            ios: self.done,
            iops: self.done as f64 / elapsed.as_secs_f64().max(1e-9),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
        }
    }

    fn submit(&mut self, now: Instant) {
        let Work { io_bytes, span_bytes, read_percent, .. } = self.work;
        let places = (span_bytes / u64::from(io_bytes)).max(1);
        while !self.stop
            && let Some(slot) = self.free.pop()
        {
            let place = if self.work.random { random(&mut self.seed) } else { self.next } % places;
            let sg = [self.buffers[slot as usize].sg(0, io_bytes)];
            let blocks = u64::from(io_bytes) / self.block_bytes;
            let (lba, blocks) = (Lba(place * blocks), BlockCount(blocks));
            let read = (random(&mut self.seed) >> 32) % 100 < read_percent;
            let io = if read { Io::read(lba, blocks, &sg) } else { Io::write(lba, blocks, &sg) };
            let io = Io { flags: IoFlags::STABLE, ..io };
            // SAFETY: the buffer is the slot's alone and is touched again only after its completion; it is freed
            // after the channel.
            if unsafe { self.channel.submit(&io, Token::new(slot, 0)) }.is_err() {
                return self.free.push(slot);
            }
            self.begun[slot as usize] = now;
            self.next += 1;
            if let Until::Ios(ios) = self.until {
                self.stop = self.next >= ios;
            }
        }
    }
}

impl Poller for Load {
    fn poll(&mut self, now: Instant) -> usize {
        let first = *self.first.get_or_insert(now);
        let count = self.channel.poll(&mut self.completions, self.buffers.len());
        for completion in self.completions.drain(..) {
            let slot = completion.token.index();
            self.free.push(slot);
            self.done += 1;
            self.failed += u64::from(!completion.status.is_success());
            let took = now.since(self.begun[slot as usize]);
            if self.latencies_ns.len() < self.latencies_ns.capacity() {
                self.latencies_ns.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
            }
            self.last = now;
        }
        if let Until::Time(time) = self.until {
            self.stop |= now.since(first) >= time;
        }
        self.submit(now);
        count
    }

    fn kick(&mut self) {
        self.channel.kick();
    }

    fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
        self.channel.prepare_sleep()
    }

    fn finished(&self) -> bool {
        self.is_over()
    }
}

/// Splitmix64.
pub(crate) fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *seed;
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
