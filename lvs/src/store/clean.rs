//! The cleaner: moves what is live out of half-empty segments, so that checkpoints can free them.
//!
//! A block is live when the map leads to it: one look-up of (line, block, birth), whatever the number of snapshots
//! (H13). Its copy is a record of the log like any other; the map takes the new address only where it still says the
//! old one (H9). A live map page is not copied but *touched*: the next merge writes it anew.

use std::rc::Rc;

use super::pages::PageReader;
use super::seal::seal;
use super::{Inner, Store};
use crate::LvsError;
use crate::format::record::{
    DataEntry, PageNote, Record, RelocateHeader, Relocation, Stamp, header_blocks, looks_like_header,
};
use crate::index::{Change, PageTag, Tree, is_page_live, locate_block};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, Pba, Place, SegmentId, Seq};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks that one Relocate record moves.
const MOVE_BLOCKS: usize = 96;
/// Where the number of a record stands in its header.
const SEQ_AT: usize = 16;

/// A block of a victim, as its record described it.
struct Candidate {
    line: LineId,
    block: BlockNo,
    birth: Seq,
    pba: Pba,
    crc: u32,
}

/// What a victim holds, as its headers say.
#[derive(Default)]
struct Content {
    blocks: Vec<Candidate>,
    pages: Vec<(PageTag, Pba)>,
}

impl Store {
    /// Cleans until segments are at hand again, or nothing is left to gain.
    pub(super) async fn clean(self: &Rc<Self>) -> Result<(), LvsError> {
        let mut best = self.inner().blocks_at_hand();
        while self.inner().is_short() && !self.closing.get() {
            let mut moved = 0;
            loop {
                let victim = self.inner().take_victim(moved);
                let Some(victim) = victim else { break };
                moved += self.clean_segment(victim).await?;
            }
            let cleaned = core::mem::take(&mut self.inner().cleaning).len();
            self.checkpoint(false).await?;
            let available = self.inner().blocks_at_hand();
            if cleaned == 0 || available <= best {
                // What is left to gain is less than what it takes.
                return Ok(());
            }
            best = available;
        }
        Ok(())
    }

