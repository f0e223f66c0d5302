//! The scheduler: sleeps until a slot is due and fires it. The store makes sure that a slot fires once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidewire_core::catalog::{Catalog, ScheduleSpec};
use tidewire_core::commit::{NewJob, Origin};
use tidewire_core::schedule::{Missed, Timing};
use tidewire_core::store::{Fire, Fired};
use tidewire_core::{Id, Result, TenantId, Timestamp};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::publisher::Publisher;

/// A slot that is found later than this was missed, and the schedule's policy decides about it.
const GRACE: Duration = Duration::from_secs(10);

/// The most missed slots that `missed = "all"` makes up for at once; older ones are passed over.
const MISSED_AT_ONCE: usize = 1_000;

/// After so many missed slots of one schedule the rest of the past is passed over.
const MOST_STEPS: usize = 100_000;

/// The longest sleep, so that a changed system clock is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// How long to wait before asking again for a slot whose predecessor is unfinished, or after the store refused.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The running scheduler.
pub struct Scheduler {
    stop: CancellationToken,
    task: TaskTracker,
}

impl Scheduler {
    /// Starts firing the catalog's app-wide schedules.
    pub fn start(publisher: Arc<Publisher>) -> Self {
        let stop = CancellationToken::new();
        let task = TaskTracker::new();
        let stopped = stop.clone();
        task.spawn(async move {
            tokio::select! {
                () = run(&publisher) => {}
                () = stopped.cancelled() => {}
            }
        });
        task.close();
        Self { stop, task }
    }

    /// Stops firing. Slots that pass meanwhile are missed slots for the next start.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.wait().await;
    }
}

