//! What the control side decides about an association, as its connections see it.

use std::time::Duration;

use nvme::feature::{Fid, SetFeatures};
use nvme::identify::{Cns, Identify};
use nvme::log::{ErrorEntry, GetLogPage, Lid, SmartLog};
use nvme::property::{Cc, Csts, PropertyOffset};
use nvme::{Cid, Nsid, NvmOpcode, Qid, Sqe, Status, fabrics::PropertySqe};

use super::gate::Gate;
use super::host::{Done, rw};
use super::rig::{NQN, Rig};
use crate::target::{AllowedHosts, AnaState, SubsystemSpec};
use crate::tcp::Local;

const DISK: &str = "malloc:///disk?size_mb=8";

fn run(rig: &mut Rig, h: usize, mut sqe: Sqe, reads: u32) -> Done {
    sqe.set_cid(Cid(9));
    rig.hosts[h].send(sqe, &[], false, reads);
    rig.wait(h, 9)
}

fn set_cc(rig: &mut Rig, admin: usize, cc: Cc) {
    let sqe = PropertySqe::set(PropertyOffset::CC, u64::from(cc.0)).to_sqe();
    assert_eq!(run(rig, admin, sqe, 0).status, Status::SUCCESS);
}

fn csts(rig: &mut Rig, admin: usize) -> Csts {
    Csts(run(rig, admin, PropertySqe::get(PropertyOffset::CSTS).to_sqe(), 0).result as u32)
}

fn read_log(rig: &mut Rig, admin: usize, lid: Lid, len_bytes: u32) -> Vec<u8> {
    let done = run(rig, admin, GetLogPage::new(lid, u64::from(len_bytes)).sqe(), len_bytes);
    assert_eq!(done.status, Status::SUCCESS);
    done.data
}

#[test]
fn failed_io_stands_in_the_error_log_and_smart_counts() {
    let mut rig = Rig::new(DISK);
    let (admin, io) = rig.login(Local::host(), false, 1);
    assert_eq!(run(&mut rig, io, rw(NvmOpcode::READ, 9, 1, 0, 8), 4096).status, Status::SUCCESS);
    let beyond = run(&mut rig, io, rw(NvmOpcode::READ, 9, 1, 1 << 40, 8), 4096);
    assert_eq!(beyond.status, Status::LBA_OUT_OF_RANGE);
    let page = read_log(&mut rig, admin, Lid::ERROR, 128);
    let entry = ErrorEntry::read(&page).unwrap();
    assert_eq!((entry.error_count.get(), entry.sqid.get(), entry.cid.get()), (1, 1, 9));
    assert_eq!(entry.status(), Status::LBA_OUT_OF_RANGE);
    assert_eq!(ErrorEntry::read(&page[64..]).unwrap().error_count.get(), 0);
    let smart = SmartLog::read(&read_log(&mut rig, admin, Lid::SMART, 512)).unwrap();
    assert_eq!((smart.host_reads.get(), smart.data_units_read.get()), (1, 1));
    assert_eq!((smart.error_entries.get(), smart.media_errors.get()), (1, 0));
}

#[test]
fn a_reset_closes_the_io_queues_and_keeps_the_admin_queue() {
    let mut rig = Rig::new(DISK);
    let (admin, io) = rig.login(Local::host(), false, 1);
    set_cc(&mut rig, admin, Cc(0));
    rig.turns(5);
    assert!(rig.hosts[io].closed && !rig.hosts[admin].closed);
    assert!(!csts(&mut rig, admin).rdy());
    set_cc(&mut rig, admin, Cc(0).with_en(true).with_iosqes(6).with_iocqes(4));
    assert!(csts(&mut rig, admin).rdy());
    let cntlid = rig.target.subsystem(NQN).unwrap().controllers[0].cntlid;
    let again = rig.open(Local::host());
    assert_eq!(rig.connect(again, cntlid.0, 1, false, 1).status, Status::SUCCESS);
    assert_eq!(run(&mut rig, again, rw(NvmOpcode::READ, 9, 1, 0, 1), 512).status, Status::SUCCESS);
}

