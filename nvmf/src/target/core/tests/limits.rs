//! Memory is bounded, comes back, and is never what everybody waits for.

use std::sync::Arc;

use aio::memory::{PoolClass, PoolsConfig};
use nvme::{NvmOpcode, Status};

use super::gate::Gate;
use super::host::rw;
use super::rig::Rig;
use crate::target::core::CoreConfig;
use crate::tcp::Local;

const DISK: &str = "malloc:///disk?size_mb=8&blk_size=512";

/// A pool that holds four of the largest commands.
fn tight() -> PoolsConfig {
    PoolsConfig { classes: vec![PoolClass { chunk_bytes: 128 << 10, capacity: 4 }] }
}

#[test]
fn every_connection_makes_progress_when_buffers_run_out() {
    let mut rig = Rig::with(DISK, CoreConfig::default(), tight());
    let ios: Vec<usize> = (1..=8).map(|who| rig.login(Local::host(), false, who).1).collect();
    for &io in &ios {
        for i in 0..30u16 {
            rig.hosts[io].send(rw(NvmOpcode::WRITE, 10 + i, 1, 0, 256), &[io as u8; 131_072], false, 0);
        }
    }
    for &io in &ios {
        for i in 0..30 {
            assert_eq!(rig.wait(io, 10 + i).status, Status::SUCCESS);
        }
    }
    let spill = u64::from(rig.core.state.spill.is_some()) << 17;
    assert_eq!(rig.core.state.free_bytes() + spill, 4 << 17);
}

#[test]
fn peers_that_stall_do_not_take_everything() {
    let mut rig = Rig::with(DISK, CoreConfig::default(), tight());
    let greedy = rig.login(Local::host(), false, 1).1;
    let modest = rig.login(Local::host(), false, 2).1;
    rig.hosts[greedy].stall_data = true;
    for i in 0..30u16 {
        rig.hosts[greedy].send(rw(NvmOpcode::WRITE, 10 + i, 1, 0, 256), &[1; 131_072], false, 0);
    }
    rig.turns(10);
    assert!(rig.core.state.free_bytes() >= 128 << 10);
    for i in 0..30u16 {
        rig.hosts[modest].send(rw(NvmOpcode::WRITE, 10 + i, 1, 0, 256), &[2; 131_072], false, 0);
        assert_eq!(rig.wait(modest, 10 + i).status, Status::SUCCESS);
        rig.hosts[modest].send(rw(NvmOpcode::READ, 50, 1, 0, 256), &[], false, 131_072);
        assert!(rig.wait(modest, 50).data == [2; 131_072]);
    }
}

#[test]
fn in_capsule_data_in_pieces_overflows_once() {
    let gate = Gate::new(64, 512, false);
    let pools = PoolsConfig { classes: vec![PoolClass { chunk_bytes: 4096, capacity: 2 }] };
    let mut rig = Rig::with_device(Arc::new(gate.clone()), CoreConfig::default(), pools);
    rig.core.state.config.recv_bytes = 1500;
    let (_, io) = rig.login(Local::host(), false, 1);
    // The device wants aligned memory, so each write needs a buffer.
    for i in 0..10u16 {
        rig.hosts[io].send(rw(NvmOpcode::WRITE, 10 + i, 1, 0, 8), &[i as u8; 4096], true, 0);
    }
    for i in 0..10 {
        rig.turns(20);
        assert!(gate.waiting() <= 3, "two in buffers, one that overflowed");
        gate.complete(1, 0);
        assert_eq!(rig.wait(io, 10 + i).status, Status::SUCCESS);
    }
    assert_eq!(rig.core.state.free_bytes(), 8192);
    assert_eq!(rig.core.state.chunks.held(), 0);
}

