//! Packs entries that come in order into new pages, bottom up, between pages of the old tree that stay.
//!
//! Up to two pages' worth is held back on each level, so that a full page goes out only when at least another one
//! follows; what remains at the end of a stretch is one page or two halves. So entries in ascending order leave full
//! pages, and no page is left nearly empty next to another new one.

use super::tree::{PageSink, PageTag, Root, Tree, TreeError};
use crate::format::page::{Child, Leaf, MAX_RUN_BLOCKS, PAGE_BYTES, PageBuilder, PageSummary, Refused};
use crate::types::{LineId, PagePtr, Pba};

/// Appended pages after which others on this core get their turn (each takes up to ten microseconds of building).
const PAGES_PER_BREATH: u32 = 2;

/// The last group of holes, which the next one may lengthen.
struct HoleGroup {
    /// Of the pending leaf entries, the first of the group.
    start: usize,
    /// The block behind it.
    end: u64,
}

pub(super) struct Packer<'a, S> {
    sink: &'a S,
    line: LineId,
    leaf_capacity: usize,
    child_capacity: usize,
    leaves: Vec<Leaf>,
    /// `upper[n]`: children, pages of level `n`, that will stand in pages of level `n + 1`.
    upper: Vec<Vec<Child>>,
    last_holes: Option<HoleGroup>,
    appended: u32,
    page: Box<[u8; PAGE_BYTES]>,
}

impl<'a, S: PageSink> Packer<'a, S> {
    pub(super) fn new(sink: &'a S, line: LineId) -> Self {
        let (leaf_capacity, child_capacity) = sink.capacities();
        Self {
            sink,
            line,
            leaf_capacity,
            child_capacity,
            leaves: Vec::with_capacity(2 * leaf_capacity),
            upper: Vec::new(),
            last_holes: None,
            appended: 0,
            page: Box::new([0; PAGE_BYTES]),
        }
    }

    /// Adds all versions of a block or run, newest first. `holes` says that they are holes and all that there is of it:
    /// then they may continue the group before.
    pub(super) fn push(&mut self, group: &[Leaf], holes: bool) {
        let Some(first) = group.first() else { return };
        let end = first.block.0 + first.len_blocks;
        if holes && self.lengthen(group) {
            return;
        }
        self.last_holes = holes.then_some(HoleGroup { start: self.leaves.len(), end });
        self.leaves.extend_from_slice(group);
    }

    /// Adds versions of different blocks, none of which is a hole.
    pub(super) fn push_plain(&mut self, entries: &[Leaf]) {
        self.last_holes = None;
        self.leaves.extend_from_slice(entries);
    }

    /// Makes the group before longer by this one, when both are the same holes side by side.
    fn lengthen(&mut self, group: &[Leaf]) -> bool {
        let Some(last) = &mut self.last_holes else { return false };
        let before = &mut self.leaves[last.start..];
        let longer = before[0].len_blocks + group[0].len_blocks;
        let same = last.end == group[0].block.0
            && longer <= MAX_RUN_BLOCKS
            && before.len() == group.len()
            && before.iter().zip(group).all(|(a, b)| a.version == b.version);
        if same {
            before.iter_mut().for_each(|leaf| leaf.len_blocks = longer);
            last.end += group[0].len_blocks;
        }
        same
    }

    /// Writes out what is more than is held back.
    pub(super) async fn drain(&mut self) -> Result<(), TreeError<S::Error>> {
        while self.leaves.len() >= 2 * self.leaf_capacity {
            self.leaf_page(self.leaf_capacity).await?;
        }
        Ok(())
    }

    /// True when what is pending below or on `level` would make a page so small that the next old page of `level`
    /// should join it.
    pub(super) fn wants_more(&self, level: u8) -> bool {
        let small = |len: usize, capacity: usize| len > 0 && len < capacity / 4;
        small(self.leaves.len(), self.leaf_capacity)
            || self.upper.iter().take(level.into()).any(|pending| small(pending.len(), self.child_capacity))
    }

    /// Entries pending for pages of `level + 1`, if nothing is pending below: what [`retract`](Self::retract) needs.
    pub(super) fn mark(&self, level: u8) -> Option<usize> {
        let clean = self.leaves.is_empty() && self.upper.iter().take(level.into()).all(Vec::is_empty);
        clean.then(|| self.upper.get(usize::from(level)).map_or(0, Vec::len))
    }

    /// Takes back the last `count` children of `level`, if they are all that came since `mark`.
    pub(super) fn retract(&mut self, level: u8, mark: usize, count: usize) -> bool {
        let clean = self.mark(level) == Some(mark + count);
        if clean {
            self.upper[usize::from(level)].truncate(mark);
        }
        clean
    }

