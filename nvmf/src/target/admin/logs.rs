//! Get Log Page (NVMe Base 2.0, section 5.16).

use std::borrow::Cow;

use aio::Instant;
use nvme::feature::Fid;
use nvme::identify::controller::Oncs;
use nvme::log::smart::data_units;
use nvme::log::{
    AnaLog, CommandEffects, EffectsLog, FeatureEffects, FeatureEffectsLog, FirmwareSlotLog, GetLogPage, Lid,
    SmartLog, SupportedLogPages, ana, changed_namespaces,
};
use nvme::vendor::facets;
use nvme::vendor::{LID_ASSOCIATION, OPCODE_END_ASSOCIATION};
use nvme::{AdminOpcode, Nsid, NvmOpcode, Sqe, Status};

use super::features::FEATURES;
use super::identify::oncs;
use super::reservations::is_feature;
use super::{AdminOutcome, to_host};
use crate::target::ana::ListenerId;
use crate::target::controller::{Controller, ControllerKind};
use crate::target::model::{Model, Subsystem};

/// The pages of an I/O controller; ANA comes on top where it is reported.
const IO_PAGES: [Lid; 10] = [
    Lid::SUPPORTED,
    Lid::ERROR,
    Lid::SMART,
    Lid::FIRMWARE_SLOT,
    Lid::CHANGED_NAMESPACES,
    Lid::EFFECTS,
    Lid::FEATURE_EFFECTS,
    Lid::MI_EFFECTS,
    Lid::RESERVATION,
    LID_ASSOCIATION,
];

/// The pages of a discovery controller.
const DISCOVERY_PAGES: [Lid; 3] = [Lid::SUPPORTED, Lid::ERROR, Lid::DISCOVERY];

/// Length of the page of NVMe-MI commands, of which there are none.
const MI_EFFECTS_LEN_BYTES: usize = 4096;

impl Controller {
    pub(super) fn get_log_page(&self, sqe: &Sqe, now: Instant) -> Result<AdminOutcome, Status> {
        let get = GetLogPage::decode(sqe);
        // MDTS counts for log pages too, and bounds what is allocated.
        if get.len_bytes > u64::from(self.shared.config.max_io_bytes) {
            return Err(Status::INVALID_FIELD);
        }
        let mut guard = self.shared.lock();
        let model = &mut *guard;
        let subsystem = model.subsystem(self.subsystem()).ok_or(Status::INTERNAL_ERROR)?;
        let pages = self.pages(subsystem);
        if !pages.contains(&get.lid) {
            return Err(Status::INVALID_LOG_PAGE);
        }
        let page: Cow<'_, [u8]> = match get.lid {
            Lid::SUPPORTED => SupportedLogPages::build(&pages).wire().to_vec().into(),
            Lid::ERROR => self.lock().admin.errors.page().into(),
            Lid::SMART => self.smart(model, subsystem, get.nsid, now)?.into(),
            Lid::FIRMWARE_SLOT => {
                FirmwareSlotLog::single(&self.shared.config.firmware).wire().to_vec().into()
            }
            Lid::CHANGED_NAMESPACES => {
                changed_namespaces(self.lock().admin.events.changed_namespaces()).wire().to_vec().into()
            }
            Lid::EFFECTS => effects(subsystem).into(),
            Lid::FEATURE_EFFECTS => feature_effects().into(),
            Lid::MI_EFFECTS => vec![0; MI_EFFECTS_LEN_BYTES].into(),
            LID_ASSOCIATION => self.association_page(subsystem, get.nsid).into(),
            Lid::RESERVATION => self.lock().admin.events.notifications.page().wire().to_vec().into(),
            Lid::ANA => ana_page(subsystem, self.listener(), get.lsp & ana::RETURN_GROUPS_ONLY != 0).into(),
            _ => self.discovery_page(model).into(),
        };
        // What lies beyond the end of a page reads as zeroes.
        let mut data = get.window(&page)?.to_vec();
        data.resize(get.len_bytes as usize, 0);
        let outcome = to_host(sqe, data)?;
        if !get.rae {
            // Still under the model's lock: no change comes between the page and this.
            let mut state = self.lock();
            let admin = &mut state.admin;
            admin.events.clear(get.lid);
            // The next notification, when there is one.
            admin.events.report(&admin.features, &mut admin.completions);
            self.announce_completions(&state);
        }
        Ok(outcome)
    }

    fn pages(&self, subsystem: &Subsystem) -> Vec<Lid> {
        match self.kind() {
            ControllerKind::Discovery => DISCOVERY_PAGES.to_vec(),
            ControllerKind::Io => {
                let ana = (subsystem.ana.table.groups() > 0).then_some(Lid::ANA);
                IO_PAGES.into_iter().chain(ana).collect()
            }
        }
    }

    /// SMART of one namespace, or of the whole subsystem. There are no sensors: temperature and spare say
    /// nothing is wrong.
    fn smart(
        &self,
        model: &Model,
        subsystem: &Subsystem,
        nsid: Nsid,
        now: Instant,
    ) -> Result<Vec<u8>, Status> {
        let totals = match nsid {
            Nsid::NONE | Nsid::BROADCAST => subsystem.totals(),
            one => subsystem.namespace(one).ok_or(Status::INVALID_NAMESPACE)?.totals(),
        };
        let hours = model.started.map_or(0, |started| now.since(started).as_secs() / 3600);
        let wide = |n: u64| u128::from(n).into();
        Ok(SmartLog {
            spare: 100,
            data_units_read: data_units(totals.read_bytes.into()),
            data_units_written: data_units(totals.write_bytes.into()),
            host_reads: wide(totals.read_commands),
            host_writes: wide(totals.write_commands),
            busy_minutes: wide(totals.busy_ns / 60_000_000_000),
            power_cycles: 1.into(),
            power_on_hours: wide(hours),
            media_errors: wide(totals.media_errors),
            error_entries: wide(self.lock().admin.errors.count()),
            ..SmartLog::zeroed()
        }
        .wire()
        .to_vec())
    }
}

