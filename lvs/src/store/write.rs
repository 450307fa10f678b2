//! From writes to records, and from completed records to the delta.
//!
//! Writes that came in one turn share a record. Needs `unsafe` to look at payload for its checksums, and to hand it to the
//! devices: it belongs to the store from the submission of an I/O until its completion (see
//! [`aio::IoChannel::submit`]), and stable payload is not changed meanwhile; other payload is copied first.

use std::rc::Rc;

use aio::{DmaBuf, IoStatus, Opcode, sgmem};

use super::io::{IoCtx, Stage};
use super::log::Flow;
use super::member::{self, Owner};
use super::{CLEANER_UPDATES, Inner, sg};
use crate::format::record::{DataHeader, Stamp};
use crate::index::{Delta, HoleRange, PageAt};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, Pba, Place, Seq, Version};

/// Records of volumes in flight. Few, so that what arrives meanwhile shares the next one.
pub(super) const MAX_RECORDS: usize = 8;
/// Payload blocks of a record: with its header it is the 1 MiB that every device takes at once.
pub(super) const MAX_PAYLOAD_BLOCKS: u32 = 255;
/// Records that what is in line is spread over, so that the device has the next one while this core works on what came back.
const SPREAD: usize = 2;
/// Writes below which a record is not worth its header: while less than five eighths of the pool are live, and above that,
/// where headers are garbage that makes the cleaner move more.
const LEAST_SHARE: (usize, usize) = (16, 32);

/// A record in flight.
pub(super) struct RecordCtx {
    seq: Seq,
    /// When it was submitted.
    turn: u64,
    header: Option<DmaBuf>,
    /// Copies of payload that was not stable or did not suit the device.
    copy: Option<DmaBuf>,
    blocks: Vec<(LineId, BlockNo, u32)>,
    holes: Vec<HoleRange>,
    ios: Vec<u32>,
    payload: Pba,
    /// Updates and ranges of the delta that it will take.
    room: (usize, usize),
}

impl RecordCtx {
    fn clear(&mut self) {
        self.blocks.clear();
        self.holes.clear();
        self.ios.clear();
        self.room = (0, 0);
    }

    /// Does it hold data where `ctx` makes a hole, or a hole where `ctx` has data? Versions of one record are of one age:
    /// which of the two is there would depend on who asks (H9).
    fn meets(&self, ctx: &IoCtx) -> bool {
        match ctx.hole {
            Some(range) => {
                let inside = |block: &BlockNo| *block >= range.first && block.0 - range.first.0 < range.count;
                self.blocks.iter().any(|(line, block, _)| *line == range.line && inside(block))
            }
            None => self.holes.iter().any(|hole| {
                let end = ctx.first.0 + u64::from(ctx.count);
                hole.line == ctx.line && hole.first.0 < end && ctx.first.0 < hole.first.0 + hole.count
            }),
        }
    }

    pub(super) fn empty() -> Self {
        Self {
            seq: Seq::ZERO,
            turn: 0,
            header: None,
            copy: None,
            blocks: Vec::with_capacity(MAX_PAYLOAD_BLOCKS as usize),
            holes: Vec::new(),
            ios: Vec::with_capacity(64),
            payload: Pba::NONE,
            room: (0, 0),
        }
    }
}

/// Why a write is not in the record that is being built.
enum Fit {
    Yes,
    /// A checkpoint has to make room in the delta first.
    Wait,
    /// A merge may find space for it: others go first.
    Park,
    /// This map page has to be read, to see whether it needs space.
    Look(PageAt),
    /// Never.
    Refuse(IoStatus),
}

impl Inner {
    /// Puts a write in line. Its context is filled.
    pub(super) fn enqueue_write(&mut self, io: u32) {
        self.ios[io].stage = Stage::Write;
        self.pending.push_back(io);
    }

    /// Makes records of what is in line, as far as there is room.
    pub(super) fn assemble(&mut self) {
        if self.fault.is_some() || self.read_only.is_some() {
            self.unpark();
            while let Some(io) = self.pending.pop_front() {
                self.ios[io].fail(IoStatus::NAMESPACE_WRITE_PROTECTED);
                self.finish(io);
            }
        }
        while !self.pending.is_empty() && self.records.used() < MAX_RECORDS {
            let share = self.share_of_record();
            if !self.build_record(share) {
                break;
            }
        }
        while let Some((io, page)) = self.fetches.looking.pop() {
            self.hold_segments(io);
            self.starve(io, &page);
        }
    }

