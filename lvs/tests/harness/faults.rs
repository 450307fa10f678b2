//! Disks that fail otherwise than by losing power: what is wrong is found, and never served.

use std::rc::Rc;

use lvs::Pool;

use super::crash::{check_image, end, import};
use super::disk::{Disk, Fault, Image};
use super::live::Live;
use super::look::look;
use super::model::{Model, Op, Seen, UNREADABLE};
use super::script::{self, Bounds, Mix};
use super::tape::Tape;
use super::walk::pool_spec;
use crate::rig::{Rig, Rng};

/// Turns in which a quiet log says how far it is durable.
const QUIET_TURNS: u64 = 3_000;

/// Once in its life a disk does something wrong: which of them, and when, is drawn. Returns true when it happened.
pub(crate) fn fail_once(seed: u64) -> Result<bool, String> {
    let mut rng = Rng::new(seed ^ 0xfa);
    let play = Play::new(&mut rng, seed);
    let when = rng.below(120);
    let fault = match rng.below(5) {
        0 => Fault::FailWrite(when),
        1 => Fault::LoseWrite(when),
        2 => Fault::Misdirect(when, 8 * (1 + rng.below(400))),
        3 => Fault::FailFlush(rng.below(30)),
        _ => Fault::FailRead(rng.below(60)),
    };
    play.disk.strike(fault);
    play.live.model.borrow_mut().damaged = true;
    let name = format!("seed {seed}, {fault:?}");
    play.steps(&mut rng, 70).map_err(|e| format!("{name}: {e}"))?;
    (0..QUIET_TURNS).for_each(|_| play.live.rig.turn());
    // While it runs.
    let seen = play.live.rig.run(look(&play.live.pool));
    if let Ok(seen) = &seen {
        play.live.model.borrow().check(seen, false).map_err(|e| format!("{name}: running: {e}"))?;
    }
    let faulted = play.live.rig.run(play.live.pool.info()).map_or(true, |info| info.fault.is_some());
    let struck = play.disk.struck();
    let reported = matches!(fault, Fault::FailWrite(_) | Fault::FailFlush(_));
    if struck && reported && !faulted {
        return Err(format!("{name}: the pool is not faulted"));
    }
    play.live.close();
    if rng.one_in(2) && !faulted {
        let _ = play.live.rig.run(play.live.pool.export());
        play.disk.cut();
    } else {
        end(&play.live.rig, std::slice::from_ref(&play.disk), &play.live.pool);
    }
    // A flush that failed may have taken with it whatever was not durable: that is a crash.
    let mut image = play.disk.image();
    if struck && matches!(fault, Fault::FailFlush(_)) {
        image = play.durable_image();
    }
    let model = play.live.model.borrow();
    judge(&play.live.rig, &image, &model, true).map_err(|e| format!("{name}: {e}"))?;
    Ok(struck)
}

/// On a disk at rest single blocks go bad: a bit flips, a block cannot be read, or holds what it held before. Returns in how
/// many cases something could not be read, or the import was refused.
pub(crate) fn rot(seed: u64, rounds: u64) -> Result<u64, String> {
    let mut rng = Rng::new(seed ^ 0x0707);
    let play = Play::new(&mut rng, seed);
    play.steps(&mut rng, 60)?;
    if rng.one_in(2) {
        let _ = play.live.run(Op::Checkpoint);
        play.steps(&mut rng, 12)?;
    }
    let volumes = play.live.model.borrow().volumes();
    volumes.into_iter().for_each(|(volume, _)| play.live.good(Op::Flush { volume }));
    (0..QUIET_TURNS).for_each(|_| play.live.rig.turn());
    play.live.check();
    play.live.close();
    end(&play.live.rig, std::slice::from_ref(&play.disk), &play.live.pool);
    let image = play.disk.image();
    let mut model = play.live.model.borrow().clone();
    model.damaged = true;
    let used: Vec<u64> = image.blocks.keys().copied().collect();
    let recording = play.tape.recording();
    let mut noticed = 0;
    for round in 0..rounds {
        let mut bad = image.clone();
        let lba = used[rng.below(used.len() as u64) as usize];
        let (what, unreadable) = match rng.below(4) {
            0 => ("cannot be read", Some(lba)),
            1 => {
                // What the block held before its last write, or nothing.
                let writes =
                    recording.writes.iter().filter(|w| (w.lba..w.lba + w.blocks.len() as u64).contains(&lba));
                let versions: Vec<_> = writes.map(|w| w.blocks[(lba - w.lba) as usize].clone()).collect();
                match versions.len() {
                    0 | 1 => bad.blocks.remove(&lba),
                    n => bad.blocks.insert(lba, versions[n - 2].clone()),
                };
                ("holds what it held before", None)
            }
            _ => {
                bad.flip(lba, rng.below(1 << 20) as usize);
                ("has a wrong bit", None)
            }
        };
        let found = judge_bad(&play.live.rig, &bad, unreadable, &model);
        noticed +=
            u64::from(found.map_err(|e| format!("seed {seed}, round {round}: block {lba} {what}: {e}"))?);
    }
    Ok(noticed)
}

