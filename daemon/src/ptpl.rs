//! `--ptpl-dir`: reservations that persist through power loss (NVMe Base 2.0, section 8.19), one file for each namespace.
//!
//! A file is there exactly while the namespace's reservations persist. It is replaced as a whole: written beside, synced,
//! renamed over the old one, and the folder synced; the command that changed it completes after that. After a power cut
//! the old or the new version is there, never a mixture, and a checksum tells everything else from both. A file that is
//! not one of ours, or was damaged, keeps its namespace from being served: an empty reservation in its stead would let in
//! whom it was made to keep out.
//!
//! All writing is done by one thread, in the order in which it was asked for: cores do not wait for disks.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use nvme::HostId;
use nvme::digest::crc32c;
use nvme::reservation::{Held, Inconsistent, Registrant, ReservationType, Reservations};
use nvmf::target::{PersistentReservations, ReservationStore, SaveDone, SavedReservations};
use serde::{Deserialize, Serialize};
use tracing::warn;
use uuid::Uuid;

/// Version of the format; a file of a later one is refused rather than misread.
const VERSION: u32 = 1;

/// A failed operation on the folder of reservations.
#[derive(Debug, thiserror::Error)]
pub enum PtplError {
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
    /// Not what we wrote.
    #[error(
        "the reservations in {} are damaged ({why}): namespace {namespace} is not served, because hosts that they keep \
         out would get in. Restore the file from a backup; or, when no host relies on a reservation of that namespace \
         any more, move it away", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Whose reservations they are.
        namespace: Uuid,
        /// What is wrong with it.
        why: Damage,
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

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It does not have the form.
    #[error("{0}")]
    Form(#[from] serde_json::Error),
    /// Something changed after it was written.
    #[error("its checksum does not fit its contents")]
    Checksum,
    /// It is that of another namespace.
    #[error("it is that of namespace {0}")]
    Other(Uuid),
    /// No sequence of commands leads to it.
    #[error("{0}")]
    State(#[from] Inconsistent),
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    /// Of the compact form of what follows, in hexadecimal.
    crc32c: String,
    reservations: Kept,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// NQN of the subsystem.
    subsystem: String,
    namespace: Uuid,
    /// 0 = nobody holds one.
    rtype: u8,
    /// Of the types that have one.
    holder: Option<Uuid>,
    registrants: Vec<KeptRegistrant>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptRegistrant {
    host: Uuid,
    key: u64,
}

/// Whose reservations: those of a namespace in a subsystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Whose {
    /// NQN of the subsystem.
    pub subsystem: String,
    /// Uuid of the namespace.
    pub namespace: Uuid,
}

impl Whose {
    /// One device can be a namespace of several subsystems, each with reservations of its own.
    fn file_name(&self) -> String {
        format!("{}.{:08x}.json", self.namespace, crc32c(self.subsystem.as_bytes()))
    }
}

/// The contents of a file.
fn encode(whose: &Whose, state: &SavedReservations) -> Result<Vec<u8>, serde_json::Error> {
    let kept = Kept {
        subsystem: whose.subsystem.clone(),
        namespace: whose.namespace,
        rtype: state.held.map_or(0, |held| held.rtype.get()),
        holder: state.held.filter(|held| held.holder != HostId::NONE).map(|h| Uuid::from_bytes(h.holder.0)),
        registrants: state
            .registrants
            .iter()
            .map(|r| KeptRegistrant { host: Uuid::from_bytes(r.hostid.0), key: r.key })
            .collect(),
    };
    let crc32c = checksum(&kept)?;
    serde_json::to_vec_pretty(&Envelope { version: VERSION, crc32c, reservations: kept })
}

fn checksum(kept: &Kept) -> Result<String, serde_json::Error> {
    Ok(format!("{:08x}", crc32c(&serde_json::to_vec(kept)?)))
}

/// What the contents of a file say; `path` is for messages only. Touches no file.
fn decode(path: &Path, whose: &Whose, bytes: &[u8]) -> Result<Reservations, PtplError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let damaged = |why: Damage| PtplError::Damaged { path: path.to_owned(), namespace: whose.namespace, why };
    // The version first: a later one may have fields that this one does not know.
    let Version { version } = serde_json::from_slice(bytes).map_err(|e| damaged(e.into()))?;
    if version != VERSION {
        return Err(PtplError::Version { path: path.to_owned(), found: version });
    }
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| damaged(e.into()))?;
    let kept = envelope.reservations;
    if checksum(&kept).map_err(|e| damaged(e.into()))? != envelope.crc32c {
        return Err(damaged(Damage::Checksum));
    }
    if kept.namespace != whose.namespace {
        return Err(damaged(Damage::Other(kept.namespace)));
    }
    let registrants =
        kept.registrants.iter().map(|r| Registrant { hostid: HostId(r.host.into_bytes()), key: r.key });
    let holder = kept.holder.map_or(HostId::NONE, |holder| HostId(holder.into_bytes()));
    let held = (kept.rtype != 0).then_some(Held { rtype: ReservationType::new(kept.rtype), holder });
    Reservations::restore(registrants.collect(), held).map_err(|e| damaged(e.into()))
}

