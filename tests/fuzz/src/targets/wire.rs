//! The wire types of `nvme`, as a peer may send them.

use crate::{Shape, Target};
use nvme::fabrics::{ConnectData, FabricsSqe};
use nvme::tcp::{DigestFlags, IcReq, IcResp, PduError, PduHeader, Role, RxRules, TermPdu};
use nvme::{Nqn, Sqe};
use zerocopy::{FromBytes, IntoBytes};

/// PDU headers against every combination of negotiated rules.
pub(super) const PDU: Target = Target {
    name: "pdu",
    about: "PDU headers, ICReq, ICResp: what is accepted lies within the limits, and its parts add up to PLEN",
    run: pdu,
    seeds: || {
        let mut seeds = vec![IcReq::new(0, DigestFlags::NONE, 1).as_bytes().to_vec()];
        seeds.push(IcResp::new(0, DigestFlags::NONE, 1 << 17).as_bytes().to_vec());
        for kind in 0..=9 {
            let mut seed = PduHeader::with_data(kind.into(), true, true, 64, 4096).as_bytes().to_vec();
            // The bytes after the header pick the rules.
            seed.extend_from_slice(&[0xff; 8]);
            seeds.push(seed);
        }
        seeds
    },
};

fn pdu(bytes: &[u8]) -> Shape {
    let Ok((header, rest)) = PduHeader::ref_from_prefix(bytes) else { return Shape::of("short") };
    let pick = rest.first().copied().unwrap_or(0);
    let rules = RxRules {
        role: if pick & 1 == 0 { Role::Controller } else { Role::Host },
        header_digest: pick & 2 != 0,
        data_digest: pick & 4 != 0,
        data_align_bytes: 4 << (pick >> 6),
        max_in_capsule_bytes: if pick & 8 == 0 { 0 } else { 8192 },
        max_data_bytes: 128 << 10,
    };
    let verdict = header.check(&rules);
    match &verdict {
        Ok(layout) => {
            assert_eq!(layout.total_bytes() as u64, u64::from(header.plen.get()), "the parts add up to PLEN");
            assert_eq!(layout.hlen_bytes, usize::from(header.hlen));
            let limit = rules.max_data_bytes.max(rules.max_in_capsule_bytes);
            assert!(layout.data_bytes <= limit as usize, "more data than any limit: {layout:?}");
            assert!(layout.data_offset_bytes() <= layout.total_bytes());
        }
        Err(error) => {
            let term = TermPdu::new(rules.role, *error, bytes);
            let back = PduHeader::ref_from_prefix(term.bytes()).expect("a TermReq has a header").0;
            let peer = if rules.role == Role::Host { Role::Controller } else { Role::Host };
            let accepted =
                back.check(&RxRules { role: peer, ..rules }).expect("our own TermReq is well formed");
            assert_eq!(accepted.total_bytes(), term.bytes().len());
        }
    }
    let request = IcReq::ref_from_prefix(bytes).ok().map(|(r, _)| (error(r.check()), r.max_r2t() > 0));
    let response = IcResp::ref_from_prefix(bytes)
        .ok()
        .map(|(r, _)| error(r.check(DigestFlags::HEADER | DigestFlags::DATA)));
    let layout = verdict.map(|l| (l.kind.get(), l.pad_bytes > 0, l.data_bytes > 0));
    Shape::of((pick, layout.map_err(|e| error(Err(e))), request, response))
}

fn error(result: Result<(), PduError>) -> Option<(u16, u32)> {
    let error = result.err()?;
    // A received digest is any number; all of them are one kind of error.
    let information = if matches!(error, PduError::HeaderDigest { .. }) { 0 } else { error.fei() };
    Some((error.fes().get(), information))
}

/// Submission entries and Connect data.
pub(super) const COMMAND: Target = Target {
    name: "command",
    about: "SQEs, Fabrics commands, SGL descriptors, Connect data: parsing is total, and names come back as given",
    run: command,
    seeds: || {
        let data = ConnectData::new(
            nvme::HostId([7; 16]),
            nvme::Cntlid::DYNAMIC,
            &Nqn::discovery(),
            &Nqn::from_uuid([1; 16]),
        );
        let connect = nvme::fabrics::ConnectSqe::new(nvme::Qid::ADMIN, 32, 15_000).to_sqe();
        let property = nvme::fabrics::PropertySqe::get(nvme::property::PropertyOffset::CAP).to_sqe();
        [connect, property].iter().map(|sqe| [sqe.as_bytes(), data.as_bytes()].concat()).collect()
    },
};

fn command(bytes: &[u8]) -> Shape {
    let Ok((sqe, rest)) = Sqe::ref_from_prefix(bytes) else { return Shape::of("short") };
    let _ = format!("{sqe:?}");
    let fabrics = FabricsSqe::of(sqe).map(|command| match command {
        FabricsSqe::Connect(c) => ("connect", Some(c.sqsize_z.get() == 0)),
        FabricsSqe::PropertyGet(_) => ("get", None),
        FabricsSqe::PropertySet(_) => ("set", None),
        FabricsSqe::Disconnect(_) => ("disconnect", None),
        FabricsSqe::AuthenticationSend(_) => ("send", None),
        FabricsSqe::AuthenticationReceive(_) => ("receive", None),
        FabricsSqe::Unknown(_) => ("unknown", None),
    });
    let descriptor = sqe.sgl1();
    let sgl = descriptor.parse().map(|sgl| std::mem::discriminant(&sgl)).map_err(|_| "refused");
    let names = ConnectData::ref_from_prefix(rest)
        .ok()
        .map(|(data, _)| (name(data.subnqn().map_err(drop)), name(data.hostnqn().map_err(drop))));
    Shape::of((fabrics, sgl, names))
}

/// What was accepted comes back from its own field as it was.
fn name(parsed: Result<Nqn, ()>) -> Option<(bool, bool)> {
    let nqn = parsed.ok()?;
    assert!(!nqn.as_str().is_empty() && nqn.as_str().len() <= nvme::nqn::NQN_MAX_LEN_BYTES);
    assert_eq!(Nqn::from_field(&nqn.to_field()).as_ref(), Ok(&nqn));
    assert_eq!(Nqn::parse(nqn.as_str()).is_ok(), nqn.is_well_formed());
    Some((nqn.is_well_formed(), nqn.is_discovery()))
}
