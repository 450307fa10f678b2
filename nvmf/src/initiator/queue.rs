//! One queue pair over one TCP connection: commands in, answers out, at most one receive and one gathered send a
//! turn. Used for the admin queue and for I/O queues.
//!
//! The protocol is [`crate::tcp`]'s; this adds the slots, the payload of each command, time limits, and the stream.
//! Whatever the controller sends, a queue answers each command exactly once: with its completion, or with the
//! fault that ended the connection.
//!
//! `unsafe` because the stream receives into, and sends from, memory that commands name.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use aio::{ByteStream, Instant, SgEntry, Sleep};
use nvme::sgl::SglDescriptor;
use nvme::tcp::{Digest, PduError};
use nvme::{Cid, Cqe, Sqe};

use super::error::PeerFault;
use super::memory;
use super::slot::{Slot, Slots, Way};
use crate::tcp::emit::{self, MAX_PDU_OVERHEAD_BYTES};
use crate::tcp::{
    C2hProgress, DataSpan, Engine, Event, Local, MAX_OUTSTANDING_R2T, Outbound, TxQueue, TxTag,
};

/// Bytes of one receive that do not go straight to the caller's memory.
const CHUNK_BYTES: usize = 64 << 10;

/// The same between large payloads: it takes a header and little of what follows, so that the rest of the payload
/// is received in place.
const SMALL_CHUNK_BYTES: usize = 4 << 10;

/// A payload from which on the small chunk is used.
const LARGE_PAYLOAD_BYTES: u32 = 32 << 10;

/// How long an empty receive in the middle of a payload keeps the next one away while other commands are in flight.
/// Every receive takes the socket's lock, also from a sender on this machine that is filling it at that moment. 2 us
/// are what 8 KiB take on loopback; they were measured to give 10-15 % at 128 KiB, and to cost nothing.
const PAYLOAD_PAUSE: Duration = Duration::from_micros(2);

/// Most entries of one receive into the caller's memory; the kernel takes 1,024.
const MAX_RECV_ENTRIES: usize = 512;

/// Weight of a new latency: an eighth.
const SMOOTHING_SHIFT: u32 = 3;

/// Gathered sends of one kick. Each takes what the socket has room for, so more than one is rare.
const SENDS_PER_KICK: usize = 4;

/// How a queue is set up.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueConfig {
    /// Commands in flight at most.
    pub(super) depth: u16,
    /// Offer header digests.
    pub(super) header_digest: bool,
    /// Offer data digests.
    pub(super) data_digest: bool,
    /// Time limit of a command.
    pub(super) timeout: Duration,
    /// How long a command may take beyond that, once it was reported as overdue; zero = not at all.
    pub(super) grace: Duration,
    /// Time limit of the connection's set-up.
    pub(super) connect_timeout: Duration,
}

/// The payload of a command.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data<'a> {
    /// None.
    None,
    /// Sent to the controller.
    Out {
        /// Where it is.
        sg: &'a [SgEntry],
        /// Its owner does not change it while the command is in flight.
        stable: bool,
    },
    /// Received from the controller.
    In {
        /// Where it goes.
        sg: &'a [SgEntry],
        /// Success with less than that is a breach of the rules. Pages may be shorter than was asked for.
        whole: bool,
    },
}

/// The one answer to an issued command.
#[derive(Debug)]
pub(super) struct Done {
    /// As given to `issue`.
    pub(super) user: u32,
    /// The completion, or why there is none.
    pub(super) result: Result<Cqe, PeerFault>,
}

/// Where the payload that is being received belongs.
struct Into {
    slot: u16,
    at: u32,
    end: u32,
    success: bool,
    digest: Option<Digest>,
}

/// See the module's documentation.
pub(super) struct Queue {
    stream: Option<Box<dyn ByteStream>>,
    fault: Option<PeerFault>,
    engine: Engine,
    tx: TxQueue,
    slots: Slots,
    done: VecDeque<Done>,
    into: Option<Into>,
    /// Slots whose data was asked for while the transmit list had no room for its header.
    starved: VecDeque<u16>,
    chunk: Box<[u8]>,
    iov: Vec<SgEntry>,
    large: bool,
    /// Until then a receive is tried only when the stream reports readable, see [`PAYLOAD_PAUSE`].
    pause_until: Instant,
    timeout: Duration,
    grace: Duration,
    /// Commands that have had no answer in time: to be aborted.
    overdue: VecDeque<Cid>,
    /// Smoothed time from issue to answer, in nanoseconds.
    latency_ns: u64,
    /// The time of the last poll.
    now: Instant,
    in_capsule_bytes: u32,
    /// When to look at the deadlines; none is earlier.
    next_check: Instant,
    /// The last poll left something to send, and nobody tried since.
    unsent: bool,
}

