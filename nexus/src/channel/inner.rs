//! What a channel is made of: admission, polling, completion.

use std::collections::VecDeque;
use std::sync::Arc;

use aio::device::Sleep;
use aio::{BlockRange, Busy, Completion, Core, Io, IoFlags, IoStatus, Opcode, Token, check, sgmem};

use super::fan::is_conflict;
use super::link::Link;
use super::slot::Slot;
use crate::child::{MAX_CHILDREN, Mask, places};
use crate::dirty::Logs;
use crate::home;
use crate::layout::QUEUE_DEPTH;
use crate::shared::Shared;
use crate::stats::ChannelStats;

/// Completions taken from one child in one turn.
const BUDGET: usize = 256;
/// Bad ranges that wait to be reported; further ones are found again at the next read.
const MAX_BAD_RANGES: usize = 64;
/// The children's token: the place of the child above the slot's number.
const PLACE_SHIFT: u32 = 24;

/// Whether I/O is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gate {
    /// It is.
    Open,
    /// It waits with its submitter.
    Frozen,
    /// It fails with this.
    Failed(IoStatus),
}

/// See the module.
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) core: Core,
    /// By place.
    pub(super) links: [Option<Link>; MAX_CHILDREN],
    /// Children that get every change.
    pub(super) members: Mask,
    /// Of those, children that have every acknowledged write.
    pub(super) synced: Mask,
    /// Of those, a child that stays whatever it answers: the last one.
    pub(super) kept: Mask,
    pub(super) gate: Gate,
    /// What children that are away miss.
    pub(super) logs: Logs,
    pub(super) slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots that wait for their blocks, the longest first.
    pub(super) waiting: VecDeque<u32>,
    /// Slots that wait for the home core.
    pub(super) parked: Vec<u32>,
    done: VecDeque<Completion>,
    /// Failures that the home core is to hear of.
    pub(super) failures: [Option<IoStatus>; MAX_CHILDREN],
    /// Ranges that could not be read from a child, and could from another.
    pub(super) bad_ranges: Vec<(usize, BlockRange)>,
    /// Ranges whose regions' bits are waited for.
    wanted: Vec<BlockRange>,
    report_due: bool,
    stats: Arc<ChannelStats>,
    scratch: Vec<Completion>,
    refused: bool,
    /// There was no memory for a copy: it is tried again in the next turn.
    out_of_memory: bool,
    closed: bool,
}

impl Inner {
    pub(super) fn new(core: Core, shared: Arc<Shared>) -> Self {
        let stats = shared.stats.channel();
        Self {
            shared,
            core,
            links: [const { None }; MAX_CHILDREN],
            members: 0,
            synced: 0,
            kept: 0,
            gate: Gate::Frozen,
            logs: Logs::default(),
            slots: (0..QUEUE_DEPTH).map(|_| Slot::new()).collect(),
            free: (0..QUEUE_DEPTH).rev().collect(),
            waiting: VecDeque::with_capacity(QUEUE_DEPTH as usize),
            parked: Vec::with_capacity(QUEUE_DEPTH as usize),
            done: VecDeque::with_capacity(QUEUE_DEPTH as usize),
            failures: [None; MAX_CHILDREN],
            bad_ranges: Vec::with_capacity(MAX_BAD_RANGES),
            wanted: Vec::new(),
            report_due: false,
            stats,
            scratch: Vec::with_capacity(BUDGET),
            refused: false,
            out_of_memory: false,
            closed: false,
        }
    }

    fn taken(&self) -> usize {
        self.slots.len() - self.free.len() + self.done.len()
    }

