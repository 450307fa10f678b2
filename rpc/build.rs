//! Compiles the protobuf definitions with a compiler in pure Rust: building needs no `protoc`.

use std::path::PathBuf;
use std::{env, error, fs};

use prost::Message;

/// Relative to the include folders; these are also the names that reflection shows.
const FILES: [&str; 12] = [
    "common.proto",
    "registration.proto",
    "bdev.proto",
    "host.proto",
    "pool.proto",
    "replica.proto",
    "nexus.proto",
    "snapshot.proto",
    "stats.proto",
    "test.proto",
    "keelson/v1/pool.proto",
    "keelson/v1/subsystem.proto",
];
const INCLUDES: [&str; 2] = ["proto/mayastor", "proto"];

/// Points in time and durations: JSON has them as text.
const TIMES: [&str; 11] = [
    "mayastor.v1.Child.fault_timestamp",
    "mayastor.v1.RebuildStatsResponse.start_time",
    "mayastor.v1.RebuildHistoryRecord.start_time",
    "mayastor.v1.RebuildHistoryRecord.end_time",
    "mayastor.v1.ListRebuildHistoryRequest.since_end_time",
    "mayastor.v1.ListRebuildHistoryResponse.end_time",
    "mayastor.v1.SnapshotInfo.timestamp",
    "mayastor.v1.NexusCreateSnapshotResponse.snapshot_timestamp",
    "mayastor.v1.WipeReplicaResponse.since",
    "keelson.v1.Scrub.started",
    "keelson.v1.Scrub.ended",
];

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, INCLUDES)?;

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let mut config = tonic_prost_build::configure();
    for field in TIMES {
        config = config.field_attribute(field, "#[serde(serialize_with = \"crate::output::time\")]");
    }
    config
        .message_attribute(".", "#[derive(serde::Serialize)]")
        .enum_attribute(".", "#[derive(serde::Serialize)]")
        .compile_fds(descriptors)?;
    // Not ours to serve or to show: only called.
    let etcd = protox::compile(["kv.proto"], ["proto/etcd"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(etcd)?;
    Ok(())
}
