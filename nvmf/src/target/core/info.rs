//! What is connected to a core, for lists.

use std::net::SocketAddr;

use nvme::{Cntlid, Qid};

use super::TargetCore;
use super::conn::Conn;

/// One connection that serves a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionInfo {
    /// The subsystem's name.
    pub nqn: String,
    /// Whose queue.
    pub cntlid: Cntlid,
    /// Which queue; 0 is the admin queue.
    pub qid: Qid,
    /// The host's name.
    pub hostnqn: String,
    /// The host's end.
    pub peer: SocketAddr,
    /// Entries of the queue.
    pub entries: u32,
    /// PDU headers have digests.
    pub header_digest: bool,
    /// Data has digests.
    pub data_digest: bool,
    /// Commands that were taken and are not answered.
    pub in_flight: u32,
}

impl TargetCore {
    /// The connections of this core that have a queue.
    pub fn connection_list(&self) -> Vec<ConnectionInfo> {
        self.conns.iter().flatten().filter_map(|conn| info(conn)).collect()
    }
}

fn info(conn: &Conn) -> Option<ConnectionInfo> {
    let grant = conn.grant.as_ref()?;
    let (controller, agreed) = (grant.controller(), conn.engine.agreed());
    Some(ConnectionInfo {
        nqn: controller.subnqn().to_string(),
        cntlid: controller.cntlid(),
        qid: grant.qid(),
        hostnqn: controller.hostnqn().to_string(),
        peer: conn.stream.peer_addr(),
        entries: grant.entries(),
        header_digest: agreed.header_digest,
        data_digest: agreed.data_digest,
        in_flight: conn.slots.used(),
    })
}
