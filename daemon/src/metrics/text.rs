//! The text format of Prometheus, version 0.0.4.

use std::fmt::Write;

/// Kind of a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// A momentary value.
    Gauge,
    /// Counts of values by size: use [`Metric::histogram`].
    Histogram,
}

/// A page under construction. Samples of one metric come together, after its head.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// Begins a metric. Names and help texts are ours and need no escapes.
    pub(super) fn metric(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Metric<'_> {
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {word}\n");
        Metric { page: self, name }
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// A metric that takes samples.
pub(super) struct Metric<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Metric<'_> {
    /// One sample. Label values may hold anything.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.line("", labels, value);
    }

    /// A histogram in buckets that end (exclusive) at 1, 2, 4, ... microseconds; the last one has no end. Nobody
    /// adds the values up on the I/O path, so their sum is an estimate: each counts as three quarters of its
    /// bucket's end.
    pub(super) fn histogram_of_us(&mut self, labels: &[(&str, &str)], buckets: &[u64]) {
        let (mut count, mut sum_us) = (0, 0.0);
        for (i, n) in buckets.iter().enumerate() {
            let end_us = (1_u64 << i.min(62)) as f64;
            count += n;
            sum_us += *n as f64 * end_us * 0.75;
            let end = if i + 1 == buckets.len() { "+Inf".to_owned() } else { (end_us / 1e6).to_string() };
            let mut all = labels.to_vec();
            all.push(("le", &end));
            self.line("_bucket", &all, count);
        }
        self.line("_sum", labels, sum_us / 1e6);
        self.line("_count", labels, count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let text = &mut self.page.text;
        text.push_str(self.name);
        text.push_str(suffix);
        for (i, (name, value)) in labels.iter().enumerate() {
            text.push(if i == 0 { '{' } else { ',' });
            text.push_str(name);
            text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    c => text.push(c),
                }
            }
            text.push('"');
        }
        if !labels.is_empty() {
            text.push('}');
        }
        // As above.
        let _ = writeln!(text, " {value}");
    }
}

/// Seconds, as Prometheus wants times.
pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let mut page = Page::default();
        page.metric("h", Kind::Histogram, "H.").histogram_of_us(&[("a", "b")], &[1, 2, 0, 4]);
        assert_eq!(
            page.finish(),
            "# HELP h H.\n# TYPE h histogram\n\
             h_bucket{a=\"b\",le=\"0.000001\"} 1\nh_bucket{a=\"b\",le=\"0.000002\"} 3\n\
             h_bucket{a=\"b\",le=\"0.000004\"} 3\nh_bucket{a=\"b\",le=\"+Inf\"} 7\n\
             h_sum{a=\"b\"} 0.00002775\nh_count{a=\"b\"} 7\n"
        );
    }

    #[test]
    fn heads_samples_and_escapes() {
        let mut page = Page::default();
        let mut metric = page.metric("keelson_x_total", Kind::Counter, "Things.");
        metric.sample(&[], 1);
        metric.sample(&[("device", "a\"b\\c\nd"), ("op", "read")], 2.5);
        assert_eq!(
            page.finish(),
            "# HELP keelson_x_total Things.\n# TYPE keelson_x_total counter\nkeelson_x_total 1\n\
             keelson_x_total{device=\"a\\\"b\\\\c\\nd\",op=\"read\"} 2.5\n"
        );
    }
}
