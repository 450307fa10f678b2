//! Control operations: subsystems, namespaces, hosts, ANA states.
//!
//! Each operation changes the model and posts its orders when its future is first polled, and finishes on its own:
//! dropping the future afterwards gives up only the answer. Operations on one subsystem may overlap; cores see
//! their orders in the order in which the model was changed.

use std::sync::{Arc, Weak};

use aio::device::Subscription;
use aio::{BlockDevice, Capabilities, DeviceEvent};
use nvme::{Nqn, Nsid};

use super::admin::Event;
use super::ana::{AnaState, AnaTable, ListenerId};
use super::board::{Acks, Attach, CoreFailure, CoreMsg, SubsystemId};
use super::config::{AllowedHosts, NamespaceSpec, SubsystemSpec};
use super::controller::{ControllerKind, Death};
use super::counters::{IoCounters, IoTotals};
use super::error::TargetError;
use super::handle::{Shared, Target};
use super::model::{Ana, Life, Model, Namespace, Pause, Subsystem};
use super::ns::{NsIds, NsInfo};
use super::promise::{Resolver, promise};
use super::reserve::Desk;

type Answer<T> = Resolver<Result<T, TargetError>>;

/// Longest serial number and model number, in bytes.
const SERIAL_MAX: usize = 20;
const MODEL_MAX: usize = 40;

impl Target {
    /// Creates a subsystem without namespaces. Hosts can connect to it when this returns.
    pub async fn create_subsystem(&self, spec: SubsystemSpec) -> Result<(), TargetError> {
        let (answer, done) = promise();
        self.shared.create_subsystem(spec, answer)?;
        done.await
    }

    /// Deletes a subsystem: disconnects its hosts, closes its namespaces. The name is free when this returns.
    pub async fn delete_subsystem(&self, nqn: &str) -> Result<(), TargetError> {
        let (answer, done) = promise();
        self.shared.delete_subsystem(nqn, answer)?;
        done.await
    }

    /// Opens the device on every core and shows it to hosts; returns the nsid.
    pub async fn add_namespace(&self, nqn: &str, spec: NamespaceSpec) -> Result<Nsid, TargetError> {
        let (answer, done) = promise();
        self.shared.add_namespace(nqn, spec, answer)?;
        done.await
    }

    /// Takes a namespace away from hosts; returns when nothing is in flight on its device any more.
    pub async fn remove_namespace(&self, nqn: &str, nsid: Nsid) -> Result<(), TargetError> {
        let (answer, done) = promise();
        self.shared.remove_namespace(nqn, nsid, None, Some(answer))?;
        done.await
    }

    /// Moves a namespace to another ANA group.
    pub async fn set_namespace_group(&self, nqn: &str, nsid: Nsid, group: u32) -> Result<(), TargetError> {
        let (answer, done) = promise();
        self.shared.set_namespace_group(nqn, nsid, group, answer)?;
        done.await
    }

    /// Replaces the list of hosts. Those that are connected and not allowed any more are disconnected.
    pub fn set_allowed_hosts(&self, nqn: &str, hosts: AllowedHosts) -> Result<(), TargetError> {
        let mut model = self.shared.lock();
        let subsystem = model.serving_mut(nqn)?;
        for controller in subsystem.controllers.values() {
            if !hosts.allows(controller.hostnqn().as_str()) {
                controller.die(Death::HostRemoved);
            }
        }
        subsystem.hosts = hosts;
        model.discovery_changed();
        Ok(())
    }

    /// Sets the state of an ANA group as seen through one listener, or (`None`) through all. Hosts are told when
    /// every core acts on it.
    pub async fn set_ana_state(
        &self,
        nqn: &str,
        listener: Option<ListenerId>,
        group: u32,
        state: AnaState,
    ) -> Result<(), TargetError> {
        let (answer, done) = promise();
        self.shared.set_ana_state(nqn, listener, group, state, answer)?;
        done.await
    }

    /// Stops admission of I/O commands to the subsystem on every core and waits until none is in flight. Commands
    /// that arrive wait in their queues. Pauses do not nest; a second one begins the time of the first anew.
    ///
    /// # Errors
    /// [`TargetError::PauseTooLong`]: commands were in flight for longer than
    /// [`TargetConfig::pause_limit`](super::TargetConfig::pause_limit), and the pause was undone.
    pub async fn pause(&self, nqn: &str) -> Result<(), TargetError> {
        let (answer, done) = promise();
        self.shared.pause(nqn, answer)?;
        done.await
    }

