//! Pools and what is in them.
//!
//! # Map
//! - This file: the open pools, and how objects are found in them. - [`lifecycle`]: creating, importing, growing,
//!   closing. - [`disks`]: disks added and removed. - [`scrub`]: verifying them in use. - [`replicas`], [`snapshots`]: changes of what is in them. - [`mod@file`]: the pool file of Mayastor.
//!
//! Replicas are devices of the [`registry`](crate::registry) as well, so that they are exported like any other. What
//! a pool holds, with names, shares and allowed hosts, is recorded on its disks; the state folder only remembers
//! which disks belong to a pool that was asked for.

pub mod disks;
pub mod file;
pub mod lifecycle;
pub mod replicas;
pub mod scrub;
pub mod snapshots;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lvs::info::{DiskInfo, SnapshotInfo, VolumeInfo};
use uuid::Uuid;

use crate::engine::Engine;
use crate::error::{EngineError, PoolError, PoolOp};
use crate::registry::Origin;

/// A disk of an open pool.
#[derive(Clone, Debug)]
pub struct Member {
    /// Name of the device.
    pub device: String,
    /// The URI that opens it again.
    pub uri: String,
    /// The pool opened it, and closes it in the end.
    pub owned: bool,
}

/// An open pool.
#[derive(Clone)]
pub struct PoolEntry {
    /// The pool.
    pub pool: lvs::Pool,
    /// Its disks.
    pub members: Vec<Member>,
    /// Who asked for it.
    pub origin: Origin,
}

/// How a request names a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PoolRef {
    /// By its name.
    Name(String),
    /// By its uuid, as text.
    Uuid(String),
    /// By either.
    Either(String),
}

impl PoolRef {
    fn text(&self) -> &str {
        match self {
            Self::Name(text) | Self::Uuid(text) | Self::Either(text) => text,
        }
    }

    fn names(&self, pool: &lvs::Pool) -> bool {
        let is_uuid = |text: &str| Uuid::parse_str(text).is_ok_and(|u| u == pool.uuid());
        match self {
            Self::Name(name) => pool.name() == name,
            Self::Uuid(uuid) => is_uuid(uuid),
            Self::Either(text) => pool.name() == text || is_uuid(text),
        }
    }
}

/// A replica and the pool that it is in.
#[derive(Clone)]
pub struct FoundReplica {
    /// Its pool.
    pub entry: PoolEntry,
    /// What the pool says of it.
    pub info: VolumeInfo,
}

/// A snapshot and the pool that it is in.
#[derive(Clone)]
pub struct FoundSnapshot {
    /// Its pool.
    pub entry: PoolEntry,
    /// What the pool says of it.
    pub info: SnapshotInfo,
}

/// The open pools.
#[derive(Default)]
pub struct Pools {
    /// In the order in which they were opened.
    list: Mutex<Vec<PoolEntry>>,
    /// Why disks could not be emptied, by pool and disk.
    failures: Mutex<BTreeMap<(Uuid, Uuid), String>>,
    /// Disks that are being seen off, by pool and name.
    leaving: Mutex<BTreeSet<(Uuid, String)>>,
}

/// While it is there, a disk is being seen off.
struct Leaving<'a> {
    pools: &'a Pools,
    disk: (Uuid, String),
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.pools.leaving_lock().remove(&self.disk);
    }
}

impl Pools {
    /// All of them.
    pub fn list(&self) -> Vec<PoolEntry> {
        self.lock().clone()
    }

    /// The one that `wanted` names.
    pub fn find(&self, wanted: &PoolRef) -> Option<PoolEntry> {
        self.lock().iter().find(|e| wanted.names(&e.pool)).cloned()
    }

    /// The one that `wanted` names, for requests about what is in it.
    pub fn containing(&self, wanted: &PoolRef) -> Result<PoolEntry, EngineError> {
        self.find(wanted).ok_or_else(|| PoolError::Missing(wanted.text().to_owned()).into())
    }

    /// The pool that has the replica with this uuid.
    fn of_replica(&self, uuid: Uuid) -> Option<PoolEntry> {
        self.lock().iter().find(|e| e.pool.volume(uuid).is_some()).cloned()
    }

    fn insert(&self, entry: PoolEntry) {
        self.lock().push(entry);
    }

    /// Changes which disks a pool has.
    fn change_members(&self, uuid: Uuid, change: impl FnOnce(&mut Vec<Member>)) {
        if let Some(entry) = self.lock().iter_mut().find(|e| e.pool.uuid() == uuid) {
            change(&mut entry.members);
        }
    }

