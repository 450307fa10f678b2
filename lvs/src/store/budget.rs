//! Space of the pool: what is spoken for, who waits for it, and how hard the cleaner has to work (H18).
//!
//! Free segments are taken by records, by what the cleaner moves, and by the pages of checkpoints, and only a checkpoint
//! gives some back. So each class stops at its own mark, in this order:
//! - records with payload of volumes stop where a checkpoint of all that is in the deltas, at worst, and a round of the
//!   cleaner would just fit: the *reserve*;
//! - records that only unmap leave three named segments, the catalogue two, the cleaner none;
//! - checkpoints take what they need, named segments too.
//!
//! What volumes may hold is less than what there is by more than all of that, so behind the reserve there is always
//! garbage to clean.

use aio::time::Instant;

use super::Inner;
use super::lines::Line;
use super::log::{Flow, Marks};
use super::space::State;
use crate::index::{Delta, DeltaHit, HoleRange, Lookup, PageAt, Tree, lookup_in};
use crate::types::{BlockNo, LineId, Place, SegmentId, Seq, Version};

/// Named segments that records with payload of volumes leave.
pub(super) const KEEP_FROM_DATA: usize = 3;
/// Named segments that records leave which only unmap.
pub(super) const KEEP_FROM_HOLES: usize = 2;
/// Named segments that the catalogue leaves.
pub(super) const KEEP_FROM_CATALOGUE: usize = 1;
/// Segments of the reserve beside a checkpoint: those that holes, the catalogue and the cleaner keep from each other.
const RESERVE_BESIDE: u64 = 3;
/// Segments that the reserve of a large pool has for moves beyond that: much cleaning for each checkpoint. One in so many of
/// the pool's, and the most.
const MOVES: (u32, u64) = (256, 16);
/// Segments' worth of updates that may come between two looks at the reserve: what the open segment takes, and the moves of a
/// round of the cleaner.
const AHEAD_SEGMENTS: u64 = 3;
/// Segments that are open, or held for the tables of the newest checkpoint.
const PINNED_SEGMENTS: u64 = 7;
/// Blocks of tables of a new pool.
const LEAST_TABLES: u64 = 8;
/// The cleaner's share of what is written to the log: at the target, and where it hurries. In percent.
const SHARE: (u64, u64) = (10, 90);
/// It hurries, and volumes get what it gains, when this part of the way from target to reserve is used up. The rest is for
/// what is cleaned and waits for a checkpoint: few of them do for much cleaning then.
const HURRY_BELOW: u64 = 4;

/// What the store knows of its space beside the segments.
#[derive(Default)]
pub(super) struct Budget {
    /// Thin writes that wait for a merge to tell what is free.
    pub(super) parked: Vec<u32>,
    /// The newest record that a merge has counted.
    pub(super) merged: Seq,
    /// Blocks that were unmapped since the last merge, and those that are being merged.
    pub(super) unmapped: (u64, u64),
    /// Those of them of lines with snapshots: their leaves are not dropped but written anew.
    pub(super) pierced: (u64, u64),
    /// Promised to volumes that are being made.
    pub(super) promised: u64,
    /// Where the log stood when what is frozen was.
    pub(super) marks: Marks,
    /// Blocks of the newest checkpoint's tables.
    pub(super) tables: u64,
    /// Lines without a tree that can be written to.
    pub(super) rootless: u64,
    /// The cleaner is at work.
    pub(super) cleaner_works: bool,
    /// Blocks that it gained and volumes did not use yet.
    pub(super) credit: i64,
    /// The cleaner should look.
    pub(super) want_cleaning: bool,
    /// Segments that may be cleaned next, the best one last.
    pub(super) victims: Vec<SegmentId>,
    /// Segments that were cleaned and are not empty: not worth another try before they are counted.
    pub(super) doubtful: Vec<SegmentId>,
    /// Nothing could be gained by cleaning: not before the log is there.
    pub(super) rest_until: Seq,
    /// A checkpoint did not fit: the next try.
    pub(super) retry_at: Option<Instant>,
    /// When a volume was written last.
    pub(super) host_at: Instant,
    /// What was written.
    pub(super) written: Written,
}

/// Blocks written since the pool was opened, by what they are.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Written {
    /// Payload of volumes.
    pub(super) data: u64,
    /// Headers, changes of the catalogue, notes.
    pub(super) headers: u64,
    /// Moved by the cleaner, headers included.
    pub(super) moved: u64,
    /// Map pages and tables, headers included.
    pub(super) pages: u64,
}

