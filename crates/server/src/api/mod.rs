//! The `/v1` API: one file per noun, each complete with its shapes and routes.

mod bulk;
mod dead_letters;
mod events;
mod extract;
mod flows;
mod health;
mod jobs;
mod leases;
mod queues;
mod realtime;
mod schedules;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tidewire_core::catalog::Catalog;
use tidewire_core::{Error, TenantId};
use tidewire_gateway::Gateway;
use tidewire_runtime::Publisher;
use tokio_util::sync::CancellationToken;

use crate::auth::{ApiKeys, Tokens};
use crate::problem::Problem;

/// Everything the API needs.
pub struct Api {
    /// What commits.
    pub publisher: Arc<Publisher>,
    /// The sockets.
    pub gateway: Gateway,
    /// Who may call.
    pub keys: ApiKeys,
    /// Tokens of end users, when the catalog uses them.
    pub tokens: Arc<Option<Tokens>>,
    /// Which tenants exist; absent means any.
    pub tenants: Option<Vec<TenantId>>,
    /// Told of how many jobs of a queue the workers of this process may run at once from now on.
    pub resize: Option<Resize>,
    /// The largest request body in bytes.
    pub max_body_bytes: usize,
    /// Cancelled when the process begins to stop: calls that wait answer at once with what they have.
    pub stopping: CancellationToken,
}

/// Takes the name of a queue and its new concurrency in this process.
pub type Resize = Arc<dyn Fn(&str, u32) + Send + Sync>;

type Shared = Arc<Api>;
type Answer = Result<Response, Problem>;

impl Api {
    fn catalog(&self) -> &Arc<Catalog> {
        self.publisher.expander().catalog()
    }
}

/// The routes of Tidewire, to be served alone or merged into an app's own router.
pub fn router(api: Arc<Api>) -> Router {
    let v1 = Router::new()
        .merge(events::routes())
        .merge(jobs::routes())
        .merge(dead_letters::routes())
        .merge(queues::routes())
        .merge(flows::routes())
        .merge(leases::routes())
        .merge(schedules::routes())
        .merge(tokens::routes())
        .merge(realtime::routes())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method);
    Router::new()
        .nest("/v1", v1)
        .route("/v1/", any(no_route))
        .merge(health::routes())
        .route("/socket.io/socket.io.min.js", get(client_bundle))
        .route("/socket.io/", any(socket_io))
        .route("/socket.io", any(socket_io))
        .with_state(api)
}

async fn no_route() -> Problem {
    Error::not_found("http.no_route", "there is no such path").into()
}

async fn no_method() -> Problem {
    let error = Error::invalid("http.no_method", "this path does not take this method");
    Problem::with_status(error, StatusCode::METHOD_NOT_ALLOWED)
}

async fn socket_io(State(api): State<Shared>, request: Request) -> Response {
    api.gateway.handle(request).await.map(Body::new)
}

/// The stock browser client, version 4.8.4 as published on npm, so that a page needs no bundler.
async fn client_bundle() -> Response {
    let script = include_str!("../../assets/socket.io.min.js");
    let javascript = HeaderValue::from_static("text/javascript; charset=utf-8");
    let cache = HeaderValue::from_static("public, max-age=86400");
    ([(header::CONTENT_TYPE, javascript), (header::CACHE_CONTROL, cache)], script).into_response()
}
