//! Completion status (NVMe Base 2.0, section 3.3.3.2.1; NVM Command Set 1.0, section 3.1.2).
//!
//! [`Status`] is the error type of the whole I/O path. Constants carry Do Not Retry where repeating the same
//! command on the same path cannot help; compare with [`Status::is`] (or [`Status::code`]), which ignores CRD,
//! More and DNR.

use core::fmt;

/// The 15-bit status field of a completion: SC (bits 7:0), SCT (10:8), CRD (12:11), M (13), DNR (14).
///
/// Plain data, `Copy`, no allocation. A device translates what it knows (errno, CQE, sense data) into one of
/// these once, at its boundary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Status(u16);

/// Status code types.
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

    /// This status with Do Not Retry clear.
    pub const fn without_dnr(self) -> Self {
        Self(self.0 & !(1 << 14))
    }

    /// This status with More set: an error log entry tells about it.
    pub const fn with_more(self) -> Self {
        Self(self.0 | 1 << 13)
    }

    /// This status with a Command Retry Delay index (0-3).
    pub const fn with_crd(self, index: u8) -> Self {
        Self(self.0 & !(3 << 11) | (index as u16 & 3) << 11)
    }

    /// True when SCT and SC are zero.
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// SCT and SC without CRD, M and DNR: what two statuses are compared by.
    pub const fn code(self) -> Self {
        Self(self.0 & 0x7ff)
    }

    /// True when SCT and SC agree; CRD, M and DNR do not count.
    pub const fn is(self, other: Self) -> bool {
        self.code().0 == other.code().0
    }

    /// True for a path related status: another path may succeed.
    pub const fn is_path(self) -> bool {
        self.sct() == sct::PATH
    }

    /// `Ok` for success, `Err` with the status otherwise.
    pub const fn ok(self) -> Result<(), Self> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}

macro_rules! dnr {
    ($status:expr, dnr) => {
        $status.with_dnr()
    };
    ($status:expr, retry) => {
        $status
    };
}

/// Defines the constants of one status code type, and the table from code to name.
macro_rules! statuses {
    ($table:ident, $sct:expr; $($name:ident = $sc:literal $retry:ident $text:literal;)*) => {
        impl Status {
            $(
                #[doc = concat!($text, " (", stringify!($sc), ").")]
                pub const $name: Self = dnr!(Self::new($sct, $sc), $retry);
            )*
        }

        const fn $table(sc: u8) -> Option<&'static str> {
            match sc {
                $($sc => Some($text),)*
                _ => None,
            }
        }
    };
}

