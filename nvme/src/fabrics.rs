//! Fabrics commands and their data (NVMe Base 2.0, section 6), and the Connect rules of section 3.3.2.
//!
//! A Fabrics command is an SQE with opcode 7Fh, FCTYPE in byte 4, and its arguments from byte 40 on. The
//! structs here overlay the whole 64 bytes: [`FabricsSqe::of`] looks at an [`Sqe`] in place.

use zerocopy::little_endian::{U16, U32, U64};

use crate::Status;
use crate::command::{Cntlid, Qid, Sqe};
use crate::nqn::{HostId, NQN_FIELD_LEN_BYTES, Nqn};
use crate::property::PropertyOffset;

/// Opcode of every Fabrics command.
pub const FABRICS_OPCODE: u8 = 0x7f;

/// Smallest admin queue size, in entries, that a Connect may ask for (section 6.3: SQSIZE of 31 or more).
pub const ADMIN_QUEUE_MIN_ENTRIES: u16 = 32;

open_codes! {
    /// Fabrics Command Type. Bits 1:0 give the direction of data.
    Fctype(u8 => u8) {
        PROPERTY_SET = 0x00, "Property Set";
        CONNECT = 0x01, "Connect";
        PROPERTY_GET = 0x04, "Property Get";
        AUTHENTICATION_SEND = 0x05, "Authentication Send";
        AUTHENTICATION_RECEIVE = 0x06, "Authentication Receive";
        DISCONNECT = 0x08, "Disconnect";
    }
}

bit_set! {
    /// Connect Attributes (byte 46 of Connect).
    ConnectAttributes(u8 => u8) {
        DISABLE_SQ_FLOW_CONTROL = 1 << 2, "SQ flow control is disabled when the controller agrees";
        INDIVIDUAL_QUEUE_DELETION = 1 << 3, "Deletion of individual I/O queues is supported";
    }
}

wire_struct! {
    /// Connect command.
    ConnectSqe, 64, {
        /// 7Fh.
        opcode: u8,
        /// PSDT in bits 7:6; SGLs are the only choice.
        flags: u8,
        /// Command Identifier.
        cid: U16,
        /// 01h.
        fctype: u8,
        /// Reserved.
        reserved5: [u8; 19],
        /// The SGL descriptor of the 1,024 bytes of data.
        sgl1: [u8; 16],
        /// Record Format: 0.
        recfmt: U16,
        /// Queue that is created: 0 = admin.
        qid: U16,
        /// Submission queue size, zero-based.
        sqsize_z: U16,
        /// Attributes; priority class in bits 1:0.
        cattr: ConnectAttributes,
        /// Reserved.
        reserved47: u8,
        /// Keep Alive Timeout in milliseconds (admin queue only); 0 = none.
        kato_ms: U32,
        /// Reserved.
        reserved52: [u8; 12],
    }
}

impl ConnectSqe {
    /// A Connect for queue `qid` of `entries` (2 to 65,536) entries.
    pub fn new(qid: Qid, entries: u32, kato_ms: u32) -> Self {
        Self {
            opcode: FABRICS_OPCODE,
            flags: 1 << 6,
            fctype: Fctype::CONNECT.get(),
            qid: qid.0.into(),
            sqsize_z: (entries.wrapping_sub(1) as u16).into(),
            kato_ms: kato_ms.into(),
            ..Self::zeroed()
        }
    }

    /// Queue that is created.
    pub const fn qid(&self) -> Qid {
        Qid(self.qid.get())
    }

    /// Submission queue size in entries, 1 to 65,536.
    pub const fn entries(&self) -> u32 {
        self.sqsize_z.get() as u32 + 1
    }

    /// Priority class (CATTR bits 1:0): 0 = urgent, 1 = high, 2 = medium, 3 = low.
    pub const fn priority(&self) -> u8 {
        self.cattr.bits() & 3
    }

    /// As a generic SQE.
    pub fn to_sqe(self) -> Sqe {
        *zerocopy::transmute_ref!(&self)
    }
}

