//! `/realtime`: who is connected.

use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::extract::{Query, Tenant};
use super::{Answer, Shared};
use crate::auth::Caller;
use crate::config::Scope;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/realtime/connections", get(connections))
}

async fn connections(State(api): State<Shared>, caller: Caller, Query(query): Query<Tenant>) -> Answer {
    caller.require(Scope::Read)?;
    let tenant = caller.tenant_or_all(query.tenant.as_ref(), api.tenants.as_deref())?;
    let items = api.gateway.connections(tenant.as_ref());
    let mut answer = json!({ "items": items });
    if caller.tenant.is_none() {
        answer["stats"] = json!(api.gateway.stats());
    }
    Ok(Json(answer).into_response())
}
