//! NVMe/TCP PDUs (NVMe/TCP Transport 1.0) and the checks that a receiver makes on a header.
//!
//! A PDU is: header of HLEN bytes, header digest if negotiated, padding up to PDO, data, data digest if
//! negotiated. [`PduHeader::check`] turns the 8 common bytes into a [`Layout`] that says where each part lies,
//! or into a [`PduError`] that knows which Fatal Error Status and Information a TermReq has to carry.
//!
//! Panic guarantee: no function here panics on any bytes. All sums are of numbers bounded by checks before.

use core::fmt;

use zerocopy::little_endian::{U16, U32};

use crate::command::{Cqe, Sqe};
pub use crate::digest::{DIGEST_LEN_BYTES, Digest, crc32c};

/// Length of the common header in bytes.
pub const COMMON_HEADER_LEN_BYTES: usize = 8;
/// Longest PDU header, without digest, in bytes (ICReq and ICResp).
pub const MAX_HEADER_LEN_BYTES: usize = 128;
/// Longest TermReq PDU in bytes: its header and 128 bytes of the PDU that was in error.
pub const MAX_TERM_LEN_BYTES: usize = 152;
/// Smallest MAXH2CDATA in bytes that a controller may state.
pub const MIN_MAXH2CDATA_BYTES: u32 = 4096;
/// Largest value of HPDA and CPDA: alignment to 32 dwords.
pub const MAX_PDA_Z: u8 = 31;
/// TCP port of discovery controllers by default.
pub const DISCOVERY_PORT: u16 = 8009;
/// TCP port assigned to NVMe over Fabrics.
pub const IO_PORT: u16 = 4420;

open_codes! {
    /// PDU types.
    PduType(u8 => u8) {
        IC_REQ = 0x00, "ICReq";
        IC_RESP = 0x01, "ICResp";
        H2C_TERM_REQ = 0x02, "H2CTermReq";
        C2H_TERM_REQ = 0x03, "C2HTermReq";
        CAPSULE_CMD = 0x04, "CapsuleCmd";
        CAPSULE_RESP = 0x05, "CapsuleResp";
        H2C_DATA = 0x06, "H2CData";
        C2H_DATA = 0x07, "C2HData";
        R2T = 0x09, "R2T";
    }
}

bit_set! {
    /// FLAGS of the common header.
    PduFlags(u8 => u8) {
        HDGSTF = 1 << 0, "A header digest follows the header";
        DDGSTF = 1 << 1, "A data digest follows the data";
        LAST_PDU = 1 << 2, "Last data PDU of the command (C2HData) or of the R2T (H2CData)";
        SUCCESS = 1 << 3, "C2HData: the command succeeded and no CapsuleResp follows";
    }
}

bit_set! {
    /// DGST of ICReq and ICResp.
    DigestFlags(u8 => u8) {
        HEADER = 1 << 0, "Header digest";
        DATA = 1 << 1, "Data digest";
    }
}

open_codes! {
    /// Fatal Error Status of a TermReq.
    Fes(u16 => U16) {
        INVALID_HEADER_FIELD = 0x01, "Invalid PDU Header Field";
        SEQUENCE_ERROR = 0x02, "PDU Sequence Error";
        HEADER_DIGEST_ERROR = 0x03, "Header Digest Error";
        OUT_OF_RANGE = 0x04, "Data Transfer Out of Range";
        LIMIT_EXCEEDED = 0x05, "Data Transfer Limit Exceeded (from the controller) or R2T Limit Exceeded (from the host)";
        UNSUPPORTED_PARAMETER = 0x06, "Unsupported Parameter";
    }
}

wire_struct! {
    /// Common header of every PDU: 8 bytes.
    #[derive(Debug)]
    PduHeader, 8, {
        /// PDU type.
        kind: PduType,
        /// Flags.
        flags: PduFlags,
        /// Header length in bytes, without digest.
        hlen: u8,
        /// PDU data offset in bytes from the start of the PDU; 0 without data.
        pdo: u8,
        /// PDU length in bytes, everything included.
        plen: U32,
    }
}

