//! What the tests of the index share: seeded numbers, a log of pages in memory, an executor.

/// A seeded source of numbers (xorshift): a failure names its seed and repeats exactly.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `below`.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

use super::{PageAt, PageCache, PageRef, PageSink, PageSource, PageTag};
use crate::format::page::{Expected, PAGE_BYTES};
use crate::types::{PagePtr, Pba};
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A page as it stands in the log.
type Stored = (PageTag, Box<[u8; PAGE_BYTES]>);

/// A log of pages in memory, with a real cache before it.
pub(crate) struct Store {
    pub(crate) pages: RefCell<BTreeMap<u64, Stored>>,
    pub(crate) cache: RefCell<PageCache>,
    pub(crate) gone: RefCell<Vec<PageAt>>,
    /// Pages read that were not in the cache; by level.
    pub(crate) reads: RefCell<[u64; 16]>,
    pub(crate) appended: Cell<u64>,
    capacities: (usize, usize),
}

impl Store {
    pub(crate) fn new(capacities: (usize, usize), frames: usize) -> Self {
        Self {
            pages: RefCell::default(),
            cache: RefCell::new(PageCache::new(frames).unwrap()),
            gone: RefCell::default(),
            reads: RefCell::default(),
            appended: Cell::new(0),
            capacities,
        }
    }

    /// Removes what the last operation dropped: reading it from now on fails.
    pub(crate) fn forget_dropped(&self) {
        for page in self.gone.take() {
            let was = self.pages.borrow_mut().remove(&page.ptr.pba.bits());
            assert!(was.is_some(), "a page is dropped once");
            self.cache.borrow_mut().forget(page.ptr.pba);
        }
    }

    pub(crate) fn total_reads(&self) -> u64 {
        self.reads.borrow().iter().sum()
    }

    fn expected(&self, page: &PageAt) -> Expected {
        let PagePtr { crc, newest, .. } = page.ptr;
        Expected { pool: self.pool(), line: page.line, level: page.level, crc, newest }
    }
}

impl PageSource for Store {
    type Error = String;

    fn cached(&self, page: &PageAt) -> Option<PageRef> {
        self.cache.borrow_mut().get(&page.ptr)
    }

    async fn read(&self, page: &PageAt) -> Result<PageRef, String> {
        if let Some(page) = self.cached(page) {
            return Ok(page);
        }
        self.reads.borrow_mut()[usize::from(page.level)] += 1;
        let pages = self.pages.borrow();
        let bytes = pages.get(&page.ptr.pba.bits()).ok_or_else(|| format!("no page at {}", page.ptr.pba))?;
        let expected = self.expected(page);
        self.cache.borrow_mut().insert(page.ptr.pba, &bytes.1, &expected).map_err(|e| e.to_string())
    }

    async fn breathe(&self) {
        let mut waited = false;
        core::future::poll_fn(|_| {
            if core::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl PageSink for Store {
    fn pool(&self) -> Uuid {
        Uuid::from_u128(77)
    }

    async fn append(
        &self,
        bytes: &[u8; PAGE_BYTES],
        tag: &PageTag,
        ptr: &PagePtr,
    ) -> Result<(Pba, Pba), String> {
        assert!(ptr.pba.is_none());
        self.appended.set(self.appended.get() + 1);
        let pba = Pba::new(1, self.appended.get()).unwrap();
        self.pages.borrow_mut().insert(pba.bits(), (*tag, Box::new(*bytes)));
        Ok((pba, Pba::NONE))
    }

    fn capacities(&self) -> (usize, usize) {
        self.capacities
    }

    fn dropped(&self, page: &PageAt) {
        self.gone.borrow_mut().push(*page);
    }
}

/// Runs a future that only ever waits for its turn.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
