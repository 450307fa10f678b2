//! Volumes and snapshots: what exists, and how that changes.
//!
//! A change is first a record of the log, durable with everything that it depends on, and then applied; import applies
//! the records of the log in the same way.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde::Serialize;
use uuid::Uuid;

use super::Inner;
use super::lines::{Line, Lines};
use crate::LvsError;
use crate::format::catalog::{Change, Object, PoolObject, SnapshotObject, VolumeObject};
use crate::types::{BLOCK_BYTES, BlockNo, Seq};

/// Lines that a pool can have made in its life: their table is indexed by number.
pub(crate) const MAX_LINES: u32 = crate::format::lines::MAX_LINES as u32;

/// The pool's property that says up to which record of the log its catalogue is.
const APPLIED: &str = "applied";

/// `"kind":"snapshot",` in an object.
const KIND_BYTES: usize = 18;

/// Bytes of objects that a pool can have, whatever its size. The anchor has room for 24 pieces of a blob, and a piece is at most
/// the 96 pages of a record: in segments of 1 MiB, the first of which is nearly full, they hold 7.6 MiB. Some is left for
/// changes that have to be possible always: sizes, marks.
const MOST_BYTES: usize = 7 << 20;
/// And what a small one can have, at least: 500 objects.
const LEAST_BYTES: usize = 256 << 10;
/// The part of a pool that they can take. There are two copies, and again two while a checkpoint writes new ones: an
/// eighth of the pool.
const SHARE: u64 = 32;
/// Changes that make it larger by less, as another size does, are possible when others are not, in the sixteenth part
/// beyond.
const SMALL_CHANGE: usize = 64;

/// Bytes of objects that a pool of `pool_bytes` can have.
fn most_bytes(pool_bytes: u64) -> usize {
    usize::try_from(pool_bytes / SHARE).unwrap_or(usize::MAX).clamp(LEAST_BYTES, MOST_BYTES)
}

/// The pool's properties that say under which name each disk was seen last; its index follows.
const DISK: &str = "disk";

/// All objects of a pool.
#[derive(Default, Debug)]
pub(crate) struct Catalogue {
    pub(crate) volumes: BTreeMap<Uuid, Rc<VolumeObject>>,
    pub(crate) snapshots: BTreeMap<Uuid, Rc<SnapshotObject>>,
    /// The next line's number.
    pub(crate) next_line: u32,
    /// The newest record of the log that is in it. What a checkpoint writes is often newer than its base.
    pub(crate) applied: Seq,
    /// Bytes that its objects take when it is written as a whole.
    pub(crate) bytes: usize,
    /// Names that the disks had when it was written last, by index.
    pub(crate) disks: BTreeMap<usize, String>,
    /// Changed since it was written as a whole.
    pub(crate) dirty: bool,
}

/// An object as it was when a checkpoint looked, whatever becomes of it meanwhile.
pub(crate) enum Listed {
    Pool(Box<PoolObject>),
    Volume(Rc<VolumeObject>),
    Snapshot(Rc<SnapshotObject>),
}

impl Listed {
    pub(crate) fn object(&self) -> Object {
        match self {
            Self::Pool(pool) => Object::Pool((**pool).clone()),
            Self::Volume(volume) => Object::Volume((**volume).clone()),
            Self::Snapshot(snapshot) => Object::Snapshot((**snapshot).clone()),
        }
    }
}

