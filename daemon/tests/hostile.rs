//! Requests about pools that cannot be done: each has its code, and a sentence that names the object and the cause; and
//! nothing is left behind.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use common::pools::{MIB, PoolCalls, uuid};
use common::{Host, Running, job, setup};
use keelson::perf::Pattern;
use lvs::format::label::{LABEL_BLOCKS, LABEL_BYTES};
use rpc::keelson::v1 as own;
use rpc::mayastor::v1::{
    CreatePoolRequest, CreateReplicaRequest, CreateReplicaSnapshotRequest, DestroyPoolRequest,
    DestroyReplicaRequest, ImportPoolRequest, ListReplicaOptions, ListSnapshotsRequest,
    SetReplicaEntityIdRequest, ShareReplicaRequest,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tonic::{Code, Response, Status};

/// Why a request was refused.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<Response<T>, Status>, code: Code, says: &[&str]) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    for word in says {
        assert!(status.message().contains(word), "{word:?} is not in: {}", status.message());
    }
}

fn disk_file(dir: &Path, name: &str, mib: u64) -> String {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Writes bytes into a disk.
fn put(disk: &str, at: usize, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    File::options().write(true).open(disk).unwrap().write_all_at(bytes, at as u64).unwrap();
}

fn pool_request(name: &str, disk: &str) -> CreatePoolRequest {
    CreatePoolRequest { name: name.into(), disks: vec![disk.into()], ..Default::default() }
}

fn add_request(disk: &str, force: bool) -> own::AddDiskRequest {
    own::AddDiskRequest { pool: "tpool".into(), disk: disk.into(), force }
}

fn replica_request(name: &str, id: &str, size: u64) -> CreateReplicaRequest {
    CreateReplicaRequest {
        name: name.into(),
        uuid: id.into(),
        pooluuid: "tpool".into(),
        size,
        thin: true,
        ..Default::default()
    }
}

fn snapshot_request(replica: &str, name: &str, id: &str) -> CreateReplicaSnapshotRequest {
    CreateReplicaSnapshotRequest {
        replica_uuid: replica.into(),
        snapshot_uuid: id.into(),
        snapshot_name: name.into(),
        entity_id: "e".into(),
        txn_id: "1".into(),
    }
}

/// What a disk holds is told, by whichever way it was to become one of a pool's; force takes it.
#[tokio::test]
async fn disks_that_hold_something() {
    let dir = tempfile::tempdir().unwrap();
    let d = Running::start(setup()).await;
    let first = disk_file(dir.path(), "first", 64);
    d.create_pool("tpool", &[&first]).await.unwrap();
    let other = disk_file(dir.path(), "other", 64);
    let elsewhere = d.create_pool("elsewhere", &[&other]).await.unwrap();
    d.export_pool("elsewhere").await.unwrap();
    let content: [(&str, usize, &[u8], &str); 5] = [
        ("ext", 0x438, &[0x53, 0xef], "an ext file system"),
        ("xfs", 0, b"XFSB", "an xfs file system"),
        ("mbr", 510, &[0x55, 0xaa], "a partition table"),
        ("gpt", 512, b"EFI PART", "a GPT partition table"),
        ("lvm", 512, b"LABELONE", "an LVM physical volume"),
    ];
    for (name, at, bytes, found) in content {
        let disk = disk_file(dir.path(), name, 64);
        put(&disk, at, bytes);
        let before = std::fs::read(&disk).unwrap();
        let create = d.client.pool().create_pool(pool_request("p", &disk)).await;
        refused(create, Code::InvalidArgument, &[&disk, found, "force"]);
        let add = d.client.own_pool().add_disk(add_request(&disk, false)).await;
        refused(add, Code::InvalidArgument, &[&disk, found, "force"]);
        assert!(std::fs::read(&disk).unwrap() == before, "{name}: a refused disk was written to");
        d.client.own_pool().add_disk(add_request(&disk, true)).await.unwrap();
    }
    assert_eq!(d.pools().await[0].disks.len(), 6);

    // Of another pool: which one is told.
    let create = d.client.pool().create_pool(pool_request("p", &other)).await;
    refused(create, Code::InvalidArgument, &[&other, "elsewhere", &elsewhere.uuid]);
    let import = ImportPoolRequest { name: "p".into(), disks: vec![other.clone()], ..Default::default() };
    refused(d.client.pool().import_pool(import).await, Code::InvalidArgument, &[&other, "elsewhere"]);
    let wrong = ImportPoolRequest {
        name: "elsewhere".into(),
        uuid: Some(uuid(1)),
        disks: vec![other.clone()],
        pooltype: 0,
    };
    refused(d.client.pool().import_pool(wrong).await, Code::InvalidArgument, &[&other, &elsewhere.uuid]);
    let add = d.client.own_pool().add_disk(add_request(&other, false)).await;
    refused(add, Code::InvalidArgument, &[&other, "elsewhere"]);
    // One of this pool, under another name.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&first, &link).unwrap();
    let link = link.to_str().unwrap();
    let add = d.client.own_pool().add_disk(add_request(link, true)).await;
    refused(add, Code::InvalidArgument, &[link, "in use"]);
    let create = d.client.pool().create_pool(pool_request("p", link)).await;
    refused(create, Code::InvalidArgument, &[link, "in use"]);

    // Too small, for a pool and to join one.
    let small = disk_file(dir.path(), "small", 4);
    refused(d.client.pool().create_pool(pool_request("p", &small)).await, Code::InvalidArgument, &[&small]);
    let add = d.client.own_pool().add_disk(add_request(&small, true)).await;
    refused(add, Code::InvalidArgument, &[&small, "needs at least"]);
    // What is no disk at all.
    let folder = dir.path().to_str().unwrap();
    let answer = d.client.pool().create_pool(pool_request("p", folder)).await;
    refused(answer, Code::InvalidArgument, &[folder]);
    let answer = d.client.pool().create_pool(pool_request("p", "/dev/null")).await;
    refused(answer, Code::InvalidArgument, &["/dev/null"]);
    assert_eq!(d.bdevs().await.len(), 6, "what was opened for nothing is closed");
    d.stop().await;
}

/// Made by a version with features that this one does not know: not touched, whatever is asked but force.
#[tokio::test]
async fn a_pool_of_the_future() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk_file(dir.path(), "disk", 64);
    let d = Running::start(setup()).await;
    d.create_pool("future", &[&disk]).await.unwrap();
    d.export_pool("future").await.unwrap();
    let bytes = std::fs::read(&disk).unwrap();
    for block in LABEL_BLOCKS {
        let at = block as usize * 4096;
        let mut label = bytes[at..at + LABEL_BYTES].to_vec();
        label[16..24].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        let checksum = nvme::digest::crc32c(&label[..LABEL_BYTES - 4]).to_le_bytes();
        label[LABEL_BYTES - 4..].copy_from_slice(&checksum);
        put(&disk, at, &label);
    }
    let before = std::fs::read(&disk).unwrap();
    for name in ["future", "p"] {
        let create = d.client.pool().create_pool(pool_request(name, &disk)).await;
        refused(create, Code::InvalidArgument, &["features", "newer version"]);
        let import = ImportPoolRequest { name: name.into(), disks: vec![disk.clone()], ..Default::default() };
        refused(
            d.client.pool().import_pool(import).await,
            Code::InvalidArgument,
            &["features", "newer version"],
        );
    }
    assert!(std::fs::read(&disk).unwrap() == before);
    d.stop().await;
}

