//! Nexuses as a whole: created, resized, shut down, destroyed.

use std::sync::Arc;
use std::time::Duration;

use aio::reactor::CoreHandle;
use aio::{BlockDevice, Capabilities};
use nexus::{CreateNexus, Preempt};
use nvme::reservation::ReservationType;
use tracing::{info, warn};
use uuid::Uuid;

use super::NexusEntry;
use super::children::{Child, OpenChild};
use super::error::{NexusError, NexusOp};
use crate::desired;
use crate::engine::{Engine, blocking, detached};
use crate::error::EngineError;
use crate::registry::{Entry, Origin};

/// The greatest controller id of a host (NVMe over Fabrics 1.1, section 3.3: what is above is reserved).
pub const MAX_CNTLID: u16 = 0xffef;

/// What hosts are told at most that a nexus can do: what every replica can. With more, children that are files could be had
/// back after a restart and replicas not.
const OFFERS: Capabilities = Capabilities::FUA
    .union(Capabilities::WRITE_ZEROES)
    .union(Capabilities::UNMAP)
    .union(Capabilities::UNMAP_ZEROES);

/// How long the end of the daemon waits for its nexuses.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Controller ids of a request.
pub fn check_cntlids(min: u32, max: u32) -> Result<[u16; 2], EngineError> {
    // As clients know it: what is above 16 bits is not looked at.
    let (first, last) = (min as u16, max as u16);
    match 1 <= first && first <= last && last <= MAX_CNTLID {
        true => Ok([first, last]),
        false => Err(NexusError::Cntlids { min, max, most: MAX_CNTLID }.into()),
    }
}

