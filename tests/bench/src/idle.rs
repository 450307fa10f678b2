//! What Keelson costs when nothing happens: CPU, memory, and the first I/O after a rest.

use crate::served::Daemon;
use crate::wake;
use anyhow::{Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

/// Most CPU of one core that an idle daemon may use.
const MAX_CPU: f64 = 0.005;
/// Most resident memory with one exported device.
const MAX_RESIDENT_MIB: u64 = 64;
const IDLE: Duration = Duration::from_secs(10);

/// Prints the figures; returns what is above its limit.
pub(crate) fn run(keelson: &Path, cores: (usize, usize)) -> Result<Vec<String>> {
    let mut above = Vec::new();
    let resident = resident(keelson, cores.0)?;
    println!("resident, one exported device, no huge pages: {:.1} MiB", resident as f64 / f64::from(1 << 20));
    if resident > MAX_RESIDENT_MIB << 20 {
        above.push(format!("resident memory above {MAX_RESIDENT_MIB} MiB"));
    }
    let cpu = cpu(keelson, cores)?;
    println!("idle, three exported devices and a connected host: {:.3} % of a core", cpu * 100.0);
    if cpu > MAX_CPU {
        above.push(format!("idle CPU above {} %", MAX_CPU * 100.0));
    }
    above.extend(wake::run(keelson, cores)?);
    Ok(above)
}

fn resident(keelson: &Path, core: usize) -> Result<u64> {
    let daemon = Daemon::start(keelson, core, &["--no-huge-pages"])?;
    // A null device has no memory of its own to subtract.
    daemon.export("disk", "null:///disk?size_mb=1024")?;
    daemon.resident_bytes()
}

/// The share of a core that a daemon uses over [`IDLE`], with a second daemon connected to it as a host.
fn cpu(keelson: &Path, cores: (usize, usize)) -> Result<f64> {
    let daemon = Daemon::start(keelson, cores.0, &[])?;
    let uri = daemon.export("a", "malloc:///a?size_mb=16")?;
    daemon.export("b", "malloc:///b?size_mb=16")?;
    daemon.export("c", "null:///c?size_mb=16")?;
    let host = Daemon::start(keelson, cores.1, &[])?;
    host.command(&["bdev", "create", &uri])?;
    let connected = daemon.command(&["-q", "subsystem", "controllers"])?;
    ensure!(!connected.trim().is_empty(), "the host did not connect");
    let before = daemon.cpu()?;
    let start = Instant::now();
    std::thread::sleep(IDLE);
    let used = daemon.cpu()?.saturating_sub(before);
    Ok(used.as_secs_f64() / start.elapsed().as_secs_f64())
}
