//! The running store of one pool, on its home core.
//!
//! # Map, along a write
//! - `io`: an I/O of a volume; the queue of the channel that waits for it.
//! - `write`: I/Os become records, records become device writes; completed ones enter the delta.
//! - `log`: where the next record goes, its number, and which of them are complete.
//! - `member`: the devices, and operations in flight on them; `absent`: in the place of one that is not there.
//! - `slab`, `sg`: contexts and memory lists. - `fetch`: map pages that I/Os wait for.
//! - `flush`: what FLUSH and FUA wait for. - `read`: look-ups, device reads, checksums. - `edges`: 512-byte blocks.
//! - [`space`]: segments. - `budget`: what is spoken for, and who waits for space. - [`lines`]: the trees. - `pages`: map
//!   pages to and from the log.
//!
//! Slow work, `async` on the home core:
//! - `checkpoint`: freeze, merge, anchor, free. - `counts`: what merges tell of blocks. - `clean`: moves live blocks out of half-empty segments; `content`: what is in those.
//! - `join`, `evacuate`: disks come and go.
//! - `ranges`, `marks`: what is allocated or changed. - `catalogue`, `control`: volumes and snapshots. - `create`, `import`: how a store comes to be; `lifecycle`: its end.
//! - `aside`: what a damaged map page keeps out of its tree. - `inspect`: the offline checker. - `scrub`: the online one;
//!   `verify`: what they share.
//!
//! Everything is on one core and in one cell: [`Store`] hands it out, never across an `await`.

mod absent;
mod aside;
mod budget;
mod catalogue;
mod checkpoint;
mod clean;
mod content;
mod control;
mod counts;
mod create;
mod edges;
mod evacuate;
mod facts;
mod fetch;
mod flush;
mod import;
mod inspect;
mod io;
mod join;
mod lifecycle;
mod lines;
mod log;
mod marks;
mod member;
mod note;
mod occupied;
mod pages;
mod ranges;
mod read;
mod readonly;
mod scrub;
mod seal;
mod sg;
mod slab;
mod space;
mod superblock;
#[cfg(test)]
mod tests;
mod verify;
mod write;

use core::time::Duration;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;

use aio::device::Sleep;
use aio::gate::Gate;
use aio::time::Instant;
use aio::{
    BlockRange, Busy, Completion, Core, DmaPool, Io, IoFlags, IoStatus, Opcode, Poller, SgEntry, Token,
};

use crate::format::anchor::Anchor;
use crate::format::record::HeaderSeal;
use crate::index::{Delta, HoleRange, PageCache, PageTag};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, SegmentId, Seq};

use uuid::Uuid;

use self::catalogue::Catalogue;
use self::io::{IoCtx, Queue, Stage};
use self::lines::Lines;
use self::log::{Log, Stream};
pub(crate) use self::marks::Past;
use self::member::{DevOp, Member, Owner};
pub(crate) use self::ranges::Asked;
use self::slab::Slab;
use self::space::Space;
use self::write::RecordCtx;

/// Block versions that one delta holds.
pub(crate) const DELTA_UPDATES: usize = 64 * 1024;
/// Long unmapped ranges that one delta holds.
pub(crate) const DELTA_RANGES: usize = 512;
/// Updates that only the cleaner may put.
const CLEANER_UPDATES: usize = 2048;
/// Blocks that one part of an unmapped range has at least, and parts that it has at most.
const HOLE_BLOCKS: u64 = 64 * 1024;
const HOLE_PARTS: u64 = 256;
/// How often a task looks again for what records and reads in flight do.
const LOOK_AGAIN: Duration = Duration::from_micros(20);
/// Completions taken from a device in one turn.
const BUDGET: usize = 256;

