//! The control side of the device, and what its channels share.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use aio::device::{EventSink, Subscription};
use aio::devices::events::EventHub;
use aio::facets::Reservations;
use aio::reactor::Core;
use aio::{
    BlockCount, BlockDevice, Capabilities, DeviceError, DeviceEvent, Geometry, IoChannel, LocalBoxFuture,
    Marks, Ranges, Snapshots,
};
use nvme::vendor::facets::Facets;
use nvme::{Cntlid, Nsid};
use uuid::Uuid;

use super::board::{Board, Life};
use super::channel::Channel;
use super::controller::{AdminReply, AdminRequest, IoRequest};
use super::error::{Error, PeerFault};
use super::establish::{Established, Identity, establish, recognize};
use super::facets::FacetFacts;
use super::home::{self, Inbox, Request};
use super::namespace::{Namespace, identity};
use super::options::Options;
use super::path::settle_all;
use super::request::Limits;
use super::stats::{DeviceStats, StatsHub};

/// A namespace of a subsystem of another host, as a block device.
///
/// It has a home core, where its admin queues live; channels connect one I/O queue a path each, on the core that opens
/// them. Dropping the device and all its channels ends the associations.
pub struct NvmfDevice {
    shared: Arc<Shared>,
}

/// How a path fares, for lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathState {
    /// An association is being made, or will be tried again.
    Connecting,
    /// In use, and the first choice.
    Optimized,
    /// In use when there is no better one.
    NonOptimized,
    /// Connected, and without access to the namespace for now.
    Inaccessible,
    /// There will be no further attempt.
    GivenUp,
}

/// A path, for lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathInfo {
    /// Of the controller.
    pub addr: SocketAddr,
    /// Of the last association; FFFFh before the first.
    pub cntlid: Cntlid,
    /// How it fares.
    pub state: PathState,
    /// Associations that were lost.
    pub losses: u64,
    /// Why there is no association, or was none.
    pub fault: Option<PeerFault>,
}

/// What the device and its channels share, over all cores.
pub(super) struct Shared {
    name: String,
    uuid: Uuid,
    pub(super) identity: Identity,
    pub(super) namespace: Namespace,
    facts: FacetFacts,
    size_blocks: AtomicU64,
    pub(super) board: Board,
    /// I/O waits for a path. Without this the first loss ends the device, and answers of the one controller are passed on.
    pub(super) waits: bool,
    fault: OnceLock<PeerFault>,
    events: EventHub,
    pub(super) options: Options,
    pub(super) home: Arc<Inbox>,
    paths: Mutex<Vec<PathInfo>>,
    pub(super) stats: StatsHub,
}

impl NvmfDevice {
    /// Connects to a subsystem, over each path, and uses the namespace that `options` name. The core that runs this
    /// becomes the device's home. One path is enough; the others are tried on. Dropping the future closes what was
    /// connected.
    ///
    /// Associations of this process with the subsystem that ended before, and may still execute commands, are waited for
    /// first (`HAZARDS` H3): with controllers of ours for a moment, with others until their Keep Alive Timer has run out.
    pub async fn connect(options: Options) -> Result<Arc<Self>, Error> {
        let core = Core::current().expect("invariant: tasks run inside their reactor");
        let mut found: Vec<Result<Established, Error>> = Vec::new();
        for index in 0..options.paths() {
            let options = options.of_path(index);
            let mut made = establish(options.clone()).await;
            if let Ok(one) = &made {
                settle_all(&options, one).await?;
                if let Some(first) = found.iter().flatten().next() {
                    let is = (&first.namespace, &first.identity, first.namespace.size.0);
                    if let Err(fault) = recognize(is, one, true, options.recovery.trust_cache) {
                        made = Err(Error::Peer { op: "connecting", addr: options.addr, fault });
                    }
                }
            }
            found.push(made);
        }
        let Some(first) = found.iter().position(Result::is_ok) else {
            let error = found.into_iter().find_map(Result::err);
            return Err(error.unwrap_or_else(|| Error::Gone(options.device_name())));
        };
        let shared = Arc::new(Shared::new(&options, found[first].as_ref().ok()));
        home::start(&core, &shared, found);
        Ok(Arc::new(Self { shared }))
    }

    /// Any admin command, from any thread, to the controller of the best path. What was issued runs to its end when the
    /// future is dropped.
    pub async fn admin(&self, request: AdminRequest) -> Result<AdminReply, Error> {
        let answer = self.shared.home.command(|tx| Request::Admin(request, tx)).await;
        answer.unwrap_or_else(|| Err(Error::Gone(self.shared.name.clone())))
    }

