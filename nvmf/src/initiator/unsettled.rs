//! Associations that ended and may still execute commands (`HAZARDS` H3).
//!
//! A device that loses a connection, or is dropped with writes in flight, does not know what became of them. Until the
//! target has confirmed that they are over, or so much time has passed that they must be, nobody in this process may
//! write to that namespace on another association: an old write could be applied after a newer one. A device settles its
//! own associations before it retries anything. Those that it leaves behind stand in this list, and the next device for
//! the same subsystem settles them before it connects.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use aio::Instant;
use nvme::{Cntlid, HostId, Nqn};

/// Entries beyond which the oldest are forgotten: nothing in use comes near, and a peer cannot make it grow.
const MAX_ENTRIES: usize = 4096;

/// An association that ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ended {
    pub(super) subnqn: Nqn,
    pub(super) hostnqn: Nqn,
    pub(super) hostid: HostId,
    pub(super) cntlid: Cntlid,
    /// What a controller of ours calls it; `None` for other controllers, which cannot be asked.
    pub(super) instance: Option<u64>,
    /// When it executes nothing any more, whatever it is.
    pub(super) over_at: Instant,
}

/// The associations of a process that ended and may still execute commands. Clones are the same list.
#[derive(Clone)]
pub struct Unsettled(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    next: u64,
    entries: Vec<(u64, Ended)>,
}

impl Unsettled {
    /// The list of this process.
    pub fn process() -> Self {
        static LIST: OnceLock<Unsettled> = OnceLock::new();
        LIST.get_or_init(Self::separate).clone()
    }

    /// A list of its own: for simulated processes.
    pub fn separate() -> Self {
        Self(Arc::default())
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // Nothing under the lock leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one; returns its name for [`settle`](Self::settle).
    pub(super) fn add(&self, ended: Ended, now: Instant) -> u64 {
        let mut list = self.lock();
        list.entries.retain(|(_, e)| e.over_at > now);
        if list.entries.len() >= MAX_ENTRIES {
            list.entries.remove(0);
        }
        list.next += 1;
        let id = list.next;
        list.entries.push((id, ended));
        id
    }

    /// It executes nothing any more.
    pub(super) fn settle(&self, id: u64) {
        self.lock().entries.retain(|(other, _)| *other != id);
    }

    /// What is not settled by itself yet for this subsystem.
    pub(super) fn of(&self, subnqn: &Nqn, now: Instant) -> Vec<(u64, Ended)> {
        let list = self.lock();
        list.entries.iter().filter(|(_, e)| e.subnqn == *subnqn && e.over_at > now).cloned().collect()
    }
}

impl PartialEq for Unsettled {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Unsettled {}

impl std::fmt::Debug for Unsettled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unsettled({})", self.lock().entries.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(subnqn: &str, over_at: u64) -> Ended {
        Ended {
            subnqn: Nqn::parse(subnqn).unwrap(),
            hostnqn: Nqn::parse("nqn.2019-05.io.h").unwrap(),
            hostid: HostId([1; 16]),
            cntlid: Cntlid(1),
            instance: None,
            over_at: Instant::from_ns(over_at),
        }
    }

    #[test]
    fn entries_stay_until_settled_or_over() {
        let list = Unsettled::separate();
        let (a, b) = ("nqn.2019-05.io.a", "nqn.2019-05.io.b");
        let at = Instant::from_ns;
        let first = list.add(ended(a, 10), at(0));
        list.add(ended(a, 20), at(0));
        list.add(ended(b, 5), at(0));
        let of = |nqn: &str, now| list.of(&Nqn::parse(nqn).unwrap(), at(now)).len();
        assert_eq!((of(a, 0), of(b, 0)), (2, 1));
        assert_eq!((of(a, 10), of(b, 5)), (1, 0), "time settles");
        list.settle(first);
        list.settle(first);
        assert_eq!(of(a, 0), 1);
        for _ in 0..2 * MAX_ENTRIES {
            list.add(ended(b, 50), at(0));
        }
        assert_eq!(of(b, 0), MAX_ENTRIES);
    }
}
