//! Pools, replicas and snapshots as the API shows them.
//!
//! Where Mayastor counts clusters, this counts the store's blocks: `cluster_size` is 4096, the unit in which space is
//! allocated, and every figure is exact in it.

use std::collections::HashMap;
use std::time::SystemTime;

use lvs::BLOCK_BYTES;
use lvs::info::{
    DiskInfo, DiskState, Harm, HarmKind, IoStats as StoreStats, PoolInfo, ScrubReport, ScrubState,
    SnapshotInfo as StoreSnapshot,
};
use rpc::keelson::v1 as own;
use rpc::mayastor::v1::{
    IoStats, Pool, PoolMetadataInfo, PoolState, PoolType, Replica, ReplicaSpaceUsage, ShareProtocol,
    SnapshotInfo,
};
use uuid::Uuid;

use crate::engine::Engine;
use crate::pools::lifecycle::volume_uri;
use crate::pools::{FoundReplica, FoundSnapshot, PoolEntry};

/// Ticks of a second. Latencies are not kept: they are all 0, and a client that divides by the rate may.
const TICK_RATE: u64 = 1_000_000_000;

pub(super) fn pool(entry: &PoolEntry, info: &PoolInfo) -> Pool {
    let block = u64::from(BLOCK_BYTES);
    // Nothing is reserved for the map: what is free may become pages of it.
    let free_pages = u64::from(info.segments.1) * info.segment_bytes / block;
    Pool {
        uuid: info.uuid.to_string(),
        name: info.name.clone(),
        disks: entry.members.iter().map(|m| m.uri.clone()).collect(),
        state: match (&info.fault, &info.read_only) {
            (Some(_), _) => PoolState::PoolFaulted,
            (None, Some(_)) => PoolState::PoolDegraded,
            (None, None) => PoolState::PoolOnline,
        }
        .into(),
        capacity: info.capacity_bytes,
        used: info.used_bytes,
        pooltype: PoolType::Lvs.into(),
        committed: info.committed_bytes,
        cluster_size: BLOCK_BYTES,
        page_size: Some(BLOCK_BYTES),
        disk_capacity: info.raw_bytes,
        md_info: Some(PoolMetadataInfo {
            md_page_size: BLOCK_BYTES,
            md_pages: info.map_pages.saturating_add(free_pages),
            md_used_pages: info.map_pages,
        }),
    }
}

/// Disks, and why those that are being emptied could not be.
pub(super) fn disks(disks: Vec<(DiskInfo, Option<String>)>) -> own::ListDisksResponse {
    let shown = |(disk, error): (DiskInfo, Option<String>)| own::Disk {
        index: disk.index,
        uuid: disk.uuid.to_string(),
        name: disk.name,
        state: match disk.state {
            DiskState::Active => own::DiskState::Active,
            DiskState::Evacuating => own::DiskState::Evacuating,
            DiskState::Missing => own::DiskState::Missing,
        }
        .into(),
        size_bytes: disk.size_bytes,
        used_bytes: disk.used_bytes,
        live_bytes: disk.live_bytes,
        error: error.unwrap_or_default(),
    };
    own::ListDisksResponse { disks: disks.into_iter().map(shown).collect() }
}

/// The scrub of a pool.
pub(super) fn scrub(pool: String, report: ScrubReport) -> own::Scrub {
    let harm = |harm: Harm| own::Harm {
        uuid: harm.uuid.to_string(),
        name: harm.name,
        is_snapshot: harm.snapshot,
        offset_bytes: harm.offset_bytes,
        len_bytes: harm.len_bytes,
        kind: match harm.kind {
            HarmKind::Checksum => own::HarmKind::Checksum,
            HarmKind::Unreadable => own::HarmKind::Unreadable,
            HarmKind::Map => own::HarmKind::Map,
        }
        .into(),
    };
    own::Scrub {
        pool,
        state: match report.state {
            ScrubState::Never => own::ScrubState::Never,
            ScrubState::Running => own::ScrubState::Running,
            ScrubState::Finished => own::ScrubState::Finished,
            ScrubState::Stopped => own::ScrubState::Stopped,
            ScrubState::Failed => own::ScrubState::Failed,
        }
        .into(),
        failure: report.failure.unwrap_or_default(),
        started: report.started.map(timestamp),
        ended: report.ended.map(timestamp),
        rate_bytes_per_s: report.rate_bytes_s,
        data_bytes_in_all: report.data_bytes_in_all,
        data_bytes: report.data_bytes,
        read_bytes: report.read_bytes,
        map_pages: report.map_pages,
        tables: report.tables,
        superblocks: report.superblocks,
        wrong_checksums: report.wrong_checksums,
        unreadable: report.unreadable,
        repaired: report.repaired,
        harmed: report.harmed.into_iter().map(harm).collect(),
        harmed_left_out: report.harmed_left_out,
        metadata: report.metadata,
        metadata_left_out: report.metadata_left_out,
    }
}

/// What volumes read from: the snapshots that they were cloned from, and what those were cloned from.
pub(super) struct Ancestry {
    snapshots: HashMap<Uuid, StoreSnapshot>,
    /// Clones, and what they were cloned from.
    clones: HashMap<Uuid, Uuid>,
}

impl Ancestry {
    pub(super) fn new(replicas: &[FoundReplica], snapshots: &[FoundSnapshot]) -> Self {
        Self {
            snapshots: snapshots.iter().map(|s| (s.info.uuid, s.info.clone())).collect(),
            clones: replicas.iter().filter_map(|r| Some((r.info.uuid, r.info.clone_of?))).collect(),
        }
    }

