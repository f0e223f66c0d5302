//! `/schedules`: what fires when. Those of the catalog are for the whole app and are only read; the others are a tenant's or a user's.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire_core::commit::{Committed, NewJob, NewSchedule};
use tidewire_core::schedule::{Missed, Overlap, Stored, Timing};
use tidewire_core::store::ScheduleQuery;
use tidewire_core::{Error, Id, Result, TenantId, Timestamp, commit};
use tidewire_runtime::{next_slots, slot_job};

use super::extract::{Call, PathText, Query, page_limit};
use super::{Answer, Api, Shared, events};
use crate::auth::Caller;
use crate::config::Scope;

/// How many of the next times are told.
const NEXT: usize = 5;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/schedules", get(list))
        .route("/schedules/{key}", get(one).put(put).delete(delete))
        .route("/schedules/{key}/run", post(run))
}

/// A stored schedule as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    source: &'static str,
    tenant: TenantId,
    key: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<Box<str>>,
    job: Arc<str>,
    data: tidewire_core::Json,
    timing: Timing,
    missed: Missed,
    overlap: Overlap,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    state: &'static str,
    paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Box<str>>,
    revision: u64,
    runs: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_job: Option<Id>,
    next: Vec<Timestamp>,
    created_at: Timestamp,
}

impl From<Stored> for View {
    fn from(stored: Stored) -> Self {
        Self {
            source: "stored",
            state: stored.state(),
            next: stored.next_slots(NEXT),
            tenant: stored.tenant,
            key: stored.key,
            user_id: stored.user_id,
            job: stored.spec.job,
            data: stored.spec.data,
            timing: stored.spec.timing,
            missed: stored.spec.missed,
            overlap: stored.spec.overlap,
            start: stored.spec.start,
            end: stored.spec.end,
            limit: stored.spec.limit,
            paused: stored.paused,
            error: stored.error,
            revision: stored.revision,
            runs: stored.runs,
            last: stored.last,
            last_job: stored.last_job,
            created_at: stored.created_at,
        }
    }
}

/// Which of the schedules of a key is meant.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Of {
    tenant: Option<TenantId>,
    user_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    tenant: Option<TenantId>,
    key: Option<String>,
    user_id: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

/// One page: first, and beside the limit, those of the catalog, which belong to no user; then those of the tenant, or of all.
async fn list(State(api): State<Shared>, caller: Caller, Query(query): Query<ListQuery>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant_or_all(query.tenant.as_ref(), api.tenants.as_deref())?;
    let limit = page_limit(query.limit, 100, ScheduleQuery::MAX)?;
    let now = api.publisher.clock().now();
    let is_first = query.cursor.is_none() && query.user_id.is_none();
    let wanted = |name: &str| is_first && query.key.as_ref().is_none_or(|key| key == name);
    let declared = api.catalog().schedules.values().filter(|spec| wanted(&spec.name));
    let mut items: Vec<_> = declared.map(|spec| shown(next_slots(spec, now, NEXT))).collect::<Result<_>>()?;
    let query = ScheduleQuery { tenant, key: query.key, user_id: query.user_id, cursor: query.cursor, limit };
    let page = api.publisher.store().schedules(query).await?;
    for stored in page.items {
        items.push(shown(View::from(stored))?);
    }
    Ok(Json(tidewire_core::store::Page { items, next_cursor: page.next_cursor }).into_response())
}

fn shown(schedule: impl Serialize) -> Result<tidewire_core::Json> {
    tidewire_core::Json::from_serialize(&schedule)
}

async fn one(State(api): State<Shared>, caller: Caller, PathText(key): PathText, Query(of): Query<Of>) -> Answer {
    caller.require(Scope::Read)?;
    if let Some(tenant) = caller.tenant_or_all(of.tenant.as_ref(), api.tenants.as_deref())?
        && let Some(stored) = api.publisher.store().schedule(&tenant, &key, of.user_id.as_deref()).await?
    {
        return Ok(Json(View::from(stored)).into_response());
    }
    let spec = api.catalog().schedules.get(&*key).filter(|_| of.user_id.is_none()).ok_or_else(|| not_found(&key))?;
    Ok(Json(next_slots(spec, api.publisher.clock().now(), NEXT)).into_response())
}

