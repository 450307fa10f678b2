//! What a target, a subsystem and a namespace are made from. Plain data; checked when used.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use aio::BlockDevice;
use sha2::{Digest, Sha256};

use super::ana::ListenerId;
use super::ns::NsIds;
use super::reserve::PersistentReservations;

/// What subsystem NQNs of named devices start with.
pub const NQN_PREFIX: &str = "nqn.2019-05.io.openebs:";

/// The NQN of the subsystem that exports the device `name`.
pub fn nqn_of(name: &str) -> String {
    format!("{NQN_PREFIX}{name}")
}

/// Entries that every host may ask for on its admin queue: the least that a discovery log entry may say (ASQSZ, NVMe
/// Base 2.0, section 5.16.1.23), and what hosts ask for without looking.
pub const MIN_ADMIN_ENTRIES: u16 = 32;

/// Limits and identity of a target. All of it is fixed for the target's life.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Most entries of one I/O queue (CAP.MQES + 1, and MAXCMD). Admin queues have at least
    /// [`MIN_ADMIN_ENTRIES`], whatever this says.
    pub queue_entries: u16,
    /// Most I/O queues of one controller.
    pub io_queues: u16,
    /// Most data bytes inside a command capsule of an I/O queue; a multiple of 16.
    pub in_capsule_bytes: u32,
    /// Most bytes that one command transfers; a power of two of at least 4,096 (MDTS).
    pub max_io_bytes: u32,
    /// Longest Keep Alive Timeout that is granted; longer ones are refused.
    pub kato_max: Duration,
    /// How long a controller may exist without being enabled, and how long a discovery controller without
    /// Keep Alive may stay idle.
    pub association_timeout: Duration,
    /// How long a Connect waits for the host's earlier association to drain before it is told to come again.
    pub drain_timeout: Duration,
    /// How long a subsystem stays paused at most: then its commands go on, and who paused it is told. Well below the
    /// 30 s after which Linux gives up a command by default. At most a day.
    pub pause_limit: Duration,
    /// Most controllers over all subsystems. At most half of them are discovery controllers.
    pub max_controllers: u16,
    /// Highest nsid and most namespaces of a subsystem that does not say otherwise.
    pub max_namespaces: u32,
    /// Model number of subsystems that do not say otherwise: printable ASCII, at most 40 bytes.
    pub model: String,
    /// Firmware revision: printable ASCII, at most 8 bytes.
    pub firmware: String,
    /// Command Retry Delay Times 1 to 3, in units of 100 ms.
    pub crdt: [u16; 3],
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            queue_entries: 128,
            io_queues: 32,
            in_capsule_bytes: 4096,
            max_io_bytes: 128 * 1024,
            kato_max: Duration::from_secs(3600),
            association_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(10),
            pause_limit: Duration::from_secs(15),
            max_controllers: 1024,
            max_namespaces: 1024,
            model: "Mayastor NVMe controller".to_owned(),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            crdt: [0; 3],
        }
    }
}

impl TargetConfig {
    /// The configuration with every value brought into what the wire can say.
    pub(super) fn clamped(mut self) -> Self {
        self.queue_entries = self.queue_entries.clamp(2, 4096);
        self.io_queues = self.io_queues.clamp(1, 1024);
        self.in_capsule_bytes = self.in_capsule_bytes.min(64 * 1024) & !15;
        self.max_io_bytes = prev_power_of_two(self.max_io_bytes.clamp(4096, 64 * 1024 * 1024));
        self.max_namespaces = self.max_namespaces.clamp(1, 16 * 1024);
        self.pause_limit = self.pause_limit.min(Duration::from_secs(24 * 3600));
        self
    }

    /// Most entries of an admin queue.
    pub(super) fn admin_entries(&self) -> u16 {
        self.queue_entries.max(MIN_ADMIN_ENTRIES)
    }
}

fn prev_power_of_two(n: u32) -> u32 {
    1 << n.ilog2()
}

/// Which hosts may connect.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum AllowedHosts {
    /// Every host.
    #[default]
    Any,
    /// Hosts with exactly these NQNs.
    Only(BTreeSet<String>),
}

impl AllowedHosts {
    /// The meaning that Mayastor's `allowed_hosts` lists have: empty = any host.
    pub fn from_list(hosts: impl IntoIterator<Item = String>) -> Self {
        let hosts: BTreeSet<String> = hosts.into_iter().collect();
        if hosts.is_empty() { Self::Any } else { Self::Only(hosts) }
    }

    /// Whether the host with this NQN may connect.
    pub fn allows(&self, hostnqn: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(hosts) => hosts.contains(hostnqn),
        }
    }
}

/// Through which listeners a subsystem is reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Listeners {
    /// All that the target has, now and later.
    #[default]
    All,
    /// Only these.
    Only(BTreeSet<ListenerId>),
}

impl Listeners {
    /// Whether the subsystem is reached through `id`.
    pub fn contains(&self, id: ListenerId) -> bool {
        match self {
            Self::All => true,
            Self::Only(ids) => ids.contains(&id),
        }
    }
}

/// A subsystem to be created.
#[derive(Clone, Debug)]
pub struct SubsystemSpec {
    /// Its NQN.
    pub nqn: String,
    /// Serial number: printable ASCII, at most 20 bytes. See [`serial_of`].
    pub serial: String,
    /// Model number, at most 40 bytes; `None` = the target's.
    pub model: Option<String>,
    /// Who may connect.
    pub hosts: AllowedHosts,
    /// Through which listeners.
    pub listeners: Listeners,
    /// Controller identifiers to hand out: within 1 to [`nvme::Cntlid::MAX`].
    pub cntlids: RangeInclusive<u16>,
    /// Number of ANA groups; 0 = the subsystem does not report ANA.
    pub ana_groups: u16,
    /// Highest nsid; `None` = the target's.
    pub max_namespaces: Option<u32>,
}

impl SubsystemSpec {
    /// A subsystem for any host with all defaults; its serial number is made from the NQN.
    pub fn new(nqn: impl Into<String>) -> Self {
        let nqn = nqn.into();
        Self {
            serial: serial_of(nqn.as_bytes()),
            nqn,
            model: None,
            hosts: AllowedHosts::Any,
            listeners: Listeners::All,
            cntlids: 1..=nvme::Cntlid::MAX.0,
            ana_groups: 0,
            max_namespaces: None,
        }
    }
}

/// The 20-character serial number that Mayastor derives from an identity (the 16 bytes of a device's uuid):
/// `DCS` and the first 17 digits of its SHA-256 in upper-case hexadecimal.
pub fn serial_of(identity: &[u8]) -> String {
    use std::fmt::Write;
    let mut serial = String::from("DCS");
    for byte in Sha256::digest(identity).iter().take(9) {
        // Writing to a String cannot fail.
        let _ = write!(serial, "{byte:02X}");
    }
    serial.truncate(20);
    serial
}

/// A namespace to be added.
#[derive(Clone)]
pub struct NamespaceSpec {
    /// Where the blocks are.
    pub device: Arc<dyn BlockDevice>,
    /// Which nsid; `None` = the lowest free one.
    pub nsid: Option<nvme::Nsid>,
    /// Names; `None` = made from the device's uuid.
    pub ids: Option<NsIds>,
    /// ANA group, 1-based; 1 where ANA is not reported.
    pub ana_group: u32,
    /// Reservations that persist through power loss; `None` = they end with the namespace.
    pub reservations: Option<PersistentReservations>,
}

impl NamespaceSpec {
    /// `device` under the lowest free nsid, in ANA group 1.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self { device, nsid: None, ids: None, ana_group: 1, reservations: None }
    }
}
