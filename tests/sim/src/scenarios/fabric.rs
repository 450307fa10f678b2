//! The initiator and a controller over a bad network: random I/O from several cores, connections that die, stall and
//! lose bits, reconnects; every read is checked against what it may return.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aio::devices::sim::{SimConfig, SimDisk};
use aio::memory::{PoolClass, PoolsConfig};
use aio::reactor::Core;
use aio::uri::DeviceUri;
use aio::{BlockDevice, IoStatus};
use nvme::{HostId, Nqn};
use nvmf::initiator::{NvmfDevice, Options, Unsettled};
use nvmf::target::TargetConfig;
use nvmf::target::core::CoreConfig;

use crate::client::Client;
use crate::fake::{FakeTarget, Trick};
use crate::net::NetConfig;
use crate::rng::Rng;
use crate::seeds::{Outcome, Scenario, Violation};
use crate::steady::Steady;
use crate::target::SimTarget;
use crate::workload::Workload;
use crate::world::World;

/// The initiator against the small controller of this crate.
pub const INITIATOR: Scenario = Scenario {
    name: "initiator",
    about: "the initiator against an independent controller: data, resets, stalls, digests",
    run: |seed, verbose| run(seed, verbose, &serve_fake),
};

/// The initiator against the real target.
pub const NVMF: Scenario = Scenario {
    name: "nvmf",
    about: "initiator and target over a bad network, with disks that fail: data, resets, stalls, digests",
    run: |seed, verbose| run(seed, verbose, &serve_target),
};

/// Where the target listens.
pub const TARGET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 8420);
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// The longest that a well-behaved step may take in virtual time.
const LIMIT: Duration = Duration::from_secs(600);

/// Blocks that the workload uses: few, so that I/Os meet.
const WORKING_SET: u64 = 600;

/// Starts a target on the world's cores; what it returns stays until the end of the run.
pub type Serve = dyn Fn(&mut World) -> Result<Box<dyn Keep>, Violation>;

/// What a target set-up leaves behind.
pub trait Keep {
    /// Called between the workload's steps: faults of the target's own making.
    fn step(&mut self, world: &mut World);
}

/// A kept thing without faults.
pub struct Nothing<T>(pub T);

impl<T> Keep for Nothing<T> {
    fn step(&mut self, _world: &mut World) {}
}

fn serve_fake(world: &mut World) -> Result<Box<dyn Keep>, Violation> {
    let core = world.add_core(TARGET.ip());
    let seed = world.rng.next_u64();
    let target = FakeTarget::start(&core, TARGET, Trick::None, seed);
    let target = target.map_err(|e| world.violation(format!("the target does not listen: {e}")))?;
    target.borrow_mut().forgive();
    Ok(Box::new(Nothing(target)))
}

/// The real target, with little memory now and then, on a RAM disk or on a simulated one with errors.
fn serve_target(world: &mut World) -> Result<Box<dyn Keep>, Violation> {
    let mut rng = world.rng.fork(3);
    let class = |chunk_bytes, capacity| PoolClass { chunk_bytes, capacity };
    let pools = match rng.below(2) {
        0 => vec![class(4 << 10, 64), class(128 << 10, 16)],
        _ => vec![class(4 << 10, 8), class(32 << 10, 2)],
    };
    let max_io_bytes = if pools[1].capacity == 2 { 32 << 10 } else { 128 << 10 };
    let core = world.add_core_with(TARGET.ip(), PoolsConfig { classes: pools });
    let config = TargetConfig {
        queue_entries: rng.between(32, 64) as u16,
        io_queues: rng.between(2, 4) as u16,
        in_capsule_bytes: *rng.pick(&[0, 512, 4096, 8192]),
        max_io_bytes,
        drain_timeout: Duration::from_secs(5),
        ..TargetConfig::default()
    };
    let limits = CoreConfig {
        rx_chunk_bytes: 128 << 10,
        rx_chunks: 8,
        max_h2c_data_bytes: *rng.pick(&[4096, 16384, 131_072]),
        max_r2t: rng.between(1, 4) as u32,
        r2t_bytes: *rng.pick(&[4096, 16384, 131_072]),
        ..CoreConfig::default()
    };
    let device = disk(world, &mut rng)?;
    let target = SimTarget::start(world, &[core], TARGET, subnqn().as_str(), device, config, &limits)?;
    Ok(Box::new(Nothing(target)))
}

/// Random identifiers would differ from run to run.
const DISK_UUID: &str = "00000000-0000-4000-8000-000000000001";

