//! `mayastor.v1.SnapshotRpc`.

use std::sync::Arc;
use std::time::SystemTime;

use lvs::info::CreateSnapshot;
use rpc::mayastor::v1::snapshot_rpc_server::SnapshotRpc;
use rpc::mayastor::v1::{
    CreateReplicaSnapshotRequest, CreateReplicaSnapshotResponse, CreateSnapshotCloneRequest,
    DestroySnapshotRequest, ListSnapshotCloneRequest, ListSnapshotCloneResponse, ListSnapshotsRequest,
    ListSnapshotsResponse, NexusCreateSnapshotRequest, NexusCreateSnapshotResponse, Replica, SnapshotInfo,
    destroy_snapshot_request,
};
use tonic::{Request, Response, Status};

use super::describe::{self, Ancestry};
use super::replica;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::nexuses::error::NexusError;
use crate::pools::{PoolRef, parse_uuid};

/// The service.
pub struct SnapshotService(pub Arc<Engine>);

/// Refuses an empty text.
fn given(text: &str, what: &'static str) -> Result<(), EngineError> {
    if text.is_empty() { Err(EngineError::Missing(what)) } else { Ok(()) }
}

#[tonic::async_trait]
impl SnapshotRpc for SnapshotService {
    async fn create_replica_snapshot(
        &self,
        request: Request<CreateReplicaSnapshotRequest>,
    ) -> Result<Response<CreateReplicaSnapshotResponse>, Status> {
        let request = request.into_inner();
        given(&request.snapshot_name, "the snapshot's name")?;
        given(&request.entity_id, "the entity id")?;
        given(&request.txn_id, "the transaction id")?;
        if request.snapshot_uuid.is_empty() {
            // As clients know it.
            return Err(Status::internal("the request lacks the snapshot's uuid"));
        }
        let spec = CreateSnapshot {
            name: request.snapshot_name,
            uuid: parse_uuid("snapshot_uuid", &request.snapshot_uuid)?,
            txn_id: request.txn_id,
            entity_id: request.entity_id,
            created: SystemTime::now(),
        };
        let replica_uuid = request.replica_uuid;
        let found = self.0.clone().create_snapshot(replica_uuid.clone(), spec).await?;
        let snapshot = Some(describe::snapshot(&found));
        Ok(Response::new(CreateReplicaSnapshotResponse { replica_uuid, snapshot }))
    }

    /// Whichever is named is not there.
    async fn create_nexus_snapshot(
        &self,
        request: Request<NexusCreateSnapshotRequest>,
    ) -> Result<Response<NexusCreateSnapshotResponse>, Status> {
        Err(EngineError::from(NexusError::NotFound(request.into_inner().nexus_uuid)).into())
    }

    async fn list_snapshot(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let all = self.0.snapshots().await?;
        let snapshots = all.iter().map(describe::snapshot).filter(|s| matches(s, &request)).collect();
        Ok(Response::new(ListSnapshotsResponse { snapshots }))
    }

    async fn destroy_snapshot(
        &self,
        request: Request<DestroySnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let DestroySnapshotRequest { snapshot_uuid, pool } = request.into_inner();
        let pool = pool.map(|p| match p {
            destroy_snapshot_request::Pool::PoolName(name) => PoolRef::Name(name),
            destroy_snapshot_request::Pool::PoolUuid(uuid) => PoolRef::Uuid(uuid),
        });
        self.0.clone().destroy_snapshot(snapshot_uuid, pool).await?;
        Ok(Response::new(()))
    }

    async fn create_snapshot_clone(
        &self,
        request: Request<CreateSnapshotCloneRequest>,
    ) -> Result<Response<Replica>, Status> {
        let CreateSnapshotCloneRequest { snapshot_uuid, clone_name, clone_uuid } = request.into_inner();
        given(&snapshot_uuid, "the snapshot's uuid")?;
        given(&clone_name, "the clone's name")?;
        given(&clone_uuid, "the clone's uuid")?;
        let found = self.0.clone().create_clone(snapshot_uuid, clone_name, clone_uuid).await?;
        Ok(Response::new(replica::shown(&self.0, &found).await?))
    }

    async fn list_snapshot_clone(
        &self,
        request: Request<ListSnapshotCloneRequest>,
    ) -> Result<Response<ListSnapshotCloneResponse>, Status> {
        let wanted = request.into_inner().snapshot_uuid;
        let replicas = self.0.replicas().await?;
        let ancestry = Ancestry::new(&replicas, &self.0.snapshots().await?);
        let clones = replicas.iter().filter(|r| r.info.clone_of.is_some());
        let mut clones: Vec<Replica> = clones.map(|r| describe::replica(&self.0, r, &ancestry)).collect();
        clones.retain(|c| wanted.is_none() || c.snapshot_uuid == wanted);
        Ok(Response::new(ListSnapshotCloneResponse { replicas: clones }))
    }
}

/// A snapshot's own uuid goes before its source's. `query.invalid` keeps what is as valid as it says: so clients
/// know it.
fn matches(snapshot: &SnapshotInfo, request: &ListSnapshotsRequest) -> bool {
    let named = match (&request.snapshot_uuid, &request.source_uuid) {
        (Some(uuid), _) => snapshot.snapshot_uuid == *uuid,
        (None, Some(source)) => snapshot.source_uuid == *source,
        (None, None) => true,
    };
    let query = request.query.unwrap_or_default();
    named
        && query.invalid.is_none_or(|v| v == snapshot.valid_snapshot)
        && query.discarded.is_none_or(|d| d == snapshot.discarded_snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::mayastor::v1::list_snapshots_request::Query;

    #[test]
    fn filters() {
        let snapshot = SnapshotInfo {
            snapshot_uuid: "s".into(),
            source_uuid: "r".into(),
            valid_snapshot: true,
            ..Default::default()
        };
        let ask = |snapshot_uuid: Option<&str>, source: Option<&str>, query| {
            let request = ListSnapshotsRequest {
                snapshot_uuid: snapshot_uuid.map(Into::into),
                source_uuid: source.map(Into::into),
                query,
            };
            matches(&snapshot, &request)
        };
        assert!(ask(None, None, None) && ask(Some("s"), Some("x"), None) && ask(None, Some("r"), None));
        assert!(!ask(Some("x"), None, None) && !ask(None, Some("x"), None));
        let query = |invalid, discarded| Some(Query { invalid, discarded });
        assert!(ask(None, None, query(Some(true), Some(false))), "as odd as it is");
        assert!(!ask(None, None, query(Some(false), None)) && !ask(None, None, query(None, Some(true))));
    }
}
