//! `/tokens`: short-lived tokens with which an app's users connect.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tidewire_core::commit::Delay;
use tidewire_core::{Error, TenantId};

use super::extract::Call;
use super::{Answer, Shared};
use crate::auth::Life;
use crate::config::Scope;

/// The life of a token when none is given, and the longest.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
const LONGEST_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/tokens", post(mint))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenBody {
    tenant: Option<TenantId>,
    user: String,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    claims: Map<String, Value>,
    ttl: Option<Delay>,
}

async fn mint(State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Admin)?;
    let body: TokenBody = call.json()?;
    if !body.claims.is_empty() {
        // Claims open rooms that span tenants, so a key of one tenant cannot make them up.
        call.caller.require_all_tenants()?;
    }
    let tenant = call.caller.tenant(body.tenant.as_ref(), api.tenants.as_deref())?;
    if body.user.is_empty() || body.user.len() > 200 {
        return Err(Error::invalid("request.invalid", "user: expected 1 to 200 bytes").into());
    }
    let ttl = body.ttl.map_or(DEFAULT_TTL, |ttl| ttl.0);
    if ttl.is_zero() || ttl > LONGEST_TTL {
        return Err(Error::invalid("request.invalid", "ttl: expected more than 0 and at most 30d").into());
    }
    let tokens = (*api.tokens).as_ref().ok_or_else(|| {
        Error::invalid("token.no_secret", "this app's catalog declares no [auth.jwt], so there are no tokens to mint")
    })?;
    let from = api.publisher.clock().now();
    let life = Life { from, until: from + ttl };
    let token = tokens.mint(&tenant, &body.user, &body.roles, body.claims, life)?;
    Ok((StatusCode::CREATED, Json(json!({ "token": token, "expires": life.until }))).into_response())
}
