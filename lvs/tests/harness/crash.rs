//! Every moment of a recording as a crash: what is durable by then, with subsets of what is not, some of it torn, is
//! imported and judged.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use super::disk::{Block, Disk, Image};
use super::look::look;
use super::model::{Model, Seen};
use super::tape::{Event, Recording, Tape};
use crate::rig::{Rig, Rng};
use aio::BlockDevice;
use lvs::info::ImportPool;
use lvs::{LvsError, Pool};

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// With so many writes that are not durable, or fewer, all subsets are tried.
    pub(crate) all_subsets_of: usize,
    /// Otherwise so many, drawn.
    pub(crate) per_cut: usize,
    /// About so many moments of a recording, drawn; 0 = all.
    pub(crate) moments: u64,
    /// One in so many images is used further: checkpoint, crash, import, and the same is there.
    pub(crate) deep: u64,
    /// In one in so many images the import itself is cut, at each moment.
    pub(crate) nested: u64,
    /// One in so many images goes through the offline checker.
    pub(crate) check: u64,
}

/// What was tried.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Tried {
    pub(crate) moments: u64,
    pub(crate) images: u64,
    pub(crate) imports: u64,
    pub(crate) nested: u64,
}

/// Says whether what was read is right, at each moment.
pub(crate) trait Judge {
    /// This happened.
    fn event(&mut self, event: &Event);
    /// Is it right?
    fn judge(&self, seen: &Seen) -> Result<(), String>;
}

impl Judge for Model {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Begin { id, op } => self.begin(*id, op),
            Event::End { id, good } => self.end(*id, *good),
            _ => {}
        }
    }

    fn judge(&self, seen: &Seen) -> Result<(), String> {
        self.check(seen, true)
    }
}

/// Once something was seen, it stays.
struct Same(Rc<Seen>);

impl Judge for Same {
    fn event(&mut self, _: &Event) {}

    fn judge(&self, seen: &Seen) -> Result<(), String> {
        if *seen == *self.0 { Ok(()) } else { Err("it is not what the first import found".to_owned()) }
    }
}

/// A write that a crash may leave or not.
struct Pending {
    write: usize,
    disk: usize,
    completed: bool,
    blocks: Vec<(u64, Block)>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    No,
    Yes,
    /// Some of its blocks.
    Torn(u64),
}

impl Keep {
    fn keeps(self, index: usize) -> bool {
        match self {
            Self::No => false,
            Self::Yes => true,
            Self::Torn(salt) => mix(salt ^ index as u64) & 1 == 0,
        }
    }
}

fn mix(x: u64) -> u64 {
    Rng::new(x).next()
}

/// The disks at a moment.
struct State {
    images: Vec<Image>,
    hash: u64,
    pending: Vec<Pending>,
    /// What each flush that is in flight covers.
    flushes: BTreeMap<usize, Vec<usize>>,
}

fn hash_of(disk: usize, lba: u64, block: Option<&Block>) -> u64 {
    block.map_or(0, |b| mix(b.hash() ^ mix(lba << 6 | disk as u64)))
}

impl State {
    fn new(images: Vec<Image>) -> Self {
        let hashes = images.iter().enumerate().flat_map(|(disk, image)| {
            image.blocks.iter().map(move |(&lba, block)| hash_of(disk, lba, Some(block)))
        });
        let hash = hashes.fold(0, |a, b| a ^ b);
        Self { images, hash, pending: Vec::new(), flushes: BTreeMap::new() }
    }

    fn save(&mut self, at: usize) {
        let done = self.pending.remove(at);
        for (lba, block) in done.blocks {
            // What is on the medium now is newer than what was written there before and is not durable.
            for other in self.pending.iter_mut().filter(|p| p.disk == done.disk && p.write < done.write) {
                other.blocks.retain(|(at, _)| *at != lba);
            }
            let new = hash_of(done.disk, lba, Some(&block));
            let old = self.images[done.disk].blocks.insert(lba, block);
            self.hash ^= new ^ hash_of(done.disk, lba, old.as_ref());
        }
    }

