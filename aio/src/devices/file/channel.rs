//! The data side of a file: slots with their tasks, on the core's ring or on helper threads.
//!
//! A slot is taken from submission until its completion was polled. The ring is entered by the reactor, once a
//! turn; results come back through it.
//!
//! # The end of a channel
//! Dropping a channel waits for what the kernel still has: as long as the disk takes, which for a dying disk can be
//! the kernel's time-outs (tens of seconds), and for a file on a hung network mount for ever. There is no limit,
//! because none would be sound: the slots' own memory could be leaked, but the lists of the I/Os name memory of the
//! caller, who may free it as soon as the channel is gone, and the kernel would still write into it. Cancelling
//! does not help either: the kernel stops only operations that have not reached the disk. So whoever has a
//! choice closes the channel, polls until it is drained, and drops it then; to give up a disk that hangs is to end
//! the process, which the kernel in turn lets go of only after the disk.
//!
//! # Unsafe
//! Hands tasks' memory and callers' memory to the kernel; the slot keeps both until the result.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::Shared;
use super::gate::Pass;
use super::pool::{self, Job, Mailbox, WakeFd};
use super::task::{Access, Next, Op, Task};
use crate::device::{Busy, Cancel, DeviceError, DeviceEvent, IoChannel, Sleep};
use crate::io::{Completion, Io, Lent, Token};
use crate::reactor::{Core, Watch};
use crate::ring::{CqeSink, Ring, SourceId};
use crate::{IoStatus, check};

/// The channel that its user holds.
pub(super) struct Channel {
    inner: Rc<Inner>,
    /// Wakes the core for results of helper threads; without a reactor the channel has to be polled.
    watch: Option<Watch<WakeFd>>,
    /// Results being handed out, kept for its memory.
    results: Vec<(u32, i32)>,
}

/// What the ring's completions reach.
struct Inner {
    shared: Arc<Shared>,
    pass: Pass,
    ring: Option<(Rc<Ring>, Cell<Option<SourceId>>)>,
    mailbox: Arc<Mailbox>,
    state: RefCell<State>,
}

struct State {
    slots: Box<[Slot]>,
    free: Vec<u32>,
    ready: VecDeque<Completion>,
    /// Accepted, but stopped by the gate or by a full ring.
    parked: VecDeque<u32>,
    /// With the kernel or a helper thread.
    in_flight: usize,
    refused: bool,
    closed: bool,
    /// The channel is going: nothing new starts.
    dropping: bool,
}

struct Slot {
    task: Task,
    access: Access,
    /// Of the gate: entered for a change, or closed.
    holds: bool,
}

impl Channel {
    pub(super) fn open(shared: Arc<Shared>) -> Result<Self, DeviceError> {
        let os = |source| DeviceError::Os { op: "opening a channel", device: shared.name.clone(), source };
        let core = Core::current();
        let mailbox = Arc::new(Mailbox::new().map_err(os)?);
        let ring = core.as_ref().and_then(Core::ring).map(|ring| (ring, Cell::new(None)));
        let watch = core.and_then(|core| core.watch(WakeFd(mailbox.clone())).ok());
        let inner = Rc::new(Inner {
            pass: Pass::new(&shared.gate),
            state: RefCell::new(State::new(shared.geometry.queue_depth)),
            shared,
            ring,
            mailbox,
        });
        if let Some((ring, source)) = &inner.ring {
            source.set(Some(ring.register(inner.clone())));
        }
        Ok(Self { inner, watch, results: Vec::new() })
    }

    /// Brings in what helper threads finished.
    fn collect(&mut self) {
        if self.watch.as_ref().is_some_and(|watch| watch.ready().readable) {
            self.inner.mailbox.woken();
            self.watch.iter().for_each(Watch::clear_readable);
        }
        self.inner.mailbox.take(&mut self.results);
        for (slot, result) in self.results.drain(..) {
            self.inner.result(slot, result);
        }
    }
}

impl State {
    fn new(depth: u32) -> Self {
        let slot = |_| Slot { task: Task::new(), access: Access::Free, holds: false };
        Self {
            slots: (0..depth).map(slot).collect(),
            free: (0..depth).rev().collect(),
            ready: VecDeque::with_capacity(depth as usize),
            parked: VecDeque::with_capacity(depth as usize),
            in_flight: 0,
            refused: false,
            closed: false,
            dropping: false,
        }
    }

