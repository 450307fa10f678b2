//! Two nexuses of one volume: the newer one shuts the older one out (hazard H6).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use aio::devices::sim::{Faults, SimDisk};
use aio::facade::IoError;
use aio::{BlockDevice, Descriptor, DmaBuf, IoStatus, Lba};
use nexus::layout::DATA_OFFSET_BYTES;
use nexus::{
    ChildSpec, ChildState, CreateNexus, Nexus, NexusError, NexusState, Preempt, Reservation, SHUT_DOWN,
};
use nvme::HostId;
use nvme::reservation::{
    Acquire, AcquireAction, ChangePersistence, Command, Register, RegisterAction, Release, ReleaseAction,
    ReservationType,
};
use uuid::Uuid;

use crate::guard::{Broken, Target};
use crate::rig::{Rig, Rng, on};
use crate::world::{BLOCK, BLOCKS, Handle, Slow, status, uri};

const EA: ReservationType = ReservationType::EXCLUSIVE_ACCESS;
const WE: ReservationType = ReservationType::WRITE_EXCLUSIVE;
const OLD: HostId = HostId([1; 16]);
const NEW: HostId = HostId([2; 16]);

/// Disks behind targets that two hosts reach.
struct World {
    rig: Rig,
    disks: Vec<SimDisk>,
    powered: Vec<Arc<dyn BlockDevice>>,
    targets: Vec<Target>,
}

/// A nexus of one of the hosts.
struct Side {
    nexus: Nexus,
    host: Descriptor,
    store: Arc<Slow>,
}

fn holder(key: u64, rtype: ReservationType) -> Reservation {
    Reservation { key, rtype, preempt: Preempt::Holder }
}

impl World {
    fn new(children: usize, seed: u64, broken: Broken) -> Self {
        let rig = Rig::new();
        let disk = |n: usize| rig.disk(&format!("d{n}"), BLOCK as u32, 16, true, seed * 16 + n as u64);
        let disks: Vec<SimDisk> = (0..children).map(disk).collect();
        let powered = disks.iter().map(on).collect();
        let targets = (0..children).map(|_| Target::new(broken)).collect();
        Self { rig, disks, powered, targets }
    }

    async fn create(&self, host: HostId, reservation: Option<Reservation>) -> Result<Side, NexusError> {
        let spec = |(n, target): (usize, &Target)| ChildSpec {
            uri: uri(n),
            device: target.seen_by(host, self.powered[n].clone()),
            uuid: self.powered[n].uuid(),
        };
        let wish = CreateNexus {
            name: format!("n{}", host.0[0]),
            uuid: Uuid::new_v4(),
            device_uuid: Uuid::from_u128(2),
            size_bytes: (BLOCKS + 1) * BLOCK,
            offers: aio::Capabilities::all(),
            children: self.targets.iter().enumerate().map(spec).collect(),
            reservation,
        };
        let store = Arc::new(Slow::default());
        let nexus = Nexus::create(self.rig.home(), wish, Arc::new(Handle(store.clone()))).await?;
        let host = Descriptor::open(Arc::new(nexus.clone())).await.unwrap();
        Ok(Side { nexus, host, store })
    }

    fn made(&self, host: HostId, reservation: Reservation) -> Side {
        self.rig.run(self.create(host, Some(reservation))).unwrap()
    }

    fn buf(&self, fill: u8) -> DmaBuf {
        let mut buf = self.rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
        buf[..BLOCK as usize].fill(fill);
        buf
    }

    async fn write(&self, side: &Descriptor, block: u64, fill: u8) -> Result<(), IoError> {
        side.write_at(block * BLOCK, BLOCK as u32, self.buf(fill)).await.0
    }

    async fn read(&self, side: &Descriptor, block: u64) -> Result<u8, IoError> {
        let (result, buf) = side.read_at(block * BLOCK, BLOCK as u32, self.buf(0)).await;
        result.map(|()| buf[0])
    }

    fn on_disk(&self, disk: usize, block: u64) -> u8 {
        self.disks[disk].block(Lba(DATA_OFFSET_BYTES / BLOCK + block))[0]
    }

    fn info(&self, side: &Side) -> (NexusState, Vec<ChildState>) {
        let (state, _, children) = self.rig.run(side.nexus.info()).unwrap();
        (state, children.iter().map(|c| c.state).collect())
    }

