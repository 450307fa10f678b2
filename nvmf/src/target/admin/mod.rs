//! Commands of the admin queue (NVMe Base 2.0, section 5), except Fabrics commands.
//!
//! - `identify`, `logs`, `discovery`, `features`: what they are named after.
//! - `events`: Asynchronous Event Request, what is reported, masked and read.
//! - `facets`: vendor specific commands about what a device can do beyond I/O.
//! - `errors`: the ring behind the Error Information log page.
//! - `reservations`: the notification log page, and features.
//! - `abort`: finds the queue, and lets its core try.
//! - `association`: what hosts of this project ask about associations, and how they end one of theirs.

mod abort;
mod association;
mod discovery;
mod errors;
mod events;
mod facets;
mod features;
mod identify;
mod logs;
mod reservations;

use std::sync::Arc;

use aio::Instant;
use nvme::vendor::OPCODE_END_ASSOCIATION;
use nvme::{AdminOpcode, Cid, HostId, Qid, Sqe, Status};

pub(super) use discovery::DiscoveryPages;
use errors::ErrorLog;
pub use errors::FailedCommand;
pub(super) use events::Event;
use events::Events;
use features::Features;

use super::config::TargetConfig;
use super::controller::{AdminCompletion, Controller, ControllerKind};
use super::nvm;

/// How an admin command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdminOutcome {
    /// Complete it with this.
    Done {
        /// Status.
        status: Status,
        /// Dwords 0 and 1.
        result: u64,
    },
    /// Send `data`, which is exactly as long as the command's SGL descriptor says, then complete with success.
    Data {
        /// For the host.
        data: Vec<u8>,
        /// Dwords 0 and 1.
        result: u64,
    },
    /// Its completion will come out of [`Controller::take_completions`]. It stays in flight until then.
    Later,
}

impl AdminOutcome {
    /// A completion that reports an error.
    pub fn error(status: Status) -> Self {
        Self::Done { status, result: 0 }
    }

    /// A completion that reports success with a result.
    pub fn success(result: u64) -> Self {
        Self::Done { status: Status::SUCCESS, result }
    }
}

impl From<Result<u64, Status>> for AdminOutcome {
    fn from(outcome: Result<u64, Status>) -> Self {
        outcome.map_or_else(Self::error, Self::success)
    }
}

/// What admin commands keep in a controller.
pub(super) struct AdminState {
    pub(super) completions: Vec<AdminCompletion>,
    pub(super) features: Features,
    events: Events,
    errors: ErrorLog,
    aborts_in_flight: u8,
}

impl AdminState {
    pub(super) fn new(config: &TargetConfig, hostid: HostId) -> Self {
        Self {
            completions: Vec::new(),
            features: Features::new(config, hostid),
            events: Events::default(),
            errors: ErrorLog::default(),
            aborts_in_flight: 0,
        }
    }

    /// Controller Level Reset: features as after Connect, and outstanding event requests end.
    pub(super) fn reset(&mut self, config: &TargetConfig) {
        self.features = Features::new(config, self.features.hostid());
        self.events.reset(&mut self.completions);
    }
}

impl Controller {
    /// Executes a command that is not a Fabrics command.
    pub(super) fn execute(self: &Arc<Self>, sqe: &Sqe, data: &[u8], now: Instant) -> AdminOutcome {
        if !self.lock().enabled() {
            return AdminOutcome::error(Status::SEQUENCE_ERROR);
        }
        let outcome = match sqe.admin_opcode() {
            AdminOpcode::KEEP_ALIVE => Ok(AdminOutcome::success(0)),
            AdminOpcode::ASYNC_EVENT_REQUEST => self.async_event_request(sqe.cid()),
            AdminOpcode::SET_FEATURES => self.set_features(sqe, data, now),
            AdminOpcode::GET_FEATURES => self.get_features(sqe, now),
            AdminOpcode::IDENTIFY => self.identify(sqe),
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(sqe, now),
            AdminOpcode::ABORT if self.kind() == ControllerKind::Io => self.abort(sqe),
            OPCODE_END_ASSOCIATION if self.kind() == ControllerKind::Io => Ok(self.end_association(sqe)),
            opcode if facets::is_facet(opcode) => self.facet(sqe, data),
            _ => Err(Status::INVALID_OPCODE),
        };
        outcome.unwrap_or_else(|status| {
            let failed = FailedCommand { sqid: Qid::ADMIN, cid: sqe.cid(), status, nsid: sqe.nsid(), lba: 0 };
            self.record_error(&failed);
            AdminOutcome::error(status)
        })
    }

    fn async_event_request(&self, cid: Cid) -> Result<AdminOutcome, Status> {
        let mut state = self.lock();
        let admin = &mut state.admin;
        admin.events.request(cid, &admin.features, &mut admin.completions)?;
        self.announce_completions(&state);
        Ok(AdminOutcome::Later)
    }

    /// Something happened that the host may want to hear of.
    pub(super) fn raise(&self, event: Event) {
        let mut state = self.lock();
        let admin = &mut state.admin;
        admin.events.raise(event, &admin.features, &mut admin.completions);
        self.announce_completions(&state);
    }
}

/// Data for the host, when the command's SGL descriptor asks for exactly that much.
fn to_host(sqe: &Sqe, data: Vec<u8>) -> Result<AdminOutcome, Status> {
    let len_bytes = u32::try_from(data.len()).map_err(|_| Status::DATA_SGL_LENGTH_INVALID)?;
    nvm::payload(sqe, len_bytes, true)?;
    Ok(AdminOutcome::Data { data, result: 0 })
}