    /// Bytes held by snapshot `of` and everything before it, over all the lines that it descends from.
    fn held_up_to(&self, of: Uuid) -> u64 {
        let (mut bytes, mut next) = (0_u64, Some(of));
        // Each snapshot once at most: what a pool says must not make this endless.
        for _ in 0..=self.snapshots.len() {
            let Some(snapshot) = next.and_then(|uuid| self.snapshots.get(&uuid)) else { break };
            bytes = bytes.saturating_add(snapshot.allocated_bytes).saturating_add(snapshot.ancestors_bytes);
            next = snapshot.source.and_then(|source| self.clones.get(&source)).copied();
        }
        bytes
    }
}

fn usage(size: u64, allocated: u64, ancestors: u64, own_snapshots: Option<u64>) -> ReplicaSpaceUsage {
    let block = u64::from(BLOCK_BYTES);
    ReplicaSpaceUsage {
        capacity_bytes: size,
        allocated_bytes: allocated,
        cluster_size: block,
        num_clusters: size.div_ceil(block),
        num_allocated_clusters: allocated.div_ceil(block),
        allocated_bytes_snapshots: ancestors,
        num_allocated_clusters_snapshots: ancestors.div_ceil(block),
        allocated_bytes_snapshot_from_clone: own_snapshots,
    }
}

pub(super) fn replica(engine: &Engine, found: &FoundReplica, ancestry: &Ancestry) -> Replica {
    let info = &found.info;
    let shared = engine.share_uri(&info.name).filter(|_| info.properties.shared);
    let uri = match &shared {
        Some(uri) => format!("{uri}?uuid={}", info.uuid),
        None => volume_uri(&info.name, info.uuid),
    };
    let origins = info.clone_of.map_or(0, |snapshot| ancestry.held_up_to(snapshot));
    let ancestors = info.snapshots_bytes.saturating_add(origins);
    let own_snapshots = info.clone_of.map(|_| info.snapshots_bytes);
    Replica {
        name: info.name.clone(),
        uuid: info.uuid.to_string(),
        pooluuid: found.entry.pool.uuid().to_string(),
        size: info.size_bytes,
        thin: info.thin,
        share: if shared.is_some() { ShareProtocol::Nvmf } else { ShareProtocol::None }.into(),
        uri,
        poolname: found.entry.pool.name().to_owned(),
        usage: Some(usage(info.size_bytes, info.allocated_bytes, ancestors, own_snapshots)),
        allowed_hosts: info.properties.allowed_hosts.clone(),
        is_snapshot: false,
        is_clone: info.clone_of.is_some(),
        snapshot_uuid: info.clone_of.map(|u| u.to_string()),
        entity_id: info.properties.entity_id.clone(),
        pooltype: PoolType::Lvs.into(),
    }
}

/// A snapshot in the list of replicas.
pub(super) fn snapshot_as_replica(found: &FoundSnapshot, ancestry: &Ancestry) -> Replica {
    let info = &found.info;
    let of_clone = info.source.is_some_and(|source| ancestry.clones.contains_key(&source));
    let ancestors = ancestry.held_up_to(info.uuid).saturating_sub(info.allocated_bytes);
    let own = of_clone.then_some(info.ancestors_bytes);
    Replica {
        name: info.name.clone(),
        uuid: info.uuid.to_string(),
        pooluuid: found.entry.pool.uuid().to_string(),
        size: info.size_bytes,
        thin: true,
        share: ShareProtocol::None.into(),
        uri: volume_uri(&info.name, info.uuid),
        poolname: found.entry.pool.name().to_owned(),
        usage: Some(usage(info.size_bytes, info.allocated_bytes, ancestors, own)),
        allowed_hosts: Vec::new(),
        is_snapshot: true,
        is_clone: false,
        snapshot_uuid: None,
        entity_id: Some(info.entity_id.clone()),
        pooltype: PoolType::Lvs.into(),
    }
}

pub(super) fn snapshot(found: &FoundSnapshot) -> SnapshotInfo {
    let info = &found.info;
    SnapshotInfo {
        snapshot_uuid: info.uuid.to_string(),
        snapshot_name: info.name.clone(),
        snapshot_size: info.allocated_bytes,
        num_clones: info.clones.into(),
        timestamp: Some(timestamp(info.created)),
        source_uuid: info.source.map(|u| u.to_string()).unwrap_or_default(),
        source_size: info.size_bytes,
        pool_uuid: found.entry.pool.uuid().to_string(),
        pool_name: found.entry.pool.name().to_owned(),
        entity_id: info.entity_id.clone(),
        txn_id: info.txn_id.clone(),
        // A record of the catalogue has all of them or is none.
        valid_snapshot: true,
        ready_as_source: false,
        referenced_bytes: info.ancestors_bytes,
        discarded_snapshot: info.discarded,
    }
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

pub(super) fn stats(name: &str, uuid: Uuid, io: StoreStats) -> IoStats {
    IoStats {
        name: name.to_owned(),
        uuid: uuid.to_string(),
        num_read_ops: io.reads,
        bytes_read: io.read_bytes,
        num_write_ops: io.writes,
        bytes_written: io.written_bytes,
        num_unmap_ops: io.unmaps,
        bytes_unmapped: io.unmapped_bytes,
        tick_rate: TICK_RATE,
        ..IoStats::default()
    }
}
