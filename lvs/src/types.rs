//! Numbers that must not be mixed up.

use core::fmt;

/// Bytes of a store block: the unit of placement, of checksums and of the map.
pub const BLOCK_BYTES: u32 = 4096;

/// Most devices of one pool: device indices have to fit a [`Pba`].
pub const MAX_MEMBERS: usize = 64;

/// Most bytes of a name of a pool, volume or snapshot.
pub const MAX_NAME_BYTES: usize = 255;

/// Most bytes of a volume.
pub const MAX_VOLUME_BYTES: u64 = 1 << 50;

/// A line: one volume's head together with its snapshots. A clone begins a new line. Never used twice in a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LineId(pub u32);

/// A 4 KiB block of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockNo(pub u64);

/// Sequence number of a record: the time of the log. Each record has one, none is used twice in the life of a pool,
/// and the versions of blocks that a record wrote are *born* at its number. An epoch is such a number too: a
/// snapshot at `s` sees what was born before `s`.
///
/// The high 24 bits count openings of the pool, the low 40 records of that opening.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// Before everything.
    pub const ZERO: Self = Self(0);
    /// After everything: the view of a head.
    pub const MAX: Self = Self(u64::MAX);
    /// Bits that count records within an opening.
    pub const COUNTER_BITS: u32 = 40;

    /// The first number of opening `opening`.
    pub const fn first_of(opening: u32) -> Self {
        Self((opening as u64) << Self::COUNTER_BITS)
    }

    /// The opening that it belongs to.
    pub const fn opening(self) -> u32 {
        (self.0 >> Self::COUNTER_BITS) as u32
    }

    /// The number after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A 4 KiB block of the pool: device index in bits 40..48, block on that device below.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pba(u64);

impl Pba {
    /// Names nothing.
    pub const NONE: Self = Self((1 << 48) - 1);

    /// Block `block` of device `member`. `None` when the numbers do not fit.
    pub const fn new(member: u8, block: u64) -> Option<Self> {
        if (member as usize) < MAX_MEMBERS && block < 1 << 40 {
            Some(Self((member as u64) << 40 | block))
        } else {
            None
        }
    }

    /// From 48 bits as on disk; anything that `new` would refuse becomes [`NONE`](Self::NONE).
    pub const fn from_bits(bits: u64) -> Self {
        if bits >> 48 == 0 && ((bits >> 40) as usize) < MAX_MEMBERS { Self(bits) } else { Self::NONE }
    }

    /// As on disk: 48 bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Index of the device.
    pub const fn member(self) -> u8 {
        (self.0 >> 40) as u8
    }

    /// Block on that device.
    pub const fn block(self) -> u64 {
        self.0 & ((1 << 40) - 1)
    }

    /// The block `n` further on the same device.
    #[must_use]
    pub const fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }

    /// True for [`NONE`](Self::NONE).
    pub const fn is_none(self) -> bool {
        self.0 == Self::NONE.0
    }
}

impl fmt::Display for Pba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {} block {}", self.member(), self.block())
    }
}

/// A segment of the pool: device index in the high 8 bits, index on that device below.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// Segment `index` of device `member`. `index` is below 2^24.
    pub const fn new(member: u8, index: u32) -> Self {
        Self((member as u32) << 24 | index)
    }

    /// Index of the device.
    pub const fn member(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Index on that device.
    pub const fn index(self) -> u32 {
        self.0 & 0x00ff_ffff
    }
}

/// Where the bytes of a block version are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At this address, with this CRC32C.
    Data {
        /// Where.
        pba: Pba,
        /// Over its 4096 bytes.
        crc: u32,
    },
    /// Nowhere: the block reads as zeroes since this version's birth (unmapped, or zeroes were written).
    Hole,
}

/// One version of a block of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// The record that made it.
    pub birth: Seq,
    /// Its bytes.
    pub place: Place,
}

/// Points to a map page in the log: all that is needed to read and to believe it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagePtr {
    /// Where.
    pub pba: Pba,
    /// A second copy on another device, or [`Pba::NONE`].
    pub copy: Pba,
    /// CRC32C over the page.
    pub crc: u32,
    /// Highest birth in the page or below it: what is not newer than a mark can be left out of a search for changes.
    pub newest: Seq,
}

/// True when a version born at `birth` and superseded at `until` (`Seq::MAX`: it is current) is seen by a head or by
/// one of the `snapshots` (their epochs, ascending). `head` says whether the line still has a head.
pub fn is_needed(birth: Seq, until: Seq, snapshots: &[Seq], head: bool) -> bool {
    if head && until == Seq::MAX {
        return true;
    }
    // The first snapshot that sees `birth` is the only one that has to be asked.
    let first = snapshots.partition_point(|&s| s <= birth);
    snapshots.get(first).is_some_and(|&s| s <= until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_needed_by_the_head_or_by_a_snapshot_between_birth_and_end() {
        let at = |n| Seq(n);
        assert!(is_needed(at(5), Seq::MAX, &[], true));
        assert!(!is_needed(at(5), Seq::MAX, &[], false));
        assert!(!is_needed(at(5), at(9), &[], true));
        assert!(is_needed(at(5), at(9), &[at(6)], true));
        assert!(is_needed(at(5), at(9), &[at(9)], true), "a snapshot at 9 does not see what was born at 9");
        assert!(!is_needed(at(5), at(9), &[at(5)], true), "a snapshot at 5 does not see what was born at 5");
        assert!(!is_needed(at(5), at(9), &[at(3), at(10)], true));
        assert!(is_needed(at(5), Seq::MAX, &[at(10)], false));
    }

    #[test]
    fn addresses_keep_their_parts() {
        let pba = Pba::new(63, (1 << 40) - 1).unwrap();
        assert_eq!((pba.member(), pba.block()), (63, (1 << 40) - 1));
        assert_eq!(Pba::from_bits(pba.bits()), pba);
        assert!(Pba::new(64, 0).is_none() && Pba::new(0, 1 << 40).is_none());
        assert!(Pba::from_bits(Pba::NONE.bits()).is_none() && Pba::from_bits(u64::MAX).is_none());
        let seg = SegmentId::new(7, 9);
        assert_eq!((seg.member(), seg.index()), (7, 9));
    }
}
