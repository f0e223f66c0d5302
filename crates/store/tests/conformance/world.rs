//! The world of a test: a store, a clock that moves when told to, and short ways to say what is committed and claimed.

use std::future::Future;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tempfile::TempDir;
use tidewire_core::commit::{Append, Commit, Committed, Enqueue, Enqueued, FlowHead};
use tidewire_core::event::{Event, Position};
use tidewire_core::id::{Ids, UuidV7};
use tidewire_core::job::{FailedAttempt, Job, State, Verdict};
use tidewire_core::retry::{Backoff, Jitter};
use tidewire_core::store::{Claim, Control, Follower, Leased, LogQuery, QueueLimits, Settle, Settled, Store};
use tidewire_core::time::{Clock, ManualClock};
use tidewire_core::{Error, Id, Json, Result, TenantId, Timestamp};
use tidewire_store::Memory;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Where the clock stands when a world begins.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_750_000_000_000);

/// What a job of [`World::job`] waits after each failed run.
pub(crate) const BACKOFF: Duration = Duration::from_secs(10);

/// How long a lease of [`any`] holds.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// Longer than any call takes. A test that waits longer for a signal has failed.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) ids: Arc<UuidV7>,
    /// Where the files are, removed with the world.
    _directory: Option<TempDir>,
}

