//! A disk in memory that can be copied, counts what is read of it, writes down what happens to it, and fails exactly where
//! a test says.
//!
//! Its data side needs `unsafe`: it copies between callers' lists and the disk, under the contract of
//! [`IoChannel::submit`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use aio::device::{
    Cancel, Capabilities, DeviceError, DeviceEvent, EventSink, Geometry, LocalBoxFuture, Sleep, Subscription,
};
use aio::devices::events::EventHub;
use aio::{
    BlockCount, BlockDevice, Busy, Completion, Io, IoChannel, IoFlags, IoStatus, Lent, Opcode, SgEntry,
    Token, check, sgmem,
};
use uuid::Uuid;

use super::tape::{Event, Tape, Written};
use crate::rig::Rng;

/// I/Os that a channel takes.
const DEPTH: usize = 64;

/// A block and the hash of what it holds.
#[derive(Clone)]
pub(crate) struct Block(Arc<(u64, Box<[u8]>)>);

impl Block {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(Arc::new((hash(bytes), bytes.into())))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.1
    }

    pub(crate) fn hash(&self) -> u64 {
        self.0.0
    }
}

/// A hash of bytes: not zero, so that a block which was written differs from one that was not.
fn hash(bytes: &[u8]) -> u64 {
    let mut h = 0x243f_6a88_85a3_08d3u64;
    for word in bytes.chunks_exact(8) {
        h = (h ^ u64::from_le_bytes(word.try_into().unwrap())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h ^= h >> 29;
    }
    h | 1
}

/// What is on a disk.
#[derive(Clone, Default)]
pub(crate) struct Image {
    pub(crate) block_bytes: u32,
    pub(crate) len_blocks: u64,
    /// Blocks that were ever written.
    pub(crate) blocks: BTreeMap<u64, Block>,
}

impl Image {
    pub(crate) fn empty(block_bytes: u32, mib: u64) -> Self {
        let len_blocks = (mib << 20) / u64::from(block_bytes);
        Self { block_bytes, len_blocks, blocks: BTreeMap::new() }
    }

    pub(crate) fn put(&mut self, lba: u64, blocks: &[Block]) {
        for (at, block) in (lba..).zip(blocks) {
            self.blocks.insert(at, block.clone());
        }
    }

    /// Flips a bit of a block of the disk.
    pub(crate) fn flip(&mut self, lba: u64, bit: usize) {
        let mut bytes = self.bytes(lba);
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.blocks.insert(lba, Block::new(&bytes));
    }

    pub(crate) fn bytes(&self, lba: u64) -> Vec<u8> {
        self.blocks.get(&lba).map_or_else(|| vec![0; self.block_bytes as usize], |b| b.bytes().to_vec())
    }
}

/// What goes wrong, once, with the n-th of its kind from now on (0 = the next).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The write fails and changes nothing.
    FailWrite(u64),
    /// The write succeeds and changes nothing.
    LoseWrite(u64),
    /// The write succeeds and changes the blocks so far behind (of the same alignment) instead.
    Misdirect(u64, u64),
    /// The flush fails.
    FailFlush(u64),
    /// The read fails.
    FailRead(u64),
}

/// What was asked of a disk.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) read_bytes: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
}

struct State {
    image: Image,
    alive: bool,
    rng: Rng,
    fault: Option<Fault>,
    /// A fault has happened.
    struck: bool,
    unreadable: BTreeSet<u64>,
    /// Reads of just 4 KiB that touch this block do not end.
    stalled: Option<u64>,
    counts: Counts,
}

/// See the module. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Shared>);

struct Shared {
    name: String,
    /// Number on the tape.
    index: usize,
    uuid: Uuid,
    volatile: bool,
    block_bytes: u32,
    tape: Option<Tape>,
    state: Mutex<State>,
    events: EventHub,
}

