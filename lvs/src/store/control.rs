//! Changes of the catalogue: volumes, snapshots, clones. One at a time.

use core::time::Duration;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::SystemTime;

use aio::DmaBuf;
use uuid::Uuid;

use super::budget::KEEP_FROM_CATALOGUE;
use super::catalogue::MAX_LINES;
use super::lines::Line;
use super::log::Flow;
use super::{Inner, Store};
use crate::LvsError;
use crate::format::catalog::{Change, CloneOf, Object, PoolObject, SnapshotObject, VolumeObject};
use crate::format::record::{CatalogueHeader, Stamp};
use crate::info::{CreateSnapshot, CreateVolume, VolumeProperties};
use crate::types::{BLOCK_BYTES, LineId, MAX_NAME_BYTES, MAX_VOLUME_BYTES, Pba, Seq};

/// Discarded snapshots that go with what kept them: their removals fit a record.
const MOST_ORPHANS: usize = 2000;
/// How often a change looks for room in the log, and how long it waits in between when the cleaner has to make some.
const ROOM_TRIES: u32 = 10_000;
const ROOM_WAIT: Duration = Duration::from_millis(1);

/// A number and a place in the log, taken for a record of the catalogue.
struct Placed {
    seq: Seq,
    pba: Pba,
    blocks: u32,
    buf: DmaBuf,
    header: CatalogueHeader,
}

impl Store {
    /// Makes a volume.
    pub(crate) async fn create_volume(self: &Rc<Self>, spec: CreateVolume) -> Result<VolumeObject, LvsError> {
        let _pass = self.changes.enter().await;
        check_name(&spec.name)?;
        let block = u64::from(BLOCK_BYTES);
        if spec.size_bytes == 0 || spec.size_bytes > MAX_VOLUME_BYTES {
            return Err(LvsError::BadSize { size_bytes: spec.size_bytes });
        }
        let size_bytes = spec.size_bytes.next_multiple_of(block);
        let volume = {
            let inner = self.inner();
            inner.check_new(spec.uuid, &spec.name)?;
            inner.check_lines()?;
            let capacity_bytes = inner.space.capacity_bytes();
            if size_bytes > capacity_bytes {
                return Err(LvsError::TooLarge { pool: inner.name.clone(), size_bytes, capacity_bytes });
            }
            if !spec.thin {
                inner.check_space(size_bytes / block)?;
            }
            inner.new_volume(&spec, size_bytes, None)
        };
        let promised = if spec.thin { 0 } else { size_bytes / block };
        self.change_promised(promised, Change::Put(Box::new(Object::Volume(volume.clone())))).await?;
        Ok(volume)
    }

    /// Makes a volume with the content of a snapshot.
    pub(crate) async fn create_clone(
        self: &Rc<Self>,
        snapshot: Uuid,
        spec: CreateVolume,
    ) -> Result<VolumeObject, LvsError> {
        let _pass = self.changes.enter().await;
        check_name(&spec.name)?;
        let volume = {
            let inner = self.inner();
            inner.check_new(spec.uuid, &spec.name)?;
            inner.check_lines()?;
            let source = inner.snapshot(snapshot)?;
            if source.discarded {
                return Err(inner.not_found("snapshot", snapshot));
            }
            inner.new_volume(&CreateVolume { thin: true, ..spec }, source.size_bytes, Some(snapshot))
        };
        self.change(Change::Put(Box::new(Object::Volume(volume.clone())))).await?;
        Ok(volume)
    }

    /// Removes a volume. Its snapshots stay. When it was the last clone of a discarded snapshot, that goes, too.
    pub(crate) async fn destroy_volume(self: &Rc<Self>, uuid: Uuid) -> Result<(), LvsError> {
        let _pass = self.changes.enter().await;
        let changes = {
            let inner = self.inner();
            let line = inner.volume(uuid)?.line;
            let orphans =
                inner.lines.get(line).filter(|l| l.snapshots.is_empty()).map(|_| inner.orphans_of(line));
            removals(uuid, orphans.unwrap_or_default())
        };
        self.change_all(changes).await
    }

