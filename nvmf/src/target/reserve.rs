//! Reservations: one command after the other for each namespace, durable where it has to be, obeyed by every core before
//! it completes.
//!
//! # A command
//! The state machine ([`nvme::reservation`]) says what the namespace's state becomes, or refuses. Then, in this order:
//! 1. What persists through power loss is *saved*, when it changed. A crash after this finds the new state, of a command
//!    that nobody was told the end of, which is one of its two legal outcomes. The other order would forget what hosts
//!    rely on already.
//! 2. The new rights are *ordered* from every core ([`CoreMsg::Reserve`]), and the cores acknowledge.
//! 3. Hosts are *told* (log page and event), and the command *completes*. The next one begins.
//!
//! # Why no write of a fenced host comes late (HAZARDS H3, H6)
//! A core looks at the rights in the same step in which it gives a command to the device, with nothing between, and
//! whatever a command waited for before (its data, a buffer, its turn, the end of a pause). The order changes the rights
//! between two such steps. So of the commands that the new rights forbid, each on that core was either given to the
//! device before the order, or is refused. The core notes the first kind when the order arrives, by slot and generation,
//! and acknowledges when the device has completed the last of them; none joins them, so that this ends whatever else
//! goes on. When all cores have acknowledged, nothing that is forbidden is in a device or will ever be, on no queue, of
//! no controller, old or new: rights belong to the namespace and the host, not to a connection. A core that comes later
//! starts with the rights of the moment. A connection that ends stays with its core until its last command completed, so
//! what it left behind is waited for as well. What the device completed is in the order of the device: a write of the
//! new holder, sent after its command completed, comes after all of it.
//!
//! Commands of one namespace do not overlap, so a command that changes nothing (an Acquire of what one holds) still
//! completes after the cores obeyed the command before it.
//!
//! # What it does not cover
//! A namespace is one device in one subsystem. The same device in two subsystems has two states, and users of a device
//! inside of this process do not pass here: a local nexus child is not fenced by its reservations (see `nexus`, fencing).

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nvme::reservation::{Access, Command, Held, Outcome, Registrant, Report, ReportRequest, Reservations};
use nvme::{Cid, HostId, Nsid, NvmOpcode, Qid, Sqe, Status};

use super::admin::{AdminOutcome, Event};
use super::board::{Acks, CoreFailure, CoreInbox, CoreMsg, LateCompletion};
use super::control::Place;
use super::controller::{AdminCompletion, Controller};
use super::handle::Shared;
use super::nvm;

/// What persists through power loss.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedReservations {
    /// Hosts that are registered, oldest first.
    pub registrants: Vec<Registrant>,
    /// The reservation.
    pub held: Option<Held>,
}

/// Called when a save came to its end, from any thread.
pub type SaveDone = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Keeps the reservations of one namespace through power loss.
pub trait ReservationStore: Send + Sync {
    /// Replaces what is kept, durably, or forgets it (`None`), and calls `done`. Does not block: called on cores. Never
    /// called again before `done` was; a `done` that is dropped counts as a failure.
    fn save(&self, state: Option<SavedReservations>, done: SaveDone);
}

/// The reservations of a namespace that persist.
#[derive(Clone)]
pub struct PersistentReservations {
    /// As they were found.
    pub saved: Reservations,
    /// Where they are kept.
    pub store: Arc<dyn ReservationStore>,
}

impl PersistentReservations {
    /// Nothing was kept of this namespace.
    pub fn none(store: Arc<dyn ReservationStore>) -> Self {
        Self { saved: Reservations::new(true), store }
    }
}

/// Reservations of one namespace, behind the model's lock.
pub(super) struct Desk {
    state: Reservations,
    /// The rights that the cores have or were ordered to have.
    access: Option<Arc<Access>>,
    store: Option<Arc<dyn ReservationStore>>,
    stage: Stage,
    /// Commands that wait for the one before them. As many as hosts have in flight.
    waiting: VecDeque<Request>,
}

/// Where the command at the head is. The steps of a command may end within the call that begins them, or later, on any
/// thread; either way the next one is begun by a loop, not from inside of the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// There is none.
    Idle,
    /// A loop is about to begin it, or has, and has not looked whether it ended.
    Begun,
    /// It ended before the loop looked.
    Ended,
    /// The loop has left; whoever ends it goes on with the next.
    Away,
}

