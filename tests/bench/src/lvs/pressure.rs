//! Steady states of a pool that is nearly full: what cleaning costs.

use super::Settings;
use super::cells::as_device;
use super::load::{Until, Work};
use super::rig::{Rig, Scratch};
use anyhow::{Context, Result};

/// Size of the pool's file.
const POOL_BYTES: u64 = 1 << 30;
/// How full, in percent of the visible capacity, and the most bytes that may be written for each of the volume.
const LEVELS: [(u64, f64); 2] = [(70, 4.0), (90, 6.0)];

pub(super) fn run(settings: &Settings<'_>) -> Result<Vec<String>> {
    let mut missed = Vec::new();
    for (percent, most) in LEVELS {
        let name = format!("lvs full {percent}%");
        if settings.wants(&name)
            && let Err(why) =
                full(settings, &name, percent, most).with_context(|| format!("measuring `{name}`"))?
        {
            missed.push(format!("{name}: {why}"));
        }
    }
    Ok(missed)
}

/// Random overwrites of a volume that takes `percent` of what the pool shows.
fn full(settings: &Settings<'_>, name: &str, percent: u64, most: f64) -> Result<Result<(), String>> {
    let rig = Rig::new(settings.core)?;
    let file = Scratch::sparse(&settings.scratch, "full", POOL_BYTES)?;
    let device = file.open()?;
    rig.fill(&device, POOL_BYTES)?;
    let work = Work::random(32, 0, POOL_BYTES);
    let raw = rig.load(&device, work, Until::Time(settings.time))?;
    let pooled = rig.pool(device)?;
    let info = rig.run(pooled.pool.info())??;
    let size_bytes = (info.capacity_bytes * percent / 100) >> 20 << 20;
    let volume = as_device(&rig.volume(&pooled.pool, "volume", size_bytes)?);
    rig.fill(&volume, size_bytes)?;
    let blocks = size_bytes / 4096;
    let work = Work::random(32, 0, size_bytes);
    // Until free space is where random overwrites leave it.
    pooled.load(&rig, &volume, work, Until::Ios(3 * blocks))?;
    let before = pooled.counted.counts();
    let sample = pooled.load(&rig, &volume, work, Until::Ios(2 * blocks))?;
    let device = pooled.counted.counts().since(before);
    let amplification = device.written_bytes as f64 / (sample.ios * 4096) as f64;
    let met = amplification <= most;
    println!(
        "{name}: {:.0} IOPS, {:.2} of the raw file's {:.0}; p99 {:.0} us, p99.9 {:.0} us, max {:.1} ms; \
         {amplification:.2} bytes written and {:.2} read for each of the volume; goal {most:.1} written {}",
        sample.iops,
        sample.iops / raw.iops,
        raw.iops,
        sample.p99_us,
        sample.p999_us,
        sample.max_us / 1e3,
        device.read_bytes as f64 / (sample.ios * 4096) as f64,
        if met { "ok" } else { "MISSED" }
    );
    rig.run(pooled.pool.export())??;
    Ok(if met { Ok(()) } else { Err(format!("{amplification:.2} bytes written for each, goal {most:.1}")) })
}
