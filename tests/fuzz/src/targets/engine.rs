//! The NVMe/TCP engine in both roles: a stream of PDUs as a peer may send it.
//!
//! Each input is received twice, once as a whole and once cut into pieces. What the engine makes of it may not
//! depend on where the network cut it: commands, payloads, verdicts on digests, and the error that ends it.

use super::stream::{flags, pdu, with_data};
use crate::{Shape, Target};
use nvme::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, H2cData, IcReq, IcResp, PduFlags, PduType, R2t, Role, crc32c,
};
use nvme::{Cid, Cqe, Sqe, Status};
use nvmf::tcp::{Data, Engine, Event, Local, TxQueue};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of input before the stream: which digests we offer, and how the second reading is cut.
const SETTINGS: usize = 2;
/// Header bytes that may wait to be sent. The engine itself queues an ICResp and a TermReq.
const TX_BYTES: usize = 1024;
/// The longest that may come out of it: ICResp or ICReq, and the largest TermReq.
const MAX_ANSWER: u64 = 128 + 152;

/// A host at our controller side.
pub(super) const CONTROLLER: Target = Target {
    name: "controller",
    about: "the engine as controller: a cut stream means the same as a whole one, and answers are bounded",
    run: |bytes| both_readings(Role::Controller, bytes),
    seeds: || [0, 1, 2, 3].iter().map(|digests| host_stream(*digests)).collect(),
};

/// A controller at our host side.
pub(super) const HOST: Target = Target {
    name: "host",
    about: "the engine as host: a cut stream means the same as a whole one, and answers are bounded",
    run: |bytes| both_readings(Role::Host, bytes),
    seeds: || [0, 1, 2, 3].iter().map(|digests| controller_stream(*digests)).collect(),
};

fn both_readings(role: Role, bytes: &[u8]) -> Shape {
    let Some((settings, stream)) = bytes.split_at_checked(SETTINGS) else { return Shape::of("short") };
    let whole = read(role, settings[0], stream, stream.len().max(1));
    let cut = read(role, settings[0], stream, usize::from(settings[1]) + 1);
    assert_eq!(whole, cut, "what a stream means depends on where it is cut");
    let steps: Vec<_> = whole.iter().map(Step::kind).collect();
    Shape::of(&steps[..steps.len().min(6)])
}

/// What the engine made of a part of the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Initialized(String),
    /// A PDU without payload, as the engine reports it.
    Pdu(String),
    /// A PDU with payload: how it was reported, the payload's checksum, and whether its digest was good.
    Payload(String, u32, u32, bool),
    Error(u16, u32),
}

impl Step {
    fn kind(&self) -> (u8, String) {
        match self {
            Self::Initialized(_) => (0, String::new()),
            Self::Pdu(text) => (1, text.chars().take_while(|c| c.is_alphanumeric()).collect()),
            Self::Payload(text, _, _, good) => (2 + u8::from(*good), text.chars().take(6).collect()),
            Self::Error(fes, _) => (4, fes.to_string()),
        }
    }
}

/// A payload that was announced and is coming in pieces.
struct Coming {
    what: String,
    len_bytes: u32,
    bytes: Vec<u8>,
}

fn read(role: Role, digests: u8, stream: &[u8], piece: usize) -> Vec<Step> {
    let mut local = if role == Role::Host { Local::host() } else { Local::controller(64 << 10) };
    (local.header_digest, local.data_digest) = (digests & 1 != 0, digests & 2 != 0);
    let mut engine = Engine::new(local);
    let mut tx = TxQueue::new(TX_BYTES, 8, 16);
    if role == Role::Host {
        engine.start(&mut tx);
    }
    let mut steps = Vec::new();
    let mut coming = None;
    'stream: for part in stream.chunks(piece) {
        let mut at = 0;
        loop {
            match engine.next(part, &mut at, &mut tx) {
                Ok(Some(event)) => step(event, &mut coming, &mut steps),
                Ok(None) => break,
                Err(error) => {
                    engine.fail(error, &mut tx);
                    steps.push(Step::Error(error.fes().get(), error.fei()));
                    break 'stream;
                }
            }
        }
        assert_eq!(at, part.len(), "what was received was used");
    }
    assert!(tx.unsent_bytes() <= MAX_ANSWER, "an answer of {} bytes", tx.unsent_bytes());
    steps
}