impl Disk {
    pub(crate) fn new(index: usize, image: Image, volatile: bool, seed: u64, tape: Option<Tape>) -> Self {
        let block_bytes = image.block_bytes;
        let state = State {
            image,
            alive: true,
            rng: Rng::new(seed ^ (index as u64) << 32),
            fault: None,
            struck: false,
            unreadable: BTreeSet::new(),
            stalled: None,
            counts: Counts::default(),
        };
        Self(Arc::new(Shared {
            name: format!("disk{index}"),
            index,
            uuid: Uuid::from_u128(1 << 100 | index as u128),
            volatile,
            block_bytes,
            tape,
            state: Mutex::new(state),
            events: EventHub::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    pub(crate) fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::new(self.clone())
    }

    /// What errors call it.
    pub(crate) fn called(&self) -> &str {
        &self.0.name
    }

    /// From now on everything fails, and nothing changes the disk.
    pub(crate) fn cut(&self) {
        self.state().alive = false;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state().counts
    }

    /// What was written, volatile or not.
    pub(crate) fn image(&self) -> Image {
        self.state().image.clone()
    }

    pub(crate) fn strike(&self, fault: Fault) {
        let mut state = self.state();
        (state.fault, state.struck) = (Some(fault), false);
    }

    /// Did the fault happen?
    pub(crate) fn struck(&self) -> bool {
        self.state().struck
    }

    /// Makes a block unreadable until it is written.
    pub(crate) fn damage(&self, lba: u64) {
        self.state().unreadable.insert(lba);
    }

    /// Reads of just 4 KiB that touch the block do not end until this is called again.
    pub(crate) fn stall(&self, lba: Option<u64>) {
        self.state().stalled = lba;
    }

    /// Makes the disk larger.
    pub(crate) fn grow(&self, mib: u64) {
        let blocks = (mib << 20) / u64::from(self.0.block_bytes);
        self.state().image.len_blocks = blocks;
        if let Some(tape) = &self.0.tape {
            tape.push(Event::Grown { disk: self.0.index, len_blocks: blocks });
        }
        self.0.events.send(DeviceEvent::Resized(BlockCount(blocks)));
    }
}

impl State {
    /// Counts a fault down; true when it happens now.
    fn strikes(&mut self, wanted: impl Fn(&mut Fault) -> Option<&mut u64>) -> Option<Fault> {
        let fault = self.fault.as_mut()?;
        let left = wanted(fault)?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        self.struck = true;
        self.fault.take()
    }
}

impl BlockDevice for Disk {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn uuid(&self) -> Uuid {
        self.0.uuid
    }

    fn driver(&self) -> &'static str {
        "harness"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_bytes: self.0.block_bytes,
            meta_bytes: 0,
            buf_align: 4,
            sg_elem_align: 4,
            max_sg: 128,
            max_blocks: (1 << 20) / self.0.block_bytes,
            boundary_blocks: 0,
            atomic_blocks: 1,
            compare_write_blocks: 0,
            queue_depth: DEPTH as u32,
        }
    }

    fn size(&self) -> BlockCount {
        BlockCount(self.state().image.len_blocks)
    }

    fn capabilities(&self) -> Capabilities {
        let mut all = Capabilities::FUA;
        all.set(Capabilities::VOLATILE_CACHE, self.0.volatile);
        all
    }

    fn incarnation(&self) -> Option<u128> {
        None
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.0.events.subscribe(sink)
    }

    fn remove(&self) {
        self.cut();
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async move {
            Ok(Box::new(Channel {
                disk: self.clone(),
                flight: VecDeque::new(),
                refused: false,
                closed: false,
            }) as Box<dyn IoChannel>)
        })
    }
}

/// An accepted I/O.
struct Pending {
    token: Token,
    opcode: Opcode,
    lba: u64,
    blocks: u64,
    fua: bool,
    sg: Vec<SgEntry>,
    data: Vec<Block>,
    /// What it is called on the tape.
    id: usize,
    /// Polls until it is done.
    left: u64,
    refused: Option<IoStatus>,
}

struct Channel {
    disk: Disk,
    flight: VecDeque<Pending>,
    refused: bool,
    closed: bool,
}

