//! Commands as futures: the admin queue, and an I/O queue while it is being connected.
//!
//! The queue is driven by a [`Poller`] of the core; a call resolves when its answer came or the queue ended.
//!
//! `unsafe` because commands name buffers; each buffer is kept here until its answer.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use aio::reactor::Core;
use aio::{ByteStream, Instant, Poller, Sleep};
use nvme::command::Direction;
use nvme::{Cqe, Sqe};

use super::error::PeerFault;
use super::memory;
use super::queue::{Data, Queue, QueueConfig};

/// A command's payload and what became of it.
struct Call {
    buffer: Vec<u8>,
    answer: Option<Result<Cqe, PeerFault>>,
    waker: Option<Waker>,
    /// Nobody waits for the answer any more; the buffer stays until it came.
    abandoned: bool,
}

/// What the reactor drives.
struct Driver {
    /// `None` after [`Calls::into_queue`] or [`Calls::close`].
    queue: Option<Queue>,
    calls: Vec<Option<Call>>,
    /// Wait for the connection, or for a free slot.
    waiting: Vec<Waker>,
    core: Core,
}

impl Poller for Driver {
    fn poll(&mut self, now: Instant) -> usize {
        let Some(queue) = &mut self.queue else { return 0 };
        let was_open = queue.is_open();
        let mut done = usize::from(queue.poll(now));
        let changed = was_open != queue.is_open() || queue.fault().is_some();
        while let Some(answer) = queue.take_done() {
            done += 1;
            let place = &mut self.calls[answer.user as usize];
            match place {
                Some(call) if !call.abandoned => {
                    call.answer = Some(answer.result);
                    if let Some(waker) = call.waker.take() {
                        waker.wake();
                    }
                }
                _ => *place = None,
            }
        }
        if changed || done > 0 {
            self.waiting.drain(..).for_each(Waker::wake);
        }
        done
    }

    fn kick(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.kick();
        }
    }

    fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
        self.queue.as_mut().map_or(Sleep::Armed, Queue::prepare_sleep)
    }

    fn finished(&self) -> bool {
        // After a fault too: its last poll has handed out every answer.
        self.queue.as_ref().is_none_or(|q| q.fault().is_some())
    }
}

/// Commands as futures on one queue. Cheap to clone; all clones are one queue.
#[derive(Clone)]
pub(super) struct Calls(Rc<RefCell<Driver>>);

impl Calls {
    /// Starts a queue on `stream` and has `core` drive it.
    pub(super) fn start(core: &Core, stream: Box<dyn ByteStream>, config: &QueueConfig) -> Self {
        let queue = Queue::new(stream, config, core.now());
        let driver =
            Driver { queue: Some(queue), calls: Vec::new(), waiting: Vec::new(), core: core.clone() };
        let driver = Rc::new(RefCell::new(driver));
        core.add_poller(driver.clone());
        Self(driver)
    }

