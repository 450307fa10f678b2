//! The namespaces as one core sees them: channels, and what the control side said about each.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use aio::{Capabilities, Completion, DeviceError, Instant, IoChannel, Sleep, Token};
use nvme::reservation::Access;
use nvme::{Nsid, Status};

use super::super::ana::{AnaTable, ListenerId};
use super::super::board::{Ack, Attach, SubsystemId};
use super::super::counters::IoCounters;
use super::super::ns::NsInfo;

/// Names an open namespace: place in the table, and how often the place was used before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SpaceRef {
    pub(super) index: u16,
    generation: u16,
}

impl SpaceRef {
    /// No namespace.
    pub(super) const NONE: Self = Self { index: u16::MAX, generation: 0 };
}

/// One namespace with its channel on this core.
pub(super) struct Space {
    subsystem: SubsystemId,
    pub(super) info: NsInfo,
    pub(super) channel: Box<dyn IoChannel>,
    pub(super) counters: Arc<IoCounters>,
    /// Who may do what, while there is a reservation.
    pub(super) access: Option<Arc<Access>>,
    /// Reads may come without a buffer.
    pub(super) lends: bool,
    /// Alignment of payload addresses minus one.
    pub(super) align_mask: usize,
    /// Most entries of one list.
    pub(super) max_sg: usize,
    /// I/Os that the device has.
    pub(super) in_flight: u32,
    /// Answers of the device with memory that was not given back.
    pub(super) lends_out: u32,
    /// It is in the list of spaces with I/O in flight.
    listed: bool,
    /// It answered Busy and is not ready since.
    pub(super) busy: bool,
    /// Being closed: nothing new, and this is to be told when it is over.
    leaving: Option<Ack>,
    closed: bool,
    /// Since when something is in flight.
    active_since: Instant,
}

impl Space {
    fn idle(&self) -> bool {
        self.in_flight == 0 && self.lends_out == 0
    }
}

struct Place {
    space: Option<Space>,
    generation: u16,
}

/// A subsystem: where its namespaces stand.
#[derive(Default)]
struct Subsystem {
    /// Places, sorted by nsid.
    by_nsid: Vec<(Nsid, u16)>,
    ana: AnaTable,
    paused: bool,
    pause_ack: Option<Ack>,
    /// When the pause has to be over, and its number; until that was reported.
    pause_limit: Option<(Instant, u64)>,
}

/// A change of rights that is in effect for new commands, and waits for old ones.
pub(super) struct Fence {
    /// Commands that the device had when it came, and that it has to complete first.
    pub(super) tokens: Vec<Token>,
    pub(super) ack: Ack,
}

type Opening = Pin<Box<dyn Future<Output = Result<Box<dyn IoChannel>, DeviceError>>>>;

/// All namespaces of a core.
#[derive(Default)]
pub(super) struct Spaces {
    places: Vec<Place>,
    subsystems: Vec<Option<Subsystem>>,
    /// Spaces with I/O in flight.
    active: Vec<u16>,
    opening: Vec<(Opening, Attach, Ack)>,
    leaving: u32,
    pausing: u32,
    /// Changes of rights that wait for commands which they forbid.
    pub(super) fences: Vec<Fence>,
    /// Some commands that wait may go on now.
    pub(super) retry: bool,
}

impl Spaces {
    // Hot path.

    /// The namespace that a command of `subsystem`, which came through `listener`, names.
    #[inline]
    pub(super) fn find(
        &self,
        subsystem: SubsystemId,
        nsid: Nsid,
        listener: ListenerId,
    ) -> Result<SpaceRef, Status> {
        let entry = self.subsystem(subsystem).ok_or(Status::INVALID_NAMESPACE)?;
        let found = entry.by_nsid.binary_search_by_key(&nsid, |(id, _)| *id);
        let index = entry.by_nsid[found.map_err(|_| Status::INVALID_NAMESPACE)?].1;
        let place = &self.places[usize::from(index)];
        let space = place.space.as_ref().ok_or(Status::INVALID_NAMESPACE)?;
        if let Some(refusal) = entry.ana.state(listener, space.info.ana_group).refusal() {
            return Err(refusal);
        }
        Ok(SpaceRef { index, generation: place.generation })
    }

    /// The namespace, unless it left.
    #[inline]
    pub(super) fn get(&mut self, at: SpaceRef) -> Option<&mut Space> {
        let place = self.places.get_mut(usize::from(at.index)).filter(|p| p.generation == at.generation)?;
        place.space.as_mut().filter(|s| s.leaving.is_none())
    }

