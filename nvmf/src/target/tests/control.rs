//! Control operations, their orders to the cores, and what they leave behind when they fail.

use nvme::log::discovery;

use super::*;

#[test]
fn names_follow_mayastor() {
    // SHA-256 of fifteen zero bytes and a one, computed elsewhere.
    assert_eq!(config::serial_of(uuid::Uuid::from_u128(1).as_bytes()), "DCS7C3CCD10BB7EC37B4");
    assert_eq!(config::nqn_of("disk"), NQN);
}

#[test]
fn bad_subsystems_are_refused() {
    let mut bench = Bench::new();
    let mut create = |change: &dyn Fn(&mut SubsystemSpec)| {
        let mut spec = SubsystemSpec::new("nqn.2019-05.io.openebs:other");
        change(&mut spec);
        run(&mut bench.core, bench.target.create_subsystem(spec)).unwrap_err()
    };
    assert!(matches!(create(&|s| s.nqn = NQN.into()), TargetError::SubsystemExists(_)));
    assert!(matches!(create(&|s| s.nqn = nvme::nqn::DISCOVERY_NQN.into()), TargetError::SubsystemExists(_)));
    assert!(matches!(create(&|s| s.nqn = "disk".into()), TargetError::BadNqn { .. }));
    assert!(matches!(create(&|s| s.nqn = format!("{NQN}{}", "x".repeat(223))), TargetError::BadNqn { .. }));
    assert!(matches!(create(&|s| s.serial = "x".repeat(21)), TargetError::BadText { .. }));
    assert!(matches!(create(&|s| s.serial = "a\nb".into()), TargetError::BadText { .. }));
    assert!(matches!(create(&|s| s.model = Some("x".repeat(41))), TargetError::BadText { .. }));
    assert!(matches!(create(&|s| s.cntlids = 0..=5), TargetError::BadCntlidRange { .. }));
    assert!(matches!(create(&|s| s.cntlids = 5..=0xfff0), TargetError::BadCntlidRange { .. }));
    #[allow(clippy::reversed_empty_ranges)]
    let empty = 6..=5;
    assert!(matches!(create(&|s| s.cntlids = empty.clone()), TargetError::BadCntlidRange { .. }));
}

#[test]
fn the_discovery_subsystem_stays_as_it_is() {
    let mut bench = Bench::new();
    let nqn = nvme::nqn::DISCOVERY_NQN;
    let device = TestDevice::new(9, ALL_CAPS);
    let refused = run(&mut bench.core, bench.target.add_namespace(nqn, NamespaceSpec::new(device)));
    assert!(matches!(refused, Err(TargetError::Discovery(_))));
    assert!(matches!(
        run(&mut bench.core, bench.target.delete_subsystem(nqn)),
        Err(TargetError::Discovery(_))
    ));
}

#[test]
fn namespaces_get_the_lowest_free_number() {
    let mut bench = Bench::new();
    let mut add = |number: u128, nsid: Option<u32>| {
        let mut spec = NamespaceSpec::new(TestDevice::new(number, ALL_CAPS));
        spec.nsid = nsid.map(Nsid);
        run(&mut bench.core, bench.target.add_namespace(NQN, spec))
    };
    assert_eq!(add(2, Some(3)).unwrap(), Nsid(3));
    assert_eq!(add(3, None).unwrap(), Nsid(2));
    assert_eq!(add(4, None).unwrap(), Nsid(4));
    assert!(matches!(add(5, Some(3)), Err(TargetError::NsidInUse { .. })));
    assert!(matches!(add(5, Some(0)), Err(TargetError::BadNsid { .. })));
    assert!(matches!(add(5, Some(u32::MAX)), Err(TargetError::BadNsid { .. })));
    assert!(matches!(add(2, None), Err(TargetError::DuplicateUuid { .. })));
    run(&mut bench.core, bench.target.remove_namespace(NQN, Nsid(2))).unwrap();
    let gone = run(&mut bench.core, bench.target.remove_namespace(NQN, Nsid(2)));
    assert!(matches!(gone, Err(TargetError::NoNamespace { .. })));
    assert_eq!(bench.core.tables.iter().map(|(_, info, _)| info.nsid.0).collect::<Vec<_>>(), [1, 3, 4]);
}

#[test]
fn the_number_of_namespaces_is_bounded() {
    let mut spec = SubsystemSpec::new(NQN);
    spec.max_namespaces = Some(1);
    let mut bench = Bench::with(TargetConfig::default(), spec, ALL_CAPS);
    let second = NamespaceSpec::new(TestDevice::new(2, ALL_CAPS));
    let full = run(&mut bench.core, bench.target.add_namespace(NQN, second));
    assert!(matches!(full, Err(TargetError::NamespacesFull { max: 1, .. })));
}

