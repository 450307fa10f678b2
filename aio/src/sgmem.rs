//! Copies between scatter-gather lists and plain memory, through raw pointers only.
//!
//! # Unsafe
//! The bytes belong to callers, other cores or devices, so no Rust reference to them may exist. Where two
//! cores race on the same bytes (two hosts writing one block at a time, which NVMe leaves undefined), each
//! byte ends up old or new; nothing here decides anything by their value, except [`equal`] for its result.

use crate::sg::SgEntry;

/// Copies the list's bytes, in order, to `dst`.
///
/// # Safety
/// All entries are valid for reads, `dst` is valid for writes of their total length, and they do not overlap.
#[inline]
pub unsafe fn gather(sg: &[SgEntry], mut dst: *mut u8) {
    for e in sg {
        let len = e.len_bytes as usize;
        // SAFETY: the caller promises both sides for the whole list, of which this is the next part.
        unsafe { core::ptr::copy_nonoverlapping(e.ptr.as_ptr(), dst, len) };
        // SAFETY: within `dst`'s total length, or one past its end after the last entry.
        dst = unsafe { dst.add(len) };
    }
}

/// Copies from `src` to the list's bytes, in order.
///
/// # Safety
/// All entries are valid for writes, `src` is valid for reads of their total length, and they do not overlap.
#[inline]
pub unsafe fn scatter(mut src: *const u8, sg: &[SgEntry]) {
    for e in sg {
        let len = e.len_bytes as usize;
        // SAFETY: the caller promises both sides for the whole list, of which this is the next part.
        unsafe { core::ptr::copy_nonoverlapping(src, e.ptr.as_ptr(), len) };
        // SAFETY: within `src`'s total length, or one past its end after the last entry.
        src = unsafe { src.add(len) };
    }
}

/// Fills the list with zeroes.
///
/// # Safety
/// All entries are valid for writes.
#[inline]
pub unsafe fn fill_zero(sg: &[SgEntry]) {
    for e in sg {
        // SAFETY: the caller promises the entry.
        unsafe { core::ptr::write_bytes(e.ptr.as_ptr(), 0, e.len_bytes as usize) };
    }
}

/// True when the list's bytes, in order, are those at `mem`.
///
/// # Safety
/// All entries are valid for reads, and `mem` is for their total length.
#[inline]
pub unsafe fn equal(sg: &[SgEntry], mut mem: *const u8) -> bool {
    for e in sg {
        let len = e.len_bytes as usize;
        // SAFETY: the caller promises both sides for the whole list. memcmp works on raw memory, which a
        // slice comparison would not.
        let differs = unsafe { libc::memcmp(e.ptr.as_ptr().cast(), mem.cast(), len) } != 0;
        if differs {
            return false;
        }
        // SAFETY: within `mem`'s total length, or one past its end after the last entry.
        mem = unsafe { mem.add(len) };
    }
    true
}
