//! The daemon as a whole: what survives a restart, what a configuration makes, ports in use, health, reflection,
//! metrics.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Host, Running, any_port, declared, job, setup};
use keelson::perf::{Job, Pattern, Watch, run};
use keelson::serve::{Daemon, Setup};
use rpc::keelson::v1::{CreateSubsystemRequest, ListSubsystemsRequest, NamespaceSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

#[tokio::test]
async fn what_was_created_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (state, disk) = (dir.path().join("state"), dir.path().join("disk"));
    std::fs::File::create(&disk).unwrap().set_len(4 << 20).unwrap();
    let disk_name = disk.to_str().unwrap().to_owned();
    let host = Host::new();
    let friend = "nqn.2014-08.org.example:friend";

    let d = Running::with_state(&state).await;
    d.create(&format!("aio://{disk_name}?blk_size=4096")).await.unwrap();
    d.create("malloc:///gone?size_mb=1").await.unwrap();
    let gone = d.bdev("gone").await.unwrap();
    d.client.bdev().destroy(rpc::mayastor::v1::DestroyBdevRequest { uri: gone.uri }).await.unwrap();
    let request = CreateSubsystemRequest {
        nqn: "nqn.2019-05.io.openebs:safe".into(),
        namespaces: vec![NamespaceSpec { device: disk_name.clone(), ..Default::default() }],
        hosts: vec![friend.into()],
        ..Default::default()
    };
    let before = d.client.subsystem().create_subsystem(request).await.unwrap().into_inner();
    let uri = format!("{}?hostnqn={friend}", before.uris[0]);
    let device = host.connect(&uri).await.unwrap();
    let written = host.load(&device, &job(Pattern::Write, 1)).await;
    assert!(written.is_clean() && written.write.bytes > 0);
    device.remove();
    drop(device);
    let bdevs_before = d.bdevs().await;
    d.stop().await;

    let d = Running::with_state(&state).await;
    assert!(d.daemon.failures().is_empty(), "{:?}", d.daemon.failures());
    let mut bdevs = d.bdevs().await;
    assert_eq!(bdevs.len(), 1);
    assert_eq!(bdevs.pop().unwrap().uuid, bdevs_before[0].uuid);
    let after = d.client.subsystem().list_subsystems(ListSubsystemsRequest::default()).await.unwrap();
    let after = after.into_inner().subsystems.pop().unwrap();
    // Only the port is another one.
    assert_eq!((&after.nqn, &after.serial, &after.hosts), (&before.nqn, &before.serial, &before.hosts));
    assert_eq!(after.namespaces, before.namespaces);
    // And the data is whole: every block bears a sound stamp or was never written.
    let device = host.connect(&format!("{}?hostnqn={friend}", after.uris[0])).await.unwrap();
    let read = host.load(&device, &job(Pattern::Read, 2)).await;
    assert!(read.is_clean() && read.verified.blocks > read.verified.unstamped, "{:?}", read.verified);
    device.remove();
    d.stop().await;
}

#[tokio::test]
async fn a_missing_disk_is_told_kept_and_exported_again_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (state, disk) = (dir.path().join("state"), dir.path().join("disk"));
    let make = || std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    make();
    let uri = format!("aio://{}", disk.to_str().unwrap());
    let d = Running::with_state(&state).await;
    let bdev = d.create(&uri).await.unwrap();
    let share =
        rpc::mayastor::v1::BdevShareRequest { name: bdev.name.clone(), protocol: 1, allowed_hosts: vec![] };
    d.client.bdev().share(share).await.unwrap();
    d.stop().await;

    std::fs::remove_file(&disk).unwrap();
    for _ in 0..2 {
        let d = Running::with_state(&state).await;
        assert!(d.bdev(&bdev.name).await.is_none());
        let failures = d.daemon.failures().join("\n");
        assert!(failures.contains(disk.to_str().unwrap()), "{failures}");
        // Another change writes the state anew, and must not lose what could not be opened.
        let _ = d.create("malloc:///m?size_mb=1").await;
        d.stop().await;
    }
    let d = Running::with_state(&state).await;
    make();
    // The serial number of a share comes from its device, so the identity has to be the same.
    let back = d.create(&bdev.uri).await.unwrap();
    assert_eq!(back.uuid, bdev.uuid);
    assert!(back.share_uri.starts_with("nvmf+tcp://"), "{}", back.share_uri);
    Host::new().connect(&back.share_uri).await.unwrap().remove();
    d.stop().await;
}

