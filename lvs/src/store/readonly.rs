//! A device that cannot be written to: what the offline checker looks at a pool through.
//!
//! Needs `unsafe` to pass the submitter's promise on.

use std::collections::VecDeque;
use std::sync::Arc;

use aio::device::{Cancel, EventSink, Sleep, Subscription};
use aio::{
    BlockCount, BlockDevice, Busy, Capabilities, Completion, DeviceError, Geometry, Io, IoChannel, IoStatus,
    Lent, LocalBoxFuture, Opcode, Token,
};
use uuid::Uuid;

/// See the module.
pub(super) struct ReadOnly(Arc<dyn BlockDevice>);

impl ReadOnly {
    pub(super) fn all(devices: &[Arc<dyn BlockDevice>]) -> Vec<Arc<dyn BlockDevice>> {
        devices.iter().map(|d| Arc::new(Self(d.clone())) as Arc<dyn BlockDevice>).collect()
    }
}

impl BlockDevice for ReadOnly {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn uuid(&self) -> Uuid {
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
        self.0.capabilities() | Capabilities::READ_ONLY
    }

    fn incarnation(&self) -> Option<u128> {
        self.0.incarnation()
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.0.subscribe(sink)
    }

    fn remove(&self) {
        self.0.remove();
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async move {
            let channel = self.0.open_channel().await?;
            Ok(Box::new(ReadChannel { channel, refused: VecDeque::new() }) as Box<dyn IoChannel>)
        })
    }
}

/// Its data side.
struct ReadChannel {
    channel: Box<dyn IoChannel>,
    /// Not polled yet: as many as the store, which has no business to write here, has in flight.
    refused: VecDeque<Completion>,
}

impl IoChannel for ReadChannel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        if matches!(io.opcode, Opcode::Read | Opcode::Verify) {
            // SAFETY: as the caller promises.
            return unsafe { self.channel.submit(io, token) };
        }
        self.refused.push_back(Completion::new(token, IoStatus::NAMESPACE_WRITE_PROTECTED));
        Ok(())
    }

    fn kick(&mut self) {
        self.channel.kick();
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let count = self.refused.len().min(budget);
        out.extend(self.refused.drain(..count));
        count + self.channel.poll(out, budget - count)
    }

    fn take_ready(&mut self) -> bool {
        self.channel.take_ready()
    }

    fn prepare_sleep(&mut self) -> Sleep {
        if self.refused.is_empty() { self.channel.prepare_sleep() } else { Sleep::KeepPolling }
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        self.channel.cancel(token)
    }

    fn lent(&self, token: Token) -> Lent<'_> {
        self.channel.lent(token)
    }

    fn release(&mut self, token: Token) {
        self.channel.release(token);
    }

    fn close(&mut self) {
        self.channel.close();
    }

    fn drained(&self) -> bool {
        self.refused.is_empty() && self.channel.drained()
    }
}
