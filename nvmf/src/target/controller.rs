//! One association: its queues, properties, Keep Alive Timer, and its end.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aio::Instant;
use nvme::fabrics::{FabricsSqe, PropertySqe};
use nvme::property::{Cap, Cc, Crto, Csts, PropertyOffset, Version};
use nvme::{Cid, Cntlid, HostId, Nqn, Qid, Sqe, Status};

use super::admin::{AdminOutcome, AdminState};
use super::ana::ListenerId;
use super::board::{CoreInbox, CoreMsg, SubsystemId};
use super::handle::Shared;
use super::model::Subsystem;

/// Longest time that enabling and disabling take, in units of 500 ms (CAP.TO, CRTO.CRWMT). Disabling waits for
/// I/O in flight.
pub(super) const READY_TIMEOUT_500MS: u8 = 30;

/// Granularity of the Keep Alive Timer (KAS): timeouts are rounded up to it.
pub(super) const KEEP_ALIVE_UNIT_MS: u32 = 1000;

/// What a controller is for (identify controller, CNTRLTYPE).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ControllerKind {
    /// Serves namespaces.
    Io = 1,
    /// Serves the discovery log page.
    Discovery = 2,
}

/// Why an association ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// The admin connection was closed.
    AdminQueueGone,
    /// No command arrived within the Keep Alive Timeout.
    KeepAliveExpired,
    /// The controller was not enabled in time.
    NeverEnabled,
    /// A discovery controller without Keep Alive was idle for too long.
    Idle,
    /// The host is not allowed any more.
    HostRemoved,
    /// The subsystem is being deleted.
    SubsystemDeleted,
    /// The host ended it through another association.
    EndedByHost,
}

/// One completion on the admin queue that came later than its command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdminCompletion {
    /// Which command.
    pub cid: Cid,
    /// How it ended.
    pub status: Status,
    /// Dwords 0 and 1.
    pub result: u64,
    /// For the host: exactly as long as the command's SGL descriptor says, or nothing.
    pub data: Vec<u8>,
}

impl AdminCompletion {
    /// One without data.
    pub(super) fn new(cid: Cid, status: Status, result: u64) -> Self {
        Self { cid, status, result, data: Vec::new() }
    }
}

/// What [`Controller::tick`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tick {
    /// Alive; tick again at this time.
    Alive(Instant),
    /// The association is dead: close its connections.
    Dead,
}

/// One queue of a controller, as its connection holds it.
///
/// Drop it when nothing of the queue is in flight any more, down to the device: that is what frees the queue
/// identifier, lets a shutdown complete, and (for the last queue of a dead controller) lets the host come back.
pub struct QueueGrant {
    controller: Arc<Controller>,
    queue: Arc<Queue>,
    sq_flow_control: bool,
}

pub(super) struct Queue {
    qid: Qid,
    entries: u32,
    closing: AtomicBool,
    inbox: Arc<CoreInbox>,
}

impl QueueGrant {
    /// The association.
    pub fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }

    /// Which queue; 0 is the admin queue.
    pub fn qid(&self) -> Qid {
        self.queue.qid
    }

    /// Entries of the submission queue: no more commands may be in flight.
    pub fn entries(&self) -> u32 {
        self.queue.entries
    }

    /// Whether completions carry the submission queue head (false when the host asked to do without).
    pub fn sq_flow_control(&self) -> bool {
        self.sq_flow_control
    }

    /// True when the connection has to be closed: stop taking commands, finish or abort those in flight, close,
    /// drop the grant. One relaxed load; look every turn, or upon [`CoreMsg::Attend`].
    pub fn closing(&self) -> bool {
        self.queue.closing.load(Ordering::Relaxed)
    }
}

impl Drop for QueueGrant {
    fn drop(&mut self) {
        self.controller.queue_gone(self.queue.qid);
    }
}

/// One controller of one subsystem: made by the Connect of an admin queue.
pub struct Controller {
    pub(super) shared: Arc<Shared>,
    instance: u64,
    subsystem: SubsystemId,
    subnqn: Nqn,
    cntlid: Cntlid,
    kind: ControllerKind,
    hostnqn: Nqn,
    hostid: HostId,
    listener: ListenerId,
    local: SocketAddr,
    peer: SocketAddr,
    inbox: Arc<CoreInbox>,
    last_command_ns: AtomicU64,
    alive: AtomicBool,
    has_completions: AtomicBool,
    told_no_cache: AtomicBool,
    retry_delay: AtomicBool,
    state: Mutex<ControllerState>,
}

