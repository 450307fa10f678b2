//! SGL descriptors (NVMe Base 2.0, section 4.1.2; TCP Transport 1.0).

use core::fmt;

use zerocopy::little_endian::{U32, U64};

use crate::Status;

open_codes! {
    /// SGL descriptor types (identifier bits 7:4).
    SglType(u8 => u8) {
        DATA_BLOCK = 0x0, "SGL Data Block";
        BIT_BUCKET = 0x1, "SGL Bit Bucket";
        SEGMENT = 0x2, "SGL Segment";
        LAST_SEGMENT = 0x3, "SGL Last Segment";
        KEYED_DATA_BLOCK = 0x4, "Keyed SGL Data Block";
        TRANSPORT_DATA_BLOCK = 0x5, "Transport SGL Data Block";
        VENDOR = 0xf, "Vendor specific";
    }
}

open_codes! {
    /// SGL descriptor sub types (identifier bits 3:0).
    SglSubType(u8 => u8) {
        ADDRESS = 0x0, "Address";
        OFFSET = 0x1, "Offset";
        TRANSPORT = 0xa, "NVMe Transport specific";
        INVALIDATE_KEY = 0xf, "Invalidate Key";
    }
}

wire_struct! {
    /// One SGL descriptor: 16 bytes.
    SglDescriptor, 16, {
        /// Address, or offset within the capsule; reserved in a transport data block.
        address: U64,
        /// Length in bytes. In a keyed descriptor only the low 24 bits, the key follows.
        length: U32,
        /// Reserved; in a keyed descriptor key bits 31:8.
        reserved: [u8; 3],
        /// Type in bits 7:4, sub type in bits 3:0.
        identifier: u8,
    }
}

/// What a descriptor says, checked for a type and sub type that exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sgl {
    /// Data at a host address.
    Data {
        /// Host address.
        address: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
    /// Data inside the command capsule, `offset_bytes` after the SQE (plus ICDOFF).
    InCapsule {
        /// Offset in bytes from the start of in-capsule data.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
    /// The controller drops this many bytes of a read.
    BitBucket {
        /// Length in bytes.
        len_bytes: u32,
    },
    /// More descriptors, the last of which is a segment or last segment descriptor.
    Segment {
        /// Host address (or capsule offset) of the segment.
        address: u64,
        /// Length of the segment in bytes (a multiple of 16).
        len_bytes: u32,
        /// The address is an offset in the capsule.
        in_capsule: bool,
        /// This is the last segment.
        last: bool,
    },
    /// Data behind a remote key (RDMA).
    Keyed {
        /// Remote address.
        address: u64,
        /// Length in bytes (24 bits).
        len_bytes: u32,
        /// Remote key.
        key: u32,
        /// Invalidate the key with the response.
        invalidate: bool,
    },
    /// Data that the transport moves by itself (TCP: R2T/H2CData, C2HData).
    Transport {
        /// Length in bytes.
        len_bytes: u32,
    },
}

impl SglDescriptor {
    const fn build(address: u64, len_bytes: u32, kind: SglType, sub: SglSubType) -> Self {
        Self {
            address: U64::new(address),
            length: U32::new(len_bytes),
            reserved: [0; 3],
            identifier: kind.get() << 4 | sub.get() & 0xf,
        }
    }

    /// Data Block, sub type Address.
    pub const fn data(address: u64, len_bytes: u32) -> Self {
        Self::build(address, len_bytes, SglType::DATA_BLOCK, SglSubType::ADDRESS)
    }

    /// Data Block, sub type Offset: in-capsule data.
    pub const fn in_capsule(offset_bytes: u64, len_bytes: u32) -> Self {
        Self::build(offset_bytes, len_bytes, SglType::DATA_BLOCK, SglSubType::OFFSET)
    }

    /// Transport Data Block: the transport moves the data.
    pub const fn transport(len_bytes: u32) -> Self {
        Self::build(0, len_bytes, SglType::TRANSPORT_DATA_BLOCK, SglSubType::TRANSPORT)
    }

    /// Segment or Last Segment, sub type Address.
    pub const fn segment(address: u64, len_bytes: u32, last: bool) -> Self {
        let kind = if last { SglType::LAST_SEGMENT } else { SglType::SEGMENT };
        Self::build(address, len_bytes, kind, SglSubType::ADDRESS)
    }

    /// Keyed Data Block. `len_bytes` keeps its low 24 bits.
    pub const fn keyed(address: u64, len_bytes: u32, key: u32, invalidate: bool) -> Self {
        let sub = if invalidate { SglSubType::INVALIDATE_KEY } else { SglSubType::ADDRESS };
        let key = key.to_le_bytes();
        let mut built = Self::build(
            address,
            len_bytes & 0xff_ffff | (key[0] as u32) << 24,
            SglType::KEYED_DATA_BLOCK,
            sub,
        );
        built.reserved = [key[1], key[2], key[3]];
        built
    }

    /// From the 16 bytes of DPTR.
    pub fn from_wire(bytes: [u8; 16]) -> Self {
        *zerocopy::transmute_ref!(&bytes)
    }

    /// The 16 bytes for DPTR.
    pub fn to_wire(self) -> [u8; 16] {
        *zerocopy::transmute_ref!(&self)
    }

    /// Type.
    pub const fn kind(&self) -> SglType {
        SglType::new(self.identifier >> 4)
    }

    /// Sub type.
    pub const fn sub_type(&self) -> SglSubType {
        SglSubType::new(self.identifier & 0xf)
    }

    /// The descriptor's meaning.
    ///
    /// # Errors
    /// [`Status::SGL_TYPE_INVALID`] for a type or a combination with the sub type that does not exist.
    pub const fn parse(&self) -> Result<Sgl, Status> {
        let address = self.address.get();
        let len_bytes = self.length.get();
        Ok(match (self.identifier >> 4, self.identifier & 0xf) {
            (0x0, 0x0) => Sgl::Data { address, len_bytes },
            (0x0, 0x1) => Sgl::InCapsule { offset_bytes: address, len_bytes },
            (0x1, 0x0) => Sgl::BitBucket { len_bytes },
            (kind @ (0x2 | 0x3), sub @ (0x0 | 0x1)) => {
                Sgl::Segment { address, len_bytes, in_capsule: sub == 1, last: kind == 3 }
            }
            (0x4, sub @ (0x0 | 0xf)) => {
                let [a, b, c] = self.reserved;
                Sgl::Keyed {
                    address,
                    len_bytes: len_bytes & 0xff_ffff,
                    key: u32::from_le_bytes([(len_bytes >> 24) as u8, a, b, c]),
                    invalidate: sub == 0xf,
                }
            }
            (0x5, 0xa) => Sgl::Transport { len_bytes },
            _ => return Err(Status::SGL_TYPE_INVALID),
        })
    }
}

impl fmt::Debug for SglDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parse() {
            Ok(parsed) => parsed.fmt(f),
            Err(_) => write!(f, "SglDescriptor({:02x?})", self.wire()),
        }
    }
}