#[test]
fn odd_devices_are_refused() {
    let mut bench = Bench::new();
    for block_bytes in [0, 256, 520, 131_072] {
        let device = TestDevice::shaped(2, ALL_CAPS, block_bytes);
        let refused = run(&mut bench.core, bench.target.add_namespace(NQN, NamespaceSpec::new(device)));
        assert!(matches!(refused, Err(TargetError::BadDevice { .. })), "{block_bytes}");
    }
    let unsafe_cache = TestDevice::new(2, Capabilities::VOLATILE_CACHE);
    let refused = run(&mut bench.core, bench.target.add_namespace(NQN, NamespaceSpec::new(unsafe_cache)));
    assert!(matches!(refused, Err(TargetError::BadDevice { .. })), "hosts rely on FUA");
}

#[test]
fn a_failed_open_leaves_nothing() {
    let mut bench = Bench::new();
    bench.core.fail_opens = true;
    let device = TestDevice::new(2, ALL_CAPS);
    let failed = run(&mut bench.core, bench.target.add_namespace(NQN, NamespaceSpec::new(device.clone())));
    assert!(matches!(failed, Err(TargetError::Core { .. })), "{failed:?}");
    assert_eq!(bench.target.subsystem(NQN).unwrap().namespaces.len(), 1);
    assert_eq!(device.subscribers(), 0);
    bench.core.fail_opens = false;
    run(&mut bench.core, bench.target.add_namespace(NQN, NamespaceSpec::new(device))).unwrap();
}

#[test]
fn a_core_that_stops_fails_what_waits_for_it() {
    let mut bench = Bench::new();
    let second = TestCore::new(&bench.target);
    second.inbox.close();
    let device = TestDevice::new(2, ALL_CAPS);
    let failed = run(&mut bench.core, bench.target.add_namespace(NQN, NamespaceSpec::new(device)));
    assert!(matches!(failed, Err(TargetError::Core { source: CoreFailure::Gone, .. })), "{failed:?}");
}

#[test]
fn a_core_that_comes_later_opens_what_exists() {
    let mut bench = Bench::new();
    run(&mut bench.core, bench.target.pause(NQN)).unwrap();
    let mut late = TestCore::new(&bench.target);
    late.serve();
    assert_eq!(late.log, ["ana", "ana", "attach 1", "pause"]);
    late.tables[0].2.read(512);
    bench.core.tables[0].2.read(512);
    assert_eq!(bench.target.subsystem(NQN).unwrap().io.read_bytes, 1024, "both cores are summed");
}

