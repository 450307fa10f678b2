//! The data side of the device: one I/O queue a path behind the block-device contract.
//!
//! `unsafe` because a submission passes on the promise that its memory stays valid.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use aio::check::{CLOSED, REMOVED, validate};
use aio::reactor::Core;
use aio::{Busy, Cancel, Capabilities, Completion, Io, IoChannel, IoFlags, Lent, Opcode, Sleep, Token};
use nvme::{Cqe, Status};

use super::board::{Access, Life};
use super::device::Shared;
use super::error::{Error, PeerFault};
use super::home;
use super::link::{self, Link, Open};
use super::memory;
use super::options::PathPolicy;
use super::queue::Data;
use super::request::{Limits, Payload, Place, Request, fused, fused_status};
use super::stats::ChannelStats;

/// Status of an I/O whose connection ended before its answer came: whether it had an effect is unknown. Also of one that
/// found no path for too long.
pub(super) const LOST: Status = Status::HOST_PATHING_ERROR;

/// The channel of a remote namespace on one core.
pub(super) struct Channel {
    links: Box<[Link]>,
    /// Links to use, all equally good.
    usable: Vec<u8>,
    /// Whose turn it is.
    turn: usize,
    policy: PathPolicy,
    /// The board's version when it was looked at last.
    seen: u64,
    life: Life,
    core: Core,
    shared: Arc<Shared>,
    name: u64,
    limits: Limits,
    requests: Box<[Request]>,
    free: Vec<u32>,
    /// Requests whose completion waits for `poll`.
    finished: VecDeque<u32>,
    /// Requests that have commands left to issue on their path, and had no room.
    hungry: VecDeque<u32>,
    /// Requests without a path.
    waiting: VecDeque<u32>,
    stats: Arc<ChannelStats>,
    /// A [`Busy`] was answered.
    refused: bool,
    closed: bool,
}

impl Channel {
    /// A channel with a queue on every path that works now. With none at all it waits for one.
    pub(super) async fn open(core: Core, shared: Arc<Shared>) -> Result<Self, Error> {
        if shared.board.life() != Life::Live {
            return Err(Error::Gone(shared.name().to_owned()));
        }
        let mut channel = Self::new(core, shared);
        let mut failed = None;
        for path in 0..channel.links.len() {
            let Some(association) = channel.shared.board.association(path) else { continue };
            match link::open(&channel.core, &channel.shared, &association).await {
                Ok(open) => channel.links[path].open = Some(open),
                Err(error) => {
                    if let Error::Peer { fault, .. } = &error {
                        channel.report(path, association.generation, *fault);
                    }
                    failed = Some(error);
                }
            }
        }
        let none = channel.links.iter().all(|l| l.open.is_none());
        match failed {
            Some(error) if none => Err(error),
            _ => {
                channel.catch_up();
                Ok(channel)
            }
        }
    }

    fn new(core: Core, shared: Arc<Shared>) -> Self {
        let depth = shared.geometry().queue_depth;
        let name = shared.board.join(core.handle());
        Self {
            links: (0..shared.board.paths()).map(|_| Link::default()).collect(),
            usable: Vec::with_capacity(shared.board.paths()),
            turn: 0,
            policy: shared.options.policy,
            seen: 0,
            life: Life::Live,
            core,
            name,
            limits: shared.limits(),
            stats: shared.stats.channel(),
            shared,
            requests: (0..depth).map(|_| Request::new()).collect(),
            free: (0..depth).rev().collect(),
            finished: VecDeque::with_capacity(depth as usize),
            hungry: VecDeque::with_capacity(depth as usize),
            waiting: VecDeque::with_capacity(depth as usize),
            refused: false,
            closed: false,
        }
    }

    // ---- the hot path ----

