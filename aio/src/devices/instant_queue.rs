//! The data side of devices that finish their work at submission: their completions wait here for the next
//! poll, and what they lent is remembered until it is released.

use std::collections::VecDeque;

use super::token_map::TokenMap;
use crate::IoStatus;
use crate::device::{Busy, Sleep};
use crate::io::{Completion, Lent, Token};
use crate::sg::SgEntry;

/// A bounded queue of completions and loans; nothing allocates after construction.
///
/// A slot is taken from submission until the completion was polled and, when lent, released.
pub(super) struct InstantQueue {
    ready: VecDeque<Completion>,
    loans: TokenMap<SgEntry>,
    /// Loans whose completion still waits in `ready`: they take one slot, not two.
    loans_waiting: usize,
    /// Accepted I/Os that are not done yet.
    working: usize,
    depth: usize,
    refused: bool,
    closed: bool,
}

impl InstantQueue {
    pub(super) fn new(depth: u32) -> Self {
        let depth = depth as usize;
        Self {
            ready: VecDeque::with_capacity(depth),
            loans: TokenMap::new(depth),
            loans_waiting: 0,
            working: 0,
            depth,
            refused: false,
            closed: false,
        }
    }

    /// Makes sure of a slot for one more completion, or of a ready bit later.
    #[inline]
    pub(super) fn reserve(&mut self) -> Result<(), Busy> {
        if self.taken() < self.depth {
            return Ok(());
        }
        self.refused = true;
        Err(Busy)
    }

    /// Queues the completion of a reserved slot.
    #[inline]
    pub(super) fn complete(&mut self, token: Token, status: IoStatus) {
        self.ready.push_back(Completion::new(token, status));
    }

    /// Keeps a reserved slot for work that goes on.
    pub(super) fn begin_work(&mut self) {
        self.working += 1;
    }

    /// Queues the completion of such work.
    pub(super) fn complete_work(&mut self, token: Token, status: IoStatus) {
        self.working -= 1;
        self.complete(token, status);
    }

    /// Queues the completion of a reserved slot, together with the memory that answers it.
    #[inline]
    pub(super) fn lend(&mut self, token: Token, entry: SgEntry) {
        self.loans.insert(token, entry);
        self.loans_waiting += 1;
        self.ready.push_back(Completion { lent: true, ..Completion::new(token, IoStatus::SUCCESS) });
    }

    #[inline]
    pub(super) fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let n = budget.min(self.ready.len());
        for completion in self.ready.drain(..n) {
            self.loans_waiting -= usize::from(completion.lent);
            out.push(completion);
        }
        n
    }

    #[inline]
    pub(super) fn take_ready(&mut self) -> bool {
        let ready = self.refused && self.taken() < self.depth;
        self.refused &= !ready;
        ready
    }

    pub(super) fn prepare_sleep(&self) -> Sleep {
        let can_retry = self.refused && self.taken() < self.depth;
        if self.ready.is_empty() && !can_retry { Sleep::Armed } else { Sleep::KeepPolling }
    }

    #[inline]
    pub(super) fn lent(&self, token: Token, stable: bool) -> Lent<'_> {
        let sg = self.loans.get(token).map_or(&[][..], core::slice::from_ref);
        Lent { sg, stable }
    }

    #[inline]
    pub(super) fn release(&mut self, token: Token) {
        self.loans.remove(token);
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn drained(&self) -> bool {
        self.taken() == 0
    }

    fn taken(&self) -> usize {
        self.ready.len() + self.working + self.loans.len() - self.loans_waiting
    }
}
