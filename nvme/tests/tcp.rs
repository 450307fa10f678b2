//! NVMe/TCP PDU headers: byte-exact vectors, and a table of what a receiver accepts and refuses.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use nvme::tcp::*;
use nvme::{Cid, Cqe, Nsid, NvmOpcode, Sqe, Status};

const CONTROLLER: RxRules = RxRules {
    role: Role::Controller,
    header_digest: false,
    data_digest: false,
    data_align_bytes: 4,
    max_in_capsule_bytes: 8192,
    max_data_bytes: 131_072,
};
const CONTROLLER_DIGESTS: RxRules = RxRules { header_digest: true, data_digest: true, ..CONTROLLER };
const HOST: RxRules = RxRules { role: Role::Host, max_in_capsule_bytes: 0, ..CONTROLLER };
const HOST_DIGESTS: RxRules = RxRules { header_digest: true, data_digest: true, ..HOST };

fn header(kind: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> PduHeader {
    let [a, b, c, d] = plen.to_le_bytes();
    PduHeader::read(&[kind, flags, hlen, pdo, a, b, c, d]).unwrap()
}

#[test]
fn ic_req_and_resp() {
    let req = IcReq::new(0, DigestFlags::HEADER | DigestFlags::DATA, 16);
    assert_eq!(req.wire()[..16], [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 3, 15, 0, 0, 0]);
    assert!(req.wire()[16..].iter().all(|&byte| byte == 0));
    assert_eq!((req.check(), req.max_r2t()), (Ok(()), 16));
    assert_eq!(IcReq { pfv: 1.into(), ..req }.check(), Err(PduError::Unsupported { offset_bytes: 8 }));
    assert_eq!(IcReq { hpda_z: 32, ..req }.check(), Err(PduError::Field { offset_bytes: 10 }));
    assert_eq!(IcReq { maxr2t_z: u32::MAX.into(), ..req }.max_r2t(), u32::MAX);

    let resp = IcResp::new(3, DigestFlags::HEADER, 131_072);
    assert_eq!(resp.wire()[..16], [1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 3, 1, 0, 0, 2, 0]);
    assert_eq!(resp.check(DigestFlags::HEADER | DigestFlags::DATA), Ok(()));
    assert_eq!(resp.check(DigestFlags::DATA), Err(PduError::Field { offset_bytes: 11 }));
    assert_eq!(IcResp { cpda_z: 32, ..resp }.check(resp.dgst), Err(PduError::Field { offset_bytes: 10 }));
    for bad in [0, 4095] {
        assert_eq!(
            IcResp { maxh2cdata: bad.into(), ..resp }.check(resp.dgst),
            Err(PduError::Field { offset_bytes: 12 })
        );
    }
    let odd = IcResp { maxh2cdata: 0xffff.into(), ..resp };
    assert_eq!((odd.check(resp.dgst), odd.max_h2c_data_bytes()), (Ok(()), 65_532));
    assert_eq!((pda_bytes(0), pda_bytes(31), pda_bytes(32)), (Some(4), Some(128), None));
}

#[test]
fn headers_as_they_are_sent() {
    let response = CapsuleResp::new(Cqe::new(Cid(5), Status::SUCCESS, 0), true);
    assert_eq!(response.wire()[..8], [5, 1, 24, 0, 28, 0, 0, 0]);
    let command = CapsuleCmd::new(Sqe::nvm(NvmOpcode::FLUSH, Nsid(1)), false);
    assert_eq!(command.wire()[..8], [4, 0, 72, 0, 72, 0, 0, 0]);
    let r2t = R2t::new(0x1122, 0x3344, 0x1000, 0x2000, false);
    assert_eq!(
        r2t.wire(),
        [9, 0, 24, 0, 24, 0, 0, 0, 0x22, 0x11, 0x44, 0x33, 0, 0x10, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]
    );

    // (header digest, data digest, alignment) -> (flags, pdo, plen) of a C2HData with 4,096 bytes.
    for (hdgst, ddgst, align, flags, pdo, plen) in [
        (false, false, 4, 0, 24, 4120),
        (true, false, 4, 1, 28, 4124),
        (true, true, 4, 3, 28, 4128),
        (false, true, 16, 2, 32, 4132),
        (true, true, 128, 3, 128, 4228),
    ] {
        let sent = PduHeader::with_data(PduType::C2H_DATA, hdgst, ddgst, align, 4096);
        assert_eq!(
            (sent.flags.bits(), sent.hlen, sent.pdo, sent.plen.get()),
            (flags, 24, pdo, plen),
            "{hdgst} {ddgst} {align}"
        );
        let rules = RxRules { header_digest: hdgst, data_digest: ddgst, data_align_bytes: align, ..HOST };
        let layout = sent.check(&rules).unwrap();
        assert_eq!(layout.data_offset_bytes(), pdo as usize);
        assert_eq!((layout.data_bytes, layout.total_bytes()), (4096, plen as usize));
    }
    // An in-capsule write: 72 bytes of header, and 128-byte alignment still fits PDO's 8 bits.
    let sent = PduHeader::with_data(PduType::CAPSULE_CMD, true, true, 128, 512);
    assert_eq!((sent.pdo, sent.plen.get()), (128, 128 + 512 + 4));
}

#[test]
fn what_is_accepted() {
    let layout = header(4, 0, 72, 0, 72).check(&CONTROLLER).unwrap();
    assert_eq!((layout.header_bytes(), layout.data_bytes, layout.total_bytes()), (72, 0, 72));
    // Without data PDO and the data digest flag do not count.
    assert!(header(4, 3, 72, 99, 76).check(&CONTROLLER_DIGESTS).is_ok());
    let layout = header(4, 3, 72, 80, 80 + 8192 + 4).check(&CONTROLLER_DIGESTS).unwrap();
    assert_eq!((layout.header_bytes(), layout.pad_bytes, layout.data_bytes), (76, 4, 8192));
    assert!(layout.header_digest && layout.data_digest);
    assert_eq!(layout.total_bytes(), 80 + 8192 + 4);

    for (pdu, rules) in [
        (header(0, 0, 128, 0, 128), RxRules::before_init(Role::Controller)),
        (header(1, 0, 128, 0, 128), RxRules::before_init(Role::Host)),
        (header(2, 0, 24, 0, 24), CONTROLLER_DIGESTS),
        (header(2, 0, 24, 0, 152), CONTROLLER),
        (header(3, 0, 24, 0, 96), HOST_DIGESTS),
        (header(5, 1, 24, 0, 28), HOST_DIGESTS),
        (header(6, 4, 24, 24, 24 + 131_072), CONTROLLER),
        (header(7, 12, 24, 24, 25), HOST),
        (header(9, 0, 24, 0, 24), HOST),
    ] {
        let layout = pdu.check(&rules).unwrap_or_else(|error| panic!("{pdu:?}: {error}"));
        assert_eq!(layout.total_bytes(), pdu.plen.get() as usize, "{pdu:?}");
    }
}

#[test]
fn what_is_refused_and_with_which_fatal_error() {
    let narrow = RxRules { data_align_bytes: 16, ..CONTROLLER };
    let table: [(&str, PduHeader, RxRules, PduError); 27] = [
        ("unknown type", header(8, 0, 24, 0, 24), CONTROLLER, PduError::TYPE),
        ("unknown type", header(0xff, 0, 24, 0, 24), HOST, PduError::TYPE),
        ("host's PDU to the host", header(4, 0, 72, 0, 72), HOST, PduError::TYPE),
        ("controller's PDU to the controller", header(5, 0, 24, 0, 24), CONTROLLER, PduError::TYPE),
        ("HLEN short", header(4, 0, 71, 0, 72), CONTROLLER, PduError::HLEN),
        ("HLEN long", header(0, 0, 129, 0, 128), CONTROLLER, PduError::HLEN),
        ("HLEN zero", header(6, 0, 0, 24, 100), CONTROLLER, PduError::HLEN),
        ("digest not negotiated", header(4, 1, 72, 0, 76), CONTROLLER, PduError::FLAGS),
        ("digest missing", header(4, 0, 72, 0, 72), CONTROLLER_DIGESTS, PduError::FLAGS),
        ("data digest not negotiated", header(4, 2, 72, 72, 200), CONTROLLER, PduError::FLAGS),
        ("data digest missing", header(6, 1, 24, 28, 200), CONTROLLER_DIGESTS, PduError::FLAGS),
        ("PDO in the header", header(4, 0, 72, 68, 200), CONTROLLER, PduError::PDO),
        ("PDO in the header digest", header(4, 3, 72, 72, 200), CONTROLLER_DIGESTS, PduError::PDO),
        ("PDO not aligned", header(4, 0, 72, 72, 200), narrow, PduError::PDO),
        ("PDO not a dword", header(6, 0, 24, 25, 200), CONTROLLER, PduError::PDO),
        ("PDO at the end", header(6, 0, 24, 200, 200), CONTROLLER, PduError::PDO),
        ("PDO beyond the end", header(6, 0, 24, 204, 200), CONTROLLER, PduError::PDO),
        ("PLEN zero", header(4, 0, 72, 0, 0), CONTROLLER, PduError::PLEN),
        ("PLEN shorter than the header", header(4, 0, 72, 0, 71), CONTROLLER, PduError::PLEN),
        ("nothing but a data digest", header(6, 3, 24, 28, 32), CONTROLLER_DIGESTS, PduError::PLEN),
        ("less than a data digest", header(6, 3, 24, 28, 30), CONTROLLER_DIGESTS, PduError::PLEN),
        ("data PDU without data", header(7, 0, 24, 24, 24), HOST, PduError::PLEN),
        ("capsule too long", header(4, 0, 72, 72, 72 + 8193), CONTROLLER, PduError::PLEN),
        ("PLEN of 4 GiB", header(4, 0, 72, 72, u32::MAX), CONTROLLER, PduError::PLEN),
        ("response with data", header(5, 0, 24, 0, 25), HOST, PduError::PLEN),
        ("TermReq too long", header(2, 0, 24, 0, 153), CONTROLLER, PduError::PLEN),
        ("more than MAXH2CDATA", header(6, 0, 24, 24, 24 + 131_073), CONTROLLER, PduError::LimitExceeded),
    ];
    for (what, pdu, rules, error) in table {
        assert_eq!(pdu.check(&rules), Err(error), "{what}");
    }
}

#[test]
fn fatal_errors_on_the_wire() {
    for (error, fes, fei) in [
        (PduError::PDO, 1, 3),
        (PduError::DATAL, 1, 16),
        (PduError::Sequence, 2, 0),
        (PduError::HeaderDigest { received: 0x1234_5678 }, 3, 0x1234_5678),
        (PduError::OutOfRange, 4, 0),
        (PduError::LimitExceeded, 5, 0),
        (PduError::Unsupported { offset_bytes: 8 }, 6, 8),
    ] {
        assert_eq!((error.fes().get(), error.fei()), (fes, fei));
        assert!(!error.to_string().is_empty());
    }
    let bad = [0xff; 200];
    let term = TermPdu::new(Role::Controller, PduError::PLEN, &bad);
    assert_eq!(term.bytes().len(), 152);
    assert_eq!(term.bytes()[..16], [3, 0, 24, 0, 152, 0, 0, 0, 1, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(term.bytes()[24..], [0xff; 128]);
    let term = TermPdu::new(Role::Host, PduError::Sequence, &bad[..8]);
    assert_eq!(term.bytes().len(), 32);
    assert_eq!((term.bytes()[0], term.bytes()[4], term.bytes()[8]), (2, 32, 2));
    assert!(PduHeader::view(term.bytes()).unwrap().check(&CONTROLLER_DIGESTS).is_ok());
}
