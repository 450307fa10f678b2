//! Commands and devices: submission, the line of those that wait, completion, abort.
//!
//! Needs `unsafe` to submit: a slot keeps the memory that it names (pool buffer, held chunk) until the completion.
#![allow(unsafe_code)]

use aio::{Completion, Io, IoFlags, Opcode, SgEntry};
use nvme::Status;
use nvme::reservation::Rights;

use super::super::nvm::{self, NvmCommand, NvmOp};
use super::CoreState;
use super::buffer::Buffer;
use super::conn::{Conn, Phase};
use super::slots::{Line, SlotId, State, Step, Task};
use super::spaces::SpaceRef;

/// Data of unsent admin answers from which on a connection's further admin commands wait.
const MAX_HEAP_BYTES: u64 = 64 << 10;

/// What became of an attempt to go on with a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// It went on (or was answered).
    Done,
    /// Not now: the device is busy, the namespace paused, or the read window full.
    Later,
    /// Not before others gave buffers back.
    Starved,
}

impl Conn {
    /// Executes a command whose data is complete.
    #[inline]
    pub(super) fn execute(&mut self, id: SlotId, core: &mut CoreState) {
        match &self.slots[id].task {
            Task::Io(_) | Task::FlushAll(_) => {
                // First come, first served, also among those that wait; but who has a buffer never stands behind
                // one that waits for it.
                let unbuffered = matches!(self.slots[id].buffer, Buffer::None | Buffer::Chunk(_));
                if unbuffered && !self.waiting.is_empty() {
                    self.retry = true;
                    return self.enqueue(id, core);
                }
                match self.attempt(id, core) {
                    Attempt::Done => {}
                    Attempt::Later => self.enqueue(id, core),
                    Attempt::Starved => {
                        self.enqueue(id, core);
                        self.starve(core);
                    }
                }
            }
            Task::Admin(_) | Task::Reservation(_) if self.heap_bytes >= MAX_HEAP_BYTES => {
                self.enqueue(id, core)
            }
            _ => self.execute_cold(id, core),
        }
    }

    #[cold]
    fn execute_cold(&mut self, id: SlotId, core: &mut CoreState) {
        match core::mem::take(&mut self.slots[id].task) {
            Task::Connect(sqe) => self.connect(id, &sqe, core),
            Task::Admin(sqe) => self.admin(id, &sqe, core),
            Task::Reservation(sqe) => self.reservation(id, &sqe, core),
            Task::Io(_) | Task::FlushAll(_) | Task::None => self.answer(id, Status::INTERNAL_ERROR, 0, core),
        }
    }

    /// Puts a command in line.
    pub(super) fn enqueue(&mut self, id: SlotId, core: &mut CoreState) {
        self.slots[id].go(Step::Enqueue);
        self.slots.push_back(&mut self.waiting, id);
        // A chunk serves every connection of the core; who waits does so in memory of its own.
        if matches!(self.slots[id].buffer, Buffer::Chunk(_)) {
            self.move_to_pool(id, core);
        }
        if self.slots[id].wants_data {
            self.starve(core);
        }
    }

    /// Joins the core's line for buffers.
    fn starve(&mut self, core: &mut CoreState) {
        if !self.starved {
            self.starved = true;
            core.starved.push_back(self.index);
        }
    }

    /// Tries the commands that wait, oldest first; returns how many went on.
    pub(super) fn pump(&mut self, core: &mut CoreState) -> usize {
        self.retry = false;
        let mut rest = Line::EMPTY;
        let (mut done, mut no_buffers) = (0, false);
        while let Some(id) = self.slots.pop_front(&mut self.waiting) {
            if no_buffers && self.needs_buffer(id) {
                self.slots.push_back(&mut rest, id);
                continue;
            }
            match self.attempt(id, core) {
                Attempt::Done => done += 1,
                attempt => {
                    no_buffers |= attempt == Attempt::Starved;
                    self.slots.push_back(&mut rest, id);
                }
            }
            if self.phase != Phase::Serving {
                return done;
            }
        }
        self.waiting = rest;
        if no_buffers {
            self.starve(core);
        }
        done
    }

