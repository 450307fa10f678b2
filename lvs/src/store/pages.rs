//! Map pages and blobs: from and to the log.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use aio::{Descriptor, DmaBuf};
use nvme::digest::{Digest, crc32c};
use uuid::Uuid;

use super::counts::PER_TURN;
use super::log::Stream;
use super::space::State;
use super::verify::Wrong;
use super::{DELTA_UPDATES, Inner, Store};
use crate::LvsError;
use crate::format::blob::{BlobExtent, BlobPtr, MAX_BLOB_EXTENTS};
use crate::format::page::{Expected, PAGE_BYTES};
use crate::format::record::{BlobKind, PageNote, PagesHeader, Stamp};
use crate::index::{PageAt, PageRef, PageSink, PageSource, PageTag};
use crate::types::{BLOCK_BYTES, BlockNo, LineId, PagePtr, Pba, Seq};

/// Payload blocks of a Pages record: what its header of one block can list.
const PAGES_OF_RECORD: u32 = 96;
/// Bytes of the buffers of slow work: the longest record.
pub(super) const SLOW_BUFFER_BYTES: u32 = 1 << 20;
const BLOCK: usize = BLOCK_BYTES as usize;

/// Most blocks of a blob, in segments of so many blocks: wherever it begins, it has no more pieces than an anchor can
/// name. A piece is what is in one record, and there are short ones at the ends of segments.
const fn most_blob_blocks(segment_blocks: u32) -> u64 {
    let (whole, rest) = (segment_blocks / (1 + PAGES_OF_RECORD), segment_blocks % (1 + PAGES_OF_RECORD));
    let pieces = whole + (rest > 1) as u32;
    let payload = whole * PAGES_OF_RECORD + rest.saturating_sub(1);
    // The first piece may be one block at the end of a segment.
    let left = MAX_BLOB_EXTENTS as u32 - 1;
    1 + (left / pieces * payload + left % pieces * PAGES_OF_RECORD) as u64
}

/// Where map pages are read: the cache, and the devices behind it.
#[derive(Clone)]
pub(super) struct PageReader(pub(super) Rc<Store>);

impl PageSource for PageReader {
    type Error = LvsError;

    fn cached(&self, page: &PageAt) -> Option<PageRef> {
        self.0.inner().cache.borrow_mut().get(&page.ptr)
    }

    async fn read(&self, page: &PageAt) -> Result<PageRef, LvsError> {
        if let Some(found) = self.cached(page) {
            return Ok(found);
        }
        self.0.fetched(page).await;
        if let Some(found) = self.cached(page) {
            return Ok(found);
        }
        let first = self.0.read_page(page, page.ptr.pba).await;
        let Err(error) = first else { return first };
        self.0.inner().page_errors += 1;
        if page.ptr.copy.is_none() {
            // It may have been a slip of the disk.
            return self.0.read_page(page, page.ptr.pba).await.map_err(|_| error);
        }
        let copy = self.0.read_page(page, page.ptr.copy).await.map_err(|_| error)?;
        self.0.inner().renew(page, &copy);
        Ok(copy)
    }

    fn prefetch(&self, page: &PageAt) {
        self.0.inner().prefetch(page);
    }

    async fn breathe(&self) {
        aio_yield().await;
    }
}

/// Lets the rest of the core have a turn.
pub(super) async fn aio_yield() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// Appends pages and pieces of blobs to segments of their own, and second copies of interior pages and blobs to others:
/// on another disk when the pool has several. One at a time for each store: checkpoints take turns.
pub(super) struct PageWriter {
    reader: PageReader,
    /// Records that are being filled: of originals, and of second copies.
    open: RefCell<[Option<Batch>; 2]>,
    /// Pages that the new trees no longer refer to.
    dropped: RefCell<Vec<PageAt>>,
    /// Pages and their copies that were made.
    made: RefCell<Vec<Pba>>,
    /// Steps of a merge since others had their turn.
    steps: Cell<u32>,
    /// Blocks of lines below pages that cannot be read.
    unreadable: RefCell<Vec<(LineId, BlockNo, BlockNo)>>,
}

