//! The per-core reactor: one thread a core that runs to completion.
//!
//! # Map
//! - [`Reactor`] (this file): the turn, the spin window, the sleep; [`spawn_thread`] gives it a thread.
//! - [`Core`]: what code on the core may ask for; [`CoreHandle`]: how the rest of the process reaches it.
//! - [`executor`](JoinHandle), [timers](SleepUntil), mailbox ([`CoreHandle::post`]), [`oneshot()`], [`offload()`].
//! - `engine`: io_uring, epoll, or none; [`Watch`]: readiness of a descriptor from either.
//! - [`MonotonicClock`], [`ManualClock`].
//!
//! # A turn
//! Read the clock once; mailbox; events of the engine; `poll` of every [`Poller`]; tasks that are ready; `kick` of every
//! poller and of the engine; due timers. Nothing in it waits, and a turn without work makes no syscall of its own.
//!
//! # Sleep
//! When the spin window has passed without work, every poller is asked to arm its wake-ups. If none objects the core
//! sleeps in one wait of its engine, until a descriptor, the mailbox, the nearest timer or the nearest time that a
//! poller named. There is no periodic tick.
//!
//! # Panics
//! A panic is a bug, and stays where it happened: the poller, task or job is dropped and counted, the core goes on.

mod clock;
mod core;
mod engine;
mod epoll;
mod executor;
mod handle;
mod mailbox;
mod offload;
mod oneshot;
mod stats;
mod thread;
mod timer;
pub(crate) mod watch;

use ::core::fmt;
use ::core::time::Duration;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

pub use clock::{ManualClock, MonotonicClock};
pub use executor::{JoinError, JoinHandle};
pub use handle::{CoreGone, CoreHandle};
pub use mailbox::{Job, PostError};
pub use offload::offload;
pub use oneshot::{Receiver, Sender, oneshot};
pub use stats::CoreStats;
pub(crate) use thread::unpin;
pub use thread::{allowed_cores, raise_descriptor_limit, spawn_thread};
pub use timer::{SleepUntil, TimedOut};
pub use watch::Watch;

pub use self::core::Core;

use self::core::{CoreInner, Entered, SharedPoller};
use self::engine::Engine;
use self::executor::{Executor, TaskKey};
use self::handle::Shared;
use self::stats::{Spent, TurnCounts};
use self::timer::Timers;
use crate::device::Sleep;
use crate::memory::{Memory, PoolsConfig};
use crate::net::{NoNetwork, SocketNetwork};
use crate::poller::Poller;
use crate::stream::Network;
use crate::time::{Clock, Instant};

/// Mailbox jobs that one turn runs.
const JOBS_A_TURN: usize = 256;
/// Tasks that one turn runs.
const TASKS_A_TURN: usize = 256;

/// Names a core: the number of its CPU when it is pinned, else any number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CoreId(pub u32);

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a reactor is asked to wait in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineChoice {
    /// io_uring, or epoll where io_uring is forbidden or too old.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// epoll.
    Epoll,
    /// No descriptors at all: simulation, or devices that only poll.
    None,
}

/// What a reactor waits in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineKind {
    /// io_uring.
    IoUring,
    /// epoll.
    Epoll,
    /// Neither.
    None,
}

/// Whether this process can use io_uring here; the error says why not.
pub fn probe_io_uring() -> io::Result<()> {
    crate::ring::probe()
}

/// How to make a reactor.
#[derive(Clone)]
pub struct ReactorConfig {
    /// Its name, and its CPU when pinned.
    pub core: CoreId,
    /// Pin the thread of [`spawn_thread`] to CPU `core`.
    pub pin: bool,
    /// How long to poll without finding work before going to sleep. Zero = sleep at once.
    pub spin_window: Duration,
    /// What to wait in.
    pub engine: EngineChoice,
    /// Submissions that fit between two kicks of the ring (8 to 4,096).
    pub ring_entries: u32,
    /// Jobs that wait in the mailbox before senders are refused.
    pub mailbox_capacity: usize,
    /// The registry of memory regions.
    pub memory: Arc<Memory>,
    /// The core's buffers: the cap on its I/O memory.
    pub pools: PoolsConfig,
}

impl ReactorConfig {
    /// The defaults: pinned, 50 us of spinning, io_uring or epoll.
    ///
    /// 50 us is a few round trips of a fast network or disk: whoever answers at once finds the core awake, and an
    /// idle core burns less than a thousandth of a second before it sleeps.
    pub fn new(core: CoreId) -> Self {
        Self {
            core,
            pin: true,
            spin_window: Duration::from_micros(50),
            engine: EngineChoice::Auto,
            ring_entries: 1024,
            mailbox_capacity: 1024,
            memory: Memory::process(),
            pools: PoolsConfig::default(),
        }
    }
}

