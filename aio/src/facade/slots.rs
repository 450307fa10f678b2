//! I/Os in flight of a descriptor.
//!
//! Needs `unsafe` for [`IoChannel::submit`]: the slot owns the buffer from before the submission until its completion,
//! whoever drops what meanwhile.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::IoError;
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
    Done(Result<(), IoError>),
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
    waiting: Waiting,
    closers: Vec<Waker>,
}

/// Futures that wait for a slot or for the channel. All are woken when there is room: one that was dropped meanwhile
/// must not take the news with it.
#[derive(Default)]
struct Waiting {
    wakers: Vec<Waker>,
    /// How often all were woken.
    round: u64,
}

/// Where a future stands in line, and in which round.
type Place = Option<(u64, usize)>;

impl Waiting {
    /// Puts a future in line; one that is there already stays where it is.
    fn wait(&mut self, place: &mut Place, waker: &Waker) {
        match *place {
            Some((round, index)) if round == self.round => self.wakers[index].clone_from(waker),
            _ => {
                *place = Some((self.round, self.wakers.len()));
                self.wakers.push(waker.clone());
            }
        }
    }

    fn wake_all(&mut self) {
        self.round += 1;
        self.wakers.drain(..).for_each(Waker::wake);
    }
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
            waiting: Waiting::default(),
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
        let mut place = None;
        let submitted = poll_fn(|cx| self.try_submit(&request, &mut buf, len_bytes, &mut place, cx)).await;
        let Ok(index) = submitted else { return (Err(IoError::Closed), buf) };
        let in_flight = InFlight { inner: self, index };
        let result = poll_fn(|cx| in_flight.poll(cx)).await;
        (result, in_flight.finish())
    }

    fn try_submit(
        &self,
        request: &Request,
        buf: &mut Option<DmaBuf>,
        len_bytes: u32,
        place: &mut Place,
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
                slots.waiting.wait(place, cx.waker());
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
            slots.waiting.wake_all();
        }
    }

    /// Futures that wait for room.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.slots.borrow().waiting.wakers.len()
    }

    /// The driver is no more: the reactor ends, or has dropped it because the device panicked. Nobody would complete
    /// anything, so the channel goes, and with it its hold on the buffers.
    fn lose_driver(&self) {
        self.closing.set(true);
        let channel = self.slots.borrow_mut().channel.take();
        // Outside the borrow, and before the buffers: it waits for what works on them.
        drop(channel);
        let mut abandoned = Vec::new();
        let mut slots = self.slots.borrow_mut();
        for index in 0..slots.slots.len() as u32 {
            let state = &mut slots.slots[index as usize].state;
            match std::mem::replace(state, State::Done(Err(IoError::Closed))) {
                State::Awaited(waker) => waker.into_iter().for_each(Waker::wake),
                State::Abandoned => abandoned.extend(slots.release(index)),
                other => *state = other,
            }
        }
        slots.waiting.wake_all();
        slots.closers.drain(..).for_each(Waker::wake);
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
        let status = completion.status;
        let result = if status.is_success() { Ok(()) } else { Err(IoError::Status(status)) };
        match std::mem::replace(&mut slot.state, State::Done(result)) {
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
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<(), IoError>> {
        let mut slots = self.inner.slots.borrow_mut();
        match &mut slots.slots[self.index as usize].state {
            State::Done(result) => Poll::Ready(*result),
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
        slots.waiting.wake_all();
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
            slots.waiting.wake_all();
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

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.finished {
            self.inner.lose_driver();
        }
    }
}

impl Poller for Driver {
    fn poll(&mut self, _now: Instant) -> usize {
        let mut slots = self.inner.slots.borrow_mut();
        let slots = &mut *slots;
        let Some(channel) = &mut slots.channel else { return 0 };
        let done = channel.poll(&mut self.out, BUDGET);
        // Asked in any case: news that nobody fetches would keep the core awake.
        let room = channel.take_ready() || done > 0;
        for completion in self.out.drain(..) {
            slots.complete(completion);
        }
        if room {
            slots.waiting.wake_all();
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
        if channel.take_ready() && !slots.waiting.wakers.is_empty() {
            slots.waiting.wake_all();
            return Sleep::KeepPolling;
        }
        channel.prepare_sleep()
    }

    fn finished(&self) -> bool {
        self.finished
    }
}
