//! Features, log pages, Abort, and opcodes that are not there.

use nvme::admin::Abort;
use nvme::feature::{GetFeatures, Select};
use nvme::log::{ErrorEntry, SmartLog, SupportedLogPages, ana};

use super::*;

fn get(admin: &QueueGrant, fid: Fid, select: Select, cdw11: u32) -> Result<u64, Status> {
    command(admin, &GetFeatures { nsid: Nsid::NONE, fid, select, cdw11 }.sqe())
}

fn current(admin: &QueueGrant, fid: Fid) -> Result<u64, Status> {
    get(admin, fid, Select::CURRENT, 0)
}

#[test]
fn features_round_trip_until_a_reset() {
    let bench = Bench::new();
    let admin = bench.host();
    for (fid, default, value) in [
        (Fid::ARBITRATION, 0, 0x0102_0307),
        (Fid::TEMPERATURE_THRESHOLD, 0xffff, 350),
        (Fid::ERROR_RECOVERY, 0, 12),
        (Fid::WRITE_ATOMICITY, 0, 1),
        (Fid::ASYNC_EVENT_CONFIG, 0, 0x100),
    ] {
        assert_eq!(current(&admin, fid), Ok(default), "{fid}");
        assert_eq!(set_feature(&admin, fid, value), Ok(0), "{fid}");
        assert_eq!(current(&admin, fid), Ok(u64::from(value)), "{fid}");
        assert_eq!(get(&admin, fid, Select::DEFAULT, 0), Ok(default), "{fid}");
        assert_eq!(get(&admin, fid, Select::CAPABILITIES, 0), Ok(4), "{fid}");
        assert_eq!(get(&admin, fid, Select::new(5), 0), Err(Status::INVALID_FIELD), "{fid}");
    }
    assert_eq!(set_feature(&admin, Fid::NUMBER_OF_QUEUES, 6 << 16 | 3), Ok(3 << 16 | 3));
    assert_eq!(current(&admin, Fid::NUMBER_OF_QUEUES), Ok(3 << 16 | 3));
    set_cc(&admin, Cc(0), at(1));
    enable(&admin);
    assert_eq!(current(&admin, Fid::ARBITRATION), Ok(0));
    assert_eq!(current(&admin, Fid::NUMBER_OF_QUEUES), Ok(31 << 16 | 31));
    assert_eq!(current(&admin, Fid::KEEP_ALIVE_TIMER), Ok(5000), "Connect said it");
}

#[test]
fn feature_errors() {
    let bench = Bench::new();
    let admin = bench.host();
    let cases = [
        (Fid::NUMBER_OF_QUEUES, 0xffff, Status::INVALID_FIELD),
        (Fid::NUMBER_OF_QUEUES, 0xffff_0000, Status::INVALID_FIELD),
        (Fid::POWER_MANAGEMENT, 1, Status::INVALID_FIELD),
        (Fid::TEMPERATURE_THRESHOLD, 1 << 16, Status::INVALID_FIELD),
        (Fid::TEMPERATURE_THRESHOLD, 2 << 20, Status::INVALID_FIELD),
        (Fid::ERROR_RECOVERY, 1 << 16, Status::INVALID_FIELD),
        (Fid::VOLATILE_WRITE_CACHE, 1, Status::INVALID_FIELD),
        (Fid::KEEP_ALIVE_TIMER, u32::MAX, Status::KEEP_ALIVE_INVALID),
        (Fid::HOST_IDENTIFIER, 1, Status::SEQUENCE_ERROR),
        (Fid::TIMESTAMP, 0, Status::DATA_SGL_LENGTH_INVALID),
        (Fid::HOST_BEHAVIOR, 0, Status::DATA_SGL_LENGTH_INVALID),
        (Fid::INTERRUPT_COALESCING, 0, Status::INVALID_FIELD),
        (Fid::WRITE_PROTECTION, 1, Status::INVALID_FIELD),
        (Fid::new(0xff), 0, Status::INVALID_FIELD),
    ];
    for (fid, value, status) in cases {
        assert_eq!(set_feature(&admin, fid, value), Err(status), "{fid} {value:#x}");
    }
    assert_eq!(set_feature(&admin, Fid::NUMBER_OF_QUEUES, 0xfffe_fffe), Ok(31 << 16 | 31));
    let save = SetFeatures { save: true, ..SetFeatures::new(Fid::ARBITRATION, 0) };
    assert_eq!(command(&admin, &save.sqe()), Err(Status::FEATURE_NOT_SAVEABLE));
    let of_one = SetFeatures { nsid: Nsid(1), ..SetFeatures::new(Fid::ARBITRATION, 0) };
    assert_eq!(command(&admin, &of_one.sqe()), Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC));
    assert_eq!(get(&admin, Fid::HOST_IDENTIFIER, Select::CURRENT, 0), Err(Status::INVALID_FIELD));
    assert_eq!(current(&admin, Fid::VOLATILE_WRITE_CACHE), Err(Status::INVALID_FIELD));
}

