//! Files and block devices: the `aio` and `uring` schemes, which are one engine here.
//!
//! # Map
//! - [`FileDevice`]: the device. - `probe`: opening, geometry, identity. - `channel`: the data side.
//! - `task`: what operations an I/O takes, as pure logic. - `gate`: Compare and Write against other cores.
//! - `pool`: helper threads. - `sys`: system calls.
//!
//! # How
//! Direct I/O where the file system has it. On a core with io_uring all operations go through its ring; where
//! io_uring is forbidden, helper threads do the same system calls. Flush is `fdatasync`; FUA is a write with
//! `RWF_DSYNC`, or else a write and an `fdatasync`. Unmap punches holes in files and discards on block
//! devices; Write Zeroes zeroes the range in the file system, or writes zeroes where that is not possible.
//!
//! # What is durable
//! A file always reports a volatile cache: only with `O_DSYNC` could it claim otherwise, at the price of a
//! flush per write. A block device reports what the kernel says of its cache. After a failed flush the device
//! is faulted and all later flushes fail, because the kernel has dropped what it could not write.

mod channel;
mod gate;
mod pool;
mod probe;
mod sys;
mod task;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::{Builder, Uuid};

use super::events::EventHub;
use super::zeroes::Zeroes;
use crate::device::{
    BlockDevice, Capabilities, DeviceError, DeviceEvent, EventSink, Geometry, IoChannel, LocalBoxFuture,
    Subscription,
};
use crate::io::BlockCount;
use crate::uri::FileUri;

use gate::Gate;
use task::Features;

/// Most bytes of one transfer. The kernel cuts it to what the disk takes.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;

/// Most entries of one list; the kernel's own bound is 1,024.
const MAX_SG: u16 = 256;

/// I/Os of one channel: enough for the deepest queues of a disk.
const QUEUE_DEPTH: u32 = 256;

/// A file or block device.
pub struct FileDevice {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    driver: &'static str,
    uuid: Uuid,
    incarnation: Option<u128>,
    file: Arc<File>,
    is_device: bool,
    direct: bool,
    /// At the end, less than a block; when it was opened.
    unused_bytes: u64,
    geometry: Geometry,
    capabilities: Capabilities,
    features: Features,
    blocks: AtomicU64,
    removed: AtomicBool,
    faulted: AtomicBool,
    gate: Arc<Gate>,
    events: EventHub,
    zeroes: &'static Zeroes,
}

impl FileDevice {
    /// Opens what `uri` names, for this process alone: block devices exclusively, files under a lock. Makes
    /// system calls that may block. `driver` is the scheme.
    pub fn open(uri: &FileUri, driver: &'static str) -> Result<Self, DeviceError> {
        let found = probe::probe(uri)?;
        let zeroes = Zeroes::get().map_err(|source| DeviceError::Os {
            op: "mapping the region of zeroes",
            device: uri.path.clone(),
            source,
        })?;
        let discard = found.is_device;
        let uuid =
            uri.uuid.unwrap_or_else(|| Builder::from_custom_bytes(found.identity.to_be_bytes()).into_uuid());
        Ok(Self {
            shared: Arc::new(Shared {
                name: uri.path.clone(),
                driver,
                uuid,
                incarnation: probe::incarnation(found.identity),
                geometry: geometry(&found),
                capabilities: capabilities(&found),
                features: Features::new(discard, found.direct),
                blocks: AtomicU64::new(found.size_bytes / u64::from(found.block_bytes)),
                is_device: found.is_device,
                direct: found.direct,
                unused_bytes: found.size_bytes % u64::from(found.block_bytes),
                file: Arc::new(found.file),
                removed: AtomicBool::new(false),
                faulted: AtomicBool::new(false),
                gate: Arc::default(),
                events: EventHub::default(),
                zeroes,
            }),
        })
    }

    /// True when I/O bypasses the page cache; false where the file system does not offer that, so that reads
    /// and writes are copied and memory outside of this process fills up.
    pub fn is_direct(&self) -> bool {
        self.shared.direct
    }
}

