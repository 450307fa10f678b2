//! One device over one or two paths to the real target, for as long as the run lasts: links that go and come back, resets,
//! ANA states that change, a target that restarts, a disk that takes seconds now and then. No acknowledged write is lost, no
//! write is applied after a newer one, and nothing fails that could have waited.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aio::devices::sim::{Latency, SimConfig, SimDisk};
use aio::reactor::Core;
use aio::{BlockDevice, IoStatus, Opcode};
use nvme::{HostId, Nqn};
use nvmf::initiator::{NvmfDevice, Options, PathPolicy, Recovery, Unsettled};
use nvmf::target::core::CoreConfig;
use nvmf::target::{AnaState, ListenerId, SubsystemSpec, TargetConfig};

use super::fabric::subnqn;
use crate::client::{Client, Finished};
use crate::net::NetConfig;
use crate::rng::Rng;
use crate::seeds::{Outcome, Scenario, Violation};
use crate::target::SimTarget;
use crate::workload::Workload;
use crate::world::World;

/// See the module.
pub const PATHS: Scenario = Scenario {
    name: "paths",
    about: "one device over links that go, targets that restart, ANA states that change: nothing lost, nothing late",
    run,
};

const ADDRS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 8420),
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)), 8420),
];
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// The longest that anything may take in virtual time: many times of what a recovery takes.
const LIMIT: Duration = Duration::from_secs(900);

/// After so long without any I/O that finishes, the paths get their access back.
const QUIET: Duration = Duration::from_secs(60);

/// Few blocks, so that a write soon follows another one to the same place.
const WORKING_SET: u64 = 40;

/// The target with its cores, one a path.
struct Served {
    cores: Vec<Core>,
    device: Arc<dyn BlockDevice>,
    target: SimTarget,
    listeners: Vec<ListenerId>,
}

impl Served {
    fn start(world: &World, cores: Vec<Core>, device: Arc<dyn BlockDevice>) -> Result<Self, Violation> {
        let config = TargetConfig { drain_timeout: Duration::from_secs(5), ..TargetConfig::default() };
        let limits = CoreConfig { rx_chunk_bytes: 128 << 10, rx_chunks: 8, ..CoreConfig::default() };
        let spec = SubsystemSpec { ana_groups: 1, ..SubsystemSpec::new(subnqn().as_str()) };
        let target = SimTarget::start_as(world, &cores, ADDRS[0], spec, device.clone(), config, &limits)?;
        let mut listeners = vec![ListenerId(0)];
        for (at, addr) in ADDRS.iter().enumerate().take(cores.len()).skip(1) {
            listeners.push(target.listen(at, *addr)?);
        }
        Ok(Self { cores, device, target, listeners })
    }

    /// The process ends, with what it has in flight, and another one begins with the same disk.
    fn restart(self, world: &mut World) -> Result<Self, Violation> {
        self.target.stop();
        let target = &self.target;
        world.run_until(LIMIT, "the end of the target", |_| target.connections() == 0)?;
        let Self { cores, device, target, .. } = self;
        drop(target);
        // Its pollers go, and with them its sockets.
        world.run_for(Duration::from_millis(1));
        Self::start(world, cores, device)
    }

    fn set_ana(&self, path: usize, state: AnaState) {
        let (target, listener) = (self.target.target.clone(), self.listeners[path]);
        let nqn = subnqn();
        drop(self.cores[path].spawn(async move {
            // The target may be on its way out.
            let _ = target.set_ana_state(nqn.as_str(), Some(listener), 1, state).await;
        }));
    }
}

fn options(rng: &mut Rng, paths: usize) -> Options {
    let hostnqn = Nqn::parse("nqn.2019-05.io.openebs:host").expect("invariant: a well-formed NQN");
    Options {
        hostnqn,
        hostid: HostId([1; 16]),
        queue_depth: rng.between(2, 16) as u16,
        more_addrs: ADDRS[1..paths].to_vec(),
        policy: *rng.pick(&[PathPolicy::RoundRobin, PathPolicy::Latency]),
        recovery: Recovery {
            reconnect_delay: Some(Duration::from_secs(1)),
            ctrl_loss: Some(Duration::from_secs(36_000)),
            fast_io_fail: rng.chance_ppm(300_000).then(|| Duration::from_millis(rng.between(1, 4_000))),
            trust_cache: false,
        },
        kato_ms: *rng.pick(&[1_000, 3_000]),
        io_timeout: Duration::from_secs(rng.between(2, 15)),
        abort_timeout: Duration::from_secs(1),
        admin_timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(2),
        unsettled: Unsettled::separate(),
        ..Options::new(ADDRS[0], subnqn())
    }
}