/// The store, as tasks and channels of its core share it.
pub(crate) struct Store {
    core: Core,
    /// Buffers of slow work.
    slow: DmaPool,
    inner: RefCell<Inner>,
    /// A task reads map pages that could not be read at the first attempt.
    feeding: Cell<bool>,
    /// A task writes a note.
    noting: Cell<bool>,
    /// A task makes checkpoints.
    background: Cell<bool>,
    /// A disk is being emptied.
    evacuating: Cell<bool>,
    /// A task cleans.
    cleaning: Cell<bool>,
    /// Memory for what is read of a segment that is cleaned.
    segment: Cell<Vec<u8>>,
    /// No more background work begins.
    closing: Cell<bool>,
    /// Exported, destroyed, or given up.
    closed: Cell<bool>,
    /// No other store of the pool is opened on this core.
    claim: Cell<Option<open_stores::Claim>>,
    /// What verifies everything, slowly.
    scrub: scrub::Scrub,
    /// One checkpoint at a time.
    checkpoints: Gate,
    /// One change of the catalogue at a time.
    changes: Gate,
}

/// Everything of a running store.
pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    members: Vec<Member>,
    ops: Slab<DevOp>,
    records: Slab<RecordCtx>,
    ios: Slab<IoCtx>,
    queues: Vec<Option<Queue>>,
    /// Writes that wait for a record, in the order in which they came.
    pending: VecDeque<u32>,
    /// Map pages that are being read, and the I/Os that wait for them.
    fetches: fetch::Fetches,
    /// Writes of part of a block that wait for another write of that block.
    blocked: Vec<u32>,
    /// I/Os that wait for a flush: those that the running one serves, and those that came after it began.
    flush: flush::Flushes,
    active: Delta,
    /// What checkpoints give back, for the next one.
    spare: Option<Delta>,
    /// Being merged. Only records that were in flight when it was frozen still change it.
    frozen: Option<Rc<Delta>>,
    /// What could not be merged, because a page of the tree cannot be read.
    aside: Option<Delta>,
    /// The newest record whose versions belong into `frozen`.
    frozen_base: Seq,
    cache: RefCell<PageCache>,
    pub(crate) catalogue: Catalogue,
    lines: Lines,
    space: Space,
    budget: budget::Budget,
    log: Log,
    /// Where map pages and blobs go, and where their second copies do.
    page_streams: [Option<Stream>; 2],
    /// Thin blocks put since the last merge: an upper bound of what they add.
    thin_pending: Cell<u64>,
    /// The same, of what is being merged.
    thin_frozen: u64,
    /// Sum over all lines, as of the last merge or change.
    used_blocks: u64,
    /// Reads in flight, by phase.
    reads: [u32; 2],
    phase: u8,
    /// When the last one began.
    read_at: Instant,
    /// What the headers on the devices say of how far the log is durable.
    noted: note::Noted,
    /// The turn's clock reading.
    now: Instant,
    /// Turns of the reactor so far.
    turn: u64,
    /// The newest record that ended was longer under way than until the next turn.
    log_lags: bool,
    /// Why no more writes are taken.
    fault: Option<String>,
    /// Why it was opened for reading only: nothing is written at all.
    read_only: Option<String>,
    /// What was frozen last is covered by a durable anchor. Until it is nothing else is frozen: a tail is two deltas at most
    /// (H16).
    anchored: bool,
    /// A checkpoint should begin soon.
    want_checkpoint: bool,
    /// Segments that the cleaner took and that are not free yet; empty when everything up to a record is counted.
    cleaning: Vec<(SegmentId, Seq)>,
    /// How often trees were replaced, together with what lies over them.
    merges: u64,
    /// Map pages that have to leave their segments: the next merge writes them anew.
    touched: Vec<PageTag>,
    /// Partial writes at work.
    partial_writes: u32,
    /// Room of the active delta that records in flight will take.
    reserved: (usize, usize),
    /// Writes that could not be taken into the record that is being built.
    refused: Vec<(u32, IoStatus)>,
    /// Number of the newest durable checkpoint.
    checkpoint: u64,
    seal: HeaderSeal,
    /// As it is on the devices.
    anchor: Anchor,
    /// Of an import: something was written after the anchor, so that all of its copies were whole once.
    anchor_followed: bool,
    headers: DmaPool,
    copies: DmaPool,
    edges: DmaPool,
    read_errors: u64,
    checksum_errors: u64,
    /// Map pages that could not be read from their first place.
    page_errors: u64,
    scratch: Vec<Completion>,
    cut: Vec<SgEntry>,
}

