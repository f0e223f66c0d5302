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
mod stats;
mod tokens;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tidewire_core::catalog::Catalog;
use tidewire_core::{Error, TenantId};
use tidewire_gateway::{ClientAddress, Gateway};
use tidewire_runtime::Publisher;
use tokio_util::sync::CancellationToken;

use crate::auth::{ApiKeys, Tokens};
use crate::config;
use crate::problem::Problem;
use crate::revoke::Revocations;
use crate::serve::Peer;

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
    /// Credentials of end users that were revoked.
    pub revocations: Arc<Revocations>,
    /// Addresses of proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpAddr>,
    /// Which tenants exist; absent means any.
    pub tenants: Option<Vec<TenantId>>,
    /// What monitoring may see.
    pub metrics: config::Metrics,
    /// When this process began to serve.
    pub started: Instant,
    /// Told of how many jobs of a queue the workers of this process may run at once from now on.
    pub resize: OnceLock<Resize>,
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

    /// Whether credentials of end users are checked at all.
    fn knows_users(&self) -> bool {
        self.tokens.is_some() || self.catalog().auth.introspect.is_some()
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
        .merge(stats::routes())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method);
    Router::new()
        .nest("/v1", v1)
        .route("/v1/", any(no_route))
        .merge(health::routes())
        .merge(stats::outside())
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

async fn socket_io(State(api): State<Shared>, mut request: Request) -> Response {
    mark_address(&api, &mut request);
    api.gateway.handle(request).await.map(Body::new)
}

/// Notes where the client is: the other end of the connection, or what a trusted proxy says of it.
fn mark_address(api: &Api, request: &mut Request) {
    let Some(Peer(peer)) = request.extensions().get::<Peer>().copied() else { return };
    let address = client_address(peer, &api.trusted_proxies, request.headers());
    request.extensions_mut().insert(ClientAddress(address));
}

/// Each proxy appends the address that it was called from. From behind, the first one that is no trusted proxy is the client's; what
/// stands before it the client could have written itself.
fn client_address(peer: IpAddr, trusted: &[IpAddr], headers: &HeaderMap) -> IpAddr {
    let mut address = peer;
    let lines: Vec<&str> = headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok()).collect();
    for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        if !trusted.contains(&address) {
            break;
        }
        let Some(hop) = hop_address(hop.trim()) else { break };
        address = hop.to_canonical();
    }
    address
}

/// An address, as some proxies write it with its port or in brackets.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    bare.parse().ok().or_else(|| hop.parse().ok().map(|hop: SocketAddr| hop.ip()))
}

/// The stock browser client, version 4.8.4 as published on npm, so that a page needs no bundler.
async fn client_bundle() -> Response {
    let script = include_str!("../../assets/socket.io.min.js");
    let javascript = HeaderValue::from_static("text/javascript; charset=utf-8");
    let cache = HeaderValue::from_static("public, max-age=86400");
    ([(header::CONTENT_TYPE, javascript), (header::CACHE_CONTROL, cache)], script).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_say_where_a_client_is() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let headers = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", HeaderValue::from_static(line));
            }
            headers
        };
        let trusted = [address("10.0.0.1"), address("10.0.0.2")];
        for (peer, lines, expected) in [
            ("9.9.9.9", vec!["1.1.1.1"], "9.9.9.9"),
            ("10.0.0.1", vec!["1.1.1.1:4711, 10.0.0.2:80"], "1.1.1.1"),
            ("10.0.0.1", vec!["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", vec!["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", vec![], "10.0.0.1"),
            ("10.0.0.1", vec!["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", vec!["6.6.6.6", "1.1.1.1, 10.0.0.2"], "1.1.1.1"),
            ("10.0.0.1", vec!["1.1.1.1, nonsense"], "10.0.0.1"),
            ("10.0.0.1", vec!["::ffff:1.1.1.1"], "1.1.1.1"),
        ] {
            assert_eq!(
                client_address(address(peer), &trusted, &headers(&lines)),
                address(expected),
                "{peer} {lines:?}"
            );
        }
    }
}
