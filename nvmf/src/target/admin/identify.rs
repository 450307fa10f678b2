//! Identify (NVMe Base 2.0, section 5.17; NVM Command Set 1.0, section 4.1.5).

use aio::Capabilities;
use nvme::identify::controller::{
    Anacap, Cmic, ControllerType, Ctratt, Frmw, Fuses, IdentifyController, Lpa, NvmIdentifyController, Oaes,
    Ofcs, Oncs, Sgls, Vwc,
};
use nvme::identify::namespace::{
    Dlfeat, IdentifyNamespace, IndependentIdentifyNamespace, LbaFormat, Nmic, Nsattr, Nsfeat, Nstat,
    NvmIdentifyNamespace,
};
use nvme::identify::{
    Cns, ControllerList, Csi, IDENTIFY_LEN_BYTES, IdList, Identify, IoCommandSets, NamespaceIds,
};
use nvme::property::Version;
use nvme::reservation::capabilities;
use nvme::{Nsid, Sqe, Status};

use super::abort::MAX_ABORTS;
use super::errors::MAX_ERRORS;
use super::events::MAX_EVENT_REQUESTS;
use super::{AdminOutcome, to_host};
use crate::target::controller::{Controller, ControllerKind, KEEP_ALIVE_UNIT_MS, READY_TIMEOUT_500MS};
use crate::target::model::{Namespace, Subsystem};
use crate::target::nvm::{MAX_COPY_RANGES, copy_limit_blocks};

/// ANA Transition Time: how long a host waits for the Change state to end, in seconds.
const ANA_TRANSITION_S: u8 = 10;

impl Controller {
    pub(super) fn identify(&self, sqe: &Sqe) -> Result<AdminOutcome, Status> {
        let page = self.identify_page(&Identify::decode(sqe))?;
        to_host(sqe, page)
    }

