//! `pool add-disk`, `pool remove-disk`, `pool disks`.

use std::time::Duration;

use super::Printer;
use super::pool::{Command, absolute};
use crate::keelson::v1::{
    AddDiskRequest, Disk, DiskState, ListDisksRequest, ListDisksResponse, RemoveDiskRequest,
};
use crate::output::Table;
use crate::{Client, ClientError};

/// How often `remove-disk` looks how far it is.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    match command {
        Command::AddDisk { pool, disk, force } => {
            let disk = absolute(disk)?;
            let request = AddDiskRequest { pool: pool.clone(), disk: disk.clone(), force: *force };
            let answer = client.own_pool().add_disk(request).await;
            let what = format!("add disk {disk} to pool \"{pool}\"");
            let answer = answer.map_err(ClientError::call(what))?.into_inner();
            printer.line(&answer, &format!("disk {disk} is added to pool {pool}"))
        }
        Command::RemoveDisk { pool, disk, no_wait } => remove(client, pool, disk, *no_wait, printer).await,
        Command::Disks { pool } => {
            let answer = list(client, pool).await?;
            printer.list(&answer, &table(&answer.disks, printer), "No disks found")
        }
        _ => unreachable!("invariant: called for these three"),
    }
}

async fn list(client: &Client, pool: &str) -> Result<ListDisksResponse, ClientError> {
    let answer = client.own_pool().list_disks(ListDisksRequest { pool: pool.to_owned() }).await;
    Ok(answer.map_err(ClientError::call(format!("list the disks of pool \"{pool}\"")))?.into_inner())
}

/// Begins the removal, and waits for its end unless told otherwise.
async fn remove(
    client: &Client,
    pool: &str,
    disk: &str,
    no_wait: bool,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let what = || format!("remove disk {disk} from pool \"{pool}\"");
    // A uuid is not a path.
    let given = if uuid_like(disk) { disk.to_owned() } else { absolute(disk)? };
    let request = RemoveDiskRequest { pool: pool.to_owned(), disk: given.clone() };
    let answer = client.own_pool().remove_disk(request).await;
    let mut answer = answer.map_err(ClientError::call(what()))?.into_inner();
    let leaving = leaving(&answer.disks, &given).cloned();
    let from = leaving.as_ref().map_or(0, |d| d.live_bytes);
    let mut shown = None;
    while let Some(now) = leaving.as_ref().and_then(|l| answer.disks.iter().find(|d| d.uuid == l.uuid)) {
        if !now.error.is_empty() {
            return Err(ClientError::Failed { what: what(), why: now.error.clone() });
        }
        if no_wait {
            return printer.text_only(&format!("disk {disk} is being emptied"));
        }
        let progress = progress(now.live_bytes, from);
        if shown != Some(progress) {
            shown = Some(progress);
            printer.note(&format!("{progress}% moved, {} left", printer.size(now.live_bytes)));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        answer = list(client, pool).await?;
    }
    printer.text_only(&format!("disk {disk} is removed from pool {pool}"))
}

fn uuid_like(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// The disk that is being emptied because it was given as that.
fn leaving<'a>(disks: &'a [Disk], given: &str) -> Option<&'a Disk> {
    let mut leaving = disks.iter().filter(|d| d.state() == DiskState::Evacuating);
    let exact = leaving.clone().find(|d| d.uuid == given || d.name == given);
    // A URI leads to the name in ways that the daemon knows.
    exact.or_else(|| leaving.next())
}

/// Per cent of what had to be moved.
fn progress(left: u64, of: u64) -> u64 {
    let moved = u128::from(of.saturating_sub(left));
    (moved * 100).checked_div(u128::from(of)).map_or(100, |percent| percent as u64)
}

fn word(state: DiskState) -> &'static str {
    match state {
        DiskState::Active => "active",
        DiskState::Evacuating => "evacuating",
        DiskState::Missing => "missing",
        DiskState::Unspecified => "unknown",
    }
}

fn table(disks: &[Disk], printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&["INDEX", "NAME", "UUID", "STATE", "SIZE", "USED", "LIVE", "ERROR"]);
    for d in disks {
        table.row(vec![
            d.index.to_string(),
            d.name.clone(),
            d.uuid.clone(),
            word(d.state()).to_owned(),
            printer.size(d.size_bytes),
            printer.size(d.used_bytes),
            printer.size(d.live_bytes),
            if d.error.is_empty() { "-".to_owned() } else { d.error.clone() },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::output::{Format, Units};

    fn sample() -> ListDisksResponse {
        let disk = |index, name: &str, state: DiskState, error: &str| Disk {
            index,
            uuid: format!("0f1c6c3a-5c2f-4a55-9f36-1d6c8a70e00{index}"),
            name: name.into(),
            state: state.into(),
            size_bytes: 1 << 30,
            used_bytes: 64 << 20,
            live_bytes: 5 << 20,
            error: error.into(),
        };
        let disks = vec![
            disk(0, "/dev/sdb", DiskState::Active, ""),
            disk(2, "/dev/sdc", DiskState::Evacuating, "2 blocks cannot be read"),
            disk(3, "disk 3 of tpool, which is missing", DiskState::Missing, ""),
        ];
        ListDisksResponse { disks }
    }

    #[test]
    fn list_as_table_and_json() {
        let answer = sample();
        let show = |p: &mut Printer<'_>| p.list(&answer, &table(&answer.disks, p), "No disks found").unwrap();
        golden("pool_disks", Format::Default, Some(Units::Binary), false, show);
        golden("pool_disks_json", Format::Json, None, false, show);
    }

    #[test]
    fn the_disk_that_leaves_is_found_and_its_progress_is_sane() {
        let disks = sample().disks;
        assert_eq!(leaving(&disks, "/dev/sdc").map(|d| d.index), Some(2));
        assert_eq!(leaving(&disks, "aio:///dev/sdc").map(|d| d.index), Some(2));
        assert_eq!(leaving(&disks[..1], "/dev/sdb"), None);
        assert_eq!((progress(5, 10), progress(0, 0), progress(11, 10)), (50, 100, 0));
        assert!(uuid_like("0f1c6c3a-5c2f-4a55-9f36-1d6c8a70e001") && !uuid_like("/dev/sdb"));
    }
}