impl Inner {
    /// Takes in an I/O of a volume, checked against its geometry.
    ///
    /// # Safety
    /// As for [`aio::IoChannel::submit`].
    pub(crate) unsafe fn submit(
        &mut self,
        queue: u32,
        volume: &Target,
        io: &Io<'_>,
        token: Token,
    ) -> Result<(), Busy> {
        if !self.reserve(queue) {
            return Err(Busy);
        }
        let index = self.begin(queue, token, volume);
        // Checked against the size, except where they mean nothing.
        let bytes = |blocks: u64| blocks.wrapping_mul(u64::from(volume.block_bytes));
        let (offset, len) = (bytes(io.lba.0), bytes(io.blocks.0));
        self.ios[index].fua = io.flags.contains(IoFlags::FUA);
        self.ios[index].stable = io.flags.contains(IoFlags::STABLE);
        match io.opcode {
            Opcode::Flush => self.wait_for_flush(index),
            Opcode::Read | Opcode::Write | Opcode::WriteZeroes if len == 0 => self.finish(index),
            Opcode::Read | Opcode::Write => {
                if !self.shape(index, offset, len, io.sg) {
                    self.drop_io(index);
                    return Err(Busy);
                }
                if io.opcode == Opcode::Write {
                    self.start_write(index);
                } else {
                    self.hold_segments(index);
                    self.start_read(index);
                }
            }
            Opcode::WriteZeroes => {
                if (self.edges.available() as usize) < 2 {
                    self.drop_io(index);
                    return Err(Busy);
                }
                self.zero(index, offset, len);
            }
            Opcode::Unmap => self.unmap(index, volume, io.ranges),
            _ => {
                self.ios[index].fail(IoStatus::INVALID_OPCODE);
                self.finish(index);
            }
        }
        Ok(())
    }

    /// A slot of the queue for one more I/O; or a ready bit later.
    fn reserve(&mut self, queue: u32) -> bool {
        let Some(q) = self.queues[queue as usize].as_mut() else { return false };
        if q.taken >= q.depth {
            q.refused = true;
            return false;
        }
        q.taken += 1;
        true
    }

    fn begin(&mut self, queue: u32, token: Token, volume: &Target) -> u32 {
        let index = self.ios.take();
        let ctx = &mut self.ios[index];
        (ctx.queue, ctx.token, ctx.parent) = (queue, token, None);
        (ctx.line, ctx.view) = (volume.line, volume.view);
        (ctx.stage, ctx.status, ctx.outstanding) = (Stage::Read, IoStatus::SUCCESS, 0);
        (ctx.count, ctx.fua, ctx.stable, ctx.full_since) = (0, false, true, None);
        ctx.sg.clear();
        ctx.hole = None;
        index
    }

    /// Takes back what `reserve` and `begin` did: there was no room.
    fn drop_io(&mut self, index: u32) {
        let queue = self.ios[index].queue;
        self.ios[index].stage = Stage::Idle;
        self.ios.give(index);
        if let Some(q) = self.queues[queue as usize].as_mut() {
            q.taken -= 1;
            q.refused = true;
        }
    }

    /// Makes the blocks of a byte range zero: what it covers wholly becomes a hole, edges are written.
    fn zero(&mut self, parent: u32, offset_bytes: u64, len_bytes: u64) {
        let block = u64::from(BLOCK_BYTES);
        let end = offset_bytes + len_bytes;
        let (first, last) = (offset_bytes.div_ceil(block), end / block);
        self.ios[parent].outstanding = 1;
        let edges = if first > last {
            [(offset_bytes, end), (0, 0)]
        } else {
            [(offset_bytes, first * block), (last * block, end)]
        };
        for (from, until) in edges.into_iter().filter(|(from, until)| from < until) {
            let part = self.part_of(parent);
            let shaped = self.shape(part, from, until - from, &[]);
            debug_assert!(shaped, "two buffers were at hand");
            self.start_write(part);
        }
        self.hole_parts(parent, first, last, last.saturating_sub(first));
        self.part_finished(parent, IoStatus::SUCCESS);
    }

