//! The data side of the device: one I/O queue behind the block-device contract.
//!
//! `unsafe` because a submission passes on the promise that its memory stays valid.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use aio::check::{CLOSED, validate};
use aio::reactor::Core;
use aio::{Busy, Cancel, Capabilities, Completion, Io, IoChannel, IoFlags, Lent, Opcode, Sleep, Token};
use nvme::{Cqe, Qid, Status};

use super::device::Shared;
use super::error::PeerFault;
use super::memory;
use super::queue::{Data, Queue};
use super::request::{Limits, Payload, Request, fused, fused_status};
use super::stats::ChannelStats;

/// Status of an I/O whose connection ended before its answer came: whether it had an effect is unknown.
pub(super) const LOST: Status = Status::HOST_PATHING_ERROR;

/// One I/O queue of a remote namespace.
pub(super) struct Channel {
    queue: Queue,
    core: Core,
    shared: Arc<Shared>,
    limits: Limits,
    qid: Qid,
    requests: Box<[Request]>,
    free: Vec<u32>,
    /// Requests whose completion waits for `poll`.
    finished: VecDeque<u32>,
    /// Requests that have commands left to issue, and had no room.
    hungry: VecDeque<u32>,
    stats: Arc<ChannelStats>,
    /// A [`Busy`] was answered.
    refused: bool,
    closed: bool,
}

impl Channel {
    /// A channel on a connected queue that takes `depth` I/Os.
    pub(super) fn new(queue: Queue, core: Core, shared: Arc<Shared>, qid: Qid, depth: u32) -> Self {
        Self {
            queue,
            core,
            limits: shared.limits(),
            stats: shared.stats.channel(),
            shared,
            qid,
            requests: (0..depth).map(|_| Request::new()).collect(),
            free: (0..depth).rev().collect(),
            finished: VecDeque::with_capacity(depth as usize),
            hungry: VecDeque::with_capacity(depth as usize),
            refused: false,
            closed: false,
        }
    }

    /// Why an I/O cannot even be tried, if so.
    fn refusal(&self, io: &Io<'_>) -> Option<Status> {
        if self.closed {
            return Some(CLOSED);
        }
        if let Some(status) = self.shared.refusal() {
            return Some(status);
        }
        if self.queue.fault().is_some() {
            return Some(LOST);
        }
        validate(io, self.shared.geometry(), self.limits.capabilities, self.shared.size()).err()
    }

    fn finish(&mut self, index: u32, status: Status) {
        let request = &mut self.requests[index as usize];
        if request.status.is_success() {
            request.status = status;
        }
        self.finished.push_back(index);
    }

    /// Issues the next command of a request that has the queue's attention. A request of several commands has one
    /// in flight at a time.
    ///
    /// # Safety
    /// As [`IoChannel::submit`] for `io`; requests of several commands have no payload of the caller's.
    unsafe fn issue_next(&mut self, index: u32, io: Option<&Io<'_>>) {
        let request = &mut self.requests[index as usize];
        let Some(command) = request.next(&self.limits) else {
            return self.finish(index, Status::SUCCESS);
        };
        request.commands = 1;
        let list;
        let data = match (command.payload, io) {
            (Payload::Out, Some(io)) => Data::Out { sg: io.sg, stable: io.flags.contains(IoFlags::STABLE) },
            (Payload::In, Some(io)) => Data::In { sg: io.sg, whole: true },
            (Payload::Descriptors, _) => {
                list = memory::entry_of(zerocopy::IntoBytes::as_bytes(request.descriptors()));
                Data::Out { sg: list.as_slice(), stable: true }
            }
            _ => Data::None,
        };
        // SAFETY: the caller promises its memory until the completion, which comes after the answer; the descriptors
        // stay as they are while their command is in flight.
        unsafe { self.queue.issue(command.sqe, data, index, self.core.now(), true) };
    }

    /// # Safety
    /// As [`IoChannel::submit`].
    unsafe fn issue_fused(&mut self, index: u32, io: &Io<'_>) {
        let stable = io.flags.contains(IoFlags::STABLE);
        let [compare, write] = fused(io, &self.limits);
        self.requests[index as usize].commands = 2;
        let now = self.core.now();
        // SAFETY: the caller promises both lists until the completion, which comes after both answers.
        unsafe { self.queue.issue(compare, Data::Out { sg: io.sg, stable }, index, now, true) };
        // SAFETY: as above.
        unsafe { self.queue.issue(write, Data::Out { sg: io.second, stable }, index, now, true) };
    }