wire_struct! {
    /// Initialize Connection Request: 128 bytes.
    IcReq, 128, {
        /// Common header.
        header: PduHeader,
        /// PDU Format Version: 0.
        pfv: U16,
        /// Host PDU Data Alignment: dwords, zero-based; how the controller has to align data that it sends.
        hpda_z: u8,
        /// Digests that the host wants.
        dgst: DigestFlags,
        /// Maximum outstanding R2Ts per command, zero-based.
        maxr2t_z: U32,
        /// Reserved.
        reserved16: [u8; 112],
    }
}

wire_struct! {
    /// Initialize Connection Response: 128 bytes.
    IcResp, 128, {
        /// Common header.
        header: PduHeader,
        /// PDU Format Version: 0.
        pfv: U16,
        /// Controller PDU Data Alignment: dwords, zero-based; how the host has to align data that it sends.
        cpda_z: u8,
        /// Digests in use.
        dgst: DigestFlags,
        /// Most data in one H2CData PDU in bytes; at least 4,096, a multiple of 4.
        maxh2cdata: U32,
        /// Reserved.
        reserved16: [u8; 112],
    }
}

wire_struct! {
    /// Header of H2CTermReq and C2HTermReq: 24 bytes; up to 128 bytes of the PDU in
    /// error follow.
    TermReq, 24, {
        /// Common header.
        header: PduHeader,
        /// Fatal Error Status.
        fes: Fes,
        /// Fatal Error Information.
        fei: U32,
        /// Reserved.
        reserved14: [u8; 10],
    }
}

wire_struct! {
    /// Command capsule: 72 bytes, then possibly in-capsule data.
    #[derive(Debug)]
    CapsuleCmd, 72, {
        /// Common header.
        header: PduHeader,
        /// Submission queue entry.
        sqe: Sqe,
    }
}

wire_struct! {
    /// Response capsule: 24 bytes.
    #[derive(Debug)]
    CapsuleResp, 24, {
        /// Common header.
        header: PduHeader,
        /// Completion queue entry.
        cqe: Cqe,
    }
}

wire_struct! {
    /// Host to controller data: 24 bytes, then data.
    #[derive(Debug)]
    H2cData, 24, {
        /// Common header.
        header: PduHeader,
        /// Command Capsule CID.
        cccid: U16,
        /// Transfer Tag of the R2T.
        ttag: U16,
        /// Offset of this data within the command's data in bytes.
        datao: U32,
        /// Length of this data in bytes.
        datal: U32,
        /// Reserved.
        reserved20: [u8; 4],
    }
}

wire_struct! {
    /// Controller to host data: 24 bytes, then data.
    #[derive(Debug)]
    C2hData, 24, {
        /// Common header.
        header: PduHeader,
        /// Command Capsule CID.
        cccid: U16,
        /// Reserved.
        reserved10: [u8; 2],
        /// Offset of this data within the command's data in bytes.
        datao: U32,
        /// Length of this data in bytes.
        datal: U32,
        /// Reserved.
        reserved20: [u8; 4],
    }
}

wire_struct! {
    /// Ready to transfer: 24 bytes.
    #[derive(Debug)]
    R2t, 24, {
        /// Common header.
        header: PduHeader,
        /// Command Capsule CID.
        cccid: U16,
        /// Transfer Tag that the H2CData has to carry.
        ttag: U16,
        /// Offset within the command's data in bytes.
        r2to: U32,
        /// Length that is asked for in bytes.
        r2tl: U32,
        /// Reserved.
        reserved20: [u8; 4],
    }
}

/// Who receives the PDU that is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The host: gets ICResp, C2HTermReq, CapsuleResp, C2HData, R2T.
    Host,
    /// The controller: gets ICReq, H2CTermReq, CapsuleCmd, H2CData.
    Controller,
}

/// What the two sides agreed on, as far as the receiver has to check it.
#[derive(Clone, Copy, Debug)]
pub struct RxRules {
    /// The receiver.
    pub role: Role,
    /// Header digests are in use.
    pub header_digest: bool,
    /// Data digests are in use.
    pub data_digest: bool,
    /// Alignment in bytes (4 to 128) that the receiver asked for in its HPDA or CPDA.
    pub data_align_bytes: u32,
    /// Most in-capsule data in bytes (controller); 0 = none allowed.
    pub max_in_capsule_bytes: u32,
    /// Most data in one H2CData (MAXH2CDATA) or C2HData in bytes.
    pub max_data_bytes: u32,
}

