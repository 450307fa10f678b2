//! Rebuilds and repairs.

use std::sync::Arc;

use aio::Lba;
use aio::devices::sim::Faults;
use nexus::layout::DATA_OFFSET_BYTES;
use nexus::rebuild::RebuildState;
use nexus::{ChildState, Fault, NexusError};

use crate::rig::{Rng, on};
use crate::world::{BLOCK, BLOCKS, World, spec, uri};

fn fill(world: &World, rng: &mut Rng, writes: u64) {
    for _ in 0..writes {
        world.write(rng.below(BLOCKS), 1 + rng.below(250) as u8).unwrap();
    }
}

#[test]
fn an_added_child_gets_everything_while_hosts_write() {
    let world = World::new(2, 1, 1);
    let mut rng = Rng::new(1);
    fill(&world, &mut rng, 400);
    world.rig.run(world.nexus.add_child(spec(2, &world.devices[2]))).unwrap();
    assert_eq!(world.states()[2], ChildState::OutOfSync);
    assert_eq!(world.store.healthy(), [true, true, false]);
    world.write(1, 77).unwrap();
    assert_eq!(world.on_disk(2, 1), 77, "new writes reach it at once");
    world.rig.run(world.nexus.start_rebuild(&uri(2))).unwrap();
    let again = world.rig.run(world.nexus.start_rebuild(&uri(2)));
    assert!(matches!(again, Err(NexusError::RebuildExists { .. })), "{again:?}");
    fill(&world, &mut rng, 200);
    world.wait_in_sync(2);
    assert_eq!(world.store.healthy(), [true, true, true]);
    assert!(world.equal(0, 1) && world.equal(0, 2));
    let history = world.rig.run(world.nexus.rebuild_history()).unwrap();
    assert_eq!((history.len(), history[0].state, history[0].is_partial), (1, RebuildState::Completed, false));
    assert_eq!(history[0].blocks_transferred, BLOCKS);
    fill(&world, &mut rng, 50);
    assert!(world.equal(0, 2));
}

#[test]
fn a_child_that_was_away_gets_what_it_missed_and_no_more() {
    let world = World::new(2, 0, 2);
    let mut rng = Rng::new(2);
    fill(&world, &mut rng, 300);
    world.rig.run(world.nexus.fault_child(&uri(1), Fault::Offline)).unwrap();
    // Two segments of 64 KiB.
    for block in [0, 1, 15, 32] {
        world.write(block, 200).unwrap();
    }
    let rebuild = world.rig.run(world.nexus.online_child(&uri(1), world.devices[1].clone())).unwrap();
    assert!(rebuild && !world.equal(0, 1));
    world.write(64, 3).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(1))).unwrap();
    world.wait_in_sync(1);
    let history = world.rig.run(world.nexus.rebuild_history()).unwrap();
    assert_eq!((history[0].is_partial, history[0].blocks_transferred), (true, 2 * 16));
    assert!(world.equal(0, 1));
}

/// Hazard H1: a child that lost power may have forgotten what it had acknowledged before it was missed.
#[test]
fn h01_a_child_of_another_incarnation_gets_everything() {
    let world = World::new(2, 0, 3);
    let mut rng = Rng::new(3);
    fill(&world, &mut rng, 300);
    world.disks[1].cut_power();
    world.write(0, 9).unwrap();
    assert_eq!(world.store.healthy(), [true, false]);
    let back = on(&world.disks[1]);
    world.rig.run(world.nexus.online_child(&uri(1), back)).unwrap();
    assert!(!world.equal(0, 1), "it had not flushed");
    world.rig.run(world.nexus.start_rebuild(&uri(1))).unwrap();
    world.wait_in_sync(1);
    let history = world.rig.run(world.nexus.rebuild_history()).unwrap();
    // All of it is one region, which was written and not flushed.
    assert_eq!(history[0].blocks_transferred, BLOCKS);
    assert!(world.equal(0, 1));
}

/// The only child with the data comes back, and has forgotten some: its hosts are not told that all is well.
#[test]
fn h01_the_last_child_of_another_incarnation_is_refused() {
    let world = World::new(1, 0, 4);
    world.write(0, 9).unwrap();
    world.disks[0].cut_power();
    let mut write = Box::pin(world.write_async(0, 10));
    assert!(world.rig.run_for(10_000, &mut write).is_none());
    let back = on(&world.disks[0]);
    let refused = world.rig.run(world.nexus.online_child(&uri(0), back));
    assert!(matches!(refused, Err(NexusError::ChildState { .. })), "{refused:?}");
    assert!(world.rig.run_for(10_000, &mut write).is_none());
}

