//! What a child is and how it fares, in Mayastor's terms.

use core::fmt;
use std::time::SystemTime;

use aio::IoStatus;

/// Most children of a nexus.
pub const MAX_CHILDREN: usize = 16;

/// A set of children, by place: a bit each.
pub(crate) type Mask = u16;

const _: () = assert!(MAX_CHILDREN <= Mask::BITS as usize);

/// The places in `mask`, ascending.
#[inline]
pub(crate) fn places(mut mask: Mask) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let place = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(place)
    })
}

/// Why a child is faulted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It ran out of space.
    NoSpace,
    /// It did not answer in time.
    TimedOut,
    /// It answered a write with an error.
    IoError,
    /// Its device cannot be opened.
    CantOpen,
    /// Copying to it failed.
    RebuildFailed,
    /// A client took it out of use for a while.
    Offline,
    /// A client took it out of use for good.
    OfflinePermanent,
}

impl Fault {
    /// What a failed write says of the child.
    pub(crate) fn of(status: IoStatus) -> Self {
        if status.is(IoStatus::CAPACITY_EXCEEDED) {
            Self::NoSpace
        } else if status.is(IoStatus::ABORT_REQUESTED) || status.is_path() {
            Self::TimedOut
        } else {
            Self::IoError
        }
    }

    /// Whether it can be taken back into use.
    pub fn is_recoverable(self) -> bool {
        !matches!(self, Self::OfflinePermanent | Self::CantOpen)
    }
}

/// How a child fares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChildState {
    /// It has every acknowledged write.
    Online,
    /// It takes writes and lacks older ones: it is to be rebuilt, or being rebuilt.
    OutOfSync,
    /// Its device went away.
    Closed,
    /// It takes no part.
    Faulted(Fault),
}

impl fmt::Display for ChildState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::OutOfSync => "out of sync",
            Self::Closed => "closed",
            Self::Faulted(Fault::NoSpace) => "faulted: out of space",
            Self::Faulted(Fault::TimedOut) => "faulted: no answer in time",
            Self::Faulted(Fault::IoError) => "faulted: an I/O failed",
            Self::Faulted(Fault::CantOpen) => "faulted: cannot be opened",
            Self::Faulted(Fault::RebuildFailed) => "faulted: its rebuild failed",
            Self::Faulted(Fault::Offline) => "offline",
            Self::Faulted(Fault::OfflinePermanent) => "offline for good",
        })
    }
}

/// A child, as lists show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildInfo {
    /// As given when it was added.
    pub uri: String,
    /// How it fares.
    pub state: ChildState,
    /// Percent copied, while it is being rebuilt.
    pub rebuild_progress: Option<u32>,
    /// Name of its device.
    pub device: String,
    /// When it was taken out of use, if it was.
    pub fault_time: Option<SystemTime>,
    /// What it has missed since then is known.
    pub has_log: bool,
    /// It was taken out of use, and its device still has I/Os of ours.
    pub is_closing: bool,
}

/// How a nexus fares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NexusState {
    /// Every child has every acknowledged write.
    Online,
    /// Some have.
    Degraded,
    /// None can be reached.
    Faulted,
    /// It is being shut down.
    ShuttingDown,
    /// It was shut down.
    Shutdown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_masks() {
        assert_eq!(places(0).count(), 0);
        assert_eq!(places(0b1000_0000_0000_0101).collect::<Vec<_>>(), [0, 2, 15]);
    }

    #[test]
    fn faults_by_status() {
        assert_eq!(Fault::of(IoStatus::CAPACITY_EXCEEDED), Fault::NoSpace);
        assert_eq!(Fault::of(IoStatus::new(nvme::status::sct::PATH, 0x70)), Fault::TimedOut);
        assert_eq!(Fault::of(IoStatus::WRITE_FAULT), Fault::IoError);
        assert!(Fault::Offline.is_recoverable() && !Fault::OfflinePermanent.is_recoverable());
    }
}
