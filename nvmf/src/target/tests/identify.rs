//! Identify and the fields that the Linux host looks at.

use nvme::identify::controller::{Anacap, Cmic, ControllerType, Ctratt, Lpa, Oaes, Ofcs, Oncs, Sgls, Vwc};
use nvme::identify::namespace::{Dlfeat, IndependentIdentifyNamespace, Nmic, Nsattr, Nstat};
use nvme::identify::{
    ControllerList, Csi, IdList, IdentifyController, IdentifyNamespace, IoCommandSets, NamespaceIds,
};

use super::*;

fn controller_page(admin: &QueueGrant) -> IdentifyController {
    IdentifyController::read(&identify_ns(admin, Cns::CONTROLLER, 0).unwrap()).unwrap()
}

#[test]
fn what_linux_checks_of_an_io_controller() {
    let bench = Bench::new();
    let admin = bench.host();
    let id = controller_page(&admin);
    assert_eq!(id.cntlid(), admin.controller().cntlid());
    assert_eq!(id.nqn().unwrap().as_str(), NQN);
    assert_eq!(id.cntrltype, ControllerType::IO);
    assert_eq!(id.version(), nvme::property::Version::V2_0);
    assert_ne!(id.kas.get(), 0, "Keep Alive is mandatory over fabrics");
    assert!(id.sgls.contains(Sgls::SUPPORTED | Sgls::OFFSET | Sgls::TRANSPORT));
    assert_eq!((id.ioccsz.get(), id.iorcsz.get(), id.icdoff.get()), ((64 + 4096) / 16, 1, 0));
    assert_eq!(id.in_capsule_bytes(), 4096);
    assert_eq!(id.max_transfer_bytes(0), Some(131_072));
    assert_eq!(id.maxcmd.get(), 128);
    assert_eq!((id.sqes, id.cqes), (0x66, 0x44));
    assert_eq!((id.nn.get(), id.mnan.get()), (1024, 1024));
    assert!(id.ctratt.contains(Ctratt::TRAFFIC_KEEP_ALIVE | Ctratt::HOST_ID_128));
    assert!(id.cmic.contains(Cmic::MULTI_CONTROLLER) && !id.cmic.contains(Cmic::ANA));
    assert_eq!((id.anagrpmax.get(), id.nanagrpid.get(), id.anacap.bits()), (0, 0, 0));
    assert!(id.oaes.contains(Oaes::NAMESPACE_ATTRIBUTE) && !id.oaes.contains(Oaes::ANA_CHANGE));
    assert!(id.lpa.contains(Lpa::EFFECTS | Lpa::EXTENDED_DATA | Lpa::SMART_PER_NAMESPACE));
    assert!(id.ofcs.contains(Ofcs::DISCONNECT));
    assert_eq!((id.acl_z, id.aerl_z), (3, 3));
    assert_eq!(id.model(), "Mayastor NVMe controller");
    assert_eq!(id.serial(), config::serial_of(NQN.as_bytes()));
    assert_eq!(id.vwc, Vwc::FLUSH_BROADCAST);
    let all = Oncs::COMPARE
        | Oncs::WRITE_ZEROES
        | Oncs::DATASET_MANAGEMENT
        | Oncs::VERIFY
        | Oncs::COPY
        | Oncs::RESERVATIONS
        | Oncs::TIMESTAMP
        | Oncs::FEATURE_SAVE_SELECT;
    assert_eq!(id.oncs, all);
    assert_eq!(id.fuses.bits(), 1);
    assert_eq!(id.ocfs.get(), 1);
}

#[test]
fn optional_commands_are_those_that_every_namespace_takes() {
    let mut bench = Bench::with(TargetConfig::default(), SubsystemSpec::new(NQN), Capabilities::empty());
    let admin = bench.host();
    let none = Oncs::TIMESTAMP | Oncs::FEATURE_SAVE_SELECT | Oncs::RESERVATIONS;
    assert_eq!(controller_page(&admin).oncs, none);
    let add = NamespaceSpec::new(TestDevice::new(2, ALL_CAPS | Capabilities::VOLATILE_CACHE));
    drop(admin);
    run(&mut bench.core, bench.target.add_namespace(NQN, add)).unwrap();
    let id = controller_page(&bench.host());
    assert_eq!(id.oncs, none | Oncs::DATASET_MANAGEMENT, "advice that one of them can use");
    assert_eq!(id.fuses.bits(), 0);
    assert_eq!(id.ocfs.get(), 0);
    assert!(id.vwc.contains(Vwc::PRESENT));
}

