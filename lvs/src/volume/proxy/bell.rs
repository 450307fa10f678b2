//! Wakes a core that sleeps, and only then.
//!
//! The sleeper says that it sleeps, and looks at its queue again; the other side publishes, and looks whether the
//! sleeper sleeps. On both sides that is a store followed by a load of something else, which a processor may let
//! overtake it: the sleeper could miss what was published while the publisher misses the sleep, and the I/O would lie
//! there. Therefore a sequentially consistent fence stands between the two on both sides. Of two such fences one comes
//! first. If it is the sleeper's, the publisher's load sees the flag and it wakes; if it is the publisher's, the
//! sleeper's look sees what was published and it does not sleep.
//!
//! A wake-up makes the core do a whole turn, also when it comes between the sleeper's look and the wait itself (see
//! [`CoreHandle::wake`]), so the flag is taken down by who wakes: one wake-up for each sleep.

use core::sync::atomic::{AtomicBool, Ordering, fence};

use aio::CoreHandle;

use super::ring::Padded;

/// See the module. One for each direction.
pub(super) struct Bell {
    /// The core sleeps, or is about to.
    sleeps: Padded<AtomicBool>,
    core: CoreHandle,
}

impl Bell {
    /// Wakes `core`.
    pub(super) fn new(core: CoreHandle) -> Self {
        Self { sleeps: Padded::default(), core }
    }

    /// The sleeper: call it, then look at the queue a last time.
    pub(super) fn arm(&self) {
        self.sleeps.0.store(true, Ordering::Relaxed);
        // Pairs with the one in `ring`; see the module.
        fence(Ordering::SeqCst);
    }

    /// The sleeper is awake. What it does not see yet of a `ring` at the same time costs one wake-up too many.
    #[inline]
    pub(super) fn disarm(&self) {
        if self.sleeps.0.load(Ordering::Relaxed) {
            self.sleeps.0.store(false, Ordering::Relaxed);
        }
    }

    /// The other side, after it published.
    #[inline]
    pub(super) fn ring(&self) {
        // Pairs with the one in `arm`; see the module.
        fence(Ordering::SeqCst);
        if self.sleeps.0.load(Ordering::Relaxed) {
            self.sleeps.0.store(false, Ordering::Relaxed);
            self.core.wake();
        }
    }

    /// Whether or not it sleeps: for news that come once.
    pub(super) fn ring_always(&self) {
        self.core.wake();
    }
}
