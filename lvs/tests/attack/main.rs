//! Attacks on the store: what is written is read, whatever happens.
//!
//! # Map
//! - `harness`: model, disks, crashes. - [`models`]: long walks beside the model. - [`crashes`]: every moment of a
//!   scenario as a power cut. - [`failures`]: disks that fail otherwise. - [`found`]: what all this has found.
//!   [`review`]: what a review had found before. - [`limits`]: tails, tables and pools that are as large or as full as they
//!   can be. - [`hazards`]: what chance seldom meets.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../harness/mod.rs"]
mod harness;
#[allow(dead_code, reason = "another test's, too")]
#[path = "../rig/mod.rs"]
mod rig;

mod crashes;
mod failures;
mod found;
mod hazards;
mod limits;
mod models;
mod review;

/// Runs `test` for seeds: `count` of them from 0 on, or those of `KEELSON_LVS_SEEDS` (`7`, or `100..200`). A seed that fails
/// is named.
fn seeds(count: u64, test: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let range = std::env::var("KEELSON_LVS_SEEDS").ok().map_or(0..count, |text| {
        let number = |s: &str| s.parse::<u64>().expect("KEELSON_LVS_SEEDS is a seed, or FROM..TO");
        match text.split_once("..") {
            Some((from, to)) => number(from)..number(to),
            None => number(&text)..number(&text) + 1,
        }
    });
    for seed in range {
        if let Err(panic) = std::panic::catch_unwind(|| test(seed)) {
            eprintln!("seed {seed} failed: run it with KEELSON_LVS_SEEDS={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
