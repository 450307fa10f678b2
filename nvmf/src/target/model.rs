//! What the target knows: subsystems, their namespaces and controllers, listeners, cores.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use aio::device::Subscription;
use aio::{BlockDevice, Capabilities, Instant};
use nvme::{Cntlid, HostId, Nqn, Nsid};

use super::admin::{DiscoveryPages, Event};
use super::ana::{AnaTable, ListenerId};
use super::board::{CoreInbox, CoreMsg, SubsystemId};
use super::config::{AllowedHosts, Listeners};
use super::controller::{Controller, ControllerKind};
use super::counters::{IoCounters, IoTotals, LATENCY_BUCKETS};
use super::ns::{NsIds, NsInfo};
use super::reserve::Desk;

/// Everything behind the model's mutex.
pub(super) struct Model {
    pub(super) subsystems: Vec<Option<Subsystem>>,
    pub(super) by_nqn: HashMap<Nqn, SubsystemId>,
    pub(super) cores: Vec<Arc<CoreInbox>>,
    pub(super) listeners: Vec<Option<SocketAddr>>,
    /// Generation counter of the discovery log page.
    pub(super) discovery_generation: u64,
    /// Discovery log pages of this generation that were read lately.
    pub(super) discovery_pages: DiscoveryPages,
    /// Controllers over all subsystems, dying ones included.
    pub(super) controllers: usize,
    /// Serial number of the next namespace.
    pub(super) next_namespace: u64,
    /// Associations that there were.
    pub(super) associations: u64,
    /// Number of the next pause.
    pub(super) next_pause: u64,
    /// When the target was made, as far as anybody told the time: power-on hours count from here.
    pub(super) started: Option<Instant>,
}

pub(super) struct Subsystem {
    pub(super) id: SubsystemId,
    pub(super) nqn: Nqn,
    pub(super) kind: ControllerKind,
    pub(super) serial: String,
    pub(super) model: String,
    pub(super) hosts: AllowedHosts,
    pub(super) listeners: Listeners,
    pub(super) cntlids: std::ops::RangeInclusive<u16>,
    pub(super) next_cntlid: u16,
    pub(super) max_namespaces: u32,
    pub(super) namespaces: BTreeMap<Nsid, Namespace>,
    pub(super) ana: Ana,
    pub(super) controllers: BTreeMap<Cntlid, Arc<Controller>>,
    /// What removed namespaces counted.
    pub(super) retired: IoTotals,
    pub(super) life: Life,
    pub(super) pause: Pause,
}

/// Whether the cores hold commands of a subsystem back. Each pause has a number, so that the end of an old one is not
/// taken for that of the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Pause {
    /// They do not.
    #[default]
    None,
    /// They do, or are about to.
    Held(u64),
    /// They did for too long and do not any more, and whoever asked for it has not heard of that yet.
    Undone(u64),
}

/// How far the deletion of a subsystem is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// Not deleted.
    Serving,
    /// Nobody connects, nothing is added; the cores close the namespaces.
    Deleting,
    /// The name is free again; the last controllers drain.
    Nameless,
    /// The cores forget its place.
    Forgotten,
}

/// ANA of one subsystem.
#[derive(Default)]
pub(super) struct Ana {
    pub(super) table: AnaTable,
    /// The log page's change count.
    pub(super) changes: u64,
}

pub(super) struct Namespace {
    /// Unlike the nsid never reused: events of a removed namespace are recognised.
    pub(super) serial: u64,
    pub(super) info: NsInfo,
    pub(super) ids: NsIds,
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) device_name: String,
    /// As the device reported it when it was added.
    pub(super) incarnation: Option<u128>,
    /// Hint to hosts; 0 = none.
    pub(super) boundary_blocks: u32,
    /// Its reservations.
    pub(super) desk: Desk,
    /// One per core, in the order of the cores.
    pub(super) counters: Vec<Arc<IoCounters>>,
    pub(super) subscription: Option<Subscription>,
    /// False while the cores open it and while they close it: hosts do not see it.
    pub(super) active: bool,
}

impl Namespace {
    /// How long commands took, over all cores.
    pub(super) fn latency(&self) -> [u64; LATENCY_BUCKETS] {
        let mut sum = [0; LATENCY_BUCKETS];
        for counters in &self.counters {
            for (total, n) in sum.iter_mut().zip(counters.latency_histogram()) {
                *total += n;
            }
        }
        sum
    }

