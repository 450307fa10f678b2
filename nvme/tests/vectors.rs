//! Byte-exact vectors: a command, completion or structure as it stands on the wire, written out by hand from
//! the specification's tables, against what the types make of it and give back.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use nvme::admin::Abort;
use nvme::aen::{AsyncEvent, EventType};
use nvme::command::{Direction, Fuse, Psdt};
use nvme::fabrics::{ConnectData, ConnectError, ConnectResult, ConnectSqe, FabricsSqe, Fctype, PropertySqe};
use nvme::feature::{Fid, GetFeatures, Oaes, QueueCounts, Select, SetFeatures, Timestamp, celsius};
use nvme::identify::namespace::LbaFormat;
use nvme::identify::{
    Cns, ControllerList, Csi, IdList, Identify, IdentifyController, IdentifyNamespace, IoCommandSets,
    NamespaceIds, Nidt, descriptors,
};
use nvme::log::ana::{self, AnaLog, AnaState};
use nvme::log::discovery::{self, SubsystemType};
use nvme::log::{DiscoveryEntry, ErrorEntry, GetLogPage, Lid, SupportedLogPages, changed_namespaces};
use nvme::nvm::{Copy, CopyRange0, Dsm, DsmFlags, DsmRange, Rw, RwFlags};
use nvme::property::{Cap, Cc, Csts, PropertyOffset, Version};
use nvme::sgl::{Sgl, SglDescriptor};
use nvme::{AdminOpcode, Cid, Cntlid, Cqe, HostId, Nqn, Nsid, NvmOpcode, Qid, Sqe, Status};

/// An SQE from its dwords.
fn sqe(dwords: [u32; 16]) -> Sqe {
    let bytes: Vec<u8> = dwords.iter().flat_map(|dword| dword.to_le_bytes()).collect();
    Sqe::read(&bytes).unwrap()
}

/// The dwords of an SQE.
fn dwords(sqe: &Sqe) -> Vec<u32> {
    sqe.wire().chunks(4).map(|dword| u32::from_le_bytes(dword.try_into().unwrap())).collect()
}

#[test]
fn write_with_fua() {
    let mut wire = [0; 16];
    wire[0] = 0x1234_4001; // CID 1234h, PSDT 01b, Write
    wire[1] = 7;
    (wire[10], wire[11]) = (0x89ab_cdef, 0x0123_4567);
    wire[12] = 1 << 30 | 7; // FUA, 8 blocks
    let sqe_in = sqe(wire);
    assert_eq!(sqe_in.nvm_opcode(), NvmOpcode::WRITE);
    assert_eq!((sqe_in.cid(), sqe_in.nsid(), sqe_in.psdt()), (Cid(0x1234), Nsid(7), Psdt::SGL_BUFFER));
    assert_eq!(sqe_in.direction(), Direction::HostToController);
    let rw = Rw::decode(&sqe_in);
    assert_eq!(rw, Rw::new(0x0123_4567_89ab_cdef, 8).with(RwFlags::FUA));
    assert!(rw.fua() && !rw.deallocate() && !rw.limited_retry());

    let mut sqe_out = rw.sqe(NvmOpcode::WRITE, Nsid(7));
    sqe_out.set_cid(Cid(0x1234));
    assert_eq!(dwords(&sqe_out), wire);
}

#[test]
fn every_field_of_read_and_write_goes_round() {
    let rw = Rw {
        slba: u64::MAX,
        len_blocks: 65_536,
        flags: RwFlags::from_bits(0xff00_0000),
        dtype: 0xf,
        dsm: 0xa5,
        dspec: 0x1234,
        reference_tag: 0xdead_beef,
        application_tag: 0x5678,
        application_tag_mask: 0x9abc,
    };
    let out = rw.sqe(NvmOpcode::READ, Nsid(1));
    assert_eq!(dwords(&out)[10..], [u32::MAX, u32::MAX, 0xfff0_ffff, 0x1234_00a5, 0xdead_beef, 0x9abc_5678]);
    assert_eq!(Rw::decode(&out), rw);
    assert_eq!(rw.end_lba(), None);
    assert_eq!(rw.prinfo(), 0xf);
    assert_eq!(Rw::new(10, 5).end_lba(), Some(15));
    assert!(
        Rw::decode(&sqe({
            let mut wire = [0; 16];
            wire[12] = 1 << 25;
            wire
        }))
        .deallocate()
    );
}