statuses! { generic_name, sct::GENERIC;
    SUCCESS = 0x00 retry "Successful Completion";
    INVALID_OPCODE = 0x01 dnr "Invalid Command Opcode";
    INVALID_FIELD = 0x02 dnr "Invalid Field in Command";
    COMMAND_ID_CONFLICT = 0x03 dnr "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0x04 retry "Data Transfer Error";
    POWER_LOSS_ABORT = 0x05 retry "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0x06 retry "Internal Error";
    ABORT_REQUESTED = 0x07 retry "Command Abort Requested";
    ABORTED_SQ_DELETION = 0x08 retry "Command Aborted due to SQ Deletion";
    ABORTED_FAILED_FUSED = 0x09 retry "Command Aborted due to Failed Fused Command";
    ABORTED_MISSING_FUSED = 0x0a dnr "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE = 0x0b dnr "Invalid Namespace or Format";
    SEQUENCE_ERROR = 0x0c dnr "Command Sequence Error";
    INVALID_SGL_SEGMENT = 0x0d dnr "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = 0x0e dnr "Invalid Number of SGL Descriptors";
    DATA_SGL_LENGTH_INVALID = 0x0f dnr "Data SGL Length Invalid";
    METADATA_SGL_LENGTH_INVALID = 0x10 dnr "Metadata SGL Length Invalid";
    SGL_TYPE_INVALID = 0x11 dnr "SGL Descriptor Type Invalid";
    INVALID_CMB_USE = 0x12 dnr "Invalid Use of Controller Memory Buffer";
    PRP_OFFSET_INVALID = 0x13 dnr "PRP Offset Invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x14 dnr "Atomic Write Unit Exceeded";
    OPERATION_DENIED = 0x15 dnr "Operation Denied";
    SGL_OFFSET_INVALID = 0x16 dnr "SGL Offset Invalid";
    HOST_ID_INCONSISTENT = 0x18 dnr "Host Identifier Inconsistent Format";
    KEEP_ALIVE_EXPIRED = 0x19 retry "Keep Alive Timer Expired";
    KEEP_ALIVE_INVALID = 0x1a dnr "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT = 0x1b retry "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0x1c dnr "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0x1d retry "Sanitize In Progress";
    SGL_GRANULARITY_INVALID = 0x1e dnr "SGL Data Block Granularity Invalid";
    COMMAND_IN_CMB_UNSUPPORTED = 0x1f dnr "Command Not Supported for Queue in CMB";
    NAMESPACE_WRITE_PROTECTED = 0x20 dnr "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0x21 retry "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0x22 retry "Transient Transport Error";
    PROHIBITED_BY_LOCKDOWN = 0x23 dnr "Command Prohibited by Command and Feature Lockdown";
    ADMIN_MEDIA_NOT_READY = 0x24 retry "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = 0x80 dnr "LBA Out of Range";
    CAPACITY_EXCEEDED = 0x81 retry "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0x82 retry "Namespace Not Ready";
    RESERVATION_CONFLICT = 0x83 dnr "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0x84 retry "Format In Progress";
}