    /// The namespace, also while it is leaving: for what is in flight there.
    #[inline]
    pub(super) fn any(&mut self, at: SpaceRef) -> &mut Space {
        let place = &mut self.places[usize::from(at.index)];
        place.space.as_mut().expect("invariant: a namespace with I/O in flight or lent memory stays open")
    }

    /// Whether a command that came through `listener` may be executed now: `Ok(false)` while the control side holds
    /// the commands of this namespace back. Asked when it is executed, however long it stood in line: an ANA state
    /// that was set meanwhile holds for it as well.
    #[inline]
    pub(super) fn admits(&self, at: SpaceRef, listener: ListenerId) -> Result<bool, Status> {
        let space = self.places.get(usize::from(at.index)).and_then(|place| place.space.as_ref());
        // Commands of no namespace pass; what to do about one that left is for `get` to say.
        let Some(space) = space else { return Ok(true) };
        let Some(entry) = self.subsystem(space.subsystem) else { return Ok(true) };
        match entry.ana.state(listener, space.info.ana_group).refusal() {
            Some(refusal) => Err(refusal),
            None => Ok(!entry.paused),
        }
    }

    /// Notes that the device accepted an I/O.
    #[inline]
    pub(super) fn submitted(&mut self, at: SpaceRef, now: Instant) {
        let space = self.any(at);
        if space.in_flight == 0 {
            space.active_since = now;
        }
        space.in_flight += 1;
        if !space.listed {
            space.listed = true;
            self.active.push(at.index);
        }
    }

    /// Notes that the device answered Busy.
    pub(super) fn answered_busy(&mut self, at: SpaceRef) {
        let space = self.any(at);
        space.busy = true;
        if !space.listed {
            space.listed = true;
            self.active.push(at.index);
        }
    }

    /// Has every device work on what it was given.
    pub(super) fn kick(&mut self) {
        for index in &self.active {
            if let Some(space) = &mut self.places[usize::from(*index)].space {
                space.channel.kick();
            }
        }
    }

    /// How many namespaces may have completions.
    pub(super) fn active_count(&self) -> usize {
        self.active.len()
    }

    /// Moves at most `budget` completions of the `nth` active namespace into `out`.
    #[inline]
    pub(super) fn poll(&mut self, nth: usize, out: &mut Vec<Completion>, budget: usize) -> usize {
        let Some(space) = &mut self.places[usize::from(self.active[nth])].space else { return 0 };
        if space.busy && space.channel.take_ready() {
            space.busy = false;
            self.retry = true;
        }
        space.channel.poll(out, budget)
    }

    /// Forgets active namespaces that have nothing in flight any more.
    pub(super) fn settle(&mut self, now: Instant) {
        let (places, active) = (&mut self.places, &mut self.active);
        active.retain(|index| {
            let Some(space) = &mut places[usize::from(*index)].space else { return false };
            // One that answered Busy with nothing in flight becomes ready without a completion.
            space.listed = space.in_flight > 0 || space.busy;
            if space.in_flight == 0 && space.active_since != Instant::default() {
                space.counters.busy(now.since(space.active_since).as_nanos() as u64);
                space.active_since = Instant::default();
            }
            space.listed
        });
    }

    // Before sleep.

    /// Arms the interrupts of all channels with I/O in flight.
    pub(super) fn prepare_sleep(&mut self) -> Sleep {
        let mut sleep = Sleep::Armed;
        if !self.opening.is_empty()
            || self.leaving > 0
            || self.pausing > 0
            || !self.fences.is_empty()
            || self.retry
        {
            return Sleep::KeepPolling;
        }
        for index in &self.active {
            let Some(space) = &mut self.places[usize::from(*index)].space else { continue };
            match (space.channel.prepare_sleep(), sleep) {
                (Sleep::KeepPolling, _) => return Sleep::KeepPolling,
                (Sleep::Until(a), Sleep::Until(b)) => sleep = Sleep::Until(a.min(b)),
                (Sleep::Until(a), _) => sleep = Sleep::Until(a),
                (Sleep::Armed, _) => {}
            }
        }
        sleep
    }

    // Orders of the control side.

    fn subsystem(&self, id: SubsystemId) -> Option<&Subsystem> {
        self.subsystems.get(id.0 as usize)?.as_ref()
    }

