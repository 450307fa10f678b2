//! Verifies everything that is live while the pool is in use, slowly.
//!
//! # Map
//! - This file: beginning, end, pace. - `walk`: the log's blocks, and leaf by leaf every tree with its pages and blocks.
//! - `meta`: labels, anchors, tables. - `harm`: which volumes and snapshots see what is lost.
//!
//! Everything is read from the disks, also what is in memory. Blocks are read without holding anything up, many together in
//! the order of their places; one that is not what it should be is looked up again and read again while its segment is held
//! (H4), so what was overwritten, unmapped, purged or moved meanwhile is no error. What was written since the scrub began may
//! be looked at or not.
//!
//! What has another good copy is written anew by what does so anyway: pages by the next merge, tables and anchors by the
//! next checkpoint, a label in place as the offline repair does it. Data stands once.

mod harm;
mod meta;
mod walk;

use core::cell::{Cell, RefCell};
use core::time::Duration;
use std::rc::Rc;
use std::time::SystemTime;

use aio::Instant;

use super::pages::SLOW_BUFFER_BYTES;
use super::{LOOK_AGAIN, Store};
use crate::LvsError;
use crate::info::{ScrubReport, ScrubState};
use crate::types::BLOCK_BYTES;

/// Bytes a second when nobody says otherwise: what disks of any kind have to spare.
const DEFAULT_RATE: u64 = 200 << 20;
/// Bytes of one read at most: an I/O of a volume that comes right behind it waits for as much.
const PIECE_BYTES: u32 = SLOW_BUFFER_BYTES / 4;
/// While volumes are in use a scrub rests this many times as long as its reads took, whatever its rate is.
const YIELD: u32 = 4;
/// Volumes are in use until they were quiet for so long.
const QUIET: Duration = Duration::from_millis(2);
/// The longest time until it notices that it is to stop.
const NAP: Duration = Duration::from_millis(50);
/// Notes on metadata that are kept.
const MOST_NOTES: usize = 100;

/// The scrub of a store: the one that runs, or what is known of the last one since the pool was opened.
#[derive(Default)]
pub(super) struct Scrub {
    running: Cell<bool>,
    /// How many were begun.
    begun: Cell<u64>,
    stop: Cell<bool>,
    report: RefCell<ScrubReport>,
}

impl Scrub {
    pub(super) fn is_running(&self) -> bool {
        self.running.get()
    }
}

/// Why it ended before its end.
enum Halt {
    Stopped,
    Failed(LvsError),
}

impl From<LvsError> for Halt {
    fn from(error: LvsError) -> Self {
        Self::Failed(error)
    }
}

impl Store {
    /// Begins a scrub in the background. [`LvsError::ScrubRuns`] while one runs. `rate_bytes_s`: bytes a second at most.
    pub(crate) fn start_scrub(self: &Rc<Self>, rate_bytes_s: Option<u64>) -> Result<ScrubReport, LvsError> {
        let rate_bytes_s = rate_bytes_s.unwrap_or(DEFAULT_RATE).max(1);
        let blocks = {
            let inner = self.inner();
            if self.closing.get() {
                return Err(LvsError::Closed { pool: inner.name.clone() });
            }
            if self.scrub.running.replace(true) {
                return Err(LvsError::ScrubRuns { pool: inner.name.clone() });
            }
            let deltas = [Some(&inner.active), inner.frozen.as_deref(), inner.aside.as_ref()];
            let in_log: u64 = deltas.into_iter().flatten().map(|delta| delta.len().0 as u64).sum();
            inner.lines.iter().map(super::lines::Line::live_blocks).sum::<u64>() + in_log
        };
        self.scrub.stop.set(false);
        self.scrub.begun.set(self.scrub.begun.get() + 1);
        self.scrub.report.replace(ScrubReport {
            state: ScrubState::Running,
            started: Some(SystemTime::now()),
            rate_bytes_s,
            data_bytes_in_all: blocks * u64::from(BLOCK_BYTES),
            ..ScrubReport::default()
        });
        let store = self.clone();
        drop(self.core.spawn(async move { store.scrub_in_background(rate_bytes_s).await }));
        Ok(self.scrub_report())
    }

