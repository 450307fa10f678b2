//! `mayastor.v1.BdevRpc`.

use std::sync::Arc;

use rpc::mayastor::v1::bdev_rpc_server::BdevRpc;
use rpc::mayastor::v1::{
    Bdev, BdevShareRequest, BdevShareResponse, BdevUnshareRequest, CreateBdevRequest, CreateBdevResponse,
    DestroyBdevRequest, ListBdevOptions, ListBdevResponse, ShareProtocol,
};
use tonic::{Request, Response, Status};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::registry::Entry;

/// What `claimed_by` says of a device that nobody uses.
const UNCLAIMED: &str = "Orphaned";

/// And of one that is exported.
const CLAIMED_BY_TARGET: &str = "NVMe-oF Target";

/// The service.
pub struct BdevService(pub Arc<Engine>);

impl BdevService {
    fn describe(&self, entry: &Entry) -> Bdev {
        let device = &entry.device;
        let exported = self.0.exports().uses(device.name()).is_some();
        let claimed = exported || entry.claimed_by.is_some();
        let claimed_by = match &entry.claimed_by {
            Some(by) => by.to_string(),
            None if exported => CLAIMED_BY_TARGET.to_owned(),
            None => UNCLAIMED.to_owned(),
        };
        let share_uri = self.0.share_uri(device.name());
        Bdev {
            name: device.name().to_owned(),
            uuid: device.uuid().to_string(),
            num_blocks: device.size().0,
            blk_size: device.geometry().block_bytes,
            claimed,
            claimed_by,
            aliases: String::new(),
            uri: entry.uri.clone(),
            product_name: device.driver().to_owned(),
            share_uri: share_uri.unwrap_or_else(|| format!("bdev:///{}", device.name())),
        }
    }
}

#[tonic::async_trait]
impl BdevRpc for BdevService {
    async fn create(
        &self,
        request: Request<CreateBdevRequest>,
    ) -> Result<Response<CreateBdevResponse>, Status> {
        let entry = self.0.clone().create_device(request.into_inner().uri).await?;
        Ok(Response::new(CreateBdevResponse { bdev: Some(self.describe(&entry)) }))
    }

    async fn destroy(&self, request: Request<DestroyBdevRequest>) -> Result<Response<()>, Status> {
        self.0.clone().destroy_device(request.into_inner().uri).await?;
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<ListBdevOptions>) -> Result<Response<ListBdevResponse>, Status> {
        let registry = self.0.registry();
        let entries = match request.into_inner().name {
            Some(name) => registry.find(&name).into_iter().collect(),
            None => registry.list(),
        };
        let bdevs = entries.iter().map(|e| self.describe(e)).collect();
        Ok(Response::new(ListBdevResponse { bdevs }))
    }

    async fn share(&self, request: Request<BdevShareRequest>) -> Result<Response<BdevShareResponse>, Status> {
        let request = request.into_inner();
        if request.protocol != ShareProtocol::Nvmf as i32 {
            return Err(EngineError::ShareProtocol(request.protocol).into());
        }
        let entry = self.0.clone().share_device(request.name, request.allowed_hosts).await?;
        Ok(Response::new(BdevShareResponse { bdev: Some(self.describe(&entry)) }))
    }

    async fn unshare(&self, request: Request<BdevUnshareRequest>) -> Result<Response<()>, Status> {
        self.0.clone().unshare_device(request.into_inner().name).await?;
        Ok(Response::new(()))
    }
}