    /// A disk is being seen off until the answer is dropped.
    fn leaves(&self, pool: Uuid, disk: &str) -> Leaving<'_> {
        let disk = (pool, disk.to_owned());
        self.leaving_lock().insert(disk.clone());
        Leaving { pools: self, disk }
    }

    /// Whether a disk of this pool is being seen off that is not in the list.
    fn is_leaving_beside(&self, pool: Uuid, listed: &[DiskInfo]) -> bool {
        let leaving = self.leaving_lock();
        leaving.iter().any(|(of, name)| *of == pool && listed.iter().all(|disk| disk.name != *name))
    }

    fn leaving_lock(&self) -> MutexGuard<'_, BTreeSet<(Uuid, String)>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why disks could not be emptied.
    fn failures(&self) -> MutexGuard<'_, BTreeMap<(Uuid, Uuid), String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, uuid: Uuid) {
        self.failures().retain(|(pool, _), _| *pool != uuid);
        self.lock().retain(|e| e.pool.uuid() != uuid);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PoolEntry>> {
        // Nothing under the lock leaves the list half changed.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// The replica that a request names; the text need not be a uuid.
    pub(crate) async fn replica(&self, uuid: &str) -> Result<FoundReplica, EngineError> {
        let missing = || EngineError::from(PoolError::NoReplica(uuid.to_owned()));
        let id = Uuid::parse_str(uuid).map_err(|_| missing())?;
        let entry = self.pools().of_replica(id).ok_or_else(missing)?;
        match entry.pool.volume_info(id).await {
            Ok(info) => Ok(FoundReplica { entry, info }),
            Err(lvs::LvsError::NotFound { .. } | lvs::LvsError::Closed { .. }) => Err(missing()),
            Err(e) => Err(PoolOp::List.failed(entry.pool.name())(e)),
        }
    }

    /// The snapshot that a request names.
    pub(crate) async fn snapshot(&self, uuid: &str) -> Result<FoundSnapshot, EngineError> {
        let missing = || EngineError::from(PoolError::NoSnapshot(uuid.to_owned()));
        let wanted = Uuid::parse_str(uuid).map_err(|_| missing())?;
        self.find_snapshot(wanted).await?.ok_or_else(missing)
    }

    /// The snapshot with this uuid, in whichever pool it is.
    async fn find_snapshot(&self, uuid: Uuid) -> Result<Option<FoundSnapshot>, EngineError> {
        for entry in self.pools().list() {
            match entry.pool.snapshot_info(uuid).await {
                Ok(info) => return Ok(Some(FoundSnapshot { entry, info })),
                Err(lvs::LvsError::NotFound { .. } | lvs::LvsError::Closed { .. }) => {}
                Err(e) => return Err(PoolOp::List.failed(entry.pool.name())(e)),
            }
        }
        Ok(None)
    }

    /// What a replica reads from: the snapshot that it was cloned from, that snapshot's source, and so on, with the replica.
    pub(crate) async fn ancestors(
        &self,
        of: &FoundReplica,
    ) -> Result<(Vec<FoundReplica>, Vec<FoundSnapshot>), EngineError> {
        let (mut replicas, mut snapshots) = (vec![of.clone()], Vec::new());
        let mut seen = BTreeSet::new();
        let mut next = of.info.clone_of;
        // Each once: what a pool says must not make this endless.
        while let Some(origin) = next
            && seen.insert(origin)
            && let Some(snapshot) = self.find_snapshot(origin).await?
        {
            next = None;
            if let Some(source) = snapshot.info.source
                && let Ok(source) = self.replica(&source.to_string()).await
            {
                next = source.info.clone_of;
                replicas.push(source);
            }
            snapshots.push(snapshot);
        }
        Ok((replicas, snapshots))
    }

    /// The replicas of all pools.
    pub async fn replicas(&self) -> Result<Vec<FoundReplica>, EngineError> {
        let mut all = Vec::new();
        for entry in self.pools().list() {
            match entry.pool.volumes().await {
                Ok(list) => {
                    all.extend(list.into_iter().map(|info| FoundReplica { entry: entry.clone(), info }))
                }
                // It was closed meanwhile.
                Err(lvs::LvsError::Closed { .. }) => {}
                Err(e) => return Err(PoolOp::List.failed(entry.pool.name())(e)),
            }
        }
        Ok(all)
    }

    /// The snapshots of all pools.
    pub async fn snapshots(&self) -> Result<Vec<FoundSnapshot>, EngineError> {
        let mut all = Vec::new();
        for entry in self.pools().list() {
            match entry.pool.snapshots().await {
                Ok(list) => {
                    all.extend(list.into_iter().map(|info| FoundSnapshot { entry: entry.clone(), info }))
                }
                Err(lvs::LvsError::Closed { .. }) => {}
                Err(e) => return Err(PoolOp::List.failed(entry.pool.name())(e)),
            }
        }
        Ok(all)
    }

    /// Refuses a uuid that any replica or snapshot of this node has.
    async fn check_uuid_is_free(&self, uuid: Uuid, what: &'static str) -> Result<(), EngineError> {
        let taken = self.pools().of_replica(uuid).is_some() || self.find_snapshot(uuid).await?.is_some();
        match taken {
            true => Err(PoolError::ObjectExists { what, name: uuid.to_string() }.into()),
            false => Ok(()),
        }
    }
}

/// A uuid of a request.
pub(crate) fn parse_uuid(what: &'static str, text: &str) -> Result<Uuid, EngineError> {
    let bad = |_| EngineError::BadValue { what, value: text.to_owned(), expected: "it is no UUID" };
    Uuid::parse_str(text).map_err(bad)
}

/// The same where an empty text means: choose one.
pub(crate) fn parse_optional_uuid(what: &'static str, text: &str) -> Result<Option<Uuid>, EngineError> {
    if text.is_empty() { Ok(None) } else { parse_uuid(what, text).map(Some) }
}