#[test]
fn dataset_management_and_copy() {
    let dsm = Dsm { ranges: 256, flags: DsmFlags::DEALLOCATE };
    let out = dsm.sqe(Nsid(3));
    assert_eq!(dwords(&out)[10..12], [255, 4]);
    assert_eq!(Dsm::decode(&out), dsm);
    assert_eq!(dsm.data_len_bytes(), 4096);

    let range = DsmRange::new(0x1122_3344_5566_7788, 0x99aa_bbcc);
    let bytes = [0, 0, 0, 0, 0xcc, 0xbb, 0xaa, 0x99, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
    assert_eq!(range.wire(), bytes);
    let two = [bytes, bytes].concat();
    assert_eq!(DsmRange::list(&two, 9), [range, range]);
    assert_eq!(DsmRange::list(&two, 1), [range]);
    assert_eq!(DsmRange::list(&two[..31], 2), [range]);
    assert_eq!(DsmRange::list(&[], 2), []);

    let copy = Copy { sdlba: 5, ranges: 2, format: 0, flags: nvme::nvm::CopyFlags::FUA };
    let out = copy.sqe(Nsid(1));
    assert_eq!(dwords(&out)[10..13], [5, 0, 1 << 30 | 1]);
    assert_eq!(Copy::decode(&out), copy);
    assert_eq!(copy.data_len_bytes(), Some(64));
    assert_eq!(Copy { format: 1, ..copy }.data_len_bytes(), Some(80));
    assert_eq!(Copy { format: 2, ..copy }.data_len_bytes(), None);
    let range = CopyRange0::new(9, 65_536);
    assert_eq!((range.slba.get(), range.nlb_z.get(), range.len_blocks()), (9, 0xffff, 65_536));
    assert_eq!(CopyRange0::list(range.wire(), 2), [range]);
}

#[test]
fn completion() {
    let mut cqe = Cqe::new(Cid(0xabcd), Status::LBA_OUT_OF_RANGE, 0x1122_3344_5566_7788);
    cqe.sqhd.set(0x0102);
    cqe.sqid.set(3);
    // Status 4080h shifted by one: DNR is bit 15 of the last word.
    let bytes = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 2, 1, 3, 0, 0xcd, 0xab, 0x00, 0x81];
    assert_eq!(cqe.wire(), bytes);
    cqe.set_phase(true);
    assert_eq!(cqe.wire()[14], 1);
    cqe.set_status(Status::SUCCESS);
    assert!(cqe.phase() && cqe.status().is_success());
    let back = Cqe::read(&bytes).unwrap();
    assert_eq!(back.status(), Status::LBA_OUT_OF_RANGE);
    assert_eq!((back.cid(), back.result(), back.phase()), (Cid(0xabcd), 0x1122_3344_5566_7788, false));
}

#[test]
fn flags_of_a_command() {
    let mut out = Sqe::nvm(NvmOpcode::COMPARE, Nsid(1));
    out.set_fuse(Fuse::FIRST);
    assert_eq!(out.flags, 0x41);
    out.set_psdt(Psdt::PRP);
    assert_eq!((out.flags, out.fuse()), (1, Fuse::FIRST));
    out.set_prps([0x1000, 0x2008]);
    assert_eq!(out.prps(), [0x1000, 0x2008]);
    assert_eq!(out.dptr[..8], 0x1000u64.to_le_bytes());
}

