//! What a damaged map page keeps out of its tree.
//!
//! A merge that has to look into a page of which no copy can be read leaves the page where it is, and what the log has of
//! the blocks below it *aside*: in a delta of its own, between the frozen one and the tree. So nothing that was written is
//! lost, what is written from now on is read, and what only the damaged page knew is reported as lost by whoever reads it.
//! The anchor carries the delta; an import takes it for a part of the log, and tries again. When it has half of what it
//! can hold, lines with damaged pages take no writes any more.

use super::{DELTA_RANGES, DELTA_UPDATES, Inner};
use crate::LvsError;
use crate::index::{Change, Delta};
use crate::types::{BlockNo, LineId, Place, Seq};

/// Updates that can be aside.
pub(super) const ASIDE_UPDATES: usize = DELTA_UPDATES / 2;
/// Unmapped ranges that can be aside.
pub(super) const ASIDE_RANGES: usize = DELTA_RANGES / 2;

impl Inner {
    /// What `frozen` has of these blocks of lines is not in their trees: it is kept aside.
    pub(super) fn set_aside(
        &mut self,
        frozen: &Delta,
        unreadable: &[(LineId, BlockNo, BlockNo)],
    ) -> Result<(), LvsError> {
        for &(id, first, end) in unreadable {
            let Some(line) = self.lines.get_mut(id) else { continue };
            line.damaged = true;
            let aside = self.aside.get_or_insert_with(|| Delta::with_capacity(ASIDE_UPDATES, ASIDE_RANGES));
            if !aside.take_in(frozen, id, (first, end), &line.snapshots) {
                let what = "a page of its map cannot be read, and too much was written below it";
                return Err(self.damaged(what));
            }
        }
        Ok(())
    }

    /// A line with damaged pages takes no writes while much is aside.
    pub(super) fn is_write_protected(&self, line: LineId) -> bool {
        self.aside.as_ref().is_some_and(|aside| {
            let (updates, ranges) = aside.room();
            let full = updates < ASIDE_UPDATES / 2 || ranges < ASIDE_RANGES / 2;
            full && self.lines.get(line).is_some_and(|l| l.damaged)
        })
    }

    /// Blocks that are aside.
    pub(super) fn aside_blocks(&self) -> u64 {
        self.aside.as_ref().map_or(0, |aside| aside.len().0 as u64)
    }

    /// What is aside, for the anchor; empty when there is nothing.
    pub(super) fn dump_aside(&self) -> Vec<u8> {
        let mut dump = Vec::new();
        if let Some(aside) = self.aside.as_ref().filter(|aside| !aside.is_empty()) {
            aside.dump(&mut dump);
        }
        dump
    }

    /// The segments of what is aside are not counted: they stay beyond a checkpoint before `seq`.
    pub(super) fn hold_aside(&mut self, seq: Seq) {
        let Some(aside) = &self.aside else { return };
        for line in aside.lines() {
            for update in aside.points_from(line, BlockNo(0)) {
                let pba = match update.change {
                    Change::Place(Place::Data { pba, .. }) | Change::Moved { to: pba, .. } => pba,
                    Change::Place(Place::Hole) => continue,
                };
                if let Some(id) = self.space.segment_of(pba) {
                    self.space.hold(id, seq);
                }
            }
        }
    }

    /// The line is gone: so is what it had aside.
    pub(super) fn forget_aside(&mut self, line: LineId) {
        if let Some(aside) = &mut self.aside {
            while !aside.remove_line(line, 4096, |_| {}) {}
        }
    }
}
