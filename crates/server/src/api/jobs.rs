//! `/jobs`: enqueue, list, show and change them, and what their runs tell.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire_core::commit::{Delay, NewJob, Priority};
use tidewire_core::job::{FailedAttempt, Job, MAX_LOG_LINES, State as JobState};
use tidewire_core::store::{Bulk, Change, Control, JobQuery, Parent};
use tidewire_core::{Error, Id, Json as RawJson, Result, TenantId, Timestamp, commit};

use super::bulk::{Chosen, answer, run};
use super::dead_letters::DEAD_LETTERS;
use super::extract::{Call, PathText, Query, page_limit};
use super::{Answer, Api, Shared, events, no_method};
use crate::auth::Caller;
use crate::config::Scope;

/// The longest text that is searched for, in bytes.
const MAX_TEXT_BYTES: usize = 256;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/jobs", post(enqueue).get(list))
        .route(
            "/jobs/{id}",
            get(one)
                .patch(change)
                .post(many)
                .delete(|state, caller, path, query| control(Control::Delete, state, caller, path, query)),
        )
        .route("/jobs/{id}/progress", post(progress))
        .route("/jobs/{id}/logs", post(log).get(logs))
        .route("/jobs/{id}/parents", get(parents))
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
pub(super) struct ListQuery {
    tenant: Option<String>,
    queue: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    state: Option<String>,
    text: Option<String>,
    error: Option<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    failed_from: Option<Timestamp>,
    failed_to: Option<Timestamp>,
    user_id: Option<String>,
    correlation_id: Option<String>,
    flow: Option<Id>,
    key: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

impl ListQuery {
    /// The query of the store. An administrator who names no tenant sees all of them.
    pub(super) fn resolve(self, api: &Api, caller: &Caller, default_states: &[JobState]) -> Result<JobQuery> {
        caller.require(Scope::Read)?;
        let tenant = owner_or_all(self.tenant.as_deref(), api, caller)?;
        let states = match &self.state {
            Some(states) => states.split(',').map(str::parse).collect::<Result<_>>()?,
            None => default_states.to_vec(),
        };
        Ok(JobQuery {
            tenant,
            queue: self.queue,
            kind: self.kind,
            states,
            text: sought("text", self.text)?,
            error: sought("error", self.error)?,
            from: self.from,
            to: self.to,
            failed_from: self.failed_from,
            failed_to: self.failed_to,
            user_id: self.user_id,
            correlation_id: self.correlation_id,
            flow: self.flow,
            key: self.key,
            cursor: self.cursor,
            limit: page_limit(self.limit, 50, JobQuery::MAX)?,
            ..JobQuery::default()
        })
    }
}

/// A text to search for. Code `request.invalid`.
pub(super) fn sought(name: &str, text: Option<String>) -> Result<Option<String>> {
    match text {
        Some(text) if text.is_empty() || text.len() > MAX_TEXT_BYTES => {
            let detail = format!("{name}: expected 1 to {MAX_TEXT_BYTES} bytes, got {}", text.len());
            Err(Error::invalid("request.invalid", detail))
        }
        text => Ok(text),
    }
}

fn not_found(id: &Id) -> Error {
    Error::not_found("job.not_found", format!("there is no job {id}"))
}

async fn list(State(api): State<Shared>, caller: Caller, Query(query): Query<ListQuery>) -> Answer {
    let query = query.resolve(&api, &caller, &[])?;
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

/// Whose job it is that a call is about. A key for all tenants may also say `$app`, as lists show the jobs of app-wide schedules.
#[derive(Deserialize)]
pub(super) struct Owner {
    tenant: Option<String>,
}

impl Owner {
    pub(super) fn resolve(&self, api: &Api, caller: &Caller) -> Result<TenantId> {
        owner(self.tenant.as_deref(), api, caller)
    }
}

/// The tenant that a caller names, or the app. Codes `tenant.required`, `tenant.invalid`, `tenant.unknown`.
pub(super) fn owner(named: Option<&str>, api: &Api, caller: &Caller) -> Result<TenantId> {
    let app = TenantId::app();
    match named {
        Some(named) if named == app.as_str() && caller.tenant.is_none() => Ok(app),
        Some(named) => caller.tenant(Some(&TenantId::new(named)?), api.tenants.as_deref()),
        None => caller.tenant(None, api.tenants.as_deref()),
    }
}

/// The tenant that a caller names, or the app; all of them when a caller for all tenants names none. Codes as for [`owner`].
pub(super) fn owner_or_all(named: Option<&str>, api: &Api, caller: &Caller) -> Result<Option<TenantId>> {
    if named.is_none() && caller.tenant.is_none() {
        return Ok(None);
    }
    owner(named, api, caller).map(Some)
}

async fn one(State(api): State<Shared>, caller: Caller, PathText(id): PathText, Query(query): Query<Owner>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = query.resolve(&api, &caller)?;
    let id = Id::parse(&id)?;
    let found = api.publisher.store().job(&tenant, &id).await?;
    let (job, failed_attempts) = found.ok_or_else(|| not_found(&id))?;
    Ok(Json(JobDetail { job: Flat::new(&job)?, failed_attempts }).into_response())
}

async fn control(
    control: Control,
    State(api): State<Shared>,
    caller: Caller,
    PathText(id): PathText,
    Query(query): Query<Owner>,
) -> Answer {
    caller.require(Scope::Enqueue)?;
    let tenant = query.resolve(&api, &caller)?;
    let job = api.publisher.store().control(&tenant, &Id::parse(&id)?, control).await?;
    Ok(Json(job).into_response())
}

/// The same change to all jobs that match. Nothing is posted to a job by its id alone, so this is no id, and a job may be called so.
async fn many(State(api): State<Shared>, PathText(verb): PathText, request: Request<Body>) -> Answer {
    use JobState::{Blocked, Cancelled, Completed, Dead, Failed, Pending, Processing, Scheduled};
    let (action, usual): (Bulk, &[JobState]) = match &*verb {
        "cancel" => (Bulk::Cancel, &[Scheduled, Pending, Processing, Blocked]),
        "promote" => (Bulk::Promote, &[Scheduled]),
        // Who was taken back on purpose comes back only when somebody says so.
        "retry" => (Bulk::Redrive, &DEAD_LETTERS),
        "delete" => (Bulk::Delete, &[Scheduled, Pending, Blocked, Completed, Failed, Dead, Cancelled]),
        _ => return Err(no_method().await),
    };
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let chosen: Chosen = call.json()?;
    let extent = chosen.extent()?;
    if !chosen.is_narrowed() {
        let detail =
            "expected a filter such as queue, type, states, from or ids; name the states to mean all jobs in them";
        return Err(Error::invalid("request.invalid", detail).into());
    }
    let query = chosen.query(&api, &call.caller, usual)?;
    answer(extent, run(&api, query, action, extent).await?)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChangeBody {
    priority: Option<Priority>,
    delay: Option<Delay>,
    run_at: Option<Timestamp>,
    data: Option<RawJson>,
}

async fn change(
    State(api): State<Shared>,
    PathText(id): PathText,
    Query(query): Query<Owner>,
    request: Request<Body>,
) -> Answer {
    let call = Call::read_beside_query(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let tenant = query.resolve(&api, &call.caller)?;
    let body: ChangeBody = call.json()?;
    let run_at = match (body.delay, body.run_at) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("job.invalid_option", "expected delay or runAt, got both").into());
        }
        (Some(delay), None) => Some(api.publisher.clock().now() + delay.0),
        (None, run_at) => run_at,
    };
    let change = Change { priority: body.priority.map(|priority| priority.0), run_at, data: body.data };
    if change == Change::default() {
        return Err(Error::invalid("request.invalid", "expected priority, runAt, delay or data").into());
    }
    let id = Id::parse(&id)?;
    if let Some(data) = &change.data {
        // The type of a job never changes, so what is found here is still so when the change is written.
        let found = api.publisher.store().job(&tenant, &id).await?;
        let (job, _) = found.ok_or_else(|| not_found(&id))?;
        api.publisher.expander().check_job_data(&job.kind, data)?;
    }
    let job = api.publisher.store().control(&tenant, &id, Control::Change(change)).await?;
    Ok(Json(job).into_response())
}

/// What a run tells of itself while it holds its lease.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgressBody {
    lease: Box<str>,
    progress: RawJson,
}

