//! `--config FILE`: devices, pools, subsystems and hosts, declared in TOML.
//!
//! ```toml
//! [hosts]                                # short names for host NQNs
//! db1 = "nqn.2014-08.org.nvmexpress:uuid:6f0c1b6e-5c0e-4d8e-9a55-6b9be5a3d001"
//!
//! [[device]]
//! uri = "aio:///dev/sdb"
//!
//! [[device]]
//! uri = "malloc:///ram0?size_mb=64"
//! share = true                           # exported alone, as nqn.2019-05.io.openebs:ram0
//! hosts = ["db1"]                        # who may connect; left out = any host
//!
//! [[pool]]
//! name = "tpool"
//! disks = ["/dev/sdc", "/dev/sdd"]       # imported; a new pool is made where there is none and nothing else
//! [[pool.replica]]                       # made when it is not there
//! name = "replica1"
//! size = "10GiB"
//! thin = true
//! share = true
//! hosts = ["db1"]
//!
//! [[subsystem]]
//! nqn = "twins"                          # or a whole NQN
//! hosts = ["db1", "nqn.2014-08.org.example:other"]
//! [[subsystem.namespace]]
//! device = "/dev/sdb"
//! ```
//!
//! Unknown keys are errors, with the line. What the file declares comes from the file at each start; changes to
//! it by request last until then.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use rpc::nqn_from_name;
use rpc::output::parse_size;
use serde::Deserialize;

use crate::desired::{self, Desired};
use crate::exports::share;
use crate::pools::lifecycle::disk_uri;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not TOML, or has a key that is not known, or a value of the wrong kind.
    #[error("the configuration {} is wrong: {source}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The values contradict each other.
    #[error("the configuration {} is wrong: {problem}", path.display())]
    Meaning {
        /// Which.
        path: PathBuf,
        /// What about it.
        #[source]
        problem: Problem,
    },
}

