//! The block devices of this node, by name.
//!
//! A device is made from a URI, which also says its name; names are unique. The registry only knows devices;
//! who exports them is the [`engine`](crate::engine)'s business.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use aio::reactor::CoreHandle;
use aio::uri::NvmfUri;
use aio::{BlockDevice, DeviceUri};
use nvme::{HostId, Nqn};
use nvmf::initiator::{NvmfDevice, Options, resolve};
use tokio::task::spawn_blocking;
use tracing::warn;
use uuid::Uuid;

use crate::error::EngineError;

/// Where something comes from, which decides whether it is written to the state folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The configuration file, or the command itself (`demo`): there again at the next start anyway.
    Config,
    /// A request.
    Request,
    /// A pool: its disks and replicas are there whenever it is.
    Pool,
    /// A nexus: itself, and children that were opened for it.
    Nexus,
}

/// Who has a device for itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The pool that it is a disk of.
    Pool(String),
    /// The nexus that it is a child of.
    Nexus(String),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Nexus(name) => write!(f, "nexus {name}"),
        }
    }
}

/// A device and how it came to be.
#[derive(Clone)]
pub struct Entry {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// The same once more, when it is another host's.
    pub remote: Option<Arc<NvmfDevice>>,
    /// The URI that makes the same device again: as given, with its uuid.
    pub uri: String,
    /// Who asked for it.
    pub origin: Origin,
    /// Whom it belongs to: nobody else may use it.
    pub claimed_by: Option<Claim>,
}

impl Entry {
    /// A device that nobody claims.
    pub fn new(device: Arc<dyn BlockDevice>, uri: String, origin: Origin) -> Self {
        Self { device, remote: None, uri, origin, claimed_by: None }
    }

    /// Size of the device in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.device.size().0.saturating_mul(u64::from(self.device.geometry().block_bytes))
    }
}

/// See the module.
#[derive(Default)]
pub struct Registry {
    /// In the order of creation, which is the order in which the state folder makes them again.
    entries: Mutex<Vec<Entry>>,
}

impl Registry {
    /// Adds a device, whose name must be free.
    pub fn insert(&self, entry: Entry) -> Result<(), EngineError> {
        let mut entries = self.lock();
        if entries.iter().any(|e| e.device.name() == entry.device.name()) {
            return Err(EngineError::DeviceExists(entry.device.name().to_owned()));
        }
        entries.push(entry);
        Ok(())
    }

    /// The device called `name`.
    pub fn find(&self, name: &str) -> Option<Entry> {
        self.lock().iter().find(|e| e.device.name() == name).cloned()
    }

    /// The device called `name`, or the error that there is none.
    pub fn get(&self, name: &str) -> Result<Entry, EngineError> {
        self.find(name).ok_or_else(|| EngineError::NoDevice(name.to_owned()))
    }

    /// As [`get`](Self::get), for use by somebody else than whoever may have claimed it.
    pub fn usable(&self, name: &str) -> Result<Entry, EngineError> {
        let entry = self.get(name)?;
        match entry.claimed_by {
            None => Ok(entry),
            Some(by) => Err(EngineError::DeviceClaimed { name: name.to_owned(), by }),
        }
    }

    /// Reserves a device for a pool, or gives it back.
    pub fn claim(&self, name: &str, pool: Option<Claim>) {
        if let Some(entry) = self.lock().iter_mut().find(|e| e.device.name() == name) {
            entry.claimed_by = pool;
        }
    }

    /// Forgets a device.
    pub fn remove(&self, name: &str) -> Option<Entry> {
        let mut entries = self.lock();
        let at = entries.iter().position(|e| e.device.name() == name)?;
        Some(entries.remove(at))
    }

