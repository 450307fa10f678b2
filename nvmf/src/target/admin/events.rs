//! Asynchronous events (NVMe Base 2.0, section 5.2).
//!
//! An event is reported once, then masked until the host reads its log page with Retain Asynchronous Event
//! clear. What happens meanwhile is remembered and reported afterwards. Masking goes by log page, not by the
//! whole type Notice: a host that has yet to read the ANA log still hears of a new namespace, as hosts expect.

use std::collections::{BTreeSet, VecDeque};

use nvme::aen::AsyncEvent;
use nvme::feature::Oaes;
use nvme::log::{Lid, ReservationNotice};
use nvme::{Cid, Nsid, Status};

use super::features::Features;
use super::reservations::Notifications;
use crate::target::controller::AdminCompletion;

/// Event requests that one controller holds at a time (AERL + 1).
pub(super) const MAX_EVENT_REQUESTS: usize = 4;

/// Entries of the Changed Namespace List; one more says "too many".
const MAX_CHANGED: usize = 1024;

/// What hosts are told about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::target) enum Event {
    /// A namespace came, went or changed its identify data.
    Namespace(Nsid),
    /// Some ANA state or group membership changed.
    Ana,
    /// The discovery log page changed.
    Discovery,
    /// Another host did something to this host's reservation or registration.
    Reservation(Nsid, ReservationNotice),
}

/// Each notice that is ever raised, with what its completion says.
const REPORTS: [(Oaes, AsyncEvent); 3] = [
    (Oaes::NAMESPACE_ATTRIBUTE, AsyncEvent::NAMESPACE_CHANGED),
    (Oaes::ANA_CHANGE, AsyncEvent::ANA_CHANGED),
    (Oaes::DISCOVERY_LOG, AsyncEvent::DISCOVERY_CHANGED),
];

#[derive(Default)]
pub(super) struct Events {
    requests: VecDeque<Cid>,
    /// Notices that happened and were not reported.
    pending: Oaes,
    /// Notices that were reported and not read.
    masked: Oaes,
    changed: BTreeSet<Nsid>,
    /// These have a queue of their own, and are masked by a feature of their own.
    pub(super) notifications: Notifications,
}

impl Events {
    /// Takes an event request.
    pub(super) fn request(
        &mut self,
        cid: Cid,
        features: &Features,
        out: &mut Vec<AdminCompletion>,
    ) -> Result<(), Status> {
        if self.requests.len() >= MAX_EVENT_REQUESTS {
            return Err(Status::AER_LIMIT_EXCEEDED);
        }
        self.requests.push_back(cid);
        self.report(features, out);
        Ok(())
    }

    pub(super) fn raise(&mut self, event: Event, features: &Features, out: &mut Vec<AdminCompletion>) {
        self.pending |= match event {
            Event::Namespace(nsid) => {
                if self.changed.len() <= MAX_CHANGED {
                    self.changed.insert(nsid);
                }
                Oaes::NAMESPACE_ATTRIBUTE
            }
            Event::Ana => Oaes::ANA_CHANGE,
            Event::Discovery => Oaes::DISCOVERY_LOG,
            Event::Reservation(nsid, kind) => {
                if features.masks().lets_through(nsid, kind) {
                    self.notifications.push(nsid, kind);
                }
                Oaes::NONE
            }
        };
        self.report(features, out);
    }

    /// Completes event requests as far as there are requests and reportable events.
    pub(super) fn report(&mut self, features: &Features, out: &mut Vec<AdminCompletion>) {
        // What the host did not ask for is not kept for later either.
        self.pending = self.pending & features.async_events();
        for (notice, event) in REPORTS {
            if !self.pending.without(self.masked).contains(notice) {
                continue;
            }
            let Some(cid) = self.requests.pop_front() else { return };
            self.pending = self.pending.without(notice);
            self.masked |= notice;
            out.push(AdminCompletion::new(cid, Status::SUCCESS, event.result()));
        }
        let notifications = &mut self.notifications;
        if notifications.unreported
            && !notifications.reported
            && let Some(cid) = self.requests.pop_front()
        {
            (notifications.unreported, notifications.reported) = (false, true);
            let result = AsyncEvent::RESERVATION.result();
            out.push(AdminCompletion::new(cid, Status::SUCCESS, result));
        }
    }

    /// The host read the page `lid` and asked to clear its event: what happened so far is known.
    pub(super) fn clear(&mut self, lid: Lid) {
        if let Some((notice, _)) = REPORTS.iter().find(|(_, event)| event.lid == lid) {
            self.pending = self.pending.without(*notice);
            self.masked = self.masked.without(*notice);
        }
        if lid == Lid::CHANGED_NAMESPACES {
            self.changed.clear();
        }
        if lid == Lid::RESERVATION {
            self.notifications.read();
        }
    }

    /// Namespaces that changed since the list was read, ascending: at most one more than the page can list.
    pub(super) fn changed_namespaces(&self) -> Vec<Nsid> {
        self.changed.iter().copied().collect()
    }

    /// Aborts the event request `cid`, if it is one.
    pub(super) fn cancel(&mut self, cid: Cid, out: &mut Vec<AdminCompletion>) -> bool {
        let Some(i) = self.requests.iter().position(|request| *request == cid) else { return false };
        self.requests.remove(i);
        out.push(AdminCompletion::new(cid, Status::ABORT_REQUESTED, 0));
        true
    }

    /// Controller Level Reset: forgets everything; requests end as if their queue was deleted.
    pub(super) fn reset(&mut self, out: &mut Vec<AdminCompletion>) {
        for cid in std::mem::take(self).requests {
            out.push(AdminCompletion::new(cid, Status::ABORTED_SQ_DELETION, 0));
        }
    }
}
