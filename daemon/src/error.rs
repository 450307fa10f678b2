//! What a control request can fail with. Mapping to gRPC codes: `services::status`.

use aio::uri::UriError;

use crate::nexuses::error::NexusError;
use crate::ptpl::PtplError;
use crate::registry::Claim;
use crate::state::StateError;

/// A failed control request. The texts are read by people, who know what they asked for.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The URI cannot be understood.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A scheme whose driver is not in this build.
    #[error("devices of scheme {0} are not supported by this version")]
    Scheme(&'static str),
    /// The device could not be made.
    #[error("cannot create device \"{name}\": {}", chain(source))]
    CreateDevice {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: aio::DeviceError,
    },
    /// The remote end could not be reached or refused.
    #[error("cannot connect to \"{name}\": {}", chain(source))]
    Connect {
        /// The device's name.
        name: String,
        /// Why.
        #[source]
        source: Box<nvmf::initiator::Error>,
    },
    /// The name is taken.
    #[error("a device \"{0}\" exists already; destroy it first, or give the new one another name")]
    DeviceExists(String),
    /// No device of that name.
    #[error("there is no device \"{0}\"")]
    NoDevice(String),
    /// The URI's `uuid` is not the device's.
    #[error("device \"{name}\" has uuid {actual}, not {asked}")]
    UuidMismatch {
        /// Which device.
        name: String,
        /// Its own.
        actual: uuid::Uuid,
        /// As asked for.
        asked: uuid::Uuid,
    },
    /// A namespace is made of it.
    #[error("device \"{name}\" is exported by {nqn}; unshare it, or remove that namespace, first")]
    DeviceInUse {
        /// Which device.
        name: String,
        /// By which subsystem.
        nqn: String,
    },
    /// The size could not be changed.
    #[error("cannot resize device \"{name}\": {}", chain(source))]
    ResizeDevice {
        /// Which device.
        name: String,
        /// Why.
        #[source]
        source: aio::DeviceError,
    },
    /// A size that is no whole number of blocks.
    #[error("{size_bytes} bytes are not a multiple of the {block_bytes}-byte blocks of device \"{name}\"")]
    UnalignedSize {
        /// Which device.
        name: String,
        /// As asked for.
        size_bytes: u64,
        /// Its block size.
        block_bytes: u32,
    },
    /// What was reserved cannot be kept, or not be read.
    #[error(transparent)]
    Reservations(#[from] PtplError),
    /// A pool or a nexus has it.
    #[error("device \"{name}\" is {}", claim_text(by))]
    DeviceClaimed {
        /// Which device.
        name: String,
        /// Who.
        by: Claim,
    },
    /// A nexus is not handled as a device.
    #[error("device \"{0}\" is a nexus; `keelson nexus` publishes and destroys it")]
    DeviceIsNexus(String),
    /// A replica is not destroyed as a device.
    #[error("device \"{0}\" is a replica; `keelson replica destroy` removes it")]
    DeviceIsReplica(String),
    /// A pool or one of its replicas.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A nexus, one of its children or a rebuild.
    #[error(transparent)]
    Nexus(#[from] NexusError),
    /// `Share` of what is shared.
    #[error("device \"{0}\" is shared already; unshare it first")]
    AlreadyShared(String),
    /// `Share` over something else than NVMe-oF.
    #[error("share protocol {0} is not supported: only NVMF (1) is")]
    ShareProtocol(i32),
    /// A request without a part that it has to have.
    #[error("the request lacks {0}")]
    Missing(&'static str),
    /// A value that cannot be.
    #[error("{what} {value:?} cannot be used: {expected}")]
    BadValue {
        /// Of what.
        what: &'static str,
        /// As given.
        value: String,
        /// What it has to be.
        expected: &'static str,
    },
    /// The target refused.
    #[error("{}", chain(.0))]
    Target(#[from] nvmf::target::TargetError),
    /// No NVMe controller of that name.
    #[error("there is no NVMe controller \"{0}\"")]
    NoController(String),
    /// Done, but a restart would not know.
    #[error("done, but it could not be recorded, and is gone after a restart: {0}")]
    NotRecorded(#[source] StateError),
    /// A reactor stopped.
    #[error(transparent)]
    Core(#[from] aio::reactor::CoreGone),
    /// The daemon ends.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// A failed request about pools, replicas or snapshots.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A pool of no disks.
    #[error("invalid argument, missing devices")]
    NoDisks,
    /// One disk twice.
    #[error("disk \"{0}\" is given more than once")]
    DiskTwice(String),
    /// Somebody uses the disk.
    #[error("\"{disk}\" cannot be a disk of a pool: it is in use by {by}")]
    DiskBusy {
        /// Which.
        disk: String,
        /// By whom.
        by: String,
    },
    /// A kind of pool that does not exist.
    #[error("there is no pool type {0}: write 0 (Lvs) or 1 (Lvm)")]
    UnknownType(i32),
    /// LVM pools are not there.
    #[error("lvm support not enabled")]
    LvmNotEnabled,
    /// As Mayastor restricts it.
    #[error("cluster size {0} cannot be used: it has to be a multiple of 1 MiB, and 1 GiB at most")]
    ClusterSize(u32),
    /// As Mayastor restricts it.
    #[error("metadata reservation ratio {0} cannot be used: it has to be larger than 0")]
    MetadataRatio(f32),
    /// That very pool is open.
    #[error("pool \"{0}\" is open already")]
    Exists(String),
    /// Another pool has the name.
    #[error("a pool \"{0}\" is open already, on other disks; give the new one another name")]
    NameTaken(String),
    /// Another open pool has the identity.
    #[error("uuid {uuid} is that of pool \"{name}\", which is open already")]
    UuidTaken {
        /// The uuid.
        uuid: uuid::Uuid,
        /// Whose.
        name: String,
    },
    /// No such pool.
    #[error("Pool {0} not found")]
    NotFound(String),
    /// No such pool, where the request is about what would be in it.
    #[error("Pool {0} not found: it is not open on this node")]
    Missing(String),
    /// The name or uuid is taken.
    #[error("{what} \"{name}\" exists already")]
    ObjectExists {
        /// Kind of object.
        what: &'static str,
        /// Its name or uuid.
        name: String,
    },
    /// No such replica.
    #[error("Replica {0} not found")]
    NoReplica(String),
    /// No such snapshot.
    #[error("Snapshot {0} not found")]
    NoSnapshot(String),
    /// The object is in another pool.
    #[error("{what} {uuid} is in pool \"{actual}\", not in \"{asked}\"")]
    OtherPool {
        /// Kind of object.
        what: &'static str,
        /// Which.
        uuid: uuid::Uuid,
        /// Where it is.
        actual: String,
        /// Where it was said to be.
        asked: String,
    },
    /// `ShareReplica` with NONE is not how a share ends.
    #[error("replica \"{0}\" is shared; unshare it instead of sharing it with protocol NONE")]
    SharedOtherwise(String),
    /// The export of a replica could not be changed.
    #[error("cannot change the share of replica \"{name}\": {source}")]
    Share {
        /// Which replica.
        name: String,
        /// Why.
        #[source]
        source: Box<EngineError>,
    },
    /// The store refused.
    #[error("cannot {}{}: {}", op.verb(), once(what, &chain(source)), chain(source))]
    Store {
        /// What was attempted.
        op: PoolOp,
        /// On what.
        what: String,
        /// Why.
        #[source]
        source: lvs::LvsError,
    },
}

/// What was asked of the store. The same refusal has different codes for different requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolOp {
    /// A new pool.
    CreatePool,
    /// A pool that is on its disks.
    ImportPool,
    /// Any other change of a pool as a whole.
    ChangePool,
    /// Reading lists and figures.
    List,
    /// A new replica.
    CreateReplica,
    /// Removing one.
    DestroyReplica,
    /// Another size for one.
    ResizeReplica,
    /// Its stored properties.
    SetProperty,
    /// A new snapshot.
    CreateSnapshot,
    /// Removing one.
    DestroySnapshot,
    /// A new clone.
    CreateClone,
    /// Verifying what is in it.
    Scrub,
}

impl PoolOp {
    fn verb(self) -> &'static str {
        match self {
            Self::CreatePool => "create pool",
            Self::ImportPool => "import pool",
            Self::ChangePool => "change pool",
            Self::List => "look into pool",
            Self::CreateReplica => "create replica",
            Self::DestroyReplica => "destroy replica",
            Self::ResizeReplica => "resize replica",
            Self::SetProperty => "record the properties of replica",
            Self::CreateSnapshot => "create snapshot",
            Self::DestroySnapshot => "destroy snapshot",
            Self::CreateClone => "create clone",
            Self::Scrub => "scrub pool",
        }
    }

    /// For `map_err`.
    pub(crate) fn failed(self, what: impl Into<String>) -> impl FnOnce(lvs::LvsError) -> EngineError {
        let what = what.into();
        move |source| PoolError::Store { op: self, what, source }.into()
    }
}

/// What a device is to whoever claimed it, and how that ends.
fn claim_text(by: &Claim) -> String {
    match by {
        Claim::Pool(pool) => format!("a disk of pool \"{pool}\"; export or destroy that pool first"),
        Claim::Nexus(nexus) => format!("a child of nexus \"{nexus}\"; remove it from there first"),
    }
}

/// The name of what failed, for a sentence with this cause; nothing when the cause names it.
fn once(what: &str, cause: &str) -> String {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || "-_".contains(c));
    let alone = |(at, found): (usize, &str)| {
        !is_part(cause[..at].chars().next_back()) && !is_part(cause[at + found.len()..].chars().next())
    };
    let named = !what.is_empty() && cause.match_indices(what).any(alone);
    if named { String::new() } else { format!(" {what}") }
}

/// An error with everything that led to it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut missing = Vec::new();
    let mut cause = error.source();
    while let Some(e) = cause {
        let inner = e.to_string();
        // Some errors have their source's text in their own: then what lies between is told as well.
        if text.contains(&inner) {
            missing.clear();
        } else if !missing.contains(&inner) {
            missing.push(inner);
        }
        cause = e.source();
    }
    for inner in missing {
        text = format!("{text}: {inner}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let source = (texts.len() > 1).then(|| Box::new(layers(&texts[1..])));
        Layer { text: texts[0], source }
    }

    #[test]
    fn names_are_told_once() {
        assert_eq!(once("p", "pool p is damaged"), "");
        assert_eq!(once("p", "there is no pool on /dev/sdp"), " p");
        assert_eq!(once("sdp", "there is no pool on /dev/sdp"), "");
        assert_eq!(once("a", "volume a-1 exists"), " a");
        assert_eq!(once("", "x"), " ");
    }

    #[test]
    fn causes_are_told_once() {
        assert_eq!(chain(&layers(&["a", "b", "c"])), "a: b: c");
        assert_eq!(chain(&layers(&["a: refused", "transport", "tcp", "refused"])), "a: refused");
        assert_eq!(chain(&layers(&["a", "same", "same"])), "a: same");
    }
}
