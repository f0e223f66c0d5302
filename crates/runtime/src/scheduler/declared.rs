//! The schedules of the catalog as operators see them, and what runs any schedule now.

use std::sync::Arc;

use serde::Serialize;
use tidewire_core::catalog::{Per, ScheduleSpec};
use tidewire_core::commit::{Committed, Idempotency, NewJob, Request};
use tidewire_core::schedule::{Reached, Timing};
use tidewire_core::{Error, Id, Result, TenantId, Timestamp};

use super::stored::slot_job;
use crate::publisher::Publisher;

/// A schedule of the catalog as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Declared {
    /// `catalog`.
    pub source: &'static str,
    /// Its name.
    pub key: Arc<str>,
    /// The job type that each slot enqueues.
    pub job: Arc<str>,
    /// Whom it fires for.
    pub per: Per,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
    /// No slot is earlier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Timestamp>,
    /// No slot is later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// It ends with so many runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// One line for people.
    pub description: String,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// How many jobs its slots have enqueued; of one that fires for each tenant, for the tenant that is looked at.
    pub runs: u64,
    /// The last slot that fired or was passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Timestamp>,
    /// The job of the last slot that ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_job: Option<Id>,
    /// The next due times; none while it is paused.
    pub next: Vec<Timestamp>,
}

/// The schedules of the catalog whose names are `wanted`, with their next `count` times. `tenant` is whose runs are told of those that
/// fire for each tenant.
pub async fn declared_schedules(
    publisher: &Publisher,
    tenant: Option<&TenantId>,
    wanted: impl Fn(&str) -> bool,
    count: usize,
) -> Result<Vec<Declared>> {
    let (app, now) = (TenantId::app(), publisher.clock().now());
    let of_app = publisher.store().slots(&app).await?;
    let of_tenant = publisher.store().slots(tenant.unwrap_or(&app)).await?;
    let mut declared = Vec::new();
    for schedule in publisher.expander().catalog().schedules.values().filter(|schedule| wanted(&schedule.name)) {
        let paused = publisher.store().schedule(&app, &schedule.name, None).await?.is_some_and(|kept| kept.paused);
        let slots = if schedule.per == Per::Tenant { &of_tenant } else { &of_app };
        let count = if paused { 0 } else { count };
        declared.push(shown(schedule, slots.get(&schedule.name), now, count, paused));
    }
    Ok(declared)
}

fn shown(schedule: &ScheduleSpec, reached: Option<&Reached>, now: Timestamp, count: usize, paused: bool) -> Declared {
    let spec = schedule.spec();
    let step = |at: &Timestamp| spec.as_ref().and_then(|spec| spec.next_after(*at));
    let runs = reached.map_or(0, |reached| reached.runs);
    let left = schedule.limit.map_or(u64::MAX, |limit| limit.saturating_sub(runs));
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(count);
    Declared {
        source: "catalog",
        key: schedule.name.clone(),
        job: schedule.job.clone(),
        per: schedule.per,
        timing: schedule.timing.clone(),
        start: schedule.start,
        end: schedule.end,
        limit: schedule.limit,
        description: schedule.description.clone(),
        paused,
        runs,
        last: reached.map(|reached| reached.last),
        last_job: reached.and_then(|reached| reached.last_job.clone()),
        next: std::iter::successors(step(&now), step).take(count).collect(),
    }
}

/// Runs a schedule now, beside its slots and not counted in its runs: one that the catalog has for the app or for each tenant, or one
/// that was made at run time. Code `schedule.not_found`.
pub async fn run_schedule(
    publisher: &Publisher,
    tenant: &TenantId,
    key: &str,
    user_id: Option<&str>,
    idempotency: Option<Idempotency>,
) -> Result<Committed> {
    let per = if *tenant == TenantId::app() { Per::App } else { Per::Tenant };
    let declared = publisher.expander().catalog().schedules.get(key);
    let job = match declared.filter(|schedule| schedule.per == per && user_id.is_none()) {
        Some(schedule) => NewJob::new(&*schedule.job, schedule.data.clone()),
        None => {
            let stored = publisher.store().schedule(tenant, key, user_id).await?;
            let not_found = || Error::not_found("schedule.not_found", format!("there is no schedule {key:?}"));
            slot_job(&stored.ok_or_else(not_found)?)
        }
    };
    let job = NewJob { causation_id: Some(key.to_owned()), ..job };
    publisher.commit(tenant, Request { jobs: vec![job], ..Request::default() }, idempotency).await
}
