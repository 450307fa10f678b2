//! Opening a pool that exists: newest anchor, tables, and the records after it (`FORMAT.md` section 7).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use aio::{BlockDevice, Core};
use nvme::digest::crc32c;

use super::aside::{ASIDE_RANGES, ASIDE_UPDATES};
use super::catalogue::Catalogue;
use super::create::{Parts, assemble, close_members, open_members};
use super::lines::{Line, Lines};
use super::member::Member;
use super::open_stores::Claim;
use super::seal::seal;
use super::space::{Segment, Space, State};
use super::superblock::{in_order, labels, newest_anchor};
use super::{CLEANER_UPDATES, DELTA_RANGES, DELTA_UPDATES, Store};
use crate::LvsError;
use crate::format::anchor::{Anchor, MemberState};
use crate::format::blob::BlobPtr;
use crate::format::catalog::Change;
use crate::format::label::Label;
use crate::format::record::{DataEntry, HeaderSeal, Kind, Record, header_blocks};
use crate::format::{self, FormatError, catalog};
use crate::index::{Delta, HoleRange};
use crate::info::ImportPool;
use crate::types::{BLOCK_BYTES, BlockNo, Pba, Place, Seq, Version};

const BLOCK: usize = BLOCK_BYTES as usize;

/// A record found in the tail: its header, and where its payload begins.
struct Found {
    header: Vec<u8>,
    pba: Pba,
    durable: Seq,
    /// The newest checkpoint when it was written.
    checkpoint: u64,
}

/// The records of the tail, by number.
type Tail = BTreeMap<Seq, Found>;

/// Collects the headers in `bytes`, which are the blocks from `from` on of a segment that ends before `end`. What the
/// anchor covers already is left out.
fn collect(bytes: &[u8], from: Pba, seal: &HeaderSeal, base: Seq, tail: &mut Tail) {
    for (i, block) in bytes.chunks_exact(BLOCK).enumerate() {
        if !seal.may_begin(block) {
            continue;
        }
        let Some(blocks) = header_blocks(block) else { continue };
        let Some(header) = bytes.get(i * BLOCK..(i + blocks) * BLOCK) else { continue };
        let pba = from.plus(i as u64);
        let Ok(record) = Record::parse(header, pba, seal) else { continue };
        let stamp = record.stamp();
        if record.kind() != Kind::Pages && stamp.seq > base {
            tail.insert(
                stamp.seq,
                Found { header: header.to_vec(), pba, durable: stamp.durable, checkpoint: stamp.checkpoint },
            );
        }
    }
}

/// The highest number that the tail, or the anchor, says is durable; an error when one up to there is missing.
fn durable_end(tail: &Tail, base: Seq) -> Result<Seq, Seq> {
    let durable = tail.values().map(|f| f.durable).max().unwrap_or(base).max(base);
    let mut expected = base.next();
    for &seq in tail.keys().take_while(|&&s| s <= durable) {
        if seq != expected {
            return Err(expected);
        }
        expected = seq.next();
    }
    if expected <= durable { Err(expected) } else { Ok(durable) }
}

/// Some of the log is on devices that are missing: leaves what comes before the first record that is not there, so that
/// volumes are as they were at one moment. Returns the last record that is left.
fn cut_at_first_gap(tail: &mut Tail, base: Seq) -> Seq {
    let mut last = base;
    for &seq in tail.keys() {
        if seq != last.next() {
            break;
        }
        last = seq;
    }
    tail.retain(|&seq, found| {
        // What they say of others that are cut off does not count.
        found.durable = found.durable.min(last);
        seq <= last
    });
    last
}

/// What it means that devices are missing; `kept`: the log may go on there after this record.
fn why_read_only(missing: &[usize], kept: Option<Seq>) -> String {
    let disks: Vec<String> = missing.iter().map(|index| format!("disk {index}")).collect();
    let what = format!("{} missing: what is there cannot be read", disks.join(", "));
    match kept {
        None => what,
        Some(seq) => {
            format!("{what}, and volumes are as of record {}, since the log may go on there", seq.0)
        }
    }
}

