//! Map pages: the nodes of the tree of versions that each line has.
//!
//! A page is checked once, when it comes from the disk ([`PageView::check`]). After that [`PageView`] reads it in
//! place: no access leaves the page and none panics, whatever its bytes are; a page that was never checked merely
//! gives wrong answers.
//!
//! Keys are ordered by block ascending, then birth *descending*: the newest version of a block comes first.

use super::{FormatError, What, crc32c};
use crate::types::{BlockNo, LineId, PagePtr, Pba, Place, Seq, Version};
use core::cmp::Ordering;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Versions that fit in a leaf.
pub const LEAF_CAPACITY: usize = 168;
/// Children that fit in an interior page.
pub const CHILD_CAPACITY: usize = 100;
/// Highest level that a root can have; leaves are level 0. Even half-full pages reach 2^57 versions with it.
pub const MAX_LEVEL: u8 = 12;
/// Blocks of a line are numbered below this (4 PiB): a key has 40 bits for them.
pub const MAX_BLOCKS: u64 = 1 << 40;
/// The longest hole that one entry describes, in blocks.
pub const MAX_RUN_BLOCKS: u64 = 1 << 32;

const MAGIC: [u8; 4] = *b"KSmp";
const VERSION: u8 = 1;
const KIND_DATA: u64 = 0;
const KIND_HOLE: u64 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: u8,
    level: u8,
    count: U16,
    line: U32,
    reserved: [u8; 4],
    pool: [u8; 16],
    reserved2: [u8; 32],
}

/// `key`: block in bits 24..64, kind in 16..24, address bits 32..48 in 0..16.
/// `value`: address bits 0..32 in the high half, CRC in the low; of a hole its length in blocks.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawLeaf {
    key: U64,
    birth: U64,
    value: U64,
}

/// `key`: block in bits 24..64, zeroes below. `places`: address in bits 0..48, bits 32..48 of the copy's above;
/// `copy_low`: its bits 0..32.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawChild {
    key: U64,
    birth: U64,
    newest: U64,
    places: U64,
    copy_low: U32,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LeafPage {
    header: Header,
    entries: [RawLeaf; LEAF_CAPACITY],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ChildPage {
    header: Header,
    entries: [RawChild; CHILD_CAPACITY],
    rest: [u8; 32],
}

const _: () = assert!(size_of::<Header>() == 64);
const _: () = assert!(size_of::<RawLeaf>() == 24);
const _: () = assert!(size_of::<RawChild>() == 40);
const _: () = assert!(size_of::<LeafPage>() == PAGE_BYTES);
const _: () = assert!(size_of::<ChildPage>() == PAGE_BYTES);

/// An entry of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The block, or the first one of a hole.
    pub block: BlockNo,
    /// Blocks that it describes: 1, or the length of a hole (at most [`MAX_RUN_BLOCKS`]).
    pub len_blocks: u64,
    /// What stands there, and since when.
    pub version: Version,
}

/// An entry of an interior page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Child {
    /// Block of the first key below it.
    pub block: BlockNo,
    /// Birth of the first key below it.
    pub birth: Seq,
    /// The page.
    pub ptr: PagePtr,
}

/// What a page has to be, for its reader.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Of which pool.
    pub pool: Uuid,
    /// Of whose tree.
    pub line: LineId,
    /// On which level: 0 is a leaf.
    pub level: u8,
    /// Its checksum, and the highest birth in it or below it: both from the pointer to it.
    pub crc: u32,
    /// See `crc`.
    pub newest: Seq,
}

impl RawLeaf {
    fn block(&self) -> u64 {
        self.key.get() >> 24
    }

    /// Strictly before the place in the order where a version of `block` born before `before` would stand.
    #[inline]
    fn is_before(&self, block: u64, before: Seq) -> bool {
        let own = self.block();
        (own < block) | ((own == block) & (self.birth.get() >= before.0))
    }

    #[inline]
    fn decode(&self) -> Leaf {
        let (key, value) = (self.key.get(), self.value.get());
        let (place, len_blocks) = if key >> 16 & 0xff == KIND_DATA {
            let pba = Pba::from_bits((key & 0xffff) << 32 | value >> 32);
            (Place::Data { pba, crc: value as u32 }, 1)
        } else {
            (Place::Hole, value)
        };
        Leaf {
            block: BlockNo(key >> 24),
            len_blocks,
            version: Version { birth: Seq(self.birth.get()), place },
        }
    }

