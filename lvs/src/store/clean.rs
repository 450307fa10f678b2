//! The cleaner: moves what is live out of half-empty segments, so that checkpoints can free them.
//!
//! A block is live when the map leads to it: one look-up of (line, block, birth), whatever the number of snapshots
//! (H13). Its copy is a record of the log like any other, in segments of their own; the map takes the new address only
//! where it still says the old one (H9), so cleaning goes on beside checkpoints and writes. A live map page is not copied
//! but *touched*: the next merge writes it anew.
//!
//! It begins when fewer segments are free than it aims at, and works at a share of what volumes write that grows until
//! it equals what is used up; only when volumes wait for space, or do nothing, it works as fast as it can.

use core::time::Duration;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::content::Held;
use super::log::Flow;
use super::pages::{PageReader, aio_yield};
use super::space::{State, Wish};
use super::{Inner, Store};
use crate::LvsError;
use crate::format::page::Leaf;
use crate::format::record::{RelocateHeader, Relocation, Stamp};
use crate::index::{Change, Moved, PageSource, Seen, Tree, check, is_page_live, locate_block};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, Pba, Place, SegmentId, Seq, Version};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks that one Relocate record moves.
const MOVE_BLOCKS: usize = 96;
/// Look-ups after which others on this core get their turn.
const LOOKS_PER_BREATH: usize = 16;
/// Segments that are found at once, in one look at all of them, and those that are looked at in one turn.
const VICTIMS: usize = 64;
const LOOKED_AT: u32 = 16 * 1024;
/// Rounds without a gain after which the pool is as full as it can be; one in which nothing was found to clean counts as
/// several.
const FRUITLESS: u32 = 16;
const EMPTY_ROUND: u32 = 4;
/// Records that have to be written until a cleaner that gained nothing tries again.
const REST_RECORDS: u64 = 256;
/// How often the cleaner looks whether it may go on, and how long volumes have to be quiet for it to go on anyway.
const PACE: Duration = Duration::from_micros(100);
const QUIET: Duration = Duration::from_millis(2);

/// A block of a victim, as its record described it.
pub(super) struct Candidate {
    pub(super) line: LineId,
    pub(super) block: BlockNo,
    pub(super) birth: Seq,
    pub(super) pba: Pba,
    pub(super) crc: u32,
}

/// How fast blocks are moved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// At the cleaner's share of what volumes write.
    OfVolumes,
    /// As the caller does it.
    OfCaller,
}

/// Segments stay as they are as long as it exists (H4).
pub(super) struct Hold<'a>(&'a Store, u8);

impl<'a> Hold<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        let mut inner = store.inner();
        let phase = inner.phase;
        inner.reads[usize::from(phase)] += 1;
        Self(store, phase)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.inner().reads[usize::from(self.1)] -= 1;
    }
}

impl Store {
    /// Cleans until as many segments are free as it aims at, or nothing is left to gain.
    pub(super) async fn clean_in_background(self: Rc<Self>) {
        self.inner().begin_cleaning();
        let (mut best, mut fruitless) = (0, 0);
        while fruitless < FRUITLESS && !self.stops_cleaning() {
            let (cleaned, ran_out) = self.clean_some().await;
            let free_now = {
                let mut inner = self.inner();
                inner.judge_cleaned();
                inner.want_checkpoint |= inner.frees_enough() && !self.background.get();
                if !inner.is_short() {
                    break;
                }
                ran_out
            };
            if !free_now {
                // It goes on beside the checkpoint.
                self.look_after();
                continue;
            }
            // What was moved is counted, what is empty becomes free: only then it goes on.
            if self.stops_cleaning() || self.checkpoint(false).await.is_err() {
                break;
            }
            let gained = self.inner().gained();
            let less = if cleaned { 1 } else { EMPTY_ROUND };
            fruitless = if gained > best { 0 } else { fruitless + less };
            best = best.max(gained);
            if (FRUITLESS / 2..FRUITLESS / 2 + less).contains(&fruitless) {
                self.recount().await;
            }
        }
        self.inner().end_cleaning(fruitless >= FRUITLESS);
        self.segment.take();
        self.cleaning.set(false);
    }

    fn stops_cleaning(&self) -> bool {
        self.closing.get() || self.inner().fault.is_some()
    }

    /// Cleans a segment. Was there one, and is there no room for another before a checkpoint?
    async fn clean_some(self: &Rc<Self>) -> (bool, bool) {
        let Some(victim) = self.next_victim().await else { return (false, true) };
        // What cannot be read stays where it is, and whoever reads it is told.
        let whole = self.clean_segment(victim, Pace::OfVolumes).await.unwrap_or(true);
        self.inner().cleaned(victim, whole);
        (true, !whole)
    }

