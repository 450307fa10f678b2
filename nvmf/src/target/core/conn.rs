//! One connection: what it is made of, and its life from accept to the last I/O.

use std::sync::Arc;

use aio::{ByteStream, Instant, Sleep};
use nvme::HostId;
use nvme::tcp::PduError;

use super::super::ana::ListenerId;
use super::super::board::SubsystemId;
use super::super::controller::{Controller, QueueGrant, Tick};
use super::CoreState;
use super::buffer::Buffer;
use super::cids::CidSet;
use super::shares::NOBODY;
use super::slots::{Line, SlotId, Slots, State};
use crate::tcp::{Engine, Local, TxQueue, emit};

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Waits for the ICReq.
    Initializing,
    /// Waits for a Connect, or for its outcome.
    Greeting,
    /// Has a queue.
    Serving,
    /// Sends what is queued (an answer, a TermReq), then shuts its end and waits for the peer's.
    Parting,
    /// Nothing is sent or received any more; waits for the devices to let go.
    Draining,
    /// Nothing is left.
    Gone,
}

/// What moves a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// ICReq is answered.
    Initialized,
    /// The Connect was granted.
    Connected,
    /// Last words are queued.
    Part,
    /// The stream ended or is of no use any more.
    Drop,
    /// The last command is gone.
    Drained,
}

impl Phase {
    /// The one transition function: the phases only go forward.
    const fn after(self, change: Change) -> Self {
        match (self, change) {
            (Self::Initializing, Change::Initialized) => Self::Greeting,
            (Self::Greeting, Change::Connected) => Self::Serving,
            (Self::Initializing | Self::Greeting | Self::Serving, Change::Part) => Self::Parting,
            (Self::Gone, _) => Self::Gone,
            (_, Change::Drop) => Self::Draining,
            (Self::Draining, Change::Drained) => Self::Gone,
            (phase, _) => phase,
        }
    }
}

/// Payload that is arriving in pieces.
#[derive(Clone, Copy)]
pub(super) struct Fill {
    /// The command; [`SlotId::NONE`] = the bytes are dropped.
    pub(super) slot: SlotId,
    /// Where in the command's data it begins, and where the next byte goes.
    pub(super) start: u32,
    pub(super) at: u32,
}

/// One connection.
pub(super) struct Conn {
    /// Its place in the core's table.
    pub(super) index: u16,
    pub(super) phase: Phase,
    pub(super) stream: Box<dyn ByteStream>,
    pub(super) engine: Engine,
    pub(super) tx: TxQueue,
    pub(super) slots: Slots,
    pub(super) cids: Option<CidSet>,
    pub(super) listener: ListenerId,
    pub(super) subsystem: SubsystemId,
    /// Who it serves, from the grant on.
    pub(super) hostid: HostId,
    pub(super) grant: Option<QueueGrant>,
    /// Completions do not carry the queue head, so C2HData may carry the success.
    pub(super) no_flow_control: bool,
    pub(super) is_admin: bool,
    pub(super) sq_head: u16,

    /// Payload that is arriving in pieces.
    pub(super) fill: Option<Fill>,
    /// Commands whose in-capsule data had to go to the heap. While there are any, nothing but the rest of their data
    /// is received.
    pub(super) overflow: u32,
    /// First half of a fused operation that waits for the second.
    pub(super) fused: SlotId,
    /// Connect that waits for an earlier association to drain.
    pub(super) connecting: Option<(SlotId, Instant)>,

    /// Commands that wait, oldest first.
    pub(super) waiting: Line,
    /// It makes sense to try the waiting commands now.
    pub(super) retry: bool,
    /// It is in the core's list of connections that wait for buffers.
    pub(super) starved: bool,
    /// It is in the core's list of connections with something to send.
    pub(super) dirty: bool,
    /// Memory for data that its commands have, in bytes. Counts in its subsystem's share as well.
    pub(super) held_bytes: u64,
    /// The last buffer was refused because of what its subsystem has.
    pub(super) over_share: bool,
    /// Data of admin answers that were not sent, in bytes.
    pub(super) heap_bytes: u64,
    /// Reads that are submitted or wait to be sent, in bytes.
    pub(super) window_bytes: u64,
    /// Commands whose R2Ts are unanswered.
    pub(super) awaiting_data: u32,
    /// Answers in the transmit list that are in memory which changes after this turn.
    pub(super) unstable: u32,
    /// The socket took less than was offered, and did not report writable since.
    pub(super) backlogged: bool,
    /// A send failed: the connection is dropped at the end of the turn, when nobody is busy with its commands.
    pub(super) broken: bool,
    /// Our end is shut.
    pub(super) shut: bool,