fn ana_page(subsystem: &Subsystem, listener: ListenerId, groups_only: bool) -> Vec<u8> {
    let table = &subsystem.ana.table;
    let mut log = AnaLog::new(subsystem.ana.changes, groups_only);
    for group in 1..=u32::from(table.groups()) {
        let state = ana::AnaState::new(table.state(listener, group) as u8);
        let members = subsystem.active().filter(|ns| ns.info.ana_group == group).map(|ns| ns.info.nsid);
        log.group(group, state, subsystem.ana.changes, members);
    }
    let mut page = log.finish();
    // Hosts compute the length for the most namespaces there can be, and read it in pieces: all of it is there.
    let members = if groups_only { 0 } else { subsystem.max_namespaces as usize };
    page.resize(
        ana::AnaHeader::LEN_BYTES
            + usize::from(table.groups()) * ana::AnaGroupHeader::LEN_BYTES
            + 4 * members,
        0,
    );
    page
}

fn effects(subsystem: &Subsystem) -> Vec<u8> {
    const ADMIN: [AdminOpcode; 8] = [
        AdminOpcode::GET_LOG_PAGE,
        AdminOpcode::IDENTIFY,
        AdminOpcode::ABORT,
        AdminOpcode::SET_FEATURES,
        AdminOpcode::GET_FEATURES,
        AdminOpcode::ASYNC_EVENT_REQUEST,
        AdminOpcode::KEEP_ALIVE,
        OPCODE_END_ASSOCIATION,
    ];
    let mut log = EffectsLog::zeroed();
    for opcode in ADMIN {
        log.admin[usize::from(opcode.get())] = CommandEffects::SUPPORTED | CommandEffects::CONTROLLER_SCOPE;
    }
    for opcode in facets::OPCODES {
        log.admin[usize::from(opcode.get())] = CommandEffects::SUPPORTED | CommandEffects::NAMESPACE_SCOPE;
    }
    let oncs = oncs(subsystem);
    let commands = [
        (NvmOpcode::FLUSH, true, false),
        (NvmOpcode::WRITE, true, true),
        (NvmOpcode::READ, true, false),
        (NvmOpcode::COMPARE, oncs.contains(Oncs::COMPARE), false),
        (NvmOpcode::WRITE_ZEROES, oncs.contains(Oncs::WRITE_ZEROES), true),
        (NvmOpcode::DATASET_MANAGEMENT, oncs.contains(Oncs::DATASET_MANAGEMENT), true),
        (NvmOpcode::VERIFY, oncs.contains(Oncs::VERIFY), false),
        (NvmOpcode::COPY, oncs.contains(Oncs::COPY), true),
        (NvmOpcode::RESERVATION_REGISTER, true, false),
        (NvmOpcode::RESERVATION_REPORT, true, false),
        (NvmOpcode::RESERVATION_ACQUIRE, true, false),
        (NvmOpcode::RESERVATION_RELEASE, true, false),
    ];
    for (opcode, supported, changes) in commands {
        if supported {
            log.io[usize::from(opcode.get())] = (CommandEffects::SUPPORTED | CommandEffects::NAMESPACE_SCOPE)
                .with_if(CommandEffects::CONTENT_CHANGE, changes);
        }
    }
    log.wire().to_vec()
}

fn feature_effects() -> Vec<u8> {
    let mut log = FeatureEffectsLog::zeroed();
    for fid in FEATURES {
        let changes = fid == Fid::NUMBER_OF_QUEUES;
        let scope =
            if is_feature(fid) { FeatureEffects::NAMESPACE_SCOPE } else { FeatureEffects::CONTROLLER_SCOPE };
        log.features[usize::from(fid.get())] =
            (FeatureEffects::SUPPORTED | scope).with_if(FeatureEffects::CONTROLLER_CHANGE, changes);
    }
    log.wire().to_vec()
}
