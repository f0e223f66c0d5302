//! A running app.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use parking_lot::Mutex;
use rusqlite::Connection;
use tidewire_core::catalog::Catalog;
use tidewire_core::commit::{Committed, NewJob, Origin, Request};
use tidewire_core::store::Store;
use tidewire_core::{Error, Result, TenantId, Timestamp};
use tidewire_gateway::Gateway;
use tidewire_runtime::{Scheduler, Workers};
use tidewire_server::auth::{Life, Refused};
use tidewire_server::{Api, router, serve};
use tidewire_store::Sqlite;
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::builder::Builder;
use crate::job::Job;

/// How long a stop takes its time.
#[derive(Clone, Copy)]
pub(crate) struct Drain {
    /// For running jobs, and for open requests.
    pub(crate) work: Duration,
    /// For sockets to move elsewhere.
    pub(crate) sockets: Duration,
}

pub(crate) struct Parts {
    pub(crate) api: Arc<Api>,
    pub(crate) sqlite: Option<Sqlite>,
    /// What works by itself; nothing in a test that drives everything.
    pub(crate) work: Option<(Workers, Scheduler)>,
    pub(crate) drain: Drain,
    /// The most HTTP connections, those that have become sockets not counted.
    pub(crate) max_connections: usize,
}

/// A running app: its store is open, its workers and schedules run, its sockets are live. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Running>);

struct Running {
    api: Arc<Api>,
    sqlite: Option<Sqlite>,
    /// Taken by the first stop.
    work: Mutex<Option<(Workers, Scheduler)>>,
    /// Workers and schedules have stopped.
    stopped: OnceCell<()>,
    /// The store is closed.
    closed: OnceCell<()>,
    drain: Drain,
    max_connections: usize,
}

impl App {
    /// Begins an app whose catalog is in `dir`.
    pub fn builder(dir: impl Into<PathBuf>) -> Builder {
        Builder::new(dir)
    }

    pub(crate) fn new(parts: Parts) -> Self {
        let app = Self(Arc::new(Running {
            api: parts.api,
            sqlite: parts.sqlite,
            work: Mutex::new(parts.work),
            stopped: OnceCell::new(),
            closed: OnceCell::new(),
            drain: parts.drain,
            max_connections: parts.max_connections,
        }));
        let running = Arc::downgrade(&app.0);
        let resize = move |queue: &str, concurrency| {
            if let Some(running) = running.upgrade() {
                Self(running).resize_queue(queue, concurrency);
            }
        };
        drop(app.0.api.resize.set(Arc::new(resize)));
        app
    }

    /// The routes of the HTTP API and of the sockets.
    pub fn router(&self) -> Router {
        router(self.0.api.clone())
    }

    /// The catalog.
    pub fn catalog(&self) -> &Arc<Catalog> {
        self.0.api.publisher.expander().catalog()
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        self.0.api.publisher.store()
    }

    /// The sockets.
    pub fn gateway(&self) -> &Gateway {
        &self.0.api.gateway
    }

    /// The time, as everything in this app sees it.
    pub fn now(&self) -> Timestamp {
        self.0.api.publisher.clock().now()
    }

    /// Commits events and jobs: all of them are there when this answers, or none is. The answer to events of a tenant whose sockets are
    /// far behind comes a little later, see [`Gateway::hold_publisher`].
    pub async fn commit(&self, tenant: &TenantId, request: Request) -> Result<Committed> {
        let committed = self.0.api.publisher.commit(tenant, request, None).await?;
        self.keep_pace(tenant, &committed).await;
        Ok(committed)
    }

    /// Nobody publishes faster than the sockets of the tenant can be written to.
    async fn keep_pace(&self, tenant: &TenantId, committed: &Committed) {
        if !committed.events.is_empty() {
            self.gateway().hold_publisher(tenant).await;
        }
    }

    /// Enqueues one job.
    pub async fn enqueue<J: Job>(&self, tenant: &TenantId, job: &J) -> Result<Committed> {
        self.enqueue_job(tenant, job.stage()?).await
    }

    /// Enqueues one job with options of its own.
    pub async fn enqueue_job(&self, tenant: &TenantId, job: NewJob) -> Result<Committed> {
        self.commit(tenant, Request { jobs: vec![job], ..Request::default() }).await
    }

    /// Runs an app-wide schedule now, beside its slots: one of the catalog, or one that an operator has put. It may be paused. Code
    /// `schedule.not_found`.
    pub async fn run_schedule(&self, key: &str) -> Result<Committed> {
        tidewire_runtime::run_schedule(&self.0.api.publisher, &TenantId::app(), key, None, None).await
    }

