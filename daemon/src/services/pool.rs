//! `mayastor.v1.PoolRpc`, and what `keelson.v1.PoolRpc` adds to it.

use std::sync::Arc;

use rpc::keelson::v1 as own;
use rpc::keelson::v1::pool_rpc_server::PoolRpc as OwnPoolRpc;
use rpc::mayastor::v1::pool_rpc_server::PoolRpc;
use rpc::mayastor::v1::{
    CreatePoolRequest, DestroyPoolRequest, ExportPoolRequest, GrowPoolRequest, GrowPoolResponse,
    ImportPoolRequest, ListPoolOptions, ListPoolsResponse, Pool, PoolType,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::describe;
use crate::engine::Engine;
use crate::error::{EngineError, PoolError, PoolOp};
use crate::pools::lifecycle::{How, PoolWish};
use crate::pools::{PoolEntry, PoolRef, parse_optional_uuid};

/// The service.
pub struct PoolService(pub Arc<Engine>);

/// The service of `keelson.v1`.
pub struct OwnPoolService(pub Arc<Engine>);

async fn shown(entry: &PoolEntry) -> Result<Pool, EngineError> {
    let info = entry.pool.info().await.map_err(PoolOp::List.failed(entry.pool.name()))?;
    Ok(describe::pool(entry, &info))
}

fn given_uuid(uuid: Option<String>) -> Result<Option<Uuid>, EngineError> {
    parse_optional_uuid("uuid", uuid.as_deref().unwrap_or_default())
}

/// Ours is the only kind that is served.
pub(super) fn check_type(pooltype: i32) -> Result<(), PoolError> {
    match PoolType::try_from(pooltype) {
        Ok(PoolType::Lvs) => Ok(()),
        Ok(PoolType::Lvm) => Err(PoolError::LvmNotEnabled),
        Err(_) => Err(PoolError::UnknownType(pooltype)),
    }
}

/// Refused as Mayastor refuses them; what passes has no effect, as there are no clusters and no reserved metadata.
fn check_arguments(request: &CreatePoolRequest) -> Result<(), PoolError> {
    const MIB: u32 = 1 << 20;
    const GIB: u32 = 1 << 30;
    if let Some(size) = request.cluster_size
        && (size == 0 || size % MIB != 0 || size > GIB)
    {
        return Err(PoolError::ClusterSize(size));
    }
    match request.md_args.and_then(|m| m.md_resv_ratio) {
        // A NaN is not larger than 0 either.
        Some(ratio) if ratio.is_nan() || ratio <= 0.0 => Err(PoolError::MetadataRatio(ratio)),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl PoolRpc for PoolService {
    async fn create_pool(&self, request: Request<CreatePoolRequest>) -> Result<Response<Pool>, Status> {
        let request = request.into_inner();
        if request.disks.is_empty() {
            return Err(EngineError::from(PoolError::NoDisks).into());
        }
        check_type(request.pooltype).map_err(EngineError::from)?;
        check_arguments(&request).map_err(EngineError::from)?;
        let uuid = given_uuid(request.uuid)?;
        let wish = PoolWish { name: request.name, uuid, disks: request.disks, how: How::ImportOrCreate };
        let entry = self.0.clone().open_pool(wish).await?;
        Ok(Response::new(shown(&entry).await?))
    }

    async fn import_pool(&self, request: Request<ImportPoolRequest>) -> Result<Response<Pool>, Status> {
        let request = request.into_inner();
        if request.disks.is_empty() {
            return Err(EngineError::from(PoolError::NoDisks).into());
        }
        check_type(request.pooltype).map_err(EngineError::from)?;
        let uuid = given_uuid(request.uuid)?;
        let wish = PoolWish { name: request.name, uuid, disks: request.disks, how: How::Import };
        let entry = self.0.clone().open_pool(wish).await?;
        Ok(Response::new(shown(&entry).await?))
    }

    async fn destroy_pool(&self, request: Request<DestroyPoolRequest>) -> Result<Response<()>, Status> {
        let DestroyPoolRequest { name, uuid } = request.into_inner();
        self.0.clone().destroy_pool(name, given_uuid(uuid)?).await?;
        Ok(Response::new(()))
    }

    async fn export_pool(&self, request: Request<ExportPoolRequest>) -> Result<Response<()>, Status> {
        let ExportPoolRequest { name, uuid } = request.into_inner();
        self.0.clone().export_pool(name, given_uuid(uuid)?).await?;
        Ok(Response::new(()))
    }

    async fn grow_pool(
        &self,
        request: Request<GrowPoolRequest>,
    ) -> Result<Response<GrowPoolResponse>, Status> {
        let GrowPoolRequest { name, uuid } = request.into_inner();
        let (entry, before, after) = self.0.clone().grow_pool(name, given_uuid(uuid)?).await?;
        Ok(Response::new(GrowPoolResponse {
            previous_pool: Some(describe::pool(&entry, &before)),
            current_pool: Some(describe::pool(&entry, &after)),
        }))
    }

    async fn list_pools(
        &self,
        request: Request<ListPoolOptions>,
    ) -> Result<Response<ListPoolsResponse>, Status> {
        let ListPoolOptions { name, pooltype, uuid } = request.into_inner();
        let lvm = match pooltype {
            Some(wanted) => match check_type(wanted.value) {
                Ok(()) => false,
                // There are none of that kind.
                Err(PoolError::LvmNotEnabled) => true,
                Err(e) => return Err(EngineError::from(e).into()),
            },
            None => false,
        };
        let wanted = name.map(PoolRef::Name).or(uuid.map(PoolRef::Uuid));
        let mut entries = match wanted {
            Some(wanted) => self.0.pools().find(&wanted).into_iter().collect(),
            None => self.0.pools().list(),
        };
        entries.retain(|_| !lvm);
        let mut pools = Vec::new();
        for entry in &entries {
            // One that is closed meanwhile is not there.
            pools.extend(shown(entry).await.ok());
        }
        Ok(Response::new(ListPoolsResponse { pools }))
    }
}

#[tonic::async_trait]
impl OwnPoolRpc for OwnPoolService {
    async fn create_pool(&self, request: Request<own::CreatePoolRequest>) -> Result<Response<Pool>, Status> {
        let own::CreatePoolRequest { name, uuid, disks, force } = request.into_inner();
        let how = if force { How::Overwrite } else { How::ImportOrCreate };
        let wish = PoolWish { name, uuid: given_uuid(uuid)?, disks, how };
        let entry = self.0.clone().open_pool(wish).await?;
        Ok(Response::new(shown(&entry).await?))
    }

    async fn import_pool(&self, request: Request<own::ImportPoolRequest>) -> Result<Response<Pool>, Status> {
        let own::ImportPoolRequest { name, uuid, disks, degraded } = request.into_inner();
        let how = if degraded { How::ImportDegraded } else { How::Import };
        let wish = PoolWish { name, uuid: given_uuid(uuid)?, disks, how };
        let entry = self.0.clone().open_pool(wish).await?;
        Ok(Response::new(shown(&entry).await?))
    }

    async fn add_disk(
        &self,
        request: Request<own::AddDiskRequest>,
    ) -> Result<Response<own::ListDisksResponse>, Status> {
        let own::AddDiskRequest { pool, disk, force } = request.into_inner();
        self.0.clone().add_disk(pool.clone(), disk, force).await?;
        Ok(Response::new(describe::disks(self.0.disks(&pool).await?)))
    }

    async fn remove_disk(
        &self,
        request: Request<own::RemoveDiskRequest>,
    ) -> Result<Response<own::ListDisksResponse>, Status> {
        let own::RemoveDiskRequest { pool, disk } = request.into_inner();
        self.0.clone().remove_disk(pool.clone(), disk).await?;
        Ok(Response::new(describe::disks(self.0.disks(&pool).await?)))
    }

    async fn list_disks(
        &self,
        request: Request<own::ListDisksRequest>,
    ) -> Result<Response<own::ListDisksResponse>, Status> {
        let own::ListDisksRequest { pool } = request.into_inner();
        Ok(Response::new(describe::disks(self.0.disks(&pool).await?)))
    }

    async fn start_scrub(
        &self,
        request: Request<own::StartScrubRequest>,
    ) -> Result<Response<own::Scrub>, Status> {
        let own::StartScrubRequest { pool, rate_bytes_per_s } = request.into_inner();
        let rate = Some(rate_bytes_per_s).filter(|rate| *rate > 0);
        let (name, report) = self.0.start_scrub(&pool, rate).await?;
        Ok(Response::new(describe::scrub(name, report)))
    }

    async fn stop_scrub(
        &self,
        request: Request<own::StopScrubRequest>,
    ) -> Result<Response<own::Scrub>, Status> {
        let own::StopScrubRequest { pool } = request.into_inner();
        let (name, report) = self.0.stop_scrub(&pool).await?;
        Ok(Response::new(describe::scrub(name, report)))
    }

    async fn get_scrub(
        &self,
        request: Request<own::GetScrubRequest>,
    ) -> Result<Response<own::Scrub>, Status> {
        let own::GetScrubRequest { pool } = request.into_inner();
        let (name, report) = self.0.scrub(&pool).await?;
        Ok(Response::new(describe::scrub(name, report)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::mayastor::v1::PoolMetadataArgs;

    #[test]
    fn cluster_sizes_and_ratios_are_restricted_as_they_were() {
        let size = |s| check_arguments(&CreatePoolRequest { cluster_size: Some(s), ..Default::default() });
        for good in [1 << 20, 4 << 20, 1 << 30] {
            assert!(size(good).is_ok(), "{good}");
        }
        for bad in [0, 1, (1 << 20) + 1, (1 << 30) + (1 << 20), u32::MAX] {
            assert!(size(bad).is_err(), "{bad}");
        }
        let ratio = |r| {
            let md_args = Some(PoolMetadataArgs { md_resv_ratio: Some(r) });
            check_arguments(&CreatePoolRequest { md_args, ..Default::default() })
        };
        assert!(ratio(0.5).is_ok());
        for bad in [0.0, -1.0, f32::NAN] {
            assert!(ratio(bad).is_err(), "{bad}");
        }
    }
}
