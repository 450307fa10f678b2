//! The life of an association: enabling, reset, shutdown, Keep Alive, death, and what may follow it.

use nvme::property::{Cap, NSSR_RESET, Version};

use super::*;

#[test]
fn properties_say_what_hosts_need() {
    let bench = Bench::new();
    let admin = granted(bench.admin_of(NQN, HOST));
    let cap = Cap(property(&admin, PropertyOffset::CAP));
    assert_eq!(cap.mqes_z(), 127);
    assert!(cap.cqr());
    assert_eq!(cap.css(), 0b0100_0001);
    assert_eq!(cap.mpsmin(), 0);
    assert!(cap.to() > 0);
    assert_eq!(property(&admin, PropertyOffset::VS), u64::from(Version::V2_0.0));
    assert_eq!(property(&admin, PropertyOffset::CC), 0);
    assert_eq!(property(&admin, PropertyOffset::NSSR), 0);
    enable(&admin);
    assert_eq!(property(&admin, PropertyOffset::CC), u64::from(cc_enable().0));
}

#[test]
fn bad_properties_are_refused() {
    let bench = Bench::new();
    let admin = granted(bench.admin_of(NQN, HOST));
    let refused = |sqe: PropertySqe| {
        command(&admin, &sqe.to_sqe()).is_err_and(|status| status.is(Status::INVALID_FIELD))
    };
    assert!(refused(PropertySqe::get(PropertyOffset::AQA)));
    assert!(refused(PropertySqe::get(PropertyOffset::new(0xfff))));
    assert!(refused(PropertySqe { attrib: 0, ..PropertySqe::get(PropertyOffset::CAP) }), "4 of 8 bytes");
    assert!(refused(PropertySqe { attrib: 1, ..PropertySqe::get(PropertyOffset::CC) }), "8 of 4 bytes");
    assert!(refused(PropertySqe { attrib: 7, ..PropertySqe::get(PropertyOffset::CC) }));
    assert!(refused(PropertySqe::set(PropertyOffset::CAP, 0)));
    assert!(refused(PropertySqe::set(PropertyOffset::CSTS, 0)));
    assert!(refused(PropertySqe::set(PropertyOffset::NSSR, u64::from(NSSR_RESET))));
    for cc in [
        cc_enable().with_iosqes(5),
        cc_enable().with_iocqes(0),
        cc_enable().with_mps(1),
        cc_enable().with_ams(1),
        cc_enable().with_css(7),
        cc_enable().with_crime(true),
    ] {
        assert!(refused(PropertySqe::set(PropertyOffset::CC, u64::from(cc.0))), "{cc:?}");
        assert!(!csts(&admin).rdy());
    }
}

#[test]
fn commands_before_enabling_are_out_of_sequence() {
    let bench = Bench::new();
    let admin = granted(bench.admin_of(NQN, HOST));
    assert_eq!(identify_ns(&admin, Cns::CONTROLLER, 0), Err(Status::SEQUENCE_ERROR));
    enable(&admin);
    assert!(identify_ns(&admin, Cns::CONTROLLER, 0).is_ok());
}

#[test]
fn fabrics_commands_on_the_wrong_queue() {
    let bench = Bench::new();
    let admin = bench.host();
    let disconnect = nvme::fabrics::DisconnectSqe::new().to_sqe();
    assert_eq!(command(&admin, &disconnect), Err(Status::DISCONNECT_INVALID_QUEUE_TYPE));
    assert_eq!(command(&admin, &ConnectSqe::new(Qid(0), 32, 0).to_sqe()), Err(Status::SEQUENCE_ERROR));
    let mut unknown = disconnect;
    unknown.nsid.set(0xc3);
    assert_eq!(command(&admin, &unknown), Err(Status::INVALID_FIELD));

    let one = granted(bench.io_queue(&admin, 1));
    let controller = admin.controller();
    let get = PropertySqe::get(PropertyOffset::CC).to_sqe();
    assert_eq!(controller.io_fabrics(Qid(1), &get), Err(Status::INVALID_FIELD));
    assert_eq!(
        controller.io_fabrics(Qid(1), &ConnectSqe::new(Qid(1), 32, 0).to_sqe()),
        Err(Status::SEQUENCE_ERROR)
    );
    let mut odd = nvme::fabrics::DisconnectSqe::new();
    odd.recfmt.set(1);
    assert_eq!(controller.io_fabrics(Qid(1), &odd.to_sqe()), Err(Status::CONNECT_INCOMPATIBLE_FORMAT));
    assert!(!one.closing());
    assert_eq!(controller.io_fabrics(Qid(1), &disconnect), Ok(()));
    assert!(one.closing() && !admin.closing());
}

