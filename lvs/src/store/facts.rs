//! What the control side is told, and small questions that all parts ask.

use core::time::Duration;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::SystemTime;

use aio::{Descriptor, Geometry};
use uuid::Uuid;

use super::Inner;
use super::catalogue::Listed;
use super::log::Stream;
use super::write::MAX_PAYLOAD_BLOCKS;
use crate::LvsError;
use crate::format::anchor::MemberState;
use crate::format::catalog::{Change, SnapshotObject, VolumeObject};
use crate::info::{
    DiskErrors, DiskInfo, DiskState, PoolInfo, SnapshotInfo, VolumeInfo, VolumeProperties, Written,
};
use crate::types::{BLOCK_BYTES, LineId, MAX_VOLUME_BYTES, Pba, Seq};
use crate::volume::CHANNEL_DEPTH;

/// The longest I/O of a volume, in 4 KiB blocks; with edges and header it fits a record.
const MAX_IO_BLOCKS: u32 = MAX_PAYLOAD_BLOCKS - 7;

const _: () = assert!(MAX_VOLUME_BYTES / 4096 < 1 << 40);

impl Inner {
    /// An error once the pool takes no writes any more.
    pub(crate) fn check_fault(&self) -> Result<(), LvsError> {
        self.check_writable()?;
        match &self.fault {
            Some(fault) => Err(LvsError::Faulted { pool: self.name.clone(), fault: fault.clone() }),
            None => Ok(()),
        }
    }

    /// An error when the pool was opened for reading only.
    pub(crate) fn check_writable(&self) -> Result<(), LvsError> {
        match &self.read_only {
            Some(why) => Err(LvsError::ReadOnly { pool: self.name.clone(), why: why.clone() }),
            None => Ok(()),
        }
    }

    /// No segment is left for what keeps the pool alive.
    pub(super) fn out_of_segments(&self) -> LvsError {
        let segment_bytes = self.segment_bytes();
        LvsError::NoSpace { pool: self.name.clone(), free_bytes: 0, needed_bytes: segment_bytes }
    }

    pub(super) fn damaged(&self, what: &str) -> LvsError {
        LvsError::Damaged { pool: self.name.clone(), what: what.to_owned() }
    }

    /// The device that holds `pba`, and where on it.
    pub(super) fn device_of(&self, pba: Pba) -> Result<(Descriptor, u64), LvsError> {
        let member = self.members.get(usize::from(pba.member())).filter(|_| !pba.is_none());
        let member = member.ok_or_else(|| self.damaged("an address names no disk of the pool"))?;
        Ok((member.descriptor.clone(), pba.block() * u64::from(BLOCK_BYTES)))
    }

    /// The device on which an open segment goes on, and where on it.
    pub(super) fn device_at(&self, stream: Stream) -> Result<(Descriptor, u64), LvsError> {
        self.device_of(self.space.first_block(stream.segment).plus(u64::from(stream.offset)))
    }

    pub(super) fn disk_name(&self, pba: Pba) -> String {
        self.members.get(usize::from(pba.member())).map_or_else(String::new, |m| m.device.name().to_owned())
    }

    /// Something was written there that the next flush has to cover.
    pub(super) fn dirty(&mut self, pba: Pba) {
        if let Some(m) = self.members.get_mut(usize::from(pba.member())) {
            m.dirty = true;
        }
    }

    /// The devices to flush, and what that makes durable.
    pub(super) fn begin_slow_flush(&mut self) -> (Seq, Vec<(usize, Descriptor)>) {
        let covers = self.log.completed();
        let members = self.members.iter_mut().enumerate();
        let list = members.filter_map(|(at, m)| m.begin_flush().then(|| (at, m.descriptor.clone())));
        (covers, list.collect())
    }

    /// The slow flush of a device ended.
    pub(super) fn slow_flush_ended(&mut self, member: usize) {
        if let Some(m) = self.members.get_mut(member) {
            m.flush_ended();
        }
    }

    /// A record that slow work wrote is complete.
    pub(super) fn record_complete(&mut self, seq: Seq) {
        self.log.complete(seq);
        if !self.any_volatile() {
            self.log.durable_to(self.log.completed());
        }
    }

    pub(super) fn apply_changes(&mut self, seq: Seq, changes: Vec<Change>) -> Result<(), LvsError> {
        let applied = self.catalogue.apply(seq, changes, &mut self.lines);
        self.count_used();
        applied.map_err(|c| self.damaged(c.0))
    }

    /// Everything that the catalogue has.
    pub(super) fn catalogue_objects(&self) -> Vec<Listed> {
        let disks = self.members.iter().enumerate().filter(|(_, m)| !m.absent);
        let disks = disks.map(|(index, m)| (index, m.device.name()));
        self.catalogue.objects(self.uuid, &self.name, disks)
    }

    /// The table of lines.
    pub(super) fn line_table(&self) -> crate::format::lines::Lines {
        self.lines.table(self.catalogue.next_line)
    }

