//! From a catalog, a configuration and handlers to a running app.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tidewire_core::catalog::{AlertOn, Catalog, JobType, LoadError, Pattern, QueueSettings, load};
use tidewire_core::commit::{Expander, Subscription};
use tidewire_core::id::{Ids, UuidV7};
use tidewire_core::store::{QueueLimits, Store};
use tidewire_core::suggest::suggest;
use tidewire_core::time::{Clock, SystemClock};
use tidewire_core::{Error, Kind};
use tidewire_gateway::{Gateway, Options, Parser};
use tidewire_runtime::{
    EventHandler, Handlers, JobHandler, Lives, MESSAGE_TIMEOUT, MessageHandler, Middleware, Publisher, QueueOptions,
    Scheduler, Workers,
};
use tidewire_server::auth::{ApiKeys, Tokens};
use tidewire_server::revoke::Revocations;
use tidewire_server::session::Sessions;
use tidewire_server::{Api, Config, config};
use tidewire_store::{Memory, Sqlite, SqliteOptions};
use tokio_util::sync::CancellationToken;

use crate::app::{App, Drain, Parts};
use crate::job::Job;
use crate::sockets::{EndUsers, FromClients, ToGateway};

/// The queue of durable event handlers, unless the catalog declares one of this name.
const HANDLER_QUEUE: &str = "handlers";

/// Why an app could not be built.
#[derive(Debug)]
pub enum BuildError {
    /// The catalog has errors; one line each.
    Catalog(LoadError),
    /// The store, a key or a handler is wrong; one line.
    App(Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalog(error) => error.fmt(f),
            Self::App(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BuildError {}

impl From<Error> for BuildError {
    fn from(error: Error) -> Self {
        Self::App(error)
    }
}

/// Collects what an app is made of.
pub struct Builder {
    dir: PathBuf,
    config: Config,
    handlers: Handlers,
    subscriptions: Vec<(String, String)>,
    message_timeout: Duration,
    clock: Arc<dyn Clock>,
    synced: bool,
    on_fatal: Box<dyn FnOnce(&Error) + Send>,
}

impl Builder {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            config: Config::default(),
            handlers: Handlers::default(),
            subscriptions: Vec::new(),
            message_timeout: MESSAGE_TIMEOUT,
            clock: Arc::new(SystemClock),
            synced: true,
            on_fatal: Box::new(|_| {}),
        }
    }

    /// Where things are kept: `sqlite:FILE` or `memory:`.
    #[must_use]
    pub fn store(mut self, url: impl Into<String>) -> Self {
        self.config.store = Some(url.into());
        self
    }

    /// Everything that is configured, instead of the defaults.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Another clock than the system's.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Answers before the disk has synced: faster, and an end of power can lose the last answers. Shown wherever durability is shown.
    #[must_use]
    pub fn without_sync(mut self) -> Self {
        self.synced = false;
        self
    }

    /// What to do when the disk has failed and the store takes no more calls. A server should end; its supervisor starts it again.
    #[must_use]
    pub fn on_fatal(mut self, on_fatal: impl FnOnce(&Error) + Send + 'static) -> Self {
        self.on_fatal = Box::new(on_fatal);
        self
    }

    /// Gives handlers a value that they take as [`State<T>`](crate::State). There is one of each type; a later one replaces an earlier
    /// one. A handler that takes a type which nobody gave is an error of [`build`](Self::build), code `handler.missing_state`.
    #[must_use]
    pub fn state<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.handlers.state(value);
        self
    }

    /// Puts middleware around every run, inside of what was added before: the first one added sees a run first and its answer last.
    #[must_use]
    pub fn layer(mut self, layer: impl Middleware) -> Self {
        self.handlers.layer(layer);
        self
    }

