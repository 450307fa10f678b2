//! All targets under libFuzzer, in one binary: `KEELSON_FUZZ_TARGET` says which one it feeds.
//! `cargo xtask soak` builds it with coverage and runs each target in turn.
#![no_main]

use fuzz::Target;
use fuzz::targets::ALL;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("KEELSON_FUZZ_TARGET").expect("KEELSON_FUZZ_TARGET names the target");
    ALL.iter().find(|target| target.name == name).expect("KEELSON_FUZZ_TARGET is one of fuzz::targets::ALL")
});

fuzz_target!(|bytes: &[u8]| {
    (TARGET.run)(bytes);
});
