//! Who is a healthy member, kept where it outlives this process.
//!
//! A write that a healthy child missed is acknowledged only after the record says that the child is not healthy: so
//! whoever opens the volume next, here or on another host, never reads that child.

use core::future::Future;
use core::pin::Pin;

use aio::BlockDevice;
use uuid::Uuid;

use crate::home;

/// One child in a [`Record`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemberRecord {
    /// The identity of the child's device.
    pub uuid: Uuid,
    /// It has every acknowledged write.
    pub healthy: bool,
}

/// What is recorded of a nexus.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// The nexus was shut down in order: no write was in flight.
    pub clean_shutdown: bool,
    /// The members, healthy or not.
    pub children: Vec<MemberRecord>,
}

impl Record {
    /// How many members are healthy.
    pub fn healthy(&self) -> usize {
        self.children.iter().filter(|c| c.healthy).count()
    }

    /// Whether this is a member, healthy or not.
    pub fn knows(&self, uuid: Uuid) -> bool {
        self.children.iter().any(|c| c.uuid == uuid)
    }

    /// Whether this is a healthy member.
    pub fn is_healthy(&self, uuid: Uuid) -> bool {
        self.children.iter().any(|c| c.uuid == uuid && c.healthy)
    }

    /// Adds a member; one of the same identity is replaced.
    pub fn add(&mut self, uuid: Uuid, healthy: bool) {
        self.remove(uuid);
        self.children.push(MemberRecord { uuid, healthy });
    }

    /// Takes a member out.
    pub fn remove(&mut self, uuid: Uuid) {
        self.children.retain(|c| c.uuid != uuid);
    }

    /// Says of a member whether it is healthy. False when that changes nothing.
    pub fn set_healthy(&mut self, uuid: Uuid, healthy: bool) -> bool {
        let found = self.children.iter_mut().find(|c| c.uuid == uuid && c.healthy != healthy);
        found.map(|c| c.healthy = healthy).is_some()
    }
}

/// The record could not be kept.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(
    /// What was attempted, where, and why it failed.
    pub String,
);

/// Resolves when the record is durable.
pub type Saving = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// Resolves with what was saved last; `None`: nothing ever was.
pub type Loading<T> = Pin<Box<dyn Future<Output = Result<Option<T>, StoreError>> + Send>>;

/// Where records are kept. One record a nexus; the store knows under which key.
///
/// Beside the record, which others read as well and whose form is theirs, stand *notes*: a text of the nexus's own, that
/// the store keeps under another key or in another file, and does not look into. A nexus without notes is safe, and copies more.
pub trait MembershipStore: Send + Sync + 'static {
    /// The record as it was saved last, also by another process. Asked once, before the first save.
    fn load(&self) -> Loading<Record>;

    /// The notes as they were saved last.
    fn load_notes(&self) -> Loading<String>;

    /// Replaces the notes as a whole (at most some KiB). Resolves when they are durable.
    fn save_notes(&self, notes: &str) -> Saving;

    /// Replaces the record as a whole. Resolves when it is durable; an error says that it may be or not. Retries are the
    /// store's: an error is final, and the nexus shuts itself down for it.
    fn save(&self, record: &Record) -> Saving;
}

/// Which of these children have every acknowledged write and are to be members in sync, given the record and the notes of before;
/// as [`Nexus::create`](crate::Nexus::create) decides it. `None`: not one of them.
///
/// All of them, when the record knows none. After an end that was not in order a single one: it alone serves reads, and the others
/// are rebuilt from it (hazard H7); rather one that is known to have lost no power (hazard H1).
pub fn in_sync(
    children: &[(Uuid, &dyn BlockDevice)],
    record: Option<&Record>,
    notes: Option<&str>,
) -> Option<Vec<bool>> {
    home::in_sync(children, record, &home::Notes::parse(notes.unwrap_or_default()))
}

/// Keeps nothing: for a nexus whose members nobody else opens, and which does not outlive its process.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStore;

impl MembershipStore for NoStore {
    fn load(&self) -> Loading<Record> {
        Box::pin(core::future::ready(Ok(None)))
    }

    fn load_notes(&self) -> Loading<String> {
        Box::pin(core::future::ready(Ok(None)))
    }

    fn save_notes(&self, _notes: &str) -> Saving {
        Box::pin(core::future::ready(Ok(())))
    }

    fn save(&self, _record: &Record) -> Saving {
        Box::pin(core::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_there_once() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut record = Record::default();
        record.add(a, true);
        record.add(b, true);
        record.add(a, false);
        assert_eq!((record.children.len(), record.healthy()), (2, 1));
        assert!(!record.set_healthy(a, false), "nothing changes");
        assert!(record.set_healthy(a, true));
        assert!(!record.set_healthy(Uuid::from_u128(3), true), "nobody");
        record.remove(b);
        assert_eq!(record.children, [MemberRecord { uuid: a, healthy: true }]);
    }
}
