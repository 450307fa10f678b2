//! What an operator asked for, as plain data: devices, pools and subsystems. Read from `--config`, kept in
//! `--state-dir`, and applied by the [`engine`](crate::engine) at start.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Everything asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// In the order of creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// In the order of creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Pool>,
    /// In the order of creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nexuses: Vec<Nexus>,
    /// In the order of creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsystems: Vec<Subsystem>,
}

/// A block device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What it is made from.
    pub uri: String,
}

/// A pool. What is in it, shares too, is recorded on its disks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// URIs or paths of all its disks.
    pub disks: Vec<String>,
    /// Replicas that are made when they are not in it. Of the configuration only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<Replica>,
}

/// A replica that the configuration declares.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// Its size when it is made.
    pub size_bytes: u64,
    /// Space is taken when written.
    pub thin: bool,
    /// Exported alone.
    pub share: bool,
    /// NQNs of hosts that may connect; empty = any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hosts: BTreeSet<String>,
}

/// A nexus. Which of its children are healthy is recorded apart, and how it is published with the subsystems.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nexus {
    /// Its name; hosts know it by this, where it is a uuid.
    pub name: String,
    /// What requests know it by.
    pub uuid: uuid::Uuid,
    /// The size that was asked for.
    pub size_bytes: u64,
    /// URIs of its children.
    pub children: Vec<String>,
    /// Controller ids that this node hands out: first and last.
    pub cntlids: [u16; 2],
    /// Under which its members are recorded where that is shared with others; empty = its uuid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub info_key: String,
    /// How it is to hold its children against others; absent = not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<Reservation>,
    /// It was shut down, and is not wanted after a restart.
    #[serde(skip)]
    pub shut_down: bool,
}

/// A reservation that a nexus is to have of its children.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// Its key; not 0.
    pub key: u64,
    /// The key of whom it takes the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempt_key: Option<u64>,
    /// The type's number in the NVMe specification.
    pub rtype: u8,
    /// It takes the place of whoever holds the children.
    #[serde(default)]
    pub preempt_holder: bool,
}

/// An exported subsystem.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subsystem {
    /// Its NQN.
    pub nqn: String,
    /// Made by `BdevRpc.Share` of this device; `Unshare` removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_of: Option<String>,
    /// Serial number; absent = derived from the NQN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Model number; absent = the target's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Any host may connect; `hosts` is remembered meanwhile.
    #[serde(default)]
    pub allow_any_host: bool,
    /// NQNs of hosts that may connect.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hosts: BTreeSet<String>,
    /// Controller ids that this node hands out: first and last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cntlids: Option<[u16; 2]>,
    /// Number of ANA groups; 0 = ANA is not reported.
    #[serde(default)]
    pub ana_groups: u16,
    /// States of groups that are not optimized.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ana_states: Vec<AnaGroup>,
    /// Namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
}

/// State of an ANA group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnaGroup {
    /// 1-based.
    pub group: u32,
    /// As on the wire (NVMe Base 2.0, ANA log page).
    pub state: u8,
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Name of the block device.
    pub device: String,
    /// Its number.
    pub nsid: u32,
    /// Identity that hosts see; absent = the device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<uuid::Uuid>,
    /// 1-based.
    #[serde(default = "first_group")]
    pub ana_group: u32,
}

fn first_group() -> u32 {
    1
}

impl Desired {
    /// The subsystem with this NQN.
    pub fn subsystem_mut(&mut self, nqn: &str) -> Option<&mut Subsystem> {
        self.subsystems.iter_mut().find(|s| s.nqn == nqn)
    }
}
