//! The live page of `tidewire dev`, and the tokens and listings that it needs.

use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tidewire::store::JobQuery;
use tidewire::{App, Error, Kind, Problem, Result, TenantId};

/// How long a demo token lasts; the page fetches another one when it has ended.
const TOKEN_TTL: Duration = Duration::from_secs(12 * 3600);

/// How many jobs the page shows.
const JOBS_SHOWN: u32 = 20;

/// A port of the demo with the one salesperson who works there.
pub struct Port {
    /// The tenant.
    pub id: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The salesperson's id. The same in both ports, to show that it does not matter.
    pub user_id: &'static str,
    /// The salesperson's name.
    pub user_name: &'static str,
}

/// The two tenants of the demo.
pub const PORTS: [Port; 2] = [
    Port { id: "marina-bay", name: "Marina Bay", user_id: "sales-1", user_name: "Ada Lindqvist" },
    Port { id: "port-azure", name: "Port Azure", user_id: "sales-1", user_name: "Bruno Costa" },
];

pub(crate) fn routes(app: App) -> Router {
    let page = |kind: &'static str, text: &'static str| get(move || asset(kind, text));
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/demo") }))
        .route("/demo", page("text/html; charset=utf-8", include_str!("../live/index.html")))
        .route("/demo/app.js", page("text/javascript; charset=utf-8", include_str!("../live/app.js")))
        .route("/demo/style.css", page("text/css; charset=utf-8", include_str!("../live/style.css")))
        .route("/demo/ports", get(ports))
        .route("/demo/session", get(session))
        .route("/demo/jobs", get(jobs))
        .with_state(app)
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // The page runs its own two files and nothing else, whatever an event may contain.
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:"),
        ),
    ];
    (headers, text).into_response()
}

async fn ports() -> Json<Value> {
    Json(PORTS.iter().map(|port| json!({ "id": port.id, "name": port.name })).collect())
}

#[derive(Deserialize)]
struct Which {
    port: String,
}

async fn session(State(app): State<App>, Query(which): Query<Which>) -> Result<Json<Value>, Problem> {
    let port = PORTS
        .iter()
        .find(|port| port.id == which.port)
        .ok_or_else(|| Error::not_found("port.not_found", format!("there is no port {:?}", which.port)))?;
    let token = app.token(&TenantId::new(port.id)?, port.user_id, &["sales".to_owned()], TOKEN_TTL)?;
    Ok(Json(json!({
        "port": { "id": port.id, "name": port.name },
        "user": { "id": port.user_id, "name": port.user_name },
        "token": token,
    })))
}

/// The port's newest jobs, for the holder of a token of that port.
async fn jobs(State(app): State<App>, Query(which): Query<Which>, headers: HeaderMap) -> Result<Response, Problem> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let (tenant, _) = app.verify(bearer.unwrap_or_default()).await?;
    if tenant.as_str() != which.port {
        return Err(Error::new(Kind::NotFound, "port.not_found", "there is no such port for this token").into());
    }
    let query = JobQuery { tenant: Some(tenant), limit: JOBS_SHOWN, ..JobQuery::default() };
    Ok(Json(app.store().jobs(query).await?).into_response())
}