#[tokio::test]
async fn a_configuration_is_served() {
    let config = r#"
        [hosts]
        db1 = "nqn.2014-08.org.example:db1"
        [[device]]
        uri = "malloc:///a?size_mb=1"
        share = true
        hosts = ["db1"]
        [[device]]
        uri = "malloc:///b?size_mb=1"
        [[subsystem]]
        nqn = "s"
        [[subsystem.namespace]]
        device = "b"
        nsid = 3
        [[subsystem.namespace]]
        device = "nobody"
    "#;
    let dir = tempfile::tempdir().unwrap();
    let setup = || Setup { declared: declared(config), state: Some(dir.path().to_owned()), ..setup() };
    let d = Running::start(setup()).await;
    assert_eq!(d.bdevs().await.len(), 2);
    let failures = d.daemon.failures().join("\n");
    assert!(failures.contains("nobody") && failures.contains(":s"), "{failures}");
    let list = d.client.subsystem().list_subsystems(ListSubsystemsRequest::default()).await.unwrap();
    let list = list.into_inner().subsystems;
    assert_eq!(list.len(), 2);
    assert_eq!(list[0].hosts, ["nqn.2014-08.org.example:db1"]);
    assert_eq!(list[1].namespaces.iter().map(|n| n.nsid).collect::<Vec<_>>(), [3]);
    // What comes from the file is not saved, so it does not come twice.
    d.create("malloc:///c?size_mb=1").await.unwrap();
    d.stop().await;
    let d = Running::start(setup()).await;
    assert_eq!(d.bdevs().await.len(), 3);
    assert_eq!(d.daemon.failures().len(), 1);
    d.stop().await;
}

#[tokio::test]
async fn ports_in_use_are_told() {
    let d = Running::start(setup()).await;
    let (grpc, nvmf) = (d.daemon.engine().node().grpc, d.daemon.engine().node().nvmf);
    let error = async |setup| format!("{:#}", Daemon::start(setup).await.err().unwrap());
    let text = error(Setup { grpc, ..setup() }).await;
    assert!(text.contains("gRPC") && text.contains("--grpc-port") && text.contains("in use"), "{text}");
    let text = error(Setup { nvmf, ..setup() }).await;
    assert!(text.contains("NVMe/TCP") && text.contains("--nvmf-port") && text.contains("in use"), "{text}");
    // The first one goes on.
    d.create("malloc:///a?size_mb=1").await.unwrap();
    d.stop().await;
}

#[tokio::test]
async fn it_ends_soon_with_hosts_connected_and_io_in_flight() {
    let d = Running::start(Setup {
        declared: declared("[[device]]\nuri='malloc:///a?size_mb=4'\nshare=true\n"),
        ..setup()
    });
    let d = d.await;
    let uri = d.bdev("a").await.unwrap().share_uri;
    let host = Host::new();
    let device = host.connect(&uri).await.unwrap();
    let job = Job { time: Duration::from_secs(30), verify: false, ..job(Pattern::RandWrite, 1) };
    let (core, watch) = (host.core().clone(), Watch::default());
    let load = {
        let (device, watch) = (device.clone(), watch.clone());
        tokio::spawn(async move { run::run(&[device], &[core], &job, &watch).await })
    };
    while watch.sum().0 == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begin = Instant::now();
    d.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    let outcome =
        tokio::time::timeout(Duration::from_secs(60), load).await.unwrap().unwrap().unwrap().outcome;
    assert!(outcome.errors > 0, "the host noticed");
}

#[tokio::test]
async fn several_cores_serve_one_port() {
    let d = Running::start(Setup {
        cores: vec![aio::CoreId(0), aio::CoreId(1)],
        declared: declared("[[device]]\nuri='malloc:///a?size_mb=4'\nshare=true\n"),
        ..setup()
    });
    let d = d.await;
    let uri = d.bdev("a").await.unwrap().share_uri;
    let host = Host::new();
    let device = host.connect(&uri).await.unwrap();
    let job = Job { queues: 4, ..job(Pattern::RandRw, 1) };
    let outcome = host.load(&device, &job).await;
    assert!(outcome.is_clean() && outcome.ios() > 0);
    device.remove();
    d.stop().await;
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let d = Running::start(setup()).await;
    let endpoint = format!("http://{}", d.daemon.engine().node().grpc);
    let channel = tonic::transport::Endpoint::new(endpoint).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "mayastor.v1.BdevRpc", "mayastor.v1.HostRpc", "keelson.v1.SubsystemRpc"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServiceResponse};
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let has = |name: &str| list.service.iter().any(|s: &ServiceResponse| s.name == name);
    assert!(has("mayastor.v1.BdevRpc") && has("keelson.v1.SubsystemRpc"), "{list:?}");
    d.stop().await;
}

#[tokio::test]
async fn metrics_are_text_and_bad_requests_get_their_status() {
    let declared = declared("[[device]]\nuri='malloc:///a?size_mb=1'\nshare=true\n");
    let d = Running::start(Setup { metrics: Some(any_port()), declared, ..setup() }).await;
    let addr = d.daemon.metrics().unwrap();
    let ask = async |text: &str| {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // A server that refuses early may reset the connection while we still send.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    };
    let page = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    for want in [
        "keelson_info{version=\"keelson ",
        "keelson_core_seconds_total{core=\"0\",state=\"asleep\"}",
        "keelson_device_size_bytes{device=\"a\",driver=\"malloc\"} 1048576",
        "keelson_namespace_commands_total{nqn=\"nqn.2019-05.io.openebs:a\",nsid=\"1\",device=\"a\",op=\"read\"} 0",
        "process_resident_memory_bytes ",
    ] {
        assert!(page.contains(want), "{want}\nis not in\n{page}");
    }
    assert!(ask("GET /other HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
    assert!(ask("\x16\x03\x01 \r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert!(!ask(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(100_000))).await.starts_with("HTTP/1.1 200"));
    d.stop().await;
}
