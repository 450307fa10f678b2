//! Children that come, go and come back, and the rebuilds of them.

use std::sync::Arc;
use std::time::Duration;

use aio::BlockDevice;
use nexus::rebuild::{RebuildRecord, RebuildStats};
use nexus::{ChildInfo, ChildState, Fault, NexusState};
use tracing::{info, warn};
use uuid::Uuid;

use super::NexusEntry;
use super::children::Child;
use super::error::{NexusError, NexusOp};
use crate::engine::{Engine, detached};
use crate::error::EngineError;

/// How long a child that was taken out may take to let go of its last I/Os before it is taken back.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);

/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Engine {
    /// Adds a child, and rebuilds it unless told not to.
    pub async fn add_nexus_child(
        self: Arc<Self>,
        uuid: Uuid,
        uri: String,
        rebuild: bool,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            let nexus = entry.wish.name.clone();
            let mirror = entry.live()?;
            if entry.child(&uri).is_some() {
                return Err(NexusError::ChildExists { nexus, uri }.into());
            }
            check_open(&mirror, "add a child to").await?;
            let open = self.open_child(&nexus, &uri).await.map_err(|e| match e {
                EngineError::Nexus(NexusError::ChildTwice { nexus, uri }) => {
                    NexusError::ChildExists { nexus, uri }.into()
                }
                e => e,
            })?;
            if let Err(e) = mirror.add_child(open.spec()).await {
                // One whose channels could not be opened is in the list.
                let _ = mirror.remove_child(&uri).await;
                self.close_child(&open.known);
                return Err(NexusOp::AddChild.failed()(e));
            }
            self.nexuses().change(uuid, |e| e.children.push(open.entry()));
            info!(%nexus, child = %uri, rebuild, "child added");
            if rebuild {
                begin_rebuild(&mirror, &uri).await;
            }
            self.saved(uuid).await
        })
        .await
    }

    /// Takes a child out for good; one that is not there is fine.
    pub async fn remove_nexus_child(
        self: Arc<Self>,
        uuid: Uuid,
        uri: String,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            let mirror = entry.live()?;
            mirror.remove_child(&uri).await.map_err(NexusOp::Child.failed())?;
            let Some(child) = entry.child(&uri) else { return Ok(entry) };
            self.close_children(std::slice::from_ref(child));
            self.nexuses().change(uuid, |e| e.children.retain(|c| c.uri != uri));
            info!(nexus = %entry.wish.name, child = %uri, "child removed");
            self.saved(uuid).await
        })
        .await
    }

    /// Takes a child out of use.
    pub async fn fault_nexus_child(
        self: Arc<Self>,
        uuid: Uuid,
        uri: String,
        fault: Fault,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            entry.live()?.fault_child(&uri, fault).await.map_err(NexusOp::Child.failed())?;
            info!(nexus = %entry.wish.name, child = %uri, "child taken out of use: {}", ChildState::Faulted(fault));
            Ok(entry)
        })
        .await
    }

    /// Takes a child back into use, its device opened anew, and rebuilds it.
    pub async fn online_nexus_child(
        self: Arc<Self>,
        uuid: Uuid,
        uri: String,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            let (nexus, mirror) = (entry.wish.name.clone(), entry.live()?);
            let Some(child) = entry.child(&uri) else {
                return Err(NexusError::NoChild { nexus, uri }.into());
            };
            check_open(&mirror, "take a child back into use in").await?;
            let Some(known) = child.device.clone() else {
                self.add_absent_child(&entry, child).await?;
                return self.nexuses().find(uuid);
            };
            let info = self.mirror_child(&mirror, &uri).await?;
            if matches!(info.state, ChildState::Online | ChildState::OutOfSync) {
                return Ok(entry);
            }
            let device = match info.state {
                // Refused by the mirror, unless it is the one that everybody waits for.
                ChildState::Faulted(fault) if !fault.is_recoverable() => {
                    self.registry().get(&known.name)?.device
                }
                _ => self.reopen_child(&nexus, &uri, &known).await?,
            };
            self.wait_until_closed(&mirror, &uri).await?;
            let lacks = mirror.online_child(&uri, device).await.map_err(NexusOp::Child.failed())?;
            info!(%nexus, child = %uri, "child taken back into use");
            if lacks {
                begin_rebuild(&mirror, &uri).await;
            }
            Ok(entry)
        })
        .await
    }

    /// What the mirror says of one child.
    async fn mirror_child(&self, mirror: &nexus::Nexus, uri: &str) -> Result<ChildInfo, EngineError> {
        let (_, _, children) = mirror.info().await.map_err(NexusOp::Child.failed())?;
        let (nexus, child) = (mirror.name().to_owned(), uri.to_owned());
        let missing = nexus::NexusError::ChildNotFound { nexus, child };
        children.into_iter().find(|c| c.uri == uri).ok_or_else(|| NexusOp::Child.failed()(missing))
    }

    async fn wait_until_closed(&self, mirror: &nexus::Nexus, uri: &str) -> Result<(), EngineError> {
        let waited = async {
            while self.mirror_child(mirror, uri).await?.is_closing {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Ok(())
        };
        // The mirror refuses one that is still not closed, and says so.
        tokio::time::timeout(CLOSING_TIMEOUT, waited).await.unwrap_or(Ok(()))
    }

    /// A child that could not be opened since the start is tried again; it lacks what was written meanwhile. The caller holds
    /// the lock of the nexus.
    pub(super) async fn add_absent_child(
        &self,
        entry: &NexusEntry,
        child: &Child,
    ) -> Result<(), EngineError> {
        let mirror = entry.live()?;
        let open = self.open_child(&entry.wish.name, &child.uri).await?;
        if let Err(e) = mirror.add_child(open.spec()).await {
            let _ = mirror.remove_child(&child.uri).await;
            self.close_child(&open.known);
            return Err(NexusOp::AddChild.failed()(e));
        }
        self.nexuses().change(entry.wish.uuid, |e| {
            if let Some(known) = e.children.iter_mut().find(|c| c.uri == child.uri) {
                *known = open.entry();
            }
        });
        begin_rebuild(&mirror, &child.uri).await;
        info!(nexus = %entry.wish.name, child = %child.uri, "the child is there again, and is rebuilt");
        Ok(())
    }

    /// The nexus as it is now, after it was recorded.
    async fn saved(&self, uuid: Uuid) -> Result<NexusEntry, EngineError> {
        let _change = self.change.lock().await;
        self.save().await?;
        self.nexuses().find(uuid)
    }

    /// Begins to copy to a child what it lacks.
    pub async fn start_rebuild(
        self: Arc<Self>,
        uuid: Uuid,
        uri: String,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            entry.live()?.start_rebuild(&uri).await.map_err(NexusOp::Rebuild.failed())?;
            info!(nexus = %entry.wish.name, child = %uri, "rebuild started");
            Ok(entry)
        })
        .await
    }

    /// Stops a rebuild; none is fine.
    pub async fn stop_rebuild(
        self: Arc<Self>,
        uuid: Uuid,
        uri: String,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            match entry.live()?.stop_rebuild(&uri).await {
                // No child, no rebuild.
                Ok(()) | Err(nexus::NexusError::ChildNotFound { .. }) => Ok(entry),
                Err(e) => Err(NexusOp::Rebuild.failed()(e)),
            }
        })
        .await
    }

    /// Pauses a rebuild, or lets it go on.
    pub async fn pause_rebuild(
        self: Arc<Self>,
        uuid: Uuid,
        uri: String,
        pause: bool,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            entry.live()?.pause_rebuild(&uri, pause).await.map_err(NexusOp::Rebuild.failed())?;
            Ok(entry)
        })
        .await
    }

    /// How a rebuild fares.
    pub async fn rebuild_stats(&self, uuid: Uuid, uri: &str) -> Result<RebuildStats, EngineError> {
        let mirror = self.nexuses().find(uuid)?.live()?;
        mirror.rebuild_stats(uri).await.map_err(NexusOp::Rebuild.failed())
    }

    /// The rebuilds of a nexus that ended, the oldest first.
    pub async fn rebuild_history(&self, entry: &NexusEntry) -> Result<Vec<RebuildRecord>, EngineError> {
        match &entry.mirror {
            Some(mirror) => mirror.rebuild_history().await.map_err(NexusOp::Rebuild.failed()),
            None => Ok(Vec::new()),
        }
    }
}

/// Refuses what a nexus that was shut down does not do.
pub(super) async fn check_open(mirror: &nexus::Nexus, op: &'static str) -> Result<(), EngineError> {
    let (state, ..) = mirror.info().await.map_err(NexusOp::Other.failed())?;
    match state {
        NexusState::ShuttingDown | NexusState::Shutdown => {
            let source = nexus::NexusError::ShutDown { op, nexus: mirror.name().to_owned() };
            Err(NexusOp::Other.failed()(source))
        }
        NexusState::Online | NexusState::Degraded | NexusState::Faulted => Ok(()),
    }
}

/// Rebuilds a child that was just added. When that cannot be the child is of no use.
async fn begin_rebuild(mirror: &nexus::Nexus, uri: &str) {
    if let Err(e) = mirror.start_rebuild(uri).await {
        warn!(child = %uri, "the rebuild cannot be started: {e}");
        if let Err(e) = mirror.fault_child(uri, Fault::RebuildFailed).await {
            warn!(child = %uri, "{e}");
        }
    }
}
