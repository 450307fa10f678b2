//! `mayastor.v1.HostRpc`.

use std::sync::Arc;

use rpc::mayastor::v1::host_rpc_server::HostRpc;
use rpc::mayastor::v1::{
    BackCompatMayastorFeatures, GetMayastorResourceUsageResponse, ListBlockDevicesRequest,
    ListBlockDevicesResponse, ListNvmeControllersResponse, MayastorInfoResponse, StatNvmeControllerRequest,
    StatNvmeControllerResponse,
};
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::host::{disks, usage};
use crate::node::VERSION;

/// The service.
pub struct HostService(pub Arc<Engine>);

#[tonic::async_trait]
impl HostRpc for HostService {
    async fn get_mayastor_info(&self, _: Request<()>) -> Result<Response<MayastorInfoResponse>, Status> {
        let registration = self.0.node().registration();
        let ana = registration.features.as_ref().is_some_and(|f| f.asymmetric_namespace_access);
        Ok(Response::new(MayastorInfoResponse {
            version: VERSION.to_owned(),
            previous_features: Some(BackCompatMayastorFeatures { asymmetric_namespace_access: ana }),
            registration_info: Some(registration),
        }))
    }

    async fn list_block_devices(
        &self,
        request: Request<ListBlockDevicesRequest>,
    ) -> Result<Response<ListBlockDevicesResponse>, Status> {
        let all = request.into_inner().all;
        let list = spawn_blocking(move || disks::list(&disks::Sources::default(), all)).await;
        let devices = list.map_err(|_| EngineError::ShuttingDown)?;
        Ok(Response::new(ListBlockDevicesResponse { devices }))
    }

    async fn get_mayastor_resource_usage(
        &self,
        _: Request<()>,
    ) -> Result<Response<GetMayastorResourceUsageResponse>, Status> {
        let usage = spawn_blocking(usage::resource_usage).await.map_err(|_| EngineError::ShuttingDown)?;
        Ok(Response::new(GetMayastorResourceUsageResponse { usage: Some(usage) }))
    }

    async fn list_nvme_controllers(
        &self,
        _: Request<()>,
    ) -> Result<Response<ListNvmeControllersResponse>, Status> {
        let controllers = self.0.controllers().iter().map(|c| c.describe()).collect();
        Ok(Response::new(ListNvmeControllersResponse { controllers }))
    }

    async fn stat_nvme_controller(
        &self,
        request: Request<StatNvmeControllerRequest>,
    ) -> Result<Response<StatNvmeControllerResponse>, Status> {
        let name = request.into_inner().name;
        let found = self.0.controllers().into_iter().find(|c| c.name() == name);
        let stats = found.ok_or(EngineError::NoController(name))?.stats();
        Ok(Response::new(StatNvmeControllerResponse { stats: Some(stats) }))
    }
}
