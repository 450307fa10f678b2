//! What is exported: the subsystems that were asked for, and what of them the target serves.
//!
//! The target knows what is there; this module knows what *should* be there, which is more when a device could
//! not be opened: its namespaces wait here until the device appears. Changes are serialised by the
//! [`engine`](crate::engine); readers see the list between two steps of a change at most.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nvme::Nsid;
use nvmf::target::config::serial_of;
use nvmf::target::{
    AllowedHosts, AnaState, Listeners, NamespaceSpec, NsIds, SubsystemSpec, Target, TargetError,
};
use rpc::nqn_from_name;
use uuid::Uuid;

use crate::desired::{AnaGroup, Namespace, Subsystem};
use crate::engine::blocking;
use crate::error::EngineError;
use crate::ptpl::{ReservationDir, Whose};
use crate::registry::{Entry, Origin, Registry};

/// A subsystem that was asked for.
#[derive(Clone, Debug)]
pub struct Exported {
    /// As asked for.
    pub desired: Subsystem,
    /// Who asked.
    pub origin: Origin,
    /// Whether the target has it. A share waits for its device.
    pub created: bool,
    /// Which of its namespaces the target has; the others wait for their devices.
    pub live: BTreeSet<u32>,
}

/// See the module.
pub struct Exports {
    target: Target,
    list: Mutex<Vec<Exported>>,
    /// Where reservations persist; empty = nowhere.
    ptpl: OnceLock<ReservationDir>,
}

impl Exports {
    /// Nothing is exported yet.
    pub fn new(target: Target) -> Self {
        Self { target, list: Mutex::default(), ptpl: OnceLock::new() }
    }

    /// The target that serves.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// From now on, what hosts reserve can persist through power loss. Said once, before anything is exported.
    pub fn keep_reservations(&self, dir: ReservationDir) {
        let _ = self.ptpl.set(dir);
    }

    /// A device is destroyed for good, and with it what was reserved.
    pub fn forget_reservations(&self, device: Uuid) {
        if let Some(dir) = self.ptpl.get() {
            dir.forget(device);
        }
    }

    /// Everything that was asked for, in the order of creation.
    pub fn list(&self) -> Vec<Exported> {
        self.lock().clone()
    }

    /// The subsystem with this NQN.
    pub fn find(&self, nqn: &str) -> Result<Exported, EngineError> {
        let found = self.lock().iter().find(|e| e.desired.nqn == nqn).cloned();
        found.ok_or_else(|| TargetError::NoSubsystem(nqn.to_owned()).into())
    }

    /// The first subsystem that serves `device`.
    pub fn uses(&self, device: &str) -> Option<String> {
        let list = self.lock();
        let serves = |e: &&Exported| {
            e.desired.namespaces.iter().any(|n| n.device == device && e.live.contains(&n.nsid))
        };
        list.iter().find(serves).map(|e| e.desired.nqn.clone())
    }

    /// The subsystem that `Share` made of `device`, if it is served.
    pub fn share_of(&self, device: &str) -> Option<String> {
        let list = self.lock();
        let shared = |e: &&Exported| e.created && e.desired.share_of.as_deref() == Some(device);
        list.iter().find(shared).map(|e| e.desired.nqn.clone())
    }

    /// The same, also while it waits for its device.
    pub fn asked_share_of(&self, device: &str) -> Option<String> {
        let list = self.lock();
        let shared = |e: &&Exported| e.desired.share_of.as_deref() == Some(device);
        list.iter().find(shared).map(|e| e.desired.nqn.clone())
    }

    /// Creates a subsystem with all its namespaces, or nothing. Nothing may wait for a device.
    pub async fn create(
        &self,
        desired: Subsystem,
        origin: Origin,
        registry: &Registry,
    ) -> Result<Exported, EngineError> {
        let nqn = desired.nqn.clone();
        for namespace in &desired.namespaces {
            registry.usable(&namespace.device)?;
        }
        let mut exported = Exported { desired, origin, created: false, live: BTreeSet::new() };
        if self.lock().iter().any(|e| e.desired.nqn == nqn) {
            return Err(TargetError::SubsystemExists(nqn).into());
        }
        if let Some(failure) = self.bring_up(&mut exported, registry).await.into_iter().next() {
            if exported.created {
                self.target.delete_subsystem(&nqn).await?;
            }
            return Err(failure);
        }
        self.lock().push(exported.clone());
        Ok(exported)
    }

    /// Takes over what was declared or saved. What fails is returned, and waits for its device.
    pub async fn restore(&self, desired: Subsystem, origin: Origin, registry: &Registry) -> Vec<EngineError> {
        let mut exported = Exported { desired, origin, created: false, live: BTreeSet::new() };
        let failures = self.bring_up(&mut exported, registry).await;
        self.lock().push(exported);
        failures
    }

