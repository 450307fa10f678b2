//! An open pool, as the rest of the process sees it.

use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aio::{BlockDevice, Core, CoreHandle};
use uuid::Uuid;

use crate::LvsError;
use crate::format::catalog::{SnapshotObject, VolumeObject};
use crate::info::{
    CheckReport, CheckWish, CreatePool, CreateSnapshot, CreateVolume, DiskInfo, ImportPool, IoStats,
    PoolInfo, ScrubReport, SnapshotInfo, VolumeInfo, VolumeProperties,
};
use crate::store::{Store, Target, open_stores};
use crate::types::{LineId, Seq};
use crate::volume::{Counters, Volume, VolumeParts};

/// An open pool. Clones name the same one. Calls may come from any thread and any executor: they run on the pool's home core.
///
/// Dropping a call's future does not stop what it began.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    name: String,
    uuid: Uuid,
    home: CoreHandle,
    incarnation: u128,
    volatile: bool,
    read_only: bool,
    geometry: aio::Geometry,
    /// Devices of volumes, and of snapshots that were opened.
    volumes: Mutex<BTreeMap<Uuid, Arc<Volume>>>,
    counters: Arc<Counters>,
}

/// A pool on its way to whoever asked for it. When nobody waits any more it is closed again.
struct Opened(Option<Pool>);

impl Opened {
    fn taken(mut self) -> Pool {
        self.0.take().expect("invariant: it is taken once")
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let Some(pool) = self.0.take() else { return };
        let uuid = pool.uuid();
        // Refused by a core that ends, which closes all it has.
        let _ = pool.home().post(move || {
            let core = Core::current().expect("invariant: jobs run on a core");
            drop(core.spawn(async move {
                if let Some(store) = open_stores::get(uuid) {
                    let _ = store.export().await;
                }
            }));
        });
    }
}

/// Looks at a pool that is not open, without writing: labels, anchors, tables, every page of every map, the log,
/// and, when that is asked for, every block of data. What is wrong is in the report; an error means that it could not be
/// looked at. `devices` are all of its disks, and nobody else may use them meanwhile.
pub async fn check(
    home: CoreHandle,
    devices: Vec<Arc<dyn BlockDevice>>,
    wish: CheckWish,
) -> Result<CheckReport, LvsError> {
    let looked = home.call(move || async move {
        let core = Core::current().expect("invariant: calls run on a core");
        Store::inspect(&core, devices, wish).await
    });
    looked.await.map_err(|_| LvsError::Closed { pool: String::new() })?
}

/// Makes right what [`CheckReport::repairable`] lists, as it is found now. Returns what was done, in words. A crash meanwhile
/// leaves the pool as it was, or repaired.
pub async fn repair(home: CoreHandle, devices: Vec<Arc<dyn BlockDevice>>) -> Result<Vec<String>, LvsError> {
    let repaired = home.call(move || async move {
        let core = Core::current().expect("invariant: calls run on a core");
        Store::repair(&core, devices).await
    });
    repaired.await.map_err(|_| LvsError::Closed { pool: String::new() })?
}

impl Pool {
    /// Writes a new pool over `devices` and opens it on core `home`. Refuses disks that hold something, unless forced.
    /// Dropping the future closes the pool once it is open.
    pub async fn create(
        home: CoreHandle,
        devices: Vec<Arc<dyn BlockDevice>>,
        spec: CreatePool,
    ) -> Result<Self, LvsError> {
        let pool = spec.name.clone();
        let handle = home.clone();
        let made = home.call(move || async move {
            let core = Core::current().expect("invariant: calls run on a core");
            let store = Store::create(&core, devices, spec).await?;
            Ok(Opened(Some(Self::opened(handle, &store))))
        });
        made.await.map_err(|_| LvsError::Closed { pool })?.map(Opened::taken)
    }

