//! What a nexus was asked to do, and how long that took: counted by each channel for itself, summed when somebody asks.
//!
//! Each counter has one writer, its channel: a relaxed load and store, no locked instruction per I/O. Times are those of
//! the reactor's turns.

use core::time::Duration;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aio::Opcode;

/// I/Os of one kind that completed well.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OpStats {
    /// How many.
    pub ops: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Sum of their times, in nanoseconds.
    pub latency_ns: u64,
    /// The longest.
    pub max_latency_ns: u64,
    /// The shortest; 0 without any.
    pub min_latency_ns: u64,
}

/// I/Os by kind, since the nexus was created or the counters were reset.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IoStats {
    /// Reads.
    pub reads: OpStats,
    /// Writes, Compare and Write included.
    pub writes: OpStats,
    /// Unmaps and Write Zeroes.
    pub unmaps: OpStats,
}

const KINDS: usize = 3;

/// What the counters of one kind hold: a field each of [`OpStats`].
#[derive(Default)]
struct OpCounters {
    ops: AtomicU64,
    bytes: AtomicU64,
    latency_ns: AtomicU64,
    max_latency_ns: AtomicU64,
    min_latency_ns: AtomicU64,
}

impl OpCounters {
    #[inline]
    fn add(&self, bytes: u64, took_ns: u64) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let first = get(&self.ops) == 0;
        self.ops.store(get(&self.ops).wrapping_add(1), Ordering::Relaxed);
        self.bytes.store(get(&self.bytes).wrapping_add(bytes), Ordering::Relaxed);
        self.latency_ns.store(get(&self.latency_ns).wrapping_add(took_ns), Ordering::Relaxed);
        if took_ns > get(&self.max_latency_ns) {
            self.max_latency_ns.store(took_ns, Ordering::Relaxed);
        }
        if first || took_ns < get(&self.min_latency_ns) {
            self.min_latency_ns.store(took_ns, Ordering::Relaxed);
        }
    }

    fn get(&self) -> OpStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OpStats {
            ops: get(&self.ops),
            bytes: get(&self.bytes),
            latency_ns: get(&self.latency_ns),
            max_latency_ns: get(&self.max_latency_ns),
            min_latency_ns: get(&self.min_latency_ns),
        }
    }
}

impl OpStats {
    /// Together with `other`, of another channel.
    fn plus(self, other: Self) -> Self {
        let least = match (self.ops, other.ops) {
            (0, _) => other.min_latency_ns,
            (_, 0) => self.min_latency_ns,
            _ => self.min_latency_ns.min(other.min_latency_ns),
        };
        Self {
            ops: self.ops.wrapping_add(other.ops),
            bytes: self.bytes.wrapping_add(other.bytes),
            latency_ns: self.latency_ns.wrapping_add(other.latency_ns),
            max_latency_ns: self.max_latency_ns.max(other.max_latency_ns),
            min_latency_ns: least,
        }
    }
}

/// The counters of one channel.
#[derive(Default)]
pub(crate) struct ChannelStats([OpCounters; KINDS]);

impl ChannelStats {
    /// An I/O completed well. `bytes` is what it moved.
    #[inline]
    pub(crate) fn count(&self, opcode: Opcode, bytes: u64, took: Duration) {
        let kind = match opcode {
            Opcode::Read => 0,
            Opcode::Write | Opcode::CompareAndWrite => 1,
            Opcode::Unmap | Opcode::WriteZeroes => 2,
            _ => return,
        };
        self.0[kind].add(bytes, took.as_nanos() as u64);
    }

    fn get(&self) -> [OpStats; KINDS] {
        [self.0[0].get(), self.0[1].get(), self.0[2].get()]
    }
}

/// The counters of a nexus's channels.
#[derive(Default)]
pub(crate) struct StatsHub(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    channels: Vec<Arc<ChannelStats>>,
    /// What channels counted that are gone.
    retired: [OpStats; KINDS],
}

impl Inner {
    /// Folds in those whose channel is gone, so that the list is as long as there are channels.
    fn retire(&mut self) {
        let retired = &mut self.retired;
        self.channels.retain(|c| {
            let alive = Arc::strong_count(c) > 1;
            if !alive {
                add(retired, c);
            }
            alive
        });
    }
}

fn add(sum: &mut [OpStats; KINDS], channel: &ChannelStats) {
    for (sum, more) in sum.iter_mut().zip(channel.get()) {
        *sum = sum.plus(more);
    }
}

impl StatsHub {
    /// Counters for a new channel.
    pub(crate) fn channel(&self) -> Arc<ChannelStats> {
        let mut inner = self.lock();
        inner.retire();
        let stats = Arc::new(ChannelStats::default());
        inner.channels.push(stats.clone());
        stats
    }

    /// The sum over all channels there are and were.
    pub(crate) fn sum(&self) -> IoStats {
        let mut inner = self.lock();
        inner.retire();
        let mut sum = inner.retired;
        inner.channels.iter().for_each(|c| add(&mut sum, c));
        let [reads, writes, unmaps] = sum;
        IoStats { reads, writes, unmaps }
    }

    /// Counts from zero. An I/O that completes on another core at this moment may be counted before or after.
    pub(crate) fn reset(&self) {
        let mut inner = self.lock();
        inner.retired = Default::default();
        for counters in inner.channels.iter().flat_map(|c| &c.0) {
            // The number last: with 0 the channel takes the next I/O for the first.
            for counter in [
                &counters.bytes,
                &counters.latency_ns,
                &counters.max_latency_ns,
                &counters.min_latency_ns,
                &counters.ops,
            ] {
                counter.store(0, Ordering::Relaxed);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_summed_also_when_they_are_gone() {
        let hub = StatsHub::default();
        let (a, b) = (hub.channel(), hub.channel());
        let us = Duration::from_micros;
        a.count(Opcode::Read, 4096, us(30));
        b.count(Opcode::Read, 512, us(10));
        b.count(Opcode::CompareAndWrite, 512, us(7));
        b.count(Opcode::WriteZeroes, 8192, us(1));
        b.count(Opcode::Flush, 0, us(1));
        drop(a);
        let sum = hub.sum();
        let reads = OpStats {
            ops: 2,
            bytes: 4608,
            latency_ns: 40_000,
            max_latency_ns: 30_000,
            min_latency_ns: 10_000,
        };
        assert_eq!(sum.reads, reads);
        assert_eq!((sum.writes.ops, sum.writes.min_latency_ns, sum.unmaps.bytes), (1, 7000, 8192));
        drop(b);
        assert_eq!((hub.sum(), hub.sum()), (sum, sum));
        let c = hub.channel();
        c.count(Opcode::Read, 1, us(5));
        hub.reset();
        assert_eq!(hub.sum(), IoStats::default());
        c.count(Opcode::Read, 1, us(9));
        assert_eq!((hub.sum().reads.ops, hub.sum().reads.min_latency_ns), (1, 9000));
    }
}
