//! PDUs into a transmit list. Each function queues one PDU, or its header when data follows: then the caller adds
//! the data, the digest if [`Agreed::data_digest`], and calls [`TxQueue::finish`].

use nvme::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, DIGEST_LEN_BYTES, H2cData, PduFlags, PduHeader, PduType, R2t, crc32c,
};
use nvme::{Cqe, Sqe};

use super::engine::Agreed;
use super::transfer::DataSpan;
use super::txq::{TxQueue, TxTag};

/// Most header bytes of a PDU with data: PDO is at most this, given the largest alignment.
const MAX_PDO: usize = 128;

/// Header and trailer bytes that any one PDU takes at most in a [`TxQueue`]; a TermReq is the longest.
pub const MAX_PDU_OVERHEAD_BYTES: usize = 152;

/// Header and trailer bytes that the answer to one command takes at most: C2HData with digests, and a response.
pub const fn answer_overhead_bytes(agreed: &Agreed) -> usize {
    let head = (24 + DIGEST_LEN_BYTES).next_multiple_of(agreed.peer_align_bytes as usize);
    head + DIGEST_LEN_BYTES + 24 + DIGEST_LEN_BYTES
}

/// The same for one command until all that it queued was sent: an answer whose data was taken back keeps its
/// place in the [`TxQueue`], and the command may be answered without data after that.
pub const fn command_overhead_bytes(agreed: &Agreed) -> usize {
    answer_overhead_bytes(agreed) + 24 + DIGEST_LEN_BYTES
}

/// Queues the header bytes, their digest, and the padding up to PDO.
#[inline]
fn head(tx: &mut TxQueue, agreed: &Agreed, header: &[u8], pdo: usize) {
    if !agreed.header_digest && pdo <= header.len() {
        return tx.header(header);
    }
    let mut bytes = [0; MAX_PDO];
    let mut len = header.len();
    bytes[..len].copy_from_slice(header);
    if agreed.header_digest {
        bytes[len..len + DIGEST_LEN_BYTES].copy_from_slice(&crc32c(header).to_le_bytes());
        len += DIGEST_LEN_BYTES;
    }
    tx.header(&bytes[..len.max(pdo).min(MAX_PDO)]);
}

#[inline]
fn with_data(kind: PduType, agreed: &Agreed, len_bytes: u32) -> PduHeader {
    PduHeader::with_data(kind, agreed.header_digest, agreed.data_digest, agreed.peer_align_bytes, len_bytes)
}

/// Host: the header of a command capsule; `data_bytes` of in-capsule data follow (0 = none).
pub fn command(tx: &mut TxQueue, agreed: &Agreed, sqe: &Sqe, data_bytes: u32) {
    let header = if data_bytes == 0 {
        PduHeader::without_data(PduType::CAPSULE_CMD, agreed.header_digest)
    } else {
        with_data(PduType::CAPSULE_CMD, agreed, data_bytes)
    };
    let pdo = usize::from(header.pdo);
    head(tx, agreed, CapsuleCmd { header, sqe: *sqe }.wire(), pdo);
}

/// Controller: a response capsule, complete. It is never taken back.
#[inline]
pub fn response(tx: &mut TxQueue, agreed: &Agreed, cqe: Cqe, tag: TxTag) {
    head(tx, agreed, CapsuleResp::new(cqe, agreed.header_digest).wire(), 0);
    tx.finish_short(tag);
}

/// Controller: the response capsule behind a C2HData, with which it may be taken back.
#[inline]
pub fn response_after_data(tx: &mut TxQueue, agreed: &Agreed, cqe: Cqe, tag: TxTag) {
    head(tx, agreed, CapsuleResp::new(cqe, agreed.header_digest).wire(), 0);
    tx.finish(tag);
}

/// Controller: a request for data, complete.
pub fn r2t(tx: &mut TxQueue, agreed: &Agreed, cid: u16, span: DataSpan) {
    let pdu = R2t::new(cid, span.ttag, span.offset_bytes, span.len_bytes, agreed.header_digest);
    head(tx, agreed, pdu.wire(), 0);
    tx.finish(TxTag::NONE);
}

/// Host: the header of a data PDU; the data follows.
pub fn h2c_data(tx: &mut TxQueue, agreed: &Agreed, cid: u16, span: DataSpan) {
    let mut header = with_data(PduType::H2C_DATA, agreed, span.len_bytes);
    header.flags = header.flags.with_if(PduFlags::LAST_PDU, span.last);
    let pdo = usize::from(header.pdo);
    let pdu = H2cData {
        header,
        cccid: cid.into(),
        ttag: span.ttag.into(),
        datao: span.offset_bytes.into(),
        datal: span.len_bytes.into(),
        reserved20: [0; 4],
    };
    head(tx, agreed, pdu.wire(), pdo);
}

/// Controller: the header of a data PDU; the data follows. With `success` no response capsule follows.
#[inline]
pub fn c2h_data(tx: &mut TxQueue, agreed: &Agreed, cid: u16, span: DataSpan, success: bool) {
    let mut header = with_data(PduType::C2H_DATA, agreed, span.len_bytes);
    header.flags = header.flags.with_if(PduFlags::LAST_PDU, span.last).with_if(PduFlags::SUCCESS, success);
    let pdo = usize::from(header.pdo);
    let pdu = C2hData {
        header,
        cccid: cid.into(),
        reserved10: [0; 2],
        datao: span.offset_bytes.into(),
        datal: span.len_bytes.into(),
        reserved20: [0; 4],
    };
    head(tx, agreed, pdu.wire(), pdo);
}

/// The data digest of the payload just added.
pub fn data_digest(tx: &mut TxQueue, crc: u32) {
    tx.trailer(&crc.to_le_bytes());
}
