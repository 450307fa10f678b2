//! Which ranges of a line hold something, and which changed since an epoch: the leaves in order, with the deltas over
//! them. Subtrees that are older than what is asked for are not read, so "what changed" costs about its answer.

use super::cache::PageRef;
use super::delta::{Change, Delta};
use super::tree::{PREFETCH, PageAt, PageSource, Tree};
use crate::format::page::{Leaf, MAX_BLOCKS};
use crate::types::{BlockNo, Place, Seq};

/// Most points of one delta that are worked on without a pause.
const POINTS_AT_ONCE: usize = 2048;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// First block.
    pub from: BlockNo,
    /// Block behind the last.
    pub end: BlockNo,
    /// As seen at this epoch: versions born before it. [`Seq::MAX`]: as the head sees it.
    pub before: Seq,
    /// Only blocks whose version was born at this epoch or later. [`Seq::ZERO`]: all that have one.
    pub since: Seq,
    /// Most spans in the answer; at least one.
    pub most_spans: usize,
    /// Leaves after which the answer ends, once it is further than where it began: what it costs is bounded, whatever it finds.
    pub most_leaves: usize,
}

impl Query {
    /// All that has an entry, as seen at `before`.
    pub const fn allocated(before: Seq, from: BlockNo, end: BlockNo, most_spans: usize) -> Self {
        Self { from, end, before, since: Seq::ZERO, most_spans, most_leaves: usize::MAX }
    }

    /// What a head wrote or unmapped since `epoch`.
    pub const fn changed_since(epoch: Seq, from: BlockNo, end: BlockNo, most_spans: usize) -> Self {
        Self { from, end, before: Seq::MAX, since: epoch, most_spans, most_leaves: usize::MAX }
    }
}

/// Blocks side by side that all have data, or are all holes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First block.
    pub first: BlockNo,
    /// Blocks.
    pub count: u64,
    /// False: they were unmapped or zeroed, and hide what a parent has.
    pub data: bool,
}

/// A part of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spans {
    /// In order.
    pub spans: Vec<Span>,
    /// Where to ask on; `None` when this was all.
    pub next: Option<BlockNo>,
}

/// The layers over the tree, each consulted between two waits: calls its argument with each delta.
pub trait Layers {
    /// Calls `visit` with every delta that is over the tree. Their order does not matter.
    fn each(&self, visit: &mut dyn FnMut(&Delta));
}

impl Layers for [&Delta] {
    fn each(&self, visit: &mut dyn FnMut(&Delta)) {
        self.iter().for_each(|delta| visit(delta));
    }
}

/// Answers a query. `tree` and `layers` have to belong together until it is done: a merge that empties a delta has to
/// wait, or the query to be asked again. What is put into a delta meanwhile may or may not be in the answer.
pub async fn query<S: PageSource, L: Layers + ?Sized>(
    source: &S,
    tree: &Tree,
    layers: &L,
    query: &Query,
) -> Result<Spans, S::Error> {
    let end = query.end.0.min(MAX_BLOCKS);
    let mut answer = Answer { spans: Vec::new(), most: query.most_spans.max(1) };
    let mut walk = Regions::new(source, tree, query).await?;
    let mut at = query.from.0;
    let mut leaves = 0;
    while at < end {
        // Leaves of versions that are too new for the question do not lead on.
        if leaves >= query.most_leaves && at > query.from.0 {
            return Ok(Spans { spans: answer.spans, next: Some(BlockNo(at)) });
        }
        leaves += 1;
        let mut region = walk.next(at).await?;
        region.end = region.end.min(end);
        while at < region.end {
            let cut = overlay(tree, layers, query, at, region.end, &mut region.items);
            if let Err(next) = sweep(&region.items, at, cut, query.since, &mut answer) {
                return Ok(Spans { spans: answer.spans, next: Some(BlockNo(next)) });
            }
            region.items.retain(|item| item.tree && item.end > cut);
            at = cut;
            source.breathe().await;
        }
    }
    Ok(Spans { spans: answer.spans, next: None })
}

/// Blocks that have a version in one of the layers.
#[derive(Clone, Copy)]
struct Item {
    first: u64,
    end: u64,
    birth: Seq,
    data: bool,
    tree: bool,
}

struct Answer {
    spans: Vec<Span>,
    most: usize,
}

impl Answer {
    /// False when there is no room.
    fn push(&mut self, first: u64, end: u64, data: bool) -> bool {
        if let Some(last) = self.spans.last_mut()
            && last.data == data
            && last.first.0 + last.count == first
        {
            last.count += end - first;
            return true;
        }
        let room = self.spans.len() < self.most;
        if room {
            self.spans.push(Span { first: BlockNo(first), count: end - first, data });
        }
        room
    }
}