/// Index of the stream of originals, leaves among them.
const ORIGINALS: usize = 0;
/// Index of the stream of second copies.
const COPIES: usize = 1;
/// Pages that a read found damaged and that wait to be written anew, at most.
const MOST_TOUCHED: usize = 1024;

/// A record that is being filled.
struct Batch {
    header: PagesHeader,
    buf: DmaBuf,
    pba: Pba,
    blocks: u32,
    limit: u32,
}

impl Batch {
    /// A page that is not on its device yet.
    fn page(&self, pba: Pba) -> Option<&[u8]> {
        let index = pba.block().checked_sub(self.pba.block())?;
        let inside = pba.member() == self.pba.member() && index >= 1 && index <= u64::from(self.blocks);
        inside.then(|| &self.buf[index as usize * BLOCK..(index as usize + 1) * BLOCK])
    }
}

impl PageSource for PageWriter {
    type Error = LvsError;

    fn cached(&self, page: &PageAt) -> Option<PageRef> {
        self.reader.cached(page)
    }

    async fn read(&self, page: &PageAt) -> Result<PageRef, LvsError> {
        if let Some(batch) = &self.open.borrow()[ORIGINALS]
            && let Some(bytes) = batch.page(page.ptr.pba)
        {
            return self.reader.0.inner().keep(page, bytes);
        }
        self.reader.read(page).await
    }

    fn prefetch(&self, page: &PageAt) {
        self.reader.prefetch(page);
    }

    /// The fuller the delta that takes what is written meanwhile, the longer is a breath: a merge that is not done when
    /// that is full would keep all writes waiting, instead of a part of the core.
    async fn breathe(&self) {
        let steps = self.steps.get() + 1;
        let enough = steps >= self.reader.0.inner().steps_of_a_breath();
        self.steps.set(if enough { 0 } else { steps });
        if enough {
            self.reader.breathe().await;
        }
    }
}

impl PageSink for PageWriter {
    fn pool(&self) -> Uuid {
        self.reader.0.inner().uuid
    }

    async fn append(
        &self,
        bytes: &[u8; PAGE_BYTES],
        tag: &PageTag,
        ptr: &PagePtr,
    ) -> Result<(Pba, Pba), LvsError> {
        let PageTag { line, level, block, birth } = *tag;
        let note = PageNote::Map { line, level, block, birth, crc: ptr.crc };
        let pba = self.block(ORIGINALS, bytes, &note).await?;
        // Leaves are most of what a merge writes; the volume of a damaged one takes no writes, others go on.
        let copy = if level == 0 { Pba::NONE } else { self.copy(bytes, &note).await? };
        self.made.borrow_mut().extend([pba, copy].iter().filter(|pba| !pba.is_none()));
        // What was written will be read, by the next merge if by nobody else.
        self.store().inner().cache.borrow_mut().put(pba, bytes, ptr.crc, level);
        Ok((pba, copy))
    }

    fn unreadable(
        &self,
        page: &PageAt,
        first: BlockNo,
        end: BlockNo,
        error: LvsError,
    ) -> Result<(), LvsError> {
        if !error.is_damage() {
            return Err(error);
        }
        self.unreadable.borrow_mut().push((page.line, first, end));
        Ok(())
    }

    fn dropped(&self, page: &PageAt) {
        self.dropped.borrow_mut().push(*page);
    }
}

impl PageWriter {
    pub(super) fn new(store: Rc<Store>) -> Self {
        Self {
            reader: PageReader(store),
            open: RefCell::new([None, None]),
            dropped: RefCell::default(),
            made: RefCell::default(),
            steps: Cell::new(0),
            unreadable: RefCell::default(),
        }
    }

    fn store(&self) -> &Rc<Store> {
        &self.reader.0
    }