    /// True when a crash may find something else from now on.
    fn apply(&mut self, event: &Event, rec: &Recording) -> bool {
        let place = |pending: &[Pending], write| pending.iter().position(|p| p.write == write);
        match *event {
            Event::Submitted { write } => {
                let w = &rec.writes[write];
                let blocks = (w.lba..).zip(w.blocks.iter().cloned()).collect();
                self.pending.push(Pending { write, disk: w.disk, completed: false, blocks });
                true
            }
            Event::Completed { write, durable } => {
                let Some(at) = place(&self.pending, write) else { return false };
                self.pending[at].completed = true;
                if durable {
                    self.save(at);
                }
                durable
            }
            Event::Failed { write } => {
                let Some(at) = place(&self.pending, write) else { return false };
                self.pending.remove(at);
                true
            }
            Event::FlushBegun { flush } => {
                let disk = rec.flushes[flush];
                let covered = self.pending.iter().filter(|p| p.disk == disk && p.completed);
                self.flushes.insert(flush, covered.map(|p| p.write).collect());
                false
            }
            Event::Flushed { flush } => {
                for write in self.flushes.remove(&flush).unwrap_or_default() {
                    if let Some(at) = place(&self.pending, write) {
                        self.save(at);
                    }
                }
                true
            }
            Event::Grown { disk, len_blocks } => {
                self.images[disk].len_blocks = len_blocks;
                true
            }
            Event::Begin { .. } | Event::End { .. } => false,
        }
    }

    /// What a crash leaves with these survivors.
    fn survivors(&self, choice: &[Keep]) -> BTreeMap<(usize, u64), Block> {
        let mut over = BTreeMap::new();
        for (pending, keep) in self.pending.iter().zip(choice) {
            for (i, (lba, block)) in pending.blocks.iter().enumerate() {
                if keep.keeps(i) {
                    over.insert((pending.disk, *lba), block.clone());
                }
            }
        }
        over
    }

    fn choices(&self, rng: &mut Rng, budget: &Budget) -> Vec<Vec<Keep>> {
        let n = self.pending.len();
        let mut all = Vec::new();
        if n <= budget.all_subsets_of {
            for bits in 0..1u64 << n {
                all.push((0..n).map(|i| if bits >> i & 1 == 1 { Keep::Yes } else { Keep::No }).collect());
            }
            for at in (0..n).filter(|&at| self.pending[at].blocks.len() > 1) {
                let mut choice: Vec<Keep> =
                    (0..n).map(|_| if rng.one_in(2) { Keep::Yes } else { Keep::No }).collect();
                choice[at] = Keep::Torn(rng.next());
                all.push(choice);
            }
            return all;
        }
        for round in 0..budget.per_cut {
            let (keep, tear) = match rng.below(6) {
                0 => (0, 0),
                1 => (256, 0),
                2 => (240, 30),
                3 => (16, 60),
                _ => (128, 60),
            };
            let draw = |rng: &mut Rng| match () {
                () if rng.below(256) < tear => Keep::Torn(rng.next()),
                () if rng.below(256) < keep => Keep::Yes,
                () => Keep::No,
            };
            // What was written last is what is seldom there alone.
            let mut choice: Vec<Keep> = (0..n).map(|_| draw(rng)).collect();
            if round % 2 == 1 {
                choice[n - 1] = Keep::Yes;
            }
            all.push(choice);
        }
        all
    }
}

/// Tries crashes.
pub(crate) struct Explorer {
    pub(crate) rig: Rc<Rig>,
    pub(crate) rng: Rng,
    pub(crate) budget: Budget,
    pub(crate) volatile: bool,
    pub(crate) tried: Tried,
    /// What was found on images that were tried already.
    known: HashMap<u64, Result<Rc<Seen>, String>>,
}

/// A recording, and where crashes in it begin.
pub(crate) struct Scene<'a> {
    pub(crate) start: Vec<Image>,
    pub(crate) recording: &'a Recording,
    /// The first moment.
    pub(crate) from: usize,
}

impl Explorer {
    pub(crate) fn new(rig: Rc<Rig>, seed: u64, volatile: bool, budget: Budget) -> Self {
        let (rng, tried, known) = (Rng::new(seed ^ 0xdead), Tried::default(), HashMap::new());
        Self { rig, rng, budget, volatile, tried, known }
    }

    /// Crashes at each moment; what is wrong with the first that is.
    pub(crate) fn explore(&mut self, scene: Scene<'_>, judge: &mut dyn Judge) -> Result<(), String> {
        self.explore_to(scene, judge, 2)
    }

