//! The memory of pages that are in a cache: frames of one region, in huge pages where the kernel has some. A look-up
//! touches a few lines of pages that lie anywhere in it, so on normal pages it would pay for an address translation
//! with each of them.
//!
//! Needs `unsafe` to read and fill frames of the region. A frame is read only through a [`FrameRef`], of which the frame
//! counts how many there are, and filled only while there is none.

use core::cell::Cell;
use core::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use aio::memory::{Memory, MemoryError, Region, RegionSpec};

use crate::format::page::PAGE_BYTES;

/// See the module.
pub(super) struct Frames {
    base: NonNull<u8>,
    /// How many references each frame has.
    held: Box<[Cell<u32>]>,
    /// Keeps the memory.
    _region: Arc<Region>,
}

/// A frame that is not filled again as long as this exists.
pub(super) struct FrameRef {
    frames: Rc<Frames>,
    index: u32,
}

impl Frames {
    /// `count` frames of zeroes. They become resident as they are used.
    pub(super) fn new(count: usize) -> Result<Rc<Self>, MemoryError> {
        let spec = RegionSpec { transparent_huge: true, ..RegionSpec::new(count * PAGE_BYTES) };
        let region = Memory::process().allocate(spec)?;
        let held = (0..count).map(|_| Cell::new(0)).collect();
        Ok(Rc::new(Self { base: region.ptr(), held, _region: region }))
    }

    fn at(&self, index: u32) -> NonNull<[u8; PAGE_BYTES]> {
        assert!((index as usize) < self.held.len(), "invariant: there is such a frame");
        // SAFETY: the region has as many frames as `held`.
        unsafe { self.base.cast::<[u8; PAGE_BYTES]>().add(index as usize) }
    }

    /// Nobody holds the frame.
    pub(super) fn is_free(&self, index: u32) -> bool {
        self.held[index as usize].get() == 0
    }

    /// Fills a frame that nobody holds; false, and nothing done, when somebody does.
    pub(super) fn fill(&self, index: u32, bytes: &[u8; PAGE_BYTES]) -> bool {
        let free = self.is_free(index);
        if free {
            // SAFETY: within the region; no reference to it exists, since nobody holds it, and `bytes`, being borrowed,
            // is not in it.
            unsafe { self.at(index).as_ptr().copy_from_nonoverlapping(bytes, 1) };
        }
        free
    }

    /// Holds a frame.
    pub(super) fn hold(frames: &Rc<Self>, index: u32) -> FrameRef {
        let held = &frames.held[index as usize];
        held.set(held.get() + 1);
        FrameRef { frames: frames.clone(), index }
    }
}

impl FrameRef {
    /// What is in it.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8; PAGE_BYTES] {
        // SAFETY: within the region, zeroed when it was made, and not filled while this reference exists.
        unsafe { self.frames.at(self.index).as_ref() }
    }
}

impl Clone for FrameRef {
    fn clone(&self) -> Self {
        Frames::hold(&self.frames, self.index)
    }
}

impl Drop for FrameRef {
    fn drop(&mut self) {
        let held = &self.frames.held[self.index as usize];
        held.set(held.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_not_filled_while_somebody_holds_it_and_outlives_the_cache() {
        let frames = Frames::new(3).unwrap();
        assert!(frames.fill(2, &[7; PAGE_BYTES]));
        let first = Frames::hold(&frames, 2);
        let second = first.clone();
        drop(first);
        assert!(!frames.fill(2, &[8; PAGE_BYTES]) && !frames.is_free(2));
        assert!(frames.fill(1, &[9; PAGE_BYTES]));
        assert_eq!(second.bytes(), &[7; PAGE_BYTES]);
        drop(second);
        assert!(frames.fill(2, &[8; PAGE_BYTES]));
        let last = Frames::hold(&frames, 2);
        drop(frames);
        assert_eq!(last.bytes(), &[8; PAGE_BYTES]);
    }
}
