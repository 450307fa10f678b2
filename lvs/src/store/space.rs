//! Which segments there are, what they are used for, and how much of each is live.
//!
//! Pure bookkeeping, without I/O. What may be reused when (H4):
//! - the log opens only segments that a durable anchor *names*, so that import finds every record. Pages may take them,
//!   too, when nothing else is free: import looks into them in vain;
//! - a segment is free again only when a checkpoint became durable that does not refer to it: nothing in it is live,
//!   all records in it are at or below that checkpoint's base, and no read that began before is still in flight.

use core::ops::Range;
use std::collections::VecDeque;

use super::log::Flow;
use crate::format::FormatError;
use crate::format::label::FIRST_SEGMENT_BLOCK;
use crate::format::segtable::{self, SegmentState, Stream};
use crate::types::{BLOCK_BYTES, Pba, SegmentId, Seq};

/// Segments that volumes never see, whatever the size of the pool: what is open (4), what is held for tables (up to 3), and
/// what a checkpoint and the cleaner need at least to go on (7, see `budget`).
pub(crate) const RESERVE_SEGMENTS: u32 = 14;

/// Of the blocks that are left, the share that volumes never see: map pages, and what keeps cleaning cheap (H20).
const HIDDEN_PERCENT: u64 = 16;
/// Of all blocks, the share that map pages and tables may take of that before they count as used.
const MAP_PERCENT: u64 = 2;

/// Age in checkpoints at which a victim's garbage counts half: before that more of it may be expected.
const HALF_AGE: u64 = 4;

/// What a segment is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Holds nothing.
    Free,
    /// Will be opened next by the log: a durable anchor says so.
    Named,
    /// Records of the log are appended.
    Open,
    /// Map pages and blobs are appended.
    OpenPages,
    /// Holds records of the log.
    Log,
    /// Holds map pages and blobs.
    Pages,
}

/// One segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    /// Its use.
    pub(crate) state: State,
    /// Blocks that something refers to, as of the last merge. May be wrong after a bug; never decides what is thrown away.
    pub(crate) live: u32,
    /// The newest record in it. What is above the base of a checkpoint is not counted in `live` yet.
    pub(crate) newest: Seq,
    /// How often it was used.
    uses: u32,
    /// Low half of the number of the checkpoint after which its content was written first: what the cleaner moved here is
    /// as old as where it came from.
    age: u32,
    /// The cleaner fills it.
    cold: bool,
}

impl Segment {
    /// A segment without content.
    pub(crate) const FREE: Self =
        Self { state: State::Free, live: 0, newest: Seq::ZERO, uses: 0, age: 0, cold: false };

    /// The age of its content.
    pub(crate) fn age(&self) -> u32 {
        self.age
    }
}

/// The segments of one device.
#[derive(Debug)]
struct Member {
    segments: Vec<Segment>,
    /// It is being emptied: nothing more is put there.
    leaves: bool,
}

/// All segments of a pool.
#[derive(Debug)]
pub(crate) struct Space {
    segment_blocks: u32,
    members: Vec<Member>,
    /// Free since a durable checkpoint: pages may take them, and the next anchor may name them.
    free: VecDeque<SegmentId>,
    /// Named by the durable anchor, in the order in which the log opens them.
    named: VecDeque<SegmentId>,
    /// Found free by a checkpoint, but reads that began before it are in flight.
    leaving: Vec<SegmentId>,
    /// Live blocks of all segments.
    live: u64,
    /// Those of them that are map pages.
    map_pages: u64,
    /// Segments that volumes began to fill, since the pool was opened.
    opened_hot: u64,
    /// Low half of the number of the newest checkpoint.
    now: u32,
}

impl Space {
    /// A pool without devices.
    pub(crate) fn new(segment_blocks: u32) -> Self {
        Self {
            segment_blocks,
            members: Vec::new(),
            free: VecDeque::new(),
            named: VecDeque::new(),
            leaving: Vec::new(),
            live: 0,
            map_pages: 0,
            opened_hot: 0,
            now: 0,
        }
    }

    /// Blocks of a segment.
    pub(crate) fn segment_blocks(&self) -> u32 {
        self.segment_blocks
    }

    /// Adds the next device with these segments; free ones are at hand from now on.
    pub(crate) fn add_member(&mut self, segments: Vec<Segment>) {
        self.members.push(Member { segments, leaves: false });
    }

