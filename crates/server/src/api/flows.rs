//! `/flows`: jobs that wait for each other, asked for in one call and shown together.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use tidewire_core::commit::{NewFlow, NewJob};
use tidewire_core::{Error, Id, TenantId, commit};

use super::extract::{Call, PathText, Query, Tenant};
use super::{Answer, Shared, events};
use crate::auth::Caller;
use crate::config::Scope;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/flows", post(begin)).route("/flows/{id}", get(one))
}

/// A flow: what it is, and the jobs it is made of.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FlowBody {
    tenant: Option<TenantId>,
    id: Option<Id>,
    name: Option<String>,
    jobs: Vec<NewJob>,
    then: Option<Box<NewJob>>,
    finally: Option<Box<NewJob>>,
}

async fn begin(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let FlowBody { tenant, id, name, jobs, then, finally } = call.json()?;
    let flow = Some(NewFlow { id, name, then, finally });
    let request = commit::Request { jobs, flow, ..commit::Request::default() };
    let committed = events::commit(&api, &call, tenant.as_ref(), request).await?;
    Ok((StatusCode::CREATED, Json(json!({ "flow": committed.flow, "jobs": committed.jobs }))).into_response())
}

async fn one(State(api): State<Shared>, caller: Caller, PathText(id): PathText, Query(query): Query<Tenant>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant(query.tenant.as_ref(), api.tenants.as_deref())?;
    let id = Id::parse(&id)?;
    let flow = api.publisher.store().flow(&tenant, &id).await?;
    let flow = flow.ok_or_else(|| Error::not_found("flow.not_found", format!("there is no flow {id}")))?;
    Ok(Json(flow).into_response())
}