    /// Changes the size, up or down; `set_size` tells the device that. A smaller one it is told first: nobody writes there any
    /// more when it goes. Inside the gate, since another change of the size may be under way.
    pub(crate) async fn resize_volume(
        self: &Rc<Self>,
        uuid: Uuid,
        size_bytes: u64,
        set_size: impl Fn(u64),
    ) -> Result<(), LvsError> {
        let _pass = self.changes.enter().await;
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
            return Err(LvsError::BadSize { size_bytes });
        }
        let block = u64::from(BLOCK_BYTES);
        let size_bytes = size_bytes.next_multiple_of(block);
        let (volume, before, more) = {
            let inner = self.inner();
            let mut volume = inner.volume(uuid)?.clone();
            let before = volume.size_bytes;
            let more = size_bytes.saturating_sub(before) / block;
            let more = if volume.thin { 0 } else { more };
            inner.check_space(more)?;
            volume.size_bytes = size_bytes;
            (volume, before, more)
        };
        let resized = async {
            if size_bytes < before {
                set_size(size_bytes);
                // Before the size changes: what is cut off is zero when the volume grows again.
                self.cut_off(volume.line, size_bytes / block, (before - size_bytes) / block).await?;
            }
            self.change_promised(more, Change::Put(Box::new(Object::Volume(volume)))).await
        };
        let resized = resized.await;
        set_size(if resized.is_ok() { size_bytes } else { before });
        resized
    }

    /// Stores what a volume carries for others.
    pub(crate) async fn set_properties(
        self: &Rc<Self>,
        uuid: Uuid,
        p: VolumeProperties,
    ) -> Result<(), LvsError> {
        let _pass = self.changes.enter().await;
        let mut volume = self.inner().volume(uuid)?.clone();
        volume.shared = p.shared.then(|| "nvmf".to_owned());
        volume.allowed_hosts = p.allowed_hosts;
        volume.entity_id = p.entity_id;
        self.change(Change::Put(Box::new(Object::Volume(volume)))).await
    }

    /// Makes a snapshot of a volume: what completed before is in it, what was submitted after the call returned is not.
    ///
    /// The number is taken first, so that later writes keep what they overwrite; then everything before it completes and
    /// becomes durable, and only then the record of the snapshot is written (H17). Writes go on all the time.
    pub(crate) async fn create_snapshot(
        self: &Rc<Self>,
        volume: Uuid,
        spec: CreateSnapshot,
    ) -> Result<SnapshotObject, LvsError> {
        let _pass = self.changes.enter().await;
        check_name(&spec.name)?;
        let mut object = {
            let inner = self.inner();
            inner.check_new(Some(spec.uuid), &spec.name)?;
            let source = inner.volume(volume)?;
            SnapshotObject {
                uuid: spec.uuid,
                name: spec.name,
                line: source.line,
                // The longest: the true one has to fit in its place.
                epoch: Seq::MAX,
                size_bytes: source.size_bytes,
                source: volume,
                source_name: source.name.clone(),
                txn_id: spec.txn_id,
                entity_id: spec.entity_id,
                parent_id: volume.to_string(),
                created_unix_ns: unix_ns(spec.created),
                discarded: false,
                properties: BTreeMap::new(),
                unknown: BTreeMap::new(),
            }
        };
        let put = |object: &SnapshotObject| vec![Change::Put(Box::new(Object::Snapshot(object.clone())))];
        let line = object.line;
        let placed = match self.place(&put(&object), |inner| inner.may_snapshot(line)).await {
            Err(LvsError::NoSpace { .. }) => {
                // What was written since the last merge counts twice until the next one.
                self.checkpoint(false).await?;
                self.place(&put(&object), |inner| inner.may_snapshot(line)).await?
            }
            placed => placed?,
        };
        object.epoch = placed.seq;
        let made = self.write_snapshot(placed, object).await;
        made.map_err(|e| self.lose_record(e))
    }

    /// The snapshot exists from the moment in which it got its number.
    async fn write_snapshot(
        &self,
        mut placed: Placed,
        object: SnapshotObject,
    ) -> Result<SnapshotObject, LvsError> {
        let changes = vec![Change::Put(Box::new(Object::Snapshot(object.clone())))];
        placed.header = CatalogueHeader::begin();
        fill(&mut placed, &changes)?;
        {
            let mut inner = self.inner();
            let uncounted = inner.second_copies(object.line).1;
            inner.apply_changes(placed.seq, changes)?;
            // What is not counted yet becomes the snapshot's, and what the volume reserves does not cover it any more.
            inner.thin_pending.set(inner.thin_pending.get() + uncounted);
        }
        while self.inner().log.completed() < Seq(placed.seq.0 - 1) {
            self.inner().check_fault()?;
            self.core.sleep(super::LOOK_AGAIN).await;
        }
        self.flush_all().await?;
        self.write_placed(placed).await?;
        Ok(object)
    }

    /// Removes a snapshot; one with clones is only marked, and goes with the last of them.
    pub(crate) async fn destroy_snapshot(self: &Rc<Self>, uuid: Uuid) -> Result<(), LvsError> {
        let _pass = self.changes.enter().await;
        let changes = {
            let inner = self.inner();
            let mut snapshot = inner.snapshot(uuid)?.clone();
            if inner.lines.is_cloned_at(snapshot.line, snapshot.epoch) {
                snapshot.discarded = true;
                vec![Change::Put(Box::new(Object::Snapshot(snapshot)))]
            } else {
                let last = |l: &&Line| !l.head && l.snapshots == [snapshot.epoch];
                let orphans = inner.lines.get(snapshot.line).filter(last).map(|l| inner.orphans_of(l.id));
                removals(uuid, orphans.unwrap_or_default())
            }
        };
        self.change_all(changes).await
    }

    /// A record that changes nothing.
    pub(super) async fn note_in_catalogue(self: &Rc<Self>) -> Result<(), LvsError> {
        let pool = {
            let inner = self.inner();
            let (uuid, name) = (inner.uuid, inner.name.clone());
            PoolObject { uuid, name, properties: BTreeMap::new(), unknown: BTreeMap::new() }
        };
        self.change(Change::Put(Box::new(Object::Pool(pool)))).await
    }

    /// Makes a change durable, and then real.
    pub(super) async fn change(self: &Rc<Self>, change: Change) -> Result<(), LvsError> {
        self.change_all(vec![change]).await
    }

    /// Makes changes durable, all or none, and then real.
    async fn change_all(self: &Rc<Self>, changes: Vec<Change>) -> Result<(), LvsError> {
        let placed = self.place(&changes, |_| Ok(())).await?;
        let made = self.change_placed(placed, changes).await;
        made.map_err(|e| self.lose_record(e))
    }

    async fn change_placed(&self, mut placed: Placed, changes: Vec<Change>) -> Result<(), LvsError> {
        fill(&mut placed, &changes)?;
        // What it depends on: an object that an earlier record made.
        self.flush_all().await?;
        let seq = placed.seq;
        self.write_placed(placed).await?;
        self.inner().apply_changes(seq, changes)
    }

    /// A record that has a number is not written: no checkpoint could ever be complete.
    fn lose_record(&self, error: LvsError) -> LvsError {
        self.inner().fail_pool(&error.to_string());
        error
    }

    /// As [`change`](Self::change); until it is real, nobody else gets the `blocks` that it will reserve.
    async fn change_promised(self: &Rc<Self>, blocks: u64, change: Change) -> Result<(), LvsError> {
        self.inner().budget.promised += blocks;
        let made = self.change(change).await;
        self.inner().budget.promised -= blocks;
        made
    }

    /// Takes a number and a place for a record that will hold `changes`, or such of the same length.
    /// `allowed` is asked last, in the moment in which that happens.
    async fn place(
        self: &Rc<Self>,
        changes: &[Change],
        allowed: impl Fn(&Inner) -> Result<(), LvsError>,
    ) -> Result<Placed, LvsError> {
        let buf = self.buffer().await;
        let mut placed =
            Placed { seq: Seq::ZERO, pba: Pba::NONE, blocks: 0, buf, header: CatalogueHeader::begin() };
        fill(&mut placed, changes)?;
        self.inner().check_catalogue(changes)?;
        // A number that is filled in later may take a digit more.
        let blocks = placed.header.header_blocks() as u32 + 1;
        for _ in 0..ROOM_TRIES {
            let name_more = {
                let mut inner = self.inner();
                inner.check_fault()?;
                let inner = &mut *inner;
                if inner.log.make_room(Flow::Hot, blocks, KEEP_FROM_CATALOGUE, &mut inner.space)
                    && let Some(stream) = inner.log.stream(Flow::Hot)
                {
                    allowed(inner)?;
                    // Before it has a number: one that is never complete would keep all checkpoints waiting.
                    inner.device_at(stream)?;
                    placed.seq = inner.log.number();
                    let pba = inner.log.place(Flow::Hot, placed.seq, blocks, &mut inner.space);
                    placed.pba = pba.unwrap_or(Pba::NONE);
                    placed.blocks = blocks;
                    placed.header = CatalogueHeader::begin();
                    inner.budget.written.headers += u64::from(blocks);
                    return Ok(placed);
                }
                inner.budget.want_cleaning = true;
                inner.can_name_more()
            };
            if name_more {
                self.checkpoint(false).await?;
            } else {
                self.look_after();
                self.core.sleep(ROOM_WAIT).await;
            }
        }
        Err(self.inner().out_of_segments())
    }

    /// Writes a record of the catalogue so that it is durable when this resolves.
    async fn write_placed(&self, mut placed: Placed) -> Result<(), LvsError> {
        let (descriptor, offset_bytes) = {
            let mut inner = self.inner();
            let durable = Seq(inner.log.durable().0.min(placed.seq.0));
            let stamp = Stamp { seq: placed.seq, durable, checkpoint: inner.checkpoint };
            placed.header.finish(&mut placed.buf, &stamp, &inner.seal, placed.pba);
            inner.noted.last = inner.noted.last.max(placed.seq);
            inner.device_of(placed.pba)?
        };
        let len = placed.header.header_blocks() as u32 * BLOCK_BYTES;
        let (result, _) = descriptor.write_at_durable(offset_bytes, len, placed.buf).await;
        self.wrote(placed.pba, result)?;
        let mut inner = self.inner();
        inner.record_complete(placed.seq);
        Ok(())
    }
}

