//! PDUs as bytes.

use nvme::Cqe;
use nvme::tcp::{C2hData, CapsuleResp, PduFlags, PduHeader, PduType, R2t, crc32c};

/// Digests in use on a connection.
#[derive(Clone, Copy, Default)]
pub(super) struct Digests {
    pub(super) header: bool,
    pub(super) data: bool,
}

/// Header (as in the struct) and data, with the digests in use.
pub(super) fn assemble(digests: Digests, header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    if digests.header {
        bytes.extend(crc32c(header).to_le_bytes());
    }
    bytes.extend(data);
    if digests.data && !data.is_empty() {
        bytes.extend(crc32c(data).to_le_bytes());
    }
    bytes
}

pub(super) fn response(digests: Digests, cqe: Cqe) -> Vec<u8> {
    assemble(digests, CapsuleResp::new(cqe, digests.header).wire(), &[])
}

pub(super) fn r2t(digests: Digests, cid: u16, ttag: u16, offset: u32, len: u32) -> Vec<u8> {
    assemble(digests, R2t::new(cid, ttag, offset, len, digests.header).wire(), &[])
}

pub(super) fn c2h(digests: Digests, cid: u16, offset: u32, data: &[u8], flags: PduFlags) -> Vec<u8> {
    let mut header =
        PduHeader::with_data(PduType::C2H_DATA, digests.header, digests.data, 4, data.len() as u32);
    header.flags |= flags;
    let pdu = C2hData {
        header,
        cccid: cid.into(),
        reserved10: [0; 2],
        datao: offset.into(),
        datal: (data.len() as u32).into(),
        reserved20: [0; 4],
    };
    assemble(digests, pdu.wire(), data)
}
