//! What a device was asked to do: counted by each channel for itself, summed when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aio::{Io, Opcode};

/// I/Os that a device took, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DeviceStats {
    /// Reads.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes, Compare and Write included.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Unmaps.
    pub unmaps: u64,
    /// Bytes of their ranges.
    pub unmapped_bytes: u64,
}

impl DeviceStats {
    fn add(&mut self, c: &ChannelStats) {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        self.reads += get(&c.reads);
        self.read_bytes += get(&c.read_bytes);
        self.writes += get(&c.writes);
        self.written_bytes += get(&c.written_bytes);
        self.unmaps += get(&c.unmaps);
        self.unmapped_bytes += get(&c.unmapped_bytes);
    }
}

/// Written by one channel only, by plain loads and stores.
#[derive(Default)]
pub(super) struct ChannelStats {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    unmaps: AtomicU64,
    unmapped_bytes: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl ChannelStats {
    /// A valid I/O was taken.
    pub(super) fn count(&self, io: &Io<'_>, block_bytes: u32) {
        let bytes = |blocks: u64| blocks.wrapping_mul(block_bytes.into());
        match io.opcode {
            Opcode::Read => {
                add(&self.reads, 1);
                add(&self.read_bytes, bytes(io.blocks.0));
            }
            Opcode::Write | Opcode::CompareAndWrite => {
                add(&self.writes, 1);
                add(&self.written_bytes, bytes(io.blocks.0));
            }
            Opcode::Unmap => {
                add(&self.unmaps, 1);
                add(&self.unmapped_bytes, bytes(io.ranges.iter().map(|r| r.blocks.0).sum()));
            }
            _ => {}
        }
    }
}

/// The counters of a device's channels.
#[derive(Default)]
pub(super) struct StatsHub {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    channels: Vec<Arc<ChannelStats>>,
    /// What channels counted that are gone.
    retired: DeviceStats,
}

impl Inner {
    /// Folds in those whose channel is gone, so that the list is as long as there are channels.
    fn retire(&mut self) {
        let retired = &mut self.retired;
        self.channels.retain(|c| {
            let alive = Arc::strong_count(c) > 1;
            if !alive {
                retired.add(c);
            }
            alive
        });
    }
}

impl StatsHub {
    /// Counters for a new channel.
    pub(super) fn channel(&self) -> Arc<ChannelStats> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.retire();
        let stats = Arc::new(ChannelStats::default());
        inner.channels.push(stats.clone());
        stats
    }

    /// The sum over all channels there are and were.
    pub(super) fn sum(&self) -> DeviceStats {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.retire();
        let mut sum = inner.retired;
        inner.channels.iter().for_each(|c| sum.add(c));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aio::{BlockCount, BlockRange, Lba};

    #[test]
    fn channels_that_are_gone_stay_in_the_sum() {
        let hub = StatsHub::default();
        let (a, b) = (hub.channel(), hub.channel());
        a.count(&Io::read(Lba(0), BlockCount(8), &[]), 512);
        b.count(&Io::write(Lba(0), BlockCount(2), &[]), 512);
        b.count(&Io::unmap(&[BlockRange { start: Lba(0), blocks: BlockCount(4) }]), 512);
        drop(a);
        let want = DeviceStats {
            reads: 1,
            read_bytes: 4096,
            writes: 1,
            written_bytes: 1024,
            unmaps: 1,
            unmapped_bytes: 2048,
        };
        assert_eq!(hub.sum(), want);
        drop(b);
        assert_eq!((hub.sum(), hub.sum()), (want, want));
        assert!(hub.inner.lock().unwrap().channels.is_empty());
    }
}
