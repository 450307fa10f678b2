//! What the reactor drives.

use crate::device::Sleep;
use crate::time::Instant;

/// A source of work on one core: a target's connections, an initiator's queues, a background job.
///
/// Each turn the reactor calls `poll` on every poller, then `kick` on every poller. When nobody had work for
/// the spin window it calls `prepare_sleep` on all, and sleeps only if nobody answers
/// [`Sleep::KeepPolling`].
pub trait Poller {
    /// Does at most a bounded share of the work that is there; returns how many items were done (0 = idle).
    /// `now` is the turn's one clock reading.
    fn poll(&mut self, now: Instant) -> usize;

    /// Publishes what the turn produced: gathered sends, doorbells, ring submissions.
    fn kick(&mut self);

    /// Arms every wake-up source it owns and looks a last time.
    fn prepare_sleep(&mut self, now: Instant) -> Sleep;

    /// True when the reactor may drop it.
    fn finished(&self) -> bool {
        false
    }
}
