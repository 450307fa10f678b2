//! `bdev`: block devices of the daemon.

use clap::{Subcommand, ValueEnum};

use super::{Empty, Printer};
use crate::mayastor::v1::{
    Bdev, BdevShareRequest, BdevUnshareRequest, CreateBdevRequest, DestroyBdevRequest, ListBdevOptions,
    ListBdevResponse, ShareProtocol,
};
use crate::output::Table;
use crate::{Client, ClientError};

/// Commands of `bdev`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List block devices
    List,
    /// Open a device by its URI
    #[command(after_help = "Examples:\n  \
        keelson bdev create 'malloc:///ram0?size_mb=64'\n  \
        keelson bdev create 'aio:///var/lib/disk.img?blk_size=4096'\n  \
        keelson bdev create 'nvmf+tcp://10.0.0.2:8420/nqn.2019-05.io.openebs:disk0'")]
    Create {
        /// Scheme, place and parameters
        uri: String,
    },
    /// Unshare a device and close it; its data stays
    Destroy {
        /// As `bdev list` shows it
        name: String,
    },
    /// Export a device over NVMe/TCP
    Share {
        /// As `bdev list` shows it
        name: String,
        /// How
        #[arg(short, long, value_enum, ignore_case = true, default_value_t = Protocol::Nvmf)]
        protocol: Protocol,
        /// NQN of a host that may connect; repeat for more. None = any host
        #[arg(long = "allowed-host", value_name = "NQN")]
        allowed_hosts: Vec<String>,
    },
    /// End the export of a device
    Unshare {
        /// As `bdev list` shows it
        name: String,
    },
}

/// What `-p` takes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// NVMe over Fabrics
    Nvmf,
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    match command {
        Command::List => list(client, printer).await,
        Command::Create { uri } => create(client, uri, printer).await,
        Command::Destroy { name } => destroy(client, name, printer).await,
        Command::Share { name, protocol: Protocol::Nvmf, allowed_hosts } => {
            share(client, name, allowed_hosts, printer).await
        }
        Command::Unshare { name } => {
            unshare(client, name).await?;
            printer.line(&Empty {}, name)
        }
    }
}

async fn list(client: &Client, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    let answer = fetch(client, None).await?;
    let table = table(&answer.bdevs, printer);
    printer.list(&answer, &table, "No bdevs found")
}

async fn fetch(client: &Client, name: Option<String>) -> Result<ListBdevResponse, ClientError> {
    let answer = client.bdev().list(ListBdevOptions { name }).await;
    Ok(answer.map_err(ClientError::call("list block devices"))?.into_inner())
}

fn table(bdevs: &[Bdev], printer: &Printer<'_>) -> Table {
    let mut table =
        Table::new(&["UUID", "NUM_BLOCKS", "BLK_SIZE", "CAPACITY", "CLAIMED_BY", "NAME", "SHARE_URI"]);
    for b in bdevs {
        table.row(vec![
            b.uuid.clone(),
            b.num_blocks.to_string(),
            b.blk_size.to_string(),
            printer.size(b.num_blocks.saturating_mul(u64::from(b.blk_size))),
            b.claimed_by.clone(),
            b.name.clone(),
            b.share_uri.clone(),
        ]);
    }
    table
}

async fn create(client: &Client, uri: &str, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    let what = format!("create a block device from \"{uri}\"");
    let request = CreateBdevRequest { uri: uri.to_owned() };
    let answer = client.bdev().create(request).await.map_err(ClientError::call(&what))?.into_inner();
    let Some(bdev) = &answer.bdev else {
        return Err(ClientError::Incomplete { what, part: "the device" });
    };
    printer.line(&answer, &bdev.name)
}

/// The API destroys by URI, people by name.
async fn destroy(client: &Client, name: &str, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    let found = fetch(client, Some(name.to_owned())).await?.bdevs.into_iter().next();
    let Some(bdev) = found else {
        return Err(ClientError::NotFound { kind: "Block device", name: name.to_owned(), list: "bdev list" });
    };
    unshare(client, name).await?;
    let request = DestroyBdevRequest { uri: bdev.uri };
    let answer = client.bdev().destroy(request).await;
    answer.map_err(ClientError::call(format!("destroy block device \"{name}\"")))?;
    printer.line(&Empty {}, name)
}

async fn share(
    client: &Client,
    name: &str,
    allowed_hosts: &[String],
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let what = format!("share block device \"{name}\"");
    let request = BdevShareRequest {
        name: name.to_owned(),
        protocol: ShareProtocol::Nvmf.into(),
        allowed_hosts: allowed_hosts.to_vec(),
    };
    let answer = client.bdev().share(request).await.map_err(ClientError::call(&what))?.into_inner();
    let Some(bdev) = &answer.bdev else {
        return Err(ClientError::Incomplete { what, part: "the device" });
    };
    printer.line(&answer, &bdev.uri)
}

async fn unshare(client: &Client, name: &str) -> Result<(), ClientError> {
    let answer = client.bdev().unshare(BdevUnshareRequest { name: name.to_owned() }).await;
    answer.map_err(ClientError::call(format!("unshare block device \"{name}\"")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::output::{Format, Units};

    fn sample() -> ListBdevResponse {
        let bdev = |name: &str, blocks, claimed_by: &str, share_uri: &str| Bdev {
            name: name.into(),
            uuid: "5f9a3a4e-0c1b-4b7e-9d57-0b1c52f7a001".into(),
            num_blocks: blocks,
            blk_size: 512,
            claimed: claimed_by != "Orphaned",
            claimed_by: claimed_by.into(),
            aliases: String::new(),
            uri: format!("malloc:///{name}?size_mb=64&uuid=5f9a3a4e-0c1b-4b7e-9d57-0b1c52f7a001"),
            product_name: "malloc".into(),
            share_uri: share_uri.into(),
        };
        ListBdevResponse {
            bdevs: vec![
                bdev("ram0", 131_072, "Orphaned", "bdev:///ram0"),
                bdev(
                    "a-longer-name",
                    2_097_152,
                    "NVMe-oF Target",
                    "nvmf+tcp://127.0.0.1:8420/nqn.2019-05.io.openebs:a-longer-name",
                ),
            ],
        }
    }

    #[test]
    fn list_as_table_and_json() {
        let answer = sample();
        let show = |p: &mut Printer<'_>| {
            let table = table(&answer.bdevs, p);
            p.list(&answer, &table, "No bdevs found").unwrap();
        };
        golden("bdev_list", Format::Default, None, false, show);
        golden("bdev_list_i", Format::Default, Some(Units::Binary), false, show);
        golden("bdev_list_quiet", Format::Default, None, true, show);
        golden("bdev_list_json", Format::Json, None, false, show);
    }

    #[test]
    fn an_empty_list_is_a_notice() {
        let show = |p: &mut Printer<'_>| {
            let table = table(&[], p);
            p.list(&ListBdevResponse::default(), &table, "No bdevs found").unwrap();
        };
        golden("bdev_none", Format::Default, None, false, show);
        golden("bdev_none_quiet", Format::Default, None, true, show);
        golden("bdev_none_json", Format::Json, None, false, show);
    }
}
