//! A child's channel on one core.

use core::time::Duration;
use std::collections::VecDeque;

use aio::IoChannel;

/// Weight of a new latency: an eighth.
const SMOOTHING_SHIFT: u32 = 3;

/// See the module.
pub(super) struct Link {
    pub(super) channel: Box<dyn IoChannel>,
    /// First block of the data.
    pub(super) offset_blocks: u64,
    /// Unmapped blocks read as zeroes; without it, zeroes are written instead.
    pub(super) unmaps: bool,
    /// No fabric in between: read from it first.
    pub(super) local: bool,
    /// It is no member any more, and goes when it has answered everything.
    pub(super) leaving: bool,
    /// Slots that wait for room.
    pub(super) backlog: VecDeque<u32>,
    /// I/Os that it has.
    pub(super) in_flight: u32,
    /// Smoothed latency of reads, in nanoseconds.
    latency_ns: u64,
}

impl Link {
    pub(super) fn new(channel: Box<dyn IoChannel>, offset_blocks: u64, unmaps: bool, local: bool) -> Self {
        Self {
            channel,
            offset_blocks,
            unmaps,
            local,
            leaving: false,
            backlog: VecDeque::new(),
            in_flight: 0,
            latency_ns: 0,
        }
    }

    /// A read took `latency`.
    #[inline]
    pub(super) fn learn(&mut self, latency: Duration) {
        let sample = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX >> SMOOTHING_SHIFT);
        let old = self.latency_ns;
        self.latency_ns = old - (old >> SMOOTHING_SHIFT) + (sample >> SMOOTHING_SHIFT);
    }

    /// How long a read would wait here, for comparison only. Children whose latency is below the clock's resolution are told
    /// apart by what they have in flight.
    #[inline]
    pub(super) fn cost(&self) -> (bool, u64) {
        let waiting = u64::from(self.in_flight) + self.backlog.len() as u64 + 1;
        (!self.local, waiting.saturating_mul(self.latency_ns.max(1_000)))
    }
}
