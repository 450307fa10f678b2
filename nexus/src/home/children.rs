//! Children come, go, and come back.

use std::rc::Rc;
use std::sync::Arc;

use aio::{BlockCount, BlockDevice, Descriptor};
use uuid::Uuid;

use super::{Child, Home, Life};
use crate::channel::Verdict;
use crate::child::{ChildState, Fault, MAX_CHILDREN};
use crate::dirty::DirtyMap;
use crate::error::NexusError;
use crate::fencing;
use crate::layout;
use crate::membership::Record;
use crate::rebuild::{self, Job, RebuildState, RebuildStats};

/// A device that is to be a child.
pub(crate) struct NewChild {
    pub(crate) uri: String,
    pub(crate) device: Arc<dyn BlockDevice>,
    /// Its identity in the record.
    pub(crate) uuid: Uuid,
}

impl Home {
    /// Adds a child, which lacks everything.
    pub(crate) async fn add_child(self: &Rc<Self>, new: NewChild) -> Result<(), NexusError> {
        self.check_open("add a child to")?;
        self.check_fits(&new)?;
        // Another host answers this: no decision waits for it.
        self.reserve(&new.uri, &*new.device).await?;
        let _pass = self.gate.enter().await;
        self.check_open("add a child to")?;
        self.check_fits(&new)?;
        let place = self.free_place(&new)?;
        let mut record = self.state.borrow().record.clone();
        record.add(new.uuid, false);
        self.save(record).await?;
        self.account_for(&*new.device).await;
        {
            let mut state = self.state.borrow_mut();
            state.order.push(place);
            state.children[place] = Some(Child {
                uri: new.uri,
                device: new.device,
                uuid: new.uuid,
                state: ChildState::OutOfSync,
                fault_time: None,
                log: None,
                written: self.note_writes(),
                job: None,
                leaving: std::cell::Cell::new(0),
                events: None,
            });
        }
        self.watch(place);
        self.join(place).await
    }

    /// A map of what hosts change from now on, for a child that is to become a member.
    pub(super) fn note_writes(&self) -> Option<Arc<DirtyMap>> {
        Some(Arc::new(DirtyMap::clean(self.shared.size(), self.shared.geometry.block_bytes)))
    }

    /// Reserves a device that is to be a child, where that is asked for.
    async fn reserve(&self, uri: &str, device: &dyn BlockDevice) -> Result<(), NexusError> {
        let Some(reservation) = &self.shared.reservation else { return Ok(()) };
        let reserved = fencing::reserve(device, reservation).await;
        reserved.map_err(|why| NexusError::unreserved(self.name(), uri.to_owned(), why))
    }

    fn check_fits(&self, new: &NewChild) -> Result<(), NexusError> {
        let (nexus, child) = (self.name(), new.uri.clone());
        let geometry = new.device.geometry();
        if geometry.block_bytes != self.shared.geometry.block_bytes {
            return Err(NexusError::BlockSize {
                nexus,
                child,
                block_bytes: geometry.block_bytes,
                expected_bytes: self.shared.geometry.block_bytes,
            });
        }
        let block_bytes = u64::from(geometry.block_bytes);
        let needed = layout::offset_blocks(geometry.block_bytes) + self.shared.size().0;
        let state = self.state.borrow();
        let known = |c: &Child| c.uri == new.uri || c.device.name() == new.device.name();
        if state.children.iter().flatten().any(known) {
            return Err(NexusError::ChildExists { nexus, child });
        }
        let smallest = state.children.iter().flatten().map(|c| c.device.size().0).min().unwrap_or(0);
        if layout::last_usable(&*new.device).is_none_or(|last| last < needed)
            || new.device.size().0 < smallest
        {
            let (size_bytes, needed_bytes) =
                (new.device.size().0 * block_bytes, needed.max(smallest) * block_bytes);
            return Err(NexusError::TooSmall { nexus, child, size_bytes, needed_bytes });
        }
        if let Some(lacks) = layout::lacks(self.shared.capabilities, new.device.capabilities()) {
            return Err(NexusError::Lacks { nexus, child, lacks });
        }
        Ok(())
    }