    fn subsystem_mut(&mut self, id: SubsystemId) -> &mut Subsystem {
        let index = id.0 as usize;
        if self.subsystems.len() <= index {
            self.subsystems.resize_with(index + 1, || None);
        }
        self.subsystems[index].get_or_insert_default()
    }

    /// Begins to open a namespace.
    pub(super) fn attach(&mut self, attach: Attach, ack: Ack) {
        let device = attach.device.clone();
        let future = Box::pin(async move { device.open_channel().await });
        self.opening.push((future, attach, ack));
    }

    /// Advances channels that are being opened and closed; returns how many came to an end.
    pub(super) fn advance(&mut self) -> usize {
        let mut done = 0;
        if !self.opening.is_empty() {
            // The futures are polled every turn, so nobody needs to be woken.
            let mut cx = Context::from_waker(Waker::noop());
            let mut i = 0;
            while i < self.opening.len() {
                let Poll::Ready(result) = self.opening[i].0.as_mut().poll(&mut cx) else {
                    i += 1;
                    continue;
                };
                let (_, attach, ack) = self.opening.remove(i);
                done += 1;
                match result {
                    Ok(channel) => {
                        self.insert(attach, channel);
                        ack.done();
                    }
                    Err(why) => ack.fail(why),
                }
            }
        }
        if self.pausing > 0 {
            done += self.advance_pauses();
        }
        if self.leaving > 0 {
            done += self.advance_leaving();
        }
        done
    }

    fn insert(&mut self, attach: Attach, channel: Box<dyn IoChannel>) {
        let geometry = attach.device.geometry();
        let nsid = attach.info.nsid;
        let space = Space {
            subsystem: attach.subsystem,
            info: attach.info,
            channel,
            counters: attach.counters,
            access: attach.access,
            lends: attach.device.capabilities().contains(Capabilities::LENDS),
            align_mask: geometry.buf_align.max(1) as usize - 1,
            max_sg: usize::from(geometry.max_sg),
            in_flight: 0,
            lends_out: 0,
            listed: false,
            busy: false,
            leaving: None,
            closed: false,
            active_since: Instant::default(),
        };
        let free = self.places.iter().position(|p| p.space.is_none());
        let index = free.unwrap_or_else(|| {
            self.places.push(Place { space: None, generation: 0 });
            self.places.len() - 1
        });
        let place = &mut self.places[index];
        place.generation = place.generation.wrapping_add(1);
        place.space = Some(space);
        let list = &mut self.subsystem_mut(attach.subsystem).by_nsid;
        let at = list.partition_point(|(id, _)| *id < nsid);
        list.insert(at, (nsid, index as u16));
    }

    /// Refuses new commands for a namespace and closes it when nothing of it is left.
    pub(super) fn detach(&mut self, subsystem: SubsystemId, nsid: Nsid, ack: Ack) {
        // An open that has not come to an end is dropped, which opens nothing; its acknowledgement says so.
        self.opening.retain(|(_, a, _)| (a.subsystem, a.info.nsid) != (subsystem, nsid));
        let list = &mut self.subsystem_mut(subsystem).by_nsid;
        let Some(at) = list.iter().position(|(id, _)| *id == nsid) else { return ack.done() };
        let (_, index) = list.remove(at);
        if let Some(space) = &mut self.places[usize::from(index)].space {
            space.leaving = Some(ack);
            self.leaving += 1;
            // Commands that wait for it have to be told.
            self.retry = true;
        }
    }

    fn advance_leaving(&mut self) -> usize {
        let mut done = 0;
        for place in &mut self.places {
            let Some(space) = place.space.as_mut().filter(|s| s.leaving.is_some() && s.idle()) else {
                continue;
            };
            if !space.closed {
                space.channel.close();
                space.closed = true;
            }
            if space.channel.drained()
                && let Some(ack) = place.space.take().and_then(|s| s.leaving)
            {
                ack.done();
                self.leaving -= 1;
                done += 1;
            }
        }
        done
    }

    /// Adopts a new description.
    pub(super) fn update(&mut self, subsystem: SubsystemId, info: NsInfo, ack: Ack) {
        let list = &self.subsystem_mut(subsystem).by_nsid;
        let index = list.iter().find(|(id, _)| *id == info.nsid).map(|(_, index)| *index);
        if let Some(space) = index.and_then(|i| self.places[usize::from(i)].space.as_mut()) {
            space.info = info;
            // Commands that wait may have to be refused: the group is another one.
            self.retry = true;
        }
        for (_, attach, _) in &mut self.opening {
            if (attach.subsystem, attach.info.nsid) == (subsystem, info.nsid) {
                attach.info = info;
            }
        }
        ack.done();
    }

