//! Receives that would find nothing are not made.

use std::time::Duration;

use aio::{Poller, Sleep};
use nvme::{NvmOpcode, Status};

use super::host::rw;
use super::rig::Rig;
use crate::tcp::Local;

const DISK: &str = "malloc:///disk?size_mb=8&blk_size=512";
const LEN: usize = 131_072;

/// `writes` whose data was asked for and stops in the middle of the first payload.
fn stalled(writes: u16) -> (Rig, usize) {
    let mut rig = Rig::new(DISK);
    let (_, io) = rig.login(Local::host(), false, 1);
    for i in 0..writes {
        let sqe = rw(NvmOpcode::WRITE, 10 + i, 1, u64::from(i) * 256, 256);
        rig.hosts[io].send(sqe, &[i as u8 + 1; LEN], false, 0);
    }
    rig.hosts[io].stream.limit_send(1000);
    rig.turn();
    assert_eq!(rig.hosts[io].r2ts, u32::from(writes));
    rig.core_turn();
    rig.hosts[io].stream.peer_empty_receives();
    (rig, io)
}

/// Receives that found nothing in ten turns, which come one microsecond after the other.
fn empty_receives(rig: &mut Rig, io: usize) -> u32 {
    for _ in 0..10 {
        rig.now = rig.now + Duration::from_micros(1);
        rig.core.poll(rig.now);
        rig.core.kick();
    }
    rig.hosts[io].stream.peer_empty_receives()
}

#[test]
fn a_payload_that_is_underway_is_not_asked_after_in_every_turn() {
    let (mut rig, io) = stalled(2);
    assert_eq!(empty_receives(&mut rig, io), 1, "the pause is 10 us");
    assert_eq!(empty_receives(&mut rig, io), 1, "and is over some time");

    // What is there and known to be there is taken at once.
    let before = rig.core.state.stats.bytes_received;
    rig.hosts[io].turn();
    rig.core.poll(rig.now);
    assert_eq!(rig.core.state.stats.bytes_received, before + 1000);

    rig.hosts[io].stream.limit_send(1 << 22);
    for cid in 10..12 {
        assert_eq!(rig.wait(io, cid).status, Status::SUCCESS);
    }
}

#[test]
fn the_last_payload_is_asked_after_in_every_turn() {
    let (mut rig, io) = stalled(1);
    assert_eq!(empty_receives(&mut rig, io), 10);
    rig.hosts[io].stream.limit_send(1 << 22);
    assert_eq!(rig.wait(io, 10).status, Status::SUCCESS);
}

/// A bug: a connection that was tried when the core fell asleep was tried on when it woke, whoever woke it.
#[test]
fn a_connection_that_slept_is_not_tried_before_it_reports_readable() {
    let mut rig = Rig::new(DISK);
    let (_, io) = rig.login(Local::host(), false, 1);
    rig.hosts[io].send(rw(NvmOpcode::WRITE, 5, 1, 0, 8), &[1; 4096], true, 0);
    assert_eq!(rig.wait(io, 5).status, Status::SUCCESS);
    rig.hosts[io].stream.peer_empty_receives();
    assert!(empty_receives(&mut rig, io) > 0, "it is tried for a while");
    assert_ne!(rig.core.prepare_sleep(rig.now), Sleep::KeepPolling);
    assert_eq!(empty_receives(&mut rig, io), 0, "somebody else woke the core");
    rig.hosts[io].send(rw(NvmOpcode::WRITE, 6, 1, 0, 8), &[2; 4096], true, 0);
    assert_eq!(rig.wait(io, 6).status, Status::SUCCESS);
    assert!(empty_receives(&mut rig, io) > 0, "it is tried again after something came");
}
