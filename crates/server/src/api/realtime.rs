//! `/realtime`: who is connected, and putting clients out.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use tidewire_core::commit::Delay;
use tidewire_core::{Error, Result, TenantId, Timestamp};
use tidewire_gateway::Whom;

use super::extract::{Call, Query, page_limit};
use super::{Answer, Shared};
use crate::auth::Caller;
use crate::config::Scope;
use crate::revoke::{DEFAULT_TTL, LONGEST_TTL, Subject};

/// The most connections or rooms on one page.
const MOST: u32 = 1_000;

/// How far ahead of this process's clock an issuer's may be.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/realtime/connections", get(connections))
        .route("/realtime/rooms", get(rooms))
        .route("/realtime/presence", get(presence))
        .route("/realtime/disconnect", post(disconnect))
        .route("/realtime/revoke", post(revoke))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConnectionsQuery {
    tenant: Option<TenantId>,
    user: Option<String>,
    room: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

async fn connections(State(api): State<Shared>, caller: Caller, Query(query): Query<ConnectionsQuery>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant_or_all(query.tenant.as_ref(), api.tenants.as_deref())?;
    let limit = page_limit(query.limit, 100, MOST)?;
    let whom = Whom { tenant, user: query.user, room: query.room, socket: None };
    let page = api.gateway.connections(&whom, query.cursor.as_deref(), limit as usize)?;
    let mut answer = json!(page);
    if caller.tenant.is_none() {
        answer["stats"] = json!(api.gateway.stats());
    }
    Ok(Json(answer).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RoomsQuery {
    tenant: Option<TenantId>,
    limit: Option<u32>,
    cursor: Option<String>,
}

async fn rooms(State(api): State<Shared>, caller: Caller, Query(query): Query<RoomsQuery>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant_or_all(query.tenant.as_ref(), api.tenants.as_deref())?;
    let limit = page_limit(query.limit, 100, MOST)?;
    let page = api.gateway.rooms(tenant.as_ref(), query.cursor.as_deref(), limit as usize);
    Ok(Json(page).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PresenceQuery {
    tenant: Option<TenantId>,
    room: String,
    limit: Option<u32>,
    cursor: Option<String>,
}

async fn presence(State(api): State<Shared>, caller: Caller, Query(query): Query<PresenceQuery>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant(query.tenant.as_ref(), api.tenants.as_deref())?;
    let limit = page_limit(query.limit, 100, MOST)? as usize;
    let page = api.gateway.presence(&tenant, &query.room, query.cursor.as_deref(), limit)?;
    let next_cursor = page.members.last().filter(|_| page.members.len() == limit).map(|member| member.user_id.clone());
    let answer = json!({ "room": query.room, "items": page.members, "total": page.total, "nextCursor": next_cursor });
    Ok(Json(answer).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DisconnectBody {
    tenant: Option<TenantId>,
    user_id: Option<String>,
    room: Option<String>,
    socket_id: Option<String>,
}

async fn disconnect(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Admin)?;
    let body: DisconnectBody = call.json()?;
    let named = [body.tenant.as_ref().map(TenantId::as_str), body.user_id.as_deref(), body.room.as_deref()];
    require_one(named.iter().any(Option::is_some) || body.socket_id.is_some(), "tenant, userId, room, socketId")?;
    let tenant = call.caller.tenant_or_all(body.tenant.as_ref(), api.tenants.as_deref())?;
    let whom = Whom { tenant, user: body.user_id, room: body.room, socket: body.socket_id };
    let disconnected = api.gateway.disconnect(&whom);
    tracing::info!(?whom, disconnected, "an operator disconnected sockets");
    Ok(Json(json!({ "disconnected": disconnected })).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RevokeBody {
    tenant: Option<TenantId>,
    user_id: Option<String>,
    session_id: Option<String>,
    token_id: Option<String>,
    before: Option<Timestamp>,
    ttl: Option<Delay>,
}

impl RevokeBody {
    /// Whose credentials are meant. Code `request.invalid` when that is not said, or said twice.
    fn subject(&self) -> Result<Subject> {
        let (user, session, token) = (self.user_id.clone(), self.session_id.clone(), self.token_id.clone());
        let named = [user.map(Subject::User), session.map(Subject::Session), token.map(Subject::Token)];
        let mut named = named.into_iter().flatten();
        let subject = named.next();
        if named.next().is_some() {
            return Err(Error::invalid("request.invalid", "expected at most one of userId, sessionId and tokenId"));
        }
        if let Some(Subject::User(id) | Subject::Session(id) | Subject::Token(id)) = &subject
            && !(1..=200).contains(&id.len())
        {
            return Err(Error::invalid("request.invalid", "userId, sessionId, tokenId: expected 1 to 200 bytes"));
        }
        require_one(subject.is_some() || self.tenant.is_some(), "tenant, userId, sessionId, tokenId")?;
        Ok(subject.unwrap_or(Subject::Everybody))
    }
}

async fn revoke(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Admin)?;
    let body: RevokeBody = call.json()?;
    let subject = body.subject()?;
    let tenant = call.caller.tenant_or_all(body.tenant.as_ref(), api.tenants.as_deref())?;
    let now = api.publisher.clock().now();
    let before = body.before.unwrap_or(now);
    if before > now + CLOCK_SKEW {
        return Err(Error::invalid("request.invalid", "before: expected a time that is not in the future").into());
    }
    let ttl = body.ttl.map_or(DEFAULT_TTL, |ttl| ttl.0);
    if ttl.is_zero() || ttl > LONGEST_TTL {
        return Err(Error::invalid("request.invalid", "ttl: expected more than 0 and at most 400d").into());
    }
    let mut disconnected = 0;
    let put_out = || disconnected = api.gateway.end_revoked();
    let until = api.revocations.revoke(tenant.clone(), subject.clone(), before, ttl, put_out).await?;
    tracing::info!(tenant = tenant.as_ref().map(TenantId::as_str), ?subject, %before, disconnected, "credentials were revoked");
    Ok(Json(json!({ "before": before, "until": until, "disconnected": disconnected })).into_response())
}

/// Nothing given would mean everybody, which nobody asks for by leaving something out.
fn require_one(is_given: bool, names: &str) -> Result<()> {
    if is_given {
        return Ok(());
    }
    Err(Error::invalid("request.invalid", format!("expected at least one of {names}")))
}
