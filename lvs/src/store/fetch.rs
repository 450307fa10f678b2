//! Map pages that are being read: for I/Os of volumes that wait for them, and ahead of walks over trees.
//!
//! A page is read once, however many wait for it, and many pages at a time; I/Os for which there is no place wait in
//! line. The devices are asked as they are for data, without a task. What cannot be read that way, or is not what it
//! has to be, goes to the slow path, which knows of second copies.
//!
//! An I/O that waits here holds the segments (H4), so a page that it was led to is still there when it comes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use aio::{DmaBuf, DmaPool, IoStatus, Opcode};

use super::io::Stage;
use super::member::{self, Owner};
use super::pages::PageReader;
use super::{Inner, Store};
use crate::index::{PREFETCH, PageAt, PageSource};
use crate::types::BLOCK_BYTES;

/// Pages that are read at a time.
pub(super) const MOST: usize = 2 * PREFETCH;

/// A page on its way.
#[derive(Default)]
struct Fetch {
    page: Option<PageAt>,
    buf: Option<DmaBuf>,
    /// I/Os that go on when it is there.
    ios: Vec<u32>,
    /// Tasks that do.
    wakers: Vec<Waker>,
}

/// All of them, and who could not be served yet.
pub(super) struct Fetches {
    slots: Vec<Fetch>,
    active: usize,
    buffers: DmaPool,
    /// I/Os that need a page and found no slot, in order.
    waiting: VecDeque<u32>,
    /// Writes that have to know what they overwrite, with the page that tells; only while records are built.
    pub(super) looking: Vec<(u32, PageAt)>,
    /// Pages for the slow path, with the I/Os that wait for each.
    failed: VecDeque<(PageAt, Vec<u32>)>,
}

impl Fetches {
    /// `buffers`: [`MOST`] of a block each.
    pub(super) fn new(buffers: DmaPool) -> Self {
        let slot = || Fetch { ios: Vec::with_capacity(16), ..Fetch::default() };
        let slots = (0..MOST).map(|_| slot()).collect();
        let waiting = VecDeque::with_capacity(64);
        Self { slots, active: 0, buffers, waiting, looking: Vec::new(), failed: VecDeque::new() }
    }

    /// Is a page on its way?
    pub(super) fn is_active(&self) -> bool {
        self.active > 0
    }

    /// Is there work for the slow path?
    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Takes the I/Os out that `which` says.
    pub(super) fn take(&mut self, which: impl Fn(&u32) -> bool) -> Vec<u32> {
        let mut found = Vec::new();
        let mut take = |ios: &mut Vec<u32>| {
            found.extend(ios.iter().copied().filter(&which));
            ios.retain(|io| !which(io));
        };
        self.slots.iter_mut().for_each(|fetch| take(&mut fetch.ios));
        self.failed.iter_mut().for_each(|(_, ios)| take(ios));
        let mut waiting = Vec::from(core::mem::take(&mut self.waiting));
        take(&mut waiting);
        self.waiting = waiting.into();
        found
    }

    /// Nobody waits any more: the devices are gone.
    pub(super) fn give_up(&mut self) {
        for fetch in &mut self.slots {
            (fetch.page, fetch.buf) = (None, None);
            fetch.ios.clear();
            fetch.wakers.drain(..).for_each(Waker::wake);
        }
        self.active = 0;
        self.waiting.clear();
        self.failed.clear();
    }

    fn of(&mut self, page: &PageAt) -> Option<&mut Fetch> {
        let same = |at: &PageAt| at.ptr.pba == page.ptr.pba && at.ptr.crc == page.ptr.crc;
        self.slots.iter_mut().find(|fetch| fetch.page.as_ref().is_some_and(same))
    }
}

impl Inner {
    /// The I/O goes on when the page is in the cache.
    pub(super) fn starve(&mut self, io: u32, page: &PageAt) {
        if let Some(fetch) = self.fetches.of(page) {
            fetch.ios.push(io);
        } else if let Some(at) = self.fetch(page) {
            self.fetches.slots[at].ios.push(io);
        } else if usize::from(page.ptr.pba.member()) >= self.members.len() {
            self.fetches.failed.push_back((*page, vec![io]));
        } else {
            self.fetches.waiting.push_back(io);
        }
    }