fn fill(placed: &mut Placed, changes: &[Change]) -> Result<(), LvsError> {
    for change in changes {
        let bytes = change.encode().map_err(|source| LvsError::Encode { source })?;
        let pushed = placed.header.push(&mut placed.buf, &bytes);
        debug_assert!(pushed.is_ok(), "an encoded change, and some removals, fit a record");
    }
    Ok(())
}

/// An object goes, and with it the snapshots that only it kept.
fn removals(uuid: Uuid, orphans: Vec<Uuid>) -> Vec<Change> {
    [uuid].into_iter().chain(orphans).map(Change::Remove).collect()
}

/// True names: of pools, volumes, snapshots.
pub(crate) fn check_name(name: &str) -> Result<(), LvsError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(LvsError::BadName { name: name.chars().take(80).collect() });
    }
    Ok(())
}

impl Inner {
    /// Is there a number for another line?
    fn check_lines(&self) -> Result<(), LvsError> {
        match self.catalogue.next_line < MAX_LINES {
            true => Ok(()),
            false => Err(LvsError::LinesUsedUp { pool: self.name.clone(), most: MAX_LINES }),
        }
    }

    fn check_new(&self, uuid: Option<Uuid>, name: &str) -> Result<(), LvsError> {
        let exists = |what, name: String| Err(LvsError::Exists { what, name, pool: self.name.clone() });
        if uuid == Some(self.uuid) {
            return exists("pool", self.uuid.to_string());
        }
        for v in self.catalogue.volumes.values() {
            if Some(v.uuid) == uuid || v.name == name {
                return exists("volume", v.name.clone());
            }
        }
        for s in self.catalogue.snapshots.values() {
            if Some(s.uuid) == uuid || s.name == name {
                return exists("snapshot", s.name.clone());
            }
        }
        Ok(())
    }

