//! Headers of records, the units of the log: written as blocks arrive, read again at import and by the cleaner.
//!
//! # Map
//! - `write`: the writers. They hold a few numbers; the bytes go straight into the caller's buffer.
//! - `read`: [`Record`], a header that was checked, and iterators over what it lists.
//!
//! A header is believed when its checksum fits, which covers all of its blocks and, unseen in it, the pool, a secret
//! of this opening and the address where it stands ([`HeaderSeal`]). Half of the secret stands in the header, so that
//! a scan passes over whatever else looks like one, and a guest that writes headers into its volume would have to guess it.

mod read;
mod write;

pub use read::{CrcsOf, DataEntries, DataEntry, Pages, Record, Relocations};
pub use write::{CatalogueHeader, DataHeader, Full, NoteHeader, PagesHeader, RelocateHeader};

use super::{FormatError, What};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, Pba, Seq};
use nvme::digest::Digest;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes before the list.
pub const FIXED_BYTES: usize = 64;
/// Most blocks of a header: 256 KiB.
pub const MAX_HEADER_BLOCKS: usize = 64;
/// Blocks that a Data header of one block can always list, even when no two of them follow each other.
pub const MAX_BLOCKS_IN_ONE_HEADER_BLOCK: usize = (BLOCK - FIXED_BYTES) / (EXTENT_BYTES + CRC_BYTES);
/// Blocks that a Relocate header of one block can list.
pub const MAX_RELOCATIONS_IN_ONE_HEADER_BLOCK: usize = (BLOCK - FIXED_BYTES) / size_of::<RawRelocation>();
/// Pages that a Pages header of one block can list.
pub const MAX_PAGES_IN_ONE_HEADER_BLOCK: usize = (BLOCK - FIXED_BYTES) / size_of::<RawPage>();
/// Most bytes of a Catalogue record's content.
pub const MAX_CATALOGUE_BYTES: usize = MAX_HEADER_BLOCKS * BLOCK - FIXED_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;
const MAGIC: [u8; 8] = *b"KSrecord";
const VERSION: u8 = 1;
const CHECKSUM_AT: usize = 60;
const EXTENT_BYTES: usize = size_of::<RawExtent>();
const CRC_BYTES: usize = 4;
/// In the count of an extent: it is a hole, and its length follows as 8 bytes.
const HOLE: u32 = 1 << 31;

/// What a record holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Blocks of volumes, and holes.
    Data = 1,
    /// Blocks that the cleaner moved.
    Relocate = 2,
    /// Changed objects of the catalogue.
    Catalogue = 3,
    /// How far the log is durable.
    Note = 4,
    /// Map pages and pieces of blobs. Not part of the log.
    Pages = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Data,
            2 => Self::Relocate,
            3 => Self::Catalogue,
            4 => Self::Note,
            5 => Self::Pages,
            _ => return None,
        })
    }
}

/// The numbers that every header carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Its place in the log.
    pub seq: Seq,
    /// Every record up to this number was durable when the header was made. Not above `seq` in a record of the log.
    pub durable: Seq,
    /// The checkpoint after which it was written.
    pub checkpoint: u64,
}

/// What binds headers to a pool and one opening of it, without standing in them.
#[derive(Clone, Copy, Debug)]
pub struct HeaderSeal {
    token: [u8; 8],
    prefix: Digest,
}

impl HeaderSeal {
    /// The seal of the opening with this `salt`, which stands in the anchor.
    pub fn new(pool: &Uuid, salt: &[u8; 16]) -> Self {
        let mut prefix = Digest::new();
        prefix.update(pool.as_bytes());
        prefix.update(salt);
        let mut token = [0; 8];
        token.copy_from_slice(&salt[..8]);
        Self { token, prefix }
    }

    /// Over whole header blocks that stand at `pba`, without the checksum's own bytes.
    fn checksum(&self, header: &[u8], pba: Pba) -> u32 {
        let mut digest = self.prefix;
        digest.update(&pba.bits().to_le_bytes());
        digest.update(&header[..CHECKSUM_AT]);
        digest.update(&header[FIXED_BYTES..]);
        digest.value()
    }