    /// Opens the pool that is on `devices`, which are all of its disks. [`LvsError::NoPool`] when there is none. Dropping the
    /// future closes the pool once it is open.
    pub async fn import(
        home: CoreHandle,
        devices: Vec<Arc<dyn BlockDevice>>,
        spec: ImportPool,
    ) -> Result<Self, LvsError> {
        let pool = spec.name.clone().unwrap_or_default();
        let handle = home.clone();
        let made = home.call(move || async move {
            let core = Core::current().expect("invariant: calls run on a core");
            let store = Store::import(&core, devices, spec).await?;
            Ok(Opened(Some(Self::opened(handle, &store))))
        });
        made.await.map_err(|_| LvsError::Closed { pool })?.map(Opened::taken)
    }

    fn opened(home: CoreHandle, store: &Rc<Store>) -> Self {
        let inner = store.inner();
        let pool = Self(Arc::new(Shared {
            name: inner.name.clone(),
            uuid: inner.uuid,
            home,
            incarnation: inner.incarnation(),
            volatile: inner.any_volatile(),
            read_only: inner.is_read_only(),
            geometry: inner.volume_geometry(),
            volumes: Mutex::default(),
            counters: Arc::default(),
        }));
        for volume in inner.catalogue.volumes.values() {
            pool.add_volume(volume);
        }
        pool
    }

    /// The pool's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The pool's identity.
    pub fn uuid(&self) -> Uuid {
        self.0.uuid
    }

    /// The core on which it lives.
    pub fn home(&self) -> &CoreHandle {
        &self.0.home
    }

    /// Its state in figures.
    pub async fn info(&self) -> Result<PoolInfo, LvsError> {
        self.call(|store| async move { Ok(store.inner().info()) }).await
    }

    /// Removes all volumes from use, makes everything durable and closes the pool: the next import finds it clean.
    pub async fn export(&self) -> Result<(), LvsError> {
        self.remove_devices();
        self.call(|store| async move { store.export().await }).await
    }

    /// As [`export`](Self::export), and erases the pool from its disks.
    pub async fn destroy(&self) -> Result<(), LvsError> {
        self.call(|store| async move { store.inner().check_writable() }).await?;
        self.remove_devices();
        self.call(|store| async move { store.destroy().await }).await
    }

    /// Makes use of devices that became larger. Returns the state before and after.
    pub async fn grow(&self) -> Result<(PoolInfo, PoolInfo), LvsError> {
        self.call(|store| async move {
            let before = store.inner().info();
            store.grow().await?;
            let after = store.inner().info();
            Ok((before, after))
        })
        .await
    }

    /// Adds a disk. One that holds something is refused, unless forced. When this fails before the disk joined, the pool is
    /// as it was; what is on the disk may be lost all the same.
    pub async fn add_disk(&self, device: Arc<dyn BlockDevice>, force: bool) -> Result<(), LvsError> {
        self.call(move |store| async move { store.add_disk(device, force).await }).await
    }

    /// Moves everything off a disk, named by its uuid or its device, and removes it from the pool, while volumes are in use.
    /// Takes as long as that takes; [`disks`](Self::disks) says how far it is. When it fails, or the pool is closed, the
    /// disk stays, marked as being emptied: calling this again goes on.
    pub async fn remove_disk(&self, disk: String) -> Result<(), LvsError> {
        self.call(move |store| async move { store.remove_disk(disk).await }).await
    }

    /// The disks, in the order of their index, with those that are missing.
    pub async fn disks(&self) -> Result<Vec<DiskInfo>, LvsError> {
        self.call(|store| async move { Ok(store.inner().disk_infos()) }).await
    }

    /// Begins to verify everything that is live, in the background: every block of data of every volume and snapshot, map
    /// pages, tables, anchors and labels, with their copies. Reads `rate_bytes_s` bytes a second at most (`None`: 200 MiB), and
    /// less while volumes are in use. What has another good copy is written anew; data that is lost is named in the
    /// report. [`LvsError::ScrubRuns`] while one runs. It ends with the pool, and is not resumed by an import.
    pub async fn start_scrub(&self, rate_bytes_s: Option<u64>) -> Result<ScrubReport, LvsError> {
        self.call(move |store| async move { store.start_scrub(rate_bytes_s) }).await
    }

