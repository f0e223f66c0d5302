//! What the clients of a program meet: a store with a past, and one process after another that serves it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tempfile::TempDir;
use tidewire_core::catalog::{self, Catalog};
use tidewire_core::commit::{Committed, Expander, NewEvent, Origin, Request};
use tidewire_core::id::UuidV7;
use tidewire_core::principal::Principal;
use tidewire_core::store::{Answer, Store};
use tidewire_core::time::{Clock, ManualClock};
use tidewire_core::{TenantId, Timestamp};
use tidewire_gateway::{Authenticate, Credential, Gateway, Options, Publish, Refusal};
use tidewire_store::{Memory, Sqlite, SqliteOptions};
use tokio::io::DuplexStream;
use tokio::runtime::Runtime;

use crate::forgetful::Forgetful;
use crate::oracle::{Kind, Logged, TENANTS, Whose};

static CATALOG: LazyLock<Arc<Catalog>> =
    LazyLock::new(|| Arc::new(catalog::parse(include_str!("app.toml")).unwrap_or_else(|error| panic!("{error}"))));

/// The store, the clock of everything, and the process that is running now.
pub(crate) struct World {
    clock: Arc<ManualClock>,
    store: Arc<dyn Store>,
    /// Where the store is when it is a file.
    disk: Option<TempDir>,
    tokens: Arc<Tokens>,
    options: Options,
    process: Option<Process>,
    /// Gateways of processes that were killed. Their sessions were never told to end.
    killed: Vec<Gateway>,
    /// The log of each tenant, as it was acknowledged.
    pub(crate) logs: [Vec<Logged>; 2],
    /// Every event that was published, by its number, with its tenant.
    pub(crate) all: Vec<(usize, Logged)>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Orderly,
    /// Killed when the store had what it was given.
    Killed,
    /// Killed before the store had what nobody waits for.
    KilledAtOnce,
}

/// A gateway with a runtime of its own, so that it can be gone from one moment to the next with all it had not written.
struct Process {
    gateway: Gateway,
    store: Arc<Forgetful>,
    publisher: Arc<Publisher>,
    runtime: Runtime,
}

impl World {
    /// `narrow` has little room for slow clients and for the relay.
    pub(crate) async fn new(on_disk: bool, narrow: bool) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
        let disk = on_disk.then(|| TempDir::new().expect("a directory"));
        let store = open(disk.as_ref(), &clock);
        let options = match narrow {
            true => Options { max_backlog: 900, max_relay_events: 3, ..Options::default() },
            false => Options::default(),
        };
        let tokens = Arc::new(Tokens::default());
        let logs = [Vec::new(), Vec::new()];
        let mut world =
            Self { clock, store, disk, tokens, options, process: None, killed: Vec::new(), logs, all: Vec::new() };
        world.start();
        world
    }

    fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let ids = Arc::new(UuidV7::from_os(self.clock.clone()));
        let store = Forgetful::over(self.store.clone());
        let publisher = Arc::new(Publisher {
            expander: Expander::new(CATALOG.clone(), Vec::new(), ids),
            store: store.clone(),
            clock: self.clock.clone(),
        });
        let entered = runtime.enter();
        let (tokens, clock) = (self.tokens.clone(), self.clock.clone());
        let options = self.options.clone();
        let gateway = Gateway::new(CATALOG.clone(), store.clone(), tokens, publisher.clone(), clock, options);
        drop(entered);
        self.store.follow(gateway.follower());
        self.process = Some(Process { gateway, store, publisher, runtime });
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("a process is always running")
    }

    pub(crate) fn gateway(&self) -> Gateway {
        self.process().gateway.clone()
    }

    /// A connection to the process: what a TCP connection would be, with little room on its way.
    pub(crate) fn dial(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(2_048);
        let gateway = self.gateway();
        let service = hyper::service::service_fn(move |request| {
            let gateway = gateway.clone();
            async move { Ok::<_, std::convert::Infallible>(gateway.handle(request).await) }
        });
        let theirs = hyper_util::rt::TokioIo::new(theirs);
        self.process().runtime.spawn(async move {
            drop(hyper::server::conn::http1::Builder::new().serve_connection(theirs, service).with_upgrades().await);
        });
        ours
    }

    /// Notes events as the next of their log, and answers what publishes them in one commit. Nobody else publishes, so what is noted
    /// becomes true, in the order in which it was noted.
    pub(crate) fn publish(&mut self, tenant: usize, events: Vec<Logged>) -> impl Future<Output = ()> + Send + use<> {
        let (first, time) = (self.all.len() as u64 + 1, self.clock.now());
        let numbered = events.into_iter().zip(first..).map(|(event, number)| Logged { number, time, ..event });
        let events: Vec<Logged> = numbered.collect();
        self.all.extend(events.iter().map(|event| (tenant, event.clone())));
        let published = |event: &Logged| NewEvent::new(event.kind.name(), event.data()).param("userId", event.user);
        let request = Request { events: events.iter().map(published).collect(), ..Request::default() };
        self.logs[tenant].extend(events.into_iter().filter(|event| event.kind != Kind::Typing));
        let head = self.head(tenant);
        let (publisher, gateway) = (self.process().publisher.clone(), self.gateway());
        async move {
            let id = TenantId::new(TENANTS[tenant]).expect("tenant");
            let (committed, ephemeral) = publisher.commit(&id, request).await;
            gateway.deliver_ephemeral(&ephemeral);
            if let Some(last) = committed.events.last() {
                assert_eq!(last.position.map(|at| at.0), Some(head), "positions have no gaps");
            }
        }
    }

    /// The log across tenants, as it is for a client of this one.
    pub(crate) fn across(&self, tenant: usize) -> Vec<Logged> {
        let across = self.all.iter().filter(|(_, event)| event.kind.is_across());
        let whose = |of: usize| if of == tenant { Whose::OwnAgain } else { Whose::Others };
        across.map(|(of, event)| Logged { whose: whose(*of), ..event.clone() }).collect()
    }

    pub(crate) fn head(&self, tenant: usize) -> u64 {
        self.logs[tenant].len() as u64
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.clock.set(self.clock.now() + by);
    }

    /// Ends the process and starts another one over the same store: in good order, or from one moment to the next.
    pub(crate) async fn restart(&mut self, ending: Ending) {
        let process = self.process.take().expect("a process is always running");
        let orderly = ending == Ending::Orderly;
        if orderly {
            process.gateway.drain(Duration::ZERO).await;
        }
        if ending != Ending::KilledAtOnce {
            // What the store was given, it has: it outlives the process here. It deals with its calls in their order.
            drop(process.publisher.commit(&TenantId::new("nobody").expect("tenant"), Request::default()).await);
        }
        process.store.kill();
        process.runtime.shutdown_background();
        self.killed.push(process.gateway);
        if self.disk.is_some() && orderly {
            self.store.close().await.expect("closed");
            self.store = open(self.disk.as_ref(), &self.clock);
        }
        self.start();
    }

    /// From now on the tokens that the user has are no longer good.
    pub(crate) fn revoke(&self, tenant: usize, user: &str) {
        *self.tokens.issued.lock().entry((TENANTS[tenant].to_owned(), user.to_owned())).or_default() += 1;
        self.process().gateway.end_revoked();
    }

    /// A token of today, or one from before everything.
    pub(crate) fn token(&self, tenant: usize, user: &str, roles: &[&str], stale: bool) -> String {
        let key = (TENANTS[tenant].to_owned(), user.to_owned());
        let issued = self.tokens.issued.lock().get(&key).copied().unwrap_or_default();
        let issued = if stale { 0 } else { issued };
        format!("{}/{user}/{}/{issued}", TENANTS[tenant], roles.join(","))
    }

    /// Ends everything. What the killed processes held is given back now that what they write no longer counts.
    pub(crate) async fn end(mut self) {
        if let Some(process) = self.process.take() {
            process.runtime.shutdown_background();
            self.killed.push(process.gateway);
        }
        for gateway in self.killed {
            gateway.drain(Duration::ZERO).await;
        }
        self.store.close().await.expect("closed");
    }
}

