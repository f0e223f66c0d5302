//! The rates of keys: a bounded memory of those that were used lately.

use std::collections::HashMap;

use tidewire_core::Timestamp;
use tidewire_core::limit::{Rate, RateState};

use crate::rows::NameId;

/// How many keys are remembered. At that number those that are free again are forgotten, and all if too many are left.
const MOST: usize = 65_536;

/// By queue, tenant and key.
#[derive(Default)]
pub(crate) struct KeyRates(HashMap<(NameId, NameId, Box<str>), RateState>);

impl KeyRates {
    /// Reserves the next start of a key. Answers when it is: now, or in its turn.
    pub(crate) fn reserve(&mut self, of: (NameId, NameId, &str), rate: Rate, now: Timestamp) -> Timestamp {
        if self.0.len() >= MOST {
            self.0.retain(|_, state| !state.is_idle(now));
            if self.0.len() > MOST / 2 {
                // Looking through them for every job would cost more than that these rates begin anew.
                self.0.clear();
            }
        }
        let (queue, tenant, key) = of;
        rate.reserve(self.0.entry((queue, tenant, key.into())).or_default(), now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn rate() -> Rate {
        Rate { amount: 1, per: Duration::from_secs(60) }
    }

    #[test]
    fn a_key_is_paced_while_others_come() {
        let mut rates = KeyRates::default();
        assert_eq!(rates.reserve((1, 1, "k"), rate(), NOW), NOW);
        for number in 0..1_000 {
            assert_eq!(rates.reserve((1, 1, &number.to_string()), rate(), NOW), NOW);
        }
        assert_eq!(rates.reserve((1, 1, "k"), rate(), NOW), NOW + rate().per);
        assert_eq!(rates.reserve((1, 2, "k"), rate(), NOW), NOW, "another tenant's");
        assert_eq!(rates.reserve((2, 1, "k"), rate(), NOW), NOW, "of another queue");
    }

    #[test]
    fn however_many_keys_are_used_at_once_their_memory_is_bounded() {
        let mut rates = KeyRates::default();
        for number in 0..3 * MOST {
            rates.reserve((1, 1, &number.to_string()), rate(), NOW);
            assert!(rates.0.len() <= MOST, "{} are remembered", rates.0.len());
        }
    }

    #[test]
    fn keys_that_are_free_again_make_room_for_those_that_are_not() {
        let mut rates = KeyRates::default();
        let later = NOW + rate().per;
        for number in 0..MOST - 1 {
            rates.reserve((1, 1, &number.to_string()), rate(), NOW);
        }
        rates.reserve((1, 1, "k"), rate(), later);
        rates.reserve((1, 1, "another"), rate(), later);
        assert_eq!(rates.0.len(), 2);
        assert_eq!(rates.reserve((1, 1, "k"), rate(), later), later + rate().per);
    }
}