    /// Ends a [`pause`](Self::pause).
    ///
    /// # Errors
    /// [`TargetError::PauseTooLong`]: the pause ended by itself before this, when it came to its limit. What was done
    /// meanwhile was done under I/O. The subsystem is not paused.
    pub async fn resume(&self, nqn: &str) -> Result<(), TargetError> {
        let (answer, done) = promise();
        self.shared.resume(nqn, answer)?;
        done.await
    }
}

impl Model {
    /// A subsystem that can be changed.
    fn serving_mut(&mut self, nqn: &str) -> Result<&mut Subsystem, TargetError> {
        let subsystem = self.find_mut(nqn).filter(|s| s.life == Life::Serving);
        let subsystem = subsystem.ok_or_else(|| TargetError::NoSubsystem(nqn.to_owned()))?;
        match subsystem.kind {
            ControllerKind::Io => Ok(subsystem),
            ControllerKind::Discovery => Err(TargetError::Discovery(nqn.to_owned())),
        }
    }
}

fn core_failure(op: &'static str, nqn: &Nqn) -> impl FnOnce(CoreFailure) -> TargetError + use<> {
    let nqn = nqn.to_string();
    move |source| TargetError::Core { op, nqn, source }
}

/// Checks a text that goes into a space-padded field.
fn check_text(nqn: &str, field: &'static str, value: &str, max: usize) -> Result<(), TargetError> {
    let printable = value.bytes().all(|b| (0x20..0x7f).contains(&b));
    if printable && value.len() <= max {
        return Ok(());
    }
    Err(TargetError::BadText { field, value: value.to_owned(), nqn: nqn.to_owned(), max })
}

impl Shared {
    fn create_subsystem(
        self: &Arc<Self>,
        spec: SubsystemSpec,
        answer: Answer<()>,
    ) -> Result<(), TargetError> {
        let nqn = Nqn::parse(&spec.nqn).map_err(|why| TargetError::BadNqn { nqn: spec.nqn.clone(), why })?;
        let model_number = spec.model.unwrap_or_else(|| self.config.model.clone());
        check_text(&spec.nqn, "serial number", &spec.serial, SERIAL_MAX)?;
        check_text(&spec.nqn, "model number", &model_number, MODEL_MAX)?;
        let (first, last) = (*spec.cntlids.start(), *spec.cntlids.end());
        if first == 0 || last > nvme::Cntlid::MAX.0 || first > last {
            return Err(TargetError::BadCntlidRange { nqn: spec.nqn, first, last });
        }
        let max_namespaces = spec.max_namespaces.unwrap_or(self.config.max_namespaces);
        let mut model = self.lock();
        if model.by_nqn.contains_key(&nqn) {
            return Err(TargetError::SubsystemExists(spec.nqn));
        }
        let table = AnaTable::new(spec.ana_groups);
        let subsystem_nqn = nqn.clone();
        let id = model.insert(|id| Subsystem {
            id,
            nqn: subsystem_nqn,
            kind: ControllerKind::Io,
            serial: spec.serial,
            model: model_number,
            hosts: spec.hosts,
            listeners: spec.listeners,
            cntlids: spec.cntlids,
            next_cntlid: first,
            max_namespaces: max_namespaces.clamp(1, self.config.max_namespaces),
            namespaces: Default::default(),
            ana: Ana { table: table.clone(), changes: 0 },
            controllers: Default::default(),
            retired: IoTotals::default(),
            life: Life::Serving,
            pause: Pause::None,
        });
        model.discovery_changed();
        let acks =
            Acks::broadcast(&model.cores, |ack| CoreMsg::SetAna { subsystem: id, table: table.clone(), ack });
        drop(model);
        let failure = core_failure("creation", &nqn);
        acks.then(move |result| answer.resolve(result.map_err(failure)));
        Ok(())
    }

