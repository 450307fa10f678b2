//! The target without sockets: a core that acknowledges, a host that speaks in SQEs.

mod admin;
mod connect;
mod control;
mod events;
mod identify;
mod lifecycle;
mod nvm;
mod random;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aio::device::{EventSink, Subscription};
use aio::{
    BlockCount, BlockDevice, Capabilities, DeviceError, DeviceEvent, Geometry, Instant, IoChannel,
    LocalBoxFuture,
};
use nvme::fabrics::{ConnectData, ConnectSqe, PropertySqe};
use nvme::feature::{Fid, SetFeatures};
use nvme::identify::{Cns, Identify};
use nvme::log::{GetLogPage, Lid};
use nvme::property::{Cc, Csts, PropertyOffset};
use nvme::sgl::SglDescriptor;
use nvme::{AdminOpcode, Cid, Cntlid, HostId, Nqn, Nsid, Qid, Sqe, Status};

use super::*;

pub(super) const NQN: &str = "nqn.2019-05.io.openebs:disk";
pub(super) const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
pub(super) const OTHER_HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555";

/// A device that nobody reads: its size can change and it can go away.
pub(super) struct TestDevice {
    uuid: uuid::Uuid,
    block_bytes: u32,
    caps: Capabilities,
    size_blocks: AtomicU64,
    sinks: Arc<Mutex<Vec<Option<EventSink>>>>,
}

pub(super) const ALL_CAPS: Capabilities = Capabilities::UNMAP
    .union(Capabilities::UNMAP_ZEROES)
    .union(Capabilities::FUA)
    .union(Capabilities::WRITE_ZEROES)
    .union(Capabilities::COMPARE)
    .union(Capabilities::COMPARE_AND_WRITE)
    .union(Capabilities::VERIFY)
    .union(Capabilities::COPY);

impl TestDevice {
    pub(super) fn new(number: u128, caps: Capabilities) -> Arc<Self> {
        Self::shaped(number, caps, 512)
    }

    pub(super) fn shaped(number: u128, caps: Capabilities, block_bytes: u32) -> Arc<Self> {
        Arc::new(Self {
            uuid: uuid::Uuid::from_u128(number),
            block_bytes,
            caps,
            size_blocks: AtomicU64::new(2048),
            sinks: Arc::default(),
        })
    }

    pub(super) fn event(&self, event: DeviceEvent) {
        if let DeviceEvent::Resized(size) = event {
            self.size_blocks.store(size.0, Ordering::Relaxed);
        }
        let sinks: Vec<EventSink> = self.sinks.lock().unwrap().iter().flatten().cloned().collect();
        for sink in sinks {
            sink(event);
        }
    }

    pub(super) fn subscribers(&self) -> usize {
        self.sinks.lock().unwrap().iter().flatten().count()
    }
}

struct Unsubscribe(Arc<Mutex<Vec<Option<EventSink>>>>, usize);

impl Drop for Unsubscribe {
    fn drop(&mut self) {
        self.0.lock().unwrap()[self.1] = None;
    }
}

impl BlockDevice for TestDevice {
    fn name(&self) -> &str {
        "test"
    }

    fn uuid(&self) -> uuid::Uuid {
        self.uuid
    }

    fn driver(&self) -> &'static str {
        "test"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_bytes: self.block_bytes,
            meta_bytes: 0,
            buf_align: 1,
            sg_elem_align: 1,
            max_sg: 64,
            max_blocks: 65_536,
            boundary_blocks: 8,
            atomic_blocks: 1,
            compare_write_blocks: 65_536,
            queue_depth: 128,
        }
    }

    fn size(&self) -> BlockCount {
        BlockCount(self.size_blocks.load(Ordering::Relaxed))
    }

    fn capabilities(&self) -> Capabilities {
        self.caps
    }

    fn incarnation(&self) -> Option<u128> {
        None
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        let mut sinks = self.sinks.lock().unwrap();
        sinks.push(Some(sink));
        Subscription::new(Unsubscribe(self.sinks.clone(), sinks.len() - 1))
    }

    fn remove(&self) {
        self.event(DeviceEvent::Removed);
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        unreachable!("the test core opens nothing")
    }
}

/// A core that carries out every order at once, except while it `holds`.
pub(super) struct TestCore {
    pub(super) inbox: Arc<CoreInbox>,
    /// What it was told, as far as tests look at it.
    pub(super) log: Vec<String>,
    pub(super) tables: Vec<(SubsystemId, NsInfo, Arc<IoCounters>)>,
    pub(super) aborts: Vec<AbortRequest>,
    pub(super) hold: bool,
    pub(super) fail_opens: bool,
    pub(super) held: Vec<CoreMsg>,
}

impl TestCore {
    pub(super) fn new(target: &Target) -> Self {
        Self {
            inbox: target.attach_core(|| ()),
            log: Vec::new(),
            tables: Vec::new(),
            aborts: Vec::new(),
            hold: false,
            fail_opens: false,
            held: Vec::new(),
        }
    }

