//! `/health`: whether the process lives, and whether it can serve.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tidewire_core::TenantId;

use super::Shared;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/health/live", get(live)).route("/health/ready", get(ready)).route("/health/ws", get(sockets))
}

async fn live() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// Ready means that the store answers and that no stop has begun: whoever balances the load is to send new clients elsewhere while
/// this process still serves those it has.
async fn ready(State(api): State<Shared>) -> Response {
    let store = api.publisher.store();
    let (status, word) = if api.stopping.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping")
    } else if store.head(&TenantId::app()).await.is_err() {
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
    } else {
        (StatusCode::OK, "ok")
    };
    let body = json!({ "status": word, "app": api.catalog().app.name, "durability": store.durability().as_str() });
    (status, Json(body)).into_response()
}

async fn sockets(State(api): State<Shared>) -> Response {
    Json(json!({ "status": "ok", "realtime": api.gateway.stats() })).into_response()
}
