//! The engine over an in-memory pipe, cut in every way; malformed PDUs; both roles talking to each other.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use aio::{RegionId, SgEntry};
use nvme::command::{Cid, Cqe, Nsid, NvmOpcode, Sqe};
use nvme::tcp::{
    CapsuleCmd, DigestFlags, Fes, H2cData, IcReq, MAX_TERM_LEN_BYTES, PduError, PduFlags, PduHeader, PduType,
    Role, TermPdu, TermReq, crc32c,
};

use super::*;

/// What an event said, owned, with the pieces of a payload joined.
#[derive(Clone, PartialEq, Debug)]
enum Seen {
    Initialized(Agreed),
    Command { cid: u16, data: Vec<u8>, intact: bool },
    Response(u16),
    H2c { cccid: u16, span: DataSpan, data: Vec<u8>, intact: bool },
    C2h { cccid: u16, span: DataSpan, success: bool, data: Vec<u8>, intact: bool },
    R2t(u16, DataSpan),
    Terminated(Terminated),
}

struct Side {
    engine: Engine,
    tx: TxQueue,
    seen: Vec<Seen>,
    error: Option<PduError>,
}

impl Side {
    fn new(local: Local) -> Self {
        Self { engine: Engine::new(local), tx: TxQueue::new(8192, 16, 32), seen: Vec::new(), error: None }
    }

    /// Takes what is in the transmit list, `step` bytes at a time.
    fn drain(&mut self, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !self.tx.is_empty() {
            let all: Vec<u8> = self.tx.gather().iter().flat_map(|e| bytes_of(*e)).collect();
            let n = step.min(all.len());
            out.extend_from_slice(&all[..n]);
            self.tx.advance(n);
            while self.tx.pop_sent().is_some() {}
        }
        out
    }

    fn feed(&mut self, input: &[u8]) {
        let mut at = 0;
        loop {
            match self.engine.next(input, &mut at, &mut self.tx) {
                Ok(Some(event)) => self.note(event),
                Ok(None) => break,
                Err(e) => {
                    self.error = Some(e);
                    self.engine.fail(e, &mut self.tx);
                }
            }
        }
        assert_eq!(at, input.len(), "all input is used");
    }

    fn note(&mut self, event: Event<'_>) {
        let owned = |d: Data<'_>| (d.here.unwrap_or_default().to_vec(), d.intact);
        match event {
            Event::Initialized(agreed) => self.seen.push(Seen::Initialized(agreed)),
            Event::Command(sqe, d) => {
                let (data, intact) = owned(d);
                self.seen.push(Seen::Command { cid: sqe.cid.get(), data, intact });
            }
            Event::Response(cqe) => self.seen.push(Seen::Response(cqe.cid.get())),
            Event::H2cData { cccid, span, data } => {
                let (data, intact) = owned(data);
                self.seen.push(Seen::H2c { cccid, span, data, intact });
            }
            Event::C2hData { cccid, span, success, data } => {
                let (data, intact) = owned(data);
                self.seen.push(Seen::C2h { cccid, span, success, data, intact });
            }
            Event::R2t { cccid, span } => self.seen.push(Seen::R2t(cccid, span)),
            Event::Piece(bytes) => self.payload().0.extend_from_slice(bytes),
            Event::PayloadEnd { digest } => {
                let (data, intact) = self.payload();
                *intact = digest.is_none_or(|d| d == crc32c(data));
            }
            Event::Terminated(t) => self.seen.push(Seen::Terminated(t)),
        }
    }

    fn payload(&mut self) -> (&mut Vec<u8>, &mut bool) {
        match self.seen.last_mut() {
            Some(
                Seen::Command { data, intact, .. }
                | Seen::H2c { data, intact, .. }
                | Seen::C2h { data, intact, .. },
            ) => (data, intact),
            other => panic!("payload after {other:?}"),
        }
    }
}

fn bytes_of(e: SgEntry) -> Vec<u8> {
    // SAFETY: test data outlives its transmit list.
    unsafe { core::slice::from_raw_parts(e.ptr.as_ptr(), e.len_bytes as usize) }.to_vec()
}

