//! A random workload that knows what every read may return.
//!
//! Each written block carries a stamp of its own and its LBA. Per block the model keeps the set of stamps that may be
//! there: after a write was acknowledged just its stamp; while one is in flight, and after one failed, also the
//! older ones. A read may return what was legal when it began or was written meanwhile. At most one write is in
//! flight per block, so an acknowledged write always settles its blocks.

use std::collections::BTreeMap;

use aio::{BlockDevice, Capabilities, IoFlags, IoStatus, Opcode};

use crate::client::{Finished, Op};
use crate::rng::Rng;

/// The stamp of a block of zeroes.
const ZERO: u64 = 0;

struct Block {
    /// Stamps that may be there.
    legal: Vec<u64>,
    /// A write is in flight.
    busy: bool,
}

/// What an I/O in flight was meant to do.
enum Intent {
    /// Per block, what it may return.
    Read(Vec<Vec<u64>>),
    /// Blocks get this stamp when it succeeds.
    Write(u64),
    /// Blocks get zeroes, or stay as they are, when it succeeds.
    Unmap,
    /// Compares with this stamp.
    Compare(u64),
    /// Compares with the first stamp; equal blocks get the second.
    Swap(u64, u64),
    /// Flush.
    None,
}

/// See the module's documentation.
pub struct Workload {
    blocks: Vec<Block>,
    block_bytes: u32,
    max_blocks: u64,
    capabilities: Capabilities,
    next_stamp: u64,
    /// By the workload's own number.
    in_flight: BTreeMap<u64, (Op, Intent)>,
    next_id: u64,
    checked: u64,
}

fn fill(stamp: u64, lba: u64, blocks: u64, block_bytes: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks as usize * block_bytes as usize);
    for lba in lba..lba + blocks {
        for _ in 0..block_bytes / 16 {
            out.extend(stamp.to_le_bytes());
            out.extend((if stamp == ZERO { 0 } else { lba }).to_le_bytes());
        }
    }
    out
}

/// The stamp of a block, or what is wrong with it.
fn stamp_of(block: &[u8], lba: u64) -> Result<u64, String> {
    let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("invariant: 8 bytes"));
    let stamp = word(0);
    let expected = if stamp == ZERO { 0 } else { lba };
    for at in (0..block.len()).step_by(16) {
        if word(at) != stamp {
            return Err(format!("block {lba} is torn: stamp {stamp} and, at byte {at}, {}", word(at)));
        }
        if word(at + 8) != expected {
            return Err(format!("block {lba} holds stamp {stamp} of block {}", word(at + 8)));
        }
    }
    Ok(stamp)
}

impl Workload {
    /// A workload for `device`, which holds zeroes; at most the first `blocks` blocks are used.
    pub fn new(device: &dyn BlockDevice, blocks: u64) -> Self {
        let count = device.size().0.min(blocks);
        let geometry = device.geometry();
        Self {
            blocks: (0..count).map(|_| Block { legal: vec![ZERO], busy: false }).collect(),
            block_bytes: geometry.block_bytes,
            max_blocks: u64::from(geometry.max_blocks),
            capabilities: device.capabilities(),
            next_stamp: 1,
            in_flight: BTreeMap::new(),
            next_id: 0,
            checked: 0,
        }
    }

    /// Goes on with `device`, which is the same namespace under another connection.
    pub fn adopt(&mut self, device: &dyn BlockDevice) {
        self.capabilities = device.capabilities();
        self.max_blocks = u64::from(device.geometry().max_blocks);
    }

