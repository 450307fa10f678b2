//! The initiator as a whole: connecting, identifying, I/O on two channels, discovery, against a target whose bytes
//! are changed on the way.
//!
//! An input is a byte of settings, a byte for the size of the pieces that arrive, and a script for each
//! connection (see `rig::script`): what an honest target sends with parts of it replaced, flipped, lost, added,
//! held back. So inputs get as deep as their lies allow, and pure garbage is an input too. Whatever comes:
//! nothing panics, each I/O completes once, nothing waits for ever, and no memory, task or connection is left.

use crate::rig::{NQN, Rig, Script};
use crate::{Shape, Target};
use aio::{BlockDevice as _, IoStatus, Opcode};
use nvme::{HostId, Nqn};
use nvmf::initiator::{
    DiscoveryEntry, Error, NvmfDevice, Options, PeerFault, Recovery, Unsettled, discover_with,
};
use sim::client::{Client, Op};
use std::cell::RefCell;
use std::mem::discriminant;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Settings: offer header digests.
const HEADER_DIGEST: u8 = 1;
/// Settings: offer data digests.
const DATA_DIGEST: u8 = 2;
/// Settings: send keep alives, which then come in between.
const KEEP_ALIVE: u8 = 4;
/// Settings: read the discovery log instead.
const DISCOVERY: u8 = 8;
/// Settings: connect again after a loss.
const RECOVER: u8 = 16;
/// Longer than all time limits of the initiator one after the other, in virtual time.
const LIMIT: Duration = Duration::from_secs(3_600);

pub(super) const INITIATOR: Target = Target {
    name: "initiator",
    about: "the whole initiator under a target that lies: each I/O completes once, and nothing is left behind",
    run: |bytes| play(bytes).shape(),
    seeds,
};

/// What an input led to.
struct Played {
    connected: Result<(), Error>,
    statuses: Vec<IoStatus>,
    entries: Option<usize>,
}

impl Played {
    fn shape(&self) -> Shape {
        let error = self.connected.as_ref().err().map(|error| {
            let fault = match error {
                Error::Peer { op, fault, .. } => Some((*op, None, what(*fault))),
                Error::Refused { op, status, .. } => Some((*op, Some(status.bits()), 0)),
                _ => None,
            };
            (discriminant(error), fault)
        });
        let mut statuses: Vec<_> = self.statuses.iter().map(|status| status.bits()).collect();
        statuses.dedup();
        Shape::of((error, statuses, self.entries.map(|count| count.min(3))))
    }
}

fn what(fault: PeerFault) -> u64 {
    match fault {
        PeerFault::Protocol(error) => 1 << 32 | u64::from(error.fes().get()),
        PeerFault::Nonsense(what) => 2 << 32 | what.len() as u64,
        PeerFault::Terminated(_) => 3,
        PeerFault::Timeout => 4,
        PeerFault::Closed => 5,
        PeerFault::ControllerFatal => 6,
        PeerFault::Restarted => 7,
        PeerFault::Refused(status) => 8 << 32 | u64::from(status.bits()),
        PeerFault::Changed(what) => 9 << 32 | what.len() as u64,
    }
}

fn options(settings: u8) -> Options {
    let nqn = if settings & DISCOVERY == 0 { NQN } else { nvme::nqn::DISCOVERY_NQN };
    let subnqn = Nqn::parse(nqn).expect("a good NQN");
    let hostnqn = Nqn::parse("nqn.2019-05.io.openebs:host").expect("a good NQN");
    Options {
        hostnqn,
        hostid: HostId([1; 16]),
        header_digest: settings & HEADER_DIGEST != 0,
        data_digest: settings & DATA_DIGEST != 0,
        queue_depth: 4,
        max_queues: 3,
        kato_ms: if settings & KEEP_ALIVE == 0 { 0 } else { 1_000 },
        io_timeout: Duration::from_secs(2),
        admin_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(1),
        recovery: Recovery {
            ctrl_loss: (settings & RECOVER != 0).then_some(Duration::from_secs(5)),
            ..Recovery::default()
        },
        unsettled: Unsettled::separate(),
        ..Options::new(SocketAddr::from(([127, 0, 0, 1], 8420)), subnqn)
    }
}

/// Runs a task of the rig's core to its end.
fn block_on<T: 'static>(rig: &mut Rig, what: &str, task: impl Future<Output = T> + 'static) -> T {
    let mut task = rig.core().spawn(task);
    let mut result = None;
    rig.run_until(LIMIT, what, || {
        if result.is_none()
            && let Poll::Ready(value) = Pin::new(&mut task).poll(&mut Context::from_waker(Waker::noop()))
        {
            result = Some(value);
        }
        result.is_some()
    });
    match result {
        Some(Ok(value)) => value,
        _ => panic!("{what}: the task panicked"),
    }
}

fn play(bytes: &[u8]) -> Played {
    let (settings, window) = (bytes.first().copied().unwrap_or(0), bytes.get(1).copied().unwrap_or(0));
    let window = if window == 0 { 1 << 20 } else { usize::from(window) * 16 };
    let mut rig = Rig::new();
    rig.expect_hosts(Script::read(bytes.get(2..).unwrap_or_default()), window);
    let options = options(settings);
    let mut played = Played { connected: Ok(()), statuses: Vec::new(), entries: None };
    if settings & DISCOVERY == 0 {
        match block_on(&mut rig, "connecting", NvmfDevice::connect(options)) {
            Ok(device) => played.statuses = use_device(&mut rig, device),
            Err(error) => played.connected = Err(error),
        }
    } else {
        match block_on(&mut rig, "discovery", discover_with(options)) {
            Ok(entries) => played.entries = Some(check_entries(&entries)),
            Err(error) => played.connected = Err(error),
        }
    }
    if let Err(error) = &played.connected {
        assert!(!error.to_string().is_empty());
    }
    rig.finish();
    played
}

