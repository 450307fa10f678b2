//! A bounded queue from one thread to another: one writes, one reads, nobody waits.
//!
//! Needs `unsafe` because both sides share the cells. Two counters say whose each cell is: `tail` counts what was
//! published, `head` what was given back. The cells from `head` to `tail` are the reader's, all others the writer's. Each side
//! changes one counter only, with release, after it has finished with the cells that it hands over, and reads the
//! other's with acquire before it touches what it got; so no cell is ever touched by both.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// Keeps what two cores write apart: two cache lines, because some processors fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Padded<T>(pub(super) T);

struct Shared<T> {
    /// Counts what was published. Written by the writer.
    tail: Padded<AtomicUsize>,
    /// Counts what was given back. Written by the reader.
    head: Padded<AtomicUsize>,
    /// A power of two.
    cells: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a cell is only touched by the side that the counters give it to, as the module says, so that values of `T` pass
// from thread to thread and are never shared.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The cell of the `count`th value.
    fn cell(&self, count: usize) -> *mut MaybeUninit<T> {
        self.cells[count & (self.cells.len() - 1)].get()
    }
}

/// The writing side.
pub(super) struct Writer<T> {
    shared: Arc<Shared<T>>,
    /// What was written, published or not.
    written: usize,
    published: usize,
    /// The newest `head` that was looked at.
    head: usize,
}

/// The reading side.
pub(super) struct Reader<T> {
    shared: Arc<Shared<T>>,
    /// What was taken, given back or not.
    taken: usize,
    given: usize,
    /// The newest `tail` that was looked at.
    tail: usize,
}

/// A queue of `capacity` values, a power of two.
pub(super) fn ring<T: Copy + Send>(capacity: usize) -> (Writer<T>, Reader<T>) {
    assert!(capacity.is_power_of_two(), "invariant: a ring's capacity is a power of two");
    let cells = (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
    let shared = Arc::new(Shared { tail: Padded::default(), head: Padded::default(), cells });
    let writer = Writer { shared: shared.clone(), written: 0, published: 0, head: 0 };
    (writer, Reader { shared, taken: 0, given: 0, tail: 0 })
}

impl<T: Copy + Send> Writer<T> {
    /// Whether there is room for `count` more values.
    #[inline]
    pub(super) fn has_room(&mut self, count: usize) -> bool {
        let capacity = self.shared.cells.len();
        if self.written.wrapping_sub(self.head) + count <= capacity {
            return true;
        }
        // Acquire: the reader has finished with the cells that it gave back.
        self.head = self.shared.head.0.load(Ordering::Acquire);
        self.written.wrapping_sub(self.head) + count <= capacity
    }

    /// Writes one more value; the reader sees it after [`publish`](Self::publish). False, and nothing done, without room.
    #[inline]
    pub(super) fn push(&mut self, value: T) -> bool {
        if !self.has_room(1) {
            return false;
        }
        let cell = self.shared.cell(self.written);
        // SAFETY: the cell is behind `tail`, and less than a capacity from `head`: it is the writer's, and this is the writer.
        unsafe { (*cell).write(value) };
        self.written = self.written.wrapping_add(1);
        true
    }

    /// Hands what was written over. False when there was nothing.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        if self.published == self.written {
            return false;
        }
        self.published = self.written;
        // Release: the reader that sees this count sees the cells.
        self.shared.tail.0.store(self.published, Ordering::Release);
        true
    }
}

impl<T: Copy + Send> Reader<T> {
    /// Takes the next value.
    #[inline]
    pub(super) fn next(&mut self) -> Option<T> {
        let value = self.peek()?;
        self.taken = self.taken.wrapping_add(1);
        Some(value)
    }

    /// The next value, which stays where it is.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<T> {
        if self.taken == self.tail && self.is_empty() {
            return None;
        }
        let cell = self.shared.cell(self.taken);
        // SAFETY: the cell is between `head` and `tail`: it is the reader's, the writer wrote it before it published it, and
        // this is the reader.
        Some(unsafe { (*cell).assume_init() })
    }

    /// Goes back to what `mark` said, if that was not given back since.
    pub(super) fn rewind(&mut self, mark: usize) {
        debug_assert!(self.taken.wrapping_sub(mark) <= self.taken.wrapping_sub(self.given));
        self.taken = mark;
    }

    /// Where [`rewind`](Self::rewind) goes back to.
    #[inline]
    pub(super) fn mark(&self) -> usize {
        self.taken
    }

    /// Whether nothing is there to be taken. Looks at what the writer published since.
    #[inline]
    pub(super) fn is_empty(&mut self) -> bool {
        // Acquire: see `publish`.
        self.tail = self.shared.tail.0.load(Ordering::Acquire);
        self.taken == self.tail
    }

    /// Gives the room of what was taken back to the writer.
    #[inline]
    pub(super) fn give_back(&mut self) {
        if self.given != self.taken {
            self.given = self.taken;
            // Release: the reads of these cells are over before the writer uses them again.
            self.shared.head.0.store(self.given, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_what_is_not_published_is_not_seen() {
        let (mut writer, mut reader) = ring(4);
        for n in 0..4 {
            assert!(writer.push(n));
        }
        assert!(!writer.push(4) && !writer.has_room(1));
        assert!(reader.next().is_none(), "nothing was published");
        assert!(writer.publish() && !writer.publish());
        let mark = reader.mark();
        assert_eq!((reader.next(), reader.next(), reader.peek()), (Some(0), Some(1), Some(2)));
        assert!(!writer.push(4), "nothing was given back");
        reader.rewind(mark);
        assert_eq!(reader.next(), Some(0));
        reader.give_back();
        assert!(writer.has_room(1) && !writer.has_room(2));
        assert!(writer.push(4) && writer.publish());
        assert_eq!([(); 4].map(|()| reader.next()), [Some(1), Some(2), Some(3), Some(4)]);
        assert!(reader.is_empty());
    }

    /// Values of several words, so that a torn or early read shows; far more than fit, so that every cell is used again.
    #[test]
    fn two_threads_pass_everything_in_order() {
        const COUNT: u64 = if cfg!(miri) { 300 } else { 200_000 };
        let (mut writer, mut reader) = ring(64);
        let sender = std::thread::spawn(move || {
            let mut n = 0u64;
            while n < COUNT {
                let batch = 1 + n % 7;
                let mut sent = 0;
                while sent < batch && n < COUNT && writer.push([n, !n, n.rotate_left(17)]) {
                    (n, sent) = (n + 1, sent + 1);
                }
                if !writer.publish() {
                    std::thread::yield_now();
                }
            }
        });
        let mut expected = 0u64;
        while expected < COUNT {
            let Some(value) = reader.next() else {
                reader.give_back();
                std::thread::yield_now();
                continue;
            };
            assert_eq!(value, [expected, !expected, expected.rotate_left(17)]);
            expected += 1;
            if expected.is_multiple_of(5) {
                reader.give_back();
            }
        }
        sender.join().unwrap();
        assert!(reader.is_empty());
    }
}
