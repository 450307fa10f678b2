//! Namespaces of our own target pass the suite through our own initiator, over loopback TCP: with and without
//! digests, with little in-capsule data, with short queues.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use aio::reactor::{Core, CoreHandle, EngineChoice, spawn_thread};
use aio::{BlockCount, BlockDevice, CoreId, DeviceUri, ReactorConfig};
use conformance::reactor::ReactorDriver;
use conformance::{DriverRef, Fixture, Spec, block_on, run};
use nvme::Nqn;
use nvmf::initiator::{NvmfDevice, Options};
use nvmf::target::core::{CoreConfig, TargetCore};
use nvmf::target::{NamespaceSpec, SubsystemSpec, Target, TargetConfig};

/// A target on a thread of its own, and how to connect to it.
struct Remote {
    target: Target,
    addr: SocketAddr,
    core: CoreHandle,
    change: fn(&mut Options),
    /// The devices behind the namespaces, by NQN.
    behind: Mutex<HashMap<String, Arc<dyn BlockDevice>>>,
}

impl Remote {
    fn start(config: TargetConfig, change: fn(&mut Options)) -> Self {
        let target = Target::new(config);
        let core =
            spawn_thread(ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(7)) }).expect("a core");
        let wake = core.clone();
        let inbox = target.attach_core(move || wake.wake());
        let listener = target.add_listener(SocketAddr::from(([127, 0, 0, 1], 0)));
        let shared = target.clone();
        let started = core.call(move || async move {
            let core = Core::current().expect("calls run on their core");
            let pools = core.pools().expect("buffers");
            let limits = CoreConfig::default();
            let poller = TargetCore::new(shared, inbox, core.network(), pools, core.memory(), limits);
            let mut poller = poller.expect("receive chunks");
            let addr = poller.listen(listener, SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
            core.add_poller(Rc::new(RefCell::new(poller)));
            addr
        });
        let driver = ReactorDriver::shared(EngineChoice::Auto).expect("a reactor");
        let addr = block_on(&driver, started).expect("the core answers");
        Self { target, addr, core, change, behind: Mutex::default() }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.core.stop();
        self.core.join();
    }
}

impl Fixture for Remote {
    fn create(&self, spec: Spec, driver: &DriverRef) -> Arc<dyn BlockDevice> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nqn = format!("nqn.2019-05.io.openebs:d{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let uri = format!("malloc:///m?num_blocks={}&blk_size={}&resize", spec.blocks, spec.block_bytes);
        let uri: DeviceUri = uri.parse().expect("a good URI");
        let device = aio::devices::create(&uri).expect("memory");
        self.behind.lock().expect("no panic while held").insert(nqn.clone(), device.clone());
        block_on(driver, self.target.create_subsystem(SubsystemSpec::new(&nqn))).expect("a subsystem");
        block_on(driver, self.target.add_namespace(&nqn, NamespaceSpec::new(device))).expect("a namespace");
        let mut options = Options::new(self.addr, Nqn::parse(&nqn).expect("an NQN"));
        // Some cases keep the home core from turning for a while.
        options.kato_ms = 0;
        (self.change)(&mut options);
        block_on(driver, NvmfDevice::connect(options)).expect("a connection")
    }

    fn driver(&self) -> DriverRef {
        ReactorDriver::shared(EngineChoice::Auto).expect("a reactor")
    }

    /// Grows the device behind the namespace: the news come as an asynchronous event.
    fn grow(&self, device: &Arc<dyn BlockDevice>, blocks: BlockCount) -> bool {
        let behind = self.behind.lock().expect("no panic while held");
        let grown = behind
            .iter()
            .find(|(nqn, _)| device.name().ends_with(&format!("/{nqn}n1")))
            .map(|(_, d)| d.clone());
        grown.is_some_and(|d| d.resize(blocks).is_ok())
    }
}

#[test]
fn plain_512() {
    run(&Remote::start(TargetConfig::default(), |_| ()), 512);
}

#[test]
fn digests_4096() {
    let both = |o: &mut Options| (o.header_digest, o.data_digest) = (true, true);
    run(&Remote::start(TargetConfig { in_capsule_bytes: 0, ..TargetConfig::default() }, both), 4096);
}

#[test]
fn short_queues_512() {
    let config = TargetConfig { max_io_bytes: 16 << 10, in_capsule_bytes: 1024, ..TargetConfig::default() };
    run(&Remote::start(config, |o| (o.queue_depth, o.header_digest) = (4, true)), 512);
}
