//! `--state-dir`: what was created by request, kept over restarts.
//!
//! One file, `state.json`, replaced as a whole: written beside, synced, renamed over the old one, and the folder
//! synced. After a power cut the old or the new version is there, never a mixture. A lock on the folder keeps a
//! second daemon out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::desired::Desired;

const FILE: &str = "state.json";
const TEMPORARY: &str = "state.json.new";
const LOCK: &str = "lock";

/// Version of the format; a file of a later one is refused rather than misread.
const VERSION: u32 = 1;

/// A failed operation on the state folder.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refused.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another daemon uses the folder.
    #[error("the state folder {} is in use by another keelson; give each daemon its own --state-dir", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Not what we wrote.
    #[error(
        "{} cannot be read: {source}. It is left as it is; restore it from a backup, or move it away to start \
         without what was created by request", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a later release.
    #[error("{} has version {found}, this release reads {VERSION}: use the release that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    #[serde(flatten)]
    desired: Desired,
}

/// The state folder, locked for this process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl StateDir {
    /// Makes the folder if it is missing, and locks it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let fail = |op| move |source| StateError::Io { op, path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(fail("make the state folder"))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(lock_path);
        let lock = lock.map_err(fail("lock the state folder"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(fail("lock the state folder")(source)),
        }
    }

    /// What was saved last; nothing in a new folder.
    pub fn load(&self) -> Result<Desired, StateError> {
        let path = self.path.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Desired::default()),
            Err(source) => return Err(StateError::Io { op: "read", path, source }),
        };
        decode(&path, &bytes)
    }

    /// Replaces what was saved. On return it is on disk. Blocks: not for reactor threads.
    pub fn save(&self, desired: &Desired) -> Result<(), StateError> {
        let (file, temporary) = (self.path.join(FILE), self.path.join(TEMPORARY));
        let bytes = encode(desired).map_err(|source| StateError::Corrupt { path: file.clone(), source })?;
        let write = || -> io::Result<()> {
            let mut out = File::create(&temporary)?;
            out.write_all(&bytes)?;
            // Before the rename: a name must never point to data that is not there yet.
            out.sync_all()?;
            fs::rename(&temporary, &file)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| StateError::Io { op: "write", path: file.clone(), source })
    }
}

/// The contents of a state file.
pub fn encode(desired: &Desired) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec_pretty(&Envelope { version: VERSION, desired: desired.clone() })
}

/// What the contents of a state file say; `path` is for messages only. Touches no file.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<Desired, StateError> {
    // The version first: a later one may have fields that this one does not know.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let corrupt = |source| StateError::Corrupt { path: path.to_owned(), source };
    let Version { version } = serde_json::from_slice(bytes).map_err(corrupt)?;
    if version != VERSION {
        return Err(StateError::Version { path: path.to_owned(), found: version });
    }
    Ok(serde_json::from_slice::<Envelope>(bytes).map_err(corrupt)?.desired)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Device, Namespace, Nexus, Pool, Reservation, Subsystem};

    fn sample() -> Desired {
        Desired {
            devices: vec![Device { uri: "malloc:///a?size_mb=1".into() }],
            pools: vec![Pool {
                name: "tpool".into(),
                disks: vec!["aio:///dev/sdb?uuid=00000000-0000-0000-0000-000000000001".into()],
                replicas: Vec::new(),
            }],
            nexuses: vec![Nexus {
                name: "n".into(),
                uuid: uuid::Uuid::from_u128(5),
                size_bytes: 1 << 30,
                children: vec!["bdev:///r?uuid=00000000-0000-0000-0000-000000000001".into()],
                cntlids: [1, 2],
                info_key: "/volume/info".into(),
                reservation: Some(Reservation { key: 7, preempt_key: None, rtype: 5, preempt_holder: false }),
                shut_down: false,
            }],
            subsystems: vec![Subsystem {
                nqn: "nqn.2019-05.io.openebs:a".into(),
                share_of: Some("a".into()),
                hosts: ["nqn.2014-08.org.example:h".to_owned()].into(),
                cntlids: Some([1, 10]),
                ana_groups: 1,
                namespaces: vec![Namespace {
                    device: "a".into(),
                    nsid: 1,
                    uuid: Some(uuid::Uuid::from_u128(7)),
                    ana_group: 1,
                }],
                ..Subsystem::default()
            }],
        }
    }

    #[test]
    fn saved_state_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.load().unwrap(), Desired::default());
        state.save(&sample()).unwrap();
        assert_eq!(state.load().unwrap(), sample());
        state.save(&Desired::default()).unwrap();
        assert_eq!(state.load().unwrap(), Desired::default());
    }

    #[test]
    fn a_half_written_successor_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.save(&sample()).unwrap();
        fs::write(dir.path().join(TEMPORARY), b"{\"versi").unwrap();
        assert_eq!(state.load().unwrap(), sample());
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let file = dir.path().join(FILE);
        fs::write(&file, b"{ nonsense").unwrap();
        assert!(matches!(state.load(), Err(StateError::Corrupt { .. })));
        assert_eq!(fs::read(&file).unwrap(), b"{ nonsense");
        fs::write(&file, br#"{"version": 2, "volumes": []}"#).unwrap();
        let e = state.load().unwrap_err();
        assert!(e.to_string().contains("version 2"), "{e}");
    }

    #[test]
    fn one_daemon_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let e = StateDir::open(dir.path()).unwrap_err();
        assert!(matches!(e, StateError::Locked { .. }), "{e}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(matches!(StateDir::open(&file), Err(StateError::Io { .. })));
    }
}
