//! What was written is read.

use std::collections::HashMap;

use aio::devices::prng::Prng;
use aio::{Capabilities, Opcode};

use crate::bench::{BLOCKS, Bench, Request, World};
use crate::buf::Buf;

/// Fills a block with its address and a version, so that a misplaced or stale block shows.
pub(super) fn stamp(block: &mut [u8], lba: u64, version: u64) {
    for (i, chunk) in block.chunks_exact_mut(16).enumerate() {
        chunk[..8].copy_from_slice(&(lba ^ (i as u64) << 48).to_le_bytes());
        chunk[8..].copy_from_slice(&version.to_le_bytes());
    }
}

/// Random operations one after the other, checked against a model in memory.
pub(super) fn random_operations(world: &World<'_>) -> bool {
    if !world.options.retains_data {
        return false;
    }
    let span = BLOCKS.min(256);
    let mut bench = world.bench();
    let caps = bench.device.capabilities();
    let mut rng = Prng::new(world.options.seed ^ 1);
    let mut model = vec![0; bench.bytes(span)];
    rng.fill(&mut model);
    let step = u64::from(bench.geometry.max_blocks.min(64));
    for lba in (0..span).step_by(step as usize) {
        let end = (lba + step).min(span);
        let (from, to) = (bench.bytes(lba), bench.bytes(end));
        bench.write(lba, &model[from..to]);
    }
    for _ in 0..world.options.effort {
        let blocks = rng.between(1, step.min(17));
        let lba = rng.below(span - blocks + 1);
        let (from, to) = (bench.bytes(lba), bench.bytes(lba + blocks));
        match rng.below(9) {
            0..=2 => {
                rng.fill(&mut model[from..to]);
                bench.write(lba, &model[from..to]);
            }
            3 if caps.contains(Capabilities::WRITE_ZEROES) => {
                model[from..to].fill(0);
                bench.run(Request::new(Opcode::WriteZeroes, lba, blocks)).ok();
            }
            4 if caps.contains(Capabilities::UNMAP | Capabilities::UNMAP_ZEROES) => {
                model[from..to].fill(0);
                bench.run(Request::new(Opcode::Unmap, 0, 0).ranges(&[(lba, blocks)])).ok();
            }
            5 if caps.contains(Capabilities::COMPARE) => {
                let request = Request::new(Opcode::Compare, lba, blocks).data(Buf::of(&model[from..to]), &[]);
                bench.run(request).ok();
            }
            6 if caps.contains(Capabilities::COPY) => {
                let target = rng.below(span - blocks + 1);
                if target.abs_diff(lba) >= blocks {
                    bench.run(Request::new(Opcode::Copy, target, 0).ranges(&[(lba, blocks)])).ok();
                    let at = bench.bytes(target);
                    model.copy_within(from..to, at);
                }
            }
            7 => {
                bench.run(Request::new(Opcode::Flush, 0, 0)).ok();
            }
            _ => assert!(bench.read(lba, blocks) == model[from..to], "blocks {lba}+{blocks}"),
        }
    }
    for lba in 0..span {
        let (from, to) = (bench.bytes(lba), bench.bytes(lba + 1));
        assert!(bench.read(lba, 1) == model[from..to], "block {lba} at the end");
    }
    true
}

/// As many writes at once as the channel takes, to different blocks; then as many reads at once.
pub(super) fn stamps(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let mut rng = Prng::new(world.options.seed ^ 2);
    let len = world.block_bytes as usize;
    for version in 1..=2u64 {
        let mut order: Vec<u64> = (0..BLOCKS.min(1024)).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let mut tokens = HashMap::new();
        for lba in &order {
            let mut block = Buf::new(len);
            stamp(block.bytes_mut(), *lba, version);
            let token = bench.start_soon(Request::new(Opcode::Write, *lba, 1).data(block, &[]));
            tokens.insert(token, *lba);
        }
        tokens.drain().for_each(|(token, _)| drop(bench.wait(token).ok()));
        for lba in &order {
            let request = Request::new(Opcode::Read, *lba, 1).data(Buf::filled(len, 0xcc), &[]);
            tokens.insert(bench.start_soon(request), *lba);
        }
        let mut expected = vec![0; len];
        for (token, lba) in tokens {
            if world.options.retains_data {
                stamp(&mut expected, lba, version);
            }
            assert!(bench.wait(token).ok() == expected, "block {lba}, version {version}");
        }
    }
    true
}

/// Writes to one block at once leave exactly one of them, and a later one wins over all.
pub(super) fn overlapping_writes(world: &World<'_>) -> bool {
    if !world.options.retains_data {
        return false;
    }
    let mut bench = world.bench();
    let len = world.block_bytes as usize;
    for round in 0..20u64 {
        let depth = bench.geometry.queue_depth.min(8).into();
        for version in 0..depth {
            let mut block = Buf::new(len);
            stamp(block.bytes_mut(), round, version);
            bench.start_soon(Request::new(Opcode::Write, round, 1).data(block, &[]));
        }
        bench.settle();
        let got = bench.read(round, 1);
        let mut one = vec![0; len];
        let whole = (0..depth).any(|version| {
            stamp(&mut one, round, version);
            got == one
        });
        assert!(whole, "round {round}: a mix of several writes, or none of them");
        assert_rewritten(&mut bench, round);
    }
    true
}

fn assert_rewritten(bench: &mut Bench, lba: u64) {
    let mut block = vec![0; bench.bytes(1)];
    stamp(&mut block, lba, u64::MAX);
    bench.write(lba, &block);
    assert!(bench.read(lba, 1) == block, "a write that was submitted after the others completed");
}