    /// A device appeared: whatever waited for it is served from now on.
    pub async fn device_appeared(&self, device: &str, registry: &Registry) -> Vec<EngineError> {
        let waits = |e: &Exported| {
            e.desired.namespaces.iter().any(|n| n.device == device && !e.live.contains(&n.nsid))
        };
        let waiting: Vec<Exported> = self.lock().iter().filter(|e| waits(e)).cloned().collect();
        let mut failures = Vec::new();
        for mut exported in waiting {
            failures.extend(self.bring_up(&mut exported, registry).await);
            self.replace(exported);
        }
        failures
    }

    /// A device goes away: the namespaces made of it end, and wait for a device of that name. Its share ends for
    /// good.
    pub async fn device_gone(&self, device: &str) -> Result<(), EngineError> {
        if let Some(nqn) = self.asked_share_of(device) {
            self.destroy(&nqn).await?;
        }
        for mut exported in self.list() {
            let of_it = exported.desired.namespaces.iter().filter(|n| n.device == device);
            let nsids: Vec<u32> = of_it.map(|n| n.nsid).filter(|n| exported.live.contains(n)).collect();
            for nsid in nsids {
                self.target.remove_namespace(&exported.desired.nqn, Nsid(nsid)).await?;
                exported.live.remove(&nsid);
                self.replace(exported.clone());
            }
        }
        Ok(())
    }

    /// Disconnects the hosts of a subsystem and removes it.
    pub async fn destroy(&self, nqn: &str) -> Result<(), EngineError> {
        let exported = self.find(nqn)?;
        if exported.created {
            self.target.delete_subsystem(nqn).await?;
        }
        self.lock().retain(|e| e.desired.nqn != nqn);
        Ok(())
    }

    /// Adds a namespace; without `nsid` under the lowest free number.
    pub async fn add_namespace(
        &self,
        nqn: &str,
        nsid: Option<u32>,
        mut namespace: Namespace,
        registry: &Registry,
    ) -> Result<Namespace, EngineError> {
        let mut exported = self.find(nqn)?;
        let entry = registry.usable(&namespace.device)?;
        // Numbers of those that wait for a device are taken as well.
        let taken = |n: u32| exported.desired.namespaces.iter().any(|ns| ns.nsid == n);
        namespace.nsid = nsid.or_else(|| (1..).find(|n| !taken(*n))).unwrap_or(u32::MAX);
        if taken(namespace.nsid) {
            return Err(TargetError::NsidInUse { nqn: nqn.to_owned(), nsid: namespace.nsid }.into());
        }
        let spec = self.namespace_spec(nqn, &namespace, &entry).await?;
        self.target.add_namespace(nqn, spec).await?;
        exported.live.insert(namespace.nsid);
        exported.desired.namespaces.push(namespace.clone());
        exported.desired.namespaces.sort_by_key(|n| n.nsid);
        self.replace(exported);
        Ok(namespace)
    }

    /// Removes a namespace; returns when nothing of it is in flight.
    pub async fn remove_namespace(&self, nqn: &str, nsid: u32) -> Result<(), EngineError> {
        let mut exported = self.find(nqn)?;
        let known = exported.desired.namespaces.iter().any(|n| n.nsid == nsid);
        if !known {
            return Err(TargetError::NoNamespace { nqn: nqn.to_owned(), nsid }.into());
        }
        if exported.live.remove(&nsid) {
            self.target.remove_namespace(nqn, Nsid(nsid)).await?;
        }
        exported.desired.namespaces.retain(|n| n.nsid != nsid);
        self.replace(exported);
        Ok(())
    }

    /// Changes who may connect. Hosts that may not any more are disconnected.
    pub fn change_hosts(&self, nqn: &str, change: impl FnOnce(&mut Subsystem)) -> Result<(), EngineError> {
        let mut exported = self.find(nqn)?;
        change(&mut exported.desired);
        if exported.created {
            self.target.set_allowed_hosts(nqn, allowed_hosts(&exported.desired))?;
        }
        self.replace(exported);
        Ok(())
    }

    /// Sets the state of one ANA group, or of all.
    pub async fn set_ana(&self, nqn: &str, group: Option<u32>, state: AnaState) -> Result<(), EngineError> {
        let mut exported = self.find(nqn)?;
        let groups = exported.desired.ana_groups;
        let chosen = match group {
            Some(group) => group..=group,
            None if groups == 0 => {
                return Err(TargetError::NoAnaGroup { nqn: nqn.to_owned(), group: 1, groups }.into());
            }
            None => 1..=u32::from(groups),
        };
        for group in chosen {
            if exported.created {
                self.target.set_ana_state(nqn, None, group, state).await?;
            }
            exported.desired.ana_states.retain(|g| g.group != group);
            if state != AnaState::Optimized {
                exported.desired.ana_states.push(AnaGroup { group, state: state as u8 });
            }
            // Group by group: what was set before a failure stays set.
            self.replace(exported.clone());
        }
        Ok(())
    }

