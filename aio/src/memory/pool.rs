//! Per-core pools of equal chunks.
//!
//! Needs `unsafe` to turn a chunk that exactly one [`DmaBuf`] owns into a slice.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::slice;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::registry::{Memory, MemoryError, Region, RegionSpec};
use crate::sg::SgEntry;

struct Inner {
    region: Arc<Region>,
    offset_bytes: usize,
    chunk_bytes: u32,
    capacity: u32,
    /// Used as a stack, so that the chunks in use stay few, warm in the caches and resident.
    free: RefCell<Vec<u32>>,
}

/// A capped pool of equal chunks, for one core. Cheap to clone: all clones are one pool.
///
/// [`alloc`](Self::alloc) takes a chunk in O(1) and answers `None` when all are in use; a dropped [`DmaBuf`]
/// goes back by itself. Memory becomes resident only when a chunk is first touched.
#[derive(Clone)]
pub struct DmaPool(Rc<Inner>);

impl DmaPool {
    /// A pool of `capacity` chunks of `chunk_bytes` (rounded up to a multiple of 64), in a region of its own.
    /// Lengths that no number or address space holds are errors.
    pub fn new(memory: &Arc<Memory>, chunk_bytes: u32, capacity: u32) -> Result<Self, MemoryError> {
        let chunk_bytes = rounded(chunk_bytes.max(1), 64)?;
        let len_bytes = chunk_bytes as usize * capacity as usize;
        let region = memory.allocate(RegionSpec::new(len_bytes))?;
        Ok(Self::within(region, 0, chunk_bytes, capacity))
    }

    fn within(region: Arc<Region>, offset_bytes: usize, chunk_bytes: u32, capacity: u32) -> Self {
        let free = RefCell::new((0..capacity).rev().collect());
        Self(Rc::new(Inner { region, offset_bytes, chunk_bytes, capacity, free }))
    }

    /// A chunk, or `None` when all are in use. Its bytes are whatever the last owner left.
    pub fn alloc(&self) -> Option<DmaBuf> {
        let index = self.0.free.borrow_mut().pop()?;
        Some(DmaBuf { pool: self.0.clone(), index })
    }

    /// Length of a chunk in bytes.
    pub fn chunk_bytes(&self) -> u32 {
        self.0.chunk_bytes
    }

    /// Chunks there are.
    pub fn capacity(&self) -> u32 {
        self.0.capacity
    }

    /// Chunks not in use.
    pub fn available(&self) -> u32 {
        self.0.free.borrow().len() as u32
    }
}

/// `chunk_bytes` rounded up, where the result still fits.
fn rounded(chunk_bytes: u32, multiple: u32) -> Result<u32, MemoryError> {
    let rounded = chunk_bytes.checked_next_multiple_of(multiple);
    rounded.ok_or(MemoryError::BadLength { len_bytes: chunk_bytes as usize })
}

/// One chunk of a [`DmaPool`]; goes back when dropped.
///
/// It derefs to its bytes. That is sound although devices write into chunks: submitting I/O is `unsafe`, and
/// its promise includes that nobody looks at the bytes meanwhile. The async facade keeps that promise by
/// taking the buffer by value.
pub struct DmaBuf {
    pool: Rc<Inner>,
    index: u32,
}

impl DmaBuf {
    /// Length in bytes.
    pub fn len_bytes(&self) -> u32 {
        self.pool.chunk_bytes
    }

    /// First byte.
    pub fn ptr(&self) -> NonNull<u8> {
        let offset = self.pool.offset_bytes + self.index as usize * self.pool.chunk_bytes as usize;
        // SAFETY: `within` was given a region that holds all chunks, and `index` is below the capacity.
        unsafe { self.pool.region.ptr().add(offset) }
    }

    /// The entry for `len_bytes` bytes from `offset_bytes` on. It names the memory without owning it: keep
    /// this buffer until the I/O's completion.
    ///
    /// # Panics
    /// When they do not lie within the chunk (a bug of the caller).
    pub fn sg(&self, offset_bytes: u32, len_bytes: u32) -> SgEntry {
        let end = offset_bytes.checked_add(len_bytes);
        assert!(end.is_some_and(|e| e <= self.pool.chunk_bytes), "invariant: an entry lies within its chunk");
        // SAFETY: the assertion keeps the address within the chunk.
        let ptr = unsafe { self.ptr().add(offset_bytes as usize) };
        SgEntry { ptr, len_bytes, region: self.pool.region.id() }
    }
}

impl Deref for DmaBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the chunk is mapped, initialised (by the kernel, to zero) and owned by this buffer alone;
        // I/O on it is excluded by the promise of `IoChannel::submit`.
        unsafe { slice::from_raw_parts(self.ptr().as_ptr(), self.pool.chunk_bytes as usize) }
    }
}

