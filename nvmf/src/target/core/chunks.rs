//! Where received bytes land: a few large chunks per core, shared by all connections.
//!
//! A receive appends to the current chunk. Write commands whose data is complete in the chunk are submitted
//! straight from it and hold it until they completed; a connection itself never holds one between turns. When
//! nothing holds the current chunk it is used again from its start, so with a device that answers within the
//! turn all connections of a core live in the same few warm cache lines.
//!
//! Needs `unsafe` to look at the received bytes while devices read other (or the same) bytes of the chunk.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use aio::SgEntry;
use aio::memory::{DmaBuf, DmaPool};

/// A chunk in use: index in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ChunkId(u16);

/// Stands for [`RxChunks::lifeline`].
const LIFELINE: ChunkId = ChunkId(u16::MAX);

struct Chunk {
    buf: DmaBuf,
    holds: u32,
}

/// Received bytes: where they are.
#[derive(Clone, Copy)]
pub(super) struct Received {
    chunk: ChunkId,
    ptr: NonNull<u8>,
    len_bytes: u32,
}

impl Received {
    /// The bytes.
    ///
    /// # Safety
    /// The result is not used after the next [`RxChunks::window`], unless they are held: until then nothing
    /// writes to these bytes (devices only read them).
    pub(super) unsafe fn bytes<'a>(self) -> &'a [u8] {
        // SAFETY: `RxChunks::commit` made this from bytes of a live chunk that a receive has initialised, and
        // the caller drops the slice before a window over the same bytes is given out again.
        unsafe { core::slice::from_raw_parts(self.ptr.as_ptr(), self.len_bytes as usize) }
    }
}

/// Bytes of a chunk that stay as they are until [`RxChunks::release`].
pub(super) struct Held {
    chunk: ChunkId,
    entry: SgEntry,
}

impl Held {
    /// Where they are.
    pub(super) fn entry(&self) -> SgEntry {
        self.entry
    }
}

/// See the module's documentation.
pub(super) struct RxChunks {
    pool: DmaPool,
    table: Vec<Option<Chunk>>,
    current: Option<ChunkId>,
    /// First free byte of the current chunk.
    fill: u32,
    /// A window smaller than this is not worth a receive.
    min_window_bytes: u32,
    /// Used when all chunks are held, and never held itself: what would let go of a chunk may have to be received
    /// first.
    lifeline: DmaBuf,
}

impl RxChunks {
    /// Chunks from `pool`; `lifeline` is as long as a receive may be when all of them are held.
    pub(super) fn new(pool: DmaPool, lifeline: DmaBuf, min_window_bytes: u32) -> Self {
        let min_window_bytes = min_window_bytes.min(pool.chunk_bytes());
        let table = (0..pool.capacity()).map(|_| None).collect();
        Self { pool, table, current: None, fill: 0, min_window_bytes, lifeline }
    }

    /// Where the next receive may put up to `max_bytes` bytes.
    pub(super) fn window(&mut self, max_bytes: u32) -> SgEntry {
        if let Some(id) = self.current {
            let chunk =
                self.table[usize::from(id.0)].as_ref().expect("invariant: the current chunk is there");
            if chunk.holds == 0 {
                self.fill = 0;
            }
            let left = chunk.buf.len_bytes() - self.fill;
            if left >= self.min_window_bytes {
                return chunk.buf.sg(self.fill, left.min(max_bytes));
            }
            // Goes back to the pool with its last hold.
            self.current = None;
        }
        let Some(buf) = self.pool.alloc() else {
            return self.lifeline.sg(0, self.lifeline.len_bytes().min(max_bytes));
        };
        let free = self.table.iter().position(Option::is_none);
        let index = free.expect("invariant: the table has a place for every chunk of the pool");
        let window = buf.sg(0, buf.len_bytes().min(max_bytes));
        self.table[index] = Some(Chunk { buf, holds: 0 });
        self.current = Some(ChunkId(index as u16));
        self.fill = 0;
        window
    }

    /// Notes that a receive put `len_bytes` bytes into the last window.
    pub(super) fn commit(&mut self, window: SgEntry, len_bytes: u32) -> Received {
        debug_assert!(len_bytes <= window.len_bytes);
        let Some(chunk) = self.current else {
            return Received { chunk: LIFELINE, ptr: window.ptr, len_bytes };
        };
        // The next receive starts on a cache line of its own, and on an address that suits more devices.
        self.fill = (self.fill + len_bytes).next_multiple_of(64);
        if let Some(c) = &self.table[usize::from(chunk.0)] {
            self.fill = self.fill.min(c.buf.len_bytes());
        }
        Received { chunk, ptr: window.ptr, len_bytes }
    }