    /// Waits for the exchange of ICReq and ICResp.
    pub(super) async fn open(&self) -> Result<(), PeerFault> {
        poll_fn(|cx| {
            let driver = &mut *self.0.borrow_mut();
            let Some(queue) = &driver.queue else { return Poll::Ready(Err(PeerFault::Closed)) };
            match queue.fault() {
                Some(fault) => Poll::Ready(Err(fault)),
                None if queue.is_open() => Poll::Ready(Ok(())),
                None => {
                    driver.waiting.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Resolves when the queue ended, with the reason.
    pub(super) async fn ended(&self) -> PeerFault {
        poll_fn(|cx| {
            let driver = &mut *self.0.borrow_mut();
            let fault = driver.queue.as_ref().map_or(Some(PeerFault::Closed), Queue::fault);
            if let Some(fault) = fault {
                return Poll::Ready(fault);
            }
            driver.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Changes settings of the queue.
    pub(super) fn with_queue(&self, change: impl FnOnce(&mut Queue)) {
        if let Some(queue) = &mut self.0.borrow_mut().queue {
            change(queue);
        }
    }

    /// Issues `sqe` with `buffer` as its payload (empty = none; the opcode says which way) and awaits the
    /// answer. `timed` = false exempts it from the queue's time limit. Dropping the future leaves the command in
    /// flight; its buffer is kept until the answer.
    pub(super) async fn call(
        &self,
        sqe: Sqe,
        buffer: Vec<u8>,
        timed: bool,
    ) -> Result<(Cqe, Vec<u8>), PeerFault> {
        let mut buffer = Some(buffer);
        let index = poll_fn(|cx| {
            let driver = &mut *self.0.borrow_mut();
            match driver.issue(sqe, &mut buffer, timed) {
                Ok(Some(index)) => Poll::Ready(Ok(index)),
                Ok(None) => {
                    driver.waiting.push(cx.waker().clone());
                    Poll::Pending
                }
                Err(fault) => Poll::Ready(Err(fault)),
            }
        })
        .await?;
        let guard = Abandon { driver: &self.0, index };
        let answer = poll_fn(|cx| guard.poll(cx.waker())).await;
        drop(guard);
        answer
    }

    /// Takes the queue away from here, to be used for I/O; `None` when it ended. No call may be in flight.
    pub(super) fn into_queue(self) -> Option<Queue> {
        self.0.borrow_mut().queue.take().filter(|q| q.fault().is_none())
    }

    /// Ends the connection; calls in flight resolve with `fault`.
    pub(super) fn close(&self, fault: PeerFault) {
        let driver = &mut *self.0.borrow_mut();
        if let Some(mut queue) = driver.queue.take() {
            // What was issued before still goes out, as far as it fits.
            queue.kick();
            queue.close(fault);
        }
        for call in driver.calls.iter_mut().flatten() {
            call.answer.get_or_insert(Err(fault));
            if let Some(waker) = call.waker.take() {
                waker.wake();
            }
        }
        driver.waiting.drain(..).for_each(Waker::wake);
    }
}

impl Driver {
    fn issue(
        &mut self,
        sqe: Sqe,
        buffer: &mut Option<Vec<u8>>,
        timed: bool,
    ) -> Result<Option<usize>, PeerFault> {
        let now = self.core.now();
        let Some(queue) = &mut self.queue else { return Err(PeerFault::Closed) };
        if let Some(fault) = queue.fault() {
            return Err(fault);
        }
        if !queue.is_open() || queue.room() == 0 {
            return Ok(None);
        }
        let index = self.calls.iter().position(Option::is_none).unwrap_or_else(|| {
            self.calls.push(None);
            self.calls.len() - 1
        });
        let call = self.calls[index].insert(Call {
            buffer: buffer.take().unwrap_or_default(),
            answer: None,
            waker: None,
            abandoned: false,
        });
        let list;
        let data = match sqe.direction() {
            _ if call.buffer.is_empty() => Data::None,
            Direction::ControllerToHost => {
                list = [memory::entry_of_mut(&mut call.buffer)].into_iter().flatten().collect::<Vec<_>>();
                Data::In { sg: &list, whole: false }
            }
            _ => {
                list = [memory::entry_of(&call.buffer)].into_iter().flatten().collect::<Vec<_>>();
                Data::Out { sg: &list, stable: true }
            }
        };
        // SAFETY: the buffer is in `calls` until the answer was taken, and nobody looks at it before. When the
        // driver is dropped first, its queue goes first: fields drop in the order of their declaration.
        unsafe { queue.issue(sqe, data, index as u32, now, timed) };
        Ok(Some(index))
    }
}

/// Leaves a call whose future is dropped to the driver.
struct Abandon<'a> {
    driver: &'a RefCell<Driver>,
    index: usize,
}

impl Abandon<'_> {
    fn poll(&self, waker: &Waker) -> Poll<Result<(Cqe, Vec<u8>), PeerFault>> {
        let mut driver = self.driver.borrow_mut();
        let place = &mut driver.calls[self.index];
        match place.as_mut() {
            Some(call) if call.answer.is_none() => {
                call.waker = Some(waker.clone());
                Poll::Pending
            }
            _ => Poll::Ready(match place.take() {
                Some(Call { answer: Some(answer), buffer, .. }) => answer.map(|cqe| (cqe, buffer)),
                _ => Err(PeerFault::Closed),
            }),
        }
    }
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        // The place is empty when the answer was taken; nobody else ran since.
        let mut driver = self.driver.borrow_mut();
        let place = &mut driver.calls[self.index];
        match place {
            Some(call) if call.answer.is_none() => call.abandoned = true,
            _ => *place = None,
        }
    }
}