    fn encode(leaf: &Leaf) -> Option<Self> {
        if leaf.block.0 >= MAX_BLOCKS {
            return None;
        }
        let (key, value) = match leaf.version.place {
            Place::Data { pba, crc } if !pba.is_none() && leaf.len_blocks == 1 => {
                (KIND_DATA << 16 | pba.bits() >> 32, pba.bits() << 32 | u64::from(crc))
            }
            Place::Hole if is_run(leaf.block.0, leaf.len_blocks) => (KIND_HOLE << 16, leaf.len_blocks),
            _ => return None,
        };
        Some(Self {
            key: (leaf.block.0 << 24 | key).into(),
            birth: leaf.version.birth.0.into(),
            value: value.into(),
        })
    }

    fn check(&self) -> Result<(), &'static str> {
        let (key, value) = (self.key.get(), self.value.get());
        match key >> 16 & 0xff {
            KIND_DATA if Pba::from_bits((key & 0xffff) << 32 | value >> 32).is_none() => Err("address"),
            KIND_DATA => Ok(()),
            KIND_HOLE if key & 0xffff != 0 || !is_run(key >> 24, value) => Err("length of a hole"),
            KIND_HOLE => Ok(()),
            _ => Err("kind"),
        }
    }
}

fn is_run(block: u64, len_blocks: u64) -> bool {
    (1..=MAX_RUN_BLOCKS).contains(&len_blocks) && block + len_blocks <= MAX_BLOCKS
}

impl RawChild {
    fn block(&self) -> u64 {
        self.key.get() >> 24
    }

    #[inline]
    fn is_before(&self, block: u64, before: Seq) -> bool {
        let own = self.key.get() >> 24;
        (own < block) | ((own == block) & (self.birth.get() >= before.0))
    }

    #[inline]
    fn decode(&self) -> Child {
        let places = self.places.get();
        let ptr = PagePtr {
            pba: Pba::from_bits(places & Pba::NONE.bits()),
            copy: Pba::from_bits(places >> 48 << 32 | u64::from(self.copy_low.get())),
            crc: self.crc.get(),
            newest: Seq(self.newest.get()),
        };
        Child { block: BlockNo(self.key.get() >> 24), birth: Seq(self.birth.get()), ptr }
    }

    fn encode(child: &Child) -> Option<Self> {
        if child.block.0 >= MAX_BLOCKS || child.ptr.pba.is_none() {
            return None;
        }
        let (pba, copy) = (child.ptr.pba.bits(), child.ptr.copy.bits());
        Some(Self {
            key: (child.block.0 << 24).into(),
            birth: child.birth.0.into(),
            newest: child.ptr.newest.0.into(),
            places: (copy >> 32 << 48 | pba).into(),
            copy_low: (copy as u32).into(),
            crc: child.ptr.crc.into(),
        })
    }

    fn check(&self) -> Result<(), &'static str> {
        let child = self.decode();
        if self.key.get() & 0xff_ffff != 0 {
            Err("key")
        } else if child.ptr.pba.is_none() {
            Err("address")
        } else if Self::encode(&child).is_none_or(|again| again.as_bytes() != self.as_bytes()) {
            Err("address of the copy")
        } else {
            Ok(())
        }
    }
}

/// How many entries come before a key of `block`. Keys mostly lie evenly between the first and the last one, so it begins
/// where the key would then be, and goes from there in steps that double: a page that no cache of the processor has costs
/// three misses, where halving it costs seven, each of which waits for the one before.
#[inline]
fn search<T>(
    entries: &[T],
    block: u64,
    block_of: impl Fn(&T) -> u64,
    is_before: impl Fn(&T) -> bool,
) -> usize {
    let [first, .., last] = entries else {
        return entries.iter().take_while(|entry| is_before(entry)).count();
    };
    let (low, high) = (block_of(first), block_of(last));
    let guess = match high.checked_sub(low) {
        Some(width @ 1..) => {
            let from_low = block.saturating_sub(low).min(width);
            // Blocks have 40 bits and entries eight.
            (from_low * (entries.len() as u64 - 1) / width) as usize
        }
        _ => 0,
    };
    let (mut from, mut until) = (0, entries.len());
    let mut step = 1;
    if is_before(&entries[guess]) {
        from = guess + 1;
        while from + step <= entries.len() {
            if !is_before(&entries[from + step - 1]) {
                until = from + step - 1;
                break;
            }
            from += step;
            step *= 2;
        }
    } else {
        until = guess;
        while step <= until {
            if is_before(&entries[until - step]) {
                from = until - step + 1;
                break;
            }
            until -= step;
            step *= 2;
        }
    }
    from + entries[from..until].partition_point(is_before)
}

/// The order of keys.
fn key_order(a: (u64, u64), b: (u64, u64)) -> Ordering {
    a.0.cmp(&b.0).then(b.1.cmp(&a.1))
}

