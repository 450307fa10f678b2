//! `snapshot`: snapshots of replicas, and clones of them.

use clap::Subcommand;

use super::Printer;
use super::replica::{PoolChoice, resolve};
use crate::mayastor::v1::{
    CreateReplicaSnapshotRequest, CreateSnapshotCloneRequest, DestroySnapshotRequest,
    ListSnapshotCloneRequest, ListSnapshotsRequest, Replica, SnapshotInfo, destroy_snapshot_request,
};
use crate::output::Table;
use crate::{Client, ClientError};

/// Commands of `snapshot`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Take a snapshot of a replica
    #[command(name = "create_for_replica", alias = "create-for-replica")]
    CreateForReplica {
        /// Uuid or name of the replica
        replica_uuid: String,
        /// Name of the snapshot, unique in its pool
        snapshot_name: String,
        /// The owner's name for it
        entity_id: String,
        /// The transaction that it belongs to
        txn_id: String,
        /// Uuid of the snapshot
        snapshot_uuid: String,
    },
    /// List snapshots
    List {
        /// Only of this replica
        source_uuid: Option<String>,
        /// Only this one
        snapshot_uuid: Option<String>,
    },
    /// Remove a snapshot; one that has clones goes with the last of them
    Destroy {
        /// Its uuid
        snapshot_uuid: String,
        /// The pool that it is in
        #[command(flatten)]
        pool: PoolChoice,
    },
    /// Make a replica that begins as a snapshot
    #[command(name = "create_clone", alias = "create-clone")]
    CreateClone {
        /// Uuid of the snapshot
        snapshot_uuid: String,
        /// Name of the new replica
        clone_name: String,
        /// Uuid of the new replica
        clone_uuid: String,
    },
    /// List clones
    #[command(name = "list_clone", alias = "list-clone")]
    ListClone {
        /// Only of this snapshot
        snapshot_uuid: Option<String>,
    },
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    match command.clone() {
        Command::CreateForReplica { replica_uuid, snapshot_name, entity_id, txn_id, snapshot_uuid } => {
            let what = format!("take snapshot \"{snapshot_name}\" of replica \"{replica_uuid}\"");
            let replica_uuid = resolve(client, &replica_uuid, &PoolChoice::default()).await?;
            let request = CreateReplicaSnapshotRequest {
                replica_uuid,
                snapshot_uuid,
                snapshot_name,
                entity_id,
                txn_id,
            };
            let answer = client.snapshot().create_replica_snapshot(request).await;
            let answer = answer.map_err(ClientError::call(&what))?.into_inner();
            let Some(snapshot) = &answer.snapshot else {
                return Err(ClientError::Incomplete { what, part: "the snapshot" });
            };
            let table = created_table(snapshot, printer);
            printer.list(&answer, &table, "")
        }
        Command::List { source_uuid, snapshot_uuid } => {
            let request = ListSnapshotsRequest { source_uuid, snapshot_uuid, query: None };
            let answer = client.snapshot().list_snapshot(request).await;
            let answer = answer.map_err(ClientError::call("list snapshots"))?.into_inner();
            let table = table(&answer.snapshots, printer);
            printer.list(&answer, &table, "No snapshots found")
        }
        Command::Destroy { snapshot_uuid, pool } => {
            let what = format!("destroy snapshot {snapshot_uuid}");
            let text = format!("snapshot: {snapshot_uuid} is deleted");
            let pool = match (pool.pool_uuid, pool.pool_name) {
                (Some(uuid), _) => Some(destroy_snapshot_request::Pool::PoolUuid(uuid)),
                (None, name) => name.map(destroy_snapshot_request::Pool::PoolName),
            };
            let request = DestroySnapshotRequest { snapshot_uuid, pool };
            client.snapshot().destroy_snapshot(request).await.map_err(ClientError::call(what))?;
            printer.text_only(&text)
        }
        Command::CreateClone { snapshot_uuid, clone_name, clone_uuid } => {
            let what = format!("make clone \"{clone_name}\" of snapshot {snapshot_uuid}");
            let request = CreateSnapshotCloneRequest { snapshot_uuid, clone_name, clone_uuid };
            let answer = client.snapshot().create_snapshot_clone(request).await;
            let answer = answer.map_err(ClientError::call(what))?.into_inner();
            let table = clone_table(std::slice::from_ref(&answer), printer);
            printer.list(&answer, &table, "")
        }
        Command::ListClone { snapshot_uuid } => {
            let request = ListSnapshotCloneRequest { snapshot_uuid };
            let answer = client.snapshot().list_snapshot_clone(request).await;
            let answer = answer.map_err(ClientError::call("list clones"))?.into_inner();
            let table = clone_table(&answer.replicas, printer);
            printer.list(&answer, &table, "No clones found")
        }
    }
}