fn entry(bytes: &[u8]) -> SgEntry {
    SgEntry { ptr: NonNull::from(bytes).cast(), len_bytes: bytes.len() as u32, region: RegionId::NONE }
}

fn sqe(cid: u16) -> Sqe {
    let mut sqe = Sqe::nvm(NvmOpcode::WRITE, Nsid(1));
    sqe.set_cid(Cid(cid));
    sqe
}

fn push_data(tx: &mut TxQueue, agreed: &Agreed, data: &[u8]) {
    // In two entries, so that gathered lists are more than header plus one.
    let (a, b) = data.split_at(data.len() / 2);
    tx.data(entry(a));
    tx.data(entry(b));
    if agreed.data_digest {
        emit::data_digest(tx, crc32c(data));
    }
    tx.finish(TxTag::NONE);
}

fn host(header_digest: bool, data_digest: bool, pda_z: u8) -> Local {
    Local { header_digest, data_digest, pda_z, max_r2t: 3, ..Local::host() }
}

/// A pair that has exchanged ICReq and ICResp.
fn pair(h: Local, c: Local) -> (Side, Side) {
    let (mut host, mut controller) = (Side::new(h), Side::new(c));
    host.engine.start(&mut host.tx);
    controller.feed(&host.drain(7));
    host.feed(&controller.drain(1000));
    assert!(host.engine.is_running() && controller.engine.is_running());
    (host, controller)
}

/// Splits `bytes` by `seed` and feeds the parts; 0 = one byte at a time, 1 = all at once.
fn feed_split(side: &mut Side, bytes: &[u8], seed: u64) {
    let mut rng = seed;
    let mut rest = bytes;
    while !rest.is_empty() {
        rng = rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let n = match seed {
            0 => 1,
            1 => rest.len(),
            _ => 1 + (rng >> 33) as usize % if rng & 8 == 0 { 8 } else { 300 },
        };
        let (part, tail) = rest.split_at(n.min(rest.len()));
        side.feed(part);
        rest = tail;
    }
}

#[test]
fn both_roles_in_every_split_and_digest() {
    let data: Vec<u8> = (0..3000u32).map(|i| ((i * 31) >> 3) as u8).collect();
    for (hd, dd, pda) in [(false, false, 0), (true, false, 0), (false, true, 7), (true, true, 31)] {
        for seed in 0..12 {
            let (mut h, mut c) = pair(host(hd, dd, pda), Local { pda_z: pda, ..Local::controller(8192) });
            let agreed = *h.engine.agreed();
            assert_eq!(agreed.peer_align_bytes, (u32::from(pda) + 1) * 4);
            c.seen.clear();
            emit::command(&mut h.tx, &agreed, &sqe(1), 0);
            h.tx.finish(TxTag::NONE);
            emit::command(&mut h.tx, &agreed, &sqe(2), 1024);
            push_data(&mut h.tx, &agreed, &data[..1024]);
            let span = DataSpan { ttag: 9, offset_bytes: 64, len_bytes: 3000, last: true };
            emit::h2c_data(&mut h.tx, &agreed, 3, span);
            push_data(&mut h.tx, &agreed, &data);
            let wire = h.drain(if seed == 0 { 1 } else { 777 });
            feed_split(&mut c, &wire, seed);
            assert_eq!(c.error, None);
            let expect = [
                Seen::Command { cid: 1, data: vec![], intact: true },
                Seen::Command { cid: 2, data: data[..1024].to_vec(), intact: true },
                Seen::H2c { cccid: 3, span, data: data.clone(), intact: true },
            ];
            assert_eq!(c.seen, expect, "digests {hd} {dd}, seed {seed}");
            assert!(c.engine.is_between_pdus());

            h.seen.clear();
            let agreed = *c.engine.agreed();
            let ask = DataSpan { ttag: 77, offset_bytes: 0, len_bytes: 512, last: true };
            emit::r2t(&mut c.tx, &agreed, 5, ask);
            let span = DataSpan { ttag: 0, offset_bytes: 0, len_bytes: 3000, last: true };
            emit::c2h_data(&mut c.tx, &agreed, 6, span, true);
            push_data(&mut c.tx, &agreed, &data);
            let cqe = Cqe::new(Cid(8), nvme::Status::SUCCESS, 0);
            emit::response(&mut c.tx, &agreed, cqe, TxTag::NONE);
            let wire = c.drain(4096);
            feed_split(&mut h, &wire, seed);
            assert_eq!(h.error, None);
            let expect = [
                Seen::R2t(5, ask),
                Seen::C2h { cccid: 6, span, success: true, data: data.clone(), intact: true },
                Seen::Response(8),
            ];
            assert_eq!(h.seen, expect);
        }
    }
}