/// A page, read in place.
#[derive(Clone, Copy)]
pub struct PageView<'a> {
    bytes: &'a [u8; PAGE_BYTES],
}

impl<'a> PageView<'a> {
    /// Views a page that was checked before. (Of one that was not, the answers are wrong, no more than that.)
    #[inline]
    pub fn new(bytes: &'a [u8; PAGE_BYTES]) -> Self {
        Self { bytes }
    }

    /// Checks all of a page that was read from a disk: checksum, kind, owner, every entry and their order.
    pub fn check(bytes: &'a [u8; PAGE_BYTES], expected: &Expected) -> Result<Self, FormatError> {
        let what = What::Page;
        if crc32c(bytes) != expected.crc {
            return Err(FormatError::Checksum(what));
        }
        let view = Self { bytes };
        let header = view.header();
        if header.magic != MAGIC {
            return Err(FormatError::Magic(what));
        }
        if header.version != VERSION {
            return Err(FormatError::Version { what, found: header.version.into() });
        }
        let other = |field| Err(FormatError::Other { what, field });
        if header.pool != *expected.pool.as_bytes() {
            return other("pool");
        }
        if header.line.get() != expected.line.0 {
            return other("line");
        }
        if header.level != expected.level || header.level > MAX_LEVEL {
            return other("level");
        }
        let value = |field, at_bytes| FormatError::Value { what, field, at_bytes };
        if header.reserved != [0; 4] || header.reserved2 != [0; 32] {
            return Err(value("reserved part", 12));
        }
        let capacity = if header.level == 0 { LEAF_CAPACITY } else { CHILD_CAPACITY };
        if header.count.get() == 0 || usize::from(header.count.get()) > capacity {
            return Err(value("number of entries", 6));
        }
        view.check_entries(expected.newest).map_err(|(index, field)| {
            let entry_bytes = if header.level == 0 { size_of::<RawLeaf>() } else { size_of::<RawChild>() };
            value(field, size_of::<Header>() + index * entry_bytes)
        })?;
        Ok(view)
    }

    fn check_entries(self, newest: Seq) -> Result<(), (usize, &'static str)> {
        let mut last = None;
        let mut in_order = |index, key| {
            if last.is_some_and(|last| key_order(last, key) != Ordering::Less) {
                return Err((index, "order"));
            }
            last = Some(key);
            Ok(())
        };
        for (index, entry) in self.leaves().iter().enumerate() {
            entry.check().map_err(|field| (index, field))?;
            in_order(index, (entry.block(), entry.birth.get()))?;
            if entry.birth.get() > newest.0 {
                return Err((index, "birth"));
            }
        }
        for (index, entry) in self.children().iter().enumerate() {
            entry.check().map_err(|field| (index, field))?;
            in_order(index, (entry.key.get() >> 24, entry.birth.get()))?;
            if entry.newest.get() > newest.0 {
                return Err((index, "highest birth"));
            }
        }
        Ok(())
    }

    #[inline]
    fn header(self) -> &'a Header {
        let page: &LeafPage = zerocopy::transmute_ref!(self.bytes);
        &page.header
    }

    /// Entries of a leaf; none of an interior page.
    #[inline]
    fn leaves(self) -> &'a [RawLeaf] {
        let page: &LeafPage = zerocopy::transmute_ref!(self.bytes);
        let count = if page.header.level == 0 { usize::from(page.header.count.get()) } else { 0 };
        &page.entries[..count.min(LEAF_CAPACITY)]
    }

    /// Entries of an interior page; none of a leaf.
    #[inline]
    fn children(self) -> &'a [RawChild] {
        let page: &ChildPage = zerocopy::transmute_ref!(self.bytes);
        let count = if page.header.level == 0 { 0 } else { usize::from(page.header.count.get()) };
        &page.entries[..count.min(CHILD_CAPACITY)]
    }

    /// Its level: 0 is a leaf.
    #[inline]
    pub fn level(self) -> u8 {
        self.header().level
    }

    /// Whose tree it belongs to.
    #[inline]
    pub fn line(self) -> LineId {
        LineId(self.header().line.get())
    }

    /// Number of entries.
    #[inline]
    pub fn len(self) -> usize {
        self.leaves().len().max(self.children().len())
    }

    /// True without entries; a page that was checked has some.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Entry `index` of a leaf. `None` behind the last one, and in an interior page.
    #[inline]
    pub fn leaf(self, index: usize) -> Option<Leaf> {
        self.leaves().get(index).map(RawLeaf::decode)
    }

    /// Entry `index` of an interior page. `None` behind the last one, and in a leaf.
    #[inline]
    pub fn child(self, index: usize) -> Option<Child> {
        self.children().get(index).map(RawChild::decode)
    }

    /// Index of the first entry that does not come before a version of `block` born before `before`: in a leaf the
    /// newest such version if the entry is of that block. The same as [`len`](Self::len) when all come before it.
    ///
    /// In an interior page that child and those after it hold nothing that comes before; so the version stands in
    /// the child *before* it if there, else at the front of it.
    #[inline]
    pub fn lower_bound(self, block: BlockNo, before: Seq) -> usize {
        if self.level() == 0 {
            search(self.leaves(), block.0, RawLeaf::block, |entry| entry.is_before(block.0, before))
        } else {
            search(self.children(), block.0, RawChild::block, |entry| entry.is_before(block.0, before))
        }
    }
}

