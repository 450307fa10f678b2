//! Devices that differ from the one below in one thing.
#![allow(unsafe_code, reason = "channels pass a submitter's promise on")]

use std::sync::Arc;

use aio::device::{EventSink, Subscription};
use aio::{
    BlockCount, BlockDevice, Busy, Cancel, Capabilities, Completion, DeviceError, Geometry, Io, IoChannel,
    Lent, LocalBoxFuture, Sleep, Token,
};

/// Its incarnation is the same in every run: that of a RAM disk is random, and goes over the wire.
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

/// It cancels nothing, as most disks.
pub struct Stubborn(pub Arc<dyn BlockDevice>);

impl BlockDevice for Stubborn {
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
        self.0.incarnation()
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
        Box::pin(async move {
            let channel = self.0.open_channel().await?;
            Ok(Box::new(StubbornChannel(channel)) as Box<dyn IoChannel>)
        })
    }
}

struct StubbornChannel(Box<dyn IoChannel>);

impl IoChannel for StubbornChannel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.0.submit(io, token) }
    }

    fn kick(&mut self) {
        self.0.kick();
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        self.0.poll(out, budget)
    }

    fn take_ready(&mut self) -> bool {
        self.0.take_ready()
    }

    fn prepare_sleep(&mut self) -> Sleep {
        self.0.prepare_sleep()
    }

    fn cancel(&mut self, _token: Token) -> Cancel {
        Cancel::Unsupported
    }

    fn lent(&self, token: Token) -> Lent<'_> {
        self.0.lent(token)
    }

    fn release(&mut self, token: Token) {
        self.0.release(token);
    }

    fn close(&mut self) {
        self.0.close();
    }

    fn drained(&self) -> bool {
        self.0.drained()
    }
}
