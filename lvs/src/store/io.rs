//! I/Os of volumes that the store works on, and the queues of channels that wait for them.

use std::collections::VecDeque;

use aio::{Completion, DmaBuf, IoStatus, SgEntry, Token};

use crate::index::HoleRange;
use crate::types::{BlockNo, LineId, Place, Seq};

/// What an I/O is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The slot is free.
    Idle,
    /// Blocks are being looked up or read.
    Read,
    /// A write reads the blocks that it covers in part.
    Edges,
    /// A write waits for another one of the same block.
    Blocked,
    /// In line for a record, or in a record in flight.
    Write,
    /// Waits for the devices' caches.
    Flush,
}

/// An I/O in the store.
pub(super) struct IoCtx {
    pub(super) stage: Stage,
    /// The queue that gets its completion.
    pub(super) queue: u32,
    pub(super) token: Token,
    /// It is a part of this one, and completes that instead.
    pub(super) parent: Option<u32>,
    pub(super) fua: bool,
    pub(super) stable: bool,
    pub(super) line: LineId,
    /// Reads see what was born before.
    pub(super) view: Seq,
    /// First 4 KiB block.
    pub(super) first: BlockNo,
    /// Blocks of its payload, edges included.
    pub(super) count: u32,
    /// Payload in whole blocks: the submitter's memory, with bounce buffers in place of blocks that it covers in part.
    pub(super) sg: Vec<SgEntry>,
    /// Parts of device operations, records and edges that are still out.
    pub(super) outstanding: u32,
    pub(super) status: IoStatus,
    /// Where the blocks of a read are.
    pub(super) places: Vec<Place>,
    /// The newest record when it found the pool full: what a merge counts up to there may make space for it.
    pub(super) full_since: Option<Seq>,
    /// What a write makes a hole of, instead of having payload.
    pub(super) hole: Option<HoleRange>,
    /// Which of the two counters of reads holds it.
    pub(super) phase: Option<u8>,
    pub(super) edges: Edges,
}

/// Blocks at both ends of an I/O that it covers in part.
#[derive(Default)]
pub(super) struct Edges {
    pub(super) head: Option<Edge>,
    pub(super) tail: Option<Edge>,
}

/// One such block.
pub(super) struct Edge {
    /// The whole block.
    pub(super) buf: DmaBuf,
    /// The part that the I/O is about.
    pub(super) from_bytes: u32,
    pub(super) len_bytes: u32,
    /// The submitter's memory for that part; empty = zeroes.
    pub(super) sg: Vec<SgEntry>,
}

impl Edges {
    pub(super) fn is_some(&self) -> bool {
        self.head.is_some() || self.tail.is_some()
    }
}

impl IoCtx {
    pub(super) fn empty() -> Self {
        Self {
            stage: Stage::Idle,
            queue: 0,
            token: Token(0),
            parent: None,
            fua: false,
            stable: false,
            line: LineId(0),
            view: Seq::MAX,
            first: BlockNo(0),
            count: 0,
            sg: Vec::with_capacity(8),
            outstanding: 0,
            status: IoStatus::SUCCESS,
            places: Vec::with_capacity(64),
            full_since: None,
            hole: None,
            phase: None,
            edges: Edges::default(),
        }
    }

    /// Keeps the first error.
    pub(super) fn fail(&mut self, status: IoStatus) {
        if self.status == IoStatus::SUCCESS {
            self.status = status;
        }
    }

    /// The block behind its last one.
    pub(super) fn end(&self) -> u64 {
        self.first.0 + self.hole.map_or(u64::from(self.count), |hole| hole.count)
    }

    /// True when both touch a common block.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.line == other.line && self.first.0 < other.end() && other.first.0 < self.end()
    }
}

/// What a channel of a volume waits for.
pub(crate) struct Queue {
    pub(crate) done: VecDeque<Completion>,
    /// Accepted and not yet polled.
    pub(crate) taken: u32,
    pub(crate) depth: u32,
    pub(crate) refused: bool,
    pub(crate) closed: bool,
}

impl Queue {
    pub(crate) fn new(depth: u32) -> Self {
        Self { done: VecDeque::with_capacity(depth as usize), taken: 0, depth, refused: false, closed: false }
    }
}