impl RxRules {
    /// What holds until ICReq and ICResp are exchanged: no digests, alignment of 4 bytes, no data.
    pub const fn before_init(role: Role) -> Self {
        Self {
            role,
            header_digest: false,
            data_digest: false,
            data_align_bytes: 4,
            max_in_capsule_bytes: 0,
            max_data_bytes: 0,
        }
    }
}

/// Where the parts of a PDU lie. The sum of all parts is PLEN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Type, known to be one that this receiver may get.
    pub kind: PduType,
    /// Length of the header in bytes.
    pub hlen_bytes: usize,
    /// A digest of 4 bytes follows the header.
    pub header_digest: bool,
    /// Padding between header (or its digest) and data in bytes.
    pub pad_bytes: usize,
    /// Length of the data in bytes.
    pub data_bytes: usize,
    /// A digest of 4 bytes follows the data.
    pub data_digest: bool,
}

impl Layout {
    /// Header and header digest in bytes.
    pub const fn header_bytes(&self) -> usize {
        self.hlen_bytes + if self.header_digest { DIGEST_LEN_BYTES } else { 0 }
    }

    /// Offset of the data in bytes (where it would be, when there is none).
    pub const fn data_offset_bytes(&self) -> usize {
        self.header_bytes() + self.pad_bytes
    }

    /// The whole PDU in bytes.
    pub const fn total_bytes(&self) -> usize {
        self.data_offset_bytes() + self.data_bytes + if self.data_digest { DIGEST_LEN_BYTES } else { 0 }
    }
}

/// Why a PDU is a fatal transport error. [`PduError::fes`] and [`PduError::fei`] are what the
/// TermReq carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PduError {
    /// A header field has a value that is not allowed, at this offset in bytes from the start of the PDU.
    Field {
        /// Offset of the field.
        offset_bytes: u8,
    },
    /// A PDU that is not allowed in this state (a second ICReq, a command before ICReq, ...).
    Sequence,
    /// The header digest is wrong.
    HeaderDigest {
        /// The digest that was received.
        received: u32,
    },
    /// Data outside of the command's data buffer or of the R2T.
    OutOfRange,
    /// More data than MAXH2CDATA, or more R2Ts than MAXR2T.
    LimitExceeded,
    /// A parameter that is not supported, at this offset in bytes.
    Unsupported {
        /// Offset of the parameter.
        offset_bytes: u8,
    },
}

impl PduError {
    /// PDU type unknown or not for this receiver.
    pub const TYPE: Self = Self::Field { offset_bytes: 0 };
    /// Flags that were not negotiated, or are missing.
    pub const FLAGS: Self = Self::Field { offset_bytes: 1 };
    /// Header length is not that of the type.
    pub const HLEN: Self = Self::Field { offset_bytes: 2 };
    /// Data offset inside the header, not aligned, or beyond the end.
    pub const PDO: Self = Self::Field { offset_bytes: 3 };
    /// Length does not fit the type or the limits.
    pub const PLEN: Self = Self::Field { offset_bytes: 4 };
    /// Command identifier of a data PDU or R2T that names no command that waits for it.
    pub const CCCID: Self = Self::Field { offset_bytes: 8 };
    /// Transfer tag of an H2CData that names no R2T.
    pub const TTAG: Self = Self::Field { offset_bytes: 10 };
    /// Data offset field that is not what comes next.
    pub const DATAO: Self = Self::Field { offset_bytes: 12 };
    /// Data length field that contradicts PLEN.
    pub const DATAL: Self = Self::Field { offset_bytes: 16 };

    /// Fatal Error Status.
    pub const fn fes(self) -> Fes {
        match self {
            Self::Field { .. } => Fes::INVALID_HEADER_FIELD,
            Self::Sequence => Fes::SEQUENCE_ERROR,
            Self::HeaderDigest { .. } => Fes::HEADER_DIGEST_ERROR,
            Self::OutOfRange => Fes::OUT_OF_RANGE,
            Self::LimitExceeded => Fes::LIMIT_EXCEEDED,
            Self::Unsupported { .. } => Fes::UNSUPPORTED_PARAMETER,
        }
    }

