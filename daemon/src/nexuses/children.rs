//! How URIs become children's devices.
//!
//! | URI | device |
//! |---|---|
//! | `bdev:///name`, `loopback:///name` | the device of that name: a replica of this node, usually |
//! | `nvmf://` this node's own target `/nqn` | the first namespace of that subsystem, without the way through the network |
//! | any other that is a device already | that device |
//! | the rest | opened for the nexus, and closed with it |

use std::sync::Arc;
use std::time::Duration;

use aio::uri::NvmfUri;
use aio::{BlockDevice, DeviceUri};
use nexus::ChildSpec;
use nvmf::initiator::resolve;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::error::NexusError;
use crate::engine::{Engine, blocking, check_uuid};
use crate::error::EngineError;
use crate::registry::{self, Claim, Entry, Opened, Origin};

/// How long opening a child may take.
pub const CHILD_TIMEOUT: Duration = Duration::from_secs(10);

/// A child of a nexus.
#[derive(Clone, Debug)]
pub struct Child {
    /// As it was given.
    pub uri: String,
    /// Its device; `None` when it could not be opened since the start.
    pub(super) device: Option<ChildDevice>,
}

/// A child's device.
#[derive(Clone, Debug)]
pub(super) struct ChildDevice {
    /// Its name.
    pub(super) name: String,
    /// Its identity in the record of members.
    pub(super) uuid: Uuid,
    /// It was opened for the nexus.
    pub(super) owned: bool,
}

/// A child whose device is open, and taken.
pub(super) struct OpenChild {
    pub(super) uri: String,
    pub(super) known: ChildDevice,
    pub(super) device: Arc<dyn BlockDevice>,
}

impl OpenChild {
    pub(super) fn spec(&self) -> ChildSpec {
        ChildSpec { uri: self.uri.clone(), device: self.device.clone(), uuid: self.known.uuid }
    }

    pub(super) fn entry(&self) -> Child {
        Child { uri: self.uri.clone(), device: Some(self.known.clone()) }
    }
}

impl Engine {
    /// Opens one child, within [`CHILD_TIMEOUT`].
    pub(super) async fn open_child(&self, nexus: &str, text: &str) -> Result<OpenChild, EngineError> {
        let opened = tokio::time::timeout(CHILD_TIMEOUT, self.find_or_open_child(nexus, text)).await;
        opened.unwrap_or_else(|_| {
            let (nexus, uri) = (nexus.to_owned(), text.to_owned());
            Err(NexusError::ChildSilent { nexus, uri, secs: CHILD_TIMEOUT.as_secs() }.into())
        })
    }

    /// Opens several at once. Each has its own result, in their order.
    pub(super) async fn open_children(
        self: &Arc<Self>,
        nexus: &str,
        uris: &[String],
    ) -> Vec<Result<OpenChild, EngineError>> {
        let mut opening = JoinSet::new();
        for (at, uri) in uris.iter().enumerate() {
            let (engine, nexus, uri) = (self.clone(), nexus.to_owned(), uri.clone());
            opening.spawn(async move { (at, engine.open_child(&nexus, &uri).await) });
        }
        let mut opened: Vec<_> = uris.iter().map(|_| Err(EngineError::ShuttingDown)).collect();
        while let Some(done) = opening.join_next().await {
            // A task ends early only with its runtime.
            if let Ok((at, child)) = done {
                opened[at] = child;
            }
        }
        opened
    }

    async fn find_or_open_child(&self, nexus: &str, text: &str) -> Result<OpenChild, EngineError> {
        let failed = |source: EngineError| -> EngineError {
            let (nexus, uri) = (nexus.to_owned(), text.to_owned());
            NexusError::Child { nexus, uri, source: Box::new(source) }.into()
        };
        let uri: DeviceUri = text.parse().map_err(|e| failed(EngineError::Uri(e)))?;
        if self.records().are_kept() && uri.uuid().is_none() {
            let (nexus, uri) = (nexus.to_owned(), text.to_owned());
            return Err(NexusError::ChildWithoutUuid { nexus, uri }.into());
        }
        let local = self.local_device(&uri).await.map_err(failed)?;
        let name = local.clone().unwrap_or_else(|| uri.name());
        let taken = Taken::new(self, &name, nexus, text)?;
        let (device, owned) = match local {
            Some(name) => (self.usable_child(nexus, text, &name, &uri)?, false),
            None => (self.open_owned(nexus, text, &uri).await.map_err(failed)?, true),
        };
        taken.keep();
        let known = ChildDevice { name, uuid: uri.uuid().unwrap_or_else(|| device.uuid()), owned };
        Ok(OpenChild { uri: text.to_owned(), known, device })
    }

    /// The name of the device of this node that a URI means, if it does.
    async fn local_device(&self, uri: &DeviceUri) -> Result<Option<String>, EngineError> {
        match uri {
            DeviceUri::Bdev(local) | DeviceUri::Loopback(local) => Ok(Some(local.name.clone())),
            DeviceUri::Nvmf(remote) if self.is_own_target(remote).await? => {
                let exported = self.exports().find(&remote.nqn)?;
                let live = |n: &&crate::desired::Namespace| exported.live.contains(&n.nsid);
                let first = exported.desired.namespaces.iter().find(live).map(|n| n.device.clone());
                let nqn = remote.nqn.clone();
                first.map(Some).ok_or(nvmf::target::TargetError::NoNamespace { nqn, nsid: 1 }.into())
            }
            other => Ok(self.registry().find(&other.name()).map(|e| e.device.name().to_owned())),
        }
    }

