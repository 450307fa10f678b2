//! Disks that join and leave under writes and power cuts, by chance.

use super::*;

/// Imports what is left of a pool after a cut: a disk that is none of it any more, or not yet, is left out.
fn import_what_belongs(rig: &Rig, disks: &mut Vec<&SimDisk>) -> Pool {
    let mut left_out = Vec::new();
    loop {
        let error = match import(rig, disks) {
            Ok(pool) => return pool,
            Err(error) => error,
        };
        let (LvsError::StaleDisk { disk, .. } | LvsError::NoPool { disk }) = &error else {
            panic!("{left_out:?}, and then: {error}");
        };
        left_out.push(error.to_string());
        let at = disks.iter().position(|d| on_name(d) == *disk).unwrap();
        disks.remove(at);
    }
}

fn on_name(disk: &SimDisk) -> String {
    on(disk).name().to_owned()
}

/// Disks come and go under writes while the power is cut at any time: nothing that was flushed is lost.
fn disks_change_under_cuts(seed: u64) {
    let mut rng = Rng::new(seed);
    let rig = Rig::new();
    let all: Vec<SimDisk> =
        ["a", "b", "c"].iter().zip(seed..).map(|(name, s)| rig.disk(name, 4096, 40, true, s * 3)).collect();
    let mut disks: Vec<&SimDisk> = all[..2].iter().collect();
    let (mut pool, volume) = filled(&rig, &disks);
    // What each block may hold: the last value that was flushed, then all that were written since.
    let mut holds: Vec<Vec<u64>> =
        (0..BLOCKS * 2).map(|b| vec![if b % 2 == 0 { b / 2 + 1 } else { 0 }]).collect();
    let mut stamp = 10_000;
    for round in 0..5 {
        let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
        let spare = all.iter().find(|d| !disks.iter().any(|have| std::ptr::eq(*have, *d)));
        let adds = disks.len() == 1 || (spare.is_some() && rng.one_in(2));
        let which = rng.below(2);
        let change = async {
            match spare.filter(|_| adds) {
                Some(disk) => pool.add_disk(on(disk), true).await,
                None => pool.remove_disk(on_name_of(&pool, which).await).await,
            }
        };
        let mut change = Box::pin(change);
        let mut ended = None;
        for _ in 0..rng.below(150) {
            if ended.is_none() {
                ended = rig.run_for(1 + rng.below(8), change.as_mut());
            }
            if rng.one_in(12) {
                rig.run(d.flush()).unwrap();
                holds.iter_mut().for_each(|h| drop(h.drain(..h.len() - 1)));
                continue;
            }
            let block = rng.below(BLOCKS * 2);
            stamp += 1;
            holds[block as usize].push(stamp);
            write(&rig, &d, block, stamp);
        }
        if let Some(ended) = ended {
            ended.unwrap();
        }
        all.iter().for_each(SimDisk::cut_power);
        drop(change);
        drop(d);
        let _ = rig.run(pool.export());
        disks = all.iter().collect();
        pool = import_what_belongs(&rig, &mut disks);
        let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
        for (block, may) in holds.iter_mut().enumerate() {
            let found = read(&rig, &d, block as u64).unwrap();
            assert!(
                may.contains(&found),
                "seed {seed} round {round}: block {block} holds {found}, not {may:?}"
            );
            *may = vec![found];
        }
        rig.run(d.close());
        rig.run(pool.export()).unwrap();
        assert_eq!(findings(&rig, &disks), Vec::<String>::new(), "seed {seed} round {round}");
        pool = import(&rig, &disks).unwrap();
    }
}

/// Name of one of the pool's disks that may go.
async fn on_name_of(pool: &Pool, n: u64) -> String {
    let disks = pool.disks().await.unwrap();
    // What was begun goes on.
    if let Some(leaving) = disks.iter().find(|d| d.state == DiskState::Evacuating) {
        return leaving.name.clone();
    }
    disks[n as usize % disks.len()].name.clone()
}

#[test]
fn disks_change_under_writes_and_power_cuts_and_nothing_is_lost() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse().ok());
    let first = number("KEELSON_LVS_FIRST").unwrap_or(0);
    for seed in first..first + number("KEELSON_LVS_SEEDS").unwrap_or(4) {
        disks_change_under_cuts(seed);
    }
}
