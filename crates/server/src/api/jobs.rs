//! `/jobs`, `/queues` and `/dead-letters`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire_core::commit::NewJob;
use tidewire_core::job::{FailedAttempt, Job, State as JobState};
use tidewire_core::store::{Control, JobQuery, Page};
use tidewire_core::{Error, Id, Result, TenantId, commit};

use super::extract::{Call, Query, Tenant, page_limit};
use super::{Answer, Api, Shared, events};
use crate::auth::Caller;
use crate::config::Scope;
use crate::problem::Problem;

/// The most dead letters that one re-drive by filter moves.
const REDRIVE_AT_ONCE: u32 = 10_000;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/jobs", post(enqueue).get(list))
        .route("/jobs/{id}", get(one))
        .route(
            "/jobs/{id}/retry",
            post(|state, caller, path, query| control(Control::Redrive, state, caller, path, query)),
        )
        .route(
            "/jobs/{id}/cancel",
            post(|state, caller, path, query| control(Control::Cancel, state, caller, path, query)),
        )
        .route(
            "/jobs/{id}/promote",
            post(|state, caller, path, query| control(Control::Promote, state, caller, path, query)),
        )
        .route("/queues", get(queues))
        .route("/dead-letters", get(dead_letters))
        .route("/dead-letters/redrive", post(redrive))
}

async fn enqueue(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let jobs: Vec<NewJob> = call.one_or_many()?;
    let tenant = jobs.iter().find_map(|job| job.tenant.clone());
    let request = commit::Request { jobs, ..commit::Request::default() };
    let committed = events::commit(&api, &call, tenant.as_ref(), request).await?;
    Ok((StatusCode::CREATED, Json(json!({ "jobs": committed.jobs }))).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    tenant: Option<TenantId>,
    queue: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    state: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

impl ListQuery {
    /// The query of the store. An administrator who names no tenant sees all of them.
    fn resolve(self, api: &Api, caller: &Caller, default_states: &[JobState]) -> Result<JobQuery> {
        caller.require(Scope::Read)?;
        let tenant = match (&caller.tenant, &self.tenant) {
            (None, None) => None,
            (_, named) => Some(caller.tenant(named.as_ref(), api.tenants.as_deref())?),
        };
        let states = match &self.state {
            Some(states) => states.split(',').map(str::parse).collect::<Result<_>>()?,
            None => default_states.to_vec(),
        };
        Ok(JobQuery {
            tenant,
            queue: self.queue,
            kind: self.kind,
            states,
            cursor: self.cursor,
            limit: page_limit(self.limit, 50, JobQuery::MAX)?,
        })
    }
}

async fn list(State(api): State<Shared>, caller: Caller, Query(query): Query<ListQuery>) -> Answer {
    let query = query.resolve(&api, &caller, &[])?;
    Ok(Json(api.publisher.store().jobs(query).await?).into_response())
}

async fn dead_letters(State(api): State<Shared>, caller: Caller, Query(query): Query<ListQuery>) -> Answer {
    let query = query.resolve(&api, &caller, &[JobState::Failed, JobState::Dead])?;
    if let Some(state) = query.states.iter().find(|state| !state.is_dead_letter()) {
        let detail = format!("state: dead letters are failed or dead, got {state}");
        return Err(Error::invalid("request.invalid", detail).into());
    }
    Ok(Json(api.publisher.store().jobs(query).await?).into_response())
}

/// A job with the runs that failed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JobDetail {
    #[serde(flatten)]
    job: Flat,
    failed_attempts: Vec<FailedAttempt>,
}

/// A job as a tree, because raw JSON cannot be flattened.
#[derive(Serialize)]
#[serde(transparent)]
struct Flat(serde_json::Map<String, serde_json::Value>);

impl Flat {
    fn new(job: &Job) -> Result<Self> {
        match serde_json::to_value(job) {
            Ok(serde_json::Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Ok(Self(serde_json::Map::new())),
            Err(error) => Err(Error::internal("a job cannot be shown", error)),
        }
    }
}

async fn one(State(api): State<Shared>, caller: Caller, Path(id): Path<String>, Query(query): Query<Tenant>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant(query.tenant.as_ref(), api.tenants.as_deref())?;
    let id = Id::parse(&id)?;
    let found = api.publisher.store().job(&tenant, &id).await?;
    let (job, failed_attempts) =
        found.ok_or_else(|| Error::not_found("job.not_found", format!("there is no job {id}")))?;
    Ok(Json(JobDetail { job: Flat::new(&job)?, failed_attempts }).into_response())
}

async fn control(
    control: Control,
    State(api): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<Tenant>,
) -> Answer {
    caller.require(Scope::Enqueue)?;
    let tenant = caller.tenant(query.tenant.as_ref(), api.tenants.as_deref())?;
    let job = api.publisher.store().control(&tenant, &Id::parse(&id)?, control).await?;
    Ok(Json(job).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RedriveBody {
    tenant: Option<TenantId>,
    ids: Option<Vec<Id>>,
    queue: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

async fn redrive(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let body: RedriveBody = call.json()?;
    let tenant = call.caller.tenant(body.tenant.as_ref(), api.tenants.as_deref())?;
    let store = api.publisher.store();
    let ids = match body.ids {
        Some(ids) => ids,
        None => matching(&api, &tenant, body.queue, body.kind).await?,
    };
    let mut redriven = Vec::with_capacity(ids.len());
    for id in ids {
        match store.control(&tenant, &id, Control::Redrive).await {
            Ok(_) => redriven.push(id),
            // It was re-driven, or deleted, since it was listed.
            Err(error) if matches!(error.code(), "job.wrong_state" | "job.not_found") => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(json!({ "redriven": redriven })).into_response())
}

async fn matching(api: &Api, tenant: &TenantId, queue: Option<String>, kind: Option<String>) -> Result<Vec<Id>> {
    let mut query = JobQuery {
        tenant: Some(tenant.clone()),
        queue,
        kind,
        states: vec![JobState::Failed, JobState::Dead],
        cursor: None,
        limit: JobQuery::MAX,
    };
    let mut ids = Vec::new();
    while ids.len() < REDRIVE_AT_ONCE as usize {
        let Page { items, next_cursor } = api.publisher.store().jobs(query.clone()).await?;
        ids.extend(items.into_iter().map(|job| job.id));
        query.cursor = next_cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    Ok(ids)
}

/// A queue in a listing.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueView {
    name: Arc<str>,
    description: String,
    concurrency: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    global: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
    attempts: u16,
    counts: BTreeMap<JobState, u64>,
}

async fn queues(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<Tenant>,
) -> Result<axum::response::Response, Problem> {
    caller.require(Scope::Read)?;
    let tenant = match (&caller.tenant, &query.tenant) {
        (None, None) => None,
        (_, named) => Some(caller.tenant(named.as_ref(), api.tenants.as_deref())?),
    };
    let mut counts = api.publisher.store().counts(tenant.as_ref()).await?;
    let view = |queue: &tidewire_core::catalog::Queue| {
        let mut counts = counts.remove(&queue.name).unwrap_or_default();
        for state in JobState::ALL {
            counts.entry(state).or_default();
        }
        QueueView {
            name: queue.name.clone(),
            description: queue.description.clone(),
            concurrency: queue.concurrency,
            global: queue.global,
            rate: queue.rate.map(|rate| rate.to_string()),
            attempts: queue.attempts,
            counts,
        }
    };
    let items: Vec<QueueView> = api.catalog().queues.values().map(view).collect();
    Ok(Json(json!({ "items": items })).into_response())
}
