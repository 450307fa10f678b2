//! Index arithmetic of submission and completion queues (NVMe Base 2.0, sections 3.3.1 and 3.3.3.2).
//!
//! A queue of `entries` slots is empty when head and tail are equal and full when the tail is one behind the
//! head, so it holds `entries - 1` commands. These are numbers only: the memory of the queue, doorbells and
//! capsules belong to the caller. Fabrics use the submission side alone: SQHD in each response says how far the
//! controller has come.
//!
//! Panic guarantee: heads that a peer reports are checked, never trusted.

/// The head that a peer reported is not between the head before it and the tail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadHead {
    /// What was reported.
    pub head: u16,
}

impl core::fmt::Display for BadHead {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the submission queue head pointer {} is outside of the commands in the queue", self.head)
    }
}

impl std::error::Error for BadHead {}

/// The host's side of a submission queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SqTail {
    entries: u32,
    head: u16,
    tail: u16,
}

impl SqTail {
    /// An empty queue of 2 to 65,536 entries; what is outside counts as the nearer bound.
    pub const fn new(entries: u32) -> Self {
        Self { entries: clamp_entries(entries), head: 0, tail: 0 }
    }

    /// Commands that are in the queue: submitted, and not yet fetched as far as the head tells.
    pub const fn used(&self) -> u32 {
        distance(self.head, self.tail, self.entries)
    }

    /// Commands that fit.
    pub const fn free(&self) -> u32 {
        self.entries - 1 - self.used()
    }

    /// Takes the next slot, or `None` when the queue is full. The new tail ([`Self::tail`]) goes to the doorbell
    /// once the slot is written.
    pub const fn push(&mut self) -> Option<u16> {
        if self.free() == 0 {
            return None;
        }
        let slot = self.tail;
        self.tail = next(slot, self.entries);
        Some(slot)
    }

    /// The next slot to write, which is also the value of the tail doorbell.
    pub const fn tail(&self) -> u16 {
        self.tail
    }

    /// Takes over SQHD of a completion, and says how many commands that released.
    ///
    /// # Errors
    /// The controller claims to have fetched what was not submitted; nothing changes.
    pub const fn set_head(&mut self, head: u16) -> Result<u32, BadHead> {
        if head as u32 >= self.entries {
            return Err(BadHead { head });
        }
        let released = distance(self.head, head, self.entries);
        if released > self.used() {
            return Err(BadHead { head });
        }
        self.head = head;
        Ok(released)
    }
}

/// The controller's side of a submission queue whose commands come as capsules: SQHD counts them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SqHead {
    entries: u32,
    head: u16,
}

impl SqHead {
    /// A queue of 2 to 65,536 entries; what is outside counts as the nearer bound.
    pub const fn new(entries: u32) -> Self {
        Self { entries: clamp_entries(entries), head: 0 }
    }

    /// A command was taken out of the queue; the new SQHD.
    pub const fn advance(&mut self) -> u16 {
        self.head = next(self.head, self.entries);
        self.head
    }

    /// SQHD, for the next completion.
    pub const fn get(&self) -> u16 {
        self.head
    }
}

/// The host's side of a completion queue: where the next entry comes, and with which phase tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CqHead {
    entries: u32,
    head: u16,
    phase: bool,
}

impl CqHead {
    /// A queue of 2 to 65,536 entries whose memory is zero; what is outside counts as the nearer bound.
    pub const fn new(entries: u32) -> Self {
        Self { entries: clamp_entries(entries), head: 0, phase: true }
    }

    /// The slot to look at, which is also the value of the head doorbell.
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// True when an entry with this phase tag at [`Self::head`] is new.
    pub const fn is_new(&self, phase: bool) -> bool {
        phase == self.phase
    }

    /// The entry at the head is consumed.
    pub const fn advance(&mut self) {
        self.head = next(self.head, self.entries);
        if self.head == 0 {
            self.phase = !self.phase;
        }
    }
}

/// A queue has at least 2 entries, and indices have 16 bits.
const fn clamp_entries(entries: u32) -> u32 {
    match entries {
        0..2 => 2,
        2..=65_536 => entries,
        _ => 65_536,
    }
}

/// The index after `index`.
const fn next(index: u16, entries: u32) -> u16 {
    let after = index as u32 + 1;
    // `after` is at most 65,535 here, for `index` is below `entries`, which is at most 65,536.
    if after >= entries { 0 } else { after as u16 }
}

/// How far it is forward from one index to another, both below `entries`.
const fn distance(from: u16, to: u16, entries: u32) -> u32 {
    let (from, to) = (from as u32, to as u32);
    if to >= from { to - from } else { to + entries - from }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn against_a_plain_queue() {
        for entries in [2, 3, 4, 7, 128] {
            let mut ring = SqTail::new(entries);
            let mut controller = SqHead::new(entries);
            let mut model = VecDeque::new();
            let mut slots = (0..entries as u16).cycle();
            for step in 0..1000u32 {
                // A pattern that fills, drains, and crosses the end in every phase.
                if (step * 7 / 11) % 3 != 0 {
                    let pushed = ring.push();
                    assert_eq!(pushed.is_some(), model.len() < entries as usize - 1);
                    if let Some(slot) = pushed {
                        assert_eq!(Some(slot), slots.next());
                        model.push_back(slot);
                    }
                } else if model.pop_front().is_some() {
                    assert_eq!(ring.set_head(controller.advance()), Ok(1));
                }
                assert_eq!(ring.used() as usize, model.len());
                assert_eq!(ring.used() + ring.free(), entries - 1);
                assert_eq!(model.front().copied().unwrap_or(ring.tail()), controller.get());
            }
        }
    }

    #[test]
    fn heads_out_of_range_are_refused() {
        let mut ring = SqTail::new(8);
        assert_eq!(ring.set_head(1), Err(BadHead { head: 1 }));
        assert_eq!(ring.set_head(8), Err(BadHead { head: 8 }));
        assert_eq!(ring.set_head(u16::MAX), Err(BadHead { head: u16::MAX }));
        for _ in 0..3 {
            ring.push();
        }
        assert_eq!(ring.set_head(4), Err(BadHead { head: 4 }));
        assert_eq!(ring.set_head(2), Ok(2));
        assert_eq!(ring.set_head(1), Err(BadHead { head: 1 }), "heads do not go back");
        assert_eq!((ring.set_head(3), ring.used(), ring.free()), (Ok(1), 0, 7));
    }

    #[test]
    fn the_largest_and_the_smallest_queue() {
        let mut ring = SqTail::new(65_536);
        for slot in 0..65_535u16 {
            assert_eq!(ring.push(), Some(slot));
        }
        assert_eq!((ring.push(), ring.tail()), (None, 65_535));
        assert_eq!(ring.set_head(65_535), Ok(65_535));
        assert_eq!((ring.push(), ring.tail()), (Some(65_535), 0));
        assert_eq!(SqTail::new(0), SqTail::new(2));
        assert_eq!(SqTail::new(u32::MAX), SqTail::new(65_536));
    }

    #[test]
    fn the_phase_turns_at_the_end() {
        let mut cq = CqHead::new(3);
        let mut seen = Vec::new();
        for _ in 0..7 {
            seen.push((cq.head(), cq.is_new(true)));
            cq.advance();
        }
        let expected = [(0, true), (1, true), (2, true), (0, false), (1, false), (2, false), (0, true)];
        assert_eq!(seen, expected);
    }
}