statuses! { command_specific_name, sct::COMMAND_SPECIFIC;
    COMPLETION_QUEUE_INVALID = 0x00 dnr "Completion Queue Invalid";
    INVALID_QUEUE_ID = 0x01 dnr "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 0x02 dnr "Invalid Queue Size";
    ABORT_LIMIT_EXCEEDED = 0x03 retry "Abort Command Limit Exceeded";
    AER_LIMIT_EXCEEDED = 0x05 dnr "Asynchronous Event Request Limit Exceeded";
    INVALID_FIRMWARE_SLOT = 0x06 dnr "Invalid Firmware Slot";
    INVALID_FIRMWARE_IMAGE = 0x07 dnr "Invalid Firmware Image";
    INVALID_INTERRUPT_VECTOR = 0x08 dnr "Invalid Interrupt Vector";
    INVALID_LOG_PAGE = 0x09 dnr "Invalid Log Page";
    INVALID_FORMAT = 0x0a dnr "Invalid Format";
    FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x0b dnr "Firmware Activation Requires Conventional Reset";
    INVALID_QUEUE_DELETION = 0x0c dnr "Invalid Queue Deletion";
    FEATURE_NOT_SAVEABLE = 0x0d dnr "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 0x0e dnr "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x0f dnr "Feature Not Namespace Specific";
    FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x10 dnr "Firmware Activation Requires NVM Subsystem Reset";
    FIRMWARE_NEEDS_CONTROLLER_RESET = 0x11 dnr "Firmware Activation Requires Controller Level Reset";
    FIRMWARE_MAX_TIME_VIOLATION = 0x12 dnr "Firmware Activation Requires Maximum Time Violation";
    FIRMWARE_PROHIBITED = 0x13 dnr "Firmware Activation Prohibited";
    OVERLAPPING_RANGE = 0x14 dnr "Overlapping Range";
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x15 dnr "Namespace Insufficient Capacity";
    NAMESPACE_ID_UNAVAILABLE = 0x16 dnr "Namespace Identifier Unavailable";
    NAMESPACE_ALREADY_ATTACHED = 0x18 dnr "Namespace Already Attached";
    NAMESPACE_IS_PRIVATE = 0x19 dnr "Namespace Is Private";
    NAMESPACE_NOT_ATTACHED = 0x1a dnr "Namespace Not Attached";
    THIN_PROVISIONING_UNSUPPORTED = 0x1b dnr "Thin Provisioning Not Supported";
    CONTROLLER_LIST_INVALID = 0x1c dnr "Controller List Invalid";
    SELF_TEST_IN_PROGRESS = 0x1d retry "Device Self-test In Progress";
    BOOT_PARTITION_WRITE_PROHIBITED = 0x1e dnr "Boot Partition Write Prohibited";
    INVALID_CONTROLLER_ID = 0x1f dnr "Invalid Controller Identifier";
    INVALID_SECONDARY_STATE = 0x20 dnr "Invalid Secondary Controller State";
    INVALID_RESOURCE_COUNT = 0x21 dnr "Invalid Number of Controller Resources";
    INVALID_RESOURCE_ID = 0x22 dnr "Invalid Resource Identifier";
    SANITIZE_PROHIBITED_PMR = 0x23 dnr "Sanitize Prohibited While Persistent Memory Region is Enabled";
    ANA_GROUP_ID_INVALID = 0x24 dnr "ANA Group Identifier Invalid";
    ANA_ATTACH_FAILED = 0x25 dnr "ANA Attach Failed";
    INSUFFICIENT_CAPACITY = 0x26 dnr "Insufficient Capacity";
    NAMESPACE_ATTACH_LIMIT = 0x27 dnr "Namespace Attachment Limit Exceeded";
    LOCKDOWN_UNSUPPORTED = 0x28 dnr "Prohibition of Command Execution Not Supported";
    IO_COMMAND_SET_UNSUPPORTED = 0x29 dnr "I/O Command Set Not Supported";
    IO_COMMAND_SET_NOT_ENABLED = 0x2a dnr "I/O Command Set Not Enabled";
    IO_COMMAND_SET_COMBINATION = 0x2b dnr "I/O Command Set Combination Rejected";
    INVALID_IO_COMMAND_SET = 0x2c dnr "Invalid I/O Command Set";
    IDENTIFIER_UNAVAILABLE = 0x2d dnr "Identifier Unavailable";
    CONFLICTING_ATTRIBUTES = 0x80 dnr "Conflicting Attributes";
    INVALID_PROTECTION_INFO = 0x81 dnr "Invalid Protection Information";
    WRITE_TO_READ_ONLY_RANGE = 0x82 dnr "Attempted Write to Read Only Range";
    COMMAND_SIZE_LIMIT = 0x83 dnr "Command Size Limit Exceeded";
}

// The Fabrics commands use the same numbers from 80h on with meanings of their own (section 6).
statuses! { fabrics_specific_name, sct::COMMAND_SPECIFIC;
    CONNECT_INCOMPATIBLE_FORMAT = 0x80 dnr "Connect Incompatible Format";
    CONNECT_CONTROLLER_BUSY = 0x81 retry "Connect Controller Busy";
    CONNECT_INVALID_PARAMETERS = 0x82 dnr "Connect Invalid Parameters";
    CONNECT_RESTART_DISCOVERY = 0x83 dnr "Connect Restart Discovery";
    CONNECT_INVALID_HOST = 0x84 dnr "Connect Invalid Host";
    DISCONNECT_INVALID_QUEUE_TYPE = 0x85 dnr "Invalid Queue Type";
    DISCOVER_RESTART = 0x90 retry "Discover Restart";
    AUTHENTICATION_REQUIRED = 0x91 dnr "Authentication Required";
}

statuses! { media_name, sct::MEDIA;
    WRITE_FAULT = 0x80 retry "Write Fault";
    UNRECOVERED_READ = 0x81 retry "Unrecovered Read Error";
    GUARD_CHECK = 0x82 dnr "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK = 0x83 dnr "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK = 0x84 dnr "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 0x85 dnr "Compare Failure";
    ACCESS_DENIED = 0x86 dnr "Access Denied";
    DEALLOCATED_BLOCK = 0x87 dnr "Deallocated or Unwritten Logical Block";
    STORAGE_TAG_CHECK = 0x88 dnr "End-to-End Storage Tag Check Error";
}