    /// Blocks that were read and compared so far.
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// The next I/O, and the number to hand back with its outcome.
    pub fn next_op(&mut self, rng: &mut Rng) -> (u64, Op) {
        let span = *rng.pick(&[1, 1, 8, 8, 64, 300]);
        let blocks = rng.between(1, span).min(self.max_blocks).min(self.blocks.len() as u64);
        let lba = rng.below(self.blocks.len() as u64 - blocks + 1);
        let kind = rng.below(100);
        let free = self.blocks[lba as usize..(lba + blocks) as usize].iter().all(|b| !b.busy);
        let has = |c| self.capabilities.contains(c);
        let (mut op, intent) = match kind {
            0..3 => (Op::new(Opcode::Flush, 0, 0), Intent::None),
            3..10 if free && has(Capabilities::WRITE_ZEROES) => {
                (Op::new(Opcode::WriteZeroes, lba, blocks), Intent::Write(ZERO))
            }
            10..15 if free && has(Capabilities::UNMAP) => {
                (Op::new(Opcode::Unmap, lba, blocks), Intent::Unmap)
            }
            15..20 if free && has(Capabilities::COMPARE) => self.compare(lba, rng),
            20..25 if free && has(Capabilities::COMPARE_AND_WRITE) => self.swap(lba, rng),
            25..60 if free => {
                let stamp = self.stamp();
                let data = fill(stamp, lba, blocks, self.block_bytes);
                (Op::write(lba, blocks, data), Intent::Write(stamp))
            }
            _ => {
                let legal = self.range(lba, blocks).map(|b| b.legal.clone()).collect();
                (Op::read(lba, blocks, self.block_bytes), Intent::Read(legal))
            }
        };
        op.flags.set(IoFlags::FUA, rng.chance_ppm(100_000) && op.opcode == Opcode::Write);
        op.flags.set(IoFlags::STABLE, rng.chance_ppm(500_000));
        op.flags.set(IoFlags::DEALLOCATE, op.opcode == Opcode::WriteZeroes && rng.chance_ppm(500_000));
        if rng.chance_ppm(300_000) {
            op.cut = rng.below(op.data.len() as u64 + 1) as usize;
        }
        self.begin(op, intent)
    }

    /// A read of everything that was written, in pieces.
    pub fn read_all(&mut self) -> Vec<(u64, Op)> {
        let (count, step) = (self.blocks.len() as u64, self.max_blocks.min(128));
        let mut ops = Vec::new();
        let mut lba = 0;
        while lba < count {
            let blocks = step.min(count - lba);
            let legal = self.range(lba, blocks).map(|b| b.legal.clone()).collect();
            ops.push(self.begin(Op::read(lba, blocks, self.block_bytes), Intent::Read(legal)));
            lba += blocks;
        }
        ops
    }

    fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    fn range(&self, lba: u64, blocks: u64) -> impl Iterator<Item = &Block> {
        self.blocks[lba as usize..(lba + blocks) as usize].iter()
    }

    /// One block, with what is there or with something else.
    fn guess(&self, lba: u64, rng: &mut Rng) -> u64 {
        let legal = &self.blocks[lba as usize].legal;
        if rng.chance_ppm(700_000) { *rng.pick(legal) } else { 1 }
    }

    fn compare(&mut self, lba: u64, rng: &mut Rng) -> (Op, Intent) {
        let guess = self.guess(lba, rng);
        let data = fill(guess, lba, 1, self.block_bytes);
        (Op { data, ..Op::new(Opcode::Compare, lba, 1) }, Intent::Compare(guess))
    }

    fn swap(&mut self, lba: u64, rng: &mut Rng) -> (Op, Intent) {
        let (guess, stamp) = (self.guess(lba, rng), self.stamp());
        let data = fill(guess, lba, 1, self.block_bytes);
        let second = fill(stamp, lba, 1, self.block_bytes);
        (Op { data, second, ..Op::new(Opcode::CompareAndWrite, lba, 1) }, Intent::Swap(guess, stamp))
    }

    fn begin(&mut self, op: Op, intent: Intent) -> (u64, Op) {
        let (from, to) = (op.lba as usize, (op.lba + op.blocks) as usize);
        let new = match intent {
            Intent::Write(stamp) | Intent::Swap(_, stamp) => Some(stamp),
            Intent::Unmap => Some(ZERO),
            Intent::Read(_) | Intent::Compare(_) | Intent::None => None,
        };
        if let Some(stamp) = new {
            for block in &mut self.blocks[from..to] {
                block.busy = true;
                block.legal.push(stamp);
            }
            self.tell_readers(op.lba, op.blocks, stamp);
        } else if matches!(intent, Intent::Compare(_)) {
            // Nothing may change under a compare, or its answer would prove nothing.
            self.blocks[from].busy = true;
        }
        let id = self.next_id;
        self.next_id += 1;
        let kept = Op { data: Vec::new(), second: Vec::new(), ..op.clone() };
        self.in_flight.insert(id, (kept, intent));
        (id, op)
    }