fn open(disk: Option<&TempDir>, clock: &Arc<ManualClock>) -> Arc<dyn Store> {
    let ids = Arc::new(UuidV7::from_os(clock.clone()));
    match disk {
        None => Memory::open(clock.clone(), ids).expect("a store"),
        Some(disk) => {
            let path = disk.path().join("model.db");
            let options = SqliteOptions { path, synced: false, on_fatal: Box::new(|error| panic!("{error}")) };
            Sqlite::open(options, clock.clone(), ids).expect("a store").store()
        }
    }
}

/// Tokens are `tenant/user/role,role/issued`. Everybody may be in both tenants.
#[derive(Default)]
struct Tokens {
    /// The least `issued` that is still good, by tenant and user.
    issued: Mutex<HashMap<(String, String), u64>>,
}

impl Authenticate for Tokens {
    fn authenticate<'a>(
        &'a self,
        credential: Option<Credential<'a>>,
    ) -> Pin<Box<dyn Future<Output = Result<Principal, Refusal>> + Send + 'a>> {
        Box::pin(async move {
            let parts: Vec<&str> = credential.ok_or(Refusal::Missing)?.value.split('/').collect();
            let &[tenant, user, roles, issued] = &parts[..] else {
                return Err(Refusal::Invalid("expected tenant/user/roles/issued".to_owned()));
            };
            let roles: Arc<[String]> = roles.split(',').filter(|role| !role.is_empty()).map(str::to_owned).collect();
            let issued: u64 = issued.parse().map_err(|_| Refusal::Missing)?;
            let claims = json!({
                "id": user, "tenant": tenant, "portId": tenant, "roles": &*roles, "tenants": TENANTS, "issued": issued,
                "homeTenant": tenant,
            });
            let principal = Principal {
                tenant: TenantId::new(tenant).map_err(|_| Refusal::Missing)?,
                user: Some(user.into()),
                roles,
                claims: Arc::new(claims),
                expires: None,
                recheck: None,
            };
            if self.is_revoked(&principal) { Err(Refusal::Invalid("revoked".to_owned())) } else { Ok(principal) }
        })
    }

    fn is_revoked(&self, principal: &Principal) -> bool {
        let text = |name: &str| principal.claims[name].as_str().unwrap_or_default().to_owned();
        let least = self.issued.lock().get(&(text("homeTenant"), text("id"))).copied().unwrap_or_default();
        principal.claims["issued"].as_u64().is_none_or(|issued| issued < least)
    }
}

/// Expands by the catalog and commits, as the server crate does.
struct Publisher {
    expander: Expander,
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
}

impl Publisher {
    async fn commit(&self, tenant: &TenantId, request: Request) -> (Committed, Vec<tidewire_core::event::Ephemeral>) {
        let expansion = self.expander.expand(tenant, request, &Origin::default(), self.clock.now()).expect("expanded");
        (self.store.commit(expansion.commit).await.expect("committed"), expansion.ephemeral)
    }
}

impl Publish for Publisher {
    fn publish(&self, tenant: &TenantId, _user: Option<&str>, request: Request) -> Answer<'_, Committed> {
        let tenant = tenant.clone();
        Box::pin(async move { Ok(self.commit(&tenant, request).await.0) })
    }
}
