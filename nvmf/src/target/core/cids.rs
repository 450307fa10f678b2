//! Which command identifiers of a queue are in use.

/// One bit for each of the 65,536 identifiers: a look-up is one load, whatever scheme the host numbers its
/// commands by (Linux puts a generation into the upper bits, others count from zero).
pub(super) struct CidSet(Box<[u64]>);

impl CidSet {
    pub(super) fn new() -> Self {
        Self(vec![0; 65536 / 64].into_boxed_slice())
    }

    /// Marks `cid` as in use; false when it was already.
    #[inline]
    pub(super) fn insert(&mut self, cid: u16) -> bool {
        let word = &mut self.0[usize::from(cid >> 6)];
        let bit = 1 << (cid & 63);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    /// Marks `cid` as free.
    #[inline]
    pub(super) fn remove(&mut self, cid: u16) {
        self.0[usize::from(cid >> 6)] &= !(1 << (cid & 63));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identifier_is_its_own() {
        let mut set = CidSet::new();
        for cid in [0, 1, 63, 64, 4095, 0x1000, u16::MAX] {
            assert!(set.insert(cid));
            assert!(!set.insert(cid));
        }
        set.remove(64);
        assert!(set.insert(64));
        assert!(!set.insert(63));
    }
}
