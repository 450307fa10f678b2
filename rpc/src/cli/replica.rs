//! `replica`: volumes of a pool.

use std::collections::HashMap;

use clap::{Args, Subcommand, ValueEnum};

use super::Printer;
use super::pool::Kind;
use crate::mayastor::v1::{
    CreateReplicaRequest, ListReplicaOptions, ListReplicasResponse, ListStatsOption, PoolType, Replica,
    ReplicaIoStats, ReplicaSpaceUsage, ResizeReplicaRequest, ShareProtocol, ShareReplicaRequest,
    UnshareReplicaRequest, destroy_replica_request, list_replica_options,
};
use crate::output::{Table, Units, parse_size};
use crate::{Client, ClientError};

/// Commands of `replica`. Where they take a uuid they take the replica's name as well.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Make a replica
    #[command(
        override_usage = "keelson replica create [OPTIONS] --size <SIZE> <POOL> <NAME>\n       \
                          keelson replica create [OPTIONS] --size <SIZE> <NAME> <UUID> <POOL>",
        after_help = "Examples:\n  \
        keelson replica create tpool replica1 --size=10              10 MiB: a bare number counts MiB here\n  \
        keelson replica create tpool replica2 --size=1GiB --thin -p nvmf\n  \
        keelson replica create r3 7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c003 tpool --size=67108864      bytes"
    )]
    Create {
        /// POOL NAME (the uuid is chosen), or NAME UUID POOL; a pool by its name or uuid
        #[arg(required = true, num_args = 2..=3, value_name = "POOL NAME | NAME UUID POOL")]
        names: Vec<String>,
        /// Such as 10GiB; a bare number counts MiB after POOL NAME, and bytes after NAME UUID POOL
        #[arg(short, long)]
        size: String,
        /// Export it at once
        #[arg(short, long, value_enum, default_value_t)]
        protocol: Protocol,
        /// Take space when it is written, instead of reserving all of it
        #[arg(short, long)]
        thin: bool,
        /// NQN of a host that may connect; repeat for more. None = any host
        #[arg(long = "allowed-host", value_name = "NQN")]
        allowed_hosts: Vec<String>,
        /// Kind of pool
        #[arg(long = "type", value_enum, default_value_t, value_name = "TYPE")]
        kind: Kind,
    },
    /// Remove a replica; its snapshots stay
    #[command(override_usage = "keelson replica destroy [OPTIONS] [POOL] <UUID>")]
    Destroy {
        /// Uuid or name of the replica, maybe its pool before that
        #[arg(required = true, num_args = 1..=2, value_name = "[POOL] UUID")]
        names: Vec<String>,
        /// The pool that it is in
        #[command(flatten)]
        pool: PoolChoice,
    },
    /// Export a replica over NVMe/TCP, or change who may connect
    Share {
        /// Uuid or name
        uuid: String,
        /// How
        #[arg(value_enum)]
        protocol: Protocol,
        /// NQN of a host that may connect; repeat for more. None = any host
        #[arg(long = "allowed-host", value_name = "NQN")]
        allowed_hosts: Vec<String>,
    },
    /// End the export of a replica
    Unshare {
        /// Uuid or name
        uuid: String,
    },
    /// Give a replica another size, larger or smaller
    Resize {
        /// Uuid or name
        uuid: String,
        /// Bytes, or with a unit, such as 10GiB
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// List replicas, snapshots and clones
    List {
        /// Only in pools of this kind; repeat for more
        #[arg(short = 't', long = "type", value_enum, value_name = "TYPE")]
        kinds: Vec<Kind>,
    },
    /// What replicas were asked to do
    Stats,
}

/// Says in which pool something is.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub struct PoolChoice {
    /// Uuid of its pool
    #[arg(long, value_name = "UUID")]
    pub(super) pool_uuid: Option<String>,
    /// Name of its pool
    #[arg(long, value_name = "NAME")]
    pub(super) pool_name: Option<String>,
}

/// What `-p` takes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// Not exported
    #[default]
    None,
    /// NVMe over Fabrics
    Nvmf,
    /// Not supported: for the daemon to refuse
    #[value(hide = true)]
    Iscsi,
}

