//! Spreads a job over devices, queues and cores, and adds up what the workers did.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aio::memory::{DmaBuf, DmaPool};
use aio::reactor::{Core, CoreHandle};
use aio::{BlockDevice, Lba, Poller};
use rustix::time::{ClockId, clock_gettime};

use super::plan::{Pattern, Plan};
use super::stamp::SplitMix;
use super::worker::{Outcome, Part, Progress, Worker};

/// How often a finished worker is noticed.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A verifying run keeps four bytes a unit: this bounds them to 256 MiB over all workers.
const MAX_VERIFIED_UNITS: u64 = 64 << 20;

/// What to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// Reads, writes, order.
    pub pattern: Pattern,
    /// Share of reads in mixed patterns.
    pub read_percent: u8,
    /// Bytes of one I/O.
    pub io_bytes: u32,
    /// I/Os in flight on each queue.
    pub depth: u32,
    /// Queues of each device, spread over the cores.
    pub queues: u32,
    /// Length of the timed part.
    pub time: Duration,
    /// Use only this much of each device, from its start.
    pub size_bytes: Option<u64>,
    /// Stamp what is written, check what is read, and read everything back at the end.
    pub verify: bool,
    /// The same seed makes the same accesses.
    pub seed: u64,
}

/// A job that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// `--bs` does not fit the device.
    #[error(
        "{device} has blocks of {block_bytes} bytes: an I/O of {io_bytes} bytes is not a multiple of that"
    )]
    Unaligned {
        /// Which device.
        device: String,
        /// Its block size.
        block_bytes: u32,
        /// As asked for.
        io_bytes: u32,
    },
    /// `--bs` is too large for the device.
    #[error("{device} takes I/Os of up to {max_bytes} bytes, not {io_bytes}")]
    TooLarge {
        /// Which device.
        device: String,
        /// Its limit.
        max_bytes: u64,
        /// As asked for.
        io_bytes: u32,
    },
    /// Not one I/O for each queue.
    #[error(
        "{device} has {size_bytes} bytes to work on, which is less than one I/O of {io_bytes} bytes for each of \
         {queues} queues"
    )]
    TooSmall {
        /// Which device.
        device: String,
        /// What may be used of it.
        size_bytes: u64,
        /// As asked for.
        io_bytes: u32,
        /// As asked for.
        queues: u32,
    },
    /// The bookkeeping would not fit.
    #[error(
        "--verify remembers every I/O-sized piece of {device}: limit them with --size, to {max_bytes} bytes at most"
    )]
    TooMuchToVerify {
        /// Which device.
        device: String,
        /// The most that can be verified with this size of I/O.
        max_bytes: u64,
    },
    /// A channel could not be opened.
    #[error("cannot open a queue on {device}: {source}")]
    Open {
        /// Which device.
        device: String,
        /// Why.
        #[source]
        source: aio::DeviceError,
    },
    /// No memory for buffers.
    #[error("no memory for the buffers: {0}")]
    Memory(#[from] aio::memory::MemoryError),
    /// A core stopped.
    #[error(transparent)]
    Core(#[from] aio::reactor::CoreGone),
}

/// A run in progress, to be watched and stopped from elsewhere.
#[derive(Clone, Default, Debug)]
pub struct Watch(Arc<std::sync::Mutex<Vec<Arc<Progress>>>>);

impl Watch {
    fn add(&self) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        self.lock().push(progress.clone());
        progress
    }

    /// I/Os, bytes and errors so far.
    pub fn sum(&self) -> (u64, u64, u64) {
        self.lock().iter().fold((0, 0, 0), |(ios, bytes, errors), p| {
            let get = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
            (ios + get(&p.ios), bytes + get(&p.bytes), errors + get(&p.errors))
        })
    }

    /// Ends the timed part now.
    pub fn stop(&self) {
        self.lock().iter().for_each(|p| p.stop.store(true, Ordering::Relaxed));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Progress>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What a run did, and what it cost the cores.
#[derive(Clone, Debug)]
pub struct Report {
    /// Sum over all workers.
    pub outcome: Outcome,
    /// CPU time of the cores over the whole run, read-back included.
    pub cpu: Duration,
}

/// Runs `job` on all `devices` at once. Dropping the future leaves the workers to finish by themselves.
pub async fn run(
    devices: &[Arc<dyn BlockDevice>],
    cores: &[CoreHandle],
    job: &Job,
    watch: &Watch,
) -> Result<Report, PerfError> {
    let mut parts = Vec::new();
    let mut random = SplitMix(job.seed);
    for device in devices {
        for part in split(device.as_ref(), job, &mut random)? {
            parts.push((device.clone(), part));
        }
    }
    let cpu_before = cpu_time(cores).await?;
    let mut calls = Vec::new();
    for (i, (device, part)) in parts.into_iter().enumerate() {
        let (job, progress, seed) = (job.clone(), watch.add(), random.number());
        let core = &cores[i % cores.len()];
        // Polled at once by the join below, so all workers start together.
        calls.push(core.call(move || work(device, part, job, seed, progress)));
    }
    let mut outcome = Outcome::default();
    let mut failure = None;
    for result in join_all(calls).await {
        match result? {
            Ok(one) => outcome.merge(&one),
            Err(e) => failure = Some(e),
        }
    }
    match failure {
        Some(e) => Err(e),
        None => Ok(Report { outcome, cpu: cpu_time(cores).await?.saturating_sub(cpu_before) }),
    }
}

/// Awaits all of them at the same time.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(move |cx| {
        let mut pending = false;
        for (future, result) in &mut futures {
            if result.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(r) => *result = Some(r),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(futures.drain(..).filter_map(|(_, r)| r).collect())
    })
    .await
}

