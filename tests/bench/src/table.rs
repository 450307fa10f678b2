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
/// How far apart the bare loop before and behind a run of Keelson may be. Within a phase it stays within 1.2; memory
/// that is three times as slow for a second, as virtual machines have it, shows here and not in the round trip.
const MAX_DRIFT: f64 = 1.3;

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

/// Prints the table; returns the cells that do not reach their gate, and why.
pub(crate) fn run(settings: &Settings<'_>) -> Result<Vec<String>> {
    let mut below = Vec::new();
    let spdk = settings.spdk.map(|binary| Spdk::start(binary, settings.cores.0, DEVICE_MIB)).transpose()?;
    let mut measured = 0;
    println!(
        "{:30} {:>9} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>6} {:>11} {:>6} {:>5} {:>3}  {:>4}",
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
        "n",
        "gate"
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
        measured += 1;
        if let Err(why) = print(cell, &runs, calls) {
            below.push(format!("{}: {why}", cell.name()));
        }
    }
    println!("{} of {measured} cells reach their gate", measured - below.len());
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
            // Half of the limit before and half behind, with Keelson in the middle.
            let bare_before = bare::iops(cell, settings.cores, settings.time / 2)?;
            let before = daemon.cpu()?;
            let keelson = served::perf(settings.keelson, uri, cell, settings.cores.1, settings.time)?;
            let cpu = daemon.cpu()?.saturating_sub(before);
            let bare_behind = bare::iops(cell, settings.cores, settings.time / 2)?;
            let spdk = spdk.map(|s| s.iops(settings, cell)).transpose()?;
            let target_ns = cpu.as_nanos() as f64 / (keelson.iops * settings.time.as_secs_f64()).max(1.0);
            Ok((keelson, target_ns, (bare_before, bare_behind), spdk))
        })?;
        let (Some(phase), (keelson, target_ns, bare, spdk)) = (phase, run) else { continue };
        if drifts(bare) {
            continue;
        }
        runs.push(Run { phase, keelson, target_ns, bare: f64::midpoint(bare.0, bare.1), spdk });
        if runs.iter().filter(|run| run.phase == phase).count() == RUNS {
            break;
        }
    }
    let fast = runs.iter().filter(|run| run.phase == Phase::Fast).count();
    let phase = if 2 * fast >= runs.len() { Phase::Fast } else { Phase::Slow };
    runs.retain(|run| run.phase == phase);
    Ok(runs)
}

/// Whether the machine was another one behind a run than before it.
fn drifts((before, behind): (f64, f64)) -> bool {
    before.max(behind) > MAX_DRIFT * before.min(behind)
}

/// Prints a row; the error says why the cell does not reach its gate.
fn print(cell: &Cell, runs: &[Run], calls: Option<f64>) -> Result<(), String> {
    if runs.is_empty() {
        println!("{:30} the machine changed during each of {MAX_TRIES} runs", cell.name());
        return Err(format!("the machine changed during each of {MAX_TRIES} runs"));
    }
    let of = |figure: &dyn Fn(&Run) -> f64| median(runs.iter().map(figure).collect());
    let ratios: Vec<f64> = runs.iter().map(|run| run.keelson.iops / run.bare).collect();
    let ratio = median(ratios.clone());
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(0.0, f64::max);
    let spdk: Vec<f64> = runs.iter().filter_map(|run| Some(run.keelson.iops / run.spdk?)).collect();
    let spdk = if spdk.is_empty() { "-".into() } else { format!("{:.2}", median(spdk)) };
    let calls = calls.map_or_else(|| "-".into(), |calls| format!("{calls:.2}"));
    let verdict = judge(cell, ratio, runs.len());
    println!(
        "{:30} {:>9.0} {:>8.1} {:>8.1} {:>9.0} {:>9.0} {:>9} {:>9.0} {:>6.2} {:>11} {:>6} {:>5} {:>3}  {:.2} {}",
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
        cell.gate,
        if verdict.is_ok() { "ok" } else { "MISSED" },
    );
    verdict
}

/// Whether the median ratio of `runs` runs reaches the gate.
fn judge(cell: &Cell, ratio: f64, runs: usize) -> Result<(), String> {
    if runs < RUNS {
        return Err(format!("{runs} of {RUNS} runs in one phase, after {MAX_TRIES} tries"));
    }
    if ratio < cell.gate {
        return Err(format!("ratio {ratio:.3} is below {}", cell.gate));
    }
    Ok(())
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
    fn a_gate_wants_the_ratio_and_the_runs() {
        let cell = &cell::all()[0];
        assert!(judge(cell, cell.gate, RUNS).is_ok());
        assert!(judge(cell, cell.gate - 0.001, RUNS).is_err());
        assert!(judge(cell, 2.0, RUNS - 1).is_err(), "fewer runs are no median of five");
    }

    #[test]
    fn a_limit_that_moves_is_no_limit() {
        assert!(!drifts((10.0, 12.9)) && !drifts((12.9, 10.0)));
        assert!(drifts((10.0, 13.1)) && drifts((13.1, 10.0)));
        assert!(drifts((0.0, 1.0)));
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.0);
        assert_eq!(median(vec![7.0]), 7.0);
    }
}