struct Play {
    disk: Disk,
    tape: Tape,
    live: Live,
    bounds: Bounds,
}

impl Play {
    fn new(rng: &mut Rng, seed: u64) -> Self {
        let block_bytes = if rng.one_in(2) { 512 } else { 4096 };
        let (rig, tape) = (Rc::new(Rig::new()), Tape::default());
        let disk = Disk::new(0, Image::empty(block_bytes, 20), !rng.one_in(4), seed, Some(tape.clone()));
        let pool = rig.run(Pool::create(rig.home(), vec![disk.device()], pool_spec())).unwrap();
        let live = Live::new(rig, pool, Model::default(), None, 1);
        let bounds =
            Bounds { volumes: 3, snapshots: 4, blocks: 96, unit: u64::from(block_bytes) / 512, thick: false };
        live.good(Op::CreateVolume { uuid: live.next_uuid(), blocks: 96, thin: true });
        Self { disk, tape, live, bounds }
    }

    /// Operations, some of them in flight together. They may fail.
    fn steps(&self, rng: &mut Rng, count: u64) -> Result<(), String> {
        for _ in 0..count {
            let volumes = self.live.model.borrow().volumes();
            if rng.one_in(6) && !volumes.is_empty() {
                let (volume, blocks) = volumes[rng.below(volumes.len() as u64) as usize];
                let ops = script::together(rng, volume, blocks, 5, false, true);
                self.run_all(ops)?;
            } else {
                let op = script::next(rng, &self.live, &Mix { data: 40, ..Mix::ALL }, &self.bounds);
                self.run_all(vec![op])?;
            }
        }
        Ok(())
    }

    /// Does these. What failed was done or not: a look tells.
    fn run_all(&self, ops: Vec<Op>) -> Result<(), String> {
        if self.live.run_all(ops).iter().any(Result::is_err)
            && let Ok(seen) = self.live.rig.run(look(&self.live.pool))
        {
            let mut model = self.live.model.borrow_mut();
            model.check(&seen, false).map_err(|e| format!("after an error: {e}"))?;
            model.settle(&seen, false);
        }
        Ok(())
    }

    /// What flushes and FUA made durable, and nothing else.
    fn durable_image(&self) -> Image {
        super::crash::durable(
            vec![Image { blocks: Default::default(), ..self.disk.image() }],
            &self.tape.recording(),
        )
        .remove(0)
    }
}

/// Imports, if that is possible, and compares. True when something could not be read, or there was no import.
fn judge(rig: &Rig, image: &Image, model: &Model, crashed: bool) -> Result<bool, String> {
    let disk = Disk::new(0, image.clone(), true, 7, None);
    let Ok(pool) = import(rig, std::slice::from_ref(&disk)) else { return Ok(true) };
    let seen = rig.run(look(&pool));
    end(rig, &[disk], &pool);
    let Ok(seen) = seen else { return Ok(true) };
    model.check(&seen, crashed)?;
    Ok(has_unreadable(&seen))
}

/// The same of a block that went bad; the offline checker has to notice what the pool's users would.
fn judge_bad(rig: &Rig, image: &Image, unreadable: Option<u64>, model: &Model) -> Result<bool, String> {
    let disk = |seed| {
        let disk = Disk::new(0, image.clone(), true, seed, None);
        unreadable.iter().for_each(|&lba| disk.damage(lba));
        disk
    };
    let checked = check_image(rig, &[disk(8)]);
    let disk = disk(9);
    let Ok(pool) = import(rig, std::slice::from_ref(&disk)) else {
        return if checked.is_err() {
            Ok(true)
        } else {
            Err("no import, and the checker finds nothing".to_owned())
        };
    };
    let seen = rig.run(look(&pool));
    end(rig, &[disk], &pool);
    let seen = seen?;
    model.check(&seen, false)?;
    if has_unreadable(&seen) && checked.is_ok() {
        return Err("a block cannot be read, and the checker finds nothing".to_owned());
    }
    Ok(has_unreadable(&seen) || checked.is_err())
}

fn has_unreadable(seen: &Seen) -> bool {
    let mut all = seen.volumes.values().chain(seen.snapshots.values()).flat_map(|v| &v.blocks);
    all.any(|block| block.contains(&UNREADABLE))
}
