//! Nexuses, their children and rebuilds as the API shows them.

use aio::BlockDevice;
use nexus::rebuild::{RebuildRecord, RebuildState, RebuildStats};
use nexus::stats::OpStats;
use nexus::{ChildInfo, ChildState as State, Fault, NexusState as Life};
use rpc::mayastor::v1::{
    Child, ChildState, ChildStateReason as Reason, IoStats, Nexus, NexusState, NvmeAnaState,
    RebuildHistoryRecord, RebuildHistoryResponse, RebuildJobState, RebuildStatsResponse,
};

use crate::engine::Engine;
use crate::nexuses::{NexusEntry, NexusInfo};

/// Ticks of a second.
const TICK_RATE: u64 = 1_000_000_000;

pub(super) fn nexus(engine: &Engine, entry: &NexusEntry, info: NexusInfo) -> Nexus {
    let published = engine.published(&entry.wish.name);
    let rebuilds = info.children.iter().filter(|(_, c)| has_rebuild(c.as_ref())).count();
    Nexus {
        name: entry.wish.name.clone(),
        uuid: entry.wish.uuid.to_string(),
        size: info.size_bytes,
        state: state(info.state).into(),
        children: info.children.into_iter().map(child).collect(),
        device_uri: published.as_ref().map(|p| p.uri.clone()).unwrap_or_default(),
        rebuilds: rebuilds as u32,
        ana_state: published.as_ref().map_or(NvmeAnaState::NvmeAnaInvalidState as i32, |p| p.ana as i32),
        allowed_hosts: published.map(|p| p.hosts).unwrap_or_default(),
    }
}

fn has_rebuild(child: Option<&ChildInfo>) -> bool {
    child.is_some_and(|c| c.rebuild_progress.is_some())
}

fn state(state: Life) -> NexusState {
    match state {
        Life::Online => NexusState::NexusOnline,
        Life::Degraded => NexusState::NexusDegraded,
        Life::Faulted => NexusState::NexusFaulted,
        Life::ShuttingDown => NexusState::NexusShuttingDown,
        Life::Shutdown => NexusState::NexusShutdown,
    }
}

fn child((uri, info): (String, Option<ChildInfo>)) -> Child {
    let Some(info) = info else {
        let (state, reason) = (ChildState::Faulted, Reason::CannotOpen);
        return Child {
            uri,
            state: state.into(),
            state_reason: reason.into(),
            rebuild_progress: -1,
            ..Child::default()
        };
    };
    let (state, reason) = child_state(info.state);
    let state = if info.is_closing { ChildState::Unknown } else { state };
    let is_member = matches!(info.state, State::Online | State::OutOfSync);
    Child {
        uri,
        state: state.into(),
        state_reason: reason.into(),
        rebuild_progress: info.rebuild_progress.map_or(-1, |p| p as i32),
        device_name: is_member.then_some(info.device),
        fault_timestamp: info.fault_time.map(Into::into),
        has_io_log: info.has_log,
    }
}

fn child_state(state: State) -> (ChildState, Reason) {
    match state {
        State::Online => (ChildState::Online, Reason::None),
        State::OutOfSync => (ChildState::Degraded, Reason::OutOfSync),
        State::Closed => (ChildState::Degraded, Reason::Closed),
        State::Faulted(Fault::NoSpace) => (ChildState::Degraded, Reason::NoSpace),
        State::Faulted(Fault::Offline) => (ChildState::Degraded, Reason::ByClient),
        State::Faulted(Fault::OfflinePermanent) => (ChildState::Faulted, Reason::ByClient),
        State::Faulted(Fault::CantOpen) => (ChildState::Faulted, Reason::CannotOpen),
        State::Faulted(Fault::TimedOut) => (ChildState::Faulted, Reason::TimedOut),
        State::Faulted(Fault::IoError) => (ChildState::Faulted, Reason::IoFailure),
        State::Faulted(Fault::RebuildFailed) => (ChildState::Faulted, Reason::RebuildFailed),
    }
}