#[test]
fn a_dropped_request_still_finishes() {
    let mut bench = Bench::new();
    let device = TestDevice::new(2, ALL_CAPS);
    {
        let mut future = pin!(bench.target.add_namespace(NQN, NamespaceSpec::new(device)));
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    bench.core.serve();
    let namespaces = bench.target.subsystem(NQN).unwrap().namespaces;
    assert!(namespaces.iter().all(|ns| ns.active) && namespaces.len() == 2);
}

#[test]
fn deletion_disconnects_and_frees_the_name_before_the_place() {
    let mut bench = Bench::new();
    let admin = bench.host();
    let old = admin.controller().subsystem();
    run(&mut bench.core, bench.target.delete_subsystem(NQN)).unwrap();
    assert!(admin.closing());
    assert!(bench.core.tables.is_empty());
    assert_eq!(bench.device.subscribers(), 0);
    assert!(bench.target.subsystem(NQN).is_none());
    assert!(matches!(bench.admin_of(NQN, HOST), ConnectOutcome::Rejected(_)));
    run(&mut bench.core, bench.target.create_subsystem(SubsystemSpec::new(NQN))).unwrap();
    let new = granted(bench.admin_of(NQN, OTHER_HOST));
    assert_ne!(new.controller().subsystem(), old, "a connection still refers to the old place");
    assert!(!bench.core.log.contains(&"forget".to_owned()));
    drop(admin);
    bench.core.serve();
    assert!(bench.core.log.contains(&"forget".to_owned()));
    run(&mut bench.core, bench.target.create_subsystem(SubsystemSpec::new("nqn.2019-05.io.openebs:x")))
        .unwrap();
    assert_eq!(granted(bench.admin_of("nqn.2019-05.io.openebs:x", HOST)).controller().subsystem(), old);
}

#[test]
fn deletion_while_a_namespace_is_being_added() {
    let mut bench = Bench::new();
    bench.core.hold = true;
    let device = TestDevice::new(2, ALL_CAPS);
    let mut add = pin!(bench.target.add_namespace(NQN, NamespaceSpec::new(device.clone())));
    let mut delete = pin!(bench.target.delete_subsystem(NQN));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(add.as_mut().poll(&mut cx).is_pending());
    assert!(delete.as_mut().poll(&mut cx).is_pending());
    bench.core.hold = false;
    while bench.core.serve() {}
    assert!(matches!(delete.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
    assert!(add.as_mut().poll(&mut cx).is_ready());
    assert!(bench.core.tables.is_empty());
    assert_eq!(device.subscribers(), 0);
}

#[test]
fn a_device_that_grows_or_goes_takes_its_namespace_along() {
    let mut bench = Bench::new();
    let admin = bench.host();
    bench.device.event(DeviceEvent::Resized(BlockCount(4096)));
    bench.core.serve();
    assert_eq!(bench.core.tables[0].1.size_blocks, 4096);
    let page = identify_ns(&admin, Cns::NAMESPACE, 1).unwrap();
    assert_eq!(nvme::identify::IdentifyNamespace::view(&page).unwrap().nsze.get(), 4096);
    bench.device.remove();
    bench.core.serve();
    assert!(bench.core.tables.is_empty());
    assert!(bench.target.subsystem(NQN).unwrap().namespaces.is_empty());
    assert_eq!(bench.device.subscribers(), 0);
    // An event that was on its way meets nobody, or a namespace that it does not belong to.
    let second = TestDevice::new(2, ALL_CAPS);
    run(&mut bench.core, bench.target.add_namespace(NQN, NamespaceSpec::new(second))).unwrap();
    bench.device.event(DeviceEvent::Resized(BlockCount(1)));
    bench.core.serve();
    assert_eq!(bench.core.tables[0].1.size_blocks, 2048);
}

/// HAZARDS H8: a host that was told "no volatile cache" never flushes; a device with one that arrives later is
/// written through.
#[test]
fn h8_a_volatile_cache_that_appears_later() {
    let mut bench = Bench::new();
    let admin = bench.host();
    let vwc = |admin: &QueueGrant| {
        let page = identify_ns(admin, Cns::CONTROLLER, 0).unwrap();
        nvme::identify::IdentifyController::view(&page)
            .unwrap()
            .vwc
            .contains(nvme::identify::controller::Vwc::PRESENT)
    };
    assert!(!vwc(&admin));
    let caps = ALL_CAPS | Capabilities::VOLATILE_CACHE;
    let add = bench.target.add_namespace(NQN, NamespaceSpec::new(TestDevice::new(2, caps)));
    run(&mut bench.core, add).unwrap();
    assert!(bench.core.tables[1].1.write_through);
    assert!(!vwc(&admin));
    drop(admin);
    let add = bench.target.add_namespace(NQN, NamespaceSpec::new(TestDevice::new(3, caps)));
    run(&mut bench.core, add).unwrap();
    assert!(!bench.core.tables[2].1.write_through, "nobody was told");
    assert!(vwc(&bench.host()));
}

#[test]
fn discovery_lists_what_this_host_may_use() {
    let mut bench = Bench::new();
    let mut spec = SubsystemSpec::new("nqn.2019-05.io.openebs:private");
    spec.hosts = AllowedHosts::from_list([OTHER_HOST.to_owned()]);
    run(&mut bench.core, bench.target.create_subsystem(spec)).unwrap();
    let second = bench.target.add_listener(addr("198.51.100.9:4421"));
    let discover = |host: &str| {
        let admin = granted(bench.admin_of(nvme::nqn::DISCOVERY_NQN, host));
        enable(&admin);
        let page = read_log(&admin, Lid::DISCOVERY, 16 * 1024);
        let (header, entries) = discovery::parse(&page).unwrap();
        let mut found: Vec<_> = entries
            .iter()
            .map(|e| (e.nqn().unwrap().to_string(), e.address(), e.service(), e.portid.get()))
            .collect();
        assert_eq!(found.len() as u64, header.numrec.get());
        found.retain(|(nqn, ..)| nqn != nvme::nqn::DISCOVERY_NQN);
        (header.genctr.get(), found)
    };
    let entry = |nqn: &str, ip: &str, port: &str, id| (nqn.to_owned(), ip.to_owned(), port.to_owned(), id);
    let (generation, found) = discover(HOST);
    assert_eq!(found, [entry(NQN, "192.0.2.1", "8420", 1), entry(NQN, "198.51.100.9", "4421", 2)]);
    assert_eq!(discover(OTHER_HOST).1.len(), 4);
    bench.target.remove_listener(second).unwrap();
    let (later, found) = discover(HOST);
    assert!(later > generation);
    assert_eq!(found.len(), 1);
    assert!(matches!(bench.target.remove_listener(second), Err(TargetError::NoListener(1))));
}

/// A bug: each read of a piece made the whole page, so that reading it cost the square of its length.
#[test]
fn a_discovery_page_is_made_once_however_it_is_read() {
    let bench = Bench::new();
    let admins = [HOST, OTHER_HOST].map(|host| granted(bench.admin_of(nvme::nqn::DISCOVERY_NQN, host)));
    admins.iter().for_each(enable);
    let made = || bench.target.shared.lock().discovery_pages.made;
    let read = || admins.each_ref().map(|admin| read_log(admin, Lid::DISCOVERY, 4096));
    let before = made();
    let pages = read();
    for _ in 0..10 {
        assert_eq!(read(), pages, "two hosts by turns");
    }
    assert_eq!(made() - before, 2, "one page for each host");
    bench.target.add_listener(addr("198.51.100.9:4421"));
    let later = read();
    assert!(later[0] != pages[0] && later[1] != pages[1], "no stale page");
    assert_eq!(made() - before, 4);
    bench.target.set_allowed_hosts(NQN, AllowedHosts::from_list([OTHER_HOST.to_owned()])).unwrap();
    let entries = |page: &[u8]| discovery::parse(page).unwrap().1.len();
    let [ours, theirs] = read();
    assert!(entries(&ours) < entries(&theirs), "what a host may not use is not in its page");
}

#[test]
fn discovery_shows_addresses_that_the_host_can_use() {
    let bench = Bench::new();
    bench.target.add_listener(addr("[::]:4421"));
    bench.target.add_listener(addr("[2001:db8::5]:4422"));
    let discover = |local: &str| {
        let sqe = ConnectSqe::new(Qid(0), 32, 0).to_sqe();
        let data = connect_data(nvme::nqn::DISCOVERY_NQN, HOST, Cntlid::DYNAMIC);
        let admin = granted(bench.target.connect(&ConnectRequest {
            sqe: &sqe,
            data: data.wire(),
            listener: bench.listener,
            local: addr(local),
            peer: addr("[2001:db8::1]:5000"),
            inbox: &bench.core.inbox,
            now: at(0),
            since: at(0),
        }));
        enable(&admin);
        let page = read_log(&admin, Lid::DISCOVERY, 16 * 1024);
        let (_, entries) = discovery::parse(&page).unwrap();
        let ours = entries.iter().filter(|e| e.nqn().unwrap().as_str() == NQN);
        ours.map(|e| (e.adrfam.get(), format!("{} {}", e.address(), e.service()))).collect::<Vec<_>>()
    };
    let entry = |family: u8, text: &str| (family, text.to_owned());
    let fixed = entry(2, "2001:db8::5 4422");
    assert_eq!(discover("[2001:db8::5]:4421"), [entry(2, "2001:db8::5 4421"), fixed.clone()]);
    let mapped = [entry(1, "192.0.2.1 8420"), entry(1, "192.0.2.1 4421"), fixed];
    assert_eq!(discover("[::ffff:192.0.2.1]:4421"), mapped);
    assert_eq!(discover("192.0.2.1:8420"), mapped);
}

#[test]
fn ana_states_reach_the_cores_before_they_are_told() {
    let mut spec = SubsystemSpec::new(NQN);
    spec.ana_groups = 2;
    let mut bench = Bench::with(TargetConfig::default(), spec, ALL_CAPS);
    let (target, listener) = (bench.target.clone(), bench.listener);
    let set = |group, state| target.set_ana_state(NQN, Some(listener), group, state);
    run(&mut bench.core, set(2, AnaState::Inaccessible)).unwrap();
    assert_eq!(target.ana_state(NQN, listener, 2), Some(AnaState::Inaccessible));
    assert_eq!(target.ana_state(NQN, listener, 1), Some(AnaState::Optimized));
    assert_eq!(target.ana_state(NQN, listener, 3), None);
    assert!(matches!(run(&mut bench.core, set(3, AnaState::Change)), Err(TargetError::NoAnaGroup { .. })));
    let nowhere = target.set_ana_state(NQN, Some(ListenerId(7)), 1, AnaState::Change);
    assert!(matches!(run(&mut bench.core, nowhere), Err(TargetError::NoListener(7))));
    run(&mut bench.core, target.set_namespace_group(NQN, Nsid(1), 2)).unwrap();
    assert_eq!(bench.core.tables[0].1.ana_group, 2);
    let bad = run(&mut bench.core, target.set_namespace_group(NQN, Nsid(1), 3));
    assert!(matches!(bad, Err(TargetError::NoAnaGroup { .. })));
}
