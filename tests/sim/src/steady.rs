//! A device whose incarnation is the same in every run: that of a RAM disk is random, and goes over the wire.

use std::sync::Arc;

use aio::device::{EventSink, Subscription};
use aio::{BlockCount, BlockDevice, Capabilities, DeviceError, Geometry, IoChannel, LocalBoxFuture};

/// See the module.
pub struct Steady(pub Arc<dyn BlockDevice>);

impl BlockDevice for Steady {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn uuid(&self) -> uuid::Uuid {
        self.0.uuid()
    }

    fn driver(&self) -> &'static str {
        self.0.driver()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn size(&self) -> BlockCount {
        self.0.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn incarnation(&self) -> Option<u128> {
        Some(1)
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.0.subscribe(sink)
    }

    fn resize(&self, blocks: BlockCount) -> Result<BlockCount, DeviceError> {
        self.0.resize(blocks)
    }

    fn remove(&self) {
        self.0.remove();
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        self.0.open_channel()
    }
}
