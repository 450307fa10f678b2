//! A volume's facets over the wire: our initiator asks our target over loopback, and gets what the volume itself answers.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, UNIX_EPOCH};

use aio::device::{EventSink, Subscription};
use aio::facade::ByteRange;
use aio::facets::{CreateSnapshot, FacetError, FacetFuture, Page, Piece, Position, Since, Snapshots, errno};
use aio::reactor::{Core, CoreHandle, EngineChoice, spawn_thread};
use aio::{
    BlockCount, BlockDevice, BlockRange, Capabilities, CoreId, Descriptor, DeviceError, DeviceUri, Geometry,
    IoChannel, Lba, LocalBoxFuture, ReactorConfig,
};
use conformance::reactor::ReactorDriver;
use conformance::{DriverRef, block_on};
use lvs::Pool;
use lvs::info::{CreatePool, CreateVolume};
use nvme::vendor::facets as wire;
use nvme::{AdminOpcode, Nqn, Nsid, Sqe, Status};
use nvmf::initiator::{AdminRequest, Error, NvmfDevice, Options};
use nvmf::target::core::{CoreConfig, TargetCore};
use nvmf::target::{NamespaceSpec, SubsystemSpec, Target, TargetConfig};
use uuid::Uuid;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4096;
const NQN: &str = "nqn.2019-05.io.openebs:facets";

/// A target whose namespace is a volume, both on a core of their own, and the volume seen from here.
struct Bed {
    driver: DriverRef,
    target: Target,
    core: CoreHandle,
    pool: Pool,
    volume: Arc<dyn BlockDevice>,
    device: Arc<NvmfDevice>,
}

impl Bed {
    fn new(name: &str, config: TargetConfig) -> Self {
        let driver = ReactorDriver::shared(EngineChoice::Auto).unwrap();
        let core = spawn_thread(ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(7)) }).unwrap();
        let (target, addr) = serve(&driver, &core, config);
        let disk: DeviceUri = format!("malloc:///{name}?size_mb=64&blk_size=4096").parse().unwrap();
        let disk = aio::devices::create(&disk).unwrap();
        let wish = CreatePool { name: name.into(), uuid: None, force: false };
        let pool = block_on(&driver, Pool::create(core.clone(), vec![disk], wish)).unwrap();
        let size_bytes = BLOCKS * BLOCK;
        let wish = CreateVolume { name: "v".into(), uuid: None, size_bytes, thin: true, entity_id: None };
        let volume: Arc<dyn BlockDevice> = block_on(&driver, pool.create_volume(wish)).unwrap();
        block_on(&driver, target.create_subsystem(SubsystemSpec::new(NQN))).unwrap();
        let spec = NamespaceSpec::new(volume.clone());
        block_on(&driver, target.add_namespace(NQN, spec)).unwrap();
        let options = Options::new(addr, Nqn::parse(NQN).unwrap());
        let device = block_on(&driver, NvmfDevice::connect(options)).unwrap();
        Self { driver, target, core, pool, volume, device }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(&self.driver, future)
    }

    /// An admin command as it is; what it is refused with.
    fn refusal(&self, sqe: Sqe, data: Vec<u8>) -> Status {
        match self.run(self.device.admin(AdminRequest::new(&sqe, data))) {
            Err(Error::Refused { status, .. }) => status,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.core.stop();
        self.core.join();
    }
}

fn serve(driver: &DriverRef, core: &CoreHandle, config: TargetConfig) -> (Target, SocketAddr) {
    let target = Target::new(config);
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
    (target, addr)
}

/// Everything, in answers of at most `most` ranges.
async fn all(device: &dyn BlockDevice, since: Option<Since>, most: usize) -> Result<Page, FacetError> {
    let ranges = device.ranges().unwrap();
    let end = device.size().0;
    let mut whole = Page::default();
    let mut at = 0;
    loop {
        let piece = Piece { range: BlockRange { start: Lba(at), blocks: BlockCount(end - at) }, most };
        let page = match since {
            None => ranges.allocated(piece).await?,
            Some(since) => ranges.changed(since, piece).await?,
        };
        assert!(page.extents.len() <= most);
        for extent in page.extents {
            match whole.extents.last_mut() {
                // Whether neighbours are one range depends on where the answers end.
                Some(last) if last.data == extent.data && last.range.end() == Some(extent.range.start) => {
                    last.range.blocks.0 += extent.range.blocks.0;
                }
                _ => whole.extents.push(extent),
            }
        }
        match page.next {
            Some(next) => {
                assert!(next.0 > at, "an answer leads on");
                at = next.0;
            }
            None => return Ok(whole),
        }
    }
}

