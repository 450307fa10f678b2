//! A command from its capsule until it can be executed: what it is, and where its data comes from.

use nvme::command::Direction;
use nvme::sgl::Sgl;
use nvme::tcp::PduError;
use nvme::{Nsid, NvmOpcode, Sqe, Status};

use super::super::admin::AdminOutcome;
use super::super::connect::{ConnectOutcome, ConnectRequest};
use super::super::controller::AdminCompletion;
use super::super::nvm::{self, Fused, NvmCommand, NvmOp, Payload};
use super::CoreState;
use super::buffer::Buffer;
use super::chunks::Received;
use super::conn::{Conn, Fill, Phase};
use super::receive::TTAG_SLOT_MASK;
use super::slots::{SlotId, State, Step, Task};
use crate::tcp::{Data, Inbound, emit};

/// In-capsule data of a command, as its SGL descriptor says: a part of what came.
#[derive(Clone, Copy)]
struct InCapsule {
    offset_bytes: u32,
    len_bytes: u32,
}

impl Conn {
    /// A command capsule.
    #[inline]
    pub(super) fn command(&mut self, sqe: &Sqe, data: Data<'_>, received: Received, core: &mut CoreState) {
        let Some(id) = self.slots.take() else {
            // More commands than the submission queue has entries: there is no status for that.
            return self.fail(PduError::Sequence, core);
        };
        self.sq_head += 1;
        if u32::from(self.sq_head) >= self.slots.capacity() {
            self.sq_head = 0;
        }
        let cid = sqe.cid.get();
        let slot = &mut self.slots[id];
        slot.cid = cid;
        slot.since = core.now;
        slot.fault = Status::SUCCESS;
        slot.wants_data = false;
        slot.partner = SlotId::NONE;
        if let Some(cids) = &mut self.cids {
            if !cids.insert(cid) {
                return self.refuse(id, Status::COMMAND_ID_CONFLICT, data, core);
            }
            slot.cid_marked = true;
        }
        match self.phase {
            Phase::Serving if !self.is_admin => self.io_command(id, sqe, data, received, core),
            _ => self.cold_command(id, sqe, data, received, core),
        }
    }

    /// Answers with an error, after the in-capsule data that may still be coming.
    #[cold]
    fn refuse(&mut self, id: SlotId, status: Status, data: Data<'_>, core: &mut CoreState) {
        self.unpair(id, core);
        if data.len_bytes > 0 && data.here.is_none() {
            let slot = &mut self.slots[id];
            slot.fault = status;
            slot.go(Step::AwaitData);
            self.fill = Some(Fill { slot: id, start: 0, at: 0 });
            return;
        }
        self.answer(id, status, 0, core);
    }

    // I/O commands.

    #[inline]
    fn io_command(
        &mut self,
        id: SlotId,
        sqe: &Sqe,
        data: Data<'_>,
        received: Received,
        core: &mut CoreState,
    ) {
        if self.fused != SlotId::NONE && nvme_fuse_second(sqe).is_none() {
            self.break_fused(core);
        }
        let command = match self.decode(id, sqe, core) {
            Ok(Some(command)) => command,
            Ok(None) => return,
            Err(status) => return self.refuse(id, status, data, core),
        };
        if command.fused != Fused::No
            && let Err(status) = self.pair(id, &command, core)
        {
            return self.refuse(id, status, data, core);
        }
        let slot = &mut self.slots[id];
        slot.data_bytes = command.len_bytes;
        let payload = command.payload;
        if matches!(slot.task, Task::None) {
            slot.task = Task::Io(command);
        }
        match payload {
            Payload::None | Payload::ToHost if data.len_bytes == 0 => self.execute(id, core),
            Payload::None | Payload::ToHost => self.refuse(id, Status::INVALID_FIELD, data, core),
            Payload::FromHost => self.ask_for_data(id, data, core),
            Payload::InCapsule { offset_bytes } => {
                match nvm::in_capsule_fits(offset_bytes, command.len_bytes, data.len_bytes) {
                    Ok(offset_bytes) => {
                        let part = InCapsule { offset_bytes, len_bytes: command.len_bytes };
                        self.take_in_capsule(id, part, data, received, core);
                    }
                    Err(status) => self.refuse(id, status, data, core),
                }
            }
        }
    }

    /// What an I/O command is. `None` = it was dealt with.
    #[inline]
    fn decode(&mut self, id: SlotId, sqe: &Sqe, core: &mut CoreState) -> Result<Option<NvmCommand>, Status> {
        if sqe.is_fabrics() {
            return self.io_fabrics(id, sqe, core).map(|()| None);
        }
        let nsid = sqe.nsid();
        if nsid == Nsid::BROADCAST && sqe.nvm_opcode() == NvmOpcode::FLUSH {
            return self.flush_all(id, core);
        }
        let space = core.spaces.find(self.subsystem, nsid, self.listener)?;
        let command = nvm::decode(sqe, &core.spaces.any(space).info)?;
        self.slots[id].space = space;
        if command.op == NvmOp::Reservation {
            self.slots[id].task = Task::Reservation(Box::new(*sqe));
        }
        Ok(Some(command))
    }