    fn free_place(&self, new: &NewChild) -> Result<usize, NexusError> {
        let state = self.state.borrow();
        state.children.iter().position(Option::is_none).ok_or_else(|| NexusError::TooManyChildren {
            nexus: self.name(),
            child: new.uri.clone(),
            most: MAX_CHILDREN,
        })
    }

    async fn save(&self, record: Record) -> Result<(), NexusError> {
        let saved = self.store.save(&record).await;
        saved.map_err(|source| NexusError::Membership { nexus: self.name(), source })?;
        self.state.borrow_mut().record = record;
        Ok(())
    }

    /// The child at `place`, which the state says is a member, becomes one. What is on its way does not reach it, and is
    /// marked as missed (a new child misses everything); the rebuild begins later, and waits for its range locks.
    async fn join(self: &Rc<Self>, place: usize) -> Result<(), NexusError> {
        let table = self.table(Verdict::Settle);
        let Err(failed) = self.apply(&table).await else { return Ok(()) };
        let uri = self.uri_of(failed.place);
        self.mark_out(place, ChildState::Faulted(Fault::CantOpen));
        self.settle(Verdict::Settle).await;
        Err(NexusError::OpenChild { nexus: self.name(), child: uri, source: failed.source })
    }

    fn uri_of(&self, place: usize) -> String {
        self.state.borrow().children[place].as_ref().map(|c| c.uri.clone()).unwrap_or_default()
    }

    fn place_of(&self, uri: &str) -> Result<usize, NexusError> {
        let state = self.state.borrow();
        let found = state.children.iter().position(|c| c.as_ref().is_some_and(|c| c.uri == uri));
        found.ok_or_else(|| NexusError::ChildNotFound { nexus: self.name(), child: uri.to_owned() })
    }

    /// The state of a child that takes no part.
    fn state_outside(&self, place: usize) -> Option<ChildState> {
        self.state.borrow().children[place].as_ref().filter(|c| !c.is_member()).map(|c| c.state)
    }

    /// Refuses to go on without the child at `place`, if it is the last one in sync.
    fn check_not_last(&self, place: usize) -> Result<(), NexusError> {
        let last = self.is_last_synced(place) || self.state.borrow().order.len() == 1;
        if last {
            return Err(NexusError::LastHealthy { nexus: self.name(), child: self.uri_of(place) });
        }
        Ok(())
    }

    /// Takes a child out for good. One that is not there is fine.
    pub(crate) async fn remove_child(self: &Rc<Self>, uri: &str) -> Result<(), NexusError> {
        let _pass = self.gate.enter().await;
        self.check_open("remove a child from")?;
        let Ok(place) = self.place_of(uri) else { return Ok(()) };
        self.check_not_last(place)?;
        self.freeze().await;
        let (mut record, uuid) = {
            let state = self.state.borrow();
            (state.record.clone(), state.children[place].as_ref().map(|c| c.uuid).unwrap_or_default())
        };
        record.remove(uuid);
        if let Err(e) = self.save(record).await {
            self.settle(Verdict::Settle).await;
            return Err(e);
        }
        let job = self.job_at(place);
        self.mark_out(place, ChildState::Closed);
        if let Some(child) = &mut self.state.borrow_mut().children[place] {
            child.log = None;
        }
        self.settle(Verdict::Settle).await;
        if let Some(job) = job {
            job.until(|j| j.at_work.get() == 0).await;
        }
        while self.state.borrow().children[place].as_ref().is_some_and(|c| c.leaving.get() > 0) {
            self.core.sleep(LOOK_EVERY).await;
        }
        self.forget_in_account(place).await;
        let mut state = self.state.borrow_mut();
        state.children[place] = None;
        state.order.retain(|&p| p != place);
        Ok(())
    }

