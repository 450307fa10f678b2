//! The page cache: a fixed number of 4 KiB frames, found by address, replaced by CLOCK.
//!
//! Interior pages stay for several rounds of the hand after their last use, leaves that were used for one, and leaves
//! that only came in for none: each interior page serves a hundred times as many look-ups as a leaf, and a walk over
//! many leaves does not drive out what is used.
//!
//! A page is checked once, when it comes in, and never changes. Whoever reads one holds a [`PageRef`]; a frame that
//! somebody holds is not replaced. Their memory (`frames`) becomes resident as it is first used and is
//! never given back; a hit takes no allocation.

use super::frames::{FrameRef, Frames};
use crate::format::FormatError;
use crate::format::page::{Expected, PAGE_BYTES, PageView};
use crate::types::{PagePtr, Pba};
use aio::memory::MemoryError;
use std::rc::Rc;

/// Default number of frames: 32 MiB of pages.
pub const DEFAULT_FRAMES: usize = 8192;

const EMPTY: u32 = u32::MAX;
/// Rounds of the hand that an interior page stays.
const INTERIOR_ROUNDS: u8 = 3;

/// A page in memory, held in place for as long as this exists.
#[derive(Clone)]
pub struct PageRef(Held);

#[derive(Clone)]
enum Held {
    Frame(FrameRef),
    /// Outside of the cache, in which all frames were held.
    Own(Rc<[u8; PAGE_BYTES]>),
}

impl PageRef {
    /// What is in it.
    #[inline]
    pub fn view(&self) -> PageView<'_> {
        PageView::new(self.bytes())
    }

    /// Its bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8; PAGE_BYTES] {
        match &self.0 {
            Held::Frame(frame) => frame.bytes(),
            Held::Own(bytes) => bytes,
        }
    }
}

/// What is in the frame of the same number.
struct Slot {
    pba: Pba,
    crc: u32,
    level: u8,
    /// How often the hand passes by before the page goes.
    rounds: u8,
}

/// Counters since the cache was made.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct CacheStats {
    /// Look-ups that found their page.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Pages that made room for others.
    pub evictions: u64,
}

/// See the module.
pub struct PageCache {
    slots: Vec<Slot>,
    memory: Rc<Frames>,
    frames: usize,
    /// Slot numbers by hash of the address, linear probing; twice as many places as frames at least.
    table: Vec<u32>,
    hand: usize,
    /// Slots whose pages were forgotten, the last one first: their memory is likely to be in the processor's caches. Some
    /// have a page again.
    forgotten: Vec<u32>,
    stats: CacheStats,
}

impl PageCache {
    /// A cache of `frames` pages (at least one). All memory is reserved here.
    pub fn new(frames: usize) -> Result<Self, MemoryError> {
        let frames = frames.max(1);
        Ok(Self {
            slots: Vec::with_capacity(frames),
            memory: Frames::new(frames)?,
            frames,
            table: vec![EMPTY; (frames * 2).next_power_of_two()],
            hand: 0,
            forgotten: Vec::with_capacity(frames),
            stats: CacheStats::default(),
        })
    }

    /// The page, if it is there: same address and same checksum.
    #[inline]
    pub fn get(&mut self, ptr: &PagePtr) -> Option<PageRef> {
        let Some(place) = self.find(ptr.pba) else {
            self.stats.misses += 1;
            return None;
        };
        let at = self.table[place];
        let slot = &mut self.slots[at as usize];
        if slot.crc != ptr.crc {
            // What was there before its segment was used again.
            self.stats.misses += 1;
            return None;
        }
        slot.rounds = if slot.level == 0 { 1 } else { INTERIOR_ROUNDS };
        self.stats.hits += 1;
        Some(self.hold(at))
    }

    #[inline]
    fn hold(&self, at: u32) -> PageRef {
        PageRef(Held::Frame(Frames::hold(&self.memory, at)))
    }

    /// Is the page there? Does not count as a look-up.
    pub fn has(&self, ptr: &PagePtr) -> bool {
        self.find(ptr.pba).is_some_and(|place| self.slots[self.table[place] as usize].crc == ptr.crc)
    }

