//! The label of a disk, and where things are on a disk.

use super::bytes::Reader;
use super::{FormatError, What, crc32c};
use crate::types::{BLOCK_BYTES, MAX_MEMBERS, MAX_NAME_BYTES, Pba, SegmentId};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Blocks where the two copies of the label stand.
pub const LABEL_BLOCKS: [u64; 2] = [0, 8];
/// Bytes of a label.
pub const LABEL_BYTES: usize = BLOCK_BYTES as usize;
/// Anchors that are kept: checkpoint n is in slot n mod 4.
pub const ANCHOR_SLOTS: u64 = 4;
/// Blocks of an anchor slot.
pub const ANCHOR_SLOT_BLOCKS: u64 = 16;
/// Blocks where the two copies of the anchor slots begin.
pub const ANCHOR_BLOCKS: [u64; 2] = [16, 80];
/// Where segment 0 begins.
pub const FIRST_SEGMENT_BLOCK: u64 = 256;
/// Blocks of the smallest segment: 1 MiB.
pub const MIN_SEGMENT_BLOCKS: u32 = 256;
/// Blocks of the largest segment: 1 TiB.
pub const MAX_SEGMENT_BLOCKS: u32 = 1 << 28;
/// Segments of one device are numbered below this.
pub const MAX_SEGMENTS: u32 = 1 << 24;
/// Blocks of a device are numbered below this.
pub const MAX_DEVICE_BLOCKS: u64 = 1 << 40;

/// Features without which a pool must not be touched, as this version knows them.
pub const KNOWN_INCOMPATIBLE: u64 = 0;

const MAGIC: [u8; 8] = *b"KEELSON\0";
const VERSION: u16 = 1;

/// Where the anchor of checkpoint `checkpoint` begins; `copy` is 0 or 1.
pub const fn anchor_block(copy: usize, checkpoint: u64) -> u64 {
    ANCHOR_BLOCKS[copy] + checkpoint % ANCHOR_SLOTS * ANCHOR_SLOT_BLOCKS
}

/// True for sizes that a segment can have.
pub const fn is_segment_size(segment_blocks: u32) -> bool {
    segment_blocks.is_power_of_two()
        && segment_blocks >= MIN_SEGMENT_BLOCKS
        && segment_blocks <= MAX_SEGMENT_BLOCKS
}

/// Segment size of a new pool whose devices have `total_bytes` together, at their largest.
///
/// 1 MiB below 1 GiB, so that the smallest pools still have segments to choose from; then 4 MiB, or as much more as
/// keeps the table of 16 bytes a segment within 8 MiB.
pub const fn segment_blocks_for(total_bytes: u64) -> u32 {
    const MOST_SEGMENTS: u64 = (8 << 20) / 16;
    if total_bytes < 1 << 30 {
        return MIN_SEGMENT_BLOCKS;
    }
    let mut blocks = 4 * MIN_SEGMENT_BLOCKS;
    while blocks < MAX_SEGMENT_BLOCKS && total_bytes / BLOCK_BYTES as u64 / blocks as u64 > MOST_SEGMENTS {
        blocks *= 2;
    }
    blocks
}

/// How many segments a device of `device_blocks` has.
pub const fn segments_of(device_blocks: u64, segment_blocks: u32) -> u32 {
    let segments = device_blocks.saturating_sub(FIRST_SEGMENT_BLOCK) / segment_blocks as u64;
    if segments < MAX_SEGMENTS as u64 { segments as u32 } else { MAX_SEGMENTS }
}

/// Where a segment begins. `None` for a number that no pool has.
pub const fn segment_start(segment: SegmentId, segment_blocks: u32) -> Option<Pba> {
    let block = FIRST_SEGMENT_BLOCK + segment.index() as u64 * segment_blocks as u64;
    Pba::new(segment.member(), block)
}

/// The segment in which an address lies, and how many blocks behind its beginning. `None` in front of the first
/// segment, for [`Pba::NONE`], and beyond the last number that a segment can have. Whether the device reaches so far
/// is for the caller to check.
pub const fn segment_at(pba: Pba, segment_blocks: u32) -> Option<(SegmentId, u32)> {
    if pba.is_none() || pba.block() < FIRST_SEGMENT_BLOCK {
        return None;
    }
    let block = pba.block() - FIRST_SEGMENT_BLOCK;
    let index = block / segment_blocks as u64;
    if index >= MAX_SEGMENTS as u64 {
        return None;
    }
    Some((SegmentId::new(pba.member(), index as u32), (block % segment_blocks as u64) as u32))
}

