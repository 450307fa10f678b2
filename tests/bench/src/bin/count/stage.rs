//! Initiator and target in one thread, turn by turn.

#![allow(unsafe_code, reason = "submissions promise that their memory stays valid")]

use crate::allocations;
use crate::pipe::Pipes;
use aio::reactor::{EngineChoice, ManualClock, Reactor, Turn};
use aio::{
    BlockCount, Completion, CoreId, Instant, Io, IoChannel, IoFlags, Lba, Poller, ReactorConfig, RegionId,
    SgEntry, Sleep, Token,
};
use anyhow::{Context, Result, ensure};
use nvme::Nqn;
use nvmf::initiator::{NvmfDevice, Options};
use nvmf::target::core::{CoreConfig, TargetCore};
use nvmf::target::{NamespaceSpec, SubsystemSpec, Target, TargetConfig};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task;

const NQN: &str = "nqn.2019-05.io.openebs:count";
/// Size of the device.
const DEVICE_MIB: u64 = 16;
const BLOCK_BYTES: u64 = 512;
/// Turns within which anything that works has happened.
pub(crate) const PATIENCE: usize = 100_000;
/// I/Os before anything is counted: lists grow, caches fill.
pub(crate) const WARM_UP: u64 = 512;

/// What is counted.
pub(crate) struct Cell {
    pub(crate) name: &'static str,
    pub(crate) write: bool,
    pub(crate) io_bytes: u64,
    pub(crate) depth: usize,
}

/// All cells.
pub(crate) const CELLS: [Cell; 6] = [
    Cell { name: "read-4k-qd1", write: false, io_bytes: 4 << 10, depth: 1 },
    Cell { name: "read-4k-qd32", write: false, io_bytes: 4 << 10, depth: 32 },
    Cell { name: "write-4k-qd1", write: true, io_bytes: 4 << 10, depth: 1 },
    Cell { name: "write-4k-qd32", write: true, io_bytes: 4 << 10, depth: 32 },
    Cell { name: "read-128k-qd8", write: false, io_bytes: 128 << 10, depth: 8 },
    Cell { name: "write-128k-qd8", write: true, io_bytes: 128 << 10, depth: 8 },
];

/// Runs `ios` I/Os of the cell, and a warm-up; returns how often memory was allocated meanwhile, without the
/// warm-up.
pub(crate) fn run(cell: &Cell, ios: u64) -> Result<u64> {
    let mut stage = Stage::new()?;
    let channel = stage.open()?;
    let load = Rc::new(RefCell::new(Load::new(channel, cell, DEVICE_MIB, IoFlags::empty())));
    stage.host.core().add_poller(load.clone());
    stage.until("the warm-up", || load.borrow().done >= WARM_UP)?;
    let before = allocations::count();
    stage.until("the I/Os", || load.borrow().done >= WARM_UP + ios)?;
    let allocated = allocations::count() - before;
    load.borrow_mut().stop = true;
    stage.until("the end", || load.borrow().idle())?;
    ensure!(load.borrow().failed == 0, "{} I/Os failed", load.borrow().failed);
    Ok(allocated)
}

/// A reactor on that network. Time stands still: no timer fires, and reading it costs nothing.
fn still_reactor(number: u32, pipes: &Pipes, clock: Rc<ManualClock>) -> Result<Reactor> {
    let config =
        ReactorConfig { pin: false, engine: EngineChoice::None, ..ReactorConfig::new(CoreId(number)) };
    Reactor::with_parts(config, clock, Rc::new(pipes.clone())).context("making a reactor")
}

/// A reactor that nobody can connect to.
pub(crate) fn quiet_reactor(clock: Rc<ManualClock>) -> Result<Reactor> {
    still_reactor(0, &Pipes::default(), clock)
}

struct Stage {
    target: Reactor,
    host: Reactor,
    /// Kept, for it ends with its last handle.
    device: Option<std::sync::Arc<NvmfDevice>>,
}

impl Stage {
    fn new() -> Result<Self> {
        let pipes = Pipes::default();
        let (target, host) =
            (still_reactor(0, &pipes, Rc::default())?, still_reactor(1, &pipes, Rc::default())?);
        let model = Target::new(TargetConfig::default());
        let uri = format!("malloc:///count?size_mb={DEVICE_MIB}");
        let device =
            aio::devices::create(&uri.parse().context("our own URI")?).context("making a RAM disk")?;
        at_once(model.create_subsystem(SubsystemSpec::new(NQN)))?.context("creating a subsystem")?;
        at_once(model.add_namespace(NQN, NamespaceSpec::new(device)))?.context("adding a namespace")?;
        let listener = model.add_listener(address());
        let inbox = model.attach_core(|| ());
        let core = target.core();
        let mut poller = target
            .enter(|| {
                let pools = core.pools()?;
                TargetCore::new(model, inbox, core.network(), pools, core.memory(), CoreConfig::default())
            })
            .context("making the target's poller")?;
        target.enter(|| poller.listen(listener, address())).context("listening in memory")?;
        core.add_poller(Rc::new(RefCell::new(poller)));
        Ok(Self { target, host, device: None })
    }

