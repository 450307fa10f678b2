//! Readiness of file descriptors by one-shot polls.
//!
//! A poll is armed when asked for and not otherwise, so a descriptor that is used in every turn costs nothing
//! here. Slot numbers are `2 * watch + direction`; a watch's slots are reused only after both its polls have
//! completed, so a late completion never reaches somebody else.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};

use io_uring::{opcode, types};

use super::{CqeSink, Ring, SourceId};
use crate::reactor::watch::{Direction, WatchState};

/// What a poll for reading waits for: bytes, or the other end's end of stream.
const READ_EVENTS: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
const WRITE_EVENTS: u32 = libc::POLLOUT as u32;

struct Place {
    state: Rc<WatchState>,
    fd: RawFd,
    /// The watch is gone; the place is free when no poll is in flight.
    dropped: bool,
}

#[derive(Default)]
struct Places {
    places: Vec<Option<Place>>,
    free: Vec<u32>,
}

pub(crate) struct PollSet {
    ring: Rc<Ring>,
    source: std::cell::Cell<Option<SourceId>>,
    places: RefCell<Places>,
}

/// What the ring holds: it must not keep the set, which keeps the ring.
struct Sink(Weak<PollSet>);

impl PollSet {
    pub(crate) fn new(ring: Rc<Ring>) -> Rc<Self> {
        let set = Rc::new(Self { ring, source: std::cell::Cell::new(None), places: RefCell::default() });
        let source = set.ring.register(Rc::new(Sink(Rc::downgrade(&set))));
        set.source.set(Some(source));
        set
    }

    fn source(&self) -> SourceId {
        self.source.get().expect("invariant: registered by the constructor")
    }

    /// Adds a descriptor; returns its place.
    pub(crate) fn add(&self, fd: RawFd, state: Rc<WatchState>) -> u32 {
        let mut p = self.places.borrow_mut();
        let place = Some(Place { state, fd, dropped: false });
        match p.free.pop() {
            Some(index) => {
                p.places[index as usize] = place;
                index
            }
            None => {
                p.places.push(place);
                (p.places.len() - 1) as u32
            }
        }
    }

    /// Polls for `direction`, unless that is in flight already.
    pub(crate) fn arm(&self, index: u32, direction: Direction) {
        let p = self.places.borrow();
        let place = p.places[index as usize].as_ref().expect("invariant: a live watch has its place");
        if place.state.armed(direction) {
            return;
        }
        let events = match direction {
            Direction::Read => READ_EVENTS,
            Direction::Write => WRITE_EVENTS,
        };
        let entry = opcode::PollAdd::new(types::Fd(place.fd), events).build();
        // SAFETY: a poll names no memory.
        match unsafe { self.ring.push(entry, self.source(), slot(index, direction)) } {
            Ok(()) => place.state.set_armed(direction, true),
            // No room: say ready, so that the owner tries, finds nothing and arms again.
            Err(_) => place.state.set_ready(direction, true),
        }
    }

    /// Takes a descriptor out. Its polls hold the file open until they were cancelled.
    pub(crate) fn remove(&self, index: u32) {
        let armed = {
            let mut p = self.places.borrow_mut();
            let place = p.places[index as usize].as_mut().expect("invariant: a live watch has its place");
            place.dropped = true;
            Direction::BOTH.map(|d| (d, place.state.armed(d)))
        };
        for (direction, armed) in armed {
            if armed {
                self.ring.cancel(self.source(), slot(index, direction));
            }
        }
        self.free_if_done(index);
    }

    fn free_if_done(&self, index: u32) {
        let mut p = self.places.borrow_mut();
        let done = p.places[index as usize]
            .take_if(|p| p.dropped && !Direction::BOTH.iter().any(|&d| p.state.armed(d)));
        if done.is_some() {
            p.free.push(index);
        }
    }

    fn completed(&self, slot: u32) {
        let (index, direction) = (slot / 2, Direction::BOTH[slot as usize % 2]);
        if let Some(Some(place)) = self.places.borrow().places.get(index as usize) {
            place.state.set_armed(direction, false);
            // Also after an error: the owner's next call on the descriptor shows what it is.
            place.state.set_ready(direction, true);
        }
        self.free_if_done(index);
    }
}

impl Drop for PollSet {
    fn drop(&mut self) {
        self.ring.retire(self.source());
    }
}

impl CqeSink for Sink {
    fn complete(&self, slot: u32, _res: i32, _flags: u32) {
        if let Some(set) = self.0.upgrade() {
            set.completed(slot);
        }
    }

    fn owns_memory(&self) -> bool {
        false
    }
}

fn slot(index: u32, direction: Direction) -> u32 {
    index * 2 + direction as u32
}