#[test]
fn busy_devices_are_tried_again() {
    let gate = Gate::new(3, 1, false);
    let mut rig = Rig::with_device(Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let (_, io) = rig.login(Local::host(), false, 1);
    for i in 0..20u16 {
        rig.hosts[io].send(rw(NvmOpcode::WRITE, 10 + i, 1, 0, 8), &[0; 4096], true, 0);
    }
    for _ in 0..20 {
        rig.turns(3);
        assert!(gate.waiting() > 0 && gate.waiting() <= 3);
        gate.complete(1, 0);
    }
    rig.turns(3);
    assert_eq!(rig.hosts[io].order[1..], (10..30).collect::<Vec<u16>>(), "first come, first served");
    // Also when it was busy with nothing in flight.
    gate.set_depth(0);
    rig.hosts[io].send(rw(NvmOpcode::FLUSH, 5, 1, 0, 1), &[], false, 0);
    rig.turns(3);
    gate.set_depth(1);
    rig.turns(3);
    gate.complete(1, 0);
    assert_eq!(rig.wait(io, 5).status, Status::SUCCESS);
}

#[test]
fn a_host_that_does_not_receive_holds_little() {
    let mut rig = Rig::new(DISK);
    rig.pipe_bytes = 20_000;
    let (_, io) = rig.login(Local::host(), false, 1);
    rig.hosts[io].deaf = true;
    let before = rig.core.state.free_bytes();
    for i in 0..30u16 {
        rig.hosts[io].send(rw(NvmOpcode::READ, 10 + i, 1, 0, 256), &[], false, 131_072);
        rig.turns(10);
    }
    let held = before - rig.core.state.free_bytes();
    assert!(held <= 2 * 131_072, "{held} bytes");
    rig.hosts[io].deaf = false;
    for i in 0..30 {
        assert_eq!(rig.wait(io, 10 + i).data.len(), 131_072);
    }
}

#[test]
fn five_hundred_connections_at_once_and_a_thousand_that_come_and_go() {
    let mut rig = Rig::new(DISK);
    rig.pipe_bytes = 8192;
    let free = rig.core.state.free_bytes();
    let all: Vec<usize> =
        (1..=128).flat_map(|who| <[usize; 2]>::from(rig.login(Local::host(), false, who))).collect();
    let more: Vec<usize> = (0..256).map(|_| rig.open(Local::host())).collect();
    assert_eq!(rig.core.connections(), 512);
    for io in all.iter().skip(1).step_by(2) {
        rig.hosts[*io].send(rw(NvmOpcode::WRITE, 9, 1, 0, 8), &[3; 4096], true, 0);
    }
    for io in all.iter().skip(1).step_by(2) {
        assert_eq!(rig.wait(*io, 9).status, Status::SUCCESS);
    }
    drop(more);
    rig.hosts.clear();
    rig.turns(20);
    assert_eq!(rig.core.connections(), 0);
    for round in 0..250 {
        let (_, io) = rig.login(Local::host(), round % 2 == 0, 7);
        rig.open(Local::host());
        rig.hosts[io].send(rw(NvmOpcode::WRITE, 9, 1, 0, 256), &[3; 131_072], false, 0);
        rig.open(Local::host());
        rig.hosts.clear();
        rig.turns(5);
    }
    rig.turns(5);
    assert_eq!(rig.core.connections(), 0);
    assert_eq!(rig.core.conns.len(), 512, "places are used again");
    let spill = u64::from(rig.core.state.spill.is_some()) << 17;
    assert_eq!(rig.core.state.free_bytes() + spill, free);
    assert_eq!(rig.core.state.chunks.held(), 0);
}

/// Bug: answers that were taken back keep their place in the transmit list, and aborting their commands then
/// overflowed it, which panicked.
#[test]
fn aborting_everything_that_was_taken_back() {
    let mut rig = Rig::new(DISK);
    let local = Local { header_digest: true, ..Local::host() };
    let admin = rig.login(local, true, 1).0;
    rig.pipe_bytes = 20_000;
    let io = rig.open(local);
    let data = super::host::connect_data(1, super::rig::NQN, 1);
    rig.hosts[io].send(super::host::connect(1, 2, 128, true), &data, true, 0);
    assert_eq!(rig.wait(io, 1).status, Status::SUCCESS);
    rig.hosts[io].deaf = true;
    rig.hosts[io].send(rw(NvmOpcode::READ, 10, 1, 0, 256), &[], false, 131_072);
    for cid in 11..138 {
        rig.hosts[io].send(rw(NvmOpcode::READ, cid, 1, 0, 1), &[], false, 512);
    }
    rig.turns(3);
    for cid in 11..138u32 {
        let mut abort = nvme::Sqe::admin(nvme::AdminOpcode::ABORT, nvme::Nsid(0));
        abort.set_cid(nvme::Cid(3));
        abort.cdw10.set(cid << 16 | 2);
        rig.hosts[admin].send(abort, &[], false, 0);
        assert_eq!(rig.wait(admin, 3).result, 0, "aborted");
    }
    rig.hosts[io].deaf = false;
    assert_eq!(rig.wait(io, 10).data.len(), 131_072);
    assert_eq!(rig.wait(io, 137).status, Status::ABORT_REQUESTED);
}

/// Bug: a device that hangs held every receive chunk by its writes, and with them all connections of the core.
#[test]
fn a_device_that_hangs_does_not_hold_all_chunks() {
    let gate = Gate::new(64, 1, false);
    let config = CoreConfig { rx_chunk_bytes: 96 << 10, rx_chunks: 2, ..CoreConfig::default() };
    let mut rig = Rig::with_device(Arc::new(gate.clone()), config, PoolsConfig::default());
    let (_, hung) = rig.login(Local::host(), false, 1);
    let (admin, _) = rig.login(Local::host(), false, 2);
    for i in 0..31u16 {
        rig.hosts[hung].send(rw(NvmOpcode::WRITE, 10 + i, 1, 0, 8), &[i as u8; 4096], true, 0);
        rig.turn();
    }
    assert_eq!(gate.waiting(), 31);
    let mut keep_alive = nvme::Sqe::admin(nvme::AdminOpcode::KEEP_ALIVE, nvme::Nsid(0));
    keep_alive.set_cid(nvme::Cid(4));
    rig.hosts[admin].send(keep_alive, &[], false, 0);
    assert_eq!(rig.wait(admin, 4).status, Status::SUCCESS);
    gate.open_for_all();
    for i in 0..31 {
        assert_eq!(rig.wait(hung, 10 + i).status, Status::SUCCESS);
    }
}

/// Bug: a connection that was refused more buffers because of all that it holds already stood first in the core's
/// line for ever, and others starved behind it although there were buffers.
#[test]
fn nobody_starves_behind_a_stalled_peer() {
    let mut rig = Rig::with(DISK, CoreConfig::default(), tight());
    let [greedy, brief, modest] = [1, 2, 3].map(|who| rig.login(Local::host(), false, who).1);
    let write = |cid| rw(NvmOpcode::WRITE, cid, 1, 0, 256);
    for h in [greedy, brief] {
        rig.hosts[h].stall_data = true;
        for cid in 10..12 {
            rig.hosts[h].send(write(cid), &[1; 131_072], false, 0);
        }
    }
    rig.hosts[greedy].send(write(12), &[1; 131_072], false, 0);
    rig.turns(3);
    rig.hosts[modest].send(write(10), &[2; 131_072], false, 0);
    rig.turns(3);
    assert_eq!((rig.core.state.free_bytes(), rig.hosts[modest].r2ts), (0, 0));
    rig.hosts[brief].stall_data = false;
    for cid in 10..12 {
        rig.hosts[brief].send_data(cid);
        assert_eq!(rig.wait(brief, cid).status, Status::SUCCESS);
    }
    assert_eq!(rig.wait(modest, 10).status, Status::SUCCESS);
}

/// Bug: the data of admin answers was on the heap without a bound: a host that asked for log pages and did not
/// receive made the target hold a page for each entry of its queue.
#[test]
fn a_host_that_does_not_receive_holds_few_log_pages() {
    let mut rig = Rig::new(DISK);
    rig.pipe_bytes = 8192;
    let (admin, _) = rig.login(Local::host(), false, 1);
    rig.hosts[admin].deaf = true;
    for cid in 10..38 {
        let mut sqe = nvme::log::GetLogPage::new(nvme::log::Lid::ERROR, 131_072).sqe();
        sqe.set_cid(nvme::Cid(cid));
        rig.hosts[admin].send(sqe, &[], false, 131_072);
        rig.turn();
    }
    let held: u64 = rig.core.conns.iter().flatten().map(|c| c.heap_bytes).sum();
    assert!(held > 0 && held <= 262_144, "{held} bytes");
    rig.hosts[admin].deaf = false;
    for cid in 10..38 {
        assert_eq!(rig.wait(admin, cid).data.len(), 131_072);
    }
    assert!(rig.core.conns.iter().flatten().all(|c| c.heap_bytes == 0));
}

#[test]
fn stop_drains() {
    let gate = Gate::new(64, 1, false);
    let mut rig = Rig::with_device(Arc::new(gate.clone()), CoreConfig::default(), PoolsConfig::default());
    let (_, io) = rig.login(Local::host(), false, 1);
    rig.hosts[io].send(rw(NvmOpcode::WRITE, 5, 1, 0, 1), &[7; 512], true, 0);
    rig.turns(2);
    rig.core.stop();
    rig.turns(3);
    assert!(!aio::Poller::finished(&rig.core), "the device has a write");
    gate.open_for_all();
    rig.turns(3);
    assert!(aio::Poller::finished(&rig.core));
}
