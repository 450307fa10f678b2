//! Paths of the initiator that end and come back, step by step, against the real target.
#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aio::devices::sim::{Latency, SimConfig, SimDisk};
use aio::reactor::Core;
use aio::{BlockDevice, IoStatus};
use nvme::{HostId, Nqn, Nsid};
use nvmf::initiator::{NvmfDevice, Options, PathState, PeerFault, Recovery, Unsettled};
use nvmf::target::core::CoreConfig;
use nvmf::target::{AnaState, ListenerId, NamespaceSpec, SubsystemSpec, TargetConfig};
use sim::client::{Client, Op};
use sim::steady::Stubborn;
use sim::target::SimTarget;
use sim::{NetConfig, World};

const ADDRS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 8420),
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)), 8420),
];
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const NQN: &str = "nqn.2019-05.io.openebs:disk";
const LIMIT: Duration = Duration::from_secs(200);
const SECOND: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(8);
const FAST: Latency = Latency { min_ns: 10_000, max_ns: 20_000, slow_one_in: 0, slow_ns: 0 };

struct Bed {
    world: World,
    cores: Vec<Core>,
    host: Core,
    disk: SimDisk,
    target: SimTarget,
}

fn serve(world: &World, cores: &[Core], device: Arc<dyn BlockDevice>) -> SimTarget {
    let spec = SubsystemSpec { ana_groups: 1, ..SubsystemSpec::new(NQN) };
    let (config, limits) = (TargetConfig::default(), CoreConfig::default());
    let target = SimTarget::start_as(world, cores, ADDRS[0], spec, device, config, &limits);
    let target = target.unwrap_or_else(|v| panic!("{}", v.what));
    if cores.len() > 1 {
        target.listen(1, ADDRS[1]).unwrap_or_else(|v| panic!("{}", v.what));
    }
    target
}

fn bed(paths: usize, seed: u64, latency: Latency, volatile_cache: bool) -> Bed {
    let mut world = World::new(seed, true, |_| NetConfig::calm());
    let cores: Vec<Core> = ADDRS[..paths].iter().map(|a| world.add_core(a.ip())).collect();
    let host = world.add_core(HOST);
    let config = SimConfig { latency, volatile_cache, ..SimConfig::new(512, 1000, seed) };
    let disk = SimDisk::new(config, world.clock.source());
    let target = serve(&world, &cores, Arc::new(Stubborn(disk.power_on())));
    Bed { world, cores, host, disk, target }
}

fn options(paths: usize) -> Options {
    let hostnqn = Nqn::parse("nqn.2019-05.io.openebs:host").unwrap();
    Options {
        hostnqn,
        hostid: HostId([1; 16]),
        more_addrs: ADDRS[1..paths].to_vec(),
        queue_depth: 8,
        // Long: the target does not notice by itself.
        kato_ms: 100_000,
        io_timeout: SECOND,
        abort_timeout: SECOND / 2,
        admin_timeout: 2 * SECOND,
        recovery: Recovery { ctrl_loss: Some(100 * SECOND), ..Recovery::default() },
        unsettled: Unsettled::separate(),
        ..Options::new(ADDRS[0], Nqn::parse(NQN).unwrap())
    }
}

/// A device with a channel.
struct Attached {
    device: Arc<NvmfDevice>,
    client: Rc<RefCell<Client>>,
}

