//! What is under way when the daemon is killed, and what has to be found of it afterwards.
//!
//! Before each request it is written down what may be there if the answer never comes, and after the answer what is.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson::perf::stamp::SplitMix;
use rpc::keelson::v1::DiskState;
use tonic::Status;
use uuid::Uuid;

use super::host::{Fate, Shared, lock};
use super::served::{Asker, gone, made};

/// Whether something has to be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    There,
    /// It was being made.
    PerhapsMade,
    /// It was being removed.
    PerhapsGone,
}

/// The second disk of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Second {
    Out,
    Coming,
    In,
    Leaving,
}

/// What the tester expects to find, besides data.
pub(super) struct Known {
    /// Sizes that the replica may have.
    pub(super) sizes_bytes: Vec<u64>,
    pub(super) snapshots: BTreeMap<Uuid, Standing>,
    /// In the order in which they were made.
    pub(super) order: Vec<Uuid>,
    /// With their snapshots.
    pub(super) clones: BTreeMap<Uuid, (Uuid, Standing)>,
    pub(super) second: Second,
    pub(super) extra: Option<Standing>,
    pub(super) other_pool: Option<Standing>,
}

/// A replica under load.
#[derive(Clone)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) uuid: Uuid,
    pub(super) ledger: Shared,
}

/// What goes on beside the load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deed {
    Nothing,
    Snapshots,
    Clones,
    Resizes,
    Disks,
    Pools,
    Replicas,
}

impl Deed {
    pub(super) const ALL: [Self; 7] = [
        Self::Snapshots,
        Self::Disks,
        Self::Nothing,
        Self::Pools,
        Self::Resizes,
        Self::Clones,
        Self::Replicas,
    ];
}

/// The replica that comes and goes.
pub(super) const EXTRA: (&str, Uuid) = ("extra", Uuid::from_u128(0x6578_7472_6100_4000_8000_0000_0000_0001));
/// The pool that comes and goes.
pub(super) const OTHER: &str = "other";
/// How often a disk that is being emptied is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(3);
/// Longer than emptying a disk takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who does it, to what.
pub(super) struct Doer<'a> {
    pub(super) asker: Asker,
    pub(super) known: &'a mut Known,
    pub(super) subject: Subject,
    pub(super) random: SplitMix,
    /// URIs or paths.
    pub(super) second_disk: String,
    pub(super) other_disk: String,
    /// The replica's first size.
    pub(super) size_bytes: u64,
}

