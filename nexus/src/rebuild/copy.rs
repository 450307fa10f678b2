//! The copying.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use aio::facade::IoError;
use aio::{BlockDevice, BlockRange, Core, Descriptor, DeviceError, DmaBuf};

use super::{Job, RebuildState};
use crate::dirty::SEGMENT_BYTES;
use crate::layout;
use crate::locks::Hold;
use crate::shared::Shared;

/// Segments that are being copied at one time.
pub(super) const TASKS: u32 = 16;

/// A range that is held until this is dropped.
pub(crate) struct Held {
    shared: Arc<Shared>,
    hold: Hold,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.locks.release(&mut self.hold);
    }
}

/// Holds `range` of the nexus. Dropping the future lets go of what it has.
pub(crate) async fn hold(core: &Core, shared: &Arc<Shared>, range: BlockRange) -> Held {
    let mut held = Held { shared: shared.clone(), hold: shared.locks.hold(range) };
    while !shared.locks.advance(&mut held.hold) {
        core.sleep(LOCK_EVERY).await;
    }
    held
}

/// How often a lock is asked for again.
const LOCK_EVERY: core::time::Duration = core::time::Duration::from_micros(20);

/// A buffer of a segment; `None` when the core has no memory for it.
pub(crate) fn segment_buf(core: &Core) -> Option<DmaBuf> {
    core.pools().ok()?.alloc(SEGMENT_BYTES as u32)
}

/// Why a rebuild failed.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// A child could not be opened.
    Open(#[expect(dead_code, reason = "for debug output")] DeviceError),
    /// The reactor ended.
    Ended,
    /// The core has no memory for buffers.
    NoMemory,
    /// The source cannot be read.
    Read(#[expect(dead_code, reason = "for debug output")] IoError),
    /// The child cannot be written.
    Write(#[expect(dead_code, reason = "for debug output")] IoError),
}

/// Both ends of a rebuild.
struct Ends {
    core: Core,
    shared: Arc<Shared>,
    source: Descriptor,
    target: Descriptor,
}

/// Copies what the job's map says from `source` to `target`, and flushes the target. `Ok` also when the job was interrupted
/// meanwhile: look at it. A segment that is held while the source goes is still copied: whoever changes it there has to wait.
pub(crate) async fn run(
    core: Core,
    shared: Arc<Shared>,
    job: Rc<Job>,
    source: Arc<dyn BlockDevice>,
    target: Arc<dyn BlockDevice>,
) -> Result<(), CopyError> {
    let source = Descriptor::open(source).await.map_err(CopyError::Open)?;
    let target = Descriptor::open(target).await.map_err(CopyError::Open)?;
    let ends = Rc::new(Ends { core, shared, source, target });
    if job.state() == RebuildState::Init {
        job.set_state(RebuildState::Running);
    }
    let next = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            job.at_work.set(job.at_work.get() + 1);
            let (ends, job, next) = (ends.clone(), job.clone(), next.clone());
            let core = ends.core.clone();
            core.spawn(async move {
                let copied = copy(&ends, &job, &next).await;
                job.at_work.set(job.at_work.get() - 1);
                if copied.is_err() {
                    // The others need not go on.
                    next.set(u64::MAX);
                }
                job.wake();
                copied
            })
        })
        .collect();
    let mut result = Ok(());
    for task in tasks {
        let copied = task.await.unwrap_or(Err(CopyError::Ended));
        if result.is_ok() {
            result = copied;
        }
    }
    if result.is_ok() && !job.is_interrupted() {
        result = ends.target.flush().await.map_err(CopyError::Write);
    }
    ends.source.clone().close().await;
    ends.target.clone().close().await;
    result
}

/// One of several tasks: copies segments until there is none left.
async fn copy(ends: &Ends, job: &Job, next: &Cell<u64>) -> Result<(), CopyError> {
    let block_bytes = u64::from(ends.shared.geometry.block_bytes);
    let mut buf = segment_buf(&ends.core).ok_or(CopyError::NoMemory)?;
    loop {
        job.until(|j| j.is_interrupted() || j.state() != RebuildState::Paused).await;
        let Some((segment, range)) = job.map.next(next.get()).filter(|_| !job.is_interrupted()) else {
            return Ok(());
        };
        next.set(segment.saturating_add(1).max(next.get()));
        let lock = hold(&ends.core, &ends.shared, range);
        let Some(held) = unless_interrupted(job, lock).await else { return Ok(()) };
        let at = layout::DATA_OFFSET_BYTES + range.start.0 * block_bytes;
        let len = (range.blocks.0 * block_bytes) as u32;
        let (read, back) = ends.source.read_at(at, len, buf).await;
        read.map_err(CopyError::Read)?;
        if job.is_abandoned() {
            return Ok(());
        }
        let (written, back) = ends.target.write_at(at, len, back).await;
        written.map_err(CopyError::Write)?;
        buf = back;
        job.map.clear(segment);
        job.copied.set(job.copied.get() + 1);
        drop(held);
    }
}

/// Awaits `future` until the job is interrupted: what it waits for may wait for the job's end.
async fn unless_interrupted<T>(job: &Job, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut interrupted = std::pin::pin!(job.until(Job::is_interrupted));
    std::future::poll_fn(|cx| {
        if interrupted.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