#[test]
fn a_shutdown_completes() {
    let mut rig = Rig::new(DISK);
    let (admin, io) = rig.login(Local::host(), false, 1);
    set_cc(&mut rig, admin, Cc(0).with_en(true).with_iosqes(6).with_iocqes(4).with_shn(1));
    rig.turns(5);
    assert!(rig.hosts[io].closed);
    assert_eq!(csts(&mut rig, admin).shst(), 2);
}

#[test]
fn silence_ends_an_association_and_the_host_may_come_back() {
    let mut rig = Rig::new(DISK);
    let (admin, io) = rig.login(Local::host(), false, 1);
    let kato = SetFeatures::new(Fid::KEEP_ALIVE_TIMER, 2000).sqe();
    assert_eq!(run(&mut rig, admin, kato, 0).status, Status::SUCCESS);
    for _ in 0..5 {
        rig.pass(Duration::from_millis(1500));
        assert_eq!(run(&mut rig, io, rw(NvmOpcode::FLUSH, 9, 1, 0, 1), 0).status, Status::SUCCESS);
    }
    assert!(!rig.hosts[admin].closed, "traffic on any queue counts");
    rig.pass(Duration::from_millis(2500));
    assert!(rig.hosts[admin].closed && rig.hosts[io].closed);
    assert!(rig.target.subsystem(NQN).unwrap().controllers.is_empty());
    assert_eq!(rig.core.connections(), 0);
    let _ = rig.login(Local::host(), false, 1);
}

#[test]
fn a_host_that_lost_its_permission_is_cut_off_and_others_go_on() {
    let mut rig = Rig::new(DISK);
    let (admin, io) = rig.login(Local::host(), false, 1);
    let (_, other) = rig.login(Local::host(), false, 2);
    let only = AllowedHosts::from_list(["nqn.2014-08.org.nvmexpress:uuid:host-2".to_owned()]);
    rig.target.set_allowed_hosts(NQN, only).unwrap();
    rig.turns(5);
    assert!(rig.hosts[admin].closed && rig.hosts[io].closed);
    assert_eq!(run(&mut rig, other, rw(NvmOpcode::FLUSH, 9, 1, 0, 1), 0).status, Status::SUCCESS);
    let refused = rig.open(Local::host());
    assert_eq!(rig.connect(refused, 0xffff, 0, false, 1).status, Status::CONNECT_INVALID_HOST);
}

#[test]
fn deleting_a_subsystem_closes_its_connections() {
    let mut rig = Rig::new(DISK);
    let (admin, io) = rig.login(Local::host(), false, 1);
    let target = rig.target.clone();
    rig.block_on(target.delete_subsystem(NQN)).unwrap();
    rig.turns(5);
    assert!(rig.hosts[admin].closed && rig.hosts[io].closed);
    assert_eq!(rig.core.connections(), 0);
    rig.block_on(target.create_subsystem(SubsystemSpec::new(NQN))).unwrap();
    let (_, io) = rig.login(Local::host(), false, 1);
    let gone = run(&mut rig, io, rw(NvmOpcode::READ, 9, 1, 0, 1), 512);
    assert_eq!(
        gone.status,
        Status::INVALID_NAMESPACE,
        "a new subsystem of that name has nothing of the old one"
    );
}

