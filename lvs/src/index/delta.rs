//! The delta: block versions, unmapped ranges and moves that came since the last merge, in memory of fixed size.
//!
//! Two of them exist while a checkpoint merges: the *frozen* one, and the *active* one that takes what comes. Every
//! version in a layer is newer than all of the same block in the layers below (active, frozen, tree), because freezing
//! waits until every older record completed. So a look-up takes the first layer that knows a version; a *move* (the
//! cleaner gave a version of a lower layer another address) is no version, it only corrects what the lower layer says.
//!
//! Nothing allocates after construction. A look-up or insert takes about 100 ns at 64 k entries.

use super::holes::{HoleRange, Holes};
use super::ordered::{Cursor, Key, Ordered, Value};
use crate::format::page::MAX_BLOCKS;
use crate::types::{BlockNo, LineId, Pba, Place, Seq, Version, is_needed};

/// Unmapped ranges up to this length are kept as points: cheaper to look up, and plenty of room for them.
const POINTS_PER_HOLE: u64 = 4;

/// Most superseded points that one unmapped range removes at once; the merge finds the others.
const SWEEP_POINTS: usize = 256;

/// What the delta knows of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeltaHit {
    /// This version, which is newer than any in a lower layer.
    Version(Version),
    /// No version; but if the lower layers find the version born at `birth` at address `from`, it is at `to` now.
    Moved {
        /// Which version.
        birth: Seq,
        /// Where it was.
        from: Pba,
        /// Where it is; the CRC is the same.
        to: Pba,
    },
}

/// A block of data that the delta no longer holds a version for: nobody needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gone {
    /// Whose.
    pub line: LineId,
    /// When it was written.
    pub birth: Seq,
    /// Where it is.
    pub pba: Pba,
}

/// What came of a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// The delta's own version has the new address.
    InPlace,
    /// Noted, for look-ups and the merge.
    Noted,
    /// The version is not there, or no longer at that address: the copy is garbage.
    Stale,
    /// No room. Nothing was changed.
    Full,
}

/// One point of the delta, for the merge and for range queries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Update {
    /// Whose.
    pub line: LineId,
    /// Which block.
    pub block: BlockNo,
    /// Which version.
    pub birth: Seq,
    /// What is known of it.
    pub change: Change,
}

/// What an [`Update`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A version.
    Place(Place),
    /// An older version that was at `from` is at `to`.
    Moved {
        /// Where it was.
        from: Pba,
        /// Where it is.
        to: Pba,
    },
}

/// See the module.
pub struct Delta {
    points: Ordered,
    holes: Holes,
    /// The cleaner's moves may be among the points.
    moves: bool,
}

impl Delta {
    /// Room for `updates` points (one version of one block, or one move) and `ranges` long unmapped ranges. All memory
    /// is reserved here (about 75 bytes a point) and becomes resident as it is used.
    pub fn with_capacity(updates: usize, ranges: usize) -> Self {
        Self { points: Ordered::with_capacity(updates), holes: Holes::with_capacity(ranges), moves: false }
    }

    /// Points and ranges that can still be put, whatever they are.
    pub fn room(&self) -> (usize, usize) {
        (self.points.room(), self.holes.room())
    }

    /// What an unmapped range of `count` blocks takes of [`room`](Self::room).
    pub const fn cost_of_hole(count: u64) -> (usize, usize) {
        if count <= POINTS_PER_HOLE { (count as usize, 0) } else { (0, 1) }
    }

    /// Points and ranges in it.
    pub fn len(&self) -> (usize, usize) {
        (self.points.len(), self.holes.len())
    }

    /// True when it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }

    /// Takes in a version of a block (below [`MAX_BLOCKS`]) of a line that has a head; `snapshots` are the line's epochs, ascending. What it
    /// supersedes and nobody needs goes, and so does the version itself when a newer one came before it and nobody
    /// needs it (H9); data that went is told to `gone`. False, and nothing done, when there is no room.
    pub fn put(
        &mut self,
        line: LineId,
        block: BlockNo,
        version: Version,
        snapshots: &[Seq],
        mut gone: impl FnMut(Gone),
    ) -> bool {
        if self.points.room() == 0 || block.0 >= MAX_BLOCKS {
            return false;
        }
        let key = Key::new(line.0, block.0, version.birth.0);
        let value = pack(Change::Place(version.place));
        let first = self.points.seek(Key::new(line.0, block.0, u64::MAX));
        let mut at = first;
        let newest = self.points.get(&mut at).filter(|(k, _)| k.same_block(key));
        let Some((old, old_value)) = newest else {
            return self.points.insert_at(first, key, value);
        };
        if old.birth() >= version.birth.0 {
            return self.put_late(key, version.place, at, snapshots, gone);
        }
        let kept = is_needed(Seq(old.birth()), version.birth, snapshots, true);
        if kept {
            return self.points.insert(key, value);
        }
        tell(old, old_value, &mut gone);
        if at == first {
            self.points.replace(at, key, value);
            return true;
        }
        self.points.remove(old);
        self.points.insert(key, value)
    }

