//! `/flows`: jobs that wait for each other, asked for in one call and shown together.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire_core::commit::{NewFlow, NewJob};
use tidewire_core::store::{Flow, FlowControl, FlowQuery, FlowState, Page};
use tidewire_core::{Error, Id, TenantId, Timestamp, commit};

use super::extract::{Call, PathText, Query, page_limit};
use super::jobs::{Owner, owner};
use super::{Answer, Api, Shared, events};
use crate::auth::Caller;
use crate::config::Scope;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/flows", post(begin).get(list))
        .route("/flows/{id}", get(one))
        .route(
            "/flows/{id}/cancel",
            post(|state, caller, path, query| control(FlowControl::Cancel, state, caller, path, query)),
        )
        .route(
            "/flows/{id}/retry",
            post(|state, caller, path, query| control(FlowControl::Retry, state, caller, path, query)),
        )
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

async fn one(State(api): State<Shared>, caller: Caller, PathText(id): PathText, Query(query): Query<Owner>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = query.resolve(&api, &caller)?;
    shown(&api, &tenant, &Id::parse(&id)?).await
}

async fn shown(api: &Api, tenant: &TenantId, id: &Id) -> Answer {
    let flow = api.publisher.store().flow(tenant, id).await?;
    let flow = flow.ok_or_else(|| Error::not_found("flow.not_found", format!("there is no flow {id}")))?;
    Ok(Json(flow).into_response())
}

/// Which flows.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FlowsQuery {
    tenant: Option<String>,
    state: Option<FlowState>,
    name: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

async fn list(State(api): State<Shared>, caller: Caller, Query(query): Query<FlowsQuery>) -> Answer {
    caller.require(Scope::Read)?;
    let FlowsQuery { tenant, state, name, cursor, limit } = query;
    let tenant = owner(tenant.as_deref(), &api, &caller)?;
    let query = FlowQuery { tenant, state, name, cursor, limit: page_limit(limit, 50, FlowQuery::MAX)? };
    let page = api.publisher.store().flows(query).await?;
    Ok(Json(Page { items: page.items.iter().map(Listed::new).collect(), next_cursor: page.next_cursor })
        .into_response())
}

/// A flow in a list: without its jobs, which may be many.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    id: &'a Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    state: FlowState,
    unfinished: u32,
    failed: u32,
}

impl<'a> Listed<'a> {
    fn new(flow: &'a Flow) -> Self {
        let Flow { id, name, created_at, finished_at, state, unfinished, failed, .. } = flow;
        Self {
            id,
            name: name.as_deref(),
            created_at: *created_at,
            finished_at: *finished_at,
            state: *state,
            unfinished: *unfinished,
            failed: *failed,
        }
    }
}

async fn control(
    control: FlowControl,
    State(api): State<Shared>,
    caller: Caller,
    PathText(id): PathText,
    Query(query): Query<Owner>,
) -> Answer {
    caller.require(Scope::Enqueue)?;
    let tenant = query.resolve(&api, &caller)?;
    let id = Id::parse(&id)?;
    api.publisher.store().control_flow(&tenant, &id, control).await?;
    shown(&api, &tenant, &id).await
}
