//! Seals of the openings of a pool: each opening has a salt of its own, derived from the pool's secret, so that the
//! records of every opening can still be read.

use uuid::Uuid;

use crate::format::record::HeaderSeal;

/// The seal of opening `opening` of the pool with this secret.
pub(crate) fn seal(pool: &Uuid, secret: &[u8; 16], opening: u32) -> HeaderSeal {
    let half = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&secret[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let first = mix(half(0) ^ mix(u64::from(opening)));
    let second = mix(half(8) ^ first);
    let mut salt = [0; 16];
    salt[..8].copy_from_slice(&first.to_le_bytes());
    salt[8..].copy_from_slice(&second.to_le_bytes());
    HeaderSeal::new(pool, &salt)
}

/// Spreads every bit of `x` over the result.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ x >> 32
}
