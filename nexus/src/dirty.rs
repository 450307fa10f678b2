//! What a child that is away misses: a bit for each segment of 64 KiB that changed since it left.
//!
//! All cores mark, on the way of a write to the children that are there; a rebuild takes the marks. The map lives in
//! memory, and says nothing of what the child itself forgot: whoever uses it makes sure that the child lost nothing (its
//! device is of the same incarnation as when it left).

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use aio::{BlockCount, BlockRange, Lba};

/// Length of a segment, in bytes: Mayastor's.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;

/// See the module.
pub(crate) struct DirtyMap {
    words: Box<[AtomicU64]>,
    segment_blocks: u64,
    size: BlockCount,
}

impl DirtyMap {
    /// A map of a device of `size` blocks of `block_bytes`. Nothing is marked.
    pub(crate) fn clean(size: BlockCount, block_bytes: u32) -> Self {
        let segment_blocks = (SEGMENT_BYTES / u64::from(block_bytes)).max(1);
        let words = size.0.div_ceil(segment_blocks).div_ceil(64);
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect(), segment_blocks, size }
    }

    /// As [`clean`](Self::clean); everything is marked.
    pub(crate) fn all(size: BlockCount, block_bytes: u32) -> Self {
        let map = Self::clean(size, block_bytes);
        map.mark(BlockRange { start: Lba(0), blocks: size });
        map
    }

    /// Marks the segments of `range`. What lies beyond the map's end is left out.
    pub(crate) fn mark(&self, range: BlockRange) {
        let end = range.end().map_or(self.size.0, |e| e.0.min(self.size.0));
        if range.start.0 >= end {
            return;
        }
        let (mut at, last) = (range.start.0 / self.segment_blocks, (end - 1) / self.segment_blocks);
        while at <= last {
            let stop = (at | 63).min(last);
            let ones = if stop - at == 63 { u64::MAX } else { (1 << (stop - at + 1)) - 1 };
            // Relaxed: who reads the marks has made sure that no marker is at work.
            self.words[(at / 64) as usize].fetch_or(ones << (at % 64), Ordering::Relaxed);
            at = stop + 1;
        }
    }

    /// The first marked segment at or after segment `from`, as blocks, with its number.
    pub(crate) fn next(&self, from: u64) -> Option<(u64, BlockRange)> {
        let mut word = usize::try_from(from / 64).ok()?;
        let mut mask = u64::MAX << (from % 64);
        loop {
            let bits = self.words.get(word)?.load(Ordering::Relaxed) & mask;
            if bits != 0 {
                let segment = word as u64 * 64 + u64::from(bits.trailing_zeros());
                let start = segment * self.segment_blocks;
                let blocks = BlockCount(self.segment_blocks.min(self.size.0 - start));
                return Some((segment, BlockRange { start: Lba(start), blocks }));
            }
            (word, mask) = (word + 1, u64::MAX);
        }
    }

    /// Marks what is marked in `other`, a map of a device of the same size.
    pub(crate) fn merge(&self, other: &Self) {
        for (mine, other) in self.words.iter().zip(&other.words) {
            mine.fetch_or(other.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Marks what is marked in `other` and not in `without`, maps of devices of the same size.
    pub(crate) fn merge_without(&self, other: &Self, without: &Self) {
        for ((mine, other), without) in self.words.iter().zip(&other.words).zip(&without.words) {
            let bits = other.load(Ordering::Relaxed) & !without.load(Ordering::Relaxed);
            mine.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Whether a segment is marked.
    pub(crate) fn is_marked(&self, segment: u64) -> bool {
        let word = usize::try_from(segment / 64).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|w| w.load(Ordering::Relaxed) & 1 << (segment % 64) != 0)
    }

    /// Takes a segment's mark away.
    pub(crate) fn clear(&self, segment: u64) {
        if let Some(word) = self.words.get((segment / 64) as usize) {
            word.fetch_and(!(1 << (segment % 64)), Ordering::Relaxed);
        }
    }

    /// How many segments are marked.
    pub(crate) fn marked(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Blocks of the device that it is of.
    pub(crate) fn size(&self) -> BlockCount {
        self.size
    }

    /// Blocks of a whole segment.
    pub(crate) fn segment_blocks(&self) -> u64 {
        self.segment_blocks
    }
}

/// The maps that a channel marks.
#[derive(Clone, Default)]
pub(crate) struct Logs(Vec<(usize, Arc<DirtyMap>)>);

impl Logs {
    /// Starts marking what the child at `place` misses.
    pub(crate) fn add(&mut self, place: usize, map: Arc<DirtyMap>) {
        self.remove(place);
        self.0.push((place, map));
    }

    /// Stops it, and gives the map back.
    pub(crate) fn remove(&mut self, place: usize) -> Option<Arc<DirtyMap>> {
        let at = self.0.iter().position(|(p, _)| *p == place)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Marks a change for everyone who is away.
    #[inline]
    pub(crate) fn mark(&self, range: BlockRange) {
        for (_, map) in &self.0 {
            map.mark(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, blocks: u64) -> BlockRange {
        BlockRange { start: Lba(start), blocks: BlockCount(blocks) }
    }

    fn segments(map: &DirtyMap) -> Vec<u64> {
        let mut at = 0;
        core::iter::from_fn(|| {
            let (segment, _) = map.next(at)?;
            at = segment + 1;
            Some(segment)
        })
        .collect()
    }

    #[test]
    fn marks_cover_what_was_changed_and_nothing_else() {
        let map = DirtyMap::clean(BlockCount(16 * 1000 + 5), 4096);
        assert_eq!((map.marked(), map.next(0)), (0, None));
        map.mark(range(15, 2));
        map.mark(range(16 * 63, 16 * 2));
        map.mark(range(16 * 1000 + 4, 100));
        map.mark(range(16 * 1000 + 5, 1));
        map.mark(range(u64::MAX, u64::MAX));
        map.mark(range(0, 0));
        assert_eq!(segments(&map), [0, 1, 63, 64, 1000]);
        assert_eq!(map.next(65).unwrap().1, range(16_000, 5), "the last one is short");
        map.clear(63);
        map.clear(5000);
        assert_eq!(segments(&map), [0, 1, 64, 1000]);
        assert_eq!(DirtyMap::all(BlockCount(16 * 200), 4096).marked(), 200);
        assert!(map.is_marked(64) && !map.is_marked(63) && !map.is_marked(u64::MAX));
        let (other, all) = (DirtyMap::clean(BlockCount(16 * 1000 + 5), 4096), map);
        other.merge(&all);
        assert_eq!(segments(&other), [0, 1, 64, 1000]);
        other.clear(64);
        let rest = DirtyMap::clean(BlockCount(16 * 1000 + 5), 4096);
        rest.merge_without(&all, &other);
        assert_eq!(segments(&rest), [64]);
    }

    #[test]
    fn logs_are_marked_until_they_are_taken() {
        let mut logs = Logs::default();
        let map = Arc::new(DirtyMap::clean(BlockCount(1 << 20), 512));
        logs.add(3, map.clone());
        logs.mark(range(0, 1));
        assert!(logs.remove(3).is_some() && logs.remove(3).is_none());
        logs.mark(range(1 << 19, 1));
        assert_eq!(map.marked(), 1);
    }
}
