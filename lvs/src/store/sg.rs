//! Lists of memory: cutting pieces out of them, and checksums over them.
//!
//! Needs `unsafe` to read memory that a list names. Who calls has it from an I/O in flight, so it is valid (see
//! [`aio::IoChannel::submit`]); only stable memory and memory that a device has finished to fill is read here.

use aio::SgEntry;
use nvme::digest::{Digest, crc32c};

use crate::types::BLOCK_BYTES;

/// Appends the bytes `[offset_bytes, offset_bytes + len_bytes)` of `list` to `out`.
pub(super) fn cut(list: &[SgEntry], offset_bytes: u64, len_bytes: u64, out: &mut Vec<SgEntry>) {
    let (mut skip, mut left) = (offset_bytes, len_bytes);
    for e in list {
        if left == 0 {
            return;
        }
        let len = u64::from(e.len_bytes);
        if skip >= len {
            skip -= len;
            continue;
        }
        let take = (len - skip).min(left);
        // SAFETY: `skip` is below the entry's length.
        let ptr = unsafe { e.ptr.add(skip as usize) };
        out.push(SgEntry { ptr, len_bytes: take as u32, region: e.region });
        left -= take;
        skip = 0;
    }
    debug_assert_eq!(left, 0, "the list is as long as its I/O");
}

/// Calls `each` with the CRC32C of every 4 KiB block of the list, in order.
///
/// # Safety
/// The list names valid memory, a multiple of 4096 bytes, that nobody writes meanwhile.
pub(super) unsafe fn block_crcs(list: &[SgEntry], mut each: impl FnMut(u32)) {
    let block = BLOCK_BYTES as usize;
    let mut open: Option<(Digest, usize)> = None;
    for e in list {
        // SAFETY: as the caller promises.
        let mut bytes = unsafe { core::slice::from_raw_parts(e.ptr.as_ptr(), e.len_bytes as usize) };
        if let Some((mut digest, had)) = open.take() {
            let take = bytes.len().min(block - had);
            digest.update(&bytes[..take]);
            bytes = &bytes[take..];
            if had + take < block {
                open = Some((digest, had + take));
                continue;
            }
            each(digest.value());
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % block);
        whole.chunks_exact(block).for_each(|b| each(crc32c(b)));
        if !rest.is_empty() {
            let mut digest = Digest::new();
            digest.update(rest);
            open = Some((digest, rest.len()));
        }
    }
}
