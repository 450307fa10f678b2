//! Controller properties (NVMe Base 2.0, section 3.1.3): what a PCIe controller has as registers.

use core::fmt;

use zerocopy::little_endian::U32;

open_codes! {
    /// Offset of a property.
    PropertyOffset(u32 => U32) {
        CAP = 0x00, "Controller Capabilities";
        VS = 0x08, "Version";
        INTMS = 0x0c, "Interrupt Mask Set";
        INTMC = 0x10, "Interrupt Mask Clear";
        CC = 0x14, "Controller Configuration";
        CSTS = 0x1c, "Controller Status";
        NSSR = 0x20, "NVM Subsystem Reset";
        AQA = 0x24, "Admin Queue Attributes";
        ASQ = 0x28, "Admin Submission Queue Base Address";
        ACQ = 0x30, "Admin Completion Queue Base Address";
        CMBLOC = 0x38, "Controller Memory Buffer Location";
        CMBSZ = 0x3c, "Controller Memory Buffer Size";
        CRTO = 0x68, "Controller Ready Timeouts";
    }
}

impl PropertyOffset {
    /// Size of a property that exists over fabrics (CAP, VS, CC, CSTS, NSSR, CRTO), or `None`.
    pub const fn len_bytes(self) -> Option<u8> {
        match self.get() {
            0x00 => Some(8),
            0x08 | 0x14 | 0x1c | 0x20 | 0x68 => Some(4),
            _ => None,
        }
    }
}

/// Value to write to NSSR for a subsystem reset ("NVMe" in ASCII).
pub const NSSR_RESET: u32 = 0x4e56_4d65;

bit_fields! {
    /// Controller Capabilities (CAP, figure 36).
    Cap(u64) {
        /// Maximum Queue Entries Supported, zero-based.
        mqes_z / with_mqes_z: 0, 16 => u16;
        /// Contiguous Queues Required.
        cqr / with_cqr: 16, 1 => bool;
        /// Arbitration Mechanism Supported: bit 0 weighted round robin, bit 1 vendor specific.
        ams / with_ams: 17, 2 => u8;
        /// Timeout: longest time for a change of CSTS.RDY, in 500 ms units.
        to / with_to: 24, 8 => u8;
        /// Doorbell Stride: 2 ^ (2 + DSTRD) bytes.
        dstrd / with_dstrd: 32, 4 => u8;
        /// NVM Subsystem Reset Supported.
        nssrs / with_nssrs: 36, 1 => bool;
        /// Command Sets Supported: bit 0 NVM, bit 6 one or more by I/O Command Sets, bit 7 admin only.
        css / with_css: 37, 8 => u8;
        /// Boot Partition Support.
        bps / with_bps: 45, 1 => bool;
        /// Controller Power Scope.
        cps / with_cps: 46, 2 => u8;
        /// Memory Page Size Minimum: 2 ^ (12 + MPSMIN) bytes.
        mpsmin / with_mpsmin: 48, 4 => u8;
        /// Memory Page Size Maximum: 2 ^ (12 + MPSMAX) bytes.
        mpsmax / with_mpsmax: 52, 4 => u8;
        /// Persistent Memory Region Supported.
        pmrs / with_pmrs: 56, 1 => bool;
        /// Controller Memory Buffer Supported.
        cmbs / with_cmbs: 57, 1 => bool;
        /// NVM Subsystem Shutdown Supported.
        nsss / with_nsss: 58, 1 => bool;
        /// Controller Ready Modes Supported: bit 0 with media, bit 1 independent of media.
        crms / with_crms: 59, 2 => u8;
    }
}

bit_fields! {
    /// Version (VS, figure 37).
    Version(u32) {
        /// Tertiary version number.
        tertiary / with_tertiary: 0, 8 => u8;
        /// Minor version number.
        minor / with_minor: 8, 8 => u8;
        /// Major version number.
        major / with_major: 16, 16 => u16;
    }
}

impl Version {
    /// 1.3.0
    pub const V1_3: Self = Self(0x0001_0300);
    /// 1.4.0
    pub const V1_4: Self = Self(0x0001_0400);
    /// 2.0.0
    pub const V2_0: Self = Self(0x0002_0000);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major(), self.minor(), self.tertiary())
    }
}

bit_fields! {
    /// Controller Configuration (CC, figure 46).
    Cc(u32) {
        /// Enable.
        en / with_en: 0, 1 => bool;
        /// I/O Command Set Selected: 0 NVM, 6 all supported I/O command sets, 7 admin only.
        css / with_css: 4, 3 => u8;
        /// Memory Page Size: 2 ^ (12 + MPS) bytes.
        mps / with_mps: 7, 4 => u8;
        /// Arbitration Mechanism Selected: 0 round robin.
        ams / with_ams: 11, 3 => u8;
        /// Shutdown Notification: 0 none, 1 normal, 2 abrupt.
        shn / with_shn: 14, 2 => u8;
        /// I/O Submission Queue Entry Size: 2 ^ n bytes (6).
        iosqes / with_iosqes: 16, 4 => u8;
        /// I/O Completion Queue Entry Size: 2 ^ n bytes (4).
        iocqes / with_iocqes: 20, 4 => u8;
        /// Controller Ready Independent of Media Enable.
        crime / with_crime: 24, 1 => bool;
    }
}

bit_fields! {
    /// Controller Status (CSTS, figure 47).
    Csts(u32) {
        /// Ready.
        rdy / with_rdy: 0, 1 => bool;
        /// Controller Fatal Status.
        cfs / with_cfs: 1, 1 => bool;
        /// Shutdown Status: 0 normal operation, 1 in progress, 2 complete.
        shst / with_shst: 2, 2 => u8;
        /// NVM Subsystem Reset Occurred.
        nssro / with_nssro: 4, 1 => bool;
        /// Processing Paused.
        pp / with_pp: 5, 1 => bool;
        /// Shutdown Type: 0 controller, 1 subsystem.
        st / with_st: 6, 1 => bool;
    }
}

bit_fields! {
    /// Controller Ready Timeouts (CRTO), in 500 ms units.
    Crto(u32) {
        /// Controller Ready With Media Timeout.
        crwmt / with_crwmt: 0, 16 => u16;
        /// Controller Ready Independent of Media Timeout.
        crimt / with_crimt: 16, 16 => u16;
    }
}