impl Desk {
    pub(super) fn new(persistent: Option<PersistentReservations>) -> Self {
        let (state, store) = match persistent {
            Some(kept) => (kept.saved, Some(kept.store)),
            None => (Reservations::new(false), None),
        };
        let access = state.access().map(Arc::new);
        Self { state, access, store, stage: Stage::Idle, waiting: VecDeque::new() }
    }

    pub(super) fn state(&self) -> &Reservations {
        &self.state
    }

    /// For a core that opens the namespace.
    pub(super) fn access(&self) -> Option<Arc<Access>> {
        self.access.clone()
    }
}

/// A command on its way.
pub(super) struct Request {
    pub(super) host: HostId,
    pub(super) command: Command,
    pub(super) reply: Arc<Reply>,
}

/// Completes a command when the last clone is dropped: with the first error that it was given, with success when it was
/// given that alone, with Invalid Namespace when nobody answered, because the namespace went away.
pub(super) struct Reply {
    to: Mutex<Option<ReplyTo>>,
    status: Mutex<Option<Status>>,
}

/// Where a command came from.
pub(super) enum ReplyTo {
    /// An I/O queue.
    Io { inbox: Arc<CoreInbox>, controller: Arc<Controller>, qid: Qid, cid: Cid },
    /// The admin queue.
    Admin { controller: Arc<Controller>, cid: Cid },
}

impl Reply {
    pub(super) fn new(to: ReplyTo) -> Arc<Self> {
        Arc::new(Self { to: Mutex::new(Some(to)), status: Mutex::new(None) })
    }

    fn answer(&self, status: Status) {
        let mut kept = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none_or(|old| old.is_success()) {
            *kept = Some(status);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let kept = *self.status.get_mut().unwrap_or_else(PoisonError::into_inner);
        let status = kept.unwrap_or(Status::INVALID_NAMESPACE);
        match self.to.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            Some(ReplyTo::Io { inbox, controller, qid, cid }) => {
                inbox.post(CoreMsg::Complete(LateCompletion { controller, qid, cid, status }));
            }
            Some(ReplyTo::Admin { controller, cid }) => {
                let mut state = controller.lock();
                state.admin.completions.push(AdminCompletion::new(cid, status, 0));
                controller.announce_completions(&state);
            }
            None => {}
        }
    }
}

/// A command that was found legal, on its way through save and order.
struct Change {
    next: Reservations,
    outcome: Outcome,
    reply: Arc<Reply>,
}

fn saved(state: &Reservations) -> Option<SavedReservations> {
    state
        .persists()
        .then(|| SavedReservations { registrants: state.registrants().to_vec(), held: state.held() })
}

impl Shared {
    /// Takes a command that changes reservations.
    pub(super) fn reserve(self: &Arc<Self>, place: Place, request: Request) {
        let mut model = self.lock();
        let Some((_, ns)) = model.namespace_mut(place) else {
            drop(model);
            return drop(request);
        };
        ns.desk.waiting.push_back(request);
        if ns.desk.stage != Stage::Idle {
            return;
        }
        ns.desk.stage = Stage::Begun;
        drop(model);
        self.reservations(place);
    }

    /// Executes commands until none waits, or one goes on elsewhere.
    fn reservations(self: &Arc<Self>, place: Place) {
        loop {
            let mut model = self.lock();
            let Some((_, ns)) = model.namespace_mut(place) else { return };
            let Some(request) = ns.desk.waiting.pop_front() else {
                ns.desk.stage = Stage::Idle;
                return;
            };
            ns.desk.stage = Stage::Begun;
            let mut next = ns.desk.state.clone();
            let verdict = next.apply(request.host, &request.command);
            let (old, new) = (saved(&ns.desk.state), saved(&next));
            let store = ns.desk.store.clone().filter(|_| old != new);
            // Neither replies nor stores are called under the lock.
            drop(model);
            let Request { reply, .. } = request;
            let outcome = match verdict {
                Ok(outcome) => outcome,
                Err(status) => {
                    reply.answer(status);
                    continue;
                }
            };
            let change = Change { next, outcome, reply };
            match store {
                Some(store) => {
                    let pending = Pending { shared: self.clone(), place, change: Some(change) };
                    store.save(new, Box::new(move |result| pending.saved(result)));
                }
                None => self.order_reservation(place, change),
            }
            let mut model = self.lock();
            let Some((_, ns)) = model.namespace_mut(place) else { return };
            if ns.desk.stage == Stage::Begun {
                ns.desk.stage = Stage::Away;
                return;
            }
        }
    }