    /// Why an I/O cannot even be tried, if so.
    #[inline]
    fn refusal(&self, io: &Io<'_>) -> Option<Status> {
        if self.closed {
            return Some(CLOSED);
        }
        match self.life {
            Life::Live => {}
            Life::Faulted => return Some(LOST),
            Life::Removed => return Some(REMOVED),
        }
        validate(io, self.shared.geometry(), self.limits.capabilities, self.shared.size()).err()
    }

    /// The link for a request of so many commands, if one has room.
    #[inline]
    fn choose(&mut self, commands: usize) -> Option<usize> {
        if let [only] = self.usable[..] {
            let only = usize::from(only);
            return (self.links[only].room() >= commands).then_some(only);
        }
        self.choose_of_several(commands)
    }

    fn choose_of_several(&mut self, commands: usize) -> Option<usize> {
        let count = self.usable.len();
        let links = &self.links;
        let with_room = |at: &usize| links[*at].room() >= commands;
        if self.policy == PathPolicy::Latency {
            let cost = |at: &usize| links[*at].open.as_ref().map(|o| o.queue.cost());
            return self.usable.iter().map(|at| usize::from(*at)).filter(with_room).min_by_key(cost);
        }
        let turns = (0..count).map(|i| (self.turn + i) % count);
        let (turn, at) = turns.map(|t| (t, usize::from(self.usable[t]))).find(|(_, at)| with_room(at))?;
        self.turn = turn + 1;
        Some(at)
    }

    /// Begins a request on a link that has room for it.
    ///
    /// # Safety
    /// As [`IoChannel::submit`] for the request's I/O.
    #[inline]
    unsafe fn begin(&mut self, index: u32, path: usize) {
        let request = &mut self.requests[index as usize];
        request.place = Place::Path(path as u8);
        request.begin(&self.limits);
        if request.is_pair() {
            // SAFETY: the caller's promise, passed on.
            unsafe { self.issue_pair(index, path) };
        } else {
            // SAFETY: the caller's promise, passed on.
            unsafe { self.issue_next(index, path) };
        }
    }

    /// Issues the next command of a request that has the link's attention. A request of several commands has one in
    /// flight at a time.
    ///
    /// # Safety
    /// As [`IoChannel::submit`] for the request's I/O.
    #[inline]
    unsafe fn issue_next(&mut self, index: u32, path: usize) {
        let request = &mut self.requests[index as usize];
        let Some(command) = request.next(&self.limits) else {
            return self.finish(index, Status::SUCCESS);
        };
        let Some(open) = &mut self.links[path].open else { return };
        request.commands = 1;
        let io = request.io();
        let list;
        let data = match command.payload {
            Payload::Out => Data::Out { sg: io.sg, stable: io.flags.contains(IoFlags::STABLE) },
            Payload::In => Data::In { sg: io.sg, whole: true },
            Payload::Descriptors => {
                list = memory::entry_of(zerocopy::IntoBytes::as_bytes(request.descriptors()));
                Data::Out { sg: list.as_slice(), stable: true }
            }
            Payload::None => Data::None,
        };
        // SAFETY: the caller promises its memory until the completion, which comes after the answer; the descriptors
        // stay as they are while their command is in flight.
        unsafe { open.queue.issue(command.sqe, data, index, self.core.now(), true) };
    }

    /// # Safety
    /// As [`IoChannel::submit`] for the request's I/O.
    unsafe fn issue_pair(&mut self, index: u32, path: usize) {
        let request = &mut self.requests[index as usize];
        let Some(open) = &mut self.links[path].open else { return };
        request.commands = 2;
        let [compare, write] = fused(request, &self.limits);
        let (io, now) = (request.io(), self.core.now());
        let stable = io.flags.contains(IoFlags::STABLE);
        // SAFETY: the caller promises both lists until the completion, which comes after both answers.
        unsafe { open.queue.issue(compare, Data::Out { sg: io.sg, stable }, index, now, true) };
        // SAFETY: as above.
        unsafe { open.queue.issue(write, Data::Out { sg: io.second, stable }, index, now, true) };
    }

