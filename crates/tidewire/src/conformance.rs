//! A server for the protocols' own test suites: everything that a client of the gateway meets, with the suites' echo behind it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::any;
use serde_json::json;
use tidewire_core::catalog::{Catalog, parse};
use tidewire_core::commit::{Committed, Request as Commit};
use tidewire_core::id::UuidV7;
use tidewire_core::principal::Principal;
use tidewire_core::store::{Answer, Store};
use tidewire_core::time::SystemClock;
use tidewire_core::{Error, TenantId};
use tidewire_gateway::{Authenticate, Credential, Echo, Gateway, Options, Publish, Refusal};
use tidewire_server::config::Parser;
use tidewire_server::serve;
use tidewire_store::Memory;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::builder::parser;

/// The namespaces of the suite, and no limit that it could reach.
const CATALOG: &str = r#"
[app]
name = "conformance"
tenant = "suite"

[realtime]
namespaces = ["/", "/custom"]
rate = { messages = "1000000/s", connects = "1000000/s" }
"#;

/// Serves until the process ends: `/engine.io/` for the suite of engine.io-protocol, `/socket.io/` for that of socket.io-protocol, and
/// `/echo`, a bare WebSocket, for Autobahn. Nothing is kept, everybody gets in.
///
/// Pings come every `heartbeat`, 300 ms for the suites, and a pong may take two thirds of it; a client has 1.45 s, or one `heartbeat`, to
/// join a namespace; nobody is given a `pid`.
pub async fn conformance(
    listener: TcpListener,
    encoding: Parser,
    compression: bool,
    heartbeat: Duration,
) -> Result<(), Error> {
    let catalog = Arc::new(parse(CATALOG).map_err(|error| Error::internal("the conformance catalog", error))?);
    let clock = Arc::new(SystemClock);
    let store = Memory::open(clock.clone(), Arc::new(UuidV7::from_os(clock)))?;
    let suite = Options {
        ping_interval: heartbeat,
        ping_timeout: heartbeat * 2 / 3,
        // The suites look on for three pings without joining a namespace, and wait at most 2 s for the end: midway.
        connect_timeout: heartbeat.max(Duration::from_millis(1_450)),
        parser: parser(encoding),
        compression,
        recovery: false,
        ..Options::default()
    };
    let engine = Options {
        path: "/engine.io/".to_owned(),
        echo: Some(Echo::Engine),
        // Nobody joins a namespace there.
        connect_timeout: FOR_EVER,
        ..suite.clone()
    };
    let bare = Options {
        path: "/echo".to_owned(),
        echo: Some(Echo::WebSocket),
        connect_timeout: FOR_EVER,
        ping_interval: FOR_EVER,
        max_message: 16 * 1024 * 1024,
        max_backlog: 16 * 1024 * 1024,
        ..suite.clone()
    };
    let socket = Options { echo: Some(Echo::Socket), ..suite };
    let mut router = Router::new();
    for options in [engine, bare, socket] {
        let path = options.path.clone();
        let gateway = gateway(&catalog, &store, options);
        router = router
            .route(&path, any(move |request: Request| async move { gateway.handle(request).await.map(Body::new) }));
    }
    serve::serve(10_000, listener, router, CancellationToken::new(), Duration::ZERO).await;
    Ok(())
}

/// Longer than any suite runs.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

fn gateway(catalog: &Arc<Catalog>, store: &Arc<dyn Store>, options: Options) -> Gateway {
    let clock = Arc::new(SystemClock);
    Gateway::new(catalog.clone(), store.clone(), Arc::new(Anybody), Arc::new(Nothing), clock, options)
}

/// Lets everybody in, as nobody in particular.
struct Anybody;

impl Authenticate for Anybody {
    fn authenticate<'a>(
        &'a self,
        _: Option<Credential<'a>>,
    ) -> Pin<Box<dyn Future<Output = Result<Principal, Refusal>> + Send + 'a>> {
        Box::pin(async {
            let tenant = TenantId::new("suite").map_err(|_| Refusal::Unchecked)?;
            Ok(Principal {
                tenant,
                user: None,
                roles: Arc::new([]),
                claims: Arc::new(json!({})),
                expires: None,
                recheck: None,
            })
        })
    }
}

/// Publishes nothing: what clients send comes back before it could be asked to.
struct Nothing;

impl Publish for Nothing {
    fn publish(&self, _: &TenantId, _: Option<&str>, _: Commit) -> Answer<'_, Committed> {
        Box::pin(async { Err(Error::invalid("conformance.no_publish", "the conformance server publishes nothing")) })
    }
}