    /// The command at the head came to its end.
    fn reservation_ended(self: &Arc<Self>, place: Place) {
        let mut model = self.lock();
        let Some((_, ns)) = model.namespace_mut(place) else { return };
        if ns.desk.stage != Stage::Away {
            ns.desk.stage = Stage::Ended;
            return;
        }
        drop(model);
        self.reservations(place);
    }

    /// The change is durable, or need not be: the cores are to obey it.
    fn order_reservation(self: &Arc<Self>, place: Place, change: Change) {
        let Change { next, outcome, reply } = change;
        let mut model = self.lock();
        let Some((_, ns)) = model.namespace_mut(place) else {
            drop(model);
            return drop(reply);
        };
        ns.desk.state = next;
        let access = ns.desk.state.access();
        let shared = self.clone();
        if ns.desk.access.as_deref() == access.as_ref() && outcome.abort.is_empty() {
            drop(model);
            return shared.reserved(place, &outcome, reply, Ok(()));
        }
        let access = access.map(Arc::new);
        ns.desk.access = access.clone();
        let abort: Arc<[HostId]> = outcome.abort.as_slice().into();
        let Place { subsystem, nsid, .. } = place;
        let order =
            |ack| CoreMsg::Reserve { subsystem, nsid, access: access.clone(), abort: abort.clone(), ack };
        let acks = Acks::broadcast(&model.cores, order);
        drop(model);
        acks.then(move |result| shared.reserved(place, &outcome, reply, result));
    }

    /// Every core obeys.
    fn reserved(
        self: &Arc<Self>,
        place: Place,
        outcome: &Outcome,
        reply: Arc<Reply>,
        result: Result<(), CoreFailure>,
    ) {
        let model = self.lock();
        if let Some(subsystem) = model.subsystem(place.subsystem) {
            for (host, notice) in &outcome.notices {
                let theirs = subsystem.controllers.values().filter(|c| c.hostid() == *host);
                theirs.for_each(|c| c.raise(Event::Reservation(place.nsid, *notice)));
            }
        }
        drop(model);
        // A core that stopped has nothing in its devices any more, but cannot be asked.
        reply.answer(result.map_or(Status::INTERNAL_ERROR, |()| Status::SUCCESS));
        drop(reply);
        self.reservation_ended(place);
    }
}

/// A change that is being saved. Dropped without an answer, the save has failed.
struct Pending {
    shared: Arc<Shared>,
    place: Place,
    change: Option<Change>,
}

impl Pending {
    fn saved(mut self, result: io::Result<()>) {
        if let (Some(change), Ok(())) = (self.change.take_if(|_| result.is_ok()), result) {
            self.shared.order_reservation(self.place, change);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(change) = self.change.take() {
            // Nothing changed here. What is on the disk is the old state or the new one, as for a command whose end
            // nobody heard of; the next change replaces it.
            change.reply.answer(Status::INTERNAL_ERROR);
            drop(change);
            self.shared.reservation_ended(self.place);
        }
    }
}

impl Controller {
    /// Executes a reservation command of I/O queue `qid`. `data` is what the host sent with it.
    pub fn reservation(self: &Arc<Self>, qid: Qid, sqe: &Sqe, data: &[u8]) -> AdminOutcome {
        self.reservation_command(qid, sqe, data).unwrap_or_else(AdminOutcome::error)
    }

    fn reservation_command(
        self: &Arc<Self>,
        qid: Qid,
        sqe: &Sqe,
        data: &[u8],
    ) -> Result<AdminOutcome, Status> {
        let nsid = sqe.nsid();
        if sqe.nvm_opcode() == NvmOpcode::RESERVATION_REPORT {
            return self.reservation_report(nsid, ReportRequest::decode(sqe));
        }
        let command = Command::decode(sqe, data).ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
        let place = self.place_of(nsid)?;
        let inbox = Self::queue_inbox(&self.lock(), qid).ok_or(Status::ABORTED_SQ_DELETION)?;
        let to = ReplyTo::Io { inbox, controller: self.clone(), qid, cid: sqe.cid() };
        self.shared.reserve(place, Request { host: self.hostid(), command, reply: Reply::new(to) });
        Ok(AdminOutcome::Later)
    }

