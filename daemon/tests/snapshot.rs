//! `mayastor.v1.SnapshotRpc`, `StatsRpc` and `TestRpc` over loopback.

#![allow(clippy::unwrap_used)]

mod common;

use common::pools::{MIB, PoolCalls, uuid};
use common::{Host, Running, job, setup};
use keelson::perf::Pattern;
use rpc::mayastor::v1::list_snapshots_request::Query;
use rpc::mayastor::v1::wipe_options::WipeMethod;
use rpc::mayastor::v1::{
    CreateReplicaSnapshotRequest, DestroySnapshotRequest, ListFaultInjectionsRequest,
    ListSnapshotCloneRequest, ListSnapshotsRequest, ListStatsOption, NexusCreateSnapshotRequest,
    StreamWipeOptions, WipeOptions, WipeReplicaRequest, WipeReplicaResponse, destroy_snapshot_request,
    wipe_replica_response,
};
use tonic::Code;

const DISK: &str = "malloc:///m?size_mb=256";

async fn with_replica() -> Running {
    let d = Running::start(setup()).await;
    d.create_pool("tpool", &[DISK]).await.unwrap();
    d.create_replica("r", &uuid(1), "tpool", 8 * MIB, true).await.unwrap();
    d
}

/// Writes something to a replica, as a host.
async fn write(d: &Running, id: &str, seed: u64) {
    let shared = d.share(id, 1, &[]).await.unwrap();
    let host = Host::new();
    let disk = host.connect(&shared.uri).await.unwrap();
    let outcome = host.load(&disk, &job(Pattern::RandWrite, seed)).await;
    assert!(outcome.is_clean(), "{:?}", outcome.verified);
    disk.remove();
    d.unshare(id).await.unwrap();
}

async fn wipe(d: &Running, id: &str, method: i32, chunk_size: u64) -> Result<Vec<WipeReplicaResponse>, Code> {
    let options = WipeOptions { wipe_method: method, write_pattern: None, cksum_alg: 0 };
    let wipe_options = Some(StreamWipeOptions { options: Some(options), chunk_size });
    let request = WipeReplicaRequest { uuid: id.into(), pool: None, wipe_options };
    let mut stream = d.client.test().wipe_replica(request).await.map_err(|s| s.code())?.into_inner();
    let mut steps = Vec::new();
    while let Some(step) = stream.message().await.map_err(|s| s.code())? {
        steps.push(step);
    }
    Ok(steps)
}

async fn checksum(d: &Running, id: &str) -> u32 {
    let steps = wipe(d, id, WipeMethod::Checksum.into(), 0).await.unwrap();
    match steps.last().unwrap().checksum.unwrap() {
        wipe_replica_response::Checksum::Crc32(crc) => crc,
    }
}

