//! Operations by a seed: what users do to a pool, in odd shapes.

use uuid::Uuid;

use super::live::Live;
use super::model::{Op, PARTS};
use crate::rig::Rng;

/// How often what is done, in parts of the sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    pub(crate) data: u64,
    pub(crate) snapshots: u64,
    pub(crate) clones: u64,
    pub(crate) volumes: u64,
    pub(crate) resizes: u64,
    pub(crate) checkpoints: u64,
}

impl Mix {
    /// Some of everything.
    pub(crate) const ALL: Self =
        Self { data: 60, snapshots: 8, clones: 5, volumes: 4, resizes: 4, checkpoints: 3 };
}

/// Bounds of what a script makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) volumes: usize,
    pub(crate) snapshots: usize,
    /// Blocks of the largest volume.
    pub(crate) blocks: u64,
    /// Units of the disks' blocks, in parts: 1 or 8.
    pub(crate) unit: u64,
    /// Thick volumes, too.
    pub(crate) thick: bool,
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> Option<T> {
    if from.is_empty() { None } else { Some(from[rng.below(from.len() as u64) as usize]) }
}

/// A range of a volume, in parts.
fn range(rng: &mut Rng, blocks: u64, unit: u64) -> (u64, u64) {
    let parts = PARTS as u64;
    let units = blocks * parts / unit;
    let most = match rng.below(8) {
        0 => 32 * parts / unit,
        1..=3 => parts / unit,
        _ => 2 * parts / unit,
    };
    let count = 1 + rng.below(most.min(units).max(1));
    let mut first = rng.below(units - count + 1);
    if rng.one_in(2) {
        // Whole blocks.
        first = first * unit / parts * parts / unit;
    }
    // What is used is near the beginning, so that it meets.
    if !rng.one_in(4) {
        first %= (units / 4).max(1);
    }
    (first.min(units - count) * unit, count * unit)
}

/// Something about blocks.
pub(crate) fn data(rng: &mut Rng, volume: Uuid, blocks: u64, unit: u64) -> Op {
    let (first, count) = range(rng, blocks, unit);
    match rng.below(20) {
        0..=12 => Op::Write { volume, first, count, fua: rng.one_in(8) },
        13 | 14 => Op::Zeroes { volume, first, count },
        15 | 16 => Op::Unmap { volume, first, count },
        _ => Op::Flush { volume },
    }
}

/// The next operation.
pub(crate) fn next(rng: &mut Rng, live: &Live, mix: &Mix, bounds: &Bounds) -> Op {
    let (volumes, snapshots) = (live.model.borrow().volumes(), live.model.borrow().snapshots());
    let uuid = live.next_uuid();
    let new = |rng: &mut Rng| Op::CreateVolume {
        uuid,
        blocks: 1 + rng.below(bounds.blocks),
        thin: !bounds.thick || !rng.one_in(3),
    };
    let Some((volume, blocks)) = pick(rng, &volumes) else { return new(rng) };
    let mut draw =
        rng.below(mix.data + mix.snapshots + mix.clones + mix.volumes + mix.resizes + mix.checkpoints);
    let mut is = |share: u64| {
        let hit = draw < share;
        draw -= if hit { 0 } else { share };
        hit
    };
    if is(mix.data) {
        return data(rng, volume, blocks, bounds.unit);
    }
    if is(mix.snapshots) {
        let full = snapshots.len() >= bounds.snapshots || rng.one_in(3);
        return match pick(rng, &snapshots).filter(|_| full) {
            Some(uuid) => Op::DestroySnapshot { uuid },
            None => Op::CreateSnapshot { volume, uuid },
        };
    }
    if is(mix.clones)
        && let Some(snapshot) = pick(rng, &snapshots)
        && volumes.len() < bounds.volumes
    {
        return Op::CreateClone { snapshot, uuid };
    }
    if is(mix.volumes) {
        let full = volumes.len() >= bounds.volumes || rng.one_in(3);
        return if full { Op::DestroyVolume { uuid: volume } } else { new(rng) };
    }
    if is(mix.resizes) {
        return Op::Resize { uuid: volume, blocks: 1 + rng.below(bounds.blocks) };
    }
    Op::Checkpoint
}

/// Writes that are in flight together: to blocks of their own, or (`overlap`) whole blocks that meet.
pub(crate) fn together(
    rng: &mut Rng,
    volume: Uuid,
    blocks: u64,
    count: u64,
    overlap: bool,
    fua: bool,
) -> Vec<Op> {
    let parts = PARTS as u64;
    let mut taken = std::collections::BTreeSet::new();
    let mut ops = Vec::new();
    for _ in 0..count {
        let len = 1 + rng.below(4).min(blocks - 1);
        let first = rng.below(blocks - len + 1);
        if !overlap && !(first..first + len).all(|b| taken.insert(b)) {
            continue;
        }
        let (first, count) = (first * parts, len * parts);
        ops.push(match rng.below(8) {
            0 => Op::Unmap { volume, first, count },
            _ => Op::Write { volume, first, count, fua: fua && rng.one_in(6) },
        });
    }
    ops
}
