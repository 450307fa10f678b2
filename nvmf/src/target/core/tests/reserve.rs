//! Reservations through the whole of a core: who is refused, and that nothing of a fenced host comes late.

use std::rc::Rc;
use std::sync::{Arc, Mutex};

use aio::memory::{DmaPools, Memory, MemoryConfig, PoolsConfig};
use aio::{Instant, Poller};
use nvme::aen::AsyncEvent;
use nvme::feature::{Fid, ReservationMask, SetFeatures};
use nvme::log::{GetLogPage, Lid, ReservationLog, ReservationNotice};
use nvme::reservation::{
    Acquire, AcquireAction, ChangePersistence, Register, RegisterAction, Release, ReleaseAction, Report,
    ReportRequest, ReservationType, Reservations,
};
use nvme::{AdminOpcode, Cid, HostId, Nsid, NvmOpcode, Sqe, Status};

use super::gate::Gate;
use super::host::rw;
use super::rig::{NQN, NoNetwork, Rig};
use crate::target::core::{CoreConfig, TargetCore};
use crate::target::{
    NamespaceSpec, PersistentReservations, ReservationStore, SaveDone, SavedReservations, SubsystemSpec,
};
use crate::tcp::Local;

const N: Nsid = Nsid(1);
const WE: ReservationType = ReservationType::WRITE_EXCLUSIVE;
const EA: ReservationType = ReservationType::EXCLUSIVE_ACCESS;
const CONFLICT: Status = Status::RESERVATION_CONFLICT;

fn local() -> Local {
    Local::host()
}

fn register(key: u64) -> (Sqe, Vec<u8>) {
    let command = Register {
        action: RegisterAction::REPLACE,
        ignore_existing_key: true,
        persistence: ChangePersistence::NO_CHANGE,
        crkey: 0,
        nrkey: key,
    };
    command.encode(N)
}

fn acquire(action: AcquireAction, rtype: ReservationType, crkey: u64, prkey: u64) -> (Sqe, Vec<u8>) {
    Acquire { action, ignore_existing_key: false, rtype, crkey, prkey }.encode(N)
}

impl Rig {
    /// Sends a reservation command as `cid`.
    fn send_resv(&mut self, h: usize, cid: u16, (mut sqe, data): (Sqe, Vec<u8>)) {
        sqe.set_cid(Cid(cid));
        self.hosts[h].send(sqe, &data, true, 0);
    }

    fn resv(&mut self, h: usize, cid: u16, command: (Sqe, Vec<u8>)) -> Status {
        self.send_resv(h, cid, command);
        self.wait(h, cid).status
    }

    fn report(&mut self, h: usize, cid: u16) -> Report {
        let mut sqe = ReportRequest { len_bytes: 4096, extended: true }.sqe(N);
        sqe.set_cid(Cid(cid));
        self.hosts[h].send(sqe, &[], false, 4096);
        let done = self.wait(h, cid);
        assert_eq!(done.status, Status::SUCCESS);
        Report::parse_extended(&done.data).unwrap()
    }

    fn send_write(&mut self, h: usize, cid: u16) {
        self.hosts[h].send(rw(NvmOpcode::WRITE, cid, 1, u64::from(cid), 1), &[cid as u8; 512], true, 0);
    }

    fn write(&mut self, h: usize, cid: u16) -> Status {
        self.send_write(h, cid);
        self.wait(h, cid).status
    }

    fn read(&mut self, h: usize, cid: u16) -> Status {
        self.hosts[h].send(rw(NvmOpcode::READ, cid, 1, 0, 1), &[], false, 512);
        self.wait(h, cid).status
    }

    fn pending(&self, h: usize, cid: u16) -> bool {
        !self.hosts[h].done.contains_key(&cid)
    }
}

