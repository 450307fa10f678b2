//! I/Os that cover a block in part: volumes with 512-byte blocks.
//!
//! Such a block has a buffer of its own in place of the submitter's memory. A read fills the buffer and copies the part
//! out; a write reads the block, puts its part in and writes all of it. Between these two steps no other write may
//! touch the block: a write that overlaps one at work waits, in either direction.
//!
//! Needs `unsafe` to copy between the buffers and the submitters' memory, which belongs to the store from the submission
//! of an I/O until its completion (see [`aio::IoChannel::submit`]).

use aio::{IoStatus, SgEntry, sgmem};

use super::io::{Edge, Stage};
use super::{Inner, sg};
use crate::index::PageAt;
use crate::types::{BLOCK_BYTES, BlockNo, Seq};

impl Inner {
    /// Fills `first`, `count`, `sg` and `edges` for the bytes `[offset, offset + len)` of a volume, whose memory is `list`.
    /// False when there is no buffer: try again later.
    pub(super) fn shape(&mut self, io: u32, offset_bytes: u64, len_bytes: u64, list: &[SgEntry]) -> bool {
        let block = u64::from(BLOCK_BYTES);
        let first = offset_bytes / block;
        let end = offset_bytes + len_bytes;
        let head = offset_bytes % block;
        let tail = end % block;
        let one = first == (end - 1) / block;
        let needed =
            if one { usize::from(head + tail > 0) } else { usize::from(head > 0) + usize::from(tail > 0) };
        if (self.edges.available() as usize) < needed {
            return false;
        }
        let take = |from: u64, part: u64, at: u64| {
            let buf = self.edges.alloc().expect("invariant: there are enough");
            let mut sg = Vec::new();
            if !list.is_empty() {
                sg::cut(list, at, part, &mut sg);
            }
            Edge { buf, from_bytes: from as u32, len_bytes: part as u32, sg }
        };
        let (mut from, mut until) = (0, len_bytes);
        let mut head_edge = None;
        let mut tail_edge = None;
        if one && needed > 0 {
            head_edge = Some(take(head, len_bytes, 0));
            from = len_bytes;
        } else {
            if head > 0 {
                head_edge = Some(take(head, block - head, 0));
                from = block - head;
            }
            if tail > 0 {
                tail_edge = Some(take(0, tail, len_bytes - tail));
                until = len_bytes - tail;
            }
        }
        let ctx = &mut self.ios[io];
        ctx.first = BlockNo(first);
        ctx.count = (end.div_ceil(block) - first) as u32;
        ctx.sg.clear();
        ctx.sg.extend(head_edge.as_ref().map(|e| e.buf.sg(0, BLOCK_BYTES)));
        if from < until {
            sg::cut(list, from, until - from, &mut ctx.sg);
        }
        ctx.sg.extend(tail_edge.as_ref().map(|e| e.buf.sg(0, BLOCK_BYTES)));
        ctx.edges.head = head_edge;
        ctx.edges.tail = tail_edge;
        true
    }

    /// Begins a write whose context is filled: at once, or after the writes that it has to wait for.
    pub(super) fn start_write(&mut self, io: u32) {
        let partial = self.ios[io].edges.is_some();
        if (partial || self.partial_writes > 0) && self.must_wait(io, partial) {
            self.ios[io].stage = Stage::Blocked;
            self.blocked.push(io);
            return;
        }
        if !partial {
            self.enqueue_write(io);
            return;
        }
        self.partial_writes += 1;
        self.ios[io].stage = Stage::Edges;
        self.hold_segments(io);
        self.start_read_edges(io);
    }

    /// Looks up the blocks at the edges and reads them into their buffers.
    pub(super) fn start_read_edges(&mut self, io: u32) {
        let ctx = &self.ios[io];
        let (line, first, last) = (ctx.line, ctx.first, BlockNo(ctx.first.0 + u64::from(ctx.count) - 1));
        let head = ctx.edges.head.as_ref().map(|e| (first, e.buf.sg(0, BLOCK_BYTES)));
        let tail = ctx.edges.tail.as_ref().map(|e| (last, e.buf.sg(0, BLOCK_BYTES)));
        let mut places = core::mem::take(&mut self.ios[io].places);
        places.clear();
        let found = head.iter().chain(&tail).try_for_each(|&(block, _)| {
            places.push(self.locate(line, block, Seq::MAX)?);
            Ok::<(), PageAt>(())
        });
        self.ios[io].places = places;
        if let Err(page) = found {
            self.starve(io, &page);
            return;
        }
        self.ios[io].outstanding = 1;
        for (at, (_, entry)) in head.into_iter().chain(tail).enumerate() {
            self.issue_read(io, at as u32, 1, &[entry]);
        }
        self.read_part_done(io);
    }

    /// Does a write at work, or one that waits before it, touch a block of this one, while one of both is partial?
    fn must_wait(&self, io: u32, partial: bool) -> bool {
        let ctx = &self.ios[io];
        let at_work = self.ios.iter().any(|(other, o)| {
            other != io
                && matches!(o.stage, Stage::Write | Stage::Edges)
                && (partial || o.edges.is_some())
                && o.overlaps(ctx)
        });
        at_work || self.blocked.iter().any(|&b| b != io && self.ios[b].overlaps(ctx))
    }

    /// The whole blocks at the edges are in their buffers: completes a read's or goes on with a write.
    pub(super) fn edges_read(&mut self, io: u32) {
        // What it reads it has; it must not keep a checkpoint waiting that it may have to wait for.
        self.release_segments(io);
        let ctx = &mut self.ios[io];
        if ctx.status != IoStatus::SUCCESS {
            // H12: a part written into a bad block would give its garbage a valid checksum.
            self.finish(io);
            return;
        }
        for edge in [&mut ctx.edges.head, &mut ctx.edges.tail].into_iter().flatten() {
            // SAFETY: the part lies within the buffer; the list is the memory of an I/O in flight, or empty for zeroes.
            unsafe {
                let part = edge.buf.ptr().as_ptr().add(edge.from_bytes as usize);
                if edge.sg.is_empty() {
                    part.write_bytes(0, edge.len_bytes as usize);
                } else {
                    sgmem::gather(&edge.sg, part);
                }
            }
        }
        self.enqueue_write(io);
    }

    /// A read is complete: its parts go to the submitter.
    pub(super) fn scatter_edges(&mut self, io: u32) {
        let ctx = &mut self.ios[io];
        for edge in [&ctx.edges.head, &ctx.edges.tail].into_iter().flatten() {
            // SAFETY: the part lies within the buffer; the list is the memory of an I/O in flight.
            unsafe { sgmem::scatter(edge.buf.ptr().as_ptr().add(edge.from_bytes as usize), &edge.sg) };
        }
    }

    /// A write ended: those that waited for it may begin.
    pub(super) fn unblock(&mut self, was_partial: bool) {
        self.partial_writes -= u32::from(was_partial);
        if self.blocked.is_empty() {
            return;
        }
        let mut blocked = core::mem::take(&mut self.blocked);
        for io in blocked.drain(..) {
            self.start_write(io);
        }
    }
}