/// A disk that takes no writes: before it belongs to a pool, and while it does.
#[tokio::test]
async fn a_disk_that_cannot_be_written() {
    let sealed = || {
        let file = memfd_create("disk", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 64 << 20).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        (file, path)
    };
    let d = Running::start(setup()).await;
    let (file, path) = sealed();
    fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    let create = d.client.pool().create_pool(pool_request("p", &path)).await;
    refused(create, Code::Internal, &[&path, "write"]);
    assert!(d.bdevs().await.is_empty() && d.pools().await.is_empty());

    let (file, path) = sealed();
    d.create_pool("tpool", &[&path]).await.unwrap();
    d.create_replica("r", &uuid(1), "tpool", MIB, true).await.unwrap();
    d.snapshot(&uuid(1), "s", &uuid(2)).await.unwrap();
    let shared = d.share(&uuid(1), 1, &[]).await.unwrap();
    fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    // The first to notice is whoever comes first; from then on the pool is faulted.
    assert!(d.client.replica().create_replica(replica_request("x", &uuid(9), MIB)).await.is_err());
    assert_eq!(d.pools().await[0].state, 3, "faulted");
    let failed = Code::FailedPrecondition;
    let says = &["tpool", "takes no writes", "import"][..];
    let replicas = || d.client.replica();
    refused(replicas().create_replica(replica_request("x", &uuid(9), MIB)).await, failed, says);
    let snapshot = snapshot_request(&uuid(1), "t", &uuid(3));
    refused(d.client.snapshot().create_replica_snapshot(snapshot).await, failed, says);
    assert_eq!(d.clone_of(&uuid(2), "c", &uuid(3)).await, Err(failed));
    assert_eq!(d.resize(&uuid(1), 2 * MIB).await, Err(failed));
    assert_eq!(d.destroy_snapshot(&uuid(2)).await, Err(failed));
    assert_eq!(d.grow_pool("tpool").await, Err(failed));
    let destroy = DestroyReplicaRequest { uuid: uuid(1), pool: None };
    refused(replicas().destroy_replica(destroy).await, failed, says);
    let owner = SetReplicaEntityIdRequest { uuid: uuid(1), entity_id: "o".into() };
    refused(replicas().set_replica_entity_id(owner).await, Code::DataLoss, says);
    // It is there all the same, and can be read.
    assert_eq!(d.replicas(ListReplicaOptions::default()).await.len(), 2);
    let host = Host::new();
    let disk = host.connect(&shared.uri).await.unwrap();
    assert!(host.load(&disk, &common::job(Pattern::Read, 1)).await.is_clean());
    let written = host.load(&disk, &keelson::perf::Job { verify: false, ..job(Pattern::Write, 1) }).await;
    assert!(written.errors > 0, "{written:?}");
    disk.remove();
    // It can be closed, and then its name is free.
    assert_eq!(d.export_pool("tpool").await, Ok(()));
    assert!(d.pools().await.is_empty() && d.bdevs().await.is_empty());
    d.create_pool("tpool", &["malloc:///m?size_mb=64"]).await.unwrap();
    d.destroy_pool("tpool", None).await.unwrap();

    // One that cannot be erased is closed all the same, and said not to be destroyed.
    let (file, path) = sealed();
    d.create_pool("tpool", &[&path]).await.unwrap();
    fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    let destroy = DestroyPoolRequest { name: "tpool".into(), uuid: None };
    refused(d.client.pool().destroy_pool(destroy).await, Code::Internal, &["tpool", &path]);
    assert!(d.pools().await.is_empty() && d.bdevs().await.is_empty());
    d.stop().await;
}

