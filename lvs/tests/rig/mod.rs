//! A reactor on a virtual clock with simulated disks: what the store's tests run on. Everything comes from one seed.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aio::devices::sim::{SimConfig, SimDisk};
use aio::reactor::{EngineChoice, ManualClock};
use aio::stream::{ByteStream, Listener, Network};
use aio::{BlockDevice, CoreId, Instant, Reactor, ReactorConfig};

/// Nothing to connect to.
struct NoNetwork;

impl Network for NoNetwork {
    fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect(&self, _: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A small generator of numbers.
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    #[allow(dead_code, reason = "not every test draws")]
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The reactor and its clock.
pub(crate) struct Rig {
    reactor: RefCell<Reactor>,
    clock: Rc<ManualClock>,
    time: Arc<AtomicU64>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let clock = Rc::new(ManualClock::new(Instant::from_ns(1_000_000)));
        let config =
            ReactorConfig { pin: false, engine: EngineChoice::None, ..ReactorConfig::new(CoreId(0)) };
        let reactor = Reactor::with_parts(config, clock.clone(), Rc::new(NoNetwork)).unwrap();
        Self { reactor: RefCell::new(reactor), clock, time: Arc::new(AtomicU64::new(1_000_000)) }
    }

    pub(crate) fn home(&self) -> aio::CoreHandle {
        self.reactor.borrow().core().handle()
    }

    pub(crate) fn core(&self) -> aio::Core {
        self.reactor.borrow().core()
    }

    /// A disk of `mib` MiB.
    #[allow(dead_code, reason = "not every test wants one like others'")]
    pub(crate) fn disk(
        &self,
        name: &str,
        block_bytes: u32,
        mib: u64,
        volatile_cache: bool,
        seed: u64,
    ) -> SimDisk {
        let blocks = (mib << 20) / u64::from(block_bytes);
        self.disk_as(SimConfig {
            name: name.to_owned(),
            volatile_cache,
            ..SimConfig::new(block_bytes, blocks, seed)
        })
    }

    /// A disk as described.
    pub(crate) fn disk_as(&self, config: SimConfig) -> SimDisk {
        let time = self.time.clone();
        SimDisk::new(config, Arc::new(move || Instant::from_ns(time.load(Ordering::Relaxed))))
    }

    /// One turn, and the time that it takes.
    pub(crate) fn turn(&self) {
        self.reactor.borrow_mut().turn();
        self.clock.advance(Duration::from_micros(5));
        self.time.fetch_add(5_000, Ordering::Relaxed);
    }

    /// Turns until `future` is ready; `None` after `turns` turns.
    pub(crate) fn run_for<T>(&self, turns: u64, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..turns {
            let polled = {
                let core = self.reactor.borrow();
                core.enter(|| future.as_mut().poll(&mut cx))
            };
            if let Poll::Ready(value) = polled {
                return Some(value);
            }
            self.turn();
        }
        None
    }

    /// Turns until `future` is ready.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.run_for(20_000_000, future).expect("a hang: nothing came of it for 100 s of virtual time")
    }
}

/// A powered disk as a device.
pub(crate) fn on(disk: &SimDisk) -> Arc<dyn BlockDevice> {
    disk.power_on()
}