#[test]
fn sgl_descriptors() {
    let table: [(SglDescriptor, u8, Sgl); 8] = [
        (SglDescriptor::data(0x10, 0x20), 0x00, Sgl::Data { address: 0x10, len_bytes: 0x20 }),
        (SglDescriptor::in_capsule(0, 4096), 0x01, Sgl::InCapsule { offset_bytes: 0, len_bytes: 4096 }),
        (SglDescriptor::transport(4096), 0x5a, Sgl::Transport { len_bytes: 4096 }),
        (
            SglDescriptor::segment(0x30, 64, false),
            0x20,
            Sgl::Segment { address: 0x30, len_bytes: 64, in_capsule: false, last: false },
        ),
        (
            SglDescriptor::segment(0x30, 64, true),
            0x30,
            Sgl::Segment { address: 0x30, len_bytes: 64, in_capsule: false, last: true },
        ),
        (
            SglDescriptor::keyed(1, 0x12_3456, 0x89ab_cdef, false),
            0x40,
            Sgl::Keyed { address: 1, len_bytes: 0x12_3456, key: 0x89ab_cdef, invalidate: false },
        ),
        (
            SglDescriptor::keyed(1, 0xff_ffff, 1, true),
            0x4f,
            Sgl::Keyed { address: 1, len_bytes: 0xff_ffff, key: 1, invalidate: true },
        ),
        (
            SglDescriptor::from_wire([0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0x10]),
            0x10,
            Sgl::BitBucket { len_bytes: 5 },
        ),
    ];
    for (descriptor, identifier, meaning) in table {
        assert_eq!(descriptor.identifier, identifier);
        assert_eq!(descriptor.parse(), Ok(meaning));
        assert_eq!(SglDescriptor::from_wire(descriptor.to_wire()).parse(), Ok(meaning));
    }
    // The key lies in bytes 11 to 14.
    let keyed = SglDescriptor::keyed(0, 0, 0x4433_2211, false).to_wire();
    assert_eq!(keyed[8..], [0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x40]);
    let known = [0x00, 0x01, 0x10, 0x20, 0x21, 0x30, 0x31, 0x40, 0x4f, 0x5a];
    for identifier in 0..=255u8 {
        let mut bytes = [0; 16];
        bytes[15] = identifier;
        let parsed = SglDescriptor::from_wire(bytes).parse();
        assert_eq!(parsed.is_ok(), known.contains(&identifier), "identifier {identifier:#x}");
        assert!(parsed.is_ok() || parsed == Err(Status::SGL_TYPE_INVALID));
    }
}

#[test]
fn connect() {
    let mut wire = [0; 16];
    wire[0] = 0x0001_407f;
    wire[1] = 1; // FCTYPE Connect
    wire[10] = 2 << 16; // QID 2, RECFMT 0
    wire[11] = 127 | 4 << 16; // SQSIZE 127z, CATTR: no SQ flow control
    wire[12] = 15_000;
    let sqe_in = sqe(wire);
    assert!(sqe_in.is_fabrics());
    assert_eq!(sqe_in.direction(), Direction::HostToController);
    let Some(FabricsSqe::Connect(connect)) = FabricsSqe::of(&sqe_in) else { panic!("not a Connect") };
    assert_eq!((connect.qid(), connect.entries(), connect.kato_ms.get()), (Qid(2), 128, 15_000));
    assert!(connect.cattr.contains(nvme::fabrics::ConnectAttributes::DISABLE_SQ_FLOW_CONTROL));
    assert_eq!(connect.priority(), 0);

    let mut out = ConnectSqe::new(Qid(2), 128, 15_000);
    out.cid.set(1);
    out.cattr = nvme::fabrics::ConnectAttributes::DISABLE_SQ_FLOW_CONTROL;
    assert_eq!(dwords(&out.to_sqe()), wire);

    let (sub, host) = (Nqn::parse("nqn.2024-01.io.keelson:a").unwrap(), Nqn::from_uuid([0x11; 16]));
    let data = ConnectData::new(HostId([9; 16]), Cntlid::DYNAMIC, &sub, &host);
    let bytes = data.wire();
    assert_eq!(bytes[..18], [[9; 16].as_slice(), &[0xff, 0xff]].concat());
    assert_eq!(bytes[256..256 + 25], *b"nqn.2024-01.io.keelson:a\0");
    let back = ConnectData::read(bytes).unwrap();
    assert_eq!((back.subnqn(), back.hostnqn()), (Ok(sub), Ok(host)));
    assert_eq!((back.hostid(), back.cntlid()), (HostId([9; 16]), Cntlid::DYNAMIC));
    let empty = ConnectData::zeroed();
    assert_eq!(empty.subnqn(), Err(ConnectError::data(256)));
    assert_eq!(empty.hostnqn(), Err(ConnectError::data(512)));
}

