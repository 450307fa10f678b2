//! The first I/O after a rest, beside a bare wake-up of a thread.

use crate::idle::{REST, WAKE_UPS};
use crate::pin::pin;
use crate::served::Daemon;
use crate::table::median;
use aio::reactor::spawn_thread;
use aio::{Core, CoreId, Descriptor, ReactorConfig};
use anyhow::{Context, Result};
use nvme::Nqn;
use nvmf::initiator::{NvmfDevice, Options};
use rustix::event::{EventfdFlags, eventfd};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

const IO_BYTES: u32 = 4096;

/// Median times of a 4 KiB read in microseconds.
pub(crate) struct Reads {
    /// The first one after the target slept.
    pub(crate) rested_us: f64,
    /// One right after another.
    pub(crate) hot_us: f64,
}

/// Reads from a daemon with a host that is awake: what sleeps is the target only.
pub(crate) fn reads(daemon: &Daemon, nqn: &str, core: usize) -> Result<Reads> {
    let address = SocketAddr::from(([127, 0, 0, 1], daemon.port()));
    let options = Options::new(address, Nqn::parse(nqn).context("the NQN of an exported disk")?);
    // Longer than a rest: the host polls all the time.
    let spin_window = 2 * REST;
    let config = ReactorConfig { spin_window, ..ReactorConfig::new(CoreId(core as u32)) };
    let reactor = spawn_thread(config).context("starting a reactor")?;
    let (sender, receiver) = sync_channel(1);
    let posted = reactor.post(move || {
        let core = Core::current().expect("invariant: jobs run on a core");
        let here = core.clone();
        drop(core.spawn(async move {
            // Nobody listens when the bench has given up.
            let _ = sender.send(timed(&here, options).await);
        }));
    });
    posted.context("reaching the reactor")?;
    let result = receiver.recv_timeout(Duration::from_secs(60)).context("no answer within a minute")?;
    reactor.stop();
    reactor.join();
    result
}

async fn timed(core: &Core, options: Options) -> Result<Reads> {
    let device = NvmfDevice::connect(options).await.context("connecting to the daemon")?;
    let disk = Descriptor::open(device).await.context("opening an I/O queue")?;
    let mut buffer = core.pools()?.alloc(IO_BYTES).context("no buffer for one I/O")?;
    let (mut rested, mut hot) = (Vec::new(), Vec::new());
    for _ in 0..WAKE_UPS {
        core.sleep(REST).await;
        for times in [&mut rested, &mut hot] {
            let start = Instant::now();
            let (outcome, back) = disk.read_at(0, IO_BYTES, buffer).await;
            times.push(start.elapsed().as_secs_f64() * 1e6);
            outcome.context("reading from the daemon")?;
            buffer = back;
        }
    }
    disk.close().await;
    Ok(Reads { rested_us: median(rested), hot_us: median(hot) })
}

/// The median time from a write to an eventfd until the thread that slept on it on the other core runs.
pub(crate) fn eventfd_us(cores: (usize, usize)) -> Result<f64> {
    let event = eventfd(0, EventfdFlags::CLOEXEC).context("making an eventfd")?;
    let awake = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| -> Result<()> {
            pin(cores.0);
            for _ in 0..WAKE_UPS {
                rustix::io::read(&event, &mut [0; 8]).context("reading an eventfd")?;
                awake.store(true, Ordering::Release);
            }
            Ok(())
        });
        pin(cores.1);
        let mut times = Vec::new();
        for _ in 0..WAKE_UPS {
            std::thread::sleep(REST);
            let start = Instant::now();
            rustix::io::write(&event, &1_u64.to_ne_bytes()).context("writing an eventfd")?;
            while !awake.swap(false, Ordering::Acquire) {
                std::hint::spin_loop();
            }
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        sleeper.join().expect("invariant: the sleeper does not panic")?;
        Ok(median(times))
    })
}
