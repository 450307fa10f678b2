//! Looks at every page of a tree and says what is wrong with it in words: for the offline checker and for tests.

use super::cache::PageRef;
use super::tree::{PageAt, PageSource, Spot, Tree};
use crate::format::page::{Leaf, MAX_BLOCKS};
use crate::types::{BlockNo, Place, Seq};
use core::fmt::{self, Display};

/// Findings after which no more are kept: one damaged page near the top has many consequences.
const MOST_FINDINGS: usize = 1000;

/// What the checker tells while it goes through a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A page that could be read.
    Page(PageAt),
    /// An entry of a leaf.
    Entry(Leaf),
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The page.
    pub page: PageAt,
    /// What.
    pub what: String,
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PageAt { line, level, ptr } = &self.page;
        write!(f, "map of line {}, page at {} (level {level}): {}", line.0, ptr.pba, self.what)
    }
}

/// Reads all pages of the tree, left to right, tells `seen` what is there, and returns what is wrong. A page that cannot be
/// read is a finding, and what is below it is left out.
pub async fn check<S: PageSource>(source: &S, tree: &Tree, seen: impl FnMut(Seen)) -> Vec<Finding>
where
    S::Error: Display,
{
    let mut checker = Checker { seen, findings: Vec::new(), last: None };
    let mut stack = Vec::new();
    stack.extend(tree.top().map(|top| Todo { at: top, first: None, fence: Spot::END }));
    while let Some(todo) = stack.pop() {
        source.breathe().await;
        let page = match source.read(&todo.at).await {
            Ok(page) => page,
            Err(error) => {
                checker.find(&todo.at, format!("cannot be read: {error}"));
                checker.last = None;
                continue;
            }
        };
        (checker.seen)(Seen::Page(todo.at));
        if todo.at.level == 0 {
            checker.leaf(&todo, &page);
        } else {
            checker.interior(&todo, &page, &mut stack);
        }
    }
    checker.findings
}

/// A page to look at, the first key that its parent states, and the first key right of it.
struct Todo {
    at: PageAt,
    first: Option<Spot>,
    fence: Spot,
}

struct Checker<F> {
    seen: F,
    findings: Vec<Finding>,
    /// The entry before, in the order of keys.
    last: Option<Leaf>,
}

impl<F: FnMut(Seen)> Checker<F> {
    fn find(&mut self, page: &PageAt, what: String) {
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(Finding { page: *page, what });
        }
    }

    fn frame(&mut self, todo: &Todo, first: Spot, last: Spot, newest: Seq) {
        if todo.first.is_some_and(|stated| stated != first) {
            self.find(&todo.at, format!("begins at block {}, its parent says otherwise", first.block));
        }
        if last >= todo.fence {
            self.find(&todo.at, format!("reaches block {}, into the page right of it", last.block));
        }
        if newest != todo.at.ptr.newest {
            let stated = todo.at.ptr.newest.0;
            self.find(
                &todo.at,
                format!("its newest version is {:#x}, its parent says {stated:#x}", newest.0),
            );
        }
    }

    fn interior(&mut self, todo: &Todo, page: &PageRef, stack: &mut Vec<Todo>) {
        let view = page.view();
        let children = (0..view.len()).filter_map(|index| view.child(index)).collect::<Vec<_>>();
        let spot = |index: usize| children.get(index).map(|c| Spot::new(c.block, c.birth));
        let (Some(first), Some(last)) = (spot(0), spot(children.len().wrapping_sub(1))) else {
            return self.find(&todo.at, "has no entries".into());
        };
        let newest = children.iter().map(|child| child.ptr.newest).max().unwrap_or(Seq::ZERO);
        self.frame(todo, first, last, newest);
        for (index, child) in children.iter().enumerate().rev() {
            let fence = spot(index + 1).unwrap_or(todo.fence);
            stack.push(Todo { at: todo.at.below(child.ptr), first: spot(index), fence });
        }
    }

    fn leaf(&mut self, todo: &Todo, page: &PageRef) {
        let view = page.view();
        let entries = (0..view.len()).filter_map(|index| view.leaf(index)).collect::<Vec<_>>();
        let spot = |leaf: &Leaf| Spot::new(leaf.block, leaf.version.birth);
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return self.find(&todo.at, "has no entries".into());
        };
        let newest = entries.iter().map(|leaf| leaf.version.birth).max().unwrap_or(Seq::ZERO);
        self.frame(todo, spot(first), spot(last), newest);
        for leaf in &entries {
            self.entry(&todo.at, leaf);
            (self.seen)(Seen::Entry(*leaf));
        }
        if last.block.0 + last.len_blocks > todo.fence.block && last.block.0 != todo.fence.block {
            self.find(
                &todo.at,
                format!("the run at block {} reaches into the page right of it", last.block.0),
            );
        }
    }

    fn entry(&mut self, at: &PageAt, leaf: &Leaf) {
        let BlockNo(block) = leaf.block;
        let Some(last) = self.last.replace(*leaf) else { return };
        if block == last.block.0 {
            if leaf.version.birth >= last.version.birth {
                self.find(at, format!("the versions of block {block} are not in order"));
            }
            if leaf.len_blocks != last.len_blocks {
                self.find(at, format!("the runs at block {block} differ in length"));
            }
            if leaf.len_blocks > 1 && (leaf.version.place, last.version.place) != (Place::Hole, Place::Hole) {
                self.find(at, format!("the run at block {block} has data"));
            }
        } else if block < last.block.0 + last.len_blocks || block >= MAX_BLOCKS {
            self.find(at, format!("block {block} stands in the run at block {}", last.block.0));
        }
    }
}
