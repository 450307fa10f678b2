//! The copying.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use aio::facade::{ByteRange, IoError};
use aio::{BlockDevice, BlockRange, Capabilities, Core, Descriptor, DeviceError, DmaBuf};

use super::{Job, RebuildState};
use crate::channel::is_conflict;
use crate::dirty::SEGMENT_BYTES;
use crate::home;
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
    Read(IoError),
    /// The child cannot be written.
    Write(IoError),
}

impl CopyError {
    /// The nexus was shut out.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Read(IoError::Status(s)) | Self::Write(IoError::Status(s)) if is_conflict(*s))
    }
}

/// Both ends of a rebuild.
struct Ends {
    core: Core,
    shared: Arc<Shared>,
    /// Children in sync, by place: the first is read, the others when it cannot.
    sources: Vec<(usize, Descriptor)>,
    target: Descriptor,
    target_can: Capabilities,
}

/// Copies what the job's map says from the first of `sources` to `target`, and flushes the target. `Ok` also when the job was
/// interrupted meanwhile: look at it. A segment that is held while the source goes is still copied: whoever changes it there has
/// to wait.
pub(crate) async fn run(
    core: Core,
    shared: Arc<Shared>,
    job: Rc<Job>,
    sources: Vec<(usize, Arc<dyn BlockDevice>)>,
    target: Arc<dyn BlockDevice>,
) -> Result<(), CopyError> {
    let ends = Rc::new(open(core, shared, sources, target).await?);
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
    for (_, source) in &ends.sources {
        source.clone().close().await;
    }
    ends.target.clone().close().await;
    result
}

/// Opens both ends. Without the first source there is no copying, without the others there is.
async fn open(
    core: Core,
    shared: Arc<Shared>,
    sources: Vec<(usize, Arc<dyn BlockDevice>)>,
    target: Arc<dyn BlockDevice>,
) -> Result<Ends, CopyError> {
    let target_can = target.capabilities();
    let target = Descriptor::open(target).await.map_err(CopyError::Open)?;
    let mut open = Vec::new();
    for (place, device) in sources {
        match Descriptor::open(device).await {
            Ok(source) => open.push((place, source)),
            Err(error) if open.is_empty() => return Err(CopyError::Open(error)),
            Err(_) => {}
        }
    }
    Ok(Ends { core, shared, sources: open, target, target_can })
}

/// One of several tasks: copies segments until there is none left.
async fn copy(ends: &Ends, job: &Job, next: &Cell<u64>) -> Result<(), CopyError> {
    let mut buf = segment_buf(&ends.core).ok_or(CopyError::NoMemory)?;
    loop {
        job.until(|j| j.is_interrupted() || j.state() != RebuildState::Paused).await;
        let Some((segment, range)) = job.map.next(next.get()).filter(|_| !job.is_interrupted()) else {
            return Ok(());
        };
        next.set(segment.saturating_add(1).max(next.get()));
        let lock = hold(&ends.core, &ends.shared, range);
        let Some(held) = unless_interrupted(job, lock).await else { return Ok(()) };
        // Under the lock: what hosts wrote there has been noted.
        if job.holes.is_marked(segment) && !job.written.is_marked(segment) {
            buf = ends.zero(range, buf).await?;
        } else {
            buf = ends.read(job, range, buf).await?;
            if job.is_abandoned() {
                return Ok(());
            }
            buf = ends.write(range, buf).await?;
        }
        job.map.clear(segment);
        job.copied.set(job.copied.get() + 1);
        drop(held);
    }
}

impl Ends {
    /// Where a range of the nexus is on the children, and its length, in bytes.
    fn bytes(&self, range: BlockRange) -> (u64, u32) {
        let block_bytes = u64::from(self.shared.geometry.block_bytes);
        (layout::DATA_OFFSET_BYTES + range.start.0 * block_bytes, (range.blocks.0 * block_bytes) as u32)
    }