    fn needs_buffer(&self, id: SlotId) -> bool {
        let slot = &self.slots[id];
        slot.wants_data || (slot.buffer.is_none() && slot.data_bytes > 0)
    }

    /// Goes on with a command that was put off: asks for its data, or submits it.
    #[inline]
    fn attempt(&mut self, id: SlotId, core: &mut CoreState) -> Attempt {
        let slot = &self.slots[id];
        if slot.wants_data {
            match core.spaces.admits(slot.space, self.listener) {
                Ok(true) => {}
                Ok(false) => return Attempt::Later,
                Err(refusal) => {
                    // No half of a fused operation waits for this.
                    self.answer(id, refusal, 0, core);
                    return Attempt::Done;
                }
            }
            return if self.begin_r2ts(id, core) { Attempt::Done } else { Attempt::Starved };
        }
        if slot.is_fused() {
            return self.attempt_fused(id, core);
        }
        self.submit(id, SlotId::NONE, core)
    }

    /// Goes on with an admin command that was put off because of the answers before it.
    #[cold]
    fn attempt_admin(&mut self, id: SlotId, core: &mut CoreState) -> Attempt {
        if self.heap_bytes >= MAX_HEAP_BYTES {
            return Attempt::Later;
        }
        self.slots[id].go(Step::Hold);
        self.execute_cold(id, core);
        Attempt::Done
    }

    /// Submits a fused operation once both halves have their data. The first half is the device's token.
    #[cold]
    fn attempt_fused(&mut self, id: SlotId, core: &mut CoreState) -> Attempt {
        let is_first = matches!(&self.slots[id].task, Task::Io(c) if c.fused == nvm::Fused::First);
        let partner = self.slots[id].partner;
        if partner == SlotId::NONE || self.slots[partner].state() != State::Held {
            // The other half, or its data, or its turn in the line, is still to come; then it goes on from there.
            self.hold(id, core);
            return Attempt::Done;
        }
        if is_first {
            return self.submit(id, partner, core);
        }
        // Whatever list it came from, from now on it goes where the first half goes: should the connection end, it is
        // freed with it, once.
        self.slots[id].go(Step::Hold);
        let attempt = self.submit(partner, id, core);
        if attempt != Attempt::Done {
            // The pair stands in line as its first half.
            self.enqueue(partner, core);
            if attempt == Attempt::Starved {
                self.starve(core);
            }
            self.hold(id, core);
        }
        Attempt::Done
    }

    /// Keeps a half of a fused operation, for as long as the host likes: not in a chunk, if there is a buffer.
    fn hold(&mut self, id: SlotId, core: &mut CoreState) {
        self.slots[id].go(Step::Hold);
        self.move_to_pool(id, core);
    }

