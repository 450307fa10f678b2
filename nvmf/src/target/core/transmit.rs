//! Answers, and the gathered send.
//!
//! A read's data goes to the socket straight from where the device has it. Memory that may change after this
//! turn does not outlive it: of what the socket did not take, answers that have not begun are taken back and read
//! again later, and the rest of the one that has begun is copied.
//!
//! Needs `unsafe` to send from memory that slots and devices hold, and to copy out of it.
#![allow(unsafe_code)]

use aio::{Lba, SgEntry};
use nvme::{Cid, Cqe, Nsid, Status};

use super::super::admin::FailedCommand;
use super::CoreState;
use super::buffer::Buffer;
use super::config::LARGE_READ_BYTES;
use super::conn::{Conn, Phase};
use super::slots::{Line, SlotId, Step, Task};
use crate::tcp::{DataSpan, TxTag, emit};

/// Marks the tag of a data PDU whose response follows in a PDU of its own.
const DATA_TAG: u32 = 1 << 16;

/// The slot that a tag names.
fn slot_of(tag: TxTag) -> SlotId {
    SlotId(tag.0 as u16)
}

impl Conn {
    fn cqe(&self, cid: u16, status: Status, result: u64) -> Cqe {
        let mut cqe = Cqe::new(Cid(cid), status, result);
        if !self.no_flow_control {
            cqe.sqhd.set(self.sq_head);
        }
        cqe
    }

    /// Completes a command without data.
    #[inline]
    pub(super) fn answer(&mut self, id: SlotId, status: Status, result: u64, core: &mut CoreState) {
        let status = if status.is_success() { status } else { self.note_failure(id, status, core) };
        self.free_buffer(core, id);
        self.slots[id].go(Step::Answer);
        let cqe = self.cqe(self.slots[id].cid, status, result);
        emit::response(&mut self.tx, self.engine.agreed(), cqe, TxTag(u32::from(id.0)));
        self.queued(core.config.send_bytes, core);
    }

    /// Puts a failed I/O command into the controller's error log (admin commands are there already), and takes the
    /// retry delay out of its status unless the host said that it honours one.
    #[cold]
    fn note_failure(&mut self, id: SlotId, status: Status, core: &mut CoreState) -> Status {
        let Some(grant) = &self.grant else { return status };
        let slot = &self.slots[id];
        if !self.is_admin {
            // One that was refused before it was understood is noted without a place.
            let (nsid, lba) = match &slot.task {
                Task::Io(command) | Task::FlushAll(command) => {
                    let space = core.spaces.get(slot.space);
                    (space.map_or(Nsid::NONE, |space| space.info.nsid), command.lba)
                }
                _ => (Nsid::NONE, Lba(0)),
            };
            let (sqid, cid) = (grant.qid(), Cid(slot.cid));
            grant.controller().record_error(&FailedCommand { sqid, cid, status, nsid, lba: lba.0 });
        }
        if grant.controller().takes_retry_delay() { status } else { status.with_crd(0) }
    }

    /// Completes a command successfully with `len_bytes` of data, which the device lent or which is in its buffer.
    #[inline]
    pub(super) fn answer_with_data(&mut self, id: SlotId, len_bytes: u32, result: u64, core: &mut CoreState) {
        if len_bytes == 0 {
            return self.answer(id, Status::SUCCESS, result, core);
        }
        let agreed = *self.engine.agreed();
        let slot = &mut self.slots[id];
        slot.go(Step::Answer);
        let cid = slot.cid;
        let tag = TxTag(u32::from(id.0));
        // SUCCESS replaces the response capsule where that would say nothing more (TCP Transport 1.0, section
        // 3.6.2.10): no queue head, no result.
        let success = self.no_flow_control && result == 0;
        let span = DataSpan { ttag: 0, offset_bytes: 0, len_bytes, last: true };
        emit::c2h_data(&mut self.tx, &agreed, cid, span, success);
        self.push_data(id, len_bytes, core);
        if agreed.data_digest {
            let crc = self.slots[id].buffer.crc32c(&core.chunks, 0, len_bytes);
            emit::data_digest(&mut self.tx, crc);
        }
        if success {
            self.tx.finish(tag);
        } else {
            self.tx.finish(TxTag(tag.0 | DATA_TAG));
            let cqe = self.cqe(cid, Status::SUCCESS, result);
            emit::response_after_data(&mut self.tx, &agreed, cqe, tag);
        }
        let config = &core.config;
        let bound_bytes =
            if len_bytes < LARGE_READ_BYTES { config.send_bytes } else { config.send_bytes_large };
        self.queued(bound_bytes, core);
    }

    /// Answers the Connect that made this queue: its slot is gone, and the queue head says whether flow control is
    /// off (NVMe Base 2.0, section 6.3).
    pub(super) fn answer_connect(&mut self, cid: u16, result: u64, core: &mut CoreState) {
        let mut cqe = Cqe::new(Cid(cid), Status::SUCCESS, result);
        cqe.sqhd.set(if self.no_flow_control { 0xffff } else { 1 });
        self.sq_head = 1;
        emit::response(&mut self.tx, self.engine.agreed(), cqe, TxTag::NONE);
        self.queued(core.config.send_bytes, core);
    }

    /// Something was queued: it goes at the end of the turn, or now when `bound_bytes` wait.
    #[inline]
    fn queued(&mut self, bound_bytes: u64, core: &mut CoreState) {
        self.mark_dirty(core);
        if self.tx.unsent_bytes() >= bound_bytes && !self.backlogged {
            self.send(core);
        }
    }

