//! Scatter-gather entries.

use core::ptr::NonNull;

/// Names a region of the registry: index and generation, so that a stale name is recognised.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RegionId {
    /// Slot in the registry, and in each backend's own table.
    pub index: u16,
    /// Counts reuses of the slot.
    pub generation: u16,
}

impl RegionId {
    /// Memory that no registry knows (stack, heap, an embedder's). Backends that need registered memory copy.
    pub const NONE: Self = Self { index: u16::MAX, generation: 0 };
}

/// One contiguous piece of memory taking part in an I/O.
///
/// Plain data: it neither owns nor borrows. Who submits an [`Io`](crate::Io) promises that the bytes stay
/// valid until its completion (see [`IoChannel::submit`](crate::IoChannel::submit)); who merely builds one
/// promises nothing. The bytes may be shared with a device or another core, so they are only read and written
/// through raw pointers, never as `&[u8]` while an I/O names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SgEntry {
    /// First byte.
    pub ptr: NonNull<u8>,
    /// Length in bytes; never zero in a submitted list.
    pub len_bytes: u32,
    /// The region that holds all of it, or [`RegionId::NONE`].
    pub region: RegionId,
}

const _: () = assert!(size_of::<SgEntry>() == 16);

/// Total length of a list, in bytes.
pub fn total_bytes(sg: &[SgEntry]) -> u64 {
    sg.iter().map(|e| u64::from(e.len_bytes)).sum()
}