#[test]
fn ana_shows_where_it_is_reported() {
    let mut spec = SubsystemSpec::new(NQN);
    spec.ana_groups = 4;
    let bench = Bench::with(TargetConfig::default(), spec, ALL_CAPS);
    let admin = bench.host();
    let id = controller_page(&admin);
    assert!(id.cmic.contains(Cmic::ANA) && id.oaes.contains(Oaes::ANA_CHANGE));
    assert_eq!((id.anagrpmax.get(), id.nanagrpid.get()), (4, 4));
    assert!(id.anacap.contains(Anacap::OPTIMIZED | Anacap::INACCESSIBLE));
    assert_ne!(id.anatt, 0);
    let ns = IdentifyNamespace::read(&identify_ns(&admin, Cns::NAMESPACE, 1).unwrap()).unwrap();
    assert_eq!(ns.anagrpid.get(), 1);
}

#[test]
fn a_discovery_controller_is_no_io_controller() {
    let bench = Bench::new();
    let admin = granted(bench.admin_of(nvme::nqn::DISCOVERY_NQN, HOST));
    enable(&admin);
    let id = controller_page(&admin);
    assert_eq!(id.cntrltype, ControllerType::DISCOVERY);
    assert_eq!(id.nqn().unwrap().as_str(), nvme::nqn::DISCOVERY_NQN);
    assert_eq!((id.nn.get(), id.oncs.bits(), id.sqes), (0, 0, 0));
    assert_eq!(id.oaes, Oaes::DISCOVERY_LOG);
    assert_eq!(identify_ns(&admin, Cns::ACTIVE_NAMESPACES, 0), Err(Status::INVALID_FIELD));
    let abort = nvme::admin::Abort { sqid: Qid(0), cid: Cid(1) }.sqe();
    assert_eq!(command(&admin, &abort), Err(Status::INVALID_OPCODE));
}

#[test]
fn namespaces() {
    let mut bench = Bench::new();
    let read_only = TestDevice::shaped(7, Capabilities::READ_ONLY, 4096);
    let mut spec = NamespaceSpec::new(read_only);
    spec.nsid = Some(Nsid(5));
    run(&mut bench.core, bench.target.add_namespace(NQN, spec)).unwrap();
    let admin = bench.host();
    let ns = |nsid| IdentifyNamespace::read(&identify_ns(&admin, Cns::NAMESPACE, nsid).unwrap()).unwrap();
    let one = ns(1);
    assert_eq!((one.nsze.get(), one.ncap.get(), one.nuse.get()), (2048, 2048, 2048));
    assert_eq!((one.format().block_bytes(), one.nlbaf_z), (Some(512), 0));
    assert_eq!(one.nguid, *uuid::Uuid::from_u128(1).as_bytes());
    assert_eq!(one.eui64, [0; 8]);
    assert!(one.nmic.contains(Nmic::SHARED));
    assert_eq!(
        one.rescap.bits(),
        0xfe,
        "every type, and the key rule of revision 1.3; nothing persists here"
    );
    assert!(one.dlfeat.contains(Dlfeat::READS_ZERO | Dlfeat::WRITE_ZEROES_DEALLOCATE));
    assert_eq!((one.noiob.get(), one.mcl.get(), one.mssrl.get(), one.msrc_z), (8, 256, 256, 127));
    let five = ns(5);
    assert_eq!(five.format().block_bytes(), Some(4096));
    assert!(five.nsattr.contains(Nsattr::WRITE_PROTECTED));
    assert_eq!((five.dlfeat.bits(), five.mcl.get()), (0, 0));
    assert_eq!(ns(2).wire(), [0; 4096], "could exist, does not");
    for bad in [0, 1025, u32::MAX - 1, u32::MAX] {
        assert_eq!(identify_ns(&admin, Cns::NAMESPACE, bad), Err(Status::INVALID_NAMESPACE), "{bad:#x}");
    }
    let independent = identify_ns(&admin, Cns::INDEPENDENT_NAMESPACE, 5).unwrap();
    let independent = IndependentIdentifyNamespace::read(&independent).unwrap();
    assert!(independent.nstat.contains(Nstat::READY) && independent.nsattr.contains(Nsattr::WRITE_PROTECTED));
}

