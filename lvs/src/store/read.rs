//! Reads: look-ups, device reads of what lies together, checksums.
//!
//! Needs `unsafe` to hand the submitters' memory to the devices and to look at what they put there; it belongs to the
//! store from the submission of a read until its completion (see [`aio::IoChannel::submit`]).

use aio::{IoStatus, Opcode, SgEntry, sgmem};

use super::io::Stage;
use super::member::{self, Owner};
use super::{Inner, sg};
use crate::index::{DeltaHit, Lookup, PageAt, Tree, lookup_in};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, Place, Seq};

/// Blocks of one device read.
const MAX_READ_BLOCKS: u32 = 256;

impl Inner {
    /// Where a block of a line is, as of `view`. An error names the map page that has to be read first.
    #[inline]
    pub(super) fn locate(&self, line: LineId, block: BlockNo, view: Seq) -> Result<Place, PageAt> {
        let (mut line, mut view) = (line, view);
        loop {
            let Some(state) = self.lines.get(line) else { return Ok(Place::Hole) };
            match self.active.lookup(line, block, view) {
                Some(DeltaHit::Version(v)) => return Ok(v.place),
                None | Some(DeltaHit::Moved { .. }) => {}
            }
            if let Some(frozen) = &self.frozen
                && let Some(DeltaHit::Version(v)) = frozen.lookup(line, block, view)
            {
                return Ok(self.active.corrected(line, block, v).place);
            }
            let aside = self.aside.as_ref().filter(|_| state.damaged);
            if let Some(DeltaHit::Version(v)) = aside.and_then(|aside| aside.lookup(line, block, view)) {
                let v = self.frozen.as_ref().map_or(v, |f| f.corrected(line, block, v));
                return Ok(self.active.corrected(line, block, v).place);
            }
            if state.root.is_some() {
                let tree = Tree { line, root: state.root };
                match lookup_in(|page| self.cache.borrow_mut().get(&page.ptr), &tree, block, view) {
                    Lookup::Found(v) => {
                        let v = aside.map_or(v, |a| a.corrected(line, block, v));
                        let v = self.frozen.as_ref().map_or(v, |f| f.corrected(line, block, v));
                        return Ok(self.active.corrected(line, block, v).place);
                    }
                    Lookup::Absent => {}
                    Lookup::Missing(page) => return Err(page),
                }
            }
            match state.parent {
                Some((parent, epoch)) => (line, view) = (parent, epoch),
                None => return Ok(Place::Hole),
            }
        }
    }

    /// Looks up the blocks of a read and issues what it needs.
    pub(super) fn start_read(&mut self, io: u32) {
        let ctx = &self.ios[io];
        let (line, view, first, count) = (ctx.line, ctx.view, ctx.first, ctx.count);
        let mut places = core::mem::take(&mut self.ios[io].places);
        places.clear();
        let found = (0..u64::from(count)).try_for_each(|i| {
            places.push(self.locate(line, BlockNo(first.0 + i), view)?);
            Ok::<(), PageAt>(())
        });
        self.ios[io].places = places;
        match found {
            Ok(()) => self.issue_reads(io),
            Err(page) => self.starve(io, &page),
        }
    }

    /// Reads what lies together in one piece each, and zeroes holes.
    fn issue_reads(&mut self, io: u32) {
        // Held until all are issued, so that it cannot complete meanwhile.
        self.ios[io].outstanding = 1;
        let mut list = core::mem::take(&mut self.cut);
        let mut at = 0;
        while at < self.ios[io].count {
            let run = run_from(&self.ios[io].places, at, MAX_READ_BLOCKS);
            let bytes = |blocks: u32| u64::from(blocks) * u64::from(BLOCK_BYTES);
            list.clear();
            sg::cut(&self.ios[io].sg, bytes(at), bytes(run), &mut list);
            self.issue_read(io, at, run, &list);
            at += run;
        }
        self.cut = list;
        self.read_part_done(io);
    }

    /// Reads `run` blocks that lie together from place `at` on into `list`.
    pub(super) fn issue_read(&mut self, io: u32, at: u32, run: u32, list: &[SgEntry]) {
        match self.ios[io].places[at as usize] {
            // SAFETY: the memory of a read in flight, or an edge's buffer.
            Place::Hole => unsafe { sgmem::fill_zero(list) },
            Place::Data { pba, .. } if usize::from(pba.member()) < self.members.len() => {
                let index = self.ops.take();
                let op = &mut self.ops[index];
                op.sg.clear();
                op.sg.extend_from_slice(list);
                (op.member, op.opcode, op.fua, op.pba, op.blocks) =
                    (pba.member(), Opcode::Read, false, pba, run);
                op.owner = Owner::Read { io, place: at };
                self.ios[io].outstanding += 1;
                // SAFETY: memory of an I/O that completes only after this operation.
                unsafe { member::offer(&mut self.members, &self.ops, index) };
            }
            Place::Data { .. } => self.ios[io].fail(IoStatus::UNRECOVERED_READ),
        }
    }

    /// A device read ended: checks what came.
    pub(super) fn read_done(&mut self, index: u32, io: u32, place: u32, status: IoStatus) {
        if status != IoStatus::SUCCESS {
            self.ios[io].fail(status);
            self.read_errors += 1;
        } else {
            let mut places = self.ios[io].places[place as usize..].iter();
            let mut good = true;
            // SAFETY: the device has filled it, and it belongs to the store until the read completes.
            unsafe {
                sg::block_crcs(&self.ops[index].sg, |found| {
                    good &= matches!(places.next(), Some(Place::Data { crc, .. }) if *crc == found);
                });
            }
            if !good {
                self.ios[io].fail(IoStatus::UNRECOVERED_READ);
                self.checksum_errors += 1;
            }
        }
        self.read_part_done(io);
    }

    /// One part less is out.
    pub(super) fn read_part_done(&mut self, io: u32) {
        self.ios[io].outstanding -= 1;
        if self.ios[io].outstanding > 0 {
            return;
        }
        if self.ios[io].stage == Stage::Edges {
            self.edges_read(io);
        } else {
            self.finish(io);
        }
    }
}

/// How many places from `at` on lie together.
fn run_from(places: &[Place], at: u32, most: u32) -> u32 {
    let rest = &places[at as usize..];
    let together = rest.windows(2).take(most as usize - 1).take_while(|w| match (w[0], w[1]) {
        (Place::Hole, Place::Hole) => true,
        (Place::Data { pba: a, .. }, Place::Data { pba: b, .. }) => a.plus(1) == b,
        _ => false,
    });
    together.count() as u32 + 1
}