    /// The page will be wanted soon. At most half of the slots are for such.
    pub(super) fn prefetch(&mut self, page: &PageAt) {
        let here = self.cache.borrow().has(&page.ptr);
        if !here && self.fetches.active < PREFETCH && self.fetches.of(page).is_none() {
            let _ = self.fetch(page);
        }
    }

    /// Begins to read a page; `None` when there is no slot.
    fn fetch(&mut self, page: &PageAt) -> Option<usize> {
        let member = page.ptr.pba.member();
        if usize::from(member) >= self.members.len() {
            return None;
        }
        let at = self.fetches.slots.iter().position(|fetch| fetch.page.is_none())?;
        let buf = self.fetches.buffers.alloc()?;
        let index = self.ops.take();
        let op = &mut self.ops[index];
        op.sg.clear();
        op.sg.push(buf.sg(0, BLOCK_BYTES));
        (op.member, op.opcode, op.fua, op.pba, op.blocks) = (member, Opcode::Read, false, page.ptr.pba, 1);
        op.owner = Owner::Page(at as u32);
        let fetch = &mut self.fetches.slots[at];
        (fetch.page, fetch.buf) = (Some(*page), Some(buf));
        self.fetches.active += 1;
        // SAFETY: the buffer stays in its slot until the operation completes, or the devices are gone.
        unsafe { member::offer(&mut self.members, &self.ops, index) };
        Some(at)
    }

    /// A page has come, or could not be read.
    pub(super) fn fetched(&mut self, at: u32, status: IoStatus) {
        let fetch = &mut self.fetches.slots[at as usize];
        let (Some(page), Some(buf)) = (fetch.page.take(), fetch.buf.take()) else { return };
        let mut ios = core::mem::take(&mut fetch.ios);
        fetch.wakers.drain(..).for_each(Waker::wake);
        self.fetches.active -= 1;
        let good = status == IoStatus::SUCCESS && self.keep(&page, &buf).is_ok();
        drop(buf);
        if good {
            ios.drain(..).for_each(|io| self.look_again(io));
            let list = &mut self.fetches.slots[at as usize].ios;
            if list.capacity() == 0 {
                *list = ios;
            }
        } else if !ios.is_empty() {
            self.fetches.failed.push_back((page, ios));
        }
        while self.fetches.active < MOST
            && let Some(io) = self.fetches.waiting.pop_front()
        {
            self.look_again(io);
        }
    }

    fn look_again(&mut self, io: u32) {
        match self.ios[io].stage {
            Stage::Edges => self.start_read_edges(io),
            // It waited for the map at the end of the space.
            Stage::Write => {
                self.release_segments(io);
                self.pending.push_front(io);
            }
            _ => self.start_read(io),
        }
    }
}

impl Store {
    /// Waits until a page that is being read has come; at once when it is not.
    pub(super) async fn fetched(&self, page: &PageAt) {
        poll_fn(|cx| {
            let mut inner = self.inner();
            let Some(fetch) = inner.fetches.of(page) else { return Poll::Ready(()) };
            if !fetch.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                fetch.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Reads pages that could not be read at the first attempt, and lets the I/Os that wait for them go on.
    pub(super) async fn feed(self: Rc<Self>) {
        loop {
            // It stays in line meanwhile, so that a channel that goes finds its I/Os.
            let Some(page) = self.inner().fetches.failed.front().map(|(page, _)| *page) else { break };
            let read = PageReader(self.clone()).read(&page).await;
            let mut inner = self.inner();
            let Some((_, ios)) = inner.fetches.failed.pop_front() else { continue };
            for io in ios {
                if read.is_ok() {
                    inner.look_again(io);
                } else {
                    inner.ios[io].fail(IoStatus::UNRECOVERED_READ);
                    inner.finish(io);
                }
            }
            inner.publish();
        }
        self.feeding.set(false);
    }
}