    /// Makes the blocks that lie wholly within the ranges holes; what they cover in part stays.
    fn unmap(&mut self, parent: u32, volume: &Target, ranges: &[BlockRange]) {
        let per = u64::from(BLOCK_BYTES / volume.block_bytes);
        let whole =
            |range: &BlockRange| (range.start.0.div_ceil(per), (range.start.0 + range.blocks.0) / per);
        let blocks = ranges.iter().map(whole).map(|(first, last)| last.saturating_sub(first)).sum();
        self.ios[parent].outstanding = 1;
        for (first, last) in ranges.iter().map(whole) {
            self.hole_parts(parent, first, last, blocks);
        }
        self.part_finished(parent, IoStatus::SUCCESS);
    }

    /// Makes the blocks `first..last` a hole: in parts where snapshots make a merge of all of them expensive (H18). `blocks`
    /// is how many the I/O unmaps in all: it has [`HOLE_PARTS`] parts and one for each of its ranges at most.
    fn hole_parts(&mut self, parent: u32, mut first: u64, last: u64, blocks: u64) {
        let line = self.lines.get(self.ios[parent].line);
        let whole = line.is_none_or(|line| line.snapshots.is_empty());
        let most = if whole { u64::MAX } else { HOLE_BLOCKS.max(blocks.div_ceil(HOLE_PARTS)) };
        while first < last {
            let count = most.min(last - first);
            let part = self.part_of(parent);
            self.hole_part(part, first, count);
            self.start_write(part);
            first += count;
        }
    }

    fn hole_part(&mut self, part: u32, first: u64, count: u64) {
        let ctx = &mut self.ios[part];
        ctx.first = BlockNo(first);
        ctx.hole = Some(HoleRange { line: ctx.line, first: BlockNo(first), count, birth: Seq::ZERO });
    }

    fn part_of(&mut self, parent: u32) -> u32 {
        let (queue, token, fua) = (self.ios[parent].queue, self.ios[parent].token, self.ios[parent].fua);
        let (line, view) = (self.ios[parent].line, self.ios[parent].view);
        let part = self.begin(queue, token, &Target { line, view, block_bytes: BLOCK_BYTES });
        self.ios[part].parent = Some(parent);
        self.ios[part].fua = fua;
        self.ios[parent].outstanding += 1;
        part
    }

    fn part_finished(&mut self, parent: u32, status: IoStatus) {
        if status != IoStatus::SUCCESS {
            self.ios[parent].fail(status);
        }
        self.ios[parent].outstanding -= 1;
        if self.ios[parent].outstanding == 0 {
            self.finish(parent);
        }
    }

    /// The segments that exist now stay as they are until this read ends (H4).
    fn hold_segments(&mut self, io: u32) {
        self.ios[io].phase = Some(self.phase);
        self.reads[usize::from(self.phase)] += 1;
        self.read_at = self.now;
    }

    /// The opposite of [`hold_segments`](Self::hold_segments).
    fn release_segments(&mut self, io: u32) {
        if let Some(phase) = self.ios[io].phase.take() {
            self.reads[usize::from(phase)] -= 1;
        }
    }

    /// The I/O is over: its completion goes to its queue.
    fn finish(&mut self, index: u32) {
        let ctx = &mut self.ios[index];
        let (queue, token, status, parent) = (ctx.queue, ctx.token, ctx.status, ctx.parent);
        let was = core::mem::replace(&mut ctx.stage, Stage::Idle);
        let partial = ctx.edges.is_some();
        if was == Stage::Read && partial && status == IoStatus::SUCCESS {
            self.scatter_edges(index);
        }
        self.ios[index].edges = io::Edges::default();
        self.release_segments(index);
        self.ios.give(index);
        match parent {
            Some(parent) => self.part_finished(parent, status),
            None => {
                if let Some(q) = self.queues[queue as usize].as_mut() {
                    q.done.push_back(Completion::new(token, status));
                }
            }
        }
        let partial_write = partial && matches!(was, Stage::Write | Stage::Edges | Stage::Flush);
        if partial_write || !self.blocked.is_empty() {
            self.unblock(partial_write);
        }
    }