#[test]
fn a_rebuild_pauses_stops_and_fails() {
    let world = World::new(1, 1, 5);
    let mut rng = Rng::new(5);
    fill(&world, &mut rng, 100);
    let nexus = &world.nexus;
    let none = world.rig.run(nexus.pause_rebuild(&uri(0), true));
    assert!(matches!(none, Err(NexusError::NoRebuild { .. })), "{none:?}");
    world.rig.run(nexus.add_child(spec(1, &world.devices[1]))).unwrap();
    world.rig.run(nexus.start_rebuild(&uri(1))).unwrap();
    (0..40).for_each(|_| world.rig.turn());
    world.rig.run(nexus.pause_rebuild(&uri(1), true)).unwrap();
    (0..3000).for_each(|_| world.rig.turn());
    let paused = world.rig.run(nexus.rebuild_stats(&uri(1))).unwrap();
    assert_eq!(paused.state, RebuildState::Paused);
    assert!(paused.blocks_remaining > 0, "it was paused too late to test anything");
    (0..3000).for_each(|_| world.rig.turn());
    assert_eq!(world.rig.run(nexus.rebuild_stats(&uri(1))).unwrap(), paused, "it goes on");
    world.rig.run(nexus.stop_rebuild(&uri(1))).unwrap();
    world.rig.run(nexus.stop_rebuild(&uri(1))).unwrap();
    assert_eq!(world.states()[1], ChildState::OutOfSync);
    let faults = Faults { write_error: 1, ..Faults::default() };
    world.disks[1].set_faults(faults);
    world.rig.run(nexus.start_rebuild(&uri(1))).unwrap();
    for _ in 0..20_000 {
        world.rig.turn();
    }
    assert_eq!(world.states()[1], ChildState::Faulted(Fault::RebuildFailed));
    let history = world.rig.run(nexus.rebuild_history()).unwrap();
    let ended: Vec<_> = history.iter().map(|r| r.state).collect();
    assert_eq!(ended, [RebuildState::Stopped, RebuildState::Failed]);
    world.disks[1].set_faults(Faults::default());
    world.rig.run(nexus.online_child(&uri(1), world.devices[1].clone())).unwrap();
    world.rig.run(nexus.start_rebuild(&uri(1))).unwrap();
    world.wait_in_sync(1);
    assert!(world.equal(0, 1));
    world.rig.run(nexus.remove_child(&uri(0))).unwrap();
    assert_eq!(world.states(), [ChildState::Online]);
}

/// Hazard H7: a write failed on the only child with the data, and not on the one that is being rebuilt: the host is told
/// that it failed, so nothing of it may stay there.
#[test]
fn h07_a_rebuild_does_not_keep_what_failed_at_its_source() {
    let world = World::new(1, 1, 7);
    let mut rng = Rng::new(7);
    fill(&world, &mut rng, 100);
    world.write(0, 1).unwrap();
    world.rig.run(world.nexus.add_child(spec(1, &world.devices[1]))).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(1))).unwrap();
    while world.on_disk(1, 0) != 1 {
        world.rig.turn();
    }
    world.rig.run(world.nexus.pause_rebuild(&uri(1), true)).unwrap();
    world.disks[0].set_faults(Faults { write_error: 1, ..Faults::default() });
    assert!(world.write(0, 2).is_err());
    world.disks[0].set_faults(Faults::default());
    assert_eq!((world.on_disk(0, 0), world.on_disk(1, 0)), (1, 2), "nothing was to be tested");
    assert!(matches!(world.states()[1], ChildState::Faulted(_)), "{:?}", world.states());
    (0..3000).for_each(|_| world.rig.turn());
    world.rig.run(world.nexus.online_child(&uri(1), world.devices[1].clone())).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(1))).unwrap();
    world.wait_in_sync(1);
    assert!(world.equal(0, 1));
}

/// The child that is read misses a write and goes: what is copied comes from another one from then on. A bug: it was read
/// on, and put its old blocks in the place of acknowledged ones. Found by a walk.
#[test]
fn h07_a_rebuild_leaves_a_source_that_goes() {
    let world = World::new(2, 1, 8);
    let mut rng = Rng::new(8);
    fill(&world, &mut rng, 300);
    world.rig.run(world.nexus.add_child(spec(2, &world.devices[2]))).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(2))).unwrap();
    world.rig.run(world.nexus.pause_rebuild(&uri(2), true)).unwrap();
    (0..3000).for_each(|_| world.rig.turn());
    let left = world.rig.run(world.nexus.rebuild_stats(&uri(2))).unwrap().blocks_remaining;
    assert!(left > 16, "it was paused too late to test anything");
    world.disks[0].set_faults(Faults { write_error: 1, ..Faults::default() });
    world.write(BLOCKS - 1, 251).unwrap();
    assert!(matches!(world.states()[0], ChildState::Faulted(_)));
    world.rig.run(world.nexus.pause_rebuild(&uri(2), false)).unwrap();
    world.wait_in_sync(2);
    assert_eq!((world.on_disk(1, BLOCKS - 1), world.on_disk(2, BLOCKS - 1)), (251, 251));
    assert!(world.equal(1, 2));
    let history = world.rig.run(world.nexus.rebuild_history()).unwrap();
    assert_eq!((history.len(), history[0].source_uri.as_str()), (1, uri(1).as_str()));
}

/// Hazard H12: bad blocks of one child are read from another, and written anew; the host sees nothing.
#[test]
fn h12_bad_blocks_are_repaired() {
    let world = World::new(2, 0, 6);
    let mut rng = Rng::new(6);
    fill(&world, &mut rng, 500);
    let at = |block: u64| Lba(DATA_OFFSET_BYTES / BLOCK + block);
    for block in 0..64 {
        world.disks[(block % 2) as usize].damage(at(block));
    }
    let before: Vec<u8> = (0..64).map(|b| world.read(b).unwrap()).collect();
    for _ in 0..4 {
        (0..2000).for_each(|_| world.rig.turn());
        let again: Vec<u8> = (0..64).map(|b| world.read(b).unwrap()).collect();
        assert_eq!(before, again);
    }
    assert!(world.nexus.repaired_blocks() > 16, "{}", world.nexus.repaired_blocks());
    assert_eq!(world.states(), [ChildState::Online; 2], "a bad block is no reason to lose a child");
    assert!(Arc::strong_count(&world.store) > 1);
}
