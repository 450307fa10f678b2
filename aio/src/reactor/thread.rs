//! Reactors on threads of their own.
//!
//! Needs `unsafe` to block signals on such a thread.

use std::io;
use std::mem::MaybeUninit;
use std::sync::{OnceLock, mpsc};
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::handle::CoreHandle;
use super::{CoreId, Reactor, ReactorConfig};

/// The CPUs on which this thread may run, in order: what a reactor can be pinned to.
pub fn allowed_cores() -> io::Result<Vec<CoreId>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&c| set.is_set(c)).map(|c| CoreId(c as u32)).collect())
}

/// Raises this process's limit of open descriptors as far as it may, and returns it: each connection takes one, and the
/// usual soft limit of 1,024 was made for programs that use `select`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Starts a reactor on a thread of its own, pinned when the configuration says so, and returns when it runs. It ends by
/// [`CoreHandle::stop`]; [`CoreHandle::join`] waits for that.
///
/// Signals that ask a process to do something are blocked on the thread, so that they interrupt others.
pub fn spawn_thread(config: ReactorConfig) -> io::Result<CoreHandle> {
    let (tx, rx) = mpsc::sync_channel(1);
    let name = format!("core-{}", config.core);
    let thread = thread::Builder::new().name(name).spawn(move || {
        let made = prepare_thread(&config).and_then(|()| Reactor::new(config));
        let mut reactor = match made {
            Ok(reactor) => reactor,
            Err(e) => {
                // Nobody waits only if the spawning thread was killed.
                let _ = tx.send(Err(e));
                return;
            }
        };
        let _ = tx.send(Ok(reactor.core().handle()));
        reactor.run();
    })?;
    let handle = rx.recv().map_err(|_| io::Error::other("the reactor's thread ended while starting"))??;
    handle.0.set_thread(thread);
    Ok(handle)
}

/// The CPUs that this process had before its first thread was pinned.
static UNPINNED: OnceLock<CpuSet> = OnceLock::new();

/// Lets this thread run on all CPUs of the process. A thread inherits the CPUs of the one that starts it: a helper
/// started by a pinned core would take its time from that very core.
pub(crate) fn unpin() {
    if let Some(all) = UNPINNED.get() {
        // Fails only when the process lost all those CPUs since; then the thread stays where the system put it.
        let _ = sched_setaffinity(None, all);
    }
}

fn prepare_thread(config: &ReactorConfig) -> io::Result<()> {
    block_signals();
    if UNPINNED.get().is_none() {
        // When two threads come here at once, both have what the process has.
        let _ = UNPINNED.set(sched_getaffinity(None)?);
    }
    if !config.pin {
        unpin();
        return Ok(());
    }
    let core = config.core.0 as usize;
    let refused = |e: io::Error| {
        let text = format!(
            "cannot pin a reactor to CPU {core}: {e}; choose one of the CPUs allowed to this process"
        );
        io::Error::new(e.kind(), text)
    };
    if core >= CpuSet::MAX_CPU {
        return Err(refused(io::ErrorKind::InvalidInput.into()));
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|e| refused(e.into()))
}

fn block_signals() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the call initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the line above.
    let mut set: libc::sigset_t = unsafe { set.assume_init() };
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGCHLD,
        libc::SIGPIPE,
        libc::SIGALRM,
    ] {
        // SAFETY: an initialised set and a signal that exists.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    // SAFETY: an initialised set; the old mask is not asked for. It changes this thread only.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
}