impl Engine {
    /// Makes a nexus of these children, which all hold the same data unless the record says otherwise; or nothing.
    pub async fn create_nexus(
        self: Arc<Self>,
        wish: desired::Nexus,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(wish.uuid, patience).await?;
            let coming = self.nexuses().reserve(&wish.name, wish.uuid)?;
            if self.registry().find(&wish.name).is_some() {
                return Err(NexusError::NameTaken(wish.name).into());
            }
            if let Some(twice) = first_repeated(&wish.children) {
                return Err(NexusError::ChildTwice { nexus: wish.name.clone(), uri: twice.clone() }.into());
            }
            let children = self.open_all_children(&wish).await?;
            let known: Vec<Child> = children.iter().map(OpenChild::entry).collect();
            let made = self.make_mirror(&wish, children).await;
            let mirror = match made {
                Ok(mirror) => mirror,
                Err(e) => {
                    self.close_children(&known);
                    return Err(e);
                }
            };
            let entry = NexusEntry { wish, mirror: Some(mirror), children: known, waits_for: String::new() };
            self.nexuses().insert(entry.clone());
            drop(coming);
            let name = &entry.wish.name;
            info!(%name, uuid = %entry.wish.uuid, children = entry.children.len(), "nexus created");
            self.nexus_appeared(name).await;
            Ok(entry)
        })
        .await
    }

    /// What waited for a nexus is served, and the state folder knows it.
    pub(super) async fn nexus_appeared(&self, name: &str) {
        let _change = self.change.lock().await;
        for failure in self.exports().device_appeared(name, self.registry()).await {
            warn!(%name, "the nexus is there, but cannot be exported again: {failure}");
        }
        if let Err(e) = self.save().await {
            warn!(%name, "{e}");
        }
    }

    /// Opens all children, or none.
    async fn open_all_children(
        self: &Arc<Self>,
        wish: &desired::Nexus,
    ) -> Result<Vec<OpenChild>, EngineError> {
        let (mut open, mut failure) = (Vec::new(), None);
        for child in self.open_children(&wish.name, &wish.children).await {
            match child {
                Ok(child) => open.push(child),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        let Some(failure) = failure else { return Ok(open) };
        open.iter().for_each(|c| self.close_child(&c.known));
        Err(failure)
    }

    /// Makes the mirror and its device. On failure the children are open, and nothing else is left.
    async fn make_mirror(
        &self,
        wish: &desired::Nexus,
        children: Vec<OpenChild>,
    ) -> Result<nexus::Nexus, EngineError> {
        let nexus = || wish.name.clone();
        let store = self.records().of(wish.uuid, &wish.info_key);
        let last = store.load().await.map_err(|source| NexusError::Record { nexus: nexus(), source })?;
        if let Some(last) = last.filter(|r| children.iter().any(|c| r.knows(c.known.uuid)))
            && !children.iter().any(|c| last.is_healthy(c.known.uuid))
        {
            let healthy = last.children.iter().filter(|c| c.healthy);
            let healthy: Vec<String> = healthy.map(|c| c.uuid.to_string()).collect();
            return Err(NexusError::NoHealthyChild { nexus: nexus(), healthy: healthy.join(", ") }.into());
        }
        self.start_mirror(wish, &children, store).await
    }

    /// Makes the mirror and its device. It rebuilds the children that lack writes, by the record.
    pub(super) async fn start_mirror(
        &self,
        wish: &desired::Nexus,
        children: &[OpenChild],
        store: Arc<dyn nexus::MembershipStore>,
    ) -> Result<nexus::Nexus, EngineError> {
        let create = CreateNexus {
            name: wish.name.clone(),
            uuid: wish.uuid,
            device_uuid: device_uuid(wish),
            size_bytes: wish.size_bytes,
            offers: OFFERS,
            children: children.iter().map(OpenChild::spec).collect(),
            reservation: wish.reservation.as_ref().and_then(reservation),
        };
        let made = nexus::Nexus::create(self.home_of_next_nexus(), create, store).await;
        let mirror = made.map_err(NexusOp::Create.failed())?;
        let uri = format!("nexus:///{}?uuid={}", wish.name, mirror.uuid());
        let entry = Entry::new(Arc::new(mirror.clone()), uri, Origin::Nexus);
        if let Err(e) = self.registry().insert(entry) {
            self.end_mirror(&wish.name, &mirror).await;
            return Err(e);
        }
        Ok(mirror)
    }

    /// Takes a mirror back.
    async fn end_mirror(&self, name: &str, mirror: &nexus::Nexus) {
        if self.registry().find(name).is_some_and(|e| e.device.uuid() == mirror.uuid()) {
            self.registry().remove(name);
        }
        if let Err(e) = mirror.destroy().await {
            warn!(%name, "{e}");
        }
    }

    /// Nexuses are spread over the cores.
    fn home_of_next_nexus(&self) -> CoreHandle {
        let at = self.nexuses().list().len() % self.cores().len();
        self.cores()[at].clone()
    }

    /// Ends I/O in order. The nexus stays listed, without use.
    pub async fn shut_down_nexus(
        self: Arc<Self>,
        uuid: Uuid,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            entry.live()?.shutdown().await.map_err(NexusOp::Other.failed())?;
            info!(name = %entry.wish.name, "nexus shut down");
            let _change = self.change.lock().await;
            self.nexuses().change(uuid, |e| e.wish.shut_down = true);
            self.save().await?;
            self.nexuses().find(uuid)
        })
        .await
    }

    /// Ends a nexus: hosts are disconnected, its children are free for others.
    pub async fn destroy_nexus(self: Arc<Self>, uuid: Uuid, patience: Duration) -> Result<(), EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            let name = entry.wish.name.clone();
            if let Some(mirror) = &entry.mirror {
                // First, so that no host's I/O waits for a child that is away when its connection is to end.
                mirror.shutdown().await.map_err(NexusOp::Other.failed())?;
            }
            if let Some(nqn) = self.exports().asked_share_of(&name) {
                let failed =
                    |e: EngineError| NexusError::Publish { nexus: name.clone(), source: Box::new(e) };
                self.exports().destroy(&nqn).await.map_err(failed)?;
            }
            let _change = self.change.lock().await;
            self.exports().device_gone(&name).await?;
            if let Some(mirror) = &entry.mirror {
                self.registry().remove(&name);
                mirror.destroy().await.map_err(NexusOp::Other.failed())?;
            }
            self.nexuses().remove(uuid);
            self.close_children(&entry.children);
            info!(%name, %uuid, "nexus destroyed");
            self.save().await
        })
        .await
    }

    /// Makes a nexus larger, where every child has room.
    pub async fn resize_nexus(
        self: Arc<Self>,
        uuid: Uuid,
        size_bytes: u64,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            let mirror = entry.live()?;
            for device in entry.children.iter().filter_map(|c| c.device.as_ref()) {
                let Some(entry) = self.registry().find(&device.name) else { continue };
                // One that cannot look again has the size that it has.
                let _ = blocking(move || entry.device.rescan()).await?;
            }
            mirror.resize(size_bytes).await.map_err(NexusOp::Resize.failed())?;
            info!(name = %entry.wish.name, size_bytes, "nexus resized");
            let _change = self.change.lock().await;
            self.nexuses().change(uuid, |e| e.wish.size_bytes = size_bytes);
            self.save().await?;
            self.nexuses().find(uuid)
        })
        .await
    }

    /// Ends all nexuses, for the end of the daemon: what they know is recorded. Takes a bounded time.
    pub(crate) async fn close_nexuses(&self) {
        let mirrors = self.nexuses().list().into_iter().filter_map(|e| e.mirror);
        let mut closing = tokio::task::JoinSet::new();
        for mirror in mirrors {
            closing.spawn(async move {
                if let Err(e) = mirror.shutdown().await {
                    warn!(name = mirror.name(), "{e}");
                }
            });
        }
        let all = async { while closing.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_TIMEOUT, all).await.is_err() {
            warn!("a nexus was not shut down in time; its children are compared when it is created again");
        }
    }

    /// The nexuses that would have to be asked for again after a restart.
    pub(crate) fn nexuses_to_be_saved(&self) -> Vec<desired::Nexus> {
        let lasting = self.nexuses().list().into_iter().filter(|e| !e.wish.shut_down);
        let children = |e: &NexusEntry| e.children.iter().map(|c| c.uri.clone()).collect();
        lasting.map(|e| desired::Nexus { children: children(&e), ..e.wish }).collect()
    }
}

