//! One I/O's way to the children and back.
//!
//! Needs `unsafe` to pass a submitter's promise on: the children's I/Os name the memory of the slot's, which completes
//! only when none of them is in flight any more, and the children's channels are dropped before this one is.

use core::time::Duration;

use aio::{BlockRange, Io, IoFlags, IoStatus, Lba, Opcode};

use super::inner::{Gate, Inner};
use super::link::Link;
use super::slot::{Slot, Step};
use crate::child::{Mask, places};

/// Turns in which waiting slots ask for their blocks again.
const MAX_RETRIES: usize = 64;

/// How long a slot waits before it asks for its regions' bits again.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// What says that a child cannot be reached, rather than that it refuses.
pub(crate) fn is_gone(status: IoStatus) -> bool {
    status.is_path() || status.is(IoStatus::NAMESPACE_NOT_READY) || status.is(IoStatus::ABORT_REQUESTED)
}

/// What says that another nexus has taken the child over.
pub(crate) fn is_conflict(status: IoStatus) -> bool {
    status.is(IoStatus::RESERVATION_CONFLICT)
}

/// What says that blocks of a child are bad, and nothing else of it.
fn is_bad_media(status: IoStatus) -> bool {
    status.sct() == nvme::status::sct::MEDIA && !status.is(IoStatus::COMPARE_FAILURE)
}

impl Inner {
    /// A slot that was just filled.
    #[inline]
    pub(super) fn start(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.opcode == Opcode::Unmap {
            let Some(range) = slot.ranges.pop() else { return self.complete(index, IoStatus::SUCCESS, 0) };
            slot.at = range;
        }
        if slot.opcode != Opcode::Flush && slot.at.blocks.0 == 0 {
            return self.complete(index, IoStatus::SUCCESS, 0);
        }
        if slot.needs_hold() {
            slot.hold = self.shared.locks.hold(slot.at);
            if !self.shared.locks.advance(&mut slot.hold) {
                slot.waits = true;
                self.waiting.push_back(index);
                return;
            }
        }
        self.launch(index);
    }

    /// Slots that wait for their blocks ask again.
    pub(super) fn retry_holds(&mut self) {
        for _ in 0..self.waiting.len().min(MAX_RETRIES) {
            let Some(index) = self.waiting.pop_front() else { return };
            let slot = &mut self.slots[index as usize];
            if self.shared.locks.advance(&mut slot.hold) {
                slot.waits = false;
                self.launch(index);
            } else {
                self.waiting.push_back(index);
            }
        }
    }

    /// Begins the slot's step: everything it needs is held.
    #[inline]
    pub(super) fn launch(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.begin();
        let targets = match slot.step {
            Step::Change if slot.opcode == Opcode::Flush => self.members,
            Step::Change => {
                let intent = &self.shared.intent;
                if intent.is_on() && self.members != 0 && !intent.admit(slot.at) {
                    return self.await_bits(index);
                }
                self.logs.mark(slot.at);
                self.members
            }
            Step::Read | Step::Compare => self.choose(0),
        };
        if targets == 0 {
            // Nobody is left: the home core knows, and decides what becomes of those that wait.
            return self.park(index);
        }
        self.send(index, targets);
    }

    /// The regions that the slot changes have no bits on the children yet: it waits in line, and asks again after a while.
    #[cold]
    fn await_bits(&mut self, index: u32) {
        let now = self.core.now();
        let slot = &mut self.slots[index as usize];
        slot.waits = true;
        if slot.asked.is_none_or(|at| now.since(at) >= ASK_AGAIN) {
            slot.asked = Some(now);
            let at = slot.at;
            self.note_wanted(at);
        }
        self.waiting.push_back(index);
    }

    /// The child to read from next, of those that are in sync and not in `tried`.
    #[inline]
    fn choose(&self, tried: Mask) -> Mask {
        let candidates = self.synced & !tried;
        if candidates & candidates.wrapping_sub(1) == 0 {
            return candidates;
        }
        let cost = |place: &usize| self.links[*place].as_ref().map_or((true, u64::MAX), Link::cost);
        places(candidates).min_by_key(cost).map_or(0, |place| 1 << place)
    }

    #[inline]
    fn send(&mut self, index: u32, targets: Mask) {
        let slot = &mut self.slots[index as usize];
        // All first: an answer must not find the slot complete before the last child was asked.
        slot.pending |= targets;
        slot.started = self.core.now();
        for place in places(targets) {
            let Some(link) = &mut self.links[place] else { continue };
            if !link.backlog.is_empty() || !offer(slot, link, index, place) {
                link.backlog.push_back(index);
            }
        }
    }

    /// The child has room: offers what waits for it.
    pub(super) fn drain_backlog(&mut self, place: usize) {
        let Some(link) = &mut self.links[place] else { return };
        while let Some(&index) = link.backlog.front() {
            let slot = &mut self.slots[index as usize];
            if slot.pending & 1 << place != 0 && !offer(slot, link, index, place) {
                return;
            }
            link.backlog.pop_front();
        }
    }

