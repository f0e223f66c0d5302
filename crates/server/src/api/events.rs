//! `/commit` and `/events`: the way in, and the log.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tidewire_core::commit::{Committed, Dedup, NewEvent, NewFlow, NewJob, NewSchedule};
use tidewire_core::event::{Event, Position};
use tidewire_core::store::{LogQuery, Page};
use tidewire_core::{Error, Id, Result, TenantId, Timestamp, commit};

use super::extract::{Call, PathText, Query, Tenant, page_limit};
use super::{Answer, Api, Shared};
use crate::auth::Caller;
use crate::config::Scope;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/commit", post(commit_all))
        .route("/events", post(publish).get(list))
        .route("/events/{id}", get(one))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CommitBody {
    tenant: Option<TenantId>,
    #[serde(default)]
    events: Vec<NewEvent>,
    #[serde(default)]
    jobs: Vec<NewJob>,
    flow: Option<NewFlow>,
    #[serde(default)]
    schedules: Vec<NewSchedule>,
    dedup: Option<Dedup>,
}

async fn commit_all(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    let body: CommitBody = call.json()?;
    if !body.events.is_empty() || (body.jobs.is_empty() && body.schedules.is_empty()) {
        call.caller.require(Scope::Publish)?;
    }
    if !(body.jobs.is_empty() && body.schedules.is_empty()) {
        call.caller.require(Scope::Enqueue)?;
    }
    let CommitBody { tenant, events, jobs, flow, schedules, dedup } = body;
    let request = commit::Request { events, jobs, flow, schedules, dedup };
    let committed = commit(&api, &call, tenant.as_ref(), request).await?;
    Ok((StatusCode::CREATED, Json(committed)).into_response())
}

async fn publish(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Publish)?;
    let events: Vec<NewEvent> = call.one_or_many()?;
    let tenant = events.iter().find_map(|event| event.tenant.clone());
    let request = commit::Request { events, ..commit::Request::default() };
    let committed = commit(&api, &call, tenant.as_ref(), request).await?;
    Ok((StatusCode::CREATED, Json(committed)).into_response())
}

/// Commits what a caller asked for, for the tenant that the caller may act for.
pub(super) async fn commit(
    api: &Api,
    call: &Call,
    tenant: Option<&TenantId>,
    request: commit::Request,
) -> Result<Committed> {
    if request.events.is_empty() && request.jobs.is_empty() && request.schedules.is_empty() {
        return Err(Error::invalid("commit.empty", "expected at least one event, job or schedule"));
    }
    let tenant = call.caller.tenant(tenant, api.tenants.as_deref())?;
    api.publisher.commit(&tenant, request, call.idempotency()?).await
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    tenant: Option<TenantId>,
    after: Option<Position>,
    cursor: Option<Position>,
    before: Option<Position>,
    #[serde(rename = "type")]
    kind: Option<String>,
    stream: Option<String>,
    user_id: Option<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    limit: Option<u32>,
}

async fn list(State(api): State<Shared>, caller: Caller, Query(query): Query<ListQuery>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant(query.tenant.as_ref(), api.tenants.as_deref())?;
    let limit = page_limit(query.limit, 100, LogQuery::MAX)?;
    let query = LogQuery {
        after: query.cursor.or(query.after).unwrap_or_default(),
        up_to: query.before.map(|before| Position(before.0.saturating_sub(1))),
        limit,
        kind: query.kind,
        stream: query.stream,
        user: query.user_id,
        from: query.from,
        to: query.to,
    };
    let items = api.publisher.store().read(&tenant, query).await?;
    let bytes: usize = items.iter().map(|event| event.data.get().len()).sum();
    let is_full = items.len() == limit as usize || bytes >= LogQuery::MAX_BYTES;
    let next_cursor = items.last().filter(|_| is_full).map(|event| event.position.to_string());
    let items: Vec<Arc<Event>> = items;
    Ok(Json(Page { items, next_cursor }).into_response())
}

async fn one(State(api): State<Shared>, caller: Caller, PathText(id): PathText, Query(query): Query<Tenant>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant(query.tenant.as_ref(), api.tenants.as_deref())?;
    let id = Id::parse(&id)?;
    let event = api.publisher.store().event(&tenant, &id).await?;
    let event = event.ok_or_else(|| Error::not_found("event.not_found", format!("there is no event {id}")))?;
    Ok(Json(event).into_response())
}
