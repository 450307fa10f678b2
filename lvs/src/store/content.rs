//! What a segment holds: what its headers say, and the bytes of what has to be moved.
//!
//! Of a segment with much to move all is read, once, and every block may be a header: one that an earlier use of the segment
//! left must not hide what stands behind it. Where little is to be moved, or only map pages are (which are not copied), headers are
//! looked for from record to record, and then only those blocks are read. What is older than the record before it was left
//! by an earlier use, and nothing is passed over for its sake. Parsing takes turns of at most [`STEP`] blocks (H15); the memory is
//! the cleaner's and used again for the next segment.

use std::rc::Rc;

use super::clean::Candidate;
use super::pages::{SLOW_BUFFER_BYTES, aio_yield};
use super::seal::seal;
use super::space::{Segment, State};
use super::{Inner, Store};
use crate::LvsError;
use crate::format::record::{
    DataEntry, MAX_HEADER_BLOCKS, PageNote, Record, Stamp, header_blocks, looks_like_header,
};
use crate::index::PageTag;
use crate::types::{BLOCK_BYTES, BlockNo, Pba, SegmentId, Seq};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks that are read at once: what a buffer takes.
const STEP: u32 = SLOW_BUFFER_BYTES / BLOCK_BYTES;
/// Blocks that a look for headers begins with, and those that it reads at a record which is longer.
const LOOK: u32 = 8;
/// A segment of which at most this part is live is not read as a whole.
const SPARSE: u32 = 4;
/// Blocks between two live ones that are rather read than asked around.
const GAP: u32 = 8;
/// Where the number of a record stands in its header.
const SEQ_AT: usize = 16;

/// What a segment holds, as its headers say.
#[derive(Default)]
pub(super) struct Content {
    pub(super) blocks: Vec<Candidate>,
    pub(super) pages: Vec<(PageTag, Pba)>,
}

/// Blocks of a segment in memory.
pub(super) struct Held {
    first: Pba,
    /// Blocks of the segment.
    count: u32,
    bytes: Vec<u8>,
    /// Which they are, ascending; `None`: all from the first one on.
    which: Option<Vec<u32>>,
}

impl Held {
    /// A block, if it is there.
    pub(super) fn block(&self, pba: Pba) -> Option<&[u8]> {
        let offset = u32::try_from(pba.block().checked_sub(self.first.block())?).ok()?;
        let at = match &self.which {
            None => offset as usize,
            Some(which) => which.binary_search(&offset).ok()?,
        };
        self.bytes.get(at * BLOCK..(at + 1) * BLOCK)
    }
}

impl Store {
    /// Reads what a segment holds: all of its headers, and its bytes when much of it is live, or unless it may be `sparse`.
    pub(super) async fn read_segment(
        self: &Rc<Self>,
        id: SegmentId,
        sparse: bool,
    ) -> Result<(Content, Held), LvsError> {
        let (first, count, sparse) = {
            let inner = self.inner();
            let count = inner.space.segment_blocks();
            let little = |s: &Segment| s.state == State::Pages || s.live <= count / SPARSE;
            (inner.space.first_block(id), count, sparse && inner.space.get(id).is_some_and(little))
        };
        let mut bytes = self.segment.take();
        bytes.clear();
        let mut held = Held { first, count, bytes, which: None };
        let content =
            if sparse { self.look_for_headers(&mut held).await? } else { self.read_whole(&mut held).await? };
        Ok((content, held))
    }