impl From<Protocol> for ShareProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::None => Self::None,
            Protocol::Nvmf => Self::Nvmf,
            Protocol::Iscsi => Self::Iscsi,
        }
    }
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    match command {
        Command::Create { names, size, protocol, thin, allowed_hosts, .. } => {
            let mut request = create_request(names, size)?;
            request.thin = *thin;
            request.share = ShareProtocol::from(*protocol).into();
            request.allowed_hosts = allowed_hosts.clone();
            create(client, request, printer).await
        }
        Command::Destroy { names, pool } => destroy(client, names, pool, printer).await,
        Command::Share { uuid: text, protocol, allowed_hosts } => {
            let uuid = resolve(client, text, &PoolChoice::default()).await?;
            let share = ShareProtocol::from(*protocol).into();
            let request = ShareReplicaRequest { uuid, share, allowed_hosts: allowed_hosts.clone() };
            let answer = client.replica().share_replica(request).await;
            let answer = answer.map_err(ClientError::call(format!("share replica \"{text}\"")))?.into_inner();
            printer.line(&answer, &answer.uri)
        }
        Command::Unshare { uuid: text } => {
            let uuid = resolve(client, text, &PoolChoice::default()).await?;
            let answer = client.replica().unshare_replica(UnshareReplicaRequest { uuid }).await;
            let answer =
                answer.map_err(ClientError::call(format!("unshare replica \"{text}\"")))?.into_inner();
            printer.line(&answer, &answer.uri)
        }
        Command::Resize { uuid: text, size } => {
            let uuid = resolve(client, text, &PoolChoice::default()).await?;
            let request = ResizeReplicaRequest { uuid, requested_size: *size };
            let answer = client.replica().resize_replica(request).await;
            answer.map_err(ClientError::call(format!("resize replica \"{text}\"")))?;
            printer.text_only(&format!("replica {text} is resized"))
        }
        Command::List { kinds } => {
            let pooltypes = kinds.iter().map(|k| PoolType::from(*k).into()).collect();
            let answer = fetch(client, ListReplicaOptions { pooltypes, ..Default::default() }).await?;
            let table = table(&answer.replicas, printer);
            printer.list(&answer, &table, "No replicas found")
        }
        Command::Stats => stats(client, printer).await,
    }
}

/// A size as typed means MiB in the form of the first README, and bytes in the other.
fn create_request(names: &[String], size: &str) -> Result<CreateReplicaRequest, ClientError> {
    let bad = |reason| ClientError::BadSize { text: size.to_owned(), reason };
    let bytes = parse_size(size).map_err(bad)?;
    let bare = size.trim().bytes().all(|b| b.is_ascii_digit());
    match names {
        [pool, name] => {
            let bytes = match bare {
                true => bytes.checked_mul(1 << 20).ok_or_else(|| bad("larger than 16 EiB".to_owned()))?,
                false => bytes,
            };
            let (name, pooluuid) = (name.clone(), pool.clone());
            Ok(CreateReplicaRequest { name, pooluuid, size: bytes, ..Default::default() })
        }
        [name, uuid, pool] => Ok(CreateReplicaRequest {
            name: name.clone(),
            uuid: uuid.clone(),
            pooluuid: pool.clone(),
            size: bytes,
            ..Default::default()
        }),
        _ => unreachable!("invariant: clap takes two or three"),
    }
}

async fn create(
    client: &Client,
    request: CreateReplicaRequest,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let what = format!(
        "create replica \"{}\" of {} ({} bytes) in pool \"{}\"",
        request.name,
        Units::Binary.show(request.size),
        request.size,
        request.pooluuid
    );
    let answer = client.replica().create_replica(request).await;
    let answer = answer.map_err(ClientError::call(what))?.into_inner();
    // Beside the result, which scripts read: it is the URI and nothing else.
    let kind = if answer.thin { "thin" } else { "thick" };
    let (name, size) = (&answer.name, answer.size);
    printer.note(&format!("replica {name}: {} ({size} bytes), {kind}", Units::Binary.show(size)));
    printer.line(&answer, &answer.uri)
}