    /// How many of the writes in line the next record takes. All of them when the device answers at once: then nothing is
    /// gained by another record, whose header costs as much as a block.
    fn share_of_record(&self) -> usize {
        if !self.log_lags || self.pending.len() <= LEAST_SHARE.0 {
            return self.pending.len();
        }
        let blocks = u64::from(self.space.staying(None)) * u64::from(self.space.segment_blocks());
        let least = if 8 * self.space.live() < 5 * blocks { LEAST_SHARE.0 } else { LEAST_SHARE.1 };
        let parts = SPREAD.saturating_sub(self.records.used()).max(1);
        self.pending.len().div_ceil(parts).max(least)
    }

    /// One record of the first `share` writes in line, or fewer. False when none could be made.
    fn build_record(&mut self, share: usize) -> bool {
        let Some(only_holes) = self.next_room() else { return false };
        let Some(mut buf) = self.headers.alloc() else { return false };
        let limit = MAX_PAYLOAD_BLOCKS.min(self.log.left(Flow::Hot, &self.space) - 1);
        let stream = self.log.stream(Flow::Hot).expect("invariant: there is room in it");
        let member = stream.segment.member();
        let index = self.records.take();
        let op_index = self.ops.take();
        let mut header = DataHeader::begin();
        let mut fua = false;
        let mut payload = 0;

        self.records[index].clear();
        self.ops[op_index].sg.clear();
        let device = &self.members[usize::from(member)];
        let max_sg = usize::from(device.geometry.max_sg);
        let mut entries = 1;

        let (mut at, before) = (0, self.pending.len());
        while let Some(&io) = self.pending.get(at).filter(|_| self.records[index].ios.len() < share) {
            let ctx = &self.ios[io];
            let transfer = ctx.hole.is_none();
            if only_holes && transfer {
                at += 1;
                continue;
            }
            let blocks = if transfer { ctx.count } else { 0 };
            if payload + blocks > limit || self.records[index].meets(ctx) {
                break;
            }
            let direct = transfer && ctx.stable && entries + ctx.sg.len() < max_sg && device.takes(&ctx.sg);
            if transfer && !direct && entries >= max_sg {
                // A copy is one entry, and that would be one more than the device takes.
                break;
            }
            let fit = match room_for(ctx, &self.active, self.records[index].room, self.reserved) {
                Fit::Yes if self.lines.get(ctx.line).is_none() => Fit::Refuse(aio::check::REMOVED),
                Fit::Yes if self.is_write_protected(ctx.line) => {
                    Fit::Refuse(IoStatus::NAMESPACE_WRITE_PROTECTED)
                }
                Fit::Yes if ctx.hole.is_some_and(|hole| !self.affords(&hole)) => Fit::Wait,
                Fit::Yes => self.space_for(ctx, blocks),
                other => other,
            };
            match fit {
                Fit::Yes => {}
                Fit::Wait => {
                    self.want_checkpoint = true;
                    break;
                }
                Fit::Park => {
                    self.pending.remove(at);
                    self.ios[io].full_since.get_or_insert(self.log.last());
                    self.budget.parked.push(io);
                    self.want_checkpoint = true;
                    continue;
                }
                Fit::Look(page) => {
                    self.pending.remove(at);
                    self.fetches.looking.push((io, page));
                    continue;
                }
                Fit::Refuse(status) => {
                    self.pending.remove(at);
                    self.refused.push((io, status));
                    continue;
                }
            }
            if !push(&mut header, &mut buf, ctx) {
                break;
            }
            self.pending.remove(at);
            fua |= ctx.fua;
            let hole = ctx.hole;
            if let Some(range) = hole {
                self.budget.unmapped.0 += range.count;
                self.budget.pierced.0 += self.pierces(&range);
            }
            let ctx = &self.ios[io];
            let record = &mut self.records[index];
            record.ios.push(io);
            if let Some(range) = hole {
                let (u, r) = Delta::cost_of_hole(range.count);
                record.room = (record.room.0 + u, record.room.1 + r);
                record.holes.push(range);
                continue;
            }
            record.room.0 += blocks as usize;
            let from = self.ops[op_index].sg.len();
            if direct {
                self.ops[op_index].sg.extend_from_slice(&ctx.sg);
                entries += ctx.sg.len();
            } else {
                let copies = &self.copies;
                let copy = record
                    .copy
                    .get_or_insert_with(|| copies.alloc().expect("invariant: one for each record"));
                let offset = payload * BLOCK_BYTES;
                // SAFETY: the copy has room for `limit` blocks; the I/O's memory is valid until its completion.
                unsafe { sgmem::gather(&ctx.sg, copy.ptr().as_ptr().add(offset as usize)) };
                self.ops[op_index].sg.push(copy.sg(offset, blocks * BLOCK_BYTES));
                entries += 1;
            }
            let mut block = ctx.first;
            // SAFETY: stable memory of an I/O in flight, or our copy of it.
            unsafe {
                sg::block_crcs(&self.ops[op_index].sg[from..], |crc| {
                    header.push_crc(&mut buf, crc);
                    record.blocks.push((ctx.line, block, crc));
                    block.0 += 1;
                });
            }
            payload += blocks;
        }

        if self.records[index].ios.is_empty() {
            self.ops.give(op_index);
            self.records.give(index);
            let progress = self.pending.len() < before;
            self.answer_refused();
            return progress;
        }
        let seq = self.log.number();
        let placed = self.log.place(Flow::Hot, seq, 1 + payload, &mut self.space);
        let pba = placed.expect("invariant: room was made");
        let stamp = Stamp { seq, durable: self.log.durable(), checkpoint: self.checkpoint };
        header.finish(&mut buf, &stamp, &self.seal, pba);
        self.stated(seq);
        self.budget.host_at = self.now;
        self.spend(1 + payload);
        self.budget.written.headers += 1;
        self.budget.written.data += u64::from(payload);
        let record = &mut self.records[index];
        record.seq = seq;
        record.turn = self.turn;
        record.payload = pba.plus(1);
        self.reserved = (self.reserved.0 + record.room.0, self.reserved.1 + record.room.1);

        let device = &self.members[usize::from(member)];
        let op = &mut self.ops[op_index];
        op.sg.insert(0, buf.sg(0, BLOCK_BYTES));
        (op.member, op.opcode, op.pba, op.blocks) = (member, Opcode::Write, pba, 1 + payload);
        op.fua = fua && device.volatile && device.fua;
        op.owner = Owner::Record(index);
        record.header = Some(buf);
        // SAFETY: header and copies belong to the record, payload to I/Os that complete with it.
        unsafe { member::offer(&mut self.members, &self.ops, op_index) };
        self.answer_refused();
        true
    }