impl Channel {
    fn execute(&self, io: &Pending) -> IoStatus {
        let mut state = self.disk.state();
        if let Some(status) = io.refused.or_else(|| (!state.alive).then_some(check::REMOVED)) {
            return status;
        }
        let tape = |event| {
            if let Some(tape) = &self.disk.0.tape {
                tape.push(event);
            }
        };
        match io.opcode {
            Opcode::Read => {
                state.counts.reads += 1;
                state.counts.read_bytes += io.blocks * u64::from(self.disk.0.block_bytes);
                let failed = state.strikes(|f| if let Fault::FailRead(n) = f { Some(n) } else { None });
                if failed.is_some() || state.unreadable.range(io.lba..io.lba + io.blocks).next().is_some() {
                    return IoStatus::UNRECOVERED_READ;
                }
                let block = self.disk.0.block_bytes as usize;
                let mut bytes = vec![0; io.blocks as usize * block];
                for (lba, found) in state.image.blocks.range(io.lba..io.lba + io.blocks) {
                    let at = (lba - io.lba) as usize * block;
                    bytes[at..at + block].copy_from_slice(found.bytes());
                }
                // SAFETY: valid for writes until the completion, which follows this, and as long as `bytes`.
                unsafe { sgmem::scatter(bytes.as_ptr(), &io.sg) };
            }
            Opcode::Write => {
                state.counts.writes += 1;
                if state.strikes(|f| if let Fault::FailWrite(n) = f { Some(n) } else { None }).is_some() {
                    tape(Event::Failed { write: io.id });
                    return IoStatus::WRITE_FAULT;
                }
                let lost = state.strikes(|f| if let Fault::LoseWrite(n) = f { Some(n) } else { None });
                let moved = state.strikes(|f| if let Fault::Misdirect(n, _) = f { Some(n) } else { None });
                if lost.is_none() {
                    let behind = if let Some(Fault::Misdirect(_, by)) = moved { by } else { 0 };
                    let lba = (io.lba + behind).min(state.image.len_blocks - io.blocks);
                    (lba..lba + io.blocks).for_each(|b| {
                        state.unreadable.remove(&b);
                    });
                    state.image.put(lba, &io.data);
                }
                let durable = io.fua || !self.disk.0.volatile;
                tape(Event::Completed { write: io.id, durable });
            }
            Opcode::Flush => {
                state.counts.flushes += 1;
                if state.strikes(|f| if let Fault::FailFlush(n) = f { Some(n) } else { None }).is_some() {
                    return IoStatus::WRITE_FAULT;
                }
                tape(Event::Flushed { flush: io.id });
            }
            _ => return IoStatus::INVALID_OPCODE,
        }
        IoStatus::SUCCESS
    }
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        if self.flight.len() >= DEPTH {
            self.refused = true;
            return Err(Busy);
        }
        let refused = if self.closed {
            Some(check::CLOSED)
        } else {
            check::validate(io, &self.disk.geometry(), self.disk.capabilities(), self.disk.size()).err()
        };
        let mut data = Vec::new();
        let mut state = self.disk.state();
        let (alive, left) = (state.alive, 1 + state.rng.below(6) * state.rng.below(5));
        drop(state);
        let mut id = 0;
        if refused.is_none() && alive {
            let block = self.disk.0.block_bytes as usize;
            if io.opcode == Opcode::Write {
                let mut bytes = vec![0; io.blocks.0 as usize * block];
                // SAFETY: valid for reads as `submit` demands, and as long as `bytes`.
                unsafe { sgmem::gather(io.sg, bytes.as_mut_ptr()) };
                data = bytes.chunks_exact(block).map(Block::new).collect();
            }
            if let Some(tape) = &self.disk.0.tape {
                id = match io.opcode {
                    Opcode::Write => {
                        tape.submit(Written { disk: self.disk.0.index, lba: io.lba.0, blocks: data.clone() })
                    }
                    Opcode::Flush => tape.flush(self.disk.0.index),
                    _ => 0,
                };
            }
        }
        self.flight.push_back(Pending {
            token,
            opcode: io.opcode,
            lba: io.lba.0,
            blocks: io.blocks.0,
            fua: io.flags.contains(IoFlags::FUA),
            sg: io.sg.to_vec(),
            data,
            id,
            left,
            refused,
        });
        Ok(())
    }

    fn kick(&mut self) {}

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let mut done = 0;
        let mut at = 0;
        let stalled = self.disk.state().stalled;
        let block_bytes = u64::from(self.disk.0.block_bytes);
        while at < self.flight.len() {
            let io = &mut self.flight[at];
            io.left = io.left.saturating_sub(1);
            let stalls = io.opcode == Opcode::Read
                && io.blocks * block_bytes == 4096
                && stalled.is_some_and(|lba| (io.lba..io.lba + io.blocks).contains(&lba));
            if io.left > 0 || stalls || done == budget {
                at += 1;
                continue;
            }
            let Some(io) = self.flight.remove(at) else { break };
            out.push(Completion::new(io.token, self.execute(&io)));
            done += 1;
        }
        done
    }

    fn take_ready(&mut self) -> bool {
        let ready = self.refused && self.flight.len() < DEPTH;
        self.refused &= !ready;
        ready
    }

    fn prepare_sleep(&mut self) -> Sleep {
        if self.flight.is_empty() { Sleep::Armed } else { Sleep::KeepPolling }
    }

    fn cancel(&mut self, _: Token) -> Cancel {
        Cancel::TooLate
    }

    fn lent(&self, _: Token) -> Lent<'_> {
        Lent { sg: &[], stable: true }
    }

    fn release(&mut self, _: Token) {}

    fn close(&mut self) {
        self.closed = true;
    }

    fn drained(&self) -> bool {
        self.flight.is_empty()
    }
}
