//! How other threads reach a core: a bounded queue of jobs, a list of woken tasks, and one wake-up a batch.
//!
//! A core that spins finds new entries by one atomic load a turn; only a core that announced its sleep is
//! woken by a write to its eventfd, and only by the first sender.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use rustix::event::{EventfdFlags, eventfd};

use super::executor::TaskKey;

/// What crosses to another core. It runs there between two turns' worth of polling.
pub type Job = Box<dyn FnOnce() + Send>;

/// Why a job was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PostError {
    /// The mailbox is full; try later, or use `CoreHandle::call`, which waits.
    #[error("the core's mailbox is full")]
    Full,
    /// The reactor stopped.
    #[error("the core's reactor has stopped")]
    Gone,
}

#[derive(Default)]
struct Inbox {
    jobs: VecDeque<Job>,
    /// Bounded by the number of tasks: each is queued at most once.
    woken: Vec<TaskKey>,
    /// Senders that wait for space.
    space: Vec<Waker>,
    closed: bool,
}

pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    capacity: usize,
    /// Something is in the inbox, or somebody asked for a turn.
    pending: AtomicBool,
    /// The core sleeps or is about to.
    sleeping: AtomicBool,
    eventfd: OwnedFd,
}

impl Mailbox {
    pub(super) fn new(capacity: usize) -> io::Result<Self> {
        // Blocking, because nobody ever blocks on it: it is read only after a poll said so.
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self {
            inbox: Mutex::default(),
            capacity: capacity.max(1),
            pending: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            eventfd,
        })
    }

    /// Readable when the sleeping core has to wake.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// Queues a job; gives it back when there is no room or nobody to run it.
    pub(super) fn post(&self, job: Job) -> Result<(), (PostError, Job)> {
        let mut inbox = self.lock();
        if inbox.closed {
            return Err((PostError::Gone, job));
        }
        if inbox.jobs.len() >= self.capacity {
            return Err((PostError::Full, job));
        }
        inbox.jobs.push_back(job);
        self.announce(inbox);
        Ok(())
    }

    /// As [`post`](Self::post), but leaves `waker` behind when there is no room.
    pub(super) fn post_or_wait(&self, job: Job, waker: &Waker) -> Result<(), (PostError, Job)> {
        let mut inbox = self.lock();
        if inbox.closed {
            return Err((PostError::Gone, job));
        }
        if inbox.jobs.len() >= self.capacity {
            if !inbox.space.iter().any(|w| w.will_wake(waker)) {
                inbox.space.push(waker.clone());
            }
            return Err((PostError::Full, job));
        }
        inbox.jobs.push_back(job);
        self.announce(inbox);
        Ok(())
    }

    /// Queues a task that became ready on another thread.
    pub(super) fn push_woken(&self, task: TaskKey) {
        let mut inbox = self.lock();
        if !inbox.closed {
            inbox.woken.push(task);
            self.announce(inbox);
        }
    }

    /// Makes the core do a turn.
    pub(super) fn wake(&self) {
        self.announce(self.lock());
    }

    fn announce(&self, inbox: MutexGuard<'_, Inbox>) {
        // Stored under the lock, so that `drain`, which clears it under the lock, never misses an entry.
        self.pending.store(true, Ordering::SeqCst);
        drop(inbox);
        // Pairs with `begin_sleep`: either this load sees the announced sleep, or that one sees `pending`.
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            // Adding 1 to the counter blocks only at 2^64 - 2.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }

    /// Takes what came, if anything. `jobs` and `woken` must be empty: their storage is exchanged.
    /// Returns true when there was something, or somebody asked for a turn.
    pub(super) fn drain(&self, jobs: &mut VecDeque<Job>, woken: &mut Vec<TaskKey>) -> bool {
        if !self.pending.load(Ordering::Acquire) {
            return false;
        }
        debug_assert!(jobs.is_empty() && woken.is_empty());
        let mut inbox = self.lock();
        self.pending.store(false, Ordering::SeqCst);
        std::mem::swap(&mut inbox.jobs, jobs);
        std::mem::swap(&mut inbox.woken, woken);
        let space = std::mem::take(&mut inbox.space);
        drop(inbox);
        space.into_iter().for_each(Waker::wake);
        true
    }

    /// Something came, or somebody asked for a turn, since the last [`drain`](Self::drain).
    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    /// Announces that the core goes to sleep; false = do not, something came.
    pub(super) fn begin_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.pending.load(Ordering::SeqCst) {
            self.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// The core is awake.
    pub(super) fn end_sleep(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Refuses everything from now on and drops what is queued.
    pub(super) fn close(&self) {
        let mut inbox = self.lock();
        inbox.closed = true;
        let old = std::mem::take(&mut *inbox);
        inbox.closed = true;
        drop(inbox);
        // Outside the lock: dropped jobs may post.
        let Inbox { jobs, space, .. } = old;
        drop(jobs);
        space.into_iter().for_each(Waker::wake);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Nothing under the lock leaves the inbox half changed.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn awake(m: &Mailbox) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(m.wake_fd(), PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    #[test]
    fn the_bound_holds_and_the_job_comes_back() {
        let m = Mailbox::new(2).unwrap();
        assert!(m.post(Box::new(|| ())).is_ok());
        assert!(m.post(Box::new(|| ())).is_ok());
        assert!(matches!(m.post(Box::new(|| ())), Err((PostError::Full, _))));
        let (mut jobs, mut woken) = (VecDeque::new(), Vec::new());
        assert!(m.drain(&mut jobs, &mut woken));
        assert_eq!(jobs.len(), 2);
        assert!(m.post(Box::new(|| ())).is_ok());
        m.close();
        assert!(matches!(m.post(Box::new(|| ())), Err((PostError::Gone, _))));
    }

    #[test]
    fn only_a_sleeping_core_is_woken_by_the_kernel() {
        let m = Mailbox::new(8).unwrap();
        m.post(Box::new(|| ())).unwrap_or_else(|_| panic!());
        assert!(!awake(&m), "it spins: no syscall");
        assert!(!m.begin_sleep(), "something waits");
        let (mut jobs, mut woken) = (VecDeque::new(), Vec::new());
        assert!(m.drain(&mut jobs, &mut woken));
        assert!(m.begin_sleep());
        m.wake();
        assert!(awake(&m));
        assert!(!m.begin_sleep(), "a wake-up means a turn, even with nothing queued");
    }

    #[test]
    fn senders_that_wait_are_woken_when_there_is_space() {
        use std::sync::Arc;
        use std::sync::atomic::AtomicUsize;
        struct Count(AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let m = Mailbox::new(1).unwrap();
        assert!(m.post_or_wait(Box::new(|| ()), &waker).is_ok());
        for _ in 0..2 {
            assert!(matches!(m.post_or_wait(Box::new(|| ()), &waker), Err((PostError::Full, _))));
        }
        let (mut jobs, mut woken) = (VecDeque::new(), Vec::new());
        m.drain(&mut jobs, &mut woken);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