/// Hosts 1 and 2, both registered (keys 1 and 2) on a device that completes nothing by itself; host 2 holds `rtype`.
fn two_hosts(gate: &Gate, rtype: ReservationType) -> (Rig, usize, usize) {
    let mut rig = Rig::with_device(Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let (_, a) = rig.login(local(), false, 1);
    let (_, b) = rig.login(local(), false, 2);
    assert_eq!(rig.resv(a, 100, register(1)), Status::SUCCESS);
    assert_eq!(rig.resv(b, 100, register(2)), Status::SUCCESS);
    assert_eq!(rig.resv(b, 101, acquire(AcquireAction::ACQUIRE, rtype, 2, 0)), Status::SUCCESS);
    (rig, a, b)
}

#[test]
fn who_is_refused() {
    let mut rig = Rig::new("malloc:///m?size_mb=1");
    let (_, a) = rig.login(local(), false, 1);
    let (_, b) = rig.login(local(), true, 2);
    let (_, c) = rig.login(local(), false, 3);
    assert_eq!(rig.resv(a, 10, register(1)), Status::SUCCESS);
    assert_eq!(rig.resv(b, 10, register(2)), Status::SUCCESS);
    // Type; whether a registrant and whether a stranger may read and write.
    let table = [
        (1, (true, false), (true, false)),
        (2, (false, false), (false, false)),
        (3, (true, true), (true, false)),
        (4, (true, true), (false, false)),
        (5, (true, true), (true, false)),
        (6, (true, true), (false, false)),
    ];
    for (rtype, registrant, stranger) in table {
        let rtype = ReservationType::new(rtype);
        assert_eq!((rig.write(b, 20), rig.write(c, 20)), (Status::SUCCESS, Status::SUCCESS));
        assert_eq!(rig.resv(a, 11, acquire(AcquireAction::ACQUIRE, rtype, 1, 0)), Status::SUCCESS);
        for (h, (read, write)) in [(a, (true, true)), (b, registrant), (c, stranger)] {
            let expected = |allowed| if allowed { Status::SUCCESS } else { CONFLICT };
            assert_eq!((rig.read(h, 21), rig.write(h, 22)), (expected(read), expected(write)), "{rtype} {h}");
            let mut flush = Sqe::nvm(NvmOpcode::FLUSH, N);
            flush.set_cid(Cid(23));
            rig.hosts[h].send(flush, &[], false, 0);
            assert_eq!(rig.wait(h, 23).status, expected(write), "{rtype} {h}: Flush is a write command");
        }
        let report = rig.report(c, 24);
        assert_eq!((report.rtype, report.registrants.len()), (Some(rtype), 2));
        let release = Release { action: ReleaseAction::RELEASE, ignore_existing_key: false, rtype, crkey: 1 };
        assert_eq!(rig.resv(a, 12, release.encode(N)), Status::SUCCESS);
    }
    let unregistered = acquire(AcquireAction::ACQUIRE, EA, 0, 0);
    assert_eq!(rig.resv(c, 25, unregistered), CONFLICT);
}

#[test]
fn bad_reservation_commands() {
    let mut rig = Rig::new("malloc:///m?size_mb=1");
    let (_, a) = rig.login(local(), false, 1);
    // Lengths that do not fit, in both directions.
    let (mut sqe, data) = register(1);
    sqe.set_cid(Cid(5));
    rig.hosts[a].send(sqe, &data[..8], true, 0);
    assert_eq!(rig.wait(a, 5).status, Status::DATA_SGL_LENGTH_INVALID);
    let mut sqe = ReportRequest { len_bytes: 1 << 20, extended: true }.sqe(N);
    sqe.set_cid(Cid(6));
    rig.hosts[a].send(sqe, &[], false, 1 << 20);
    assert_eq!(rig.wait(a, 6).status, Status::INVALID_FIELD);
    let mut sqe = ReportRequest { len_bytes: 64, extended: false }.sqe(N);
    sqe.set_cid(Cid(7));
    rig.hosts[a].send(sqe, &[], false, 64);
    assert_eq!(rig.wait(a, 7).status, Status::HOST_ID_INCONSISTENT);
    // A namespace that is not there.
    let (mut sqe, data) = register(1);
    sqe.nsid.set(9);
    assert_eq!(rig.resv(a, 8, (sqe, data)), Status::INVALID_NAMESPACE);
    // Keys upon R2Ts, as small as they are.
    let (mut sqe, data) = register(1);
    sqe.set_cid(Cid(9));
    rig.hosts[a].send(sqe, &data, false, 0);
    assert_eq!(rig.wait(a, 9).status, Status::SUCCESS);
    // Persistence without a place to keep it.
    let (mut sqe, data) = register(1);
    sqe.cdw10.set(sqe.cdw10.get() | 3 << 30);
    assert_eq!(rig.resv(a, 10, (sqe, data)), Status::INVALID_FIELD);
    assert_eq!(rig.report(a, 11).registrants.len(), 1);
}

/// H3: a write that the device has when its host is preempted is over before the preemption is.
#[test]
fn a_preemption_waits_for_old_writes() {
    let gate = Gate::new(64, 1, false);
    let (mut rig, a, b) = two_hosts(&gate, EA);
    rig.send_write(b, 1);
    rig.turns(5);
    assert_eq!(gate.waiting(), 1);
    rig.send_resv(a, 1, acquire(AcquireAction::PREEMPT, EA, 1, 2));
    rig.turns(50);
    assert!(rig.pending(a, 1), "the old write is still in the device");
    // It is refused from now on although the preemption is not over.
    assert_eq!(rig.write(b, 2), CONFLICT);
    assert_eq!(gate.waiting(), 1);
    gate.complete(1, 0);
    assert_eq!(rig.wait(a, 1).status, Status::SUCCESS);
    assert_eq!(rig.wait(b, 1).status, Status::SUCCESS, "it was in time");
    assert_eq!((rig.write(b, 3), rig.read(b, 4)), (CONFLICT, CONFLICT));
    rig.send_write(a, 5);
    rig.turns(5);
    assert_eq!(gate.waiting(), 1);
}

/// Commands that remain allowed do not hold a preemption up.
#[test]
fn a_preemption_does_not_wait_for_what_is_allowed() {
    let gate = Gate::new(64, 1, false);
    let (mut rig, a, b) = two_hosts(&gate, WE);
    rig.hosts[b].send(rw(NvmOpcode::READ, 1, 1, 0, 1), &[], false, 512);
    rig.hosts[a].send(rw(NvmOpcode::READ, 1, 1, 0, 1), &[], false, 512);
    rig.turns(5);
    assert_eq!(gate.waiting(), 2);
    assert_eq!(rig.resv(a, 2, acquire(AcquireAction::PREEMPT, WE, 1, 2)), Status::SUCCESS);
    assert_eq!(gate.waiting(), 2);
}

/// An Acquire shuts others out as a preemption does.
#[test]
fn an_acquisition_waits_for_old_writes() {
    let gate = Gate::new(64, 1, false);
    let (mut rig, a, b) = two_hosts(&gate, EA);
    let release = Release { action: ReleaseAction::RELEASE, ignore_existing_key: false, rtype: EA, crkey: 2 };
    assert_eq!(rig.resv(b, 1, release.encode(N)), Status::SUCCESS);
    rig.send_write(b, 2);
    rig.turns(5);
    rig.send_resv(a, 3, acquire(AcquireAction::ACQUIRE, EA, 1, 0));
    // One that changes nothing comes after it, and not before.
    rig.send_resv(a, 4, acquire(AcquireAction::ACQUIRE, EA, 1, 0));
    rig.turns(50);
    assert!(rig.pending(a, 3) && rig.pending(a, 4));
    gate.complete(1, 0);
    assert_eq!((rig.wait(a, 3).status, rig.wait(a, 4).status), (Status::SUCCESS, Status::SUCCESS));
}

/// A write whose data had not come when its host was preempted never gets to the device.
#[test]
fn data_that_comes_after_a_preemption_is_refused() {
    let gate = Gate::new(64, 1, false);
    let (mut rig, a, b) = two_hosts(&gate, EA);
    rig.hosts[b].stall_data = true;
    rig.hosts[b].send(rw(NvmOpcode::WRITE, 1, 1, 0, 64), &[7; 64 * 512], false, 0);
    rig.turns(5);
    assert_eq!((rig.hosts[b].r2ts, gate.waiting()), (1, 0));
    assert_eq!(rig.resv(a, 1, acquire(AcquireAction::PREEMPT, EA, 1, 2)), Status::SUCCESS);
    rig.hosts[b].stall_data = false;
    rig.hosts[b].send_data(1);
    assert_eq!(rig.wait(b, 1).status, CONFLICT);
    assert_eq!(gate.waiting(), 0);
}

/// A write that stood in line when its host was preempted never gets to the device.
#[test]
fn the_line_is_refused_after_a_preemption() {
    let gate = Gate::new(1, 1, false);
    let (mut rig, a, b) = two_hosts(&gate, EA);
    for cid in 1..4 {
        rig.send_write(b, cid);
    }
    rig.turns(5);
    assert_eq!(gate.waiting(), 1);
    rig.send_resv(a, 1, acquire(AcquireAction::PREEMPT, EA, 1, 2));
    rig.turns(5);
    gate.complete(1, 0);
    assert_eq!(rig.wait(a, 1).status, Status::SUCCESS);
    let statuses: Vec<_> = (1..4).map(|cid| rig.wait(b, cid).status).collect();
    assert_eq!(statuses, [Status::SUCCESS, CONFLICT, CONFLICT]);
    assert_eq!(gate.waiting(), 0);
}

/// H3: what a host left behind when its connection broke counts.
#[test]
fn a_preemption_waits_for_writes_of_broken_connections() {
    let gate = Gate::new(64, 1, false);
    let (mut rig, a, b) = two_hosts(&gate, EA);
    rig.send_write(b, 1);
    rig.turns(5);
    rig.vanish(b);
    rig.turns(5);
    assert_eq!(gate.waiting(), 1);
    rig.send_resv(a, 1, acquire(AcquireAction::PREEMPT, EA, 1, 2));
    rig.turns(50);
    assert!(rig.pending(a, 1));
    gate.complete(1, 0);
    assert_eq!(rig.wait(a, 1).status, Status::SUCCESS);
}

#[test]
fn preempt_and_abort_aborts_before_it_completes() {
    for cancels in [true, false] {
        let gate = Gate::new(2, 1, cancels);
        let (mut rig, a, b) = two_hosts(&gate, WE);
        for cid in 1..5 {
            rig.send_write(b, cid);
        }
        rig.turns(5);
        assert_eq!(gate.waiting(), 2);
        rig.send_resv(a, 1, acquire(AcquireAction::PREEMPT_AND_ABORT, WE, 1, 2));
        rig.turns(20);
        let waiting = [rig.hosts[b].done.remove(&3), rig.hosts[b].done.remove(&4)];
        for done in waiting {
            assert_eq!(done.unwrap().status, Status::ABORTED_PREEMPT);
        }
        assert_eq!(rig.pending(a, 1), !cancels, "{cancels}");
        gate.complete(2, 0);
        assert_eq!(rig.wait(a, 1).status, Status::SUCCESS);
        let in_device = if cancels { Status::ABORT_REQUESTED } else { Status::SUCCESS };
        assert_eq!((rig.wait(b, 1).status, rig.wait(b, 2).status), (in_device, in_device));
        // Reads are allowed by the type, but those that were there are aborted all the same.
        assert_eq!(rig.write(b, 9), CONFLICT);
    }
}

/// Compare and Write is one command of both groups.
#[test]
fn a_fused_write_is_refused_with_its_compare() {
    let gate = Gate::new(64, 1, false);
    let (mut rig, a, _b) = two_hosts(&gate, WE);
    let mut first = rw(NvmOpcode::COMPARE, 1, 1, 0, 1);
    first.set_fuse(nvme::command::Fuse::FIRST);
    let mut second = rw(NvmOpcode::WRITE, 2, 1, 0, 1);
    second.set_fuse(nvme::command::Fuse::SECOND);
    rig.hosts[a].send(first, &[0; 512], true, 0);
    rig.hosts[a].send(second, &[1; 512], true, 0);
    assert_eq!(rig.wait(a, 1).status, CONFLICT);
    assert_eq!(rig.wait(a, 2).status, Status::ABORTED_FAILED_FUSED);
    assert_eq!(gate.waiting(), 0);
}

/// Hosts are told apart by their identifier: a second controller, a later one, and one on another core.
#[test]
fn a_host_is_its_identifier_on_every_core() {
    let gate = Gate::new(64, 1, false);
    let (mut rig, a, b) = two_hosts(&gate, EA);
    gate.open_for_all();
    let memory = Memory::new(MemoryConfig { huge_pages: false });
    let pools = DmaPools::new(&memory, &PoolsConfig::default()).unwrap();
    let inbox = rig.target.attach_core(|| {});
    let target = rig.target.clone();
    let other =
        TargetCore::new(target, inbox, Rc::new(NoNetwork), pools, &memory, CoreConfig::default()).unwrap();
    let mut first = std::mem::replace(&mut rig.core, other);
    rig.turns(5);
    // From here on new connections are on the other core, which has to be driven together with the first.
    let mut both = |rig: &mut Rig, turns: usize| {
        for _ in 0..turns {
            rig.turn();
            first.poll(rig.now);
            first.kick();
            rig.hosts.iter_mut().for_each(super::host::Host::turn);
        }
    };
    let (_, b2) = rig.login(local(), false, 2);
    let (_, a2) = rig.login(local(), false, 1);
    assert_eq!(
        (rig.write(b2, 1), rig.write(a2, 1)),
        (Status::SUCCESS, CONFLICT),
        "it opened with the rights"
    );
    rig.send_resv(a2, 2, acquire(AcquireAction::PREEMPT, EA, 1, 2));
    both(&mut rig, 20);
    assert_eq!(rig.hosts[a2].done.remove(&2).map(|d| d.status), Some(Status::SUCCESS));
    for (h, expected) in [(a, Status::SUCCESS), (a2, Status::SUCCESS), (b, CONFLICT), (b2, CONFLICT)] {
        rig.send_write(h, 7);
        both(&mut rig, 10);
        assert_eq!(rig.hosts[h].done.remove(&7).map(|d| d.status), Some(expected), "{h}");
    }
}

/// A preemption waits for the writes on every core, not only on that of its own queue.
#[test]
fn a_preemption_waits_for_other_cores() {
    let gate = Gate::new(64, 1, false);
    let (mut rig, _a, b) = two_hosts(&gate, EA);
    rig.send_write(b, 1);
    rig.turns(5);
    assert_eq!(gate.waiting(), 1);
    let memory = Memory::new(MemoryConfig { huge_pages: false });
    let pools = DmaPools::new(&memory, &PoolsConfig::default()).unwrap();
    let inbox = rig.target.attach_core(|| {});
    let target = rig.target.clone();
    let other =
        TargetCore::new(target, inbox, Rc::new(NoNetwork), pools, &memory, CoreConfig::default()).unwrap();
    let mut first = std::mem::replace(&mut rig.core, other);
    rig.turns(5);
    let (_, a2) = rig.login(local(), false, 1);
    rig.send_resv(a2, 2, acquire(AcquireAction::PREEMPT, EA, 1, 2));
    let mut now = Instant::from_ns(5_000_000_000);
    let mut both = |rig: &mut Rig| {
        for _ in 0..20 {
            rig.turn();
            now = now + std::time::Duration::from_micros(10);
            first.poll(now);
            first.kick();
        }
    };
    rig.turns(20);
    assert!(rig.pending(a2, 2), "the first core has not even heard of it");
    both(&mut rig);
    assert!(rig.pending(a2, 2), "its device has the write");
    gate.complete(1, 0);
    both(&mut rig);
    assert_eq!(rig.hosts[a2].done.remove(&2).map(|d| d.status), Some(Status::SUCCESS));
}

#[test]
fn hosts_are_told() {
    let gate = Gate::new(64, 1, false);
    let mut rig = Rig::with_device(Arc::new(gate), CoreConfig::default(), PoolsConfig::default());
    let (a_admin, a) = rig.login(local(), false, 1);
    let (_, b) = rig.login(local(), false, 2);
    rig.resv(a, 1, register(1));
    rig.resv(b, 1, register(2));
    let mut aer = Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, Nsid::NONE);
    for cid in [20, 21] {
        aer.set_cid(Cid(cid));
        rig.hosts[a_admin].send(aer, &[], false, 0);
    }
    let page = |rig: &mut Rig, cid: u16| {
        let mut sqe = GetLogPage::new(Lid::RESERVATION, 64).sqe();
        sqe.set_cid(Cid(cid));
        rig.hosts[a_admin].send(sqe, &[], false, 64);
        let done = rig.wait(a_admin, cid);
        assert_eq!(done.status, Status::SUCCESS);
        let page = ReservationLog::read(&done.data).unwrap();
        (page.count.get(), page.kind, page.available, page.nsid.get())
    };
    assert_eq!(page(&mut rig, 30), (0, ReservationNotice::EMPTY, 0, 0));
    // B takes A's registration, twice.
    for _ in 0..2 {
        assert_eq!(rig.resv(b, 2, acquire(AcquireAction::PREEMPT, EA, 2, 1)), Status::SUCCESS);
        rig.resv(a, 3, register(1));
    }
    assert_eq!(rig.wait(a_admin, 20).result, AsyncEvent::RESERVATION.result());
    rig.turns(5);
    assert!(rig.pending(a_admin, 21), "one event until the page is read");
    assert_eq!(page(&mut rig, 31), (1, ReservationNotice::REGISTRATION_PREEMPTED, 1, 1));
    assert_eq!(rig.wait(a_admin, 21).result, AsyncEvent::RESERVATION.result(), "there is another");
    assert_eq!(page(&mut rig, 32), (2, ReservationNotice::REGISTRATION_PREEMPTED, 0, 1));
    // What the host masks does not come.
    let mut mask = SetFeatures::new(Fid::RESERVATION_MASK, ReservationMask::REGISTRATION_PREEMPTED.bits());
    mask.nsid = N;
    let mut sqe = mask.sqe();
    sqe.set_cid(Cid(33));
    rig.hosts[a_admin].send(sqe, &[], false, 0);
    assert_eq!(rig.wait(a_admin, 33).status, Status::SUCCESS);
    assert_eq!(rig.resv(b, 2, acquire(AcquireAction::PREEMPT, EA, 2, 1)), Status::SUCCESS);
    assert_eq!(page(&mut rig, 34), (0, ReservationNotice::EMPTY, 0, 0));
}

