//! Making an association, and whether it leads to the same namespace as before.

use std::rc::Rc;

use aio::Capabilities;
use nvme::feature::Oaes;
use nvme::identify::NamespaceIds;
use nvme::identify::controller::Cmic;
use nvme::log::ana::{self, AnaHeader, RETURN_GROUPS_ONLY};
use nvme::log::{AnaState, GetLogPage, Lid};
use nvme::vendor::{AssociationPage, LID_ASSOCIATION};
use nvme::{Nsid, Status};

use super::board::Access;
use super::controller::Controller;
use super::error::{Error, PeerFault};
use super::facets::FacetFacts;
use super::namespace::{ControllerFacts, Namespace};
use super::options::Options;
use super::slot::MAX_ENTRIES;

/// Most groups of an ANA log that are read: what a hostile controller can make us hold is 1 MiB.
const MAX_ANA_GROUPS: u64 = 32_000;

/// Bytes of one read of a log page: what every controller transfers.
const PART_BYTES: u64 = 4096;

/// What makes a namespace the one that it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    pub(super) ids: NamespaceIds,
    /// New whenever completed writes that were not flushed may have been lost; `None` = not known.
    pub(super) incarnation: Option<u128>,
}

/// An association with the controller of one path, and what it says.
pub(super) struct Established {
    pub(super) controller: Rc<Controller>,
    /// I/O queues that it grants.
    pub(super) granted: u16,
    /// Entries of an I/O queue.
    pub(super) entries: u16,
    /// Most payload that goes along with its command.
    pub(super) in_capsule_bytes: u32,
    /// Events that it reports.
    pub(super) notices: Oaes,
    pub(super) namespace: Namespace,
    pub(super) identity: Identity,
    /// What it can do beyond I/O.
    pub(super) facts: FacetFacts,
    /// What a controller of ours calls the association.
    pub(super) instance: Option<u64>,
    /// How well the namespace is reached.
    pub(super) look: Look,
}

/// Connects to the one address of `options` and asks all that a device needs to know.
pub(super) async fn establish(options: Options) -> Result<Established, Error> {
    let controller = Controller::connect(options.clone()).await?;
    let granted = controller.set_queue_count(options.max_queues).await?;
    let notices = controller.enable_events(Oaes::NAMESPACE_ATTRIBUTE | Oaes::ANA_CHANGE).await?;
    let nsid = choose_namespace(&controller, &options).await?;
    let entries = queue_entries(&controller, options.queue_depth);
    let namespace = read_namespace(&controller, nsid, entries - 1).await?;
    // Not every controller has the list of descriptors; the namespace data has two of the identifiers.
    let mut ids = controller.namespace_ids(nsid).await.unwrap_or_default();
    if ids == NamespaceIds::default() {
        let ns = controller.identify_namespace(nsid).await?;
        (ids.nguid, ids.eui64) = (ns.nguid, ns.eui64);
    }
    let page = association_page(&controller, nsid).await?;
    let look = look(&controller, nsid).await?;
    let facts = FacetFacts::read(&controller, nsid, namespace.max_transfer_bytes()).await?;
    let id = controller.identify();
    let in_capsule = id.in_capsule_bytes().min(namespace.max_transfer_bytes());
    Ok(Established {
        granted,
        entries,
        in_capsule_bytes: if id.icdoff.get() == 0 { in_capsule as u32 } else { 0 },
        notices,
        namespace,
        facts,
        identity: Identity { ids, incarnation: page.as_ref().and_then(AssociationPage::incarnation) },
        instance: page.map(|page| page.instance.get()),
        look,
        controller: Rc::new(controller),
    })
}

/// Entries of an I/O queue: what was asked for, within the limits of the controller and of the slots. At least 2.
fn queue_entries(controller: &Controller, depth: u16) -> u16 {
    let mqes = u32::from(controller.cap.mqes_z()) + 1;
    let maxcmd = match controller.identify().maxcmd.get() {
        0 => u32::MAX,
        n => u32::from(n) + 1,
    };
    (u32::from(depth) + 1).min(mqes).min(maxcmd).min(u32::from(MAX_ENTRIES)).max(2) as u16
}

async fn choose_namespace(controller: &Controller, options: &Options) -> Result<Nsid, Error> {
    let wanted = options.nsid.map(Nsid);
    // The list starts above the number given, so one that is asked for is the first behind its predecessor.
    let after = Nsid(wanted.map_or(0, |nsid| nsid.0.saturating_sub(1)));
    let first = controller.active_namespaces(after).await?.first().copied();
    match (first, wanted) {
        (Some(nsid), None) => Ok(nsid),
        (Some(nsid), Some(wanted)) if nsid == wanted => Ok(nsid),
        _ => {
            Err(Error::NoNamespace { subnqn: options.subnqn.clone(), addr: options.addr, nsid: options.nsid })
        }
    }
}