    /// Keeps a page that was just made, and so needs no check.
    pub fn put(&mut self, pba: Pba, bytes: &[u8; PAGE_BYTES], crc: u32, level: u8) {
        let _ = self.keep(pba, bytes, crc, level);
    }

    /// Checks a page that came from a disk and keeps it. When every frame is held by somebody the page is returned all
    /// the same and not kept.
    pub fn insert(
        &mut self,
        pba: Pba,
        bytes: &[u8; PAGE_BYTES],
        expected: &Expected,
    ) -> Result<PageRef, FormatError> {
        PageView::check(bytes, expected)?;
        let kept = self.keep(pba, bytes, expected.crc, expected.level);
        Ok(kept.unwrap_or_else(|| PageRef(Held::Own(Rc::new(*bytes)))))
    }

    /// `None` when every frame is held by somebody.
    fn keep(&mut self, pba: Pba, bytes: &[u8; PAGE_BYTES], crc: u32, level: u8) -> Option<PageRef> {
        if let Some(place) = self.find(pba) {
            let at = self.table[place];
            if self.slots[at as usize].crc == crc {
                return Some(self.hold(at));
            }
            // What was there before its segment was used again.
            self.forget(pba);
        }
        let at = self.free_slot()?;
        let filled = self.memory.fill(at, bytes);
        debug_assert!(filled, "nobody holds it");
        let rounds = if level == 0 { 0 } else { INTERIOR_ROUNDS };
        self.slots[at as usize] = Slot { pba, crc, level, rounds };
        let place = self.vacant(pba);
        self.table[place] = at;
        Some(self.hold(at))
    }

    /// Forgets the page at this address: it is garbage now, or its segment will be used again.
    pub fn forget(&mut self, pba: Pba) {
        if let Some(place) = self.find(pba) {
            let at = self.table[place] as usize;
            self.unlink(place);
            self.slots[at].pba = Pba::NONE;
            self.slots[at].rounds = 0;
            if self.forgotten.len() < self.frames {
                self.forgotten.push(at as u32);
            }
        }
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        self.stats
    }

    /// Bytes of frames in use so far.
    pub fn resident_bytes(&self) -> usize {
        self.slots.len() * PAGE_BYTES
    }

    /// A slot whose frame nobody holds, taken out of the table. `None` when all are held.
    fn free_slot(&mut self) -> Option<u32> {
        while let Some(at) = self.forgotten.pop() {
            let slot = &self.slots[at as usize];
            if slot.pba.is_none() && self.memory.is_free(at) {
                return Some(at);
            }
        }
        if self.slots.len() < self.frames {
            self.slots.push(Slot { pba: Pba::NONE, crc: 0, level: 0, rounds: 0 });
            return Some((self.slots.len() - 1) as u32);
        }
        for _ in 0..(usize::from(INTERIOR_ROUNDS) + 1) * self.frames {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.frames;
            let slot = &mut self.slots[at];
            if slot.rounds > 0 {
                slot.rounds -= 1;
            } else if self.memory.is_free(at as u32) {
                let pba = slot.pba;
                if let Some(place) = self.find(pba) {
                    self.unlink(place);
                    self.stats.evictions += 1;
                }
                return Some(at as u32);
            }
        }
        None
    }

    #[inline]
    fn home(&self, pba: Pba) -> usize {
        // The high bits of the product are the well mixed ones.
        (pba.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.table.len() - 1)
    }

    /// Place in the table of the slot that holds `pba`.
    #[inline]
    fn find(&self, pba: Pba) -> Option<usize> {
        if pba.is_none() {
            return None;
        }
        let mut place = self.home(pba);
        loop {
            let at = self.table[place];
            if at == EMPTY {
                return None;
            }
            if self.slots[at as usize].pba == pba {
                return Some(place);
            }
            place = (place + 1) & (self.table.len() - 1);
        }
    }

    fn vacant(&self, pba: Pba) -> usize {
        let mut place = self.home(pba);
        while self.table[place] != EMPTY {
            place = (place + 1) & (self.table.len() - 1);
        }
        place
    }