#[test]
fn the_write_cache_can_be_seen_but_not_switched_off() {
    let caps = ALL_CAPS | Capabilities::VOLATILE_CACHE;
    let bench = Bench::with(TargetConfig::default(), SubsystemSpec::new(NQN), caps);
    let admin = bench.host();
    assert_eq!(current(&admin, Fid::VOLATILE_WRITE_CACHE), Ok(1));
    assert_eq!(set_feature(&admin, Fid::VOLATILE_WRITE_CACHE, 1), Ok(0));
    assert_eq!(set_feature(&admin, Fid::VOLATILE_WRITE_CACHE, 0), Err(Status::FEATURE_NOT_CHANGEABLE));
    assert_eq!(get(&admin, Fid::VOLATILE_WRITE_CACHE, Select::CAPABILITIES, 0), Ok(0));
}

#[test]
fn features_with_data() {
    let bench = Bench::new();
    let admin = bench.host();
    let feature = |fid, cdw11| GetFeatures { nsid: Nsid::NONE, fid, select: Select::CURRENT, cdw11 }.sqe();
    assert_eq!(read_admin(&admin, feature(Fid::HOST_IDENTIFIER, 1), 16).unwrap(), hostid(HOST).0);
    let set = |fid, data: &[u8]| admin.controller().admin(&SetFeatures::new(fid, 0).sqe(), data, at(1));
    let mut behavior = [0; 512];
    behavior[0] = 1;
    assert!(!admin.controller().takes_retry_delay());
    assert_eq!(set(Fid::HOST_BEHAVIOR, &behavior), AdminOutcome::success(0));
    assert!(admin.controller().takes_retry_delay());
    assert_eq!(read_admin(&admin, feature(Fid::HOST_BEHAVIOR, 0), 512).unwrap(), behavior);
    behavior[1] = 2;
    assert_eq!(set(Fid::HOST_BEHAVIOR, &behavior), AdminOutcome::error(Status::INVALID_FIELD));
    assert_eq!(set(Fid::TIMESTAMP, &[1, 2, 0, 0, 0, 0, 0xff, 0xff]), AdminOutcome::success(0));
    assert_eq!(read_admin(&admin, feature(Fid::TIMESTAMP, 0), 8).unwrap(), [1, 2, 0, 0, 0, 0, 2, 0]);
}

#[test]
fn discovery_controllers_have_two_features() {
    let bench = Bench::new();
    let admin = granted(bench.admin_of(nvme::nqn::DISCOVERY_NQN, HOST));
    enable(&admin);
    assert_eq!(set_feature(&admin, Fid::ASYNC_EVENT_CONFIG, u32::MAX), Ok(0));
    assert_eq!(current(&admin, Fid::ASYNC_EVENT_CONFIG), Ok(1 << 31));
    assert_eq!(current(&admin, Fid::KEEP_ALIVE_TIMER), Ok(5000));
    assert_eq!(current(&admin, Fid::ARBITRATION), Err(Status::INVALID_FIELD));
}

#[test]
fn log_pages_and_their_windows() {
    let bench = Bench::new();
    let admin = bench.host();
    let supported = SupportedLogPages::read(&read_log(&admin, Lid::SUPPORTED, 1024)).unwrap();
    let lids: Vec<usize> = (0..256).filter(|i| supported.pages[*i].bits() & 1 != 0).collect();
    assert_eq!(lids, [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x12, 0x13, 0x80, 0xd0]);
    for lid in (0..=255).map(Lid::new) {
        let got = log_page(&admin, GetLogPage::new(lid, 64));
        assert_eq!(got.is_ok(), lids.contains(&usize::from(lid.get())), "{lid}: {got:?}");
        if let Err(status) = got {
            assert_eq!(status, Status::INVALID_LOG_PAGE);
        }
    }
    let mut window = GetLogPage::new(Lid::FIRMWARE_SLOT, 16);
    window.offset_bytes = 8;
    assert_eq!(&log_page(&admin, window).unwrap()[..8], b"0.1.0   ");
    window.offset_bytes = 508;
    assert_eq!(log_page(&admin, window).unwrap(), [0; 16], "zeroes beyond the end");
    window.offset_bytes = 512;
    assert_eq!(log_page(&admin, window).unwrap(), [0; 16]);
    for (offset, index) in [(516, false), (6, false), (u64::MAX - 3, false), (0, true)] {
        window.offset_bytes = offset;
        window.index_offset = index;
        assert_eq!(log_page(&admin, window), Err(Status::INVALID_FIELD), "{offset}");
    }
    // NUMD of 16 GiB: refused before anything is allocated.
    let huge = GetLogPage::new(Lid::SMART, 1 << 34).sqe();
    assert_eq!(read_admin(&admin, huge, u32::MAX), Err(Status::INVALID_FIELD));
}

