//! Members of nexuses in a real etcd: under the key and as the text that control planes expect, and what happens when etcd
//! does not answer. `etcd-server` of Debian; without it these tests are skipped, and say so.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::etcd::Etcd;
use common::nexuses::{NexusCalls, wish};
use common::pools::{MIB, uuid};
use common::{Host, Running, job, setup};
use keelson::nexuses::records::etcd::EtcdOptions;
use keelson::perf::Pattern;
use keelson::serve::Setup;
use nexus::{MembershipStore, Record};
use rpc::mayastor::v1::CreateNexusRequest;
use tonic::Code;

const ONLINE: i32 = 1;
const SHUTDOWN: i32 = 5;
const SIZE: u64 = 24 * MIB;
const KEY: &str = "/openebs.io/mayastor/apis/v0/clusters/c/namespaces/n/volume/v/nexus/x/info";

fn ram(n: u128) -> String {
    format!("malloc:///ram{n}?size_mb=32&uuid={}", uuid(n))
}

fn request(key: &str) -> CreateNexusRequest {
    let (a, b) = (ram(1), ram(2));
    CreateNexusRequest { nexus_info_key: key.into(), ..wish(&uuid(9), SIZE, &[&a, &b]) }
}

async fn daemon(etcd: EtcdOptions) -> Running {
    Running::start(Setup { etcd: Some(etcd), ..setup() }).await
}