wire_struct! {
    /// Data of Connect: 1,024 bytes.
    ConnectData, 1024, {
        /// Host Identifier.
        hostid: [u8; 16],
        /// Controller asked for: [`Cntlid::DYNAMIC`], [`Cntlid::ANY_STATIC`] or, for I/O queues, the one that
        /// the admin queue's Connect returned.
        cntlid: U16,
        /// Reserved.
        reserved18: [u8; 238],
        /// NVM Subsystem NQN.
        subnqn: [u8; NQN_FIELD_LEN_BYTES],
        /// Host NQN.
        hostnqn: [u8; NQN_FIELD_LEN_BYTES],
        /// Reserved.
        reserved768: [u8; 256],
    }
}

impl ConnectData {
    /// Offset of HOSTID in bytes, for [`ConnectError`].
    pub const HOSTID_OFFSET: u16 = 0;
    /// Offset of CNTLID in bytes.
    pub const CNTLID_OFFSET: u16 = 16;
    /// Offset of SUBNQN in bytes.
    pub const SUBNQN_OFFSET: u16 = 256;
    /// Offset of HOSTNQN in bytes.
    pub const HOSTNQN_OFFSET: u16 = 512;

    /// What the host sends.
    pub fn new(hostid: HostId, cntlid: Cntlid, subnqn: &Nqn, hostnqn: &Nqn) -> Self {
        Self {
            hostid: hostid.0,
            cntlid: cntlid.0.into(),
            subnqn: subnqn.to_field(),
            hostnqn: hostnqn.to_field(),
            ..Self::zeroed()
        }
    }

    /// Host Identifier.
    pub const fn hostid(&self) -> HostId {
        HostId(self.hostid)
    }

    /// Controller asked for.
    pub const fn cntlid(&self) -> Cntlid {
        Cntlid(self.cntlid.get())
    }

    /// NVM Subsystem NQN.
    ///
    /// # Errors
    /// [`ConnectError`] that points at SUBNQN.
    pub fn subnqn(&self) -> Result<Nqn, ConnectError> {
        Nqn::from_field(&self.subnqn).map_err(|_| ConnectError::data(Self::SUBNQN_OFFSET))
    }

    /// Host NQN.
    ///
    /// # Errors
    /// [`ConnectError`] that points at HOSTNQN.
    pub fn hostnqn(&self) -> Result<Nqn, ConnectError> {
        Nqn::from_field(&self.hostnqn).map_err(|_| ConnectError::data(Self::HOSTNQN_OFFSET))
    }
}

/// Where a Connect has an invalid parameter: what DW0 of the response carries with Connect Invalid Parameters
/// (IPO in bytes 1:0, IATTR in byte 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectError {
    /// Invalid Parameter Offset in bytes.
    pub offset_bytes: u16,
    /// The offset counts from the start of the data, otherwise of the SQE.
    pub in_data: bool,
}

impl ConnectError {
    /// Offset of RECFMT in the SQE.
    pub const RECFMT_OFFSET: u16 = 40;
    /// Offset of QID in the SQE.
    pub const QID_OFFSET: u16 = 42;
    /// Offset of SQSIZE in the SQE.
    pub const SQSIZE_OFFSET: u16 = 44;
    /// Offset of CATTR in the SQE.
    pub const CATTR_OFFSET: u16 = 46;
    /// Offset of KATO in the SQE.
    pub const KATO_OFFSET: u16 = 48;

    /// An invalid field of the SQE.
    pub const fn sqe(offset_bytes: u16) -> Self {
        Self { offset_bytes, in_data: false }
    }

    /// An invalid field of the data.
    pub const fn data(offset_bytes: u16) -> Self {
        Self { offset_bytes, in_data: true }
    }

    /// The 64-bit result of the response, to go with [`Status::CONNECT_INVALID_PARAMETERS`].
    pub const fn result(self) -> u64 {
        self.offset_bytes as u64 | (self.in_data as u64) << 16
    }

