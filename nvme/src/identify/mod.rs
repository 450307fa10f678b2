//! Identify (NVMe Base 2.0, section 5.17): the command, and all that is not the controller's or the namespace's
//! own structure: lists, namespace descriptors, I/O command set vectors.
//!
//! - [`controller`]: CNS 01h, and 06h of the NVM command set.
//! - [`namespace`]: CNS 00h, 05h and 08h.
//!
//! Panic guarantee: parsing ([`IdList::iter`], [`descriptors`]) takes any bytes.

pub mod controller;
pub mod namespace;

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::command::{AdminOpcode, Cntlid, Nsid, Sqe};

pub use controller::{IdentifyController, NvmIdentifyController};
pub use namespace::{IdentifyNamespace, IndependentIdentifyNamespace, NvmIdentifyNamespace};

/// Every Identify data structure has 4,096 bytes.
pub const IDENTIFY_LEN_BYTES: usize = 4096;

open_codes! {
    /// Controller or Namespace Structure: which data Identify returns (figure 273).
    Cns(u8 => u8) {
        NAMESPACE = 0x00, "Identify Namespace";
        CONTROLLER = 0x01, "Identify Controller";
        ACTIVE_NAMESPACES = 0x02, "Active Namespace ID list";
        NAMESPACE_DESCRIPTORS = 0x03, "Namespace Identification Descriptor list";
        NVM_SETS = 0x04, "NVM Set List";
        CS_NAMESPACE = 0x05, "I/O Command Set specific Identify Namespace";
        CS_CONTROLLER = 0x06, "I/O Command Set specific Identify Controller";
        CS_ACTIVE_NAMESPACES = 0x07, "I/O Command Set specific Active Namespace ID list";
        INDEPENDENT_NAMESPACE = 0x08, "I/O Command Set Independent Identify Namespace";
        ALLOCATED_NAMESPACES = 0x10, "Allocated Namespace ID list";
        ALLOCATED_NAMESPACE = 0x11, "Identify Namespace of an allocated namespace";
        NAMESPACE_CONTROLLERS = 0x12, "Controllers attached to the namespace";
        CONTROLLERS = 0x13, "Controllers in the NVM subsystem";
        PRIMARY_CAPABILITIES = 0x14, "Primary Controller Capabilities";
        SECONDARY_CONTROLLERS = 0x15, "Secondary Controller list";
        NAMESPACE_GRANULARITY = 0x16, "Namespace Granularity List";
        UUIDS = 0x17, "UUID List";
        DOMAINS = 0x18, "Domain List";
        ENDURANCE_GROUPS = 0x19, "Endurance Group List";
        CS_ALLOCATED_NAMESPACES = 0x1a, "I/O Command Set specific Allocated Namespace ID list";
        CS_ALLOCATED_NAMESPACE = 0x1b, "I/O Command Set specific Identify Namespace of an allocated namespace";
        IO_COMMAND_SETS = 0x1c, "I/O Command Set data structure";
    }
}

open_codes! {
    /// I/O Command Set Identifier (figure 274).
    Csi(u8 => u8) {
        NVM = 0x00, "NVM Command Set";
        KEY_VALUE = 0x01, "Key Value Command Set";
        ZONED = 0x02, "Zoned Namespace Command Set";
    }
}

/// The arguments of Identify.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identify {
    /// Namespace, where CNS uses one.
    pub nsid: Nsid,
    /// What is asked for.
    pub cns: Cns,
    /// Controller Identifier, where CNS uses one.
    pub cntid: Cntlid,
    /// CNS Specific Identifier (CDW11 bits 15:0).
    pub cnssid: u16,
    /// I/O Command Set Identifier (CDW11 bits 31:24).
    pub csi: Csi,
    /// UUID Index (CDW14 bits 6:0).
    pub uuid_index: u8,
}

impl Identify {
    /// Asks for `cns` of `nsid`, everything else zero.
    pub const fn new(cns: Cns, nsid: Nsid) -> Self {
        Self { nsid, cns, cntid: Cntlid(0), cnssid: 0, csi: Csi::NVM, uuid_index: 0 }
    }

    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        Self {
            nsid: sqe.nsid(),
            cns: Cns::new(cdw10 as u8),
            cntid: Cntlid((cdw10 >> 16) as u16),
            cnssid: cdw11 as u16,
            csi: Csi::new((cdw11 >> 24) as u8),
            uuid_index: sqe.cdw14.get() as u8 & 0x7f,
        }
    }

    /// A whole SQE.
    pub fn sqe(&self) -> Sqe {
        let mut sqe = Sqe::admin(AdminOpcode::IDENTIFY, self.nsid);
        sqe.cdw10.set(self.cns.get() as u32 | (self.cntid.0 as u32) << 16);
        sqe.cdw11.set(self.cnssid as u32 | (self.csi.get() as u32) << 24);
        sqe.cdw14.set(self.uuid_index as u32 & 0x7f);
        sqe
    }
}

wire_struct! {
    /// A list of 1,024 namespace identifiers in increasing order, 0 from the end on (CNS 02h, 07h, 10h, 1Ah).
    IdList, 4096, {
        /// The identifiers.
        ids: [U32; 1024],
    }
}

impl IdList {
    /// The first 1,024 of `nsids` above `after`, which have to come in increasing order.
    pub fn build(after: Nsid, nsids: impl IntoIterator<Item = Nsid>) -> Self {
        let mut list = Self::zeroed();
        let above = nsids.into_iter().filter(|&nsid| nsid > after);
        for (slot, nsid) in list.ids.iter_mut().zip(above) {
            slot.set(nsid.0);
        }
        list
    }

