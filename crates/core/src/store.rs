//! The contracts of a store. An engine implements all of them and passes the conformance suite of `tidewire-store`.
//!
//! Writes are durable when they are answered, in the sense of the engine's [`Durability`]. Every call takes the tenant, but for those that
//! serve all tenants at once by their nature: dispatch, and listings for an administrator.

mod figures;
mod flow;
mod operate;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::catalog::Keep;
use crate::commit::{Commit, Committed, Enqueue, Expansion};
use crate::event::{Ephemeral, Epoch, Event, Position};
use crate::job::{FailedAttempt, Job, LogLine, State, Verdict};
use crate::limit::Rate;
use crate::schedule::{Overlap, Reached, Stored};
use crate::{Id, Json, Result, TenantId, Timestamp};

pub use figures::{Figures, QueueFigures};
pub use flow::{Flow, FlowControl, FlowJob, FlowQuery, FlowState};
pub use operate::{Bulk, Change, Changed, Control, JobQuery, Page, QueuePace, QueueTenant, Queues};

/// The answer of a store, some time later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Everything that the rest of Tidewire needs of a store.
pub trait Store: Commits + Log + Jobs + Queues + Schedules + Sessions {
    /// What an answered write survives.
    fn durability(&self) -> Durability;
    /// What the engine has counted and holds. An engine that counts nothing answers with zeros.
    fn figures(&self) -> Answer<'_, Figures> {
        Box::pin(std::future::ready(Ok(Figures::default())))
    }
    /// Stops taking calls, finishes those taken, and closes. Later calls answer `unavailable`.
    fn close(&self) -> Answer<'_, ()>;
}

/// What an answered write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The end of power: synced to the disk before the answer.
    Synced,
    /// The end of the process: handed to the operating system before the answer.
    Written,
    /// Nothing: kept in memory.
    Memory,
}

impl Durability {
    /// The word that configuration, dashboards and benches show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "synced (fsync before the answer)",
            Self::Written => "written (not synced)",
            Self::Memory => "memory (not durable)",
        }
    }
}

/// The atomic unit.
pub trait Commits: Send + Sync {
    /// Writes all of `commit` or none of it.
    ///
    /// Codes: `event.version_conflict`, `idempotency.key_reused`, `job.missing_parent`, `flow.exists`, `queue.backlog_full`,
    /// `schedule.in_the_past`, `schedule.never_fires`, `schedule.too_many`. An event or job whose caller-given id exists is not written
    /// again, nor what rules made of it; the answer shows the one that is there.
    fn commit(&self, commit: Commit) -> Answer<'_, Committed>;
}

/// What to read from a tenant's log, ascending by position.
#[derive(Clone, Debug, Default)]
pub struct LogQuery {
    /// Only after this position.
    pub after: Position,
    /// Only up to this position.
    pub up_to: Option<Position>,
    /// At most this many, bounded by [`LogQuery::MAX`].
    pub limit: u32,
    /// Only this type.
    pub kind: Option<String>,
    /// Only this stream.
    pub stream: Option<String>,
    /// Only what concerns this user.
    pub user: Option<String>,
    /// Only from this time on.
    pub from: Option<Timestamp>,
    /// Only before this time.
    pub to: Option<Timestamp>,
}

impl LogQuery {
    /// The most events that one read returns.
    pub const MAX: u32 = 1_000;
    /// A read ends with the event whose data brings all of them to this many bytes, and then has fewer than were asked for.
    pub const MAX_BYTES: usize = 4 << 20;
}

/// Is told of every commit, on the writer's own thread, after the commit is durable. Must not block.
pub trait Follower: Send + Sync {
    /// These events were committed; of each tenant they are in order and without gaps.
    fn committed(&self, events: &[Arc<Event>]);

    /// The same before anybody is answered, so that who has an answer finds it known. To take note, and no more.
    fn durable(&self, events: &[Arc<Event>]) {
        let _ = events;
    }

    /// These leases of this process were asked to stop: somebody cancelled their jobs. On the writer's own thread; must not block.
    fn cancelled(&self, leases: &[Box<str>]) {
        let _ = leases;
    }
    /// A schedule was put whose next slot is this.
    fn scheduled(&self, _next: Timestamp) {}
}

