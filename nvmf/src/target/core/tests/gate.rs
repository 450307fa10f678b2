//! A device that completes nothing before it is told to.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use aio::device::{EventSink, Subscription};
use aio::{
    BlockCount, BlockDevice, Busy, Cancel, Capabilities, Completion, DeviceError, Geometry, Io, IoChannel,
    IoStatus, Lent, LocalBoxFuture, Opcode, Sleep, Token, check,
};

const CAPABILITIES: Capabilities = Capabilities::COMPARE.union(Capabilities::COMPARE_AND_WRITE);

#[derive(Default)]
struct Shared {
    /// Accepted and not completed: token, address of the first byte, length, opcode.
    waiting: VecDeque<(Token, usize, usize, Opcode)>,
    done: VecDeque<Completion>,
    /// Everything completes at the next poll.
    open: bool,
    /// I/Os that are taken before the answer is Busy.
    depth: usize,
    refused: bool,
    ready: bool,
    cancels: bool,
    pub(super) channels: usize,
}

#[derive(Clone)]
pub(super) struct Gate {
    shared: Arc<Mutex<Shared>>,
    buf_align: u32,
}

impl Gate {
    pub(super) fn new(depth: usize, buf_align: u32, cancels: bool) -> Self {
        let shared = Shared { depth, cancels, ..Shared::default() };
        Self { shared: Arc::new(Mutex::new(shared)), buf_align }
    }

    /// I/Os that the device has.
    pub(super) fn waiting(&self) -> usize {
        self.shared.lock().unwrap().waiting.len()
    }

    /// Completes the oldest `n`; reads are filled with `fill`.
    pub(super) fn complete(&self, n: usize, fill: u8) {
        let mut s = self.shared.lock().unwrap();
        for _ in 0..n {
            let Some((token, addr, len, opcode)) = s.waiting.pop_front() else { break };
            if opcode == Opcode::Read {
                // SAFETY: the submitter keeps the buffer until the completion.
                unsafe {
                    core::ptr::write_bytes(core::ptr::with_exposed_provenance_mut::<u8>(addr), fill, len)
                };
            }
            s.done.push_back(Completion::new(token, IoStatus::SUCCESS));
        }
        s.ready |= s.refused;
    }

    pub(super) fn open_for_all(&self) {
        self.shared.lock().unwrap().open = true;
        self.complete(usize::MAX >> 1, 0);
    }

    pub(super) fn channels(&self) -> usize {
        self.shared.lock().unwrap().channels
    }

    pub(super) fn set_depth(&self, depth: usize) {
        let mut s = self.shared.lock().unwrap();
        s.depth = depth;
        s.ready |= s.refused;
    }
}

impl BlockDevice for Gate {
    fn name(&self) -> &str {
        "gate"
    }

    fn uuid(&self) -> uuid::Uuid {
        uuid::Uuid::from_u128(77)
    }

    fn driver(&self) -> &'static str {
        "gate"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_bytes: 512,
            meta_bytes: 0,
            buf_align: self.buf_align,
            sg_elem_align: 1,
            max_sg: 16,
            max_blocks: 1024,
            boundary_blocks: 0,
            atomic_blocks: 1,
            compare_write_blocks: 1024,
            queue_depth: 64,
        }
    }

    fn size(&self) -> BlockCount {
        BlockCount(1 << 20)
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn incarnation(&self) -> Option<u128> {
        None
    }

    fn subscribe(&self, _: EventSink) -> Subscription {
        Subscription::new(())
    }

    fn remove(&self) {}

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        let gate = self.clone();
        Box::pin(async move {
            gate.shared.lock().unwrap().channels += 1;
            Ok(Box::new(Channel { gate, closed: false }) as Box<dyn IoChannel>)
        })
    }
}

struct Channel {
    gate: Gate,
    closed: bool,
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        let mut s = self.gate.shared.lock().unwrap();
        if s.waiting.len() >= s.depth {
            s.refused = true;
            return Err(Busy);
        }
        let geometry = self.gate.geometry();
        if let Err(status) = check::validate(io, &geometry, CAPABILITIES, self.gate.size()) {
            s.done.push_back(Completion::new(token, status));
            return Ok(());
        }
        assert!(!self.closed);
        let (addr, len) = match io.sg {
            [] => (0, 0),
            [e] => (e.ptr.as_ptr().expose_provenance(), e.len_bytes as usize),
            _ => panic!("one entry a command in these tests"),
        };
        s.waiting.push_back((token, addr, len, io.opcode));
        if s.open {
            drop(s);
            self.gate.complete(1, 0);
        }
        Ok(())
    }

    fn kick(&mut self) {}

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let mut s = self.gate.shared.lock().unwrap();
        let n = s.done.len().min(budget);
        out.extend(s.done.drain(..n));
        n
    }

    fn take_ready(&mut self) -> bool {
        let mut s = self.gate.shared.lock().unwrap();
        s.refused &= !s.ready;
        std::mem::take(&mut s.ready)
    }

    fn prepare_sleep(&mut self) -> Sleep {
        Sleep::Armed
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        let mut s = self.gate.shared.lock().unwrap();
        if !s.cancels {
            return Cancel::Unsupported;
        }
        let Some(at) = s.waiting.iter().position(|w| w.0 == token) else { return Cancel::TooLate };
        s.waiting.remove(at);
        s.done.push_back(Completion::new(token, IoStatus::ABORT_REQUESTED));
        Cancel::Cancelled
    }

    fn lent(&self, _: Token) -> Lent<'_> {
        panic!("never lends")
    }

    fn release(&mut self, _: Token) {
        panic!("never lends")
    }

    fn close(&mut self) {
        self.closed = true;
    }

    fn drained(&self) -> bool {
        let s = self.gate.shared.lock().unwrap();
        s.waiting.is_empty() && s.done.is_empty()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.gate.shared.lock().unwrap().channels -= 1;
    }
}
