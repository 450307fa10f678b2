//! What a nexus and its channels share, on all cores.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aio::devices::events::EventHub;
use aio::{BlockCount, Capabilities, CoreHandle, DeviceEvent, Geometry};
use uuid::Uuid;

use crate::fencing::Reservation;
use crate::intent::Intent;
use crate::locks::RangeLocks;
use crate::stats::StatsHub;

/// See the module.
pub(crate) struct Shared {
    pub(crate) name: String,
    /// Of the nexus: what requests name.
    pub(crate) uuid: Uuid,
    /// Of the block device: what hosts see.
    pub(crate) device_uuid: Uuid,
    /// Where decisions are made.
    pub(crate) home: CoreHandle,
    pub(crate) geometry: Geometry,
    pub(crate) capabilities: Capabilities,
    /// How it keeps others from its children.
    pub(crate) reservation: Option<Reservation>,
    pub(crate) locks: RangeLocks,
    pub(crate) intent: Intent,
    pub(crate) events: EventHub,
    pub(crate) stats: StatsHub,
    blocks: AtomicU64,
    alive: AtomicBool,
    counters: Counters,
}

/// What went wrong and was made good, since the nexus was created.
#[derive(Default)]
struct Counters {
    repaired_blocks: AtomicU64,
}

/// Everything that does not change later.
pub(crate) struct SharedParts {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) device_uuid: Uuid,
    pub(crate) home: CoreHandle,
    pub(crate) geometry: Geometry,
    pub(crate) capabilities: Capabilities,
    pub(crate) reservation: Option<Reservation>,
    pub(crate) size: BlockCount,
}

impl Shared {
    pub(crate) fn new(parts: SharedParts) -> Self {
        Self {
            name: parts.name,
            uuid: parts.uuid,
            device_uuid: parts.device_uuid,
            home: parts.home,
            locks: RangeLocks::new(parts.geometry.block_bytes),
            intent: Intent::new(),
            geometry: parts.geometry,
            capabilities: parts.capabilities,
            reservation: parts.reservation,
            events: EventHub::default(),
            stats: StatsHub::default(),
            blocks: AtomicU64::new(parts.size.0),
            alive: AtomicBool::new(true),
            counters: Counters::default(),
        }
    }

    pub(crate) fn size(&self) -> BlockCount {
        BlockCount(self.blocks.load(Ordering::Acquire))
    }

    pub(crate) fn set_size(&self, size: BlockCount) {
        if self.blocks.swap(size.0, Ordering::AcqRel) != size.0 {
            self.events.send(DeviceEvent::Resized(size));
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Out of use for good.
    pub(crate) fn remove(&self) {
        if self.alive.swap(false, Ordering::AcqRel) {
            self.events.send(DeviceEvent::Removed);
        }
    }

    pub(crate) fn count_repaired(&self, blocks: u64) {
        self.counters.repaired_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    pub(crate) fn repaired_blocks(&self) -> u64 {
        self.counters.repaired_blocks.load(Ordering::Relaxed)
    }
}
