//! What one worker does next: which unit, read or write. Pure: no I/O, no time.
//!
//! A *unit* is one I/O's worth of blocks (`--bs`), counted from the start of the worker's own part of the
//! device. A verifying worker is the only writer of its part, so it knows what every unit must hold.

use super::stamp::SplitMix;

/// The pattern of `--rw`.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[value(rename_all = "lower")]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Random reads
    RandRead,
    /// Random writes
    RandWrite,
    /// Random reads and writes, see --rwmixread
    RandRw,
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Sequential, reads and writes
    Rw,
}

impl Pattern {
    /// Whether it changes the device.
    pub fn writes(self) -> bool {
        !matches!(self, Self::RandRead | Self::Read)
    }

    fn random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }
}

/// One I/O to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Which unit of the worker's part.
    pub unit: u32,
    /// Write or read.
    pub write: bool,
}

/// Chooses steps such that no two in flight touch one unit.
#[derive(Debug)]
pub struct Plan {
    pattern: Pattern,
    read_percent: u8,
    units: u32,
    next_unit: u32,
    random: SplitMix,
    /// One bit a unit: in flight. Only where writes could meet other I/O on the same unit.
    busy: Vec<u64>,
    exclusive: bool,
}

impl Plan {
    /// `units` is at least 1. `exclusive`: never two I/Os on one unit at a time.
    pub fn new(pattern: Pattern, read_percent: u8, units: u32, seed: u64, exclusive: bool) -> Self {
        let words = if exclusive { (units as usize).div_ceil(64) } else { 0 };
        Self {
            pattern,
            read_percent: read_percent.min(100),
            units,
            next_unit: 0,
            random: SplitMix(seed),
            busy: vec![0; words],
            exclusive,
        }
    }

    /// The next step; `None` while all units are in flight. Call [`done`](Self::done) when it completed.
    pub fn take(&mut self) -> Option<Step> {
        let wanted = if self.pattern.random() {
            self.random.below(u64::from(self.units)) as u32
        } else {
            let unit = self.next_unit;
            self.next_unit = if unit + 1 == self.units { 0 } else { unit + 1 };
            unit
        };
        let unit = if self.exclusive { self.claim_from(wanted)? } else { wanted };
        let write = match self.pattern {
            Pattern::RandRead | Pattern::Read => false,
            Pattern::RandWrite | Pattern::Write => true,
            Pattern::RandRw | Pattern::Rw => self.random.below(100) >= u64::from(self.read_percent),
        };
        Some(Step { unit, write })
    }

    /// The step on `unit` completed.
    pub fn done(&mut self, unit: u32) {
        if self.exclusive {
            self.busy[unit as usize / 64] &= !(1 << (unit % 64));
        }
    }

    /// The first unit from `wanted` on that is not in flight. Depth is far below the number of units in any
    /// sensible run, so this hardly ever takes a second look.
    fn claim_from(&mut self, wanted: u32) -> Option<u32> {
        let mut unit = wanted;
        loop {
            let (word, bit) = (unit as usize / 64, 1_u64 << (unit % 64));
            if self.busy[word] & bit == 0 {
                self.busy[word] |= bit;
                return Some(unit);
            }
            unit = if unit + 1 == self.units { 0 } else { unit + 1 };
            if unit == wanted {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_plans_never_touch_a_unit_twice() {
        let mut plan = Plan::new(Pattern::RandRw, 50, 100, 1, true);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            assert!(seen.insert(plan.take().unwrap().unit));
        }
        assert_eq!(plan.take(), None);
        plan.done(42);
        assert_eq!(plan.take().unwrap().unit, 42);
    }

    #[test]
    fn sequential_plans_wrap() {
        let mut plan = Plan::new(Pattern::Write, 0, 3, 1, false);
        let units: Vec<u32> = (0..5).map(|_| plan.take().unwrap().unit).collect();
        assert_eq!(units, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn mixtures_have_their_share_of_reads() {
        let mut plan = Plan::new(Pattern::RandRw, 70, 1000, 1, false);
        let reads = (0..10_000).filter(|_| !plan.take().unwrap().write).count();
        assert!((6_800..7_200).contains(&reads), "{reads}");
        let mut plan = Plan::new(Pattern::Rw, 100, 10, 1, false);
        assert!((0..100).all(|_| !plan.take().unwrap().write));
    }

    #[test]
    fn the_same_seed_makes_the_same_plan() {
        let steps = |seed| {
            let mut plan = Plan::new(Pattern::RandRw, 50, 1 << 20, seed, false);
            (0..50).map(|_| plan.take().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }
}
