//! Which slots are due, and whether each runs. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tidewire_core::Timestamp;
use tidewire_core::schedule::Missed;

/// A slot that is found later than this was missed, and the schedule's policy decides about it.
const GRACE: Duration = Duration::from_secs(10);

/// The most missed slots that `missed = "all"` makes up for at once; older ones are passed over. Also the most slots of one plan that
/// are on time; the rest comes with the next plan.
const MISSED_AT_ONCE: usize = 1_000;

/// How far a schedule has got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// The last slot that fired or was passed over.
    pub(super) last: Timestamp,
    /// A slot that was on time and waits for the job before it.
    pub(super) waiting: Option<Timestamp>,
}

/// The due slots, and whether each runs: those on time always do, the policy decides about the rest. `next` answers the first slot
/// after a time.
pub(super) fn plan(
    next: impl Fn(Timestamp) -> Option<Timestamp>,
    missed: Missed,
    progress: Progress,
    now: Timestamp,
) -> Vec<(Timestamp, bool)> {
    let on_time = |slot: Timestamp| now.since(slot) <= GRACE || progress.waiting.is_some_and(|waiting| slot >= waiting);
    let wanted = match missed {
        Missed::All => MISSED_AT_ONCE,
        Missed::Last | Missed::Skip => 1,
    };
    let mut late: VecDeque<Timestamp> = VecDeque::new();
    let mut due = Vec::new();
    let mut at = if progress.waiting.is_some() { progress.last } else { look_back(&next, wanted, progress.last, now) };
    while let Some(slot) = next(at).filter(|slot| *slot <= now && due.len() < MISSED_AT_ONCE) {
        at = slot;
        if on_time(slot) {
            due.push((slot, true));
        } else {
            late.push_back(slot);
            if late.len() > wanted {
                late.pop_front();
            }
        }
    }
    late.into_iter().map(|slot| (slot, missed != Missed::Skip)).chain(due).collect()
}

/// A time after which at least `wanted` slots were missed, or `last`: what lies before it does not matter, and is not counted through
/// however long nothing ran.
fn look_back(
    next: impl Fn(Timestamp) -> Option<Timestamp>,
    wanted: usize,
    last: Timestamp,
    now: Timestamp,
) -> Timestamp {
    let mut back = GRACE * 2;
    loop {
        let from = now - back;
        if from <= last {
            return last;
        }
        let slots = std::iter::successors(next(from), |slot| next(*slot));
        if slots.take_while(|slot| now.since(*slot) > GRACE && *slot <= now).take(wanted).count() == wanted {
            return from;
        }
        back = back.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use tidewire_core::schedule::Timing;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect(text)
    }

    fn planned(timing: &Timing, missed: Missed, progress: Progress, now: &str) -> Vec<(String, bool)> {
        plan(|after| timing.next_after(after), missed, progress, at(now))
            .into_iter()
            .map(|(slot, runs)| (slot.to_string(), runs))
            .collect()
    }

    fn slots(missed: Missed, last: &str, now: &str) -> Vec<(String, bool)> {
        let timing = Timing::cron("0 * * * *", "UTC").expect("cron");
        planned(&timing, missed, Progress { last: at(last), waiting: None }, now)
    }

    #[test]
    fn a_slot_on_time_runs_whatever_the_policy() {
        for missed in [Missed::Skip, Missed::Last, Missed::All] {
            let due = slots(missed, "2026-01-01T00:00:00Z", "2026-01-01T01:00:00.002Z");
            assert_eq!(due, [("2026-01-01T01:00:00Z".to_owned(), true)]);
        }
    }

    #[test]
    fn missed_slots_follow_the_policy() {
        let (since, now) = ("2026-01-01T00:00:00Z", "2026-01-01T03:30:00Z");
        assert_eq!(slots(Missed::Skip, since, now), [("2026-01-01T03:00:00Z".to_owned(), false)]);
        assert_eq!(slots(Missed::Last, since, now), [("2026-01-01T03:00:00Z".to_owned(), true)]);
        assert_eq!(slots(Missed::All, since, now).len(), 3);
    }

    #[test]
    fn a_short_stall_loses_no_slot() {
        let every_second = Timing::every(Duration::from_secs(1)).expect("every");
        let progress = Progress { last: at("2026-01-01T00:00:00Z"), waiting: None };
        for missed in [Missed::Skip, Missed::Last, Missed::All] {
            let due = planned(&every_second, missed, progress, "2026-01-01T00:00:04Z");
            assert_eq!(due.iter().filter(|(_, runs)| *runs).count(), 4);
        }
    }

    #[test]
    fn a_slot_that_waits_for_the_job_before_it_is_not_missed() {
        let timing = Timing::cron("0 * * * *", "UTC").expect("cron");
        let slot = at("2026-01-01T01:00:00Z");
        let progress = Progress { last: at("2026-01-01T00:00:00Z"), waiting: Some(slot) };
        let due = planned(&timing, Missed::Skip, progress, "2026-01-01T01:30:00Z");
        assert_eq!(due, [(slot.to_string(), true)]);
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        assert!(slots(Missed::All, "2026-01-01T00:00:00Z", "2026-01-01T00:59:59Z").is_empty());
    }

    #[test]
    fn making_up_is_bounded() {
        assert_eq!(slots(Missed::All, "2020-01-01T00:00:00Z", "2026-01-01T00:30:00Z").len(), MISSED_AT_ONCE);
    }

    #[test]
    fn a_long_pause_is_not_counted_through() {
        let timing = Timing::every(Duration::from_secs(1)).expect("every");
        let asked = std::cell::Cell::new(0);
        let next = |after| {
            asked.set(asked.get() + 1);
            timing.next_after(after)
        };
        let progress = Progress { last: at("2016-01-01T00:00:00Z"), waiting: None };
        let now = at("2026-01-01T00:00:00Z");
        let due = plan(next, Missed::Last, progress, now);
        assert_eq!(due.first(), Some(&(at("2025-12-31T23:59:49Z"), true)), "the last one that was missed");
        assert_eq!(due.len(), 12, "and those of the last ten seconds");
        assert!(asked.get() < 100, "{} slots were looked at", asked.get());
    }
}
