//! Log pages (NVMe Base 2.0, section 5.16): the command, and the pages of fixed layout that are small.
//!
//! - [`smart`]: SMART / Health Information.
//! - [`ana`]: Asymmetric Namespace Access, built and parsed.
//! - [`discovery`]: the discovery log page, built and parsed.
//!
//! Panic guarantee: parsing takes any bytes; what runs over the end of a page ends the list.

pub mod ana;
pub mod discovery;
pub mod smart;

use zerocopy::little_endian::{U16, U32, U64};

use crate::Status;
use crate::command::{AdminOpcode, Cid, Nsid, Qid, Sqe};
use crate::identify::Csi;

pub use ana::{AnaLog, AnaState};
pub use discovery::{DiscoveryEntry, DiscoveryHeader};
pub use smart::SmartLog;

open_codes! {
    /// Log Page Identifier.
    Lid(u8 => u8) {
        SUPPORTED = 0x00, "Supported Log Pages";
        ERROR = 0x01, "Error Information";
        SMART = 0x02, "SMART / Health Information";
        FIRMWARE_SLOT = 0x03, "Firmware Slot Information";
        CHANGED_NAMESPACES = 0x04, "Changed Namespace List";
        EFFECTS = 0x05, "Commands Supported and Effects";
        SELF_TEST = 0x06, "Device Self-test";
        TELEMETRY_HOST = 0x07, "Telemetry Host-Initiated";
        TELEMETRY_CONTROLLER = 0x08, "Telemetry Controller-Initiated";
        ENDURANCE_GROUP = 0x09, "Endurance Group Information";
        PREDICTABLE_LATENCY = 0x0a, "Predictable Latency Per NVM Set";
        PREDICTABLE_LATENCY_EVENTS = 0x0b, "Predictable Latency Event Aggregate";
        ANA = 0x0c, "Asymmetric Namespace Access";
        PERSISTENT_EVENT = 0x0d, "Persistent Event Log";
        LBA_STATUS = 0x0e, "LBA Status Information";
        ENDURANCE_GROUP_EVENTS = 0x0f, "Endurance Group Event Aggregate";
        MEDIA_UNIT = 0x10, "Media Unit Status";
        CAPACITY_CONFIGURATIONS = 0x11, "Supported Capacity Configuration List";
        FEATURE_EFFECTS = 0x12, "Feature Identifiers Supported and Effects";
        MI_EFFECTS = 0x13, "NVMe-MI Commands Supported and Effects";
        LOCKDOWN = 0x14, "Command and Feature Lockdown";
        BOOT_PARTITION = 0x15, "Boot Partition";
        ROTATIONAL_MEDIA = 0x16, "Rotational Media Information";
        DISCOVERY = 0x70, "Discovery";
        RESERVATION = 0x80, "Reservation Notification";
        SANITIZE = 0x81, "Sanitize Status";
    }
}

/// The arguments of Get Log Page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetLogPage {
    /// Namespace; FFFFFFFFh or 0 for the controller.
    pub nsid: Nsid,
    /// Page.
    pub lid: Lid,
    /// Log Specific Field (7 bits).
    pub lsp: u8,
    /// Retain Asynchronous Event: reading does not clear it.
    pub rae: bool,
    /// Length in bytes: 4 to 2 ^ 34, a multiple of 4.
    pub len_bytes: u64,
    /// Log Specific Identifier.
    pub lsi: u16,
    /// Offset in bytes (a multiple of 4), or an index of entries with `index_offset`.
    pub offset_bytes: u64,
    /// Offset Type: the offset is an index.
    pub index_offset: bool,
    /// I/O Command Set.
    pub csi: Csi,
    /// UUID Index.
    pub uuid_index: u8,
}