    /// An old page of `level` stays as it is.
    pub(super) async fn keep(&mut self, level: u8, child: Child) -> Result<(), TreeError<S::Error>> {
        self.flush_below(level.into()).await?;
        self.add_child(level.into(), child).await
    }

    /// Writes out all that is pending for pages of levels up to `level`.
    async fn flush_below(&mut self, level: usize) -> Result<(), TreeError<S::Error>> {
        while !self.leaves.is_empty() {
            let len = self.leaves.len();
            self.leaf_page(if len <= self.leaf_capacity { len } else { len.div_ceil(2) }).await?;
        }
        self.last_holes = None;
        for n in 0..level {
            while self.upper.get(n).is_some_and(|pending| !pending.is_empty()) {
                let len = self.upper[n].len();
                self.child_page(n, if len <= self.child_capacity { len } else { len.div_ceil(2) }).await?;
            }
        }
        Ok(())
    }

    /// The new tree.
    pub(super) async fn finish(mut self) -> Result<Tree, TreeError<S::Error>> {
        let mut level = 0;
        loop {
            self.flush_below(level).await?;
            let above = self.upper.iter().skip(level + 1).any(|pending| !pending.is_empty());
            match self.upper.get(level).map_or(&[][..], |pending| pending) {
                [only] if !above => {
                    let root = Some(Root { ptr: only.ptr, level: level as u8 });
                    return Ok(Tree { line: self.line, root });
                }
                [] if !above => return Ok(Tree { line: self.line, root: None }),
                _ => level += 1,
            }
        }
    }

    async fn add_child(&mut self, level: usize, child: Child) -> Result<(), TreeError<S::Error>> {
        let (mut level, mut child) = (level, child);
        loop {
            while self.upper.len() <= level {
                self.upper.push(Vec::with_capacity(2 * self.child_capacity));
            }
            self.upper[level].push(child);
            if self.upper[level].len() < 2 * self.child_capacity {
                return Ok(());
            }
            child = self.build_children(level, self.child_capacity).await?;
            level += 1;
        }
    }

    async fn leaf_page(&mut self, mut count: usize) -> Result<(), TreeError<S::Error>> {
        // The two holes of a run stay together: what covers a block is then told by one page.
        if let Some(next) = self.leaves.get(count).filter(|next| next.len_blocks > 1) {
            count -= usize::from(count > 1 && self.leaves[count - 1].block == next.block);
        }
        let mut builder = PageBuilder::new(&mut self.page, &self.sink.pool(), self.line, 0);
        let pushed = self.leaves[..count].iter().try_for_each(|leaf| builder.push_leaf(leaf));
        let summary = summarize(pushed, builder);
        let first = self.leaves[0].block;
        let summary = summary.ok_or(TreeError::Disorder { line: self.line, block: first })?;
        self.leaves.drain(..count);
        if let Some(last) = &mut self.last_holes {
            match last.start.checked_sub(count) {
                Some(start) => last.start = start,
                None => self.last_holes = None,
            }
        }
        let child = self.append(0, &summary).await?;
        self.add_child(0, child).await
    }

    async fn child_page(&mut self, level: usize, count: usize) -> Result<(), TreeError<S::Error>> {
        let child = self.build_children(level, count).await?;
        self.add_child(level + 1, child).await
    }

    /// Makes a page of the first `count` pending pages of `level`.
    async fn build_children(&mut self, level: usize, count: usize) -> Result<Child, TreeError<S::Error>> {
        let above = (level + 1) as u8;
        let mut builder = PageBuilder::new(&mut self.page, &self.sink.pool(), self.line, above);
        let pushed = self.upper[level][..count].iter().try_for_each(|child| builder.push_child(child));
        let summary = summarize(pushed, builder);
        let first = self.upper[level][0].block;
        let summary = summary.ok_or(TreeError::Disorder { line: self.line, block: first })?;
        self.upper[level].drain(..count);
        self.append(above, &summary).await
    }

    async fn append(&mut self, level: u8, summary: &PageSummary) -> Result<Child, TreeError<S::Error>> {
        let PageSummary { block, birth, newest, crc, .. } = *summary;
        let tag = PageTag { line: self.line, level, block, birth };
        let ptr = PagePtr { pba: Pba::NONE, copy: Pba::NONE, crc, newest };
        let (pba, copy) = self.sink.append(&self.page, &tag, &ptr).await?;
        self.appended += 1;
        if self.appended.is_multiple_of(PAGES_PER_BREATH) {
            self.sink.breathe().await;
        }
        Ok(Child { block, birth, ptr: PagePtr { pba, copy, ..ptr } })
    }
}

fn summarize(pushed: Result<(), Refused>, builder: PageBuilder<'_>) -> Option<PageSummary> {
    pushed.ok().and_then(|()| builder.finish())
}