/// Names are bytes for people: whatever has a length is one, and never a path, a pattern or a format.
#[tokio::test]
async fn odd_names() {
    let d = Running::start(setup()).await;
    d.create_pool("tpool", &["malloc:///m?size_mb=256"]).await.unwrap();
    let at_most = "n".repeat(255);
    let good =
        ["../../etc/passwd", "a/b", "50%?#&=", "-rf", ".", "ä ö\u{202e}", "{}", "'; drop", " ", &at_most];
    for (n, name) in good.into_iter().enumerate() {
        let made = d.create_replica(name, &uuid(n as u128 + 1), "tpool", MIB, true).await.unwrap();
        assert_eq!(made.name, name);
        let found = d.replica(name).await.unwrap();
        let uri: aio::DeviceUri = found.uri.parse().unwrap();
        assert_eq!((uri.name().as_str(), found.uuid), (name, uuid(n as u128 + 1)));
    }
    let over = "n".repeat(256);
    let multi = "ä".repeat(128);
    for name in ["", "a\nb", "a\0b", "\u{7f}", "\u{85}", &over, &multi] {
        let answer = d.client.replica().create_replica(replica_request(name, &uuid(50), MIB)).await;
        refused(answer, Code::InvalidArgument, &["1 to 255 bytes"]);
        if !name.is_empty() {
            let request = snapshot_request(&uuid(1), name, &uuid(50));
            let answer = d.client.snapshot().create_replica_snapshot(request).await;
            refused(answer, Code::InvalidArgument, &["1 to 255 bytes"]);
        }
        let answer = d.client.pool().create_pool(pool_request(name, "malloc:///n?size_mb=64")).await;
        refused(answer, Code::InvalidArgument, &["1 to 255 bytes"]);
    }
    // A name that is longer than hosts know is not shared, and the replica stays.
    let share = ShareReplicaRequest { uuid: uuid(10), share: 1, allowed_hosts: vec![] };
    refused(d.client.replica().share_replica(share).await, Code::Internal, &[&at_most]);
    assert_eq!(d.replica(&at_most).await.unwrap().share, 0);
    for host in ["n".repeat(224), String::new(), "nqn.2014-08.org.example:\n".to_owned()] {
        let share = ShareReplicaRequest { uuid: uuid(4), share: 1, allowed_hosts: vec![host.clone()] };
        refused(d.client.replica().share_replica(share).await, Code::InvalidArgument, &["allowed host"]);
        let create = CreateReplicaRequest {
            share: 1,
            allowed_hosts: vec![host],
            ..replica_request("h", &uuid(50), MIB)
        };
        refused(d.client.replica().create_replica(create).await, Code::InvalidArgument, &["allowed host"]);
        assert!(d.replica("h").await.is_none());
    }
    assert_eq!(d.replica("-rf").await.unwrap().share, 0);

    // Texts that are longer than what is stored of an object.
    let long = "x".repeat(300_000);
    let answer = d
        .client
        .replica()
        .create_replica(CreateReplicaRequest {
            entity_id: Some(long.clone()),
            ..replica_request("long", &uuid(50), MIB)
        })
        .await;
    refused(answer, Code::InvalidArgument, &["long", "at most"]);
    let request =
        CreateReplicaSnapshotRequest { txn_id: long.clone(), ..snapshot_request(&uuid(1), "s", &uuid(50)) };
    let answer = d.client.snapshot().create_replica_snapshot(request).await;
    refused(answer, Code::InvalidArgument, &["s", "at most"]);
    for text in [&*long, "", "r", "{00000000-0000-0000-0000-00000000000}", "urn:uuid:x"] {
        let answer = d.client.replica().create_replica(replica_request("u", text, MIB)).await;
        if text.is_empty() {
            assert!(answer.is_ok(), "chosen for it");
            continue;
        }
        refused(answer, Code::InvalidArgument, &["uuid"]);
        let answer =
            d.client.replica().destroy_replica(DestroyReplicaRequest { uuid: text.into(), pool: None }).await;
        refused(answer, Code::NotFound, &["Replica"]);
        assert_eq!(d.destroy_snapshot(text).await, Err(Code::NotFound));
    }
    assert_eq!(d.pools().await[0].state, 1, "online");
    d.stop().await;
}

