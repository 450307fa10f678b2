//! `malloc`: a RAM disk.
//!
//! Every I/O is done at submission and its completion is delivered by the next poll; only very long Unmap and
//! Write Zeroes are done a piece a poll, so that they do not hold up their core. Reads that may be lent
//! are answered with the device's own memory, *unstable*: a later write changes it in place.
//!
//! # Several cores
//! Channels share the memory without locks and copy through raw pointers. Where two cores access one block at
//! the same time, and one of them writes, every byte read or left behind is either the old or the new one, in
//! no particular mix: hosts that race on a block get what NVMe promises them, nothing more than that one of
//! the commands is ordered first once both have completed on one core. Across cores the completion reaches
//! the submitter of a later I/O through some message of the layers above, which orders the memory accesses.
//! Compare and Write is atomic against all changes of all cores (`exclusion`).
//!
//! # Unsafe
//! Copies between callers' lists and the mapping; `submit`'s contract makes the lists valid, and
//! [`check::validate`] makes the offsets fit.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

use super::events::EventHub;
use super::exclusion::{Exclusion, Writer};
use super::instant_queue::InstantQueue;
use super::ram::Ram;
use crate::device::{
    BlockDevice, Busy, Cancel, Capabilities, DeviceError, DeviceEvent, EventSink, Geometry, IoChannel,
    LocalBoxFuture, Sleep, Subscription,
};
use crate::io::{BlockCount, BlockRange, Completion, Io, IoFlags, Lba, Lent, Opcode, Token};
use crate::sg::{RegionId, SgEntry};
use crate::uri::MemoryUri;
use crate::{IoStatus, check, sgmem};

/// Most bytes of one transfer: bounds the time that one submission keeps its core.
pub(super) const MAX_TRANSFER_BYTES: u32 = 4 << 20;

/// I/Os of one channel that wait for their poll or are lent.
pub(super) const QUEUE_DEPTH: u32 = 4096;

/// Most entries of one list. They are only walked, so this is a plain sanity bound.
pub(super) const MAX_SG: u16 = 2048;

/// Most bytes that are zeroed at submission or in one poll: what one Write Zeroes command can ask for with
/// 512-byte blocks. Giving that much memory back takes less than a millisecond.
const ZERO_AT_ONCE_BYTES: u64 = 32 << 20;

const CAPABILITIES: Capabilities = Capabilities::FUA
    .union(Capabilities::UNMAP)
    .union(Capabilities::UNMAP_ZEROES)
    .union(Capabilities::WRITE_ZEROES)
    .union(Capabilities::COMPARE)
    .union(Capabilities::COMPARE_AND_WRITE)
    .union(Capabilities::VERIFY)
    .union(Capabilities::COPY)
    .union(Capabilities::LENDS);

/// A RAM disk. Its contents live as long as the device and its channels.
pub struct Malloc {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    uuid: Uuid,
    incarnation: u128,
    geometry: Geometry,
    ram: Ram,
    blocks: AtomicU64,
    removed: AtomicBool,
    exclusion: Arc<Exclusion>,
    events: EventHub,
}

impl Malloc {
    /// Makes the device that `uri` describes, full of zeroes. Memory is taken when blocks are written.
    pub fn new(uri: &MemoryUri) -> Result<Self, DeviceError> {
        let len_bytes = uri.blocks.saturating_mul(u64::from(uri.block_bytes));
        let ram = Ram::reserve(len_bytes).map_err(|source| DeviceError::Os {
            op: "reserving memory",
            device: uri.name.clone(),
            source,
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                name: uri.name.clone(),
                uuid: uri.uuid.unwrap_or_else(Uuid::new_v4),
                incarnation: Uuid::new_v4().as_u128(),
                geometry: memory_geometry(uri.block_bytes),
                ram,
                blocks: AtomicU64::new(uri.blocks),
                removed: AtomicBool::new(false),
                exclusion: Arc::default(),
                events: EventHub::default(),
            }),
        })
    }
}

/// Geometry of devices that only touch memory.
pub(super) fn memory_geometry(block_bytes: u32) -> Geometry {
    Geometry {
        block_bytes,
        meta_bytes: 0,
        buf_align: 1,
        sg_elem_align: 1,
        max_sg: MAX_SG,
        max_blocks: MAX_TRANSFER_BYTES / block_bytes,
        boundary_blocks: 0,
        atomic_blocks: 1,
        compare_write_blocks: MAX_TRANSFER_BYTES / block_bytes,
        queue_depth: QUEUE_DEPTH,
    }
}

