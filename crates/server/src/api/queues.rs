//! `/queues`: what waits in them, and changing them while they run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire_core::catalog::{Queue, QueueSettings};
use tidewire_core::commit::Delay;
use tidewire_core::job::State as JobState;
use tidewire_core::limit::Rate;
use tidewire_core::store::{Bulk, Counts, JobQuery, QueueLimits, QueuePace, QueueTenant};
use tidewire_core::suggest::suggest;
use tidewire_core::time::optional_duration_text;
use tidewire_core::{Error, Json as RawJson, Result, TenantId, Timestamp};

use super::bulk::{Extent, answer, run};
use super::extract::{Call, PathText, Query, Tenant};
use super::jobs::owner_or_all;
use super::{Answer, Api, Shared};
use crate::auth::Caller;
use crate::config::Scope;

/// How many tenants are shown with a queue.
const TENANTS_SHOWN: u32 = 100;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/queues", get(list))
        .route("/queues/{queue}", get(one).patch(patch))
        .route("/queues/{queue}/pause", post(|state, path, request| switch(Switch::Pause, state, path, request)))
        .route("/queues/{queue}/resume", post(|state, path, request| switch(Switch::Resume, state, path, request)))
        .route("/queues/{queue}/drain", post(drain))
        .route("/queues/{queue}/clean", post(clean))
        .route("/queues/{queue}/obliterate", post(obliterate))
}

/// A queue as it is shown: what holds for it now, and what is in it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueView {
    name: Arc<str>,
    description: String,
    paused: bool,
    concurrency: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    global: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_tenant: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_key: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_per_tenant: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_per_key: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backlog: Option<u64>,
    #[serde(with = "optional_duration_text", skip_serializing_if = "Option::is_none")]
    aging: Option<Duration>,
    attempts: u16,
    counts: BTreeMap<JobState, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_pending: Option<Timestamp>,
    /// Only for those who see all tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<QueueSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenants: Option<Vec<QueueTenant>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    figures: Option<QueuePace>,
}

/// What is known of all queues at one time.
struct Overview {
    /// Of this tenant, or of all.
    tenant: Option<TenantId>,
    counts: Counts,
    settings: BTreeMap<Arc<str>, QueueSettings>,
    oldest: BTreeMap<Arc<str>, Timestamp>,
}

impl Overview {
    async fn read(api: &Api, tenant: Option<TenantId>) -> Result<Self> {
        let store = api.publisher.store();
        let counts = store.counts(tenant.as_ref()).await?;
        let settings = store.queue_settings().await?;
        let oldest = store.oldest_pending(tenant.as_ref()).await?;
        Ok(Self { tenant, counts, settings, oldest })
    }

    fn view(&self, name: &Arc<str>, declared: Option<&Queue>) -> QueueView {
        let settings = self.settings.get(name).cloned().unwrap_or_default();
        let limits = settings.over(declared.map_or_else(QueueLimits::default, Queue::limits));
        let mut counts = self.counts.get(name).cloned().unwrap_or_default();
        for state in JobState::ALL {
            counts.entry(state).or_default();
        }
        let own = self.tenant.as_ref().and_then(|tenant| limits.tenants.get(tenant));
        let has_pending = counts[&JobState::Pending] > 0;
        let Declared { concurrency, attempts } = Declared::of(declared);
        QueueView {
            name: name.clone(),
            description: declared.map(|queue| queue.description.clone()).unwrap_or_default(),
            paused: limits.paused || own.is_some_and(|own| own.paused),
            concurrency: settings.concurrency.unwrap_or(concurrency),
            global: limits.global,
            per_tenant: own.and_then(|own| own.at_once).or(limits.per_tenant),
            per_key: limits.per_key,
            rate: limits.rate,
            rate_per_tenant: own.and_then(|own| own.rate).or(limits.rate_per_tenant),
            rate_per_key: limits.rate_per_key,
            backlog: own.and_then(|own| own.backlog).or(limits.backlog),
            aging: limits.aging,
            attempts,
            counts,
            oldest_pending: self.oldest.get(name).copied().filter(|_| has_pending),
            settings: self.tenant.is_none().then_some(settings),
            tenants: None,
            figures: None,
        }
    }
}