    /// Empties a place of the table and moves up what was put behind it only because it was taken.
    fn unlink(&mut self, mut hole: usize) {
        let mask = self.table.len() - 1;
        let mut place = hole;
        loop {
            place = (place + 1) & mask;
            let at = self.table[place];
            if at == EMPTY {
                break;
            }
            let home = self.home(self.slots[at as usize].pba);
            if (place.wrapping_sub(home) & mask) >= (place.wrapping_sub(hole) & mask) {
                self.table[hole] = at;
                hole = place;
            }
        }
        self.table[hole] = EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::page::{Leaf, PageBuilder};
    use crate::index::testing::Rng;
    use crate::types::{BlockNo, LineId, Place, Seq, Version};
    use uuid::Uuid;

    fn page(block: u64) -> ([u8; PAGE_BYTES], Expected) {
        let (mut bytes, pool, line) = ([0; PAGE_BYTES], Uuid::from_u128(5), LineId(1));
        let mut builder = PageBuilder::new(&mut bytes, &pool, line, 0);
        let version = Version { birth: Seq(7), place: Place::Hole };
        builder.push_leaf(&Leaf { block: BlockNo(block), len_blocks: 1, version }).unwrap();
        let crc = builder.finish().unwrap().crc;
        (bytes, Expected { pool, line, level: 0, crc, newest: Seq(7) })
    }

    fn pointer(at: u64, expected: &Expected) -> PagePtr {
        PagePtr { pba: Pba::new(0, at).unwrap(), copy: Pba::NONE, crc: expected.crc, newest: Seq(7) }
    }

    #[test]
    fn what_it_returns_is_what_was_put_last_at_that_address() {
        let mut rng = Rng::new(4);
        let mut cache = PageCache::new(50).unwrap();
        let mut now = std::collections::BTreeMap::new();
        let mut held = std::collections::VecDeque::new();
        for step in 0..20_000 {
            let at = rng.below(120);
            match rng.below(8) {
                0..=2 => {
                    let (bytes, expected) = page(step);
                    let inserted = cache.insert(Pba::new(0, at).unwrap(), &bytes, &expected).unwrap();
                    now.insert(at, (step, expected));
                    held.push_back((step, inserted));
                }
                3 => cache.forget(Pba::new(0, at).unwrap()),
                _ => {
                    if let Some((step, expected)) = now.get(&at)
                        && let Some(found) = cache.get(&pointer(at, expected))
                    {
                        assert_eq!(found.view().leaf(0).unwrap().block, BlockNo(*step));
                        held.push_back((*step, found));
                    }
                }
            }
            // Many are held, at times all: none of them ever changes.
            while held.len() > [10, 49, 60][step as usize / 1000 % 3] {
                let (step, page) = held.pop_front().unwrap();
                assert_eq!(page.view().leaf(0).unwrap().block, BlockNo(step));
            }
            assert!(cache.resident_bytes() <= 50 * PAGE_BYTES);
        }
        let CacheStats { hits, misses, evictions } = cache.stats();
        assert!(hits > 1000 && misses > 1000 && evictions > 1000, "{hits} {misses} {evictions}");
    }

    #[test]
    fn a_damaged_page_is_not_kept_and_an_old_one_not_served() {
        let mut cache = PageCache::new(4).unwrap();
        let ((mut bytes, expected), (other, newer)) = (page(1), page(2));
        let at = Pba::new(0, 9).unwrap();
        bytes[100] ^= 4;
        assert!(cache.insert(at, &bytes, &expected).is_err());
        assert!(cache.get(&pointer(9, &expected)).is_none());
        bytes[100] ^= 4;
        cache.insert(at, &bytes, &expected).unwrap();
        assert!(cache.get(&pointer(9, &newer)).is_none(), "the segment was used again");
        cache.insert(at, &other, &newer).unwrap();
        assert!(cache.get(&pointer(9, &expected)).is_none() && cache.get(&pointer(9, &newer)).is_some());
    }
}