    /// Takes what waits; returns whether there was anything.
    pub(super) fn serve(&mut self) -> bool {
        self.inbox.take(&mut self.held);
        if self.hold || self.held.is_empty() {
            return false;
        }
        for msg in std::mem::take(&mut self.held) {
            self.act(msg);
        }
        true
    }

    fn act(&mut self, msg: CoreMsg) {
        match msg {
            CoreMsg::Attach(attach, ack) => {
                self.log.push(format!("attach {}", attach.info.nsid));
                if self.fail_opens {
                    return ack.fail(DeviceError::Gone("test".into()));
                }
                self.tables.push((attach.subsystem, attach.info, attach.counters));
                ack.done();
            }
            CoreMsg::Detach { subsystem, nsid, ack } => {
                self.log.push(format!("detach {nsid}"));
                self.tables.retain(|(s, info, _)| *s != subsystem || info.nsid != nsid);
                ack.done();
            }
            CoreMsg::Update { subsystem, info, ack } => {
                self.log.push(format!("update {} to {} blocks", info.nsid, info.size_blocks));
                for (s, old, _) in &mut self.tables {
                    if *s == subsystem && old.nsid == info.nsid {
                        *old = info;
                    }
                }
                ack.done();
            }
            CoreMsg::SetAna { ack, .. } => {
                self.log.push("ana".into());
                ack.done();
            }
            CoreMsg::Pause { ack, .. } => {
                self.log.push("pause".into());
                ack.done();
            }
            CoreMsg::Resume { ack, .. } => {
                self.log.push("resume".into());
                ack.done();
            }
            CoreMsg::Forget { subsystem, ack } => {
                self.log.push("forget".into());
                assert!(self.tables.iter().all(|(s, ..)| *s != subsystem), "forgotten with namespaces");
                ack.done();
            }
            CoreMsg::Reserve { ack, .. } => {
                self.log.push("reserve".into());
                ack.done();
            }
            CoreMsg::Complete(_) => self.log.push("complete".into()),
            CoreMsg::Abort(request) => self.aborts.push(request),
            CoreMsg::Attend => self.log.push("attend".into()),
            CoreMsg::RetryConnects => self.log.push("retry".into()),
        }
    }
}

/// Runs a control operation to its end, with `core` doing its part.
pub(super) fn run<T>(core: &mut TestCore, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..100 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
        core.serve();
    }
    panic!("the operation does not end");
}

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Seconds on the test's clock.
pub(super) fn at(seconds: u64) -> Instant {
    Instant::from_ns(0) + Duration::from_secs(seconds)
}

/// A target with one core, one listener and subsystem [`NQN`], which has namespace 1.
pub(super) struct Bench {
    pub(super) target: Target,
    pub(super) core: TestCore,
    pub(super) listener: ListenerId,
    pub(super) device: Arc<TestDevice>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(TargetConfig::default(), SubsystemSpec::new(NQN), ALL_CAPS)
    }

    pub(super) fn with(config: TargetConfig, spec: SubsystemSpec, caps: Capabilities) -> Self {
        let target = Target::new(config);
        let mut core = TestCore::new(&target);
        let listener = target.add_listener(addr("0.0.0.0:8420"));
        run(&mut core, target.create_subsystem(spec)).unwrap();
        let device = TestDevice::new(1, caps);
        let nsid = run(&mut core, target.add_namespace(NQN, NamespaceSpec::new(device.clone()))).unwrap();
        assert_eq!(nsid, Nsid(1));
        Self { target, core, listener, device }
    }

    /// Offers a Connect.
    pub(super) fn offer(&self, sqe: &ConnectSqe, data: &ConnectData, now: Instant) -> ConnectOutcome {
        self.target.connect(&ConnectRequest {
            sqe: &sqe.to_sqe(),
            data: data.wire(),
            listener: self.listener,
            local: addr("192.0.2.1:8420"),
            peer: addr("192.0.2.7:50000"),
            inbox: &self.core.inbox,
            now,
            since: at(0),
        })
    }

    pub(super) fn admin_of(&self, subnqn: &str, hostnqn: &str) -> ConnectOutcome {
        let data = connect_data(subnqn, hostnqn, Cntlid::DYNAMIC);
        self.offer(&ConnectSqe::new(Qid(0), 32, 5000), &data, at(0))
    }

    /// Connects, enables, and returns the admin queue.
    pub(super) fn host(&self) -> QueueGrant {
        let admin = granted(self.admin_of(NQN, HOST));
        enable(&admin);
        admin
    }

    /// Connects I/O queue `qid` of `admin`'s controller.
    pub(super) fn io_queue(&self, admin: &QueueGrant, qid: u16) -> ConnectOutcome {
        let controller = admin.controller();
        let data = connect_data(NQN, controller.hostnqn().as_str(), controller.cntlid());
        self.offer(&ConnectSqe::new(Qid(qid), 128, 0), &data, at(0))
    }
}