/// Everything about a controller that changes, except what is read every turn.
pub(super) struct ControllerState {
    cc: Cc,
    csts: Csts,
    death: Option<Death>,
    queues: BTreeMap<Qid, Arc<Queue>>,
    /// Keep Alive Timeout; 0 = off.
    pub(super) kato_ms: u32,
    /// Since when it is not enabled.
    disabled_since: Option<Instant>,
    pub(super) admin: AdminState,
    /// Vendor specific commands in flight: they outlive their queue.
    pub(super) calls: u8,
}

/// What a new controller is made from.
pub(super) struct NewController {
    pub(super) shared: Arc<Shared>,
    pub(super) instance: u64,
    pub(super) subsystem: SubsystemId,
    pub(super) subnqn: Nqn,
    pub(super) cntlid: Cntlid,
    pub(super) kind: ControllerKind,
    pub(super) hostnqn: Nqn,
    pub(super) hostid: HostId,
    pub(super) listener: ListenerId,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) inbox: Arc<CoreInbox>,
    pub(super) kato_ms: u32,
    pub(super) now: Instant,
}

/// Why a queue cannot be added now.
pub(super) enum QueueRefusal {
    /// The controller is dead.
    Dead,
    /// Not enabled, or shutting down.
    NotReady,
    /// Above the number of queues that was granted.
    BadQid,
    /// A living queue has this identifier.
    Taken,
    /// The queue of this identifier is still draining.
    Draining,
}