    /// The version is not the newest of its block in the delta; `at` is the newest.
    fn put_late(
        &mut self,
        key: Key,
        place: Place,
        mut at: Cursor,
        snapshots: &[Seq],
        mut gone: impl FnMut(Gone),
    ) -> bool {
        let mut until = Seq::MAX;
        let older = loop {
            match self.points.get(&mut at).filter(|(k, _)| k.same_block(key)) {
                Some((k, value)) if k == key => {
                    // The same record again: the later word counts, and a move of it that is already known stands.
                    match (unpack(value), place) {
                        (Change::Moved { from, to }, Place::Data { pba, crc }) if from == pba => {
                            self.points.set(at, pack(Change::Place(Place::Data { pba: to, crc })));
                        }
                        (Change::Place(old), _) if old == place => {}
                        _ => {
                            tell(k, value, &mut gone);
                            self.points.set(at, pack(Change::Place(place)));
                        }
                    }
                    return true;
                }
                Some((k, _)) if k < key => until = Seq(k.birth()),
                other => break other,
            }
            self.points.next(&mut at);
        };
        let birth = Seq(key.birth());
        if !is_needed(birth, until, snapshots, true) {
            tell(key, pack(Change::Place(place)), &mut gone);
            return true;
        }
        if let Some((old, value)) = older.filter(|(k, _)| !is_needed(Seq(k.birth()), birth, snapshots, true))
        {
            tell(old, value, &mut gone);
            self.points.remove(old);
        }
        self.points.insert(key, pack(Change::Place(place)))
    }

    /// Takes in an unmapped range (below [`MAX_BLOCKS`]): as points when it is short, else as one range. It takes
    /// [`cost_of_hole`](Self::cost_of_hole) of the room; false, and nothing done, when that is not there. Versions below it that
    /// nobody needs any more go (data is told to `gone`), the rest of them at the merge when they are many.
    pub fn put_hole_range(
        &mut self,
        range: HoleRange,
        snapshots: &[Seq],
        mut gone: impl FnMut(Gone),
    ) -> bool {
        let HoleRange { line, first, count, birth } = range;
        let (points, ranges) = Self::cost_of_hole(count);
        if self.points.room() < points || self.holes.room() < ranges || range.end() > MAX_BLOCKS {
            return false;
        }
        if ranges == 0 {
            let hole = Version { birth, place: Place::Hole };
            return (0..count).all(|i| self.put(line, BlockNo(first.0 + i), hole, snapshots, &mut gone));
        }
        self.sweep(&range, snapshots, &mut gone);
        self.holes.put(range, |old, until| !is_needed(old, until, snapshots, true))
    }

    /// Removes points under `range` that nobody needs: in steps, since a removal moves what a cursor stands on.
    fn sweep(&mut self, range: &HoleRange, snapshots: &[Seq], gone: &mut impl FnMut(Gone)) {
        let end = Key::new(range.line.0, range.end(), u64::MAX);
        let mut from = Key::new(range.line.0, range.first.0, u64::MAX);
        let mut until = range.birth;
        for _ in 0..SWEEP_POINTS {
            let mut at = self.points.seek(from);
            let Some((key, value)) = self.points.get(&mut at).filter(|(k, _)| *k < end) else { break };
            if !key.same_block(from) {
                until = range.birth;
            }
            let birth = Seq(key.birth());
            if birth < range.birth {
                if !is_needed(birth, until, snapshots, true) {
                    tell(key, value, gone);
                    self.points.remove(key);
                }
                until = birth;
            }
            // The next older version of the block, else the next block.
            from = Key::new(key.line(), key.block(), key.birth().saturating_sub(1));
            if key.birth() == 0 {
                from = Key::new(key.line(), key.block() + 1, u64::MAX);
            }
        }
    }

