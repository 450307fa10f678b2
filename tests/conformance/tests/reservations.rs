//! Reservations over the wire: two hosts (our initiator, with two identifiers) at our target over loopback, and two
//! nexuses of one volume over two such targets.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use aio::facade::IoError;
use aio::facets::{FacetError, errno};
use aio::reactor::{Core, CoreHandle, EngineChoice, spawn_thread};
use aio::{BlockDevice, CoreId, Descriptor, DeviceUri, DmaBuf, ReactorConfig};
use conformance::reactor::ReactorDriver;
use conformance::{DriverRef, block_on};
use nexus::{
    ChildSpec, CreateNexus, Nexus, NexusError, NexusState, NoStore, Preempt, Reservation, SHUT_DOWN,
};
use nvme::reservation::{
    Acquire, AcquireAction, ChangePersistence, Register, RegisterAction, Release, ReleaseAction,
    ReservationType,
};
use nvme::{HostId, Nqn, Status};
use nvmf::initiator::{NvmfDevice, Options};
use nvmf::target::core::{CoreConfig, TargetCore};
use nvmf::target::{NamespaceSpec, SubsystemSpec, Target, TargetConfig};
use uuid::Uuid;

const BLOCK: u32 = 4096;
const NQN: &str = "nqn.2019-05.io.openebs:reserved";
const EA: ReservationType = ReservationType::EXCLUSIVE_ACCESS;
const WE: ReservationType = ReservationType::WRITE_EXCLUSIVE;
const A: HostId = HostId([0xa; 16]);
const B: HostId = HostId([0xb; 16]);

/// A target of its own core, with one disk.
struct Served {
    core: CoreHandle,
    addr: SocketAddr,
    _target: Target,
}

impl Served {
    fn new(driver: &DriverRef, name: &str, core: u32) -> Self {
        let core = spawn_thread(ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(core)) }).unwrap();
        let target = Target::new(TargetConfig::default());
        let wake = core.clone();
        let inbox = target.attach_core(move || wake.wake());
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = target.add_listener(local);
        let shared = target.clone();
        let started = core.call(move || async move {
            let core = Core::current().unwrap();
            let pools = core.pools().unwrap();
            let limits = CoreConfig::default();
            let poller = TargetCore::new(shared, inbox, core.network(), pools, core.memory(), limits);
            let mut poller = poller.unwrap();
            let addr = poller.listen(listener, local).unwrap();
            core.add_poller(Rc::new(RefCell::new(poller)));
            addr
        });
        let addr = block_on(driver, started).unwrap();
        let disk: DeviceUri = format!("malloc:///{name}?size_mb=16&blk_size=4096").parse().unwrap();
        let disk = aio::devices::create(&disk).unwrap();
        block_on(driver, target.create_subsystem(SubsystemSpec::new(NQN))).unwrap();
        block_on(driver, target.add_namespace(NQN, NamespaceSpec::new(disk))).unwrap();
        Self { core, addr, _target: target }
    }

    fn device(&self, driver: &DriverRef, hostid: HostId) -> Arc<NvmfDevice> {
        let options = Options::new(self.addr, Nqn::parse(NQN).unwrap());
        let hostnqn = Nqn::from_uuid(hostid.0);
        block_on(driver, NvmfDevice::connect(Options { hostid, hostnqn, ..options })).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.core.stop();
        self.core.join();
    }
}

fn buf(fill: u8) -> DmaBuf {
    let mut buf = Core::current().unwrap().pools().unwrap().alloc(BLOCK).unwrap();
    buf[..BLOCK as usize].fill(fill);
    buf
}

async fn write(host: &Descriptor, fill: u8) -> Result<(), IoError> {
    host.write_at(0, BLOCK, buf(fill)).await.0
}

async fn read(host: &Descriptor) -> Result<u8, IoError> {
    let (result, buf) = host.read_at(0, BLOCK, buf(0)).await;
    result.map(|()| buf[0])
}

fn is_conflict<T: std::fmt::Debug>(result: Result<T, IoError>) -> bool {
    matches!(result, Err(IoError::Status(s)) if s.is(Status::RESERVATION_CONFLICT))
}

fn register(key: u64) -> Register {
    Register {
        action: RegisterAction::REGISTER,
        ignore_existing_key: false,
        persistence: ChangePersistence::NO_CHANGE,
        crkey: 0,
        nrkey: key,
    }
}

fn acquire(action: AcquireAction, rtype: ReservationType, crkey: u64, prkey: u64) -> Acquire {
    Acquire { action, ignore_existing_key: false, rtype, crkey, prkey }
}

