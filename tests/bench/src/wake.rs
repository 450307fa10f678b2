//! The first I/O after a rest, beside what the machine takes for it in any case.
//!
//! # What is measured
//! Each in its turn, round by round, after the same rest and between the same two cores, because a virtual machine's
//! wake-ups change by half within seconds:
//! - a 4 KiB read from a daemon that slept, of a malloc and of a null device; and the read right behind it;
//! - the same read from a daemon that did not sleep: its spin window is longer than the rest;
//! - an exchange of the same bytes over loopback TCP with a bare process that slept in its receive;
//! - a bare wake-up: from the write to an eventfd, on which that process slept, until its answer on another was seen.
//!
//! # What is judged
//! What it costs that the daemon slept: the read from the one that slept, less the read from the one that did not.
//! That may exceed a bare wake-up of the same round by [`MAX_OVER_WAKE_UP_US`]; the median over the rounds counts.
//!
//! Not judged, though the goal may be read so: by how much the whole read exceeds a bare wake-up. It does so also when
//! nobody sleeps, being a round trip over TCP during which the kernel's caches and ours are cold, and no server behind
//! a socket is below the bare exchange, whose excess is printed beside it. What of it is above that exchange is ours,
//! the host's half included.
//!
//! The host polls meanwhile, so that one wake-up is in what is judged, the daemon's. Then all is measured once more with
//! a host that sleeps, which is woken by the answer; there the bare wake-up goes there and back. That is printed and not
//! judged: half of it is the host's.

use crate::served::{Daemon, nqn};
use crate::sleepers::{Sleepers, Wait};
use crate::table::median;
use aio::reactor::spawn_thread;
use aio::{Core, CoreId, Descriptor, DmaBuf, ReactorConfig};
use anyhow::{Context, Result};
use nvme::Nqn;
use nvmf::initiator::{NvmfDevice, Options};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Most microseconds that a daemon's sleep may cost above a bare wake-up.
const MAX_OVER_WAKE_UP_US: f64 = 15.0;
/// Before everything that is timed.
const REST: Duration = Duration::from_millis(100);
/// How long the daemon that does not sleep looks for work, after which it lets go of the core for the others.
const WAKEFUL: Duration = Duration::from_millis(150);
/// How often each is timed.
const ROUNDS: usize = 31;
/// No measurement takes as long.
const LIMIT: Duration = Duration::from_secs(100);
const IO_BYTES: u32 = 4096;

/// Prints the figures; returns what is above its limit.
pub(crate) fn run(keelson: &Path, cores: (usize, usize)) -> Result<Vec<String>> {
    let asleep = Daemon::start(keelson, cores.0, &[])?;
    asleep.export("malloc", "malloc:///malloc?size_mb=16")?;
    asleep.export("null", "null:///null?size_mb=16")?;
    let spin_us = WAKEFUL.as_micros().to_string();
    let awake = Daemon::start(keelson, cores.0, &["--spin-us", &spin_us])?;
    awake.export("malloc", "malloc:///malloc?size_mb=16")?;
    let ports = Ports { asleep: asleep.port(), awake: awake.port() };
    let polling = measure(ports, cores, Wait::Polling)?;
    let sleeping = measure(ports, cores, Wait::Asleep)?;
    println!(
        "first 4K read after {} ms, median of {ROUNDS}, us    host polls   host sleeps",
        REST.as_millis()
    );
    for (what, get) in LINES {
        println!("  {what:44} {:10.1} {:13.1}", polling.median(get), sleeping.median(get));
    }
    let over = polling.median(|r| r.malloc - r.awake - r.wake_up);
    println!(
        "sleep costs the daemon {:.1} us: a bare wake-up and {over:.1} us",
        polling.median(|r| r.malloc - r.awake)
    );
    println!(
        "not judged: the whole read exceeds a bare wake-up by {:.1} us, a bare exchange does by {:.1} us",
        polling.median(|r| r.malloc - r.wake_up),
        polling.median(|r| r.exchange - r.wake_up)
    );
    let mut above = Vec::new();
    if over > MAX_OVER_WAKE_UP_US {
        above.push(format!("a daemon's sleep costs more than {MAX_OVER_WAKE_UP_US} us above a bare wake-up"));
    }
    Ok(above)
}

