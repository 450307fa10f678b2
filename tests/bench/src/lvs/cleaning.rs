//! What it costs to move a block: with no snapshots, with 10,000 of them, and in clones of clones, 100 deep.
//!
//! A second disk joins and the first one is emptied, which moves all that is live, as the cleaner does, at its fastest. The
//! CPU time of the thread counts, since emptying leaves the disks half of the time to others.

use super::Settings;
use super::cells::{as_device, snapshot_spec};
use super::cores::cpu_time;
use super::counted::{Counted, Counts};
use super::load::{Until, Work, random};
use super::rig::{Pooled, Rig, ram};
use crate::table::median;
use aio::{BlockDevice, Descriptor, DmaPool, Memory};
use anyhow::{Context, Result, ensure};
use lvs::Volume;
use lvs::info::CreateVolume;
use std::sync::Arc;
use uuid::Uuid;

/// Size of each disk.
const DISK_BYTES: u64 = 512 << 20;
/// Size of the volume, and of each clone.
const VOLUME_BYTES: u64 = 128 << 20;
/// Blocks that are written between two snapshots, so that each holds some alone; and to each clone.
const BETWEEN: u64 = 4;
const OF_CLONE: u64 = 400;
const SNAPSHOTS: u64 = 10_000;
const CLONES: u64 = 100;
/// Runs of each; the middle one counts.
const RUNS: usize = 3;
/// Times what it costs without snapshots.
const GOAL: f64 = 2.0;

/// What moving everything took.
struct Moved {
    blocks: u64,
    cpu_ns: f64,
    device: Counts,
}

pub(super) fn run(settings: &Settings<'_>) -> Result<Vec<String>> {
    if !settings.wants("lvs cleaning") {
        return Ok(Vec::new());
    }
    let mut missed = Vec::new();
    let mut base = None;
    for (what, prepare) in [
        ("no snapshots", written_again as fn(&Rig, &Pooled, &Arc<Volume>) -> Result<()>),
        ("10,000 snapshots", with_snapshots),
        ("clones 100 deep", with_clones),
    ] {
        let runs = (0..RUNS).map(|_| empty_a_disk(settings, prepare)).collect::<Result<Vec<_>>>();
        let runs = runs.with_context(|| format!("measuring `lvs cleaning`, {what}"))?;
        let per_block =
            |of: &dyn Fn(&Moved) -> f64| median(runs.iter().map(|r| of(r) / r.blocks as f64).collect());
        let ns = per_block(&|r| r.cpu_ns);
        let times = ns / *base.get_or_insert(ns);
        println!(
            "lvs cleaning, {what}: {ns:.0} ns of CPU a block ({} blocks), {times:.2} times; {:.3} device reads and {:.2} blocks \
             written for each; goal {GOAL:.1} {}",
            runs[0].blocks,
            per_block(&|r| r.device.reads as f64),
            per_block(&|r| r.device.written_bytes as f64 / 4096.0),
            if times <= GOAL { "ok" } else { "MISSED" }
        );
        if times > GOAL {
            missed.push(format!(
                "lvs cleaning, {what}: {times:.2} times what it costs without, goal {GOAL:.1}"
            ));
        }
    }
    Ok(missed)
}

/// A pool with a full volume, prepared, then moved to another disk.
fn empty_a_disk(
    settings: &Settings<'_>,
    prepare: fn(&Rig, &Pooled, &Arc<Volume>) -> Result<()>,
) -> Result<Moved> {
    let rig = Rig::new(settings.core)?;
    let pooled = rig.pool(ram("first", DISK_BYTES)?)?;
    let volume = rig.volume(&pooled.pool, "volume", VOLUME_BYTES)?;
    rig.fill(&as_device(&volume), VOLUME_BYTES)?;
    prepare(&rig, &pooled, &volume)?;
    rig.run(pooled.pool.checkpoint())??;
    let second = Counted::new(ram("second", DISK_BYTES)?);
    rig.run(pooled.pool.add_disk(second.clone(), true))??;
    let before = (rig.run(pooled.pool.info())??, pooled.counted.counts(), second.counts(), cpu_time());
    let first = rig.run(pooled.pool.disks())??;
    let first = first.first().context("the pool has no disk")?;
    rig.run(pooled.pool.remove_disk(first.name.clone()))?.context("emptying the first disk")?;
    let cpu_ns = cpu_time() - before.3;
    let info = rig.run(pooled.pool.info())??;
    ensure!(info.fault.is_none(), "the pool failed: {:?}", info.fault);
    let blocks = (info.written.moved_bytes - before.0.written.moved_bytes) / 4096;
    let (a, b) = (pooled.counted.counts().since(before.1), second.counts().since(before.2));
    let device = Counts {
        reads: a.reads + b.reads,
        written_bytes: a.written_bytes + b.written_bytes,
        ..Counts::default()
    };
    rig.run(pooled.pool.export())??;
    Ok(Moved { blocks, cpu_ns, device })
}

fn written_again(rig: &Rig, pooled: &Pooled, volume: &Arc<Volume>) -> Result<()> {
    let work = Work::random(BETWEEN as u32, 0, VOLUME_BYTES);
    pooled.load(rig, &as_device(volume), work, Until::Ios(SNAPSHOTS * BETWEEN)).map(drop)
}

fn with_snapshots(rig: &Rig, pooled: &Pooled, volume: &Arc<Volume>) -> Result<()> {
    let descriptor = rig.run(Descriptor::open(as_device(volume)))?.context("opening the volume")?;
    let mut buf = DmaPool::new(&Memory::process(), 4096, 1)?.alloc().context("memory for I/Os")?;
    let mut seed = 1;
    for _ in 0..SNAPSHOTS {
        for _ in 0..BETWEEN {
            let at = random(&mut seed) % (VOLUME_BYTES / 4096) * 4096;
            let (written, back) = rig.run(descriptor.write_at(at, 4096, buf))?;
            written.context("writing to the volume")?;
            buf = back;
        }
        rig.run(pooled.pool.create_snapshot(volume.uuid(), snapshot_spec(Uuid::new_v4())))??;
    }
    rig.run(descriptor.close())
}

fn with_clones(rig: &Rig, pooled: &Pooled, volume: &Arc<Volume>) -> Result<()> {
    let mut newest = volume.clone();
    for _ in 0..CLONES {
        let uuid = Uuid::new_v4();
        rig.run(pooled.pool.create_snapshot(newest.uuid(), snapshot_spec(uuid)))??;
        let name = Uuid::new_v4().to_string();
        let size_bytes = VOLUME_BYTES;
        let spec = CreateVolume { name, uuid: None, size_bytes, thin: true, entity_id: None };
        newest = rig.run(pooled.pool.create_clone(uuid, spec))??;
        let work = Work::random(BETWEEN as u32, 0, VOLUME_BYTES);
        pooled.load(rig, &as_device(&newest), work, Until::Ios(OF_CLONE))?;
    }
    Ok(())
}
