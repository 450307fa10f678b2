//! The engine of one daemon: its cores, devices, pools and exports, and every change to them. What changes pools is
//! in [`pools`](crate::pools).
//!
//! Changes run one at a time, each in a task of its own, so that a client that goes away does not leave one half
//! done. What was created by request is written to the state folder before the request is answered.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use aio::reactor::CoreHandle;
use aio::{BlockCount, BlockDevice, DeviceError, DeviceUri};
use nvmf::initiator::{NvmfDevice, PathInfo, PathState};
use nvmf::target::{AnaState, Target, TargetError};
use rpc::mayastor::v1::{NvmeController, NvmeControllerIoStats, NvmeControllerState};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::desired::{self, Desired, Device, Namespace, Subsystem};
use crate::error::EngineError;
use crate::exports::{self, Exported, Exports};
use crate::nexuses::Nexuses;
use crate::nexuses::records::Records;
use crate::node::Node;
use crate::pools::{PoolRef, Pools};
use crate::registry::{self, Claim, Entry, Opened, Origin, Registry, RemoteWishes};
use crate::serve::target_cores;
use crate::state::StateDir;

/// How long the target may take to say goodbye to its hosts.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long pools may take for their last checkpoint.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long, at the start, disks may be in use. A daemon that was killed leaves its disks open for a moment after its end: the
/// kernel waits for what was in flight.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// How often such a disk is tried again.
const START_RETRY: Duration = Duration::from_millis(10);

/// A controller of another host that this engine is connected to.
#[derive(Clone)]
pub struct RemoteController(Arc<NvmfDevice>);

impl RemoteController {
    /// Its name: that of the device.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// As the API shows it.
    pub fn describe(&self) -> NvmeController {
        let block_bytes = self.0.geometry().block_bytes;
        let works = |p: &PathInfo| matches!(p.state, PathState::Optimized | PathState::NonOptimized);
        let state = match self.0.is_live() {
            false => NvmeControllerState::Faulted,
            true if self.0.paths().iter().any(works) => NvmeControllerState::Running,
            // It is being connected again, or waits for access.
            true => NvmeControllerState::Initializing,
        };
        NvmeController {
            name: self.0.name().to_owned(),
            state: state.into(),
            size: self.0.size().0.saturating_mul(block_bytes.into()),
            blk_size: block_bytes,
        }
    }

    /// What it was asked to do.
    pub fn stats(&self) -> NvmeControllerIoStats {
        let stats = self.0.stats();
        NvmeControllerIoStats {
            num_read_ops: stats.reads,
            num_write_ops: stats.writes,
            bytes_read: stats.read_bytes,
            bytes_written: stats.written_bytes,
            num_unmap_ops: stats.unmaps,
            bytes_unmapped: stats.unmapped_bytes,
        }
    }
}

/// See the module.
pub struct Engine {
    node: Node,
    cores: Vec<CoreHandle>,
    registry: Registry,
    exports: Exports,
    pools: Pools,
    nexuses: Nexuses,
    records: Records,
    store: Option<Arc<StateDir>>,
    /// Saved devices that could not be opened: kept, so that a disk that is missing once is not forgotten.
    unopened: Mutex<Vec<Device>>,
    /// The same for pools.
    unopened_pools: Mutex<Vec<desired::Pool>>,
    /// Until then disks that are in use are waited for; `None` once everything was opened that was asked for before.
    patient_until: Mutex<Option<Instant>>,
    /// Held by the change that is under way.
    pub(crate) change: tokio::sync::Mutex<()>,
    /// For work that goes on in the background.
    me: Weak<Self>,
}

