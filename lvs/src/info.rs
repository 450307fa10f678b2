//! What the control side asks for and is told: plain data.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

pub use aio::facets::CreateSnapshot;
use uuid::Uuid;

/// How a pool is made.
#[derive(Clone, Debug)]
pub struct CreatePool {
    /// 1 to 255 bytes, unique on the node.
    pub name: String,
    /// Chosen when `None`.
    pub uuid: Option<Uuid>,
    /// Takes disks that hold something else.
    pub force: bool,
}

/// How a pool is found on its disks.
#[derive(Clone, Debug, Default)]
pub struct ImportPool {
    /// Refuse a pool of another name.
    pub name: Option<String>,
    /// Refuse a pool of another uuid.
    pub uuid: Option<Uuid>,
    /// When disks are missing, open it for reading only: blocks on the missing disks cannot be read, and when the end of the
    /// log is there, everything is as it was before that.
    pub degraded: bool,
}

/// A pool's state in figures. Bytes, unless named otherwise.
#[derive(Clone, Debug)]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Names of its devices, in the order of their index.
    pub disks: Vec<String>,
    /// Why it takes no more writes; `None` = healthy.
    pub fault: Option<String>,
    /// Why it was opened for reading only, with what that means; `None` = it was not.
    pub read_only: Option<String>,
    /// What volumes can hold. What cleaning and metadata need is left out already.
    pub capacity_bytes: u64,
    /// Held by live blocks of volumes and snapshots, and by reservations of thick volumes.
    pub used_bytes: u64,
    /// Sum of the sizes of all volumes, thin ones included.
    pub committed_bytes: u64,
    /// Bytes of all devices together.
    pub raw_bytes: u64,
    /// Block size that its volumes have.
    pub block_bytes: u32,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments: of all, and those that are free.
    pub segments: (u32, u32),
    /// Pages of map in use.
    pub map_pages: u64,
    /// What was written to the devices since the pool was opened.
    pub written: Written,
    /// What went wrong on the disks.
    pub errors: DiskErrors,
}

/// Bytes written to the devices of a pool since it was opened, by what they are. Anchors and labels are left out.
#[derive(Clone, Copy, Default, Debug)]
pub struct Written {
    /// Blocks of volumes, as they were written.
    pub data_bytes: u64,
    /// Headers of these records, changes of the catalogue.
    pub header_bytes: u64,
    /// Blocks that the cleaner moved, with their headers.
    pub moved_bytes: u64,
    /// Map pages and tables, with their headers.
    pub page_bytes: u64,
}

impl Written {
    /// Bytes written for each byte of volumes; `None` when these wrote nothing.
    pub fn amplification(&self) -> Option<f64> {
        let all = self.data_bytes + self.header_bytes + self.moved_bytes + self.page_bytes;
        (self.data_bytes > 0).then(|| all as f64 / self.data_bytes as f64)
    }
}

/// What went wrong on a pool's disks since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskErrors {
    /// Reads of data that a disk failed.
    pub reads: u64,
    /// Blocks of data that were not what was written.
    pub checksums: u64,
    /// Map pages that could not be read from their first place; of interior ones there is a copy.
    pub map_pages: u64,
}

/// What is done with a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskState {
    /// It is in use.
    Active,
    /// It is being emptied, to be removed.
    Evacuating,
    /// It is not there: what is on it cannot be read.
    Missing,
}

/// A disk of a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskInfo {
    /// Its index in the pool; it never belongs to another disk.
    pub index: u32,
    /// Which disk, as its label says.
    pub uuid: Uuid,
    /// Name of the device.
    pub name: String,
    /// What is done with it.
    pub state: DiskState,
    /// What the pool uses of it.
    pub size_bytes: u64,
    /// Segments that hold something, in bytes.
    pub used_bytes: u64,
    /// Data and metadata that something refers to: what is left to move while it is being emptied.
    pub live_bytes: u64,
}

/// How a volume is made.
#[derive(Clone, Debug)]
pub struct CreateVolume {
    /// Unique in the pool, 1 to 255 bytes.
    pub name: String,
    /// Chosen when `None`; unique in the pool.
    pub uuid: Option<Uuid>,
    /// Rounded up to 4096.
    pub size_bytes: u64,
    /// Space is taken when written, not reserved.
    pub thin: bool,
    /// The owner's name for it.
    pub entity_id: Option<String>,
}

/// A volume, as lists show it.
#[derive(Clone, Debug)]
pub struct VolumeInfo {
    /// Its identity.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its block size.
    pub block_bytes: u32,
    /// Without reservation.
    pub thin: bool,
    /// Held by its own writes since its newest snapshot (reservations of a thick volume included).
    pub allocated_bytes: u64,
    /// Held by the snapshots of its line, from which it reads what it did not write since.
    pub snapshots_bytes: u64,
    /// Snapshots of this volume that still exist.
    pub snapshots: u32,
    /// The snapshot that it was cloned from.
    pub clone_of: Option<Uuid>,
    /// When it was made.
    pub created: SystemTime,
    /// Its stored properties.
    pub properties: VolumeProperties,
}

/// What a volume carries for others; kept over import.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VolumeProperties {
    /// It was shared over NVMe-oF, and is again after an import.
    pub shared: bool,
    /// Host NQNs that may connect; empty = all.
    pub allowed_hosts: Vec<String>,
    /// The owner's name for it.
    pub entity_id: Option<String>,
}

