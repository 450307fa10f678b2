//! Completion status (NVMe Base 2.0, section 3.3.3.2.1, figures 93-97).

use core::fmt;

/// The 15-bit status field of a completion: SC (bits 7:0), SCT (10:8), CRD (12:11), M (13), DNR (14).
///
/// Plain data, `Copy`, no allocation: this is the error type of the whole I/O path. A device translates what
/// it knows (errno, CQE, sense data) into one of these once, at its boundary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Status(u16);

/// Status code types (figure 94).
pub mod sct {
    /// Generic Command Status.
    pub const GENERIC: u8 = 0;
    /// Command Specific Status.
    pub const COMMAND_SPECIFIC: u8 = 1;
    /// Media and Data Integrity Errors.
    pub const MEDIA: u8 = 2;
    /// Path Related Status.
    pub const PATH: u8 = 3;
    /// Vendor Specific.
    pub const VENDOR: u8 = 7;
}

impl Status {
    /// Builds a status from its type and code; CRD, M and DNR are clear.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(((sct as u16 & 7) << 8) | sc as u16)
    }

    /// The 15 bits as they stand in CQE DW3 bits 31:17.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7fff)
    }

    /// The 15 bits (phase tag excluded).
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Status Code Type.
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Status Code.
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// Command Retry Delay index (0 = none).
    pub const fn crd(self) -> u8 {
        (self.0 >> 11) as u8 & 3
    }

    /// More information is in the error log page.
    pub const fn more(self) -> bool {
        self.0 & (1 << 13) != 0
    }

    /// Do Not Retry: the same command to the same path is expected to fail again.
    pub const fn dnr(self) -> bool {
        self.0 & (1 << 14) != 0
    }

    /// This status with Do Not Retry set.
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | 1 << 14)
    }

    /// True when SCT and SC are zero.
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// SCT and SC without CRD, M and DNR: what two statuses are compared by.
    pub const fn code(self) -> Self {
        Self(self.0 & 0x7ff)
    }

    /// Successful completion.
    pub const SUCCESS: Self = Self::new(sct::GENERIC, 0x00);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Self = Self::new(sct::GENERIC, 0x01).with_dnr();
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Self = Self::new(sct::GENERIC, 0x02).with_dnr();
    /// Data Transfer Error.
    pub const DATA_TRANSFER_ERROR: Self = Self::new(sct::GENERIC, 0x04);
    /// Internal Error.
    pub const INTERNAL_ERROR: Self = Self::new(sct::GENERIC, 0x06);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Self = Self::new(sct::GENERIC, 0x07);
    /// Namespace Not Ready.
    pub const NAMESPACE_NOT_READY: Self = Self::new(sct::GENERIC, 0x82);
    /// LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: Self = Self::new(sct::GENERIC, 0x80).with_dnr();
    /// Capacity Exceeded.
    pub const CAPACITY_EXCEEDED: Self = Self::new(sct::GENERIC, 0x81);
    /// Write Fault.
    pub const WRITE_FAULT: Self = Self::new(sct::MEDIA, 0x80);
    /// Unrecovered Read Error.
    pub const UNRECOVERED_READ: Self = Self::new(sct::MEDIA, 0x81);
    /// Compare Failure.
    pub const COMPARE_FAILURE: Self = Self::new(sct::MEDIA, 0x85).with_dnr();
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Status(sct {:#x}, sc {:#04x}{})",
            self.sct(),
            self.sc(),
            if self.dnr() { ", dnr" } else { "" }
        )
    }
}
