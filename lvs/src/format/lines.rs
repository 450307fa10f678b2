//! The table of lines: the root of each tree of versions, and what belongs to it.

use super::bytes::{Reader, at_most};
use super::label::FIRST_SEGMENT_BLOCK;
use super::page::{MAX_BLOCKS, MAX_LEVEL};
use super::{FormatError, What};
use crate::types::{BlockNo, LineId, PagePtr, Pba, Seq};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most lines of a pool.
pub const MAX_LINES: usize = 1 << 20;
/// Most counters of a line: one more than it can have snapshots.
pub const MAX_INTERVALS: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"KSlines\0";
const VERSION: u16 = 1;
const HAS_HEAD: u8 = 1;
const HAS_ROOT: u8 = 2;
const HAS_PARENT: u8 = 4;
const IS_PURGED: u8 = 8;

/// Where a tree begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Its topmost page.
    pub ptr: PagePtr,
    /// Level of that page.
    pub level: u8,
}

/// A line at a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Which.
    pub id: LineId,
    /// Its tree; `None` = it has no versions.
    pub root: Option<Root>,
    /// It has a volume; else only snapshots of one that was deleted.
    pub head: bool,
    /// A clone reads what it did not write from that line, as it was before that epoch. Older than this line.
    pub parent: Option<(LineId, Seq)>,
    /// Live data blocks born before its first snapshot, then between each two, then since the last.
    pub live_blocks: Vec<u64>,
    /// Versions that nothing needs any more are being removed, and are from this block on not yet.
    pub purge: Option<BlockNo>,
}

/// All lines of a pool.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lines {
    /// Above all that were ever given.
    pub next_id: u32,
    /// In ascending order of their ids.
    pub lines: Vec<Line>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U16,
    reserved: [u8; 2],
    count: U32,
    next_id: U32,
    reserved2: [u8; 4],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    id: U32,
    flags: u8,
    level: u8,
    reserved: [u8; 2],
    intervals: U32,
    parent: U32,
    parent_epoch: U64,
    purge: U64,
    pba: U64,
    copy: U64,
    newest: U64,
    crc: U32,
    reserved2: [u8; 4],
}

const _: () = assert!(size_of::<Head>() == 24);
const _: () = assert!(size_of::<Raw>() == 64);