impl Queue {
    /// A queue on a stream that is connecting. [`is_open`](Self::is_open) tells when commands may be issued.
    pub(super) fn new(stream: Box<dyn ByteStream>, config: &QueueConfig, now: Instant) -> Self {
        let depth = config.depth.max(1);
        let local = Local {
            header_digest: config.header_digest,
            data_digest: config.data_digest,
            max_r2t: MAX_OUTSTANDING_R2T as u32,
            ..Local::host()
        };
        // Room for a capsule and an H2CData of each command, twice over because of `has_room`.
        let ring_bytes = usize::from(depth) * 2 * 128 + 2 * MAX_PDU_OVERHEAD_BYTES * 4;
        let mut tx = TxQueue::new(2 * ring_bytes, usize::from(depth) * 2, usize::from(depth) * 4);
        let engine = Engine::new(local);
        engine.start(&mut tx);
        Self {
            stream: Some(stream),
            fault: None,
            engine,
            tx,
            slots: Slots::new(depth),
            done: VecDeque::with_capacity(usize::from(depth)),
            into: None,
            starved: VecDeque::with_capacity(usize::from(depth)),
            chunk: vec![0; CHUNK_BYTES].into_boxed_slice(),
            iov: Vec::with_capacity(8),
            large: false,
            pause_until: now,
            timeout: config.timeout,
            grace: config.grace,
            overdue: VecDeque::new(),
            latency_ns: 0,
            now,
            in_capsule_bytes: 0,
            next_check: now + config.connect_timeout,
            unsent: true,
        }
    }

    /// True once ICReq and ICResp were exchanged, until a fault.
    pub(super) fn is_open(&self) -> bool {
        self.engine.is_running() && self.fault.is_none()
    }

    /// Why the queue is no more.
    pub(super) fn fault(&self) -> Option<PeerFault> {
        self.fault
    }

    /// Most payload that goes along with its command.
    pub(super) fn set_in_capsule_bytes(&mut self, bytes: u32) {
        self.in_capsule_bytes = bytes;
    }

    /// Other time limits for commands from now on.
    pub(super) fn set_timeout(&mut self, timeout: Duration, grace: Duration) {
        (self.timeout, self.grace) = (timeout, grace);
    }

    /// A command that has had no answer in time, and is given a little more: to be aborted.
    pub(super) fn take_overdue(&mut self) -> Option<Cid> {
        self.overdue.pop_front()
    }

    /// How long a command issued now would wait, for comparison only.
    pub(super) fn cost(&self) -> u64 {
        self.latency_ns.max(1_000).saturating_mul(self.slots.active() as u64 + 1)
    }

    // ---- issue ----

    /// Commands in flight at most.
    pub(super) fn depth(&self) -> u16 {
        self.slots.len()
    }

    /// Commands that can be issued now; none after a fault.
    #[inline]
    pub(super) fn room(&self) -> usize {
        if self.fault.is_none() && self.tx.has_room(2 * MAX_PDU_OVERHEAD_BYTES) {
            self.slots.free()
        } else {
            0
        }
    }

