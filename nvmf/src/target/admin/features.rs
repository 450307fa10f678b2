//! Get Features and Set Features (NVMe Base 2.0, sections 5.15 and 5.27; NVM Command Set 1.0, section 4.1.3).
//!
//! Nothing is saveable: what a host sets lasts until the next Controller Level Reset.

use nvme::{HostId, Nsid, Sqe, Status};

use super::events::notice;
use super::{AdminOutcome, to_host};
use crate::target::config::TargetConfig;
use crate::target::controller::{Controller, ControllerKind};

/// Feature identifiers.
mod fid {
    pub(super) const ARBITRATION: u8 = 0x01;
    pub(super) const POWER_MANAGEMENT: u8 = 0x02;
    pub(super) const TEMPERATURE_THRESHOLD: u8 = 0x04;
    pub(super) const ERROR_RECOVERY: u8 = 0x05;
    pub(super) const VOLATILE_WRITE_CACHE: u8 = 0x06;
    pub(super) const NUMBER_OF_QUEUES: u8 = 0x07;
    pub(super) const WRITE_ATOMICITY_NORMAL: u8 = 0x0a;
    pub(super) const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
    pub(super) const TIMESTAMP: u8 = 0x0e;
    pub(super) const KEEP_ALIVE_TIMER: u8 = 0x0f;
    pub(super) const HOST_BEHAVIOR: u8 = 0x16;
    pub(super) const HOST_IDENTIFIER: u8 = 0x81;
}

/// Bits of Asynchronous Event Configuration that a controller of each kind knows.
fn known_events(kind: ControllerKind) -> u32 {
    match kind {
        // SMART / Health critical warnings can be asked for; there is no sensor that raises them.
        ControllerKind::Io => 0xff | notice::NAMESPACE | notice::ANA,
        ControllerKind::Discovery => notice::DISCOVERY,
    }
}

/// Which value Get Features returns (CDW10 bits 10:8).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Select {
    Current,
    /// Default, and Saved, which is the same because nothing can be saved.
    Default,
    Supported,
}

/// The values of one controller.
#[derive(Clone)]
pub(in crate::target) struct Features {
    arbitration: u32,
    temperature_over: u16,
    temperature_under: u16,
    error_recovery: u32,
    queues_z: u16,
    write_atomicity: u32,
    async_events: u32,
    /// Milliseconds since 1970 as the host said, and when it said so.
    timestamp: Option<(u64, aio::Instant)>,
    host_behavior: [u8; 512],
    hostid: HostId,
}

impl Features {
    pub(super) fn new(config: &TargetConfig, hostid: HostId) -> Self {
        Self {
            arbitration: 0,
            temperature_over: 0xffff,
            temperature_under: 0,
            error_recovery: 0,
            queues_z: config.io_queues - 1,
            write_atomicity: 0,
            async_events: 0,
            timestamp: None,
            host_behavior: [0; 512],
            hostid,
        }
    }

    /// How many I/O queues the host may connect.
    pub(in crate::target) fn io_queues(&self) -> u16 {
        self.queues_z + 1
    }

    /// The notices that the host wants, as bits of Asynchronous Event Configuration.
    pub(super) fn async_events(&self) -> u32 {
        self.async_events
    }

    pub(super) fn hostid(&self) -> HostId {
        self.hostid
    }

    /// Advanced Command Retry Enable: statuses may carry a Command Retry Delay.
    pub(in crate::target) fn advanced_retry(&self) -> bool {
        self.host_behavior[0] == 1
    }

    fn queues_result(&self) -> u32 {
        u32::from(self.queues_z) << 16 | u32::from(self.queues_z)
    }

    fn timestamp_data(&self, now: aio::Instant) -> [u8; 8] {
        // Byte 6: bits 3:1 say where the value comes from: 0 = counts since reset, 1 = the host set it.
        let (ms, origin) = match self.timestamp {
            Some((ms, at)) => (ms.wrapping_add(now.since(at).as_millis() as u64), 1u8),
            None => (now.as_ns() / 1_000_000, 0),
        };
        let mut data = ms.to_le_bytes();
        data[6] = origin << 1;
        data[7] = 0;
        data
    }
}