    #[inline]
    fn finish(&mut self, index: u32, status: Status) {
        let request = &mut self.requests[index as usize];
        if request.status.is_success() {
            request.status = status;
        }
        request.place = Place::Idle;
        self.finished.push_back(index);
    }

    #[inline]
    fn answer(&mut self, index: u32, path: usize, result: Result<Cqe, PeerFault>) {
        let request = &mut self.requests[index as usize];
        request.commands -= 1;
        match result {
            Ok(cqe) => request.status = fused_status(request.status, cqe.status()),
            Err(_) => request.lost = true,
        }
        if request.commands > 0 {
            return;
        }
        if request.lost {
            return self.lost(index, path);
        }
        if request.status.is_success() && !request.exhausted() {
            return self.hungry.push_back(index);
        }
        if request.status.is_path() {
            return self.refused_by_path(index, path);
        }
        self.finish(index, Status::SUCCESS);
    }

    /// Takes in what a link has received; false when its queue has ended.
    #[inline]
    fn poll_link(&mut self, path: usize, now: aio::Instant) -> bool {
        let Some(open) = &mut self.links[path].open else { return true };
        open.queue.poll(now);
        if open.queue.fault().is_some() {
            return false;
        }
        while let Some(done) = self.links[path].open.as_mut().and_then(|o| o.queue.take_done()) {
            self.answer(done.user, path, done.result);
        }
        while let Some((open, cid)) =
            self.links[path].open.as_mut().and_then(|o| o.queue.take_overdue().map(|c| (o, c)))
        {
            let (generation, qid) = (open.lease.association.generation, open.lease.qid);
            self.shared.home.ask(home::Request::Abort { path, generation, qid, cid });
        }
        true
    }

    /// Sends what waits, as far as there is room.
    #[inline]
    fn feed(&mut self) {
        for _ in 0..self.hungry.len() {
            let Some(index) = self.hungry.pop_front() else { break };
            let Place::Path(path) = self.requests[index as usize].place else { continue };
            let path = usize::from(path);
            if self.links[path].room() > 0 {
                // SAFETY: a request that continues has no payload of the caller's.
                unsafe { self.issue_next(index, path) };
            } else {
                self.hungry.push_back(index);
            }
        }
        while let Some(&index) = self.waiting.front() {
            let commands = if self.requests[index as usize].is_pair() { 2 } else { 1 };
            let Some(path) = self.choose(commands) else { return };
            self.waiting.pop_front();
            // SAFETY: its completion has not come, so the submitter's promise holds.
            unsafe { self.begin(index, path) };
        }
    }

    // ---- paths that come, go and refuse ----

    /// Adopts what the board says.
    #[cold]
    fn catch_up(&mut self) {
        self.seen = self.shared.board.version();
        self.life = self.shared.board.life();
        for path in 0..self.links.len() {
            let association = self.shared.board.association(path).filter(|_| self.life != Life::Faulted);
            let link = &mut self.links[path];
            link.access = self.shared.board.access(path);
            if link.shunned.is_some_and(|looks| looks != self.shared.board.looked(path)) {
                link.shunned = None;
            }
            let now = association.as_ref().map(|a| a.generation);
            if link.open.is_some() && link.generation() != now {
                self.close_link(path);
            }
            let link = &mut self.links[path];
            if let (None, Some(association), Life::Live) = (&link.open, association, self.life) {
                link.begin_to_open(&self.core, &self.shared, association);
            }
            if self.shared.board.settled(path) >= self.links[path].held_generation {
                self.let_go(path);
            }
        }
        self.choose_usable();
        if self.life != Life::Live || self.shared.board.is_impatient() {
            self.fail_waiting();
        }
    }

