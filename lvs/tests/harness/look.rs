//! Reading everything that is in a pool.

use std::sync::Arc;

use aio::{BlockDevice, Core, Descriptor};
use lvs::{Pool, Volume};

use super::live::{PART, stamp_of};
use super::model::{PARTS, Seen, SeenVolume, Stamps, UNREADABLE};

/// Bytes read at a time.
const STEP: u64 = 128 << 10;

/// All volumes and snapshots, with all blocks. What cannot be read is said to be [`UNREADABLE`].
pub(crate) async fn look(pool: &Pool) -> Result<Seen, String> {
    let mut seen = Seen::default();
    for info in pool.volumes().await.map_err(|e| e.to_string())? {
        let volume = pool.volume(info.uuid).ok_or("a volume in the list has no device")?;
        if volume.size_bytes() != info.size_bytes {
            return Err(format!("volume {} has two sizes", info.uuid));
        }
        let blocks = read(volume).await?;
        seen.volumes.insert(info.uuid, SeenVolume { discarded: false, blocks });
    }
    for info in pool.snapshots().await.map_err(|e| e.to_string())? {
        let snapshot = pool.open_snapshot(info.uuid).await.map_err(|e| e.to_string())?;
        let blocks = read(snapshot).await?;
        seen.snapshots.insert(info.uuid, SeenVolume { discarded: info.discarded, blocks });
    }
    Ok(seen)
}

async fn read(volume: Arc<Volume>) -> Result<Vec<Stamps>, String> {
    let device: Arc<dyn BlockDevice> = volume;
    let descriptor = Descriptor::open(device).await.map_err(|e| e.to_string())?;
    let size = descriptor.len_bytes();
    let mut blocks = Vec::with_capacity((size / 4096) as usize);
    for at in (0..size).step_by(STEP as usize) {
        let len = STEP.min(size - at);
        match read_at(&descriptor, at, len).await {
            Ok(found) => blocks.extend(found),
            Err(()) => {
                for at in (at..at + len).step_by(4096) {
                    match read_at(&descriptor, at, 4096).await {
                        Ok(found) => blocks.extend(found),
                        Err(()) => blocks.push([UNREADABLE; PARTS]),
                    }
                }
            }
        }
    }
    descriptor.close().await;
    Ok(blocks)
}

async fn read_at(d: &Descriptor, at: u64, len: u64) -> Result<Vec<Stamps>, ()> {
    let core = Core::current().expect("on a core");
    let buf = core.pools().unwrap().alloc(len as u32).unwrap();
    let (result, buf) = d.read_at(at, len as u32, buf).await;
    result.map_err(|_| ())?;
    let mut blocks = Vec::with_capacity((len / 4096) as usize);
    for (block, bytes) in (at / 4096..).zip(buf[..len as usize].chunks_exact(4096)) {
        let mut stamps = [0; PARTS];
        for (i, part) in bytes.chunks_exact(PART as usize).enumerate() {
            stamps[i] = stamp_of(part, block * PARTS as u64 + i as u64);
        }
        blocks.push(stamps);
    }
    Ok(blocks)
}
