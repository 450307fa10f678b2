//! A volume of a pool on a RAM disk, on one reactor.

use crate::allocations;
use crate::stage::{Cell, Load, PATIENCE, WARM_UP, quiet_reactor};
use aio::reactor::{ManualClock, Reactor, Turn};
use aio::{BlockDevice, IoFlags};
use anyhow::{Context, Result, ensure};
use lvs::info::{CreatePool, CreateVolume};
use lvs::{Pool, Volume};
use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task;
use std::time::Duration;

/// Large enough that nothing is cleaned while it is counted.
const POOL_MIB: u64 = 128;
/// Size of the volume.
const VOLUME_MIB: u64 = 16;
const KIB: u64 = 1024;

/// All cells. What a checkpoint costs is not in them: none falls into so few I/Os.
pub(crate) const CELLS: [Cell; 5] = [
    Cell { name: "lvs-read-4k-qd1", write: false, io_bytes: 4 * KIB, depth: 1 },
    Cell { name: "lvs-read-4k-qd32", write: false, io_bytes: 4 * KIB, depth: 32 },
    Cell { name: "lvs-write-4k-qd1", write: true, io_bytes: 4 * KIB, depth: 1 },
    Cell { name: "lvs-write-4k-qd32", write: true, io_bytes: 4 * KIB, depth: 32 },
    Cell { name: "lvs-read-128k-qd8", write: false, io_bytes: 128 * KIB, depth: 8 },
];

/// A reactor whose time goes on only while control operations, which may sleep, are at work.
struct Slow {
    reactor: Reactor,
    clock: Rc<ManualClock>,
}

/// As [`crate::stage::run`].
pub(crate) fn run(cell: &Cell, ios: u64) -> Result<u64> {
    let clock = Rc::new(ManualClock::default());
    let mut slow = Slow { reactor: quiet_reactor(clock.clone())?, clock };
    let volume = volume(&mut slow)?;
    // Everything is written once, and merged into the map: reads look into its pages.
    let fill = Cell { name: "fill", write: true, io_bytes: 128 * KIB, depth: 8 };
    drive(&mut slow, &volume, &fill, VOLUME_MIB * 8, 0)?;
    let pool = volume.0.clone();
    wait(&mut slow, async move { pool.checkpoint().await })?.context("a checkpoint")?;
    drive(&mut slow, &volume, cell, WARM_UP, ios)
}

/// Runs a warm-up and `ios` I/Os; returns the allocations of the latter.
fn drive(slow: &mut Slow, volume: &(Pool, Arc<Volume>), cell: &Cell, warm_up: u64, ios: u64) -> Result<u64> {
    let device = volume.1.clone();
    let channel = wait(slow, async move { device.open_channel().await })?.context("opening a channel")?;
    let load = Rc::new(RefCell::new(Load::new(channel, cell, VOLUME_MIB, IoFlags::STABLE)));
    slow.reactor.core().add_poller(load.clone());
    until(slow, || load.borrow().done >= warm_up)?;
    let before = allocations::count();
    until(slow, || load.borrow().done >= warm_up + ios)?;
    let allocated = allocations::count() - before;
    load.borrow_mut().stop = true;
    until(slow, || load.borrow().idle())?;
    ensure!(load.borrow().failed == 0, "{} I/Os failed", load.borrow().failed);
    Ok(allocated)
}

fn volume(slow: &mut Slow) -> Result<(Pool, Arc<Volume>)> {
    let uri = format!("malloc:///below?size_mb={POOL_MIB}");
    let below = aio::devices::create(&uri.parse().context("our own URI")?).context("making a RAM disk")?;
    let home = slow.reactor.core().handle();
    wait(slow, async move {
        let spec = CreatePool { name: "count".into(), uuid: None, force: false };
        let pool = Pool::create(home, vec![below], spec).await.context("creating a pool")?;
        let (name, size_bytes) = ("volume".into(), VOLUME_MIB << 20);
        let spec = CreateVolume { name, uuid: None, size_bytes, thin: true, entity_id: None };
        let volume = pool.create_volume(spec).await.context("creating a volume")?;
        anyhow::Ok((pool, volume))
    })?
}

fn wait<T>(slow: &mut Slow, future: impl Future<Output = T>) -> Result<T> {
    let mut future = pin!(future);
    let mut cx = task::Context::from_waker(task::Waker::noop());
    for _ in 0..PATIENCE {
        if let task::Poll::Ready(value) = slow.reactor.enter(|| future.as_mut().poll(&mut cx)) {
            return Ok(value);
        }
        slow.reactor.turn();
        slow.clock.advance(Duration::from_micros(5));
    }
    anyhow::bail!("nothing moves any more")
}

fn until(slow: &mut Slow, mut done: impl FnMut() -> bool) -> Result<()> {
    let mut idle = 0;
    while !done() {
        ensure!(idle < PATIENCE, "nothing moves any more");
        idle = if slow.reactor.turn() == Turn::Busy { 0 } else { idle + 1 };
    }
    Ok(())
}
