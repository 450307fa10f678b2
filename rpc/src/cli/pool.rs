//! `pool`: storage of one or more disks.

use clap::{Args, Subcommand, ValueEnum};

use super::{Printer, disks, scrub};
use crate::keelson::v1::{
    CreatePoolRequest as OwnCreatePoolRequest, ImportPoolRequest as OwnImportPoolRequest,
};
use crate::mayastor::v1::{
    CreatePoolRequest, DestroyPoolRequest, ExportPoolRequest, GrowPoolRequest, GrowPoolResponse,
    ImportPoolRequest, ListPoolOptions, Pool, PoolMetadataArgs, PoolState, PoolType, PoolTypeValue,
};
use crate::output::{Table, parse_size};
use crate::{Client, ClientError};

/// Commands of `pool`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Make a pool of disks; one that is on them already is imported
    #[command(after_help = "Examples:\n  \
        keelson pool create tpool /dev/sdb\n  \
        keelson pool create fast /dev/nvme0n1 /dev/nvme1n1\n  \
        keelson pool create small 'aio:///var/lib/disk.img?blk_size=4096'\n\n\
        A disk that holds something else is refused, unless --force is given.")]
    Create {
        /// Its name
        name: String,
        /// Paths or device URIs
        #[arg(required = true, value_name = "DISK")]
        disks: Vec<String>,
        /// Its identity; chosen when left out
        #[arg(long)]
        uuid: Option<String>,
        /// Accepted from scripts for Mayastor: space is allocated in units of 4 KiB whatever it says
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        cluster_size: Option<u64>,
        /// Accepted from scripts for Mayastor: metadata takes what it needs, nothing is reserved
        #[arg(long, value_name = "RATIO")]
        md_resv_ratio: Option<f32>,
        /// Kind of pool
        #[arg(short = 't', long = "type", value_enum, default_value_t, value_name = "TYPE")]
        kind: Kind,
        /// Take the disks whatever is on them; what is on them is lost
        #[arg(long, conflicts_with_all = ["cluster_size", "md_resv_ratio"])]
        force: bool,
    },
    /// Open the pool that is on the disks
    Import {
        /// Its name
        name: String,
        /// Paths or device URIs: all disks of the pool
        #[arg(required = true, value_name = "DISK")]
        disks: Vec<String>,
        /// Refuse a pool of another uuid
        #[arg(short, long)]
        uuid: Option<String>,
        /// Kind of pool
        #[arg(short = 't', long = "type", value_enum, default_value_t, value_name = "TYPE")]
        kind: Kind,
        /// With disks missing: open it for reading only; what is on the missing disks cannot be read
        #[arg(long)]
        degraded: bool,
    },
    /// Add a disk to a pool in use
    AddDisk {
        /// Name or uuid of the pool
        pool: String,
        /// Path or device URI
        disk: String,
        /// Take the disk whatever is on it; what is on it is lost
        #[arg(long)]
        force: bool,
    },
    /// Empty a disk, while the pool is in use, and remove it
    #[command(
        after_help = "What is on the disk is moved to the others, which takes a while; then it is erased. \
        It goes on after a restart of the daemon, and when this command is interrupted."
    )]
    RemoveDisk {
        /// Name or uuid of the pool
        pool: String,
        /// Path, device URI, or uuid of the disk
        disk: String,
        /// Only begin; `pool disks` says how far it is
        #[arg(long)]
        no_wait: bool,
    },
    /// List the disks of a pool
    Disks {
        /// Name or uuid of the pool
        pool: String,
    },
    /// Read and verify everything in a pool, while it is in use
    #[command(after_help = SCRUB_HELP)]
    Scrub(ScrubArgs),
    /// Remove a pool with all its replicas and snapshots
    Destroy(Which),
    /// Close a pool; it stays on its disks and can be imported, here or elsewhere
    Export(Which),
    /// Use what the disks have become larger by
    Grow(Which),
    /// List pools
    List {
        /// Only this one
        name: Option<String>,
        /// Only the one with this uuid
        uuid: Option<String>,
        /// Only those of this kind
        #[arg(short = 't', long = "type", value_enum, value_name = "TYPE")]
        kind: Option<Kind>,
    },
}

const SCRUB_HELP: &str = "\
Examples:
  keelson pool scrub tpool
  keelson pool scrub tpool --rate 50MiB/s --wait
  keelson pool scrub tpool --status -o json

Every block of every replica and snapshot, every page of the map, tables, anchors and labels, with their copies, are
read from the disks and compared with their checksums. It reads at most --rate bytes a second, and less while replicas
are in use. What has another good copy is written anew; what is lost is named. It goes on when this command is
interrupted, ends when the pool is closed, and its result is kept until then.";