    async fn is_own_target(&self, uri: &NvmfUri) -> Result<bool, EngineError> {
        let own = self.node().nvmf;
        if uri.port != own.port() {
            return Ok(false);
        }
        let lookup = uri.clone();
        // The resolver blocks. What it does not know is not us; opening it says why.
        let found = blocking(move || resolve(&lookup)).await?;
        Ok(found.is_ok_and(|addr| addr == own))
    }

    /// A device that is there, for use as a child.
    fn usable_child(
        &self,
        nexus: &str,
        text: &str,
        name: &str,
        uri: &DeviceUri,
    ) -> Result<Arc<dyn BlockDevice>, EngineError> {
        let (nexus, uri_text) = (nexus.to_owned(), text.to_owned());
        let checked = self.registry().get(name).and_then(|e| check_uuid(&e, uri).map(|()| e));
        let entry = match checked {
            Ok(entry) => entry,
            Err(e) => return Err(NexusError::Child { nexus, uri: uri_text, source: Box::new(e) }.into()),
        };
        let by = match &entry.claimed_by {
            Some(claim) => claim.to_string(),
            None if entry.origin == Origin::Nexus => "hosts: a nexus cannot be a child".to_owned(),
            None => return Ok(entry.device),
        };
        Err(NexusError::ChildBusy { nexus, uri: uri_text, by }.into())
    }

    /// Opens a device for the nexus.
    async fn open_owned(
        &self,
        nexus: &str,
        text: &str,
        uri: &DeviceUri,
    ) -> Result<Arc<dyn BlockDevice>, EngineError> {
        let Opened { device, remote } = self.open_device(uri).await?;
        let uri = registry::with_uuid(text, uri, device.uuid());
        let claimed_by = Some(Claim::Nexus(nexus.to_owned()));
        let entry = Entry { remote, claimed_by, ..Entry::new(device.clone(), uri, Origin::Nexus) };
        if let Err(e) = self.registry().insert(entry) {
            device.remove();
            return Err(e);
        }
        Ok(device)
    }

    /// Closes an owned device and opens it anew; one that is not owned is looked up again. For a child that takes no part.
    pub(super) async fn reopen_child(
        &self,
        nexus: &str,
        uri_text: &str,
        known: &ChildDevice,
    ) -> Result<Arc<dyn BlockDevice>, EngineError> {
        let old = self.registry().find(&known.name);
        // What is in memory is gone when it is closed, and what is on a disk of this node does not need it.
        let again = old.as_ref().is_none_or(|e| e.remote.is_some());
        if !known.owned || !again {
            let failed = |source: EngineError| -> EngineError {
                let (nexus, uri) = (nexus.to_owned(), uri_text.to_owned());
                NexusError::Child { nexus, uri, source: Box::new(source) }.into()
            };
            return self.registry().get(&known.name).map(|e| e.device).map_err(failed);
        }
        if let Some(old) = self.registry().remove(&known.name) {
            old.device.remove();
        }
        let (nexus, uri) = (nexus.to_owned(), uri_text.to_owned());
        let parsed: DeviceUri = uri_text.parse()?;
        match tokio::time::timeout(CHILD_TIMEOUT, self.open_owned(&nexus, uri_text, &parsed)).await {
            Ok(Ok(device)) => Ok(device),
            Ok(Err(source)) => Err(NexusError::Child { nexus, uri, source: Box::new(source) }.into()),
            Err(_) => Err(NexusError::ChildSilent { nexus, uri, secs: CHILD_TIMEOUT.as_secs() }.into()),
        }
    }

    /// Gives a child's device back, and closes it if it was opened for the nexus.
    pub(super) fn close_child(&self, child: &ChildDevice) {
        if child.owned
            && let Some(entry) = self.registry().remove(&child.name)
        {
            entry.device.remove();
        }
        self.nexuses().release(&child.name);
    }

    pub(super) fn close_children(&self, children: &[Child]) {
        children.iter().filter_map(|c| c.device.as_ref()).for_each(|d| self.close_child(d));
    }
}

/// A device that is taken for a nexus, and given back unless it is kept.
struct Taken<'a> {
    engine: &'a Engine,
    device: &'a str,
    kept: bool,
}

impl<'a> Taken<'a> {
    fn new(engine: &'a Engine, device: &'a str, nexus: &str, uri: &str) -> Result<Self, EngineError> {
        let taken = engine.nexuses().claim(device, nexus);
        taken.map_err(|by| {
            let (nexus, uri) = (nexus.to_owned(), uri.to_owned());
            match by == nexus {
                true => NexusError::ChildTwice { nexus, uri },
                false => NexusError::ChildBusy { nexus, uri, by: format!("nexus \"{by}\"") },
            }
        })?;
        Ok(Self { engine, device, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.engine.nexuses().release(self.device);
        }
    }
}
