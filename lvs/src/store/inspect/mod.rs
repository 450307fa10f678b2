//! The offline checker: opens a pool as an import would, without writing a byte, and compares everything with
//! everything.
//!
//! - [`Store::inspect`] (this file): trees, tables, log, data, counts. - `disks`: labels and anchors.
//! - `repair`: what is wrong and can be derived from what is right.

mod disks;
mod repair;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aio::{BlockDevice, Core};

use super::Store;
use super::lines::Line;
use super::pages::{PageReader, SLOW_BUFFER_BYTES};
use super::readonly::ReadOnly;
use super::space::State;
use super::verify::{Found, Wrong, pieces};
use crate::LvsError;
use crate::format::anchor::Anchor;
use crate::format::blob::BlobPtr;
use crate::format::page::Leaf;
use crate::index::{Change, PageAt, PageRef, PageSource, Seen, Tree, check};
use crate::info::{CheckProgress, CheckReport, CheckWish, ImportPool};
use crate::types::{BLOCK_BYTES, BlockNo, Pba, Place, SegmentId};

/// Findings after which no more are kept.
const MOST_FINDINGS: usize = 1000;
/// Blocks of data that are found before they are read: sorted by their addresses, many of them lie together.
const BATCH: usize = 64 * 1024;
/// Blocks of a read at most.
const MOST_READ: u64 = (SLOW_BUFFER_BYTES / BLOCK_BYTES) as u64;

/// What was found so far.
#[derive(Default)]
struct Inspection {
    report: CheckReport,
    /// Blocks of each segment that something refers to: a bit each.
    seen: BTreeMap<SegmentId, Vec<u64>>,
    /// Blocks and pages of each segment that the trees refer to.
    counted: BTreeMap<SegmentId, u32>,
    progress: Arc<CheckProgress>,
    /// Of what is wrong, what can be derived from what is right.
    mend: Mend,
}

/// What can be made right.
#[derive(Default)]
struct Mend {
    /// Copies of labels that are damaged: which disk, which block.
    labels: Vec<(u8, u64)>,
    /// The same of the newest anchor.
    anchors: Vec<(u8, u64)>,
    /// Counts of live blocks.
    counts: BTreeMap<SegmentId, u32>,
    /// What is wrong beside these.
    others: u64,
}

/// Reads pages, and between them what was found in them: so memory does not grow with the pool.
struct Walk<'a> {
    reader: PageReader,
    inspection: &'a RefCell<Inspection>,
    /// Blocks of data to be read.
    blocks: &'a RefCell<Vec<Found>>,
    /// Pages that have a second copy.
    pages: &'a RefCell<Vec<PageAt>>,
    /// Reading data could not go on.
    failed: RefCell<Option<LvsError>>,
}

impl Walk<'_> {
    /// Reads what was found, when that is `enough`.
    async fn drain(&self, enough: usize) {
        let pages = std::mem::take(&mut *self.pages.borrow_mut());
        for page in &pages {
            self.reader.0.inspect_copies(page, self.inspection).await;
        }
        if self.blocks.borrow().len() < enough.max(1) {
            return;
        }
        let mut blocks = std::mem::take(&mut *self.blocks.borrow_mut());
        if let Err(error) = self.reader.0.verify_all(&mut blocks, self.inspection).await {
            self.failed.borrow_mut().get_or_insert(error);
        }
    }
}

impl PageSource for Walk<'_> {
    type Error = LvsError;

    fn cached(&self, page: &PageAt) -> Option<PageRef> {
        self.reader.cached(page)
    }

    async fn read(&self, page: &PageAt) -> Result<PageRef, LvsError> {
        self.reader.read(page).await
    }

    async fn breathe(&self) {
        self.drain(BATCH).await;
        self.reader.breathe().await;
    }
}

impl Store {
    /// Looks at a pool that is not open.
    pub(crate) async fn inspect(
        core: &Core,
        devices: Vec<Arc<dyn BlockDevice>>,
        wish: CheckWish,
    ) -> Result<CheckReport, LvsError> {
        let found = Self::find(core, ReadOnly::all(&devices), ImportPool::default()).await;
        let store = match found {
            Ok(store) => store,
            Err(LvsError::Damaged { pool, what }) => {
                let report = CheckReport { pool, wrong: 1, findings: vec![what], ..CheckReport::default() };
                return Ok(report);
            }
            Err(other) => return Err(other),
        };
        let inspected = store.inspect_all(&wish).await;
        store.close().await;
        let Inspection { mut report, mend, .. } = inspected?;
        report.repairable = mend.in_words();
        Ok(report)
    }

    /// Everything.
    async fn inspect_all(self: &Rc<Self>, wish: &CheckWish) -> Result<Inspection, LvsError> {
        let mut inspection = Inspection { progress: wish.progress.clone(), ..Inspection::default() };
        let lines = {
            let inner = self.inner();
            (inspection.report.pool, inspection.report.uuid) = (inner.name.clone(), inner.uuid);
            let lines = inner.lines.iter().cloned().collect::<Vec<Line>>();
            let blocks: u64 = lines.iter().map(Line::live_blocks).sum();
            wish.progress.blocks_in_all.store(blocks, Ordering::Relaxed);
            lines
        };
        self.inspect_disks(&mut inspection).await?;
        self.inspect_tables(&mut inspection).await;
        let inspection = RefCell::new(inspection);
        for line in &lines {
            self.inspect_line(line, wish.data, &inspection).await?;
        }
        let mut tail = self.inspect_delta(&mut inspection.borrow_mut());
        if wish.data {
            self.verify_all(&mut tail, &inspection).await?;
        }
        let mut inspection = inspection.into_inner();
        self.compare_counts(&mut inspection);
        Ok(inspection)
    }

