//! Asynchronous events: what is reported, when, and what reading a page does.

use nvme::aen::AsyncEvent;
use nvme::feature::Oaes;
use nvme::identify::IdList;

use super::*;

fn changed(admin: &QueueGrant, retain: bool) -> Vec<u32> {
    let mut get = GetLogPage::new(Lid::CHANGED_NAMESPACES, 4096);
    get.rae = retain;
    IdList::read(&log_page(admin, get).unwrap()).unwrap().iter().map(|n| n.0).collect()
}

fn resize(bench: &mut Bench, blocks: u64) {
    bench.device.event(DeviceEvent::Resized(BlockCount(blocks)));
    bench.core.serve();
}

fn add(bench: &mut Bench, number: u128) -> Nsid {
    let spec = NamespaceSpec::new(TestDevice::new(number, ALL_CAPS));
    run(&mut bench.core, bench.target.add_namespace(NQN, spec)).unwrap()
}

fn reports(admin: &QueueGrant) -> Vec<(u16, AsyncEvent)> {
    completions(admin)
        .into_iter()
        .map(|c| {
            assert_eq!(c.status, Status::SUCCESS);
            (c.cid.0, AsyncEvent::from_result(c.result))
        })
        .collect()
}

fn listen(admin: &QueueGrant, notices: Oaes) {
    set_feature(admin, Fid::ASYNC_EVENT_CONFIG, notices.bits()).unwrap();
}

#[test]
fn a_changed_namespace_is_reported_once_until_the_list_is_read() {
    let mut bench = Bench::new();
    let admin = bench.host();
    listen(&admin, Oaes::NAMESPACE_ATTRIBUTE);
    assert_eq!(event_request(&admin, 30), AdminOutcome::Later);
    assert!(completions(&admin).is_empty());
    bench.core.log.clear();
    let two = add(&mut bench, 2);
    assert!(bench.core.serve() && bench.core.log.contains(&"attend".to_owned()));
    assert_eq!(reports(&admin), [(30, AsyncEvent::NAMESPACE_CHANGED)]);
    assert_eq!(event_request(&admin, 31), AdminOutcome::Later);
    resize(&mut bench, 4096);
    assert!(completions(&admin).is_empty(), "masked");
    assert_eq!(changed(&admin, true), [1, two.0]);
    resize(&mut bench, 8192);
    assert!(completions(&admin).is_empty(), "reading with RAE does not unmask");
    assert_eq!(changed(&admin, false), [1, two.0]);
    assert_eq!(changed(&admin, false), [0; 0]);
    assert!(completions(&admin).is_empty(), "all that happened was read");
    run(&mut bench.core, bench.target.remove_namespace(NQN, two)).unwrap();
    assert_eq!(reports(&admin), [(31, AsyncEvent::NAMESPACE_CHANGED)]);
    assert_eq!(changed(&admin, false), [two.0]);
}

#[test]
fn an_event_waits_for_a_request() {
    let mut bench = Bench::new();
    let admin = bench.host();
    listen(&admin, Oaes::NAMESPACE_ATTRIBUTE);
    resize(&mut bench, 4096);
    assert!(completions(&admin).is_empty());
    event_request(&admin, 1);
    assert_eq!(reports(&admin), [(1, AsyncEvent::NAMESPACE_CHANGED)]);
}

#[test]
fn what_was_not_asked_for_is_not_reported_later() {
    let mut bench = Bench::new();
    let admin = bench.host();
    event_request(&admin, 1);
    resize(&mut bench, 4096);
    listen(&admin, Oaes::NAMESPACE_ATTRIBUTE);
    assert!(completions(&admin).is_empty());
    assert_eq!(changed(&admin, false), [1], "but it stands in the list");
}

