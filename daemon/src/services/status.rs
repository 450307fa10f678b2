//! The one place where errors become gRPC codes.
//!
//! Codes are part of the API: control planes decide by them. Where they look odd (an existing device is
//! INTERNAL) they are what existing clients expect.

use aio::DeviceError;
use lvs::LvsError;
use nexus::NexusError as MirrorError;
use nvmf::target::TargetError;
use tonic::{Code, Status};

use crate::error::{EngineError, PoolError, PoolOp};
use crate::nexuses::error::{NexusError, NexusOp};

impl From<EngineError> for Status {
    fn from(error: EngineError) -> Self {
        Self::new(code(&error), sendable(error.to_string()))
    }
}

/// Characters of a message that are sent, at its beginning and at its end. It travels in a header, of which clients take 8 KiB
/// or more, and a character may take twelve bytes there; longer ones repeat what was given.
const MESSAGE_CHARS: (usize, usize) = (400, 200);

/// A message without its middle, if that makes it too long to arrive.
fn sendable(message: String) -> String {
    let (front, back) = MESSAGE_CHARS;
    let count = message.chars().count();
    if count <= front + back {
        return message;
    }
    let front: String = message.chars().take(front).collect();
    let back: String = message.chars().skip(count - back).collect();
    format!("{front} [...] {back}")
}

fn code(error: &EngineError) -> Code {
    use EngineError as E;
    match error {
        E::Uri(_) | E::Scheme(_) | E::UuidMismatch { .. } | E::Connect { .. } => Code::InvalidArgument,
        E::ShareProtocol(_) | E::Missing(_) | E::BadValue { .. } | E::UnalignedSize { .. } => {
            Code::InvalidArgument
        }
        E::CreateDevice { source, .. } => create_code(source),
        E::NoDevice(_) => Code::NotFound,
        E::DeviceExists(_) | E::DeviceInUse { .. } | E::AlreadyShared(_) => Code::Internal,
        E::ResizeDevice { source: DeviceError::Unsupported { .. }, .. } => Code::FailedPrecondition,
        E::ResizeDevice { .. } | E::NoController(_) | E::NotRecorded(_) => Code::Internal,
        E::DeviceClaimed { .. } | E::DeviceIsReplica(_) | E::DeviceIsNexus(_) => Code::Internal,
        E::Pool(source) => pool_code(source),
        E::Nexus(source) => nexus_code(source),
        E::Target(source) => target_code(source),
        E::Reservations(_) => Code::Internal,
        E::Core(_) | E::ShuttingDown => Code::Unavailable,
    }
}

/// Creation fails by errno: ENOENT and ENODEV, EEXIST, everything else.
fn create_code(error: &DeviceError) -> Code {
    const ENOENT: i32 = 2;
    const EEXIST: i32 = 17;
    const ENODEV: i32 = 19;
    match error {
        DeviceError::Os { source, .. } => match (source.raw_os_error(), source.kind()) {
            (Some(ENOENT | ENODEV), _) | (None, std::io::ErrorKind::NotFound) => Code::NotFound,
            (Some(EEXIST), _) | (None, std::io::ErrorKind::AlreadyExists) => Code::AlreadyExists,
            _ => Code::InvalidArgument,
        },
        DeviceError::Missing { .. } => Code::NotFound,
        _ => Code::InvalidArgument,
    }
}

fn pool_code(error: &PoolError) -> Code {
    use PoolError as P;
    match error {
        P::NoDisks
        | P::DiskTwice(_)
        | P::DiskBusy { .. }
        | P::UnknownType(_)
        | P::NameTaken(_)
        | P::UuidTaken { .. }
        | P::SharedOtherwise(_) => Code::InvalidArgument,
        P::ClusterSize(_) | P::MetadataRatio(_) => Code::Internal,
        P::Exists(_) | P::ObjectExists { .. } => Code::AlreadyExists,
        P::NotFound(_) | P::NoReplica(_) | P::NoSnapshot(_) => Code::NotFound,
        // NOT_FOUND is left to the object itself.
        P::Missing(_) | P::LvmNotEnabled => Code::FailedPrecondition,
        P::OtherPool { .. } => Code::Aborted,
        P::Share { .. } => Code::Internal,
        P::Store { op, source, .. } => store_code(*op, source),
    }
}

