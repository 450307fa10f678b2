//! `mayastor.v1.ReplicaRpc`.

use std::sync::Arc;

use lvs::info::CreateVolume;
use rpc::mayastor::v1::replica_rpc_server::ReplicaRpc;
use rpc::mayastor::v1::{
    CreateReplicaRequest, DestroyReplicaRequest, ListReplicaOptions, ListReplicasResponse, PoolType, Replica,
    ResizeReplicaRequest, SetReplicaEntityIdRequest, ShareProtocol, ShareReplicaRequest,
    UnshareReplicaRequest, destroy_replica_request,
};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::describe::{self, Ancestry};
use crate::engine::Engine;
use crate::error::{EngineError, PoolError};
use crate::pools::replicas::ReplicaWish;
use crate::pools::{FoundReplica, PoolRef, parse_optional_uuid};

/// With this key a control plane believes that a replica is gone for good.
const GONE_KEY: &str = "gtm-602";

/// The service.
pub struct ReplicaService(pub Arc<Engine>);

/// A replica with what it reads from.
pub(super) async fn shown(engine: &Engine, found: &FoundReplica) -> Result<Replica, EngineError> {
    let (replicas, snapshots) = engine.ancestors(found).await?;
    Ok(describe::replica(engine, found, &Ancestry::new(&replicas, &snapshots)))
}

/// True = NVMe-oF, false = none.
fn parse_share(share: i32) -> Result<bool, EngineError> {
    match ShareProtocol::try_from(share) {
        Ok(ShareProtocol::None) => Ok(false),
        Ok(ShareProtocol::Nvmf) => Ok(true),
        Ok(ShareProtocol::Iscsi) | Err(_) => Err(EngineError::ShareProtocol(share)),
    }
}

#[tonic::async_trait]
impl ReplicaRpc for ReplicaService {
    async fn create_replica(
        &self,
        request: Request<CreateReplicaRequest>,
    ) -> Result<Response<Replica>, Status> {
        let request = request.into_inner();
        let share = parse_share(request.share)?;
        let spec = CreateVolume {
            name: request.name,
            uuid: parse_optional_uuid("uuid", &request.uuid)?,
            size_bytes: request.size,
            thin: request.thin,
            entity_id: request.entity_id,
        };
        let share = share.then_some(request.allowed_hosts);
        let wish = ReplicaWish { pool: PoolRef::Either(request.pooluuid), spec, share };
        let found = self.0.clone().create_replica(wish).await?;
        Ok(Response::new(shown(&self.0, &found).await?))
    }

