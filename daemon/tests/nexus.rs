//! `mayastor.v1.NexusRpc` over loopback: what each call answers, with which code, and what hosts find. Replicas on daemons
//! of their own, a nexus over them, published, under verified load.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::nexuses::{NexusCalls, code, wish};
use common::pools::{MIB, PoolCalls, uuid};
use common::{Host, Running, job, setup};
use keelson::perf::{Outcome, Pattern};
use keelson::serve::Setup;
use rpc::mayastor::v1::{
    BdevShareRequest, DestroyBdevRequest, GetNvmeAnaStateRequest, ListNexusOptions,
    ListRebuildHistoryRequest, ListStatsOption, PauseRebuildRequest, PublishNexusRequest,
    RebuildHistoryRequest, RebuildStateRequest, RebuildStatsRequest, ResumeRebuildRequest,
    SetNvmeAnaStateRequest, StopRebuildRequest,
};
use tonic::Code;

const ONLINE: i32 = 1;
const DEGRADED: i32 = 2;
const FAULTED: i32 = 3;
const SIZE: u64 = 24 * MIB;

fn ram(n: u128) -> String {
    format!("malloc:///ram{n}?size_mb=32&uuid={}", uuid(n))
}

/// It did something, and read what it wrote.
fn assert_fine(done: &Outcome) {
    assert!(done.read.bytes > 0 && done.write.bytes > 0, "nothing was done");
    assert_eq!(
        (done.errors, done.verified.damaged),
        (0, 0),
        "{:?} {:?}",
        done.first_error,
        done.verified.findings
    );
}

/// A daemon with a pool on memory and one shared replica, and the replica's URI.
async fn replica_host(n: u128) -> (Running, String) {
    let d = Running::start(setup()).await;
    d.create_pool("p", &["malloc:///m?size_mb=128"]).await.unwrap();
    d.create_replica(&format!("r{n}"), &uuid(n), "p", 32 * MIB, true).await.unwrap();
    let uri = d.share(&uuid(n), 1, &[]).await.unwrap().uri;
    assert!(uri.starts_with("nvmf+tcp://") && uri.contains("uuid="), "{uri}");
    (d, uri)
}

#[tokio::test]
async fn a_nexus_comes_and_goes() {
    let d = Running::start(setup()).await;
    let (a, b) = (ram(1), ram(2));
    let n = d.mirror(&uuid(9), SIZE, &[&a, &b]).await.unwrap();
    assert_eq!((n.name.as_str(), n.uuid.as_str(), n.size, n.state), (&*uuid(9), &*uuid(9), SIZE, ONLINE));
    assert_eq!((n.device_uri.as_str(), n.ana_state, n.rebuilds), ("", 0, 0));
    let shown: Vec<_> = n.children.iter().map(|c| (c.uri.as_str(), c.state, c.state_reason)).collect();
    assert_eq!(shown, [(a.as_str(), ONLINE, 0), (b.as_str(), ONLINE, 0)]);
    assert_eq!((n.children[0].rebuild_progress, n.children[0].device_name.as_deref()), (-1, Some("ram1")));
    assert_eq!(d.nexuses().await, std::slice::from_ref(&n));

    // It is a device with its children, none of which is handled as one.
    let bdev = d.bdev(&uuid(9)).await.unwrap();
    assert_eq!((bdev.product_name.as_str(), bdev.uuid.as_str()), ("nexus", &*uuid(9)));
    assert_eq!(bdev.num_blocks * u64::from(bdev.blk_size), SIZE - 512, "a block less than asked for");
    assert_eq!(d.bdev("ram1").await.unwrap().claimed_by, format!("nexus {}", uuid(9)));
    let share = BdevShareRequest { name: uuid(9), protocol: 1, allowed_hosts: vec![] };
    assert_eq!(d.client.bdev().share(share).await.unwrap_err().code(), Code::Internal);
    for uri in [&bdev.uri, &a] {
        let destroy = DestroyBdevRequest { uri: uri.replace("nexus:", "bdev:") };
        assert_eq!(d.client.bdev().destroy(destroy).await.unwrap_err().code(), Code::Internal, "{uri}");
    }
    assert_eq!(d.create_pool("p", &[&a]).await, Err(Code::InvalidArgument));

    // Filters: the name goes before the uuid.
    let list = |name: Option<&str>, id: Option<&str>| {
        let mut client = d.client.nexus();
        let request = ListNexusOptions { name: name.map(Into::into), uuid: id.map(Into::into) };
        async move { code(client.list_nexus(request).await).map(|a| a.nexus_list.len()) }
    };
    assert_eq!(list(Some("x"), Some(&uuid(9))).await, Ok(0));
    assert_eq!(list(Some(&uuid(9)), None).await, Ok(1));
    assert_eq!(list(None, Some(&uuid(8))).await, Err(Code::NotFound));
    assert_eq!(list(None, Some("x")).await, Err(Code::InvalidArgument));

    assert_eq!(d.destroy_nexus(&uuid(9)).await, Ok(()));
    assert_eq!(d.destroy_nexus(&uuid(9)).await, Err(Code::NotFound));
    assert!(d.nexuses().await.is_empty() && d.bdevs().await.is_empty(), "its children go with it");
    d.stop().await;
}