/// Why an entry was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The page is full: finish it and begin the next.
    Full,
    /// It does not come after the entry before it, or cannot be written down (a block beyond [`MAX_BLOCKS`], no
    /// address, a run of no or too many blocks). An error of the caller.
    Invalid,
}

/// What a finished page is, for the pointer to it and its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageSummary {
    /// Block of the first key.
    pub block: BlockNo,
    /// Birth of the first key.
    pub birth: Seq,
    /// Highest birth in it or below it.
    pub newest: Seq,
    /// CRC32C over the page.
    pub crc: u32,
    /// Number of entries.
    pub count: usize,
}

/// Writes a page into the caller's 4096 bytes, entry after entry.
pub struct PageBuilder<'a> {
    bytes: &'a mut [u8; PAGE_BYTES],
    level: u8,
    count: usize,
    first: (u64, u64),
    last: (u64, u64),
    newest: u64,
}

impl<'a> PageBuilder<'a> {
    /// Begins a page of `line` on `level` (at most [`MAX_LEVEL`]); what was in `bytes` is gone.
    pub fn new(bytes: &'a mut [u8; PAGE_BYTES], pool: &Uuid, line: LineId, level: u8) -> Self {
        debug_assert!(level <= MAX_LEVEL);
        bytes.fill(0);
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            level,
            count: U16::ZERO,
            line: line.0.into(),
            reserved: [0; 4],
            pool: *pool.as_bytes(),
            reserved2: [0; 32],
        };
        let page: &mut LeafPage = zerocopy::transmute_mut!(&mut *bytes);
        page.header = header;
        Self { bytes, level, count: 0, first: (0, 0), last: (0, 0), newest: 0 }
    }

    /// Entries so far.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True when no other entry fits.
    pub fn is_full(&self) -> bool {
        self.count == if self.level == 0 { LEAF_CAPACITY } else { CHILD_CAPACITY }
    }

    /// Adds a version to a leaf.
    pub fn push_leaf(&mut self, leaf: &Leaf) -> Result<(), Refused> {
        if self.is_full() {
            return Err(Refused::Full);
        }
        let raw = RawLeaf::encode(leaf).filter(|_| self.level == 0).ok_or(Refused::Invalid)?;
        self.take_key((leaf.block.0, leaf.version.birth.0))?;
        self.newest = self.newest.max(leaf.version.birth.0);
        let page: &mut LeafPage = zerocopy::transmute_mut!(&mut *self.bytes);
        page.entries[self.count] = raw;
        self.count += 1;
        Ok(())
    }

    /// Adds a child to an interior page.
    pub fn push_child(&mut self, child: &Child) -> Result<(), Refused> {
        if self.is_full() {
            return Err(Refused::Full);
        }
        let raw = RawChild::encode(child).filter(|_| self.level > 0).ok_or(Refused::Invalid)?;
        self.take_key((child.block.0, child.birth.0))?;
        self.newest = self.newest.max(child.ptr.newest.0);
        let page: &mut ChildPage = zerocopy::transmute_mut!(&mut *self.bytes);
        page.entries[self.count] = raw;
        self.count += 1;
        Ok(())
    }

    fn take_key(&mut self, key: (u64, u64)) -> Result<(), Refused> {
        if self.count == 0 {
            self.first = key;
        } else if key_order(self.last, key) != Ordering::Less {
            return Err(Refused::Invalid);
        }
        self.last = key;
        Ok(())
    }

    /// Completes the page and says what its parent has to know. `None` without entries: such a page is not written.
    pub fn finish(self) -> Option<PageSummary> {
        if self.count == 0 {
            return None;
        }
        let page: &mut LeafPage = zerocopy::transmute_mut!(&mut *self.bytes);
        page.header.count = (self.count as u16).into();
        Some(PageSummary {
            block: BlockNo(self.first.0),
            birth: Seq(self.first.1),
            newest: Seq(self.newest),
            crc: crc32c(self.bytes),
            count: self.count,
        })
    }
}

#[cfg(test)]
mod tests;