    fn delete_subsystem(self: &Arc<Self>, nqn: &str, answer: Answer<()>) -> Result<(), TargetError> {
        let mut guard = self.lock();
        let model = &mut *guard;
        let subsystem = model.serving_mut(nqn)?;
        subsystem.life = Life::Deleting;
        for controller in subsystem.controllers.values() {
            controller.die(Death::SubsystemDeleted);
        }
        let id = subsystem.id;
        let nsids: Vec<Nsid> = subsystem.namespaces.keys().copied().collect();
        for ns in subsystem.namespaces.values_mut() {
            ns.active = false;
        }
        let acks = Acks::new();
        for core in &model.cores {
            for nsid in &nsids {
                core.post(CoreMsg::Detach { subsystem: id, nsid: *nsid, ack: acks.ack() });
            }
        }
        model.discovery_changed();
        drop(guard);
        let shared = self.clone();
        acks.then(move |result| {
            let failure = shared.subsystem_detached(id);
            answer.resolve(result.map_err(failure));
        });
        Ok(())
    }

    /// The cores have closed the namespaces of a subsystem that is being deleted.
    fn subsystem_detached(
        self: &Arc<Self>,
        id: SubsystemId,
    ) -> impl FnOnce(CoreFailure) -> TargetError + use<> {
        let mut model = self.lock();
        let subsystem = model.subsystem_mut(id).expect("invariant: a subsystem stays until it is forgotten");
        subsystem.life = Life::Nameless;
        let nqn = subsystem.nqn.clone();
        let namespaces = std::mem::take(&mut subsystem.namespaces);
        model.by_nqn.remove(&nqn);
        drop(model);
        // Devices and subscriptions go without the lock.
        drop(namespaces);
        self.forget_if_empty(id);
        core_failure("deletion", &nqn)
    }

    /// Frees the place of a deleted subsystem when its last controller is gone.
    pub(super) fn forget_if_empty(self: &Arc<Self>, id: SubsystemId) {
        let mut model = self.lock();
        let Some(subsystem) = model.subsystem_mut(id) else { return };
        if subsystem.life != Life::Nameless || !subsystem.controllers.is_empty() {
            return;
        }
        subsystem.life = Life::Forgotten;
        let acks = Acks::broadcast(&model.cores, |ack| CoreMsg::Forget { subsystem: id, ack });
        drop(model);
        let shared = self.clone();
        acks.then(move |_| shared.lock().subsystems[id.0 as usize] = None);
    }

    fn add_namespace(
        self: &Arc<Self>,
        nqn: &str,
        spec: NamespaceSpec,
        answer: Answer<Nsid>,
    ) -> Result<(), TargetError> {
        let device = spec.device;
        check_device(&*device)?;
        let ids = spec.ids.unwrap_or_else(|| NsIds::from_uuid(device.uuid()));
        // The device is asked before the lock is taken, see the map of this module.
        let mut info = NsInfo::of(&*device, Nsid::NONE, spec.ana_group, self.config.max_io_bytes);
        let (boundary_blocks, device_name) = (device.geometry().boundary_blocks, device.name().to_owned());
        let incarnation = device.incarnation();
        let mut guard = self.lock();
        let model = &mut *guard;
        let serial = model.next_namespace;
        let subsystem = model.serving_mut(nqn)?;
        let nsid = subsystem.place_namespace(spec.nsid, &ids)?;
        subsystem.check_group(spec.ana_group)?;
        info.nsid = nsid;
        info.write_through = subsystem.controllers.values().any(|c| c.was_told_no_cache());
        let desk = Desk::new(spec.reservations);
        let access = desk.access();
        let counters: Vec<_> = model.cores.iter().map(|_| Arc::new(IoCounters::default())).collect();
        let ns = Namespace {
            serial,
            info,
            ids,
            device: device.clone(),
            device_name,
            incarnation,
            boundary_blocks,
            desk,
            counters: counters.clone(),
            subscription: None,
            active: false,
        };
        let subsystem = model.serving_mut(nqn)?;
        let id = subsystem.id;
        subsystem.namespaces.insert(nsid, ns);
        model.next_namespace += 1;
        let acks = Acks::new();
        for (core, counters) in model.cores.iter().zip(counters) {
            let (device, access) = (device.clone(), access.clone());
            let attach = Attach { subsystem: id, info, device, counters, access };
            core.post(CoreMsg::Attach(attach, acks.ack()));
        }
        drop(guard);
        let place = Place { subsystem: id, nsid, serial };
        let subscription = device.subscribe(event_sink(self, place));
        let shared = self.clone();
        let name = nqn.to_owned();
        // What happened to the size before the subscription.
        self.device_resized(place, device.size().0);
        acks.then(move |result| shared.namespace_opened(&name, place, result, subscription, answer));
        Ok(())
    }

