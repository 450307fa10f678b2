//! Hazard H19: disks that cannot tell what changed. What may differ after a crash stands in an account on the disks.

use nexus::{ChildState, Fault};

use crate::resync::{Host, last_rebuild, seeds};
use crate::rig::{Rng, on};
use crate::world::{World, spec, uri};

/// Blocks of a region.
const REGION: u64 = 1024;

/// Has regions lose their bits that were not written for a while: they are asked twice.
fn settle(world: &World) {
    for _ in 0..2 {
        world.rig.run(world.nexus.mark()).unwrap();
    }
}

/// The nexus is killed with writes on their way: the next one copies the regions that were being written, and no others.
#[test]
fn h19_a_crash_of_the_nexus_copies_what_was_being_written() {
    let mut world = World::wide(2, 0, 1);
    for block in 0..12 * REGION / 64 {
        world.write(block * 64, 1).unwrap();
    }
    settle(&world);
    world.store.hold(true);
    {
        let mut first = Box::pin(world.write_async(2 * REGION + 5, 2));
        let mut second = Box::pin(world.write_async(7 * REGION, 3));
        assert!(
            world.rig.run_for(400, &mut first).is_some() && world.rig.run_for(400, &mut second).is_some()
        );
    }
    // It had not flushed: one of them has the writes, the other may not.
    world.disks[1].cut_power();
    world.devices[1] = on(&world.disks[1]);
    world.crash_and_reopen(&[0, 1], 7 << 64).unwrap();
    assert_eq!(world.states(), [ChildState::Online, ChildState::OutOfSync]);
    world.wait_in_sync(1);
    let rebuild = last_rebuild(&world);
    assert_eq!((rebuild.is_partial, rebuild.blocks_transferred), (true, 2 * REGION));
    assert!(world.equal(0, 1));
    assert_eq!((world.on_disk(1, 2 * REGION + 5), world.on_disk(1, 7 * REGION)), (2, 3));
}

/// At random: regions get their bits and lose them while hosts write, disks lose power, and the nexus is killed. Without the bits,
/// or when they are taken away before the writes of their regions are over and flushed, disks differ at some seeds.
#[test]
fn h19_bits_are_there_before_writes_and_stay_until_they_are_safe() {
    let mut partial = 0;
    let mut saved = 0;
    for seed in seeds(10) {
        let mut world = World::wide(3, 0, 3000 + seed * 7);
        let mut rng = Rng::new(seed);
        let mut host = Host::new(&world, seed, 1 + rng.below(5) as usize);
        for _ in 0..3 + rng.below(4) {
            host.for_turns(rng.below(200));
            host.during(world.nexus.mark()).unwrap();
        }
        host.for_turns(rng.below(200));
        world.store.hold(true);
        // At one moment in the middle of it, sometimes.
        if rng.one_in(2) {
            let mut marking = Box::pin(world.nexus.mark());
            let mut left = rng.below(300);
            host.during(std::future::poll_fn(|cx| {
                left = left.saturating_sub(1);
                cx.waker().wake_by_ref();
                let over = marking.as_mut().poll(cx).is_ready();
                if left == 0 || over { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            }));
        }
        let cut = (0..3).filter(|_| rng.one_in(2)).collect::<Vec<usize>>();
        for n in &cut {
            world.disks[*n].cut_power();
        }
        drop(host);
        for n in cut {
            world.devices[n] = on(&world.disks[n]);
        }
        (0..3000).for_each(|_| world.rig.turn());
        world.crash_and_reopen(&[0, 1, 2], 9 << 64 | u128::from(seed)).unwrap();
        let mut host = Host::new(&world, seed + 99, 2);
        host.for_turns(100);
        host.finish();
        for n in 0..3 {
            world.wait_in_sync(n);
        }
        assert!(world.equal(0, 1) && world.equal(1, 2), "seed {seed}: disks in sync differ");
        let rebuild = last_rebuild(&world);
        partial += u32::from(rebuild.is_partial);
        saved += u32::from(rebuild.blocks_transferred < 12 * REGION);
    }
    let all = seeds(10).count() as u32;
    assert!(partial == all && saved * 4 > all, "{partial} were partial, {saved} copied less than everything");
}

/// What a disk misses while it is away is known after a crash as well.
#[test]
fn h19_what_a_child_misses_survives_the_nexus() {
    let mut world = World::wide(3, 0, 5);
    for block in 0..12 {
        world.write(block * REGION, 1).unwrap();
    }
    settle(&world);
    world.rig.run(world.nexus.fault_child(&uri(2), Fault::Offline)).unwrap();
    world.write(3 * REGION + 9, 2).unwrap();
    // No bit is taken away while it is away.
    settle(&world);
    world.write(4 * REGION + 9, 2).unwrap();
    settle(&world);
    world.crash_and_reopen(&[0, 1, 2], 11 << 64).unwrap();
    world.wait_in_sync(1);
    world.wait_in_sync(2);
    assert!(world.equal(0, 1) && world.equal(0, 2));
    assert_eq!(world.on_disk(2, 3 * REGION + 9), 2);
    let history = world.rig.run(world.nexus.rebuild_history()).unwrap();
    assert!(history.iter().all(|r| r.is_partial && r.blocks_transferred == 2 * REGION), "{history:?}");
    // And after an end in order nothing is left to be copied.
    settle(&world);
    world.write(5 * REGION, 4).unwrap();
    world.rig.run(world.nexus.shutdown()).unwrap();
    world.crash_and_reopen(&[0, 1, 2], 12 << 64).unwrap();
    assert_eq!(world.states(), [ChildState::Online; 3]);
    world.rig.run(world.nexus.fault_child(&uri(1), Fault::Offline)).unwrap();
    world.disks[1].cut_power();
    world.devices[1] = on(&world.disks[1]);
    world.rig.run(world.nexus.online_child(&uri(1), world.devices[1].clone())).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(1))).unwrap();
    world.wait_in_sync(1);
    assert_eq!(last_rebuild(&world).blocks_transferred, 0);
}

