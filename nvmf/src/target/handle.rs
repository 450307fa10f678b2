//! The control handle, and what it shares with controllers and cores.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme::Nqn;

use super::admin::DiscoveryPages;
use super::ana::ListenerId;
use super::board::{Acks, Attach, CoreInbox, CoreIndex, CoreMsg, SubsystemId};
use super::config::{AllowedHosts, Listeners, TargetConfig, serial_of};
use super::controller::{Controller, ControllerKind};
use super::counters::{IoCounters, IoTotals};
use super::error::TargetError;
use super::model::{Ana, Life, Model, Pause, Subsystem};

/// A handle on one target. Cheap to clone, usable from any thread; the target lives as long as a handle, a core
/// or a connection holds it.
#[derive(Clone)]
pub struct Target {
    pub(super) shared: Arc<Shared>,
}

/// What target, controllers and device subscriptions share.
pub(super) struct Shared {
    pub(super) config: TargetConfig,
    model: Mutex<Model>,
    /// Set while some Connect may be waiting for a queue to go, so that others need not wake every core.
    connects_wait: AtomicBool,
}

impl Target {
    /// A target without listeners, cores and subsystems, except the discovery subsystem.
    pub fn new(config: TargetConfig) -> Self {
        let config = config.clamped();
        let mut model = Model {
            subsystems: Vec::new(),
            by_nqn: HashMap::new(),
            cores: Vec::new(),
            listeners: Vec::new(),
            discovery_generation: 0,
            discovery_pages: DiscoveryPages::default(),
            controllers: 0,
            next_namespace: 0,
            associations: 0,
            next_pause: 0,
            started: None,
        };
        let nqn = Nqn::discovery();
        model.insert(|id| Subsystem {
            id,
            serial: serial_of(nqn.as_str().as_bytes()),
            nqn,
            kind: ControllerKind::Discovery,
            model: config.model.clone(),
            hosts: AllowedHosts::Any,
            listeners: Listeners::All,
            cntlids: 1..=nvme::Cntlid::MAX.0,
            next_cntlid: 1,
            max_namespaces: 0,
            namespaces: Default::default(),
            ana: Ana::default(),
            controllers: Default::default(),
            retired: IoTotals::default(),
            life: Life::Serving,
            pause: Pause::None,
        });
        let shared = Shared { config, model: Mutex::new(model), connects_wait: AtomicBool::new(false) };
        Self { shared: Arc::new(shared) }
    }

    /// The limits that it was made with, brought into what the wire can say.
    pub fn config(&self) -> &TargetConfig {
        &self.shared.config
    }

    /// Called by a core that holds commands of a subsystem back, by the order of pause `number`, for as long as it may:
    /// the pause ends on every core, and whoever asked for it gets an error.
    pub fn pause_expired(&self, subsystem: SubsystemId, number: u64) {
        self.shared.undo_pause(subsystem, number);
    }

    /// Adds a core that will have connections. `wake` makes its reactor turn soon, from any thread, without
    /// blocking. The inbox already holds orders to open every namespace that exists.
    pub fn attach_core(&self, wake: impl Fn() + Send + Sync + 'static) -> Arc<CoreInbox> {
        let mut model = self.shared.lock();
        let index = CoreIndex(model.cores.len() as u16);
        let inbox = Arc::new(CoreInbox::new(index, Box::new(wake)));
        let unheard = Acks::new();
        for subsystem in model.subsystems.iter_mut().flatten() {
            let id = subsystem.id;
            let table = subsystem.ana.table.clone();
            inbox.post(CoreMsg::SetAna { subsystem: id, table, ack: unheard.ack() });
            for ns in subsystem.namespaces.values_mut() {
                let counters = Arc::new(IoCounters::default());
                ns.counters.push(counters.clone());
                let (device, access) = (ns.device.clone(), ns.desk.access());
                let attach = Attach { subsystem: id, info: ns.info, device, counters, access };
                inbox.post(CoreMsg::Attach(attach, unheard.ack()));
            }
            if let Pause::Held(number) = subsystem.pause {
                inbox.post(CoreMsg::Pause { subsystem: id, number, ack: unheard.ack() });
            }
        }
        model.cores.push(inbox.clone());
        inbox
    }

    /// Tells the target of an address that a core listens on. It appears in discovery logs; an unspecified IP
    /// address stands there as the one that the asking host used.
    pub fn add_listener(&self, addr: SocketAddr) -> ListenerId {
        let mut model = self.shared.lock();
        let place = model.listeners.iter().position(Option::is_none).unwrap_or_else(|| {
            model.listeners.push(None);
            model.listeners.len() - 1
        });
        model.listeners[place] = Some(addr);
        model.discovery_changed();
        ListenerId(place as u16)
    }

    /// Takes an address out of discovery logs. Connections that came through it stay.
    pub fn remove_listener(&self, id: ListenerId) -> Result<(), TargetError> {
        let mut model = self.shared.lock();
        model.listener(id).ok_or(TargetError::NoListener(id.0))?;
        model.listeners[usize::from(id.0)] = None;
        model.discovery_changed();
        Ok(())
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last queue of a dead controller is gone: its identifier is free.
    pub(super) fn controller_gone(self: &Arc<Self>, controller: &Controller) {
        let mut model = self.lock();
        let Some(subsystem) = model.subsystem_mut(controller.subsystem()) else { return };
        let ours = |c: &Arc<Controller>| std::ptr::eq(&**c, controller);
        if subsystem.controllers.get(&controller.cntlid()).is_some_and(ours) {
            subsystem.controllers.remove(&controller.cntlid());
            let id = subsystem.id;
            model.controllers -= 1;
            drop(model);
            self.forget_if_empty(id);
        }
    }

    /// A Connect was told to wait.
    pub(super) fn connect_waits(&self) {
        self.connects_wait.store(true, Ordering::Release);
    }

    /// A queue is gone: Connects that wait for that may go on.
    pub(super) fn retry_connects(&self) {
        if self.connects_wait.swap(false, Ordering::AcqRel) {
            self.lock().notify_cores(|| CoreMsg::RetryConnects);
        }
    }
}
