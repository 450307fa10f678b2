//! How the home core's decisions reach the channels: as calls that run on their cores between turns, and answer.

use core::time::Duration;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use aio::{BlockDevice, Core, DeviceError, IoStatus};

use super::fan::is_conflict;
use super::inner::{Gate, Inner};
use super::link::Link;
use super::slot::{Slot, Step};
use crate::child::{MAX_CHILDREN, Mask, places};
use crate::dirty::Logs;
use crate::layout;

/// How often a drain looks again.
const LOOK_EVERY: Duration = Duration::from_micros(50);

thread_local! {
    static CHANNELS: RefCell<HashMap<u64, Weak<RefCell<Inner>>>> = RefCell::default();
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// Names a channel on its core.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PeerId(u64);

/// What becomes of the I/Os that wait for the home core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Those go whose children are no members any more, or stay although they failed; the others are reported again.
    Settle,
    /// They stay: no child is left to answer them.
    Wait,
    /// They are done over, by the members that there are now.
    Repeat,
    /// They fail with this.
    Fail(IoStatus),
}

/// What a channel is to be like.
#[derive(Clone)]
pub(crate) struct Table {
    /// Members, by place.
    pub(crate) devices: Vec<(usize, Arc<dyn BlockDevice>)>,
    /// Of those, the ones that have every acknowledged write.
    pub(crate) synced: Mask,
    /// Of those, a child that stays whatever it answers: the last one.
    pub(crate) kept: Mask,
    /// What children that are away miss.
    pub(crate) logs: Logs,
    pub(crate) gate: Gate,
    pub(crate) verdict: Verdict,
}

/// A channel does not have a child's channel.
#[derive(Debug)]
pub(crate) struct OpenFailed {
    /// The child's.
    pub(crate) place: usize,
    /// Why.
    pub(crate) source: DeviceError,
}

/// Makes a channel known on this core.
pub(super) fn register(inner: &Rc<RefCell<Inner>>) -> PeerId {
    let id = NEXT.get();
    NEXT.set(id + 1);
    CHANNELS.with_borrow_mut(|c| c.insert(id, Rc::downgrade(inner)));
    PeerId(id)
}

/// The channel goes.
pub(super) fn unregister(peer: PeerId) {
    // Fails only while the thread ends, with everything that is on it.
    let _ = CHANNELS.try_with(|c| c.borrow_mut().remove(&peer.0));
}

fn find(peer: PeerId) -> Option<Rc<RefCell<Inner>>> {
    CHANNELS.with_borrow(|c| c.get(&peer.0).and_then(Weak::upgrade))
}

/// Stops admission on a channel of this core. Answers which children have failed I/Os that wait, and what these said.
pub(crate) fn freeze(peer: PeerId) -> Vec<(usize, IoStatus)> {
    let Some(inner) = find(peer) else { return Vec::new() };
    let mut inner = inner.borrow_mut();
    inner.gate = Gate::Frozen;
    let mut failed: [Option<IoStatus>; MAX_CHILDREN] = [None; MAX_CHILDREN];
    for &index in &inner.parked {
        let slot = &inner.slots[index as usize];
        for place in places(slot.failed) {
            let noted = failed[place].get_or_insert(slot.answers[place]);
            if is_conflict(slot.answers[place]) {
                *noted = slot.answers[place];
            }
        }
    }
    failed.iter().enumerate().filter_map(|(place, f)| f.map(|f| (place, f))).collect()
}

/// Resolves when no I/O of a channel of this core is on its way: each has completed, or waits for its blocks or for the
/// home core. For a frozen channel.
pub(crate) async fn quiet(peer: PeerId) {
    let core = Core::current().expect("invariant: calls run on a core");
    loop {
        let busy = find(peer).is_some_and(|inner| {
            let inner = inner.borrow();
            inner.slots.iter().any(|s| s.used && !s.parked && !s.waits)
        });
        if !busy {
            return;
        }
        core.sleep(LOOK_EVERY).await;
    }
}

/// Resolves when every change that a channel of this core had begun when it was called has ended, well or not.
pub(crate) async fn passed(peer: PeerId) {
    let core = Core::current().expect("invariant: calls run on a core");
    let Some(begun) = find(peer).map(|inner| inner.borrow().changes()) else { return };
    while find(peer).is_some_and(|inner| inner.borrow().has_any(&begun)) {
        core.sleep(LOOK_EVERY).await;
    }
}