impl Store {
    /// Opens the pool that is on `devices`.
    pub(crate) async fn import(
        core: &Core,
        devices: Vec<Arc<dyn BlockDevice>>,
        spec: ImportPool,
    ) -> Result<Rc<Self>, LvsError> {
        let store = Self::find(core, devices, spec).await?;
        let opened = async {
            if store.inner().read_only.is_some() {
                let mut inner = store.inner();
                // H1: what was acknowledged may not be there.
                inner.anchor.incarnation = *uuid::Uuid::new_v4().as_bytes();
                inner.count_used();
                drop(inner);
                store.begin_to_poll();
                return Ok(());
            }
            store.begin_opening().await?;
            store.fit_delta().await
        };
        if let Err(error) = opened.await {
            store.rest().await;
            store.close().await;
            return Err(error);
        }
        store.open_for_use();
        Ok(store)
    }

    /// Finds the pool that is on `devices` and everything in it, without writing.
    pub(super) async fn find(
        core: &Core,
        devices: Vec<Arc<dyn BlockDevice>>,
        spec: ImportPool,
    ) -> Result<Rc<Self>, LvsError> {
        let mut members = open_members(spec.name.as_deref().unwrap_or_default(), devices).await?;
        let found = Self::recognise(&mut members, &spec).await;
        let (label, claim, anchor, members, missing) = match found {
            Ok(found) => found,
            Err(error) => {
                close_members(members).await;
                return Err(error);
            }
        };
        let store = Self::load(core, &label, members, anchor).await;
        if !missing.is_empty() && !spec.degraded {
            return Err(Self::missing(&label, &missing, store).await);
        }
        let store = store?;
        store.claim.set(Some(claim));
        let damaged = |what: String| LvsError::Damaged { pool: label.name.clone(), what };
        match store.replay(&damaged, &missing).await {
            Ok(()) => Ok(store),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    /// Which pool is on these devices, its newest checkpoint, its members in order, and which of them are missing. Takes
    /// the devices out of `members` when it succeeds.
    async fn recognise(
        members: &mut Vec<Member>,
        spec: &ImportPool,
    ) -> Result<(Label, Claim, Anchor, Vec<Member>, Vec<usize>), LvsError> {
        let label = labels(members, spec).await?;
        let Some(claim) = Claim::new(label.pool) else {
            return Err(LvsError::Exists { what: "pool", name: label.name.clone(), pool: label.name });
        };
        let anchor = newest_anchor(members, &label).await?;
        let (ordered, missing) = in_order(members, &anchor, &label).await?;
        Ok((label, claim, anchor, ordered, missing))
    }

    /// Says which disks are missing, and where they were when the tables of the pool can be read without them.
    async fn missing(label: &Label, missing: &[usize], store: Result<Rc<Self>, LvsError>) -> LvsError {
        let (mut names, mut members) = (Vec::new(), missing.len());
        if let Ok(store) = &store {
            let inner = store.inner();
            members = inner.members.iter().filter(|m| m.state != MemberState::Removed).count();
            for &index in missing {
                let uuid = inner.members[index].uuid;
                let last = inner.catalogue.disks.get(&index);
                let last = last.map_or(String::new(), |name| format!(", last seen as {name}"));
                names.push(format!("disk {index} (uuid {uuid}{last})"));
            }
        } else {
            names.extend(missing.iter().map(|index| format!("disk {index}")));
        }
        if let Ok(store) = store {
            store.close().await;
        }
        LvsError::DiskMissing { pool: label.name.clone(), members, missing: names.join(", ") }
    }

    /// What was found goes on as a delta of the usual size, so that the next tail is bounded as well; when it is more
    /// than that, it is merged before anything is added.
    pub(super) async fn fit_delta(self: &Rc<Self>) -> Result<(), LvsError> {
        let fits = {
            let (points, ranges) = self.inner().active.len();
            points + CLEANER_UPDATES <= DELTA_UPDATES && ranges <= DELTA_RANGES
        };
        if !fits {
            return self.checkpoint(false).await;
        }
        let mut inner = self.inner();
        let mut delta = Delta::with_capacity(DELTA_UPDATES, DELTA_RANGES);
        let mut dump = Vec::new();
        inner.active.dump(&mut dump);
        delta.restore(&dump).map_err(|e| inner.damaged(&e.to_string()))?;
        inner.active = delta;
        Ok(())
    }

    /// A store with what the anchor leads to, as of its checkpoint.
    async fn load(
        core: &Core,
        label: &Label,
        members: Vec<Member>,
        anchor: Anchor,
    ) -> Result<Rc<Self>, LvsError> {
        let damaged = |what: String| LvsError::Damaged { pool: label.name.clone(), what };
        let mut space = Space::new(anchor.segment_blocks);
        for m in &anchor.members {
            space.add_member(vec![Segment::FREE; m.segments as usize]);
        }
        let parts = Parts {
            name: label.name.clone(),
            uuid: label.pool,
            members,
            last: anchor.base,
            space,
            lines: Lines::default(),
            catalogue: Catalogue::default(),
            // The tail may hold what was being merged, and what came meanwhile; before it comes what was aside.
            delta: Delta::with_capacity(2 * DELTA_UPDATES + ASIDE_UPDATES, 2 * DELTA_RANGES + ASIDE_RANGES),
            anchor,
        };
        let store = assemble(core, parts)?;
        match store.load_tables(&damaged).await {
            Ok(()) => Ok(store),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    /// Reads the tables that the anchor leads to.
    async fn load_tables(self: &Rc<Self>, damaged: &impl Fn(String) -> LvsError) -> Result<(), LvsError> {
        let store = self;
        let anchor = store.inner().anchor.clone();
        let blob = |ptr: &BlobPtr| {
            let (store, ptr) = (store.clone(), ptr.clone());
            async move { if ptr.is_empty() { Ok(None) } else { store.read_blob(&ptr).await.map(Some) } }
        };
        let wrong = |e: FormatError| damaged(e.to_string());
        let lines = blob(&anchor.lines)
            .await?
            .map(|b| format::lines::Lines::decode(&b))
            .transpose()
            .map_err(wrong)?;
        let objects =
            blob(&anchor.catalogue).await?.map(|b| catalog::decode(&b)).transpose().map_err(wrong)?;
        let table = blob(&anchor.segments).await?;
        let dump = blob(&anchor.delta).await?;
        {
            let mut inner = store.inner();
            let inner = &mut *inner;
            let lines = lines.unwrap_or_default();
            inner.catalogue.next_line = lines.next_id;
            for line in lines.lines {
                inner.lines.put(Line::load(line));
            }
            let loaded = inner.catalogue.load(objects.unwrap_or_default(), &mut inner.lines);
            loaded.map_err(|c| damaged(c.0.to_owned()))?;
            if let Some(table) = table {
                inner.space.restore(&table).map_err(wrong)?;
            }
            // The table was written before its own blob was: these segments may be free in it, and they are not until
            // the next anchor is durable.
            for blob in [&anchor.catalogue, &anchor.lines, &anchor.segments, &anchor.delta] {
                for piece in blob.extents.iter().chain(&blob.copy) {
                    if let Some(id) = inner.space.segment_of(piece.pba) {
                        inner.space.hold(id, Seq::ZERO);
                    }
                }
            }
            if let Some(dump) = dump {
                inner.active.restore(&dump).map_err(|e| damaged(e.to_string()))?;
            }
            for (index, member) in anchor.members.iter().enumerate() {
                if member.state == MemberState::Evacuating {
                    inner.space.leave(index as u8);
                }
            }
        }
        Ok(())
    }

    /// Finds the records after the anchor and applies them. With devices `missing` the store can only be read.
    async fn replay(
        self: &Rc<Self>,
        damaged: &impl Fn(String) -> LvsError,
        missing: &[usize],
    ) -> Result<(), LvsError> {
        let (anchor, uuid, segment_blocks) = {
            let inner = self.inner();
            (inner.anchor.clone(), inner.uuid, inner.space.segment_blocks())
        };
        let seal = seal(&uuid, &anchor.salt, anchor.opening);
        let mut tail = Tail::new();
        let streams = anchor.open.iter().map(|s| (s.segment, s.next_block));
        for (segment, offset) in streams.chain(anchor.next.iter().map(|&s| (s, 0))) {
            if missing.contains(&usize::from(segment.member())) {
                continue;
            }
            let first = self.inner().space.first_block(segment);
            self.collect_segment(first, offset, segment_blocks, &seal, anchor.base, &mut tail).await?;
        }
        // H10: no silent step back. Records say after which checkpoint they were written.
        let last = tail.values().map(|f| f.checkpoint).max();
        self.inner().anchor_followed = anchor.clean || last == Some(anchor.checkpoint);
        if let Some(newer) = last.filter(|&c| c > anchor.checkpoint) {
            let found = anchor.checkpoint;
            return Err(damaged(format!(
                "its newest checkpoint was {newer} at least, and {found} is the newest whole one"
            )));
        }
        let lost = missing.iter().any(|&m| anchor.names_segments_of(m as u8));
        if !missing.is_empty() {
            let kept = if lost { Some(cut_at_first_gap(&mut tail, anchor.base)) } else { None };
            let mut inner = self.inner();
            inner.read_only = Some(why_read_only(missing, kept.filter(|_| !anchor.clean)));
        }
        let durable = durable_end(&tail, anchor.base).map_err(|missing| {
            damaged(format!("record {} of the log, which was durable, is missing or unreadable", missing.0))
        })?;
        for (&seq, found) in &tail {
            self.replay_record(seq, found, &seal, seq > durable, damaged).await?;
        }
        let mut inner = self.inner();
        let segments: Vec<_> =
            tail.iter().map(|(&seq, found)| (seq, inner.space.segment_of(found.pba))).collect();
        for (seq, segment) in segments {
            if let Some(id) = segment {
                inner.space.wrote(id, seq);
                inner.space.close(id, State::Log);
            }
        }
        Ok(())
    }

    /// Collects the headers of a segment from block `offset` on.
    async fn collect_segment(
        &self,
        first: Pba,
        offset: u32,
        segment_blocks: u32,
        seal: &HeaderSeal,
        base: Seq,
        tail: &mut Tail,
    ) -> Result<(), LvsError> {
        let blocks = segment_blocks.saturating_sub(offset);
        let mut bytes = Vec::with_capacity(blocks as usize * BLOCK);
        // A block that cannot be read holds no record; one that is missed is noticed.
        self.read_what_can_be(first.plus(u64::from(offset)), blocks, &mut bytes).await?;
        collect(&bytes, first.plus(u64::from(offset)), seal, base, tail);
        Ok(())
    }

    /// Applies a record. `verify`: it may be torn, so each block has to prove itself.
    async fn replay_record(
        self: &Rc<Self>,
        seq: Seq,
        found: &Found,
        seal: &HeaderSeal,
        verify: bool,
        damaged: &impl Fn(String) -> LvsError,
    ) -> Result<(), LvsError> {
        let Ok(record) = Record::parse(&found.header, found.pba, seal) else { return Ok(()) };
        let payload = found.pba.plus(record.header_blocks() as u64);
        let good = if verify { self.good_blocks(&record, payload).await? } else { Vec::new() };
        let is_good = |i: u32| !verify || good.get(i as usize) == Some(&true);
        let mut inner = self.inner();
        let inner = &mut *inner;
        let full = || damaged("the log holds more than one checkpoint's worth of updates".to_owned());
        match record.kind() {
            Kind::Data => {
                for entry in record.data() {
                    match entry {
                        DataEntry::Extent { line, block, payload_block, crcs } => {
                            let Some(line) = inner.lines.get(line) else { continue };
                            for (i, crc) in crcs.enumerate() {
                                let at = payload_block + i as u32;
                                if !is_good(at) {
                                    continue;
                                }
                                let place = Place::Data { pba: payload.plus(u64::from(at)), crc };
                                let version = Version { birth: seq, place };
                                let block = BlockNo(block.0 + i as u64);
                                if !inner.active.put(line.id, block, version, &line.snapshots, |_| {}) {
                                    return Err(full());
                                }
                            }
                        }
                        DataEntry::Hole { line, block, count } => {
                            let Some(line) = inner.lines.get(line) else { continue };
                            let range = HoleRange { line: line.id, first: block, count, birth: seq };
                            if !inner.active.put_hole_range(range, &line.snapshots, |_| {}) {
                                return Err(full());
                            }
                        }
                    }
                }
            }
            Kind::Relocate => {
                for (i, moved) in record.relocations().enumerate() {
                    if is_good(i as u32) {
                        let to = payload.plus(i as u64);
                        let _ = inner.active.relocate(moved.line, moved.block, moved.birth, moved.from, to);
                    }
                }
            }
            Kind::Catalogue => {
                let changes = Change::decode_all(record.catalogue(), record.entries());
                let changes = changes.map_err(|e| damaged(e.to_string()))?;
                let applied = inner.catalogue.apply(seq, changes, &mut inner.lines);
                applied.map_err(|c| damaged(c.0.to_owned()))?;
            }
            Kind::Note | Kind::Pages => {}
        }
        Ok(())
    }

    /// Which payload blocks have the checksum that the header says.
    async fn good_blocks(&self, record: &Record<'_>, payload: Pba) -> Result<Vec<bool>, LvsError> {
        let mut crcs: Vec<u32> = Vec::new();
        for entry in record.data() {
            if let DataEntry::Extent { crcs: of, .. } = entry {
                crcs.extend(of);
            }
        }
        crcs.extend(record.relocations().map(|r| r.crc));
        let mut good = Vec::with_capacity(crcs.len());
        for (i, piece) in crcs.chunks((super::pages::SLOW_BUFFER_BYTES / BLOCK_BYTES) as usize).enumerate() {
            let at = payload.plus(i as u64 * u64::from(super::pages::SLOW_BUFFER_BYTES / BLOCK_BYTES));
            match self.read_blocks(at, piece.len() as u32).await {
                Ok(buf) => {
                    good.extend(
                        piece.iter().zip(buf.chunks_exact(BLOCK)).map(|(crc, bytes)| crc32c(bytes) == *crc),
                    );
                }
                // A torn write may leave blocks that cannot be read.
                Err(LvsError::Io { .. }) => good.extend(piece.iter().map(|_| false)),
                Err(other) => return Err(other),
            }
        }
        Ok(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(of: &[(u64, u64)]) -> Tail {
        let found =
            |durable| Found { header: Vec::new(), pba: Pba::NONE, durable: Seq(durable), checkpoint: 0 };
        of.iter().map(|&(seq, durable)| (Seq(seq), found(durable))).collect()
    }

    /// H5: recovery past holes. What was durable has to be there; what was not may be missing in any combination.
    #[test]
    fn h5_holes_are_corruption_below_the_durable_end_and_normal_above() {
        assert_eq!(durable_end(&tail(&[]), Seq(9)), Ok(Seq(9)));
        assert_eq!(durable_end(&tail(&[(10, 9), (12, 9), (15, 10)]), Seq(9)), Ok(Seq(10)));
        assert_eq!(durable_end(&tail(&[(10, 9), (12, 11)]), Seq(9)), Err(Seq(11)));
        assert_eq!(durable_end(&tail(&[(11, 10)]), Seq(9)), Err(Seq(10)));
        assert_eq!(durable_end(&tail(&[(12, 11)]), Seq(9)), Err(Seq(10)));
    }
}
