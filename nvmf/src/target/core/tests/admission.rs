//! Who gets in, who is thrown out, and what is left of them.

use std::time::Duration;

use aio::memory::PoolsConfig;
use nvme::fabrics::DisconnectSqe;
use nvme::tcp::{Fes, PduHeader, PduType, R2t};
use nvme::{AdminOpcode, Cid, Nsid, NvmOpcode, Sqe, Status};

use super::gate::Gate;
use super::host::{self, rw};
use super::rig::Rig;
use crate::target::TargetError;
use crate::target::core::CoreConfig;
use crate::tcp::Local;

const DISK: &str = "malloc:///disk?size_mb=8&blk_size=512";

#[test]
fn connect_is_judged() {
    let mut rig = Rig::new(DISK);
    let h = rig.open(Local::host());
    rig.hosts[h].send(rw(NvmOpcode::READ, 1, 1, 0, 1), &[], false, 512);
    assert_eq!(rig.wait(h, 1).status, Status::SEQUENCE_ERROR, "a command before Connect");
    rig.turns(3);
    assert!(rig.hosts[h].closed);
    let h = rig.open(Local::host());
    let data = host::connect_data(0xffff, "nqn.2019-05.io.openebs:nobody", 1);
    rig.hosts[h].send(host::connect(1, 0, 32, true), &data, true, 0);
    let done = rig.wait(h, 1);
    assert_eq!(done.status, Status::CONNECT_INVALID_PARAMETERS.without_dnr(), "it may be published again");
    assert_eq!(done.result, 1 << 16 | 256, "points at SUBNQN");
    rig.turns(3);
    assert!(rig.hosts[h].closed);
    let h = rig.open(Local::host());
    assert_eq!(rig.connect(h, 0xffff, 0, true, 1).sqhd, 1);
    let h = rig.open(Local::host());
    assert_eq!(rig.connect(h, 0xffff, 0, false, 2).sqhd, 0xffff, "flow control is off");
}

/// Bug: a Connect that came in one segment with the ICReq waited for the next look at the timeouts.
#[test]
fn a_host_that_does_not_wait_for_icresp_is_answered_in_the_same_turn() {
    for room in [1 << 16, 100] {
        let mut rig = Rig::new(DISK);
        let (mut ours, theirs) = super::pipe::pipe(1 << 16);
        ours.limit_send(room);
        rig.core.adopt(rig.listener, Box::new(ours));
        rig.hosts.push(host::Host::new(theirs, Local::host()));
        let data = host::connect_data(0xffff, super::rig::NQN, 1);
        rig.hosts[0].send(host::connect(1, 0, 32, true), &data, true, 0);
        if room < 128 {
            // The ICResp goes in two parts, and the Connect waits for the second.
            rig.turns(2);
            assert_eq!(rig.hosts[0].in_flight(), 1);
        }
        rig.turn();
        assert_eq!(
            rig.hosts[0].done.get(&1).map(|d| d.status),
            Some(Status::SUCCESS),
            "room for {room} bytes"
        );
    }
}

#[test]
fn connect_data_by_r2t() {
    let mut rig = Rig::new(DISK);
    let h = rig.open(Local::host());
    let data = host::connect_data(0xffff, super::rig::NQN, 1);
    rig.hosts[h].send(host::connect(1, 0, 32, true), &data, false, 0);
    assert_eq!(rig.wait(h, 1).status, Status::SUCCESS);
}

#[test]
fn queue_head_counts_when_flow_control_is_on() {
    let mut rig = Rig::new(DISK);
    let (_, io) = rig.login(Local::host(), true, 1);
    for i in 0..70u16 {
        rig.hosts[io].send(rw(NvmOpcode::READ, 5, 1, 0, 1), &[], false, 512);
        assert_eq!(rig.wait(io, 5).sqhd, (i + 2) % 32);
    }
}

