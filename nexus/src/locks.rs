//! The table of LBA ranges that are being written: one a nexus, shared by all its channels on all cores.
//!
//! Two writes of one block in flight could reach two children in different orders, and leave them different for ever.
//! So whoever changes blocks holds their places in this table from before the first child gets the command until the
//! last one has answered; rebuild and repair hold them while they copy.
//!
//! # How
//! A bit stands for a granule of 4 KiB (a block, where blocks are larger). There are fewer bits than granules:
//! granules of one GiB lie side by side, so that a long write takes whole words, and each GiB begins at a place of its
//! own, so that streams at equal offsets of different GiB do not meet. Strangers that share a bit wait for each other
//! for the time of one I/O, which is rare and harmless.
//!
//! Bits are taken in ascending order of their places, and kept while waiting for the next: so there is always one holder
//! who needs nothing more, and nobody waits in a circle. A range of a table's length or more takes every bit.
//!
//! Nobody sleeps here: [`RangeLocks::advance`] takes what is free and says whether that was all. Whoever waits asks
//! again in its next turn.

use core::sync::atomic::{AtomicU64, Ordering};

use aio::{BlockCount, BlockRange};

/// Granule, unless blocks are larger, in bytes.
const GRANULE_BYTES: u32 = 4096;
/// log2 of the number of bits: 32 KiB of memory, 1 GiB of granules of 4 KiB.
const TABLE_SHIFT: u32 = 18;
/// Bits of the table.
const TABLE_BITS: u64 = 1 << TABLE_SHIFT;
/// Bits of a word.
const WORD_BITS: u64 = 64;
/// Most pieces that a range falls into: it may cross one border between tables' lengths, and each part may wrap.
const MAX_SPANS: usize = 4;

/// Bits `[start, end)` of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Span {
    start: u64,
    end: u64,
}

/// What a range needs, and how much of it is held. Plain data: whoever drops it without
/// [`RangeLocks::release`] leaves its bits taken for ever.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hold {
    /// Ascending, apart from each other.
    spans: [Span; MAX_SPANS],
    used: u8,
    /// The span at work, and the first bit of it that is not held.
    at: u8,
    next: u64,
}

/// The table. See the module.
pub(crate) struct RangeLocks {
    words: Box<[AtomicU64]>,
    /// log2 of the blocks in a granule.
    granule_shift: u32,
}

impl RangeLocks {
    /// A table for blocks of `block_bytes`, a power of two.
    pub(crate) fn new(block_bytes: u32) -> Self {
        let granule_shift = (GRANULE_BYTES / block_bytes.max(1)).max(1).trailing_zeros();
        let words = (0..TABLE_BITS / WORD_BITS).map(|_| AtomicU64::new(0)).collect();
        Self { words, granule_shift }
    }

    /// What `range` needs; nothing of it is held yet. An empty range needs nothing.
    pub(crate) fn hold(&self, range: BlockRange) -> Hold {
        if range.blocks == BlockCount(0) {
            return Hold::default();
        }
        let first = range.start.0 >> self.granule_shift;
        let last = range.start.0.saturating_add(range.blocks.0 - 1) >> self.granule_shift;
        if last - first >= TABLE_BITS - 1 {
            return Hold::new(&[Span { start: 0, end: TABLE_BITS }]);
        }
        let border = last & !(TABLE_BITS - 1);
        let mut parts = [Span::default(); MAX_SPANS];
        let mut used = 0;
        if first < border {
            used = place(first, border, &mut parts, used);
            used = place(border, last + 1, &mut parts, used);
        } else {
            used = place(first, last + 1, &mut parts, used);
        }
        Hold::new(&parts[..used])
    }

    /// Takes what is free of what is missing. True when everything is held.
    #[inline]
    pub(crate) fn advance(&self, hold: &mut Hold) -> bool {
        while hold.at < hold.used {
            let span = hold.spans[usize::from(hold.at)];
            while hold.next < span.end {
                let (word, mask, end) = piece(hold.next, span.end);
                // Acquire: what the last holder did to these blocks is over.
                let before = self.words[word].fetch_or(mask, Ordering::AcqRel);
                let strangers = before & mask;
                if strangers == 0 {
                    hold.next = end;
                    continue;
                }
                // Only the bits below the first stranger's are kept: bits are taken in order.
                let keep = (1_u64 << strangers.trailing_zeros()) - 1;
                let back = mask & !before & !keep;
                if back != 0 {
                    self.words[word].fetch_and(!back, Ordering::Release);
                }
                hold.next = (hold.next & !(WORD_BITS - 1)) + u64::from(strangers.trailing_zeros());
                return false;
            }
            hold.at += 1;
            hold.next = hold.spans.get(usize::from(hold.at)).map_or(0, |s| s.start);
        }
        true
    }

    /// Gives back what is held, all of it or a part.
    #[inline]
    pub(crate) fn release(&self, hold: &mut Hold) {
        for (index, span) in hold.spans[..usize::from(hold.used)].iter().enumerate() {
            let end = match index.cmp(&usize::from(hold.at)) {
                core::cmp::Ordering::Less => span.end,
                core::cmp::Ordering::Equal => hold.next,
                core::cmp::Ordering::Greater => break,
            };
            let mut at = span.start;
            while at < end {
                let (word, mask, next) = piece(at, end);
                // Release: what was done to these blocks comes before the next holder.
                self.words[word].fetch_and(!mask, Ordering::Release);
                at = next;
            }
        }
        *hold = Hold::default();
    }

    /// Bits that are taken, by whomever.
    #[cfg(test)]
    fn taken(&self) -> u32 {
        self.words.iter().map(|w| w.load(Ordering::Relaxed).count_ones()).sum()
    }
}

impl Hold {
    /// Of parts in any order, which may overlap.
    fn new(parts: &[Span]) -> Self {
        let mut sorted = [Span::default(); MAX_SPANS];
        let sorted = &mut sorted[..parts.len()];
        sorted.copy_from_slice(parts);
        sorted.sort_unstable_by_key(|s| s.start);
        let mut hold = Self::default();
        for part in sorted.iter() {
            let used = usize::from(hold.used);
            match hold.spans[..used].last_mut() {
                Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
                _ => {
                    hold.spans[used] = *part;
                    hold.used += 1;
                }
            }
        }
        hold.next = hold.spans[0].start;
        hold
    }
}

/// Writes where the granules `[first, end)`, of one table's length, stand.
fn place(first: u64, end: u64, parts: &mut [Span; MAX_SPANS], used: usize) -> usize {
    // Fibonacci hashing spreads the beginnings of consecutive tables' lengths.
    let turn = (first >> TABLE_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - TABLE_SHIFT);
    let start = (first + turn) & (TABLE_BITS - 1);
    let stop = start + (end - first);
    if stop <= TABLE_BITS {
        parts[used] = Span { start, end: stop };
        return used + 1;
    }
    parts[used] = Span { start, end: TABLE_BITS };
    parts[used + 1] = Span { start: 0, end: stop - TABLE_BITS };
    used + 2
}

/// The word of bit `at`, the bits of it from there to `end`, and the bit after them.
#[inline]
fn piece(at: u64, end: u64) -> (usize, u64, u64) {
    let stop = ((at | (WORD_BITS - 1)) + 1).min(end);
    let count = stop - at;
    let ones = if count == WORD_BITS { u64::MAX } else { (1 << count) - 1 };
    ((at / WORD_BITS) as usize, ones << (at % WORD_BITS), stop)
}

#[cfg(test)]
mod tests;