    /// Issues a command; CID and SGL of `sqe` are filled in. The caller checked [`room`](Self::room). `timed` =
    /// false exempts it from the time limit (Asynchronous Event Request).
    ///
    /// # Safety
    /// The memory that `data` names stays valid, and for `In` writable and otherwise untouched, until the answer
    /// was taken or the queue was dropped.
    pub(super) unsafe fn issue(
        &mut self,
        mut sqe: Sqe,
        data: Data<'_>,
        user: u32,
        now: Instant,
        timed: bool,
    ) {
        let Some(index) = self.slots.take() else {
            debug_assert!(false, "invariant: the caller checked the room");
            return;
        };
        let deadline = if timed { now + self.timeout } else { Instant::from_ns(u64::MAX) };
        let private = matches!(data, Data::Out { stable: false, .. }) && self.engine.agreed().data_digest;
        let slot = self.slots.get(index);
        slot.user = user;
        slot.deadline = deadline;
        slot.issued = now;
        slot.aborting = false;
        self.next_check = self.next_check.min(deadline);
        slot.way = match data {
            Data::None => Way::None,
            Data::Out { sg, .. } if private => {
                slot.copy.clear();
                // SAFETY: the caller promises readable memory until the answer.
                unsafe { memory::copy_out(sg, &mut slot.copy) };
                slot.sg.extend(memory::entry_of(&slot.copy));
                Way::Out
            }
            Data::Out { sg, .. } => {
                slot.sg.extend_from_slice(sg);
                Way::Out
            }
            Data::In { sg, whole } => {
                slot.sg.extend_from_slice(sg);
                slot.whole = whole;
                Way::In
            }
        };
        let total = aio::sg::total_bytes(&slot.sg) as u32;
        slot.total_bytes = total;
        slot.c2h = C2hProgress::new(if slot.way == Way::In { total } else { 0 });
        slot.out = Outbound::new(if slot.way == Way::Out { total } else { 0 });
        sqe.set_cid(Cid(slot.cid));
        let in_capsule = slot.way == Way::Out && total > 0 && total <= self.in_capsule_bytes;
        if in_capsule {
            slot.out = Outbound::new(0);
            slot.queued_bytes = total;
            sqe.set_sgl1(SglDescriptor::in_capsule(0, total));
            emit::command(&mut self.tx, self.engine.agreed(), &sqe, total);
            self.add_payload(index, 0, total);
        } else {
            sqe.set_sgl1(SglDescriptor::transport(total));
            emit::command(&mut self.tx, self.engine.agreed(), &sqe, 0);
            self.tx.finish(TxTag(u32::from(index)));
            slot.sending = 1;
        }
    }

    /// Adds payload and data digest to the PDU whose header was just queued, and closes it.
    fn add_payload(&mut self, index: u16, offset_bytes: u32, len_bytes: u32) {
        let (tx, slot) = (&mut self.tx, self.slots.get(index));
        let mut crc = self.engine.agreed().data_digest.then(Digest::new);
        memory::slice(&slot.sg, offset_bytes, len_bytes, |e| {
            if let Some(crc) = &mut crc {
                // SAFETY: who issued the command promised readable memory, and with digests in use it is stable
                // or the slot's own copy.
                unsafe { memory::digest(&e, crc) };
            }
            tx.data(e);
        });
        if let Some(crc) = crc {
            emit::data_digest(tx, crc.value());
        }
        tx.finish(TxTag(u32::from(index)));
        slot.sending += 1;
    }

    /// Takes back a command of which nothing was sent; false = too late.
    pub(super) fn take_back(&mut self, user: u32) -> bool {
        // Nothing but the capsule: a controller that asked for data has it.
        let capsule_only = |s: &Slot| s.user == user && s.sending == 1 && !s.out.was_asked();
        let Some((index, _)) = self.slots.iter_active().find(|(_, s)| capsule_only(s)) else { return false };
        let mut taken = false;
        self.tx.take_back(|tag| {
            let this = tag == TxTag(u32::from(index));
            taken |= this;
            this
        });
        if taken {
            self.slots.give(index);
        }
        taken
    }

    // ---- send ----

    /// Sends what is queued, as far as the socket takes it.
    pub(super) fn kick(&mut self) {
        if self.fault.is_some() {
            return;
        }
        for _ in 0..SENDS_PER_KICK {
            if self.tx.is_empty() || !self.send_once() {
                break;
            }
            self.feed_starved();
        }
        self.unsent = false;
    }

    /// One gathered send; true when the socket took all of it.
    fn send_once(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let gathered = self.tx.gather();
        // SAFETY: headers lie in the transmit list's ring, payload is kept by its owners until `sending` of its
        // slot is zero and the answer was taken.
        let sent = match unsafe { stream.send(gathered) } {
            Ok(Some(n)) => n,
            Ok(None) => return false,
            Err(_) => {
                self.fail(PeerFault::Closed);
                return false;
            }
        };
        let whole = sent as u64 == aio::sg::total_bytes(gathered);
        self.tx.advance(sent);
        while let Some(tag) = self.tx.pop_sent() {
            if tag != TxTag::NONE {
                self.payload_sent(tag.0 as u16);
            }
        }
        whole
    }