    /// Every core answered to the order to open a namespace.
    fn namespace_opened(
        self: &Arc<Self>,
        nqn: &str,
        place: Place,
        result: Result<(), CoreFailure>,
        subscription: Subscription,
        answer: Answer<Nsid>,
    ) {
        let mut model = self.lock();
        let Some((nqn, ns)) = model.namespace_mut(place) else {
            drop(model);
            // The whole subsystem was deleted meanwhile.
            return answer.resolve(Err(TargetError::NoSubsystem(nqn.to_owned())));
        };
        match result {
            Ok(()) => {
                ns.active = true;
                ns.subscription = Some(subscription);
                drop(model);
                self.namespace_changed(place);
                answer.resolve(Ok(place.nsid));
            }
            Err(source) => {
                let error = core_failure("opening a namespace", nqn)(source);
                drop(model);
                self.detach(place, move |_| answer.resolve(Err(error)));
            }
        }
    }

    /// Takes a namespace away. With `serial` only that very one, whatever has its nsid now.
    fn remove_namespace(
        self: &Arc<Self>,
        nqn: &str,
        nsid: Nsid,
        serial: Option<u64>,
        answer: Option<Answer<()>>,
    ) -> Result<(), TargetError> {
        let mut model = self.lock();
        let subsystem = model.serving_mut(nqn)?;
        let id = subsystem.id;
        let ns = subsystem.namespaces.get_mut(&nsid).filter(|ns| ns.active);
        let ns = ns.filter(|ns| serial.is_none_or(|serial| ns.serial == serial));
        let ns = ns.ok_or_else(|| TargetError::NoNamespace { nqn: nqn.to_owned(), nsid: nsid.0 })?;
        ns.active = false;
        let place = Place { subsystem: id, nsid, serial: ns.serial };
        subsystem.raise(Event::Namespace(nsid));
        subsystem.ana_changed();
        let failure = core_failure("removal of a namespace", &subsystem.nqn);
        drop(model);
        self.detach(place, move |result| {
            if let Some(answer) = answer {
                answer.resolve(result.map_err(failure));
            }
        });
        Ok(())
    }

    /// Closes a namespace on every core, then forgets it, then calls `done`.
    fn detach(self: &Arc<Self>, place: Place, done: impl FnOnce(Result<(), CoreFailure>) + Send + 'static) {
        let mut model = self.lock();
        let Place { subsystem, nsid, .. } = place;
        if model.namespace_mut(place).is_none() {
            // It went with its subsystem meanwhile: an order now would hit whatever has its place next.
            drop(model);
            return done(Ok(()));
        }
        let acks = Acks::broadcast(&model.cores, |ack| CoreMsg::Detach { subsystem, nsid, ack });
        drop(model);
        let shared = self.clone();
        acks.then(move |result| {
            let mut model = shared.lock();
            let present = model.namespace_mut(place).is_some();
            let removed = model.subsystem_mut(subsystem).filter(|_| present).and_then(|subsystem| {
                let ns = subsystem.namespaces.remove(&nsid)?;
                subsystem.retired += ns.totals();
                Some(ns)
            });
            drop(model);
            // Device and subscription go without the lock.
            drop(removed);
            done(result);
        });
    }

    fn set_namespace_group(
        self: &Arc<Self>,
        nqn: &str,
        nsid: Nsid,
        group: u32,
        answer: Answer<()>,
    ) -> Result<(), TargetError> {
        let mut model = self.lock();
        let subsystem = model.serving_mut(nqn)?;
        subsystem.check_group(group)?;
        let id = subsystem.id;
        let failure = core_failure("changing the ANA group of a namespace", &subsystem.nqn);
        let ns = subsystem.namespaces.get_mut(&nsid).filter(|ns| ns.active);
        let ns = ns.ok_or_else(|| TargetError::NoNamespace { nqn: nqn.to_owned(), nsid: nsid.0 })?;
        ns.info.ana_group = group;
        let (info, serial) = (ns.info, ns.serial);
        let acks = Acks::broadcast(&model.cores, |ack| CoreMsg::Update { subsystem: id, info, ack });
        drop(model);
        let shared = self.clone();
        acks.then(move |result| {
            shared.namespace_changed(Place { subsystem: id, nsid, serial });
            answer.resolve(result.map_err(failure));
        });
        Ok(())
    }

