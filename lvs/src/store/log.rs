//! The end of the log: where the next record goes, its number, and which of them are complete.

use std::collections::VecDeque;

use super::space::{Space, State};
use crate::types::{Pba, SegmentId, Seq};

/// What is written to a segment: blocks that are likely to live equally long stand together, so that segments become
/// empty by themselves or stay full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flow {
    /// What volumes write, and changes of the catalogue.
    Hot = 0,
    /// What the cleaner moves: it has outlived the rest of its segment.
    Cold = 1,
}

/// Numbers of an opening that are never reached: many more than records between two checkpoints.
const LAST_NUMBERS: u64 = 1 << 32;

/// Where the flows stood.
pub(crate) type Marks = [Option<Stream>; 2];

/// An open segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stream {
    /// Which.
    pub(crate) segment: SegmentId,
    /// The next block in it.
    pub(crate) offset: u32,
}

/// See the module.
pub(crate) struct Log {
    /// The last number that was given out.
    last: Seq,
    /// Records that are not complete, from the oldest on; `true` = complete, but one before it is not.
    flight: VecDeque<bool>,
    /// The number of the first of `flight`.
    first: Seq,
    /// Everything up to here is durable.
    durable: Seq,
    streams: Marks,
    /// Since the last [`mark`](Self::mark).
    opened: Vec<SegmentId>,
    /// Segments that it could open when that was set.
    named: usize,
    /// Segments that it is likely to open while a checkpoint is made.
    lead: usize,
}

impl Log {
    /// The log goes on after `last`; everything up to it is durable.
    pub(crate) fn new(last: Seq) -> Self {
        Self {
            last,
            flight: VecDeque::with_capacity(4096),
            first: last.next(),
            durable: last,
            streams: [None; 2],
            opened: Vec::new(),
            named: 0,
            lead: 0,
        }
    }

    /// The last number given out.
    pub(crate) fn last(&self) -> Seq {
        self.last
    }

    /// Where the open segment of a flow goes on.
    pub(crate) fn stream(&self, flow: Flow) -> Option<Stream> {
        self.streams[flow as usize]
    }

    /// Everything up to here is durable.
    pub(crate) fn durable(&self) -> Seq {
        self.durable
    }

    /// Every record up to here is complete.
    pub(crate) fn completed(&self) -> Seq {
        Seq(self.first.0 - 1)
    }

    /// Are so few numbers of this opening left that they may not do for another checkpoint?
    pub(crate) fn is_used_up(&self) -> bool {
        let used = self.last.0 & ((1 << Seq::COUNTER_BITS) - 1);
        used >= (1 << Seq::COUNTER_BITS) - LAST_NUMBERS
    }

    /// The next number. [`complete`](Self::complete) has to follow.
    pub(crate) fn number(&mut self) -> Seq {
        self.last = self.last.next();
        self.flight.push_back(false);
        self.last
    }

    /// Record `seq` is complete on its device. Returns true when [`completed`](Self::completed) went on.
    pub(crate) fn complete(&mut self, seq: Seq) -> bool {
        let at = (seq.0 - self.first.0) as usize;
        self.flight[at] = true;
        let before = self.first;
        while self.flight.front() == Some(&true) {
            self.flight.pop_front();
            self.first = self.first.next();
        }
        self.first != before
    }

    /// Everything up to `seq` is durable.
    pub(crate) fn durable_to(&mut self, seq: Seq) {
        self.durable = self.durable.max(seq);
    }

    /// Nothing more is put on this device.
    pub(crate) fn leave(&mut self, member: u8, space: &mut Space) {
        for stream in &mut self.streams {
            if let Some(old) = stream.take_if(|s| s.segment.member() == member) {
                space.close(old.segment, State::Log);
            }
        }
    }

    /// Blocks that are left in the open segment of a flow.
    pub(crate) fn left(&self, flow: Flow, space: &Space) -> u32 {
        self.stream(flow).map_or(0, |s| space.segment_blocks() - s.offset)
    }

    /// Makes sure that `blocks` fit into the open segment of a flow; opens the next one otherwise. False when no more than
    /// `keep` are named.
    pub(crate) fn make_room(&mut self, flow: Flow, blocks: u32, keep: usize, space: &mut Space) -> bool {
        if self.left(flow, space) >= blocks {
            return true;
        }
        if blocks > space.segment_blocks() || space.named() <= keep {
            return false;
        }
        let stream = &mut self.streams[flow as usize];
        if let Some(old) = stream.take() {
            space.close(old.segment, State::Log);
        }
        *stream = space.open_log(flow).map(|segment| Stream { segment, offset: 0 });
        self.opened.extend(stream.map(|s| s.segment));
        stream.is_some()
    }

