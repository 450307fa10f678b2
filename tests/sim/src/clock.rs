//! Virtual time: moves only when the world says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aio::{Clock, Instant};

/// A clock that stands still until it is advanced. Shared by every reactor of a world; atomic only because devices
/// that ask for the time may be shared by threads elsewhere.
#[derive(Debug)]
pub struct SimClock {
    now_ns: Arc<AtomicU64>,
}

impl SimClock {
    /// Starts one second after the origin, so that code which subtracts short times from `now` is not saved
    /// by saturation at zero.
    pub fn new() -> Self {
        Self { now_ns: Arc::new(AtomicU64::new(1_000_000_000)) }
    }

    /// Moves on by `by`.
    pub fn advance(&self, by: Duration) {
        self.advance_to(self.now() + by);
    }

    /// Moves on to `to`; never back.
    pub fn advance_to(&self, to: Instant) {
        self.now_ns.fetch_max(to.as_ns(), Ordering::Relaxed);
    }

    /// The same clock as a function, for devices.
    pub fn source(&self) -> Arc<dyn Fn() -> Instant + Send + Sync> {
        let now_ns = self.now_ns.clone();
        Arc::new(move || Instant::from_ns(now_ns.load(Ordering::Relaxed)))
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        Instant::from_ns(self.now_ns.load(Ordering::Relaxed))
    }
}