/// Replaces a file, durably.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut out = File::create(&temporary)?;
    out.write_all(bytes)?;
    // Before the rename: a name must never point to data that is not there yet.
    out.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Removes a file, durably. One that is not there is no error.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Writes that wait for the disk. A namespace has one at a time; further ones fail.
const MAX_JOBS: usize = 4096;

/// Something for the thread that writes.
type Job = Box<dyn FnOnce() + Send>;

/// The folder, and the thread that writes to it, which ends when the last clone is gone.
#[derive(Clone)]
pub struct ReservationDir {
    path: PathBuf,
    jobs: SyncSender<Job>,
}

impl ReservationDir {
    /// Makes the folder if it is missing.
    pub fn open(path: &Path) -> Result<Self, PtplError> {
        let fail = |op| move |source| PtplError::Io { op, path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(fail("make the folder of reservations"))?;
        let (jobs, todo) = sync_channel::<Job>(MAX_JOBS);
        let work = move || todo.into_iter().for_each(|job| job());
        let thread = std::thread::Builder::new().name("reservations".into()).spawn(work);
        thread.map_err(fail("start a thread that writes to"))?;
        Ok(Self { path: path.to_owned(), jobs })
    }

    /// What a namespace begins with. Blocks: not for reactor threads.
    pub fn load(&self, whose: &Whose) -> Result<PersistentReservations, PtplError> {
        let path = self.path.join(whose.file_name());
        let store = Arc::new(Store { dir: self.clone(), whose: whose.clone() });
        match fs::read(&path) {
            Ok(bytes) => Ok(PersistentReservations { saved: decode(&path, whose, &bytes)?, store }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(PersistentReservations::none(store)),
            Err(source) => Err(PtplError::Io { op: "read the reservations in", path, source }),
        }
    }

    /// Forgets the reservations of a namespace that was destroyed, in whatever subsystem. What is left over when it
    /// fails is in nobody's way: uuids do not come back by themselves.
    pub fn forget(&self, namespace: Uuid) {
        let folder = self.path.clone();
        self.run(Box::new(move || {
            let prefix = format!("{namespace}.");
            let files = fs::read_dir(&folder).into_iter().flatten().flatten();
            for file in files.filter(|f| f.file_name().to_string_lossy().starts_with(&prefix)) {
                if let Err(e) = remove(&file.path()) {
                    warn!("cannot remove {}: {e}", file.path().display());
                }
            }
        }));
    }

    fn run(&self, job: Job) {
        // Dropping a job says that it failed: when there are too many, or were the thread gone, which ends after the
        // last sender.
        let _ = self.jobs.try_send(job);
    }
}

/// Where the reservations of one namespace are kept.
struct Store {
    dir: ReservationDir,
    whose: Whose,
}

impl ReservationStore for Store {
    fn save(&self, state: Option<SavedReservations>, done: SaveDone) {
        let (path, whose) = (self.dir.path.join(self.whose.file_name()), self.whose.clone());
        self.dir.run(Box::new(move || {
            let result = match state {
                Some(state) => {
                    encode(&whose, &state).map_err(io::Error::other).and_then(|bytes| write(&path, &bytes))
                }
                None => remove(&path),
            };
            if let Err(e) = &result {
                warn!(
                    "cannot save the reservations of namespace {} in {}: {e}; the host's command fails",
                    whose.namespace,
                    path.display()
                );
            }
            done(result);
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const HOST: HostId = HostId([7; 16]);

    fn whose() -> Whose {
        Whose { subsystem: "nqn.2019-05.io.openebs:a".into(), namespace: Uuid::from_u128(5) }
    }

    fn sample() -> SavedReservations {
        let registrants =
            vec![Registrant { hostid: HOST, key: u64::MAX }, Registrant { hostid: HostId([8; 16]), key: 0 }];
        let held = Held { rtype: ReservationType::EXCLUSIVE_ACCESS, holder: HOST };
        SavedReservations { registrants, held: Some(held) }
    }

    fn save(dir: &ReservationDir, state: Option<SavedReservations>) -> io::Result<()> {
        let (tell, told) = mpsc::sync_channel(1);
        dir.load(&whose()).unwrap().store.save(state, Box::new(move |result| tell.send(result).unwrap()));
        told.recv().unwrap()
    }

    #[test]
    fn what_was_saved_comes_back() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ReservationDir::open(&tmp.path().join("ptpl")).unwrap();
        assert_eq!(dir.load(&whose()).unwrap().saved, Reservations::new(true));
        save(&dir, Some(sample())).unwrap();
        let again = ReservationDir::open(&tmp.path().join("ptpl")).unwrap();
        let state = again.load(&whose()).unwrap().saved;
        assert_eq!((state.registrants(), state.held()), (&sample().registrants[..], sample().held));
        assert!(state.persists());
        // Of another subsystem, and of another namespace, there is nothing.
        let other = Whose { subsystem: "nqn.2019-05.io.openebs:b".into(), ..whose() };
        assert!(!again.load(&other).unwrap().saved.persists());
        // Nothing persists any more.
        save(&again, None).unwrap();
        assert_eq!(fs::read_dir(tmp.path().join("ptpl")).unwrap().count(), 0);
        save(&again, None).unwrap();
    }

    #[test]
    fn every_type_comes_back() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ReservationDir::open(tmp.path()).unwrap();
        for rtype in ReservationType::ALL {
            let holder = if rtype.is_all_registrants() { HostId::NONE } else { HOST };
            let held = Some(Held { rtype, holder });
            save(&dir, Some(SavedReservations { held, ..sample() })).unwrap();
            assert_eq!(dir.load(&whose()).unwrap().saved.held(), held);
        }
    }

    #[test]
    fn a_damaged_file_is_refused_and_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ReservationDir::open(tmp.path()).unwrap();
        save(&dir, Some(sample())).unwrap();
        let path = tmp.path().join(whose().file_name());
        let good = fs::read_to_string(&path).unwrap();
        let refused = |text: &str, expected: &str| {
            fs::write(&path, text).unwrap();
            let e = dir.load(&whose()).err().expect("refused").to_string();
            assert!(e.contains(expected) && e.contains(&path.display().to_string()), "{e}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        };
        refused("", "damaged");
        refused(&good[..good.len() / 2], "damaged");
        refused(&good.replace("\"rtype\": 2", "\"rtype\": 1"), "checksum");
        refused(&good.replace(&u64::MAX.to_string(), "3"), "checksum");
        refused(&good.replace("\"version\": 1", "\"version\": 9"), "version 9");
        let state = SavedReservations { registrants: vec![], ..sample() };
        let holderless = encode(&whose(), &state).unwrap();
        refused(&String::from_utf8(holderless).unwrap(), "holder");
        let other = encode(&Whose { namespace: Uuid::from_u128(6), ..whose() }, &sample()).unwrap();
        refused(&String::from_utf8(other).unwrap(), "is that of namespace");
        fs::write(&path, &good).unwrap();
        assert!(dir.load(&whose()).is_ok());
    }

    /// Power that fails while the new file is written leaves the old one.
    #[test]
    fn a_half_written_successor_is_ignored() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ReservationDir::open(tmp.path()).unwrap();
        save(&dir, Some(sample())).unwrap();
        fs::write(tmp.path().join(whose().file_name()).with_extension("new"), b"{\"vers").unwrap();
        assert_eq!(dir.load(&whose()).unwrap().saved.held(), sample().held);
        save(&dir, Some(sample())).unwrap();
    }

    #[test]
    fn a_destroyed_namespace_is_forgotten() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ReservationDir::open(tmp.path()).unwrap();
        save(&dir, Some(sample())).unwrap();
        dir.forget(Uuid::from_u128(6));
        dir.forget(whose().namespace);
        // In order behind the two.
        save(&dir, None).unwrap();
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_gone_fails_the_command() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ReservationDir::open(&tmp.path().join("x")).unwrap();
        fs::remove_dir(tmp.path().join("x")).unwrap();
        assert!(save(&dir, Some(sample())).is_err());
        let file = tmp.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(ReservationDir::open(&file).is_err());
    }
}