    /// Reads these blocks, unless they are there.
    pub(super) async fn read_live(&self, held: &mut Held, live: &[Candidate]) -> Result<(), LvsError> {
        if held.which.is_none() {
            return Ok(());
        }
        let offset = |c: &Candidate| (c.pba.block() - held.first.block()) as u32;
        let mut offsets: Vec<u32> = live.iter().map(offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
        let mut which = Vec::with_capacity(offsets.len());
        held.bytes.clear();
        let mut rest = &offsets[..];
        while let Some(&from) = rest.first() {
            let near = |pair: &[u32]| pair[1] - pair[0] <= GAP && pair[1] - from < STEP;
            let run = 1 + rest.windows(2).take_while(|pair| near(pair)).count();
            let blocks = rest[run - 1] + 1 - from;
            self.read_what_can_be(held.first.plus(u64::from(from)), blocks, &mut held.bytes).await?;
            which.extend(from..from + blocks);
            rest = &rest[run..];
        }
        held.which = Some(which);
        Ok(())
    }

    /// The memory is for the next segment.
    pub(super) fn give_back(&self, held: Held) {
        self.segment.set(held.bytes);
    }

    async fn read_whole(&self, held: &mut Held) -> Result<Content, LvsError> {
        let mut content = Content::default();
        let (mut at, mut read) = (0, 0);
        while at < held.count {
            let step = STEP.min(held.count - read);
            self.read_what_can_be(held.first.plus(u64::from(read)), step, &mut held.bytes).await?;
            read += step;
            // A header may go on in what is read next.
            let until = if read == held.count { read } else { read - MAX_HEADER_BLOCKS as u32 };
            {
                let inner = self.inner();
                for at in at..until {
                    let bytes = &held.bytes[at as usize * BLOCK..];
                    inner.read_header(held.first.plus(u64::from(at)), bytes, &mut content);
                }
            }
            at = until;
            aio_yield().await;
        }
        Ok(content)
    }

    async fn look_for_headers(&self, held: &mut Held) -> Result<Content, LvsError> {
        let mut content = Content::default();
        held.which = Some(Vec::new());
        let (mut at, mut step) = (0, LOOK);
        let mut newest = (0, Seq::ZERO);
        while at < held.count {
            let window = step.min(held.count - at);
            let end = at + window;
            held.bytes.clear();
            self.read_what_can_be(held.first.plus(u64::from(at)), window, &mut held.bytes).await?;
            let begin = at;
            {
                let inner = self.inner();
                while at < end {
                    let bytes = &held.bytes[(at - begin) as usize * BLOCK..];
                    let long = header_blocks(bytes).is_some_and(|blocks| blocks * BLOCK > bytes.len());
                    if looks_like_header(bytes) && long && window < STEP && end < held.count {
                        // The next look begins with it, and is long enough.
                        break;
                    }
                    let found = inner.read_header(held.first.plus(u64::from(at)), bytes, &mut content);
                    let age = |stamp: Stamp| (stamp.checkpoint, stamp.seq);
                    match found.filter(|&(_, stamp)| age(stamp) >= newest) {
                        Some((blocks, stamp)) => (at, newest) = (at + blocks, age(stamp)),
                        None => at += 1,
                    }
                }
            }
            // Records that end in what was read are short, or a header is long.
            step = if at > end { LOOK } else { (4 * step).min(STEP) };
            aio_yield().await;
        }
        Ok(content)
    }
}

impl Inner {
    /// Reads a header, if there is one; how many blocks its record has, and when it was written. Whatever looks like one is
    /// asked: what it says is looked up.
    fn read_header(&self, pba: Pba, bytes: &[u8], content: &mut Content) -> Option<(u32, Stamp)> {
        if !looks_like_header(bytes) {
            return None;
        }
        let header = header_blocks(bytes).and_then(|blocks| bytes.get(..blocks * BLOCK))?;
        // A record says in its number in which opening it was written; pages, which have none, say it otherwise.
        let stated = header[SEQ_AT..].first_chunk().map_or(Seq::ZERO, |b| Seq(u64::from_le_bytes(*b)));
        let openings =
            if stated == Seq::ZERO { 1..=self.anchor.opening } else { stated.opening()..=stated.opening() };
        let record = openings.rev().find_map(|opening| {
            Record::parse(header, pba, &seal(&self.uuid, &self.anchor.salt, opening)).ok()
        })?;
        let payload = pba.plus(record.header_blocks() as u64);
        for entry in record.data() {
            let DataEntry::Extent { line, block, payload_block, crcs } = entry else { continue };
            content.blocks.extend(crcs.enumerate().map(|(i, crc)| Candidate {
                line,
                block: BlockNo(block.0 + i as u64),
                birth: record.stamp().seq,
                pba: payload.plus(u64::from(payload_block) + i as u64),
                crc,
            }));
        }
        content.blocks.extend(record.relocations().enumerate().map(|(i, r)| Candidate {
            line: r.line,
            block: r.block,
            birth: r.birth,
            pba: payload.plus(i as u64),
            crc: r.crc,
        }));
        for (i, note) in record.pages().enumerate() {
            if let PageNote::Map { line, level, block, birth, .. } = note {
                content.pages.push((PageTag { line, level, block, birth }, payload.plus(i as u64)));
            }
        }
        Some((u32::try_from(record.len_blocks()).ok()?, record.stamp()))
    }
}
