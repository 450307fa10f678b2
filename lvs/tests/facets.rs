//! Allocated and changed ranges against a model of every write, through snapshots, clones, cleaning, crashes and imports.

#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aio::devices::sim::SimDisk;
use aio::facade::ByteRange;
use aio::facets::{Extent, FacetError, MOST_MARKS, Piece, Position, Since, errno};
use aio::{BlockCount, BlockDevice, BlockRange, Descriptor, Lba};
use lvs::info::{CreatePool, CreateSnapshot, CreateVolume, ImportPool};
use lvs::{Pool, Volume};
use rig::{Rig, Rng, on};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Blocks of a volume.
const BLOCKS: u64 = 2048;

/// All versions that a block ever had: at which step, and its stamp; 0 = unmapped.
type History = Vec<Vec<(u64, u64)>>;

/// A volume as it should be.
#[derive(Clone)]
struct Model {
    history: History,
    /// A clone's origin: its content then.
    origin: Option<Vec<u64>>,
    snapshots: BTreeMap<Uuid, u64>,
    marks: BTreeMap<u128, u64>,
}

impl Model {
    fn new(origin: Option<Vec<u64>>) -> Self {
        let history = vec![Vec::new(); BLOCKS as usize];
        Self { history, origin, snapshots: BTreeMap::new(), marks: BTreeMap::new() }
    }

    /// The newest version of a block before `step`.
    fn version(&self, block: u64, step: u64) -> Option<(u64, u64)> {
        self.history[block as usize].iter().copied().rfind(|(at, _)| *at < step)
    }

    fn content(&self, block: u64, step: u64) -> u64 {
        let origin = self.origin.as_ref().map_or(0, |origin| origin[block as usize]);
        self.version(block, step).map_or(origin, |(_, stamp)| stamp)
    }

    fn all(&self, step: u64) -> Vec<u64> {
        (0..BLOCKS).map(|block| self.content(block, step)).collect()
    }
}

struct World {
    rig: Rig,
    disk: SimDisk,
    rng: Rng,
    pool: Pool,
    volumes: BTreeMap<Uuid, Model>,
    step: u64,
    block_bytes: u64,
}

impl World {
    fn new(seed: u64, block_bytes: u32) -> Self {
        let rig = Rig::new();
        let disk = rig.disk("d", block_bytes, 40, true, seed);
        let spec = CreatePool { name: "p".to_owned(), uuid: None, force: false };
        let pool = rig.run(Pool::create(rig.home(), vec![on(&disk)], spec)).unwrap();
        let (volumes, rng) = (BTreeMap::new(), Rng::new(seed));
        let mut world = Self { rig, disk, rng, pool, volumes, step: 1, block_bytes: block_bytes.into() };
        let spec = CreateVolume {
            name: "v".to_owned(),
            uuid: None,
            size_bytes: BLOCKS * BLOCK,
            thin: true,
            entity_id: None,
        };
        let volume = world.rig.run(world.pool.create_volume(spec)).unwrap();
        world.volumes.insert(volume.uuid(), Model::new(None));
        world
    }

    fn device(&self, uuid: Uuid) -> Arc<Volume> {
        self.pool.volume(uuid).unwrap()
    }

    fn open(&self, uuid: Uuid) -> Descriptor {
        let device: Arc<dyn BlockDevice> = self.device(uuid);
        self.rig.run(Descriptor::open(device)).unwrap()
    }

    fn any(&mut self) -> Uuid {
        let at = self.rng.below(self.volumes.len() as u64) as usize;
        *self.volumes.keys().nth(at).unwrap()
    }