#[tokio::test]
async fn impossible_nexuses_leave_nothing() {
    let d = Running::start(setup()).await;
    d.create("malloc:///big?size_mb=64&blk_size=4096").await.unwrap();
    let (a, b) = (ram(1), ram(2));
    d.mirror(&uuid(9), SIZE, &[&ram(7)]).await.unwrap();
    let nowhere = "nvmf+tcp://127.0.0.1:1/nqn.2019-05.io.openebs:x";
    let own = d.daemon.engine().node().nvmf;
    let wrong_nqn = format!("nvmf+tcp://{own}/nqn.2019-05.io.openebs:nobody");
    for (children, want, why) in [
        (vec![], Code::Internal, "no children"),
        (vec![a.as_str(), &a], Code::InvalidArgument, "more than once"),
        (vec![&a, "malloc:///ram1?size_mb=32"], Code::InvalidArgument, "more than once"),
        (vec![&a, "bdev:///big"], Code::InvalidArgument, "block"),
        (vec![&a, "malloc:///small?size_mb=8"], Code::InvalidArgument, "larger device"),
        (vec![&a, "bdev:///nobody"], Code::InvalidArgument, "no device \"nobody\""),
        (vec![&a, "ftp://x"], Code::InvalidArgument, "scheme"),
        (vec![&a, nowhere], Code::InvalidArgument, "closed the connection"),
        (vec![&a, &wrong_nqn], Code::InvalidArgument, "nobody"),
        (vec![&a, &ram(7)], Code::InvalidArgument, "in use by nexus"),
        (vec![&format!("bdev:///{}", uuid(9))], Code::InvalidArgument, "a nexus cannot be a child"),
    ] {
        let status = d.create_nexus(wish(&uuid(5), SIZE, &children)).await.unwrap_err();
        assert_eq!(status.code(), want, "{children:?}: {status}");
        assert!(status.message().contains(why), "{children:?}: {}", status.message());
    }
    let request = wish(&uuid(5), SIZE, &[&a, &b]);
    type Change = fn(&mut rpc::mayastor::v1::CreateNexusRequest);
    let changes: [(Change, Code); 11] = [
        (|r| r.name = uuid(9), Code::AlreadyExists),
        (|r| r.name = "big".into(), Code::AlreadyExists),
        (|r| r.uuid = uuid(9), Code::Internal),
        (|r| r.uuid = "no uuid".into(), Code::InvalidArgument),
        (|r| r.uuid = String::new(), Code::InvalidArgument),
        (|r| r.name = String::new(), Code::InvalidArgument),
        (|r| r.min_cntl_id = 0, Code::InvalidArgument),
        (|r| (r.min_cntl_id, r.max_cntl_id) = (9, 8), Code::InvalidArgument),
        (|r| r.max_cntl_id = 0xfff0, Code::InvalidArgument),
        (|r| r.resv_type = Some(9), Code::InvalidArgument),
        (|r| r.size = 0, Code::InvalidArgument),
    ];
    for (at, (change, want)) in changes.into_iter().enumerate() {
        let mut request = request.clone();
        change(&mut request);
        let status = d.create_nexus(request).await.unwrap_err();
        assert_eq!(status.code(), want, "change {at}: {status}");
    }
    // Nothing of the failures is left: it works now.
    assert_eq!(d.nexuses().await.len(), 1);
    assert!(d.bdev("ram1").await.is_none() && d.bdev("small").await.is_none());
    d.create_nexus(request).await.unwrap();
    d.stop().await;
}

