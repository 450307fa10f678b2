//! Who has how much of the core's data memory, by subsystem.
//!
//! A subsystem that is paused, or whose device hangs, keeps the memory of its commands. That must not be what the
//! others wait for, so where several subsystems have queues on a core
//! - each gets more only while, after that, at least as much is free as it has: alone it can have half of the pools,
//!   and each further one finds half of what those before it left;
//! - one that has nothing always gets memory for one command, from the heap when the pools are empty. That is what
//!   bounds the heap: one command for each subsystem.
//!
//! A command that is put off by the first rule goes on when its own subsystem gives something back.

use super::super::board::SubsystemId;

/// What the connections of one subsystem have.
#[derive(Clone, Copy, Default)]
struct Share {
    held_bytes: u64,
    /// I/O queues on this core.
    queues: u32,
}

/// All subsystems of a core, by number plus one. The first place is that of connections without a queue.
#[derive(Default)]
pub(super) struct Shares {
    table: Vec<Share>,
    /// Subsystems with I/O queues.
    sharing: u32,
}

/// The subsystem of a connection that has no queue.
pub(super) const NOBODY: SubsystemId = SubsystemId(u32::MAX);

impl Shares {
    #[inline]
    fn index(subsystem: SubsystemId) -> usize {
        subsystem.0.wrapping_add(1) as usize
    }

    fn share(&mut self, subsystem: SubsystemId) -> &mut Share {
        let index = Self::index(subsystem);
        if self.table.len() <= index {
            self.table.resize(index + 1, Share::default());
        }
        &mut self.table[index]
    }

    /// An I/O queue of `subsystem` comes.
    pub(super) fn join(&mut self, subsystem: SubsystemId) {
        let share = self.share(subsystem);
        share.queues += 1;
        self.sharing += u32::from(share.queues == 1);
    }

    /// An I/O queue of `subsystem` went.
    pub(super) fn leave(&mut self, subsystem: SubsystemId) {
        let share = self.share(subsystem);
        share.queues -= 1;
        self.sharing -= u32::from(share.queues == 0);
    }

    /// Bytes that the connections of `subsystem` have.
    #[inline]
    pub(super) fn held_bytes(&self, subsystem: SubsystemId) -> u64 {
        self.table.get(Self::index(subsystem)).map_or(0, |share| share.held_bytes)
    }

    /// Whether what one subsystem has is missed by another.
    #[inline]
    pub(super) fn contested(&self) -> bool {
        self.sharing > 1
    }

    /// `subsystem` takes bytes.
    #[inline]
    pub(super) fn take(&mut self, subsystem: SubsystemId, bytes: u64) {
        match self.table.get_mut(Self::index(subsystem)) {
            Some(share) => share.held_bytes += bytes,
            None => self.share(subsystem).held_bytes += bytes,
        }
    }

    /// `subsystem` gives bytes back.
    #[inline]
    pub(super) fn give(&mut self, subsystem: SubsystemId, bytes: u64) {
        let share = self.table.get_mut(Self::index(subsystem));
        share.expect("invariant: who gives has taken").held_bytes -= bytes;
    }
}