    /// A completion that was not polled holds a place as well.
    fn has_room(&self) -> bool {
        self.ready.len() < self.free.len()
    }
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        let inner = &*self.inner;
        let mut state = inner.state.borrow_mut();
        if !state.has_room() {
            state.refused = true;
            return Err(Busy);
        }
        if let Err(status) = inner.admit(&state, io) {
            state.ready.push_back(Completion::new(token, status));
            return Ok(());
        }
        let slot = state.free.pop().expect("invariant: has_room counted the free slots");
        let entry = &mut state.slots[slot as usize];
        let block_bytes = inner.shared.geometry.block_bytes;
        match entry.task.begin(io, token, block_bytes, inner.shared.zeroes.start()) {
            Next::Again => {
                entry.access = entry.task.access();
                inner.start(&mut state, slot);
            }
            Next::Done(status) => {
                state.free.push(slot);
                state.ready.push_back(Completion::new(token, status));
            }
        }
        Ok(())
    }

    /// The reactor hands the ring's entries over once a turn.
    fn kick(&mut self) {}

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        self.collect();
        let mut state = self.inner.state.borrow_mut();
        if !state.parked.is_empty() {
            self.inner.retry(&mut state);
        }
        let n = budget.min(state.ready.len());
        out.extend(state.ready.drain(..n));
        n
    }

    fn take_ready(&mut self) -> bool {
        let mut state = self.inner.state.borrow_mut();
        let ready = state.refused && state.has_room();
        state.refused &= !ready;
        ready
    }

    fn prepare_sleep(&mut self) -> Sleep {
        self.collect();
        let state = self.inner.state.borrow();
        // What is parked waits for another core, or for room in the ring: neither wakes us.
        let mut work =
            !state.ready.is_empty() || !state.parked.is_empty() || (state.refused && state.has_room());
        match &self.watch {
            Some(watch) => {
                watch.arm(false);
                work |= !self.inner.mailbox.fall_asleep();
            }
            None => work |= state.in_flight > 0,
        }
        if work { Sleep::KeepPolling } else { Sleep::Armed }
    }

    /// Only what has not reached the kernel can be taken back.
    fn cancel(&mut self, token: Token) -> Cancel {
        let mut state = self.inner.state.borrow_mut();
        let state = &mut *state;
        let is_it = |slot: &u32| {
            let slot = &state.slots[*slot as usize];
            slot.task.token == token && !slot.holds
        };
        let Some(at) = state.parked.iter().position(is_it) else { return Cancel::TooLate };
        state.free.extend(state.parked.remove(at));
        state.ready.push_back(Completion::new(token, IoStatus::ABORT_REQUESTED));
        Cancel::Cancelled
    }

    fn lent(&self, _token: Token) -> Lent<'_> {
        Lent { sg: &[], stable: true }
    }

    fn release(&mut self, _token: Token) {}

    fn close(&mut self) {
        self.inner.state.borrow_mut().closed = true;
    }

    fn drained(&self) -> bool {
        let state = self.inner.state.borrow();
        state.free.len() == state.slots.len() && state.ready.is_empty()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.inner.state.borrow_mut().dropping = true;
        while self.inner.state.borrow().in_flight > 0 {
            match &self.inner.ring {
                Some((ring, _)) => {
                    ring.wait(Some(Duration::from_millis(1)));
                    ring.reap();
                }
                None => std::thread::sleep(Duration::from_micros(100)),
            }
            self.collect();
        }
        let mut state = self.inner.state.borrow_mut();
        for slot in state.slots.iter_mut().filter(|slot| slot.holds) {
            self.inner.leave(slot);
        }
        drop(state);
        if let Some((ring, source)) = &self.inner.ring {
            source.take().into_iter().for_each(|source| ring.retire(source));
        }
    }
}

impl CqeSink for Inner {
    fn complete(&self, slot: u32, result: i32, _flags: u32) {
        self.result(slot, result);
    }
}

impl Inner {
    fn admit(&self, state: &State, io: &Io<'_>) -> Result<(), IoStatus> {
        if state.closed {
            return Err(check::CLOSED);
        }
        if self.shared.removed.load(Ordering::Relaxed) {
            return Err(check::REMOVED);
        }
        check::validate(io, &self.shared.geometry, self.shared.capabilities, self.shared.size())
    }

