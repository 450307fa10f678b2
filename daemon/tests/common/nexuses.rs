//! Calls of nexuses, with the status of what fails.

use rpc::mayastor::v1::{
    AddChildNexusRequest, Child, ChildOperationRequest, CreateNexusRequest, DestroyNexusRequest,
    FaultNexusChildRequest, ListNexusOptions, Nexus, PublishNexusRequest, RemoveChildNexusRequest,
    ResizeNexusRequest, ShutdownNexusRequest, StartRebuildRequest, UnpublishNexusRequest,
};
use tonic::{Code, Response, Status};

use super::Running;

/// The code, of what fails with a sentence.
pub fn code<T>(answer: Result<Response<T>, Status>) -> Result<T, Code> {
    answer.map(Response::into_inner).map_err(|s| {
        assert!(!s.message().is_empty(), "{:?} without a sentence", s.code());
        s.code()
    })
}

/// A request for a nexus whose name is its uuid.
pub fn wish(uuid: &str, size: u64, children: &[&str]) -> CreateNexusRequest {
    CreateNexusRequest {
        name: uuid.into(),
        uuid: uuid.into(),
        size,
        min_cntl_id: 1,
        max_cntl_id: 0xffef,
        children: children.iter().map(|c| (*c).to_owned()).collect(),
        ..Default::default()
    }
}

/// A daemon with nexuses.
pub trait NexusCalls {
    fn daemon(&self) -> &Running;

    async fn create_nexus(&self, request: CreateNexusRequest) -> Result<Nexus, Status> {
        let answer = self.daemon().client.nexus().create_nexus(request).await;
        answer.map(|a| a.into_inner().nexus.unwrap())
    }

    async fn mirror(&self, uuid: &str, size: u64, children: &[&str]) -> Result<Nexus, Code> {
        self.create_nexus(wish(uuid, size, children)).await.map_err(|s| s.code())
    }

    async fn destroy_nexus(&self, uuid: &str) -> Result<(), Code> {
        code(self.daemon().client.nexus().destroy_nexus(DestroyNexusRequest { uuid: uuid.into() }).await)
    }

    async fn shut_down_nexus(&self, uuid: &str) -> Result<Nexus, Code> {
        let request = ShutdownNexusRequest { uuid: uuid.into() };
        Ok(code(self.daemon().client.nexus().shutdown_nexus(request).await)?.nexus.unwrap())
    }

    async fn resize_nexus(&self, uuid: &str, requested_size: u64) -> Result<Nexus, Code> {
        let request = ResizeNexusRequest { uuid: uuid.into(), requested_size };
        Ok(code(self.daemon().client.nexus().resize_nexus(request).await)?.nexus.unwrap())
    }

    async fn nexuses(&self) -> Vec<Nexus> {
        code(self.daemon().client.nexus().list_nexus(ListNexusOptions::default()).await).unwrap().nexus_list
    }

    async fn nexus(&self, uuid: &str) -> Result<Nexus, Code> {
        let request = ListNexusOptions { name: None, uuid: Some(uuid.into()) };
        Ok(code(self.daemon().client.nexus().list_nexus(request).await)?.nexus_list.remove(0))
    }

    async fn child(&self, nexus: &str, uri: &str) -> Option<Child> {
        self.nexus(nexus).await.unwrap().children.into_iter().find(|c| c.uri == uri)
    }

    async fn publish(&self, uuid: &str, hosts: &[&str]) -> Result<Nexus, Code> {
        let allowed_hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
        let request = PublishNexusRequest { uuid: uuid.into(), key: String::new(), share: 1, allowed_hosts };
        Ok(code(self.daemon().client.nexus().publish_nexus(request).await)?.nexus.unwrap())
    }

    async fn unpublish(&self, uuid: &str) -> Result<Nexus, Code> {
        let request = UnpublishNexusRequest { uuid: uuid.into() };
        Ok(code(self.daemon().client.nexus().unpublish_nexus(request).await)?.nexus.unwrap())
    }

    async fn add_child(&self, uuid: &str, uri: &str, norebuild: bool) -> Result<Nexus, Code> {
        let request = AddChildNexusRequest { uuid: uuid.into(), uri: uri.into(), norebuild };
        Ok(code(self.daemon().client.nexus().add_child_nexus(request).await)?.nexus.unwrap())
    }

    async fn remove_child(&self, uuid: &str, uri: &str) -> Result<Nexus, Code> {
        let request = RemoveChildNexusRequest { uuid: uuid.into(), uri: uri.into() };
        Ok(code(self.daemon().client.nexus().remove_child_nexus(request).await)?.nexus.unwrap())
    }

    async fn fault_child(&self, uuid: &str, uri: &str) -> Result<Nexus, Code> {
        let request = FaultNexusChildRequest { uuid: uuid.into(), uri: uri.into() };
        Ok(code(self.daemon().client.nexus().fault_nexus_child(request).await)?.nexus.unwrap())
    }

    async fn child_op(&self, uuid: &str, uri: &str, action: i32) -> Result<Nexus, Code> {
        let request = ChildOperationRequest { nexus_uuid: uuid.into(), uri: uri.into(), action };
        Ok(code(self.daemon().client.nexus().child_operation(request).await)?.nexus.unwrap())
    }

    async fn start_rebuild(&self, uuid: &str, uri: &str) -> Result<Nexus, Code> {
        let request = StartRebuildRequest { nexus_uuid: uuid.into(), uri: uri.into() };
        Ok(code(self.daemon().client.nexus().start_rebuild(request).await)?.nexus.unwrap())
    }

    /// Waits until the child is as `state` says.
    async fn until_child(&self, nexus: &str, uri: &str, state: i32) -> Child {
        for _ in 0..2000 {
            let child = self.child(nexus, uri).await.unwrap();
            if child.state == state {
                return child;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("child {uri} does not become {state}: {:?}", self.nexus(nexus).await);
    }
}

impl NexusCalls for Running {
    fn daemon(&self) -> &Running {
        self
    }
}
