//! Puts what the delta knows between the entries of the leaves that it falls in, in the order of keys, and leaves out
//! what nobody needs.
//!
//! The line is worked through in *stretches* that have the same versions from end to end: one block, or a run of
//! blocks that are holes. The versions of a stretch come from the tree, from points of the delta, and from its long
//! unmapped ranges.
//!
//! A hole is left out when it is superseded and makes no difference to any view: nothing older stands below it (and no
//! parent), or what stands below it is a hole. The newest hole always stays, so what was unmapped is known to have
//! changed for ever (H11).

use super::delta::{Change, Update};
use super::holes::HoleRange;
use super::packer::Packer;
use super::tree::{LineView, PageSink, Spot};
use crate::format::page::{Leaf, MAX_BLOCKS, MAX_RUN_BLOCKS};
use crate::types::{BlockNo, Pba, Place, Seq, Version};
use core::iter::Peekable;

/// What became of a block of data. From these the caller keeps its counts of live blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A version of the delta is in the tree now.
    Added {
        /// Which.
        birth: Seq,
        /// Where.
        pba: Pba,
    },
    /// A version of the delta, or a copy that the cleaner made, is not taken into the tree: garbage.
    Lapsed {
        /// Which.
        birth: Seq,
        /// Where.
        pba: Pba,
    },
    /// A version that was in the tree is no longer: nobody needs it.
    Dropped {
        /// Which.
        birth: Seq,
        /// Where; after a move in the same merge, where it was moved to.
        pba: Pba,
    },
    /// A version in the tree has another address.
    Moved {
        /// Which.
        birth: Seq,
        /// Garbage now.
        from: Pba,
        /// Live now.
        to: Pba,
    },
}

/// What is known of the version that comes before the first entry of a leaf.
#[derive(Clone, Copy)]
enum Begin {
    /// The entry is the newest of its block.
    Fresh,
    /// It was superseded at this number.
    After(Seq),
    /// Nothing: it is kept.
    Unknown,
}

#[derive(Clone, Copy)]
struct Candidate {
    birth: Seq,
    place: Place,
    /// From the delta.
    new: bool,
    drop: bool,
}

/// The last entry of the leaf that was looked at just before.
#[derive(Clone, Copy)]
pub(super) struct Last {
    pub(super) block: u64,
    pub(super) birth: Seq,
}

/// A leaf at work.
pub(super) struct LeafJob {
    entries: Vec<Leaf>,
    next: usize,
    /// Blocks below it are done.
    at: u64,
    fence: Spot,
    /// New versions of blocks from here on belong to the next leaf.
    end: u64,
    begin: Begin,
}

impl LeafJob {
    /// The memory of its entries, when it is done.
    pub(super) fn into_entries(self) -> Vec<Leaf> {
        self.entries
    }
}

/// See the module.
pub(super) struct Weave<'a, P: Iterator<Item = Update>, F> {
    points: Peekable<P>,
    ranges: Vec<HoleRange>,
    /// Ranges before it end below `done`.
    first_range: usize,
    view: LineView<'a>,
    events: F,
    /// New versions of blocks below it are placed.
    done: u64,
    /// Set while the leaf read last is the one left of the next.
    pub(super) last: Option<Last>,
    candidates: Vec<Candidate>,
    births: Vec<Seq>,
    group: Vec<Leaf>,
}

impl<'a, P: Iterator<Item = Update>, F: FnMut(Event)> Weave<'a, P, F> {
    pub(super) fn new(points: P, ranges: Vec<HoleRange>, view: LineView<'a>, events: F) -> Self {
        Self {
            points: points.peekable(),
            ranges,
            first_range: 0,
            view,
            events,
            done: 0,
            last: None,
            candidates: Vec::new(),
            births: Vec::new(),
            group: Vec::new(),
        }
    }

    /// True when something of the delta may belong between `from` and `fence`, so that the page has to be looked into.
    pub(super) fn reaches(&mut self, from: Spot, fence: Spot) -> bool {
        let point = self.points.peek().is_some_and(|update| spot(update) < fence);
        point || self.range_reaches(from.block, fence.block.saturating_add(1))
    }

