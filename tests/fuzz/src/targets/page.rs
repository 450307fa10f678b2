//! Pages of data that a controller sends: Identify, log pages, asynchronous events.

use crate::{Shape, Target};
use nvme::aen::AsyncEvent;
use nvme::identify::namespace::LbaFormat;
use nvme::identify::{
    ControllerList, IDENTIFY_LEN_BYTES, IdList, IdentifyController, IdentifyNamespace, NamespaceIds,
    descriptors,
};
use nvme::log::ana::{AnaLog, AnaState};
use nvme::log::discovery::{self, DiscoveryEntry, SubsystemType};
use nvme::log::{ana, smart};
use nvme::{Nqn, Nsid};
use std::net::SocketAddr;

/// Every kind of page from the same bytes.
pub(super) const PAGE: Target = Target {
    name: "page",
    about: "Identify and log pages, events: reading them is total, and says no more than the page has room for",
    run: page,
    seeds,
};

fn seeds() -> Vec<Vec<u8>> {
    let mut controller = IdentifyController::zeroed();
    controller.set_names("0123456789", "Keelson", "1.0");
    controller.mdts = 5;
    let mut namespace = IdentifyNamespace::zeroed();
    namespace.nsze.set(1000);
    namespace.lbaf[0] = LbaFormat::new(4096);
    let ids = NamespaceIds { eui64: [1; 8], nguid: [2; 16], uuid: [3; 16], csi: Some(0) };
    let mut groups = AnaLog::new(7, false);
    groups.group(1, AnaState::OPTIMIZED, 3, [Nsid(1), Nsid(5)]);
    groups.group(2, AnaState::INACCESSIBLE, 7, []);
    let address: SocketAddr = SocketAddr::from(([10, 0, 0, 1], 8420));
    let entries = [
        DiscoveryEntry::tcp(SubsystemType::NVM, &Nqn::from_uuid([1; 16]), address, 1),
        DiscoveryEntry::tcp(SubsystemType::CURRENT_DISCOVERY, &Nqn::discovery(), address, 1),
    ];
    vec![
        controller.wire().to_vec(),
        namespace.wire().to_vec(),
        ids.to_page().to_vec(),
        IdList::build(Nsid(0), (1..40).map(Nsid)).wire().to_vec(),
        groups.finish(),
        discovery::build(4, &entries),
    ]
}

fn page(bytes: &[u8]) -> Shape {
    let controller = IdentifyController::read(bytes).map(|id| {
        let names = [id.serial(), id.model(), id.firmware()];
        assert!(
            names.iter().all(|name| name.len() <= 40 * 3),
            "a name is no longer than its field: {names:?}"
        );
        let largest = (0..=u8::MAX).step_by(17).map(|mpsmin| id.max_transfer_bytes(mpsmin)).max();
        (id.nqn().is_ok(), largest.flatten().is_some(), id.in_capsule_bytes() > 0)
    });
    let namespace = IdentifyNamespace::read(bytes).map(|ns| {
        let block_bytes = ns.format().block_bytes();
        assert!(block_bytes.is_none_or(|bytes| bytes.is_power_of_two() && bytes >= 512));
        (block_bytes, ns.extended_lba(), ns.format_index())
    });
    let listed: usize = descriptors(bytes).map(|(_, id)| 4 + id.len()).sum();
    assert!(listed <= bytes.len(), "descriptors lie within their page");
    let ids = NamespaceIds::from_page(bytes);
    if bytes.len() >= IDENTIFY_LEN_BYTES {
        assert_eq!(NamespaceIds::from_page(&ids.to_page()), ids, "identifiers come back as they were");
    }
    let active = IdList::view(bytes).map(|list| (list.iter().count().min(3), list.is_full()));
    let controllers = ControllerList::view(bytes).map(|list| list.iter().count().min(3));
    let groups = ana::parse(bytes).map(|(header, groups)| {
        let (mut count, mut named) = (0, 0);
        for group in groups {
            count += 1;
            named += group.nsids().count();
            let _ = group.state().access();
        }
        assert!(count <= usize::from(header.groups.get()), "no more groups than announced");
        assert!(16 + 32 * count + 4 * named <= bytes.len(), "groups lie within their page");
        (count.min(3), named.min(3))
    });
    let entries = discovery::parse(bytes).map(|(header, entries)| {
        assert!(entries.len() as u64 <= header.numrec.get(), "no more entries than announced");
        let good = entries.iter().filter(|entry| entry.nqn().is_ok()).count();
        for entry in entries {
            let (address, service) = (entry.address(), entry.service());
            assert!(address.len() <= 256 * 3 && service.len() <= 32 * 3, "{address:?} {service:?}");
        }
        (entries.len().min(3), good.min(3))
    });
    let event = bytes.first_chunk().map(|bytes| {
        let event = AsyncEvent::from_result(u64::from_le_bytes(*bytes));
        assert_eq!(AsyncEvent::from_result(event.result()), event, "an event comes back as it was");
        event.kind.get()
    });
    let smart = smart::SmartLog::read(bytes).map(|log| log.wire() == &bytes[..smart::SmartLog::LEN_BYTES]);
    assert_ne!(smart, Some(false));
    Shape::of(((controller, namespace, active, controllers), (ids.csi, groups, entries, event)))
}
