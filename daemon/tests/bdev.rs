//! `mayastor.v1.BdevRpc` and `HostRpc` over loopback: what each call answers, and with which code.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, Running, job, setup};
use keelson::perf::{Job, Pattern};
use rpc::mayastor::v1::{
    BdevShareRequest, BdevUnshareRequest, DestroyBdevRequest, ListBlockDevicesRequest, ShareProtocol,
    StatNvmeControllerRequest,
};
use tonic::Code;

async fn share(d: &Running, name: &str, protocol: ShareProtocol, hosts: &[&str]) -> Result<String, Code> {
    let allowed_hosts = hosts.iter().map(|h| h.to_string()).collect();
    let request = BdevShareRequest { name: name.into(), protocol: protocol.into(), allowed_hosts };
    let answer = d.client.bdev().share(request).await.map_err(|s| s.code())?;
    Ok(answer.into_inner().bdev.unwrap().share_uri)
}

async fn unshare(d: &Running, name: &str) -> Result<(), Code> {
    let answer = d.client.bdev().unshare(BdevUnshareRequest { name: name.into() }).await;
    answer.map(|_| ()).map_err(|s| s.code())
}

async fn destroy(d: &Running, uri: &str) -> Result<(), Code> {
    let answer = d.client.bdev().destroy(DestroyBdevRequest { uri: uri.into() }).await;
    answer.map(|_| ()).map_err(|s| s.code())
}

#[tokio::test]
async fn devices_come_and_go() {
    let d = Running::start(setup()).await;
    assert!(d.bdevs().await.is_empty());
    let a = d.create("malloc:///a?size_mb=4").await.unwrap();
    assert_eq!((a.name.as_str(), a.num_blocks, a.blk_size), ("a", 8192, 512));
    assert_eq!((a.claimed, a.claimed_by.as_str()), (false, "Orphaned"));
    assert_eq!(a.share_uri, "bdev:///a");
    assert_eq!(a.product_name, "malloc");
    assert_eq!(a.uri, format!("malloc:///a?size_mb=4&uuid={}", a.uuid));
    let n = d.create("null:///n?size_mb=1&blk_size=4096").await.unwrap();
    assert_eq!((n.num_blocks, n.blk_size), (256, 4096));

    let names: Vec<String> = d.bdevs().await.into_iter().map(|b| b.name).collect();
    assert_eq!(names, ["a", "n"]);
    assert_eq!(d.bdev("n").await.unwrap(), n);
    assert!(d.bdev("x").await.is_none(), "an unknown name is an empty list");

    // One name, one device; the same URI again as well as another kind.
    assert_eq!(d.create("malloc:///a?size_mb=4").await, Err(Code::Internal));
    assert_eq!(d.create("null:///a?size_mb=4").await, Err(Code::Internal));

    assert_eq!(
        destroy(&d, "malloc:///a?size_mb=4&uuid=00000000-0000-0000-0000-000000000001").await,
        Err(Code::InvalidArgument)
    );
    assert_eq!(destroy(&d, &a.uri).await, Ok(()));
    assert_eq!(destroy(&d, &a.uri).await, Err(Code::NotFound));
    assert_eq!(d.bdevs().await.len(), 1);
    d.stop().await;
}

#[tokio::test]
async fn bad_uris_have_their_codes() {
    let d = Running::start(setup()).await;
    for (uri, code) in [
        ("", Code::InvalidArgument),
        ("no-scheme", Code::InvalidArgument),
        ("ftp:///x", Code::InvalidArgument),
        ("malloc:///a", Code::InvalidArgument),
        ("malloc:///a?size_mb=1&colour=red", Code::InvalidArgument),
        ("malloc:///a?size_mb=many", Code::InvalidArgument),
        ("malloc:///a?size_mb=1&blk_size=777", Code::InvalidArgument),
        ("malloc:///a?size_mb=1&uuid=x", Code::InvalidArgument),
        ("aio:///nonexistent/file", Code::NotFound),
        ("bdev:///nobody", Code::NotFound),
        ("nvmf://127.0.0.1:1/nqn.2019-05.io.openebs:x", Code::InvalidArgument),
    ] {
        assert_eq!(d.create(uri).await.unwrap_err(), code, "{uri}");
    }
    assert!(d.bdevs().await.is_empty());
    // The daemon is none the worse for it.
    d.create("malloc:///a?size_mb=1").await.unwrap();
    d.stop().await;
}

#[tokio::test]
async fn creating_again_may_mean_resize() {
    let d = Running::start(setup()).await;
    let a = d.create("malloc:///a?size_mb=1").await.unwrap();
    let grown = d.create("malloc:///a?size_mb=2&resize").await.unwrap();
    assert_eq!((grown.num_blocks, grown.uuid), (2 * a.num_blocks, a.uuid.clone()));
    let alias = d.create(&format!("bdev:///a?uuid={}", a.uuid)).await.unwrap();
    assert_eq!(alias.name, "a");
    let wrong = "bdev:///a?uuid=00000000-0000-0000-0000-000000000001";
    assert_eq!(d.create(wrong).await.unwrap_err(), Code::InvalidArgument);
    d.stop().await;
}