impl Raw {
    fn of(line: &Line) -> Self {
        let mut raw = Self::new_zeroed();
        raw.id = line.id.0.into();
        raw.intervals = (line.live_blocks.len() as u32).into();
        if line.head {
            raw.flags |= HAS_HEAD;
        }
        if let Some(root) = &line.root {
            raw.flags |= HAS_ROOT;
            raw.level = root.level;
            raw.pba = root.ptr.pba.bits().into();
            raw.copy = root.ptr.copy.bits().into();
            raw.newest = root.ptr.newest.0.into();
            raw.crc = root.ptr.crc.into();
        }
        if let Some((parent, epoch)) = line.parent {
            raw.flags |= HAS_PARENT;
            raw.parent = parent.0.into();
            raw.parent_epoch = epoch.0.into();
        }
        if let Some(block) = line.purge {
            raw.flags |= IS_PURGED;
            raw.purge = block.0.into();
        }
        raw
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The line without its counters. What is absent has to be zero, so that a line has one form only.
    fn decode(&self) -> Option<Line> {
        let ptr = PagePtr {
            pba: Pba::from_bits(self.pba.get()),
            copy: Pba::from_bits(self.copy.get()),
            crc: self.crc.get(),
            newest: Seq(self.newest.get()),
        };
        let line = Line {
            id: LineId(self.id.get()),
            root: self.has(HAS_ROOT).then_some(Root { ptr, level: self.level }),
            head: self.has(HAS_HEAD),
            parent: self.has(HAS_PARENT).then_some((LineId(self.parent.get()), Seq(self.parent_epoch.get()))),
            live_blocks: Vec::new(),
            purge: self.has(IS_PURGED).then_some(BlockNo(self.purge.get())),
        };
        let mut again = Self::of(&line);
        again.intervals = self.intervals;
        (again.as_bytes() == self.as_bytes() && line.can_be()).then_some(line)
    }
}

fn is_in_a_segment(pba: Pba) -> bool {
    !pba.is_none() && pba.block() >= FIRST_SEGMENT_BLOCK
}

impl Line {
    fn can_be(&self) -> bool {
        self.root.is_none_or(|root| root.level <= MAX_LEVEL && is_in_a_segment(root.ptr.pba))
            && self.parent.is_none_or(|(parent, _)| parent < self.id)
            && self.purge.is_none_or(|block| block.0 <= MAX_BLOCKS)
            && self.live_blocks.len() <= MAX_INTERVALS
    }
}

impl Lines {
    /// As a blob.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let what = What::Lines;
        at_most(what, "lines", self.lines.len(), MAX_LINES)?;
        let head = Head {
            magic: MAGIC,
            version: VERSION.into(),
            reserved: [0; 2],
            count: (self.lines.len() as u32).into(),
            next_id: self.next_id.into(),
            reserved2: [0; 4],
        };
        let counters: usize = self.lines.iter().map(|line| line.live_blocks.len()).sum();
        let mut bytes = Vec::with_capacity(24 + self.lines.len() * 64 + counters * 8);
        bytes.extend_from_slice(head.as_bytes());
        for line in &self.lines {
            if !line.can_be() {
                return Err(FormatError::Value { what, field: "line", at_bytes: bytes.len() });
            }
            bytes.extend_from_slice(Raw::of(line).as_bytes());
            line.live_blocks.iter().for_each(|count| bytes.extend_from_slice(&count.to_le_bytes()));
        }
        self.check_ids()?;
        Ok(bytes)
    }

    /// From a blob.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = What::Lines;
        let mut reader = Reader::new(what, bytes);
        let head: Head = reader.take()?;
        if head.magic != MAGIC {
            return Err(FormatError::Magic(what));
        }
        if head.version.get() != VERSION {
            return Err(FormatError::Version { what, found: head.version.get() });
        }
        if head.reserved != [0; 2] || head.reserved2 != [0; 4] {
            return Err(reader.bad("reserved part", 14));
        }
        let count = head.count.get() as usize;
        at_most(what, "lines", count, MAX_LINES)?;
        // No more than the bytes can hold, whatever the count says.
        let mut lines = Vec::with_capacity(count.min(bytes.len() / size_of::<Raw>()));
        for _ in 0..count {
            let raw: Raw = reader.take()?;
            let mut line = raw.decode().ok_or(reader.bad("line", size_of::<Raw>()))?;
            at_most(what, "counters of a line", raw.intervals.get() as usize, MAX_INTERVALS)?;
            let counters = reader.take_list::<U64>(raw.intervals.get() as usize)?;
            line.live_blocks = counters.iter().map(|count| count.get()).collect();
            lines.push(line);
        }
        if !reader.is_at_end() {
            return Err(reader.bad("end", 0));
        }
        let lines = Self { next_id: head.next_id.get(), lines };
        lines.check_ids()?;
        Ok(lines)
    }

    /// Ascending, below the next one, and parents exist. A parent has a lower id, so there is no circle.
    fn check_ids(&self) -> Result<(), FormatError> {
        let bad = |field| Err(FormatError::Value { what: What::Lines, field, at_bytes: 0 });
        if self.lines.windows(2).any(|pair| pair[0].id >= pair[1].id) {
            return bad("order of lines");
        }
        if self.lines.last().is_some_and(|line| line.id.0 >= self.next_id) {
            return bad("next line");
        }
        let exists = |id: LineId| self.lines.binary_search_by_key(&id, |line| line.id).is_ok();
        if self.lines.iter().filter_map(|line| line.parent).any(|(parent, _)| !exists(parent)) {
            return bad("parent of a line");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
