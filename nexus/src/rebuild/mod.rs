//! Copies what a child lacks from one that has it, while hosts go on.
//!
//! - `Job` (this file): one rebuild, its state and its figures. - `copy`: the copying. - [`History`]: those that ended.
//!
//! The child gets every new write from before the copying begins. Each segment is copied under the range lock, so that a
//! host's write comes before it, and is copied, or after it, and reaches the child by itself.
//!
//! # Thin stays thin
//! What reads as zeroes is unmapped on the child, not written. What the source did not hold when it was asked is not even read,
//! unless a host has written there since: hosts' writes are noted from before the child became a member, and looked up under the
//! range lock.
//!
//! # Sources
//! A segment that one child in sync cannot read comes from another one. None is read that was no member for a moment since
//! this began.

mod copy;
mod history;

pub(crate) use copy::{CopyError, hold, run, segment_buf};
pub use history::{History, RebuildRecord};

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::task::Waker;
use std::time::SystemTime;

use aio::BlockCount;

use crate::child::Mask;
use crate::dirty::DirtyMap;

/// What a rebuild is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RebuildState {
    /// It has not begun.
    Init,
    /// It copies.
    Running,
    /// It was stopped; the child stays out of sync.
    Stopped,
    /// It waits to be resumed.
    Paused,
    /// A child failed.
    Failed,
    /// The child has everything.
    Completed,
}

impl RebuildState {
    /// Mayastor's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Completed => "completed",
        }
    }

    fn is_over(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Completed)
    }
}

/// The figures of a rebuild.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RebuildStats {
    /// What it is doing.
    pub state: RebuildState,
    /// Blocks of the nexus.
    pub blocks_total: u64,
    /// Blocks that were copied.
    pub blocks_recovered: u64,
    /// Blocks that are to be copied yet.
    pub blocks_remaining: u64,
    /// Percent of what was to be copied.
    pub progress: u32,
    /// Length of a block, in bytes.
    pub block_size: u64,
    /// Blocks that are copied at once.
    pub segment_blocks: u64,
    /// Segments that may be copied at one time.
    pub tasks_total: u32,
    /// Segments that are being copied.
    pub tasks_active: u32,
    /// Only what the child missed is copied.
    pub is_partial: bool,
    /// When it began.
    pub start_time: SystemTime,
}

/// One rebuild. Lives on the home core.
pub(crate) struct Job {
    pub(crate) place: usize,
    pub(crate) uri: String,
    pub(crate) source_uri: RefCell<String>,
    /// The place of the child that is read.
    source: Cell<usize>,
    /// That child is no member any more: what it holds grows old.
    source_lost: Cell<bool>,
    /// All that are no members any more since it was read from.
    lost: Cell<Mask>,
    /// What is to be copied; what was copied is taken out.
    pub(crate) map: DirtyMap,
    /// Of that, what the source did not hold when it was asked: it is not read, but made to read as zeroes.
    pub(crate) holes: DirtyMap,
    /// What hosts changed since the child became a member.
    pub(crate) written: Arc<DirtyMap>,
    /// It is known what is to be copied.
    planned: Cell<bool>,
    is_partial: Cell<bool>,
    /// Segments at the beginning.
    segments: Cell<u64>,
    pub(crate) copied: Cell<u64>,
    state: Cell<RebuildState>,
    /// Nobody wants it any more.
    abandoned: Cell<bool>,
    /// Tasks that copy.
    pub(crate) at_work: Cell<u32>,
    waiting: RefCell<Vec<Waker>>,
    pub(crate) start_time: SystemTime,
    block_bytes: u32,
    blocks_total: u64,
}

