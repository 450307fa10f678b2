//! Pools as a whole: create, import, grow, export, destroy.

use std::collections::BTreeSet;
use std::sync::Arc;

use aio::reactor::CoreHandle;
use aio::{BlockDevice, DeviceUri};
use lvs::LvsError;
use lvs::info::{CreatePool, CreateVolume, ImportPool, PoolInfo, VolumeInfo};
use tracing::{info, warn};
use uuid::Uuid;

use super::{Member, PoolEntry, PoolRef};
use crate::desired;
use crate::engine::{Engine, blocking, check_uuid, detached};
use crate::error::{EngineError, PoolError, PoolOp, chain};
use crate::exports;
use crate::node::escape;
use crate::registry::{self, Claim, Entry, Opened, Origin};

/// What a request says of a pool that is to be opened.
#[derive(Clone, Debug)]
pub struct PoolWish {
    /// Its name.
    pub name: String,
    /// Its identity, when that is given.
    pub uuid: Option<Uuid>,
    /// Paths or device URIs.
    pub disks: Vec<String>,
    /// What may be done.
    pub how: How,
}

/// How a pool is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Only one that is on the disks.
    Import,
    /// The same; with disks missing it is opened for reading only.
    ImportDegraded,
    /// One that is on the disks, as they were remembered: those that are not its disks are left out.
    Restore,
    /// That one, or a new one where there is none.
    ImportOrCreate,
    /// A new one, whatever is on the disks.
    Overwrite,
}

impl How {
    fn op(self) -> PoolOp {
        match self {
            Self::Import | Self::ImportDegraded | Self::Restore => PoolOp::ImportPool,
            Self::ImportOrCreate | Self::Overwrite => PoolOp::CreatePool,
        }
    }
}

/// The URI of a disk: a path stands for the file or block device.
pub fn disk_uri(disk: &str) -> String {
    if disk.contains("://") { disk.to_owned() } else { format!("aio://{}", escape(disk, &['%', '?', '#'])) }
}

/// Disks that were opened, or found, for a pool.
struct Disks {
    devices: Vec<Arc<dyn BlockDevice>>,
    members: Vec<Member>,
}

