//! The account of regions that are being written, for children that cannot tell themselves what changed (hazard H19).
//!
//! A bit stands for a region. It is on every child in sync, durably, before the first write to its region reaches any child; it
//! is taken away when every child has every write of the region, durably. So after any crash children differ at most in the
//! regions that one of them *or* the other has a bit for. While a child of the account is away, or not in sync, no bit is taken
//! away: the bits then say what it misses as well.
//!
//! An account has a random name, and members, which the nexus notes in its store. A child whose page has another name, or none,
//! lacks everything. No bit goes while a member is not there. The whole argument stands in `docs/nexus.md`.
//!
//! # On a child
//! In the metadata area before the data, two places of one page each, which are written in turn:
//!
//! ```text
//!   byte 4 MiB and 4.5 MiB:
//!    0  signature "KeelAcct"      8  version (1)        12  CRC32C of the page, this field zero
//!   16  sequence                 24  name of the account (16 bytes)
//!   40  log2 of blocks in a region   44  regions   48  zero (16 bytes)
//!   64  a bit for each region, from the lowest bit of the lowest byte on
//! ```
//! The one with the greater sequence counts. A write that does not get to its end leaves the other: it lacks bits whose writes
//! had not begun, and has those that were to be taken away.
//!
//! # Cost
//! The first write to a region waits for a page on every child in sync. Regions are 4 MiB or as large as it takes for all
//! to fit into a page; a region that was not written for ten seconds loses its bit. Nexuses whose children all keep marks need
//! none of this, and pay one load a write.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use aio::{BlockCount, BlockRange, Lba};
use nvme::digest::crc32c;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of the places of a page on a child.
pub(crate) const PLACES_BYTES: [u64; 2] = [4 << 20, (4 << 20) + (512 << 10)];
/// Length of a page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Bytes of the bits.
const BITS_BYTES: usize = PAGE_BYTES - 64;
/// Most regions.
const MAX_REGIONS: u64 = BITS_BYTES as u64 * 8;
/// Words of the bits.
const WORDS: usize = BITS_BYTES / 8;
/// The smallest region.
const MIN_REGION_BYTES: u64 = 4 << 20;
const SIGNATURE: [u8; 8] = *b"KeelAcct";
const VERSION: u32 = 1;

/// Bits of regions.
pub(crate) type Bits = [u64; WORDS];

/// As it stands on a child.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    signature: [u8; 8],
    version: U32,
    crc: U32,
    sequence: U64,
    name: [u8; 16],
    region_shift: U32,
    regions: U32,
    reserved: [u8; 16],
    bits: [U64; WORDS],
}

const _: () = assert!(size_of::<Raw>() == PAGE_BYTES);

/// A page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Page {
    pub(crate) name: u128,
    pub(crate) sequence: u64,
    pub(crate) region_shift: u32,
    pub(crate) bits: Box<Bits>,
}

impl Page {
    /// As it is written.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut raw = Raw {
            signature: SIGNATURE,
            version: VERSION.into(),
            crc: 0.into(),
            sequence: self.sequence.into(),
            name: self.name.to_le_bytes(),
            region_shift: self.region_shift.into(),
            regions: (MAX_REGIONS as u32).into(),
            reserved: [0; 16],
            bits: self.bits.map(U64::new),
        };
        raw.crc = crc32c(raw.as_bytes()).into();
        raw.as_bytes().to_vec()
    }

    /// Of what was read: `None` when it is none, of another version, or torn.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (mut raw, _) = Raw::read_from_prefix(bytes).ok()?;
        let crc = core::mem::take(&mut raw.crc).get();
        let good = raw.signature == SIGNATURE
            && raw.version.get() == VERSION
            && crc == crc32c(raw.as_bytes())
            && raw.region_shift.get() < u64::BITS
            && u64::from(raw.regions.get()) == MAX_REGIONS;
        good.then(|| Self {
            name: u128::from_le_bytes(raw.name),
            sequence: raw.sequence.get(),
            region_shift: raw.region_shift.get(),
            bits: Box::new(raw.bits.map(U64::get)),
        })
    }
}

