//! What is copied when children come back: what changed, and nothing that anybody could miss.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use aio::devices::sim::Faults;
use aio::facade::ByteRange;
use aio::{BlockDevice, DmaBuf, Lba};
use nexus::layout::DATA_OFFSET_BYTES;
use nexus::rebuild::{RebuildRecord, RebuildState};
use nexus::{ChildState, Fault, NexusError};

use crate::rig::Rng;
use crate::world::{BLOCK, BLOCKS, World, spec, uri};

/// So many seeds, or as many as the soak asks for.
pub(crate) fn seeds(usual: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("KEELSON_NEXUS_RESYNCS").ok().and_then(|s| s.parse().ok());
    0..asked.unwrap_or(usual)
}

type Work<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Writes, unmaps and flushes of a host, `depth` at a time, until `until` resolves. What is in flight then goes on for as long as
/// the returned work is kept.
pub(crate) struct Host<'a> {
    world: &'a World,
    rng: Rng,
    flying: Vec<Work<'a, ()>>,
    pub(crate) depth: usize,
    /// Blocks that it uses.
    blocks: u64,
}

impl<'a> Host<'a> {
    pub(crate) fn new(world: &'a World, seed: u64, depth: usize) -> Self {
        Self { world, rng: Rng::new(seed), flying: Vec::new(), depth, blocks: world.nexus.size().0 }
    }

    fn begin(&mut self) {
        let world = self.world;
        let block = self.rng.below(self.blocks);
        let work: Work<'a, ()> = match self.rng.below(40) {
            0 => Box::pin(async move { _ = world.host.flush().await }),
            1 => {
                let len_bytes = (1 + self.rng.below(40)).min(self.blocks - block) * BLOCK;
                let range = ByteRange { offset_bytes: block * BLOCK, len_bytes };
                Box::pin(async move { _ = world.host.unmap(&[range]).await })
            }
            _ => {
                let fill = 1 + self.rng.below(254) as u8;
                Box::pin(async move { _ = world.write_async(block, fill).await })
            }
        };
        self.flying.push(work);
    }

    pub(crate) fn during<T>(&mut self, until: impl Future<Output = T>) -> T {
        let mut until = Box::pin(until);
        let rig = &self.world.rig;
        rig.run(poll_fn(|cx| {
            while self.flying.len() < self.depth {
                self.begin();
            }
            self.flying.retain_mut(|work| work.as_mut().poll(cx).is_pending());
            until.as_mut().poll(cx)
        }))
    }

    pub(crate) fn for_turns(&mut self, turns: u64) {
        let mut left = turns;
        self.during(poll_fn(move |cx| {
            left = left.saturating_sub(1);
            cx.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        }));
    }

    pub(crate) fn finish(mut self) {
        self.depth = 0;
        let mut flying = core::mem::take(&mut self.flying);
        self.world.rig.run(poll_fn(|cx| {
            flying.retain_mut(|work| work.as_mut().poll(cx).is_pending());
            if flying.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        }));
    }
}

/// Puts a mark: one that the nexus puts by itself just now may be in the way.
fn mark(world: &World) {
    while !world.rig.run(world.nexus.mark()).unwrap() {
        (0..100).for_each(|_| world.rig.turn());
    }
}

pub(crate) fn last_rebuild(world: &World) -> RebuildRecord {
    world.rig.run(world.nexus.rebuild_history()).unwrap().pop().unwrap()
}

/// Takes a replica back that had no power.
fn bring_back(world: &mut World, n: usize) {
    world.devices[n] = world.replicas[n].power_on();
    // What its last device had in flight ends first.
    (0..2000).for_each(|_| world.rig.turn());
    world.rig.run(world.nexus.online_child(&uri(n), world.devices[n].clone())).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(n))).unwrap();
}