#[tokio::test]
async fn sharing() {
    let d = Running::start(setup()).await;
    d.create("malloc:///a?size_mb=4").await.unwrap();
    assert_eq!(share(&d, "x", ShareProtocol::Nvmf, &[]).await, Err(Code::NotFound));
    assert_eq!(share(&d, "a", ShareProtocol::Iscsi, &[]).await, Err(Code::InvalidArgument));
    assert_eq!(share(&d, "a", ShareProtocol::None, &[]).await, Err(Code::InvalidArgument));
    let uri = share(&d, "a", ShareProtocol::Nvmf, &[]).await.unwrap();
    let nvmf = d.daemon.engine().node().nvmf;
    assert_eq!(uri, format!("nvmf+tcp://{nvmf}/nqn.2019-05.io.openebs:a"));
    let bdev = d.bdev("a").await.unwrap();
    assert_eq!(
        (bdev.claimed, bdev.claimed_by.as_str(), bdev.share_uri),
        (true, "NVMe-oF Target", uri.clone())
    );
    assert_eq!(share(&d, "a", ShareProtocol::Nvmf, &[]).await, Err(Code::Internal), "shared already");
    assert_eq!(destroy(&d, "malloc:///a?size_mb=4").await, Err(Code::Internal), "in use");

    // A host finds the same disk there: its size, its identity, its bytes.
    let host = Host::new();
    let disk = host.connect(&uri).await.unwrap();
    assert_eq!(disk.size().0, 8192);
    assert_eq!(disk.uuid().to_string(), bdev.uuid);
    let outcome = host.load(&disk, &Job { queues: 2, ..job(Pattern::RandRw, 1) }).await;
    assert!(outcome.is_clean() && outcome.verified.blocks > 0, "{:?}", outcome.verified);
    disk.remove();
    drop(disk);

    assert_eq!(unshare(&d, "a").await, Ok(()));
    assert_eq!(unshare(&d, "a").await, Ok(()), "once more is no error");
    assert_eq!(unshare(&d, "x").await, Ok(()));
    assert_eq!(d.bdev("a").await.unwrap().share_uri, "bdev:///a");
    assert!(host.connect(&uri).await.is_err(), "nobody is there any more");
    assert_eq!(destroy(&d, "malloc:///a?size_mb=4").await, Ok(()));
    d.stop().await;
}

#[tokio::test]
async fn shares_for_some_hosts_only() {
    let d = Running::start(setup()).await;
    d.create("malloc:///a?size_mb=1").await.unwrap();
    let friend = "nqn.2014-08.org.example:friend";
    let uri = share(&d, "a", ShareProtocol::Nvmf, &[friend]).await.unwrap();
    let host = Host::new();
    let error = host.connect(&format!("{uri}?hostnqn=nqn.2014-08.org.example:stranger")).await.err().unwrap();
    assert!(error.contains("refused"), "{error}");
    host.connect(&format!("{uri}?hostnqn={friend}")).await.unwrap().remove();
    d.stop().await;
}

#[tokio::test]
async fn another_daemons_disk_is_a_device_with_a_controller() {
    let (near, far) = (Running::start(setup()).await, Running::start(setup()).await);
    far.create("malloc:///a?size_mb=4").await.unwrap();
    let uri = share(&far, "a", ShareProtocol::Nvmf, &[]).await.unwrap();
    let bdev = near.create(&uri).await.unwrap();
    let addr = far.daemon.engine().node().nvmf;
    assert_eq!(bdev.name, format!("{addr}/nqn.2019-05.io.openebs:an1"));
    assert_eq!(near.create(&uri).await, Err(Code::Internal), "exists");

    let list = near.client.host().list_nvme_controllers(()).await.unwrap().into_inner().controllers;
    assert_eq!((list.len(), list[0].size, list[0].blk_size, list[0].state), (1, 4 << 20, 512, 2));
    let stats = |name: String| async {
        near.client.host().stat_nvme_controller(StatNvmeControllerRequest { name }).await
    };
    assert_eq!(stats("nobody".into()).await.unwrap_err().code(), Code::Internal);
    assert_eq!(stats(list[0].name.clone()).await.unwrap().into_inner().stats.unwrap().num_write_ops, 0);

    // Exported once more, and written through both daemons.
    let relay = share(&near, &bdev.name, ShareProtocol::Nvmf, &[]).await;
    assert!(relay.is_ok() || relay == Err(Code::InvalidArgument), "{relay:?}");
    drop(bdev);
    near.stop().await;
    far.stop().await;
}

#[tokio::test]
async fn the_host_tells_of_itself() {
    let d = Running::start(setup()).await;
    let info = d.client.host().get_mayastor_info(()).await.unwrap().into_inner();
    let registration = info.registration_info.unwrap();
    assert_eq!(registration.id, "test");
    assert_eq!(registration.api_version, [1]);
    assert_eq!(registration.grpc_endpoint, d.daemon.engine().node().grpc.to_string());
    assert!(info.version.starts_with("keelson"));
    let usage = d.client.host().get_mayastor_resource_usage(()).await.unwrap().into_inner().usage.unwrap();
    assert!(usage.soft_faults > 0);
    let all = d.client.host().list_block_devices(ListBlockDevicesRequest { all: true }).await.unwrap();
    let free = d.client.host().list_block_devices(ListBlockDevicesRequest { all: false }).await.unwrap();
    let (all, free) = (all.into_inner().devices, free.into_inner().devices);
    assert!(free.iter().all(|f| f.available && all.contains(f)));
    d.stop().await;
}
