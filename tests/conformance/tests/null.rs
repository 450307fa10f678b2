//! The `null` device passes the suite.

use std::sync::Arc;

use aio::devices::Null;
use aio::{BlockDevice, DeviceUri};
use conformance::{DriverRef, Fixture, Options, Spec, run};

struct Nulls;

impl Fixture for Nulls {
    fn create(&self, spec: Spec, _driver: &DriverRef) -> Arc<dyn BlockDevice> {
        let text = format!("null:///n?num_blocks={}&blk_size={}", spec.blocks, spec.block_bytes);
        let DeviceUri::Null(uri) = text.parse().expect("a good URI") else { unreachable!() };
        Arc::new(Null::new(&uri).expect("memory"))
    }

    fn options(&self) -> Options {
        Options { retains_data: false, ..Options::default() }
    }
}

#[test]
fn null_512() {
    run(&Nulls, 512);
}

#[test]
fn null_4096() {
    run(&Nulls, 4096);
}
