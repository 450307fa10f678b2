//! A volume or snapshot as a block device.
//!
//! - [`Volume`]: the control side, shared by all cores. - `channel`: the data side on the pool's home core.
//! - `proxy`: the data side on any other core. - `counters`: what it was asked to do. - `facets`: what it tells beyond I/O.

mod channel;
mod counters;
mod facets;
mod proxy;

pub(crate) use channel::CHANNEL_DEPTH;
pub(crate) use counters::Counters;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aio::device::{EventSink, Subscription};
use aio::devices::events::EventHub;
use aio::{
    BlockCount, BlockDevice, Capabilities, Core, CoreHandle, DeviceError, DeviceEvent, Geometry, IoChannel,
    LocalBoxFuture, Marks, Ranges, Snapshots,
};
use uuid::Uuid;

use crate::store::{Target, open_stores};
use channel::VolumeChannel;
use proxy::ProxyChannel;

/// A volume, or a snapshot opened for reading.
pub struct Volume(Arc<Shared>);

/// What the volume and its channels share.
struct Shared {
    name: String,
    uuid: Uuid,
    pool: Uuid,
    home: CoreHandle,
    target: Target,
    geometry: Geometry,
    capabilities: Capabilities,
    size_blocks: AtomicU64,
    alive: AtomicBool,
    incarnation: u128,
    events: EventHub,
    counters: Counters,
    pool_counters: Arc<Counters>,
}

/// What a volume is made of.
pub(crate) struct VolumeParts {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) pool: Uuid,
    pub(crate) home: CoreHandle,
    pub(crate) target: Target,
    pub(crate) geometry: Geometry,
    pub(crate) volatile: bool,
    /// The pool was opened for reading only.
    pub(crate) read_only: bool,
    pub(crate) size_bytes: u64,
    pub(crate) incarnation: u128,
    pub(crate) pool_counters: Arc<Counters>,
}

impl Volume {
    pub(crate) fn new(parts: VolumeParts) -> Arc<Self> {
        let mut capabilities = Capabilities::UNMAP | Capabilities::WRITE_ZEROES | Capabilities::FUA;
        // Of smaller blocks, those stay that share a block of the store with others which are in use.
        capabilities.set(Capabilities::UNMAP_ZEROES, parts.geometry.block_bytes == crate::BLOCK_BYTES);
        capabilities.set(Capabilities::VOLATILE_CACHE, parts.volatile);
        capabilities.set(Capabilities::READ_ONLY, parts.target.view != crate::Seq::MAX || parts.read_only);
        let blocks = parts.size_bytes / u64::from(parts.geometry.block_bytes);
        let shared = Shared {
            name: parts.name,
            uuid: parts.uuid,
            pool: parts.pool,
            home: parts.home,
            target: parts.target,
            geometry: parts.geometry,
            capabilities,
            size_blocks: AtomicU64::new(blocks),
            alive: AtomicBool::new(true),
            incarnation: parts.incarnation,
            events: EventHub::default(),
            counters: Counters::default(),
            pool_counters: parts.pool_counters,
        };
        Arc::new(Self(Arc::new(shared)))
    }

    /// True for a snapshot: it can only be read.
    pub fn is_snapshot(&self) -> bool {
        self.0.target.view != crate::Seq::MAX
    }

    /// The size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.0.size().0 * u64::from(self.0.geometry.block_bytes)
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn set_size_bytes(&self, size_bytes: u64) {
        let blocks = size_bytes / u64::from(self.0.geometry.block_bytes);
        if self.0.size_blocks.swap(blocks, Ordering::AcqRel) != blocks {
            self.0.events.send(DeviceEvent::Resized(BlockCount(blocks)));
        }
    }
}

impl Shared {
    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    fn size(&self) -> BlockCount {
        BlockCount(self.size_blocks.load(Ordering::Acquire))
    }
}

impl BlockDevice for Volume {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn uuid(&self) -> Uuid {
        self.0.uuid
    }

    fn driver(&self) -> &'static str {
        "lvs"
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    fn size(&self) -> BlockCount {
        self.0.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities
    }

    fn incarnation(&self) -> Option<u128> {
        Some(self.0.incarnation)
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.0.events.subscribe(sink)
    }

    fn remove(&self) {
        if self.0.alive.swap(false, Ordering::AcqRel) {
            self.0.events.send(DeviceEvent::Removed);
        }
    }

    fn ranges(&self) -> Option<&dyn Ranges> {
        Some(self)
    }

    /// A snapshot never changes, and has none.
    fn marks(&self) -> Option<&dyn Marks> {
        (!self.is_snapshot()).then_some(self as &dyn Marks)
    }

    /// There are none of a snapshot.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        (!self.is_snapshot()).then_some(self as &dyn Snapshots)
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async move {
            if !self.0.is_alive() {
                return Err(DeviceError::Gone(self.0.name.clone()));
            }
            let device = || self.0.name.clone();
            let here = Core::current()
                .ok_or_else(|| DeviceError::Unsupported { op: "use outside of a core", device: device() })?;
            let home = (here.id() == self.0.home.id()).then(|| open_stores::get(self.0.pool)).flatten();
            let Some(store) = home else {
                return Ok(Box::new(ProxyChannel::open(here, self.0.clone()).await?) as Box<dyn IoChannel>);
            };
            Ok(Box::new(VolumeChannel::open(store, self.0.clone())) as Box<dyn IoChannel>)
        })
    }
}