async fn destroy(
    client: &Client,
    names: &[String],
    pool: &PoolChoice,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let (text, pool) = match names {
        [pool, name] if is_uuid(pool) => {
            (name, &PoolChoice { pool_uuid: Some(pool.clone()), pool_name: None })
        }
        [pool, name] => (name, &PoolChoice { pool_name: Some(pool.clone()), pool_uuid: None }),
        [name] => (name, pool),
        _ => unreachable!("invariant: clap takes one or two"),
    };
    let uuid = resolve(client, text, pool).await?;
    let pool = match (&pool.pool_uuid, &pool.pool_name) {
        (Some(uuid), _) => Some(destroy_replica_request::Pool::PoolUuid(uuid.clone())),
        (None, Some(name)) => Some(destroy_replica_request::Pool::PoolName(name.clone())),
        (None, None) => None,
    };
    let request = crate::mayastor::v1::DestroyReplicaRequest { uuid, pool };
    let answer = client.replica().destroy_replica(request).await;
    answer.map_err(ClientError::call(format!("destroy replica \"{text}\"")))?;
    printer.text_only(&format!("replica: {text} is deleted"))
}

async fn fetch(client: &Client, options: ListReplicaOptions) -> Result<ListReplicasResponse, ClientError> {
    let answer = client.replica().list_replicas(options).await;
    Ok(answer.map_err(ClientError::call("list replicas"))?.into_inner())
}

/// The API knows replicas by uuid, people by name. A uuid is passed on as it is.
pub(super) async fn resolve(client: &Client, text: &str, pool: &PoolChoice) -> Result<String, ClientError> {
    if is_uuid(text) {
        return Ok(text.to_owned());
    }
    let query = list_replica_options::Query { replica: true, snapshot: false, clone: true };
    let options = ListReplicaOptions {
        name: Some(text.to_owned()),
        poolname: pool.pool_name.clone(),
        pooluuid: pool.pool_uuid.clone(),
        query: Some(query),
        ..Default::default()
    };
    let mut found = fetch(client, options).await?.replicas;
    match (found.pop(), found.is_empty()) {
        (Some(replica), true) => Ok(replica.uuid),
        (Some(_), false) => Err(ClientError::Ambiguous { kind: "replicas", name: text.to_owned() }),
        (None, _) => {
            Err(ClientError::NotFound { kind: "Replica", name: text.to_owned(), list: "replica list" })
        }
    }
}

/// The canonical form.
pub(super) fn is_uuid(text: &str) -> bool {
    let digits = |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split('-').collect();
    parts.len() == 5 && parts.iter().zip([8, 4, 4, 4, 12]).all(|(part, len)| digits(part, len))
}

fn share_word(share: i32) -> &'static str {
    match ShareProtocol::try_from(share) {
        Ok(ShareProtocol::None) => "none",
        Ok(ShareProtocol::Nvmf) => "nvmf",
        Ok(ShareProtocol::Iscsi) => "iscsi",
        Err(_) => "unknown",
    }
}

fn table(replicas: &[Replica], printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&[
        "POOL",
        "NAME",
        "UUID",
        ">THIN",
        ">SHARE",
        ">SIZE",
        ">CAP",
        ">ALLOC",
        "URI",
        "IS_SNAPSHOT",
        "IS_CLONE",
        "SNAP_ANCESTOR_SIZE",
        "CLONE_SNAP_ANCESTOR_SIZE",
    ]);
    for r in replicas {
        let usage =
            r.usage.unwrap_or_else(|| ReplicaSpaceUsage { capacity_bytes: r.size, ..Default::default() });
        table.row(vec![
            r.poolname.clone(),
            r.name.clone(),
            r.uuid.clone(),
            r.thin.to_string(),
            share_word(r.share).to_owned(),
            printer.size(r.size),
            printer.size(usage.capacity_bytes),
            printer.size(usage.allocated_bytes),
            r.uri.clone(),
            r.is_snapshot.to_string(),
            r.is_clone.to_string(),
            printer.size(usage.allocated_bytes_snapshots),
            usage.allocated_bytes_snapshot_from_clone.map_or_else(|| "-".to_owned(), |b| printer.size(b)),
        ]);
    }
    table
}

/// Counters know a replica by its uuid; the list knows its pool.
async fn stats(client: &Client, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    let answer = client.stats().get_replica_io_stats(ListStatsOption { name: None }).await;
    let answer = answer.map_err(ClientError::call("read the counters of replicas"))?.into_inner();
    let replicas = fetch(client, ListReplicaOptions::default()).await?.replicas;
    let pools = replicas.into_iter().map(|r| (r.uuid, r.poolname)).collect();
    let table = stats_table(&answer.stats, &pools, printer);
    printer.list(&answer, &table, "No replicas found")
}