    /// Turns for which it is tried although it did not report readable.
    pub(super) hot: u16,
    /// Until then it is tried only when it reports readable, see `PAYLOAD_PAUSE` in `receive`.
    pub(super) pause_until: Instant,
    pub(super) opened: Instant,
    pub(super) last_rx: Instant,
    pub(super) last_tx: Instant,
    pub(super) parted: Instant,
    /// When the controller's timers want to be looked at.
    pub(super) controller_tick: Instant,
}

/// Header bytes for PDUs that are no answers: ICResp, TermReq, R2Ts.
const EXTRA_HEADER_BYTES: usize = 1024;

impl Conn {
    /// A connection that was just accepted.
    pub(super) fn new(
        index: u16,
        stream: Box<dyn ByteStream>,
        listener: ListenerId,
        core: &CoreState,
    ) -> Self {
        let now = core.now;
        let local =
            Local { max_r2t: core.config.max_r2t, ..Local::controller(core.config.max_h2c_data_bytes) };
        Self {
            index,
            phase: Phase::Initializing,
            stream,
            engine: Engine::new(local),
            tx: TxQueue::new(EXTRA_HEADER_BYTES, 2, 4),
            // The first command has to be Connect, and nothing may follow before its answer.
            slots: Slots::new(1),
            cids: None,
            listener,
            subsystem: NOBODY,
            hostid: HostId::NONE,
            grant: None,
            no_flow_control: false,
            is_admin: false,
            sq_head: 0,
            fill: None,
            overflow: 0,
            fused: SlotId::NONE,
            connecting: None,
            waiting: Line::EMPTY,
            retry: false,
            starved: false,
            dirty: false,
            held_bytes: 0,
            over_share: false,
            heap_bytes: 0,
            window_bytes: 0,
            awaiting_data: 0,
            unstable: 0,
            backlogged: false,
            broken: false,
            shut: false,
            hot: core.config.hot_turns,
            pause_until: now,
            opened: now,
            last_rx: now,
            last_tx: now,
            parted: now,
            controller_tick: Instant::from_ns(u64::MAX),
        }
    }

    /// Becomes a queue with as many slots as `grant` says. Nothing is in the transmit list, and no slot is used.
    pub(super) fn adopt(&mut self, grant: QueueGrant, core: &mut CoreState) {
        debug_assert!(self.tx.is_empty() && self.slots.used() == 0 && self.held_bytes == 0);
        let entries = grant.entries();
        let agreed = *self.engine.agreed();
        let header_bytes = entries as usize * emit::command_overhead_bytes(&agreed) + EXTRA_HEADER_BYTES;
        self.tx = TxQueue::new(header_bytes, 2 * entries as usize, 3 * entries as usize);
        self.slots = Slots::new(entries);
        self.cids = Some(CidSet::new());
        self.is_admin = grant.qid().is_admin();
        self.subsystem = grant.controller().subsystem();
        self.hostid = grant.controller().hostid();
        self.no_flow_control = !grant.sq_flow_control();
        if self.is_admin {
            self.controller_tick = core.now;
        } else {
            core.shares.join(self.subsystem);
            self.engine.set_max_in_capsule_bytes(core.target.config().in_capsule_bytes);
        }
        self.grant = Some(grant);
        self.change(Change::Connected);
    }

    /// Moves the connection.
    pub(super) fn change(&mut self, change: Change) {
        self.phase = self.phase.after(change);
    }

    /// True from the grant of an I/O queue on.
    pub(super) fn has_io_queue(&self) -> bool {
        self.grant.is_some() && !self.is_admin
    }

