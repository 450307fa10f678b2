//! What a discovery controller offers.

use std::net::SocketAddr;

use nvme::Nqn;
use nvme::log::discovery::{
    DiscoveryEntry as WireEntry, DiscoveryHeader, SubsystemType, TransportType, parse,
};
use nvme::log::{GetLogPage, Lid};

use super::controller::Controller;
use super::error::{Error, PeerFault};
use super::options::Options;

/// Times that the log page is read again because it changed meanwhile.
const ATTEMPTS: u32 = 8;

/// Most entries that are read: what a hostile controller can make us hold is 1 MiB.
const MAX_ENTRIES: u64 = 1000;

/// Bytes of one read: what every controller transfers, whatever its MDTS (NVMe Base 2.0, figure 275: in units of the
/// smallest memory page, which is 4 KiB or more).
const PART_BYTES: u64 = 4096;

/// One subsystem port that can be connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiscoveryEntry {
    /// Kind of transport.
    pub transport: TransportType,
    /// An NVM subsystem, a referral, or the discovery subsystem itself.
    pub kind: SubsystemType,
    /// Transport address, as text.
    pub address: String,
    /// Transport service (TCP port), as text.
    pub service: String,
    /// NQN of the subsystem.
    pub subnqn: Nqn,
    /// Port identifier within the subsystem.
    pub portid: u16,
}

/// Reads the discovery log page of the controller at `addr`. Runs on a core; dropping the future closes the
/// connection. Entries whose NQN is none are left out.
pub async fn discover(addr: SocketAddr) -> Result<Vec<DiscoveryEntry>, Error> {
    discover_with(Options { kato_ms: 0, ..Options::new(addr, Nqn::discovery()) }).await
}

/// As [`discover`], with options: host NQN, digests, time limits.
pub async fn discover_with(options: Options) -> Result<Vec<DiscoveryEntry>, Error> {
    let addr = options.addr;
    let controller = Controller::connect(options).await?;
    for _ in 0..ATTEMPTS {
        let header =
            controller.log_page(GetLogPage::new(Lid::DISCOVERY, DiscoveryHeader::LEN_BYTES as u64)).await?;
        let before = DiscoveryHeader::read(&header).expect("invariant: the page has its full length");
        let count = before.numrec.get().min(MAX_ENTRIES);
        let len = DiscoveryHeader::LEN_BYTES as u64 + count * WireEntry::LEN_BYTES as u64;
        let mut page = Vec::new();
        while (page.len() as u64) < len {
            let part = (len - page.len() as u64).min(PART_BYTES);
            let at = page.len() as u64;
            let request = GetLogPage { offset_bytes: at, ..GetLogPage::new(Lid::DISCOVERY, part) };
            page.extend(controller.log_page(request).await?);
        }
        let header =
            controller.log_page(GetLogPage::new(Lid::DISCOVERY, DiscoveryHeader::LEN_BYTES as u64)).await?;
        let after = DiscoveryHeader::read(&header).expect("invariant: the page has its full length");
        let Some((first, entries)) = parse(&page) else { continue };
        // Each read is consistent in itself; the counter tells that all saw the same entries.
        if [first.genctr.get(), after.genctr.get()] != [before.genctr.get(); 2] {
            continue;
        }
        let entries = entries.iter().filter_map(entry).collect();
        controller.shutdown().await;
        return Ok(entries);
    }
    let fault = PeerFault::Nonsense("its discovery log page never stays the same");
    Err(Error::Peer { op: "discovery", addr, fault })
}

fn entry(wire: &WireEntry) -> Option<DiscoveryEntry> {
    Some(DiscoveryEntry {
        transport: wire.trtype,
        kind: wire.subtype,
        address: wire.address(),
        service: wire.service(),
        subnqn: wire.nqn().ok()?,
        portid: wire.portid.get(),
    })
}
