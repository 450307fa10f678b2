//! Helper threads for operations that block: everything where io_uring is not available, and discards, for
//! which it has no operation on older kernels.
//!
//! One small pool for the process, started on demand, gone after some idle seconds. Results go to the
//! channel's [`Mailbox`], whose eventfd wakes the core when it sleeps.
//!
//! # Unsafe
//! Operations name memory of the task that they belong to.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::sys;
use super::task::Op;

/// Most threads: enough to keep a disk busy, few enough to cost little.
const MAX_THREADS: usize = 16;
/// A thread without work ends after this time.
const LINGER: Duration = Duration::from_secs(5);

/// Results on their way back to a channel.
pub(super) struct Mailbox {
    results: Mutex<Vec<(u32, i32)>>,
    waiting: AtomicUsize,
    asleep: AtomicBool,
    wake: OwnedFd,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            results: Mutex::default(),
            waiting: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            // SAFETY: a fresh descriptor that nobody else has.
            wake: unsafe { OwnedFd::from_raw_fd(fd) },
        })
    }

    fn deliver(&self, slot: u32, result: i32) {
        {
            let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
            results.push((slot, result));
            // SeqCst: either the core going to sleep sees this, or we see that it sleeps.
            self.waiting.store(results.len(), Ordering::SeqCst);
        }
        if self.asleep.swap(false, Ordering::SeqCst) {
            let one = 1u64;
            // SAFETY: reads eight bytes from a local. It fails only when the counter is full of wake-ups.
            unsafe { libc::write(self.wake.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }

    /// Moves the results that are there to `into`.
    pub(super) fn take(&self, into: &mut Vec<(u32, i32)>) {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut results);
        self.waiting.store(0, Ordering::SeqCst);
    }

    /// From now on a result wakes the core; false = there is one already.
    pub(super) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Takes back wake-ups that have been delivered.
    pub(super) fn woken(&self) {
        let mut count = 0u64;
        // SAFETY: writes eight bytes to a local; the descriptor does not block.
        unsafe { libc::read(self.wake.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

/// The mailbox as something to watch.
#[derive(Clone)]
pub(super) struct WakeFd(pub(super) Arc<Mailbox>);

impl AsFd for WakeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

/// One operation for the pool.
pub(super) struct Job {
    pub(super) file: Arc<File>,
    pub(super) op: Op,
    pub(super) slot: u32,
    pub(super) mailbox: Arc<Mailbox>,
}

// SAFETY: the pointers in `op` lead to memory that the channel keeps in place, and leaves alone, until the
// result was delivered.
unsafe impl Send for Job {}

impl Job {
    fn run(self) {
        // SAFETY: as above.
        let result = unsafe { sys::run(&self.file, &self.op) };
        self.mailbox.deliver(self.slot, result);
    }
}

struct Pool {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { jobs: VecDeque::new(), threads: 0, idle: 0 });
static WORK: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a helper thread run `job`. Channels bound how many there are.
pub(super) fn submit(job: Job) {
    let mut pool = lock();
    pool.jobs.push_back(job);
    if pool.idle >= pool.jobs.len() {
        WORK.notify_one();
        return;
    }
    if pool.threads < MAX_THREADS {
        match thread::Builder::new().name("aio-file".into()).spawn(help) {
            Ok(_) => pool.threads += 1,
            Err(_) if pool.threads > 0 => {}
            Err(_) => {
                // No thread at all to be had: better late than never.
                let job = pool.jobs.pop_back();
                drop(pool);
                job.into_iter().for_each(Job::run);
            }
        }
    }
}

fn help() {
    crate::reactor::unpin();
    let mut pool = lock();
    loop {
        if let Some(job) = pool.jobs.pop_front() {
            drop(pool);
            job.run();
            pool = lock();
            continue;
        }
        pool.idle += 1;
        let (back, waited) = WORK.wait_timeout(pool, LINGER).unwrap_or_else(PoisonError::into_inner);
        pool = back;
        pool.idle -= 1;
        if waited.timed_out() && pool.jobs.is_empty() {
            pool.threads -= 1;
            return;
        }
    }
}
