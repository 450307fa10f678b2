//! The discovery log page (NVMe Base 2.0, section 5.16.1.23), as each host sees it.
//!
//! Hosts read it in pieces of their own choice, usually 4 KiB: four entries. With thousands of subsystems a page
//! that was made for each piece would cost the square of its length, so the pages read last are kept until the
//! generation counter moves on.

use std::net::{IpAddr, SocketAddr};

use nvme::Nqn;
use nvme::log::discovery::{self, DiscoveryEntry, EntryFlags, SubsystemType};

use crate::target::ana::ListenerId;
use crate::target::controller::{Controller, ControllerKind};
use crate::target::model::{Life, Model};

/// Pages that are kept: as many hosts can read at the same time, each at its own pace, without a page being made
/// twice. A page has 1 KiB for each subsystem and listener.
const MAX_PAGES: usize = 4;

/// On what a page depends beside the model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::target) struct Reader {
    hostnqn: Nqn,
    /// The address of ours that it used.
    local: IpAddr,
}

/// The pages that were read last, all of one generation.
#[derive(Default)]
pub(in crate::target) struct DiscoveryPages {
    generation: u64,
    /// The one used last at the end.
    pages: Vec<(Reader, Vec<u8>)>,
    /// Pages that were made, ever.
    pub(in crate::target) made: u64,
}

impl DiscoveryPages {
    /// Makes the reader's page of this generation the latest, if it is here.
    fn find(&mut self, generation: u64, reader: &Reader) -> Option<()> {
        if generation != self.generation {
            self.pages.clear();
        }
        let at = self.pages.iter().position(|(of, _)| of == reader)?;
        self.pages[at..].rotate_left(1);
        Some(())
    }

    fn keep(&mut self, generation: u64, reader: Reader, page: Vec<u8>) {
        self.generation = generation;
        self.made += 1;
        if self.pages.len() == MAX_PAGES {
            self.pages.remove(0);
        }
        self.pages.push((reader, page));
    }

    fn latest(&self) -> &[u8] {
        self.pages.last().map_or(&[], |(_, page)| page)
    }
}

impl Controller {
    /// The discovery log page for this host: every subsystem that it may connect to, by every listener of that
    /// subsystem, and the discovery subsystem itself.
    pub(super) fn discovery_page<'a>(&self, model: &'a mut Model) -> &'a [u8] {
        let reader = Reader { hostnqn: self.hostnqn().clone(), local: self.local_addr().ip().to_canonical() };
        if model.discovery_pages.find(model.discovery_generation, &reader).is_none() {
            let page = self.build_discovery_page(model);
            model.discovery_pages.keep(model.discovery_generation, reader, page);
        }
        model.discovery_pages.latest()
    }

    fn build_discovery_page(&self, model: &Model) -> Vec<u8> {
        let mut entries = Vec::new();
        let serving = model.subsystems.iter().flatten().filter(|s| s.life == Life::Serving);
        for subsystem in serving.filter(|s| s.hosts.allows(self.hostnqn().as_str())) {
            let subtype = match subsystem.kind {
                ControllerKind::Io => SubsystemType::NVM,
                ControllerKind::Discovery => SubsystemType::CURRENT_DISCOVERY,
            };
            for (place, addr) in model.listeners.iter().enumerate() {
                let (id, Some(addr)) = (ListenerId(place as u16), addr) else { continue };
                if !subsystem.listeners.contains(id) {
                    continue;
                }
                let Some(addr) = self.seen_address(*addr) else { continue };
                let mut entry = DiscoveryEntry::tcp(subtype, &subsystem.nqn, addr, id.0 + 1);
                entry.asqsz = self.shared.config.admin_entries().into();
                if subsystem.kind == ControllerKind::Discovery {
                    entry.eflags = EntryFlags::DUPLICATE_INFORMATION | EntryFlags::PERSISTENT_CONNECTION;
                }
                entries.push(entry);
            }
        }
        discovery::build(model.discovery_generation, &entries)
    }

    /// A listener's address as this host reaches it: an unspecified one is the one that it used. `None` when it
    /// used IPv6, and this listener only knows IPv4.
    fn seen_address(&self, listener: SocketAddr) -> Option<SocketAddr> {
        if !listener.ip().is_unspecified() {
            return Some(listener);
        }
        let local = self.local_addr().ip().to_canonical();
        let reachable = listener.is_ipv6() || local.is_ipv4();
        reachable.then(|| SocketAddr::new(local, listener.port()))
    }
}
