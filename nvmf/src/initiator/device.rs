//! The control side of the device, and what its channels share.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use aio::check::REMOVED;
use aio::device::{EventSink, Subscription};
use aio::devices::events::EventHub;
use aio::reactor::Core;
use aio::{
    BlockCount, BlockDevice, Capabilities, DeviceError, DeviceEvent, Geometry, IoChannel, LocalBoxFuture,
    Marks, Ranges, Snapshots,
};
use nvme::feature::Oaes;
use nvme::vendor::facets::Facets;
use nvme::{Cntlid, Nsid, Qid, Status};
use uuid::Uuid;

use super::channel::{Channel, LOST};
use super::connect::{connect_queue, open_queue};
use super::controller::{AdminReply, AdminRequest, Controller};
use super::error::{Error, PeerFault};
use super::facets::FacetFacts;
use super::home::{self, Inbox};
use super::namespace::{ControllerFacts, Namespace, identity};
use super::options::Options;
use super::request::Limits;
use super::slot::MAX_ENTRIES;
use super::stats::{DeviceStats, StatsHub};

/// How often a Connect is tried on a queue that the target has not given up yet, and the pause between.
const QUEUE_ATTEMPTS: u32 = 20;
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// A namespace of a subsystem of another host, as a block device.
///
/// It has a home core, where its admin queue lives; channels connect one I/O queue each, on the core that opens them.
/// Dropping the device and all its channels ends the association.
pub struct NvmfDevice {
    shared: Arc<Shared>,
}

/// Live, or why not any more.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    Live,
    Faulted,
    Removed,
}

/// What the device and its channels share, over all cores.
pub(super) struct Shared {
    name: String,
    uuid: Uuid,
    namespace: Namespace,
    facts: FacetFacts,
    size_blocks: AtomicU64,
    state: AtomicU8,
    fault: OnceLock<PeerFault>,
    events: EventHub,
    queues: Mutex<Queues>,
    options: Options,
    cntlid: Cntlid,
    /// Entries of an I/O queue.
    entries: u16,
    /// Most payload that goes along with its command.
    in_capsule_bytes: u32,
    home: Arc<Inbox>,
    pub(super) stats: StatsHub,
}

/// I/O queue identifiers that the controller granted.
struct Queues {
    /// Longest unused first: the target had most time to notice that it was given up.
    free: VecDeque<u16>,
    granted: usize,
}

impl NvmfDevice {
    /// Connects to a subsystem and uses the namespace that `options` name. The core that runs this becomes the
    /// device's home. Dropping the future closes what was connected.
    pub async fn connect(options: Options) -> Result<Arc<Self>, Error> {
        let core = Core::current().expect("invariant: tasks run inside their reactor");
        let controller = Controller::connect(options.clone()).await?;
        let granted = controller.set_queue_count(options.max_queues).await?;
        let events = controller.enable_events(Oaes::NAMESPACE_ATTRIBUTE).await?;
        let nsid = choose_namespace(&controller, &options).await?;
        let entries = queue_entries(&controller, options.queue_depth);
        let namespace = read_namespace(&controller, nsid, entries - 1).await?;
        // Not every controller has the list of descriptors; the namespace data has two of the identifiers.
        let mut ids = controller.namespace_ids(nsid).await.unwrap_or_default();
        if ids == nvme::identify::NamespaceIds::default() {
            let ns = controller.identify_namespace(nsid).await?;
            (ids.nguid, ids.eui64) = (ns.nguid, ns.eui64);
        }
        let facts = FacetFacts::read(&controller, nsid, namespace.max_transfer_bytes()).await?;
        let in_capsule = controller.identify().in_capsule_bytes().min(namespace.max_transfer_bytes());
        let shared = Arc::new(Shared {
            name: options.device_name(),
            uuid: identity(&ids, options.subnqn.as_str(), nsid),
            size_blocks: AtomicU64::new(namespace.size.0),
            namespace,
            facts,
            state: AtomicU8::new(State::Live as u8),
            fault: OnceLock::new(),
            events: EventHub::default(),
            queues: Mutex::new(Queues { free: (1..=granted).collect(), granted: granted.into() }),
            cntlid: controller.cntlid(),
            options,
            entries,
            in_capsule_bytes: if controller.identify().icdoff.get() == 0 { in_capsule as u32 } else { 0 },
            home: Arc::default(),
            stats: StatsHub::default(),
        });
        let notices = events.contains(Oaes::NAMESPACE_ATTRIBUTE);
        home::start(&core, Rc::new(controller), &shared, shared.home.clone(), notices);
        Ok(Arc::new(Self { shared }))
    }

