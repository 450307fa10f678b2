//! What ran, what was skipped and why, and the line that CI counts.

use std::collections::BTreeSet;
use std::time::Duration;

/// The environment variable that names what must not be skipped, separated by commas.
pub(crate) const REQUIRE: &str = "KEELSON_REQUIRE";

/// How many checks of one part ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

struct Part {
    name: String,
    tally: Tally,
    took: Duration,
}

/// The record of one run of `cargo xtask`.
#[derive(Default)]
pub(crate) struct Report {
    required: BTreeSet<String>,
    parts: Vec<Part>,
    skips: Vec<String>,
    failures: Vec<String>,
}

impl Report {
    /// An empty report that takes what is required from the environment.
    pub(crate) fn from_env() -> Self {
        Self::requiring(&std::env::var(REQUIRE).unwrap_or_default())
    }

    /// An empty report that treats a skip of anything in `list` (separated by commas) as a failure.
    pub(crate) fn requiring(list: &str) -> Self {
        let required = list.split(',').map(str::trim).filter(|s| !s.is_empty()).map(String::from).collect();
        Self { required, ..Self::default() }
    }

    /// Records a part with its counts. A part whose checks failed shows in the exit code.
    pub(crate) fn add(&mut self, name: &str, tally: Tally, took: Duration) {
        if tally.failed > 0 {
            self.failures.push(format!("{name}: {} failed (see its output above)", tally.failed));
        }
        self.push(name, tally, took);
    }

    /// Records one check that passed.
    pub(crate) fn pass(&mut self, name: &str, took: Duration) {
        self.push(name, Tally { passed: 1, ..Tally::default() }, took);
    }

    /// Records one check that failed, with what the reader should know.
    pub(crate) fn fail(&mut self, name: &str, reason: String) {
        self.failures.push(format!("{name}: {reason}"));
        self.push(name, Tally { failed: 1, ..Tally::default() }, Duration::ZERO);
    }

    /// Records that `name` could not run. `needs` is the word by which [`REQUIRE`] names what is missing:
    /// when it is required, the skip is a failure.
    pub(crate) fn skip(&mut self, name: &str, needs: &str, reason: &str) {
        if self.required.contains(needs) {
            self.fail(name, format!("skipped although `{needs}` is required here: {reason}"));
            return;
        }
        eprintln!("SKIPPED {name}: {reason}");
        self.skips.push(format!("{name}: {reason}"));
        self.push(name, Tally { skipped: 1, ..Tally::default() }, Duration::ZERO);
    }

    fn push(&mut self, name: &str, tally: Tally, took: Duration) {
        self.parts.push(Part { name: name.into(), tally, took });
    }

    /// The sum over all parts.
    pub(crate) fn total(&self) -> Tally {
        self.parts.iter().fold(Tally::default(), |sum, part| Tally {
            passed: sum.passed + part.tally.passed,
            failed: sum.failed + part.tally.failed,
            skipped: sum.skipped + part.tally.skipped,
        })
    }

    /// Nothing failed, and something ran.
    pub(crate) fn is_success(&self) -> bool {
        let total = self.total();
        total.failed == 0 && total.passed + total.skipped > 0
    }

    /// Prints the table, the reasons, and as the last line `N passed, N failed, N skipped`.
    pub(crate) fn print(&self) {
        let width = self.parts.iter().map(|p| p.name.chars().count()).max().unwrap_or(0).max(4);
        println!("\n{:width$}  {:>7} {:>7} {:>7} {:>9}", "part", "passed", "failed", "skipped", "seconds");
        for Part { name, tally, took } in &self.parts {
            let Tally { passed, failed, skipped } = tally;
            println!("{name:width$}  {passed:>7} {failed:>7} {skipped:>7} {:>9.1}", took.as_secs_f64());
        }
        for skip in &self.skips {
            println!("SKIPPED {skip}");
        }
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        let Tally { passed, failed, skipped } = self.total();
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_a_skip_unless_it_is_required() {
        let mut report = Report::requiring("vm, netns");
        report.pass("a", Duration::ZERO);
        report.skip("b", "root", "no root");
        assert_eq!(report.total(), Tally { passed: 1, failed: 0, skipped: 1 });
        assert!(report.is_success());
        report.skip("c", "netns", "no namespaces");
        assert_eq!(report.total(), Tally { passed: 1, failed: 1, skipped: 1 });
        assert!(!report.is_success());
    }

    #[test]
    fn nothing_ran_is_not_success() {
        assert!(!Report::requiring("").is_success());
    }
}
