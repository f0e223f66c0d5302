//! `/jobs`, `/queues` and `/dead-letters`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
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

use super::extract::{Call, PathText, Query, Tenant, all, page_limit};
use super::{Answer, Api, Shared, events};
use crate::auth::Caller;
use crate::config::Scope;
use crate::problem::Problem;

/// The most dead letters that one call re-drives.
const REDRIVE_AT_ONCE: usize = 10_000;
/// How many of them are re-driven at a time, so that they share commits and do not fill the store's inbox.
const REDRIVE_PAGE: usize = JobQuery::MAX as usize;

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
        let tenant = caller.tenant_or_all(self.tenant.as_ref(), api.tenants.as_deref())?;
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

async fn one(State(api): State<Shared>, caller: Caller, PathText(id): PathText, Query(query): Query<Tenant>) -> Answer {
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
    PathText(id): PathText,
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
    let redriven = match body.ids {
        Some(ids) => redrive_listed(&api, &tenant, &ids).await?,
        None => redrive_matching(&api, &tenant, body.queue, body.kind).await?,
    };
    Ok(Json(json!({ "redriven": redriven })).into_response())
}

async fn redrive_listed(api: &Shared, tenant: &TenantId, ids: &[Id]) -> Result<Vec<Id>> {
    if ids.len() > REDRIVE_AT_ONCE {
        let detail = format!("ids: expected at most {REDRIVE_AT_ONCE} in one call, got {}", ids.len());
        return Err(Error::invalid("request.invalid", detail));
    }
    let mut redriven = Vec::with_capacity(ids.len());
    for page in ids.chunks(REDRIVE_PAGE) {
        redriven.extend(redrive_page(api, tenant, page.to_vec()).await?);
    }
    Ok(redriven)
}

async fn redrive_matching(
    api: &Shared,
    tenant: &TenantId,
    queue: Option<String>,
    kind: Option<String>,
) -> Result<Vec<Id>> {
    let mut query = JobQuery {
        tenant: Some(tenant.clone()),
        queue,
        kind,
        states: vec![JobState::Failed, JobState::Dead],
        cursor: None,
        limit: JobQuery::MAX,
    };
    let mut redriven = Vec::new();
    // By pages and not by what was re-driven, so that the call ends although others re-drive the same ones.
    for _ in 0..REDRIVE_AT_ONCE / REDRIVE_PAGE {
        let Page { items, next_cursor } = api.publisher.store().jobs(query.clone()).await?;
        redriven.extend(redrive_page(api, tenant, items.into_iter().map(|job| job.id).collect()).await?);
        // The cursor is a place in the order of creation, so a job that fails again at once is not met twice.
        query.cursor = next_cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    Ok(redriven)
}

/// Re-drives jobs at once, each alone, and answers those that were dead letters.
async fn redrive_page(api: &Shared, tenant: &TenantId, ids: Vec<Id>) -> Result<Vec<Id>> {
    let tenant = tenant.clone();
    let one = move |api: Shared, id: Id| {
        let tenant = tenant.clone();
        async move {
            match api.publisher.store().control(&tenant, &id, Control::Redrive).await {
                Ok(_) => Ok(Some(id)),
                // It was re-driven, or deleted, since it was listed.
                Err(error) if matches!(error.code(), "job.wrong_state" | "job.not_found") => Ok(None),
                Err(error) => Err(error),
            }
        }
    };
    let redriven: Result<Vec<Option<Id>>> = all(api, ids, one).await?.into_iter().collect();
    Ok(redriven?.into_iter().flatten().collect())
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
    let tenant = caller.tenant_or_all(query.tenant.as_ref(), api.tenants.as_deref())?;
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
