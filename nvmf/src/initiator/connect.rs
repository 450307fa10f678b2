//! Bringing a queue up: TCP, ICReq and ICResp, the Connect command, properties.

use std::time::Duration;

use aio::reactor::Core;
use nvme::command::Direction;
use nvme::fabrics::{ConnectData, ConnectResult, ConnectSqe, PropertySqe};
use nvme::property::PropertyOffset;
use nvme::{Cntlid, Cqe, Qid, Sqe, Status};

use super::board::Lease;
use super::calls::Calls;
use super::error::{Error, PeerFault};
use super::options::Options;
use super::queue::QueueConfig;

/// Entries of an admin queue: the least that controllers have to take (NVMe Base 2.0, section 6.3).
pub(super) const ADMIN_ENTRIES: u16 = nvme::fabrics::ADMIN_QUEUE_MIN_ENTRIES;

/// Most in-capsule data of admin and Fabrics commands: what every NVMe/TCP controller takes (NVMe/TCP Transport
/// 1.0, section 3.3.1.2.1).
const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;

/// Connects a queue of `entries` entries as far as ICResp.
pub(super) async fn open_queue(core: &Core, options: &Options, entries: u16) -> Result<Calls, Error> {
    let op = "connecting";
    let stream = core.network().connect(options.addr).map_err(|source| Error::Io {
        op,
        addr: options.addr,
        source,
    })?;
    let config = QueueConfig {
        depth: entries.saturating_sub(1),
        header_digest: options.header_digest,
        data_digest: options.data_digest,
        timeout: options.admin_timeout,
        grace: Duration::ZERO,
        connect_timeout: options.connect_timeout,
    };
    let calls = Calls::start(core, stream, &config);
    if let Err(fault) = calls.open().await {
        calls.close(fault);
        return Err(Error::Peer { op, addr: options.addr, fault });
    }
    calls.with_queue(|q| q.set_in_capsule_bytes(ADMIN_IN_CAPSULE_BYTES));
    Ok(calls)
}

/// Runs one command; a status other than success is an error.
pub(super) async fn run(
    calls: &Calls,
    options: &Options,
    op: &'static str,
    sqe: Sqe,
    buffer: Vec<u8>,
) -> Result<(Cqe, Vec<u8>), Error> {
    debug_assert!(buffer.is_empty() || sqe.direction() != Direction::None);
    let addr = options.addr;
    match calls.call(sqe, buffer, true).await {
        Ok((cqe, buffer)) if cqe.status().is_success() => Ok((cqe, buffer)),
        Ok((cqe, _)) => Err(Error::Refused { op, addr, status: cqe.status() }),
        Err(fault) => Err(Error::Peer { op, addr, fault }),
    }
}

/// The Connect command: creates the queue, and with qid 0 the association.
pub(super) async fn connect_queue(
    calls: &Calls,
    options: &Options,
    qid: Qid,
    entries: u16,
    cntlid: Cntlid,
) -> Result<ConnectResult, Error> {
    let op = if qid.is_admin() { "Connect" } else { "Connect of an I/O queue" };
    let kato_ms = if qid.is_admin() { options.kato_ms } else { 0 };
    let data = ConnectData::new(options.hostid, cntlid, &options.subnqn, &options.hostnqn);
    let sqe = ConnectSqe::new(qid, u32::from(entries), kato_ms).to_sqe();
    let (cqe, _) = run(calls, options, op, sqe, data.wire().to_vec()).await?;
    let result = ConnectResult(cqe.result() as u32);
    if result.authentication_required() || result.secure_channel_required() {
        return Err(Error::Refused { op, addr: options.addr, status: Status::AUTHENTICATION_REQUIRED });
    }
    Ok(result)
}

/// How often a Connect is tried on a queue that the target has not given up yet, and the pause between.
const QUEUE_ATTEMPTS: u32 = 20;
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// Connects the I/O queue of `lease` on the core that runs this.
pub(super) async fn open_io_queue(core: &Core, options: &Options, lease: &Lease) -> Result<Calls, Error> {
    let association = &lease.association;
    let mut attempt = 0;
    loop {
        let calls = open_queue(core, options, association.entries).await?;
        match connect_queue(&calls, options, lease.qid, association.entries, association.cntlid).await {
            Ok(_) => return Ok(calls),
            // The target may still hold the queue that had this number before.
            Err(Error::Refused { status, .. }) if attempt < QUEUE_ATTEMPTS && in_use(status) => {
                calls.close(PeerFault::Closed);
                attempt += 1;
                core.sleep(QUEUE_PAUSE).await;
            }
            Err(error) => {
                calls.close(PeerFault::Closed);
                return Err(error);
            }
        }
    }
}

/// A Connect was refused because of a queue that exists.
fn in_use(status: Status) -> bool {
    [Status::CONNECT_INVALID_PARAMETERS, Status::CONNECT_CONTROLLER_BUSY, Status::SEQUENCE_ERROR]
        .iter()
        .any(|s| status.is(*s))
}

/// Property Get.
pub(super) async fn get_property(
    calls: &Calls,
    options: &Options,
    property: PropertyOffset,
) -> Result<u64, Error> {
    let sqe = PropertySqe::get(property).to_sqe();
    let (cqe, _) = run(calls, options, "Property Get", sqe, Vec::new()).await?;
    Ok(cqe.result())
}

/// Property Set.
pub(super) async fn set_property(
    calls: &Calls,
    options: &Options,
    property: PropertyOffset,
    value: u64,
) -> Result<(), Error> {
    let sqe = PropertySqe::set(property, value).to_sqe();
    run(calls, options, "Property Set", sqe, Vec::new()).await.map(|_| ())
}

/// Enables the controller and waits for CSTS.RDY, as long as CAP.TO allows. Returns CAP.
pub(super) async fn enable(
    core: &Core,
    calls: &Calls,
    options: &Options,
) -> Result<nvme::property::Cap, Error> {
    use nvme::property::{Cap, Cc, Csts};
    let cap = Cap(get_property(calls, options, PropertyOffset::CAP).await?);
    // Entry sizes are powers of two: 64 and 16 bytes. Memory pages, arbitration and command set stay 0: 4 KiB,
    // round robin, NVM.
    let cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4);
    set_property(calls, options, PropertyOffset::CC, u64::from(cc.0)).await?;
    let patience = Duration::from_millis(500) * u32::from(cap.to()).max(1);
    let deadline = core.now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        let csts = Csts(get_property(calls, options, PropertyOffset::CSTS).await? as u32);
        let peer = |fault| Error::Peer { op: "enabling the controller", addr: options.addr, fault };
        if csts.cfs() {
            return Err(peer(PeerFault::ControllerFatal));
        }
        if csts.rdy() {
            return Ok(cap);
        }
        if core.now() >= deadline {
            return Err(peer(PeerFault::Timeout));
        }
        core.sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