    /// True when a range of the delta that is not placed yet has a block in `first..end`.
    pub(super) fn range_reaches(&self, first: u64, end: u64) -> bool {
        let first = first.max(self.done);
        let ahead = &self.ranges[self.first_range..];
        ahead.iter().take_while(|r| r.first.0 < end).any(|r| r.end() > first)
    }

    /// Begins with a leaf. `leftmost`: it is the first of the tree (or there is none, and no entries).
    pub(super) fn begin(&mut self, entries: Vec<Leaf>, fence: Spot, leftmost: bool) -> LeafJob {
        let straddles = entries.last().is_some_and(|tail| tail.block.0 == fence.block);
        let begin = match (entries.first(), self.last) {
            (Some(first), _) if first.len_blocks > 1 => Begin::Fresh,
            (Some(first), Some(last)) if last.block == first.block.0 => Begin::After(last.birth),
            (Some(_), None) if !leftmost => Begin::Unknown,
            _ => Begin::Fresh,
        };
        let end = fence.block.saturating_add(u64::from(straddles)).min(MAX_BLOCKS);
        LeafJob { entries, next: 0, at: self.done, fence, end, begin }
    }

    /// True when something of the delta does belong into the leaf.
    pub(super) fn applies(&mut self, job: &LeafJob) -> bool {
        let from = job.entries.first().map_or(0, |first| first.block.0);
        let point = self.points.peek().is_some_and(|u| spot(u) < job.fence && u.block.0 < job.end);
        point || self.range_reaches(from, job.end)
    }

    /// True when the leaf holds a version that nobody needs.
    pub(super) fn has_garbage(&self, job: &LeafJob) -> bool {
        let mut until = match job.begin {
            Begin::Fresh => Some(Seq::MAX),
            Begin::After(birth) => Some(birth),
            Begin::Unknown => None,
        };
        let mut block = job.entries.first().map(|first| first.block);
        job.entries.iter().any(|leaf| {
            if block != Some(leaf.block) {
                (block, until) = (Some(leaf.block), Some(Seq::MAX));
            }
            let birth = leaf.version.birth;
            let garbage = until.is_some_and(|until| !self.view.needs(birth, until));
            until = Some(birth);
            garbage
        })
    }

    /// The leaf stays as it is.
    pub(super) fn skip(&mut self, job: &LeafJob) {
        self.last = job.entries.last().map(|tail| Last { block: tail.block.0, birth: tail.version.birth });
        self.pass(job.end);
    }

    /// Works on one stretch of the leaf. False when there is none left.
    pub(super) fn step<S: PageSink>(&mut self, job: &mut LeafJob, packer: &mut Packer<'_, S>) -> bool {
        if let (0, Begin::After(_), Some(first)) = (job.next, job.begin, job.entries.first()) {
            let block = first.block.0;
            self.births.clear();
            self.stretch(job, block, block + 1, true, packer);
            job.at = job.at.max(block + 1);
            return true;
        }
        let group = job.entries.get(job.next).copied();
        if let Some(behind) = group.filter(|g| g.block.0 + g.len_blocks <= job.at) {
            // Not in order: the packer will refuse what comes.
            job.at = behind.block.0;
        }
        let point = self.next_point(job);
        let boundary = self.active_ranges(job.at, job.end);
        if self.births.is_empty() && self.copy_plain(job, point.into_iter().chain(boundary).min(), packer) {
            return true;
        }
        let covered = group.is_some_and(|g| g.block.0 <= job.at);
        if !covered && self.births.is_empty() && point != Some(job.at) {
            let next = [group.map(|g| g.block.0), point, boundary].into_iter().flatten().min();
            let Some(next) = next else {
                self.pass(job.end);
                return false;
            };
            job.at = next;
            return true;
        }
        let mut end = job.end.max(job.at + 1).min(job.at + MAX_RUN_BLOCKS);
        match group {
            Some(g) if covered => end = end.min(g.block.0 + g.len_blocks),
            Some(g) => end = end.min(g.block.0),
            None => {}
        }
        match point {
            Some(block) if block == job.at => end = block + 1,
            Some(block) => end = end.min(block),
            None => {}
        }
        end = boundary.map_or(end, |boundary| end.min(boundary));
        self.stretch(job, job.at, end, covered, packer);
        job.at = end;
        self.pass(end.min(job.end));
        true
    }

