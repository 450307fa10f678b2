//! The block-device contract. `lvs`, `nexus`, `nvmf` and every driver meet here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::facets::{Marks, Ranges, Reservations, Snapshots};
use crate::io::{BlockCount, Completion, Io, Lent, Token};
use crate::time::Instant;

/// A boxed future that stays on its core. Control side only.
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Shape and limits of a device. All of it is fixed for the life of the device except the size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Logical block size in bytes: a power of two, 512 to 65,536.
    pub block_bytes: u32,
    /// Separate metadata per block in bytes; 0 = none.
    pub meta_bytes: u16,
    /// Alignment that payload addresses need, in bytes (a power of two; 1 = any).
    pub buf_align: u32,
    /// Alignment that the length of each entry but the last needs, in bytes (1 = any).
    pub sg_elem_align: u32,
    /// Most entries of one payload list.
    pub max_sg: u16,
    /// Most blocks of one I/O that transfers data; larger ones fail with Invalid Field.
    pub max_blocks: u32,
    /// I/Os should not cross multiples of this many blocks; 0 = no boundary. A hint: crossing is legal.
    pub boundary_blocks: u32,
    /// Writes up to this many blocks are atomic with respect to power failure.
    pub atomic_blocks: u32,
    /// Most blocks of a Compare and Write, where the device has it; longer ones fail with Atomic Write Unit Exceeded.
    pub compare_write_blocks: u32,
    /// I/Os that one channel takes before it answers [`Busy`]; at least 1.
    pub queue_depth: u32,
}

bitflags::bitflags! {
    /// What a device can do beyond Read, Write and Flush, which every device takes.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Capabilities: u32 {
        /// Completed writes may be lost on power failure until a Flush.
        const VOLATILE_CACHE = 1;
        /// Honours [`IoFlags::FUA`](crate::IoFlags::FUA) itself. Without a volatile cache every write is FUA.
        const FUA = 1 << 1;
        /// Takes [`Opcode::Unmap`](crate::Opcode::Unmap).
        const UNMAP = 1 << 2;
        /// Unmapped blocks read as zeroes.
        const UNMAP_ZEROES = 1 << 3;
        /// Takes [`Opcode::WriteZeroes`](crate::Opcode::WriteZeroes).
        const WRITE_ZEROES = 1 << 4;
        /// Takes [`Opcode::Compare`](crate::Opcode::Compare).
        const COMPARE = 1 << 5;
        /// Takes [`Opcode::CompareAndWrite`](crate::Opcode::CompareAndWrite).
        const COMPARE_AND_WRITE = 1 << 6;
        /// Takes [`Opcode::Verify`](crate::Opcode::Verify).
        const VERIFY = 1 << 7;
        /// Takes [`Opcode::Copy`](crate::Opcode::Copy).
        const COPY = 1 << 8;
        /// Refuses everything that changes blocks.
        const READ_ONLY = 1 << 9;
        /// Answers every valid read with [`IoFlags::MAY_LEND`](crate::IoFlags::MAY_LEND) by lending, so that
        /// such a read may come with an empty list. Without this bit the list has to be complete.
        const LENDS = 1 << 10;
    }
}

/// Something happened to a device. Delivered on any thread: receivers only post a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceEvent {
    /// The size changed to this many blocks.
    Resized(BlockCount),
    /// The device is going away: open channels complete what they hold with an error, new I/O fails.
    Removed,
    /// The device failed as a whole and will not come back by itself.
    Faulted,
}

/// A failed control operation on a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device was removed or is being destroyed.
    #[error("device {0} is gone")]
    Gone(String),
    /// The operating system refused.
    #[error("{op} on {device} failed")]
    Os {
        /// What was attempted.
        op: &'static str,
        /// On which device.
        device: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The path of a file or block device leads nowhere.
    #[error(
        "cannot open {device}: it does not exist; correct the path, or create it, as with `truncate -s 1G {device}`"
    )]
    Missing {
        /// The path.
        device: String,
    },
    /// Something else uses the file or block device.
    #[error(
        "cannot open {device}: it is in use (mounted, part of a volume, or open in another program); free it first"
    )]
    InUse {
        /// The path.
        device: String,
    },
    /// The path leads to something that holds no blocks.
    #[error("cannot open {device}: it is neither a file nor a block device; give the path of one")]
    NotBlocks {
        /// The path.
        device: String,
    },
    /// Not even one block fits.
    #[error(
        "cannot use {device}: it has {size_bytes} bytes, less than one block of {block_bytes}; make it larger"
    )]
    TooSmall {
        /// The path.
        device: String,
        /// Its size.
        size_bytes: u64,
        /// The block size.
        block_bytes: u32,
    },
    /// The medium cannot be addressed in blocks that small.
    #[error(
        "cannot use {device} with blocks of {block_bytes} bytes: its own are {needed_bytes}; leave blk_size out"
    )]
    BlockSize {
        /// The path.
        device: String,
        /// The block size that was asked for.
        block_bytes: u32,
        /// The smallest that works.
        needed_bytes: u32,
    },
    /// The device cannot do that.
    #[error("{device} does not support {op}")]
    Unsupported {
        /// What was attempted.
        op: &'static str,
        /// On which device.
        device: String,
    },
    /// The remote end refused or could not be reached.
    #[error("{op} on {device} failed with {status:?}")]
    Status {
        /// What was attempted.
        op: &'static str,
        /// On which device.
        device: String,
        /// What the device answered.
        status: crate::IoStatus,
    },
}

