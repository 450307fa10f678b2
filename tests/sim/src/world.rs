//! Everything that one seed decides: clock, network, and reactors that take turns in one thread.

use std::cell::RefCell;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aio::memory::{Memory, PoolsConfig};
use aio::reactor::{Core, CoreId, EngineChoice, Reactor, ReactorConfig, Turn};
use aio::{Clock as _, Instant, Sleep};

use crate::clock::SimClock;
use crate::net::{NetConfig, SimNet};
use crate::rng::Rng;
use crate::seeds::{Outcome, Violation};
use crate::trace::Trace;

/// Turns without any progress of time after which a run counts as spinning for ever.
const MAX_TURNS_AT_ONE_INSTANT: u32 = 20_000;

/// One simulated world.
pub struct World {
    /// For the scenario's own choices.
    pub rng: Rng,
    /// Virtual time.
    pub clock: Rc<SimClock>,
    /// The network between the hosts.
    pub net: SimNet,
    /// Every event.
    pub trace: Rc<Trace>,
    reactors: Vec<Reactor>,
    memory: Arc<Memory>,
    turns_at_this_instant: u32,
}

impl World {
    /// The world of `seed`; `config` is given the chance to draw its faults.
    pub fn new(seed: u64, verbose: bool, config: impl FnOnce(&mut Rng) -> NetConfig) -> Self {
        let mut rng = Rng::new(seed);
        let clock = Rc::new(SimClock::new());
        let trace = Rc::new(if verbose { Trace::with_tail() } else { Trace::new() });
        let config = config(&mut rng);
        let net = SimNet::new(config, clock.clone(), rng.fork(1), trace.clone());
        let memory = Memory::process();
        Self { rng, clock, net, trace, reactors: Vec::new(), memory, turns_at_this_instant: 0 }
    }

    /// A core of the host with address `ip`. Hosts may have several.
    pub fn add_core(&mut self, ip: IpAddr) -> Core {
        self.add_core_with(ip, PoolsConfig::default())
    }

    /// The same with buffers of one's own choice.
    pub fn add_core_with(&mut self, ip: IpAddr, pools: PoolsConfig) -> Core {
        let config = ReactorConfig {
            pin: false,
            spin_window: Duration::ZERO,
            engine: EngineChoice::None,
            memory: self.memory.clone(),
            pools,
            ..ReactorConfig::new(CoreId(self.reactors.len() as u32))
        };
        let reactor = Reactor::with_parts(config, self.clock.clone(), self.net.host(ip))
            .expect("invariant: a reactor without an engine asks nothing of the system");
        let core = reactor.core();
        self.reactors.push(reactor);
        core
    }

    /// Runs `f` as code of that core.
    pub fn enter<R>(&self, core: &Core, f: impl FnOnce() -> R) -> R {
        let reactor = self.reactors.iter().find(|r| r.core().id() == core.id());
        reactor.expect("invariant: the core belongs to this world").enter(f)
    }

    /// One turn of every core, in an order that the seed decides; when all were idle, time moves on to what happens
    /// next, and no further than `until`. False = nothing will ever happen by itself.
    pub fn step(&mut self, until: Instant) -> bool {
        let mut order: Vec<usize> = (0..self.reactors.len()).collect();
        self.rng.shuffle(&mut order);
        // A core may call itself idle after it moved bytes that completed nothing; its peer has something to do.
        let events = self.trace.events();
        let mut busy = None;
        for i in order {
            if self.reactors[i].turn() == Turn::Busy {
                busy = Some(i);
            }
        }
        let moved = self.trace.events() != events;
        self.turns_at_this_instant += 1;
        if busy.is_some() || moved {
            let spinning = self.turns_at_this_instant >= MAX_TURNS_AT_ONE_INSTANT;
            assert!(!spinning, "core {busy:?} is busy for ever without time going on, bytes move: {moved}");
            return true;
        }
        let Some(next) = self.next_event() else { return false };
        if next > self.clock.now() {
            self.turns_at_this_instant = 0;
            self.clock.advance_to(next.min(until));
        }
        true
    }