    fn explore_to(&mut self, scene: Scene<'_>, judge: &mut dyn Judge, depth: u32) -> Result<(), String> {
        let of_disks = |event: &&Event| !matches!(event, Event::Begin { .. } | Event::End { .. });
        let events = scene.recording.events[scene.from..].iter().filter(of_disks).count() as u64;
        let stride = events.checked_div(self.budget.moments).unwrap_or(1).max(1);
        let mut left = self.rng.below(stride);
        let mut state = State::new(scene.start);
        let mut current: Vec<(String, Rc<Seen>)> = Vec::new();
        for (at, event) in scene.recording.events.iter().enumerate() {
            judge.event(event);
            let changed = state.apply(event, scene.recording);
            if at < scene.from {
                continue;
            }
            if changed {
                current.clear();
                // About every so many of them.
                if left == 0 {
                    self.tried.moments += 1;
                    current = self.cut(&state, at, depth)?;
                    left = stride - 1 + self.rng.below(3).min(stride - 1);
                } else {
                    left -= 1;
                }
            }
            if changed || matches!(event, Event::End { .. }) {
                for (name, seen) in &current {
                    judge.judge(seen).map_err(|e| format!("at event {at}: {name}: {e}"))?;
                }
            }
        }
        Ok(())
    }

    /// The images of a moment, imported.
    fn cut(&mut self, state: &State, at: usize, depth: u32) -> Result<Vec<(String, Rc<Seen>)>, String> {
        let budget = self.budget;
        let choices = state.choices(&mut self.rng, &budget);
        let mut found = Vec::new();
        for choice in choices {
            let over = state.survivors(&choice);
            let mut hash = state.hash;
            for ((disk, lba), block) in &over {
                let old = state.images[*disk].blocks.get(lba);
                hash ^= hash_of(*disk, *lba, Some(block)) ^ hash_of(*disk, *lba, old);
            }
            hash ^= state.images.iter().fold(0, |h, i| mix(h ^ i.len_blocks));
            self.tried.images += 1;
            let name = format!("of {} writes {choice:?} survived", choice.len());
            if !self.known.contains_key(&hash) {
                let mut images = state.images.clone();
                for ((disk, lba), block) in over {
                    images[disk].blocks.insert(lba, block);
                }
                let result = self.import(images, depth);
                self.known.insert(hash, result);
            }
            let seen = self.known[&hash].clone().map_err(|e| format!("at event {at}: {name}: {e}"))?;
            found.push((name, seen));
        }
        Ok(found)
    }

    fn disks(&mut self, images: &[Image], tape: Option<&Tape>) -> Vec<Disk> {
        let seed = self.rng.next();
        let disk =
            |(i, image): (usize, &Image)| Disk::new(i, image.clone(), self.volatile, seed, tape.cloned());
        images.iter().enumerate().map(disk).collect()
    }

    /// What is in an image.
    fn import(&mut self, images: Vec<Image>, depth: u32) -> Result<Rc<Seen>, String> {
        self.tried.imports += 1;
        if self.rng.one_in(self.budget.check) {
            let disks = self.disks(&images, None);
            check_image(&self.rig, &disks)?;
        }
        let nested = depth > 0 && self.budget.nested > 0 && self.rng.one_in(self.budget.nested);
        let tape = nested.then(Tape::default);
        let disks = self.disks(&images, tape.as_ref());
        let pool = import(&self.rig, &disks)?;
        bounded(&disks)?;
        let seen = Rc::new(self.rig.run(look(&pool))?);
        let deep = self.budget.deep > 0 && self.rng.one_in(self.budget.deep);
        let used = if deep { self.use_further(&pool, &seen)? } else { 0 };
        end(&self.rig, &disks, &pool);
        if deep {
            let images: Vec<Image> = disks.iter().map(Disk::image).collect();
            let disks = self.disks(&images, None);
            check_image(&self.rig, &disks)?;
            let disks = self.disks(&images, None);
            let pool = import(&self.rig, &disks)?;
            let again = self.rig.run(look(&pool))?;
            let now = self.use_further(&pool, &seen)?;
            end(&self.rig, &disks, &pool);
            if again != *seen || now != used {
                return Err(format!("a second import finds something else ({used} and {now} bytes used)"));
            }
        }
        if let Some(tape) = tape {
            self.tried.nested += 1;
            self.cut_import(images, &tape.recording(), &seen, depth)?;
        }
        Ok(seen)
    }

