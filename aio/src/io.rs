//! What crosses the block-device contract, as plain data.

use crate::IoStatus;
use crate::sg::SgEntry;

/// Logical block address, in the device's blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lba(pub u64);

/// A number of logical blocks. One-based, unlike the wire's NLB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockCount(pub u64);

/// Most ranges of one Unmap or Copy: what one Dataset Management command can carry (NVM Command Set 1.0,
/// section 3.2.3).
pub const MAX_RANGES: usize = 256;

/// Blocks `[start, start + blocks)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BlockRange {
    /// First block.
    pub start: Lba,
    /// Length; may be zero (nothing to do).
    pub blocks: BlockCount,
}

impl BlockRange {
    /// The block after the last; `None` when it does not fit in 64 bits.
    pub fn end(&self) -> Option<Lba> {
        self.start.0.checked_add(self.blocks.0).map(Lba)
    }

    /// True when the whole range lies within a device of `size` blocks.
    pub fn fits(&self, size: BlockCount) -> bool {
        self.end().is_some_and(|e| e.0 <= size.0)
    }
}

/// Chosen by the submitter, given back in the [`Completion`]; opaque to the device. By convention a slab
/// index in the low 32 bits and its generation in the high ones. Unique among a channel's I/Os in flight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub u64);

impl Token {
    /// Packs a slab index with its generation.
    pub const fn new(index: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | index as u64)
    }

    /// The slab index.
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// The generation of the slot when the token was made.
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What an [`Io`] does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Opcode {
    /// Device to `sg`.
    Read,
    /// `sg` to device.
    Write,
    /// All completed writes become durable. `lba` and `blocks` are ignored.
    Flush,
    /// Blocks read as zeroes afterwards; no data. [`IoFlags::DEALLOCATE`] allows giving the space back.
    WriteZeroes,
    /// Advice that `ranges` are unused; they read as zeroes or as before, per [`Capabilities`](crate::Capabilities).
    Unmap,
    /// Compares `sg` with the device; [`IoStatus::COMPARE_FAILURE`] at the first difference.
    Compare,
    /// Compares `sg`, and when equal writes `second`: one atomic step over all cores.
    CompareAndWrite,
    /// Reads from media and checks without transferring.
    Verify,
    /// Copies `ranges` one after the other to `lba` on the same device.
    Copy,
}

bitflags::bitflags! {
    /// Modifiers of an [`Io`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct IoFlags: u16 {
        /// Force Unit Access: completes only when on non-volatile media.
        const FUA = 1;
        /// Nobody but the slot can change the payload while the I/O is in flight.
        const STABLE = 2;
        /// A read may answer with lent memory instead of filling `sg` (which may then be empty).
        const MAY_LEND = 4;
        /// With `WriteZeroes`: the blocks may be deallocated.
        const DEALLOCATE = 8;
    }
}

/// One I/O request. `Io` and its lists are borrowed for the time of `submit` only: a device copies what it
/// needs into its slot. The *memory* that the entries name belongs to the device until the completion.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// What to do.
    pub opcode: Opcode,
    /// How.
    pub flags: IoFlags,
    /// First block; the destination for [`Opcode::Copy`].
    pub lba: Lba,
    /// Length; ignored where `ranges` says it (Unmap, Copy) and for Flush.
    pub blocks: BlockCount,
    /// Payload; its total length is exactly `blocks` times the block size where the opcode transfers data.
    pub sg: &'a [SgEntry],
    /// Second payload: the write half of [`Opcode::CompareAndWrite`].
    pub second: &'a [SgEntry],
    /// Ranges of Unmap, sources of Copy; at most [`MAX_RANGES`].
    pub ranges: &'a [BlockRange],
}

impl<'a> Io<'a> {
    /// An I/O without data.
    pub const fn new(opcode: Opcode, lba: Lba, blocks: BlockCount) -> Self {
        Self { opcode, flags: IoFlags::empty(), lba, blocks, sg: &[], second: &[], ranges: &[] }
    }

    /// A read of `blocks` blocks into `sg`.
    pub const fn read(lba: Lba, blocks: BlockCount, sg: &'a [SgEntry]) -> Self {
        Self { sg, ..Self::new(Opcode::Read, lba, blocks) }
    }

    /// A write of `blocks` blocks from `sg`.
    pub const fn write(lba: Lba, blocks: BlockCount, sg: &'a [SgEntry]) -> Self {
        Self { sg, ..Self::new(Opcode::Write, lba, blocks) }
    }

    /// A flush of the whole device.
    pub const fn flush() -> Self {
        Self::new(Opcode::Flush, Lba(0), BlockCount(0))
    }

    /// Advice that `ranges` are unused.
    pub const fn unmap(ranges: &'a [BlockRange]) -> Self {
        Self { ranges, ..Self::new(Opcode::Unmap, Lba(0), BlockCount(0)) }
    }

    /// The same with `flags`.
    pub const fn with_flags(self, flags: IoFlags) -> Self {
        Self { flags, ..self }
    }
}

/// The one answer to an accepted [`Io`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// As given at submission.
    pub token: Token,
    /// Outcome.
    pub status: IoStatus,
    /// The payload of a read was lent: see [`IoChannel::lent`](crate::IoChannel::lent). The token stays in
    /// use until [`IoChannel::release`](crate::IoChannel::release).
    pub lent: bool,
    /// Command-specific 64-bit result.
    pub result: u64,
}

impl Completion {
    /// A completion with nothing but a status.
    pub const fn new(token: Token, status: IoStatus) -> Self {
        Self { token, status, lent: false, result: 0 }
    }
}

/// What a device lent in answer to a read with [`IoFlags::MAY_LEND`].
#[derive(Clone, Copy, Debug)]
pub struct Lent<'a> {
    /// The payload, in order; exactly the length that was asked for.
    pub sg: &'a [SgEntry],
    /// False: the bytes may be overwritten by a later write. Use them within the same turn, and copy first
    /// what has to be consistent with itself (digests, encryption).
    pub stable: bool,
}
