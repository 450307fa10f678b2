//! What happened, in order: to the disks, and between the store and who uses it. A crash at any moment is put together
//! from it, without running anything again.

use std::sync::{Arc, Mutex};

use super::disk::Block;
use super::model::Op;

/// A write that a disk was given.
#[derive(Clone)]
pub(crate) struct Written {
    pub(crate) disk: usize,
    pub(crate) lba: u64,
    pub(crate) blocks: Vec<Block>,
}

/// One thing that happened.
#[derive(Clone)]
pub(crate) enum Event {
    /// A disk has a write; from now on a crash may leave it, or parts of it.
    Submitted { write: usize },
    /// It said that it is done.
    Completed { write: usize, durable: bool },
    /// It said that it failed, and changed nothing.
    Failed { write: usize },
    /// A disk has a flush.
    FlushBegun { flush: usize },
    /// What was complete when it began is durable.
    Flushed { flush: usize },
    /// A disk became larger.
    Grown { disk: usize, len_blocks: u64 },
    /// An operation on the pool began.
    Begin { id: u64, op: Op },
    /// It ended, well or not.
    End { id: u64, good: bool },
}

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    writes: Vec<Written>,
    /// The disk of each flush.
    flushes: Vec<usize>,
}

/// See the module. Clones are the same tape.
#[derive(Clone, Default)]
pub(crate) struct Tape(Arc<Mutex<Log>>);

/// What a tape holds when it is read.
pub(crate) struct Recording {
    pub(crate) events: Vec<Event>,
    pub(crate) writes: Vec<Written>,
    pub(crate) flushes: Vec<usize>,
}

impl Tape {
    pub(crate) fn push(&self, event: Event) {
        self.0.lock().unwrap().events.push(event);
    }

    pub(crate) fn submit(&self, write: Written) -> usize {
        let mut log = self.0.lock().unwrap();
        let id = log.writes.len();
        log.writes.push(write);
        log.events.push(Event::Submitted { write: id });
        id
    }

    pub(crate) fn flush(&self, disk: usize) -> usize {
        let mut log = self.0.lock().unwrap();
        let id = log.flushes.len();
        log.flushes.push(disk);
        log.events.push(Event::FlushBegun { flush: id });
        id
    }

    /// Events so far.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().events.len()
    }

    /// What it holds.
    pub(crate) fn recording(&self) -> Recording {
        let log = self.0.lock().unwrap();
        Recording { events: log.events.clone(), writes: log.writes.clone(), flushes: log.flushes.clone() }
    }
}