    /// Reads the result of a response with [`Status::CONNECT_INVALID_PARAMETERS`].
    pub const fn from_result(result: u64) -> Self {
        Self { offset_bytes: result as u16, in_data: result & (1 << 16) != 0 }
    }

    /// The status that goes with it.
    pub const fn status(self) -> Status {
        Status::CONNECT_INVALID_PARAMETERS
    }
}

/// The result of a successful Connect (CNTLID in bytes 1:0, AUTHREQ in bytes 3:2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectResult(pub u32);

impl ConnectResult {
    /// No authentication is required.
    pub const fn new(cntlid: Cntlid) -> Self {
        Self(cntlid.0 as u32)
    }

    /// With the two authentication bits: in-band authentication required (ATR), and over a secure channel
    /// first (ASCR).
    pub const fn with_authentication(self, required: bool, secure_channel: bool) -> Self {
        Self(self.0 | (required as u32) << 17 | (secure_channel as u32) << 18)
    }

    /// Controller Identifier.
    pub const fn cntlid(self) -> Cntlid {
        Cntlid(self.0 as u16)
    }

    /// In-band authentication must follow before any other command.
    pub const fn authentication_required(self) -> bool {
        self.0 & (1 << 17) != 0
    }

    /// A secure channel must be established before authentication.
    pub const fn secure_channel_required(self) -> bool {
        self.0 & (1 << 18) != 0
    }
}

wire_struct! {
    /// Property Get and Property Set.
    PropertySqe, 64, {
        /// 7Fh.
        opcode: u8,
        /// PSDT in bits 7:6.
        flags: u8,
        /// Command Identifier.
        cid: U16,
        /// 04h for Get, 00h for Set.
        fctype: u8,
        /// Reserved.
        reserved5: [u8; 35],
        /// Bits 2:0: size of the property, 0 = 4 bytes, 1 = 8 bytes.
        attrib: u8,
        /// Reserved.
        reserved41: [u8; 3],
        /// Offset of the property.
        ofst: U32,
        /// Value (Set only); a 4-byte property uses the low half.
        value: U64,
        /// Reserved.
        reserved56: [u8; 8],
    }
}

impl PropertySqe {
    /// Property Get; the size follows from the property.
    pub fn get(property: PropertyOffset) -> Self {
        Self {
            opcode: FABRICS_OPCODE,
            flags: 1 << 6,
            fctype: Fctype::PROPERTY_GET.get(),
            attrib: (property.len_bytes() == Some(8)) as u8,
            ofst: property.get().into(),
            ..Self::zeroed()
        }
    }

    /// Property Set; the size follows from the property.
    pub fn set(property: PropertyOffset, value: u64) -> Self {
        Self { fctype: Fctype::PROPERTY_SET.get(), value: value.into(), ..Self::get(property) }
    }

    /// The property.
    pub const fn property(&self) -> PropertyOffset {
        PropertyOffset::new(self.ofst.get())
    }

    /// Size in bytes that the host states: 4 or 8, `None` when it is reserved.
    pub const fn len_bytes(&self) -> Option<u8> {
        match self.attrib & 7 {
            0 => Some(4),
            1 => Some(8),
            _ => None,
        }
    }

    /// As a generic SQE.
    pub fn to_sqe(self) -> Sqe {
        *zerocopy::transmute_ref!(&self)
    }
}

wire_struct! {
    /// Disconnect.
    DisconnectSqe, 64, {
        /// 7Fh.
        opcode: u8,
        /// PSDT in bits 7:6.
        flags: u8,
        /// Command Identifier.
        cid: U16,
        /// 08h.
        fctype: u8,
        /// Reserved.
        reserved5: [u8; 35],
        /// Record Format: 0.
        recfmt: U16,
        /// Reserved.
        reserved42: [u8; 22],
    }
}

