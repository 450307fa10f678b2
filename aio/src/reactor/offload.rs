//! Slow system calls (opening a file, looking a name up) off the core: a few helper threads for the whole process,
//! started on demand, gone after some idle seconds. Control work only, never I/O.

use core::time::Duration;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::mailbox::Job;
use super::oneshot::oneshot;

/// Most helper threads at one time. What they do waits for the system, so more than the cores is useful.
const MAX_THREADS: usize = 4;
/// A helper without work ends after this time.
const LINGER: Duration = Duration::from_secs(5);

struct Helpers {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static HELPERS: Mutex<Helpers> = Mutex::new(Helpers { jobs: VecDeque::new(), threads: 0, idle: 0 });
static WORK: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Helpers> {
    // Nothing under the lock leaves the state half changed.
    HELPERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` on a helper thread, from the call on, and resolves to its result on whatever executor awaits it. An error says that no
/// helper could be started or that `f` panicked. Dropping the future lets `f` run to its end.
pub fn offload<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = io::Result<T>> + Send + 'static {
    let (tx, rx) = oneshot();
    let started = start(Box::new(move || tx.send(f())));
    async move {
        started?;
        rx.await.ok_or_else(|| io::Error::other("work on a helper thread panicked"))
    }
}

fn start(job: Job) -> io::Result<()> {
    let mut h = lock();
    h.jobs.push_back(job);
    if h.idle >= h.jobs.len() {
        WORK.notify_one();
        return Ok(());
    }
    if h.threads < MAX_THREADS {
        match thread::Builder::new().name("aio-helper".into()).spawn(help) {
            Ok(_) => h.threads += 1,
            // Those that exist will come to it.
            Err(_) if h.threads > 0 => {}
            Err(e) => {
                h.jobs.pop_back();
                return Err(e);
            }
        }
    }
    Ok(())
}

fn help() {
    super::thread::unpin();
    let mut h = lock();
    loop {
        if let Some(job) = h.jobs.pop_front() {
            drop(h);
            // A panic drops the job's sender, which tells who waits; the hook has printed it.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            h = lock();
            continue;
        }
        h.idle += 1;
        let (back, waited) = WORK.wait_timeout(h, LINGER).unwrap_or_else(PoisonError::into_inner);
        h = back;
        h.idle -= 1;
        if waited.timed_out() && h.jobs.is_empty() {
            h.threads -= 1;
            return;
        }
    }
}