#[test]
fn connect_results() {
    let error = ConnectError::data(ConnectData::SUBNQN_OFFSET);
    assert_eq!(error.result(), 0x1_0100);
    assert_eq!(ConnectError::from_result(0x1_0100), error);
    assert_eq!(ConnectError::sqe(44).result(), 44);
    assert_eq!(error.status(), Status::CONNECT_INVALID_PARAMETERS);
    let result = ConnectResult::new(Cntlid(0x1234)).with_authentication(true, false);
    assert_eq!(result.0, 0x2_1234);
    assert_eq!((result.cntlid(), result.authentication_required()), (Cntlid(0x1234), true));
    assert!(!result.secure_channel_required());
}

#[test]
fn properties() {
    let set = PropertySqe::set(PropertyOffset::CC, 0x46_0001);
    let wire = dwords(&set.to_sqe());
    assert_eq!((wire[0], wire[1]), (0x407f, 0));
    assert_eq!(wire[10..14], [0, 0x14, 0x46_0001, 0]);
    let get = PropertySqe::get(PropertyOffset::CAP).to_sqe();
    assert_eq!(dwords(&get)[10..14], [1, 0, 0, 0]);
    let Some(FabricsSqe::PropertyGet(get)) = FabricsSqe::of(&get) else { panic!("not a Property Get") };
    assert_eq!((get.property(), get.len_bytes()), (PropertyOffset::CAP, Some(8)));
    assert_eq!(Fctype::new(get.fctype), Fctype::PROPERTY_GET);

    let cap = Cap(0).with_mqes_z(127).with_cqr(true).with_to(30).with_css(0x41).with_mpsmax(4).with_crms(1);
    assert_eq!(cap.0, 127 | 1 << 16 | 30 << 24 | 0x41 << 37 | 4 << 52 | 1 << 59);
    assert_eq!((cap.mqes_z(), cap.cqr(), cap.to(), cap.css(), cap.mpsmax()), (127, true, 30, 0x41, 4));
    let cc = Cc(0x0046_0001);
    assert_eq!((cc.en(), cc.iosqes(), cc.iocqes(), cc.shn(), cc.css()), (true, 6, 4, 0, 0));
    assert_eq!(Cc(0).with_shn(7).0, 3 << 14);
    assert_eq!(Csts(0).with_rdy(true).with_shst(2).0, 9);
    assert_eq!(Version::V2_0.to_string(), "2.0.0");
    assert_eq!(Version(0x0001_0301), Version(0).with_major(1).with_minor(3).with_tertiary(1));
}