    /// Stops the scrub that runs, and returns what it found so far; of the last one when none runs.
    pub async fn stop_scrub(&self) -> Result<ScrubReport, LvsError> {
        self.call(|store| async move { Ok(store.stop_scrub().await) }).await
    }

    /// Waits until the scrub that runs has ended. Returns at once when none does.
    pub async fn scrub_ended(&self) -> Result<ScrubReport, LvsError> {
        self.call(|store| async move { Ok(store.scrub_ended().await) }).await
    }

    /// How far the scrub is that runs; else what the last one found since the pool was opened.
    pub async fn scrub_report(&self) -> Result<ScrubReport, LvsError> {
        self.call(|store| async move { Ok(store.scrub_report()) }).await
    }

    /// Makes everything that completed durable, and found again at once.
    pub async fn checkpoint(&self) -> Result<(), LvsError> {
        self.call(|store| async move { store.checkpoint(false).await }).await
    }

    /// Makes a volume.
    pub async fn create_volume(&self, spec: CreateVolume) -> Result<Arc<Volume>, LvsError> {
        let made = self.call(|store| async move { store.create_volume(spec).await }).await?;
        Ok(self.add_volume(&made))
    }

    /// Removes a volume from use and then for good. Its snapshots stay; a discarded snapshot goes with its last clone.
    pub async fn destroy_volume(&self, uuid: Uuid) -> Result<(), LvsError> {
        // A pool that takes no changes keeps its volumes in use.
        self.call(|store| async move { store.inner().check_fault() }).await?;
        if let Some(device) = self.volume(uuid) {
            device.remove();
        }
        let destroyed = self.call(move |store| async move { store.destroy_volume(uuid).await }).await;
        match &destroyed {
            Ok(()) => _ = self.volumes_lock().remove(&uuid),
            Err(_) => {
                // It can be read still: by those that open it anew.
                let kept = self.call(move |store| async move { store.inner().volume(uuid).cloned() }).await;
                _ = kept.map(|volume| self.add_volume(&volume));
            }
        }
        destroyed
    }

    /// Changes a volume's size, up or down. What a smaller size cuts off is lost.
    pub async fn resize_volume(&self, uuid: Uuid, size_bytes: u64) -> Result<VolumeInfo, LvsError> {
        let pool = self.clone();
        self.call(move |store| async move {
            let set_size = |size_bytes| _ = pool.volume(uuid).map(|device| device.set_size_bytes(size_bytes));
            store.resize_volume(uuid, size_bytes, set_size).await?;
            store.inner().volume_info(uuid)
        })
        .await
    }

    /// Stores what a volume carries for others.
    pub async fn set_properties(&self, uuid: Uuid, properties: VolumeProperties) -> Result<(), LvsError> {
        self.call(move |store| async move { store.set_properties(uuid, properties).await }).await
    }