/// What a turn found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Work; there may be more.
    Busy,
    /// Nothing.
    Idle,
}

/// A reactor. Lives on the thread that made it.
pub struct Reactor {
    core: Core,
    pollers: Vec<SharedPoller>,
    jobs: VecDeque<Job>,
    woken: Vec<TaskKey>,
    spin_window: Duration,
    /// Spin until then.
    spin_until: Instant,
    last_turn: Turn,
    slept: bool,
}

impl Reactor {
    /// A reactor on the system's clock and sockets. Errors are the system's: no io_uring though it was demanded, or
    /// no descriptors left.
    pub fn new(config: ReactorConfig) -> io::Result<Self> {
        Self::build(config, Rc::new(MonotonicClock), None)
    }

    /// A reactor on a given clock and network.
    pub fn with_parts(
        config: ReactorConfig,
        clock: Rc<dyn Clock>,
        network: Rc<dyn Network>,
    ) -> io::Result<Self> {
        Self::build(config, clock, Some(network))
    }

    fn build(
        config: ReactorConfig,
        clock: Rc<dyn Clock>,
        network: Option<Rc<dyn Network>>,
    ) -> io::Result<Self> {
        let shared = Shared::new(config.core, config.mailbox_capacity)?;
        let engine = Engine::new(config.engine, config.ring_entries, &shared)?;
        let network = match (network, engine.watcher()) {
            (Some(network), _) => network,
            (None, Some(watcher)) => Rc::new(SocketNetwork::new(watcher)),
            (None, None) => Rc::new(NoNetwork),
        };
        let now = clock.now();
        let core = Core(Rc::new(CoreInner {
            shared,
            clock,
            now: Cell::new(now),
            executor: Executor::default(),
            timers: Timers::new(),
            engine,
            network,
            new_pollers: RefCell::default(),
            memory: config.memory,
            pools_config: config.pools,
            pools: OnceCell::new(),
        }));
        Ok(Self {
            core,
            pollers: Vec::new(),
            jobs: VecDeque::new(),
            woken: Vec::new(),
            spin_window: config.spin_window,
            spin_until: now + config.spin_window,
            last_turn: Turn::Idle,
            slept: false,
        })
    }

    /// The core's own view, for setting it up before its first turn.
    pub fn core(&self) -> Core {
        self.core.clone()
    }