#[test]
fn ana_states_refuse_io_and_nothing_else() {
    let mut rig = Rig::new(DISK);
    let target = rig.target.clone();
    let spec = SubsystemSpec { ana_groups: 1, ..SubsystemSpec::new(NQN) };
    rig.block_on(target.delete_subsystem(NQN)).unwrap();
    rig.block_on(target.create_subsystem(spec)).unwrap();
    let disk = super::rig::device(DISK);
    rig.block_on(target.add_namespace(NQN, crate::target::NamespaceSpec::new(disk))).unwrap();
    let (admin, io) = rig.login(Local::host(), false, 1);
    for (state, status) in [
        (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
        (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
        (AnaState::Change, Status::ANA_TRANSITION),
        (AnaState::NonOptimized, Status::SUCCESS),
        (AnaState::Optimized, Status::SUCCESS),
    ] {
        let listener = rig.listener;
        rig.block_on(target.set_ana_state(NQN, Some(listener), 1, state)).unwrap();
        assert_eq!(run(&mut rig, io, rw(NvmOpcode::READ, 9, 1, 0, 1), 512).status, status, "{state:?}");
        let identify = Identify::new(Cns::NAMESPACE, Nsid(1)).sqe();
        assert_eq!(run(&mut rig, admin, identify, 4096).status, Status::SUCCESS);
    }
}

/// Bug: an ANA state was judged only when a command arrived: those that waited for their device or for the end of a
/// pause were executed after the group had become inaccessible, and the host was told that it is.
#[test]
fn commands_that_wait_are_refused_when_their_group_becomes_inaccessible() {
    let mut rig = Rig::new(DISK);
    let target = rig.target.clone();
    let spec = SubsystemSpec { ana_groups: 1, ..SubsystemSpec::new(NQN) };
    rig.block_on(target.delete_subsystem(NQN)).unwrap();
    rig.block_on(target.create_subsystem(spec)).unwrap();
    let gate = Gate::new(1, 1, false);
    let namespace = crate::target::NamespaceSpec::new(std::sync::Arc::new(gate.clone()));
    rig.block_on(target.add_namespace(NQN, namespace)).unwrap();
    let (_, io) = rig.login(Local::host(), false, 1);
    for paused in [false, true] {
        rig.hosts[io].send(rw(NvmOpcode::READ, 10, 1, 0, 1), &[], false, 512);
        rig.turns(2);
        if paused {
            gate.complete(1, 0);
            assert_eq!(rig.wait(io, 10).status, Status::SUCCESS);
            rig.block_on(target.pause(NQN)).unwrap();
        }
        // A read, a write with its data, and one whose data comes later.
        rig.hosts[io].send(rw(NvmOpcode::READ, 11, 1, 0, 1), &[], false, 512);
        rig.hosts[io].send(rw(NvmOpcode::WRITE, 12, 1, 0, 1), &[1; 512], true, 0);
        rig.hosts[io].send(rw(NvmOpcode::WRITE, 13, 1, 0, 1), &[1; 512], false, 0);
        rig.turns(3);
        assert_eq!(gate.waiting(), usize::from(!paused));
        rig.block_on(target.set_ana_state(NQN, None, 1, AnaState::Inaccessible)).unwrap();
        for cid in 11..14 {
            assert_eq!(rig.wait(io, cid).status, Status::ANA_INACCESSIBLE, "command {cid}, paused: {paused}");
        }
        rig.block_on(target.set_ana_state(NQN, None, 1, AnaState::Optimized)).unwrap();
        if paused {
            rig.block_on(target.resume(NQN)).unwrap();
            rig.turns(3);
        } else {
            gate.complete(1, 0);
            assert_eq!(rig.wait(io, 10).status, Status::SUCCESS, "what the device had");
        }
        assert_eq!(gate.waiting(), 0);
    }
}

#[test]
fn a_queue_above_the_number_granted_is_refused_on_the_wire() {
    let mut rig = Rig::new(DISK);
    let (admin, _io) = rig.login(Local::host(), false, 1);
    let cntlid = rig.target.subsystem(NQN).unwrap().controllers[0].cntlid;
    let h = rig.open(Local::host());
    let done = rig.connect(h, cntlid.0, rig.target.config().io_queues + 1, false, 1);
    assert_eq!((done.status, done.result), (Status::CONNECT_INVALID_PARAMETERS, 42));
    rig.turns(5);
    assert!(rig.hosts[h].closed && !rig.hosts[admin].closed);
    let taken = rig.open(Local::host());
    assert_eq!(rig.connect(taken, cntlid.0, Qid(1).0, false, 1).status, Status::SEQUENCE_ERROR);
}
