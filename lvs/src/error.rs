//! Why a control operation of the store failed.

use aio::device::DeviceError;
use aio::facade::IoError;
use uuid::Uuid;

impl LvsError {
    /// Something on a disk cannot be read, or is not what it should be.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Io { op: "read", .. } | Self::Damaged { .. })
    }
}

/// A failed control operation.
#[derive(Debug, thiserror::Error)]
pub enum LvsError {
    /// The name cannot be one.
    #[error("a name has 1 to {most} bytes and no control characters: {name:?}", most = crate::types::MAX_NAME_BYTES)]
    BadName {
        /// As given.
        name: String,
    },
    /// A size of zero, or beyond what a volume can have.
    #[error("a volume cannot have {size_bytes} bytes; give 1 to {}", crate::types::MAX_VOLUME_BYTES)]
    BadSize {
        /// As given.
        size_bytes: u64,
    },
    /// More than the pool could ever hold.
    #[error("{size_bytes} bytes are more than pool {pool} can hold ({capacity_bytes})")]
    TooLarge {
        /// Which pool.
        pool: String,
        /// As given.
        size_bytes: u64,
        /// What it holds.
        capacity_bytes: u64,
    },
    /// No room for a reservation.
    #[error(
        "pool {pool} has {free_bytes} bytes left, {needed_bytes} are needed; delete volumes or snapshots, or add a disk"
    )]
    NoSpace {
        /// Which pool.
        pool: String,
        /// What it has.
        free_bytes: u64,
        /// What was asked for.
        needed_bytes: u64,
    },
    /// The pool has no device, or too many.
    #[error("a pool has 1 to {} disks, {given} were given", crate::types::MAX_MEMBERS)]
    DiskCount {
        /// How many.
        given: usize,
    },
    /// Not enough room for a pool.
    #[error("{disk} has {size_bytes} bytes; a pool's disk needs at least {needed_bytes}")]
    DiskTooSmall {
        /// Which.
        disk: String,
        /// Its size.
        size_bytes: u64,
        /// The least.
        needed_bytes: u64,
    },
    /// The block size is neither 512 nor 4096, or differs from that of the others.
    #[error("{disk} has blocks of {block_bytes} bytes; a pool's disks have all 512 or all 4096")]
    DiskBlockSize {
        /// Which.
        disk: String,
        /// Its block size.
        block_bytes: u32,
    },
    /// The disk holds something.
    #[error("{disk} holds {found}; use another disk, or force if its content may go")]
    DiskOccupied {
        /// Which.
        disk: String,
        /// What was recognised.
        found: &'static str,
    },
    /// The disk belongs to a pool already.
    #[error("{disk} belongs to pool {name} ({uuid}); import that pool, or destroy it first")]
    DiskOfPool {
        /// Which disk.
        disk: String,
        /// Of which pool.
        name: String,
        /// Its uuid.
        uuid: Uuid,
    },
    /// There is no pool on it.
    #[error("there is no pool on {disk}")]
    NoPool {
        /// Which disk.
        disk: String,
    },
    /// The pool found is not the one asked for.
    #[error("{disk} holds pool {found_name} ({found_uuid}), not {wanted}")]
    OtherPool {
        /// Which disk.
        disk: String,
        /// What it holds.
        found_name: String,
        /// What it holds.
        found_uuid: Uuid,
        /// What was asked for.
        wanted: String,
    },
    /// Not all disks of the pool were given.
    #[error(
        "pool {pool} has {members} disks, and these are missing: {missing}; give all of them, or open it for reading only with --degraded"
    )]
    DiskMissing {
        /// Which pool.
        pool: String,
        /// How many it has.
        members: usize,
        /// Which are not there: index, uuid, and the name that each had last.
        missing: String,
    },
    /// A disk that carries a label of the pool, and is none of its disks.
    #[error("{disk} is not a disk of pool {pool} ({why}); leave it out")]
    StaleDisk {
        /// Which disk.
        disk: String,
        /// Of which pool it says to be.
        pool: String,
        /// What became of it.
        why: &'static str,
    },
    /// The pool was opened with disks missing.
    #[error("pool {pool} can only be read: {why}; import it again with all of its disks")]
    ReadOnly {
        /// Which pool.
        pool: String,
        /// Why.
        why: String,
    },
    /// Every volume and clone takes a number of the pool for good, and there are no more.
    #[error(
        "pool {pool} has made {most} volumes and clones in its life, as many as a pool can; use another pool"
    )]
    LinesUsedUp {
        /// Which pool.
        pool: String,
        /// As many as there are.
        most: u32,
    },
    /// What describes volumes and snapshots is written as a whole by checkpoints, and has no more room.
    #[error(
        "pool {pool} has no room for {needed_bytes} bytes more about its volumes and snapshots, which take {taken_bytes} of \
         at most {most_bytes}; delete some"
    )]
    CatalogueFull {
        /// Which pool.
        pool: String,
        /// What was asked for.
        needed_bytes: usize,
        /// What they take.
        taken_bytes: usize,
        /// What they may take.
        most_bytes: usize,
    },
    /// One scrub at a time.
    #[error("pool {pool} is being scrubbed already; --status says how far that is, --stop ends it")]
    ScrubRuns {
        /// Which pool.
        pool: String,
    },
    /// The table of segments would have more pieces than a checkpoint can name.
    #[error(
        "pool {pool} cannot have so many segments: their table would be {bytes} bytes, and {most_bytes} are the most; make \
         a new pool, which gets larger ones, and move volumes to it"
    )]
    TooManySegments {
        /// Which pool.
        pool: String,
        /// How large its table would be.
        bytes: u64,
        /// How large it can be.
        most_bytes: u64,
    },
    /// No such disk in the pool.
    #[error("pool {pool} has no disk {disk}; its disks are: {disks}")]
    NoSuchDisk {
        /// Which pool.
        pool: String,
        /// As given.
        disk: String,
        /// What it has.
        disks: String,
    },
    /// The disk does not suit the pool that is open.
    #[error("{disk} cannot join pool {pool} while it is open: {why}")]
    DiskUnfit {
        /// Which disk.
        disk: String,
        /// Which pool.
        pool: String,
        /// In what it differs from the pool's other disks.
        why: &'static str,
    },
    /// A disk cannot be taken out of the pool.
    #[error("{disk} cannot be removed from pool {pool}: {why}")]
    DiskStays {
        /// Which disk.
        disk: String,
        /// Which pool.
        pool: String,
        /// Why.
        why: String,
    },
    /// What is on the disks cannot be right.
    #[error(
        "pool {pool} is damaged: {what}; do not write to its disks, and run `keelson pool check` on them"
    )]
    Damaged {
        /// Which pool.
        pool: String,
        /// What is wrong.
        what: String,
    },
    /// Written by a newer version.
    #[error("pool {pool} uses features that this version does not know ({flags:#x}); use a newer version")]
    UnknownFeatures {
        /// Which pool.
        pool: String,
        /// The bits.
        flags: u64,
    },
    /// A pool, volume or snapshot of that name or uuid exists.
    #[error("{what} {name} exists already in pool {pool}")]
    Exists {
        /// Kind of object.
        what: &'static str,
        /// Its name or uuid.
        name: String,
        /// Where.
        pool: String,
    },
    /// No volume or snapshot of that uuid.
    #[error("there is no {what} {name} in pool {pool}")]
    NotFound {
        /// Kind of object.
        what: &'static str,
        /// Its name or uuid.
        name: String,
        /// Where.
        pool: String,
    },
    /// The pool was exported, destroyed or its core ended.
    #[error("pool {pool} is not open any more")]
    Closed {
        /// Which pool.
        pool: String,
    },
    /// The pool takes no writes any more.
    #[error("pool {pool} takes no writes since {fault}; replace what failed and import it again")]
    Faulted {
        /// Which pool.
        pool: String,
        /// What happened.
        fault: String,
    },
    /// A control operation of a device failed.
    #[error("pool {pool}")]
    Device {
        /// Which pool.
        pool: String,
        /// Why.
        #[source]
        source: DeviceError,
    },
    /// An object cannot be stored.
    #[error("the object cannot be stored")]
    Encode {
        /// Why.
        #[source]
        source: crate::format::FormatError,
    },
    /// The memory of a pool could not be had.
    #[error("no memory for pool {pool}")]
    Memory {
        /// Which pool.
        pool: String,
        /// Why.
        #[source]
        source: aio::memory::MemoryError,
    },
    /// An I/O of a device failed.
    #[error("{op} on {disk} failed")]
    Io {
        /// What was attempted.
        op: &'static str,
        /// On which disk.
        disk: String,
        /// Why.
        #[source]
        source: IoError,
    },
}