    /// The next segment to clean; `None` when there is none, or no room to move its blocks to before a checkpoint.
    async fn next_victim(&self) -> Option<SegmentId> {
        let known = self.inner().take_victim();
        if known.is_some() {
            return known;
        }
        let mut best = Vec::new();
        let members = self.inner().members.len() as u8;
        for member in 0..members {
            let mut from = 0;
            loop {
                let more = self.inner().rank_victims(member, from, &mut best);
                from += LOOKED_AT;
                if !more {
                    break;
                }
                aio_yield().await;
            }
        }
        best.sort_unstable();
        let mut inner = self.inner();
        inner.budget.victims = best.into_iter().map(|(_, id)| id).collect();
        inner.take_victim()
    }

    /// Moves what is live in a segment. False when there was no room for all of it.
    pub(super) async fn clean_segment(self: &Rc<Self>, id: SegmentId, pace: Pace) -> Result<bool, LvsError> {
        let hold = Hold::new(self);
        let (mut content, mut held) = self.read_segment(id, pace == Pace::OfVolumes).await?;
        // In the order of the map: that finds each leaf once, and puts side by side what is read one after the other.
        content.blocks.sort_unstable_by_key(|c| (c.line, c.block, c.birth));
        let reader = PageReader(self.clone());
        let mut live = Vec::new();
        for (i, candidate) in content.blocks.into_iter().enumerate() {
            if i % LOOKS_PER_BREATH == 0 {
                reader.breathe().await;
            }
            match self.is_live(&candidate).await {
                Ok(true) => live.push(candidate),
                Ok(false) => {}
                // Nobody can say: it stays where it is.
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        for (tag, pba) in content.pages {
            let Some(tree) = self.inner().tree(tag.line) else { continue };
            match is_page_live(&reader, &tree, &tag, pba).await {
                Ok(true) => self.inner().touched.push(tag),
                Ok(false) => {}
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        self.read_live(&mut held, &live).await?;
        // A copy of what became free meanwhile is garbage (H9), and its bytes are in memory.
        drop(hold);
        let moved = self.move_all(id, &held, &live, pace).await;
        self.give_back(held);
        moved
    }

    /// Copies live blocks of a segment to the end of the log. False when there was no room for all of them.
    async fn move_all(
        self: &Rc<Self>,
        id: SegmentId,
        held: &Held,
        live: &[Candidate],
        pace: Pace,
    ) -> Result<bool, LvsError> {
        let mut rest = live;
        while !rest.is_empty() {
            // As many as the open segment takes: a record does not leave its segment.
            let Some(room) = self.inner().room_to_move() else { return Ok(false) };
            let (now, later) = rest.split_at(rest.len().min(room));
            if !self.relocate(id, held, now).await? {
                return Ok(false);
            }
            if pace == Pace::OfVolumes {
                self.pace(now.len() as u64).await;
            }
            rest = later;
        }
        Ok(true)
    }

    /// `moved` blocks were moved: volumes have their share before the cleaner goes on.
    async fn pace(&self, moved: u64) {
        let before = self.inner().written_by_volumes();
        loop {
            {
                let inner = self.inner();
                let share = inner.cleaner_share();
                let theirs = (inner.written_by_volumes() - before) * share;
                let quiet = inner.now >= inner.budget.host_at + QUIET;
                if share >= 100 || quiet || theirs >= moved * (100 - share) || inner.fault.is_some() {
                    return;
                }
            }
            if self.closing.get() {
                return;
            }
            self.core.sleep(PACE).await;
        }
    }

    /// Counts what refers to segments that were cleaned and are not empty, so that a wrong count keeps none for ever.
    async fn recount(self: &Rc<Self>) {
        // Trees change, and segments become free, only inside.
        let _pass = self.checkpoints.enter().await;
        let (lines, doubtful) = {
            let inner = self.inner();
            let trees = inner.lines.iter().map(|l| Tree { line: l.id, root: l.root }).collect::<Vec<_>>();
            (trees, inner.budget.doubtful.clone())
        };
        if doubtful.is_empty() {
            return;
        }
        let mut counts: BTreeMap<SegmentId, u32> = doubtful.iter().map(|&id| (id, 0)).collect();
        let reader = PageReader(self.clone());
        for tree in lines {
            let mut count = |pba| {
                let id = self.inner().space.segment_of(pba);
                id.and_then(|id| counts.get_mut(&id)).into_iter().for_each(|count| *count += 1);
            };
            let findings = check(&reader, &tree, |found| match found {
                Seen::Page(page) => [page.ptr.pba, page.ptr.copy].into_iter().for_each(&mut count),
                Seen::Entry(Leaf { version: Version { place: Place::Data { pba, .. }, .. }, .. }) => {
                    count(pba)
                }
                Seen::Entry(_) => {}
            });
            if !findings.await.is_empty() {
                return;
            }
        }
        let mut inner = self.inner();
        for (id, live) in counts {
            inner.space.recounted(id, live);
        }
    }

    /// Does the map lead to this block?
    async fn is_live(self: &Rc<Self>, c: &Candidate) -> Result<bool, LvsError> {
        Ok(self.place_of(c.line, c.block, c.birth).await? == Some(c.pba))
    }

    /// Where the data of exactly this version is now; `None` when the map has it no more.
    pub(super) async fn place_of(
        self: &Rc<Self>,
        line: LineId,
        block: BlockNo,
        birth: Seq,
    ) -> Result<Option<Pba>, LvsError> {
        let tree = {
            let inner = self.inner();
            let layers = [Some(&inner.active), inner.frozen.as_deref(), inner.aside.as_ref()];
            for delta in layers.into_iter().flatten() {
                match delta.exact(line, block, birth) {
                    Some(Change::Place(Place::Data { pba, .. })) => return Ok(Some(pba)),
                    Some(Change::Moved { to, .. }) => return Ok(Some(to)),
                    Some(Change::Place(Place::Hole)) => return Ok(None),
                    None => {}
                }
            }
            inner.tree(line)
        };
        let Some(tree) = tree else { return Ok(None) };
        locate_block(&PageReader(self.clone()), &tree, block, birth).await
    }

    /// Copies live blocks of a segment, whose bytes are at hand, to the end of the log. False when there was no room.
    async fn relocate(
        self: &Rc<Self>,
        id: SegmentId,
        held: &Held,
        live: &[Candidate],
    ) -> Result<bool, LvsError> {
        let mut buf = self.buffer().await;
        let mut header = RelocateHeader::begin();
        let mut taken: Vec<&Candidate> = Vec::with_capacity(live.len());
        for c in live {
            let Some(block) = held.block(c.pba) else { continue };
            if nvme::digest::crc32c(block) != c.crc {
                // It stays where it is, and whoever reads it is told.
                self.inner().checksum_errors += 1;
                continue;
            }
            let moved = Relocation { line: c.line, block: c.block, birth: c.birth, from: c.pba, crc: c.crc };
            if header.push(&mut buf[..BLOCK], &moved).is_err() {
                break;
            }
            taken.push(c);
            let to = taken.len() * BLOCK;
            buf[to..to + BLOCK].copy_from_slice(block);
        }
        if taken.is_empty() {
            return Ok(true);
        }
        let blocks = 1 + taken.len() as u32;
        let (seq, pba, descriptor, offset_bytes) = {
            let mut inner = self.inner();
            let inner = &mut *inner;
            inner.check_fault()?;
            // What records in flight will put into the delta is theirs: they are acknowledged when they are written.
            let room = inner.active.room().0 >= inner.reserved.0 + taken.len();
            if !room || !inner.log.make_room(Flow::Cold, blocks, 0, &mut inner.space) {
                return Ok(false);
            }
            let Some(stream) = inner.log.stream(Flow::Cold) else { return Ok(false) };
            // Before it has a number: one that is never complete would keep all checkpoints waiting.
            let (descriptor, offset_bytes) = inner.device_at(stream)?;
            let seq = inner.log.number();
            let pba = inner.log.place(Flow::Cold, seq, blocks, &mut inner.space).unwrap_or(Pba::NONE);
            let age = inner.space.get(id).map_or(0, super::space::Segment::age);
            inner.space.moved_in(stream.segment, age);
            inner.budget.written.moved += u64::from(blocks);
            inner.reserved.0 += taken.len();
            let stamp = Stamp { seq, durable: inner.log.durable(), checkpoint: inner.checkpoint };
            header.finish(&mut buf[..BLOCK], &stamp, &inner.seal, pba);
            inner.stated(seq);
            (seq, pba, descriptor, offset_bytes)
        };
        let (result, _) = descriptor.write_at(offset_bytes, blocks * BLOCK_BYTES, buf).await;
        self.inner().reserved.0 -= taken.len();
        self.wrote(pba, result)?;
        let mut inner = self.inner();
        let mut room = true;
        for (i, c) in taken.iter().enumerate() {
            let to = pba.plus(1 + i as u64);
            // Without room the block stays where it is, and the copy is garbage.
            let moved = inner.layer_of(seq).relocate(c.line, c.block, c.birth, c.pba, to);
            room &= moved != Moved::Full;
        }
        inner.record_complete(seq);
        Ok(room)
    }
}

impl Inner {
    /// Rises with each segment that becomes free, and falls with those that the cleaner and checkpoints take.
    fn gained(&self) -> u64 {
        u64::from(self.space.available()) + self.space.opened_hot()
    }

    fn written_by_volumes(&self) -> u64 {
        self.budget.written.data + self.budget.written.headers
    }

    /// How many blocks the next record of the cleaner can move; `None` when no segment is left for it.
    fn room_to_move(&mut self) -> Option<usize> {
        if !self.log.make_room(Flow::Cold, 2, 0, &mut self.space) {
            return None;
        }
        Some(MOVE_BLOCKS.min(self.log.left(Flow::Cold, &self.space) as usize - 1))
    }

    fn begin_cleaning(&mut self) {
        self.budget.cleaner_works = true;
        self.budget.credit = 0;
    }

    /// `in_vain`: the pool is as full as it can be.
    fn end_cleaning(&mut self, in_vain: bool) {
        self.budget.cleaner_works = false;
        if in_vain {
            self.budget.rest_until = Seq(self.log.last().0 + REST_RECORDS);
            if self.has_no_room() {
                self.give_up_on_space();
            }
        }
        self.budget.want_cleaning |= self.has_no_room();
        self.publish();
    }

    /// A segment was cleaned, all of it or what there was room for.
    fn cleaned(&mut self, id: SegmentId, whole: bool) {
        self.cleaning.retain(|&(other, _)| other != id);
        if whole {
            // One more record than there is: pages that were touched are for the next merge, not for one that goes on.
            self.cleaning.push((id, self.log.last().next()));
            let live = self.space.get(id).map_or(0, |s| s.live);
            self.earn(self.space.segment_blocks().saturating_sub(live + live / 32));
        }
    }

    /// Looks for segments to clean among some of a device; true when there are more behind them.
    fn rank_victims(&self, member: u8, from: u32, best: &mut Vec<(u64, SegmentId)>) -> bool {
        let mut but = self.budget.doubtful.clone();
        but.extend(self.cleaning.iter().map(|&(id, _)| id));
        but.sort_unstable();
        let greedy = self.cleaner_share() >= 100;
        let wish = Wish { base: self.anchor.base, most: VICTIMS, greedy, but: &but };
        self.space.rank_victims(member, from..from.saturating_add(LOOKED_AT), &wish, best)
    }

    /// The best of the segments that were found; `None` when there is none left, or no room to move its blocks to before
    /// a checkpoint.
    fn take_victim(&mut self) -> Option<SegmentId> {
        let base = self.anchor.base;
        while let Some(id) = self.budget.victims.pop() {
            let taken = self.cleaning.iter().any(|&(other, _)| other == id);
            let known = taken || self.budget.doubtful.contains(&id);
            let Some(live) = self.space.cleanable(id, base).filter(|_| !known) else { continue };
            if !self.fits(id, live) {
                // Perhaps one that needs less does.
                continue;
            }
            if self.space.get(id).is_some_and(|s| s.state == State::Pages) {
                // Its catalogue may stand there: that would keep the segment.
                let catalogue = &self.anchor.catalogue;
                let mut pieces = catalogue.extents.iter().chain(&catalogue.copy);
                let held = pieces.any(|piece| self.space.segment_of(piece.pba) == Some(id));
                self.catalogue.dirty |= held;
            }
            self.cleaning.push((id, Seq::MAX));
            return Some(id);
        }
        None
    }

    /// Is there room for the live blocks of a segment, and for the checkpoint after that?
    pub(super) fn fits(&self, id: SegmentId, live: u32) -> bool {
        let available = u64::from(self.space.available());
        let checkpoint = self.checkpoint_segments(u64::from(live));
        if self.space.get(id).is_some_and(|s| s.state == State::Pages) {
            return available >= checkpoint;
        }
        let spare = available.saturating_sub(checkpoint);
        let updates = self.active.room().0.saturating_sub(self.reserved.0) as u64;
        // With a header for each record, and what does not fit the end of a segment.
        let needed = u64::from(live + live / 32) + MOVE_BLOCKS as u64 + 2;
        let segments = spare.min(self.space.named() as u64);
        let room = segments * u64::from(self.space.segment_blocks());
        u64::from(live) < updates && needed <= room + u64::from(self.log.left(Flow::Cold, &self.space))
    }

    /// Checkpoints counted what was moved: segments that were cleaned are free now, or not worth another try.
    fn judge_cleaned(&mut self) {
        let base = self.anchor.base;
        let space = &self.space;
        let doubtful = &mut self.budget.doubtful;
        self.cleaning.retain(|&(id, counted)| {
            let here = space.get(id).is_some_and(|s| matches!(s.state, State::Log | State::Pages));
            if counted <= base && space.cleanable(id, base).is_some() {
                doubtful.push(id);
            }
            here && counted > base
        });
        doubtful.retain(|&id| space.cleanable(id, base).is_some());
    }

    /// The tree of a line.
    pub(super) fn tree(&self, line: LineId) -> Option<Tree> {
        self.lines.get(line).map(|l| Tree { line, root: l.root })
    }
}

#[cfg(test)]
#[path = "clean_tests.rs"]
mod tests;