    /// The blocks below pages that the merges since the last call could not read, and so left as they are.
    pub(super) fn take_unreadable(&self) -> Vec<(LineId, BlockNo, BlockNo)> {
        self.unreadable.take()
    }

    /// The trees that were made will count: their pages do already. In turns.
    pub(super) async fn count_new_pages(&self) {
        for pages in self.made.take().chunks(PER_TURN) {
            {
                let mut inner = self.store().inner();
                pages.iter().for_each(|&pba| inner.space.add_live(pba));
            }
            aio_yield().await;
        }
    }

    /// The trees that were made count: the pages that they took the place of do not. In turns.
    pub(super) async fn count_old_pages(&self) {
        for pages in self.dropped.take().chunks(PER_TURN) {
            {
                let mut inner = self.store().inner();
                for page in pages {
                    inner.space.drop_live(page.ptr.pba);
                    inner.space.drop_live(page.ptr.copy);
                    inner.cache.borrow_mut().forget(page.ptr.pba);
                }
            }
            aio_yield().await;
        }
    }

    /// Appends a second copy; [`Pba::NONE`] when the pool has no room for it.
    async fn copy(&self, bytes: &[u8], note: &PageNote) -> Result<Pba, LvsError> {
        match self.block(COPIES, bytes, note).await {
            Err(LvsError::NoSpace { .. }) => Ok(Pba::NONE),
            appended => appended,
        }
    }

    /// Appends a block. It is on its device after [`finish`](Self::finish), and durable after a flush behind that.
    async fn block(&self, stream: usize, bytes: &[u8], note: &PageNote) -> Result<Pba, LvsError> {
        if self.open.borrow()[stream].as_ref().is_some_and(|b| b.blocks == b.limit) {
            self.write_out(stream).await?;
        }
        if self.open.borrow()[stream].is_none() {
            let batch = self.begin(stream).await?;
            self.open.borrow_mut()[stream] = Some(batch);
        }
        let mut open = self.open.borrow_mut();
        let batch = open[stream].as_mut().expect("invariant: it was just opened");
        let at = (1 + batch.blocks as usize) * BLOCK;
        let pushed = batch.header.push(&mut batch.buf[..BLOCK], note);
        debug_assert!(pushed.is_ok(), "the limit leaves room");
        batch.buf[at..at + bytes.len()].copy_from_slice(bytes);
        batch.buf[at + bytes.len()..at + BLOCK].fill(0);
        batch.blocks += 1;
        Ok(batch.pba.plus(u64::from(batch.blocks)))
    }

    async fn begin(&self, stream: usize) -> Result<Batch, LvsError> {
        let buf = self.store().buffer().await;
        let mut inner = self.store().inner();
        let inner = &mut *inner;
        let segment_blocks = inner.space.segment_blocks();
        let open = match inner.page_streams[stream].take() {
            Some(s) if s.offset + 2 <= segment_blocks => s,
            full => {
                if let Some(full) = full {
                    inner.space.close(full.segment, State::Pages);
                }
                // Originals and copies never share a disk while there is another one.
                let other = inner.page_streams[1 - stream].map(|s| s.segment.member());
                let Some(segment) = inner.space.open_pages(other) else {
                    return Err(inner.out_of_segments());
                };
                Stream { segment, offset: 0 }
            }
        };
        inner.page_streams[stream] = Some(open);
        let limit = PAGES_OF_RECORD.min(segment_blocks - open.offset - 1);
        let pba = inner.space.first_block(open.segment).plus(u64::from(open.offset));
        Ok(Batch { header: PagesHeader::begin(), buf, pba, blocks: 0, limit })
    }

    /// Writes what was appended.
    pub(super) async fn finish(&self) -> Result<(), LvsError> {
        self.write_out(ORIGINALS).await?;
        self.write_out(COPIES).await
    }

