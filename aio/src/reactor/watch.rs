//! Readiness of a file descriptor on a core: sockets, and every other wake-up source that is a descriptor
//! (eventfds of interrupts, completion channels, kicks of guests).

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use super::epoll::Epoll;
use crate::ring::polls::PollSet;
use crate::stream::Ready;

/// Which readiness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Direction {
    Read = 0,
    Write = 1,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::Read, Self::Write];
}

/// What engine and owner share of a watched descriptor.
#[derive(Default)]
pub(crate) struct WatchState {
    ready: [Cell<bool>; 2],
    armed: [Cell<bool>; 2],
}

impl WatchState {
    pub(crate) fn armed(&self, direction: Direction) -> bool {
        self.armed[direction as usize].get()
    }

    pub(crate) fn set_armed(&self, direction: Direction, armed: bool) {
        self.armed[direction as usize].set(armed);
    }

    pub(crate) fn ready(&self, direction: Direction) -> bool {
        self.ready[direction as usize].get()
    }

    pub(crate) fn set_ready(&self, direction: Direction, ready: bool) {
        self.ready[direction as usize].set(ready);
    }
}

/// Where readiness comes from.
#[derive(Clone)]
pub(crate) enum Watcher {
    Ring(Rc<PollSet>),
    Epoll(Rc<Epoll>),
}

/// A descriptor whose readiness this core watches. The descriptor belongs to this value, so that it is never
/// closed under a poll.
///
/// Readiness starts as "unknown", which is reported as not ready: [`arm`](Self::arm) to learn of it.
pub struct Watch<F: AsFd> {
    state: Rc<WatchState>,
    watcher: Watcher,
    index: u32,
    /// Taken only by `into_inner`.
    fd: Option<F>,
}

impl<F: AsFd> Watch<F> {
    pub(crate) fn new(watcher: Watcher, fd: F) -> io::Result<Self> {
        let state = Rc::new(WatchState::default());
        let index = match &watcher {
            Watcher::Ring(polls) => polls.add(fd.as_fd().as_raw_fd(), state.clone()),
            Watcher::Epoll(epoll) => epoll.add(fd.as_fd(), state.clone())?,
        };
        Ok(Self { state, watcher, index, fd: Some(fd) })
    }

    /// The descriptor.
    pub fn get_ref(&self) -> &F {
        self.fd.as_ref().expect("invariant: only `into_inner` takes the descriptor")
    }

    /// Ends the watch and gives the descriptor back.
    pub fn into_inner(mut self) -> F {
        let fd = self.fd.take().expect("invariant: only `into_inner` takes the descriptor");
        self.end(&fd);
        fd
    }

    fn end(&self, fd: &F) {
        match &self.watcher {
            Watcher::Ring(polls) => polls.remove(self.index),
            Watcher::Epoll(epoll) => epoll.remove(self.index, fd.as_fd()),
        }
    }

    /// The last known readiness, without a syscall.
    pub fn ready(&self) -> Ready {
        Ready { readable: self.state.ready(Direction::Read), writable: self.state.ready(Direction::Write) }
    }

    /// The owner tried and found nothing to read: not readable until an event says so.
    pub fn clear_readable(&self) {
        self.state.set_ready(Direction::Read, false);
    }

    /// The owner tried and nothing fitted: not writable until an event says so.
    pub fn clear_writable(&self) {
        self.state.set_ready(Direction::Write, false);
    }

    /// Asks for the event "readable", or also "writable". Free when it is pending or known already. The core is
    /// woken, and [`ready`](Self::ready) tells in a later turn; it may tell so wrongly, never the other way.
    pub fn arm(&self, writable_too: bool) {
        self.arm_direction(Direction::Read);
        if writable_too {
            self.arm_direction(Direction::Write);
        }
    }

    fn arm_direction(&self, direction: Direction) {
        if self.state.ready(direction) || self.state.armed(direction) {
            return;
        }
        match &self.watcher {
            Watcher::Ring(polls) => polls.arm(self.index, direction),
            // Edges are always watched.
            Watcher::Epoll(_) => {}
        }
    }
}

impl<F: AsFd> Drop for Watch<F> {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.end(&fd);
        }
    }
}