/// What a disk is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// Of which pool.
    pub pool: Uuid,
    /// The pool's name when the label was written: 1 to 255 bytes without control characters.
    pub name: String,
    /// Which device it is.
    pub device: Uuid,
    /// Its index in the pool.
    pub member: u8,
    /// Blocks of a segment: a power of two from [`MIN_SEGMENT_BLOCKS`].
    pub segment_blocks: u32,
    /// When the pool was created, in seconds since 1970.
    pub created_unix_s: u64,
    /// Features that another version may not know and still use the pool.
    pub compatible: u64,
    /// Features that have to be known: [`KNOWN_INCOMPATIBLE`] at most.
    pub incompatible: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawLabel {
    magic: [u8; 8],
    version: U16,
    name_bytes: U16,
    member: U32,
    incompatible: U64,
    compatible: U64,
    pool: [u8; 16],
    device: [u8; 16],
    segment_blocks: U32,
    reserved: [u8; 4],
    created_unix_s: U64,
    reserved2: [u8; 16],
    name: [u8; 256],
    reserved3: [u8; 3740],
    checksum: U32,
}

const _: () = assert!(size_of::<RawLabel>() == LABEL_BYTES);

/// True for names that a pool, volume or snapshot can have.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
}

impl Label {
    /// As it stands on the disk, [`LABEL_BYTES`] long.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut name = [0; 256];
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let mut raw = RawLabel {
            magic: MAGIC,
            version: VERSION.into(),
            name_bytes: (self.name.len() as u16).into(),
            member: u32::from(self.member).into(),
            incompatible: self.incompatible.into(),
            compatible: self.compatible.into(),
            pool: *self.pool.as_bytes(),
            device: *self.device.as_bytes(),
            segment_blocks: self.segment_blocks.into(),
            reserved: [0; 4],
            created_unix_s: self.created_unix_s.into(),
            reserved2: [0; 16],
            name,
            reserved3: [0; 3740],
            checksum: 0.into(),
        };
        raw.checksum = crc32c(&raw.as_bytes()[..LABEL_BYTES - 4]).into();
        Ok(raw.as_bytes().to_vec())
    }

    /// The label in the first [`LABEL_BYTES`] of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = What::Label;
        let mut reader = Reader::new(what, bytes);
        let block = reader.take_bytes(LABEL_BYTES)?;
        let raw: &RawLabel = RawLabel::ref_from_bytes(block).expect("invariant: as many bytes as it has");
        if raw.magic != MAGIC {
            return Err(FormatError::Magic(what));
        }
        if crc32c(&block[..LABEL_BYTES - 4]) != raw.checksum.get() {
            return Err(FormatError::Checksum(what));
        }
        if raw.version.get() != VERSION {
            return Err(FormatError::Version { what, found: raw.version.get() });
        }
        let value = |field, at_bytes| FormatError::Value { what, field, at_bytes };
        let name = raw.name.get(..raw.name_bytes.get().into()).ok_or(value("length of the name", 10))?;
        if raw.name[name.len()..].iter().any(|byte| *byte != 0) {
            return Err(value("name", 96));
        }
        let name = core::str::from_utf8(name).map_err(|_| value("name", 96))?;
        if raw.reserved != [0; 4] || raw.reserved2 != [0; 16] || raw.reserved3.iter().any(|byte| *byte != 0) {
            return Err(value("reserved part", 68));
        }
        let label = Self {
            pool: Uuid::from_bytes(raw.pool),
            name: name.to_owned(),
            device: Uuid::from_bytes(raw.device),
            member: u8::try_from(raw.member.get()).map_err(|_| value("index of the device", 12))?,
            segment_blocks: raw.segment_blocks.get(),
            created_unix_s: raw.created_unix_s.get(),
            compatible: raw.compatible.get(),
            incompatible: raw.incompatible.get(),
        };
        label.check()?;
        Ok(label)
    }

    fn check(&self) -> Result<(), FormatError> {
        let what = What::Label;
        let value = |field, at_bytes| Err(FormatError::Value { what, field, at_bytes });
        if self.incompatible & !KNOWN_INCOMPATIBLE != 0 {
            return Err(FormatError::Incompatible { what, bits: self.incompatible & !KNOWN_INCOMPATIBLE });
        }
        if !is_name(&self.name) {
            return value("name", 96);
        }
        if usize::from(self.member) >= MAX_MEMBERS {
            return value("index of the device", 12);
        }
        if !is_segment_size(self.segment_blocks) {
            return value("segment size", 64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
