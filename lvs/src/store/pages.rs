//! Map pages and blobs: from and to the log.

use std::cell::RefCell;
use std::rc::Rc;

use aio::{Descriptor, DmaBuf};
use nvme::digest::{Digest, crc32c};
use uuid::Uuid;

use super::Store;
use super::log::Stream;
use super::space::State;
use crate::LvsError;
use crate::format::blob::{BlobExtent, BlobPtr};
use crate::format::page::{Expected, PAGE_BYTES};
use crate::format::record::{BlobKind, PageNote, PagesHeader, Stamp};
use crate::index::{PageAt, PageRef, PageSink, PageSource, PageTag};
use crate::types::{BLOCK_BYTES, PagePtr, Pba, Seq};

/// Payload blocks of a Pages record: what its header of one block can list.
const PAGES_OF_RECORD: u32 = 96;
/// Bytes of the buffers of slow work: the longest record.
pub(super) const SLOW_BUFFER_BYTES: u32 = 1 << 20;
const BLOCK: usize = BLOCK_BYTES as usize;

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
        let mut bytes = self.0.read_blocks(page.ptr.pba, 1).await;
        if !page.ptr.copy.is_none() && !bytes.as_ref().is_ok_and(|b| self.0.keep(page, b).is_ok()) {
            bytes = self.0.read_blocks(page.ptr.copy, 1).await;
        }
        self.0.keep(page, &bytes?)
    }

    async fn breathe(&self) {
        aio_yield().await;
    }
}

/// Lets the rest of the core have a turn.
async fn aio_yield() {
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

/// Appends pages and pieces of blobs to segments of their own. One at a time for each store: checkpoints take turns.
pub(super) struct PageWriter {
    reader: PageReader,
    open: RefCell<Option<Batch>>,
    /// Pages that the new trees no longer refer to.
    dropped: RefCell<Vec<PageAt>>,
    /// Pages that were made.
    made: RefCell<Vec<Pba>>,
}

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
        if let Some(batch) = &*self.open.borrow()
            && let Some(bytes) = batch.page(page.ptr.pba)
        {
            return self.reader.0.keep(page, bytes);
        }
        self.reader.read(page).await
    }

    async fn breathe(&self) {
        self.reader.breathe().await;
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
        let pba = self.block(bytes, &note).await?;
        self.made.borrow_mut().push(pba);
        Ok((pba, Pba::NONE))
    }

    fn dropped(&self, page: &PageAt) {
        self.dropped.borrow_mut().push(*page);
    }
}

impl PageWriter {
    pub(super) fn new(store: Rc<Store>) -> Self {
        Self {
            reader: PageReader(store),
            open: RefCell::default(),
            dropped: RefCell::default(),
            made: RefCell::default(),
        }
    }

    fn store(&self) -> &Rc<Store> {
        &self.reader.0
    }

    /// The trees that were made count from now on: so do their pages.
    pub(super) fn count_pages(&self) {
        let mut inner = self.store().inner();
        for pba in self.made.borrow_mut().drain(..) {
            inner.space.add_live(pba);
        }
        for page in self.dropped.borrow_mut().drain(..) {
            inner.space.drop_live(page.ptr.pba);
            inner.cache.borrow_mut().forget(page.ptr.pba);
        }
    }

    /// Appends a block. It is on its device after [`finish`](Self::finish), and durable after a flush behind that.
    async fn block(&self, bytes: &[u8], note: &PageNote) -> Result<Pba, LvsError> {
        if self.open.borrow().as_ref().is_some_and(|b| b.blocks == b.limit) {
            self.finish().await?;
        }
        if self.open.borrow().is_none() {
            let batch = self.begin().await?;
            *self.open.borrow_mut() = Some(batch);
        }
        let mut open = self.open.borrow_mut();
        let batch = open.as_mut().expect("invariant: it was just opened");
        let at = (1 + batch.blocks as usize) * BLOCK;
        let pushed = batch.header.push(&mut batch.buf[..BLOCK], note);
        debug_assert!(pushed.is_ok(), "the limit leaves room");
        batch.buf[at..at + bytes.len()].copy_from_slice(bytes);
        batch.buf[at + bytes.len()..at + BLOCK].fill(0);
        batch.blocks += 1;
        Ok(batch.pba.plus(u64::from(batch.blocks)))
    }

