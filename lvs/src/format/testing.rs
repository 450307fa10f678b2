//! Helpers of the tests of this module.

/// A small generator (splitmix64): the same values for the same seed on every machine.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Calls `judge` with `bytes` once for every bit, with that bit flipped.
pub(crate) fn flip_every_bit(bytes: &[u8], mut judge: impl FnMut(&[u8])) {
    let mut flipped = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        flipped[bit / 8] ^= 1 << (bit % 8);
        judge(&flipped);
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
}
