//! How busy the queues are: what ended and how long jobs waited in the last minutes, in memory.

use std::collections::HashMap;
use std::time::Duration;

use tidewire_core::Timestamp;
use tidewire_core::job::State;
use tidewire_core::store::QueuePace;

use crate::rows::NameId;

/// How many minutes are remembered, the present one included.
const MINUTES: usize = 5;

const MINUTE_MICROS: i64 = 60_000_000;

/// How many waits are told apart: four for each doubling, from a microsecond to an hour.
const WAITS: usize = 128;

/// By queue. Each takes about 3 KB, and there are as many as queues had work since the start.
#[derive(Default)]
pub(crate) struct Paces {
    queues: HashMap<NameId, [Minute; MINUTES]>,
    /// When the first job was seen.
    since: Option<Timestamp>,
}

/// What happened in one minute.
#[derive(Clone, Copy)]
struct Minute {
    /// Which minute, counted since 1970.
    number: i64,
    completed: u64,
    failed: u64,
    waits: [u32; WAITS],
}

impl Default for Minute {
    fn default() -> Self {
        Self { number: i64::MIN, completed: 0, failed: 0, waits: [0; WAITS] }
    }
}

impl Paces {
    /// A run began so long after its job was due.
    pub(crate) fn began(&mut self, queue: NameId, wait: Duration, now: Timestamp) {
        let waits = &mut self.minute(queue, now).waits;
        let slot = &mut waits[place(wait)];
        *slot = slot.saturating_add(1);
    }

    /// A job reached this state.
    pub(crate) fn ended(&mut self, queue: NameId, state: State, now: Timestamp) {
        let minute = self.minute(queue, now);
        match state {
            State::Completed => minute.completed += 1,
            State::Failed | State::Dead => minute.failed += 1,
            State::Scheduled | State::Pending | State::Processing | State::Blocked | State::Cancelled => {}
        }
    }

    fn minute(&mut self, queue: NameId, now: Timestamp) -> &mut Minute {
        self.since.get_or_insert(now);
        let number = now.as_micros().div_euclid(MINUTE_MICROS);
        let minutes = self.queues.entry(queue).or_default();
        let minute = &mut minutes[number.rem_euclid(MINUTES as i64) as usize];
        if minute.number != number {
            *minute = Minute { number, ..Minute::default() };
        }
        minute
    }

    /// The pace of a queue; all zero when nothing happened in it.
    pub(crate) fn of(&self, queue: NameId, now: Timestamp) -> QueuePace {
        let number = now.as_micros().div_euclid(MINUTE_MICROS);
        let first = number - (MINUTES as i64 - 1);
        let recent = self.queues.get(&queue).into_iter().flatten();
        let mut all = Minute::default();
        for minute in recent.filter(|minute| (first..=number).contains(&minute.number)) {
            all.completed += minute.completed;
            all.failed += minute.failed;
            all.waits.iter_mut().zip(minute.waits).for_each(|(all, one)| *all = all.saturating_add(one));
        }
        // Less than a minute after the start a rate would be a guess.
        let begin = Timestamp::from_micros(first.saturating_mul(MINUTE_MICROS));
        let begin = self.since.map_or(now, |since| since.max(begin));
        let minutes = (now.since(begin).as_secs_f64() / 60.0).max(1.0);
        QueuePace {
            completed_per_minute: all.completed as f64 / minutes,
            failed_per_minute: all.failed as f64 / minutes,
            wait_p50: quantile(&all.waits, 50),
            wait_p99: quantile(&all.waits, 99),
        }
    }
}

/// Where a wait is counted.
fn place(wait: Duration) -> usize {
    let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX).max(1);
    let doublings = micros.ilog2();
    // The two bits behind the first one.
    let quarter = if doublings >= 2 { (micros >> (doublings - 2)) & 3 } else { (micros << (2 - doublings)) & 3 };
    (doublings as usize * 4 + quarter as usize).min(WAITS - 1)
}

/// The longest wait that is counted at a place.
fn longest(place: usize) -> Duration {
    let (doublings, quarter) = (place / 4, place as u64 % 4);
    Duration::from_micros((((5 + quarter) << doublings) / 4).max(1))
}

fn quantile(waits: &[u32; WAITS], percent: u64) -> Option<Duration> {
    let total: u64 = waits.iter().copied().map(u64::from).sum();
    let wanted = (total * percent).div_ceil(100);
    let mut seen = 0;
    let reaches = |count: &u32| {
        seen += u64::from(*count);
        seen >= wanted
    };
    (total > 0).then(|| waits.iter().position(reaches).map(longest)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_750_000_020_000);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_wait_is_told_to_a_quarter() {
        for micros in [1_u64, 2, 3, 5, 7, 100, 999, 1_000, 12_345, 1_000_000, 59_000_000, 3_600_000_000] {
            let told = longest(place(Duration::from_micros(micros))).as_micros() as u64;
            assert!(told >= micros && told <= micros + micros / 4 + 1, "{micros} is told as {told}");
        }
        assert_eq!(place(Duration::from_secs(86_400)), WAITS - 1, "longer ones count as the longest");
    }

    #[test]
    fn quantiles_and_rates_are_of_the_last_minutes() {
        let mut paces = Paces::default();
        assert_eq!(paces.of(1, NOW), QueuePace::default());
        for number in 1..=100 {
            paces.began(1, Duration::from_millis(number), NOW);
            paces.ended(1, if number % 4 == 0 { State::Dead } else { State::Completed }, NOW);
            paces.ended(1, State::Cancelled, NOW);
        }
        let young = paces.of(1, NOW + Duration::from_secs(10));
        assert_eq!((young.completed_per_minute, young.failed_per_minute), (75.0, 25.0));
        let (p50, p99) = (young.wait_p50.expect("waits"), young.wait_p99.expect("waits"));
        assert!((50..=63).contains(&p50.as_millis()) && (99..=125).contains(&p99.as_millis()), "{p50:?} {p99:?}");
        let older = paces.of(1, NOW + MINUTE * 3);
        assert_eq!((older.completed_per_minute, older.wait_p50), (25.0, Some(p50)));
        assert_eq!(paces.of(2, NOW), QueuePace::default(), "another queue's are its own");
        assert_eq!(paces.of(1, NOW + MINUTE * 5), QueuePace::default(), "what is old is forgotten");
        paces.ended(1, State::Completed, NOW + MINUTE * 5);
        assert!(paces.of(1, NOW + MINUTE * 5).completed_per_minute < 1.0, "its place is taken by another minute");
    }
}