    fn payload_sent(&mut self, index: u16) {
        let slot = self.slots.get(index);
        slot.sending -= 1;
        if slot.sending == 0
            && let Some(cqe) = slot.answer.take()
        {
            self.complete(index, cqe);
        }
    }

    /// Queues the data PDUs that the controller asked for, as room permits.
    fn send_data(&mut self, index: u16) {
        loop {
            if !self.tx.has_room(MAX_PDU_OVERHEAD_BYTES) {
                self.starved.push_back(index);
                return;
            }
            let agreed = *self.engine.agreed();
            let slot = self.slots.get(index);
            let Some(span) = slot.out.next_pdu(agreed.max_h2c_data_bytes) else { return };
            slot.queued_bytes += span.len_bytes;
            let cid = slot.cid;
            emit::h2c_data(&mut self.tx, &agreed, cid, span);
            self.add_payload(index, span.offset_bytes, span.len_bytes);
        }
    }

    fn feed_starved(&mut self) {
        for _ in 0..self.starved.len() {
            let Some(index) = self.starved.pop_front() else { break };
            if self.slots.get(index).active && self.slots.get(index).answer.is_none() {
                self.send_data(index);
            }
        }
    }

    // ---- receive ----

    /// One receive and everything that it brought; looks at the deadlines. Returns whether anything happened.
    pub(super) fn poll(&mut self, now: Instant) -> bool {
        if self.fault.is_some() {
            return false;
        }
        self.now = now;
        if now >= self.next_check {
            self.check_deadlines(now);
        }
        if self.unsent {
            // Nobody kicked since the last poll: what it queued, or what the socket did not take, goes now.
            self.kick();
        }
        let hot = self.slots.active() > 0 && now >= self.pause_until;
        let readable = self.stream.as_ref().is_some_and(|s| hot || s.ready().readable);
        let some = readable && self.receive();
        if hot && !some && self.into.is_some() && self.slots.active() > 1 {
            self.pause_until = now + PAYLOAD_PAUSE;
        }
        self.unsent = !self.tx.is_empty();
        some
    }

    fn receive(&mut self) -> bool {
        let direct = self.place();
        let mut chunk = std::mem::take(&mut self.chunk);
        let room = if self.large { SMALL_CHUNK_BYTES } else { CHUNK_BYTES };
        self.iov.extend(memory::entry_of_mut(&mut chunk[..room]));
        let received = match &mut self.stream {
            // SAFETY: the first entries name the payload of a command in flight, writable until its answer; the
            // last names the chunk, which this function holds.
            Some(stream) => unsafe { stream.recv(&self.iov) },
            None => Ok(None),
        };
        self.iov.clear();
        let some = match received {
            Ok(None) => false,
            Ok(Some(0)) | Err(_) => {
                self.fail(PeerFault::Closed);
                true
            }
            Ok(Some(n)) => {
                let in_place = n.min(direct as usize);
                self.placed(in_place as u32);
                self.digest_input(&chunk[..n - in_place]);
                true
            }
        };
        self.chunk = chunk;
        some
    }

    /// Puts what is left of the payload in progress into `iov`; returns how many bytes that is.
    fn place(&mut self) -> u32 {
        self.iov.clear();
        let Some(into) = &self.into else { return 0 };
        let (at, left) = (into.at, self.engine.payload_left());
        let (iov, mut bytes) = (&mut self.iov, 0);
        memory::slice(&self.slots.get(into.slot).sg, at, left, |e| {
            if iov.len() < MAX_RECV_ENTRIES {
                bytes += e.len_bytes;
                iov.push(e);
            }
        });
        // Where the list was cut, the chunk takes more of the payload, which then comes as a piece.
        bytes
    }

    /// Notes `n` bytes that were received in place.
    fn placed(&mut self, n: u32) {
        let Some(into) = self.into.as_mut().filter(|_| n > 0) else { return };
        if let Some(crc) = &mut into.digest {
            memory::slice(&self.slots.get(into.slot).sg, into.at, n, |e| {
                // SAFETY: these bytes were just received into the payload of a command in flight, which nobody else
                // touches until its answer.
                unsafe { memory::digest(&e, crc) };
            });
        }
        into.at += n;
        self.engine.received_in_place(n);
    }

