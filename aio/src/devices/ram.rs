//! Memory for `malloc` devices: one anonymous mapping, reserved larger than needed so that a device can grow
//! without moving.
//!
//! # Unsafe
//! Maps and unmaps memory, and hands out raw pointers into it.

use std::io;
use std::ptr::NonNull;

/// Alignment of the base: transparent huge pages start here.
const HUGE_BYTES: usize = 2 << 20;

/// Ranges from here on are given back to the system when they are zeroed; smaller ones are overwritten.
const GIVE_BACK_BYTES: usize = 256 << 10;

const PAGE_BYTES: usize = 4096;

/// A private anonymous mapping. Pages that were never written cost nothing.
pub(super) struct Ram {
    /// Start of the mapping and its whole length.
    mapping: (*mut libc::c_void, usize),
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping lives as long as the value, and everybody accesses it through raw pointers, knowing
// that other cores do the same.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Reserves address space for `len_bytes`, and for growing when the system allows it.
    pub(super) fn reserve(len_bytes: u64) -> io::Result<Self> {
        let needed = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // Address space is free, up to limits of the process or of strict overcommit: then no room to grow.
        let roomy = needed.saturating_mul(8).max(64 << 30);
        Self::map(roomy).or_else(|_| Self::map(needed))
    }

    fn map(len_bytes: usize) -> io::Result<Self> {
        let total = len_bytes.checked_add(HUGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { libc::mmap(core::ptr::null_mut(), total, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: advice on a mapping that we own. Both are optional: fewer TLB misses, smaller core dumps.
        unsafe {
            libc::madvise(start, total, libc::MADV_HUGEPAGE);
            libc::madvise(start, total, libc::MADV_DONTDUMP);
        }
        let to_boundary = start.addr().next_multiple_of(HUGE_BYTES) - start.addr();
        let base = NonNull::new(start.cast::<u8>().wrapping_add(to_boundary))
            .expect("invariant: mmap returns no null mapping");
        Ok(Self { mapping: (start, total), base, len_bytes })
    }

    /// Bytes that can be used.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes as u64
    }

    /// Pointer to a byte. The caller checked that the offset, and what it accesses from there, lie within.
    #[inline]
    pub(super) fn at(&self, offset_bytes: u64) -> NonNull<u8> {
        debug_assert!(offset_bytes <= self.len_bytes as u64);
        // SAFETY: inside the mapping, or one past its end, by the caller's check.
        unsafe { self.base.add(offset_bytes as usize) }
    }

    /// Makes a range read as zeroes. Large ranges are given back to the system.
    pub(super) fn zero(&self, offset_bytes: u64, len_bytes: u64) {
        let end = offset_bytes.checked_add(len_bytes).filter(|end| *end <= self.len_bytes as u64);
        let Some(end) = end else { return };
        let (start, end) = (offset_bytes as usize, end as usize);
        let (first, last) = (start.next_multiple_of(PAGE_BYTES), end & !(PAGE_BYTES - 1));
        if last.saturating_sub(first) < GIVE_BACK_BYTES {
            return self.overwrite(start, end);
        }
        // SAFETY: whole pages of our own private anonymous mapping; they read as zeroes afterwards.
        let given =
            unsafe { libc::madvise(self.base.as_ptr().add(first).cast(), last - first, libc::MADV_DONTNEED) };
        if given != 0 {
            // Locked memory is not given back.
            return self.overwrite(start, end);
        }
        self.overwrite(start, first);
        self.overwrite(last, end);
    }

    fn overwrite(&self, start: usize, end: usize) {
        // SAFETY: `zero` checked that the range lies within the mapping.
        unsafe { core::ptr::write_bytes(self.base.as_ptr().add(start), 0, end - start) };
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned; channels and loans keep the device, and so this value, alive.
        unsafe { libc::munmap(self.mapping.0, self.mapping.1) };
    }
}