    /// Begins a task, or parks it.
    fn start(&self, state: &mut State, slot: u32) {
        let entry = &mut state.slots[slot as usize];
        let may_begin = match entry.access {
            Access::Free => true,
            Access::Change => {
                entry.holds |= !entry.holds && self.pass.enter();
                entry.holds
            }
            Access::Exclusive => {
                entry.holds |= !entry.holds && self.pass.close();
                entry.holds && self.pass.quiet()
            }
        };
        if may_begin {
            self.issue(state, slot);
        } else {
            state.parked.push_back(slot);
        }
    }

    fn retry(&self, state: &mut State) {
        for _ in 0..state.parked.len() {
            let Some(slot) = state.parked.pop_front() else { break };
            self.start(state, slot);
        }
    }

    /// Gives the task's next operation to the kernel or to a helper thread.
    fn issue(&self, state: &mut State, slot: u32) {
        let op = state.slots[slot as usize].task.op(&self.shared.features);
        match &self.ring {
            Some((ring, source)) if !matches!(op, Op::Discard { .. }) => {
                let source = source.get().expect("invariant: registered until the channel is dropped");
                let entry = ring_entry(types::Fd(self.shared.file.as_raw_fd()), &op);
                // SAFETY: lists and scratch memory stay in the slot, callers' memory by `submit`'s contract,
                // and the file with `shared`, until the result; dropping the channel waits for it.
                if unsafe { ring.push(entry, source, slot) }.is_err() {
                    state.parked.push_back(slot);
                    return;
                }
            }
            _ => {
                pool::submit(Job { file: self.shared.file.clone(), op, slot, mailbox: self.mailbox.clone() })
            }
        }
        state.in_flight += 1;
    }

    /// An operation came back.
    fn result(&self, slot: u32, result: i32) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.in_flight -= 1;
        let entry = &mut state.slots[slot as usize];
        match entry.task.result(result, &self.shared.features) {
            Next::Again if !state.dropping => self.issue(state, slot),
            // The channel's user is gone, and with it whoever could ask for the rest.
            Next::Again => {}
            Next::Done(status) => {
                let token = entry.task.token;
                self.leave(entry);
                if self.shared.features.flush_failed.load(Ordering::Relaxed) {
                    self.shared.fault();
                }
                state.free.push(slot);
                state.ready.push_back(Completion::new(token, status));
            }
        }
    }

    fn leave(&self, slot: &mut Slot) {
        if !std::mem::take(&mut slot.holds) {
            return;
        }
        match slot.access {
            Access::Free => {}
            Access::Change => self.pass.leave(),
            Access::Exclusive => self.pass.open(),
        }
    }
}

/// The ring's form of an operation.
fn ring_entry(fd: types::Fd, op: &Op) -> squeue::Entry {
    match *op {
        Op::Transfer { write, iov, count, offset_bytes, dsync } => {
            let flags = if dsync { libc::RWF_DSYNC } else { 0 };
            if count == 1 {
                // SAFETY: the first of `count` entries of the task's list.
                let one = unsafe { iov.read() };
                let (ptr, len) = (one.iov_base.cast::<u8>(), one.iov_len as u32);
                return match write {
                    true => opcode::Write::new(fd, ptr, len).offset(offset_bytes).rw_flags(flags).build(),
                    false => opcode::Read::new(fd, ptr, len).offset(offset_bytes).build(),
                };
            }
            match write {
                true => opcode::Writev::new(fd, iov, count).offset(offset_bytes).rw_flags(flags).build(),
                false => opcode::Readv::new(fd, iov, count).offset(offset_bytes).build(),
            }
        }
        Op::Allocate { mode, offset_bytes, len_bytes } => {
            opcode::Fallocate::new(fd, len_bytes).offset(offset_bytes).mode(mode).build()
        }
        // Discards never come here; a sync does no harm if one did.
        Op::Sync | Op::Discard { .. } => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

impl Shared {
    /// A flush failed: tells everyone, once.
    fn fault(&self) {
        if !self.faulted.swap(true, Ordering::AcqRel) {
            self.events.send(DeviceEvent::Faulted);
        }
    }
}
