//! Where the members of nexuses are recorded: who is healthy, so that nobody reads from one that is not.
//!
//! - This file: which store there is, and the record as text, which is Mayastor's. - [`etcd`]: where a control plane looks
//!   (`-p`). - [`mod@file`]: a file a nexus, in the state folder. With neither nothing outlives the daemon, the nexus neither.

pub mod etcd;
pub mod file;

use std::sync::Arc;

use nexus::{MemberRecord, MembershipStore, NoStore, Record};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::etcd::EtcdRecords;
use self::file::FileRecords;

/// Where records are.
pub enum Records {
    /// Nowhere.
    None,
    /// In files.
    Files(FileRecords),
    /// In etcd.
    Etcd(EtcdRecords),
}

impl Records {
    /// Whether anything is kept: then children need identities.
    pub fn are_kept(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Where the record of a nexus is kept. In etcd that is under `key`, unless it is empty.
    pub fn of(&self, nexus: Uuid, key: &str) -> Arc<dyn MembershipStore> {
        match self {
            Self::None => Arc::new(NoStore),
            Self::Files(files) => Arc::new(files.of(nexus)),
            Self::Etcd(etcd) if key.is_empty() => Arc::new(etcd.of(&nexus.to_string())),
            Self::Etcd(etcd) => Arc::new(etcd.of(key)),
        }
    }
}

/// A record as Mayastor writes it.
#[derive(Serialize, Deserialize)]
struct Text {
    clean_shutdown: bool,
    children: Vec<Child>,
}

#[derive(Serialize, Deserialize)]
struct Child {
    uuid: Uuid,
    healthy: bool,
}

/// The record as text.
pub fn encode(record: &Record) -> Vec<u8> {
    let children = record.children.iter().map(|c| Child { uuid: c.uuid, healthy: c.healthy }).collect();
    let text = Text { clean_shutdown: record.clean_shutdown, children };
    serde_json::to_vec(&text).expect("invariant: it has nothing that JSON does not")
}

/// What a text says; also of one that Mayastor wrote.
pub fn decode(text: &[u8]) -> Result<Record, serde_json::Error> {
    let Text { clean_shutdown, children } = serde_json::from_slice(text)?;
    let children = children.into_iter().map(|c| MemberRecord { uuid: c.uuid, healthy: c.healthy }).collect();
    Ok(Record { clean_shutdown, children })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(0xa);

    fn record(clean_shutdown: bool, children: &[(Uuid, bool)]) -> Record {
        let children = children.iter().map(|&(uuid, healthy)| MemberRecord { uuid, healthy }).collect();
        Record { clean_shutdown, children }
    }

    #[test]
    fn the_text_is_mayastors() {
        let text = r#"{"clean_shutdown":false,"children":[{"uuid":"00000000-0000-0000-0000-00000000000a","healthy":true}]}"#;
        let record = record(false, &[(A, true)]);
        assert_eq!(encode(&record), text.as_bytes());
        assert_eq!(decode(text.as_bytes()).unwrap(), record);
        // A later field of theirs is not ours to mind.
        assert_eq!(decode(text.replace("{\"clean", "{\"more\":1,\"clean").as_bytes()).unwrap(), record);
        for bad in ["", "{}", "[]", r#"{"clean_shutdown":1,"children":[]}"#] {
            assert!(decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
