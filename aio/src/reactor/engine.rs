//! What a core polls for events and sleeps in.

use core::time::Duration;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

use io_uring::{cqueue, opcode, types};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::epoll::Epoll;
use super::handle::Shared;
use super::watch::Watcher;
use super::{EngineChoice, EngineKind};
use crate::ring::polls::PollSet;
use crate::ring::{CqeSink, Ring, SourceId};

pub(crate) enum Engine {
    Ring {
        ring: Rc<Ring>,
        polls: Rc<PollSet>,
        wake: Rc<RingWake>,
    },
    Epoll(Rc<Epoll>),
    /// No descriptors to watch; sleeps on the mailbox alone.
    None,
}

impl Engine {
    pub(super) fn new(choice: EngineChoice, ring_entries: u32, shared: &Arc<Shared>) -> io::Result<Self> {
        match choice {
            EngineChoice::None => Ok(Self::None),
            EngineChoice::Epoll => Ok(Self::Epoll(Epoll::new(shared.mailbox().wake_fd())?)),
            EngineChoice::IoUring => Self::ring(ring_entries, shared),
            EngineChoice::Auto => match Self::ring(ring_entries, shared) {
                Ok(engine) => Ok(engine),
                // Forbidden, absent or too old; or out of what the kernel counts for rings.
                Err(_) => Ok(Self::Epoll(Epoll::new(shared.mailbox().wake_fd())?)),
            },
        }
    }

    fn ring(entries: u32, shared: &Arc<Shared>) -> io::Result<Self> {
        let ring = Rc::new(Ring::new(entries)?);
        let polls = PollSet::new(ring.clone());
        let wake = RingWake::new(&ring, shared.clone());
        Ok(Self::Ring { ring, polls, wake })
    }

    pub(super) fn kind(&self) -> EngineKind {
        match self {
            Self::Ring { .. } => EngineKind::IoUring,
            Self::Epoll(_) => EngineKind::Epoll,
            Self::None => EngineKind::None,
        }
    }

    /// Where readiness of descriptors comes from; `None` without an engine.
    pub(crate) fn watcher(&self) -> Option<Watcher> {
        match self {
            Self::Ring { polls, .. } => Some(Watcher::Ring(polls.clone())),
            Self::Epoll(epoll) => Some(Watcher::Epoll(epoll.clone())),
            Self::None => None,
        }
    }

    /// The ring, for devices that submit to it.
    pub(crate) fn io_ring(&self) -> Option<&Rc<Ring>> {
        match self {
            Self::Ring { ring, .. } => Some(ring),
            _ => None,
        }
    }

    /// Delivers events that are there; returns how many. `idle`: the last turn found nothing to do.
    pub(super) fn look(&self, idle: bool) -> usize {
        match self {
            Self::Ring { ring, .. } => ring.reap(),
            Self::Epoll(epoll) => epoll.look(idle),
            Self::None => 0,
        }
    }

    /// Hands over what the turn queued.
    pub(super) fn kick(&self) {
        if let Self::Ring { ring, wake, .. } = self {
            wake.arm(ring);
            ring.kick();
        }
    }

    /// Sleeps until an event, a wake-up or the end of `timeout`. The mailbox has been told.
    pub(super) fn sleep(&self, shared: &Shared, timeout: Option<Duration>) {
        match self {
            Self::Ring { ring, wake, .. } => {
                wake.arm(ring);
                // Without its wake-up armed (no room in the ring) the core only naps.
                let nap = Duration::from_millis(1);
                let timeout = if wake.armed() { timeout } else { Some(timeout.map_or(nap, |t| t.min(nap))) };
                ring.wait(timeout);
            }
            Self::Epoll(epoll) => {
                epoll.wait(timeout);
            }
            Self::None => sleep_on_mailbox(shared, timeout),
        }
    }

    /// Lets go of the kernel's side, waiting for memory in flight.
    pub(super) fn close(&self) {
        if let Self::Ring { ring, .. } = self
            && !ring.close()
        {
            // A disk that does not answer: better a leak than memory that it writes to after we gave it away.
            std::mem::forget(ring.clone());
        }
    }
}

fn sleep_on_mailbox(shared: &Shared, timeout: Option<Duration>) {
    let fd = shared.mailbox().wake_fd();
    let timeout = timeout.map(|d| Timespec {
        tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(d.subsec_nanos()),
    });
    if let Ok(1) = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], timeout.as_ref()) {
        // Readable, and this is the only reader: it does not block.
        let _ = rustix::io::read(fd, &mut [0; 8]);
    }
}

/// The multishot poll on the mailbox's eventfd: every write to it is one completion, and nobody reads it.
pub(crate) struct RingWake {
    source: std::cell::Cell<Option<SourceId>>,
    armed: std::cell::Cell<bool>,
    shared: Arc<Shared>,
}

impl RingWake {
    fn new(ring: &Rc<Ring>, shared: Arc<Shared>) -> Rc<Self> {
        let wake = Rc::new(Self { source: Default::default(), armed: Default::default(), shared });
        wake.source.set(Some(ring.register(wake.clone())));
        wake
    }

    fn armed(&self) -> bool {
        self.armed.get()
    }

    fn arm(&self, ring: &Ring) {
        if self.armed.get() {
            return;
        }
        let Some(source) = self.source.get() else { return };
        let fd = types::Fd(self.shared.mailbox().wake_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        // SAFETY: a poll names no memory.
        self.armed.set(unsafe { ring.push(entry, source, 0) }.is_ok());
    }
}

impl CqeSink for RingWake {
    fn complete(&self, _slot: u32, _res: i32, flags: u32) {
        if !cqueue::more(flags) {
            self.armed.set(false);
        }
    }

    fn owns_memory(&self) -> bool {
        false
    }
}
