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