#[test]
fn reset_waits_for_io_queues_to_drain() {
    let mut bench = Bench::new();
    let admin = bench.host();
    let one = granted(bench.io_queue(&admin, 1));
    set_cc(&admin, Cc(0), at(1));
    assert!(one.closing() && !admin.closing());
    assert!(csts(&admin).rdy(), "the I/O queue has not drained");
    bench.core.serve();
    assert!(bench.core.log.contains(&"attend".to_owned()));
    drop(one);
    assert!(!csts(&admin).rdy());
    enable(&admin);
    let _one = granted(bench.io_queue(&admin, 1));
}

#[test]
fn enabling_during_a_drain_waits() {
    let bench = Bench::new();
    let admin = bench.host();
    let one = granted(bench.io_queue(&admin, 1));
    set_cc(&admin, Cc(0), at(1));
    set_cc(&admin, cc_enable(), at(1));
    assert!(matches!(bench.io_queue(&admin, 1), ConnectOutcome::Wait), "the old queue 1 drains");
    drop(one);
    assert!(csts(&admin).rdy());
    let _ = granted(bench.io_queue(&admin, 1));
}

#[test]
fn shutdown_completes_when_drained() {
    let bench = Bench::new();
    let admin = bench.host();
    let one = granted(bench.io_queue(&admin, 1));
    set_cc(&admin, cc_enable().with_shn(1), at(1));
    assert_eq!(csts(&admin).shst(), 1);
    assert_eq!(rejected(bench.io_queue(&admin, 2)).status, Status::SEQUENCE_ERROR);
    drop(one);
    assert_eq!(csts(&admin).shst(), 2);
    set_cc(&admin, Cc(0), at(1));
    assert_eq!(csts(&admin), Csts(0));
    enable(&admin);
    assert_eq!(csts(&admin).shst(), 0);
}

#[test]
fn keep_alive_counts_traffic_and_then_kills() {
    let bench = Bench::new();
    let admin = bench.host();
    let one = granted(bench.io_queue(&admin, 1));
    let controller = admin.controller();
    assert_eq!(controller.tick(at(4)), Tick::Alive(at(5)));
    controller.saw_traffic(at(4));
    assert_eq!(controller.tick(at(5)), Tick::Alive(at(9)));
    let keep_alive = Sqe::admin(AdminOpcode::KEEP_ALIVE, Nsid::NONE);
    assert_eq!(controller.admin(&keep_alive, &[], at(8)), AdminOutcome::success(0));
    assert_eq!(controller.tick(at(12)), Tick::Alive(at(13)));
    assert!(controller.alive());
    assert_eq!(controller.tick(at(13)), Tick::Dead);
    assert!(!controller.alive() && admin.closing() && one.closing());
    assert_eq!(controller.death(), Some(controller::Death::KeepAliveExpired));
    assert!(csts(&admin).cfs());
}

#[test]
fn no_keep_alive_timeout_means_no_timer() {
    let bench = Bench::new();
    let data = connect_data(NQN, HOST, Cntlid::DYNAMIC);
    let admin = granted(bench.offer(&ConnectSqe::new(Qid(0), 32, 0), &data, at(0)));
    enable(&admin);
    assert!(matches!(admin.controller().tick(at(1_000_000)), Tick::Alive(_)));
    set_feature(&admin, Fid::KEEP_ALIVE_TIMER, 1500).unwrap();
    // The last command was at 1 s; 1.5 s is rounded up to the granularity.
    assert_eq!(admin.controller().tick(at(2)), Tick::Alive(at(3)));
    assert_eq!(admin.controller().tick(at(3)), Tick::Dead);
}

#[test]
fn who_never_enables_is_thrown_out() {
    let bench = Bench::new();
    let data = connect_data(NQN, HOST, Cntlid::DYNAMIC);
    let admin = granted(bench.offer(&ConnectSqe::new(Qid(0), 32, 0), &data, at(0)));
    assert!(matches!(admin.controller().tick(at(119)), Tick::Alive(_)));
    assert_eq!(admin.controller().tick(at(120)), Tick::Dead);
    assert_eq!(admin.controller().death(), Some(controller::Death::NeverEnabled));
}