/// What all cores share of the account.
pub(crate) struct Intent {
    enabled: AtomicBool,
    /// log2 of the blocks in a region.
    region_shift: AtomicU32,
    /// Regions whose bit is on every child in sync.
    durable: Box<[AtomicU64; WORDS]>,
    /// Regions that were written since somebody asked.
    touched: Box<[AtomicU64; WORDS]>,
}

impl Intent {
    /// No account.
    pub(crate) fn new() -> Self {
        let zeroes = || Box::new([const { AtomicU64::new(0) }; WORDS]);
        Self {
            enabled: AtomicBool::new(false),
            region_shift: AtomicU32::new(0),
            durable: zeroes(),
            touched: zeroes(),
        }
    }

    /// log2 of the blocks in a region of an account over `size` blocks of `block_bytes`.
    pub(crate) fn shift_for(size: BlockCount, block_bytes: u32) -> u32 {
        let least = (MIN_REGION_BYTES / u64::from(block_bytes)).max(1).next_power_of_two();
        size.0.div_ceil(MAX_REGIONS).next_power_of_two().max(least).trailing_zeros()
    }

    /// Begins the account, with what is on the children already. Before any write.
    pub(crate) fn begin(&self, region_shift: u32, durable: &Bits) {
        self.region_shift.store(region_shift, Ordering::Relaxed);
        for (word, bits) in self.durable.iter().zip(durable) {
            word.store(*bits, Ordering::Relaxed);
        }
        self.enabled.store(true, Ordering::Release);
    }

    /// An account is kept.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    pub(crate) fn region_shift(&self) -> u32 {
        self.region_shift.load(Ordering::Relaxed)
    }

    /// The first and the last region of a range that is not empty. What is beyond the last region belongs to it.
    fn regions(&self, range: BlockRange) -> (u64, u64) {
        let shift = self.region_shift();
        let last = range.start.0.saturating_add(range.blocks.0.saturating_sub(1));
        ((range.start.0 >> shift).min(MAX_REGIONS - 1), (last >> shift).min(MAX_REGIONS - 1))
    }

    /// A change of `range` is to begin. True when it may: its bits are on the children, and stay.
    pub(crate) fn admit(&self, range: BlockRange) -> bool {
        let (first, last) = self.regions(range);
        let mut admitted = true;
        for region in first..=last {
            let (word, bit) = ((region / 64) as usize, 1 << (region % 64));
            // Who finds it set before it is asked for is waited for before bits are taken away: it is on its way by then.
            if self.touched[word].load(Ordering::Relaxed) & bit == 0 {
                // Sequentially consistent, as in `take_away`: one of the two sees what the other did.
                self.touched[word].fetch_or(bit, Ordering::SeqCst);
            }
            admitted &= self.durable[word].load(Ordering::SeqCst) & bit != 0;
        }
        admitted
    }

    /// The bits of `range`.
    pub(crate) fn bits_of(&self, range: BlockRange) -> Box<Bits> {
        let mut bits = Box::new([0; WORDS]);
        let (first, last) = self.regions(range);
        (first..=last).for_each(|region| bits[(region / 64) as usize] |= 1 << (region % 64));
        bits
    }

    /// Regions with a bit.
    pub(crate) fn durable(&self) -> Box<Bits> {
        let mut bits = Box::new([0; WORDS]);
        bits.iter_mut().zip(&*self.durable).for_each(|(b, word)| *b = word.load(Ordering::SeqCst));
        bits
    }

    /// These bits are on the children now.
    pub(crate) fn has_become_durable(&self, bits: &Bits) {
        self.durable.iter().zip(bits).for_each(|(word, bits)| {
            word.fetch_or(*bits, Ordering::SeqCst);
        });
    }

    /// Regions with a bit that were not written since this was asked the last time. Writes that begin on other cores may not
    /// know of it yet: what is on its way there is waited for before [`take_away`](Self::take_away).
    pub(crate) fn untouched(&self) -> Box<Bits> {
        let mut bits = self.durable();
        for (bits, touched) in bits.iter_mut().zip(&*self.touched) {
            *bits &= !touched.swap(0, Ordering::SeqCst);
        }
        bits
    }

    /// Takes those of `bits` away whose regions were not written since [`untouched`](Self::untouched) was asked. A write that
    /// begins now waits until they are there again.
    pub(crate) fn take_away(&self, bits: &Bits) {
        for ((durable, touched), bits) in self.durable.iter().zip(&*self.touched).zip(bits) {
            durable.fetch_and(!bits, Ordering::SeqCst);
            let written = touched.load(Ordering::SeqCst) & bits;
            // On the children they still are.
            durable.fetch_or(written, Ordering::SeqCst);
        }
    }
}

