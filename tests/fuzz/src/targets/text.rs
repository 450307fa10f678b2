//! What people and programs write.

use crate::{Shape, Target};
use aio::uri::DeviceUri;

/// Device URIs.
pub(super) const URI: Target = Target {
    name: "uri",
    about: "device URIs: what is accepted has a name, what is refused says why in one sentence",
    run: uri,
    seeds: || {
        [
            "malloc:///m0?size_mb=64&blk_size=4096&uuid=3f6f2a0e-6a3b-4b2b-8a57-9b3cf7a00f11",
            "null:///n0?num_blocks=1000",
            "aio:///dev/sdb?blk_size=512&rescan",
            "uring:///var/lib/disk%20one.img",
            "nvmf+tcp://127.0.0.1:8420/nqn.2019-05.io.openebs:disk?hostnqn=nqn.2014-08.org.nvmexpress:a",
            "nvmf://[::1]:8420/nqn.2019-05.io.openebs:disk",
            "bdev:///a/b?uuid=3f6f2a0e-6a3b-4b2b-8a57-9b3cf7a00f11",
            "pcie:///0000:01:00.0",
        ]
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect()
    },
};

fn uri(bytes: &[u8]) -> Shape {
    let Ok(text) = std::str::from_utf8(bytes) else { return Shape::of("no text") };
    match text.parse::<DeviceUri>() {
        Ok(uri) => {
            assert!(!uri.name().is_empty(), "an accepted URI names its device");
            assert_eq!(text.parse::<DeviceUri>().as_ref(), Ok(&uri), "the same text means the same");
            Shape::of((uri.scheme(), uri.uuid().is_some()))
        }
        Err(error) => {
            let sentence = error.to_string();
            assert!(!sentence.is_empty());
            Shape::of(std::mem::discriminant(&error))
        }
    }
}