    /// Crashes during an import, and imports again.
    fn cut_import(
        &mut self,
        start: Vec<Image>,
        recording: &Recording,
        seen: &Rc<Seen>,
        depth: u32,
    ) -> Result<(), String> {
        let budget = self.budget;
        self.budget = Budget {
            moments: self.budget.moments.min(16),
            per_cut: 2,
            all_subsets_of: 2,
            deep: 0,
            nested: 12,
            check: 4,
        };
        let scene = Scene { start, recording, from: 0 };
        let result = self.explore_to(scene, &mut Same(seen.clone()), depth - 1);
        self.budget = budget;
        result.map_err(|e| format!("cut during the import: {e}"))
    }

    /// Checkpoints; the same has to be there. The bytes in use.
    fn use_further(&self, pool: &Pool, seen: &Seen) -> Result<u64, String> {
        let mut used = u64::MAX;
        for _ in 0..6 {
            self.rig.run(pool.checkpoint()).map_err(|e| format!("a checkpoint after the import: {e}"))?;
            used = self.rig.run(pool.info()).map_err(|e| e.to_string())?.used_bytes;
        }
        let again = self.rig.run(look(pool))?;
        if again != *seen {
            return Err("a checkpoint after the import changed something".to_owned());
        }
        Ok(used)
    }
}

/// What is durable at the end of a recording, from these images on.
pub(crate) fn durable(start: Vec<Image>, recording: &Recording) -> Vec<Image> {
    let mut state = State::new(start);
    recording.events.iter().for_each(|event| {
        state.apply(event, recording);
    });
    state.images
}

/// Import reads what the anchor names, and nothing in proportion to what the pool holds (H16).
fn bounded(disks: &[Disk]) -> Result<(), String> {
    let read: u64 = disks.iter().map(|d| d.counts().read_bytes).sum();
    let tables = 4 << 20;
    let superblocks = disks.len() as u64 * (1 << 20);
    let named: u64 = disks
        .iter()
        .map(|d| {
            let image = d.image();
            image.len_blocks * u64::from(image.block_bytes)
        })
        .sum();
    // What is named is read once, and blocks that may be torn a second time.
    let most = 2 * named.min(192 << 20) + superblocks + tables;
    if read > most { Err(format!("the import read {read} bytes, and {most} are the most")) } else { Ok(()) }
}

/// Does the error say that one of several disks is none of the pool any more, or not yet? Its name.
fn stranger(error: &LvsError) -> Option<&str> {
    match error {
        LvsError::StaleDisk { disk, .. } | LvsError::NoPool { disk } => Some(disk),
        // Its superblocks were being written, or erased.
        LvsError::Damaged { pool, .. } => pool.strip_prefix("on "),
        _ => None,
    }
}

/// Does something with these disks, or with those of them that belong to the pool: a member that is left out is missed.
fn with_members<T>(
    disks: &[Disk],
    mut act: impl FnMut(Vec<Arc<dyn BlockDevice>>) -> Result<T, LvsError>,
) -> Result<T, String> {
    let mut given: Vec<&Disk> = disks.iter().collect();
    let mut left_out = String::new();
    loop {
        let error = match act(given.iter().map(|d| d.device()).collect()) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match stranger(&error).and_then(|name| given.iter().position(|d| d.called() == name)) {
            Some(at) if given.len() > 1 => drop(given.remove(at)),
            _ => return Err(format!("{error}{left_out}")),
        }
        left_out += &format!("; before: {error}");
    }
}

/// Opens the pool on these disks.
pub(crate) fn import(rig: &Rig, disks: &[Disk]) -> Result<Pool, String> {
    let imported = with_members(disks, |devices| {
        rig.run_for(20_000_000, Pool::import(rig.home(), devices, ImportPool::default()))
            .expect("the import hangs")
    });
    imported.map_err(|e| format!("no import: {e}"))
}

/// The disks are gone, and the pool with them.
pub(crate) fn end(rig: &Rig, disks: &[Disk], pool: &Pool) {
    disks.iter().for_each(Disk::cut);
    let _ = rig.run(pool.export());
}

/// The offline checker finds nothing, and writes nothing.
pub(crate) fn check_image(rig: &Rig, disks: &[Disk]) -> Result<(), String> {
    let report = with_members(disks, |devices| {
        rig.run(lvs::check(rig.home(), devices, lvs::info::CheckWish::everything()))
    });
    let report = report.map_err(|e| format!("check: {e}"))?;
    if let Some(finding) = report.findings.first() {
        return Err(format!("the checker finds: {finding}"));
    }
    if disks.iter().any(|d| d.counts().writes > 0) {
        return Err("the checker wrote something".to_owned());
    }
    Ok(())
}
