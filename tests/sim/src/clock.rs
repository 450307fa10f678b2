//! Virtual time: moves only when the world says so.

use std::cell::Cell;
use std::time::Duration;

use aio::{Clock, Instant};

/// A clock that stands still until it is advanced. Shared by every reactor of a world.
#[derive(Debug)]
pub struct SimClock {
    now: Cell<Instant>,
}

impl SimClock {
    /// Starts one second after the origin, so that code which subtracts short times from `now` is not saved
    /// by saturation at zero.
    pub fn new() -> Self {
        Self { now: Cell::new(Instant::from_ns(1_000_000_000)) }
    }

    /// Moves on by `by`.
    pub fn advance(&self, by: Duration) {
        self.now.set(self.now.get() + by);
    }

    /// Moves on to `to`; never back.
    pub fn advance_to(&self, to: Instant) {
        self.now.set(self.now.get().max(to));
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        self.now.get()
    }
}
