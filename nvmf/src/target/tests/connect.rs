//! Connect: what is granted, and each way to be turned away.

use nvme::fabrics::ConnectAttributes;

use super::*;

const INVALID: Status = Status::CONNECT_INVALID_PARAMETERS;

/// DW0 of a rejection that points into the data, or into the command.
const fn in_data(offset: u64) -> u64 {
    1 << 16 | offset
}

#[test]
fn admin_connects_are_checked() {
    let bench = Bench::new();
    let good = (ConnectSqe::new(Qid(0), 32, 5000), connect_data(NQN, HOST, Cntlid::DYNAMIC));
    let case = |change: &dyn Fn(&mut ConnectSqe, &mut ConnectData)| {
        let (mut sqe, mut data) = good;
        change(&mut sqe, &mut data);
        let rejection = rejected(bench.offer(&sqe, &data, at(0)));
        (rejection.status, rejection.result)
    };
    assert_eq!(case(&|sqe, _| sqe.recfmt.set(1)), (Status::CONNECT_INCOMPATIBLE_FORMAT, 0));
    assert_eq!(case(&|sqe, _| sqe.sqsize_z.set(0)), (INVALID, 44));
    assert_eq!(case(&|sqe, _| sqe.sqsize_z.set(128)), (INVALID, 44));
    assert_eq!(case(&|sqe, _| sqe.sqsize_z.set(u16::MAX)), (INVALID, 44));
    assert_eq!(case(&|sqe, _| sqe.kato_ms.set(u32::MAX)), (INVALID, 48));
    assert_eq!(case(&|_, data| data.cntlid.set(1)), (INVALID, in_data(16)));
    assert_eq!(case(&|_, data| data.cntlid.set(0xfffe)), (INVALID, in_data(16)));
    assert_eq!(case(&|_, data| data.hostid = [0; 16]), (INVALID, in_data(0)));
    assert_eq!(case(&|_, data| data.subnqn[4] = b'X'), (INVALID.without_dnr(), in_data(256)));
    assert_eq!(case(&|_, data| data.subnqn = [b'n'; 256]), (INVALID, in_data(256)));
    assert_eq!(case(&|_, data| data.subnqn = [0; 256]), (INVALID, in_data(256)));
    assert_eq!(case(&|_, data| data.hostnqn = [0xff; 256]), (INVALID, in_data(512)));
    assert_eq!(case(&|_, data| data.hostnqn = [0; 256]), (INVALID, in_data(512)));
    assert_eq!(case(&|sqe, _| sqe.fctype = 4), (Status::SEQUENCE_ERROR, 0), "not a Connect");
    assert_eq!(case(&|sqe, _| sqe.opcode = 2), (Status::SEQUENCE_ERROR, 0), "not a Fabrics command");
    assert!(bench.target.subsystem(NQN).unwrap().controllers.is_empty(), "nothing is left behind");
    let _ = granted(bench.offer(&good.0, &good.1, at(0)));
}

#[test]
fn short_data_is_refused() {
    let bench = Bench::new();
    let request = ConnectRequest {
        sqe: &ConnectSqe::new(Qid(0), 32, 0).to_sqe(),
        data: &[1; 1023],
        listener: bench.listener,
        local: addr("192.0.2.1:8420"),
        peer: addr("192.0.2.7:50000"),
        inbox: &bench.core.inbox,
        now: at(0),
        since: at(0),
    };
    assert_eq!(rejected(bench.target.connect(&request)).status, Status::DATA_SGL_LENGTH_INVALID);
}

#[test]
fn hosts_and_listeners_are_checked() {
    let mut bench = Bench::new();
    let only_host = AllowedHosts::from_list([HOST.to_owned()]);
    bench.target.set_allowed_hosts(NQN, only_host).unwrap();
    assert_eq!(rejected(bench.admin_of(NQN, OTHER_HOST)).status, Status::CONNECT_INVALID_HOST);
    let _ = granted(bench.admin_of(NQN, HOST));

    let second = bench.target.add_listener(addr("0.0.0.0:4421"));
    let mut spec = SubsystemSpec::new("nqn.2019-05.io.openebs:second");
    spec.listeners = Listeners::Only([second].into());
    run(&mut bench.core, bench.target.create_subsystem(spec)).unwrap();
    let rejection = rejected(bench.admin_of("nqn.2019-05.io.openebs:second", HOST));
    assert_eq!((rejection.status, rejection.result), (INVALID.without_dnr(), in_data(256)));
    bench.listener = second;
    let _ = granted(bench.admin_of("nqn.2019-05.io.openebs:second", HOST));
}