    /// The version of (line, block) born at `birth` was copied from `from` to `to` by the cleaner. When the delta holds
    /// that version, its address changes if it is still `from`; otherwise the move is noted, and counts only where the
    /// lower layers still say `from` (H9).
    pub fn relocate(&mut self, line: LineId, block: BlockNo, birth: Seq, from: Pba, to: Pba) -> Moved {
        let key = Key::new(line.0, block.0, birth.0);
        let mut at = self.points.seek(key);
        let next = self.points.get(&mut at).filter(|(k, _)| k.same_block(key));
        match next.map(|(k, value)| (k, unpack(value))) {
            Some((k, Change::Place(Place::Data { pba, crc }))) if k == key && pba == from => {
                self.points.set(at, pack(Change::Place(Place::Data { pba: to, crc })));
                Moved::InPlace
            }
            Some((k, Change::Moved { from: origin, to: last })) if k == key && last == from => {
                self.points.set(at, pack(Change::Moved { from: origin, to }));
                Moved::Noted
            }
            // There, but elsewhere; or an older version is here, so that this one would have to be here too.
            Some((k, _)) if k == key => Moved::Stale,
            Some((_, Change::Place(_))) => Moved::Stale,
            _ if self.points.insert(key, pack(Change::Moved { from, to })) => {
                self.moves = true;
                Moved::Noted
            }
            _ => Moved::Full,
        }
    }

    /// The newest version of the block born before `before`, or a move that may concern what the lower layers find.
    pub fn lookup(&self, line: LineId, block: BlockNo, before: Seq) -> Option<DeltaHit> {
        let hole = if self.holes.len() == 0 { None } else { self.holes.newest(line, block, before) };
        let birth = before.0.checked_sub(1)?;
        let key = Key::new(line.0, block.0, birth);
        let mut at = self.points.seek(key);
        let point = self.points.get(&mut at).filter(|(k, _)| k.same_block(key));
        if let Some(birth) = hole.filter(|&h| point.is_none_or(|(k, _)| k.birth() < h.0)) {
            return Some(DeltaHit::Version(Version { birth, place: Place::Hole }));
        }
        let (key, value) = point?;
        let birth = Seq(key.birth());
        Some(match unpack(value) {
            Change::Place(place) => DeltaHit::Version(Version { birth, place }),
            Change::Moved { from, to } => DeltaHit::Moved { birth, from, to },
        })
    }

    /// What a lower layer found, with its new address if the delta knows of a move of exactly that version.
    pub fn corrected(&self, line: LineId, block: BlockNo, found: Version) -> Version {
        let Place::Data { pba, crc } = found.place else { return found };
        if !self.moves {
            return found;
        }
        match self.points.find(Key::new(line.0, block.0, found.birth.0)).map(unpack) {
            Some(Change::Moved { from, to }) if from == pba => {
                Version { birth: found.birth, place: Place::Data { pba: to, crc } }
            }
            _ => found,
        }
    }

    /// What the delta says of exactly this version, if anything: is a block of the log live (in this layer)?
    pub fn exact(&self, line: LineId, block: BlockNo, birth: Seq) -> Option<Change> {
        self.points.find(Key::new(line.0, block.0, birth.0)).map(unpack)
    }