    /// What the next record may hold: only unmapped ranges, when there is no room for more; `None` when there is none at all.
    fn next_room(&mut self) -> Option<bool> {
        let &first = self.pending.front()?;
        let blocks = if self.ios[first].hole.is_some() { 0 } else { self.ios[first].count };
        if self.room_for_data(blocks) {
            return Some(false);
        }
        self.ask_for_room();
        // What gives space back does not wait behind what wants some.
        let unmaps = self.pending.iter().any(|&io| self.ios[io].hole.is_some());
        (unmaps && self.room_for_holes()).then_some(true)
    }

    /// Is there space in the pool for what the write may add?
    fn space_for(&self, ctx: &IoCtx, blocks: u32) -> Fit {
        let Some(line) = self.lines.get(ctx.line) else { return Fit::Yes };
        if blocks == 0 || line.reserved_blocks > 0 {
            return Fit::Yes;
        }
        let (taken, capacity) = (self.taken_blocks(), self.space.capacity_blocks());
        let mut new = u64::from(blocks);
        if taken + new > capacity {
            // Now it matters which blocks it only overwrites.
            match self.new_blocks(line, ctx.first, ctx.count) {
                Ok(counted) => new = counted,
                Err(page) => return Fit::Look(page),
            }
        }
        if new == 0 || taken + new <= capacity {
            self.thin_pending.set(self.thin_pending.get() + new);
            return Fit::Yes;
        }
        let counted = ctx.full_since.is_some_and(|since| since <= self.budget.merged);
        if (self.may_find_space() && !counted) || self.is_purging() {
            Fit::Park
        } else {
            Fit::Refuse(IoStatus::CAPACITY_EXCEEDED)
        }
    }

