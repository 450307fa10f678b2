//! What it costs to use a volume from a core other than its pool's: the same I/O on the pool's home core and, through the
//! proxy, from another one. Needs two cores.

use super::Settings;
use super::load::{Until, Work};
use super::rig::{Rig, ram};
use aio::reactor::{ReactorConfig, allowed_cores, spawn_thread};
use aio::{BlockDevice, CoreHandle, CoreId};
use anyhow::{Context, Result};
use lvs::Pool;
use lvs::info::{CreatePool, CreateVolume};
use std::sync::Arc;

const SPAN: u64 = 1 << 29;

/// Runs of a cell; the middle one counts.
const RUNS: usize = 3;

/// A core that this process may use beside that one.
pub(super) fn other_than(core: usize) -> Result<Option<CoreId>> {
    let allowed = allowed_cores().context("the cores of this process")?;
    Ok(allowed.into_iter().find(|c| c.0 as usize != core))
}

pub(super) fn run(settings: &Settings<'_>, other: Option<CoreId>) -> Result<()> {
    if !settings.wants("lvs cores") {
        return Ok(());
    }
    let Some(other) = other else {
        println!("lvs cores: skipped, there is only one core");
        return Ok(());
    };
    let away = spawn_thread(ReactorConfig::new(other)).context("a reactor on another core")?;
    let rig = Rig::new(settings.core)?;
    let here = rig.handle();
    println!(
        "\n{:<26} {:>12} {:>12} {:>14} {:>14}",
        "lvs cores", "home IOPS", "other IOPS", "home us p50", "other us p50"
    );
    for (name, work) in [
        ("randread 4K QD1", Work::random(1, 100, SPAN)),
        ("randread 4K QD32", Work::random(32, 100, SPAN)),
        ("randread 4K QD128", Work::random(128, 100, SPAN)),
        ("randwrite 4K QD1", Work::random(1, 0, SPAN)),
        ("randwrite 4K QD32", Work::random(32, 0, SPAN)),
        ("randwrite 4K QD128", Work::random(128, 0, SPAN)),
    ] {
        let mut of = Vec::new();
        for home in [&here, &away] {
            let volume = volume(&rig, home)?;
            rig.fill(&volume.1, SPAN)?;
            let mut samples = Vec::new();
            for _ in 0..RUNS {
                let before = (here.stats().busy_ns, away.stats().busy_ns);
                let sample = rig.load(&volume.1, work, Until::Time(settings.time))?;
                let busy = (here.stats().busy_ns - before.0, away.stats().busy_ns - before.1);
                samples.push((sample, busy));
            }
            samples.sort_by(|a, b| a.0.iops.total_cmp(&b.0.iops));
            of.push(samples.swap_remove(RUNS / 2));
            rig.run(volume.0.export())??;
        }
        let busy = |i: usize| {
            let (sample, (a, b)) = &of[i];
            format!("{:.0}+{:.0} ns busy", *a as f64 / sample.ios as f64, *b as f64 / sample.ios as f64)
        };
        let (home, other) = (&of[0].0, &of[1].0);
        println!(
            "{name:<26} {:>12.0} {:>12.0} {:>14.1} {:>14.1}   home {}, other {}",
            home.iops,
            other.iops,
            home.p50_us,
            other.p50_us,
            busy(0),
            busy(1)
        );
    }
    away.stop();
    away.join();
    Ok(())
}

/// A pool on that core, and a volume of it.
fn volume(rig: &Rig, home: &CoreHandle) -> Result<(Pool, Arc<dyn BlockDevice>)> {
    let spec = CreatePool { name: "bench".into(), uuid: None, force: true };
    let pool = rig.run(Pool::create(home.clone(), vec![ram("cores", 4 * SPAN)?], spec))??;
    let name = "volume".to_owned();
    let spec = CreateVolume { name, uuid: None, size_bytes: SPAN, thin: true, entity_id: None };
    let volume = rig.run(pool.create_volume(spec))??;
    Ok((pool, volume))
}