    /// Adds segments at the end of a device that became larger.
    pub(crate) fn grow_member(&mut self, member: u8, segments: u32) {
        let Some(m) = self.members.get_mut(usize::from(member)).filter(|m| !m.leaves) else { return };
        let old = m.segments.len() as u32;
        for index in old..segments.max(old) {
            m.segments.push(Segment::FREE);
            self.free.push_back(SegmentId::new(member, index));
        }
    }

    /// Collects the free segments of all devices, alternating between devices. Once, after the members were added.
    pub(crate) fn collect_free(&mut self) {
        let longest = self.members.iter().map(|m| m.segments.len()).max().unwrap_or(0);
        for index in 0..longest {
            for (member, m) in self.members.iter().enumerate().filter(|(_, m)| !m.leaves) {
                if m.segments.get(index).is_some_and(|s| s.state == State::Free) {
                    self.free.push_back(SegmentId::new(member as u8, index as u32));
                }
            }
        }
    }

    /// The segments of a device, for the table on disk.
    pub(crate) fn member(&self, member: u8) -> &[Segment] {
        self.members.get(usize::from(member)).map_or(&[], |m| &m.segments)
    }

    /// First block of a segment.
    pub(crate) fn first_block(&self, id: SegmentId) -> Pba {
        let block = FIRST_SEGMENT_BLOCK + u64::from(id.index()) * u64::from(self.segment_blocks);
        Pba::new(id.member(), block).unwrap_or(Pba::NONE)
    }

    /// The segment that holds `pba`; `None` when there is none.
    pub(crate) fn segment_of(&self, pba: Pba) -> Option<SegmentId> {
        if pba.is_none() {
            return None;
        }
        let index = pba.block().checked_sub(FIRST_SEGMENT_BLOCK)? / u64::from(self.segment_blocks);
        let member = self.members.get(usize::from(pba.member()))?;
        (index < member.segments.len() as u64).then(|| SegmentId::new(pba.member(), index as u32))
    }

    /// A segment; `None` when there is none of that number.
    pub(crate) fn get(&self, id: SegmentId) -> Option<&Segment> {
        self.members.get(usize::from(id.member()))?.segments.get(id.index() as usize)
    }

    fn get_mut(&mut self, id: SegmentId) -> Option<&mut Segment> {
        self.members.get_mut(usize::from(id.member()))?.segments.get_mut(id.index() as usize)
    }

