//! A kit for tests of jobs, durable handlers and schedules, behind the feature `testing`.
//!
//! A [`TestApp`] is an app with a memory store and a clock that stands still. Nothing runs by itself: [`TestApp::drain`] runs what is
//! due, [`TestApp::advance`] moves the clock. So a test waits for nothing and sees the same each time.
//!
//! ```
//! # let dir = std::env::temp_dir().join(format!("tidewire-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir).expect("a directory");
//! # let catalog = "[app]\nname = \"shop\"\ntenant = \"shopId\"\n[events.\"welcome:sent\"]\n[queues.email]\n[jobs.send-welcome]\nqueue = \"email\"\n";
//! # std::fs::write(dir.join("app.toml"), catalog).expect("a catalog");
//! use std::time::Duration;
//! use serde::{Deserialize, Serialize};
//! use tidewire::JobState::{Completed, Scheduled};
//! use tidewire::testing::TestApp;
//! use tidewire::{Attempt, JobContext, NewEvent, TenantId, assert_enqueued, assert_published, done, refute_enqueued, retry};
//!
//! #[derive(Serialize, Deserialize, tidewire::Job)]
//! #[job(backoff = "fixed(1h)")]
//! struct SendWelcome { to: String }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async {
//! let mut app = TestApp::new(&dir) // or "apps/shop"
//!     .job(|job: SendWelcome, cx: JobContext, attempt: Attempt| async move {
//!         if attempt.number == 1 {
//!             return retry("the mail server is away");
//!         }
//!         cx.publish(NewEvent::new("welcome:sent", serde_json::json!({ "to": job.to })));
//!         done()
//!     })
//!     .build()
//!     .await?;
//! let tenant = TenantId::new("corner")?;
//! app.enqueue(&tenant, &SendWelcome { to: "ada@example.com".to_owned() }).await?;
//! assert_enqueued!(app, tenant, "send-welcome", { "to": "ada@example.com" });
//! refute_enqueued!(app, tenant, "send-welcome", { "to": "bob@example.com" });
//!
//! assert_eq!(app.drain().await.states(), [Scheduled]); // the first attempt failed
//! assert_eq!(app.advance(Duration::from_secs(3600)).await.states(), [Completed]);
//! assert_published!(app, tenant, "welcome:sent", { "to": "ada@example.com" });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).expect("it works");
//! # std::fs::remove_dir_all(&dir).expect("removed");
//! ```

mod found;

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tidewire_core::event::Event;
use tidewire_core::job::{Job as StoredJob, LogLine, MAX_LOG_LINES, State};
use tidewire_core::store::{Claim, JobQuery, LogQuery};
use tidewire_core::time::{Clock, ManualClock};
use tidewire_core::{Id, Json, TenantId, Timestamp};
use tidewire_runtime::{Clockwork, EventHandler, Handlers, JobHandler, MessageHandler, Middleware, Publisher};

pub use found::{missing_event, missing_job, unwanted_event, unwanted_job};
#[doc(hidden)]
pub use serde_json::json;

use crate::{App, BuildError, Builder, Job};

/// The most runs of one [`TestApp::drain`]. A job that always enqueues another would go on for ever.
pub const MAX_RUNS: usize = 10_000;

/// The most moments of one [`TestApp::advance`] at which something is due.
pub const MAX_MOMENTS: usize = 100_000;

/// When the clock of a test starts, unless it says otherwise: 2026-01-01T00:00:00Z, a Thursday.
pub const START: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// How long a run goes on after it was told to stop; only here does the kit use the real clock.
const GRACE: Duration = Duration::from_millis(100);

/// Collects what a [`TestApp`] is made of: the same handlers, states and layers as [`Builder`].
pub struct TestBuilder {
    builder: Builder,
    start: Timestamp,
}

impl TestBuilder {
    /// What the program itself does with its builder, so that the test has the same handlers. The store and the clock are the kit's.
    #[must_use]
    pub fn with(mut self, build: impl FnOnce(Builder) -> Builder) -> Self {
        self.builder = build(self.builder);
        self
    }

