//! Nexuses, their children and rebuilds.

use nexus::ChildState;
use nexus::stats::{IoStats, OpStats};

use super::text::{Kind, Page, seconds};
use crate::engine::Engine;

/// What there is to be told of one nexus.
struct Row {
    name: String,
    size_bytes: u64,
    /// Healthy, out of sync, away.
    children: [usize; 3],
    rebuilds: usize,
    repaired_blocks: u64,
    io: IoStats,
}

pub(super) async fn nexuses(page: &mut Page, engine: &Engine) {
    let mut rows = Vec::new();
    for entry in engine.nexuses().list() {
        // One that was destroyed meanwhile is left out.
        let Ok(info) = engine.nexus_info(&entry).await else { continue };
        let mut children = [0; 3];
        for (_, child) in &info.children {
            let at = match child.as_ref().map(|c| c.state) {
                Some(ChildState::Online) => 0,
                Some(ChildState::OutOfSync) => 1,
                _ => 2,
            };
            children[at] += 1;
        }
        let rebuilt = |c: &Option<nexus::ChildInfo>| c.as_ref().is_some_and(|c| c.rebuild_progress.is_some());
        let mirror = entry.mirror.as_ref();
        rows.push(Row {
            name: entry.wish.name,
            size_bytes: info.size_bytes,
            children,
            rebuilds: info.children.iter().filter(|(_, c)| rebuilt(c)).count(),
            repaired_blocks: mirror.map_or(0, nexus::Nexus::repaired_blocks),
            io: mirror.map(nexus::Nexus::io_stats).unwrap_or_default(),
        });
    }
    gauges(page, &rows);
    operations(page, &rows);
}

fn gauges(page: &mut Page, rows: &[Row]) {
    let mut metric = page.metric("keelson_nexus_size_bytes", Kind::Gauge, "Size that was asked for.");
    rows.iter().for_each(|r| metric.sample(&[("nexus", &r.name)], r.size_bytes));
    let help = "Children by how they fare: healthy, out_of_sync (being rebuilt, or to be), away.";
    let mut metric = page.metric("keelson_nexus_children", Kind::Gauge, help);
    for r in rows {
        for (state, n) in ["healthy", "out_of_sync", "away"].into_iter().zip(r.children) {
            metric.sample(&[("nexus", &r.name), ("state", state)], n);
        }
    }
    let mut metric = page.metric("keelson_nexus_rebuilds", Kind::Gauge, "Rebuilds under way.");
    rows.iter().for_each(|r| metric.sample(&[("nexus", &r.name)], r.rebuilds));
    let help = "Blocks of children that could not be read and were written anew from another child.";
    let mut metric = page.metric("keelson_nexus_repaired_blocks_total", Kind::Counter, help);
    rows.iter().for_each(|r| metric.sample(&[("nexus", &r.name)], r.repaired_blocks));
}

fn operations(page: &mut Page, rows: &[Row]) {
    let kinds = |io: &IoStats| [("read", io.reads), ("write", io.writes), ("unmap", io.unmaps)];
    type Read = fn(&OpStats) -> u64;
    let counters: [(&'static str, &'static str, Read); 2] = [
        ("keelson_nexus_commands_total", "I/Os that completed well.", |o| o.ops),
        ("keelson_nexus_bytes_total", "Bytes of them.", |o| o.bytes),
    ];
    for (name, help, read) in counters {
        let mut metric = page.metric(name, Kind::Counter, help);
        for r in rows {
            for (op, stats) in kinds(&r.io) {
                metric.sample(&[("nexus", &r.name), ("op", op)], read(&stats));
            }
        }
    }
    let help = "Sum of their times.";
    let mut metric = page.metric("keelson_nexus_seconds_total", Kind::Counter, help);
    for r in rows {
        for (op, stats) in kinds(&r.io) {
            metric.sample(&[("nexus", &r.name), ("op", op)], seconds(stats.latency_ns));
        }
    }
}