pub(super) async fn read_namespace(
    controller: &Controller,
    nsid: Nsid,
    depth: u16,
) -> Result<Namespace, Error> {
    let ns = controller.identify_namespace(nsid).await?;
    let nvm = controller.nvm_limits().await;
    let facts = ControllerFacts {
        identify: controller.identify(),
        nvm: nvm.as_ref(),
        mpsmin: controller.cap.mpsmin(),
        depth,
    };
    Namespace::new(nsid, &ns, &facts).map_err(|why| Error::Format {
        subnqn: controller.subnqn().clone(),
        nsid: nsid.0,
        why,
    })
}

/// What only controllers of ours have; others refuse it.
async fn association_page(controller: &Controller, nsid: Nsid) -> Result<Option<AssociationPage>, Error> {
    let len = AssociationPage::LEN_BYTES as u64;
    match controller.log_page(GetLogPage { nsid, ..GetLogPage::new(LID_ASSOCIATION, len) }).await {
        Ok(page) => Ok(AssociationPage::parse(&page)),
        Err(Error::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A look at the state of the namespace's ANA group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Look {
    pub(super) access: Access,
    /// The state is about to change: look again.
    pub(super) in_transition: bool,
}

impl Look {
    fn of(state: AnaState) -> Self {
        let access = match state {
            AnaState::OPTIMIZED => Access::Optimized,
            AnaState::NON_OPTIMIZED => Access::NonOptimized,
            _ => Access::None,
        };
        Self { access, in_transition: state == AnaState::CHANGE }
    }
}

/// Asks how well the namespace is reached through this controller; also rearms the notice of changes.
pub(super) async fn look(controller: &Controller, nsid: Nsid) -> Result<Look, Error> {
    let id = controller.identify();
    if !id.cmic.contains(Cmic::ANA) {
        return Ok(Look::of(AnaState::OPTIMIZED));
    }
    let group = controller.identify_namespace(nsid).await?.anagrpid.get();
    let groups = u64::from(id.nanagrpid.get()).clamp(1, MAX_ANA_GROUPS);
    let len = AnaHeader::LEN_BYTES as u64 + groups * ana::AnaGroupHeader::LEN_BYTES as u64;
    let mut page = Vec::new();
    while (page.len() as u64) < len {
        let at = page.len() as u64;
        let part = GetLogPage::new(Lid::ANA, (len - at).min(PART_BYTES));
        page.extend(
            controller.log_page(GetLogPage { offset_bytes: at, lsp: RETURN_GROUPS_ONLY, ..part }).await?,
        );
    }
    let found = ana::parse(&page).and_then(|(_, mut all)| all.find(|g| g.header.grpid.get() == group));
    // A group that the page does not have is one that it had a moment ago: another look will follow upon the notice.
    Ok(found.map_or(Look { access: Access::None, in_transition: true }, |g| Look::of(g.state())))
}

/// Whether what was found is the device that `was`: same identifiers, same shape, nothing less, nothing lost.
///
/// `others` = another path to it has worked all the time, so it has not restarted.
pub(super) fn recognize(
    (was, identity, size): (&Namespace, &Identity, u64),
    now: &Established,
    others: bool,
    trust_cache: bool,
) -> Result<(), PeerFault> {
    let changed = |what| Err(PeerFault::Changed(what));
    let (is, other) = (&now.namespace, &now.identity);
    if was.limits.nsid != is.limits.nsid || identity.ids != other.ids {
        return changed("its identifiers are others");
    }
    if is.geometry.block_bytes != was.geometry.block_bytes {
        return changed("its blocks have another size");
    }
    if is.size.0 < size {
        return changed("it is smaller");
    }
    // What was promised to the users of the device.
    let (old, new) = (was.limits.capabilities, is.limits.capabilities);
    let cache = Capabilities::VOLATILE_CACHE;
    if !new.contains(old.difference(cache)) || !old.contains(new.intersection(cache)) {
        return changed("it takes other commands, or has a volatile cache now");
    }
    if !is.limits.covers(&was.limits) || is.geometry.compare_write_blocks < was.geometry.compare_write_blocks
    {
        return changed("it takes less at a time");
    }
    // HAZARDS H1: what was acknowledged and not flushed must not be missing when a later flush succeeds.
    match (identity.incarnation, other.incarnation) {
        (Some(a), Some(b)) if a == b => Ok(()),
        (Some(_), Some(_)) => Err(PeerFault::Restarted),
        _ if !old.contains(cache) || trust_cache || others => Ok(()),
        _ => Err(PeerFault::Restarted),
    }
}

/// A refusal that waiting does not cure: the controller says so, or it is another one than before.
pub(super) fn is_for_good(error: &Error) -> bool {
    match error {
        Error::Refused { op, status, .. } => {
            op.starts_with("Connect") && status.dnr() || status.is(Status::AUTHENTICATION_REQUIRED)
        }
        Error::Format { .. } => true,
        Error::Peer { fault, .. } => matches!(fault, PeerFault::Changed(_) | PeerFault::Restarted),
        _ => false,
    }
}