    fn write(&mut self, uuid: Uuid, d: &Descriptor) {
        let count = 1 + self.rng.below(8);
        let first = self.rng.below(BLOCKS - count);
        self.step += 1;
        let mut buf = self.rig.core().pools().unwrap().alloc((count * BLOCK) as u32).unwrap();
        buf.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.step.to_le_bytes()));
        self.rig.run(d.write_at(first * BLOCK, (count * BLOCK) as u32, buf)).0.unwrap();
        self.put(uuid, first, count, self.step);
    }

    fn unmap(&mut self, uuid: Uuid, d: &Descriptor) {
        let count = 1 + self.rng.below(if self.rng.clone().one_in(4) { 700 } else { 20 });
        let first = self.rng.below(BLOCKS - count);
        self.step += 1;
        let range = ByteRange { offset_bytes: first * BLOCK, len_bytes: count * BLOCK };
        self.rig.run(d.unmap(&[range])).unwrap();
        self.put(uuid, first, count, 0);
    }

    fn put(&mut self, uuid: Uuid, first: u64, count: u64, stamp: u64) {
        let step = self.step;
        let model = self.volumes.get_mut(&uuid).unwrap();
        (first..first + count).for_each(|block| model.history[block as usize].push((step, stamp)));
    }

    fn change(&mut self) {
        let uuid = self.any();
        let d = self.open(uuid);
        for _ in 0..20 + self.rng.below(60) {
            match self.rng.below(8) {
                0 => self.unmap(uuid, &d),
                _ => self.write(uuid, &d),
            }
        }
        self.rig.run(d.close());
    }

    fn snapshot(&mut self) {
        let uuid = self.any();
        if self.volumes[&uuid].snapshots.len() >= 3 {
            let (&old, _) = self.volumes[&uuid].snapshots.iter().next().unwrap();
            self.rig.run(self.pool.destroy_snapshot(old)).unwrap();
            self.volumes.get_mut(&uuid).unwrap().snapshots.remove(&old);
        }
        let snapshot = Uuid::from_u128(u128::from(self.step) << 64 | u128::from(self.rng.next()));
        let spec = CreateSnapshot {
            name: format!("s{snapshot}"),
            uuid: snapshot,
            txn_id: String::new(),
            entity_id: String::new(),
            created: std::time::SystemTime::UNIX_EPOCH,
        };
        self.rig.run(self.pool.create_snapshot(uuid, spec)).unwrap();
        self.step += 1;
        let step = self.step;
        let model = self.volumes.get_mut(&uuid).unwrap();
        model.snapshots.insert(snapshot, step);
        if self.volumes.len() < 3 && self.rng.one_in(2) {
            self.clone_of(uuid, snapshot, step);
        }
    }

    fn clone_of(&mut self, source: Uuid, snapshot: Uuid, step: u64) {
        let name = format!("c{snapshot}");
        let spec = CreateVolume { name, uuid: None, size_bytes: 0, thin: true, entity_id: None };
        let clone = self.rig.run(self.pool.create_clone(snapshot, spec)).unwrap();
        let origin = self.volumes[&source].all(step);
        self.volumes.insert(clone.uuid(), Model::new(Some(origin)));
        // What changed in the clone since it was made is all that is its own.
        let changed =
            self.answer(&clone, |piece| clone.ranges().unwrap().changed(Since::Snapshot(snapshot), piece));
        assert_eq!(changed, []);
    }

    fn mark(&mut self) {
        let uuid = self.any();
        let device = self.device(uuid);
        let at = self.rig.run(device.marks().unwrap().position()).unwrap();
        self.step += 1;
        let (id, step) = (u128::from(self.step), self.step);
        // Writes go on between the two.
        let d = self.open(uuid);
        (0..3).for_each(|_| self.write(uuid, &d));
        self.rig.run(d.close());
        self.rig.run(device.marks().unwrap().put_mark(id, at)).unwrap();
        let model = self.volumes.get_mut(&uuid).unwrap();
        model.marks.insert(id, step);
        while model.marks.len() > MOST_MARKS {
            model.marks.pop_first();
        }
        let listed = self.rig.run(device.marks().unwrap().marks()).unwrap();
        let ids: Vec<u128> = listed.iter().map(|mark| mark.id).collect();
        assert_eq!(ids, self.volumes[&uuid].marks.keys().rev().copied().collect::<Vec<_>>());
    }

    /// Some of what was not flushed is lost: it is read what.
    fn crash(&mut self) {
        let uuid = self.any();
        let d = self.open(uuid);
        self.rig.run(d.flush()).unwrap();
        let flushed = self.volumes[&uuid].clone();
        (0..30).for_each(|_| self.write(uuid, &d));
        let stale = self.rig.run(self.device(uuid).marks().unwrap().position()).unwrap();
        self.disk.cut_power();
        let _ = self.rig.run(self.pool.export());
        self.import();
        let d = self.open(uuid);
        for block in 0..BLOCKS {
            let found = self.read(&d, block);
            let model = self.volumes.get_mut(&uuid).unwrap();
            let versions = &mut model.history[block as usize];
            let kept = flushed.history[block as usize].len();
            while versions.len() > kept && versions.last().unwrap().1 != found {
                versions.pop();
            }
            assert_eq!(model.content(block, u64::MAX), found, "block {block}");
        }
        self.rig.run(d.close());
        let device = self.device(uuid);
        let piece = Piece { range: everything(self.block_bytes), most: 5 };
        let unknown = self.rig.run(device.ranges().unwrap().changed(Since::Position(stale), piece));
        assert!(matches!(unknown, Err(FacetError::Unknown { .. })), "another incarnation");
    }

    fn import(&mut self) {
        let found = Pool::import(self.rig.home(), vec![on(&self.disk)], ImportPool::default());
        self.pool = self.rig.run(found).unwrap();
    }

    fn read(&self, d: &Descriptor, block: u64) -> u64 {
        let buf = self.rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
        let (result, buf) = self.rig.run(d.read_at(block * BLOCK, BLOCK as u32, buf));
        result.unwrap();
        u64::from_le_bytes(buf[..8].try_into().unwrap())
    }

    /// A whole answer in blocks of the store, asked for in pieces of any shape.
    fn answer<'a>(
        &mut self,
        device: &Volume,
        ask: impl Fn(Piece) -> aio::facets::FacetFuture<'a, aio::facets::Page>,
    ) -> Vec<(u64, bool)> {
        let per = BLOCK / self.block_bytes;
        let most = 1 + self.rng.below(40) as usize;
        let step = if self.rng.one_in(2) { BLOCKS } else { 1 + self.rng.below(600) };
        let mut found = Vec::new();
        for from in (0..BLOCKS).step_by(step as usize) {
            let mut start = Lba(from * per);
            let end = (from + step) * per;
            loop {
                let range = BlockRange { start, blocks: BlockCount(end - start.0) };
                let page = self.rig.run(ask(Piece { range, most })).unwrap();
                assert!(page.extents.len() <= most);
                for Extent { range, data } in page.extents {
                    assert!(
                        range.start >= start && range.start.0 + range.blocks.0 <= end.min(device.size().0)
                    );
                    assert!(range.start.0.is_multiple_of(per) && range.blocks.0.is_multiple_of(per));
                    found.extend(
                        (range.start.0 / per..(range.start.0 + range.blocks.0) / per).map(|b| (b, data)),
                    );
                }
                match page.next {
                    Some(next) => {
                        assert!(next > start, "no way ahead from {start:?}");
                        start = next;
                    }
                    None => break,
                }
            }
        }
        found
    }

    fn compare(&mut self) {
        for uuid in self.volumes.keys().copied().collect::<Vec<_>>() {
            let (device, model) = (self.device(uuid), self.volumes[&uuid].clone());
            let allocated = self.answer(&device, |piece| device.ranges().unwrap().allocated(piece));
            let want: Vec<_> =
                (0..BLOCKS).filter(|&b| model.content(b, u64::MAX) != 0).map(|b| (b, true)).collect();
            assert_eq!(allocated, want);
            for (&id, &step) in &model.marks {
                let changed =
                    self.answer(&device, |piece| device.ranges().unwrap().changed(Since::Mark(id), piece));
                assert_eq!(changed, since(&model, step), "since step {step}");
            }
            for (&snapshot, &step) in &model.snapshots {
                let of = Since::Snapshot(snapshot);
                let changed = self.answer(&device, |piece| device.ranges().unwrap().changed(of, piece));
                assert_eq!(changed, since(&model, step), "since the snapshot of step {step}");
                let opened = self.rig.run(self.pool.open_snapshot(snapshot)).unwrap();
                let allocated = self.answer(&opened, |piece| opened.ranges().unwrap().allocated(piece));
                let want: Vec<_> =
                    (0..BLOCKS).filter(|&b| model.content(b, step) != 0).map(|b| (b, true)).collect();
                assert_eq!(allocated, want, "the snapshot of step {step}");
                for (&older, &before) in model.snapshots.iter().filter(|(_, at)| **at < step) {
                    let of = Since::Snapshot(older);
                    let changed = self.answer(&opened, |piece| opened.ranges().unwrap().changed(of, piece));
                    compare_snapshots(&model, before, step, &changed);
                }
            }
        }
    }
}

