//! The memory that a command's data is in.
//!
//! Needs `unsafe` to see aligned pages as bytes.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use aio::memory::{DmaBuf, DmaPools};
use aio::{RegionId, SgEntry};
use nvme::tcp::Digest;

use super::chunks::{Held, RxChunks};

/// Where the data of one command is.
#[derive(Default)]
pub(super) enum Buffer {
    /// Nowhere (yet).
    #[default]
    None,
    /// In a receive chunk: in-capsule data as it arrived. Read-only.
    Chunk(Held),
    /// In one pool buffer.
    Pool(DmaBuf),
    /// In several, all but the last filled: longer than the largest pool buffer.
    Pools(Vec<DmaBuf>),
    /// On the heap: answers of admin commands.
    Heap(Vec<u8>),
    /// On the heap, aligned for any device: small data that cannot wait for a pool buffer, because what would free
    /// one may stand behind it in the stream. Few and small, see [`Buffer::pages`].
    Pages(Box<[Page]>),
}

/// Zeroed bytes at an address that suits every device.
#[repr(align(4096))]
pub(super) struct Page(
    #[expect(dead_code, reason = "its bytes are reached by pointers, see `flat`")] UnsafeCell<[u8; 4096]>,
);

impl Buffer {
    /// Room for `len_bytes` bytes, or `None` when the pools have not that much now. All or nothing: a command
    /// that has its buffers never waits for more.
    #[inline]
    pub(super) fn alloc(pools: &DmaPools, len_bytes: u32) -> Option<Self> {
        if len_bytes <= pools.max_bytes() {
            return pools.alloc(len_bytes).map(Self::Pool);
        }
        let mut bufs = Vec::new();
        let mut left = len_bytes;
        while left > 0 {
            let part = left.min(pools.max_bytes());
            bufs.push(pools.alloc(part)?);
            left -= part;
        }
        Some(Self::Pools(bufs))
    }

    /// Room for `len_bytes` bytes on the heap. Who calls this bounds how much of it there is.
    #[cold]
    pub(super) fn pages(len_bytes: u32) -> Self {
        Self::Pages((0..len_bytes.div_ceil(4096)).map(|_| Page(UnsafeCell::new([0; 4096]))).collect())
    }

    /// True when there is none.
    #[inline]
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Bytes of memory for data in it: of the pools, or aligned on the heap.
    #[inline]
    pub(super) fn data_bytes(&self) -> u64 {
        match self {
            Self::Pool(buf) => u64::from(buf.len_bytes()),
            Self::Pools(bufs) => bufs.iter().map(|b| u64::from(b.len_bytes())).sum(),
            Self::Pages(pages) => size_of_val(&**pages) as u64,
            Self::None | Self::Chunk(_) | Self::Heap(_) => 0,
        }
    }

    /// Appends the entries of `len_bytes` bytes from `offset_bytes` on.
    #[inline]
    pub(super) fn entries(&self, offset_bytes: u32, len_bytes: u32, out: &mut Vec<SgEntry>) {
        match self {
            Self::Pool(buf) => out.push(buf.sg(offset_bytes, len_bytes)),
            Self::Chunk(held) => out.push(part(held.entry(), offset_bytes, len_bytes)),
            Self::None => {}
            Self::Heap(bytes) => {
                let bytes = &bytes[offset_bytes as usize..][..len_bytes as usize];
                out.push(SgEntry { ptr: NonNull::from(bytes).cast(), len_bytes, region: RegionId::NONE });
            }
            Self::Pages(pages) => {
                let (ptr, len) = (NonNull::from(&**pages).cast(), size_of_val(&**pages) as u32);
                out.push(part(
                    SgEntry { ptr, len_bytes: len, region: RegionId::NONE },
                    offset_bytes,
                    len_bytes,
                ));
            }
            Self::Pools(bufs) => {
                let (mut skip, mut left) = (offset_bytes, len_bytes);
                for buf in bufs {
                    let n = buf.len_bytes().saturating_sub(skip).min(left);
                    if n > 0 {
                        out.push(buf.sg(skip, n));
                    }
                    skip = skip.saturating_sub(buf.len_bytes());
                    left -= n;
                }
            }
        }
    }

    /// Copies `bytes` to `offset_bytes`. No I/O is in flight on the buffer.
    pub(super) fn write(&mut self, offset_bytes: u32, bytes: &[u8]) {
        match self {
            Self::Pool(buf) => buf[offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes),
            Self::Pools(bufs) => {
                let (mut skip, mut rest) = (offset_bytes as usize, bytes);
                for buf in bufs {
                    if let Some(room) = buf.get_mut(skip..) {
                        let n = room.len().min(rest.len());
                        room[..n].copy_from_slice(&rest[..n]);
                        rest = &rest[n..];
                    }
                    skip = skip.saturating_sub(buf.len());
                }
            }
            Self::Pages(pages) => {
                flat_mut(pages)[offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes)
            }
            Self::None | Self::Chunk(_) | Self::Heap(_) => debug_assert!(false, "read-only"),
        }
    }