/// Flags of `pool scrub`.
#[derive(Args, Clone, Debug)]
pub struct ScrubArgs {
    /// Name or uuid of the pool
    pub(super) pool: String,
    /// Bytes a second that it reads at most, such as 100MiB/s; 200MiB/s when left out
    #[arg(long, value_name = "RATE", value_parser = scrub::parse_rate)]
    pub(super) rate: Option<u64>,
    /// Wait for its end; fails when something is wrong that could not be repaired
    #[arg(long)]
    pub(super) wait: bool,
    /// Stop the one that runs
    #[arg(long, conflicts_with_all = ["rate", "wait"])]
    pub(super) stop: bool,
    /// Begin none: show how far the one is that runs, or what the last one found
    #[arg(long, conflicts_with_all = ["rate", "stop"])]
    pub(super) status: bool,
}

/// Names a pool.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// Its name
    name: String,
    /// Refuse a pool of another uuid
    #[arg(short, long)]
    uuid: Option<String>,
    /// Kind of pool
    #[arg(short = 't', long = "type", value_enum, default_value_t, value_name = "TYPE")]
    kind: Kind,
}

/// What `-t` takes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// Keelson's own store
    #[default]
    Lvs,
    /// Linux LVM
    Lvm,
}

impl From<Kind> for PoolType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Lvs => Self::Lvs,
            Kind::Lvm => Self::Lvm,
        }
    }
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    match command {
        Command::Create { name, .. } | Command::Import { name, .. } => {
            let pool = create_or_import(client, command, name).await?;
            printer.line(&pool, &pool.name)
        }
        Command::AddDisk { .. } | Command::RemoveDisk { .. } | Command::Disks { .. } => {
            disks::run(client, command, printer).await
        }
        Command::Scrub(args) => scrub::run(client, args, printer).await,
        Command::Destroy(which) => {
            let request = DestroyPoolRequest { name: which.name.clone(), uuid: which.uuid.clone() };
            let answer = client.pool().destroy_pool(request).await;
            answer.map_err(ClientError::call(format!("destroy pool \"{}\"", which.name)))?;
            printer.text_only(&format!("pool: {} is deleted", which.name))
        }
        Command::Export(which) => {
            let request = ExportPoolRequest { name: which.name.clone(), uuid: which.uuid.clone() };
            let answer = client.pool().export_pool(request).await;
            answer.map_err(ClientError::call(format!("export pool \"{}\"", which.name)))?;
            printer.text_only(&format!("pool: {} is exported", which.name))
        }
        Command::Grow(which) => {
            let request = GrowPoolRequest { name: which.name.clone(), uuid: which.uuid.clone() };
            let answer = client.pool().grow_pool(request).await;
            let answer = answer.map_err(ClientError::call(format!("grow pool \"{}\"", which.name)))?;
            printer.text(&grown(&answer.into_inner()))
        }
        Command::List { name, uuid, kind } => {
            let pooltype = kind.map(|k| PoolTypeValue { value: PoolType::from(k).into() });
            let request = ListPoolOptions { name: name.clone(), pooltype, uuid: uuid.clone() };
            let answer = client.pool().list_pools(request).await;
            let answer = answer.map_err(ClientError::call("list pools"))?.into_inner();
            let table = table(&answer.pools, printer);
            printer.list(&answer, &table, "No pools found")
        }
    }
}

async fn create_or_import(client: &Client, command: &Command, name: &str) -> Result<Pool, ClientError> {
    let paths = |disks: &[String]| disks.iter().map(|d| absolute(d)).collect::<Result<Vec<_>, _>>();
    let name = name.to_owned();
    let (verb, answer) = match command.clone() {
        Command::Create { disks, uuid, force: true, .. } => {
            let request =
                OwnCreatePoolRequest { name: name.clone(), uuid, disks: paths(&disks)?, force: true };
            ("create", client.own_pool().create_pool(request).await)
        }
        Command::Create { disks, uuid, cluster_size, md_resv_ratio, kind, .. } => {
            let request = CreatePoolRequest {
                name: name.clone(),
                uuid,
                disks: paths(&disks)?,
                pooltype: PoolType::from(kind).into(),
                // What does not fit is refused by the daemon, as too large.
                cluster_size: cluster_size.map(|s| u32::try_from(s).unwrap_or(u32::MAX)),
                md_args: md_resv_ratio.map(|r| PoolMetadataArgs { md_resv_ratio: Some(r) }),
            };
            ("create", client.pool().create_pool(request).await)
        }
        Command::Import { disks, uuid, degraded: true, .. } => {
            let request =
                OwnImportPoolRequest { name: name.clone(), uuid, disks: paths(&disks)?, degraded: true };
            ("import", client.own_pool().import_pool(request).await)
        }
        Command::Import { disks, uuid, kind, .. } => {
            let disks = paths(&disks)?;
            let pooltype = PoolType::from(kind).into();
            let request = ImportPoolRequest { name: name.clone(), uuid, disks, pooltype };
            ("import", client.pool().import_pool(request).await)
        }
        _ => unreachable!("invariant: called for these two"),
    };
    Ok(answer.map_err(ClientError::call(format!("{verb} pool \"{name}\"")))?.into_inner())
}

