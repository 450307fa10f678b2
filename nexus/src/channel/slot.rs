//! I/Os that a channel has taken.

use aio::{BlockRange, DmaBuf, Io, IoFlags, IoStatus, Opcode, SgEntry, Token, time::Instant};

use crate::child::{MAX_CHILDREN, Mask};
use crate::locks::Hold;

/// Entries of a list for which a slot keeps room from the beginning.
const USUAL_SG: usize = 8;

/// What a slot is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// One child reads (or verifies, or compares).
    Read,
    /// One child compares, on behalf of a Compare and Write.
    Compare,
    /// Every member changes its blocks, or flushes.
    Change,
}

/// One I/O. Lists keep their memory from one I/O to the next.
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) used: bool,
    /// The submitter's.
    pub(super) token: Token,
    pub(super) opcode: Opcode,
    pub(super) flags: IoFlags,
    /// The blocks that it is at, in the nexus's addresses: of an Unmap, the range at work.
    pub(super) at: BlockRange,
    pub(super) sg: Vec<SgEntry>,
    pub(super) second: Vec<SgEntry>,
    /// What is left of an Unmap, the next last.
    pub(super) ranges: Vec<BlockRange>,
    /// Payload that its owner could have changed while the children read it.
    pub(super) copies: Vec<DmaBuf>,
    pub(super) hold: Hold,
    pub(super) step: Step,
    /// Children it is to be offered to, when they have room.
    pub(super) pending: Mask,
    /// Children that have it.
    pub(super) flying: Mask,
    /// Children that did it.
    pub(super) done: Mask,
    /// Children that failed.
    pub(super) failed: Mask,
    /// Of those, the ones whose medium did.
    pub(super) bad_media: Mask,
    /// What the first failure said.
    pub(super) status: IoStatus,
    /// What each child that failed said.
    pub(super) answers: [IoStatus; MAX_CHILDREN],
    /// When its read was submitted.
    pub(super) started: Instant,
    /// When it was taken.
    pub(super) arrived: Instant,
    /// What it moves.
    pub(super) bytes: u64,
    /// A child refused it because another nexus has taken that child over: it is never acknowledged.
    pub(super) fenced: bool,
    /// It waits for its blocks, or for its regions' bits.
    pub(super) waits: bool,
    /// When it asked for these.
    pub(super) asked: Option<Instant>,
    /// It waits for the home core's word on the children that failed.
    pub(super) parked: bool,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            generation: 0,
            used: false,
            token: Token(0),
            opcode: Opcode::Flush,
            flags: IoFlags::empty(),
            at: BlockRange::default(),
            sg: Vec::with_capacity(USUAL_SG),
            second: Vec::new(),
            ranges: Vec::new(),
            copies: Vec::new(),
            hold: Hold::default(),
            step: Step::Change,
            pending: 0,
            flying: 0,
            done: 0,
            failed: 0,
            bad_media: 0,
            status: IoStatus::SUCCESS,
            answers: [IoStatus::SUCCESS; MAX_CHILDREN],
            started: Instant::from_ns(0),
            arrived: Instant::from_ns(0),
            bytes: 0,
            fenced: false,
            waits: false,
            asked: None,
            parked: false,
        }
    }

    /// Takes an I/O over.
    pub(super) fn fill(&mut self, io: &Io<'_>, token: Token, now: Instant, block_bytes: u32) {
        self.used = true;
        self.asked = None;
        self.arrived = now;
        self.token = token;
        self.opcode = io.opcode;
        // What a child lends cannot be passed on: it is the child's token that names it.
        self.flags = io.flags.difference(IoFlags::MAY_LEND);
        // The others' addresses mean nothing, and are anything.
        let has_address = !matches!(io.opcode, Opcode::Flush | Opcode::Unmap);
        self.at =
            if has_address { BlockRange { start: io.lba, blocks: io.blocks } } else { BlockRange::default() };
        self.sg.clear();
        self.sg.extend_from_slice(io.sg);
        self.second.clear();
        self.second.extend_from_slice(io.second);
        self.ranges.clear();
        self.ranges.extend(io.ranges.iter().rev().filter(|r| r.blocks.0 > 0));
        let blocks = self.ranges.iter().fold(self.at.blocks.0, |sum, r| sum.wrapping_add(r.blocks.0));
        self.bytes = blocks.wrapping_mul(block_bytes.into());
        self.step = match io.opcode {
            Opcode::Read | Opcode::Verify | Opcode::Compare => Step::Read,
            Opcode::CompareAndWrite => Step::Compare,
            _ => Step::Change,
        };
        self.begin();
    }

    /// Forgets how the children fared: a new step begins.
    pub(super) fn begin(&mut self) {
        (self.pending, self.flying, self.done, self.failed, self.bad_media) = (0, 0, 0, 0, 0);
        self.status = IoStatus::SUCCESS;
        self.fenced = false;
        self.parked = false;
    }

    /// No child has it, or is to get it.
    pub(super) fn is_answered(&self) -> bool {
        self.pending | self.flying == 0
    }

    /// Whether the blocks have to be held.
    pub(super) fn needs_hold(&self) -> bool {
        !matches!(self.opcode, Opcode::Read | Opcode::Verify | Opcode::Compare | Opcode::Flush)
    }
}