#[test]
fn admin_commands() {
    let abort = Abort { sqid: Qid(3), cid: Cid(0x55aa) };
    assert_eq!(dwords(&abort.sqe())[10], 0x55aa_0003);
    assert_eq!(Abort::decode(&abort.sqe()), abort);

    let identify = Identify {
        cntid: Cntlid(7),
        cnssid: 9,
        csi: Csi::ZONED,
        uuid_index: 5,
        ..Identify::new(Cns::CS_NAMESPACE, Nsid(1))
    };
    let wire = dwords(&identify.sqe());
    assert_eq!((wire[0], wire[1]), (0x4006, 1));
    assert_eq!(wire[10..15], [0x0007_0005, 0x0200_0009, 0, 0, 5]);
    assert_eq!(Identify::decode(&identify.sqe()), identify);

    let get = GetLogPage {
        nsid: Nsid(2),
        lsp: 0x7f,
        rae: true,
        len_bytes: 0x4_0010,
        lsi: 0xabcd,
        offset_bytes: 0x1_0000_0004,
        index_offset: true,
        csi: Csi::KEY_VALUE,
        uuid_index: 1,
        ..GetLogPage::new(Lid::ANA, 0)
    };
    let wire = dwords(&get.sqe());
    assert_eq!(wire[10..15], [0x0003_ff0c, 0xabcd_0001, 4, 1, 0x0180_0001]);
    assert_eq!(GetLogPage::decode(&get.sqe()), get);
    let longest = GetLogPage::new(Lid::ERROR, 1 << 34);
    assert_eq!(GetLogPage::decode(&longest.sqe()), longest);

    let get =
        GetFeatures { nsid: Nsid::NONE, fid: Fid::HOST_IDENTIFIER, select: Select::CAPABILITIES, cdw11: 1 };
    assert_eq!(dwords(&get.sqe())[10..12], [0x381, 1]);
    assert_eq!(GetFeatures::decode(&get.sqe()), get);
    let set = SetFeatures { save: true, cdw12: 3, ..SetFeatures::new(Fid::NUMBER_OF_QUEUES, 0x0003_0003) };
    assert_eq!(dwords(&set.sqe())[10..13], [0x8000_0007, 0x0003_0003, 3]);
    assert_eq!(SetFeatures::decode(&set.sqe()), set);
    assert_eq!(set.sqe().admin_opcode(), AdminOpcode::SET_FEATURES);
}

#[test]
fn feature_values() {
    assert_eq!(QueueCounts::new(4).0, 0x0003_0003);
    assert_eq!(QueueCounts(0x0007_0003).pairs(), 4);
    assert!(QueueCounts(0xffff_0000).is_invalid() && !QueueCounts(0xfffe_fffe).is_invalid());
    let time = Timestamp::new(0x0102_0304_0506, true);
    assert_eq!(time.wire(), [6, 5, 4, 3, 2, 1, 2, 0]);
    assert_eq!(time.ms(), 0x0102_0304_0506);
    assert_eq!(celsius(25).get(), 298);
    assert_eq!((celsius(i16::MAX).get(), celsius(i16::MIN).get()), (i16::MAX as u16, 0));
    let config = Oaes::from_bits(0x8000_0901);
    assert!(config.contains(Oaes::NAMESPACE_ATTRIBUTE | Oaes::ANA_CHANGE | Oaes::DISCOVERY_LOG));
    assert_eq!(config.smart_warnings(), nvme::feature::CriticalWarning::SPARE);
}

#[test]
fn asynchronous_events() {
    assert_eq!(AsyncEvent::NAMESPACE_CHANGED.result(), 0x04_0002);
    assert_eq!(AsyncEvent::ANA_CHANGED.result(), 0x0c_0302);
    assert_eq!(AsyncEvent::DISCOVERY_CHANGED.result(), 0x70_f002);
    assert_eq!(AsyncEvent::RESERVATION.result(), 0x80_0006);
    let event = AsyncEvent::from_result(0x0c_0302);
    assert_eq!((event, event.kind), (AsyncEvent::ANA_CHANGED, EventType::NOTICE));
}

