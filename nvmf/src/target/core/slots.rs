//! The commands of one queue: a fixed slab, one slot a command, one state a slot.

use core::ops::{Index, IndexMut};

use aio::{Instant, Token};
use nvme::{Sqe, Status};

use super::super::nvm::{Fused, NvmCommand};
use super::buffer::Buffer;
use super::spaces::SpaceRef;
use crate::tcp::Inbound;

/// Index of a slot within its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlotId(pub(super) u16);

impl SlotId {
    /// No slot.
    pub(super) const NONE: Self = Self(u16::MAX);

    /// The slot, unless it is [`Self::NONE`].
    #[inline]
    pub(super) fn get(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

/// Where a command stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// No command.
    Free,
    /// Arrived, being looked at (within one call only), or a fused half that waits for the other.
    Held,
    /// Its data is arriving, in the capsule or upon our R2Ts.
    Data,
    /// Waits in the connection's queue: for a buffer, a device slot, room in the read window, the end of a pause.
    Waiting,
    /// The device has it.
    InFlight,
    /// The control side completes it later (event requests, Abort), or a Connect that has to wait.
    Later,
    /// Its answer is in the transmit list.
    Sending,
}

/// What moves a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A capsule arrived.
    Arrive,
    /// Data has to come first.
    AwaitData,
    /// The data is complete.
    DataComplete,
    /// Put in line.
    Enqueue,
    /// Left out of the line: a fused half whose other half comes later.
    Hold,
    /// The device accepted it.
    Submit,
    /// The device completed it; what follows is one of the others.
    Complete,
    /// Answered later by the control side.
    Defer,
    /// Its answer was queued.
    Answer,
    /// Nothing of the answer was sent, and the lent memory was given back: read again.
    TakeBack,
    /// The answer was sent, or the connection is going away.
    Free,
}

impl State {
    /// The one transition function. `None` = a bug of ours.
    pub(super) const fn after(self, step: Step) -> Option<Self> {
        Some(match (self, step) {
            (Self::Free, Step::Arrive) => Self::Held,
            (Self::Held | Self::Waiting, Step::AwaitData) => Self::Data,
            (Self::Data, Step::DataComplete) => Self::Held,
            (Self::Held, Step::Enqueue) => Self::Waiting,
            (Self::Held | Self::Waiting, Step::Hold) => Self::Held,
            (Self::Held | Self::Waiting, Step::Submit) => Self::InFlight,
            (Self::InFlight, Step::Complete) => Self::Held,
            (Self::Held, Step::Defer) => Self::Later,
            (Self::Held | Self::Waiting | Self::Later, Step::Answer) => Self::Sending,
            (Self::Sending, Step::TakeBack) => Self::Waiting,
            (Self::InFlight, Step::Free) => return None,
            (_, Step::Free) => Self::Free,
            _ => return None,
        })
    }
}

/// What a command is.
#[derive(Default)]
pub(super) enum Task {
    /// Not known (yet): only answered.
    #[default]
    None,
    /// A command to one namespace.
    Io(NvmCommand),
    /// A Flush of all namespaces: this one now, the others after it.
    FlushAll(NvmCommand),
    /// A reservation command.
    Reservation(Box<Sqe>),
    /// Connect.
    Connect(Box<Sqe>),
    /// A command of the admin queue.
    Admin(Box<Sqe>),
}