    /// Calls `see` with the bytes `[offset, offset + len)`, in order. No device writes to the buffer.
    pub(super) fn each(&self, chunks: &RxChunks, offset: usize, len: usize, mut see: impl FnMut(&[u8])) {
        let mut range = |bytes: &[u8], skip: usize, len: usize| see(&bytes[skip..skip + len]);
        match self {
            Self::None => {}
            Self::Chunk(held) => range(chunks.bytes(held), offset, len),
            Self::Pool(buf) => range(buf, offset, len),
            Self::Heap(bytes) => range(bytes, offset, len),
            Self::Pages(pages) => range(flat(pages), offset, len),
            Self::Pools(bufs) => {
                let (mut skip, mut left) = (offset, len);
                for buf in bufs {
                    let n = buf.len().saturating_sub(skip).min(left);
                    if n > 0 {
                        range(buf, skip, n);
                    }
                    skip = skip.saturating_sub(buf.len());
                    left -= n;
                }
            }
        }
    }

    /// CRC32C of `[offset, offset + len)`.
    pub(super) fn crc32c(&self, chunks: &RxChunks, offset_bytes: u32, len_bytes: u32) -> u32 {
        let mut digest = Digest::new();
        self.each(chunks, offset_bytes as usize, len_bytes as usize, |bytes| digest.update(bytes));
        digest.value()
    }

    /// The first `len_bytes` bytes; copied only when they lie in several pieces.
    pub(super) fn with_bytes<R>(&self, chunks: &RxChunks, len_bytes: u32, f: impl FnOnce(&[u8]) -> R) -> R {
        let len = len_bytes as usize;
        match self {
            Self::None => f(&[]),
            Self::Chunk(held) => f(&chunks.bytes(held)[..len]),
            Self::Pool(buf) => f(&buf[..len]),
            Self::Heap(bytes) => f(&bytes[..len]),
            Self::Pages(pages) => f(&flat(pages)[..len]),
            Self::Pools(_) => {
                let mut all = Vec::with_capacity(len);
                self.each(chunks, 0, len, |bytes| all.extend_from_slice(bytes));
                f(&all)
            }
        }
    }
}

/// Pages as bytes.
fn flat(pages: &[Page]) -> &[u8] {
    // SAFETY: a page is 4,096 bytes without padding, and bytes need no alignment. Nobody writes to them while this is
    // looked at: a device has them only between submission and completion.
    unsafe { core::slice::from_raw_parts(pages.as_ptr().cast(), size_of_val(pages)) }
}

/// Pages as bytes.
fn flat_mut(pages: &mut [Page]) -> &mut [u8] {
    // SAFETY: as in `flat`; every byte is valid in a page.
    unsafe { core::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), size_of_val(pages)) }
}

/// A part of one entry.
#[inline]
fn part(entry: SgEntry, offset_bytes: u32, len_bytes: u32) -> SgEntry {
    debug_assert!(offset_bytes + len_bytes <= entry.len_bytes);
    let ptr = entry.ptr.map_addr(|a| a.saturating_add(offset_bytes as usize));
    SgEntry { ptr, len_bytes, region: entry.region }
}

#[cfg(test)]
mod tests {
    use aio::memory::{DmaPool, Memory, MemoryConfig, PoolClass, PoolsConfig};

    use super::*;

    #[test]
    fn several_pool_buffers_act_as_one() {
        let memory = Memory::new(MemoryConfig { huge_pages: false });
        let config = PoolsConfig { classes: vec![PoolClass { chunk_bytes: 4096, capacity: 3 }] };
        let pools = DmaPools::new(&memory, &config).unwrap();
        let lifeline = DmaPool::new(&memory, 512, 1).unwrap().alloc().unwrap();
        let chunks = RxChunks::new(DmaPool::new(&memory, 4096, 1).unwrap(), lifeline, 64);
        let mut buffer = Buffer::alloc(&pools, 10_000).unwrap();
        assert_eq!(buffer.data_bytes(), 3 * 4096);
        assert!(Buffer::alloc(&pools, 1).is_none());
        let data: Vec<u8> = (0..10_000u32).map(|i| ((i * 7) >> 2) as u8).collect();
        for (i, part) in data.chunks(999).enumerate() {
            buffer.write(i as u32 * 999, part);
        }
        assert_eq!(buffer.with_bytes(&chunks, 10_000, <[u8]>::to_vec), data);
        assert_eq!(buffer.crc32c(&chunks, 4000, 5000), nvme::tcp::crc32c(&data[4000..9000]));
        let mut entries = Vec::new();
        buffer.entries(4000, 5000, &mut entries);
        let lens: Vec<u32> = entries.iter().map(|e| e.len_bytes).collect();
        assert_eq!(lens, [96, 4096, 808]);
        drop(buffer);
        assert!(Buffer::alloc(&pools, 12_288).is_some());
        assert!(Buffer::alloc(&pools, 12_289).is_none(), "all or nothing");
        assert!(Buffer::alloc(&pools, 12_288).is_some(), "and nothing was kept");
    }
}
