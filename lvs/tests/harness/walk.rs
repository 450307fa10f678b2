//! Long walks: operations by a seed on simulated disks, with crashes, exports and imports in between, beside the model.

use std::rc::Rc;

use aio::devices::sim::SimDisk;
use lvs::Pool;
use lvs::info::{CreatePool, ImportPool};

use super::live::{Live, trace};
use super::look::look;
use super::model::{Model, Op};
use super::script::{self, Bounds, Mix};
use crate::rig::{Rig, Rng, on};

pub(crate) fn pool_spec() -> CreatePool {
    CreatePool { name: "tpool".to_owned(), uuid: None, force: false }
}

/// What a walk does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Crashes, or exports, and imports.
    pub(crate) rounds: u64,
    /// Operations between them, at most.
    pub(crate) steps: u64,
}

/// Walks. Panics on the first thing that is wrong; the seed is in the message of whoever calls.
pub(crate) fn walk(seed: u64, walk: Walk) {
    let mut rng = Rng::new(seed);
    let rig = Rc::new(Rig::new());
    let block_bytes = if rng.one_in(2) { 512 } else { 4096 };
    let volatile = !rng.one_in(4);
    let count = 1 + rng.below(2);
    let mib = if rng.one_in(3) { 20 } else { 40 };
    let disks: Vec<SimDisk> =
        (0..count).map(|i| rig.disk(&format!("d{i}"), block_bytes, mib, volatile, seed * 16 + i)).collect();
    let devices = || disks.iter().map(on).collect();
    let pool = rig.run(Pool::create(rig.home(), devices(), pool_spec())).unwrap();
    let bounds = Bounds {
        volumes: 4,
        snapshots: 6,
        blocks: if count == 1 && mib == 20 { 192 } else { 512 },
        unit: u64::from(block_bytes) / 512,
        thick: rng.one_in(2),
    };
    let mix = match rng.below(3) {
        0 => Mix { data: 400, ..Mix::ALL },
        _ => Mix::ALL,
    };
    let mut live = Live::new(rig.clone(), pool, Model::default(), None, 1);
    for _ in 0..walk.rounds {
        for _ in 0..rng.below(walk.steps) {
            step(&mut rng, &live, &mix, &bounds);
        }
        live.check();
        if rng.one_in(3) {
            live.check_space();
            live.check();
        }
        let crashed = !rng.one_in(4);
        trace(|| format!("crash: {crashed}"));
        if crashed {
            crash(&mut rng, &live, &mix, &bounds, &disks);
        } else {
            live.close();
            rig.run(live.pool.export()).unwrap();
        }
        // Dropped first: what it has open goes with the pool.
        let (model, next) = (live.model.borrow().clone(), live.next());
        drop(live);
        let report = rig.run(lvs::check(rig.home(), devices(), lvs::info::CheckWish::everything())).unwrap();
        assert_eq!(report.findings, Vec::<String>::new());
        let pool = rig.run(Pool::import(rig.home(), devices(), ImportPool::default())).unwrap();
        live = Live::new(rig.clone(), pool, model, None, next);
        let seen = rig.run(look(&live.pool)).unwrap();
        let mut model = live.model.borrow_mut();
        model.check(&seen, crashed).unwrap();
        model.settle(&seen, crashed);
    }
    live.check_space();
    live.check();
    live.close();
    rig.run(live.pool.destroy()).unwrap();
}

fn step(rng: &mut Rng, live: &Live, mix: &Mix, bounds: &Bounds) {
    if !rng.one_in(6) {
        let op = script::next(rng, live, mix, bounds);
        let resized = matches!(op, Op::Resize { .. } | Op::CreateVolume { .. } | Op::CreateSnapshot { .. });
        let name = format!("{op:?}");
        if let Err(error) = live.run(op) {
            // What is reserved for thick volumes may not be there.
            assert!(bounds.thick && resized && error.contains("free"), "{name}: {error}");
        }
        return;
    }
    let ops = group(rng, live, bounds);
    let fault = live.run_all(ops).into_iter().find_map(Result::err);
    assert_eq!(fault, None);
    // What is settled is exact again.
    live.check();
}

/// Some that are in flight together.
fn group(rng: &mut Rng, live: &Live, bounds: &Bounds) -> Vec<Op> {
    let volumes = live.model.borrow().volumes();
    if volumes.is_empty() {
        return Vec::new();
    }
    let (volume, blocks) = volumes[rng.below(volumes.len() as u64) as usize];
    let (count, overlap) = (2 + rng.below(12), rng.one_in(3));
    let mut ops = script::together(rng, volume, blocks.min(64), count, overlap, true);
    if rng.one_in(3) {
        ops.insert(rng.below(ops.len() as u64 + 1) as usize, Op::Flush { volume });
    }
    match rng.below(5) {
        0 => ops.push(Op::Checkpoint),
        1 if live.model.borrow().snapshots().len() < bounds.snapshots => {
            // Its identity is that of its own operation, which comes after the others.
            let uuid = uuid::Uuid::from_u128(0xdef << 64 | u128::from(live.next()));
            ops.insert(rng.below(ops.len() as u64 + 1) as usize, Op::CreateSnapshot { volume, uuid });
        }
        _ => {}
    }
    ops
}

/// The power goes with some in flight.
fn crash(rng: &mut Rng, live: &Live, mix: &Mix, bounds: &Bounds, disks: &[SimDisk]) {
    let mut ops = group(rng, live, bounds);
    if ops.iter().all(Op::is_data) && rng.one_in(2) {
        ops = vec![script::next(rng, live, mix, bounds)];
    }
    live.abandon(ops, rng.below(120));
    disks.iter().for_each(SimDisk::cut_power);
    live.close();
    let _ = live.rig.run(live.pool.export());
}