    async fn write_out(&self, stream: usize) -> Result<(), LvsError> {
        let Some(mut batch) = self.open.borrow_mut()[stream].take() else { return Ok(()) };
        let (descriptor, offset_bytes) = {
            let mut inner = self.store().inner();
            let stamp = Stamp { seq: Seq::ZERO, durable: Seq::ZERO, checkpoint: inner.checkpoint };
            batch.header.finish(&mut batch.buf[..BLOCK], &stamp, &inner.seal, batch.pba);
            inner.wrote_pages(1 + batch.blocks);
            if let Some(open) = &mut inner.page_streams[stream] {
                open.offset += 1 + batch.blocks;
            }
            inner.device_of(batch.pba)?
        };
        let len = (1 + batch.blocks) * BLOCK_BYTES;
        let (result, _) = descriptor.write_at(offset_bytes, len, batch.buf).await;
        self.store().wrote(batch.pba, result)
    }

    /// Appends a blob, twice.
    pub(super) async fn blob(&self, kind: BlobKind, bytes: &[u8]) -> Result<BlobPtr, LvsError> {
        let checkpoint = self.store().inner().checkpoint + 1;
        let (mut extents, mut copy) = (Vec::new(), Vec::new());
        let mut whole_copy = true;
        let mut whole = Digest::new();
        for (index, piece) in bytes.chunks(BLOCK).enumerate() {
            let mut digest = Digest::new();
            digest.update(piece);
            // Not all of it at once: tables are megabytes.
            whole.update(piece);
            digest.update(&[0; BLOCK][piece.len()..]);
            let note = PageNote::Blob { kind, checkpoint, index: index as u64, crc: digest.value() };
            extend(&mut extents, self.block(ORIGINALS, piece, &note).await?);
            if whole_copy {
                let pba = self.copy(piece, &note).await?;
                whole_copy = !pba.is_none();
                extend(&mut copy, pba);
            }
        }
        self.finish().await?;
        if !whole_copy || copy.len() > MAX_BLOB_EXTENTS {
            copy.clear();
        }
        Ok(BlobPtr { len_bytes: bytes.len() as u64, crc: whole.value(), extents, copy })
    }
}

/// Which page it is, for a merge that is to write it anew.
pub(super) fn tag_of(at: &PageAt, page: &PageRef) -> Option<PageTag> {
    let PageAt { line, level, .. } = *at;
    let view = page.view();
    let of_leaf = view.leaf(0).map(|leaf| (leaf.block, leaf.version.birth));
    let (block, birth) = of_leaf.or_else(|| view.child(0).map(|child| (child.block, child.birth)))?;
    Some(PageTag { line, level, block, birth })
}

/// Adds a block to a list of pieces.
fn extend(extents: &mut Vec<BlobExtent>, pba: Pba) {
    match extents.last_mut() {
        Some(last) if last.pba.plus(u64::from(last.blocks)) == pba => last.blocks += 1,
        _ => extents.push(BlobExtent { pba, blocks: 1 }),
    }
}

impl Inner {
    /// Can the table of segments have so `many` more? Otherwise the pool would fail at its next checkpoint.
    pub(super) fn check_segments(&self, many: u64) -> Result<(), LvsError> {
        // With what each device takes in it, and one more device.
        let bytes = (u64::from(self.space.total()) + many) * 16 + 16 + 4 * (self.members.len() as u64 + 1);
        let most_bytes = most_blob_blocks(self.space.segment_blocks()) * u64::from(BLOCK_BYTES);
        match bytes <= most_bytes {
            true => Ok(()),
            false => Err(LvsError::TooManySegments { pool: self.name.clone(), bytes, most_bytes }),
        }
    }

    /// How many steps a merge makes until it lets others work.
    fn steps_of_a_breath(&self) -> u32 {
        let taken = DELTA_UPDATES.saturating_sub(self.active.room().0);
        let sixteenths = ((taken * 16 / DELTA_UPDATES) as u32).max(self.log.sixteenths_opened());
        1 + sixteenths * sixteenths / 8
    }