/// A few blocks are written after a mark; then a replica loses power, and comes back: these are copied, and no more.
#[test]
fn h02_a_replica_that_lost_power_gets_what_changed() {
    let mut world = World::of_replicas(2, 0, 1);
    for block in 0..BLOCKS {
        world.write(block, 1 + (block % 200) as u8).unwrap();
    }
    mark(&world);
    // One that only the survivor keeps, perhaps: it is not flushed.
    world.write(100, 201).unwrap();
    world.replicas[1].cut_power();
    world.write(500, 202).unwrap();
    assert!(matches!(world.states()[1], ChildState::Faulted(_)));
    bring_back(&mut world, 1);
    world.wait_in_sync(1);
    assert!(world.equal(0, 1));
    let rebuild = last_rebuild(&world);
    assert_eq!((rebuild.is_partial, rebuild.blocks_transferred), (true, 2 * 16));
    let common = world.replicas[0].marks();
    assert!(!common.is_empty() && common.len() <= 3, "marks that nobody needs are removed: {common:?}");
}

/// Hosts write all the time: before, while a mark is put, while a replica loses power, is away, and comes back. Without the
/// wait for writes that are on their way (step 2 of a mark), without the union, or with a mark of a round in which a child
/// left, replicas differ at some seeds.
#[test]
fn h02_h01_marks_hold_while_writes_are_on_their_way() {
    let mut partial = 0;
    for seed in seeds(30) {
        let mut world = World::of_replicas(3, 0, 1000 + seed * 7);
        let mut rng = Rng::new(seed);
        let (away, depth) = (rng.below(3) as usize, 4 + rng.below(28) as usize);
        let mut host = Host::new(&world, seed, depth);
        host.for_turns(300 + rng.below(600));
        for _ in 0..rng.below(3) {
            host.during(world.nexus.mark()).unwrap();
            host.for_turns(rng.below(300));
        }
        // A mark that is cut short, or just is not.
        let cut_after = rng.below(400);
        {
            let mut marking = Box::pin(world.nexus.mark());
            let mut left = cut_after;
            host.during(poll_fn(|cx| {
                left = left.saturating_sub(1);
                cx.waker().wake_by_ref();
                let over = marking.as_mut().poll(cx).is_ready();
                if left == 0 || over { Poll::Ready(()) } else { Poll::Pending }
            }));
            world.replicas[away].cut_power();
        }
        // Few: what is written now hides what was forgotten beside it.
        host.depth = 1;
        host.for_turns(rng.below(100));
        host.finish();
        bring_back(&mut world, away);
        let mut host = Host::new(&world, seed + 77, 2);
        host.for_turns(100);
        host.finish();
        world.wait_in_sync(away);
        for other in 0..3 {
            assert!(world.equal(away, other), "seed {seed}: {away} and {other} differ");
        }
        partial += u32::from(last_rebuild(&world).is_partial);
    }
    assert!(
        partial * 2 > seeds(30).count() as u32,
        "only {partial} resyncs were partial: nothing was tested"
    );
}

/// A child fails a write that was sent before the mark, and leaves while the mark is put: it lacks that write, and the mark is
/// none.
#[test]
fn h02_a_mark_during_which_a_child_left_is_none() {
    for seed in 0..10 {
        let mut world = World::of_replicas(3, 0, 2000 + seed * 5);
        world.write(7, 1).unwrap();
        mark(&world);
        world.disks[1].set_faults(Faults { write_error: 1, ..Faults::default() });
        {
            let mut write = Box::pin(world.write_async(7, 2));
            let mut marking = Box::pin(world.nexus.mark());
            let mut over = (false, false);
            world.rig.run(poll_fn(|cx| {
                over.0 = over.0 || write.as_mut().poll(cx).is_ready();
                over.1 = over.1 || marking.as_mut().poll(cx).is_ready();
                if over == (true, true) { Poll::Ready(()) } else { Poll::Pending }
            }));
        }
        world.disks[1].set_faults(Faults::default());
        assert!(matches!(world.states()[1], ChildState::Faulted(_)), "seed {seed}: nothing was tested");
        world.replicas[1].cut_power();
        bring_back(&mut world, 1);
        world.wait_in_sync(1);
        assert_eq!((world.on_disk(0, 7), world.on_disk(1, 7)), (2, 2), "seed {seed}");
        assert!(last_rebuild(&world).is_partial, "there is the mark of before");
    }
}