    /// Reads from the first child that can. Bad blocks of one are repaired from another.
    async fn read(&self, job: &Job, range: BlockRange, buf: DmaBuf) -> Result<DmaBuf, CopyError> {
        let (at, len) = self.bytes(range);
        let mut buf = buf;
        let mut failed = None;
        for (nth, (place, source)) in self.sources.iter().enumerate() {
            // The first has gone while this segment was held: nobody has changed it since.
            if nth > 0 && job.has_lost(*place) {
                continue;
            }
            let (read, back) = source.read_at(at, len, buf).await;
            buf = back;
            match (read, failed.take()) {
                (Ok(()), None) => return Ok(buf),
                (Ok(()), Some((_, bad))) => {
                    // A full mailbox: whoever reads it next finds out.
                    home::report(&self.shared, Vec::new(), vec![(bad, range)]);
                    return Ok(buf);
                }
                (Err(error), first) => failed = first.or(Some((error, *place))),
            }
        }
        let error = failed.map_or(IoError::Closed, |(error, _)| error);
        Err(CopyError::Read(error))
    }

    /// Writes a segment. What reads as zeroes takes no space where the child can do that.
    async fn write(&self, range: BlockRange, buf: DmaBuf) -> Result<DmaBuf, CopyError> {
        let (at, len) = self.bytes(range);
        let unit = self.shared.geometry.block_bytes.max(ZERO_UNIT_BYTES);
        let pieces = pieces(&buf[..len as usize], unit);
        let unmaps = self.target_can.contains(Capabilities::UNMAP | Capabilities::UNMAP_ZEROES);
        match *pieces {
            [(_, _, true)] => return self.zero(range, buf).await,
            [_, _, ..] if unmaps => {}
            _ => {
                let (written, buf) = self.target.write_at(at, len, buf).await;
                return written.map_err(CopyError::Write).map(|()| buf);
            }
        }
        let mut buf = buf;
        for (start, len, is_zero) in pieces {
            let here = ByteRange { offset_bytes: at + u64::from(start), len_bytes: u64::from(len) };
            if is_zero {
                self.target.unmap(&[here]).await.map_err(CopyError::Write)?;
                continue;
            }
            // A write takes its bytes from the buffer's front; what was there has been written.
            buf.copy_within(start as usize..(start + len) as usize, 0);
            let (written, back) = self.target.write_at(here.offset_bytes, len, buf).await;
            written.map_err(CopyError::Write)?;
            buf = back;
        }
        Ok(buf)
    }

    /// Makes a range read as zeroes, in the way that takes least space.
    async fn zero(&self, range: BlockRange, buf: DmaBuf) -> Result<DmaBuf, CopyError> {
        let (offset_bytes, len) = self.bytes(range);
        let here = ByteRange { offset_bytes, len_bytes: u64::from(len) };
        if self.target_can.contains(Capabilities::UNMAP | Capabilities::UNMAP_ZEROES) {
            return self.target.unmap(&[here]).await.map_err(CopyError::Write).map(|()| buf);
        }
        if self.target_can.contains(Capabilities::WRITE_ZEROES) {
            return self.target.write_zeroes(here, true).await.map_err(CopyError::Write).map(|()| buf);
        }
        let mut buf = buf;
        buf[..len as usize].fill(0);
        let (written, buf) = self.target.write_at(offset_bytes, len, buf).await;
        written.map_err(CopyError::Write).map(|()| buf)
    }
}

/// The least length that is looked at for zeroes, in bytes: what thin volumes allocate.
const ZERO_UNIT_BYTES: u32 = 4096;

/// `bytes` in pieces of units that are zero, or not: start, length, whether it is zero.
fn pieces(bytes: &[u8], unit: u32) -> Vec<(u32, u32, bool)> {
    let mut pieces: Vec<(u32, u32, bool)> = Vec::new();
    let mut at = 0;
    for part in bytes.chunks(unit as usize) {
        let is_zero = part.iter().all(|byte| *byte == 0);
        let len = part.len() as u32;
        match pieces.last_mut() {
            Some(last) if last.2 == is_zero => last.1 += len,
            _ => pieces.push((at, len, is_zero)),
        }
        at += len;
    }
    pieces
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_found_in_whole_units() {
        let mut bytes = vec![0; 5 * 4096];
        assert_eq!(pieces(&bytes, 4096), [(0, 5 * 4096, true)]);
        bytes[4096] = 1;
        bytes[3 * 4096 - 1] = 1;
        assert_eq!(pieces(&bytes, 4096), [(0, 4096, true), (4096, 8192, false), (12288, 8192, true)]);
        assert_eq!(pieces(&bytes[4096..], 8192), [(0, 8192, false), (8192, 8192, true)]);
        assert_eq!(pieces(&[1; 512], 4096), [(0, 512, false)]);
    }
}
