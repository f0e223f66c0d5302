//! `/metrics` and `/v1/stats`: what is counted, for monitoring and for people.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tidewire_core::TenantId;

use super::extract::Query;
use super::{Answer, Shared};
use crate::auth::Caller;
use crate::config::Scope;
use crate::metrics;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/stats", get(stats))
}

pub(super) fn outside() -> Router<Shared> {
    Router::new().route("/metrics", get(exposition))
}

/// The numbers are of all tenants, and some of them name tenants: so a key of one tenant does not see them.
async fn exposition(State(api): State<Shared>, headers: HeaderMap) -> Answer {
    if !api.metrics.public {
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let caller = api.keys.verify(authorization)?;
        caller.require(Scope::Read)?;
        caller.require_all_tenants()?;
    }
    let text = metrics::render(&api).await;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(metrics::MEDIA_TYPE))], text).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StatsQuery {
    tenant: Option<TenantId>,
}

async fn stats(State(api): State<Shared>, caller: Caller, Query(query): Query<StatsQuery>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant_or_all(query.tenant.as_ref(), api.tenants.as_deref())?;
    let body = match &tenant {
        Some(tenant) => metrics::tenant_stats(&api, tenant).await?,
        None => metrics::stats(&api).await?,
    };
    Ok(Json(body).into_response())
}
