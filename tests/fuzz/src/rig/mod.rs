//! A whole target on one core, with peers that are bytes of the input.
//!
//! Time only moves when told, streams are in memory, and the device is a small RAM disk: the same input does
//! the same every time. A new target serves each input; the buffers are the thread's, so that an input that
//! does not give all of them back is seen.
//!
//! - `wire`: the two ends of a connection in memory. - [`script`]: what is done to the target's bytes on their
//!   way to a host of ours.

mod script;
mod wire;

use aio::memory::{DmaPools, Memory, PoolClass, PoolsConfig};
use aio::reactor::{Core, Turn};
use aio::reactor::{EngineChoice, ManualClock, Reactor};
use aio::{Clock as _, CoreId, DeviceUri, ReactorConfig, Sleep};
use nvmf::target::core::{CoreConfig, TargetCore};
use nvmf::target::{ListenerId, NamespaceSpec, SubsystemSpec, Target, TargetConfig};
pub(crate) use script::{Kind, Script, record};
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use wire::{Lines, TargetEnd, Wire};

/// The subsystem that the target has.
pub(crate) const NQN: &str = "nqn.2019-05.io.openebs:fuzz";
/// Longer than every time-out of a connection.
const LONG: Duration = Duration::from_secs(40);
/// No honest step takes as many.
const MAX_TURNS_AT_ONE_INSTANT: u32 = 20_000;

/// What outlives an input.
struct Bench {
    reactor: Reactor,
    clock: Rc<ManualClock>,
    lines: Rc<Lines>,
    memory: Arc<Memory>,
    pools: DmaPools,
}

thread_local! {
    /// Never dropped with its thread: a reactor's end needs thread-locals of its own, which may be gone by then.
    static BENCH: RefCell<Option<ManuallyDrop<Bench>>> = const { RefCell::new(None) };
}

impl Bench {
    fn new() -> Self {
        let memory = Memory::process();
        let clock = Rc::new(ManualClock::default());
        // Few and small: an input that makes the target run out of buffers is worth finding.
        let class = |chunk_bytes, capacity| PoolClass { chunk_bytes, capacity };
        let pools = PoolsConfig { classes: vec![class(4 << 10, 16), class(32 << 10, 4)] };
        let config = ReactorConfig {
            pin: false,
            engine: EngineChoice::None,
            memory: memory.clone(),
            pools: pools.clone(),
            ..ReactorConfig::new(CoreId(0))
        };
        let lines = Rc::new(Lines::default());
        let reactor = Reactor::with_parts(config, clock.clone(), lines.clone())
            .expect("a reactor without an engine asks nothing of the system");
        let pools = DmaPools::new(&memory, &pools).expect("memory for a few buffers");
        Self { reactor, clock, lines, memory, pools }
    }
}

/// A target and its peers, for one input.
pub(crate) struct Rig {
    bench: Bench,
    core: Rc<RefCell<TargetCore>>,
    listener: ListenerId,
    wires: Vec<Rc<RefCell<Wire>>>,
}

impl Rig {
    /// A target with one subsystem of one namespace of 256 KiB.
    pub(crate) fn new() -> Self {
        let mut bench = BENCH.take().map_or_else(Bench::new, ManuallyDrop::into_inner);
        let config = TargetConfig { max_io_bytes: 32 << 10, queue_entries: 32, ..TargetConfig::default() };
        let target = Target::new(config);
        let uri: DeviceUri = "malloc:///fuzz?num_blocks=512".parse().expect("a good URI");
        let device = aio::devices::create(&uri).expect("a small RAM disk");
        // Before there is a core nobody has to be waited for.
        now(target.create_subsystem(SubsystemSpec { ana_groups: 1, ..SubsystemSpec::new(NQN) }))
            .expect("a good NQN");
        now(target.add_namespace(NQN, NamespaceSpec::new(device))).expect("a free nsid");
        let listener = target.add_listener(SocketAddr::from(([127, 0, 0, 1], 8420)));
        let inbox = target.attach_core(|| ());
        let limits = CoreConfig {
            rx_chunk_bytes: 128 << 10,
            rx_chunks: 4,
            max_connections: 8,
            ..CoreConfig::default()
        };
        let core = bench.reactor.enter(|| {
            TargetCore::new(target, inbox, bench.lines.clone(), bench.pools.clone(), &bench.memory, limits)
        });
        let core = Rc::new(RefCell::new(core.expect("memory for a few chunks")));
        bench.reactor.core().add_poller(core.clone());
        for _ in 0..3 {
            bench.reactor.turn();
        }
        Self { bench, core, listener, wires: Vec::new() }
    }