    fn set_ana_state(
        self: &Arc<Self>,
        nqn: &str,
        listener: Option<ListenerId>,
        group: u32,
        state: AnaState,
        answer: Answer<()>,
    ) -> Result<(), TargetError> {
        let mut guard = self.lock();
        let model = &mut *guard;
        if let Some(id) = listener {
            model.listener(id).ok_or(TargetError::NoListener(id.0))?;
        }
        let subsystem = model.serving_mut(nqn)?;
        let groups = subsystem.ana.table.groups();
        subsystem.ana.table.set(listener, group, state).ok_or_else(|| TargetError::NoAnaGroup {
            nqn: nqn.to_owned(),
            group,
            groups,
        })?;
        subsystem.ana.changes += 1;
        let (id, table) = (subsystem.id, subsystem.ana.table.clone());
        let failure = core_failure("setting an ANA state", &subsystem.nqn);
        let acks =
            Acks::broadcast(&model.cores, |ack| CoreMsg::SetAna { subsystem: id, table: table.clone(), ack });
        drop(guard);
        let shared = self.clone();
        acks.then(move |result| {
            if let Some(subsystem) = shared.lock().subsystem(id) {
                subsystem.raise(Event::Ana);
            }
            answer.resolve(result.map_err(failure));
        });
        Ok(())
    }

    fn pause(self: &Arc<Self>, nqn: &str, answer: Answer<()>) -> Result<(), TargetError> {
        let mut guard = self.lock();
        let model = &mut *guard;
        let number = model.next_pause;
        let subsystem = model.serving_mut(nqn)?;
        subsystem.pause = Pause::Held(number);
        let id = subsystem.id;
        let failure = core_failure("pausing", &subsystem.nqn);
        model.next_pause += 1;
        let acks = Acks::broadcast(&model.cores, |ack| CoreMsg::Pause { subsystem: id, number, ack });
        drop(guard);
        let shared = self.clone();
        acks.then(move |result| {
            let mut model = shared.lock();
            let undone = model.subsystem_mut(id).filter(|s| s.pause == Pause::Undone(number));
            let too_long = undone.map(|subsystem| {
                subsystem.pause = Pause::None;
                shared.pause_too_long(&subsystem.nqn)
            });
            drop(model);
            answer.resolve(too_long.map_or(result.map_err(failure), Err));
        });
        Ok(())
    }

    fn resume(self: &Arc<Self>, nqn: &str, answer: Answer<()>) -> Result<(), TargetError> {
        let mut guard = self.lock();
        let model = &mut *guard;
        let subsystem = model.serving_mut(nqn)?;
        if let Pause::Undone(_) = std::mem::take(&mut subsystem.pause) {
            return Err(self.pause_too_long(&subsystem.nqn));
        }
        let id = subsystem.id;
        let failure = core_failure("resuming", &subsystem.nqn);
        let acks = Acks::broadcast(&model.cores, |ack| CoreMsg::Resume { subsystem: id, ack });
        drop(guard);
        acks.then(move |result| answer.resolve(result.map_err(failure)));
        Ok(())
    }

    fn pause_too_long(&self, nqn: &Nqn) -> TargetError {
        TargetError::PauseTooLong { nqn: nqn.to_string(), limit: self.config.pause_limit }
    }

    /// A core has held commands back for as long as it may: they go on everywhere, and whoever asked for the pause is
    /// told when it is done or ends it.
    pub(super) fn undo_pause(&self, id: SubsystemId, number: u64) {
        let mut model = self.lock();
        let Some(subsystem) = model.subsystem_mut(id).filter(|s| s.pause == Pause::Held(number)) else {
            return;
        };
        subsystem.pause = Pause::Undone(number);
        let acks = Acks::broadcast(&model.cores, |ack| CoreMsg::Resume { subsystem: id, ack });
        drop(model);
        acks.then(|_| ());
    }

    /// Tells the hosts of a namespace that came or changed.
    fn namespace_changed(&self, place: Place) {
        let mut model = self.lock();
        if let Some(subsystem) = model.subsystem_mut(place.subsystem) {
            subsystem.raise(Event::Namespace(place.nsid));
            subsystem.ana_changed();
        }
    }

