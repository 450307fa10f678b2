//! Changes a tree: a walk over the pages that something falls in, left to right, that writes new ones in their place.
//!
//! What it opens: pages that updates fall in ([`merge`]); pages that the cleaner wants out of their segment (*touched*);
//! leaves that may hold versions which nobody needs any more ([`purge`]); and, where too little is left for a page, the
//! next old page. All others stay, named by the new interior pages.

use super::cache::PageRef;
use super::delta::{Delta, Update};
use super::lookup::entry_before;
use super::packer::Packer;
use super::tree::{LineView, PREFETCH, PageAt, PageSink, PageTag, Spot, Tree, TreeError};
use super::weave::{Event, Last, Weave, spot};
use crate::format::page::{Child, Leaf};
use crate::types::{BlockNo, Seq};
use core::iter::Peekable;

/// Leaves after which others on this core get their turn (each takes up to ten microseconds).
const LEAVES_PER_BREATH: u32 = 2;

/// Where the next step of a purge begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PurgeCursor {
    block: BlockNo,
    birth: Seq,
}

impl PurgeCursor {
    /// Before the first leaf.
    pub const START: Self = Self { block: BlockNo(0), birth: Seq::MAX };

    /// The block whose leaf comes next: for a cursor that outlives the process.
    pub const fn block(self) -> BlockNo {
        self.block
    }

    /// At the first leaf that may concern `block`.
    pub const fn at(block: BlockNo) -> Self {
        Self { block, birth: Seq::MAX }
    }
}

/// Brings what `delta` knows of the tree's line into the tree, leaves out what nobody needs, and writes the `touched`
/// pages anew. `events` is told what became of each block of data; both it and [`PageSink::dropped`] count only when this
/// succeeds. The tree as it was stays readable. Dropping the future gives it up.
pub async fn merge<S: PageSink>(
    sink: &S,
    tree: &Tree,
    delta: &Delta,
    view: LineView<'_>,
    touched: &[PageTag],
    events: impl FnMut(Event),
) -> Result<Tree, TreeError<S::Error>> {
    let points = || delta.points_from(tree.line, BlockNo(0));
    let ranges = delta.ranges_over(tree.line, BlockNo(0), BlockNo(u64::MAX)).copied().collect();
    let mut touched = touched.iter().filter(|tag| tag.line == tree.line).copied().collect::<Vec<_>>();
    touched.sort_by_key(|tag| (Spot::new(tag.block, tag.birth), tag.level));
    let weave = Weave::new(points(), ranges, view, events);
    let mut walk = Walk::new(sink, tree, weave, points());
    walk.touched = touched;
    walk.run().await.map(|(tree, _)| tree)
}

/// Leaves out versions that nobody needs since a snapshot or the head went: those born at `since` or later (the epoch of
/// the snapshot before the one that went, or of the last one when the head went). Looks into at most `most_leaves`
/// leaves from `cursor` on; the new tree, and where to go on, if anywhere.
pub async fn purge<S: PageSink>(
    sink: &S,
    tree: &Tree,
    cursor: PurgeCursor,
    view: LineView<'_>,
    since: Seq,
    most_leaves: u32,
    events: impl FnMut(Event),
) -> Result<(Tree, Option<PurgeCursor>), TreeError<S::Error>> {
    let weave = Weave::new(core::iter::empty(), Vec::new(), view, events);
    let mut walk = Walk::new(sink, tree, weave, core::iter::empty());
    let from = Spot::new(cursor.block, cursor.birth);
    walk.purge = Some(Purge { from, since, left: most_leaves.max(1), next: None });
    walk.run().await
}

struct Purge {
    from: Spot,
    since: Seq,
    left: u32,
    next: Option<PurgeCursor>,
}

/// An interior page that is being worked through.
struct Frame {
    child: Child,
    page: PageRef,
    at: PageAt,
    fence: Spot,
    leftmost: bool,
    next: usize,
    prefetched: usize,
    /// Of the packer, and of what was changed, when the page was opened: it can be kept if nothing came of it.
    mark: Option<usize>,
    changes: u64,
}