fn stats_table(stats: &[ReplicaIoStats], pools: &HashMap<String, String>, printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&["POOL", "NAME", ">RDCNT", ">WRCNT", ">RDBYTES", ">WRBYTES"]);
    for s in stats.iter().filter_map(|s| s.stats.as_ref()) {
        table.row(vec![
            pools.get(&s.uuid).cloned().unwrap_or_else(|| "-".to_owned()),
            s.name.clone(),
            s.num_read_ops.to_string(),
            s.num_write_ops.to_string(),
            printer.size(s.bytes_read),
            printer.size(s.bytes_written),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::mayastor::v1::IoStats;
    use crate::output::Format;

    const UUID: &str = "7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c003";

    fn sample() -> ListReplicasResponse {
        let usage = ReplicaSpaceUsage {
            capacity_bytes: 10 << 20,
            allocated_bytes: 1 << 20,
            cluster_size: 4096,
            num_clusters: 2560,
            num_allocated_clusters: 256,
            ..Default::default()
        };
        let plain = Replica {
            name: "replica1".into(),
            uuid: UUID.into(),
            pooluuid: "0f1c6c3a-5c2f-4a55-9f36-1d6c8a70e001".into(),
            size: 10 << 20,
            uri: format!("bdev:///replica1?uuid={UUID}"),
            poolname: "tpool".into(),
            usage: Some(usage),
            ..Default::default()
        };
        let clone = Replica {
            name: "clone".into(),
            thin: true,
            share: 1,
            uri: format!("nvmf+tcp://127.0.0.1:8420/nqn.2019-05.io.openebs:clone?uuid={UUID}"),
            allowed_hosts: vec!["nqn.h".into()],
            is_clone: true,
            snapshot_uuid: Some(UUID.into()),
            entity_id: Some("volume".into()),
            usage: Some(ReplicaSpaceUsage {
                allocated_bytes_snapshots: 8192,
                allocated_bytes_snapshot_from_clone: Some(4096),
                ..usage
            }),
            ..plain.clone()
        };
        ListReplicasResponse { replicas: vec![plain, clone] }
    }

    #[test]
    fn list_as_table_and_json() {
        let answer = sample();
        let show = |p: &mut Printer<'_>| {
            let table = table(&answer.replicas, p);
            p.list(&answer, &table, "No replicas found").unwrap();
        };
        golden("replica_list", Format::Default, None, false, show);
        golden("replica_list_i", Format::Default, Some(Units::Binary), false, show);
        golden("replica_list_json", Format::Json, None, false, show);
    }

    #[test]
    fn counters_with_their_pool() {
        let io =
            IoStats { name: "replica1".into(), uuid: UUID.into(), num_read_ops: 3, ..Default::default() };
        let stats = [ReplicaIoStats { entity_id: None, stats: Some(io) }];
        let pools = HashMap::from([(UUID.to_owned(), "tpool".to_owned())]);
        golden("replica_stats", Format::Default, None, false, |p| {
            let table = stats_table(&stats, &pools, p);
            p.list(&Vec::<u8>::new(), &table, "").unwrap();
        });
    }

    fn request(names: &[&str], size: &str) -> Result<CreateReplicaRequest, String> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        create_request(&names, size).map_err(|e| e.to_string())
    }

    #[test]
    fn both_forms_of_create() {
        let old = request(&["tpool", "replica1"], "10").unwrap();
        assert_eq!((old.pooluuid.as_str(), old.name.as_str(), old.uuid.as_str()), ("tpool", "replica1", ""));
        assert_eq!(old.size, 10 << 20, "a bare size counts MiB");
        assert_eq!(request(&["tpool", "r"], "10MB").unwrap().size, 10_000_000);
        let new = request(&["r", UUID, "tpool"], "4096").unwrap();
        assert_eq!((new.name.as_str(), new.uuid.as_str(), new.pooluuid.as_str()), ("r", UUID, "tpool"));
        assert_eq!(new.size, 4096, "a bare size counts bytes");
        assert_eq!(request(&["r", UUID, "tpool"], "1GiB").unwrap().size, 1 << 30);
        for size in ["", "x", "-1", "18446744073709551615"] {
            assert!(request(&["tpool", "r"], size).is_err(), "{size}");
        }
    }

    #[test]
    fn uuids_are_told_from_names() {
        assert!(is_uuid(UUID));
        for text in
            ["", "replica1", "7d6f5f0e98c54f2c8f6e2f6d4bd6c003", "7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c00g"]
        {
            assert!(!is_uuid(text), "{text}");
        }
    }
}
