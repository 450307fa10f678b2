//! Features (NVMe Base 2.0, sections 5.15 and 5.27): identifiers, the two commands, and the values of the
//! features that live in dword 11 or in a small data buffer.

use zerocopy::little_endian::U16;

use crate::command::{AdminOpcode, Nsid, Sqe};

pub use crate::identify::controller::Oaes;

open_codes! {
    /// Feature Identifier (figure 317).
    Fid(u8 => u8) {
        ARBITRATION = 0x01, "Arbitration";
        POWER_MANAGEMENT = 0x02, "Power Management";
        LBA_RANGE_TYPE = 0x03, "LBA Range Type";
        TEMPERATURE_THRESHOLD = 0x04, "Temperature Threshold";
        ERROR_RECOVERY = 0x05, "Error Recovery";
        VOLATILE_WRITE_CACHE = 0x06, "Volatile Write Cache";
        NUMBER_OF_QUEUES = 0x07, "Number of Queues";
        INTERRUPT_COALESCING = 0x08, "Interrupt Coalescing";
        INTERRUPT_VECTOR = 0x09, "Interrupt Vector Configuration";
        WRITE_ATOMICITY = 0x0a, "Write Atomicity Normal";
        ASYNC_EVENT_CONFIG = 0x0b, "Asynchronous Event Configuration";
        POWER_STATE_TRANSITION = 0x0c, "Autonomous Power State Transition";
        HOST_MEMORY_BUFFER = 0x0d, "Host Memory Buffer";
        TIMESTAMP = 0x0e, "Timestamp";
        KEEP_ALIVE_TIMER = 0x0f, "Keep Alive Timer";
        THERMAL_MANAGEMENT = 0x10, "Host Controlled Thermal Management";
        NON_OPERATIONAL_POWER = 0x11, "Non-Operational Power State Config";
        READ_RECOVERY_LEVEL = 0x12, "Read Recovery Level Config";
        PREDICTABLE_LATENCY_CONFIG = 0x13, "Predictable Latency Mode Config";
        PREDICTABLE_LATENCY_WINDOW = 0x14, "Predictable Latency Mode Window";
        LBA_STATUS_INTERVAL = 0x15, "LBA Status Information Report Interval";
        HOST_BEHAVIOR = 0x16, "Host Behavior Support";
        SANITIZE_CONFIG = 0x17, "Sanitize Config";
        ENDURANCE_GROUP_EVENTS = 0x18, "Endurance Group Event Configuration";
        IO_COMMAND_SET_PROFILE = 0x19, "I/O Command Set Profile";
        SPINUP_CONTROL = 0x1a, "Spinup Control";
        ENHANCED_CONTROLLER_METADATA = 0x7d, "Enhanced Controller Metadata";
        CONTROLLER_METADATA = 0x7e, "Controller Metadata";
        NAMESPACE_METADATA = 0x7f, "Namespace Metadata";
        SOFTWARE_PROGRESS = 0x80, "Software Progress Marker";
        HOST_IDENTIFIER = 0x81, "Host Identifier";
        RESERVATION_MASK = 0x82, "Reservation Notification Mask";
        RESERVATION_PERSISTENCE = 0x83, "Reservation Persistence";
        WRITE_PROTECTION = 0x84, "Namespace Write Protection Config";
    }
}

open_codes! {
    /// What Get Features returns (CDW10 bits 10:8).
    Select(u8 => u8) {
        CURRENT = 0, "Current";
        DEFAULT = 1, "Default";
        SAVED = 2, "Saved";
        CAPABILITIES = 3, "Supported Capabilities";
    }
}

bit_set! {
    /// Result of Get Features with [`Select::CAPABILITIES`].
    FeatureCapabilities(u32 => zerocopy::little_endian::U32) {
        SAVEABLE = 1 << 0, "Saveable";
        NAMESPACE_SPECIFIC = 1 << 1, "Specific to a namespace";
        CHANGEABLE = 1 << 2, "Changeable";
    }
}

/// The arguments of Get Features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetFeatures {
    /// Namespace; 0 for a feature of the controller.
    pub nsid: Nsid,
    /// Feature.
    pub fid: Fid,
    /// Which value.
    pub select: Select,
    /// Feature specific dword 11.
    pub cdw11: u32,
}

impl GetFeatures {
    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self {
            nsid: sqe.nsid(),
            fid: Fid::new(cdw10 as u8),
            select: Select::new((cdw10 >> 8) as u8 & 7),
            cdw11: sqe.cdw11.get(),
        }
    }

    /// A whole SQE.
    pub fn sqe(&self) -> Sqe {
        let mut sqe = Sqe::admin(AdminOpcode::GET_FEATURES, self.nsid);
        sqe.cdw10.set(self.fid.get() as u32 | (self.select.get() as u32 & 7) << 8);
        sqe.cdw11.set(self.cdw11);
        sqe
    }
}