/// Adds what the deltas have between `at` and `end`; where that was cut short.
fn overlay<L: Layers + ?Sized>(
    tree: &Tree,
    layers: &L,
    query: &Query,
    at: u64,
    end: u64,
    items: &mut Vec<Item>,
) -> u64 {
    let mut cut = end;
    layers.each(&mut |delta| {
        let mut last = None;
        let mut taken = 0;
        for update in delta.points_from(tree.line, BlockNo(at)) {
            let block = update.block.0;
            if block >= cut {
                break;
            }
            if last == Some(block) || update.birth >= query.before {
                continue;
            }
            if taken == POINTS_AT_ONCE {
                cut = block;
                break;
            }
            if let Change::Place(place) = update.change {
                last = Some(block);
                taken += 1;
                let data = place != Place::Hole;
                items.push(Item { first: block, end: block + 1, birth: update.birth, data, tree: false });
            }
        }
        for range in
            delta.ranges_over(tree.line, BlockNo(at), BlockNo(cut)).filter(|r| r.birth < query.before)
        {
            let (first, end) = (range.first.0, range.end());
            items.push(Item { first, end, birth: range.birth, data: false, tree: false });
        }
    });
    items.sort_by_key(|item| item.first);
    cut
}

/// Goes over `items`, in order of their first block, from `at` to `end`; of those over a block the newest counts. `Err`:
/// the answer is full, ask on from there.
fn sweep(items: &[Item], at: u64, end: u64, since: Seq, answer: &mut Answer) -> Result<(), u64> {
    let mut active: Vec<Item> = Vec::new();
    let mut coming = items.iter().peekable();
    let mut at = at;
    while at < end {
        while let Some(item) = coming.next_if(|item| item.first <= at) {
            active.push(*item);
        }
        active.retain(|item| item.end > at);
        let next = coming.peek().map_or(end, |item| item.first.min(end));
        let stop = active.iter().map(|item| item.end).min().map_or(next, |e| e.min(next));
        let newest = active.iter().max_by_key(|item| item.birth).filter(|item| item.birth >= since);
        if let Some(item) = newest
            && !answer.push(at, stop, item.data)
        {
            return Err(at);
        }
        at = stop;
    }
    Ok(())
}

/// A stretch of blocks with all that the tree has in it.
struct Region {
    end: u64,
    items: Vec<Item>,
}

/// Walks over the leaves in order, leaving out what is too old.
struct Regions<'a, S> {
    source: &'a S,
    query: &'a Query,
    /// Interior pages with the next child; a leaf, as the top, that is next.
    stack: Vec<Step>,
    leaf: Option<(PageRef, u64)>,
}

struct Step {
    at: PageAt,
    page: PageRef,
    next: usize,
    prefetched: usize,
    /// Block of the first key right of the page.
    fence: u64,
}

impl<'a, S: PageSource> Regions<'a, S> {
    async fn new(source: &'a S, tree: &Tree, query: &'a Query) -> Result<Self, S::Error> {
        let mut walk = Self { source, query, stack: Vec::new(), leaf: None };
        if let Some(top) = tree.top().filter(|top| top.ptr.newest >= query.since) {
            walk.enter(top, MAX_BLOCKS).await?;
        }
        Ok(walk)
    }

    async fn enter(&mut self, at: PageAt, fence: u64) -> Result<(), S::Error> {
        let page = self.source.read(&at).await?;
        if at.level == 0 {
            self.leaf = Some((page, fence));
            return Ok(());
        }
        // The run that reaches the first block begins in the child before, if anywhere.
        let next = page.view().lower_bound(self.query.from, Seq::MAX).saturating_sub(1);
        self.stack.push(Step { at, page, next, prefetched: next, fence });
        Ok(())
    }

    /// The stretch from block `from` to the end of the next leaf that is read.
    async fn next(&mut self, from: u64) -> Result<Region, S::Error> {
        loop {
            if let Some((page, fence)) = self.leaf.take() {
                return Ok(self.region(&page, from, fence));
            }
            let Some(step) = self.stack.last_mut() else {
                return Ok(Region { end: MAX_BLOCKS, items: Vec::new() });
            };
            let view = step.page.view();
            let Some(child) = view.child(step.next) else {
                self.stack.pop();
                continue;
            };
            step.next += 1;
            let fence = view.child(step.next).map_or(step.fence, |next| next.block.0);
            let at = step.at.below(child.ptr);
            if child.ptr.newest < self.query.since {
                continue;
            }
            let ahead = (step.next + PREFETCH).min(view.len());
            for index in step.prefetched.max(step.next)..ahead {
                let wanted = view
                    .child(index)
                    .filter(|c| c.ptr.newest >= self.query.since && c.block < self.query.end);
                if let Some(wanted) = wanted {
                    self.source.prefetch(&step.at.below(wanted.ptr));
                }
            }
            step.prefetched = step.prefetched.max(ahead);
            self.enter(at, fence).await?;
        }
    }

    fn region(&self, page: &PageRef, from: u64, fence: u64) -> Region {
        let view = page.view();
        let mut items: Vec<Item> = Vec::new();
        let mut end = fence;
        let mut last = None;
        for leaf in (0..view.len()).filter_map(|index| view.leaf(index)) {
            let Leaf { block, len_blocks, version } = leaf;
            if last == Some(block) || version.birth >= self.query.before || block.0 + len_blocks <= from {
                continue;
            }
            last = Some(block);
            let data = version.place != Place::Hole;
            let birth = version.birth;
            items.push(Item { first: block.0, end: block.0 + len_blocks, birth, data, tree: true });
        }
        // The versions of a block that go on in the next leaf: done with, or not begun.
        if last == Some(BlockNo(fence)) {
            end += 1;
        }
        Region { end: end.max(from), items }
    }
}
