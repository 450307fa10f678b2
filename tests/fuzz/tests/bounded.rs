//! Every target over its corpus, its seeds and a bounded number of mutations: fuzzing on stable Rust in CI time.
//! `KEELSON_FUZZ_INPUTS` changes how many, `KEELSON_FUZZ_SEED` which.

use fuzz::driver::{Bound, corpus, run};
use fuzz::targets::ALL;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn every_target_survives() {
    let inputs = setting("KEELSON_FUZZ_INPUTS", 10_000);
    let seed = setting("KEELSON_FUZZ_SEED", 1);
    for target in ALL {
        let mut given = corpus(target).expect("the corpus is readable");
        given.extend((target.seeds)());
        assert!(!given.is_empty(), "{} has nothing to start from", target.name);
        match run(target, &given, seed, Bound::Inputs(inputs)) {
            Ok(summary) => println!("{:12} {summary:?}", target.name),
            Err(find) => panic!("{}: {} on {:02x?}", target.name, find.message, find.input),
        }
    }
}