/// How it keeps others from its children. Mayastor does that only where `NEXUS_NVMF_RESV_ENABLE` is set; here the request
/// alone decides, unless the variable says no.
fn reservation(wish: &desired::Reservation) -> Option<nexus::Reservation> {
    let switch = std::env::var("NEXUS_NVMF_RESV_ENABLE").unwrap_or_default();
    if matches!(switch.as_str(), "0" | "false" | "no" | "off") {
        return None;
    }
    let preempt = match (wish.preempt_holder, wish.preempt_key) {
        (true, _) => Preempt::Holder,
        (false, Some(key)) => Preempt::Key(key),
        (false, None) => Preempt::Nobody,
    };
    Some(nexus::Reservation { key: wish.key, rtype: ReservationType::new(wish.rtype), preempt })
}

/// What hosts know it by: its name, where that is a uuid.
fn device_uuid(wish: &desired::Nexus) -> Uuid {
    Uuid::parse_str(&wish.name).unwrap_or(wish.uuid)
}

fn first_repeated(uris: &[String]) -> Option<&String> {
    uris.iter().enumerate().find(|(at, uri)| uris[..*at].contains(uri)).map(|(_, uri)| uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controller_ids() {
        assert_eq!(check_cntlids(1, 0xffef).unwrap(), [1, 0xffef]);
        assert_eq!(check_cntlids(7, 7).unwrap(), [7, 7]);
        assert_eq!(check_cntlids(0x1_0001, 2).unwrap(), [1, 2], "as clients know it");
        for (min, max) in [(0, 5), (5, 4), (1, 0xfff0), (0, 0), (0x1_0000, 5)] {
            assert!(check_cntlids(min, max).is_err(), "{min} {max}");
        }
    }

    #[test]
    fn the_first_child_given_twice() {
        let list = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(first_repeated(&list(&["a", "b"])), None);
        assert_eq!(first_repeated(&list(&["a", "b", "b", "a"])), Some(&"b".to_owned()));
    }
}
