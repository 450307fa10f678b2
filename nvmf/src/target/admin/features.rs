//! Get Features and Set Features (NVMe Base 2.0, sections 5.15 and 5.27; NVM Command Set 1.0, section 4.1.3).
//!
//! Nothing is saveable: what a host sets lasts until the next Controller Level Reset.

use std::sync::Arc;

use aio::Instant;
use nvme::feature::{
    ErrorRecovery, FeatureCapabilities, Fid, GetFeatures, HostBehavior, HostIdentifier, Oaes,
    PowerManagement, QueueCounts, Select, SetFeatures, TemperatureThreshold, Timestamp, WriteAtomicity,
    WriteCache,
};
use nvme::{HostId, Sqe, Status};

use super::reservations::{self, Masks};
use super::{AdminOutcome, to_host};
use crate::target::config::TargetConfig;
use crate::target::controller::{Controller, ControllerKind};

/// The features of an I/O controller; Volatile Write Cache only where there is one.
pub(super) const FEATURES: [Fid; 14] = [
    Fid::ARBITRATION,
    Fid::POWER_MANAGEMENT,
    Fid::TEMPERATURE_THRESHOLD,
    Fid::ERROR_RECOVERY,
    Fid::VOLATILE_WRITE_CACHE,
    Fid::NUMBER_OF_QUEUES,
    Fid::WRITE_ATOMICITY,
    Fid::ASYNC_EVENT_CONFIG,
    Fid::TIMESTAMP,
    Fid::KEEP_ALIVE_TIMER,
    Fid::HOST_BEHAVIOR,
    Fid::HOST_IDENTIFIER,
    Fid::RESERVATION_MASK,
    Fid::RESERVATION_PERSISTENCE,
];

/// The features of a discovery controller.
const DISCOVERY_FEATURES: [Fid; 2] = [Fid::ASYNC_EVENT_CONFIG, Fid::KEEP_ALIVE_TIMER];

/// What a controller of each kind can be asked to report. SMART / Health warnings (bits 7:0) can be asked for,
/// but there is no sensor that raises them.
fn known_events(kind: ControllerKind) -> Oaes {
    match kind {
        ControllerKind::Io => Oaes::from_bits(0xff) | Oaes::NAMESPACE_ATTRIBUTE | Oaes::ANA_CHANGE,
        ControllerKind::Discovery => Oaes::DISCOVERY_LOG,
    }
}

/// The values of one controller.
#[derive(Clone)]
pub(in crate::target) struct Features {
    arbitration: u32,
    temperature_over: u16,
    temperature_under: u16,
    error_recovery: ErrorRecovery,
    io_queues: u16,
    write_atomicity: WriteAtomicity,
    async_events: Oaes,
    /// Milliseconds since 1970 as the host said, and when it said so.
    timestamp: Option<(u64, Instant)>,
    host_behavior: HostBehavior,
    hostid: HostId,
    masks: Masks,
}

impl Features {
    pub(super) fn new(config: &TargetConfig, hostid: HostId) -> Self {
        Self {
            arbitration: 0,
            temperature_over: 0xffff,
            temperature_under: 0,
            error_recovery: ErrorRecovery(0),
            io_queues: config.io_queues,
            write_atomicity: WriteAtomicity(0),
            async_events: Oaes::NONE,
            timestamp: None,
            host_behavior: HostBehavior::zeroed(),
            hostid,
            masks: Masks::default(),
        }
    }

    /// How many I/O queues the host may connect.
    pub(in crate::target) fn io_queues(&self) -> u16 {
        self.io_queues
    }

    /// The notices that the host wants.
    pub(super) fn async_events(&self) -> Oaes {
        self.async_events
    }

    /// Which reservation notifications the host does not want.
    pub(super) fn masks(&self) -> &Masks {
        &self.masks
    }

    pub(super) fn masks_mut(&mut self) -> &mut Masks {
        &mut self.masks
    }

    pub(super) fn hostid(&self) -> HostId {
        self.hostid
    }

    fn timestamp_now(&self, now: Instant) -> Timestamp {
        match self.timestamp {
            Some((ms, at)) => Timestamp::new(ms.wrapping_add(now.since(at).as_millis() as u64), true),
            None => Timestamp::new(now.as_ns() / 1_000_000, false),
        }
    }

    /// The composite temperature is the only one.
    fn temperature(&mut self, which: TemperatureThreshold) -> Result<&mut u16, Status> {
        match (which.sensor(), which.kind()) {
            (0, 0) => Ok(&mut self.temperature_over),
            (0, 1) => Ok(&mut self.temperature_under),
            _ => Err(Status::INVALID_FIELD),
        }
    }
}

