//! Which version of a block a view sees: one walk down the tree over cached pages, without allocation or waiting.
//!
//! Keys are (block ascending, birth descending). A hole may describe a run of blocks; no other entry lies in a run,
//! except a second hole of exactly the same blocks. So what a block has is either under its own number, or under the
//! nearest number below that has an entry at all, if that is a run which reaches it.

use core::cmp::Reverse;

use super::cache::PageRef;
use super::tree::{PageAt, PageSource, PageTag, Tree};
use crate::format::page::{Leaf, PageView};
use crate::types::{BlockNo, PagePtr, Pba, Place, Seq, Version};

/// What a look-up found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The newest version born before the mark.
    Found(Version),
    /// The tree has none. (Of a clone, the parent may.)
    Absent,
    /// This page has to be read first; then look again.
    Missing(PageAt),
}

/// Where a search for a key ended.
enum Reached {
    /// The first entry at or after the key, if it is of the block looked for; and the entry before the key, if any.
    At {
        entry: Option<Leaf>,
        before: Option<Leaf>,
    },
    Missing(PageAt),
}

/// The newest version of `block` born before `before`, as far as the pages in memory tell. Looks at two paths at the
/// most, whatever the number of snapshots.
#[inline]
pub fn lookup<S: PageSource>(source: &S, tree: &Tree, block: BlockNo, before: Seq) -> Lookup {
    lookup_in(|page| source.cached(page), tree, block, before)
}

/// [`lookup`], reading what is missing.
pub async fn find<S: PageSource>(
    source: &S,
    tree: &Tree,
    block: BlockNo,
    before: Seq,
) -> Result<Option<Version>, S::Error> {
    // What was read is held until the end, so that a busy cache cannot make it start over for ever.
    let mut held: Vec<(PageAt, PageRef)> = Vec::new();
    loop {
        let get = |page: &PageAt| {
            let own = held.iter().find(|(at, _)| at == page).map(|(_, page)| page.clone());
            own.or_else(|| source.cached(page))
        };
        match lookup_in(get, tree, block, before) {
            Lookup::Found(version) => return Ok(Some(version)),
            Lookup::Absent => return Ok(None),
            Lookup::Missing(page) => {
                let read = source.read(&page).await?;
                held.push((page, read));
            }
        }
    }
}

/// Where the data of exactly this version is, if the tree has it: is a block of the log live, and still there? One
/// look-up, whatever the number of snapshots (H13).
pub async fn locate_block<S: PageSource>(
    source: &S,
    tree: &Tree,
    block: BlockNo,
    birth: Seq,
) -> Result<Option<Pba>, S::Error> {
    Ok(match find(source, tree, block, birth.next()).await? {
        Some(Version { birth: found, place: Place::Data { pba, .. } }) if found == birth => Some(pba),
        _ => None,
    })
}

/// True when the tree refers to the page at `pba` that was written as `tag`: is a page of the log live? Reads only
/// pages above it.
pub async fn is_page_live<S: PageSource>(
    source: &S,
    tree: &Tree,
    tag: &PageTag,
    pba: Pba,
) -> Result<bool, S::Error> {
    let here = |ptr: &PagePtr| ptr.pba == pba || ptr.copy == pba;
    let Some(mut at) = tree.top() else { return Ok(false) };
    while at.level > tag.level {
        let page = source.read(&at).await?;
        let view = page.view();
        // The first key of a page stands in all pages above it that it is the first of: an exact match goes there.
        let index = view.lower_bound(tag.block, tag.birth.next());
        let exact = view.child(index).filter(|c| c.block == tag.block && c.birth == tag.birth);
        let Some(child) = exact.or_else(|| view.child(index.checked_sub(1)?)) else { return Ok(false) };
        at = at.below(child.ptr);
    }
    Ok(at.level == tag.level && here(&at.ptr))
}

pub(crate) fn lookup_in(
    mut get: impl FnMut(&PageAt) -> Option<PageRef>,
    tree: &Tree,
    block: BlockNo,
    before: Seq,
) -> Lookup {
    let found = match reach(&mut get, tree, block, before) {
        Reached::Missing(page) => return Lookup::Missing(page),
        Reached::At { entry: Some(leaf), .. } => return Lookup::Found(leaf.version),
        Reached::At { before, .. } => before,
    };
    // The last entry before the key is the oldest of its block: of a run that reaches here, the oldest hole.
    let run = match found {
        Some(leaf) if leaf.block.0 < block.0 && block.0 - leaf.block.0 < leaf.len_blocks => leaf,
        _ => return Lookup::Absent,
    };
    if run.version.birth >= before {
        return Lookup::Absent;
    }
    match reach(&mut get, tree, run.block, before) {
        Reached::Missing(page) => Lookup::Missing(page),
        Reached::At { entry: Some(leaf), .. } => Lookup::Found(leaf.version),
        Reached::At { .. } => Lookup::Absent,
    }
}