/// A change that contradicts what is there.
#[derive(Debug)]
pub(crate) struct Contradiction(pub(crate) &'static str);

impl Catalogue {
    /// Applies the changes that stand in record `seq`, to the lines as well. What it has applied already it leaves out:
    /// the objects that it was about may be gone again.
    pub(crate) fn apply(
        &mut self,
        seq: Seq,
        changes: Vec<Change>,
        lines: &mut Lines,
    ) -> Result<(), Contradiction> {
        if seq <= self.applied {
            return Ok(());
        }
        (self.applied, self.dirty) = (seq, true);
        changes.into_iter().try_for_each(|change| self.apply_one(change, lines))
    }

    fn apply_one(&mut self, change: Change, lines: &mut Lines) -> Result<(), Contradiction> {
        match change {
            Change::Put(object) => match *object {
                Object::Volume(v) => self.put_volume(v, lines),
                Object::Snapshot(s) => self.put_snapshot(s, lines),
                Object::Pool(_) => Ok(()),
            },
            Change::Remove(id) => {
                if let Some(v) = self.volumes.remove(&id) {
                    self.bytes = self.bytes.saturating_sub(len_bytes(&*v));
                    if let Some(line) = lines.get_mut(v.line) {
                        line.head = false;
                        line.reserved_blocks = 0;
                        line.purge = Some(BlockNo(0));
                    }
                } else if let Some(s) = self.snapshots.remove(&id) {
                    self.bytes = self.bytes.saturating_sub(len_bytes(&*s));
                    if let Some(line) = lines.get_mut(s.line) {
                        line.remove_snapshot(s.epoch);
                    }
                }
                Ok(())
            }
        }
    }

    fn put_volume(&mut self, v: VolumeObject, lines: &mut Lines) -> Result<(), Contradiction> {
        if v.line.0 >= MAX_LINES {
            return Err(Contradiction("a volume has an impossible line number"));
        }
        let reserved = reserved_blocks(&v);
        match lines.get_mut(v.line) {
            Some(line) => line.reserved_blocks = if line.head { reserved } else { 0 },
            None => {
                let parent = match v.clone_of.as_ref().map(|c| self.snapshots.get(&c.snapshot)) {
                    Some(None) => return Err(Contradiction("a clone's snapshot does not exist")),
                    Some(Some(s)) => Some((s.line, s.epoch)),
                    None => None,
                };
                lines.put(Line::new(v.line, reserved, parent));
            }
        }
        self.next_line = self.next_line.max(v.line.0 + 1);
        self.add_volume(v);
        Ok(())
    }

    fn put_snapshot(&mut self, s: SnapshotObject, lines: &mut Lines) -> Result<(), Contradiction> {
        let line = lines.get_mut(s.line).ok_or(Contradiction("a snapshot's line does not exist"))?;
        if !line.snapshots.contains(&s.epoch) {
            if line.snapshots.last().is_some_and(|&last| last > s.epoch) {
                return Err(Contradiction("a snapshot is older than one that was made before it"));
            }
            line.add_snapshot(s.epoch);
        }
        self.add_snapshot(s);
        Ok(())
    }

    fn add_volume(&mut self, v: VolumeObject) {
        self.bytes += len_bytes(&v);
        if let Some(old) = self.volumes.insert(v.uuid, Rc::new(v)) {
            self.bytes = self.bytes.saturating_sub(len_bytes(&*old));
        }
    }

    fn add_snapshot(&mut self, s: SnapshotObject) {
        self.bytes += len_bytes(&s);
        if let Some(old) = self.snapshots.insert(s.uuid, Rc::new(s)) {
            self.bytes = self.bytes.saturating_sub(len_bytes(&*old));
        }
    }

    /// By how much a change makes it larger.
    pub(crate) fn growth(&self, change: &Change) -> usize {
        let Change::Put(object) = change else { return 0 };
        let (new, old) = match &**object {
            Object::Volume(v) => (len_bytes(v), self.volumes.get(&v.uuid).map(|old| len_bytes(&**old))),
            Object::Snapshot(s) => (len_bytes(s), self.snapshots.get(&s.uuid).map(|old| len_bytes(&**old))),
            Object::Pool(_) => (0, None),
        };
        new.saturating_sub(old.unwrap_or(0))
    }

    /// Takes in the objects of a checkpoint, whose lines are there already.
    pub(crate) fn load(&mut self, objects: Vec<Object>, lines: &mut Lines) -> Result<(), Contradiction> {
        for object in objects {
            match object {
                Object::Pool(p) => {
                    let applied = p.properties.get(APPLIED).map_or(Ok(0), |n| n.parse());
                    self.disks = disks_in(&p.properties);
                    self.applied =
                        Seq(applied.map_err(|_| Contradiction("the pool has an impossible number"))?);
                }
                Object::Volume(v) => {
                    let line =
                        lines.get_mut(v.line).ok_or(Contradiction("a volume's line does not exist"))?;
                    line.reserved_blocks = reserved_blocks(&v);
                    self.add_volume(v);
                }
                Object::Snapshot(s) => {
                    let line =
                        lines.get_mut(s.line).ok_or(Contradiction("a snapshot's line does not exist"))?;
                    line.snapshots.push(s.epoch);
                    self.add_snapshot(s);
                }
            }
        }
        for id in lines.iter().map(|l| l.id).collect::<Vec<_>>() {
            let Some(line) = lines.get_mut(id) else { continue };
            line.snapshots.sort_unstable();
            if line.born.len() != line.snapshots.len() + 1 {
                return Err(Contradiction("a line has more or fewer snapshots than counters"));
            }
        }
        Ok(())
    }

    /// All objects as they are now, for the blob of the pool with this name and with disks of these names, by index.
    pub(crate) fn objects<'a>(
        &self,
        uuid: Uuid,
        name: &str,
        disks: impl Iterator<Item = (usize, &'a str)>,
    ) -> Vec<Listed> {
        let mut properties = BTreeMap::from([(APPLIED.to_owned(), self.applied.0.to_string())]);
        properties.extend(disks.map(|(index, disk)| (format!("{DISK}{index}"), disk.to_owned())));
        let pool = PoolObject { uuid, name: name.to_owned(), properties, unknown: BTreeMap::new() };
        let volumes = self.volumes.values().cloned().map(Listed::Volume);
        let snapshots = self.snapshots.values().cloned().map(Listed::Snapshot);
        [Listed::Pool(Box::new(pool))].into_iter().chain(volumes).chain(snapshots).collect()
    }

    /// Clones of a snapshot.
    pub(crate) fn clones_of(&self, snapshot: Uuid) -> usize {
        self.volumes.values().filter(|v| v.clone_of.as_ref().is_some_and(|c| c.snapshot == snapshot)).count()
    }
}

/// What an object takes in the blob: its length, its kind, and its JSON. All that is read can be written as JSON.
fn len_bytes(object: &impl Serialize) -> usize {
    4 + KIND_BYTES + serde_json::to_vec(object).map_or(0, |json| json.len())
}

/// Names of disks among the pool's properties.
fn disks_in(properties: &BTreeMap<String, String>) -> BTreeMap<usize, String> {
    let disk = |(key, name): (&String, &String)| Some((key.strip_prefix(DISK)?.parse().ok()?, name.clone()));
    properties.iter().filter_map(disk).collect()
}

impl Inner {
    /// Is there room for what these changes add to the catalogue?
    pub(super) fn check_catalogue(&self, changes: &[Change]) -> Result<(), LvsError> {
        let needed_bytes: usize = changes.iter().map(|change| self.catalogue.growth(change)).sum();
        let most_bytes = most_bytes(u64::from(self.space.total()) * self.segment_bytes());
        let taken_bytes = self.catalogue.bytes;
        let beyond = if needed_bytes < SMALL_CHANGE { most_bytes / 16 } else { 0 };
        // What makes it no larger is always possible: deletions.
        if needed_bytes > 0 && taken_bytes + needed_bytes > most_bytes + beyond {
            let pool = self.name.clone();
            return Err(LvsError::CatalogueFull { pool, needed_bytes, taken_bytes, most_bytes });
        }
        Ok(())
    }
}

fn reserved_blocks(v: &VolumeObject) -> u64 {
    if v.thin { 0 } else { v.size_bytes.div_ceil(u64::from(BLOCK_BYTES)) }
}