    fn answer(&mut self, index: u32, result: Result<Cqe, PeerFault>) {
        let status = result.map_or(LOST, |cqe| cqe.status());
        let request = &mut self.requests[index as usize];
        request.commands -= 1;
        request.status = fused_status(request.status, status);
        if request.commands > 0 {
            return;
        }
        if !request.status.is_success() {
            request.stop();
        }
        if request.exhausted() {
            self.finished.push_back(index);
        } else {
            self.hungry.push_back(index);
        }
    }

    fn feed_hungry(&mut self) {
        while self.queue.room() > 0 || self.queue.fault().is_some() {
            let Some(index) = self.hungry.pop_front() else { return };
            if self.queue.fault().is_some() {
                self.requests[index as usize].stop();
                self.finish(index, LOST);
            } else {
                // SAFETY: a request that continues has no payload of the caller's.
                unsafe { self.issue_next(index, None) };
            }
        }
    }

    /// Passes the end of this connection on to the device, and the device's end on to this connection.
    fn follow(&mut self) {
        match self.queue.fault() {
            Some(fault) => self.shared.fail(fault),
            None if self.shared.has_failed() => self.queue.fail(PeerFault::Closed),
            None => {}
        }
    }
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        // Without the capability it is refused, which needs no room: a queue of one entry never has room for two.
        let pair = io.opcode == Opcode::CompareAndWrite
            && self.limits.capabilities.contains(Capabilities::COMPARE_AND_WRITE);
        let commands = if pair { 2 } else { 1 };
        if self.queue.room() < commands && self.queue.fault().is_none() {
            self.refused = true;
            return Err(Busy);
        }
        let Some(index) = self.free.pop() else {
            self.refused = true;
            return Err(Busy);
        };
        let request = &mut self.requests[index as usize];
        request.begin_fused(token);
        if let Some(status) = self.refusal(io) {
            self.finish(index, status);
            return Ok(());
        }
        self.stats.count(io, self.shared.geometry().block_bytes);
        if io.opcode == Opcode::CompareAndWrite && io.blocks.0 > 0 {
            // SAFETY: the caller's promise, passed on.
            unsafe { self.issue_fused(index, io) };
        } else {
            self.requests[index as usize].begin(token, io, &self.limits);
            // SAFETY: the caller's promise, passed on.
            unsafe { self.issue_next(index, Some(io)) };
        }
        Ok(())
    }

    fn kick(&mut self) {
        self.queue.kick();
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        self.queue.poll(self.core.now());
        self.follow();
        while let Some(done) = self.queue.take_done() {
            self.answer(done.user, done.result);
        }
        self.feed_hungry();
        let mut count = 0;
        while count < budget {
            let Some(index) = self.finished.pop_front() else { break };
            let request = &self.requests[index as usize];
            out.push(Completion::new(request.token, request.status));
            self.free.push(index);
            count += 1;
        }
        count
    }

    fn take_ready(&mut self) -> bool {
        // Two, so that a Compare and Write gets in as well; with a depth of one it never does.
        let enough = self.queue.room() >= 2.min(self.requests.len()) || self.queue.fault().is_some();
        let ready = self.refused && enough && !self.free.is_empty();
        if ready {
            self.refused = false;
        }
        ready
    }

    fn prepare_sleep(&mut self) -> Sleep {
        if !self.finished.is_empty() || (self.shared.has_failed() && self.queue.fault().is_none()) {
            return Sleep::KeepPolling;
        }
        self.queue.prepare_sleep()
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        let found = self.requests.iter().position(|r| r.commands == 1 && r.token == token);
        let Some(index) = found else { return Cancel::TooLate };
        let fused_or_continuing = !self.requests[index].exhausted();
        if fused_or_continuing || !self.queue.take_back(index as u32) {
            return Cancel::TooLate;
        }
        self.requests[index].commands = 0;
        self.finish(index as u32, Status::ABORT_REQUESTED);
        Cancel::Cancelled
    }

    fn lent(&self, _token: Token) -> Lent<'_> {
        // The device does not have `Capabilities::LENDS`, so no completion of it says that it lent.
        Lent { sg: &[], stable: true }
    }

    fn release(&mut self, _token: Token) {}

    fn close(&mut self) {
        self.closed = true;
    }

    fn drained(&self) -> bool {
        self.free.len() == self.requests.len()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.shared.give_queue(self.qid);
    }
}
