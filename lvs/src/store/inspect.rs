//! The offline checker: opens a pool as an import would, without writing a byte, and compares everything with
//! everything.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use aio::{BlockDevice, Core};
use nvme::digest::crc32c;

use super::Store;
use super::lines::Line;
use super::pages::PageReader;
use super::space::State;
use crate::LvsError;
use crate::format::page::Leaf;
use crate::index::{Change, PageAt, Seen, Tree, check};
use crate::info::{CheckReport, ImportPool};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, Pba, Place, SegmentId, Seq};

/// Findings after which no more are kept.
const MOST_FINDINGS: usize = 1000;

/// What was found so far.
struct Inspection {
    report: CheckReport,
    /// Blocks of each segment that something refers to: a bit each.
    seen: BTreeMap<SegmentId, Vec<u64>>,
    /// Blocks and pages of each segment that the trees refer to.
    counted: BTreeMap<SegmentId, u32>,
}

/// A block of data that something refers to.
#[derive(Clone, Copy)]
struct Found {
    line: LineId,
    block: BlockNo,
    birth: Seq,
    pba: Pba,
    crc: Option<u32>,
}

impl Store {
    /// Looks at a pool that is not open. `data`: reads every block and compares its checksum.
    pub(crate) async fn inspect(
        core: &Core,
        devices: Vec<Arc<dyn BlockDevice>>,
        data: bool,
    ) -> Result<CheckReport, LvsError> {
        let store = Self::find(core, devices, ImportPool::default()).await?;
        let (report, lines) = {
            let inner = store.inner();
            let report = CheckReport { pool: inner.name.clone(), uuid: inner.uuid, ..CheckReport::default() };
            (report, inner.lines.iter().cloned().collect::<Vec<Line>>())
        };
        let mut inspection = Inspection { report, seen: BTreeMap::new(), counted: BTreeMap::new() };
        store.inspect_tables(&mut inspection).await;
        for line in &lines {
            let blocks = store.inspect_line(line, &mut inspection).await;
            if data {
                store.verify(&blocks, &mut inspection).await?;
            }
        }
        let tail = store.inspect_delta(&mut inspection);
        if data {
            store.verify(&tail, &mut inspection).await?;
        }
        store.compare_counts(&mut inspection);
        store.close().await;
        Ok(inspection.report)
    }

    /// Walks a line's tree. Returns its blocks of data.
    async fn inspect_line(self: &Rc<Self>, line: &Line, inspection: &mut Inspection) -> Vec<Found> {
        let tree = Tree { line: line.id, root: line.root };
        let (mut pages, mut leaves) = (Vec::new(), Vec::new());
        let reader = PageReader(self.clone());
        let findings = check(&reader, &tree, |seen| match seen {
            Seen::Page(page) => pages.push(page),
            Seen::Entry(leaf) => leaves.push(leaf),
        });
        for finding in findings.await {
            inspection.find(finding.to_string());
        }
        inspection.report.lines += 1;
        inspection.report.pages += pages.len() as u64;
        for page in &pages {
            self.inspect_page(page, inspection).await;
        }
        let inner = self.inner();
        let mut born = vec![0; line.born.len()];
        let mut blocks = Vec::new();
        for Leaf { block, version, .. } in leaves {
            let Place::Data { pba, crc } = version.place else { continue };
            born[line.interval(version.birth).min(line.born.len() - 1)] += 1;
            let what = format!("block {} of line {}", block.0, line.id.0);
            inspection.refer(&inner.space, pba, Some(State::Log), &what);
            inspection.count(&inner.space, pba);
            blocks.push(Found { line: line.id, block, birth: version.birth, pba, crc: Some(crc) });
        }
        if born != line.born {
            inspection.find(format!(
                "line {} has {born:?} blocks of data by snapshots, its counters say {:?}",
                line.id.0, line.born
            ));
        }
        inspection.report.blocks += blocks.len() as u64;
        blocks
    }

    /// Looks at a page that could be read from one of its places: at both.
    async fn inspect_page(&self, page: &PageAt, inspection: &mut Inspection) {
        let places = [(page.ptr.pba, "a map page"), (page.ptr.copy, "the copy of a map page")];
        for (pba, name) in places.into_iter().filter(|(pba, _)| !pba.is_none()) {
            let what = format!("{name} of line {}", page.line.0);
            if !page.ptr.copy.is_none() && !self.is_page_whole(page, pba).await {
                inspection.find(format!("{what}, at {pba}, cannot be read; the other one can"));
            }
            let inner = self.inner();
            inspection.refer(&inner.space, pba, Some(State::Pages), &what);
            inspection.count(&inner.space, pba);
        }
    }