/// Writes every third of 1,500 blocks, and unmaps some.
fn change(bed: &Bed, d: &Descriptor, from: u64) {
    bed.run(async {
        for block in (from..from + 1500).step_by(3) {
            let mut buf = Core::current().unwrap().pools().unwrap().alloc(BLOCK as u32).unwrap();
            buf.fill(block as u8 | 1);
            d.write_at(block * BLOCK, BLOCK as u32, buf).await.0.unwrap();
        }
        let hole = ByteRange { offset_bytes: (from + 30) * BLOCK, len_bytes: 60 * BLOCK };
        d.unmap(&[hole]).await.unwrap();
        d.flush().await.unwrap();
    });
}

fn ranges_and_marks(name: &str, config: TargetConfig) {
    let bed = Bed::new(name, config);
    let (near, far): (&dyn BlockDevice, &dyn BlockDevice) = (&*bed.volume, &*bed.device);
    assert_eq!(far.ranges().unwrap().granularity(), near.ranges().unwrap().granularity());
    let d = bed.run(Descriptor::open(bed.device.clone())).unwrap();
    change(&bed, &d, 0);
    let marks = far.marks().unwrap();
    let at = bed.run(marks.position()).unwrap();
    assert_eq!(Some(at.incarnation), near.incarnation());
    bed.run(marks.put_mark(7, at)).unwrap();
    bed.run(marks.put_mark(u128::MAX, at)).unwrap();
    change(&bed, &d, 1001);
    for since in [None, Some(Since::Mark(7)), Some(Since::Position(at))] {
        let expected = bed.run(all(near, since, 4096)).unwrap();
        assert!(expected.extents.len() > 400, "{}", expected.extents.len());
        assert_eq!(expected.extents.iter().any(|e| !e.data), since.is_some(), "holes are told of changes");
        for most in [1, 7, 4096, usize::MAX] {
            assert_eq!(bed.run(all(far, since, most)).unwrap(), expected, "{since:?}, {most}");
        }
    }
    assert_eq!(bed.run(marks.marks()).unwrap(), bed.run(near.marks().unwrap().marks()).unwrap());
    for _ in 0..2 {
        bed.run(marks.remove_mark(7)).unwrap();
    }
    assert_eq!(bed.run(marks.marks()).unwrap().len(), 1);
    for unknown in [
        Since::Mark(7),
        Since::Snapshot(Uuid::from_u128(9)),
        Since::Position(Position { incarnation: 1, ..at }),
    ] {
        let answer = bed.run(all(far, Some(unknown), 9));
        assert!(matches!(answer, Err(FacetError::Unknown { .. })), "{answer:?}");
    }
    let wrong = bed.run(marks.put_mark(8, Position { incarnation: 1, ..at }));
    assert!(matches!(wrong, Err(FacetError::Unknown { .. })), "{wrong:?}");
    // A part, and what is beyond the end.
    let range = BlockRange { start: Lba(4), blocks: BlockCount(3) };
    let part = bed.run(far.ranges().unwrap().allocated(Piece { range, most: 50 })).unwrap();
    let one = BlockRange { start: Lba(6), blocks: BlockCount(1) };
    assert_eq!(part.extents.iter().map(|e| e.range).collect::<Vec<_>>(), [one]);
    assert_eq!(part.next, None);
    let range = BlockRange { start: Lba(BLOCKS), blocks: BlockCount(3) };
    let beyond = bed.run(far.ranges().unwrap().allocated(Piece { range, most: 50 })).unwrap();
    assert_eq!(beyond, Page::default());
}

#[test]
fn ranges_and_marks_are_those_of_the_volume() {
    ranges_and_marks("facets", TargetConfig::default());
}

/// Answers have to fit into what one command may transfer.
#[test]
fn ranges_come_in_short_answers() {
    ranges_and_marks("short", TargetConfig { max_io_bytes: 8192, ..TargetConfig::default() });
}