pub(super) fn rebuild_stats(stats: &RebuildStats) -> RebuildStatsResponse {
    RebuildStatsResponse {
        blocks_total: stats.blocks_total,
        blocks_recovered: stats.blocks_recovered,
        progress: stats.progress.into(),
        blocks_per_task: stats.segment_blocks,
        block_size: stats.block_size,
        tasks_total: stats.tasks_total.into(),
        tasks_active: stats.tasks_active.into(),
        blocks_transferred: stats.blocks_recovered,
        blocks_remaining: stats.blocks_remaining,
        is_partial: stats.is_partial,
        start_time: Some(stats.start_time.into()),
    }
}

pub(super) fn history<'a>(
    entry: &NexusEntry,
    records: impl Iterator<Item = &'a RebuildRecord>,
) -> RebuildHistoryResponse {
    RebuildHistoryResponse {
        uuid: entry.wish.uuid.to_string(),
        records: records.map(record).collect(),
        name: entry.wish.name.clone(),
    }
}

fn record(record: &RebuildRecord) -> RebuildHistoryRecord {
    let state = match record.state {
        RebuildState::Init => RebuildJobState::Init,
        RebuildState::Running => RebuildJobState::Rebuilding,
        RebuildState::Stopped => RebuildJobState::Stopped,
        RebuildState::Paused => RebuildJobState::Paused,
        RebuildState::Failed => RebuildJobState::Failed,
        RebuildState::Completed => RebuildJobState::Completed,
    };
    RebuildHistoryRecord {
        child_uri: record.child_uri.clone(),
        src_uri: record.source_uri.clone(),
        state: state.into(),
        blocks_total: record.blocks_total,
        blocks_recovered: record.blocks_transferred,
        blocks_transferred: record.blocks_transferred,
        blocks_remaining: record.blocks_remaining,
        blocks_per_task: record.segment_blocks,
        block_size: record.block_size,
        is_partial: record.is_partial,
        start_time: Some(record.start_time.into()),
        end_time: Some(record.end_time.into()),
    }
}

/// What a nexus was asked to do. One that waits for its children has done nothing.
pub(super) fn stats(entry: &NexusEntry) -> IoStats {
    let io = entry.mirror.as_ref().map(nexus::Nexus::io_stats).unwrap_or_default();
    let uuid = entry.mirror.as_ref().map_or(entry.wish.uuid, BlockDevice::uuid);
    let (r, w, u): (OpStats, OpStats, OpStats) = (io.reads, io.writes, io.unmaps);
    IoStats {
        name: entry.wish.name.clone(),
        uuid: uuid.to_string(),
        num_read_ops: r.ops,
        bytes_read: r.bytes,
        num_write_ops: w.ops,
        bytes_written: w.bytes,
        num_unmap_ops: u.ops,
        bytes_unmapped: u.bytes,
        read_latency_ticks: r.latency_ns,
        write_latency_ticks: w.latency_ns,
        unmap_latency_ticks: u.latency_ns,
        max_read_latency_ticks: r.max_latency_ns,
        min_read_latency_ticks: r.min_latency_ns,
        max_write_latency_ticks: w.max_latency_ns,
        min_write_latency_ticks: w.min_latency_ns,
        max_unmap_latency_ticks: u.max_latency_ns,
        min_unmap_latency_ticks: u.min_latency_ns,
        tick_rate: TICK_RATE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row is a promise to clients.
    #[test]
    fn states_of_children_are_those_of_the_api() {
        let table = [
            (State::Online, 1, 0),
            (State::OutOfSync, 2, 8),
            (State::Closed, 2, 2),
            (State::Faulted(Fault::NoSpace), 2, 9),
            (State::Faulted(Fault::Offline), 2, 7),
            (State::Faulted(Fault::OfflinePermanent), 3, 7),
            (State::Faulted(Fault::CantOpen), 3, 3),
            (State::Faulted(Fault::TimedOut), 3, 10),
            (State::Faulted(Fault::IoError), 3, 6),
            (State::Faulted(Fault::RebuildFailed), 3, 5),
        ];
        for (state, want_state, want_reason) in table {
            let (state, reason) = child_state(state);
            assert_eq!((state as i32, reason as i32), (want_state, want_reason));
        }
    }
}
