//! The control side of a nexus, for any thread, and the block device that hosts use.

use std::rc::Rc;
use std::sync::Arc;

use aio::device::{EventSink, Subscription};
use aio::{
    BlockCount, BlockDevice, Capabilities, Core, CoreHandle, DeviceError, Geometry, IoChannel, LocalBoxFuture,
};
use uuid::Uuid;

use crate::channel::NexusChannel;
use crate::child::{ChildInfo, Fault, MAX_CHILDREN, NexusState};
use crate::error::NexusError;
use crate::fencing::{self, Reservation};
use crate::home::{self, Home, NewChild};
use crate::layout;
use crate::membership::{MembershipStore, Record};
use crate::rebuild::{RebuildRecord, RebuildStats};
use crate::shared::{Shared, SharedParts};
use crate::stats::IoStats;

/// A device that is to be a child.
pub struct ChildSpec {
    /// What it is called from now on: the URI by which it was opened.
    pub uri: String,
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// Its identity in the record of members.
    pub uuid: Uuid,
}

/// What a nexus is to be.
pub struct CreateNexus {
    /// Its name.
    pub name: String,
    /// Its identity in requests.
    pub uuid: Uuid,
    /// Its identity for hosts.
    pub device_uuid: Uuid,
    /// Its size; hosts see one block less at most, and less when a child is smaller than this and what stands around the
    /// data.
    pub size_bytes: u64,
    /// What hosts are told at most that it can do. Children that come later have to be able to do what hosts were told.
    pub offers: Capabilities,
    /// Its children; all of them hold the same data.
    pub children: Vec<ChildSpec>,
    /// How it keeps others from them; `None` = it does not.
    pub reservation: Option<Reservation>,
}

/// A nexus. Clones are one nexus. It lives until [`destroy`](Self::destroy).
///
/// Futures of its operations may be dropped: what was begun goes on to its end on the home core.
#[derive(Clone)]
pub struct Nexus(Arc<Shared>);

impl Nexus {
    /// Makes a nexus whose decisions are made on `core`. First the children are reserved, if asked for, then the record of
    /// members is saved.
    ///
    /// Without a record of before, all children hold the same data. With one, those are in sync of which it says so, or a single
    /// one of them when the end was not in order; the others are members, and are rebuilt.
    ///
    /// # Errors
    /// Children that do not fit, that cannot be reserved, none that is in sync, or a record that could not be read or saved;
    /// nothing is left then but the reservations that were taken ([`fencing`](crate::fencing) says why).
    pub async fn create(
        core: CoreHandle,
        wish: CreateNexus,
        store: Arc<dyn MembershipStore>,
    ) -> Result<Self, NexusError> {
        let parts = describe(&wish, core.clone())?;
        // Before the record is read: what an older nexus still does to the volume, it records first.
        if let Some(reservation) = wish.reservation {
            let nexus = wish.name.clone();
            let children = wish.children.iter().map(|c| (c.uri.clone(), c.device.clone())).collect();
            let gone = NexusError::Gone(nexus.clone());
            let reserved = core.call(move || reserve_all(nexus, children, reservation)).await;
            reserved.map_err(|_| gone)??;
        }
        let failed = |source| NexusError::Membership { nexus: wish.name.clone(), source };
        let before = store.load().await.map_err(failed)?;
        // Without notes, nobody is known to have forgotten nothing.
        let notes = store.load_notes().await.ok().flatten().unwrap_or_default();
        let mut notes = home::Notes::parse(&notes);
        let members: Vec<_> = wish.children.iter().map(|c| (c.uuid, &*c.device)).collect();
        let in_sync = home::in_sync(&members, before.as_ref(), &notes);
        let in_sync = in_sync.ok_or_else(|| NexusError::NoSource {
            nexus: wish.name.clone(),
            child: wish.children[0].uri.clone(),
        })?;
        let mut record = Record::default();
        for (child, in_sync) in wish.children.iter().zip(in_sync) {
            record.add(child.uuid, in_sync);
            if in_sync {
                notes.learn(child.uuid, &*child.device);
            }
        }
        store.save(&record).await.map_err(failed)?;
        // Without them, more is copied after a crash.
        let _ = store.save_notes(&notes.text()).await;
        let shared = Arc::new(Shared::new(parts));
        let nexus = Self(shared.clone());
        let started = core.call(move || async move {
            let here = Core::current().expect("invariant: calls run on a core");
            let children = wish.children.into_iter();
            let children =
                children.map(|c| NewChild { uri: c.uri, device: c.device, uuid: c.uuid }).collect();
            let home = Home::start(here, shared, store, children, record, notes, wish.size_bytes);
            home.begin_account().await;
            home.begin();
        });
        started.await.map_err(|_| NexusError::Gone(nexus.0.name.clone()))?;
        Ok(nexus)
    }

