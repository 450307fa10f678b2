//! Nexuses served to hosts: one subsystem each, named after the nexus.

use std::sync::Arc;
use std::time::Duration;

use nvmf::target::AnaState;
use rpc::nqn_from_name;
use tracing::info;
use uuid::Uuid;

use super::NexusEntry;
use super::error::NexusError;
use super::members::check_open;
use crate::desired::Subsystem;
use crate::engine::{Engine, detached};
use crate::error::EngineError;
use crate::exports;
use crate::pools::replicas::check_host;
use crate::registry::Origin;

/// The ANA group of a nexus's namespace.
const GROUP: u32 = 1;

/// How a nexus is served.
pub struct Published {
    /// Where hosts find it.
    pub uri: String,
    /// Its subsystem's ANA state; optimized where none is reported.
    pub ana: AnaState,
    /// Who may connect; empty = anybody.
    pub hosts: Vec<String>,
}

impl Engine {
    /// How a nexus is served, if it is.
    pub fn published(&self, name: &str) -> Option<Published> {
        let nqn = self.exports().share_of(name)?;
        let desired = self.exports().find(&nqn).ok()?.desired;
        let state = desired.ana_states.iter().find(|g| g.group == GROUP);
        let ana = state.and_then(|g| exports::ana_state(g.state)).unwrap_or(AnaState::Optimized);
        let hosts = if desired.allow_any_host { Vec::new() } else { desired.hosts.into_iter().collect() };
        Some(Published { uri: self.node().export_uri(&nqn), ana, hosts })
    }

    /// Serves a nexus, or replaces the hosts that may connect; none = any.
    pub async fn publish_nexus(
        self: Arc<Self>,
        uuid: Uuid,
        hosts: Vec<String>,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            hosts.iter().try_for_each(|host| check_host(host))?;
            let name = entry.wish.name.clone();
            check_open(&entry.live()?, "publish").await?;
            self.serve_nexus(&entry, hosts)
                .await
                .map_err(|e| NexusError::Publish { nexus: name.clone(), source: Box::new(e) })?;
            let _change = self.change.lock().await;
            self.save().await?;
            Ok(entry)
        })
        .await
    }

    async fn serve_nexus(&self, entry: &NexusEntry, hosts: Vec<String>) -> Result<(), EngineError> {
        let name = &entry.wish.name;
        let hosts: std::collections::BTreeSet<String> = hosts.into_iter().collect();
        let any = hosts.is_empty();
        if let Some(nqn) = self.exports().share_of(name) {
            let change = |s: &mut Subsystem| (s.hosts, s.allow_any_host) = (hosts, any);
            return self.exports().change_hosts(&nqn, change);
        }
        if let Some(nqn) = self.exports().asked_share_of(name) {
            // One that could not be served when the nexus came back.
            self.exports().destroy(&nqn).await?;
        }
        let share = Subsystem {
            cntlids: Some(entry.wish.cntlids),
            ana_groups: u16::from(self.node().ana_feature),
            ..exports::share(name, hosts)
        };
        debug_assert_eq!(share.nqn, nqn_from_name(name));
        let exported = self.exports().create(share, Origin::Request, self.registry()).await?;
        info!(%name, nqn = %exported.desired.nqn, "nexus published");
        Ok(())
    }

    /// Ends the service of a nexus; nothing to do is no error.
    pub async fn unpublish_nexus(
        self: Arc<Self>,
        uuid: Uuid,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            let name = entry.wish.name.clone();
            let Some(nqn) = self.exports().asked_share_of(&name) else { return Ok(entry) };
            // Not under the lock of changes: it waits for the I/O of hosts, which may wait for a child.
            let ended = self.exports().destroy(&nqn).await;
            ended.map_err(|e| NexusError::Publish { nexus: name.clone(), source: Box::new(e) })?;
            info!(%name, "nexus unpublished");
            let _change = self.change.lock().await;
            self.save().await?;
            Ok(entry)
        })
        .await
    }

    /// The ANA state of a published nexus.
    pub fn nexus_ana(&self, uuid: Uuid) -> Result<AnaState, EngineError> {
        let name = self.nexuses().find(uuid)?.wish.name;
        let published = self.published(&name).ok_or(NexusError::NotPublished(name))?;
        Ok(published.ana)
    }

    /// Sets the ANA state of a published nexus.
    pub async fn set_nexus_ana(
        self: Arc<Self>,
        uuid: Uuid,
        state: AnaState,
        patience: Duration,
    ) -> Result<NexusEntry, EngineError> {
        detached(async move {
            let _lock = self.nexuses().lock(uuid, patience).await?;
            let entry = self.nexuses().find(uuid)?;
            let name = entry.wish.name.clone();
            let Some(nqn) = self.exports().share_of(&name) else {
                return Err(NexusError::NotPublished(name).into());
            };
            if self.exports().find(&nqn)?.desired.ana_groups == 0 {
                return Err(NexusError::NoAna(name).into());
            }
            let _change = self.change.lock().await;
            self.exports().set_ana(&nqn, Some(GROUP), state).await?;
            info!(%name, ?state, "ANA state set");
            self.save().await?;
            Ok(entry)
        })
        .await
    }
}
