//! A whole target: connections, controllers, admin commands, I/O, on several connections at once.
//!
//! An input is a list of records: a byte that says which connection and what happens to it, a length, and bytes
//! that the peer sends there. Whatever they are: the target's answers are well formed, there is at most one
//! for each command, and when the peers are gone nothing of them is left.

use super::stream::{self, Side};
use crate::rig::{NQN, Rig};
use crate::{Shape, Target};
use nvme::fabrics::{ConnectData, ConnectSqe, PropertySqe};
use nvme::property::PropertyOffset;
use nvme::sgl::SglDescriptor;
use nvme::{Cid, Cntlid, HostId, Nqn, Nsid, Qid, Sqe};
use nvmf::tcp::Event;
use std::time::Duration;
use zerocopy::{FromZeros, IntoBytes};

/// Connections of one input.
const CONNECTIONS: usize = 3;
/// Of a record's first byte: which connection.
const WHICH: u8 = 0x03;
/// The peer goes away behind the record.
const ENDS: u8 = 0x80;
/// Time passes: less than a time-out, several of which add up to more.
const WAITS: u8 = 0x40;
/// Sends of this connection are taken in small pieces.
const NARROW: u8 = 0x20;

pub(super) const TARGET: Target = Target {
    name: "target",
    about: "a whole target under up to three peers: good answers, at most one a command, and nothing left behind",
    run,
    seeds: || vec![session(0), session(3), discovery(), abrupt()],
};

fn run(bytes: &[u8]) -> Shape {
    let (fed, sent) = play(bytes);
    let shapes: Vec<_> = fed.iter().zip(&sent).map(|(fed, sent)| check(fed, sent)).collect();
    Shape::of(shapes)
}

/// Plays the records; returns what each connection was sent by its peer and by the target.
fn play(bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut rig = Rig::new();
    let mut connections: [Option<usize>; CONNECTIONS] = [None; CONNECTIONS];
    let mut fed: Vec<Vec<u8>> = Vec::new();
    let mut rest = bytes;
    while let [what, a, b, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*a, *b])).min(tail.len());
        let (data, behind) = tail.split_at(len);
        rest = behind;
        let slot = usize::from(what & WHICH) % CONNECTIONS;
        let connection = *connections[slot].get_or_insert_with(|| {
            fed.push(Vec::new());
            rig.connect(if what & NARROW == 0 { 1 << 20 } else { 700 })
        });
        rig.feed(connection, data);
        fed[connection].extend_from_slice(data);
        rig.run(8, if what & WAITS == 0 { Duration::ZERO } else { Duration::from_secs(4) });
        if what & ENDS != 0 {
            rig.end(connection);
            connections[slot] = None;
            rig.run(2, Duration::ZERO);
        }
    }
    rig.run(32, Duration::ZERO);
    (fed, rig.finish())
}

/// Reads what the target sent as a host would; returns a coarse summary.
fn check(fed: &[u8], sent: &[u8]) -> (usize, usize, Vec<u16>) {
    let mut commands = 0;
    // Where its stream goes bad is the peer's affair; what came before counts.
    let _ = stream::read(Side::Controller, fed, |event| {
        commands += usize::from(matches!(event, Event::Command(..)))
    });
    let (mut answers, mut statuses) = (0, Vec::new());
    let end = stream::read(Side::Host, sent, |event| match event {
        Event::Response(cqe) => {
            answers += 1;
            statuses.push(cqe.status().bits());
        }
        Event::C2hData { success: true, .. } => answers += 1,
        _ => {}
    });
    assert_eq!(end, Ok(()), "the target sends what a host refuses");
    assert!(answers <= commands, "{answers} answers to {commands} commands");
    statuses.sort_unstable();
    statuses.dedup();
    statuses.truncate(6);
    (commands.min(8), answers.min(8), statuses)
}

/// A record: `what` happens, and `data` is sent.
fn record(what: u8, data: &[u8]) -> Vec<u8> {
    [&[what][..], &(data.len() as u16).to_le_bytes(), data].concat()
}

fn connect(qid: u16, cntlid: Cntlid, nqn: &str, digests: u8) -> Vec<u8> {
    let nqn = Nqn::parse(nqn).expect("a good NQN");
    let host = Nqn::parse("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000001")
        .expect("a good NQN");
    let data = ConnectData::new(HostId([1; 16]), cntlid, &nqn, &host);
    let mut sqe = ConnectSqe::new(Qid(qid), 32, 0).to_sqe();
    sqe.set_sgl1(SglDescriptor::in_capsule(0, 1024));
    stream::command(sqe, digests, data.as_bytes())
}

/// A connection of a host that waits for the answers: ICReq, Connect.
fn open(what: u8, qid: u16, cntlid: Cntlid, nqn: &str, digests: u8) -> Vec<u8> {
    [record(what, &stream::ic_req(digests)), record(what, &connect(qid, cntlid, nqn, digests))].concat()
}