struct Walk<'a, S: PageSink, P: Iterator<Item = Update>, F> {
    sink: &'a S,
    tree: Tree,
    weave: Weave<'a, P, F>,
    packer: Packer<'a, S>,
    /// The points again, ahead of the walk, to see what will be read.
    ahead: Peekable<P>,
    touched: Vec<PageTag>,
    purge: Option<Purge>,
    stack: Vec<Frame>,
    /// Leaves written anew, or pages that had to be.
    changes: u64,
    leaves: u32,
    /// Memory of the last leaf's entries, for the next one's.
    spare: Vec<Leaf>,
}

/// Why a page is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Something may concern what is below it.
    Maybe,
    /// It has to be written anew.
    Surely,
}

impl<'a, S, P, F> Walk<'a, S, P, F>
where
    S: PageSink,
    P: Iterator<Item = Update>,
    F: FnMut(Event),
{
    fn new(sink: &'a S, tree: &Tree, weave: Weave<'a, P, F>, ahead: P) -> Self {
        Self {
            sink,
            tree: *tree,
            weave,
            packer: Packer::new(sink, tree.line),
            ahead: ahead.peekable(),
            touched: Vec::new(),
            purge: None,
            stack: Vec::new(),
            changes: 0,
            leaves: 0,
            spare: Vec::new(),
        }
    }

    async fn run(mut self) -> Result<(Tree, Option<PurgeCursor>), TreeError<S::Error>> {
        match self.tree.top() {
            None => self.leaf(None, Spot::END, true, Open::Surely).await?,
            Some(top) => {
                let page = match self.sink.read(&top).await {
                    Ok(page) => page,
                    Err(error) => {
                        let (first, end) = self.weave.leave_out(Spot::END);
                        self.sink.unreadable(&top, first, end, error)?;
                        return Ok((self.tree, None));
                    }
                };
                let first = match page.view().child(0) {
                    Some(child) => (child.block, child.birth),
                    None => {
                        page.view().leaf(0).map_or((BlockNo(0), Seq::MAX), |l| (l.block, l.version.birth))
                    }
                };
                let child = Child { block: first.0, birth: first.1, ptr: top.ptr };
                let open = self.wanted(&child, top.level, Spot::END, true).unwrap_or(Open::Maybe);
                self.open(child, top, page, Spot::END, true, open).await?;
            }
        }
        while let Some(frame) = self.stack.last_mut() {
            let view = frame.page.view();
            let Some(child) = view.child(frame.next) else {
                self.close().await?;
                continue;
            };
            let leftmost = frame.leftmost && frame.next == 0;
            frame.next += 1;
            let fence = view.child(frame.next).map_or(frame.fence, |next| Spot::new(next.block, next.birth));
            let at = frame.at.below(child.ptr);
            self.prefetch();
            match self.wanted(&child, at.level, fence, leftmost) {
                Some(open) => match self.sink.read(&at).await {
                    Ok(page) => self.open(child, at, page, fence, leftmost, open).await?,
                    Err(error) => {
                        let (first, end) = self.weave.leave_out(fence);
                        self.sink.unreadable(&at, first, end, error)?;
                        self.packer.keep(at.level, child).await?;
                    }
                },
                None => {
                    self.weave.last = None;
                    self.packer.keep(at.level, child).await?;
                }
            }
        }
        let next = self.purge.and_then(|purge| purge.next);
        if self.changes == 0 {
            return Ok((self.tree, next));
        }
        Ok((self.packer.finish().await?, next))
    }

    /// Whether a page has to be opened.
    fn wanted(&mut self, child: &Child, level: u8, fence: Spot, leftmost: bool) -> Option<Open> {
        let own = Spot::new(child.block, child.birth);
        let from = if leftmost { Spot { block: 0, birth: Seq::MAX } } else { own };
        let done = self.touched.partition_point(|tag| Spot::new(tag.block, tag.birth) < own);
        let inside = self.touched[done..].iter().take_while(|tag| Spot::new(tag.block, tag.birth) < fence);
        let mut open = None;
        for tag in inside.filter(|tag| tag.level <= level) {
            let exact = tag.level == level && Spot::new(tag.block, tag.birth) == own;
            open = if exact { Some(Open::Surely) } else { open.or(Some(Open::Maybe)) };
            if exact {
                break;
            }
        }
        if open != Some(Open::Surely) && self.packer.wants_more(level) {
            open = Some(Open::Surely);
        }
        if open.is_none() && self.weave.reaches(from, fence) {
            open = Some(Open::Maybe);
        }
        if let Some(purge) = &mut self.purge
            && child.ptr.newest >= purge.since
            && fence > purge.from
            && purge.next.is_none()
        {
            if purge.left == 0 {
                let spot = own.max(purge.from);
                purge.next = Some(PurgeCursor { block: BlockNo(spot.block), birth: spot.birth });
            } else {
                open = open.or(Some(Open::Maybe));
            }
        }
        open
    }

    async fn open(
        &mut self,
        child: Child,
        at: PageAt,
        page: PageRef,
        fence: Spot,
        leftmost: bool,
        open: Open,
    ) -> Result<(), TreeError<S::Error>> {
        if at.level == 0 {
            return self.leaf(Some((child, at, page)), fence, leftmost, open).await;
        }
        let mark = match open {
            Open::Maybe => self.packer.mark(at.level - 1),
            Open::Surely => {
                self.changes += 1;
                None
            }
        };
        let changes = self.changes;
        self.stack.push(Frame { child, page, at, fence, leftmost, next: 0, prefetched: 0, mark, changes });
        Ok(())
    }

    /// All children of the page on top of the stack are done.
    async fn close(&mut self) -> Result<(), TreeError<S::Error>> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let level = frame.at.level - 1;
        let count = frame.page.view().len();
        if let Some(mark) = frame.mark
            && frame.changes == self.changes
            && self.packer.retract(level, mark, count)
        {
            return self.packer.keep(frame.at.level, frame.child).await;
        }
        self.sink.dropped(&frame.at);
        Ok(())
    }

    async fn leaf(
        &mut self,
        old: Option<(Child, PageAt, PageRef)>,
        fence: Spot,
        leftmost: bool,
        open: Open,
    ) -> Result<(), TreeError<S::Error>> {
        self.leaves += 1;
        if self.leaves.is_multiple_of(LEAVES_PER_BREATH) {
            self.sink.breathe().await;
        }
        let mut entries = core::mem::take(&mut self.spare);
        entries.clear();
        if let Some((_, _, page)) = &old {
            let view = page.view();
            entries.extend((0..view.len()).filter_map(|i| view.leaf(i)));
        }
        let purging = self.purge.as_ref().is_some_and(|purge| purge.left > 0);
        if let (true, false, None, Some(first)) = (purging, leftmost, self.weave.last, entries.first()) {
            // When it cannot be read, what this leaf begins with is kept.
            let before = entry_before(self.sink, &self.tree, first.block, first.version.birth).await;
            let before = before.ok().flatten();
            self.weave.last = before.map(|leaf| Last { block: leaf.block.0, birth: leaf.version.birth });
        }
        let mut job = self.weave.begin(entries, fence, leftmost);
        let mut rewrite = open == Open::Surely || self.weave.applies(&job);
        if let Some(purge) = &mut self.purge
            && purge.left > 0
        {
            purge.left -= 1;
            rewrite |= self.weave.has_garbage(&job);
        }
        match old {
            Some((child, at, _)) if !rewrite => {
                self.weave.skip(&job);
                self.spare = job.into_entries();
                return self.packer.keep(at.level, child).await;
            }
            Some((_, at, _)) => self.sink.dropped(&at),
            None => {}
        }
        self.changes += 1;
        while self.weave.step(&mut job, &mut self.packer) {
            self.packer.drain().await?;
        }
        self.spare = job.into_entries();
        Ok(())
    }

    /// Asks for the leaves that come next.
    fn prefetch(&mut self) {
        let Some(frame) = self.stack.last_mut().filter(|frame| frame.at.level == 1) else { return };
        let view = frame.page.view();
        let stop = (frame.next + PREFETCH).min(view.len());
        while frame.prefetched < stop {
            let Some(child) = view.child(frame.prefetched) else { return };
            frame.prefetched += 1;
            let own = Spot::new(child.block, child.birth);
            let after = view.child(frame.prefetched);
            let fence = after.map_or(frame.fence, |next| Spot::new(next.block, next.birth));
            let mut wanted = false;
            while self.ahead.next_if(|update| spot(update) < fence).is_some() {
                wanted = true;
            }
            let from = if frame.leftmost && frame.prefetched == 1 { 0 } else { own.block };
            wanted |= self.weave.range_reaches(from, fence.block);
            wanted |= self
                .purge
                .as_ref()
                .is_some_and(|p| child.ptr.newest >= p.since && fence > p.from && p.left > 0);
            if wanted {
                self.sink.prefetch(&frame.at.below(child.ptr));
            }
        }
    }
}
