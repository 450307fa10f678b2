//! Why an operation on a nexus is refused.

use aio::DeviceError;

use crate::fencing::Unreserved;
use crate::membership::StoreError;

/// A failed operation on a nexus or one of its children.
#[derive(Debug, thiserror::Error)]
pub enum NexusError {
    /// No children were given.
    #[error("nexus {nexus} has no children: give the URI of at least one device")]
    NoChildren {
        /// The nexus.
        nexus: String,
    },
    /// More children than there is room for.
    #[error("nexus {nexus} cannot take child {child}: it has {most} already, the most there can be")]
    TooManyChildren {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
        /// The most that there can be.
        most: usize,
    },
    /// The child is there already, by URI or as a device.
    #[error("nexus {nexus} has child {child} already")]
    ChildExists {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
    },
    /// No such child.
    #[error("nexus {nexus} has no child {child}; list the nexus to see the URIs of its children")]
    ChildNotFound {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
    },
    /// Children have to have one block size.
    #[error(
        "child {child} has blocks of {block_bytes} bytes, nexus {nexus} of {expected_bytes}: use devices of one block size"
    )]
    BlockSize {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
        /// The child's.
        block_bytes: u32,
        /// The others'.
        expected_bytes: u32,
    },
    /// The child is smaller than the nexus needs.
    #[error("child {child} has {size_bytes} bytes, nexus {nexus} needs {needed_bytes}: use a larger device")]
    TooSmall {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
        /// What the child has.
        size_bytes: u64,
        /// What it needs.
        needed_bytes: u64,
    },
    /// The child cannot do what hosts of the nexus were told that it can.
    #[error(
        "child {child} of nexus {nexus} does not support {lacks}, which its hosts rely on: use another device"
    )]
    Lacks {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
        /// The operation.
        lacks: &'static str,
    },
    /// The data side of a child could not be opened.
    #[error("child {child} of nexus {nexus} cannot be opened: {source}")]
    OpenChild {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
        /// Why.
        #[source]
        source: DeviceError,
    },
    /// The child cannot be reserved.
    #[error(
        "child {child} of nexus {nexus} cannot be reserved: its target has no NVMe reservations; use another target, or \
         create the nexus without a reservation key"
    )]
    NoReservations {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
    },
    /// The child was not reserved.
    #[error("child {child} of nexus {nexus} could not be reserved: {source}")]
    Reserve {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
        /// Why.
        #[source]
        source: aio::facets::FacetError,
    },
    /// Somebody else reserved the child meanwhile.
    #[error(
        "child {child} of nexus {nexus} is reserved by another host; which of the two is to have the volume?"
    )]
    NotHolder {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
    },
    /// Without this child there would be no data.
    #[error(
        "child {child} is the last healthy one of nexus {nexus}: rebuild another one first, or destroy the nexus"
    )]
    LastHealthy {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
    },
    /// The child's state does not allow it.
    #[error("cannot {op} child {child} of nexus {nexus}: it is {state}")]
    ChildState {
        /// What was attempted.
        op: &'static str,
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
        /// Its state.
        state: String,
    },
    /// The nexus was shut down or is being destroyed.
    #[error("cannot {op} nexus {nexus}: it is shut down; destroy it and create it again")]
    ShutDown {
        /// What was attempted.
        op: &'static str,
        /// The nexus.
        nexus: String,
    },
    /// The record of the members could not be saved.
    #[error("the members of nexus {nexus} cannot be recorded: {source}")]
    Membership {
        /// The nexus.
        nexus: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// There is no healthy child to copy from.
    #[error("nexus {nexus} has no healthy child to rebuild {child} from")]
    NoSource {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
    },
    /// One at a time.
    #[error("child {child} of nexus {nexus} is being rebuilt already")]
    RebuildExists {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
    },
    /// Nothing is being rebuilt.
    #[error("child {child} of nexus {nexus} is not being rebuilt")]
    NoRebuild {
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
    },
    /// The rebuild is in another state.
    #[error("the rebuild of child {child} of nexus {nexus} cannot be {op}: it is {state}")]
    RebuildState {
        /// What was attempted.
        op: &'static str,
        /// The nexus.
        nexus: String,
        /// The child.
        child: String,
        /// Its state.
        state: &'static str,
    },
    /// The home core of the nexus is gone, or the nexus was destroyed meanwhile.
    #[error("nexus {0} is gone")]
    Gone(String),
}

impl NexusError {
    pub(crate) fn unreserved(nexus: String, child: String, why: Unreserved) -> Self {
        match why {
            Unreserved::Unsupported => Self::NoReservations { nexus, child },
            Unreserved::Failed(source) => Self::Reserve { nexus, child, source },
            Unreserved::NotHolder => Self::NotHolder { nexus, child },
        }
    }
}
