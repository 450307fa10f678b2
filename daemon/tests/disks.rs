//! Disks of a pool over loopback: `keelson.v1.PoolRpc` AddDisk, RemoveDisk, ListDisks, and ImportPool with disks missing.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::pools::{MIB, PoolCalls, uuid};
use common::{Host, Running, job};
use keelson::perf::{Job, Pattern};
use rpc::keelson::v1 as own;
use tonic::Code;

fn disk_file(dir: &Path, name: &str, mib: u64) -> String {
    let path = dir.join(name);
    std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn add(d: &Running, disk: &str) -> Result<Vec<own::Disk>, Code> {
    let request = own::AddDiskRequest { pool: "tpool".into(), disk: disk.into(), force: false };
    d.client.own_pool().add_disk(request).await.map(|a| a.into_inner().disks).map_err(|s| s.code())
}

async fn remove(d: &Running, disk: &str) -> Result<Vec<own::Disk>, Code> {
    let request = own::RemoveDiskRequest { pool: "tpool".into(), disk: disk.into() };
    d.client.own_pool().remove_disk(request).await.map(|a| a.into_inner().disks).map_err(|s| s.code())
}

async fn disks(d: &Running) -> Vec<own::Disk> {
    let request = own::ListDisksRequest { pool: "tpool".into() };
    d.client.own_pool().list_disks(request).await.unwrap().into_inner().disks
}

/// Waits until the pool has these disks.
async fn until(d: &Running, names: &[&str]) {
    for _ in 0..600 {
        let found = disks(d).await;
        assert!(found.iter().all(|disk| disk.error.is_empty()), "{found:?}");
        if found.iter().map(|disk| disk.name.as_str()).eq(names.iter().copied()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not removed: {:?}", disks(d).await);
}

#[tokio::test]
async fn disks_come_and_go_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, three] = ["one", "two", "three"].map(|name| disk_file(dir.path(), name, 128));
    let state = dir.path().join("state");
    let d = Running::with_state(&state).await;
    let before = d.create_pool("tpool", &[&one]).await.unwrap();
    d.create_replica("r", &uuid(1), "tpool", 32 * MIB, true).await.unwrap();
    let shared = d.share(&uuid(1), 1, &[]).await.unwrap();
    let host = Host::new();
    let disk = host.connect(&shared.uri).await.unwrap();
    let load = Job { time: Duration::from_millis(2500), ..job(Pattern::RandRw, 1) };
    let changes = async {
        add(&d, &two).await.unwrap();
        assert_eq!(add(&d, &two).await, Err(Code::AlreadyExists));
        add(&d, &three).await.unwrap();
        let pool = &d.pools().await[0];
        assert!(pool.capacity > 2 * before.capacity && pool.disks.len() == 3, "{pool:?}");
        assert_eq!(remove(&d, "/nowhere").await, Err(Code::NotFound));
        let leaving = remove(&d, &one).await.unwrap();
        assert!(leaving.iter().all(|disk| disk.name != one || disk.state == 2), "{leaving:?}");
        until(&d, &[&two, &three]).await;
    };
    let (outcome, ()) = tokio::join!(host.load(&disk, &load), changes);
    assert!(outcome.is_clean() && outcome.verified.blocks > 0, "{:?}", outcome.verified);
    disk.remove();
    assert!(d.bdev(&one).await.is_none(), "a disk that was opened for the pool is closed with it");
    assert_eq!(remove(&d, &three).await.map(|_| ()), Ok(()));
    until(&d, &[&two]).await;
    assert_eq!(remove(&d, &two).await, Err(Code::FailedPrecondition), "the only one");
    add(&d, &one).await.unwrap();
    d.stop().await;

    // What was added and removed is so after a restart.
    let d = Running::with_state(&state).await;
    assert_eq!(d.daemon.failures(), [""; 0]);
    let names: Vec<String> = disks(&d).await.into_iter().map(|disk| disk.name).collect();
    assert_eq!(names, [two.clone(), one.clone()]);
    assert!(d.replica("r").await.is_some());

    // A disk is missing: named, and what is on the other one can be read when that is asked for.
    d.export_pool("tpool").await.unwrap();
    assert_eq!(d.import_pool("tpool", &[&two]).await, Err(Code::InvalidArgument));
    let request = |degraded| own::ImportPoolRequest {
        name: "tpool".into(),
        uuid: None,
        disks: vec![two.clone()],
        degraded,
    };
    let refused = d.client.own_pool().import_pool(request(false)).await.unwrap_err();
    assert!(refused.message().contains(&format!("last seen as {one}")), "{}", refused.message());
    let pool = d.client.own_pool().import_pool(request(true)).await.unwrap().into_inner();
    assert_eq!(pool.state, 2, "degraded");
    let states: Vec<i32> = disks(&d).await.iter().map(|disk| disk.state).collect();
    assert_eq!(states, [1, 3]);
    assert_eq!(
        d.create_replica("s", &uuid(2), "tpool", MIB, true).await.map(|_| ()),
        Err(Code::FailedPrecondition)
    );
    assert_eq!(d.destroy_pool("tpool", None).await, Err(Code::FailedPrecondition));
    assert!(d.replica("r").await.is_some());
    d.export_pool("tpool").await.unwrap();
    d.import_pool("tpool", &[&two, &one]).await.unwrap();
    d.stop().await;
}

#[tokio::test]
async fn a_disk_that_had_not_joined_is_left_out_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| disk_file(dir.path(), name, 128));
    let state = dir.path().join("state");
    let d = Running::with_state(&state).await;
    d.create_pool("tpool", &[&one]).await.unwrap();
    d.stop().await;
    // As it is recorded right before the disk joins.
    let file = state.join("state.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let entry = text.find(&format!("\"aio://{one}")).unwrap();
    let with = format!("{}\"aio://{two}\",\n{}", &text[..entry], &text[entry..]);
    std::fs::write(&file, with).unwrap();
    let d = Running::with_state(&state).await;
    assert_eq!(d.daemon.failures(), [""; 0]);
    assert_eq!(disks(&d).await.len(), 1);
    add(&d, &two).await.unwrap();
    d.stop().await;
}
