//! The local executor: tasks that are not `Send`, run by their core between polling and kicking.
//!
//! A waker may be used from any thread. On the task's own core it pushes to the ready queue; elsewhere it goes
//! through the mailbox. A task is queued at most once. Running a task allocates nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::core::{CoreInner, with_current};
use super::drop_contained;
use super::handle::Shared;

/// Names a task: slot and how often the slot was used before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TaskKey {
    index: u32,
    generation: u32,
}

struct TaskWaker {
    key: TaskKey,
    /// Already in a ready queue.
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let local = with_current(|core| {
            let mine = std::ptr::eq(Arc::as_ptr(core.shared()), Arc::as_ptr(&self.shared));
            if mine {
                core.executor().ready.borrow_mut().push_back(self.key);
            }
            mine
        });
        if local != Some(true) {
            self.shared.mailbox().push_woken(self.key);
        }
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    handle: Arc<TaskWaker>,
    waker: Waker,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    /// Occupied; `task` is away while it runs.
    used: bool,
    /// Aborted while it ran.
    aborted: bool,
    task: Option<Task>,
}

#[derive(Default)]
pub(super) struct Executor {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<TaskKey>>,
    /// Panics in drops of futures, since the last run.
    panics: Cell<usize>,
}

impl Executor {
    fn insert(&self, shared: &Arc<Shared>, future: Pin<Box<dyn Future<Output = ()>>>) -> TaskKey {
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot::default());
            (slots.len() - 1) as u32
        });
        let slot = &mut slots[index as usize];
        let key = TaskKey { index, generation: slot.generation };
        let handle = Arc::new(TaskWaker { key, queued: AtomicBool::new(true), shared: shared.clone() });
        let waker = Waker::from(handle.clone());
        slot.used = true;
        slot.aborted = false;
        slot.task = Some(Task { future, handle, waker });
        self.ready.borrow_mut().push_back(key);
        key
    }

    /// Queues tasks that were woken on other threads.
    pub(super) fn adopt_woken(&self, woken: &mut Vec<TaskKey>) {
        self.ready.borrow_mut().extend(woken.drain(..));
    }

    /// Tasks wait to run.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    /// Tasks that are not finished.
    pub(super) fn live(&self) -> usize {
        self.slots.borrow().iter().filter(|s| s.used).count()
    }

    /// Runs the tasks that are ready now, at most `budget`; those that they wake run in the next turn.
    /// Returns how many ran, and how many of them panicked.
    pub(super) fn run(&self, budget: usize) -> (usize, usize) {
        let batch = self.ready.borrow().len().min(budget);
        let (mut ran, mut panicked) = (0, 0);
        for _ in 0..batch {
            let Some(key) = self.ready.borrow_mut().pop_front() else { break };
            let Some(mut task) = self.take(key) else { continue };
            ran += 1;
            // Cleared before the run, so that a wake-up during it queues the task again. Exchanged rather than stored:
            // what a wake-up that still finds it set has announced must be visible to this run.
            task.handle.queued.swap(false, Ordering::AcqRel);
            let mut cx = Context::from_waker(&task.waker);
            let future = task.future.as_mut();
            match catch_unwind(AssertUnwindSafe(|| future.poll(&mut cx))) {
                Ok(Poll::Pending) => self.put_back(key, task),
                Ok(Poll::Ready(())) => self.finish(key, task),
                Err(_) => {
                    panicked += 1;
                    self.finish(key, task);
                }
            }
        }
        (ran, panicked + self.panics.take())
    }

    fn take(&self, key: TaskKey) -> Option<Task> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation { slot.task.take() } else { None }
    }

    fn put_back(&self, key: TaskKey, task: Task) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key.index as usize];
        if slot.aborted {
            drop(slots);
            self.finish(key, task);
        } else {
            slot.task = Some(task);
        }
    }

    fn finish(&self, key: TaskKey, task: Task) {
        {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[key.index as usize];
            slot.used = false;
            slot.generation = slot.generation.wrapping_add(1);
            self.free.borrow_mut().push(key.index);
        }
        // Outside the borrow: what the future owned may spawn, wake or abort when dropped.
        self.panics.set(self.panics.get() + drop_contained(task));
    }

    fn abort(&self, key: TaskKey) {
        let task = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get_mut(key.index as usize) else { return };
            if slot.generation != key.generation || !slot.used {
                return;
            }
            slot.aborted = true;
            slot.task.take()
        };
        if let Some(task) = task {
            self.finish(key, task);
        }
    }

    /// Drops all tasks, also those that the drops spawn.
    pub(super) fn clear(&self) {
        loop {
            let next = self.slots.borrow_mut().iter_mut().enumerate().find_map(|(i, s)| {
                Some((TaskKey { index: i as u32, generation: s.generation }, s.task.take()?))
            });
            let Some((key, task)) = next else { break };
            self.finish(key, task);
        }
        self.ready.borrow_mut().clear();
    }
}

/// Why a task gave no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JoinError {
    /// It was aborted, or its reactor stopped.
    #[error("the task was aborted")]
    Aborted,
    /// It panicked; the panic hook has said where.
    #[error("the task panicked")]
    Panicked,
}

struct Join<T> {
    result: RefCell<Option<Result<T, JoinError>>>,
    waiter: RefCell<Option<Waker>>,
    done: Cell<bool>,
}

impl<T> Join<T> {
    fn set(&self, result: Result<T, JoinError>) {
        if self.done.replace(true) {
            return;
        }
        *self.result.borrow_mut() = Some(result);
        let waiter = self.waiter.borrow_mut().take();
        if let Some(w) = waiter {
            w.wake();
        }
    }
}

/// Answers for the task when its future is dropped before it finished.
struct Guard<T>(Rc<Join<T>>);

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        let why = if std::thread::panicking() { JoinError::Panicked } else { JoinError::Aborted };
        self.0.set(Err(why));
    }
}

/// Awaits a task's result. Dropping it lets the task run on.
pub struct JoinHandle<T> {
    join: Rc<Join<T>>,
    core: Weak<CoreInner>,
    key: TaskKey,
}

impl<T> JoinHandle<T> {
    /// Drops the task at its next suspension point (at once, unless it is the one that runs).
    pub fn abort(&self) {
        if let Some(core) = self.core.upgrade() {
            core.executor().abort(self.key);
        }
    }

    /// The task has ended in some way.
    pub fn is_finished(&self) -> bool {
        self.join.done.get()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.join.result.borrow_mut().take() {
            return Poll::Ready(result);
        }
        *self.join.waiter.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Starts `future` on the core of `inner`.
pub(super) fn spawn<T: 'static>(
    inner: &Rc<CoreInner>,
    future: impl Future<Output = T> + 'static,
) -> JoinHandle<T> {
    let join =
        Rc::new(Join { result: RefCell::new(None), waiter: RefCell::new(None), done: Cell::new(false) });
    let guard = Guard(join.clone());
    let task = async move {
        let value = future.await;
        guard.0.set(Ok(value));
    };
    let key = inner.executor().insert(inner.shared(), Box::pin(task));
    JoinHandle { join, core: Rc::downgrade(inner), key }
}
