//! The Connect command (NVMe Base 2.0, sections 3.3.2 and 6.3).

use std::net::SocketAddr;
use std::sync::Arc;

use aio::Instant;
use nvme::fabrics::{ConnectAttributes, ConnectData, ConnectError, ConnectSqe, FabricsSqe};
use nvme::{Cntlid, HostId, Nqn, Sqe, Status};

use super::ana::ListenerId;
use super::board::CoreInbox;
use super::controller::{Controller, ControllerKind, NewController, QueueGrant, QueueRefusal};
use super::handle::{Shared, Target};
use super::model::{Life, Model, Subsystem};

/// A Connect that arrived as the first command of a connection.
pub struct ConnectRequest<'a> {
    /// The command.
    pub sqe: &'a Sqe,
    /// Its data; shorter than 1,024 bytes when the host sent less.
    pub data: &'a [u8],
    /// Through which listener the connection came.
    pub listener: ListenerId,
    /// Our end of the connection.
    pub local: SocketAddr,
    /// The host's end.
    pub peer: SocketAddr,
    /// The inbox of the core that has the connection.
    pub inbox: &'a Arc<CoreInbox>,
    /// The turn's clock reading.
    pub now: Instant,
    /// When this Connect was offered for the first time.
    pub since: Instant,
}

/// How a Connect is answered when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// Status of the completion.
    pub status: Status,
    /// Dwords 0 and 1: with Connect Invalid Parameters, where the parameter is.
    pub result: u64,
}

/// What became of a Connect.
pub enum ConnectOutcome {
    /// The queue exists. The result of the completion is the controller identifier.
    Granted(QueueGrant),
    /// Complete with this, then close.
    Rejected(Rejection),
    /// An earlier association or queue of this host is still draining: offer the same request again upon
    /// [`CoreMsg::RetryConnects`](super::CoreMsg::RetryConnects), and at least every second; it will be
    /// rejected when it waited too long.
    Wait,
}

impl From<ConnectError> for Rejection {
    fn from(error: ConnectError) -> Self {
        Self { status: error.status(), result: error.result() }
    }
}

impl From<Status> for Rejection {
    fn from(status: Status) -> Self {
        Self { status, result: 0 }
    }
}

/// Refuses a Connect because of a field whose value may be good a moment later. Linux gives a controller up for good
/// when a Connect fails with Do Not Retry.
fn not_now(offset: u16) -> Rejection {
    let error = ConnectError::data(offset);
    Rejection { status: error.status().without_dnr(), result: error.result() }
}

/// The association ended, maybe between two Connects of a host that reconnects: it is to begin again with the admin
/// queue.
fn association_gone() -> Rejection {
    not_now(ConnectData::CNTLID_OFFSET)
}

/// The subsystem is not served here now. A control plane may be about to publish it again: hosts try until their
/// ctrl-loss time-out, as with other targets.
fn subsystem_unknown() -> Rejection {
    not_now(ConnectData::SUBNQN_OFFSET)
}

/// Ends a Connect early.
enum Stop {
    Reject(Rejection),
    Wait,
}

impl<E: Into<Rejection>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Reject(error.into())
    }
}

/// The parsed command.
struct Connect<'a> {
    request: &'a ConnectRequest<'a>,
    sqe: &'a ConnectSqe,
    cntlid: Cntlid,
    hostid: HostId,
    subnqn: Nqn,
    hostnqn: Nqn,
}

impl Target {
    /// Executes the first command of a connection. Takes the model's lock: cold.
    pub fn connect(&self, request: &ConnectRequest<'_>) -> ConnectOutcome {
        match try_connect(&self.shared, request) {
            Ok(grant) => ConnectOutcome::Granted(grant),
            Err(Stop::Wait) if request.now.since(request.since) < self.shared.config.drain_timeout => {
                ConnectOutcome::Wait
            }
            Err(Stop::Wait) => ConnectOutcome::Rejected(Status::CONNECT_CONTROLLER_BUSY.into()),
            Err(Stop::Reject(rejection)) => ConnectOutcome::Rejected(rejection),
        }
    }
}