/// One command.
pub(super) struct Slot {
    state: State,
    /// Counts the uses of the slot, so that tokens never repeat.
    generation: u32,
    /// The next in whatever list it is in.
    next: SlotId,
    /// Command identifier.
    pub(super) cid: u16,
    /// `cid` is marked in the connection's set.
    pub(super) cid_marked: bool,
    /// The R2Ts come first.
    pub(super) wants_data: bool,
    /// Its buffer counts as an overflow of the connection.
    pub(super) overflows: bool,
    /// Completed by the device with memory that it lent.
    pub(super) lent: bool,
    /// That memory may change after this turn.
    pub(super) unstable: bool,
    /// Counts R2Ts, for transfer tags that differ.
    pub(super) r2ts: u8,
    /// The other half of a fused operation.
    pub(super) partner: SlotId,
    /// The status to complete with once the data came, or [`Status::SUCCESS`].
    pub(super) fault: Status,
    /// Bytes that count in the connection's read window.
    pub(super) window_bytes: u32,
    /// Length of the host's data in bytes.
    pub(super) data_bytes: u32,
    /// Which namespace.
    pub(super) space: SpaceRef,
    /// What to do.
    pub(super) task: Task,
    /// Where the data is.
    pub(super) buffer: Buffer,
    /// R2Ts and their data.
    pub(super) inbound: Inbound,
    /// The turn in which the command arrived.
    pub(super) since: Instant,
    /// The turn in which its R2Ts were sent, or data for it began to arrive.
    pub(super) data_since: Instant,
}

impl Slot {
    fn new() -> Self {
        Self {
            state: State::Free,
            generation: 0,
            next: SlotId::NONE,
            cid: 0,
            cid_marked: false,
            wants_data: false,
            overflows: false,
            lent: false,
            unstable: false,
            r2ts: 0,
            partner: SlotId::NONE,
            fault: Status::SUCCESS,
            window_bytes: 0,
            data_bytes: 0,
            space: SpaceRef::NONE,
            task: Task::None,
            buffer: Buffer::None,
            inbound: Inbound::default(),
            since: Instant::default(),
            data_since: Instant::default(),
        }
    }

    #[inline]
    pub(super) fn state(&self) -> State {
        self.state
    }

    #[inline]
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// True for the halves of a fused operation.
    #[inline]
    pub(super) fn is_fused(&self) -> bool {
        matches!(&self.task, Task::Io(command) if command.fused != Fused::No)
    }

    /// Moves the command.
    #[inline]
    pub(super) fn go(&mut self, step: Step) {
        let after = self.state.after(step);
        debug_assert!(after.is_some(), "{step:?} in state {:?}", self.state);
        self.state = after.unwrap_or(self.state);
    }
}

/// A first-in first-out list of slots, linked through them.
#[derive(Clone, Copy)]
pub(super) struct Line {
    first: SlotId,
    last: SlotId,
}

impl Line {
    pub(super) const EMPTY: Self = Self { first: SlotId::NONE, last: SlotId::NONE };

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.first == SlotId::NONE
    }
}

/// The slab. A slot is in the free list, in one [`Line`], or in no list.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: SlotId,
    used: u32,
}

impl Slots {
    /// A slab for `entries` commands at once.
    pub(super) fn new(entries: u32) -> Self {
        let entries = entries.min(u32::from(SlotId::NONE.0)) as u16;
        let mut slots: Box<[Slot]> = (0..entries).map(|_| Slot::new()).collect();
        for (i, slot) in slots.iter_mut().enumerate() {
            slot.next = if i + 1 < usize::from(entries) { SlotId(i as u16 + 1) } else { SlotId::NONE };
        }
        Self { slots, free: if entries > 0 { SlotId(0) } else { SlotId::NONE }, used: 0 }
    }

    /// How many commands there can be.
    pub(super) fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    /// How many there are.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// A slot for a command that just arrived; `None` = the host sends more than its queue holds.
    #[inline]
    pub(super) fn take(&mut self) -> Option<SlotId> {
        let id = self.free.get()?;
        let slot = &mut self.slots[usize::from(id.0)];
        self.free = slot.next;
        slot.next = SlotId::NONE;
        slot.generation = slot.generation.wrapping_add(1);
        slot.go(Step::Arrive);
        self.used += 1;
        Some(id)
    }

    /// Gives a slot back whose buffer and identifier were given back.
    #[inline]
    pub(super) fn put(&mut self, id: SlotId) {
        let slot = &mut self.slots[usize::from(id.0)];
        debug_assert!(slot.buffer.is_none() && !slot.cid_marked && !slot.lent);
        slot.go(Step::Free);
        slot.task = Task::None;
        slot.next = self.free;
        self.free = id;
        self.used -= 1;
    }

