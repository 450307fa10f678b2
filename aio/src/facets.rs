//! Optional async facets of a device: what it can tell and do beyond I/O. Which ranges hold something, which changed, marks to
//! ask from, snapshots, reservations.
//!
//! A mirror asks for that to copy no more than it has to, and a target for what its hosts ask it. A device that has a facet
//! gives it by a method of its own ([`BlockDevice::ranges`](crate::BlockDevice::ranges) and those beside it); others have none.
//!
//! # Cores
//! A facet may be asked from every core, by a task of that core's executor: its futures stay there ([`FacetFuture`] is not
//! `Send`). A device with a home core asks that one by message and does the work there, so a proxy of its channel has no part in it.
//! Threads without a reactor call a core first. Dropping a future gives up waiting; what was begun may take place all the same.
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

pub mod reservations;

use std::time::SystemTime;

pub use reservations::Reservations;
use uuid::Uuid;

use crate::device::LocalBoxFuture;
use crate::io::{BlockCount, BlockRange, Lba};

/// Ranges of one answer at most, however many are asked for.
pub const MOST_RANGES: usize = 4096;
/// Marks that a device keeps: the newest by position.
pub const MOST_MARKS: usize = 16;

/// A call of a facet: for the executor of the core that asks. Dropping it gives up waiting.
pub type FacetFuture<'a, T> = LocalBoxFuture<'a, Result<T, FacetError>>;

/// A place in a device's history: what is submitted after it was read is behind it. Of two positions of one device the
/// greater number is later; positions of different devices, or incarnations of one, have nothing to do with each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// Of the device, as [`BlockDevice::incarnation`](crate::BlockDevice::incarnation) gives it: another one knows nothing of it.
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

/// Error numbers of Linux that facets answer with: they cross the wire and stand in replies.
pub mod errno {
    /// There is no such thing.
    pub const ENOENT: i32 = 2;
    /// It failed, for no reason that has a number of its own.
    pub const EIO: i32 = 5;
    /// The device is not there.
    pub const ENODEV: i32 = 19;
    /// It exists already.
    pub const EEXIST: i32 = 17;
    /// The request makes no sense.
    pub const EINVAL: i32 = 22;
    /// No room.
    pub const ENOSPC: i32 = 28;
    /// A reservation of another host is in the way.
    pub const EBADE: i32 = 52;
    /// The device cannot do that.
    pub const EOPNOTSUPP: i32 = 95;
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
    /// The device answered with this.
    #[error("cannot {what} {device}: it answered {status}")]
    Refused {
        /// What was attempted.
        what: &'static str,
        /// On which device.
        device: String,
        /// The answer.
        status: crate::IoStatus,
    },
    /// It failed.
    #[error("cannot {what} {device}")]
    Failed {
        /// What was attempted.
        what: &'static str,
        /// On which device.
        device: String,
        /// The number by which Linux calls it; [`errno::EIO`] when there is no better one.
        errno: i32,
        /// Why.
        #[source]
        source: Box<dyn core::error::Error + Send + Sync>,
    },
}

impl FacetError {
    /// The number by which Linux calls it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Gone { .. } => errno::ENODEV,
            Self::Unknown { .. } => errno::ENOENT,
            Self::Refused { status, .. } if status.is(crate::IoStatus::RESERVATION_CONFLICT) => errno::EBADE,
            Self::Refused { .. } => errno::EIO,
            Self::Failed { errno, .. } => *errno,
        }
    }
}

/// Which ranges of a device hold something.
pub trait Ranges {
    /// Blocks that hold something, or changed, together.
    fn granularity(&self) -> BlockCount;

    /// What is allocated: all else reads as zeroes. What a clone has from its origin is its own here.
    fn allocated(&self, piece: Piece) -> FacetFuture<'_, Page>;

    /// What was written or unmapped since then; all else reads as it did. Blocks that were only moved did not change; blocks that
    /// were written as they had been did. [`FacetError::Unknown`]: take all for changed.
    fn changed(&self, since: Since, piece: Piece) -> FacetFuture<'_, Page>;
}

/// Places in the history of a device that can be asked from.
pub trait Marks {
    /// Where the device is now: every write that is submitted after the answer is behind it.
    fn position(&self) -> FacetFuture<'_, Position>;

    /// Keeps a position, durably, once everything before it *and everything that completed before this call* is durable. Beyond
    /// [`MOST_MARKS`] the oldest goes.
    fn put_mark(&self, id: u128, at: Position) -> FacetFuture<'_, ()>;

    /// Forgets a mark. One that is not there is no error.
    fn remove_mark(&self, id: u128) -> FacetFuture<'_, ()>;

    /// Those that it has, the newest first.
    fn marks(&self) -> FacetFuture<'_, Vec<Mark>>;
}

/// How a snapshot is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateSnapshot {
    /// Unique where the snapshot is kept.
    pub name: String,
    /// Unique where the snapshot is kept.
    pub uuid: Uuid,
    /// The transaction that it belongs to.
    pub txn_id: String,
    /// The owner's name for it.
    pub entity_id: String,
    /// When, as the caller says (all snapshots of one volume's replicas carry the same time).
    pub created: SystemTime,
}

/// Makes snapshots.
pub trait Snapshots {
    /// Makes a snapshot of the device: it holds every write that completed before the call, and none that was submitted after it
    /// returned. It is durable when that resolves. Dropping the future leaves it open whether there is one.
    fn create_snapshot(&self, spec: CreateSnapshot) -> FacetFuture<'_, ()>;
}
