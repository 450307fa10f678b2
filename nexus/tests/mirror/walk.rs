//! Everything at random, beside a model of what each block may hold.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use aio::devices::sim::Faults;
use nexus::{ChildState, Fault};

use crate::rig::Rng;
use crate::world::{World, uri};

/// Blocks that are written.
const USED: u64 = 24;
/// Disks.
const DISKS: usize = 3;

/// What a block may hold: the last acknowledged write, and every later one that was not.
struct Model(Vec<BTreeSet<u8>>);

type Writing<'a> = Pin<Box<dyn Future<Output = bool> + 'a>>;

/// Writes `count` times at once, each block at most once, and tells the model.
fn write_some(world: &World, model: &mut Model, rng: &mut Rng, count: u64) {
    let mut blocks: Vec<u64> = (0..count).map(|_| rng.below(USED)).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let values: Vec<u8> = blocks.iter().map(|_| 1 + rng.below(254) as u8).collect();
    let pairs = blocks.iter().zip(&values);
    let mut writes: Vec<(Writing<'_>, Option<bool>)> = pairs
        .clone()
        .map(|(&b, &v)| (Box::pin(async move { world.write_async(b, v).await.is_ok() }) as Writing<'_>, None))
        .collect();
    world.rig.run(poll_fn(|cx| {
        for (write, result) in &mut writes {
            if result.is_none()
                && let Poll::Ready(ok) = write.as_mut().poll(cx)
            {
                *result = Some(ok);
            }
        }
        if writes.iter().all(|w| w.1.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    }));
    for ((&block, &value), (_, ok)) in pairs.zip(&writes) {
        let legal = &mut model.0[block as usize];
        if *ok == Some(true) {
            legal.clear();
        }
        legal.insert(value);
    }
}

/// Reads every block several times: each time a legal value, and always the same one.
fn check(world: &World, model: &mut Model, seed: u64) {
    for block in 0..USED {
        let found = world.read(block).unwrap();
        let legal = &mut model.0[block as usize];
        assert!(legal.contains(&found), "seed {seed}, block {block}: {found}, legal are {legal:?}");
        // What was read once has to stay.
        *legal = BTreeSet::from([found]);
        for _ in 0..2 {
            assert_eq!(world.read(block).unwrap(), found, "seed {seed}, block {block}: children differ");
        }
    }
}

/// Brings every child back that is out of use.
fn bring_back(world: &World) {
    for n in 0..DISKS {
        world.disks[n].set_faults(Faults::default());
    }
    for n in 0..DISKS {
        let state = world.info().1.into_iter().find(|c| c.uri == uri(n)).unwrap().state;
        if matches!(state, ChildState::Faulted(_)) {
            // What it had in flight ends first.
            (0..3000).for_each(|_| world.rig.turn());
            world.rig.run(world.nexus.online_child(&uri(n), world.devices[n].clone())).unwrap();
            world.rig.run(world.nexus.start_rebuild(&uri(n))).unwrap();
        }
    }
}

fn walk(seed: u64) {
    let world = World::new(DISKS, 0, seed << 8);
    let mut model = Model((0..USED).map(|_| BTreeSet::from([0])).collect());
    let mut rng = Rng::new(seed);
    for _ in 0..40 {
        match rng.below(8) {
            0..=3 => write_some(&world, &mut model, &mut rng, 1 + seed % 16),
            4 => {
                let one_in = 2 + rng.below(20) as u32;
                let faults = Faults { write_error: one_in, read_error: one_in, ..Faults::default() };
                world.disks[rng.below(DISKS as u64) as usize].set_faults(faults);
            }
            5 => {
                let child = uri(rng.below(DISKS as u64) as usize);
                // The last one in sync is refused, one that is out of use already is fine.
                let _ = world.rig.run(world.nexus.fault_child(&child, Fault::Offline));
            }
            6 => bring_back(&world),
            _ => {
                world.disks.iter().for_each(|d| d.set_faults(Faults::default()));
                check(&world, &mut model, seed);
            }
        }
    }
    // A rebuild that met a fault before may fail yet.
    for _ in 0..3 {
        bring_back(&world);
        (0..100_000).find(|_| {
            world.rig.turn();
            !world.states().contains(&ChildState::OutOfSync)
        });
    }
    assert_eq!(world.states(), [ChildState::Online; DISKS], "seed {seed}");
    check(&world, &mut model, seed);
    assert!(world.equal(0, 1) && world.equal(1, 2), "seed {seed}: children in sync differ");
    assert!(world.store.healthy().iter().all(|h| *h), "seed {seed}");
}

#[test]
fn whatever_happens_hosts_read_what_they_wrote() {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse().ok());
    let first = number("KEELSON_NEXUS_FIRST").unwrap_or(1);
    let seeds: u64 = number("KEELSON_NEXUS_SEEDS").unwrap_or(110);
    (first..first + seeds).for_each(walk);
}
