//! Disks that are added to a pool in use, and removed from it.
//!
//! The state folder has a disk before the pool does, and until after it has left: a restart leaves out what is none of the
//! pool's disks, and never misses one that is.

use std::sync::Arc;
use std::time::Duration;

use aio::DeviceUri;
use lvs::LvsError;
use lvs::info::{DiskInfo, DiskState};
use tracing::{info, warn};
use uuid::Uuid;

use super::lifecycle::disk_uri;
use super::{PoolEntry, PoolRef};
use crate::engine::{Engine, detached};
use crate::error::{EngineError, PoolError, PoolOp, chain};
use crate::registry::{Claim, Origin};

/// How often a request to remove a disk looks whether that has begun, and one to add it again whether it is over.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Engine {
    /// Adds a disk, given as a path or URI, to a pool, given by its name or uuid.
    pub async fn add_disk(
        self: Arc<Self>,
        pool: String,
        disk: String,
        force: bool,
    ) -> Result<(), EngineError> {
        detached(async move {
            let mut change = self.change.lock().await;
            let mut entry = self.pool_of_disks(&pool)?;
            if let Ok(uri) = disk_uri(&disk).parse::<DeviceUri>() {
                while entry.members.iter().any(|m| m.device == uri.name()) {
                    let disks = entry.pool.disks().await.map_err(PoolOp::List.failed(entry.pool.name()))?;
                    if disks.iter().any(|d| d.name == uri.name()) {
                        return Err(PoolError::ObjectExists { what: "disk", name: uri.name() }.into());
                    }
                    // It has left the pool, and who saw it off is about to let go of it.
                    drop(change);
                    tokio::time::sleep(LOOK_AGAIN).await;
                    change = self.change.lock().await;
                    entry = self.pool_of_disks(&pool)?;
                }
            }
            let uuid = entry.pool.uuid();
            let (device, member) = self.open_disk(&disk, &entry.members).await?;
            let name = member.device.clone();
            self.registry().claim(&name, Some(Claim::Pool(entry.pool.name().to_owned())));
            self.pools().change_members(uuid, |members| members.push(member.clone()));
            let added = async {
                self.save().await?;
                let added = entry.pool.add_disk(device, force).await;
                added.map_err(PoolOp::ChangePool.failed(entry.pool.name()))
            };
            if let Err(e) = added.await {
                self.pools().change_members(uuid, |members| members.retain(|m| m.device != name));
                self.close_disks(&[member]);
                // What was recorded is harmless, should this fail.
                let _ = self.save().await;
                return Err(e);
            }
            info!(pool = %entry.pool.name(), disk = %name, "disk added");
            if entry.origin == Origin::Config {
                warn!(pool = %entry.pool.name(), disk = %name, "add the disk to the configuration file, too");
            }
            Ok(())
        })
        .await
    }

    /// Begins to empty a disk, given by its path, URI, device or uuid. What follows goes on in the background.
    pub async fn remove_disk(self: Arc<Self>, pool: String, disk: String) -> Result<(), EngineError> {
        detached(async move {
            let entry = self.pool_of_disks(&pool)?;
            let failed = PoolOp::ChangePool.failed(entry.pool.name());
            let disks = entry.pool.disks().await.map_err(PoolOp::List.failed(entry.pool.name()))?;
            let device = disk_uri(&disk).parse::<DeviceUri>().map_or_else(|_| disk.clone(), |uri| uri.name());
            let uuid = Uuid::parse_str(&disk).ok();
            let found = disks.iter().find(|d| d.name == device || d.name == disk || Some(d.uuid) == uuid);
            let Some(found) = found.cloned() else {
                let has: Vec<&str> = disks.iter().map(|d| d.name.as_str()).collect();
                let pool = entry.pool.name().to_owned();
                return Err(failed(LvsError::NoSuchDisk { pool, disk, disks: has.join(", ") }));
            };
            self.pools().failures().remove(&(entry.pool.uuid(), found.uuid));
            let mut removal = tokio::spawn(self.clone().see_off(entry.clone(), found.clone()));
            loop {
                if let Ok(ended) = tokio::time::timeout(LOOK_AGAIN, &mut removal).await {
                    return match ended {
                        Ok(Err(e)) => Err(failed(e)),
                        Ok(Ok(())) | Err(_) => Ok(()),
                    };
                }
                let disks = entry.pool.disks().await.map_err(PoolOp::List.failed(entry.pool.name()))?;
                let now = disks.iter().find(|d| d.uuid == found.uuid);
                if now.is_none_or(|d| d.state == DiskState::Evacuating) {
                    return Ok(());
                }
            }
        })
        .await
    }

    /// Empties a disk, and lets go of it.
    async fn see_off(self: Arc<Self>, entry: PoolEntry, disk: DiskInfo) -> Result<(), LvsError> {
        let pool = entry.pool.name();
        let _leaving = self.pools().leaves(entry.pool.uuid(), &disk.name);
        info!(%pool, disk = %disk.name, "the disk is being emptied");
        if let Err(e) = entry.pool.remove_disk(disk.uuid.to_string()).await {
            if !matches!(e, LvsError::Closed { .. }) {
                warn!(%pool, disk = %disk.name, "the disk is not removed: {}", chain(&e));
                self.pools().failures().insert((entry.pool.uuid(), disk.uuid), chain(&e));
            }
            return Err(e);
        }
        let _change = self.change.lock().await;
        let mut gone = None;
        self.pools().change_members(entry.pool.uuid(), |members| {
            let at = members.iter().position(|m| m.device == disk.name);
            gone = at.map(|at| members.remove(at));
        });
        if let Some(member) = gone {
            self.close_disks(&[member]);
        }
        info!(%pool, disk = %disk.name, "disk removed");
        if let Err(e) = self.save().await {
            warn!(%pool, disk = %disk.name, "the disk is removed, and that is not recorded: {e}");
        }
        Ok(())
    }

    /// Disks that were being emptied when the pool was closed, or its node failed, are emptied further.
    pub(super) async fn resume_removals(&self, entry: &PoolEntry) {
        let disks = entry.pool.disks().await.unwrap_or_default();
        let Some(me) = self.me() else { return };
        let entry = entry.clone();
        tokio::spawn(async move {
            for disk in disks.into_iter().filter(|d| d.state == DiskState::Evacuating) {
                let _ = me.clone().see_off(entry.clone(), disk).await;
            }
        });
    }

    /// The disks of a pool, and why those that are being emptied could not be. What is not among them any more is gone for
    /// good, and may be pulled: the store leaves out one that it is about to write off.
    pub async fn disks(&self, pool: &str) -> Result<Vec<(DiskInfo, Option<String>)>, EngineError> {
        let entry = self.pool_of_disks(pool)?;
        let listed = || async { entry.pool.disks().await.map_err(PoolOp::List.failed(entry.pool.name())) };
        let mut disks = listed().await?;
        while self.pools().is_leaving_beside(entry.pool.uuid(), &disks) {
            tokio::time::sleep(LOOK_AGAIN).await;
            disks = listed().await?;
        }
        let failures = self.pools().failures();
        let why = |d: &DiskInfo| failures.get(&(entry.pool.uuid(), d.uuid)).cloned();
        Ok(disks.into_iter().map(|d| (d.clone(), why(&d))).collect())
    }

    pub(super) fn pool_of_disks(&self, pool: &str) -> Result<PoolEntry, EngineError> {
        let found = self.pools().find(&PoolRef::Either(pool.to_owned()));
        found.ok_or_else(|| PoolError::NotFound(pool.to_owned()).into())
    }
}