    /// Runs `work` on the home core.
    async fn at_home<T, F, Fut>(&self, work: F) -> Result<T, NexusError>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Home>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, NexusError>> + 'static,
    {
        let nexus = self.0.uuid;
        let name = self.0.name.clone();
        let gone = NexusError::Gone(name.clone());
        let called = self.0.home.call(move || async move {
            match home::find(nexus) {
                Some(home) => work(home).await,
                None => Err(NexusError::Gone(name)),
            }
        });
        called.await.map_err(|_| gone)?
    }

    /// Its identity in requests; the device has another one.
    pub fn nexus_uuid(&self) -> Uuid {
        self.0.uuid
    }

    /// How it fares, what size was asked for in bytes, and its children in the order in which they came.
    pub async fn info(&self) -> Result<(NexusState, u64, Vec<ChildInfo>), NexusError> {
        self.at_home(async |h| Ok((h.nexus_state(), h.requested_bytes(), h.child_infos()))).await
    }

    /// Blocks of children that could not be read and were written anew from another, since the nexus was created.
    pub fn repaired_blocks(&self) -> u64 {
        self.0.repaired_blocks()
    }

    /// What it was asked to do since it was created, or since the last reset.
    pub fn io_stats(&self) -> IoStats {
        self.0.stats.sum()
    }

    /// Counts I/Os from zero again.
    pub fn reset_io_stats(&self) {
        self.0.stats.reset();
    }

    /// Adds a child, which lacks everything until it was rebuilt.
    pub async fn add_child(&self, spec: ChildSpec) -> Result<(), NexusError> {
        let new = NewChild { uri: spec.uri, device: spec.device, uuid: spec.uuid };
        self.at_home(async move |h| h.add_child(new).await).await
    }

    /// Takes a child out for good; one that is not there is fine. Resolves when its device is not used any more.
    pub async fn remove_child(&self, uri: &str) -> Result<(), NexusError> {
        let uri = uri.to_owned();
        self.at_home(async move |h| h.remove_child(&uri).await).await
    }

    /// Takes a child out of use: for a while, for good, or as after an error.
    pub async fn fault_child(&self, uri: &str, fault: Fault) -> Result<(), NexusError> {
        let uri = uri.to_owned();
        self.at_home(async move |h| h.fault_child(&uri, fault).await).await
    }

    /// Takes a child back into use, its device opened anew. True when it lacks writes and is to be rebuilt.
    pub async fn online_child(&self, uri: &str, device: Arc<dyn BlockDevice>) -> Result<bool, NexusError> {
        let uri = uri.to_owned();
        self.at_home(async move |h| h.online_child(&uri, device).await).await
    }

    /// Begins to copy to a child what it lacks.
    pub async fn start_rebuild(&self, uri: &str) -> Result<(), NexusError> {
        let uri = uri.to_owned();
        self.at_home(async move |h| h.start_rebuild(&uri).await).await
    }

    /// Stops a rebuild; the child stays out of sync. None is fine.
    pub async fn stop_rebuild(&self, uri: &str) -> Result<(), NexusError> {
        let uri = uri.to_owned();
        self.at_home(async move |h| h.stop_rebuild(&uri).await).await
    }

    /// Pauses a rebuild, or lets it go on.
    pub async fn pause_rebuild(&self, uri: &str, pause: bool) -> Result<(), NexusError> {
        let uri = uri.to_owned();
        self.at_home(async move |h| h.pause_rebuild(&uri, pause)).await
    }

    /// Puts a mark on the children, as the nexus does by itself every ten seconds while hosts write. False when there are not two
    /// in sync that have marks, or one of them left meanwhile. Of children without marks, the account of regions that are being
    /// written is brought up to date.
    pub async fn mark(&self) -> Result<bool, NexusError> {
        self.at_home(async |h| {
            let marked = h.mark().await;
            h.sweep_account().await;
            Ok(marked)
        })
        .await
    }

    /// The figures of a child's rebuild.
    pub async fn rebuild_stats(&self, uri: &str) -> Result<RebuildStats, NexusError> {
        let uri = uri.to_owned();
        self.at_home(async move |h| h.rebuild_stats(&uri)).await
    }