    /// Offers `id` to its device; `second` is the write of a Compare and Write.
    #[inline]
    fn submit(&mut self, id: SlotId, second: SlotId, core: &mut CoreState) -> Attempt {
        let slot = &self.slots[id];
        let at = slot.space;
        let (Task::Io(command) | Task::FlushAll(command)) = &slot.task else {
            return self.attempt_admin(id, core);
        };
        let command = *command;
        let Some(space) = core.spaces.get(at) else {
            self.answer_pair(id, second, Status::INVALID_NAMESPACE, core);
            return Attempt::Done;
        };
        let (lends, busy) = (space.lends, space.busy);
        // Between this and the submission nothing happens on this core: what is in a device was allowed to be when it
        // went there, see `reserve`.
        if let Some(access) = &space.access {
            let needed = if second == SlotId::NONE { command.op.needed() } else { Rights::ALL };
            if !access.allows(self.hostid, needed) {
                self.answer_pair(id, second, Status::RESERVATION_CONFLICT, core);
                return Attempt::Done;
            }
        }
        match core.spaces.admits(at, self.listener) {
            Ok(true) if !busy => {}
            Ok(_) => return Attempt::Later,
            Err(refusal) => {
                self.answer_pair(id, second, refusal, core);
                return Attempt::Done;
            }
        }
        let mut flags = command.flags | IoFlags::STABLE;
        if command.op == NvmOp::Read {
            let len = u64::from(command.len_bytes);
            let window_full =
                self.window_bytes > 0 && self.window_bytes + len > core.config.read_window_bytes;
            if self.backlogged || window_full {
                return Attempt::Later;
            }
            // With a digest the bytes would have to be copied at once anyhow, and what is longer than a buffer
            // could not be spilled. Without a buffer to spill into the answer would be taken back and the read
            // repeated, turn after turn, so the command waits for one instead.
            let lend = lends
                && !self.engine.agreed().data_digest
                && command.len_bytes <= core.pools.max_bytes()
                && core.ensure_spill();
            if lend && self.slots[id].buffer.is_none() && core.ensure_spill() {
                flags |= IoFlags::MAY_LEND;
            } else if self.slots[id].buffer.is_none() {
                let Some(buffer) = self.alloc(core, command.len_bytes) else { return Attempt::Starved };
                self.slots[id].buffer = buffer;
            }
        } else if !self.suit_device(id, at, core)
            || (second != SlotId::NONE && !self.suit_device(second, at, core))
        {
            return Attempt::Starved;
        }
        match self.offer(id, second, &command, flags, core) {
            Err(status) => {
                self.answer_pair(id, second, status, core);
                Attempt::Done
            }
            Ok(false) => {
                core.spaces.answered_busy(at);
                Attempt::Later
            }
            Ok(true) => {
                let slot = &mut self.slots[id];
                slot.go(Step::Submit);
                if command.op == NvmOp::Read {
                    slot.window_bytes = command.len_bytes;
                    self.window_bytes += u64::from(command.len_bytes);
                }
                core.spaces.submitted(at, core.now);
                Attempt::Done
            }
        }
    }

    /// Builds the [`Io`] and submits it; `Ok(false)` = busy.
    #[inline]
    fn offer(
        &mut self,
        id: SlotId,
        second: SlotId,
        command: &NvmCommand,
        flags: IoFlags,
        core: &mut CoreState,
    ) -> Result<bool, Status> {
        let token = self.slots.token(self.index, id);
        let slot = &self.slots[id];
        let at = slot.space;
        core.sg.clear();
        core.second.clear();
        let mut io = Io { flags, ..Io::new(Opcode::Flush, command.lba, command.blocks) };
        io.opcode = match command.op {
            NvmOp::Read => Opcode::Read,
            NvmOp::Write => Opcode::Write,
            NvmOp::Compare if second != SlotId::NONE => Opcode::CompareAndWrite,
            NvmOp::Compare => Opcode::Compare,
            NvmOp::Flush => Opcode::Flush,
            NvmOp::WriteZeroes => Opcode::WriteZeroes,
            NvmOp::Verify => Opcode::Verify,
            NvmOp::Unmap { .. } | NvmOp::Copy { .. } => {
                io.opcode = self.parse_ranges(id, command, core)?;
                if io.opcode == Opcode::Copy {
                    io.blocks = core.range_blocks;
                }
                io.ranges = &core.ranges;
                io.opcode
            }
            NvmOp::Ignore => return Err(Status::SUCCESS),
            // Never a task of this kind.
            NvmOp::Reservation => return Err(Status::INTERNAL_ERROR),
        };
        if matches!(command.op, NvmOp::Read | NvmOp::Write | NvmOp::Compare) && !slot.buffer.is_none() {
            slot.buffer.entries(0, command.len_bytes, &mut core.sg);
            io.sg = &core.sg;
        }
        if let Some(second) = second.get() {
            self.slots[second].buffer.entries(0, command.len_bytes, &mut core.second);
            io.second = &core.second;
            io.flags |= self.fua_of(second);
        }
        let space = core.spaces.any(at);
        if io.sg.len() > space.max_sg || io.second.len() > space.max_sg {
            return Err(Status::INTERNAL_ERROR);
        }
        // SAFETY: the lists name memory of the slots' buffers (pool memory or a held chunk), which stay with the
        // slots until the completion: `State::InFlight` is left by it alone, and a connection is dropped only
        // when no slot is used. Lent memory is given back in `give_back_lent`.
        Ok(unsafe { space.channel.submit(&io, token) }.is_ok())
    }

