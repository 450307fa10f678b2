//! All targets under libFuzzer, in one binary: `KEELSON_FUZZ_TARGET` says which one it feeds.
//! `cargo xtask soak` builds it with coverage and runs each target in turn.
//!
//! With `KEELSON_FUZZ_SEEDS=FOLDER` it writes what the target starts from instead; with a target that it does not
//! know it lists all targets.
#![no_main]

use fuzz::Target;
use fuzz::targets::{ALL, list, write_seeds};
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("KEELSON_FUZZ_TARGET").unwrap_or_default();
    ALL.iter().find(|target| target.name == name).unwrap_or_else(|| {
        eprintln!("KEELSON_FUZZ_TARGET names the target\n{}", list());
        std::process::exit(2)
    })
});

fn prepare() {
    let target = *TARGET;
    if let Some(folder) = std::env::var_os("KEELSON_FUZZ_SEEDS") {
        let written = write_seeds(target, Path::new(&folder));
        if let Err(error) = &written {
            eprintln!("fuzz: cannot write to {}: {error}", folder.display());
        }
        std::process::exit(i32::from(written.is_err()));
    }
}

fuzz_target!(init: prepare(), |bytes: &[u8]| {
    (TARGET.run)(bytes);
});
