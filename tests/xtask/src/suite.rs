//! `cargo xtask test`: all that proves the tree, in one go, with nothing left out silently.

use crate::process::{cargo, run_lines};
use crate::report::{Report, Tally};
use crate::{bench, check, vm};
use anyhow::{Context, Result};
use std::time::Instant;

/// The environment variable that tells a test where to record that it could not run.
///
/// A test that lacks something of the machine appends one line `NEEDS TEST: REASON` to that file and returns,
/// for example `netns target::stalls: no permission to make a network namespace`. It is then counted as
/// skipped, not as passed, and as failed when [`crate::report::REQUIRE`] names what it needs.
pub(crate) const SKIPS: &str = "KEELSON_SKIPS";

/// Runs `check`, the workspace's tests and the VM scenarios.
pub(crate) fn run(report: &mut Report, no_vm: bool) -> Result<()> {
    check::run(report)?;
    workspace(report)?;
    bench::count(report)?;
    if no_vm {
        report.skip("vm", "vm", "left out by --no-vm");
        return Ok(());
    }
    vm::run_all(report)
}

/// `cargo test`: units, conformance, simulation seeds, fuzz corpora and bounded mutations.
fn workspace(report: &mut Report) -> Result<()> {
    let skips = std::env::temp_dir().join(format!("keelson-skips-{}", std::process::id()));
    std::fs::write(&skips, "").with_context(|| format!("creating {}", skips.display()))?;
    let mut tally = Tally::default();
    let start = Instant::now();
    let status = run_lines(
        cargo().args(["test", "--workspace", "--locked", "--no-fail-fast"]).env(SKIPS, &skips),
        |line| tally = sum(tally, test_result(line).unwrap_or_default()),
    )?;
    let skipped = std::fs::read_to_string(&skips).with_context(|| format!("reading {}", skips.display()))?;
    std::fs::remove_file(&skips).with_context(|| format!("removing {}", skips.display()))?;
    // A test binary that was killed prints no result line; Cargo's status still tells.
    if !status.success() && tally.failed == 0 {
        tally.failed = 1;
    }
    let skipped: Vec<&str> = skipped.lines().filter(|l| !l.is_empty()).collect();
    tally.passed = tally.passed.saturating_sub(skipped.len() as u64);
    report.add("cargo test", tally, start.elapsed());
    for line in skipped {
        let (needs, rest) = line.split_once(' ').unwrap_or((line, "no test named: no reason given"));
        let (test, reason) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
        report.skip(test, needs, reason);
    }
    Ok(())
}

fn sum(a: Tally, b: Tally) -> Tally {
    Tally { passed: a.passed + b.passed, failed: a.failed + b.failed, skipped: a.skipped + b.skipped }
}

/// The counts of a line `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; ...`.
fn test_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut tally = Tally::default();
    for count in counts.split(';') {
        let (number, word) = count.trim().split_once(' ')?;
        match word {
            "passed" => tally.passed = number.parse().ok()?,
            "failed" => tally.failed = number.parse().ok()?,
            "ignored" => tally.skipped = number.parse().ok()?,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.10s";
        assert_eq!(test_result(line), Some(Tally { passed: 12, failed: 3, skipped: 1 }));
        assert_eq!(test_result("test tcp::pdu ... ok"), None);
        assert_eq!(test_result("test result: nonsense"), None);
    }
}
