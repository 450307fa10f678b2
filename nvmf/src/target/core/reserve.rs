//! Reservations on one core: their commands go to the control side, and changes of rights come back. Why nothing that
//! they forbid is executed late: see `target::reserve`.

use std::sync::Arc;

use aio::Token;
use nvme::reservation::{Access, Rights};
use nvme::{HostId, Nsid, Sqe, Status};

use super::super::admin::AdminOutcome;
use super::super::board::{Ack, LateCompletion, SubsystemId};
use super::buffer::Buffer;
use super::conn::{Conn, Phase};
use super::slots::{SlotId, State, Step, Task};
use super::spaces::{Fence, SpaceRef};
use super::{CoreState, TargetCore};

impl Conn {
    /// Has the control side execute the reservation command `id`.
    #[cold]
    pub(super) fn reservation(&mut self, id: SlotId, sqe: &Sqe, core: &mut CoreState) {
        let Some(grant) = &self.grant else { return };
        let (controller, qid) = (grant.controller(), grant.qid());
        let slot = &self.slots[id];
        let len = if slot.buffer.is_none() { 0 } else { slot.data_bytes };
        let outcome =
            slot.buffer.with_bytes(&core.chunks, len, |data| controller.reservation(qid, sqe, data));
        self.free_buffer(core, id);
        match outcome {
            AdminOutcome::Done { status, result } => self.answer(id, status, result, core),
            AdminOutcome::Data { data, result } => {
                let len_bytes = data.len() as u32;
                self.heap_bytes += u64::from(len_bytes);
                self.slots[id].buffer = Buffer::Heap(data);
                self.answer_with_data(id, len_bytes, result, core);
            }
            AdminOutcome::Later => self.slots[id].go(Step::Defer),
        }
    }

    /// Aborts what this host has to do with `at`, where it was preempted with its commands: what waits ends here, what
    /// the device has is cancelled if it can be. What waits for data is judged when that came.
    fn abort_preempted(&mut self, at: SpaceRef, core: &mut CoreState) {
        for i in 0..self.slots.capacity() as u16 {
            let id = SlotId(i);
            let slot = &self.slots[id];
            if slot.space != at {
                continue;
            }
            match slot.state() {
                State::InFlight => {
                    let token = self.slots.token(self.index, id);
                    // However it ends, its completion comes.
                    core.spaces.any(at).channel.cancel(token);
                }
                State::Waiting if !slot.is_fused() && is_io(&slot.task) && self.phase == Phase::Serving => {
                    self.slots.remove(&mut self.waiting, id);
                    self.answer(id, Status::ABORTED_PREEMPT, 0, core);
                }
                _ => {}
            }
        }
    }

    /// Appends the commands of `at` that its device has and that were aborted, or are forbidden from now on.
    fn note_forbidden(&self, at: SpaceRef, access: Option<&Access>, aborted: bool, out: &mut Vec<Token>) {
        for (id, slot) in self.slots.in_use() {
            if slot.space != at || slot.state() != State::InFlight {
                continue;
            }
            let needed = match &slot.task {
                // The write of a Compare and Write goes by the token of its first half.
                _ if slot.partner != SlotId::NONE => Rights::ALL,
                Task::Io(command) | Task::FlushAll(command) => command.op.needed(),
                _ => Rights::ALL,
            };
            if aborted || access.is_some_and(|access| !access.allows(self.hostid, needed)) {
                out.push(self.slots.token(self.index, id));
            }
        }
    }
}

fn is_io(task: &Task) -> bool {
    matches!(task, Task::Io(_) | Task::FlushAll(_))
}

impl TargetCore {
    /// Obeys new rights from now on, and acknowledges when nothing is in the device that they forbid.
    #[cold]
    pub(super) fn set_rights(
        &mut self,
        subsystem: SubsystemId,
        nsid: Nsid,
        access: Option<Arc<Access>>,
        abort: &[HostId],
        ack: Ack,
    ) {
        let Some(at) = self.state.spaces.set_access(subsystem, nsid, access.clone()) else {
            return ack.done();
        };
        let mut tokens = Vec::new();
        for conn in self.conns.iter_mut().flatten() {
            let aborted = conn.subsystem == subsystem && abort.contains(&conn.hostid);
            if aborted {
                conn.abort_preempted(at, &mut self.state);
            }
            conn.note_forbidden(at, access.as_deref(), aborted, &mut tokens);
        }
        if tokens.is_empty() { ack.done() } else { self.state.spaces.fences.push(Fence { tokens, ack }) }
    }

    /// Acknowledges changes of rights whose last forbidden command the device completed.
    #[cold]
    pub(super) fn advance_fences(&mut self) -> usize {
        let conns = &self.conns;
        let in_device = |token: &Token| {
            let conn = conns.get((token.index() >> 16) as usize).and_then(Option::as_ref);
            conn.is_some_and(|conn| conn.is_in_flight(*token))
        };
        let fences = &mut self.state.spaces.fences;
        let before = fences.len();
        for fence in fences.iter_mut() {
            fence.tokens.retain(in_device);
        }
        for fence in fences.extract_if(.., |fence| fence.tokens.is_empty()) {
            fence.ack.done();
        }
        before - fences.len()
    }

    /// Completes a command that the control side executed; its host may be gone.
    #[cold]
    pub(super) fn complete_late(&mut self, late: &LateCompletion) {
        let theirs = |c: &&mut Box<Conn>| {
            c.phase == Phase::Serving
                && c.grant
                    .as_ref()
                    .is_some_and(|g| Arc::ptr_eq(g.controller(), &late.controller) && g.qid() == late.qid)
        };
        let Some(conn) = self.conns.iter_mut().flatten().find(theirs) else { return };
        let waits = |(_, slot): &(SlotId, &super::slots::Slot)| {
            slot.state() == State::Later && slot.cid == late.cid.0
        };
        let found = conn.slots.in_use().find(waits).map(|(id, _)| id);
        if let Some(id) = found {
            conn.answer(id, late.status, 0, &mut self.state);
        }
    }
}

impl Conn {
    fn is_in_flight(&self, token: Token) -> bool {
        let id = SlotId(token.index() as u16);
        let mut here = self.slots.in_use();
        here.any(|(other, slot)| {
            other == id && slot.state() == State::InFlight && slot.generation() == token.generation()
        })
    }
}
