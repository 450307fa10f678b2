//! What is told: sums of counters that the cores keep anyway. Nothing is done per I/O for it.

use aio::reactor::CoreHandle;
use nvmf::target::IoTotals;
use nvmf::target::core::{ConnectionInfo, TargetCoreStats};
use nvmf::target::snapshot::{ControllerSnapshot, NamespaceSnapshot, SubsystemSnapshot};
use rpc::mayastor::v1::NvmeControllerState;

use super::text::{Kind, Page, seconds};
use super::{nexuses, pools};
use crate::engine::Engine;
use crate::host::usage;
use crate::node::VERSION;
use crate::serve::target_cores;

/// The whole page.
pub(super) async fn page(engine: &Engine) -> String {
    let mut page = Page::default();
    process(&mut page, engine);
    cores(&mut page, engine.cores());
    let mut shares = Vec::new();
    for core in engine.cores() {
        if let Some(stats) = target_cores::stats(core).await {
            shares.push((core.id().to_string(), stats));
        }
    }
    connections(&mut page, &shares);
    let subsystems = engine.exports().target().subsystems();
    subsystem_gauges(&mut page, &subsystems);
    namespaces(&mut page, &subsystems);
    devices(&mut page, engine);
    let mut queues = Vec::new();
    for core in engine.cores() {
        queues.extend(target_cores::connections(core).await);
    }
    controllers(&mut page, &subsystems, &queues);
    remotes(&mut page, engine);
    pools::pools(&mut page, engine).await;
    nexuses::nexuses(&mut page, engine).await;
    page.finish()
}

fn process(page: &mut Page, engine: &Engine) {
    let node = engine.node();
    let labels = [("version", VERSION), ("node", node.name.as_str())];
    page.metric("keelson_info", Kind::Gauge, "This engine.").sample(&labels, 1);
    let name = "process_resident_memory_bytes";
    page.metric(name, Kind::Gauge, "Resident memory.").sample(&[], usage::resident_bytes());
}

fn cores(page: &mut Page, cores: &[CoreHandle]) {
    let stats: Vec<_> = cores.iter().map(|c| (c.id().to_string(), c.stats())).collect();
    let help = "Time of a core by what it did: busy, spinning (looked for work), asleep.";
    let mut metric = page.metric("keelson_core_seconds_total", Kind::Counter, help);
    for (core, s) in &stats {
        for (state, ns) in [("busy", s.busy_ns), ("spinning", s.spin_ns), ("asleep", s.sleep_ns)] {
            metric.sample(&[("core", core), ("state", state)], seconds(ns));
        }
    }
    type Read = fn(&aio::reactor::CoreStats) -> u64;
    let rows: [(&'static str, &'static str, Read); 6] = [
        ("keelson_core_turns_total", "Turns of a core.", |s| s.turns),
        ("keelson_core_busy_turns_total", "Turns that found work.", |s| s.busy_turns),
        ("keelson_core_sleeps_total", "Times that a core went to sleep.", |s| s.sleeps),
        ("keelson_core_jobs_total", "Jobs from the control side.", |s| s.jobs),
        ("keelson_core_task_polls_total", "Times that a task was run.", |s| s.task_polls),
        ("keelson_core_panics_total", "Panics that were contained: bugs.", |s| s.panics),
    ];
    for (name, help, read) in rows {
        let mut metric = page.metric(name, Kind::Counter, help);
        for (core, s) in &stats {
            metric.sample(&[("core", core)], read(s));
        }
    }
}

fn connections(page: &mut Page, shares: &[(String, TargetCoreStats)]) {
    let mut gauge = page.metric("keelson_target_connections", Kind::Gauge, "Connections of hosts.");
    shares.iter().for_each(|(core, s)| gauge.sample(&[("core", core)], s.connections));
    type Read = fn(&TargetCoreStats) -> u64;
    let rows: [(&'static str, &'static str, Read); 7] = [
        ("keelson_target_accepted_total", "Connections accepted.", |s| s.accepted),
        ("keelson_target_refused_total", "Connections closed because there were too many.", |s| s.refused),
        ("keelson_target_protocol_errors_total", "Connections that broke the protocol.", |s| {
            s.protocol_errors
        }),
        ("keelson_target_timeouts_total", "Connections that stalled.", |s| s.timeouts),
        ("keelson_target_received_bytes_total", "Bytes received.", |s| s.bytes_received),
        ("keelson_target_sent_bytes_total", "Bytes sent.", |s| s.bytes_sent),
        ("keelson_target_sends_total", "Gathered sends.", |s| s.sends),
    ];
    for (name, help, read) in rows {
        let mut metric = page.metric(name, Kind::Counter, help);
        shares.iter().for_each(|(core, s)| metric.sample(&[("core", core)], read(s)));
    }
}