/// The nexus is killed while it writes, and so are replicas, or not: the next nexus reads from one child, resyncs the others,
/// and copies the union. A write may be on either side only, and the child that keeps it may be the target.
#[test]
fn h02_a_crash_of_the_nexus_and_of_replicas() {
    let mut partial = 0;
    for seed in seeds(20) {
        let mut world = World::of_replicas(3, 0, 5000 + seed * 11);
        let mut rng = Rng::new(seed);
        let mut host = Host::new(&world, seed, 16);
        host.for_turns(400);
        host.during(world.nexus.mark()).unwrap();
        host.for_turns(200 + rng.below(400));
        // Nothing is recorded any more: nobody is told of what happens from here on.
        world.store.hold(true);
        let power_cuts: Vec<usize> = (0..3).filter(|_| rng.one_in(2)).collect();
        for n in &power_cuts {
            world.replicas[*n].cut_power();
            host.for_turns(rng.below(60));
        }
        drop(host);
        for n in power_cuts {
            world.devices[n] = world.replicas[n].power_on();
        }
        (0..2000).for_each(|_| world.rig.turn());
        world.crash_and_reopen(&[0, 1, 2], 99 << 64 | u128::from(seed)).unwrap();
        let synced = world.states().iter().filter(|s| **s == ChildState::Online).count();
        assert!(synced >= 1 && !world.store.last().clean_shutdown, "seed {seed}");
        let mut host = Host::new(&world, seed + 99, 8);
        host.for_turns(300);
        host.finish();
        for n in 0..3 {
            world.wait_in_sync(n);
        }
        assert!(world.equal(0, 1) && world.equal(1, 2), "seed {seed}: children in sync differ");
        let history = world.rig.run(world.nexus.rebuild_history()).unwrap();
        assert_eq!(history.len(), 2, "seed {seed}: all but one were resynced");
        partial += history.iter().filter(|r| r.is_partial).count();
    }
    assert!(partial > seeds(20).count(), "only {partial} resyncs were partial");
}

/// What was acknowledged and not flushed is on the child that kept its power: that one is read after the crash of the nexus.
#[test]
fn h01_the_child_that_forgot_nothing_is_the_source() {
    for lost in 0..2 {
        let mut world = World::of_replicas(2, 0, 300 + lost as u64);
        for block in 0..64 {
            world.write(block, 7).unwrap();
        }
        world.store.hold(true);
        world.replicas[lost].cut_power();
        world.devices[lost] = world.replicas[lost].power_on();
        let forgot = (0..64).filter(|b| world.on_disk(lost, *b) != 7).count();
        assert!(forgot > 0, "it had flushed everything: nothing was tested");
        world.crash_and_reopen(&[0, 1], 7 << 64).unwrap();
        for block in 0..64 {
            assert_eq!(world.read(block).unwrap(), 7, "acknowledged, and no power was lost where it is");
        }
        world.wait_in_sync(lost);
        assert!(world.equal(0, 1));
    }
}

#[test]
fn h01_without_a_child_that_was_healthy_there_is_no_nexus() {
    let mut world = World::of_replicas(2, 1, 400);
    mark(&world);
    world.write(1, 1).unwrap();
    world.rig.run(world.nexus.fault_child(&uri(1), Fault::Offline)).unwrap();
    world.write(1, 2).unwrap();
    for members in [&[1][..], &[1, 2]] {
        let refused = world.crash_and_reopen(members, 8 << 64);
        assert!(matches!(refused, Err(NexusError::NoSource { .. })), "{refused:?}");
        world.store.hold(false);
    }
    world.crash_and_reopen(&[1, 0], 8 << 64).unwrap();
    assert_eq!(world.read(1).unwrap(), 2, "a stale child is never read");
    world.wait_in_sync(1);
    assert!(world.equal(0, 1) && last_rebuild(&world).is_partial);
}

