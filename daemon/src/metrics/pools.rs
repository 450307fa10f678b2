//! Metrics of pools and replicas.

use lvs::info::{IoStats, PoolInfo, ScrubReport, ScrubState};

use super::text::{Kind, Page};
use crate::engine::Engine;
use crate::pools::FoundReplica;

/// One block of metrics for pools, one for replicas. A pool that is closed meanwhile is left out.
pub(super) async fn pools(page: &mut Page, engine: &Engine) {
    let mut infos = Vec::new();
    let mut scrubs = Vec::new();
    for entry in engine.pools().list() {
        if let Ok(info) = entry.pool.info().await {
            infos.push((info, entry.pool.io_stats()));
        }
        if let Ok(report) = entry.pool.scrub_report().await {
            scrubs.push((entry.pool.name().to_owned(), report));
        }
    }
    pool_gauges(page, &infos);
    disk_errors(page, &infos);
    scrub_gauges(page, &scrubs);
    let io: Vec<_> = infos.iter().map(|(info, io)| (vec![("pool", info.name.as_str())], *io)).collect();
    counters(page, ["keelson_pool_commands_total", "keelson_pool_bytes_total"], &io);
    replicas(page, &engine.replicas().await.unwrap_or_default());
}

fn pool_gauges(page: &mut Page, infos: &[(PoolInfo, IoStats)]) {
    type Read = fn(&PoolInfo) -> u64;
    let rows: [(&'static str, &'static str, Read); 8] = [
        ("keelson_pool_up", "Whether a pool takes writes.", |p| {
            (p.fault.is_none() && p.read_only.is_none()).into()
        }),
        ("keelson_pool_capacity_bytes", "What replicas can hold.", |p| p.capacity_bytes),
        ("keelson_pool_used_bytes", "What replicas and snapshots hold.", |p| p.used_bytes),
        ("keelson_pool_committed_bytes", "Sum of the sizes of the replicas.", |p| p.committed_bytes),
        ("keelson_pool_disk_bytes", "The disks of a pool together.", |p| p.raw_bytes),
        ("keelson_pool_segments", "Segments of a pool.", |p| p.segments.0.into()),
        ("keelson_pool_free_segments", "Those that nothing is in.", |p| p.segments.1.into()),
        ("keelson_pool_map_pages", "Pages of the map in use.", |p| p.map_pages),
    ];
    for (name, help, read) in rows {
        let mut metric = page.metric(name, Kind::Gauge, help);
        for (info, _) in infos {
            metric.sample(&[("pool", &info.name)], read(info));
        }
    }
}

fn disk_errors(page: &mut Page, infos: &[(PoolInfo, IoStats)]) {
    let help = "Reads that a disk failed, blocks with a wrong checksum, map pages with either.";
    let mut metric = page.metric("keelson_pool_disk_errors_total", Kind::Counter, help);
    for (info, _) in infos {
        let e = &info.errors;
        for (kind, n) in [("read", e.reads), ("checksum", e.checksums), ("map", e.map_pages)] {
            metric.sample(&[("pool", info.name.as_str()), ("kind", kind)], n);
        }
    }
}

fn scrub_gauges(page: &mut Page, scrubs: &[(String, ScrubReport)]) {
    type Read = fn(&ScrubReport) -> u64;
    let ended = |r: &ScrubReport| {
        let ended = r.ended.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        ended.map_or(0, |since| since.as_secs())
    };
    let rows: [(&'static str, &'static str, Read); 4] = [
        ("keelson_pool_scrub_running", "Whether a pool is being scrubbed.", |r| {
            (r.state == ScrubState::Running).into()
        }),
        (
            "keelson_pool_scrub_end_seconds",
            "When the last scrub ended, 0 if none did since the import.",
            ended,
        ),
        ("keelson_pool_scrub_checked_bytes", "Data that this or the last scrub looked at.", |r| r.data_bytes),
        ("keelson_pool_scrub_repaired", "What it wrote anew from a good copy.", |r| r.repaired),
    ];
    for (name, help, read) in rows {
        let mut metric = page.metric(name, Kind::Gauge, help);
        for (pool, report) in scrubs {
            metric.sample(&[("pool", pool.as_str())], read(report));
        }
    }
    let help = "Blocks, map pages and copies that it found wrong or unreadable.";
    let mut metric = page.metric("keelson_pool_scrub_errors", Kind::Gauge, help);
    for (pool, r) in scrubs {
        for (kind, n) in [("checksum", r.wrong_checksums), ("read", r.unreadable)] {
            metric.sample(&[("pool", pool.as_str()), ("kind", kind)], n);
        }
    }
}

fn replicas(page: &mut Page, replicas: &[FoundReplica]) {
    fn labels(r: &FoundReplica) -> Vec<(&'static str, &str)> {
        vec![("pool", r.entry.pool.name()), ("replica", &r.info.name)]
    }
    type Read = fn(&FoundReplica) -> u64;
    let rows: [(&'static str, &'static str, Read); 3] = [
        ("keelson_replica_size_bytes", "Size of a replica.", |r| r.info.size_bytes),
        ("keelson_replica_allocated_bytes", "What it holds itself.", |r| r.info.allocated_bytes),
        ("keelson_replica_snapshots_bytes", "What its snapshots hold.", |r| r.info.snapshots_bytes),
    ];
    for (name, help, read) in rows {
        let mut metric = page.metric(name, Kind::Gauge, help);
        replicas.iter().for_each(|r| metric.sample(&labels(r), read(r)));
    }
    let io = |r: &FoundReplica| r.entry.pool.volume_io_stats(r.info.uuid);
    let io: Vec<_> = replicas.iter().filter_map(|r| Some((labels(r), io(r)?))).collect();
    counters(page, ["keelson_replica_commands_total", "keelson_replica_bytes_total"], &io);
}

/// Commands and bytes, by operation.
fn counters(page: &mut Page, names: [&'static str; 2], rows: &[(Vec<(&'static str, &str)>, IoStats)]) {
    let helps = ["I/Os that completed.", "Bytes of them."];
    let reads: [fn(&IoStats) -> [u64; 3]; 2] =
        [|io| [io.reads, io.writes, io.unmaps], |io| [io.read_bytes, io.written_bytes, io.unmapped_bytes]];
    for ((name, help), read) in names.into_iter().zip(helps).zip(reads) {
        let mut metric = page.metric(name, Kind::Counter, help);
        for (labels, io) in rows {
            for (op, n) in ["read", "write", "unmap"].into_iter().zip(read(io)) {
                let labels: Vec<_> = labels.iter().copied().chain([("op", op)]).collect();
                metric.sample(&labels, n);
            }
        }
    }
}