#[test]
fn digests_are_used_only_when_both_want_them() {
    let (h, c) = pair(host(true, true, 0), Local { data_digest: false, ..Local::controller(8192) });
    assert!(h.engine.agreed().header_digest && !h.engine.agreed().data_digest);
    assert_eq!(h.engine.agreed().max_h2c_data_bytes, 8192);
    assert_eq!(c.engine.agreed().max_r2t, 3);
    let (h, _) = pair(host(false, false, 0), Local::controller(100));
    assert!(!h.engine.agreed().header_digest);
    assert_eq!(h.engine.agreed().max_h2c_data_bytes, 4096, "the smallest that the specification allows");
}

#[test]
fn wrong_data_digest_is_the_commands_fault() {
    for seed in 0..4 {
        let (mut h, mut c) = pair(host(false, true, 0), Local::controller(8192));
        let agreed = *h.engine.agreed();
        emit::command(&mut h.tx, &agreed, &sqe(2), 64);
        h.tx.data(entry(&[7; 64]));
        emit::data_digest(&mut h.tx, 1);
        h.tx.finish(TxTag::NONE);
        emit::command(&mut h.tx, &agreed, &sqe(3), 0);
        h.tx.finish(TxTag::NONE);
        let wire = h.drain(999);
        c.seen.clear();
        feed_split(&mut c, &wire, seed);
        assert_eq!(c.error, None);
        assert_eq!(c.seen[0], Seen::Command { cid: 2, data: vec![7; 64], intact: false });
        assert_eq!(c.seen[1], Seen::Command { cid: 3, data: vec![], intact: true });
    }
}

#[test]
fn payload_received_in_place() {
    let (mut h, mut c) = pair(host(false, true, 0), Local::controller(8192));
    let agreed = *h.engine.agreed();
    let data = [3u8; 600];
    emit::command(&mut h.tx, &agreed, &sqe(2), 600);
    push_data(&mut h.tx, &agreed, &data);
    let wire = h.drain(10_000);
    c.feed(&wire[..200]);
    let left = c.engine.payload_left();
    assert_eq!(left as usize, 600 - (200 - 72));
    c.engine.received_in_place(left);
    let mut at = 0;
    assert!(c.engine.next(&[], &mut at, &mut c.tx).unwrap().is_none(), "the digest is missing");
    let tail = &wire[wire.len() - 4..];
    let event = c.engine.next(tail, &mut at, &mut c.tx).unwrap();
    assert!(matches!(event, Some(Event::PayloadEnd { digest: Some(d) }) if d == crc32c(&data)));
}

/// The TermReq in `wire`.
fn term_of(wire: &[u8]) -> (PduType, Fes, u32, Vec<u8>) {
    let term = TermReq::view(wire).expect("a TermReq");
    assert!(wire.len() <= MAX_TERM_LEN_BYTES);
    assert_eq!(term.header.plen.get() as usize, wire.len());
    (term.header.kind, term.fes, term.fei.get(), wire[TermReq::LEN_BYTES..].to_vec())
}

