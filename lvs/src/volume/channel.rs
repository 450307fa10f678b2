//! The data side of a volume on its pool's home core.
//!
//! Needs `unsafe` to pass a submitter's promise on to the store.

use std::rc::Rc;
use std::sync::Arc;

use aio::device::Sleep;
use aio::{Busy, Completion, Io, IoChannel, IoStatus, Lent, Token, check, device::Cancel};

use super::Shared;
use crate::store::Store;

/// I/Os that one channel takes.
pub(crate) const CHANNEL_DEPTH: u32 = 1024;
/// Turns without any progress after which a channel that is dropped with I/O in flight gives its pool up.
const DROP_PATIENCE: u32 = 10_000_000;

/// See the module.
pub(super) struct VolumeChannel {
    store: Rc<Store>,
    volume: Arc<Shared>,
    queue: u32,
}

impl VolumeChannel {
    pub(super) fn open(store: Rc<Store>, volume: Arc<Shared>) -> Self {
        let queue = store.inner().open_queue(CHANNEL_DEPTH);
        Self { store, volume, queue }
    }

    /// False while the store is at work further up on the stack: dropping the channel has to wait.
    pub(super) fn can_end(&self) -> bool {
        self.store.is_free()
    }
}

impl IoChannel for VolumeChannel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        let mut inner = self.store.inner();
        let closed = inner.queue(self.queue).closed;
        let verdict = if closed {
            Err(check::CLOSED)
        } else if !self.volume.is_alive() {
            Err(check::REMOVED)
        } else {
            check::validate(io, &self.volume.geometry, self.volume.capabilities, self.volume.size())
        };
        match verdict {
            // SAFETY: as the caller promises.
            Ok(()) => unsafe { inner.submit(self.queue, &self.volume.target, io, token) }.inspect(|()| {
                let block_bytes = self.volume.geometry.block_bytes;
                self.volume.counters.count(io, block_bytes);
                self.volume.pool_counters.count(io, block_bytes);
            }),
            Err(status) => inner.refuse(self.queue, token, status),
        }
    }

    fn kick(&mut self) {
        // The store's own poller begins background work, once a turn.
        self.store.inner().publish();
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let mut inner = self.store.inner();
        inner.progress();
        let queue = inner.queue(self.queue);
        let count = queue.done.len().min(budget);
        out.extend(queue.done.drain(..count));
        queue.taken -= count as u32;
        count
    }

    fn take_ready(&mut self) -> bool {
        let mut inner = self.store.inner();
        let ready = inner.is_ready(self.queue);
        if ready {
            inner.queue(self.queue).refused = false;
        }
        ready
    }

    fn prepare_sleep(&mut self) -> Sleep {
        let mut inner = self.store.inner();
        let work = !inner.queue(self.queue).done.is_empty() || inner.is_ready(self.queue);
        // The store's own poller arms the devices.
        if work { Sleep::KeepPolling } else { Sleep::Armed }
    }

    fn cancel(&mut self, _token: Token) -> Cancel {
        Cancel::Unsupported
    }

    fn lent(&self, _token: Token) -> Lent<'_> {
        Lent { sg: &[], stable: true }
    }

    fn release(&mut self, _token: Token) {}

    fn close(&mut self) {
        self.store.inner().queue(self.queue).closed = true;
    }

    fn drained(&self) -> bool {
        self.store.inner().queue(self.queue).taken == 0
    }
}

impl Drop for VolumeChannel {
    /// Whoever drops a channel may free the memory of its I/Os, so what is in flight has to end first.
    fn drop(&mut self) {
        let mut inner = self.store.inner();
        let mut patience = DROP_PATIENCE;
        while inner.in_flight(self.queue) {
            // Again and again: what had read its edges is in line now, perhaps for room that no task can make meanwhile.
            inner.abandon(self.queue, IoStatus::ABORT_REQUESTED);
            inner.publish();
            patience = if inner.progress() > 0 { DROP_PATIENCE } else { patience - 1 };
            if patience == 0 {
                inner.give_up("a channel was dropped while a disk did not answer");
                break;
            }
        }
        inner.close_queue(self.queue);
    }
}
