//! What stands in the place of a disk that is missing or was removed: every I/O fails, as on a medium that cannot be read.

use std::collections::VecDeque;
use std::sync::Arc;

use aio::device::{Cancel, EventSink, Sleep, Subscription};
use aio::devices::events::EventHub;
use aio::{
    BlockCount, BlockDevice, Busy, Capabilities, Completion, DeviceError, Geometry, Io, IoChannel, IoStatus,
    Lent, LocalBoxFuture, Opcode, Token,
};
use uuid::Uuid;

/// I/Os that a channel takes.
const QUEUE_DEPTH: u32 = 128;

/// See the module.
pub(super) struct AbsentDisk {
    name: String,
    uuid: Uuid,
    geometry: Geometry,
    blocks: u64,
    events: EventHub,
}

impl AbsentDisk {
    /// In the place of disk `uuid`, which had so many `blocks` of that `geometry`.
    pub(super) fn new(name: String, uuid: Uuid, geometry: Geometry, blocks: u64) -> Arc<Self> {
        let geometry = Geometry { queue_depth: QUEUE_DEPTH, ..geometry };
        Arc::new(Self { name, uuid, geometry, blocks, events: EventHub::default() })
    }
}

impl BlockDevice for AbsentDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn driver(&self) -> &'static str {
        "absent"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn size(&self) -> BlockCount {
        BlockCount(self.blocks)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }

    fn incarnation(&self) -> Option<u128> {
        None
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.events.subscribe(sink)
    }

    fn remove(&self) {}

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async {
            let channel: Box<dyn IoChannel> = Box::new(Channel::default());
            Ok(channel)
        })
    }
}

/// Answers at once.
#[derive(Default)]
struct Channel {
    done: VecDeque<Completion>,
    refused: bool,
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        if self.done.len() >= QUEUE_DEPTH as usize {
            self.refused = true;
            return Err(Busy);
        }
        let status = match io.opcode {
            Opcode::Read => IoStatus::UNRECOVERED_READ,
            // There is nothing that could be lost in a cache.
            Opcode::Flush => IoStatus::SUCCESS,
            _ => IoStatus::WRITE_FAULT,
        };
        self.done.push_back(Completion::new(token, status));
        Ok(())
    }

    fn kick(&mut self) {}

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let count = self.done.len().min(budget);
        out.extend(self.done.drain(..count));
        count
    }

    fn take_ready(&mut self) -> bool {
        core::mem::take(&mut self.refused)
    }

    fn prepare_sleep(&mut self) -> Sleep {
        if self.done.is_empty() { Sleep::Armed } else { Sleep::KeepPolling }
    }

    fn cancel(&mut self, _token: Token) -> Cancel {
        Cancel::TooLate
    }

    fn lent(&self, _token: Token) -> Lent<'_> {
        unreachable!("invariant: it lends nothing")
    }

    fn release(&mut self, _token: Token) {}

    fn close(&mut self) {}

    fn drained(&self) -> bool {
        self.done.is_empty()
    }
}
