//! Numbers that many threads add to and somebody reads now and then. Nothing is decided by them, so nothing is ordered by them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// One number.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds an amount.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn up(&self) {
        self.add(1);
    }

    /// Takes one away. For numbers of what is there now.
    pub fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Makes it another number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One number for each of a few reasons that are known beforehand, so that a reason which has not come up yet shows as 0.
#[derive(Debug)]
pub struct Reasons {
    names: &'static [&'static str],
    counts: Box<[Counter]>,
}

/// What a reason that was not announced is counted as.
pub const OTHER: &str = "other";

impl Reasons {
    /// Counts these reasons, and all further ones together as [`OTHER`].
    pub fn new(names: &'static [&'static str]) -> Self {
        Self { names, counts: (0..=names.len()).map(|_| Counter::default()).collect() }
    }

    /// Counts one more.
    pub fn up(&self, reason: &str) {
        self.add(reason, 1);
    }

    /// Counts so many more.
    pub fn add(&self, reason: &str, amount: u64) {
        let at = self.names.iter().position(|name| *name == reason).unwrap_or(self.names.len());
        if let Some(count) = self.counts.get(at) {
            count.add(amount);
        }
    }

    /// Every reason with its number; [`OTHER`] is the last.
    pub fn get(&self) -> Vec<(&'static str, u64)> {
        self.names.iter().copied().chain([OTHER]).zip(self.counts.iter().map(Counter::get)).collect()
    }
}

/// Upper bounds for what should take milliseconds: 100 µs to 10 s.
pub const SHORT: &[Duration] = &[
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(10),
];

/// Upper bounds for what may take milliseconds or hours: 5 ms to 1 h.
pub const LONG: &[Duration] = &[
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1_800),
    Duration::from_secs(3_600),
];

/// How long things took, counted in buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [Duration],
    buckets: Box<[Counter]>,
    nanos: Counter,
}

impl Histogram {
    /// Counts in buckets up to and with each of `bounds`, which ascend, and one for what took longer.
    pub fn new(bounds: &'static [Duration]) -> Self {
        Self { bounds, buckets: (0..=bounds.len()).map(|_| Counter::default()).collect(), nanos: Counter::default() }
    }

    /// Something took so long.
    pub fn observe(&self, took: Duration) {
        self.observe_many(took, 1);
    }

    /// So many things took so long each. Costs as much as one.
    pub fn observe_many(&self, took: Duration, count: u64) {
        let at = self.bounds.partition_point(|bound| *bound < took);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.add(count);
        }
        self.nanos.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).saturating_mul(count));
    }

    /// What was counted until now.
    pub fn get(&self) -> Distribution {
        Distribution {
            bounds: self.bounds,
            counts: self.buckets.iter().map(Counter::get).collect(),
            sum: Duration::from_nanos(self.nanos.get()),
        }
    }
}

/// What a [`Histogram`] had counted at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// The upper bounds of all buckets but the last, which has none.
    pub bounds: &'static [Duration],
    /// How many fell into each bucket, those of the buckets before not counted in.
    pub counts: Vec<u64>,
    /// How long all of them took together.
    pub sum: Duration,
}

impl Distribution {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The upper bound of the bucket in which this share of them, from 0 to 1, is reached. Nothing when there were none, or when it lies
    /// beyond the last bound.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share).ceil().max(1.0);
        let mut seen = 0;
        let mut reached = self.bounds.iter().zip(&self.counts).filter(|(_, count)| {
            seen += **count;
            seen as f64 >= wanted
        });
        reached.next().map(|(bound, _)| *bound)
    }
}

impl Serialize for Distribution {
    /// As `{count, sumSeconds, p50, p99}`, the quantiles in seconds, each the upper bound of its bucket or absent.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let seconds = |share| self.quantile(share).map(|bound| bound.as_secs_f64());
        let mut fields = serializer.serialize_struct("Distribution", 4)?;
        fields.serialize_field("count", &self.count())?;
        fields.serialize_field("sumSeconds", &self.sum.as_secs_f64())?;
        fields.serialize_field("p50", &seconds(0.5))?;
        fields.serialize_field("p99", &seconds(0.99))?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(SHORT);
        for took in [0, 100, 101, 1_000, 11_000_000] {
            histogram.observe(Duration::from_micros(took));
        }
        histogram.observe_many(Duration::from_millis(3), 5);
        let got = histogram.get();
        assert_eq!(got.counts, [2, 1, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(got.sum, Duration::from_micros(100 + 101 + 1_000 + 11_000_000 + 15_000));
        assert_eq!(got.quantile(0.5), Some(Duration::from_millis(5)));
        assert_eq!(got.quantile(0.99), None, "it took longer than the last bound");
        assert_eq!(Histogram::new(LONG).get().quantile(0.5), None);
    }

    #[test]
    fn a_reason_that_nobody_announced_is_counted_all_the_same() {
        let reasons = Reasons::new(&["a", "b"]);
        for reason in ["b", "c", "b", "d"] {
            reasons.up(reason);
        }
        assert_eq!(reasons.get(), [("a", 0), ("b", 2), (OTHER, 2)]);
    }
}