/// Each queue gets a part of the device of its own, so that each worker is the only one there.
fn split(device: &dyn BlockDevice, job: &Job, random: &mut SplitMix) -> Result<Vec<Part>, PerfError> {
    let (geometry, name) = (device.geometry(), || device.name().to_owned());
    let (block_bytes, io_bytes) = (geometry.block_bytes, job.io_bytes);
    if io_bytes == 0 || io_bytes % block_bytes != 0 {
        return Err(PerfError::Unaligned { device: name(), block_bytes, io_bytes });
    }
    let unit_blocks = io_bytes / block_bytes;
    if unit_blocks > geometry.max_blocks {
        let max_bytes = u64::from(geometry.max_blocks) * u64::from(block_bytes);
        return Err(PerfError::TooLarge { device: name(), max_bytes, io_bytes });
    }
    let device_bytes = device.size().0.saturating_mul(u64::from(block_bytes));
    let size_bytes = job.size_bytes.map_or(device_bytes, |s| s.min(device_bytes));
    let units = size_bytes / u64::from(io_bytes) / u64::from(job.queues.max(1));
    let queues = job.queues.max(1);
    if units == 0 {
        return Err(PerfError::TooSmall { device: name(), size_bytes, io_bytes, queues });
    }
    if job.verify && units * u64::from(queues) > MAX_VERIFIED_UNITS {
        let max_bytes = MAX_VERIFIED_UNITS * u64::from(io_bytes);
        return Err(PerfError::TooMuchToVerify { device: name(), max_bytes });
    }
    // Beyond 2^32 I/Os a queue the rest of a huge device is left alone.
    let units = u32::try_from(units).unwrap_or(u32::MAX);
    Ok((0..u64::from(queues))
        .map(|i| Part {
            start: Lba(i * u64::from(units) * u64::from(unit_blocks)),
            unit_blocks,
            block_bytes,
            units,
            time: job.time,
            verify: job.verify,
            writer: random.number(),
        })
        .collect())
}

/// Runs on the worker's core.
async fn work(
    device: Arc<dyn BlockDevice>,
    part: Part,
    job: Job,
    seed: u64,
    progress: Arc<Progress>,
) -> Result<Outcome, PerfError> {
    let core = Core::current().expect("invariant: calls run on a core");
    let channel = device
        .open_channel()
        .await
        .map_err(|source| PerfError::Open { device: device.name().to_owned(), source })?;
    let depth = job.depth.clamp(1, part.units);
    let pool = DmaPool::new(core.memory(), job.io_bytes, depth)?;
    let mut buffers: Vec<DmaBuf> = (0..depth).filter_map(|_| pool.alloc()).collect();
    if job.pattern.writes() && !job.verify {
        // Zeroes would be cheaper to write than what people have on their disks.
        let mut random = SplitMix(part.writer);
        for word in buffers.iter_mut().flat_map(|b| b.chunks_exact_mut(8)) {
            word.copy_from_slice(&random.number().to_le_bytes());
        }
    }
    let plan = Plan::new(job.pattern, job.read_percent, part.units, seed, job.verify);
    let worker = Rc::new(RefCell::new(Worker::new(channel, buffers, plan, part, progress)));
    core.add_poller(worker.clone());
    while !worker.borrow().finished() {
        core.sleep(LOOK_INTERVAL).await;
    }
    let outcome = worker.borrow_mut().take_outcome();
    Ok(outcome)
}

/// CPU time that the cores' threads have used since they began.
async fn cpu_time(cores: &[CoreHandle]) -> Result<Duration, PerfError> {
    let mut sum = Duration::ZERO;
    for core in cores {
        sum += core
            .call(|| async {
                let time = clock_gettime(ClockId::ThreadCPUTime);
                Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
            })
            .await?;
    }
    Ok(sum)
}
