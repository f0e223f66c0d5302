//! What fires at a time that it is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidewire_core::catalog::ScheduleSpec;
use tidewire_core::commit::{NewJob, Origin};
use tidewire_core::store::{Fire, Fired};
use tidewire_core::{Id, Result, TenantId, Timestamp};

use super::ASK_AGAIN;
use super::plan::{Progress, plan};
use super::stored;
use crate::publisher::Publisher;

/// Fires what is due when it is told the time. [`Scheduler`](super::Scheduler) is one with a clock; a test or a simulation tells it
/// the time of its own. Any number of them may share a store: a slot fires once.
pub struct Clockwork {
    publisher: Arc<Publisher>,
    /// How far the schedules of the catalog have got, as soon as it is known.
    progress: Option<BTreeMap<Arc<str>, Progress>>,
}

impl Clockwork {
    /// One for the schedules of the publisher's catalog and store.
    pub fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher, progress: None }
    }

    /// Fires everything that is due at `now`, and is done with it when this answers. A schedule of the catalog that the store has not
    /// seen before begins with the first tick. Faults of the store are logged and tried again later.
    ///
    /// Answers when to be told the time again, at the latest; nothing is due before that, unless a schedule is put.
    pub async fn tick(&mut self, now: Timestamp) -> Option<Timestamp> {
        let Self { publisher, progress } = self;
        let (declared, stored) =
            tokio::join!(fire_declared(publisher, progress, now), stored::fire_due(publisher, now));
        let stored = stored.unwrap_or_else(|error| {
            tracing::warn!(%error, "the schedules of the store could not fire");
            Some(now + ASK_AGAIN)
        });
        declared.into_iter().chain(stored).min()
    }
}

/// Fires what is due of the catalog's schedules. Answers when to look again.
async fn fire_declared(
    publisher: &Publisher,
    progress: &mut Option<BTreeMap<Arc<str>, Progress>>,
    now: Timestamp,
) -> Option<Timestamp> {
    let progress = match progress {
        Some(progress) => progress,
        None => match read_progress(publisher).await {
            Ok(read) => progress.insert(read),
            Err(error) => {
                tracing::warn!(%error, "the scheduler cannot read its slots");
                return Some(now + ASK_AGAIN);
            }
        },
    };
    let mut next = None;
    for spec in publisher.expander().catalog().schedules.values() {
        let wake = turn(publisher, spec, progress, now).await.unwrap_or_else(|error| {
            tracing::warn!(schedule = %spec.name, %error, "a schedule could not fire");
            Some(now + ASK_AGAIN)
        });
        next = wake.into_iter().chain(next).min();
    }
    next
}

async fn read_progress(publisher: &Publisher) -> Result<BTreeMap<Arc<str>, Progress>> {
    let app = TenantId::app();
    let slots = publisher.store().slots().await?;
    let own = slots.into_iter().filter(|((tenant, _), _)| *tenant == app);
    Ok(own.map(|((_, key), last)| (key, Progress { last, waiting: None })).collect())
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
        fire(publisher, spec, now, now, false).await?;
        progress.insert(spec.name.clone(), Progress { last: now, waiting: None });
        return Ok(timing.next_after(now));
    };
    for (slot, runs) in plan(|after| timing.next_after(after), spec.missed, *so_far, now) {
        match fire(publisher, spec, slot, now, runs).await? {
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

async fn fire(
    publisher: &Publisher,
    spec: &ScheduleSpec,
    slot: Timestamp,
    now: Timestamp,
    runs: bool,
) -> Result<Fired> {
    let job = if runs {
        let name = format!("{}@{slot}", spec.name);
        let job = NewJob { id: Some(Id::parse(&name)?), ..NewJob::new(&*spec.job, spec.data.clone()) };
        let origin = Origin { cause: Some(name.into()), ..Origin::default() };
        Some(publisher.expander().job(job, &origin, now)?)
    } else {
        None
    };
    let (tenant, key) = (TenantId::app(), spec.name.clone());
    publisher.store().fire(Fire { tenant, key, slot, overlap: spec.overlap, job, stored: None }).await
}