fn reach(
    get: &mut impl FnMut(&PageAt) -> Option<PageRef>,
    tree: &Tree,
    block: BlockNo,
    before: Seq,
) -> Reached {
    let Some(mut at) = tree.top() else { return Reached::At { entry: None, before: None } };
    // The subtree right of the path, when it begins with the block.
    let mut right: Option<PageAt> = None;
    let mut first = BlockNo(0);
    loop {
        let Some(page) = get(&at) else { return Reached::Missing(at) };
        let view = page.view();
        let index = match at.level {
            0 => guess(view, first, block, before).unwrap_or_else(|| view.lower_bound(block, before)),
            _ => view.lower_bound(block, before),
        };
        if at.level > 0 {
            if let Some(child) = view.child(index) {
                right = (child.block == block).then(|| at.below(child.ptr));
            }
            let Some(child) = view.child(index.saturating_sub(1)) else {
                return Reached::At { entry: None, before: None };
            };
            first = child.block;
            at = at.below(child.ptr);
            continue;
        }
        let last = index.checked_sub(1).and_then(|i| view.leaf(i));
        return match (view.leaf(index), right) {
            (None, Some(right)) => match first_leaf(get, right) {
                Ok(entry) => Reached::At { entry: entry.filter(|e| e.block == block), before: last },
                Err(missing) => Reached::Missing(missing),
            },
            (entry, _) => Reached::At { entry: entry.filter(|e| e.block == block), before: last },
        };
    }
}

/// [`PageView::lower_bound`] in a leaf whose first key is of `first`, as its parent says, if it has one version of each
/// block up to there. Then the entry is known before anything in the page was looked at, which costs a page that no cache of the
/// processor has one miss instead of three.
#[inline]
fn guess(view: PageView<'_>, first: BlockNo, block: BlockNo, before: Seq) -> Option<usize> {
    let index = usize::try_from(block.0.checked_sub(first.0)?).ok()?;
    let is_before = |entry: Leaf| (entry.block, Reverse(entry.version.birth)) <= (block, Reverse(before));
    let found = view.leaf(index).is_some_and(|entry| !is_before(entry));
    (found && index.checked_sub(1).and_then(|left| view.leaf(left)).is_none_or(is_before)).then_some(index)
}

/// The first entry below a page.
fn first_leaf(
    get: &mut impl FnMut(&PageAt) -> Option<PageRef>,
    mut at: PageAt,
) -> Result<Option<Leaf>, PageAt> {
    loop {
        let page = get(&at).ok_or(at)?;
        let view: PageView<'_> = page.view();
        match view.child(0) {
            Some(child) if at.level > 0 => at = at.below(child.ptr),
            _ => return Ok(view.leaf(0)),
        }
    }
}

/// Birth of the version that superseded the data of `block` that was born at `birth`, if the tree has one.
pub(crate) async fn newer_version<S: PageSource>(
    source: &S,
    tree: &Tree,
    block: BlockNo,
    birth: Seq,
) -> Result<Option<Seq>, S::Error> {
    // No run lies over a block that has an entry of its own.
    let before = entry_before(source, tree, block, birth).await?;
    Ok(before.filter(|leaf| leaf.block == block).map(|leaf| leaf.version.birth))
}

/// Birth of the oldest version of `block` that the tree has.
pub(crate) async fn oldest_version<S: PageSource>(
    source: &S,
    tree: &Tree,
    block: BlockNo,
) -> Result<Option<Seq>, S::Error> {
    // Right before all of the next block; of runs that reach here that is the oldest, too.
    let last = entry_before(source, tree, BlockNo(block.0 + 1), Seq(u64::MAX - 1)).await?;
    let covers = |leaf: &Leaf| block.0 - leaf.block.0 < leaf.len_blocks;
    Ok(last.filter(covers).map(|leaf| leaf.version.birth))
}

/// The entry right before the key (block, birth), if there is one.
pub(super) async fn entry_before<S: PageSource>(
    source: &S,
    tree: &Tree,
    block: BlockNo,
    birth: Seq,
) -> Result<Option<Leaf>, S::Error> {
    let Some(mut at) = tree.top() else { return Ok(None) };
    loop {
        let page = source.read(&at).await?;
        let view = page.view();
        let Some(index) = view.lower_bound(block, birth.next()).checked_sub(1) else { return Ok(None) };
        match view.child(index) {
            Some(child) if at.level > 0 => at = at.below(child.ptr),
            _ => return Ok(view.leaf(index)),
        }
    }
}
