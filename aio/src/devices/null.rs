//! `null`: a device that stores nothing. Reads give zeroes, writes are discarded.
//!
//! A read that may be lent costs no copy: all reads of the process share one region of zeroes that nobody
//! writes, so the system backs it with its zero page. A read into the caller's list fills it with zeroes:
//! leaving the list as it was would show one host what another's buffer held.
//!
//! # Unsafe
//! Fills callers' lists, under `submit`'s contract.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

use super::events::EventHub;
use super::instant_queue::InstantQueue;
use super::malloc::memory_geometry;
use super::zeroes::Zeroes;
use crate::device::{
    BlockDevice, Busy, Cancel, Capabilities, DeviceError, DeviceEvent, EventSink, Geometry, IoChannel,
    LocalBoxFuture, Sleep, Subscription,
};
use crate::io::{BlockCount, Completion, Io, IoFlags, Lent, Opcode, Token};
use crate::sg::{RegionId, SgEntry};
use crate::uri::MemoryUri;
use crate::{IoStatus, check, sgmem};

/// No Compare: a host that compares what it wrote would only learn that nothing was stored.
const CAPABILITIES: Capabilities = Capabilities::FUA
    .union(Capabilities::UNMAP)
    .union(Capabilities::UNMAP_ZEROES)
    .union(Capabilities::WRITE_ZEROES)
    .union(Capabilities::VERIFY)
    .union(Capabilities::LENDS);

/// A device that stores nothing.
pub struct Null {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    uuid: Uuid,
    incarnation: u128,
    geometry: Geometry,
    blocks: AtomicU64,
    removed: AtomicBool,
    events: EventHub,
    zeroes: &'static Zeroes,
}

impl Null {
    /// Makes the device that `uri` describes. A size of zero is fine.
    pub fn new(uri: &MemoryUri) -> Result<Self, DeviceError> {
        let zeroes = Zeroes::get().map_err(|source| DeviceError::Os {
            op: "mapping the region of zeroes",
            device: uri.name.clone(),
            source,
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                name: uri.name.clone(),
                uuid: uri.uuid.unwrap_or_else(Uuid::new_v4),
                incarnation: Uuid::new_v4().as_u128(),
                geometry: memory_geometry(uri.block_bytes),
                blocks: AtomicU64::new(uri.blocks),
                removed: AtomicBool::new(false),
                events: EventHub::default(),
                zeroes,
            }),
        })
    }
}

impl BlockDevice for Null {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    fn driver(&self) -> &'static str {
        "null"
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
        if shared.removed.load(Ordering::Acquire) {
            return Err(DeviceError::Gone(shared.name.clone()));
        }
        if blocks < shared.size() || blocks.0.checked_mul(u64::from(shared.geometry.block_bytes)).is_none() {
            return Err(DeviceError::Unsupported { op: "shrinking", device: shared.name.clone() });
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
            let queue = InstantQueue::new(shared.geometry.queue_depth);
            Ok(Box::new(Channel { shared, queue }) as Box<dyn IoChannel>)
        })
    }
}

impl Shared {
    #[inline]
    fn size(&self) -> BlockCount {
        BlockCount(self.blocks.load(Ordering::Acquire))
    }
}

struct Channel {
    shared: Arc<Shared>,
    queue: InstantQueue,
}

impl IoChannel for Channel {
    #[inline]
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        self.queue.reserve()?;
        let status = match self.admit(io) {
            Err(status) => status,
            Ok(()) if io.opcode != Opcode::Read => IoStatus::SUCCESS,
            Ok(()) if io.flags.contains(IoFlags::MAY_LEND) && io.blocks.0 > 0 => {
                let len_bytes = io.blocks.0 as u32 * self.shared.geometry.block_bytes;
                let entry = SgEntry { ptr: self.shared.zeroes.start(), len_bytes, region: RegionId::NONE };
                self.queue.lend(token, entry);
                return Ok(());
            }
            Ok(()) => {
                // SAFETY: the caller's promise about the list of a read.
                unsafe { sgmem::fill_zero(io.sg) };
                IoStatus::SUCCESS
            }
        };
        self.queue.complete(token, status);
        Ok(())
    }

    fn kick(&mut self) {}

    #[inline]
    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        self.queue.poll(out, budget)
    }

    fn take_ready(&mut self) -> bool {
        self.queue.take_ready()
    }

    fn prepare_sleep(&mut self) -> Sleep {
        self.queue.prepare_sleep()
    }

    /// Always too late: there is nothing to do after submission.
    fn cancel(&mut self, _token: Token) -> Cancel {
        Cancel::TooLate
    }

    fn lent(&self, token: Token) -> Lent<'_> {
        self.queue.lent(token, true)
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
}