    fn digest_input(&mut self, input: &[u8]) {
        let mut at = 0;
        while self.fault.is_none() {
            match self.engine.next(input, &mut at, &mut self.tx) {
                Ok(Some(event)) => {
                    if let Err(error) = self.event(event) {
                        self.protocol_error(error);
                    }
                }
                Ok(None) => break,
                Err(error) => self.protocol_error(error),
            }
        }
    }

    fn event(&mut self, event: Event<'_>) -> Result<(), PduError> {
        match event {
            Event::Initialized(_) => {}
            Event::Response(cqe) => return self.response(cqe),
            Event::R2t { cccid, span } => return self.r2t(cccid, span),
            Event::C2hData { cccid, span, success, data } => {
                let slot = self.find(cccid, PduError::CCCID)?;
                if self.slots.get(slot).answer.is_some() {
                    // It completes as soon as its capsule was sent, and then this payload's place is somebody else's.
                    return Err(PduError::Sequence);
                }
                self.slots.get(slot).c2h.accept(span, success)?;
                self.large = span.len_bytes >= LARGE_PAYLOAD_BYTES;
                let Some(bytes) = data.here else {
                    let digest = self.engine.agreed().data_digest.then(Digest::new);
                    let (at, end) = (span.offset_bytes, span.offset_bytes + span.len_bytes);
                    self.into = Some(Into { slot, at, end, success, digest });
                    return Ok(());
                };
                let s = self.slots.get(slot);
                s.damaged |= !data.intact;
                // SAFETY: the payload of a command in flight, writable until its answer; `accept` bounded it.
                unsafe { memory::copy_into(&s.sg, span.offset_bytes, bytes) };
                if success {
                    self.succeed(slot)?;
                }
            }
            Event::Piece(bytes) => {
                let Some(into) = &mut self.into else { return Err(PduError::Sequence) };
                if let Some(crc) = &mut into.digest {
                    crc.update(bytes);
                }
                // SAFETY: as above; the engine gives no more pieces than the PDU announced.
                unsafe { memory::copy_into(&self.slots.get(into.slot).sg, into.at, bytes) };
                into.at += bytes.len() as u32;
            }
            Event::PayloadEnd { digest } => {
                let Some(into) = self.into.take() else { return Err(PduError::Sequence) };
                debug_assert_eq!(into.at, into.end);
                let computed = into.digest.map(|d| d.value());
                self.slots.get(into.slot).damaged |= digest != computed;
                if into.success {
                    self.succeed(into.slot)?;
                }
            }
            Event::Terminated(notice) => self.fail(PeerFault::Terminated(notice.fes.get())),
            // The engine gives these to controllers only.
            Event::Command(..) | Event::H2cData { .. } => return Err(PduError::TYPE),
        }
        Ok(())
    }

    fn find(&self, cid: u16, otherwise: PduError) -> Result<u16, PduError> {
        self.slots.find(cid).ok_or(otherwise)
    }

    fn response(&mut self, cqe: Cqe) -> Result<(), PduError> {
        // CID stands at byte 12 of the completion, behind the common header.
        let index = self.find(cqe.cid().0, PduError::Field { offset_bytes: 20 })?;
        self.answered(index, cqe)
    }

    /// C2HData with SUCCESS: the response that is not sent.
    fn succeed(&mut self, index: u16) -> Result<(), PduError> {
        let cid = Cid(self.slots.get(index).cid);
        self.answered(index, Cqe::new(cid, nvme::Status::SUCCESS, 0))
    }

    fn answered(&mut self, index: u16, cqe: Cqe) -> Result<(), PduError> {
        let slot = self.slots.get(index);
        if slot.answer.is_some() {
            return Err(PduError::Field { offset_bytes: 20 });
        }
        let cqe = slot.judge(cqe).map_err(|_| PduError::Sequence)?;
        if slot.sending > 0 {
            slot.answer = Some(cqe);
        } else {
            self.complete(index, cqe);
        }
        Ok(())
    }

