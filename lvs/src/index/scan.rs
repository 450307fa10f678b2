//! One leaf after the other, each found anew from the root: for slow walks that go on while the tree changes.
//!
//! Between two steps nothing is held, and the tree may be another one. What stands in both is seen exactly once; what came
//! or went meanwhile may be seen or not.

use super::tree::{PageAt, PageSource, Spot, Tree};
use crate::format::page::Leaf;
use crate::types::{BlockNo, Seq};

/// Where a walk goes on: a place in the order of keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cursor(Spot);

impl Cursor {
    /// Before everything.
    pub const START: Self = Self(Spot { block: 0, birth: Seq::MAX });

    /// The block of the next key.
    pub const fn block(self) -> BlockNo {
        BlockNo(self.0.block)
    }
}

/// What one step saw.
#[derive(Clone, Debug, Default)]
pub struct Scanned {
    /// Pages whose first key is at or behind where the step began, the leaf among them: each page is in one step's list.
    pub pages: Vec<PageAt>,
    /// Entries of the leaf that are at or behind where the step began.
    pub entries: Vec<Leaf>,
    /// Where to go on; `None` when this was the last leaf.
    pub next: Option<Cursor>,
}

/// A page on the way could not be read.
#[derive(Clone, Debug)]
pub struct Unread<E> {
    /// Which.
    pub page: PageAt,
    /// What is not known: from this block on,
    pub first: BlockNo,
    /// up to where the walk can go on; `None`: up to the end.
    pub next: Option<Cursor>,
    /// Why.
    pub error: E,
}

/// Looks at the leaf in which `from` falls. `None` when the tree is empty.
pub async fn scan<S: PageSource>(
    source: &S,
    tree: &Tree,
    from: Cursor,
) -> Result<Option<Scanned>, Unread<S::Error>> {
    let Some(mut at) = tree.top() else { return Ok(None) };
    let Cursor(from) = from;
    let mut seen = Scanned::default();
    let mut first = from;
    loop {
        let page = source.read(&at).await.map_err(|error| {
            let first = BlockNo(first.max(from).block);
            Unread { page: at, first, next: seen.next, error }
        })?;
        let view = page.view();
        // The first key that is not before `from`.
        let index = view.lower_bound(BlockNo(from.block), Seq(from.birth.0.saturating_add(1)));
        if index == 0 {
            seen.pages.push(at);
        }
        if at.level == 0 {
            seen.entries.extend((index..view.len()).filter_map(|index| view.leaf(index)));
            return Ok(Some(seen));
        }
        let key = |index: usize| view.child(index).map(|c| Spot::new(c.block, c.birth));
        let index = if key(index) == Some(from) { index } else { index.saturating_sub(1) };
        let Some(child) = view.child(index) else { return Ok(Some(seen)) };
        first = Spot::new(child.block, child.birth);
        if let Some(fence) = key(index + 1) {
            seen.next = Some(Cursor(fence));
        }
        at = at.below(child.ptr);
    }
}
