//! Makes Compare and Write atomic against writes from other cores, at no cost to who does not use it.
//!
//! Each channel owns a flag that says "I am changing blocks now". A plain write sets its flag, looks whether
//! an exclusive section is open, copies, clears the flag: two stores to a cache line of its own and one load
//! of a line that nobody writes. Compare and Write opens the exclusive section, makes that visible on every
//! core with one `membarrier(2)` (so that writers need no fence of their own), waits until the flags of the
//! other channels are clear, works, and closes the section. A device with one channel skips even that.
//!
//! # Unsafe
//! One system call without pointers.

use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::IoStatus;

/// Shared by all channels of a device.
#[derive(Default)]
pub(super) struct Exclusion {
    /// An exclusive section is open or about to be.
    exclusive: AtomicBool,
    /// The flags of all open channels. Held during an exclusive section, so that sections queue up and no
    /// channel opens meanwhile. Only Compare and Write and opening take it.
    writers: Mutex<Vec<Arc<Flag>>>,
}

/// On a cache line (pair) of its own: only its channel writes it.
#[derive(Default)]
#[repr(align(128))]
struct Flag(AtomicBool);

/// One channel's part.
pub(super) struct Writer {
    shared: Arc<Exclusion>,
    flag: Arc<Flag>,
    fenced: bool,
}

/// While it lives, no exclusive section runs.
pub(super) struct WriteGuard<'a>(&'a AtomicBool);

impl Drop for WriteGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: what was written comes before the flag, for the section that waits for it.
        self.0.store(false, Ordering::Release);
    }
}

impl Writer {
    /// Registers a channel. Waits for an exclusive section that is open.
    pub(super) fn new(shared: &Arc<Exclusion>) -> Self {
        let flag = Arc::new(Flag::default());
        shared.writers.lock().unwrap_or_else(PoisonError::into_inner).push(flag.clone());
        Self { shared: shared.clone(), flag, fenced: !membarrier_works() }
    }

    /// Begins to change blocks.
    #[inline]
    pub(super) fn enter(&self) -> WriteGuard<'_> {
        loop {
            self.flag.0.store(true, Ordering::Relaxed);
            // The store has to be seen before the load is done. `membarrier` on the other side makes this
            // compiler fence a full one exactly when somebody needs it.
            if self.fenced {
                fence(Ordering::SeqCst)
            } else {
                compiler_fence(Ordering::SeqCst)
            }
            if !self.shared.exclusive.load(Ordering::Acquire) {
                return WriteGuard(&self.flag.0);
            }
            self.flag.0.store(false, Ordering::Release);
            wait_while(|| self.shared.exclusive.load(Ordering::Relaxed));
        }
    }

    /// Runs `work` while no other channel changes blocks.
    pub(super) fn exclusively(&self, work: impl FnOnce() -> IoStatus) -> IoStatus {
        let writers = self.shared.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if writers.len() == 1 {
            return work();
        }
        let _section = Section::open(&self.shared.exclusive);
        if self.fenced {
            fence(Ordering::SeqCst);
        } else if !membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
            return IoStatus::INTERNAL_ERROR;
        }
        for flag in writers.iter().filter(|f| !Arc::ptr_eq(f, &self.flag)) {
            // Acquire: pairs with the release of the guard, so that we compare what was written.
            wait_while(|| flag.0.load(Ordering::Acquire));
        }
        work()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut writers = self.shared.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.retain(|f| !Arc::ptr_eq(f, &self.flag));
    }
}

struct Section<'a>(&'a AtomicBool);

impl<'a> Section<'a> {
    fn open(exclusive: &'a AtomicBool) -> Self {
        exclusive.store(true, Ordering::SeqCst);
        Self(exclusive)
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        // Release: the writers that wait see what the section wrote.
        self.0.store(false, Ordering::Release);
    }
}

/// Spins for the length of a block copy; when the other thread lost its core, gives ours away.
fn wait_while(condition: impl Fn() -> bool) {
    let mut spins = 0u32;
    while condition() {
        spins += 1;
        if spins.is_multiple_of(1024) {
            std::thread::yield_now();
        } else {
            core::hint::spin_loop();
        }
    }
}

/// True when the process could register for expedited barriers (Linux 4.14; a seccomp filter may forbid it).
fn membarrier_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED))
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: takes numbers only and changes nothing that Rust knows of.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}
