//! What a device can tell beyond I/O: which ranges hold something, which changed, and marks to ask from.
//!
//! A mirror asks for that to copy no more than it has to. These traits name nothing of the store: their place is beside
//! [`BlockDevice`](aio::BlockDevice), as optional facets of it, and they stand here until they move there.
//!
//! # Marks
//! Whoever keeps copies of one volume on several devices reads the [`Position`] of each, waits until every write that it had
//! submitted before the last answer has completed on all of them, flushes them, and then puts one [`Mark`] on each, with one
//! random id and the position that this device gave (H2). From then on [`Since::Mark`] is answered, whatever happened
//! between: it is durable, it stays through crashes, exports and imports, and is never on another device or clone. What a device
//! lost in a crash, because it was never flushed, it does not know of: the copies ask all of them and take the union.
//!
//! # Answers
//! A [`Page`] is true of one moment within its call; what is written meanwhile may or may not be in it, what completed
//! before is. Each call looks at a bounded number of places and lets others on the core work: asking from `next` on until
//! there is none covers everything, and costs about what the answer is long, not what the device is large.

use core::future::Future;
use core::pin::Pin;

use aio::{BlockCount, BlockRange, Lba};
use uuid::Uuid;

/// Ranges of one answer at most, however many are asked for.
pub const MOST_RANGES: usize = 4096;
/// Marks that a device keeps: the newest by position.
pub const MOST_MARKS: usize = 16;

/// A call of a facet. Works on every executor; dropping it gives up waiting.
pub type FacetFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, FacetError>> + Send + 'a>>;

/// A place in a device's history: what is submitted after it was read is behind it. Of two positions of one device the
/// greater number is later; positions of different devices, or incarnations of one, have nothing to do with each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// Of the device, as [`aio::BlockDevice::incarnation`] gives it: another one knows nothing of it.
    pub incarnation: u128,
    /// Where in it.
    pub number: u64,
}

/// A position that a device keeps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mark {
    /// Random, and the same on all copies.
    pub id: u128,
    /// The position's number. It stays true when the incarnation changes.
    pub number: u64,
}

/// From when on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Since {
    /// A position that was read from this device, in its present incarnation.
    Position(Position),
    /// A mark that this device has.
    Mark(u128),
    /// A snapshot of this device, or the one that it was cloned from; of a snapshot, an older one of the same device.
    Snapshot(Uuid),
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where; beyond the device's end nothing is.
    pub range: BlockRange,
    /// Ranges in the answer at most: 1 to [`MOST_RANGES`].
    pub most: usize,
}

/// Blocks side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Where.
    pub range: BlockRange,
    /// False: nothing is there any more, it reads as zeroes. Only in answers about changes.
    pub data: bool,
}

/// A part of an answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// In order, within what was asked for. Their edges are multiples of [`Ranges::granularity`], but for those of the piece.
    pub extents: Vec<Extent>,
    /// Where to ask on; `None`: this was all.
    pub next: Option<Lba>,
}

/// Why a facet has no answer.
#[derive(Debug, thiserror::Error)]
pub enum FacetError {
    /// The device was removed.
    #[error("{device} is not there any more")]
    Gone {
        /// Which.
        device: String,
    },
    /// Nothing is known of that time: everything may have changed.
    #[error("{device} cannot tell what changed since then: {why}")]
    Unknown {
        /// Which device.
        device: String,
        /// Why not.
        why: &'static str,
    },
    /// It failed.
    #[error("cannot {what} {device}")]
    Failed {
        /// What was attempted.
        what: &'static str,
        /// On which device.
        device: String,
        /// Why.
        #[source]
        source: Box<dyn core::error::Error + Send + Sync>,
    },
}

/// Which ranges of a device hold something.
pub trait Ranges: Send + Sync {
    /// Blocks that hold something, or changed, together.
    fn granularity(&self) -> BlockCount;

    /// What is allocated: all else reads as zeroes. What a clone has from its origin is its own here.
    fn allocated(&self, piece: Piece) -> FacetFuture<'_, Page>;

    /// What was written or unmapped since then; all else reads as it did. Blocks that were only moved did not change; blocks that
    /// were written as they had been did. [`FacetError::Unknown`]: take all for changed.
    fn changed(&self, since: Since, piece: Piece) -> FacetFuture<'_, Page>;
}

/// Places in the history of a device that can be asked from.
pub trait Marks: Send + Sync {
    /// Where the device is now: every write that is submitted after the answer is behind it.
    fn position(&self) -> FacetFuture<'_, Position>;

    /// Keeps a position, durably, once everything before it is durable. Beyond [`MOST_MARKS`] the oldest goes.
    fn put_mark(&self, id: u128, at: Position) -> FacetFuture<'_, ()>;

    /// Forgets a mark. One that is not there is no error.
    fn remove_mark(&self, id: u128) -> FacetFuture<'_, ()>;

    /// Those that it has, the newest first.
    fn marks(&self) -> FacetFuture<'_, Vec<Mark>>;
}