impl Bed {
    fn run<T: 'static>(&mut self, task: impl Future<Output = T> + 'static) -> T {
        let host = self.host.clone();
        self.world.block_on(&host, LIMIT, "a task", task).unwrap_or_else(|v| panic!("{}", v.what))
    }

    fn attach(&mut self, options: &Options) -> Attached {
        let device = self.run(NvmfDevice::connect(options.clone())).unwrap();
        let opened = device.clone();
        let channel = self.run(async move { opened.open_channel().await }).unwrap();
        Attached { client: Client::start(&self.host, channel), device }
    }

    fn until(&mut self, what: &str, done: impl Fn() -> bool) {
        self.world.run_until(LIMIT, what, |_| done()).unwrap_or_else(|v| panic!("{}", v.what));
    }

    /// Does one I/O.
    fn io(&mut self, on: &Attached, op: Op) -> (Op, IoStatus) {
        on.client.borrow_mut().submit(op);
        let client = on.client.clone();
        self.until("an I/O", || client.borrow().in_flight() == 0);
        let done = on.client.borrow_mut().take_finished().pop().unwrap();
        (done.op, done.status)
    }

    /// Writes a block until that succeeds.
    fn write(&mut self, on: &Attached, byte: u8) {
        for _ in 0..50 {
            if self.io(on, Op::write(3, 1, vec![byte; 512])).1.is_success() {
                return;
            }
        }
        panic!("no write succeeds");
    }

    /// Nothing gets through on a path for `time`, beginning as soon as what is on its way has arrived.
    fn cut(&mut self, path: usize, time: Duration) {
        self.world.run_for(Duration::from_millis(1));
        self.world.net.partition(ADDRS[path].ip(), HOST, time);
    }

    /// The same for path 0, and what the host says when it gives its connections up is lost as well.
    fn cut_unnoticed(&mut self, time: Duration) {
        self.cut(0, time);
        self.world.run_for(time - SECOND / 10);
        self.world.net.lose_farewells(ADDRS[0].ip(), HOST);
    }

    fn ana(&mut self, path: u16, state: AnaState) {
        let target = self.target.target.clone();
        self.run(async move { target.set_ana_state(NQN, Some(ListenerId(path)), 1, state).await }).unwrap();
        self.world.run_for(Duration::from_millis(10));
    }

    /// The process of the target ends and another one begins.
    fn restart(&mut self, device: Arc<dyn BlockDevice>) {
        self.target.stop();
        let target = &self.target;
        self.world.run_until(LIMIT, "the end", |_| target.connections() == 0).unwrap();
        self.world.run_for(Duration::from_millis(1));
        self.target = serve(&self.world, &self.cores, device);
    }

    /// What the disk holds once everything late has come.
    fn final_byte(&mut self) -> u8 {
        self.world.run_for(3 * SLOW);
        self.disk.block(aio::Lba(3))[0]
    }
}

/// Disks of which half the I/Os take [`SLOW`]; one in a few has the old write slow and the newer ones fast.
fn slow_disks() -> impl Iterator<Item = u64> {
    0..40
}

const HALF_SLOW: Latency = Latency { slow_one_in: 2, slow_ns: SLOW.as_nanos() as u64, ..FAST };

/// The first write is on its way through the target when nothing gets through any more, and the target does not notice.
#[test]
fn h03_a_write_of_an_ended_association_is_not_applied_after_a_newer_one() {
    for seed in slow_disks() {
        let mut bed = bed(1, seed, HALF_SLOW, false);
        let on = bed.attach(&options(1));
        on.client.borrow_mut().submit(Op::write(3, 1, vec![1; 512]));
        bed.cut_unnoticed(2 * SECOND);
        let client = on.client.clone();
        bed.until("the first write", || client.borrow().in_flight() == 0);
        on.client.borrow_mut().take_finished();
        bed.write(&on, 2);
        assert_eq!(bed.final_byte(), 2, "seed {seed}: an old write came late");
        bed.world.outcome(1).unwrap();
    }
}

/// The same over two paths: the write goes over the other one, when the first association is over.
#[test]
fn h03_a_write_goes_to_another_path_when_the_first_is_settled() {
    for seed in slow_disks() {
        let mut bed = bed(2, seed, HALF_SLOW, false);
        bed.ana(1, AnaState::NonOptimized);
        let on = bed.attach(&options(2));
        on.client.borrow_mut().submit(Op::write(3, 1, vec![1; 512]));
        bed.cut(0, 20 * SECOND);
        let client = on.client.clone();
        bed.until("the first write", || client.borrow().in_flight() == 0);
        on.client.borrow_mut().take_finished();
        bed.write(&on, 2);
        assert_eq!(bed.final_byte(), 2, "seed {seed}: an old write came late");
        bed.world.outcome(1).unwrap();
    }
}

/// A mirror drops a child and opens it anew.
#[test]
fn h03_a_device_that_is_opened_anew_waits_for_what_the_old_one_left_behind() {
    for seed in slow_disks() {
        let mut bed = bed(1, seed, HALF_SLOW, false);
        let options = Options { recovery: Recovery::default(), ..options(1) };
        let on = bed.attach(&options);
        on.client.borrow_mut().submit(Op::write(3, 1, vec![1; 512]));
        bed.cut_unnoticed(2 * SECOND);
        let client = on.client.clone();
        bed.until("the first write", || client.borrow().in_flight() == 0);
        on.client.borrow_mut().stop();
        drop((on, client));
        bed.world.run_for(3 * SECOND);
        let on = bed.attach(&options);
        for _ in 0..50 {
            if bed.io(&on, Op::write(3, 1, vec![2; 512])).1.is_success() {
                break;
            }
        }
        assert_eq!(bed.final_byte(), 2, "seed {seed}: an old write came late");
    }
}

