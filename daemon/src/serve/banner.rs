//! The start-up message: where the daemon can be reached, what it runs on, and what is missing.

use std::io::{self, Write};

use aio::CoreId;
use aio::reactor::EngineKind;

use super::run::Daemon;
use crate::host::usage;
use crate::node::VERSION;

/// Writes it.
pub(super) fn write(
    out: &mut dyn Write,
    daemon: &Daemon,
    cores: &[CoreId],
    no_huge_pages: bool,
    notes: &[String],
) -> io::Result<()> {
    let node = daemon.engine().node();
    let mut line = |label: &str, text: String| writeln!(out, "  {label:<10} {text}");
    line("node", format!("{} (host NQN {})", node.name, node.hostnqn))?;
    line("gRPC", node.grpc.to_string())?;
    line("NVMe/TCP", node.nvmf.to_string())?;
    if let Some(addr) = daemon.metrics() {
        line("metrics", format!("http://{addr}/metrics"))?;
    }
    let cores: Vec<String> = cores.iter().map(CoreId::to_string).collect();
    line("cores", format!("{} of {}", cores.join(", "), available_cores()))?;
    line("waits in", engine_text(daemon.engine_kind()))?;
    line("memory", format!("{} MiB resident; {}", usage::resident_bytes() >> 20, huge_pages(no_huge_pages)))?;
    let devices = daemon.engine().registry().list().len();
    let subsystems = daemon.engine().exports().list().iter().filter(|e| e.created).count();
    line("serves", format!("{devices} devices, {subsystems} subsystems"))?;
    for failure in daemon.failures() {
        line("MISSING", failure.clone())?;
    }
    for note in notes {
        line("note", note.clone())?;
    }
    writeln!(out, "{VERSION} is ready.")
}

fn available_cores() -> String {
    std::thread::available_parallelism().map_or_else(|_| "unknown".to_owned(), |n| n.to_string())
}

fn engine_text(kind: EngineKind) -> String {
    match kind {
        EngineKind::IoUring => "io_uring".to_owned(),
        EngineKind::Epoll => {
            "epoll: io_uring is forbidden or too old here (kernel.io_uring_disabled, or a container's seccomp \
             profile), which costs speed"
                .to_owned()
        }
        EngineKind::None => "nothing: it polls".to_owned(),
    }
}

fn huge_pages(off: bool) -> String {
    if off {
        return "huge pages are left alone (--no-huge-pages)".to_owned();
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    match (field("HugePages_Free:"), field("Hugepagesize:")) {
        (Some(free), Some(size_kib)) if free > 0 => format!("{free} huge pages of {size_kib} KiB are free"),
        _ => "no huge pages, which is fine".to_owned(),
    }
}