/// Each host has an identifier made from its name.
pub(super) fn hostid(hostnqn: &str) -> HostId {
    let mut id = [0x11; 16];
    id[0] = hostnqn.bytes().fold(1, u8::wrapping_add);
    HostId(id)
}

pub(super) fn connect_data(subnqn: &str, hostnqn: &str, cntlid: Cntlid) -> ConnectData {
    let (subnqn, host) = (Nqn::parse(subnqn).unwrap(), Nqn::parse(hostnqn).unwrap());
    ConnectData::new(hostid(hostnqn), cntlid, &subnqn, &host)
}

#[track_caller]
pub(super) fn granted(outcome: ConnectOutcome) -> QueueGrant {
    match outcome {
        ConnectOutcome::Granted(grant) => grant,
        ConnectOutcome::Rejected(rejection) => panic!("rejected: {rejection:?}"),
        ConnectOutcome::Wait => panic!("told to wait"),
    }
}

#[track_caller]
pub(super) fn rejected(outcome: ConnectOutcome) -> Rejection {
    match outcome {
        ConnectOutcome::Granted(_) => panic!("granted"),
        ConnectOutcome::Rejected(rejection) => rejection,
        ConnectOutcome::Wait => panic!("told to wait"),
    }
}

/// What a Linux host writes to CC to enable.
pub(super) fn cc_enable() -> Cc {
    Cc(0).with_css(6).with_iosqes(6).with_iocqes(4).with_en(true)
}

#[track_caller]
pub(super) fn set_cc(admin: &QueueGrant, cc: Cc, now: Instant) {
    let sqe = PropertySqe::set(PropertyOffset::CC, u64::from(cc.0)).to_sqe();
    assert_eq!(admin.controller().admin(&sqe, &[], now), AdminOutcome::success(0));
}

#[track_caller]
pub(super) fn enable(admin: &QueueGrant) {
    set_cc(admin, cc_enable(), at(0));
    assert!(csts(admin).rdy());
}

pub(super) fn property(admin: &QueueGrant, property: PropertyOffset) -> u64 {
    match admin.controller().admin(&PropertySqe::get(property).to_sqe(), &[], at(0)) {
        AdminOutcome::Done { status: Status::SUCCESS, result } => result,
        other => panic!("{other:?}"),
    }
}

pub(super) fn csts(admin: &QueueGrant) -> Csts {
    Csts(property(admin, PropertyOffset::CSTS) as u32)
}

/// Executes a command that returns `len_bytes` of data.
pub(super) fn read_admin(admin: &QueueGrant, mut sqe: Sqe, len_bytes: u32) -> Result<Vec<u8>, Status> {
    sqe.set_sgl1(SglDescriptor::transport(len_bytes));
    match admin.controller().admin(&sqe, &[], at(1)) {
        AdminOutcome::Data { data, .. } => {
            assert_eq!(data.len(), len_bytes as usize);
            Ok(data)
        }
        AdminOutcome::Done { status, .. } => Err(status),
        AdminOutcome::Later => panic!("later"),
    }
}

pub(super) fn identify(admin: &QueueGrant, identify: Identify) -> Result<Vec<u8>, Status> {
    read_admin(admin, identify.sqe(), 4096)
}

pub(super) fn identify_ns(admin: &QueueGrant, cns: Cns, nsid: u32) -> Result<Vec<u8>, Status> {
    identify(admin, Identify::new(cns, Nsid(nsid)))
}

pub(super) fn log_page(admin: &QueueGrant, get: GetLogPage) -> Result<Vec<u8>, Status> {
    read_admin(admin, get.sqe(), get.len_bytes as u32)
}

pub(super) fn read_log(admin: &QueueGrant, lid: Lid, len_bytes: u64) -> Vec<u8> {
    log_page(admin, GetLogPage::new(lid, len_bytes)).unwrap()
}

/// Executes a command without data.
pub(super) fn command(admin: &QueueGrant, sqe: &Sqe) -> Result<u64, Status> {
    match admin.controller().admin(sqe, &[], at(1)) {
        AdminOutcome::Done { status, result } => status.ok().map(|()| result),
        other => panic!("{other:?}"),
    }
}

pub(super) fn set_feature(admin: &QueueGrant, fid: Fid, value: u32) -> Result<u64, Status> {
    command(admin, &SetFeatures::new(fid, value).sqe())
}

/// Sends an Asynchronous Event Request.
pub(super) fn event_request(admin: &QueueGrant, cid: u16) -> AdminOutcome {
    let mut sqe = Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, Nsid::NONE);
    sqe.set_cid(Cid(cid));
    admin.controller().admin(&sqe, &[], at(1))
}

pub(super) fn completions(admin: &QueueGrant) -> Vec<AdminCompletion> {
    let mut out = Vec::new();
    assert_eq!(admin.controller().has_completions(), {
        admin.controller().take_completions(&mut out);
        !out.is_empty()
    });
    out
}