    /// A host that is no nexus of ours registers, and acquires.
    fn stranger(&self, target: usize, key: u64, rtype: ReservationType) {
        let register = Register {
            action: RegisterAction::REPLACE,
            ignore_existing_key: true,
            persistence: ChangePersistence::NO_CHANGE,
            crkey: 0,
            nrkey: key,
        };
        let acquire = Acquire {
            action: AcquireAction::ACQUIRE,
            ignore_existing_key: false,
            rtype,
            crkey: key,
            prkey: 0,
        };
        let stranger = HostId([9; 16]);
        self.targets[target].apply(stranger, &Command::Register(register)).unwrap();
        self.targets[target].apply(stranger, &Command::Acquire(acquire)).unwrap();
    }
}

#[test]
fn every_child_is_reserved() {
    for rtype in ReservationType::ALL {
        let world = World::new(2, 1, Broken::Nothing);
        let side = world.made(OLD, holder(7, rtype));
        for target in &world.targets {
            let report = target.report();
            assert_eq!((report.rtype, report.registrants.len()), (Some(rtype), 1));
            assert!(report.registrants[0].holds && report.registrants[0].key == 7 && report.persists);
        }
        world.rig.run(world.write(&side.host, 3, 3)).unwrap();
        assert_eq!(world.rig.run(world.read(&side.host, 3)).unwrap(), 3);
        // The end of a nexus gives nothing up.
        world.rig.run(side.nexus.destroy()).unwrap();
        assert_eq!(world.targets[0].report().rtype, Some(rtype));
        // It is made again, by the same host and by another.
        world.rig.run(world.made(OLD, holder(7, rtype)).nexus.destroy()).unwrap();
        world.made(NEW, holder(8, EA));
        assert_eq!(world.targets[1].report().rtype, Some(EA));
    }
}

/// Hazard H6: the older one ends, and takes no child for faulty.
#[test]
fn h06_a_conflict_ends_the_nexus_and_retires_no_child() {
    for children in [1, 2, 3] {
        let world = World::new(children, 2, Broken::Nothing);
        let old = world.made(OLD, holder(1, EA));
        world.rig.run(world.write(&old.host, 1, 1)).unwrap();
        let new = world.made(NEW, holder(2, EA));
        assert_eq!(status(world.rig.run(world.write(&old.host, 1, 9))), SHUT_DOWN, "{children}");
        let (state, states) = world.info(&old);
        assert_eq!(state, NexusState::Shutdown);
        assert!(states.iter().all(|s| *s == ChildState::Closed), "none is faulted: {states:?}");
        assert_eq!(old.store.healthy(), vec![true; children]);
        assert_eq!(status(world.rig.run(old.host.flush())), SHUT_DOWN);
        assert_eq!(world.rig.run(world.read(&new.host, 1)).unwrap(), 1);
        world.rig.run(world.write(&new.host, 1, 2)).unwrap();
        assert_eq!(world.info(&new).0, NexusState::Online);
        assert!((0..children).all(|disk| world.on_disk(disk, 1) == 2));
    }
}

/// Where others may not even read, the older one learns it from a read, and returns nothing that could be stale.
#[test]
fn h06_a_read_that_conflicts_ends_the_nexus() {
    let world = World::new(2, 3, Broken::Nothing);
    let old = world.made(OLD, holder(1, EA));
    world.rig.run(world.write(&old.host, 1, 1)).unwrap();
    world.made(NEW, holder(2, EA));
    assert_eq!(status(world.rig.run(world.read(&old.host, 1)).map(|_| ())), SHUT_DOWN);
    assert_eq!(world.info(&old).0, NexusState::Shutdown);
    // Of Write Exclusive everybody reads.
    let world = World::new(2, 3, Broken::Nothing);
    let old = world.made(OLD, holder(1, WE));
    world.made(NEW, holder(2, WE));
    assert!(world.rig.run(world.read(&old.host, 1)).is_ok());
    assert_eq!(status(world.rig.run(world.write(&old.host, 1, 1))), SHUT_DOWN);
}