impl Engine {
    /// An engine without devices. `cores` is not empty; the first is home to remote devices.
    pub fn new(
        node: Node,
        cores: Vec<CoreHandle>,
        target: Target,
        store: Option<StateDir>,
        records: Records,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            node,
            cores,
            registry: Registry::default(),
            exports: Exports::new(target),
            pools: Pools::default(),
            nexuses: Nexuses::default(),
            records,
            store: store.map(Arc::new),
            unopened: Mutex::default(),
            unopened_pools: Mutex::default(),
            patient_until: Mutex::default(),
            change: tokio::sync::Mutex::default(),
            me: me.clone(),
        })
    }

    /// Who this engine is.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its cores.
    pub fn cores(&self) -> &[CoreHandle] {
        &self.cores
    }

    /// Its devices.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Its pools.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Its nexuses.
    pub fn nexuses(&self) -> &Nexuses {
        &self.nexuses
    }

    /// Where the members of its nexuses are recorded.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Its subsystems.
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    /// The controllers of others that it is connected to.
    pub fn controllers(&self) -> Vec<RemoteController> {
        self.registry.list().into_iter().filter_map(|e| e.remote.map(RemoteController)).collect()
    }

    /// Where hosts find the share of `device`.
    pub fn share_uri(&self, device: &str) -> Option<String> {
        self.exports.share_of(device).map(|nqn| self.node.export_uri(&nqn))
    }

    /// Opens and exports what `desired` says. What fails is logged and returned as sentences, and is retried
    /// when its device is created.
    pub async fn restore(&self, desired: Desired, origin: Origin) -> Vec<String> {
        let change = self.change.lock().await;
        let patience = |until| *self.patient_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        patience(Some(Instant::now() + START_PATIENCE));
        let nexuses = desired.nexuses.clone();
        let mut failures = self.restore_all(desired, origin).await;
        patience(None);
        drop(change);
        if let Some(me) = self.me() {
            failures.extend(me.restore_nexuses(nexuses).await.iter().map(ToString::to_string));
        }
        failures.iter().for_each(|f| warn!("{f}"));
        failures
    }

    async fn restore_all(&self, desired: Desired, origin: Origin) -> Vec<String> {
        let mut failures = Vec::new();
        for device in desired.devices {
            let name = device.uri.parse::<DeviceUri>().map(|u| u.name()).unwrap_or_default();
            if self.registry.find(&name).is_some_and(|e| e.origin == Origin::Config) {
                failures.push(format!(
                    "device {name} is in the configuration and in the state folder: the former counts"
                ));
                continue;
            }
            if let Err(e) = self.open(&device.uri, origin).await {
                failures.push(e.to_string());
                if origin == Origin::Request {
                    self.unopened.lock().unwrap_or_else(PoisonError::into_inner).push(device);
                }
            }
        }
        for pool in desired.pools {
            let name = PoolRef::Name(pool.name.clone());
            if self.pools.find(&name).is_some() {
                failures.push(format!(
                    "pool {} is in the configuration and in the state folder: the former counts",
                    pool.name
                ));
                continue;
            }
            failures.extend(self.restore_pool(&pool, origin).await.iter().map(ToString::to_string));
            if origin == Origin::Request && self.pools.find(&name).is_none() {
                self.unopened_pools.lock().unwrap_or_else(PoisonError::into_inner).push(pool);
            }
        }
        for subsystem in desired.subsystems {
            let nqn = subsystem.nqn.clone();
            if self.exports.find(&nqn).is_ok() {
                failures.push(format!(
                    "subsystem {nqn} is in the configuration and in the state folder: the former counts"
                ));
                continue;
            }
            let of_nexus = desired.nexuses.iter().any(|n| subsystem.share_of.as_ref() == Some(&n.name));
            let failed = self.exports.restore(subsystem, origin, &self.registry).await;
            if of_nexus {
                // It waits for its nexus, which comes last.
                continue;
            }
            failures.extend(failed.iter().map(|e| format!("subsystem {nqn}: {e}")));
        }
        failures
    }

    /// Makes a device, or finds the one that a `bdev:///name` names.
    pub async fn create_device(self: Arc<Self>, text: String) -> Result<Entry, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let entry = match self.adopt(&text)? {
                Some(entry) => entry,
                None => self.open(&text, Origin::Request).await?,
            };
            let name = entry.device.name().to_owned();
            info!(%name, uri = %entry.uri, "device created");
            self.forget_unopened(&name);
            for failure in self.exports.device_appeared(&name, &self.registry).await {
                warn!(%name, "the device is there, but cannot be exported again: {failure}");
            }
            self.save().await?;
            Ok(entry)
        })
        .await
    }

    /// Handles URIs that name a device which is there already.
    fn adopt(&self, text: &str) -> Result<Option<Entry>, EngineError> {
        let uri: DeviceUri = text.parse()?;
        let found = self.registry.find(&uri.name());
        let (entry, uri) = match (found, uri) {
            (Some(entry), uri) => (entry, uri),
            (None, DeviceUri::Bdev(b) | DeviceUri::Loopback(b)) => return Err(EngineError::NoDevice(b.name)),
            (None, _) => return Ok(None),
        };
        check_uuid(&entry, &uri)?;
        let failed = |source| EngineError::ResizeDevice { name: uri.name(), source };
        match &uri {
            DeviceUri::Bdev(_) | DeviceUri::Loopback(_) => {}
            // A disk of a pool may grow, and no more.
            DeviceUri::Malloc(m) if m.resize && BlockCount(m.blocks) < entry.device.size() => {
                let shrunk = self.registry.usable(&uri.name())?.device.resize(BlockCount(m.blocks));
                _ = shrunk.map_err(failed)?
            }
            DeviceUri::Malloc(m) if m.resize => {
                _ = entry.device.resize(BlockCount(m.blocks)).map_err(failed)?
            }
            DeviceUri::Aio(f) if f.rescan => _ = entry.device.rescan().map_err(failed)?,
            _ => return Err(EngineError::DeviceExists(uri.name())),
        }
        Ok(Some(entry))
    }

    async fn open(&self, text: &str, origin: Origin) -> Result<Entry, EngineError> {
        let uri: DeviceUri = text.parse()?;
        if self.registry.find(&uri.name()).is_some() {
            return Err(EngineError::DeviceExists(uri.name()));
        }
        let Opened { device, remote } = self.open_device(&uri).await?;
        let uri = registry::with_uuid(text, &uri, device.uuid());
        let entry = Entry { remote, ..Entry::new(device, uri, origin) };
        self.registry.insert(entry.clone())?;
        Ok(entry)
    }

    /// Opens what a URI describes. At the start it waits for disks that are in use.
    pub(crate) async fn open_device(&self, uri: &DeviceUri) -> Result<Opened, EngineError> {
        let wishes = RemoteWishes { hostnqn: Some(&self.node.hostnqn), queue_depth: None };
        loop {
            let opened = registry::open(uri, &self.cores[0], &wishes).await;
            let Err(EngineError::CreateDevice { source: DeviceError::InUse { .. }, .. }) = &opened else {
                return opened;
            };
            let until = *self.patient_until.lock().unwrap_or_else(PoisonError::into_inner);
            if until.is_none_or(|until| Instant::now() >= until) {
                return opened;
            }
            tokio::time::sleep(START_RETRY).await;
        }
    }

    /// Closes the device that `text` made. Refused while it is exported.
    pub async fn destroy_device(self: Arc<Self>, text: String) -> Result<(), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let uri: DeviceUri = text.parse()?;
            let name = uri.name();
            if self.registry.find(&name).is_none() && self.forget_unopened(&name) {
                info!(%name, "device forgotten, which could not be opened");
                return self.save().await;
            }
            let entry = self.registry.usable(&name)?;
            check_uuid(&entry, &uri)?;
            match entry.origin {
                Origin::Pool => return Err(EngineError::DeviceIsReplica(name)),
                Origin::Nexus => return Err(EngineError::DeviceIsNexus(name)),
                Origin::Config | Origin::Request => {}
            }
            if let Some(nexus) = self.nexuses.user_of(&name) {
                return Err(EngineError::DeviceClaimed { name, by: Claim::Nexus(nexus) });
            }
            if let Some(nqn) = self.exports.uses(&name) {
                return Err(EngineError::DeviceInUse { name, nqn });
            }
            self.registry.remove(&name);
            entry.device.remove();
            info!(%name, "device destroyed");
            self.save().await
        })
        .await
    }

    /// Exports a device alone. No hosts = any host.
    pub async fn share_device(
        self: Arc<Self>,
        name: String,
        hosts: Vec<String>,
    ) -> Result<Entry, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let entry = self.registry.usable(&name)?;
            if entry.origin == Origin::Nexus {
                return Err(EngineError::DeviceIsNexus(name));
            }
            if self.exports.asked_share_of(&name).is_some() {
                return Err(EngineError::AlreadyShared(name));
            }
            if let Some(replica) = self.replica_of_device(&name).await {
                self.share_volume(&replica, hosts).await?;
                return Ok(entry);
            }
            let desired = exports::share(&name, hosts.into_iter().collect());
            self.exports.create(desired, Origin::Request, &self.registry).await?;
            info!(%name, "device shared");
            self.save().await?;
            Ok(entry)
        })
        .await
    }

    /// Ends what [`share_device`](Self::share_device) began; nothing to do is no error.
    pub async fn unshare_device(self: Arc<Self>, name: String) -> Result<(), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            if let Some(replica) = self.replica_of_device(&name).await {
                return self.unshare_volume(&replica).await;
            }
            // One that waits for its device as well: else it would be back with it.
            let Some(nqn) = self.exports.asked_share_of(&name) else { return Ok(()) };
            self.exports.destroy(&nqn).await?;
            info!(%name, "device unshared");
            self.save().await
        })
        .await
    }

    /// Makes a subsystem with its namespaces, or nothing.
    pub async fn create_subsystem(self: Arc<Self>, desired: Subsystem) -> Result<Exported, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let exported = self.exports.create(desired, Origin::Request, &self.registry).await?;
            info!(nqn = %exported.desired.nqn, "subsystem created");
            self.save().await?;
            Ok(exported)
        })
        .await
    }

    /// Disconnects the hosts of a subsystem and removes it.
    pub async fn destroy_subsystem(self: Arc<Self>, nqn: String) -> Result<(), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let exported = self.exports.find(&nqn)?;
            if let Some(replica) = self.replica_shared_as(&exported.desired).await {
                return self.unshare_volume(&replica).await;
            }
            self.exports.destroy(&nqn).await?;
            info!(%nqn, "subsystem destroyed");
            self.save().await
        })
        .await
    }

    /// Adds a namespace.
    pub async fn add_namespace(
        self: Arc<Self>,
        nqn: String,
        nsid: Option<u32>,
        namespace: Namespace,
    ) -> Result<Namespace, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let added = self.exports.add_namespace(&nqn, nsid, namespace, &self.registry).await?;
            info!(%nqn, nsid = added.nsid, device = %added.device, "namespace added");
            self.save().await?;
            Ok(added)
        })
        .await
    }

    /// Removes a namespace.
    pub async fn remove_namespace(self: Arc<Self>, nqn: String, nsid: u32) -> Result<(), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            self.exports.remove_namespace(&nqn, nsid).await?;
            info!(%nqn, nsid, "namespace removed");
            self.save().await
        })
        .await
    }

    /// Gives the device of a namespace another size, or looks at it again. Returns the size before and the
    /// namespace, which has the new one.
    pub async fn resize_namespace(
        self: Arc<Self>,
        nqn: String,
        nsid: u32,
        size_bytes: Option<u64>,
    ) -> Result<(u64, Namespace), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let exported = self.exports.find(&nqn)?;
            let namespace = exported.desired.namespaces.into_iter().find(|n| n.nsid == nsid);
            let namespace = namespace.ok_or(TargetError::NoNamespace { nqn, nsid })?;
            let entry = self.registry.get(&namespace.device)?;
            let before = entry.size_bytes();
            let device = entry.device.clone();
            let failed = |source| EngineError::ResizeDevice { name: namespace.device.clone(), source };
            match size_bytes {
                Some(size_bytes) => {
                    let block_bytes = device.geometry().block_bytes;
                    if size_bytes % u64::from(block_bytes) != 0 || size_bytes == 0 {
                        let name = namespace.device;
                        return Err(EngineError::UnalignedSize { name, size_bytes, block_bytes });
                    }
                    let blocks = BlockCount(size_bytes / u64::from(block_bytes));
                    match self.replica_of_device(&namespace.device).await {
                        Some(replica) => self.resize_volume(&replica, size_bytes).await?,
                        None => _ = blocking(move || device.resize(blocks)).await?.map_err(failed)?,
                    }
                }
                None => _ = blocking(move || device.rescan()).await?.map_err(failed)?,
            }
            info!(device = %namespace.device, before, after = entry.size_bytes(), "device resized");
            Ok((before, namespace))
        })
        .await
    }

    /// Changes who may connect to a subsystem.
    pub async fn change_hosts(
        self: Arc<Self>,
        nqn: String,
        change: impl FnOnce(&mut Subsystem) + Send + 'static,
    ) -> Result<Exported, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            self.exports.change_hosts(&nqn, change)?;
            let desired = self.exports.find(&nqn)?.desired;
            if let Some(replica) = self.replica_shared_as(&desired).await {
                self.record_hosts(&replica, &desired).await?;
            }
            self.save().await?;
            self.exports.find(&nqn)
        })
        .await
    }

    /// Sets the state of one ANA group, or of all.
    pub async fn set_ana(
        self: Arc<Self>,
        nqn: String,
        group: Option<u32>,
        state: AnaState,
    ) -> Result<Exported, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            self.exports.set_ana(&nqn, group, state).await?;
            info!(%nqn, ?group, ?state, "ANA state set");
            self.save().await?;
            self.exports.find(&nqn)
        })
        .await
    }

    /// Forgets saved devices of this name that could not be opened; tells whether there were any.
    fn forget_unopened(&self, name: &str) -> bool {
        let mut unopened = self.unopened.lock().unwrap_or_else(PoisonError::into_inner);
        let before = unopened.len();
        unopened.retain(|d| d.uri.parse::<DeviceUri>().is_ok_and(|u| u.name() != name));
        unopened.len() < before
    }

    /// The same for pools.
    pub(crate) fn forget_unopened_pool(&self, name: &str) -> bool {
        let mut unopened = self.unopened_pools.lock().unwrap_or_else(PoisonError::into_inner);
        let before = unopened.len();
        unopened.retain(|p| p.name != name);
        unopened.len() < before
    }

    /// This engine, for work that goes on in the background; `None` once it ends.
    pub(crate) fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// What would have to be asked for again after a restart.
    fn to_be_saved(&self) -> Desired {
        let requested = |origin| origin == Origin::Request;
        let mut devices: Vec<Device> = self.unopened.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let open = self.registry.list().into_iter().filter(|e| requested(e.origin));
        devices.extend(open.map(|e| Device { uri: e.uri }));
        let subsystems = self.exports.list().into_iter().filter(|e| requested(e.origin)).map(|e| e.desired);
        let mut pools = self.unopened_pools.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let open = self.pools.list().into_iter().filter(|e| requested(e.origin));
        pools.extend(open.map(|e| desired::Pool {
            name: e.pool.name().to_owned(),
            disks: e.members.into_iter().map(|m| m.uri).collect(),
            replicas: Vec::new(),
        }));
        let nexuses = self.nexuses_to_be_saved();
        Desired { devices, pools, nexuses, subsystems: subsystems.collect() }
    }

    pub(crate) async fn save(&self) -> Result<(), EngineError> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        let desired = self.to_be_saved();
        blocking(move || store.save(&desired)).await?.map_err(EngineError::NotRecorded)
    }

    /// Says goodbye to all hosts, closes the nexuses, pools and devices and ends the cores. What was created by request stays in the
    /// state folder. Takes a bounded time.
    pub async fn shut_down(&self) {
        // No change begins any more, and the one under way gets its time.
        let change = tokio::time::timeout(DRAIN_TIMEOUT, self.change.lock()).await;
        let goodbye = async {
            for exported in self.exports.list().iter().filter(|e| e.created) {
                if let Err(e) = self.exports.target().delete_subsystem(&exported.desired.nqn).await {
                    warn!("{e}");
                }
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, goodbye).await.is_err() {
            warn!("hosts did not let go in time");
        }
        self.close_nexuses().await;
        if tokio::time::timeout(CLOSE_TIMEOUT, self.close_pools()).await.is_err() {
            warn!("a pool was not closed in time; it is recovered when it is imported");
        }
        for entry in self.registry.list() {
            entry.device.remove();
        }
        let shares = async {
            for core in &self.cores {
                target_cores::stop(core).await;
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, shares).await.is_err() {
            warn!("devices did not let go of their commands in time");
        }
        let cores = self.cores.clone();
        let ended = blocking(move || {
            cores.iter().for_each(CoreHandle::stop);
            cores.iter().for_each(CoreHandle::join);
        });
        if tokio::time::timeout(DRAIN_TIMEOUT, ended).await.is_err() {
            warn!("a core did not end in time");
        }
        // Whatever waited for its turn finds nothing to change.
        drop(change);
    }
}

pub(crate) fn check_uuid(entry: &Entry, uri: &DeviceUri) -> Result<(), EngineError> {
    let actual = entry.device.uuid();
    match uri.uuid() {
        // The uuid of a remote URI is the identity of a record above, not of the namespace.
        Some(asked) if asked != actual && !matches!(uri, DeviceUri::Nvmf(_)) => {
            Err(EngineError::UuidMismatch { name: uri.name(), actual, asked })
        }
        _ => Ok(()),
    }
}

/// Runs a change to its end whatever becomes of the client.
pub(crate) async fn detached<T: Send + 'static>(
    change: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::spawn(change).await.unwrap_or(Err(EngineError::ShuttingDown))
}

/// Runs what may block where that hurts nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    spawn_blocking(work).await.map_err(|_| EngineError::ShuttingDown)
}
