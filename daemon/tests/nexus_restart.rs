//! Nexuses over restarts of their daemon and of their children's hosts: the record decides who is read.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::nexuses::NexusCalls;
use common::pools::{MIB, PoolCalls, uuid};
use common::{Host, Running, job, setup};
use keelson::perf::Pattern;
use keelson::serve::Setup;
use tonic::Code;

const ONLINE: i32 = 1;
const DEGRADED: i32 = 2;
const SIZE: u64 = 24 * MIB;

fn file(dir: &Path, n: u128) -> String {
    let path = dir.join(format!("disk{n}"));
    if !path.exists() {
        std::fs::File::create(&path).unwrap().set_len(32 * MIB).unwrap();
    }
    format!("aio://{}?uuid={}", path.display(), uuid(n))
}

fn record(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("nexuses").join(format!("{}.json", uuid(9)))).unwrap()
}

fn member(n: u128, healthy: bool) -> String {
    format!(r#"{{"uuid":"{}","healthy":{healthy}}}"#, uuid(n))
}

async fn fill(d: &Running, seed: u64) {
    let host = Host::new();
    let uri = d.publish(&uuid(9), &[]).await.unwrap().device_uri;
    let disk = host.connect(&uri).await.unwrap();
    let done = host.load(&disk, &job(Pattern::RandRw, seed)).await;
    assert_eq!((done.errors, done.verified.damaged), (0, 0), "{:?}", done.verified.findings);
    assert!(done.write.bytes > 0);
}

#[tokio::test]
async fn a_nexus_is_there_again_after_a_clean_end() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (file(dir.path(), 1), file(dir.path(), 2));
    let d = Running::with_state(state.path()).await;
    let mut request = common::nexuses::wish(&uuid(9), SIZE, &[&a, &b]);
    (request.min_cntl_id, request.max_cntl_id) = (5, 6);
    d.create_nexus(request).await.unwrap();
    fill(&d, 1).await;
    d.publish(&uuid(9), &["nqn.2014-08.org.example:h"]).await.unwrap();
    assert!(record(state.path()).contains("\"clean_shutdown\":false"), "{}", record(state.path()));
    d.stop().await;
    let clean = record(state.path());
    assert!(clean.contains("\"clean_shutdown\":true") && clean.contains(&member(2, true)), "{clean}");

    let d = Running::with_state(state.path()).await;
    assert!(d.daemon.failures().is_empty(), "{:?}", d.daemon.failures());
    let n = d.nexus(&uuid(9)).await.unwrap();
    let children: Vec<_> = n.children.iter().map(|c| (c.uri.as_str(), c.state)).collect();
    assert_eq!((n.state, children), (ONLINE, vec![(a.as_str(), ONLINE), (b.as_str(), ONLINE)]));
    assert!(n.device_uri.contains(&uuid(9)) && n.allowed_hosts == ["nqn.2014-08.org.example:h"], "{n:?}");
    assert!(record(state.path()).contains("\"clean_shutdown\":false"), "it is open");
    d.destroy_nexus(&uuid(9)).await.unwrap();
    d.stop().await;
    let d = Running::with_state(state.path()).await;
    assert!(d.nexuses().await.is_empty());
    d.stop().await;
}

/// A child that missed writes is not read after the restart, whatever the request says; it is rebuilt.
#[tokio::test]
async fn a_stale_child_is_not_read_after_a_restart() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (file(dir.path(), 1), file(dir.path(), 2));
    let d = Running::with_state(state.path()).await;
    d.mirror(&uuid(9), SIZE, &[&a, &b]).await.unwrap();
    d.child_op(&uuid(9), &a, 0).await.unwrap();
    assert!(record(state.path()).contains(&member(1, false)), "{}", record(state.path()));
    fill(&d, 2).await;
    d.unpublish(&uuid(9)).await.unwrap();
    d.destroy_nexus(&uuid(9)).await.unwrap();
    assert!(data(dir.path(), 1) != data(dir.path(), 2), "the first has missed something");

    // The stale one alone, or first: only the record knows.
    let status = d.create_nexus(common::nexuses::wish(&uuid(9), SIZE, &[&a])).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains(&uuid(2)), "{}", status.message());
    let n = d.mirror(&uuid(9), SIZE, &[&a, &b]).await.unwrap();
    // What the first lacks is little: it may have it by now.
    assert_eq!(n.children[1].state, ONLINE);
    d.until_child(&uuid(9), &a, ONLINE).await;
    assert!(record(state.path()).contains(&member(1, true)), "{}", record(state.path()));
    d.destroy_nexus(&uuid(9)).await.unwrap();
    assert!(data(dir.path(), 1) == data(dir.path(), 2));
    d.stop().await;
}