    /// Adopts new rights; `None` when no channel is open that they could be about.
    pub(super) fn set_access(
        &mut self,
        subsystem: SubsystemId,
        nsid: Nsid,
        access: Option<Arc<Access>>,
    ) -> Option<SpaceRef> {
        for (_, attach, _) in &mut self.opening {
            if (attach.subsystem, attach.info.nsid) == (subsystem, nsid) {
                attach.access = access.clone();
            }
        }
        let list = &self.subsystem_mut(subsystem).by_nsid;
        let (_, index) = *list.iter().find(|(id, _)| *id == nsid)?;
        let place = &mut self.places[usize::from(index)];
        place.space.as_mut()?.access = access;
        // Commands that wait are judged anew.
        self.retry = true;
        Some(SpaceRef { index, generation: place.generation })
    }

    /// Adopts new ANA states.
    pub(super) fn set_ana(&mut self, subsystem: SubsystemId, table: AnaTable, ack: Ack) {
        self.subsystem_mut(subsystem).ana = table;
        // Commands that wait may have to be refused.
        self.retry = true;
        ack.done();
    }

    /// Holds back what is not in flight, and acknowledges when nothing is.
    pub(super) fn pause(&mut self, subsystem: SubsystemId, number: u64, until: Instant, ack: Ack) {
        let entry = self.subsystem_mut(subsystem);
        entry.paused = true;
        entry.pause_limit = Some((until, number));
        if entry.pause_ack.replace(ack).is_none() {
            self.pausing += 1;
        }
    }

    fn advance_pauses(&mut self) -> usize {
        let mut done = 0;
        for entry in self.subsystems.iter_mut().flatten().filter(|e| e.pause_ack.is_some()) {
            let places = &self.places;
            let idle =
                |(_, index): &(Nsid, u16)| places[usize::from(*index)].space.as_ref().is_none_or(Space::idle);
            if entry.by_nsid.iter().all(idle)
                && let Some(ack) = entry.pause_ack.take()
            {
                ack.done();
                self.pausing -= 1;
                done += 1;
            }
        }
        done
    }

    /// A pause that has come to its limit; each is reported once.
    pub(super) fn expired_pause(&mut self, now: Instant) -> Option<(SubsystemId, u64)> {
        let (index, entry) = self
            .subsystems
            .iter_mut()
            .enumerate()
            .filter_map(|(index, entry)| Some((index, entry.as_mut()?)))
            .find(|(_, entry)| entry.pause_limit.is_some_and(|(until, _)| until <= now))?;
        let (_, number) = entry.pause_limit.take()?;
        Some((SubsystemId(index as u32), number))
    }

    /// When the next pause comes to its limit.
    pub(super) fn pause_deadline(&self) -> Option<Instant> {
        self.subsystems.iter().flatten().filter_map(|entry| Some(entry.pause_limit?.0)).min()
    }

    /// Lets commands go on.
    pub(super) fn resume(&mut self, subsystem: SubsystemId, ack: Ack) {
        let entry = self.subsystem_mut(subsystem);
        entry.paused = false;
        entry.pause_limit = None;
        if let Some(pause) = entry.pause_ack.take() {
            // Undone before it was complete: the drop tells that it did not happen.
            drop(pause);
            self.pausing -= 1;
        }
        self.retry = true;
        ack.done();
    }

    /// Forgets a subsystem.
    pub(super) fn forget(&mut self, subsystem: SubsystemId, ack: Ack) {
        if let Some(place) = self.subsystems.get_mut(subsystem.0 as usize)
            && let Some(old) = place.take()
            && old.pause_ack.is_some()
        {
            self.pausing -= 1;
        }
        ack.done();
    }

    // For a Flush of all namespaces.

    /// The namespace of `subsystem` with the lowest nsid above `nsid`.
    pub(super) fn next_nsid(&self, subsystem: SubsystemId, nsid: Nsid) -> Option<Nsid> {
        let entry = self.subsystem(subsystem)?;
        entry.by_nsid.iter().map(|(id, _)| *id).filter(|id| *id > nsid && *id != Nsid::BROADCAST).min()
    }

    /// The nsid of a namespace.
    pub(super) fn nsid_of(&mut self, at: SpaceRef) -> Nsid {
        self.any(at).info.nsid
    }
}