#[test]
fn ana_and_namespace_events_do_not_mask_each_other() {
    let mut spec = SubsystemSpec::new(NQN);
    spec.ana_groups = 1;
    let mut bench = Bench::with(TargetConfig::default(), spec, ALL_CAPS);
    let admin = bench.host();
    listen(&admin, Oaes::NAMESPACE_ATTRIBUTE | Oaes::ANA_CHANGE);
    event_request(&admin, 1);
    event_request(&admin, 2);
    let (target, listener) = (bench.target.clone(), bench.listener);
    let set = |state| target.set_ana_state(NQN, Some(listener), 1, state);
    run(&mut bench.core, set(AnaState::Inaccessible)).unwrap();
    assert_eq!(reports(&admin), [(1, AsyncEvent::ANA_CHANGED)]);
    resize(&mut bench, 4096);
    assert_eq!(reports(&admin), [(2, AsyncEvent::NAMESPACE_CHANGED)]);
    event_request(&admin, 3);
    run(&mut bench.core, set(AnaState::Optimized)).unwrap();
    assert!(completions(&admin).is_empty());
    read_log(&admin, Lid::ANA, 64);
    run(&mut bench.core, set(AnaState::NonOptimized)).unwrap();
    assert_eq!(reports(&admin), [(3, AsyncEvent::ANA_CHANGED)]);
}

#[test]
fn requests_have_a_limit() {
    let bench = Bench::new();
    let admin = bench.host();
    for cid in 0..4 {
        assert_eq!(event_request(&admin, cid), AdminOutcome::Later);
    }
    assert_eq!(event_request(&admin, 4), AdminOutcome::error(Status::AER_LIMIT_EXCEEDED));
}

#[test]
fn a_reset_ends_the_requests() {
    let bench = Bench::new();
    let admin = bench.host();
    event_request(&admin, 8);
    event_request(&admin, 9);
    set_cc(&admin, Cc(0), at(1));
    let ended: Vec<_> = completions(&admin).iter().map(|c| (c.cid.0, c.status)).collect();
    assert_eq!(ended, [(8, Status::ABORTED_SQ_DELETION), (9, Status::ABORTED_SQ_DELETION)]);
}

#[test]
fn more_changes_than_the_list_holds() {
    let config = TargetConfig { max_namespaces: 2048, ..TargetConfig::default() };
    let mut bench = Bench::with(config, SubsystemSpec::new(NQN), ALL_CAPS);
    let admin = bench.host();
    for number in 2..=1025 {
        add(&mut bench, number);
    }
    assert_eq!(changed(&admin, false).len(), 1024, "1 did not change");
    for number in 1026..=2048 {
        add(&mut bench, number);
    }
    assert_eq!(changed(&admin, true).len(), 1023);
    resize(&mut bench, 1);
    assert_eq!(changed(&admin, true).len(), 1024);
    run(&mut bench.core, bench.target.remove_namespace(NQN, Nsid(2))).unwrap();
    assert_eq!(changed(&admin, false), [u32::MAX]);
    assert_eq!(changed(&admin, false), [0; 0]);
}

#[test]
fn discovery_controllers_hear_of_changes() {
    let mut bench = Bench::new();
    let admin = granted(bench.admin_of(nvme::nqn::DISCOVERY_NQN, HOST));
    enable(&admin);
    listen(&admin, Oaes::DISCOVERY_LOG);
    event_request(&admin, 1);
    let spec = SubsystemSpec::new("nqn.2019-05.io.openebs:new");
    run(&mut bench.core, bench.target.create_subsystem(spec)).unwrap();
    assert_eq!(reports(&admin), [(1, AsyncEvent::DISCOVERY_CHANGED)]);
    event_request(&admin, 2);
    let mut header = GetLogPage::new(Lid::DISCOVERY, 1024);
    header.rae = true;
    log_page(&admin, header).unwrap();
    bench.target.set_allowed_hosts(NQN, AllowedHosts::from_list([OTHER_HOST.to_owned()])).unwrap();
    assert!(completions(&admin).is_empty());
    read_log(&admin, Lid::DISCOVERY, 1024);
    bench.target.set_allowed_hosts(NQN, AllowedHosts::Any).unwrap();
    assert_eq!(reports(&admin), [(2, AsyncEvent::DISCOVERY_CHANGED)]);
}