    /// As [`Builder::job`].
    #[must_use]
    pub fn job<J: Job, Args: 'static>(self, handler: impl JobHandler<J, Args>) -> Self {
        self.with(|builder| builder.job(handler))
    }

    /// As [`Builder::on`].
    #[must_use]
    pub fn on<Args: 'static>(self, on: &str, name: &str, handler: impl EventHandler<Args>) -> Self {
        self.with(|builder| builder.on(on, name, handler))
    }

    /// As [`Builder::message`].
    #[must_use]
    pub fn message<D, Args>(self, name: &str, handler: impl MessageHandler<D, Args>) -> Self
    where
        D: DeserializeOwned + 'static,
        Args: 'static,
    {
        self.with(|builder| builder.message(name, handler))
    }

    /// As [`Builder::state`].
    #[must_use]
    pub fn state<T: Send + Sync + 'static>(self, value: T) -> Self {
        self.with(|builder| builder.state(value))
    }

    /// As [`Builder::layer`].
    #[must_use]
    pub fn layer(self, layer: impl Middleware) -> Self {
        self.with(|builder| builder.layer(layer))
    }

    /// When the clock starts. Default [`START`].
    #[must_use]
    pub fn start_at(mut self, start: Timestamp) -> Self {
        self.start = start;
        self
    }

    /// Opens the app. Its schedules begin at the start of the clock. Errors are those of [`Builder::build`].
    pub async fn build(self) -> Result<TestApp, BuildError> {
        let clock = Arc::new(ManualClock::new(self.start));
        let assembled = self.builder.store("memory:").clock(clock.clone()).with_test_secret()?.assemble().await?;
        let publisher = assembled.publisher.clone();
        let mut clockwork = Clockwork::new(publisher.clone());
        clockwork.tick(self.start).await;
        let handlers = Arc::new(assembled.handlers.clone());
        Ok(TestApp { app: assembled.into_app(None), publisher, handlers, clockwork, clock })
    }
}

/// An app in which nothing runs by itself. It is an [`App`] in all else: commit, enqueue, read.
pub struct TestApp {
    app: App,
    publisher: Arc<Publisher>,
    handlers: Arc<Handlers>,
    clockwork: Clockwork,
    clock: Arc<ManualClock>,
}

impl Deref for TestApp {
    type Target = App;
    fn deref(&self) -> &App {
        &self.app
    }
}

/// One run of a job.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Whose job it was.
    pub tenant: TenantId,
    /// The job.
    pub id: Id,
    /// Its type; a durable handler's is `on:NAME`.
    pub kind: Arc<str>,
    /// Which run it was, 1 is the first.
    pub attempt: u16,
    /// What the run made of the job: completed, failed, dead or cancelled, or scheduled or pending when it runs again.
    pub state: State,
}

/// What ran, in order.
#[derive(Clone, Debug, Default)]
pub struct Drained {
    /// The runs.
    pub runs: Vec<Ran>,
}

impl Drained {
    /// How many runs there were.
    pub fn count(&self) -> usize {
        self.runs.len()
    }

    /// What each run made of its job.
    pub fn states(&self) -> Vec<State> {
        self.runs.iter().map(|run| run.state).collect()
    }
}

impl TestApp {
    /// Begins a test app whose catalog is in `dir`.
    #[expect(clippy::new_ret_no_self, reason = "it reads as the app that it becomes")]
    pub fn new(dir: impl Into<PathBuf>) -> TestBuilder {
        TestBuilder { builder: App::builder(dir), start: START }
    }

