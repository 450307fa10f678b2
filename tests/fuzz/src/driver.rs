//! Runs a target over its corpus and over mutations of it.

use crate::mutate::{Rng, mutate};
use crate::{Shape, Target};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Most inputs that are kept to be mutated further.
const MAX_KEPT: usize = 2_048;

/// When to stop mutating.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// After so many inputs.
    Inputs(u64),
    /// After so long.
    Time(Duration),
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Files of the corpus and seeds.
    pub given: u64,
    /// Mutated inputs.
    pub mutated: u64,
    /// Different shapes that were seen.
    pub shapes: usize,
}

/// An input on which the target panicked.
#[derive(Debug)]
pub struct Find {
    /// The input.
    pub input: Vec<u8>,
    /// What the panic said.
    pub message: String,
}

/// The files of `corpus/TARGET`, by name; none when there is no such folder.
pub fn corpus(target: &Target) -> std::io::Result<Vec<Vec<u8>>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(std::fs::read).collect()
}

/// Runs everything that is given, then mutations until `bound`. Stops at the first find. The same seed, corpus
/// and number of inputs run the same inputs.
pub fn run(target: &Target, given: &[Vec<u8>], seed: u64, bound: Bound) -> Result<Summary, Find> {
    let mut summary = Summary::default();
    let mut shapes = HashSet::new();
    let mut kept: Vec<Vec<u8>> = vec![Vec::new()];
    for input in given {
        summary.given += 1;
        shapes.insert(feed(target, input)?);
        kept.push(input.clone());
    }
    let mut rng = Rng::new(seed);
    let start = Instant::now();
    let goes_on = |mutated| match bound {
        Bound::Inputs(count) => mutated < count,
        Bound::Time(limit) => start.elapsed() < limit,
    };
    while goes_on(summary.mutated) {
        let mut input = kept[rng.below(kept.len())].clone();
        let other = &kept[rng.below(kept.len())];
        mutate(&mut input, other, &mut rng);
        summary.mutated += 1;
        if shapes.insert(feed(target, &input)?) {
            if kept.len() < MAX_KEPT {
                kept.push(input);
            } else {
                let place = rng.below(kept.len());
                kept[place] = input;
            }
        }
    }
    summary.shapes = shapes.len();
    Ok(summary)
}

fn feed(target: &Target, input: &[u8]) -> Result<Shape, Find> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Find { input: input.to_vec(), message: text.unwrap_or_else(|| "a panic without text".into()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRITTLE: Target = Target {
        name: "brittle",
        about: "breaks on two bytes in a row, each of which has a shape of its own",
        run: |input| {
            let first = input.first() == Some(&b'K');
            if first && input.get(1) == Some(&b'E') {
                // Not `panic!`: the report of a find that is wanted would only alarm the reader of a test log.
                std::panic::resume_unwind(Box::new("found"));
            }
            Shape::of((first, input.len().min(3)))
        },
        seeds: Vec::new,
    };

    #[test]
    fn shapes_lead_to_a_find_and_the_find_repeats() {
        let find = run(&BRITTLE, &[b"abc".to_vec()], 1, Bound::Inputs(2_000_000)).expect_err("breaks");
        assert_eq!(find.message, "found");
        assert!(feed(&BRITTLE, &find.input).is_err());
    }
}