    fn fua_of(&self, id: SlotId) -> IoFlags {
        match &self.slots[id].task {
            Task::Io(command) => command.flags & IoFlags::FUA,
            _ => IoFlags::empty(),
        }
    }

    /// Fills `core.ranges` from the data of a Dataset Management or Copy command.
    #[cold]
    fn parse_ranges(&self, id: SlotId, command: &NvmCommand, core: &mut CoreState) -> Result<Opcode, Status> {
        let slot = &self.slots[id];
        let info = core.spaces.any(slot.space).info;
        let (chunks, out) = (&core.chunks, &mut core.ranges);
        let total = slot.buffer.with_bytes(chunks, command.len_bytes, |data| match command.op {
            NvmOp::Copy { ranges } => nvm::copy_ranges(data, ranges, command.lba, &info, out).map(Some),
            NvmOp::Unmap { ranges } => nvm::unmap_ranges(data, ranges, &info, out).map(|()| None),
            _ => Err(Status::INTERNAL_ERROR),
        })?;
        if let Some(total) = total {
            core.range_blocks = total;
            return Ok(Opcode::Copy);
        }
        Ok(Opcode::Unmap)
    }

    /// Moves the data of a write to where the device can take it from; false when there is no buffer.
    #[inline]
    fn suit_device(&mut self, id: SlotId, at: SpaceRef, core: &mut CoreState) -> bool {
        let Buffer::Chunk(held) = &self.slots[id].buffer else { return true };
        let mask = core.spaces.any(at).align_mask;
        held.entry().ptr.as_ptr().addr() & mask == 0 || self.move_to_pool(id, core)
    }

    /// Copies data out of its receive chunk; false when there is no buffer now.
    fn move_to_pool(&mut self, id: SlotId, core: &mut CoreState) -> bool {
        let Buffer::Chunk(held) = &self.slots[id].buffer else { return true };
        let len = held.entry().len_bytes;
        let fused = self.slots[id].is_fused();
        let buffer = if fused { Some(self.alloc_now(core, id, len)) } else { self.alloc(core, len) };
        let Some(mut buffer) = buffer else { return false };
        let Buffer::Chunk(held) = core::mem::take(&mut self.slots[id].buffer) else { return true };
        buffer.write(0, core.chunks.bytes(&held));
        core.chunks.release(held);
        self.slots[id].buffer = buffer;
        true
    }

    /// Answers both halves of a fused operation, or the one command.
    fn answer_pair(&mut self, first: SlotId, second: SlotId, status: Status, core: &mut CoreState) {
        self.answer(first, status, 0, core);
        if let Some(second) = second.get() {
            let other = if status.is_success() { status } else { Status::ABORTED_FAILED_FUSED };
            self.answer(second, other, 0, core);
        }
    }

