//! The contract as `async` functions, for embedders and for slow work of the layers above.
//!
//! # Map
//! - [`Descriptor`] (this file): an open device on the current core; reads and writes by byte offset on [`DmaBuf`]s.
//! - `slots`: I/Os in flight and the buffers that they own; the poller that completes them.
//!
//! Buffers go in by value and come back with the result, so that safe code can neither free nor touch memory that a
//! device works on. Dropping a future does not stop its I/O: the slot keeps the buffer until the completion, and a
//! write takes place as if it had been awaited.

mod slots;

use std::rc::Rc;
use std::sync::Arc;

use crate::IoStatus;
use crate::device::{BlockDevice, Capabilities, DeviceError, Geometry};
use crate::io::{BlockCount, BlockRange, IoFlags, Lba, MAX_RANGES, Opcode};
use crate::memory::DmaBuf;
use crate::reactor::Core;

use slots::{Inner, Request};

/// Why an I/O did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IoError {
    /// Offset and length have to be multiples of the block size.
    #[error(
        "offset {offset_bytes} and length {len_bytes} are not both multiples of the block size {block_bytes}"
    )]
    Unaligned {
        /// As given.
        offset_bytes: u64,
        /// As given.
        len_bytes: u64,
        /// What both have to be multiples of.
        block_bytes: u32,
    },
    /// The buffer's address does not suit the device.
    #[error("the buffer is not aligned to {align_bytes} bytes as the device needs")]
    BufferAddress {
        /// What it has to be aligned to.
        align_bytes: u32,
    },
    /// The buffer is shorter than the transfer.
    #[error("a transfer of {len_bytes} bytes does not fit into a buffer of {buffer_bytes}")]
    BufferLength {
        /// As given.
        len_bytes: u32,
        /// What the buffer holds.
        buffer_bytes: u32,
    },
    /// More ranges than one command takes.
    #[error("{ranges} ranges are more than the {MAX_RANGES} that one command takes")]
    TooManyRanges {
        /// As given.
        ranges: usize,
    },
    /// The device answered so.
    #[error("the device answered {0:?}")]
    Status(IoStatus),
    /// The descriptor was closed, or its reactor stopped.
    #[error("the descriptor is closed")]
    Closed,
}

/// What an I/O with a buffer resolves to. The buffer comes back in any case; after a failed read its bytes mean nothing.
pub type BufResult = (Result<(), IoError>, DmaBuf);

/// Bytes `[offset_bytes, offset_bytes + len_bytes)` of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteRange {
    /// First byte, a multiple of the block size.
    pub offset_bytes: u64,
    /// Length, a multiple of the block size.
    pub len_bytes: u64,
}

/// An open device on one core. Clones share the channel; it is drained and closed when the last is dropped.
#[derive(Clone)]
pub struct Descriptor(Rc<Open>);

struct Open {
    device: Arc<dyn BlockDevice>,
    geometry: Geometry,
    capabilities: Capabilities,
    inner: Rc<Inner>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.inner.begin_close();
    }
}

impl Descriptor {
    /// Opens `device` on the core that runs this. Dropping the future opens nothing.
    ///
    /// # Panics
    /// Outside a reactor (a bug of the caller).
    pub async fn open(device: Arc<dyn BlockDevice>) -> Result<Self, DeviceError> {
        let channel = device.open_channel().await?;
        let core = Core::current().expect("invariant: descriptors are opened on a reactor");
        let geometry = device.geometry();
        let inner = Inner::start(&core, channel, geometry.queue_depth);
        let capabilities = device.capabilities();
        Ok(Self(Rc::new(Open { device, geometry, capabilities, inner })))
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.0.device
    }

