//! Time as a value: timestamps, durations as people write them, and the clock that everything asks.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// A moment in microseconds since 1970-01-01T00:00:00Z. Shown as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From milliseconds since the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis * 1000)
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// The time from `earlier` to this one, zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This moment in the terms of the time zone library. Out-of-range values are clamped.
    pub fn to_jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.0).unwrap_or(jiff::Timestamp::MAX)
    }

    /// From the time zone library, rounded down to a microsecond.
    pub fn from_jiff(timestamp: jiff::Timestamp) -> Self {
        Self(timestamp.as_microsecond())
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl std::ops::Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_jiff().fmt(f)
    }
}

impl FromStr for Timestamp {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        text.parse::<jiff::Timestamp>().map(Self::from_jiff).map_err(|error| {
            Error::invalid(
                "time.invalid",
                format!("expected an RFC 3339 time such as 2026-01-31T08:00:00Z, got {text:?}: {error}"),
            )
        })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The longest duration: longer than any job waits, short enough that adding it to a timestamp cannot overflow.
const TEN_YEARS_SECONDS: u64 = 315_360_000;

/// Reads a duration as configuration writes it: a number and one of `ms s m h d`, such as `250ms`, `30s` or `1.5h`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let wrong = || {
        Error::invalid(
            "duration.invalid",
            format!("expected a duration such as \"250ms\", \"30s\", \"5m\", \"24h\" or \"7d\", got {text:?}"),
        )
    };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit_seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let seconds = number * unit_seconds;
    if !(0.0..=TEN_YEARS_SECONDS as f64).contains(&seconds) {
        return Err(wrong());
    }
    Ok(Duration::from_micros((seconds * 1e6).round() as u64))
}

/// Writes a duration in the largest unit that keeps it whole, so that [`parse_duration`] reads it back.
pub fn format_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    for (unit, size) in [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000)] {
        if micros >= size && micros.is_multiple_of(size) {
            return format!("{}{unit}", micros / size);
        }
    }
    if micros.is_multiple_of(1000) {
        return format!("{}ms", micros / 1000);
    }
    format!("{}ms", micros as f64 / 1000.0)
}

/// Serde for durations in the written form.
pub mod duration_text {
    use super::{Deserialize, Deserializer, Duration, Serializer, format_duration, parse_duration};

    /// Writes `"30s"`.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*duration))
    }

    /// Reads `"30s"`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        parse_duration(&text).map_err(|error| serde::de::Error::custom(error.detail()))
    }
}

/// Serde for durations in requests: in the written form, or as a whole number of milliseconds.
pub mod duration_or_millis {
    use super::{Deserialize, Deserializer, Duration, TEN_YEARS_SECONDS, duration_text};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a duration of at most ten years such as \"60s\", or milliseconds")]
    enum Asked {
        Text(#[serde(with = "duration_text")] Duration),
        Millis(u64),
    }

    pub use super::duration_text::serialize;

    /// Reads `"30s"` or `30000`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        match Asked::deserialize(deserializer)? {
            Asked::Text(duration) => Ok(duration),
            Asked::Millis(millis) if millis <= TEN_YEARS_SECONDS * 1_000 => Ok(Duration::from_millis(millis)),
            Asked::Millis(_) => Err(serde::de::Error::custom("expected at most ten years")),
        }
    }
}

/// Serde for durations in requests that may be absent.
pub mod optional_duration_text {
    use super::{Deserialize, Deserializer, Duration, Serializer, duration_or_millis};

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Written(#[serde(with = "duration_or_millis")] Duration);

    /// Writes `"30s"` or null.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        serde::Serialize::serialize(&duration.map(Written), serializer)
    }

    /// Reads `"30s"`, `30000` or null.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Written>::deserialize(deserializer)?.map(|written| written.0))
    }
}

/// The one place that time comes from. Everything that decides by time takes it as an argument or asks this.
pub trait Clock: Send + Sync {
    /// The current time.
    fn now(&self) -> Timestamp;
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place where time comes in")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// A clock that moves only when told to, for tests and simulation.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Self {
        Self(AtomicI64::new(start.0))
    }

    /// Moves the clock to `now`, forwards or backwards.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::SeqCst);
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.set(self.now() + by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_as_written() {
        for text in ["0ms", "250ms", "1s", "90s", "5m", "36h", "2d", "1ms"] {
            let duration = parse_duration(text).expect(text);
            assert_eq!(parse_duration(&format_duration(duration)).expect("again"), duration);
        }
        for bad in ["", "5", "s", "-1s", "1w", "1 s", "99999d"] {
            assert_eq!(parse_duration(bad).expect_err(bad).code(), "duration.invalid");
        }
    }

    #[test]
    fn a_timestamp_is_rfc_3339_in_utc() {
        let time: Timestamp = "2026-03-29T01:30:00.25Z".parse().expect("time");
        assert_eq!(time.to_string(), "2026-03-29T01:30:00.25Z");
        assert_eq!(time.as_millis(), 1_774_747_800_250);
    }
}