/// Most pages that the merge of `updates` may write, in trees of `pages` pages of which `rootless` have none yet.
///
/// An update falls into one leaf. A leaf that became too small makes its neighbour be written, too; one that became too
/// full makes two, which takes half a leaf of updates. The same holds for the levels above, which have at most one page
/// for 25 below. `pierced` blocks were unmapped that snapshots keep: a leaf of them (a quarter full, two versions a block)
/// becomes two.
fn merge_pages(updates: u64, pierced: u64, pages: u64, rootless: u64) -> u64 {
    if updates == 0 {
        return 0;
    }
    let leaves = (2 * updates).min(pages) + updates / 64 + rootless.min(updates) + 2;
    let leaves = leaves + 2 * pierced.div_ceil(21).min(pages);
    leaves + 2 * (2 * leaves).min((pages + leaves) / 24 + 8)
}

impl Inner {
    /// Segments that checkpoints of all that is in the deltas may take, when `more` updates come.
    pub(super) fn checkpoint_segments(&self, more: u64) -> u64 {
        self.checkpoint_with(more, 0)
    }

    /// The same, when `pierced` blocks of snapshots are unmapped besides.
    fn checkpoint_with(&self, more: u64, pierced: u64) -> u64 {
        let updates = |delta: &Delta| (delta.len().0 + 2 * delta.len().1) as u64;
        let (pages, rootless) = (self.space.map_pages(), self.budget.rootless);
        let coming = updates(&self.active) + (self.reserved.0 + 2 * self.reserved.1) as u64;
        let touched = self.touched.len() as u64;
        let pierced = (pierced + self.budget.pierced.0, self.budget.pierced.1);
        let mut blocks = merge_pages(coming + more + touched, pierced.0, pages, rootless);
        if let Some(frozen) = &self.frozen {
            blocks += merge_pages(updates(frozen) + touched, pierced.1, pages, rootless);
        }
        let tables = self.budget.tables.max(LEAST_TABLES);
        blocks += tables * (1 + u64::from(self.frozen.is_some()));
        // A header for each 96, and what is lost at the ends of segments of both copies.
        (blocks + blocks / 64).div_ceil(u64::from(self.space.segment_blocks())) + 2
    }

    /// Segments that have to be free or named so that volumes may write.
    pub(super) fn reserve_segments(&self) -> u64 {
        let ahead = AHEAD_SEGMENTS * u64::from(self.space.segment_blocks());
        let ahead = ahead.min(super::DELTA_UPDATES as u64 - (self.active.len().0 as u64).min(ahead));
        let moves = u64::from(self.space.staying(None) / MOVES.0).min(MOVES.1);
        RESERVE_BESIDE + moves + self.checkpoint_segments(ahead)
    }

    /// So many segments the cleaner wants free or named.
    fn target_segments(&self, reserve: u64) -> u64 {
        let total = u64::from(self.space.staying(None));
        let live = self.space.live().div_ceil(u64::from(self.space.segment_blocks()));
        // Garbage is what makes cleaning cheap: most of what is not needed is left to it.
        let spare = total.saturating_sub(live + PINNED_SEGMENTS + reserve);
        reserve + (total / 16).min(spare / 3).clamp(2, 256)
    }

    /// Can a record of volumes with payload be placed?
    pub(super) fn room_for_data(&mut self, blocks: u32) -> bool {
        let opened = self.space.opened_hot();
        let reserve = self.reserve_segments();
        let room = u64::from(self.space.available()) > reserve
            && (self.budget.credit > 0 || !self.is_throttled(reserve))
            && self.log.make_room(Flow::Hot, 1 + blocks, KEEP_FROM_DATA, &mut self.space);
        self.budget.want_cleaning |= self.space.opened_hot() != opened;
        room
    }

    /// Do volumes get only what cleaning gains? Otherwise they would use up in a burst what is free, and then stand still
    /// until there is some again.
    fn is_throttled(&self, reserve: u64) -> bool {
        if !self.budget.cleaner_works {
            return false;
        }
        let target = self.target_segments(reserve);
        let at_hand = u64::from(self.space.available()) + self.coming();
        at_hand < target - (target - reserve) / HURRY_BELOW
    }

