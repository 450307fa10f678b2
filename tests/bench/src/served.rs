//! Keelson as users run it: `keelson serve` on one core, `keelson perf` on another, over loopback TCP.

use crate::cell::Cell;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the daemon may take to answer.
const START_LIMIT: Duration = Duration::from_secs(15);

/// A running daemon; it ends when this is dropped.
pub(crate) struct Daemon {
    child: Child,
    keelson: PathBuf,
    grpc: String,
    port: u16,
}

impl Daemon {
    /// Starts one on `core`, on ports that are free now.
    pub(crate) fn start(keelson: &Path, core: usize, flags: &[&str]) -> Result<Self> {
        let (grpc_port, port) = (free_port()?, free_port()?);
        let child = Command::new(keelson)
            .args(["serve", "-N", "bench", "-l", &core.to_string()])
            .args(["--grpc-port", &grpc_port.to_string(), "--nvmf-port", &port.to_string()])
            .args(flags)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", keelson.display()))?;
        let daemon =
            Self { child, keelson: keelson.into(), grpc: format!("http://127.0.0.1:{grpc_port}"), port };
        let start = Instant::now();
        while daemon.command(&["-q", "bdev", "list"]).is_err() {
            ensure!(start.elapsed() < START_LIMIT, "the daemon does not answer on {}", daemon.grpc);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    /// Runs a command of the CLI against it.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.keelson)
            .args(["-b", &self.grpc])
            .args(arguments)
            .output()
            .with_context(|| format!("starting {}", self.keelson.display()))?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`keelson {}`: {}", arguments.join(" "), problem.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes a device and shares it; returns the URI for initiators.
    pub(crate) fn export(&self, name: &str, uri: &str) -> Result<String> {
        self.command(&["bdev", "create", uri])?;
        self.command(&["bdev", "share", name])?;
        Ok(format!("nvmf+tcp://127.0.0.1:{}/{}", self.port, nqn(name)))
    }

    /// CPU time of all its threads since it started.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let mut total_ns = 0;
        for task in std::fs::read_dir(&tasks).with_context(|| format!("listing {tasks}"))? {
            let path = task.with_context(|| format!("listing {tasks}"))?.path().join("schedstat");
            // A thread may end between the listing and here.
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            total_ns += text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(total_ns))
    }

    /// Its resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("{path} has no VmRSS"))? * 1024)
    }

    /// Where its target listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It drains upon TERM. Nothing is lost if it is gone already.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// The NQN of a shared device.
pub(crate) fn nqn(device: &str) -> String {
    format!("nqn.2019-05.io.openebs:{device}")
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr().context("looking for a free port")?.port())
}

/// What one run of the load generator says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) iops: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// CPU time per I/O of the load generator, spinning included.
    pub(crate) host_ns: f64,
}

/// Drives one cell against `uri` from `core`.
pub(crate) fn perf(keelson: &Path, uri: &str, cell: &Cell, core: usize, time: Duration) -> Result<Sample> {
    let depth = cell.depth / cell.connections;
    let output = Command::new(keelson)
        .args(["-o", "json", "perf", uri, "--rw", cell.pattern(), "--bs", &cell.io_bytes.to_string()])
        .args(["--qd", &depth.to_string(), "--queues", &cell.connections.to_string()])
        .args(["--time", &format!("{}", time.as_secs_f64()), "-l", &core.to_string()])
        .output()
        .with_context(|| format!("starting {}", keelson.display()))?;
    if !output.status.success() {
        bail!("`keelson perf {uri}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let result: Value =
        serde_json::from_slice(&output.stdout).context("reading the result of `keelson perf`")?;
    ensure!(result["errors"] == 0, "`keelson perf {uri}`: {} errors", result["errors"]);
    let figures = if result["read"].is_object() { &result["read"] } else { &result["write"] };
    let number =
        |value: &Value| value.as_f64().context("a figure is missing in the result of `keelson perf`");
    Ok(Sample {
        iops: number(&figures["iops"])?,
        p50_us: number(&figures["p50_us"])?,
        p99_us: number(&figures["p99_us"])?,
        host_ns: number(&result["cpu_ns_per_io"])?,
    })
}
