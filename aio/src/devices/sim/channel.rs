//! The data side of a simulated disk: I/Os wait for their time, then the medium decides.
//!
//! # Unsafe
//! Copies between callers' lists and the simulated medium, under `submit`'s contract.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use super::Shared;
use super::medium::Medium;
use crate::device::{Busy, Cancel, Geometry, IoChannel, Sleep};
use crate::devices::token_map::TokenMap;
use crate::io::{BlockCount, BlockRange, Completion, Io, IoFlags, Lba, Lent, Opcode, Token};
use crate::sg::{SgEntry, total_bytes};
use crate::time::Instant;
use crate::{IoStatus, check, sgmem};

/// An accepted I/O.
struct Pending {
    token: Token,
    opcode: Opcode,
    fua: bool,
    lba: Lba,
    blocks: BlockCount,
    /// Where a read goes, what a compare compares.
    sg: Vec<SgEntry>,
    ranges: Vec<BlockRange>,
    /// The medium's name for the write that this I/O is.
    write: Option<u64>,
    /// The write half of a Compare and Write: it shows no effect before the comparison.
    replacement: Vec<u8>,
}

pub(super) struct Channel {
    shared: Arc<Shared>,
    geometry: Geometry,
    slots: Vec<Option<Pending>>,
    free: Vec<usize>,
    by_token: TokenMap<usize>,
    /// When each I/O is due; a sequence number keeps equal times in order.
    due: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    next_seq: u64,
    ready: VecDeque<Completion>,
    busy_until: Option<Instant>,
    refused: bool,
    closed: bool,
}

impl Channel {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let depth = shared.disk.config.queue_depth.max(1) as usize;
        Self {
            geometry: shared.geometry(),
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            by_token: TokenMap::new(depth),
            due: BinaryHeap::new(),
            next_seq: 0,
            ready: VecDeque::new(),
            busy_until: None,
            refused: false,
            closed: false,
            shared,
        }
    }

    fn now(&self) -> Instant {
        (self.shared.disk.time)()
    }

    fn stormy(&self) -> bool {
        self.busy_until.is_some_and(|until| self.now() < until)
    }

    fn has_room(&self) -> bool {
        // Completions that were not polled take their place until then.
        self.ready.len() < self.free.len() && !self.stormy()
    }

    fn admit(&self, io: &Io<'_>) -> Result<(), IoStatus> {
        if self.closed {
            return Err(check::CLOSED);
        }
        if !self.shared.alive() {
            return Err(check::REMOVED);
        }
        check::validate(io, &self.geometry, self.shared.capabilities(), self.shared.size())
    }

    /// Puts a valid I/O in line.
    ///
    /// # Safety
    /// The lists are valid as `submit` demands.
    unsafe fn enqueue(&mut self, io: &Io<'_>, token: Token, slot: usize) {
        let now = self.now();
        let mut state = self.shared.disk.lock();
        let due = Instant::from_ns(now.as_ns().saturating_add(state.medium.draw_latency_ns()));
        // SAFETY: the caller promises both lists valid for reads in these opcodes.
        let copy = |list: &[SgEntry]| unsafe { copy_of(list) };
        let write = (io.opcode == Opcode::Write).then(|| state.medium.begin_write(io.lba.0, copy(io.sg)));
        let replacement = if io.opcode == Opcode::CompareAndWrite { copy(io.second) } else { Vec::new() };
        drop(state);
        let pending = Pending {
            token,
            opcode: io.opcode,
            fua: io.flags.contains(IoFlags::FUA),
            lba: io.lba,
            blocks: io.blocks,
            sg: io.sg.to_vec(),
            ranges: io.ranges.to_vec(),
            write,
            replacement,
        };
        self.slots[slot] = Some(pending);
        self.by_token.insert(token, slot);
        self.next_seq += 1;
        self.due.push(Reverse((due, self.next_seq, slot)));
    }

    /// Carries out what is due; without power everything fails at once.
    fn advance(&mut self) {
        let (now, alive) = (self.now(), self.shared.alive());
        while let Some(Reverse((due, _, slot))) = self.due.peek().copied() {
            if due > now && alive {
                break;
            }
            self.due.pop();
            let Some(pending) = self.slots[slot].take() else {
                // Cancelled: its completion went another way, the slot is free from now on.
                self.free.push(slot);
                continue;
            };
            self.by_token.remove(pending.token);
            self.free.push(slot);
            let mut state = self.shared.disk.lock();
            let status = if alive {
                // SAFETY: the submitter keeps the lists valid until the completion, which only follows now.
                unsafe { execute(&mut state.medium, &pending, self.geometry.block_bytes) }
            } else {
                pending.write.into_iter().for_each(|write| state.medium.abandon_write(write));
                check::REMOVED
            };
            self.ready.push_back(Completion::new(pending.token, status));
        }
    }
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        if !self.has_room() {
            self.refused = true;
            return Err(Busy);
        }
        let storm = self.shared.disk.lock().medium.draw_storm_ns();
        if let Some(ns) = storm {
            self.busy_until = Some(Instant::from_ns(self.now().as_ns().saturating_add(ns)));
            self.refused = true;
            return Err(Busy);
        }
        match self.admit(io) {
            Err(status) => self.ready.push_back(Completion::new(token, status)),
            Ok(()) => {
                let slot = self.free.pop().expect("invariant: has_room counted the free slots");
                // SAFETY: the caller's promise, passed on.
                unsafe { self.enqueue(io, token, slot) };
            }
        }
        Ok(())
    }

    fn kick(&mut self) {}

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        self.advance();
        let n = budget.min(self.ready.len());
        out.extend(self.ready.drain(..n));
        n
    }

    fn take_ready(&mut self) -> bool {
        let ready = self.refused && self.has_room();
        self.refused &= !ready;
        ready
    }

    fn prepare_sleep(&mut self) -> Sleep {
        self.advance();
        if !self.ready.is_empty() || (self.refused && self.has_room()) {
            return Sleep::KeepPolling;
        }
        let due = self.due.peek().map(|Reverse((due, ..))| *due);
        let storm = self.busy_until.filter(|until| self.refused && *until > self.now());
        match due.into_iter().chain(storm).min() {
            Some(until) => Sleep::Until(until),
            None => Sleep::Armed,
        }
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        let Some(slot) = self.by_token.remove(token) else { return Cancel::TooLate };
        if let Some(write) = self.slots[slot].take().and_then(|pending| pending.write) {
            self.shared.disk.lock().medium.abandon_write(write);
        }
        self.ready.push_back(Completion::new(token, IoStatus::ABORT_REQUESTED));
        Cancel::Cancelled
    }

    fn lent(&self, _token: Token) -> Lent<'_> {
        Lent { sg: &[], stable: true }
    }

    fn release(&mut self, _token: Token) {}

    fn close(&mut self) {
        self.closed = true;
    }

    fn drained(&self) -> bool {
        self.ready.is_empty() && self.slots.iter().all(Option::is_none)
    }
}