#[test]
fn smart_counts_what_the_cores_did() {
    let mut bench = Bench::new();
    let second = NamespaceSpec::new(TestDevice::new(2, ALL_CAPS));
    run(&mut bench.core, bench.target.add_namespace(NQN, second)).unwrap();
    let admin = bench.host();
    for (_, info, counters) in &bench.core.tables {
        counters.read(1000 * 512 * u64::from(info.nsid.0));
        counters.write(1);
        counters.busy(60_000_000_000);
    }
    bench.core.tables[0].2.failed(Status::UNRECOVERED_READ);
    bench.core.tables[0].2.failed(Status::COMPARE_FAILURE);
    bench.core.tables[0].2.failed(Status::LBA_OUT_OF_RANGE);
    let smart = |nsid: u32| {
        let mut get = GetLogPage::new(Lid::SMART, 512);
        get.nsid = Nsid(nsid);
        log_page(&admin, get).map(|page| SmartLog::read(&page).unwrap())
    };
    for all in [smart(0).unwrap(), smart(u32::MAX).unwrap()] {
        assert_eq!((all.data_units_read.get(), all.data_units_written.get()), (3, 1));
        assert_eq!((all.host_reads.get(), all.host_writes.get()), (2, 2));
        assert_eq!((all.media_errors.get(), all.busy_minutes.get()), (1, 2));
        assert_eq!(all.critical_warning.bits(), 0);
    }
    let two = smart(2).unwrap();
    assert_eq!((two.data_units_read.get(), two.media_errors.get()), (2, 0));
    assert_eq!(smart(3).err(), Some(Status::INVALID_NAMESPACE));
    run(&mut bench.core, bench.target.remove_namespace(NQN, Nsid(2))).unwrap();
    assert_eq!(smart(0).unwrap().data_units_read.get(), 3, "what is gone still counts");
    assert_eq!(smart(0).unwrap().error_entries.get(), 1, "the one refused above");
}

#[test]
fn the_error_log_keeps_the_last_64() {
    let bench = Bench::new();
    let admin = bench.host();
    for cid in 0..100 {
        let lba = u64::from(cid) * 8;
        let status = Status::LBA_OUT_OF_RANGE;
        let failed = FailedCommand { sqid: Qid(3), cid: Cid(cid), status, nsid: Nsid(1), lba };
        admin.controller().record_error(&failed);
    }
    let mut bad = Sqe::admin(AdminOpcode::SANITIZE, Nsid::NONE);
    bad.set_cid(Cid(7));
    assert_eq!(command(&admin, &bad), Err(Status::INVALID_OPCODE));
    let page = read_log(&admin, Lid::ERROR, 65 * 64);
    let entry = |i: usize| ErrorEntry::read(&page[i * 64..]).unwrap();
    assert_eq!((entry(0).error_count.get(), entry(0).sqid.get(), entry(0).cid.get()), (101, 0, 7));
    assert_eq!(entry(0).status(), Status::INVALID_OPCODE);
    assert_eq!((entry(1).error_count.get(), entry(1).sqid.get(), entry(1).lba.get()), (100, 3, 99 * 8));
    assert_eq!(entry(63).error_count.get(), 38);
    assert_eq!(entry(64).error_count.get(), 0, "beyond the end");
}

#[test]
fn the_ana_log_tells_states_and_members() {
    let mut spec = SubsystemSpec::new(NQN);
    spec.ana_groups = 2;
    let mut bench = Bench::with(TargetConfig::default(), spec, ALL_CAPS);
    let mut second = NamespaceSpec::new(TestDevice::new(2, ALL_CAPS));
    second.ana_group = 2;
    run(&mut bench.core, bench.target.add_namespace(NQN, second)).unwrap();
    let admin = bench.host();
    let read = |lsp| {
        let mut get = GetLogPage::new(Lid::ANA, 256);
        get.lsp = lsp;
        let page = log_page(&admin, get).unwrap();
        let (header, groups) = ana::parse(&page).unwrap();
        let groups: Vec<_> =
            groups.map(|g| (g.header.grpid.get(), g.state().get(), g.nsids().collect::<Vec<_>>())).collect();
        (header.change_count.get(), groups)
    };
    let (before, groups) = read(0);
    assert_eq!(groups, [(1, 1, vec![Nsid(1)]), (2, 1, vec![Nsid(2)])]);
    // nvme-cli reads the length for 1,024 namespaces, in pieces of a page.
    let mut rest = GetLogPage::new(Lid::ANA, 16 + 2 * 32 + 1024 * 4 - 4096);
    rest.offset_bytes = 4096;
    assert!(log_page(&admin, rest).unwrap().iter().all(|byte| *byte == 0));
    let (target, listener) = (bench.target.clone(), bench.listener);
    let set = target.set_ana_state(NQN, Some(listener), 2, AnaState::NonOptimized);
    run(&mut bench.core, set).unwrap();
    let (after, groups) = read(ana::RETURN_GROUPS_ONLY);
    assert_eq!(groups, [(1, 1, vec![]), (2, 2, vec![])]);
    assert!(after > before);
}

