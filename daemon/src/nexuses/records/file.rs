//! Records in files: `nexuses/UUID.json` in the state folder, each replaced as a whole.
//!
//! A file is written beside, synced, renamed over the old one, and the folder synced: after a power cut the old or the new
//! one is there. It stays when its nexus is destroyed: it knows which children are stale, should somebody make a nexus of
//! that identity of them again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nexus::membership::{Loading, Saving};
use nexus::{MembershipStore, Record, StoreError};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{decode, encode};

const FOLDER: &str = "nexuses";

/// How long a disk may take. A nexus that cannot record what it knows ends; until then its hosts wait.
const TIMEOUT: Duration = Duration::from_secs(30);

/// See the module.
pub struct FileRecords {
    folder: PathBuf,
    /// Where what blocks is done.
    runtime: Handle,
}

impl FileRecords {
    /// Records in `state`, the state folder. In a tokio runtime only.
    pub fn new(state: &Path) -> io::Result<Self> {
        let folder = state.join(FOLDER);
        fs::create_dir_all(&folder)?;
        File::open(state)?.sync_all()?;
        Ok(Self { folder, runtime: Handle::current() })
    }

    /// Where the record of a nexus is kept.
    pub fn of(&self, nexus: Uuid) -> FileRecord {
        let text = |ending: &str| TextFile {
            inner: Arc::new(Inner {
                path: self.folder.join(format!("{nexus}.{ending}")),
                written: Mutex::new(0),
            }),
            next: AtomicU64::new(1),
            runtime: self.runtime.clone(),
        };
        FileRecord { record: text("json"), notes: text("notes") }
    }
}

/// The record of one nexus, and its notes.
pub struct FileRecord {
    record: TextFile,
    notes: TextFile,
}

impl MembershipStore for FileRecord {
    fn load(&self) -> Loading<Record> {
        let (path, text) = (self.record.inner.path.clone(), self.record.load());
        Box::pin(async move {
            let Some(text) = text.await? else { return Ok(None) };
            let record = decode(&text);
            record.map(Some).map_err(|e| StoreError(format!("{} cannot be understood: {e}", path.display())))
        })
    }

    fn load_notes(&self) -> Loading<String> {
        let text = self.notes.load();
        // What is no text is of no use, and nothing depends on it.
        Box::pin(async move { Ok(text.await?.and_then(|t| String::from_utf8(t).ok())) })
    }

    fn save_notes(&self, notes: &str) -> Saving {
        self.notes.save(notes.as_bytes().to_vec())
    }

    fn save(&self, record: &Record) -> Saving {
        self.record.save(encode(record))
    }
}

/// A file that is read and written as a whole.
struct TextFile {
    inner: Arc<Inner>,
    next: AtomicU64,
    runtime: Handle,
}

struct Inner {
    path: PathBuf,
    /// Number of the newest text that was written: one that took too long must not come after a newer one.
    written: Mutex<u64>,
}

impl TextFile {
    fn load(&self) -> Loading<Vec<u8>> {
        self.work(|file| match fs::read(&file.path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError(format!("cannot read {}: {e}", file.path.display()))),
        })
    }

    fn save(&self, text: Vec<u8>) -> Saving {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.work(move |file| file.write(number, &text))
    }

    /// Does what blocks, for at most [`TIMEOUT`]. Goes on when the future is dropped.
    fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>> {
        let (file, path) = (self.inner.clone(), self.inner.path.clone());
        let (tell, told) = oneshot::channel();
        self.runtime.spawn(async move {
            let done = tokio::task::spawn_blocking(move || work(&file));
            let result = match tokio::time::timeout(TIMEOUT, done).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(ending()),
                Err(_) => {
                    let (path, secs) = (path.display(), TIMEOUT.as_secs());
                    Err(StoreError(format!("cannot use {path}: its disk did not answer within {secs} s")))
                }
            };
            // Nobody waits any more when the nexus is gone.
            let _ = tell.send(result);
        });
        Box::pin(async move { told.await.unwrap_or_else(|_| Err(ending())) })
    }
}

fn ending() -> StoreError {
    StoreError("the daemon is shutting down".into())
}

impl Inner {
    fn write(&self, number: u64, text: &[u8]) -> Result<(), StoreError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if number < *written {
            return Ok(());
        }
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        let replace = || -> io::Result<()> {
            let mut out = File::create(&temporary)?;
            out.write_all(text)?;
            // Before the rename: a name must never point to data that is not there yet.
            out.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        replace().map_err(|e| StoreError(format!("cannot write {}: {e}", self.path.display())))?;
        *written = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: Uuid = Uuid::from_u128(1);

    fn healthy(child: u128) -> Record {
        let mut record = Record::default();
        record.add(Uuid::from_u128(child), true);
        record
    }

    #[tokio::test]
    async fn the_last_record_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let records = FileRecords::new(dir.path()).unwrap();
        let store = records.of(N);
        assert_eq!((store.load().await.unwrap(), store.load_notes().await.unwrap()), (None, None));
        store.save(&healthy(1)).await.unwrap();
        store.save(&healthy(2)).await.unwrap();
        store.save_notes("a mark").await.unwrap();
        // What a write that was cut short leaves beside does not count.
        fs::write(dir.path().join(FOLDER).join(format!("{N}.json.new")), b"{\"clean").unwrap();
        let again = records.of(N);
        assert_eq!(again.load().await.unwrap(), Some(healthy(2)));
        assert_eq!(again.load_notes().await.unwrap().as_deref(), Some("a mark"));
        assert_eq!(records.of(Uuid::from_u128(2)).load().await.unwrap(), None, "each has its own");
    }

    /// A record that cannot be understood must not be taken for none: then every child would count as healthy.
    #[tokio::test]
    async fn a_damaged_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let records = FileRecords::new(dir.path()).unwrap();
        fs::write(dir.path().join(FOLDER).join(format!("{N}.json")), b"{\"clean_shut").unwrap();
        let e = records.of(N).load().await.unwrap_err();
        assert!(e.to_string().contains("cannot be understood"), "{e}");
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_told_and_late_records_do_not_win() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileRecords::new(dir.path()).unwrap().of(N);
        store.record.inner.write(2, &encode(&healthy(2))).unwrap();
        store.record.inner.write(1, &encode(&healthy(1))).unwrap();
        assert_eq!(store.load().await.unwrap(), Some(healthy(2)));
        fs::remove_dir_all(dir.path().join(FOLDER)).unwrap();
        let e = store.save(&healthy(1)).await.and(store.save(&healthy(3)).await).unwrap_err();
        assert!(e.to_string().contains("cannot write"), "{e}");
    }
}