    /// Cleaning gains nothing any more, and still no record can be placed: writes that wait get an answer. What unmaps
    /// waits on.
    pub(super) fn give_up_on_space(&mut self) {
        self.unpark();
        for _ in 0..self.pending.len() {
            match self.pending.pop_front() {
                Some(io) if self.ios[io].hole.is_some() => self.pending.push_back(io),
                Some(io) => self.refused.push((io, IoStatus::CAPACITY_EXCEEDED)),
                None => break,
            }
        }
        self.answer_refused();
    }

    fn answer_refused(&mut self) {
        while let Some((io, status)) = self.refused.pop() {
            self.ios[io].fail(status);
            self.finish(io);
        }
    }

    /// A record's device write ended.
    pub(super) fn record_done(&mut self, index: u32, mut status: IoStatus) {
        self.log_lags = self.turn > self.records[index].turn + 1;
        let (u, r) = self.records[index].room;
        self.reserved = (self.reserved.0 - u, self.reserved.1 - r);
        if status != IoStatus::SUCCESS {
            self.fail_pool("a write to a disk failed");
        } else if !self.apply(index) {
            // A bug of ours. The log has it: an import finds it, and no checkpoint leaves it out before that.
            debug_assert!(false, "room was reserved");
            self.fail_pool("what was written does not fit into memory; export and import the pool");
            status = IoStatus::INTERNAL_ERROR;
        }
        let record = &mut self.records[index];
        record.header = None;
        record.copy = None;
        let ios = core::mem::take(&mut record.ios);
        self.records.give(index);
        for &io in &ios {
            if status != IoStatus::SUCCESS {
                self.ios[io].fail(IoStatus::WRITE_FAULT);
            }
            if self.ios[io].fua && self.needs_flush_for_fua() {
                self.wait_for_flush(io);
            } else {
                self.finish(io);
            }
        }
        self.records[index].ios = ios;
    }

    /// Where a record that is not complete yet leaves what it did.
    pub(super) fn layer_of(&mut self, seq: Seq) -> &mut Delta {
        layer_of(&mut self.active, &mut self.frozen, self.frozen_base, seq)
    }

    /// The versions of a completed record become visible. False, and the record is not complete, when there is no room for all
    /// of them.
    fn apply(&mut self, index: u32) -> bool {
        let record = &self.records[index];
        let birth = record.seq;
        let delta = layer_of(&mut self.active, &mut self.frozen, self.frozen_base, birth);
        let mut room = true;
        for (i, &(line, block, crc)) in record.blocks.iter().enumerate() {
            let Some(line) = self.lines.get(line) else { continue };
            let place = Place::Data { pba: record.payload.plus(i as u64), crc };
            room &= delta.put(line.id, block, Version { birth, place }, &line.snapshots, |_| {});
        }
        for range in &record.holes {
            let Some(line) = self.lines.get(range.line) else { continue };
            room &= delta.put_hole_range(HoleRange { birth, ..*range }, &line.snapshots, |_| {});
        }
        if !room {
            return false;
        }
        self.log.complete(birth);
        if !self.any_volatile() {
            self.log.durable_to(self.log.completed());
        }
        true
    }
}

/// The delta that takes what record `seq`, which is not complete yet, did: the checkpoint that is being made covers
/// all up to its base.
fn layer_of<'a>(
    active: &'a mut Delta,
    frozen: &'a mut Option<Rc<Delta>>,
    base: Seq,
    seq: Seq,
) -> &'a mut Delta {
    match frozen {
        Some(frozen) if seq <= base => {
            Rc::get_mut(frozen).expect("invariant: the merge begins when these records are complete")
        }
        _ => active,
    }
}

/// Has the delta room for it, beside what is reserved?
fn room_for(ctx: &IoCtx, active: &Delta, record: (usize, usize), reserved: (usize, usize)) -> Fit {
    let (u, r) = ctx.hole.map_or((ctx.count as usize, 0), |range| Delta::cost_of_hole(range.count));
    let (updates, ranges) = (u + record.0 + reserved.0 + CLEANER_UPDATES, r + record.1 + reserved.1);
    let room = active.room();
    if updates <= room.0 && ranges <= room.1 { Fit::Yes } else { Fit::Wait }
}

/// Writes what `ctx` is about into the header; false, and nothing done, when it does not fit.
fn push(header: &mut DataHeader, buf: &mut DmaBuf, ctx: &IoCtx) -> bool {
    match ctx.hole {
        None => header.push_extent(buf, ctx.line, ctx.first, ctx.count).is_ok(),
        Some(range) => header.push_hole(buf, ctx.line, range.first, range.count).is_ok(),
    }
}