#[test]
fn io_connects_are_checked() {
    let bench = Bench::new();
    let admin = granted(bench.admin_of(NQN, HOST));
    assert_eq!(admin.qid(), Qid(0));
    assert_eq!(rejected(bench.io_queue(&admin, 1)).status, Status::SEQUENCE_ERROR, "not enabled yet");
    enable(&admin);
    set_feature(&admin, Fid::NUMBER_OF_QUEUES, 3 << 16 | 3).unwrap();
    let cntlid = admin.controller().cntlid();
    let case = |qid: u16, entries: u32, data: ConnectData| {
        let rejection = rejected(bench.offer(&ConnectSqe::new(Qid(qid), entries, 0), &data, at(0)));
        (rejection.status, rejection.result)
    };
    let good = connect_data(NQN, HOST, cntlid);
    assert_eq!(case(5, 128, good), (INVALID, 42), "above the number that was granted");
    assert_eq!(case(1, 1, good), (INVALID, 44));
    assert_eq!(case(1, 129, good), (INVALID, 44));
    // Bug: with Do Not Retry a Linux host gave up for good when its association ended between two Connects.
    let gone = (INVALID.without_dnr(), in_data(16));
    assert_eq!(case(1, 128, connect_data(NQN, HOST, Cntlid(cntlid.0 + 1))), gone);
    assert_eq!(case(1, 128, connect_data(NQN, HOST, Cntlid::DYNAMIC)), gone);
    let mut other_name = connect_data(NQN, OTHER_HOST, cntlid);
    other_name.hostid = hostid(HOST).0;
    assert_eq!(case(1, 128, other_name), (INVALID, in_data(512)));
    let mut other_id = good;
    other_id.hostid[3] ^= 1;
    assert_eq!(case(1, 128, other_id), (INVALID, in_data(0)));

    let one = granted(bench.io_queue(&admin, 1));
    assert_eq!((one.qid(), one.entries(), one.sq_flow_control()), (Qid(1), 128, true));
    assert_eq!(rejected(bench.io_queue(&admin, 1)).status, Status::SEQUENCE_ERROR, "taken");
    let mut sqe = ConnectSqe::new(Qid(4), 16, 0);
    sqe.cattr = ConnectAttributes::DISABLE_SQ_FLOW_CONTROL;
    let four = granted(bench.offer(&sqe, &good, at(0)));
    assert!(!four.sq_flow_control());
    assert_eq!(admin.controller().io_queues(), 2);
    assert_eq!(set_feature(&admin, Fid::NUMBER_OF_QUEUES, 0), Err(Status::SEQUENCE_ERROR));
    drop((one, four));
    let _again = granted(bench.io_queue(&admin, 1));
}

#[test]
fn discovery_controllers_have_no_io_queues() {
    let bench = Bench::new();
    let admin = granted(bench.admin_of(nvme::nqn::DISCOVERY_NQN, HOST));
    enable(&admin);
    let data = connect_data(nvme::nqn::DISCOVERY_NQN, HOST, admin.controller().cntlid());
    let rejection = rejected(bench.offer(&ConnectSqe::new(Qid(1), 32, 0), &data, at(0)));
    assert_eq!((rejection.status, rejection.result), (INVALID, 42));
}

#[test]
fn identifiers_come_from_the_range_and_are_not_reused_early() {
    let mut spec = SubsystemSpec::new(NQN);
    spec.cntlids = 10..=12;
    let bench = Bench::with(TargetConfig::default(), spec, ALL_CAPS);
    let grants: Vec<_> = (0..3).map(|_| granted(bench.admin_of(NQN, HOST))).collect();
    let ids: Vec<u16> = grants.iter().map(|g| g.controller().cntlid().0).collect();
    assert_eq!(ids, [10, 11, 12]);
    assert_eq!(rejected(bench.admin_of(NQN, OTHER_HOST)).status, Status::CONNECT_CONTROLLER_BUSY);
    drop(grants);
    assert_eq!(granted(bench.admin_of(NQN, HOST)).controller().cntlid(), Cntlid(10));
    assert_eq!(granted(bench.admin_of(NQN, HOST)).controller().cntlid(), Cntlid(11), "longest free first");
}

/// Bug: a target with short queues refused every host, because each asks for 32 entries on its admin queue.
#[test]
fn short_io_queues_leave_the_admin_queue_usable() {
    let config = TargetConfig { queue_entries: 16, ..TargetConfig::default() };
    let bench = Bench::with(config, SubsystemSpec::new(NQN), ALL_CAPS);
    let admin = bench.host();
    assert_eq!(admin.entries(), 32);
    let data = connect_data(NQN, HOST, admin.controller().cntlid());
    let too_long = rejected(bench.offer(&ConnectSqe::new(Qid(1), 17, 0), &data, at(0)));
    assert_eq!((too_long.status, too_long.result), (INVALID, 44));
    assert_eq!(granted(bench.offer(&ConnectSqe::new(Qid(1), 16, 0), &data, at(0))).entries(), 16);
    let data = connect_data(NQN, HOST, Cntlid::DYNAMIC);
    assert_eq!(rejected(bench.offer(&ConnectSqe::new(Qid(0), 33, 0), &data, at(0))).result, 44);
    let discovery = granted(bench.admin_of(nvme::nqn::DISCOVERY_NQN, HOST));
    enable(&discovery);
    let page = read_log(&discovery, Lid::DISCOVERY, 4096);
    let entry = nvme::log::DiscoveryEntry::read(&page[1024..]).unwrap();
    assert_eq!(entry.asqsz.get(), 32);
}

#[test]
fn the_number_of_controllers_is_bounded() {
    let config = TargetConfig { max_controllers: 4, ..TargetConfig::default() };
    let bench = Bench::with(config, SubsystemSpec::new(NQN), ALL_CAPS);
    let mut grants: Vec<_> =
        (0..2).map(|_| granted(bench.admin_of(nvme::nqn::DISCOVERY_NQN, HOST))).collect();
    // Bug: whoever reached the discovery subsystem, which is everybody, could take all controllers there are.
    let more = rejected(bench.admin_of(nvme::nqn::DISCOVERY_NQN, HOST));
    assert_eq!(more.status, Status::CONNECT_CONTROLLER_BUSY);
    grants.extend((0..2).map(|_| granted(bench.admin_of(NQN, HOST))));
    assert_eq!(rejected(bench.admin_of(NQN, HOST)).status, Status::CONNECT_CONTROLLER_BUSY);
    grants.pop();
    let _ = granted(bench.admin_of(NQN, HOST));
}