    fn identify_page(&self, identify: &Identify) -> Result<Vec<u8>, Status> {
        let model = self.shared.lock();
        let subsystem = model.subsystem(self.subsystem()).ok_or(Status::INTERNAL_ERROR)?;
        if identify.cns == Cns::CONTROLLER {
            return Ok(self.identify_controller(subsystem).wire().to_vec());
        }
        if self.kind() == ControllerKind::Discovery {
            return Err(Status::INVALID_FIELD);
        }
        let csi = || if identify.csi == Csi::NVM { Ok(()) } else { Err(Status::INVALID_FIELD) };
        let active = || subsystem.active().map(|ns| ns.info.nsid);
        let page = match identify.cns {
            Cns::NAMESPACE => page_of(subsystem, identify.nsid, |ns| {
                identify_namespace(ns, subsystem.ana.table.groups()).wire().to_vec()
            })?,
            Cns::ACTIVE_NAMESPACES => IdList::build(list_start(identify.nsid)?, active()).wire().to_vec(),
            Cns::NAMESPACE_DESCRIPTORS => {
                let ns = subsystem.namespace(identify.nsid).ok_or(Status::INVALID_NAMESPACE)?;
                descriptors(ns).to_page().to_vec()
            }
            Cns::CS_NAMESPACE => {
                csi()?;
                // No protection information and no storage tags: all zero.
                page_of(subsystem, identify.nsid, |_| NvmIdentifyNamespace::zeroed().wire().to_vec())?
            }
            Cns::CS_CONTROLLER => {
                csi()?;
                NvmIdentifyController::zeroed().wire().to_vec()
            }
            Cns::CS_ACTIVE_NAMESPACES => {
                csi()?;
                IdList::build(list_start(identify.nsid)?, active()).wire().to_vec()
            }
            Cns::INDEPENDENT_NAMESPACE => page_of(subsystem, identify.nsid, |ns| {
                identify_independent(ns, subsystem.ana.table.groups()).wire().to_vec()
            })?,
            // Every namespace is attached to every controller of its subsystem.
            Cns::NAMESPACE_CONTROLLERS if subsystem.namespace(identify.nsid).is_none() => {
                return Err(Status::INVALID_NAMESPACE);
            }
            Cns::NAMESPACE_CONTROLLERS | Cns::CONTROLLERS => {
                let living = subsystem.controllers.values().filter(|c| c.alive());
                ControllerList::build(identify.cntid, living.map(|c| c.cntlid())).wire().to_vec()
            }
            Cns::IO_COMMAND_SETS => {
                let known = identify.cntid == nvme::Cntlid::DYNAMIC
                    || subsystem.controllers.contains_key(&identify.cntid);
                if !known {
                    return Err(Status::INVALID_FIELD);
                }
                IoCommandSets::nvm().wire().to_vec()
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok(page)
    }

    fn identify_controller(&self, subsystem: &Subsystem) -> IdentifyController {
        let config = &self.shared.config;
        let mut id = IdentifyController {
            mdts: (config.max_io_bytes / 4096).ilog2() as u8,
            cntlid: self.cntlid().0.into(),
            ver: Version::V2_0.0.into(),
            rtd3e_us: (u32::from(READY_TIMEOUT_500MS) * 500_000).into(),
            ctratt: Ctratt::HOST_ID_128 | Ctratt::TRAFFIC_KEEP_ALIVE,
            crdt1: config.crdt[0].into(),
            crdt2: config.crdt[1].into(),
            crdt3: config.crdt[2].into(),
            aerl_z: MAX_EVENT_REQUESTS as u8 - 1,
            elpe_z: MAX_ERRORS as u8 - 1,
            lpa: Lpa::EXTENDED_DATA | Lpa::SUPPORTED_PAGES,
            kas: ((KEEP_ALIVE_UNIT_MS / 100) as u16).into(),
            maxcmd: config.queue_entries.into(),
            sgls: Sgls::SUPPORTED | Sgls::OFFSET | Sgls::TRANSPORT,
            subnqn: subsystem.nqn.to_field(),
            ioccsz: ((64 + config.in_capsule_bytes) / 16).into(),
            iorcsz: 1.into(),
            msdbd: 1,
            ..IdentifyController::zeroed()
        };
        id.set_names(&subsystem.serial, &subsystem.model, &config.firmware);
        match self.kind() {
            ControllerKind::Discovery => {
                id.cntrltype = ControllerType::DISCOVERY;
                id.oaes = Oaes::DISCOVERY_LOG;
            }
            ControllerKind::Io => self.identify_io_controller(&mut id, subsystem),
        }
        id
    }

    /// What only an I/O controller has.
    fn identify_io_controller(&self, id: &mut IdentifyController, subsystem: &Subsystem) {
        let groups = subsystem.ana.table.groups();
        let cache = subsystem.has_volatile_cache();
        if !cache {
            self.tell_no_cache();
        }
        id.cntrltype = ControllerType::IO;
        nvme::vendor::facets::sign(id);
        id.cmic = (Cmic::MULTI_PORT | Cmic::MULTI_CONTROLLER).with_if(Cmic::ANA, groups > 0);
        id.oaes = Oaes::NAMESPACE_ATTRIBUTE.with_if(Oaes::ANA_CHANGE, groups > 0);
        id.acl_z = MAX_ABORTS - 1;
        id.frmw = Frmw::SLOT_1_READ_ONLY | Frmw::ONE_SLOT;
        id.lpa = id.lpa | Lpa::SMART_PER_NAMESPACE | Lpa::EFFECTS;
        if groups > 0 {
            id.anatt = ANA_TRANSITION_S;
            id.anacap = Anacap::OPTIMIZED
                | Anacap::NON_OPTIMIZED
                | Anacap::INACCESSIBLE
                | Anacap::PERSISTENT_LOSS
                | Anacap::CHANGE;
            id.anagrpmax = u32::from(groups).into();
            id.nanagrpid = u32::from(groups).into();
        }
        id.sqes = 0x66;
        id.cqes = 0x44;
        id.nn = subsystem.max_namespaces.into();
        id.mnan = subsystem.max_namespaces.into();
        id.oncs = oncs(subsystem);
        id.fuses =
            Fuses::NONE.with_if(Fuses::COMPARE_AND_WRITE, all(subsystem, Capabilities::COMPARE_AND_WRITE));
        id.vwc = Vwc::FLUSH_BROADCAST.with_if(Vwc::PRESENT, cache);
        if id.oncs.contains(Oncs::COPY) {
            id.ocfs = 1.into();
        }
        id.ofcs = Ofcs::DISCONNECT;
    }
}

/// True when every namespace can do it, and of a subsystem without namespaces.
pub(super) fn all(subsystem: &Subsystem, caps: Capabilities) -> bool {
    subsystem.active().all(|ns| ns.info.caps.contains(caps))
}

/// Optional commands. Those are named that work on every namespace, since a host asks once and believes it for
/// all; Dataset Management is advice, which works everywhere, and is named when it is of use anywhere.
pub(super) fn oncs(subsystem: &Subsystem) -> Oncs {
    let mut none_or_any = subsystem.active().peekable();
    let deallocates =
        none_or_any.peek().is_none() || none_or_any.any(|ns| ns.info.caps.contains(Capabilities::UNMAP));
    (Oncs::FEATURE_SAVE_SELECT | Oncs::TIMESTAMP | Oncs::RESERVATIONS)
        .with_if(Oncs::DATASET_MANAGEMENT, deallocates)
        .with_if(Oncs::COMPARE, all(subsystem, Capabilities::COMPARE))
        .with_if(Oncs::WRITE_ZEROES, all(subsystem, Capabilities::WRITE_ZEROES))
        .with_if(Oncs::VERIFY, all(subsystem, Capabilities::VERIFY))
        .with_if(Oncs::COPY, all(subsystem, Capabilities::COPY))
}

/// A page about one namespace: zeroes for one that does not exist but could.
fn page_of(
    subsystem: &Subsystem,
    nsid: Nsid,
    build: impl FnOnce(&Namespace) -> Vec<u8>,
) -> Result<Vec<u8>, Status> {
    match subsystem.namespace(nsid) {
        Some(ns) => Ok(build(ns)),
        None if (1..=subsystem.max_namespaces).contains(&nsid.0) => Ok(vec![0; IDENTIFY_LEN_BYTES]),
        None => Err(Status::INVALID_NAMESPACE),
    }
}

/// Lists start above an nsid; the last two numbers cannot be asked for.
fn list_start(nsid: Nsid) -> Result<Nsid, Status> {
    if nsid >= Nsid::MAX { Err(Status::INVALID_NAMESPACE) } else { Ok(nsid) }
}

fn descriptors(ns: &Namespace) -> NamespaceIds {
    NamespaceIds {
        eui64: ns.ids.eui64,
        nguid: ns.ids.nguid,
        uuid: *ns.ids.uuid.as_bytes(),
        csi: Some(Csi::NVM.get()),
    }
}

fn nsattr(ns: &Namespace) -> Nsattr {
    Nsattr::NONE.with_if(Nsattr::WRITE_PROTECTED, ns.info.caps.contains(Capabilities::READ_ONLY))
}

/// An atomic unit as its zero-based field; what does not fit is stated smaller.
fn unit_z(blocks: u32) -> u16 {
    blocks.saturating_sub(1).min(u32::from(u16::MAX)) as u16
}

fn identify_namespace(ns: &Namespace, ana_groups: u16) -> IdentifyNamespace {
    let info = &ns.info;
    let mut id = IdentifyNamespace {
        nsze: info.size_blocks.into(),
        ncap: info.size_blocks.into(),
        nuse: info.size_blocks.into(),
        nmic: Nmic::SHARED,
        rescap: capabilities(ns.desk.state().can_persist()),
        nsfeat: Nsfeat::ATOMICITY,
        nawun_z: unit_z(info.atomic_blocks).into(),
        nawupf_z: unit_z(info.atomic_blocks).into(),
        nacwu_z: unit_z(info.fused_blocks).into(),
        dlfeat: Dlfeat::NONE.with_if(
            Dlfeat::READS_ZERO | Dlfeat::WRITE_ZEROES_DEALLOCATE,
            info.caps.contains(Capabilities::UNMAP | Capabilities::UNMAP_ZEROES | Capabilities::WRITE_ZEROES),
        ),
        // A boundary of more than 65,535 blocks is none that a host would care for.
        noiob: u16::try_from(ns.boundary_blocks).unwrap_or(0).into(),
        nvmcap: (u128::from(info.size_blocks) << info.block_shift).into(),
        nsattr: nsattr(ns),
        nguid: ns.ids.nguid,
        eui64: ns.ids.eui64,
        ..IdentifyNamespace::zeroed()
    };
    id.lbaf[0] = LbaFormat::new(info.block_bytes());
    if ana_groups > 0 {
        id.anagrpid = info.ana_group.into();
    }
    if info.caps.contains(Capabilities::COPY) {
        let limit = copy_limit_blocks(info);
        id.mssrl = (limit as u16).into();
        id.mcl = limit.into();
        id.msrc_z = MAX_COPY_RANGES as u8 - 1;
    }
    id
}

fn identify_independent(ns: &Namespace, ana_groups: u16) -> IndependentIdentifyNamespace {
    IndependentIdentifyNamespace {
        nmic: Nmic::SHARED,
        rescap: capabilities(ns.desk.state().can_persist()),
        anagrpid: (if ana_groups > 0 { ns.info.ana_group } else { 0 }).into(),
        nsattr: nsattr(ns),
        nstat: Nstat::READY,
        ..IndependentIdentifyNamespace::zeroed()
    }
}
