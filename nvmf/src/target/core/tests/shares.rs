//! Promise P7 for memory: a subsystem that does not get on does not hold up the others.

use std::sync::Arc;

use aio::memory::{PoolClass, PoolsConfig};
use nvme::{NvmOpcode, Status};

use super::gate::Gate;
use super::host::rw;
use super::rig::{NQN, Rig, device};
use crate::target::core::CoreConfig;
use crate::tcp::Local;

const DISK: &str = "malloc:///disk?size_mb=8&blk_size=512";

/// With a digest reads need buffers, too.
fn digests() -> Local {
    Local { data_digest: true, ..Local::host() }
}

fn pools(chunk_bytes: u32, capacity: u32) -> PoolsConfig {
    PoolsConfig { classes: vec![PoolClass { chunk_bytes, capacity }] }
}

fn nqn(n: u8) -> String {
    format!("nqn.2019-05.io.openebs:other{n}")
}

/// Writes and reads of 128 KiB, which need buffers, come to an end within `turns` turns each.
#[track_caller]
fn gets_on(rig: &mut Rig, io: usize, turns: usize) {
    for round in 0..20u8 {
        rig.hosts[io].send(rw(NvmOpcode::WRITE, 60, 1, 0, 256), &[round; 131_072], false, 0);
        rig.hosts[io].send(rw(NvmOpcode::READ, 61, 1, 512, 256), &[], false, 131_072);
        rig.turns(turns);
        for cid in [60, 61] {
            let done =
                rig.hosts[io].done.remove(&cid).unwrap_or_else(|| panic!("command {cid} of round {round}"));
            assert_eq!(done.status, Status::SUCCESS);
        }
    }
}

fn all_bytes(rig: &Rig) -> u64 {
    let classes = rig.core.state.pools.classes();
    classes.iter().map(|p| u64::from(p.capacity()) * u64::from(p.chunk_bytes())).sum()
}

/// Nothing is held by anybody.
#[track_caller]
fn is_clean(rig: &mut Rig) {
    rig.turns(5);
    rig.core.state.spill = None;
    assert_eq!(rig.core.state.free_bytes(), all_bytes(rig));
    let held: u64 = rig.core.conns.iter().flatten().map(|c| c.held_bytes).sum();
    assert_eq!((held, rig.core.state.chunks.held()), (0, 0));
}

/// Bug: writes to a paused namespace had their data asked for, which then lay in all buffers that there are.
#[test]
fn a_paused_subsystem_takes_no_buffers_for_data_to_come() {
    let mut rig = Rig::with(DISK, CoreConfig::default(), pools(128 << 10, 4));
    rig.export(&nqn(1), device(DISK));
    let paused: Vec<usize> = (1..=6).map(|who| rig.login(Local::host(), false, who).1).collect();
    let other = rig.login_to(&nqn(1), digests(), false, 1).1;
    let target = rig.target.clone();
    rig.block_on(target.pause(NQN)).unwrap();
    for &io in &paused {
        for i in 0..30u16 {
            rig.hosts[io].send(rw(NvmOpcode::WRITE, 10 + i, 1, 0, 256), &[io as u8; 131_072], false, 0);
        }
    }
    rig.turns(5);
    assert!(paused.iter().all(|io| rig.hosts[*io].r2ts == 0));
    gets_on(&mut rig, other, 30);
    rig.block_on(target.resume(NQN)).unwrap();
    for &io in &paused {
        for i in 0..30 {
            assert_eq!(rig.wait(io, 10 + i).status, Status::SUCCESS);
        }
    }
    is_clean(&mut rig);
}

