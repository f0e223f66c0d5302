//! A gateway on a real port, a log in memory behind it, and a client that is nothing but sockets and bytes.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod client;
pub(crate) mod store;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidewire_core::catalog::{self, Catalog};
use tidewire_core::commit::{Committed, Expander, NewEvent, Origin, Request};
use tidewire_core::event::Position;
use tidewire_core::id::UuidV7;
use tidewire_core::principal::Principal;
use tidewire_core::store::{Answer, Commits};
use tidewire_core::time::{Clock, SystemClock};
use tidewire_core::{TenantId, Timestamp};
use tidewire_gateway::{Authenticate, Credential, Gateway, Options, Publish, Refusal};

use store::Fake;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

/// A running gateway.
pub(crate) struct Server {
    pub(crate) gateway: Gateway,
    pub(crate) store: Arc<Fake>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

pub(crate) fn catalog() -> Arc<Catalog> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/app");
    Arc::new(catalog::load(&dir).unwrap_or_else(|error| panic!("{error}")))
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::over(Arc::new(Fake::new("e1")), Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        Self::over(Arc::new(Fake::new("e1")), options).await
    }

    /// A gateway over a store that may have a past.
    pub(crate) async fn over(store: Arc<Fake>, options: Options) -> Self {
        let catalog = catalog();
        let ids = Arc::new(UuidV7::from_os(Arc::new(SystemClock)));
        let expander = Expander::new(catalog.clone(), Vec::new(), ids);
        let publisher = Arc::new(Publisher { expander, store: store.clone(), gateway: parking_lot::Mutex::new(None) });
        let gateway =
            Gateway::new(catalog, store.clone(), Arc::new(Tokens), publisher.clone(), Arc::new(SystemClock), options);
        *publisher.gateway.lock() = Some(gateway.clone());
        tidewire_core::store::Log::follow(&*store, gateway.follower());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let accepting = tokio::spawn(accept(listener, gateway.clone()));
        Self { gateway, store, publisher, address, accepting }
    }

    pub(crate) async fn publish(&self, tenant: &str, kind: &str, data: Value) -> Position {
        let tenant = TenantId::new(tenant).expect("tenant");
        let request = Request { events: vec![NewEvent::new(kind, data)], ..Request::default() };
        let committed = self.publisher.publish(&tenant, None, request).await.expect("published");
        committed.events.first().and_then(|event| event.position).unwrap_or_default()
    }

    /// The server has noticed that its clients are gone.
    pub(crate) async fn until_all_left(&self) {
        while self.gateway.stats().sockets > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// An event that only ann sees.
    pub(crate) async fn lead(&self, n: u64) {
        self.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n })).await;
    }

    pub(crate) async fn publish_for(&self, tenant: &str, kind: &str, data: Value, params: &[(&str, &str)]) {
        let mut event = NewEvent::new(kind, data);
        for (name, value) in params {
            event = event.param(name, *value);
        }
        let request = Request { events: vec![event], ..Request::default() };
        self.publisher.publish(&TenantId::new(tenant).expect("tenant"), None, request).await.expect("published");
    }

    /// As after kill -9: nothing is told to anybody, and the store is opened again by another process.
    pub(crate) async fn crash_and_restart(self) -> Self {
        self.accepting.abort();
        let store = Arc::new(self.store.reopened());
        self.gateway.drain(Duration::ZERO).await;
        Self::over(store, Options::default()).await
    }
}

async fn accept(listener: TcpListener, gateway: Gateway) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        tokio::spawn(serve(stream, gateway.clone()));
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, gateway: Gateway) {
    let service = hyper::service::service_fn(move |request| {
        let gateway = gateway.clone();
        async move { Ok::<_, std::convert::Infallible>(gateway.handle(request).await) }
    });
    let stream = hyper_util::rt::TokioIo::new(stream);
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).with_upgrades().await;
}

impl Server {
    /// Another port of the same gateway, behind something that is no bare TCP connection, as TLS would be.
    pub(crate) async fn wrapped(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, gateway) = (listener.local_addr().expect("address"), self.gateway.clone());
        tokio::spawn(async move {
            while let Ok((mut outer, _)) = listener.accept().await {
                let (inner, mut bridge) = tokio::io::duplex(16 * 1024);
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut outer, &mut bridge).await });
                tokio::spawn(serve(inner, gateway.clone()));
            }
        });
        address
    }
}

/// Tokens are `tenant/user/role,role` with `/seconds` to live at the end, `cross` for the claim of the cross-port view, or `slow`, which
/// takes a while to be checked.
pub(crate) struct Tokens;

impl Authenticate for Tokens {
    fn authenticate<'a>(
        &'a self,
        credential: Option<Credential<'a>>,
    ) -> Pin<Box<dyn Future<Output = Result<Principal, Refusal>> + Send + 'a>> {
        Box::pin(async move {
            let credential = credential.ok_or(Refusal::Missing)?;
            if credential.value == "outage" {
                return Err(Refusal::Unchecked);
            }
            let parts: Vec<&str> = credential.value.split('/').collect();
            let [tenant, user, roles, rest @ ..] = &parts[..] else {
                return Err(Refusal::Invalid("expected tenant/user/roles".to_owned()));
            };
            let roles: Arc<[String]> = roles.split(',').filter(|role| !role.is_empty()).map(str::to_owned).collect();
            let cross = rest.first() == Some(&"cross");
            if rest.first() == Some(&"slow") {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let claims = json!({ "id": user, "tenant": tenant, "roles": &*roles, "crossPort": cross });
            let seconds: Option<u64> = rest.first().and_then(|seconds| seconds.parse().ok());
            Ok(Principal {
                tenant: TenantId::new(tenant).map_err(|error| Refusal::Invalid(error.detail().to_owned()))?,
                user: Some((*user).into()),
                roles,
                claims: Arc::new(claims),
                expires: seconds.map(|seconds| SystemClock.now() + Duration::from_secs(seconds)),
                recheck: None,
            })
        })
    }
}

/// Expands by the catalog and commits to the fake store, as the server crate does with a real one.
pub(crate) struct Publisher {
    expander: Expander,
    store: Arc<Fake>,
    gateway: parking_lot::Mutex<Option<Gateway>>,
}

impl Publish for Publisher {
    fn publish(&self, tenant: &TenantId, _user: Option<&str>, request: Request) -> Answer<'_, Committed> {
        let expanded = self.expander.expand(tenant, request, &Origin::default(), Timestamp::default());
        Box::pin(async move {
            let expansion = expanded?;
            let committed = self.store.commit(expansion.commit).await?;
            let gateway = self.gateway.lock().clone();
            if let Some(gateway) = gateway {
                gateway.deliver_ephemeral(&expansion.ephemeral);
            }
            Ok(committed)
        })
    }
}
