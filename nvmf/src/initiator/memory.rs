//! The caller's memory: pieces of scatter-gather lists, copies into them, checksums over them.
//!
//! `unsafe` because payload is named by raw entries. Every function here passes the promise of
//! [`IoChannel::submit`](aio::IoChannel::submit) on: the bytes stay valid until the command's completion.
#![allow(unsafe_code)]

use aio::{RegionId, SgEntry};
use nvme::tcp::Digest;

/// The entry for `len` bytes of `entry` from `skip` on; both lie within it.
fn part(entry: &SgEntry, skip: u32, len: u32) -> SgEntry {
    debug_assert!(skip + len <= entry.len_bytes);
    // `map_addr` keeps the provenance, and the sum stays within the entry.
    let ptr = entry.ptr.map_addr(|a| a.saturating_add(skip as usize));
    SgEntry { ptr, len_bytes: len, region: entry.region }
}

/// Calls `visit` with the entries that cover `len_bytes` bytes of `sg` from `offset_bytes` on. What lies
/// beyond the end of the list is left out.
#[inline]
pub(super) fn slice(sg: &[SgEntry], offset_bytes: u32, len_bytes: u32, mut visit: impl FnMut(SgEntry)) {
    let (mut skip, mut left) = (offset_bytes, len_bytes);
    for entry in sg {
        if skip >= entry.len_bytes {
            skip -= entry.len_bytes;
            continue;
        }
        let n = left.min(entry.len_bytes - skip);
        if n == 0 {
            break;
        }
        visit(part(entry, skip, n));
        (skip, left) = (0, left - n);
    }
}

/// An entry for bytes that this crate owns.
pub(super) fn entry_of(bytes: &[u8]) -> Option<SgEntry> {
    let len_bytes = u32::try_from(bytes.len()).ok().filter(|n| *n > 0)?;
    Some(SgEntry { ptr: std::ptr::NonNull::from(bytes).cast(), len_bytes, region: RegionId::NONE })
}

/// An entry for bytes that this crate owns and that will be written.
pub(super) fn entry_of_mut(bytes: &mut [u8]) -> Option<SgEntry> {
    let len_bytes = u32::try_from(bytes.len()).ok().filter(|n| *n > 0)?;
    Some(SgEntry { ptr: std::ptr::NonNull::from(bytes).cast(), len_bytes, region: RegionId::NONE })
}

/// Copies `bytes` into `sg` from `offset_bytes` on.
///
/// # Safety
/// The memory that `sg` names is writable, and nobody else touches it.
#[inline]
pub(super) unsafe fn copy_into(sg: &[SgEntry], offset_bytes: u32, mut bytes: &[u8]) {
    let len = bytes.len() as u32;
    slice(sg, offset_bytes, len, |e| {
        let (now, later) = bytes.split_at(e.len_bytes as usize);
        bytes = later;
        // SAFETY: the caller promises that the entry is writable; `now` has its length and is ours.
        unsafe { e.ptr.as_ptr().copy_from_nonoverlapping(now.as_ptr(), now.len()) };
    });
}

/// Appends all bytes of `sg` to `out`.
///
/// # Safety
/// The memory that `sg` names is readable.
pub(super) unsafe fn copy_out(sg: &[SgEntry], out: &mut Vec<u8>) {
    for e in sg {
        let len = e.len_bytes as usize;
        out.reserve(len);
        let at = out.len();
        // SAFETY: the caller promises that the entry is readable; `reserve` made room for its bytes.
        unsafe { e.ptr.as_ptr().copy_to_nonoverlapping(out.as_mut_ptr().add(at), len) };
        // SAFETY: the line above initialised these bytes within the capacity.
        unsafe { out.set_len(at + len) };
    }
}

/// Adds one entry's bytes to a checksum.
///
/// # Safety
/// The memory that `entry` names is readable, and nobody writes to it meanwhile.
pub(super) unsafe fn digest(entry: &SgEntry, digest: &mut Digest) {
    // SAFETY: the caller promises readable bytes that nobody changes; the slice lives for this call only.
    digest.update(unsafe { std::slice::from_raw_parts(entry.ptr.as_ptr(), entry.len_bytes as usize) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cross_entries_and_stop_at_the_end() {
        let mut a = [0u8; 3];
        let mut b = [0u8; 5];
        let sg = [entry_of_mut(&mut a).unwrap(), entry_of_mut(&mut b).unwrap()];
        // SAFETY: the entries name `a` and `b`, which nobody else uses.
        unsafe { copy_into(&sg, 2, &[1, 2, 3]) };
        let mut all = Vec::new();
        // SAFETY: as above.
        unsafe { copy_out(&sg, &mut all) };
        assert_eq!(all, [0, 0, 1, 2, 3, 0, 0, 0]);
        let mut lens = Vec::new();
        slice(&sg, 1, 100, |e| lens.push(e.len_bytes));
        assert_eq!(lens, [2, 5]);
        slice(&sg, 8, 1, |_| panic!("nothing is there"));
        assert!(entry_of(&[]).is_none());
    }
}
