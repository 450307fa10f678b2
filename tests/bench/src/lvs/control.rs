//! How long control operations take: create, snapshot, clone, and import after a kill.

use super::Settings;
use super::cells::{as_device, snapshot_spec};
use super::load::{Load, Until, Work};
use super::rig::{Pooled, Rig, Scratch, open_file};
use crate::table::median;
use anyhow::{Context, Result, ensure};
use lvs::Volume;
use lvs::info::CreateVolume;
use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// First argument of the process that is killed.
pub(crate) const ARGUMENT: &str = "lvs-fill-until-killed";
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// What the killed process wrote: three million blocks.
const LIVE_BYTES: u64 = 12 * GIB;
/// Snapshots and clones that are timed.
const TIMES: usize = 21;
const CREATE_GOAL: Duration = Duration::from_secs(1);
const IMPORT_GOAL: Duration = Duration::from_millis(1_500);
/// And one flush of the device.
const SNAPSHOT_GOAL: Duration = Duration::from_millis(5);

pub(super) fn run(settings: &Settings<'_>) -> Result<Vec<String>> {
    let mut missed = Vec::new();
    if settings.wants("lvs snapshot") {
        missed.extend(snapshots(settings)?);
    }
    for tib in [1, 10] {
        let name = format!("lvs create {tib} TiB");
        if settings.wants(&name) {
            missed.extend(create(settings, &name, tib * TIB)?);
        }
        let name = format!("lvs import {tib} TiB");
        if settings.wants(&name) {
            missed.extend(import(settings, &name, tib * TIB).with_context(|| format!("measuring `{name}`"))?);
        }
    }
    Ok(missed)
}

fn judge(name: &str, took: Duration, goal: Duration) -> Option<String> {
    (took > goal).then(|| format!("{name}: {took:.1?}, goal {goal:.1?}"))
}

fn create(settings: &Settings<'_>, name: &str, size_bytes: u64) -> Result<Option<String>> {
    let mut took = Vec::new();
    for _ in 0..5 {
        let rig = Rig::new(settings.core)?;
        let file = Scratch::sparse(&settings.scratch, "create", size_bytes)?;
        let device = file.open()?;
        let start = Instant::now();
        let pooled = rig.pool(device)?;
        took.push(start.elapsed().as_secs_f64());
        rig.run(pooled.pool.export())??;
    }
    let took = Duration::from_secs_f64(median(took));
    println!("{name}: {took:.1?}, goal {CREATE_GOAL:.1?}");
    Ok(judge(name, took, CREATE_GOAL))
}

/// Snapshots and clones of a volume that is written at depth 32 meanwhile.
fn snapshots(settings: &Settings<'_>) -> Result<Vec<String>> {
    let rig = Rig::new(settings.core)?;
    let file = Scratch::sparse(&settings.scratch, "snapshots", 4 * GIB)?;
    let device = file.open()?;
    rig.fill(&device, 4 * GIB)?;
    let flush = median_of(TIMES, || {
        let one = Work { depth: 1, ..Work::random(1, 0, 4 * GIB) };
        rig.load(&device, one, Until::Ios(256))?;
        let start = Instant::now();
        rig.run(flush(&device))??;
        Ok(start.elapsed())
    })?;
    let pooled = rig.pool(device)?;
    let volume = rig.volume(&pooled.pool, "volume", GIB)?;
    rig.fill(&as_device(&volume), GIB)?;
    let (mut snapshots, mut clones) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let load = rig.begin(
            &as_device(&volume),
            Work::random(32, 0, GIB),
            Until::Time(Duration::from_millis(100)),
        )?;
        rig.idle(Duration::from_millis(30));
        let (snapshot, clone) = time_both(&rig, &pooled, &volume)?;
        snapshots.push(snapshot.as_secs_f64());
        clones.push(clone.as_secs_f64());
        rig.end(&load)?;
    }
    let mut missed = Vec::new();
    for (name, times) in [("lvs snapshot", snapshots), ("lvs clone", clones)] {
        let most = times.iter().copied().fold(0.0, f64::max);
        let took = Duration::from_secs_f64(median(times));
        let goal = SNAPSHOT_GOAL + flush;
        println!(
            "{name} under load: {took:.1?}, at most {:.1} ms; a flush alone {flush:.1?}; goal {goal:.1?}",
            most * 1e3
        );
        missed.extend(judge(name, took, goal));
    }
    rig.run(pooled.pool.export())??;
    Ok(missed)
}

async fn flush(device: &Arc<dyn aio::BlockDevice>) -> Result<()> {
    let descriptor = aio::Descriptor::open(device.clone()).await.context("opening the device")?;
    descriptor.flush().await.context("flushing the device")
}