impl Engine {
    /// Opens a pool, or makes one.
    pub async fn open_pool(self: Arc<Self>, wish: PoolWish) -> Result<PoolEntry, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let name = wish.name.clone();
            let entry = self.bring_in(wish, Origin::Request).await?;
            info!(%name, uuid = %entry.pool.uuid(), "pool opened");
            self.forget_unopened_pool(&name);
            self.save().await?;
            Ok(entry)
        })
        .await
    }

    /// Opens what the configuration or the state folder says. The caller holds the lock of changes.
    pub(crate) async fn restore_pool(&self, pool: &desired::Pool, origin: Origin) -> Vec<EngineError> {
        let how = if origin == Origin::Config { How::ImportOrCreate } else { How::Restore };
        let wish = PoolWish { name: pool.name.clone(), uuid: None, disks: pool.disks.clone(), how };
        let entry = match self.bring_in(wish, origin).await {
            Ok(entry) => entry,
            Err(e) => return vec![e],
        };
        info!(name = %pool.name, uuid = %entry.pool.uuid(), "pool opened");
        let mut failures = Vec::new();
        for replica in &pool.replicas {
            failures.extend(self.declare_replica(&entry, replica).await.err());
        }
        failures
    }

    /// A replica of the configuration: made when it is not there, and shared as it says.
    async fn declare_replica(&self, entry: &PoolEntry, wanted: &desired::Replica) -> Result<(), EngineError> {
        let volumes = entry.pool.volumes().await.map_err(PoolOp::List.failed(entry.pool.name()))?;
        let uuid = match volumes.iter().find(|v| v.name == wanted.name) {
            Some(volume) => volume.uuid,
            None => {
                let spec = CreateVolume {
                    name: wanted.name.clone(),
                    uuid: None,
                    size_bytes: wanted.size_bytes,
                    thin: wanted.thin,
                    entity_id: None,
                };
                self.make_volume(entry, spec).await?.uuid
            }
        };
        let found = self.replica(&uuid.to_string()).await?;
        match wanted.share {
            true => self.share_volume(&found, wanted.hosts.iter().cloned().collect()).await,
            false => Ok(()),
        }
    }

    /// Checks, opens the disks, then the pool, then everything in it; or nothing.
    async fn bring_in(&self, wish: PoolWish, origin: Origin) -> Result<PoolEntry, EngineError> {
        if wish.disks.is_empty() {
            return Err(PoolError::NoDisks.into());
        }
        self.check_not_open(&wish)?;
        let mut disks = self.open_disks(&wish.disks).await?;
        let home = self.home_of_next_pool();
        let mut result = open_on(home.clone(), &disks.devices, &wish).await;
        while wish.how == How::Restore
            && disks.members.len() > 1
            && let Err(LvsError::StaleDisk { disk, .. } | LvsError::NoPool { disk }) = &result
            && let Some(at) = disks.members.iter().position(|m| m.device == *disk)
        {
            // It was about to join or had just left when the daemon ended.
            warn!(pool = %wish.name, %disk, "the disk is left out: {}", chain_of(&result));
            disks.devices.remove(at);
            self.close_disks(&[disks.members.remove(at)]);
            result = open_on(home.clone(), &disks.devices, &wish).await;
        }
        let opened = match result {
            Ok(pool) => self.check_identity_is_free(&pool).map(|()| pool),
            Err(e) => Err(wish.how.op().failed(&wish.name)(e)),
        };
        let pool = match opened {
            Ok(pool) => pool,
            Err(e) => {
                self.close_disks(&disks.members);
                return Err(e);
            }
        };
        for member in &disks.members {
            self.registry().claim(&member.device, Some(Claim::Pool(pool.name().to_owned())));
        }
        let entry = PoolEntry { pool, members: disks.members, origin };
        self.pools().insert(entry.clone());
        self.adopt_contents(&entry).await;
        self.resume_removals(&entry).await;
        Ok(entry)
    }

    fn check_not_open(&self, wish: &PoolWish) -> Result<(), EngineError> {
        let Some(open) = self.pools().find(&PoolRef::Name(wish.name.clone())) else { return Ok(()) };
        let mut wanted = BTreeSet::new();
        for disk in &wish.disks {
            wanted.insert(disk_uri(disk).parse::<DeviceUri>()?.name());
        }
        let has: BTreeSet<String> = open.members.into_iter().map(|m| m.device).collect();
        match has == wanted {
            true => Err(PoolError::Exists(wish.name.clone()).into()),
            false => Err(PoolError::NameTaken(wish.name.clone()).into()),
        }
    }

    /// Two copies of one disk must not be open at once.
    fn check_identity_is_free(&self, pool: &lvs::Pool) -> Result<(), EngineError> {
        let uuid = pool.uuid();
        match self.pools().find(&PoolRef::Uuid(uuid.to_string())) {
            Some(open) => Err(PoolError::UuidTaken { uuid, name: open.pool.name().to_owned() }.into()),
            None => Ok(()),
        }
    }

    /// Pools are spread over the cores: the one with the fewest. Of several the last, because the first has the remote
    /// devices.
    fn home_of_next_pool(&self) -> CoreHandle {
        let pools = self.pools().list();
        let of = |core: &&CoreHandle| pools.iter().filter(|e| e.pool.home().id() == core.id()).count();
        self.cores().iter().rev().min_by_key(of).expect("invariant: an engine has a core").clone()
    }

    /// Opens all disks, or none.
    async fn open_disks(&self, texts: &[String]) -> Result<Disks, EngineError> {
        let mut disks = Disks { devices: Vec::new(), members: Vec::new() };
        for text in texts {
            match self.open_disk(text, &disks.members).await {
                Ok((device, member)) => {
                    disks.devices.push(device);
                    disks.members.push(member);
                }
                Err(e) => {
                    self.close_disks(&disks.members);
                    return Err(e);
                }
            }
        }
        Ok(disks)
    }

    /// Finds the device among those that are there, or opens it.
    pub(super) async fn open_disk(
        &self,
        text: &str,
        others: &[Member],
    ) -> Result<(Arc<dyn BlockDevice>, Member), EngineError> {
        let text = disk_uri(text);
        let uri: DeviceUri = text.parse()?;
        let device = uri.name();
        if others.iter().any(|m| m.device == device) {
            return Err(PoolError::DiskTwice(device).into());
        }
        let busy = |by: String| EngineError::from(PoolError::DiskBusy { disk: device.clone(), by });
        if let Some(entry) = self.registry().find(&device) {
            check_uuid(&entry, &uri)?;
            if let Some(by) = &entry.claimed_by {
                return Err(busy(by.to_string()));
            }
            if let Some(nexus) = self.nexuses().user_of(&device) {
                return Err(busy(format!("nexus {nexus}")));
            }
            if entry.origin == Origin::Nexus {
                return Err(busy("hosts: a nexus cannot be a disk of a pool".to_owned()));
            }
            if let Some(nqn) = self.exports().uses(&device) {
                return Err(busy(format!("subsystem {nqn}")));
            }
            if entry.origin == Origin::Pool {
                return Err(busy("the pool that this replica is in".to_owned()));
            }
            return Ok((entry.device, Member { device, uri: entry.uri, owned: false }));
        }
        let Opened { device: opened, remote } = self.open_device(&uri).await?;
        let uri = registry::with_uuid(&text, &uri, opened.uuid());
        let entry = Entry { remote, ..Entry::new(opened.clone(), uri.clone(), Origin::Pool) };
        self.registry().insert(entry)?;
        Ok((opened, Member { device, uri, owned: true }))
    }

    /// Gives disks back, and closes those that were opened for the pool.
    pub(super) fn close_disks(&self, members: &[Member]) {
        for member in members {
            self.registry().claim(&member.device, None);
            if member.owned
                && let Some(entry) = self.registry().remove(&member.device)
            {
                entry.device.remove();
            }
        }
    }

    /// Replicas become devices, shares are served again, and discarded snapshots that nobody needs any more go.
    /// What fails is logged: the pool is open all the same.
    async fn adopt_contents(&self, entry: &PoolEntry) {
        let pool = entry.pool.name();
        match entry.pool.snapshots().await {
            Ok(snapshots) => {
                for s in snapshots.iter().filter(|s| s.discarded && s.clones == 0) {
                    if let Err(e) = entry.pool.destroy_snapshot(s.uuid).await {
                        warn!(%pool, snapshot = %s.uuid, "a discarded snapshot cannot be removed: {}", chain(&e));
                    }
                }
            }
            Err(e) => warn!(%pool, "snapshots cannot be listed: {}", chain(&e)),
        }
        match entry.pool.volumes().await {
            Ok(volumes) => {
                for volume in volumes {
                    if let Err(e) = self.adopt_volume(entry, &volume).await {
                        warn!(%pool, replica = %volume.name, "{e}");
                    }
                }
            }
            Err(e) => warn!(%pool, "replicas cannot be listed: {}", chain(&e)),
        }
    }

    /// Makes a replica a device, with its share and whatever else waited for it. An export that fails is logged, and
    /// waits.
    pub(super) async fn adopt_volume(&self, entry: &PoolEntry, info: &VolumeInfo) -> Result<(), EngineError> {
        let Some(volume) = entry.pool.volume(info.uuid) else {
            return Err(PoolError::NoReplica(info.uuid.to_string()).into());
        };
        let uri = volume_uri(&info.name, info.uuid);
        self.registry().insert(Entry::new(volume, uri, Origin::Pool))?;
        let mut failures = Vec::new();
        if info.properties.shared {
            let hosts = info.properties.allowed_hosts.iter().cloned().collect();
            let share = exports::share(&info.name, hosts);
            failures = self.exports().restore(share, Origin::Pool, self.registry()).await;
        }
        failures.extend(self.exports().device_appeared(&info.name, self.registry()).await);
        for failure in failures {
            warn!(replica = %info.name, "the replica is there, but cannot be exported again: {failure}");
        }
        Ok(())
    }

    /// The replica is no device any more: hosts are disconnected first.
    pub(super) async fn drop_volume(&self, name: &str) -> Result<(), EngineError> {
        self.exports().device_gone(name).await?;
        self.registry().remove(name);
        Ok(())
    }

    async fn drop_contents(&self, entry: &PoolEntry) -> Result<(), EngineError> {
        let volumes = entry.pool.volumes().await.map_err(PoolOp::ChangePool.failed(entry.pool.name()))?;
        for volume in volumes {
            // Another device may have its name, if it could not be adopted.
            if self.is_device(&volume.name, volume.uuid) {
                self.drop_volume(&volume.name).await?;
            }
        }
        Ok(())
    }

    /// Whether the device called `name` is the replica with this uuid.
    pub(super) fn is_device(&self, name: &str, uuid: Uuid) -> bool {
        self.registry().find(name).is_some_and(|e| e.origin == Origin::Pool && e.device.uuid() == uuid)
    }

    /// Removes a pool and all that is in it.
    pub async fn destroy_pool(self: Arc<Self>, name: String, uuid: Option<Uuid>) -> Result<(), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let entry = self.named_pool(&name, uuid)?;
            // Those of a pool that cannot tell stay behind, in nobody's way.
            let volumes = entry.pool.volumes().await.unwrap_or_default();
            self.drop_contents(&entry).await?;
            if let Err(e) = entry.pool.destroy().await {
                if self.is_closed(&entry).await {
                    self.let_go(&entry).await?;
                } else {
                    self.adopt_contents(&entry).await;
                }
                return Err(PoolOp::ChangePool.failed(name)(e));
            }
            self.let_go(&entry).await?;
            volumes.iter().for_each(|volume| self.exports().forget_reservations(volume.uuid));
            info!(%name, "pool destroyed");
            Ok(())
        })
        .await
    }

    /// Closes a pool. One that is remembered but could not be opened is forgotten.
    pub async fn export_pool(self: Arc<Self>, name: String, uuid: Option<Uuid>) -> Result<(), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let entry = match self.named_pool(&name, uuid) {
                Ok(entry) => entry,
                Err(_) if self.forget_unopened_pool(&name) => {
                    info!(%name, "pool forgotten, which could not be opened");
                    return self.save().await;
                }
                Err(e) => return Err(e),
            };
            self.drop_contents(&entry).await?;
            if let Err(e) = entry.pool.export().await {
                if !self.is_closed(&entry).await {
                    self.adopt_contents(&entry).await;
                    return Err(PoolOp::ChangePool.failed(name)(e));
                }
                // Of a pool that is faulted: there was nothing more that could be made durable.
                warn!(%name, "pool exported, and not clean: {}; it is recovered when it is imported", chain(&e));
            }
            self.let_go(&entry).await?;
            info!(%name, "pool exported");
            Ok(())
        })
        .await
    }

    async fn is_closed(&self, entry: &PoolEntry) -> bool {
        matches!(entry.pool.info().await, Err(LvsError::Closed { .. }))
    }

    /// A pool was closed.
    async fn let_go(&self, entry: &PoolEntry) -> Result<(), EngineError> {
        self.pools().remove(entry.pool.uuid());
        self.close_disks(&entry.members);
        self.save().await
    }

    /// Looks at the disks again and uses what they have become larger by. The pool before and after.
    pub async fn grow_pool(
        self: Arc<Self>,
        name: String,
        uuid: Option<Uuid>,
    ) -> Result<(PoolEntry, PoolInfo, PoolInfo), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let entry = self.named_pool(&name, uuid)?;
            for member in &entry.members {
                let device = self.registry().get(&member.device)?.device;
                let failed = |source| EngineError::ResizeDevice { name: member.device.clone(), source };
                blocking(move || device.rescan()).await?.map_err(failed)?;
            }
            let (before, after) = entry.pool.grow().await.map_err(PoolOp::ChangePool.failed(&name))?;
            info!(%name, before = before.capacity_bytes, after = after.capacity_bytes, "pool grown");
            Ok((entry, before, after))
        })
        .await
    }

    fn named_pool(&self, name: &str, uuid: Option<Uuid>) -> Result<PoolEntry, EngineError> {
        let found = self.pools().find(&PoolRef::Name(name.to_owned()));
        let found = found.filter(|e| uuid.is_none_or(|u| u == e.pool.uuid()));
        found.ok_or_else(|| PoolError::NotFound(name.to_owned()).into())
    }

    /// Closes all pools, as the daemon ends. Hosts have been sent away.
    pub(crate) async fn close_pools(&self) {
        for entry in self.pools().list() {
            if let Err(e) = entry.pool.export().await {
                warn!(pool = %entry.pool.name(), "not closed cleanly: {}; it is recovered when it is imported", chain(&e));
            }
        }
    }
}

