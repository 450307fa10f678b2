//! The end of a store, and its growth.

use std::rc::Rc;

use super::create::close_members;
use super::{LOOK_AGAIN, Store, StorePoller, Target, open_stores};
use crate::LvsError;
use crate::format::label;
use crate::types::{BLOCK_BYTES, LineId, Pba, Seq};

impl Store {
    /// Its devices are polled from now on, and background work begins when it is due.
    pub(super) fn begin_to_poll(self: &Rc<Self>) {
        self.core.add_poller(Rc::new(std::cell::RefCell::new(StorePoller(self.clone()))));
    }

    /// The store serves from now on.
    pub(super) fn open_for_use(self: &Rc<Self>) {
        open_stores::add(self.inner().uuid, self.clone());
    }

    /// Makes everything durable and closes: the next import finds the pool clean. Volumes are out of use already.
    pub(crate) async fn export(self: &Rc<Self>) -> Result<(), LvsError> {
        let _pass = self.changes.enter().await;
        self.settle_io().await;
        self.rest().await;
        // A pool that failed is closed as it is: the next import finds what its disks have.
        let read_only = self.inner().read_only.is_some();
        let clean = if read_only { Ok(()) } else { self.checkpoint_cleanly().await };
        self.close().await;
        clean
    }

    pub(super) async fn checkpoint_cleanly(self: &Rc<Self>) -> Result<(), LvsError> {
        // The first merges what there is, the second finds nothing newer.
        self.checkpoint(false).await?;
        self.checkpoint(true).await
    }

    /// Closes and erases the labels and anchors.
    pub(crate) async fn destroy(self: &Rc<Self>) -> Result<(), LvsError> {
        let _pass = self.changes.enter().await;
        self.inner().check_writable()?;
        self.settle_io().await;
        self.rest().await;
        let erased = self.erase_superblocks().await;
        self.close().await;
        erased
    }

    /// Waits until nothing is in flight.
    async fn settle_io(&self) {
        // A pool that was given up has no devices, and I/Os that never end.
        loop {
            {
                let mut inner = self.inner();
                if !inner.has_io() || inner.members.is_empty() {
                    return;
                }
                inner.publish();
            }
            self.core.sleep(LOOK_AGAIN).await;
        }
    }

    /// Background work ends, before the last checkpoint and before the devices do. It may have to enter the gate of
    /// checkpoints for that.
    pub(in crate::store) async fn rest(&self) {
        self.closing.set(true);
        while self.feeding.get()
            || self.background.get()
            || self.cleaning.get()
            || self.noting.get()
            || self.evacuating.get()
            || self.scrub.is_running()
        {
            self.core.sleep(LOOK_AGAIN).await;
        }
    }

    pub(super) async fn close(&self) {
        open_stores::remove(self);
        let _no_more = self.checkpoints.enter().await;
        self.closed.set(true);
        let members = core::mem::take(&mut self.inner().members);
        close_members(members).await;
        self.claim.take();
    }

    /// Makes use of devices that became larger: their new segments count after a checkpoint.
    pub(crate) async fn grow(self: &Rc<Self>) -> Result<(), LvsError> {
        let _pass = self.changes.enter().await;
        {
            let mut inner = self.inner();
            let inner = &mut *inner;
            inner.check_fault()?;
            let mut larger = Vec::new();
            for (index, member) in inner.members.iter().enumerate().filter(|(_, m)| !m.absent) {
                let rescanned = member.device.rescan();
                let pool = inner.name.clone();
                rescanned.map_err(|source| LvsError::Device { pool, source })?;
                let segments = label::segments_of(member.len_blocks(), inner.space.segment_blocks());
                larger.push((index as u8, segments));
            }
            let more = |&(index, now): &(u8, u32)| {
                u64::from(now).saturating_sub(inner.space.member(index).len() as u64)
            };
            inner.check_segments(larger.iter().map(more).sum())?;
            for (index, segments) in larger {
                inner.space.grow_member(index, segments);
            }
        }
        self.checkpoint(false).await
    }

    /// Makes the blocks `[first, first + count)` of a line a hole, durably.
    pub(super) async fn cut_off(
        self: &Rc<Self>,
        line: LineId,
        first: u64,
        count: u64,
    ) -> Result<(), LvsError> {
        let queue = {
            let mut inner = self.inner();
            let queue = inner.open_queue(1);
            let target = Target { line, view: Seq::MAX, block_bytes: BLOCK_BYTES };
            inner.cut_off(queue, &target, first, count);
            inner.publish();
            queue
        };
        let status = loop {
            self.look_after();
            {
                let mut inner = self.inner();
                inner.progress();
                inner.publish();
                if let Some(done) = inner.queue(queue).done.pop_front() {
                    inner.close_queue(queue);
                    break done.status;
                }
            }
            self.core.sleep(LOOK_AGAIN).await;
        };
        if status != aio::IoStatus::SUCCESS {
            self.inner().check_fault()?;
            return Err(self.inner().damaged("what a smaller size cuts off could not be unmapped"));
        }
        self.flush_all().await
    }

    /// Overwrites labels and anchors of all devices with zeroes.
    pub(super) async fn erase_superblocks(&self) -> Result<(), LvsError> {
        let count = self.inner().members.len();
        for member in 0..count {
            if self.inner().members.get(member).is_none_or(|m| m.absent) {
                continue;
            }
            let pba = Pba::new(member as u8, 0).unwrap_or(Pba::NONE);
            let mut buf = self.buffer().await;
            let len = label::FIRST_SEGMENT_BLOCK as u32 * BLOCK_BYTES;
            buf[..len as usize].fill(0);
            let (descriptor, offset_bytes) = self.inner().device_of(pba)?;
            let (result, _) = descriptor.write_at_durable(offset_bytes, len, buf).await;
            self.wrote(pba, result)?;
        }
        Ok(())
    }
}
