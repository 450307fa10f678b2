//! Why a control operation on the target failed.

use super::board::CoreFailure;

/// A failed control operation. What it changed before it failed was undone unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not a valid NQN.
    #[error("{nqn:?} is not an NQN of the form 'nqn.YYYY-MM.DOMAIN:NAME': {why}")]
    BadNqn {
        /// As given.
        nqn: String,
        /// What is wrong with it.
        why: nvme::nqn::NqnError,
    },
    /// Taken.
    #[error("subsystem {0} exists already")]
    SubsystemExists(String),
    /// Unknown.
    #[error("subsystem {0} does not exist")]
    NoSubsystem(String),
    /// A text field of the wire cannot carry it.
    #[error("{field} {value:?} of subsystem {nqn} does not fit: at most {max} printable ASCII characters")]
    BadText {
        /// `"serial number"` or `"model number"`.
        field: &'static str,
        /// As given.
        value: String,
        /// Whose.
        nqn: String,
        /// Limit in bytes.
        max: usize,
    },
    /// Empty, or outside of 1 to 0xffef.
    #[error(
        "controller id range {first:#x}..={last:#x} of subsystem {nqn} is not within 1..=0xffef, or is empty"
    )]
    BadCntlidRange {
        /// Whose.
        nqn: String,
        /// First of the range.
        first: u16,
        /// Last of the range.
        last: u16,
    },
    /// Zero, or above the subsystem's highest nsid.
    #[error("nsid {nsid} is outside of 1..={max} of subsystem {nqn}")]
    BadNsid {
        /// Whose.
        nqn: String,
        /// As given.
        nsid: u32,
        /// The subsystem's highest.
        max: u32,
    },
    /// Taken.
    #[error("nsid {nsid} of subsystem {nqn} is in use; remove that namespace first or choose another nsid")]
    NsidInUse {
        /// Whose.
        nqn: String,
        /// As given.
        nsid: u32,
    },
    /// All taken.
    #[error("subsystem {nqn} has {max} namespaces, and no nsid is free; remove one first")]
    NamespacesFull {
        /// Whose.
        nqn: String,
        /// The limit.
        max: u32,
    },
    /// Unknown.
    #[error("subsystem {nqn} has no namespace {nsid}")]
    NoNamespace {
        /// Whose.
        nqn: String,
        /// As given.
        nsid: u32,
    },
    /// Another namespace of the same subsystem has that identity.
    #[error("subsystem {nqn} has a namespace with uuid {uuid} already; hosts would take both for one disk")]
    DuplicateUuid {
        /// Whose.
        nqn: String,
        /// As given or as the device has it.
        uuid: uuid::Uuid,
    },
    /// The device has a shape that NVMe cannot export.
    #[error("device {device} cannot be a namespace: {why}")]
    BadDevice {
        /// Which.
        device: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Zero, above the subsystem's number of groups, or the subsystem does not report ANA.
    #[error("subsystem {nqn} has no ANA group {group} (it has {groups})")]
    NoAnaGroup {
        /// Whose.
        nqn: String,
        /// As given.
        group: u32,
        /// How many it has.
        groups: u16,
    },
    /// Unknown.
    #[error("the target has no listener {0}")]
    NoListener(u16),
    /// The discovery subsystem takes no namespaces and cannot be deleted.
    #[error("{0} is the discovery subsystem, which cannot be changed in this way")]
    Discovery(String),
    /// Other than with the other variants, the subsystem is not as it was asked to be: it is not paused.
    #[error(
        "the pause of subsystem {nqn} lasted longer than its limit of {} ms and was undone; \
         do again what needed it",
        limit.as_millis()
    )]
    PauseTooLong {
        /// Which.
        nqn: String,
        /// [`TargetConfig::pause_limit`](super::TargetConfig::pause_limit).
        limit: std::time::Duration,
    },
    /// A core could not do its part.
    #[error("{op} of subsystem {nqn} failed")]
    Core {
        /// What was attempted.
        op: &'static str,
        /// Whose.
        nqn: String,
        /// Why.
        #[source]
        source: CoreFailure,
    },
}