    /// Takes over entries below block `limit` that nothing concerns: data of which there is one version, seen by the
    /// head. Most are like that.
    fn copy_plain<S: PageSink>(
        &mut self,
        job: &mut LeafJob,
        limit: Option<u64>,
        packer: &mut Packer<'_, S>,
    ) -> bool {
        if !self.view.head {
            return false;
        }
        let limit = limit.unwrap_or(job.end).min(job.end);
        let ahead = &job.entries[job.next..];
        let plain = |(index, leaf): &(usize, &Leaf)| {
            let after = ahead.get(index + 1).map_or(job.fence.block, |next| next.block.0);
            leaf.version.place != Place::Hole && leaf.block.0 != after && leaf.block.0 < limit
        };
        let count = ahead.iter().enumerate().take_while(plain).count();
        let Some(tail) = ahead[..count].last().copied() else { return false };
        packer.push_plain(&ahead[..count]);
        job.next += count;
        job.at = tail.block.0 + 1;
        if job.next == job.entries.len() {
            self.last = Some(Last { block: tail.block.0, birth: tail.version.birth });
        }
        self.pass(job.at);
        true
    }

    /// What is below `fence` cannot be looked into: its new versions are left out. The blocks that this concerns.
    pub(super) fn leave_out(&mut self, fence: Spot) -> (BlockNo, BlockNo) {
        let first = self.done;
        // The page may end with versions of the block that the next one begins with.
        let end = fence.block.saturating_add(1).min(MAX_BLOCKS);
        while self.points.next_if(|update| update.block.0 < end).is_some() {}
        self.last = None;
        self.pass(end);
        (BlockNo(first), BlockNo(end))
    }

    fn pass(&mut self, block: u64) {
        self.done = self.done.max(block);
        while self.ranges.get(self.first_range).is_some_and(|range| range.end() <= self.done) {
            self.first_range += 1;
        }
    }

    /// Block of the next point that belongs into the leaf.
    fn next_point(&mut self, job: &LeafJob) -> Option<u64> {
        let belongs = |u: &&Update| spot(u) < job.fence && u.block.0 < job.end;
        self.points.peek().filter(belongs).map(|u| u.block.0)
    }

    /// Collects the births of the ranges over `block`; says where that changes next, if below `end`.
    fn active_ranges(&mut self, block: u64, end: u64) -> Option<u64> {
        self.births.clear();
        let mut boundary = None;
        if block >= end {
            return None;
        }
        for range in &self.ranges[self.first_range..] {
            let next = if range.first.0 > block {
                range.first.0
            } else if range.end() > block {
                self.births.push(range.birth);
                range.end()
            } else {
                continue;
            };
            if next < end {
                boundary = Some(boundary.map_or(next, |b: u64| b.min(next)));
            }
            if range.first.0 > block {
                break;
            }
        }
        boundary
    }

