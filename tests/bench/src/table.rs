//! The table: Keelson, the bare loop beside it in the same phase, and SPDK when there is one.

use crate::cell::{self, Cell};
use crate::phase::{self, Phase};
use crate::served::{self, Daemon, Sample};
use crate::spdk::Spdk;
use crate::{bare, syscalls};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// Runs of a cell that must be of one phase.
const RUNS: usize = 5;
/// How often a cell is tried before it is told with fewer.
const MAX_TRIES: usize = 15;
/// Size of the malloc device.
const DEVICE_MIB: usize = 256;

/// One try of a cell, all of it in one phase.
struct Run {
    phase: Phase,
    keelson: Sample,
    target_ns: f64,
    bare: f64,
    spdk: Option<f64>,
}

/// How the table is made.
pub(crate) struct Settings<'a> {
    pub(crate) keelson: &'a Path,
    pub(crate) spdk: Option<&'a Path>,
    /// Target and host.
    pub(crate) cores: (usize, usize),
    pub(crate) time: Duration,
    /// Only cells whose name contains this.
    pub(crate) only: Option<&'a str>,
}

/// Prints the table; returns the names of cells that are below their gate.
pub(crate) fn run(settings: &Settings<'_>) -> Result<Vec<String>> {
    let mut below = Vec::new();
    let spdk = settings.spdk.map(|binary| Spdk::start(binary, settings.cores.0, DEVICE_MIB)).transpose()?;
    println!(
        "{:30} {:>9} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>6} {:>11} {:>6} {:>5} {:>3}",
        "cell",
        "IOPS",
        "p50 us",
        "p99 us",
        "target ns",
        "host ns",
        "sysc/IO",
        "bare",
        "ratio",
        "(range)",
        "SPDK x",
        "phase",
        "n"
    );
    for cell in cell::all().iter().filter(|c| settings.only.is_none_or(|only| c.name().contains(only))) {
        let daemon = Daemon::start(settings.keelson, settings.cores.0, &[])?;
        let uri = match cell.device {
            "null" => format!("null:///disk?size_mb={DEVICE_MIB}"),
            _ => format!("malloc:///disk?size_mb={DEVICE_MIB}"),
        };
        let uri = daemon.export("disk", &uri)?;
        if cell.device == "malloc" {
            fill(settings, &uri)?;
        }
        let runs = tries(settings, cell, &daemon, &uri, spdk.as_ref())
            .with_context(|| format!("measuring `{}`", cell.name()))?;
        let calls = syscalls::per_io(&daemon, settings, cell, &uri)?;
        if !print(cell, &runs, calls) {
            below.push(cell.name());
        }
    }
    Ok(below)
}

/// Memory that was never written is one page of zeroes, which no cache misses.
fn fill(settings: &Settings<'_>, uri: &str) -> Result<()> {
    let all = Cell { io_bytes: 128 << 10, depth: 32, connections: 1, ..cell::all()[9] };
    served::perf(settings.keelson, uri, &all, settings.cores.1, Duration::from_secs(2)).map(drop)
}

/// Runs the parties in turn until one phase has enough.
fn tries(
    settings: &Settings<'_>,
    cell: &Cell,
    daemon: &Daemon,
    uri: &str,
    spdk: Option<&Spdk>,
) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for _ in 0..MAX_TRIES {
        let (run, phase) = phase::within(settings.cores, || {
            let before = daemon.cpu()?;
            let keelson = served::perf(settings.keelson, uri, cell, settings.cores.1, settings.time)?;
            let cpu = daemon.cpu()?.saturating_sub(before);
            let bare = bare::iops(cell, settings.cores, settings.time)?;
            let spdk = spdk.map(|s| s.iops(settings, cell)).transpose()?;
            let target_ns = cpu.as_nanos() as f64 / (keelson.iops * settings.time.as_secs_f64()).max(1.0);
            Ok((keelson, target_ns, bare, spdk))
        })?;
        let (Some(phase), (keelson, target_ns, bare, spdk)) = (phase, run) else { continue };
        runs.push(Run { phase, keelson, target_ns, bare, spdk });
        if runs.iter().filter(|run| run.phase == phase).count() == RUNS {
            break;
        }
    }
    let fast = runs.iter().filter(|run| run.phase == Phase::Fast).count();
    let phase = if 2 * fast >= runs.len() { Phase::Fast } else { Phase::Slow };
    runs.retain(|run| run.phase == phase);
    Ok(runs)
}

/// Prints a row; returns whether the median ratio reaches the gate.
fn print(cell: &Cell, runs: &[Run], calls: Option<f64>) -> bool {
    if runs.is_empty() {
        println!("{:30} the machine changed its phase during each of {MAX_TRIES} runs", cell.name());
        return false;
    }
    let of = |figure: &dyn Fn(&Run) -> f64| median(runs.iter().map(figure).collect());
    let ratios: Vec<f64> = runs.iter().map(|run| run.keelson.iops / run.bare).collect();
    let ratio = median(ratios.clone());
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(0.0, f64::max);
    let spdk: Vec<f64> = runs.iter().filter_map(|run| Some(run.keelson.iops / run.spdk?)).collect();
    let spdk = if spdk.is_empty() { "-".into() } else { format!("{:.2}", median(spdk)) };
    let calls = calls.map_or_else(|| "-".into(), |calls| format!("{calls:.2}"));
    println!(
        "{:30} {:>9.0} {:>8.1} {:>8.1} {:>9.0} {:>9.0} {:>9} {:>9.0} {:>6.2} {:>11} {:>6} {:>5} {:>3}{}",
        cell.name(),
        of(&|r| r.keelson.iops),
        of(&|r| r.keelson.p50_us),
        of(&|r| r.keelson.p99_us),
        of(&|r| r.target_ns),
        of(&|r| r.keelson.host_ns),
        calls,
        of(&|r| r.bare),
        ratio,
        format!("{low:.2}-{high:.2}"),
        spdk,
        runs[0].phase.name(),
        runs.len(),
        if ratio < cell.gate { format!("  below {}", cell.gate) } else { String::new() },
    );
    ratio >= cell.gate
}

/// The middle value; of an even number the lower of the two, so that it is one that was seen.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.0);
        assert_eq!(median(vec![7.0]), 7.0);
    }
}