    pub(super) fn totals(&self) -> IoTotals {
        let mut sum = IoTotals::default();
        for counters in &self.counters {
            sum += counters.totals();
        }
        sum
    }
}

impl Subsystem {
    /// Tells every controller.
    pub(super) fn raise(&self, event: Event) {
        for controller in self.controllers.values() {
            controller.raise(event);
        }
    }

    /// A namespace came, went or changed its group: the ANA log page is another one.
    pub(super) fn ana_changed(&mut self) {
        if self.ana.table.groups() > 0 {
            self.ana.changes += 1;
            self.raise(Event::Ana);
        }
    }

    /// The namespaces that hosts see, by nsid.
    pub(super) fn active(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values().filter(|ns| ns.active)
    }

    pub(super) fn namespace(&self, nsid: Nsid) -> Option<&Namespace> {
        self.namespaces.get(&nsid).filter(|ns| ns.active)
    }

    /// The lowest nsid that nobody has.
    pub(super) fn free_nsid(&self) -> Option<Nsid> {
        (1..=self.max_namespaces).map(Nsid).find(|nsid| !self.namespaces.contains_key(nsid))
    }

    /// An identifier that no controller has, not even a dying one; the one that was free longest comes first.
    pub(super) fn take_cntlid(&mut self) -> Option<Cntlid> {
        let (first, last) = (*self.cntlids.start(), *self.cntlids.end());
        let from = self.next_cntlid.clamp(first, last);
        let found =
            (from..=last).chain(first..from).map(Cntlid).find(|id| !self.controllers.contains_key(id))?;
        self.next_cntlid = if found.0 == last { first } else { found.0 + 1 };
        Some(found)
    }

    /// True while an association of this host with this subsystem is dead but not drained.
    pub(super) fn has_dying(&self, hostnqn: &Nqn, hostid: HostId) -> bool {
        self.controllers.values().any(|c| c.is_host(hostnqn, hostid) && !c.alive())
    }

    pub(super) fn has_volatile_cache(&self) -> bool {
        // Those that are on their way count too: what identify says has to hold when they arrive.
        let mut all = self.namespaces.values();
        all.any(|ns| !ns.info.write_through && ns.info.caps.contains(Capabilities::VOLATILE_CACHE))
    }

    pub(super) fn totals(&self) -> IoTotals {
        let mut sum = self.retired;
        for ns in self.namespaces.values() {
            sum += ns.totals();
        }
        sum
    }
}

impl Model {
    pub(super) fn subsystem(&self, id: SubsystemId) -> Option<&Subsystem> {
        self.subsystems.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn subsystem_mut(&mut self, id: SubsystemId) -> Option<&mut Subsystem> {
        self.subsystems.get_mut(id.0 as usize)?.as_mut()
    }

    pub(super) fn find(&self, nqn: &str) -> Option<&Subsystem> {
        self.subsystem(*self.by_nqn.get(nqn)?)
    }

    pub(super) fn find_mut(&mut self, nqn: &str) -> Option<&mut Subsystem> {
        let id = *self.by_nqn.get(nqn)?;
        self.subsystem_mut(id)
    }

    /// Puts a new subsystem into the lowest free place.
    pub(super) fn insert(&mut self, make: impl FnOnce(SubsystemId) -> Subsystem) -> SubsystemId {
        let place = self.subsystems.iter().position(Option::is_none).unwrap_or_else(|| {
            self.subsystems.push(None);
            self.subsystems.len() - 1
        });
        let id = SubsystemId(place as u32);
        let subsystem = make(id);
        self.by_nqn.insert(subsystem.nqn.clone(), id);
        self.subsystems[place] = Some(subsystem);
        id
    }

    /// Posts a notice to every core.
    pub(super) fn notify_cores(&self, make: impl Fn() -> CoreMsg) {
        for core in &self.cores {
            core.post(make());
        }
    }

    /// The discovery log page is another one than before: counts, and tells who asked to be told.
    pub(super) fn discovery_changed(&mut self) {
        self.discovery_generation += 1;
        let discovery = self.subsystems.iter().flatten().filter(|s| s.kind == ControllerKind::Discovery);
        for controller in discovery.flat_map(|s| s.controllers.values()) {
            controller.raise(Event::Discovery);
        }
    }

    pub(super) fn listener(&self, id: ListenerId) -> Option<SocketAddr> {
        self.listeners.get(usize::from(id.0)).copied().flatten()
    }
}
