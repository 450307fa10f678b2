//! The table of segments: what each is used for, and how much of it is live. 16 bytes a segment.

use super::bytes::{Reader, at_most};
use super::label::MAX_SEGMENTS;
use super::{FormatError, What};
use crate::types::MAX_MEMBERS;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"KSsegmts";
const VERSION: u16 = 1;

/// What is written to a segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stream {
    /// What volumes write.
    Hot = 1,
    /// What the cleaner moves.
    Cold = 2,
    /// Map pages and blobs.
    Meta = 3,
}

impl Stream {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hot,
            2 => Self::Cold,
            3 => Self::Meta,
            _ => return None,
        })
    }
}

/// What a segment is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SegmentState {
    /// Nothing refers to it.
    #[default]
    Free,
    /// It is being written, and with what.
    Open(Stream),
    /// It was written to its end or closed, and with what.
    Full(Stream),
}

/// A segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// Blocks in it that something refers to. A hint for the cleaner: whether a block is live is looked up.
    pub live_blocks: u32,
    /// How often it was used.
    pub generation: u32,
    /// What it is used for.
    pub state: SegmentState,
    /// Low 32 bits of the checkpoint in which it was written last.
    pub age: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U16,
    members: U16,
    reserved: [u8; 4],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    live_blocks: U32,
    generation: U32,
    age: U32,
    state: u8,
    stream: u8,
    reserved: [u8; 2],
}

const _: () = assert!(size_of::<Head>() == 16);
const _: () = assert!(size_of::<Raw>() == 16);

impl Raw {
    fn of(segment: &Segment) -> Self {
        let (state, stream) = match segment.state {
            SegmentState::Free => (0, 0),
            SegmentState::Open(stream) => (1, stream as u8),
            SegmentState::Full(stream) => (2, stream as u8),
        };
        Self {
            live_blocks: segment.live_blocks.into(),
            generation: segment.generation.into(),
            age: segment.age.into(),
            state,
            stream,
            reserved: [0; 2],
        }
    }

    fn decode(&self, segment_blocks: u32) -> Option<Segment> {
        let state = match (self.state, Stream::from_byte(self.stream)) {
            (0, None) if self.stream == 0 => SegmentState::Free,
            (1, Some(stream)) => SegmentState::Open(stream),
            (2, Some(stream)) => SegmentState::Full(stream),
            _ => return None,
        };
        let live_blocks = self.live_blocks.get();
        let most = if state == SegmentState::Free { 0 } else { segment_blocks };
        (live_blocks <= most && self.reserved == [0; 2]).then_some(Segment {
            live_blocks,
            generation: self.generation.get(),
            state,
            age: self.age.get(),
        })
    }
}

/// The table as a blob, segment by segment: those of each device, in the order of their index.
pub struct Encoder {
    bytes: Vec<u8>,
    left: usize,
}

impl Encoder {
    /// Of devices that have so many segments.
    pub fn new(lengths: &[u32]) -> Result<Self, FormatError> {
        let what = What::SegmentTable;
        at_most(what, "devices", lengths.len(), MAX_MEMBERS)?;
        let members = (lengths.len() as u16).into();
        let head = Head { magic: MAGIC, version: VERSION.into(), members, reserved: [0; 4] };
        let left: usize = lengths.iter().map(|&len| len as usize).sum();
        let len_bytes = size_of::<Head>() + lengths.len() * 4 + left * size_of::<Raw>();
        let mut bytes = Vec::with_capacity(len_bytes);
        bytes.extend_from_slice(head.as_bytes());
        for &len in lengths {
            at_most(what, "segments of a device", len as usize, MAX_SEGMENTS as usize)?;
            bytes.extend_from_slice(&len.to_le_bytes());
        }
        Ok(Self { bytes, left })
    }

    /// Adds the next segment.
    pub fn push(&mut self, segment: &Segment) {
        self.bytes.extend_from_slice(Raw::of(segment).as_bytes());
        self.left = self.left.wrapping_sub(1);
    }

    /// The blob. An error when there are more or fewer segments than were announced.
    pub fn finish(self) -> Result<Vec<u8>, FormatError> {
        let (what, at_bytes) = (What::SegmentTable, self.bytes.len());
        match self.left {
            0 => Ok(self.bytes),
            _ => Err(FormatError::Value { what, field: "number of segments", at_bytes }),
        }
    }
}

/// The table as a blob.
#[cfg(test)]
fn encode(members: &[Vec<Segment>]) -> Result<Vec<u8>, FormatError> {
    let lengths: Vec<u32> = members.iter().map(|m| m.len() as u32).collect();
    let mut encoder = Encoder::new(&lengths)?;
    members.iter().flatten().for_each(|segment| encoder.push(segment));
    encoder.finish()
}

/// The table from a blob. A live count above `segment_blocks` is refused.
pub fn decode(bytes: &[u8], segment_blocks: u32) -> Result<Vec<Vec<Segment>>, FormatError> {
    let what = What::SegmentTable;
    let mut reader = Reader::new(what, bytes);
    let head: Head = reader.take()?;
    if head.magic != MAGIC {
        return Err(FormatError::Magic(what));
    }
    if head.version.get() != VERSION {
        return Err(FormatError::Version { what, found: head.version.get() });
    }
    if head.reserved != [0; 4] {
        return Err(reader.bad("reserved part", 4));
    }
    at_most(what, "devices", head.members.get().into(), MAX_MEMBERS)?;
    let counts = reader.take_list::<U32>(head.members.get().into())?;
    let mut members = Vec::with_capacity(counts.len());
    for count in counts {
        at_most(what, "segments of a device", count.get() as usize, MAX_SEGMENTS as usize)?;
        let list = reader.take_list::<Raw>(count.get() as usize)?;
        let mut segments = Vec::with_capacity(list.len());
        for (index, raw) in list.iter().enumerate() {
            let back_bytes = (list.len() - index) * size_of::<Raw>();
            segments.push(raw.decode(segment_blocks).ok_or(reader.bad("segment", back_bytes))?);
        }
        members.push(segments);
    }
    if !reader.is_at_end() {
        return Err(reader.bad("end", 0));
    }
    Ok(members)
}

#[cfg(test)]
mod tests;