/// What was acknowledged and not flushed is lost with the power: the device must not go on as if nothing had happened.
#[test]
fn h01_a_target_that_lost_writes_is_not_taken_back() {
    let mut bed = bed(1, 1, FAST, true);
    let on = bed.attach(&options(1));
    bed.write(&on, 1);
    let same = bed.disk.power_on();
    bed.restart(same);
    let device = on.device.clone();
    bed.until("the fault", || !device.is_live());
    assert_eq!(on.device.fault(), Some(PeerFault::Restarted));
    let status = bed.io(&on, Op::new(aio::Opcode::Flush, 0, 0)).1;
    assert!(status.is_path(), "no flush succeeds: {status:?}");
}

/// A process that restarts with its disk loses nothing: the device goes on, and so does what waits.
#[test]
fn a_target_that_restarts_with_its_data_is_taken_back_without_an_error() {
    let config = SimConfig { latency: FAST, ..SimConfig::new(512, 1000, 7) };
    let mut bed = bed(1, 7, FAST, true);
    let device = SimDisk::new(config, bed.world.clock.source()).power_on();
    bed.restart(device.clone());
    let on = bed.attach(&options(1));
    for lba in 0..8 {
        on.client.borrow_mut().submit(Op::write(lba, 1, vec![9; 512]));
    }
    bed.restart(device);
    let client = on.client.clone();
    bed.until("the writes", || client.borrow().in_flight() == 0);
    let done = on.client.borrow_mut().take_finished();
    assert!(done.len() == 8 && done.iter().all(|d| d.status.is_success()), "{done:?}");
    assert_eq!((on.device.is_live(), on.device.paths()[0].losses), (true, 1));
}

/// Another disk behind the same name, and a smaller one.
#[test]
fn a_namespace_that_comes_back_as_another_one_is_faulted() {
    for blocks in [1000, 999] {
        let mut bed = bed(1, 1, FAST, false);
        let on = bed.attach(&options(1));
        let seed = if blocks == 1000 { 2 } else { 1 };
        let config = SimConfig { latency: FAST, volatile_cache: false, ..SimConfig::new(512, blocks, seed) };
        let other = SimDisk::new(config, bed.world.clock.source()).power_on();
        bed.restart(other);
        let device = on.device.clone();
        bed.until("the fault", || !device.is_live());
        let fault = on.device.fault();
        assert!(matches!(fault, Some(PeerFault::Changed(_))), "{blocks}: {fault:?}");
        assert!(bed.io(&on, Op::read(3, 1, 512)).1.is(IoStatus::HOST_PATHING_ERROR));
    }
}

#[test]
fn io_waits_bounded_and_fails_after_the_time() {
    let mut bed = bed(1, 1, FAST, false);
    let recovery = Recovery { fast_io_fail: Some(3 * SECOND), ..options(1).recovery };
    let on = bed.attach(&Options { recovery, kato_ms: 1000, ..options(1) });
    bed.write(&on, 1);
    bed.cut(0, 30 * SECOND);
    let device = on.device.clone();
    let lost = || device.paths()[0].state == PathState::Connecting;
    bed.until("the loss", lost);
    let began = bed.world.clock_now();
    for lba in 0..20 {
        on.client.borrow_mut().submit(Op::read(lba, 1, 512));
    }
    assert!(on.client.borrow().describe().starts_with("12 not taken of 20"), "the queue depth is 8");
    let client = on.client.clone();
    bed.until("the end of patience", || client.borrow().in_flight() == 0);
    let waited = bed.world.clock_now().since(began);
    assert!(waited >= 2 * SECOND && waited <= 4 * SECOND, "{waited:?}");
    let done = on.client.borrow_mut().take_finished();
    assert!(done.iter().all(|d| d.status.is(IoStatus::HOST_PATHING_ERROR)), "{done:?}");
    assert!(bed.io(&on, Op::read(3, 1, 512)).1.is_path(), "at once from now on");
    bed.world.run_for(60 * SECOND);
    assert_eq!(bed.io(&on, Op::read(3, 1, 512)).1, IoStatus::SUCCESS, "the path is back");
}