    /// Takes a child out of use, as a client asks.
    pub(crate) async fn fault_child(self: &Rc<Self>, uri: &str, fault: Fault) -> Result<(), NexusError> {
        let _pass = self.gate.enter().await;
        self.check_open("take a child out of use in")?;
        let place = self.place_of(uri)?;
        self.check_not_last(place)?;
        if let Some(state) = self.state_outside(place) {
            let (op, nexus, child) = ("take out of use", self.name(), uri.to_owned());
            return Err(NexusError::ChildState { op, nexus, child, state: state.to_string() });
        }
        self.freeze().await;
        if let Err(source) = self.take_out(1 << place, |_| fault).await {
            self.end(Life::Shutdown).await;
            return Err(NexusError::Membership { nexus: self.name(), source });
        }
        self.settle(Verdict::Settle).await;
        Ok(())
    }

    /// Takes a child back into use: out of sync, unless it is the one that everybody waits for. Its device is opened anew
    /// as `device`. True when it is to be rebuilt.
    pub(crate) async fn online_child(
        self: &Rc<Self>,
        uri: &str,
        device: Arc<dyn BlockDevice>,
    ) -> Result<bool, NexusError> {
        self.check_open("take a child back into use in")?;
        self.place_of(uri)?;
        self.reserve(uri, &*device).await?;
        let _pass = self.gate.enter().await;
        self.check_open("take a child back into use in")?;
        let place = self.place_of(uri)?;
        let (state, healthy, leaving) = {
            let home = self.state.borrow();
            let child = home.children[place].as_ref().expect("invariant: it was just found");
            let healthy = home.record.children.iter().any(|c| c.uuid == child.uuid && c.healthy);
            (child.state, healthy, child.leaving.get() > 0)
        };
        let refused = |state: String| {
            let op = "take back into use";
            Err(NexusError::ChildState { op, nexus: self.name(), child: uri.to_owned(), state })
        };
        let lost = self.state.borrow().life == Life::Lost;
        match state {
            ChildState::Online | ChildState::OutOfSync => return Ok(false),
            ChildState::Faulted(f) if !(f.is_recoverable() || lost && healthy) => {
                return refused(state.to_string());
            }
            _ if leaving => return refused("still being closed".into()),
            _ if lost && !healthy => return refused("not the one that has everything".into()),
            ChildState::Closed | ChildState::Faulted(_) => {}
        }
        let returns = lost && healthy;
        let known = self.known_of(place, &*device);
        if returns && known.is_none() {
            return refused("opened anew, and may have lost writes that it had acknowledged".into());
        }
        {
            let mut home = self.state.borrow_mut();
            let child = home.children[place].as_mut().expect("invariant: it was just found");
            child.device = device;
            child.fault_time = None;
            child.state = if returns { ChildState::Online } else { ChildState::OutOfSync };
            child.log = known.filter(|_| !returns);
            child.written = self.note_writes().filter(|_| !returns);
            if returns {
                home.life = Life::Open;
            }
        }
        self.watch(place);
        if !returns {
            self.join(place).await?;
            return Ok(true);
        }
        let table = self.table(Verdict::Repeat);
        if let Err(failed) = self.apply(&table).await {
            self.state.borrow_mut().life = Life::Lost;
            self.mark_out(place, state);
            self.settle(Verdict::Wait).await;
            return Err(NexusError::OpenChild {
                nexus: self.name(),
                child: uri.to_owned(),
                source: failed.source,
            });
        }
        Ok(false)
    }

    /// What the child at `place` is known to have missed, when its device forgot nothing since it left.
    fn known_of(&self, place: usize, device: &dyn BlockDevice) -> Option<(Arc<DirtyMap>, u128)> {
        let state = self.state.borrow();
        let (log, incarnation) = state.children[place].as_ref()?.log.as_ref()?;
        (device.incarnation() == Some(*incarnation)).then(|| (log.clone(), *incarnation))
    }