#[test]
fn command_identifiers_in_use() {
    let gate = Gate::new(64, 1, false);
    let mut rig =
        Rig::with_device(std::sync::Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let (_, io) = rig.login(Local::host(), false, 1);
    rig.hosts[io].send(rw(NvmOpcode::READ, 5, 1, 0, 1), &[], false, 512);
    rig.turns(2);
    rig.hosts[io].send(rw(NvmOpcode::READ, 5, 1, 0, 1), &[], false, 512);
    assert_eq!(rig.wait(io, 5).status, Status::COMMAND_ID_CONFLICT);
    assert_eq!(gate.waiting(), 1);
}

#[test]
fn more_commands_than_the_queue_has_entries() {
    let gate = Gate::new(64, 1, true);
    let mut rig =
        Rig::with_device(std::sync::Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let (_, io) = rig.login(Local::host(), false, 1);
    for i in 0..33 {
        rig.hosts[io].send(rw(NvmOpcode::READ, i, 1, 0, 1), &[], false, 512);
    }
    rig.turns(5);
    assert_eq!(rig.hosts[io].terminated.map(|t| t.fes), Some(Fes::SEQUENCE_ERROR));
    assert!(rig.hosts[io].closed);
    assert_eq!(gate.waiting(), 0, "what was in flight was cancelled");
}

#[test]
fn bad_transfer_tags() {
    let mut rig = Rig::new(DISK);
    let (_, io) = rig.login(Local::host(), false, 1);
    let mut bad = nvme::tcp::H2cData::zeroed();
    bad.header = PduHeader::with_data(PduType::H2C_DATA, false, false, 4, 8);
    bad.datal.set(8);
    bad.ttag.set(3);
    let mut bytes = bad.wire().to_vec();
    bytes.extend([0; 8]);
    rig.hosts[io].raw(&bytes);
    rig.turns(5);
    let t = rig.hosts[io].terminated.expect("a TermReq");
    assert_eq!((t.fes, t.fei), (Fes::INVALID_HEADER_FIELD, 10));
    assert!(rig.hosts[io].closed);
    let h = rig.open(Local::host());
    rig.hosts[h].raw(R2t::new(1, 1, 0, 4, false).wire());
    rig.turns(5);
    assert_eq!(rig.hosts[h].terminated.map(|t| (t.fes, t.fei)), Some((Fes::INVALID_HEADER_FIELD, 0)));
}

#[test]
fn stalled_peers_are_dropped() {
    let mut rig = Rig::new(DISK);
    let t = CoreConfig::default().timeouts;
    // Nothing after accept; half an ICReq; nothing after ICResp.
    let (ours, theirs) = super::pipe::pipe(1000);
    rig.core.adopt(rig.listener, Box::new(ours));
    let silent = rig.open(Local::host());
    let (admin, io) = rig.login(Local::host(), false, 1);
    let stalled = rig.login(Local::host(), false, 2).1;
    rig.hosts[stalled].stall_data = true;
    rig.hosts[stalled].send(rw(NvmOpcode::WRITE, 3, 1, 0, 8), &[1; 4096], false, 0);
    rig.hosts[io].raw(&[4, 0, 72]);
    rig.pass(t.init + t.connect + Duration::from_secs(1));
    assert!(rig.hosts[silent].closed);
    assert!(!rig.hosts[io].closed && !rig.hosts[stalled].closed);
    rig.pass(t.pdu.max(t.data) - t.init - t.connect + Duration::from_secs(1));
    assert!(rig.hosts[io].closed, "stuck in a PDU");
    assert!(rig.hosts[stalled].closed, "R2T unanswered");
    assert!(!rig.hosts[admin].closed);
    assert_eq!(rig.core.stats().timeouts, 4);
    assert_eq!(rig.core.connections(), 2);
    drop(theirs);
}

#[test]
fn other_traffic_does_not_excuse_unanswered_r2ts() {
    let mut rig = Rig::new(DISK);
    let (_, io) = rig.login(Local::host(), false, 1);
    rig.hosts[io].stall_data = true;
    rig.hosts[io].send(rw(NvmOpcode::WRITE, 3, 1, 0, 8), &[1; 4096], false, 0);
    for _ in 0..40 {
        if rig.hosts[io].closed {
            return;
        }
        rig.hosts[io].send(rw(NvmOpcode::READ, 4, 1, 0, 8), &[], false, 4096);
        rig.pass(Duration::from_secs(1));
        rig.hosts[io].done.remove(&4);
    }
    panic!("a host keeps a buffer for ever");
}

#[test]
fn events_and_aborts() {
    let gate = Gate::new(1, 1, true);
    let mut rig =
        Rig::with_device(std::sync::Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let (admin, io) = rig.login(Local::host(), false, 1);
    let admin_sqe = |opcode, cid| {
        let mut sqe = Sqe::admin(opcode, Nsid(0));
        sqe.set_cid(Cid(cid));
        sqe
    };
    rig.hosts[admin].send(admin_sqe(AdminOpcode::ASYNC_EVENT_REQUEST, 9), &[], false, 0);
    rig.turns(3);
    assert_eq!(rig.hosts[admin].in_flight(), 1);
    // One in flight, one waiting for the device.
    for cid in [20, 21] {
        rig.hosts[io].send(rw(NvmOpcode::READ, cid, 1, 0, 1), &[], false, 512);
    }
    rig.turns(2);
    assert_eq!(gate.waiting(), 1);
    for (abort_cid, victim, result) in [(10, 21u32, 0), (11, 20, 0), (12, 20, 1)] {
        let mut abort = admin_sqe(AdminOpcode::ABORT, abort_cid);
        abort.cdw10.set(victim << 16 | 1);
        rig.hosts[admin].send(abort, &[], false, 0);
        let done = rig.wait(admin, abort_cid);
        assert_eq!((done.status, done.result), (Status::SUCCESS, result), "abort of {victim}");
    }
    assert_eq!(rig.wait(io, 21).status, Status::ABORT_REQUESTED);
    assert_eq!(rig.wait(io, 20).status, Status::ABORT_REQUESTED);
    assert_eq!(gate.waiting(), 0);
}

#[test]
fn disconnect_of_an_io_queue() {
    let mut rig = Rig::new(DISK);
    let (admin, io) = rig.login(Local::host(), false, 1);
    let mut sqe = DisconnectSqe::new().to_sqe();
    sqe.set_cid(Cid(6));
    rig.hosts[io].send(sqe, &[], false, 0);
    assert_eq!(rig.wait(io, 6).status, Status::SUCCESS);
    rig.turns(5);
    assert!(rig.hosts[io].closed);
    rig.pass(Duration::from_secs(3));
    assert_eq!(rig.core.connections(), 1);
    // The identifier is free again.
    let io = rig.open(Local::host());
    assert_eq!(rig.connect(io, 1, 1, false, 1).status, Status::SUCCESS);
    assert!(!rig.hosts[admin].closed);
}

/// Hazard H3: commands of a dead association are over before the host's next one begins.
#[test]
fn h3_a_new_association_waits_for_the_old_one() {
    let gate = Gate::new(64, 1, false);
    let mut rig =
        Rig::with_device(std::sync::Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let (_, io) = rig.login(Local::host(), false, 1);
    rig.hosts[io].send(rw(NvmOpcode::WRITE, 5, 1, 0, 1), &[7; 512], true, 0);
    rig.turns(2);
    rig.vanish(1);
    rig.vanish(0);
    rig.turns(5);
    assert_eq!((gate.waiting(), rig.core.connections()), (1, 1), "the device has the write still");
    let h = rig.open(Local::host());
    let data = host::connect_data(0xffff, super::rig::NQN, 1);
    rig.hosts[h].send(host::connect(1, 0, 32, false), &data, true, 0);
    rig.pass(Duration::from_secs(3));
    assert_eq!(rig.hosts[h].in_flight(), 1, "told to wait");
    gate.complete(1, 0);
    assert_eq!(rig.wait(h, 1).status, Status::SUCCESS);
    assert_eq!(rig.core.connections(), 1);
}

#[test]
fn a_namespace_leaves_when_nothing_of_it_is_in_flight() {
    let gate = Gate::new(1, 1, false);
    let mut rig =
        Rig::with_device(std::sync::Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let (_, io) = rig.login(Local::host(), false, 1);
    for cid in [5, 6] {
        rig.hosts[io].send(rw(NvmOpcode::READ, cid, 1, 0, 1), &[], false, 512);
    }
    rig.turns(2);
    let target = rig.target.clone();
    let mut removal = Box::pin(async move { target.remove_namespace(super::rig::NQN, Nsid(1)).await });
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..5 {
        assert!(removal.as_mut().poll(&mut cx).is_pending());
        rig.turn();
    }
    assert_eq!(rig.wait(io, 6).status, Status::INVALID_NAMESPACE, "the one that waited");
    assert_eq!(gate.channels(), 1);
    gate.complete(1, 0xab);
    assert_eq!(rig.wait(io, 5).data, [0xab; 512], "the one in flight");
    rig.block_on(removal).unwrap();
    assert_eq!(gate.channels(), 0);
    rig.hosts[io].send(rw(NvmOpcode::READ, 7, 1, 0, 1), &[], false, 512);
    assert_eq!(rig.wait(io, 7).status, Status::INVALID_NAMESPACE);
}

#[test]
fn pause_holds_back_and_resume_lets_go() {
    let gate = Gate::new(64, 1, false);
    let mut rig =
        Rig::with_device(std::sync::Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let (admin, io) = rig.login(Local::host(), false, 1);
    rig.hosts[io].send(rw(NvmOpcode::WRITE, 5, 1, 0, 1), &[1; 512], true, 0);
    rig.turns(2);
    let target = rig.target.clone();
    let mut pause = Box::pin(async move { target.pause(super::rig::NQN).await });
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(pause.as_mut().poll(&mut cx).is_pending());
    rig.turns(3);
    assert!(pause.as_mut().poll(&mut cx).is_pending(), "one is in flight");
    rig.hosts[io].send(rw(NvmOpcode::WRITE, 6, 1, 0, 1), &[2; 512], true, 0);
    rig.turns(3);
    assert_eq!(gate.waiting(), 1);
    gate.complete(1, 0);
    rig.block_on(pause).unwrap();
    rig.turns(3);
    assert_eq!((gate.waiting(), rig.core.state.chunks.held()), (0, 0), "who waits does not hold a chunk");
    let mut keep_alive = Sqe::admin(AdminOpcode::KEEP_ALIVE, Nsid(0));
    keep_alive.set_cid(Cid(4));
    rig.hosts[admin].send(keep_alive, &[], false, 0);
    assert_eq!(rig.wait(admin, 4).status, Status::SUCCESS);
    let target = rig.target.clone();
    rig.block_on(async move { target.resume(super::rig::NQN).await }).unwrap();
    rig.turns(2);
    assert_eq!(gate.waiting(), 1);
    gate.complete(1, 0);
    assert_eq!(rig.wait(io, 6).status, Status::SUCCESS);
}

/// Bug: a pause lasted for as long as whoever asked for it liked, and for ever when that had died: hosts waited.
#[test]
fn a_pause_ends_at_its_limit_and_who_asked_is_told() {
    let gate = Gate::new(64, 1, false);
    let mut rig =
        Rig::with_device(std::sync::Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let target = rig.target.clone();
    let limit = target.config().pause_limit;
    let (_, io) = rig.login(Local::host(), false, 1);
    let write = |rig: &mut Rig, cid| {
        rig.hosts[io].send(rw(NvmOpcode::WRITE, cid, 1, 0, 1), &[1; 512], true, 0);
        rig.turns(2);
    };
    // One in flight keeps the pause from beginning.
    write(&mut rig, 5);
    let pending = target.clone();
    let mut pause = Box::pin(async move { pending.pause(super::rig::NQN).await });
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(pause.as_mut().poll(&mut cx).is_pending());
    write(&mut rig, 6);
    rig.pass(limit - Duration::from_secs(1));
    assert!(pause.as_mut().poll(&mut cx).is_pending());
    assert_eq!(gate.waiting(), 1);
    rig.pass(Duration::from_secs(2));
    let failed = rig.block_on(pause);
    assert!(matches!(failed, Err(TargetError::PauseTooLong { .. })), "{failed:?}");
    assert_eq!(gate.waiting(), 2, "the command that waited went on");
    gate.complete(2, 0);
    rig.block_on(target.resume(super::rig::NQN)).expect("told once");
    // One that was complete, and that nobody ends. The second of two begins the time anew.
    rig.block_on(target.pause(super::rig::NQN)).unwrap();
    rig.pass(limit - Duration::from_secs(1));
    rig.block_on(target.pause(super::rig::NQN)).unwrap();
    write(&mut rig, 7);
    rig.pass(limit - Duration::from_secs(1));
    assert!(gate.waiting() == 0 && target.subsystem(super::rig::NQN).unwrap().paused);
    // A core that sleeps wakes for it.
    let aio::Sleep::Until(wake) = aio::Poller::prepare_sleep(&mut rig.core, rig.now) else {
        panic!("for ever")
    };
    assert!(wake <= rig.now + Duration::from_secs(2));
    rig.pass(Duration::from_secs(2));
    assert!(gate.waiting() == 1 && !target.subsystem(super::rig::NQN).unwrap().paused);
    let failed = rig.block_on(target.resume(super::rig::NQN));
    let text = failed.expect_err("it was undone").to_string();
    assert!(text.contains(super::rig::NQN) && text.contains("15000 ms"), "{text}");
    gate.complete(1, 0);
    rig.block_on(target.pause(super::rig::NQN)).unwrap();
    rig.block_on(target.resume(super::rig::NQN)).unwrap();
    // What is left of old pauses does not end a new one.
    rig.block_on(target.pause(super::rig::NQN)).unwrap();
    target.pause_expired(crate::target::SubsystemId(1), 0);
    rig.turns(3);
    assert!(target.subsystem(super::rig::NQN).unwrap().paused);
}