    /// Any admin command, from any thread. What was issued runs to its end when the future is dropped.
    pub async fn admin(&self, request: AdminRequest) -> Result<AdminReply, Error> {
        let answer = self.shared.home.admin(request).await;
        answer.unwrap_or_else(|| Err(Error::Gone(self.shared.name.clone())))
    }

    /// False once the association has ended: all I/O fails from then on.
    pub fn is_live(&self) -> bool {
        !self.shared.has_failed()
    }

    /// What all its channels were asked to do so far.
    pub fn stats(&self) -> DeviceStats {
        self.shared.stats.sum()
    }

    /// The namespace's identifier.
    pub fn nsid(&self) -> Nsid {
        self.shared.namespace.limits.nsid
    }

    pub(super) fn facts(&self) -> &FacetFacts {
        &self.shared.facts
    }

    /// The controller's identifier.
    pub fn cntlid(&self) -> Cntlid {
        self.shared.cntlid
    }

    /// Why the device faulted, if it did.
    pub fn fault(&self) -> Option<PeerFault> {
        self.shared.fault.get().copied()
    }

    /// How it was connected.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }
}

/// Entries of an I/O queue: what was asked for, within the limits of the controller and of the slots. At least 2.
fn queue_entries(controller: &Controller, depth: u16) -> u16 {
    let mqes = u32::from(controller.cap.mqes_z()) + 1;
    let maxcmd = match controller.identify().maxcmd.get() {
        0 => u32::MAX,
        n => u32::from(n) + 1,
    };
    (u32::from(depth) + 1).min(mqes).min(maxcmd).min(u32::from(MAX_ENTRIES)).max(2) as u16
}

async fn choose_namespace(controller: &Controller, options: &Options) -> Result<Nsid, Error> {
    let wanted = options.nsid.map(Nsid);
    // The list starts above the number given, so one that is asked for is the first behind its predecessor.
    let after = Nsid(wanted.map_or(0, |nsid| nsid.0.saturating_sub(1)));
    let first = controller.active_namespaces(after).await?.first().copied();
    match (first, wanted) {
        (Some(nsid), None) => Ok(nsid),
        (Some(nsid), Some(wanted)) if nsid == wanted => Ok(nsid),
        _ => {
            Err(Error::NoNamespace { subnqn: options.subnqn.clone(), addr: options.addr, nsid: options.nsid })
        }
    }
}

pub(super) async fn read_namespace(
    controller: &Controller,
    nsid: Nsid,
    depth: u16,
) -> Result<Namespace, Error> {
    let ns = controller.identify_namespace(nsid).await?;
    let nvm = controller.nvm_limits().await;
    let facts = ControllerFacts {
        identify: controller.identify(),
        nvm: nvm.as_ref(),
        mpsmin: controller.cap.mpsmin(),
        depth,
    };
    Namespace::new(nsid, &ns, &facts).map_err(|why| Error::Format {
        subnqn: controller.subnqn().clone(),
        nsid: nsid.0,
        why,
    })
}

impl Shared {
    pub(super) fn geometry(&self) -> &Geometry {
        &self.namespace.geometry
    }

    pub(super) fn depth(&self) -> u16 {
        self.entries - 1
    }

    pub(super) fn limits(&self) -> Limits {
        self.namespace.limits
    }

    #[inline]
    pub(super) fn size(&self) -> BlockCount {
        BlockCount(self.size_blocks.load(Ordering::Relaxed))
    }

    /// The status of every new I/O, when the device is not live.
    #[inline]
    pub(super) fn refusal(&self) -> Option<Status> {
        match self.state.load(Ordering::Relaxed) {
            s if s == State::Live as u8 => None,
            s if s == State::Faulted as u8 => Some(LOST),
            _ => Some(REMOVED),
        }
    }

    #[inline]
    pub(super) fn has_failed(&self) -> bool {
        self.state.load(Ordering::Relaxed) == State::Faulted as u8
    }

    /// The first fault ends the device. Called on any core.
    pub(super) fn fail(&self, fault: PeerFault) {
        if self.leave_live(State::Faulted) {
            // The only place that sets it, passed once.
            let _ = self.fault.set(fault);
            self.events.send(DeviceEvent::Faulted);
            self.end();
        }
    }

    /// The namespace or the device is gone.
    pub(super) fn removed(&self) {
        if self.leave_live(State::Removed) {
            self.events.send(DeviceEvent::Removed);
            // Channels in use complete what they have; the last one to go ends the association.
            if self.open_queues() == 0 {
                self.end();
            }
        }
    }

    /// The controller reported this size.
    pub(super) fn resized(&self, size: BlockCount) {
        if self.size_blocks.swap(size.0, Ordering::Relaxed) != size.0 {
            self.events.send(DeviceEvent::Resized(size));
        }
    }

