//! Rounds: load, a kill, a look at the disks, a restart, a look at everything.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aio::BlockDevice;
use keelson::perf::stamp::SplitMix;
use uuid::Uuid;

use super::deeds::{Deed, Doer, Known, Second, Subject};
use super::host::{Fate, Host, lock};
use super::ledger::Ledger;
use super::served::{Asker, POOL, Place, Served};

/// Of the pool's disks, and of the other pool's.
const DISK_BYTES: u64 = 128 << 20;
/// Of the replica under load: its first size.
const REPLICA_BYTES: u64 = 8 << 20;
/// The longest that a daemon lives under load.
const LONGEST_MS: u64 = 400;

/// What is to be told.
pub(crate) struct Story {
    /// The program.
    pub(crate) keelson: PathBuf,
    /// Empty, on a file system with room for some hundred MiB.
    pub(crate) folder: PathBuf,
    /// Decides on everything but the moments at which things happen in the daemon.
    pub(crate) seed: u64,
    /// How often the daemon is killed under load.
    pub(crate) rounds: u64,
}

/// What was done.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Told {
    /// Also those while it started.
    pub(crate) kills: u64,
    /// I/Os that were acknowledged under load.
    pub(crate) ios: u64,
    /// Flushes and writes through among them.
    pub(crate) durable: u64,
    /// Units that were read and judged after a kill.
    pub(crate) units: u64,
}

/// Tells it. An error says what was wrong; the folder has the disks then, and what the daemons logged.
pub(crate) fn tell(story: &Story) -> Result<Told, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut teller, served) = Teller::begin(story).await;
        let mut served = Some(served);
        for round in 0..story.rounds {
            let deed = Deed::ALL[((round + story.seed) % Deed::ALL.len() as u64) as usize];
            let daemon = match served.take() {
                Some(served) => served,
                None => teller.restart().await.map_err(|e| format!("before round {round}: {e}"))?,
            };
            teller.round(daemon, deed).await.map_err(|e| format!("round {round}, {deed:?}: {e}"))?;
        }
        let daemon = teller.restart().await.map_err(|e| format!("at the end: {e}"))?;
        daemon.asker().export_pool(POOL).await.map_err(|e| e.to_string())?;
        drop(daemon);
        teller.check(true)?;
        Ok(teller.told)
    })
}

struct Teller {
    place: Place,
    host: Host,
    random: SplitMix,
    /// The pool's disks, and the other pool's.
    disks: [PathBuf; 3],
    /// The replica under load, and a clone of it when there is one.
    subjects: Vec<Subject>,
    known: Known,
    versions: u64,
    told: Told,
}

impl Teller {
    async fn begin(story: &Story) -> (Self, Served) {
        let mut random = SplitMix(story.seed ^ 0x6b69_6c6c);
        let disks = ["one", "two", "three"].map(|name| story.folder.join(name));
        for disk in &disks {
            std::fs::File::create(disk).unwrap().set_len(DISK_BYTES).unwrap();
        }
        let place = Place {
            keelson: story.keelson.clone(),
            folder: story.folder.clone(),
            two_cores: random.below(2) == 0,
        };
        let served = Served::start(&place).await;
        let asker = served.asker();
        let block_bytes = if random.below(2) == 0 { 512 } else { 4096 };
        let disk = format!("aio://{}?blk_size={block_bytes}", disks[0].display());
        asker.create_pool(POOL, &disk).await.unwrap();
        let uuid = Uuid::from_u64_pair(random.number(), random.number());
        asker.create_replica("r", uuid, REPLICA_BYTES, true).await.unwrap();
        let ledger = Ledger::new(random.number(), REPLICA_BYTES / block_bytes);
        let subject = Subject { name: "r".into(), uuid, ledger: Arc::new(Mutex::new(ledger)) };
        let known = Known {
            sizes_bytes: vec![REPLICA_BYTES],
            snapshots: Default::default(),
            order: Vec::new(),
            clones: Default::default(),
            second: Second::Out,
            extra: None,
            other_pool: None,
        };
        let told = Told::default();
        let subjects = vec![subject];
        (Self { place, host: Host::new(), random, disks, subjects, known, versions: 0, told }, served)
    }

    /// How a disk is called; of the second with the block size of the first.
    fn disk(&self, at: usize) -> &str {
        self.disks[at].to_str().unwrap()
    }

    /// Load and a deed, and a kill in the middle of both.
    async fn round(&mut self, mut served: Served, deed: Deed) -> Result<(), String> {
        let asker = served.asker();
        let fate = Arc::new(Fate { versions: AtomicU64::new(self.versions), ..Fate::default() });
        let mut loads = Vec::new();
        let mut devices = Vec::new();
        for subject in &self.subjects {
            let device = self.connect(&asker, subject.uuid).await?;
            devices.push(device.clone());
            loads.push(self.host.load(device, subject.ledger.clone(), fate.clone(), self.random.number()));
        }
        let delay = Duration::from_millis(5 + self.random.below(LONGEST_MS));
        let second_disk = self.second_disk();
        let doer = Doer {
            asker,
            subject: self.subjects[0].clone(),
            random: SplitMix(self.random.number()),
            second_disk,
            other_disk: self.disk(2).to_owned(),
            size_bytes: REPLICA_BYTES,
            known: &mut self.known,
        };
        let kill = async {
            tokio::time::sleep(delay).await;
            fate.killed.store(true, Ordering::Release);
            served.kill();
        };
        let loads = async {
            let mut result = Ok(());
            let mut tasks: Vec<_> = loads.into_iter().map(tokio::spawn).collect();
            for task in &mut tasks {
                result = result.and(task.await.unwrap());
            }
            result
        };
        let (loaded, done, ()) = tokio::join!(loads, doer.run(deed, &fate), kill);
        devices.iter().for_each(|device| device.remove());
        loaded?;
        done?;
        self.versions = fate.versions.load(Ordering::Relaxed);
        self.told.kills += 1;
        self.told.ios += fate.ios.load(Ordering::Relaxed);
        self.told.durable += fate.durable.load(Ordering::Relaxed);
        let data = self.random.below(3) == 0;
        self.check(data)
    }

