//! `keelson.v1.SubsystemRpc` over loopback, seen by hosts.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, Running, setup};
use rpc::keelson::v1::{
    AddNamespaceRequest, AllowHostsRequest, AnaState, CreateSubsystemRequest, DenyHostsRequest,
    DestroySubsystemRequest, ListConnectionsRequest, ListControllersRequest, ListSubsystemsRequest,
    NamespaceSpec, RemoveNamespaceRequest, ResizeNamespaceRequest, SetAnaStateRequest, Subsystem,
};
use tonic::{Code, Status};

const NQN: &str = "nqn.2019-05.io.openebs:s";

fn spec(device: &str, nsid: Option<u32>) -> NamespaceSpec {
    NamespaceSpec { device: device.into(), nsid, ..NamespaceSpec::default() }
}

async fn create(d: &Running, change: impl FnOnce(&mut CreateSubsystemRequest)) -> Result<Subsystem, Status> {
    let mut request = CreateSubsystemRequest { nqn: NQN.into(), ..Default::default() };
    change(&mut request);
    d.client.subsystem().create_subsystem(request).await.map(|a| a.into_inner())
}

async fn daemon() -> Running {
    let d = Running::start(setup()).await;
    for name in ["a", "b", "c"] {
        d.create(&format!("malloc:///{name}?size_mb=1")).await.unwrap();
    }
    d
}

async fn find(d: &Running, nqn: &str) -> Option<Subsystem> {
    let request = ListSubsystemsRequest { nqn: Some(nqn.into()) };
    d.client.subsystem().list_subsystems(request).await.unwrap().into_inner().subsystems.into_iter().next()
}