fn network(rng: &mut Rng) -> NetConfig {
    match rng.below(3) {
        0 => NetConfig::calm(),
        1 => NetConfig::choppy(rng),
        _ => NetConfig { reset_ppm: rng.below(2_000) as u32, ..NetConfig::calm() },
    }
}

fn disk(world: &World, rng: &mut Rng) -> SimDisk {
    let mut config = SimConfig::new(*rng.pick(&[512u32, 4096]), 64, rng.next_u64());
    config.volatile_cache = rng.chance_ppm(500_000);
    config.queue_depth = rng.between(4, 64) as u32;
    config.latency = Latency {
        slow_one_in: *rng.pick(&[4, 10, 40]),
        slow_ns: rng.between(50_000_000, 6_000_000_000),
        ..Latency::default()
    };
    SimDisk::new(config, world.clock.source())
}

/// A status after which nobody knows whether the I/O had an effect.
fn unknown(status: IoStatus) -> bool {
    status.is_path() || status.is(IoStatus::ABORT_REQUESTED)
}

struct Session {
    device: Arc<NvmfDevice>,
    clients: Vec<Rc<RefCell<Client>>>,
    ids: Vec<BTreeMap<u64, u64>>,
}

impl Session {
    /// Takes in what has finished. `patient` = the device has no time after which I/O fails.
    fn collect(&mut self, world: &World, work: &mut Workload, patient: bool) -> Result<u64, Violation> {
        let mut count = 0;
        for (client, ids) in self.clients.iter().zip(&mut self.ids) {
            for done in client.borrow_mut().take_finished() {
                let id = ids.remove(&done.id).ok_or_else(|| world.violation("an unknown I/O finished"))?;
                if patient && !may_fail(&done) {
                    let what = format!("{:?} failed with {:?}", done.op.opcode, done.status);
                    return Err(world.violation(format!("{what}, and could have waited")));
                }
                work.finish(id, &done, unknown).map_err(|e| world.violation(e))?;
                count += 1;
            }
        }
        Ok(count)
    }

    fn in_flight(&self) -> usize {
        self.ids.iter().map(BTreeMap::len).sum()
    }
}

/// What may fail although it would wait for a path for ever: what was given up by its time limit, and what cannot be
/// repeated.
fn may_fail(done: &Finished) -> bool {
    !unknown(done.status)
        || done.status.is(IoStatus::ABORT_REQUESTED)
        || done.op.opcode == Opcode::CompareAndWrite
}

fn run(seed: u64, verbose: bool) -> Result<Outcome, Violation> {
    let mut world = World::new(seed, verbose, network);
    let mut rng = world.rng.fork(2);
    let paths = rng.between(1, 2) as usize;
    let device = disk(&world, &mut rng).power_on();
    let cores: Vec<Core> = ADDRS[..paths].iter().map(|addr| world.add_core(addr.ip())).collect();
    let mut served = Served::start(&world, cores, device)?;
    let hosts: Vec<Core> = (0..rng.between(1, 2)).map(|_| world.add_core(HOST)).collect();
    let options = options(&mut rng, paths);
    let mut session = connect(&mut world, &hosts, &options)?;
    let mut work = Workload::new(&*session.device, WORKING_SET);
    let mut left = rng.between(30, 200);
    let most = rng.between(2, 24) as usize;
    let patient = options.recovery.fast_io_fail.is_none();
    let (mut quiet_since, mut calmed, mut soothed) = (world.clock_now(), false, false);
    while left > 0 || session.in_flight() > 0 {
        if session.collect(&world, &mut work, patient)? > 0 || session.in_flight() == 0 {
            (quiet_since, soothed) = (world.clock_now(), false);
        }
        if world.clock_now().since(quiet_since) > QUIET && !std::mem::replace(&mut soothed, true) {
            // An ANA state may keep everybody away for as long as nobody changes it, and trouble without an end is no
            // hang of ours.
            (0..served.cores.len()).for_each(|path| served.set_ana(path, AnaState::Optimized));
        }
        if left > 0 && session.in_flight() < most && rng.chance_ppm(500_000) {
            let at = rng.below(session.clients.len() as u64) as usize;
            let (id, op) = work.next_op(&mut rng);
            let own = session.clients[at].borrow_mut().submit(op);
            session.ids[at].insert(own, id);
            left -= 1;
        }
        if rng.chance_ppm(4_000) && left > 0 && !soothed {
            served = trouble(&mut world, &mut rng, served)?;
        }
        if left == 0 && !std::mem::replace(&mut calmed, true) {
            // Whatever was done to the paths, they come back.
            calm(&world, &served);
        }
        let end = quiet_since + LIMIT;
        let moving = world.step(end);
        let waiting = session.clients.iter().any(|c| c.borrow().in_flight() > 0);
        if (!moving && waiting) || world.clock_now() >= end {
            let stuck: Vec<_> = session.clients.iter().map(|c| c.borrow().describe()).collect();
            return Err(world.violation(format!("I/O hangs: {stuck:?}, {:?}", session.device.paths())));
        }
    }
    check(&mut world, &mut session, &mut work)?;
    let checked = work.checked();
    session.clients.iter().for_each(|c| c.borrow_mut().stop());
    drop(session);
    world.run_for(Duration::from_secs(30));
    if served.target.connections() > 0 {
        return Err(world.violation("a device that is gone leaves connections behind"));
    }
    drop(served);
    world.outcome(checked)
}

