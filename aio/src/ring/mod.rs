//! The io_uring of a core.
//!
//! # Map
//! - [`Ring`]: one ring a core, shared by everything on it: files, socket readiness, wake-ups. Who uses it
//!   registers a [`CqeSink`] and gets a [`SourceId`]; each entry it pushes carries source and slot as user
//!   data, and the completion comes back to the sink with the slot.
//! - [`polls`]: readiness of file descriptors by one-shot polls.
//!
//! # Syscalls
//! None while nothing happens: completions are looked for in the shared ring, and the kernel is entered only
//! to submit what a turn pushed (once, at its end), to run completion work that it flagged as waiting, and to
//! sleep.
//!
//! # Kernels
//! Needs 5.13 (waiting with a time-out, multishot polls). Deferred completion work (6.1) is preferred, because then nothing
//! interrupts a turn and completions come in batches; then cooperative (5.19); then neither. An older kernel,
//! or one where io_uring is forbidden, gets the epoll engine.
//!
//! Needs `unsafe` because entries name memory that the kernel uses until their completion.

pub(crate) mod polls;

use core::mem::MaybeUninit;
use core::time::Duration;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::device::Busy;

/// Completions that are taken from the ring at once.
const REAP_BATCH: usize = 64;
/// Batches that one turn takes, so that the other work of the core is not starved.
const REAP_BATCHES: usize = 4;
/// How long a closing ring waits for the kernel to let go of memory.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// User data of entries whose completion interests nobody.
const IGNORED: u64 = u64::MAX;

/// Receives the completions of one source.
pub(crate) trait CqeSink {
    /// The entry that was pushed with `slot` completed with `res` (negative: an errno). Called between turns'
    /// polling, never inside [`Ring::push`]; may push.
    fn complete(&self, slot: u32, res: i32, flags: u32);

    /// Entries of this source name memory, so that the ring must not end before they completed.
    fn owns_memory(&self) -> bool {
        true
    }
}

/// Names a registered sink on its ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SourceId(u32);

struct Source {
    sink: Rc<dyn CqeSink>,
    in_flight: u32,
    retired: bool,
}

/// How the kernel runs completion work, by preference.
#[derive(Clone, Copy)]
enum TaskRun {
    Deferred,
    Cooperative,
    Interrupting,
}

pub(crate) struct Ring {
    io: RefCell<IoUring>,
    sources: RefCell<Vec<Option<Source>>>,
    /// Cancellations that found no room, of entries that have not completed.
    overdue_cancels: RefCell<Vec<u64>>,
    /// Takes no entries any more.
    closed: Cell<bool>,
}

impl Ring {
    /// A ring for the calling thread with room for `entries` submissions a turn. Errors are the kernel's:
    /// `EPERM` or `ENOSYS` when io_uring is forbidden or absent, `Unsupported` when it is too old.
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let entries = entries.clamp(8, 4096).next_power_of_two();
        let mut last = None;
        for task_run in [TaskRun::Deferred, TaskRun::Cooperative, TaskRun::Interrupting] {
            let mut builder = IoUring::builder();
            builder.setup_clamp().setup_cqsize(entries * 4).dontfork();
            match task_run {
                TaskRun::Deferred => {
                    builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
                }
                TaskRun::Cooperative => {
                    builder.setup_coop_taskrun().setup_taskrun_flag();
                }
                TaskRun::Interrupting => {}
            }
            match builder.build(entries) {
                Ok(io) => return Self::with(io),
                // The flags are too new for this kernel: ask for less.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
    }

    fn with(io: IoUring) -> io::Result<Self> {
        let p = io.params();
        // Resource tags came with the multishot polls that wake-ups use.
        if !(p.is_feature_ext_arg() && p.is_feature_nodrop() && p.is_feature_resource_tagging()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            io: RefCell::new(io),
            sources: RefCell::default(),
            overdue_cancels: RefCell::default(),
            closed: Cell::new(false),
        })
    }