    fn r2t(&mut self, cccid: u16, span: DataSpan) -> Result<(), PduError> {
        let index = self.find(cccid, PduError::CCCID)?;
        let max_r2t = self.engine.agreed().max_r2t;
        let slot = self.slots.get(index);
        if slot.answer.is_some() {
            return Err(PduError::Sequence);
        }
        slot.out.grant(span, max_r2t)?;
        self.send_data(index);
        Ok(())
    }

    fn complete(&mut self, index: u16, cqe: Cqe) {
        let slot = self.slots.get(index);
        let user = slot.user;
        // The turn's resolution is enough to tell paths apart.
        let sample =
            u64::try_from(self.now.since(slot.issued).as_nanos()).unwrap_or(u64::MAX >> SMOOTHING_SHIFT);
        self.latency_ns =
            self.latency_ns - (self.latency_ns >> SMOOTHING_SHIFT) + (sample >> SMOOTHING_SHIFT);
        self.slots.give(index);
        self.done.push_back(Done { user, result: Ok(cqe) });
    }

    /// The next answer.
    #[inline]
    pub(super) fn take_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    // ---- time, sleep, end ----

    fn check_deadlines(&mut self, now: Instant) {
        if !self.engine.is_running() {
            return self.fail(PeerFault::Timeout);
        }
        for index in 0..self.slots.len() {
            let slot = self.slots.get(index);
            if !slot.active || slot.deadline > now {
                continue;
            }
            if self.grace.is_zero() || slot.aborting {
                return self.fail(PeerFault::Timeout);
            }
            slot.aborting = true;
            slot.deadline = now + self.grace;
            self.overdue.push_back(Cid(slot.cid));
        }
        let first = self.slots.iter_active().map(|(_, s)| s.deadline).min();
        self.next_check = first.unwrap_or(now + self.timeout).min(now + self.timeout);
    }

    /// Arms the wake-up and looks a last time.
    pub(super) fn prepare_sleep(&mut self) -> Sleep {
        if !self.done.is_empty() {
            return Sleep::KeepPolling;
        }
        self.kick();
        let Some(stream) = self.stream.as_mut().filter(|_| self.fault.is_none()) else {
            return if self.done.is_empty() { Sleep::Armed } else { Sleep::KeepPolling };
        };
        let waiting = !self.tx.is_empty();
        stream.arm(waiting);
        let ready = stream.ready();
        if ready.readable || (waiting && ready.writable) {
            self.unsent = waiting;
            return Sleep::KeepPolling;
        }
        if self.slots.active() > 0 || !self.engine.is_running() {
            Sleep::Until(self.next_check)
        } else {
            Sleep::Armed
        }
    }

    fn protocol_error(&mut self, error: PduError) {
        if self.tx.has_room(MAX_PDU_OVERHEAD_BYTES) {
            self.engine.fail(error, &mut self.tx);
            if let Some(stream) = &mut self.stream {
                // SAFETY: as in `send_once`. What does not fit now is not sent at all.
                let _ = unsafe { stream.send(self.tx.gather()) };
            }
        }
        self.fail(PeerFault::Protocol(error));
    }

    /// Ends the connection; everything in flight is answered with `fault`. Later faults change nothing.
    pub(super) fn fail(&mut self, fault: PeerFault) {
        if self.fault.is_some() {
            return;
        }
        self.fault = Some(fault);
        // Nothing of it reaches the controller from now on, not even what the kernel has taken (hazard H3).
        if let Some(stream) = &mut self.stream {
            stream.abort();
        }
        self.end();
    }

    /// Ends the connection in peace: what the kernel has taken is still delivered. For queues without changes in flight.
    pub(super) fn close(&mut self, fault: PeerFault) {
        if self.fault.is_none() {
            self.fault = Some(fault);
            self.end();
        }
    }

    fn end(&mut self) {
        let fault = self.fault.unwrap_or(PeerFault::Closed);
        // From here on nothing reads or writes the payloads: streams copy within their calls.
        self.stream = None;
        self.into = None;
        self.starved.clear();
        let indices: Vec<u16> = self.slots.iter_active().map(|(index, _)| index).collect();
        for index in indices {
            let user = self.slots.get(index).user;
            self.slots.give(index);
            self.done.push_back(Done { user, result: Err(fault) });
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