fn check_entries(entries: &[DiscoveryEntry]) -> usize {
    for entry in entries {
        assert!(entry.address.len() <= 256 && entry.service.len() <= 32, "fields stay within their size");
        assert!(entry.subnqn.as_str().len() <= nvme::nqn::NQN_MAX_LEN_BYTES);
    }
    entries.len()
}

/// I/O on two channels; returns the outcomes in the order of the I/Os.
fn use_device(rig: &mut Rig, device: Arc<NvmfDevice>) -> Vec<IoStatus> {
    let mut clients: Vec<Rc<RefCell<Client>>> = Vec::new();
    for _ in 0..2 {
        let opened = device.clone();
        let channel = block_on(rig, "opening a channel", async move { opened.open_channel().await });
        let Ok(channel) = channel else { continue };
        let client = Client::start(&rig.core(), channel);
        for op in ops(&device) {
            client.borrow_mut().submit(op);
        }
        clients.push(client);
    }
    rig.run_until(LIMIT, "I/O", || clients.iter().all(|client| client.borrow().in_flight() == 0));
    let mut statuses = Vec::new();
    for client in clients {
        let mut finished = client.borrow_mut().take_finished();
        finished.sort_by_key(|finished| finished.id);
        statuses.extend(finished.iter().map(|finished| finished.status));
        client.borrow_mut().stop();
    }
    statuses
}

/// One of each kind, in blocks of whatever size the device says it has.
fn ops(device: &NvmfDevice) -> Vec<Op> {
    let block = device.geometry().block_bytes;
    let data = |blocks: usize, byte| vec![byte; blocks * block as usize];
    let mut cut = Op::write(3, 4, data(4, 1));
    cut.cut = 700;
    let mut swap = Op::new(Opcode::CompareAndWrite, 0, 1);
    (swap.data, swap.second) = (data(1, 0), data(1, 7));
    let mut compare = Op::new(Opcode::Compare, 3, 1);
    compare.data = data(1, 1);
    vec![
        cut,
        Op::write(8, 1, data(1, 2)),
        Op::new(Opcode::Flush, 0, 0),
        Op::read(0, 8, block),
        swap,
        compare,
        Op::new(Opcode::WriteZeroes, 8, 8),
        Op::new(Opcode::Unmap, 16, 8),
        Op::read(device.size().0.saturating_sub(1), 1, block),
    ]
}

/// Sessions that work, and one lie of each kind at places that matter.
fn seeds() -> Vec<Vec<u8>> {
    use crate::rig::{Kind, record};
    let digests = HEADER_DIGEST | DATA_DIGEST;
    let mut seeds =
        vec![vec![0, 0], vec![digests, 0], vec![KEEP_ALIVE, 40], vec![RECOVER, 0], vec![DISCOVERY, 0]];
    let mut lie = |settings, records: &[Vec<u8>]| seeds.push([vec![settings, 0], records.concat()].concat());
    // Within ICResp; the first response; Identify data; an I/O queue's first answers; the end of everything.
    lie(0, &[record(0, Kind::Set, 8, 1, &[])]);
    lie(0, &[record(0, Kind::Flip, 128 + 8, 2, &[1, 0])]);
    lie(0, &[record(0, Kind::Clear, 400, 4096, &[])]);
    lie(digests, &[record(1, Kind::Flip, 200, 1, &[0x80])]);
    lie(0, &[record(1, Kind::Insert, 152, 24, &[5, 0, 24, 0, 24, 0, 0, 0])]);
    lie(0, &[record(1, Kind::Lose, 200, 8, &[])]);
    lie(KEEP_ALIVE, &[record(1, Kind::Stall, 300, 0, &[])]);
    lie(0, &[record(2, Kind::End, 250, 0, &[])]);
    lie(DISCOVERY, &[record(0, Kind::Replace, 600, 8, &[0xff; 8])]);
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fuzzing starts from sessions that work, or it only ever fuzzes refusals.
    #[test]
    fn honest_targets_are_served_and_lies_are_noticed() {
        for settings in [0, HEADER_DIGEST | DATA_DIGEST, KEEP_ALIVE] {
            for window in [0, 1, 40] {
                let played = play(&[settings, window]);
                played.connected.expect("connects");
                assert_eq!(played.statuses.len(), 18, "two channels");
                // The second channel's Compare and Write finds what the first one wrote.
                let failed: Vec<_> = played.statuses.iter().filter(|status| !status.is_success()).collect();
                assert!(failed.iter().all(|status| status.is(IoStatus::COMPARE_FAILURE)), "{failed:?}");
                assert!(failed.len() <= 2, "{failed:?}");
            }
        }
        assert_eq!(play(&[DISCOVERY, 0]).entries, Some(2), "the subsystem and the discovery subsystem");
        let lies: Vec<Played> = seeds().iter().skip(4).map(|seed| play(seed)).collect();
        let refused = lies.iter().filter(|played| played.connected.is_err()).count();
        let lost =
            lies.iter().filter(|p| p.statuses.iter().any(|s| s.is(IoStatus::HOST_PATHING_ERROR))).count();
        assert!(refused >= 2 && lost >= 3, "{refused} sessions refused, {lost} with lost I/O");
    }
}