/// What the store refuses has a code that depends on the request.
fn store_code(op: PoolOp, error: &LvsError) -> Code {
    use LvsError as L;
    match (op, error) {
        (PoolOp::SetProperty, _) => Code::DataLoss,
        (PoolOp::CreateSnapshot | PoolOp::CreateClone, L::Exists { .. }) => Code::Internal,
        // As too large for what is there: a replica that exists could have been smaller.
        (PoolOp::ResizeReplica, L::TooLarge { .. }) => Code::ResourceExhausted,
        (PoolOp::ImportPool, L::Device { .. } | L::Io { .. }) => Code::InvalidArgument,
        (_, L::NoSpace { .. }) => Code::ResourceExhausted,
        (_, L::Exists { .. } | L::ScrubRuns { .. }) => Code::AlreadyExists,
        (_, L::NotFound { .. } | L::NoSuchDisk { .. }) => Code::NotFound,
        (_, L::Closed { .. } | L::Faulted { .. } | L::ReadOnly { .. } | L::DiskStays { .. }) => {
            Code::FailedPrecondition
        }
        (
            _,
            L::BadName { .. }
            | L::BadSize { .. }
            | L::TooLarge { .. }
            | L::DiskCount { .. }
            | L::DiskTooSmall { .. }
            | L::DiskBlockSize { .. }
            | L::DiskOccupied { .. }
            | L::DiskOfPool { .. }
            | L::NoPool { .. }
            | L::OtherPool { .. }
            | L::DiskMissing { .. }
            | L::StaleDisk { .. }
            | L::DiskUnfit { .. }
            | L::Damaged { .. }
            | L::UnknownFeatures { .. },
        ) => Code::InvalidArgument,
        (
            _,
            L::Memory { .. } | L::LinesUsedUp { .. } | L::CatalogueFull { .. } | L::TooManySegments { .. },
        ) => Code::ResourceExhausted,
        // Texts of a request that are too long to be stored.
        (_, L::Encode { .. }) => Code::InvalidArgument,
        (_, L::Device { .. } | L::Io { .. }) => Code::Internal,
    }
}

fn nexus_code(error: &NexusError) -> Code {
    use NexusError as N;
    match error {
        N::NotFound(_) | N::NoChild { .. } => Code::NotFound,
        N::NameTaken(_) | N::ChildExists { .. } => Code::AlreadyExists,
        N::UuidTaken { .. } | N::NoAna(_) | N::Record { .. } | N::Publish { .. } => Code::Internal,
        N::Busy => Code::DeadlineExceeded,
        N::Child { .. }
        | N::ChildSilent { .. }
        | N::ChildBusy { .. }
        | N::ChildTwice { .. }
        | N::ChildWithoutUuid { .. }
        | N::Cntlids { .. }
        | N::Reservation(_)
        | N::NotPublished(_) => Code::InvalidArgument,
        N::NoHealthyChild { .. } | N::Waiting { .. } => Code::FailedPrecondition,
        N::Mirror { op, source } => mirror_code(*op, source),
    }
}

/// What the mirror refuses has a code that depends on the request.
fn mirror_code(op: NexusOp, error: &MirrorError) -> Code {
    use MirrorError as M;
    match (op, error) {
        (NexusOp::Create, M::ChildExists { .. }) => Code::InvalidArgument,
        (_, M::ChildExists { .. }) => Code::AlreadyExists,
        (_, M::BlockSize { .. } | M::TooSmall { .. } | M::Lacks { .. } | M::TooManyChildren { .. }) => {
            Code::InvalidArgument
        }
        (NexusOp::AddChild, M::OpenChild { .. }) => Code::InvalidArgument,
        (_, M::LastHealthy { .. } | M::ShutDown { .. }) => Code::FailedPrecondition,
        (_, M::ChildNotFound { .. } | M::NoRebuild { .. } | M::Gone(_)) => Code::NotFound,
        (
            _,
            M::NoChildren { .. }
            | M::OpenChild { .. }
            | M::ChildState { .. }
            | M::Membership { .. }
            | M::NoSource { .. }
            | M::RebuildExists { .. }
            | M::NoReservations { .. }
            | M::Reserve { .. }
            | M::NotHolder { .. }
            | M::RebuildState { .. },
        ) => Code::Internal,
    }
}

