//! The event trace of a run, folded into one number.
//!
//! Two runs of one seed must give the same hash; when they do not, something outside the seed (address
//! randomisation, a `HashMap`'s order, the real clock) decided something, and no failure could be replayed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Write as _;

/// How many of the last events are kept as text when a run is verbose or has failed.
const TAIL_EVENTS: usize = 200;

/// Folds events into a hash; keeps the last ones as text when asked to.
#[derive(Debug, Default)]
pub struct Trace {
    hash: Cell<u64>,
    events: Cell<u64>,
    tail: Option<RefCell<VecDeque<String>>>,
}

impl Trace {
    /// A trace that only hashes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A trace that also keeps the text of the last events.
    pub fn with_tail() -> Self {
        Self { tail: Some(RefCell::new(VecDeque::with_capacity(TAIL_EVENTS))), ..Self::default() }
    }

    /// Adds an event: what happened, and the numbers that describe it.
    pub fn event(&self, what: &'static str, numbers: &[u64]) {
        self.bytes(what.as_bytes());
        for &n in numbers {
            self.mix(n);
        }
        self.events.set(self.events.get() + 1);
        if let Some(tail) = &self.tail {
            let mut line = String::from(what);
            for n in numbers {
                let _ = write!(line, " {n}");
            }
            let mut tail = tail.borrow_mut();
            if tail.len() == TAIL_EVENTS {
                tail.pop_front();
            }
            tail.push_back(line);
        }
    }

    /// Folds payload bytes in, without an event of their own.
    pub fn bytes(&self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for w in &mut words {
            self.mix(u64::from_le_bytes(w.try_into().expect("invariant: chunks of 8")));
        }
        let mut rest = [0; 8];
        rest[..words.remainder().len()].copy_from_slice(words.remainder());
        self.mix(u64::from_le_bytes(rest) ^ (bytes.len() as u64) << 56);
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash.get()
    }

    /// Number of events so far.
    pub fn events(&self) -> u64 {
        self.events.get()
    }

    /// The last events as text, oldest first; empty unless made by [`with_tail`](Self::with_tail).
    pub fn tail(&self) -> Vec<String> {
        self.tail.as_ref().map(|t| t.borrow().iter().cloned().collect()).unwrap_or_default()
    }

    fn mix(&self, n: u64) {
        let h = (self.hash.get() ^ n).wrapping_mul(0x9FB2_1C65_1E98_DF25);
        self.hash.set(h ^ (h >> 32));
    }
}