    /// Finds the links to use: those with the best access that any open one has.
    fn choose_usable(&mut self) {
        let always = !self.shared.waits;
        let access = |link: &Link| match link.open {
            Some(_) if always => Access::Optimized,
            Some(_) if link.shunned.is_none() => link.access,
            _ => Access::None,
        };
        let best = self.links.iter().map(access).max().unwrap_or_default();
        self.usable.clear();
        if best != Access::None {
            let equals = self.links.iter().zip(0u8..).filter(|(link, _)| access(link) == best);
            self.usable.extend(equals.map(|(_, at)| at));
        }
    }

    fn report(&self, path: usize, generation: u32, fault: PeerFault) {
        if !self.shared.home.ask(home::Request::Lost { path, generation, fault }) {
            // Nobody is there to do anything about it.
            self.shared.fail(fault);
        }
    }

    /// A queue has ended by itself.
    #[cold]
    fn link_failed(&mut self, path: usize) {
        let Some(open) = &self.links[path].open else { return };
        let fault = open.queue.fault().unwrap_or(PeerFault::Closed);
        self.report(path, open.lease.association.generation, fault);
        self.close_link(path);
        self.choose_usable();
    }

    /// Ends a queue, and sorts what was in flight there.
    fn close_link(&mut self, path: usize) {
        let Some(mut open) = self.links[path].open.take() else { return };
        open.queue.fail(PeerFault::Closed);
        while let Some(done) = open.queue.take_done() {
            if done.result.is_err() && self.requests[done.user as usize].changes() {
                // Before the lease goes, which tells the home core that it may look.
                open.lease.association.set_unsure();
            }
            self.answer(done.user, path, done.result);
        }
        self.links[path].held_generation = open.lease.association.generation;
        for _ in 0..self.hungry.len() {
            let Some(index) = self.hungry.pop_front() else { break };
            if self.requests[index as usize].place == Place::Path(path as u8) {
                self.wait(index);
            } else {
                self.hungry.push_back(index);
            }
        }
        drop::<Open>(open);
    }

    /// A request's path ended before the answer came: it may have been executed, and, until the association is settled, it
    /// may still be.
    fn lost(&mut self, index: u32, path: usize) {
        let request = &mut self.requests[index as usize];
        if request.changes() {
            request.place = Place::Held(path as u8);
            self.links[path].held.push(index);
        } else {
            self.wait(index);
        }
    }

    /// What a path has left behind is over: what can be repeated is.
    fn let_go(&mut self, path: usize) {
        for index in std::mem::take(&mut self.links[path].held) {
            if self.requests[index as usize].can_be_repeated() {
                self.wait(index);
            } else {
                // Whether it had an effect cannot be found out.
                self.finish(index, LOST);
            }
        }
    }

    fn wait(&mut self, index: u32) {
        self.requests[index as usize].place = Place::Waiting;
        self.waiting.push_back(index);
    }

    /// The controller answered that this path is no good: it executed nothing, and another path may.
    #[cold]
    fn refused_by_path(&mut self, index: u32, path: usize) {
        let request = &self.requests[index as usize];
        let status = request.status;
        let by_ana = [Status::ANA_INACCESSIBLE, Status::ANA_TRANSITION, Status::ANA_PERSISTENT_LOSS]
            .iter()
            .any(|s| status.is(*s));
        let tried = usize::from(request.attempts) >= self.links.len() || !request.can_be_repeated();
        if !self.shared.waits || status.dnr() || (tried && !by_ana) {
            return self.finish(index, status);
        }
        let looks = self.shared.board.looked(path);
        if self.links[path].shunned != Some(looks) {
            self.links[path].shunned = Some(looks);
            self.shared.home.ask(home::Request::Look { path });
            self.choose_usable();
        }
        self.wait(index);
    }