#[test]
fn idle_discovery_controllers_are_thrown_out() {
    let bench = Bench::new();
    let connect = |kato_ms| {
        let data = connect_data(nvme::nqn::DISCOVERY_NQN, HOST, Cntlid::DYNAMIC);
        let admin = granted(bench.offer(&ConnectSqe::new(Qid(0), 32, kato_ms), &data, at(0)));
        set_cc(&admin, Cc(0).with_en(true), at(0));
        admin
    };
    let (idle, persistent) = (connect(0), connect(600_000));
    assert_eq!(idle.controller().tick(at(121)), Tick::Dead);
    assert_eq!(idle.controller().death(), Some(controller::Death::Idle));
    assert!(matches!(persistent.controller().tick(at(121)), Tick::Alive(_)));
}

/// HAZARDS H3: a new association of a host begins only when the old one is dead down to the device.
#[test]
fn h3_an_old_association_ends_before_the_next_begins() {
    let mut bench = Bench::new();
    let admin = bench.host();
    let one = granted(bench.io_queue(&admin, 1));
    let old = admin.controller().cntlid();
    drop(admin);
    assert!(one.closing());
    assert!(matches!(bench.admin_of(NQN, HOST), ConnectOutcome::Wait), "I/O of the old one is in flight");
    let _other = granted(bench.admin_of(NQN, OTHER_HOST));
    let data = connect_data(NQN, HOST, Cntlid::DYNAMIC);
    let late = bench.offer(&ConnectSqe::new(Qid(0), 32, 0), &data, at(11));
    assert_eq!(
        rejected(late).status,
        Status::CONNECT_CONTROLLER_BUSY,
        "told to come again, not to wait for ever"
    );
    bench.core.serve();
    bench.core.log.clear();
    drop(one);
    bench.core.serve();
    assert!(bench.core.log.contains(&"retry".to_owned()));
    let next = granted(bench.admin_of(NQN, HOST));
    assert_ne!(next.controller().cntlid(), old);
}

#[test]
fn two_living_associations_of_one_host_are_fine() {
    let bench = Bench::new();
    let (a, b) = (bench.host(), bench.host());
    assert_ne!(a.controller().cntlid(), b.controller().cntlid());
}

#[test]
fn a_removed_host_is_disconnected() {
    let bench = Bench::new();
    let admin = bench.host();
    let other = granted(bench.admin_of(NQN, OTHER_HOST));
    let only = AllowedHosts::from_list([OTHER_HOST.to_owned()]);
    bench.target.set_allowed_hosts(NQN, only).unwrap();
    assert!(admin.closing() && !other.closing());
    assert_eq!(admin.controller().death(), Some(controller::Death::HostRemoved));
    drop(admin);
    assert_eq!(rejected(bench.admin_of(NQN, HOST)).status, Status::CONNECT_INVALID_HOST);
}

fn instance(admin: &QueueGrant) -> u64 {
    let page = log_page(admin, GetLogPage::new(nvme::vendor::LID_ASSOCIATION, 64)).unwrap();
    nvme::vendor::AssociationPage::parse(&page).unwrap().instance.get()
}

/// `HAZARDS` H3: a host that cannot know whether the target has noticed the end of an association asks for it.
#[test]
fn h03_a_host_ends_its_own_association_and_hears_when_it_has_drained() {
    use nvme::vendor::EndAssociation;
    let bench = Bench::new();
    let old = bench.host();
    let queue = granted(bench.io_queue(&old, 1));
    let new = bench.host();
    assert_ne!(instance(&old), instance(&new));
    let end = |by: &QueueGrant, cntlid, instance| {
        command(by, &EndAssociation { cntlid, instance }.sqe()).expect("the command is known")
    };
    let target = (old.controller().cntlid(), instance(&old));
    let own = (new.controller().cntlid(), instance(&new));
    assert_eq!(
        end(&new, target.0, target.1 + 1),
        EndAssociation::GONE,
        "another association had that number"
    );
    assert!(old.controller().alive());
    let stranger = granted(bench.admin_of(NQN, OTHER_HOST));
    enable(&stranger);
    assert_eq!(
        end(&stranger, target.0, target.1),
        EndAssociation::GONE,
        "nobody ends the associations of others"
    );
    assert_eq!(end(&new, own.0, own.1), EndAssociation::GONE);
    assert!(old.controller().alive() && new.controller().alive());

    assert_eq!(end(&new, target.0, target.1), EndAssociation::DRAINING);
    assert_eq!(old.controller().death(), Some(controller::Death::EndedByHost));
    assert!(queue.closing() && old.closing() && !new.closing());
    drop(old);
    assert_eq!(end(&new, target.0, target.1), EndAssociation::DRAINING, "its I/O queue still drains");
    drop(queue);
    assert_eq!(end(&new, target.0, target.1), EndAssociation::GONE);
}
