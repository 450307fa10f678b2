//! Identify Namespace of the NVM command set (CNS 00h, 05h; NVM Command Set 1.0) and the
//! one independent of command sets (CNS 08h; NVMe Base 2.0).

use zerocopy::little_endian::{U16, U32, U64, U128};

bit_set! {
    /// Namespace Features (byte 24).
    Nsfeat(u8 => u8) {
        THIN = 1 << 0, "Thin provisioning";
        ATOMICITY = 1 << 1, "NAWUN, NAWUPF and NACWU are defined for this namespace";
        DEALLOCATED_ERROR = 1 << 2, "Deallocated or Unwritten Logical Block error";
        ID_NOT_REUSED = 1 << 3, "NGUID and EUI64 are never reused";
        OPTIMAL_PERFORMANCE = 1 << 4, "NPWG, NPWA, NPDG, NPDA and NOWS are defined";
    }
}

bit_set! {
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities (byte 30).
    Nmic(u8 => u8) {
        SHARED = 1 << 0, "The namespace may be attached to two or more controllers";
    }
}

bit_set! {
    /// Reservation Capabilities (byte 31).
    Rescap(u8 => u8) {
        PERSIST = 1 << 0, "Persist Through Power Loss";
        WRITE_EXCLUSIVE = 1 << 1, "Write Exclusive";
        EXCLUSIVE_ACCESS = 1 << 2, "Exclusive Access";
        WRITE_EXCLUSIVE_REGISTRANTS = 1 << 3, "Write Exclusive - Registrants Only";
        EXCLUSIVE_ACCESS_REGISTRANTS = 1 << 4, "Exclusive Access - Registrants Only";
        WRITE_EXCLUSIVE_ALL = 1 << 5, "Write Exclusive - All Registrants";
        EXCLUSIVE_ACCESS_ALL = 1 << 6, "Exclusive Access - All Registrants";
        IGNORE_EXISTING_KEY = 1 << 7, "Ignore Existing Key as defined by revision 1.3 and later";
    }
}

bit_set! {
    /// Deallocate Logical Block Features (byte 33); what reads return is in bits 2:0.
    Dlfeat(u8 => u8) {
        READS_ZERO = 0b001, "Deallocated blocks read as zeroes (bits 2:0 = 001b)";
        READS_ONES = 0b010, "Deallocated blocks read as FFh (bits 2:0 = 010b)";
        WRITE_ZEROES_DEALLOCATE = 1 << 3, "Write Zeroes takes the Deallocate bit";
        GUARD_CRC = 1 << 4, "The guard of deallocated blocks is their CRC";
    }
}

bit_set! {
    /// Namespace Attributes (byte 99).
    Nsattr(u8 => u8) {
        WRITE_PROTECTED = 1 << 0, "Currently write protected";
    }
}

bit_set! {
    /// Namespace Status (byte 14 of CNS 08h).
    Nstat(u8 => u8) {
        READY = 1 << 0, "Namespace Ready";
    }
}

wire_struct! {
    /// LBA Format.
    #[derive(Debug, PartialEq, Eq)]
    LbaFormat, 4, {
        /// Metadata Size in bytes.
        ms: U16,
        /// LBA Data Size: 2 ^ n bytes (at least 9), 0 = the format is not available.
        lbads: u8,
        /// Relative Performance in bits 1:0; 0 = best.
        rp: u8,
    }
}

impl LbaFormat {
    /// A format without metadata; `block_bytes` has to be a power of two.
    pub const fn new(block_bytes: u32) -> Self {
        Self { ms: U16::new(0), lbads: block_bytes.trailing_zeros() as u8, rp: 0 }
    }

    /// Data size in bytes; `None` below 512 bytes and above 2 GiB, which no namespace has.
    pub const fn block_bytes(&self) -> Option<u32> {
        if self.lbads < 9 || self.lbads > 31 { None } else { Some(1 << self.lbads) }
    }
}

