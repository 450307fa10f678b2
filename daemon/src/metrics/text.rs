//! The text format of Prometheus, version 0.0.4.

use std::fmt::Write;

/// Kind of a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// A momentary value.
    Gauge,
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
        let text = &mut self.page.text;
        text.push_str(self.name);
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
