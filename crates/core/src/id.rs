//! Identifiers of events and jobs, and where new ones come from.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::time::Clock;
use crate::{Error, Result};

/// The id of an event or a job: a UUIDv7 of ours, or the caller's own text of 1 to 128 printable ASCII characters.
///
/// Unique per tenant and kind. Giving an id makes a write idempotent: the second write with the same id changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// A UUID, whoever made it.
    Uuid(Uuid),
    /// Any other text.
    Text(Arc<str>),
}

impl Id {
    /// The longest id in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Reads an id. Code `id.invalid` when it is empty, too long or not printable ASCII, and for `.` and `..`, which no path can name.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() == 36
            && let Ok(uuid) = Uuid::try_parse(text)
            && uuid.to_string() == text
        {
            return Ok(Self::Uuid(uuid));
        }
        let is_printable = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if !is_printable || text.len() > Self::MAX_BYTES || [".", ".."].contains(&text) {
            return Err(Error::invalid(
                "id.invalid",
                "id: expected 1 to 128 printable ASCII characters without spaces, and not . or ..".to_owned(),
            ));
        }
        Ok(Self::Text(text.into()))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Uuid(uuid) => serializer.serialize_str(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer())),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(|error| serde::de::Error::custom(error.detail()))
    }
}

/// Where ids and randomness come from. One per process, so that tests and simulation can fix it.
pub trait Ids: Send + Sync {
    /// A new id, greater than every id this source gave before.
    fn next(&self) -> Id;
    /// 64 random bits. Not for secrets.
    fn random(&self) -> u64;
}

/// UUIDv7 (RFC 9562 section 6.2, method 2): milliseconds, a 42-bit counter that restarts at a random value, 32 random bits.
pub struct UuidV7 {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    millis: u64,
    counter: u64,
    random: u64,
}

impl UuidV7 {
    /// Ids by `clock`, with randomness drawn from `seed` (from the operating system in production, fixed in tests).
    pub fn new(clock: Arc<dyn Clock>, seed: u64) -> Self {
        Self { clock, state: Mutex::new(State { millis: 0, counter: 0, random: seed }) }
    }

    /// Ids by `clock`, seeded by the operating system.
    #[allow(clippy::disallowed_methods, reason = "the one place where randomness comes in")]
    pub fn from_os(clock: Arc<dyn Clock>) -> Self {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        Self::new(clock, high ^ low.rotate_left(32))
    }
}

/// `SplitMix64` (Steele, Lea, Flood 2014): small, fast, and good enough for what is not secret.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Ids for UuidV7 {
    fn next(&self) -> Id {
        let now = u64::try_from(self.clock.now().as_millis()).unwrap_or(0);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now > state.millis {
            state.millis = now;
            state.counter = split_mix(&mut state.random) >> 23;
        } else {
            state.counter += 1;
        }
        let (millis, counter, random) = (state.millis, state.counter, split_mix(&mut state.random));
        drop(state);
        let high = (millis << 16) | 0x7000 | ((counter >> 30) & 0x0FFF);
        let low = (0b10 << 62) | ((counter & 0x3FFF_FFFF) << 32) | (random & 0xFFFF_FFFF);
        Id::Uuid(Uuid::from_u64_pair(high, low))
    }

    fn random(&self) -> u64 {
        split_mix(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{ManualClock, Timestamp};

    #[test]
    fn ids_grow_within_a_millisecond_and_when_the_clock_steps_back() {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
        let ids = UuidV7::new(clock.clone(), 7);
        let mut last = ids.next();
        for step in 0..10_000 {
            if step == 5_000 {
                clock.set(Timestamp::from_millis(1_600_000_000_000));
            }
            let next = ids.next();
            assert!(next > last);
            last = next;
        }
        let Id::Uuid(uuid) = last else { panic!("a uuid") };
        assert_eq!(uuid.get_version_num(), 7);
    }

    #[test]
    fn an_id_is_printable_ascii_and_round_trips() {
        for good in ["a", "order:42", "01890a5d-ac96-774b-bcce-b302099a8057", "01890A5D-AC96-774B-BCCE-B302099A8057"] {
            assert_eq!(Id::parse(good).expect("good").to_string(), good);
        }
        for bad in ["", "a b", "é", ".", "..", &"x".repeat(129)] {
            assert_eq!(Id::parse(bad).expect_err("bad").code(), "id.invalid");
        }
    }
}
