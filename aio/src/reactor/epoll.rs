//! The engine for kernels without io_uring: edge-triggered epoll.
//!
//! Each descriptor is added once, for both directions; an edge sets the readiness that its owner clears when a
//! call would block. So arming costs nothing, and what remains is one `epoll_wait`: to sleep, and without
//! waiting in turns that found nothing else to do and in every sixteenth of the others.

use core::time::Duration;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{Timespec, epoll};

use super::watch::{Direction, WatchState};

/// Events taken by one call.
const BATCH: usize = 64;
/// A busy core looks for events of idle descriptors every so many turns.
const BUSY_INTERVAL: u32 = 16;
/// Event data of the mailbox's eventfd.
const WAKE: u64 = u64::MAX;

struct Place {
    generation: u32,
    state: Option<Rc<WatchState>>,
}

pub(crate) struct Epoll {
    fd: OwnedFd,
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<u32>>,
    turns: Cell<u32>,
}

impl Epoll {
    /// `wake_fd` ends a wait when it is written to; it is never read.
    pub(crate) fn new(wake_fd: BorrowedFd<'_>) -> io::Result<Rc<Self>> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&fd, wake_fd, epoll::EventData::new_u64(WAKE), events)?;
        Ok(Rc::new(Self { fd, places: RefCell::default(), free: RefCell::default(), turns: Cell::new(0) }))
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>, state: Rc<WatchState>) -> io::Result<u32> {
        let mut places = self.places.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            places.push(Place { generation: 0, state: None });
            (places.len() - 1) as u32
        });
        let place = &mut places[index as usize];
        let data = u64::from(place.generation) << 32 | u64::from(index);
        use epoll::EventFlags as E;
        let events = E::IN | E::OUT | E::RDHUP | E::ET;
        if let Err(e) = epoll::add(&self.fd, fd, epoll::EventData::new_u64(data), events) {
            self.free.borrow_mut().push(index);
            return Err(e.into());
        }
        place.state = Some(state);
        Ok(index)
    }

    pub(crate) fn remove(&self, index: u32, fd: BorrowedFd<'_>) {
        // Fails only for a descriptor that is not there, which would be as well.
        let _ = epoll::delete(&self.fd, fd);
        let place = &mut self.places.borrow_mut()[index as usize];
        place.state = None;
        // Events taken already may still name the old generation.
        place.generation = place.generation.wrapping_add(1) & 0x7fff_ffff;
        self.free.borrow_mut().push(index);
    }

    /// Looks for events, if it is time to; returns how many there were.
    pub(crate) fn look(&self, idle: bool) -> usize {
        let turns = self.turns.get().wrapping_add(1);
        self.turns.set(turns);
        if idle || turns.is_multiple_of(BUSY_INTERVAL) { self.wait(Some(Duration::ZERO)) } else { 0 }
    }

    /// Sleeps until an event or until `timeout` is over; returns how many events there were.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> usize {
        let timeout = timeout.map(|d| Timespec {
            tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(d.subsec_nanos()),
        });
        let mut events = [const { core::mem::MaybeUninit::<epoll::Event>::uninit() }; BATCH];
        // An error means a signal came: the core is awake.
        let Ok((events, _)) = epoll::wait(&self.fd, &mut events, timeout.as_ref()) else { return 0 };
        let places = self.places.borrow();
        for event in events.iter() {
            let (data, flags) = (event.data.u64(), event.flags);
            let Some(place) = places.get(data as u32 as usize) else { continue };
            let Some(state) = &place.state else { continue };
            if u64::from(place.generation) != data >> 32 {
                continue;
            }
            use epoll::EventFlags as E;
            if flags.intersects(E::IN | E::RDHUP | E::HUP | E::ERR) {
                state.set_ready(Direction::Read, true);
            }
            if flags.intersects(E::OUT | E::HUP | E::ERR) {
                state.set_ready(Direction::Write, true);
            }
        }
        events.len()
    }
}