    /// Fabrics commands on an I/O queue: Disconnect.
    #[cold]
    fn io_fabrics(&mut self, id: SlotId, sqe: &Sqe, core: &mut CoreState) -> Result<(), Status> {
        let Some(grant) = &self.grant else { return Err(Status::SEQUENCE_ERROR) };
        grant.controller().io_fabrics(grant.qid(), sqe)?;
        self.answer(id, Status::SUCCESS, 0, core);
        self.part(core);
        Ok(())
    }

    /// A Flush of all namespaces: one after the other.
    #[cold]
    fn flush_all(&mut self, id: SlotId, core: &mut CoreState) -> Result<Option<NvmCommand>, Status> {
        let Some(first) = core.spaces.next_nsid(self.subsystem, Nsid(0)) else {
            self.answer(id, Status::SUCCESS, 0, core);
            return Ok(None);
        };
        let slot = &mut self.slots[id];
        slot.space = core.spaces.find(self.subsystem, first, self.listener)?;
        slot.task = Task::FlushAll(nvm::flush());
        Ok(Some(nvm::flush()))
    }

    /// Joins the halves of a fused operation.
    #[cold]
    fn pair(&mut self, id: SlotId, command: &NvmCommand, core: &mut CoreState) -> Result<(), Status> {
        if command.fused == Fused::First {
            let info = &core.spaces.any(self.slots[id].space).info;
            if command.blocks.0 > u64::from(info.fused_blocks) {
                return Err(Status::ATOMIC_WRITE_UNIT_EXCEEDED);
            }
            self.fused = id;
            return Ok(());
        }
        let Some(first) = self.fused.get() else { return Err(Status::ABORTED_MISSING_FUSED) };
        self.fused = SlotId::NONE;
        let space = self.slots[id].space;
        let verdict = match &self.slots[first].task {
            Task::Io(compare) if self.slots[first].space == space => {
                nvm::fuse(compare, command, &core.spaces.any(space).info)
            }
            _ => Err(Status::INVALID_FIELD),
        };
        match verdict {
            Ok(()) => {
                self.slots[first].partner = id;
                self.slots[id].partner = first;
                Ok(())
            }
            Err(status) => {
                self.fail_held(first, status, core);
                Err(status)
            }
        }
    }

    /// The command after a first half is not its second half.
    #[cold]
    fn break_fused(&mut self, core: &mut CoreState) {
        if let Some(first) = core::mem::replace(&mut self.fused, SlotId::NONE).get() {
            self.fail_held(first, Status::ABORTED_MISSING_FUSED, core);
        }
    }

    /// Takes a command that failed out of its fused operation: nothing refers to its slot any more, and the other
    /// half fails too.
    #[cold]
    pub(super) fn unpair(&mut self, id: SlotId, core: &mut CoreState) {
        if self.fused == id {
            self.fused = SlotId::NONE;
        }
        if let Some(partner) = core::mem::replace(&mut self.slots[id].partner, SlotId::NONE).get() {
            self.fail_held(partner, Status::ABORTED_FAILED_FUSED, core);
        }
    }

    /// Fails a half of a fused operation that waits for the other, or for its data.
    pub(super) fn fail_held(&mut self, id: SlotId, status: Status, core: &mut CoreState) {
        self.slots[id].partner = SlotId::NONE;
        match self.slots[id].state() {
            State::Held => self.answer(id, status, 0, core),
            State::Waiting => {
                self.slots.remove(&mut self.waiting, id);
                self.answer(id, status, 0, core);
            }
            // It is answered when its data came.
            _ => self.slots[id].fault = status,
        }
    }

    // Data from the host.

    /// Keeps the in-capsule data of `id`, then executes it.
    #[inline]
    fn take_in_capsule(
        &mut self,
        id: SlotId,
        part: InCapsule,
        data: Data<'_>,
        received: Received,
        core: &mut CoreState,
    ) {
        let Some(bytes) = data.here else {
            return self.begin_in_capsule(id, part, data, core);
        };
        if !data.intact {
            return self.refuse(id, Status::TRANSIENT_TRANSPORT_ERROR, data, core);
        }
        let bytes = &bytes[part.offset_bytes as usize..][..part.len_bytes as usize];
        if !bytes.is_empty() {
            self.slots[id].buffer = match core.chunks.hold(received, bytes) {
                Some(held) => Buffer::Chunk(held),
                None => {
                    let mut buffer = self.alloc_now(core, id, part.len_bytes);
                    buffer.write(0, bytes);
                    buffer
                }
            };
        }
        self.execute(id, core);
    }