fn subsystem_gauges(page: &mut Page, subsystems: &[SubsystemSnapshot]) {
    let help = "Controllers that hosts have made.";
    let mut metric = page.metric("keelson_subsystem_controllers", Kind::Gauge, help);
    for s in subsystems {
        metric.sample(&[("nqn", &s.nqn)], s.controllers.len());
    }
    let mut metric = page.metric("keelson_subsystem_namespaces", Kind::Gauge, "Namespaces.");
    for s in subsystems {
        metric.sample(&[("nqn", &s.nqn)], s.namespaces.len());
    }
    io_metrics(
        page,
        &SUBSYSTEM_IO,
        &subsystems.iter().map(|s| (vec![("nqn", s.nqn.clone())], s.io)).collect::<Vec<_>>(),
    );
}

fn namespaces(page: &mut Page, subsystems: &[SubsystemSnapshot]) {
    let labels = |s: &SubsystemSnapshot, n: &NamespaceSnapshot| {
        vec![("nqn", s.nqn.clone()), ("nsid", n.nsid.0.to_string()), ("device", n.device.clone())]
    };
    let rows: Vec<_> =
        subsystems.iter().flat_map(|s| s.namespaces.iter().map(move |n| (labels(s, n), n.io))).collect();
    io_metrics(page, &NAMESPACE_IO, &rows);
    // Keeping the exact sum would be one more store for each I/O.
    let help = "Time from a command's arrival to its completion. Counts are exact. The sum is an estimate: it takes \
        every command at three quarters of its bucket's upper bound, so an average made of it can be off by a \
        third (more below 1 us and above 33 s). Quantiles of the buckets say more.";
    let mut metric = page.metric("keelson_namespace_latency_seconds", Kind::Histogram, help);
    for s in subsystems {
        for n in &s.namespaces {
            metric.histogram_of_us(&with(&labels(s, n), None), &n.latency);
        }
    }
}

/// Names of the metrics of one kind of object.
struct IoNames {
    commands: &'static str,
    bytes: &'static str,
    errors: &'static str,
    media_errors: &'static str,
    busy: &'static str,
}

const SUBSYSTEM_IO: IoNames = IoNames {
    commands: "keelson_subsystem_commands_total",
    bytes: "keelson_subsystem_bytes_total",
    errors: "keelson_subsystem_errors_total",
    media_errors: "keelson_subsystem_media_errors_total",
    busy: "keelson_subsystem_busy_seconds_total",
};

const NAMESPACE_IO: IoNames = IoNames {
    commands: "keelson_namespace_commands_total",
    bytes: "keelson_namespace_bytes_total",
    errors: "keelson_namespace_errors_total",
    media_errors: "keelson_namespace_media_errors_total",
    busy: "keelson_namespace_busy_seconds_total",
};

