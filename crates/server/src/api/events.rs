//! `/commit` and `/events`: the way in, and the log.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tidewire_core::commit::{Committed, Dedup, NewEvent, NewFlow, NewJob, NewSchedule};
use tidewire_core::event::{Event, Position};
use tidewire_core::store::{LogQuery, Page};
use tidewire_core::{Error, Id, Result, TenantId, Timestamp, commit};
use tidewire_gateway::Reader;

use super::extract::{Call, PathText, Query, Tenant, page_limit};
use super::{Answer, Api, Shared};
use crate::auth::Caller;
use crate::config::Scope;
use crate::problem::Problem;
use crate::serve::Place;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/commit", post(commit_all))
        .route("/events", post(publish).get(read).options(preflight))
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
    let is_published = !request.events.is_empty();
    let committed = api.publisher.commit(&tenant, request, call.idempotency()?).await?;
    if is_published {
        api.gateway.hold_publisher(&tenant).await;
    }
    Ok(committed)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    tenant: Option<TenantId>,
    after: Option<Position>,
    cursor: Option<String>,
    before: Option<Position>,
    #[serde(rename = "type")]
    kind: Option<String>,
    stream: Option<String>,
    user_id: Option<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    limit: Option<u32>,
}

/// A page of the log, or the log as it grows: as the caller accepts.
async fn read(State(api): State<Shared>, mut request: Request<Body>) -> Answer {
    match Wanted::of(request.headers())? {
        Wanted::Page => {
            let (mut parts, _) = request.into_parts();
            let caller = Caller::from_request_parts(&mut parts, &api).await?;
            list(&api, caller, Query::from_request_parts(&mut parts, &api).await?.0).await
        }
        Wanted::Stream => {
            super::mark_address(&api, &mut request);
            let (parts, _) = request.into_parts();
            let mut answer = match follow(&api, &parts).await {
                Ok(answer) => answer,
                Err(problem) => problem.into_response(),
            };
            api.gateway.mark_origin(&parts.headers, answer.headers_mut());
            Ok(answer)
        }
    }
}

async fn preflight(State(api): State<Shared>, headers: HeaderMap) -> Response {
    match api.gateway.follow_preflight(&headers) {
        Some(answer) => answer.map(Body::new),
        None => super::no_method().await.into_response(),
    }
}

/// What a caller accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Page,
    Stream,
}

impl Wanted {
    /// By the `Accept` header: who names `text/event-stream` gets it. Code `request.not_acceptable`.
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut accepted = headers.get_all(header::ACCEPT).iter().peekable();
        if accepted.peek().is_none() {
            return Ok(Self::Page);
        }
        let mut found = None;
        for kind in accepted.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')) {
            let mut parts = kind.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let is_refused = |part: &str| {
                let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
                weight.is_some_and(|weight| weight.trim().parse() == Ok(0.0))
            };
            if parts.any(is_refused) {
                continue;
            }
            match name.as_str() {
                "text/event-stream" => return Ok(Self::Stream),
                "application/json" | "application/*" | "*/*" => found = Some(Self::Page),
                _ => {}
            }
        }
        found.ok_or_else(|| {
            let detail = "Accept: this path answers with application/json or text/event-stream";
            Problem::with_status(Error::invalid("request.not_acceptable", detail), StatusCode::NOT_ACCEPTABLE)
        })
    }
}

/// Follows the log: all of it with an API key, and with a user's credential what that user may see.
async fn follow(api: &Api, parts: &Parts) -> Answer {
    let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let reader = match api.keys.verify(authorization) {
        Ok(caller) => {
            caller.require(Scope::Read)?;
            let named: Tenant = Query::of(&parts.uri)?.0;
            Reader::Tenant(caller.tenant(named.tenant.as_ref(), api.tenants.as_deref())?)
        }
        // Nobody checks users' credentials here, so it can only have been meant as a key.
        Err(error) if authorization.is_some() && !api.knows_users() => return Err(error.into()),
        Err(_) => Reader::EndUser,
    };
    let answer = api.gateway.follow(parts, reader).await?;
    // As with sockets, the gateway counts it from now on.
    if let Some(place) = parts.extensions.get::<Place>() {
        place.give_back();
    }
    Ok(answer.map(Body::new))
}

async fn list(api: &Api, caller: Caller, query: ListQuery) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant(query.tenant.as_ref(), api.tenants.as_deref())?;
    let limit = page_limit(query.limit, 100, LogQuery::MAX)?;
    let wrong = || Error::invalid("cursor.invalid", "cursor: expected a nextCursor of an earlier page");
    let cursor = query.cursor.map(|cursor| cursor.parse().map(Position).map_err(|_| wrong())).transpose()?;
    let mut query = LogQuery {
        after: cursor.or(query.after).unwrap_or_default(),
        up_to: query.before.map(|before| Position(before.0.saturating_sub(1))),
        limit,
        kind: query.kind,
        stream: query.stream,
        user: query.user_id,
        from: query.from,
        to: query.to,
    };
    let store = api.publisher.store();
    let items = store.read(&tenant, query.clone()).await?;
    let bytes: usize = items.iter().map(|event| event.data.get().len()).sum();
    let is_full = items.len() == limit as usize || bytes >= LogQuery::MAX_BYTES;
    let mut next_cursor = None;
    if let Some(last) = items.last().filter(|_| is_full) {
        (query.after, query.limit) = (last.position, 1);
        let is_more = !store.read(&tenant, query).await?.is_empty();
        next_cursor = is_more.then(|| last.position.to_string());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_says_whether_it_is_a_page_or_a_stream() {
        for (accept, expected) in [
            (vec![], Some(Wanted::Page)),
            (vec!["*/*"], Some(Wanted::Page)),
            (vec!["application/json"], Some(Wanted::Page)),
            (vec!["text/html, */*;q=0.8"], Some(Wanted::Page)),
            (vec!["text/event-stream"], Some(Wanted::Stream)),
            (vec!["application/json", "Text/Event-Stream; q=0.5"], Some(Wanted::Stream)),
            (vec!["text/event-stream;q=0, application/json"], Some(Wanted::Page)),
            (vec!["text/event-stream;q=0"], None),
            (vec!["text/html"], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in &accept {
                headers.append(header::ACCEPT, line.parse().expect("a header"));
            }
            assert_eq!(Wanted::of(&headers).ok(), expected, "{accept:?}");
        }
    }
}
