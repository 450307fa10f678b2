//! The log's blocks, and every tree, leaf by leaf: pages in each of their places, and the blocks that they lead to.

use core::cell::RefCell;
use nvme::digest::crc32c;

use super::harm::Lost;
use super::meta::count;
use super::{Halt, PIECE_BYTES, Scrubber};
use crate::LvsError;
use crate::format::page::MAX_BLOCKS;
use crate::index::{
    Change, Cursor, Delta, PageAt, PageRef, PageSource, PageTag, Scanned, Tree, Unread, is_page_live, scan,
};
use crate::info::HarmKind;
use crate::store::Inner;
use crate::store::clean::Hold;
use crate::store::inspect::places;
use crate::store::pages::{PageReader, tag_of};
use crate::store::verify::{Found, Wrong, len_blocks, pieces};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, Pba, Place, Seq, Version};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks that are found before they are read: sorted by their places, many of them lie together.
const BATCH: usize = 16 * 1024;
/// Updates of the log that are looked at in one go.
const UPDATES: usize = 1024;
/// Pages that one checkpoint writes anew.
const MOST_MENDS: usize = 64;
/// Lines after which others on this core get their turn, though there was nothing to read.
const LINES_PER_BREATH: u32 = 256;

/// A page of which one place is damaged, and that is known nonetheless.
pub(super) struct Mend {
    tag: PageTag,
    /// Bad places.
    bad: Vec<Pba>,
    /// As long as it is held it stays in memory.
    _page: PageRef,
}

/// Leaves are read from their disk, whatever is in memory.
struct Media {
    reader: PageReader,
    /// Leaves that could not be read there.
    bad: RefCell<Vec<(PageAt, Wrong)>>,
}

impl PageSource for Media {
    type Error = LvsError;

    fn cached(&self, page: &PageAt) -> Option<PageRef> {
        self.reader.cached(page)
    }

    async fn read(&self, page: &PageAt) -> Result<PageRef, LvsError> {
        if page.level == 0 {
            let mut read = self.reader.0.read_page(page, page.ptr.pba).await;
            if read.is_err() {
                // It may have been a slip of the disk.
                read = self.reader.0.read_page(page, page.ptr.pba).await;
            }
            match read {
                Ok(leaf) => return Ok(leaf),
                Err(LvsError::Io { .. }) => self.bad.borrow_mut().push((*page, Wrong::Unreadable)),
                Err(error) if error.is_damage() => self.bad.borrow_mut().push((*page, Wrong::Checksum)),
                Err(error) => return Err(error),
            }
        }
        self.reader.read(page).await
    }

    async fn breathe(&self) {
        self.reader.breathe().await;
    }
}

impl Scrubber {
    /// Blocks that are in the log and not yet in the trees. First of all: what is merged meanwhile is found in the trees.
    pub(super) async fn log(&mut self) -> Result<(), Halt> {
        for layer in [Layer::Active, Layer::Frozen, Layer::Aside] {
            let mut from = Some((LineId(0), BlockNo(0)));
            while let Some(at) = from {
                from = self.store.inner().updates_from(layer, at, &mut self.batch);
                self.read_batch(BATCH).await?;
            }
        }
        self.read_batch(1).await
    }

    /// All trees.
    pub(super) async fn lines(&mut self) -> Result<(), Halt> {
        let mut id = LineId(0);
        while id.0 < self.store.inner().catalogue.next_line {
            self.line(id).await?;
            id = LineId(id.0 + 1);
            if id.0.is_multiple_of(LINES_PER_BREATH) {
                PageReader(self.store.clone()).breathe().await;
            }
        }
        self.read_batch(1).await?;
        self.mend().await
    }

    async fn line(&mut self, id: LineId) -> Result<(), Halt> {
        let mut from = Some(Cursor::START);
        while let Some(at) = from {
            from = self.leaf(id, at).await?;
            self.read_batch(BATCH).await?;
            if self.mends.len() >= MOST_MENDS {
                self.mend().await?;
            }
            self.rest().await?;
        }
        Ok(())
    }

