//! Scenarios of some hundred operations on disks that are written down, and crashes at every moment of them.

use std::rc::Rc;

use lvs::Pool;

use super::crash::{Budget, Explorer, Scene, Tried, end};
use super::disk::{Disk, Image};
use super::live::Live;
use super::model::{Model, Op, PARTS};
use super::script::{self, Bounds, Mix};
use super::tape::{Recording, Tape};
use super::walk::pool_spec;
use crate::rig::{Rig, Rng};

/// What there is to cut.
pub(crate) const SCENES: [&str; 14] = [
    "writes",
    "overlaps",
    "snapshots",
    "clones",
    "volumes",
    "resizes",
    "cleaning",
    "grow",
    "all",
    "full",
    "disks",
    "exports",
    "brief",
    "burst",
];

/// A scene, recorded.
struct Recorded {
    rig: Rc<Rig>,
    start: Vec<Image>,
    recording: Recording,
    from: usize,
    volatile: bool,
}

/// Records a scene and cuts it.
pub(crate) fn cut(name: &str, seed: u64, budget: Budget) -> Result<Tried, String> {
    let scene = record(name, seed);
    let mut explorer = Explorer::new(scene.rig.clone(), seed, scene.volatile, budget);
    let mut model = Model::default();
    let what = Scene { start: scene.start, recording: &scene.recording, from: scene.from };
    explorer.explore(what, &mut model).map_err(|e| format!("{name}, seed {seed}: {e}"))?;
    Ok(explorer.tried)
}

fn record(name: &str, seed: u64) -> Recorded {
    let mut rng = Rng::new(seed ^ 0xcafe);
    let rig = Rc::new(Rig::new());
    let tape = Tape::default();
    let volatile = !rng.one_in(4) || name == "burst";
    let block_bytes = if rng.one_in(2) { 512 } else { 4096 };
    let count = 1 + usize::from(name == "disks" || (name == "all" && rng.one_in(2)));
    let start: Vec<Image> = (0..count).map(|_| Image::empty(block_bytes, 20)).collect();
    let disk = |(i, image): (usize, &Image)| Disk::new(i, image.clone(), volatile, seed, Some(tape.clone()));
    let disks: Vec<Disk> = start.iter().enumerate().map(disk).collect();
    let first = if name == "disks" { &disks[..1] } else { &disks[..] };
    let devices = first.iter().map(Disk::device).collect();
    let pool = rig.run(Pool::create(rig.home(), devices, pool_spec())).unwrap();
    let live = Live::new(rig.clone(), pool, Model::default(), Some(tape.clone()), 1);
    live.disks.borrow_mut().clone_from(&disks);
    let mut play = Play { rng, live, unit: u64::from(block_bytes) / 512, disks, tape: tape.clone() };
    let from = play.play(name);
    let last = tape.len();
    super::live::trace(|| format!("{name}: {last} events, of which those from {from} on are cut"));
    let mut recording = tape.recording();
    recording.events.truncate(last);
    play.live.close();
    end(&rig, &play.disks, &play.live.pool);
    Recorded { rig, start, recording, from, volatile }
}

struct Play {
    rng: Rng,
    live: Live,
    unit: u64,
    disks: Vec<Disk>,
    tape: Tape,
}

impl Play {
    /// Plays. Returns where what counts begins.
    fn play(&mut self, name: &str) -> usize {
        let none = Mix { data: 0, snapshots: 0, clones: 0, volumes: 0, resizes: 0, checkpoints: 0 };
        match name {
            "writes" => self.steps(96, 60, Mix { data: 30, checkpoints: 1, ..none }, 5),
            "overlaps" => self.steps(32, 30, Mix { data: 20, checkpoints: 1, ..none }, 2),
            "snapshots" => self.steps(48, 50, Mix { data: 10, snapshots: 6, checkpoints: 1, ..none }, 5),
            "clones" => {
                let mix = Mix { data: 8, snapshots: 5, clones: 4, volumes: 3, checkpoints: 2, ..none };
                self.steps(32, 60, mix, 8)
            }
            "volumes" => {
                self.steps(48, 50, Mix { data: 8, volumes: 5, snapshots: 1, checkpoints: 2, ..none }, 8)
            }
            "resizes" => {
                let mix = Mix { data: 10, resizes: 5, snapshots: 1, checkpoints: 2, ..none };
                self.steps(64, 50, mix, 8)
            }
            "cleaning" => self.cleaning(),
            "grow" => self.grow(),
            "full" => self.full(),
            "disks" => self.disks(),
            "exports" => self.exports(),
            "burst" => self.burst(),
            "brief" => self.steps(12, 9, Mix { data: 12, snapshots: 3, checkpoints: 2, ..none }, 2),
            _ => self.steps(64, 80, Mix { data: 40, ..Mix::ALL }, 4),
        }
    }

