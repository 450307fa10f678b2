//! Headers that were read: checked as a whole, then walked without further errors.

use super::{
    BLOCK, BlobKind, CRC_BYTES, FIXED_BYTES, Fixed, HOLE, HeaderSeal, Kind, MAGIC, PageNote, RawExtent,
    RawPage, RawRelocation, Relocation, Stamp, VERSION, bad, header_blocks,
};
use crate::format::page::{MAX_BLOCKS, MAX_LEVEL};
use crate::format::{FormatError, What};
use crate::types::{BlockNo, LineId, Pba, Seq};
use zerocopy::FromBytes;

/// A header whose checksum fits and whose list is what its numbers say.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    kind: Kind,
    stamp: Stamp,
    header_blocks: usize,
    payload_blocks: u32,
    entries: u32,
    content: &'a [u8],
}

impl<'a> Record<'a> {
    /// The header that stands at `pba` and begins with `bytes` (as many blocks as [`header_blocks`] says, or more).
    pub fn parse(bytes: &'a [u8], pba: Pba, seal: &HeaderSeal) -> Result<Self, FormatError> {
        let what = What::Record;
        let short = |need_bytes| FormatError::Short { what, need_bytes, have_bytes: bytes.len() };
        let (fixed, _) = Fixed::read_from_prefix(bytes).map_err(|_| short(FIXED_BYTES))?;
        if fixed.magic != MAGIC {
            return Err(FormatError::Magic(what));
        }
        if fixed.token != seal.token {
            return Err(FormatError::Other { what, field: "opening" });
        }
        let header_blocks = header_blocks(bytes).ok_or(bad("number of header blocks", 10))?;
        let header = bytes.get(..header_blocks * BLOCK).ok_or(short(header_blocks * BLOCK))?;
        if seal.checksum(header, pba) != fixed.checksum.get() {
            return Err(FormatError::Checksum(what));
        }
        // Written by this opening of this pool, here. A version or kind that we do not know is not ours all the same.
        if fixed.version != VERSION {
            return Err(FormatError::Version { what, found: fixed.version.into() });
        }
        let kind = Kind::from_byte(fixed.kind).ok_or(bad("kind", 9))?;
        if fixed.reserved != [0; 4] {
            return Err(bad("reserved part", 56));
        }
        let content_bytes = fixed.content_bytes.get() as usize;
        if content_bytes > header.len() - FIXED_BYTES
            || (FIXED_BYTES + content_bytes).div_ceil(BLOCK) != header_blocks
        {
            return Err(bad("length of the list", 44));
        }
        let stamp = Stamp {
            seq: Seq(fixed.seq.get()),
            durable: Seq(fixed.durable.get()),
            checkpoint: fixed.checkpoint.get(),
        };
        if kind != Kind::Pages && stamp.durable > stamp.seq {
            return Err(bad("durable number", 24));
        }
        let record = Self {
            kind,
            stamp,
            header_blocks,
            payload_blocks: fixed.payload_blocks.get(),
            entries: fixed.entries.get(),
            content: &header[FIXED_BYTES..FIXED_BYTES + content_bytes],
        };
        record.check_list()?;
        Ok(record)
    }

    fn check_list(&self) -> Result<(), FormatError> {
        let (entries, payload_blocks) = match self.kind {
            Kind::Data => self.check_data()?,
            Kind::Relocate => self.check_fixed_size(|raw: &RawRelocation| {
                raw.block.get() < MAX_BLOCKS
                    && raw.from.get() >> 48 == 0
                    && !Pba::from_bits(raw.from.get()).is_none()
            })?,
            Kind::Pages => self.check_fixed_size(|raw: &RawPage| raw.note().is_some())?,
            // What the content means is the catalogue's own matter.
            Kind::Catalogue => (self.entries, 0),
            Kind::Note if self.content.is_empty() => (0, 0),
            Kind::Note => return Err(bad("length of the list", 44)),
        };
        if entries != self.entries {
            return Err(bad("number of entries", 40));
        }
        if payload_blocks != u64::from(self.payload_blocks) {
            return Err(bad("number of payload blocks", 12));
        }
        Ok(())
    }

    fn check_data(&self) -> Result<(u32, u64), FormatError> {
        let (mut entries, mut payload_blocks, mut rest) = (0, 0, self.content);
        while !rest.is_empty() {
            let at_bytes = FIXED_BYTES + self.content.len() - rest.len();
            let (entry, after) = take_entry(rest, 0).ok_or(bad("extent", at_bytes))?;
            let (block, count) = match entry {
                DataEntry::Extent { block, crcs, .. } => {
                    payload_blocks += crcs.len() as u64;
                    (block, crcs.len() as u64)
                }
                DataEntry::Hole { block, count, .. } => (block, count),
            };
            if count == 0 || block.0.checked_add(count).is_none_or(|end| end > MAX_BLOCKS) {
                return Err(bad("extent", at_bytes));
            }
            entries += 1;
            rest = after;
        }
        Ok((entries, payload_blocks))
    }

    /// A list of entries of one size, one for each payload block.
    fn check_fixed_size<T>(&self, good: impl Fn(&T) -> bool) -> Result<(u32, u64), FormatError>
    where
        T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
    {
        let list = <[T]>::ref_from_bytes(self.content).map_err(|_| bad("length of the list", 44))?;
        match list.iter().position(|raw| !good(raw)) {
            Some(index) => Err(bad("entry", FIXED_BYTES + index * size_of::<T>())),
            None => Ok((list.len() as u32, list.len() as u64)),
        }
    }

    /// What it holds.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The numbers that it carries.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Blocks of its header: the payload begins that far behind its address.
    pub fn header_blocks(&self) -> usize {
        self.header_blocks
    }