    /// Looks at both copies of the tables. One of each could be read.
    async fn inspect_tables(&self, inspection: &mut Inspection) {
        let anchor = self.inner().anchor.clone();
        let tables = [
            ("the catalogue", &anchor.catalogue),
            ("the table of lines", &anchor.lines),
            ("the table of segments", &anchor.segments),
            ("the log's contents at the import", &anchor.delta),
        ];
        for (name, ptr) in tables {
            for (which, extents) in [("first", &ptr.extents), ("second", &ptr.copy)] {
                if extents.is_empty() {
                    continue;
                }
                if let Err(error) = self.read_blob_copy(ptr, extents).await {
                    inspection.find(format!("the {which} copy of {name} cannot be read: {error}"));
                }
                let inner = self.inner();
                for piece in extents {
                    for block in 0..u64::from(piece.blocks) {
                        inspection.refer(&inner.space, piece.pba.plus(block), None, name);
                    }
                }
            }
        }
    }

    /// Looks at what the log holds beyond the trees.
    fn inspect_delta(&self, inspection: &mut Inspection) -> Vec<Found> {
        let inner = self.inner();
        let mut blocks = Vec::new();
        for line in inner.active.lines() {
            for update in inner.active.points_from(line, BlockNo(0)) {
                let (pba, crc) = match update.change {
                    Change::Place(Place::Data { pba, crc }) => (pba, Some(crc)),
                    Change::Moved { to, .. } => (to, None),
                    Change::Place(Place::Hole) => continue,
                };
                let what = format!("block {} of line {} in the log", update.block.0, line.0);
                inspection.refer(&inner.space, pba, Some(State::Log), &what);
                blocks.push(Found { line, block: update.block, birth: update.birth, pba, crc });
            }
        }
        inspection.report.tail_blocks += blocks.len() as u64;
        blocks
    }

    /// Reads blocks and compares their checksums.
    async fn verify(&self, blocks: &[Found], inspection: &mut Inspection) -> Result<(), LvsError> {
        for found in blocks {
            let Some(crc) = found.crc else { continue };
            let wrong = match self.read_blocks(found.pba, 1).await {
                Ok(buf) if crc32c(&buf[..BLOCK_BYTES as usize]) == crc => None,
                Ok(_) => Some("has a wrong checksum"),
                Err(LvsError::Io { .. }) => Some("cannot be read"),
                Err(other) => return Err(other),
            };
            inspection.report.verified_bytes += u64::from(BLOCK_BYTES);
            if let Some(wrong) = wrong {
                let Found { line, block, birth, pba, .. } = found;
                inspection.find(format!(
                    "block {} of line {} (written by record {}), at {pba}, {wrong}",
                    block.0, line.0, birth.0
                ));
            }
        }
        Ok(())
    }

    /// The counts of live blocks, which cleaning goes by, against what was counted.
    fn compare_counts(&self, inspection: &mut Inspection) {
        let inner = self.inner();
        for (id, segment) in inner.space.iter() {
            let counted = inspection.counted.get(&id).copied().unwrap_or(0);
            if counted != segment.live {
                let (disk, index) = (id.member(), id.index());
                let line = format!(
                    "segment {index} of disk {disk}: {counted} blocks are live, its counter says {}",
                    segment.live
                );
                inspection.find(line);
            }
        }
    }
}

impl Inspection {
    fn find(&mut self, what: String) {
        if self.report.findings.len() < MOST_FINDINGS {
            self.report.findings.push(what);
        }
        self.report.wrong += 1;
    }

    /// `what` stands at `pba`: in a segment of that use, if one is given, and nothing else does.
    fn refer(&mut self, space: &super::space::Space, pba: Pba, state: Option<State>, what: &str) {
        let Some(id) = space.segment_of(pba) else {
            return self.find(format!("{what} is said to stand at {pba}, where no segment is"));
        };
        let found = space.get(id).map_or(State::Free, |s| s.state);
        if state.is_some_and(|state| found != state) {
            self.find(format!("{what} stands at {pba}, in a segment whose use is {found:?}"));
        }
        let at = (pba.block() - space.first_block(id).block()) as usize;
        let words = (space.segment_blocks() as usize).div_ceil(64);
        let word = &mut self.seen.entry(id).or_insert_with(|| vec![0; words])[at / 64];
        let twice = *word >> (at % 64) & 1 == 1;
        *word |= 1 << (at % 64);
        if twice {
            self.find(format!("{what} stands at {pba}, and so does something else"));
        }
    }

    fn count(&mut self, space: &super::space::Space, pba: Pba) {
        if let Some(id) = space.segment_of(pba) {
            *self.counted.entry(id).or_default() += 1;
        }
    }
}