    /// Makes the target have what is asked for, as far as the devices are there.
    async fn bring_up(&self, exported: &mut Exported, registry: &Registry) -> Vec<EngineError> {
        let mut failures = Vec::new();
        if !exported.created
            && let Err(e) = self.create_in_target(exported, registry).await
        {
            return vec![e];
        }
        for namespace in &exported.desired.namespaces {
            if exported.live.contains(&namespace.nsid) {
                continue;
            }
            match self.serve(&exported.desired.nqn, namespace, registry).await {
                Ok(()) => _ = exported.live.insert(namespace.nsid),
                Err(e) => failures.push(e),
            }
        }
        failures
    }

    async fn create_in_target(
        &self,
        exported: &mut Exported,
        registry: &Registry,
    ) -> Result<(), EngineError> {
        let desired = &mut exported.desired;
        if let Some(device) = &desired.share_of {
            // Hosts that find it without its disk take that for gone.
            registry.get(device)?;
        }
        if desired.serial.is_none() {
            desired.serial = Some(match &desired.share_of {
                // As Mayastor does it, so that hosts recognise a disk that moves between the two.
                Some(device) => serial_of(registry.get(device)?.device.uuid().as_bytes()),
                None => serial_of(desired.nqn.as_bytes()),
            });
        }
        self.target.create_subsystem(subsystem_spec(desired)).await?;
        exported.created = true;
        for group in &desired.ana_states {
            if let Some(state) = ana_state(group.state) {
                self.target.set_ana_state(&desired.nqn, None, group.group, state).await?;
            }
        }
        Ok(())
    }

    async fn serve(&self, nqn: &str, namespace: &Namespace, registry: &Registry) -> Result<(), EngineError> {
        let entry = registry.usable(&namespace.device)?;
        let spec = self.namespace_spec(nqn, namespace, &entry).await?;
        self.target.add_namespace(nqn, spec).await?;
        Ok(())
    }

    async fn namespace_spec(
        &self,
        nqn: &str,
        namespace: &Namespace,
        entry: &Entry,
    ) -> Result<NamespaceSpec, EngineError> {
        let reservations = match self.ptpl.get().cloned() {
            None => None,
            Some(dir) => {
                let uuid = namespace.uuid.unwrap_or_else(|| entry.device.uuid());
                let whose = Whose { subsystem: nqn.to_owned(), namespace: uuid };
                Some(blocking(move || dir.load(&whose)).await??)
            }
        };
        Ok(NamespaceSpec {
            device: entry.device.clone(),
            nsid: Some(Nsid(namespace.nsid)),
            ids: namespace.uuid.map(NsIds::from_uuid),
            ana_group: namespace.ana_group,
            reservations,
        })
    }

    fn replace(&self, exported: Exported) {
        let mut list = self.lock();
        if let Some(old) = list.iter_mut().find(|e| e.desired.nqn == exported.desired.nqn) {
            *old = exported;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Exported>> {
        // Nothing under the lock leaves the list half changed.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `Share` asks for: one namespace, in a subsystem named after the device.
pub fn share(device: &str, hosts: BTreeSet<String>) -> Subsystem {
    let namespace = Namespace { device: device.to_owned(), nsid: 1, uuid: None, ana_group: 1 };
    Subsystem {
        nqn: nqn_from_name(device),
        share_of: Some(device.to_owned()),
        allow_any_host: hosts.is_empty(),
        hosts,
        namespaces: vec![namespace],
        ..Subsystem::default()
    }
}

/// The state of a number on the wire (NVMe Base 2.0, ANA log page).
pub fn ana_state(number: u8) -> Option<AnaState> {
    let states = [
        AnaState::Optimized,
        AnaState::NonOptimized,
        AnaState::Inaccessible,
        AnaState::PersistentLoss,
        AnaState::Change,
    ];
    states.into_iter().find(|s| *s as u8 == number)
}

fn allowed_hosts(desired: &Subsystem) -> AllowedHosts {
    if desired.allow_any_host { AllowedHosts::Any } else { AllowedHosts::Only(desired.hosts.clone()) }
}

fn subsystem_spec(desired: &Subsystem) -> SubsystemSpec {
    let defaults = SubsystemSpec::new(desired.nqn.clone());
    SubsystemSpec {
        serial: desired.serial.clone().unwrap_or(defaults.serial),
        model: desired.model.clone(),
        hosts: allowed_hosts(desired),
        listeners: Listeners::All,
        cntlids: desired.cntlids.map_or(defaults.cntlids, |[first, last]| first..=last),
        ana_groups: desired.ana_groups,
        ..SubsystemSpec::new(desired.nqn.clone())
    }
}