#[tokio::test]
async fn namespaces_come_go_and_grow_under_a_connected_host() {
    let d = daemon().await;
    let s = create(&d, |r| {
        r.namespaces = vec![spec("a", None), spec("b", Some(7))];
        r.serial = Some("SERIAL1".into());
    });
    let s = s.await.unwrap();
    assert_eq!(s.serial, "SERIAL1");
    assert_eq!(
        s.namespaces.iter().map(|n| (n.nsid, n.device.as_str())).collect::<Vec<_>>(),
        [(1, "a"), (7, "b")]
    );
    assert!(s.allow_any_host && s.ana_reporting);
    let host = Host::new();
    let uri = &s.uris[0];
    let first = host.connect(&format!("{uri}?nsid=1")).await.unwrap();
    host.connect(&format!("{uri}?nsid=7")).await.unwrap().remove();
    assert!(host.connect(&format!("{uri}?nsid=2")).await.is_err());

    let mut calls = d.client.subsystem();
    let added =
        calls.add_namespace(AddNamespaceRequest { nqn: NQN.into(), namespace: Some(spec("c", None)) });
    assert_eq!(added.await.unwrap().into_inner().nsid, 2);
    host.connect(&format!("{uri}?nsid=2")).await.unwrap().remove();
    let taken = AddNamespaceRequest { nqn: NQN.into(), namespace: Some(spec("c", Some(2))) };
    assert_eq!(calls.add_namespace(taken).await.unwrap_err().code(), Code::AlreadyExists);

    let resize = |nsid, size_bytes| ResizeNamespaceRequest { nqn: NQN.into(), nsid, size_bytes };
    let grown = calls.resize_namespace(resize(1, Some(2 << 20))).await.unwrap().into_inner();
    assert_eq!((grown.previous_size_bytes, grown.namespace.unwrap().size_bytes), (1 << 20, 2 << 20));
    assert_eq!(calls.resize_namespace(resize(1, Some(100))).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(calls.resize_namespace(resize(9, None)).await.unwrap_err().code(), Code::NotFound);
    // The host is told.
    for _ in 0..200 {
        if first.size().0 == 4096 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(first.size().0, 4096);

    let remove = |nsid| RemoveNamespaceRequest { nqn: NQN.into(), nsid };
    calls.remove_namespace(remove(2)).await.unwrap();
    assert_eq!(calls.remove_namespace(remove(2)).await.unwrap_err().code(), Code::NotFound);
    let numbers: Vec<u32> = find(&d, NQN).await.unwrap().namespaces.iter().map(|n| n.nsid).collect();
    assert_eq!(numbers, [1, 7]);

    let controllers = calls.list_controllers(ListControllersRequest::default()).await.unwrap().into_inner();
    assert!(!controllers.controllers.is_empty());
    let connections = calls.list_connections(ListConnectionsRequest { nqn: Some(NQN.into()) }).await.unwrap();
    assert!(connections.into_inner().connections.iter().any(|c| c.qid == 0 && c.nqn == NQN));

    calls.destroy_subsystem(DestroySubsystemRequest { nqn: NQN.into() }).await.unwrap();
    assert!(find(&d, NQN).await.is_none());
    assert_eq!(d.bdevs().await.len(), 3, "its devices stay");
    assert!(d.bdevs().await.iter().all(|b| !b.claimed));
    d.stop().await;
}

#[tokio::test]
async fn creation_is_all_or_nothing() {
    let d = daemon().await;
    let code = |r: Result<Subsystem, Status>| r.unwrap_err().code();
    assert_eq!(
        code(create(&d, |r| r.namespaces = vec![spec("a", None), spec("x", None)]).await),
        Code::NotFound
    );
    assert!(find(&d, NQN).await.is_none());
    assert_eq!(
        code(create(&d, |r| r.namespaces = vec![spec("a", None), spec("a", None)]).await),
        Code::AlreadyExists
    );
    assert!(find(&d, NQN).await.is_none(), "what was made is undone");
    assert_eq!(code(create(&d, |r| r.nqn = "x".into()).await), Code::InvalidArgument);
    assert_eq!(
        code(create(&d, |r| r.nqn = "nqn.2014-08.org.nvmexpress.discovery".into()).await),
        Code::AlreadyExists
    );
    assert_eq!(code(create(&d, |r| r.serial = Some("x".repeat(21))).await), Code::InvalidArgument);
    assert_eq!(
        code(create(&d, |r| (r.min_cntlid, r.max_cntlid) = (Some(9), Some(3))).await),
        Code::InvalidArgument
    );
    create(&d, |r| r.namespaces = vec![spec("a", None)]).await.unwrap();
    assert_eq!(code(create(&d, |_| ()).await), Code::AlreadyExists);
    d.stop().await;
}

#[tokio::test]
async fn hosts_are_let_in_and_thrown_out() {
    let d = daemon().await;
    let (one, two) = ("nqn.2014-08.org.example:one", "nqn.2014-08.org.example:two");
    let s = create(&d, |r| {
        r.namespaces = vec![spec("a", None)];
        r.hosts = vec![one.into()];
    });
    let uri = s.await.unwrap().uris[0].clone();
    let host = Host::new();
    let connect = async |nqn: &str| host.connect(&format!("{uri}?hostnqn={nqn}")).await;
    connect(one).await.unwrap().remove();
    assert!(connect(two).await.is_err());
    let mut calls = d.client.subsystem();
    let allow = AllowHostsRequest { nqn: NQN.into(), hosts: vec![two.into()], any: false };
    for _ in 0..2 {
        let s = calls.allow_hosts(allow.clone()).await.unwrap().into_inner();
        assert_eq!(s.hosts, [one, two]);
    }
    connect(two).await.unwrap().remove();
    let deny = DenyHostsRequest { nqn: NQN.into(), hosts: vec![one.into()], any: false };
    calls.deny_hosts(deny).await.unwrap();
    assert!(connect(one).await.is_err());
    let any = AllowHostsRequest { nqn: NQN.into(), hosts: vec![], any: true };
    assert!(calls.allow_hosts(any).await.unwrap().into_inner().allow_any_host);
    connect(one).await.unwrap().remove();
    let missing = AllowHostsRequest { nqn: "nqn.2019-05.io.openebs:x".into(), ..Default::default() };
    assert_eq!(calls.allow_hosts(missing).await.unwrap_err().code(), Code::NotFound);
    d.stop().await;
}

#[tokio::test]
async fn ana_states_are_set_by_group() {
    let d = daemon().await;
    create(&d, |r| (r.namespaces, r.ana_groups) = (vec![spec("a", None)], Some(2))).await.unwrap();
    let mut calls = d.client.subsystem();
    let set = |group, state: i32| SetAnaStateRequest { nqn: NQN.into(), ana_group: group, state };
    let states = |s: Subsystem| s.ana_groups.iter().map(|g| g.state).collect::<Vec<_>>();
    let one = calls.set_ana_state(set(Some(2), AnaState::NonOptimized.into())).await.unwrap().into_inner();
    assert_eq!(states(one), [1, 2]);
    let all = calls.set_ana_state(set(None, AnaState::Inaccessible.into())).await.unwrap().into_inner();
    assert_eq!(states(all), [3, 3]);
    assert_eq!(calls.set_ana_state(set(Some(3), 1)).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(calls.set_ana_state(set(None, 7)).await.unwrap_err().code(), Code::InvalidArgument);
    d.stop().await;
}