/// What the catalog says and the store need not know.
struct Declared {
    concurrency: u32,
    attempts: u16,
}

impl Declared {
    /// A queue that the catalog does not declare, as that of durable handlers, runs ten jobs at once, each as often as itself says.
    fn of(queue: Option<&Queue>) -> Self {
        queue.map_or(Self { concurrency: 10, attempts: 10 }, |queue| Self {
            concurrency: queue.concurrency,
            attempts: queue.attempts,
        })
    }
}

async fn list(State(api): State<Shared>, caller: Caller, Query(query): Query<Tenant>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant_or_all(query.tenant.as_ref(), api.tenants.as_deref())?;
    let overview = Overview::read(&api, tenant).await?;
    let declared = &api.catalog().queues;
    let mut items: Vec<QueueView> = declared.iter().map(|(name, queue)| overview.view(name, Some(queue))).collect();
    // The queue of durable handlers, and one that left the catalog and still has jobs.
    let others = overview.counts.iter().filter(|(name, _)| !declared.contains_key(*name));
    items.extend(
        others.filter(|(_, counts)| counts.values().any(|count| *count > 0)).map(|(name, _)| overview.view(name, None)),
    );
    Ok(Json(json!({ "items": items })).into_response())
}

async fn one(
    State(api): State<Shared>,
    caller: Caller,
    PathText(queue): PathText,
    Query(query): Query<Tenant>,
) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant_or_all(query.tenant.as_ref(), api.tenants.as_deref())?;
    let queue = known(&api, &queue).await?;
    Ok(Json(shown(&api, tenant, &queue).await?).into_response())
}

async fn shown(api: &Api, tenant: Option<TenantId>, queue: &Arc<str>) -> Result<QueueView> {
    let store = api.publisher.store();
    let (tenants, figures) = match &tenant {
        None => (Some(store.queue_tenants(queue, TENANTS_SHOWN).await?), Some(store.queue_pace(queue).await?)),
        Some(_) => (None, None),
    };
    let overview = Overview::read(api, tenant).await?;
    Ok(QueueView { tenants, figures, ..overview.view(queue, api.catalog().queues.get(queue)) })
}

/// The queue of this name: the catalog declares it, or it has or had jobs. Code `queue.not_found`.
async fn known(api: &Api, name: &str) -> Result<Arc<str>> {
    let declared = &api.catalog().queues;
    if let Some((name, _)) = declared.get_key_value(name) {
        return Ok(name.clone());
    }
    if let Some((name, _)) = api.publisher.store().counts(None).await?.get_key_value(name) {
        return Ok(name.clone());
    }
    let mut detail = format!("there is no queue {name:?}");
    if let Some(near) = suggest(name, declared.keys().map(|known| &**known)) {
        detail.push_str(&format!("; did you mean {near:?}?"));
    }
    Err(Error::not_found("queue.not_found", detail))
}

async fn patch(State(api): State<Shared>, PathText(queue): PathText, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Admin)?;
    call.caller.require_all_tenants()?;
    let queue = known(&api, &queue).await?;
    settings(&api, &queue, call.json()?).await?;
    Ok(Json(shown(&api, None, &queue).await?).into_response())
}