fn time(snapshot: &SnapshotInfo) -> String {
    snapshot.timestamp.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn created_table(s: &SnapshotInfo, printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&[
        "SNAP_UUID",
        "SNAP_NAME",
        "SNAP_SIZE",
        "CREATE_TIME",
        "CLONES",
        "SOURCE_UUID",
        "SOURCE_SIZE",
        "POOL_UUID",
        "ENTITY_ID",
        "TXN_ID",
        "VALID_SNAPSHOT",
        "discarded_snapshot",
    ]);
    table.row(common_cells(s, printer));
    table
}

fn table(snapshots: &[SnapshotInfo], printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&[
        "SNAP_UUID",
        "SNAP_NAME",
        "SNAP_SIZE",
        "CREATE_TIME",
        "CLONES",
        "REPLICA_UUID",
        "REPLICA_SIZE",
        "POOL_UUID",
        "ENTITY_ID",
        "TXN_ID",
        "VALID_SNAPSHOT",
        "DISCARD_SNAPSHOT",
        "ANCESTOR_SIZE",
    ]);
    for s in snapshots {
        let mut cells = common_cells(s, printer);
        cells.push(printer.size(s.referenced_bytes));
        table.row(cells);
    }
    table
}

fn common_cells(s: &SnapshotInfo, printer: &Printer<'_>) -> Vec<String> {
    vec![
        s.snapshot_uuid.clone(),
        s.snapshot_name.clone(),
        printer.size(s.snapshot_size),
        time(s),
        s.num_clones.to_string(),
        s.source_uuid.clone(),
        printer.size(s.source_size),
        s.pool_uuid.clone(),
        s.entity_id.clone(),
        s.txn_id.clone(),
        s.valid_snapshot.to_string(),
        s.discarded_snapshot.to_string(),
    ]
}

fn clone_table(clones: &[Replica], printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&[
        "CLONE_NAME",
        "CLONE_UUID",
        "CLONE_CAPACITY",
        "CLONE_ALLOC",
        "THIN",
        "POOL",
        "IS_CLONE",
        "SNAPSHOT_UUID",
    ]);
    for c in clones {
        table.row(vec![
            c.name.clone(),
            c.uuid.clone(),
            printer.size(c.usage.map_or(c.size, |u| u.capacity_bytes)),
            printer.size(c.usage.map_or(0, |u| u.allocated_bytes)),
            c.thin.to_string(),
            c.poolname.clone(),
            c.is_clone.to_string(),
            c.snapshot_uuid.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::mayastor::v1::{CreateReplicaSnapshotResponse, ListSnapshotsResponse};
    use crate::output::Format;

    fn sample() -> SnapshotInfo {
        SnapshotInfo {
            snapshot_uuid: "b7f9a0c1-2a2b-4a8e-8b34-52f4be1f0001".into(),
            snapshot_name: "9f8e7d6c-0000-4000-8000-000000000001/1".into(),
            snapshot_size: 8192,
            num_clones: 1,
            timestamp: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            source_uuid: "7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c003".into(),
            source_size: 10 << 20,
            pool_uuid: "0f1c6c3a-5c2f-4a55-9f36-1d6c8a70e001".into(),
            pool_name: "tpool".into(),
            entity_id: "volume".into(),
            txn_id: "1".into(),
            valid_snapshot: true,
            referenced_bytes: 4096,
            ..Default::default()
        }
    }

    #[test]
    fn tables_and_json() {
        let list = ListSnapshotsResponse { snapshots: vec![sample()] };
        let show = |p: &mut Printer<'_>| {
            let table = table(&list.snapshots, p);
            p.list(&list, &table, "No snapshots found").unwrap();
        };
        golden("snapshot_list", Format::Default, None, false, show);
        golden("snapshot_list_json", Format::Json, None, false, show);
        let created = CreateReplicaSnapshotResponse { replica_uuid: "r".into(), snapshot: Some(sample()) };
        golden("snapshot_create", Format::Default, None, false, |p| {
            let table = created_table(&sample(), p);
            p.list(&created, &table, "").unwrap();
        });
        let clone =
            Replica { name: "c".into(), thin: true, is_clone: true, size: 4096, ..Default::default() };
        golden("snapshot_clones", Format::Default, None, false, |p| {
            let table = clone_table(std::slice::from_ref(&clone), p);
            p.list(&clone, &table, "").unwrap();
        });
    }
}
