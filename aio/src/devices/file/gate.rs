//! Makes Compare and Write on a file one step against changes from all cores.
//!
//! Each channel counts its changes in flight in a number of its own. Compare and Write closes the gate for the
//! whole device and waits until all counts are zero; changes that come meanwhile wait in their channels. Costs
//! a plain write one store, one fence and one load. Compare and Write is rare (cluster software locks with
//! it), so that stopping the device's other changes for its two transfers is fine.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by all channels of a device.
#[derive(Default)]
pub(super) struct Gate {
    closed: AtomicBool,
    counts: Mutex<Vec<Arc<Count>>>,
}

/// On cache lines of its own: only its channel writes it.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicU32);

/// One channel's side of the gate.
pub(super) struct Pass {
    gate: Arc<Gate>,
    count: Arc<Count>,
}

impl Pass {
    pub(super) fn new(gate: &Arc<Gate>) -> Self {
        let count = Arc::new(Count::default());
        gate.counts.lock().unwrap_or_else(PoisonError::into_inner).push(count.clone());
        Self { gate: gate.clone(), count }
    }

    /// Counts one more change in flight; false = the gate is closed, try again later.
    #[inline]
    pub(super) fn enter(&self) -> bool {
        self.count.0.store(self.count.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // Store before load, as in `close` on the other side: one of the two sees the other.
        fence(Ordering::SeqCst);
        if !self.gate.closed.load(Ordering::Relaxed) {
            return true;
        }
        self.leave();
        false
    }

    /// A change completed.
    #[inline]
    pub(super) fn leave(&self) {
        // Release: its effects come before whoever finds the count at zero.
        self.count.0.store(self.count.0.load(Ordering::Relaxed) - 1, Ordering::Release);
    }

    /// Closes the gate; false = someone else has.
    pub(super) fn close(&self) -> bool {
        let closed =
            self.gate.closed.compare_exchange(false, true, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        fence(Ordering::SeqCst);
        closed
    }

    /// With the gate closed: true when no change is in flight any more.
    pub(super) fn quiet(&self) -> bool {
        let counts = self.gate.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().all(|count| count.0.load(Ordering::Acquire) == 0)
    }

    /// Opens the gate that this channel closed.
    pub(super) fn open(&self) {
        self.gate.closed.store(false, Ordering::Release);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|count| !Arc::ptr_eq(count, &self.count));
    }
}