#[test]
fn two_hosts_take_turns() {
    let driver = ReactorDriver::shared(EngineChoice::Auto).unwrap();
    let served = Served::new(&driver, "turns", 7);
    let (a, b) = (served.device(&driver, A), served.device(&driver, B));
    block_on(&driver, async {
        let (fa, fb) = (a.reservations().unwrap(), b.reservations().unwrap());
        assert_eq!((fa.host(), fb.host()), (A, B));
        let (a, b) = (Descriptor::open(a.clone()).await.unwrap(), Descriptor::open(b.clone()).await.unwrap());
        write(&b, 1).await.unwrap();
        fa.register(register(10)).await.unwrap();
        fb.register(register(20)).await.unwrap();
        fa.acquire(acquire(AcquireAction::ACQUIRE, WE, 10, 0)).await.unwrap();
        assert!(is_conflict(write(&b, 2).await));
        assert_eq!(read(&b).await.unwrap(), 1, "of Write Exclusive others read");
        write(&a, 3).await.unwrap();
        let refused = fb.acquire(acquire(AcquireAction::ACQUIRE, EA, 20, 0)).await.unwrap_err();
        assert!(
            matches!(&refused, FacetError::Refused { status, .. } if status.is(Status::RESERVATION_CONFLICT))
        );
        assert_eq!(refused.errno(), errno::EBADE);
        fb.acquire(acquire(AcquireAction::PREEMPT_AND_ABORT, EA, 20, 10)).await.unwrap();
        assert!(is_conflict(write(&a, 4).await) && is_conflict(read(&a).await));
        assert!(is_conflict(a.flush().await), "a flush is of the write commands");
        assert_eq!(read(&b).await.unwrap(), 3);
        let report = fa.report().await.unwrap();
        assert_eq!((report.rtype, report.persists), (Some(EA), false));
        assert_eq!(
            report.registrants.iter().map(|r| (r.hostid, r.key, r.holds)).collect::<Vec<_>>(),
            [(B, 20, true)]
        );
        let release = |action| Release { action, ignore_existing_key: false, rtype: EA, crkey: 20 };
        fb.release(release(ReleaseAction::RELEASE)).await.unwrap();
        write(&a, 5).await.unwrap();
        fb.release(release(ReleaseAction::CLEAR)).await.unwrap();
        assert!(fb.report().await.unwrap().registrants.is_empty());
    });
}

/// More registrants than the first read of a report has room for.
#[test]
fn a_long_report() {
    let driver = ReactorDriver::shared(EngineChoice::Auto).unwrap();
    let served = Served::new(&driver, "long", 6);
    let hosts: Vec<_> = (1..=70).map(|n| served.device(&driver, HostId([n; 16]))).collect();
    block_on(&driver, async {
        for (n, host) in hosts.iter().enumerate() {
            host.reservations().unwrap().register(register(n as u64)).await.unwrap();
        }
        let report = hosts[3].reservations().unwrap().report().await.unwrap();
        assert_eq!(report.registrants.len(), 70);
        assert_eq!((report.registrants[69].hostid, report.registrants[69].key), (HostId([70; 16]), 69));
    });
}

async fn nexus(core: CoreHandle, children: &[Arc<NvmfDevice>], key: u64) -> Result<Nexus, NexusError> {
    let spec = |d: &Arc<NvmfDevice>| ChildSpec {
        uri: format!("nvmf://{}", d.options().addr),
        device: d.clone(),
        uuid: d.uuid(),
    };
    let wish = CreateNexus {
        name: format!("volume-{key}"),
        uuid: Uuid::from_u128(key.into()),
        device_uuid: Uuid::from_u128(9),
        size_bytes: 4 << 20,
        offers: aio::Capabilities::all(),
        children: children.iter().map(spec).collect(),
        reservation: Some(Reservation { key, rtype: EA, preempt: Preempt::Holder }),
    };
    Nexus::create(core, wish, Arc::new(NoStore)).await
}

/// Hazard H6, with targets and initiators as they are: the second nexus of a volume shuts the first one out while that one
/// writes, and what the first one was told is there.
#[test]
fn h06_the_newer_nexus_shuts_the_older_one_out() {
    let driver = ReactorDriver::shared(EngineChoice::Auto).unwrap();
    let targets = [Served::new(&driver, "left", 4), Served::new(&driver, "right", 5)];
    let children = |host| targets.iter().map(|t| t.device(&driver, host)).collect::<Vec<_>>();
    let (of_a, of_b) = (children(A), children(B));
    let home = spawn_thread(ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(3)) }).unwrap();
    block_on(&driver, async {
        let old = nexus(home.clone(), &of_a, 1).await.unwrap();
        let host = Descriptor::open(Arc::new(old.clone())).await.unwrap();
        write(&host, 1).await.unwrap();
        // The older one writes on while the newer one is made.
        let core = Core::current().unwrap();
        let writer = core.spawn({
            let host = host.clone();
            async move {
                let mut last = 1;
                loop {
                    let next = if last == 200 { 2 } else { last + 1 };
                    match write(&host, next).await {
                        Ok(()) => last = next,
                        Err(error) => return (last, next, error),
                    }
                }
            }
        });
        let new = nexus(home.clone(), &of_b, 2).await.unwrap();
        let second = Descriptor::open(Arc::new(new.clone())).await.unwrap();
        let found = read(&second).await.unwrap();
        let (last, next, error) = writer.await.unwrap();
        assert!(matches!(error, IoError::Status(s) if s.is(SHUT_DOWN)), "{error:?}");
        assert!(
            found == last || found == next,
            "{found} is neither {last}, acknowledged, nor {next}, under way"
        );
        assert_eq!(old.info().await.unwrap().0, NexusState::Shutdown);
        write(&second, 250).await.unwrap();
        assert!(matches!(write(&host, 7).await, Err(IoError::Status(s)) if s.is(SHUT_DOWN)));
        for child in &of_b {
            let offset = nexus::layout::DATA_OFFSET_BYTES;
            let child = Descriptor::open(child.clone()).await.unwrap();
            let (result, buf) = child.read_at(offset, BLOCK, buf(0)).await;
            result.unwrap();
            assert_eq!(buf[0], 250);
        }
        assert_eq!(new.info().await.unwrap().0, NexusState::Online);
        new.destroy().await.unwrap();
        old.destroy().await.unwrap();
    });
    home.stop();
    home.join();
}