    /// A device completed a command.
    #[inline]
    pub(super) fn completed(&mut self, c: Completion, core: &mut CoreState) {
        let id = SlotId(c.token.index() as u16);
        let slot = &mut self.slots[id];
        debug_assert_eq!(slot.generation(), c.token.generation());
        slot.go(Step::Complete);
        let at = slot.space;
        let space = core.spaces.any(at);
        space.in_flight -= 1;
        if c.lent {
            space.lends_out += 1;
            slot.lent = true;
            slot.unstable = !space.channel.lent(c.token).stable;
            self.unstable += u32::from(slot.unstable);
        }
        let (Task::Io(command) | Task::FlushAll(command)) = &slot.task else { return };
        let command = *command;
        space.counters.latency(core.now.as_ns().saturating_sub(slot.since.as_ns()));
        match command.op {
            _ if !c.status.is_success() => space.counters.failed(c.status),
            NvmOp::Read => space.counters.read(u64::from(command.len_bytes)),
            NvmOp::Write => space.counters.write(u64::from(command.len_bytes)),
            _ => space.counters.other(),
        }
        if self.phase != Phase::Serving {
            // The connection is ending: nobody hears of this completion.
            if let Some(partner) = slot.partner.get() {
                self.release(core, partner);
            }
            return self.release(core, id);
        }
        if command.op == NvmOp::Read && c.status.is_success() {
            return self.answer_with_data(id, command.len_bytes, 0, core);
        }
        self.completed_rare(id, c, core);
    }

    /// Everything that is not a good read.
    fn completed_rare(&mut self, id: SlotId, c: Completion, core: &mut CoreState) {
        if c.lent {
            self.give_back_lent(core, id);
        }
        let slot = &mut self.slots[id];
        let partner = core::mem::replace(&mut slot.partner, SlotId::NONE);
        if let (Task::FlushAll(_), true) = (&slot.task, c.status.is_success()) {
            return self.flush_next(id, core);
        }
        if partner != SlotId::NONE {
            self.slots[partner].partner = SlotId::NONE;
            return self.answer_pair(id, partner, c.status, core);
        }
        self.answer(id, c.status, 0, core);
    }

    /// Flushes the next of all namespaces.
    #[cold]
    fn flush_next(&mut self, id: SlotId, core: &mut CoreState) {
        let done = core.spaces.nsid_of(self.slots[id].space);
        let Some(next) = core.spaces.next_nsid(self.subsystem, done) else {
            return self.answer(id, Status::SUCCESS, 0, core);
        };
        match core.spaces.find(self.subsystem, next, self.listener) {
            Ok(space) => {
                self.slots[id].space = space;
                self.execute(id, core);
            }
            Err(status) => self.answer(id, status, 0, core),
        }
    }

    /// Tries to abort command `cid`. True = it had no effect, and it is or will be completed as aborted.
    pub(super) fn abort(&mut self, cid: u16, core: &mut CoreState) -> bool {
        let found =
            self.slots.in_use().find(|(_, s)| s.cid == cid && s.cid_marked).map(|(id, s)| (id, s.state()));
        let Some((id, state)) = found else { return false };
        match state {
            State::Waiting if self.slots[id].partner == SlotId::NONE => {
                self.unpair(id, core);
                self.slots.remove(&mut self.waiting, id);
                self.answer(id, Status::ABORT_REQUESTED, 0, core);
                true
            }
            State::InFlight => {
                let (token, at) = (self.slots.token(self.index, id), self.slots[id].space);
                core.spaces.any(at).channel.cancel(token) == aio::Cancel::Cancelled
            }
            _ => false,
        }
    }

    /// The entries of the data of `id`, lent or in its buffer, into the transmit list.
    #[inline]
    pub(super) fn push_data(&mut self, id: SlotId, len_bytes: u32, core: &mut CoreState) {
        let slot = &self.slots[id];
        if slot.lent {
            let token = self.slots.token(self.index, id);
            let lent = core.spaces.any(slot.space).channel.lent(token);
            lent.sg.iter().for_each(|e: &SgEntry| self.tx.data(*e));
            return;
        }
        core.sg.clear();
        slot.buffer.entries(0, len_bytes, &mut core.sg);
        core.sg.iter().for_each(|e| self.tx.data(*e));
    }
}
