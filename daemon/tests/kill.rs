//! The daemon is killed under verified load, more than twenty times. `cargo xtask soak --only "lvs kill"` does it hundreds
//! of times.

#![allow(clippy::unwrap_used)]

mod killing;

use std::path::Path;

use killing::{Story, tell};

/// One round of each deed in each story.
#[test]
fn nothing_that_was_flushed_is_lost_by_a_kill() {
    for seed in 0..3 {
        // Beside the build: a temporary folder may be in memory, where there is no direct I/O.
        let folder = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
        let story = Story {
            keelson: env!("CARGO_BIN_EXE_keelson").into(),
            folder: folder.path().to_owned(),
            seed,
            rounds: 7,
        };
        let told = tell(&story).unwrap_or_else(|e| {
            let log = std::fs::read_to_string(story.folder.join("log")).unwrap_or_default();
            let kept = folder.keep();
            panic!("seed {seed}: {e}\nits disks are in {}; it logged:\n{log}", kept.display());
        });
        println!("seed {seed}: {told:?}");
        assert!(told.kills >= story.rounds && told.ios > 100 && told.durable > 20, "{told:?}");
    }
}