    fn new_volume(&self, spec: &CreateVolume, size_bytes: u64, clone_of: Option<Uuid>) -> VolumeObject {
        VolumeObject {
            uuid: spec.uuid.unwrap_or_else(Uuid::new_v4),
            name: spec.name.clone(),
            line: LineId(self.catalogue.next_line),
            size_bytes,
            block_bytes: self.block_bytes(),
            thin: spec.thin,
            created_unix_ns: unix_ns(SystemTime::now()),
            shared: None,
            allowed_hosts: Vec::new(),
            entity_id: spec.entity_id.clone(),
            clone_of: clone_of
                .map(|snapshot| CloneOf { snapshot, created_unix_ns: unix_ns(SystemTime::now()) }),
            properties: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// The discarded snapshots that go when nothing reads `line` any more: the one that it was cloned from, when nobody else
    /// was, and so on upwards. They go in one record with what kept them, so that no crash leaves them behind; so many that
    /// they fit into it.
    fn orphans_of(&self, line: LineId) -> Vec<Uuid> {
        let mut orphans = Vec::new();
        let mut dying = line;
        while orphans.len() < MOST_ORPHANS
            && let Some((parent, epoch)) = self.lines.get(dying).and_then(|l| l.parent)
        {
            let reads = |l: &Line| l.id != dying && l.parent == Some((parent, epoch)) && !l.is_dead();
            if self.lines.iter().any(reads) {
                break;
            }
            let mut snapshots = self.catalogue.snapshots.values();
            let source = snapshots.find(|s| s.line == parent && s.epoch == epoch && s.discarded);
            let Some(source) = source else { break };
            orphans.push(source.uuid);
            if !self.lines.get(parent).is_some_and(|l| !l.head && l.snapshots == [epoch]) {
                break;
            }
            dying = parent;
        }
        orphans
    }

    pub(crate) fn volume(&self, uuid: Uuid) -> Result<&VolumeObject, LvsError> {
        self.catalogue.volumes.get(&uuid).map(|v| &**v).ok_or_else(|| self.not_found("volume", uuid))
    }

    pub(crate) fn snapshot(&self, uuid: Uuid) -> Result<&SnapshotObject, LvsError> {
        self.catalogue.snapshots.get(&uuid).map(|s| &**s).ok_or_else(|| self.not_found("snapshot", uuid))
    }

    fn not_found(&self, what: &'static str, uuid: Uuid) -> LvsError {
        LvsError::NotFound { what, name: uuid.to_string(), pool: self.name.clone() }
    }

    /// What a snapshot takes from what a thick volume reserves: blocks of its head that are counted, and those that are not
    /// yet, at most. None of a thin one.
    fn second_copies(&self, line: LineId) -> (u64, u64) {
        let Some(line) = self.lines.get(line).filter(|l| l.reserved_blocks > 0) else { return (0, 0) };
        let head = line.head_blocks();
        let most = line.reserved_blocks.saturating_sub(head);
        (head.min(line.reserved_blocks), self.uncounted(line.id).min(most))
    }

    /// H18: each block of a thick volume's head may have to be written a second time.
    fn may_snapshot(&self, line: LineId) -> Result<(), LvsError> {
        let (head, uncounted) = self.second_copies(line);
        self.check_space(head + uncounted)
    }

    /// Is there room to reserve so many blocks?
    fn check_space(&self, blocks: u64) -> Result<(), LvsError> {
        let free = self.space.capacity_blocks().saturating_sub(self.taken_blocks());
        if blocks > free && blocks > 0 {
            let bytes = |b: u64| b * u64::from(BLOCK_BYTES);
            return Err(LvsError::NoSpace {
                pool: self.name.clone(),
                free_bytes: bytes(free),
                needed_bytes: bytes(blocks),
            });
        }
        Ok(())
    }
}

/// Nanoseconds since 1970.
fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