#[test]
fn snapshots_are_made_once_and_failures_have_a_number() {
    let bed = Bed::new("snapshots", TargetConfig::default());
    let spec = |uuid: u128, name: &str| CreateSnapshot {
        name: name.into(),
        uuid: Uuid::from_u128(uuid),
        txn_id: "41".into(),
        entity_id: "an owner".into(),
        created: UNIX_EPOCH + Duration::new(1_728_113_400, 5),
    };
    let snapshots = bed.device.snapshots().unwrap();
    bed.run(snapshots.create_snapshot(spec(3, "a/41"))).unwrap();
    let made = bed.run(bed.pool.snapshot_info(Uuid::from_u128(3))).unwrap();
    let wanted = spec(3, "a/41");
    assert_eq!((made.name, made.txn_id, made.entity_id), (wanted.name, wanted.txn_id, wanted.entity_id));
    assert_eq!((made.created, made.source), (wanted.created, Some(bed.volume.uuid())));
    let again = bed.run(snapshots.create_snapshot(spec(3, "b"))).unwrap_err();
    assert_eq!(again.errno(), errno::EEXIST, "{again:?}");
    // As Mayastor's hosts send it: without a namespace, the time in the dwords.
    let uuid = Uuid::from_u128(4).to_string();
    let message = wire::SnapshotMessage { name: Some("m"), uuid: Some(&uuid), ..Default::default() };
    let mut sqe = Sqe::admin(wire::CREATE_SNAPSHOT, Nsid::NONE);
    sqe.set_cdw10_11(86_400);
    bed.run(bed.device.admin(AdminRequest::new(&sqe, message.to_wire()))).unwrap();
    let made = bed.run(bed.pool.snapshot_info(Uuid::from_u128(4))).unwrap();
    assert_eq!(made.created, UNIX_EPOCH + Duration::from_secs(86_400));
    // A snapshot itself can be read, and asked, and no more than that.
    let opened = bed.run(bed.pool.open_snapshot(Uuid::from_u128(3))).unwrap();
    bed.run(bed.target.remove_namespace(NQN, Nsid(1))).unwrap();
    bed.run(bed.target.add_namespace(NQN, NamespaceSpec::new(opened))).unwrap();
    let options = bed.device.options().clone();
    let device = bed.run(NvmfDevice::connect(options)).unwrap();
    assert!(device.ranges().is_some() && device.marks().is_none() && device.snapshots().is_none());
    let asked = AdminRequest::new(&Sqe::admin(wire::READ_MARKS, Nsid(1)), vec![0; 512]);
    let refused = bed.run(device.admin(asked));
    assert!(matches!(refused, Err(Error::Refused { status, .. }) if status.is(Status::INVALID_OPCODE)));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let bed = Bed::new("nonsense", TargetConfig::default());
    let sqe = |opcode, nsid| Sqe::admin(opcode, Nsid(nsid));
    for nsid in [0, 2, u32::MAX] {
        for opcode in wire::OPCODES.into_iter().filter(|o| *o != wire::CREATE_SNAPSHOT) {
            let data = if opcode == wire::REMOVE_MARK { Vec::new() } else { vec![0; 64] };
            assert!(bed.refusal(sqe(opcode, nsid), data).is(Status::INVALID_NAMESPACE), "{opcode:?} {nsid}");
        }
    }
    for (opcode, len, status) in [
        (wire::READ_FACETS, 63, Status::DATA_SGL_LENGTH_INVALID),
        (wire::READ_FACETS, 65, Status::DATA_SGL_LENGTH_INVALID),
        (wire::READ_ALLOCATED, 39, Status::DATA_SGL_LENGTH_INVALID),
        (wire::READ_ALLOCATED, (128 << 10) + 1, Status::INVALID_FIELD),
        (wire::READ_MARKS, 31, Status::DATA_SGL_LENGTH_INVALID),
        (wire::PUT_MARK, 39, Status::DATA_SGL_LENGTH_INVALID),
        (wire::CREATE_SNAPSHOT, 3, Status::INVALID_FIELD),
        (wire::CREATE_SNAPSHOT, 64, Status::INVALID_FIELD),
        (wire::CREATE_SNAPSHOT, 5000, Status::INVALID_FIELD),
        // The number next to one of them.
        (AdminOpcode::new(0xea), 64, Status::INVALID_OPCODE),
    ] {
        assert_eq!(bed.refusal(sqe(opcode, 1), vec![0; len]).code(), status.code(), "{opcode:?} {len}");
    }
    let mut beyond = sqe(wire::READ_ALLOCATED, 1);
    beyond.set_cdw10_11(BLOCKS);
    assert!(bed.refusal(beyond, vec![0; 64]).is(Status::LBA_OUT_OF_RANGE));
    for start in [u64::MAX, 1 << 63] {
        beyond.set_cdw10_11(start);
        assert!(bed.refusal(beyond, vec![0; 64]).is(Status::LBA_OUT_OF_RANGE));
    }
    // Many at once: some are told to come again, and none is left without an answer.
    let device = &bed.device;
    let answers = bed.run(async {
        let core = Core::current().unwrap();
        let one = |_| {
            let device = device.clone();
            core.spawn(async move {
                let sqe = Sqe::admin(wire::READ_MARKS, Nsid(1));
                device.admin(AdminRequest::new(&sqe, vec![0; 4096])).await
            })
        };
        let tasks: Vec<_> = (0..24).map(one).collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        answers
    });
    assert!(answers.iter().any(Result::is_ok));
    for answer in answers {
        let interrupted = Status::COMMAND_INTERRUPTED;
        assert!(matches!(answer, Ok(_) | Err(Error::Refused { status: _, .. })), "{answer:?}");
        if let Err(Error::Refused { status, .. }) = answer {
            assert!(status.is(interrupted), "{status}");
        }
    }
}

