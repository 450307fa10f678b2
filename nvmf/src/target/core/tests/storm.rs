//! Random hosts, limits and streams against a model of the disk: whatever is cut, short or slow, every command gets
//! its answer and every read its data.

use std::collections::HashMap;

use aio::devices::prng::Prng;
use aio::memory::{PoolClass, PoolsConfig};
use nvme::command::Fuse;
use nvme::{NvmOpcode, Status};

use super::host::rw;
use super::rig::Rig;
use crate::target::core::CoreConfig;
use crate::tcp::Local;

/// Blocks of each host's own part of the disk.
const PART_BLOCKS: u64 = 512;
const DEPTH: usize = 24;

/// A command in flight, and what has to come of it.
enum Expect {
    Read {
        at: usize,
        len: usize,
    },
    Write {
        at: usize,
        data: Vec<u8>,
    },
    /// First and second half; true = the compare has to succeed.
    Fused {
        equal: bool,
    },
    FusedWrite {
        at: usize,
        data: Vec<u8>,
        equal: bool,
    },
}

struct Client {
    conn: usize,
    base: u64,
    model: Vec<u8>,
    in_flight: HashMap<u16, Expect>,
    /// Blocks that a command in flight touches.
    busy: Vec<bool>,
    next_cid: u16,
}

impl Client {
    /// Sends one random command, if there is room for it.
    fn act(&mut self, rig: &mut Rig, rng: &mut Prng) {
        if self.in_flight.len() >= DEPTH {
            return;
        }
        let blocks = match rng.below(4) {
            0 => 1,
            1 => 8,
            2 => 1 + rng.below(32),
            _ => 1 + rng.below(256),
        };
        let start = rng.below(PART_BLOCKS - blocks);
        let range = start as usize..(start + blocks) as usize;
        if self.busy[range.clone()].iter().any(|b| *b) {
            return;
        }
        self.busy[range].fill(true);
        let (at, len) = (start as usize * 512, blocks as usize * 512);
        let lba = self.base + start;
        let in_capsule = len <= 4096 && !rng.one_in(3);
        let cid = self.cid();
        let host = &mut rig.hosts[self.conn];
        match rng.below(8) {
            0..4 => {
                host.send(rw(NvmOpcode::READ, cid, 1, lba, blocks as u32), &[], false, len as u32);
                self.in_flight.insert(cid, Expect::Read { at, len });
            }
            4..7 => {
                let mut data = vec![0; len];
                rng.fill(&mut data);
                host.send(rw(NvmOpcode::WRITE, cid, 1, lba, blocks as u32), &data, in_capsule, 0);
                self.in_flight.insert(cid, Expect::Write { at, data });
            }
            _ if len > 4096 => self.busy[start as usize..(start + blocks) as usize].fill(false),
            _ => {
                let equal = rng.one_in(2);
                let mut old = self.model[at..at + len].to_vec();
                old[len / 2] ^= u8::from(!equal);
                let mut data = vec![0; len];
                rng.fill(&mut data);
                let mut first = rw(NvmOpcode::COMPARE, cid, 1, lba, blocks as u32);
                first.set_fuse(Fuse::FIRST);
                host.send(first, &old, in_capsule, 0);
                self.in_flight.insert(cid, Expect::Fused { equal });
                let cid = self.cid();
                let mut second = rw(NvmOpcode::WRITE, cid, 1, lba, blocks as u32);
                second.set_fuse(Fuse::SECOND);
                rig.hosts[self.conn].send(second, &data, len <= 4096 && rng.one_in(2), 0);
                self.in_flight.insert(cid, Expect::FusedWrite { at, data, equal });
            }
        }
    }

