//! Disks that fail otherwise than by losing power.

use crate::harness::faults::{fail_once, rot};
use crate::seeds;

#[test]
fn h8_one_failure_of_a_disk_is_told_and_nothing_wrong_is_served() {
    seeds(24, |seed| {
        fail_once(seed).unwrap();
    });
}

#[test]
fn a_block_that_went_bad_is_noticed_and_never_served() {
    seeds(2, |seed| {
        let noticed = rot(seed, 20).unwrap();
        assert!(noticed > 0, "nothing that went bad was in use");
    });
}