    /// The association, once there is one.
    pub(super) fn controller(&self) -> Option<&Arc<Controller>> {
        self.grant.as_ref().map(QueueGrant::controller)
    }

    /// One turn: receives, and tries commands that wait. Returns how much was done.
    pub(super) fn turn(&mut self, core: &mut CoreState) -> usize {
        let mut work = 0;
        if self.grant.as_ref().is_some_and(QueueGrant::closing) && self.phase == Phase::Serving {
            self.drop_link(core);
        }
        match self.phase {
            Phase::Initializing | Phase::Greeting | Phase::Serving => {
                work += self.receive(core);
                if (self.retry || core.spaces.retry) && !self.waiting.is_empty() {
                    work += self.pump(core);
                }
                if self.connecting.is_some() && self.retry {
                    self.retry = false;
                    self.retry_connect(core);
                    work += 1;
                }
            }
            Phase::Parting => work += self.part_turn(core),
            Phase::Draining => {
                if self.slots.used() == 0 {
                    self.change(Change::Drained);
                }
            }
            Phase::Gone => {}
        }
        if !self.tx.is_empty() && self.stream.ready().writable {
            self.mark_dirty(core);
        }
        work
    }

    /// Has the transmit list sent at the end of the turn.
    #[inline]
    pub(super) fn mark_dirty(&mut self, core: &mut CoreState) {
        if !self.dirty {
            self.dirty = true;
            core.dirty.push(self.index);
        }
    }

    /// A fatal transport error: TermReq, then the end.
    #[cold]
    pub(super) fn fail(&mut self, error: PduError, core: &mut CoreState) {
        core.stats.protocol_errors += 1;
        if !self.tx.has_room(emit::MAX_PDU_OVERHEAD_BYTES) {
            return self.drop_link(core);
        }
        self.engine.fail(error, &mut self.tx);
        self.part(core);
    }

    /// Sends what is queued and closes. Commands that have no answer yet get none.
    #[cold]
    pub(super) fn part(&mut self, core: &mut CoreState) {
        if self.phase.after(Change::Part) != Phase::Parting {
            return;
        }
        self.change(Change::Part);
        self.parted = core.now;
        self.abandon(core, false);
        self.mark_dirty(core);
    }

    /// Closes now. What was not sent is dropped; what devices have is waited for in [`Phase::Draining`].
    #[cold]
    pub(super) fn drop_link(&mut self, core: &mut CoreState) {
        if matches!(self.phase, Phase::Draining | Phase::Gone) {
            return;
        }
        self.change(Change::Drop);
        self.stream.shutdown();
        self.tx = TxQueue::new(0, 0, 0);
        self.abandon(core, true);
    }

    /// Frees all commands but those that devices have (these are cancelled), and (`all`) those whose answer is
    /// in the transmit list.
    fn abandon(&mut self, core: &mut CoreState, all: bool) {
        self.waiting = Line::EMPTY;
        self.fused = SlotId::NONE;
        self.fill = None;
        self.connecting = None;
        self.awaiting_data = 0;
        for i in 0..self.slots.capacity() as u16 {
            let id = SlotId(i);
            match self.slots[id].state() {
                State::Free => {}
                State::InFlight => {
                    let (token, space) = (self.slots.token(self.index, id), self.slots[id].space);
                    // However it ends, its completion comes.
                    core.spaces.any(space).channel.cancel(token);
                }
                State::Sending if !all => {}
                // The second half of a fused operation that the device has: it goes with the first.
                State::Held if self.is_in_device(id) => {}
                State::Held | State::Data | State::Waiting | State::Later | State::Sending => {
                    self.release(core, id);
                }
            }
        }
    }

    /// True for the half of a fused operation whose other half names both to the device.
    fn is_in_device(&self, id: SlotId) -> bool {
        self.slots[id].partner.get().is_some_and(|other| self.slots[other].state() == State::InFlight)
    }

