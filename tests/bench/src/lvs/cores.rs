//! What it costs to use a volume from a core other than its pool's, beside the same I/O on the home core.
//!
//! - *one thread*: a thread turns both reactors in turn, and its CPU time counts: the difference is the work of the proxy
//!   and its agent, whatever else runs on the machine. What moving cache lines between cores costs is not in it.
//! - *two cores*: as it is served; needs two cores that nobody else uses.

use super::Settings;
use super::load::{Load, Sample, Until, Work};
use super::rig::{Rig, ram};
use crate::table::median;
use aio::reactor::{Reactor, ReactorConfig, allowed_cores, spawn_thread};
use aio::{BlockDevice, CoreHandle, CoreId};
use anyhow::{Context, Result, ensure};
use lvs::Pool;
use lvs::info::{CreatePool, CreateVolume};
use rustix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

const SPAN: u64 = 1 << 28;
/// Runs of a cell; the middle one counts.
const RUNS: usize = 5;
const CELLS: [(&str, Work); 6] = [
    ("randread 4K QD1", Work::random(1, 100, SPAN)),
    ("randread 4K QD32", Work::random(32, 100, SPAN)),
    ("randread 4K QD128", Work::random(128, 100, SPAN)),
    ("randwrite 4K QD1", Work::random(1, 0, SPAN)),
    ("randwrite 4K QD32", Work::random(32, 0, SPAN)),
    ("randwrite 4K QD128", Work::random(128, 0, SPAN)),
];

/// A core that this process may use beside that one.
pub(super) fn other_than(core: usize) -> Result<Option<CoreId>> {
    let allowed = allowed_cores().context("the cores of this process")?;
    Ok(allowed.into_iter().find(|c| c.0 as usize != core))
}

pub(super) fn run(settings: &Settings<'_>, other: Option<CoreId>) -> Result<()> {
    if settings.wants("lvs cores one thread") {
        one_thread(settings)?;
    }
    match other {
        _ if !settings.wants("lvs cores two") => Ok(()),
        Some(other) => two_cores(settings, other),
        None => {
            println!("lvs cores two: skipped, there is only one core");
            Ok(())
        }
    }
}

fn one_thread(settings: &Settings<'_>) -> Result<()> {
    println!("\n{:<24} {:>10} {:>10} {:>10}", "lvs cores one thread", "home ns", "proxy ns", "added ns");
    let number = u32::try_from(settings.core).context("the number of a core")?;
    let mut reactors = [number, number + 1].map(|id| {
        Reactor::new(ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(id)) }).map(RefCell::new)
    });
    let [Ok(home), Ok(away)] = &mut reactors else { anyhow::bail!("cannot make two reactors") };
    let (home, away) = (&*home, &*away);
    let rig = Both { home, away };
    let handle = home.borrow().core().handle();
    let (pool, volume) = rig.run(home, create(handle))??;
    rig.load(home, &volume, Work::sequential(0, SPAN), Until::Ios(SPAN / (128 << 10)))?;
    for (name, work) in CELLS {
        let mut of = [Vec::new(), Vec::new()];
        for _ in 0..RUNS {
            for (at, here) in [home, away].into_iter().enumerate() {
                let before = cpu_time();
                let sample = rig.load(here, &volume, work, Until::Time(settings.time))?;
                of[at].push((cpu_time() - before) / sample.ios as f64);
            }
        }
        let [home, proxy] = of.map(median);
        println!("{name:<24} {home:>10.0} {proxy:>10.0} {:>10.0}", proxy - home);
    }
    rig.run(home, pool.export())??;
    Ok(())
}

/// What this thread has used, in nanoseconds.
pub(super) fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Two reactors of this thread.
struct Both<'a> {
    home: &'a RefCell<Reactor>,
    away: &'a RefCell<Reactor>,
}

impl Both<'_> {
    fn turn(&self) {
        self.home.borrow_mut().turn();
        self.away.borrow_mut().turn();
    }

    /// Turns both until the future, which belongs to `here`, is ready.
    fn run<T>(&self, here: &RefCell<Reactor>, future: impl Future<Output = T>) -> Result<T> {
        let mut future = std::pin::pin!(future);
        let start = Instant::now();
        loop {
            let mut cx = TaskContext::from_waker(Waker::noop());
            let polled = here.borrow().enter(|| future.as_mut().poll(&mut cx));
            if let Poll::Ready(value) = polled {
                return Ok(value);
            }
            self.turn();
            ensure!(start.elapsed() < Duration::from_secs(120), "nothing came of an operation");
        }
    }

    fn load(
        &self,
        here: &RefCell<Reactor>,
        device: &Arc<dyn BlockDevice>,
        work: Work,
        until: Until,
    ) -> Result<Sample> {
        let channel = self.run(here, device.open_channel())?.context("opening a channel")?;
        let load = Load::new(channel, device.geometry().block_bytes, work, until)?;
        let load = Rc::new(RefCell::new(load));
        here.borrow().core().add_poller(load.clone());
        self.turn();
        while !load.borrow().is_over() {
            self.turn();
        }
        ensure!(load.borrow().failed() == 0, "I/Os failed");
        Ok(load.borrow_mut().sample())
    }
}

/// A pool on that core, and a volume of it.
async fn create(home: CoreHandle) -> Result<(Pool, Arc<dyn BlockDevice>)> {
    let spec = CreatePool { name: "bench".into(), uuid: None, force: true };
    let pool = Pool::create(home, vec![ram("cores", 4 * SPAN)?], spec).await?;
    let name = "volume".to_owned();
    let spec = CreateVolume { name, uuid: None, size_bytes: SPAN, thin: true, entity_id: None };
    let volume = pool.create_volume(spec).await?;
    Ok((pool, volume))
}

fn two_cores(settings: &Settings<'_>, other: CoreId) -> Result<()> {
    let away = spawn_thread(ReactorConfig::new(other)).context("a reactor on another core")?;
    let rig = Rig::new(settings.core)?;
    let here = rig.handle();
    println!(
        "\n{:<24} {:>10} {:>10} {:>12} {:>12}",
        "lvs cores two", "home IOPS", "other IOPS", "home us p50", "other us p50"
    );
    let mut samples = CELLS.map(|_| Vec::new());
    for home in [&here, &away] {
        let (pool, volume) = rig.run(create(home.clone()))??;
        rig.fill(&volume, SPAN)?;
        for (at, (_, work)) in CELLS.into_iter().enumerate() {
            let run = |_| rig.load(&volume, work, Until::Time(settings.time));
            let runs = (0..RUNS).map(run).collect::<Result<Vec<_>>>()?;
            let middle = |of: fn(&Sample) -> f64| median(runs.iter().map(of).collect());
            samples[at].push((middle(|s| s.iops), middle(|s| s.p50_us)));
        }
        rig.run(pool.export())??;
    }
    for ((name, _), of) in CELLS.iter().zip(samples) {
        println!("{name:<24} {:>10.0} {:>10.0} {:>12.1} {:>12.1}", of[0].0, of[1].0, of[0].1, of[1].1);
    }
    away.stop();
    away.join();
    Ok(())
}
