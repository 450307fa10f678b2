//! What the algorithms on trees share: where a tree is, and where its pages come from and go to.

use super::cache::PageRef;
use crate::format::page::{CHILD_CAPACITY, LEAF_CAPACITY, MAX_BLOCKS, PAGE_BYTES};
use crate::types::{BlockNo, LineId, PagePtr, Pba, Seq, is_needed};
use core::future::Future;
use uuid::Uuid;

/// The top page of a tree. A tree without versions has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// The page.
    pub ptr: PagePtr,
    /// Its level: 0 when the only page is a leaf.
    pub level: u8,
}

/// The tree of a line, as it is at one moment: its pages never change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tree {
    /// Whose.
    pub line: LineId,
    /// Its top, if it has any page.
    pub root: Option<Root>,
}

impl Tree {
    /// The top page as something to read.
    pub(super) fn top(&self) -> Option<PageAt> {
        self.root.map(|root| PageAt { line: self.line, level: root.level, ptr: root.ptr })
    }
}

/// A page, and what it has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageAt {
    /// Of whose tree.
    pub line: LineId,
    /// On which level; 0 is a leaf.
    pub level: u8,
    /// Where, and its checksum.
    pub ptr: PagePtr,
}

impl PageAt {
    /// The page below it that `ptr` names.
    pub(super) fn below(&self, ptr: PagePtr) -> Self {
        Self { line: self.line, level: self.level.saturating_sub(1), ptr }
    }
}

/// What a page is, for the header of the record that holds it: enough to find it again from the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageTag {
    /// Of whose tree.
    pub line: LineId,
    /// On which level.
    pub level: u8,
    /// Block of its first key.
    pub block: BlockNo,
    /// Birth of its first key.
    pub birth: Seq,
}

/// Where pages are read. Futures are local to the core.
pub trait PageSource {
    /// What a failed read or write is.
    type Error;

    /// The page, if it is in memory. Does not allocate.
    fn cached(&self, page: &PageAt) -> Option<PageRef>;

    /// The page, from memory or a disk, checked. After an error nothing has changed; dropping the future only gives up waiting.
    fn read(&self, page: &PageAt) -> impl Future<Output = Result<PageRef, Self::Error>>;

    /// The page will be read soon: a read may begin now. Not more than [`PREFETCH`] are outstanding.
    fn prefetch(&self, page: &PageAt) {
        let _ = page;
    }

    /// Lets others on this core work. Called after at most some tens of microseconds.
    fn breathe(&self) -> impl Future<Output = ()>;
}

/// Where new pages go.
pub trait PageSink: PageSource {
    /// The pool that pages belong to.
    fn pool(&self) -> Uuid;

    /// Puts a page into the log and says where it will be: (address, second copy or [`Pba::NONE`]). It is readable from
    /// then on through [`PageSource::read`], and on the disk when the caller's flush before the anchor is done. Of `ptr`
    /// checksum and highest birth are true, the addresses come from here. Waits only for room.
    fn append(
        &self,
        bytes: &[u8; PAGE_BYTES],
        tag: &PageTag,
        ptr: &PagePtr,
    ) -> impl Future<Output = Result<(Pba, Pba), Self::Error>>;

    /// Entries that a leaf and an interior page may get.
    fn capacities(&self) -> (usize, usize) {
        (LEAF_CAPACITY, CHILD_CAPACITY)
    }

    /// A page that has to be looked into cannot be read: `Ok` keeps it in the new tree as it is. What the delta has of the
    /// line's blocks `first..end` is then not in the new tree.
    fn unreadable(
        &self,
        page: &PageAt,
        first: BlockNo,
        end: BlockNo,
        error: Self::Error,
    ) -> Result<(), Self::Error> {
        let _ = (page, first, end);
        Err(error)
    }

    /// The new tree no longer refers to this page. (After an error of the operation the old tree counts, and what was
    /// told so far has to be forgotten.)
    fn dropped(&self, page: &PageAt);
}

/// Pages ahead of where a walk is that it asks to be prefetched.
pub const PREFETCH: usize = 32;

/// Who still needs versions of a line.
#[derive(Clone, Copy, Debug)]
pub struct LineView<'a> {
    /// Epochs of its snapshots, ascending; with those that only clones keep.
    pub snapshots: &'a [Seq],
    /// True while it has a head.
    pub head: bool,
    /// True for a clone: where its tree has no entry, the parent's version shows.
    pub has_parent: bool,
}

impl LineView<'_> {
    pub(super) fn needs(&self, birth: Seq, until: Seq) -> bool {
        is_needed(birth, until, self.snapshots, self.head)
    }
}

/// Why an operation on a tree did not succeed. The tree that it began with is as it was.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum TreeError<E> {
    /// A page could not be read or written.
    #[error(transparent)]
    Page(#[from] E),
    /// Pages that are each valid contradict each other.
    #[error("the map of line {} is not in order below block {}", .line.0, .block.0)]
    Disorder {
        /// Whose tree.
        line: LineId,
        /// Where.
        block: BlockNo,
    },
}

/// A place in the order of keys: block ascending, birth descending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spot {
    pub(super) block: u64,
    pub(super) birth: Seq,
}

impl Ord for Spot {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.block.cmp(&other.block).then(other.birth.cmp(&self.birth))
    }
}

impl PartialOrd for Spot {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Spot {
    /// Behind every key.
    pub(super) const END: Self = Self { block: MAX_BLOCKS, birth: Seq::MAX };

    pub(super) const fn new(block: BlockNo, birth: Seq) -> Self {
        Self { block: block.0, birth }
    }
}
