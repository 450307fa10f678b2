//! CRC32C, the header and data digest of NVMe/TCP (TCP Transport 1.0).

use crc_fast::CrcAlgorithm;

/// Length of a digest on the wire in bytes: the CRC as a little-endian dword.
pub const DIGEST_LEN_BYTES: usize = 4;

/// The digest of contiguous bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The digest of bytes that lie in several places, or that arrive bit by bit.
#[derive(Clone, Copy, Debug)]
pub struct Digest(crc_fast::Digest);

impl Digest {
    /// The digest of nothing yet.
    pub fn new() -> Self {
        Self(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Adds the bytes that come next.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes so far; more may follow.
    pub fn value(&self) -> u32 {
        self.0.finalize() as u32
    }

    /// Starts anew.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_vectors() {
        // RFC 3720, appendix B.4, and the check value of the CRC catalogue.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c(&[]), 0);
    }

    #[test]
    fn scattered_is_the_same_as_contiguous() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| (n * 7 + n / 251) as u8).collect();
        let whole = crc32c(&bytes);
        for cut in [0, 1, 3, 63, 64, 65, 4095, 4096, 9_999, 10_000] {
            let mut digest = Digest::new();
            digest.update(&bytes[..cut]);
            digest.update(&bytes[cut..]);
            assert_eq!(digest.value(), whole, "cut at {cut}");
            digest.reset();
            assert_eq!(digest.value(), 0);
        }
    }
}