async fn put(
    State(api): State<Shared>,
    PathText(key): PathText,
    Query(of): Query<Of>,
    request: Request<Body>,
) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let body: NewSchedule = call.json()?;
    if body.delete {
        return Err(Error::invalid("request.invalid", "delete: use the method DELETE").into());
    }
    if !(body.key.is_empty() || body.key == key) {
        return Err(Error::invalid("request.invalid", format!("key: the path says {key:?}")).into());
    }
    let tenant = same("tenant", body.tenant.clone(), of.tenant)?;
    let user_id = same("userId", body.user_id.clone(), of.user_id)?;
    let schedule = NewSchedule { tenant: tenant.clone(), key: key.clone(), user_id: user_id.clone(), ..body };
    write(&api, &call, tenant.as_ref(), schedule).await?;
    let tenant = call.caller.tenant(tenant.as_ref(), api.tenants.as_deref())?;
    let stored = api.publisher.store().schedule(&tenant, &key, user_id.as_deref()).await?;
    Ok(Json(View::from(stored.ok_or_else(|| not_found(&key))?)).into_response())
}

/// What the body and the query say, who may both be silent but must not disagree.
fn same<T: PartialEq>(name: &str, body: Option<T>, query: Option<T>) -> Result<Option<T>> {
    match (body, query) {
        (Some(body), Some(query)) if body != query => {
            Err(Error::invalid("request.invalid", format!("{name}: the body and the query name different ones")))
        }
        (body, query) => Ok(body.or(query)),
    }
}

async fn delete(
    State(api): State<Shared>,
    PathText(key): PathText,
    Query(of): Query<Of>,
    request: Request<Body>,
) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    stored(&api, &call.caller, &key, &of).await?;
    let schedule = NewSchedule { user_id: of.user_id, ..NewSchedule::delete(key) };
    write(&api, &call, of.tenant.as_ref(), schedule).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn write(api: &Api, call: &Call, tenant: Option<&TenantId>, schedule: NewSchedule) -> Result<Committed> {
    events::commit(api, call, tenant, commit::Request { schedules: vec![schedule], ..commit::Request::default() }).await
}

/// The schedule that a caller may change. Codes `tenant.required`, `schedule.declared`, `schedule.not_found`.
async fn stored(api: &Api, caller: &Caller, key: &str, of: &Of) -> Result<Stored> {
    let tenant = caller.tenant(of.tenant.as_ref(), api.tenants.as_deref())?;
    let stored = api.publisher.store().schedule(&tenant, key, of.user_id.as_deref()).await?;
    stored.ok_or_else(|| match api.catalog().schedules.get(key) {
        Some(spec) if spec.timing.is_some() => {
            Error::conflict("schedule.declared", format!("the schedule {key:?} belongs to the catalog"))
        }
        _ => not_found(key),
    })
}

/// Runs a schedule now, beside its slots.
async fn run(
    State(api): State<Shared>,
    PathText(key): PathText,
    Query(of): Query<Of>,
    request: Request<Body>,
) -> Answer {
    let call = Call::read(&api, request).await?;
    let spec = api.catalog().schedules.get(&*key).filter(|spec| spec.timing.is_some());
    let (tenant, job) = match spec.filter(|_| of.tenant.is_none() && of.user_id.is_none()) {
        Some(spec) => {
            call.caller.require(Scope::Admin)?;
            call.caller.require_all_tenants()?;
            (TenantId::app(), NewJob::new(&*spec.job, spec.data.clone()))
        }
        None => {
            call.caller.require(Scope::Enqueue)?;
            let stored = stored(&api, &call.caller, &key, &of).await?;
            let job = NewJob { causation_id: Some(key), ..slot_job(&stored) };
            (stored.tenant, job)
        }
    };
    let request = commit::Request { jobs: vec![job], ..commit::Request::default() };
    let committed = api.publisher.commit(&tenant, request, call.idempotency()?).await?;
    Ok((StatusCode::CREATED, Json(json!({ "jobs": committed.jobs }))).into_response())
}

fn not_found(key: &str) -> Error {
    Error::not_found("schedule.not_found", format!("there is no schedule {key:?}"))
}
