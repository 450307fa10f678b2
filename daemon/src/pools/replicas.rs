//! Replicas: the volumes of a pool.

use std::collections::BTreeSet;
use std::sync::Arc;

use aio::BlockDevice;
use lvs::LvsError;
use lvs::info::{CreateVolume, VolumeInfo, VolumeProperties};
use tracing::{info, warn};
use uuid::Uuid;

use super::{FoundReplica, PoolEntry, PoolRef};
use crate::engine::{Engine, detached};
use crate::error::{EngineError, PoolError, PoolOp};
use crate::exports;
use crate::registry::{Claim, Origin};

/// The longest name of a host (NVMe Base 2.0, section 4.5).
const MAX_HOST_BYTES: usize = 223;

/// What a request says of a new replica.
#[derive(Clone, Debug)]
pub struct ReplicaWish {
    /// The pool that it is made in.
    pub pool: PoolRef,
    /// The replica.
    pub spec: CreateVolume,
    /// Export it at once, to these hosts; none = any.
    pub share: Option<Vec<String>>,
}

impl Engine {
    /// Makes a replica, and shares it if asked to; or does neither.
    pub async fn create_replica(self: Arc<Self>, wish: ReplicaWish) -> Result<FoundReplica, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let entry = self.pools().containing(&wish.pool)?;
            if let Some(uuid) = wish.spec.uuid {
                self.check_uuid_is_free(uuid, "replica").await?;
            }
            self.check_name_is_free(&wish.spec.name)?;
            let made = self.make_volume(&entry, wish.spec).await?;
            let found = FoundReplica { entry, info: made };
            if let Some(hosts) = wish.share
                && let Err(e) = self.share_volume(&found, hosts).await
            {
                self.unmake_volume(&found).await;
                return Err(e);
            }
            info!(pool = %found.entry.pool.name(), name = %found.info.name, uuid = %found.info.uuid, "replica created");
            self.replica(&found.info.uuid.to_string()).await
        })
        .await
    }

    pub(super) fn check_name_is_free(&self, name: &str) -> Result<(), EngineError> {
        match self.registry().find(name) {
            Some(_) => Err(PoolError::ObjectExists { what: "device", name: name.to_owned() }.into()),
            None => Ok(()),
        }
    }

    /// A new volume, as a device.
    pub(super) async fn make_volume(
        &self,
        entry: &PoolEntry,
        spec: CreateVolume,
    ) -> Result<VolumeInfo, EngineError> {
        let name = spec.name.clone();
        let volume = entry.pool.create_volume(spec).await.map_err(PoolOp::CreateReplica.failed(name))?;
        self.enlist(entry, volume.uuid(), PoolOp::CreateReplica).await
    }

    /// Makes a volume that was just created a device; removes it when that fails.
    pub(super) async fn enlist(
        &self,
        entry: &PoolEntry,
        uuid: Uuid,
        op: PoolOp,
    ) -> Result<VolumeInfo, EngineError> {
        let info = entry.pool.volume_info(uuid).await.map_err(op.failed(uuid.to_string()))?;
        if let Err(e) = self.adopt_volume(entry, &info).await {
            if let Err(e) = entry.pool.destroy_volume(info.uuid).await {
                return Err(op.failed(info.name)(e));
            }
            return Err(e);
        }
        Ok(info)
    }

    /// Takes back a creation that failed later.
    async fn unmake_volume(&self, found: &FoundReplica) {
        let name = &found.info.name;
        if let Err(e) = self.drop_volume(name).await {
            warn!(%name, "{e}");
        }
        if let Err(e) = found.entry.pool.destroy_volume(found.info.uuid).await {
            warn!(%name, "a replica that could not be shared is left over: {e}");
        }
    }

    /// Removes a replica; `pool` is where it has to be, if given.
    pub async fn destroy_replica(
        self: Arc<Self>,
        uuid: String,
        pool: Option<PoolRef>,
    ) -> Result<(), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let pool = pool.map(|p| self.pools().containing(&p)).transpose()?;
            let found = self.replica(&uuid).await?;
            check_pool("replica", found.info.uuid, &found.entry, pool.as_ref())?;
            let (name, id) = (found.info.name.clone(), found.info.uuid);
            let share = self.exports().asked_share_of(&name);
            if let Some(nqn) = self.exports().uses(&name)
                && share.as_ref() != Some(&nqn)
            {
                return Err(EngineError::DeviceInUse { name, nqn });
            }
            if let Some(nexus) = self.nexuses().user_of(&name).filter(|_| self.is_device(&name, id)) {
                return Err(EngineError::DeviceClaimed { name, by: Claim::Nexus(nexus) });
            }
            if self.is_device(&name, id) {
                self.drop_volume(&name).await?;
            }
            match found.entry.pool.destroy_volume(id).await {
                Ok(()) => {
                    info!(%name, uuid = %id, "replica destroyed");
                    self.exports().forget_reservations(id);
                    Ok(())
                }
                Err(LvsError::NotFound { .. }) => Err(PoolError::NoReplica(uuid).into()),
                Err(e) => {
                    if let Err(e) = self.adopt_volume(&found.entry, &found.info).await {
                        warn!(%name, "{e}");
                    }
                    Err(PoolOp::DestroyReplica.failed(name)(e))
                }
            }
        })
        .await
    }

    /// Exports a replica, or replaces the hosts that may connect. `share` false is for what is not shared anyway.
    pub async fn share_replica(
        self: Arc<Self>,
        uuid: String,
        share: bool,
        hosts: Vec<String>,
    ) -> Result<FoundReplica, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let found = self.replica(&uuid).await?;
            let shared = self.exports().asked_share_of(&found.info.name).is_some();
            match share {
                true => self.share_volume(&found, hosts).await?,
                false if shared => return Err(PoolError::SharedOtherwise(found.info.name).into()),
                false => {}
            }
            self.replica(&uuid).await
        })
        .await
    }

    /// Serves the share, and records it in the pool. The caller holds the lock of changes.
    pub(crate) async fn share_volume(
        &self,
        found: &FoundReplica,
        hosts: Vec<String>,
    ) -> Result<(), EngineError> {
        let name = &found.info.name;
        hosts.iter().try_for_each(|host| check_host(host))?;
        if !self.is_device(name, found.info.uuid) {
            return Err(EngineError::DeviceExists(name.clone()));
        }
        let failed = |e: EngineError| PoolError::Share { name: name.clone(), source: Box::new(e) };
        let set: BTreeSet<String> = hosts.into_iter().collect();
        let allowed_hosts: Vec<String> = set.iter().cloned().collect();
        let new = match self.exports().share_of(name) {
            Some(nqn) => {
                let any = set.is_empty();
                let change = |s: &mut crate::desired::Subsystem| (s.hosts, s.allow_any_host) = (set, any);
                self.exports().change_hosts(&nqn, change).map_err(failed)?;
                None
            }
            None => {
                // One that could not be served when the pool was opened.
                if let Some(nqn) = self.exports().asked_share_of(name) {
                    self.exports().destroy(&nqn).await.map_err(failed)?;
                }
                let share = exports::share(name, set);
                let exported = self.exports().create(share, Origin::Pool, self.registry()).await;
                Some(exported.map_err(failed)?.desired.nqn)
            }
        };
        let properties = VolumeProperties { shared: true, allowed_hosts, ..found.info.properties.clone() };
        if properties == found.info.properties {
            return Ok(());
        }
        match found.entry.pool.set_properties(found.info.uuid, properties).await {
            Ok(()) => Ok(()),
            Err(e) => {
                if let Some(nqn) = new {
                    self.exports().destroy(&nqn).await?;
                }
                Err(PoolOp::SetProperty.failed(name)(e))
            }
        }
    }

    /// Records in the pool who may connect to a share, after that changed.
    pub(crate) async fn record_hosts(
        &self,
        found: &FoundReplica,
        share: &crate::desired::Subsystem,
    ) -> Result<(), EngineError> {
        let hosts = if share.allow_any_host { Vec::new() } else { share.hosts.iter().cloned().collect() };
        let properties = VolumeProperties { allowed_hosts: hosts, ..found.info.properties.clone() };
        let recorded = found.entry.pool.set_properties(found.info.uuid, properties).await;
        recorded.map_err(PoolOp::SetProperty.failed(&found.info.name))
    }

    /// Ends the export of a replica; nothing to do is no error.
    pub async fn unshare_replica(self: Arc<Self>, uuid: String) -> Result<FoundReplica, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let found = self.replica(&uuid).await?;
            self.unshare_volume(&found).await?;
            self.replica(&uuid).await
        })
        .await
    }

    /// The same for a caller that holds the lock of changes.
    pub(crate) async fn unshare_volume(&self, found: &FoundReplica) -> Result<(), EngineError> {
        let name = &found.info.name;
        if found.info.properties.shared {
            let properties = VolumeProperties {
                shared: false,
                allowed_hosts: Vec::new(),
                ..found.info.properties.clone()
            };
            let recorded = found.entry.pool.set_properties(found.info.uuid, properties).await;
            recorded.map_err(PoolOp::SetProperty.failed(name))?;
        }
        if let Some(nqn) = self.exports().asked_share_of(name) {
            let failed = |e: EngineError| PoolError::Share { name: name.clone(), source: Box::new(e) };
            self.exports().destroy(&nqn).await.map_err(failed)?;
            info!(%name, "replica unshared");
        }
        Ok(())
    }

    /// Gives a replica another size.
    pub async fn resize_replica(
        self: Arc<Self>,
        uuid: String,
        size_bytes: u64,
    ) -> Result<FoundReplica, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let found = self.replica(&uuid).await?;
            self.resize_volume(&found, size_bytes).await?;
            self.replica(&uuid).await
        })
        .await
    }

    /// The same for a caller that holds the lock of changes.
    pub(crate) async fn resize_volume(
        &self,
        found: &FoundReplica,
        size_bytes: u64,
    ) -> Result<(), EngineError> {
        let resized = found.entry.pool.resize_volume(found.info.uuid, size_bytes).await;
        let info = resized.map_err(PoolOp::ResizeReplica.failed(&found.info.name))?;
        info!(name = %info.name, before = found.info.size_bytes, after = info.size_bytes, "replica resized");
        Ok(())
    }

    /// Replaces the owner's name for a replica.
    pub async fn set_entity_id(
        self: Arc<Self>,
        uuid: String,
        entity_id: String,
    ) -> Result<FoundReplica, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let found = self.replica(&uuid).await?;
            let properties = VolumeProperties { entity_id: Some(entity_id), ..found.info.properties.clone() };
            let recorded = found.entry.pool.set_properties(found.info.uuid, properties).await;
            recorded.map_err(PoolOp::SetProperty.failed(&found.info.name))?;
            self.replica(&uuid).await
        })
        .await
    }

    /// The replica that a subsystem is the share of.
    pub(crate) async fn replica_shared_as(&self, share: &crate::desired::Subsystem) -> Option<FoundReplica> {
        self.replica_of_device(share.share_of.as_ref()?).await
    }

    /// The replica that a device is.
    pub(crate) async fn replica_of_device(&self, name: &str) -> Option<FoundReplica> {
        let entry = self.registry().find(name).filter(|e| e.origin == Origin::Pool)?;
        self.replica(&entry.device.uuid().to_string()).await.ok()
    }
}

/// Refuses what no host can be called; the form of an NQN is not asked for, because hosts exist that do not keep it.
pub(crate) fn check_host(host: &str) -> Result<(), EngineError> {
    if !host.is_empty() && host.len() <= MAX_HOST_BYTES && !host.chars().any(char::is_control) {
        return Ok(());
    }
    let value = host.chars().take(80).collect();
    let expected = "a host's NQN has 1 to 223 bytes and no control characters";
    Err(EngineError::BadValue { what: "allowed host", value, expected })
}

/// An object has to be in the pool that the request names.
pub(crate) fn check_pool(
    what: &'static str,
    uuid: Uuid,
    actual: &PoolEntry,
    asked: Option<&PoolEntry>,
) -> Result<(), EngineError> {
    match asked {
        Some(asked) if asked.pool.uuid() != actual.pool.uuid() => Err(PoolError::OtherPool {
            what,
            uuid,
            actual: actual.pool.name().to_owned(),
            asked: asked.pool.name().to_owned(),
        }
        .into()),
        _ => Ok(()),
    }
}