    /// All versions of the blocks `at..end`: of the tree (if `covered`, the group at `job.next`), of the delta.
    fn stretch<S: PageSink>(
        &mut self,
        job: &mut LeafJob,
        at: u64,
        end: u64,
        covered: bool,
        packer: &mut Packer<'_, S>,
    ) {
        self.candidates.clear();
        let (mut begin, mut open_end) = (Begin::Fresh, false);
        if covered {
            let group = job.entries[job.next];
            let len = job.entries[job.next..].iter().take_while(|leaf| leaf.block == group.block).count();
            let old = job.entries[job.next..job.next + len].iter();
            self.candidates.extend(old.map(|leaf| candidate(leaf.version, false)));
            if job.next == 0 {
                begin = job.begin;
            }
            if end >= group.block.0 + group.len_blocks {
                job.next += len;
                open_end = job.next == job.entries.len() && group.block.0 == job.fence.block;
            }
        }
        self.take_points(job.fence, at);
        let births = &self.births;
        let holes = births.iter().map(|&birth| candidate(Version { birth, place: Place::Hole }, true));
        self.candidates.extend(holes);
        self.candidates.sort_by_key(|c| (core::cmp::Reverse(c.birth), !c.new));
        let tail = self.candidates.last().map(|c| c.birth);
        self.choose(begin, open_end);
        if job.next >= job.entries.len() {
            self.last = tail.map(|birth| Last { block: at, birth });
        }
        self.group.clear();
        let (block, len_blocks) = (BlockNo(at), end - at);
        let kept = self.candidates.iter().filter(|c| !c.drop);
        let kept = kept.map(|c| Version { birth: c.birth, place: c.place });
        self.group.extend(kept.map(|version| Leaf { block, len_blocks, version }));
        let whole = !open_end && matches!(begin, Begin::Fresh);
        let holes = whole && self.group.iter().all(|leaf| leaf.version.place == Place::Hole);
        packer.push(&self.group, holes);
    }

    /// Takes the delta's points of a block: versions become candidates, moves change those that are there.
    fn take_points(&mut self, fence: Spot, block: u64) {
        while let Some(update) = self.points.next_if(|u| u.block.0 <= block && spot(u) < fence) {
            let birth = update.birth;
            match update.change {
                Change::Place(place) if update.block.0 == block => {
                    self.candidates.push(candidate(Version { birth, place }, true));
                }
                Change::Place(Place::Data { pba, .. }) => (self.events)(Event::Lapsed { birth, pba }),
                Change::Place(Place::Hole) => {}
                Change::Moved { from, to } => {
                    let own = self.candidates.iter_mut().find(|c| c.birth == birth && !c.new);
                    match own.map(|c| &mut c.place) {
                        Some(Place::Data { pba, .. }) if *pba == from && update.block.0 == block => {
                            *pba = to;
                            (self.events)(Event::Moved { birth, from, to });
                        }
                        _ => (self.events)(Event::Lapsed { birth, pba: to }),
                    }
                }
            }
        }
    }

    /// Marks the candidates that do not stay, and tells what became of data.
    fn choose(&mut self, begin: Begin, open_end: bool) {
        let mut until = match begin {
            Begin::Fresh => Some(Seq::MAX),
            Begin::After(birth) => Some(birth),
            Begin::Unknown => None,
        };
        for c in &mut self.candidates {
            // The same number twice: the delta's word is the later one.
            let twice = until == Some(c.birth);
            c.drop = twice || until.is_some_and(|until| !self.view.needs(c.birth, until));
            until = Some(c.birth);
            if let Place::Data { pba, .. } = c.place {
                let birth = c.birth;
                match (c.new, c.drop) {
                    (true, false) => (self.events)(Event::Added { birth, pba }),
                    (true, true) => (self.events)(Event::Lapsed { birth, pba }),
                    (false, true) => (self.events)(Event::Dropped { birth, pba }),
                    (false, false) => {}
                }
            }
        }
        let superseded = if matches!(begin, Begin::After(_)) { 0 } else { 1 };
        let nothing_below = !open_end && !self.view.has_parent;
        let mut idle_below = nothing_below;
        for (index, c) in self.candidates.iter_mut().enumerate().rev().filter(|(_, c)| !c.drop) {
            let hole = c.place == Place::Hole;
            c.drop = hole && idle_below && index >= superseded;
            idle_below = if c.drop { idle_below } else { hole };
        }
    }
}

fn candidate(version: Version, new: bool) -> Candidate {
    Candidate { birth: version.birth, place: version.place, new, drop: false }
}

pub(super) fn spot(update: &Update) -> Spot {
    Spot::new(update.block, update.birth)
}
