//! The schedules that were made at run time: read when they are due, fired together.

use std::sync::Arc;

use tidewire_core::catalog::{Per, ScheduleSpec};
use tidewire_core::commit::{Commit, NewJob, Origin, ScheduleWrite};
use tidewire_core::schedule::Stored;
use tidewire_core::store::{Fire, Fired, Planned};
use tidewire_core::{Error, Result, TenantId, Timestamp};
use tokio::task::JoinSet;

use super::plan::{Progress, plan};
use super::{ASK_AGAIN, AT_ONCE, TICK};
use crate::publisher::Publisher;

/// After so many batches of [`AT_ONCE`] the catalog's schedules get their turn.
const MOST_BATCHES: usize = 200;

/// Fires what is due of the store's schedules. Answers when the next of them is due.
pub(super) async fn fire_due(publisher: &Arc<Publisher>, now: Timestamp) -> Result<Option<Timestamp>> {
    for _ in 0..MOST_BATCHES {
        let due = publisher.store().due(now, AT_ONCE).await?;
        if due.is_empty() {
            // What is due and cannot be read must not be asked for over and over.
            let next = publisher.store().next_due().await?;
            return Ok(next.map(|next| if next <= now { now + ASK_AGAIN } else { next }));
        }
        let mut firing = JoinSet::new();
        for schedule in due {
            let publisher = publisher.clone();
            firing.spawn(async move { fire(&publisher, &schedule, now).await });
        }
        super::all_of(firing).await?;
    }
    Ok(Some(now))
}

/// Fires what is due of one schedule.
async fn fire(publisher: &Publisher, schedule: &Stored, now: Timestamp) -> Result<()> {
    let Some(first) = schedule.next else { return Ok(()) };
    let spec = &schedule.spec;
    let declared = publisher.expander().catalog().schedules.get(&schedule.key);
    let is_twin = |declared: &ScheduleSpec| declared.per == Per::Tenant && schedule.user_id.is_none();
    if declared.is_some_and(|declared| schedule.tenant == TenantId::app() || is_twin(declared)) {
        return give_way(publisher, schedule).await;
    }
    let progress = Progress { last: first - TICK, waiting: schedule.is_waiting.then_some(first) };
    let mut runs = schedule.runs;
    let mut due = plan(|after| spec.next_after(after), spec.missed, progress, now);
    if due.is_empty() {
        // What was its next slot is none any more, after a change of the zone's rules.
        due.push((first, false));
    }
    for (slot, is_run) in due {
        if spec.is_used_up(runs) {
            break;
        }
        let job = if is_run {
            let origin = Origin { cause: Some(schedule.cause(slot).into()), ..Origin::default() };
            match publisher.expander().job(slot_job(schedule), &origin, now) {
                Ok(job) => Some(job),
                Err(error) => return suspend(publisher, schedule, &error).await,
            }
        } else {
            None
        };
        let planned =
            Planned { user_id: schedule.user_id.clone(), revision: schedule.revision, next: spec.next_after(slot) };
        let (tenant, key, overlap) = (schedule.tenant.clone(), schedule.key.clone(), spec.overlap);
        match publisher
            .store()
            .fire(Fire { tenant, key, slot, overlap, job, limit: spec.limit, stored: Some(planned) })
            .await?
        {
            Fired::Enqueued(job) => {
                runs += 1;
                tracing::debug!(schedule = schedule.cause(slot), tenant = %schedule.tenant, %job, "fired");
            }
            Fired::Overlapped => {
                tracing::info!(schedule = schedule.cause(slot), tenant = %schedule.tenant, "skipped: the job before is unfinished");
            }
            // Another one fires it, or it is due again when the store says so.
            Fired::Stale | Fired::Waiting | Fired::Ended => return Ok(()),
            Fired::Skipped => {}
        }
    }
    Ok(())
}

/// The job that each slot of a schedule enqueues.
pub(super) fn slot_job(schedule: &Stored) -> NewJob {
    let user_id = schedule.user_id.as_deref().map(str::to_owned);
    NewJob { user_id, ..NewJob::new(&*schedule.spec.job, schedule.spec.data.clone()) }
}

/// Deletes a schedule, as the catalog has one of this name by now.
async fn give_way(publisher: &Publisher, schedule: &Stored) -> Result<()> {
    tracing::warn!(tenant = %schedule.tenant, key = %schedule.key, "a schedule gives way to the one that the catalog declares");
    let delete = ScheduleWrite::Delete { key: schedule.key.clone(), user_id: schedule.user_id.clone() };
    publisher
        .store()
        .commit(Commit { schedules: vec![delete], ..Commit::empty(schedule.tenant.clone()) })
        .await
        .map(drop)
}

/// Pauses a schedule whose job the catalog no longer has, or no longer takes: it is kept, says why, and is not tried over and over.
async fn suspend(publisher: &Publisher, schedule: &Stored, error: &Error) -> Result<()> {
    let (key, tenant) = (schedule.key.clone(), schedule.tenant.clone());
    tracing::warn!(%key, %tenant, user = schedule.user_id.as_deref(), %error, "a schedule cannot fire and is paused");
    let why = format!("{} ({})", error.detail(), error.code()).into();
    let (user_id, revision) = (schedule.user_id.clone(), schedule.revision);
    let suspend = ScheduleWrite::Suspend { key, user_id, revision, why };
    publisher.store().commit(Commit { schedules: vec![suspend], ..Commit::empty(tenant) }).await.map(drop)
}