    /// There is no path for too long, or never again.
    fn fail_waiting(&mut self) {
        let gone = if self.life == Life::Removed { REMOVED } else { LOST };
        while let Some(index) = self.waiting.pop_front() {
            self.finish(index, gone);
        }
        for path in 0..self.links.len() {
            for index in std::mem::take(&mut self.links[path].held) {
                self.finish(index, LOST);
            }
        }
    }
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        if self.shared.board.version() != self.seen {
            self.catch_up();
        }
        // Without the capability it is refused, which needs no room: a queue of one entry never has room for two.
        let pair = io.opcode == Opcode::CompareAndWrite
            && self.limits.capabilities.contains(Capabilities::COMPARE_AND_WRITE);
        let path = self.choose(if pair { 2 } else { 1 });
        if (path.is_none() && !self.usable.is_empty()) || self.free.is_empty() {
            self.refused = true;
            return Err(Busy);
        }
        let Some(index) = self.free.pop() else { return Err(Busy) };
        let request = &mut self.requests[index as usize];
        request.accept(token);
        if let Some(status) = self.refusal(io) {
            self.finish(index, status);
            return Ok(());
        }
        self.stats.count(io, self.shared.geometry().block_bytes);
        self.requests[index as usize].keep(io);
        match path {
            // SAFETY: the caller's promise, passed on.
            Some(path) => unsafe { self.begin(index, path) },
            None if self.shared.board.is_impatient() => self.finish(index, LOST),
            None => self.wait(index),
        }
        Ok(())
    }

    fn kick(&mut self) {
        for link in &mut self.links {
            if let Some(open) = &mut link.open {
                open.queue.kick();
            }
        }
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        if self.shared.board.version() != self.seen {
            self.catch_up();
        }
        let now = self.core.now();
        for path in 0..self.links.len() {
            if self.links[path].take_incoming() {
                self.catch_up();
            }
            if !self.poll_link(path, now) {
                self.link_failed(path);
            }
        }
        self.feed();
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
        let enough = |at: &u8| {
            let open = self.links[usize::from(*at)].open.as_ref();
            open.is_some_and(|o| o.queue.room() >= usize::from(o.queue.depth().min(2)))
        };
        let room = self.usable.is_empty() || self.usable.iter().any(enough);
        let ready = self.refused && room && !self.free.is_empty();
        if ready {
            self.refused = false;
        }
        ready
    }

    fn prepare_sleep(&mut self) -> Sleep {
        if !self.finished.is_empty() || self.shared.board.version() != self.seen {
            return Sleep::KeepPolling;
        }
        let mut until = Sleep::Armed;
        for link in &mut self.links {
            if link.has_incoming() {
                return Sleep::KeepPolling;
            }
            let Some(open) = &mut link.open else { continue };
            until = match (until, open.queue.prepare_sleep()) {
                (_, Sleep::KeepPolling) => return Sleep::KeepPolling,
                (Sleep::Until(a), Sleep::Until(b)) => Sleep::Until(a.min(b)),
                (other, Sleep::Armed) => other,
                (_, later) => later,
            };
        }
        until
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        let found = self.requests.iter().position(|r| r.place != Place::Idle && r.token == token);
        let Some(index) = found else { return Cancel::TooLate };
        let request = &self.requests[index];
        let mut taken = false;
        match request.place {
            Place::Waiting if request.attempts == 0 => {
                self.waiting.retain(|i| *i as usize != index);
                taken = true;
            }
            Place::Path(path) if request.commands == 1 && request.attempts == 1 && request.exhausted() => {
                let open = self.links[usize::from(path)].open.as_mut();
                taken = open.is_some_and(|o| o.queue.take_back(index as u32));
            }
            _ => {}
        }
        if !taken {
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
        for request in &self.requests {
            if let (Place::Path(path), true) = (request.place, request.commands > 0 && request.changes())
                && let Some(open) = &mut self.links[usize::from(path)].open
            {
                // Its outcome is unknown, and its memory is about to go.
                open.lease.association.set_unsure();
                open.queue.fail(PeerFault::Closed);
            }
        }
        self.shared.board.leave(self.name);
        self.shared.channel_gone();
    }
}