    /// No more writes from now on.
    pub(super) fn fail_pool(&mut self, why: &str) {
        if self.fault.is_none() {
            self.fault = Some(why.to_owned());
        }
    }

    /// Takes completions from the devices. Returns how many.
    pub(crate) fn progress(&mut self) -> usize {
        let mut done = 0;
        for at in 0..self.members.len() {
            if self.members[at].is_idle() {
                continue;
            }
            // SAFETY: what waits names memory of I/Os that are not complete.
            unsafe { member::offer_waiting(&mut self.members[at], &self.ops) };
            let mut out = core::mem::take(&mut self.scratch);
            out.clear();
            done += self.members[at].channel.poll(&mut out, BUDGET);
            for completion in out.drain(..) {
                self.op_done(completion);
            }
            self.scratch = out;
        }
        done
    }

    fn op_done(&mut self, completion: Completion) {
        let index = completion.token.index();
        if completion.token.generation() != self.ops.generation(index) {
            return;
        }
        let (owner, member) = (self.ops[index].owner, usize::from(self.ops[index].member));
        self.members[member].in_flight -= 1;
        if self.ops[index].opcode == Opcode::Write {
            self.members[member].dirty = true;
        }
        match owner {
            Owner::Read { io, place } => self.read_done(index, io, place, completion.status),
            Owner::Record(record) => self.record_done(record, completion.status),
            Owner::Flush => self.flush_done(member, completion.status),
            Owner::Page(fetch) => self.fetched(fetch, completion.status),
        }
        self.ops.give(index);
    }

    /// Publishes what the turn produced.
    pub(crate) fn publish(&mut self) {
        self.assemble();
        for m in &mut self.members {
            if core::mem::take(&mut m.kick) {
                m.channel.kick();
            }
        }
    }
}

/// A volume or snapshot, as the store sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) line: LineId,
    /// A snapshot's epoch, or the end of time.
    pub(crate) view: Seq,
    /// Block size of the volume.
    pub(crate) block_bytes: u32,
}

/// What channels ask for.
impl Inner {
    /// A queue for a channel.
    pub(crate) fn open_queue(&mut self, depth: u32) -> u32 {
        let queue = Some(Queue::new(depth));
        match self.queues.iter().position(Option::is_none) {
            Some(at) => {
                self.queues[at] = queue;
                at as u32
            }
            None => {
                self.queues.push(queue);
                (self.queues.len() - 1) as u32
            }
        }
    }

    /// A channel's queue. It exists as long as the channel does.
    pub(crate) fn queue(&mut self, queue: u32) -> &mut Queue {
        self.queues[queue as usize].as_mut().expect("invariant: a channel's queue goes with it")
    }

    /// An I/O of the queue was refused, and one could be taken now: there is a place, and buffers for both its edges.
    pub(crate) fn is_ready(&mut self, queue: u32) -> bool {
        let buffers = self.edges.available() as usize >= 2;
        let queue = self.queue(queue);
        queue.refused && queue.taken < queue.depth && buffers
    }

    /// Accepts an I/O only to complete it with an error.
    pub(crate) fn refuse(&mut self, queue: u32, token: Token, status: IoStatus) -> Result<(), Busy> {
        if !self.reserve(queue) {
            return Err(Busy);
        }
        self.queue(queue).done.push_back(Completion::new(token, status));
        Ok(())
    }

    /// Ends what the queue has in line and did not begin.
    pub(crate) fn abandon(&mut self, queue: u32, status: IoStatus) {
        self.abandon_those(status, |io| io.queue == queue);
    }