    /// Operations of a mix; one in `groups` is a group of some that are in flight together.
    fn steps(&mut self, blocks: u64, count: u64, mix: Mix, groups: u64) -> usize {
        let bounds = Bounds { volumes: 4, snapshots: 5, blocks, unit: self.unit, thick: self.rng.one_in(3) };
        let volume = self.live.next_uuid();
        self.live.good(Op::CreateVolume { uuid: volume, blocks, thin: true });
        let from = self.tape.len();
        for _ in 0..count {
            if self.rng.one_in(groups) {
                self.group();
            } else {
                let op = script::next(&mut self.rng, &self.live, &mix, &bounds);
                self.live.good(op);
            }
        }
        from
    }

    /// Some in flight together.
    fn group(&mut self) {
        let volumes = self.live.model.borrow().volumes();
        if volumes.is_empty() {
            return;
        }
        let rng = &mut self.rng;
        let (volume, blocks) = volumes[rng.below(volumes.len() as u64) as usize];
        let (count, overlap) = (2 + rng.below(7), rng.one_in(2));
        let mut ops = script::together(rng, volume, blocks.min(24), count, overlap, true);
        if rng.one_in(3) {
            ops.insert(rng.below(ops.len() as u64 + 1) as usize, Op::Flush { volume });
        }
        if rng.one_in(4) {
            ops.push(Op::Checkpoint);
        }
        self.live.run_all(ops).into_iter().for_each(Result::unwrap);
    }

    /// Fills most of the pool and overwrites it, until the cleaner has worked a while.
    fn cleaning(&mut self) -> usize {
        let info = self.live.rig.run(self.live.pool.info()).unwrap();
        let blocks = info.capacity_bytes / 4096 * 8 / 10;
        let (parts, volume) = (PARTS as u64, self.live.next_uuid());
        self.live.good(Op::CreateVolume { uuid: volume, blocks, thin: true });
        for first in (0..blocks).step_by(32) {
            let count = 32.min(blocks - first) * parts;
            self.live.good(Op::Write { volume, first: first * parts, count, fua: false });
        }
        let snapshot = self.live.next_uuid();
        if self.rng.one_in(2) {
            self.live.good(Op::CreateSnapshot { volume, uuid: snapshot });
            self.live.good(Op::DestroySnapshot { uuid: snapshot });
        }
        let mut from = 0;
        for round in 0..110 {
            let rng = &mut self.rng;
            let mut ops = script::together(rng, volume, blocks, 6, false, true);
            if rng.one_in(8) {
                ops.push(Op::Flush { volume });
            }
            self.live.run_all(ops).into_iter().for_each(Result::unwrap);
            let info = self.live.rig.run(self.live.pool.info()).unwrap();
            if from == 0 && (info.segments.1 <= 13 || round == 60) {
                from = self.tape.len();
            }
            if round % 16 == 15 {
                self.live.good(Op::Checkpoint);
            }
        }
        from
    }

