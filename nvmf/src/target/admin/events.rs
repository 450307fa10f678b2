//! Asynchronous events (NVMe Base 2.0, section 5.2).
//!
//! An event is reported once, then masked until the host reads its log page with Retain Asynchronous Event
//! clear. What happens meanwhile is remembered and reported afterwards. Masking goes by log page, not by the
//! whole type Notice: a host that has yet to read the ANA log still hears of a new namespace, as hosts expect.

use std::collections::{BTreeSet, VecDeque};

use nvme::{Cid, Nsid, Status};

use super::features::Features;
use crate::target::controller::AdminCompletion;

/// Event requests that one controller holds at a time (AERL + 1).
pub(super) const MAX_EVENT_REQUESTS: usize = 4;

/// Entries of the Changed Namespace List; more are reported as FFFFFFFFh.
const MAX_CHANGED: usize = 1024;

/// What hosts are told about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::target) enum Event {
    /// A namespace came, went or changed its identify data.
    NamespaceChanged(Nsid),
    /// Some ANA state or group membership changed.
    AnaChanged,
    /// The discovery log page changed.
    DiscoveryChanged,
}

/// The kinds of [`Event`], as bits of Asynchronous Event Configuration and OAES.
pub(super) mod notice {
    pub(in crate::target::admin) const NAMESPACE: u32 = 1 << 8;
    pub(in crate::target::admin) const ANA: u32 = 1 << 11;
    pub(in crate::target::admin) const DISCOVERY: u32 = 1 << 31;
}

/// Each notice with dword 0 of its completion: type 2 (Notice), information, log page.
const REPORTS: [(u32, u64); 3] = [
    (notice::NAMESPACE, 0x02 | 0x00 << 8 | 0x04 << 16),
    (notice::ANA, 0x02 | 0x03 << 8 | 0x0c << 16),
    (notice::DISCOVERY, 0x02 | 0xf0 << 8 | 0x70 << 16),
];

#[derive(Default)]
pub(super) struct Events {
    requests: VecDeque<Cid>,
    /// Notices that happened and were not reported.
    pending: u32,
    /// Notices that were reported and not read.
    masked: u32,
    changed: BTreeSet<Nsid>,
    changed_overflow: bool,
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
            Event::NamespaceChanged(nsid) => {
                if self.changed.len() < MAX_CHANGED || self.changed.contains(&nsid) {
                    self.changed.insert(nsid);
                } else {
                    self.changed_overflow = true;
                }
                notice::NAMESPACE
            }
            Event::AnaChanged => notice::ANA,
            Event::DiscoveryChanged => notice::DISCOVERY,
        };
        self.report(features, out);
    }

    /// Completes event requests as far as there are requests and reportable events.
    pub(super) fn report(&mut self, features: &Features, out: &mut Vec<AdminCompletion>) {
        // What the host did not ask for is not kept for later either.
        self.pending &= features.async_events();
        for (bit, result) in REPORTS {
            if self.pending & !self.masked & bit == 0 {
                continue;
            }
            let Some(cid) = self.requests.pop_front() else { return };
            self.pending &= !bit;
            self.masked |= bit;
            out.push(AdminCompletion { cid, status: Status::SUCCESS, result });
        }
    }

    /// The host read the log page behind `bit` and asked to clear the event: what happened so far is known.
    pub(super) fn clear(&mut self, bit: u32) {
        self.pending &= !bit;
        self.masked &= !bit;
        if bit == notice::NAMESPACE {
            self.changed.clear();
            self.changed_overflow = false;
        }
    }

    /// The Changed Namespace List, ascending; a single FFFFFFFFh when there were too many.
    pub(super) fn changed_namespaces(&self) -> Vec<Nsid> {
        if self.changed_overflow { vec![Nsid::BROADCAST] } else { self.changed.iter().copied().collect() }
    }

    /// Aborts the event request `cid`, if it is one.
    pub(super) fn cancel(&mut self, cid: Cid, out: &mut Vec<AdminCompletion>) -> bool {
        let Some(i) = self.requests.iter().position(|request| *request == cid) else { return false };
        self.requests.remove(i);
        out.push(AdminCompletion { cid, status: Status::ABORT_REQUESTED, result: 0 });
        true
    }

    /// Controller Level Reset: forgets everything; requests end as if their queue was deleted.
    pub(super) fn reset(&mut self, out: &mut Vec<AdminCompletion>) {
        for cid in std::mem::take(self).requests {
            out.push(AdminCompletion { cid, status: Status::ABORTED_SQ_DELETION, result: 0 });
        }
    }
}
