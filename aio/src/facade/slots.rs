//! I/Os in flight of a descriptor.
//!
//! Needs `unsafe` for [`IoChannel::submit`]: the slot owns the buffer from before the submission until its completion,
//! whoever drops what meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::IoError;
use crate::IoStatus;
use crate::device::{Busy, IoChannel, Sleep};
use crate::io::{BlockCount, BlockRange, Completion, Io, IoFlags, Lba, Opcode, Token};
use crate::memory::DmaBuf;
use crate::poller::Poller;
use crate::reactor::Core;
use crate::sg::SgEntry;
use crate::time::Instant;

/// Completions taken in one turn.
const BUDGET: usize = 64;
/// Most I/Os in flight on one descriptor; further ones wait in line.
const MAX_SLOTS: u32 = 1024;

/// An I/O without its payload.
pub(super) struct Request {
    pub(super) opcode: Opcode,
    pub(super) flags: IoFlags,
    pub(super) lba: Lba,
    pub(super) blocks: BlockCount,
    pub(super) ranges: Vec<BlockRange>,
}

impl Request {
    pub(super) const fn new(opcode: Opcode) -> Self {
        Self { opcode, flags: IoFlags::empty(), lba: Lba(0), blocks: BlockCount(0), ranges: Vec::new() }
    }
}

enum State {
    Free,
    /// Submitted; somebody awaits it.
    Awaited(Option<Waker>),
    /// Submitted; nobody does any more.
    Abandoned,
    /// Completed; the result was not fetched yet.
    Done(IoStatus),
}

struct Slot {
    generation: u32,
    state: State,
    /// Owned here from before the submission until the completion.
    buf: Option<DmaBuf>,
}

struct Slots {
    /// Declared, and so dropped, before the buffers that its I/Os name.
    channel: Option<Box<dyn IoChannel>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    limit: u32,
    /// Futures that wait for a slot or for the channel. All are woken when there is room: one that was dropped
    /// meanwhile must not take the news with it.
    waiting: VecDeque<Waker>,
    closers: Vec<Waker>,
}

pub(super) struct Inner {
    slots: RefCell<Slots>,
    closing: Cell<bool>,
}

impl Inner {
    /// Takes the channel and has `core` drive it.
    pub(super) fn start(core: &Core, channel: Box<dyn IoChannel>, queue_depth: u32) -> Rc<Self> {
        let slots = Slots {
            channel: Some(channel),
            slots: Vec::new(),
            free: Vec::new(),
            limit: queue_depth.clamp(1, MAX_SLOTS),
            waiting: VecDeque::new(),
            closers: Vec::new(),
        };
        let inner = Rc::new(Self { slots: RefCell::new(slots), closing: Cell::new(false) });
        let out = Vec::with_capacity(BUDGET);
        core.add_poller(Rc::new(RefCell::new(Driver { inner: inner.clone(), out, finished: false })));
        inner
    }

    /// Runs one I/O. `payload` is the buffer and how much of it takes part.
    pub(super) async fn run(
        &self,
        request: Request,
        payload: Option<(DmaBuf, u32)>,
    ) -> (Result<(), IoError>, Option<DmaBuf>) {
        let (mut buf, len_bytes) = payload.map_or((None, 0), |(buf, len)| (Some(buf), len));
        let submitted = poll_fn(|cx| self.try_submit(&request, &mut buf, len_bytes, cx)).await;
        let Ok(index) = submitted else { return (Err(IoError::Closed), buf) };
        let in_flight = InFlight { inner: self, index };
        let status = poll_fn(|cx| in_flight.poll(cx)).await;
        let buf = in_flight.finish();
        let result = if status.is_success() { Ok(()) } else { Err(IoError::Status(status)) };
        (result, buf)
    }

