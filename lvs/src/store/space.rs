//! Which segments there are, what they are used for, and how much of each is live.
//!
//! Pure bookkeeping, without I/O. What may be reused when (H4):
//! - the log opens only segments that a durable anchor *names*, so that import finds every record;
//! - a segment is free again only when a checkpoint became durable that does not refer to it: nothing in it is live,
//!   all records in it are at or below that checkpoint's base, and no read that began before is still in flight.

use std::collections::VecDeque;

use crate::format::FormatError;
use crate::format::label::FIRST_SEGMENT_BLOCK;
use crate::format::segtable::{self, SegmentState, Stream};
use crate::types::{BLOCK_BYTES, Pba, SegmentId, Seq};

/// Segments that nothing but checkpoints and the cleaner may take: a checkpoint's pages and blobs, and a target for the cleaner.
pub(crate) const RESERVE_SEGMENTS: u32 = 11;

/// Of the blocks that are left, the share that volumes never see: what keeps cleaning cheap (H20).
const HIDDEN_PERCENT: u64 = 11;

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
}

impl Segment {
    /// A segment without content.
    pub(crate) const FREE: Self = Self { state: State::Free, live: 0, newest: Seq::ZERO };
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
        let stays = |(index, m): &(usize, &Member)| !m.leaves && Some(*index as u8) != but;
        let total =
            self.members.iter().enumerate().filter(stays).map(|(_, m)| m.segments.len() as u32).sum::<u32>();
        let usable = u64::from(total.saturating_sub(RESERVE_SEGMENTS));
        usable * u64::from(self.segment_blocks) * (100 - HIDDEN_PERCENT) / 100
    }

    /// `capacity_blocks` in bytes.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.capacity_blocks() * u64::from(BLOCK_BYTES)
    }

    /// Opens the next named segment for the log.
    pub(crate) fn open_log(&mut self) -> Option<SegmentId> {
        let id = self.named.pop_front()?;
        self.set_state(id, State::Open);
        Some(id)
    }

    /// Opens a free segment for pages: not on device `but` while another one has any.
    pub(crate) fn open_pages(&mut self, but: Option<u8>) -> Option<SegmentId> {
        let at = self.free.iter().position(|id| Some(id.member()) != but).unwrap_or(0);
        let id = self.free.remove(at)?;
        self.set_state(id, State::OpenPages);
        Some(id)
    }

    /// Nothing more is appended to it.
    pub(crate) fn close(&mut self, id: SegmentId, state: State) {
        self.set_state(id, state);
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

    /// A block of that address is referred to from now on.
    pub(crate) fn add_live(&mut self, pba: Pba) {
        if let Some(s) = self.segment_of(pba).and_then(|id| self.get_mut(id)) {
            s.live = s.live.saturating_add(1);
        }
    }

    /// A block of that address is not referred to any more.
    pub(crate) fn drop_live(&mut self, pba: Pba) {
        if let Some(s) = self.segment_of(pba).and_then(|id| self.get_mut(id)) {
            s.live = s.live.saturating_sub(1);
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

    /// The checkpoint with this base is durable: what it does not refer to leaves. Returns how many segments do. `held`
    /// are addresses of its tables, which are not counted either.
    pub(crate) fn checkpoint_durable(&mut self, base: Seq, held: &[Pba]) -> usize {
        let held: Vec<SegmentId> = held.iter().filter_map(|&pba| self.segment_of(pba)).collect();
        let mut found = Vec::new();
        for (id, s) in self.iter() {
            let holds = matches!(s.state, State::Log | State::Pages);
            let referred = s.live > 0 || s.newest > base || held.contains(&id);
            if holds && !referred && !self.leaving.contains(&id) {
                found.push(id);
            }
        }
        let count = found.len();
        self.leaving.extend(found);
        count
    }

    /// No read that began before the last [`checkpoint_durable`](Self::checkpoint_durable) is in flight: what it found is free.
    pub(crate) fn reads_drained(&mut self) {
        for id in std::mem::take(&mut self.leaving) {
            if let Some(s) = self.get_mut(id) {
                *s = Segment::FREE;
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

    /// The table, as it goes to the disks.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let stored = |s: &Segment| segtable::Segment {
            live_blocks: s.live,
            generation: 0,
            state: match s.state {
                State::Free | State::Named => SegmentState::Free,
                State::Open | State::Log => SegmentState::Full(Stream::Hot),
                State::OpenPages | State::Pages => SegmentState::Full(Stream::Meta),
            },
            age: 0,
        };
        let members: Vec<Vec<_>> =
            self.members.iter().map(|m| m.segments.iter().map(stored).collect()).collect();
        segtable::encode(&members)
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
                *segment = Segment { state, live: stored.live_blocks, newest: Seq::ZERO };
            }
        }
        Ok(())
    }

    /// The segment with the fewest live blocks that a cleaner may take: closed, counted (at or below `base`), not all
    /// live, and not one of `but`. With its live blocks.
    pub(crate) fn victim(&self, base: Seq, but: &[SegmentId]) -> Option<(SegmentId, u32)> {
        self.iter()
            .filter(|(_, s)| matches!(s.state, State::Log | State::Pages) && s.newest <= base && s.live > 0)
            .filter(|(_, s)| s.live < self.segment_blocks - self.segment_blocks / 32)
            .filter(|(id, _)| !but.contains(id) && !self.is_leaving(*id))
            .min_by_key(|(_, s)| s.live)
            .map(|(id, s)| (id, s.live))
    }
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
        assert!(space.open_log().is_none());
        let names = name(&mut space, 3, 2);
        assert_eq!(names.len(), 3);
        assert!(space.open_log().is_none(), "not durable yet");
        space.names_durable(&names);
        assert_eq!(space.open_log(), Some(names[0]));
        assert_eq!(space.named(), 2);
    }

    #[test]
    fn pages_never_get_a_named_segment() {
        let mut space = pool(&[6]);
        let names = name(&mut space, 4, 2);
        space.names_durable(&names);
        let pages: Vec<_> = std::iter::from_fn(|| space.open_pages(None)).collect();
        assert_eq!(pages.len(), 2);
        assert!(pages.iter().all(|p| !names.contains(p)));
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
        let id = space.open_log().unwrap();
        let pba = space.first_block(id).plus(1);
        space.wrote(id, Seq(7));
        assert_eq!(space.checkpoint_durable(Seq(9), &[]), 0, "open");
        space.close(id, State::Log);
        assert_eq!(
            space.checkpoint_durable(Seq(6), &[]),
            0,
            "its record is newer than the checkpoint's base"
        );
        space.add_live(pba);
        assert_eq!(space.checkpoint_durable(Seq(9), &[]), 0, "a block is live");
        space.drop_live(pba);
        let before = space.available();
        assert_eq!(space.checkpoint_durable(Seq(9), &[]), 1);
        assert_eq!(space.available(), before, "reads may be in flight");
        assert_eq!(space.checkpoint_durable(Seq(9), &[]), 0, "found once only");
        space.reads_drained();
        assert_eq!(space.available(), before + 1);
        assert_eq!(space.get(id), Some(&Segment::FREE));
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
    fn the_victim_is_the_emptiest_segment_that_is_counted() {
        let mut space = pool(&[6]);
        let names = name(&mut space, 4, 0);
        space.names_durable(&names);
        for (n, live) in [(0, 9), (1, 3), (2, 1)] {
            let id = space.open_log().unwrap();
            assert_eq!(id, names[n]);
            for i in 0..live {
                space.add_live(space.first_block(id).plus(i));
            }
            space.wrote(id, Seq(n as u64 + 1));
            space.close(id, State::Log);
        }
        assert_eq!(space.victim(Seq(2), &[]), Some((names[1], 3)), "the third is newer than the base");
        assert_eq!(space.victim(Seq(3), &[]), Some((names[2], 1)));
        assert_eq!(space.victim(Seq(3), &[names[2]]), Some((names[1], 3)));
    }
}