/// Where a nexus keeps its data.
fn data(dir: &Path, n: u128) -> Vec<u8> {
    let bytes = std::fs::read(dir.join(format!("disk{n}"))).unwrap();
    bytes[5 << 20..(5 << 20) + SIZE as usize - 512].to_vec()
}

/// Where a nexus says on a child what is being written.
fn account(dir: &Path, n: u128) -> Vec<u8> {
    let bytes = std::fs::read(dir.join(format!("disk{n}"))).unwrap();
    bytes[4 << 20..5 << 20].to_vec()
}

/// After a crash children may differ in writes that were never acknowledged: one is read, and the others are made like it.
#[tokio::test]
async fn after_a_crash_one_child_is_the_source() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (file(dir.path(), 1), file(dir.path(), 2));
    let d = Running::with_state(state.path()).await;
    d.mirror(&uuid(9), SIZE, &[&a, &b]).await.unwrap();
    fill(&d, 3).await;
    let before = record(state.path());
    let accounts = [account(dir.path(), 1), account(dir.path(), 2)];
    d.stop().await;
    // What a crash in the middle of a write leaves: the record of an open nexus, the account of what is being written, and
    // one block on one child only.
    std::fs::write(state.path().join("nexuses").join(format!("{}.json", uuid(9))), before).unwrap();
    // The block is one that was written: of those before, the account has nothing.
    let written = data(dir.path(), 2).iter().position(|byte| *byte != 0).unwrap() + (5 << 20);
    for (n, account) in (1..).zip(accounts) {
        let path = dir.path().join(format!("disk{n}"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4 << 20..5 << 20].copy_from_slice(&account);
        bytes[written] ^= if n == 2 { 0xff } else { 0 };
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(data(dir.path(), 1) != data(dir.path(), 2));

    let d = Running::with_state(state.path()).await;
    let n = d.nexus(&uuid(9)).await.unwrap();
    assert_eq!(n.children[0].state, ONLINE, "{n:?}");
    d.until_child(&uuid(9), &b, ONLINE).await;
    d.destroy_nexus(&uuid(9)).await.unwrap();
    assert!(data(dir.path(), 1) == data(dir.path(), 2));
    d.stop().await;
}

/// A child whose host is down at the start is tried again, and rebuilt when it is there.
#[tokio::test]
async fn a_child_that_is_not_there_at_the_start_comes_later() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let remote = Running::start(setup()).await;
    remote.create_pool("p", &["malloc:///m?size_mb=128"]).await.unwrap();
    remote.create_replica("r", &uuid(2), "p", 32 * MIB, true).await.unwrap();
    let b = remote.share(&uuid(2), 1, &[]).await.unwrap().uri;
    let a = file(dir.path(), 1);
    let d = Running::with_state(state.path()).await;
    d.mirror(&uuid(9), SIZE, &[&a, &b]).await.unwrap();
    fill(&d, 4).await;
    d.child_op(&uuid(9), &b, 0).await.unwrap();
    d.stop().await;
    // Not there, as far as the nexus can tell.
    let nvmf = remote.daemon.engine().node().nvmf;
    remote.unshare(&uuid(2)).await.unwrap();

    let d = Running::with_state(state.path()).await;
    let n = d.nexus(&uuid(9)).await.unwrap();
    let states: Vec<_> = n.children.iter().map(|c| (c.state, c.state_reason)).collect();
    assert_eq!((n.state, states), (DEGRADED, vec![(ONLINE, 0), (3, 3)]), "cannot be opened");
    fill(&d, 5).await;
    let again = remote.share(&uuid(2), 1, &[]).await.unwrap().uri;
    assert_eq!((again.as_str(), nvmf), (b.as_str(), remote.daemon.engine().node().nvmf));
    d.until_child(&uuid(9), &b, ONLINE).await;
    assert_eq!(d.nexus(&uuid(9)).await.unwrap().state, ONLINE);
    d.destroy_nexus(&uuid(9)).await.unwrap();
    d.stop().await;
    remote.stop().await;
}

