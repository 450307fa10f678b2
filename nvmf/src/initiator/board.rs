//! What all cores of a device see of its paths.
//!
//! The home core writes, channels read. A channel compares one number when it takes an I/O and when it polls; only when
//! that has changed it looks at the rest. Cores that sleep are woken.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aio::reactor::CoreHandle;
use nvme::{Cntlid, Qid};

use super::home::Inbox;

/// Whether and how well commands reach the namespace over a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub(super) enum Access {
    /// Not at all.
    #[default]
    None,
    /// In a roundabout way.
    NonOptimized,
    /// Directly.
    Optimized,
}

/// How an association is used by channels. Ends with its last user.
pub(super) struct Association {
    /// Which path.
    pub(super) path: usize,
    /// Counts the associations of the path, from 1 on.
    pub(super) generation: u32,
    pub(super) cntlid: Cntlid,
    /// Entries of its I/O queues.
    pub(super) entries: u16,
    /// Most payload that goes along with its command.
    pub(super) in_capsule_bytes: u32,
    /// Queue identifiers; longest unused first: the target had most time to notice that it was given up.
    qids: Mutex<VecDeque<u16>>,
    /// Queues in use, or being connected.
    queues: AtomicU32,
    /// A queue ended with changes in flight: nobody knows whether they were made, or will be.
    unsure: AtomicBool,
    home: Arc<Inbox>,
}

impl Association {
    pub(super) fn new(
        (path, generation): (usize, u32),
        (cntlid, granted): (Cntlid, u16),
        (entries, in_capsule_bytes): (u16, u32),
        home: Arc<Inbox>,
    ) -> Arc<Self> {
        Arc::new(Self {
            path,
            generation,
            cntlid,
            entries,
            in_capsule_bytes,
            qids: Mutex::new((1..=granted).collect()),
            queues: AtomicU32::new(0),
            unsure: AtomicBool::new(false),
            home,
        })
    }

    fn qids(&self) -> MutexGuard<'_, VecDeque<u16>> {
        // Nothing under the lock leaves it half changed.
        self.qids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a queue identifier; `None` when the controller grants no more.
    pub(super) fn lease(self: &Arc<Self>) -> Option<Lease> {
        let qid = Qid(self.qids().pop_front()?);
        self.queues.fetch_add(1, Ordering::AcqRel);
        Some(Lease { association: self.clone(), qid })
    }

    /// Queues in use, or being connected.
    pub(super) fn queues(&self) -> u32 {
        self.queues.load(Ordering::Acquire)
    }

    /// A queue ends with changes in flight.
    pub(super) fn set_unsure(&self) {
        self.unsure.store(true, Ordering::Release);
    }

    /// Whether one did.
    pub(super) fn is_unsure(&self) -> bool {
        self.unsure.load(Ordering::Acquire)
    }
}

/// A queue identifier in use. Dropped after the queue's connection.
pub(super) struct Lease {
    pub(super) association: Arc<Association>,
    pub(super) qid: Qid,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.association.qids().push_back(self.qid.0);
        if self.association.queues.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.association.home.nudge();
        }
    }
}

/// Life of the device as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Life {
    /// I/O is taken.
    Live,
    /// No path will ever work again.
    Faulted,
    /// It was taken out of use.
    Removed,
}

/// One path, as channels see it.
#[derive(Default)]
struct Cell {
    access: AtomicU8,
    /// Counts every look at the access, also those that found it as it was.
    looked: AtomicU32,
    /// Associations up to this execute nothing any more.
    settled: AtomicU32,
    /// What queues are opened on, while there is one.
    association: Mutex<Option<Arc<Association>>>,
}

/// See the module.
pub(super) struct Board {
    /// Counts changes.
    version: AtomicU64,
    life: AtomicU8,
    /// I/O that finds no path fails at once.
    impatient: AtomicBool,
    cells: Box<[Cell]>,
    cores: Mutex<Cores>,
}

#[derive(Default)]
struct Cores {
    next: u64,
    list: Vec<(u64, CoreHandle)>,
}

impl Board {
    pub(super) fn new(paths: usize) -> Self {
        Self {
            version: AtomicU64::new(1),
            life: AtomicU8::new(Life::Live as u8),
            impatient: AtomicBool::new(false),
            cells: (0..paths).map(|_| Cell::default()).collect(),
            cores: Mutex::default(),
        }
    }

    // What channels read.

    /// Changes whenever anything here does.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        // What it announces is read by loads of its own, and a change that is seen a turn later does no harm.
        self.version.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn life(&self) -> Life {
        match self.life.load(Ordering::Acquire) {
            n if n == Life::Live as u8 => Life::Live,
            n if n == Life::Faulted as u8 => Life::Faulted,
            _ => Life::Removed,
        }
    }

