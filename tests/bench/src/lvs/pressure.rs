//! Steady states of a pool that is nearly full: what cleaning costs. And reading in order what was written at random.

use super::Settings;
use super::cells::as_device;
use super::load::{Until, Work};
use super::rig::{Pooled, Rig, Scratch};
use aio::BlockDevice;
use anyhow::{Context, Result};
use std::sync::Arc;

/// Size of the pool's file: so small that free space is where random overwrites leave it within seconds.
const POOL_BYTES: u64 = 256 << 20;
/// Bytes that may be written for each of the volume, at most.
const MOST: f64 = 6.0;
/// How full, in percent of the visible capacity, and the depth.
const CELLS: [(u64, u32); 4] = [(70, 32), (90, 32), (90, 4), (90, 1)];
/// What is read in order after it was written at random.
const SEQUENTIAL_BYTES: u64 = 128 << 20;

pub(super) fn run(settings: &Settings<'_>) -> Result<Vec<String>> {
    let mut missed = Vec::new();
    for (percent, depth) in CELLS {
        for (what, reads) in [("randwrite", 0), ("70/30", 70)] {
            let name = format!("lvs full {percent}% {what} 4K QD{depth}");
            // Mixed only as others have it.
            if settings.wants(&name) && (reads == 0 || depth == 32) {
                let work = Work { depth, read_percent: reads, ..Work::random(depth, reads, 0) };
                let met =
                    full(settings, &name, percent, work).with_context(|| format!("measuring `{name}`"))?;
                missed.extend(met.err().map(|why| format!("{name}: {why}")));
            }
        }
    }
    let name = "lvs read 128K QD32 after a random fill";
    if settings.wants(name) {
        sequential(settings, name).with_context(|| format!("measuring `{name}`"))?;
    }
    Ok(missed)
}

/// A pool on a file, and what the file does at random.
fn pool(settings: &Settings<'_>, rig: &Rig, bytes: u64, raw: Work) -> Result<(Scratch, Pooled, f64)> {
    let file = Scratch::sparse(&settings.scratch, "full", bytes)?;
    let device = file.open()?;
    rig.fill(&device, bytes)?;
    let raw = rig.load(&device, Work { span_bytes: bytes, ..raw }, Until::Time(settings.time))?;
    let pooled = rig.pool(device)?;
    Ok((file, pooled, raw.iops))
}

/// Random overwrites of a volume that takes `percent` of what the pool shows.
fn full(settings: &Settings<'_>, name: &str, percent: u64, work: Work) -> Result<Result<(), String>> {
    let rig = Rig::new(settings.core)?;
    let (_file, pooled, raw) = pool(settings, &rig, POOL_BYTES, work)?;
    let info = rig.run(pooled.pool.info())??;
    let size_bytes = (info.capacity_bytes * percent / 100) >> 20 << 20;
    let volume = as_device(&rig.volume(&pooled.pool, "volume", size_bytes)?);
    rig.fill(&volume, size_bytes)?;
    let blocks = size_bytes / 4096;
    // Until free space is where random overwrites leave it.
    pooled.load(&rig, &volume, Work::random(32, 0, size_bytes), Until::Ios(2 * blocks))?;
    let work = Work { span_bytes: size_bytes, ..work };
    pooled.load(&rig, &volume, work, Until::Ios(blocks / 2))?;
    let written = |rig: &Rig| Ok::<_, anyhow::Error>(rig.run(pooled.pool.info())??.written.data_bytes);
    let (counts, data) = (pooled.counted.counts(), written(&rig)?);
    let sample = pooled.load(&rig, &volume, work, Until::Ios(blocks))?;
    let (device, data) = (pooled.counted.counts().since(counts), (written(&rig)? - data) as f64);
    let amplification = device.written_bytes as f64 / data;
    let met = amplification <= MOST;
    println!(
        "{name}: {:.0} IOPS, {:.2} of the raw file's {raw:.0}; p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, max {:.1} ms; \
         {amplification:.2} bytes written and {:.2} read for each that is written; goal {MOST:.1} written {}",
        sample.iops,
        sample.iops / raw,
        sample.p50_us,
        sample.p99_us,
        sample.p999_us,
        sample.max_us / 1e3,
        (device.read_bytes as f64 - (sample.ios * 4096) as f64 + data).max(0.0) / data,
        if met { "ok" } else { "MISSED" }
    );
    rig.run(pooled.pool.export())??;
    Ok(if met { Ok(()) } else { Err(format!("{amplification:.2} bytes written for each, goal {MOST:.1}")) })
}

/// A volume is written at random, all of it several times, and read in order: each block stands elsewhere. The formula says a
/// device read for each block that does not stand behind the one before it, which at random is each.
fn sequential(settings: &Settings<'_>, name: &str) -> Result<()> {
    let rig = Rig::new(settings.core)?;
    let in_order = Work::sequential(100, SEQUENTIAL_BYTES);
    let (_file, pooled, raw) = pool(settings, &rig, 8 * SEQUENTIAL_BYTES, in_order)?;
    let volume = as_device(&rig.volume(&pooled.pool, "volume", SEQUENTIAL_BYTES)?);
    let read = |what: &str, volume: &Arc<dyn BlockDevice>, formula: f64| -> Result<()> {
        let before = pooled.counted.counts();
        let sample = pooled.load(&rig, volume, in_order, Until::Time(settings.time))?;
        let reads = pooled.counted.counts().since(before).reads as f64 / sample.ios as f64;
        let mib = |iops: f64| iops * 128.0 / 1024.0;
        println!(
            "{name}, {what}: {:.0} MiB/s, {:.2} of the raw file's {:.0}; p99 {:.0} us; {reads:.1} device reads for each; the \
             formula says {formula:.1}",
            mib(sample.iops),
            sample.iops / raw,
            mib(raw),
            sample.p99_us,
        );
        Ok(())
    };
    rig.fill(&volume, SEQUENTIAL_BYTES)?;
    read("written in order", &volume, 1.0)?;
    let blocks = SEQUENTIAL_BYTES / 4096;
    pooled.load(&rig, &volume, Work::random(32, 0, SEQUENTIAL_BYTES), Until::Ios(3 * blocks))?;
    // e^-3 of the blocks stand where they stood.
    let still = (-3.0_f64).exp();
    read("then overwritten at random", &volume, 1.0 + 31.0 * (1.0 - still * still))?;
    rig.run(pooled.pool.export())??;
    Ok(())
}