/// Without any child that has everything the nexus waits, is listed, and can be given up.
#[tokio::test]
async fn a_nexus_waits_for_its_children() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (file(dir.path(), 1), file(dir.path(), 2));
    let d = Running::with_state(state.path()).await;
    d.mirror(&uuid(9), SIZE, &[&a, &b]).await.unwrap();
    fill(&d, 6).await;
    d.stop().await;
    let away = dir.path().join("away");
    std::fs::rename(dir.path().join("disk1"), &away).unwrap();
    std::fs::rename(dir.path().join("disk2"), dir.path().join("away2")).unwrap();
    let d = Running::with_state(state.path()).await;
    assert!(d.daemon.failures().iter().any(|f| f.contains("disk1")), "{:?}", d.daemon.failures());
    let n = d.nexus(&uuid(9)).await.unwrap();
    assert_eq!((n.state, n.children.len(), n.device_uri.as_str()), (3, 2, ""));
    assert_eq!(d.child_op(&uuid(9), &a, 1).await, Err(Code::FailedPrecondition));
    assert_eq!(d.mirror(&uuid(9), SIZE, &[&a]).await, Err(Code::AlreadyExists));
    // They come back one after the other: it waits for both, for a while.
    std::fs::rename(&away, dir.path().join("disk1")).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(d.nexus(&uuid(9)).await.unwrap().state, 3);
    std::fs::rename(dir.path().join("away2"), dir.path().join("disk2")).unwrap();
    d.until_child(&uuid(9), &b, ONLINE).await;
    let n = d.nexus(&uuid(9)).await.unwrap();
    assert!(n.state == ONLINE && !n.device_uri.is_empty(), "{n:?}");
    fill(&d, 7).await;
    d.destroy_nexus(&uuid(9)).await.unwrap();
    d.stop().await;
}

#[tokio::test]
async fn recorded_children_need_an_identity() {
    let state = tempfile::tempdir().unwrap();
    let d = Running::with_state(state.path()).await;
    let status =
        d.create_nexus(common::nexuses::wish(&uuid(9), SIZE, &["malloc:///m?size_mb=32"])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("malloc:///m?size_mb=32&uuid="), "{}", status.message());
    assert!(d.bdevs().await.is_empty());
    d.stop().await;
}

/// What cannot be recorded is not acknowledged: the nexus ends instead (hazard H6).
#[tokio::test]
async fn without_its_record_the_nexus_ends() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (file(dir.path(), 1), file(dir.path(), 2));
    let d = Running::start(Setup { state: Some(state.path().to_owned()), ..setup() }).await;
    d.mirror(&uuid(9), SIZE, &[&a, &b]).await.unwrap();
    std::fs::remove_dir_all(state.path().join("nexuses")).unwrap();
    assert_eq!(d.child_op(&uuid(9), &a, 0).await, Err(Code::Internal));
    assert_eq!(d.nexus(&uuid(9)).await.unwrap().state, 5, "shut down");
    assert_eq!(d.mirror(&uuid(8), SIZE, &[&file(dir.path(), 3)]).await, Err(Code::Internal));
    d.destroy_nexus(&uuid(9)).await.unwrap();
    d.stop().await;
}
