//! Seeds that once found a bug, by scenario; each line names it.
#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use sim::{scenarios, seeds};

/// Scenario, seed, and what it found. Other changes may lead a seed elsewhere; it costs next to nothing to keep.
const FOUND: &[(&str, u64, &str)] = &[
    (
        "nvmf",
        202,
        "a connection ended with a Compare and Write in its device that had waited in line: one slot was freed twice",
    ),
    ("nvmf", 11637, "the scenario took ten minutes of virtual time without work for an I/O that hangs"),
];

#[test]
fn seeds_that_once_failed_pass() {
    for (name, seed, found) in FOUND {
        let scenario = scenarios::ALL.iter().find(|s| s.name == *name).unwrap();
        if let Err(failure) = seeds::sweep(scenario, *seed..*seed + 1) {
            panic!("{failure}\nonce found here: {found}");
        }
    }
}
