//! Keeping a thread on one core.

use rustix::thread::{CpuSet, sched_setaffinity};

/// Binds the calling thread; a machine that refuses measures without, and says so once a thread.
pub(crate) fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = sched_setaffinity(None, &set) {
        eprintln!("bench: cannot bind a thread to core {core}: {error}");
    }
}