    /// All segments.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SegmentId, &Segment)> {
        self.members.iter().enumerate().flat_map(|(m, member)| {
            let id = move |i: usize| SegmentId::new(m as u8, i as u32);
            member.segments.iter().enumerate().map(move |(i, s)| (id(i), s))
        })
    }

    /// How many segments there are.
    pub(crate) fn total(&self) -> u32 {
        self.members.iter().map(|m| m.segments.len() as u32).sum()
    }

    /// Those on devices that are not being emptied, and not on `but`.
    pub(crate) fn staying(&self, but: Option<u8>) -> u32 {
        let stays = |(index, m): &(usize, &Member)| !m.leaves && Some(*index as u8) != but;
        self.members.iter().enumerate().filter(stays).map(|(_, m)| m.segments.len() as u32).sum()
    }

    /// How many could be opened: free, or named.
    pub(crate) fn available(&self) -> u32 {
        (self.free.len() + self.named.len()) as u32
    }

    /// Segments that the log can open before the next checkpoint.
    pub(crate) fn named(&self) -> usize {
        self.named.len()
    }

    /// Blocks that volumes can hold, whatever has to be cleaned.
    pub(crate) fn capacity_blocks(&self) -> u64 {
        self.capacity_without(None)
    }

    /// The same if device `but` were leaving, too.
    pub(crate) fn capacity_without(&self, but: Option<u8>) -> u64 {
        let usable = u64::from(self.staying(but).saturating_sub(RESERVE_SEGMENTS));
        usable * u64::from(self.segment_blocks) * (100 - HIDDEN_PERCENT) / 100
    }

    /// `capacity_blocks` in bytes.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.capacity_blocks() * u64::from(BLOCK_BYTES)
    }

    /// Blocks for map pages and tables that `capacity_blocks` leaves out.
    pub(crate) fn map_allowance(&self) -> u64 {
        u64::from(self.staying(None)) * u64::from(self.segment_blocks) * MAP_PERCENT / 100
    }

    /// Live blocks and pages of all segments, as of the last merge.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    /// Live map pages, as of the last merge.
    pub(crate) fn map_pages(&self) -> u64 {
        self.map_pages
    }

    /// Segments that volumes began to fill, since the pool was opened.
    pub(crate) fn opened_hot(&self) -> u64 {
        self.opened_hot
    }

    /// Opens the next named segment for the log.
    pub(crate) fn open_log(&mut self, flow: Flow) -> Option<SegmentId> {
        let id = self.named.pop_front()?;
        let now = self.now;
        if let Some(s) = self.get_mut(id) {
            // What is moved here tells its age itself.
            let age = if flow == Flow::Cold { 0 } else { now };
            *s = Segment { state: State::Open, uses: s.uses + 1, age, cold: flow == Flow::Cold, ..*s };
        }
        self.opened_hot += u64::from(flow == Flow::Hot);
        Some(id)
    }

    /// Opens a free segment for pages: not on device `but` while another one has any. When none is free, one that the log
    /// was to open: better that the log waits.
    pub(crate) fn open_pages(&mut self, but: Option<u8>) -> Option<SegmentId> {
        // Not a look at all of them where there is no other device.
        let but = but.filter(|_| self.members.len() > 1);
        let at = self.free.iter().position(|id| Some(id.member()) != but).unwrap_or(0);
        let id = self.free.remove(at).or_else(|| self.named.pop_back())?;
        let now = self.now;
        if let Some(s) = self.get_mut(id) {
            *s = Segment { state: State::OpenPages, uses: s.uses + 1, age: now, ..*s };
        }
        Some(id)
    }

    /// What the cleaner moves into the segment was written after this checkpoint.
    pub(crate) fn moved_in(&mut self, id: SegmentId, age: u32) {
        if let Some(s) = self.get_mut(id) {
            s.age = s.age.max(age);
        }
    }

    /// Nothing more is appended to it.
    pub(crate) fn close(&mut self, id: SegmentId, state: State) {
        self.set_state(id, state);
        let next = self.now.wrapping_add(1);
        if let Some(s) = self.get_mut(id).filter(|_| state == State::Pages) {
            // Its last pages are of the checkpoint that is being made.
            s.age = next;
        }
    }

    fn set_state(&mut self, id: SegmentId, state: State) {
        if let Some(s) = self.get_mut(id) {
            s.state = state;
        }
    }

    /// A record of this number was placed in the segment.
    pub(crate) fn wrote(&mut self, id: SegmentId, seq: Seq) {
        if let Some(s) = self.get_mut(id) {
            s.newest = s.newest.max(seq);
        }
    }

    /// The offline checker counted the live blocks of a segment.
    pub(crate) fn set_live(&mut self, id: SegmentId, live: u32) {
        if let Some(segment) = self.get_mut(id) {
            segment.live = live;
        }
    }

    /// A block of that address is referred to from now on.
    pub(crate) fn add_live(&mut self, pba: Pba) {
        self.count(pba, |live| live.saturating_add(1));
    }

    /// A block of that address is not referred to any more.
    pub(crate) fn drop_live(&mut self, pba: Pba) {
        self.count(pba, |live| live.saturating_sub(1));
    }

    /// So many more blocks of the segment are referred to from now on, or fewer.
    pub(crate) fn change_live(&mut self, id: SegmentId, by: i32) {
        self.count(self.first_block(id), |live| live.saturating_add_signed(by));
    }

    /// So many blocks of the segment were found to be referred to.
    pub(crate) fn recounted(&mut self, id: SegmentId, live: u32) {
        self.count(self.first_block(id), |_| live);
    }

    fn count(&mut self, pba: Pba, change: impl FnOnce(u32) -> u32) {
        let Some(s) = self.segment_of(pba).and_then(|id| self.get_mut(id)) else { return };
        let (before, after) = (u64::from(s.live), change(s.live));
        s.live = after;
        let pages = matches!(s.state, State::Pages | State::OpenPages);
        self.live = self.live + u64::from(after) - before;
        if pages {
            self.map_pages = self.map_pages + u64::from(after) - before;
        }
    }

    /// What the next anchor names: what is named and not opened, filled up to `most` from the free ones, of which
    /// `keep` stay for pages.
    pub(crate) fn names_for_anchor(&self, most: usize, keep: usize) -> Vec<SegmentId> {
        let keep = keep.min(self.free.len() / 2);
        let new = self.free.len().saturating_sub(keep).min(most.saturating_sub(self.named.len()));
        // From the back: pages take from the front meanwhile.
        self.named.iter().copied().chain(self.free.iter().rev().take(new).copied()).collect()
    }

    /// Takes the segments that [`names_for_anchor`](Self::names_for_anchor) added out of the free ones, so that nobody else opens
    /// them while the anchor is written.
    pub(crate) fn reserve_names(&mut self, names: &[SegmentId]) {
        let added = names.len().saturating_sub(self.named.len());
        for _ in 0..added {
            self.free.pop_back();
        }
        for &id in names {
            self.set_state(id, State::Named);
        }
    }

    /// The opposite of [`reserve_names`](Self::reserve_names): the anchor was not written.
    pub(crate) fn return_names(&mut self, names: &[SegmentId]) {
        for &id in names {
            let named = self.get(id).is_some_and(|s| s.state == State::Named);
            if named && !self.named.contains(&id) {
                self.set_state(id, State::Free);
                self.free.push_back(id);
            }
        }
    }

    /// The anchor with these names is durable. Those that were opened meanwhile are left out.
    pub(crate) fn names_durable(&mut self, names: &[SegmentId]) {
        let still: VecDeque<SegmentId> = names
            .iter()
            .copied()
            .filter(|&id| self.get(id).is_some_and(|s| s.state == State::Named))
            .collect();
        self.named = still;
    }

    /// The segment holds what only a delta refers to, so it is not counted: it stays until a checkpoint at `seq` or later.
    pub(crate) fn hold(&mut self, id: SegmentId, seq: Seq) {
        if let Some(s) = self.get_mut(id) {
            s.newest = s.newest.max(seq);
            if matches!(s.state, State::Free | State::Named) {
                s.state = State::Log;
            }
        }
    }

    /// The checkpoint with this base is durable: what it does not refer to leaves, of some of the segments of a device. Returns
    /// whether there are more behind them. `held`: see [`begin_to_find`](Self::begin_to_find).
    pub(crate) fn find_unreferred(
        &mut self,
        member: u8,
        indices: Range<u32>,
        base: Seq,
        held: &[SegmentId],
    ) -> bool {
        let segments = self.members.get(usize::from(member)).map_or(&[][..], |m| &m.segments);
        let end = segments.len().min(indices.end as usize);
        for index in indices.start..end as u32 {
            let s = &segments[index as usize];
            let holds = matches!(s.state, State::Log | State::Pages);
            if !holds || s.live > 0 || s.newest > base {
                continue;
            }
            let id = SegmentId::new(member, index);
            if held.binary_search(&id).is_err() {
                self.leaving.push(id);
            }
        }
        end < segments.len()
    }

    /// [`find_unreferred`](Self::find_unreferred) for all segments at once, after checkpoint `checkpoint`. Returns how many leave.
    pub(crate) fn checkpoint_durable(&mut self, checkpoint: u64, base: Seq, held: &[Pba]) -> usize {
        let (held, before) = (self.begin_to_find(checkpoint, held), self.leaving.len());
        for member in 0..self.members.len() as u8 {
            self.find_unreferred(member, 0..u32::MAX, base, &held);
        }
        self.leaving.len() - before
    }

    /// Checkpoint `checkpoint` is durable. The segments of its tables, which stand at `held`, and those that were found
    /// before; sorted.
    pub(crate) fn begin_to_find(&mut self, checkpoint: u64, held: &[Pba]) -> Vec<SegmentId> {
        self.now = checkpoint as u32;
        let mut held: Vec<SegmentId> = held.iter().filter_map(|&pba| self.segment_of(pba)).collect();
        held.extend(&self.leaving);
        held.sort_unstable();
        held
    }

    /// No read that began before the last [`checkpoint_durable`](Self::checkpoint_durable) is in flight: what it found is free.
    pub(crate) fn reads_drained(&mut self) {
        for id in std::mem::take(&mut self.leaving) {
            if let Some(s) = self.get_mut(id) {
                *s = Segment { uses: s.uses, ..Segment::FREE };
            }
            if !self.is_leaving(id) {
                self.free.push_back(id);
            }
        }
    }

    /// Nothing more is put on this device.
    pub(crate) fn leave(&mut self, member: u8) {
        let Some(m) = self.members.get_mut(usize::from(member)) else { return };
        m.leaves = true;
        for s in m.segments.iter_mut().filter(|s| s.state == State::Named) {
            s.state = State::Free;
        }
        let stays = |id: &SegmentId| id.member() != member;
        self.free.retain(stays);
        self.named.retain(stays);
        // The free ones may all have been there, and pages need some. That the durable anchor names them does no harm: an
        // import finds no records of the log in them.
        while self.free.len() < self.named.len() {
            let Some(id) = self.named.pop_back() else { break };
            self.set_state(id, State::Free);
            self.free.push_back(id);
        }
    }

    fn is_leaving(&self, id: SegmentId) -> bool {
        self.members.get(usize::from(id.member())).is_some_and(|m| m.leaves)
    }

    /// Of a device that is being emptied, the next segment that holds something counted (at or below `base`), and is not
    /// one of `but`; with its live blocks.
    pub(crate) fn next_to_empty(&self, member: u8, base: Seq, but: &[SegmentId]) -> Option<(SegmentId, u32)> {
        let segments = self.member(member).iter().enumerate();
        segments
            .map(|(index, s)| (SegmentId::new(member, index as u32), s))
            .filter(|(id, s)| {
                matches!(s.state, State::Log | State::Pages)
                    && s.live > 0
                    && s.newest <= base
                    && !but.contains(id)
            })
            .map(|(id, s)| (id, s.live))
            .next()
    }

    /// Segments of a device that hold something, and how many blocks of them are live.
    pub(crate) fn held(&self, member: u8) -> (u32, u64) {
        let held = self.member(member).iter().filter(|s| s.state != State::Free);
        held.fold((0, 0), |(segments, live), s| (segments + 1, live + u64::from(s.live)))
    }

    /// The device is gone; it held nothing.
    pub(crate) fn remove_member(&mut self, member: u8) {
        if let Some(m) = self.members.get_mut(usize::from(member)) {
            m.segments = Vec::new();
        }
    }

    /// How many segments each device has, for the table that goes to the disks.
    pub(crate) fn lengths(&self) -> Vec<u32> {
        self.members.iter().map(|m| m.segments.len() as u32).collect()
    }

    /// Adds some of the segments of a device to that table, as they are now.
    pub(crate) fn encode(&self, member: u8, indices: Range<u32>, table: &mut segtable::Encoder) {
        let stored = |s: &Segment| segtable::Segment {
            live_blocks: s.live,
            generation: s.uses,
            state: match s.state {
                State::Free | State::Named => SegmentState::Free,
                State::Open | State::Log if s.cold => SegmentState::Full(Stream::Cold),
                State::Open | State::Log => SegmentState::Full(Stream::Hot),
                State::OpenPages | State::Pages => SegmentState::Full(Stream::Meta),
            },
            age: s.age,
        };
        let range = indices.start as usize..indices.end as usize;
        self.member(member)[range].iter().map(stored).for_each(|segment| table.push(&segment));
    }

    /// Takes in the table of a checkpoint.
    pub(crate) fn restore(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let table = segtable::decode(bytes, self.segment_blocks)?;
        for (member, stored) in self.members.iter_mut().zip(table) {
            for (segment, stored) in member.segments.iter_mut().zip(stored) {
                let state = match stored.state {
                    SegmentState::Free => State::Free,
                    SegmentState::Open(Stream::Meta) | SegmentState::Full(Stream::Meta) => State::Pages,
                    SegmentState::Open(_) | SegmentState::Full(_) => State::Log,
                };
                let cold = stored.state == SegmentState::Full(Stream::Cold);
                let (live, uses, age) = (stored.live_blocks, stored.generation, stored.age);
                *segment = Segment { state, live, newest: Seq::ZERO, uses, age, cold };
                self.live += u64::from(live);
                self.map_pages += if state == State::Pages { u64::from(live) } else { 0 };
            }
        }
        Ok(())
    }

    /// Can the cleaner take the segment? Only closed ones, counted (at or below `base`), and not all live. Its live blocks.
    pub(crate) fn cleanable(&self, id: SegmentId, base: Seq) -> Option<u32> {
        let s = self.get(id).filter(|_| !self.is_leaving(id))?;
        let counted = match s.state {
            State::Log => s.newest <= base,
            // As of the newest checkpoint, and not written for the next.
            State::Pages => self.now.wrapping_sub(s.age) as i32 >= 0,
            _ => false,
        };
        let gains = s.live > 0 && s.live < self.segment_blocks - self.segment_blocks / 64;
        (counted && gains).then_some(s.live)
    }

    /// Looks for the best segments to clean among some of a device: much garbage for what has to be moved, and of an age at
    /// which not much more is to be expected. They take the place of worse ones in `best`. True when there are segments
    /// behind those.
    pub(crate) fn rank_victims(
        &self,
        member: u8,
        indices: Range<u32>,
        wish: &Wish<'_>,
        best: &mut Vec<(u64, SegmentId)>,
    ) -> bool {
        let per = u64::from(self.segment_blocks);
        let segments = self.member(member);
        let end = segments.len().min(indices.end as usize);
        for index in indices.start..end as u32 {
            let id = SegmentId::new(member, index);
            let Some(live) = self.cleanable(id, wish.base) else { continue };
            if wish.but.binary_search(&id).is_ok() {
                continue;
            }
            let live = u64::from(live);
            let age = u64::from(self.now.wrapping_sub(segments[index as usize].age)) + 1;
            // Garbage over the cost of reading all and writing what lives, in parts of 2^32.
            let gain = ((per - live) << 32) / (per + live);
            best.push((if wish.greedy { gain } else { gain * age / (age + HALF_AGE) }, id));
        }
        if best.len() > wish.most {
            best.select_nth_unstable_by(wish.most, |a, b| b.cmp(a));
            best.truncate(wish.most);
        }
        end < segments.len()
    }
}