    /// Runs everything that is due and has a handler, one job after the other, until nothing is: also what the runs enqueue, if it is
    /// due. The clock does not move, so a retry with a delay waits for [`advance`](Self::advance).
    ///
    /// A run has the job's own timeout, by the real clock, and is then dropped after 100 ms.
    ///
    /// # Panics
    ///
    /// When something is still due after [`MAX_RUNS`] runs, or the store is closed.
    pub async fn drain(&self) -> Drained {
        let mut drained = Drained::default();
        let kinds: Vec<Arc<str>> = self.handlers.kinds().cloned().collect();
        if kinds.is_empty() {
            return drained;
        }
        let claim = Claim {
            tenant: None,
            queues: Vec::new(),
            kinds,
            max: 1,
            lease: Duration::from_secs(10 * 365 * 86_400),
            wait: Duration::ZERO,
            worker: "test".into(),
            local: true,
            reserved: false,
        };
        loop {
            let leased = self.store().claim(claim.clone()).await.expect("the store of a test is open");
            let Some(leased) = leased.into_iter().next() else { return drained };
            assert!(
                drained.runs.len() < MAX_RUNS,
                "drain: jobs are still due after {MAX_RUNS} runs; the last was {}",
                leased.job.kind
            );
            let (tenant, id, kind) = (leased.job.tenant.clone(), leased.job.id.clone(), leased.job.kind.clone());
            let attempt = leased.job.attempt;
            let state = tidewire_runtime::run(&self.publisher, &self.handlers, leased, GRACE).await;
            let state = state.expect("nobody else holds the lease, and the store of a test is open");
            drained.runs.push(Ran { tenant, id, kind, attempt, state });
        }
    }

    /// Moves the clock by `by`, from one moment at which something is due to the next, and fires slots and runs jobs at each.
    ///
    /// # Panics
    ///
    /// As [`drain`](Self::drain), and when there are more than [`MAX_MOMENTS`] such moments.
    pub async fn advance(&mut self, by: Duration) -> Drained {
        let until = self.clock.now() + by;
        let mut drained = Drained::default();
        // Jobs that a limit holds back are looked for again after this long; the store alone knows when.
        let mut patience = Duration::from_millis(1);
        for _ in 0..MAX_MOMENTS {
            let slot = self.clockwork.tick(self.clock.now()).await;
            let ran = self.drain().await.runs;
            patience = if ran.is_empty() { patience * 2 } else { Duration::from_millis(1) };
            drained.runs.extend(ran);
            let now = self.clock.now();
            let (due, is_held) = self.next_due().await;
            let again = is_held.then(|| now + patience);
            let next = [slot, due, again].into_iter().flatten().filter(|next| *next > now).min();
            match next.filter(|next| *next <= until) {
                Some(next) => self.clock.set(next),
                None => {
                    self.clock.set(until);
                    return drained;
                }
            }
        }
        panic!("advance: more than {MAX_MOMENTS} moments are due before {until}; advance in smaller steps");
    }

    /// When the next scheduled job is due that has a handler, and whether such jobs are due and held back by a limit.
    async fn next_due(&self) -> (Option<Timestamp>, bool) {
        let jobs = self.list(JobQuery { states: vec![State::Scheduled, State::Pending], ..JobQuery::default() }).await;
        let mut ours = jobs.iter().filter(|job| self.handlers.kinds().any(|kind| *kind == job.kind)).peekable();
        let is_held = ours.clone().any(|job| job.state == State::Pending);
        if ours.peek().is_none() {
            return (None, false);
        }
        (ours.filter(|job| job.state == State::Scheduled).map(|job| job.run_at).min(), is_held)
    }

    /// The jobs of a tenant in every state, in the order in which they were enqueued. Those of app-wide schedules have the tenant
    /// [`TenantId::app`]. A queue that keeps few completed jobs has forgotten others.
    pub async fn jobs(&self, tenant: &TenantId) -> Vec<StoredJob> {
        let mut jobs = self.list(JobQuery { tenant: Some(tenant.clone()), ..JobQuery::default() }).await;
        jobs.reverse();
        jobs
    }

