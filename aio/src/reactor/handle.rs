//! The rest of the process's view of a core.

use std::future::{Future, poll_fn};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::thread;

use super::CoreId;
use super::core::Core;
use super::mailbox::{Job, Mailbox, PostError};
use super::oneshot::oneshot;
use super::stats::{CoreStats, Counters};

/// What a core and its handles share.
pub(super) struct Shared {
    id: CoreId,
    mailbox: Mailbox,
    counters: Counters,
    stop: AtomicBool,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Shared {
    pub(super) fn new(id: CoreId, mailbox_capacity: usize) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            id,
            mailbox: Mailbox::new(mailbox_capacity)?,
            counters: Counters::default(),
            stop: AtomicBool::new(false),
            thread: Mutex::new(None),
        }))
    }

    pub(super) fn id(&self) -> CoreId {
        self.id
    }

    pub(super) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn set_thread(&self, thread: thread::JoinHandle<()>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }
}

/// The reactor stopped before it answered, or what it ran panicked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("core {0} gave no answer: its reactor has stopped, or what it was asked to do failed")]
pub struct CoreGone(pub CoreId);

/// Reaches a core from any thread: other cores, tokio tasks, helper threads.
#[derive(Clone)]
pub struct CoreHandle(pub(super) Arc<Shared>);

impl CoreHandle {
    /// Which core.
    pub fn id(&self) -> CoreId {
        self.0.id
    }

    /// Queues `job` to run on the core, in order. It must not block there. The mailbox is bounded: a full one refuses.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) -> Result<(), PostError> {
        self.post_boxed(Box::new(job))
    }

    /// As [`post`](Self::post) for a job that is boxed already.
    pub fn post_boxed(&self, job: Job) -> Result<(), PostError> {
        self.0.mailbox.post(job).map_err(|(why, _job)| why)
    }

    /// Runs the future that `f` makes as a task on the core, and awaits its result here. Works from every
    /// executor. Waits for room when the mailbox is full.
    ///
    /// Dropping the returned future before the job was taken undoes the call; later the task runs to its end on
    /// the core and its result is dropped.
    pub fn call<F, Fut, T>(&self, f: F) -> impl Future<Output = Result<T, CoreGone>> + Send + 'static
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let shared = self.0.clone();
        async move {
            let (tx, rx) = oneshot();
            let job: Job = Box::new(move || {
                let core = Core::current().expect("invariant: jobs run inside their reactor");
                // Detached: the oneshot carries the result.
                drop(core.spawn(async move { tx.send(f().await) }));
            });
            let gone = CoreGone(shared.id);
            let mut job = Some(job);
            poll_fn(|cx| {
                let Some(next) = job.take() else { return Poll::Ready(Ok(())) };
                match shared.mailbox.post_or_wait(next, cx.waker()) {
                    Ok(()) => Poll::Ready(Ok(())),
                    Err((PostError::Gone, _)) => Poll::Ready(Err(gone)),
                    Err((PostError::Full, back)) => {
                        job = Some(back);
                        Poll::Pending
                    }
                }
            })
            .await?;
            rx.await.ok_or(gone)
        }
    }

    /// Makes the core do a turn, waking it when it sleeps: for devices whose completions come from other threads
    /// and are found by polling. Costs no syscall while the core is awake.
    pub fn wake(&self) {
        self.0.mailbox.wake();
    }

    /// Asks the reactor to leave [`run`](super::Reactor::run). What is still there is dropped, so drain first.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
        self.0.mailbox.wake();
    }

    /// The reactor is no more: everything posted is refused.
    pub fn is_gone(&self) -> bool {
        self.0.mailbox.is_closed()
    }

    /// Waits for the end of a reactor thread made by [`spawn_thread`](super::spawn_thread), after
    /// [`stop`](Self::stop). Blocks; returns at once for a reactor without a thread of its own, at the second call,
    /// and on the thread itself.
    pub fn join(&self) {
        let mut slot = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let own = slot.as_ref().is_some_and(|t| t.thread().id() == thread::current().id());
        let thread = if own { None } else { slot.take() };
        drop(slot);
        if let Some(thread) = thread {
            // A panic of the reactor was reported by the panic hook, and its end shows in `is_gone`.
            let _ = thread.join();
        }
    }

    /// The core's counters.
    pub fn stats(&self) -> CoreStats {
        self.0.counters.read()
    }
}

impl std::fmt::Debug for CoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CoreHandle({})", self.0.id)
    }
}