    /// Block size of the disks, which is that of the volumes.
    pub(crate) fn block_bytes(&self) -> u32 {
        // Also that of a disk that is absent.
        self.members.first().map_or(BLOCK_BYTES, |m| m.geometry.block_bytes)
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        u64::from(self.space.segment_blocks()) * u64::from(BLOCK_BYTES)
    }

    pub(crate) fn incarnation(&self) -> u128 {
        u128::from_le_bytes(self.anchor.incarnation)
    }

    /// Shape of the volumes.
    pub(crate) fn volume_geometry(&self) -> Geometry {
        let all = || self.members.iter().map(|m| &m.geometry);
        let per_block = BLOCK_BYTES / self.block_bytes();
        Geometry {
            block_bytes: self.block_bytes(),
            meta_bytes: 0,
            buf_align: all().map(|g| g.buf_align).max().unwrap_or(1),
            sg_elem_align: all().map(|g| g.sg_elem_align).max().unwrap_or(1),
            max_sg: all().map(|g| g.max_sg).min().unwrap_or(64).saturating_sub(4).max(1),
            max_blocks: MAX_IO_BLOCKS * per_block,
            boundary_blocks: 0,
            atomic_blocks: per_block,
            compare_write_blocks: 0,
            queue_depth: CHANNEL_DEPTH,
        }
    }

    /// Data blocks in the deltas that merges may find to be new.
    pub(super) fn thin_bound(&self) -> u64 {
        self.thin_pending.get() + self.thin_frozen + self.aside_blocks()
    }

    /// After lines changed.
    pub(super) fn count_used(&mut self) {
        self.used_blocks = self.lines.iter().map(super::lines::Line::used_blocks).sum();
        self.budget.rootless = self.lines.iter().filter(|l| l.root.is_none() && l.head).count() as u64;
    }

    /// Segments that hold what only the delta refers to stay: their newest record is at least `seq`.
    /// What thin volumes have there counts as used until the next merge counts it exactly.
    pub(super) fn hold_delta(&mut self, seq: Seq) {
        for line in self.active.lines().collect::<Vec<_>>() {
            let thin = self.lines.get(line).is_some_and(|l| l.reserved_blocks == 0);
            for update in self.active.points_from(line, crate::types::BlockNo(0)) {
                let pba = match update.change {
                    crate::index::Change::Place(crate::types::Place::Data { pba, .. }) => {
                        self.thin_pending.set(self.thin_pending.get() + u64::from(thin));
                        pba
                    }
                    crate::index::Change::Moved { to, .. } => to,
                    crate::index::Change::Place(crate::types::Place::Hole) => continue,
                };
                if let Some(id) = self.space.segment_of(pba) {
                    self.space.hold(id, seq);
                }
            }
        }
    }