impl Controller {
    pub(super) fn get_features(&self, sqe: &Sqe, now: aio::Instant) -> Result<AdminOutcome, Status> {
        let id = sqe.cdw10.get() as u8;
        let select = match sqe.cdw10.get() >> 8 & 7 {
            0 => Select::Current,
            1 | 2 => Select::Default,
            3 => Select::Supported,
            _ => return Err(Status::INVALID_FIELD),
        };
        let cache = self.has_volatile_cache();
        if !self.has_feature(id, cache) {
            return Err(Status::INVALID_FIELD);
        }
        if select == Select::Supported {
            // Bit 0 saveable, bit 1 namespace specific, bit 2 changeable.
            let fixed = matches!(id, fid::VOLATILE_WRITE_CACHE | fid::HOST_IDENTIFIER);
            return Ok(AdminOutcome::success(if fixed { 0 } else { 4 }));
        }
        let state = self.lock();
        let current = &state.admin.features;
        let default = Features::new(&self.shared.config, current.hostid);
        let values = if select == Select::Current { current } else { &default };
        let value = match id {
            fid::ARBITRATION => values.arbitration,
            fid::POWER_MANAGEMENT => 0,
            fid::TEMPERATURE_THRESHOLD => temperature(values, sqe.cdw11.get())?,
            fid::ERROR_RECOVERY => values.error_recovery,
            fid::VOLATILE_WRITE_CACHE => 1,
            fid::NUMBER_OF_QUEUES => values.queues_result(),
            fid::WRITE_ATOMICITY_NORMAL => values.write_atomicity,
            fid::ASYNC_EVENT_CONFIGURATION => values.async_events,
            fid::KEEP_ALIVE_TIMER if select == Select::Current => state.kato_ms,
            fid::KEEP_ALIVE_TIMER => 0,
            fid::TIMESTAMP => return to_host(sqe, values.timestamp_data(now).to_vec()),
            fid::HOST_BEHAVIOR => return to_host(sqe, values.host_behavior.to_vec()),
            fid::HOST_IDENTIFIER => {
                // Over fabrics only the 128-bit form exists (EXHID).
                if sqe.cdw11.get() & 1 == 0 {
                    return Err(Status::INVALID_FIELD);
                }
                return to_host(sqe, values.hostid.0.to_vec());
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok(AdminOutcome::success(u64::from(value)))
    }

    pub(super) fn set_features(
        &self,
        sqe: &Sqe,
        data: &[u8],
        now: aio::Instant,
    ) -> Result<AdminOutcome, Status> {
        let id = sqe.cdw10.get() as u8;
        let value = sqe.cdw11.get();
        if !self.has_feature(id, self.has_volatile_cache()) {
            return Err(Status::INVALID_FIELD);
        }
        if sqe.cdw10.get() & 1 << 31 != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        if sqe.nsid().is_one() || (sqe.nsid() == Nsid::BROADCAST && self.kind() == ControllerKind::Discovery)
        {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
        }
        let mut state = self.lock();
        let io_queues = state.has_io_queues();
        let features = &mut state.admin.features;
        match id {
            fid::ARBITRATION => features.arbitration = value,
            // Power state 0 is the only one.
            fid::POWER_MANAGEMENT if value & 0x1f == 0 => (),
            fid::TEMPERATURE_THRESHOLD => set_temperature(features, value)?,
            // Deallocated or Unwritten Logical Block Error Enable needs namespaces that can tell.
            fid::ERROR_RECOVERY if value & 1 << 16 == 0 => features.error_recovery = value & 0xffff,
            fid::VOLATILE_WRITE_CACHE if value & 1 == 1 => (),
            fid::VOLATILE_WRITE_CACHE => return Err(Status::FEATURE_NOT_CHANGEABLE),
            fid::NUMBER_OF_QUEUES => {
                let granted_z = grant_queues(value, self.shared.config.io_queues)?;
                if io_queues {
                    return Err(Status::SEQUENCE_ERROR);
                }
                features.queues_z = granted_z;
                return Ok(AdminOutcome::success(u64::from(features.queues_result())));
            }
            fid::WRITE_ATOMICITY_NORMAL => features.write_atomicity = value & 1,
            fid::ASYNC_EVENT_CONFIGURATION => {
                features.async_events = value & known_events(self.kind());
            }
            fid::TIMESTAMP => {
                let bytes: &[u8; 8] = data.first_chunk().ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
                features.timestamp = Some((u64::from_le_bytes(*bytes) & 0xffff_ffff_ffff, now));
            }
            fid::KEEP_ALIVE_TIMER => {
                if u128::from(value) > self.shared.config.kato_max.as_millis() {
                    return Err(Status::KEEP_ALIVE_INVALID);
                }
                state.kato_ms = value;
            }
            fid::HOST_BEHAVIOR => {
                let bytes: &[u8; 512] = data.first_chunk().ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
                // ACRE, ETDAS, LBAFEE: each off or on.
                if bytes[..3].iter().any(|flag| *flag > 1) {
                    return Err(Status::INVALID_FIELD);
                }
                features.host_behavior = *bytes;
            }
            // Connect said it, and it stays (NVMe Base 2.0, section 5.27.1.25).
            fid::HOST_IDENTIFIER => return Err(Status::SEQUENCE_ERROR),
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(AdminOutcome::success(0))
    }

    /// Whether this controller has the feature at all.
    fn has_feature(&self, id: u8, volatile_cache: bool) -> bool {
        let everywhere = matches!(id, fid::ASYNC_EVENT_CONFIGURATION | fid::KEEP_ALIVE_TIMER);
        match self.kind() {
            ControllerKind::Discovery => everywhere,
            ControllerKind::Io => match id {
                fid::VOLATILE_WRITE_CACHE => volatile_cache,
                fid::ARBITRATION
                | fid::POWER_MANAGEMENT
                | fid::TEMPERATURE_THRESHOLD
                | fid::ERROR_RECOVERY
                | fid::NUMBER_OF_QUEUES
                | fid::WRITE_ATOMICITY_NORMAL
                | fid::TIMESTAMP
                | fid::HOST_BEHAVIOR
                | fid::HOST_IDENTIFIER => true,
                _ => everywhere,
            },
        }
    }
}

/// The zero-based number of I/O queues for what the host asked: submission queues in the low half, completion
/// queues in the high half, both zero-based. Over fabrics the two come in pairs.
fn grant_queues(asked: u32, most: u16) -> Result<u16, Status> {
    let (submission_z, completion_z) = (asked as u16, (asked >> 16) as u16);
    if submission_z == 0xffff || completion_z == 0xffff {
        return Err(Status::INVALID_FIELD);
    }
    Ok(submission_z.min(completion_z).min(most - 1))
}

/// The composite temperature (TMPSEL 0) is the only one; THSEL 0 = over, 1 = under.
fn temperature(features: &Features, cdw11: u32) -> Result<u32, Status> {
    match (cdw11 >> 16 & 0xf, cdw11 >> 20 & 3) {
        (0, 0) => Ok(u32::from(features.temperature_over)),
        (0, 1) => Ok(u32::from(features.temperature_under)),
        _ => Err(Status::INVALID_FIELD),
    }
}

fn set_temperature(features: &mut Features, cdw11: u32) -> Result<(), Status> {
    let value = cdw11 as u16;
    match (cdw11 >> 16 & 0xf, cdw11 >> 20 & 3) {
        // TMPSEL Fh = all sensors, of which there is one.
        (0 | 0xf, 0) => features.temperature_over = value,
        (0 | 0xf, 1) => features.temperature_under = value,
        _ => return Err(Status::INVALID_FIELD),
    }
    Ok(())
}