#[tokio::test]
async fn snapshots_and_clones() {
    let d = with_replica().await;
    write(&d, &uuid(1), 1).await;
    let sum = checksum(&d, &uuid(1)).await;
    let held = d.replica("r").await.unwrap().usage.unwrap().allocated_bytes;
    // As the control plane names them.
    let name = format!("{}/1", uuid(100));
    let s = d.snapshot(&uuid(1), &name, &uuid(2)).await.unwrap();
    assert_eq!((s.snapshot_name.as_str(), s.snapshot_uuid.as_str()), (name.as_str(), uuid(2).as_str()));
    assert_eq!((s.entity_id.as_str(), s.txn_id.as_str()), ("volume", "1"));
    assert_eq!((s.source_uuid.as_str(), s.source_size), (uuid(1).as_str(), 8 * MIB));
    assert_eq!((s.pool_name.as_str(), s.num_clones), ("tpool", 0));
    assert!(s.valid_snapshot && !s.discarded_snapshot && !s.ready_as_source);
    assert_eq!((s.snapshot_size, s.referenced_bytes), (held, 0));
    let age = std::time::SystemTime::now().duration_since(s.timestamp.unwrap().try_into().unwrap()).unwrap();
    assert!(age.as_secs() < 60, "{age:?}");
    let usage = d.replica("r").await.unwrap().usage.unwrap();
    assert_eq!((usage.allocated_bytes, usage.allocated_bytes_snapshots), (0, held), "moved to the snapshot");
    let listed = d.replica(&name).await.unwrap();
    assert!(listed.is_snapshot && listed.thin && listed.size == 8 * MIB);

    // The replica changes, the snapshot does not, and the clone begins as the snapshot.
    write(&d, &uuid(1), 2).await;
    assert_ne!(checksum(&d, &uuid(1)).await, sum);
    assert_eq!(checksum(&d, &uuid(2)).await, sum);
    let c = d.clone_of(&uuid(2), "c", &uuid(3)).await.unwrap();
    assert_eq!((c.size, c.thin, c.is_clone, c.share), (8 * MIB, true, true, 0));
    assert_eq!(c.snapshot_uuid.as_deref(), Some(uuid(2).as_str()));
    assert_eq!(c.usage.unwrap().allocated_bytes_snapshots, held);
    assert_eq!(c.usage.unwrap().allocated_bytes_snapshot_from_clone, Some(0));
    assert_eq!(checksum(&d, &uuid(3)).await, sum);
    write(&d, &uuid(3), 3).await;
    assert_ne!(checksum(&d, &uuid(3)).await, sum);
    assert_eq!(checksum(&d, &uuid(2)).await, sum, "nor when the clone is written");
    let all = d.snapshots(ListSnapshotsRequest::default()).await;
    assert_eq!((all.len(), all[0].num_clones), (1, 1));

    // With clones it is only marked, and goes with the last of them.
    assert_eq!(d.destroy_snapshot(&uuid(2)).await, Ok(()));
    let all = d.snapshots(ListSnapshotsRequest::default()).await;
    assert!(all[0].discarded_snapshot);
    assert_eq!(d.clone_of(&uuid(2), "c2", &uuid(4)).await, Err(Code::NotFound), "discarded");
    assert_eq!(d.destroy_replica(&uuid(1)).await, Ok(()));
    let all = d.snapshots(ListSnapshotsRequest::default()).await;
    assert_eq!((all.len(), all[0].source_uuid.as_str()), (1, ""), "its source is gone");
    assert_eq!(d.destroy_replica(&uuid(3)).await, Ok(()));
    assert!(d.snapshots(ListSnapshotsRequest::default()).await.is_empty());
    assert_eq!(d.destroy_snapshot(&uuid(2)).await, Err(Code::NotFound));
    d.stop().await;
}