    /// Adds a sink. It stays until [`retire`](Self::retire) and its last completion.
    pub(crate) fn register(&self, sink: Rc<dyn CqeSink>) -> SourceId {
        let mut sources = self.sources.borrow_mut();
        let source = Some(Source { sink, in_flight: 0, retired: false });
        let index = match sources.iter().position(Option::is_none) {
            Some(free) => {
                sources[free] = source;
                free
            }
            None => {
                sources.push(source);
                sources.len() - 1
            }
        };
        SourceId(index as u32)
    }

    /// The source pushes nothing more. Its sink, and with it whatever memory its slots own, is kept until the
    /// last completion was delivered. The name may be reused after that.
    pub(crate) fn retire(&self, source: SourceId) {
        if let Some(Some(s)) = self.sources.borrow_mut().get_mut(source.0 as usize) {
            s.retired = true;
        }
        self.drop_if_done(source);
    }

    /// Queues an entry; [`kick`](Self::kick) hands it to the kernel. `Busy` = no room even after handing over
    /// what was queued; try again in a later turn.
    ///
    /// # Safety
    /// Everything that `entry` points to stays valid, and is left alone as the operation demands, until the
    /// sink got the completion for `slot` (the last one, for entries that complete several times).
    pub(crate) unsafe fn push(&self, entry: squeue::Entry, source: SourceId, slot: u32) -> Result<(), Busy> {
        if self.closed.get() {
            return Err(Busy);
        }
        // SAFETY: promised by the caller.
        unsafe { self.push_raw(&entry.user_data(user_data(source, slot)))? };
        let mut sources = self.sources.borrow_mut();
        let source = sources.get_mut(source.0 as usize).and_then(Option::as_mut);
        source.expect("invariant: only registered sources push").in_flight += 1;
        Ok(())
    }

    /// # Safety
    /// As [`push`](Self::push).
    unsafe fn push_raw(&self, entry: &squeue::Entry) -> Result<(), Busy> {
        let mut io = self.io.borrow_mut();
        // SAFETY: promised by the caller.
        if unsafe { io.submission().push(entry) }.is_ok() {
            return Ok(());
        }
        // Full within one turn: hand over early. An error leaves the queue full, which the retry shows.
        let _ = io.submit();
        // SAFETY: promised by the caller.
        unsafe { io.submission().push(entry) }.map_err(|_| Busy)
    }

    /// Asks the kernel to stop an entry in flight. It completes in any case.
    pub(crate) fn cancel(&self, source: SourceId, slot: u32) {
        self.cancel_raw(user_data(source, slot));
    }

    fn cancel_raw(&self, target: u64) {
        let entry = opcode::AsyncCancel::new(target).build().user_data(IGNORED);
        // SAFETY: a cancellation names no memory.
        if unsafe { self.push_raw(&entry) }.is_err() {
            self.overdue_cancels.borrow_mut().push(target);
        }
    }

    /// The entry of this user data has completed: its name may be given to another one from now on, which a
    /// cancellation that still waits for room must not hit.
    fn forget_cancel(&self, target: u64) {
        let mut overdue = self.overdue_cancels.borrow_mut();
        if !overdue.is_empty() {
            overdue.retain(|waiting| *waiting != target);
        }
    }

    /// Delivers completions that are there; returns how many. No syscall unless the kernel flagged work.
    pub(crate) fn reap(&self) -> usize {
        let mut total = 0;
        for _ in 0..REAP_BATCHES {
            let n = self.reap_batch();
            total += n;
            if n < REAP_BATCH {
                break;
            }
        }
        total
    }

    fn reap_batch(&self) -> usize {
        let mut batch = [const { MaybeUninit::<cqueue::Entry>::uninit() }; REAP_BATCH];
        let mut io = self.io.borrow_mut();
        if io.completion().is_empty() {
            let sq = io.submission();
            let flagged = sq.taskrun() || sq.cq_overflow();
            drop(sq);
            if !flagged {
                return 0;
            }
            // Submits as well, since the kernel is entered anyway. An error means nothing was done: the flag
            // stays and the next turn tries again.
            let _ = io.submit();
        }
        let filled = io.completion().fill(&mut batch);
        // Released before delivery, so that sinks may use the ring.
        drop(io);
        for cqe in filled.iter() {
            self.deliver(cqe);
        }
        filled.len()
    }