/// A host that takes connections and says nothing must not hang requests about anything else.
#[tokio::test]
async fn a_silent_child_hangs_nobody_else() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("nvmf+tcp://{}/nqn.2019-05.io.openebs:x", silent.local_addr().unwrap());
    let d = Running::start(setup()).await;
    let mut client = d.client.nexus();
    let request = wish(&uuid(5), SIZE, &[&uri]);
    let begin = Instant::now();
    let hanging = tokio::spawn(async move { client.create_nexus(request).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    d.mirror(&uuid(9), SIZE, &[&ram(1)]).await.unwrap();
    d.create_pool("p", &["malloc:///m?size_mb=64"]).await.unwrap();
    assert!(d.nexuses().await.len() == 1 && d.destroy_nexus(&uuid(9)).await.is_ok());
    assert!(begin.elapsed() < Duration::from_secs(4), "others waited: {:?}", begin.elapsed());
    // Its name is taken meanwhile, and who waits for it waits no longer than it said.
    let mut again = tonic::Request::new(rpc::mayastor::v1::DestroyNexusRequest { uuid: uuid(5) });
    again.set_timeout(Duration::from_millis(300));
    assert_eq!(d.client.nexus().destroy_nexus(again).await.unwrap_err().code(), Code::DeadlineExceeded);
    let status = hanging.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(begin.elapsed() < Duration::from_secs(20));
    d.stop().await;
}

#[tokio::test]
async fn a_published_nexus_survives_its_children_one_by_one() {
    let (r1, u1) = replica_host(1).await;
    let (r2, u2) = replica_host(2).await;
    let d = Running::start(setup()).await;
    let id = uuid(9);
    d.mirror(&id, SIZE, &[&u1, &u2]).await.unwrap();
    let n = d.publish(&id, &[]).await.unwrap();
    assert_eq!((n.ana_state, n.allowed_hosts.len()), (1, 0));
    assert_eq!(
        n.device_uri,
        format!("nvmf+tcp://{}/nqn.2019-05.io.openebs:{id}", d.daemon.engine().node().nvmf)
    );
    let host = Host::new();
    let disk = host.connect(&n.device_uri).await.unwrap();
    assert_eq!(disk.uuid().to_string(), id, "hosts know it by its name");
    let done = host.load(&disk, &job(Pattern::RandRw, 1)).await;
    assert_fine(&done);

    // One goes under load; the host sees nothing.
    let load = tokio::spawn(async move {
        let done = host.load(&disk, &job(Pattern::RandRw, 2)).await;
        (host, disk, done)
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    d.child_op(&id, &u2, 0).await.unwrap();
    let (host, disk, done) = load.await.unwrap();
    assert_fine(&done);
    let n = d.nexus(&id).await.unwrap();
    assert_eq!((n.state, n.children[0].state), (DEGRADED, ONLINE));
    let away = d.until_child(&id, &u2, DEGRADED).await;
    assert_eq!(away.state_reason, 7, "by client");
    assert!(away.fault_timestamp.is_some() && away.device_name.is_none());
    assert_eq!(d.child_op(&id, &u1, 0).await, Err(Code::FailedPrecondition), "the last one");
    assert_eq!(d.remove_child(&id, &u1).await, Err(Code::FailedPrecondition));
    assert_eq!(d.child_op(&id, &u2, 0).await, Err(Code::Internal), "it takes no part already");

    // And comes back.
    d.child_op(&id, &u2, 1).await.unwrap();
    d.until_child(&id, &u2, ONLINE).await;
    assert_eq!(d.nexus(&id).await.unwrap().state, ONLINE);
    d.child_op(&id, &u2, 1).await.unwrap();

    // Then the other one goes, for good: what was written while the second was away is on the second.
    d.fault_child(&id, &u1).await.unwrap();
    d.until_child(&id, &u1, FAULTED).await;
    assert_eq!(d.child_op(&id, &u1, 1).await, Err(Code::Internal), "for good");
    let done = host.load(&disk, &job(Pattern::RandRw, 3)).await;
    assert_fine(&done);
    d.remove_child(&id, &u1).await.unwrap();
    assert_eq!(d.remove_child(&id, &u1).await.unwrap().children.len(), 1, "again");
    // An old member is as any other when it is added.
    d.add_child(&id, &u1, false).await.unwrap();
    d.until_child(&id, &u1, ONLINE).await;
    drop(disk);
    drop(host);
    d.destroy_nexus(&id).await.unwrap();
    assert_equal_replicas(&r1, &r2).await;
    for daemon in [d, r1, r2] {
        daemon.stop().await;
    }
}

/// Both replicas hold the same bytes, where a nexus keeps its data.
async fn assert_equal_replicas(a: &Running, b: &Running) {
    let host = Host::new();
    let mut sums = Vec::new();
    for (d, n) in [(a, 1), (b, 2)] {
        let device = d.daemon.engine().registry().find(&format!("r{n}")).unwrap().device;
        let home = d.daemon.engine().cores()[0].clone();
        sums.push(home.call(move || checksum(device)).await.unwrap());
    }
    drop(host);
    assert_eq!(sums[0], sums[1], "the replicas differ");
}

/// Bytes read at once.
const STEP: u64 = 64 << 10;

async fn checksum(device: std::sync::Arc<dyn aio::BlockDevice>) -> Vec<u64> {
    use std::hash::{DefaultHasher, Hasher};
    let disk = aio::Descriptor::open(device).await.unwrap();
    let pool = aio::DmaPool::new(aio::Core::current().unwrap().memory(), STEP as u32, 1).unwrap();
    let (mut buf, mut sums) = (pool.alloc().unwrap(), Vec::new());
    for at in (5 * MIB..5 * MIB + SIZE - MIB).step_by(STEP as usize) {
        let (result, filled) = disk.read_at(at, STEP as u32, buf).await;
        result.unwrap();
        let mut hash = DefaultHasher::new();
        hash.write(&filled[..STEP as usize]);
        sums.push(hash.finish());
        buf = filled;
    }
    disk.close().await;
    sums
}

#[tokio::test]
async fn publishing() {
    let d = Running::start(setup()).await;
    let id = uuid(9);
    let mut request = wish(&id, SIZE, &[&ram(1)]);
    (request.min_cntl_id, request.max_cntl_id) = (7, 8);
    d.create_nexus(request).await.unwrap();
    let ana = |state: Option<i32>| {
        let (mut client, uuid) = (d.client.nexus(), uuid(9));
        async move {
            match state {
                None => {
                    let got = client.get_nvme_ana_state(GetNvmeAnaStateRequest { uuid }).await;
                    code(got).map(|a| a.ana_state)
                }
                Some(ana_state) => {
                    let set = client.set_nvme_ana_state(SetNvmeAnaStateRequest { uuid, ana_state }).await;
                    code(set).map(|a| a.nexus.unwrap().ana_state)
                }
            }
        }
    };
    assert_eq!(
        (ana(None).await, ana(Some(2)).await),
        (Err(Code::InvalidArgument), Err(Code::InvalidArgument))
    );
    let publish = |key: &str, share| {
        let request = PublishNexusRequest { uuid: uuid(9), key: key.into(), share, allowed_hosts: vec![] };
        let mut client = d.client.nexus();
        async move { code(client.publish_nexus(request).await).map(|a| a.nexus.unwrap().device_uri) }
    };
    assert_eq!(publish("short", 1).await, Err(Code::InvalidArgument));
    assert_eq!(publish("", 0).await, Err(Code::InvalidArgument), "there is no NBD");
    assert_eq!(publish("", 2).await, Err(Code::InvalidArgument));
    let uri = publish("0123456789abcdef", 1).await.unwrap();
    assert_eq!(d.publish(&id, &["not a\nname"]).await, Err(Code::InvalidArgument));

    // Again with hosts: they are replaced, and the URI stays.
    let n = d.publish(&id, &["nqn.2014-08.org.example:h"]).await.unwrap();
    assert_eq!(
        (n.device_uri.as_str(), n.allowed_hosts),
        (uri.as_str(), vec!["nqn.2014-08.org.example:h".to_owned()])
    );
    let host = Host::new();
    assert!(host.connect(&uri).await.is_err(), "not on the list");
    let allowed = host.connect(&format!("{uri}?hostnqn=nqn.2014-08.org.example:h")).await.unwrap();
    let controllers = d.daemon.engine().exports().target().subsystems();
    assert!(controllers.iter().flat_map(|s| &s.controllers).all(|c| [7, 8].contains(&c.cntlid.0)), "cntlids");
    drop(allowed);

    assert_eq!((ana(Some(3)).await, ana(None).await), (Ok(3), Ok(3)));
    assert_eq!(ana(Some(4)).await, Err(Code::InvalidArgument));
    assert_eq!(ana(Some(1)).await, Ok(1));
    let n = d.unpublish(&id).await.unwrap();
    assert_eq!((n.device_uri.as_str(), n.ana_state), ("", 0));
    assert_eq!(d.unpublish(&id).await.unwrap().device_uri, "");
    d.publish(&id, &[]).await.unwrap();
    d.destroy_nexus(&id).await.unwrap();
    assert!(d.daemon.engine().exports().list().is_empty());
    d.stop().await;
}

#[tokio::test]
async fn without_ana_there_is_no_state_to_set() {
    let d = Running::start(Setup { ana_feature: false, ..setup() }).await;
    d.mirror(&uuid(9), SIZE, &[&ram(1)]).await.unwrap();
    assert_eq!(d.publish(&uuid(9), &[]).await.unwrap().ana_state, 1);
    let request = SetNvmeAnaStateRequest { uuid: uuid(9), ana_state: 2 };
    assert_eq!(d.client.nexus().set_nvme_ana_state(request).await.unwrap_err().code(), Code::Internal);
    d.stop().await;
}

#[tokio::test]
async fn children_of_this_node_are_opened_directly() {
    let d = Running::start(setup()).await;
    d.create_pool("p", &["malloc:///m?size_mb=128"]).await.unwrap();
    d.create_replica("r1", &uuid(1), "p", 32 * MIB, true).await.unwrap();
    d.create_replica("r2", &uuid(2), "p", 32 * MIB, true).await.unwrap();
    let shared = d.share(&uuid(1), 1, &[]).await.unwrap().uri;
    let local = format!("bdev:///r2?uuid={}", uuid(2));
    d.mirror(&uuid(9), SIZE, &[&shared, &local]).await.unwrap();
    let n = d.nexus(&uuid(9)).await.unwrap();
    let devices: Vec<_> = n.children.iter().map(|c| c.device_name.as_deref().unwrap()).collect();
    assert_eq!(devices, ["r1", "r2"], "no way through the network");
    assert!(d.daemon.engine().controllers().is_empty());
    assert_eq!(
        d.add_child(&uuid(9), &format!("bdev:///r1?uuid={}", uuid(1)), false).await,
        Err(Code::AlreadyExists)
    );
    assert_eq!(d.add_child(&uuid(9), &local, false).await, Err(Code::AlreadyExists));
    // Somebody else's uuid.
    let other = format!("bdev:///r2?uuid={}", uuid(1));
    assert_eq!(d.mirror(&uuid(5), SIZE, &[&other]).await, Err(Code::InvalidArgument));
    assert_eq!(d.destroy_replica(&uuid(2)).await, Err(Code::Internal), "a nexus has it");
    d.destroy_nexus(&uuid(9)).await.unwrap();
    d.destroy_replica(&uuid(2)).await.unwrap();
    d.stop().await;
}

#[tokio::test]
async fn a_nexus_that_was_shut_down_is_only_destroyed() {
    let d = Running::start(setup()).await;
    let (id, a, b) = (uuid(9), ram(1), ram(2));
    d.mirror(&id, SIZE, &[&a, &b]).await.unwrap();
    let uri = d.publish(&id, &[]).await.unwrap().device_uri;
    let host = Host::new();
    let disk = host.connect(&uri).await.unwrap();
    assert_eq!(d.shut_down_nexus(&id).await.unwrap().state, 5);
    assert_eq!(d.shut_down_nexus(&id).await.unwrap().state, 5, "again");
    for refused in [
        d.add_child(&id, &ram(3), false).await.err(),
        d.remove_child(&id, &a).await.err(),
        d.fault_child(&id, &a).await.err(),
        d.child_op(&id, &a, 1).await.err(),
        d.resize_nexus(&id, 2 * SIZE).await.err(),
        d.start_rebuild(&id, &a).await.err(),
        d.publish(&id, &[]).await.err(),
    ] {
        assert_eq!(refused, Some(Code::FailedPrecondition));
    }
    let done = host.load(&disk, &job(Pattern::RandRw, 1)).await;
    assert!(done.errors > 0, "hosts are told");
    assert_eq!(d.nexuses().await.len(), 1);
    d.destroy_nexus(&id).await.unwrap();
    d.mirror(&id, SIZE, &[&a, &b]).await.unwrap();
    assert_eq!(d.shut_down_nexus(&uuid(5)).await.err(), Some(Code::NotFound));
    d.stop().await;
}

#[tokio::test]
async fn a_nexus_grows_with_its_children() {
    let d = Running::start(setup()).await;
    let (id, a, b) = (uuid(9), ram(1), ram(2));
    d.mirror(&id, SIZE, &[&a, &b]).await.unwrap();
    assert_eq!(d.resize_nexus(&id, SIZE).await.unwrap().size, SIZE, "as it is");
    assert_eq!(d.resize_nexus(&id, SIZE / 2).await, Err(Code::InvalidArgument));
    assert_eq!(d.resize_nexus(&id, 26 * MIB).await.unwrap().size, 26 * MIB);
    let blocks = d.bdev(&id).await.unwrap().num_blocks;
    assert_eq!(blocks * 512, 26 * MIB - 512);
    assert_eq!(d.resize_nexus(&uuid(5), SIZE).await, Err(Code::NotFound));
    d.stop().await;
}

/// What Prometheus gets.
async fn metrics_page(d: &Running) -> String {
    use std::io::{Read, Write};
    let addr = d.daemon.metrics().unwrap();
    let get = move || {
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    };
    tokio::task::spawn_blocking(get).await.unwrap()
}

#[tokio::test]
async fn counters() {
    let d = Running::start(Setup { metrics: Some(common::any_port()), ..setup() }).await;
    let id = uuid(9);
    d.mirror(&id, SIZE, &[&ram(1), &ram(2)]).await.unwrap();
    let stats = |name: Option<&str>| {
        let (mut client, name) = (d.client.stats(), name.map(Into::into));
        async move { code(client.get_nexus_io_stats(ListStatsOption { name }).await).map(|a| a.stats) }
    };
    assert_eq!(stats(Some("x")).await, Err(Code::NotFound));
    let host = Host::new();
    let disk = host.connect(&d.publish(&id, &[]).await.unwrap().device_uri).await.unwrap();
    host.load(&disk, &job(Pattern::RandRw, 1)).await;
    let got = stats(Some(&id)).await.unwrap().remove(0);
    assert!(got.num_read_ops > 0 && got.bytes_read == got.num_read_ops * 4096, "{got:?}");
    assert!(got.num_write_ops > 0 && got.bytes_written >= got.num_write_ops * 4096, "{got:?}");
    assert!(got.tick_rate > 0 && got.write_latency_ticks >= got.max_write_latency_ticks, "{got:?}");
    assert!(got.min_write_latency_ticks <= got.max_write_latency_ticks);
    let metrics = metrics_page(&d).await;
    let children = format!("keelson_nexus_children{{nexus=\"{id}\",state=\"healthy\"}} 2");
    assert!(metrics.contains(&children), "{metrics}");
    let reads = format!("keelson_nexus_commands_total{{nexus=\"{id}\",op=\"read\"}} {}", got.num_read_ops);
    assert!(metrics.contains(&reads), "{metrics}");
    d.client.stats().reset_io_stats(()).await.unwrap();
    let got = stats(None).await.unwrap().remove(0);
    assert_eq!((got.num_read_ops, got.bytes_written, got.max_read_latency_ticks), (0, 0, 0));
    d.stop().await;
}

/// The calls of rebuilds: what each answers while one is there and after it.
#[tokio::test]
async fn rebuilds() {
    let d = Running::start(setup()).await;
    let (id, a, b) = (uuid(9), ram(1), ram(2));
    let big = 24 * MIB;
    d.mirror(&id, big, &[&a]).await.unwrap();
    let target = |uri: &str| (uuid(9), uri.to_owned());
    let mut client = d.client.nexus();
    let (nexus_uuid, uri) = target(&b);
    let state = async |uri: &str| {
        let request = RebuildStateRequest { nexus_uuid: uuid(9), uri: uri.into() };
        code(d.client.nexus().get_rebuild_state(request).await).map(|a| a.state)
    };
    let stats = async |uri: &str| {
        let request = RebuildStatsRequest { nexus_uuid: uuid(9), uri: uri.into() };
        code(d.client.nexus().get_rebuild_stats(request).await)
    };
    let pause = || PauseRebuildRequest { nexus_uuid: uuid(9), uri: ram(2) };
    let resume = || ResumeRebuildRequest { nexus_uuid: uuid(9), uri: ram(2) };
    let stop = || StopRebuildRequest { nexus_uuid: uuid(9), uri: ram(2) };

    // Nothing is there yet.
    assert_eq!(d.start_rebuild(&uuid(5), &b).await, Err(Code::NotFound));
    assert_eq!(d.start_rebuild(&id, &b).await, Err(Code::NotFound));
    assert_eq!(d.start_rebuild(&id, &a).await, Err(Code::Internal), "there is no other to copy from");
    assert_eq!(code(client.pause_rebuild(pause()).await).err(), Some(Code::NotFound));
    assert_eq!((state(&a).await, stats(&a).await.err()), (Err(Code::NotFound), Some(Code::NotFound)));
    assert!(code(client.stop_rebuild(stop()).await).is_ok(), "none to stop");

    // One that is stopped leaves the child out of sync.
    let n = d.add_child(&id, &b, true).await.unwrap();
    let child = n.children.iter().find(|c| c.uri == b).unwrap();
    assert_eq!((child.state, child.state_reason, child.rebuild_progress, n.rebuilds), (DEGRADED, 8, -1, 0));
    assert_eq!(d.child_op(&id, &a, 0).await, Err(Code::FailedPrecondition), "the other lacks everything");
    d.start_rebuild(&id, &b).await.unwrap();
    // It may be over before it is paused: then it is told of as done.
    if code(client.pause_rebuild(pause()).await).is_ok() {
        assert_eq!(state(&b).await.as_deref(), Ok("paused"));
        let figures = stats(&b).await.unwrap();
        assert_eq!(
            (figures.blocks_total, figures.block_size, figures.blocks_per_task),
            (big / 512 - 1, 512, 128)
        );
        assert_eq!((figures.tasks_total, figures.is_partial), (16, false));
        assert!(figures.progress < 100 && figures.start_time.is_some(), "{figures:?}");
        assert_eq!(d.nexus(&id).await.unwrap().rebuilds, 1);
        assert_eq!(d.start_rebuild(&id, &b).await, Err(Code::Internal), "one at a time");
        code(client.resume_rebuild(resume()).await).unwrap();
    }
    d.until_child(&id, &b, ONLINE).await;
    assert_eq!(d.start_rebuild(&id, &b).await, Err(Code::Internal), "it is in sync");
    for _ in 0..200 {
        if d.nexus(&id).await.unwrap().rebuilds == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(code(client.resume_rebuild(resume()).await).err(), Some(Code::NotFound), "it is over");

    // And is told of.
    let history = code(client.get_rebuild_history(RebuildHistoryRequest { uuid: uuid(9) }).await).unwrap();
    assert_eq!((history.uuid.as_str(), history.records.len()), (id.as_str(), 1));
    let record = &history.records[0];
    assert_eq!(
        (record.child_uri.as_str(), record.src_uri.as_str(), record.state),
        (uri.as_str(), a.as_str(), 5)
    );
    assert_eq!(nexus_uuid, id);
    let list = async |count: Option<u32>, since: Option<prost_types::Timestamp>| {
        let request = ListRebuildHistoryRequest { count, since_end_time: since };
        let answer = code(d.client.nexus().list_rebuild_history(request).await).unwrap();
        (answer.histories[&uuid(9)].records.len(), answer.end_time.unwrap())
    };
    let (n, end) = list(None, None).await;
    assert_eq!((n, Some(end)), (1, record.end_time));
    assert_eq!((list(Some(0), None).await.0, list(None, Some(end)).await.0), (0, 0), "strictly later");
    assert_eq!(
        code(client.get_rebuild_history(RebuildHistoryRequest { uuid: uuid(5) }).await).err(),
        Some(Code::NotFound)
    );
    d.stop().await;
}

/// The commands, as a person types them.
#[tokio::test]
async fn commands() {
    let d = Running::start(setup()).await;
    let grpc = d.daemon.engine().node().grpc.to_string();
    let run = async |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keelson"));
        command.arg("-b").arg(&grpc).args(args);
        let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
    };
    assert_eq!(run(&["nexus", "list"]).await, (0, "No nexus found\n".into(), String::new()));
    let (a, b) = (ram(1), ram(2));
    let (status, id, _) = run(&["nexus", "create", "", "24MiB", &a, "--name", "vol1"]).await;
    let id = id.trim();
    assert!(status == 0 && id.len() == 36, "{status} {id}");
    let (status, out, _) = run(&["nexus", "publish", "vol1"]).await;
    assert!(status == 0 && out.starts_with("Nexus published over: nvmf+tcp://"), "{out}");
    assert_eq!(run(&["nexus", "ana_state", "vol1", "non_optimized"]).await.1.trim(), id);
    assert_eq!(run(&["nexus", "ana_state", "vol1"]).await.1, "non_optimized\n");
    assert_eq!(run(&["nexus", "add", "vol1", &b]).await.1.trim(), id);
    d.until_child(id, &b, ONLINE).await;
    let (_, out, _) = run(&["nexus", "children", "vol1"]).await;
    assert_eq!(out.matches(" online ").count(), 2, "{out}");
    assert_eq!(run(&["nexus", "child", "offline", "vol1", &b]).await.1.trim(), b);
    let (status, _, err) = run(&["nexus", "child", "offline", "vol1", &a]).await;
    assert!(status == 1 && err.contains("last healthy") && err.contains("FAILED_PRECONDITION"), "{err}");
    assert_eq!(run(&["nexus", "child", "online", "vol1", &b]).await.0, 0);
    d.until_child(id, &b, ONLINE).await;
    let (_, out, _) = run(&["rebuild", "history", id]).await;
    assert_eq!(out.matches("completed").count(), 2, "{out}");
    let (status, _, err) = run(&["rebuild", "progress", "vol1", &b]).await;
    assert!(status == 1 && err.contains("is not being rebuilt"), "{err}");
    assert!(run(&["stats", "nexus", "vol1"]).await.1.contains("vol1"));
    let (_, json, _) = run(&["nexus", "list", "-o", "json"]).await;
    assert!(json.contains("\"nexus_list\"") && json.contains("\"device_uri\": \"nvmf+tcp"), "{json}");
    assert_eq!(
        run(&["nexus", "remove", "vol1", &b]).await.1.trim(),
        format!("Removed {b} from specified nexus")
    );
    assert_eq!(run(&["nexus", "shutdown", "vol1"]).await.1.trim(), id);
    let (status, _, err) = run(&["nexus", "destroy", "nobody"]).await;
    assert!(status == 1 && err.contains("`keelson nexus list` shows what is"), "{err}");
    assert_eq!(run(&["nexus", "destroy", "vol1"]).await.1.trim(), id);
    d.stop().await;
}