#[test]
fn aborts_find_their_queue_and_their_limit() {
    let mut bench = Bench::new();
    let admin = bench.host();
    let _one = granted(bench.io_queue(&admin, 1));
    let abort = |sqid, victim, cid| {
        let mut sqe = Abort { sqid: Qid(sqid), cid: Cid(victim) }.sqe();
        sqe.set_cid(Cid(cid));
        admin.controller().admin(&sqe, &[], at(1))
    };
    assert_eq!(abort(9, 1, 40), AdminOutcome::success(Abort::NOT_ABORTED), "no such queue");
    for cid in 0..4 {
        assert_eq!(abort(1, 100 + cid, cid), AdminOutcome::Later);
    }
    assert_eq!(abort(1, 100, 4), AdminOutcome::error(Status::ABORT_LIMIT_EXCEEDED));
    bench.core.serve();
    let requests: Vec<_> = bench.core.aborts.iter().map(|a| (a.sqid, a.cid)).collect();
    assert_eq!(requests, [100, 101, 102, 103].map(|cid| (Qid(1), Cid(cid))));
    let mut requests = std::mem::take(&mut bench.core.aborts).into_iter();
    requests.next().unwrap().answer(true);
    requests.next().unwrap().answer(false);
    drop(requests);
    let done: Vec<_> = completions(&admin).iter().map(|c| (c.cid.0, c.status, c.result)).collect();
    let ok = Status::SUCCESS;
    assert_eq!(done, [(0, ok, 0), (1, ok, 1), (2, ok, 1), (3, ok, 1)], "what is dropped was not aborted");
    assert_eq!(abort(1, 100, 5), AdminOutcome::Later);
}

#[test]
fn an_event_request_can_be_aborted() {
    let bench = Bench::new();
    let admin = bench.host();
    assert_eq!(event_request(&admin, 30), AdminOutcome::Later);
    let abort = |victim, cid| {
        let mut sqe = Abort { sqid: Qid(0), cid: Cid(victim) }.sqe();
        sqe.set_cid(Cid(cid));
        assert_eq!(admin.controller().admin(&sqe, &[], at(1)), AdminOutcome::Later);
        completions(&admin).iter().map(|c| (c.cid.0, c.status, c.result)).collect::<Vec<_>>()
    };
    assert_eq!(abort(31, 1), [(1, Status::SUCCESS, Abort::NOT_ABORTED)]);
    assert_eq!(abort(30, 2), [(30, Status::ABORT_REQUESTED, 0), (2, Status::SUCCESS, Abort::ABORTED)]);
    assert_eq!(abort(30, 3), [(3, Status::SUCCESS, Abort::NOT_ABORTED)]);
}

#[test]
fn other_opcodes_are_not_there() {
    let bench = Bench::new();
    let admin = bench.host();
    let known = [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f, 0xd0];
    let facets = nvme::vendor::facets::OPCODES.map(AdminOpcode::get);
    for opcode in (0..=255u8).filter(|opcode| !known.contains(opcode) && !facets.contains(opcode)) {
        let sqe = Sqe::admin(AdminOpcode::new(opcode), Nsid::NONE);
        assert_eq!(command(&admin, &sqe), Err(Status::INVALID_OPCODE), "{opcode:#x}");
    }
    // Known, but not of a device without facets.
    for opcode in facets.into_iter().filter(|o| *o != nvme::vendor::facets::READ_FACETS.get()) {
        let sqe = Sqe::admin(AdminOpcode::new(opcode), Nsid(1));
        assert_eq!(command(&admin, &sqe), Err(Status::INVALID_OPCODE), "{opcode:#x}");
        let nobody = Sqe::admin(AdminOpcode::new(opcode), Nsid(77));
        assert_eq!(command(&admin, &nobody), Err(Status::INVALID_NAMESPACE), "{opcode:#x}");
    }
    assert!(Status::INVALID_OPCODE.dnr());
}