fn everything(block_bytes: u64) -> BlockRange {
    BlockRange { start: Lba(0), blocks: BlockCount(BLOCKS * BLOCK / block_bytes) }
}

/// What changed since a step.
fn since(model: &Model, step: u64) -> Vec<(u64, bool)> {
    let newest = |block| model.version(block, u64::MAX).filter(|(at, _)| *at >= step);
    (0..BLOCKS).filter_map(|block| newest(block).map(|(_, stamp)| (block, stamp != 0))).collect()
}

/// What differs is in it, and nothing that was not written between.
fn compare_snapshots(model: &Model, before: u64, step: u64, changed: &[(u64, bool)]) {
    let changed: BTreeMap<u64, bool> = changed.iter().copied().collect();
    for block in 0..BLOCKS {
        let newest = model.version(block, step).filter(|(at, _)| *at >= before);
        let (old, new) = (model.content(block, before), model.content(block, step));
        match changed.get(&block) {
            Some(data) => assert_eq!(newest.map(|(_, stamp)| stamp != 0), Some(*data), "block {block}"),
            None => assert_eq!(old, new, "block {block} is missing"),
        }
    }
}

/// As many steps as there is time for: `KEELSON_LVS_STEP` makes it long.
fn rounds() -> u64 {
    if std::env::var_os("KEELSON_LVS_LONG").is_some() { 400 } else { 40 }
}

