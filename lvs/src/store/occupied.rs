//! What a disk holds already, by its signatures.

/// Bytes at the start of a disk that [`recognise`] looks at.
pub(super) const LOOK_BYTES: usize = 128 << 10;

/// Where a signature stands, and what it means.
const SIGNATURES: [(usize, &[u8], &str); 12] = [
    (0x438, &[0x53, 0xef], "an ext file system"),
    (0, b"XFSB", "an xfs file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0x200, b"LABELONE", "an LVM physical volume"),
    (0x200, b"EFI PART", "a GPT partition table"),
    (0x1000, b"EFI PART", "a GPT partition table"),
    (4086, b"SWAPSPACE2", "a swap area"),
    (0, b"SPDKBLOB", "an SPDK blob store"),
    (0x1fe, &[0x55, 0xaa], "a partition table"),
    (3, b"NTFS", "an NTFS file system"),
    (0x8001, b"CD001", "an ISO 9660 image"),
];

/// What the disk that begins with these bytes holds, if it is something known.
pub(super) fn recognise(bytes: &[u8]) -> Option<&'static str> {
    let found = |&&(at, signature, _): &&(usize, &[u8], &str)| {
        bytes.get(at..).is_some_and(|b| b.starts_with(signature))
    };
    SIGNATURES.iter().find(found).map(|&(_, _, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_content_is_recognised_and_zeroes_are_nothing() {
        let mut bytes = vec![0; LOOK_BYTES];
        assert_eq!(recognise(&bytes), None);
        assert_eq!(recognise(&[]), None);
        bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(recognise(&bytes), Some("an ext file system"));
    }
}
