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
