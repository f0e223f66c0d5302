//! How long a failed job waits before its next attempt. Pure: the attempt and the randomness come in, the delay goes out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::{duration_or_millis, duration_text, format_duration};
use crate::{Error, Result};

/// The longest list of delays.
pub const MAX_DELAYS: usize = 100;

/// The waiting times between the attempts of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Backoff {
    /// The same every time.
    Fixed {
        /// The delay.
        #[serde(with = "duration_or_millis")]
        base: Duration,
        /// What is added or taken off at random.
        #[serde(default)]
        jitter: Jitter,
    },
    /// `base · factor^(attempt-1)`, at most `cap`.
    Exponential {
        /// The delay after the first attempt.
        #[serde(with = "duration_or_millis")]
        base: Duration,
        /// What each further delay is multiplied by.
        #[serde(default = "two")]
        factor: f64,
        /// The longest delay.
        #[serde(with = "duration_or_millis", default = "five_minutes")]
        cap: Duration,
        /// What is added or taken off at random.
        #[serde(default)]
        jitter: Jitter,
    },
    /// These, one after the other; the last one repeats.
    Delays {
        /// At least one delay.
        #[serde(with = "delay_list")]
        delays: Vec<Duration>,
    },
}

/// Randomness in a delay, so that jobs that failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "jitter: expected a share from 0 to 1, or a duration such as \"1s\"")]
pub enum Jitter {
    /// Up to this share of the delay (0 to 1) is taken off.
    Share(f64),
    /// Up to this much is added, before the cap.
    Added(#[serde(with = "duration_text")] Duration),
}

impl Default for Jitter {
    fn default() -> Self {
        Self::Share(0.0)
    }
}

fn two() -> f64 {
    2.0
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

impl Default for Backoff {
    fn default() -> Self {
        Self::Exponential {
            base: Duration::from_secs(1),
            factor: two(),
            cap: five_minutes(),
            jitter: Jitter::default(),
        }
    }
}

impl Backoff {
    /// The delay after attempt number `attempt` (1 is the first) failed. `random` is 64 uniformly random bits.
    pub fn delay(&self, attempt: u16, random: u64) -> Duration {
        // 53 bits make a uniform number in [0, 1) without rounding.
        let unit = (random >> 11) as f64 / (1_u64 << 53) as f64;
        match self {
            Self::Fixed { base, jitter } => jitter.apply(base.as_secs_f64(), unit, f64::MAX),
            Self::Exponential { base, factor, cap, jitter } => {
                let exponent = i32::from(attempt.saturating_sub(1));
                jitter.apply(base.as_secs_f64() * factor.powi(exponent), unit, cap.as_secs_f64())
            }
            Self::Delays { delays } => {
                let index = usize::from(attempt.saturating_sub(1)).min(delays.len().saturating_sub(1));
                delays.get(index).copied().unwrap_or_default()
            }
        }
    }

    /// Refuses numbers that make no sense: no delay at all in a list, a factor below 1, a share outside 0 to 1.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::invalid("backoff.invalid", what));
        match self {
            Self::Delays { delays } if !(1..=MAX_DELAYS).contains(&delays.len()) => {
                wrong(format!("delays: expected 1 to {MAX_DELAYS}, got {}", delays.len()))
            }
            Self::Exponential { factor, .. } if !(1.0..=1000.0).contains(factor) => {
                wrong(format!("factor: expected a number from 1 to 1000, got {factor}"))
            }
            Self::Fixed { jitter: Jitter::Share(share), .. }
            | Self::Exponential { jitter: Jitter::Share(share), .. }
                if !(0.0..=1.0).contains(share) =>
            {
                wrong(format!("jitter: expected a share from 0 to 1 or a duration, got {share}"))
            }
            Self::Delays { .. } | Self::Exponential { .. } | Self::Fixed { .. } => Ok(()),
        }
    }
}

impl Jitter {
    fn apply(self, seconds: f64, unit: f64, cap: f64) -> Duration {
        let ten_years = 315_360_000.0_f64;
        let seconds = match self {
            Self::Share(share) => seconds.min(cap) * share.mul_add(-unit, 1.0),
            Self::Added(most) => most.as_secs_f64().mul_add(unit, seconds).min(cap),
        };
        Duration::from_secs_f64(seconds.clamp(0.0, ten_years))
    }
}

mod delay_list {
    use super::{Duration, duration_or_millis, format_duration};
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Asked(#[serde(with = "duration_or_millis")] Duration);

    pub(super) fn serialize<S: Serializer>(delays: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(delays.iter().map(|delay| format_duration(*delay)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
        Ok(Vec::<Asked>::deserialize(deserializer)?.into_iter().map(|asked| asked.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_do_as_well_as_text() {
        let same = |text, number| assert_eq!(backoff(text), backoff(number));
        same(r#"{"kind":"fixed","base":"1s"}"#, r#"{"kind":"fixed","base":1000}"#);
        same(r#"{"kind":"exponential","base":"1s","cap":"1m"}"#, r#"{"kind":"exponential","base":1000,"cap":60000}"#);
        same(r#"{"kind":"delays","delays":["0s","1s"]}"#, r#"{"kind":"delays","delays":[0,1000]}"#);
        for wrong in ["-1", "1.5", "null", "315360000001"] {
            let fixed = format!(r#"{{"kind":"fixed","base":{wrong}}}"#);
            assert!(serde_json::from_str::<Backoff>(&fixed).is_err(), "{wrong}");
        }
    }

    fn backoff(json: &str) -> Backoff {
        serde_json::from_str(json).expect(json)
    }

    fn millis(backoff: &Backoff, random: u64) -> Vec<u128> {
        (1..=4).map(|attempt| backoff.delay(attempt, random).as_millis()).collect()
    }

    #[test]
    fn the_delays_of_the_five_systems() {
        // Port Nimara: 1 s, 10 s, 100 s.
        let nimara = backoff(r#"{"kind":"exponential","base":"1s","factor":10,"cap":"5m"}"#);
        assert_eq!(millis(&nimara, 0), [1_000, 10_000, 100_000, 300_000]);
        // AI CRM: min(2^attempt · 1000 + random 0..1000, 300000) ms.
        let crm = backoff(r#"{"kind":"exponential","base":"2s","factor":2,"cap":"5m","jitter":"1s"}"#);
        assert_eq!(millis(&crm, 0), [2_000, 4_000, 8_000, 16_000]);
        assert_eq!(crm.delay(1, u64::MAX).as_secs_f64().ceil(), 3.0);
        assert_eq!(crm.delay(30, u64::MAX), Duration::from_secs(300));
        // Angel investing: exponential 2 s and 5 s, fixed 5 s.
        assert_eq!(millis(&backoff(r#"{"kind":"exponential","base":"2s"}"#), 0)[..3], [2_000, 4_000, 8_000]);
        assert_eq!(millis(&backoff(r#"{"kind":"fixed","base":"5s"}"#), 0), [5_000; 4]);
        // Travel: 5 s, 10 s, 20 s.
        assert_eq!(millis(&backoff(r#"{"kind":"exponential","base":"5s"}"#), 0)[..3], [5_000, 10_000, 20_000]);
        let list = backoff(r#"{"kind":"delays","delays":["1s","10s"]}"#);
        assert_eq!(millis(&list, 0), [1_000, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn a_share_of_jitter_only_takes_off() {
        let backoff = backoff(r#"{"kind":"fixed","base":"10s","jitter":0.5}"#);
        assert_eq!(backoff.delay(1, 0), Duration::from_secs(10));
        let least = backoff.delay(1, u64::MAX);
        assert!(least >= Duration::from_secs(5) && least < Duration::from_millis(5_001), "{least:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        for json in [
            r#"{"kind":"delays","delays":[]}"#,
            r#"{"kind":"exponential","base":"1s","factor":0.5}"#,
            r#"{"kind":"fixed","base":"1s","jitter":2}"#,
        ] {
            assert_eq!(backoff(json).validate().expect_err(json).code(), "backoff.invalid");
        }
    }
}
