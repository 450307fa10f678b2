//! The table: what a volume does beside what its pool's device does without it.

use super::Settings;
use super::counted::Counts;
use super::load::{Sample, Until, Work};
use super::rig::{Pooled, Rig, Scratch, ram};
use crate::table::median;
use aio::BlockDevice;
use anyhow::{Context, Result};
use lvs::Volume;
use lvs::info::CreateSnapshot;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// Runs of a cell.
const RUNS: usize = 5;
const GIB: u64 = 1 << 30;
/// What cells on a file write and read: its map takes a third of the cache.
const FILE_SPAN: u64 = 2 * GIB;
const RAM_SPAN: u64 = GIB / 2;
/// Size of the device that a pool is on. In memory so large that segments empty by themselves: how much the cleaner adds
/// is told by `pressure`.
const FILE_POOL: u64 = 2 * FILE_SPAN;
const RAM_POOL: u64 = 8 * RAM_SPAN;

/// What is good enough.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Goal {
    /// I/Os per second, as a share of the device's.
    Ratio(f64),
    /// CPU time that the store adds to an I/O.
    AddedNs(f64),
    None,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    name: &'static str,
    work: Work,
    goal: Goal,
    /// The baseline is the volume before a snapshot, not the device.
    snapshot: bool,
}

fn cells(ram: bool) -> Vec<Cell> {
    let span = if ram { RAM_SPAN } else { FILE_SPAN };
    // At depth 1 the device's own latency hides what the store does with the core meanwhile.
    let write = |ratio| if ram { Goal::AddedNs(1_000.0) } else { Goal::Ratio(ratio) };
    let read = if ram { Goal::AddedNs(500.0) } else { Goal::Ratio(1.0 / 1.15) };
    let cell = |name, work, goal| Cell { name, work, goal, snapshot: false };
    vec![
        cell("randwrite 4K QD1", Work::random(1, 0, span), write(1.0 / 1.3)),
        cell("randwrite 4K QD32", Work::random(32, 0, span), write(3.0)),
        cell("randwrite 4K QD128", Work::random(128, 0, span), write(3.0)),
        cell("randread 4K QD1", Work::random(1, 100, span), read),
        cell("randread 4K QD32", Work::random(32, 100, span), read),
        cell("randread 4K QD128", Work::random(128, 100, span), read),
        cell("70/30 4K QD32", Work::random(32, 70, span), Goal::None),
        cell("write 128K QD32", Work::sequential(0, span), Goal::None),
        cell("read 128K QD32", Work::sequential(100, span), Goal::None),
        Cell {
            snapshot: true,
            ..cell("after snapshot 4K QD32", Work::random(32, 0, span), Goal::Ratio(1.0 / 1.1))
        },
    ]
}

/// One run of both.
struct Run {
    base: Sample,
    store: Sample,
    device: Counts,
}

/// A pool, a volume in it, and a device like that of the pool.
struct Bed<'a> {
    rig: &'a Rig,
    raw: Arc<dyn BlockDevice>,
    pooled: Pooled,
    volume: Arc<Volume>,
}

pub(super) fn run(settings: &Settings<'_>) -> Result<Vec<String>> {
    let mut missed = Vec::new();
    let mut header = true;
    for (medium, is_ram) in [("file", false), ("malloc", true)] {
        let wanted = |cell: &Cell| settings.wants(&format!("lvs {medium} {}", cell.name));
        let wanted: Vec<Cell> = cells(is_ram).into_iter().filter(wanted).collect();
        if wanted.is_empty() {
            continue;
        }
        if core::mem::take(&mut header) {
            print_header();
        }
        let rig = Rig::new(settings.core)?;
        let (span, size) = if is_ram { (RAM_SPAN, RAM_POOL) } else { (FILE_SPAN, FILE_POOL) };
        let files = if is_ram {
            Vec::new()
        } else {
            vec![
                Scratch::sparse(&settings.scratch, "raw", span)?,
                Scratch::sparse(&settings.scratch, "pool", size)?,
            ]
        };
        let device = |at: usize| match files.get(at) {
            Some(file) => file.open(),
            None => ram(["raw", "pool"][at], [span, size][at]),
        };
        let (raw, below) = (device(0)?, device(1)?);
        // All of both, so that nothing is allocated below while it is measured.
        rig.fill(&raw, span).context("filling the device")?;
        rig.fill(&below, size).context("filling the pool's device")?;
        let pooled = rig.pool(below)?;
        let volume = rig.volume(&pooled.pool, "volume", span)?;
        rig.fill(&as_device(&volume), span).context("filling the volume")?;
        let bed = Bed { rig: &rig, raw, pooled, volume };
        for cell in wanted {
            let name = format!("lvs {medium} {}", cell.name);
            let runs = bed.measure(&cell, settings.time).with_context(|| format!("measuring `{name}`"))?;
            if let Err(why) = print(&name, &cell, &runs) {
                missed.push(format!("{name}: {why}"));
            }
        }
        rig.run(bed.pooled.pool.export())?.context("exporting the pool")?;
    }
    Ok(missed)
}

