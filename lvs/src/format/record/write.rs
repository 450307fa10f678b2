//! Writers of headers. The buffer belongs to the caller, is given to each call, and must be the same each time:
//! whole blocks, at most [`MAX_HEADER_BLOCKS`], the header's own place in the write. Nothing is allocated.
//!
//! Lists are written in one pass, front to back; a header is as many blocks long as its list needs. `finish` fills in
//! the first 64 bytes and the checksum.

use super::{
    BLOCK, CRC_BYTES, EXTENT_BYTES, FIXED_BYTES, Fixed, HOLE, HeaderSeal, Kind, MAGIC, MAX_HEADER_BLOCKS,
    PageNote, RawExtent, RawPage, RawRelocation, Relocation, Stamp, VERSION,
};
use crate::format::page::MAX_BLOCKS;
use crate::types::{BlockNo, LineId, Pba};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// The entry does not fit into the buffer any more: finish the record and begin another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// What all writers have in common: where the list ends.
#[derive(Clone, Copy, Debug)]
struct List {
    at: usize,
    entries: u32,
    payload_blocks: u32,
}

impl List {
    const EMPTY: Self = Self { at: FIXED_BYTES, entries: 0, payload_blocks: 0 };

    fn append(&mut self, buffer: &mut [u8], bytes: &[u8]) -> Result<(), Full> {
        let end = self.at + bytes.len();
        if end > MAX_HEADER_BLOCKS * BLOCK {
            return Err(Full);
        }
        buffer.get_mut(self.at..end).ok_or(Full)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }

    fn append_entry(&mut self, buffer: &mut [u8], entry: &(impl IntoBytes + Immutable)) -> Result<(), Full> {
        self.append(buffer, entry.as_bytes())?;
        self.entries += 1;
        Ok(())
    }

    fn header_blocks(&self) -> usize {
        self.at.div_ceil(BLOCK)
    }

    /// Completes the header of a record that stands at `pba`. Returns its blocks.
    fn finish(&self, buffer: &mut [u8], kind: Kind, stamp: &Stamp, seal: &HeaderSeal, pba: Pba) -> usize {
        debug_assert!(kind == Kind::Pages || stamp.durable <= stamp.seq);
        let blocks = self.header_blocks();
        let header = &mut buffer[..blocks * BLOCK];
        header[self.at..].fill(0);
        let mut fixed = Fixed {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u8,
            header_blocks: (blocks as u16).into(),
            payload_blocks: self.payload_blocks.into(),
            seq: stamp.seq.0.into(),
            durable: stamp.durable.0.into(),
            checkpoint: stamp.checkpoint.into(),
            entries: self.entries.into(),
            content_bytes: ((self.at - FIXED_BYTES) as u32).into(),
            token: seal.token,
            reserved: [0; 4],
            checksum: 0.into(),
        };
        header[..FIXED_BYTES].copy_from_slice(fixed.as_bytes());
        fixed.checksum = seal.checksum(header, pba).into();
        header[..FIXED_BYTES].copy_from_slice(fixed.as_bytes());
        blocks
    }
}

/// Writer of a Data header.
///
/// Extents and holes are added in the order of their payload, and one CRC for each block, in the same order, now or
/// later but before `finish`. An extent that goes on where the last one ended becomes part of it.
#[derive(Clone, Copy, Debug)]
pub struct DataHeader {
    list: List,
    /// Where the extent stands that may still grow; 0: none.
    open_at: usize,
    open_line: LineId,
    open_end: u64,
    /// The extent to which the next CRC belongs, and how many of its CRCs are there.
    crc_extent_at: usize,
    crcs_in_extent: u32,
    crcs: u32,
}

impl DataHeader {
    /// Begins a header.
    pub const fn begin() -> Self {
        Self {
            list: List::EMPTY,
            open_at: 0,
            open_line: LineId(0),
            open_end: 0,
            crc_extent_at: FIXED_BYTES,
            crcs_in_extent: 0,
            crcs: 0,
        }
    }

