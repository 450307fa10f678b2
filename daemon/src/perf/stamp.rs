//! Stamps: what a verifying run writes into every block, so that any block read back tells whether it is the
//! right one, of the right time, from the right writer, and whole.
//!
//! ```text
//! 0        8        16       24       32                        block end
//! | MAGIC  | LBA    | version| writer | filling made of all of these |
//! ```
//! A torn block has a filling of two versions; a misdirected one has the LBA of another place; a lost write
//! shows an older version.

/// "KEELSTMP" read as a little-endian number.
const MAGIC: u64 = u64::from_le_bytes(*b"KEELSTMP");

/// Bytes before the filling.
const HEADER_BYTES: usize = 32;

/// Who wrote what where, and how often before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Place of the block, in the device's blocks.
    pub lba: u64,
    /// Counts the writes of one writer to one place, from 1.
    pub version: u64,
    /// Random for each run.
    pub writer: u64,
}

/// What is wrong with a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// It bears no stamp at all.
    Unstamped,
    /// The stamp of another place.
    Misplaced(Stamp),
    /// Header and filling do not belong together.
    Torn(Stamp),
    /// Whole, but not what was written last.
    Stale(Stamp),
}

impl Stamp {
    /// Fills one block, of at least 512 bytes and a multiple of 8.
    pub fn write(&self, block: &mut [u8]) {
        let mut filling = self.filling();
        for (i, word) in block.chunks_exact_mut(8).enumerate() {
            let value = match i {
                0 => MAGIC,
                1 => self.lba,
                2 => self.version,
                3 => self.writer,
                _ => filling.number(),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The stamp that a block at `lba` bears, if it is whole and in its place.
    pub fn read(block: &[u8], lba: u64) -> Result<Self, Damage> {
        let word = |i: usize| {
            let bytes = block.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        if word(0) != MAGIC {
            return Err(Damage::Unstamped);
        }
        let stamp = Self { lba: word(1), version: word(2), writer: word(3) };
        let mut filling = stamp.filling();
        let body = block.get(HEADER_BYTES..).unwrap_or_default();
        if body.chunks_exact(8).any(|w| w != filling.number().to_le_bytes()) {
            return Err(Damage::Torn(stamp));
        }
        if stamp.lba != lba { Err(Damage::Misplaced(stamp)) } else { Ok(stamp) }
    }

    /// As [`read`](Self::read), and it must be exactly `self`.
    pub fn check(&self, block: &[u8]) -> Result<(), Damage> {
        match Self::read(block, self.lba)? {
            found if found == *self => Ok(()),
            found => Err(Damage::Stale(found)),
        }
    }

    fn filling(&self) -> SplitMix {
        SplitMix(self.lba ^ self.version.rotate_left(24) ^ self.writer.rotate_left(48))
    }
}

/// SplitMix64: a full-period generator of one addition and two multiplications a number.
#[derive(Clone, Copy, Debug)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: even but for one part in 2^64 / bound.
        ((u128::from(self.number()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { lba: 77, version: 3, writer: 0xabcd };

    fn stamped(stamp: &Stamp) -> Vec<u8> {
        let mut block = vec![0; 512];
        stamp.write(&mut block);
        block
    }

    #[test]
    fn a_stamp_reads_back() {
        let block = stamped(&STAMP);
        assert_eq!(Stamp::read(&block, 77), Ok(STAMP));
        assert_eq!(STAMP.check(&block), Ok(()));
    }

    #[test]
    fn every_kind_of_damage_is_told_apart() {
        let block = stamped(&STAMP);
        assert_eq!(Stamp::read(&[0; 512], 77), Err(Damage::Unstamped));
        assert_eq!(Stamp::read(&block, 78), Err(Damage::Misplaced(STAMP)));
        let newer = Stamp { version: 4, ..STAMP };
        assert_eq!(newer.check(&block), Err(Damage::Stale(STAMP)));
        let other = Stamp { writer: 1, ..STAMP };
        assert_eq!(other.check(&block), Err(Damage::Stale(STAMP)));
        let mut torn = stamped(&newer);
        torn[256..].copy_from_slice(&block[256..]);
        assert_eq!(newer.check(&torn), Err(Damage::Torn(newer)));
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let block = stamped(&STAMP);
        for byte in 0..512 {
            let mut bad = block.clone();
            bad[byte] ^= 1 << (byte % 8);
            assert!(STAMP.check(&bad).is_err(), "byte {byte}");
        }
    }

    #[test]
    fn numbers_stay_below_their_bound() {
        let mut r = SplitMix(1);
        assert!((0..10_000).all(|_| r.below(7) < 7));
        assert_eq!(r.below(1), 0);
    }
}
