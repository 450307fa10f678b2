//! What a merge tells of blocks, summed up until its trees count.
//!
//! Sums, not a list: a range that is unmapped may let go of every block of the pool. They are taken in turns of bounded
//! length (H15).

use std::collections::BTreeMap;

use super::Store;
use crate::index::Event;
use crate::types::{LineId, Pba, SegmentId, Seq};

/// Segments and pages that are counted until others on this core get their turn: some ten microseconds.
pub(super) const PER_TURN: usize = 1024;

/// By the place among a line's snapshots.
type Parts = BTreeMap<usize, (Seq, i64)>;

/// See the module.
pub(super) struct Counts<'a> {
    store: &'a Store,
    /// Live blocks that segments get or lose, by device and index.
    members: Vec<Vec<i32>>,
    /// Segments that stand in it.
    touched: Vec<SegmentId>,
    /// Data blocks that lines get or lose: of versions born between the same two snapshots, with the birth of one of them,
    /// which finds that part again when snapshots came or went meanwhile.
    lines: Vec<(LineId, Parts)>,
}

impl<'a> Counts<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, members: Vec::new(), touched: Vec::new(), lines: Vec::new() }
    }

    /// Of line `line`, whose snapshots are these while it is merged.
    pub(super) fn add(&mut self, line: LineId, snapshots: &[Seq], event: Event) {
        match event {
            Event::Added { birth, pba } => {
                self.born(line, snapshots, birth, 1);
                self.live(pba, 1);
            }
            Event::Dropped { birth, pba } => {
                self.born(line, snapshots, birth, -1);
                self.live(pba, -1);
            }
            Event::Moved { from, to, .. } => {
                self.live(from, -1);
                self.live(to, 1);
            }
            Event::Lapsed { .. } => {}
        }
    }

    fn live(&mut self, pba: Pba, blocks: i32) {
        let Some(id) = self.store.inner().space.segment_of(pba) else { return };
        let (member, index) = (usize::from(id.member()), id.index() as usize);
        if self.members.len() <= member {
            self.members.resize_with(member + 1, Vec::new);
        }
        let changes = &mut self.members[member];
        if changes.len() <= index {
            changes.resize(index + 1, 0);
        }
        if changes[index] == 0 {
            self.touched.push(id);
        }
        changes[index] += blocks;
    }

    fn born(&mut self, line: LineId, snapshots: &[Seq], birth: Seq, blocks: i64) {
        if self.lines.last().is_none_or(|(last, _)| *last != line) {
            self.lines.push((line, Parts::new()));
        }
        let part = snapshots.partition_point(|&s| s <= birth);
        if let Some((_, parts)) = self.lines.last_mut() {
            parts.entry(part).or_insert((birth, 0)).1 += blocks;
        }
    }

    /// Counts live blocks of segments, in turns.
    pub(super) async fn count_segments(&mut self) {
        for ids in core::mem::take(&mut self.touched).chunks(PER_TURN) {
            {
                let mut inner = self.store.inner();
                for &id in ids {
                    let change = &mut self.members[usize::from(id.member())][id.index() as usize];
                    inner.space.change_live(id, core::mem::take(change));
                }
            }
            super::pages::aio_yield().await;
        }
    }

    /// Counts blocks of lines, at once.
    pub(super) fn count_lines(self) {
        let mut inner = self.store.inner();
        for (id, parts) in self.lines {
            let Some(line) = inner.lines.get_mut(id) else { continue };
            for (birth, blocks) in parts.into_values() {
                let at = line.interval(birth);
                line.born[at] = line.born[at].saturating_add_signed(blocks);
            }
        }
    }
}