    fn place_of(&self, nsid: Nsid) -> Result<Place, Status> {
        let model = self.shared.lock();
        let subsystem = model.subsystem(self.subsystem()).ok_or(Status::INVALID_NAMESPACE)?;
        let ns = subsystem.namespace(nsid).ok_or(Status::INVALID_NAMESPACE)?;
        Ok(Place { subsystem: subsystem.id, nsid, serial: ns.serial })
    }

    fn reservation_report(&self, nsid: Nsid, request: ReportRequest) -> Result<AdminOutcome, Status> {
        // Every host over fabrics has an identifier of 128 bits, for which the regular form has no room.
        if !request.extended {
            return Err(Status::HOST_ID_INCONSISTENT);
        }
        let model = self.shared.lock();
        let subsystem = model.subsystem(self.subsystem()).ok_or(Status::INVALID_NAMESPACE)?;
        let ns = subsystem.namespace(nsid).ok_or(Status::INVALID_NAMESPACE)?;
        let mut data = Report::of(ns.desk.state()).build(true);
        drop(model);
        // The length was checked against MDTS when the command was decoded.
        data.resize(request.len_bytes as usize, 0);
        Ok(AdminOutcome::Data { data, result: 0 })
    }

    /// Set Features, Reservation Persistence: of one namespace, or of all.
    pub(super) fn set_persistence(
        self: &Arc<Self>,
        nsid: Nsid,
        cid: Cid,
        on: bool,
    ) -> Result<AdminOutcome, Status> {
        let places: Vec<Place> = {
            let model = self.shared.lock();
            let subsystem = model.subsystem(self.subsystem()).ok_or(Status::INVALID_NAMESPACE)?;
            let chosen = subsystem.active().filter(|ns| match nsid {
                // Those that cannot are left as they are.
                Nsid::BROADCAST => ns.desk.state().can_persist(),
                one => ns.info.nsid == one,
            });
            let place = |ns: &super::model::Namespace| Place {
                subsystem: subsystem.id,
                nsid: ns.info.nsid,
                serial: ns.serial,
            };
            chosen.map(place).collect()
        };
        if places.is_empty() && nsid != Nsid::BROADCAST {
            return Err(Status::INVALID_NAMESPACE);
        }
        let reply = Reply::new(ReplyTo::Admin { controller: self.clone(), cid });
        if places.is_empty() {
            reply.answer(Status::SUCCESS);
        }
        for place in places {
            let request =
                Request { host: self.hostid(), command: Command::Persist(on), reply: reply.clone() };
            self.shared.reserve(place, request);
        }
        Ok(AdminOutcome::Later)
    }

    /// Get Features, Reservation Persistence.
    pub(super) fn persistence(&self, nsid: Nsid) -> Result<bool, Status> {
        let model = self.shared.lock();
        let subsystem = model.subsystem(self.subsystem()).ok_or(Status::INVALID_NAMESPACE)?;
        let ns = subsystem.namespace(nsid).ok_or(Status::INVALID_NAMESPACE)?;
        Ok(ns.desk.state().persists())
    }
}

/// Checks the SGL descriptor of a reservation command and says how much data it moves, and where.
pub(super) fn payload_of(sqe: &Sqe, max_bytes: u32) -> Result<(u32, nvm::Payload), Status> {
    let (len_bytes, to_host) = match Command::payload_len_bytes(sqe.nvm_opcode()) {
        Some(len_bytes) => (len_bytes, false),
        None => {
            let len_bytes = u32::try_from(ReportRequest::decode(sqe).len_bytes).unwrap_or(u32::MAX);
            if len_bytes > max_bytes {
                return Err(Status::INVALID_FIELD);
            }
            (len_bytes, true)
        }
    };
    Ok((len_bytes, nvm::payload(sqe, len_bytes, to_host)?))
}