    /// All volumes.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>, LvsError> {
        self.call(|store| async move { store.inner().volume_infos() }).await
    }

    /// One volume.
    pub async fn volume_info(&self, uuid: Uuid) -> Result<VolumeInfo, LvsError> {
        self.call(move |store| async move { store.inner().volume_info(uuid) }).await
    }

    /// The block device of a volume.
    pub fn volume(&self, uuid: Uuid) -> Option<Arc<Volume>> {
        self.volumes_lock().get(&uuid).filter(|v| !v.is_snapshot()).cloned()
    }

    /// Makes a snapshot: it holds every write that completed before the call, and none that was submitted after it returned.
    pub async fn create_snapshot(
        &self,
        volume: Uuid,
        spec: CreateSnapshot,
    ) -> Result<SnapshotInfo, LvsError> {
        let uuid = spec.uuid;
        self.call(move |store| async move {
            store.create_snapshot(volume, spec).await?;
            store.inner().snapshot_info(uuid)
        })
        .await
    }

    /// Removes a snapshot; one with clones is only marked discarded, and goes with the last of them.
    pub async fn destroy_snapshot(&self, uuid: Uuid) -> Result<(), LvsError> {
        let opened = self.volumes_lock().remove(&uuid);
        if let Some(device) = opened {
            device.remove();
        }
        self.call(move |store| async move { store.destroy_snapshot(uuid).await }).await
    }

    /// All snapshots, also discarded ones.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, LvsError> {
        self.call(|store| async move { store.inner().snapshot_infos() }).await
    }

    /// One snapshot.
    pub async fn snapshot_info(&self, uuid: Uuid) -> Result<SnapshotInfo, LvsError> {
        self.call(move |store| async move { store.inner().snapshot_info(uuid) }).await
    }

    /// A read-only block device of a snapshot.
    pub async fn open_snapshot(&self, uuid: Uuid) -> Result<Arc<Volume>, LvsError> {
        let open = self.volumes_lock().get(&uuid).cloned();
        if let Some(device) = open {
            return Ok(device);
        }
        let object = self.call(move |store| async move { store.inner().snapshot(uuid).cloned() }).await?;
        Ok(self.add_snapshot(&object))
    }

    /// Makes a volume with the content of a snapshot; it has the snapshot's size and is thin.
    pub async fn create_clone(&self, snapshot: Uuid, spec: CreateVolume) -> Result<Arc<Volume>, LvsError> {
        let made = self.call(move |store| async move { store.create_clone(snapshot, spec).await }).await?;
        Ok(self.add_volume(&made))
    }

    /// What all volumes and snapshots were asked to do, since the pool was opened or the counters were reset.
    pub fn io_stats(&self) -> IoStats {
        self.0.counters.get()
    }

    /// The same of one volume; `None` when there is none.
    pub fn volume_io_stats(&self, uuid: Uuid) -> Option<IoStats> {
        self.volume(uuid).map(|v| v.counters().get())
    }

    /// Sets the counters of the pool and of all its volumes to zero.
    pub fn reset_stats(&self) {
        self.0.counters.reset();
        self.volumes_lock().values().for_each(|v| v.counters().reset());
    }

    fn add_volume(&self, v: &VolumeObject) -> Arc<Volume> {
        self.add(v.uuid, &v.name, v.line, Seq::MAX, v.size_bytes)
    }

    fn add_snapshot(&self, s: &SnapshotObject) -> Arc<Volume> {
        self.add(s.uuid, &s.name, s.line, s.epoch, s.size_bytes)
    }

    fn add(&self, uuid: Uuid, name: &str, line: LineId, view: Seq, size_bytes: u64) -> Arc<Volume> {
        let volume = Volume::new(VolumeParts {
            name: name.to_owned(),
            uuid,
            pool: self.0.uuid,
            home: self.0.home.clone(),
            target: Target { line, view, block_bytes: self.0.geometry.block_bytes },
            geometry: self.0.geometry,
            volatile: self.0.volatile,
            read_only: self.0.read_only,
            size_bytes,
            incarnation: self.0.incarnation,
            pool_counters: self.0.counters.clone(),
        });
        self.volumes_lock().insert(uuid, volume.clone());
        volume
    }

    fn remove_devices(&self) {
        let devices = std::mem::take(&mut *self.volumes_lock());
        devices.values().for_each(|d| d.remove());
    }

    fn volumes_lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Volume>>> {
        self.0.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the home core.
    async fn call<F, Fut, T>(&self, f: F) -> Result<T, LvsError>
    where
        F: FnOnce(Rc<Store>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, LvsError>>,
        T: Send + 'static,
    {
        let (uuid, pool) = (self.0.uuid, self.0.name.clone());
        let closed = move || LvsError::Closed { pool: pool.clone() };
        let gone = closed.clone();
        let call = self.0.home.call(move || async move {
            match open_stores::get(uuid) {
                Some(store) => f(store).await,
                None => Err(closed()),
            }
        });
        call.await.map_err(|_| gone())?
    }
}
