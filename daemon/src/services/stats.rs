//! `mayastor.v1.StatsRpc`.

use std::sync::Arc;

use rpc::mayastor::v1::stats_rpc_server::StatsRpc;
use rpc::mayastor::v1::{
    ListStatsOption, NexusIoStatsResponse, PoolIoStatsResponse, ReplicaIoStats, ReplicaIoStatsResponse,
};
use tonic::{Request, Response, Status};

use super::{describe, describe_nexus};
use crate::engine::Engine;

/// The service.
pub struct StatsService(pub Arc<Engine>);

#[tonic::async_trait]
impl StatsRpc for StatsService {
    async fn get_pool_io_stats(
        &self,
        request: Request<ListStatsOption>,
    ) -> Result<Response<PoolIoStatsResponse>, Status> {
        let wanted = request.into_inner().name;
        let pools = self.0.pools().list().into_iter().map(|e| e.pool);
        let pools = pools.filter(|p| wanted.as_ref().is_none_or(|n| n == p.name()));
        let stats = pools.map(|p| describe::stats(p.name(), p.uuid(), p.io_stats())).collect();
        Ok(Response::new(PoolIoStatsResponse { stats }))
    }

    async fn get_nexus_io_stats(
        &self,
        request: Request<ListStatsOption>,
    ) -> Result<Response<NexusIoStatsResponse>, Status> {
        let wanted = request.into_inner().name;
        let mut entries = self.0.nexuses().list();
        entries.retain(|e| wanted.as_ref().is_none_or(|n| *n == e.wish.name));
        if wanted.is_some() && entries.is_empty() {
            return Err(Status::not_found("Nexus not found"));
        }
        let stats = entries.iter().map(describe_nexus::stats).collect();
        Ok(Response::new(NexusIoStatsResponse { stats }))
    }

    async fn get_replica_io_stats(
        &self,
        request: Request<ListStatsOption>,
    ) -> Result<Response<ReplicaIoStatsResponse>, Status> {
        let wanted = request.into_inner().name;
        let mut stats = Vec::new();
        for found in self.0.replicas().await? {
            let info = &found.info;
            if wanted.as_ref().is_some_and(|n| *n != info.name) {
                continue;
            }
            // One that was destroyed meanwhile has none.
            let Some(io) = found.entry.pool.volume_io_stats(info.uuid) else { continue };
            stats.push(ReplicaIoStats {
                entity_id: info.properties.entity_id.clone(),
                stats: Some(describe::stats(&info.name, info.uuid, io)),
            });
        }
        Ok(Response::new(ReplicaIoStatsResponse { stats }))
    }

    async fn reset_io_stats(&self, _: Request<()>) -> Result<Response<()>, Status> {
        for entry in self.0.pools().list() {
            entry.pool.reset_stats();
        }
        self.0
            .nexuses()
            .list()
            .iter()
            .filter_map(|e| e.mirror.as_ref())
            .for_each(nexus::Nexus::reset_io_stats);
        Ok(Response::new(()))
    }
}