impl BlockDevice for Malloc {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    fn driver(&self) -> &'static str {
        "malloc"
    }

    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn size(&self) -> BlockCount {
        self.shared.size()
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn incarnation(&self) -> Option<u128> {
        Some(self.shared.incarnation)
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.shared.events.subscribe(sink)
    }

    /// Grows the device. Refuses to shrink: a host may be using what would go away.
    fn resize(&self, blocks: BlockCount) -> Result<BlockCount, DeviceError> {
        let shared = &self.shared;
        let device = || shared.name.clone();
        if shared.removed.load(Ordering::Acquire) {
            return Err(DeviceError::Gone(device()));
        }
        let old = shared.size();
        if blocks < old {
            return Err(DeviceError::Unsupported { op: "shrinking", device: device() });
        }
        let len_bytes = blocks.0.checked_mul(u64::from(shared.geometry.block_bytes));
        if len_bytes.is_none_or(|len| len > shared.ram.len_bytes()) {
            let source = std::io::ErrorKind::OutOfMemory.into();
            return Err(DeviceError::Os {
                op: "growing beyond its reserved addresses",
                device: device(),
                source,
            });
        }
        if shared.blocks.fetch_max(blocks.0, Ordering::AcqRel) < blocks.0 {
            shared.events.send(DeviceEvent::Resized(blocks));
        }
        Ok(shared.size())
    }

    fn remove(&self) {
        if !self.shared.removed.swap(true, Ordering::AcqRel) {
            self.shared.events.send(DeviceEvent::Removed);
        }
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            if shared.removed.load(Ordering::Acquire) {
                return Err(DeviceError::Gone(shared.name.clone()));
            }
            let writer = Writer::new(&shared.exclusion);
            let queue = InstantQueue::new(shared.geometry.queue_depth);
            Ok(Box::new(Channel { shared, writer, queue, long_work: VecDeque::new() }) as Box<dyn IoChannel>)
        })
    }
}

impl Shared {
    #[inline]
    fn size(&self) -> BlockCount {
        BlockCount(self.blocks.load(Ordering::Acquire))
    }

    #[inline]
    fn offset_bytes(&self, lba: Lba) -> u64 {
        lba.0 << self.geometry.block_bytes.trailing_zeros()
    }

    /// The memory of a block that exists, or the end of the device.
    #[inline]
    fn at(&self, lba: Lba) -> NonNull<u8> {
        self.ram.at(self.offset_bytes(lba))
    }

    /// True when a valid Unmap or Write Zeroes is too long to be done at submission.
    fn zeroes_much(&self, io: &Io<'_>) -> bool {
        let blocks = match io.opcode {
            // Validated: the sum fits.
            Opcode::Unmap => io.ranges.iter().map(|range| range.blocks.0).sum(),
            _ => io.blocks.0,
        };
        blocks > ZERO_AT_ONCE_BYTES / u64::from(self.geometry.block_bytes)
    }

    fn zero(&self, range: BlockRange) {
        let block_bytes = u64::from(self.geometry.block_bytes);
        self.ram.zero(self.offset_bytes(range.start), range.blocks.0 * block_bytes);
    }
}

struct Channel {
    shared: Arc<Shared>,
    writer: Writer,
    queue: InstantQueue,
    /// Large ranges that are being zeroed, a piece a poll.
    long_work: VecDeque<LongZero>,
}

/// An Unmap or Write Zeroes too long for one go.
struct LongZero {
    token: Token,
    /// What is left, last first.
    ranges: Vec<BlockRange>,
}

impl IoChannel for Channel {
    #[inline]
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        self.queue.reserve()?;
        let shared = &*self.shared;
        if let Err(status) = self.admit(io) {
            self.queue.complete(token, status);
            return Ok(());
        }
        if io.opcode == Opcode::Read && io.flags.contains(IoFlags::MAY_LEND) && io.blocks.0 > 0 {
            let len_bytes = io.blocks.0 as u32 * shared.geometry.block_bytes;
            self.queue.lend(token, SgEntry { ptr: shared.at(io.lba), len_bytes, region: RegionId::NONE });
            return Ok(());
        }
        if matches!(io.opcode, Opcode::WriteZeroes | Opcode::Unmap) && shared.zeroes_much(io) {
            self.begin_long_zero(io, token);
            return Ok(());
        }
        // SAFETY: the caller's promise about the lists, and `admit` checked lengths and range.
        let status = unsafe { self.execute(io) };
        self.queue.complete(token, status);
        Ok(())
    }

    fn kick(&mut self) {}

    #[inline]
    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        if !self.long_work.is_empty() {
            self.continue_long_zero();
        }
        self.queue.poll(out, budget)
    }

    fn take_ready(&mut self) -> bool {
        self.queue.take_ready()
    }

    fn prepare_sleep(&mut self) -> Sleep {
        if self.long_work.is_empty() { self.queue.prepare_sleep() } else { Sleep::KeepPolling }
    }

    /// Always too late: the work was done, or begun, at submission.
    fn cancel(&mut self, _token: Token) -> Cancel {
        Cancel::TooLate
    }

    fn lent(&self, token: Token) -> Lent<'_> {
        self.queue.lent(token, false)
    }

    fn release(&mut self, token: Token) {
        self.queue.release(token);
    }

    fn close(&mut self) {
        self.queue.close();
    }

    fn drained(&self) -> bool {
        self.queue.drained()
    }
}