/// The arguments of Set Features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetFeatures {
    /// Namespace; 0 for a feature of the controller.
    pub nsid: Nsid,
    /// Feature.
    pub fid: Fid,
    /// The value has to persist (CDW10 bit 31).
    pub save: bool,
    /// Feature specific dword 11.
    pub cdw11: u32,
    /// Feature specific dword 12.
    pub cdw12: u32,
}

impl SetFeatures {
    /// Sets `fid` of the controller to `cdw11`, not saved.
    pub const fn new(fid: Fid, cdw11: u32) -> Self {
        Self { nsid: Nsid::NONE, fid, save: false, cdw11, cdw12: 0 }
    }

    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self {
            nsid: sqe.nsid(),
            fid: Fid::new(cdw10 as u8),
            save: cdw10 & 1 << 31 != 0,
            cdw11: sqe.cdw11.get(),
            cdw12: sqe.cdw12.get(),
        }
    }

    /// A whole SQE.
    pub fn sqe(&self) -> Sqe {
        let mut sqe = Sqe::admin(AdminOpcode::SET_FEATURES, self.nsid);
        sqe.cdw10.set(self.fid.get() as u32 | (self.save as u32) << 31);
        sqe.cdw11.set(self.cdw11);
        sqe.cdw12.set(self.cdw12);
        sqe
    }
}

bit_fields! {
    /// Number of Queues (FID 07h): asked for in dword 11, given in the result.
    QueueCounts(u32) {
        /// I/O submission queues, zero-based.
        nsq_z / with_nsq_z: 0, 16 => u16;
        /// I/O completion queues, zero-based.
        ncq_z / with_ncq_z: 16, 16 => u16;
    }
}

impl QueueCounts {
    /// As many submission as completion queues: 1 to 65,535. 65,536 cannot be asked for (FFFFh is invalid).
    pub const fn new(queues: u16) -> Self {
        let queues_z = queues.saturating_sub(1);
        Self(0).with_nsq_z(queues_z).with_ncq_z(queues_z)
    }

    /// FFFFh in either field, which is an Invalid Field in Command.
    pub const fn is_invalid(self) -> bool {
        self.nsq_z() == u16::MAX || self.ncq_z() == u16::MAX
    }

    /// Pairs of queues: the smaller of the two, one-based.
    pub const fn pairs(self) -> u32 {
        let (nsq_z, ncq_z) = (self.nsq_z() as u32, self.ncq_z() as u32);
        (if nsq_z < ncq_z { nsq_z } else { ncq_z }) + 1
    }
}

bit_fields! {
    /// Arbitration (FID 01h).
    Arbitration(u32) {
        /// Arbitration Burst: 2 ^ n commands, 7 = no limit.
        burst / with_burst: 0, 3 => u8;
        /// Low Priority Weight, zero-based.
        low_z / with_low_z: 8, 8 => u8;
        /// Medium Priority Weight, zero-based.
        medium_z / with_medium_z: 16, 8 => u8;
        /// High Priority Weight, zero-based.
        high_z / with_high_z: 24, 8 => u8;
    }
}

bit_fields! {
    /// Power Management (FID 02h).
    PowerManagement(u32) {
        /// Power State.
        state / with_state: 0, 5 => u8;
        /// Workload Hint.
        workload / with_workload: 5, 3 => u8;
    }
}

bit_fields! {
    /// Temperature Threshold (FID 04h).
    TemperatureThreshold(u32) {
        /// Threshold in kelvin.
        kelvin / with_kelvin: 0, 16 => u16;
        /// Sensor: 0 composite, 1 to 8, Fh all.
        sensor / with_sensor: 16, 4 => u8;
        /// Type: 0 over, 1 under.
        kind / with_kind: 20, 2 => u8;
    }
}

bit_fields! {
    /// Error Recovery (FID 05h).
    ErrorRecovery(u32) {
        /// Time Limited Error Recovery in 100 ms units; 0 = no limit.
        tler / with_tler: 0, 16 => u16;
        /// Deallocated or Unwritten Logical Block Error Enable.
        dulbe / with_dulbe: 16, 1 => bool;
    }
}

bit_fields! {
    /// Volatile Write Cache (FID 06h).
    WriteCache(u32) {
        /// Enabled.
        enabled / with_enabled: 0, 1 => bool;
    }
}

bit_fields! {
    /// Interrupt Coalescing (FID 08h).
    InterruptCoalescing(u32) {
        /// Aggregation Threshold in completions, zero-based.
        threshold_z / with_threshold_z: 0, 8 => u8;
        /// Aggregation Time in 100 us units.
        time / with_time: 8, 8 => u8;
    }
}

bit_fields! {
    /// Interrupt Vector Configuration (FID 09h).
    InterruptVector(u32) {
        /// Vector.
        vector / with_vector: 0, 16 => u16;
        /// Coalescing Disable.
        coalescing_disable / with_coalescing_disable: 16, 1 => bool;
    }
}