    /// Moves what is live in a segment. Returns how many blocks and pages that were.
    pub(super) async fn clean_segment(self: &Rc<Self>, id: SegmentId) -> Result<u32, LvsError> {
        let (first, blocks) = {
            let inner = self.inner();
            (inner.space.first_block(id), inner.space.segment_blocks())
        };
        let mut bytes = Vec::with_capacity(blocks as usize * BLOCK);
        self.read_what_can_be(first, blocks, &mut bytes).await?;
        let content = self.inner().read_headers(first, &bytes);
        let mut moved = 0;
        let mut live = Vec::new();
        for candidate in content.blocks {
            match self.is_live(&candidate).await {
                Ok(true) => live.push(candidate),
                Ok(false) => {}
                // Nobody can say: it stays where it is.
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        let mut rest = &live[..];
        while !rest.is_empty() {
            // As many as the open segment takes: a record does not leave its segment.
            let Some(room) = self.inner().room_to_move() else { break };
            let (now, later) = rest.split_at(rest.len().min(room));
            moved += self.relocate(first, &bytes, now).await?;
            rest = later;
        }
        let reader = PageReader(self.clone());
        for (tag, pba) in content.pages {
            let Some(tree) = self.inner().tree(tag.line) else { continue };
            match is_page_live(&reader, &tree, &tag, pba).await {
                Ok(true) => {
                    self.inner().touched.push(tag);
                    moved += 1;
                }
                Ok(false) => {}
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(moved)
    }

    /// Does the map lead to this block?
    async fn is_live(self: &Rc<Self>, c: &Candidate) -> Result<bool, LvsError> {
        let tree = {
            let inner = self.inner();
            let layers = [Some(&inner.active), inner.frozen.as_deref(), inner.aside.as_ref()];
            for delta in layers.into_iter().flatten() {
                match delta.exact(c.line, c.block, c.birth) {
                    Some(Change::Place(Place::Data { pba, .. })) => return Ok(pba == c.pba),
                    Some(Change::Moved { to, .. }) => return Ok(to == c.pba),
                    Some(Change::Place(Place::Hole)) => return Ok(false),
                    None => {}
                }
            }
            inner.tree(c.line)
        };
        let Some(tree) = tree else { return Ok(false) };
        Ok(locate_block(&PageReader(self.clone()), &tree, c.block, c.birth).await? == Some(c.pba))
    }

    /// Copies live blocks of a segment, whose bytes are at hand, to the end of the log.
    async fn relocate(
        self: &Rc<Self>,
        first: Pba,
        bytes: &[u8],
        live: &[Candidate],
    ) -> Result<u32, LvsError> {
        if live.is_empty() {
            return Ok(0);
        }
        let mut buf = self.buffer().await;
        let mut header = RelocateHeader::begin();
        let mut taken: Vec<&Candidate> = Vec::with_capacity(live.len());
        for c in live {
            let at = (c.pba.block() - first.block()) as usize * BLOCK;
            let Some(block) = bytes.get(at..at + BLOCK) else { continue };
            if nvme::digest::crc32c(block) != c.crc {
                // It stays where it is, and whoever reads it is told.
                self.inner().checksum_errors += 1;
                continue;
            }
            let moved = Relocation { line: c.line, block: c.block, birth: c.birth, from: c.pba, crc: c.crc };
            if header.push(&mut buf[..BLOCK], &moved).is_err() {
                break;
            }
            taken.push(c);
            let to = taken.len() * BLOCK;
            buf[to..to + BLOCK].copy_from_slice(block);
        }
        if taken.is_empty() {
            return Ok(0);
        }
        let blocks = 1 + taken.len() as u32;
        let (seq, pba, descriptor, offset_bytes) = {
            let mut inner = self.inner();
            let inner = &mut *inner;
            inner.check_fault()?;
            if !inner.log.make_room(blocks, 0, &mut inner.space) {
                return Ok(0);
            }
            let seq = inner.log.number();
            let pba = inner.log.place(seq, blocks, &mut inner.space).unwrap_or(Pba::NONE);
            let stamp = Stamp { seq, durable: inner.log.durable(), checkpoint: inner.checkpoint };
            header.finish(&mut buf[..BLOCK], &stamp, &inner.seal, pba);
            inner.stated(seq);
            let (descriptor, offset_bytes) = inner.device_of(pba)?;
            (seq, pba, descriptor, offset_bytes)
        };
        let (result, _) = descriptor.write_at(offset_bytes, blocks * BLOCK_BYTES, buf).await;
        self.wrote(pba, result)?;
        let mut inner = self.inner();
        for (i, c) in taken.iter().enumerate() {
            let to = pba.plus(1 + i as u64);
            // Without room the block stays where it is, and the copy is garbage.
            let _ = inner.layer_of(seq).relocate(c.line, c.block, c.birth, c.pba, to);
        }
        inner.record_complete(seq);
        Ok(taken.len() as u32)
    }
}

impl Inner {
    /// Are so few segments at hand that cleaning has to begin?
    pub(super) fn is_short(&self) -> bool {
        let wanted = (self.space.total() / 16).clamp(12, 256);
        self.fault.is_none() && self.space.available() < wanted
    }

    /// Blocks that can be written before something has to become free.
    fn blocks_at_hand(&self) -> u64 {
        let segments = u64::from(self.space.available()) * u64::from(self.space.segment_blocks());
        segments + u64::from(self.log.left(&self.space))
    }

    /// How many blocks the next record of the cleaner can move; `None` when no segment is left for it.
    fn room_to_move(&mut self) -> Option<usize> {
        if !self.log.make_room(2, 0, &mut self.space) {
            return None;
        }
        Some(MOVE_BLOCKS.min(self.log.left(&self.space) as usize - 1))
    }

    /// The next segment to clean; `None` when this round moved enough, or it would not fit.
    fn take_victim(&mut self, moved: u32) -> Option<SegmentId> {
        let (id, live) = self.space.victim(self.anchor.base, &self.cleaning)?;
        let room = self.active.room().0.saturating_sub(self.reserved.0) as u32;
        // With a header for each record, and what does not fit the end of a segment.
        let needed = (moved + live) + (moved + live) / 32 + MOVE_BLOCKS as u32 + 2;
        let blocks = self.log.left(&self.space) + self.space.named() as u32 * self.space.segment_blocks();
        let fits = live < room && needed <= blocks;
        if !fits || moved >= 4 * self.space.segment_blocks() {
            return None;
        }
        self.cleaning.push(id);
        Some(id)
    }

    /// The tree of a line.
    fn tree(&self, line: LineId) -> Option<Tree> {
        self.lines.get(line).map(|l| Tree { line, root: l.root })
    }

    /// What the headers in a segment say of its blocks. Whatever looks like one is asked: what it says is looked up.
    fn read_headers(&self, first: Pba, bytes: &[u8]) -> Content {
        let mut content = Content::default();
        let mut at = 0;
        while at * BLOCK < bytes.len() {
            let here = &bytes[at * BLOCK..];
            at += self.read_header(first.plus(at as u64), here, &mut content).max(1);
        }
        content
    }

    /// Reads a header, if there is one; how many blocks its record has.
    fn read_header(&self, pba: Pba, bytes: &[u8], content: &mut Content) -> usize {
        if !looks_like_header(bytes) {
            return 0;
        }
        let Some(header) = header_blocks(bytes).and_then(|blocks| bytes.get(..blocks * BLOCK)) else {
            return 0;
        };
        // A record says in its number in which opening it was written; pages, which have none, say it otherwise.
        let stated = header[SEQ_AT..].first_chunk().map_or(Seq::ZERO, |b| Seq(u64::from_le_bytes(*b)));
        let openings =
            if stated == Seq::ZERO { 1..=self.anchor.opening } else { stated.opening()..=stated.opening() };
        let record = openings.rev().find_map(|opening| {
            Record::parse(header, pba, &seal(&self.uuid, &self.anchor.salt, opening)).ok()
        });
        let Some(record) = record else { return 0 };
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
        record.len_blocks() as usize
    }
}
