//! Long unmapped ranges of the delta: few, sorted by where they begin, beside the points.

use crate::types::{BlockNo, LineId, Seq};

/// Blocks of a line that read as zeroes since `birth`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoleRange {
    /// Whose.
    pub line: LineId,
    /// First block.
    pub first: BlockNo,
    /// Blocks; at least one.
    pub count: u64,
    /// The record that unmapped them.
    pub birth: Seq,
}

impl HoleRange {
    /// The block behind its last.
    pub const fn end(&self) -> u64 {
        self.first.0.saturating_add(self.count)
    }
}

#[derive(Clone, Copy)]
struct Slot {
    range: HoleRange,
    /// Highest end of all ranges of the line up to here: a search backwards stops where nothing can reach.
    reach: u64,
}

/// The ranges, in order of (line, first block, birth).
pub(super) struct Holes {
    slots: Vec<Slot>,
    capacity: usize,
}

impl Holes {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { slots: Vec::with_capacity(capacity), capacity }
    }

    pub(super) fn clear(&mut self) {
        self.slots.clear();
    }

    pub(super) fn room(&self) -> usize {
        self.capacity - self.slots.len()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds a range. One of the same birth that it touches grows instead, and an older one within it that `is_dead`
    /// (birth, until) goes. False when there is no room.
    pub(super) fn put(&mut self, range: HoleRange, mut is_dead: impl FnMut(Seq, Seq) -> bool) -> bool {
        let (line, first, end) = (range.line, range.first.0, range.end());
        let before = self.slots.len();
        let mut lowest = self.slots.len();
        let mut index = 0;
        self.slots.retain(|slot| {
            let old = &slot.range;
            let within = old.line == line && first <= old.first.0 && old.end() <= end;
            let gone = within && old.birth < range.birth && is_dead(old.birth, range.birth);
            if gone {
                lowest = lowest.min(index);
            }
            index += 1;
            !gone
        });
        if self.slots.len() < before {
            self.refresh(lowest.min(self.slots.len()));
        }
        let touching = self.slots.iter().position(|slot| {
            let old = &slot.range;
            old.line == line && old.birth == range.birth && old.first.0 <= end && first <= old.end()
        });
        let mut range = range;
        if let Some(at) = touching {
            let old = self.slots.remove(at).range;
            let (low, high) = (old.first.0.min(first), old.end().max(end));
            (range.first, range.count) = (BlockNo(low), high - low);
            self.refresh(at);
        }
        if self.room() == 0 {
            return false;
        }
        let key = (range.line, range.first, range.birth);
        let at = self.slots.partition_point(|s| (s.range.line, s.range.first, s.range.birth) < key);
        self.slots.insert(at, Slot { range, reach: 0 });
        self.refresh(at);
        true
    }

    /// Highest birth below `before` of a range over `block`.
    pub(super) fn newest(&self, line: LineId, block: BlockNo, before: Seq) -> Option<Seq> {
        let end = self.slots.partition_point(|s| (s.range.line, s.range.first) <= (line, block));
        self.slots[..end]
            .iter()
            .rev()
            .take_while(|s| s.range.line == line && s.reach > block.0)
            .filter(|s| s.range.end() > block.0 && s.range.birth < before)
            .map(|s| s.range.birth)
            .max()
    }

    /// Ranges of `line` that have a block in `first..end`, in order of their first block.
    pub(super) fn over(&self, line: LineId, first: u64, end: u64) -> impl Iterator<Item = &HoleRange> {
        let stop = self
            .slots
            .partition_point(|s| s.range.line < line || (s.range.line == line && s.range.first.0 < end));
        let back =
            self.slots[..stop].iter().rev().take_while(|s| s.range.line == line && s.reach > first).count();
        self.slots[stop - back..stop].iter().map(|s| &s.range).filter(move |r| r.end() > first)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &HoleRange> {
        self.slots.iter().map(|s| &s.range)
    }

    /// The first line at or after `line` that has a range.
    pub(super) fn line_from(&self, line: LineId) -> Option<LineId> {
        let at = self.slots.partition_point(|s| s.range.line < line);
        self.slots.get(at).map(|s| s.range.line)
    }

    pub(super) fn remove_line(&mut self, line: LineId) {
        self.slots.retain(|s| s.range.line != line);
    }

    /// Recomputes `reach` from slot `from` to the end of its line.
    fn refresh(&mut self, from: usize) {
        let mut at = from;
        while at < self.slots.len() {
            let before = at
                .checked_sub(1)
                .map(|i| self.slots[i])
                .filter(|s| s.range.line == self.slots[at].range.line);
            let reach = before.map_or(0, |s| s.reach).max(self.slots[at].range.end());
            if at > from && before.is_none() {
                break;
            }
            self.slots[at].reach = reach;
            at += 1;
        }
    }
}
