//! Who sees what is lost: volumes and snapshots, also those of clones.

use std::rc::Rc;

use super::Scrubber;
use crate::LvsError;
use crate::index::{Change, Tree, newer_version, oldest_version};
use crate::info::{Harm, HarmKind};
use crate::store::pages::PageReader;
use crate::store::verify::Found;
use crate::store::{Inner, Store};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, Seq, is_needed};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Pieces of volumes that are named.
const MOST_HARMS: usize = 256;
/// Volumes and snapshots that are named for one piece: a thousand snapshots may see the same block.
const MOST_SEERS: usize = 16;

/// Blocks of a line, for whoever looks at a time after `born` and not after `until`.
#[derive(Clone, Copy)]
pub(super) struct Lost {
    pub(super) line: LineId,
    pub(super) first: BlockNo,
    pub(super) count: u64,
    pub(super) born: Seq,
    pub(super) until: Seq,
}

impl Scrubber {
    /// A block of data is lost. False when nobody sees it, or it is known already.
    pub(super) async fn lost_block(&self, found: &Found, kind: HarmKind) -> bool {
        let Found { line, block, birth, .. } = *found;
        // When the map cannot say what superseded it, it is taken for what the volume reads.
        let until = self.store.superseded(line, block, birth).await.unwrap_or(Seq::MAX);
        let lost = Lost { line, first: block, count: 1, born: birth, until };
        if self.store.scrub.report.borrow().harmed.len() >= MOST_HARMS {
            let needed = self.store.inner().is_needed(&lost);
            self.note(|report| report.harmed_left_out += u64::from(needed));
            return needed;
        }
        self.lost(lost, kind).await
    }

    /// The same of a range of blocks. Names who sees it.
    pub(super) async fn lost(&self, lost: Lost, kind: HarmKind) -> bool {
        let (seers, more) = self.store.seers(lost, kind).await;
        let mut news = more > 0;
        self.note(|report| {
            report.harmed_left_out += more;
            for harm in seers {
                news |= add(&mut report.harmed, &mut report.harmed_left_out, harm);
            }
        });
        news
    }
}

/// Adds a piece, to one that it continues if there is one. False when it is there already.
fn add(harmed: &mut Vec<Harm>, left_out: &mut u64, harm: Harm) -> bool {
    let end = |h: &Harm| h.offset_bytes + h.len_bytes;
    for known in harmed.iter_mut().filter(|h| h.uuid == harm.uuid && h.kind == harm.kind) {
        if known.offset_bytes <= harm.offset_bytes && end(&harm) <= end(known) {
            return false;
        }
        if end(known) == harm.offset_bytes {
            known.len_bytes += harm.len_bytes;
            return true;
        }
    }
    match harmed.len() < MOST_HARMS {
        true => harmed.push(harm),
        false => *left_out += 1,
    }
    true
}

impl Inner {
    fn is_needed(&self, lost: &Lost) -> bool {
        let line = self.lines.get(lost.line);
        line.is_some_and(|l| is_needed(lost.born, lost.until, &l.snapshots, l.head))
    }

    /// Those of one line, and how many of them are not named.
    fn seers_in_line(&self, lost: &Lost, kind: HarmKind, seers: &mut Vec<Harm>) -> u64 {
        let mut left_out = 0;
        let mut see = |uuid, name: &str, snapshot, size_bytes: u64| {
            let offset_bytes = lost.first.0.saturating_mul(BLOCK);
            let len_bytes = lost.count.saturating_mul(BLOCK).min(size_bytes.saturating_sub(offset_bytes));
            if len_bytes == 0 {
                return;
            }
            let harm = Harm { uuid, name: name.to_owned(), snapshot, offset_bytes, len_bytes, kind };
            match seers.len() < MOST_SEERS {
                true => seers.push(harm),
                false => left_out += 1,
            }
        };
        let volumes = self.catalogue.volumes.values().filter(|v| v.line == lost.line);
        for v in volumes.filter(|_| lost.until == Seq::MAX) {
            see(v.uuid, &v.name, false, v.size_bytes);
        }
        let seen = |epoch: Seq| lost.born < epoch && epoch <= lost.until;
        let snapshots = self.catalogue.snapshots.values();
        for s in snapshots.filter(|s| s.line == lost.line && seen(s.epoch)) {
            see(s.uuid, &s.name, true, s.size_bytes);
        }
        left_out
    }

    /// Clones that read the line as it was at such a time.
    fn clones_that_see(&self, lost: &Lost) -> Vec<LineId> {
        let seen = |epoch: Seq| lost.born < epoch && epoch <= lost.until;
        let reads = |parent: Option<(LineId, Seq)>| parent.is_some_and(|(p, e)| p == lost.line && seen(e));
        self.lines.iter().filter(|l| reads(l.parent)).map(|l| l.id).collect()
    }

    /// The oldest birth above `born` that the layers over the tree have of a block.
    fn born_after(&self, line: LineId, block: BlockNo, born: Seq) -> Option<Seq> {
        let layers = [Some(&self.active), self.frozen.as_deref(), self.aside.as_ref()];
        let of = |delta: &crate::index::Delta| {
            let points = delta.points_from(line, block).take_while(|u| u.block == block);
            let points = points.filter(|u| matches!(u.change, Change::Place(_))).map(|u| u.birth);
            let ranges = delta.ranges_over(line, block, BlockNo(block.0 + 1)).map(|r| r.birth);
            points.chain(ranges).filter(|birth| *birth > born).min()
        };
        layers.into_iter().flatten().filter_map(of).min()
    }
}

impl Store {
    /// When the data of a block that was born at `birth` was superseded; [`Seq::MAX`]: it was not.
    async fn superseded(self: &Rc<Self>, line: LineId, block: BlockNo, birth: Seq) -> Result<Seq, LvsError> {
        let tree = self.inner().tree(line).unwrap_or(Tree { line, root: None });
        let in_tree = newer_version(&PageReader(self.clone()), &tree, block, birth).await?;
        // After the tree: what was merged meanwhile is in it, or still in its layer.
        let above = self.inner().born_after(line, block, birth);
        Ok(in_tree.into_iter().chain(above).min().unwrap_or(Seq::MAX))
    }

    /// When a clone first wrote or unmapped a block; [`Seq::MAX`]: it did not, and reads that of its parent.
    async fn first_written(self: &Rc<Self>, line: LineId, block: BlockNo) -> Seq {
        let tree = self.inner().tree(line).unwrap_or(Tree { line, root: None });
        let in_tree = oldest_version(&PageReader(self.clone()), &tree, block).await.unwrap_or(None);
        let above = self.inner().born_after(line, block, Seq::ZERO);
        in_tree.into_iter().chain(above).min().unwrap_or(Seq::MAX)
    }

    /// Who sees it, and how many more.
    async fn seers(self: &Rc<Self>, lost: Lost, kind: HarmKind) -> (Vec<Harm>, u64) {
        let (mut seers, mut left_out) = (Vec::new(), 0);
        let mut lines = vec![lost];
        while let Some(lost) = lines.pop() {
            let clones = {
                let inner = self.inner();
                left_out += inner.seers_in_line(&lost, kind, &mut seers);
                inner.clones_that_see(&lost)
            };
            for line in clones {
                // Of a range a clone may have written some.
                let until = match lost.count {
                    1 => self.first_written(line, lost.first).await,
                    _ => Seq::MAX,
                };
                lines.push(Lost { line, born: Seq::ZERO, until, ..lost });
            }
        }
        (seers, left_out)
    }
}