    /// A child failed at a slot.
    #[cold]
    pub(super) fn on_failure(&mut self, index: u32, place: usize, status: IoStatus) {
        let slot = &mut self.slots[index as usize];
        let bit = 1 << place;
        slot.failed |= bit;
        slot.answers[place] = status;
        if slot.status.is_success() {
            slot.status = status;
        }
        slot.fenced |= is_conflict(status);
        match slot.step {
            // The parking reports it, with all that failed.
            Step::Change => {}
            Step::Read | Step::Compare if status.is(IoStatus::COMPARE_FAILURE) => {}
            Step::Read | Step::Compare if is_bad_media(status) => slot.bad_media |= bit,
            // Reads may have no writes beside them that would find out.
            Step::Read | Step::Compare => self.note_failure(place, status),
        }
    }

    /// The last child has answered.
    #[inline]
    pub(super) fn step_done(&mut self, index: u32, result: u64) {
        let slot = &mut self.slots[index as usize];
        match slot.step {
            Step::Change if slot.failed == 0 => self.changed(index, result),
            Step::Change => self.settle(index),
            Step::Read | Step::Compare if slot.done == 0 => self.read_failed(index),
            Step::Read => {
                if slot.bad_media != 0 {
                    let (bad, at) = (slot.bad_media, slot.at);
                    self.note_bad_range(bad, at);
                }
                self.complete(index, IoStatus::SUCCESS, result);
            }
            Step::Compare => {
                slot.step = Step::Change;
                self.launch(index);
            }
        }
    }

    /// Every member has made the change.
    #[inline]
    fn changed(&mut self, index: u32, result: u64) {
        if let Gate::Failed(status) = self.gate {
            // Children that it was still to be offered to went without a record of that.
            return self.complete(index, status, 0);
        }
        let slot = &mut self.slots[index as usize];
        if slot.ranges.is_empty() {
            return self.complete(index, IoStatus::SUCCESS, result);
        }
        self.shared.locks.release(&mut slot.hold);
        self.start(index);
    }

    /// A child could not read: another one may.
    fn read_failed(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.fenced {
            return self.park(index);
        }
        if slot.status.is(IoStatus::COMPARE_FAILURE) {
            return self.complete(index, IoStatus::COMPARE_FAILURE, 0);
        }
        let (tried, status) = (slot.failed, slot.status);
        let next = self.choose(tried);
        if next != 0 {
            self.send(index, next);
        } else if is_gone(status) {
            self.park(index);
        } else {
            self.complete(index, status, 0);
        }
    }

    /// A change has failed somewhere. It is over once every child that failed is no member any more, and well when a child
    /// in sync has made it (hazard H7).
    pub(super) fn settle(&mut self, index: u32) {
        let slot = &self.slots[index as usize];
        if slot.fenced {
            return self.park(index);
        }
        let failed = slot.failed & self.members;
        let kept = places(failed & self.kept).next().map(|place| slot.answers[place]);
        match kept {
            // The last one's answer is the answer, unless it could not be reached.
            Some(status) if failed & !self.kept == 0 && !is_gone(status) => self.complete(index, status, 0),
            _ if failed != 0 => self.park(index),
            _ if slot.done & self.synced != 0 => self.changed(index, 0),
            // Whoever has it is no member any more: those who are do it.
            _ if slot.failed == 0 => self.launch(index),
            _ => {
                let status = slot.status;
                self.complete(index, status, 0);
            }
        }
    }

    /// Waits for the home core's word.
    #[cold]
    pub(super) fn park(&mut self, index: u32) {
        if let Gate::Failed(status) = self.gate {
            return self.complete(index, status, 0);
        }
        let slot = &mut self.slots[index as usize];
        if !slot.parked {
            slot.parked = true;
            self.parked.push(index);
        }
        // A child that went meanwhile is no concern any more, unless it said that this nexus was shut out.
        let (failed, answers) = (slot.failed, slot.answers);
        let members = self.members;
        for place in places(failed).filter(|&p| members & 1 << p != 0 || is_conflict(answers[p])) {
            self.note_failure(place, answers[place]);
        }
    }
}

/// Offers a slot's I/O to a child. False when it has no room.
#[inline]
fn offer(slot: &mut Slot, link: &mut Link, index: u32, place: usize) -> bool {
    let lba = Lba(slot.at.start.0 + link.offset_blocks);
    let ranges = [BlockRange { start: lba, blocks: slot.at.blocks }];
    let plain = Io { flags: slot.flags, ..Io::new(slot.opcode, lba, slot.at.blocks) };
    let io = match (slot.opcode, slot.step) {
        (Opcode::Unmap, _) if link.unmaps => Io { ranges: &ranges, ..Io::unmap(&[]) },
        (Opcode::Unmap, _) => {
            Io { flags: slot.flags | IoFlags::DEALLOCATE, opcode: Opcode::WriteZeroes, ..plain }
        }
        (Opcode::Flush, _) => Io::flush(),
        (Opcode::CompareAndWrite, Step::Change) => Io { opcode: Opcode::Write, sg: &slot.second, ..plain },
        (Opcode::CompareAndWrite, _) => {
            Io { opcode: Opcode::Compare, flags: slot.flags.difference(IoFlags::FUA), sg: &slot.sg, ..plain }
        }
        _ => Io { sg: &slot.sg, ..plain },
    };
    let token = Inner::child_token(slot, index, place);
    // SAFETY: see the module.
    if unsafe { link.channel.submit(&io, token) }.is_err() {
        return false;
    }
    link.in_flight += 1;
    slot.pending &= !(1 << place);
    slot.flying |= 1 << place;
    true
}