/// The daemon runs elsewhere: a relative path means the folder of whoever types it.
pub(super) fn absolute(disk: &str) -> Result<String, ClientError> {
    if disk.is_empty() || disk.contains("://") || disk.starts_with('/') {
        return Ok(disk.to_owned());
    }
    Ok(std::path::absolute(disk)?.to_string_lossy().into_owned())
}

fn grown(answer: &GrowPoolResponse) -> String {
    let capacity = |pool: &Option<Pool>| pool.as_ref().map_or(0, |p| p.capacity);
    let (before, after) = (capacity(&answer.previous_pool), capacity(&answer.current_pool));
    if before == after {
        format!("Pool capacity did not change: {after} bytes")
    } else {
        format!("Pool capacity was {before}, now {after} bytes")
    }
}

fn state(state: i32) -> &'static str {
    match PoolState::try_from(state) {
        Ok(PoolState::PoolOnline) => "online",
        Ok(PoolState::PoolDegraded) => "degraded",
        Ok(PoolState::PoolFaulted) => "faulted",
        Ok(PoolState::PoolUnknown) | Err(_) => "unknown",
    }
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.2}%", part as f64 * 100.0 / whole as f64),
    }
}

fn table(pools: &[Pool], printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "UUID",
        "STATE",
        "CAPACITY",
        "USED",
        "USED%",
        "CLUSTER_SIZE",
        "PAGE_SIZE",
        "MD_PAGE_SIZE",
        "MD_PAGES",
        "MD_USED_PAGES",
        "MD_USED%",
        "DISKS",
        "DISK_CAPACITY",
    ]);
    let dash = || "-".to_owned();
    for p in pools {
        let md = p.md_info.as_ref();
        table.row(vec![
            p.name.clone(),
            p.uuid.clone(),
            state(p.state).to_owned(),
            printer.size(p.capacity),
            printer.size(p.used),
            percent(p.used, p.capacity),
            printer.size(p.cluster_size.into()),
            p.page_size.map_or_else(dash, |s| printer.size(s.into())),
            md.map_or_else(dash, |m| printer.size(m.md_page_size.into())),
            md.map_or_else(dash, |m| m.md_pages.to_string()),
            md.map_or_else(dash, |m| m.md_used_pages.to_string()),
            md.map_or_else(dash, |m| percent(m.md_used_pages, m.md_pages)),
            p.disks.join(" "),
            printer.size(p.disk_capacity),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::mayastor::v1::{ListPoolsResponse, PoolMetadataInfo};
    use crate::output::{Format, Units};

    fn sample() -> ListPoolsResponse {
        let pool = |name: &str, used, md_info| Pool {
            uuid: "0f1c6c3a-5c2f-4a55-9f36-1d6c8a70e001".into(),
            name: name.into(),
            disks: vec!["aio:///dev/sdb?uuid=1".into(), "aio:///dev/sdc?uuid=2".into()],
            state: PoolState::PoolOnline.into(),
            capacity: 96 << 20,
            used,
            pooltype: 0,
            committed: 10 << 20,
            cluster_size: 4096,
            page_size: Some(4096),
            disk_capacity: 100 << 20,
            md_info,
        };
        let md = PoolMetadataInfo { md_page_size: 4096, md_pages: 300, md_used_pages: 3 };
        let odd = Pool { state: 9, page_size: None, capacity: 0, ..pool("odd", 0, None) };
        ListPoolsResponse { pools: vec![pool("tpool", 24 << 20, Some(md)), odd] }
    }

    #[test]
    fn list_as_table_and_json() {
        let answer = sample();
        let show = |p: &mut Printer<'_>| {
            let table = table(&answer.pools, p);
            p.list(&answer, &table, "No pools found").unwrap();
        };
        golden("pool_list", Format::Default, None, false, show);
        golden("pool_list_i", Format::Default, Some(Units::Binary), false, show);
        golden("pool_list_json", Format::Json, None, false, show);
    }

    #[test]
    fn what_has_no_json_is_silent_there() {
        let show = |p: &mut Printer<'_>| p.text_only("pool: a is deleted").unwrap();
        golden("pool_destroy", Format::Default, None, false, show);
        golden("bdev_none_quiet", Format::Json, None, false, show);
    }

    #[test]
    fn growth_in_words() {
        let pool = |capacity| Some(Pool { capacity, ..Pool::default() });
        let answer = |a, b| GrowPoolResponse { previous_pool: pool(a), current_pool: pool(b) };
        assert_eq!(grown(&answer(5, 5)), "Pool capacity did not change: 5 bytes");
        assert_eq!(grown(&answer(5, 6)), "Pool capacity was 5, now 6 bytes");
    }

    #[test]
    fn relative_paths_are_completed_here() {
        for text in ["/dev/sdb", "malloc:///a?size_mb=1", ""] {
            assert_eq!(absolute(text).unwrap(), text);
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("disk.img").unwrap(), here.join("disk.img").to_str().unwrap());
    }
}