impl GetLogPage {
    /// The first `len_bytes` of a page of the controller, which is told to retain nothing.
    pub const fn new(lid: Lid, len_bytes: u64) -> Self {
        Self {
            nsid: Nsid::BROADCAST,
            lid,
            lsp: 0,
            rae: false,
            len_bytes,
            lsi: 0,
            offset_bytes: 0,
            index_offset: false,
            csi: Csi::NVM,
            uuid_index: 0,
        }
    }

    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        let (cdw10, cdw11, cdw14) = (sqe.cdw10.get(), sqe.cdw11.get(), sqe.cdw14.get());
        let numd_z = cdw10 >> 16 | cdw11 << 16;
        Self {
            nsid: sqe.nsid(),
            lid: Lid::new(cdw10 as u8),
            lsp: (cdw10 >> 8) as u8 & 0x7f,
            rae: cdw10 & 1 << 15 != 0,
            len_bytes: (numd_z as u64 + 1) * 4,
            lsi: (cdw11 >> 16) as u16,
            offset_bytes: sqe.cdw12.get() as u64 | (sqe.cdw13.get() as u64) << 32,
            index_offset: cdw14 & 1 << 23 != 0,
            csi: Csi::new((cdw14 >> 24) as u8),
            uuid_index: cdw14 as u8 & 0x7f,
        }
    }

    /// A whole SQE. The length is cut to whole dwords.
    pub fn sqe(&self) -> Sqe {
        let numd_z = (self.len_bytes / 4).wrapping_sub(1) as u32;
        let mut sqe = Sqe::admin(AdminOpcode::GET_LOG_PAGE, self.nsid);
        sqe.cdw10.set(
            self.lid.get() as u32
                | (self.lsp as u32 & 0x7f) << 8
                | (self.rae as u32) << 15
                | (numd_z & 0xffff) << 16,
        );
        sqe.cdw11.set(numd_z >> 16 | (self.lsi as u32) << 16);
        sqe.cdw12.set(self.offset_bytes as u32);
        sqe.cdw13.set((self.offset_bytes >> 32) as u32);
        sqe.cdw14.set(
            self.uuid_index as u32 & 0x7f | (self.index_offset as u32) << 23 | (self.csi.get() as u32) << 24,
        );
        sqe
    }

    /// The part of `page` that the command asks for, for a byte offset. It is shorter than `len_bytes` where
    /// the page ends: the rest of the buffer is the caller's to clear.
    ///
    /// # Errors
    /// [`Status::INVALID_FIELD`]: the offset is beyond the end of the page, or not a multiple of 4, or an
    /// index.
    pub fn window<'a>(&self, page: &'a [u8]) -> Result<&'a [u8], Status> {
        if self.index_offset || !self.offset_bytes.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        let from = usize::try_from(self.offset_bytes).map_err(|_| Status::INVALID_FIELD)?;
        let rest = page.get(from..).ok_or(Status::INVALID_FIELD)?;
        let len = usize::try_from(self.len_bytes).map_or(rest.len(), |len| len.min(rest.len()));
        Ok(&rest[..len])
    }
}

bit_set! {
    /// An entry of the Supported Log Pages page; bits 31:16 are specific to the page.
    LogSupport(u32 => U32) {
        SUPPORTED = 1 << 0, "Supported";
        INDEX_OFFSET = 1 << 1, "Takes an index offset";
    }
}

wire_struct! {
    /// Supported Log Pages (LID 00h): an entry for each LID.
    SupportedLogPages, 1024, {
        /// Entry n is for LID n.
        pages: [LogSupport; 256],
    }
}

impl SupportedLogPages {
    /// The page of a controller that has these logs, by byte offset only.
    pub fn build(lids: &[Lid]) -> Self {
        let mut log = Self::zeroed();
        for lid in lids {
            log.pages[lid.get() as usize] = LogSupport::SUPPORTED;
        }
        log
    }
}

wire_struct! {
    /// One entry of the Error Information log page (LID 01h): 64 bytes; the newest comes first.
    #[derive(Debug)]
    ErrorEntry, 64, {
        /// Error Count: 1 for the first error ever, unique; 0 = the entry is empty.
        error_count: U64,
        /// Submission Queue ID; FFFFh = not of a command.
        sqid: U16,
        /// Command ID; FFFFh = not of a command.
        cid: U16,
        /// Status Field: phase in bit 0, status in bits 15:1.
        status: U16,
        /// Parameter Error Location: byte in bits 7:0, bit in 10:8; FFFFh = none.
        parameter_location: U16,
        /// First LBA in error.
        lba: U64,
        /// Namespace.
        nsid: U32,
        /// Vendor Specific Information Available: a log page number from 80h on; 0 = none.
        vendor_lid: u8,
        /// Transport Type, as in discovery ([`discovery::TransportType`]).
        trtype: u8,
        /// Reserved.
        reserved30: [u8; 2],
        /// Command Specific Information.
        command_info: U64,
        /// Transport Type Specific Information.
        transport_info: U16,
        /// Reserved.
        reserved42: [u8; 22],
    }
}

impl ErrorEntry {
    /// No parameter is to blame.
    pub const NO_LOCATION: u16 = 0xffff;

    /// An entry for a command; no parameter location, LBA 0.
    pub fn new(error_count: u64, sqid: Qid, cid: Cid, status: Status, nsid: Nsid) -> Self {
        Self {
            error_count: error_count.into(),
            sqid: sqid.0.into(),
            cid: cid.0.into(),
            status: (status.bits() << 1).into(),
            parameter_location: Self::NO_LOCATION.into(),
            nsid: nsid.0.into(),
            ..Self::zeroed()
        }
    }

    /// Status without the phase tag.
    pub const fn status(&self) -> Status {
        Status::from_bits(self.status.get() >> 1)
    }
}