    /// Fatal Error Information: the offset of the field, or the digest that was received, or 0.
    pub const fn fei(self) -> u32 {
        match self {
            Self::Field { offset_bytes } | Self::Unsupported { offset_bytes } => offset_bytes as u32,
            Self::HeaderDigest { received } => received,
            Self::Sequence | Self::OutOfRange | Self::LimitExceeded => 0,
        }
    }
}

impl fmt::Display for PduError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field { offset_bytes } => write!(f, "invalid PDU header field at byte {offset_bytes}"),
            Self::Unsupported { offset_bytes } => write!(f, "unsupported parameter at byte {offset_bytes}"),
            Self::HeaderDigest { received } => write!(f, "wrong header digest {received:#010x}"),
            Self::Sequence => f.write_str("PDU out of sequence"),
            Self::OutOfRange => f.write_str("data transfer out of range"),
            Self::LimitExceeded => f.write_str("data transfer or R2T limit exceeded"),
        }
    }
}

impl std::error::Error for PduError {}

impl PduType {
    /// HLEN of the type, or `None` for an unknown type.
    pub const fn hlen_bytes(self) -> Option<usize> {
        Some(match self.get() {
            0x00 | 0x01 => 128,
            0x02 | 0x03 | 0x05 | 0x06 | 0x07 | 0x09 => 24,
            0x04 => 72,
            _ => return None,
        })
    }

    /// Who receives the type, or `None` for an unknown type.
    pub const fn receiver(self) -> Option<Role> {
        Some(match self.get() {
            0x00 | 0x02 | 0x04 | 0x06 => Role::Controller,
            0x01 | 0x03 | 0x05 | 0x07 | 0x09 => Role::Host,
            _ => return None,
        })
    }

    /// ICReq, ICResp and the TermReqs never carry digests.
    const fn may_have_digest(self) -> bool {
        self.get() >= 0x04
    }
}

impl PduHeader {
    /// A header for `kind` without data; PLEN covers header and header digest.
    pub fn without_data(kind: PduType, header_digest: bool) -> Self {
        let hlen = kind.hlen_bytes().unwrap_or(COMMON_HEADER_LEN_BYTES);
        let digest_bytes = if header_digest { DIGEST_LEN_BYTES } else { 0 };
        Self {
            kind,
            flags: PduFlags::NONE.with_if(PduFlags::HDGSTF, header_digest),
            hlen: hlen as u8,
            pdo: 0,
            plen: ((hlen + digest_bytes) as u32).into(),
        }
    }

    /// A header for `kind` with data: PDO is aligned to `align_bytes` (4 to 128, a multiple of 4: what the
    /// receiver asked for), PLEN covers everything. Data of more than 4 GiB - 136 bytes does not fit a PDU.
    pub fn with_data(
        kind: PduType,
        header_digest: bool,
        data_digest: bool,
        align_bytes: u32,
        data_bytes: u32,
    ) -> Self {
        let mut header = Self::without_data(kind, header_digest);
        let pdo = align_up(header.plen.get(), align_bytes);
        let digest_bytes = if data_digest { DIGEST_LEN_BYTES as u32 } else { 0 };
        header.flags = header.flags.with_if(PduFlags::DDGSTF, data_digest);
        header.pdo = pdo as u8;
        header.plen.set(pdo.wrapping_add(data_bytes).wrapping_add(digest_bytes));
        header
    }

