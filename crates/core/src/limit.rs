//! Rates, by the generic cell rate algorithm (ITU-T I.371): one pure function for jobs, sockets and HTTP.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::{Timestamp, format_duration, parse_duration};
use crate::{Error, Result};

/// So many per so long, such as `10/s` or `100/5m`. The whole amount may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many, at least 1.
    pub amount: u32,
    /// Per how long.
    pub per: Duration,
}

impl FromStr for Rate {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid("rate.invalid", format!("expected a rate such as \"10/s\" or \"100/5m\", got {text:?}"));
        let (amount, per) = text.split_once('/').ok_or_else(wrong)?;
        let amount = amount.trim().parse().ok().filter(|amount| *amount > 0).ok_or_else(wrong)?;
        let per = per.trim();
        let per = if per.starts_with(|c: char| c.is_ascii_digit()) { per.to_owned() } else { format!("1{per}") };
        let per = parse_duration(&per).ok().filter(|per| !per.is_zero()).ok_or_else(wrong)?;
        Ok(Self { amount, per })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.amount, format_duration(self.per))
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The state of one limited key: the theoretical arrival time of the next cell. All zero means never used.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateState(Timestamp);

impl Rate {
    /// Takes one from `state` at `now`, or says when one will be there. A refusal takes nothing.
    ///
    /// A clock that steps back holds the key back for no longer than `per`, provided that `state` is kept after refusals too.
    pub fn take(self, state: &mut RateState, now: Timestamp) -> Result<(), Timestamp> {
        let spacing = self.per / self.amount;
        // Never later than this but for a clock that was set back; without the bound the key would wait until it has caught up.
        state.0 = state.0.min(now + self.per);
        let arrival = state.0.max(now);
        let earliest = arrival + spacing - self.per;
        if earliest > now {
            return Err(earliest);
        }
        state.0 = arrival + spacing;
        Ok(())
    }

    /// Takes one from `state` and says when it may be used: now, or in its turn after all that were reserved before.
    pub fn reserve(self, state: &mut RateState, now: Timestamp) -> Timestamp {
        let arrival = state.0.max(now);
        state.0 = arrival + self.per / self.amount;
        (state.0 - self.per).max(now)
    }
}

impl RateState {
    /// Whether it has recovered by `now`, so that forgetting it changes nothing.
    pub fn is_idle(self, now: Timestamp) -> bool {
        self.0 <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let rate: Rate = "10/s".parse().expect("rate");
        let mut state = RateState::default();
        let start = Timestamp::from_millis(1_000_000);
        assert_eq!((0..20).filter(|_| rate.take(&mut state, start).is_ok()).count(), 10);
        let next = rate.take(&mut state, start).expect_err("full");
        assert_eq!(next.since(start), Duration::from_millis(100));
        assert!(rate.take(&mut state, next).is_ok());
        assert!(rate.take(&mut state, next).is_err());
        assert_eq!((0..20).filter(|_| rate.take(&mut state, start + Duration::from_secs(60)).is_ok()).count(), 10);
    }

    #[test]
    fn a_clock_that_steps_back_holds_for_no_longer_than_the_period() {
        let rate: Rate = "10/s".parse().expect("rate");
        let mut state = RateState::default();
        let start = Timestamp::from_millis(100_000_000);
        assert_eq!((0..20).filter(|_| rate.take(&mut state, start).is_ok()).count(), 10);
        let back = start - Duration::from_secs(3600);
        let next = rate.take(&mut state, back).expect_err("as full as before");
        assert_eq!(next.since(back), Duration::from_millis(100));
        assert!(rate.take(&mut state, next).is_ok());
        assert_eq!((0..20).filter(|_| rate.take(&mut state, next + rate.per).is_ok()).count(), 10);
    }

    #[test]
    fn reservations_follow_each_other_at_the_rate() {
        let rate: Rate = "2/s".parse().expect("rate");
        let (mut state, now) = (RateState::default(), Timestamp::from_millis(1_000_000));
        let at: Vec<u64> = (0..5).map(|_| rate.reserve(&mut state, now).since(now).as_millis() as u64).collect();
        assert_eq!(at, [0, 0, 500, 1_000, 1_500]);
        assert!(!state.is_idle(now + Duration::from_secs(2)));
        assert!(state.is_idle(now + Duration::from_millis(2_500)));
    }

    #[test]
    fn rates_read_as_written() {
        for (text, shown) in [("10/s", "10/1s"), ("100/5m", "100/5m"), ("1/250ms", "1/250ms")] {
            assert_eq!(text.parse::<Rate>().expect(text).to_string(), shown);
        }
        for bad in ["", "10", "0/s", "x/s", "10/0s", "10/fortnight"] {
            assert_eq!(bad.parse::<Rate>().expect_err(bad).code(), "rate.invalid");
        }
    }
}