async fn run(publisher: &Publisher) {
    let mut ticker = loop {
        match Ticker::load(publisher).await {
            Ok(ticker) => break ticker,
            Err(error) => {
                tracing::warn!(%error, "the scheduler cannot read its slots");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    };
    while !ticker.is_empty() {
        let longest = publisher.clock().now() + LONGEST_SLEEP;
        let next = ticker.tick(publisher).await.map_or(longest, |next| next.min(longest));
        tokio::time::sleep(next.since(publisher.clock().now()).max(Duration::from_millis(1))).await;
    }
}

/// The app-wide schedules and how far they have got. It fires when it is told to: by the running scheduler, or by a test.
pub struct Ticker {
    catalog: Arc<Catalog>,
    progress: BTreeMap<Arc<str>, Progress>,
}

impl Ticker {
    /// Reads how far the catalog's schedules have got.
    pub async fn load(publisher: &Publisher) -> Result<Self> {
        let app = TenantId::app();
        let slots = publisher.store().slots().await?;
        let own = slots.into_iter().filter(|((tenant, _), _)| *tenant == app);
        let progress = own.map(|((_, key), last)| (key, Progress { last, waiting: None })).collect();
        Ok(Self { catalog: publisher.expander().catalog().clone(), progress })
    }

    fn is_empty(&self) -> bool {
        self.catalog.schedules.values().all(|spec| spec.timing.is_none())
    }

    /// Fires what is due now. Answers when something may be due again.
    pub async fn tick(&mut self, publisher: &Publisher) -> Option<Timestamp> {
        let now = publisher.clock().now();
        let mut next: Option<Timestamp> = None;
        for spec in self.catalog.schedules.values() {
            let wake = match turn(publisher, spec, &mut self.progress, now).await {
                Ok(wake) => wake,
                Err(error) => {
                    tracing::warn!(schedule = %spec.name, %error, "a schedule could not fire");
                    Some(now + ASK_AGAIN)
                }
            };
            next = wake.into_iter().chain(next).min();
        }
        next
    }
}

/// How far a schedule has got.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// The last slot that fired or was passed over.
    last: Timestamp,
    /// A slot that was on time and waits for the job before it.
    waiting: Option<Timestamp>,
}

/// Fires what is due of one schedule. Answers when to look again.
async fn turn(
    publisher: &Publisher,
    spec: &ScheduleSpec,
    progress: &mut BTreeMap<Arc<str>, Progress>,
    now: Timestamp,
) -> Result<Option<Timestamp>> {
    let Some(timing) = &spec.timing else { return Ok(None) };
    let Some(so_far) = progress.get_mut(&spec.name) else {
        // Seen for the first time: it begins now, and a restart must not take this for missed slots.
        fire(publisher, spec, now, false).await?;
        progress.insert(spec.name.clone(), Progress { last: now, waiting: None });
        return Ok(timing.next_after(now));
    };
    for (slot, runs) in plan(timing, spec.missed, *so_far, now) {
        match fire(publisher, spec, slot, runs).await? {
            Fired::Waiting => {
                so_far.waiting = Some(slot);
                return Ok(Some(now + ASK_AGAIN));
            }
            Fired::Enqueued(job) => tracing::debug!(schedule = %spec.name, %slot, %job, "fired"),
            Fired::Overlapped => tracing::info!(schedule = %spec.name, %slot, "skipped: the job before is unfinished"),
            Fired::Stale | Fired::Skipped => {}
        }
        *so_far = Progress { last: slot, waiting: None };
    }
    Ok(timing.next_after(so_far.last))
}

/// The due slots, and whether each runs: those on time always do, the policy decides about the rest. Pure.
fn plan(timing: &Timing, missed: Missed, progress: Progress, now: Timestamp) -> Vec<(Timestamp, bool)> {
    let on_time = |slot: Timestamp| now.since(slot) <= GRACE || progress.waiting.is_some_and(|waiting| slot >= waiting);
    let mut late: VecDeque<Timestamp> = VecDeque::new();
    let mut due = Vec::new();
    let mut at = progress.last;
    let mut steps = 0;
    while let Some(slot) = timing.next_after(at).filter(|slot| *slot <= now) {
        at = slot;
        if on_time(slot) {
            due.push((slot, true));
            continue;
        }
        late.push_back(slot);
        if late.len() > MISSED_AT_ONCE {
            late.pop_front();
        }
        steps += 1;
        if steps == MOST_STEPS {
            // Off for so long that counting on would block the others; what lies between is passed over.
            at = at.max(now - GRACE);
        }
    }
    let missed: Vec<(Timestamp, bool)> = match missed {
        Missed::All => late.into_iter().map(|slot| (slot, true)).collect(),
        Missed::Last => late.back().map(|slot| (*slot, true)).into_iter().collect(),
        Missed::Skip => late.back().map(|slot| (*slot, false)).into_iter().collect(),
    };
    missed.into_iter().chain(due).collect()
}

async fn fire(publisher: &Publisher, spec: &ScheduleSpec, slot: Timestamp, runs: bool) -> Result<Fired> {
    let job = if runs {
        let name = format!("{}@{slot}", spec.name);
        let job = NewJob { id: Some(Id::parse(&name)?), ..NewJob::new(&*spec.job, spec.data.clone()) };
        let origin = Origin { cause: Some(name.into()), ..Origin::default() };
        Some(publisher.expander().job(job, &origin, publisher.clock().now())?)
    } else {
        None
    };
    let fire = Fire { tenant: TenantId::app(), key: spec.name.clone(), slot, overlap: spec.overlap, job };
    publisher.store().fire(fire).await
}

/// A schedule as listings show it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NextSlots {
    /// Its name.
    pub key: Arc<str>,
    /// The job type that each slot enqueues.
    pub job: Arc<str>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
    /// One line for people.
    pub description: String,
    /// The next due times.
    pub next: Vec<Timestamp>,
}

/// A schedule with its next `count` due times after `now`.
pub fn next_slots(spec: &ScheduleSpec, now: Timestamp, count: usize) -> NextSlots {
    let step = |at: &Timestamp| spec.timing.as_ref().and_then(|timing| timing.next_after(*at));
    NextSlots {
        key: spec.name.clone(),
        job: spec.job.clone(),
        timing: spec.timing.clone(),
        description: spec.description.clone(),
        next: std::iter::successors(step(&now), step).take(count).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect(text)
    }

    fn planned(timing: &Timing, missed: Missed, progress: Progress, now: &str) -> Vec<(String, bool)> {
        plan(timing, missed, progress, at(now)).into_iter().map(|(slot, runs)| (slot.to_string(), runs)).collect()
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
}
