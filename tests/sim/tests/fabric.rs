//! Initiator and target over bad networks, many seeds in seconds (`KEELSON_SEEDS`, `KEELSON_SEED`).
//!
//! Found here before anybody else met them, each by one seed: a target that read the same blocks again and again
//! while it had no buffer to spill into; two connections that needed the one spill buffer in the same turn; a queue of
//! one entry that answered Busy for ever to a Compare and Write.

use sim::scenarios::{fabric, paths};
use sim::seeds::check;

#[test]
fn initiator_against_an_independent_controller() {
    check(&fabric::INITIATOR, 150);
}

#[test]
fn initiator_against_the_target() {
    check(&fabric::NVMF, 150);
}

#[test]
fn devices_with_paths_that_come_and_go() {
    check(&paths::PATHS, 150);
}