bit_fields! {
    /// Write Atomicity Normal (FID 0Ah).
    WriteAtomicity(u32) {
        /// Disable Normal: only AWUPF and NAWUPF have to be kept.
        disable_normal / with_disable_normal: 0, 1 => bool;
    }
}

bit_fields! {
    /// Host Identifier (FID 81h), dword 11.
    HostIdentifier(u32) {
        /// Enable Extended Host Identifier: 128 bits; fabrics demand it.
        extended / with_extended: 0, 1 => bool;
    }
}

bit_fields! {
    /// Reservation Persistence (FID 83h).
    ReservationPersistence(u32) {
        /// Persist Through Power Loss.
        ptpl / with_ptpl: 0, 1 => bool;
    }
}

bit_set! {
    /// Reservation Notification Mask (FID 82h): a bit that is set suppresses the notification.
    ReservationMask(u32 => zerocopy::little_endian::U32) {
        REGISTRATION_PREEMPTED = 1 << 1, "Registration Preempted";
        RESERVATION_RELEASED = 1 << 2, "Reservation Released";
        RESERVATION_PREEMPTED = 1 << 3, "Reservation Preempted";
    }
}

open_codes! {
    /// Write Protection State (FID 84h, dword 11 bits 2:0).
    WriteProtection(u32 => zerocopy::little_endian::U32) {
        NONE = 0, "No Write Protect";
        PROTECTED = 1, "Write Protect";
        UNTIL_POWER_CYCLE = 2, "Write Protect Until Power Cycle";
        PERMANENT = 3, "Permanent Write Protect";
    }
}

wire_struct! {
    /// Timestamp (FID 0Eh): data of 8 bytes.
    #[derive(Debug)]
    Timestamp, 8, {
        /// Milliseconds since 1970, 48 bits, least significant byte first.
        ms: [u8; 6],
        /// Bit 0: time may have stopped. Bits 3:1: 0 = since reset, 1 = set by the host.
        attributes: u8,
        /// Reserved.
        reserved7: u8,
    }
}

impl Timestamp {
    /// A reading; the top 16 bits of `ms` are dropped. `set_by_host`: Set Features gave the time, otherwise it
    /// counts from the last controller level reset.
    pub const fn new(ms: u64, set_by_host: bool) -> Self {
        let [a, b, c, d, e, f, _, _] = ms.to_le_bytes();
        Self { ms: [a, b, c, d, e, f], attributes: (set_by_host as u8) << 1, reserved7: 0 }
    }

    /// Milliseconds.
    pub const fn ms(&self) -> u64 {
        let [a, b, c, d, e, f] = self.ms;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

wire_struct! {
    /// Host Behavior Support (FID 16h): data of 512 bytes.
    HostBehavior, 512, {
        /// Advanced Command Retry Enable: 1 = the host honours CRD.
        acre: u8,
        /// Extended Telemetry Data Area 4 Supported.
        etdas: u8,
        /// LBA Format Extension Enable.
        lbafee: u8,
        /// Reserved.
        reserved3: [u8; 509],
    }
}

wire_struct! {
    /// One LBA range of LBA Range Type (FID 03h): 64 bytes.
    #[derive(Debug)]
    LbaRange, 64, {
        /// Type.
        kind: u8,
        /// Attributes: bit 0 may be overwritten, bit 1 hidden.
        attributes: u8,
        /// Reserved.
        reserved2: [u8; 14],
        /// Starting LBA.
        slba: zerocopy::little_endian::U64,
        /// Number of blocks, zero-based.
        nlb_z: zerocopy::little_endian::U64,
        /// Unique Identifier.
        guid: [u8; 16],
        /// Reserved.
        reserved48: [u8; 16],
    }
}

bit_set! {
    /// SMART warnings that raise an event: the low byte of Asynchronous Event Configuration, and the Critical
    /// Warning byte of the SMART log page.
    CriticalWarning(u8 => u8) {
        SPARE = 1 << 0, "The available spare is below its threshold";
        TEMPERATURE = 1 << 1, "A temperature is beyond its threshold";
        RELIABILITY = 1 << 2, "Reliability is degraded by media or internal errors";
        READ_ONLY = 1 << 3, "The media is read only";
        BACKUP = 1 << 4, "The volatile memory backup device failed";
        PERSISTENT_MEMORY = 1 << 5, "The Persistent Memory Region is read only or unreliable";
    }
}

impl Oaes {
    /// The SMART warnings in the low byte of an Asynchronous Event Configuration.
    pub const fn smart_warnings(self) -> CriticalWarning {
        CriticalWarning::from_bits(self.bits() as u8)
    }
}

/// A temperature in degrees Celsius as the kelvin field of features and logs; below absolute zero counts as 0.
pub const fn celsius(degrees: i16) -> U16 {
    let kelvin = degrees.saturating_add(273);
    U16::new(if kelvin < 0 { 0 } else { kelvin as u16 })
}