fn command(
    opcode: u8,
    cid: u16,
    [nsid, cdw10, cdw12]: [u32; 3],
    digests: u8,
    data: &[u8],
    expect: u32,
) -> Vec<u8> {
    let mut sqe = Sqe::new_zeroed();
    sqe.opcode = opcode;
    sqe.flags = 1 << 6;
    sqe.cid.set(cid);
    sqe.nsid.set(nsid);
    sqe.cdw10.set(cdw10);
    sqe.cdw12.set(cdw12);
    sqe.set_sgl1(match (data.len(), expect) {
        (0, len) => SglDescriptor::transport(len),
        (len, _) => SglDescriptor::in_capsule(0, len as u32),
    });
    stream::command(sqe, digests, data)
}

fn fabrics(sqe: Sqe, cid: u16, digests: u8) -> Vec<u8> {
    let mut sqe = sqe;
    sqe.cid = Cid(cid).0.into();
    stream::command(sqe, digests, &[])
}

fn admin(digests: u8) -> Vec<u8> {
    let all = Nsid::BROADCAST.0;
    [
        fabrics(PropertySqe::get(PropertyOffset::CAP).to_sqe(), 1, digests),
        fabrics(PropertySqe::set(PropertyOffset::CC, 0x0046_0001).to_sqe(), 2, digests),
        fabrics(PropertySqe::get(PropertyOffset::CSTS).to_sqe(), 3, digests),
        command(0x06, 4, [0, 1, 0], digests, &[], 4096),
        command(0x06, 5, [1, 0, 0], digests, &[], 4096),
        command(0x06, 6, [0, 2, 0], digests, &[], 4096),
        command(0x06, 7, [1, 3, 0], digests, &[], 4096),
        command(0x09, 8, [0, 7, 0], digests, &[], 0),
        command(0x0a, 9, [0, 7, 0], digests, &[], 0),
        command(0x0c, 10, [0, 0, 0], digests, &[], 0),
        command(0x02, 11, [all, 0x007f_0002, 0], digests, &[], 512),
        command(0x02, 12, [all, 0x007f_0001, 0], digests, &[], 512),
        command(0x02, 13, [0, 0x007f_000c, 0], digests, &[], 512),
        command(0x18, 14, [0, 0, 0], digests, &[], 0),
        command(0x08, 15, [0, 10 << 16, 0], digests, &[], 0),
    ]
    .concat()
}

fn io(digests: u8) -> Vec<u8> {
    let block = [0x42; 512];
    let blocks = [0x43; 4096];
    [
        command(0x01, 1, [1, 0, 0], digests, &block, 0),
        command(0x01, 2, [1, 8, 7], digests, &blocks, 0),
        command(0x02, 3, [1, 0, 0], digests, &[], 512),
        command(0x02, 4, [1, 8, 31], digests, &[], 16 << 10),
        command(0x05, 5, [1, 0, 0], digests, &block, 0),
        command(0x00, 6, [1, 0, 0], digests, &[], 0),
        command(0x08, 7, [1, 0, 7], digests, &[], 0),
        command(0x09, 8, [1, 0, 0], digests, &[0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0),
        // Asks for data by R2T; nothing answers it but the mutator.
        command(0x01, 9, [1, 0, 31], digests, &[], 16 << 10),
    ]
    .concat()
}

/// Admin queue, I/O queue, most commands.
fn session(digests: u8) -> Vec<u8> {
    [
        open(0, 0, Cntlid::DYNAMIC, NQN, digests),
        record(0, &admin(digests)),
        open(1, 1, Cntlid(1), NQN, digests),
        record(1, &io(digests)),
        record(ENDS, &[]),
    ]
    .concat()
}

/// The discovery controller and its log page.
fn discovery() -> Vec<u8> {
    [
        open(NARROW, 0, Cntlid::DYNAMIC, nvme::nqn::DISCOVERY_NQN, 0),
        record(0, &fabrics(PropertySqe::set(PropertyOffset::CC, 0x0046_0001).to_sqe(), 1, 0)),
        record(WAITS, &command(0x02, 2, [0, 0x00ff_0070, 0], 0, &[], 1024)),
        record(0, &command(0x06, 3, [0, 1, 0], 0, &[], 4096)),
    ]
    .concat()
}

/// Peers that vanish in the middle, and one that comes back.
fn abrupt() -> Vec<u8> {
    let connect = connect(0, Cntlid::DYNAMIC, NQN, 0);
    [
        record(0, &stream::ic_req(0)),
        record(ENDS, &connect[..200]),
        open(1, 0, Cntlid::DYNAMIC, NQN, 0),
        record(ENDS | WAITS | 1, &admin(0)[..300]),
        open(2, 0, Cntlid::DYNAMIC, NQN, 0),
        record(WAITS | 2, &admin(0)),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fuzzing starts from sessions that work, or it only ever fuzzes refusals.
    #[test]
    fn the_seeds_get_answers() {
        for (seed, least) in [(session(0), 20), (session(3), 20), (discovery(), 4), (abrupt(), 10)] {
            let (mut good, mut all) = (0, Vec::new());
            for sent in &play(&seed).1 {
                stream::read(Side::Host, sent, |event| {
                    good += match event {
                        Event::Response(cqe) => usize::from(cqe.status().is_success()),
                        Event::C2hData { success, .. } => usize::from(*success),
                        _ => 0,
                    };
                    all.push(format!("{event:?}").chars().take(120).collect::<String>());
                })
                .expect("well formed");
            }
            assert!(good >= least, "only {good} commands succeeded, not {least}: {all:#?}");
        }
    }
}