fn walk(seed: u64, block_bytes: u32) {
    let mut w = World::new(seed, block_bytes);
    for round in 0..rounds() {
        match w.rng.below(10) {
            0 => w.snapshot(),
            1 => w.mark(),
            2 => w.rig.run(w.pool.checkpoint()).unwrap(),
            3 if round > 8 && w.rng.one_in(2) => w.crash(),
            4 if w.rng.one_in(2) => {
                w.rig.run(w.pool.export()).unwrap();
                w.import();
            }
            _ => w.change(),
        }
        if round % 4 == 0 {
            w.compare();
        }
    }
    w.compare();
}

#[test]
fn h2_changes_since_marks_and_what_is_allocated_are_as_the_model_says() {
    for seed in 1..5 {
        walk(seed, if seed % 2 == 0 { 512 } else { 4096 });
    }
}

/// Blocks that the cleaner moves did not change, and what changed meanwhile is told exactly.
#[test]
fn h11_cleaning_changes_nothing() {
    let mut w = World::new(9, 4096);
    let uuid = w.any();
    let d = w.open(uuid);
    (0..400).for_each(|_| w.write(uuid, &d));
    w.mark();
    // Whatever is written now is written in one half.
    let mut stamp = 1_000_000;
    while w.rig.run(w.pool.info()).unwrap().written.moved_bytes < 8 * MIB {
        for _ in 0..500 {
            stamp += 1;
            w.step = stamp;
            let block = w.rng.below(BLOCKS / 2);
            let mut buf = w.rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
            buf[..BLOCK as usize].chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&stamp.to_le_bytes()));
            w.rig.run(d.write_at(block * BLOCK, BLOCK as u32, buf)).0.unwrap();
            w.put(uuid, block, 1, stamp);
        }
        assert!(stamp < 1_200_000, "the cleaner does not move");
    }
    w.compare();
    let model = &w.volumes[&uuid];
    let (_, &step) = model.marks.first_key_value().unwrap();
    let above = since(model, step).iter().filter(|(block, _)| *block >= BLOCKS / 2).count();
    assert!(above < 30, "{above}: only what was written between position and mark");
    w.rig.run(d.close());
}