#[tokio::test]
async fn bad_arguments_have_their_codes() {
    let d = with_replica().await;
    d.snapshot(&uuid(1), "s", &uuid(2)).await.unwrap();
    let request = |change: fn(&mut CreateReplicaSnapshotRequest)| {
        let mut request = CreateReplicaSnapshotRequest {
            replica_uuid: uuid(1),
            snapshot_uuid: uuid(5),
            snapshot_name: "t".into(),
            entity_id: "e".into(),
            txn_id: "1".into(),
        };
        change(&mut request);
        let mut client = d.client.snapshot();
        async move { client.create_replica_snapshot(request).await.map_err(|s| s.code()).err() }
    };
    assert_eq!(request(|r| r.snapshot_name.clear()).await, Some(Code::InvalidArgument));
    assert_eq!(request(|r| r.entity_id.clear()).await, Some(Code::InvalidArgument));
    assert_eq!(request(|r| r.txn_id.clear()).await, Some(Code::InvalidArgument));
    assert_eq!(request(|r| r.snapshot_uuid.clear()).await, Some(Code::Internal));
    assert_eq!(request(|r| r.snapshot_uuid = "x".into()).await, Some(Code::InvalidArgument));
    assert_eq!(request(|r| r.snapshot_uuid = uuid(2)).await, Some(Code::AlreadyExists));
    assert_eq!(request(|r| r.snapshot_uuid = uuid(1)).await, Some(Code::AlreadyExists), "a replica's");
    assert_eq!(
        request(|r| r.snapshot_name = "s".into()).await,
        Some(Code::Internal),
        "names are unique in a pool"
    );
    assert_eq!(request(|r| r.replica_uuid = uuid(9)).await, Some(Code::NotFound));
    assert_eq!(request(|r| r.replica_uuid = "x".into()).await, Some(Code::NotFound));
    assert_eq!(request(|r| r.replica_uuid = uuid(2)).await, Some(Code::NotFound), "a snapshot is no replica");

    for (snapshot, name, id, code) in [
        ("", "c", uuid(6), Code::InvalidArgument),
        (&*uuid(2), "", uuid(6), Code::InvalidArgument),
        (&*uuid(2), "c", String::new(), Code::InvalidArgument),
        (&*uuid(2), "c", "x".into(), Code::InvalidArgument),
        (&*uuid(2), "c", uuid(1), Code::AlreadyExists),
        (&*uuid(2), "r", uuid(6), Code::AlreadyExists),
        (&*uuid(9), "c", uuid(6), Code::NotFound),
        (&*uuid(1), "c", uuid(6), Code::NotFound),
    ] {
        assert_eq!(d.clone_of(snapshot, name, &id).await, Err(code), "{snapshot} {name} {id}");
    }
    d.clone_of(&uuid(2), "c", &uuid(6)).await.unwrap();
    assert_eq!(d.clone_of(&uuid(2), "c", &uuid(6)).await, Err(Code::AlreadyExists));

    let destroy = |uuid: String, pool: &str| {
        let pool = Some(destroy_snapshot_request::Pool::PoolName(pool.into()));
        let mut client = d.client.snapshot();
        async move {
            let request = DestroySnapshotRequest { snapshot_uuid: uuid, pool };
            client.destroy_snapshot(request).await.map_err(|s| s.code()).err()
        }
    };
    d.create_pool("second", &["malloc:///n?size_mb=256"]).await.unwrap();
    assert_eq!(destroy(uuid(2), "nowhere").await, Some(Code::FailedPrecondition));
    assert_eq!(destroy(uuid(2), "second").await, Some(Code::Aborted));
    assert_eq!(destroy(uuid(9), "tpool").await, Some(Code::NotFound));
    assert_eq!(destroy(uuid(1), "tpool").await, Some(Code::NotFound), "a replica is no snapshot");
    let nexus = NexusCreateSnapshotRequest { nexus_uuid: uuid(50), ..Default::default() };
    let answer = d.client.snapshot().create_nexus_snapshot(nexus).await.unwrap_err();
    assert_eq!(answer.code(), Code::NotFound);
    d.stop().await;
}

#[tokio::test]
async fn lists_are_filtered() {
    let d = with_replica().await;
    d.create_replica("q", &uuid(2), "tpool", MIB, true).await.unwrap();
    d.snapshot(&uuid(1), "a", &uuid(11)).await.unwrap();
    d.snapshot(&uuid(2), "b", &uuid(12)).await.unwrap();
    d.clone_of(&uuid(12), "c", &uuid(13)).await.unwrap();
    d.destroy_snapshot(&uuid(12)).await.unwrap();
    let list = |request: ListSnapshotsRequest| async {
        let mut names: Vec<String> =
            d.snapshots(request).await.into_iter().map(|s| s.snapshot_name).collect();
        names.sort();
        names.join(" ")
    };
    let all = ListSnapshotsRequest::default;
    assert_eq!(list(all()).await, "a b");
    assert_eq!(list(ListSnapshotsRequest { source_uuid: Some(uuid(1)), ..all() }).await, "a");
    assert_eq!(list(ListSnapshotsRequest { snapshot_uuid: Some(uuid(12)), ..all() }).await, "b");
    assert_eq!(list(ListSnapshotsRequest { snapshot_uuid: Some("x".into()), ..all() }).await, "");
    let query =
        |invalid, discarded| ListSnapshotsRequest { query: Some(Query { invalid, discarded }), ..all() };
    assert_eq!(list(query(None, Some(false))).await, "a", "as the control plane asks");
    assert_eq!(list(query(None, Some(true))).await, "b");
    assert_eq!(list(query(Some(true), None)).await, "a b", "as odd as it is");
    let clones = |snapshot_uuid: Option<String>| async {
        let request = ListSnapshotCloneRequest { snapshot_uuid };
        d.client.snapshot().list_snapshot_clone(request).await.unwrap().into_inner().replicas.len()
    };
    assert_eq!((clones(None).await, clones(Some(uuid(12))).await, clones(Some(uuid(11))).await), (1, 1, 0));
    d.stop().await;
}

