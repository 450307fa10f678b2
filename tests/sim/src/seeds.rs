//! Runs scenarios over ranges of seeds.

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What one run of a seed has to say when it went well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The trace hash.
    pub hash: u64,
    /// How much was checked, in units of the scenario (bytes, I/Os): a run that checks nothing proves nothing.
    pub checked: u64,
}

/// What a run found wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// One sentence.
    pub what: String,
    /// The last events before it.
    pub trail: Vec<String>,
}

impl Violation {
    /// A violation without a trail.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), trail: Vec::new() }
    }
}

/// Something that can be simulated from a seed.
pub struct Scenario {
    /// As on the command line.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// Runs one seed; `verbose` keeps a trail of events for the report.
    pub run: fn(seed: u64, verbose: bool) -> Result<Outcome, Violation>,
}

/// A seed that failed.
#[derive(Debug)]
pub struct Failure {
    /// Of which scenario.
    pub scenario: &'static str,
    /// Which one.
    pub seed: u64,
    /// Why.
    pub violation: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.violation.trail {
            writeln!(f, "    {line}")?;
        }
        writeln!(f, "scenario `{}` failed with seed {}: {}", self.scenario, self.seed, self.violation.what)?;
        write!(f, "replay: cargo run -p sim -- {} --seeds {}..{}", self.scenario, self.seed, self.seed + 1)
    }
}

impl std::error::Error for Failure {}

/// Every how many seeds the run is repeated and its trace compared.
const REPLAY_EVERY: u64 = 8;

/// Sums of a sweep.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Seeds that ran.
    pub seeds: u64,
    /// Seeds that ran twice with equal traces.
    pub replayed: u64,
    /// Sum of [`Outcome::checked`].
    pub checked: u64,
}

/// Runs all `seeds`; stops at the first that fails.
pub fn sweep(scenario: &Scenario, seeds: Range<u64>) -> Result<Swept, Failure> {
    let mut sums = Swept::default();
    let single = seeds.end.saturating_sub(seeds.start) == 1;
    for seed in seeds {
        let outcome = run(scenario, seed, single)?;
        sums.seeds += 1;
        sums.checked += outcome.checked;
        if single || seed % REPLAY_EVERY == 0 {
            let again = run(scenario, seed, false)?;
            if again != outcome {
                let what = format!("two runs of the seed differ: {outcome:?} and {again:?}");
                return Err(Failure { scenario: scenario.name, seed, violation: Violation::new(what) });
            }
            sums.replayed += 1;
        }
    }
    Ok(sums)
}

fn run(scenario: &Scenario, seed: u64, verbose: bool) -> Result<Outcome, Failure> {
    let fail = |violation| Failure { scenario: scenario.name, seed, violation };
    let attempt = |verbose| {
        catch_unwind(AssertUnwindSafe(|| (scenario.run)(seed, verbose))).unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without a message");
            Err(Violation::new(format!("panic: {text}")))
        })
    };
    match attempt(verbose) {
        Ok(outcome) => Ok(outcome),
        Err(first) if verbose => Err(fail(first)),
        // Again with the trail of events, which is too slow to keep for every seed.
        Err(first) => match attempt(true) {
            Err(again) if again.what == first.what => Err(fail(again)),
            other => Err(fail(Violation::new(format!(
                "{} (and not again when repeated, so the run is not deterministic: {other:?})",
                first.what
            )))),
        },
    }
}

/// Parses `A..B`, or one number for that seed alone.
pub fn parse_range(text: &str) -> Option<Range<u64>> {
    match text.split_once("..") {
        Some((a, b)) => Some(a.trim().parse().ok()?..b.trim().parse().ok()?).filter(|r| !r.is_empty()),
        None => {
            let seed: u64 = text.trim().parse().ok()?;
            Some(seed..seed.checked_add(1)?)
        }
    }
}

/// What a test runs: `KEELSON_SEED` (one), else `KEELSON_SEEDS` (`A..B`, or a count from 0), else `0..default`.
///
/// # Panics
/// When one of the variables is set to something else.
pub fn from_env(default: u64) -> Range<u64> {
    let parse = |name: &str| std::env::var(name).ok().map(|text| (text.clone(), parse_range(&text)));
    match (parse("KEELSON_SEED"), parse("KEELSON_SEEDS")) {
        (Some((_, Some(range))), _) => range,
        (None, Some((text, Some(range)))) if text.contains("..") => range,
        (None, Some((_, Some(count)))) => 0..count.start.max(1),
        (None, None) => 0..default,
        (Some((text, None)), _) | (None, Some((text, None))) => {
            panic!("KEELSON_SEED takes a number, KEELSON_SEEDS a count or A..B, not {text:?}")
        }
    }
}

/// For tests: runs the scenario over [`from_env`] seeds and panics with the failure's text.
pub fn check(scenario: &Scenario, default: u64) {
    match sweep(scenario, from_env(default)) {
        Ok(sums) => {
            println!("{}: {sums:?}", scenario.name);
            assert!(sums.checked > 0, "the scenario checked nothing");
        }
        Err(failure) => panic!("{failure}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn ranges_are_read_or_refused() {
        assert_eq!(parse_range("3..9"), Some(3..9));
        assert_eq!(parse_range("7"), Some(7..8));
        assert_eq!(parse_range("9..3"), None);
        assert_eq!(parse_range("x"), None);
        assert_eq!(parse_range("18446744073709551615"), None);
    }

    #[test]
    fn a_violation_and_a_panic_name_their_seed_and_the_replay() {
        let scenario = Scenario {
            name: "bad",
            about: "",
            run: |seed, _| match seed {
                5 => Err(Violation::new("five")),
                6 => panic!("six"),
                _ => Ok(Outcome { hash: seed, checked: 1 }),
            },
        };
        let swept = sweep(&scenario, 0..5).unwrap();
        assert_eq!((swept.seeds, swept.checked, swept.replayed), (5, 5, 1));
        let text = sweep(&scenario, 0..7).unwrap_err().to_string();
        assert!(text.contains("seed 5") && text.contains("bad --seeds 5..6"), "{text}");
        assert!(sweep(&scenario, 6..7).unwrap_err().to_string().contains("panic: six"));
    }

    #[test]
    fn a_run_that_the_seed_does_not_decide_is_a_failure() {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let scenario = Scenario {
            name: "unsteady",
            about: "",
            run: |_, _| Ok(Outcome { hash: CALLS.fetch_add(1, Ordering::Relaxed), checked: 1 }),
        };
        assert!(sweep(&scenario, 0..1).unwrap_err().violation.what.contains("differ"));
    }
}
