//! The `malloc` device passes the suite.

use std::sync::Arc;

use aio::devices::Malloc;
use aio::uri::MemoryUri;
use aio::{BlockDevice, DeviceUri};
use conformance::{DriverRef, Fixture, Spec, run};

struct Mallocs;

impl Fixture for Mallocs {
    fn create(&self, spec: Spec, _driver: &DriverRef) -> Arc<dyn BlockDevice> {
        let text = format!("malloc:///m?num_blocks={}&blk_size={}", spec.blocks, spec.block_bytes);
        let DeviceUri::Malloc(uri) = text.parse().expect("a good URI") else { unreachable!() };
        Arc::new(Malloc::new(&uri).expect("memory"))
    }
}

#[test]
fn malloc_512() {
    run(&Mallocs, 512);
}

#[test]
fn malloc_4096() {
    run(&Mallocs, 4096);
}

#[test]
fn unused_memory_costs_nothing() {
    let uri = MemoryUri { name: "big".into(), blocks: 1 << 31, block_bytes: 512, uuid: None, resize: false };
    let device = Malloc::new(&uri).expect("1 TiB of addresses");
    assert_eq!(device.size().0, 1 << 31);
}

/// A very long Unmap takes several polls, holds its slot meanwhile, and zeroes everything.
#[test]
fn long_unmaps_leave_the_core_alone() {
    use aio::Opcode;
    use conformance::bench::{Request, World};
    let world = World::new(&Mallocs, Mallocs.driver(), 4096);
    let device = Mallocs.create(Spec { block_bytes: 4096, blocks: 65_536 }, &world.driver);
    let mut bench = world.open(&device);
    for lba in (0..65_536).step_by(4096) {
        bench.write(lba, &[0x31; 4096]);
    }
    let unmap = Request::new(Opcode::Unmap, 0, 0).ranges(&[(0, 30_000), (40_000, 0), (30_000, 35_536)]);
    assert!(bench.start(unmap).is_ok());
    assert_eq!(bench.poll(64), 0, "256 MiB are not zeroed in one go");
    assert!(!bench.channel().drained());
    assert_eq!(bench.channel().prepare_sleep(), aio::Sleep::KeepPolling);
    bench.settle();
    assert!(bench.channel().drained());
    for lba in (0..65_536).step_by(4096) {
        assert!(bench.read(lba, 1).iter().all(|b| *b == 0), "block {lba}");
    }
}