    /// Rebuilds that ended, the oldest first.
    pub async fn rebuild_history(&self) -> Result<Vec<RebuildRecord>, NexusError> {
        self.at_home(async |h| Ok(h.history().records().cloned().collect())).await
    }

    /// Makes it larger, where every child has room.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), NexusError> {
        self.at_home(async move |h| h.resize(size_bytes).await).await
    }

    /// Ends I/O in order and records that. The nexus stays listed; later I/O fails with [`SHUT_DOWN`](crate::SHUT_DOWN).
    pub async fn shutdown(&self) -> Result<(), NexusError> {
        self.at_home(async |h| h.shutdown().await).await
    }

    /// Shuts it down, and forgets it. Its children's devices are free for others.
    pub async fn destroy(&self) -> Result<(), NexusError> {
        self.at_home(async |h| {
            h.shutdown().await?;
            h.shared.remove();
            h.forget();
            Ok(())
        })
        .await
    }
}

/// Reserves all children, one after the other.
async fn reserve_all(
    nexus: String,
    children: Vec<(String, Arc<dyn BlockDevice>)>,
    reservation: Reservation,
) -> Result<(), NexusError> {
    for (child, device) in children {
        let reserved = fencing::reserve(&*device, &reservation).await;
        reserved.map_err(|why| NexusError::unreserved(nexus.clone(), child, why))?;
    }
    Ok(())
}

/// Checks the children against each other.
fn describe(wish: &CreateNexus, home: CoreHandle) -> Result<SharedParts, NexusError> {
    let nexus = || wish.name.clone();
    let devices: Vec<&dyn BlockDevice> = wish.children.iter().map(|c| &*c.device).collect();
    let geometry = layout::geometry(&devices).ok_or_else(|| NexusError::NoChildren { nexus: nexus() })?;
    for (at, spec) in wish.children.iter().enumerate() {
        let child = spec.uri.clone();
        if at >= MAX_CHILDREN {
            return Err(NexusError::TooManyChildren { nexus: nexus(), child, most: MAX_CHILDREN });
        }
        let same = |c: &ChildSpec| c.uri == spec.uri || c.device.name() == spec.device.name();
        if wish.children[..at].iter().any(same) {
            return Err(NexusError::ChildExists { nexus: nexus(), child });
        }
        let block_bytes = spec.device.geometry().block_bytes;
        if block_bytes != geometry.block_bytes {
            let expected_bytes = geometry.block_bytes;
            return Err(NexusError::BlockSize { nexus: nexus(), child, block_bytes, expected_bytes });
        }
        if spec.device.capabilities().contains(Capabilities::READ_ONLY) {
            return Err(NexusError::Lacks { nexus: nexus(), child, lacks: "writing" });
        }
        let size_bytes = spec.device.size().0.saturating_mul(u64::from(block_bytes));
        if size_bytes < wish.size_bytes || layout::exported(wish.size_bytes, &[&*spec.device]).is_none() {
            let least = layout::DATA_OFFSET_BYTES + (1 << 20);
            let needed_bytes = wish.size_bytes.max(least);
            return Err(NexusError::TooSmall { nexus: nexus(), child, size_bytes, needed_bytes });
        }
    }
    let size = layout::exported(wish.size_bytes, &devices).unwrap_or_default();
    Ok(SharedParts {
        name: wish.name.clone(),
        uuid: wish.uuid,
        device_uuid: wish.device_uuid,
        home,
        geometry,
        reservation: wish.reservation,
        capabilities: layout::capabilities(&devices) & (wish.offers | Capabilities::VOLATILE_CACHE),
        size,
    })
}

impl BlockDevice for Nexus {
    fn name(&self) -> &str {
        &self.0.name
    }

    #[allow(clippy::misnamed_getters, reason = "hosts and requests know it by different identities")]
    fn uuid(&self) -> Uuid {
        self.0.device_uuid
    }

    fn driver(&self) -> &'static str {
        "nexus"
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    fn size(&self) -> BlockCount {
        self.0.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities
    }

    fn incarnation(&self) -> Option<u128> {
        None
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.0.events.subscribe(sink)
    }

    fn remove(&self) {
        self.0.remove();
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async move {
            if !self.0.is_alive() {
                return Err(DeviceError::Gone(self.0.name.clone()));
            }
            let outside =
                || DeviceError::Unsupported { op: "use outside of a core", device: self.0.name.clone() };
            let core = Core::current().ok_or_else(outside)?;
            let channel = NexusChannel::open(core, self.0.clone()).await?;
            Ok(Box::new(channel) as Box<dyn IoChannel>)
        })
    }
}