statuses! { path_name, sct::PATH;
    INTERNAL_PATH_ERROR = 0x00 retry "Internal Path Error";
    ANA_PERSISTENT_LOSS = 0x01 retry "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 0x02 retry "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 0x03 retry "Asymmetric Access Transition";
    CONTROLLER_PATHING_ERROR = 0x60 retry "Controller Pathing Error";
    HOST_PATHING_ERROR = 0x70 retry "Host Pathing Error";
    ABORTED_BY_HOST = 0x71 retry "Command Aborted By Host";
}

impl Status {
    /// The specification's name for the code as an admin or NVM command returns it; "unknown status" when it
    /// has none. For a Fabrics command use [`Status::fabrics_name`].
    pub const fn name(self) -> &'static str {
        let found = match self.sct() {
            sct::GENERIC => generic_name(self.sc()),
            sct::COMMAND_SPECIFIC => match command_specific_name(self.sc()) {
                None => fabrics_specific_name(self.sc()),
                some => some,
            },
            sct::MEDIA => media_name(self.sc()),
            sct::PATH => path_name(self.sc()),
            sct::VENDOR => Some("vendor specific status"),
            _ => None,
        };
        match found {
            Some(name) => name,
            None => "unknown status",
        }
    }

    /// The specification's name for the code as a Fabrics command (Connect, Disconnect, ...) returns it.
    pub const fn fabrics_name(self) -> &'static str {
        match (self.sct(), fabrics_specific_name(self.sc())) {
            (sct::COMMAND_SPECIFIC, Some(name)) => name,
            _ => self.name(),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let retry = if self.dnr() { ", do not retry" } else { "" };
        write!(f, "{} (sct {:#x}, sc {:#04x}{retry})", self.name(), self.sct(), self.sc())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let retry = if self.dnr() { ", dnr" } else { "" };
        write!(f, "Status({}: sct {:#x}, sc {:#04x}{retry})", self.name(), self.sct(), self.sc())
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_status() {
        let status = Status::from_bits(0x4285);
        assert_eq!((status.sct(), status.sc()), (sct::MEDIA, 0x85));
        assert!(status.dnr() && !status.more());
        assert_eq!(status, Status::COMPARE_FAILURE);
        assert!(status.without_dnr().is(Status::COMPARE_FAILURE));
        assert_ne!(status.without_dnr(), Status::COMPARE_FAILURE);
        assert_eq!(Status::SUCCESS.with_crd(3).bits(), 0x1800);
        assert_eq!(Status::SUCCESS.with_crd(3).with_crd(1).crd(), 1);
        assert!(Status::INTERNAL_ERROR.with_more().more());
    }

    #[test]
    fn every_code_has_a_name_and_none_panics() {
        for bits in 0..=u16::MAX {
            let status = Status::from_bits(bits);
            assert!(!status.name().is_empty() && !status.fabrics_name().is_empty());
            assert_eq!(status.is_success(), bits & 0x7ff == 0);
        }
        assert_eq!(Status::new(sct::COMMAND_SPECIFIC, 0x80).name(), "Conflicting Attributes");
        assert_eq!(Status::CONNECT_INCOMPATIBLE_FORMAT.fabrics_name(), "Connect Incompatible Format");
        assert_eq!(Status::AUTHENTICATION_REQUIRED.name(), "Authentication Required");
        assert_eq!(Status::new(5, 1).name(), "unknown status");
    }

    #[test]
    fn text_for_people() {
        assert_eq!(Status::LBA_OUT_OF_RANGE.to_string(), "LBA Out of Range (sct 0x0, sc 0x80, do not retry)");
    }
}
