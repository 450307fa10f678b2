//! Pools of a daemon with two cores: each pool lives on one of them, and hosts reach its replicas on both.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aio::CoreId;
use common::pools::{MIB, PoolCalls, uuid};
use common::{Host, Running, job, setup};
use keelson::perf::{Job, Pattern, Watch, run};
use keelson::serve::{Setup, target_cores};
use tonic::Code;

const NVMF: i32 = 1;

async fn on_two_cores() -> Running {
    Running::start(Setup { cores: vec![CoreId(0), CoreId(1)], ..setup() }).await
}

/// I/O connections of each core.
async fn connections(d: &Running) -> Vec<usize> {
    let mut counts = Vec::new();
    for core in d.daemon.engine().cores() {
        counts.push(target_cores::connections(core).await.iter().filter(|c| c.qid.0 > 0).count());
    }
    counts
}

/// The core on which a pool lives.
fn home(d: &Running, pool: &str) -> CoreId {
    let pools = d.daemon.engine().pools().list();
    pools.iter().find(|e| e.pool.name() == pool).unwrap().pool.home().id()
}

#[tokio::test]
async fn replicas_are_served_on_every_core() {
    let d = on_two_cores().await;
    let host = Host::new();
    let mut both_at_once = false;
    for (n, block) in [(1, 512), (2, 4096)] {
        let pool = format!("pool{n}");
        d.create_pool(&pool, &[&format!("malloc:///d{n}?size_mb=256&blk_size={block}")]).await.unwrap();
        d.create_replica(&format!("r{n}"), &uuid(n), &pool, 32 * MIB, true).await.unwrap();
        let uri = d.share(&uuid(n), NVMF, &[]).await.unwrap().uri;
        let device = host.connect(&uri).await.unwrap();
        // The system deals connections out by a hash of their ports: twelve on one side are one in two thousand.
        let job = Job { queues: 12, depth: 16, time: Duration::from_millis(400), ..job(Pattern::RandRw, 7) };
        let (devices, cores, watch) = ([device.clone()], [host.core().clone()], Watch::default());
        let load = {
            let (job, watch) = (job.clone(), watch.clone());
            tokio::spawn(async move { run::run(&devices, &cores, &job, &watch).await })
        };
        while watch.sum().0 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        both_at_once |= connections(&d).await.iter().all(|n| *n > 0);
        let outcome = load.await.unwrap().unwrap().outcome;
        assert!(outcome.is_clean() && outcome.ios() > 0, "{outcome:?}");

        // What came through one core is there through another, and in a clone of it.
        let read = Job { pattern: Pattern::Read, read_percent: 100, verify: false, ..job };
        assert!(host.load(&device, &read).await.is_clean());
        device.remove();
    }
    assert!(both_at_once, "twelve connections, and a core had none, twice");
    let homes: BTreeSet<_> = ["pool1", "pool2"].map(|p| home(&d, p)).into();
    assert_eq!(homes.len(), 2, "each pool has a core of its own");

    // The next goes where there is room.
    let first = home(&d, "pool1");
    assert_eq!(d.destroy_pool("pool1", None).await, Ok(()));
    d.create_pool("pool3", &["malloc:///d3?size_mb=64"]).await.unwrap();
    assert_eq!(home(&d, "pool3"), first);
    d.stop().await;
}

/// Pools that are exported, and a daemon that ends, under load from both cores: all is over soon.
#[tokio::test]
async fn pools_go_under_load_from_every_core() {
    let d = on_two_cores().await;
    let host = Host::new();
    let mut loads = Vec::new();
    for n in 1..=2 {
        let pool = format!("pool{n}");
        d.create_pool(&pool, &[&format!("malloc:///d{n}?size_mb=128")]).await.unwrap();
        d.create_replica(&format!("r{n}"), &uuid(n), &pool, 16 * MIB, true).await.unwrap();
        let device = host.connect(&d.share(&uuid(n), NVMF, &[]).await.unwrap().uri).await.unwrap();
        let job = Job {
            queues: 8,
            depth: 32,
            time: Duration::from_secs(30),
            verify: false,
            ..job(Pattern::RandWrite, 1)
        };
        let (core, watch) = (host.core().clone(), Watch::default());
        let running = watch.clone();
        loads.push(tokio::spawn(async move { run::run(&[device], &[core], &job, &running).await }));
        while watch.sum().0 < 1_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let begin = Instant::now();
    assert_eq!(d.export_pool("pool1").await, Ok(()));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(d.export_pool("pool1").await, Err(Code::NotFound));
    let begin = Instant::now();
    d.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    for load in loads {
        let ended = tokio::time::timeout(Duration::from_secs(60), load).await.unwrap().unwrap();
        assert!(ended.is_err() || ended.is_ok_and(|r| r.outcome.errors > 0), "the host noticed");
    }
}