    fn try_submit(
        &self,
        request: &Request,
        buf: &mut Option<DmaBuf>,
        len_bytes: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Result<u32, IoError>> {
        if self.closing.get() {
            return Poll::Ready(Err(IoError::Closed));
        }
        let mut slots = self.slots.borrow_mut();
        let submitted = slots.submit(request, buf, len_bytes);
        match submitted {
            Ok(index) => Poll::Ready(Ok(index)),
            Err(Busy) => {
                slots.waiting.push_back(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Refuses new I/O; the driver drains the rest.
    pub(super) fn begin_close(&self) {
        if !self.closing.replace(true) {
            let mut slots = self.slots.borrow_mut();
            if let Some(channel) = &mut slots.channel {
                channel.close();
            }
            wake_all(&mut slots.waiting);
        }
    }

    /// Resolves when the channel is gone.
    pub(super) async fn closed(&self) {
        poll_fn(|cx| {
            let mut slots = self.slots.borrow_mut();
            if slots.channel.is_none() {
                return Poll::Ready(());
            }
            slots.closers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

fn wake_all(waiting: &mut VecDeque<Waker>) {
    waiting.drain(..).for_each(Waker::wake);
}

impl Slots {
    fn take_slot(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        let index = self.slots.len() as u32;
        if index == self.limit {
            return None;
        }
        self.slots.push(Slot { generation: 0, state: State::Free, buf: None });
        Some(index)
    }

    /// Moves the buffer into a slot and submits; on `Busy` it is back in `buf`.
    fn submit(&mut self, request: &Request, buf: &mut Option<DmaBuf>, len_bytes: u32) -> Result<u32, Busy> {
        let index = self.take_slot().ok_or(Busy)?;
        let slot = &mut self.slots[index as usize];
        slot.buf = buf.take();
        let entry: Option<SgEntry> = slot.buf.as_ref().filter(|_| len_bytes > 0).map(|b| b.sg(0, len_bytes));
        let io = Io {
            opcode: request.opcode,
            flags: request.flags,
            lba: request.lba,
            blocks: request.blocks,
            sg: entry.as_slice(),
            second: &[],
            ranges: &request.ranges,
        };
        let token = Token::new(index, slot.generation);
        let channel = self.channel.as_mut().ok_or(Busy);
        // SAFETY: the slot owns the buffer that `entry` names, and hands it out only after the completion (`finish`,
        // `complete`). The channel is dropped before the slots.
        match channel.and_then(|c| unsafe { c.submit(&io, token) }) {
            Ok(()) => {
                slot.state = State::Awaited(None);
                Ok(index)
            }
            Err(Busy) => {
                *buf = slot.buf.take();
                self.free.push(index);
                Err(Busy)
            }
        }
    }

    fn complete(&mut self, completion: Completion) {
        let token = completion.token;
        let Some(slot) = self.slots.get_mut(token.index() as usize) else { return };
        if slot.generation != token.generation() {
            return;
        }
        match std::mem::replace(&mut slot.state, State::Done(completion.status)) {
            State::Awaited(Some(waker)) => waker.wake(),
            State::Awaited(None) => {}
            State::Abandoned => drop(self.release(token.index())),
            // Not in flight: the device completed something twice, which must not disturb the slot's next user.
            other => slot.state = other,
        }
    }

    fn release(&mut self, index: u32) -> Option<DmaBuf> {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        slot.buf.take()
    }
}

/// A submitted I/O that a future awaits.
struct InFlight<'a> {
    inner: &'a Inner,
    index: u32,
}

impl InFlight<'_> {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<IoStatus> {
        let mut slots = self.inner.slots.borrow_mut();
        match &mut slots.slots[self.index as usize].state {
            State::Done(status) => Poll::Ready(*status),
            State::Awaited(Some(waker)) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            awaited => {
                *awaited = State::Awaited(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }

    /// Gives the slot back, with the buffer.
    fn finish(self) -> Option<DmaBuf> {
        let mut slots = self.inner.slots.borrow_mut();
        let buf = slots.release(self.index);
        wake_all(&mut slots.waiting);
        drop(slots);
        std::mem::forget(self);
        buf
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut slots = self.inner.slots.borrow_mut();
        let slot = &mut slots.slots[self.index as usize];
        if matches!(slot.state, State::Done(_)) {
            let buf = slots.release(self.index);
            wake_all(&mut slots.waiting);
            drop(slots);
            drop(buf);
        } else {
            slot.state = State::Abandoned;
        }
    }
}

/// What the reactor drives.
struct Driver {
    inner: Rc<Inner>,
    out: Vec<Completion>,
    finished: bool,
}

impl Poller for Driver {
    fn poll(&mut self, _now: Instant) -> usize {
        let mut slots = self.inner.slots.borrow_mut();
        let slots = &mut *slots;
        let Some(channel) = &mut slots.channel else { return 0 };
        let done = channel.poll(&mut self.out, BUDGET);
        let room = !slots.waiting.is_empty() && (channel.take_ready() || done > 0);
        for completion in self.out.drain(..) {
            slots.complete(completion);
        }
        if room {
            wake_all(&mut slots.waiting);
        }
        if self.inner.closing.get() && slots.channel.as_ref().is_some_and(|c| c.drained()) {
            slots.channel = None;
            slots.closers.drain(..).for_each(Waker::wake);
            self.finished = true;
            return done + 1;
        }
        done
    }

    fn kick(&mut self) {
        if let Some(channel) = &mut self.inner.slots.borrow_mut().channel {
            channel.kick();
        }
    }

    fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
        let mut slots = self.inner.slots.borrow_mut();
        let slots = &mut *slots;
        let Some(channel) = &mut slots.channel else { return Sleep::Armed };
        if self.inner.closing.get() && channel.drained() {
            return Sleep::KeepPolling;
        }
        if !slots.waiting.is_empty() && channel.take_ready() {
            wake_all(&mut slots.waiting);
            return Sleep::KeepPolling;
        }
        channel.prepare_sleep()
    }

    fn finished(&self) -> bool {
        self.finished
    }
}