    /// A cheap filter for scans: false when no header of this opening can begin with these bytes (56 or more).
    #[inline]
    pub fn may_begin(&self, first_bytes: &[u8]) -> bool {
        first_bytes.starts_with(&MAGIC) && first_bytes.get(48..56) == Some(&self.token[..])
    }
}

/// True when a header of some opening of some pool may begin with these bytes (16 or more). A filter, no proof.
pub fn looks_like_header(first_bytes: &[u8]) -> bool {
    first_bytes.starts_with(&MAGIC) && header_blocks(first_bytes).is_some()
}

/// Blocks of the header that begins with these bytes (16 or more), as it says itself: what has to be read before
/// [`Record::parse`]. `None` when that cannot be.
pub fn header_blocks(first_bytes: &[u8]) -> Option<usize> {
    let field = first_bytes.get(10..12)?;
    let blocks = usize::from(u16::from_le_bytes([field[0], field[1]]));
    (1..=MAX_HEADER_BLOCKS).contains(&blocks).then_some(blocks)
}

/// A moved block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocation {
    /// Whose.
    pub line: LineId,
    /// Which.
    pub block: BlockNo,
    /// Of which version. It stays the same.
    pub birth: Seq,
    /// Where it stood: the move counts only while the map still says so.
    pub from: Pba,
    /// Of its bytes.
    pub crc: u32,
}

/// A part of the pool's state that is written as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlobKind {
    /// The catalogue.
    Catalogue = 1,
    /// The table of lines.
    Lines = 2,
    /// The table of segments.
    Segments = 3,
    /// What was in the delta when the pool was opened.
    Delta = 4,
}

impl BlobKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Catalogue,
            2 => Self::Lines,
            3 => Self::Segments,
            4 => Self::Delta,
            _ => return None,
        })
    }
}

/// What one payload block of a Pages record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageNote {
    /// A map page. It is live when the tree of `line` leads to it at this key and level.
    Map {
        /// Whose tree.
        line: LineId,
        /// On which level.
        level: u8,
        /// Its first key.
        block: BlockNo,
        /// Its first key.
        birth: Seq,
        /// Of its bytes.
        crc: u32,
    },
    /// A block of a blob. It is live when the newest anchor points to it.
    Blob {
        /// Of which.
        kind: BlobKind,
        /// Written by which checkpoint.
        checkpoint: u64,
        /// Which block of it.
        index: u64,
        /// Of its bytes.
        crc: u32,
    },
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    version: u8,
    kind: u8,
    header_blocks: U16,
    payload_blocks: U32,
    seq: U64,
    durable: U64,
    checkpoint: U64,
    entries: U32,
    content_bytes: U32,
    token: [u8; 8],
    reserved: [u8; 4],
    checksum: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtent {
    line: U32,
    /// Blocks, or [`HOLE`].
    count: U32,
    block: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRelocation {
    line: U32,
    crc: U32,
    block: U64,
    birth: U64,
    from: U64,
}

/// Of a blob: `level` is its kind, `line` 0, `block` the index and `birth` the checkpoint.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPage {
    blob: u8,
    level: u8,
    reserved: [u8; 2],
    line: U32,
    block: U64,
    birth: U64,
    crc: U32,
    reserved2: [u8; 4],
}

const _: () = assert!(size_of::<Fixed>() == FIXED_BYTES);
const _: () = assert!(size_of::<RawExtent>() == 16);
const _: () = assert!(size_of::<RawRelocation>() == 32);
const _: () = assert!(size_of::<RawPage>() == 32);
const _: () = assert!(core::mem::offset_of!(Fixed, checksum) == CHECKSUM_AT);
const _: () = assert!(core::mem::offset_of!(Fixed, token) == 48);

/// A field of a header that cannot be.
fn bad(field: &'static str, at_bytes: usize) -> FormatError {
    FormatError::Value { what: What::Record, field, at_bytes }
}

#[cfg(test)]
mod tests;