/// As the interface's description has it.
fn text(clean: bool, healthy: [bool; 2]) -> String {
    let child = |n: u128, h: bool| format!(r#"{{"uuid":"{}","healthy":{h}}}"#, uuid(n));
    let children = format!("{},{}", child(1, healthy[0]), child(2, healthy[1]));
    format!(r#"{{"clean_shutdown":{clean},"children":[{children}]}}"#)
}

#[tokio::test]
async fn records_have_mayastors_key_and_text() {
    let Some(etcd) = Etcd::start("nexus_etcd::records_have_mayastors_key_and_text").await else { return };
    let d = daemon(etcd.options()).await;
    d.create_nexus(request(KEY)).await.unwrap();
    assert_eq!(etcd.get(KEY).await, Some(text(false, [true, true])));
    d.child_op(&uuid(9), &ram(2), 0).await.unwrap();
    assert_eq!(etcd.get(KEY).await, Some(text(false, [true, false])));
    d.child_op(&uuid(9), &ram(2), 1).await.unwrap();
    d.until_child(&uuid(9), &ram(2), ONLINE).await;
    assert_eq!(etcd.get(KEY).await, Some(text(false, [true, true])));
    d.remove_child(&uuid(9), &ram(2)).await.unwrap();
    assert!(!etcd.get(KEY).await.unwrap().contains(&uuid(2)));
    d.add_child(&uuid(9), &ram(2), true).await.unwrap();
    assert_eq!(etcd.get(KEY).await, Some(text(false, [true, false])));
    d.start_rebuild(&uuid(9), &ram(2)).await.unwrap();
    d.until_child(&uuid(9), &ram(2), ONLINE).await;
    d.shut_down_nexus(&uuid(9)).await.unwrap();
    assert_eq!(etcd.get(KEY).await, Some(text(true, [true, true])));
    d.destroy_nexus(&uuid(9)).await.unwrap();
    assert_eq!(etcd.get(KEY).await, Some(text(true, [true, true])), "control planes delete it");

    // Without a key it is the uuid; a URI without uuid has no name in it.
    d.create_nexus(request("")).await.unwrap();
    assert_eq!(etcd.get(&uuid(9)).await, Some(text(false, [true, true])));
    let bare = wish(&uuid(8), SIZE, &["malloc:///m?size_mb=32"]);
    assert_eq!(d.create_nexus(bare).await.unwrap_err().code(), Code::InvalidArgument);
    // The end of the daemon is the end of its nexuses.
    d.stop().await;
    assert_eq!(etcd.get(&uuid(9)).await, Some(text(true, [true, true])));
}

/// The record decides, whoever wrote it.
#[tokio::test]
async fn a_stale_child_is_not_read() {
    let Some(etcd) = Etcd::start("nexus_etcd::a_stale_child_is_not_read").await else { return };
    etcd.put(KEY, &text(true, [false, true])).await;
    let d = daemon(etcd.options()).await;
    let alone = CreateNexusRequest { children: vec![ram(1)], ..request(KEY) };
    assert_eq!(d.create_nexus(alone).await.unwrap_err().code(), Code::FailedPrecondition);
    let n = d.create_nexus(request(KEY)).await.unwrap();
    assert_eq!((n.children[0].state, n.children[1].state), (2, ONLINE));
    d.until_child(&uuid(9), &ram(1), ONLINE).await;
    assert_eq!(etcd.get(KEY).await.unwrap().matches("true").count(), 2);
    // And what nobody can read is not taken for nothing.
    etcd.put("broken", "{\"clean").await;
    d.destroy_nexus(&uuid(9)).await.unwrap();
    assert_eq!(d.create_nexus(request("broken")).await.unwrap_err().code(), Code::Internal);
    d.stop().await;
}

/// Two nexuses of one volume: who finds the record changed by somebody else ends, and acknowledges nothing (hazard H6).
#[tokio::test]
async fn h06_a_nexus_whose_record_was_changed_ends() {
    let Some(etcd) = Etcd::start("nexus_etcd::h06_a_nexus_whose_record_was_changed_ends").await else {
        return;
    };
    let d = daemon(etcd.options()).await;
    d.create_nexus(request(KEY)).await.unwrap();
    etcd.put(KEY, &text(false, [false, true])).await;
    assert_eq!(d.child_op(&uuid(9), &ram(2), 0).await, Err(Code::Internal));
    assert_eq!(d.nexus(&uuid(9)).await.unwrap().state, SHUTDOWN);
    assert_eq!(etcd.get(KEY).await, Some(text(false, [false, true])), "the other one's stands");
    d.stop().await;
}

#[tokio::test]
async fn etcd_down_at_create_retire_and_destroy() {
    let Some(mut etcd) = Etcd::start("nexus_etcd::etcd_down_at_create_retire_and_destroy").await else {
        return;
    };
    let d = daemon(etcd.options()).await;
    etcd.down();
    let status = d.create_nexus(request(KEY)).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("etcd at 127.0.0.1"), "{}", status.message());
    assert!(d.nexuses().await.is_empty() && d.bdevs().await.is_empty(), "nothing is left");
    etcd.up().await;
    d.create_nexus(request(KEY)).await.unwrap();
    let host = Host::new();
    let disk = host.connect(&d.publish(&uuid(9), &[]).await.unwrap().device_uri).await.unwrap();

    // Retired while etcd is down: hosts wait, and go on when it is back.
    etcd.down();
    let mut client = d.client.nexus();
    let offline = rpc::mayastor::v1::ChildOperationRequest { nexus_uuid: uuid(9), uri: ram(2), action: 0 };
    let retiring = tokio::spawn(async move { client.child_operation(offline).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let load = tokio::spawn(async move {
        let done = host.load(&disk, &job(Pattern::RandRw, 1)).await;
        (host, disk, done)
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!retiring.is_finished() && !load.is_finished(), "acknowledged before it was recorded");
    etcd.up().await;
    retiring.await.unwrap().unwrap();
    let (host, disk, done) = load.await.unwrap();
    assert!(done.errors == 0 && done.verified.damaged == 0 && done.write.bytes > 0);
    assert_eq!(etcd.get(KEY).await, Some(text(false, [true, false])));
    drop((disk, host));

    // What cannot be recorded at the end is not waited for.
    etcd.down();
    let begin = Instant::now();
    d.destroy_nexus(&uuid(9)).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    d.stop().await;
}

/// Beyond the retries the nexus ends, and tells its hosts.
#[tokio::test]
async fn without_etcd_for_too_long_the_nexus_ends() {
    let Some(mut etcd) = Etcd::start("nexus_etcd::without_etcd_for_too_long_the_nexus_ends").await else {
        return;
    };
    let d = daemon(EtcdOptions { retries: 1, ..etcd.options() }).await;
    d.create_nexus(request(KEY)).await.unwrap();
    let host = Host::new();
    let disk = host.connect(&d.publish(&uuid(9), &[]).await.unwrap().device_uri).await.unwrap();
    etcd.down();
    assert_eq!(d.fault_child(&uuid(9), &ram(2)).await, Err(Code::Internal));
    assert_eq!(d.nexus(&uuid(9)).await.unwrap().state, SHUTDOWN);
    let done = host.load(&disk, &job(Pattern::RandRw, 1)).await;
    assert!(done.errors > 0 && done.write.bytes == 0, "nothing is acknowledged");
    etcd.up().await;
    assert_eq!(etcd.get(KEY).await, Some(text(false, [true, true])));
    d.stop().await;
}

/// An attempt whose answer is lost may have been done: it is found, and is no other's.
#[tokio::test]
async fn a_record_has_one_writer() {
    let Some(etcd) = Etcd::start("nexus_etcd::a_record_has_one_writer").await else { return };
    let record = |healthy| {
        let mut record = Record::default();
        record.add(uuid::Uuid::from_u128(1), healthy);
        record
    };
    let (a, b) = (etcd.records().of("k"), etcd.records().of("k"));
    assert_eq!((a.load().await.unwrap(), b.load().await.unwrap()), (None, None));
    a.save(&record(true)).await.unwrap();
    assert!(b.save(&record(false)).await.unwrap_err().to_string().contains("changed"));
    assert!(b.save_notes("mine").await.is_err(), "notes neither");
    a.save_notes("a mark").await.unwrap();
    a.save(&record(false)).await.unwrap();
    assert_eq!(b.load().await.unwrap(), Some(record(false)));
    assert_eq!(b.load_notes().await.unwrap().as_deref(), Some("a mark"));
    b.save(&record(true)).await.unwrap();
    assert!(a.save(&record(true)).await.is_err());
}
