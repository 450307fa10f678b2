//! Asynchronous events (NVMe Base 2.0, section 5.2): what the completion of an Asynchronous Event Request says.

use crate::log::Lid;

open_codes! {
    /// Asynchronous Event Type.
    EventType(u8 => u8) {
        ERROR = 0, "Error status";
        SMART = 1, "SMART / Health status";
        NOTICE = 2, "Notice";
        IO_COMMAND_SET = 6, "I/O Command Set specific status";
        VENDOR = 7, "Vendor specific";
    }
}

/// One event: dword 0 of the completion has the type in bits 2:0, the information in bits 15:8 and the log page
/// in bits 23:16.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AsyncEvent {
    /// Type.
    pub kind: EventType,
    /// Information, whose meaning depends on the type.
    pub info: u8,
    /// Log page to read (without Retain Asynchronous Event), which clears the event.
    pub lid: Lid,
}

impl AsyncEvent {
    /// Error: a diagnostic failure.
    pub const DIAGNOSTIC_FAILURE: Self = Self::new(EventType::ERROR, 2, Lid::ERROR);
    /// Error: a persistent internal error.
    pub const PERSISTENT_INTERNAL_ERROR: Self = Self::new(EventType::ERROR, 3, Lid::ERROR);
    /// Error: a transient internal error.
    pub const TRANSIENT_INTERNAL_ERROR: Self = Self::new(EventType::ERROR, 4, Lid::ERROR);
    /// SMART: the subsystem's reliability is degraded.
    pub const RELIABILITY: Self = Self::new(EventType::SMART, 0, Lid::SMART);
    /// SMART: a temperature threshold is passed.
    pub const TEMPERATURE: Self = Self::new(EventType::SMART, 1, Lid::SMART);
    /// SMART: the available spare is below its threshold.
    pub const SPARE: Self = Self::new(EventType::SMART, 2, Lid::SMART);
    /// Notice: a namespace was added, removed or changed.
    pub const NAMESPACE_CHANGED: Self = Self::new(EventType::NOTICE, 0x00, Lid::CHANGED_NAMESPACES);
    /// Notice: firmware activation starts.
    pub const FIRMWARE_ACTIVATION: Self = Self::new(EventType::NOTICE, 0x01, Lid::FIRMWARE_SLOT);
    /// Notice: the ANA state of a group, or the groups, changed.
    pub const ANA_CHANGED: Self = Self::new(EventType::NOTICE, 0x03, Lid::ANA);
    /// Notice: the discovery log page changed.
    pub const DISCOVERY_CHANGED: Self = Self::new(EventType::NOTICE, 0xf0, Lid::DISCOVERY);
    /// NVM command set: a reservation notification log page is available.
    pub const RESERVATION: Self = Self::new(EventType::IO_COMMAND_SET, 0, Lid::RESERVATION);

    /// An event.
    pub const fn new(kind: EventType, info: u8, lid: Lid) -> Self {
        Self { kind, info, lid }
    }

    /// The result of the completion.
    pub const fn result(self) -> u64 {
        self.kind.get() as u64 & 7 | (self.info as u64) << 8 | (self.lid.get() as u64) << 16
    }

    /// Reads the result of a completion.
    pub const fn from_result(result: u64) -> Self {
        Self {
            kind: EventType::new(result as u8 & 7),
            info: (result >> 8) as u8,
            lid: Lid::new((result >> 16) as u8),
        }
    }
}