    /// Runs the app's own SQL in the transaction of a commit: the rows, the events and the jobs are all there, or none is.
    ///
    /// `work` gets the connection of the store's writer and an empty request to fill. It runs while every other write waits: a few
    /// statements, no IO of another kind. An error of it, or a request that is refused, undoes its rows.
    /// Code `store.no_sql` when the store is not SQLite.
    pub async fn transaction<T: Send + 'static>(
        &self,
        tenant: &TenantId,
        work: impl FnOnce(&Connection, &mut Request) -> Result<T> + Send + 'static,
    ) -> Result<(T, Committed)> {
        let sqlite = self.0.sqlite.as_ref().ok_or_else(|| {
            Error::invalid("store.no_sql", "only a SQLite store can run the app's own SQL in a commit")
        })?;
        let publisher = self.0.api.publisher.clone();
        let about = tenant.clone();
        let answer = Arc::new(Mutex::new(None));
        let kept = answer.clone();
        let committed = sqlite
            .commit_with(move |connection| {
                let mut request = Request::default();
                let value = work(connection, &mut request)?;
                let expansion = publisher.expand(&about, request, &Origin::default())?;
                *kept.lock() = Some((value, expansion.ephemeral));
                Ok(expansion.commit)
            })
            .await?;
        let (value, ephemeral) = answer
            .lock()
            .take()
            .ok_or_else(|| Error::internal("a transaction was answered without having run", "no value"))?;
        self.keep_pace(tenant, &committed).await;
        Ok((value, self.0.api.publisher.with_ephemeral(committed, &ephemeral)))
    }

    /// Sets how many jobs of a queue run at once in this process, from now on and until it ends: more begin at once; when it is fewer,
    /// running ones finish and are not replaced. 0 lets none begin. Answers whether this process works on the queue.
    pub fn resize_queue(&self, queue: &str, concurrency: u32) -> bool {
        self.0.work.lock().as_ref().is_some_and(|(workers, _)| workers.resize(queue, concurrency))
    }

    /// A token with which `user` can connect for the next `ttl`. Code `token.no_secret` where none can be signed.
    pub fn token(&self, tenant: &TenantId, user: &str, roles: &[String], ttl: Duration) -> Result<String> {
        let tokens = (*self.0.api.tokens).as_ref();
        let tokens = tokens.ok_or_else(|| Error::invalid("token.no_secret", "the catalog declares no [auth.jwt]"))?;
        tokens.mint(tenant, user, roles, serde_json::Map::new(), Life { from: self.now(), until: self.now() + ttl })
    }

    /// The user and tenant that a token names. Codes `auth.invalid`, and `unavailable` when the login's keys cannot be fetched.
    pub async fn verify(&self, token: &str) -> Result<(TenantId, Option<Arc<str>>)> {
        let refused = || Error::new(tidewire_core::Kind::Unauthenticated, "auth.invalid", "the token is not valid");
        let tokens = (*self.0.api.tokens).as_ref().ok_or_else(refused)?;
        let principal = tokens.verify(token).await.map_err(|error| match error {
            Refused::Invalid(_) => refused(),
            Refused::Unchecked => Error::unavailable("the login's keys cannot be fetched now"),
        })?;
        if self.0.api.revocations.is_revoked(&principal) {
            return Err(refused());
        }
        Ok((principal.tenant, principal.user))
    }

    /// Ends when the process is told to stop: SIGTERM or ctrl-c, or [`App::stop`]. It listens from this call on, not only once it is
    /// awaited, so that a process which says that it is ready after this call can be stopped from then on.
    pub fn shutdown_signal(&self) -> impl Future<Output = ()> + Send + 'static {
        let stop = self.0.api.stopping.clone();
        let term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        async move {
            let term = async {
                match term {
                    Ok(mut term) => drop(term.recv().await),
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = term => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
    }

    /// Serves `router` on `listener` until the process is told to stop, then stops in order: no new claims and slots; sockets are sent
    /// elsewhere and no new requests taken, while running jobs and requests finish or are handed back; the store closes.
    pub async fn serve(&self, listener: TcpListener, router: Router) {
        self.serve_until(listener, router, self.shutdown_signal()).await;
    }

    /// Serves like [`App::serve`], until `told` ends.
    pub async fn serve_until(&self, listener: TcpListener, router: Router, told: impl Future<Output = ()>) {
        let closed = CancellationToken::new();
        let serving = serve::serve(self.0.max_connections, listener, router, closed.clone(), self.0.drain.work);
        let stop = async {
            told.await;
            self.0.api.stopping.cancel();
            let sockets = async {
                self.0.api.gateway.drain(self.0.drain.sockets).await;
                closed.cancel();
            };
            tokio::join!(sockets, self.stop_work());
        };
        tokio::join!(serving, stop);
        self.stop().await;
    }

    /// Stops workers and schedules and closes the store. Running jobs get the configured time to finish and are then handed back
    /// with their attempt refunded. A second call waits for the first.
    pub async fn stop(&self) {
        self.0.api.stopping.cancel();
        self.stop_work().await;
        let close = async {
            if let Err(error) = self.store().close().await {
                tracing::warn!(%error, "the store was not closed cleanly");
            }
        };
        self.0.closed.get_or_init(|| close).await;
    }

    async fn stop_work(&self) {
        let stop = async {
            let work = self.0.work.lock().take();
            if let Some((workers, scheduler)) = work {
                scheduler.stop().await;
                workers.stop(self.0.drain.work).await;
            }
        };
        self.0.stopped.get_or_init(|| stop).await;
    }
}
