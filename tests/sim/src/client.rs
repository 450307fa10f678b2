//! Drives one channel of a device: keeps the memory of I/Os in flight, and the accounts.

#![allow(unsafe_code, reason = "submissions promise that their memory stays valid")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::rc::Rc;

use aio::reactor::Core;
use aio::{
    BlockCount, BlockRange, Completion, Instant, Io, IoChannel, IoFlags, IoStatus, Lba, Opcode, Poller,
    RegionId, SgEntry, Sleep, Token,
};

/// One I/O, with memory of its own.
#[derive(Clone, Debug)]
pub struct Op {
    /// What.
    pub opcode: Opcode,
    /// How.
    pub flags: IoFlags,
    /// Where.
    pub lba: u64,
    /// How much.
    pub blocks: u64,
    /// Payload to write or compare; for reads the buffer's length.
    pub data: Vec<u8>,
    /// The write half of Compare and Write.
    pub second: Vec<u8>,
    /// The payload is cut here into two entries (0 = one entry).
    pub cut: usize,
}

impl Op {
    /// An operation without data.
    pub fn new(opcode: Opcode, lba: u64, blocks: u64) -> Self {
        Self { opcode, flags: IoFlags::empty(), lba, blocks, data: Vec::new(), second: Vec::new(), cut: 0 }
    }

    /// A read.
    pub fn read(lba: u64, blocks: u64, block_bytes: u32) -> Self {
        Self {
            data: vec![0xee; blocks as usize * block_bytes as usize],
            ..Self::new(Opcode::Read, lba, blocks)
        }
    }

    /// A write.
    pub fn write(lba: u64, blocks: u64, data: Vec<u8>) -> Self {
        Self { data, ..Self::new(Opcode::Write, lba, blocks) }
    }
}

/// A finished I/O.
#[derive(Clone, Debug)]
pub struct Finished {
    /// As returned by [`Client::submit`].
    pub id: u64,
    /// What it was; `data` is what was read.
    pub op: Op,
    /// Its outcome.
    pub status: IoStatus,
}

/// See the module's documentation. A poller of its core.
pub struct Client {
    channel: Box<dyn IoChannel>,
    in_flight: BTreeMap<u64, Op>,
    /// Not taken by the channel yet.
    waiting: std::collections::VecDeque<u64>,
    finished: Vec<Finished>,
    next_id: u64,
    completions: Vec<Completion>,
    closed: bool,
}

fn list(bytes: &mut [u8], cut: usize) -> Vec<SgEntry> {
    let (a, b) = bytes.split_at_mut(cut);
    [a, b]
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(|part| SgEntry {
            ptr: NonNull::from(&mut part[0]),
            len_bytes: part.len() as u32,
            region: RegionId::NONE,
        })
        .collect()
}

impl Client {
    /// Has `core` drive `channel`.
    pub fn start(core: &Core, channel: Box<dyn IoChannel>) -> Rc<RefCell<Self>> {
        let client = Rc::new(RefCell::new(Self {
            channel,
            in_flight: BTreeMap::new(),
            waiting: std::collections::VecDeque::new(),
            finished: Vec::new(),
            next_id: 0,
            completions: Vec::with_capacity(64),
            closed: false,
        }));
        core.add_poller(client.clone());
        client
    }

    /// Starts an I/O. One that the channel has no room for goes in later, in order.
    pub fn submit(&mut self, op: Op) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight.insert(id, op);
        self.waiting.push_back(id);
        self.feed();
        id
    }

    fn feed(&mut self) {
        while let Some(&id) = self.waiting.front() {
            let op = self.in_flight.get_mut(&id).expect("invariant: what waits is in flight");
            let cut = op.cut.min(op.data.len());
            let (sg, second) = (list(&mut op.data, cut), list(&mut op.second, 0));
            let ranges = [BlockRange { start: Lba(op.lba), blocks: BlockCount(op.blocks) }];
            let io = Io {
                flags: op.flags,
                sg: &sg,
                second: &second,
                ranges: if op.opcode == Opcode::Unmap { &ranges } else { &[] },
                ..Io::new(op.opcode, Lba(op.lba), BlockCount(op.blocks))
            };
            // SAFETY: the operation's vectors stay in `in_flight`, untouched, until the completion, and the channel is
            // dropped before them.
            if unsafe { self.channel.submit(&io, Token(id)) }.is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// I/Os without their completion.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What waits for what, for reports.
    pub fn describe(&self) -> String {
        let ops: Vec<_> = self.in_flight.values().map(|op| (op.opcode, op.lba, op.blocks)).collect();
        format!("{} not taken of {} in flight: {ops:?}", self.waiting.len(), self.in_flight.len())
    }

    /// What finished since the last call.
    pub fn take_finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.finished)
    }

    /// Ends it: the reactor drops the poller, and with the last reference goes the channel.
    pub fn stop(&mut self) {
        self.closed = true;
    }
}

impl Poller for Client {
    fn poll(&mut self, _now: Instant) -> usize {
        let count = self.channel.poll(&mut self.completions, 64);
        assert_eq!(count, self.completions.len(), "poll returns what it appended");
        for completion in self.completions.drain(..) {
            let id = completion.token.0;
            let op = self.in_flight.remove(&id).expect("a completion for something in flight, and only one");
            self.finished.push(Finished { id, op, status: completion.status });
        }
        if self.channel.take_ready() || count > 0 {
            self.feed();
        }
        count
    }

    fn kick(&mut self) {
        self.channel.kick();
    }

    fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
        self.channel.prepare_sleep()
    }

    fn finished(&self) -> bool {
        self.closed
    }
}