    /// Gives back everything that a command has, and its slot.
    #[inline]
    pub(super) fn release(&mut self, core: &mut CoreState, id: SlotId) {
        self.give_back_lent(core, id);
        self.free_buffer(core, id);
        let slot = &mut self.slots[id];
        if slot.cid_marked
            && let Some(cids) = &mut self.cids
        {
            cids.remove(slot.cid);
        }
        slot.cid_marked = false;
        self.window_bytes -= u64::from(slot.window_bytes);
        slot.window_bytes = 0;
        self.slots.put(id);
    }

    /// Returns memory that the device lent for `id`.
    #[inline]
    pub(super) fn give_back_lent(&mut self, core: &mut CoreState, id: SlotId) {
        let slot = &mut self.slots[id];
        if !slot.lent {
            return;
        }
        slot.lent = false;
        self.unstable -= u32::from(slot.unstable);
        slot.unstable = false;
        let space = slot.space;
        let token = self.slots.token(self.index, id);
        let space = core.spaces.any(space);
        space.channel.release(token);
        space.lends_out -= 1;
    }

    /// A buffer for `len_bytes`; `None` = later, when others gave theirs back.
    ///
    /// A connection that holds a lot gets more only while at least as much is free: stalled peers cannot take
    /// everything, however many commands they have, and one that holds nothing always comes next. For subsystems see
    /// [`Shares`](super::shares::Shares).
    pub(super) fn alloc(&mut self, core: &mut CoreState, len_bytes: u32) -> Option<Buffer> {
        const UNQUESTIONED_BYTES: u64 = 256 << 10;
        self.over_share = !self.within_share(core, len_bytes);
        let wanted = self.held_bytes + u64::from(len_bytes);
        if self.over_share
            || (wanted > UNQUESTIONED_BYTES && self.held_bytes > 0 && wanted > core.free_bytes())
        {
            return None;
        }
        let buffer = match Buffer::alloc(&core.pools, len_bytes) {
            Some(buffer) => buffer,
            None if core.shares.held_bytes(self.subsystem) == 0 => Buffer::pages(len_bytes),
            None => return None,
        };
        self.take(&buffer, core);
        Some(buffer)
    }

    /// Whether its subsystem may have `len_bytes` more.
    #[inline]
    fn within_share(&self, core: &CoreState, len_bytes: u32) -> bool {
        if !core.shares.contested() {
            return true;
        }
        let held_bytes = core.shares.held_bytes(self.subsystem);
        held_bytes == 0 || held_bytes + u64::from(len_bytes) <= core.free_bytes_for(len_bytes)
    }

    /// Counts memory that one of its commands gets.
    #[inline]
    pub(super) fn take(&mut self, buffer: &Buffer, core: &mut CoreState) {
        let bytes = buffer.data_bytes();
        self.held_bytes += bytes;
        core.shares.take(self.subsystem, bytes);
    }

    /// Counts memory that one of its commands gives back.
    #[inline]
    fn give(&mut self, bytes: u64, core: &mut CoreState) {
        self.held_bytes -= bytes;
        core.shares.give(self.subsystem, bytes);
    }

    /// A buffer for small data of `id` that cannot wait: from the heap, when the pools are empty or the subsystem has
    /// its share.
    ///
    /// What bounds it: in-capsule data keeps the connection from receiving more (`overflow`), and the halves of fused
    /// operations, which may need more to be received, are at most [`MAX_FUSED_BYTES`](super::io::MAX_FUSED_BYTES).
    pub(super) fn alloc_now(&mut self, core: &mut CoreState, id: SlotId, len_bytes: u32) -> Buffer {
        let buffer =
            self.within_share(core, len_bytes).then(|| Buffer::alloc(&core.pools, len_bytes)).flatten();
        if let Some(buffer) = buffer {
            self.take(&buffer, core);
            return buffer;
        }
        let slot = &mut self.slots[id];
        if !slot.is_fused() {
            slot.overflows = true;
            self.overflow += 1;
        }
        let buffer = Buffer::pages(len_bytes);
        self.take(&buffer, core);
        buffer
    }

    /// False while it waits for commands that overflowed.
    pub(super) fn receives(&self) -> bool {
        self.overflow == 0 || self.engine.is_in_payload()
    }