/// Said once: which object, and why.
#[tokio::test]
async fn messages_name_an_object_once() {
    let d = Running::start(setup()).await;
    d.create_pool("tpool", &["malloc:///m?size_mb=64"]).await.unwrap();
    d.create_replica("thick", &uuid(1), "tpool", 24 * MIB, false).await.unwrap();
    d.snapshot(&uuid(1), "once", &uuid(2)).await.unwrap_or_else(|code| panic!("{code:?}"));
    let again =
        d.client.snapshot().create_replica_snapshot(snapshot_request(&uuid(1), "once", &uuid(3))).await;
    let message = again.unwrap_err().message().to_owned();
    assert_eq!(message.matches("once").count(), 1, "{message}");
    let tiny = d.client.pool().create_pool(pool_request("tiny", "malloc:///t?size_mb=1")).await;
    let message = tiny.unwrap_err().message().to_owned();
    assert_eq!(message.matches("tiny").count(), 1, "{message}");
    d.stop().await;
}

/// Two requests about one object at the same time: one does it, and the other finds that out.
#[tokio::test]
async fn objects_that_are_being_deleted() {
    let d = Running::start(setup()).await;
    d.create_pool("tpool", &["malloc:///m?size_mb=256"]).await.unwrap();
    for round in 0..8 {
        let r = uuid(10 * round + 1);
        d.create_replica("r", &r, "tpool", 8 * MIB, true).await.unwrap();
        d.share(&r, 1, &[]).await.unwrap();
        let (s, t) = (uuid(10 * round + 2), uuid(10 * round + 3));
        d.snapshot(&r, "s", &s).await.unwrap();
        let (one, two, snapshot, size, share) = tokio::join!(
            d.destroy_replica(&r),
            d.destroy_replica(&r),
            d.snapshot(&r, "t", &t),
            d.resize(&r, 16 * MIB),
            d.unshare(&r)
        );
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        assert!([&one, &two].iter().any(|e| **e == Err(Code::NotFound)));
        for late in [snapshot.map(drop), size.map(drop), share.map(drop)] {
            assert!(matches!(late, Ok(()) | Err(Code::NotFound)), "{late:?}");
        }
        let (one, two, clone) =
            tokio::join!(d.destroy_snapshot(&s), d.destroy_snapshot(&s), d.clone_of(&s, "c", &r));
        // With a clone that came between, the second marks what is marked already.
        assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
        assert!(matches!(clone, Ok(_) | Err(Code::NotFound)), "{clone:?}");
        if clone.is_ok() {
            d.destroy_replica(&r).await.unwrap();
        }
        for snapshot in d.snapshots(ListSnapshotsRequest::default()).await {
            d.destroy_snapshot(&snapshot.snapshot_uuid).await.unwrap();
        }
        assert!(d.replicas(ListReplicaOptions::default()).await.is_empty());
    }
    // A pool that goes with requests under way.
    d.create_replica("r", &uuid(1), "tpool", MIB, true).await.unwrap();
    let id = uuid(2);
    let create = d.create_replica("s", &id, "tpool", MIB, true);
    let (gone, made) = tokio::join!(d.destroy_pool("tpool", None), create);
    assert_eq!(gone, Ok(()));
    assert!(matches!(made, Ok(_) | Err(Code::FailedPrecondition)), "{made:?}");
    assert!(d.bdevs().await.is_empty());
    d.stop().await;
}