fn unmap(world: &World, block: u64, blocks: u64) {
    let range = ByteRange { offset_bytes: block * BLOCK, len_bytes: blocks * BLOCK };
    world.rig.run(world.host.unmap(&[range])).unwrap();
}

/// What was unmapped while a child was away is unmapped there, not written with zeroes, and not left as it was.
#[test]
fn h11_trims_are_resynced_as_trims() {
    let mut world = World::of_replicas(2, 0, 500);
    for block in 0..200 {
        world.write(block, 9).unwrap();
    }
    mark(&world);
    world.replicas[1].cut_power();
    unmap(&world, 10, 100);
    world.write(50, 3).unwrap();
    bring_back(&mut world, 1);
    world.wait_in_sync(1);
    assert!(world.equal(0, 1) && last_rebuild(&world).is_partial);
    assert_eq!(world.replicas[0].allocated(), world.replicas[1].allocated());
}

/// The other way round: the child that comes back trimmed blocks, or wrote them, and nobody was told so.
#[test]
fn h11_what_only_the_returning_child_changed_is_undone() {
    let mut world = World::of_replicas(2, 0, 600);
    for block in 0..200 {
        world.write(block, 9).unwrap();
    }
    mark(&world);
    // The first child has no part in what comes now.
    world.store.hold(true);
    world.replicas[0].cut_power();
    let device = world.devices[1].clone();
    world.rig.run(async {
        let d = aio::Descriptor::open(device).await.unwrap();
        let range = ByteRange { offset_bytes: DATA_OFFSET_BYTES + 20 * BLOCK, len_bytes: 30 * BLOCK };
        d.unmap(&[range]).await.unwrap();
        let (written, _) = d.write_at(DATA_OFFSET_BYTES + 100 * BLOCK, BLOCK as u32, world.buf(4)).await;
        written.unwrap();
        d.flush().await.unwrap();
    });
    world.devices[0] = world.replicas[0].power_on();
    // It flushed before it lost power, as far as this is concerned: the second one is the one that changed.
    world.devices[1] = world.replicas[1].power_on();
    (0..2000).for_each(|_| world.rig.turn());
    world.crash_and_reopen(&[0, 1], 9 << 64).unwrap();
    world.wait_in_sync(1);
    assert!(world.equal(0, 1) && last_rebuild(&world).is_partial);
    assert_eq!(world.replicas[0].allocated(), world.replicas[1].allocated());
}

fn data(allocated: &BTreeSet<u64>) -> BTreeSet<u64> {
    allocated.iter().copied().filter(|block| *block >= DATA_OFFSET_BYTES / BLOCK).collect()
}