    /// Checks the 8 bytes against what was negotiated, before anything else of the PDU is looked at. Whether
    /// the type fits the state of the connection is for the caller to say.
    ///
    /// # Errors
    /// The fatal transport error, with which the connection is terminated.
    #[inline]
    pub fn check(&self, rules: &RxRules) -> Result<Layout, PduError> {
        let kind = self.kind;
        let (Some(hlen_bytes), Some(receiver)) = (kind.hlen_bytes(), kind.receiver()) else {
            return Err(PduError::TYPE);
        };
        if receiver != rules.role {
            return Err(PduError::TYPE);
        }
        if self.hlen as usize != hlen_bytes {
            return Err(PduError::HLEN);
        }
        let header_digest = rules.header_digest && kind.may_have_digest();
        if kind.may_have_digest() && self.flags.contains(PduFlags::HDGSTF) != header_digest {
            return Err(PduError::FLAGS);
        }
        let mut layout =
            Layout { kind, hlen_bytes, header_digest, pad_bytes: 0, data_bytes: 0, data_digest: false };
        let plen = self.plen.get() as usize;
        match kind {
            PduType::CAPSULE_CMD if plen == layout.header_bytes() => {}
            PduType::CAPSULE_CMD => {
                self.place_data(rules, &mut layout)?;
                if layout.data_bytes > rules.max_in_capsule_bytes as usize {
                    return Err(PduError::PLEN);
                }
            }
            PduType::H2C_DATA | PduType::C2H_DATA => {
                self.place_data(rules, &mut layout)?;
                if layout.data_bytes > rules.max_data_bytes as usize {
                    return Err(PduError::LimitExceeded);
                }
            }
            PduType::H2C_TERM_REQ | PduType::C2H_TERM_REQ => {
                if plen < hlen_bytes || plen > MAX_TERM_LEN_BYTES {
                    return Err(PduError::PLEN);
                }
                layout.data_bytes = plen - hlen_bytes;
            }
            _ if plen != layout.header_bytes() => return Err(PduError::PLEN),
            _ => {}
        }
        Ok(layout)
    }

    /// PDO, data and data digest of a PDU that has data.
    fn place_data(&self, rules: &RxRules, layout: &mut Layout) -> Result<(), PduError> {
        let (plen, pdo) = (self.plen.get() as usize, self.pdo as usize);
        let header_bytes = layout.header_bytes();
        if plen <= header_bytes {
            return Err(PduError::PLEN);
        }
        let align_bytes = rules.data_align_bytes.max(1) as usize;
        if pdo < header_bytes || pdo >= plen || !pdo.is_multiple_of(align_bytes) {
            return Err(PduError::PDO);
        }
        if self.flags.contains(PduFlags::DDGSTF) != rules.data_digest {
            return Err(PduError::FLAGS);
        }
        let digest_bytes = if rules.data_digest { DIGEST_LEN_BYTES } else { 0 };
        // pdo < plen above, so this can only fail where the digest takes all that is left.
        let data_bytes = (plen - pdo).checked_sub(digest_bytes).filter(|&len| len > 0);
        layout.data_bytes = data_bytes.ok_or(PduError::PLEN)?;
        layout.pad_bytes = pdo - header_bytes;
        layout.data_digest = rules.data_digest;
        Ok(())
    }
}

/// Rounds up to a multiple of `align_bytes`; 0 counts as 1.
const fn align_up(value: u32, align_bytes: u32) -> u32 {
    let align_bytes = if align_bytes == 0 { 1 } else { align_bytes };
    value.div_ceil(align_bytes) * align_bytes
}

/// HPDA or CPDA (dwords, zero-based) in bytes; `None` above 31.
pub const fn pda_bytes(pda_z: u8) -> Option<u32> {
    if pda_z > MAX_PDA_Z { None } else { Some((pda_z as u32 + 1) * 4) }
}

impl IcReq {
    /// A request with PFV 0. `max_r2t` is one-based (1 = one R2T at a time).
    pub fn new(hpda_z: u8, dgst: DigestFlags, max_r2t: u32) -> Self {
        Self {
            header: PduHeader::without_data(PduType::IC_REQ, false),
            hpda_z,
            dgst,
            maxr2t_z: max_r2t.saturating_sub(1).into(),
            ..Self::zeroed()
        }
    }

    /// What the controller has to check beyond the common header.
    ///
    /// # Errors
    /// PFV or HPDA out of range.
    pub fn check(&self) -> Result<(), PduError> {
        if self.pfv.get() != 0 {
            return Err(PduError::Unsupported { offset_bytes: 8 });
        }
        if self.hpda_z > MAX_PDA_Z {
            return Err(PduError::Field { offset_bytes: 10 });
        }
        Ok(())
    }

