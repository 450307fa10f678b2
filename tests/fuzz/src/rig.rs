//! A whole target on one core, with peers that are bytes of the input.
//!
//! Time only moves when told, streams are in memory, and the device is a small RAM disk: the same input does
//! the same every time. A new target serves each input; the buffers are the thread's, so that an input that
//! does not give all of them back is seen.

#![allow(unsafe_code, reason = "ByteStream names memory by pointers, as sockets do")]

use aio::memory::{DmaPools, Memory, PoolClass, PoolsConfig};
use aio::reactor::{EngineChoice, ManualClock, Reactor};
use aio::{ByteStream, CoreId, DeviceUri, Listener, Network, ReactorConfig, Ready, SgEntry};
use nvmf::target::core::{CoreConfig, TargetCore};
use nvmf::target::{ListenerId, NamespaceSpec, SubsystemSpec, Target, TargetConfig};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The subsystem that the target has.
pub(crate) const NQN: &str = "nqn.2019-05.io.openebs:fuzz";
/// More than any reply to one input; a target that says more has lost count.
const MAX_SENT: usize = 64 << 20;
/// Longer than every time-out of a connection.
const LONG: Duration = Duration::from_secs(40);

/// What the two ends of a stream share.
#[derive(Default)]
pub(crate) struct Wire {
    incoming: VecDeque<u8>,
    ended: bool,
    pub(crate) sent: Vec<u8>,
    /// Most bytes that one send takes.
    window: usize,
    shut: bool,
}

/// The target's end.
struct Stream(Rc<RefCell<Wire>>);

impl ByteStream for Stream {
    unsafe fn recv(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let mut wire = self.0.borrow_mut();
        let mut count = 0;
        for entry in bufs {
            let take = (entry.len_bytes as usize).min(wire.incoming.len());
            for (at, byte) in wire.incoming.drain(..take).enumerate() {
                // SAFETY: the caller promises that all bytes the entry names are writable; `at` is below its length.
                unsafe { entry.ptr.add(at).write(byte) };
            }
            count += take;
        }
        let asked = bufs.iter().any(|entry| entry.len_bytes > 0);
        Ok(if count == 0 && !(wire.ended && asked) { None } else { Some(count) })
    }

    unsafe fn send(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let mut wire = self.0.borrow_mut();
        assert!(!wire.shut, "a send after the end was announced");
        let mut left = wire.window;
        for entry in bufs {
            let take = (entry.len_bytes as usize).min(left);
            // SAFETY: the caller promises that all bytes the entry names are readable; `take` is within them.
            let bytes = unsafe { std::slice::from_raw_parts(entry.ptr.as_ptr(), take) };
            wire.sent.extend_from_slice(bytes);
            left -= take;
        }
        assert!(wire.sent.len() <= MAX_SENT, "the target does not stop talking");
        Ok(Some(wire.window - left))
    }

    fn ready(&self) -> Ready {
        let wire = self.0.borrow();
        Ready { readable: !wire.incoming.is_empty() || wire.ended, writable: true }
    }

    fn arm(&mut self, _writable_too: bool) {}

    fn peer_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 40_000))
    }

    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 8420))
    }

    fn shutdown(&mut self) {
        self.0.borrow_mut().shut = true;
    }
}

/// The target neither listens nor connects here: streams are handed to it.
struct NoNetwork;

impl Network for NoNetwork {
    fn listen(&self, _addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect(&self, _addr: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What outlives an input.
struct Bench {
    reactor: Reactor,
    clock: Rc<ManualClock>,
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
        let reactor = Reactor::with_parts(config, clock.clone(), Rc::new(NoNetwork))
            .expect("a reactor without an engine asks nothing of the system");
        let pools = DmaPools::new(&memory, &pools).expect("memory for a few buffers");
        Self { reactor, clock, memory, pools }
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
            TargetCore::new(target, inbox, Rc::new(NoNetwork), bench.pools.clone(), &bench.memory, limits)
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
        let wire = Rc::new(RefCell::new(Wire { window: window.max(1), ..Wire::default() }));
        let stream = Box::new(Stream(wire.clone()));
        self.bench.reactor.enter(|| self.core.borrow_mut().adopt(self.listener, stream));
        self.wires.push(wire);
        self.wires.len() - 1
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
            self.bench.reactor.turn();
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
        assert_eq!(self.bench.reactor.core().stats().panics, 0, "a panic that the reactor contained");
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