fn geometry(found: &probe::Probed) -> Geometry {
    Geometry {
        block_bytes: found.block_bytes,
        meta_bytes: 0,
        buf_align: found.buf_align,
        sg_elem_align: found.len_align,
        max_sg: MAX_SG,
        max_blocks: MAX_TRANSFER_BYTES / found.block_bytes,
        boundary_blocks: u32::try_from(found.boundary_bytes / u64::from(found.block_bytes)).unwrap_or(0),
        atomic_blocks: 1,
        compare_write_blocks: MAX_TRANSFER_BYTES / found.block_bytes,
        queue_depth: QUEUE_DEPTH,
    }
}

fn capabilities(found: &probe::Probed) -> Capabilities {
    let mut caps = Capabilities::FUA
        | Capabilities::WRITE_ZEROES
        | Capabilities::COMPARE
        | Capabilities::COMPARE_AND_WRITE
        | Capabilities::VERIFY;
    caps.set(Capabilities::VOLATILE_CACHE, !found.durable);
    caps.set(Capabilities::UNMAP, found.can_unmap);
    // A hole reads as zeroes; what a discarded block reads as is up to the disk.
    caps.set(Capabilities::UNMAP_ZEROES, found.can_unmap && !found.is_device);
    caps.set(Capabilities::READ_ONLY, found.read_only);
    caps
}

impl BlockDevice for FileDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    fn driver(&self) -> &'static str {
        self.shared.driver
    }

    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn size(&self) -> BlockCount {
        self.shared.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }

    fn incarnation(&self) -> Option<u128> {
        self.shared.incarnation
    }

    fn notices(&self) -> Vec<String> {
        let (shared, path) = (&self.shared, &self.shared.name);
        let mut notices = Vec::new();
        if !shared.direct {
            notices.push(format!(
                "{path}: direct I/O does not work here, so data is copied through the page cache; use a file \
                 system that has it (ext4, XFS), larger blocks, or a block device"
            ));
        }
        if shared.capabilities.contains(Capabilities::READ_ONLY) {
            notices.push(format!(
                "{path}: read-only, because it or this user has no write permission; writes will be refused"
            ));
        }
        if shared.unused_bytes > 0 {
            let (unused, block) = (shared.unused_bytes, shared.geometry.block_bytes);
            notices.push(format!(
                "{path}: the last {unused} bytes are not used; make the size a multiple of {block}"
            ));
        }
        notices
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.shared.events.subscribe(sink)
    }

    /// Asks the system for the size; makes a system call.
    fn rescan(&self) -> Result<BlockCount, DeviceError> {
        let shared = &self.shared;
        if shared.removed.load(Ordering::Acquire) {
            return Err(DeviceError::Gone(shared.name.clone()));
        }
        let bytes = probe::size_bytes(&shared.file, shared.is_device).map_err(|source| DeviceError::Os {
            op: "asking for the size",
            device: shared.name.clone(),
            source,
        })?;
        let blocks = bytes / u64::from(shared.geometry.block_bytes);
        if shared.blocks.swap(blocks, Ordering::AcqRel) != blocks {
            shared.events.send(DeviceEvent::Resized(BlockCount(blocks)));
        }
        Ok(BlockCount(blocks))
    }

    fn remove(&self) {
        if !self.shared.removed.swap(true, Ordering::AcqRel) {
            self.shared.events.send(DeviceEvent::Removed);
        }
    }

    /// On a core with io_uring the channel uses its ring. Without a reactor it works too, through helper
    /// threads, but cannot wake its thread.
    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            if shared.removed.load(Ordering::Acquire) {
                return Err(DeviceError::Gone(shared.name.clone()));
            }
            Ok(Box::new(channel::Channel::open(shared)?) as Box<dyn IoChannel>)
        })
    }
}

impl Shared {
    fn size(&self) -> BlockCount {
        BlockCount(self.blocks.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests;