/// The per-tenant logs.
pub trait Log: Send + Sync {
    /// The incarnation of this store's logs.
    fn epoch(&self) -> &Epoch;
    /// The secret of this store's incarnation, from which the gateway signs its recovery tokens. Never shown.
    fn secret(&self) -> &[u8; 32];
    /// The last position of a tenant, 0 when it has none.
    fn head(&self, tenant: &TenantId) -> Answer<'_, Position>;
    /// Events that match `query`.
    fn read(&self, tenant: &TenantId, query: LogQuery) -> Answer<'_, Vec<Arc<Event>>>;
    /// One event by its id.
    fn event(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Arc<Event>>>;
    /// Tells `follower` of every commit from now on, until the store is closed.
    fn follow(&self, follower: Arc<dyn Follower>);
}

/// What a worker asks for.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Only this tenant's jobs; absent for workers that serve all tenants.
    pub tenant: Option<TenantId>,
    /// Only these queues; empty means all.
    pub queues: Vec<Arc<str>>,
    /// Only these types; empty means all.
    pub kinds: Vec<Arc<str>>,
    /// At most this many, at least 1.
    pub max: u32,
    /// How long the lease holds without renewal.
    pub lease: Duration,
    /// How long to wait for a first job.
    pub wait: Duration,
    /// Who asks, for the history of attempts.
    pub worker: Arc<str>,
    /// Whether the worker ends with this process: then a restart gives its jobs back without waiting for the lease.
    pub local: bool,
    /// Whether, in queues that serve several tenants, only jobs of those tenants will do of which none runs there.
    pub reserved: bool,
}

/// A job in the hands of one worker.
#[derive(Clone, Debug)]
pub struct Leased {
    /// The job, its `attempt` counting this run.
    pub job: Job,
    /// The token that settles and renews it. It is void as soon as the lease is lost.
    pub lease: Box<str>,
    /// When the lease ends unless it is renewed.
    pub expires: Timestamp,
    /// The jobs it waited for, as far as [`Parent::MOST`] goes.
    pub parents: Vec<Parent>,
}

/// A job that another one waited for, and how it ended.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// Its id.
    pub id: Id,
    /// What the flow calls it.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<Box<str>>,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// How it ended.
    pub state: State,
    /// What it returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// Why it did not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<str>>,
}

impl Parent {
    /// The most parents that a run is told of, and that are on one page of [`Jobs::parents`].
    pub const MOST: usize = 1_000;
}

/// The end of a run: a verdict, and what the handler staged to commit with it.
#[derive(Clone, Debug)]
pub struct Settle {
    /// The tenant that the worker is bound to, absent for workers of all tenants.
    pub tenant: Option<TenantId>,
    /// The job.
    pub id: Id,
    /// The token of the lease.
    pub lease: Box<str>,
    /// What the run came to.
    pub verdict: Verdict,
    /// Committed with the verdict, or not at all.
    pub effects: Option<Commit>,
}

/// What became of a settled job.
#[derive(Clone, Debug)]
pub struct Settled {
    /// The state it is in now.
    pub state: State,
    /// What its effects wrote.
    pub effects: Committed,
}

/// What a renewal tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// When the lease ends now.
    pub expires: Timestamp,
    /// Whether somebody asked to cancel the job.
    pub cancelled: bool,
    /// Whether the run has lasted longer than its timeout. The lease is not extended beyond the queue's grace after it.
    pub timed_out: bool,
}

/// How many jobs a queue has in each state.
pub type Counts = BTreeMap<Arc<str>, BTreeMap<State, u64>>;

