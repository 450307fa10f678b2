//! The command slots of one queue: a fixed slab, named on the wire by the command identifier.

use aio::{Instant, SgEntry};
use nvme::{Cqe, Status};

use crate::tcp::{C2hProgress, Outbound};

/// Most entries of one submission queue of ours. Leaves at least four bits of the CID for the generation.
pub(super) const MAX_ENTRIES: u16 = 4096;

/// Which way the payload of a command goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// No payload.
    None,
    /// To the controller.
    Out,
    /// From the controller.
    In,
}

/// One command in flight.
pub(super) struct Slot {
    pub(super) active: bool,
    /// The identifier on the wire: the slot's index and, above it, how often the slot was used.
    pub(super) cid: u16,
    /// Whose command this is, as given to `issue`.
    pub(super) user: u32,
    pub(super) way: Way,
    /// The payload. The list keeps its capacity from command to command.
    pub(super) sg: Vec<SgEntry>,
    /// A private copy of a payload that its owner may change while digests are in use.
    pub(super) copy: Vec<u8>,
    pub(super) total_bytes: u32,
    /// With [`Way::In`]: less than that is no success.
    pub(super) whole: bool,
    pub(super) out: Outbound,
    /// Payload bytes that were put into the transmit list.
    pub(super) queued_bytes: u32,
    pub(super) c2h: C2hProgress,
    /// PDUs in the transmit list that name the payload.
    pub(super) sending: u16,
    /// The answer came while PDUs still named the payload: it completes when they are gone.
    pub(super) answer: Option<Cqe>,
    /// A data digest was wrong.
    pub(super) damaged: bool,
    pub(super) deadline: Instant,
    pub(super) issued: Instant,
    /// The deadline has passed once.
    pub(super) aborting: bool,
}

impl Slot {
    fn new() -> Self {
        Self {
            active: false,
            cid: 0,
            user: 0,
            way: Way::None,
            sg: Vec::new(),
            copy: Vec::new(),
            total_bytes: 0,
            whole: true,
            out: Outbound::default(),
            queued_bytes: 0,
            c2h: C2hProgress::default(),
            sending: 0,
            answer: None,
            damaged: false,
            deadline: Instant::default(),
            issued: Instant::default(),
            aborting: false,
        }
    }

    /// What the answer means once the payload is looked at too. `Err` = the controller broke the rules.
    pub(super) fn judge(&self, mut cqe: Cqe) -> Result<Cqe, &'static str> {
        if !cqe.status().is_success() {
            return Ok(cqe);
        }
        if self.damaged {
            cqe.set_status(Status::TRANSIENT_TRANSPORT_ERROR);
            return Ok(cqe);
        }
        match self.way {
            Way::Out if self.queued_bytes != self.total_bytes => Err("success without asking for the data"),
            Way::In if self.whole && self.c2h.received_bytes() != self.total_bytes => {
                Err("success without all of the data")
            }
            _ => Ok(cqe),
        }
    }
}

/// The slots of a queue.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    index_mask: u16,
}

impl Slots {
    /// `count` slots, 1 to [`MAX_ENTRIES`].
    pub(super) fn new(count: u16) -> Self {
        let count = count.clamp(1, MAX_ENTRIES);
        Self {
            slots: (0..count).map(|_| Slot::new()).collect(),
            free: (0..count).rev().collect(),
            index_mask: count.next_power_of_two() - 1,
        }
    }

    /// All there are.
    pub(super) fn len(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Slots that are free.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Commands in flight.
    #[inline]
    pub(super) fn active(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a slot and gives it a fresh identifier.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        let index = self.free.pop()?;
        let step = self.index_mask + 1;
        let slot = &mut self.slots[usize::from(index)];
        // The generation wraps within the bits above the index; FFFFh is reserved (`Cid::NONE`).
        let mut cid = (slot.cid & !self.index_mask).wrapping_add(step) | index;
        if cid == nvme::Cid::NONE.0 {
            cid = cid.wrapping_add(step);
        }
        slot.cid = cid;
        slot.active = true;
        slot.sending = 0;
        slot.answer = None;
        slot.damaged = false;
        slot.queued_bytes = 0;
        Some(index)
    }

    /// Gives a slot back.
    #[inline]
    pub(super) fn give(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        debug_assert!(slot.active);
        slot.active = false;
        slot.sg.clear();
        self.free.push(index);
    }

    /// The slot of the command that the controller names, if that command is in flight.
    #[inline]
    pub(super) fn find(&self, cid: u16) -> Option<u16> {
        let index = cid & self.index_mask;
        let slot = self.slots.get(usize::from(index))?;
        (slot.active && slot.cid == cid).then_some(index)
    }

    #[inline]
    pub(super) fn get(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    /// All commands in flight.
    pub(super) fn iter_active(&self) -> impl Iterator<Item = (u16, &Slot)> {
        (0u16..).zip(self.slots.iter()).filter(|(_, s)| s.active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_and_foreign_identifiers_are_not_found() {
        let mut slots = Slots::new(3);
        let a = slots.take().unwrap();
        let cid = slots.get(a).cid;
        assert_eq!(slots.find(cid), Some(a));
        assert_eq!(slots.find(cid ^ 4), None);
        assert_eq!(slots.find(3), None, "beyond the slab");
        slots.give(a);
        assert_eq!(slots.find(cid), None);
        let b = slots.take().unwrap();
        assert_eq!((b, slots.find(cid)), (a, None), "the slot is in use again under another name");
        assert!(slots.take().is_some() && slots.take().is_some() && slots.take().is_none());
    }

    #[test]
    fn the_reserved_identifier_is_never_used() {
        let mut slots = Slots::new(MAX_ENTRIES);
        for _ in 0..MAX_ENTRIES {
            slots.take();
        }
        for _ in 0..100 {
            slots.give(MAX_ENTRIES - 1);
            let index = slots.take().unwrap();
            assert_ne!(slots.get(index).cid, 0xffff);
        }
    }
}