    /// In-capsule data of which a part is still to come goes into a buffer of its own.
    fn begin_in_capsule(&mut self, id: SlotId, part: InCapsule, data: Data<'_>, core: &mut CoreState) {
        // An offset other than 0 is legal, but nobody sends it; it is served from complete capsules only.
        if part.offset_bytes != 0 || part.len_bytes != data.len_bytes {
            return self.refuse(id, Status::SGL_OFFSET_INVALID, data, core);
        }
        self.slots[id].go(Step::AwaitData);
        self.fill = Some(Fill { slot: id, start: 0, at: 0 });
        self.slots[id].buffer = self.alloc_now(core, id, part.len_bytes);
    }

    /// The data of `id` comes upon our R2Ts, once there is a buffer for it.
    fn ask_for_data(&mut self, id: SlotId, data: Data<'_>, core: &mut CoreState) {
        if data.len_bytes > 0 {
            return self.refuse(id, Status::INVALID_FIELD, data, core);
        }
        let slot = &mut self.slots[id];
        slot.wants_data = true;
        slot.inbound = Inbound::new(slot.data_bytes);
        // The halves of a fused operation hold memory while they wait for each other, so they never wait for it.
        // Nor is data asked for that would only lie there until the end of a pause.
        let put_off =
            !self.waiting.is_empty() || core.spaces.admits(self.slots[id].space, self.listener) != Ok(true);
        if (put_off && !self.slots[id].is_fused()) || !self.begin_r2ts(id, core) {
            self.enqueue(id, core);
        }
    }

    /// Sends the first R2Ts of `id`; false when there is no buffer now.
    pub(super) fn begin_r2ts(&mut self, id: SlotId, core: &mut CoreState) -> bool {
        let (len_bytes, fused) = (self.slots[id].data_bytes, self.slots[id].is_fused());
        let buffer =
            if fused { Some(self.alloc_now(core, id, len_bytes)) } else { self.alloc(core, len_bytes) };
        let Some(buffer) = buffer else { return false };
        let slot = &mut self.slots[id];
        slot.buffer = buffer;
        slot.go(Step::AwaitData);
        slot.data_since = core.now;
        self.awaiting_data += 1;
        self.send_r2ts(id, core);
        true
    }

    /// Sends as many R2Ts of `id` as may be outstanding.
    pub(super) fn send_r2ts(&mut self, id: SlotId, core: &mut CoreState) {
        let agreed = *self.engine.agreed();
        let outstanding = core.config.max_r2t.min(agreed.max_r2t);
        loop {
            if !self.tx.has_room(emit::MAX_PDU_OVERHEAD_BYTES) {
                // Only a host that answers R2Ts before it received them gets here.
                return self.drop_link(core);
            }
            let slot = &mut self.slots[id];
            let ttag = id.0 & TTAG_SLOT_MASK | u16::from(slot.r2ts) << 12;
            let Some(span) = slot.inbound.next_r2t(ttag, outstanding, core.config.r2t_bytes) else { return };
            slot.r2ts = slot.r2ts.wrapping_add(1) & 0xf;
            let cid = slot.cid;
            emit::r2t(&mut self.tx, &agreed, cid, span);
            self.mark_dirty(core);
        }
    }

    /// The data of `id` is complete.
    pub(super) fn data_complete(&mut self, id: SlotId, core: &mut CoreState) {
        let fault = self.slots[id].fault;
        if !fault.is_success() {
            self.unpair(id, core);
            return self.answer(id, fault, 0, core);
        }
        self.execute(id, core);
    }

    // Commands that are not hot: Connect and those of the admin queue.

    fn cold_command(
        &mut self,
        id: SlotId,
        sqe: &Sqe,
        data: Data<'_>,
        received: Received,
        core: &mut CoreState,
    ) {
        let connects = self.phase == Phase::Greeting;
        let from_host = sqe.direction() == Direction::HostToController;
        let source = if from_host { sqe.sgl1().parse() } else { Ok(Sgl::Transport { len_bytes: 0 }) };
        let task = Box::new(*sqe);
        self.slots[id].task = if connects { Task::Connect(task) } else { Task::Admin(task) };
        match source {
            Ok(Sgl::Transport { len_bytes: 0 }) if data.len_bytes == 0 => self.execute(id, core),
            Ok(Sgl::Transport { len_bytes }) if data.len_bytes == 0 => {
                if len_bytes > core.target.config().max_io_bytes {
                    return self.refuse(id, Status::DATA_SGL_LENGTH_INVALID, data, core);
                }
                self.slots[id].data_bytes = len_bytes;
                self.ask_for_data(id, data, core);
            }
            Ok(Sgl::InCapsule { offset_bytes, len_bytes }) => {
                match nvm::in_capsule_fits(offset_bytes, len_bytes, data.len_bytes) {
                    Ok(offset_bytes) => {
                        self.slots[id].data_bytes = len_bytes;
                        let part = InCapsule { offset_bytes, len_bytes };
                        self.take_in_capsule(id, part, data, received, core);
                    }
                    Err(status) => self.refuse(id, status, data, core),
                }
            }
            Ok(_) => self.refuse(id, Status::SGL_TYPE_INVALID, data, core),
            Err(status) => self.refuse(id, status, data, core),
        }
    }

