//! The blocks of a simulated disk: medium, volatile cache, and what faults and power cuts do to them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Faults, Latency, SimConfig};
use crate::IoStatus;
use crate::devices::prng::{Prng, mix};

/// Blocks that the cache holds before it writes some back by itself.
const CACHE_BLOCKS: usize = 16_384;

/// How often what has happened.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SimStats {
    /// Writes that were carried out, well or badly.
    pub writes: u64,
    /// Reads that were carried out.
    pub reads: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Reads and writes that failed.
    pub errors: u64,
    /// Writes that changed nothing.
    pub lost_writes: u64,
    /// Writes that changed other blocks.
    pub misdirected: u64,
    /// Writes that changed some of their blocks, in operation.
    pub torn_writes: u64,
    /// Blocks that became unreadable.
    pub latent: u64,
    /// Bits that went wrong.
    pub flipped_bits: u64,
    /// Flushes that failed.
    pub flush_errors: u64,
    /// Times that a storm of Busy began.
    pub busy_storms: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Un-flushed blocks that a power cut took back.
    pub blocks_lost_by_cuts: u64,
    /// Un-flushed blocks that survived a power cut.
    pub blocks_kept_by_cuts: u64,
}

/// Contents of a block; `None` = zeroes.
type Contents = Option<Box<[u8]>>;

/// One un-flushed state of a block.
#[derive(Clone)]
struct Version {
    write: u64,
    /// The write is of a size that is never torn.
    whole: bool,
    data: Contents,
}

/// A write that the disk has accepted and not carried out.
struct InFlight {
    lba: u64,
    data: Vec<u8>,
}

/// Blocks and their fate. All maps are ordered, so that nothing depends on hashing.
pub(super) struct Medium {
    block_bytes: usize,
    blocks: u64,
    volatile: bool,
    atomic_blocks: u64,
    latency: Latency,
    faults: Faults,
    rng: Prng,
    durable: BTreeMap<u64, Box<[u8]>>,
    cache: BTreeMap<u64, Vec<Version>>,
    cached_versions: usize,
    /// Writes that a failed flush has forgotten: no later flush saves them.
    forgotten: BTreeSet<u64>,
    unreadable: BTreeSet<u64>,
    in_flight: BTreeMap<u64, InFlight>,
    next_write: u64,
    stats: SimStats,
}