    /// Walks a line's tree.
    async fn inspect_line(
        self: &Rc<Self>,
        line: &Line,
        data: bool,
        inspection: &RefCell<Inspection>,
    ) -> Result<(), LvsError> {
        let tree = Tree { line: line.id, root: line.root };
        let (blocks, pages) = (RefCell::default(), RefCell::default());
        let reader = PageReader(self.clone());
        let walk = Walk { reader, inspection, blocks: &blocks, pages: &pages, failed: RefCell::default() };
        let mut born = vec![0; line.born.len()];
        let findings = check(&walk, &tree, |seen| {
            let mut inspection = inspection.borrow_mut();
            match seen {
                Seen::Page(page) => {
                    self.saw_page(&page, &mut inspection);
                    if !page.ptr.copy.is_none() {
                        pages.borrow_mut().push(page);
                    }
                }
                Seen::Entry(leaf) => {
                    if let Some(found) = self.saw_entry(line, &leaf, &mut born, &mut inspection)
                        && data
                    {
                        blocks.borrow_mut().push(found);
                    }
                }
            }
        })
        .await;
        walk.drain(1).await;
        if let Some(error) = walk.failed.take() {
            return Err(error);
        }
        let mut inspection = inspection.borrow_mut();
        for finding in findings {
            inspection.find(finding.to_string());
        }
        inspection.report.lines += 1;
        if born != line.born {
            inspection.find(format!(
                "line {} has {born:?} blocks of data by snapshots, its counters say {:?}",
                line.id.0, line.born
            ));
        }
        Ok(())
    }

    /// Notes where a page stands.
    fn saw_page(&self, page: &PageAt, inspection: &mut Inspection) {
        inspection.report.pages += 1;
        inspection.progress.pages.fetch_add(1, Ordering::Relaxed);
        let inner = self.inner();
        for (pba, name) in places(page) {
            let what = format!("{name} of line {}", page.line.0);
            inspection.refer(&inner.space, pba, Some(State::Pages), &what);
            inspection.count(&inner.space, pba);
        }
    }

    /// Notes where a block of data stands, if the entry is one.
    fn saw_entry(
        &self,
        line: &Line,
        leaf: &Leaf,
        born: &mut [u64],
        inspection: &mut Inspection,
    ) -> Option<Found> {
        let Leaf { block, version, .. } = leaf;
        let Place::Data { pba, crc } = version.place else { return None };
        born[line.interval(version.birth).min(line.born.len() - 1)] += 1;
        inspection.report.blocks += 1;
        inspection.progress.blocks.fetch_add(1, Ordering::Relaxed);
        let inner = self.inner();
        let what = format!("block {} of line {}", block.0, line.id.0);
        inspection.refer(&inner.space, pba, Some(State::Log), &what);
        inspection.count(&inner.space, pba);
        Some(Found { line: line.id, block: *block, birth: version.birth, pba, crc: Some(crc) })
    }

    /// A page with a second copy could be read from one of its places: looks at both.
    async fn inspect_copies(&self, page: &PageAt, inspection: &RefCell<Inspection>) {
        for (pba, name) in places(page) {
            if self.page_wrong(page, pba).await.is_some() {
                let what =
                    format!("{name} of line {}, at {pba}, cannot be read; the other one can", page.line.0);
                inspection.borrow_mut().find(what);
            }
        }
    }

    /// Looks at both copies of the tables. One of each could be read.
    async fn inspect_tables(&self, inspection: &mut Inspection) {
        let anchor = self.inner().anchor.clone();
        for (name, ptr) in tables(&anchor) {
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
    async fn verify_all(
        &self,
        blocks: &mut [Found],
        inspection: &RefCell<Inspection>,
    ) -> Result<(), LvsError> {
        for piece in pieces(blocks, MOST_READ) {
            let told = self.verify(piece, |found, wrong| {
                let mut inspection = inspection.borrow_mut();
                inspection.report.verified_bytes += u64::from(BLOCK_BYTES);
                inspection.progress.verified_bytes.fetch_add(u64::from(BLOCK_BYTES), Ordering::Relaxed);
                let wrong = match wrong {
                    None => return,
                    Some(Wrong::Checksum) => "has a wrong checksum",
                    Some(Wrong::Unreadable) => "cannot be read",
                };
                let Found { line, block, birth, pba, .. } = found;
                inspection.find(format!(
                    "block {} of line {} (written by record {}), at {pba}, {wrong}",
                    block.0, line.0, birth.0
                ));
            });
            told.await?;
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
                inspection.mend.counts.insert(id, counted);
                inspection.find_mendable(line);
            }
        }
    }
}

/// The tables, and where they are.
pub(super) fn tables(anchor: &Anchor) -> [(&'static str, &BlobPtr); 4] {
    [
        ("the catalogue", &anchor.catalogue),
        ("the table of lines", &anchor.lines),
        ("the table of segments", &anchor.segments),
        ("the log's contents at the import", &anchor.delta),
    ]
}

/// Where a page stands.
pub(super) fn places(page: &PageAt) -> impl Iterator<Item = (Pba, &'static str)> {
    [(page.ptr.pba, "a map page"), (page.ptr.copy, "the copy of a map page")]
        .into_iter()
        .filter(|(pba, _)| !pba.is_none())
}

impl Inspection {
    fn find(&mut self, what: String) {
        self.mend.others += 1;
        self.find_mendable(what);
    }

    /// Something that [`Mend`] has noted.
    fn find_mendable(&mut self, what: String) {
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
