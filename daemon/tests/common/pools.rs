//! Calls of pools, replicas and snapshots, with the code of what fails.

use rpc::mayastor::v1::{
    CreatePoolRequest, CreateReplicaRequest, CreateReplicaSnapshotRequest, CreateSnapshotCloneRequest,
    DestroyPoolRequest, DestroyReplicaRequest, DestroySnapshotRequest, ExportPoolRequest, GrowPoolRequest,
    ImportPoolRequest, ListPoolOptions, ListReplicaOptions, ListSnapshotsRequest, Pool, Replica,
    ResizeReplicaRequest, ShareReplicaRequest, SnapshotInfo, UnshareReplicaRequest,
};
use tonic::{Code, Response, Status};

use super::Running;

pub const MIB: u64 = 1 << 20;

/// The nth uuid of a test.
pub fn uuid(n: u128) -> String {
    uuid::Uuid::from_u128(0x7d6f_5f0e_98c5_4f2c_8f6e_0000_0000_0000 + n).to_string()
}

fn code<T>(answer: Result<Response<T>, Status>) -> Result<T, Code> {
    answer.map(Response::into_inner).map_err(|s| {
        assert!(!s.message().is_empty(), "{:?} without a sentence", s.code());
        s.code()
    })
}

/// A daemon with pools.
pub trait PoolCalls {
    fn running(&self) -> &Running;

    async fn create_pool(&self, name: &str, disks: &[&str]) -> Result<Pool, Code> {
        let disks = disks.iter().map(|d| (*d).to_owned()).collect();
        let request = CreatePoolRequest { name: name.into(), disks, ..Default::default() };
        code(self.running().client.pool().create_pool(request).await)
    }

    async fn import_pool(&self, name: &str, disks: &[&str]) -> Result<Pool, Code> {
        let disks = disks.iter().map(|d| (*d).to_owned()).collect();
        let request = ImportPoolRequest { name: name.into(), disks, ..Default::default() };
        code(self.running().client.pool().import_pool(request).await)
    }

    async fn destroy_pool(&self, name: &str, uuid: Option<&str>) -> Result<(), Code> {
        let request = DestroyPoolRequest { name: name.into(), uuid: uuid.map(Into::into) };
        code(self.running().client.pool().destroy_pool(request).await)
    }

    async fn export_pool(&self, name: &str) -> Result<(), Code> {
        let request = ExportPoolRequest { name: name.into(), uuid: None };
        code(self.running().client.pool().export_pool(request).await)
    }

    async fn grow_pool(&self, name: &str) -> Result<(Pool, Pool), Code> {
        let request = GrowPoolRequest { name: name.into(), uuid: None };
        let answer = code(self.running().client.pool().grow_pool(request).await)?;
        Ok((answer.previous_pool.unwrap(), answer.current_pool.unwrap()))
    }

    async fn pools(&self) -> Vec<Pool> {
        code(self.running().client.pool().list_pools(ListPoolOptions::default()).await).unwrap().pools
    }

    async fn create_replica(
        &self,
        name: &str,
        uuid: &str,
        pool: &str,
        size: u64,
        thin: bool,
    ) -> Result<Replica, Code> {
        let request = CreateReplicaRequest {
            name: name.into(),
            uuid: uuid.into(),
            pooluuid: pool.into(),
            size,
            thin,
            ..Default::default()
        };
        code(self.running().client.replica().create_replica(request).await)
    }

    async fn destroy_replica(&self, uuid: &str) -> Result<(), Code> {
        let request = DestroyReplicaRequest { uuid: uuid.into(), pool: None };
        code(self.running().client.replica().destroy_replica(request).await)
    }

    async fn share(&self, uuid: &str, share: i32, hosts: &[&str]) -> Result<Replica, Code> {
        let allowed_hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
        let request = ShareReplicaRequest { uuid: uuid.into(), share, allowed_hosts };
        code(self.running().client.replica().share_replica(request).await)
    }

    async fn unshare(&self, uuid: &str) -> Result<Replica, Code> {
        let request = UnshareReplicaRequest { uuid: uuid.into() };
        code(self.running().client.replica().unshare_replica(request).await)
    }

    async fn resize(&self, uuid: &str, requested_size: u64) -> Result<Replica, Code> {
        let request = ResizeReplicaRequest { uuid: uuid.into(), requested_size };
        code(self.running().client.replica().resize_replica(request).await)
    }

    async fn replicas(&self, options: ListReplicaOptions) -> Vec<Replica> {
        code(self.running().client.replica().list_replicas(options).await).unwrap().replicas
    }

    async fn replica(&self, name: &str) -> Option<Replica> {
        let options = ListReplicaOptions { name: Some(name.into()), ..Default::default() };
        self.replicas(options).await.into_iter().next()
    }

    async fn snapshot(&self, replica: &str, name: &str, uuid: &str) -> Result<SnapshotInfo, Code> {
        let request = CreateReplicaSnapshotRequest {
            replica_uuid: replica.into(),
            snapshot_uuid: uuid.into(),
            snapshot_name: name.into(),
            entity_id: "volume".into(),
            txn_id: "1".into(),
        };
        let answer = code(self.running().client.snapshot().create_replica_snapshot(request).await)?;
        assert_eq!(answer.replica_uuid, replica);
        Ok(answer.snapshot.unwrap())
    }

    async fn snapshots(&self, request: ListSnapshotsRequest) -> Vec<SnapshotInfo> {
        code(self.running().client.snapshot().list_snapshot(request).await).unwrap().snapshots
    }

    async fn destroy_snapshot(&self, uuid: &str) -> Result<(), Code> {
        let request = DestroySnapshotRequest { snapshot_uuid: uuid.into(), pool: None };
        code(self.running().client.snapshot().destroy_snapshot(request).await)
    }

    async fn clone_of(&self, snapshot: &str, name: &str, uuid: &str) -> Result<Replica, Code> {
        let request = CreateSnapshotCloneRequest {
            snapshot_uuid: snapshot.into(),
            clone_name: name.into(),
            clone_uuid: uuid.into(),
        };
        code(self.running().client.snapshot().create_snapshot_clone(request).await)
    }
}

impl PoolCalls for Running {
    fn running(&self) -> &Running {
        self
    }
}
