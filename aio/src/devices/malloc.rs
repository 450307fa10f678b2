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

use super::exclusion::{Exclusion, Writer};
use super::instant_queue::InstantQueue;
use super::memory_device::{self, Medium, MemoryDevice};
use super::ram::Ram;
use crate::device::{Busy, Cancel, Capabilities, DeviceError, IoChannel, Sleep};
use crate::io::{BlockCount, BlockRange, Completion, Io, IoFlags, Lba, Lent, Opcode, Token};
use crate::sg::{RegionId, SgEntry};
use crate::uri::MemoryUri;
use crate::{IoStatus, check, sgmem};

/// Most bytes that are zeroed at submission or in one poll: what one Write Zeroes command can ask for with
/// 512-byte blocks. Giving that much memory back takes less than a millisecond.
const ZERO_AT_ONCE_BYTES: u64 = 32 << 20;

/// A RAM disk. Its contents live as long as the device and its channels.
pub type Malloc = MemoryDevice<RamDisk>;

type Shared = memory_device::Shared<RamDisk>;

/// Memory with room for the device, and who changes it.
pub struct RamDisk {
    ram: Ram,
    exclusion: Arc<Exclusion>,
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
        Ok(Self::on(RamDisk { ram, exclusion: Arc::default() }, uri))
    }
}

impl Medium for RamDisk {
    const DRIVER: &'static str = "malloc";

    const CAPABILITIES: Capabilities = Capabilities::FUA
        .union(Capabilities::UNMAP)
        .union(Capabilities::UNMAP_ZEROES)
        .union(Capabilities::WRITE_ZEROES)
        .union(Capabilities::COMPARE)
        .union(Capabilities::COMPARE_AND_WRITE)
        .union(Capabilities::VERIFY)
        .union(Capabilities::COPY)
        .union(Capabilities::LENDS);

    fn max_bytes(&self) -> u64 {
        self.ram.len_bytes()
    }

    fn channel(shared: Arc<Shared>) -> Box<dyn IoChannel> {
        let writer = Writer::new(&shared.medium().exclusion);
        let queue = InstantQueue::new(shared.geometry().queue_depth);
        Box::new(Channel { shared, writer, queue, long_work: VecDeque::new() })
    }
}

impl Shared {
    #[inline]
    fn offset_bytes(&self, lba: Lba) -> u64 {
        lba.0 << self.geometry().block_bytes.trailing_zeros()
    }

    /// The memory of a block that exists, or the end of the device.
    #[inline]
    fn at(&self, lba: Lba) -> NonNull<u8> {
        self.medium().ram.at(self.offset_bytes(lba))
    }

    /// True when a valid Unmap or Write Zeroes is too long to be done at submission.
    fn zeroes_much(&self, io: &Io<'_>) -> bool {
        let blocks = match io.opcode {
            // Validated: the sum fits.
            Opcode::Unmap => io.ranges.iter().map(|range| range.blocks.0).sum(),
            _ => io.blocks.0,
        };
        blocks > ZERO_AT_ONCE_BYTES / u64::from(self.geometry().block_bytes)
    }

    fn zero(&self, range: BlockRange) {
        let block_bytes = u64::from(self.geometry().block_bytes);
        self.medium().ram.zero(self.offset_bytes(range.start), range.blocks.0 * block_bytes);
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
            let len_bytes = io.blocks.0 as u32 * shared.geometry().block_bytes;
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
        self.shared.admit(io)
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
        let block_bytes = u64::from(self.shared.geometry().block_bytes);
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
            let len = (range.blocks.0 * u64::from(shared.geometry().block_bytes)) as usize;
            // SAFETY: both ranges lie within the device; they may overlap, which this copy allows.
            unsafe { core::ptr::copy(src, dst, len) };
            dst = dst.wrapping_add(len);
        }
    }
}
