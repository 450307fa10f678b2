//! SMART / Health Information (LID 02h; NVMe Base 2.0, section 5.16.1.3).

use zerocopy::little_endian::{U16, U32, U128};

pub use crate::feature::CriticalWarning;

/// Blocks of 512 bytes in one data unit.
const DATA_UNIT_BYTES: u128 = 512 * 1000;

wire_struct! {
    /// The page: 512 bytes.
    SmartLog, 512, {
        /// Critical Warning.
        critical_warning: CriticalWarning,
        /// Composite Temperature in kelvin.
        temperature: U16,
        /// Available Spare in percent.
        spare: u8,
        /// Available Spare Threshold in percent.
        spare_threshold: u8,
        /// Percentage Used; may exceed 100, 255 = or more.
        percentage_used: u8,
        /// Endurance Group Critical Warning Summary.
        group_warning: u8,
        /// Reserved.
        reserved7: [u8; 25],
        /// Data Units Read: thousands of 512 bytes, rounded up.
        data_units_read: U128,
        /// Data Units Written: thousands of 512 bytes, rounded up.
        data_units_written: U128,
        /// Host Read Commands.
        host_reads: U128,
        /// Host Write Commands.
        host_writes: U128,
        /// Controller Busy Time in minutes.
        busy_minutes: U128,
        /// Power Cycles.
        power_cycles: U128,
        /// Power On Hours.
        power_on_hours: U128,
        /// Unsafe Shutdowns.
        unsafe_shutdowns: U128,
        /// Media and Data Integrity Errors.
        media_errors: U128,
        /// Number of Error Information Log Entries over the controller's life.
        error_entries: U128,
        /// Warning Composite Temperature Time in minutes.
        warning_minutes: U32,
        /// Critical Composite Temperature Time in minutes.
        critical_minutes: U32,
        /// Temperature Sensors 1 to 8 in kelvin; 0 = not there.
        sensors: [U16; 8],
        /// Thermal Management Temperature 1 and 2 Transition Counts.
        thermal_transitions: [U32; 2],
        /// Total Time For Thermal Management Temperature 1 and 2 in seconds.
        thermal_seconds: [U32; 2],
        /// Reserved.
        reserved232: [u8; 280],
    }
}

/// Bytes as data units: thousands of 512 bytes, rounded up.
pub const fn data_units(bytes: u128) -> U128 {
    U128::new(bytes.div_ceil(DATA_UNIT_BYTES))
}