/// What the engine enforces for a queue. Everything else about a queue is the runtime's.
///
/// An absent limit limits nothing. A job that a limit holds back waits: it uses no attempt, and holds back nobody but its like.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueLimits {
    /// Jobs at once over all processes.
    pub global: Option<u32>,
    /// Jobs at once of one tenant, unless the tenant has its own number.
    pub per_tenant: Option<u32>,
    /// Jobs at once of one key of one tenant.
    pub per_key: Option<u32>,
    /// Starts per time over all processes.
    pub rate: Option<Rate>,
    /// Starts per time of one tenant, unless the tenant has its own rate.
    pub rate_per_tenant: Option<Rate>,
    /// Starts per time of one key of one tenant.
    pub rate_per_key: Option<Rate>,
    /// Waiting jobs of one tenant, unless the tenant has its own number. More are refused.
    pub backlog: Option<u64>,
    /// A waiting job gains one priority for each of these, up to the first. Longer than nothing.
    pub aging: Option<Duration>,
    /// Whether no job starts. Those that run go on.
    pub paused: bool,
    /// A job that lost so many workers is dead, whatever its attempts.
    pub poison: u16,
    /// The time between the soft and the hard end of a run.
    pub grace: Duration,
    /// Completed jobs kept.
    pub keep_completed: Keep,
    /// Cancelled jobs kept, of each tenant.
    pub keep_cancelled: Keep,
    /// Dead letters kept, of each tenant: failed and dead jobs.
    pub keep_dead: Keep,
    /// The tenants that are treated otherwise.
    pub tenants: BTreeMap<TenantId, TenantLimits>,
}

impl Default for QueueLimits {
    /// No limits; the last 1,000 completed jobs, 30 days of cancelled ones and 90 of dead letters are kept; dead after three lost workers;
    /// 10 s of grace.
    fn default() -> Self {
        Self {
            global: None,
            per_tenant: None,
            per_key: None,
            rate: None,
            rate_per_tenant: None,
            rate_per_key: None,
            backlog: None,
            aging: None,
            paused: false,
            poison: 3,
            grace: Duration::from_secs(10),
            keep_completed: Keep::Count(1_000),
            keep_cancelled: Keep::Age(Duration::from_secs(30 * 86_400)),
            keep_dead: Keep::Age(Duration::from_secs(90 * 86_400)),
            tenants: BTreeMap::new(),
        }
    }
}

/// A moment in the life of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// It was enqueued.
    Enqueued,
    /// A run failed and another follows.
    Retrying,
    /// It completed.
    Completed,
    /// It is a dead letter: failed or dead.
    Failed,
    /// It was taken back.
    Cancelled,
    /// Its run told of its progress.
    Progress,
}

/// What follows from the lives of jobs: the events that an app wants to have of them, and alerts.
pub trait Lifecycle: Send + Sync {
    /// Whether anything follows from such a moment in the life of such a job. Asked for every job, so it must be quick.
    fn cares(&self, moment: Moment, job: &Job) -> bool;
    /// What is committed together with it, each unless its dedup key is known. Runs on the writer's own thread and must not block. The
    /// jobs in it are marked as `system`, and of their lives nobody is told.
    fn follows(&self, moment: Moment, job: &Job, now: Timestamp) -> Vec<Expansion>;
    /// What is only delivered of what followed, when the commit that it belongs to is durable. On the writer's own thread, after the
    /// followers; must not block.
    fn committed(&self, ephemeral: &[Ephemeral]);
}

/// What is different for one tenant in a queue. An absent value is the queue's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantLimits {
    /// How many turns it gets for each turn of a tenant of weight 1, from 1 to [`TenantLimits::MAX_WEIGHT`]. Absent means 1.
    pub weight: Option<u32>,
    /// Its jobs at once.
    pub at_once: Option<u32>,
    /// Its starts per time.
    pub rate: Option<Rate>,
    /// Its waiting jobs.
    pub backlog: Option<u64>,
    /// Whether none of its jobs starts. Those that run go on.
    pub paused: bool,
}

impl TenantLimits {
    /// The most turns for one of a tenant of weight 1. A larger weight is taken as this.
    pub const MAX_WEIGHT: u32 = 1_000;
}