/// Questions while writes, merges and snapshots go on: what completed before is in each answer.
#[test]
fn answers_hold_what_completed_before_while_writes_and_merges_go_on() {
    let mut w = World::new(11, 4096);
    let uuid = w.any();
    let device = w.device(uuid);
    let d = w.open(uuid);
    (0..200).for_each(|_| w.write(uuid, &d));
    let at = w.rig.run(device.marks().unwrap().position()).unwrap();
    let began = w.step + 1;
    let mut asked = 0;
    for round in 0..40 {
        (0..40).for_each(|_| w.write(uuid, &d));
        let pool = w.pool.clone();
        let mut checkpoint = Box::pin(pool.checkpoint());
        // One question after the other, so that one is under way when the new tree comes.
        while w.rig.run_for(1, checkpoint.as_mut()).is_none() {
            let done = since(&w.volumes[&uuid], began);
            let piece = Piece { range: everything(4096), most: 4096 };
            let mut question = device.ranges().unwrap().changed(Since::Position(at), piece);
            let page = loop {
                if let Some(page) = w.rig.run_for(1, &mut question) {
                    break page.unwrap();
                }
                if w.rng.one_in(8) {
                    w.write(uuid, &d);
                }
            };
            let blocks = |range: BlockRange| range.start.0..range.start.0 + range.blocks.0;
            let found: BTreeSet<u64> = page.extents.iter().flat_map(|extent| blocks(extent.range)).collect();
            assert!(page.next.is_none());
            assert!(done.iter().all(|(block, _)| found.contains(block)), "round {round}");
            let now: BTreeSet<u64> =
                since(&w.volumes[&uuid], began).iter().map(|(block, _)| *block).collect();
            assert!(found.is_subset(&now), "round {round}");
            asked += 1;
        }
    }
    assert!(asked > 100, "{asked}");
    w.rig.run(d.close());
}

/// H11: a smaller size is a trim, also when it becomes larger again.
#[test]
fn h11_what_a_smaller_size_cut_off_changed() {
    let mut w = World::new(5, 4096);
    let uuid = w.any();
    let d = w.open(uuid);
    (0..300).for_each(|_| w.write(uuid, &d));
    w.rig.run(d.close());
    let device = w.device(uuid);
    let at = w.rig.run(device.marks().unwrap().position()).unwrap();
    w.rig.run(w.pool.resize_volume(uuid, BLOCKS * BLOCK / 2)).unwrap();
    w.rig.run(w.pool.checkpoint()).unwrap();
    let changed = |w: &mut World| {
        w.answer(&device, |piece| device.ranges().unwrap().changed(Since::Position(at), piece))
    };
    assert_eq!(changed(&mut w), []);
    w.rig.run(w.pool.resize_volume(uuid, BLOCKS * BLOCK)).unwrap();
    let want: Vec<_> = (BLOCKS / 2..BLOCKS).map(|block| (block, false)).collect();
    assert_eq!(changed(&mut w), want);
    w.rig.run(w.pool.checkpoint()).unwrap();
    assert_eq!(changed(&mut w), want);
}

