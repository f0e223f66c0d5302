//! `/schedules`: what fires when.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tidewire_core::commit::NewJob;
use tidewire_core::{Error, TenantId, commit};
use tidewire_runtime::next_slots;

use super::extract::{Call, PathText};
use super::{Answer, Shared};
use crate::auth::Caller;
use crate::config::Scope;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/schedules", get(list))
        .route("/schedules/{key}", get(one))
        .route("/schedules/{key}/run", post(run))
}

async fn list(State(api): State<Shared>, caller: Caller) -> Answer {
    caller.require(Scope::Read)?;
    let now = api.publisher.clock().now();
    let items: Vec<_> = api.catalog().schedules.values().map(|spec| next_slots(spec, now, 5)).collect();
    Ok(Json(json!({ "items": items })).into_response())
}

async fn one(State(api): State<Shared>, caller: Caller, PathText(key): PathText) -> Answer {
    caller.require(Scope::Read)?;
    let spec = api.catalog().schedules.get(&*key).ok_or_else(|| not_found(&key))?;
    Ok(Json(next_slots(spec, api.publisher.clock().now(), 5)).into_response())
}

/// Runs an app-wide schedule now, beside its slots.
async fn run(State(api): State<Shared>, PathText(key): PathText, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Admin)?;
    call.caller.require_all_tenants()?;
    let spec = api.catalog().schedules.get(&*key).ok_or_else(|| not_found(&key))?;
    let job = NewJob::new(&*spec.job, spec.data.clone());
    let request = commit::Request { jobs: vec![job], ..commit::Request::default() };
    let committed = api.publisher.commit(&TenantId::app(), request, call.idempotency()?).await?;
    Ok((StatusCode::CREATED, Json(json!({ "jobs": committed.jobs }))).into_response())
}

fn not_found(key: &str) -> Error {
    Error::not_found("schedule.not_found", format!("there is no schedule {key:?}"))
}