    /// A new connection whose sends take `window` bytes at a time; returns its number.
    pub(crate) fn connect(&mut self, window: usize) -> usize {
        self.adopt(Wire::new(window));
        self.wires.len() - 1
    }

    fn adopt(&mut self, wire: Rc<RefCell<Wire>>) {
        let stream = Box::new(TargetEnd(wire.clone()));
        self.bench.reactor.enter(|| self.core.borrow_mut().adopt(self.listener, stream));
        self.wires.push(wire);
    }

    /// The core that target and hosts share.
    pub(crate) fn core(&self) -> Core {
        self.bench.reactor.core()
    }

    /// What happens to the connections that hosts of this core make from now on, the first one first; those beyond
    /// get an honest target. Each send and receive moves at most `window` bytes.
    pub(crate) fn expect_hosts(&mut self, scripts: Vec<Script>, window: usize) {
        self.bench.lines.expect(scripts, window);
    }

    /// Turns, with time moving on to the next timer whenever nothing else happens, until `done`.
    ///
    /// # Panics
    /// After `limit`, or when nothing can happen any more: something hangs.
    pub(crate) fn run_until(&mut self, limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
        let end = self.bench.clock.now() + limit;
        let mut turns = 0;
        while !done() {
            turns += 1;
            assert!(turns < MAX_TURNS_AT_ONE_INSTANT, "{what}: busy for ever without time going on");
            let now = self.bench.clock.now();
            assert!(now < end, "{what}: not done after {limit:?}");
            if self.turn() {
                continue;
            }
            match self.bench.reactor.prepare() {
                Sleep::Until(at) if at > now => {
                    self.bench.clock.advance(at.min(end).since(now));
                    turns = 0;
                }
                Sleep::Until(_) | Sleep::KeepPolling => {}
                Sleep::Armed => assert!(done(), "{what}: nothing moves any more"),
            }
        }
    }

    /// One turn of everything; whether anything happened.
    fn turn(&mut self) -> bool {
        let moved = |wires: &[Rc<RefCell<Wire>>]| wires.iter().map(|w| w.borrow().moved).sum::<u64>();
        let before = moved(&self.wires);
        let busy = self.bench.reactor.turn() == Turn::Busy;
        let dialed = self.bench.lines.dialed();
        let any = !dialed.is_empty();
        dialed.into_iter().for_each(|wire| self.adopt(wire));
        busy || any || moved(&self.wires) != before
    }

    /// Bytes of the peer.
    pub(crate) fn feed(&mut self, connection: usize, bytes: &[u8]) {
        self.wires[connection].borrow_mut().incoming.extend(bytes);
    }

    /// The peer is gone.
    pub(crate) fn end(&mut self, connection: usize) {
        self.wires[connection].borrow_mut().ended = true;
    }

    /// Lets the target work, and time pass.
    pub(crate) fn run(&mut self, turns: usize, time: Duration) {
        self.bench.clock.advance(time);
        for _ in 0..turns {
            self.turn();
        }
    }

    /// Ends all connections. Then nothing of them may be left: no connection, no buffer, and no panic on the way.
    /// Returns what was sent on each.
    pub(crate) fn finish(mut self) -> Vec<Vec<u8>> {
        (0..self.wires.len()).for_each(|connection| self.end(connection));
        self.run(64, Duration::ZERO);
        for _ in 0..4 {
            self.run(16, LONG);
        }
        assert_eq!(self.core.borrow().connections(), 0, "a connection outlives its peer");
        self.bench.reactor.enter(|| self.core.borrow_mut().stop());
        self.run(16, Duration::ZERO);
        assert_eq!(Rc::strong_count(&self.core), 1, "the reactor lets go of a target that has stopped");
        let stats = self.bench.reactor.core().stats();
        assert_eq!(stats.panics, 0, "a panic that the reactor contained");
        assert_eq!(self.core().live_tasks(), 0, "a task outlives its host");
        for wire in &self.wires {
            assert_eq!(Rc::strong_count(wire), 1, "an end of a connection is kept open");
        }
        let Self { bench, core, wires, .. } = self;
        drop(core);
        for pool in bench.pools.classes() {
            assert_eq!(pool.available(), pool.capacity(), "a buffer of {} bytes is lost", pool.chunk_bytes());
        }
        let sent = wires.iter().map(|wire| std::mem::take(&mut wire.borrow_mut().sent)).collect();
        BENCH.set(Some(ManuallyDrop::new(bench)));
        sent
    }
}

/// The outcome of a future that has nothing to wait for.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nothing to wait for, and it waits"),
    }
}
