//! `mayastor.v1.ReplicaRpc` over loopback: what each call answers, with which code, and what hosts find.

#![allow(clippy::unwrap_used)]

mod common;

use common::pools::{MIB, PoolCalls, uuid};
use common::{Host, Running, job, setup};
use keelson::perf::{Job, Pattern};
use rpc::keelson::v1::{AllowHostsRequest, DestroySubsystemRequest};
use rpc::mayastor::v1::list_replica_options::Query;
use rpc::mayastor::v1::{
    BdevShareRequest, BdevUnshareRequest, CreateReplicaRequest, DestroyBdevRequest, DestroyReplicaRequest,
    ListReplicaOptions, ListStatsOption, SetReplicaEntityIdRequest, destroy_replica_request,
};
use tonic::Code;

const DISK: &str = "malloc:///m?size_mb=256";

async fn with_pool() -> Running {
    let d = Running::start(setup()).await;
    d.create_pool("tpool", &[DISK]).await.unwrap();
    d
}

#[tokio::test]
async fn a_replica_comes_and_goes() {
    let d = with_pool().await;
    let pool = d.pools().await.remove(0);
    let r = d.create_replica("r", &uuid(1), "tpool", 8 * MIB, true).await.unwrap();
    assert_eq!((r.name.as_str(), r.uuid.as_str(), r.size, r.thin), ("r", uuid(1).as_str(), 8 * MIB, true));
    assert_eq!((r.poolname.as_str(), r.pooluuid.as_str()), ("tpool", pool.uuid.as_str()));
    assert_eq!((r.share, r.uri.as_str()), (0, format!("bdev:///r?uuid={}", uuid(1)).as_str()));
    assert_eq!((r.is_snapshot, r.is_clone, &r.snapshot_uuid, &r.entity_id), (false, false, &None, &None));
    let usage = r.usage.unwrap();
    assert_eq!((usage.capacity_bytes, usage.allocated_bytes), (8 * MIB, 0));
    assert_eq!(usage.num_clusters * usage.cluster_size, 8 * MIB);
    assert_eq!(d.pools().await[0].committed, 8 * MIB);
    assert_eq!(d.replica("r").await.unwrap(), r);

    // Thick: its space is taken at once. By the pool's uuid, with a uuid of the daemon's choice.
    let thick = d.create_replica("thick", "", &pool.uuid, 16 * MIB, false).await.unwrap();
    assert!(thick.uuid.parse::<uuid::Uuid>().is_ok());
    assert_eq!(thick.usage.unwrap().allocated_bytes, 16 * MIB);
    assert!(d.pools().await[0].used >= 16 * MIB);

    // It is a device as well, which is not removed as one.
    let bdev = d.bdev("r").await.unwrap();
    assert_eq!((bdev.uuid.as_str(), bdev.product_name.as_str()), (uuid(1).as_str(), "lvs"));
    assert_eq!(bdev.num_blocks * u64::from(bdev.blk_size), 8 * MIB);
    let destroy = DestroyBdevRequest { uri: bdev.uri };
    assert_eq!(d.client.bdev().destroy(destroy).await.unwrap_err().code(), Code::Internal);

    assert_eq!(d.destroy_replica(&uuid(1)).await, Ok(()));
    assert_eq!(d.destroy_replica(&thick.uuid).await, Ok(()));
    assert!(d.replicas(ListReplicaOptions::default()).await.is_empty() && d.bdev("r").await.is_none());
    assert_eq!(d.pools().await[0].used, 0);
    d.stop().await;
}