/// Resolves when a channel of this core has nothing of the child at `place` any more.
pub(crate) async fn gone(peer: PeerId, place: usize) {
    let core = Core::current().expect("invariant: calls run on a core");
    // A channel without I/O is not polled by its user: so it is looked at here.
    while find(peer).is_some_and(|inner| inner.borrow_mut().still_has(place)) {
        core.sleep(LOOK_EVERY.saturating_mul(20)).await;
    }
}

/// Makes a channel of this core as `table` says. On an error nothing but further children's channels has changed.
pub(crate) async fn apply(peer: PeerId, table: Table) -> Result<(), OpenFailed> {
    for (place, device) in &table.devices {
        let Some(inner) = find(peer) else { return Ok(()) };
        if inner.borrow().links[*place].is_some() {
            continue;
        }
        let opened = device.open_channel().await;
        let channel = opened.map_err(|source| OpenFailed { place: *place, source })?;
        let offset = layout::offset_blocks(device.geometry().block_bytes);
        let unmaps =
            device.capabilities().contains(aio::Capabilities::UNMAP | aio::Capabilities::UNMAP_ZEROES);
        let link = Link::new(channel, offset, unmaps, layout::is_local(&**device));
        inner.borrow_mut().links[*place] = Some(link);
    }
    if let Some(inner) = find(peer) {
        inner.borrow_mut().adopt(&table);
    }
    Ok(())
}

impl Inner {
    /// Changes that the children may have: slot and use of it.
    fn changes(&self) -> Vec<(u32, u32)> {
        let begun = |(_, slot): &(usize, &Slot)| slot.used && !slot.waits && slot.step != Step::Read;
        let slots = self.slots.iter().enumerate().filter(begun);
        slots.map(|(index, slot)| (index as u32, slot.generation)).collect()
    }

    /// Whether one of `changes` goes on.
    fn has_any(&self, changes: &[(u32, u32)]) -> bool {
        let goes_on = |&(index, generation): &(u32, u32)| {
            let slot = &self.slots[index as usize];
            slot.used && slot.generation == generation
        };
        changes.iter().any(goes_on)
    }

    fn adopt(&mut self, table: &Table) {
        let members = table.devices.iter().fold(0, |mask: Mask, (place, _)| mask | 1 << place);
        for place in places(!members) {
            self.let_go(place, table);
        }
        self.members = members;
        self.synced = table.synced & members;
        self.kept = table.kept & self.synced;
        self.logs = table.logs.clone();
        self.gate = table.gate;
        self.judge(table.verdict);
    }

    /// The child at `place` is no member.
    fn let_go(&mut self, place: usize, table: &Table) {
        let Some(link) = self.links[place].as_mut().filter(|l| !l.leaving) else { return };
        link.leaving = true;
        link.backlog.clear();
        link.channel.close();
        self.failures[place] = None;
        let bit = 1 << place;
        for index in 0..self.slots.len() as u32 {
            let slot = &mut self.slots[index as usize];
            if !slot.used {
                continue;
            }
            if slot.step == Step::Change {
                // Whatever is on its way may not have reached it.
                table.logs.mark(slot.at);
            }
            // What was to be offered to it is not any more: a read goes to another one.
            slot.pending &= !bit;
        }
    }

    /// What waits for the home core, goes, or goes on waiting.
    fn judge(&mut self, verdict: Verdict) {
        // What was only to be offered to a child that went has nobody to wait for.
        for index in 0..self.slots.len() as u32 {
            let slot = &mut self.slots[index as usize];
            if slot.used && !slot.parked && !slot.waits && slot.is_answered() {
                slot.parked = true;
                self.parked.push(index);
            }
        }
        if verdict == Verdict::Wait {
            return;
        }
        let mut parked = core::mem::take(&mut self.parked);
        for index in parked.drain(..) {
            let slot = &mut self.slots[index as usize];
            slot.parked = false;
            match verdict {
                Verdict::Fail(status) => self.complete(index, status, 0),
                _ if slot.fenced => self.park(index),
                Verdict::Repeat => self.launch(index),
                Verdict::Settle | Verdict::Wait if slot.step == Step::Change => self.settle(index),
                Verdict::Settle | Verdict::Wait => self.launch(index),
            }
        }
        // What was parked again meanwhile stands in the new list.
        parked.append(&mut self.parked);
        self.parked = parked;
    }
}
