//! How long it takes from a commit until its events are written to a client.
//!
//! The clock is read once per turn of the store that has events for somebody here, and once per write to a transport. In between the
//! time travels with the frame, in four bytes that its padding had free.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use tidewire_core::measure::{Histogram, SHORT};

/// When the store told of a commit: microseconds since the gateway began, of which 32 bits are kept. So differences hold up to 71 minutes;
/// a client that takes nothing for that long was closed long before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp(Option<NonZeroU32>);

impl Stamp {
    /// Of what is not measured: answers, and what is read from the log.
    pub(crate) const NONE: Self = Self(None);

    fn new(since_begin: Duration) -> Self {
        // The lower bits are meant. A microsecond more or less makes no difference, and so 0 is free for "none".
        Self(Some(NonZeroU32::new(since_begin.as_micros() as u32).unwrap_or(NonZeroU32::MIN)))
    }

    fn since(self, earlier: NonZeroU32) -> Option<Duration> {
        self.0.map(|now| Duration::from_micros(now.get().wrapping_sub(earlier.get()).into()))
    }
}

/// The clock of a gateway, and what it measured.
#[derive(Debug)]
pub(crate) struct Latency {
    begun: Instant,
    pub(crate) histogram: Histogram,
}

impl Default for Latency {
    fn default() -> Self {
        Self { begun: Instant::now(), histogram: Histogram::new(SHORT) }
    }
}

impl Latency {
    pub(crate) fn now(&self) -> Stamp {
        Stamp::new(self.begun.elapsed())
    }

    /// Begins to count frames that have been written together.
    pub(crate) fn written(&self) -> Written<'_> {
        Written { latency: self, now: Stamp::NONE, run: None }
    }
}

/// Frames that have been written together. Counted when it is dropped.
pub(crate) struct Written<'a> {
    latency: &'a Latency,
    /// Read when the first frame needs it.
    now: Stamp,
    /// Frames of the same turn of the store, which are counted at once.
    run: Option<(NonZeroU32, u64)>,
}

impl Written<'_> {
    pub(crate) fn add(&mut self, stamp: Stamp) {
        let Some(stamp) = stamp.0 else { return };
        match &mut self.run {
            Some((of, count)) if *of == stamp => *count += 1,
            Some(_) | None => {
                self.count();
                self.run = Some((stamp, 1));
            }
        }
    }

    fn count(&mut self) {
        let Some((stamp, count)) = self.run.take() else { return };
        if self.now == Stamp::NONE {
            self.now = self.latency.now();
        }
        if let Some(took) = self.now.since(stamp) {
            self.latency.histogram.observe_many(took, count);
        }
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_over_the_end_of_its_bits() {
        let end = Duration::from_micros(u64::from(u32::MAX) - 10);
        let stamp = Stamp::new(end).0.expect("a stamp");
        let later = Stamp::new(end + Duration::from_micros(500));
        assert_eq!(later.since(stamp), Some(Duration::from_micros(500)));
        assert_ne!(Stamp::new(Duration::ZERO), Stamp::NONE);
    }

    #[test]
    fn what_is_written_together_is_counted_apart_and_what_has_no_stamp_is_not() {
        let latency = Latency::default();
        let mut written = latency.written();
        let stamps =
            [Stamp::NONE, Stamp::new(Duration::from_micros(1)), Stamp::new(Duration::from_micros(1)), latency.now()];
        stamps.into_iter().for_each(|stamp| written.add(stamp));
        drop(written);
        assert_eq!(latency.histogram.get().count(), 3);
    }
}