#[tokio::test]
async fn repeated_and_impossible_creations() {
    let d = with_pool().await;
    let capacity = d.pools().await[0].capacity;
    d.create("null:///taken?size_mb=1").await.unwrap();
    d.create_replica("r", &uuid(1), "tpool", MIB, true).await.unwrap();
    let long = "n".repeat(300);
    for (name, id, pool, size, thin, want) in [
        ("r", uuid(1), "tpool", MIB, true, Code::AlreadyExists),
        ("other", uuid(1), "tpool", MIB, true, Code::AlreadyExists),
        ("r", uuid(2), "tpool", MIB, true, Code::AlreadyExists),
        ("taken", uuid(2), "tpool", MIB, true, Code::AlreadyExists),
        ("s", uuid(2), "nowhere", MIB, true, Code::FailedPrecondition),
        ("s", uuid(2), "", MIB, true, Code::FailedPrecondition),
        ("s", "no uuid".into(), "tpool", MIB, true, Code::InvalidArgument),
        ("", uuid(2), "tpool", MIB, true, Code::InvalidArgument),
        (long.as_str(), uuid(2), "tpool", MIB, true, Code::InvalidArgument),
        ("a\0b", uuid(2), "tpool", MIB, true, Code::InvalidArgument),
        ("s", uuid(2), "tpool", 0, true, Code::InvalidArgument),
        ("s", uuid(2), "tpool", u64::MAX, true, Code::InvalidArgument),
        ("s", uuid(2), "tpool", capacity + (1 << 30), true, Code::InvalidArgument),
    ] {
        assert_eq!(
            d.create_replica(name, &id, pool, size, thin).await,
            Err(want),
            "{name:?} {id} {pool} {size}"
        );
    }
    // Each fits the pool, but not both.
    d.create_replica("half", &uuid(3), "tpool", capacity * 3 / 4, false).await.unwrap();
    let full = d.create_replica("full", &uuid(4), "tpool", capacity / 2, false).await;
    assert_eq!(full, Err(Code::ResourceExhausted));
    let request = |share| CreateReplicaRequest {
        name: "s".into(),
        uuid: uuid(2),
        pooluuid: "tpool".into(),
        size: MIB,
        thin: true,
        share,
        ..Default::default()
    };
    for share in [2, 7, -1] {
        let got = d.client.replica().create_replica(request(share)).await.unwrap_err().code();
        assert_eq!(got, Code::InvalidArgument, "{share}");
    }
    // Odd sizes are rounded up, not refused.
    let odd = d.create_replica("odd", "", "tpool", MIB + 1, true).await.unwrap();
    assert!(odd.size > MIB && odd.size % 4096 == 0, "{}", odd.size);
    assert_eq!(d.replicas(ListReplicaOptions::default()).await.len(), 3);
    d.stop().await;
}

#[tokio::test]
async fn a_replica_that_is_gone_says_so() {
    let d = with_pool().await;
    d.create_pool("second", &["malloc:///n?size_mb=256"]).await.unwrap();
    let r = d.create_replica("r", &uuid(1), "tpool", MIB, true).await.unwrap();
    let destroy = |uuid: String, pool: Option<destroy_replica_request::Pool>| {
        let mut client = d.client.replica();
        async move { client.destroy_replica(DestroyReplicaRequest { uuid, pool }).await }
    };
    let name = |n: &str| Some(destroy_replica_request::Pool::PoolName(n.into()));
    let by_uuid = |u: &str| Some(destroy_replica_request::Pool::PoolUuid(u.into()));
    let missing_pool = destroy(uuid(1), name("nowhere")).await.unwrap_err();
    assert_eq!(missing_pool.code(), Code::FailedPrecondition);
    assert_eq!(destroy(uuid(1), by_uuid("x")).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(destroy(uuid(1), name("second")).await.unwrap_err().code(), Code::Aborted);
    for status in
        [destroy(uuid(2), name("tpool")).await.unwrap_err(), destroy(uuid(2), None).await.unwrap_err()]
    {
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.metadata().get("gtm-602").unwrap(), "0");
    }
    assert!(missing_pool.metadata().get("gtm-602").is_none());
    let no_uuid = destroy("r".into(), None).await.unwrap_err();
    assert_eq!(no_uuid.code(), Code::NotFound);
    assert!(no_uuid.metadata().get("gtm-602").is_none(), "a name names nothing that could be gone");
    // Its snapshots are no replicas.
    d.snapshot(&uuid(1), "s", &uuid(3)).await.unwrap();
    assert_eq!(destroy(uuid(3), None).await.unwrap_err().code(), Code::NotFound);
    destroy(uuid(1), by_uuid(&r.pooluuid)).await.unwrap();
    assert_eq!(destroy(uuid(1), None).await.unwrap_err().code(), Code::NotFound);
    d.stop().await;
}

#[tokio::test]
async fn lists_are_filtered() {
    let d = with_pool().await;
    let second = d.create_pool("second", &["malloc:///n?size_mb=256"]).await.unwrap();
    d.create_replica("a", &uuid(1), "tpool", MIB, true).await.unwrap();
    d.create_replica("b", &uuid(2), "second", MIB, true).await.unwrap();
    d.snapshot(&uuid(1), "s", &uuid(3)).await.unwrap();
    d.clone_of(&uuid(3), "c", &uuid(4)).await.unwrap();
    let list = |options: ListReplicaOptions| async {
        let mut names: Vec<String> = d.replicas(options).await.into_iter().map(|r| r.name).collect();
        names.sort();
        names.join(" ")
    };
    let all = ListReplicaOptions::default;
    assert_eq!(list(all()).await, "a b c s");
    assert_eq!(list(ListReplicaOptions { poolname: Some("tpool".into()), ..all() }).await, "a c s");
    assert_eq!(list(ListReplicaOptions { pooluuid: Some(second.uuid.clone()), ..all() }).await, "b");
    assert_eq!(list(ListReplicaOptions { uuid: Some(uuid(2)), ..all() }).await, "b");
    let both = ListReplicaOptions { uuid: Some(uuid(2)), poolname: Some("tpool".into()), ..all() };
    assert_eq!(list(both).await, "");
    assert_eq!(list(ListReplicaOptions { pooltypes: vec![0], ..all() }).await, "a b c s");
    assert_eq!(list(ListReplicaOptions { pooltypes: vec![1], ..all() }).await, "");
    let query = |replica, snapshot, clone| ListReplicaOptions {
        query: Some(Query { replica, snapshot, clone }),
        ..ListReplicaOptions::default()
    };
    assert_eq!(list(query(false, false, false)).await, "");
    assert_eq!(list(query(true, false, true)).await, "a b c", "as the control plane asks");
    assert_eq!(list(query(false, true, false)).await, "s");
    d.stop().await;
}