    /// Adds `count` payload blocks: `block` and those after it. Refused as a whole when entry and CRCs do not fit.
    pub fn push_extent(
        &mut self,
        buffer: &mut [u8],
        line: LineId,
        block: BlockNo,
        count: u32,
    ) -> Result<(), Full> {
        debug_assert!(count > 0 && block.0 + u64::from(count) <= MAX_BLOCKS);
        let grows = self.open_at != 0 && self.open_line == line && self.open_end == block.0;
        let before = if grows { 0 } else { EXTENT_BYTES };
        let crcs_bytes = count as usize * CRC_BYTES;
        let end = self.list.at + before + crcs_bytes;
        if end > buffer.len().min(MAX_HEADER_BLOCKS * BLOCK) {
            return Err(Full);
        }
        if grows {
            let extent = extent_mut(buffer, self.open_at);
            extent.count += count;
        } else {
            let extent = RawExtent { line: line.0.into(), count: count.into(), block: block.0.into() };
            self.open_at = self.list.at;
            self.open_line = line;
            self.list.append_entry(buffer, &extent)?;
        }
        self.open_end = block.0 + u64::from(count);
        self.list.at += crcs_bytes;
        self.list.payload_blocks += count;
        Ok(())
    }

    /// Adds the CRC of the next payload block that has none yet. An error of the caller, and ignored, when all have.
    #[inline]
    pub fn push_crc(&mut self, buffer: &mut [u8], crc: u32) {
        debug_assert!(self.crcs < self.list.payload_blocks, "a CRC without a block");
        if self.crcs == self.list.payload_blocks {
            return;
        }
        // One more CRC is due, so an extent with room for it is here or follows.
        loop {
            let extent = extent_mut(buffer, self.crc_extent_at);
            let count = extent.count.get();
            if count != HOLE && self.crcs_in_extent < count {
                break;
            }
            let rest = if count == HOLE { 8 } else { count as usize * CRC_BYTES };
            self.crc_extent_at += EXTENT_BYTES + rest;
            self.crcs_in_extent = 0;
        }
        let at = self.crc_extent_at + EXTENT_BYTES + self.crcs_in_extent as usize * CRC_BYTES;
        buffer[at..at + CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.crcs_in_extent += 1;
        self.crcs += 1;
    }

    /// Adds a hole: `count` blocks that read as zeroes from now on.
    pub fn push_hole(
        &mut self,
        buffer: &mut [u8],
        line: LineId,
        block: BlockNo,
        count: u64,
    ) -> Result<(), Full> {
        debug_assert!(count > 0 && block.0 + count <= MAX_BLOCKS);
        let mut bytes = [0; EXTENT_BYTES + 8];
        let extent = RawExtent { line: line.0.into(), count: HOLE.into(), block: block.0.into() };
        bytes[..EXTENT_BYTES].copy_from_slice(extent.as_bytes());
        bytes[EXTENT_BYTES..].copy_from_slice(&count.to_le_bytes());
        self.list.append_entry(buffer, &bytes)?;
        self.open_at = 0;
        Ok(())
    }

    /// Blocks of payload so far.
    pub fn payload_blocks(&self) -> u32 {
        self.list.payload_blocks
    }

    /// True when nothing was added.
    pub fn is_empty(&self) -> bool {
        self.list.entries == 0
    }

    /// Blocks of the header so far.
    pub fn header_blocks(&self) -> usize {
        self.list.header_blocks()
    }

    /// Completes the header of the record that stands at `pba`. Returns its blocks. All CRCs are there.
    pub fn finish(&self, buffer: &mut [u8], stamp: &Stamp, seal: &HeaderSeal, pba: Pba) -> usize {
        debug_assert_eq!(self.crcs, self.list.payload_blocks, "a block without CRC");
        self.list.finish(buffer, Kind::Data, stamp, seal, pba)
    }
}

fn extent_mut(buffer: &mut [u8], at: usize) -> &mut RawExtent {
    let (extent, _) =
        RawExtent::mut_from_prefix(&mut buffer[at..]).expect("invariant: an extent was written here");
    extent
}

/// Writer of a Relocate header: one entry for each payload block, in their order.
#[derive(Clone, Copy, Debug)]
pub struct RelocateHeader(List);

impl RelocateHeader {
    /// Begins a header.
    pub const fn begin() -> Self {
        Self(List::EMPTY)
    }