    /// Runs jobs of type `J` in this process. The handler is an async function of the job and of up to five arguments that implement
    /// [`FromContext`](crate::FromContext). Data of another shape fails the job.
    #[must_use]
    pub fn job<J: Job, Args: 'static>(mut self, handler: impl JobHandler<J, Args>) -> Self {
        self.handlers.on_job(J::TYPE, handler);
        self
    }

    /// Hears events durably: one job per event, committed with it, retried like any other. `on` is a type or a pattern such as
    /// `ticket.*`; `name` tells handlers apart and must not change between deploys. The handler is an async function of up to five
    /// arguments, such as [`Heard<T>`](crate::Heard).
    #[must_use]
    pub fn on<Args: 'static>(mut self, on: &str, name: &str, handler: impl EventHandler<Args>) -> Self {
        let kind = handler_job(name);
        self.handlers.on_event(kind.as_str(), handler);
        self.subscriptions.push((on.to_owned(), kind));
        self
    }

    /// Answers a message of clients that the catalog declares. The handler is an async function of the message's data, and of up to five
    /// arguments such as [`MessageContext`](crate::MessageContext) and [`State<T>`](crate::State).
    ///
    /// The data is that of the declaration and was checked by it: the object of `data` as `D`, or the `args` as a tuple or list, those that were
    /// left out as null; `()` where it declares neither. What the handler answers is `result` of the acknowledgement. What it staged is
    /// committed before that, with what the declaration publishes and enqueues, all or nothing. An error's code and sentence are told to
    /// the client. A panic is `internal` for this message alone.
    #[must_use]
    pub fn message<D, Args>(mut self, name: &str, handler: impl MessageHandler<D, Args>) -> Self
    where
        D: DeserializeOwned + 'static,
        Args: 'static,
    {
        self.handlers.on_message(name, handler);
        self
    }

    /// How long a handler of a message may take before it is dropped and its client is answered `message.timed_out`. Default
    /// [`MESSAGE_TIMEOUT`]. It must be shorter than `realtime.pingTimeout`: meanwhile nothing that the connection sends is looked at, pongs
    /// included.
    #[must_use]
    pub fn message_timeout(mut self, limit: Duration) -> Self {
        self.message_timeout = limit;
        self
    }

    /// Opens the store and starts workers, scheduler and gateway.
    pub async fn build(self) -> Result<App, BuildError> {
        let assembled = self.assemble().await?;
        let Assembled { handlers, publisher, .. } = &assembled;
        let mut queues: BTreeMap<Arc<str>, QueueOptions> = BTreeMap::new();
        if handlers.kinds().next().is_some() {
            let handlers = QueueOptions { concurrency: 10, reserve: None, grace: QueueLimits::default().grace };
            queues.insert(HANDLER_QUEUE.into(), handlers);
            for queue in publisher.expander().catalog().queues.values() {
                let options = QueueOptions {
                    concurrency: queue.concurrency,
                    reserve: queue.reserve,
                    grace: queue.limits().grace,
                };
                queues.insert(queue.name.clone(), options);
            }
            // What was changed while an earlier process ran holds on.
            for (name, settings) in publisher.store().queue_settings().await? {
                if let (Some(options), Some(concurrency)) = (queues.get_mut(&name), settings.concurrency) {
                    options.concurrency = concurrency;
                }
            }
        }
        let worker: Arc<str> = format!("local-{}", std::process::id()).into();
        let workers = Workers::start(publisher.clone(), handlers.clone(), queues, worker);
        publisher.store().follow(workers.follower());
        let scheduler = Scheduler::start(publisher.clone());
        Ok(assembled.into_app(Some((workers, scheduler))))
    }

    /// A secret for the tokens of one test, unless there is one.
    #[cfg(feature = "testing")]
    pub(crate) fn with_test_secret(mut self) -> Result<Self, Error> {
        if self.config.auth.jwt.secret.is_none() {
            self.config.auth.jwt.secret = Some(tidewire_server::auth::random_secret()?);
        }
        Ok(self)
    }

    /// Everything but what works by itself: nothing claims jobs and nothing fires slots.
    pub(crate) async fn assemble(self) -> Result<Assembled, BuildError> {
        let catalog = Arc::new(load(&self.dir).map_err(BuildError::Catalog)?);
        self.assemble_with(catalog).await.map_err(BuildError::App)
    }

    async fn assemble_with(self, catalog: Arc<Catalog>) -> Result<Assembled, Error> {
        let Self { config, handlers, clock, .. } = self;
        handlers.check()?;
        for kind in handlers.kinds().filter(|kind| !kind.starts_with("on:")) {
            if !catalog.jobs.contains_key(&**kind) {
                return Err(undeclared(kind, &catalog));
            }
        }
        for name in handlers.messages() {
            if !catalog.messages.contains_key(name) {
                return Err(undeclared_message(name, &catalog));
            }
        }
        let (limit, pong) = (self.message_timeout, config.realtime.ping_timeout);
        if handlers.messages().next().is_some() && (limit.is_zero() || limit >= pong) {
            let detail = format!(
                "message_timeout: expected more than 0 and less than realtime.pingTimeout, {pong:?}, got {limit:?}"
            );
            return Err(Error::invalid("config.invalid", detail));
        }
        let ids: Arc<dyn Ids> = Arc::new(UuidV7::from_os(clock.clone()));
        let subscriptions = subscriptions(&catalog, &self.subscriptions)?;
        let tokens = Arc::new(Tokens::new(&catalog, &config)?);
        if let Some(tokens) = &*tokens {
            tokens.warm_up().await;
        }
        let sessions = Sessions::new(&catalog, clock.clone())?;
        let keys = ApiKeys::new(&config)?;

        let (store, sqlite) = open(&config, self.synced, self.on_fatal, clock.clone(), ids.clone())?;
        let expander = Arc::new(Expander::new(catalog.clone(), subscriptions, ids));
        let publisher = Arc::new(Publisher::new(expander, store.clone(), clock.clone()));
        let revocations = Arc::new(Revocations::open(store.clone(), clock.clone()).await?);
        let users = EndUsers {
            tokens: tokens.clone(),
            sessions,
            tenants: config.tenants.clone(),
            revocations: revocations.clone(),
        };
        let gateway = Gateway::new(
            catalog.clone(),
            store.clone(),
            Arc::new(users),
            Arc::new(FromClients { publisher: publisher.clone(), handlers: handlers.clone(), limit }),
            clock,
            gateway_options(&config),
        );
        store.follow(gateway.follower());
        publisher.broadcast_to(Arc::new(ToGateway(gateway.clone())));
        store.observe(Arc::new(Lives::new(&publisher)));
        let settings = store.queue_settings().await?;
        store.limit_queues(limits(&catalog, &settings)).await?;

        let api = Api {
            publisher: publisher.clone(),
            gateway,
            keys,
            tokens,
            revocations,
            trusted_proxies: config.http.trusted_proxies.iter().map(std::net::IpAddr::to_canonical).collect(),
            tenants: config.tenants.clone(),
            metrics: config.metrics.clone(),
            started: Instant::now(),
            resize: OnceLock::new(),
            max_body_bytes: config.http.max_body_bytes,
            stopping: CancellationToken::new(),
        };
        // Beside the sockets there must be room for calls.
        let max_connections = config.realtime.max_connections + 1_024;
        let drain = Drain { work: config.http.drain, sockets: config.realtime.drain };
        Ok(Assembled { api: Arc::new(api), publisher, sqlite, handlers, drain, max_connections })
    }
}