    /// Has the control side execute the admin command `id`.
    pub(super) fn admin(&mut self, id: SlotId, sqe: &Sqe, core: &mut CoreState) {
        let Some(controller) = self.controller().cloned() else { return };
        let slot = &self.slots[id];
        let len = if slot.buffer.is_none() { 0 } else { slot.data_bytes };
        let now = core.now;
        let outcome = slot.buffer.with_bytes(&core.chunks, len, |data| controller.admin(sqe, data, now));
        self.free_buffer(core, id);
        match outcome {
            AdminOutcome::Done { status, result } => self.answer(id, status, result, core),
            AdminOutcome::Data { data, result } => self.answer_from_heap(id, data, result, core),
            AdminOutcome::Later => {
                self.slots[id].go(Step::Defer);
                self.late_completions(core);
            }
        }
    }

    /// Answers with `data`.
    fn answer_from_heap(&mut self, id: SlotId, data: Vec<u8>, result: u64, core: &mut CoreState) {
        let len_bytes = data.len() as u32;
        self.heap_bytes += u64::from(len_bytes);
        self.slots[id].buffer = Buffer::Heap(data);
        self.answer_with_data(id, len_bytes, result, core);
    }

    /// Sends admin completions that came later than their commands.
    pub(super) fn late_completions(&mut self, core: &mut CoreState) {
        if !self.is_admin || !self.controller().is_some_and(|c| c.has_completions()) {
            return;
        }
        let mut late = Vec::new();
        if let Some(controller) = self.controller() {
            controller.take_completions(&mut late);
        }
        for AdminCompletion { cid, status, result, data } in late {
            let found = self.slots.in_use().find(|(_, s)| s.state() == State::Later && s.cid == cid.0);
            match found {
                Some((id, _)) if data.is_empty() => self.answer(id, status, result, core),
                Some((id, _)) => self.answer_from_heap(id, data, result, core),
                None => {}
            }
        }
    }

    /// Offers a Connect to the control side.
    pub(super) fn connect(&mut self, id: SlotId, sqe: &Sqe, core: &mut CoreState) {
        // The transmit list is replaced when the queue is granted, so the ICResp has to be gone. It is here still when
        // the host did not wait for it.
        self.send_all(core);
        let outcome = if self.tx.is_empty() { self.try_connect(id, sqe, core) } else { ConnectOutcome::Wait };
        match outcome {
            ConnectOutcome::Granted(grant) => {
                let cid = self.slots[id].cid;
                self.release(core, id);
                let result = u64::from(grant.controller().cntlid().0);
                self.adopt(grant, core);
                self.answer_connect(cid, result, core);
            }
            ConnectOutcome::Rejected(rejection) => {
                self.free_buffer(core, id);
                self.answer(id, rejection.status, rejection.result, core);
                self.part(core);
            }
            ConnectOutcome::Wait => {
                let slot = &mut self.slots[id];
                if slot.state() == State::Held {
                    slot.go(Step::Defer);
                }
                slot.task = Task::Connect(Box::new(*sqe));
                self.connecting = Some((id, core.now));
            }
        }
    }

    fn try_connect(&mut self, id: SlotId, sqe: &Sqe, core: &mut CoreState) -> ConnectOutcome {
        let slot = &self.slots[id];
        let len = if slot.buffer.is_none() { 0 } else { slot.data_bytes };
        slot.buffer.with_bytes(&core.chunks, len, |data| {
            core.target.connect(&ConnectRequest {
                sqe,
                data,
                listener: self.listener,
                local: self.stream.local_addr(),
                peer: self.stream.peer_addr(),
                inbox: &core.inbox,
                now: core.now,
                since: slot.since,
            })
        })
    }

    /// Offers a Connect again that had to wait.
    pub(super) fn retry_connect(&mut self, core: &mut CoreState) {
        if let Some((id, _)) = self.connecting.take()
            && let Task::Connect(sqe) = core::mem::take(&mut self.slots[id].task)
        {
            self.connect(id, &sqe, core);
        }
    }
}

/// Whether a command claims to be the second half of a fused operation.
#[inline]
fn nvme_fuse_second(sqe: &Sqe) -> Option<()> {
    (sqe.fuse() == nvme::command::Fuse::SECOND).then_some(())
}
