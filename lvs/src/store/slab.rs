//! Contexts in a slab: an index that stays, a generation that tells reuses apart.

/// Slots that keep their allocations when they are reused.
pub(super) struct Slab<T> {
    slots: Vec<(u32, T)>,
    free: Vec<u32>,
    make: fn() -> T,
}

impl<T> Slab<T> {
    /// `first` slots at once; more are made when they are needed and stay.
    pub(super) fn new(first: u32, make: fn() -> T) -> Self {
        let slots = (0..first).map(|_| (0, make())).collect();
        Self { slots, free: (0..first).rev().collect(), make }
    }

    /// Takes a slot. Its content is what the last user left.
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, (self.make)()));
            self.free.reserve(self.slots.len() - self.free.len());
            (self.slots.len() - 1) as u32
        })
    }

    /// Gives a slot back.
    pub(super) fn give(&mut self, index: u32) {
        self.slots[index as usize].0 = self.slots[index as usize].0.wrapping_add(1);
        self.free.push(index);
    }

    /// How often the slot was given back.
    pub(super) fn generation(&self, index: u32) -> u32 {
        self.slots[index as usize].0
    }

    /// All slots, in use or not.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots.iter().enumerate().map(|(i, (_, slot))| (i as u32, slot))
    }

    /// Slots in use.
    pub(super) fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl<T> core::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        &self.slots[index as usize].1
    }
}

impl<T> core::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.slots[index as usize].1
    }
}