    /// Opened for reading only?
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.is_some()
    }

    /// The disks.
    pub(crate) fn disk_infos(&self) -> Vec<DiskInfo> {
        let mut disks = Vec::new();
        for (index, m) in self.members.iter().enumerate() {
            // Only once that is durable: an import has to find it.
            let durable = self.anchor.members.get(index).map_or(m.state, |listed| listed.state);
            let state = match (m.state, durable) {
                (MemberState::Evacuating, MemberState::Active) => MemberState::Active,
                (MemberState::Removed, MemberState::Active | MemberState::Evacuating) => {
                    MemberState::Evacuating
                }
                (state, _) => state,
            };
            let state = match (state, m.absent) {
                (MemberState::Removed, _) => continue,
                (_, true) => DiskState::Missing,
                (MemberState::Evacuating, false) => DiskState::Evacuating,
                (MemberState::Active, false) => DiskState::Active,
            };
            let (segments, live) = self.space.held(index as u8);
            disks.push(DiskInfo {
                index: index as u32,
                uuid: m.uuid,
                name: m.device.name().to_owned(),
                state,
                size_bytes: self.space.member(index as u8).len() as u64 * self.segment_bytes(),
                used_bytes: u64::from(segments) * self.segment_bytes(),
                live_bytes: live * u64::from(BLOCK_BYTES),
            });
        }
        disks
    }

    /// The pool in figures.
    pub(crate) fn info(&self) -> PoolInfo {
        let bytes = |blocks: u64| blocks * u64::from(BLOCK_BYTES);
        let written = self.budget.written;
        let raw = |m: &super::member::Member| m.device.size().0 * u64::from(m.geometry.block_bytes);
        PoolInfo {
            name: self.name.clone(),
            uuid: self.uuid,
            disks: self.members.iter().filter(|m| !m.absent).map(|m| m.device.name().to_owned()).collect(),
            fault: self.fault.clone(),
            read_only: self.read_only.clone(),
            capacity_bytes: self.space.capacity_bytes(),
            used_bytes: bytes(self.taken_blocks()).min(self.space.capacity_bytes()),
            committed_bytes: self.catalogue.volumes.values().map(|v| v.size_bytes).sum(),
            raw_bytes: self.members.iter().filter(|m| !m.absent).map(raw).sum(),
            block_bytes: self.block_bytes(),
            segment_bytes: self.segment_bytes(),
            segments: (self.space.total(), self.space.available()),
            map_pages: self.space.map_pages(),
            written: Written {
                data_bytes: bytes(written.data),
                header_bytes: bytes(written.headers),
                moved_bytes: bytes(written.moved),
                page_bytes: bytes(written.pages),
            },
            errors: DiskErrors {
                reads: self.read_errors,
                checksums: self.checksum_errors,
                map_pages: self.page_errors,
            },
        }
    }

    pub(crate) fn volume_infos(&self) -> Result<Vec<VolumeInfo>, LvsError> {
        Ok(self.catalogue.volumes.values().map(|v| self.describe_volume(v)).collect())
    }

    pub(crate) fn volume_info(&self, uuid: Uuid) -> Result<VolumeInfo, LvsError> {
        self.volume(uuid).map(|v| self.describe_volume(v))
    }

    fn describe_volume(&self, v: &VolumeObject) -> VolumeInfo {
        let bytes = |blocks: u64| blocks * u64::from(BLOCK_BYTES);
        let line = self.lines.get(v.line);
        let head = line.map_or(0, super::lines::Line::head_blocks);
        let allocated = head.max(line.map_or(0, |l| l.reserved_blocks));
        VolumeInfo {
            uuid: v.uuid,
            name: v.name.clone(),
            size_bytes: v.size_bytes,
            block_bytes: v.block_bytes,
            thin: v.thin,
            allocated_bytes: bytes(allocated),
            snapshots_bytes: bytes(line.map_or(0, |l| l.live_blocks() - head)),
            snapshots: line.map_or(0, |l| l.snapshots.len() as u32),
            clone_of: v.clone_of.as_ref().map(|c| c.snapshot),
            created: time_of(v.created_unix_ns),
            properties: VolumeProperties {
                shared: v.shared.is_some(),
                allowed_hosts: v.allowed_hosts.clone(),
                entity_id: v.entity_id.clone(),
            },
        }
    }

    /// Linear in what there is: lists of ten thousand are asked for while volumes are in use.
    pub(crate) fn snapshot_infos(&self) -> Result<Vec<SnapshotInfo>, LvsError> {
        let mut clones: HashMap<Uuid, u32> = HashMap::new();
        for origin in self.catalogue.volumes.values().filter_map(|v| v.clone_of.as_ref()) {
            *clones.entry(origin.snapshot).or_default() += 1;
        }
        let mut held: HashMap<(LineId, Seq), Held> = HashMap::new();
        for line in self.lines.iter() {
            let mut older = 0;
            for (&epoch, &own) in line.snapshots.iter().zip(&line.born) {
                held.insert((line.id, epoch), Held { own, older });
                older += own;
            }
        }
        let describe = |s: &Rc<SnapshotObject>| {
            let held = held.get(&(s.line, s.epoch)).copied().unwrap_or_default();
            describe_snapshot(s, held, clones.get(&s.uuid).copied().unwrap_or(0), self.source_of(s))
        };
        Ok(self.catalogue.snapshots.values().map(describe).collect())
    }

    pub(crate) fn snapshot_info(&self, uuid: Uuid) -> Result<SnapshotInfo, LvsError> {
        let s = self.snapshot(uuid)?;
        let line = self.lines.get(s.line);
        let at = line.and_then(|l| Some((l, l.snapshots.iter().position(|&e| e == s.epoch)?)));
        let held = at.map(|(l, at)| Held { own: l.born[at], older: l.born[..at].iter().sum() });
        let clones = self.catalogue.clones_of(uuid) as u32;
        Ok(describe_snapshot(s, held.unwrap_or_default(), clones, self.source_of(s)))
    }

    /// The volume that it was taken of, while that is there.
    fn source_of(&self, s: &SnapshotObject) -> Option<Uuid> {
        self.catalogue.volumes.contains_key(&s.source).then_some(s.source)
    }
}

/// Blocks that were born before a snapshot: since the one before it, and earlier.
#[derive(Clone, Copy, Default)]
struct Held {
    own: u64,
    older: u64,
}

fn describe_snapshot(s: &SnapshotObject, held: Held, clones: u32, source: Option<Uuid>) -> SnapshotInfo {
    let bytes = |blocks: u64| blocks * u64::from(BLOCK_BYTES);
    SnapshotInfo {
        name: s.name.clone(),
        uuid: s.uuid,
        txn_id: s.txn_id.clone(),
        entity_id: s.entity_id.clone(),
        created: time_of(s.created_unix_ns),
        source,
        source_name: s.source_name.clone(),
        size_bytes: s.size_bytes,
        allocated_bytes: bytes(held.own),
        ancestors_bytes: bytes(held.older),
        clones,
        discarded: s.discarded,
    }
}

fn time_of(unix_ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_ns)
}