/// An app in which nothing works by itself yet.
pub(crate) struct Assembled {
    api: Arc<Api>,
    pub(crate) publisher: Arc<Publisher>,
    sqlite: Option<Sqlite>,
    pub(crate) handlers: Handlers,
    drain: Drain,
    max_connections: usize,
}

impl Assembled {
    /// The app, with what works in it.
    pub(crate) fn into_app(self, work: Option<(Workers, Scheduler)>) -> App {
        let Self { api, sqlite, drain, max_connections, .. } = self;
        App::new(Parts { api, sqlite, work, drain, max_connections })
    }
}

fn undeclared(kind: &str, catalog: &Catalog) -> Error {
    let hint = match suggest(kind, catalog.jobs.keys().map(|known| &**known)) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("add [jobs.{kind}] to it, or name a declared type with #[job(type = \"…\")]"),
    };
    let detail = format!("a handler is for {kind:?}, which the catalog does not declare; {hint}");
    Error::invalid("job.unknown_type", detail)
}

fn undeclared_message(name: &str, catalog: &Catalog) -> Error {
    let hint = match suggest(name, catalog.messages.keys().map(|known| &**known)) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("add [messages.{name}] to it"),
    };
    let detail = format!("a handler is for the message {name:?}, which the catalog does not declare; {hint}");
    Error::invalid("message.unknown", detail)
}

fn handler_job(name: &str) -> String {
    format!("on:{name}")
}