    /// The identifiers up to the first zero.
    pub fn iter(&self) -> impl Iterator<Item = Nsid> + '_ {
        self.ids.iter().map(|id| Nsid(id.get())).take_while(|nsid| nsid.0 != 0)
    }

    /// No slot is left: there may be more above the last one.
    pub fn is_full(&self) -> bool {
        self.ids[1023].get() != 0
    }
}

wire_struct! {
    /// Controller list: how many, then up to 2,047 identifiers in increasing order (CNS 12h, 13h).
    ControllerList, 4096, {
        /// Number of identifiers.
        len: U16,
        /// The identifiers.
        ids: [U16; 2047],
    }
}

impl ControllerList {
    /// The first 2,047 of `cntlids` from `from` on, which have to come in increasing order.
    pub fn build(from: Cntlid, cntlids: impl IntoIterator<Item = Cntlid>) -> Self {
        let mut list = Self::zeroed();
        let mut len = 0;
        let wanted = cntlids.into_iter().filter(|&cntlid| cntlid >= from);
        for (slot, cntlid) in list.ids.iter_mut().zip(wanted) {
            slot.set(cntlid.0);
            len += 1;
        }
        list.len.set(len);
        list
    }

    /// The identifiers; a count beyond the list is cut.
    pub fn iter(&self) -> impl Iterator<Item = Cntlid> + '_ {
        self.ids.iter().take(self.len.get() as usize).map(|id| Cntlid(id.get()))
    }
}

wire_struct! {
    /// I/O Command Set data structure (CNS 1Ch): combinations that a host may choose.
    IoCommandSets, 4096, {
        /// Each is a bit vector of [`Csi`]; 0 from the end on.
        vectors: [U64; 512],
    }
}

impl IoCommandSets {
    /// One combination: the NVM command set alone.
    pub fn nvm() -> Self {
        let mut sets = Self::zeroed();
        sets.vectors[0].set(1 << Csi::NVM.get());
        sets
    }
}

open_codes! {
    /// Namespace Identifier Type (figure 277).
    Nidt(u8 => u8) {
        EUI64 = 0x01, "IEEE Extended Unique Identifier";
        NGUID = 0x02, "Namespace Globally Unique Identifier";
        UUID = 0x03, "Namespace UUID";
        CSI = 0x04, "Command Set Identifier";
    }
}

wire_struct! {
    /// Header of a Namespace Identification Descriptor; NIDL bytes follow (figure 277).
    #[derive(Debug)]
    DescriptorHeader, 4, {
        /// Type.
        nidt: Nidt,
        /// Length of the identifier in bytes.
        nidl: u8,
        /// Reserved.
        reserved2: [u8; 2],
    }
}

/// The identifiers of a namespace: what CNS 03h lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NamespaceIds {
    /// EUI-64, big-endian as IEEE writes it; zero = none.
    pub eui64: [u8; 8],
    /// NGUID, big-endian as IEEE writes it; zero = none.
    pub nguid: [u8; 16],
    /// UUID in RFC 4122 byte order; zero = none.
    pub uuid: [u8; 16],
    /// I/O command set; a controller of 2.0 always lists it.
    pub csi: Option<u8>,
}

impl NamespaceIds {
    /// The 4,096 bytes of CNS 03h.
    pub fn to_page(&self) -> [u8; IDENTIFY_LEN_BYTES] {
        let mut page = [0; IDENTIFY_LEN_BYTES];
        let mut at = 0;
        let mut add = |nidt: Nidt, id: &[u8]| {
            // Four descriptors take at most 57 bytes.
            page[at] = nidt.get();
            page[at + 1] = id.len() as u8;
            page[at + 4..at + 4 + id.len()].copy_from_slice(id);
            at += 4 + id.len();
        };
        if self.eui64 != [0; 8] {
            add(Nidt::EUI64, &self.eui64);
        }
        if self.nguid != [0; 16] {
            add(Nidt::NGUID, &self.nguid);
        }
        if self.uuid != [0; 16] {
            add(Nidt::UUID, &self.uuid);
        }
        if let Some(csi) = self.csi {
            add(Nidt::CSI, &[csi]);
        }
        page
    }

    /// What a page of CNS 03h says. Unknown types, and known types of another length, are passed over.
    pub fn from_page(page: &[u8]) -> Self {
        let mut ids = Self::default();
        for (nidt, id) in descriptors(page) {
            match (nidt, id) {
                (Nidt::EUI64, id) => copy_exact(&mut ids.eui64, id),
                (Nidt::NGUID, id) => copy_exact(&mut ids.nguid, id),
                (Nidt::UUID, id) => copy_exact(&mut ids.uuid, id),
                (Nidt::CSI, &[csi]) => ids.csi = Some(csi),
                _ => {}
            }
        }
        ids
    }
}

fn copy_exact(to: &mut [u8], from: &[u8]) {
    if to.len() == from.len() {
        to.copy_from_slice(from);
    }
}

/// The descriptors of a page of CNS 03h, up to the first of length 0 or that runs over the end. Never panics.
pub fn descriptors(mut page: &[u8]) -> impl Iterator<Item = (Nidt, &[u8])> {
    core::iter::from_fn(move || {
        let (header, rest) = DescriptorHeader::ref_from_prefix(page).ok()?;
        if header.nidl == 0 {
            return None;
        }
        let (id, rest) = rest.split_at_checked(header.nidl as usize)?;
        page = rest;
        Some((header.nidt, id))
    })
}