#[test]
fn malformed_pdus_end_in_the_right_term_req() {
    let header = |kind, flags, hlen, pdo, plen: u32| PduHeader {
        kind,
        flags: PduFlags::from_bits(flags),
        hlen,
        pdo,
        plen: plen.into(),
    };
    let with_body = |h: PduHeader| {
        let mut v = h.wire().to_vec();
        v.resize(200, 0);
        v
    };
    let cmd = PduType::CAPSULE_CMD;
    let mut datal = H2cData { header: header(PduType::H2C_DATA, 4, 24, 24, 24 + 64), ..H2cData::zeroed() };
    datal.datal.set(65);
    let field = |offset| (Fes::INVALID_HEADER_FIELD, offset);
    let cases: Vec<(&str, Vec<u8>, (Fes, u32))> = vec![
        ("unknown type", with_body(header(PduType::new(8), 0, 24, 0, 24)), field(0)),
        ("type of the other direction", with_body(header(PduType::R2T, 0, 24, 0, 24)), field(0)),
        ("header length", with_body(header(cmd, 0, 71, 0, 72)), field(2)),
        ("digest flag not negotiated", with_body(header(cmd, 1, 72, 0, 76)), field(1)),
        ("data digest flag", with_body(header(cmd, 2, 72, 72, 76)), field(1)),
        ("data offset in the header", with_body(header(cmd, 0, 72, 68, 80)), field(3)),
        ("data offset not aligned", with_body(header(cmd, 0, 72, 74, 80)), field(3)),
        ("data offset beyond the end", with_body(header(cmd, 0, 72, 84, 80)), field(3)),
        ("length below the header", with_body(header(cmd, 0, 72, 0, 71)), field(4)),
        ("length zero", with_body(header(cmd, 0, 72, 0, 0)), field(4)),
        ("too much in-capsule data", with_body(header(cmd, 0, 72, 72, 72 + 8193)), field(4)),
        ("length enormous", with_body(header(cmd, 0, 72, 72, u32::MAX)), field(4)),
        (
            "more than MAXH2CDATA",
            with_body(header(PduType::H2C_DATA, 0, 24, 24, 24 + 8196)),
            (Fes::LIMIT_EXCEEDED, 0),
        ),
        (
            "DATAL against PLEN",
            {
                let mut v = datal.wire().to_vec();
                v.resize(88, 0);
                v
            },
            field(16),
        ),
        ("second ICReq", IcReq::new(0, DigestFlags::NONE, 1).wire().to_vec(), (Fes::SEQUENCE_ERROR, 0)),
    ];
    for (name, bytes, (fes, fei)) in cases {
        for seed in [0, 1, 5] {
            let (_, mut c) = pair(host(false, false, 0), Local::controller(8192));
            feed_split(&mut c, &bytes, seed);
            assert!(c.error.is_some(), "{name}");
            let wire = c.drain(10_000);
            let (kind, got_fes, got_fei, echo) = term_of(&wire);
            assert_eq!((kind, got_fes, got_fei), (PduType::C2H_TERM_REQ, fes, fei), "{name}");
            assert!(echo.len() >= 8 && bytes.starts_with(&echo), "{name}: the header comes back");
            feed_split(&mut c, &bytes, seed);
            assert!(c.drain(100).is_empty(), "{name}: one TermReq only");
        }
    }
}

#[test]
fn bad_initialisation() {
    let bad = |edit: &dyn Fn(&mut IcReq)| {
        let mut req = IcReq::new(0, DigestFlags::NONE, 1);
        edit(&mut req);
        let mut c = Side::new(Local::controller(8192));
        feed_split(&mut c, req.wire(), 3);
        let (_, fes, fei, _) = term_of(&c.drain(1000));
        assert!(!c.engine.is_running());
        (fes, fei)
    };
    assert_eq!(bad(&|r| r.pfv.set(1)), (Fes::UNSUPPORTED_PARAMETER, 8));
    assert_eq!(bad(&|r| r.hpda_z = 32), (Fes::INVALID_HEADER_FIELD, 10));
    assert_eq!(bad(&|r| r.header.plen.set(127)), (Fes::INVALID_HEADER_FIELD, 4));
    let mut c = Side::new(Local::controller(8192));
    c.feed(CapsuleCmd::new(sqe(1), false).wire());
    assert_eq!(term_of(&c.drain(1000)).1, Fes::SEQUENCE_ERROR, "a command before ICReq");
    let mut h = Side::new(host(false, false, 0));
    h.feed(nvme::tcp::IcResp::new(0, DigestFlags::HEADER, 8192).wire());
    let (kind, fes, fei, _) = term_of(&h.drain(1000));
    assert_eq!((kind, fes, fei), (PduType::H2C_TERM_REQ, Fes::INVALID_HEADER_FIELD, 11));
}