    /// An I/O command on the device's namespace, from any thread, on a queue of its own over the best path. It is tried
    /// once: an error of the connection leaves open whether it was executed.
    pub async fn io_command(&self, request: IoRequest) -> Result<AdminReply, Error> {
        let answer = self.shared.home.command(|tx| Request::Io(request, tx)).await;
        answer.unwrap_or_else(|| Err(Error::Gone(self.shared.name.clone())))
    }

    /// Its namespace takes reservations.
    pub(super) fn can_be_reserved(&self) -> bool {
        self.shared.namespace.reservable
    }

    /// False once no path will ever work again: all I/O fails from then on.
    pub fn is_live(&self) -> bool {
        self.shared.board.life() != Life::Faulted
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

    /// The identifier of the controller of the first path that is, or was, connected.
    pub fn cntlid(&self) -> Cntlid {
        let known = self.paths().iter().map(|p| p.cntlid).find(|id| *id != Cntlid::DYNAMIC);
        known.unwrap_or(Cntlid::DYNAMIC)
    }

    /// Its paths, in the order of their addresses.
    pub fn paths(&self) -> Vec<PathInfo> {
        self.shared.paths.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

impl Shared {
    fn new(options: &Options, first: Option<&Established>) -> Self {
        let first = first.expect("invariant: one of the paths was connected");
        let (namespace, ids) = (first.namespace, &first.identity.ids);
        Self {
            name: options.device_name(),
            uuid: identity(ids, options.subnqn.as_str(), namespace.limits.nsid),
            identity: first.identity.clone(),
            size_blocks: AtomicU64::new(namespace.size.0),
            namespace,
            facts: first.facts,
            board: Board::new(options.paths()),
            waits: options.paths() > 1
                || !options.ctrl_loss().is_zero()
                || options.recovery.fast_io_fail.is_some(),
            fault: OnceLock::new(),
            events: EventHub::default(),
            options: options.clone(),
            home: Arc::default(),
            paths: Mutex::default(),
            stats: StatsHub::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(super) fn geometry(&self) -> &Geometry {
        &self.namespace.geometry
    }

    /// I/Os that a channel takes.
    pub(super) fn depth(&self) -> u16 {
        self.namespace.geometry.queue_depth as u16
    }

    pub(super) fn limits(&self) -> Limits {
        self.namespace.limits
    }

    #[inline]
    pub(super) fn size(&self) -> BlockCount {
        BlockCount(self.size_blocks.load(Ordering::Relaxed))
    }

    /// For lists.
    pub(super) fn publish(&self, paths: Vec<PathInfo>) {
        *self.paths.lock().unwrap_or_else(PoisonError::into_inner) = paths;
    }

    /// No path will work again. Called on any core.
    pub(super) fn fail(&self, fault: PeerFault) {
        if self.board.life() == Life::Live {
            // Whoever sees the device faulted finds the reason.
            let _ = self.fault.set(fault);
        }
        if self.board.end(Life::Faulted) {
            self.events.send(DeviceEvent::Faulted);
        }
    }

    /// The namespace or the device is gone.
    pub(super) fn removed(&self) {
        if self.board.end(Life::Removed) {
            self.events.send(DeviceEvent::Removed);
            self.channel_gone();
        }
    }

    /// Channels in use complete what they have when the device is removed; the last one to go ends the associations.
    pub(super) fn channel_gone(&self) {
        if self.board.life() == Life::Removed && self.board.channels() == 0 {
            self.home.end();
        }
    }

    /// A controller reported this size.
    pub(super) fn resized(&self, size: BlockCount) {
        if self.size_blocks.swap(size.0, Ordering::Relaxed) != size.0 {
            self.events.send(DeviceEvent::Resized(size));
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
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.home.end();
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

    /// That of the namespace, where the controller tells it. A device never spans two: one whose namespace comes back with
    /// another incarnation faults.
    fn incarnation(&self) -> Option<u128> {
        self.shared.identity.incarnation
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.shared.events.subscribe(sink)
    }

    /// Asks the controllers again, which takes a moment: a new size comes as an event.
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

    fn reservations(&self) -> Option<&dyn Reservations> {
        self.with_reservations().map(|device| device as &dyn Reservations)
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async move {
            let core = Core::current().expect("invariant: channels are opened by tasks of a core");
            let channel = Channel::open(core, self.shared.clone()).await;
            let channel = channel.map_err(|e| self.shared.device_error("opening a channel", e))?;
            Ok(Box::new(channel) as Box<dyn IoChannel>)
        })
    }
}
