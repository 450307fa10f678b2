//! A reactor on this thread, files to measure on, and pools on them.

use super::counted::Counted;
use super::load::{Load, Sample, Until, Work};
use aio::{BlockDevice, CoreId, Reactor, ReactorConfig};
use anyhow::{Context, Result, bail, ensure};
use lvs::info::{CreatePool, CreateVolume, ImportPool};
use lvs::{Pool, Volume};
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task;
use std::time::{Duration, Instant};

/// Longer than anything that works takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Within which the files of a killed process are closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// A reactor that this thread turns.
pub(crate) struct Rig {
    reactor: RefCell<Reactor>,
}

impl Rig {
    pub(crate) fn new(core: usize) -> Result<Self> {
        let core = CoreId(u32::try_from(core).context("the number of a core")?);
        let reactor = Reactor::new(ReactorConfig { pin: false, ..ReactorConfig::new(core) })
            .context("making a reactor")?;
        Ok(Self { reactor: RefCell::new(reactor) })
    }

    /// The reactor, for others.
    pub(crate) fn handle(&self) -> aio::CoreHandle {
        self.reactor.borrow().core().handle()
    }

    /// Turns until the future is ready.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        let mut future = pin!(future);
        let mut cx = task::Context::from_waker(task::Waker::noop());
        let start = Instant::now();
        loop {
            let polled = self.reactor.borrow().enter(|| future.as_mut().poll(&mut cx));
            if let task::Poll::Ready(value) = polled {
                return Ok(value);
            }
            self.reactor.borrow_mut().turn();
            ensure!(start.elapsed() < PATIENCE, "nothing came of an operation within {PATIENCE:?}");
        }
    }

    /// Turns for so long.
    pub(crate) fn idle(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.reactor.borrow_mut().turn();
        }
    }

    /// Begins I/O that goes on while other things are done.
    pub(crate) fn begin(
        &self,
        device: &Arc<dyn BlockDevice>,
        work: Work,
        until: Until,
    ) -> Result<Rc<RefCell<Load>>> {
        let channel = self.run(device.open_channel())?.context("opening a channel")?;
        let load = Load::new(channel, device.geometry().block_bytes, work, until)?;
        let load = Rc::new(RefCell::new(load));
        self.reactor.borrow().core().add_poller(load.clone());
        Ok(load)
    }

    /// Waits for its end.
    pub(crate) fn end(&self, load: &Rc<RefCell<Load>>) -> Result<Sample> {
        self.run(std::future::poll_fn(|_| match load.borrow().is_over() {
            true => task::Poll::Ready(()),
            false => task::Poll::Pending,
        }))?;
        let failed = load.borrow().failed();
        ensure!(failed == 0, "{failed} I/Os failed");
        Ok(load.borrow_mut().sample())
    }

    /// I/O, and nothing else.
    pub(crate) fn load(&self, device: &Arc<dyn BlockDevice>, work: Work, until: Until) -> Result<Sample> {
        let load = self.begin(device, work, until)?;
        self.end(&load)
    }

    /// Writes a device from its beginning to `span_bytes`.
    pub(crate) fn fill(&self, device: &Arc<dyn BlockDevice>, span_bytes: u64) -> Result<Sample> {
        let work = Work::sequential(0, span_bytes);
        self.load(device, work, Until::Ios(span_bytes / u64::from(work.io_bytes)))
    }

    /// A pool on `device`, which is counted.
    pub(crate) fn pool(&self, device: Arc<dyn BlockDevice>) -> Result<Pooled> {
        let counted = Counted::new(device);
        let home = self.reactor.borrow().core().handle();
        let spec = CreatePool { name: "bench".into(), uuid: None, force: true };
        let pool = self.run(Pool::create(home, vec![counted.clone()], spec))?.context("creating a pool")?;
        Ok(Pooled { pool, counted })
    }

    /// The pool that is on `device`.
    pub(crate) fn import(&self, device: Arc<dyn BlockDevice>) -> Result<Pooled> {
        let counted = Counted::new(device);
        let home = self.reactor.borrow().core().handle();
        let pool = self.run(Pool::import(home, vec![counted.clone()], ImportPool::default()))?;
        Ok(Pooled { pool: pool.context("importing a pool")?, counted })
    }

    /// A thin volume.
    pub(crate) fn volume(&self, pool: &Pool, name: &str, size_bytes: u64) -> Result<Arc<Volume>> {
        let spec = CreateVolume { name: name.into(), uuid: None, size_bytes, thin: true, entity_id: None };
        self.run(pool.create_volume(spec))?.context("creating a volume")
    }
}

/// An open pool, and what it asks of its device.
pub(crate) struct Pooled {
    pub(crate) pool: Pool,
    pub(crate) counted: Arc<Counted>,
}

impl Pooled {
    /// I/O on one of its volumes; an error says how the pool is.
    pub(crate) fn load(
        &self,
        rig: &Rig,
        volume: &Arc<dyn BlockDevice>,
        work: Work,
        until: Until,
    ) -> Result<Sample> {
        rig.load(volume, work, until).or_else(|error| {
            let info = rig.run(self.pool.info())?.context("asking the pool how it is")?;
            Err(error.context(format!("the pool: {info:?}")))
        })
    }
}

/// A file that goes with this.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// A file of that size, without content.
    pub(crate) fn sparse(folder: &Path, name: &str, size_bytes: u64) -> Result<Self> {
        let path = folder.join(format!("keelson-bench-{}-{name}", std::process::id()));
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let scratch = Self(path);
        file.set_len(size_bytes).with_context(|| format!("sizing {}", scratch.0.display()))?;
        Ok(scratch)
    }

    /// It as a device, with direct I/O.
    pub(crate) fn open(&self) -> Result<Arc<dyn BlockDevice>> {
        open_file(&self.0)
    }

    /// The same when a process that had it was killed just now: the kernel takes its time to close the file.
    pub(crate) fn open_soon(&self) -> Result<Arc<dyn BlockDevice>> {
        let start = Instant::now();
        loop {
            match self.open() {
                Err(_) if start.elapsed() < CLOSE_PATIENCE => std::thread::sleep(Duration::from_millis(1)),
                opened => return opened,
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind is seen and removed by hand.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file as a device. It has to be one without the page cache, as all figures are about disks.
pub(crate) fn open_file(path: &Path) -> Result<Arc<dyn BlockDevice>> {
    let device = device(&format!("aio://{}", path.display()))?;
    if let Some(notice) = device.notices().first() {
        bail!("{}: {notice}", path.display());
    }
    Ok(device)
}

/// A RAM disk.
pub(crate) fn ram(name: &str, size_bytes: u64) -> Result<Arc<dyn BlockDevice>> {
    device(&format!("malloc:///{name}?size_mb={}", size_bytes >> 20))
}

fn device(uri: &str) -> Result<Arc<dyn BlockDevice>> {
    let parsed = uri.parse().with_context(|| format!("our own URI {uri}"))?;
    aio::devices::create(&parsed).with_context(|| format!("opening {uri}"))
}