    /// What the last run of a job told of its progress; nothing when none did, or there is no such job.
    pub async fn progress(&self, tenant: &TenantId, id: &Id) -> Option<Json> {
        let job = self.store().job(tenant, id).await.expect("the store of a test is open");
        job?.0.rare?.progress
    }

    /// The log of a job, the oldest line first; empty when there is no such job.
    pub async fn logs(&self, tenant: &TenantId, id: &Id) -> Vec<LogLine> {
        let most = u32::try_from(MAX_LOG_LINES).unwrap_or(u32::MAX);
        let page = self.store().logs(tenant, id, None, most).await.expect("the store of a test is open");
        page.map_or_else(Vec::new, |page| page.items)
    }

    async fn list(&self, mut query: JobQuery) -> Vec<StoredJob> {
        query.limit = JobQuery::MAX;
        let mut jobs = Vec::new();
        loop {
            let page = self.store().jobs(query.clone()).await.expect("the store of a test is open");
            jobs.extend(page.items);
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                return jobs;
            }
        }
    }

    /// The log of a tenant, in order. Ephemeral events are in no log.
    pub async fn events(&self, tenant: &TenantId) -> Vec<Arc<Event>> {
        let mut events: Vec<Arc<Event>> = Vec::new();
        loop {
            let after = events.last().map(|event| event.position).unwrap_or_default();
            let query = LogQuery { after, limit: LogQuery::MAX, ..LogQuery::default() };
            let page = self.store().read(tenant, query).await.expect("the store of a test is open");
            if page.is_empty() {
                return events;
            }
            events.extend(page);
        }
    }
}

/// Asserts that a tenant has a job of a type whose data contains this, in whatever state: `assert_enqueued!(app, tenant, "send-welcome",
/// { "to": "ada@example.com" })`. Objects may have more fields than are given; lists and values must be equal. Without data any job of
/// the type will do. In an async function.
#[macro_export]
macro_rules! assert_enqueued {
    ($app:expr, $tenant:expr, $kind:expr) => {
        $crate::assert_enqueued!($app, $tenant, $kind, {})
    };
    ($app:expr, $tenant:expr, $kind:expr, $data:tt) => {
        if let Some(said) = $crate::testing::missing_job(&$app, &$tenant, $kind, $crate::testing::json!($data)).await {
            panic!("{said}");
        }
    };
}

/// Asserts that a tenant has no job of a type whose data contains this: the opposite of [`assert_enqueued!`].
#[macro_export]
macro_rules! refute_enqueued {
    ($app:expr, $tenant:expr, $kind:expr) => {
        $crate::refute_enqueued!($app, $tenant, $kind, {})
    };
    ($app:expr, $tenant:expr, $kind:expr, $data:tt) => {
        if let Some(said) = $crate::testing::unwanted_job(&$app, &$tenant, $kind, $crate::testing::json!($data)).await {
            panic!("{said}");
        }
    };
}

/// Asserts that a tenant's log has an event of a type whose data contains this, as [`assert_enqueued!`] does for jobs.
#[macro_export]
macro_rules! assert_published {
    ($app:expr, $tenant:expr, $kind:expr) => {
        $crate::assert_published!($app, $tenant, $kind, {})
    };
    ($app:expr, $tenant:expr, $kind:expr, $data:tt) => {
        if let Some(said) = $crate::testing::missing_event(&$app, &$tenant, $kind, $crate::testing::json!($data)).await
        {
            panic!("{said}");
        }
    };
}

/// Asserts that a tenant's log has no event of a type whose data contains this: the opposite of [`assert_published!`].
#[macro_export]
macro_rules! refute_published {
    ($app:expr, $tenant:expr, $kind:expr) => {
        $crate::refute_published!($app, $tenant, $kind, {})
    };
    ($app:expr, $tenant:expr, $kind:expr, $data:tt) => {
        if let Some(said) = $crate::testing::unwanted_event(&$app, &$tenant, $kind, $crate::testing::json!($data)).await
        {
            panic!("{said}");
        }
    };
}