    /// Connects, and opens an I/O queue.
    fn open(&mut self) -> Result<Box<dyn IoChannel>> {
        let options =
            Options { kato_ms: 0, ..Options::new(address(), Nqn::parse(NQN).context("our own NQN")?) };
        let opened = Rc::new(RefCell::new(None));
        let result = opened.clone();
        drop(self.host.core().spawn(async move {
            let outcome = async {
                let device = NvmfDevice::connect(options).await.context("connecting")?;
                let channel = aio::BlockDevice::open_channel(&*device).await.context("opening a channel")?;
                anyhow::Ok((device, channel))
            };
            *result.borrow_mut() = Some(outcome.await);
        }));
        self.until("connecting", || opened.borrow().is_some())?;
        let (device, channel) = opened.take().context("the outcome is gone")??;
        self.device = Some(device);
        Ok(channel)
    }

    fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        // Work is counted in turns without progress: the patience is for those only.
        let mut idle = 0;
        while !done() {
            ensure!(idle < PATIENCE, "{what}: nothing moves any more");
            let busy = [self.host.turn() == Turn::Busy, target_turn(&mut self.target)];
            idle = if busy.contains(&true) { 0 } else { idle + 1 };
        }
        Ok(())
    }
}

/// What callgrind counts as the target's.
#[inline(never)]
fn target_turn(reactor: &mut Reactor) -> bool {
    reactor.turn() == Turn::Busy
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8420))
}

/// The outcome of a future that has nothing to wait for.
fn at_once<T>(future: impl Future<Output = T>) -> Result<T> {
    match pin!(future).poll(&mut task::Context::from_waker(task::Waker::noop())) {
        task::Poll::Ready(value) => Ok(value),
        task::Poll::Pending => anyhow::bail!("something waits although there is nothing to wait for"),
    }
}

/// Keeps `depth` I/Os in flight.
pub(crate) struct Load {
    channel: Box<dyn IoChannel>,
    write: bool,
    flags: IoFlags,
    blocks: u64,
    device_blocks: u64,
    buffers: Vec<Box<[u8]>>,
    free: Vec<u32>,
    completions: Vec<Completion>,
    next: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) stop: bool,
}

impl Load {
    /// On a device of that size. Of the memory that writes are made from, nobody but they knows.
    pub(crate) fn new(channel: Box<dyn IoChannel>, cell: &Cell, device_mib: u64, flags: IoFlags) -> Self {
        let buffer = || vec![0x5a; cell.io_bytes as usize].into_boxed_slice();
        Self {
            channel,
            write: cell.write,
            flags,
            blocks: cell.io_bytes / BLOCK_BYTES,
            device_blocks: (device_mib << 20) / BLOCK_BYTES,
            buffers: (0..cell.depth).map(|_| buffer()).collect(),
            free: (0..cell.depth as u32).collect(),
            completions: Vec::with_capacity(cell.depth),
            next: 0,
            done: 0,
            failed: 0,
            stop: false,
        }
    }

    pub(crate) fn idle(&self) -> bool {
        self.free.len() == self.buffers.len()
    }

    fn submit(&mut self) {
        while !self.stop
            && let Some(slot) = self.free.pop()
        {
            let buffer = &mut self.buffers[slot as usize];
            let sg = [SgEntry {
                ptr: NonNull::from(&mut buffer[0]),
                len_bytes: buffer.len() as u32,
                region: RegionId::NONE,
            }];
            // Places follow each other at a distance, so that nothing is found where it was left.
            let lba = Lba(self.next * 37 * self.blocks % self.device_blocks);
            let blocks = BlockCount(self.blocks);
            let io = if self.write { Io::write(lba, blocks, &sg) } else { Io::read(lba, blocks, &sg) };
            let io = io.with_flags(self.flags);
            // SAFETY: the buffer is the slot's alone and is touched again only after its completion; it is freed
            // with the load, whose channel goes first.
            if unsafe { self.channel.submit(&io, Token::new(slot, 0)) }.is_err() {
                return self.free.push(slot);
            }
            self.next += 1;
        }
    }
}

impl Poller for Load {
    fn poll(&mut self, _now: Instant) -> usize {
        let count = self.channel.poll(&mut self.completions, self.buffers.len());
        for completion in self.completions.drain(..) {
            self.free.push(completion.token.index());
            self.done += 1;
            self.failed += u64::from(!completion.status.is_success());
        }
        self.submit();
        count
    }

    fn kick(&mut self) {
        self.channel.kick();
    }

    fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
        self.channel.prepare_sleep()
    }
}