    /// Begins to copy to a child what it lacks.
    pub(crate) async fn start_rebuild(self: &Rc<Self>, uri: &str) -> Result<(), NexusError> {
        let _pass = self.gate.enter().await;
        self.check_open("rebuild a child of")?;
        let place = self.place_of(uri)?;
        let (nexus, child) = (self.name(), uri.to_owned());
        if self.sources_for(place).is_empty() {
            return Err(NexusError::NoSource { nexus, child });
        }
        let job = {
            let mut state = self.state.borrow_mut();
            let target = state.children[place].as_mut().expect("invariant: it was just found");
            if target.job.is_some() {
                return Err(NexusError::RebuildExists { nexus, child });
            }
            if target.state != ChildState::OutOfSync {
                let (op, state) = ("rebuild", target.state.to_string());
                return Err(NexusError::ChildState { op, nexus, child, state });
            }
            let (size, block_bytes) = (self.shared.size(), self.shared.geometry.block_bytes);
            // A map of before a resize does not tell of what came after its end.
            let noted = target.written.clone().filter(|map| map.size() == size);
            let written = noted.unwrap_or_else(|| Arc::new(DirtyMap::all(size, block_bytes)));
            let job = Rc::new(Job::new(place, child, written, block_bytes, size.0));
            if let Some((map, _)) = target.log.take() {
                job.map.merge(&map);
                job.planned(true);
            }
            target.job = Some(job.clone());
            job
        };
        self.copy(job);
        Ok(())
    }

    /// Copies what is left of the job, from a child that has everything. False when there is none.
    fn copy(self: &Rc<Self>, job: Rc<Job>) -> bool {
        let sources = self.sources_for(job.place);
        let to = {
            let state = self.state.borrow();
            let from = sources.first().and_then(|(place, _)| state.children[*place].as_ref());
            let (Some(from), Some(to)) = (from, &state.children[job.place]) else { return false };
            job.read_from(sources[0].0, from.uri.clone());
            to.device.clone()
        };
        let home = self.clone();
        // Detached: the job says how it fares.
        drop(self.core.spawn(async move {
            if job.state() == RebuildState::Init {
                job.set_state(RebuildState::Running);
            }
            if !job.is_planned() {
                home.plan(&job, &*sources[0].1, &to).await;
            }
            let (core, shared) = (home.core.clone(), home.shared.clone());
            let copied = rebuild::run(core, shared, job.clone(), sources, to).await;
            if copied.as_ref().is_err_and(rebuild::CopyError::is_conflict) {
                home.fenced().await;
            }
            home.rebuilt(&job, copied.is_ok()).await;
        }));
        true
    }

    /// The children to copy from: local ones first.
    fn sources_for(&self, place: usize) -> Vec<(usize, Arc<dyn BlockDevice>)> {
        let state = self.state.borrow();
        let others = state.order.iter().filter(|p| **p != place);
        let children = others.filter_map(|p| Some((*p, state.children[*p].as_ref()?)));
        let online = children.filter(|(_, c)| c.state == ChildState::Online);
        let mut sources: Vec<_> = online.map(|(p, c)| (p, c.device.clone())).collect();
        sources.sort_by_key(|(_, device)| !layout::is_local(&**device));
        sources
    }

    /// The copying has ended.
    async fn rebuilt(self: &Rc<Self>, job: &Rc<Job>, well: bool) {
        let _pass = self.gate.enter().await;
        let current = self.job_at(job.place).is_some_and(|j| Rc::ptr_eq(&j, job));
        if current && !job.is_abandoned() && self.check_open("use").is_ok() {
            if job.has_lost_source() && self.copy(job.clone()) {
                return;
            }
            self.conclude(job, well && job.is_planned() && !job.has_lost_source()).await;
        }
        let mut state = self.state.borrow_mut();
        if let Some(child) = state.children[job.place].as_mut().filter(|_| current) {
            child.job = None;
        }
        state.history.add(job);
    }