impl Doer<'_> {
    /// Does it again and again until the daemon is killed.
    pub(super) async fn run(mut self, deed: Deed, fate: &Fate) -> Result<(), String> {
        loop {
            let done = match deed {
                Deed::Nothing => return Ok(()),
                Deed::Snapshots => self.snapshots().await,
                Deed::Clones => self.clones().await,
                Deed::Resizes => self.resize().await,
                Deed::Disks => self.disks().await,
                Deed::Pools => self.pools().await,
                Deed::Replicas => self.replicas().await,
            };
            match done {
                Ok(()) => {}
                Err(_) if fate.killed.load(Ordering::Acquire) => return Ok(()),
                Err(e) => return Err(format!("{deed:?} failed while the daemon lives: {e}")),
            }
        }
    }

    /// A snapshot while the replica is written; the oldest goes.
    async fn snapshots(&mut self) -> Result<(), Status> {
        self.snapshot().await?;
        if self.known.order.len() > 2 {
            let oldest = self.known.order[0];
            self.known.snapshots.insert(oldest, Standing::PerhapsGone);
            self.asker.destroy_snapshot(oldest).await?;
            self.known.forget_snapshot(oldest);
            lock(&self.subject.ledger).forget_view(oldest);
        }
        Ok(())
    }

    async fn snapshot(&mut self) -> Result<(), Status> {
        let uuid = self.uuid();
        self.known.snapshots.insert(uuid, Standing::PerhapsMade);
        self.known.order.push(uuid);
        let mark = {
            let mut ledger = lock(&self.subject.ledger);
            ledger.open_view(uuid);
            ledger.mark()
        };
        self.asker.snapshot(self.subject.uuid, uuid).await?;
        let mut ledger = lock(&self.subject.ledger);
        ledger.close_view(uuid);
        // What a snapshot holds is as durable as it is.
        ledger.durable(&mark);
        self.known.snapshots.insert(uuid, Standing::There);
        Ok(())
    }

    async fn clones(&mut self) -> Result<(), Status> {
        if self.known.order.is_empty() {
            self.snapshot().await?;
        }
        let (snapshot, clone) = (self.known.order[0], self.uuid());
        self.known.clones.insert(clone, (snapshot, Standing::PerhapsMade));
        self.asker.clone_of(snapshot, clone).await?;
        self.known.clones.insert(clone, (snapshot, Standing::There));
        self.asker.share(clone).await?;
        self.known.clones.insert(clone, (snapshot, Standing::PerhapsGone));
        self.asker.destroy_replica(clone).await?;
        self.known.clones.remove(&clone);
        Ok(())
    }

    async fn resize(&mut self) -> Result<(), Status> {
        let size_bytes = self.size_bytes + (self.random.below(5) << 20);
        self.known.sizes_bytes.push(size_bytes);
        self.asker.resize(self.subject.uuid, size_bytes).await?;
        self.known.sizes_bytes = vec![size_bytes];
        Ok(())
    }

    async fn disks(&mut self) -> Result<(), Status> {
        if self.known.second == Second::Out {
            self.known.second = Second::Coming;
            self.asker.add_disk(&self.second_disk).await?;
            self.known.second = Second::In;
        } else {
            self.known.second = Second::Leaving;
            self.asker.remove_disk(&self.second_disk).await?;
            until_left(&self.asker).await?;
            self.known.second = Second::Out;
        }
        Ok(())
    }

    async fn pools(&mut self) -> Result<(), Status> {
        self.known.other_pool = Some(Standing::PerhapsMade);
        self.asker.create_pool(OTHER, &self.other_disk).await?;
        self.known.other_pool = Some(Standing::There);
        tokio::time::sleep(Duration::from_millis(self.random.below(20))).await;
        self.known.other_pool = Some(Standing::PerhapsGone);
        self.asker.destroy_pool(OTHER).await?;
        self.known.other_pool = None;
        Ok(())
    }

    async fn replicas(&mut self) -> Result<(), Status> {
        let thin = self.random.below(2) == 0;
        self.known.extra = Some(Standing::PerhapsMade);
        self.asker.create_replica(EXTRA.0, EXTRA.1, 4 << 20, thin).await?;
        self.known.extra = Some(Standing::There);
        tokio::time::sleep(Duration::from_millis(self.random.below(10))).await;
        self.known.extra = Some(Standing::PerhapsGone);
        self.asker.destroy_replica(EXTRA.1).await?;
        self.known.extra = None;
        Ok(())
    }

    fn uuid(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.random.number(), self.random.number())
    }
}