    /// A record of so many blocks of volumes is placed: while they are throttled, that is counted.
    pub(super) fn spend(&mut self, blocks: u32) {
        if self.budget.cleaner_works && self.is_throttled(self.reserve_segments()) {
            self.budget.credit -= i64::from(blocks);
        }
    }

    /// The cleaner gained so many blocks: volumes may use most of them.
    pub(super) fn earn(&mut self, blocks: u32) {
        let most = 4 * i64::from(self.space.segment_blocks());
        self.budget.credit = (self.budget.credit + i64::from(blocks) * 15 / 16).min(most);
    }

    /// A checkpoint wrote so many blocks: volumes cannot have them.
    pub(super) fn wrote_pages(&mut self, blocks: u32) {
        self.budget.written.pages += u64::from(blocks);
        let least = -4 * i64::from(self.space.segment_blocks());
        self.budget.credit = (self.budget.credit - i64::from(blocks)).max(least);
    }

    /// Can a record that only unmaps be placed?
    pub(super) fn room_for_holes(&mut self) -> bool {
        self.log.make_room(Flow::Hot, 1, KEEP_FROM_HOLES, &mut self.space)
    }

    /// Blocks that unmapping a range adds to what snapshots make expensive.
    pub(super) fn pierces(&self, hole: &HoleRange) -> u64 {
        let snapshots = self.lines.get(hole.line).is_some_and(|line| !line.snapshots.is_empty());
        if snapshots { hole.count } else { 0 }
    }

    /// Can the next checkpoint pay for this unmapped range? Alone it goes through anyway.
    pub(super) fn affords(&self, hole: &HoleRange) -> bool {
        let pierced = self.pierces(hole);
        pierced == 0
            || self.budget.pierced.0 == 0
            || self.checkpoint_with(2, pierced) < u64::from(self.space.available())
    }

    /// Asks for what makes room for records: a checkpoint names what is free, the cleaner makes more free.
    pub(super) fn ask_for_room(&mut self) {
        self.budget.want_cleaning = true;
        if self.space.named() <= KEEP_FROM_DATA && self.can_name_more() {
            self.want_checkpoint = true;
        }
    }

    /// Do writes wait because no record can be placed?
    pub(super) fn has_no_room(&mut self) -> bool {
        let Some(&first) = self.pending.front() else { return false };
        let blocks = if self.ios[first].hole.is_some() { 0 } else { self.ios[first].count };
        !self.room_for_data(blocks)
    }

    /// Is it worth to begin cleaning?
    pub(super) fn wants_cleaning(&mut self) -> bool {
        self.budget.want_cleaning = false;
        let due = self.is_short() || (self.coming() > 0 && self.is_low());
        due && (self.log.last() >= self.budget.rest_until || self.has_no_room())
    }

    /// A checkpoint that did not fit should be tried again.
    pub(super) fn retry_due(&self) -> bool {
        self.budget.retry_at.is_some_and(|at| at <= self.now)
    }

    /// Are so few segments at hand, with those that the next checkpoint will free, that more have to be cleaned?
    pub(super) fn is_short(&self) -> bool {
        let coming = self.coming();
        self.fault.is_none()
            && u64::from(self.space.available()) + coming < self.target_segments(self.reserve_segments())
    }

    /// Is it time for a checkpoint that frees what was cleaned? Not before: each of them writes much of a small map anew.
    pub(super) fn frees_enough(&self) -> bool {
        let reserve = self.reserve_segments();
        let batch = (self.target_segments(reserve) - reserve) / 2;
        let coming = self.coming();
        coming > 0 && self.is_low() && (coming >= batch || !self.is_short())
    }

    /// Is little free?
    pub(super) fn is_low(&self) -> bool {
        let reserve = self.reserve_segments();
        let target = self.target_segments(reserve);
        u64::from(self.space.available()) <= reserve + (target - reserve) / 8
    }

    /// Segments that were cleaned and are not free yet.
    pub(super) fn coming(&self) -> u64 {
        let waits = |(id, _): &&(SegmentId, Seq)| {
            self.space.get(*id).is_some_and(|s| matches!(s.state, State::Log | State::Pages))
        };
        self.cleaning.iter().filter(waits).count() as u64
    }