fn disk(world: &World, rng: &mut Rng) -> Result<Arc<dyn BlockDevice>, Violation> {
    let block_bytes = *rng.pick(&[512u32, 4096]);
    if rng.chance_ppm(400_000) {
        let uri = format!("malloc:///disk?num_blocks=1024&blk_size={block_bytes}&uuid={DISK_UUID}");
        let uri: DeviceUri = uri.parse().map_err(|e| Violation::new(format!("{e}")))?;
        let disk = aio::devices::create(&uri).map_err(|e| Violation::new(format!("no disk: {e}")))?;
        return Ok(Arc::new(Steady(disk)));
    }
    let mut config = SimConfig::new(block_bytes, 1024, rng.next_u64());
    if rng.chance_ppm(500_000) {
        config.faults.write_error = 50;
        config.faults.read_error = 50;
        config.faults.flush_error = 20;
        config.faults.busy = 40;
    }
    config.queue_depth = rng.between(1, 64) as u32;
    Ok(SimDisk::new(config, world.clock.source()).power_on())
}

/// The NQN that targets serve.
pub fn subnqn() -> Nqn {
    Nqn::parse("nqn.2019-05.io.openebs:sim").expect("invariant: a well-formed NQN")
}

fn options(rng: &mut Rng) -> Options {
    let hostnqn = Nqn::parse("nqn.2019-05.io.openebs:host").expect("invariant: a well-formed NQN");
    Options {
        hostnqn,
        hostid: HostId([1; 16]),
        header_digest: rng.chance_ppm(500_000),
        data_digest: rng.chance_ppm(500_000),
        queue_depth: rng.between(1, 32) as u16,
        kato_ms: *rng.pick(&[0, 500, 10_000]),
        io_timeout: Duration::from_secs(10),
        unsettled: Unsettled::separate(),
        ..Options::new(TARGET, subnqn())
    }
}

fn network(rng: &mut Rng) -> NetConfig {
    let mut config = match rng.below(4) {
        0 => NetConfig::calm(),
        1 => NetConfig::choppy(rng),
        _ => NetConfig::hostile(rng),
    };
    config.corrupt_ppm = if rng.chance_ppm(250_000) { rng.below(3_000) as u32 } else { 0 };
    config
}

/// A status after which nobody knows whether the I/O had an effect.
fn lost(status: IoStatus) -> bool {
    status.is_path()
        || status.is(IoStatus::TRANSIENT_TRANSPORT_ERROR)
        || status.is(IoStatus::ABORT_REQUESTED)
        // The disk's own errors, which the scenario asked for.
        || status.is(IoStatus::WRITE_FAULT)
        || status.is(IoStatus::UNRECOVERED_READ)
}

/// A device and the clients on it.
struct Session {
    device: Arc<NvmfDevice>,
    clients: Vec<Rc<RefCell<Client>>>,
    /// Workload numbers by client and its own number.
    ids: Vec<BTreeMap<u64, u64>>,
}

/// Runs one seed against the target that `serve` starts.
pub fn run(seed: u64, verbose: bool, serve: &Serve) -> Result<Outcome, Violation> {
    let mut world = World::new(seed, verbose, network);
    let mut keep = serve(&mut world)?;
    let hosts: Vec<Core> = (0..world.rng.between(1, 2)).map(|_| world.add_core(HOST)).collect();
    let mut rng = world.rng.fork(2);
    let mut options = options(&mut rng);
    let both = options.header_digest && options.data_digest;
    if !both {
        // Without both digests a flipped bit is what TCP let through: nobody could notice.
        world.net.adjust(|c| c.corrupt_ppm = 0);
    }
    let mut workload: Option<Workload> = None;
    let mut left = rng.between(20, 300);
    let mut attempts = 0;
    while left > 0 {
        attempts += 1;
        if attempts > 40 {
            // Hardly any I/O gets through: let the rest of it, and the check at the end, have a good network.
            world.net.set_config(NetConfig::calm());
        }
        if attempts > 200 {
            return Err(world.violation("no connection, again and again"));
        }
        options.queue_depth = rng.between(1, 32) as u16;
        let Some(mut session) = connect(&mut world, &hosts, &options)? else { continue };
        let work = workload.get_or_insert_with(|| Workload::new(&*session.device, WORKING_SET));
        work.adopt(&*session.device);
        left = drive(&mut world, keep.as_mut(), &mut rng, &mut session, work, left)?;
        disconnect(&mut world, session)?;
        work.forget_in_flight();
    }
    world.net.set_config(NetConfig::calm());
    let checked = final_check(&mut world, &hosts, &options, &mut workload)?;
    drop(keep);
    world.run_for(Duration::from_secs(20));
    world.outcome(checked)
}

