//! What fires at a time that it is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidewire_core::catalog::{Per, ScheduleSpec};
use tidewire_core::commit::{NewJob, Origin};
use tidewire_core::schedule::Spec;
use tidewire_core::store::{Fire, Fired};
use tidewire_core::{Id, Result, TenantId, Timestamp};
use tokio::task::JoinSet;

use super::plan::{Progress, plan};
use super::{ASK_AGAIN, AT_ONCE, TICK, stored};
use crate::publisher::Publisher;

/// Fires what is due when it is told the time. [`Scheduler`](super::Scheduler) is one with a clock; a test or a simulation tells it
/// the time of its own. Any number of them may share a store: a slot fires once.
pub struct Clockwork {
    publisher: Arc<Publisher>,
    /// How far the schedules of the catalog have got, as soon as it is known.
    reached: Option<BTreeMap<Arc<str>, SoFar>>,
}

impl Clockwork {
    /// One for the schedules of the publisher's catalog and store.
    pub fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher, reached: None }
    }

    /// Fires everything that is due at `now`, and is done with it when this answers. A schedule of the catalog that the store has not
    /// seen before begins with the first tick. Faults of the store are logged and tried again later.
    ///
    /// Answers when to be told the time again, at the latest; nothing is due before that, unless a schedule is put.
    pub async fn tick(&mut self, now: Timestamp) -> Option<Timestamp> {
        let Self { publisher, reached } = self;
        loop {
            let (declared, stored) =
                tokio::join!(fire_declared(publisher, reached, now), stored::fire_due(publisher, now));
            let stored = stored.unwrap_or_else(|error| {
                tracing::warn!(%error, "the schedules of the store could not fire");
                Some(now + ASK_AGAIN)
            });
            let next = declared.into_iter().chain(stored).min();
            // Many at once fire in pages, and all schedules have a turn between two of them.
            if next.is_none_or(|next| next > now) {
                return next;
            }
        }
    }
}

/// What is remembered of a schedule of the catalog.
struct SoFar {
    progress: Progress,
    /// Of one that fires for each tenant, the tenant up to which its next slot has fired.
    fired_up_to: Option<TenantId>,
}

impl SoFar {
    fn at(last: Timestamp) -> Self {
        Self { progress: Progress { last, waiting: None }, fired_up_to: None }
    }
}

/// Fires what is due of the catalog's schedules. Answers when to look again.
async fn fire_declared(
    publisher: &Arc<Publisher>,
    reached: &mut Option<BTreeMap<Arc<str>, SoFar>>,
    now: Timestamp,
) -> Option<Timestamp> {
    let reached = match reached {
        Some(reached) => reached,
        None => match publisher.store().slots(&TenantId::app()).await {
            Ok(read) => reached.insert(read.into_iter().map(|(key, slot)| (key, SoFar::at(slot.last))).collect()),
            Err(error) => {
                tracing::warn!(%error, "the scheduler cannot read its slots");
                return Some(now + ASK_AGAIN);
            }
        },
    };
    let mut next = None;
    for schedule in publisher.expander().catalog().schedules.values() {
        let Some(spec) = schedule.spec() else { continue };
        let wake = turn(publisher, schedule, &spec, reached, now).await.unwrap_or_else(|error| {
            tracing::warn!(schedule = %schedule.name, %error, "a schedule could not fire");
            Some(now + ASK_AGAIN)
        });
        next = wake.into_iter().chain(next).min();
    }
    next
}

/// Fires what is due of one schedule. Answers when to look again.
async fn turn(
    publisher: &Arc<Publisher>,
    schedule: &ScheduleSpec,
    spec: &Spec,
    reached: &mut BTreeMap<Arc<str>, SoFar>,
    now: Timestamp,
) -> Result<Option<Timestamp>> {
    let app = TenantId::app();
    let Some(so_far) = reached.get_mut(&schedule.name) else {
        // Seen for the first time: it begins now, and a restart must not take this for missed slots.
        fire(publisher, app, &schedule.name, now, Turn { now, runs: false }).await?;
        reached.insert(schedule.name.clone(), SoFar::at(now));
        return Ok(spec.next_after(now));
    };
    for (slot, runs) in plan(|after| spec.next_after(after), spec.missed, so_far.progress, now) {
        if runs && schedule.per == Per::Tenant {
            // Between two pages others have their turn, and the slot stays as it was found, in time or missed.
            so_far.progress = Progress { last: slot - TICK, waiting: Some(slot) };
            so_far.fired_up_to = fire_page(publisher, schedule, slot, now, so_far.fired_up_to.as_ref()).await?;
            if so_far.fired_up_to.is_some() {
                return Ok(Some(now));
            }
        }
        // What is kept for the app says for one of tenants that all have had this slot.
        let turn = Turn { now, runs: runs && schedule.per == Per::App };
        match fire(publisher, app.clone(), &schedule.name, slot, turn).await? {
            Fired::Waiting => {
                // The slots before it were passed over, and the next look must not come back to them.
                so_far.progress = Progress { last: slot - TICK, waiting: Some(slot) };
                return Ok(Some(now + ASK_AGAIN));
            }
            Fired::Ended => return Ok(None),
            Fired::Enqueued(job) => tracing::debug!(schedule = %schedule.name, %slot, %job, "fired"),
            Fired::Overlapped => {
                tracing::info!(schedule = %schedule.name, %slot, "skipped: the job before is unfinished");
            }
            Fired::Stale | Fired::Skipped => {}
        }
        *so_far = SoFar::at(slot);
    }
    Ok(spec.next_after(so_far.progress.last))
}

/// Fires a slot for the tenants of one page after `after`. Answers the last of them if there may be more.
async fn fire_page(
    publisher: &Arc<Publisher>,
    schedule: &ScheduleSpec,
    slot: Timestamp,
    now: Timestamp,
    after: Option<&TenantId>,
) -> Result<Option<TenantId>> {
    let tenants = publisher.store().tenants(after, AT_ONCE).await?;
    let last = tenants.last().filter(|_| tenants.len() >= AT_ONCE as usize).cloned();
    let mut firing = JoinSet::new();
    for tenant in tenants.into_iter().filter(|tenant| *tenant != TenantId::app()) {
        let (publisher, name) = (publisher.clone(), schedule.name.clone());
        firing.spawn(async move { fire(&publisher, tenant, &name, slot, Turn { now, runs: true }).await });
    }
    super::all_of(firing).await?;
    Ok(last)
}

/// When a slot is looked at, and whether it runs or is passed over.
struct Turn {
    now: Timestamp,
    runs: bool,
}

async fn fire(publisher: &Publisher, tenant: TenantId, key: &Arc<str>, slot: Timestamp, turn: Turn) -> Result<Fired> {
    let Some(schedule) = publisher.expander().catalog().schedules.get(key) else { return Ok(Fired::Skipped) };
    let job = if turn.runs {
        let name = format!("{key}@{slot}");
        let job = NewJob { id: Some(Id::parse(&name)?), ..NewJob::new(&*schedule.job, schedule.data.clone()) };
        let origin = Origin { cause: Some(name.into()), ..Origin::default() };
        Some(publisher.expander().job(job, &origin, turn.now)?)
    } else {
        None
    };
    // A slot that is only passed over is not held up by a limit.
    let (key, overlap, limit) = (key.clone(), schedule.overlap, schedule.limit.filter(|_| turn.runs));
    publisher.store().fire(Fire { tenant, key, slot, overlap, job, limit, stored: None }).await
}
