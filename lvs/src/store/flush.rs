//! What FLUSH, and FUA on devices that do not have it, wait for: the caches of all devices that were written.
//!
//! One flush runs at a time; those that come meanwhile share the next one. A flush that fails faults the pool (H8): what the
//! device forgot, a second flush would not bring back.

use aio::{IoStatus, Opcode};

use super::Inner;
use super::io::Stage;
use super::member::{self, Owner};
use crate::types::{Pba, Seq};

/// Who waits for which flush.
#[derive(Default)]
pub(super) struct Flushes {
    /// Served by the one that runs.
    served: Vec<u32>,
    /// Came after it began.
    waiting: Vec<u32>,
    /// Devices that have not answered.
    left: u32,
    failed: bool,
    /// Complete records when it began.
    covers: Seq,
}

impl Inner {
    /// True when one of the devices has a volatile cache.
    pub(crate) fn any_volatile(&self) -> bool {
        self.members.iter().any(|m| m.volatile)
    }

    /// True when a device without FUA makes FUA writes flush.
    pub(super) fn needs_flush_for_fua(&self) -> bool {
        self.members.iter().any(|m| m.volatile && !m.fua)
    }

    /// The I/O completes when all that is complete now is durable.
    pub(super) fn wait_for_flush(&mut self, io: u32) {
        self.ios[io].stage = Stage::Flush;
        if self.fault.is_some() {
            self.ios[io].fail(IoStatus::INTERNAL_ERROR);
            self.finish(io);
        } else if self.flush.left > 0 {
            self.flush.waiting.push(io);
        } else {
            self.flush.served.push(io);
            self.begin_flush();
        }
    }

    fn begin_flush(&mut self) {
        self.flush.covers = self.log.completed();
        // After a failure none succeeds any more: what was lost was written before this one began, too.
        self.flush.failed = self.fault.is_some();
        for at in 0..self.members.len() {
            if self.flush.failed || !self.members[at].begin_flush() {
                continue;
            }
            let index = self.ops.take();
            let op = &mut self.ops[index];
            op.sg.clear();
            (op.member, op.opcode, op.fua, op.pba, op.blocks) =
                (at as u8, Opcode::Flush, false, Pba::NONE, 0);
            op.owner = Owner::Flush;
            self.flush.left += 1;
            // SAFETY: a flush names no memory.
            unsafe { member::offer(&mut self.members, &self.ops, index) };
        }
        if self.flush.left == 0 {
            self.flush_ended();
        }
    }

    /// One device answered.
    pub(super) fn flush_done(&mut self, member: usize, status: IoStatus) {
        self.members[member].flush_ended();
        self.flush.left -= 1;
        if status != IoStatus::SUCCESS {
            self.flush.failed = true;
            self.fail_pool("a disk failed to flush its cache");
        }
        if self.flush.left == 0 {
            self.flush_ended();
        }
    }

    fn flush_ended(&mut self) {
        // A flush of slow work may have failed meanwhile, and have taken with it what this one was to cover.
        self.flush.failed |= self.fault.is_some();
        if !self.flush.failed {
            self.log.durable_to(self.flush.covers);
        }
        let mut served = core::mem::take(&mut self.flush.served);
        for io in served.drain(..) {
            if self.flush.failed {
                self.ios[io].fail(IoStatus::INTERNAL_ERROR);
            }
            self.finish(io);
        }
        self.flush.served = core::mem::replace(&mut self.flush.waiting, served);
        if !self.flush.served.is_empty() {
            self.begin_flush();
        }
    }
}
