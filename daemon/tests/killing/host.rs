//! The host's side: our own initiator on a reactor of its own.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aio::facade::{ByteRange, Descriptor, IoError};
use aio::memory::{DmaBuf, DmaPool};
use aio::reactor::{Core, CoreHandle, ReactorConfig, spawn_thread};
use aio::{BlockDevice, CoreId, DeviceUri};
use keelson::perf::stamp::SplitMix;
use keelson::registry::{self, RemoteWishes};

use super::ledger::{Content, Ledger};

/// Bytes of the largest I/O.
const IO_BYTES: u32 = 64 << 10;
/// Tasks that write, each in a part of the replica of its own.
const WRITERS: u64 = 8;

/// What a load shares with whoever kills the daemon.
#[derive(Default)]
pub(super) struct Fate {
    /// Set before the signal: whatever fails from then on may.
    pub(super) killed: AtomicBool,
    /// The newest version that was given out.
    pub(super) versions: AtomicU64,
    /// I/Os that were acknowledged.
    pub(super) ios: AtomicU64,
    /// Flushes among them, and writes through.
    pub(super) durable: AtomicU64,
}

impl Fate {
    fn version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A ledger that tasks and their judges share.
pub(super) type Shared = Arc<Mutex<Ledger>>;

pub(super) fn lock(ledger: &Shared) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reactor that connects to the daemon.
pub(super) struct Host(CoreHandle);

impl Host {
    pub(super) fn new() -> Self {
        let config =
            ReactorConfig { pin: false, spin_window: Duration::ZERO, ..ReactorConfig::new(CoreId(9)) };
        Self(spawn_thread(config).unwrap())
    }

    pub(super) async fn connect(&self, uri: &str) -> Arc<dyn BlockDevice> {
        let parsed: DeviceUri = uri.parse().unwrap();
        let opened = registry::open(&parsed, &self.0, &RemoteWishes::default()).await;
        opened.unwrap_or_else(|e| panic!("connecting to {uri}: {e}")).device
    }

    /// Reads all of a device. `judge` is given each unit.
    pub(super) async fn read_all(
        &self,
        device: &Arc<dyn BlockDevice>,
        mut judge: impl FnMut(u64, &[u8]) -> Result<(), String> + Send + 'static,
    ) -> Result<u64, String> {
        let device = device.clone();
        let read = self.0.call(move || async move {
            let core = Core::current().expect("invariant: calls run on a core");
            let name = device.name().to_owned();
            let disk = Descriptor::open(device).await.map_err(|e| e.to_string())?;
            let pool = DmaPool::new(core.memory(), IO_BYTES, 1).map_err(|e| e.to_string())?;
            let mut buffer = pool.alloc().ok_or("no buffer")?;
            let (len_bytes, block_bytes) = (disk.len_bytes(), disk.geometry().block_bytes);
            let mut unit = 0;
            for offset_bytes in (0..len_bytes).step_by(IO_BYTES as usize) {
                let io_bytes = (len_bytes - offset_bytes).min(u64::from(IO_BYTES)) as u32;
                let (read, back) = disk.read_at(offset_bytes, io_bytes, buffer).await;
                read.map_err(|e| format!("reading {io_bytes} bytes of {name} at {offset_bytes}: {e}"))?;
                buffer = back;
                for block in buffer[..io_bytes as usize].chunks_exact(block_bytes as usize) {
                    judge(unit, block).map_err(|e| format!("{name}: {e}"))?;
                    unit += 1;
                }
            }
            disk.close().await;
            Ok(unit)
        });
        read.await.unwrap()
    }

    /// Writes, unmaps, reads and flushes until the daemon is killed. An error is what failed before.
    pub(super) fn load(
        &self,
        device: Arc<dyn BlockDevice>,
        ledger: Shared,
        fate: Arc<Fate>,
        seed: u64,
    ) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let handle = self.0.clone();
        let load = move || async move {
            let core = Core::current().expect("invariant: calls run on a core");
            // Two queues.
            let mut disks = Vec::new();
            for _ in 0..2 {
                match Descriptor::open(device.clone()).await {
                    Ok(disk) => disks.push(disk),
                    Err(_) if fate.killed.load(Ordering::Acquire) => return Ok(()),
                    Err(e) => return Err(format!("opening {}: {e}", device.name())),
                }
            }
            let buffers = DmaPool::new(core.memory(), IO_BYTES, WRITERS as u32).map_err(|e| e.to_string())?;
            let part = lock(&ledger).len() / WRITERS;
            let mut tasks = Vec::new();
            for n in 0..WRITERS {
                let writer = Writer {
                    disk: disks[n as usize % disks.len()].clone(),
                    units: n * part..(n + 1) * part,
                    ledger: ledger.clone(),
                    fate: fate.clone(),
                    random: SplitMix(seed ^ (n << 32)),
                    buffer: buffers.alloc(),
                };
                tasks.push(core.spawn(writer.run()));
            }
            let mut result = Ok(());
            for task in tasks {
                result = result.and(task.await.map_err(|e| e.to_string())?);
            }
            result
        };
        async move { handle.call(load).await.unwrap() }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.0.stop();
        self.0.join();
    }
}