    /// Ends the writes of a line that reach beyond its first `end` blocks and have no record yet: one that they got now would
    /// come after that of the hole which is about to be made there.
    pub(super) fn abandon_beyond(&mut self, line: LineId, end: u64) {
        let beyond = |io: &IoCtx| io.line == line && io.stage != Stage::Read && io.end() > end;
        self.abandon_those(IoStatus::LBA_OUT_OF_RANGE, beyond);
    }

    fn abandon_those(&mut self, status: IoStatus, which: impl Fn(&IoCtx) -> bool) {
        // All of them first: the end of one lets those go on that wait for it.
        let found = self.take_waiting(which);
        for io in found {
            self.ios[io].fail(status);
            self.finish(io);
        }
    }

    /// Takes I/Os out of all lists in which they wait for something else than a device.
    fn take_waiting(&mut self, which: impl Fn(&IoCtx) -> bool) -> Vec<u32> {
        let ios = &self.ios;
        let which = |io: &u32| which(&ios[*io]);
        let mut found = Vec::new();
        let mut take = |list: &mut Vec<u32>| {
            found.extend(list.iter().copied().filter(which));
            list.retain(|io| !which(io));
        };
        let mut pending = Vec::from(core::mem::take(&mut self.pending));
        take(&mut pending);
        self.pending = pending.into();
        take(&mut self.budget.parked);
        take(&mut self.blocked);
        found.extend(self.fetches.take(which));
        found
    }

    /// True while an I/O of the queue is at work.
    pub(crate) fn in_flight(&self, queue: u32) -> bool {
        self.ios.iter().any(|(_, io)| io.stage != Stage::Idle && io.queue == queue)
    }

    /// The last resort of a channel that has to end while a device does not answer: closes all devices, so that nothing
    /// touches the memory of I/Os any more. The pool is of no use after that.
    pub(crate) fn give_up(&mut self, why: &str) {
        self.fail_pool(why);
        self.members.clear();
        self.pending.clear();
        self.budget.parked.clear();
        self.blocked.clear();
        self.fetches.give_up();
        self.flush = flush::Flushes::default();
        let stuck: Vec<u32> = self
            .ios
            .iter()
            .filter(|(_, io)| io.stage != Stage::Idle && io.parent.is_none())
            .map(|(i, _)| i)
            .collect();
        for io in stuck {
            self.ios[io].fail(IoStatus::INTERNAL_ERROR);
            self.finish(io);
        }
    }

    /// Anything in flight?
    pub(super) fn has_io(&self) -> bool {
        self.ios.used() > 0 || self.records.used() > 0 || self.fetches.is_active()
    }

    /// Begins to make blocks of a line a hole; the queue gets a completion. Writes there that have no record are refused, as
    /// those are that come later.
    pub(super) fn cut_off(&mut self, queue: u32, target: &Target, first: u64, count: u64) {
        self.abandon_beyond(target.line, first);
        let reserved = self.reserve(queue);
        debug_assert!(reserved, "the queue is new");
        let io = self.begin(queue, Token(0), target);
        self.ios[io].outstanding = 1;
        self.hole_parts(io, first, first + count, count);
        self.part_finished(io, IoStatus::SUCCESS);
    }

    /// The channel is gone.
    pub(crate) fn close_queue(&mut self, queue: u32) {
        self.queues[queue as usize] = None;
    }
}