    /// Whether I/O that finds no path fails at once.
    pub(super) fn is_impatient(&self) -> bool {
        self.impatient.load(Ordering::Acquire)
    }

    pub(super) fn paths(&self) -> usize {
        self.cells.len()
    }

    pub(super) fn access(&self, path: usize) -> Access {
        match self.cells[path].access.load(Ordering::Acquire) {
            n if n == Access::Optimized as u8 => Access::Optimized,
            n if n == Access::NonOptimized as u8 => Access::NonOptimized,
            _ => Access::None,
        }
    }

    /// Counts looks at the access of a path.
    pub(super) fn looked(&self, path: usize) -> u32 {
        self.cells[path].looked.load(Ordering::Acquire)
    }

    /// Associations of a path up to this execute nothing any more.
    pub(super) fn settled(&self, path: usize) -> u32 {
        self.cells[path].settled.load(Ordering::Acquire)
    }

    /// The association of a path, if it has one.
    pub(super) fn association(&self, path: usize) -> Option<Arc<Association>> {
        self.cells[path].association.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // What the home core writes.

    /// A path works, or does not any more.
    pub(super) fn set_association(&self, path: usize, association: Option<Arc<Association>>) {
        *self.cells[path].association.lock().unwrap_or_else(PoisonError::into_inner) = association;
        self.changed();
    }

    /// The controller was asked for the path's access.
    pub(super) fn set_access(&self, path: usize, access: Access) {
        self.cells[path].access.store(access as u8, Ordering::Release);
        self.cells[path].looked.fetch_add(1, Ordering::AcqRel);
        self.changed();
    }

    /// Associations up to `generation` execute nothing any more.
    pub(super) fn set_settled(&self, path: usize, generation: u32) {
        self.cells[path].settled.fetch_max(generation, Ordering::AcqRel);
        self.changed();
    }

    pub(super) fn set_impatient(&self, impatient: bool) {
        if self.impatient.swap(impatient, Ordering::AcqRel) != impatient {
            self.changed();
        }
    }

    /// True for the one who ended it.
    pub(super) fn end(&self, life: Life) -> bool {
        let live = Life::Live as u8;
        let ended = self.life.compare_exchange(live, life as u8, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if ended {
            self.changed();
        }
        ended
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
        for (_, core) in &self.cores().list {
            core.wake();
        }
    }

    // Who is to be woken.

    fn cores(&self) -> MutexGuard<'_, Cores> {
        // Nothing under the lock leaves it half changed.
        self.cores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes `core` from now on; returns a name for [`leave`](Self::leave).
    pub(super) fn join(&self, core: CoreHandle) -> u64 {
        let mut cores = self.cores();
        cores.next += 1;
        let id = cores.next;
        cores.list.push((id, core));
        id
    }

    pub(super) fn leave(&self, id: u64) {
        self.cores().list.retain(|(other, _)| *other != id);
    }

    /// Channels there are.
    pub(super) fn channels(&self) -> usize {
        self.cores().list.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_counted_and_their_numbers_used_in_turn() {
        let a = Association::new((0, 1), (Cntlid(1), 2), (16, 0), Arc::default());
        let (one, two) = (a.lease().unwrap(), a.lease().unwrap());
        assert_eq!((one.qid, two.qid, a.queues()), (Qid(1), Qid(2), 2));
        assert!(a.lease().is_none());
        drop(two);
        drop(one);
        assert_eq!((a.queues(), a.lease().unwrap().qid), (0, Qid(2)));
    }

    #[test]
    fn every_change_counts_and_only_one_ends_the_device() {
        let board = Board::new(2);
        let mut last = board.version();
        let mut changed = |board: &Board| std::mem::replace(&mut last, board.version()) != board.version();
        board.set_access(1, Access::NonOptimized);
        assert!(changed(&board));
        assert_eq!((board.access(0), board.access(1)), (Access::None, Access::NonOptimized));
        board.set_access(1, Access::NonOptimized);
        assert!(changed(&board), "somebody waits for the look itself");
        board.set_impatient(false);
        assert!(!changed(&board));
        board.set_settled(0, 3);
        board.set_settled(0, 2);
        assert!(changed(&board));
        assert_eq!(board.settled(0), 3);
        assert!(board.end(Life::Removed) && !board.end(Life::Faulted));
        assert!(changed(&board));
        assert_eq!(board.life(), Life::Removed);
    }
}