/// Connects the device and opens its channels; `None` when the network did not let us.
fn connect(world: &mut World, hosts: &[Core], options: &Options) -> Result<Option<Session>, Violation> {
    let home = hosts[0].clone();
    let connecting = NvmfDevice::connect(options.clone());
    let Ok(device) = world.block_on(&home, LIMIT, "connecting", connecting)? else { return Ok(None) };
    let mut session = Session { device, clients: Vec::new(), ids: Vec::new() };
    for core in hosts {
        let device = session.device.clone();
        let opening = async move { device.open_channel().await };
        match world.block_on(core, LIMIT, "opening a channel", opening)? {
            Ok(channel) => session.clients.push(Client::start(core, channel)),
            Err(_) => {
                disconnect(world, session)?;
                return Ok(None);
            }
        }
        session.ids.push(BTreeMap::new());
    }
    Ok(Some(session))
}

fn disconnect(world: &mut World, session: Session) -> Result<(), Violation> {
    let clients = session.clients.clone();
    world.run_until(LIMIT, "completing what is in flight", |_| {
        clients.iter().all(|c| c.borrow().in_flight() == 0)
    })?;
    clients.iter().for_each(|c| c.borrow_mut().stop());
    drop((clients, session));
    // The pollers go with the next turns.
    world.run_for(Duration::from_millis(1));
    Ok(())
}

/// Does up to `left` I/Os; returns how many were not begun because the device went away.
fn drive(
    world: &mut World,
    keep: &mut dyn Keep,
    rng: &mut Rng,
    session: &mut Session,
    work: &mut Workload,
    mut left: u64,
) -> Result<u64, Violation> {
    let most = rng.between(1, 40) as usize;
    let mut end = world.clock_now() + LIMIT;
    loop {
        let mut failed = false;
        for (client, ids) in session.clients.iter().zip(&mut session.ids) {
            for done in client.borrow_mut().take_finished() {
                let id = ids.remove(&done.id).ok_or_else(|| world.violation("an unknown I/O finished"))?;
                failed |= done.status.is(IoStatus::HOST_PATHING_ERROR);
                end = world.clock_now() + LIMIT;
                work.finish(id, &done, lost).map_err(|e| world.violation(e))?;
            }
        }
        let in_flight: usize = session.ids.iter().map(BTreeMap::len).sum();
        if failed || (left == 0 && in_flight == 0) {
            return drain(world, session, work, left);
        }
        if in_flight == 0 {
            // Nobody waits: the time until the next timer is no hang.
            end = world.clock_now() + LIMIT;
        }
        if left > 0 && in_flight < most && rng.chance_ppm(700_000) {
            let at = rng.below(session.clients.len() as u64) as usize;
            let (id, op) = work.next_op(rng);
            let own = session.clients[at].borrow_mut().submit(op);
            session.ids[at].insert(own, id);
            left -= 1;
        }
        if rng.chance_ppm(1_000) {
            let time = Duration::from_micros(rng.below(20_000_000));
            world.net.partition(TARGET.ip(), HOST, time);
        }
        keep.step(world);
        let moving = world.step(end);
        let waiting = session.clients.iter().any(|c| c.borrow().in_flight() > 0);
        if (!moving && waiting) || world.clock_now() >= end {
            let stuck: Vec<_> = session.clients.iter().map(|c| c.borrow().describe()).collect();
            return Err(world.violation(format!("I/O hangs: {stuck:?}")));
        }
    }
}

/// Takes in what is still in flight after a failure, so that every I/O is seen to complete.
fn drain(world: &mut World, session: &mut Session, work: &mut Workload, left: u64) -> Result<u64, Violation> {
    let clients = session.clients.clone();
    world.run_until(LIMIT, "completing after a failure", |_| {
        clients.iter().all(|c| c.borrow().in_flight() == 0)
    })?;
    for (client, ids) in session.clients.iter().zip(&mut session.ids) {
        for done in client.borrow_mut().take_finished() {
            let id = ids.remove(&done.id).ok_or_else(|| world.violation("an unknown I/O finished"))?;
            work.finish(id, &done, lost).map_err(|e| world.violation(e))?;
        }
        if !ids.is_empty() {
            return Err(world.violation(format!("{} I/Os never completed", ids.len())));
        }
    }
    Ok(left)
}

/// Reads everything over a good network.
fn final_check(
    world: &mut World,
    hosts: &[Core],
    options: &Options,
    workload: &mut Option<Workload>,
) -> Result<u64, Violation> {
    // Partitions and stalls from before may last a while, and the target may wait for the old association to end.
    for _ in 0..20 {
        if let Some(mut session) = connect(world, hosts, options)? {
            let work = workload.get_or_insert_with(|| Workload::new(&*session.device, WORKING_SET));
            for (id, op) in work.read_all() {
                let own = session.clients[0].borrow_mut().submit(op);
                session.ids[0].insert(own, id);
            }
            drain(world, &mut session, work, 0)?;
            let checked = work.checked();
            disconnect(world, session)?;
            return Ok(checked);
        }
        world.run_for(Duration::from_secs(2));
    }
    Err(world.violation("no connection over a good network"))
}
