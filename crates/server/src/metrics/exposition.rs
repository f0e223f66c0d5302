//! The Prometheus text format 0.0.4, written by hand: a few lines, and one dependency less.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::fmt::{Display, Write};

use tidewire_core::measure::Distribution;

/// What the numbers of a family mean.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// It only grows, until the process starts anew. Its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Durations in buckets. Its name ends in its unit.
    Histogram,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A text that grows by families.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a family. All of its samples follow, before the next one begins.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let text = &mut self.0;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a text cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.word());
        Family { text, name }
    }

    /// A family with one sample and no labels.
    pub(super) fn single(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// A family with one sample for each word.
    pub(super) fn by_word(&mut self, name: &'static str, kind: Kind, help: &str, label: &str, words: &[(&str, u64)]) {
        let mut family = self.family(name, kind, help);
        words.iter().for_each(|(word, value)| family.sample(&[(label, word)], value));
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// A family that is being written.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    /// One sample. Each set of labels comes once.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// The samples of a histogram.
    pub(super) fn histogram(&mut self, labels: &[(&str, &str)], distribution: &Distribution) {
        let mut count = 0;
        let bounds = distribution.bounds.iter().map(|bound| bound.as_secs_f64().to_string());
        for (bound, inside) in bounds.chain(["+Inf".to_owned()]).zip(&distribution.counts) {
            count += inside;
            self.line("_bucket", labels, Some(("le", &bound)), count);
        }
        self.line("_sum", labels, None, distribution.sum.as_secs_f64());
        self.line("_count", labels, None, count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], last: Option<(&str, &str)>, value: impl Display) {
        let Self { text, name } = self;
        let _ = write!(text, "{name}{suffix}");
        let mut separator = '{';
        for (label, value) in labels.iter().copied().chain(last) {
            let _ = write!(text, "{separator}{label}=\"");
            for c in value.chars() {
                match c {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    c => text.push(c),
                }
            }
            text.push('"');
            separator = ',';
        }
        if separator == ',' {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidewire_core::measure::Histogram;

    use super::*;

    #[test]
    fn labels_and_help_are_escaped() {
        let mut out = Exposition::default();
        out.family("x", Kind::Gauge, "a\\b\nc").sample(&[("q", "a\"b\\c\nd"), ("r", "é")], 1.5);
        assert_eq!(out.into_text(), "# HELP x a\\\\b\\nc\n# TYPE x gauge\nx{q=\"a\\\"b\\\\c\\nd\",r=\"é\"} 1.5\n");
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_all() {
        const BOUNDS: &[Duration] = &[Duration::from_micros(500), Duration::from_secs(1)];
        let histogram = Histogram::new(BOUNDS);
        for millis in [0, 250, 1_000, 4_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut out = Exposition::default();
        out.family("t_seconds", Kind::Histogram, "h").histogram(&[("q", "a")], &histogram.get());
        let expected = "# HELP t_seconds h\n# TYPE t_seconds histogram\n\
            t_seconds_bucket{q=\"a\",le=\"0.0005\"} 1\nt_seconds_bucket{q=\"a\",le=\"1\"} 3\n\
            t_seconds_bucket{q=\"a\",le=\"+Inf\"} 4\nt_seconds_sum{q=\"a\"} 5.25\nt_seconds_count{q=\"a\"} 4\n";
        assert_eq!(out.into_text(), expected);
    }
}