/// The durable handlers as the expander knows them.
fn subscriptions(catalog: &Catalog, declared: &[(String, String)]) -> Result<Vec<Subscription>, Error> {
    let mut subscriptions: Vec<Subscription> = Vec::new();
    for (on, kind) in declared {
        let wrong = |what: &str| Error::invalid("handler.invalid", format!("the handler {kind:?} of {on:?}: {what}"));
        let pattern = Pattern::parse(on).ok_or_else(|| wrong("expected an event type or a pattern that ends in *"))?;
        if !catalog.events.keys().any(|event| pattern.matches(event)) {
            return Err(wrong("the catalog declares no such event"));
        }
        if subscriptions.iter().any(|known| &*known.job.name == kind) {
            return Err(wrong("another handler has this name"));
        }
        let job = JobType {
            name: kind.as_str().into(),
            queue: HANDLER_QUEUE.into(),
            priority: 3,
            attempts: 10,
            backoff: tidewire_core::retry::Backoff::default(),
            timeout: Duration::from_secs(60),
            delay: None,
            ttl: None,
            retry_for: None,
            key: None,
            unique: None,
            alert: AlertOn::default(),
            lifecycle: true,
            run: None,
            data: None,
            description: format!("Handles {on}."),
        };
        subscriptions.push(Subscription { on: pattern, job });
    }
    Ok(subscriptions)
}

/// What the store enforces for the catalog's queues and for that of the durable handlers, with what was changed while they ran.
fn limits(catalog: &Catalog, settings: &BTreeMap<Arc<str>, QueueSettings>) -> BTreeMap<Arc<str>, QueueLimits> {
    let declared = catalog.queues.values().map(|queue| (queue.name.clone(), queue.limits()));
    let handlers = [(HANDLER_QUEUE.into(), QueueLimits::default())];
    let mut limits: BTreeMap<Arc<str>, QueueLimits> = handlers.into_iter().chain(declared).collect();
    for (queue, settings) in settings {
        let declared = limits.remove(queue).unwrap_or_default();
        limits.insert(queue.clone(), settings.over(declared));
    }
    limits
}

fn open(
    config: &Config,
    synced: bool,
    on_fatal: Box<dyn FnOnce(&Error) + Send>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
) -> Result<(Arc<dyn Store>, Option<Sqlite>), Error> {
    let default = || {
        let data = config.data.clone().unwrap_or_else(|| PathBuf::from(".tidewire"));
        format!("sqlite:{}", data.join("tidewire.db").display())
    };
    let url = config.store.clone().unwrap_or_else(default);
    if url == "memory:" {
        return Ok((Memory::open(clock, ids)?, None));
    }
    let Some(path) = url.strip_prefix("sqlite:").filter(|path| !path.is_empty()) else {
        let detail = format!("store: expected sqlite:FILE or memory:, got {url:?}");
        return Err(Error::new(Kind::Invalid, "config.invalid", detail));
    };
    let options = SqliteOptions { path: Path::new(path).to_owned(), synced, on_fatal };
    let sqlite = Sqlite::open(options, clock, ids)?;
    Ok((sqlite.store(), Some(sqlite)))
}

/// The setting as the gateway knows it.
pub(crate) fn parser(configured: config::Parser) -> Parser {
    match configured {
        config::Parser::Json => Parser::Json,
        config::Parser::Msgpack => Parser::MessagePack,
    }
}

fn gateway_options(config: &Config) -> Options {
    let realtime = &config.realtime;
    Options {
        ping_interval: realtime.ping_interval,
        ping_timeout: realtime.ping_timeout,
        max_message: realtime.max_message_bytes,
        max_backlog: realtime.max_backlog_bytes,
        max_connections: realtime.max_connections,
        max_per_user: u32::try_from(realtime.max_per_user).unwrap_or(u32::MAX),
        max_per_tenant: realtime.max_per_tenant,
        max_per_address: u32::try_from(realtime.max_per_address).unwrap_or(u32::MAX),
        refused_per_address: realtime.refused_per_address,
        max_stall: realtime.max_stall,
        max_publish_hold: realtime.max_publish_hold,
        messages_per_user: realtime.messages_per_user,
        messages_per_tenant: realtime.messages_per_tenant,
        presence_grace: realtime.presence_grace,
        allowed_origins: realtime.allowed_origins.clone(),
        parser: parser(config.sockets.parser),
        compression: config.sockets.compression,
        tenants: config.tenants.clone(),
        ..Options::default()
    }
}

#[cfg(test)]
mod tests;