impl DisconnectSqe {
    /// Deletes the I/O queue that it is sent on.
    pub fn new() -> Self {
        Self { opcode: FABRICS_OPCODE, flags: 1 << 6, fctype: Fctype::DISCONNECT.get(), ..Self::zeroed() }
    }

    /// As a generic SQE.
    pub fn to_sqe(self) -> Sqe {
        *zerocopy::transmute_ref!(&self)
    }
}

wire_struct! {
    /// Authentication Send and Authentication Receive.
    AuthenticationSqe, 64, {
        /// 7Fh.
        opcode: u8,
        /// PSDT in bits 7:6.
        flags: u8,
        /// Command Identifier.
        cid: U16,
        /// 05h for Send, 06h for Receive.
        fctype: u8,
        /// Reserved.
        reserved5: [u8; 19],
        /// The SGL descriptor of the message.
        sgl1: [u8; 16],
        /// Reserved.
        reserved40: u8,
        /// SP Specific 0.
        spsp0: u8,
        /// SP Specific 1.
        spsp1: u8,
        /// Security Protocol: E9h for NVMe in-band authentication.
        secp: u8,
        /// Transfer Length (Send) or Allocation Length (Receive) in bytes.
        length_bytes: U32,
        /// Reserved.
        reserved48: [u8; 16],
    }
}

impl AuthenticationSqe {
    /// Security Protocol of NVMe in-band authentication.
    pub const SECP_NVME: u8 = 0xe9;

    /// Authentication Send of `length_bytes`, or Receive of up to that many.
    pub fn new(send: bool, length_bytes: u32) -> Self {
        let fctype = if send { Fctype::AUTHENTICATION_SEND } else { Fctype::AUTHENTICATION_RECEIVE };
        Self {
            opcode: FABRICS_OPCODE,
            flags: 1 << 6,
            fctype: fctype.get(),
            spsp0: 1,
            spsp1: 1,
            secp: Self::SECP_NVME,
            length_bytes: length_bytes.into(),
            ..Self::zeroed()
        }
    }

    /// As a generic SQE.
    pub fn to_sqe(self) -> Sqe {
        *zerocopy::transmute_ref!(&self)
    }
}

/// A Fabrics command, looked at by its FCTYPE.
#[derive(Clone, Copy)]
pub enum FabricsSqe<'a> {
    /// Connect.
    Connect(&'a ConnectSqe),
    /// Property Get.
    PropertyGet(&'a PropertySqe),
    /// Property Set.
    PropertySet(&'a PropertySqe),
    /// Disconnect.
    Disconnect(&'a DisconnectSqe),
    /// Authentication Send.
    AuthenticationSend(&'a AuthenticationSqe),
    /// Authentication Receive.
    AuthenticationReceive(&'a AuthenticationSqe),
    /// A type that this crate does not know: answer Invalid Field in Command.
    Unknown(Fctype),
}

impl<'a> FabricsSqe<'a> {
    /// Looks at `sqe` in place; `None` when it is not a Fabrics command. Never panics.
    pub fn of(sqe: &'a Sqe) -> Option<Self> {
        if !sqe.is_fabrics() {
            return None;
        }
        let fctype = Fctype::new(sqe.nsid.get() as u8);
        Some(match fctype {
            Fctype::CONNECT => Self::Connect(zerocopy::transmute_ref!(sqe)),
            Fctype::PROPERTY_GET => Self::PropertyGet(zerocopy::transmute_ref!(sqe)),
            Fctype::PROPERTY_SET => Self::PropertySet(zerocopy::transmute_ref!(sqe)),
            Fctype::DISCONNECT => Self::Disconnect(zerocopy::transmute_ref!(sqe)),
            Fctype::AUTHENTICATION_SEND => Self::AuthenticationSend(zerocopy::transmute_ref!(sqe)),
            Fctype::AUTHENTICATION_RECEIVE => Self::AuthenticationReceive(zerocopy::transmute_ref!(sqe)),
            other => Self::Unknown(other),
        })
    }
}