impl DerefMut for DmaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` excludes every other slice of it.
        unsafe { slice::from_raw_parts_mut(self.ptr().as_ptr(), self.pool.chunk_bytes as usize) }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().push(self.index);
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({} bytes at {:p})", self.pool.chunk_bytes, self.ptr())
    }
}

/// One class of [`DmaPools`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolClass {
    /// Length of a chunk in bytes, a multiple of 4,096.
    pub chunk_bytes: u32,
    /// Chunks of it.
    pub capacity: u32,
}

/// What a core's [`DmaPools`] are made of: the cap on its buffer memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolsConfig {
    /// Classes by rising chunk length.
    pub classes: Vec<PoolClass>,
}

impl Default for PoolsConfig {
    /// 32 MiB: most I/O is 4 KiB, and small chunks spread over the cache sets where 128 KiB ones would all
    /// start in the same; 128 KiB is the largest transfer that hosts usually ask for.
    fn default() -> Self {
        Self {
            classes: vec![
                PoolClass { chunk_bytes: 4 << 10, capacity: 2048 },
                PoolClass { chunk_bytes: 16 << 10, capacity: 512 },
                PoolClass { chunk_bytes: 128 << 10, capacity: 128 },
            ],
        }
    }
}

/// A core's pools, one for each class of lengths, cut from one region. Cheap to clone.
#[derive(Clone)]
pub struct DmaPools(Rc<[DmaPool]>);

impl DmaPools {
    /// Makes the pools. Empty classes are left out; lengths that no number or address space holds are errors.
    pub fn new(memory: &Arc<Memory>, config: &PoolsConfig) -> Result<Self, MemoryError> {
        let mut classes: Vec<PoolClass> = config
            .classes
            .iter()
            .filter(|c| c.chunk_bytes > 0 && c.capacity > 0)
            .map(|c| Ok(PoolClass { chunk_bytes: rounded(c.chunk_bytes, 4096)?, ..*c }))
            .collect::<Result<_, MemoryError>>()?;
        classes.sort_by_key(|c| c.chunk_bytes);
        let len = |c: &PoolClass| c.chunk_bytes as usize * c.capacity as usize;
        let sum = classes.iter().try_fold(0_usize, |sum, c| sum.checked_add(len(c)));
        let len_bytes = sum.ok_or(MemoryError::BadLength { len_bytes: usize::MAX })?;
        let region = memory.allocate(RegionSpec::new(len_bytes))?;
        let mut offset_bytes = 0;
        let pools = classes.iter().map(|c| {
            let pool = DmaPool::within(region.clone(), offset_bytes, c.chunk_bytes, c.capacity);
            offset_bytes += len(c);
            pool
        });
        Ok(Self(pools.collect()))
    }

    /// A buffer of at least `len_bytes`, from the smallest class that fits and has one; `None` when there is
    /// none (all in use, or longer than the largest class).
    pub fn alloc(&self, len_bytes: u32) -> Option<DmaBuf> {
        self.0.iter().filter(|p| p.chunk_bytes() >= len_bytes).find_map(DmaPool::alloc)
    }

    /// The largest length that [`alloc`](Self::alloc) can ever answer, in bytes.
    pub fn max_bytes(&self) -> u32 {
        self.0.last().map_or(0, DmaPool::chunk_bytes)
    }

    /// The pools, by rising chunk length.
    pub fn classes(&self) -> &[DmaPool] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryConfig;

    fn memory() -> Arc<Memory> {
        Memory::new(MemoryConfig { huge_pages: false })
    }

    #[test]
    fn exhaustion_and_reuse() {
        let pool = DmaPool::new(&memory(), 4096, 3).unwrap();
        let mut bufs: Vec<_> = (0..3).map(|_| pool.alloc().unwrap()).collect();
        assert!(pool.alloc().is_none());
        for (i, b) in bufs.iter_mut().enumerate() {
            b.fill(i as u8);
        }
        for (i, b) in bufs.iter().enumerate() {
            assert!(b.iter().all(|&x| x == i as u8), "chunks do not overlap");
        }
        let ptr = bufs[1].ptr();
        drop(bufs.remove(1));
        assert_eq!(pool.available(), 1);
        assert_eq!(pool.alloc().unwrap().ptr(), ptr);
    }

    #[test]
    fn buffers_outlive_the_pool_and_keep_the_region() {
        let memory = memory();
        let pool = DmaPool::new(&memory, 100, 1).unwrap();
        assert_eq!(pool.chunk_bytes(), 128);
        let mut buf = pool.alloc().unwrap();
        drop(pool);
        buf[127] = 1;
        let id = buf.sg(0, 128).region;
        assert!(memory.resolve(id).is_some());
        drop(buf);
        assert!(memory.resolve(id).is_none());
    }

    #[test]
    fn entries_stay_within_the_chunk() {
        let pool = DmaPool::new(&memory(), 4096, 2).unwrap();
        let buf = pool.alloc().unwrap();
        let e = buf.sg(512, 3584);
        assert_eq!(e.ptr.as_ptr() as usize, buf.ptr().as_ptr() as usize + 512);
        let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| buf.sg(512, 3585)));
        assert!(outside.is_err());
    }

    /// A bug: the rounded length wrapped around to 0, and the pool handed out chunks without memory.
    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let refused = |result: Result<(), MemoryError>| matches!(result, Err(MemoryError::BadLength { .. }));
        assert!(refused(DmaPool::new(&memory(), u32::MAX, 1).map(drop)));
        let class = |chunk_bytes, capacity| PoolClass { chunk_bytes, capacity };
        let pools = |classes| DmaPools::new(&memory(), &PoolsConfig { classes }).map(drop);
        assert!(refused(pools(vec![class(u32::MAX - 100, 1)])));
        let huge = class(u32::MAX - 4095, u32::MAX);
        assert!(refused(pools(vec![huge, huge])), "the sum does not fit");
    }

    #[test]
    fn the_smallest_class_that_fits_is_used_first() {
        let config = PoolsConfig {
            classes: vec![
                PoolClass { chunk_bytes: 16384, capacity: 1 },
                PoolClass { chunk_bytes: 4096, capacity: 1 },
            ],
        };
        let pools = DmaPools::new(&memory(), &config).unwrap();
        let a = pools.alloc(1).unwrap();
        assert_eq!(a.len_bytes(), 4096);
        let b = pools.alloc(1).unwrap();
        assert_eq!(b.len_bytes(), 16384);
        assert!(pools.alloc(1).is_none());
        drop(b);
        assert!(pools.alloc(16385).is_none());
        assert_eq!(pools.max_bytes(), 16384);
    }
}
