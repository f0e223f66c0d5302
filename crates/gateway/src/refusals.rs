//! Refused credentials by address. Checking one costs a signature or a question to the app, so whoever has shown too many bad ones waits
//! before the next one is looked at.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;
use tidewire_core::Timestamp;
use tidewire_core::limit::{Rate, RateState};

use crate::visitors::place;

/// The most addresses that are remembered. Those that come on top are not limited until others have had their pause.
const MOST: usize = 100_000;

/// What is left of the rate of each address that showed a bad credential lately.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<HashMap<IpAddr, RateState>>);

impl Refusals {
    /// Whether a credential from this address is looked at; else when the next one is. Where a client is unknown it is.
    pub(crate) fn admit(&self, address: Option<IpAddr>, rate: Rate, now: Timestamp) -> Result<(), Timestamp> {
        let known = address.and_then(|address| self.0.lock().get(&place(address)).copied());
        known.map_or(Ok(()), |mut state| rate.take(&mut state, now))
    }

    /// One was refused.
    pub(crate) fn count(&self, address: Option<IpAddr>, rate: Rate, now: Timestamp) {
        let Some(place) = address.map(place) else { return };
        let mut places = self.0.lock();
        if places.len() < MOST || places.contains_key(&place) {
            // Those that were being checked at once may be more than the rate has left.
            let _ = rate.take(places.entry(place).or_default(), now);
        }
    }

    /// Forgets addresses that have had their pause.
    pub(crate) fn tidy(&self, now: Timestamp) {
        let mut places = self.0.lock();
        places.retain(|_, state| !state.is_idle(now));
        places.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_address_waits_after_its_burst_and_others_do_not() {
        let (refusals, now) = (Refusals::default(), Timestamp::from_millis(1_000_000));
        let rate = Rate { amount: 3, per: Duration::from_secs(3) };
        let at = |text: &str| Some(text.parse::<IpAddr>().expect("an address"));
        for _ in 0..3 {
            assert!(refusals.admit(at("10.0.0.1"), rate, now).is_ok());
            refusals.count(at("10.0.0.1"), rate, now);
        }
        let until = refusals.admit(at("10.0.0.1"), rate, now).expect_err("over it");
        assert_eq!(until.since(now), Duration::from_secs(1));
        assert!(refusals.admit(at("10.0.0.2"), rate, now).is_ok() && refusals.admit(None, rate, now).is_ok());
        assert!(refusals.admit(at("10.0.0.1"), rate, until).is_ok());
        refusals.tidy(until);
        assert_eq!(refusals.0.lock().len(), 1, "it has not had all of its pause");
        refusals.tidy(now + rate.per);
        assert_eq!(refusals.0.lock().len(), 0);
    }

    #[test]
    fn no_more_addresses_are_remembered_than_there_is_room_for() {
        let (refusals, now) = (Refusals::default(), Timestamp::from_millis(1_000_000));
        let rate = Rate { amount: 1, per: Duration::from_secs(60) };
        for n in 0..=MOST {
            refusals.count(Some(IpAddr::V4(std::net::Ipv4Addr::from_bits(n as u32))), rate, now);
        }
        assert_eq!(refusals.0.lock().len(), MOST);
    }
}
