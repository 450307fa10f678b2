//! One worker: one channel of one device, a fixed number of I/Os in flight.
//!
//! Needs `unsafe` for [`IoChannel::submit`]: a slot owns its buffer until the completion, and while an I/O is in
//! flight nobody looks at it. A worker that is dropped with I/O in flight drops its channel before its slots.
//!
//! Nothing here allocates or makes a syscall per I/O: slots, their buffers, and the room for completions are
//! made at the start.
#![allow(unsafe_code, reason = "see above")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aio::memory::DmaBuf;
use aio::{
    BlockCount, Completion, Instant, Io, IoChannel, IoFlags, IoStatus, Lba, Opcode, Poller, Sleep, Token,
};

use super::histogram::Histogram;
use super::plan::{Plan, Step};
use super::stamp::{Damage, Stamp};

/// A run is pointless after this many failures.
const MAX_ERRORS: u64 = 100;

/// Damaged places that are remembered one by one.
const MAX_FINDINGS: usize = 10;

/// Top bit of a unit's version: a write failed, so the old or the new contents may be there.
const UNCERTAIN: u32 = 1 << 31;

/// Figures that others may read while the worker runs; summed over workers.
#[derive(Default, Debug)]
pub(super) struct Progress {
    pub(super) ios: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) errors: AtomicU64,
    /// Set by others: end early.
    pub(super) stop: AtomicBool,
}

/// The worker's part of the device and what it does there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// First block.
    pub(super) start: Lba,
    /// Blocks of one I/O.
    pub(super) unit_blocks: u32,
    pub(super) block_bytes: u32,
    pub(super) units: u32,
    pub(super) time: Duration,
    /// Stamp and check.
    pub(super) verify: bool,
    /// Random for each worker and run.
    pub(super) writer: u64,
}

/// One direction's share of an [`Outcome`].
#[derive(Clone, Default, Debug)]
pub struct Direction {
    /// Latencies of completed I/Os in nanoseconds.
    pub latency_ns: Histogram,
    /// Bytes moved.
    pub bytes: u64,
}

/// What verification found.
#[derive(Clone, Default, Debug)]
pub struct Verified {
    /// Blocks that were checked.
    pub blocks: u64,
    /// Blocks without any stamp, read where this run had not written: neither good nor bad.
    pub unstamped: u64,
    /// Blocks that were not what was written.
    pub damaged: u64,
    /// The first of them.
    pub findings: Vec<(Lba, Damage)>,
}

/// What a worker did; several are added up.
#[derive(Clone, Default, Debug)]
pub struct Outcome {
    /// Reads of the timed part.
    pub read: Direction,
    /// Writes of the timed part.
    pub write: Direction,
    /// I/Os that failed.
    pub errors: u64,
    /// How the first of them failed, and where.
    pub first_error: Option<(Lba, IoStatus)>,
    /// The timed part.
    pub elapsed: Duration,
    /// With `--verify`.
    pub verified: Verified,
}

impl Outcome {
    /// Adds what another worker did at the same time.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [(&mut self.read, &other.read), (&mut self.write, &other.write)] {
            mine.latency_ns.merge(&theirs.latency_ns);
            mine.bytes += theirs.bytes;
        }
        self.errors += other.errors;
        self.first_error = self.first_error.or(other.first_error);
        self.elapsed = self.elapsed.max(other.elapsed);
        let (mine, theirs) = (&mut self.verified, &other.verified);
        mine.blocks += theirs.blocks;
        mine.unstamped += theirs.unstamped;
        mine.damaged += theirs.damaged;
        mine.findings.extend(theirs.findings.iter().take(MAX_FINDINGS.saturating_sub(mine.findings.len())));
    }

    /// I/Os of both directions.
    pub fn ios(&self) -> u64 {
        self.read.latency_ns.total() + self.write.latency_ns.total()
    }

    /// Nothing failed and nothing was damaged.
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.verified.damaged == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Not begun.
    Start,
    /// The timed part, until then.
    Timed {
        until: Instant,
    },
    /// Reading back every unit that was written; the next one to look at.
    ReadBack {
        next: u32,
    },
    /// Nothing more is submitted.
    Draining,
    Done,
}

struct Slot {
    buffer: DmaBuf,
    generation: u32,
    step: Step,
    submitted: Instant,
    /// What a write stamps.
    version: u32,
    /// Part of the timed phase.
    timed: bool,
}

/// See the module.
pub(super) struct Worker {
    // Before the slots: dropping it ends all use of their buffers.
    channel: Box<dyn IoChannel>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    completions: Vec<Completion>,
    plan: Plan,
    part: Part,
    /// Of each unit: the version that it holds; 0 = not written by this run. Empty without `verify`.
    versions: Vec<u32>,
    phase: Phase,
    started: Instant,
    /// The channel said Busy and has not said ready since.
    busy: bool,
    progress: Arc<Progress>,
    outcome: Outcome,
}