impl Store {
    /// Everything, for as long as the caller does not await.
    ///
    /// # Panics
    /// When it is in use already (a bug of ours).
    pub(crate) fn inner(&self) -> RefMut<'_, Inner> {
        self.inner.borrow_mut()
    }

    /// Nobody has it at the moment.
    pub(crate) fn is_free(&self) -> bool {
        self.inner.try_borrow_mut().is_ok()
    }

    /// Begins background work that the hot path asked for.
    pub(crate) fn look_after(self: &Rc<Self>) {
        let (checkpoint, unread, note, clean) = {
            let mut inner = self.inner();
            let due = inner.merge_due().is_some_and(|at| at <= inner.now);
            let early = inner.runs_low_on_names() && !self.checkpoints.is_taken();
            if (due || early || inner.retry_due()) && !self.background.get() {
                inner.want_checkpoint = true;
            }
            let clean = inner.budget.want_cleaning && !self.cleaning.get() && inner.wants_cleaning();
            let note = inner.note_due().is_some_and(|at| at <= inner.now);
            (inner.want_checkpoint, inner.fetches.has_failed(), note, clean)
        };
        if clean && !self.closing.get() && !self.cleaning.replace(true) {
            let store = self.clone();
            drop(self.core.spawn(async move { store.clean_in_background().await }));
        }
        if note && !self.closing.get() && !self.noting.replace(true) {
            let store = self.clone();
            drop(self.core.spawn(async move { store.write_note().await }));
        }
        if unread && !self.feeding.replace(true) {
            let store = self.clone();
            drop(self.core.spawn(async move { store.feed().await }));
        }
        if checkpoint && !self.closing.get() && !self.background.replace(true) {
            let store = self.clone();
            drop(self.core.spawn(async move { store.checkpoint_in_background().await }));
        }
    }
}

/// The reactor's side of a store.
pub(crate) struct StorePoller(pub(crate) Rc<Store>);

impl Poller for StorePoller {
    fn poll(&mut self, now: Instant) -> usize {
        let mut inner = self.0.inner();
        inner.now = now;
        inner.turn += 1;
        inner.progress()
    }

    fn kick(&mut self) {
        self.0.inner().publish();
        self.0.look_after();
    }

    fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
        let mut inner = self.0.inner();
        let mut until: Option<Instant> = inner.note_due().into_iter().chain(inner.merge_due()).min();
        for m in &mut inner.members {
            match m.channel.prepare_sleep() {
                Sleep::KeepPolling => return Sleep::KeepPolling,
                Sleep::Until(t) => until = Some(until.map_or(t, |u| u.min(t))),
                Sleep::Armed => {}
            }
        }
        until.map_or(Sleep::Armed, Sleep::Until)
    }

    fn finished(&self) -> bool {
        self.0.closed.get()
    }
}

/// The stores of this core.
pub(crate) mod open_stores {
    use std::cell::RefCell;
    use std::rc::Rc;

    use uuid::Uuid;

    use super::Store;

    thread_local! {
        static OPEN: RefCell<Vec<(Uuid, Rc<Store>)>> = const { RefCell::new(Vec::new()) };
        static CLAIMED: RefCell<Vec<Uuid>> = const { RefCell::new(Vec::new()) };
    }

    /// The right to open a pool and to keep it open, until this is dropped.
    pub(crate) struct Claim(Uuid);

    impl Claim {
        /// `None` while somebody else has it: two stores of a pool would each write their own log.
        pub(crate) fn new(pool: Uuid) -> Option<Self> {
            CLAIMED.with_borrow_mut(|claimed| {
                let is_free = !claimed.contains(&pool);
                is_free.then(|| {
                    claimed.push(pool);
                    Self(pool)
                })
            })
        }
    }

    impl Drop for Claim {
        fn drop(&mut self) {
            // At the end of the thread nobody is left to claim it.
            let _ = CLAIMED.try_with(|claimed| claimed.borrow_mut().retain(|pool| *pool != self.0));
        }
    }

    /// The store of a pool.
    pub(crate) fn get(pool: Uuid) -> Option<Rc<Store>> {
        OPEN.with(|open| open.borrow().iter().find(|(uuid, _)| *uuid == pool).map(|(_, store)| store.clone()))
    }

    pub(crate) fn add(pool: Uuid, store: Rc<Store>) {
        OPEN.with(|open| open.borrow_mut().push((pool, store)));
    }

    /// One that was never added may be of a pool that is open by now.
    pub(crate) fn remove(store: &Store) {
        OPEN.with(|open| open.borrow_mut().retain(|(_, other)| !core::ptr::eq(&raw const **other, store)));
    }
}