impl Channel {
    #[inline]
    fn admit(&self, io: &Io<'_>) -> Result<(), IoStatus> {
        if self.queue.is_closed() {
            return Err(check::CLOSED);
        }
        if self.shared.removed.load(Ordering::Relaxed) {
            return Err(check::REMOVED);
        }
        check::validate(io, &self.shared.geometry, CAPABILITIES, self.shared.size())
    }

    /// Takes up a long Unmap or Write Zeroes. Allocates: these are as rare as they are long.
    #[cold]
    fn begin_long_zero(&mut self, io: &Io<'_>, token: Token) {
        let ranges = match io.opcode {
            Opcode::Unmap => io.ranges.iter().rev().copied().collect(),
            _ => vec![BlockRange { start: io.lba, blocks: io.blocks }],
        };
        self.queue.begin_work();
        self.long_work.push_back(LongZero { token, ranges });
    }

    #[cold]
    fn continue_long_zero(&mut self) {
        let block_bytes = u64::from(self.shared.geometry.block_bytes);
        let mut budget_blocks = ZERO_AT_ONCE_BYTES / block_bytes;
        let Some(work) = self.long_work.front_mut() else { return };
        let _guard = self.writer.enter();
        while let Some(range) = work.ranges.last_mut().filter(|_| budget_blocks > 0) {
            let blocks = range.blocks.0.min(budget_blocks);
            self.shared.zero(BlockRange { start: range.start, blocks: BlockCount(blocks) });
            budget_blocks -= blocks;
            range.start.0 += blocks;
            range.blocks.0 -= blocks;
            if range.blocks.0 == 0 {
                work.ranges.pop();
            }
        }
        if work.ranges.is_empty() {
            self.queue.complete_work(work.token, IoStatus::SUCCESS);
            self.long_work.pop_front();
        }
    }

    /// Does the work of a valid `io`.
    ///
    /// # Safety
    /// The lists are valid as `submit` demands, and `io` passed `admit`.
    #[inline]
    unsafe fn execute(&self, io: &Io<'_>) -> IoStatus {
        let shared = &*self.shared;
        // Only for opcodes whose `lba` was checked: Flush and Unmap may carry anything there.
        let mem = || shared.at(io.lba).as_ptr();
        match io.opcode {
            Opcode::Read => {
                // SAFETY: the lists are the caller's, the device's bytes fit; neither overlaps the other
                // unless the caller lends us our own memory back, which `submit` forbids.
                unsafe { sgmem::scatter(mem(), io.sg) };
            }
            Opcode::Write => {
                let _guard = self.writer.enter();
                // SAFETY: as for Read.
                unsafe { sgmem::gather(io.sg, mem()) };
            }
            Opcode::Flush | Opcode::Verify => {}
            Opcode::WriteZeroes => {
                let _guard = self.writer.enter();
                shared.zero(BlockRange { start: io.lba, blocks: io.blocks });
            }
            Opcode::Unmap => {
                let _guard = self.writer.enter();
                io.ranges.iter().for_each(|range| shared.zero(*range));
            }
            Opcode::Compare => {
                // SAFETY: as for Read.
                if !unsafe { sgmem::equal(io.sg, mem()) } {
                    return IoStatus::COMPARE_FAILURE;
                }
            }
            Opcode::CompareAndWrite => {
                return self.writer.exclusively(|| {
                    // SAFETY: as for Read.
                    if !unsafe { sgmem::equal(io.sg, mem()) } {
                        return IoStatus::COMPARE_FAILURE;
                    }
                    // SAFETY: as for Read.
                    unsafe { sgmem::gather(io.second, mem()) };
                    IoStatus::SUCCESS
                });
            }
            Opcode::Copy => {
                let _guard = self.writer.enter();
                self.copy(io.ranges, mem());
            }
        }
        IoStatus::SUCCESS
    }

    /// Copies ranges that were checked, one after the other.
    fn copy(&self, ranges: &[BlockRange], mut dst: *mut u8) {
        let shared = &*self.shared;
        for range in ranges {
            let src = shared.at(range.start).as_ptr();
            let len = (range.blocks.0 * u64::from(shared.geometry.block_bytes)) as usize;
            // SAFETY: both ranges lie within the device; they may overlap, which this copy allows.
            unsafe { core::ptr::copy(src, dst, len) };
            dst = dst.wrapping_add(len);
        }
    }
}