fn try_connect(shared: &Arc<Shared>, request: &ConnectRequest<'_>) -> Result<QueueGrant, Stop> {
    let Some(FabricsSqe::Connect(sqe)) = FabricsSqe::of(request.sqe) else {
        return Err(Status::SEQUENCE_ERROR.into());
    };
    if sqe.recfmt.get() != 0 {
        return Err(Status::CONNECT_INCOMPATIBLE_FORMAT.into());
    }
    let data = ConnectData::view(request.data).ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
    let connect = Connect {
        request,
        sqe,
        cntlid: data.cntlid(),
        hostid: data.hostid(),
        subnqn: data.subnqn()?,
        hostnqn: data.hostnqn()?,
    };
    let config = &shared.config;
    let most = if sqe.qid().is_admin() { config.admin_entries() } else { config.queue_entries };
    if sqe.entries() < 2 || sqe.entries() > u32::from(most) {
        return Err(ConnectError::sqe(ConnectError::SQSIZE_OFFSET).into());
    }
    if connect.hostid == HostId::NONE {
        return Err(ConnectError::data(ConnectData::HOSTID_OFFSET).into());
    }
    // Announced before looking: a queue that goes in between sees it.
    shared.connect_waits();
    let mut model = shared.lock();
    let subsystem = model
        .find(connect.subnqn.as_str())
        .filter(|s| s.life == Life::Serving && s.listeners.contains(request.listener))
        .ok_or_else(subsystem_unknown)?;
    if !subsystem.hosts.allows(connect.hostnqn.as_str()) {
        return Err(Status::CONNECT_INVALID_HOST.into());
    }
    if sqe.qid().is_admin() { connect.admin_queue(shared, &mut model) } else { connect.io_queue(subsystem) }
}

impl Connect<'_> {
    /// Makes a controller.
    fn admin_queue(&self, shared: &Arc<Shared>, model: &mut Model) -> Result<QueueGrant, Stop> {
        if self.cntlid != Cntlid::DYNAMIC {
            return Err(ConnectError::data(ConnectData::CNTLID_OFFSET).into());
        }
        let kato_ms = self.sqe.kato_ms.get();
        if u128::from(kato_ms) > shared.config.kato_max.as_millis() {
            return Err(ConnectError::sqe(ConnectError::KATO_OFFSET).into());
        }
        let most = usize::from(shared.config.max_controllers);
        model.associations += 1;
        // Time tells it apart from those of a target before this one, the count from those of the same moment.
        let instance = self.request.now.as_ns() << 16 | (model.associations & 0xffff);
        let full = model.controllers >= most;
        let subsystem = model.find_mut(self.subnqn.as_str()).ok_or_else(subsystem_unknown)?;
        if subsystem.has_dying(&self.hostnqn, self.hostid) {
            return Err(Stop::Wait);
        }
        // Everybody may discover: that must not keep hosts from their namespaces.
        let discovery = subsystem.kind == ControllerKind::Discovery;
        if full || (discovery && subsystem.controllers.len() >= most.div_ceil(2)) {
            return Err(Status::CONNECT_CONTROLLER_BUSY.into());
        }
        let cntlid = subsystem.take_cntlid().ok_or(Status::CONNECT_CONTROLLER_BUSY)?;
        let controller = Controller::new(NewController {
            shared: shared.clone(),
            instance,
            subsystem: subsystem.id,
            subnqn: subsystem.nqn.clone(),
            cntlid,
            kind: subsystem.kind,
            hostnqn: self.hostnqn.clone(),
            hostid: self.hostid,
            listener: self.request.listener,
            local: self.request.local,
            peer: self.request.peer,
            inbox: self.request.inbox.clone(),
            kato_ms,
            now: self.request.now,
        });
        let grant = self.add_queue(&controller)?;
        subsystem.controllers.insert(cntlid, controller);
        model.controllers += 1;
        model.started.get_or_insert(self.request.now);
        Ok(grant)
    }

    /// Adds an I/O queue to a controller of the same host.
    fn io_queue(&self, subsystem: &Subsystem) -> Result<QueueGrant, Stop> {
        let controller =
            subsystem.controllers.get(&self.cntlid).filter(|c| c.alive()).ok_or_else(association_gone)?;
        if controller.hostid() != self.hostid {
            return Err(ConnectError::data(ConnectData::HOSTID_OFFSET).into());
        }
        if *controller.hostnqn() != self.hostnqn {
            return Err(ConnectError::data(ConnectData::HOSTNQN_OFFSET).into());
        }
        if controller.kind() == ControllerKind::Discovery {
            return Err(ConnectError::sqe(ConnectError::QID_OFFSET).into());
        }
        self.add_queue(controller)
    }

    fn add_queue(&self, controller: &Arc<Controller>) -> Result<QueueGrant, Stop> {
        let flow = !self.sqe.cattr.contains(ConnectAttributes::DISABLE_SQ_FLOW_CONTROL);
        controller.add_queue(self.sqe.qid(), self.sqe.entries(), flow, self.request.inbox).map_err(
            |refusal| match refusal {
                QueueRefusal::Draining => Stop::Wait,
                QueueRefusal::Dead => association_gone().into(),
                QueueRefusal::BadQid => ConnectError::sqe(ConnectError::QID_OFFSET).into(),
                QueueRefusal::NotReady | QueueRefusal::Taken => Status::SEQUENCE_ERROR.into(),
            },
        )
    }
}
