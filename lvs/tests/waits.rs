//! How long writes wait while a checkpoint is made: H15.

#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use aio::devices::sim::{Latency, SimConfig};
use aio::facade::IoError;
use aio::{BlockDevice, Descriptor};
use lvs::Pool;
use lvs::info::{CreatePool, CreateVolume};
use rig::{Rig, Rng, on};

const BLOCK: u64 = 4096;
/// Bytes of a write.
const WRITE_BYTES: u32 = 32 * BLOCK as u32;
const DEPTH: usize = 8;

/// A pool with much free space whose volume is written all the time: by what is named the log would have to stand still
/// until a checkpoint is durable, and none of the writes waits for that.
#[test]
fn h15_writes_go_on_while_checkpoints_are_made() {
    let rig = Rig::new();
    // Without the operations that take much longer now and then.
    let latency = Latency { slow_one_in: 0, ..Latency::default() };
    let disk = rig.disk_as(SimConfig { latency, ..SimConfig::new(4096, (1536 << 20) / BLOCK, 15) });
    let spec = CreatePool { name: "tpool".to_owned(), uuid: None, force: false };
    let pool = rig.run(Pool::create(rig.home(), vec![on(&disk)], spec)).unwrap();
    let size_bytes = 96 << 20;
    let spec = CreateVolume { name: "v".to_owned(), uuid: None, size_bytes, thin: true, entity_id: None };
    let volume: Arc<dyn BlockDevice> = rig.run(pool.create_volume(spec)).unwrap();
    let d = rig.run(Descriptor::open(volume)).unwrap();
    let before = rig.run(pool.info()).unwrap().written;

    let mut rng = Rng::new(15);
    let blocks = size_bytes / BLOCK - u64::from(WRITE_BYTES) / BLOCK;
    let mut write = |rig: &Rig| {
        let (d, block) = (d.clone(), rng.below(blocks));
        let buf = rig.core().pools().unwrap().alloc(WRITE_BYTES).unwrap();
        Box::pin(async move { d.write_at(block * BLOCK, WRITE_BYTES, buf).await.0 })
            as Pin<Box<dyn Future<Output = Result<(), IoError>>>>
    };
    // More than twice what is named at a time.
    let writes = 2 * (224 << 20) / WRITE_BYTES as usize;
    let mut flight: Vec<_> = (0..DEPTH).map(|_| (0u64, write(&rig))).collect();
    let (mut done, mut longest) = (0, 0);
    while done < writes {
        rig.run(poll_fn(|cx| {
            for (turns, future) in &mut flight {
                *turns += 1;
                if let Poll::Ready(result) = future.as_mut().poll(cx) {
                    result.unwrap();
                    longest = longest.max(*turns);
                    (*turns, *future) = (0, write(&rig));
                    done += 1;
                }
            }
            Poll::Ready(())
        }));
        rig.turn();
    }
    let written = rig.run(pool.info()).unwrap().written;
    assert!(written.page_bytes > before.page_bytes, "a checkpoint was made");
    // 22; 265 when a checkpoint begins when nothing is named any more.
    assert!(longest < 60, "a write waited for {longest} turns");
    drop(flight);
    rig.run(pool.export()).unwrap();
}