    /// The slot's identifier for a device.
    #[inline]
    pub(super) fn token(&self, conn: u16, id: SlotId) -> Token {
        Token::new(u32::from(conn) << 16 | u32::from(id.0), self.slots[usize::from(id.0)].generation)
    }

    /// All slots that have a command.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        let numbered = self.slots.iter().enumerate().map(|(i, slot)| (SlotId(i as u16), slot));
        numbered.filter(|(_, slot)| slot.state != State::Free)
    }

    /// The slot with this index, if there is one in use.
    #[inline]
    pub(super) fn get_used(&mut self, index: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(index)).filter(|slot| slot.state != State::Free)
    }

    /// Appends a slot that is in no list.
    #[inline]
    pub(super) fn push_back(&mut self, line: &mut Line, id: SlotId) {
        self[id].next = SlotId::NONE;
        match line.last.get() {
            Some(last) => self[last].next = id,
            None => line.first = id,
        }
        line.last = id;
    }

    /// Takes the oldest.
    #[inline]
    pub(super) fn pop_front(&mut self, line: &mut Line) -> Option<SlotId> {
        let id = line.first.get()?;
        line.first = self[id].next;
        if line.first == SlotId::NONE {
            line.last = SlotId::NONE;
        }
        self[id].next = SlotId::NONE;
        Some(id)
    }

    /// Puts `front` before `line`; `front` is empty afterwards.
    pub(super) fn prepend(&mut self, line: &mut Line, front: &mut Line) {
        if let Some(last) = front.last.get() {
            self[last].next = line.first;
            line.first = front.first;
            if line.last == SlotId::NONE {
                line.last = front.last;
            }
            *front = Line::EMPTY;
        }
    }

    /// Takes `id` out of the middle; false when it is not in the list.
    pub(super) fn remove(&mut self, line: &mut Line, id: SlotId) -> bool {
        let mut kept = Line::EMPTY;
        let mut found = false;
        while let Some(slot) = self.pop_front(line) {
            if slot == id {
                found = true;
            } else {
                self.push_back(&mut kept, slot);
            }
        }
        *line = kept;
        found
    }
}

impl Index<SlotId> for Slots {
    type Output = Slot;

    #[inline]
    fn index(&self, id: SlotId) -> &Slot {
        &self.slots[usize::from(id.0)]
    }
}

impl IndexMut<SlotId> for Slots {
    #[inline]
    fn index_mut(&mut self, id: SlotId) -> &mut Slot {
        &mut self.slots[usize::from(id.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slab_and_lines() {
        let mut slots = Slots::new(4);
        let ids: Vec<_> = (0..4).map(|_| slots.take().unwrap()).collect();
        assert!(slots.take().is_none());
        let (mut line, mut front) = (Line::EMPTY, Line::EMPTY);
        for id in &ids[1..] {
            slots.push_back(&mut line, *id);
        }
        assert!(slots.remove(&mut line, ids[2]));
        assert!(!slots.remove(&mut line, ids[2]));
        slots.push_back(&mut front, ids[0]);
        slots.push_back(&mut front, ids[2]);
        slots.prepend(&mut line, &mut front);
        assert!(front.is_empty());
        let order: Vec<_> = core::iter::from_fn(|| slots.pop_front(&mut line)).collect();
        assert_eq!(order, [ids[0], ids[2], ids[1], ids[3]]);
        assert!(line.is_empty());
        let old = slots.token(7, ids[3]);
        slots.put(ids[3]);
        assert_eq!(slots.used(), 3);
        let again = slots.take().unwrap();
        assert_eq!(again, ids[3]);
        assert_ne!(slots.token(7, again), old, "the generation differs");
    }

    #[test]
    fn a_command_in_flight_is_never_freed() {
        assert_eq!(State::InFlight.after(Step::Free), None);
        assert_eq!(State::InFlight.after(Step::Answer), None);
        assert_eq!(State::Free.after(Step::Free), Some(State::Free));
    }
}