    /// Checks a page and puts it into the cache.
    pub(super) fn keep(&self, page: &PageAt, bytes: &[u8]) -> Result<PageRef, LvsError> {
        let wrong = |what: String| LvsError::Damaged { pool: self.name.clone(), what };
        let bytes: &[u8; PAGE_BYTES] =
            bytes.first_chunk().ok_or_else(|| wrong("a map page is shorter than a page".to_owned()))?;
        let PageAt { line, level, ptr } = *page;
        let expected = Expected { pool: self.uuid, line, level, crc: ptr.crc, newest: ptr.newest };
        let kept = self.cache.borrow_mut().insert(ptr.pba, bytes, &expected);
        kept.map_err(|e| wrong(format!("the map page at {} is not what it should be: {e}", ptr.pba)))
    }

    /// Of this page only the copy can be read: the next merge writes it anew, twice.
    fn renew(&mut self, at: &PageAt, page: &PageRef) {
        let Some(tag) = tag_of(at, page) else { return };
        if self.touched.len() < MOST_TOUCHED && self.fault.is_none() {
            self.touched.push(tag);
        }
    }
}

impl Store {
    /// Reads a page from one of its places.
    pub(super) async fn read_page(&self, page: &PageAt, pba: Pba) -> Result<PageRef, LvsError> {
        let bytes = self.read_blocks(pba, 1).await?;
        self.inner().keep(page, &bytes)
    }

    /// What is wrong with a page in one of its places.
    pub(super) async fn page_wrong(&self, page: &PageAt, pba: Pba) -> Option<Wrong> {
        match self.read_blocks(pba, 1).await {
            Ok(bytes) if crc32c(&bytes[..BLOCK]) == page.ptr.crc => None,
            Ok(_) => Some(Wrong::Checksum),
            Err(_) => Some(Wrong::Unreadable),
        }
    }

    /// A buffer of slow work, when one is free.
    pub(super) async fn buffer(&self) -> DmaBuf {
        loop {
            if let Some(buf) = self.slow.alloc() {
                return buf;
            }
            self.core.sleep(core::time::Duration::from_micros(50)).await;
        }
    }

    /// Reads `blocks` blocks from `pba` on, at most what a buffer holds.
    pub(super) async fn read_blocks(&self, pba: Pba, blocks: u32) -> Result<DmaBuf, LvsError> {
        let buf = self.buffer().await;
        let (descriptor, offset_bytes) = self.inner().device_of(pba)?;
        let (result, buf) = descriptor.read_at(offset_bytes, blocks * BLOCK_BYTES, buf).await;
        match result {
            Ok(()) => Ok(buf),
            Err(source) => {
                let disk = descriptor.device().name().to_owned();
                Err(LvsError::Io { op: "read", disk, source })
            }
        }
    }

