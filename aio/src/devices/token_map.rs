//! A fixed-size map from tokens to small values: open addressing, no allocation after construction.
//!
//! Tokens are the submitter's, so a device cannot use them as its own slab index. One multiplication and
//! usually one probe find what belongs to a token.

use crate::io::Token;

/// At most `capacity` tokens with a value each.
pub(super) struct TokenMap<V> {
    slots: Vec<Option<(Token, V)>>,
    /// Shift that leaves as many bits of the hash as the table has index bits.
    shift: u32,
    len: usize,
    capacity: usize,
}

impl<V: Copy> TokenMap<V> {
    /// An empty map for `capacity` tokens; the table is at most half full.
    pub(super) fn new(capacity: usize) -> Self {
        let size = (capacity.max(1) * 2).next_power_of_two();
        Self { slots: vec![None; size], shift: 64 - size.trailing_zeros(), len: 0, capacity }
    }

    /// How many tokens are in the map.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a token that is not in the map.
    pub(super) fn insert(&mut self, token: Token, value: V) {
        debug_assert!(self.len < self.capacity, "the owner counts its slots");
        let mut at = self.home(token);
        while self.slots[at].is_some() {
            at = self.next(at);
        }
        self.slots[at] = Some((token, value));
        self.len += 1;
    }

    /// The value of `token`.
    pub(super) fn get(&self, token: Token) -> Option<&V> {
        self.find(token).and_then(|at| self.slots[at].as_ref()).map(|(_, v)| v)
    }

    /// Takes `token` out.
    pub(super) fn remove(&mut self, token: Token) -> Option<V> {
        let mut hole = self.find(token)?;
        let (_, value) = self.slots[hole].take()?;
        self.len -= 1;
        // Move followers of the same probe run into the hole, so that no search ends there too early.
        let mut at = self.next(hole);
        while let Some((t, _)) = &self.slots[at] {
            let home = self.home(*t);
            let mask = self.slots.len() - 1;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = self.slots[at].take();
                hole = at;
            }
            at = self.next(at);
        }
        Some(value)
    }

    fn find(&self, token: Token) -> Option<usize> {
        let mut at = self.home(token);
        loop {
            match &self.slots[at] {
                None => return None,
                Some((t, _)) if *t == token => return Some(at),
                Some(_) => at = self.next(at),
            }
        }
    }

    fn home(&self, token: Token) -> usize {
        // Fibonacci hashing: 2^64 divided by the golden ratio spreads consecutive numbers evenly.
        (token.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn behaves_as_a_map() {
        let mut rng = crate::devices::prng::Prng::new(7);
        let mut map = TokenMap::new(32);
        let mut model = HashMap::new();
        for _ in 0..20_000 {
            let token = Token(rng.below(64) << 32);
            if model.contains_key(&token) {
                assert_eq!(map.get(token).copied(), model.get(&token).copied());
                assert_eq!(map.remove(token), model.remove(&token));
            } else if model.len() < 32 {
                let value = rng.next_u64();
                map.insert(token, value);
                model.insert(token, value);
            } else {
                assert_eq!(map.get(token), None);
                assert_eq!(map.remove(token), None);
            }
            assert_eq!(map.len(), model.len());
        }
    }
}