    /// The points of `line` from block `first`, in order of (block, birth descending).
    pub fn points_from(&self, line: LineId, first: BlockNo) -> impl Iterator<Item = Update> + '_ {
        let mut at = self.points.seek(Key::new(line.0, first.0, u64::MAX));
        core::iter::from_fn(move || self.points.next(&mut at)).map(update).take_while(move |u| u.line == line)
    }

    /// The long unmapped ranges of `line` that have a block in `first..end`, in order of their first block.
    pub fn ranges_over(
        &self,
        line: LineId,
        first: BlockNo,
        end: BlockNo,
    ) -> impl Iterator<Item = &HoleRange> {
        self.holes.over(line, first.0, end.0)
    }

    /// Takes in what `newer`, the layer above it, has of the blocks `first..end` of a line. False, and only part of it
    /// taken, when there is no room.
    pub fn take_in(
        &mut self,
        newer: &Self,
        line: LineId,
        (first, end): (BlockNo, BlockNo),
        snapshots: &[Seq],
    ) -> bool {
        let points = newer.points_from(line, first).take_while(|update| update.block < end);
        let taken = points.into_iter().all(|update| match update.change {
            Change::Place(place) => {
                self.put(line, update.block, Version { birth: update.birth, place }, snapshots, |_| {})
            }
            Change::Moved { from, to } => {
                self.relocate(line, update.block, update.birth, from, to) != Moved::Full
            }
        });
        taken
            && newer.ranges_over(line, first, end).all(|range| {
                let (from, until) = (range.first.max(first), range.end().min(end.0));
                let range = HoleRange { first: from, count: until - from.0, ..*range };
                self.put_hole_range(range, snapshots, |_| {})
            })
    }

    /// The first line at or after `line` of which it holds anything.
    pub fn line_from(&self, line: LineId) -> Option<LineId> {
        let mut at = self.points.seek(Key::new(line.0, 0, u64::MAX));
        let points = self.points.get(&mut at).map(|(k, _)| LineId(k.line()));
        let holes = self.holes.line_from(line);
        points.into_iter().chain(holes).min()
    }

    /// All lines of which it holds anything, ascending.
    pub fn lines(&self) -> impl Iterator<Item = LineId> + '_ {
        let mut from = Some(LineId(0));
        core::iter::from_fn(move || {
            let line = self.line_from(from?)?;
            from = line.0.checked_add(1).map(LineId);
            Some(line)
        })
    }

    /// Forgets up to `most` points of a line, and its ranges; data is told to `gone`. True when nothing of it is left.
    pub fn remove_line(&mut self, line: LineId, most: usize, mut gone: impl FnMut(Gone)) -> bool {
        self.holes.remove_line(line);
        for _ in 0..most {
            let mut at = self.points.seek(Key::new(line.0, 0, u64::MAX));
            match self.points.get(&mut at).filter(|(k, _)| k.line() == line.0) {
                Some((key, value)) => {
                    tell(key, value, &mut gone);
                    self.points.remove(key);
                }
                None => return true,
            }
        }
        self.line_from(line) != Some(line)
    }

    /// Forgets everything, in constant time.
    pub fn clear(&mut self) {
        self.points.clear();
        self.holes.clear();
        self.moves = false;
    }

    /// All points in order, for the dump.
    pub(super) fn all_points(&self) -> impl Iterator<Item = Update> + '_ {
        let mut at = self.points.seek(Key::new(0, 0, u64::MAX));
        core::iter::from_fn(move || self.points.next(&mut at)).map(update)
    }

    /// All ranges in order, for the dump.
    pub(super) fn all_ranges(&self) -> impl Iterator<Item = &HoleRange> {
        self.holes.all()
    }

    /// Takes in a point of a dump as it is.
    pub(super) fn restore_point(&mut self, update: Update) -> bool {
        let key = Key::new(update.line.0, update.block.0, update.birth.0);
        self.moves |= matches!(update.change, Change::Moved { .. });
        update.block.0 < MAX_BLOCKS
            && self.points.find(key).is_none()
            && self.points.insert(key, pack(update.change))
    }

    /// Takes in a range of a dump as it is.
    pub(super) fn restore_range(&mut self, range: HoleRange) -> bool {
        range.end() <= MAX_BLOCKS && self.holes.put(range, |_, _| false)
    }
}

const KIND_SHIFT: u32 = 56;
const KIND_DATA: u64 = 0;
const KIND_HOLE: u64 = 1;
const KIND_MOVED: u64 = 2;

fn pack(change: Change) -> Value {
    match change {
        Change::Place(Place::Data { pba, crc }) => [KIND_DATA << KIND_SHIFT | pba.bits(), crc.into()],
        Change::Place(Place::Hole) => [KIND_HOLE << KIND_SHIFT, 0],
        Change::Moved { from, to } => [KIND_MOVED << KIND_SHIFT | to.bits(), from.bits()],
    }
}

fn unpack(value: Value) -> Change {
    let pba = Pba::from_bits(value[0] & ((1 << KIND_SHIFT) - 1));
    match value[0] >> KIND_SHIFT {
        KIND_DATA => Change::Place(Place::Data { pba, crc: value[1] as u32 }),
        KIND_HOLE => Change::Place(Place::Hole),
        _ => Change::Moved { from: Pba::from_bits(value[1]), to: pba },
    }
}

fn update((key, value): (Key, Value)) -> Update {
    Update {
        line: LineId(key.line()),
        block: BlockNo(key.block()),
        birth: Seq(key.birth()),
        change: unpack(value),
    }
}

/// Tells that a point's data is not referred to any more.
fn tell(key: Key, value: Value, gone: &mut impl FnMut(Gone)) {
    let pba = match unpack(value) {
        Change::Place(Place::Data { pba, .. }) => pba,
        Change::Place(Place::Hole) => return,
        Change::Moved { to, .. } => to,
    };
    gone(Gone { line: LineId(key.line()), birth: Seq(key.birth()), pba });
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