fn target_code(error: &TargetError) -> Code {
    use TargetError as T;
    match error {
        T::BadNqn { .. }
        | T::BadText { .. }
        | T::BadCntlidRange { .. }
        | T::BadNsid { .. }
        | T::BadDevice { .. }
        | T::NoAnaGroup { .. }
        | T::Discovery(_) => Code::InvalidArgument,
        T::SubsystemExists(_) | T::NsidInUse { .. } | T::DuplicateUuid { .. } => Code::AlreadyExists,
        T::NoSubsystem(_) | T::NoNamespace { .. } | T::NoListener(_) => Code::NotFound,
        T::NamespacesFull { .. } => Code::ResourceExhausted,
        T::PauseTooLong { .. } => Code::Aborted,
        T::Core { .. } => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Claim;
    use std::io;

    fn os(errno: i32) -> EngineError {
        let source = DeviceError::Os {
            op: "opening",
            device: "d".into(),
            source: io::Error::from_raw_os_error(errno),
        };
        EngineError::CreateDevice { name: "d".into(), source }
    }

    fn nqn() -> String {
        "nqn.2019-05.io.openebs:a".into()
    }

    /// Every row is a promise to clients.
    #[test]
    fn codes_are_those_of_the_api() {
        let uri_error = "ftp:///x".parse::<aio::DeviceUri>().unwrap_err();
        let unsupported = || DeviceError::Unsupported { op: "resize", device: "d".into() };
        let uuid = uuid::Uuid::nil();
        let table: Vec<(EngineError, Code)> = vec![
            (uri_error.into(), Code::InvalidArgument),
            (EngineError::Scheme("pcie"), Code::InvalidArgument),
            (
                EngineError::UuidMismatch { name: "d".into(), actual: uuid, asked: uuid },
                Code::InvalidArgument,
            ),
            (os(22), Code::InvalidArgument),
            (os(2), Code::NotFound),
            (os(19), Code::NotFound),
            (os(17), Code::AlreadyExists),
            (os(13), Code::InvalidArgument),
            (os(28), Code::InvalidArgument),
            (EngineError::CreateDevice { name: "d".into(), source: unsupported() }, Code::InvalidArgument),
            (
                EngineError::CreateDevice {
                    name: "d".into(),
                    source: DeviceError::Missing { device: "d".into() },
                },
                Code::NotFound,
            ),
            (EngineError::NoDevice("d".into()), Code::NotFound),
            (EngineError::DeviceExists("d".into()), Code::Internal),
            (EngineError::DeviceInUse { name: "d".into(), nqn: nqn() }, Code::Internal),
            (EngineError::AlreadyShared("d".into()), Code::Internal),
            (EngineError::ShareProtocol(2), Code::InvalidArgument),
            (EngineError::NoController("c".into()), Code::Internal),
            (EngineError::ResizeDevice { name: "d".into(), source: unsupported() }, Code::FailedPrecondition),
            (
                EngineError::UnalignedSize { name: "d".into(), size_bytes: 1, block_bytes: 512 },
                Code::InvalidArgument,
            ),
            (TargetError::SubsystemExists(nqn()).into(), Code::AlreadyExists),
            (TargetError::NoSubsystem(nqn()).into(), Code::NotFound),
            (
                TargetError::BadNqn { nqn: "x".into(), why: nvme::Nqn::parse("x").unwrap_err() }.into(),
                Code::InvalidArgument,
            ),
            (TargetError::NsidInUse { nqn: nqn(), nsid: 1 }.into(), Code::AlreadyExists),
            (TargetError::NamespacesFull { nqn: nqn(), max: 1 }.into(), Code::ResourceExhausted),
            (TargetError::NoNamespace { nqn: nqn(), nsid: 1 }.into(), Code::NotFound),
            (EngineError::ShuttingDown, Code::Unavailable),
        ];
        for (error, want) in table {
            let text = error.to_string();
            let status = Status::from(error);
            assert_eq!(status.code(), want, "{text}");
            assert_eq!(status.message(), text);
            assert!(!text.contains("Error {") && !text.contains("Some("), "debug form: {text}");
        }
    }

    fn store(op: PoolOp, source: LvsError) -> EngineError {
        PoolError::Store { op, what: "x".into(), source }.into()
    }

    /// Every row is a promise to clients: control planes decide by these.
    #[test]
    fn codes_of_pools_are_those_of_the_api() {
        let pool = || "p".to_owned();
        let uuid = uuid::Uuid::nil();
        let exists = || LvsError::Exists { what: "volume", name: "v".into(), pool: pool() };
        let missing = || LvsError::NotFound { what: "volume", name: "v".into(), pool: pool() };
        let full = || LvsError::NoSpace { pool: pool(), free_bytes: 1, needed_bytes: 2 };
        let large = || LvsError::TooLarge { pool: pool(), size_bytes: 2, capacity_bytes: 1 };
        let faulted = || LvsError::Faulted { pool: pool(), fault: "x".into() };
        let device = || LvsError::Device {
            pool: pool(),
            source: DeviceError::Unsupported { op: "x", device: "d".into() },
        };
        let too_many =
            || LvsError::CatalogueFull { pool: pool(), needed_bytes: 2, taken_bytes: 1, most_bytes: 2 };
        let source = lvs::format::FormatError::Magic(lvs::format::What::Catalogue);
        let too_long = || LvsError::Encode { source };
        let occupied = || LvsError::DiskOccupied { disk: "d".into(), found: "an ext4 file system" };
        let other = || LvsError::OtherPool {
            disk: "d".into(),
            found_name: "q".into(),
            found_uuid: uuid,
            wanted: pool(),
        };
        let table: Vec<(EngineError, Code)> = vec![
            (PoolError::NoDisks.into(), Code::InvalidArgument),
            (PoolError::UnknownType(7).into(), Code::InvalidArgument),
            (PoolError::LvmNotEnabled.into(), Code::FailedPrecondition),
            (PoolError::ClusterSize(1).into(), Code::Internal),
            (PoolError::MetadataRatio(0.0).into(), Code::Internal),
            (PoolError::Exists(pool()).into(), Code::AlreadyExists),
            (PoolError::NameTaken(pool()).into(), Code::InvalidArgument),
            (PoolError::NotFound(pool()).into(), Code::NotFound),
            (PoolError::Missing(pool()).into(), Code::FailedPrecondition),
            (PoolError::NoReplica(pool()).into(), Code::NotFound),
            (PoolError::SharedOtherwise(pool()).into(), Code::InvalidArgument),
            (
                PoolError::OtherPool { what: "replica", uuid, actual: pool(), asked: "q".into() }.into(),
                Code::Aborted,
            ),
            (store(PoolOp::CreatePool, occupied()), Code::InvalidArgument),
            (store(PoolOp::CreatePool, other()), Code::InvalidArgument),
            (store(PoolOp::CreatePool, device()), Code::Internal),
            (store(PoolOp::ImportPool, device()), Code::InvalidArgument),
            (store(PoolOp::ImportPool, LvsError::NoPool { disk: "d".into() }), Code::InvalidArgument),
            (store(PoolOp::CreateReplica, exists()), Code::AlreadyExists),
            (store(PoolOp::CreateReplica, large()), Code::InvalidArgument),
            (store(PoolOp::CreateReplica, full()), Code::ResourceExhausted),
            (store(PoolOp::CreateReplica, LvsError::BadSize { size_bytes: 0 }), Code::InvalidArgument),
            (store(PoolOp::CreateReplica, faulted()), Code::FailedPrecondition),
            (store(PoolOp::CreateReplica, too_long()), Code::InvalidArgument),
            (store(PoolOp::CreateSnapshot, too_many()), Code::ResourceExhausted),
            (store(PoolOp::ResizeReplica, full()), Code::ResourceExhausted),
            (store(PoolOp::ResizeReplica, large()), Code::ResourceExhausted),
            (store(PoolOp::DestroyReplica, missing()), Code::NotFound),
            (store(PoolOp::DestroyReplica, device()), Code::Internal),
            (store(PoolOp::Scrub, LvsError::ScrubRuns { pool: pool() }), Code::AlreadyExists),
            (store(PoolOp::SetProperty, faulted()), Code::DataLoss),
            (store(PoolOp::CreateSnapshot, exists()), Code::Internal),
            (store(PoolOp::CreateSnapshot, full()), Code::ResourceExhausted),
            (store(PoolOp::CreateClone, exists()), Code::Internal),
            (EngineError::DeviceClaimed { name: "d".into(), by: Claim::Pool(pool()) }, Code::Internal),
        ];
        for (error, want) in table {
            let text = error.to_string();
            assert_eq!(Status::from(error).code(), want, "{text}");
            assert!(!text.contains("Error {") && !text.contains("Some("), "debug form: {text}");
        }
    }

    /// Every row is a promise to clients: control planes decide by these.
    #[test]
    fn codes_of_nexuses_are_those_of_the_api() {
        let (n, c) = (|| "n".to_owned(), || "bdev:///c".to_owned());
        let mirror = |op, source| EngineError::from(NexusError::Mirror { op, source });
        let exists = || MirrorError::ChildExists { nexus: n(), child: c() };
        let small = || MirrorError::TooSmall { nexus: n(), child: c(), size_bytes: 1, needed_bytes: 2 };
        let blocks =
            MirrorError::BlockSize { nexus: n(), child: c(), block_bytes: 512, expected_bytes: 4096 };
        let open = || MirrorError::OpenChild {
            nexus: n(),
            child: c(),
            source: DeviceError::Unsupported { op: "x", device: c() },
        };
        let membership =
            MirrorError::Membership { nexus: n(), source: nexus::StoreError("the store is down".into()) };
        let state = |op| MirrorError::ChildState { op, nexus: n(), child: c(), state: "offline".into() };
        let table: Vec<(EngineError, Code)> = vec![
            (NexusError::NotFound(n()).into(), Code::NotFound),
            (NexusError::NameTaken(n()).into(), Code::AlreadyExists),
            (NexusError::UuidTaken { uuid: uuid::Uuid::nil(), name: n() }.into(), Code::Internal),
            (NexusError::Busy.into(), Code::DeadlineExceeded),
            (
                NexusError::Child { nexus: n(), uri: c(), source: Box::new(EngineError::NoDevice(c())) }
                    .into(),
                Code::InvalidArgument,
            ),
            (NexusError::ChildWithoutUuid { nexus: n(), uri: c() }.into(), Code::InvalidArgument),
            (NexusError::ChildExists { nexus: n(), uri: c() }.into(), Code::AlreadyExists),
            (NexusError::NoChild { nexus: n(), uri: c() }.into(), Code::NotFound),
            (NexusError::Cntlids { min: 0, max: 1, most: 2 }.into(), Code::InvalidArgument),
            (NexusError::Reservation("x").into(), Code::InvalidArgument),
            (NexusError::NotPublished(n()).into(), Code::InvalidArgument),
            (NexusError::NoAna(n()).into(), Code::Internal),
            (NexusError::NoHealthyChild { nexus: n(), healthy: c() }.into(), Code::FailedPrecondition),
            (NexusError::Waiting { nexus: n(), why: c() }.into(), Code::FailedPrecondition),
            (mirror(NexusOp::Create, MirrorError::NoChildren { nexus: n() }), Code::Internal),
            (mirror(NexusOp::Create, exists()), Code::InvalidArgument),
            (mirror(NexusOp::AddChild, exists()), Code::AlreadyExists),
            (mirror(NexusOp::Create, small()), Code::InvalidArgument),
            (mirror(NexusOp::Resize, small()), Code::InvalidArgument),
            (mirror(NexusOp::Create, blocks), Code::InvalidArgument),
            (mirror(NexusOp::AddChild, open()), Code::InvalidArgument),
            (mirror(NexusOp::Child, open()), Code::Internal),
            (mirror(NexusOp::Create, membership), Code::Internal),
            (
                mirror(NexusOp::Child, MirrorError::LastHealthy { nexus: n(), child: c() }),
                Code::FailedPrecondition,
            ),
            (mirror(NexusOp::Child, MirrorError::ChildNotFound { nexus: n(), child: c() }), Code::NotFound),
            (mirror(NexusOp::Child, state("take back into use")), Code::Internal),
            (mirror(NexusOp::Rebuild, state("rebuild")), Code::Internal),
            (mirror(NexusOp::Rebuild, MirrorError::NoSource { nexus: n(), child: c() }), Code::Internal),
            (mirror(NexusOp::Rebuild, MirrorError::RebuildExists { nexus: n(), child: c() }), Code::Internal),
            (mirror(NexusOp::Rebuild, MirrorError::NoRebuild { nexus: n(), child: c() }), Code::NotFound),
            (
                mirror(NexusOp::Resize, MirrorError::ShutDown { op: "resize", nexus: n() }),
                Code::FailedPrecondition,
            ),
        ];
        for (error, want) in table {
            let text = error.to_string();
            assert_eq!(Status::from(error).code(), want, "{text}");
            assert!(!text.contains("Error {") && !text.contains("Some("), "debug form: {text}");
        }
    }

    /// A bug: a request with a long text in it was answered with an error of the protocol.
    #[test]
    fn long_messages_lose_their_middle() {
        let text = format!("{}because", "ä".repeat(300_000));
        let cut = sendable(text);
        assert!(cut.starts_with('ä') && cut.ends_with("because") && cut.chars().count() < 700, "{cut}");
        assert_eq!(sendable("short".into()), "short");
    }

    #[test]
    fn causes_are_told() {
        let text = os(13).to_string();
        assert!(text.contains("opening") && text.contains("Permission denied"), "{text}");
    }
}
