//! `/leases`: remote workers lease, renew and settle jobs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire_core::commit::{Committed, Delay};
use tidewire_core::job::State as JobState;
use tidewire_core::store::{Claim, Leased};
use tidewire_core::time::duration_text;
use tidewire_core::{Error, Id, Json as RawJson, Result, TenantId, Timestamp};
use tidewire_runtime::{Effects, Settlement, settle, verdict};

use super::extract::Call;
use super::{Answer, Api, Shared};
use crate::auth::Caller;
use crate::config::Scope;

/// The most jobs that one call leases, settles or renews.
const MAX_JOBS: usize = 1_000;
/// The longest that a call waits for a first job.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// A lease when none is given, and its bounds.
const DEFAULT_LEASE: Duration = Duration::from_secs(30);
const SHORTEST_LEASE: Duration = Duration::from_millis(500);
const LONGEST_LEASE: Duration = Duration::from_secs(12 * 3600);

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/leases", post(lease))
        .route("/leases/settle", post(settle_all))
        .route("/leases/renew", post(renew_all))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LeaseBody {
    tenant: Option<TenantId>,
    #[serde(default)]
    queues: Vec<Arc<str>>,
    #[serde(default)]
    types: Vec<Arc<str>>,
    max: Option<u32>,
    wait: Option<Delay>,
    lease: Option<Delay>,
    worker: Option<String>,
}

/// A job as a worker gets it.
#[derive(Serialize)]
struct LeasedView<'a> {
    lease: &'a str,
    expires: Timestamp,
    tenant: &'a TenantId,
    id: &'a Id,
    #[serde(rename = "type")]
    kind: &'a str,
    queue: &'a str,
    data: &'a RawJson,
    attempt: u16,
    attempts: u16,
    priority: u8,
    #[serde(with = "duration_text")]
    timeout: Duration,
    #[serde(rename = "createdAt")]
    created_at: Timestamp,
    #[serde(rename = "userId", skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(rename = "correlationId", skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
    #[serde(rename = "causationId", skip_serializing_if = "Option::is_none")]
    causation_id: Option<&'a str>,
}

#[derive(Serialize)]
struct LeasedJobs<'a> {
    jobs: Vec<LeasedView<'a>>,
}

async fn lease(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Work)?;
    let body: LeaseBody = call.json()?;
    let claim = claim(&api, &call.caller, body)?;
    // Dropping the answer, as when the worker hangs up, gives the jobs back.
    let leased = tokio::select! {
        leased = api.publisher.store().claim(claim) => leased?,
        () = api.stopping.cancelled() => Vec::new(),
    };
    Ok(Json(LeasedJobs { jobs: leased.iter().map(view).collect() }).into_response())
}

fn claim(api: &Api, caller: &Caller, body: LeaseBody) -> Result<Claim> {
    let option = |what: String| Error::invalid("lease.invalid_option", what);
    let tenant = match (&caller.tenant, &body.tenant) {
        (None, None) => None,
        (_, named) => Some(caller.tenant(named.as_ref(), api.tenants.as_deref())?),
    };
    let catalog = api.catalog();
    for queue in &body.queues {
        if !catalog.queues.contains_key(queue) {
            return Err(Error::invalid(
                "job.unknown_queue",
                format!("queues: {queue:?} is not declared in the catalog"),
            ));
        }
    }
    for kind in &body.types {
        if !catalog.jobs.contains_key(kind) {
            return Err(Error::invalid("job.unknown_type", format!("types: {kind:?} is not declared in the catalog")));
        }
    }
    let max = body.max.unwrap_or(1);
    if max == 0 || max as usize > MAX_JOBS {
        return Err(option(format!("max: expected 1 to {MAX_JOBS}, got {max}")));
    }
    let wait = body.wait.map_or(Duration::ZERO, |wait| wait.0);
    if wait > MAX_WAIT {
        return Err(option(format!("wait: expected at most 60s, got {}", tidewire_core::time::format_duration(wait))));
    }
    let worker = body.worker.unwrap_or_else(|| "remote".to_owned());
    if worker.is_empty() || worker.len() > 200 {
        return Err(option("worker: expected 1 to 200 bytes".to_owned()));
    }
    Ok(Claim {
        tenant,
        queues: body.queues,
        kinds: body.types,
        max,
        lease: lease_time(body.lease)?,
        wait,
        worker: worker.into(),
        local: false,
    })
}

fn lease_time(asked: Option<Delay>) -> Result<Duration> {
    let lease = asked.map_or(DEFAULT_LEASE, |lease| lease.0);
    if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease) {
        let shown = tidewire_core::time::format_duration(lease);
        return Err(Error::invalid("lease.invalid_option", format!("lease: expected 500ms to 12h, got {shown}")));
    }
    Ok(lease)
}