    /// When anything happens next: the network, a timer, or (now) a core that wants to poll.
    fn next_event(&mut self) -> Option<Instant> {
        let mut next = self.net.next_event();
        for reactor in &mut self.reactors {
            let at = match reactor.prepare() {
                Sleep::KeepPolling => self.clock.now(),
                Sleep::Until(at) => at.max(self.clock.now()),
                Sleep::Armed => continue,
            };
            next = Some(next.map_or(at, |n| n.min(at)));
        }
        next
    }

    /// Steps until `done` says so; an error when that has not happened after `limit` of virtual time, or never will.
    pub fn run_until(
        &mut self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), Violation> {
        let end = self.clock.now() + limit;
        loop {
            if done(self) {
                return Ok(());
            }
            let stuck = !self.step(end);
            if stuck && !done(self) {
                return Err(self.violation(format!("{what}: nothing moves any more")));
            }
            if self.clock.now() >= end && !done(self) {
                return Err(self.violation(format!("{what}: not done after {limit:?}")));
            }
        }
    }

    /// Runs a task on `core` to its end while the world goes on.
    pub fn block_on<T: 'static>(
        &mut self,
        core: &Core,
        limit: Duration,
        what: &str,
        task: impl Future<Output = T> + 'static,
    ) -> Result<T, Violation> {
        let mut handle = pin!(core.spawn(task));
        let result = RefCell::new(None);
        self.run_until(limit, what, |_| {
            if result.borrow().is_none()
                && let Poll::Ready(value) = handle.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            {
                *result.borrow_mut() = Some(value);
            }
            result.borrow().is_some()
        })?;
        match result.into_inner() {
            Some(Ok(value)) => Ok(value),
            _ => Err(self.violation(format!("{what}: the task panicked"))),
        }
    }

    /// Turns for `time` of virtual time.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.clock.now() + time;
        while self.clock.now() < end {
            if !self.step(end) {
                self.clock.advance_to(end);
            }
        }
    }

    /// The virtual time.
    pub fn clock_now(&self) -> Instant {
        self.clock.now()
    }

    /// A violation with the last events.
    pub fn violation(&self, what: impl Into<String>) -> Violation {
        let at = self.clock.now().as_ns();
        Violation { what: format!("{} (at {at} ns)", what.into()), trail: self.trace.tail() }
    }

    /// What a run that went well reports. A panic that a reactor caught is a violation all the same.
    pub fn outcome(&self, checked: u64) -> Result<Outcome, Violation> {
        let panics: u64 = self.reactors.iter().map(|r| r.core().stats().panics).sum();
        if panics > 0 {
            return Err(self.violation("a poller or task panicked"));
        }
        Ok(Outcome { hash: self.trace.hash(), checked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_moves_to_the_next_timer_and_not_beyond_the_limit() {
        let mut world = World::new(1, false, |_| NetConfig::calm());
        let core = world.add_core("10.0.0.1".parse().unwrap());
        let start = world.clock.now();
        let sleeper = core.clone();
        world
            .block_on(&core, Duration::from_secs(100), "sleep", async move {
                sleeper.sleep(Duration::from_secs(7)).await;
            })
            .unwrap();
        assert_eq!(world.clock.now().since(start), Duration::from_secs(7));
        let forever = std::future::pending::<()>();
        let error = world.block_on(&core, Duration::from_secs(1), "wait", forever).unwrap_err();
        assert!(error.what.contains("nothing moves"), "{error:?}");
    }

    #[test]
    fn a_panic_in_a_task_is_a_violation() {
        let mut world = World::new(1, false, |_| NetConfig::calm());
        let core = world.add_core("10.0.0.1".parse().unwrap());
        let error = world.block_on(&core, Duration::from_secs(1), "task", async { panic!("x") });
        assert!(error.unwrap_err().what.contains("panicked"));
        assert!(world.outcome(1).is_err());
    }
}
