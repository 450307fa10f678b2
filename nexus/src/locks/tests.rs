use std::cell::UnsafeCell;
use std::sync::Arc;

use aio::Lba;

use super::*;

fn range(start: u64, blocks: u64) -> BlockRange {
    BlockRange { start: Lba(start), blocks: BlockCount(blocks) }
}

/// Taken at once, or nothing of it.
fn try_hold(locks: &RangeLocks, start: u64, blocks: u64) -> Option<Hold> {
    let mut hold = locks.hold(range(start, blocks));
    if locks.advance(&mut hold) {
        return Some(hold);
    }
    locks.release(&mut hold);
    None
}

#[test]
fn overlaps_wait_and_neighbours_do_not() {
    let locks = RangeLocks::new(512);
    let mut a = try_hold(&locks, 8, 8).unwrap();
    assert!(try_hold(&locks, 8, 8).is_none());
    assert!(try_hold(&locks, 15, 1).is_none(), "the last block");
    assert!(try_hold(&locks, 0, 9).is_none(), "the first block");
    let mut b = try_hold(&locks, 16, 8).unwrap();
    let mut c = try_hold(&locks, 0, 8).unwrap();
    assert_eq!(locks.taken(), 3);
    locks.release(&mut a);
    let mut d = try_hold(&locks, 9, 1).expect("a part of a granule, after it was given back");
    for hold in [&mut b, &mut c, &mut d] {
        locks.release(hold);
    }
    assert_eq!(locks.taken(), 0);
}

#[test]
fn nothing_needs_nothing() {
    let locks = RangeLocks::new(4096);
    let mut all = try_hold(&locks, 0, u64::MAX).unwrap();
    assert_eq!(u64::from(locks.taken()), TABLE_BITS);
    assert!(try_hold(&locks, 0, 0).is_some());
    locks.release(&mut all);
    assert_eq!(locks.taken(), 0);
}

/// Ranges across words, across the border between two tables' lengths, around the end, of every length near it: each is
/// held whole, meets itself nowhere, and gives back exactly what it took.
#[test]
fn every_shape_is_held_whole() {
    let locks = RangeLocks::new(4096);
    let lengths =
        [1, 2, 63, 64, 65, 1000, TABLE_BITS / 2 + 7, TABLE_BITS - 1, TABLE_BITS, TABLE_BITS + 1, 1 << 40];
    let starts =
        [0, 1, 63, 64, TABLE_BITS - 1, TABLE_BITS - 40, 5 * TABLE_BITS - 3, 7 * TABLE_BITS, (1 << 50) + 17];
    for start in starts {
        for length in lengths {
            let mut hold = try_hold(&locks, start, length).unwrap();
            let taken = u64::from(locks.taken());
            assert!(taken <= length, "{start} {length}");
            // Two parts beside a border may share places; within one table's length nothing does.
            if start / TABLE_BITS == (start + length - 1) / TABLE_BITS {
                assert_eq!(taken, length.min(TABLE_BITS), "{start} {length}");
            }
            for block in [start, start + length / 2, start + length - 1] {
                assert!(try_hold(&locks, block, 1).is_none(), "{start} {length} {block}");
            }
            locks.release(&mut hold);
            assert_eq!(locks.taken(), 0, "{start} {length}");
        }
    }
}

#[test]
fn a_part_is_kept_while_waiting_and_given_back() {
    let locks = RangeLocks::new(4096);
    let mut middle = try_hold(&locks, 10, 1).unwrap();
    let mut wide = locks.hold(range(5, 20));
    assert!(!locks.advance(&mut wide));
    assert_eq!(locks.taken(), 6, "five below the stranger's, and none above it");
    assert!(try_hold(&locks, 5, 1).is_none());
    let mut above = try_hold(&locks, 12, 1).expect("free");
    locks.release(&mut above);
    assert!(!locks.advance(&mut wide));
    locks.release(&mut middle);
    assert!(locks.advance(&mut wide));
    locks.release(&mut wide);
    assert_eq!(locks.taken(), 0);
    let mut middle = try_hold(&locks, 10, 1).unwrap();
    let mut wide = locks.hold(range(5, 20));
    assert!(!locks.advance(&mut wide));
    locks.release(&mut wide);
    assert_eq!(locks.taken(), 1, "what was held of a half-taken range is given back");
    locks.release(&mut middle);
}

#[test]
fn equal_offsets_of_different_tables_lengths_do_not_meet() {
    let locks = RangeLocks::new(4096);
    let mut holds: Vec<Hold> =
        (0..64).map(|n| try_hold(&locks, n * TABLE_BITS + 1234, 32).expect("a place of its own")).collect();
    holds.iter_mut().for_each(|h| locks.release(h));
    assert_eq!(locks.taken(), 0);
}

/// Bytes that only the holder of their range touches.
struct Blocks(Vec<UnsafeCell<u64>>);

// SAFETY: the test's point: a cell is touched under the range lock of its number only.
unsafe impl Sync for Blocks {}

/// Threads count up cells of random ranges under their locks. A lost count, a hang, or a data race (under a checker of
/// them) is the failure.
#[test]
fn threads_exclude_each_other() {
    const CELLS: u64 = 300;
    const ROUNDS: u64 = if cfg!(miri) { 50 } else { 20_000 };
    let locks = Arc::new(RangeLocks::new(4096));
    let blocks = Arc::new(Blocks((0..CELLS).map(|_| UnsafeCell::new(0)).collect()));
    let threads: Vec<_> = (0..4u64)
        .map(|seed| {
            let (locks, blocks) = (locks.clone(), blocks.clone());
            std::thread::spawn(move || {
                let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut counted = 0;
                for _ in 0..ROUNDS {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let start = state % CELLS;
                    let length = 1 + (state >> 32) % (CELLS - start).min(40);
                    let mut hold = locks.hold(range(start, length));
                    while !locks.advance(&mut hold) {
                        std::thread::yield_now();
                    }
                    for cell in &blocks.0[start as usize..(start + length) as usize] {
                        // SAFETY: under the lock of this cell's number.
                        unsafe { *cell.get() += 1 };
                    }
                    counted += length;
                    locks.release(&mut hold);
                }
                counted
            })
        })
        .collect();
    let counted: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
    // SAFETY: the threads are gone.
    let there: u64 = blocks.0.iter().map(|c| unsafe { *c.get() }).sum();
    assert_eq!(there, counted);
    assert_eq!(locks.taken(), 0);
}