    /// The cleaner's share of what the log takes, in percent; 100 when volumes cannot go on without it.
    pub(super) fn cleaner_share(&self) -> u64 {
        let (reserve, available) = (self.reserve_segments(), u64::from(self.space.available()));
        let target = self.target_segments(reserve);
        let band = (target - reserve) / HURRY_BELOW;
        let below = target.saturating_sub(available + self.coming());
        if available <= reserve || below > band || self.space.named() <= KEEP_FROM_DATA {
            return 100;
        }
        SHARE.0 + (SHARE.1 - SHARE.0) * below / band.max(1)
    }

    /// Blocks of the pool that are taken, at most: by volumes, by what was promised, and by more map than is left out of
    /// the capacity anyway.
    pub(super) fn taken_blocks(&self) -> u64 {
        let map = self.space.map_pages() + 2 * self.budget.tables;
        let excess = map.saturating_sub(self.space.map_allowance());
        self.used_blocks + self.thin_bound() + self.budget.promised + excess
    }

    /// How many of these blocks of a line would be new ones. An error names the map page that has to be read first.
    pub(super) fn new_blocks(&self, line: &Line, first: BlockNo, count: u32) -> Result<u64, PageAt> {
        let since = line.snapshots.last().copied().unwrap_or(Seq::ZERO);
        (0..u64::from(count))
            .try_fold(0, |new, i| Ok(new + u64::from(!self.supersedes(line, BlockNo(first.0 + i), since)?)))
    }

    /// Has the head written this block since `since`, so that one more version of it takes the place of that?
    fn supersedes(&self, line: &Line, block: BlockNo, since: Seq) -> Result<bool, PageAt> {
        let is_data = |v: Version| v.place != Place::Hole && v.birth >= since;
        let layers = [Some(&self.active), self.frozen.as_deref(), self.aside.as_ref()];
        for delta in layers.into_iter().flatten() {
            if let Some(DeltaHit::Version(v)) = delta.lookup(line.id, block, Seq::MAX) {
                return Ok(is_data(v));
            }
        }
        if line.root.is_none() {
            return Ok(false);
        }
        let tree = Tree { line: line.id, root: line.root };
        match lookup_in(|page| self.cache.borrow_mut().get(&page.ptr), &tree, block, Seq::MAX) {
            Lookup::Found(v) => Ok(is_data(v)),
            Lookup::Absent => Ok(false),
            Lookup::Missing(page) => Err(page),
        }
    }

    /// May a merge, or what is being deleted, make space that is not counted yet?
    pub(super) fn may_find_space(&self) -> bool {
        let unmapped = self.budget.unmapped.0 + self.budget.unmapped.1;
        self.thin_bound() + unmapped + self.budget.promised > 0
    }

    /// Is something being deleted, step by step?
    pub(super) fn is_purging(&self) -> bool {
        self.lines.iter().any(|l| l.purge.is_some() && !(l.is_dead() && self.lines.is_parent(l.id)))
    }

    /// Versions of a line that no merge has counted yet, at most.
    pub(super) fn uncounted(&self, line: LineId) -> u64 {
        let layers = [Some(&self.active), self.frozen.as_deref()];
        let points = layers.into_iter().flatten().map(|d| d.points_from(line, BlockNo(0)).count() as u64);
        points.sum::<u64>() + self.reserved.0 as u64
    }

    /// A merge has counted: those that waited for it are in line again.
    pub(super) fn unpark(&mut self) {
        while let Some(io) = self.budget.parked.pop() {
            self.pending.push_front(io);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h18_a_merge_is_bounded_by_its_updates_and_by_the_map() {
        assert_eq!(merge_pages(0, 0, 1000, 5), 0);
        // One update: a leaf and its neighbour, and two pages on each level above at most.
        assert!(merge_pages(1, 0, 1 << 20, 0) <= 20);
        // Everything is written anew: about all pages, and new leaves for what is added.
        let all = merge_pages(65_536, 0, 2_000, 0);
        assert!((2_000 + 65_536 / 168..4_000).contains(&all), "{all}");
        // More leaves than updates: two for each, and a 1/16 above.
        let many = merge_pages(65_536, 0, 3_000_000, 0);
        assert!((65_536..450_000).contains(&many), "{many}");
        // A range over all that snapshots hold: every leaf becomes two.
        let pierced = merge_pages(1, 1 << 30, 10_000, 0);
        assert!((20_000..30_000).contains(&pierced), "{pierced}");
    }
}
