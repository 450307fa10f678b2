//! `mayastor.v1.PoolRpc` over loopback: what each call answers, with which code, and what is there afterwards.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::pools::{MIB, PoolCalls, uuid};
use common::{Running, declared, setup};
use keelson::serve::Setup;
use rpc::keelson::v1 as own;
use rpc::mayastor::v1::{
    BdevShareRequest, CreatePoolRequest, DestroyBdevRequest, ImportPoolRequest, ListPoolOptions,
    PoolMetadataArgs, PoolTypeValue,
};
use tonic::Code;

const DISK: &str = "malloc:///m?size_mb=256";

#[tokio::test]
async fn a_pool_comes_and_goes() {
    let d = Running::start(setup()).await;
    assert!(d.pools().await.is_empty());
    let pool = d.create_pool("tpool", &[DISK]).await.unwrap();
    assert_eq!((pool.name.as_str(), pool.state, pool.pooltype), ("tpool", 1, 0));
    assert!(pool.uuid.parse::<uuid::Uuid>().is_ok());
    assert_eq!(pool.disk_capacity, 256 * MIB);
    assert!(pool.capacity > 128 * MIB && pool.capacity < 256 * MIB, "{}", pool.capacity);
    assert_eq!((pool.used, pool.committed), (0, 0));
    let disk = d.bdev("m").await.unwrap();
    assert_eq!(pool.disks, [format!("{DISK}&uuid={}", disk.uuid)]);
    assert_eq!((disk.claimed, disk.claimed_by.as_str()), (true, "pool tpool"));
    assert_eq!(d.pools().await, std::slice::from_ref(&pool));

    // Once more: the same disk is the same pool, another disk is another.
    assert_eq!(d.create_pool("tpool", &[DISK]).await, Err(Code::AlreadyExists));
    assert_eq!(d.import_pool("tpool", &[DISK]).await, Err(Code::AlreadyExists));
    assert_eq!(d.create_pool("tpool", &["malloc:///n?size_mb=256"]).await, Err(Code::InvalidArgument));
    assert_eq!(d.import_pool("tpool", &["malloc:///n?size_mb=256"]).await, Err(Code::InvalidArgument));
    // A disk in use by a pool.
    assert_eq!(d.create_pool("other", &[DISK]).await, Err(Code::InvalidArgument));
    let share = BdevShareRequest { name: "m".into(), protocol: 1, allowed_hosts: vec![] };
    assert_eq!(d.client.bdev().share(share).await.unwrap_err().code(), Code::Internal);
    let destroy = DestroyBdevRequest { uri: DISK.into() };
    assert_eq!(d.client.bdev().destroy(destroy).await.unwrap_err().code(), Code::Internal);
    assert!(d.bdev("n").await.is_none(), "what was opened for a pool that failed is closed");

    // Only with the right uuid.
    assert_eq!(d.destroy_pool("tpool", Some(&uuid(9))).await, Err(Code::NotFound));
    assert_eq!(d.destroy_pool("x", None).await, Err(Code::NotFound));
    assert_eq!(d.export_pool("x").await, Err(Code::NotFound));
    assert_eq!(d.destroy_pool("tpool", Some(&pool.uuid)).await, Ok(()));
    assert_eq!(d.destroy_pool("tpool", None).await, Err(Code::NotFound));
    assert!(d.pools().await.is_empty() && d.bdev("m").await.is_none(), "its disk is closed");
    d.stop().await;
}

