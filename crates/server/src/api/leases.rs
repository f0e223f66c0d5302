//! `/leases`: remote workers lease, renew and settle jobs.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire_core::commit::{Committed, Delay};
use tidewire_core::job::State as JobState;
use tidewire_core::store::{Claim, Leased, Parent, Renewed};
use tidewire_core::suggest::suggest;
use tidewire_core::time::duration_text;
use tidewire_core::{Error, Id, Json as RawJson, Result, TenantId, Timestamp};
use tidewire_runtime::{Effects, Settlement, settle, verdict};

use super::extract::{Call, all, json};
use super::{Answer, Api, Shared};
use crate::auth::Caller;
use crate::config::Scope;
use crate::problem;

/// The most jobs that one call leases, settles or renews.
const MAX_JOBS: usize = 1_000;
/// The longest that a call waits for a first job.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// A lease when none is given. Half a second is left for another worker to begin within 5 s of a kill. And its bounds.
const DEFAULT_LEASE: Duration = Duration::from_millis(4_500);
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
    queues: Option<Vec<Arc<str>>>,
    types: Option<Vec<Arc<str>>>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(rename = "flowId", skip_serializing_if = "Option::is_none")]
    flow: Option<&'a Id>,
    /// The jobs it waited for, with their results.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    parents: &'a [Parent],
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
    let claimed = async {
        // For the store no types mean all, those of handlers in this process too. A catalog without job types has none to lease.
        if claim.kinds.is_empty() {
            tokio::time::sleep(claim.wait).await;
            return Ok(Vec::new());
        }
        api.publisher.store().claim(claim).await
    };
    // Dropping the answer, as when the worker hangs up, gives the jobs back.
    let leased = tokio::select! {
        leased = claimed => leased?,
        () = api.stopping.cancelled() => Vec::new(),
    };
    Ok(Json(LeasedJobs { jobs: leased.iter().map(view).collect() }).into_response())
}

fn claim(api: &Api, caller: &Caller, body: LeaseBody) -> Result<Claim> {
    let option = |what: String| Error::invalid("lease.invalid_option", what);
    let tenant = caller.tenant_or_all(body.tenant.as_ref(), api.tenants.as_deref())?;
    let catalog = api.catalog();
    let queues = chosen("job.unknown_queue", "queues", body.queues, &catalog.queues)?.unwrap_or_default();
    // Never `on:` and a name, which are the jobs of durable handlers and run in this process only.
    let all_types = || catalog.jobs.keys().cloned().collect();
    let kinds = chosen("job.unknown_type", "types", body.types, &catalog.jobs)?.unwrap_or_else(all_types);
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
        queues,
        kinds,
        max,
        lease: lease_time("lease", body.lease)?,
        wait,
        worker: worker.into(),
        local: false,
        reserved: false,
    })
}

/// What a worker names, checked; nothing when it leaves the field out and so takes all.
fn chosen<T>(
    code: &'static str,
    field: &str,
    names: Option<Vec<Arc<str>>>,
    known: &BTreeMap<Arc<str>, T>,
) -> Result<Option<Vec<Arc<str>>>> {
    let Some(names) = names else { return Ok(None) };
    if names.is_empty() {
        let detail = format!("{field}: expected at least one; leave it out to take all");
        return Err(Error::invalid("lease.invalid_option", detail));
    }
    let Some(name) = names.iter().find(|name| !known.contains_key(*name)) else { return Ok(Some(names)) };
    let mut detail = format!("{field}: {name:?} is not declared in the catalog");
    if let Some(near) = suggest(name, known.keys().map(|known| &**known)) {
        detail.push_str(&format!("; did you mean {near:?}?"));
    }
    Err(Error::invalid(code, detail))
}

/// How long a lease is to hold. `field` is what the caller calls it.
fn lease_time(field: &str, asked: Option<Delay>) -> Result<Duration> {
    let lease = asked.map_or(DEFAULT_LEASE, |lease| lease.0);
    if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease) {
        let shown = tidewire_core::time::format_duration(lease);
        return Err(Error::invalid("lease.invalid_option", format!("{field}: expected 500ms to 12h, got {shown}")));
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
        key: job.key(),
        flow: job.rare.as_ref().and_then(|rare| rare.flow.as_ref()),
        parents: &leased.parents,
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
    /// These two are what handlers make up, so they are read by themselves: a slip in one result is answered there.
    delay: Option<RawJson>,
    effects: Option<RawJson>,
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
        error: problem::Content,
    },
}