    /// Runs `f` as code of this core: [`Core::current`] is this core meanwhile.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        let _entered = Entered::new(&self.core);
        f()
    }

    /// One turn. Never blocks.
    pub fn turn(&mut self) -> Turn {
        let _entered = Entered::new(&self.core);
        let now = self.read_clock();
        let mut did = TurnCounts::default();
        let mut work = self.run_mailbox(&mut did);
        let inner = self.core.0.clone();
        work |= inner.engine.look(self.last_turn == Turn::Idle) > 0;
        work |= self.poll_all(now, &mut did);
        let (ran, panicked) = inner.executor.run(TASKS_A_TURN);
        did.task_polls = ran;
        did.panics += panicked;
        self.kick_all(&mut did);
        inner.engine.kick();
        did.timers_fired = inner.timers.fire(now);
        work |= ran + did.timers_fired + did.panics > 0;
        if work {
            self.spin_until = now + self.spin_window;
        }
        inner.shared.counters().turn(work, did);
        self.last_turn = if work { Turn::Busy } else { Turn::Idle };
        self.last_turn
    }

    /// Turns and sleeps until [`CoreHandle::stop`].
    pub fn run(&mut self) {
        while !self.core.0.shared.stopping() {
            if self.turn() == Turn::Idle && self.core.now() >= self.spin_until {
                self.sleep(None);
            }
        }
    }

    /// Arms every wake-up and sleeps until one comes, or `at_most`; returns at once when there is work. For loops that
    /// drive [`turn`](Self::turn) themselves; call it after an idle turn.
    pub fn sleep(&mut self, at_most: Option<Duration>) {
        let entered = Entered::new(&self.core);
        let now = self.core.now();
        let Some(until) = self.prepare_sleep(now) else {
            self.spin_until = now + self.spin_window;
            return;
        };
        let shared = self.core.0.shared.clone();
        if !shared.mailbox().begin_sleep() {
            return;
        }
        let timer = until.map(|t| t.since(now));
        let timeout = match (timer, at_most) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        shared.counters().sleep();
        self.core.0.engine.sleep(&shared, timeout);
        shared.mailbox().end_sleep();
        self.slept = true;
        drop(entered);
    }

    /// Arms every wake-up as [`sleep`](Self::sleep) does, without sleeping, and says until when nothing will happen by
    /// itself. For loops that wait in their own way or on their own clock, after an idle turn.
    pub fn prepare(&mut self) -> Sleep {
        let _entered = Entered::new(&self.core);
        match self.prepare_sleep(self.core.now()) {
            // As `sleep` finds when it announces itself.
            _ if self.core.0.shared.mailbox().is_pending() => Sleep::KeepPolling,
            None => Sleep::KeepPolling,
            Some(None) => Sleep::Armed,
            Some(Some(until)) => Sleep::Until(until),
        }
    }

    fn read_clock(&mut self) -> Instant {
        let now = self.core.0.clock.now();
        let spent = match (std::mem::take(&mut self.slept), self.last_turn) {
            (true, _) => Spent::Asleep,
            (false, Turn::Busy) => Spent::Busy,
            (false, Turn::Idle) => Spent::Spinning,
        };
        let before = self.core.0.now.replace(now);
        self.core.0.shared.counters().time(spent, now.as_ns().saturating_sub(before.as_ns()));
        now
    }

    fn run_mailbox(&mut self, did: &mut TurnCounts) -> bool {
        let inner = &self.core.0;
        let mut work = !self.jobs.is_empty();
        if !work {
            work = inner.shared.mailbox().drain(&mut self.jobs, &mut self.woken);
            if work {
                inner.executor.adopt_woken(&mut self.woken);
            }
        }
        for _ in 0..JOBS_A_TURN {
            let Some(job) = self.jobs.pop_front() else { break };
            did.jobs += 1;
            did.panics += usize::from(catch_unwind(AssertUnwindSafe(job)).is_err());
        }
        work
    }

    fn poll_all(&mut self, now: Instant, did: &mut TurnCounts) -> bool {
        let new = &self.core.0.new_pollers;
        let mut work = false;
        if !new.borrow().is_empty() {
            self.pollers.append(&mut new.borrow_mut());
            work = true;
        }
        let mut finished = false;
        self.each_poller(did, |p| {
            work |= p.poll(now) > 0;
            finished |= p.finished();
        });
        if finished {
            let (gone, stay) =
                std::mem::take(&mut self.pollers).into_iter().partition(|p| p.borrow().finished());
            self.pollers = stay;
            did.panics += Vec::into_iter(gone).map(drop_contained::<SharedPoller>).sum::<usize>();
        }
        work
    }

    fn kick_all(&mut self, did: &mut TurnCounts) {
        self.each_poller(did, |p| p.kick());
    }

    /// Asks everybody to arm; `None` = somebody has work. Else the time of the nearest timer or look.
    fn prepare_sleep(&mut self, now: Instant) -> Option<Option<Instant>> {
        let mut until = self.core.0.timers.next();
        let mut keep = false;
        let mut did = TurnCounts::default();
        self.each_poller(&mut did, |p| {
            // Once somebody objects nobody needs to arm.
            if keep {
                return;
            }
            match p.prepare_sleep(now) {
                Sleep::Armed => {}
                Sleep::KeepPolling => keep = true,
                Sleep::Until(t) => until = Some(until.map_or(t, |u| u.min(t))),
            }
        });
        let inner = &self.core.0;
        keep |= did.panics > 0 || inner.executor.has_ready() || !inner.new_pollers.borrow().is_empty();
        keep |= !self.jobs.is_empty();
        if keep { None } else { Some(until) }
    }

    /// Runs `f` on every poller. One that panics is dropped. The unwinding is caught around the loop rather than
    /// around each call, which keeps an empty turn cheap.
    fn each_poller(&mut self, did: &mut TurnCounts, mut f: impl FnMut(&mut dyn Poller)) {
        let mut at = 0;
        while at < self.pollers.len() {
            let pollers = &self.pollers;
            let caught = catch_unwind(AssertUnwindSafe(|| {
                while let Some(poller) = pollers.get(at) {
                    f(&mut *poller.borrow_mut());
                    at += 1;
                }
            }));
            if caught.is_err() {
                did.panics += 1 + drop_contained(self.pollers.remove(at));
            }
        }
    }
}

/// Drops `what`; returns how many panics that took.
fn drop_contained<T>(what: T) -> usize {
    usize::from(catch_unwind(AssertUnwindSafe(|| drop(what))).is_err())
}

impl Drop for Reactor {
    fn drop(&mut self) {
        let _entered = Entered::new(&self.core);
        let inner = self.core.0.clone();
        // Everything of the core goes while it is still the current one, and before its engine: channels that are
        // dropped with I/O in flight leave their memory to the ring, which waits for it.
        inner.shared.mailbox().close();
        self.jobs.clear();
        self.pollers.clear();
        loop {
            inner.executor.clear();
            let new = inner.new_pollers.take();
            if new.is_empty() {
                break;
            }
            // Their drops may spawn.
            drop(new);
        }
        inner.timers.clear();
        inner.engine.close();
    }
}

#[cfg(test)]
mod tests;
