//! The lines that a scenario prints: `ok NAME`, `not ok NAME: REASON`, `skip NAME: REASON`.

use crate::report::Tally;

/// Counts them as they come.
#[derive(Default)]
pub(crate) struct Counter {
    tally: Tally,
    skips: Vec<(String, String)>,
}

impl Counter {
    /// Takes one line of the guest's output; any other line is only output.
    pub(crate) fn line(&mut self, line: &str) {
        if line.starts_with("ok ") {
            self.tally.passed += 1;
        } else if line.starts_with("not ok ") {
            self.tally.failed += 1;
        } else if let Some(skip) = line.strip_prefix("skip ") {
            self.tally.skipped += 1;
            let (name, reason) = skip.split_once(": ").unwrap_or((skip, "no reason given"));
            self.skips.push((name.into(), reason.into()));
        }
    }

    /// The counts so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// What was skipped, and why.
    pub(crate) fn skips(&self) -> impl Iterator<Item = (&str, &str)> {
        self.skips.iter().map(|(name, reason)| (name.as_str(), reason.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_words_count() {
        let mut counter = Counter::default();
        for line in ["ok a", "okay", "not ok b: why", "skip c: no time", "skip d", " ok e", "notok"] {
            counter.line(line);
        }
        assert_eq!(counter.tally(), Tally { passed: 1, failed: 1, skipped: 2 });
        assert_eq!(counter.skips().collect::<Vec<_>>(), [("c", "no time"), ("d", "no reason given")]);
    }
}