    /// The child is in sync now, or cannot be.
    async fn conclude(self: &Rc<Self>, job: &Rc<Job>, well: bool) {
        let place = job.place;
        let mut record = self.state.borrow().record.clone();
        let uuid = self.state.borrow().children[place].as_ref().map(|c| c.uuid).unwrap_or_default();
        record.set_healthy(uuid, true);
        if well && self.enter_in_account(place).await && self.save(record).await.is_ok() {
            self.learn(place).await;
            job.set_state(RebuildState::Completed);
            if let Some(child) = self.state.borrow_mut().children[place].as_mut() {
                child.state = ChildState::Online;
                child.written = None;
            }
            // Its channels are open, so none fails to open.
            let table = self.table(Verdict::Settle);
            let _ = self.apply(&table).await;
            // From now on it has a past in common with the others again.
            self.mark_soon();
            self.write_pages_anew();
            return;
        }
        job.set_state(RebuildState::Failed);
        self.freeze().await;
        self.mark_out(place, ChildState::Faulted(Fault::RebuildFailed));
        self.settle(Verdict::Settle).await;
    }

    /// The child at `place` is in sync: notes its incarnation.
    async fn learn(&self, place: usize) {
        let (uuid, device) = {
            let state = self.state.borrow();
            let Some(child) = &state.children[place] else { return };
            (child.uuid, child.device.clone())
        };
        let mut notes = self.notes.borrow().clone();
        notes.learn(uuid, &*device);
        if *self.notes.borrow() != notes {
            self.notes.replace(notes.clone());
            // Without it, this child is taken for one that forgot something: more is copied one day.
            let _ = self.store.save_notes(&notes.text()).await;
        }
    }

    /// Rebuilds the members that are not in sync, when the nexus begins.
    pub(super) fn bring_into_sync(self: &Rc<Self>) {
        let home = self.clone();
        // Detached: the rebuilds say how they fare.
        drop(self.core.spawn(async move {
            let lacking: Vec<String> = {
                let state = home.state.borrow();
                let lacking = state.children.iter().flatten().filter(|c| c.state == ChildState::OutOfSync);
                lacking.map(|c| c.uri.clone()).collect()
            };
            for uri in lacking {
                // One that was begun by a request, or cannot be, is not this one's.
                let _ = home.start_rebuild(&uri).await;
            }
        }));
    }

    fn job_at(&self, place: usize) -> Option<Rc<Job>> {
        self.state.borrow().children[place].as_ref().and_then(|c| c.job.clone())
    }

    /// The rebuild of a child.
    pub(crate) fn job_of(&self, uri: &str) -> Result<Rc<Job>, NexusError> {
        let place = self.place_of(uri)?;
        self.job_at(place).ok_or_else(|| NexusError::NoRebuild { nexus: self.name(), child: uri.to_owned() })
    }

    /// Stops a rebuild; the child stays out of sync. None is fine.
    pub(crate) async fn stop_rebuild(self: &Rc<Self>, uri: &str) -> Result<(), NexusError> {
        let place = self.place_of(uri)?;
        let Some(job) = self.job_at(place) else { return Ok(()) };
        job.abandon();
        job.until(|j| j.at_work.get() == 0).await;
        if let Some(child) = self.state.borrow_mut().children[place].as_mut() {
            child.job = None;
        }
        Ok(())
    }

    /// Pauses a rebuild, or lets it go on.
    pub(crate) fn pause_rebuild(&self, uri: &str, pause: bool) -> Result<(), NexusError> {
        let job = self.job_of(uri)?;
        let (from, to, op) = if pause {
            (RebuildState::Running, RebuildState::Paused, "paused")
        } else {
            (RebuildState::Paused, RebuildState::Running, "resumed")
        };
        if job.state() != from && job.state() != to {
            return Err(NexusError::RebuildState {
                op,
                nexus: self.name(),
                child: uri.to_owned(),
                state: job.state().as_str(),
            });
        }
        job.set_state(to);
        Ok(())
    }