async fn progress(State(api): State<Shared>, PathText(id): PathText, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Work)?;
    let ProgressBody { lease, progress } = call.json()?;
    // What nobody can read would spoil every list that it is in.
    progress.to_value()?;
    let store = api.publisher.store();
    store.progress(call.caller.tenant.as_ref(), &Id::parse(&id)?, &lease, progress).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogBody {
    lease: Box<str>,
    lines: Vec<String>,
}

async fn log(State(api): State<Shared>, PathText(id): PathText, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Work)?;
    let LogBody { lease, lines } = call.json()?;
    if lines.is_empty() || lines.len() > MAX_LOG_LINES {
        let detail = format!("lines: expected 1 to {MAX_LOG_LINES}, got {}", lines.len());
        return Err(Error::invalid("request.invalid", detail).into());
    }
    api.publisher.store().log(call.caller.tenant.as_ref(), &Id::parse(&id)?, &lease, lines).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartQuery {
    tenant: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

async fn logs(
    State(api): State<Shared>,
    caller: Caller,
    PathText(id): PathText,
    Query(query): Query<PartQuery>,
) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = Owner { tenant: query.tenant }.resolve(&api, &caller)?;
    let id = Id::parse(&id)?;
    let limit = page_limit(query.limit, 100, MAX_LOG_LINES as u32)?;
    let page = api.publisher.store().logs(&tenant, &id, query.cursor, limit).await?;
    let page = page.ok_or_else(|| not_found(&id))?;
    Ok(Json(page).into_response())
}

/// What a job waited for. A worker reads it, too: its lease names only the first.
async fn parents(
    State(api): State<Shared>,
    caller: Caller,
    PathText(id): PathText,
    Query(query): Query<PartQuery>,
) -> Answer {
    caller.require(Scope::Read).or_else(|_| caller.require(Scope::Work))?;
    let tenant = Owner { tenant: query.tenant }.resolve(&api, &caller)?;
    let id = Id::parse(&id)?;
    let limit = page_limit(query.limit, 100, Parent::MOST as u32)?;
    let page = api.publisher.store().parents(&tenant, &id, query.cursor, limit).await?;
    Ok(Json(page.ok_or_else(|| not_found(&id))?).into_response())
}