    /// Adds the next payload block.
    pub fn push(&mut self, buffer: &mut [u8], moved: &Relocation) -> Result<(), Full> {
        debug_assert!(moved.block.0 < MAX_BLOCKS && !moved.from.is_none());
        let raw = RawRelocation {
            line: moved.line.0.into(),
            crc: moved.crc.into(),
            block: moved.block.0.into(),
            birth: moved.birth.0.into(),
            from: moved.from.bits().into(),
        };
        self.0.append_entry(buffer, &raw)?;
        self.0.payload_blocks += 1;
        Ok(())
    }

    /// Blocks of payload so far.
    pub fn payload_blocks(&self) -> u32 {
        self.0.payload_blocks
    }

    /// Blocks of the header so far.
    pub fn header_blocks(&self) -> usize {
        self.0.header_blocks()
    }

    /// Completes the header of the record that stands at `pba`. Returns its blocks.
    pub fn finish(&self, buffer: &mut [u8], stamp: &Stamp, seal: &HeaderSeal, pba: Pba) -> usize {
        self.0.finish(buffer, Kind::Relocate, stamp, seal, pba)
    }
}

/// Writer of a Pages header: one entry for each payload block, in their order.
#[derive(Clone, Copy, Debug)]
pub struct PagesHeader(List);

impl PagesHeader {
    /// Begins a header.
    pub const fn begin() -> Self {
        Self(List::EMPTY)
    }

    /// Adds the next payload block.
    pub fn push(&mut self, buffer: &mut [u8], page: &PageNote) -> Result<(), Full> {
        let raw = match *page {
            PageNote::Map { line, level, block, birth, crc } => RawPage {
                level,
                line: line.0.into(),
                block: block.0.into(),
                birth: birth.0.into(),
                crc: crc.into(),
                ..RawPage::new_zeroed()
            },
            PageNote::Blob { kind, checkpoint, index, crc } => RawPage {
                blob: 1,
                level: kind as u8,
                block: index.into(),
                birth: checkpoint.into(),
                crc: crc.into(),
                ..RawPage::new_zeroed()
            },
        };
        self.0.append_entry(buffer, &raw)?;
        self.0.payload_blocks += 1;
        Ok(())
    }

    /// Blocks of payload so far.
    pub fn payload_blocks(&self) -> u32 {
        self.0.payload_blocks
    }

    /// Blocks of the header so far.
    pub fn header_blocks(&self) -> usize {
        self.0.header_blocks()
    }

    /// Completes the header of the record that stands at `pba`. Returns its blocks.
    pub fn finish(&self, buffer: &mut [u8], stamp: &Stamp, seal: &HeaderSeal, pba: Pba) -> usize {
        self.0.finish(buffer, Kind::Pages, stamp, seal, pba)
    }
}

/// Writer of a Catalogue header: the changes are in the header itself, there is no payload.
#[derive(Clone, Copy, Debug)]
pub struct CatalogueHeader(List);

impl CatalogueHeader {
    /// Begins a header.
    pub const fn begin() -> Self {
        Self(List::EMPTY)
    }

    /// Adds one change, encoded.
    pub fn push(&mut self, buffer: &mut [u8], change: &[u8]) -> Result<(), Full> {
        self.0.append(buffer, change)?;
        self.0.entries += 1;
        Ok(())
    }

    /// Blocks of the header so far.
    pub fn header_blocks(&self) -> usize {
        self.0.header_blocks()
    }

    /// Completes the header of the record that stands at `pba`. Returns its blocks.
    pub fn finish(&self, buffer: &mut [u8], stamp: &Stamp, seal: &HeaderSeal, pba: Pba) -> usize {
        self.0.finish(buffer, Kind::Catalogue, stamp, seal, pba)
    }
}

/// Writer of a Note: a header of one block and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct NoteHeader;

impl NoteHeader {
    /// Writes the header of a Note that stands at `pba`. Returns its blocks: 1.
    pub fn write(buffer: &mut [u8], stamp: &Stamp, seal: &HeaderSeal, pba: Pba) -> usize {
        List::EMPTY.finish(buffer, Kind::Note, stamp, seal, pba)
    }
}