impl Controller {
    pub(super) fn new(new: NewController) -> Arc<Self> {
        let state = ControllerState {
            cc: Cc(0),
            csts: Csts(0),
            death: None,
            queues: BTreeMap::new(),
            kato_ms: new.kato_ms,
            disabled_since: Some(new.now),
            admin: AdminState::new(&new.shared.config, new.hostid),
            calls: 0,
        };
        Arc::new(Self {
            shared: new.shared,
            instance: new.instance,
            subsystem: new.subsystem,
            subnqn: new.subnqn,
            cntlid: new.cntlid,
            kind: new.kind,
            hostnqn: new.hostnqn,
            hostid: new.hostid,
            listener: new.listener,
            local: new.local,
            peer: new.peer,
            inbox: new.inbox,
            last_command_ns: AtomicU64::new(new.now.as_ns()),
            alive: AtomicBool::new(true),
            has_completions: AtomicBool::new(false),
            told_no_cache: AtomicBool::new(false),
            retry_delay: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    // What the cores read every turn.

    /// False once the association ended for whatever reason. One relaxed load.
    pub fn alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Tells that commands of this controller arrived in the turn at `now`, on whatever queue: traffic keeps the
    /// Keep Alive Timer from running out. Call once a connection and turn; stores at most ten times a second.
    pub fn saw_traffic(&self, now: Instant) {
        const STEP_NS: u64 = 100_000_000;
        if now.as_ns().saturating_sub(self.last_command_ns.load(Ordering::Relaxed)) >= STEP_NS {
            self.last_command_ns.store(now.as_ns(), Ordering::Relaxed);
        }
    }

    /// True when [`take_completions`](Self::take_completions) has something for the admin queue.
    pub fn has_completions(&self) -> bool {
        self.has_completions.load(Ordering::Acquire)
    }

    /// Moves the late completions (asynchronous events, Aborts, vendor specific commands) into `out`, oldest first.
    pub fn take_completions(&self, out: &mut Vec<AdminCompletion>) {
        let mut state = self.lock();
        self.has_completions.store(false, Ordering::Relaxed);
        out.append(&mut state.admin.completions);
    }

    /// Whether statuses may carry a Command Retry Delay (the host enabled Advanced Command Retry). Otherwise
    /// clear that field before a completion goes out.
    pub fn takes_retry_delay(&self) -> bool {
        self.retry_delay.load(Ordering::Relaxed)
    }

    pub(super) fn set_retry_delay(&self, on: bool) {
        self.retry_delay.store(on, Ordering::Relaxed);
    }

    // Who and where.

    /// The subsystem's place in the cores' tables.
    pub fn subsystem(&self) -> SubsystemId {
        self.subsystem
    }

    /// The subsystem's name.
    pub fn subnqn(&self) -> &Nqn {
        &self.subnqn
    }

    /// Controller identifier.
    pub fn cntlid(&self) -> Cntlid {
        self.cntlid
    }

    /// Tells it apart from every other association of this target, and of the one before it restarted.
    pub(super) fn instance(&self) -> u64 {
        self.instance
    }

    /// What it is for.
    pub fn kind(&self) -> ControllerKind {
        self.kind
    }

    /// The host's name.
    pub fn hostnqn(&self) -> &Nqn {
        &self.hostnqn
    }

    /// The host's identifier.
    pub fn hostid(&self) -> HostId {
        self.hostid
    }

    /// The listener that the admin queue came through: ANA states are told apart by it.
    pub fn listener(&self) -> ListenerId {
        self.listener
    }

    /// Our end of the admin connection.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The host's end of the admin connection.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    pub(super) fn is_host(&self, hostnqn: &Nqn, hostid: HostId) -> bool {
        self.hostid == hostid && self.hostnqn == *hostnqn
    }

    /// Why it ended, `None` while alive.
    pub fn death(&self) -> Option<Death> {
        self.lock().death
    }

    /// True when enabled and ready.
    pub fn ready(&self) -> bool {
        self.lock().csts.rdy()
    }

    /// Identify said that there is no volatile write cache. Said and asked under the model's lock.
    pub(super) fn tell_no_cache(&self) {
        self.told_no_cache.store(true, Ordering::Relaxed);
    }

    pub(super) fn was_told_no_cache(&self) -> bool {
        self.told_no_cache.load(Ordering::Relaxed)
    }

    /// A namespace of the subsystem loses completed writes on power failure until a Flush.
    pub(super) fn has_volatile_cache(&self) -> bool {
        let model = self.shared.lock();
        model.subsystem(self.subsystem).is_some_and(Subsystem::has_volatile_cache)
    }

    /// How many I/O queues are connected.
    pub fn io_queues(&self) -> usize {
        self.lock().io_queues()
    }

    // Commands.

    /// Executes a command of the admin queue (everything except Connect). `data` is what the host sent with it:
    /// exactly as many bytes as its SGL descriptor says, when [`Sqe::direction`] is host to controller.
    pub fn admin(self: &Arc<Self>, sqe: &Sqe, data: &[u8], now: Instant) -> AdminOutcome {
        self.last_command_ns.store(now.as_ns(), Ordering::Relaxed);
        if let Some(command) = FabricsSqe::of(sqe) {
            return match command {
                FabricsSqe::PropertyGet(get) => AdminOutcome::from(self.property_get(get)),
                FabricsSqe::PropertySet(set) => AdminOutcome::from(self.property_set(set, now).map(|()| 0)),
                FabricsSqe::Connect(_) => AdminOutcome::error(Status::SEQUENCE_ERROR),
                FabricsSqe::Disconnect(_) => AdminOutcome::error(Status::DISCONNECT_INVALID_QUEUE_TYPE),
                FabricsSqe::AuthenticationSend(_) | FabricsSqe::AuthenticationReceive(_) => {
                    AdminOutcome::error(Status::SEQUENCE_ERROR)
                }
                FabricsSqe::Unknown(_) => AdminOutcome::error(Status::INVALID_FIELD),
            };
        }
        self.execute(sqe, data, now)
    }

    /// Executes a Fabrics command of I/O queue `qid`. `Ok` = Disconnect: send the completion, then close.
    pub fn io_fabrics(&self, qid: Qid, sqe: &Sqe) -> Result<(), Status> {
        match FabricsSqe::of(sqe) {
            Some(FabricsSqe::Disconnect(command)) if command.recfmt.get() == 0 => {
                if let Some(queue) = self.lock().queues.get(&qid) {
                    queue.closing.store(true, Ordering::Relaxed);
                }
                Ok(())
            }
            Some(FabricsSqe::Disconnect(_)) => Err(Status::CONNECT_INCOMPATIBLE_FORMAT),
            Some(FabricsSqe::Connect(_)) => Err(Status::SEQUENCE_ERROR),
            Some(FabricsSqe::PropertyGet(_) | FabricsSqe::PropertySet(_)) => Err(Status::INVALID_FIELD),
            Some(FabricsSqe::AuthenticationSend(_) | FabricsSqe::AuthenticationReceive(_)) => {
                Err(Status::SEQUENCE_ERROR)
            }
            Some(FabricsSqe::Unknown(_)) | None => Err(Status::INVALID_FIELD),
        }
    }

    /// Looks at the timers. Called by the core of the admin queue, at the latest at the time that it returned.
    pub fn tick(&self, now: Instant) -> Tick {
        let mut state = self.lock();
        if state.death.is_some() {
            return Tick::Dead;
        }
        let idle_since = Instant::from_ns(self.last_command_ns.load(Ordering::Relaxed));
        let config = &self.shared.config;
        let mut deadlines = [None; 3];
        if let Some(since) = state.disabled_since {
            deadlines[0] = Some((since + config.association_timeout, Death::NeverEnabled));
        }
        if state.kato_ms > 0 {
            let units = state.kato_ms.div_ceil(KEEP_ALIVE_UNIT_MS);
            let timeout = Duration::from_millis(u64::from(units) * u64::from(KEEP_ALIVE_UNIT_MS));
            deadlines[1] = Some((idle_since + timeout, Death::KeepAliveExpired));
        } else if self.kind == ControllerKind::Discovery {
            deadlines[2] = Some((idle_since + config.association_timeout, Death::Idle));
        }
        let mut next = now + Duration::from_secs(10);
        for (deadline, death) in deadlines.into_iter().flatten() {
            if deadline <= now {
                self.die_locked(&mut state, death);
                return Tick::Dead;
            }
            next = next.min(deadline);
        }
        Tick::Alive(next)
    }

    // Properties (NVMe Base 2.0, sections 3.1.3 and 6.5, 6.6).

    fn cap(&self) -> Cap {
        Cap(0)
            .with_mqes_z(self.shared.config.queue_entries - 1)
            .with_cqr(true)
            .with_to(READY_TIMEOUT_500MS)
            // NVM command set, and the I/O Command Set data structures.
            .with_css(0b0100_0001)
            .with_crms(0b01)
    }

    fn property_get(&self, get: &PropertySqe) -> Result<u64, Status> {
        let property = get.property();
        // Over fabrics the offset has to be one that exists. Without Do Not Retry: tools that walk over all offsets
        // compare the whole status with Invalid Field, and stop at anything else.
        if property.len_bytes().is_none() || property.len_bytes() != get.len_bytes() {
            return Err(Status::INVALID_FIELD.without_dnr());
        }
        let state = self.lock();
        Ok(match property {
            PropertyOffset::CAP => self.cap().0,
            PropertyOffset::VS => u64::from(Version::V2_0.0),
            PropertyOffset::CC => u64::from(state.cc.0),
            PropertyOffset::CSTS => u64::from(state.csts.0),
            PropertyOffset::CRTO => u64::from(Crto(0).with_crwmt(u16::from(READY_TIMEOUT_500MS)).0),
            // NSSR reads as zero.
            _ => 0,
        })
    }

    fn property_set(&self, set: &PropertySqe, now: Instant) -> Result<(), Status> {
        // CC is the only property that can be written: NSSR would need CAP.NSSRS.
        if set.property() != PropertyOffset::CC || set.len_bytes() != Some(4) {
            return Err(Status::INVALID_FIELD);
        }
        let new = Cc(set.value.get() as u32);
        let mut state = self.lock();
        let old = state.cc;
        if new.en() {
            let sizes = new.iosqes() == 6 && new.iocqes() == 4;
            // Discovery controllers have no I/O queues, and hosts leave these fields zero there.
            let sizes = sizes || self.kind == ControllerKind::Discovery;
            let selectable = matches!(new.css(), 0 | 6) && new.mps() == 0 && new.ams() == 0 && !new.crime();
            if !(sizes && selectable) {
                return Err(Status::INVALID_FIELD);
            }
        }
        state.cc = new;
        if new.en() && !old.en() {
            self.enable(&mut state);
        }
        if !new.en() && old.en() {
            state.disabled_since = Some(now);
            self.reset_locked(&mut state);
        }
        if new.shn() != 0 && old.shn() == 0 {
            state.csts = state.csts.with_shst(1);
            self.close_io_queues(&mut state);
        } else if new.shn() == 0 && old.shn() != 0 && !new.en() {
            // A reset ends a shutdown.
            state.csts = state.csts.with_shst(0);
        }
        Self::settle(&mut state);
        Ok(())
    }

    fn enable(&self, state: &mut ControllerState) {
        state.disabled_since = None;
        // A reset that is still draining ends first: `settle` sets RDY then.
        if !state.has_io_queues() {
            state.csts = Csts(0).with_rdy(true);
        }
    }

    /// Controller Level Reset: I/O queues go, and everything that commands set is as after Connect, except the
    /// Keep Alive Timeout (NVMe Base 2.0, section 3.7.2).
    fn reset_locked(&self, state: &mut ControllerState) {
        self.close_io_queues(state);
        state.admin.reset(&self.shared.config);
        self.set_retry_delay(false);
        self.announce_completions(state);
    }

    fn close_io_queues(&self, state: &mut ControllerState) {
        for (_, queue) in state.queues.iter().filter(|(qid, _)| !qid.is_admin()) {
            queue.closing.store(true, Ordering::Relaxed);
            queue.inbox.post(CoreMsg::Attend);
        }
    }

    /// Finishes a disable or a shutdown once no I/O queue is left.
    fn settle(state: &mut ControllerState) {
        if state.has_io_queues() {
            return;
        }
        if state.csts.shst() == 1 {
            state.csts = state.csts.with_shst(2);
        }
        state.csts = state.csts.with_rdy(state.cc.en());
    }

    // Queues.

    pub(super) fn add_queue(
        self: &Arc<Self>,
        qid: Qid,
        entries: u32,
        sq_flow_control: bool,
        inbox: &Arc<CoreInbox>,
    ) -> Result<QueueGrant, QueueRefusal> {
        let mut state = self.lock();
        if state.death.is_some() {
            return Err(QueueRefusal::Dead);
        }
        if !qid.is_admin() {
            if !state.cc.en() || !state.csts.rdy() || state.cc.shn() != 0 {
                return Err(QueueRefusal::NotReady);
            }
            if qid.0 > state.admin.features.io_queues() {
                return Err(QueueRefusal::BadQid);
            }
        }
        if let Some(old) = state.queues.get(&qid) {
            let draining = old.closing.load(Ordering::Relaxed);
            return Err(if draining { QueueRefusal::Draining } else { QueueRefusal::Taken });
        }
        let queue = Arc::new(Queue { qid, entries, closing: AtomicBool::new(false), inbox: inbox.clone() });
        state.queues.insert(qid, queue.clone());
        Ok(QueueGrant { controller: self.clone(), queue, sq_flow_control })
    }

    /// The inbox of the core that has I/O queue `qid`.
    pub(super) fn queue_inbox(state: &ControllerState, qid: Qid) -> Option<Arc<CoreInbox>> {
        state.queues.get(&qid).map(|queue| queue.inbox.clone())
    }

    fn queue_gone(&self, qid: Qid) {
        let mut state = self.lock();
        state.queues.remove(&qid);
        if qid.is_admin() {
            self.die_locked(&mut state, Death::AdminQueueGone);
        }
        Self::settle(&mut state);
        self.drained(state);
    }

    /// A vendor specific command has ended.
    pub(super) fn call_over(&self, completion: AdminCompletion) {
        let mut state = self.lock();
        state.calls -= 1;
        state.admin.completions.push(completion);
        self.announce_completions(&state);
        self.drained(state);
    }

    /// Something of it has ended: is that the end of the association?
    fn drained(&self, state: MutexGuard<'_, ControllerState>) {
        let last = state.queues.is_empty() && state.calls == 0;
        drop(state);
        if last {
            self.shared.controller_gone(self);
        }
        self.shared.retry_connects();
    }

    // The end.

    /// Ends the association; its connections close, and the cores drop their grants once drained.
    pub(super) fn die(&self, why: Death) {
        self.die_locked(&mut self.lock(), why);
    }

    fn die_locked(&self, state: &mut ControllerState, why: Death) {
        if state.death.is_some() {
            return;
        }
        state.death = Some(why);
        if why == Death::KeepAliveExpired {
            state.csts = state.csts.with_cfs(true);
        }
        self.alive.store(false, Ordering::Relaxed);
        for queue in state.queues.values() {
            queue.closing.store(true, Ordering::Relaxed);
            queue.inbox.post(CoreMsg::Attend);
        }
    }

    // Late completions.

    /// Tells the core of the admin queue, when there is something to tell.
    pub(super) fn announce_completions(&self, state: &ControllerState) {
        if !state.admin.completions.is_empty() {
            self.has_completions.store(true, Ordering::Release);
            self.inbox.post(CoreMsg::Attend);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ControllerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ControllerState {
    pub(super) fn has_io_queues(&self) -> bool {
        self.io_queues() > 0
    }

    pub(super) fn io_queues(&self) -> usize {
        self.queues.keys().filter(|qid| !qid.is_admin()).count()
    }

    pub(super) fn death(&self) -> Option<Death> {
        self.death
    }

    /// Commands other than Fabrics commands are taken.
    pub(super) fn enabled(&self) -> bool {
        self.cc.en() && self.csts.rdy()
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "controller {:#x} of {} for {}", self.cntlid.0, self.subnqn, self.hostnqn)
    }
}