pub(super) fn as_device(volume: &Arc<Volume>) -> Arc<dyn BlockDevice> {
    volume.clone()
}

impl Bed<'_> {
    fn measure(&self, cell: &Cell, time: Duration) -> Result<Vec<Run>> {
        let volume = as_device(&self.volume);
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let base = if cell.snapshot { &volume } else { &self.raw };
            let base = self.rig.load(base, cell.work, Until::Time(time))?;
            let snapshot = cell.snapshot.then(Uuid::new_v4);
            if let Some(uuid) = snapshot {
                let spec = snapshot_spec(uuid);
                self.rig.run(self.pooled.pool.create_snapshot(self.volume.uuid(), spec))??;
            }
            let before = self.pooled.counted.counts();
            // Not longer than most writes are first ones.
            let time = if cell.snapshot { time.min(Duration::from_millis(300)) } else { time };
            let store = self.pooled.load(self.rig, &volume, cell.work, Until::Time(time))?;
            runs.push(Run { base, store, device: self.pooled.counted.counts().since(before) });
            if let Some(uuid) = snapshot {
                self.forget(uuid)?;
            }
        }
        Ok(runs)
    }

    /// Deletes a snapshot and waits until what only it held is given back.
    fn forget(&self, uuid: Uuid) -> Result<()> {
        self.rig.run(self.pooled.pool.destroy_snapshot(uuid))??;
        for _ in 0..1_000 {
            let info = self.rig.run(self.pooled.pool.info())??;
            if info.used_bytes <= self.volume.size_bytes() {
                return Ok(());
            }
            self.rig.idle(Duration::from_millis(10));
        }
        anyhow::bail!("what a deleted snapshot held does not come back")
    }
}

pub(super) fn snapshot_spec(uuid: Uuid) -> CreateSnapshot {
    CreateSnapshot {
        name: uuid.to_string(),
        uuid,
        txn_id: "bench".into(),
        entity_id: String::new(),
        created: SystemTime::now(),
    }
}

fn print_header() {
    println!(
        "{:34} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9} {:>7} {:>6} {:>11} {:>8}  {:>6} {:>6} {:>6}  goal",
        "cell",
        "IOPS",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max ms",
        "base",
        "p99.9",
        "ratio",
        "(range)",
        "+ns/IO",
        "rd/IO",
        "wr/IO",
        "B/B"
    );
}

fn print(name: &str, cell: &Cell, runs: &[Run]) -> Result<(), String> {
    let of = |figure: &dyn Fn(&Run) -> f64| median(runs.iter().map(figure).collect());
    let ratios: Vec<f64> = runs.iter().map(|run| run.store.iops / run.base.iops).collect();
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(0.0, f64::max);
    let ratio = median(ratios);
    let added = of(&|r| 1e9 / r.store.iops - 1e9 / r.base.iops);
    let per_io = |r: &Run, count: u64| count as f64 / (r.store.ios as f64).max(1.0);
    let bytes = f64::from(cell.work.io_bytes);
    let (goal, met) = match cell.goal {
        Goal::Ratio(least) => (format!("{least:.2}"), ratio >= least),
        Goal::AddedNs(most) => (format!("{most:.0} ns"), added <= most),
        Goal::None => ("-".into(), true),
    };
    let verdict = if met { "ok" } else { "MISSED" };
    println!(
        "{name:34} {:>9.0} {:>8.1} {:>8.1} {:>8.1} {:>8.2} {:>9.0} {:>7.1} {ratio:>6.2} {:>11} {added:>8.0}  \
         {:>6.2} {:>6.2} {:>6.2}  {goal} {verdict}",
        of(&|r| r.store.iops),
        of(&|r| r.store.p50_us),
        of(&|r| r.store.p99_us),
        of(&|r| r.store.p999_us),
        of(&|r| r.store.max_us / 1e3),
        of(&|r| r.base.iops),
        of(&|r| r.base.p999_us),
        format!("{low:.2}-{high:.2}"),
        of(&|r| per_io(r, r.device.reads)),
        of(&|r| per_io(r, r.device.writes)),
        of(&|r| per_io(r, r.device.written_bytes) / bytes),
    );
    if met { Ok(()) } else { Err(format!("ratio {ratio:.2}, {added:.0} ns added; the goal is {goal}")) }
}
