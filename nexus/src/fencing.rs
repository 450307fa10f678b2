//! Keeping others from the children: NVMe reservations, as Mayastor's control plane asks for them.
//!
//! # What it is for
//! A nexus that was cut off may go on, while the control plane makes another one of the same volume on another host
//! (hazard H6). Before the new one does anything else it registers on each child with a key of its own and takes the
//! reservation, from the old one if need be. When that is done, no write of the old one gets through any more, and none
//! that was let in before is still on its way: so a child on a target of ours promises (`nvmf::target`, `reserve`). On
//! targets of others it holds as far as they keep it.
//!
//! The old one learns it from the first child that answers Reservation Conflict. From then on it acknowledges nothing
//! that any child refused, takes no child for faulty because of it (they are healthy, and somebody else's), and shuts
//! itself down. A write that it acknowledges was made by every member before any of them was taken over, and so is there
//! when the new one reads its first block: the two never both have acknowledgements.
//!
//! # A reservation outlives its nexus
//! Neither a shutdown nor the end of the nexus gives a reservation up. An older nexus yet, which was shut out before and
//! may not have heard of it, would be let in again. The next nexus of the volume takes the reservation over. Where the
//! targets keep reservations through a restart (PTPL, asked for at each registration), that holds through theirs too;
//! where they do not, a restarted target keeps nobody out until the next nexus comes.
//!
//! # Where it does not hold
//! A child that is a device of this process (a local replica, a disk) passes no target, and cannot be reserved: whoever
//! takes the volume over from elsewhere cannot shut this nexus out of that child. It is stopped by the first child of
//! another host that conflicts, after a write may have changed the local one. A volume with one replica, on the host of
//! its nexus, is not fenced at all. Two nexuses of one host are one host to their children: the process has to see to it
//! that it has one nexus of a volume.

use aio::BlockDevice;
use aio::facets::{FacetError, Reservations};
use nvme::Status;
use nvme::reservation::{
    Acquire, AcquireAction, ChangePersistence, Register, RegisterAction, Release, ReleaseAction,
    ReservationType,
};

use crate::layout;

/// How a nexus reserves its children.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// What it registers with: not 0, and another one for every nexus of a volume.
    pub key: u64,
    /// What it acquires.
    pub rtype: ReservationType,
    /// Whom it takes it from.
    pub preempt: Preempt,
}

/// Whom a nexus takes the reservation of a child from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preempt {
    /// Nobody: a child that is reserved cannot be used.
    Nobody,
    /// Who registered with this key.
    Key(u64),
    /// Whoever holds it.
    Holder,
}

/// Why a child could not be reserved.
#[derive(Debug)]
pub(crate) enum Unreserved {
    /// It cannot be.
    Unsupported,
    /// It refused.
    Failed(FacetError),
    /// Somebody else holds it all the same.
    NotHolder,
}

impl From<FacetError> for Unreserved {
    fn from(error: FacetError) -> Self {
        Self::Failed(error)
    }
}

/// How often the holder may change while it is being preempted.
const ATTEMPTS: usize = 4;

/// Reserves a device. Dropping the future leaves open how far that came.
pub(crate) async fn reserve(device: &dyn BlockDevice, wish: &Reservation) -> Result<(), Unreserved> {
    let Some(facet) = device.reservations() else {
        // See the module.
        return if layout::is_local(device) { Ok(()) } else { Err(Unreserved::Unsupported) };
    };
    register(facet, wish.key).await?;
    for attempt in 1..=ATTEMPTS {
        match take(facet, wish).await {
            Ok(()) => break,
            // The holder that the report named is none any more.
            Err(FacetError::Refused { .. }) if wish.preempt == Preempt::Holder && attempt < ATTEMPTS => {}
            Err(error) => return Err(error.into()),
        }
    }
    let report = facet.report().await?;
    let us = report.registrants.iter().find(|r| r.hostid == facet.host() && r.key == wish.key);
    let holds = us.is_some_and(|r| r.holds) && report.rtype == Some(wish.rtype);
    if holds { Ok(()) } else { Err(Unreserved::NotHolder) }
}

/// Registers, whatever this host was registered with before; through power loss, where the target can.
async fn register(facet: &dyn Reservations, key: u64) -> Result<(), FacetError> {
    let command = |persistence| Register {
        action: RegisterAction::REPLACE,
        ignore_existing_key: true,
        persistence,
        crkey: 0,
        nrkey: key,
    };
    match facet.register(command(ChangePersistence::SET)).await {
        Err(FacetError::Refused { status, .. }) if status.is(Status::INVALID_FIELD) => {
            facet.register(command(ChangePersistence::NO_CHANGE)).await
        }
        done => done,
    }
}

async fn take(facet: &dyn Reservations, wish: &Reservation) -> Result<(), FacetError> {
    let acquire = |action, prkey| Acquire {
        action,
        ignore_existing_key: false,
        rtype: wish.rtype,
        crkey: wish.key,
        prkey,
    };
    let free = acquire(AcquireAction::ACQUIRE, 0);
    let asked = match wish.preempt {
        Preempt::Nobody => Some(free),
        Preempt::Key(key) => Some(acquire(AcquireAction::PREEMPT, key)),
        Preempt::Holder => None,
    };
    if let Some(command) = asked {
        let refused = match facet.acquire(command).await {
            Err(refused @ FacetError::Refused { .. }) => refused,
            done => return done,
        };
        // The key is that of this nexus: who holds it with that is this nexus, before a restart of its host.
        let report = facet.report().await?;
        return match report.registrants.iter().find(|r| r.holds && r.key == wish.key) {
            Some(us) if us.hostid == facet.host() && report.rtype == Some(wish.rtype) => Ok(()),
            Some(_) => facet.acquire(acquire(AcquireAction::PREEMPT, wish.key)).await,
            None => Err(refused),
        };
    }
    take_from_holder(facet, wish, free, &acquire).await
}

/// Takes the reservation from whoever holds it.
async fn take_from_holder(
    facet: &dyn Reservations,
    wish: &Reservation,
    free: Acquire,
    acquire: &impl Fn(AcquireAction, u64) -> Acquire,
) -> Result<(), FacetError> {
    let report = facet.report().await?;
    let Some(held) = report.rtype else { return facet.acquire(free).await };
    match report.registrants.iter().find(|r| r.holds) {
        Some(us) if us.hostid == facet.host() && held == wish.rtype => Ok(()),
        // Every registrant holds it, and this nexus is one: it may give it up.
        _ if held.is_all_registrants() => {
            let release = Release {
                action: ReleaseAction::RELEASE,
                ignore_existing_key: false,
                rtype: held,
                crkey: wish.key,
            };
            facet.release(release).await?;
            facet.acquire(free).await
        }
        Some(other) => facet.acquire(acquire(AcquireAction::PREEMPT, other.key)).await,
        None => facet.acquire(free).await,
    }
}
