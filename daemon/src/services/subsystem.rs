//! `keelson.v1.SubsystemRpc`.

use std::collections::BTreeSet;
use std::sync::Arc;

use nvmf::target::core::ConnectionInfo;
use nvmf::target::snapshot::ControllerSnapshot;
use rpc::keelson::v1::subsystem_rpc_server::SubsystemRpc;
use rpc::keelson::v1::{
    AddNamespaceRequest, AllowHostsRequest, AnaGroup, AnaState, Connection, Controller,
    CreateSubsystemRequest, DenyHostsRequest, DestroySubsystemRequest, ListConnectionsRequest,
    ListConnectionsResponse, ListControllersRequest, ListControllersResponse, ListSubsystemsRequest,
    ListSubsystemsResponse, Namespace, NamespaceSpec, RemoveNamespaceRequest, ResizeNamespaceRequest,
    ResizeNamespaceResponse, SetAnaStateRequest, Subsystem,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::desired;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::exports::{Exported, ana_state};
use crate::serve::target_cores;

/// The service.
pub struct SubsystemService(pub Arc<Engine>);

impl SubsystemService {
    fn describe(&self, exported: &Exported) -> Subsystem {
        let desired = &exported.desired;
        let defaults = nvmf::target::SubsystemSpec::new(desired.nqn.clone()).cntlids;
        let [min_cntlid, max_cntlid] = desired.cntlids.unwrap_or([*defaults.start(), *defaults.end()]);
        let live = desired.namespaces.iter().filter(|n| exported.live.contains(&n.nsid));
        let target = self.0.exports().target();
        Subsystem {
            nqn: desired.nqn.clone(),
            serial: desired.serial.clone().unwrap_or_default(),
            model: desired.model.clone().unwrap_or_else(|| target.config().model.clone()),
            allow_any_host: desired.allow_any_host,
            hosts: desired.hosts.iter().cloned().collect(),
            namespaces: live.filter_map(|n| self.describe_namespace(n)).collect(),
            ana_reporting: desired.ana_groups > 0,
            ana_groups: (1..=u32::from(desired.ana_groups)).map(|g| ana_group(desired, g)).collect(),
            min_cntlid: min_cntlid.into(),
            max_cntlid: max_cntlid.into(),
            num_controllers: target.subsystem(&desired.nqn).map_or(0, |s| s.controllers.len() as u32),
            uris: if exported.created { vec![self.0.node().export_uri(&desired.nqn)] } else { vec![] },
        }
    }

    /// `None` when its device vanished meanwhile.
    fn describe_namespace(&self, namespace: &desired::Namespace) -> Option<Namespace> {
        let entry = self.0.registry().find(&namespace.device)?;
        Some(Namespace {
            nsid: namespace.nsid,
            device: namespace.device.clone(),
            uuid: namespace.uuid.unwrap_or_else(|| entry.device.uuid()).to_string(),
            size_bytes: entry.size_bytes(),
            block_bytes: entry.device.geometry().block_bytes,
            ana_group: namespace.ana_group,
        })
    }

    fn namespace(&self, namespace: &desired::Namespace) -> Result<Namespace, EngineError> {
        self.describe_namespace(namespace).ok_or_else(|| EngineError::NoDevice(namespace.device.clone()))
    }
}

fn ana_group(desired: &desired::Subsystem, id: u32) -> AnaGroup {
    let set = desired.ana_states.iter().find(|g| g.group == id).map(|g| i32::from(g.state));
    AnaGroup { id, state: set.unwrap_or(AnaState::Optimized.into()) }
}

/// The namespace that a request asks for; its number is filled in later unless it was given.
fn parse_namespace(spec: NamespaceSpec) -> Result<(Option<u32>, desired::Namespace), EngineError> {
    if spec.device.is_empty() {
        return Err(EngineError::Missing("the name of a device"));
    }
    let parse = |text: String| {
        let expected = "it is no UUID";
        Uuid::parse_str(&text).map_err(|_| EngineError::BadValue { what: "uuid", value: text, expected })
    };
    let uuid = spec.uuid.map(parse).transpose()?;
    let ana_group = spec.ana_group.unwrap_or(1);
    let nsid = spec.nsid.unwrap_or(0);
    Ok((spec.nsid, desired::Namespace { device: spec.device, nsid, uuid, ana_group }))
}

fn parse_create(request: CreateSubsystemRequest) -> Result<desired::Subsystem, EngineError> {
    let mut namespaces: Vec<desired::Namespace> = Vec::new();
    let specs: Vec<_> = request.namespaces.into_iter().map(parse_namespace).collect::<Result<_, _>>()?;
    let mut taken: BTreeSet<u32> = specs.iter().filter_map(|(nsid, _)| *nsid).collect();
    for (given, mut namespace) in specs {
        namespace.nsid = given.or_else(|| (1..).find(|n| !taken.contains(n))).unwrap_or(u32::MAX);
        taken.insert(namespace.nsid);
        namespaces.push(namespace);
    }
    let cntlid = |id: Option<u32>, default: u16| {
        let expected = "controller ids are numbers from 1 to 65519";
        id.map_or(Ok(default), |id| {
            let bad = || EngineError::BadValue { what: "controller id", value: id.to_string(), expected };
            u16::try_from(id).map_err(|_| bad())
        })
    };
    let defaults = nvmf::target::SubsystemSpec::new(request.nqn.clone()).cntlids;
    let cntlids = match (request.min_cntlid, request.max_cntlid) {
        (None, None) => None,
        (min, max) => Some([cntlid(min, *defaults.start())?, cntlid(max, *defaults.end())?]),
    };
    let ana_groups = request.ana_groups.unwrap_or(1);
    Ok(desired::Subsystem {
        nqn: request.nqn,
        share_of: None,
        serial: request.serial,
        model: request.model,
        allow_any_host: request.hosts.is_empty(),
        hosts: request.hosts.into_iter().collect(),
        cntlids,
        ana_groups: u16::try_from(ana_groups).ok().filter(|n| *n <= MAX_ANA_GROUPS).ok_or_else(|| {
            let expected = "a subsystem has up to 128 ANA groups";
            EngineError::BadValue { what: "number of ANA groups", value: ana_groups.to_string(), expected }
        })?,
        ana_states: Vec::new(),
        namespaces,
    })
}

/// The log page with their states stays small, and so does what each core keeps of them.
const MAX_ANA_GROUPS: u16 = 128;

#[tonic::async_trait]
impl SubsystemRpc for SubsystemService {
    async fn create_subsystem(
        &self,
        request: Request<CreateSubsystemRequest>,
    ) -> Result<Response<Subsystem>, Status> {
        let desired = parse_create(request.into_inner())?;
        let exported = self.0.clone().create_subsystem(desired).await?;
        Ok(Response::new(self.describe(&exported)))
    }

    async fn destroy_subsystem(
        &self,
        request: Request<DestroySubsystemRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.clone().destroy_subsystem(request.into_inner().nqn).await?;
        Ok(Response::new(()))
    }

    async fn list_subsystems(
        &self,
        request: Request<ListSubsystemsRequest>,
    ) -> Result<Response<ListSubsystemsResponse>, Status> {
        let nqn = request.into_inner().nqn;
        let mut list = self.0.exports().list();
        list.retain(|e| nqn.as_ref().is_none_or(|n| *n == e.desired.nqn));
        list.sort_by(|a, b| a.desired.nqn.cmp(&b.desired.nqn));
        let subsystems = list.iter().map(|e| self.describe(e)).collect();
        Ok(Response::new(ListSubsystemsResponse { subsystems }))
    }

    async fn add_namespace(
        &self,
        request: Request<AddNamespaceRequest>,
    ) -> Result<Response<Namespace>, Status> {
        let request = request.into_inner();
        let spec = request.namespace.ok_or(EngineError::Missing("the namespace"))?;
        let (nsid, namespace) = parse_namespace(spec)?;
        let added = self.0.clone().add_namespace(request.nqn, nsid, namespace).await?;
        Ok(Response::new(self.namespace(&added)?))
    }

    async fn remove_namespace(
        &self,
        request: Request<RemoveNamespaceRequest>,
    ) -> Result<Response<()>, Status> {
        let RemoveNamespaceRequest { nqn, nsid } = request.into_inner();
        self.0.clone().remove_namespace(nqn, nsid).await?;
        Ok(Response::new(()))
    }

    async fn resize_namespace(
        &self,
        request: Request<ResizeNamespaceRequest>,
    ) -> Result<Response<ResizeNamespaceResponse>, Status> {
        let ResizeNamespaceRequest { nqn, nsid, size_bytes } = request.into_inner();
        let (previous_size_bytes, namespace) = self.0.clone().resize_namespace(nqn, nsid, size_bytes).await?;
        let namespace = Some(self.namespace(&namespace)?);
        Ok(Response::new(ResizeNamespaceResponse { previous_size_bytes, namespace }))
    }

    async fn allow_hosts(&self, request: Request<AllowHostsRequest>) -> Result<Response<Subsystem>, Status> {
        let AllowHostsRequest { nqn, hosts, any } = request.into_inner();
        let exported = self.0.clone().change_hosts(nqn, move |s| {
            s.hosts.extend(hosts);
            s.allow_any_host |= any;
        });
        Ok(Response::new(self.describe(&exported.await?)))
    }

    async fn deny_hosts(&self, request: Request<DenyHostsRequest>) -> Result<Response<Subsystem>, Status> {
        let DenyHostsRequest { nqn, hosts, any } = request.into_inner();
        let exported = self.0.clone().change_hosts(nqn, move |s| {
            s.hosts.retain(|h| !hosts.contains(h));
            s.allow_any_host &= !any;
        });
        Ok(Response::new(self.describe(&exported.await?)))
    }

    async fn set_ana_state(
        &self,
        request: Request<SetAnaStateRequest>,
    ) -> Result<Response<Subsystem>, Status> {
        let SetAnaStateRequest { nqn, ana_group, state } = request.into_inner();
        let known = u8::try_from(state).ok().and_then(ana_state);
        let state = known.ok_or_else(|| EngineError::BadValue {
            what: "ANA state",
            value: state.to_string(),
            expected: "states are 1 (optimized) to 4 (persistent loss) and 15 (change)",
        })?;
        let exported = self.0.clone().set_ana(nqn, ana_group, state).await?;
        Ok(Response::new(self.describe(&exported)))
    }

    async fn list_controllers(
        &self,
        request: Request<ListControllersRequest>,
    ) -> Result<Response<ListControllersResponse>, Status> {
        let nqn = request.into_inner().nqn;
        let subsystems = self.0.exports().target().subsystems().into_iter();
        let controllers = subsystems
            .filter(|s| nqn.as_ref().is_none_or(|n| *n == s.nqn))
            .flat_map(|s| s.controllers.into_iter().map(move |c| describe_controller(s.nqn.clone(), c)))
            .collect();
        Ok(Response::new(ListControllersResponse { controllers }))
    }

    async fn list_connections(
        &self,
        request: Request<ListConnectionsRequest>,
    ) -> Result<Response<ListConnectionsResponse>, Status> {
        let nqn = request.into_inner().nqn;
        let mut connections = Vec::new();
        for core in self.0.cores() {
            let here = target_cores::connections(core).await.into_iter();
            let wanted = here.filter(|c| nqn.as_ref().is_none_or(|n| *n == c.nqn));
            connections.extend(wanted.map(|c| describe_connection(core.id().0, c)));
        }
        connections.sort_by(|a, b| (&a.nqn, a.cntlid, a.qid).cmp(&(&b.nqn, b.cntlid, b.qid)));
        Ok(Response::new(ListConnectionsResponse { connections }))
    }
}

fn describe_controller(nqn: String, c: ControllerSnapshot) -> Controller {
    Controller {
        nqn,
        cntlid: c.cntlid.0.into(),
        host_nqn: c.hostnqn,
        host_id: Uuid::from_bytes(c.hostid.0).to_string(),
        peer: c.peer.to_string(),
        io_queues: c.io_queues as u32,
        kato_ms: c.kato_ms.into(),
    }
}

fn describe_connection(core: u32, c: ConnectionInfo) -> Connection {
    Connection {
        nqn: c.nqn,
        cntlid: c.cntlid.0.into(),
        qid: c.qid.0.into(),
        host_nqn: c.hostnqn,
        peer: c.peer.to_string(),
        core,
        queue_size: c.entries,
        header_digest: c.header_digest,
        data_digest: c.data_digest,
        in_flight: c.in_flight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(device: &str, nsid: Option<u32>) -> NamespaceSpec {
        NamespaceSpec { device: device.into(), nsid, ..NamespaceSpec::default() }
    }

    #[test]
    fn numbers_are_filled_in_around_those_that_are_given() {
        let request = CreateSubsystemRequest {
            nqn: "nqn.x".into(),
            namespaces: vec![spec("a", None), spec("b", Some(1)), spec("c", None)],
            ..CreateSubsystemRequest::default()
        };
        let desired = parse_create(request).unwrap();
        let numbers: Vec<u32> = desired.namespaces.iter().map(|n| n.nsid).collect();
        assert_eq!(numbers, [2, 1, 3]);
        assert!(desired.allow_any_host);
        assert_eq!(desired.ana_groups, 1);
    }

    #[test]
    fn impossible_values_are_named() {
        let request = |change: fn(&mut CreateSubsystemRequest)| {
            let mut request = CreateSubsystemRequest { nqn: "nqn.x".into(), ..Default::default() };
            change(&mut request);
            parse_create(request).unwrap_err().to_string()
        };
        assert!(request(|r| r.max_cntlid = Some(70_000)).contains("70000"));
        assert!(request(|r| r.ana_groups = Some(1000)).contains("1000"));
        assert!(request(|r| r.namespaces = vec![NamespaceSpec::default()]).contains("name of a device"));
        let bad_uuid = |r: &mut CreateSubsystemRequest| {
            r.namespaces = vec![NamespaceSpec { uuid: Some("x".into()), ..NamespaceSpec::default() }];
            r.namespaces[0].device = "d".into();
        };
        assert!(request(bad_uuid).contains("UUID"));
    }
}