fn step(event: Event<'_>, coming: &mut Option<Coming>, steps: &mut Vec<Step>) {
    let (what, data) = match event {
        Event::Initialized(agreed) => return steps.push(Step::Initialized(format!("{agreed:?}"))),
        Event::Response(cqe) => return steps.push(Step::Pdu(format!("Response {cqe:?}"))),
        Event::R2t { cccid, span } => return steps.push(Step::Pdu(format!("R2t {cccid} {span:?}"))),
        Event::Terminated(t) => return steps.push(Step::Pdu(format!("Terminated {t:?}"))),
        Event::Piece(piece) => {
            let coming = coming.as_mut().expect("a piece belongs to an announced payload");
            coming.bytes.extend_from_slice(piece);
            assert!(coming.bytes.len() <= coming.len_bytes as usize, "more pieces than announced");
            return;
        }
        Event::PayloadEnd { digest } => {
            let whole = coming.take().expect("the end belongs to an announced payload");
            assert_eq!(whole.bytes.len(), whole.len_bytes as usize, "all of it came");
            let checksum = crc32c(&whole.bytes);
            let good = digest.is_none_or(|digest| digest == checksum);
            return steps.push(Step::Payload(whole.what, whole.len_bytes, checksum, good));
        }
        Event::Command(sqe, data) => (format!("Command {:02x?}", sqe.as_bytes()), data),
        Event::H2cData { cccid, span, data } => (format!("H2cData {cccid} {span:?}"), data),
        Event::C2hData { cccid, span, success, data } => {
            (format!("C2hData {cccid} {span:?} {success}"), data)
        }
    };
    assert!(coming.is_none(), "a new PDU while a payload is open");
    let Data { len_bytes, here, intact } = data;
    match here {
        _ if len_bytes == 0 => steps.push(Step::Pdu(what)),
        Some(bytes) => {
            assert_eq!(bytes.len(), len_bytes as usize);
            steps.push(Step::Payload(what, len_bytes, crc32c(bytes), intact));
        }
        None => *coming = Some(Coming { what, len_bytes, bytes: Vec::new() }),
    }
}

/// What a host sends: ICReq, a command with data, one without, H2CData.
fn host_stream(digests: u8) -> Vec<u8> {
    let data = [0x5a; 600];
    let mut stream = vec![digests, 6];
    stream.extend(IcReq::new(0, flags(digests), 1).as_bytes());
    let mut sqe = Sqe::new_zeroed();
    sqe.opcode = 1;
    let command = CapsuleCmd { header: with_data(PduType::CAPSULE_CMD, digests, &data), sqe };
    stream.extend(pdu(command.as_bytes(), digests, &data));
    stream.extend(pdu(CapsuleCmd::new(sqe, digests & 1 != 0).as_bytes(), digests, &[]));
    let mut more = H2cData::new_zeroed();
    more.header = with_data(PduType::H2C_DATA, digests, &data);
    more.header.flags |= PduFlags::LAST_PDU;
    more.datal.set(data.len() as u32);
    stream.extend(pdu(more.as_bytes(), digests, &data));
    stream
}

/// What a controller sends: ICResp, data, an R2T, a response.
fn controller_stream(digests: u8) -> Vec<u8> {
    let data = [0xa5; 600];
    let mut stream = vec![digests, 6];
    stream.extend(IcResp::new(0, flags(digests), 8192).as_bytes());
    let mut more = C2hData::new_zeroed();
    more.header = with_data(PduType::C2H_DATA, digests, &data);
    more.header.flags |= PduFlags::LAST_PDU;
    more.datal.set(data.len() as u32);
    stream.extend(pdu(more.as_bytes(), digests, &data));
    stream.extend(pdu(R2t::new(3, 1, 0, 4096, digests & 1 != 0).as_bytes(), digests, &[]));
    let cqe = Cqe::new(Cid(3), Status::SUCCESS, 0);
    stream.extend(pdu(CapsuleResp::new(cqe, digests & 1 != 0).as_bytes(), digests, &[]));
    stream
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fuzzing starts from streams that get all the way through, or it only ever fuzzes the first header.
    #[test]
    fn the_seeds_are_accepted_to_the_end() {
        for digests in 0..4 {
            for (role, seed) in
                [(Role::Controller, host_stream(digests)), (Role::Host, controller_stream(digests))]
            {
                let steps = read(role, digests, &seed[SETTINGS..], 1 << 20);
                assert_eq!(steps.len(), 4, "{role:?} {digests}: {steps:?}");
                assert!(
                    !steps.iter().any(|s| matches!(s, Step::Error(..) | Step::Payload(_, _, _, false))),
                    "{steps:?}"
                );
            }
        }
    }
}