    pub(crate) fn rebuild_stats(&self, uri: &str) -> Result<RebuildStats, NexusError> {
        Ok(self.job_of(uri)?.stats())
    }

    pub(crate) fn history(&self) -> rebuild::History {
        self.state.borrow().history.clone()
    }

    /// Makes it larger: every child has to have room. The size that it has already is fine.
    pub(crate) async fn resize(self: &Rc<Self>, size_bytes: u64) -> Result<(), NexusError> {
        let _pass = self.gate.enter().await;
        self.check_open("resize")?;
        if let Some(size) = self.grown(size_bytes)? {
            // Maps of what children miss end at the old size.
            self.settle(Verdict::Settle).await;
            self.shared.set_size(size);
        }
        Ok(())
    }

    /// Notes a new size, and gives the blocks that hosts are to see; `None` for the size that it has.
    fn grown(&self, size_bytes: u64) -> Result<Option<BlockCount>, NexusError> {
        let mut state = self.state.borrow_mut();
        if state.requested_bytes == size_bytes {
            return Ok(None);
        }
        let old = self.shared.size();
        let mut size = None;
        for child in state.children.iter().flatten() {
            let fits = layout::exported(size_bytes, &[&*child.device]).filter(|&new| new > old);
            let Some(new) = fits else {
                let (nexus, uri) = (self.name(), child.uri.clone());
                let block_bytes = self.shared.geometry.block_bytes;
                let size_bytes = child.device.size().0.saturating_mul(u64::from(block_bytes));
                let needed_bytes = layout::child_bytes(old, block_bytes);
                return Err(NexusError::TooSmall { nexus, child: uri, size_bytes, needed_bytes });
            };
            size = Some(size.map_or(new, |s: BlockCount| s.min(new)));
        }
        state.children.iter_mut().flatten().for_each(|c| c.log = None);
        state.requested_bytes = size_bytes;
        Ok(size)
    }

    /// Flushes every child in sync: a record of a clean end says that they are equal, also after a power cut of one. False
    /// when one of them did not.
    pub(super) async fn flush_children(&self) -> bool {
        let devices: Vec<_> = {
            let state = self.state.borrow();
            let online = state.children.iter().flatten().filter(|c| c.state == ChildState::Online);
            online.map(|c| c.device.clone()).collect()
        };
        let mut all = true;
        for device in devices {
            let Ok(open) = Descriptor::open(device).await else {
                all = false;
                continue;
            };
            all &= open.flush().await.is_ok();
            open.close().await;
        }
        all
    }

    /// The end in order: nothing on its way, everything flushed by whom it concerns, and the record says so.
    pub(crate) async fn shutdown(self: &Rc<Self>) -> Result<(), NexusError> {
        let _pass = self.gate.enter().await;
        if self.state.borrow().life == Life::Shutdown {
            return Ok(());
        }
        let was_lost = self.state.borrow().life == Life::Lost;
        self.state.borrow_mut().life = Life::ShuttingDown;
        self.freeze().await;
        let mut clean = !was_lost;
        if clean {
            self.quiet().await;
            clean = self.flush_children().await;
            // The next nexus may have it in common with a child that is away then.
            self.mark().await;
        }
        if clean {
            self.close_account().await;
        }
        let jobs: Vec<_> =
            self.state.borrow().children.iter().flatten().filter_map(|c| c.job.clone()).collect();
        self.end(Life::Shutdown).await;
        for job in jobs {
            job.until(|j| j.at_work.get() == 0).await;
        }
        let mut record = self.state.borrow().record.clone();
        record.clean_shutdown = clean;
        // What could not be said is not relied upon: the next one takes the volume for not cleanly shut down.
        let _ = self.save(record).await;
        Ok(())
    }
}

/// How often something that ends by itself is looked at.
const LOOK_EVERY: core::time::Duration = core::time::Duration::from_millis(1);