    /// Stops the scrub that runs, if one does, and waits for its end.
    pub(crate) async fn stop_scrub(&self) -> ScrubReport {
        self.scrub.stop.set(true);
        self.scrub_ended().await
    }

    /// Waits for the end of the scrub that runs, if one does.
    pub(crate) async fn scrub_ended(&self) -> ScrubReport {
        let this = self.scrub.begun.get();
        while self.scrub.is_running() && self.scrub.begun.get() == this {
            self.core.sleep(if self.scrub.stop.get() { LOOK_AGAIN } else { NAP }).await;
        }
        self.scrub_report()
    }

    /// How far it is, or what the last one found.
    pub(crate) fn scrub_report(&self) -> ScrubReport {
        self.scrub.report.borrow().clone()
    }

    async fn scrub_in_background(self: Rc<Self>, rate_bytes_s: u64) {
        let ended = Scrubber::new(self.clone(), rate_bytes_s).run().await;
        let mut report = self.scrub.report.borrow_mut();
        report.ended = Some(SystemTime::now());
        report.state = match ended {
            Ok(()) => ScrubState::Finished,
            Err(Halt::Stopped) => ScrubState::Stopped,
            Err(Halt::Failed(error)) => {
                report.failure = Some(error.to_string());
                ScrubState::Failed
            }
        };
        self.scrub.running.set(false);
    }
}

/// A scrub at work.
struct Scrubber {
    store: Rc<Store>,
    rate_bytes_s: u64,
    /// Bytes that were read since it rested, and how long that took.
    read_bytes: Cell<u64>,
    took: Cell<Duration>,
    /// Blocks of data that are to be read.
    batch: Vec<super::verify::Found>,
    /// Pages that have to be written anew.
    mends: Vec<walk::Mend>,
}

impl Scrubber {
    fn new(store: Rc<Store>, rate_bytes_s: u64) -> Self {
        let (read_bytes, took) = Default::default();
        Self { store, rate_bytes_s, read_bytes, took, batch: Vec::new(), mends: Vec::new() }
    }

    async fn run(mut self) -> Result<(), Halt> {
        self.superblocks().await?;
        self.tables().await?;
        self.log().await?;
        self.lines().await
    }

    /// Changes the report.
    fn note(&self, change: impl FnOnce(&mut ScrubReport)) {
        change(&mut self.store.scrub.report.borrow_mut());
    }

    /// Something about metadata, in words.
    fn tell(&self, what: String) {
        self.note(|report| match report.metadata.len() < MOST_NOTES {
            true => report.metadata.push(what),
            false => report.metadata_left_out += 1,
        });
    }

    fn check_stop(&self) -> Result<(), Halt> {
        let stop = self.store.scrub.stop.get() || self.store.closing.get();
        if stop { Err(Halt::Stopped) } else { Ok(()) }
    }

    /// So many bytes were read since `began`.
    fn has_read(&self, bytes: u64, began: Instant) {
        self.note(|report| report.read_bytes += bytes);
        self.read_bytes.set(self.read_bytes.get() + bytes);
        self.took.set(self.took.get() + self.store.core.now().since(began));
    }

    /// Others' turn, once enough was read; and whether to go on at all.
    async fn rest(&self) -> Result<(), Halt> {
        self.check_stop()?;
        if self.read_bytes.get() < u64::from(PIECE_BYTES) {
            return Ok(());
        }
        let (bytes, took) = (self.read_bytes.take(), self.took.take());
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate_bytes_s);
        let by_rate = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)).saturating_sub(took);
        let in_use = self.store.inner().is_in_use(QUIET);
        let mut left = by_rate.max(if in_use { took * YIELD } else { LOOK_AGAIN });
        while !left.is_zero() {
            let nap = left.min(NAP);
            self.store.core.sleep(nap).await;
            left -= nap;
            self.check_stop()?;
        }
        Ok(())
    }
}

impl super::Inner {
    /// Volumes have I/O at work, or had within `quiet`.
    fn is_in_use(&self, quiet: Duration) -> bool {
        self.ios.used() > 0 || self.now < self.budget.host_at.max(self.read_at) + quiet
    }
}