    fn deliver(&self, cqe: &cqueue::Entry) {
        if cqe.user_data() == IGNORED {
            return;
        }
        let source = SourceId((cqe.user_data() >> 32) as u32);
        let last = !cqueue::more(cqe.flags());
        if last {
            self.forget_cancel(cqe.user_data());
        }
        let sink = {
            let mut sources = self.sources.borrow_mut();
            let Some(Some(s)) = sources.get_mut(source.0 as usize) else { return };
            s.in_flight -= u32::from(last);
            s.sink.clone()
        };
        sink.complete(cqe.user_data() as u32, cqe.result(), cqe.flags());
        drop(sink);
        if last {
            self.drop_if_done(source);
        }
    }

    fn drop_if_done(&self, source: SourceId) {
        let mut sources = self.sources.borrow_mut();
        let Some(place) = sources.get_mut(source.0 as usize) else { return };
        let done = place.take_if(|s| s.retired && s.in_flight == 0);
        drop(sources);
        // Outside the borrow: the sink may own anything.
        drop(done);
    }

    /// Hands what was queued to the kernel, if anything was: one syscall for all.
    pub(crate) fn kick(&self) {
        if !self.overdue_cancels.borrow().is_empty() {
            for target in self.overdue_cancels.take() {
                self.cancel_raw(target);
            }
        }
        let mut io = self.io.borrow_mut();
        if !io.submission().is_empty() {
            // `EBUSY` or `EAGAIN`: the entries stay queued, and the next turn offers them again.
            let _ = io.submit();
        }
    }

    /// Submits and sleeps until a completion is there or `timeout` is over.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let ts = timeout.map(Timespec::from);
        let args = match &ts {
            Some(ts) => SubmitArgs::new().timespec(ts),
            None => SubmitArgs::new(),
        };
        let mut io = self.io.borrow_mut();
        let to_submit = io.submission().len() as u32;
        let mut flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if io.params().is_feature_no_iowait() {
            // An idle core that polls sockets waits for no disk, and must not look as if it did.
            flags |= EnterFlags::NO_IOWAIT;
        }
        // Every error means that the core is awake again: the time is over (`ETIME`), a signal came (`EINTR`),
        // or completions have to be taken first (`EBUSY`).
        // SAFETY: the flag says that the argument is of this type; it lives through the call.
        let _ = unsafe { io.submitter().enter(to_submit, 1, flags.bits(), Some(&args)) };
    }

    fn memory_in_flight(&self) -> bool {
        self.sources.borrow().iter().flatten().any(|s| s.in_flight > 0 && s.sink.owns_memory())
    }

    /// Stops admission, cancels everything and waits until the kernel has let go of all memory. Returns false when it
    /// did not in time: then the ring has to be kept, with the sinks whose memory may still be written to.
    #[must_use]
    pub(crate) fn close(&self) -> bool {
        if self.closed.replace(true) {
            return !self.memory_in_flight();
        }
        let deadline = std::time::Instant::now() + DRAIN_LIMIT;
        self.cancel_everything();
        while self.memory_in_flight() {
            if std::time::Instant::now() >= deadline {
                return false;
            }
            self.wait(Some(Duration::from_millis(50)));
            self.reap();
        }
        let sources = self.sources.take();
        drop(sources);
        true
    }

    fn cancel_everything(&self) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(IGNORED);
        // SAFETY: a cancellation names no memory. Kernels before 5.19 refuse it; there the entries complete in
        // their own time.
        let _ = unsafe { self.push_raw(&entry) };
        self.kick();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.close() {
            std::mem::forget(self.sources.take());
        }
    }
}

fn user_data(source: SourceId, slot: u32) -> u64 {
    u64::from(source.0) << 32 | u64::from(slot)
}

/// Whether this process can use io_uring here; the error says why not.
pub(crate) fn probe() -> io::Result<()> {
    Ring::new(8).map(drop)
}

#[cfg(test)]
mod tests;