    /// Most R2Ts per command, one-based.
    pub const fn max_r2t(&self) -> u32 {
        self.maxr2t_z.get().saturating_add(1)
    }
}

impl IcResp {
    /// A response with PFV 0.
    pub fn new(cpda_z: u8, dgst: DigestFlags, maxh2cdata_bytes: u32) -> Self {
        Self {
            header: PduHeader::without_data(PduType::IC_RESP, false),
            cpda_z,
            dgst,
            maxh2cdata: maxh2cdata_bytes.into(),
            ..Self::zeroed()
        }
    }

    /// What the host has to check beyond the common header; `asked` are the digests of its ICReq.
    ///
    /// # Errors
    /// PFV, CPDA, MAXH2CDATA out of range, or a digest in use that was not asked for.
    pub fn check(&self, asked: DigestFlags) -> Result<(), PduError> {
        if self.pfv.get() != 0 {
            return Err(PduError::Unsupported { offset_bytes: 8 });
        }
        if self.cpda_z > MAX_PDA_Z {
            return Err(PduError::Field { offset_bytes: 10 });
        }
        if !asked.contains(self.dgst) {
            return Err(PduError::Field { offset_bytes: 11 });
        }
        if self.maxh2cdata.get() < MIN_MAXH2CDATA_BYTES {
            return Err(PduError::Field { offset_bytes: 12 });
        }
        Ok(())
    }

    /// Most data in one H2CData PDU in bytes. Controllers exist that state a number which is not a multiple of 4
    /// (65,535): it is rounded down, so that every PDU but the last carries whole dwords.
    pub const fn max_h2c_data_bytes(&self) -> u32 {
        self.maxh2cdata.get() & !3
    }
}

impl CapsuleResp {
    /// A response capsule.
    pub fn new(cqe: Cqe, header_digest: bool) -> Self {
        Self { header: PduHeader::without_data(PduType::CAPSULE_RESP, header_digest), cqe }
    }
}

impl CapsuleCmd {
    /// A command capsule without in-capsule data.
    pub fn new(sqe: Sqe, header_digest: bool) -> Self {
        Self { header: PduHeader::without_data(PduType::CAPSULE_CMD, header_digest), sqe }
    }
}

impl R2t {
    /// Asks for `r2tl_bytes` from `r2to_bytes` on.
    pub fn new(cccid: u16, ttag: u16, r2to_bytes: u32, r2tl_bytes: u32, header_digest: bool) -> Self {
        Self {
            header: PduHeader::without_data(PduType::R2T, header_digest),
            cccid: cccid.into(),
            ttag: ttag.into(),
            r2to: r2to_bytes.into(),
            r2tl: r2tl_bytes.into(),
            reserved20: [0; 4],
        }
    }
}

/// A whole H2CTermReq or C2HTermReq, ready to be sent.
#[derive(Clone, Copy)]
pub struct TermPdu {
    bytes: [u8; MAX_TERM_LEN_BYTES],
    len: usize,
}

impl TermPdu {
    /// The PDU that the receiver `role` of the PDU in error answers with. `in_error` are the header bytes of
    /// that PDU as far as they came; at most 128 are sent back.
    pub fn new(role: Role, error: PduError, in_error: &[u8]) -> Self {
        let kind = match role {
            Role::Host => PduType::H2C_TERM_REQ,
            Role::Controller => PduType::C2H_TERM_REQ,
        };
        let hlen = TermReq::LEN_BYTES;
        let echo = &in_error[..in_error.len().min(MAX_TERM_LEN_BYTES - hlen)];
        let len = hlen + echo.len();
        let mut header = TermReq {
            header: PduHeader::without_data(kind, false),
            fes: error.fes(),
            fei: error.fei().into(),
            ..TermReq::zeroed()
        };
        header.header.plen.set(len as u32);
        let mut bytes = [0; MAX_TERM_LEN_BYTES];
        bytes[..hlen].copy_from_slice(header.wire());
        bytes[hlen..len].copy_from_slice(echo);
        Self { bytes, len }
    }

    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