impl Job {
    pub(crate) fn new(
        place: usize,
        uri: String,
        written: Arc<DirtyMap>,
        block_bytes: u32,
        blocks_total: u64,
    ) -> Self {
        let size = BlockCount(blocks_total);
        Self {
            place,
            uri,
            source_uri: RefCell::default(),
            source: Cell::new(usize::MAX),
            source_lost: Cell::new(false),
            lost: Cell::new(0),
            map: DirtyMap::clean(size, block_bytes),
            holes: DirtyMap::clean(size, block_bytes),
            written,
            planned: Cell::new(false),
            is_partial: Cell::new(false),
            segments: Cell::new(0),
            copied: Cell::new(0),
            state: Cell::new(RebuildState::Init),
            abandoned: Cell::new(false),
            at_work: Cell::new(0),
            waiting: RefCell::default(),
            start_time: SystemTime::now(),
            block_bytes,
            blocks_total,
        }
    }

    pub(crate) fn state(&self) -> RebuildState {
        self.state.get()
    }

    /// The map says what is to be copied: only what the child lacks (`is_partial`), or everything that there is.
    pub(crate) fn planned(&self, is_partial: bool) {
        self.planned.set(true);
        self.is_partial.set(is_partial);
        self.segments.set(self.map.marked());
    }

    /// See [`planned`](Self::planned).
    pub(crate) fn is_planned(&self) -> bool {
        self.planned.get()
    }

    /// Goes on to `state`, unless it is over.
    pub(crate) fn set_state(&self, state: RebuildState) {
        if !self.state.get().is_over() {
            self.state.set(state);
        }
        self.wake();
    }

    /// Whoever waits looks again.
    pub(crate) fn wake(&self) {
        self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// Its child is no member any more, or it is to stop.
    pub(crate) fn abandon(&self) {
        self.abandoned.set(true);
        self.set_state(RebuildState::Stopped);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.get()
    }

    /// Reads from the child at `place` from now on.
    pub(crate) fn read_from(&self, place: usize, uri: String) {
        self.source.set(place);
        self.source_uri.replace(uri);
        self.source_lost.set(false);
        self.lost.set(0);
    }

    /// The child at `place` is no member any more.
    pub(crate) fn lose_source(&self, place: usize) {
        self.lost.set(self.lost.get() | 1 << place);
        if self.source.get() == place {
            self.source_lost.set(true);
            self.wake();
        }
    }

    /// The child at `place` has been no member for some time since the copying from there began: it is not read.
    pub(crate) fn has_lost(&self, place: usize) -> bool {
        self.lost.get() & 1 << place != 0
    }

    pub(crate) fn has_lost_source(&self) -> bool {
        self.source_lost.get()
    }

    /// Nothing more is to be copied, or not from there.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.is_abandoned() || self.has_lost_source()
    }

    /// Resolves when `done` says so; asked again whenever something changed.
    pub(crate) async fn until(&self, done: impl Fn(&Self) -> bool) {
        std::future::poll_fn(|cx| {
            if done(self) {
                return std::task::Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            std::task::Poll::Pending
        })
        .await;
    }

    /// Percent of what was to be copied.
    pub(crate) fn progress_percent(&self) -> u32 {
        let done = self.copied.get().min(self.segments.get());
        done.saturating_mul(100)
            .checked_div(self.segments.get())
            .map_or(if self.is_planned() { 100 } else { 0 }, |p| p as u32)
    }

    pub(crate) fn stats(&self) -> RebuildStats {
        let left = if self.is_planned() { self.segments.get() } else { u64::MAX / self.map.segment_blocks() };
        let blocks = |segments: u64| (segments * self.map.segment_blocks()).min(self.blocks_total);
        RebuildStats {
            state: self.state(),
            blocks_total: self.blocks_total,
            blocks_recovered: blocks(self.copied.get()),
            blocks_remaining: blocks(left.saturating_sub(self.copied.get())),
            progress: self.progress_percent(),
            block_size: u64::from(self.block_bytes),
            segment_blocks: self.map.segment_blocks(),
            tasks_total: copy::TASKS,
            tasks_active: self.at_work.get(),
            is_partial: self.is_partial.get(),
            start_time: self.start_time,
        }
    }
}
