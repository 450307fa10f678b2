//! What reservations have on the admin queue: the notification log page, and two features of each namespace (NVMe Base
//! 2.0, sections 5.16 and 5.27).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use nvme::feature::{
    FeatureCapabilities, Fid, GetFeatures, ReservationMask, ReservationPersistence, Select, SetFeatures,
};
use nvme::log::{ReservationLog, ReservationNotice};
use nvme::{Nsid, Sqe, Status};

use super::AdminOutcome;
use crate::target::controller::Controller;

/// Notifications that wait to be read. When there are more the oldest is lost, which the host sees by the count.
const MAX_NOTIFICATIONS: usize = 64;

/// The notifications of one controller.
#[derive(Default)]
pub(super) struct Notifications {
    pages: VecDeque<ReservationLog>,
    /// How many there ever were.
    count: u64,
    /// One came and no event said so.
    pub(super) unreported: bool,
    /// An event said so and the page was not read.
    pub(super) reported: bool,
}

impl Notifications {
    pub(super) fn push(&mut self, nsid: Nsid, kind: ReservationNotice) {
        // 0 is the count of an empty page.
        self.count = self.count.checked_add(1).unwrap_or(1);
        if self.pages.len() >= MAX_NOTIFICATIONS {
            self.pages.pop_front();
        }
        let page = ReservationLog {
            count: self.count.into(),
            kind,
            nsid: nsid.0.into(),
            ..ReservationLog::zeroed()
        };
        self.pages.push_back(page);
        self.unreported = true;
    }

    /// The oldest, with the number of those behind it; all zeroes when there is none.
    pub(super) fn page(&self) -> ReservationLog {
        let Some(first) = self.pages.front() else { return ReservationLog::zeroed() };
        ReservationLog { available: (self.pages.len() - 1).min(usize::from(u8::MAX)) as u8, ..*first }
    }

    /// The host read the oldest, and asked to clear the event.
    pub(super) fn read(&mut self) {
        self.pages.pop_front();
        self.reported = false;
        self.unreported = !self.pages.is_empty();
    }
}

/// What hosts do not want to be told, by namespace.
#[derive(Clone, Default)]
pub(super) struct Masks(BTreeMap<Nsid, ReservationMask>);

/// The bits that mean something.
const KNOWN: ReservationMask = ReservationMask::REGISTRATION_PREEMPTED
    .with(ReservationMask::RESERVATION_RELEASED)
    .with(ReservationMask::RESERVATION_PREEMPTED);

impl Masks {
    fn get(&self, nsid: Nsid) -> ReservationMask {
        self.0.get(&nsid).copied().unwrap_or_default()
    }

    /// Whether the host wants to be told this.
    pub(super) fn lets_through(&self, nsid: Nsid, kind: ReservationNotice) -> bool {
        let bit = match kind {
            ReservationNotice::REGISTRATION_PREEMPTED => ReservationMask::REGISTRATION_PREEMPTED,
            ReservationNotice::RESERVATION_RELEASED => ReservationMask::RESERVATION_RELEASED,
            _ => ReservationMask::RESERVATION_PREEMPTED,
        };
        !self.get(nsid).contains(bit)
    }
}

/// The two features.
pub(super) fn is_feature(fid: Fid) -> bool {
    matches!(fid, Fid::RESERVATION_MASK | Fid::RESERVATION_PERSISTENCE)
}

impl Controller {
    /// The namespaces that a feature is set of.
    fn feature_namespaces(&self, nsid: Nsid) -> Result<Vec<Nsid>, Status> {
        let model = self.shared.lock();
        let subsystem = model.subsystem(self.subsystem()).ok_or(Status::INVALID_NAMESPACE)?;
        let all = subsystem.active().map(|ns| ns.info.nsid);
        let chosen: Vec<Nsid> = all.filter(|one| nsid == Nsid::BROADCAST || *one == nsid).collect();
        if chosen.is_empty() && nsid != Nsid::BROADCAST {
            return Err(Status::INVALID_NAMESPACE);
        }
        Ok(chosen)
    }

    pub(super) fn get_reservation_feature(&self, get: &GetFeatures) -> Result<AdminOutcome, Status> {
        if get.nsid == Nsid::BROADCAST {
            return Err(Status::INVALID_NAMESPACE);
        }
        self.feature_namespaces(get.nsid)?;
        let value = match (get.select, get.fid) {
            (Select::CAPABILITIES, _) => {
                FeatureCapabilities::CHANGEABLE.with(FeatureCapabilities::NAMESPACE_SPECIFIC).bits()
            }
            (Select::DEFAULT | Select::SAVED, _) => 0,
            (Select::CURRENT, Fid::RESERVATION_MASK) => {
                self.lock().admin.features.masks().get(get.nsid).bits()
            }
            (Select::CURRENT, _) => ReservationPersistence(0).with_ptpl(self.persistence(get.nsid)?).0,
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok(AdminOutcome::success(u64::from(value)))
    }

    pub(super) fn set_reservation_feature(
        self: &Arc<Self>,
        sqe: &Sqe,
        set: &SetFeatures,
    ) -> Result<AdminOutcome, Status> {
        if set.save {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        if set.fid == Fid::RESERVATION_PERSISTENCE {
            return self.set_persistence(set.nsid, sqe.cid(), ReservationPersistence(set.cdw11).ptpl());
        }
        let chosen = self.feature_namespaces(set.nsid)?;
        let mask = ReservationMask::from_bits(set.cdw11) & KNOWN;
        let mut state = self.lock();
        let masks = &mut state.admin.features.masks_mut().0;
        // As many as there are namespaces, and those that were removed meanwhile.
        masks.extend(chosen.into_iter().map(|nsid| (nsid, mask)));
        Ok(AdminOutcome::success(0))
    }
}