/// Values that contradict each other.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// A host that is neither declared nor an NQN.
    #[error(
        "host {host:?} of {user} is not in [hosts], and is not an NQN either (those start with \"nqn.\")"
    )]
    UnknownHost {
        /// As written.
        host: String,
        /// Who mentions it.
        user: String,
    },
    /// A device URI that cannot be used.
    #[error("{0}")]
    Uri(#[from] aio::uri::UriError),
    /// Two devices of one name.
    #[error("two devices are called {0:?}: names have to be unique")]
    DeviceTwice(String),
    /// Two subsystems of one NQN; a shared device is one too.
    #[error("two subsystems have the NQN {0}: a shared device makes one of its own")]
    SubsystemTwice(String),
    /// `hosts` without `share`.
    #[error("{0} has hosts but not share = true")]
    HostsWithoutShare(String),
    /// Two pools of one name.
    #[error("two pools are called {0:?}: names have to be unique")]
    PoolTwice(String),
    /// A pool of nothing.
    #[error("pool {0:?} has no disks")]
    PoolWithoutDisks(String),
    /// A size that cannot be understood.
    #[error("replica {name:?} has the size {size:?}: {why}")]
    Size {
        /// Which replica.
        name: String,
        /// As written.
        size: String,
        /// What is wrong with it.
        why: String,
    },
    /// One nsid twice.
    #[error("subsystem {nqn} has two namespaces {nsid}")]
    NsidTwice {
        /// Which subsystem.
        nqn: String,
        /// Which number.
        nsid: u32,
    },
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    hosts: BTreeMap<String, String>,
    #[serde(default)]
    device: Vec<Device>,
    #[serde(default)]
    pool: Vec<Pool>,
    #[serde(default)]
    subsystem: Vec<Subsystem>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pool {
    name: String,
    disks: Vec<String>,
    #[serde(default)]
    replica: Vec<Replica>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replica {
    name: String,
    size: String,
    #[serde(default)]
    thin: bool,
    #[serde(default)]
    share: bool,
    #[serde(default)]
    hosts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    uri: String,
    #[serde(default)]
    share: bool,
    #[serde(default)]
    hosts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Subsystem {
    nqn: String,
    serial: Option<String>,
    model: Option<String>,
    #[serde(default)]
    hosts: Vec<String>,
    cntlids: Option<[u16; 2]>,
    /// Absent = one.
    ana_groups: Option<u16>,
    #[serde(default)]
    namespace: Vec<Namespace>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Namespace {
    device: String,
    nsid: Option<u32>,
    uuid: Option<uuid::Uuid>,
    #[serde(default = "first_group")]
    ana_group: u32,
}

fn first_group() -> u32 {
    1
}

/// Reads a configuration file.
pub fn read(path: &Path) -> Result<Desired, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// What a configuration's text declares; `path` is for messages only. Touches no file.
pub fn parse(path: &Path, text: &str) -> Result<Desired, ConfigError> {
    let file: File = toml::from_str(text)
        .map_err(|e| ConfigError::Parse { path: path.to_owned(), source: Box::new(e) })?;
    resolve(file).map_err(|problem| ConfigError::Meaning { path: path.to_owned(), problem })
}

fn resolve(file: File) -> Result<Desired, Problem> {
    let mut desired = Desired::default();
    let mut names = BTreeSet::new();
    for device in file.device {
        let name = device.uri.parse::<aio::uri::DeviceUri>()?.name();
        if !names.insert(name.clone()) {
            return Err(Problem::DeviceTwice(name));
        }
        let hosts = resolve_hosts(&file.hosts, device.hosts, || format!("device {name:?}"))?;
        if device.share {
            desired.subsystems.push(share(&name, hosts));
        } else if !hosts.is_empty() {
            return Err(Problem::HostsWithoutShare(format!("device {name:?}")));
        }
        desired.devices.push(desired::Device { uri: device.uri });
    }
    for pool in file.pool {
        if desired.pools.iter().any(|p| p.name == pool.name) {
            return Err(Problem::PoolTwice(pool.name));
        }
        desired.pools.push(resolve_pool(&file.hosts, pool, &mut names)?);
    }
    for subsystem in file.subsystem {
        desired.subsystems.push(resolve_subsystem(&file.hosts, subsystem)?);
    }
    let mut nqns = BTreeSet::new();
    for subsystem in &desired.subsystems {
        if !nqns.insert(&subsystem.nqn) {
            return Err(Problem::SubsystemTwice(subsystem.nqn.clone()));
        }
    }
    Ok(desired)
}

/// `names`: those of devices, which replicas are as well.
fn resolve_pool(
    known: &BTreeMap<String, String>,
    pool: Pool,
    names: &mut BTreeSet<String>,
) -> Result<desired::Pool, Problem> {
    if pool.disks.is_empty() {
        return Err(Problem::PoolWithoutDisks(pool.name));
    }
    for disk in &pool.disks {
        disk_uri(disk).parse::<aio::uri::DeviceUri>()?;
    }
    let mut replicas = Vec::new();
    for replica in pool.replica {
        let name = replica.name;
        if !names.insert(name.clone()) {
            return Err(Problem::DeviceTwice(name));
        }
        let hosts = resolve_hosts(known, replica.hosts, || format!("replica {name:?}"))?;
        if !replica.share && !hosts.is_empty() {
            return Err(Problem::HostsWithoutShare(format!("replica {name:?}")));
        }
        let size_bytes = parse_size(&replica.size).map_err(|why| Problem::Size {
            name: name.clone(),
            size: replica.size,
            why,
        })?;
        let (thin, share) = (replica.thin, replica.share);
        replicas.push(desired::Replica { name, size_bytes, thin, share, hosts });
    }
    Ok(desired::Pool { name: pool.name, disks: pool.disks, replicas })
}

fn resolve_subsystem(
    known: &BTreeMap<String, String>,
    subsystem: Subsystem,
) -> Result<desired::Subsystem, Problem> {
    let nqn = nqn_from_name(&subsystem.nqn);
    let hosts = resolve_hosts(known, subsystem.hosts, || format!("subsystem {nqn}"))?;
    let mut taken: BTreeSet<u32> = BTreeSet::new();
    for nsid in subsystem.namespace.iter().filter_map(|n| n.nsid) {
        if !taken.insert(nsid) {
            return Err(Problem::NsidTwice { nqn, nsid });
        }
    }
    let mut namespaces = Vec::new();
    for n in subsystem.namespace {
        // Numbers that were left out are filled in, in order: they must not depend on what could be opened.
        let nsid = n.nsid.unwrap_or_else(|| (1..).find(|i| !taken.contains(i)).unwrap_or(u32::MAX));
        taken.insert(nsid);
        namespaces.push(desired::Namespace { device: n.device, nsid, uuid: n.uuid, ana_group: n.ana_group });
    }
    Ok(desired::Subsystem {
        nqn,
        share_of: None,
        serial: subsystem.serial,
        model: subsystem.model,
        allow_any_host: hosts.is_empty(),
        hosts,
        cntlids: subsystem.cntlids,
        ana_groups: subsystem.ana_groups.unwrap_or(1),
        ana_states: Vec::new(),
        namespaces,
    })
}

fn resolve_hosts(
    known: &BTreeMap<String, String>,
    hosts: Vec<String>,
    user: impl Fn() -> String,
) -> Result<BTreeSet<String>, Problem> {
    let one = |host: String| match known.get(&host) {
        Some(nqn) => Ok(nqn.clone()),
        None if host.starts_with("nqn.") => Ok(host),
        None => Err(Problem::UnknownHost { host, user: user() }),
    };
    hosts.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Desired, String> {
        parse(Path::new("k.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_example_means_what_it_says() {
        let desired = parsed(
            r#"
            [hosts]
            db1 = "nqn.2014-08.org.nvmexpress:uuid:1"
            [[device]]
            uri = "aio:///dev/sdb"
            [[device]]
            uri = "malloc:///ram0?size_mb=64"
            share = true
            hosts = ["db1"]
            [[pool]]
            name = "tpool"
            disks = ["/dev/sdc", "malloc:///m?size_mb=64"]
            [[pool.replica]]
            name = "replica1"
            size = "10GiB"
            thin = true
            share = true
            hosts = ["db1"]
            [[subsystem]]
            nqn = "twins"
            hosts = ["db1", "nqn.2014-08.org.example:other"]
            [[subsystem.namespace]]
            device = "/dev/sdb"
            [[subsystem.namespace]]
            device = "other"
            nsid = 1
            "#,
        )
        .unwrap();
        assert_eq!(desired.devices.len(), 2);
        let [pool] = &desired.pools[..] else { panic!("{desired:?}") };
        assert_eq!((pool.name.as_str(), pool.disks.len()), ("tpool", 2));
        let replica = &pool.replicas[0];
        assert_eq!((replica.size_bytes, replica.thin, replica.share), (10 << 30, true, true));
        assert!(replica.hosts.contains("nqn.2014-08.org.nvmexpress:uuid:1"));
        let [share, twins] = &desired.subsystems[..] else { panic!("{desired:?}") };
        assert_eq!(share.nqn, "nqn.2019-05.io.openebs:ram0");
        assert_eq!(share.share_of.as_deref(), Some("ram0"));
        assert!(!share.allow_any_host && share.hosts.contains("nqn.2014-08.org.nvmexpress:uuid:1"));
        assert_eq!(twins.nqn, "nqn.2019-05.io.openebs:twins");
        assert_eq!((twins.hosts.len(), twins.ana_groups), (2, 1));
        let numbers: Vec<u32> = twins.namespaces.iter().map(|n| n.nsid).collect();
        assert_eq!(numbers, [2, 1], "an explicit number goes first, wherever it stands");
        // What the file declares survives the state file's format.
        let json = serde_json::to_string(&desired).unwrap();
        assert_eq!(serde_json::from_str::<Desired>(&json).unwrap(), desired);
    }

    #[test]
    fn an_empty_file_declares_nothing() {
        assert_eq!(parsed("").unwrap(), Desired::default());
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, wants) in [
            ("[[device]]\nuri = \"null:///a\"\nsize = 4\n", &["line 3", "size", "k.toml"][..]),
            ("[[device]]\nuri = 4\n", &["line 2", "string"]),
            ("devices = []\n", &["line 1", "devices"]),
            ("[[device]\n", &["line 1"]),
            ("[[device]]\nuri = \"null:///a?x=1\"\n", &["unknown parameter", "x"]),
            (
                "[[device]]\nuri=\"null:///a\"\n[[device]]\nuri=\"malloc:///a?size_mb=1\"\n",
                &["\"a\"", "unique"],
            ),
            ("[[device]]\nuri = \"null:///a\"\nhosts = [\"nqn.h\"]\n", &["share = true"]),
            ("[[pool]]\nname = \"a\"\ndisks = []\n", &["no disks"]),
            ("[[pool]]\nname = \"a\"\n", &["disks"]),
            ("[[pool]]\nname = \"a\"\ndisks = [\"sdb\"]\n", &["sdb"]),
            (
                "[[pool]]\nname=\"a\"\ndisks=[\"/b\"]\n[[pool]]\nname=\"a\"\ndisks=[\"/c\"]\n",
                &["two pools", "unique"],
            ),
            (
                "[[pool]]\nname=\"a\"\ndisks=[\"/b\"]\nreplica=[{name=\"r\",size=\"ten\"}]\n",
                &["\"r\"", "\"ten\""],
            ),
            (
                "[[pool]]\nname=\"a\"\ndisks=[\"/b\"]\nreplica=[{name=\"r\",size=\"1\",hosts=[\"nqn.h\"]}]\n",
                &["share = true"],
            ),
            ("[[subsystem]]\nnqn = \"a\"\nhosts = [\"db1\"]\n", &["db1", "[hosts]"]),
            ("[[subsystem]]\nnqn = \"a\"\n[[subsystem]]\nnqn = \"a\"\n", &["two subsystems"]),
            (
                "[[subsystem]]\nnqn=\"a\"\nnamespace=[{device=\"x\",nsid=1},{device=\"y\",nsid=1}]\n",
                &["two namespaces 1"],
            ),
        ] {
            let message = parsed(text).expect_err(text);
            for want in wants {
                assert!(message.contains(want), "{text}\n{message}\nlacks {want}");
            }
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let e = read(Path::new("/nonexistent/k.toml")).unwrap_err().to_string();
        assert!(e.contains("/nonexistent/k.toml"), "{e}");
    }
}