/// Blocks of the regions in `bits`.
pub(crate) fn ranges(bits: &Bits, region_shift: u32, size: BlockCount) -> impl Iterator<Item = BlockRange> {
    let regions = (0..MAX_REGIONS).filter(|r| bits[(r / 64) as usize] & 1 << (r % 64) != 0);
    regions.filter_map(move |region| {
        let start = region.checked_shl(region_shift).filter(|start| *start < size.0)?;
        let end = if region == MAX_REGIONS - 1 { size.0 } else { (start + (1 << region_shift)).min(size.0) };
        Some(BlockRange { start: Lba(start), blocks: BlockCount(end - start) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, blocks: u64) -> BlockRange {
        BlockRange { start: Lba(start), blocks: BlockCount(blocks) }
    }

    #[test]
    fn pages_are_read_as_they_were_written_or_not_at_all() {
        let mut bits = Box::new([0; WORDS]);
        (bits[0], bits[WORDS - 1]) = (5, 1 << 63);
        let page = Page { name: 1 << 100 | 7, sequence: 9, region_shift: 12, bits };
        let bytes = page.encode();
        assert_eq!(bytes.len(), PAGE_BYTES);
        assert_eq!(Page::decode(&bytes), Some(page));
        for at in [0, 8, 12, 17, 30, 41, 45, 50, 64, 4095] {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            assert_eq!(Page::decode(&torn), None, "byte {at}");
        }
        assert_eq!(Page::decode(&bytes[..4095]), None);
        assert_eq!(Page::decode(&[0; PAGE_BYTES]), None);
    }

    #[test]
    fn regions_fit_into_a_page() {
        assert_eq!(Intent::shift_for(BlockCount(1000), 4096), 10);
        assert_eq!(Intent::shift_for(BlockCount(1000), 512), 13);
        let tib = Intent::shift_for(BlockCount(1 << 28), 4096);
        assert!((1 << 28) >> tib <= MAX_REGIONS && (1 << 28) >> (tib - 1) > MAX_REGIONS);
    }

    #[test]
    fn a_region_is_admitted_as_long_as_its_bit_is_there() {
        let intent = Intent::new();
        assert!(!intent.is_on());
        intent.begin(10, &[0; WORDS]);
        assert!(!intent.admit(range(1000, 100)), "two regions, none has a bit");
        intent.has_become_durable(&intent.bits_of(range(0, 1)));
        assert!(intent.admit(range(5, 5)) && !intent.admit(range(1000, 100)));
        intent.has_become_durable(&intent.bits_of(range(1000, 100)));
        assert!(intent.admit(range(1000, 100)));
        // Written since the question before: they stay.
        assert_eq!(*intent.untouched(), [0; WORDS]);
        assert!(intent.admit(range(2000, 1)), "the second one");
        let untouched = intent.untouched();
        assert_eq!(untouched[0], 1);
        // Written between the question and the taking away.
        let all = intent.durable();
        intent.admit(range(0, 1));
        intent.take_away(&all);
        assert_eq!(intent.durable()[0], 1);
        let found: Vec<_> = ranges(&intent.durable(), 10, BlockCount(100)).collect();
        assert_eq!(found, [range(0, 100)]);
        // The last region has everything beyond.
        assert!(!intent.admit(range(u64::MAX - 5, 3)));
        let last = intent.bits_of(range(u64::MAX - 5, 3));
        assert_eq!(last[WORDS - 1], 1 << 63);
        let start = (MAX_REGIONS - 1) << 10;
        let found: Vec<_> = ranges(&last, 10, BlockCount(start + 5000)).collect();
        assert_eq!(found, [range(start, 5000)]);
    }
}