/// A device whose snapshots take until they are let go.
struct Slow {
    inner: Arc<dyn BlockDevice>,
    asked: AtomicBool,
    let_go: AtomicBool,
}

impl Snapshots for Slow {
    fn create_snapshot(&self, _: CreateSnapshot) -> FacetFuture<'_, ()> {
        Box::pin(poll_fn(|cx| {
            self.asked.store(true, Ordering::Release);
            if self.let_go.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }))
    }
}

impl BlockDevice for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn uuid(&self) -> Uuid {
        self.inner.uuid()
    }

    fn driver(&self) -> &'static str {
        "slow"
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn size(&self) -> BlockCount {
        self.inner.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn incarnation(&self) -> Option<u128> {
        None
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.inner.subscribe(sink)
    }

    fn remove(&self) {
        self.inner.remove();
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        self.inner.open_channel()
    }
}

/// A command that the device still works on keeps the next association of its host out (H3).
#[test]
fn h3_an_association_is_not_gone_before_its_commands_have_ended() {
    let bed = Bed::new("drain", TargetConfig::default());
    let disk: DeviceUri = "malloc:///drained?size_mb=8".parse().unwrap();
    let inner = aio::devices::create(&disk).unwrap();
    let slow = Arc::new(Slow { inner, asked: AtomicBool::new(false), let_go: AtomicBool::new(false) });
    let nqn = "nqn.2019-05.io.openebs:drain";
    bed.run(bed.target.create_subsystem(SubsystemSpec::new(nqn))).unwrap();
    bed.run(bed.target.add_namespace(nqn, NamespaceSpec::new(slow.clone()))).unwrap();
    let options = Options { subnqn: Nqn::parse(nqn).unwrap(), ..bed.device.options().clone() };
    let device = bed.run(NvmfDevice::connect(options.clone())).unwrap();
    let spec = CreateSnapshot {
        name: "s".into(),
        uuid: Uuid::from_u128(1),
        txn_id: String::new(),
        entity_id: String::new(),
        created: UNIX_EPOCH,
    };
    bed.run(async {
        let core = Core::current().unwrap();
        let asked = device.clone();
        drop(core.spawn(async move {
            let answer = asked.snapshots().unwrap().create_snapshot(spec).await;
            assert!(answer.is_err(), "its association has ended");
        }));
        while !slow.asked.load(Ordering::Acquire) {
            core.sleep(Duration::from_millis(1)).await;
        }
        device.remove();
        drop(device);
        // The target has to see that it goes: while it lives, another one may stand beside it.
        core.sleep(Duration::from_millis(300)).await;
        let next = core.spawn(NvmfDevice::connect(options));
        core.sleep(Duration::from_millis(300)).await;
        assert!(!next.is_finished(), "the old association still works on a command");
        slow.let_go.store(true, Ordering::Release);
        next.await.unwrap().unwrap();
    });
}

/// Devices without facets say so, and their namespaces refuse the commands.
#[test]
fn a_plain_device_has_none() {
    let bed = Bed::new("plain", TargetConfig::default());
    let disk: DeviceUri = "malloc:///without?size_mb=8".parse().unwrap();
    let disk = aio::devices::create(&disk).unwrap();
    let nqn = "nqn.2019-05.io.openebs:without";
    bed.run(bed.target.create_subsystem(SubsystemSpec::new(nqn))).unwrap();
    bed.run(bed.target.add_namespace(nqn, NamespaceSpec::new(disk))).unwrap();
    let options = Options { subnqn: Nqn::parse(nqn).unwrap(), ..bed.device.options().clone() };
    let device = bed.run(NvmfDevice::connect(options)).unwrap();
    assert!(device.ranges().is_none() && device.marks().is_none() && device.snapshots().is_none());
}