fn chain_of(result: &Result<lvs::Pool, LvsError>) -> String {
    result.as_ref().err().map_or_else(String::new, |e| chain(e))
}

/// How a replica is named while it is not shared.
pub fn volume_uri(name: &str, uuid: Uuid) -> String {
    format!("bdev:///{}?uuid={uuid}", escape(name, &['%', '?', '#']))
}

/// Imports the pool that is there, or makes one.
async fn open_on(
    home: CoreHandle,
    devices: &[Arc<dyn BlockDevice>],
    wish: &PoolWish,
) -> Result<lvs::Pool, LvsError> {
    let force = wish.how == How::Overwrite;
    if !force {
        let spec = ImportPool {
            name: Some(wish.name.clone()),
            uuid: wish.uuid,
            degraded: wish.how == How::ImportDegraded,
        };
        match lvs::Pool::import(home.clone(), devices.to_vec(), spec).await {
            // Only a disk without any pool is written to.
            Err(LvsError::NoPool { .. }) if wish.how == How::ImportOrCreate => {}
            result => return result,
        }
    }
    let spec = CreatePool { name: wish.name.clone(), uuid: wish.uuid, force };
    lvs::Pool::create(home, devices.to_vec(), spec).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_uris_or_paths() {
        assert_eq!(disk_uri("/dev/sdb"), "aio:///dev/sdb");
        assert_eq!(disk_uri("malloc:///a?size_mb=1"), "malloc:///a?size_mb=1");
        for path in ["/tmp/a b", "/tmp/50%", "/tmp/a?b#c"] {
            assert_eq!(disk_uri(path).parse::<DeviceUri>().unwrap().name(), path);
        }
        assert!(disk_uri("relative").parse::<DeviceUri>().is_err());
        assert!(disk_uri("").parse::<DeviceUri>().is_err());
    }

    #[test]
    fn odd_names_of_replicas_become_sound_uris() {
        let uuid = Uuid::from_u128(5);
        for name in ["replica1", "a/b", "50%?#", "ä ö"] {
            let uri: DeviceUri = volume_uri(name, uuid).parse().unwrap();
            assert_eq!((uri.name(), uri.uuid()), (name.to_owned(), Some(uuid)));
        }
    }
}