/// Bug: in-capsule writes to a paused namespace were moved to buffers until there were none.
#[test]
fn a_paused_subsystem_leaves_buffers_for_others() {
    let mut rig = Rig::with(DISK, CoreConfig::default(), pools(128 << 10, 8));
    rig.export(&nqn(1), device(DISK));
    let paused: Vec<usize> = (1..=6).map(|who| rig.login(Local::host(), false, who).1).collect();
    let other = rig.login_to(&nqn(1), digests(), false, 1).1;
    let target = rig.target.clone();
    rig.block_on(target.pause(NQN)).unwrap();
    for &io in &paused {
        for i in 0..30u16 {
            rig.hosts[io].send(rw(NvmOpcode::WRITE, 10 + i, 1, 0, 8), &[io as u8; 4096], true, 0);
        }
    }
    rig.turns(5);
    assert!(rig.core.state.free_bytes() >= all_bytes(&rig) / 2, "its share is half");
    gets_on(&mut rig, other, 30);
    rig.block_on(target.resume(NQN)).unwrap();
    for &io in &paused {
        for i in 0..30 {
            assert_eq!(rig.wait(io, 10 + i).status, Status::SUCCESS);
        }
    }
    is_clean(&mut rig);
}

/// Bug: the commands of a device that hangs held all buffers, and those of other subsystems waited for ever.
#[test]
fn devices_that_hang_hold_up_only_their_own() {
    let mut rig = Rig::with(DISK, CoreConfig::default(), pools(128 << 10, 8));
    let gate = Gate::new(1024, 1, false);
    let good = rig.login(digests(), false, 1).1;
    let mut hung = Vec::new();
    for n in 1..=6 {
        rig.export(&nqn(n), Arc::new(gate.clone()));
        // Four connections, none of which alone takes much.
        for who in 1..=4 {
            let io = rig.login_to(&nqn(n), Local::host(), false, who).1;
            hung.push(io);
            for cid in 10..13 {
                rig.hosts[io].send(rw(NvmOpcode::WRITE, cid, 1, 0, 256), &[who; 131_072], false, 0);
            }
            rig.turns(20);
        }
        // Also when the pools are empty, by what was taken by many.
        gets_on(&mut rig, good, 60);
    }
    assert!(gate.waiting() >= 6, "each has one at least");
    let heap: u64 = rig.core.conns.iter().flatten().map(|c| c.held_bytes).sum();
    assert!(heap <= all_bytes(&rig) + (6 << 17), "{heap} bytes");
    gate.open_for_all();
    for io in hung {
        for cid in 10..13 {
            assert_eq!(rig.wait(io, cid).status, Status::SUCCESS);
        }
    }
    is_clean(&mut rig);
}

/// Who goes away leaves the others with all there is.
#[test]
fn the_only_subsystem_has_everything() {
    let mut rig = Rig::with(DISK, CoreConfig::default(), pools(128 << 10, 4));
    rig.export(&nqn(1), device(DISK));
    let (admin, other) = rig.login_to(&nqn(1), Local::host(), false, 1);
    let stalled: Vec<usize> = (2..=5).map(|who| rig.login(Local::host(), false, who).1).collect();
    let all = |rig: &mut Rig, cid| {
        for &io in &stalled {
            rig.hosts[io].stall_data = true;
            rig.hosts[io].send(rw(NvmOpcode::WRITE, cid, 1, 0, 256), &[1; 131_072], false, 0);
        }
        rig.turns(5);
        let asked = stalled.iter().filter(|io| rig.hosts[**io].r2ts > 0).count();
        for &io in &stalled {
            rig.hosts[io].stall_data = false;
        }
        for _ in 0..4 {
            for &io in &stalled {
                if rig.hosts[io].r2ts > 0 {
                    rig.hosts[io].r2ts = 0;
                    rig.hosts[io].send_data(cid);
                }
            }
            rig.turns(5);
        }
        for &io in &stalled {
            assert_eq!(rig.wait(io, cid).status, Status::SUCCESS);
            rig.hosts[io].r2ts = 0;
        }
        asked
    };
    assert_eq!(all(&mut rig, 10), 2);
    assert!(admin < other);
    rig.hosts[admin].raw(&[0; 8]);
    rig.pass(std::time::Duration::from_secs(5));
    assert!(rig.hosts[other].closed && rig.hosts[admin].closed);
    assert_eq!(all(&mut rig, 11), 4);
    is_clean(&mut rig);
}