    /// All devices, in the order of creation.
    pub fn list(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Nothing under the lock leaves the list half changed.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to connect to a remote device where its URI does not say it.
#[derive(Clone, Copy, Default, Debug)]
pub struct RemoteWishes<'a> {
    /// Our name.
    pub hostnqn: Option<&'a str>,
    /// I/Os in flight on one queue.
    pub queue_depth: Option<u16>,
}

/// Makes the device that `uri` describes. A remote one lives on the core `home`.
pub async fn open(
    uri: &DeviceUri,
    home: &CoreHandle,
    wishes: &RemoteWishes<'_>,
) -> Result<Opened, EngineError> {
    match uri {
        DeviceUri::Aio(_) | DeviceUri::Uring(_) | DeviceUri::Malloc(_) | DeviceUri::Null(_) => {
            Ok(Opened { device: open_local(uri.clone()).await?, remote: None })
        }
        DeviceUri::Nvmf(uri) => open_remote(uri, home, wishes).await,
        // Aliases of what exists: resolved by the engine.
        DeviceUri::Bdev(_) | DeviceUri::Loopback(_) => Err(EngineError::NoDevice(uri.name())),
        DeviceUri::Pcie(_) => Err(EngineError::Scheme("pcie")),
    }
}

/// A device that was just made.
pub struct Opened {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// The same once more, when it is another host's.
    pub remote: Option<Arc<NvmfDevice>>,
}

async fn open_remote(
    uri: &NvmfUri,
    home: &CoreHandle,
    wishes: &RemoteWishes<'_>,
) -> Result<Opened, EngineError> {
    let name = DeviceUri::Nvmf(uri.clone()).name();
    let failed = |source| EngineError::Connect { name: name.clone(), source: Box::new(source) };
    let lookup = uri.clone();
    // The resolver blocks.
    let addr = spawn_blocking(move || resolve(&lookup)).await.map_err(|_| EngineError::ShuttingDown)?;
    let mut options = Options::from_uri(uri, addr.map_err(failed)?).map_err(failed)?;
    if let (None, Some(Ok(nqn))) = (&uri.hostnqn, wishes.hostnqn.map(Nqn::parse)) {
        options.hostnqn = nqn;
    }
    let says_host = uri.others.iter().any(|(key, _)| key == "hostid");
    if let (false, Some(hostid)) = (says_host, host_identifier()) {
        options.hostid = hostid;
    }
    let says_depth = uri.others.iter().any(|(key, _)| key == "queue_depth");
    if let (false, Some(depth)) = (says_depth, wishes.queue_depth) {
        options.queue_depth = depth;
    }
    let device = home.call(move || NvmfDevice::connect(options)).await?.map_err(failed)?;
    Ok(Opened { device: device.clone(), remote: Some(device) })
}

/// What this node is to targets that tell hosts apart by their identifier, as for reservations: `MAYASTOR_NVMF_HOSTID`,
/// a uuid. Without it, every start of the daemon is another host.
fn host_identifier() -> Option<HostId> {
    static GIVEN: OnceLock<Option<HostId>> = OnceLock::new();
    *GIVEN.get_or_init(|| {
        let text = std::env::var("MAYASTOR_NVMF_HOSTID").ok().filter(|text| !text.is_empty())?;
        match Uuid::parse_str(&text) {
            Ok(uuid) if !uuid.is_nil() => Some(HostId(uuid.into_bytes())),
            _ => {
                warn!("MAYASTOR_NVMF_HOSTID={text:?} is no uuid: this node has an identifier of its own until it ends");
                None
            }
        }
    })
}

/// Opening a file may block.
async fn open_local(uri: DeviceUri) -> Result<Arc<dyn BlockDevice>, EngineError> {
    let name = uri.name();
    let made = spawn_blocking(move || aio::devices::create(&uri)).await;
    // The task neither panics nor is cancelled while the runtime lives.
    let made = made.map_err(|_| EngineError::ShuttingDown)?;
    let device = made.map_err(|source| EngineError::CreateDevice { name, source })?;
    device.notices().iter().for_each(|notice| tracing::warn!("{notice}"));
    Ok(device)
}

/// `text` with `uuid` as a parameter, unless it has one.
pub fn with_uuid(text: &str, uri: &DeviceUri, uuid: Uuid) -> String {
    if uri.uuid().is_some() {
        return text.to_owned();
    }
    let text = text.split_once('#').map_or(text, |(front, _)| front);
    let joint = match text.split_once('?') {
        None => "?",
        Some((_, query)) if query.is_empty() || query.ends_with('&') => "",
        Some(_) => "&",
    };
    format!("{text}{joint}uuid={uuid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_gets_its_uuid_once() {
        let uuid = Uuid::from_u128(1);
        let check = |text: &str, want: &str| {
            let uri: DeviceUri = text.parse().unwrap();
            assert_eq!(with_uuid(text, &uri, uuid), want);
            // And it still is the same device.
            assert_eq!(want.parse::<DeviceUri>().unwrap().name(), uri.name());
        };
        let id = "uuid=00000000-0000-0000-0000-000000000001";
        check("aio:///f", &format!("aio:///f?{id}"));
        check("malloc:///a?size_mb=1", &format!("malloc:///a?size_mb=1&{id}"));
        check("null:///a?", &format!("null:///a?{id}"));
        check("null:///a#x", &format!("null:///a?{id}"));
        check(&format!("null:///a?{id}"), &format!("null:///a?{id}"));
    }
}