    /// Keeps `part`, which lies within `of`, as it is until [`Self::release`]. `None` = it has to be copied now.
    #[inline]
    pub(super) fn hold(&mut self, of: Received, part: &[u8]) -> Option<Held> {
        if of.chunk == LIFELINE {
            return None;
        }
        let offset = part.as_ptr().addr() - of.ptr.as_ptr().addr();
        debug_assert!(offset + part.len() <= of.len_bytes as usize);
        let chunk = self.table[usize::from(of.chunk.0)].as_mut();
        let chunk = chunk.expect("invariant: received bytes are in a live chunk");
        chunk.holds += 1;
        let base = of.ptr.as_ptr().addr() - chunk.buf.ptr().as_ptr().addr();
        Some(Held { chunk: of.chunk, entry: chunk.buf.sg((base + offset) as u32, part.len() as u32) })
    }

    /// The bytes that `held` keeps.
    pub(super) fn bytes(&self, held: &Held) -> &[u8] {
        // SAFETY: the hold keeps the chunk alive, and its bytes unwritten, at least until `release`, which
        // takes `self` exclusively.
        unsafe { core::slice::from_raw_parts(held.entry.ptr.as_ptr(), held.entry.len_bytes as usize) }
    }

    /// Ends a [`Self::hold`].
    #[inline]
    pub(super) fn release(&mut self, held: Held) {
        let place = &mut self.table[usize::from(held.chunk.0)];
        let chunk = place.as_mut().expect("invariant: a held chunk is live");
        chunk.holds -= 1;
        if chunk.holds == 0 && self.current != Some(held.chunk) {
            *place = None;
        }
    }

    /// Chunks that somebody holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.table.iter().flatten().filter(|c| c.holds > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use aio::memory::{Memory, MemoryConfig};

    use super::*;

    fn chunks(capacity: u32) -> RxChunks {
        let memory = Memory::new(MemoryConfig { huge_pages: false });
        let lifeline = DmaPool::new(&memory, 512, 1).unwrap().alloc().unwrap();
        RxChunks::new(DmaPool::new(&memory, 4096, capacity).unwrap(), lifeline, 1024)
    }

    #[test]
    fn an_unheld_chunk_is_used_again_from_its_start() {
        let mut c = chunks(2);
        let a = c.window(4096);
        c.commit(a, 100);
        let b = c.window(4096);
        assert_eq!(a.ptr, b.ptr);
        let got = c.commit(b, 100);
        // SAFETY: used before the next window only.
        let held = c.hold(got, unsafe { &got.bytes()[10..20] }).unwrap();
        assert_eq!(held.entry().ptr.as_ptr().addr(), b.ptr.as_ptr().addr() + 10);
        let d = c.window(500);
        assert_eq!(d.ptr.as_ptr().addr(), a.ptr.as_ptr().addr() + 128);
        assert_eq!(d.len_bytes, 500);
        c.release(held);
        assert_eq!(c.window(4096).ptr, a.ptr);
    }

    #[test]
    fn held_chunks_run_out_and_come_back() {
        let mut c = chunks(2);
        let mut held = Vec::new();
        for _ in 0..2 {
            let w = c.window(4096);
            let got = c.commit(w, 4096);
            // SAFETY: used before the next window only.
            held.push(c.hold(got, unsafe { got.bytes() }).unwrap());
        }
        assert_eq!(c.held(), 2);
        let w = c.window(4096);
        assert_eq!(w.len_bytes, 512, "a lifeline is left");
        let got = c.commit(w, 100);
        // SAFETY: used before the next window only.
        assert!(c.hold(got, unsafe { got.bytes() }).is_none());
        c.release(held.remove(0));
        assert_eq!(c.window(4096).len_bytes, 4096);
    }

    #[test]
    fn bytes_are_what_was_received() {
        let mut c = chunks(1);
        let w = c.window(4096);
        // SAFETY: the window is writable memory of the pool.
        unsafe { core::ptr::copy_nonoverlapping(b"hello".as_ptr(), w.ptr.as_ptr(), 5) };
        let got = c.commit(w, 5);
        // SAFETY: no window is taken while the slice lives.
        assert_eq!(unsafe { got.bytes() }, b"hello");
    }
}
