//! `/schedules`: what fires when. Those of the catalog are only paused and run; the others are the app's, a tenant's or a user's.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire_core::catalog::Per;
use tidewire_core::commit::NewSchedule;
use tidewire_core::schedule::{Missed, Overlap, Stored, Timing};
use tidewire_core::store::ScheduleQuery;
use tidewire_core::{Error, Id, Result, TenantId, Timestamp, commit};
use tidewire_runtime::{declared_schedules, run_schedule};

use super::extract::{Call, PathText, Query, page_limit};
use super::jobs::owner;
use super::{Answer, Api, Shared};
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
    tenant: Option<String>,
    user_id: Option<String>,
}

impl Of {
    /// Whose it is, who may change it. What belongs to the app needs the scope `admin`, all else `enqueue`.
    fn changed_by(&self, api: &Api, caller: &Caller) -> Result<TenantId> {
        let tenant = owner(self.tenant.as_deref(), api, caller)?;
        caller.require(if tenant == TenantId::app() { Scope::Admin } else { Scope::Enqueue })?;
        Ok(tenant)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    tenant: Option<String>,
    key: Option<String>,
    user_id: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

/// Whose schedules are looked at; nothing for those of all.
fn looked_at(named: Option<&str>, api: &Api, caller: &Caller) -> Result<Option<TenantId>> {
    if named.is_none() && caller.tenant.is_none() {
        return Ok(None);
    }
    owner(named, api, caller).map(Some)
}

/// One page: first, and beside the limit, those of the catalog, which belong to no user; then those of the tenant, or of all.
async fn list(State(api): State<Shared>, caller: Caller, Query(query): Query<ListQuery>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = looked_at(query.tenant.as_deref(), &api, &caller)?;
    let limit = page_limit(query.limit, 100, ScheduleQuery::MAX)?;
    let is_first = query.cursor.is_none() && query.user_id.is_none();
    let wanted = |name: &str| is_first && query.key.as_ref().is_none_or(|key| key == name);
    let declared = declared_schedules(&api.publisher, tenant.as_ref(), wanted, NEXT).await?;
    let mut items: Vec<_> = declared.iter().map(shown).collect::<Result<_>>()?;
    let query = ScheduleQuery { tenant, key: query.key, user_id: query.user_id, cursor: query.cursor, limit };
    let page = api.publisher.store().schedules(query).await?;
    // What is kept of a paused one of the catalog was shown with it.
    for stored in page.items.into_iter().filter(|stored| !is_declared(&api, &stored.tenant, &stored.key)) {
        items.push(shown(&View::from(stored))?);
    }
    Ok(Json(tidewire_core::store::Page { items, next_cursor: page.next_cursor }).into_response())
}

fn shown(schedule: &impl Serialize) -> Result<tidewire_core::Json> {
    tidewire_core::Json::from_serialize(schedule)
}

/// Whether the catalog has it for the app, and says when.
fn is_declared(api: &Api, tenant: &TenantId, key: &str) -> bool {
    let declared = api.catalog().schedules.get(key);
    *tenant == TenantId::app() && declared.is_some_and(|declared| declared.timing.is_some())
}

async fn one(State(api): State<Shared>, caller: Caller, PathText(key): PathText, Query(of): Query<Of>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = looked_at(of.tenant.as_deref(), &api, &caller)?;
    view(&api, tenant, &key, of.user_id.as_deref()).await
}

async fn view(api: &Api, tenant: Option<TenantId>, key: &str, user_id: Option<&str>) -> Answer {
    if let Some(tenant) = tenant.as_ref().filter(|tenant| !is_declared(api, tenant, key))
        && let Some(stored) = api.publisher.store().schedule(tenant, key, user_id).await?
    {
        return Ok(Json(View::from(stored)).into_response());
    }
    let wanted = |name: &str| name == key && user_id.is_none();
    let mut declared = declared_schedules(&api.publisher, tenant.as_ref(), wanted, NEXT).await?;
    Ok(Json(declared.pop().ok_or_else(|| not_found(key))?).into_response())
}

async fn put(
    State(api): State<Shared>,
    PathText(key): PathText,
    Query(of): Query<Of>,
    request: Request<Body>,
) -> Answer {
    let call = Call::read_beside_query(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let body: NewSchedule = call.json()?;
    if body.delete {
        return Err(Error::invalid("request.invalid", "delete: use the method DELETE").into());
    }
    if !(body.key.is_empty() || body.key == key) {
        return Err(Error::invalid("request.invalid", format!("key: the path says {key:?}")).into());
    }
    let named = body.tenant.as_ref().map(|tenant| tenant.as_str().to_owned());
    let of =
        Of { tenant: same("tenant", named, of.tenant)?, user_id: same("userId", body.user_id.clone(), of.user_id)? };
    let tenant = of.changed_by(&api, &call.caller)?;
    // Nothing said would be read as not paused.
    if is_declared(&api, &tenant, &key) && call.json::<serde_json::Map<String, serde_json::Value>>()?.is_empty() {
        return Err(Error::invalid("request.invalid", "expected {\"paused\":true} or {\"paused\":false}").into());
    }
    let schedule = NewSchedule { tenant: None, key: key.clone(), user_id: of.user_id.clone(), ..body };
    write(&api, &call, &tenant, schedule).await?;
    view(&api, Some(tenant), &key, of.user_id.as_deref()).await
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
    let call = Call::read_beside_query(&api, request).await?;
    let tenant = of.changed_by(&api, &call.caller)?;
    let stored = api.publisher.store().schedule(&tenant, &key, of.user_id.as_deref()).await?;
    if stored.is_none() || is_declared(&api, &tenant, &key) {
        return Err(unchangeable(&api, &key).into());
    }
    let schedule = NewSchedule { user_id: of.user_id, ..NewSchedule::delete(key) };
    write(&api, &call, &tenant, schedule).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn write(api: &Api, call: &Call, tenant: &TenantId, schedule: NewSchedule) -> Result<()> {
    let request = commit::Request { schedules: vec![schedule], ..commit::Request::default() };
    api.publisher.commit(tenant, request, call.idempotency()?).await.map(drop)
}

/// Runs a schedule now, beside its slots.
async fn run(
    State(api): State<Shared>,
    PathText(key): PathText,
    Query(of): Query<Of>,
    request: Request<Body>,
) -> Answer {
    let call = Call::read_beside_query(&api, request).await?;
    let declared = api.catalog().schedules.get(&*key);
    let is_of_app = declared.is_some_and(|declared| declared.per == Per::App && of.tenant.is_none());
    let tenant = if is_of_app && of.user_id.is_none() {
        call.caller.require(Scope::Admin)?;
        call.caller.require_all_tenants()?;
        TenantId::app()
    } else {
        of.changed_by(&api, &call.caller)?
    };
    let ran = run_schedule(&api.publisher, &tenant, &key, of.user_id.as_deref(), call.idempotency()?).await;
    let committed = ran.map_err(|error| match error.code() {
        "schedule.not_found" => unchangeable(&api, &key),
        _ => error,
    })?;
    Ok((StatusCode::CREATED, Json(json!({ "jobs": committed.jobs }))).into_response())
}

/// Why there is no schedule of this key that the caller may change.
fn unchangeable(api: &Api, key: &str) -> Error {
    match api.catalog().schedules.get(key) {
        Some(declared) if declared.timing.is_some() => {
            Error::conflict("schedule.declared", format!("the schedule {key:?} belongs to the catalog"))
        }
        _ => not_found(key),
    }
}

fn not_found(key: &str) -> Error {
    Error::not_found("schedule.not_found", format!("there is no schedule {key:?}"))
}