impl Worker {
    /// `buffers` are as many as I/Os in flight, each of at least one unit.
    pub(super) fn new(
        channel: Box<dyn IoChannel>,
        buffers: Vec<DmaBuf>,
        plan: Plan,
        part: Part,
        progress: Arc<Progress>,
    ) -> Self {
        let depth = buffers.len();
        let idle = Step { unit: 0, write: false };
        let slot = |buffer| Slot {
            buffer,
            generation: 0,
            step: idle,
            submitted: Instant::default(),
            version: 0,
            timed: false,
        };
        let mut outcome = Outcome::default();
        outcome.verified.findings.reserve(MAX_FINDINGS);
        Self {
            channel,
            slots: buffers.into_iter().map(slot).collect(),
            free: (0..depth as u32).rev().collect(),
            completions: Vec::with_capacity(depth),
            plan,
            part,
            versions: vec![0; if part.verify { part.units as usize } else { 0 }],
            phase: Phase::Start,
            started: Instant::default(),
            busy: false,
            progress,
            outcome,
        }
    }

    /// What it did; meaningful once [`finished`](Poller::finished).
    pub(super) fn take_outcome(&mut self) -> Outcome {
        std::mem::take(&mut self.outcome)
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Moves on to the next phase where this one is over.
    fn advance(&mut self, now: Instant) {
        let give_up = self.outcome.errors >= MAX_ERRORS || self.progress.stop.load(Ordering::Relaxed);
        loop {
            self.phase = match self.phase {
                Phase::Start => {
                    self.started = now;
                    Phase::Timed { until: now + self.part.time }
                }
                Phase::Timed { until } if now >= until || give_up => {
                    if self.in_flight() > 0 {
                        return;
                    }
                    self.outcome.elapsed = now.since(self.started);
                    if self.part.verify { Phase::ReadBack { next: 0 } } else { Phase::Draining }
                }
                Phase::ReadBack { next } if next == self.part.units => Phase::Draining,
                Phase::ReadBack { .. } if self.outcome.errors >= MAX_ERRORS => Phase::Draining,
                Phase::Draining if self.in_flight() == 0 => {
                    self.channel.close();
                    if !self.channel.drained() {
                        return;
                    }
                    Phase::Done
                }
                Phase::Timed { .. } | Phase::ReadBack { .. } | Phase::Draining | Phase::Done => return,
            };
        }
    }

    /// Keeps the depth full.
    fn fill(&mut self, now: Instant) {
        if self.busy {
            self.busy = !self.channel.take_ready();
        }
        while !self.busy {
            let Some(&index) = self.free.last() else { return };
            let Some((step, timed)) = self.next_step(now) else { return };
            if self.submit(index, step, timed, now) {
                self.free.pop();
            } else {
                self.busy = true;
                self.take_back(step);
            }
        }
    }

    fn next_step(&mut self, now: Instant) -> Option<(Step, bool)> {
        match &mut self.phase {
            Phase::Timed { until }
                if now < *until
                    && self.outcome.errors < MAX_ERRORS
                    && !self.progress.stop.load(Ordering::Relaxed) =>
            {
                self.plan.take().map(|step| (step, true))
            }
            Phase::ReadBack { next } => {
                let written = |v: &u32| *v != 0;
                let rest = &self.versions[*next as usize..];
                let Some(ahead) = rest.iter().position(written) else {
                    *next = self.part.units;
                    return None;
                };
                let unit = *next + ahead as u32;
                *next = unit + 1;
                Some((Step { unit, write: false }, false))
            }
            _ => None,
        }
    }

    /// The channel was busy: the step is made again later.
    fn take_back(&mut self, step: Step) {
        match &mut self.phase {
            Phase::ReadBack { next } => *next = step.unit,
            // Another step will do as well.
            _ => self.plan.done(step.unit),
        }
    }

    fn submit(&mut self, index: u32, step: Step, timed: bool, now: Instant) -> bool {
        let part = &self.part;
        let lba = Lba(part.start.0 + u64::from(step.unit) * u64::from(part.unit_blocks));
        let slot = &mut self.slots[index as usize];
        if step.write && part.verify {
            slot.version = (self.versions[step.unit as usize] & !UNCERTAIN) + 1;
            let blocks = slot.buffer.chunks_exact_mut(part.block_bytes as usize);
            for (i, block) in (0..u64::from(part.unit_blocks)).zip(blocks) {
                Stamp { lba: lba.0 + i, version: slot.version.into(), writer: part.writer }.write(block);
            }
        }
        slot.step = step;
        slot.timed = timed;
        slot.submitted = now;
        slot.generation = slot.generation.wrapping_add(1);
        let token = Token::new(index, slot.generation);
        let sg = [slot.buffer.sg(0, part.unit_blocks * part.block_bytes)];
        let opcode = if step.write { Opcode::Write } else { Opcode::Read };
        let io = Io { sg: &sg, ..Io::new(opcode, lba, BlockCount(part.unit_blocks.into())) };
        let io = io.with_flags(IoFlags::STABLE);
        // SAFETY: the slot keeps its buffer, and touches it no more, until `complete` saw this token. The buffer
        // is as long as the entry says (`sg` checks it).
        unsafe { self.channel.submit(&io, token) }.is_ok()
    }

    fn complete(&mut self, completion: Completion, now: Instant) {
        let index = completion.token.index();
        let slot = &self.slots[index as usize];
        debug_assert_eq!(slot.generation, completion.token.generation());
        let (step, timed) = (slot.step, slot.timed);
        let bytes = u64::from(self.part.unit_blocks * self.part.block_bytes);
        if completion.status.is_success() {
            if timed {
                let direction = if step.write { &mut self.outcome.write } else { &mut self.outcome.read };
                // A completion in the turn of its submission took less than the clock can tell.
                direction.latency_ns.record(now.since(slot.submitted).as_nanos() as u64);
                direction.bytes += bytes;
            }
            match (self.part.verify, step.write) {
                (true, true) => self.versions[step.unit as usize] = slot.version,
                (true, false) => self.check(index),
                (false, _) => {}
            }
        } else {
            self.outcome.errors += 1;
            let lba = Lba(self.part.start.0 + u64::from(step.unit) * u64::from(self.part.unit_blocks));
            self.outcome.first_error.get_or_insert((lba, completion.status));
            if self.part.verify && step.write {
                self.versions[step.unit as usize] = slot.version | UNCERTAIN;
            }
        }
        if timed {
            self.plan.done(step.unit);
        }
        self.free.push(index);
    }

    /// Compares what was read with what was written.
    fn check(&mut self, index: u32) {
        let (slot, part) = (&self.slots[index as usize], &self.part);
        let version = self.versions[slot.step.unit as usize];
        let first = part.start.0 + u64::from(slot.step.unit) * u64::from(part.unit_blocks);
        let blocks = slot.buffer.chunks_exact(part.block_bytes as usize);
        for (lba, block) in (first..first + u64::from(part.unit_blocks)).zip(blocks) {
            // Not ours, or not known: it has to be whole and in its place.
            let result = if version == 0 || version & UNCERTAIN != 0 {
                Stamp::read(block, lba).map(|_| ())
            } else {
                Stamp { lba, version: version.into(), writer: part.writer }.check(block)
            };
            let found = &mut self.outcome.verified;
            found.blocks += 1;
            match result {
                Ok(()) => {}
                Err(Damage::Unstamped) if version == 0 || version == 1 | UNCERTAIN => found.unstamped += 1,
                Err(damage) => {
                    found.damaged += 1;
                    if found.findings.len() < MAX_FINDINGS {
                        found.findings.push((Lba(lba), damage));
                    }
                }
            }
        }
    }
}

impl Poller for Worker {
    fn poll(&mut self, now: Instant) -> usize {
        let mut completions = std::mem::take(&mut self.completions);
        let budget = self.slots.len();
        let done = self.channel.poll(&mut completions, budget);
        for completion in completions.drain(..) {
            self.complete(completion, now);
        }
        self.completions = completions;
        self.advance(now);
        let free = self.free.len();
        self.fill(now);
        if done > 0 {
            let (read, write) = (&self.outcome.read, &self.outcome.write);
            self.progress.ios.store(self.outcome.ios(), Ordering::Relaxed);
            self.progress.bytes.store(read.bytes + write.bytes, Ordering::Relaxed);
            self.progress.errors.store(self.outcome.errors, Ordering::Relaxed);
        }
        done + (free - self.free.len())
    }

    fn kick(&mut self) {
        self.channel.kick();
    }

    fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
        match (self.channel.prepare_sleep(), self.phase) {
            // The end has to be noticed, also by a device that answers nothing.
            (Sleep::Armed, Phase::Timed { until }) => Sleep::Until(until),
            (Sleep::Until(t), Phase::Timed { until }) => Sleep::Until(t.min(until)),
            (sleep, _) => sleep,
        }
    }

    fn finished(&self) -> bool {
        self.phase == Phase::Done
    }
}
