//! How good or bad the simulated network is.

use std::ops::RangeInclusive;

use crate::rng::Rng;

/// Delays, sizes and fault rates. Rates are per send, in parts per million.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// One-way delay of a segment. Never zero: what is sent in one turn is seen in a later one.
    pub delay_ns: RangeInclusive<u64>,
    /// Bytes that fit between a sender and a receiver which does not read.
    pub window_bytes: RangeInclusive<u64>,
    /// How often a send or receive handles only a random part of what it could.
    pub split_ppm: u32,
    /// How often a send finds nothing free although there was room.
    pub would_block_ppm: u32,
    /// How often a send kills its connection instead.
    pub reset_ppm: u32,
    /// How often a send makes its connection stand still for a while.
    pub stall_ppm: u32,
    /// For how long.
    pub stall_ns: RangeInclusive<u64>,
    /// How often a send flips one bit on the way.
    pub corrupt_ppm: u32,
    /// The first bytes of each direction are never corrupted: connection set-up carries no digest.
    pub corrupt_after_bytes: u64,
    /// Connections that wait for `accept` before further ones are refused.
    pub backlog: usize,
}

impl NetConfig {
    /// Short delays, whole segments, no faults.
    pub fn calm() -> Self {
        Self {
            delay_ns: 1_000..=20_000,
            window_bytes: 262_144..=262_144,
            split_ppm: 0,
            would_block_ppm: 0,
            reset_ppm: 0,
            stall_ppm: 0,
            stall_ns: 0..=0,
            corrupt_ppm: 0,
            corrupt_after_bytes: 128,
            backlog: 1024,
        }
    }

    /// Everything that TCP may do to a program without failing: odd segmentation, small windows, jitter.
    pub fn choppy(rng: &mut Rng) -> Self {
        let window = *rng.pick(&[1_024, 4_096, 16_384, 131_072]);
        Self {
            delay_ns: 1..=rng.between(1_000, 300_000),
            window_bytes: window / 2 + 1..=window,
            split_ppm: rng.below(500_000) as u32,
            would_block_ppm: rng.below(100_000) as u32,
            stall_ppm: rng.below(2_000) as u32,
            stall_ns: 100_000..=5_000_000,
            ..Self::calm()
        }
    }

    /// [`choppy`](Self::choppy), and connections also die.
    pub fn hostile(rng: &mut Rng) -> Self {
        Self { reset_ppm: rng.below(3_000) as u32, ..Self::choppy(rng) }
    }
}