    fn leave_live(&self, to: State) -> bool {
        let from = State::Live as u8;
        self.state.compare_exchange(from, to as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends the association.
    fn end(&self) {
        self.home.end();
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        // Nothing under the lock leaves it half changed.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_queues(&self) -> usize {
        let queues = self.queues();
        queues.granted - queues.free.len()
    }

    fn take_queue(&self) -> Option<Qid> {
        self.queues().free.pop_front().map(Qid)
    }

    /// A channel is gone.
    pub(super) fn give_queue(&self, qid: Qid) {
        self.queues().free.push_back(qid.0);
        if self.state.load(Ordering::Acquire) == State::Removed as u8 && self.open_queues() == 0 {
            self.end();
        }
    }

    fn device_error(&self, op: &'static str, error: Error) -> DeviceError {
        let device = self.name.clone();
        match error {
            Error::Refused { status, .. } => DeviceError::Status { op, device, status },
            Error::Io { source, .. } => DeviceError::Os { op, device, source },
            Error::Gone(_) => DeviceError::Gone(device),
            other => DeviceError::Os { op, device, source: io::Error::other(other) },
        }
    }

    /// Connects one I/O queue on the core that runs this.
    async fn open(self: &Arc<Self>, core: &Core) -> Result<Channel, Error> {
        if self.refusal().is_some() {
            return Err(Error::Gone(self.name.clone()));
        }
        let qid = self.take_queue().ok_or_else(|| Error::NoQueue(self.name.clone()))?;
        let lease = Lease { shared: self, qid };
        let mut attempt = 0;
        let calls = loop {
            let calls = open_queue(core, &self.options, self.entries).await?;
            match connect_queue(&calls, &self.options, qid, self.entries, self.cntlid).await {
                Ok(_) => break calls,
                // The target may still hold the queue that had this number before.
                Err(Error::Refused { status, .. }) if attempt < QUEUE_ATTEMPTS && in_use(status) => {
                    calls.close(PeerFault::Closed);
                    attempt += 1;
                    core.sleep(QUEUE_PAUSE).await;
                }
                Err(error) => {
                    calls.close(PeerFault::Closed);
                    return Err(error);
                }
            }
        };
        let mut queue = calls.into_queue().ok_or_else(|| Error::Gone(self.name.clone()))?;
        queue.set_timeout(self.options.io_timeout);
        queue.set_in_capsule_bytes(self.in_capsule_bytes);
        std::mem::forget(lease);
        let depth = self.namespace.geometry.queue_depth;
        Ok(Channel::new(queue, core.clone(), self.clone(), qid, depth))
    }
}

/// A Connect was refused because of a queue that exists.
fn in_use(status: Status) -> bool {
    [Status::CONNECT_INVALID_PARAMETERS, Status::CONNECT_CONTROLLER_BUSY, Status::SEQUENCE_ERROR]
        .iter()
        .any(|s| status.is(*s))
}

/// Gives a queue identifier back unless a channel took it over.
struct Lease<'a> {
    shared: &'a Shared,
    qid: Qid,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.shared.give_queue(self.qid);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end();
    }
}

impl BlockDevice for NvmfDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    fn driver(&self) -> &'static str {
        "nvmf"
    }

    fn geometry(&self) -> Geometry {
        self.shared.namespace.geometry
    }

    fn size(&self) -> BlockCount {
        self.shared.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.namespace.limits.capabilities
    }

    /// A lost connection ends the device, so one device never spans a restart of its target that it could tell.
    fn incarnation(&self) -> Option<u128> {
        None
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.shared.events.subscribe(sink)
    }

    /// Asks the controller again, which takes a moment: a new size comes as an event.
    fn rescan(&self) -> Result<BlockCount, DeviceError> {
        if self.shared.home.refresh() {
            Ok(self.size())
        } else {
            Err(DeviceError::Gone(self.shared.name.clone()))
        }
    }

    fn remove(&self) {
        self.shared.removed();
    }

    fn ranges(&self) -> Option<&dyn Ranges> {
        self.with_facet(Facets::RANGES).map(|device| device as &dyn Ranges)
    }

    fn marks(&self) -> Option<&dyn Marks> {
        self.with_facet(Facets::MARKS).map(|device| device as &dyn Marks)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.with_facet(Facets::SNAPSHOTS).map(|device| device as &dyn Snapshots)
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async move {
            let core = Core::current().expect("invariant: channels are opened by tasks of a core");
            let channel = self.shared.open(&core).await;
            let channel = channel.map_err(|e| self.shared.device_error("opening a channel", e))?;
            Ok(Box::new(channel) as Box<dyn IoChannel>)
        })
    }
}
