//! The core's own view of itself: what code that runs on it may ask for.

use core::time::Duration;
use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::engine::Engine;
use super::executor::{Executor, JoinHandle, spawn};
use super::handle::{CoreHandle, Shared};
use super::stats::CoreStats;
use super::timer::{SleepUntil, TimedOut, Timers};
use super::watch::Watch;
use super::{CoreId, EngineKind};
use crate::memory::{DmaPools, Memory, MemoryError, PoolsConfig};
use crate::poller::Poller;
use crate::ring::Ring;
use crate::stream::Network;
use crate::time::{Clock, Instant};

pub(super) type SharedPoller = Rc<RefCell<dyn Poller>>;

pub(super) struct CoreInner {
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Rc<dyn Clock>,
    pub(super) now: Cell<Instant>,
    pub(super) executor: Executor,
    pub(super) timers: Timers,
    pub(super) engine: Engine,
    pub(super) network: Rc<dyn Network>,
    /// Added since the last turn began.
    pub(super) new_pollers: RefCell<Vec<SharedPoller>>,
    pub(super) memory: Arc<Memory>,
    pub(super) pools_config: PoolsConfig,
    pub(super) pools: OnceCell<DmaPools>,
}

impl CoreInner {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn executor(&self) -> &Executor {
        &self.executor
    }
}

thread_local! {
    /// The core whose turn runs on this thread.
    static CURRENT: RefCell<Option<Core>> = const { RefCell::new(None) };
}

/// Runs `f` on the core whose turn runs on this thread, if there is one.
pub(super) fn with_current<R>(f: impl FnOnce(&CoreInner) -> R) -> Option<R> {
    // Fails only while the thread ends, when there is no reactor on it any more.
    CURRENT.try_with(|c| c.borrow().as_ref().map(|core| f(&core.0))).ok().flatten()
}

/// Makes a core the current one; the former comes back when dropped.
pub(super) struct Entered(Option<Core>);

impl Entered {
    pub(super) fn new(core: &Core) -> Self {
        Self(CURRENT.with(|c| c.borrow_mut().replace(core.clone())))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mine = CURRENT.with(|c| std::mem::replace(&mut *c.borrow_mut(), self.0.take()));
        drop(mine);
    }
}

/// A core, seen from its own thread. Cheap to clone, not `Send`.
#[derive(Clone)]
pub struct Core(pub(super) Rc<CoreInner>);

impl Core {
    /// The core whose reactor is running on this thread; `None` outside a turn.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|c| c.borrow().clone()).ok().flatten()
    }

    /// Which core.
    pub fn id(&self) -> CoreId {
        self.0.shared.id()
    }

    /// The turn's one clock reading. Outside a turn, that of the last one.
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }

    /// Has the reactor drive `poller` from the next turn on, until it says that it is finished.
    pub fn add_poller(&self, poller: Rc<RefCell<dyn Poller>>) {
        self.0.new_pollers.borrow_mut().push(poller);
    }

    /// Starts a task on this core. It first runs after the pollers of this or the next turn.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        spawn(&self.0, future)
    }

    /// Resolves `duration` after the current turn's reading.
    pub fn sleep(&self, duration: Duration) -> SleepUntil {
        self.sleep_until(self.now() + duration)
    }

    /// Resolves when the turn's clock reaches `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> SleepUntil {
        SleepUntil::new(self.clone(), deadline)
    }

    /// Awaits `future` for at most `duration`; then drops it.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Result<F::Output, TimedOut> {
        let mut future = pin!(future);
        let mut sleep = pin!(self.sleep(duration));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            sleep.as_mut().poll(cx).map(|()| Err(TimedOut))
        })
        .await
    }

    /// Where this core's streams come from.
    pub fn network(&self) -> Rc<dyn Network> {
        self.0.network.clone()
    }

    /// Reaches this core from other threads.
    pub fn handle(&self) -> CoreHandle {
        CoreHandle(self.0.shared.clone())
    }

    #[cfg(test)]
    pub(crate) fn watcher(&self) -> Option<super::watch::Watcher> {
        self.0.engine.watcher()
    }

    /// Watches the readiness of a descriptor that is not a socket of [`network`](Self::network): an interrupt's
    /// eventfd, a completion channel. An error when the reactor has no engine.
    pub fn watch<F: AsFd>(&self, fd: F) -> io::Result<Watch<F>> {
        let watcher = self.0.engine.watcher().ok_or(io::ErrorKind::Unsupported)?;
        Watch::new(watcher, fd)
    }

    /// What this core waits in.
    pub fn engine(&self) -> EngineKind {
        self.0.engine.kind()
    }

    /// The core's io_uring, when that is its engine: for the devices of this crate.
    pub(crate) fn ring(&self) -> Option<Rc<Ring>> {
        self.0.engine.io_ring().cloned()
    }

    /// The registry of memory regions.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.0.memory
    }

    /// This core's buffers, made at the first call.
    pub fn pools(&self) -> Result<DmaPools, MemoryError> {
        if let Some(pools) = self.0.pools.get() {
            return Ok(pools.clone());
        }
        let pools = DmaPools::new(&self.0.memory, &self.0.pools_config)?;
        Ok(self.0.pools.get_or_init(|| pools).clone())
    }

    /// This core's counters.
    pub fn stats(&self) -> CoreStats {
        self.0.shared.counters().read()
    }

    /// Tasks that are not finished.
    pub fn live_tasks(&self) -> usize {
        self.0.executor.live()
    }

    pub(super) fn timers(&self) -> &Timers {
        &self.0.timers
    }
}
