//! The ring on the kernel at hand.

use std::os::fd::{AsFd, AsRawFd};

use io_uring::types;
use rustix::event::{EventfdFlags, eventfd};

use super::*;

fn ring() -> Option<Ring> {
    match Ring::new(16) {
        Ok(ring) => Some(ring),
        Err(e) => {
            println!("SKIPPED: io_uring is not available here: {e}");
            None
        }
    }
}

#[derive(Default)]
struct Log(RefCell<Vec<(u32, i32)>>);

impl CqeSink for Log {
    fn complete(&self, slot: u32, res: i32, _flags: u32) {
        self.0.borrow_mut().push((slot, res));
    }
}

fn nop() -> squeue::Entry {
    opcode::Nop::new().build()
}

#[test]
fn completions_find_their_sink_and_slot() {
    let Some(ring) = ring() else { return };
    let (a, b) = (Rc::new(Log::default()), Rc::new(Log::default()));
    let (ida, idb) = (ring.register(a.clone()), ring.register(b.clone()));
    assert_ne!(ida, idb);
    // SAFETY: a no-operation names no memory.
    unsafe {
        ring.push(nop(), ida, 3).unwrap();
        ring.push(nop(), idb, u32::MAX).unwrap();
    }
    assert_eq!(ring.reap(), 0, "not published yet");
    ring.kick();
    ring.wait(Some(Duration::ZERO));
    assert_eq!(ring.reap(), 2);
    assert_eq!(*a.0.borrow(), [(3, 0)]);
    assert_eq!(*b.0.borrow(), [(u32::MAX, 0)]);
}

#[test]
fn more_than_the_queue_holds_is_handed_over_early() {
    let Some(ring) = ring() else { return };
    let log = Rc::new(Log::default());
    let id = ring.register(log.clone());
    for slot in 0..200 {
        // SAFETY: a no-operation names no memory.
        unsafe { ring.push(nop(), id, slot) }.unwrap();
    }
    ring.kick();
    let mut done = 0;
    for _ in 0..100 {
        ring.wait(Some(Duration::ZERO));
        done += ring.reap();
    }
    assert_eq!(done, 200, "also those that overflowed the completion queue");
}

/// A slot that owns the memory that the kernel writes to.
struct Reader {
    memory: RefCell<Box<[u8; 8]>>,
    results: Rc<RefCell<Vec<i32>>>,
}

impl CqeSink for Reader {
    fn complete(&self, _slot: u32, res: i32, _flags: u32) {
        self.results.borrow_mut().push(res);
    }
}

fn read_into(ring: &Ring, reader: &Rc<Reader>, id: SourceId, fd: impl AsFd) {
    let fd = types::Fd(fd.as_fd().as_raw_fd());
    let entry = opcode::Read::new(fd, reader.memory.borrow_mut().as_mut_ptr(), 8).build();
    // SAFETY: the sink owns the memory, and the ring keeps the sink until the completion.
    unsafe { ring.push(entry, id, 0) }.unwrap();
    ring.kick();
}

#[test]
fn a_retired_sink_lives_until_its_last_completion() {
    let Some(ring) = ring() else { return };
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let results = Rc::new(RefCell::new(Vec::new()));
    let reader = Rc::new(Reader { memory: RefCell::default(), results: results.clone() });
    let id = ring.register(reader.clone());
    read_into(&ring, &reader, id, &fd);
    let weak = Rc::downgrade(&reader);
    drop(reader);
    ring.retire(id);
    assert!(weak.upgrade().is_some(), "the kernel may still write to its memory");
    rustix::io::write(&fd, &1u64.to_ne_bytes()).unwrap();
    ring.wait(Some(Duration::from_secs(5)));
    assert_eq!(ring.reap(), 1);
    assert_eq!(*results.borrow(), [8]);
    assert!(weak.upgrade().is_none());
}

#[test]
fn cancel_and_close_complete_what_is_in_flight() {
    let Some(ring) = ring() else { return };
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let results = Rc::new(RefCell::new(Vec::new()));
    let reader = Rc::new(Reader { memory: RefCell::default(), results: results.clone() });
    let id = ring.register(reader.clone());
    read_into(&ring, &reader, id, &fd);
    ring.cancel(id, 0);
    ring.wait(Some(Duration::from_secs(5)));
    while results.borrow().is_empty() {
        ring.wait(Some(Duration::from_millis(10)));
        ring.reap();
    }
    assert_eq!(*results.borrow(), [-libc::ECANCELED]);
    read_into(&ring, &reader, id, &fd);
    assert!(ring.close(), "in time");
    assert_eq!(results.borrow().len(), 2);
    // SAFETY: a no-operation names no memory.
    assert_eq!(unsafe { ring.push(nop(), id, 0) }, Err(Busy), "closed");
}

#[test]
fn sinks_may_push_while_they_complete() {
    struct Again {
        ring: Rc<Ring>,
        id: Cell<Option<SourceId>>,
        left: Cell<u32>,
    }
    impl CqeSink for Again {
        fn complete(&self, slot: u32, _res: i32, _flags: u32) {
            if self.left.get() > 0 {
                self.left.set(self.left.get() - 1);
                // SAFETY: a no-operation names no memory.
                unsafe { self.ring.push(nop(), self.id.get().unwrap(), slot) }.unwrap();
            }
        }
    }
    let Some(ring) = ring().map(Rc::new) else { return };
    let again = Rc::new(Again { ring: ring.clone(), id: Cell::new(None), left: Cell::new(10) });
    let id = ring.register(again.clone());
    again.id.set(Some(id));
    // SAFETY: a no-operation names no memory.
    unsafe { ring.push(nop(), id, 1) }.unwrap();
    let mut done = 0;
    for _ in 0..50 {
        ring.kick();
        ring.wait(Some(Duration::ZERO));
        done += ring.reap();
    }
    assert_eq!(done, 11);
    assert!(ring.close());
    again.id.set(None);
}

/// A bug: a cancellation that had to wait for room hit the next entry of the same slot.
#[test]
fn a_cancellation_that_waits_does_not_outlive_its_entry() {
    let Some(ring) = ring() else { return };
    let log = Rc::new(Log::default());
    let id = ring.register(log.clone());
    // SAFETY: a no-operation names no memory.
    unsafe { ring.push(nop(), id, 7) }.unwrap();
    ring.overdue_cancels.borrow_mut().push(user_data(id, 7));
    ring.overdue_cancels.borrow_mut().push(user_data(id, 8));
    ring.io.borrow_mut().submit_and_wait(1).unwrap();
    assert_eq!(ring.reap(), 1);
    assert_eq!(*ring.overdue_cancels.borrow(), [user_data(id, 8)], "that of another slot still waits");
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let poll = opcode::PollAdd::new(types::Fd(event.as_fd().as_raw_fd()), libc::POLLIN as u32).build();
    // SAFETY: a poll names no memory; the descriptor outlives it.
    unsafe { ring.push(poll, id, 7) }.unwrap();
    ring.kick();
    ring.kick();
    ring.wait(Some(Duration::from_millis(20)));
    ring.reap();
    assert_eq!(*log.0.borrow(), [(7, 0)], "the new entry of the slot is still there");
    assert!(ring.close());
}