impl World {
    pub(crate) fn memory() -> Self {
        let (clock, ids) = clock_and_ids(START);
        let store = Memory::open(clock.clone(), ids.clone()).expect("memory opens");
        Self { store, clock, ids, _directory: None }
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn sqlite() -> Self {
        Self::sqlite_with(true)
    }

    /// A SQLite world whose commits are handed to the operating system and not synced.
    #[cfg(feature = "sqlite")]
    pub(crate) fn unsynced() -> Self {
        Self::sqlite_with(false)
    }

    #[cfg(feature = "sqlite")]
    fn sqlite_with(synced: bool) -> Self {
        let (clock, ids) = clock_and_ids(START);
        let directory = tempfile::tempdir().expect("directory");
        let options = tidewire_store::SqliteOptions {
            path: directory.path().join("tidewire.db"),
            synced,
            on_fatal: Box::new(|error| panic!("the store failed: {error}")),
        };
        let store = tidewire_store::Sqlite::open(options, clock.clone(), ids.clone()).expect("sqlite opens").store();
        Self { store, clock, ids, _directory: Some(directory) }
    }

    /// A world on a store that the test opened itself.
    #[cfg(feature = "sqlite")]
    pub(crate) fn of(store: Arc<dyn Store>, clock: Arc<ManualClock>, ids: Arc<UuidV7>) -> Self {
        Self { store, clock, ids, _directory: None }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Moves the clock and lets the writer look at it.
    pub(crate) async fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.turn().await;
    }

    /// Lets the writer look at its timers.
    pub(crate) async fn turn(&self) {
        assert!(self.claim(Claim { queues: vec!["nothing".into()], ..any() }).await.is_empty());
    }

    /// Sets what holds for queue `q`.
    pub(crate) async fn limit(&self, limits: QueueLimits) {
        within(self.store.limit_queues([("q".into(), limits)].into())).await.expect("limits");
    }

    /// Ends many runs in few turns.
    pub(crate) async fn settle_all(&self, leased: &[Leased], verdict: &Verdict) {
        let settle = |leased: &Leased| {
            let (id, lease) = (leased.job.id.clone(), leased.lease.clone());
            self.store.settle(Settle { tenant: None, id, lease, verdict: verdict.clone(), effects: None })
        };
        let answers: Vec<_> = leased.iter().map(settle).collect();
        for answer in answers {
            within(answer).await.expect("settle");
        }
    }

    /// An event without a stream, for no room.
    pub(crate) fn event(&self, kind: &str) -> Append {
        Append {
            id: self.ids.next(),
            given_id: false,
            kind: kind.into(),
            data: Json::empty_object(),
            rooms: [].into(),
            across: false,
            user_id: None,
            correlation_id: None,
            causation_id: None,
            stream: None,
            expected_version: None,
            root: None,
        }
    }

    /// A job in queue `q` with priority 3 that is due now and may run three times, [`BACKOFF`] apart, each for a day.
    pub(crate) fn job(&self, kind: &str) -> Enqueue {
        Enqueue {
            id: self.ids.next(),
            given_id: false,
            kind: kind.into(),
            queue: "q".into(),
            priority: 3,
            data: Json::empty_object(),
            run_at: None,
            attempts: 3,
            backoff: Backoff::Fixed { base: BACKOFF, jitter: Jitter::default() },
            timeout: 24 * HOUR,
            user_id: None,
            correlation_id: None,
            causation_id: None,
            depth: 0,
            rare: None,
            after: Vec::new(),
            root: None,
        }
    }

    pub(crate) async fn commit(&self, commit: Commit) -> Committed {
        self.try_commit(commit).await.expect("commit")
    }

    pub(crate) async fn try_commit(&self, commit: Commit) -> Result<Committed> {
        within(self.store.commit(commit)).await
    }

    pub(crate) async fn append(&self, tenant: &TenantId, events: Vec<Append>) -> Vec<Position> {
        let events = self.commit(commit(tenant, events, Vec::new())).await.events;
        events.iter().map(|event| event.position.expect("logged")).collect()
    }

    pub(crate) async fn enqueue(&self, tenant: &TenantId, jobs: Vec<Enqueue>) -> Vec<Enqueued> {
        self.commit(commit(tenant, Vec::new(), jobs)).await.jobs
    }

    /// One due job of type `work`.
    pub(crate) async fn enqueue_one(&self, tenant: &TenantId) -> Id {
        self.enqueue(tenant, vec![self.job("work")]).await.remove(0).id
    }

    pub(crate) async fn claim(&self, claim: Claim) -> Vec<Leased> {
        within(self.store.claim(claim)).await.expect("claim")
    }

    /// The one job that is due.
    pub(crate) async fn claim_one(&self) -> Leased {
        let mut leased = self.claim(Claim { max: 1, ..any() }).await;
        leased.pop().expect("a due job")
    }

    /// A claim that waits beside the test. It has reached the store when this returns.
    pub(crate) async fn waiting(&self, claim: Claim) -> JoinHandle<Vec<Leased>> {
        let store = self.store.clone();
        let (begun, has_begun) = oneshot::channel();
        let waiting = tokio::spawn(async move {
            let answer = store.claim(claim);
            begun.send(()).expect("the test waits");
            answer.await.expect("claim")
        });
        has_begun.await.expect("begun");
        self.turn().await;
        waiting
    }

    pub(crate) async fn settle(&self, leased: &Leased, verdict: Verdict) -> State {
        self.try_settle(leased, verdict, None).await.expect("settle").state
    }

    pub(crate) async fn try_settle(
        &self,
        leased: &Leased,
        verdict: Verdict,
        effects: Option<Commit>,
    ) -> Result<Settled> {
        let (id, lease) = (leased.job.id.clone(), leased.lease.clone());
        within(self.store.settle(Settle { tenant: None, id, lease, verdict, effects })).await
    }

    pub(crate) async fn try_renew(&self, leased: &Leased, extend: Duration) -> Result<tidewire_core::store::Renewed> {
        within(self.store.renew(None, &leased.job.id, &leased.lease, extend)).await
    }

    pub(crate) async fn control(&self, tenant: &TenantId, id: &Id, control: Control) -> Result<Job> {
        within(self.store.control(tenant, id, control)).await
    }

    pub(crate) async fn stored(&self, tenant: &TenantId, id: &Id) -> (Job, Vec<FailedAttempt>) {
        within(self.store.job(tenant, id)).await.expect("read").expect("the job is kept")
    }

    pub(crate) async fn state(&self, tenant: &TenantId, id: &Id) -> State {
        self.stored(tenant, id).await.0.state
    }

    pub(crate) async fn is_kept(&self, tenant: &TenantId, id: &Id) -> bool {
        within(self.store.job(tenant, id)).await.expect("read").is_some()
    }

    pub(crate) async fn head(&self, tenant: &TenantId) -> u64 {
        within(self.store.head(tenant)).await.expect("head").0
    }

    pub(crate) async fn log(&self, tenant: &TenantId) -> Vec<Arc<Event>> {
        let query = LogQuery { limit: LogQuery::MAX, ..LogQuery::default() };
        within(self.store.read(tenant, query)).await.expect("read")
    }

    /// Keeps the writer busy until the answer is dropped: the calls made meanwhile are taken in one turn.
    pub(crate) async fn hold(&self) -> mpsc::Sender<()> {
        let (entered, has_entered) = oneshot::channel();
        let (release, released) = mpsc::channel();
        self.store.follow(Arc::new(Gate(Mutex::new(Some((entered, released))))));
        self.append(&tenant("gate"), vec![self.event("held")]).await;
        within(has_entered).await.expect("the follower is told");
        release
    }
}

/// Stops the writer's thread once, at the next commit.
struct Gate(Mutex<Option<(oneshot::Sender<()>, mpsc::Receiver<()>)>>);

impl Follower for Gate {
    fn committed(&self, _events: &[Arc<Event>]) {
        if let Some((entered, released)) = self.0.lock().expect("gate").take() {
            entered.send(()).expect("the test waits");
            // An error is the sign to go on: the test has dropped its end.
            released.recv().expect_err("nothing is sent");
        }
    }
}

pub(crate) fn clock_and_ids(now: Timestamp) -> (Arc<ManualClock>, Arc<UuidV7>) {
    let clock = Arc::new(ManualClock::new(now));
    (clock.clone(), Arc::new(UuidV7::new(clock, 7)))
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("tenant")
}

pub(crate) fn id(text: &str) -> Id {
    Id::parse(text).expect("id")
}

/// A commit of which the caller asked for everything.
pub(crate) fn commit(tenant: &TenantId, events: Vec<Append>, jobs: Vec<Enqueue>) -> Commit {
    let (asked_events, asked_jobs) = (events.len(), jobs.len());
    Commit { events, jobs, asked_events, asked_jobs, ..Commit::empty(tenant.clone()) }
}

/// The commit with a flow, named after its id, of those of its jobs that say so.
pub(crate) fn in_flow(flow: &str, commit: Commit) -> Commit {
    let head = FlowHead { id: id(flow), given_id: true, name: Some(format!("flow {flow}").into()), root: None };
    Commit { flows: vec![head], asked_flows: 1, ..commit }
}

/// A claim of whatever is due, for a worker on another machine.
pub(crate) fn any() -> Claim {
    Claim {
        tenant: None,
        queues: Vec::new(),
        kinds: Vec::new(),
        max: 100,
        lease: LEASE,
        wait: Duration::ZERO,
        worker: "worker-1".into(),
        local: false,
        reserved: false,
    }
}

pub(crate) fn done() -> Verdict {
    Verdict::Done { result: None }
}

pub(crate) fn retry(error: &str) -> Verdict {
    Verdict::Retry { error: error.to_owned(), delay: None }
}

pub(crate) fn job_ids(leased: &[Leased]) -> Vec<String> {
    leased.iter().map(|leased| leased.job.id.to_string()).collect()
}

pub(crate) fn code<T>(result: Result<T>) -> &'static str {
    result.err().as_ref().map_or("no error", Error::code)
}

/// Fails the test instead of hanging it.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("an answer in time")
}