wire_struct! {
    /// Firmware Slot Information (LID 03h).
    FirmwareSlotLog, 512, {
        /// Active slot in bits 2:0, slot of the next reset in bits 6:4.
        afi: u8,
        /// Reserved.
        reserved1: [u8; 7],
        /// Firmware revision in slots 1 to 7, ASCII; zero = none.
        revisions: [[u8; 8]; 7],
        /// Reserved.
        reserved64: [u8; 448],
    }
}

impl FirmwareSlotLog {
    /// One slot, which is active.
    pub fn single(firmware: &str) -> Self {
        let mut log = Self::zeroed();
        log.afi = 1;
        log.revisions[0] = crate::text::ascii_field(firmware, b' ');
        log
    }
}

/// Changed Namespace List (LID 04h): up to 1,024 NSIDs in increasing order; more than that is one entry of
/// FFFFFFFFh.
pub type ChangedNamespaceLog = crate::identify::IdList;

/// Builds the Changed Namespace List from NSIDs in increasing order.
pub fn changed_namespaces(nsids: impl IntoIterator<Item = Nsid>) -> ChangedNamespaceLog {
    let mut nsids = nsids.into_iter();
    let mut log = ChangedNamespaceLog::build(Nsid::NONE, nsids.by_ref().take(1024));
    if nsids.next().is_some() {
        log = ChangedNamespaceLog::zeroed();
        log.ids[0].set(Nsid::BROADCAST.0);
    }
    log
}

bit_set! {
    /// An entry of Commands Supported and Effects; CSE is in bits 18:16, scopes in 31:20.
    CommandEffects(u32 => U32) {
        SUPPORTED = 1 << 0, "Command Supported";
        CONTENT_CHANGE = 1 << 1, "Logical Block Content Change";
        NAMESPACE_CHANGE = 1 << 2, "Namespace Capability Change";
        INVENTORY_CHANGE = 1 << 3, "Namespace Inventory Change";
        CONTROLLER_CHANGE = 1 << 4, "Controller Capability Change";
        EXCLUSIVE_NAMESPACE = 1 << 16, "No other command for the namespace may be in flight";
        EXCLUSIVE_CONTROLLER = 2 << 16, "No other command may be in flight";
        UUID_SELECTION = 1 << 19, "UUID Selection Supported";
        NAMESPACE_SCOPE = 1 << 20, "Namespace Scope";
        CONTROLLER_SCOPE = 1 << 21, "Controller Scope";
        SUBSYSTEM_SCOPE = 1 << 25, "NVM Subsystem Scope";
    }
}

wire_struct! {
    /// Commands Supported and Effects (LID 05h).
    EffectsLog, 4096, {
        /// Admin command n.
        admin: [CommandEffects; 256],
        /// I/O command n.
        io: [CommandEffects; 256],
        /// Reserved.
        reserved2048: [u8; 2048],
    }
}

bit_set! {
    /// An entry of Feature Identifiers Supported and Effects; scopes are in bits 31:20.
    FeatureEffects(u32 => U32) {
        SUPPORTED = 1 << 0, "Feature Supported";
        USER_DATA_CHANGE = 1 << 1, "User Data Content Change";
        NAMESPACE_CHANGE = 1 << 2, "Namespace Capability Change";
        INVENTORY_CHANGE = 1 << 3, "Namespace Inventory Change";
        CONTROLLER_CHANGE = 1 << 4, "Controller Capability Change";
        UUID_SELECTION = 1 << 19, "UUID Selection Supported";
        NAMESPACE_SCOPE = 1 << 20, "Namespace Scope";
        CONTROLLER_SCOPE = 1 << 21, "Controller Scope";
        SUBSYSTEM_SCOPE = 1 << 25, "NVM Subsystem Scope";
    }
}

wire_struct! {
    /// Feature Identifiers Supported and Effects (LID 12h).
    FeatureEffectsLog, 1024, {
        /// Entry n is for FID n.
        features: [FeatureEffects; 256],
    }
}

open_codes! {
    /// What a Reservation Notification is about.
    ReservationNotice(u8 => u8) {
        EMPTY = 0, "Empty log page";
        REGISTRATION_PREEMPTED = 1, "Registration Preempted";
        RESERVATION_RELEASED = 2, "Reservation Released";
        RESERVATION_PREEMPTED = 3, "Reservation Preempted";
    }
}

wire_struct! {
    /// Reservation Notification (LID 80h): 64 bytes; reading removes it from the queue.
    #[derive(Debug)]
    ReservationLog, 64, {
        /// Log Page Count: 1 for the first; 0 = empty.
        count: U64,
        /// What happened.
        kind: ReservationNotice,
        /// Number of Available Log Pages besides this one; 255 = or more.
        available: u8,
        /// Reserved.
        reserved10: [u8; 2],
        /// Namespace.
        nsid: U32,
        /// Reserved.
        reserved16: [u8; 48],
    }
}
