//! A device that passes everything on and counts it.

#![allow(unsafe_code, reason = "`submit` is unsafe; the caller's promise is passed on as it came")]

use aio::device::{Cancel, EventSink, Sleep, Subscription};
use aio::{
    BlockCount, BlockDevice, Busy, Capabilities, Completion, DeviceError, Geometry, Io, IoChannel, Lent,
    LocalBoxFuture, Opcode, Token,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a device was asked to do.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) read_bytes: u64,
    pub(crate) writes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) flushes: u64,
}

impl Counts {
    /// What came since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            writes: self.writes - before.writes,
            written_bytes: self.written_bytes - before.written_bytes,
            flushes: self.flushes - before.flushes,
        }
    }
}

#[derive(Default)]
struct Cells {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
}

/// One thread adds, so no bus lock is needed.
fn add(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

/// See the module. Used on one core only.
pub(crate) struct Counted {
    below: Arc<dyn BlockDevice>,
    cells: Arc<Cells>,
}

impl Counted {
    pub(crate) fn new(below: Arc<dyn BlockDevice>) -> Arc<Self> {
        Arc::new(Self { below, cells: Arc::default() })
    }

    /// Everything so far.
    pub(crate) fn counts(&self) -> Counts {
        let of = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Counts {
            reads: of(&self.cells.reads),
            read_bytes: of(&self.cells.read_bytes),
            writes: of(&self.cells.writes),
            written_bytes: of(&self.cells.written_bytes),
            flushes: of(&self.cells.flushes),
        }
    }
}

impl BlockDevice for Counted {
    fn name(&self) -> &str {
        self.below.name()
    }

    fn uuid(&self) -> uuid::Uuid {
        self.below.uuid()
    }

    fn driver(&self) -> &'static str {
        self.below.driver()
    }

    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn size(&self) -> BlockCount {
        self.below.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.below.capabilities()
    }

    fn incarnation(&self) -> Option<u128> {
        self.below.incarnation()
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.below.subscribe(sink)
    }

    fn remove(&self) {
        self.below.remove();
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async move {
            let block_bytes = u64::from(self.below.geometry().block_bytes);
            let below = self.below.open_channel().await?;
            Ok(Box::new(Channel { below, cells: self.cells.clone(), block_bytes }) as Box<dyn IoChannel>)
        })
    }
}

struct Channel {
    below: Box<dyn IoChannel>,
    cells: Arc<Cells>,
    block_bytes: u64,
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        // SAFETY: the caller's promise.
        unsafe { self.below.submit(io, token) }?;
        match io.opcode {
            Opcode::Read => {
                add(&self.cells.reads, 1);
                add(&self.cells.read_bytes, io.blocks.0 * self.block_bytes);
            }
            Opcode::Write => {
                add(&self.cells.writes, 1);
                add(&self.cells.written_bytes, io.blocks.0 * self.block_bytes);
            }
            Opcode::Flush => add(&self.cells.flushes, 1),
            _ => {}
        }
        Ok(())
    }

    fn kick(&mut self) {
        self.below.kick();
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        self.below.poll(out, budget)
    }

    fn take_ready(&mut self) -> bool {
        self.below.take_ready()
    }

    fn prepare_sleep(&mut self) -> Sleep {
        self.below.prepare_sleep()
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        self.below.cancel(token)
    }

    fn lent(&self, token: Token) -> Lent<'_> {
        self.below.lent(token)
    }

    fn release(&mut self, token: Token) {
        self.below.release(token);
    }

    fn close(&mut self) {
        self.below.close();
    }

    fn drained(&self) -> bool {
        self.below.drained()
    }
}
