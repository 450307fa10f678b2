//! What exists, as plain data for lists, metrics and the desired state on disk.

use std::net::SocketAddr;

use nvme::{Cntlid, HostId, Nsid};

use super::ana::{AnaState, ListenerId};
use super::config::{AllowedHosts, Listeners};
use super::controller::{Controller, ControllerKind, Death};
use super::counters::{IoTotals, LATENCY_BUCKETS};
use super::handle::Target;
use super::model::{Life, Namespace, Pause, Subsystem};
use super::ns::NsIds;

/// One listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListenerSnapshot {
    /// Its number.
    pub id: ListenerId,
    /// Where it listens.
    pub addr: SocketAddr,
}

/// One namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceSnapshot {
    /// Its number.
    pub nsid: Nsid,
    /// Its names.
    pub ids: NsIds,
    /// Name of the device behind it.
    pub device: String,
    /// Length in blocks.
    pub size_blocks: u64,
    /// Block size in bytes.
    pub block_bytes: u32,
    /// ANA group.
    pub ana_group: u32,
    /// False while it is being opened or closed.
    pub active: bool,
    /// What was done since it was added.
    pub io: IoTotals,
    /// How long commands took: see [`IoCounters::latency_histogram`](super::counters::IoCounters::latency_histogram).
    pub latency: [u64; LATENCY_BUCKETS],
}

/// One controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControllerSnapshot {
    /// Its identifier.
    pub cntlid: Cntlid,
    /// The host's name.
    pub hostnqn: String,
    /// The host's identifier.
    pub hostid: HostId,
    /// The host's end of the admin connection.
    pub peer: SocketAddr,
    /// The listener that it came through.
    pub listener: ListenerId,
    /// Connected I/O queues.
    pub io_queues: usize,
    /// Enabled and ready.
    pub ready: bool,
    /// Keep Alive Timeout in milliseconds; 0 = off.
    pub kato_ms: u32,
    /// Why it ended, while it drains.
    pub death: Option<Death>,
}

/// One subsystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubsystemSnapshot {
    /// Its name.
    pub nqn: String,
    /// What its controllers are for.
    pub kind: ControllerKind,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Who may connect.
    pub hosts: AllowedHosts,
    /// Through which listeners.
    pub listeners: Listeners,
    /// First and last controller identifier to hand out.
    pub cntlids: (u16, u16),
    /// Highest nsid.
    pub max_namespaces: u32,
    /// Number of ANA groups; 0 = not reported.
    pub ana_groups: u16,
    /// Admission is stopped.
    pub paused: bool,
    /// In order of nsid.
    pub namespaces: Vec<NamespaceSnapshot>,
    /// In order of identifier.
    pub controllers: Vec<ControllerSnapshot>,
    /// What all its namespaces did, those included that are gone.
    pub io: IoTotals,
}

impl Target {
    /// All listeners.
    pub fn listeners(&self) -> Vec<ListenerSnapshot> {
        let model = self.shared.lock();
        let all = model.listeners.iter().enumerate();
        all.filter_map(|(i, addr)| Some(ListenerSnapshot { id: ListenerId(i as u16), addr: (*addr)? }))
            .collect()
    }

    /// All subsystems that are not being deleted, the discovery subsystem included, by name.
    pub fn subsystems(&self) -> Vec<SubsystemSnapshot> {
        let model = self.shared.lock();
        let serving = model.subsystems.iter().flatten().filter(|s| s.life == Life::Serving);
        let mut all: Vec<_> = serving.map(subsystem).collect();
        all.sort_by(|a, b| a.nqn.cmp(&b.nqn));
        all
    }

    /// One subsystem.
    pub fn subsystem(&self, nqn: &str) -> Option<SubsystemSnapshot> {
        self.shared.lock().find(nqn).filter(|s| s.life == Life::Serving).map(subsystem)
    }

    /// The state of an ANA group as seen through a listener; `None` when there is no such subsystem or group.
    pub fn ana_state(&self, nqn: &str, listener: ListenerId, group: u32) -> Option<AnaState> {
        let model = self.shared.lock();
        let table = &model.find(nqn).filter(|s| s.life == Life::Serving)?.ana.table;
        (1..=u32::from(table.groups())).contains(&group).then(|| table.state(listener, group))
    }
}

fn subsystem(s: &Subsystem) -> SubsystemSnapshot {
    SubsystemSnapshot {
        nqn: s.nqn.to_string(),
        kind: s.kind,
        serial: s.serial.clone(),
        model: s.model.clone(),
        hosts: s.hosts.clone(),
        listeners: s.listeners.clone(),
        cntlids: (*s.cntlids.start(), *s.cntlids.end()),
        max_namespaces: s.max_namespaces,
        ana_groups: s.ana.table.groups(),
        paused: matches!(s.pause, Pause::Held(_)),
        namespaces: s.namespaces.values().map(namespace).collect(),
        controllers: s.controllers.values().map(|c| controller(c)).collect(),
        io: s.totals(),
    }
}

fn namespace(ns: &Namespace) -> NamespaceSnapshot {
    NamespaceSnapshot {
        nsid: ns.info.nsid,
        ids: ns.ids,
        device: ns.device_name.clone(),
        size_blocks: ns.info.size_blocks,
        block_bytes: ns.info.block_bytes(),
        ana_group: ns.info.ana_group,
        active: ns.active,
        io: ns.totals(),
        latency: ns.latency(),
    }
}

fn controller(c: &Controller) -> ControllerSnapshot {
    let state = c.lock();
    ControllerSnapshot {
        cntlid: c.cntlid(),
        hostnqn: c.hostnqn().to_string(),
        hostid: c.hostid(),
        peer: c.peer_addr(),
        listener: c.listener(),
        io_queues: state.io_queues(),
        ready: state.enabled(),
        kato_ms: state.kato_ms,
        death: state.death(),
    }
}