    async fn begin(&self) -> Result<Batch, LvsError> {
        let buf = self.store().buffer().await;
        let mut inner = self.store().inner();
        let segment_blocks = inner.space.segment_blocks();
        let stream = match inner.page_stream.take() {
            Some(s) if s.offset + 2 <= segment_blocks => s,
            full => {
                if let Some(full) = full {
                    inner.space.close(full.segment, State::Pages);
                }
                let Some(segment) = inner.space.open_pages() else {
                    return Err(inner.out_of_segments());
                };
                Stream { segment, offset: 0 }
            }
        };
        inner.page_stream = Some(stream);
        let limit = PAGES_OF_RECORD.min(segment_blocks - stream.offset - 1);
        let pba = inner.space.first_block(stream.segment).plus(u64::from(stream.offset));
        Ok(Batch { header: PagesHeader::begin(), buf, pba, blocks: 0, limit })
    }

    /// Writes what was appended.
    pub(super) async fn finish(&self) -> Result<(), LvsError> {
        let Some(mut batch) = self.open.borrow_mut().take() else { return Ok(()) };
        let (descriptor, offset_bytes) = {
            let mut inner = self.store().inner();
            let stamp = Stamp { seq: Seq::ZERO, durable: Seq::ZERO, checkpoint: inner.checkpoint };
            batch.header.finish(&mut batch.buf[..BLOCK], &stamp, &inner.seal, batch.pba);
            if let Some(stream) = &mut inner.page_stream {
                stream.offset += 1 + batch.blocks;
            }
            inner.device_of(batch.pba)?
        };
        let len = (1 + batch.blocks) * BLOCK_BYTES;
        let (result, _) = descriptor.write_at(offset_bytes, len, batch.buf).await;
        self.store().wrote(batch.pba, result)
    }

    /// Appends a blob.
    pub(super) async fn blob(&self, kind: BlobKind, bytes: &[u8]) -> Result<BlobPtr, LvsError> {
        let checkpoint = self.store().inner().checkpoint + 1;
        let mut extents: Vec<BlobExtent> = Vec::new();
        for (index, piece) in bytes.chunks(BLOCK).enumerate() {
            let mut digest = Digest::new();
            digest.update(piece);
            digest.update(&[0; BLOCK][piece.len()..]);
            let note = PageNote::Blob { kind, checkpoint, index: index as u64, crc: digest.value() };
            let pba = self.block(piece, &note).await?;
            match extents.last_mut() {
                Some(last) if last.pba.plus(u64::from(last.blocks)) == pba => last.blocks += 1,
                _ => extents.push(BlobExtent { pba, blocks: 1 }),
            }
        }
        self.finish().await?;
        Ok(BlobPtr { len_bytes: bytes.len() as u64, crc: crc32c(bytes), extents, copy: Vec::new() })
    }
}

impl Store {
    /// Checks a page and puts it into the cache.
    fn keep(&self, page: &PageAt, bytes: &[u8]) -> Result<PageRef, LvsError> {
        let inner = self.inner();
        let wrong = |what: String| LvsError::Damaged { pool: inner.name.clone(), what };
        let bytes: &[u8; PAGE_BYTES] =
            bytes.first_chunk().ok_or_else(|| wrong("a map page is shorter than a page".to_owned()))?;
        let PageAt { line, level, ptr } = *page;
        let expected = Expected { pool: inner.uuid, line, level, crc: ptr.crc, newest: ptr.newest };
        let kept = inner.cache.borrow_mut().insert(ptr.pba, bytes, &expected);
        kept.map_err(|e| wrong(format!("the map page at {} is not what it should be: {e}", ptr.pba)))
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

    /// Reads a blob and checks it.
    pub(super) async fn read_blob(&self, ptr: &BlobPtr) -> Result<Vec<u8>, LvsError> {
        let mut bytes = Vec::new();
        for &BlobExtent { pba: first, blocks } in &ptr.extents {
            let mut done = 0;
            while done < blocks {
                let count = (blocks - done).min(SLOW_BUFFER_BYTES / BLOCK_BYTES);
                let buf = self.read_blocks(first.plus(u64::from(done)), count).await?;
                bytes.extend_from_slice(&buf[..count as usize * BLOCK]);
                done += count;
            }
        }
        let pool = self.inner().name.clone();
        bytes.truncate(ptr.len_bytes as usize);
        if !ptr.check_content(&bytes) {
            return Err(LvsError::Damaged { pool, what: "a table has a wrong checksum".to_owned() });
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
        for (member, descriptor) in &volatile {
            let flushed = descriptor.flush().await;
            let mut inner = self.inner();
            inner.slow_flush_ended(*member);
            if let Err(source) = flushed {
                inner.fail_pool("a disk failed to flush its cache");
                let disk = descriptor.device().name().to_owned();
                return Err(LvsError::Io { op: "flush", disk, source });
            }
        }
        let mut inner = self.inner();
        // Another flush may have failed meanwhile, and have taken with it what this one was to cover.
        inner.check_fault()?;
        inner.log.durable_to(covers);
        Ok(())
    }
}
