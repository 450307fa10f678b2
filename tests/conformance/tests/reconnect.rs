//! The initiator over real sockets when its target is killed and comes back, and when one of two goes for good.
#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aio::facade::Descriptor;
use aio::reactor::{Core, CoreHandle, EngineChoice, spawn_thread};
use aio::{BlockDevice, CoreId, DeviceUri, ReactorConfig};
use conformance::block_on;
use conformance::reactor::ReactorDriver;
use nvme::Nqn;
use nvmf::initiator::{NvmfDevice, Options, Recovery, Unsettled};
use nvmf::target::core::{CoreConfig, TargetCore};
use nvmf::target::{NamespaceSpec, SubsystemSpec, Target, TargetConfig};

const NQN: &str = "nqn.2019-05.io.openebs:reconnect";
const BLOCK: u32 = 512;

fn core(id: u32, engine: EngineChoice) -> CoreHandle {
    spawn_thread(ReactorConfig { pin: false, engine, ..ReactorConfig::new(CoreId(id)) }).unwrap()
}

/// Runs a task on a core, from this thread.
fn run<T: Send + 'static, F>(on: &CoreHandle, task: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
{
    let driver = ReactorDriver::shared(EngineChoice::Auto).unwrap();
    block_on(&driver, on.call(task)).unwrap()
}

/// A target process in a thread: when it is killed its sockets close, and nobody says goodbye.
struct Process(CoreHandle);

impl Process {
    fn start(addr: SocketAddr, device: Arc<dyn BlockDevice>) -> (Self, SocketAddr) {
        let target = Target::new(TargetConfig::default());
        let core = core(7, EngineChoice::Auto);
        let wake = core.clone();
        let inbox = target.attach_core(move || wake.wake());
        let listener = target.add_listener(addr);
        let addr = run(&core, move || async move {
            let core = Core::current().unwrap();
            let (pools, memory) = (core.pools().unwrap(), core.memory());
            let poller =
                TargetCore::new(target.clone(), inbox, core.network(), pools, memory, CoreConfig::default());
            let poller = Rc::new(RefCell::new(poller.unwrap()));
            core.add_poller(poller.clone());
            target.create_subsystem(SubsystemSpec::new(NQN)).await.unwrap();
            target.add_namespace(NQN, NamespaceSpec::new(device)).await.unwrap();
            // The kernel closes the ring of the one before, and with it its socket, when it gets to it.
            for _ in 0..500 {
                let listening = poller.borrow_mut().listen(listener, addr);
                match listening {
                    Ok(addr) => return addr,
                    Err(_) => core.sleep(Duration::from_millis(10)).await,
                }
            }
            panic!("{addr} stays in use");
        });
        (Self(core), addr)
    }

    fn kill(self) {
        self.0.stop();
        self.0.join();
    }
}

/// Writes block after block, and reads each back; returns how many were wrong or failed.
async fn work(device: Arc<NvmfDevice>, blocks: u64) -> u64 {
    let core = Core::current().unwrap();
    let pools = core.pools().unwrap();
    let descriptor = Descriptor::open(device).await.unwrap();
    let mut wrong = 0;
    for i in 0..blocks {
        let at = i % 64 * u64::from(BLOCK);
        let mut buf = pools.alloc(BLOCK).unwrap();
        buf[..8].copy_from_slice(&i.to_le_bytes());
        let (written, mut buf) = descriptor.write_at(at, BLOCK, buf).await;
        buf[..8].fill(0);
        let (read, buf) = descriptor.read_at(at, BLOCK, buf).await;
        wrong += u64::from(written.is_err() || read.is_err() || buf[..8] != i.to_le_bytes());
    }
    descriptor.close().await;
    wrong
}

fn connect(host: &CoreHandle, addrs: &[SocketAddr]) -> Arc<NvmfDevice> {
    let recovery = Recovery {
        ctrl_loss: Some(Duration::from_secs(60)),
        reconnect_delay: Some(Duration::from_millis(200)),
        ..Recovery::default()
    };
    let options = Options {
        more_addrs: addrs[1..].to_vec(),
        recovery,
        unsettled: Unsettled::separate(),
        ..Options::new(addrs[0], Nqn::parse(NQN).unwrap())
    };
    run(host, move || async move { NvmfDevice::connect(options).await.unwrap() })
}

fn disk() -> Arc<dyn BlockDevice> {
    let uri: DeviceUri = "malloc:///m?num_blocks=64".parse().unwrap();
    aio::devices::create(&uri).unwrap()
}

#[test]
fn a_target_that_is_killed_and_comes_back_is_no_error() {
    for engine in [EngineChoice::Auto, EngineChoice::Epoll] {
        let (disk, host) = (disk(), core(8, engine));
        let (mut process, addr) = Process::start(([127, 0, 0, 1], 0).into(), disk.clone());
        let device = connect(&host, &[addr]);
        let (worker, used) = (host.clone(), device.clone());
        let working = std::thread::spawn(move || run(&worker, move || work(used, 4000)));
        let mut kills = 0;
        while !working.is_finished() && kills < 3 {
            std::thread::sleep(Duration::from_millis(100));
            process.kill();
            kills += 1;
            process = Process::start(addr, disk.clone()).0;
        }
        assert_eq!(working.join().unwrap(), 0, "no I/O fails, and none is lost");
        assert!(device.is_live() && device.paths()[0].losses >= 1, "{:?}", device.paths());
        drop(device);
        host.stop();
        host.join();
        process.kill();
    }
}

#[test]
fn one_of_two_paths_goes_for_good_and_nobody_notices() {
    let (disk, host) = (disk(), core(9, EngineChoice::Auto));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (first, a) = Process::start(any, disk.clone());
    let (second, b) = Process::start(any, disk);
    let device = connect(&host, &[a, b]);
    let (worker, used) = (host.clone(), device.clone());
    let working = std::thread::spawn(move || run(&worker, move || work(used, 4000)));
    std::thread::sleep(Duration::from_millis(100));
    first.kill();
    assert_eq!(working.join().unwrap(), 0);
    assert!(device.is_live() && device.paths()[1].losses == 0, "{:?}", device.paths());
    drop(device);
    host.stop();
    host.join();
    second.kill();
}