    /// Blocks after the header.
    pub fn payload_blocks(&self) -> u32 {
        self.payload_blocks
    }

    /// Blocks of the whole record. Whether they lie within its segment is for the reader to check.
    pub fn len_blocks(&self) -> u64 {
        self.header_blocks as u64 + u64::from(self.payload_blocks)
    }

    /// What a Data record lists, in the order of the payload. Nothing for other kinds.
    pub fn data(&self) -> DataEntries<'a> {
        DataEntries { rest: self.content_of(Kind::Data), payload_block: 0 }
    }

    /// What a Relocate record lists, one for each payload block. Nothing for other kinds.
    pub fn relocations(&self) -> Relocations<'a> {
        let list = <[RawRelocation]>::ref_from_bytes(self.content_of(Kind::Relocate)).unwrap_or(&[]);
        Relocations(list.iter())
    }

    /// What a Pages record lists, one for each payload block. Nothing for other kinds.
    pub fn pages(&self) -> Pages<'a> {
        let list = <[RawPage]>::ref_from_bytes(self.content_of(Kind::Pages)).unwrap_or(&[]);
        Pages(list.iter())
    }

    /// The changes of a Catalogue record, encoded. Nothing for other kinds.
    pub fn catalogue(&self) -> &'a [u8] {
        self.content_of(Kind::Catalogue)
    }

    /// How many changes a Catalogue record has, or entries a list of another kind.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    fn content_of(&self, kind: Kind) -> &'a [u8] {
        if self.kind == kind { self.content } else { &[] }
    }
}

/// An entry of a Data record.
#[derive(Clone, Debug)]
pub enum DataEntry<'a> {
    /// Blocks with payload.
    Extent {
        /// Whose.
        line: LineId,
        /// The first of them; the others follow it.
        block: BlockNo,
        /// Index of its bytes in the payload; those of the others follow.
        payload_block: u32,
        /// CRC32C of each: as many as there are blocks.
        crcs: CrcsOf<'a>,
    },
    /// Blocks that read as zeroes.
    Hole {
        /// Whose.
        line: LineId,
        /// The first of them.
        block: BlockNo,
        /// How many.
        count: u64,
    },
}

/// CRCs of the blocks of an extent, in their order.
#[derive(Clone, Debug)]
pub struct CrcsOf<'a>(core::slice::Iter<'a, zerocopy::little_endian::U32>);

impl Iterator for CrcsOf<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.0.next().map(|crc| crc.get())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for CrcsOf<'_> {}

/// The entry at the front of `list`, and what follows it.
fn take_entry(list: &[u8], payload_block: u32) -> Option<(DataEntry<'_>, &[u8])> {
    let (raw, after) = RawExtent::read_from_prefix(list).ok()?;
    let (line, block) = (LineId(raw.line.get()), BlockNo(raw.block.get()));
    if raw.count.get() == HOLE {
        let (count, after) = zerocopy::little_endian::U64::read_from_prefix(after).ok()?;
        return Some((DataEntry::Hole { line, block, count: count.get() }, after));
    }
    let (crcs, after) = after.split_at_checked((raw.count.get() as usize).checked_mul(CRC_BYTES)?)?;
    let crcs = <[zerocopy::little_endian::U32]>::ref_from_bytes(crcs).ok()?;
    Some((DataEntry::Extent { line, block, payload_block, crcs: CrcsOf(crcs.iter()) }, after))
}

/// Entries of a Data record.
#[derive(Clone, Debug)]
pub struct DataEntries<'a> {
    rest: &'a [u8],
    payload_block: u32,
}

impl<'a> Iterator for DataEntries<'a> {
    type Item = DataEntry<'a>;

    fn next(&mut self) -> Option<DataEntry<'a>> {
        let (entry, after) = take_entry(self.rest, self.payload_block)?;
        self.rest = after;
        if let DataEntry::Extent { crcs, .. } = &entry {
            self.payload_block += crcs.len() as u32;
        }
        Some(entry)
    }
}

/// Moved blocks, in the order of the payload.
#[derive(Clone, Debug)]
pub struct Relocations<'a>(core::slice::Iter<'a, RawRelocation>);

impl Iterator for Relocations<'_> {
    type Item = Relocation;

    fn next(&mut self) -> Option<Relocation> {
        self.0.next().map(|raw| Relocation {
            line: LineId(raw.line.get()),
            block: BlockNo(raw.block.get()),
            birth: Seq(raw.birth.get()),
            from: Pba::from_bits(raw.from.get()),
            crc: raw.crc.get(),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Relocations<'_> {}

impl RawPage {
    fn note(&self) -> Option<PageNote> {
        let reserved = self.reserved != [0; 2] || self.reserved2 != [0; 4];
        let (line, block, birth) = (self.line.get(), self.block.get(), self.birth.get());
        let crc = self.crc.get();
        match self.blob {
            _ if reserved => None,
            0 if self.level <= MAX_LEVEL && block < MAX_BLOCKS => Some(PageNote::Map {
                line: LineId(line),
                level: self.level,
                block: BlockNo(block),
                birth: Seq(birth),
                crc,
            }),
            1 if line == 0 => {
                let kind = BlobKind::from_byte(self.level)?;
                Some(PageNote::Blob { kind, checkpoint: birth, index: block, crc })
            }
            _ => None,
        }
    }
}

/// What the payload blocks of a Pages record are, in their order.
#[derive(Clone, Debug)]
pub struct Pages<'a>(core::slice::Iter<'a, RawPage>);

impl Iterator for Pages<'_> {
    type Item = PageNote;

    fn next(&mut self) -> Option<PageNote> {
        // Each was checked when the header was parsed: `None` is the end.
        self.0.next().and_then(RawPage::note)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Pages<'_> {}