    /// Sends what the socket takes. Called while the turn goes on; [`Self::flush`] ends it.
    fn send(&mut self, core: &mut CoreState) {
        if self.unstable > 0 && !core.ensure_spill() {
            // Nowhere to put the rest of an answer that has begun: none begins now.
            self.take_back(core);
        }
        if !self.backlogged {
            self.last_tx = core.now;
        }
        while !self.tx.is_empty() {
            let bufs = self.tx.gather();
            let offered: usize = bufs.iter().map(|e| e.len_bytes as usize).sum();
            core.stats.sends += 1;
            // SAFETY: headers are in the list's own ring; payload is in slots' buffers, or lent by devices, until
            // the tags come back below. Lent memory may change during the call, which is said to be so.
            let sent = match unsafe { self.stream.send(bufs) } {
                Ok(sent) => sent.unwrap_or(0),
                Err(_) => {
                    (self.broken, self.backlogged) = (true, true);
                    return;
                }
            };
            if sent > 0 {
                self.last_tx = core.now;
                core.stats.bytes_sent += sent as u64;
                self.tx.advance(sent);
                while let Some(tag) = self.tx.pop_sent() {
                    match tag {
                        TxTag::NONE => {}
                        // Only the response is left, which is not taken back: the data would come twice.
                        TxTag(t) if t & DATA_TAG != 0 => self.give_back_lent(core, slot_of(tag)),
                        _ => self.release(core, slot_of(tag)),
                    }
                }
            }
            self.backlogged = sent < offered;
            if self.backlogged {
                // At once, not at the end of the turn: by then another connection may have used the spill buffer.
                if self.unstable > 0 {
                    self.spill(core);
                }
                return;
            }
        }
        if !self.waiting.is_empty() || self.connecting.is_some() {
            // There is room in the read window again; or the ICResp is gone, for which a Connect waits.
            self.retry = true;
        }
    }

    /// Sends now what would go at the end of the turn, as far as the socket takes it.
    #[cold]
    pub(super) fn send_all(&mut self, core: &mut CoreState) {
        if !self.tx.is_empty() && !self.backlogged {
            self.send(core);
        }
    }

    /// The end of a turn: sends, and leaves nothing queued in memory that may change.
    pub(super) fn flush(&mut self, core: &mut CoreState) {
        self.dirty = false;
        if matches!(self.phase, Phase::Draining | Phase::Gone) || self.tx.is_empty() {
            return;
        }
        if !self.broken && (!self.backlogged || self.stream.ready().writable) {
            self.send(core);
        }
        if self.broken {
            return self.drop_link(core);
        }
        if self.backlogged {
            self.stream.arm(true);
        }
        if self.unstable > 0 {
            self.take_back(core);
            self.spill(core);
        }
    }

    /// Takes back answers that have not begun and are in memory that may change: they are read again, first of all.
    #[cold]
    fn take_back(&mut self, core: &mut CoreState) {
        let begun = self.tx.partly_sent().map_or(SlotId::NONE, slot_of);
        let mut taken = Line::EMPTY;
        let slots = &mut self.slots;
        self.tx.take_back(|tag| {
            let id = slot_of(tag);
            if tag == TxTag::NONE || id == begun || !slots[id].unstable {
                return false;
            }
            if tag.0 & DATA_TAG == 0 {
                slots[id].go(Step::TakeBack);
                slots.push_back(&mut taken, id);
            }
            true
        });
        let mut front = Line::EMPTY;
        while let Some(id) = self.slots.pop_front(&mut taken) {
            self.give_back_lent(core, id);
            let slot = &mut self.slots[id];
            self.window_bytes -= u64::from(slot.window_bytes);
            slot.window_bytes = 0;
            self.slots.push_back(&mut front, id);
        }
        self.slots.prepend(&mut self.waiting, &mut front);
        self.retry = true;
    }

    /// Moves the rest of the answer that has begun into a buffer.
    #[cold]
    fn spill(&mut self, core: &mut CoreState) {
        let Some(id) = self.tx.partly_sent().filter(|tag| *tag != TxTag::NONE).map(slot_of) else { return };
        if !self.slots[id].unstable {
            return;
        }
        let mut buffer =
            core.spill.take().expect("invariant: nothing unstable is sent without a spill buffer");
        let mut at = 0;
        let mut entries = Vec::with_capacity(1);
        self.tx.replace_partly_sent(|old| {
            // SAFETY: lent memory stays mapped until it is given back, below. Another core may write to it, as
            // with the send itself.
            let bytes = unsafe { bytes_of(old) };
            buffer.write(at, bytes);
            entries.clear();
            buffer.entries(at, old.len_bytes, &mut entries);
            at += old.len_bytes;
            entries[0]
        });
        self.give_back_lent(core, id);
        self.take(&buffer, core);
        self.slots[id].buffer = buffer;
    }
}

/// The bytes of an entry.
///
/// # Safety
/// They are mapped and readable for `'a`.
unsafe fn bytes_of<'a>(entry: SgEntry) -> &'a [u8] {
    // SAFETY: promised by the caller.
    unsafe { core::slice::from_raw_parts(entry.ptr.as_ptr(), entry.len_bytes as usize) }
}

impl CoreState {
    /// Makes sure that there is a buffer for the rest of any one answer.
    pub(super) fn ensure_spill(&mut self) -> bool {
        if self.spill.is_none() {
            // In one piece: longer reads are not lent.
            let len_bytes = self.target.config().max_io_bytes.min(self.pools.max_bytes());
            self.spill = Buffer::alloc(&self.pools, len_bytes);
        }
        self.spill.is_some()
    }
}