#[tokio::test]
async fn sharing() {
    let d = with_pool().await;
    let r = d.create_replica("r", &uuid(1), "tpool", 16 * MIB, true).await.unwrap();
    assert_eq!(d.share(&uuid(9), 1, &[]).await, Err(Code::NotFound));
    assert_eq!(d.unshare(&uuid(9)).await, Err(Code::NotFound));
    assert_eq!(d.share(&uuid(1), 2, &[]).await, Err(Code::InvalidArgument));
    assert_eq!(d.share(&uuid(1), 0, &[]).await.unwrap(), r, "NONE on what is not shared");
    assert_eq!(d.unshare(&uuid(1)).await.unwrap(), r, "no error either");

    let friend = "nqn.2014-08.org.example:friend";
    let shared = d.share(&uuid(1), 1, &[]).await.unwrap();
    let nvmf = d.daemon.engine().node().nvmf;
    assert_eq!(shared.uri, format!("nvmf+tcp://{nvmf}/nqn.2019-05.io.openebs:r?uuid={}", uuid(1)));
    assert_eq!((shared.share, shared.allowed_hosts.len()), (1, 0));
    assert_eq!(d.share(&uuid(1), 0, &[]).await, Err(Code::InvalidArgument));

    // A host finds it: its size, its identity, its bytes.
    let host = Host::new();
    let disk = host.connect(&shared.uri).await.unwrap();
    assert_eq!(disk.size().0 * u64::from(disk.geometry().block_bytes), 16 * MIB);
    assert_eq!(disk.uuid().to_string(), uuid(1));
    let outcome = host.load(&disk, &Job { queues: 2, ..job(Pattern::RandRw, 1) }).await;
    assert!(outcome.is_clean() && outcome.verified.blocks > 0, "{:?}", outcome.verified);
    let used = d.replica("r").await.unwrap().usage.unwrap().allocated_bytes;
    assert!(used <= 16 * MIB, "{used}");
    let stats = d.client.stats().get_replica_io_stats(ListStatsOption { name: Some("r".into()) }).await;
    let stats = stats.unwrap().into_inner().stats.remove(0).stats.unwrap();
    assert!(stats.num_write_ops > 0 && stats.bytes_read > 0 && stats.tick_rate > 0, "{stats:?}");
    disk.remove();

    // The same protocol again replaces the hosts.
    let some = d.share(&uuid(1), 1, &[friend]).await.unwrap();
    assert_eq!(some.allowed_hosts, [friend]);
    assert!(host.connect(&format!("{}&hostnqn=nqn.2014-08.org.example:stranger", shared.uri)).await.is_err());
    host.connect(&format!("{}&hostnqn={friend}", shared.uri)).await.unwrap().remove();

    assert_eq!(d.unshare(&uuid(1)).await.unwrap().uri, r.uri);
    assert_eq!(d.unshare(&uuid(1)).await.unwrap().uri, r.uri);
    assert!(host.connect(&shared.uri).await.is_err(), "nobody is there any more");
    // Shared when it is destroyed.
    d.share(&uuid(1), 1, &[]).await.unwrap();
    assert_eq!(d.destroy_replica(&uuid(1)).await, Ok(()));
    assert!(d.daemon.engine().exports().list().is_empty());
    d.stop().await;
}