#[test]
fn what_is_not_known_is_said_so() {
    let mut w = World::new(3, 4096);
    let uuid = w.any();
    let device = w.device(uuid);
    let piece = Piece { range: everything(4096), most: 0 };
    let unknown = |w: &World, device: &Volume, since| {
        let asked = w.rig.run(device.ranges().unwrap().changed(since, piece));
        assert!(matches!(asked, Err(FacetError::Unknown { .. })), "{asked:?}");
    };
    unknown(&w, &device, Since::Mark(5));
    unknown(&w, &device, Since::Snapshot(Uuid::from_u128(5)));
    unknown(&w, &device, Since::Position(Position { incarnation: 1, number: 0 }));
    let at = w.rig.run(device.marks().unwrap().position()).unwrap();
    let marks = device.marks().unwrap();
    w.rig.run(marks.put_mark(7, at)).unwrap();
    let later = Position { number: at.number + 1000, ..at };
    assert!(matches!(w.rig.run(marks.put_mark(8, later)), Err(FacetError::Unknown { .. })), "not there yet");
    let other = Position { incarnation: 1, ..at };
    assert!(matches!(w.rig.run(marks.put_mark(8, other)), Err(FacetError::Unknown { .. })));
    // A position outlives a clean export, and is asked of the same volume only.
    w.rig.run(w.pool.export()).unwrap();
    assert!(matches!(w.rig.run(device.ranges().unwrap().allocated(piece)), Err(FacetError::Gone { .. })));
    w.import();
    let device = w.device(uuid);
    assert!(w.rig.run(device.ranges().unwrap().changed(Since::Position(at), piece)).is_ok());
    // A snapshot has no marks, and is only asked since an older one; a clone has none of its origin's.
    w.change();
    while w.volumes[&uuid].snapshots.is_empty() || w.volumes.len() < 2 {
        w.snapshot();
    }
    let clone = *w.volumes.keys().find(|u| **u != uuid).unwrap();
    unknown(&w, &w.device(clone), Since::Mark(7));
    let (&snapshot, _) = w.volumes[&uuid].snapshots.last_key_value().unwrap();
    let opened = w.rig.run(w.pool.open_snapshot(snapshot)).unwrap();
    assert!(opened.marks().is_none());
    unknown(&w, &opened, Since::Position(at));
    unknown(&w, &opened, Since::Mark(7));
    // A mark that is removed is unknown; once more is no error.
    for _ in 0..2 {
        w.rig.run(device.marks().unwrap().remove_mark(7)).unwrap();
        unknown(&w, &device, Since::Mark(7));
    }
    // A snapshot is made, once, and not of a snapshot.
    let spec = |uuid: u128, name: &str| CreateSnapshot {
        name: name.into(),
        uuid: Uuid::from_u128(uuid),
        txn_id: "t".into(),
        entity_id: "e".into(),
        created: std::time::SystemTime::UNIX_EPOCH,
    };
    let snapshots = device.snapshots().unwrap();
    w.rig.run(snapshots.create_snapshot(spec(71, "made by the facet"))).unwrap();
    let made = w.rig.run(w.pool.snapshot_info(Uuid::from_u128(71))).unwrap();
    assert_eq!((made.name.as_str(), made.source), ("made by the facet", Some(uuid)));
    let again = w.rig.run(snapshots.create_snapshot(spec(71, "another name"))).unwrap_err();
    assert_eq!(again.errno(), errno::EEXIST, "{again:?}");
    let nameless = w.rig.run(snapshots.create_snapshot(spec(72, ""))).unwrap_err();
    assert_eq!(nameless.errno(), errno::EINVAL, "{nameless:?}");
    assert!(w.rig.run(w.pool.open_snapshot(Uuid::from_u128(71))).unwrap().snapshots().is_none());
    // Beyond the end nothing is.
    for (start, blocks) in [(BLOCKS, 5), (u64::MAX, u64::MAX), (0, 0)] {
        let range = BlockRange { start: Lba(start), blocks: BlockCount(blocks) };
        let page = w.rig.run(device.ranges().unwrap().allocated(Piece { range, most: 9 })).unwrap();
        assert_eq!((page.extents, page.next), (vec![], None));
    }
    w.rig.run(w.pool.destroy_volume(uuid)).unwrap();
    assert!(matches!(w.rig.run(device.ranges().unwrap().allocated(piece)), Err(FacetError::Gone { .. })));
}
