//! Volumes and snapshots: what exists, and how that changes.
//!
//! A change is first a record of the log, durable with everything that it depends on, and then applied; import applies
//! the records of the log in the same way.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::lines::{Line, Lines};
use crate::format::catalog::{Change, Object, PoolObject, SnapshotObject, VolumeObject};
use crate::types::{BLOCK_BYTES, BlockNo, Seq};

/// Lines that a pool can have made in its life: their table is indexed by number.
pub(crate) const MAX_LINES: u32 = crate::format::lines::MAX_LINES as u32;

/// The pool's property that says up to which record of the log its catalogue is.
const APPLIED: &str = "applied";

/// The pool's properties that say under which name each disk was seen last; its index follows.
const DISK: &str = "disk";

/// All objects of a pool.
#[derive(Default, Debug)]
pub(crate) struct Catalogue {
    pub(crate) volumes: BTreeMap<Uuid, VolumeObject>,
    pub(crate) snapshots: BTreeMap<Uuid, SnapshotObject>,
    /// The next line's number.
    pub(crate) next_line: u32,
    /// The newest record of the log that is in it. What a checkpoint writes is often newer than its base.
    pub(crate) applied: Seq,
    /// Names that the disks had when it was written last, by index.
    pub(crate) disks: BTreeMap<usize, String>,
    /// Changed since it was written as a whole.
    pub(crate) dirty: bool,
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
                    if let Some(line) = lines.get_mut(v.line) {
                        line.head = false;
                        line.reserved_blocks = 0;
                        line.purge = Some(BlockNo(0));
                    }
                } else if let Some(s) = self.snapshots.remove(&id)
                    && let Some(line) = lines.get_mut(s.line)
                {
                    line.remove_snapshot(s.epoch);
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
        self.volumes.insert(v.uuid, v);
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
        self.snapshots.insert(s.uuid, s);
        Ok(())
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
                    self.volumes.insert(v.uuid, v);
                }
                Object::Snapshot(s) => {
                    let line =
                        lines.get_mut(s.line).ok_or(Contradiction("a snapshot's line does not exist"))?;
                    line.snapshots.push(s.epoch);
                    self.snapshots.insert(s.uuid, s);
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

    /// All objects, for the blob of the pool with this name and with disks of these names, by index.
    pub(crate) fn objects<'a>(
        &self,
        uuid: Uuid,
        name: &str,
        disks: impl Iterator<Item = (usize, &'a str)>,
    ) -> Vec<Object> {
        let mut properties = BTreeMap::from([(APPLIED.to_owned(), self.applied.0.to_string())]);
        properties.extend(disks.map(|(index, disk)| (format!("{DISK}{index}"), disk.to_owned())));
        let pool = PoolObject { uuid, name: name.to_owned(), properties, unknown: BTreeMap::new() };
        let volumes = self.volumes.values().cloned().map(Object::Volume);
        let snapshots = self.snapshots.values().cloned().map(Object::Snapshot);
        [Object::Pool(pool)].into_iter().chain(volumes).chain(snapshots).collect()
    }

    /// Clones of a snapshot.
    pub(crate) fn clones_of(&self, snapshot: Uuid) -> usize {
        self.volumes.values().filter(|v| v.clone_of.as_ref().is_some_and(|c| c.snapshot == snapshot)).count()
    }
}

/// Names of disks among the pool's properties.
fn disks_in(properties: &BTreeMap<String, String>) -> BTreeMap<usize, String> {
    let disk = |(key, name): (&String, &String)| Some((key.strip_prefix(DISK)?.parse().ok()?, name.clone()));
    properties.iter().filter_map(disk).collect()
}

fn reserved_blocks(v: &VolumeObject) -> u64 {
    if v.thin { 0 } else { v.size_bytes.div_ceil(u64::from(BLOCK_BYTES)) }
}