/// Connects the device and opens its channels, however long that takes.
fn connect(world: &mut World, hosts: &[Core], options: &Options) -> Result<Session, Violation> {
    let device = loop {
        let connecting = NvmfDevice::connect(options.clone());
        if let Ok(device) = world.block_on(&hosts[0], LIMIT, "connecting", connecting)? {
            break device;
        }
    };
    let (mut clients, mut ids) = (Vec::new(), Vec::new());
    for core in hosts {
        let channel = loop {
            let device = device.clone();
            let opening = async move { device.open_channel().await };
            if let Ok(channel) = world.block_on(core, LIMIT, "opening a channel", opening)? {
                break channel;
            }
        };
        clients.push(Client::start(core, channel));
        ids.push(BTreeMap::new());
    }
    Ok(Session { device, clients, ids })
}

/// Something goes wrong.
fn trouble(world: &mut World, rng: &mut Rng, served: Served) -> Result<Served, Violation> {
    let path = rng.below(served.cores.len() as u64) as usize;
    match rng.below(8) {
        0..3 => {
            let time = Duration::from_millis(rng.between(1, 12_000));
            world.net.partition(ADDRS[path].ip(), HOST, time);
        }
        3 | 4 => {
            world.net.reset_one();
        }
        5 | 6 => {
            let states =
                [AnaState::Optimized, AnaState::NonOptimized, AnaState::Inaccessible, AnaState::Change];
            served.set_ana(path, *rng.pick(&states));
        }
        _ => return served.restart(world),
    }
    Ok(served)
}

/// The network is good again, and so are the states.
fn calm(world: &World, served: &Served) {
    world.net.set_config(NetConfig::calm());
    for (path, addr) in ADDRS.iter().enumerate().take(served.cores.len()) {
        world.net.heal(addr.ip(), HOST);
        served.set_ana(path, AnaState::Optimized);
    }
}

/// Reads everything over the same device.
fn check(world: &mut World, session: &mut Session, work: &mut Workload) -> Result<(), Violation> {
    // A device that fails I/O after some time may still be doing that.
    let device = session.device.clone();
    let works = |d: &NvmfDevice| d.paths().iter().any(|p| p.state == nvmf::initiator::PathState::Optimized);
    world.run_until(LIMIT, "a path that works", |_| works(&device))?;
    world.run_for(Duration::from_secs(2));
    for (id, op) in work.read_all() {
        let own = session.clients[0].borrow_mut().submit(op);
        session.ids[0].insert(own, id);
    }
    let clients = session.clients.clone();
    world.run_until(LIMIT, "the last reads", |_| clients.iter().all(|c| c.borrow().in_flight() == 0))?;
    session.collect(world, work, false)?;
    if !session.device.is_live() {
        return Err(world.violation(format!("the device faulted: {:?}", session.device.fault())));
    }
    Ok(())
}
