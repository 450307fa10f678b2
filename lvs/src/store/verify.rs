//! Blocks of data are read from the disks, many in one piece, and compared with their checksums.

use nvme::digest::crc32c;

use super::Store;
use crate::LvsError;
use crate::types::{BLOCK_BYTES, BlockNo, LineId, Pba, Seq};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks that nobody asked for and that are read all the same, because another read costs more.
const MOST_GAP: u64 = 16;

/// A block of data that something refers to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) line: LineId,
    pub(super) block: BlockNo,
    pub(super) birth: Seq,
    pub(super) pba: Pba,
    /// `None`: what refers to it does not say.
    pub(super) crc: Option<u32>,
}

/// What is wrong with a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrong {
    /// It is not what was written.
    Checksum,
    /// The disk does not read it.
    Unreadable,
}

/// Sorts blocks by where they are, and cuts them into pieces of at most `most_blocks` that are read in one go each.
pub(super) fn pieces(blocks: &mut [Found], most_blocks: u64) -> impl Iterator<Item = &[Found]> {
    blocks.sort_unstable_by_key(|found| (found.pba.member(), found.pba.block()));
    let mut rest = &*blocks;
    core::iter::from_fn(move || {
        let first = rest.first()?.pba;
        let together = |at: &Found, next: &Found| {
            next.pba.member() == first.member()
                && next.pba.block() - at.pba.block() <= MOST_GAP
                && next.pba.block() - first.block() < most_blocks
        };
        let len = 1 + rest.windows(2).take_while(|w| together(&w[0], &w[1])).count();
        let (piece, after) = rest.split_at(len);
        rest = after;
        Some(piece)
    })
}

/// Blocks that a piece reaches over, with its gaps.
pub(super) fn len_blocks(piece: &[Found]) -> u32 {
    let ends = piece.first().zip(piece.last());
    ends.map_or(0, |(first, last)| (last.pba.block() - first.pba.block() + 1) as u32)
}

impl Store {
    /// Reads a piece and tells of each block that has a checksum how it is.
    pub(super) async fn verify(
        &self,
        piece: &[Found],
        mut tell: impl FnMut(&Found, Option<Wrong>),
    ) -> Result<(), LvsError> {
        let Some(first) = piece.first().map(|found| found.pba) else { return Ok(()) };
        let together = self.read_if_it_can(first, len_blocks(piece)).await?;
        for found in piece {
            let Some(crc) = found.crc else { continue };
            // One of them cannot be read: which?
            let alone = match together {
                Some(_) => None,
                None => self.read_if_it_can(found.pba, 1).await?,
            };
            let at = (found.pba.block() - first.block()) as usize * BLOCK;
            let bytes = together.as_ref().map(|buf| &buf[at..]).or(alone.as_ref().map(|buf| &buf[..]));
            let wrong = match bytes {
                Some(bytes) if crc32c(&bytes[..BLOCK]) == crc => None,
                Some(_) => Some(Wrong::Checksum),
                None => Some(Wrong::Unreadable),
            };
            tell(found, wrong);
        }
        Ok(())
    }

    /// `None`: the disk does not read it.
    async fn read_if_it_can(&self, pba: Pba, blocks: u32) -> Result<Option<aio::DmaBuf>, LvsError> {
        match self.read_blocks(pba, blocks).await {
            Ok(buf) => Ok(Some(buf)),
            Err(LvsError::Io { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }
}
