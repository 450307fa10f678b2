//! Long walks beside the model.

use crate::harness::walk::{Walk, walk};
use crate::seeds;

#[test]
fn pools_hold_what_the_model_says() {
    seeds(6, |seed| walk(seed, Walk { rounds: 3, steps: 50 }));
}