/// A snapshot, as lists show it.
#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    /// As given.
    pub name: String,
    /// As given.
    pub uuid: Uuid,
    /// As given.
    pub txn_id: String,
    /// As given.
    pub entity_id: String,
    /// As given.
    pub created: SystemTime,
    /// The volume that it was taken of; `None` when that is gone.
    pub source: Option<Uuid>,
    /// Name of the source at that time.
    pub source_name: String,
    /// Size of the source at that time.
    pub size_bytes: u64,
    /// Held by it: written between the snapshot before it and itself, and still needed.
    pub allocated_bytes: u64,
    /// Held by all older snapshots of its line.
    pub ancestors_bytes: u64,
    /// Clones that exist.
    pub clones: u32,
    /// Deleted, but clones still need it: it goes with the last of them.
    pub discarded: bool,
}

/// Counters of a pool or a volume since it was opened or they were reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IoStats {
    /// Reads that were taken.
    pub reads: u64,
    /// Bytes.
    pub read_bytes: u64,
    /// Writes that were taken.
    pub writes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Unmaps and zeroings that were taken.
    pub unmaps: u64,
    /// Bytes.
    pub unmapped_bytes: u64,
}

/// What the offline checker is to do.
#[derive(Clone, Debug, Default)]
pub struct CheckWish {
    /// Read every block of data and compare its checksum.
    pub data: bool,
    /// Where it says how far it is.
    pub progress: Arc<CheckProgress>,
}

impl CheckWish {
    /// Everything that there is to check.
    pub fn everything() -> Self {
        Self { data: true, ..Self::default() }
    }
}

/// How far the offline checker is. It counts up; read it from anywhere.
#[derive(Debug, Default)]
pub struct CheckProgress {
    /// Map pages that were looked at.
    pub pages: AtomicU64,
    /// Blocks of data that were found in them.
    pub blocks: AtomicU64,
    /// Blocks of data that the pool says it has; 0 = not known yet.
    pub blocks_in_all: AtomicU64,
    /// Bytes of data that were read.
    pub verified_bytes: AtomicU64,
}

/// What the offline checker found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Name of the pool.
    pub pool: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Lines looked at: volumes with their snapshots.
    pub lines: u64,
    /// Map pages read and checked.
    pub pages: u64,
    /// Blocks of data that the maps refer to.
    pub blocks: u64,
    /// Blocks of data in the log that are not in the maps yet.
    pub tail_blocks: u64,
    /// Bytes of data that were read and checked.
    pub verified_bytes: u64,
    /// How much is wrong.
    pub wrong: u64,
    /// What is wrong, in words: the first thousand.
    pub findings: Vec<String>,
    /// Of that, what [`repair`](crate::repair) can make right, in words.
    pub repairable: Vec<String>,
}

/// What became of a scrub.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ScrubState {
    /// None was begun since the pool was opened.
    #[default]
    Never,
    /// It is at work.
    Running,
    /// It looked at everything.
    Finished,
    /// It was told to stop.
    Stopped,
    /// It could not go on.
    Failed,
}

/// What is wrong with a piece of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HarmKind {
    /// It is not what was written.
    Checksum,
    /// The disk does not read it.
    Unreadable,
    /// A map page that leads to it is lost: some or all of it cannot be found.
    Map,
}

/// A piece of a volume or snapshot that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Harm {
    /// Which volume or snapshot.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// It is a snapshot.
    pub snapshot: bool,
    /// Where in it.
    pub offset_bytes: u64,
    /// How much.
    pub len_bytes: u64,
    /// Why.
    pub kind: HarmKind,
}

/// How far a scrub is, or what it found. Kept while the pool is open.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScrubReport {
    /// What became of it.
    pub state: ScrubState,
    /// Why it could not go on.
    pub failure: Option<String>,
    /// When it began.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub ended: Option<SystemTime>,
    /// Bytes that it reads in a second at most.
    pub rate_bytes_s: u64,
    /// Live data when it began, to tell how far it is.
    pub data_bytes_in_all: u64,
    /// Live data that was looked at.
    pub data_bytes: u64,
    /// Everything that was read for it.
    pub read_bytes: u64,
    /// Map pages that were looked at, each copy of them.
    pub map_pages: u64,
    /// Copies of tables that were.
    pub tables: u64,
    /// Copies of labels and newest anchors that were.
    pub superblocks: u64,
    /// Blocks, pages and copies that were not what was written.
    pub wrong_checksums: u64,
    /// Those that a disk did not read.
    pub unreadable: u64,
    /// Of both, what was written anew from a good copy.
    pub repaired: u64,
    /// Pieces of volumes and snapshots that cannot be read: the first 256.
    pub harmed: Vec<Harm>,
    /// How many more there are.
    pub harmed_left_out: u64,
    /// What is or was wrong with metadata, in words: the first hundred.
    pub metadata: Vec<String>,
    /// How many more there are.
    pub metadata_left_out: u64,
}

impl ScrubReport {
    /// What is wrong and could not be made right.
    pub fn unrepaired(&self) -> u64 {
        (self.wrong_checksums + self.unreadable).saturating_sub(self.repaired)
    }
}