/// A child that failed first, and conflicts then, is no reason to go on with the others.
#[test]
fn h06_a_conflict_says_more_than_an_earlier_failure() {
    for seed in 0..20 {
        let world = World::new(2, 40 + seed, Broken::Nothing);
        let old = world.made(OLD, holder(1, EA));
        // The first write fails on the first disk; while that is being recorded, a second one is refused there.
        world.disks[0].set_faults(Faults { write_error: 1, ..Faults::default() });
        old.store.hold(true);
        let mut first = Box::pin(world.write(&old.host, 1, 1));
        assert!(world.rig.run_for(2_000 + seed * 100, &mut first).is_none());
        world.disks[0].set_faults(Faults::default());
        // Somebody takes the first child over, and only that.
        let preempted = world.targets[0].seen_by(NEW, world.powered[0].clone());
        let facet = preempted.reservations().unwrap();
        let register = Register {
            action: RegisterAction::REGISTER,
            ignore_existing_key: false,
            persistence: ChangePersistence::NO_CHANGE,
            crkey: 0,
            nrkey: 2,
        };
        world.rig.run(facet.register(register)).unwrap();
        let preempt = Acquire {
            action: AcquireAction::PREEMPT,
            ignore_existing_key: false,
            rtype: EA,
            crkey: 2,
            prkey: 1,
        };
        world.rig.run(facet.acquire(preempt)).unwrap();
        old.store.hold(false);
        // The first failed for a reason of its own, and the record says so: it may be acknowledged. Nothing after it is.
        let _ = world.rig.run(first);
        let second = world.rig.run(world.write(&old.host, 2, 2));
        let (state, states) = world.info(&old);
        match states[0] {
            // The child was out before it could refuse.
            ChildState::Faulted(_) => assert!(second.is_ok()),
            _ => assert_eq!((status(second), state), (SHUT_DOWN, NexusState::Shutdown)),
        }
    }
}