type Labels = Vec<(&'static str, String)>;

fn io_metrics(page: &mut Page, names: &IoNames, rows: &[(Labels, IoTotals)]) {
    let mut metric = page.metric(names.commands, Kind::Counter, "Commands of hosts that completed.");
    for (labels, io) in rows {
        for (op, n) in
            [("read", io.read_commands), ("write", io.write_commands), ("other", io.other_commands)]
        {
            metric.sample(&with(labels, Some(op)), n);
        }
    }
    let mut metric = page.metric(names.bytes, Kind::Counter, "Bytes moved to and from hosts.");
    for (labels, io) in rows {
        for (op, n) in [("read", io.read_bytes), ("write", io.write_bytes)] {
            metric.sample(&with(labels, Some(op)), n);
        }
    }
    let mut metric = page.metric(names.errors, Kind::Counter, "Commands that completed with an error.");
    rows.iter().for_each(|(labels, io)| metric.sample(&with(labels, None), io.failed_commands));
    let mut metric = page.metric(names.media_errors, Kind::Counter, "Media errors among them.");
    rows.iter().for_each(|(labels, io)| metric.sample(&with(labels, None), io.media_errors));
    let mut metric = page.metric(names.busy, Kind::Counter, "Time with commands in flight.");
    rows.iter().for_each(|(labels, io)| metric.sample(&with(labels, None), seconds(io.busy_ns)));
}

/// The labels, and `op` where a metric tells operations apart.
fn with<'a>(labels: &'a Labels, op: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let own = labels.iter().map(|(name, value)| (*name, value.as_str()));
    own.chain(op.map(|op| ("op", op))).collect()
}

fn devices(page: &mut Page, engine: &Engine) {
    let help = "Size of a block device.";
    let mut metric = page.metric("keelson_device_size_bytes", Kind::Gauge, help);
    for entry in engine.registry().list() {
        let labels = [("device", entry.device.name()), ("driver", entry.device.driver())];
        metric.sample(&labels, entry.size_bytes());
    }
}

fn controllers(page: &mut Page, subsystems: &[SubsystemSnapshot], connections: &[ConnectionInfo]) {
    let labels = |s: &SubsystemSnapshot, c: &ControllerSnapshot| -> Labels {
        vec![("nqn", s.nqn.clone()), ("cntlid", c.cntlid.0.to_string()), ("host", c.hostnqn.clone())]
    };
    let all = || subsystems.iter().flat_map(|s| s.controllers.iter().map(move |c| (s, c)));
    let help = "I/O queues of a host's controller.";
    let mut metric = page.metric("keelson_controller_io_queues", Kind::Gauge, help);
    for (s, c) in all() {
        metric.sample(&with(&labels(s, c), None), c.io_queues);
    }
    let of = |s: &SubsystemSnapshot, c: &ControllerSnapshot, read: fn(&ConnectionInfo) -> u32| -> u32 {
        let mine = connections.iter().filter(|q| q.nqn == s.nqn && q.cntlid == c.cntlid && q.qid.0 > 0);
        mine.map(read).sum()
    };
    let help = "I/O commands of a host that were taken and are not answered.";
    let mut metric = page.metric("keelson_controller_in_flight", Kind::Gauge, help);
    for (s, c) in all() {
        metric.sample(&with(&labels(s, c), None), of(s, c, |q| q.in_flight));
    }
    let help = "Places for I/O commands of a host.";
    let mut metric = page.metric("keelson_controller_queue_entries", Kind::Gauge, help);
    for (s, c) in all() {
        metric.sample(&with(&labels(s, c), None), of(s, c, |q| q.entries));
    }
}

/// Disks of other hosts that this engine uses.
fn remotes(page: &mut Page, engine: &Engine) {
    let remotes: Vec<_> =
        engine.controllers().iter().map(|c| (c.name().to_owned(), c.describe(), c.stats())).collect();
    let mut metric = page.metric("keelson_remote_up", Kind::Gauge, "Whether a remote disk is connected.");
    for (name, remote, _) in &remotes {
        metric.sample(&[("device", name)], u8::from(remote.state == NvmeControllerState::Running as i32));
    }
    let mut metric = page.metric("keelson_remote_commands_total", Kind::Counter, "I/Os of a remote disk.");
    for (name, _, io) in &remotes {
        for (op, n) in [("read", io.num_read_ops), ("write", io.num_write_ops), ("unmap", io.num_unmap_ops)] {
            metric.sample(&[("device", name), ("op", op)], n);
        }
    }
    let mut metric = page.metric("keelson_remote_bytes_total", Kind::Counter, "Bytes of them.");
    for (name, _, io) in &remotes {
        for (op, n) in [("read", io.bytes_read), ("write", io.bytes_written), ("unmap", io.bytes_unmapped)] {
            metric.sample(&[("device", name), ("op", op)], n);
        }
    }
}
