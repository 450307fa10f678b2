//! The pool's devices, and operations on them that are in flight.

use std::collections::VecDeque;
use std::sync::Arc;

use aio::{
    BlockCount, BlockDevice, Capabilities, Descriptor, Geometry, Io, IoChannel, IoFlags, Lba, Opcode,
    SgEntry, Token,
};
use uuid::Uuid;

use super::absent::AbsentDisk;
use super::slab::Slab;
use crate::LvsError;
use crate::format::anchor::{Member as AnchorMember, MemberState};
use crate::format::label::ANCHOR_BLOCKS;
use crate::types::{BLOCK_BYTES, Pba};

/// One device of the pool.
pub(super) struct Member {
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) uuid: Uuid,
    /// What may be done with it.
    pub(super) state: MemberState,
    /// Copies of the pool's newest anchor that an import did not find on it.
    pub(super) lacks_anchor: [bool; ANCHOR_BLOCKS.len()],
    /// It is missing, or was removed: nothing is there that could be read or written.
    pub(super) absent: bool,
    /// For I/O of volumes. Declared, and so dropped, before everything that its I/Os name.
    pub(super) channel: Box<dyn IoChannel>,
    /// For slow work.
    pub(super) descriptor: Descriptor,
    pub(super) geometry: Geometry,
    pub(super) volatile: bool,
    pub(super) fua: bool,
    /// Written since its last flush began.
    pub(super) dirty: bool,
    /// Flushes that have not ended: what they cover is not durable yet, though the device is not dirty.
    pub(super) flushing: u32,
    /// Submitted since the last kick.
    pub(super) kick: bool,
    /// Operations that the channel has.
    pub(super) in_flight: u32,
    /// Operations that the channel had no slot for.
    pub(super) waiting: VecDeque<u32>,
}

impl Member {
    /// Nothing was asked of its channel that is not answered.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.waiting.is_empty()
    }

    /// Opens a device, as a member with nothing known of its label.
    pub(super) async fn open(pool: &str, device: Arc<dyn BlockDevice>) -> Result<Self, LvsError> {
        let gone = |source| LvsError::Device { pool: pool.to_owned(), source };
        let channel = device.open_channel().await.map_err(gone)?;
        let descriptor = Descriptor::open(device.clone()).await.map_err(gone)?;
        let capabilities = device.capabilities();
        Ok(Self {
            uuid: Uuid::nil(),
            state: MemberState::Active,
            lacks_anchor: Default::default(),
            absent: false,
            channel,
            descriptor,
            geometry: device.geometry(),
            volatile: capabilities.contains(Capabilities::VOLATILE_CACHE),
            fua: capabilities.contains(Capabilities::FUA),
            dirty: false,
            flushing: 0,
            kick: false,
            in_flight: 0,
            waiting: VecDeque::new(),
            device,
        })
    }

    /// What stands in the place of a device that is not there.
    pub(super) async fn absent(
        pool: &str,
        wanted: &AnchorMember,
        index: usize,
        like: Geometry,
    ) -> Result<Self, LvsError> {
        let name = match wanted.state {
            MemberState::Removed => format!("disk {index} of {pool}, which was removed"),
            _ => format!("disk {index} of {pool}, which is missing"),
        };
        let blocks = wanted.size_blocks * u64::from(BLOCK_BYTES / like.block_bytes);
        let member = Self::open(pool, AbsentDisk::new(name, wanted.device, like, blocks)).await?;
        Ok(Self { uuid: wanted.device, state: wanted.state, absent: true, ..member })
    }

    /// Ends its use.
    pub(super) async fn close(self) {
        drop(self.channel);
        self.descriptor.close().await;
    }

    /// Its size in blocks of the store.
    pub(super) fn len_blocks(&self) -> u64 {
        self.device.size().0 / self.per_block()
    }

    /// Begins a flush when there is something that may not be durable; [`flush_ended`](Self::flush_ended) follows.
    pub(super) fn begin_flush(&mut self) -> bool {
        let needed = self.volatile && (self.dirty || self.flushing > 0);
        if needed {
            self.dirty = false;
            self.flushing += 1;
        }
        needed
    }

    /// A flush that was begun ended, well or not.
    pub(super) fn flush_ended(&mut self) {
        self.flushing -= 1;
    }

    /// Device blocks in a block of the store.
    pub(super) fn per_block(&self) -> u64 {
        u64::from(BLOCK_BYTES / self.geometry.block_bytes)
    }

    /// Every entry suits the device as it is.
    pub(super) fn takes(&self, sg: &[SgEntry]) -> bool {
        let (address, length) = (self.geometry.buf_align as usize - 1, self.geometry.sg_elem_align - 1);
        sg.iter().all(|e| e.ptr.addr().get() & address == 0 && e.len_bytes & length == 0)
    }
}

/// Who waits for a device operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// Blocks of a read, from this one of its places on.
    Read { io: u32, place: u32 },
    /// A record.
    Record(u32),
    /// A map page, in this slot of those that are being read.
    Page(u32),
    /// A flush of all devices.
    Flush,
}

/// A device operation in flight, or waiting for a slot of its device.
pub(super) struct DevOp {
    pub(super) member: u8,
    pub(super) opcode: Opcode,
    pub(super) fua: bool,
    pub(super) pba: Pba,
    pub(super) blocks: u32,
    pub(super) sg: Vec<SgEntry>,
    pub(super) owner: Owner,
}

impl DevOp {
    pub(super) fn empty() -> Self {
        Self {
            member: 0,
            opcode: Opcode::Flush,
            fua: false,
            pba: Pba::NONE,
            blocks: 0,
            sg: Vec::with_capacity(16),
            owner: Owner::Flush,
        }
    }
}

/// Offers `op` to its device; it waits in line when that is busy.
///
/// # Safety
/// The memory that `op` names stays valid until its completion (see [`IoChannel::submit`]).
pub(super) unsafe fn offer(members: &mut [Member], ops: &Slab<DevOp>, index: u32) {
    let op = &ops[index];
    let member = &mut members[usize::from(op.member)];
    // SAFETY: as the caller promises.
    if !member.waiting.is_empty() || unsafe { !submit(member, ops, index) } {
        member.waiting.push_back(index);
    }
}

/// Offers what waited, in order.
///
/// # Safety
/// As for [`offer`].
pub(super) unsafe fn offer_waiting(member: &mut Member, ops: &Slab<DevOp>) {
    while let Some(&index) = member.waiting.front() {
        // SAFETY: as the caller promises.
        if unsafe { !submit(member, ops, index) } {
            return;
        }
        member.waiting.pop_front();
    }
}

/// # Safety
/// As for [`offer`].
unsafe fn submit(member: &mut Member, ops: &Slab<DevOp>, index: u32) -> bool {
    let op = &ops[index];
    let per_block = member.per_block();
    let (lba, blocks) = match op.opcode {
        Opcode::Flush => (Lba(0), BlockCount(0)),
        _ => (Lba(op.pba.block() * per_block), BlockCount(u64::from(op.blocks) * per_block)),
    };
    let mut flags = if op.opcode == Opcode::Write { IoFlags::STABLE } else { IoFlags::empty() };
    if op.fua {
        flags |= IoFlags::FUA;
    }
    let io = Io { sg: &op.sg, flags, ..Io::new(op.opcode, lba, blocks) };
    // SAFETY: as the caller promises.
    let taken = unsafe { member.channel.submit(&io, Token::new(index, ops.generation(index))) }.is_ok();
    member.kick |= taken;
    member.in_flight += u32::from(taken);
    if taken && op.opcode == Opcode::Write {
        member.dirty = true;
    }
    taken
}