    /// Appends `blocks` blocks from `pba` on to `out`; those that cannot be read are zero.
    pub(super) async fn read_what_can_be(
        &self,
        pba: Pba,
        blocks: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), LvsError> {
        let step = SLOW_BUFFER_BYTES / BLOCK_BYTES;
        for at in (0..blocks).step_by(step as usize) {
            let count = step.min(blocks - at);
            let first = pba.plus(u64::from(at));
            match self.read_blocks(first, count).await {
                Ok(buf) => out.extend_from_slice(&buf[..count as usize * BLOCK]),
                Err(LvsError::Io { .. }) => {
                    for one in 0..u64::from(count) {
                        match self.read_blocks(first.plus(one), 1).await {
                            Ok(buf) => out.extend_from_slice(&buf[..BLOCK]),
                            Err(LvsError::Io { .. }) => out.resize(out.len() + BLOCK, 0),
                            Err(other) => return Err(other),
                        }
                    }
                }
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Reads a blob and checks it: its copy when that fails.
    pub(super) async fn read_blob(&self, ptr: &BlobPtr) -> Result<Vec<u8>, LvsError> {
        let first = self.read_blob_copy(ptr, &ptr.extents).await;
        if first.is_ok() || ptr.copy.is_empty() {
            return first;
        }
        self.read_blob_copy(ptr, &ptr.copy).await.or(first)
    }

    /// Reads one copy of a blob, whose pieces are `extents`, and checks it.
    pub(super) async fn read_blob_copy(
        &self,
        ptr: &BlobPtr,
        extents: &[BlobExtent],
    ) -> Result<Vec<u8>, LvsError> {
        let mut bytes = Vec::new();
        for &BlobExtent { pba: first, blocks } in extents {
            let mut done = 0;
            while done < blocks {
                let count = (blocks - done).min(SLOW_BUFFER_BYTES / BLOCK_BYTES);
                let buf = self.read_blocks(first.plus(u64::from(done)), count).await?;
                bytes.extend_from_slice(&buf[..count as usize * BLOCK]);
                done += count;
            }
        }
        bytes.truncate(ptr.len_bytes as usize);
        if !ptr.check_content(&bytes) {
            return Err(self.inner().damaged("a table has a wrong checksum"));
        }
        Ok(bytes)
    }

    /// A write of slow work ended.
    pub(super) fn wrote(&self, pba: Pba, result: Result<(), aio::facade::IoError>) -> Result<(), LvsError> {
        let mut inner = self.inner();
        inner.dirty(pba);
        result.map_err(|source| {
            inner.fail_pool("a write to a disk failed");
            let disk = inner.disk_name(pba);
            LvsError::Io { op: "write", disk, source }
        })
    }

    /// Makes everything that was written before durable.
    pub(super) async fn flush_all(&self) -> Result<(), LvsError> {
        self.inner().check_fault()?;
        let (covers, volatile): (Seq, Vec<(usize, Descriptor)>) = self.inner().begin_slow_flush();
        let mut failed = None;
        for (member, descriptor) in &volatile {
            // After a failure the others are of no use any more, but they end.
            let flushed = if failed.is_none() { descriptor.flush().await } else { Ok(()) };
            let mut inner = self.inner();
            inner.slow_flush_ended(*member);
            if let Err(source) = flushed {
                inner.fail_pool("a disk failed to flush its cache");
                let disk = descriptor.device().name().to_owned();
                failed = Some(LvsError::Io { op: "flush", disk, source });
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let mut inner = self.inner();
        // Another flush may have failed meanwhile, and have taken with it what this one was to cover.
        inner.check_fault()?;
        inner.log.durable_to(covers);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// H18: a table that is refused is one that an anchor might not be able to name, wherever it begins; one that is not,
    /// never is.
    #[test]
    fn h18_a_table_of_the_largest_size_has_no_more_pieces_than_an_anchor_names() {
        for segment_blocks in [256, 1024, 2048, 8192] {
            let most = most_blob_blocks(segment_blocks);
            let pieces = |from: u32, blocks: u64| {
                let (mut at, mut left, mut pieces) = (from, blocks, 0);
                while left > 0 {
                    if at + 2 > segment_blocks {
                        at = 0;
                    }
                    let piece = left.min(PAGES_OF_RECORD.min(segment_blocks - at - 1).into());
                    (at, left, pieces) = (at + 1 + piece as u32, left - piece, pieces + 1);
                }
                pieces
            };
            let worst = |blocks| (0..segment_blocks).map(|from| pieces(from, blocks)).max().unwrap();
            assert_eq!(worst(most), MAX_BLOB_EXTENTS, "segments of {segment_blocks}");
            assert!(worst(most + 1) > MAX_BLOB_EXTENTS, "segments of {segment_blocks}");
            // What a new pool may have, and the largest delta of an import.
            let table = if segment_blocks > 256 { (8 << 20) + 16 + 64 * 4 } else { 1024 * 16 };
            let delta = 8 + (2 * DELTA_UPDATES + super::super::aside::ASIDE_UPDATES) * 48 + 1280 * 32;
            assert!(table.max(delta).div_ceil(BLOCK) as u64 <= most);
        }
    }
}
