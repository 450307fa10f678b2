//! Namespaces of our own target pass the suite through our own initiator, over simulated networks: calm, and with
//! everything that TCP may do to a program without failing.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aio::reactor::Core;
use aio::{BlockCount, BlockDevice, DeviceUri};
use conformance::{Driver, DriverRef, Fixture, Options as Suite, Spec, block_on, run};
use nvme::Nqn;
use nvmf::initiator::{NvmfDevice, Options};
use nvmf::target::core::CoreConfig;
use nvmf::target::{NamespaceSpec, SubsystemSpec, TargetConfig};
use sim::target::SimTarget;
use sim::{NetConfig, Rng, World};

const TARGET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 8420);
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// The simulated world of the thread.
struct Bed {
    world: World,
    host: Core,
    target: SimTarget,
    behind: Vec<(String, Arc<dyn BlockDevice>)>,
}

thread_local! {
    static BED: RefCell<Option<Rc<RefCell<Bed>>>> = const { RefCell::new(None) };
}

fn bed() -> Rc<RefCell<Bed>> {
    BED.with_borrow(|bed| bed.clone().expect("the driver made it"))
}

struct SimDriver(Rc<RefCell<Bed>>);

impl Driver for SimDriver {
    fn turn(&mut self) {
        let world = &mut self.0.borrow_mut().world;
        let until = world.clock_now() + Duration::from_millis(100);
        if !world.step(until) {
            world.run_for(Duration::from_millis(1));
        }
    }

    fn enter(&mut self, work: &mut dyn FnMut()) {
        let bed = self.0.borrow();
        bed.world.enter(&bed.host, work);
    }
}

fn malloc(name: &str, spec: Spec) -> Arc<dyn BlockDevice> {
    let uri = format!("malloc:///{name}?num_blocks={}&blk_size={}&resize", spec.blocks, spec.block_bytes);
    let uri: DeviceUri = uri.parse().expect("a good URI");
    aio::devices::create(&uri).expect("memory")
}

struct Simulated {
    network: fn(&mut Rng) -> NetConfig,
    digests: bool,
}

impl Fixture for Simulated {
    fn create(&self, spec: Spec, driver: &DriverRef) -> Arc<dyn BlockDevice> {
        let bed = bed();
        let device = malloc("m", spec);
        let nqn = format!("nqn.2019-05.io.openebs:d{}", bed.borrow().behind.len());
        bed.borrow_mut().behind.push((nqn.clone(), device.clone()));
        let target = bed.borrow().target.target.clone();
        block_on(driver, target.create_subsystem(SubsystemSpec::new(&nqn))).expect("a subsystem");
        block_on(driver, target.add_namespace(&nqn, NamespaceSpec::new(device))).expect("a namespace");
        let mut options = Options::new(TARGET, Nqn::parse(&nqn).expect("an NQN"));
        (options.header_digest, options.data_digest) = (self.digests, self.digests);
        // The suite waits in real time, in which hours of virtual time may pass.
        options.kato_ms = 0;
        options.io_timeout = Duration::from_secs(1_000_000);
        block_on(driver, NvmfDevice::connect(options)).expect("a connection")
    }

    fn driver(&self) -> DriverRef {
        let mut world = World::new(self.options().seed, false, self.network);
        let (core, host) = (world.add_core(TARGET.ip()), world.add_core(HOST));
        let spec = Spec { block_bytes: 512, blocks: 8 };
        let (config, limits) = (TargetConfig::default(), CoreConfig::default());
        let nqn = "nqn.2019-05.io.openebs:first";
        let target = SimTarget::start(&world, &[core], TARGET, nqn, malloc("first", spec), config, &limits);
        let target = target.unwrap_or_else(|v| panic!("{}", v.what));
        let bed = Rc::new(RefCell::new(Bed { world, host, target, behind: Vec::new() }));
        BED.set(Some(bed.clone()));
        Rc::new(RefCell::new(SimDriver(bed)))
    }

    fn options(&self) -> Suite {
        Suite { one_thread: true, effort: 400, ..Suite::default() }
    }

    fn grow(&self, device: &Arc<dyn BlockDevice>, blocks: BlockCount) -> bool {
        let bed = bed();
        let bed = bed.borrow();
        let found = bed.behind.iter().find(|(nqn, _)| device.name().ends_with(&format!("/{nqn}n1")));
        found.is_some_and(|(_, d)| d.resize(blocks).is_ok())
    }
}

/// Small windows and long delays make the suite slow, so only their shape is odd here.
fn odd(rng: &mut Rng) -> NetConfig {
    NetConfig {
        delay_ns: 1..=5_000,
        window_bytes: 20_000..=60_000,
        split_ppm: 300_000,
        would_block_ppm: 50_000,
        stall_ppm: rng.below(500) as u32,
        stall_ns: 1_000..=50_000,
        ..NetConfig::calm()
    }
}

fn passes(simulated: &Simulated, block_bytes: u32) {
    run(simulated, block_bytes);
    // Within the thread's life: reactors need thread-locals of their own to end.
    BED.set(None);
}

#[test]
fn calm_512() {
    passes(&Simulated { network: |_| NetConfig::calm(), digests: false }, 512);
}

#[test]
fn odd_4096_with_digests() {
    passes(&Simulated { network: odd, digests: true }, 4096);
}