#[tokio::test]
async fn shares_by_other_means_are_recorded_too() {
    let d = with_pool().await;
    d.create_replica("r", &uuid(1), "tpool", MIB, true).await.unwrap();
    let share = BdevShareRequest { name: "r".into(), protocol: 1, allowed_hosts: vec![] };
    d.client.bdev().share(share).await.unwrap();
    assert_eq!(d.replica("r").await.unwrap().share, 1);
    let (a, b) = ("nqn.2014-08.org.example:a", "nqn.2014-08.org.example:b");
    d.share(&uuid(1), 1, &[a]).await.unwrap();
    let nqn = "nqn.2019-05.io.openebs:r".to_owned();
    let allow = AllowHostsRequest { nqn: nqn.clone(), hosts: vec![b.into()], any: false };
    d.client.subsystem().allow_hosts(allow).await.unwrap();
    assert_eq!(d.replica("r").await.unwrap().allowed_hosts, [a, b]);
    d.client.subsystem().destroy_subsystem(DestroySubsystemRequest { nqn }).await.unwrap();
    assert_eq!(d.replica("r").await.unwrap().share, 0);
    let share = BdevShareRequest { name: "r".into(), protocol: 1, allowed_hosts: vec![] };
    d.client.bdev().share(share).await.unwrap();
    d.client.bdev().unshare(BdevUnshareRequest { name: "r".into() }).await.unwrap();
    assert_eq!(d.replica("r").await.unwrap().share, 0);
    d.stop().await;
}

#[tokio::test]
async fn another_size_and_another_owner() {
    let d = with_pool().await;
    let r = d.create_replica("r", &uuid(1), "tpool", 8 * MIB, true).await.unwrap();
    assert_eq!(d.resize(&uuid(1), 8 * MIB).await.unwrap(), r, "the same size");
    let shared = d.share(&uuid(1), 1, &[]).await.unwrap();
    let host = Host::new();
    let disk = host.connect(&shared.uri).await.unwrap();
    assert_eq!(d.resize(&uuid(1), 16 * MIB).await.unwrap().size, 16 * MIB);
    // The host is told.
    for _ in 0..200 {
        if disk.size().0 * u64::from(disk.geometry().block_bytes) == 16 * MIB {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(disk.size().0 * u64::from(disk.geometry().block_bytes), 16 * MIB);
    disk.remove();
    assert_eq!(d.resize(&uuid(1), 4 * MIB).await.unwrap().size, 4 * MIB);
    assert_eq!(d.resize(&uuid(9), MIB).await, Err(Code::NotFound));
    assert_eq!(d.resize("r", MIB).await, Err(Code::NotFound), "by uuid only");
    assert_eq!(d.resize(&uuid(1), 0).await, Err(Code::InvalidArgument));
    let capacity = d.pools().await[0].capacity;
    d.create_replica("thick", &uuid(2), "tpool", MIB, false).await.unwrap();
    assert_eq!(d.resize(&uuid(2), capacity * 2).await, Err(Code::ResourceExhausted));
    assert_eq!(d.replica("thick").await.unwrap().size, MIB);

    let set = |uuid: String| SetReplicaEntityIdRequest { uuid, entity_id: "volume".into() };
    let owned = d.client.replica().set_replica_entity_id(set(uuid(1))).await.unwrap().into_inner();
    assert_eq!((owned.entity_id.as_deref(), owned.share), (Some("volume"), 1));
    let none = d.client.replica().set_replica_entity_id(set(uuid(9))).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    d.stop().await;
}

#[tokio::test]
async fn everything_is_back_after_an_import() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    std::fs::File::create(&file).unwrap().set_len(256 << 20).unwrap();
    let file = file.to_str().unwrap();
    let d = Running::start(setup()).await;
    d.create_pool("tpool", &[file]).await.unwrap();
    let request = CreateReplicaRequest {
        name: "n".repeat(220),
        uuid: uuid(1),
        pooluuid: "tpool".into(),
        size: 8 * MIB,
        thin: true,
        share: 1,
        allowed_hosts: vec!["nqn.2014-08.org.example:h".into()],
        entity_id: Some("volume".into()),
    };
    // A name that is too long for an NQN: sharing fails, and nothing is left of it.
    let failed = d.client.replica().create_replica(request.clone()).await.unwrap_err();
    assert_eq!(failed.code(), Code::Internal, "{}", failed.message());
    assert!(d.replica(&"n".repeat(220)).await.is_none());
    let request = CreateReplicaRequest { name: "r".into(), ..request };
    let made = d.client.replica().create_replica(request).await.unwrap().into_inner();
    assert_eq!((made.share, made.entity_id.as_deref()), (1, Some("volume")));
    d.create_replica("plain", &uuid(2), "tpool", MIB, false).await.unwrap();
    d.snapshot(&uuid(1), "s", &uuid(3)).await.unwrap();
    let before = d.replicas(ListReplicaOptions::default()).await;
    assert_eq!(d.export_pool("tpool").await, Ok(()));
    assert!(d.daemon.engine().exports().list().is_empty() && d.bdevs().await.is_empty());
    d.import_pool("tpool", &[file]).await.unwrap();
    let mut after = d.replicas(ListReplicaOptions::default()).await;
    after.sort_by_key(|r| before.iter().position(|b| b.uuid == r.uuid));
    assert_eq!(after, before, "sizes, shares, hosts, owners");
    d.stop().await;
}