/// Waits until the pool has one disk.
async fn until_left(asker: &Asker) -> Result<(), Status> {
    let begin = std::time::Instant::now();
    loop {
        let disks = asker.disks().await?;
        if disks.len() == 1 {
            return Ok(());
        }
        let wrong = disks.iter().find(|disk| !disk.error.is_empty());
        assert!(wrong.is_none() && begin.elapsed() < PATIENCE, "the disk does not leave: {disks:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What is there must have been made, and what was not removed must be there.
fn judge(what: &str, standing: Option<Standing>, there: bool) -> Result<(), String> {
    match (standing, there) {
        (Some(Standing::There), false) | (None, true) => {
            Err(format!("{what} after a kill: {standing:?} before it, and now it is there: {there}"))
        }
        _ => Ok(()),
    }
}

impl Known {
    fn forget_snapshot(&mut self, uuid: Uuid) {
        self.snapshots.remove(&uuid);
        self.order.retain(|u| *u != uuid);
    }

    /// Compares with what a daemon has after a restart, and goes on from there.
    pub(super) async fn settle(
        &mut self,
        asker: &Asker,
        doer: &Subject,
        disks: [&str; 3],
    ) -> Result<(), String> {
        let told = |e: Status| format!("the daemon was started again: {e}");
        let pool = asker.pool(super::served::POOL).await.map_err(told)?;
        if pool.as_ref().is_none_or(|pool| pool.state != 1) {
            return Err(format!("the pool is not there, or not online: {pool:?}"));
        }
        self.settle_snapshots(asker, doer).await?;
        self.settle_second(asker, disks).await?;

        let replica = asker.replica(doer.uuid).await.map_err(told)?;
        let size_bytes = replica.as_ref().map_or(0, |r| r.size);
        if !self.sizes_bytes.contains(&size_bytes) {
            return Err(format!("{replica:?} has to be there with a size of {:?}", self.sizes_bytes));
        }
        self.sizes_bytes = vec![size_bytes];

        let extra = asker.replica(EXTRA.1).await.map_err(told)?;
        judge("a replica", self.extra.take(), extra.is_some())?;
        made(asker.create_replica(EXTRA.0, EXTRA.1, 4 << 20, true).await).map_err(told)?;
        gone(asker.destroy_replica(EXTRA.1).await).map_err(told)?;

        let other = asker.pool(OTHER).await.map_err(told)?;
        judge("a pool", self.other_pool.take(), other.is_some())?;
        made(asker.create_pool(OTHER, disks[2]).await).map_err(told)?;
        asker.destroy_pool(OTHER).await.map_err(told)
    }

    async fn settle_snapshots(&mut self, asker: &Asker, subject: &Subject) -> Result<(), String> {
        let told = |e: Status| format!("the daemon was started again: {e}");
        for (clone, (snapshot, standing)) in std::mem::take(&mut self.clones) {
            let found = asker.replica(clone).await.map_err(told)?;
            judge("a clone", Some(standing), found.is_some())?;
            if let Some(found) = &found
                && (found.snapshot_uuid.as_deref() != Some(&snapshot.to_string()) || !found.is_clone)
            {
                return Err(format!("the clone of {snapshot} is {found:?}"));
            }
            gone(asker.destroy_replica(clone).await).map_err(told)?;
        }
        let found = asker.snapshots().await.map_err(told)?;
        for uuid in &found {
            judge("a snapshot", self.snapshots.get(uuid).copied(), true)?;
        }
        for (uuid, standing) in self.snapshots.clone() {
            judge("a snapshot", Some(standing), found.contains(&uuid))?;
            let mut ledger = lock(&subject.ledger);
            match found.contains(&uuid) {
                true => {
                    ledger.close_view(uuid);
                    self.snapshots.insert(uuid, Standing::There);
                }
                false => {
                    ledger.forget_view(uuid);
                    self.forget_snapshot(uuid);
                }
            }
        }
        Ok(())
    }

    async fn settle_second(&mut self, asker: &Asker, disks: [&str; 3]) -> Result<(), String> {
        let told = |e: Status| format!("the daemon was started again: {e}");
        let listed = asker.disks().await.map_err(told)?;
        let second = listed.iter().find(|disk| disk.name == disks[1]);
        let wrong = listed.iter().find(|disk| disk.name != disks[0] && disk.name != disks[1]);
        let leaves = second.is_some_and(|disk| disk.state == DiskState::Evacuating as i32);
        let fits = match (self.second, second.is_some()) {
            (Second::Out, there) => !there,
            (Second::In, there) => there && !leaves,
            (Second::Coming, _) => !leaves,
            (Second::Leaving, _) => true,
        };
        if wrong.is_some() || !fits {
            return Err(format!(
                "the second disk was {:?} when the daemon was killed: {listed:?}",
                self.second
            ));
        }
        if leaves {
            until_left(asker).await.map_err(told)?;
        }
        self.second = if second.is_some() && !leaves { Second::In } else { Second::Out };
        Ok(())
    }
}