    /// The device of a namespace changed its size: the cores first, then the hosts.
    fn device_resized(self: &Arc<Self>, place: Place, size_blocks: u64) {
        let mut model = self.lock();
        let Some((_, ns)) = model.namespace_mut(place) else { return };
        if ns.info.size_blocks == size_blocks {
            return;
        }
        ns.info.size_blocks = size_blocks;
        let info = ns.info;
        let acks =
            Acks::broadcast(&model.cores, |ack| CoreMsg::Update { subsystem: place.subsystem, info, ack });
        drop(model);
        let shared = self.clone();
        acks.then(move |_| {
            let model = shared.lock();
            if let Some(subsystem) = model.subsystem(place.subsystem) {
                subsystem.raise(Event::Namespace(place.nsid));
            }
        });
    }

    /// The device of a namespace is going away, and so does the namespace.
    fn device_removed(self: &Arc<Self>, place: Place) {
        let nqn = match self.lock().namespace_mut(place) {
            Some((nqn, _)) => nqn.clone(),
            None => return,
        };
        // Fails when somebody else removes it at the moment, which is as good.
        let _ = self.remove_namespace(nqn.as_str(), place.nsid, Some(place.serial), None);
    }
}

/// One namespace, and no later one with the same nsid.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) subsystem: SubsystemId,
    pub(super) nsid: Nsid,
    pub(super) serial: u64,
}

impl Model {
    pub(super) fn namespace_mut(&mut self, place: Place) -> Option<(&Nqn, &mut Namespace)> {
        let subsystem = self.subsystem_mut(place.subsystem)?;
        let ns = subsystem.namespaces.get_mut(&place.nsid).filter(|ns| ns.serial == place.serial)?;
        Some((&subsystem.nqn, ns))
    }
}

impl Subsystem {
    /// The nsid for a new namespace with these names.
    fn place_namespace(&self, nsid: Option<Nsid>, ids: &NsIds) -> Result<Nsid, TargetError> {
        let nqn = || self.nqn.to_string();
        if self.namespaces.values().any(|ns| ns.ids.uuid == ids.uuid) {
            return Err(TargetError::DuplicateUuid { nqn: nqn(), uuid: ids.uuid });
        }
        let max = self.max_namespaces;
        let Some(nsid) = nsid else {
            return self.free_nsid().ok_or_else(|| TargetError::NamespacesFull { nqn: nqn(), max });
        };
        if nsid.0 == 0 || nsid.0 > max {
            return Err(TargetError::BadNsid { nqn: nqn(), nsid: nsid.0, max });
        }
        if self.namespaces.contains_key(&nsid) {
            return Err(TargetError::NsidInUse { nqn: nqn(), nsid: nsid.0 });
        }
        Ok(nsid)
    }

    /// Without ANA everything is in group 1.
    fn check_group(&self, group: u32) -> Result<(), TargetError> {
        let groups = self.ana.table.groups();
        if (1..=u32::from(groups.max(1))).contains(&group) {
            return Ok(());
        }
        Err(TargetError::NoAnaGroup { nqn: self.nqn.to_string(), group, groups })
    }
}

/// Refuses shapes that identify namespace cannot describe.
fn check_device(device: &dyn BlockDevice) -> Result<(), TargetError> {
    let (geometry, caps) = (device.geometry(), device.capabilities());
    let why = if !geometry.block_bytes.is_power_of_two() || !(512..=65_536).contains(&geometry.block_bytes) {
        "its block size is not a power of two between 512 and 65,536 bytes"
    } else if geometry.meta_bytes != 0 {
        "it has metadata with its blocks, which is not supported over NVMe/TCP"
    } else if geometry.max_blocks == 0 {
        "it takes no I/O of even one block"
    } else if caps.contains(Capabilities::VOLATILE_CACHE) && !caps.contains(Capabilities::FUA) {
        "it has a volatile cache and cannot make a single write durable (FUA), which hosts rely on"
    } else {
        return Ok(());
    };
    Err(TargetError::BadDevice { device: device.name().to_owned(), why })
}

/// What a device calls when something happens to it. Holds the target weakly: the device outlives it or not.
fn event_sink(shared: &Arc<Shared>, place: Place) -> aio::device::EventSink {
    let shared: Weak<Shared> = Arc::downgrade(shared);
    Arc::new(move |event| {
        let Some(shared) = shared.upgrade() else { return };
        match event {
            DeviceEvent::Resized(size) => shared.device_resized(place, size.0),
            DeviceEvent::Removed => shared.device_removed(place),
            // Its I/O fails, and says so to the host.
            DeviceEvent::Faulted => (),
        }
    })
}