/// Jobs: dispatch, leases and control.
pub trait Jobs: Send + Sync {
    /// Says what follows from the lives of jobs. Only the last one that was given is asked.
    fn observe(&self, lifecycle: Arc<dyn Lifecycle>);
    /// A flow with its jobs.
    fn flow(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Flow>>;
    /// A page of flows without their jobs, newest first. Code `cursor.invalid`.
    fn flows(&self, query: FlowQuery) -> Answer<'_, Page<Flow>>;
    /// Does something to the jobs of a flow, to all of them in one transaction. Codes `flow.not_found`, `flow.wrong_state`, `flow.undone`,
    /// `job.unique_taken`.
    fn control_flow(&self, tenant: &TenantId, id: &Id, control: FlowControl) -> Answer<'_, ()>;
    /// Sets what the engine enforces for each queue, from now on.
    fn limit_queues(&self, limits: BTreeMap<Arc<str>, QueueLimits>) -> Answer<'_, ()>;
    /// Leases due jobs: by priority, fair over tenants by their weights inside a priority, first in first out inside a tenant,
    /// within the limits of their queue. Waits up to `claim.wait` for the first. Dropping the call gives back what it had been given. Code `store.busy` when too many wait.
    fn claim(&self, claim: Claim) -> Answer<'_, Vec<Leased>>;
    /// Ends a run. Code `job.lease_lost` when the lease is no longer held; then nothing of it is written.
    fn settle(&self, settle: Settle) -> Answer<'_, Settled>;
    /// The job that a lease is on. Code `job.lease_lost` when it is no longer held.
    fn leased(&self, tenant: Option<&TenantId>, id: &Id, lease: &str) -> Answer<'_, Job>;
    /// Extends a lease. Code `job.lease_lost` when it is no longer held.
    fn renew(&self, tenant: Option<&TenantId>, id: &Id, lease: &str, extend: Duration) -> Answer<'_, Renewed>;
    /// One job with the last [`MAX_FAILED_ATTEMPTS`](crate::job::MAX_FAILED_ATTEMPTS) runs that failed.
    fn job(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<(Job, Vec<FailedAttempt>)>>;
    /// A page of jobs.
    fn jobs(&self, query: JobQuery) -> Answer<'_, Page<Job>>;
    /// A page of the jobs that a job waited for and how they ended, in the order in which they were enqueued, from where `cursor` says
    /// and at most `limit`, bounded by [`Parent::MOST`]; nothing when there is no such job.
    fn parents(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<String>,
        limit: u32,
    ) -> Answer<'_, Option<Page<Parent>>>;
    /// Changes one job. Codes `job.not_found`, `job.wrong_state`, `job.unique_taken`.
    fn control(&self, tenant: &TenantId, id: &Id, control: Control) -> Answer<'_, Job>;
    /// Does the same to the next jobs that match `query`, the oldest first, at most [`Bulk::MAX`] of them and each alone: one that is
    /// not in a state for it by then is left as it is. Call it again with `next` until there is none.
    fn bulk(&self, query: JobQuery, action: Bulk) -> Answer<'_, Changed>;
    /// Keeps how far a run is: any JSON of at most [`MAX_PROGRESS_BYTES`](crate::job::MAX_PROGRESS_BYTES). Codes `job.lease_lost`,
    /// `data.too_large`.
    fn progress(&self, tenant: Option<&TenantId>, id: &Id, lease: &str, progress: Json) -> Answer<'_, ()>;
    /// Adds lines to a job's log. A longer line than [`MAX_LOG_BYTES`](crate::job::MAX_LOG_BYTES) is cut; the last
    /// [`MAX_LOG_LINES`](crate::job::MAX_LOG_LINES) are kept. Code `job.lease_lost`.
    fn log(&self, tenant: Option<&TenantId>, id: &Id, lease: &str, lines: Vec<String>) -> Answer<'_, ()>;
    /// A page of a job's log, the oldest line first, from where `cursor` says and at most `limit`; nothing when there is no such job.
    fn logs(&self, tenant: &TenantId, id: &Id, cursor: Option<String>, limit: u32)
    -> Answer<'_, Option<Page<LogLine>>>;
    /// How many jobs each queue has, of one tenant or of all.
    fn counts(&self, tenant: Option<&TenantId>) -> Answer<'_, Counts>;
}

/// One due slot of a schedule and what it enqueues.
#[derive(Debug)]
pub struct Fire {
    /// Whose schedule.
    pub tenant: TenantId,
    /// Its name.
    pub key: Arc<str>,
    /// The due time; a slot fires once, ever.
    pub slot: Timestamp,
    /// What happens when the job of the slot before is unfinished.
    pub overlap: Overlap,
    /// The job; absent when the slot is only passed over.
    pub job: Option<Enqueue>,
    /// How many runs the schedule may have.
    pub limit: Option<u64>,
    /// What the slot was planned from, when the schedule is one that the store keeps; absent for those of the catalog.
    pub stored: Option<Planned>,
}

/// The schedule of the store that a slot was planned from, and what follows the slot.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The user it belongs to.
    pub user_id: Option<Box<str>>,
    /// The slot is stale when the schedule has another revision by now.
    pub revision: u64,
    /// The slot after this one.
    pub next: Option<Timestamp>,
}

/// What became of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fired {
    /// The job was enqueued.
    Enqueued(Id),
    /// The job of the slot before is unfinished and the schedule skips such slots.
    Overlapped,
    /// The job of the slot before is unfinished and the schedule waits for it; ask again when it may be done.
    Waiting,
    /// This slot, or a later one, had fired before.
    Stale,
    /// The slot was passed over as asked, or because an operator has paused the schedule.
    Skipped,
    /// The schedule of the catalog has had all its runs.
    Ended,
}

