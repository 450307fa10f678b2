//! What a request about a nexus can fail with.

use nexus::StoreError;
use uuid::Uuid;

use crate::error::{EngineError, chain};

/// A failed request about nexuses, their children or rebuilds.
#[derive(Debug, thiserror::Error)]
pub enum NexusError {
    /// No such nexus.
    #[error("Nexus {0} not found")]
    NotFound(String),
    /// The name is taken, by a nexus or another device.
    #[error("a device \"{0}\" exists already; destroy it first, or give the nexus another name")]
    NameTaken(String),
    /// Another nexus has the identity.
    #[error("uuid {uuid} is that of nexus \"{name}\" already")]
    UuidTaken {
        /// The uuid.
        uuid: Uuid,
        /// Whose.
        name: String,
    },
    /// Another request about this nexus goes on for too long.
    #[error("Failed to acquire access to object within given timeout")]
    Busy,
    /// A child's device could not be had.
    #[error("child \"{uri}\" of nexus \"{nexus}\" cannot be opened: {}", chain(source))]
    Child {
        /// Which nexus.
        nexus: String,
        /// Its URI.
        uri: String,
        /// Why.
        #[source]
        source: Box<EngineError>,
    },
    /// A child's device did not answer.
    #[error(
        "child \"{uri}\" of nexus \"{nexus}\" cannot be opened: no answer within {secs} s; is its host up, and reachable \
         from here?"
    )]
    ChildSilent {
        /// Which nexus.
        nexus: String,
        /// Its URI.
        uri: String,
        /// How long was waited.
        secs: u64,
    },
    /// The device is used otherwise.
    #[error("\"{uri}\" cannot be a child of nexus \"{nexus}\": its device is in use by {by}")]
    ChildBusy {
        /// Which nexus.
        nexus: String,
        /// Its URI.
        uri: String,
        /// By whom.
        by: String,
    },
    /// One device twice, in one request.
    #[error("child \"{uri}\" is given to nexus \"{nexus}\" more than once: each child is another device")]
    ChildTwice {
        /// Which nexus.
        nexus: String,
        /// Its URI.
        uri: String,
    },
    /// The nexus has that child.
    #[error("nexus \"{nexus}\" has child \"{uri}\" already")]
    ChildExists {
        /// Which nexus.
        nexus: String,
        /// Its URI.
        uri: String,
    },
    /// The nexus does not have that child.
    #[error("nexus \"{nexus}\" has no child \"{uri}\"; `keelson nexus children` shows what it has")]
    NoChild {
        /// Which nexus.
        nexus: String,
        /// Its URI.
        uri: String,
    },
    /// Records name children by uuid.
    #[error(
        "child \"{uri}\" of nexus \"{nexus}\" has no uuid: its members are recorded by it, so write \
         {uri}{}uuid=..., which `keelson replica list` or `bdev list` shows", if uri.contains('?') { '&' } else { '?' }
    )]
    ChildWithoutUuid {
        /// Which nexus.
        nexus: String,
        /// Its URI.
        uri: String,
    },
    /// None of the children has every write, by the record.
    #[error(
        "nexus \"{nexus}\" cannot be created of these children: by the record of its members, none of them has every \
         write that was acknowledged. Healthy: {healthy}"
    )]
    NoHealthyChild {
        /// Which nexus.
        nexus: String,
        /// Who would be.
        healthy: String,
    },
    /// Its children could not be opened since the start.
    #[error("nexus \"{nexus}\" waits for its children since the start: {why}")]
    Waiting {
        /// Which nexus.
        nexus: String,
        /// What is missing.
        why: String,
    },
    /// A range of controller ids that cannot be.
    #[error(
        "controller ids {min} to {max} cannot be used: 1 is the least, {most} the greatest, and the first comes first"
    )]
    Cntlids {
        /// First.
        min: u32,
        /// Last.
        max: u32,
        /// The greatest there is.
        most: u16,
    },
    /// Parameters of reservations that do not fit each other.
    #[error("these reservation parameters cannot be used: {0}")]
    Reservation(&'static str),
    /// ANA of what hosts cannot see.
    #[error("nexus \"{0}\" is not published, so there is no ANA state; publish it first")]
    NotPublished(String),
    /// ANA is not reported.
    #[error("nexus \"{0}\" reports no ANA states: the daemon was started without NEXUS_NVMF_ANA_ENABLE=1")]
    NoAna(String),
    /// The record of the members cannot be read.
    #[error("the record of the members of nexus \"{nexus}\" cannot be read: {source}")]
    Record {
        /// Which nexus.
        nexus: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The nexus could not be published, or not any more.
    #[error("cannot change how nexus \"{nexus}\" is published: {}", chain(source))]
    Publish {
        /// Which nexus.
        nexus: String,
        /// Why.
        #[source]
        source: Box<EngineError>,
    },
    /// The mirror refused.
    #[error("{}", chain(source))]
    Mirror {
        /// What was attempted.
        op: NexusOp,
        /// Why not.
        #[source]
        source: nexus::NexusError,
    },
}

/// What was asked of a nexus. The same refusal has different codes for different requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NexusOp {
    /// A new nexus.
    Create,
    /// A new child.
    AddChild,
    /// Anything else about a child.
    Child,
    /// A rebuild.
    Rebuild,
    /// Another size.
    Resize,
    /// Everything else.
    Other,
}

impl NexusOp {
    /// For `map_err`.
    pub(crate) fn failed(self) -> impl FnOnce(nexus::NexusError) -> EngineError {
        move |source| NexusError::Mirror { op: self, source }.into()
    }
}