    /// Looks at the leaf that `from` falls in, and at the pages above that begin with it. Where to go on.
    async fn leaf(&mut self, id: LineId, from: Cursor) -> Result<Option<Cursor>, Halt> {
        // What it leads to stays until it was looked at (H4).
        let store = self.store.clone();
        let _hold = Hold::new(&store);
        let Some(tree) = store.inner().tree_in_use(id) else { return Ok(None) };
        let began = store.core.now();
        let media = Media { reader: PageReader(store.clone()), bad: RefCell::default() };
        let scanned = scan(&media, &tree, from).await;
        self.has_read(BLOCK, began);
        self.note(|report| report.map_pages += 1);
        for (page, wrong) in media.bad.into_inner() {
            // From memory, if it is there.
            let known = media.reader.cached(&page);
            self.bad_page(&page, vec![(page.ptr.pba, wrong)], known);
        }
        let Scanned { pages, entries, next } = match scanned {
            Ok(Some(scanned)) => scanned,
            Ok(None) => return Ok(None),
            Err(unread) if unread.error.is_damage() => return Ok(self.lost_page(&unread).await),
            Err(unread) => return Err(unread.error.into()),
        };
        for page in pages.iter().filter(|page| page.level > 0) {
            self.interior(page).await?;
        }
        let inner = store.inner();
        for leaf in entries {
            self.batch.extend(inner.found(id, leaf.block, leaf.version));
        }
        Ok(next)
    }

    /// Looks at an interior page where it stands, and at its copy.
    async fn interior(&mut self, page: &PageAt) -> Result<(), Halt> {
        let mut bad = Vec::new();
        for (pba, _) in places(page) {
            let began = self.store.core.now();
            let mut wrong = self.store.page_wrong(page, pba).await;
            if wrong.is_some() {
                wrong = self.store.page_wrong(page, pba).await;
            }
            self.has_read(BLOCK, began);
            self.note(|report| report.map_pages += 1);
            bad.extend(wrong.map(|wrong| (pba, wrong)));
        }
        if !bad.is_empty() {
            // From memory, or from its other place.
            let known = PageReader(self.store.clone()).read(page).await.ok();
            self.bad_page(page, bad, known);
        }
        Ok(())
    }

    /// A page has bad places; it is written anew when it is `known`.
    fn bad_page(&mut self, page: &PageAt, bad: Vec<(Pba, Wrong)>, known: Option<PageRef>) {
        let level = page.level;
        for &(pba, wrong) in &bad {
            let what = format!("a page of the map (line {}, level {level}), at {pba},", page.line.0);
            self.judged(Some(wrong), &what);
        }
        let mend = known.and_then(|known| Some((tag_of(page, &known)?, known)));
        if let Some((tag, _page)) = mend {
            let bad = bad.into_iter().map(|(pba, _)| pba).collect();
            self.mends.push(Mend { tag, bad, _page });
        }
    }

    /// Nobody knows what a page held. Where to go on.
    async fn lost_page(&self, unread: &Unread<LvsError>) -> Option<Cursor> {
        let Unread { page, first, next, .. } = unread;
        if page.level > 0 {
            // Of a leaf that was said already.
            for (pba, name) in places(page) {
                let wrong = self.store.page_wrong(page, pba).await;
                self.judged(wrong, &format!("{name} of line {}, at {pba},", page.line.0));
            }
        }
        // The block that the page to the right begins with is looked for here first.
        let end = next.map_or(MAX_BLOCKS, |next| next.block().0 + 1);
        let lost = Lost {
            line: page.line,
            first: *first,
            count: end.saturating_sub(first.0),
            born: Seq::ZERO,
            until: Seq::MAX,
        };
        self.lost(lost, HarmKind::Map).await;
        *next
    }

    /// The next merge writes pages anew, those of which a place is bad.
    async fn mend(&mut self) -> Result<(), Halt> {
        let mends = core::mem::take(&mut self.mends);
        if mends.is_empty() {
            return Ok(());
        }
        self.store.inner().touched.extend(mends.iter().map(|mend| mend.tag));
        if !self.write_anew().await {
            // The pool has no room for it, or takes no writes: the pages are as they were.
            return self.check_stop();
        }
        let reader = PageReader(self.store.clone());
        for Mend { tag, bad, _page } in mends {
            for pba in bad {
                let tree = self.store.inner().tree(tag.line);
                let live = match tree {
                    Some(tree) => is_page_live(&reader, &tree, &tag, pba).await.unwrap_or(true),
                    None => false,
                };
                self.note(|report| report.repaired += u64::from(!live));
            }
        }
        Ok(())
    }

