//! Scrubs over loopback: `keelson.v1.PoolRpc` StartScrub, StopScrub, GetScrub.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use common::pools::{MIB, PoolCalls, uuid};
use common::{Host, Running, job};
use keelson::perf::{Job, Pattern};
use rpc::keelson::v1 as own;
use rpc::keelson::v1::{HarmKind, ScrubState};
use tonic::Code;

async fn start(d: &Running, pool: &str, rate_bytes_per_s: u64) -> Result<own::Scrub, Code> {
    let request = own::StartScrubRequest { pool: pool.into(), rate_bytes_per_s };
    d.client.own_pool().start_scrub(request).await.map(|a| a.into_inner()).map_err(|s| s.code())
}

async fn stop(d: &Running, pool: &str) -> Result<own::Scrub, Code> {
    let request = own::StopScrubRequest { pool: pool.into() };
    d.client.own_pool().stop_scrub(request).await.map(|a| a.into_inner()).map_err(|s| s.code())
}

async fn get(d: &Running, pool: &str) -> Result<own::Scrub, Code> {
    let request = own::GetScrubRequest { pool: pool.into() };
    d.client.own_pool().get_scrub(request).await.map(|a| a.into_inner()).map_err(|s| s.code())
}

/// A whole scrub.
async fn scrub(d: &Running) -> own::Scrub {
    let begun = start(d, "tpool", 0).await.unwrap();
    assert_eq!(begun.state(), ScrubState::Running);
    for _ in 0..1200 {
        let scrub = get(d, "tpool").await.unwrap();
        if scrub.state() != ScrubState::Running {
            assert_eq!((scrub.state(), scrub.failure.as_str()), (ScrubState::Finished, ""));
            return scrub;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no end: {:?}", get(d, "tpool").await);
}

/// Flips a bit in each block of the file that begins with these bytes, behind the superblock area. How many.
fn spoil(disk: &Path, wanted: &[u8]) -> u32 {
    let file = std::fs::File::options().read(true).write(true).open(disk).unwrap();
    let mut block = [0; 4096];
    let mut spoilt = 0;
    let blocks = file.metadata().unwrap().len() / 4096;
    for at in (256..blocks).map(|block| block * 4096) {
        file.read_exact_at(&mut block, at).unwrap();
        if block.starts_with(wanted) {
            file.write_all_at(&[block[4000] ^ 4], at + 4000).unwrap();
            spoilt += 1;
        }
    }
    file.sync_all().unwrap();
    spoilt
}

#[tokio::test]
async fn a_pool_under_load_is_scrubbed_and_what_is_lost_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(128 << 20).unwrap();
    let d = Running::with_state(&dir.path().join("state")).await;
    let path = disk.to_str().unwrap();
    let pool = d.create_pool("tpool", &[path]).await.unwrap();
    assert_eq!(get(&d, "tpool").await.unwrap().state(), ScrubState::Never);
    d.create_replica("r", &uuid(1), "tpool", 16 * MIB, true).await.unwrap();
    let shared = d.share(&uuid(1), 1, &[]).await.unwrap();
    let host = Host::new();
    let device = host.connect(&shared.uri).await.unwrap();
    let load = Job { time: Duration::from_millis(1500), ..job(Pattern::RandRw, 1) };
    let scrubs = async {
        for _ in 0..3 {
            let scrub = scrub(&d).await;
            assert_eq!((scrub.wrong_checksums, scrub.unreadable, scrub.repaired), (0, 0, 0), "{scrub:?}");
            assert_eq!((scrub.superblocks, &scrub.harmed[..]), (4, &[][..]));
        }
    };
    let (outcome, ()) = tokio::join!(host.load(&device, &load), scrubs);
    assert!(outcome.is_clean() && outcome.verified.blocks > 0, "{:?}", outcome.verified);
    device.remove();
    // By uuid, too; one at a time; one that runs is stopped, and stopping none is no error.
    let slow = start(&d, &pool.uuid, 4096).await.unwrap();
    assert_eq!(
        (slow.state(), slow.rate_bytes_per_s, slow.pool.as_str()),
        (ScrubState::Running, 4096, "tpool")
    );
    assert_eq!(start(&d, "tpool", 0).await.map(|_| ()), Err(Code::AlreadyExists));
    for _ in 0..2 {
        let stopped = stop(&d, "tpool").await.unwrap();
        assert_eq!(stopped.state(), ScrubState::Stopped);
        assert!(stopped.ended.is_some() && stopped.data_bytes < stopped.data_bytes_in_all);
    }
    for nowhere in ["nowhere", ""] {
        assert_eq!(start(&d, nowhere, 0).await.map(|_| ()), Err(Code::NotFound));
        assert_eq!(stop(&d, nowhere).await.map(|_| ()), Err(Code::NotFound));
        assert_eq!(get(&d, nowhere).await.map(|_| ()), Err(Code::NotFound));
    }
    // Leaves of the map: what is not in memory is lost, after an import.
    d.export_pool("tpool").await.unwrap();
    d.import_pool("tpool", &[path]).await.unwrap();
    assert_eq!(get(&d, "tpool").await.unwrap().state(), ScrubState::Never, "it is not kept");
    assert!(spoil(&disk, b"KSmp\x01\x00") > 0);
    let found = scrub(&d).await;
    assert!(found.wrong_checksums > 0, "{found:?}");
    let harm = &found.harmed[0];
    assert_eq!((harm.name.as_str(), harm.uuid.clone(), harm.kind()), ("r", uuid(1), HarmKind::Map));
    assert!(!harm.is_snapshot && harm.len_bytes >= 4096);
    d.stop().await;
}
