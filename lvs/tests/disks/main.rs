//! Pools of several simulated disks.
//!
//! # Map
//! - `damage`: second copies, and pages of which none is left. - `wrong`: disks that are missing, stale or foreign.
//! - `change`: disks that join, leave and grow, cut at every write. - `walk`: all of that by chance. - `scrub`: the online
//!   checker.
//! - This file: what they share.

#![allow(clippy::unwrap_used, reason = "a test")]

mod change;
mod damage;
#[path = "../rig/mod.rs"]
mod rig;
mod scrub;
mod walk;
mod wrong;

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use aio::device::{EventSink, Subscription};
use aio::devices::sim::{Latency, SimConfig, SimDisk};
use aio::{
    BlockCount, BlockDevice, Capabilities, Descriptor, DeviceError, Geometry, IoChannel, Lba, LocalBoxFuture,
};
use lvs::info::{CreatePool, CreateVolume, DiskState, ImportPool};
use lvs::{LvsError, Pool, Volume};
use rig::{Rig, Rng, on};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn create(rig: &Rig, disks: &[&SimDisk]) -> Pool {
    let spec = CreatePool { name: "tpool".to_owned(), uuid: None, force: false };
    rig.run(Pool::create(rig.home(), powered(disks), spec)).unwrap()
}

fn import(rig: &Rig, disks: &[&SimDisk]) -> Result<Pool, LvsError> {
    rig.run(Pool::import(rig.home(), powered(disks), ImportPool::default()))
}

fn powered(disks: &[&SimDisk]) -> Vec<Arc<dyn BlockDevice>> {
    disks.iter().map(|d| on(d)).collect()
}

fn thin(rig: &Rig, pool: &Pool, name: &str, size_bytes: u64) -> Arc<Volume> {
    let name = name.to_owned();
    let spec = CreateVolume { name, uuid: None, size_bytes, thin: true, entity_id: None };
    rig.run(pool.create_volume(spec)).unwrap()
}

fn open(rig: &Rig, volume: &Arc<Volume>) -> Descriptor {
    let device: Arc<dyn BlockDevice> = volume.clone();
    rig.run(Descriptor::open(device)).unwrap()
}

fn try_write(rig: &Rig, d: &Descriptor, block: u64, stamp: u64) -> bool {
    let mut buf = rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
    for chunk in buf[..BLOCK as usize].chunks_exact_mut(8) {
        chunk.copy_from_slice(&stamp.to_le_bytes());
    }
    rig.run(d.write_at(block * BLOCK, BLOCK as u32, buf)).0.is_ok()
}

fn write(rig: &Rig, d: &Descriptor, block: u64, stamp: u64) {
    assert!(try_write(rig, d, block, stamp), "block {block}");
}

/// The stamp of a block; `None` = an error. A mixed block is a failure.
fn read(rig: &Rig, d: &Descriptor, block: u64) -> Option<u64> {
    let buf = rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
    let (result, buf) = rig.run(d.read_at(block * BLOCK, BLOCK as u32, buf));
    result.ok()?;
    let stamp = u64::from_le_bytes(buf[..8].try_into().unwrap());
    assert!(buf[..BLOCK as usize].chunks_exact(8).all(|c| c == stamp.to_le_bytes()), "a mixed block");
    Some(stamp)
}

fn findings(rig: &Rig, disks: &[&SimDisk]) -> Vec<String> {
    rig.run(lvs::check(rig.home(), powered(disks), lvs::info::CheckWish::everything())).unwrap().findings
}

/// A pool on disks of 40 MiB with a volume whose map has interior pages; block `b` of it holds `b + 1`.
fn filled(rig: &Rig, disks: &[&SimDisk]) -> (Pool, Arc<Volume>) {
    let pool = create(rig, disks);
    let volume = fill(rig, &pool);
    (pool, volume)
}

fn fill(rig: &Rig, pool: &Pool) -> Arc<Volume> {
    let volume = thin(rig, pool, "v", 8 * MIB);
    let d = open(rig, &volume);
    (0..BLOCKS).for_each(|block| write(rig, &d, block * 2, block + 1));
    rig.run(pool.checkpoint()).unwrap();
    rig.run(d.close());
    volume
}

const BLOCKS: u64 = 600;

/// Every block holds what [`filled`] wrote.
fn assert_filled(rig: &Rig, pool: &Pool, volume: &Volume) {
    let d = open(rig, &pool.volume(volume.uuid()).unwrap());
    for block in 0..BLOCKS {
        assert_eq!(read(rig, &d, block * 2), Some(block + 1), "block {block}");
    }
    rig.run(d.close());
}

/// Blocks of a disk, behind the superblock area, for which `wanted` is true.
fn blocks_that(disk: &SimDisk, mib: u64, wanted: impl Fn(&[u8]) -> bool) -> Vec<Lba> {
    (256..mib * 256).map(Lba).filter(|&b| wanted(&disk.block(b))).collect()
}

fn is_map_page(block: &[u8], interior: bool) -> bool {
    block.starts_with(b"KSmp") && (block[5] > 0) == interior
}

fn is_table(block: &[u8]) -> bool {
    [b"KSsegmts", b"KSlines\0", b"KScatalg"].iter().any(|magic| block.starts_with(*magic))
}

fn crash(rig: &Rig, pool: Pool, disks: &[&SimDisk]) {
    disks.iter().for_each(|d| d.cut_power());
    let _ = rig.run(pool.export());
}