    /// Shape and limits of the device.
    pub fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    /// Current size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.0.device.size().0.saturating_mul(u64::from(self.0.geometry.block_bytes))
    }

    /// Reads `len_bytes` at `offset_bytes` into the start of `buf`.
    pub async fn read_at(&self, offset_bytes: u64, len_bytes: u32, buf: DmaBuf) -> BufResult {
        self.transfer(Opcode::Read, IoFlags::empty(), offset_bytes, len_bytes, buf).await
    }

    /// Writes the first `len_bytes` of `buf` at `offset_bytes`. Durable after [`flush`](Self::flush).
    pub async fn write_at(&self, offset_bytes: u64, len_bytes: u32, buf: DmaBuf) -> BufResult {
        self.transfer(Opcode::Write, IoFlags::STABLE, offset_bytes, len_bytes, buf).await
    }

    /// As [`write_at`](Self::write_at), and durable when it resolves: with Force Unit Access where the device has
    /// that, else by a flush behind the write.
    pub async fn write_at_durable(&self, offset_bytes: u64, len_bytes: u32, buf: DmaBuf) -> BufResult {
        let volatile = self.0.capabilities.contains(Capabilities::VOLATILE_CACHE);
        if !volatile || self.0.capabilities.contains(Capabilities::FUA) {
            let flags = IoFlags::STABLE | IoFlags::FUA;
            return self.transfer(Opcode::Write, flags, offset_bytes, len_bytes, buf).await;
        }
        let (result, buf) = self.write_at(offset_bytes, len_bytes, buf).await;
        match result {
            Ok(()) => (self.flush().await, buf),
            Err(_) => (result, buf),
        }
    }

    /// Compares the first `len_bytes` of `buf` with the device: [`IoStatus::COMPARE_FAILURE`] at a difference.
    pub async fn compare_at(&self, offset_bytes: u64, len_bytes: u32, buf: DmaBuf) -> BufResult {
        self.transfer(Opcode::Compare, IoFlags::STABLE, offset_bytes, len_bytes, buf).await
    }

    /// Makes all writes that resolved before durable.
    pub async fn flush(&self) -> Result<(), IoError> {
        self.plain(Request::new(Opcode::Flush)).await
    }

    /// Makes `range` read as zeroes; `deallocate` allows giving the space back.
    pub async fn write_zeroes(&self, range: ByteRange, deallocate: bool) -> Result<(), IoError> {
        let range = self.blocks(range)?;
        let flags = if deallocate { IoFlags::DEALLOCATE } else { IoFlags::empty() };
        let request =
            Request { flags, lba: range.start, blocks: range.blocks, ..Request::new(Opcode::WriteZeroes) };
        self.plain(request).await
    }

    /// Tells the device that `ranges` are unused.
    pub async fn unmap(&self, ranges: &[ByteRange]) -> Result<(), IoError> {
        if ranges.len() > MAX_RANGES {
            return Err(IoError::TooManyRanges { ranges: ranges.len() });
        }
        let ranges = ranges.iter().map(|&r| self.blocks(r)).collect::<Result<Vec<_>, _>>()?;
        self.plain(Request { ranges, ..Request::new(Opcode::Unmap) }).await
    }

    /// Waits until everything in flight has completed, also what was abandoned, and closes the channel. Other clones
    /// get [`IoError::Closed`]. Dropping the future leaves the closing to go on by itself.
    pub async fn close(self) {
        self.0.inner.begin_close();
        self.0.inner.closed().await;
    }

    fn blocks(&self, range: ByteRange) -> Result<BlockRange, IoError> {
        let ByteRange { offset_bytes, len_bytes } = range;
        let block_bytes = self.0.geometry.block_bytes;
        let block = u64::from(block_bytes);
        if !offset_bytes.is_multiple_of(block) || !len_bytes.is_multiple_of(block) {
            return Err(IoError::Unaligned { offset_bytes, len_bytes, block_bytes });
        }
        Ok(BlockRange { start: Lba(offset_bytes / block), blocks: BlockCount(len_bytes / block) })
    }

    fn check(&self, offset_bytes: u64, len_bytes: u32, buf: &DmaBuf) -> Result<BlockRange, IoError> {
        if len_bytes > buf.len_bytes() {
            return Err(IoError::BufferLength { len_bytes, buffer_bytes: buf.len_bytes() });
        }
        let align_bytes = self.0.geometry.buf_align;
        if !buf.ptr().addr().get().is_multiple_of(align_bytes.max(1) as usize) {
            return Err(IoError::BufferAddress { align_bytes });
        }
        self.blocks(ByteRange { offset_bytes, len_bytes: u64::from(len_bytes) })
    }

    async fn transfer(
        &self,
        opcode: Opcode,
        flags: IoFlags,
        offset_bytes: u64,
        len_bytes: u32,
        buf: DmaBuf,
    ) -> BufResult {
        let range = match self.check(offset_bytes, len_bytes, &buf) {
            Ok(range) => range,
            Err(e) => return (Err(e), buf),
        };
        let request = Request { flags, lba: range.start, blocks: range.blocks, ..Request::new(opcode) };
        let (result, buf) = self.0.inner.run(request, Some((buf, len_bytes))).await;
        (result, buf.expect("invariant: a buffer that went in comes back"))
    }

    async fn plain(&self, request: Request) -> Result<(), IoError> {
        self.0.inner.run(request, None).await.0
    }
}

#[cfg(test)]
mod tests;
