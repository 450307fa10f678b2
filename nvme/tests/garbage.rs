//! The panic guarantee: every parser takes random bytes, of every length, and neither panics nor loses bits.
//!
//! The seed is fixed, so a failure repeats; `KEELSON_SEED` sets another one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use nvme::admin::Abort;
use nvme::aen::AsyncEvent;
use nvme::command::Direction;
use nvme::fabrics::{ConnectData, ConnectError, FabricsSqe};
use nvme::feature::{GetFeatures, SetFeatures, Timestamp};
use nvme::identify::{ControllerList, IdList, Identify, IdentifyController, IdentifyNamespace, NamespaceIds};
use nvme::log::{ErrorEntry, GetLogPage, ana, discovery};
use nvme::nvm::{Copy, CopyRange0, Dsm, DsmRange, Rw};
use nvme::property::{Cap, Cc, Csts};
use nvme::reservation::{Command, Report, ReportRequest, Reservations};
use nvme::tcp::{H2cData, IcReq, IcResp, PduHeader, Role, RxRules, TermPdu, TermReq};
use nvme::vendor::facets::{MarksPage, RangesPage, ReadRanges, SnapshotMessage, UnixTime};
use nvme::{Cqe, HostId, Sqe, Status};

/// SplitMix64: enough for test input, and the same on every machine.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("KEELSON_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(2024);
        eprintln!("KEELSON_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Random bytes, with runs of 00h and FFh, for those are where limits are.
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = match self.next() % 4 {
                0 => 0,
                1 => u64::MAX,
                _ => self.next(),
            };
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Calls everything that takes an SQE, and checks that decoding and encoding again keeps the defined bits.
fn try_sqe(sqe: &Sqe) {
    let rw = Rw::decode(sqe);
    assert!((1..=65_536).contains(&rw.len_blocks));
    assert_eq!(Rw::decode(&rw.sqe(sqe.nvm_opcode(), sqe.nsid())), rw);
    let _ = (rw.end_lba(), rw.prinfo());
    let dsm = Dsm::decode(sqe);
    assert_eq!(Dsm::decode(&dsm.sqe(sqe.nsid())), dsm);
    assert!(dsm.data_len_bytes() <= 4096);
    let copy = Copy::decode(sqe);
    assert_eq!(Copy::decode(&copy.sqe(sqe.nsid())), copy);
    assert!(copy.data_len_bytes().is_none_or(|len| len <= 256 * 40));
    assert_eq!(Abort::decode(&Abort::decode(sqe).sqe()), Abort::decode(sqe));
    assert_eq!(Identify::decode(&Identify::decode(sqe).sqe()), Identify::decode(sqe));
    let page = GetLogPage::decode(sqe);
    assert_eq!(GetLogPage::decode(&page.sqe()), page);
    let _ = page.window(&[0; 100]);
    assert_eq!(GetFeatures::decode(&GetFeatures::decode(sqe).sqe()), GetFeatures::decode(sqe));
    assert_eq!(SetFeatures::decode(&SetFeatures::decode(sqe).sqe()), SetFeatures::decode(sqe));
    if let Some(read) = ReadRanges::decode(sqe) {
        assert_eq!(ReadRanges::decode(&read.sqe(sqe.nsid())), Some(read));
    }
    match FabricsSqe::of(sqe) {
        Some(FabricsSqe::Connect(connect)) => drop((connect.entries(), connect.qid(), connect.priority())),
        Some(FabricsSqe::PropertyGet(property) | FabricsSqe::PropertySet(property)) => {
            let _ = (property.property().len_bytes(), property.len_bytes());
        }
        Some(_) => {}
        None => assert!(!sqe.is_fabrics()),
    }
    let _ = sqe.sgl1().parse();
    let _ = (sqe.direction() == Direction::Both, sqe.prps(), sqe.fuse(), sqe.psdt());
    let _ = format!("{sqe:?} {} {}", sqe.admin_opcode(), sqe.nvm_opcode());
}

#[test]
fn submission_entries() {
    let mut random = Random::new();
    for round in 0..20_000 {
        let mut bytes = [0; 64];
        random.fill(&mut bytes);
        if round % 2 == 0 {
            bytes[0] = 0x7f;
            bytes[4] = (random.next() % 16) as u8;
        }
        let sqe = Sqe::view(&bytes).unwrap();
        assert_eq!(sqe.wire(), bytes);
        try_sqe(sqe);
    }
}

#[test]
fn completions_and_registers() {
    let mut random = Random::new();
    for _ in 0..20_000 {
        let mut bytes = [0; 16];
        random.fill(&mut bytes);
        let cqe = Cqe::read(&bytes).unwrap();
        let mut again = Cqe::new(cqe.cid(), cqe.status(), cqe.result());
        (again.sqhd, again.sqid) = (cqe.sqhd, cqe.sqid);
        again.set_phase(cqe.phase());
        assert_eq!(again.wire(), bytes);
        let word = random.next();
        let _ = format!("{cqe:?} {} {:?}", Status::from_bits(word as u16), AsyncEvent::from_result(word));
        let _ = format!("{:?} {:?} {:?}", Cap(word), Cc(word as u32), Csts(word as u32));
        let error = ConnectError::from_result(word);
        assert_eq!(ConnectError::from_result(error.result()), error);
    }
}

#[test]
fn pdu_headers() {
    let mut random = Random::new();
    let mut accepted = 0;
    for _ in 0..200_000 {
        let mut bytes = [0; 152];
        random.fill(&mut bytes);
        let word = random.next();
        // Mostly near what is valid, so that every branch is reached.
        bytes[0] = (word % 12) as u8;
        bytes[1] = (word >> 8) as u8 & 0xf;
        bytes[2] = [24, 72, 128, 128, (word >> 16) as u8][(word >> 24) as usize % 5];
        bytes[3] = (word >> 32) as u8;
        bytes[4..8].copy_from_slice(&((word >> 40) as u32 % 300).to_le_bytes());
        let pdu = PduHeader::view(&bytes).unwrap();
        let rules = RxRules {
            role: if word & 1 << 60 == 0 { Role::Host } else { Role::Controller },
            header_digest: word & 1 << 61 != 0,
            data_digest: word & 1 << 62 != 0,
            data_align_bytes: 4 << (random.next() % 6),
            max_in_capsule_bytes: 100,
            max_data_bytes: 200,
        };
        match pdu.check(&rules) {
            Ok(layout) => {
                accepted += 1;
                assert_eq!(layout.total_bytes(), pdu.plen.get() as usize);
                assert!(layout.data_bytes <= 200);
                assert_eq!(pdu.kind.receiver(), Some(rules.role));
            }
            Err(error) => {
                let term = TermPdu::new(rules.role, error, &bytes[..(word % 153) as usize]);
                assert_eq!(TermReq::view(term.bytes()).unwrap().fes.get(), error.fes().get());
            }
        }
        let _ = (
            IcReq::read(&bytes).unwrap().check(),
            IcResp::read(&bytes).unwrap().check(nvme::tcp::DigestFlags::NONE),
        );
        let _ = format!("{:?}", H2cData::view(&bytes));
    }
    assert!(accepted > 1000, "only {accepted} headers were valid: the input is too wild to test the rest");
}

#[test]
fn lists_and_pages() {
    let mut random = Random::new();
    for round in 0..3_000 {
        let len = (random.next() % 5_000) as usize;
        let mut bytes = vec![0; len];
        random.fill(&mut bytes);
        let count = random.next() as usize;
        assert!(DsmRange::list(&bytes, count).len() <= len / 16);
        assert!(CopyRange0::list(&bytes, 256).len() <= len / 32);
        if round % 2 == 0 && len > 60 {
            // A plausible number of groups and NSIDs.
            bytes[8..16].copy_from_slice(&(random.next() % 9).to_le_bytes());
            bytes[20..24].copy_from_slice(&((random.next() % 9) as u32).to_le_bytes());
        }
        if let Some((_, groups)) = ana::parse(&bytes) {
            let nsids: usize = groups.map(|group| group.nsids().count()).sum();
            assert!(nsids <= len / 4);
        }
        if let Some((_, entries)) = discovery::parse(&bytes) {
            assert!(entries.len() <= len / 1024);
            for entry in entries {
                let _ = (entry.nqn(), entry.address(), entry.service(), entry.trtype.name());
            }
        }
        let _ = NamespaceIds::from_page(&bytes);
        if let Some(report) = Report::parse_extended(&bytes) {
            assert!(report.registrants.len() <= len / 64 && Report::extended_len_bytes(&bytes).is_some());
            let _ = report.build(round % 3 == 0);
        }
        if let Some(mut sqe) = Sqe::read(&bytes) {
            sqe.opcode = [0x0d, 0x11, 0x15][round % 3];
            let mut state = Reservations::new(round % 2 == 0);
            if let Some(command) = Command::decode(&sqe, &bytes[64..]) {
                let _ = (state.apply(HostId([1; 16]), &command), state.access());
            }
            let _ = ReportRequest::decode(&sqe).len_bytes;
        }
        if let Some(data) = ConnectData::view(&bytes) {
            let _ = (data.subnqn(), data.hostnqn(), data.hostid() == HostId::NONE);
        }
        if let Some(list) = ControllerList::view(&bytes) {
            assert!(list.iter().count() <= 2047);
        }
        if let Some(list) = IdList::view(&bytes) {
            assert!(list.iter().count() <= 1024);
        }
        if let Some(controller) = IdentifyController::view(&bytes) {
            let _ = (controller.serial(), controller.model(), controller.firmware(), controller.nqn());
            let _ = (controller.max_transfer_bytes(bytes[0]), controller.in_capsule_bytes());
            let _ = format!("{:?} {:?}", controller.oncs, controller.sgls);
        }
        if let Some(ns) = IdentifyNamespace::view(&bytes) {
            let _ = (ns.format().block_bytes(), ns.extended_lba());
        }
        if let Some(entry) = ErrorEntry::view(&bytes) {
            let _ = format!("{entry:?}");
        }
        garbage_of_vendor_commands(&mut bytes, &mut random);
        if let Some(time) = Timestamp::view(&bytes) {
            let _ = time.ms();
        }
    }
}

/// Pages and messages of the vendor specific commands.
fn garbage_of_vendor_commands(bytes: &mut [u8], random: &mut Random) {
    let len = bytes.len();
    if random.next().is_multiple_of(2) && len > 40 {
        // A plausible number of entries, and of text.
        bytes[8..16].copy_from_slice(&(random.next() % 9).to_le_bytes());
        bytes[24..28].copy_from_slice(&((random.next() % 9) as u32).to_le_bytes());
    }
    if let Some(page) = RangesPage::parse(bytes, 0) {
        assert!(page.ranges.len() <= len / 24);
        assert_eq!(RangesPage::parse(&page.to_wire(len), 0), Some(page));
    }
    if let Some(page) = MarksPage::parse(bytes) {
        assert!(page.marks.len() <= len / 24);
        assert_eq!(page.to_wire(len).as_deref().and_then(MarksPage::parse), Some(page));
    }
    if len > 8 {
        let texts = bytes.len().min(200);
        bytes[..4].fill(0);
        bytes[4..texts].iter_mut().for_each(|b| *b &= 1);
        if let Some(message) = SnapshotMessage::parse(bytes) {
            assert_eq!(SnapshotMessage::parse(&message.to_wire()), Some(message));
        }
        let _ = core::str::from_utf8(&bytes[..8]).map(UnixTime::parse);
    }
}

#[test]
fn short_input_is_no_view() {
    let bytes = [0; 4096];
    assert!(Sqe::view(&bytes[..63]).is_none() && Sqe::view(&bytes[..64]).is_some());
    assert!(Cqe::view(&bytes[..15]).is_none() && Cqe::view(&[]).is_none());
    assert!(PduHeader::read(&bytes[..7]).is_none());
    assert!(IdentifyController::view(&bytes[..4095]).is_none());
    assert!(IdentifyController::view(&bytes).is_some());
}
