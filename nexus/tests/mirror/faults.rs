//! Children fail.

use aio::devices::sim::Faults;
use aio::{BlockDevice, IoStatus};
use nexus::{ChildState, Fault, NexusError, NexusState, SHUT_DOWN};

use crate::world::{World, status, uri};

fn always_fails_writes() -> Faults {
    Faults { write_error: 1, ..Faults::default() }
}

#[test]
fn every_child_gets_every_write_at_mayastors_offset() {
    let world = World::new(3, 0, 1);
    for block in 0..20 {
        world.write(block, block as u8 + 1).unwrap();
    }
    for disk in 0..3 {
        assert_eq!(world.on_disk(disk, 7), 8);
    }
    assert!(world.equal(0, 1) && world.equal(1, 2));
    assert_eq!(world.read(19).unwrap(), 20);
    assert_eq!(world.info().0, NexusState::Online);
    assert_eq!(world.store.healthy(), [true, true, true]);
}

/// Hazard H7: a write that one child missed is acknowledged only when the record says so, durably.
#[test]
fn h07_the_record_comes_before_the_acknowledgement() {
    let world = World::new(2, 0, 2);
    world.write(6, 1).unwrap();
    world.disks[1].set_faults(always_fails_writes());
    world.store.hold(true);
    let begun = world.store.begun();
    let mut write = Box::pin(world.write_async(5, 9));
    assert!(world.rig.run_for(20_000, &mut write).is_none(), "acknowledged before it was recorded");
    assert_eq!(world.store.begun(), begun + 1);
    assert_eq!(world.on_disk(0, 5), 9, "the other child has it long since");
    world.store.hold(false);
    world.rig.run(write).unwrap();
    assert_eq!(world.store.healthy(), [true, false]);
    assert_eq!(world.states(), [ChildState::Online, ChildState::Faulted(Fault::IoError)]);
    assert_eq!(world.info().0, NexusState::Degraded);
    for _ in 0..10 {
        assert_eq!(world.read(5).unwrap(), 9, "never from the child that missed it");
    }
}

/// Hazard H6: a nexus that cannot record who is healthy acknowledges nothing that could be forgotten.
#[test]
fn h06_without_its_record_the_nexus_ends() {
    let world = World::new(2, 0, 3);
    world.write(1, 1).unwrap();
    world.disks[0].set_faults(always_fails_writes());
    world.store.break_down();
    assert_eq!(status(world.write(1, 2)), SHUT_DOWN);
    assert_eq!(world.info().0, NexusState::Shutdown);
    assert_eq!(status(world.write(2, 2)), SHUT_DOWN);
    assert_eq!(world.store.healthy(), [true, true], "as it was");
    let refused = world.rig.run(world.nexus.fault_child(&uri(0), Fault::Offline));
    assert!(matches!(refused, Err(NexusError::ShutDown { .. })), "{refused:?}");
}

/// Hazard H7: different writes fail on different children. One child stays, with its own answers.
#[test]
fn h07_crossing_failures_leave_one_child() {
    for seed in 0..40 {
        let world = World::new(2, 0, 100 + seed);
        let faults = Faults { write_error: 3, ..Faults::default() };
        world.disks.iter().for_each(|d| d.set_faults(faults));
        let mut told = Vec::new();
        for round in 0..4u8 {
            let writes: Vec<_> =
                (0..8).map(|b| Box::pin(world.write_async(b, round * 8 + b as u8 + 1))).collect();
            let results = world.rig.run(join_all(writes));
            told.extend(
                results.into_iter().enumerate().map(|(b, r)| (b as u64, round * 8 + b as u8 + 1, r.is_ok())),
            );
        }
        world.disks.iter().for_each(|d| d.set_faults(Faults::default()));
        let online = world.states().iter().filter(|s| **s == ChildState::Online).count();
        assert!(online >= 1, "seed {seed}");
        for block in 0..8 {
            let acknowledged = told.iter().rev().find(|t| t.0 == block && t.2).map_or(0, |t| t.1);
            let at = told.iter().rposition(|t| t.0 == block && t.2).map_or(0, |at| at + 1);
            let later: Vec<u8> = told[at..].iter().filter(|t| t.0 == block).map(|t| t.1).collect();
            let found = world.read(block).unwrap();
            assert!(
                found == acknowledged || later.contains(&found),
                "seed {seed}, block {block}: {found}, {told:?}"
            );
            for _ in 0..3 {
                assert_eq!(world.read(block).unwrap(), found, "seed {seed}: children differ");
            }
        }
    }
}

/// Polls all of them until all are ready.
async fn join_all<T>(mut futures: Vec<std::pin::Pin<Box<impl Future<Output = T>>>>) -> Vec<T> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *result = Some(value);
            }
        }
        if results.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

/// The last child's errors are the host's: there is nobody else to ask, and it stays.
#[test]
fn the_last_child_answers_for_itself() {
    let world = World::new(1, 0, 4);
    world.write(3, 1).unwrap();
    world.disks[0].set_faults(always_fails_writes());
    assert_eq!(status(world.write(3, 2)), IoStatus::WRITE_FAULT);
    world.disks[0].set_faults(Faults::default());
    world.write(4, 4).unwrap();
    assert_eq!(world.states(), [ChildState::Online]);
    assert_eq!(world.store.healthy(), [true]);
}

