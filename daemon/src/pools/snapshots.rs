//! Snapshots of replicas, and clones of snapshots.

use std::sync::Arc;

use aio::BlockDevice;
use lvs::LvsError;
use lvs::info::{CreateSnapshot, CreateVolume};
use tracing::info;

use super::replicas::check_pool;
use super::{FoundReplica, FoundSnapshot, PoolRef, parse_uuid};
use crate::engine::{Engine, detached};
use crate::error::{EngineError, PoolError, PoolOp};

impl Engine {
    /// Takes a snapshot of a replica.
    pub async fn create_snapshot(
        self: Arc<Self>,
        replica: String,
        spec: CreateSnapshot,
    ) -> Result<FoundSnapshot, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            self.check_uuid_is_free(spec.uuid, "snapshot").await?;
            let found = self.replica(&replica).await?;
            let (name, uuid) = (spec.name.clone(), spec.uuid);
            let made = found.entry.pool.create_snapshot(found.info.uuid, spec).await;
            let info = made.map_err(PoolOp::CreateSnapshot.failed(&name))?;
            info!(replica = %found.info.name, %name, %uuid, "snapshot created");
            Ok(FoundSnapshot { entry: found.entry, info })
        })
        .await
    }

    /// Removes a snapshot, or marks it as discarded while it has clones.
    pub async fn destroy_snapshot(
        self: Arc<Self>,
        uuid: String,
        pool: Option<PoolRef>,
    ) -> Result<(), EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let pool = pool.map(|p| self.pools().containing(&p)).transpose()?;
            let found = self.snapshot(&uuid).await?;
            check_pool("snapshot", found.info.uuid, &found.entry, pool.as_ref())?;
            match found.entry.pool.destroy_snapshot(found.info.uuid).await {
                Ok(()) => {
                    info!(name = %found.info.name, %uuid, clones = found.info.clones, "snapshot destroyed");
                    Ok(())
                }
                Err(LvsError::NotFound { .. }) => Err(PoolError::NoSnapshot(uuid).into()),
                Err(e) => Err(PoolOp::DestroySnapshot.failed(found.info.name)(e)),
            }
        })
        .await
    }

    /// Makes a replica that begins as a snapshot.
    pub async fn create_clone(
        self: Arc<Self>,
        snapshot: String,
        name: String,
        uuid: String,
    ) -> Result<FoundReplica, EngineError> {
        detached(async move {
            let _change = self.change.lock().await;
            let uuid = parse_uuid("clone_uuid", &uuid)?;
            self.check_uuid_is_free(uuid, "clone").await?;
            let found = self.snapshot(&snapshot).await?;
            if found.info.discarded {
                return Err(PoolError::NoSnapshot(snapshot).into());
            }
            self.check_name_is_free(&name)?;
            let spec = CreateVolume {
                name: name.clone(),
                uuid: Some(uuid),
                size_bytes: found.info.size_bytes,
                thin: true,
                entity_id: None,
            };
            let made = found.entry.pool.create_clone(found.info.uuid, spec).await;
            let volume = match made {
                Ok(volume) => volume,
                Err(LvsError::NotFound { .. }) => return Err(PoolError::NoSnapshot(snapshot).into()),
                Err(e) => return Err(PoolOp::CreateClone.failed(name)(e)),
            };
            let info = self.enlist(&found.entry, volume.uuid(), PoolOp::CreateClone).await?;
            info!(snapshot = %found.info.name, name = %info.name, %uuid, "clone created");
            Ok(FoundReplica { entry: found.entry, info })
        })
        .await
    }
}