    /// Gives the buffer of `id` back.
    #[inline]
    pub(super) fn free_buffer(&mut self, core: &mut CoreState, id: SlotId) {
        match core::mem::take(&mut self.slots[id].buffer) {
            Buffer::None => {}
            Buffer::Heap(bytes) => self.heap_bytes -= bytes.len() as u64,
            Buffer::Chunk(held) => core.chunks.release(held),
            buffer => {
                let slot = &mut self.slots[id];
                self.overflow -= u32::from(slot.overflows);
                slot.overflows = false;
                self.give(buffer.data_bytes(), core);
            }
        }
    }

    /// After the last words: sends them, shuts, and waits for the peer to close.
    fn part_turn(&mut self, core: &mut CoreState) -> usize {
        if self.tx.is_empty() && !self.shut {
            self.shut = true;
            self.stream.shutdown();
        }
        if core.now >= self.parted + core.config.timeouts.linger {
            self.drop_link(core);
            return 1;
        }
        self.discard_input(core)
    }

    /// Looks at timeouts; returns when to look next.
    pub(super) fn check_timeouts(&mut self, core: &mut CoreState) -> Option<Instant> {
        let t = core.config.timeouts;
        let mut next = None;
        let mut expired = false;
        let mut watch = |condition: bool, since: Instant, limit| {
            if condition {
                let deadline = since + limit;
                expired |= deadline <= core.now;
                next = Some(next.map_or(deadline, |n: Instant| n.min(deadline)));
            }
        };
        let open = matches!(self.phase, Phase::Initializing | Phase::Greeting | Phase::Serving);
        watch(self.phase == Phase::Initializing, self.opened, t.init);
        watch(self.phase == Phase::Greeting && self.connecting.is_none(), self.opened, t.init + t.connect);
        // With an overflow it is us who keep the peer waiting.
        let midway = open && !self.engine.is_between_pdus() && self.receives();
        watch(midway, self.last_rx, t.pdu);
        if open && self.awaiting_data > 0 && self.receives() {
            let asked = self.slots.in_use().filter(|(_, s)| s.state() == State::Data && s.wants_data);
            let oldest = asked.map(|(_, s)| s.data_since).min();
            watch(oldest.is_some(), oldest.unwrap_or_default(), t.data);
        }
        watch(open && !self.tx.is_empty(), self.last_tx, t.send);
        watch(self.phase == Phase::Parting, self.parted, t.linger);
        if expired {
            core.stats.timeouts += 1;
            self.drop_link(core);
        }
        if let Some((_, tried)) = self.connecting {
            let again = tried + std::time::Duration::from_secs(1);
            self.retry |= again <= core.now;
            next = Some(next.map_or(again, |n| n.min(again)));
        }
        if self.is_admin && self.phase == Phase::Serving {
            if self.controller_tick <= core.now {
                match self.controller().map(|c| c.tick(core.now)) {
                    Some(Tick::Alive(at)) => self.controller_tick = at,
                    Some(Tick::Dead) | None => self.drop_link(core),
                }
            }
            next = Some(next.map_or(self.controller_tick, |n| n.min(self.controller_tick)));
        }
        next
    }

    /// Arms the socket; says whether the core may sleep.
    pub(super) fn prepare_sleep(&mut self) -> Sleep {
        let waits_for_turn = match self.phase {
            Phase::Gone => true,
            Phase::Draining => self.slots.used() == 0,
            Phase::Parting => self.tx.is_empty() && !self.shut,
            _ => self.retry && (!self.waiting.is_empty() || self.connecting.is_some()),
        };
        if waits_for_turn {
            return Sleep::KeepPolling;
        }
        if self.phase == Phase::Draining {
            return Sleep::Armed;
        }
        self.stream.arm(!self.tx.is_empty());
        // Whoever wakes the core, this one is not tried before it reports readable.
        self.hot = 0;
        let ready = self.stream.ready();
        let wants = (ready.readable && self.receives()) || (ready.writable && !self.tx.is_empty());
        if wants { Sleep::KeepPolling } else { Sleep::Armed }
    }
}