    fn cid(&mut self) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(769);
        while self.next_cid < 100 || self.in_flight.contains_key(&self.next_cid) {
            self.next_cid = self.next_cid.wrapping_add(769);
        }
        self.next_cid
    }

    /// Checks what completed.
    fn check(&mut self, rig: &mut Rig) {
        let done: Vec<_> = rig.hosts[self.conn].done.drain().collect();
        for (cid, done) in done {
            let expect = self.in_flight.remove(&cid).expect("asked for");
            let status = |equal: bool, other| if equal { Status::SUCCESS } else { other };
            let (at, len) = match expect {
                Expect::Read { at, len } => {
                    assert_eq!(done.status, Status::SUCCESS);
                    assert!(done.data == self.model[at..at + len], "wrong data");
                    (at, len)
                }
                Expect::Write { at, data } => {
                    assert_eq!(done.status, Status::SUCCESS);
                    self.model[at..at + data.len()].copy_from_slice(&data);
                    (at, data.len())
                }
                Expect::Fused { equal } => {
                    assert_eq!(done.status, status(equal, Status::COMPARE_FAILURE));
                    continue;
                }
                Expect::FusedWrite { at, data, equal } => {
                    assert_eq!(done.status, status(equal, Status::ABORTED_FAILED_FUSED));
                    if equal {
                        self.model[at..at + data.len()].copy_from_slice(&data);
                    }
                    (at, data.len())
                }
            };
            self.busy[at / 512..(at + len) / 512].fill(false);
        }
    }
}

fn storm(seed: u64) {
    let mut rng = Prng::new(seed);
    let config = CoreConfig {
        recv_bytes: 64 + rng.below(100_000) as u32,
        recv_bytes_in_transfer: 64 + rng.below(20_000) as u32,
        send_bytes: 1 + rng.below(200_000),
        send_bytes_large: 1 + rng.below(200_000),
        read_window_bytes: 1 + rng.below(300_000),
        max_r2t: 1 + rng.below(4) as u32,
        r2t_bytes: 512 + rng.below(100_000) as u32,
        rx_chunks: 2 + rng.below(4) as u32,
        hot_turns: rng.below(3) as u16,
        ..CoreConfig::default()
    };
    let pools = PoolsConfig {
        classes: vec![
            PoolClass { chunk_bytes: 4096, capacity: rng.below(20) as u32 },
            // One for the core's spill, and one for a command.
            PoolClass { chunk_bytes: 128 << 10, capacity: 2 + rng.below(6) as u32 },
        ],
    };
    let mut rig = Rig::with("malloc:///disk?size_mb=4&blk_size=512", config, pools);
    let hosts = 1 + rng.below(4) as u8;
    let mut clients = Vec::new();
    for who in 1..=hosts {
        rig.pipe_bytes = 2000 + rng.below(200_000) as usize;
        let local = Local {
            header_digest: rng.one_in(3),
            data_digest: rng.one_in(3),
            pda_z: rng.below(32) as u8,
            max_r2t: 1 + rng.below(4) as u32,
            ..Local::host()
        };
        let conn = rig.login(local, rng.one_in(2), who).1;
        rig.hosts[conn].stream.step = 1 + rng.below(50_000) as usize;
        clients.push(Client {
            conn,
            base: u64::from(who) * PART_BLOCKS,
            model: vec![0; PART_BLOCKS as usize * 512],
            in_flight: HashMap::new(),
            busy: vec![false; PART_BLOCKS as usize],
            next_cid: rng.below(60_000) as u16,
        });
    }
    let rounds = 150;
    for round in 0..20_000 {
        for client in &mut clients {
            if round < rounds {
                for _ in 0..rng.below(6) {
                    client.act(&mut rig, &mut rng);
                }
                rig.hosts[client.conn].deaf = rng.one_in(3);
            } else {
                rig.hosts[client.conn].deaf = false;
            }
        }
        rig.turn();
        clients.iter_mut().for_each(|c| c.check(&mut rig));
        if round >= rounds && clients.iter().all(|c| c.in_flight.is_empty()) {
            rig.turns(3);
            assert_eq!(rig.core.state.chunks.held(), 0);
            rig.core.state.spill = None;
            let all: u64 = rig
                .core
                .state
                .pools
                .classes()
                .iter()
                .map(|p| u64::from(p.capacity() * p.chunk_bytes()))
                .sum();
            assert_eq!(rig.core.state.free_bytes(), all);
            return;
        }
    }
    let left: Vec<usize> = clients.iter().map(|c| c.in_flight.len()).collect();
    panic!("commands without an answer: {left:?}");
}

#[test]
fn storms() {
    let seeds = std::env::var("STORM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        if std::panic::catch_unwind(|| storm(seed)).is_err() {
            panic!("storm of seed {seed}");
        }
    }
}
