//! The anchor: what a pool is at one durable checkpoint.

use super::blob::{BLOB_PTR_BYTES, BlobPtr, RawBlobPtr};
use super::bytes::{Reader, at_most};
use super::label::{
    ANCHOR_SLOT_BLOCKS, FIRST_SEGMENT_BLOCK, KNOWN_INCOMPATIBLE, MAX_DEVICE_BLOCKS, MAX_SEGMENTS,
    is_segment_size,
};
use super::segtable::Stream;
use super::{FormatError, What};
use crate::types::{BLOCK_BYTES, MAX_MEMBERS, Pba, SegmentId, Seq};
use nvme::digest::Digest;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most bytes of an anchor: its slot.
pub const MAX_ANCHOR_BYTES: usize = ANCHOR_SLOT_BLOCKS as usize * BLOCK_BYTES as usize;
/// Most segments that are open at a time.
pub const MAX_OPEN_STREAMS: usize = 16;
/// Most segments that can be named as those to be opened next.
pub const MAX_NEXT_SEGMENTS: usize = 4096;

const MAGIC: [u8; 8] = *b"KSanchor";
const VERSION: u16 = 1;
const FIXED_BYTES: usize = size_of::<Fixed>();
const CHECKSUM_AT: usize = 124;
/// What the limits allow fits into the slot.
const _: () = assert!(
    FIXED_BYTES + MAX_MEMBERS * 32 + MAX_OPEN_STREAMS * 16 + MAX_NEXT_SEGMENTS * 4 + 4 * BLOB_PTR_BYTES
        <= MAX_ANCHOR_BYTES
);

/// What a pool is at one durable checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Anchor {
    /// Of which pool.
    pub pool: Uuid,
    /// Features that have to be known.
    pub incompatible: u64,
    /// Features that need not be known.
    pub compatible: u64,
    /// Number of the checkpoint: the highest valid one counts.
    pub checkpoint: u64,
    /// How often the pool was opened for writing.
    pub opening: u32,
    /// The pool was exported: there is nothing behind `base`, and no cached write was lost.
    pub clean: bool,
    /// New after every import that was not from a clean export.
    pub incarnation: [u8; 16],
    /// Random, new in each opening: seals its headers.
    pub salt: [u8; 16],
    /// Records above this number are the tail, to be read again. What is not above is in the trees and blobs.
    pub base: Seq,
    /// The highest number given when it was written.
    pub last: Seq,
    /// Blocks of a segment.
    pub segment_blocks: u32,
    /// All devices, in the order of their index.
    pub members: Vec<Member>,
    /// Segments that are being written.
    pub open: Vec<OpenSegment>,
    /// Segments that will be opened next, in this order.
    pub next: Vec<SegmentId>,
    /// The catalogue.
    pub catalogue: BlobPtr,
    /// The table of lines.
    pub lines: BlobPtr,
    /// The table of segments.
    pub segments: BlobPtr,
    /// What was in the delta at import.
    pub delta: BlobPtr,
}

/// A device of a pool. Its index never belongs to another device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which device.
    pub device: Uuid,
    /// Blocks of it that the pool uses, counted from its beginning.
    pub size_blocks: u64,
    /// Its segments.
    pub segments: u32,
    /// What may be done with it.
    pub state: MemberState,
}

/// What may be done with a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberState {
    /// Everything.
    Active = 1,
    /// It is being emptied: read, and not allocated from.
    Evacuating = 2,
    /// Gone for good: nothing is on it. Its index stays taken.
    Removed = 3,
}