    /// As the second disk is given, for it has to have the block size of the first.
    fn second_disk(&self) -> String {
        let units = lock(&self.subjects[0].ledger).len();
        format!("aio://{}?blk_size={}", self.disk(1), REPLICA_BYTES / units)
    }

    async fn connect(&self, asker: &Asker, uuid: Uuid) -> Result<Arc<dyn BlockDevice>, String> {
        // Shared as it was before: asking again changes nothing.
        let uri = asker.share(uuid).await.map_err(|e| e.to_string())?;
        Ok(self.host.connect(&uri).await)
    }

    /// Nothing is wrong with the disks that a killed daemon left, or one that closed the pool.
    fn check(&self, data: bool) -> Result<(), String> {
        let [one, two, _] = [0, 1, 2].map(|at| self.disks[at].as_path());
        let both: &[&Path] = &[one, two];
        let tries: &[&[&Path]] = match self.known.second {
            Second::Out => &[&[one]],
            Second::In => &[both],
            Second::Coming | Second::Leaving => &[both, &[one]],
        };
        let mut told = String::new();
        for disks in tries {
            let (status, text) = self.place.check(disks, data);
            match status {
                Some(0) => return Ok(()),
                // A disk that is none of the pool's.
                Some(2) => told += &text,
                _ => return Err(format!("`pool check` of {disks:?} says:\n{text}")),
            }
        }
        Err(format!("`pool check` could not look with the second disk {:?}:\n{told}", self.known.second))
    }

    /// A new daemon on what the killed one left: nothing of what has to be there is missing.
    async fn restart(&mut self) -> Result<Served, String> {
        while self.random.below(4) == 0 {
            let delay = Duration::from_millis(self.random.below(120));
            Served::start_and_kill(&self.place, delay);
            self.told.kills += 1;
        }
        let served = Served::start(&self.place).await;
        let asker = served.asker();
        let main = self.subjects[0].clone();
        let disks = [0, 1, 2].map(|at| self.disk(at).to_owned());
        self.known.settle(&asker, &main, [&disks[0], &disks[1], &disks[2]]).await?;
        for subject in self.subjects.clone() {
            let judged = self.read_back(&asker, &subject).await;
            judged.map_err(|e| format!("replica {}: {e}", subject.name))?;
        }
        for snapshot in self.known.order.clone() {
            self.read_snapshot(&asker, &main, snapshot).await?;
        }
        if let (1, Some(&snapshot)) = (self.subjects.len(), self.known.order.first()) {
            let uuid = Uuid::from_u64_pair(self.random.number(), self.random.number());
            asker.clone_of(snapshot, uuid).await.map_err(|e| e.to_string())?;
            let ledger = lock(&main.ledger).of_clone(snapshot);
            self.subjects.push(Subject { name: "clone".into(), uuid, ledger: Arc::new(Mutex::new(ledger)) });
        }
        Ok(served)
    }

    async fn read_back(&mut self, asker: &Asker, subject: &Subject) -> Result<(), String> {
        let device = self.connect(asker, subject.uuid).await?;
        let ledger = subject.ledger.clone();
        let known = lock(&ledger).len();
        let read = self.host.read_all(&device, move |unit, block| match unit < known {
            true => lock(&ledger).settle(unit, block),
            // What it grew by, which nobody writes.
            false if block.iter().all(|b| *b == 0) => Ok(()),
            false => Err(format!("unit {unit} was never written, and is not zero")),
        });
        let units = read.await?;
        device.remove();
        self.told.units += units;
        if units < known { Err(format!("{units} units are left of {known}")) } else { Ok(()) }
    }

    /// Through a clone, which goes again.
    async fn read_snapshot(&mut self, asker: &Asker, main: &Subject, snapshot: Uuid) -> Result<(), String> {
        let told = |e: tonic::Status| format!("snapshot {snapshot}: {e}");
        let clone = Uuid::from_u64_pair(self.random.number(), self.random.number());
        asker.clone_of(snapshot, clone).await.map_err(told)?;
        let device = self.connect(asker, clone).await?;
        let ledger = main.ledger.clone();
        let known = lock(&ledger).len();
        let read = self.host.read_all(&device, move |unit, block| match unit < known {
            true => lock(&ledger).settle_view(snapshot, unit, block),
            false if block.iter().all(|b| *b == 0) => Ok(()),
            false => Err(format!("unit {unit} was never written, and is not zero")),
        });
        self.told.units += read.await?;
        device.remove();
        asker.destroy_replica(clone).await.map_err(told)
    }
}
