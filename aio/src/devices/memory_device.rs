//! What devices that only touch memory have in common: all of their control side.
//!
//! A device is a [`MemoryDevice`] of some [`Medium`]; the medium brings its capabilities and makes channels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

use super::events::EventHub;
use crate::device::{
    BlockDevice, Capabilities, DeviceError, DeviceEvent, EventSink, Geometry, IoChannel, LocalBoxFuture,
    Subscription,
};
use crate::io::{BlockCount, Io};
use crate::uri::MemoryUri;
use crate::{IoStatus, check};

/// Most bytes of one transfer: bounds the time that one submission keeps its core.
pub(super) const MAX_TRANSFER_BYTES: u32 = 4 << 20;

/// I/Os of one channel that wait for their poll or are lent.
const QUEUE_DEPTH: u32 = 4096;

/// Most entries of one list. They are only walked, so this is a plain sanity bound.
const MAX_SG: u16 = 2048;

/// What is behind a [`MemoryDevice`].
pub trait Medium: Send + Sync + Sized + 'static {
    /// As lists show it.
    const DRIVER: &'static str;

    /// What its channels can do.
    const CAPABILITIES: Capabilities;

    /// The size up to which the device can grow.
    fn max_bytes(&self) -> u64;

    /// A channel for the calling core.
    fn channel(shared: Arc<Shared<Self>>) -> Box<dyn IoChannel>;
}

/// A device whose I/O is done at submission, in memory. It lives as long as it and its channels do.
pub struct MemoryDevice<M: Medium> {
    shared: Arc<Shared<M>>,
}

/// What the device and its channels share.
pub struct Shared<M> {
    name: String,
    uuid: Uuid,
    incarnation: u128,
    geometry: Geometry,
    blocks: AtomicU64,
    removed: AtomicBool,
    events: EventHub,
    medium: M,
}

impl<M: Medium> MemoryDevice<M> {
    /// The device that `uri` describes, on this medium.
    pub(super) fn on(medium: M, uri: &MemoryUri) -> Self {
        Self {
            shared: Arc::new(Shared {
                name: uri.name.clone(),
                uuid: uri.uuid.unwrap_or_else(Uuid::new_v4),
                incarnation: Uuid::new_v4().as_u128(),
                geometry: geometry(uri.block_bytes),
                blocks: AtomicU64::new(uri.blocks),
                removed: AtomicBool::new(false),
                events: EventHub::default(),
                medium,
            }),
        }
    }
}

fn geometry(block_bytes: u32) -> Geometry {
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

impl<M: Medium> Shared<M> {
    /// What the device is made of.
    #[inline]
    pub(super) fn medium(&self) -> &M {
        &self.medium
    }

    /// Shape and limits.
    #[inline]
    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    #[inline]
    fn size(&self) -> BlockCount {
        BlockCount(self.blocks.load(Ordering::Acquire))
    }

    /// Checks an I/O of a channel that is open: the device is there, and the I/O fits it.
    #[inline]
    pub(super) fn admit(&self, io: &Io<'_>) -> Result<(), IoStatus> {
        if self.removed.load(Ordering::Relaxed) {
            return Err(check::REMOVED);
        }
        check::validate(io, &self.geometry, M::CAPABILITIES, self.size())
    }

    fn check_present(&self) -> Result<(), DeviceError> {
        match self.removed.load(Ordering::Acquire) {
            true => Err(DeviceError::Gone(self.name.clone())),
            false => Ok(()),
        }
    }
}

impl<M: Medium> BlockDevice for MemoryDevice<M> {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    fn driver(&self) -> &'static str {
        M::DRIVER
    }

    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn size(&self) -> BlockCount {
        self.shared.size()
    }

    fn capabilities(&self) -> Capabilities {
        M::CAPABILITIES
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
        shared.check_present()?;
        if blocks < shared.size() {
            return Err(DeviceError::Unsupported { op: "shrinking", device: shared.name.clone() });
        }
        let len_bytes = blocks.0.checked_mul(u64::from(shared.geometry.block_bytes));
        if len_bytes.is_none_or(|len| len > shared.medium.max_bytes()) {
            let op = "growing beyond its reserved addresses";
            let source = std::io::ErrorKind::OutOfMemory.into();
            return Err(DeviceError::Os { op, device: shared.name.clone(), source });
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
        Box::pin(async {
            self.shared.check_present()?;
            Ok(M::channel(self.shared.clone()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{malloc::Malloc, null::Null};

    fn uri() -> MemoryUri {
        MemoryUri { name: "m".into(), block_bytes: 512, blocks: 8, uuid: None, resize: false }
    }

    /// A bug: too much was called "shrinking" by `null`.
    #[test]
    fn devices_grow_as_far_as_addresses_go_and_never_shrink() {
        let devices: [Box<dyn BlockDevice>; 2] =
            [Box::new(Malloc::new(&uri()).unwrap()), Box::new(Null::new(&uri()).unwrap())];
        for device in devices {
            assert_eq!(device.resize(BlockCount(8)).unwrap(), BlockCount(8));
            let shrunk = device.resize(BlockCount(7)).unwrap_err();
            assert!(matches!(shrunk, DeviceError::Unsupported { op: "shrinking", .. }), "{shrunk}");
            let grown = device.resize(BlockCount(u64::MAX)).unwrap_err();
            assert!(matches!(grown, DeviceError::Os { .. }), "{}: {grown}", device.driver());
            device.remove();
            assert!(matches!(device.resize(BlockCount(9)), Err(DeviceError::Gone(_))));
        }
    }
}