/// Clones of clones a hundred deep, listed with what they read from, and deleted from the top and from the bottom.
#[tokio::test]
async fn clones_of_clones() {
    let d = Running::start(setup()).await;
    d.create_pool("tpool", &["malloc:///m?size_mb=256"]).await.unwrap();
    let (volume, snapshot) = (|n: u128| uuid(1_000 + n), |n: u128| uuid(2_000 + n));
    d.create_replica("0", &volume(0), "tpool", MIB, true).await.unwrap();
    for n in 0..100 {
        d.snapshot(&volume(n), &format!("s{n}"), &snapshot(n)).await.unwrap();
        d.clone_of(&snapshot(n), &(n + 1).to_string(), &volume(n + 1)).await.unwrap();
    }
    let all = d.replicas(ListReplicaOptions::default()).await;
    assert_eq!(all.len(), 201);
    assert_eq!(all.iter().filter(|r| r.is_clone).count(), 100);
    for n in (0..100).filter(|n| n % 2 == 0) {
        assert_eq!(d.destroy_snapshot(&snapshot(n)).await, Ok(()), "marked: it has a clone");
        assert_eq!(d.destroy_replica(&volume(n)).await, Ok(()));
    }
    let discarded = d.snapshots(ListSnapshotsRequest::default()).await;
    assert_eq!(discarded.iter().filter(|s| s.discarded_snapshot).count(), 50);
    for n in (0..=100).rev().filter(|n| n % 2 == 1 || *n == 100) {
        assert_eq!(d.destroy_replica(&volume(n)).await, Ok(()));
        if n < 100 {
            assert_eq!(d.destroy_snapshot(&snapshot(n)).await, Ok(()));
        }
    }
    assert!(d.snapshots(ListSnapshotsRequest::default()).await.is_empty(), "each goes with what kept it");
    assert!(d.replicas(ListReplicaOptions::default()).await.is_empty());
    d.stop().await;
}

/// The list of 10,000 snapshots is whole, and takes no more than its length: ten times that of 1,000, or a few times that
/// on a busy machine. One that looks at all others for each takes a hundred times as long.
#[tokio::test]
async fn ten_thousand_snapshots_are_listed() {
    let d = Running::start(setup()).await;
    d.create_pool("tpool", &["malloc:///m?size_mb=512"]).await.unwrap();
    d.create_replica("r", &uuid(1), "tpool", MIB, true).await.unwrap();
    let pool = d.daemon.engine().pools().list().remove(0).pool;
    let mut times = Vec::new();
    for n in 0..10_000u128 {
        let spec = lvs::info::CreateSnapshot {
            name: format!("{}/{n}", uuid(1)),
            uuid: uuid(10_000 + n).parse().unwrap(),
            txn_id: n.to_string(),
            entity_id: uuid(1),
            created: std::time::SystemTime::now(),
        };
        pool.create_snapshot(uuid(1).parse().unwrap(), spec).await.unwrap();
        if n + 1 == 1_000 || n + 1 == 10_000 {
            let mut least = Duration::MAX;
            for _ in 0..5 {
                let begin = Instant::now();
                let listed = d.snapshots(ListSnapshotsRequest::default()).await;
                least = least.min(begin.elapsed());
                assert_eq!(listed.len() as u128, n + 1);
            }
            times.push(least);
        }
    }
    assert!(times[1] < times[0] * 40, "1,000 and 10,000 snapshots: {times:?}");
    assert_eq!(d.replicas(ListReplicaOptions::default()).await.len(), 10_001);
    let one = ListSnapshotsRequest { snapshot_uuid: Some(uuid(17_000)), ..Default::default() };
    assert_eq!(d.snapshots(one).await[0].txn_id, "7000");
    assert_eq!(d.destroy_snapshot(&uuid(17_000)).await, Ok(()));
    d.clone_of(&uuid(17_001), "c", &uuid(2)).await.unwrap();
    d.stop().await;
}