/// A whole rebuild copies what there is: thin stays thin. What the new child held before is gone, and what hosts write while
/// it goes on stays.
#[test]
fn a_new_child_takes_no_more_space_than_the_others() {
    for seed in seeds(8) {
        let world = World::of_replicas(2, 1, 700 + seed * 3);
        let mut rng = Rng::new(seed);
        for block in (0..BLOCKS / 4).filter(|b| b % 3 != 0) {
            world.write(block, 5).unwrap();
        }
        // It was something else before.
        let device = world.devices[2].clone();
        world.rig.run(async {
            let d = aio::Descriptor::open(device).await.unwrap();
            for block in (BLOCKS / 8..BLOCKS / 2).step_by(5) {
                let at = DATA_OFFSET_BYTES + block * BLOCK;
                d.write_at(at, BLOCK as u32, world.buf(66)).await.0.unwrap();
            }
            d.close().await;
        });
        world.rig.run(world.nexus.add_child(spec(2, &world.devices[2]))).unwrap();
        world.rig.run(world.nexus.start_rebuild(&uri(2))).unwrap();
        // Where the source holds nothing, and the new child does.
        let mut written = Vec::new();
        while world.states()[2] == ChildState::OutOfSync {
            let block = BLOCKS / 4 + rng.below(BLOCKS / 4);
            world.write(block, 200).unwrap();
            written.push(block);
        }
        assert_eq!(world.states(), [ChildState::Online; 3], "seed {seed}");
        assert!(world.equal(0, 2), "seed {seed}");
        assert!(written.len() > 5 && written.iter().all(|b| world.on_disk(2, *b) == 200), "seed {seed}");
        assert_eq!(data(&world.replicas[0].allocated()), data(&world.replicas[2].allocated()), "seed {seed}");
        let rebuild = last_rebuild(&world);
        assert!(!rebuild.is_partial && rebuild.blocks_transferred <= BLOCKS / 2 + 32, "{rebuild:?}");
        assert!(world.replicas[2].asked() > 0);
    }
}

/// A segment that the source cannot read comes from another child, and is repaired on the source.
#[test]
fn a_rebuild_reads_from_another_child_when_one_cannot_be_read() {
    let world = World::new(2, 1, 800);
    for block in 0..BLOCKS {
        world.write(block, 1 + (block % 200) as u8).unwrap();
    }
    let at = |block: u64| Lba(DATA_OFFSET_BYTES / BLOCK + block);
    for block in [3, 77, 500] {
        world.disks[0].damage(at(block));
    }
    world.disks[1].damage(at(900));
    world.rig.run(world.nexus.add_child(spec(2, &world.devices[2]))).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(2))).unwrap();
    world.wait_in_sync(2);
    (0..20_000).for_each(|_| world.rig.turn());
    assert_eq!(last_rebuild(&world).state, RebuildState::Completed);
    assert_eq!(world.states(), [ChildState::Online; 3], "a bad block is no reason to lose a child");
    for block in 0..BLOCKS {
        assert_eq!(world.on_disk(2, block), 1 + (block % 200) as u8);
    }
    assert!(world.nexus.repaired_blocks() >= 3, "{}", world.nexus.repaired_blocks());
    // Nobody can read it: no rebuild, and no wrong answer.
    let world = World::new(2, 1, 801);
    world.disks.iter().take(2).for_each(|d| d.damage(at(900)));
    world.rig.run(world.nexus.add_child(spec(2, &world.devices[2]))).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(2))).unwrap();
    (0..20_000).for_each(|_| world.rig.turn());
    assert_eq!(world.states()[2], ChildState::Faulted(Fault::RebuildFailed));
}

/// Zeroes in the middle of what is copied take no space, and what is around them stays where it belongs.
#[test]
fn zeroes_are_not_copied() {
    let world = World::of_replicas(1, 1, 900);
    world.rig.run(async {
        let mut buf: DmaBuf = world.rig.core().pools().unwrap().alloc(16 * BLOCK as u32).unwrap();
        buf.fill(0);
        for block in [0usize, 3, 4, 9, 15] {
            let start = block * BLOCK as usize;
            buf[start..start + BLOCK as usize].fill(block as u8 + 1);
        }
        world.host.write_at(32 * BLOCK, 16 * BLOCK as u32, buf).await.0.unwrap();
    });
    world.rig.run(world.nexus.add_child(spec(1, &world.devices[1]))).unwrap();
    world.rig.run(world.nexus.start_rebuild(&uri(1))).unwrap();
    world.wait_in_sync(1);
    assert!(world.equal(0, 1));
    let first = DATA_OFFSET_BYTES / BLOCK + 32;
    assert_eq!(data(&world.replicas[1].allocated()), [0, 3, 4, 9, 15].map(|b| first + b).into());
}