impl Controller {
    pub(super) fn get_features(&self, sqe: &Sqe, now: Instant) -> Result<AdminOutcome, Status> {
        let get = GetFeatures::decode(sqe);
        if !self.has_feature(get.fid) {
            return Err(Status::INVALID_FIELD);
        }
        if reservations::is_feature(get.fid) {
            return self.get_reservation_feature(&get);
        }
        let state = self.lock();
        let mut values = match get.select {
            Select::CURRENT => state.admin.features.clone(),
            // Nothing can be saved, so that what would be restored is the default.
            Select::DEFAULT | Select::SAVED => Features::new(&self.shared.config, self.hostid()),
            Select::CAPABILITIES => {
                let fixed = matches!(get.fid, Fid::VOLATILE_WRITE_CACHE | Fid::HOST_IDENTIFIER);
                let capabilities = FeatureCapabilities::NONE.with_if(FeatureCapabilities::CHANGEABLE, !fixed);
                return Ok(AdminOutcome::success(u64::from(capabilities.bits())));
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        let value = match get.fid {
            Fid::ARBITRATION => values.arbitration,
            Fid::POWER_MANAGEMENT => PowerManagement(0).0,
            Fid::TEMPERATURE_THRESHOLD => u32::from(*values.temperature(TemperatureThreshold(get.cdw11))?),
            Fid::ERROR_RECOVERY => values.error_recovery.0,
            Fid::VOLATILE_WRITE_CACHE => WriteCache(0).with_enabled(true).0,
            Fid::NUMBER_OF_QUEUES => QueueCounts::new(values.io_queues).0,
            Fid::WRITE_ATOMICITY => values.write_atomicity.0,
            Fid::ASYNC_EVENT_CONFIG => values.async_events.bits(),
            Fid::KEEP_ALIVE_TIMER if get.select == Select::CURRENT => state.kato_ms,
            Fid::KEEP_ALIVE_TIMER => 0,
            Fid::TIMESTAMP => return to_host(sqe, values.timestamp_now(now).wire().to_vec()),
            Fid::HOST_BEHAVIOR => return to_host(sqe, values.host_behavior.wire().to_vec()),
            // Over fabrics only the 128-bit form exists.
            Fid::HOST_IDENTIFIER if HostIdentifier(get.cdw11).extended() => {
                return to_host(sqe, values.hostid.0.to_vec());
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok(AdminOutcome::success(u64::from(value)))
    }

    pub(super) fn set_features(
        self: &Arc<Self>,
        sqe: &Sqe,
        data: &[u8],
        now: Instant,
    ) -> Result<AdminOutcome, Status> {
        let set = SetFeatures::decode(sqe);
        if !self.has_feature(set.fid) {
            return Err(Status::INVALID_FIELD);
        }
        if reservations::is_feature(set.fid) {
            return self.set_reservation_feature(sqe, &set);
        }
        if set.save {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        if set.nsid.is_one() {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
        }
        let mut state = self.lock();
        let has_io_queues = state.has_io_queues();
        let values = &mut state.admin.features;
        match set.fid {
            Fid::ARBITRATION => values.arbitration = set.cdw11,
            // There is one power state.
            Fid::POWER_MANAGEMENT if PowerManagement(set.cdw11).state() == 0 => (),
            Fid::TEMPERATURE_THRESHOLD => {
                let wanted = TemperatureThreshold(set.cdw11);
                // Fh is all sensors, of which there is one.
                let sensor = if wanted.sensor() == 0xf { 0 } else { wanted.sensor() };
                *values.temperature(wanted.with_sensor(sensor))? = wanted.kelvin();
            }
            // An error upon deallocated blocks needs namespaces that can tell.
            Fid::ERROR_RECOVERY if !ErrorRecovery(set.cdw11).dulbe() => {
                values.error_recovery = ErrorRecovery(0).with_tler(ErrorRecovery(set.cdw11).tler());
            }
            Fid::VOLATILE_WRITE_CACHE if WriteCache(set.cdw11).enabled() => (),
            Fid::VOLATILE_WRITE_CACHE => return Err(Status::FEATURE_NOT_CHANGEABLE),
            Fid::NUMBER_OF_QUEUES => {
                let wanted = QueueCounts(set.cdw11);
                if wanted.is_invalid() {
                    return Err(Status::INVALID_FIELD);
                }
                if has_io_queues {
                    return Err(Status::SEQUENCE_ERROR);
                }
                let most = self.shared.config.io_queues;
                values.io_queues = u16::try_from(wanted.pairs()).map_or(most, |pairs| pairs.min(most));
                return Ok(AdminOutcome::success(u64::from(QueueCounts::new(values.io_queues).0)));
            }
            Fid::WRITE_ATOMICITY => {
                let normal = WriteAtomicity(set.cdw11).disable_normal();
                values.write_atomicity = WriteAtomicity(0).with_disable_normal(normal);
            }
            Fid::ASYNC_EVENT_CONFIG => {
                values.async_events = Oaes::from_bits(set.cdw11) & known_events(self.kind());
            }
            Fid::TIMESTAMP => {
                let timestamp = Timestamp::view(data).ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
                values.timestamp = Some((timestamp.ms(), now));
            }
            Fid::KEEP_ALIVE_TIMER => {
                if u128::from(set.cdw11) > self.shared.config.kato_max.as_millis() {
                    return Err(Status::KEEP_ALIVE_INVALID);
                }
                state.kato_ms = set.cdw11;
            }
            Fid::HOST_BEHAVIOR => {
                let behavior = HostBehavior::view(data).ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
                if [behavior.acre, behavior.etdas, behavior.lbafee].iter().any(|flag| *flag > 1) {
                    return Err(Status::INVALID_FIELD);
                }
                values.host_behavior = *behavior;
                self.set_retry_delay(behavior.acre == 1);
            }
            // Connect said it, and it stays (NVMe Base 2.0, section 5.27.1.25).
            Fid::HOST_IDENTIFIER => return Err(Status::SEQUENCE_ERROR),
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(AdminOutcome::success(0))
    }

    /// Whether this controller has the feature at all.
    fn has_feature(&self, fid: Fid) -> bool {
        match self.kind() {
            ControllerKind::Discovery => DISCOVERY_FEATURES.contains(&fid),
            ControllerKind::Io if fid == Fid::VOLATILE_WRITE_CACHE => self.has_volatile_cache(),
            ControllerKind::Io => FEATURES.contains(&fid),
        }
    }
}