    /// Takes an I/O.
    ///
    /// # Safety
    /// As for [`aio::IoChannel::submit`].
    #[inline]
    pub(super) unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        if self.taken() >= self.slots.len() {
            return self.busy();
        }
        let shared = &*self.shared;
        let verdict = if self.closed {
            Err(check::CLOSED)
        } else if !shared.is_alive() {
            Err(check::REMOVED)
        } else {
            check::validate(io, &shared.geometry, shared.capabilities, shared.size())
        };
        let verdict = match (verdict, self.gate) {
            (Ok(()), Gate::Frozen) => return self.busy(),
            (Ok(()), Gate::Failed(status)) => Err(status),
            (verdict, _) => verdict,
        };
        if let Err(status) = verdict {
            self.done.push_back(Completion::new(token, status));
            return Ok(());
        }
        let Some(index) = self.free.pop() else { return self.busy() };
        let (now, block_bytes) = (self.core.now(), shared.geometry.block_bytes);
        self.slots[index as usize].fill(io, token, now, block_bytes);
        if self.needs_copy(io) && !self.copy_payload(index) {
            self.give_back(index);
            self.out_of_memory = true;
            return self.busy();
        }
        self.start(index);
        Ok(())
    }

    fn busy(&mut self) -> Result<(), Busy> {
        self.refused = true;
        Err(Busy)
    }

    /// Several children are to read bytes that their owner may change meanwhile: they would differ for ever.
    fn needs_copy(&self, io: &Io<'_>) -> bool {
        !io.flags.contains(IoFlags::STABLE)
            && matches!(io.opcode, Opcode::Write | Opcode::CompareAndWrite)
            && self.members.count_ones() > 1
    }

    /// Has the slot own what it writes. False when there is no memory now.
    #[cold]
    fn copy_payload(&mut self, index: u32) -> bool {
        let Ok(pools) = self.core.pools() else { return false };
        let slot = &mut self.slots[index as usize];
        let list = if slot.opcode == Opcode::Write { &mut slot.sg } else { &mut slot.second };
        let mut left = list.iter().map(|e| e.len_bytes as usize).sum::<usize>();
        let most = pools.max_bytes() as usize;
        let mut copied = Vec::new();
        while left > 0 {
            let len = left.min(most);
            let Some(buf) = pools.alloc(len as u32) else { return false };
            copied.push((buf, len as u32));
            left -= len;
        }
        let mut from = Cursor { list, at: 0, offset: 0 };
        for (buf, len) in &copied {
            let mut at = 0;
            while at < *len {
                let Some(part) = from.next(*len - at) else { return false };
                // SAFETY: the submitter keeps its list's bytes valid until the completion; the buffer is this slot's, and
                // `sg` checks the bounds. What the owner changes meanwhile is copied old or new, once.
                unsafe { sgmem::gather(&[part], buf.sg(at, part.len_bytes).ptr.as_ptr()) };
                at += part.len_bytes;
            }
        }
        list.clear();
        list.extend(copied.iter().map(|(buf, len)| buf.sg(0, *len)));
        slot.copies.extend(copied.into_iter().map(|(buf, _)| buf));
        slot.flags |= IoFlags::STABLE;
        true
    }

    pub(super) fn kick(&mut self) {
        for link in self.links.iter_mut().flatten() {
            link.channel.kick();
        }
    }

    pub(super) fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        self.out_of_memory = false;
        for place in 0..MAX_CHILDREN {
            self.poll_link(place);
        }
        self.retry_holds();
        if self.report_due {
            self.report();
        }
        let count = self.done.len().min(budget);
        out.extend(self.done.drain(..count));
        count
    }

    fn poll_link(&mut self, place: usize) {
        let Some(link) = &mut self.links[place] else { return };
        if link.in_flight > 0 {
            let mut answers = core::mem::take(&mut self.scratch);
            link.channel.poll(&mut answers, BUDGET);
            for answer in answers.drain(..) {
                self.on_answer(place, &answer);
            }
            self.scratch = answers;
        }
        let Some(link) = &mut self.links[place] else { return };
        if link.leaving {
            if link.channel.drained() && link.in_flight == 0 {
                self.links[place] = None;
            }
        } else if !link.backlog.is_empty() && link.channel.take_ready() {
            self.drain_backlog(place);
        }
    }

    /// Whether it has anything of the child at `place` yet, which is leaving.
    pub(super) fn still_has(&mut self, place: usize) -> bool {
        self.poll_link(place);
        self.links[place].is_some()
    }

    /// A child answered.
    #[inline]
    fn on_answer(&mut self, place: usize, answer: &Completion) {
        let index = answer.token.index() & ((1 << PLACE_SHIFT) - 1);
        if let Some(link) = &mut self.links[place] {
            link.in_flight = link.in_flight.saturating_sub(1);
            if let Some(slot) = self.slots.get(index as usize)
                && slot.opcode == Opcode::Read
            {
                link.learn(self.core.now().since(slot.started));
            }
        }
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        let bit = 1 << place;
        if slot.generation != answer.token.generation() || slot.flying & bit == 0 {
            return;
        }
        slot.flying &= !bit;
        if answer.status.is_success() {
            slot.done |= bit;
        } else {
            self.on_failure(index, place, answer.status);
        }
        if self.slots[index as usize].is_answered() {
            self.step_done(index, answer.result);
        }
    }

    /// The token under which a child gets a slot's I/O.
    #[inline]
    pub(super) fn child_token(slot: &Slot, index: u32, place: usize) -> Token {
        Token::new(index | (place as u32) << PLACE_SHIFT, slot.generation)
    }

    /// Ends an I/O.
    #[inline]
    pub(super) fn complete(&mut self, index: u32, status: IoStatus, result: u64) {
        let slot = &self.slots[index as usize];
        let token = slot.token;
        if status.is_success() {
            self.stats.count(slot.opcode, slot.bytes, self.core.now().since(slot.arrived));
        }
        self.give_back(index);
        self.done.push_back(Completion { result, ..Completion::new(token, status) });
    }

    fn give_back(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        self.shared.locks.release(&mut slot.hold);
        slot.copies.clear();
        slot.begin();
        slot.used = false;
        slot.waits = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
    }

    /// Notes what the home core is to hear of a child.
    pub(super) fn note_failure(&mut self, place: usize, status: IoStatus) {
        let noted = self.failures[place].get_or_insert(status);
        if is_conflict(status) {
            *noted = status;
        }
        self.report_due = true;
    }

    /// Notes that blocks of a child cannot be read, and another child's can.
    pub(super) fn note_bad_range(&mut self, bad: Mask, range: BlockRange) {
        for place in places(bad) {
            if self.bad_ranges.len() < MAX_BAD_RANGES {
                self.bad_ranges.push((place, range));
                self.report_due = true;
            }
        }
    }

    /// Notes that a write waits for the bits of its regions.
    pub(super) fn note_wanted(&mut self, range: BlockRange) {
        self.wanted.push(range);
        self.report_due = true;
    }

    /// Tells the home core. When its mailbox is full, it is told in a later turn.
    #[cold]
    fn report(&mut self) {
        let failures: Vec<(usize, IoStatus)> =
            self.failures.iter().enumerate().filter_map(|(place, f)| f.map(|f| (place, f))).collect();
        if !self.wanted.is_empty() && !home::want(&self.shared, self.wanted.clone()) {
            return;
        }
        self.wanted.clear();
        if failures.is_empty() && self.bad_ranges.is_empty() {
            self.report_due = false;
            return;
        }
        let bad_ranges = self.bad_ranges.clone();
        if home::report(&self.shared, failures, bad_ranges) {
            self.failures = [None; MAX_CHILDREN];
            self.bad_ranges.clear();
            self.report_due = false;
        }
    }

    pub(super) fn take_ready(&mut self) -> bool {
        let ready = self.is_ready();
        self.refused &= !ready;
        ready
    }

    /// Something was refused that would be taken now.
    fn is_ready(&self) -> bool {
        let room = self.taken() < self.slots.len() && !self.out_of_memory;
        self.refused && room && self.gate != Gate::Frozen
    }

    pub(super) fn prepare_sleep(&mut self) -> Sleep {
        // Blocks that somebody on another core holds come free without a wake-up, as memory does.
        let waits = !self.waiting.is_empty() || self.out_of_memory;
        let work = waits || !self.done.is_empty() || self.report_due || self.is_ready();
        let mut sleep = if work { Sleep::KeepPolling } else { Sleep::Armed };
        for link in self.links.iter_mut().flatten() {
            sleep = match (sleep, link.channel.prepare_sleep()) {
                (Sleep::KeepPolling, _) | (_, Sleep::KeepPolling) => Sleep::KeepPolling,
                (Sleep::Until(a), Sleep::Until(b)) => Sleep::Until(a.min(b)),
                (Sleep::Until(t), Sleep::Armed) | (Sleep::Armed, Sleep::Until(t)) => Sleep::Until(t),
                (Sleep::Armed, Sleep::Armed) => Sleep::Armed,
            };
        }
        sleep
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_drained(&self) -> bool {
        self.taken() == 0
    }

    /// The channel goes: so do the children's, which wait for what they have, and then nothing is held any more.
    pub(super) fn end(&mut self) {
        self.closed = true;
        self.links = [const { None }; MAX_CHILDREN];
        for index in 0..self.slots.len() as u32 {
            if self.slots[index as usize].used {
                self.give_back(index);
            }
        }
        self.waiting.clear();
        self.parked.clear();
    }
}

/// Walks a list in pieces.
struct Cursor<'a> {
    list: &'a [aio::SgEntry],
    at: usize,
    offset: u32,
}

impl Cursor<'_> {
    /// At most `most` bytes, of one entry.
    fn next(&mut self, most: u32) -> Option<aio::SgEntry> {
        let entry = self.list.get(self.at)?;
        let len_bytes = (entry.len_bytes - self.offset).min(most);
        // SAFETY: the offset lies within the entry.
        let ptr = unsafe { entry.ptr.add(self.offset as usize) };
        let part = aio::SgEntry { ptr, len_bytes, ..*entry };
        self.offset += len_bytes;
        if self.offset == entry.len_bytes {
            (self.at, self.offset) = (self.at + 1, 0);
        }
        Some(part)
    }
}