/// Hazard H7: after a clean end the children are equal, whatever one of them would have forgotten in a power cut.
#[test]
fn h07_a_clean_end_leaves_equal_children() {
    for seed in 0..10 {
        let world = World::new(2, 0, 200 + seed);
        for block in 0..30 {
            world.write(block, block as u8 + 1).unwrap();
        }
        world.rig.run(world.nexus.shutdown()).unwrap();
        assert!(world.store.last().clean_shutdown);
        world.disks[1].cut_power();
        assert!(world.equal(0, 1), "seed {seed}");
    }
}

#[test]
fn an_end_whose_flush_fails_is_not_recorded_as_clean() {
    let world = World::new(2, 0, 9);
    world.write(1, 1).unwrap();
    world.disks[0].set_faults(Faults { flush_error: 1, ..Faults::default() });
    world.rig.run(world.nexus.shutdown()).unwrap();
    assert!(!world.store.last().clean_shutdown);
}

/// Nobody has to write to find out that a device was pulled.
#[test]
fn a_device_that_goes_is_noticed_without_io() {
    let world = World::new(3, 0, 8);
    world.devices[2].remove();
    (0..200).for_each(|_| world.rig.turn());
    assert_eq!(world.info().0, NexusState::Degraded);
    assert_eq!(world.store.healthy(), [true, true, false]);
    world.write(1, 1).unwrap();
}

/// When no child can be reached, I/O waits: hosts see a path that hangs, not errors.
#[test]
fn all_children_gone_freezes() {
    let world = World::new(2, 0, 5);
    world.write(3, 1).unwrap();
    world.devices.iter().for_each(|d| d.remove());
    let mut write = Box::pin(world.write_async(3, 2));
    let answer = world.rig.run_for(50_000, &mut write);
    assert!(answer.is_none(), "{answer:?}, with nobody to give it");
    assert_eq!(world.info().0, NexusState::Faulted);
    assert_eq!(world.store.healthy().iter().filter(|h| **h).count(), 1, "one has the data");
    world.rig.run(world.nexus.shutdown()).unwrap();
    assert_eq!(status(world.rig.run(write)), SHUT_DOWN);
    assert!(!world.store.last().clean_shutdown, "nobody knows what of the last write is where");
}

#[test]
fn a_clean_end_is_recorded_and_the_last_healthy_child_stays() {
    let world = World::new(2, 0, 6);
    world.write(0, 1).unwrap();
    let (nexus, run) = (&world.nexus, &world.rig);
    run.run(nexus.fault_child(&uri(0), Fault::Offline)).unwrap();
    let refused = run.run(nexus.fault_child(&uri(1), Fault::Offline));
    assert!(matches!(refused, Err(NexusError::LastHealthy { .. })), "{refused:?}");
    let refused = run.run(nexus.remove_child(&uri(1)));
    assert!(matches!(refused, Err(NexusError::LastHealthy { .. })), "{refused:?}");
    run.run(nexus.remove_child("sim:///nobody")).unwrap();
    run.run(nexus.remove_child(&uri(0))).unwrap();
    assert_eq!(world.states(), [ChildState::Online]);
    world.rig.run(world.nexus.shutdown()).unwrap();
    world.rig.run(world.nexus.shutdown()).unwrap();
    let record = world.store.last();
    assert!(record.clean_shutdown && record.children.len() == 1);
    world.rig.run(world.nexus.destroy()).unwrap();
    assert!(matches!(world.rig.run(world.nexus.info()), Err(NexusError::Gone(_))));
    assert_eq!(world.nexus.driver(), "nexus");
}

/// Polls everything until all have ended.
async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut left: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(move |cx| {
        let mut pending = false;
        for (future, result) in left.iter_mut().filter(|(_, r)| r.is_none()) {
            match future.as_mut().poll(cx) {
                std::task::Poll::Ready(value) => *result = Some(value),
                std::task::Poll::Pending => pending = true,
            }
        }
        match pending {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(left.drain(..).filter_map(|(_, r)| r).collect()),
        }
    })
    .await
}

/// A bug: a read that waited for room at a child that was taken out was never answered.
#[test]
fn reads_that_wait_for_a_child_that_goes_are_read_elsewhere() {
    let world = World::new(2, 0, 31);
    for block in 0..8 {
        world.write(block, block as u8 + 1).unwrap();
    }
    // More than both disks have room for.
    let reads = (0..400).map(|n| world.host.read_at(n % 8 * 4096, 4096, world.buf(0)));
    let mut reads = Box::pin(all(reads.collect()));
    assert!(world.rig.run_for(1, &mut reads).is_none());
    let (nexus, uri) = (world.nexus.clone(), uri(1));
    let mut fault = Box::pin(async move { nexus.fault_child(&uri, Fault::Offline).await });
    let (mut faulted, mut answers) = (false, None);
    for _ in 0..100_000 {
        if answers.is_none() {
            answers = world.rig.run_for(1, &mut reads);
        }
        faulted = faulted || world.rig.run_for(1, &mut fault).is_some();
        if faulted && answers.is_some() {
            break;
        }
    }
    assert!(faulted, "the child is not taken out");
    let answers = answers.expect("reads are not answered");
    for (n, (result, buf)) in answers.into_iter().enumerate() {
        result.unwrap();
        assert_eq!(buf[0], n as u8 % 8 + 1);
    }
}