#[test]
fn whom_it_preempts() {
    let reservation = |preempt| Some(Reservation { key: 5, rtype: EA, preempt });
    // A stranger holds the second child.
    for (preempt, works) in [
        (Preempt::Nobody, false),
        (Preempt::Key(77), false),
        (Preempt::Key(3), false),
        (Preempt::Holder, true),
    ] {
        let world = World::new(2, 4, Broken::Nothing);
        world.stranger(1, 3, WE);
        let made = world.rig.run(world.create(OLD, reservation(preempt)));
        match &made {
            Ok(_) => assert!(works, "{preempt:?}"),
            // The first child has nobody with key 3, which is as the specification has it.
            Err(NexusError::Reserve { child, .. }) => {
                let expected = if preempt == Preempt::Nobody { uri(1) } else { uri(0) };
                assert!(!works && *child == expected, "{preempt:?}: {child}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    let world = World::new(1, 4, Broken::Nothing);
    world.stranger(0, 3, WE);
    world.rig.run(world.create(OLD, reservation(Preempt::Key(3)))).unwrap();
    assert_eq!(world.targets[0].report().registrants.len(), 1);
    // A nexus whose host was started again has another identifier there, and the same key.
    let world = World::new(1, 4, Broken::Nothing);
    for preempt in [Preempt::Nobody, Preempt::Key(3)] {
        world.targets[0].apply(OLD, &Command::Release(clear(5))).unwrap_or_default();
        world.stranger(0, 5, WE);
        world.rig.run(world.create(OLD, reservation(preempt))).unwrap();
        assert_eq!(world.targets[0].report().registrants.len(), 1, "{preempt:?}");
        // And once more.
        world.rig.run(world.create(OLD, reservation(preempt))).unwrap();
    }
    // Reservations of all registrants are given up, not preempted: the others stay registered.
    let world = World::new(1, 4, Broken::Nothing);
    world.stranger(0, 3, ReservationType::WRITE_EXCLUSIVE_ALL);
    world.rig.run(world.create(OLD, reservation(Preempt::Holder))).unwrap();
    let report = world.targets[0].report();
    assert_eq!((report.rtype, report.registrants.len()), (Some(EA), 2));
}

fn clear(crkey: u64) -> Release {
    Release { action: ReleaseAction::CLEAR, ignore_existing_key: false, rtype: EA, crkey }
}

/// Another host's device has to have reservations; one of this host need not, and is used without.
#[test]
fn children_without_reservations() {
    let world = World::new(1, 5, Broken::Nothing);
    let spec = ChildSpec { uri: uri(0), device: world.powered[0].clone(), uuid: Uuid::from_u128(1) };
    let wish = CreateNexus {
        name: "local".into(),
        uuid: Uuid::new_v4(),
        device_uuid: Uuid::from_u128(2),
        size_bytes: (BLOCKS + 1) * BLOCK,
        offers: aio::Capabilities::all(),
        children: vec![spec],
        reservation: Some(holder(1, EA)),
    };
    world.rig.run(Nexus::create(world.rig.home(), wish, Arc::new(nexus::NoStore))).unwrap();
}

/// A child that is added, or comes back, is reserved before it is written.
#[test]
fn a_child_that_joins_is_reserved() {
    let world = World::new(2, 6, Broken::Nothing);
    let old = world.made(OLD, holder(1, EA));
    world.rig.run(old.nexus.fault_child(&uri(1), nexus::Fault::Offline)).unwrap();
    // Its target lost everything meanwhile.
    let anew = Target::new(Broken::Nothing);
    let mut back =
        world.rig.run(old.nexus.online_child(&uri(1), anew.seen_by(OLD, world.powered[1].clone())));
    for _ in 0..1000 {
        if back.is_ok() {
            break;
        }
        world.rig.turn();
        let device = anew.seen_by(OLD, world.powered[1].clone());
        back = world.rig.run(old.nexus.online_child(&uri(1), device));
    }
    back.unwrap();
    assert!(anew.report().registrants[0].holds);
    // And refused, when somebody else has it.
    let taken = World::new(1, 7, Broken::Nothing);
    taken.stranger(0, 3, WE);
    let plain = Reservation { key: 1, rtype: EA, preempt: Preempt::Nobody };
    let side = world.made(OLD, plain);
    let device = taken.targets[0].seen_by(OLD, taken.powered[0].clone());
    let spec = ChildSpec { uri: "taken".into(), device, uuid: Uuid::from_u128(9) };
    let refused = world.rig.run(side.nexus.add_child(spec));
    assert!(
        matches!(refused, Err(NexusError::Reserve { .. } | NexusError::ChildExists { .. })),
        "{refused:?}"
    );
}

/// A write of the older nexus: when it was submitted, and whether it was acknowledged.
struct Deed {
    after_takeover: bool,
    acknowledged: bool,
}

/// What was found wrong.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrongs {
    /// The older one acknowledged a write that was submitted after the newer one had been made.
    acknowledged: usize,
    /// Blocks that the newer one wrote and that are something else now.
    overwritten: usize,
}

/// Two nexuses over the same children: the newer one is made at some moment while the older one writes, and both go on.
fn race(seed: u64, broken: Broken) -> Wrongs {
    const HOT: u64 = 8;
    let world = World::new(2, seed, broken);
    let mut rng = Rng::new(seed);
    let old = world.made(OLD, holder(1, if rng.one_in(2) { EA } else { WE }));
    let deeds: Rc<RefCell<Vec<Deed>>> = Rc::default();
    let taken_over = Rc::new(std::cell::Cell::new(false));
    let begin = |block: u64, fill: u8| {
        let (buf, host, deeds) = (world.buf(fill), old.host.clone(), deeds.clone());
        let after_takeover = taken_over.get();
        world.rig.core().spawn(async move {
            let acknowledged = host.write_at(block * BLOCK, BLOCK as u32, buf).await.0.is_ok();
            deeds.borrow_mut().push(Deed { after_takeover, acknowledged });
        })
    };
    let mut tasks = Vec::new();
    // Values of the older one are even, of the newer one odd.
    for _ in 0..rng.below(40) {
        tasks.push(begin(rng.below(HOT), 2));
        (0..rng.below(30)).for_each(|_| world.rig.turn());
    }
    let new = world.made(NEW, holder(2, if rng.one_in(2) { EA } else { WE }));
    taken_over.set(true);
    let mut last = [None; HOT as usize];
    for n in 0..60u64 {
        let block = rng.below(HOT);
        tasks.push(begin(rng.below(HOT), 4));
        let fill = (2 * (n % 100) + 1) as u8;
        world.rig.run(world.write(&new.host, block, fill)).unwrap();
        last[block as usize] = Some(fill);
        (0..rng.below(20)).for_each(|_| world.rig.turn());
    }
    (0..3_000).for_each(|_| world.rig.turn());
    drop(tasks);
    let overwritten = (0..HOT).filter(|&block| {
        let expected = last[block as usize];
        expected.is_some_and(|fill| (0..2).any(|disk| world.on_disk(disk, block) != fill))
    });
    let overwritten = overwritten.count();
    let acknowledged = deeds.borrow().iter().filter(|d| d.after_takeover && d.acknowledged).count();
    Wrongs { acknowledged, overwritten }
}

#[test]
fn h06_two_nexuses_never_both_get_acknowledgements() {
    for seed in 0..100 {
        assert_eq!(race(seed, Broken::Nothing), Wrongs::default(), "seed {seed}");
    }
}

/// The race finds what it looks for.
#[test]
fn the_race_finds_targets_that_do_not_keep_their_promise() {
    let wrongs = |broken| (0..60).map(|seed| race(seed, broken)).collect::<Vec<_>>();
    let unchecked = wrongs(Broken::Check);
    assert!(unchecked.iter().any(|w| w.acknowledged > 0) && unchecked.iter().any(|w| w.overwritten > 0));
    let undrained = wrongs(Broken::Drain);
    assert!(
        undrained.iter().any(|w| w.overwritten > 0),
        "a write that was under way came late: {undrained:?}"
    );
    assert_eq!(IoStatus::RESERVATION_CONFLICT.sc(), 0x83);
}