    /// Fills the pool until nothing more goes in, and lives on in it.
    fn full(&mut self) -> usize {
        let capacity = self.live.rig.run(self.live.pool.info()).unwrap().capacity_bytes / 4096;
        let (parts, volume) = (PARTS as u64, self.live.next_uuid());
        self.live.good(Op::CreateVolume { uuid: volume, blocks: capacity, thin: true });
        let write = |first: u64, count: u64| Op::Write {
            volume,
            first: first * parts,
            count: count.min(capacity - first) * parts,
            fua: false,
        };
        for first in (0..capacity * 6 / 10).step_by(32) {
            self.live.good(write(first, 32));
        }
        let mut snapshot = Some(self.live.next_uuid());
        self.live.good(Op::CreateSnapshot { volume, uuid: snapshot.unwrap() });
        // What the pool has no room for fails, and only that.
        let mut refused = 0;
        for first in (0..capacity).step_by(16) {
            refused += u32::from(self.live.run(write(first, 16)).is_err());
        }
        assert!(refused > 0, "the pool is not full");
        let from = self.tape.len();
        for _ in 0..70 {
            let rng = &mut self.rng;
            let ops = match (rng.below(12), snapshot) {
                (0, Some(uuid)) => {
                    snapshot = None;
                    vec![Op::DestroySnapshot { uuid }]
                }
                (0 | 1, None) => {
                    snapshot = Some(self.live.next_uuid());
                    vec![Op::CreateSnapshot { volume, uuid: self.live.next_uuid() }]
                }
                (2, _) => vec![Op::Checkpoint],
                (3, _) => vec![Op::Flush { volume }],
                (4, _) => {
                    let first = rng.below(capacity - 40);
                    vec![Op::Unmap { volume, first: first * parts, count: (1 + rng.below(40)) * parts }]
                }
                _ => script::together(rng, volume, capacity, 5, false, true),
            };
            let made = matches!(ops[0], Op::CreateSnapshot { .. });
            for done in self.live.run_all(ops) {
                let Err(error) = done else { continue };
                assert!(
                    error.contains("free") || error.contains("CAPACITY") || error.contains("apacity"),
                    "{error}"
                );
                snapshot = snapshot.filter(|_| !made);
            }
        }
        from
    }

    /// Disks join and leave while volumes are written.
    fn disks(&mut self) -> usize {
        let (blocks, volume) = (400, self.live.next_uuid());
        self.live.good(Op::CreateVolume { uuid: volume, blocks, thin: true });
        for first in (0..blocks).step_by(8) {
            self.live.good(Op::Write {
                volume,
                first: first * PARTS as u64,
                count: 5 * PARTS as u64,
                fua: false,
            });
        }
        self.live.good(Op::Checkpoint);
        let from = self.tape.len();
        let uuid = self.live.next_uuid();
        self.live.good(Op::CreateSnapshot { volume, uuid });
        for (disk, joins) in [(1, true), (0, false), (0, true), (1, false)] {
            let mut ops = script::together(&mut self.rng, volume, blocks, 12, false, true);
            ops.push(if joins { Op::AddDisk { disk } } else { Op::RemoveDisk { disk } });
            ops.push(Op::Flush { volume });
            self.live.run_all(ops).into_iter().for_each(Result::unwrap);
            self.group();
        }
        from
    }

    /// Writes that nobody flushes: more of them than all subsets can be tried of.
    fn burst(&mut self) -> usize {
        let (parts, volume) = (PARTS as u64, self.live.next_uuid());
        self.live.good(Op::CreateVolume { uuid: volume, blocks: 16, thin: true });
        let from = self.tape.len();
        for _ in 0..11 {
            let first = self.rng.below(15) * parts;
            self.live.good(Op::Write { volume, first, count: (1 + self.rng.below(2)) * parts, fua: false });
        }
        from
    }

    /// The pool is exported and imported, twice.
    fn exports(&mut self) -> usize {
        let mix = Mix { data: 12, snapshots: 3, checkpoints: 1, resizes: 0, clones: 0, volumes: 1 };
        let from = self.steps(48, 12, mix, 3);
        for _ in 0..2 {
            self.live.close();
            self.live.rig.run(self.live.pool.export()).unwrap();
            let pool = super::crash::import(&self.live.rig, &self.disks).unwrap();
            self.live = self.live.on(pool);
            self.steps(48, 12, mix, 3);
        }
        from
    }

    /// The disks become larger, and then the pool.
    fn grow(&mut self) -> usize {
        let volume = self.live.next_uuid();
        self.live.good(Op::CreateVolume { uuid: volume, blocks: 64, thin: true });
        let from = self.tape.len();
        for mib in [24, 25, 40] {
            self.group();
            self.disks[0].grow(mib);
            self.live.good(Op::Grow);
            self.group();
            // So much that the new segments are used.
            for _ in 0..4 {
                let first = self.rng.below(32) * PARTS as u64;
                self.live.good(Op::Write { volume, first, count: 32 * PARTS as u64, fua: false });
            }
            self.live.good(Op::Checkpoint);
        }
        from
    }
}