    /// Takes `blocks` of the open segment of a flow for record `seq`. After [`make_room`](Self::make_room).
    pub(crate) fn place(&mut self, flow: Flow, seq: Seq, blocks: u32, space: &mut Space) -> Option<Pba> {
        let stream = self.streams[flow as usize].as_mut()?;
        let pba = space.first_block(stream.segment).plus(u64::from(stream.offset));
        stream.offset += blocks;
        space.wrote(stream.segment, seq);
        Some(pba)
    }

    /// A checkpoint begins: where the log stands. What it opens from now on, out of `named` segments, is listed anew.
    pub(crate) fn mark(&mut self, named: usize) -> Marks {
        self.opened.clear();
        self.named = named;
        self.streams
    }

    /// A checkpoint ended, and named more segments.
    pub(crate) fn named_more(&mut self) {
        // Half as much again as it took this time, and a slow return from what was once much.
        self.lead = (self.opened.len() * 3 / 2).max(self.lead * 7 / 8);
        self.named = 0;
    }

    /// Segments that it is likely to open while a checkpoint is made.
    pub(crate) fn lead(&self) -> usize {
        self.lead
    }

    /// Sixteenths of what was named when the checkpoint that is being made began that are opened meanwhile.
    pub(crate) fn sixteenths_opened(&self) -> u32 {
        (self.opened.len() * 16).checked_div(self.named).unwrap_or(0).min(16) as u32
    }

    /// What it opened since the last mark.
    pub(crate) fn opened(&self) -> &[SegmentId] {
        &self.opened
    }
}

#[cfg(test)]
mod tests {
    use super::super::space::Segment;
    use super::*;

    #[test]
    fn the_completed_prefix_waits_for_the_oldest() {
        let mut log = Log::new(Seq(10));
        let (a, b, c) = (log.number(), log.number(), log.number());
        assert_eq!((a, c), (Seq(11), Seq(13)));
        assert!(!log.complete(b));
        assert_eq!(log.completed(), Seq(10));
        assert!(log.complete(a));
        assert_eq!(log.completed(), b);
        assert!(log.complete(c));
        assert_eq!(log.completed(), c);
    }

    #[test]
    fn the_numbers_of_an_opening_end_before_those_of_the_next_begin() {
        assert!(!Log::new(Seq::first_of(7)).is_used_up());
        assert!(!Log::new(Seq(Seq::first_of(8).0 - LAST_NUMBERS - 1)).is_used_up());
        assert!(Log::new(Seq(Seq::first_of(8).0 - LAST_NUMBERS)).is_used_up());
        assert!(Log::new(Seq(Seq::first_of(8).0 - 1)).is_used_up());
    }

    #[test]
    fn a_record_never_leaves_its_segment_and_flows_do_not_mix() {
        let mut space = Space::new(256);
        space.add_member(vec![Segment::FREE; 6]);
        space.collect_free();
        let names = space.names_for_anchor(3, 1);
        space.reserve_names(&names);
        space.names_durable(&names);
        let mut log = Log::new(Seq(0));
        assert!(log.make_room(Flow::Hot, 200, 0, &mut space));
        let seq = log.number();
        assert_eq!(log.place(Flow::Hot, seq, 200, &mut space), Some(space.first_block(names[0])));
        assert!(log.make_room(Flow::Cold, 20, 0, &mut space));
        let seq = log.number();
        assert_eq!(log.place(Flow::Cold, seq, 20, &mut space), Some(space.first_block(names[1])));
        assert!(log.make_room(Flow::Hot, 57, 0, &mut space));
        let seq = log.number();
        assert_eq!(log.place(Flow::Hot, seq, 57, &mut space), Some(space.first_block(names[2])));
        assert!(!log.make_room(Flow::Hot, 200, 0, &mut space), "nothing is named any more");
        assert!(!log.make_room(Flow::Hot, 257, 0, &mut space), "longer than a segment");
        assert!(log.make_room(Flow::Cold, 236, 0, &mut space), "what is left is enough");
        assert_eq!(log.opened(), names);
    }
}