/// Which schedules to list, by tenant, key and user.
#[derive(Clone, Debug, Default)]
pub struct ScheduleQuery {
    /// Only this tenant's; absent for an administrator.
    pub tenant: Option<TenantId>,
    /// Only those of this key.
    pub key: Option<String>,
    /// Only those of this user.
    pub user_id: Option<String>,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// At most this many, bounded by [`ScheduleQuery::MAX`].
    pub limit: u32,
}

impl ScheduleQuery {
    /// The most schedules on one page.
    pub const MAX: u32 = 500;
}

/// Where schedules have got to, and those that were made at run time. These are put and deleted by a [`Commit`].
pub trait Schedules: Send + Sync {
    /// How far each schedule of the catalog has got that fires for this tenant, or for the app.
    fn slots(&self, tenant: &TenantId) -> Answer<'_, BTreeMap<Arc<str>, Reached>>;
    /// The tenants that anything was written for, in the order in which they came, after this one, at most `limit`. The app is one of
    /// them.
    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<'_, Vec<TenantId>>;
    /// Fires a slot, at most once ever: the slot and its job are one commit.
    ///
    /// A schedule of the catalog passes its slots over while the app has a paused one of its key, whichever tenant it fires for.
    /// A schedule that the store keeps counts the run and gets its next slot in the same commit, none when it has ended. A slot that
    /// waits is due again after an eighth of the time it has waited, at least 1 s and at most 30 s.
    fn fire(&self, fire: Fire) -> Answer<'_, Fired>;
    /// The stored schedules that are due at `now`, earliest first, at most `limit`.
    fn due(&self, now: Timestamp, limit: u32) -> Answer<'_, Vec<Stored>>;
    /// When the next stored schedule is due.
    fn next_due(&self) -> Answer<'_, Option<Timestamp>>;
    /// One stored schedule.
    fn schedule(&self, tenant: &TenantId, key: &str, user_id: Option<&str>) -> Answer<'_, Option<Stored>>;
    /// A page of stored schedules. Code `cursor.invalid`.
    fn schedules(&self, query: ScheduleQuery) -> Answer<'_, Page<Stored>>;
}

/// What a socket's session has joined and asked for, so that it survives a restart. The content is the gateway's.
pub trait Sessions: Send + Sync {
    /// Keeps `state` under `sid` until `expires`. Like every call it is handed over when this is called, so calls for one `sid` count in
    /// their order, and dropping the answer does not take it back. Codes `store.busy`, `unavailable`.
    fn put_session(&self, tenant: &TenantId, sid: &str, state: String, expires: Timestamp) -> Answer<'_, ()>;
    /// What was kept, unless it has expired.
    fn session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, Option<String>>;
    /// Forgets it. Codes `store.busy`, `unavailable`.
    fn delete_session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, ()>;
}