/// A disk that was taken out for good, and one that was never a member, lack everything, whatever stands on them.
#[test]
fn h19_strangers_get_everything() {
    let world = World::wide(2, 1, 6);
    for block in 0..12 {
        world.write(block * REGION, 1).unwrap();
    }
    settle(&world);
    world.rig.run(world.nexus.remove_child(&uri(1))).unwrap();
    world.write(3 * REGION + 9, 2).unwrap();
    settle(&world);
    world.write(4 * REGION + 9, 2).unwrap();
    for (n, from_account) in [(1, false), (2, false)] {
        world.rig.run(world.nexus.add_child(spec(n, &world.devices[n]))).unwrap();
        world.rig.run(world.nexus.start_rebuild(&uri(n))).unwrap();
        world.wait_in_sync(n);
        assert!(world.equal(0, n));
        assert_eq!(last_rebuild(&world).is_partial, from_account);
    }
    // From now on it is one of them.
    settle(&world);
    world.rig.run(world.nexus.fault_child(&uri(2), Fault::Offline)).unwrap();
    world.write(8 * REGION, 5).unwrap();
    world.rig.run(world.nexus.online_child(&uri(2), world.devices[2].clone())).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(2))).unwrap();
    world.wait_in_sync(2);
    assert!(world.equal(0, 2) && last_rebuild(&world).is_partial);
}

/// A nexus of one disk keeps no account; with the second one it begins to.
#[test]
fn h19_an_account_begins_with_the_second_child() {
    let mut world = World::wide(1, 1, 7);
    for block in 0..12 {
        world.write(block * REGION, 1).unwrap();
    }
    world.rig.run(world.nexus.add_child(spec(1, &world.devices[1]))).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(1))).unwrap();
    world.wait_in_sync(1);
    assert!(!last_rebuild(&world).is_partial);
    // What the first one got before there was an account is not flushed: it stands in it all the same.
    world.rig.run(world.nexus.fault_child(&uri(0), Fault::Offline)).unwrap();
    world.disks[0].cut_power();
    world.devices[0] = on(&world.disks[0]);
    world.rig.run(world.nexus.online_child(&uri(0), world.devices[0].clone())).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(0))).unwrap();
    world.wait_in_sync(0);
    assert!(world.equal(0, 1), "writes that the first one lost with its power");
    (0..2000).for_each(|_| world.rig.turn());
    settle(&world);
    world.write(6 * REGION + 1, 2).unwrap();
    world.disks[1].cut_power();
    world.devices[1] = on(&world.disks[1]);
    world.crash_and_reopen(&[0, 1], 13 << 64).unwrap();
    world.wait_in_sync(1);
    let rebuild = last_rebuild(&world);
    assert_eq!((rebuild.is_partial, rebuild.blocks_transferred), (true, REGION));
    assert!(world.equal(0, 1));
    // One of them alone, and the next time both: what the one got meanwhile is known, or everything is copied.
    world.crash_and_reopen(&[0], 14 << 64).unwrap();
    world.write(8 * REGION, 9).unwrap();
    // No bit is taken away: one is away, whom only the notes know. A bug: bits were, and the second child missed the write.
    settle(&world);
    world.rig.run(world.nexus.add_child(spec(1, &world.devices[1]))).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(1))).unwrap();
    world.wait_in_sync(1);
    assert!(world.equal(0, 1) && last_rebuild(&world).is_partial);
}
