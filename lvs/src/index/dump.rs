//! A delta as bytes: what the import checkpoint writes as a blob. Drawn in `FORMAT.md`.

use super::delta::{Change, Delta, Update};
use super::holes::HoleRange;
use crate::types::{BlockNo, LineId, Pba, Place, Seq};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Begins the dump; the rest is `points` of [`PointBytes`], then `ranges` of [`RangeBytes`].
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct HeadBytes {
    points: U32,
    ranges: U32,
}

const _: () = assert!(size_of::<HeadBytes>() == 8);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct PointBytes {
    line: U32,
    /// [`DATA`], [`HOLE`] or [`MOVED`].
    kind: U32,
    block: U64,
    birth: U64,
    /// Address of the data, new address of a move; 0 for a hole.
    pba: U64,
    /// Old address of a move; otherwise 0.
    from: U64,
    /// CRC of the data; otherwise 0.
    crc: U32,
    zero: U32,
}

const _: () = assert!(size_of::<PointBytes>() == 48);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RangeBytes {
    line: U32,
    zero: U32,
    first: U64,
    count: U64,
    birth: U64,
}

const _: () = assert!(size_of::<RangeBytes>() == 32);

const DATA: u32 = 0;
const HOLE: u32 = 1;
const MOVED: u32 = 2;

/// Why bytes are not a dump of a delta.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum DumpError {
    /// The length is not what the counts at the beginning say.
    #[error("a dump of {points} points and {ranges} ranges has {len_bytes} bytes")]
    Length {
        /// As stated.
        points: u32,
        /// As stated.
        ranges: u32,
        /// As found.
        len_bytes: usize,
    },
    /// More than the delta has room for.
    #[error("the dump holds {points} points and {ranges} ranges, more than the pool was set up for")]
    TooMany {
        /// As stated.
        points: u32,
        /// As stated.
        ranges: u32,
    },
    /// Entry `index` (points first, then ranges) has an impossible value or is there twice.
    #[error("entry {index} of the dump is not valid")]
    Entry {
        /// Which.
        index: usize,
    },
}

impl Delta {
    /// Length of its dump.
    pub fn dump_len_bytes(&self) -> usize {
        let (points, ranges) = self.len();
        size_of::<HeadBytes>() + points * size_of::<PointBytes>() + ranges * size_of::<RangeBytes>()
    }

    /// Appends its dump to `out`.
    pub fn dump(&self, out: &mut Vec<u8>) {
        let (points, ranges) = self.len();
        out.reserve(self.dump_len_bytes());
        let head = HeadBytes { points: U32::new(points as u32), ranges: U32::new(ranges as u32) };
        out.extend_from_slice(head.as_bytes());
        for update in self.all_points() {
            out.extend_from_slice(PointBytes::from(update).as_bytes());
        }
        for range in self.all_ranges() {
            let bytes = RangeBytes {
                line: U32::new(range.line.0),
                zero: U32::new(0),
                first: U64::new(range.first.0),
                count: U64::new(range.count),
                birth: U64::new(range.birth.0),
            };
            out.extend_from_slice(bytes.as_bytes());
        }
    }

    /// Fills an empty delta from a dump. After an error it holds part of it; clear it before it is used.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), DumpError> {
        let short = DumpError::Length { points: 0, ranges: 0, len_bytes: bytes.len() };
        let (head, rest) = HeadBytes::ref_from_prefix(bytes).map_err(|_| short)?;
        let (points, ranges) = (head.points.get(), head.ranges.get());
        let length = DumpError::Length { points, ranges, len_bytes: bytes.len() };
        let (point_bytes, rest) =
            <[PointBytes]>::ref_from_prefix_with_elems(rest, points as usize).map_err(|_| length)?;
        let range_bytes =
            <[RangeBytes]>::ref_from_bytes_with_elems(rest, ranges as usize).map_err(|_| length)?;
        let room = self.room();
        if points as usize > room.0 || ranges as usize > room.1 {
            return Err(DumpError::TooMany { points, ranges });
        }
        for (index, point) in point_bytes.iter().enumerate() {
            let restored = point.parse().is_some_and(|update| self.restore_point(update));
            restored.then_some(()).ok_or(DumpError::Entry { index })?;
        }
        for (index, range) in range_bytes.iter().enumerate() {
            let restored = range.parse().is_some_and(|range| self.restore_range(range));
            restored.then_some(()).ok_or(DumpError::Entry { index: point_bytes.len() + index })?;
        }
        Ok(())
    }
}

impl From<Update> for PointBytes {
    fn from(update: Update) -> Self {
        let (kind, pba, from, crc) = match update.change {
            Change::Place(Place::Data { pba, crc }) => (DATA, pba.bits(), 0, crc),
            Change::Place(Place::Hole) => (HOLE, 0, 0, 0),
            Change::Moved { from, to } => (MOVED, to.bits(), from.bits(), 0),
        };
        Self {
            line: U32::new(update.line.0),
            kind: U32::new(kind),
            block: U64::new(update.block.0),
            birth: U64::new(update.birth.0),
            pba: U64::new(pba),
            from: U64::new(from),
            crc: U32::new(crc),
            zero: U32::new(0),
        }
    }
}

impl PointBytes {
    fn parse(&self) -> Option<Update> {
        let pba = address(self.pba);
        let change = match self.kind.get() {
            DATA => Change::Place(Place::Data { pba: pba?, crc: self.crc.get() }),
            HOLE => Change::Place(Place::Hole),
            MOVED => Change::Moved { from: address(self.from)?, to: pba? },
            _ => return None,
        };
        let (line, block) = (LineId(self.line.get()), BlockNo(self.block.get()));
        let update = Update { line, block, birth: Seq(self.birth.get()), change };
        // What a kind does not use is zero: an entry has one form only.
        (Self::from(update).as_bytes() == self.as_bytes()).then_some(update)
    }
}

impl RangeBytes {
    fn parse(&self) -> Option<HoleRange> {
        let (first, count) = (self.first.get(), self.count.get());
        first.checked_add(count).filter(|_| count > 0 && self.zero.get() == 0)?;
        Some(HoleRange {
            line: LineId(self.line.get()),
            first: BlockNo(first),
            count,
            birth: Seq(self.birth.get()),
        })
    }
}

fn address(bits: U64) -> Option<Pba> {
    Some(Pba::from_bits(bits.get())).filter(|pba| !pba.is_none())
}