/// Changes the settings of a queue, for the store and for the workers of this process.
async fn settings(api: &Api, queue: &Arc<str>, patch: RawJson) -> Result<()> {
    let declared = api.catalog().queues.get(queue);
    let limits = declared.map_or_else(QueueLimits::default, Queue::limits);
    let settings = api.publisher.store().patch_queue(queue, limits, patch).await?;
    if let Some(resize) = api.resize.get() {
        resize(queue, settings.concurrency.unwrap_or_else(|| Declared::of(declared).concurrency));
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Switch {
    Pause,
    Resume,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchBody {
    tenant: Option<TenantId>,
}

/// A queue, or one tenant in it, starts no jobs any more, or goes on.
async fn switch(
    switch: Switch,
    State(api): State<Shared>,
    PathText(queue): PathText,
    request: Request<Body>,
) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Admin)?;
    let body: SwitchBody = if call.body.is_empty() { SwitchBody::default() } else { call.json()? };
    let tenant = call.caller.tenant_or_all(body.tenant.as_ref(), api.tenants.as_deref())?;
    let queue = known(&api, &queue).await?;
    let paused = match switch {
        Switch::Pause => json!(true),
        Switch::Resume => json!(null),
    };
    let patch = match &tenant {
        Some(tenant) => json!({ "tenants": { tenant.as_str(): { "paused": paused } } }),
        None => json!({ "paused": paused }),
    };
    settings(&api, &queue, RawJson::from(patch)).await?;
    let seen = call.caller.tenant.clone();
    Ok(Json(shown(&api, seen, &queue).await?).into_response())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DrainBody {
    tenant: Option<String>,
    scheduled: Option<bool>,
    limit: Option<u32>,
    cursor: Option<String>,
    dry_run: Option<bool>,
}

/// Deletes the jobs that wait.
async fn drain(State(api): State<Shared>, PathText(queue): PathText, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let body: DrainBody = if call.body.is_empty() { DrainBody::default() } else { call.json()? };
    let mut states = vec![JobState::Pending, JobState::Blocked];
    if body.scheduled.unwrap_or(false) {
        states.push(JobState::Scheduled);
    }
    let query = JobQuery {
        tenant: owner_or_all(body.tenant.as_deref(), &api, &call.caller)?,
        queue: Some(known(&api, &queue).await?.to_string()),
        states,
        cursor: body.cursor,
        ..JobQuery::default()
    };
    let extent = Extent::new(body.limit, body.dry_run)?;
    answer(extent, run(&api, query, Bulk::Delete, extent).await?)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CleanBody {
    tenant: Option<String>,
    states: Vec<JobState>,
    older_than: Option<Delay>,
    limit: Option<u32>,
    cursor: Option<String>,
    dry_run: Option<bool>,
}

/// Deletes jobs by state and age.
async fn clean(State(api): State<Shared>, PathText(queue): PathText, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let body: CleanBody = call.json()?;
    if body.states.is_empty() || body.states.contains(&JobState::Processing) {
        let detail = "states: expected at least one, and not processing: cancel what runs first";
        return Err(Error::invalid("request.invalid", detail).into());
    }
    let now = api.publisher.clock().now();
    let query = JobQuery {
        tenant: owner_or_all(body.tenant.as_deref(), &api, &call.caller)?,
        queue: Some(known(&api, &queue).await?.to_string()),
        states: body.states,
        untouched_since: body.older_than.map(|age| now - age.0),
        cursor: body.cursor,
        ..JobQuery::default()
    };
    let extent = Extent::new(body.limit, body.dry_run)?;
    answer(extent, run(&api, query, Bulk::Delete, extent).await?)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ObliterateBody {
    limit: Option<u32>,
    cursor: Option<String>,
    dry_run: Option<bool>,
}

/// Deletes every job of a queue. Those that run are asked to stop, and are deleted by a later call.
async fn obliterate(State(api): State<Shared>, PathText(queue): PathText, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Admin)?;
    call.caller.require_all_tenants()?;
    let body: ObliterateBody = if call.body.is_empty() { ObliterateBody::default() } else { call.json()? };
    let extent = Extent::new(body.limit, body.dry_run)?;
    let everything = JobQuery { queue: Some(known(&api, &queue).await?.to_string()), ..JobQuery::default() };
    let running = JobQuery { states: vec![JobState::Processing], ..everything.clone() };
    let stopping = run(&api, running, Bulk::Cancel, extent).await?.changed;
    let states = JobState::ALL.into_iter().filter(|state| *state != JobState::Processing).collect();
    let rest = JobQuery { states, cursor: body.cursor, ..everything };
    let deleted = run(&api, rest, Bulk::Delete, extent).await?;
    Ok(Json(json!({
        "dryRun": extent.is_dry(),
        "deleted": deleted.changed,
        "stopping": stopping,
        "nextCursor": deleted.next,
    }))
    .into_response())
}