#[tokio::test]
async fn counters() {
    let running = with_replica().await;
    let d = &running;
    write(d, &uuid(1), 1).await;
    let option = |name: Option<&str>| ListStatsOption { name: name.map(Into::into) };
    let pools = |name| async move {
        d.client.stats().get_pool_io_stats(option(name)).await.unwrap().into_inner().stats
    };
    let replicas = |name| async move {
        d.client.stats().get_replica_io_stats(option(name)).await.unwrap().into_inner().stats
    };
    let pool = pools(None).await.remove(0);
    assert_eq!(pool.name, "tpool");
    assert!(pool.num_write_ops > 0 && pool.bytes_written >= 4096 && pool.tick_rate > 0, "{pool:?}");
    assert!(pools(Some("x")).await.is_empty() && replicas(Some("x")).await.is_empty());
    let replica = replicas(Some("r")).await.remove(0).stats.unwrap();
    assert_eq!((replica.uuid.as_str(), replica.num_write_ops > 0), (uuid(1).as_str(), true));
    d.client.stats().reset_io_stats(()).await.unwrap();
    assert_eq!(pools(None).await[0].num_write_ops, 0);
    assert_eq!(replicas(None).await[0].stats.as_ref().unwrap().bytes_written, 0);
    assert!(d.client.stats().get_nexus_io_stats(option(None)).await.unwrap().into_inner().stats.is_empty());
    let nexus = d.client.stats().get_nexus_io_stats(option(Some("n"))).await.unwrap_err();
    assert_eq!((nexus.code(), nexus.message()), (Code::NotFound, "Nexus not found"));
    running.stop().await;
}

#[tokio::test]
async fn wiping() {
    let d = with_replica().await;
    let features = d.client.test().get_features(()).await.unwrap().into_inner();
    assert_eq!((features.wipe_methods, features.cksum_algs), (vec![0, 1, 4], vec![0]));
    let empty = checksum(&d, &uuid(1)).await;
    let device_blocks = 8 * MIB / u64::from(d.bdev("r").await.unwrap().blk_size);
    let total = (device_blocks - 33) * u64::from(d.bdev("r").await.unwrap().blk_size);
    assert_eq!(empty, nvme::digest::crc32c(&vec![0; total as usize]));
    write(&d, &uuid(1), 1).await;
    assert_ne!(checksum(&d, &uuid(1)).await, empty);
    let steps = wipe(&d, &uuid(1), WipeMethod::WriteZeroes.into(), MIB).await.unwrap();
    assert_eq!(steps.len(), 1 + total.div_ceil(MIB) as usize, "one before the first chunk");
    assert_eq!((steps[0].wiped_bytes, steps[0].remaining_bytes, steps[0].total_bytes), (0, total, total));
    let last = steps.last().unwrap();
    assert_eq!((last.wiped_bytes, last.remaining_bytes, last.wiped_chunks), (total, 0, last.total_chunks));
    assert_eq!(last.last_chunk_size, total % MIB);
    assert_eq!(checksum(&d, &uuid(1)).await, empty);
    assert_eq!(wipe(&d, &uuid(1), 0, 0).await.unwrap().len(), 2, "NONE only counts");

    for method in [WipeMethod::Unmap, WipeMethod::WritePattern] {
        assert_eq!(wipe(&d, &uuid(1), method.into(), 0).await, Err(Code::InvalidArgument), "{method:?}");
    }
    assert_eq!(wipe(&d, &uuid(1), 9, 0).await, Err(Code::InvalidArgument));
    assert_eq!(wipe(&d, &uuid(1), 1, 4096).await, Err(Code::InvalidArgument), "too many answers");
    assert_eq!(wipe(&d, &uuid(1), 1, 1000).await, Err(Code::InvalidArgument), "not aligned");
    assert_eq!(wipe(&d, &uuid(9), 1, 0).await, Err(Code::NotFound));
    let bare = WipeReplicaRequest { uuid: uuid(1), pool: None, wipe_options: None };
    assert_eq!(d.client.test().wipe_replica(bare).await.unwrap_err().code(), Code::InvalidArgument);
    let faults = d.client.test().list_fault_injections(ListFaultInjectionsRequest {}).await.unwrap_err();
    assert_eq!(
        (faults.code(), faults.message()),
        (Code::Unimplemented, "Fault injection feature is disabled")
    );
    d.stop().await;
}