    async fn destroy_replica(&self, request: Request<DestroyReplicaRequest>) -> Result<Response<()>, Status> {
        let DestroyReplicaRequest { uuid, pool } = request.into_inner();
        let pool = pool.map(|p| match p {
            destroy_replica_request::Pool::PoolName(name) => PoolRef::Name(name),
            destroy_replica_request::Pool::PoolUuid(uuid) => PoolRef::Uuid(uuid),
        });
        // What is no uuid names nothing that could be gone.
        let is_uuid = Uuid::parse_str(&uuid).is_ok();
        match self.0.clone().destroy_replica(uuid, pool).await {
            Ok(()) => Ok(Response::new(())),
            Err(e @ EngineError::Pool(PoolError::NoReplica(_))) if is_uuid => {
                let mut status = Status::from(e);
                status.metadata_mut().insert(GONE_KEY, MetadataValue::from_static("0"));
                Err(status)
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn list_replicas(
        &self,
        request: Request<ListReplicaOptions>,
    ) -> Result<Response<ListReplicasResponse>, Status> {
        let options = request.into_inner();
        for pooltype in &options.pooltypes {
            PoolType::try_from(*pooltype)
                .map_err(|_| EngineError::from(PoolError::UnknownType(*pooltype)))?;
        }
        let replicas = self.0.replicas().await?;
        let snapshots = self.0.snapshots().await?;
        let ancestry = Ancestry::new(&replicas, &snapshots);
        let mut all: Vec<Replica> =
            replicas.iter().map(|r| describe::replica(&self.0, r, &ancestry)).collect();
        if options.query.is_none_or(|q| q.snapshot) {
            all.extend(snapshots.iter().map(|s| describe::snapshot_as_replica(s, &ancestry)));
        }
        all.retain(|r| matches(r, &options));
        Ok(Response::new(ListReplicasResponse { replicas: all }))
    }

    async fn share_replica(
        &self,
        request: Request<ShareReplicaRequest>,
    ) -> Result<Response<Replica>, Status> {
        let ShareReplicaRequest { uuid, share, allowed_hosts } = request.into_inner();
        let share = parse_share(share)?;
        let found = self.0.clone().share_replica(uuid, share, allowed_hosts).await?;
        Ok(Response::new(shown(&self.0, &found).await?))
    }

    async fn unshare_replica(
        &self,
        request: Request<UnshareReplicaRequest>,
    ) -> Result<Response<Replica>, Status> {
        let found = self.0.clone().unshare_replica(request.into_inner().uuid).await?;
        Ok(Response::new(shown(&self.0, &found).await?))
    }

    async fn resize_replica(
        &self,
        request: Request<ResizeReplicaRequest>,
    ) -> Result<Response<Replica>, Status> {
        let ResizeReplicaRequest { uuid, requested_size } = request.into_inner();
        let found = self.0.clone().resize_replica(uuid, requested_size).await?;
        Ok(Response::new(shown(&self.0, &found).await?))
    }

    async fn set_replica_entity_id(
        &self,
        request: Request<SetReplicaEntityIdRequest>,
    ) -> Result<Response<Replica>, Status> {
        let SetReplicaEntityIdRequest { uuid, entity_id } = request.into_inner();
        let found = self.0.clone().set_entity_id(uuid, entity_id).await?;
        Ok(Response::new(shown(&self.0, &found).await?))
    }
}

/// Everything that was asked for has to hold.
fn matches(replica: &Replica, options: &ListReplicaOptions) -> bool {
    let is = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|w| w == has);
    let kind = options.query.is_none_or(|q| match (replica.is_snapshot, replica.is_clone) {
        (true, _) => q.snapshot,
        (false, true) => q.clone,
        (false, false) => q.replica,
    });
    kind && is(&options.name, &replica.name)
        && is(&options.uuid, &replica.uuid)
        && is(&options.poolname, &replica.poolname)
        && is(&options.pooluuid, &replica.pooluuid)
        && (options.pooltypes.is_empty() || options.pooltypes.contains(&replica.pooltype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::mayastor::v1::list_replica_options::Query;

    #[test]
    fn filters_are_all_applied() {
        let plain = Replica { name: "a".into(), poolname: "p".into(), ..Default::default() };
        let snapshot = Replica { is_snapshot: true, ..plain.clone() };
        let clone = Replica { is_clone: true, ..plain.clone() };
        let kinds = |query: Option<Query>| {
            let options = ListReplicaOptions { query, ..Default::default() };
            [&plain, &snapshot, &clone].map(|r| matches(r, &options))
        };
        assert_eq!(kinds(None), [true; 3]);
        assert_eq!(kinds(Some(Query::default())), [false; 3]);
        assert_eq!(kinds(Some(Query { replica: true, ..Query::default() })), [true, false, false]);
        assert_eq!(kinds(Some(Query { snapshot: true, clone: true, replica: false })), [false, true, true]);
        let named = |name: &str, pool: &str| ListReplicaOptions {
            name: Some(name.into()),
            poolname: Some(pool.into()),
            ..Default::default()
        };
        assert!(matches(&plain, &named("a", "p")));
        assert!(!matches(&plain, &named("a", "q")) && !matches(&plain, &named("b", "p")));
        let lvm = ListReplicaOptions { pooltypes: vec![1], ..Default::default() };
        assert!(!matches(&plain, &lvm));
    }
}