/// What the cleaner looks for.
pub(crate) struct Wish<'a> {
    /// The newest checkpoint's base.
    pub(crate) base: Seq,
    /// So many segments at most.
    pub(crate) most: usize,
    /// Only what is gained counts, not the age.
    pub(crate) greedy: bool,
    /// Not these; sorted.
    pub(crate) but: &'a [SegmentId],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(segments: &[usize]) -> Space {
        let mut space = Space::new(256);
        for &n in segments {
            space.add_member(vec![Segment::FREE; n]);
        }
        space.collect_free();
        space
    }

    fn name(space: &mut Space, most: usize, keep: usize) -> Vec<SegmentId> {
        let names = space.names_for_anchor(most, keep);
        space.reserve_names(&names);
        names
    }

    #[test]
    fn the_log_opens_only_what_a_durable_anchor_names() {
        let mut space = pool(&[8]);
        assert!(space.open_log(Flow::Hot).is_none());
        let names = name(&mut space, 3, 2);
        assert_eq!(names.len(), 3);
        assert!(space.open_log(Flow::Hot).is_none(), "not durable yet");
        space.names_durable(&names);
        assert_eq!(space.open_log(Flow::Hot), Some(names[0]));
        assert_eq!(space.named(), 2);
    }

    #[test]
    fn h18_pages_get_a_named_segment_only_when_nothing_else_is_free() {
        let mut space = pool(&[6]);
        let names = name(&mut space, 4, 2);
        space.names_durable(&names);
        let pages: Vec<_> = std::iter::from_fn(|| space.open_pages(None)).collect();
        assert_eq!(pages.len(), 6);
        assert!(pages[..2].iter().all(|p| !names.contains(p)));
        assert_eq!(pages[2], names[3], "the one that the log would open last");
        assert!(space.open_log(Flow::Hot).is_none());
    }

    #[test]
    fn names_of_an_anchor_that_was_not_written_are_free_again() {
        let mut space = pool(&[8]);
        let names = name(&mut space, 3, 1);
        space.names_durable(&names);
        let opened = space.open_log(Flow::Hot).unwrap();
        let more = name(&mut space, 5, 1);
        assert_eq!((more.len(), space.available()), (5, 4));
        space.return_names(&more);
        assert_eq!((space.named(), space.available()), (2, 7));
        assert_eq!(space.get(opened).unwrap().state, State::Open);
    }

    #[test]
    fn copies_are_on_another_device_while_there_is_one_with_room() {
        let mut space = pool(&[3, 1]);
        let members: Vec<u8> =
            std::iter::from_fn(|| space.open_pages(Some(0))).map(SegmentId::member).collect();
        assert_eq!(members, [1, 0, 0, 0]);
    }

    #[test]
    fn devices_take_turns() {
        let space = pool(&[2, 3]);
        let members: Vec<u8> = space.free.iter().map(|id| id.member()).collect();
        assert_eq!(members, [0, 1, 0, 1, 1]);
    }

    /// H4: segments reused too early.
    #[test]
    fn h4_a_segment_is_free_only_after_a_durable_checkpoint_that_counts_all_of_it_and_after_the_reads() {
        let mut space = pool(&[4]);
        let names = name(&mut space, 2, 0);
        space.names_durable(&names);
        let id = space.open_log(Flow::Hot).unwrap();
        let pba = space.first_block(id).plus(1);
        space.wrote(id, Seq(7));
        assert_eq!(space.checkpoint_durable(1, Seq(9), &[]), 0, "open");
        space.close(id, State::Log);
        assert_eq!(
            space.checkpoint_durable(1, Seq(6), &[]),
            0,
            "its record is newer than the checkpoint's base"
        );
        space.add_live(pba);
        assert_eq!(space.checkpoint_durable(1, Seq(9), &[]), 0, "a block is live");
        space.drop_live(pba);
        let before = space.available();
        assert_eq!(space.checkpoint_durable(1, Seq(9), &[]), 1);
        assert_eq!(space.available(), before, "reads may be in flight");
        assert_eq!(space.checkpoint_durable(1, Seq(9), &[]), 0, "found once only");
        space.reads_drained();
        assert_eq!(space.available(), before + 1);
        assert_eq!(space.get(id), Some(&Segment { uses: 1, ..Segment::FREE }));
    }

    #[test]
    fn addresses_lead_to_their_segments_and_nowhere_else() {
        let space = pool(&[4, 2]);
        for (id, _) in space.iter() {
            let first = space.first_block(id);
            assert_eq!(space.segment_of(first), Some(id));
            assert_eq!(space.segment_of(first.plus(255)), Some(id));
        }
        assert_eq!(space.segment_of(Pba::new(0, 255).unwrap()), None, "the superblock area");
        assert_eq!(space.segment_of(Pba::new(1, 256 + 2 * 256).unwrap()), None, "past the end");
        assert_eq!(space.segment_of(Pba::new(2, 300).unwrap()), None, "no such device");
        assert_eq!(space.segment_of(Pba::NONE), None);
    }

    #[test]
    fn victims_are_counted_segments_with_much_garbage_that_are_not_too_young() {
        let mut space = pool(&[8]);
        let names = name(&mut space, 5, 0);
        space.names_durable(&names);
        for (n, live) in [90, 30, 20, 256, 10].into_iter().enumerate() {
            let id = space.open_log(Flow::Hot).unwrap();
            assert_eq!(id, names[n]);
            for i in 0..live {
                space.add_live(space.first_block(id).plus(i));
            }
            space.wrote(id, Seq(n as u64 + 1));
            space.close(id, State::Log);
        }
        assert_eq!(space.live(), 406);
        let victims = |space: &Space, base, most, greedy| {
            let mut best = Vec::new();
            let wish = Wish { base, most, greedy, but: &[] };
            assert!(space.rank_victims(0, 0..2, &wish, &mut best), "six more");
            assert!(!space.rank_victims(0, 2..u32::MAX, &wish, &mut best));
            best.sort_unstable();
            best.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
        };
        let best = [names[0], names[1], names[2]];
        assert_eq!(
            victims(&space, Seq(4), 9, true),
            best,
            "the last is newer than the base, one is all live"
        );
        assert_eq!(victims(&space, Seq(4), 2, true), best[1..]);
        space.checkpoint_durable(100, Seq(4), &[]);
        space.moved_in(names[2], 100);
        assert_eq!(victims(&space, Seq(4), 9, false)[2], names[1], "what is young may become emptier");
        assert_eq!(victims(&space, Seq(4), 9, true)[2], names[2]);
        space.recounted(names[2], 0);
        assert_eq!((space.live(), space.cleanable(names[2], Seq(4))), (386, None));
    }
}
