//! A target with one core, driven by hand.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aio::memory::{DmaPools, Memory, MemoryConfig, PoolsConfig};
use aio::uri::DeviceUri;
use aio::{BlockDevice, ByteStream, Instant, Listener, Network, Poller};
use nvme::Status;

use super::host::{self, Done, Host};
use super::pipe::pipe;
use crate::target::core::{CoreConfig, TargetCore};
use crate::target::{ListenerId, NamespaceSpec, SubsystemSpec, Target, TargetConfig};
use crate::tcp::Local;

pub(super) const NQN: &str = "nqn.2019-05.io.openebs:disk";

pub(super) struct NoNetwork;

impl Network for NoNetwork {
    fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect(&self, _: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(super) struct Rig {
    pub(super) target: Target,
    pub(super) core: TargetCore,
    pub(super) now: Instant,
    pub(super) hosts: Vec<Host>,
    pub(super) pipe_bytes: usize,
    pub(super) listener: ListenerId,
}

pub(super) fn device(uri: &str) -> Arc<dyn BlockDevice> {
    aio::devices::create(&uri.parse::<DeviceUri>().expect("a good URI")).expect("a device")
}

impl Rig {
    pub(super) fn new(uri: &str) -> Self {
        Self::with(uri, CoreConfig::default(), PoolsConfig::default())
    }

    pub(super) fn with(uri: &str, config: CoreConfig, pools: PoolsConfig) -> Self {
        Self::with_device(device(uri), config, pools)
    }

    pub(super) fn with_device(device: Arc<dyn BlockDevice>, config: CoreConfig, pools: PoolsConfig) -> Self {
        let target = Target::new(TargetConfig::default());
        let memory = Memory::new(MemoryConfig { huge_pages: false });
        let pools = DmaPools::new(&memory, &pools).unwrap();
        let inbox = target.attach_core(|| {});
        let core =
            TargetCore::new(target.clone(), inbox, Rc::new(NoNetwork), pools, &memory, config).unwrap();
        let listener = target.add_listener(([127, 0, 0, 1], 8420).into());
        let now = Instant::from_ns(1_000_000_000);
        let mut rig =
            Self { target: target.clone(), core, now, hosts: Vec::new(), pipe_bytes: 1 << 22, listener };
        rig.block_on(target.create_subsystem(SubsystemSpec::new(NQN))).unwrap();
        rig.block_on(target.add_namespace(NQN, NamespaceSpec::new(device))).unwrap();
        rig
    }

    /// One turn of the core and of every host.
    pub(super) fn turn(&mut self) -> usize {
        let work = self.core_turn();
        for host in &mut self.hosts {
            host.turn();
        }
        work
    }

    /// One turn of the core alone.
    pub(super) fn core_turn(&mut self) -> usize {
        self.now = self.now + Duration::from_micros(10);
        let work = self.core.poll(self.now);
        self.core.kick();
        work
    }

    pub(super) fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.turn();
        }
    }

    /// Lets time pass in steps of the core's tick.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(100);
            self.turn();
        }
    }

    pub(super) fn block_on<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..10_000 {
            if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
                return value;
            }
            self.turn();
        }
        panic!("does not come to an end");
    }

    /// A connection that has exchanged ICReq and ICResp; returns its index.
    pub(super) fn open(&mut self, local: Local) -> usize {
        let (ours, theirs) = pipe(self.pipe_bytes);
        self.core.adopt(self.listener, Box::new(ours));
        self.hosts.push(Host::new(theirs, local));
        self.turns(3);
        self.hosts.len() - 1
    }

    /// Turns until `cid` completed.
    pub(super) fn wait(&mut self, h: usize, cid: u16) -> Done {
        for _ in 0..10_000 {
            if let Some(done) = self.hosts[h].done.remove(&cid) {
                return done;
            }
            self.turn();
        }
        panic!("command {cid} does not complete; closed: {}", self.hosts[h].closed);
    }

    pub(super) fn connect(&mut self, h: usize, cntlid: u16, qid: u16, flow_control: bool, who: u8) -> Done {
        self.connect_to(NQN, h, cntlid, qid, flow_control, who)
    }

    fn connect_to(&mut self, nqn: &str, h: usize, cntlid: u16, qid: u16, flow: bool, who: u8) -> Done {
        let data = host::connect_data(cntlid, nqn, who);
        self.hosts[h].send(host::connect(1, qid, 32, flow), &data, true, 0);
        self.wait(h, 1)
    }

    /// One more subsystem with `device`.
    pub(super) fn export(&mut self, nqn: &str, device: Arc<dyn BlockDevice>) {
        let target = self.target.clone();
        self.block_on(target.create_subsystem(SubsystemSpec::new(nqn))).unwrap();
        self.block_on(target.add_namespace(nqn, NamespaceSpec::new(device))).unwrap();
    }

    /// Admin queue and one I/O queue of host number `who`; returns the indices of the connections.
    pub(super) fn login(&mut self, local: Local, flow_control: bool, who: u8) -> (usize, usize) {
        self.login_to(NQN, local, flow_control, who)
    }

    /// The same at another subsystem.
    pub(super) fn login_to(&mut self, nqn: &str, local: Local, flow: bool, who: u8) -> (usize, usize) {
        let admin = self.open(local);
        let done = self.connect_to(nqn, admin, 0xffff, 0, flow, who);
        assert_eq!(done.status, Status::SUCCESS);
        self.hosts[admin].send(host::enable(2), &[], false, 0);
        assert_eq!(self.wait(admin, 2).status, Status::SUCCESS);
        let io = self.open(local);
        let done = self.connect_to(nqn, io, done.result as u16, 1, flow, who);
        assert_eq!(done.status, Status::SUCCESS);
        (admin, io)
    }

    /// Drops host connection `h` without a word.
    pub(super) fn vanish(&mut self, h: usize) {
        self.hosts.remove(h);
    }
}
