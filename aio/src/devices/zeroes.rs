//! A region of zeroes that all devices of the process share: lent by `null`, written by devices that cannot
//! zero blocks in a better way. Nobody writes to it, so the system backs it with its zero page.
//!
//! # Unsafe
//! Maps the region.

use std::ptr::NonNull;
use std::sync::OnceLock;

use super::memory_device::MAX_TRANSFER_BYTES;

/// The process's region of zeroes: one largest transfer long, read-only, mapped once and never unmapped.
pub(super) struct Zeroes(NonNull<u8>);

// SAFETY: read-only memory that is never unmapped.
unsafe impl Send for Zeroes {}
// SAFETY: as above.
unsafe impl Sync for Zeroes {}

impl Zeroes {
    /// Its first byte, on a page boundary.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.0
    }

    pub(super) fn get() -> std::io::Result<&'static Self> {
        static ZEROES: OnceLock<Zeroes> = OnceLock::new();
        if let Some(zeroes) = ZEROES.get() {
            return Ok(zeroes);
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let len = MAX_TRANSFER_BYTES as usize;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing. When two
        // threads come here at once, the loser's mapping stays unused: address space without pages.
        let start = unsafe { libc::mmap(core::ptr::null_mut(), len, libc::PROT_READ, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("invariant: mmap returns no null mapping");
        Ok(ZEROES.get_or_init(|| Zeroes(start)))
    }
}
