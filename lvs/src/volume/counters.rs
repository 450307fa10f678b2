//! What a volume, or a whole pool, was asked to do.
//!
//! All channels of a pool are on its home core, so that each counter has one writer: a relaxed load and store, no
//! locked instruction per I/O. Readers are anywhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aio::{Io, Opcode};

use crate::info::IoStats;

/// See the module.
#[derive(Default)]
pub(crate) struct Counters {
    reads: Pair,
    writes: Pair,
    unmaps: Pair,
    /// What they were when they were reset.
    base: Mutex<IoStats>,
}

/// I/Os and their bytes.
#[derive(Default)]
struct Pair {
    ops: AtomicU64,
    bytes: AtomicU64,
}

impl Pair {
    fn add(&self, bytes: u64) {
        let bump = |counter: &AtomicU64, by: u64| {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        };
        bump(&self.ops, 1);
        bump(&self.bytes, bytes);
    }

    fn get(&self) -> (u64, u64) {
        (self.ops.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Counters {
    /// Counts an I/O that was taken. On the home core only.
    pub(super) fn count(&self, io: &Io<'_>, block_bytes: u32) {
        let bytes = io.blocks.0.wrapping_mul(block_bytes.into());
        match io.opcode {
            Opcode::Read => self.reads.add(bytes),
            Opcode::Write => self.writes.add(bytes),
            Opcode::WriteZeroes => self.unmaps.add(bytes),
            Opcode::Unmap => {
                let blocks: u64 = io.ranges.iter().map(|r| r.blocks.0).sum();
                self.unmaps.add(blocks.wrapping_mul(block_bytes.into()));
            }
            _ => {}
        }
    }

    fn total(&self) -> IoStats {
        let (reads, read_bytes) = self.reads.get();
        let (writes, written_bytes) = self.writes.get();
        let (unmaps, unmapped_bytes) = self.unmaps.get();
        IoStats { reads, read_bytes, writes, written_bytes, unmaps, unmapped_bytes }
    }

    /// Since the last reset.
    pub(crate) fn get(&self) -> IoStats {
        let (now, base) = (self.total(), *self.base.lock().unwrap_or_else(PoisonError::into_inner));
        IoStats {
            reads: now.reads.wrapping_sub(base.reads),
            read_bytes: now.read_bytes.wrapping_sub(base.read_bytes),
            writes: now.writes.wrapping_sub(base.writes),
            written_bytes: now.written_bytes.wrapping_sub(base.written_bytes),
            unmaps: now.unmaps.wrapping_sub(base.unmaps),
            unmapped_bytes: now.unmapped_bytes.wrapping_sub(base.unmapped_bytes),
        }
    }

    /// From now on it counts from zero.
    pub(crate) fn reset(&self) {
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = self.total();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_begins_anew_and_loses_nothing_after_it() {
        let counters = Counters::default();
        counters.reads.add(4096);
        counters.writes.add(512);
        counters.writes.add(512);
        let before = counters.get();
        assert_eq!(
            (before.reads, before.read_bytes, before.writes, before.written_bytes),
            (1, 4096, 2, 1024)
        );
        counters.reset();
        assert_eq!(counters.get(), IoStats::default());
        counters.unmaps.add(8192);
        assert_eq!((counters.get().unmaps, counters.get().unmapped_bytes), (1, 8192));
    }
}