#[test]
fn identify_lists() {
    let list = IdList::build(Nsid(2), [1, 2, 3, 9].map(Nsid));
    assert_eq!(list.wire()[..12], [3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(list.iter().collect::<Vec<_>>(), [Nsid(3), Nsid(9)]);
    assert!(!list.is_full());
    let full = IdList::build(Nsid(0), (1..5000).map(Nsid));
    assert!(full.is_full());
    assert_eq!(full.iter().count(), 1024);
    assert_eq!(full.iter().last(), Some(Nsid(1024)));

    let list = ControllerList::build(Cntlid(2), [1, 2, 7].map(Cntlid));
    assert_eq!(list.wire()[..8], [2, 0, 2, 0, 7, 0, 0, 0]);
    assert_eq!(list.iter().collect::<Vec<_>>(), [Cntlid(2), Cntlid(7)]);
    assert_eq!(ControllerList::build(Cntlid(0), (0..9999).map(Cntlid)).iter().count(), 2047);
    assert_eq!(IoCommandSets::nvm().wire()[..16], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

    let few: Vec<Nsid> = (1..=1024).map(Nsid).collect();
    assert_eq!(changed_namespaces(few.clone()).iter().collect::<Vec<_>>(), few);
    let many = changed_namespaces((1..=1025).map(Nsid));
    assert_eq!(many.iter().collect::<Vec<_>>(), [Nsid::BROADCAST]);
}

#[test]
fn namespace_descriptors() {
    let ids = NamespaceIds { eui64: [1; 8], nguid: [2; 16], uuid: [3; 16], csi: Some(0) };
    let page = ids.to_page();
    assert_eq!(page[..4], [1, 8, 0, 0]);
    assert_eq!(page[12..16], [2, 16, 0, 0]);
    assert_eq!(page[32..36], [3, 16, 0, 0]);
    assert_eq!(page[52..58], [4, 1, 0, 0, 0, 0]);
    assert_eq!(NamespaceIds::from_page(&page), ids);
    let order: Vec<_> = descriptors(&page).map(|(nidt, id)| (nidt, id.len())).collect();
    assert_eq!(order, [(Nidt::EUI64, 8), (Nidt::NGUID, 16), (Nidt::UUID, 16), (Nidt::CSI, 1)]);

    let only = NamespaceIds { uuid: [7; 16], ..NamespaceIds::default() };
    assert_eq!(only.to_page()[..4], [3, 16, 0, 0]);
    assert_eq!(NamespaceIds::from_page(&only.to_page()), only);
    // Wrong length, unknown type, descriptor over the end.
    assert_eq!(NamespaceIds::from_page(&[3, 2, 0, 0, 1, 1, 9, 1, 0, 0, 1]), NamespaceIds::default());
    assert_eq!(descriptors(&[3, 16, 0, 0, 1]).count(), 0);
    assert_eq!(NamespaceIds::from_page(&[]), NamespaceIds::default());
}

#[test]
fn identify_structures() {
    let mut controller = IdentifyController::zeroed();
    controller.set_names("SN1", "a model name that is much longer than forty bytes are", "1.0");
    assert_eq!(controller.wire()[4..8], *b"SN1 ");
    assert_eq!(controller.wire()[64..72], *b"1.0     ");
    assert_eq!((controller.serial(), controller.firmware()), ("SN1".into(), "1.0".into()));
    assert_eq!(controller.model().len(), 40);
    assert_eq!(controller.max_transfer_bytes(0), None);
    controller.mdts = 5;
    assert_eq!(controller.max_transfer_bytes(0), Some(131_072));
    controller.mdts = 255;
    assert_eq!(controller.max_transfer_bytes(15), None);
    controller.ioccsz.set(516);
    assert_eq!(controller.in_capsule_bytes(), 8192);
    controller.icdoff.set(u16::MAX);
    assert_eq!(controller.in_capsule_bytes(), 0);
    assert!(controller.nqn().is_err());

    let mut ns = IdentifyNamespace::zeroed();
    ns.lbaf[0] = LbaFormat::new(512);
    ns.lbaf[33] = LbaFormat::new(4096);
    assert_eq!(ns.format().block_bytes(), Some(512));
    ns.flbas = 0x41; // bits 6:5 = 10b, bits 3:0 = 1: format 33
    assert_eq!((ns.format_index(), ns.format().block_bytes()), (33, Some(4096)));
    assert!(!ns.extended_lba());
    assert_eq!(LbaFormat::zeroed().block_bytes(), None);
}

#[test]
fn error_and_supported_logs() {
    let entry = ErrorEntry::new(3, Qid(1), Cid(2), Status::INVALID_FIELD, Nsid(4));
    assert_eq!(entry.wire()[..16], [3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 4, 0x80, 0xff, 0xff]);
    assert_eq!(entry.status(), Status::INVALID_FIELD);
    let supported = SupportedLogPages::build(&[Lid::SUPPORTED, Lid::DISCOVERY]);
    assert_eq!((supported.wire()[0], supported.wire()[4], supported.wire()[0x70 * 4]), (1, 0, 1));
}

#[test]
fn windows_of_a_log() {
    let page: Vec<u8> = (0..64).collect();
    let at = |offset_bytes, len_bytes| GetLogPage { offset_bytes, ..GetLogPage::new(Lid::ERROR, len_bytes) };
    assert_eq!(at(0, 8).window(&page), Ok(&page[..8]));
    assert_eq!(at(60, 8).window(&page), Ok(&page[60..]));
    assert_eq!(at(64, 8).window(&page), Ok(&[][..]));
    assert_eq!(at(68, 8).window(&page), Err(Status::INVALID_FIELD));
    assert_eq!(at(2, 8).window(&page), Err(Status::INVALID_FIELD));
    assert_eq!(at(u64::MAX - 3, 8).window(&page), Err(Status::INVALID_FIELD));
    assert_eq!(at(0, u64::MAX).window(&page), Ok(&page[..]));
}

#[test]
fn ana_log() {
    let mut log = AnaLog::new(7, false);
    log.group(1, AnaState::OPTIMIZED, 7, [Nsid(1), Nsid(2)]);
    log.group(2, AnaState::INACCESSIBLE, 3, []);
    let page = log.finish();
    assert_eq!(page.len(), 16 + 32 + 8 + 32);
    assert_eq!(page[..16], [7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(page[16..24], [1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!((page[32], page[48], page[52]), (1, 1, 2));
    assert_eq!((page[56], page[60], page[72]), (2, 0, 3));

    let (header, groups) = ana::parse(&page).unwrap();
    assert_eq!(header.change_count.get(), 7);
    let read: Vec<_> = groups
        .map(|group| (group.header.grpid.get(), group.state(), group.nsids().collect::<Vec<_>>()))
        .collect();
    assert_eq!(read, [(1, AnaState::OPTIMIZED, vec![Nsid(1), Nsid(2)]), (2, AnaState::INACCESSIBLE, vec![])]);
    // A page that is cut within the first group's NSIDs has no whole group.
    assert_eq!(ana::parse(&page[..52]).unwrap().1.count(), 0);
    assert_eq!(ana::parse(&page[..87]).unwrap().1.count(), 1);
    assert!(ana::parse(&page[..15]).is_none());

    let mut groups_only = AnaLog::new(7, true);
    groups_only.group(1, AnaState::OPTIMIZED, 7, [Nsid(1)]);
    let page = groups_only.finish();
    assert_eq!((page.len(), page[20]), (48, 0));
    assert_eq!(AnaState::CHANGE.access(), Err(Status::ANA_TRANSITION));
    assert_eq!(AnaState::NON_OPTIMIZED.access(), Ok(()));
}

#[test]
fn discovery_log() {
    let nqn = Nqn::parse("nqn.2024-01.io.keelson:disk").unwrap();
    let v4 = DiscoveryEntry::tcp(SubsystemType::NVM, &nqn, "192.0.2.1:8420".parse().unwrap(), 1);
    let v6 = DiscoveryEntry::tcp(SubsystemType::NVM, &nqn, "[2001:db8::1]:4420".parse().unwrap(), 2);
    let page = discovery::build(9, &[v4, v6]);
    assert_eq!(page.len(), 3 * 1024);
    assert_eq!((page[0], page[8], page[16]), (9, 2, 0));
    let entry = &page[1024..2048];
    assert_eq!(entry[..10], [3, 1, 2, 4, 1, 0, 0xff, 0xff, 128, 0]);
    assert_eq!(entry[32..64], *b"8420                            ");
    assert_eq!(entry[512..523], *b"192.0.2.1  ");
    assert_eq!(page[2049], 2);

    let (header, entries) = discovery::parse(&page).unwrap();
    assert_eq!((header.genctr.get(), entries.len()), (9, 2));
    assert_eq!((entries[1].address().as_str(), entries[1].service().as_str()), ("2001:db8::1", "4420"));
    assert_eq!(entries[0].nqn(), Ok(nqn));
    assert_eq!(discovery::parse(&page[..3071]).unwrap().1.len(), 1);
    assert!(discovery::parse(&page[..1023]).is_none());
}

#[test]
fn nqns() {
    for good in [
        "nqn.2014-08.org.nvmexpress.discovery",
        "nqn.2019-05.io.openebs:nexus-1",
        "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
        "nqn.2024-12.a",
    ] {
        assert_eq!(Nqn::parse(good).unwrap().as_str(), good);
    }
    use nvme::nqn::NqnError::{Empty, Form, NotText, TooLong};
    let longest = format!("nqn.2024-01.io.keelson:{}", "x".repeat(200));
    assert_eq!(longest.len(), 223);
    assert!(Nqn::parse(&longest).is_ok());
    let too_long = format!("{longest}x");
    for (bad, why) in [
        ("", Empty),
        (too_long.as_str(), TooLong),
        ("nqn.2024-01.io\n", NotText),
        ("iqn.2024-01.io.keelson:a", Form),
        ("nqn.2024-13.io.keelson:a", Form),
        ("nqn.2024-00.io.keelson:a", Form),
        ("nqn.202é-1.io", Form),
        ("nqn.2024-1.io.keelson:a", Form),
        ("nqn.2024-01", Form),
        ("nqn.2024-01.", Form),
        ("nqn.2024-01.io..a", Form),
        ("nqn.2024-01.io:", Form),
        ("nqn.", Form),
    ] {
        assert_eq!(Nqn::parse(bad), Err(why), "{bad}");
    }
    let uuid = [0xf8, 0x1d, 0x4f, 0xae, 0x7d, 0xec, 0x11, 0xd0, 0xa7, 0x65, 0, 0xa0, 0xc9, 0x1e, 0x6b, 0xf6];
    assert_eq!(
        Nqn::from_uuid(uuid).as_str(),
        "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
    );
    // On the wire the form is the host's business, the length and the NUL are not.
    let mut field = [b'x'; 256];
    assert_eq!(Nqn::from_field(&field), Err(TooLong));
    field[224] = 0;
    assert_eq!(Nqn::from_field(&field), Err(TooLong));
    field[223] = 0;
    let odd = Nqn::from_field(&field).unwrap();
    assert_eq!((odd.as_str().len(), odd.is_well_formed()), (223, false));
    field[0] = 0xff;
    assert_eq!(Nqn::from_field(&field), Err(NotText));
    assert_eq!(Nqn::from_field(&[0; 256]), Err(Empty));
    assert!(Nqn::discovery().is_discovery() && Nqn::discovery().is_well_formed());
    assert_eq!(Nqn::from_field(&Nqn::discovery().to_field()), Ok(Nqn::discovery()));
}