/// Keeps an event subscription alive; dropping it ends the subscription.
pub struct Subscription(#[allow(dead_code, reason = "held for its Drop")] Box<dyn Send>);

impl Subscription {
    /// Wraps whatever ends the subscription when dropped.
    pub fn new(guard: impl Send + 'static) -> Self {
        Self(Box::new(guard))
    }
}

/// Receives [`DeviceEvent`]s. Called on any thread, must not block.
pub type EventSink = Arc<dyn Fn(DeviceEvent) + Send + Sync>;

/// The control side of a block device. Shared by all cores; does no I/O itself.
pub trait BlockDevice: Send + Sync + 'static {
    /// The name under which the device is known on this node.
    fn name(&self) -> &str;

    /// Identity, stable over restarts where the medium can tell.
    fn uuid(&self) -> uuid::Uuid;

    /// What kind of device this is, for lists: `"malloc"`, `"uring"`, ...
    fn driver(&self) -> &'static str;

    /// Shape and limits.
    fn geometry(&self) -> Geometry;

    /// Current size. Grows announce themselves by [`DeviceEvent::Resized`].
    fn size(&self) -> BlockCount;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// A value that is new whenever completed but un-flushed writes may have been lost; `None` = cannot tell.
    fn incarnation(&self) -> Option<u128>;

    /// What the operator of this node should know of it, one sentence each: a degraded mode, why, and what to do
    /// about it. To be logged when the device is created.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }

    /// Asks for events until the subscription is dropped.
    fn subscribe(&self, sink: EventSink) -> Subscription;

    /// Looks at the medium again and adopts a changed size.
    fn rescan(&self) -> Result<BlockCount, DeviceError> {
        Ok(self.size())
    }

    /// Changes the size, where the device can; announces it by [`DeviceEvent::Resized`]. Returns the new size.
    fn resize(&self, blocks: BlockCount) -> Result<BlockCount, DeviceError> {
        let _ = blocks;
        Err(DeviceError::Unsupported { op: "resize", device: self.name().to_owned() })
    }

    /// Takes the device out of use: announces [`DeviceEvent::Removed`], later I/O on every channel fails with
    /// [`REMOVED`](crate::check::REMOVED). What is in flight completes, well
    /// or with that status. Repeating it does nothing.
    fn remove(&self);

    /// Tells which ranges hold something, where the device knows.
    fn ranges(&self) -> Option<&dyn Ranges> {
        None
    }

    /// Keeps marks that changes can be asked from, where the device does.
    fn marks(&self) -> Option<&dyn Marks> {
        None
    }

    /// Makes snapshots of itself, where the device can.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Reserves itself for one host, where several reach it.
    fn reservations(&self) -> Option<&dyn Reservations> {
        None
    }

    /// Opens the data side for the core that calls. The channel never leaves that core's thread.
    /// Dropping the future opens nothing.
    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>>;
}

/// The channel has no slot for this I/O now; the I/O was not taken. [`IoChannel::take_ready`] turns true
/// later, even when nothing is in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

/// Answer to [`IoChannel::cancel`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancel {
    /// The I/O will complete with Command Abort Requested and had no effect.
    Cancelled,
    /// Too late: it completes in its own way.
    TooLate,
    /// The device cannot cancel.
    Unsupported,
}

/// What a source of work says before its core goes to sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sleep {
    /// Wake-ups are armed and a last look found nothing: sleep as long as you like.
    Armed,
    /// There is work, or no interrupt to wait for: do not sleep.
    KeepPolling,
    /// As `Armed`, but look again at this time.
    Until(Instant),
}

/// The data side of a device on one core.
///
/// Exactly one [`Completion`] for each accepted token, from [`poll`](Self::poll) and never inside
/// [`submit`](Self::submit), also after a cancel, a removal or a fault. Bad ranges, missing capabilities and
/// wrong lengths are completions, not panics. Nothing between `submit` and completion allocates, locks, logs
/// or makes a syscall per I/O.
pub trait IoChannel {
    /// Offers one I/O. `Ok` = accepted; it may stay unpublished until [`kick`](Self::kick).
    ///
    /// # Safety
    /// Until the token's completion was returned by `poll` (and, when lent, until `release`), or until the
    /// channel was dropped, every byte that `io.sg` and `io.second` name stays valid memory: readable for
    /// writes and compares, writable and otherwise untouched for reads.
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy>;

    /// Publishes what was submitted since the last kick.
    fn kick(&mut self);

    /// Appends at most `budget` completions to `out`; returns how many. `out` never grows beyond the
    /// capacity that the caller reserved when it reserves `budget` free places.
    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize;

    /// True once after a [`Busy`], when a submission can succeed again.
    fn take_ready(&mut self) -> bool;

    /// Arms the wake-up of this core and looks a last time.
    fn prepare_sleep(&mut self) -> Sleep;

    /// Tries to stop an I/O in flight. Its completion comes in any case.
    fn cancel(&mut self, token: Token) -> Cancel;

    /// The memory lent by the completion of `token`; valid until [`release`](Self::release).
    fn lent(&self, token: Token) -> Lent<'_>;

    /// Gives lent memory back.
    fn release(&mut self, token: Token);

    /// Stops admission: later submissions complete with an error. Poll until [`drained`](Self::drained).
    fn close(&mut self);

    /// True when nothing accepted is without its completion and nothing is lent.
    fn drained(&self) -> bool;
}