    /// Reads in flight may return what is written from now on.
    fn tell_readers(&mut self, lba: u64, blocks: u64, stamp: u64) {
        for (op, intent) in self.in_flight.values_mut() {
            let Intent::Read(legal) = intent else { continue };
            let from = lba.max(op.lba);
            let to = (lba + blocks).min(op.lba + op.blocks);
            for at in from..to {
                legal[(at - op.lba) as usize].push(stamp);
            }
        }
    }

    /// Takes in an outcome. `lost` says whether a status means that nobody knows what happened.
    pub fn finish(
        &mut self,
        id: u64,
        done: &Finished,
        lost: impl Fn(IoStatus) -> bool,
    ) -> Result<(), String> {
        let (op, intent) = self.in_flight.remove(&id).ok_or("an outcome of nothing in flight")?;
        let unknown = lost(done.status);
        let success = done.status.is_success();
        let blocks = &mut self.blocks[op.lba as usize..(op.lba + op.blocks) as usize];
        if !matches!(intent, Intent::Read(_) | Intent::None) {
            blocks.iter_mut().for_each(|b| b.busy = false);
        }
        match intent {
            Intent::Read(legal) if success => self.check_read(&op, &done.op.data, &legal)?,
            Intent::Write(stamp) if success => blocks.iter_mut().for_each(|b| b.legal = vec![stamp]),
            Intent::Compare(guess) if success || done.status.is(IoStatus::COMPARE_FAILURE) => {
                Self::check_compare(&op, &blocks[0], guess, None, success)?;
                self.checked += 1;
            }
            Intent::Swap(guess, stamp) if success || done.status.is(IoStatus::COMPARE_FAILURE) => {
                Self::check_compare(&op, &blocks[0], guess, Some(stamp), success)?;
                self.checked += 1;
                if success {
                    blocks[0].legal = vec![stamp];
                } else {
                    blocks[0].legal.retain(|s| *s != stamp);
                }
            }
            Intent::Unmap | Intent::None if success => {}
            _ if unknown => {}
            _ => return Err(format!("{:?} of block {} failed with {:?}", op.opcode, op.lba, done.status)),
        }
        for block in &mut self.blocks[op.lba as usize..(op.lba + op.blocks) as usize] {
            block.legal.sort_unstable();
            block.legal.dedup();
        }
        Ok(())
    }

    fn check_compare(
        op: &Op,
        block: &Block,
        guess: u64,
        own: Option<u64>,
        equal: bool,
    ) -> Result<(), String> {
        let mut others = block.legal.iter().filter(|s| **s != guess && Some(**s) != own);
        let possible = if equal { block.legal.contains(&guess) } else { others.next().is_some() };
        if possible {
            return Ok(());
        }
        Err(format!(
            "{:?} of block {} with stamp {guess} says equal = {equal}, legal are {:?}",
            op.opcode, op.lba, block.legal
        ))
    }

    fn check_read(&mut self, op: &Op, data: &[u8], legal: &[Vec<u64>]) -> Result<(), String> {
        let size = self.block_bytes as usize;
        for (i, (block, legal)) in data.chunks(size).zip(legal).enumerate() {
            let lba = op.lba + i as u64;
            let stamp = stamp_of(block, lba)?;
            if !legal.contains(&stamp) {
                return Err(format!("block {lba} returned stamp {stamp}, legal are {legal:?}"));
            }
            self.checked += 1;
        }
        Ok(())
    }

    /// The device that the I/Os in flight were given to is no more: nobody knows what they did.
    pub fn forget_in_flight(&mut self) {
        for (_, (op, _)) in std::mem::take(&mut self.in_flight) {
            for block in &mut self.blocks[op.lba as usize..(op.lba + op.blocks) as usize] {
                block.busy = false;
            }
        }
    }
}