/// A segment that is being written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenSegment {
    /// Which.
    pub segment: SegmentId,
    /// Blocks of it that were taken: the next record stands there or further on.
    pub next_block: u32,
    /// What is written to it.
    pub stream: Stream,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    version: U16,
    reserved: [u8; 2],
    len_bytes: U32,
    incompatible: U64,
    compatible: U64,
    pool: [u8; 16],
    checkpoint: U64,
    opening: U32,
    clean: u8,
    reserved2: [u8; 3],
    incarnation: [u8; 16],
    salt: [u8; 16],
    base: U64,
    last: U64,
    segment_blocks: U32,
    members: U16,
    open: U16,
    next: U32,
    checksum: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMember {
    device: [u8; 16],
    size_blocks: U64,
    segments: U32,
    state: u8,
    reserved: [u8; 3],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOpen {
    segment: U32,
    next_block: U32,
    stream: u8,
    reserved: [u8; 7],
}

const _: () = assert!(size_of::<Fixed>() == 128);
const _: () = assert!(core::mem::offset_of!(Fixed, checksum) == CHECKSUM_AT);
const _: () = assert!(size_of::<RawMember>() == 32);
const _: () = assert!(size_of::<RawOpen>() == 16);

impl Anchor {
    /// As it is written to both copies of its slot: whole blocks, zeroes behind its end.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut bytes = vec![0; FIXED_BYTES];
        for member in &self.members {
            let raw = RawMember {
                device: *member.device.as_bytes(),
                size_blocks: member.size_blocks.into(),
                segments: member.segments.into(),
                state: member.state as u8,
                reserved: [0; 3],
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        for open in &self.open {
            let raw = RawOpen {
                segment: open.segment.0.into(),
                next_block: open.next_block.into(),
                stream: open.stream as u8,
                reserved: [0; 7],
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        for next in &self.next {
            bytes.extend_from_slice(&next.0.to_le_bytes());
        }
        for blob in [&self.catalogue, &self.lines, &self.segments, &self.delta] {
            bytes.extend_from_slice(blob.to_raw()?.as_bytes());
        }
        self.fill_fixed(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        Ok(bytes)
    }

    fn fill_fixed(&self, bytes: &mut [u8]) {
        let mut fixed = Fixed {
            magic: MAGIC,
            version: VERSION.into(),
            reserved: [0; 2],
            len_bytes: (bytes.len() as u32).into(),
            incompatible: self.incompatible.into(),
            compatible: self.compatible.into(),
            pool: *self.pool.as_bytes(),
            checkpoint: self.checkpoint.into(),
            opening: self.opening.into(),
            clean: self.clean.into(),
            reserved2: [0; 3],
            incarnation: self.incarnation,
            salt: self.salt,
            base: self.base.0.into(),
            last: self.last.0.into(),
            segment_blocks: self.segment_blocks.into(),
            members: (self.members.len() as u16).into(),
            open: (self.open.len() as u16).into(),
            next: (self.next.len() as u32).into(),
            checksum: 0.into(),
        };
        bytes[..FIXED_BYTES].copy_from_slice(fixed.as_bytes());
        fixed.checksum = checksum(bytes).into();
        bytes[..FIXED_BYTES].copy_from_slice(fixed.as_bytes());
    }

    /// The anchor at the beginning of a slot. `bytes` may be longer than it is.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = What::Anchor;
        let value = |field, at_bytes| FormatError::Value { what, field, at_bytes };
        let fixed: Fixed = Reader::new(what, bytes).take()?;
        if fixed.magic != MAGIC {
            return Err(FormatError::Magic(what));
        }
        let len_bytes = fixed.len_bytes.get() as usize;
        if !(FIXED_BYTES..=MAX_ANCHOR_BYTES).contains(&len_bytes) {
            return Err(value("length", 12));
        }
        let bytes = Reader::new(what, bytes).take_bytes(len_bytes)?;
        if checksum(bytes) != fixed.checksum.get() {
            return Err(FormatError::Checksum(what));
        }
        // From here on it is what somebody wrote; whether it can be used is another matter.
        if fixed.version.get() != VERSION {
            return Err(FormatError::Version { what, found: fixed.version.get() });
        }
        check_features(fixed.incompatible.get())?;
        if fixed.reserved != [0; 2] || fixed.reserved2 != [0; 3] {
            return Err(value("reserved part", 10));
        }
        if fixed.clean > 1 {
            return Err(value("mark of a clean export", 60));
        }
        let mut reader = Reader::new(what, bytes);
        reader.take_bytes(FIXED_BYTES)?;
        let members = decode_members(&mut reader, fixed.members.get().into())?;
        let open = decode_open(&mut reader, fixed.open.get().into())?;
        let next = reader.take_list::<U32>(fixed.next.get() as usize)?;
        let mut blob = || {
            let at_bytes = reader.at_bytes();
            BlobPtr::from_raw(&reader.take::<RawBlobPtr>()?, at_bytes)
        };
        let (catalogue, lines, segments, delta) = (blob()?, blob()?, blob()?, blob()?);
        if !reader.is_at_end() {
            return Err(value("length", 12));
        }
        let anchor = Self {
            pool: Uuid::from_bytes(fixed.pool),
            incompatible: fixed.incompatible.get(),
            compatible: fixed.compatible.get(),
            checkpoint: fixed.checkpoint.get(),
            opening: fixed.opening.get(),
            clean: fixed.clean == 1,
            incarnation: fixed.incarnation,
            salt: fixed.salt,
            base: Seq(fixed.base.get()),
            last: Seq(fixed.last.get()),
            segment_blocks: fixed.segment_blocks.get(),
            members,
            open,
            next: next.iter().map(|segment| SegmentId(segment.get())).collect(),
            catalogue,
            lines,
            segments,
            delta,
        };
        anchor.check()?;
        Ok(anchor)
    }

    /// True when all that it says can be: written and read alike.
    fn check(&self) -> Result<(), FormatError> {
        let what = What::Anchor;
        let value = |field, at_bytes| Err(FormatError::Value { what, field, at_bytes });
        check_features(self.incompatible)?;
        at_most(what, "devices", self.members.len(), MAX_MEMBERS)?;
        at_most(what, "open segments", self.open.len(), MAX_OPEN_STREAMS)?;
        at_most(what, "next segments", self.next.len(), MAX_NEXT_SEGMENTS)?;
        if !is_segment_size(self.segment_blocks) {
            return value("segment size", 112);
        }
        if self.last < self.base {
            return value("last sequence number", 104);
        }
        if self.opening >> 24 != 0 || self.last.opening() > self.opening {
            return value("opening", 56);
        }
        if self.members.is_empty() || !self.members.iter().all(|member| member.can_be(self.segment_blocks)) {
            return value("device", FIXED_BYTES);
        }
        let named = self.open.iter().map(|open| open.segment).chain(self.next.iter().copied());
        let mut named: Vec<SegmentId> = named.collect();
        named.sort_unstable();
        if named.windows(2).any(|pair| pair[0] == pair[1]) || !named.iter().all(|s| self.has_segment(*s)) {
            return value("segment to write to", 118);
        }
        if self.open.iter().any(|open| open.next_block > self.segment_blocks) {
            return value("next block of a segment", 118);
        }
        let blobs = [&self.catalogue, &self.lines, &self.segments, &self.delta];
        let mut extents = blobs.iter().flat_map(|blob| blob.extents.iter().chain(&blob.copy));
        if !extents.all(|extent| self.has_blocks(extent.pba, extent.blocks.into())) {
            return value("address of a blob", 128);
        }
        Ok(())
    }

    /// True when records that have to be read again may stand on this device.
    pub fn names_segments_of(&self, member: u8) -> bool {
        let open = self.open.iter().map(|open| open.segment);
        open.chain(self.next.iter().copied()).any(|segment| segment.member() == member)
    }

    /// True for a segment of a device that is a member.
    pub fn has_segment(&self, segment: SegmentId) -> bool {
        self.members
            .get(usize::from(segment.member()))
            .is_some_and(|member| member.state != MemberState::Removed && segment.index() < member.segments)
    }

    /// True when blocks are in segments of a device that is a member.
    pub fn has_blocks(&self, pba: Pba, count: u64) -> bool {
        !pba.is_none()
            && self.members.get(usize::from(pba.member())).is_some_and(|member| {
                let end = FIRST_SEGMENT_BLOCK + u64::from(member.segments) * u64::from(self.segment_blocks);
                member.state != MemberState::Removed
                    && pba.block() >= FIRST_SEGMENT_BLOCK
                    && pba.block().checked_add(count).is_some_and(|last| last <= end)
            })
    }
}

impl Member {
    fn can_be(&self, segment_blocks: u32) -> bool {
        let used = FIRST_SEGMENT_BLOCK + u64::from(self.segments) * u64::from(segment_blocks);
        self.segments <= MAX_SEGMENTS && self.size_blocks <= MAX_DEVICE_BLOCKS && used <= self.size_blocks
    }
}

fn check_features(incompatible: u64) -> Result<(), FormatError> {
    let bits = incompatible & !KNOWN_INCOMPATIBLE;
    if bits == 0 { Ok(()) } else { Err(FormatError::Incompatible { what: What::Anchor, bits }) }
}

fn decode_members(reader: &mut Reader<'_>, count: usize) -> Result<Vec<Member>, FormatError> {
    at_most(What::Anchor, "devices", count, MAX_MEMBERS)?;
    let mut members = Vec::with_capacity(count);
    for _ in 0..count {
        let raw: RawMember = reader.take()?;
        let state = match raw.state {
            1 => MemberState::Active,
            2 => MemberState::Evacuating,
            3 => MemberState::Removed,
            _ => return Err(reader.bad("state of a device", 4)),
        };
        if raw.reserved != [0; 3] {
            return Err(reader.bad("reserved part", 3));
        }
        members.push(Member {
            device: Uuid::from_bytes(raw.device),
            size_blocks: raw.size_blocks.get(),
            segments: raw.segments.get(),
            state,
        });
    }
    Ok(members)
}

fn decode_open(reader: &mut Reader<'_>, count: usize) -> Result<Vec<OpenSegment>, FormatError> {
    at_most(What::Anchor, "open segments", count, MAX_OPEN_STREAMS)?;
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let raw: RawOpen = reader.take()?;
        let stream = Stream::from_byte(raw.stream).ok_or(reader.bad("stream of an open segment", 8))?;
        if raw.reserved != [0; 7] {
            return Err(reader.bad("reserved part", 7));
        }
        open.push(OpenSegment {
            segment: SegmentId(raw.segment.get()),
            next_block: raw.next_block.get(),
            stream,
        });
    }
    Ok(open)
}

/// Over all bytes but the checksum's own.
fn checksum(bytes: &[u8]) -> u32 {
    let mut digest = Digest::new();
    digest.update(&bytes[..CHECKSUM_AT]);
    digest.update(&bytes[FIXED_BYTES..]);
    digest.value()
}

#[cfg(test)]
mod tests;
