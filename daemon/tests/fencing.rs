//! Nexuses of one volume on two daemons: the newer one takes the reservations of the replicas, and the older one ends.
//! Reservations persist where the replicas' daemon has a folder for them.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::nexuses::{NexusCalls, wish};
use common::pools::{MIB, PoolCalls, uuid};
use common::{Host, Running, job, setup};
use keelson::perf::{Outcome, Pattern};
use keelson::serve::Setup;
use rpc::mayastor::v1::{CreateNexusRequest, NexusNvmePreemption, NvmeReservation};
use tonic::Code;

const ONLINE: i32 = 1;
const SHUTDOWN: i32 = 5;
const SIZE: u64 = 24 * MIB;

fn writes() -> keelson::perf::Job {
    keelson::perf::Job { read_percent: 0, verify: false, ..job(Pattern::RandRw, 3) }
}

/// As the control plane asks for it: the key is the low half of the nexus's uuid.
fn fenced(id: u128, key: u64, children: &[&str]) -> CreateNexusRequest {
    CreateNexusRequest {
        resv_key: key,
        resv_type: Some(NvmeReservation::ExclusiveAccess.into()),
        preempt_policy: NexusNvmePreemption::Holder.into(),
        ..wish(&uuid(id), SIZE, children)
    }
}

fn refused(done: &Outcome) -> bool {
    done.errors > 0 && done.write.bytes == 0
}

/// A child URI for a node with this identifier: the daemons of a test are one process, which is one host.
fn seen_by(uri: &str, node: u128) -> String {
    format!("{uri}&hostid={}", uuid(node))
}

#[tokio::test]
async fn h06_the_newer_nexus_ends_the_older_one() {
    let ptpl = tempfile::tempdir().unwrap();
    let replicas = Running::start(Setup { ptpl: Some(ptpl.path().to_owned()), ..setup() }).await;
    replicas.create_pool("p", &["malloc:///m?size_mb=128"]).await.unwrap();
    let mut uris = Vec::new();
    for n in 1..=2 {
        replicas.create_replica(&format!("r{n}"), &uuid(n), "p", 32 * MIB, true).await.unwrap();
        uris.push(replicas.share(&uuid(n), 1, &[]).await.unwrap().uri);
    }
    let (first, second) = (Running::start(setup()).await, Running::start(setup()).await);
    let children = |node| uris.iter().map(|uri| seen_by(uri, node)).collect::<Vec<_>>();
    let (ours, theirs) = (children(101), children(102));
    let list: Vec<&str> = ours.iter().map(String::as_str).collect();
    first.create_nexus(fenced(9, 9, &list)).await.unwrap();
    assert_eq!(std::fs::read_dir(ptpl.path()).unwrap().count(), 2, "both replicas keep the reservation");

    // A nexus that does not preempt is refused, and leaves the other one alone.
    let list: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let polite =
        CreateNexusRequest { preempt_policy: NexusNvmePreemption::ArgKey.into(), ..fenced(10, 10, &list) };
    let status = second.create_nexus(polite).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("could not be reserved"), "{}", status.message());

    let host = Host::new();
    let published = first.publish(&uuid(9), &[]).await.unwrap();
    let old = host.connect(&published.device_uri).await.unwrap();
    assert!(host.load(&old, &writes()).await.write.bytes > 0);

    second.create_nexus(fenced(11, 11, &list)).await.unwrap();
    assert!(refused(&host.load(&old, &writes()).await), "the older one acknowledges nothing");
    let mut state = 0;
    for _ in 0..200 {
        state = first.nexus(&uuid(9)).await.unwrap().state;
        if state == SHUTDOWN {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(state, SHUTDOWN);
    let published = second.publish(&uuid(11), &[]).await.unwrap();
    let new = host.connect(&published.device_uri).await.unwrap();
    let done = host.load(&new, &job(Pattern::RandRw, 4)).await;
    assert_eq!((done.errors, done.verified.damaged), (0, 0), "{:?}", done.first_error);
    assert_eq!(second.nexus(&uuid(11)).await.unwrap().state, ONLINE);

    // Destroyed replicas leave no reservations behind.
    drop((old, new));
    first.destroy_nexus(&uuid(9)).await.unwrap();
    second.destroy_nexus(&uuid(11)).await.unwrap();
    assert_eq!(std::fs::read_dir(ptpl.path()).unwrap().count(), 2, "a reservation outlives its nexus");
    for n in 1..=2 {
        replicas.destroy_replica(&uuid(n)).await.unwrap();
    }
    for _ in 0..200 {
        if std::fs::read_dir(ptpl.path()).unwrap().count() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(std::fs::read_dir(ptpl.path()).unwrap().count(), 0);
    first.stop().await;
    second.stop().await;
    replicas.stop().await;
}
