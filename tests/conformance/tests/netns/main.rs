//! A link that fails: target and host in network namespaces of their own, joined by a pair of virtual interfaces, one
//! of which goes down under load.

mod host;
mod space;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use aio::reactor::{Core, CoreHandle, spawn_thread};
use aio::{CoreId, DeviceUri, ReactorConfig};
use nvmf::target::core::{CoreConfig, TargetCore};
use nvmf::target::{NamespaceSpec, SubsystemSpec, Target, TargetConfig};

use host::{Host, WORKERS};
use space::Space;

/// More than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

/// The target's address on the cable, and for the host that shares its namespace.
const NQNS: [&str; 2] = ["nqn.2019-05.io.openebs:far", "nqn.2019-05.io.openebs:near"];

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future to its end here.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let start = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "an operation hangs");
        thread::park_timeout(Duration::from_millis(100));
    }
}

/// Waits until `done` holds; returns how long that took.
#[track_caller]
fn until(what: &str, done: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

/// A target with two subsystems, on a core in a namespace.
struct Served {
    target: Target,
    core: CoreHandle,
    port: u16,
}

impl Served {
    fn start(space: &Space) -> Self {
        let target = Target::new(TargetConfig::default());
        let config = ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(1)) };
        let core = space.enter(|| spawn_thread(config)).expect("a core");
        let wake = core.clone();
        let inbox = target.attach_core(move || wake.wake());
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let listener = target.add_listener(any);
        let shared = target.clone();
        let started = core.call(move || async move {
            let core = Core::current().expect("calls run on their core");
            let pools = core.pools().expect("buffers");
            let poller =
                TargetCore::new(shared, inbox, core.network(), pools, core.memory(), CoreConfig::default());
            let mut poller = poller.expect("receive chunks");
            let addr = poller.listen(listener, any).expect("a port");
            core.add_poller(Rc::new(RefCell::new(poller)));
            addr
        });
        let port = wait(started).expect("the core answers").port();
        for nqn in NQNS {
            let uri: DeviceUri = "malloc:///m?size_mb=8&blk_size=512".parse().expect("a good URI");
            let device = aio::devices::create(&uri).expect("memory");
            wait(target.create_subsystem(SubsystemSpec::new(nqn))).expect("a subsystem");
            wait(target.add_namespace(nqn, NamespaceSpec::new(device))).expect("a namespace");
        }
        Self { target, core, port }
    }

    /// Associations that a subsystem has, those included that are ending: they have slots and identifiers.
    fn associations(&self, nqn: &str) -> usize {
        self.target.subsystem(nqn).expect("it is there").controllers.len()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.core.stop();
        self.core.join();
    }
}

/// A cable is pulled while a host writes: the host gets errors, the target lets go of the association, others go on, and
/// with the cable back in everything that was acknowledged is there.
#[test]
fn a_link_that_fails_under_load() {
    let (target_side, host_side) = match space::two() {
        Ok(both) => both,
        Err(reason) => return conformance::skip("netns", "netns::a_link_that_fails_under_load", &reason),
    };
    let served = Served::start(&target_side);
    let (far, near) = (Host::new(&host_side, 2), Host::new(&target_side, 3));
    let cable = SocketAddr::from(([10, 99, 0, 1], served.port));
    let loopback = SocketAddr::from(([127, 0, 0, 1], served.port));

    let near_device = near.connect(loopback, NQNS[1]).expect("a connection over loopback");
    let near_end = near.load(&near_device);
    for round in 0..2 {
        let device = far.connect(cable, NQNS[0]).expect("a connection over the cable");
        let end = far.load(&device);
        let before = far.rounds.load(Ordering::Relaxed);
        until("verified load", || far.rounds.load(Ordering::Relaxed) > before + 20 * WORKERS);
        assert_eq!((served.associations(NQNS[0]), served.associations(NQNS[1])), (1, 1));

        // Once the host's end, once the target's.
        let side = if round == 0 { &host_side } else { &target_side };
        side.ip("link set cable down").expect("the cable");
        for _ in 0..WORKERS {
            let end = end.recv_timeout(PATIENCE).expect("an error for what is in flight");
            assert!(end.is_err(), "a worker ended well without a link");
        }
        let near_before = near.rounds.load(Ordering::Relaxed);
        let took = until("the association ends", || served.associations(NQNS[0]) == 0);
        assert!(took < Duration::from_secs(10), "the Keep Alive Timeout is 2 s, and it took {took:?}");
        until("the other host goes on", || near.rounds.load(Ordering::Relaxed) > near_before + 20 * WORKERS);
        assert!(near_end.try_recv().is_err() && served.associations(NQNS[1]) == 1);
        assert!(far.connect(cable, NQNS[0]).is_err(), "there is no link");

        side.ip("link set cable up").expect("the cable");
    }
    // The first reads of the load compare with all that was acknowledged.
    let device = far.connect(cable, NQNS[0]).expect("a connection over the cable");
    let end = far.load(&device);
    let before = far.rounds.load(Ordering::Relaxed);
    until("verified load", || far.rounds.load(Ordering::Relaxed) > before + 20 * WORKERS);
    for (host, end) in [(&far, end), (&near, near_end)] {
        host.stop();
        for _ in 0..WORKERS {
            end.recv_timeout(PATIENCE).expect("the worker ends").expect("no error");
        }
    }
}