#[test]
fn wrong_header_digest_is_fatal() {
    for seed in 0..4 {
        let (mut h, mut c) = pair(host(true, false, 0), Local::controller(8192));
        let agreed = *h.engine.agreed();
        emit::command(&mut h.tx, &agreed, &sqe(2), 0);
        h.tx.finish(TxTag::NONE);
        let mut wire = h.drain(999);
        wire[20] ^= 1;
        feed_split(&mut c, &wire, seed);
        let received = u32::from_le_bytes(wire[72..76].try_into().unwrap());
        assert_eq!(c.error, Some(PduError::HeaderDigest { received }));
        let (_, fes, fei, _) = term_of(&c.drain(1000));
        assert_eq!((fes, fei), (Fes::HEADER_DIGEST_ERROR, received));
    }
}

#[test]
fn term_req_of_the_peer_ends_it() {
    for seed in 0..4 {
        let (_, mut c) = pair(host(false, false, 0), Local::controller(8192));
        c.seen.clear();
        let term = TermPdu::new(Role::Host, PduError::TTAG, &[9; 60]);
        feed_split(&mut c, term.bytes(), seed);
        feed_split(&mut c, &[0xff; 64], seed);
        let notice = Terminated { fes: Fes::INVALID_HEADER_FIELD, fei: 10 };
        assert_eq!(c.seen, [Seen::Terminated(notice)]);
        c.engine.fail(PduError::TYPE, &mut c.tx);
        assert!(c.tx.is_empty(), "no TermReq in answer to one");
    }
}

#[test]
fn arbitrary_bytes_never_panic() {
    let mut rng = 7u64;
    for round in 0..3000 {
        let (mut h, mut c) = pair(host(round & 1 != 0, round & 2 != 0, 0), Local::controller(8192));
        let agreed = *h.engine.agreed();
        emit::command(&mut h.tx, &agreed, &sqe(2), 100);
        push_data(&mut h.tx, &agreed, &[5; 100]);
        let mut wire = h.drain(999);
        for _ in 0..1 + round % 4 {
            rng = rng.wrapping_mul(6364136223846793005).wrapping_add(99991);
            let at = (rng >> 40) as usize % wire.len().min(80);
            wire[at] = (rng >> 32) as u8;
        }
        feed_split(&mut c, &wire, rng | 2);
    }
}

mod queue {
    use super::*;
    use crate::tcp::txq::MAX_PIECE_BYTES;

    fn sent(q: &TxQueue) -> Vec<u8> {
        q.gather().iter().flat_map(|e| bytes_of(*e)).collect()
    }

    fn pdu(q: &mut TxQueue, head: &[u8], data: &[u8], tag: u32) {
        q.header(head);
        q.data(entry(data));
        q.finish(TxTag(tag));
    }

    #[test]
    fn tags_come_back_in_order_when_the_last_byte_went() {
        let data = [1u8; 10];
        let mut q = TxQueue::new(64, 4, 4);
        pdu(&mut q, b"aa", &data, 1);
        pdu(&mut q, b"bb", &data, 2);
        assert_eq!(q.pop_sent(), None);
        q.advance(11);
        assert_eq!(q.pop_sent(), None);
        assert_eq!(q.partly_sent(), Some(TxTag(1)));
        q.advance(1);
        assert_eq!(q.partly_sent(), None);
        assert_eq!(q.pop_sent(), Some(TxTag(1)));
        assert_eq!(q.pop_sent(), None);
        assert_eq!(sent(&q), [b"bb".as_slice(), &data].concat());
        q.advance(12);
        assert_eq!(q.pop_sent(), Some(TxTag(2)));
        assert_eq!(q.pop_sent(), None);
        assert!(q.is_empty());
    }

