//! Payload memory of the tests: aligned, owned, and never referenced while a device has it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use aio::{RegionId, SgEntry};

/// Stricter than any device asks for.
const ALIGN: usize = 4096;

/// Owned memory on a page boundary. May be empty.
pub struct Buf {
    ptr: NonNull<u8>,
    len: usize,
}

impl Buf {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is never of size zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        Self { ptr: NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout)), len }
    }

    /// A copy of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut buf = Self::new(bytes.len());
        buf.bytes_mut().copy_from_slice(bytes);
        buf
    }

    /// `len` times `byte`.
    pub fn filled(len: usize, byte: u8) -> Self {
        let mut buf = Self::new(len);
        buf.bytes_mut().fill(byte);
        buf
    }

    /// The bytes. Only the owner can call it, and an owner in flight is with its bench.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this length, initialised, and no device has it (see `Bench`).
        unsafe { core::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// The whole buffer as a list of entries of these lengths; one entry when `cuts` is empty.
    pub fn list(&self, cuts: &[u32]) -> Vec<SgEntry> {
        if cuts.is_empty() {
            return if self.len == 0 { Vec::new() } else { vec![self.piece(0, self.len)] };
        }
        let mut at = 0;
        let list = cuts.iter().map(|len| {
            let piece = self.piece(at, *len as usize);
            at += *len as usize;
            piece
        });
        let list = list.collect();
        assert_eq!(at, self.len, "the test's cuts cover the buffer");
        list
    }

    /// `len` bytes from `offset`, as one entry.
    pub fn piece(&self, offset: usize, len: usize) -> SgEntry {
        assert!(offset + len <= self.len);
        let len_bytes = u32::try_from(len).expect("test buffers are small");
        // SAFETY: inside the allocation.
        let ptr = unsafe { self.ptr.add(offset) };
        SgEntry { ptr, len_bytes, region: RegionId::NONE }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(1), ALIGN).expect("test buffers are small")
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.len)) };
    }
}
