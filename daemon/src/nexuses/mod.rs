//! Nexuses: volumes that are mirrored over children.
//!
//! # Map
//! - This file: the nexuses there are, and who waits for whom. - [`lifecycle`]: created, resized, shut down, destroyed.
//! - [`children`]: how URIs become children's devices. - [`members`]: children that come, go and come back; rebuilds.
//! - [`publish`]: served to hosts. - [`restart`]: nexuses that are there again after a restart of the daemon.
//! - [`records`]: where it is recorded who is healthy. - [`error`]: why a request fails.
//!
//! # Order
//! Requests about one nexus come one after the other, by a lock of its own that waits as long as the request may. Opening a
//! child may take seconds: it is done under that lock only, so that other requests go on. What changes the state folder
//! takes the lock of changes at the end, for a moment.
//!
//! A nexus is a device of the [`registry`](crate::registry), so that it is exported like any other.

pub mod children;
pub mod error;
pub mod lifecycle;
pub mod members;
pub mod publish;
pub mod records;
pub mod restart;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nexus::{ChildInfo, NexusState};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use self::children::Child;
use self::error::NexusError;
use crate::desired;
use crate::engine::Engine;
use crate::error::EngineError;

/// A nexus.
#[derive(Clone)]
pub struct NexusEntry {
    /// What it was asked to be, without its children.
    pub wish: desired::Nexus,
    /// The mirror; `None` while it waits for its children since the start.
    pub mirror: Option<nexus::Nexus>,
    /// Its children, in the order in which they were given, also those that could not be opened since the start.
    children: Vec<Child>,
    /// Why it waits, when it does.
    waits_for: String,
}

impl NexusEntry {
    fn child(&self, uri: &str) -> Option<&Child> {
        self.children.iter().find(|c| c.uri == uri)
    }

    /// The mirror, or why there is none.
    fn live(&self) -> Result<nexus::Nexus, EngineError> {
        let waits = || NexusError::Waiting { nexus: self.wish.name.clone(), why: self.waits_for.clone() };
        self.mirror.clone().ok_or_else(|| waits().into())
    }
}

/// How a nexus fares.
pub struct NexusInfo {
    /// As a whole.
    pub state: NexusState,
    /// What was asked for.
    pub size_bytes: u64,
    /// In the order of their coming. `None` of those that could not be opened since the start.
    pub children: Vec<(String, Option<ChildInfo>)>,
}

/// The nexuses of this node.
#[derive(Default)]
pub struct Nexuses(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// In the order of creation.
    list: Vec<NexusEntry>,
    /// Names and uuids of nexuses that are being created.
    coming: BTreeSet<(String, Uuid)>,
    /// Which nexus has a device as its child, by the device's name.
    children: BTreeMap<String, String>,
    /// Who is at work on which nexus.
    locks: BTreeMap<Uuid, Arc<tokio::sync::Mutex<()>>>,
}

/// While it is there, nobody else changes the nexus.
pub(crate) type NexusLock = OwnedMutexGuard<()>;

/// A name and a uuid that are taken until this is dropped.
pub(crate) struct Coming<'a> {
    nexuses: &'a Nexuses,
    ids: (String, Uuid),
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.nexuses.inner().coming.remove(&self.ids);
    }
}

impl Nexuses {
    /// All of them.
    pub fn list(&self) -> Vec<NexusEntry> {
        self.inner().list.clone()
    }

    /// The one that a request names; what is no uuid names none.
    pub fn find(&self, uuid: Uuid) -> Result<NexusEntry, EngineError> {
        let found = self.inner().list.iter().find(|e| e.wish.uuid == uuid).cloned();
        found.ok_or_else(|| NexusError::NotFound(uuid.to_string()).into())
    }

    /// The nexus that has the device of this name as a child.
    pub fn user_of(&self, device: &str) -> Option<String> {
        self.inner().children.get(device).cloned()
    }

    /// Waits for its turn to change a nexus.
    pub(crate) async fn lock(&self, uuid: Uuid, patience: Duration) -> Result<NexusLock, EngineError> {
        let lock = {
            let mut inner = self.inner();
            // Those that nobody holds or waits for, except for the one that is asked for.
            inner.locks.retain(|of, lock| *of == uuid || Arc::strong_count(lock) > 1);
            inner.locks.entry(uuid).or_default().clone()
        };
        tokio::time::timeout(patience, lock.lock_owned()).await.map_err(|_| NexusError::Busy.into())
    }

    /// Takes a name and a uuid for a nexus that is to be.
    fn reserve(&self, name: &str, uuid: Uuid) -> Result<Coming<'_>, EngineError> {
        let mut inner = self.inner();
        let there = inner.list.iter().map(|e| (&e.wish.name, e.wish.uuid));
        let taken: Vec<(String, Uuid)> =
            there.chain(inner.coming.iter().map(|(n, u)| (n, *u))).map(|(n, u)| (n.clone(), u)).collect();
        if taken.iter().any(|(n, _)| n == name) {
            return Err(NexusError::NameTaken(name.to_owned()).into());
        }
        if let Some((name, _)) = taken.into_iter().find(|(_, u)| *u == uuid) {
            return Err(NexusError::UuidTaken { uuid, name }.into());
        }
        let ids = (name.to_owned(), uuid);
        inner.coming.insert(ids.clone());
        Ok(Coming { nexuses: self, ids })
    }

    fn insert(&self, entry: NexusEntry) {
        self.inner().list.push(entry);
    }

    fn remove(&self, uuid: Uuid) {
        self.inner().list.retain(|e| e.wish.uuid != uuid);
    }

    /// Changes what is known of a nexus.
    fn change(&self, uuid: Uuid, change: impl FnOnce(&mut NexusEntry)) {
        if let Some(entry) = self.inner().list.iter_mut().find(|e| e.wish.uuid == uuid) {
            change(entry);
        }
    }

    /// Takes a device as a child of `nexus`, or tells whose it is.
    fn claim(&self, device: &str, nexus: &str) -> Result<(), String> {
        match self.inner().children.entry(device.to_owned()) {
            std::collections::btree_map::Entry::Occupied(taken) => Err(taken.get().clone()),
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(nexus.to_owned());
                Ok(())
            }
        }
    }

    fn release(&self, device: &str) {
        self.inner().children.remove(device);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// How a nexus fares.
    pub async fn nexus_info(&self, entry: &NexusEntry) -> Result<NexusInfo, EngineError> {
        let uris = || entry.children.iter().map(|c| c.uri.clone());
        let Some(mirror) = &entry.mirror else {
            let children = uris().map(|uri| (uri, None)).collect();
            return Ok(NexusInfo { state: NexusState::Faulted, size_bytes: entry.wish.size_bytes, children });
        };
        let (state, size_bytes, infos) = mirror.info().await.map_err(error::NexusOp::Other.failed())?;
        let mut children: Vec<_> = uris().map(|uri| (uri, None)).collect();
        for info in infos {
            match children.iter_mut().find(|(uri, _)| *uri == info.uri) {
                Some(child) => child.1 = Some(info),
                // It is just being added, or removed.
                None => children.push((info.uri.clone(), Some(info))),
            }
        }
        let missing = children.iter().any(|(_, info)| info.is_none());
        let state = if missing && state == NexusState::Online { NexusState::Degraded } else { state };
        Ok(NexusInfo { state, size_bytes, children })
    }
}