#[tokio::test]
async fn create_tries_to_import() {
    let dir = tempfile::tempdir().unwrap();
    let file = disk_file(dir.path(), "disk", 256);
    let d = Running::start(setup()).await;
    assert_eq!(d.import_pool("tpool", &[&file]).await, Err(Code::InvalidArgument), "there is none");
    let pool = d.create_pool("tpool", &[&file]).await.unwrap();
    d.create_replica("r", &uuid(1), "tpool", 8 * MIB, true).await.unwrap();
    assert_eq!(d.export_pool("tpool").await, Ok(()));
    assert_eq!(d.export_pool("tpool").await, Err(Code::NotFound));
    assert!(d.bdevs().await.is_empty(), "neither disk nor replica is left");

    // Another name or uuid than that on the disk is refused, and the disk is left as it is.
    assert_eq!(d.create_pool("other", &[&file]).await, Err(Code::InvalidArgument));
    assert_eq!(d.import_pool("other", &[&file]).await, Err(Code::InvalidArgument));
    let wrong = CreatePoolRequest {
        name: "tpool".into(),
        uuid: Some(uuid(9)),
        disks: vec![file.clone()],
        ..Default::default()
    };
    assert_eq!(d.client.pool().create_pool(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(d.bdevs().await.is_empty());

    // Created again means imported: its uuid, its replica.
    let again = d.create_pool("tpool", &[&file]).await.unwrap();
    assert_eq!(again.uuid, pool.uuid);
    assert_eq!(d.replica("r").await.unwrap().uuid, uuid(1));
    assert_eq!(d.export_pool("tpool").await, Ok(()));
    let right = ImportPoolRequest {
        name: "tpool".into(),
        uuid: Some(pool.uuid.clone()),
        disks: vec![file.clone()],
        pooltype: 0,
    };
    assert_eq!(d.client.pool().import_pool(right).await.unwrap().into_inner().uuid, pool.uuid);

    // A pool that was destroyed is gone: the disk is taken for a new one.
    assert_eq!(d.destroy_pool("tpool", None).await, Ok(()));
    assert_eq!(d.import_pool("tpool", &[&file]).await, Err(Code::InvalidArgument));
    let new = d.create_pool("tpool", &[&file]).await.unwrap();
    assert_ne!(new.uuid, pool.uuid);
    assert!(d.replica("r").await.is_none());
    d.stop().await;
}

#[tokio::test]
async fn bad_arguments_have_their_codes() {
    let dir = tempfile::tempdir().unwrap();
    let d = Running::start(setup()).await;
    let long = "n".repeat(300);
    for (name, disks, code) in [
        ("p", vec![], Code::InvalidArgument),
        ("", vec![DISK], Code::InvalidArgument),
        (long.as_str(), vec![DISK], Code::InvalidArgument),
        ("a\nb", vec![DISK], Code::InvalidArgument),
        ("p", vec![""], Code::InvalidArgument),
        ("p", vec!["relative"], Code::InvalidArgument),
        ("p", vec!["ftp:///x"], Code::InvalidArgument),
        ("p", vec!["malloc:///a"], Code::InvalidArgument),
        ("p", vec!["bdev:///nobody"], Code::NotFound),
        ("p", vec!["/nonexistent/disk"], Code::NotFound),
        ("p", vec![DISK, DISK], Code::InvalidArgument),
        ("p", vec!["malloc:///tiny?size_mb=1"], Code::InvalidArgument),
        ("p", vec![DISK, "malloc:///k?size_mb=256&blk_size=4096"], Code::InvalidArgument),
    ] {
        assert_eq!(d.create_pool(name, &disks).await, Err(code), "{name:?} {disks:?}");
    }
    let request = || CreatePoolRequest { name: "p".into(), disks: vec![DISK.into()], ..Default::default() };
    let md_args = Some(PoolMetadataArgs { md_resv_ratio: Some(0.0) });
    for (request, code) in [
        (CreatePoolRequest { pooltype: 1, ..request() }, Code::FailedPrecondition),
        (CreatePoolRequest { pooltype: 7, ..request() }, Code::InvalidArgument),
        (CreatePoolRequest { uuid: Some("x".into()), ..request() }, Code::InvalidArgument),
        (CreatePoolRequest { cluster_size: Some(5), ..request() }, Code::Internal),
        (CreatePoolRequest { md_args, ..request() }, Code::Internal),
    ] {
        let got = d.client.pool().create_pool(request.clone()).await.unwrap_err().code();
        assert_eq!(got, code, "{request:?}");
    }

    // A disk with something on it is refused with what was found, and not changed; force takes it.
    let file = disk_file(dir.path(), "ext4", 256);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    std::fs::write(&file, &bytes).unwrap();
    let request = CreatePoolRequest { name: "p".into(), disks: vec![file.clone()], ..Default::default() };
    let refused = d.client.pool().create_pool(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("ext"), "{}", refused.message());
    assert!(std::fs::read(&file).unwrap() == bytes, "the disk was changed");
    let force = own::CreatePoolRequest { name: "p".into(), uuid: None, disks: vec![file], force: true };
    assert_eq!(d.client.own_pool().create_pool(force).await.unwrap().into_inner().name, "p");
    assert_eq!(d.bdevs().await.len(), 1, "failures leave no devices behind");
    d.stop().await;
}

#[tokio::test]
async fn lists_are_filtered() {
    let d = Running::start(setup()).await;
    d.create_pool("a", &["malloc:///a0?size_mb=256"]).await.unwrap();
    let b = d.create_pool("b", &["malloc:///b0?size_mb=256"]).await.unwrap();
    let list = |name: Option<&str>, uuid: Option<&str>, kind: Option<i32>| {
        let options = ListPoolOptions {
            name: name.map(Into::into),
            uuid: uuid.map(Into::into),
            pooltype: kind.map(|value| PoolTypeValue { value }),
        };
        let mut client = d.client.pool();
        async move {
            let answer = client.list_pools(options).await.map_err(|s| s.code())?;
            Ok::<_, Code>(answer.into_inner().pools.into_iter().map(|p| p.name).collect::<Vec<_>>().join(" "))
        }
    };
    assert_eq!(list(None, None, None).await.unwrap(), "a b");
    assert_eq!(list(Some("a"), None, None).await.unwrap(), "a");
    assert_eq!(list(Some("a"), Some(&b.uuid), None).await.unwrap(), "a", "the name goes first");
    assert_eq!(list(None, Some(&b.uuid), None).await.unwrap(), "b");
    assert_eq!(list(Some("x"), None, None).await.unwrap(), "");
    assert_eq!(list(None, Some("no uuid"), None).await.unwrap(), "");
    assert_eq!(list(None, None, Some(0)).await.unwrap(), "a b");
    assert_eq!(list(None, None, Some(1)).await.unwrap(), "");
    assert_eq!(list(None, None, Some(9)).await, Err(Code::InvalidArgument));
    d.stop().await;
}

#[tokio::test]
async fn a_disk_that_became_larger() {
    let dir = tempfile::tempdir().unwrap();
    let file = disk_file(dir.path(), "disk", 256);
    let d = Running::start(setup()).await;
    let pool = d.create_pool("tpool", &[&file]).await.unwrap();
    let (before, after) = d.grow_pool("tpool").await.unwrap();
    assert_eq!(
        (before.capacity, after.capacity),
        (pool.capacity, pool.capacity),
        "nothing to grow is no error"
    );
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(512 << 20).unwrap();
    let (before, after) = d.grow_pool("tpool").await.unwrap();
    assert_eq!(before.capacity, pool.capacity);
    assert!(after.capacity > pool.capacity + 128 * MIB, "{} {}", pool.capacity, after.capacity);
    assert_eq!(d.pools().await[0].capacity, after.capacity);
    assert_eq!(d.grow_pool("x").await.unwrap_err(), Code::NotFound);
    // Still so after an import.
    d.export_pool("tpool").await.unwrap();
    assert_eq!(d.import_pool("tpool", &[&file]).await.unwrap().capacity, after.capacity);
    // The disk of a pool grows, and does not shrink.
    d.create_pool("m", &["malloc:///m?size_mb=256"]).await.unwrap();
    assert_eq!(d.create("malloc:///m?size_mb=128&resize").await, Err(Code::Internal));
    d.create("malloc:///m?size_mb=512&resize").await.unwrap();
    let (before, after) = d.grow_pool("m").await.unwrap();
    assert!(after.capacity > before.capacity);
    d.stop().await;
}

#[tokio::test]
async fn a_device_that_is_there_already_stays_there() {
    let d = Running::start(setup()).await;
    d.create(DISK).await.unwrap();
    let pool = d.create_pool("tpool", &["bdev:///m"]).await.unwrap();
    d.destroy_pool("tpool", None).await.unwrap();
    assert!(!d.bdev("m").await.unwrap().claimed);
    assert_eq!(pool.disks, [d.bdev("m").await.unwrap().uri]);
    // One that is exported is no disk.
    let share = BdevShareRequest { name: "m".into(), protocol: 1, allowed_hosts: vec![] };
    d.client.bdev().share(share).await.unwrap();
    assert_eq!(d.create_pool("tpool", &["bdev:///m"]).await, Err(Code::InvalidArgument));
    d.stop().await;
}

#[tokio::test]
async fn pools_are_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (one, two) = (disk_file(dir.path(), "one", 256), disk_file(dir.path(), "two", 256));
    let d = Running::with_state(&state).await;
    let pool = d.create_pool("tpool", &[&one]).await.unwrap();
    d.create_pool("gone", &[&two]).await.unwrap();
    d.create_replica("r", &uuid(1), "tpool", 8 * MIB, false).await.unwrap();
    let hosts = ["nqn.2014-08.org.example:b", "nqn.2014-08.org.example:a"];
    let shared = d.share(&uuid(1), 1, &hosts).await.unwrap();
    d.export_pool("gone").await.unwrap();
    d.stop().await;

    let d = Running::with_state(&state).await;
    assert_eq!(d.daemon.failures(), [""; 0]);
    assert_eq!(d.pools().await.iter().map(|p| p.uuid.clone()).collect::<Vec<_>>(), [pool.uuid]);
    let back = d.replica("r").await.unwrap();
    assert_eq!((back.share, &back.allowed_hosts), (1, &shared.allowed_hosts));
    assert!(back.uri.starts_with("nvmf+tcp://") && back.uri.ends_with(&format!("?uuid={}", uuid(1))));
    d.stop().await;

    // A disk that is missing once is not forgotten.
    std::fs::rename(&one, dir.path().join("away")).unwrap();
    let d = Running::with_state(&state).await;
    assert_eq!(d.daemon.failures().len(), 1);
    assert!(d.pools().await.is_empty());
    d.stop().await;
    std::fs::rename(dir.path().join("away"), &one).unwrap();
    let d = Running::with_state(&state).await;
    assert_eq!(d.pools().await.len(), 1);
    d.destroy_pool("tpool", None).await.unwrap();
    d.stop().await;
    let d = Running::with_state(&state).await;
    assert_eq!((d.pools().await.len(), d.daemon.failures().len()), (0, 0));
    d.stop().await;
}

#[tokio::test]
async fn pools_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = disk_file(dir.path(), "disk", 256);
    let toml = format!(
        "[[pool]]\nname = \"tpool\"\ndisks = [\"{file}\"]\n[[pool.replica]]\nname = \"r\"\nsize = \"16MiB\"\n\
         thin = true\nshare = true\n"
    );
    let start = || Running::start(Setup { declared: declared(&toml), ..setup() });
    let d = start().await;
    assert_eq!(d.daemon.failures(), [""; 0]);
    let made = d.replica("r").await.unwrap();
    assert_eq!((made.size, made.thin, made.share, made.poolname.as_str()), (16 * MIB, true, 1, "tpool"));
    d.stop().await;
    let d = start().await;
    assert_eq!(d.daemon.failures(), [""; 0]);
    assert_eq!(d.replica("r").await.unwrap().uuid, made.uuid, "imported, not made anew");
    d.stop().await;
}

fn disk_file(dir: &Path, name: &str, mib: u64) -> String {
    let path = dir.join(name);
    std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A bug: a daemon that was killed left its disks in use for a moment, and the next one started without their pools.
#[tokio::test]
async fn a_disk_that_is_in_use_at_the_start_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (file, state) = (disk_file(dir.path(), "disk", 64), dir.path().join("state"));
    let d = Running::with_state(&state).await;
    d.create_pool("tpool", &[&file]).await.unwrap();
    d.stop().await;
    let user = aio::devices::create(&format!("aio://{file}").parse().unwrap()).unwrap();
    let leaves = tokio::task::spawn_blocking(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(user);
    });
    let d = Running::with_state(&state).await;
    leaves.await.unwrap();
    assert_eq!(d.daemon.failures(), [""; 0]);
    assert_eq!(d.pools().await.len(), 1);
    d.stop().await;
}
