//! Streams of NVMe/TCP PDUs: writing well-formed ones, and reading what came out.

use nvme::Sqe;
use nvme::tcp::{CapsuleCmd, DigestFlags, IcReq, PduError, PduHeader, PduType, crc32c};
use nvmf::tcp::{Engine, Event, Local, TxQueue};
use zerocopy::IntoBytes;

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Host,
    Controller,
}

/// Reads a stream to its end or to its first error, and shows each event. Digests are whatever the stream
/// itself agrees on.
pub(super) fn read(side: Side, stream: &[u8], mut each: impl FnMut(&Event<'_>)) -> Result<(), PduError> {
    let mut local = if side == Side::Host { Local::host() } else { Local::controller(128 << 10) };
    (local.header_digest, local.data_digest) = (true, true);
    let mut engine = Engine::new(local);
    let mut tx = TxQueue::new(1024, 8, 16);
    let mut at = 0;
    while let Some(event) = engine.next(stream, &mut at, &mut tx)? {
        each(&event);
    }
    Ok(())
}

/// Digest flags from two bits.
pub(super) fn flags(digests: u8) -> DigestFlags {
    DigestFlags::NONE
        .with_if(DigestFlags::HEADER, digests & 1 != 0)
        .with_if(DigestFlags::DATA, digests & 2 != 0)
}

/// The request that opens a connection.
pub(super) fn ic_req(digests: u8) -> Vec<u8> {
    IcReq::new(0, flags(digests), 1).as_bytes().to_vec()
}

/// A command capsule, with data in it or without.
pub(super) fn command(sqe: Sqe, digests: u8, data: &[u8]) -> Vec<u8> {
    let header = match data {
        [] => PduHeader::without_data(PduType::CAPSULE_CMD, digests & 1 != 0),
        _ => with_data(PduType::CAPSULE_CMD, digests, data),
    };
    pdu(CapsuleCmd { header, sqe }.as_bytes(), digests, data)
}

/// A common header for a PDU with data.
pub(super) fn with_data(kind: PduType, digests: u8, data: &[u8]) -> PduHeader {
    PduHeader::with_data(kind, digests & 1 != 0, digests & 2 != 0, 4, data.len() as u32)
}

/// A PDU with its digests: `head` is the header as its type has it, data offset and length already in it.
pub(super) fn pdu(head: &[u8], digests: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = head.to_vec();
    if digests & 1 != 0 {
        bytes.extend_from_slice(&crc32c(head).to_le_bytes());
    }
    if !data.is_empty() {
        bytes.resize(usize::from(head[3]), 0);
        bytes.extend_from_slice(data);
        if digests & 2 != 0 {
            bytes.extend_from_slice(&crc32c(data).to_le_bytes());
        }
    }
    bytes
}
