//! What a child lacks: found out before it is copied.
//!
//! From the best to the worst:
//! - The nexus was there when the child left, and the child forgot nothing since: what was written meanwhile is known.
//! - Both the child and one in sync have a mark in common: what either of them tells as changed since (hazard H2).
//! - Both have pages of the account of regions that are being written ([`crate::intent`]): the regions of either (hazard H19).
//! - Nothing is known: everything, but for what the child in sync does not hold (it is made to read as zeroes, where it may not
//!   do so already).
//!
//! # Why nothing is missed
//! The child gets every write from before this begins. A change that was on its way to others then has ended before they
//! are asked: so it is in their answers. What is written during the questions, and later, reaches the child by itself.

use std::rc::Rc;
use std::sync::Arc;

use aio::facets::{FacetError, MOST_RANGES, Piece, Since};
use aio::{BlockCount, BlockDevice, BlockRange, Lba};

use super::Home;
use crate::dirty::DirtyMap;
use crate::layout;
use crate::rebuild::Job;

impl Home {
    /// Finds out what the job's child `to` lacks of what `from` has.
    pub(super) async fn plan(&self, job: &Rc<Job>, from: &dyn BlockDevice, to: &Arc<dyn BlockDevice>) {
        self.passed().await;
        if job.is_interrupted() {
            return;
        }
        let area = self.data_area(from);
        let mut found = match common_mark(from, &**to).await {
            Some(mark) => changed(from, &**to, mark, area, &job.map).await.is_ok(),
            None => false,
        };
        if !found && !job.is_interrupted() {
            found = self.by_account(job, to.clone()).await;
        }
        if !found && !job.is_interrupted() {
            self.allocated(job, from, &**to).await;
        }
        // Of a source that went meanwhile, nobody knows what it would have told.
        if !job.is_interrupted() {
            job.planned(found);
        }
    }

    /// Where the data of the nexus is on a child.
    fn data_area(&self, device: &dyn BlockDevice) -> BlockRange {
        let start = Lba(layout::offset_blocks(device.geometry().block_bytes));
        BlockRange { start, blocks: self.shared.size() }
    }

    /// Everything that `from` holds, and what `to` holds where `from` does not.
    async fn allocated(&self, job: &Rc<Job>, from: &dyn BlockDevice, to: &dyn BlockDevice) {
        let (size, block_bytes) = (self.shared.size(), self.shared.geometry.block_bytes);
        let holds = match allocated(from, self.data_area(from), size, block_bytes).await {
            Ok(holds) => holds,
            Err(_) => return job.map.mark(BlockRange { start: Lba(0), blocks: size }),
        };
        let held = allocated(to, self.data_area(to), size, block_bytes).await;
        let held = held.unwrap_or_else(|_| DirtyMap::all(size, block_bytes));
        job.map.merge(&holds);
        job.map.merge(&held);
        job.holes.merge_without(&held, &holds);
    }
}

/// The newest mark of `from` that `to` has as well.
async fn common_mark(from: &dyn BlockDevice, to: &dyn BlockDevice) -> Option<u128> {
    from.ranges().and(to.ranges())?;
    let theirs = to.marks()?.marks().await.ok()?;
    let ours = from.marks()?.marks().await.ok()?;
    ours.iter().map(|mark| mark.id).find(|id| theirs.iter().any(|mark| mark.id == *id))
}

/// What either of two devices changed since a mark that both have.
async fn changed(
    from: &dyn BlockDevice,
    to: &dyn BlockDevice,
    mark: u128,
    area: BlockRange,
    map: &DirtyMap,
) -> Result<(), FacetError> {
    for device in [from, to] {
        each(device, Some(Since::Mark(mark)), area, |range| map.mark(range)).await?;
    }
    Ok(())
}

/// What a device holds.
async fn allocated(
    device: &dyn BlockDevice,
    area: BlockRange,
    size: BlockCount,
    block_bytes: u32,
) -> Result<DirtyMap, FacetError> {
    let map = DirtyMap::clean(size, block_bytes);
    each(device, None, area, |range| map.mark(range)).await?;
    Ok(map)
}

/// Asks a device for ranges within `area`, and calls `found` for each, relative to the area's start.
async fn each(
    device: &dyn BlockDevice,
    since: Option<Since>,
    area: BlockRange,
    mut found: impl FnMut(BlockRange),
) -> Result<(), FacetError> {
    let unknown = |why| FacetError::Unknown { device: device.name().to_owned(), why };
    let ranges = device.ranges().ok_or_else(|| unknown("it does not tell ranges"))?;
    let end = area.start.0 + area.blocks.0;
    let mut at = area.start;
    loop {
        let range = BlockRange { start: at, blocks: BlockCount(end - at.0) };
        let piece = Piece { range, most: MOST_RANGES };
        let page = match since {
            Some(since) => ranges.changed(since, piece).await?,
            None => ranges.allocated(piece).await?,
        };
        for extent in page.extents {
            let start = extent.range.start.0.max(area.start.0);
            let blocks = extent.range.end().map_or(end, |e| e.0.min(end)).saturating_sub(start);
            found(BlockRange { start: Lba(start - area.start.0), blocks: BlockCount(blocks) });
        }
        match page.next.filter(|next| next.0 < end) {
            None => return Ok(()),
            Some(next) if next > at => at = next,
            Some(_) => return Err(unknown("its answers lead nowhere")),
        }
    }
}