impl<T> Entry<T> {
    fn new(id: Id, answer: Result<T>) -> Self {
        match answer {
            Ok(answer) => Self::Done { id, answer },
            Err(error) => Self::Refused { id, error: problem::content(&error) },
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
    committed.events.is_empty() && committed.jobs.is_empty() && committed.schedules.is_empty()
}

async fn settle_all(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Work)?;
    let body: SettleBody = call.json()?;
    check_batch("results", body.results.len())?;
    let tenant = call.caller.tenant.clone();
    // A lease settles once: what else the call says of it is too late, and refused before anything can overtake.
    let mut settled: HashSet<Box<str>> = HashSet::new();
    let results = body.results.into_iter().map(|body| (settled.insert(body.lease.clone()), body)).collect();
    let one = move |api: Shared, (is_first, body): (bool, ResultBody)| {
        let tenant = tenant.clone();
        async move {
            let id = body.id.clone();
            let again = || {
                Error::conflict(
                    "job.lease_lost",
                    format!("the call has two results for the lease on job {id}; the first counts"),
                )
            };
            let done = if is_first { settle_one(&api, tenant, body).await } else { Err(again()) };
            Entry::new(id.clone(), done)
        }
    };
    let results = all(&api, results, one).await?;
    Ok(Json(json!({ "results": results })).into_response())
}

async fn settle_one(api: &Api, tenant: Option<TenantId>, body: ResultBody) -> Result<SettledView> {
    let delay: Option<Delay> = read("delay", body.delay)?;
    let effects: Option<Effects> = read("effects", body.effects)?;
    let verdict = verdict(&body.verdict, body.result, body.error, delay.map(|delay| delay.0))?;
    let settlement = Settlement { id: body.id, lease: body.lease, verdict, effects: effects.unwrap_or_default() };
    let settled = settle(&api.publisher, tenant, settlement).await?;
    Ok(SettledView { state: settled.state, effects: settled.effects })
}

fn read<T: DeserializeOwned>(field: &str, given: Option<RawJson>) -> Result<Option<T>> {
    let read = given.map(|given| json(given.get().as_bytes())).transpose();
    read.map_err(|error| Error::invalid(error.code(), format!("{field}: {}", error.detail())))
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
#[serde(rename_all = "camelCase")]
struct RenewedView {
    expires: Timestamp,
    cancelled: bool,
    timed_out: bool,
}

async fn renew_all(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Work)?;
    let body: RenewBody = call.json()?;
    check_batch("leases", body.leases.len())?;
    let extend = lease_time("extend", body.extend)?;
    let tenant = call.caller.tenant.clone();
    let one = move |api: Shared, entry: RenewEntry| {
        let tenant = tenant.clone();
        async move {
            let renewed = api.publisher.store().renew(tenant.as_ref(), &entry.id, &entry.lease, extend).await;
            let view =
                renewed.map(|Renewed { expires, cancelled, timed_out }| RenewedView { expires, cancelled, timed_out });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> BTreeMap<Arc<str>, ()> {
        ["charge", "ship"].into_iter().map(|name| (name.into(), ())).collect()
    }

    fn types(names: Option<&[&str]>) -> Result<Option<Vec<Arc<str>>>> {
        let names = names.map(|names| names.iter().map(|name| (*name).into()).collect());
        chosen("job.unknown_type", "types", names, &catalog())
    }

    #[test]
    fn a_worker_takes_what_it_names_and_all_when_it_names_nothing() {
        assert_eq!(types(None).expect("all"), None);
        assert_eq!(types(Some(&["ship"])).expect("one"), Some(vec!["ship".into()]));
        assert_eq!(types(Some(&[])).expect_err("an empty list is a slip").code(), "lease.invalid_option");
    }

    #[test]
    fn the_jobs_of_a_handler_in_this_process_cannot_be_named() {
        assert_eq!(types(Some(&["on:unread"])).expect_err("not of the catalog").code(), "job.unknown_type");
    }

    #[test]
    fn a_slip_in_a_name_is_answered_with_the_right_one() {
        let error = types(Some(&["chrage"])).expect_err("unknown");
        assert_eq!(error.detail(), "types: \"chrage\" is not declared in the catalog; did you mean \"charge\"?");
    }

    #[test]
    fn a_renewal_out_of_bounds_is_told_of_its_own_field() {
        let error = lease_time("extend", Some(Delay(Duration::from_millis(1)))).expect_err("too short");
        assert_eq!(error.detail(), "extend: expected 500ms to 12h, got 1ms");
    }

    #[test]
    fn an_entry_says_as_much_as_a_problem() {
        let error = Error::new(tidewire_core::Kind::Limited, "store.busy", "slow down")
            .with_retry_after(Duration::from_millis(250));
        let entry: Entry<()> = Entry::new(Id::parse("j-1").expect("id"), Err(error));
        let expected =
            json!({ "id": "j-1", "error": { "code": "store.busy", "detail": "slow down", "retryAfter": 250 } });
        assert_eq!(serde_json::to_value(entry).expect("json"), expected);
    }
}