#[test]
fn lists_and_descriptors() {
    let mut bench = Bench::new();
    let mut spec = NamespaceSpec::new(TestDevice::new(7, ALL_CAPS));
    spec.nsid = Some(Nsid(1024));
    run(&mut bench.core, bench.target.add_namespace(NQN, spec)).unwrap();
    let admin = bench.host();
    for cns in [Cns::ACTIVE_NAMESPACES, Cns::CS_ACTIVE_NAMESPACES] {
        let list = |after| {
            let page = identify_ns(&admin, cns, after).unwrap();
            IdList::read(&page).unwrap().iter().map(|n| n.0).collect::<Vec<_>>()
        };
        assert_eq!(list(0), [1, 1024]);
        assert_eq!(list(1), [1024]);
        assert_eq!(list(1024), [0; 0]);
        assert_eq!(identify_ns(&admin, cns, 0xffff_fffe), Err(Status::INVALID_NAMESPACE));
    }
    let ids = NamespaceIds::from_page(&identify_ns(&admin, Cns::NAMESPACE_DESCRIPTORS, 1).unwrap());
    let uuid = *uuid::Uuid::from_u128(1).as_bytes();
    assert_eq!(ids, NamespaceIds { eui64: [0; 8], nguid: uuid, uuid, csi: Some(0) });
    assert_eq!(identify_ns(&admin, Cns::NAMESPACE_DESCRIPTORS, 2), Err(Status::INVALID_NAMESPACE));

    let second = granted(bench.admin_of(NQN, OTHER_HOST));
    for cns in [Cns::CONTROLLERS, Cns::NAMESPACE_CONTROLLERS] {
        let list = ControllerList::read(&identify_ns(&admin, cns, 1).unwrap()).unwrap();
        let ids: Vec<_> = list.iter().collect();
        assert_eq!(ids, [admin.controller().cntlid(), second.controller().cntlid()]);
    }
}

#[test]
fn command_sets() {
    let bench = Bench::new();
    let admin = bench.host();
    let mut ask = Identify::new(Cns::IO_COMMAND_SETS, Nsid(0));
    ask.cntid = Cntlid::DYNAMIC;
    let sets = IoCommandSets::read(&identify(&admin, ask).unwrap()).unwrap();
    assert_eq!((sets.vectors[0].get(), sets.vectors[1].get()), (1, 0));
    ask.cntid = Cntlid(0x777);
    assert_eq!(identify(&admin, ask), Err(Status::INVALID_FIELD));
    for cns in [Cns::CS_NAMESPACE, Cns::CS_CONTROLLER, Cns::CS_ACTIVE_NAMESPACES] {
        let mut ask = Identify::new(cns, Nsid(1));
        assert!(identify(&admin, ask).is_ok());
        ask.csi = Csi::ZONED;
        assert_eq!(identify(&admin, ask), Err(Status::INVALID_FIELD));
    }
    for cns in [Cns::NVM_SETS, Cns::ALLOCATED_NAMESPACES, Cns::UUIDS, Cns::new(0xff)] {
        assert_eq!(identify_ns(&admin, cns, 0), Err(Status::INVALID_FIELD));
    }
}

#[test]
fn the_buffer_has_to_be_a_page() {
    let bench = Bench::new();
    let admin = bench.host();
    let sqe = Identify::new(Cns::CONTROLLER, Nsid(0)).sqe();
    assert_eq!(read_admin(&admin, sqe, 4095), Err(Status::DATA_SGL_LENGTH_INVALID));
    assert_eq!(read_admin(&admin, sqe, 8192), Err(Status::DATA_SGL_LENGTH_INVALID));
    let mut prp = sqe;
    prp.set_psdt(nvme::command::Psdt::PRP);
    assert_eq!(read_admin(&admin, prp, 4096), Err(Status::INVALID_FIELD));
    let mut in_capsule = sqe;
    in_capsule.set_sgl1(SglDescriptor::in_capsule(0, 4096));
    let outcome = admin.controller().admin(&in_capsule, &[], at(1));
    assert_eq!(outcome, AdminOutcome::error(Status::SGL_TYPE_INVALID));
}