    #[test]
    fn header_ring_wraps_and_never_overwrites() {
        let mut q = TxQueue::new(64 + MAX_PIECE_BYTES, 4, 4);
        let mut expect: Vec<u8> = Vec::new();
        let mut got: Vec<u8> = Vec::new();
        let (mut next, mut rng) = (0u8, 3u32);
        for _ in 0..2000 {
            rng = rng.wrapping_mul(1664525).wrapping_add(1013904223);
            let len = 1 + (rng >> 20) as usize % 13;
            while !q.has_room(len) {
                let all = sent(&q);
                let n = 1 + (rng >> 8) as usize % all.len();
                got.extend_from_slice(&all[..n]);
                q.advance(n);
                while q.pop_sent().is_some() {}
            }
            let head: Vec<u8> = (0..len).map(|i| next.wrapping_add(i as u8)).collect();
            next = next.wrapping_add(len as u8);
            expect.extend_from_slice(&head);
            q.header(&head);
            q.finish(TxTag::NONE);
        }
        got.extend(sent(&q));
        assert_eq!(got, expect);
    }

    #[test]
    fn unsent_pdus_can_be_taken_back() {
        let data = [9u8; 4];
        let mut q = TxQueue::new(256, 8, 8);
        for tag in 0..6 {
            pdu(&mut q, &[tag as u8; 2], &data, tag);
        }
        q.advance(6 + 3);
        assert_eq!(q.pop_sent(), Some(TxTag(0)));
        assert_eq!(q.partly_sent(), Some(TxTag(1)));
        let mut taken = Vec::new();
        q.take_back(|tag| {
            let take = tag.0 != 3;
            if take {
                taken.push(tag.0);
            }
            take
        });
        assert_eq!(taken, [2, 4, 5], "the one that began stays");
        let other = [8u8; 4];
        q.replace_partly_sent(|e| SgEntry {
            len_bytes: e.len_bytes,
            ..entry(&other[4 - e.len_bytes as usize..])
        });
        assert_eq!(sent(&q), [8, 8, 8, 3, 3, 9, 9, 9, 9]);
        pdu(&mut q, &[7; 2], &data, 7);
        assert_eq!(q.unsent_bytes(), 3 + 6 + 6);
        q.advance(15);
        let tags: Vec<_> = core::iter::from_fn(|| q.pop_sent()).collect();
        assert_eq!(tags, [TxTag(1), TxTag(3), TxTag(7)]);
    }

    #[test]
    fn short_pdus_share_an_entry() {
        let data = [9u8; 4];
        let mut q = TxQueue::new(400, 8, 8);
        let mut expect = Vec::new();
        for tag in 0..8u32 {
            q.header(&[tag as u8; 5]);
            expect.extend([tag as u8; 5]);
            if tag == 4 {
                q.data(entry(&data));
                expect.extend(data);
                q.finish(TxTag(tag));
            } else {
                q.finish_short(TxTag(tag));
            }
        }
        assert_eq!(q.unsent_entries(), 4, "0-3, the two of 4, 5-7");
        assert_eq!(sent(&q), expect);
        q.advance(7);
        assert_eq!(q.pop_sent(), Some(TxTag(0)));
        assert_eq!((q.pop_sent(), q.partly_sent()), (None, Some(TxTag(1))));
        q.header(&[8; 5]);
        q.finish_short(TxTag(8));
        expect.extend([8; 5]);
        q.take_back(|tag| tag.0 == 4);
        expect.drain(20..29);
        assert_eq!(sent(&q), expect[7..]);
        q.advance(expect.len() - 7);
        let tags: Vec<_> = core::iter::from_fn(|| q.pop_sent()).map(|t| t.0).collect();
        assert_eq!(tags, [1, 2, 3, 5, 6, 7, 8]);
        assert!(q.is_empty());
    }

    #[test]
    fn everything_taken_back_leaves_an_empty_queue() {
        let mut q = TxQueue::new(16 + 4 + MAX_PIECE_BYTES, 2, 2);
        for round in 0..100 {
            pdu(&mut q, b"head", b"data", round);
            q.take_back(|_| true);
            assert!(q.is_empty() && q.has_room(16));
            assert_eq!(q.pop_sent(), None);
        }
    }
}