/// What one round took, in microseconds.
#[derive(Default)]
struct Round {
    malloc: f64,
    null: f64,
    behind: f64,
    awake: f64,
    exchange: f64,
    wake_up: f64,
}

type Line = (&'static str, fn(&Round) -> f64);

const LINES: [Line; 6] = [
    ("malloc, the daemon slept", |r| r.malloc),
    ("null, the daemon slept", |r| r.null),
    ("malloc, the daemon polled all the while", |r| r.awake),
    ("bare exchange over TCP, the peer slept", |r| r.exchange),
    ("bare eventfd wake-up (there and back)", |r| r.wake_up),
    ("the malloc read right behind the first", |r| r.behind),
];

struct Rounds(Vec<Round>);

impl Rounds {
    fn median(&self, get: impl Fn(&Round) -> f64) -> f64 {
        median(self.0.iter().map(get).collect())
    }
}

#[derive(Clone, Copy)]
struct Ports {
    asleep: u16,
    awake: u16,
}

/// Runs all rounds on a reactor of the host's core.
fn measure(ports: Ports, cores: (usize, usize), host: Wait) -> Result<Rounds> {
    let mut config = ReactorConfig::new(CoreId(cores.1 as u32));
    if host == Wait::Polling {
        // Longer than anything here waits.
        config.spin_window = LIMIT;
    }
    let reactor = spawn_thread(config).context("starting a reactor")?;
    let (sender, receiver) = sync_channel(1);
    let posted = reactor.post(move || {
        let core = Core::current().expect("invariant: jobs run on a core");
        let here = core.clone();
        drop(core.spawn(async move {
            // Nobody listens when the bench has given up.
            let _ = sender.send(rounds(&here, ports, cores.0, host).await);
        }));
    });
    posted.context("reaching the reactor")?;
    let result = receiver.recv_timeout(LIMIT).context("the measurement does not end")?;
    reactor.stop();
    reactor.join();
    result
}

async fn rounds(core: &Core, ports: Ports, target_core: usize, host: Wait) -> Result<Rounds> {
    let mut malloc = Disk::open(core, ports.asleep, "malloc").await?;
    let mut null = Disk::open(core, ports.asleep, "null").await?;
    let mut awake = Disk::open(core, ports.awake, "malloc").await?;
    let mut bare = Sleepers::start(target_core, IO_BYTES as usize, host)?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut round = Round::default();
        // The daemon that polled in the round before sleeps again.
        core.sleep(WAKEFUL).await;
        core.sleep(REST).await;
        round.wake_up = bare.wake_us()?;
        core.sleep(REST).await;
        round.malloc = malloc.read_us().await?;
        round.behind = malloc.read_us().await?;
        core.sleep(REST).await;
        round.exchange = bare.exchange_us()?;
        core.sleep(REST).await;
        round.null = null.read_us().await?;
        // Not timed: it wakes the daemon, which then polls.
        awake.read_us().await?;
        core.sleep(REST).await;
        round.awake = awake.read_us().await?;
        rounds.push(round);
    }
    for disk in [malloc, null, awake] {
        disk.descriptor.close().await;
    }
    Ok(Rounds(rounds))
}

struct Disk {
    descriptor: Descriptor,
    /// `None` only while a read has it.
    buffer: Option<DmaBuf>,
}

impl Disk {
    async fn open(core: &Core, port: u16, name: &str) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let options = Options::new(address, Nqn::parse(&nqn(name)).context("the NQN of an exported disk")?);
        let device = NvmfDevice::connect(options).await.context("connecting to the daemon")?;
        let descriptor = Descriptor::open(device).await.context("opening an I/O queue")?;
        let buffer = core.pools()?.alloc(IO_BYTES).context("no buffer for one I/O")?;
        Ok(Self { descriptor, buffer: Some(buffer) })
    }

    async fn read_us(&mut self) -> Result<f64> {
        let buffer = self.buffer.take().context("the last read failed")?;
        let start = Instant::now();
        let (outcome, buffer) = self.descriptor.read_at(0, IO_BYTES, buffer).await;
        let elapsed = start.elapsed();
        self.buffer = Some(buffer);
        outcome.context("reading from the daemon")?;
        Ok(elapsed.as_secs_f64() * 1e6)
    }
}