impl Drop for Channel {
    /// Some of the writes in flight still happen, as they do when a host lets go of a disk.
    fn drop(&mut self) {
        let alive = self.shared.alive();
        let mut state = self.shared.disk.lock();
        for pending in self.slots.iter_mut().filter_map(Option::take) {
            let Some(write) = pending.write else { continue };
            if alive && state.medium.coin() {
                state.medium.finish_write(write, pending.fua);
            } else {
                state.medium.abandon_write(write);
            }
        }
    }
}

/// The list's bytes.
///
/// # Safety
/// The list is valid for reads.
unsafe fn copy_of(list: &[SgEntry]) -> Vec<u8> {
    let mut data = vec![0; total_bytes(list) as usize];
    // SAFETY: the caller's promise, and `data` is as long.
    unsafe { sgmem::gather(list, data.as_mut_ptr()) };
    data
}

/// Does what `io` asks of the medium.
///
/// # Safety
/// The lists of `io` are still valid as `submit` demands.
unsafe fn execute(medium: &mut Medium, io: &Pending, block_bytes: u32) -> IoStatus {
    let bytes = |blocks: u64| vec![0; (blocks * u64::from(block_bytes)) as usize];
    match io.opcode {
        Opcode::Read => {
            let mut data = bytes(io.blocks.0);
            let status = medium.read(io.lba.0, &mut data);
            if status.is_success() {
                // SAFETY: valid for writes by the caller's promise, and `data` is as long as the list.
                unsafe { sgmem::scatter(data.as_ptr(), &io.sg) };
            }
            status
        }
        Opcode::Compare | Opcode::CompareAndWrite => {
            let mut data = bytes(io.blocks.0);
            let status = medium.read(io.lba.0, &mut data);
            if !status.is_success() {
                return status;
            }
            // SAFETY: valid for reads by the caller's promise, and `data` is as long as the list.
            if !unsafe { sgmem::equal(&io.sg, data.as_ptr()) } {
                return IoStatus::COMPARE_FAILURE;
            }
            if io.opcode == Opcode::Compare {
                return status;
            }
            let write = medium.begin_write(io.lba.0, io.replacement.clone());
            medium.finish_write(write, io.fua)
        }
        Opcode::Write => match io.write {
            Some(write) => medium.finish_write(write, io.fua),
            None => IoStatus::INTERNAL_ERROR,
        },
        Opcode::Flush => medium.flush(),
        Opcode::WriteZeroes => medium.zero(io.lba.0, io.blocks.0, io.fua),
        Opcode::Unmap => first_error(io.ranges.iter().map(|r| medium.zero(r.start.0, r.blocks.0, false))),
        Opcode::Verify => medium.verify(io.lba.0, io.blocks.0),
        Opcode::Copy => {
            let mut target = io.lba.0;
            first_error(io.ranges.iter().map(|range| {
                let mut data = bytes(range.blocks.0);
                let status = medium.read(range.start.0, &mut data);
                if !status.is_success() {
                    return status;
                }
                let write = medium.begin_write(target, data);
                target += range.blocks.0;
                medium.finish_write(write, io.fua)
            }))
        }
    }
}

/// Goes on until something fails.
fn first_error(mut results: impl Iterator<Item = IoStatus>) -> IoStatus {
    results.find(|status| !status.is_success()).unwrap_or(IoStatus::SUCCESS)
}