/// Keeps saves until the test ends them.
#[derive(Default)]
struct Shelf(Mutex<Vec<(Option<SavedReservations>, SaveDone)>>);

impl ReservationStore for Shelf {
    fn save(&self, state: Option<SavedReservations>, done: SaveDone) {
        self.0.lock().unwrap().push((state, done));
    }
}

impl Shelf {
    fn end(&self, result: std::io::Result<()>) -> Option<SavedReservations> {
        let (state, done) = self.0.lock().unwrap().pop().expect("something is being saved");
        done(result);
        state
    }
}

const KEPT: &str = "nqn.2019-05.io.openebs:kept";

fn persistent(key: u64, persistence: ChangePersistence) -> (Sqe, Vec<u8>) {
    let command = Register {
        action: RegisterAction::REPLACE,
        ignore_existing_key: true,
        persistence,
        crkey: 0,
        nrkey: key,
    };
    command.encode(N)
}

#[test]
fn what_persists_is_saved_before_the_command_completes() {
    let shelf = Arc::new(Shelf::default());
    let mut rig = Rig::new("malloc:///m?size_mb=1");
    let target = rig.target.clone();
    let gate = Gate::new(64, 1, false);
    gate.open_for_all();
    let mut spec = NamespaceSpec::new(Arc::new(gate));
    spec.reservations = Some(PersistentReservations::none(shelf.clone()));
    rig.block_on(target.create_subsystem(SubsystemSpec::new(KEPT))).unwrap();
    rig.block_on(target.add_namespace(KEPT, spec)).unwrap();
    let (_, a) = rig.login_to(KEPT, local(), false, 1);
    let (_, b) = rig.login_to(KEPT, local(), false, 2);
    // Nothing persists, nothing is saved.
    assert_eq!(rig.resv(a, 1, register(1)), Status::SUCCESS);
    rig.send_resv(a, 2, persistent(1, ChangePersistence::SET));
    rig.send_resv(b, 3, register(2));
    rig.turns(20);
    assert!(rig.pending(a, 2) && rig.pending(b, 3), "the second waits for the first");
    assert_eq!(shelf.0.lock().unwrap().len(), 1);
    let saved = shelf.end(Ok(())).unwrap();
    assert_eq!((saved.registrants.len(), saved.held), (1, None));
    assert_eq!(rig.wait(a, 2).status, Status::SUCCESS);
    rig.turns(5);
    assert_eq!(shelf.end(Ok(())).unwrap().registrants.len(), 2);
    assert_eq!(rig.wait(b, 3).status, Status::SUCCESS);
    // A reservation that could not be saved is none.
    rig.send_resv(a, 4, acquire(AcquireAction::ACQUIRE, EA, 1, 0));
    rig.turns(5);
    let saved = shelf.end(Err(std::io::ErrorKind::StorageFull.into())).unwrap();
    assert_eq!(saved.held.unwrap().holder, HostId([1; 16]));
    assert_eq!(rig.wait(a, 4).status, Status::INTERNAL_ERROR);
    assert_eq!((rig.report(a, 5).rtype, rig.write(b, 6)), (None, Status::SUCCESS));
    // A store that drops the call failed as well.
    rig.send_resv(a, 7, acquire(AcquireAction::ACQUIRE, EA, 1, 0));
    rig.turns(5);
    drop(shelf.0.lock().unwrap().pop().unwrap());
    assert_eq!(rig.wait(a, 7).status, Status::INTERNAL_ERROR);
    // Forgotten when it does not persist any more.
    rig.send_resv(a, 8, persistent(1, ChangePersistence::CLEAR));
    rig.turns(5);
    assert_eq!(shelf.end(Ok(())), None);
    assert_eq!(rig.wait(a, 8).status, Status::SUCCESS);
    // Reading and acquiring what one has saves nothing.
    assert_eq!(rig.resv(a, 9, acquire(AcquireAction::ACQUIRE, EA, 1, 0)), Status::SUCCESS);
    assert!(shelf.0.lock().unwrap().is_empty());
}