    /// Reads the blocks that were found, when they are `enough`.
    async fn read_batch(&mut self, enough: usize) -> Result<(), Halt> {
        if self.batch.len() < enough {
            return Ok(());
        }
        let mut batch = core::mem::take(&mut self.batch);
        let mut doubtful = Vec::new();
        for piece in pieces(&mut batch, u64::from(PIECE_BYTES / BLOCK_BYTES)) {
            let began = self.store.core.now();
            let verified = self.store.verify(piece, |found, wrong| {
                if wrong.is_some() {
                    doubtful.push(*found);
                }
            });
            verified.await?;
            self.has_read(u64::from(len_blocks(piece)) * BLOCK, began);
            self.note(|report| report.data_bytes += piece.len() as u64 * BLOCK);
            self.rest().await?;
        }
        // In the order of volumes, so that what lies together is told together.
        doubtful.sort_unstable_by_key(|found| (found.line, found.block, found.birth));
        for found in &doubtful {
            self.confirm(found).await?;
            self.rest().await?;
        }
        batch.clear();
        self.batch = batch;
        Ok(())
    }

    /// A block was not what it should be: is it still in use, and where it was?
    async fn confirm(&self, found: &Found) -> Result<(), Halt> {
        let hold = Hold::new(&self.store);
        let Some(crc) = found.crc else { return Ok(()) };
        let place = match self.store.place_of(found.line, found.block, found.birth).await {
            Ok(Some(place)) => place,
            Ok(None) => return Ok(()),
            // The page that leads to it is told by itself.
            Err(error) if error.is_damage() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let began = self.store.core.now();
        let read = self.store.read_blocks(place, 1).await;
        self.has_read(BLOCK, began);
        drop(hold);
        let wrong = match read {
            Ok(buf) if crc32c(&buf[..BLOCK_BYTES as usize]) == crc => return Ok(()),
            Ok(_) => Wrong::Checksum,
            Err(LvsError::Io { .. }) => Wrong::Unreadable,
            Err(other) => return Err(other.into()),
        };
        let kind = match wrong {
            Wrong::Checksum => HarmKind::Checksum,
            Wrong::Unreadable => HarmKind::Unreadable,
        };
        if self.lost_block(found, kind).await {
            let mut inner = self.store.inner();
            match wrong {
                Wrong::Checksum => inner.checksum_errors += 1,
                Wrong::Unreadable => inner.read_errors += 1,
            }
            drop(inner);
            self.note(|report| count(report, Some(wrong)));
        }
        Ok(())
    }
}

/// What is over the trees.
#[derive(Clone, Copy)]
enum Layer {
    Active,
    Frozen,
    Aside,
}

impl Inner {
    /// The tree of a line that somebody sees.
    fn tree_in_use(&self, id: LineId) -> Option<Tree> {
        self.lines.get(id).filter(|line| !line.is_dead()).map(|line| Tree { line: id, root: line.root })
    }

    /// Where a version of the tree is by now, if it is data.
    fn found(&self, line: LineId, block: BlockNo, version: Version) -> Option<Found> {
        let layers = [self.aside.as_ref(), self.frozen.as_deref(), Some(&self.active)];
        let version = layers.into_iter().flatten().fold(version, |v, d| d.corrected(line, block, v));
        let Place::Data { pba, crc } = version.place else { return None };
        Some(Found { line, block, birth: version.birth, pba, crc: Some(crc) })
    }

    /// Adds blocks of a layer to `out`, from this block of this line on. Where to go on.
    fn updates_from(
        &self,
        layer: Layer,
        (line, first): (LineId, BlockNo),
        out: &mut Vec<Found>,
    ) -> Option<(LineId, BlockNo)> {
        let delta: &Delta = match layer {
            Layer::Active => Some(&self.active),
            Layer::Frozen => self.frozen.as_deref(),
            Layer::Aside => self.aside.as_ref(),
        }?;
        let here = delta.line_from(line)?;
        let (line, first) = if here == line { (line, first) } else { (here, BlockNo(0)) };
        let mut last = None;
        for (taken, update) in delta.points_from(line, first).enumerate() {
            if taken >= UPDATES && last != Some(update.block) {
                return Some((line, update.block));
            }
            last = Some(update.block);
            // A move is of a version of the tree, and found there.
            if let Change::Place(place) = update.change {
                out.extend(self.found(line, update.block, Version { birth: update.birth, place }));
            }
        }
        Some((LineId(line.0.checked_add(1)?), BlockNo(0)))
    }
}
