//! Discovery log page (LID 70h; NVMe Base 2.0, section 5.16.1.23): a header of 1,024 bytes and as many entries
//! of 1,024 bytes as the header says.

use zerocopy::little_endian::{U16, U64};

use crate::command::Cntlid;
use crate::nqn::{NQN_FIELD_LEN_BYTES, Nqn, NqnError};
use crate::nvm::wire_list;
use crate::text::{ascii_field, ascii_text};

open_codes! {
    /// Transport Type.
    TransportType(u8 => u8) {
        RDMA = 1, "RDMA";
        FC = 2, "Fibre Channel";
        TCP = 3, "TCP";
        LOOP = 254, "Intra-host";
    }
}

open_codes! {
    /// Address Family.
    AddressFamily(u8 => u8) {
        NONE = 0, "none";
        IPV4 = 1, "IPv4";
        IPV6 = 2, "IPv6";
        INFINIBAND = 3, "InfiniBand";
        FC = 4, "Fibre Channel";
        LOOP = 254, "Intra-host";
    }
}

open_codes! {
    /// Subsystem Type.
    SubsystemType(u8 => u8) {
        REFERRAL = 1, "Referral to another discovery subsystem";
        NVM = 2, "NVM subsystem";
        CURRENT_DISCOVERY = 3, "This discovery subsystem";
    }
}

bit_set! {
    /// Transport Requirements; bits 1:0 say whether a secure channel is needed.
    TransportRequirements(u8 => u8) {
        SECURE_CHANNEL = 1, "Secure channel required (bits 1:0 = 01b)";
        NO_SECURE_CHANNEL = 2, "Secure channel not required (bits 1:0 = 10b)";
        NO_SQ_FLOW_CONTROL = 1 << 2, "SQ flow control can be disabled";
    }
}

bit_set! {
    /// Entry Flags.
    EntryFlags(u16 => U16) {
        DUPLICATE_INFORMATION = 1 << 0, "All ports of this subsystem return the same information";
        PERSISTENT_CONNECTION = 1 << 1, "Explicit persistent connections are supported";
        NO_CDC_CONNECTIVITY = 1 << 2, "No connectivity to the subsystem was found";
    }
}

open_codes! {
    /// Security Type of a TCP entry (TSAS byte 0; TCP Transport 1.0).
    TcpSecurity(u8 => u8) {
        NONE = 0, "no security";
        TLS_1_2 = 1, "TLS 1.2";
        TLS_1_3 = 2, "TLS 1.3";
    }
}

wire_struct! {
    /// Header of the page: 1,024 bytes.
    DiscoveryHeader, 1024, {
        /// Generation Counter: grows with every change of the page.
        genctr: U64,
        /// Number of Records.
        numrec: U64,
        /// Record Format: 0.
        recfmt: U16,
        /// Reserved.
        reserved18: [u8; 1006],
    }
}

wire_struct! {
    /// One entry: 1,024 bytes.
    DiscoveryEntry, 1024, {
        /// Transport Type.
        trtype: TransportType,
        /// Address Family.
        adrfam: AddressFamily,
        /// Subsystem Type.
        subtype: SubsystemType,
        /// Transport Requirements.
        treq: TransportRequirements,
        /// Port ID.
        portid: U16,
        /// Controller ID: FFFFh for the dynamic model.
        cntlid: U16,
        /// Admin Max SQ Size in entries (32 or more).
        asqsz: U16,
        /// Entry Flags.
        eflags: EntryFlags,
        /// Reserved.
        reserved12: [u8; 20],
        /// Transport Service Identifier: the port number in ASCII.
        trsvcid: [u8; 32],
        /// Reserved.
        reserved64: [u8; 192],
        /// NVM Subsystem NQN.
        subnqn: [u8; NQN_FIELD_LEN_BYTES],
        /// Transport Address in ASCII.
        traddr: [u8; 256],
        /// Transport Specific Address Subtype.
        tsas: [u8; 256],
    }
}

impl DiscoveryEntry {
    /// An entry for a subsystem behind TCP without TLS, dynamic controllers, `asqsz` 128.
    pub fn tcp(subtype: SubsystemType, subnqn: &Nqn, address: core::net::SocketAddr, portid: u16) -> Self {
        let adrfam = if address.is_ipv4() { AddressFamily::IPV4 } else { AddressFamily::IPV6 };
        Self {
            trtype: TransportType::TCP,
            adrfam,
            subtype,
            // Bits 1:0 stay 00b, "not specified": hosts take "not required" as an invitation to begin with TLS.
            treq: TransportRequirements::NO_SQ_FLOW_CONTROL,
            portid: portid.into(),
            cntlid: Cntlid::DYNAMIC.0.into(),
            asqsz: 128.into(),
            trsvcid: ascii_field(&address.port().to_string(), b' '),
            subnqn: subnqn.to_field(),
            traddr: ascii_field(&address.ip().to_string(), b' '),
            ..Self::zeroed()
        }
    }

    /// The transport address without padding.
    pub fn address(&self) -> String {
        ascii_text(&self.traddr)
    }

    /// The transport service identifier without padding.
    pub fn service(&self) -> String {
        ascii_text(&self.trsvcid)
    }

    /// The subsystem's NQN.
    ///
    /// # Errors
    /// The field is not an NQN.
    pub fn nqn(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.subnqn)
    }
}

/// The whole page.
pub fn build(genctr: u64, entries: &[DiscoveryEntry]) -> Vec<u8> {
    let header = DiscoveryHeader {
        genctr: genctr.into(),
        numrec: (entries.len() as u64).into(),
        ..DiscoveryHeader::zeroed()
    };
    let mut page = Vec::with_capacity(DiscoveryHeader::LEN_BYTES + size_of_val(entries));
    page.extend_from_slice(header.wire());
    for entry in entries {
        page.extend_from_slice(entry.wire());
    }
    page
}

/// Reads a page: its header, and its entries as far as they are whole. `None` when there is no whole header.
/// Never panics.
pub fn parse(page: &[u8]) -> Option<(&DiscoveryHeader, &[DiscoveryEntry])> {
    let header = DiscoveryHeader::view(page)?;
    let count = usize::try_from(header.numrec.get()).unwrap_or(usize::MAX);
    Some((header, wire_list(&page[DiscoveryHeader::LEN_BYTES..], count)))
}