fn view(leased: &Leased) -> LeasedView<'_> {
    let job = &leased.job;
    LeasedView {
        lease: &leased.lease,
        expires: leased.expires,
        tenant: &job.tenant,
        id: &job.id,
        kind: &job.kind,
        queue: &job.queue,
        data: &job.data,
        attempt: job.attempt,
        attempts: job.attempts,
        priority: job.priority,
        timeout: job.timeout,
        created_at: job.created_at,
        user_id: job.user_id.as_deref(),
        correlation_id: job.correlation_id.as_deref(),
        causation_id: job.causation_id.as_deref(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SettleBody {
    results: Vec<ResultBody>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResultBody {
    id: Id,
    lease: Box<str>,
    verdict: String,
    result: Option<RawJson>,
    error: Option<String>,
    delay: Option<Delay>,
    #[serde(default)]
    effects: Effects,
}

/// What became of one entry of a batch.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<T> {
    Done {
        id: Id,
        #[serde(flatten)]
        answer: T,
    },
    Refused {
        id: Id,
        error: EntryError,
    },
}

#[derive(Serialize)]
struct EntryError {
    code: &'static str,
    detail: String,
}

impl<T> Entry<T> {
    fn new(id: Id, answer: Result<T>) -> Self {
        match answer {
            Ok(answer) => Self::Done { id, answer },
            Err(error) => {
                Self::Refused { id, error: EntryError { code: error.code(), detail: error.detail().to_owned() } }
            }
        }
    }
}

#[derive(Serialize)]
struct SettledView {
    state: JobState,
    #[serde(skip_serializing_if = "is_empty")]
    effects: Committed,
}

fn is_empty(committed: &Committed) -> bool {
    committed.events.is_empty() && committed.jobs.is_empty()
}

async fn settle_all(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Work)?;
    let body: SettleBody = call.json()?;
    check_batch("results", body.results.len())?;
    let tenant = call.caller.tenant.clone();
    let one = move |api: Shared, body: ResultBody| {
        let tenant = tenant.clone();
        async move { Entry::new(body.id.clone(), settle_one(&api, tenant, body).await) }
    };
    let results = all(&api, body.results, one).await?;
    Ok(Json(json!({ "results": results })).into_response())
}

async fn settle_one(api: &Api, tenant: Option<TenantId>, body: ResultBody) -> Result<SettledView> {
    let verdict = verdict(&body.verdict, body.result, body.error, body.delay.map(|delay| delay.0))?;
    let settlement = Settlement { id: body.id, lease: body.lease, verdict, effects: body.effects };
    let settled = settle(&api.publisher, tenant, settlement).await?;
    Ok(SettledView { state: settled.state, effects: settled.effects })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RenewBody {
    leases: Vec<RenewEntry>,
    extend: Option<Delay>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RenewEntry {
    id: Id,
    lease: Box<str>,
}

#[derive(Serialize)]
struct RenewedView {
    expires: Timestamp,
    cancelled: bool,
}

async fn renew_all(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Work)?;
    let body: RenewBody = call.json()?;
    check_batch("leases", body.leases.len())?;
    let extend = lease_time(body.extend)?;
    let tenant = call.caller.tenant.clone();
    let one = move |api: Shared, entry: RenewEntry| {
        let tenant = tenant.clone();
        async move {
            let renewed = api.publisher.store().renew(tenant.as_ref(), &entry.id, &entry.lease, extend).await;
            let view = renewed.map(|renewed| RenewedView { expires: renewed.expires, cancelled: renewed.cancelled });
            Entry::new(entry.id, view)
        }
    };
    let leases = all(&api, body.leases, one).await?;
    Ok(Json(json!({ "leases": leases })).into_response())
}

fn check_batch(name: &str, len: usize) -> Result<()> {
    if len == 0 || len > MAX_JOBS {
        return Err(Error::invalid("request.invalid", format!("{name}: expected 1 to {MAX_JOBS}, got {len}")));
    }
    Ok(())
}

/// Runs every entry at once, so that they share one commit, and answers in their order.
async fn all<E, T, Fut>(api: &Shared, entries: Vec<E>, one: impl Fn(Shared, E) -> Fut) -> Result<Vec<T>>
where
    T: Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = entries.into_iter().map(|entry| tokio::spawn(one(api.clone(), entry))).collect();
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        answers.push(task.await.map_err(|error| Error::internal("an entry was not finished", error))?);
    }
    Ok(answers)
}