/// One task of a load.
struct Writer {
    disk: Descriptor,
    /// It alone writes here.
    units: Range<u64>,
    ledger: Shared,
    fate: Arc<Fate>,
    random: SplitMix,
    /// `None` only within an I/O.
    buffer: Option<DmaBuf>,
}

impl Writer {
    async fn run(mut self) -> Result<(), String> {
        loop {
            let step = self.step().await;
            match step {
                Ok(Ok(())) => _ = self.fate.ios.fetch_add(1, Ordering::Relaxed),
                Ok(Err(_)) if self.fate.killed.load(Ordering::Acquire) => return Ok(()),
                Ok(Err(e)) => return Err(format!("an I/O failed while the daemon lives: {e}")),
                Err(wrong) => return Err(wrong),
            }
        }
    }

    /// Some units in a row: most often few.
    fn range(&mut self) -> Range<u64> {
        let block_bytes = u64::from(self.disk.geometry().block_bytes);
        let most = (u64::from(IO_BYTES) / block_bytes).min(self.units.end - self.units.start);
        let most = if self.random.below(4) == 0 { most } else { most.min(8) };
        let count = 1 + self.random.below(most);
        let first = self.units.start + self.random.below(self.units.end - self.units.start - count + 1);
        first..first + count
    }

    /// One I/O. The outer error is a wrong content.
    async fn step(&mut self) -> Result<Result<(), IoError>, String> {
        let range = self.range();
        Ok(match self.random.below(100) {
            0..3 => self.flush().await,
            3..8 => self.zero(range, true).await,
            8..11 => self.zero(range, false).await,
            11..19 => self.write(range, true).await,
            19..34 => return self.read(range).await,
            _ => self.write(range, false).await,
        })
    }

    async fn flush(&mut self) -> Result<(), IoError> {
        let mark = lock(&self.ledger).mark();
        self.disk.flush().await?;
        lock(&self.ledger).durable(&mark);
        self.fate.durable.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn zero(&mut self, mut range: Range<u64>, unmap: bool) -> Result<(), IoError> {
        if unmap {
            // Parts of the store's blocks stay as they are when they are unmapped.
            let whole = 4096 / u64::from(self.disk.geometry().block_bytes);
            range = range.start.next_multiple_of(whole)..range.end / whole * whole;
            if range.is_empty() {
                return Ok(());
            }
        }
        let (offset_bytes, len_bytes) = self.place(&range);
        let bytes = ByteRange { offset_bytes, len_bytes: len_bytes.into() };
        lock(&self.ledger).begin(range.clone(), Content::Zeroes);
        match unmap {
            true => self.disk.unmap(&[bytes]).await?,
            false => self.disk.write_zeroes(bytes, false).await?,
        }
        lock(&self.ledger).done(range);
        Ok(())
    }

    async fn write(&mut self, range: Range<u64>, through: bool) -> Result<(), IoError> {
        let (offset_bytes, len_bytes) = self.place(&range);
        let version = self.fate.version();
        let mut buffer = self.buffer.take().expect("invariant: no I/O is under way");
        {
            let mut ledger = lock(&self.ledger);
            let blocks = buffer.chunks_exact_mut(self.disk.geometry().block_bytes as usize);
            range.clone().zip(blocks).for_each(|(unit, block)| ledger.stamp(unit, version).write(block));
            ledger.begin(range.clone(), Content::Version(version));
        }
        let (result, buffer) = match through {
            true => self.disk.write_at_durable(offset_bytes, len_bytes, buffer).await,
            false => self.disk.write_at(offset_bytes, len_bytes, buffer).await,
        };
        self.buffer = Some(buffer);
        result?;
        let mut ledger = lock(&self.ledger);
        match through {
            true => {
                ledger.done_durably(range);
                self.fate.durable.fetch_add(1, Ordering::Relaxed);
            }
            false => ledger.done(range),
        }
        Ok(())
    }

    async fn read(&mut self, range: Range<u64>) -> Result<Result<(), IoError>, String> {
        let (offset_bytes, len_bytes) = self.place(&range);
        let buffer = self.buffer.take().expect("invariant: no I/O is under way");
        let (result, buffer) = self.disk.read_at(offset_bytes, len_bytes, buffer).await;
        if result.is_ok() {
            let ledger = lock(&self.ledger);
            let blocks = buffer.chunks_exact(self.disk.geometry().block_bytes as usize);
            range.zip(blocks).try_for_each(|(unit, block)| ledger.check_newest(unit, block))?;
        }
        self.buffer = Some(buffer);
        Ok(result)
    }

    fn place(&self, range: &Range<u64>) -> (u64, u32) {
        let block_bytes = u64::from(self.disk.geometry().block_bytes);
        (range.start * block_bytes, ((range.end - range.start) * block_bytes) as u32)
    }
}