#[test]
fn a_path_is_given_up_after_its_time_and_the_device_with_the_last() {
    let mut bed = bed(1, 1, FAST, false);
    let recovery = Recovery { ctrl_loss: Some(5 * SECOND), ..Recovery::default() };
    let on = bed.attach(&Options { recovery, ..options(1) });
    bed.target.stop();
    let began = bed.world.clock_now();
    let (status, _) = (bed.io(&on, Op::read(0, 1, 512)).1, ());
    let waited = bed.world.clock_now().since(began);
    assert!(
        status.is(IoStatus::HOST_PATHING_ERROR) && waited >= 5 * SECOND && waited < 10 * SECOND,
        "{waited:?}"
    );
    assert!(!on.device.is_live());
}

#[test]
fn io_takes_the_optimized_path_and_the_other_one_without_it() {
    let mut bed = bed(2, 1, FAST, false);
    bed.ana(1, AnaState::NonOptimized);
    let on = bed.attach(&options(2));
    // Whoever takes the other path waits.
    bed.cut(1, 3 * SECOND);
    let began = bed.world.clock_now();
    for _ in 0..50 {
        assert!(bed.io(&on, Op::read(0, 1, 512)).1.is_success());
    }
    assert!(bed.world.clock_now().since(began) < SECOND);
    bed.world.run_for(10 * SECOND);
    // The host hears of it by an event, or by the answer to a command: no error either way.
    bed.ana(1, AnaState::Optimized);
    bed.ana(0, AnaState::Inaccessible);
    assert!(bed.io(&on, Op::read(0, 1, 512)).1.is_success());
    bed.world.run_for(SECOND);
    let states: Vec<_> = on.device.paths().iter().map(|p| p.state).collect();
    assert_eq!(states, [PathState::Inaccessible, PathState::Optimized]);
    // With none it waits for one.
    bed.ana(1, AnaState::Change);
    on.client.borrow_mut().submit(Op::write(3, 1, vec![7; 512]));
    bed.world.run_for(5 * SECOND);
    assert_eq!(on.client.borrow().in_flight(), 1);
    bed.ana(1, AnaState::NonOptimized);
    let client = on.client.clone();
    bed.until("the write", || client.borrow().in_flight() == 0);
    assert!(on.client.borrow_mut().take_finished()[0].status.is_success());
}

#[test]
fn equal_paths_are_all_used_and_one_that_goes_is_no_error() {
    let mut bed = bed(2, 1, FAST, false);
    let on = bed.attach(&options(2));
    // Both stand still: an I/O on each of them.
    bed.cut(0, 5 * SECOND);
    bed.cut(1, 5 * SECOND);
    on.client.borrow_mut().submit(Op::read(0, 1, 512));
    on.client.borrow_mut().submit(Op::read(1, 1, 512));
    bed.world.net.heal(ADDRS[0].ip(), HOST);
    bed.world.run_for(SECOND / 2);
    assert_eq!(on.client.borrow().in_flight(), 1, "one of them went over each path");
    let client = on.client.clone();
    bed.until("the other one", || client.borrow().in_flight() == 0);
    let done = on.client.borrow_mut().take_finished();
    assert!(done.iter().all(|d| d.status.is_success()), "{done:?}");
}

#[test]
fn a_command_that_takes_too_long_is_aborted_and_the_association_stays() {
    let slow = Latency { min_ns: SLOW.as_nanos() as u64, max_ns: SLOW.as_nanos() as u64, ..FAST };
    let mut bed = bed(1, 1, slow, false);
    let willing = bed.disk.power_on();
    bed.restart(willing);
    let on = bed.attach(&options(1));
    let began = bed.world.clock_now();
    let status = bed.io(&on, Op::read(0, 1, 512)).1;
    assert!(status.is(IoStatus::ABORT_REQUESTED), "{status:?}");
    let waited = bed.world.clock_now().since(began);
    assert!(waited >= SECOND && waited < 2 * SECOND, "{waited:?}");
    assert_eq!(on.device.paths()[0].losses, 0);
}

#[test]
fn a_namespace_that_goes_from_every_path_is_removed() {
    let mut bed = bed(2, 1, FAST, false);
    let on = bed.attach(&options(2));
    let target = bed.target.target.clone();
    bed.run(async move { target.remove_namespace(NQN, Nsid(1)).await }).unwrap();
    bed.world.run_for(SECOND);
    assert!(bed.io(&on, Op::read(0, 1, 512)).1.is(aio::check::REMOVED));
    // And one that comes at another time is another device.
    let target = bed.target.target.clone();
    let again = bed.disk.power_on();
    bed.run(async move { target.add_namespace(NQN, NamespaceSpec::new(again)).await }).unwrap();
    bed.world.run_for(SECOND);
    assert!(bed.io(&on, Op::read(0, 1, 512)).1.is(aio::check::REMOVED));
}