fn median_of(times: usize, mut one: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let all = (0..times).map(|_| Ok(one()?.as_secs_f64())).collect::<Result<Vec<_>>>()?;
    Ok(Duration::from_secs_f64(median(all)))
}

/// A snapshot, and a clone of it; both stay.
fn time_both(rig: &Rig, pooled: &Pooled, volume: &Arc<Volume>) -> Result<(Duration, Duration)> {
    let uuid = Uuid::new_v4();
    let start = Instant::now();
    rig.run(pooled.pool.create_snapshot(aio::BlockDevice::uuid(&**volume), snapshot_spec(uuid)))??;
    let snapshot = start.elapsed();
    let name = Uuid::new_v4().to_string();
    let spec =
        CreateVolume { name, uuid: None, size_bytes: volume.size_bytes(), thin: true, entity_id: None };
    let start = Instant::now();
    rig.run(pooled.pool.create_clone(uuid, spec))??;
    Ok((snapshot, start.elapsed()))
}

/// A process fills a pool and is killed under load; this one imports the pool, and reads all over its volume.
fn import(settings: &Settings<'_>, name: &str, size_bytes: u64) -> Result<Option<String>> {
    let file = Scratch::sparse(&settings.scratch, "import", size_bytes)?;
    let own = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(own)
        .arg(ARGUMENT)
        .arg(&file.0)
        .arg(settings.core.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting this program")?;
    let mut line = String::new();
    let told = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
    std::thread::sleep(Duration::from_millis(1_500));
    let alive = child.try_wait().context("looking after the process that fills")?.is_none();
    child.kill().context("killing the process that fills")?;
    child.wait().context("waiting for the end of a killed process")?;
    told.transpose().context("hearing of the process that fills")?;
    ensure!(alive && line.trim() == "filled", "the process that fills ended early");

    let rig = Rig::new(settings.core)?;
    let resident = resident_bytes()?;
    let device = file.open_soon()?;
    let start = Instant::now();
    let pooled = rig.import(device)?;
    let took = start.elapsed();
    let read = pooled.counted.counts();
    println!(
        "{name} after a kill, {} blocks live: {took:.1?}, {} reads of {} MiB; goal {IMPORT_GOAL:.1?}",
        LIVE_BYTES / 4096,
        read.reads,
        read.read_bytes >> 20
    );
    beyond_cache(&rig, &pooled, settings.time)?;
    let grown = resident_bytes()?.saturating_sub(resident);
    println!("{name}: {} MiB more resident than before", grown >> 20);
    rig.run(pooled.pool.export())??;
    Ok(judge(name, took, IMPORT_GOAL))
}

/// Reads everywhere in a volume whose map is larger than the cache.
fn beyond_cache(rig: &Rig, pooled: &Pooled, time: Duration) -> Result<()> {
    let volumes = rig.run(pooled.pool.volumes())??;
    let volume = volumes.first().and_then(|v| pooled.pool.volume(v.uuid)).context("the volume is gone")?;
    let pages = rig.run(pooled.pool.info())??.map_pages;
    for depth in [1, 32] {
        let work = Work::random(depth, 100, LIVE_BYTES);
        // The cache fills first.
        rig.load(&as_device(&volume), work, Until::Ios(20_000))?;
        let before = pooled.counted.counts();
        let sample = rig.load(&as_device(&volume), work, Until::Time(time))?;
        let reads = pooled.counted.counts().since(before).reads as f64 / sample.ios as f64;
        println!(
            "lvs beyond the map cache, {pages} pages, QD{depth}: {:.0} IOPS, p50 {:.0} us, p99 {:.0} us, {reads:.3} device \
             reads for each; the formula says {:.3}",
            sample.iops,
            sample.p50_us,
            sample.p99_us,
            1.0 + (1.0 - 8_192.0 / pages as f64).max(0.0)
        );
    }
    Ok(())
}

fn resident_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    Ok(kib.context("/proc/self/status has no VmRSS")? * 1024)
}

/// Creates a pool on a file, fills a volume, says so, and goes on writing everywhere until it is killed.
pub(crate) fn fill_until_killed(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let (file, core) = (arguments.next().context("no file")?, arguments.next().context("no core")?);
    let core = core.parse().context("the number of a core")?;
    crate::pin::pin(core);
    let rig = Rig::new(core)?;
    let pooled = rig.pool(open_file(Path::new(&file))?)?;
    let volume = as_device(&rig.volume(&pooled.pool, "volume", LIVE_BYTES)?);
    rig.fill(&volume, LIVE_BYTES)?;
    println!("filled");
    let work = Work::random(32, 0, LIVE_BYTES);
    let load: Rc<RefCell<Load>> = rig.begin(&volume, work, Until::Time(Duration::from_secs(60)))?;
    rig.end(&load)?;
    Ok(())
}