#[test]
fn a_namespace_begins_with_what_was_saved() {
    let mut before = Reservations::new(true);
    let command = |(sqe, data): (Sqe, Vec<u8>)| nvme::reservation::Command::decode(&sqe, &data).unwrap();
    before.apply(HostId([1; 16]), &command(persistent(1, ChangePersistence::SET))).unwrap();
    before.apply(HostId([1; 16]), &command(acquire(AcquireAction::ACQUIRE, EA, 1, 0))).unwrap();
    let saved = Reservations::restore(before.registrants().to_vec(), before.held()).unwrap();
    let mut rig = Rig::new("malloc:///m?size_mb=1");
    let target = rig.target.clone();
    let gate = Gate::new(64, 1, false);
    gate.open_for_all();
    let mut spec = NamespaceSpec::new(Arc::new(gate));
    spec.reservations = Some(PersistentReservations { saved, store: Arc::new(Shelf::default()) });
    rig.block_on(target.create_subsystem(SubsystemSpec::new(KEPT))).unwrap();
    rig.block_on(target.add_namespace(KEPT, spec)).unwrap();
    let (_, b) = rig.login_to(KEPT, local(), false, 2);
    let (_, a) = rig.login_to(KEPT, local(), false, 1);
    assert_eq!((rig.write(b, 1), rig.write(a, 1)), (CONFLICT, Status::SUCCESS));
    assert!(rig.report(b, 2).persists);
}

/// A namespace that goes away takes its commands along.
#[test]
fn a_removed_namespace_ends_its_reservation_commands() {
    let gate = Gate::new(64, 1, false);
    let (mut rig, a, b) = two_hosts(&gate, EA);
    rig.send_write(b, 1);
    rig.turns(5);
    rig.send_resv(a, 1, acquire(AcquireAction::PREEMPT, EA, 1, 2));
    rig.send_resv(a, 2, register(5));
    rig.turns(5);
    let target = rig.target.clone();
    let mut removal = Box::pin(target.remove_namespace(NQN, N));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::future::Future::poll(removal.as_mut(), &mut cx).is_pending());
    rig.turns(5);
    gate.open_for_all();
    rig.block_on(removal).unwrap();
    let ended = [rig.wait(a, 1).status, rig.wait(a, 2).status];
    assert!(ended.contains(&Status::INVALID_NAMESPACE) || ended == [Status::SUCCESS; 2], "{ended:?}");
}