wire_struct! {
    /// Identify Namespace: 4,096 bytes.
    IdentifyNamespace, 4096, {
        /// Namespace Size in blocks.
        nsze: U64,
        /// Namespace Capacity in blocks.
        ncap: U64,
        /// Namespace Utilization in blocks.
        nuse: U64,
        /// Namespace Features.
        nsfeat: Nsfeat,
        /// Number of LBA Formats, zero-based.
        nlbaf_z: u8,
        /// Formatted LBA Size: format in bits 3:0 and (upper) 6:5; bit 4 = metadata at the end of the data.
        flbas: u8,
        /// Metadata Capabilities.
        mc: u8,
        /// End-to-end Data Protection Capabilities.
        dpc: u8,
        /// End-to-end Data Protection Type Settings.
        dps: u8,
        /// Sharing.
        nmic: Nmic,
        /// Reservation Capabilities.
        rescap: Rescap,
        /// Format Progress Indicator: bit 7 supported, bits 6:0 percent left.
        fpi: u8,
        /// Deallocate Logical Block Features.
        dlfeat: Dlfeat,
        /// Namespace Atomic Write Unit Normal in blocks, zero-based.
        nawun_z: U16,
        /// Namespace Atomic Write Unit Power Fail in blocks, zero-based.
        nawupf_z: U16,
        /// Namespace Atomic Compare & Write Unit in blocks, zero-based.
        nacwu_z: U16,
        /// Namespace Atomic Boundary Size Normal in blocks, zero-based (0 = none).
        nabsn: U16,
        /// Namespace Atomic Boundary Offset in blocks.
        nabo: U16,
        /// Namespace Atomic Boundary Size Power Fail in blocks, zero-based (0 = none).
        nabspf: U16,
        /// Namespace Optimal I/O Boundary in blocks; 0 = none.
        noiob: U16,
        /// NVM Capacity in bytes.
        nvmcap: U128,
        /// Namespace Preferred Write Granularity in blocks, zero-based.
        npwg_z: U16,
        /// Namespace Preferred Write Alignment in blocks, zero-based.
        npwa_z: U16,
        /// Namespace Preferred Deallocate Granularity in blocks, zero-based.
        npdg_z: U16,
        /// Namespace Preferred Deallocate Alignment in blocks, zero-based.
        npda_z: U16,
        /// Namespace Optimal Write Size in blocks, zero-based.
        nows_z: U16,
        /// Maximum Single Source Range Length of Copy in blocks.
        mssrl: U16,
        /// Maximum Copy Length in blocks.
        mcl: U32,
        /// Maximum Source Range Count of Copy, zero-based.
        msrc_z: u8,
        /// Reserved.
        reserved81: [u8; 11],
        /// ANA Group Identifier.
        anagrpid: U32,
        /// Reserved.
        reserved96: [u8; 3],
        /// Namespace Attributes.
        nsattr: Nsattr,
        /// NVM Set Identifier.
        nvmsetid: U16,
        /// Endurance Group Identifier.
        endgid: U16,
        /// Namespace Globally Unique Identifier, big-endian; zero = none.
        nguid: [u8; 16],
        /// IEEE Extended Unique Identifier, big-endian; zero = none.
        eui64: [u8; 8],
        /// LBA Formats.
        lbaf: [LbaFormat; 64],
        /// Vendor Specific.
        vendor: [u8; 3712],
    }
}

impl IdentifyNamespace {
    /// The index of the format in use.
    pub const fn format_index(&self) -> u8 {
        self.flbas & 0xf | self.flbas >> 1 & 0x30
    }

    /// The format in use.
    pub const fn format(&self) -> LbaFormat {
        // Six bits index 64 formats.
        self.lbaf[self.format_index() as usize]
    }

    /// Metadata is transferred at the end of each block's data.
    pub const fn extended_lba(&self) -> bool {
        self.flbas & 1 << 4 != 0
    }
}

wire_struct! {
    /// Identify Namespace of the NVM command set, what 00h has no room for (CNS 05h).
    NvmIdentifyNamespace, 4096, {
        /// Logical Block Storage Tag Mask.
        lbstm: U64,
        /// Protection Information Capabilities.
        pic: u8,
        /// Reserved.
        reserved9: [u8; 3],
        /// Extended LBA Formats: storage tag size in bits 6:0, PI format in bits 8:7.
        elbaf: [U32; 64],
        /// Reserved.
        reserved268: [u8; 3828],
    }
}

wire_struct! {
    /// I/O Command Set Independent Identify Namespace (CNS 08h).
    IndependentIdentifyNamespace, 4096, {
        /// Common Namespace Features: bit 3 as in [`Nsfeat::ID_NOT_REUSED`].
        nsfeat: Nsfeat,
        /// Sharing.
        nmic: Nmic,
        /// Reservation Capabilities.
        rescap: Rescap,
        /// Format Progress Indicator.
        fpi: u8,
        /// ANA Group Identifier.
        anagrpid: U32,
        /// Namespace Attributes.
        nsattr: Nsattr,
        /// Reserved.
        reserved9: u8,
        /// NVM Set Identifier.
        nvmsetid: U16,
        /// Endurance Group Identifier.
        endgid: U16,
        /// Namespace Status.
        nstat: Nstat,
        /// Reserved.
        reserved15: [u8; 4081],
    }
}