impl Medium {
    pub(super) fn new(config: &SimConfig, rng: Prng) -> Self {
        Self {
            block_bytes: config.block_bytes as usize,
            blocks: config.blocks,
            volatile: config.volatile_cache,
            atomic_blocks: config.atomic_blocks.into(),
            latency: config.latency,
            faults: config.faults,
            rng,
            durable: BTreeMap::new(),
            cache: BTreeMap::new(),
            cached_versions: 0,
            forgotten: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            next_write: 0,
            stats: SimStats::default(),
        }
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(super) fn stats(&self) -> SimStats {
        self.stats
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub(super) fn grow(&mut self, blocks: u64) {
        self.blocks = self.blocks.max(blocks);
    }

    pub(super) fn damage(&mut self, lba: u64) {
        if self.unreadable.insert(lba) {
            self.stats.latent += 1;
        }
    }

    pub(super) fn flip_bit(&mut self, lba: u64, bit: u64) {
        let flip = |data: &mut [u8]| {
            let bit = bit as usize % (data.len() * 8);
            data[bit / 8] ^= 1 << (bit % 8);
        };
        let zeroes = || vec![0; self.block_bytes].into_boxed_slice();
        match self.cache.get_mut(&lba).and_then(|versions| versions.last_mut()) {
            Some(version) => flip(version.data.get_or_insert_with(zeroes)),
            None => flip(self.durable.entry(lba).or_insert_with(zeroes)),
        }
        self.stats.flipped_bits += 1;
    }

    /// How long the next I/O takes.
    pub(super) fn draw_latency_ns(&mut self) -> u64 {
        let l = self.latency;
        if self.rng.one_in(l.slow_one_in) { l.slow_ns } else { self.rng.between(l.min_ns, l.max_ns) }
    }

    /// The length of the storm that begins now, if one does.
    pub(super) fn draw_storm_ns(&mut self) -> Option<u64> {
        if !self.rng.one_in(self.faults.busy) {
            return None;
        }
        self.stats.busy_storms += 1;
        Some(self.rng.between(1_000, 1_000_000))
    }

    pub(super) fn coin(&mut self) -> bool {
        self.rng.one_in(2)
    }

    /// Notes a write that was accepted: from now on a power cut may leave parts of it.
    pub(super) fn begin_write(&mut self, lba: u64, data: Vec<u8>) -> u64 {
        self.next_write += 1;
        self.in_flight.insert(self.next_write, InFlight { lba, data });
        self.next_write
    }

    /// Forgets an accepted write, which then had no effect.
    pub(super) fn abandon_write(&mut self, write: u64) {
        self.in_flight.remove(&write);
    }

    /// Carries an accepted write out, unless a fault decides otherwise.
    pub(super) fn finish_write(&mut self, write: u64, fua: bool) -> IoStatus {
        let Some(InFlight { lba, data }) = self.in_flight.remove(&write) else {
            return IoStatus::INTERNAL_ERROR;
        };
        let faults = self.faults;
        self.stats.writes += 1;
        let count = (data.len() / self.block_bytes) as u64;
        if self.rng.one_in(faults.write_error) {
            self.stats.errors += 1;
            return IoStatus::WRITE_FAULT;
        }
        if self.rng.one_in(faults.lost_write) {
            self.stats.lost_writes += 1;
            return IoStatus::SUCCESS;
        }
        let mut target = lba;
        if self.rng.one_in(faults.misdirected) && count < self.blocks {
            self.stats.misdirected += 1;
            target = self.rng.below(self.blocks - count + 1);
        }
        let torn = count > self.atomic_blocks && self.rng.one_in(faults.torn_write);
        self.stats.torn_writes += u64::from(torn);
        let salt = self.rng.next_u64();
        for (i, block) in (0u64..).zip(data.chunks_exact(self.block_bytes)) {
            if !torn || mix(salt ^ i) & 1 == 0 {
                self.store(target + i, write, count <= self.atomic_blocks, Some(block.into()), fua);
            }
        }
        if self.rng.one_in(faults.flipped_bit) && count > 0 {
            let (block, bit) = (target + self.rng.below(count), self.rng.next_u64());
            self.flip_bit(block, bit);
        }
        if self.rng.one_in(faults.latent) && count > 0 {
            let block = target + self.rng.below(count);
            self.damage(block);
        }
        self.write_back_some();
        IoStatus::SUCCESS
    }

    /// Makes blocks read as zeroes.
    pub(super) fn zero(&mut self, lba: u64, blocks: u64, fua: bool) -> IoStatus {
        self.stats.writes += 1;
        if self.rng.one_in(self.faults.write_error) {
            self.stats.errors += 1;
            return IoStatus::WRITE_FAULT;
        }
        self.next_write += 1;
        let (write, whole) = (self.next_write, blocks <= self.atomic_blocks);
        // Blocks that hold nothing are zeroes already: only the others are touched, so a range may be huge.
        let end = lba + blocks;
        let mut held: Vec<u64> = self.durable.range(lba..end).map(|(lba, _)| *lba).collect();
        held.extend(self.cache.range(lba..end).map(|(lba, _)| *lba));
        held.extend(self.unreadable.range(lba..end));
        held.sort_unstable();
        held.dedup();
        for lba in held {
            self.store(lba, write, whole, None, fua);
        }
        IoStatus::SUCCESS
    }

    /// Reads blocks into `out`.
    pub(super) fn read(&mut self, lba: u64, out: &mut [u8]) -> IoStatus {
        self.stats.reads += 1;
        let blocks = (out.len() / self.block_bytes) as u64;
        let bad = self.unreadable.range(lba..lba + blocks).next().is_some();
        if bad || self.rng.one_in(self.faults.read_error) {
            self.stats.errors += 1;
            return IoStatus::UNRECOVERED_READ;
        }
        for (i, block) in (0u64..).zip(out.chunks_exact_mut(self.block_bytes)) {
            match self.contents(lba + i) {
                Some(data) => block.copy_from_slice(data),
                None => block.fill(0),
            }
        }
        IoStatus::SUCCESS
    }

    /// Reads from the medium without giving the data.
    pub(super) fn verify(&mut self, lba: u64, blocks: u64) -> IoStatus {
        let bad = self.unreadable.range(lba..lba + blocks).next().is_some();
        self.stats.errors += u64::from(bad);
        if bad { IoStatus::UNRECOVERED_READ } else { IoStatus::SUCCESS }
    }

    /// Makes everything in the cache durable, unless a fault decides otherwise.
    pub(super) fn flush(&mut self) -> IoStatus {
        if !self.rng.one_in(self.faults.flush_error) {
            self.stats.flushes += 1;
            self.flush_all();
            return IoStatus::SUCCESS;
        }
        self.stats.flush_errors += 1;
        let writes: BTreeSet<u64> = self.cache.values().flatten().map(|v| v.write).collect();
        for write in writes {
            if self.rng.one_in(2) {
                self.forgotten.insert(write);
            }
        }
        IoStatus::WRITE_FAULT
    }

    /// Makes everything durable that no failed flush has forgotten.
    pub(super) fn flush_all(&mut self) {
        for lba in self.cache.keys().copied().collect::<Vec<_>>() {
            self.save(lba);
        }
    }

    /// Power goes: each un-flushed write survives, vanishes, or survives in part.
    pub(super) fn cut_power(&mut self) {
        self.stats.power_cuts += 1;
        // Cuts differ: sometimes everything survives, sometimes nothing, mostly something.
        let (keep, tear) = match self.rng.below(6) {
            0 => (0, 0),
            1 => (256, 0),
            n => (self.rng.below(257), 32 * n),
        };
        let salt = self.rng.next_u64();
        let survives = |v: &Version, lba: u64| {
            let fate = mix(salt ^ v.write);
            let torn = !v.whole && (fate >> 8 & 255) < tear;
            let draw = if torn { mix(fate ^ lba) } else { fate };
            (draw & 255) < keep
        };
        for (write, InFlight { lba, data }) in core::mem::take(&mut self.in_flight) {
            let whole = (data.len() / self.block_bytes) as u64 <= self.atomic_blocks;
            for (i, block) in (0u64..).zip(data.chunks_exact(self.block_bytes)) {
                let version = Version { write, whole, data: Some(block.into()) };
                // Without a volatile cache a write in flight is torn all the same.
                self.cache.entry(lba + i).or_default().push(version);
            }
        }
        for (lba, versions) in core::mem::take(&mut self.cache) {
            // The newest survivor wins: later writes to a block never lose against earlier ones.
            match versions.into_iter().rev().find(|v| survives(v, lba)) {
                Some(version) => {
                    self.stats.blocks_kept_by_cuts += 1;
                    self.unreadable.remove(&lba);
                    self.put(lba, version.data);
                }
                None => self.stats.blocks_lost_by_cuts += 1,
            }
        }
        self.cached_versions = 0;
        self.forgotten.clear();
    }

    pub(super) fn block(&self, lba: u64) -> Vec<u8> {
        self.contents(lba).map_or_else(|| vec![0; self.block_bytes], <[u8]>::to_vec)
    }

    pub(super) fn digest(&self) -> u64 {
        let lbas: BTreeSet<u64> = self.durable.keys().chain(self.cache.keys()).copied().collect();
        let mut hash = 0;
        for lba in lbas {
            let Some(data) = self.contents(lba).filter(|d| d.iter().any(|b| *b != 0)) else { continue };
            hash = mix(hash ^ lba);
            for word in data.chunks_exact(8) {
                hash = mix(hash ^ u64::from_le_bytes(word.try_into().expect("invariant: chunks of eight")));
            }
        }
        hash
    }

    fn contents(&self, lba: u64) -> Option<&[u8]> {
        match self.cache.get(&lba).and_then(|versions| versions.last()) {
            Some(version) => version.data.as_deref(),
            None => self.durable.get(&lba).map(|data| &data[..]),
        }
    }

    fn store(&mut self, lba: u64, write: u64, whole: bool, data: Contents, fua: bool) {
        self.unreadable.remove(&lba);
        if self.volatile && !fua {
            self.cache.entry(lba).or_default().push(Version { write, whole, data });
            self.cached_versions += 1;
            return;
        }
        // What is on the medium now is newer than everything in the cache.
        if let Some(old) = self.cache.remove(&lba) {
            self.cached_versions -= old.len();
        }
        self.put(lba, data);
    }

    fn put(&mut self, lba: u64, data: Contents) {
        match data {
            Some(data) => self.durable.insert(lba, data),
            None => self.durable.remove(&lba),
        };
    }

    /// Moves the newest saved state of a cached block to the medium; forgotten ones stay volatile.
    fn save(&mut self, lba: u64) {
        let Some(versions) = self.cache.remove(&lba) else { return };
        self.cached_versions -= versions.len();
        let Some(at) = versions.iter().rposition(|v| !self.forgotten.contains(&v.write)) else {
            self.cached_versions += versions.len();
            self.cache.insert(lba, versions);
            return;
        };
        let mut versions = versions;
        let newer = versions.split_off(at + 1);
        if let Some(saved) = versions.pop() {
            self.put(lba, saved.data);
        }
        if !newer.is_empty() {
            self.cached_versions += newer.len();
            self.cache.insert(lba, newer);
        }
    }

    /// The cache is finite: beyond its size it saves blocks in no particular order.
    fn write_back_some(&mut self) {
        while self.cached_versions > CACHE_BLOCKS {
            let from = self.rng.below(self.blocks);
            let lba =
                self.cache.range(from..).next().or_else(|| self.cache.iter().next()).map(|(lba, _)| *lba);
            let before = self.cached_versions;
            if let Some(lba) = lba {
                self.save(lba);
            }
            if self.cached_versions == before {
                // Only forgotten writes there: they stay until power goes.
                return;
            }
        }
    }
}
