//! Clocks: the system's monotonic one, and one that only moves when told.

use core::time::Duration;
use std::cell::Cell;

use rustix::time::{ClockId, clock_gettime};

use crate::time::{Clock, Instant};

/// `CLOCK_MONOTONIC`, read without a syscall where the kernel offers that.
#[derive(Clone, Copy, Default, Debug)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn now(&self) -> Instant {
        let t = clock_gettime(ClockId::Monotonic);
        // Never negative, and nanoseconds since boot fit for centuries.
        Instant::from_ns(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
    }
}

/// A clock for simulations and tests: stands still until [`advance`](Self::advance).
#[derive(Default, Debug)]
pub struct ManualClock(Cell<Instant>);

impl ManualClock {
    /// A clock that shows `start`.
    pub const fn new(start: Instant) -> Self {
        Self(Cell::new(start))
    }

    /// Moves the time forward.
    pub fn advance(&self, by: Duration) {
        self.0.set(self.0.get() + by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_moves_forward() {
        let a = MonotonicClock.now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(MonotonicClock.now().since(a) >= Duration::from_millis(2));
    }
}
