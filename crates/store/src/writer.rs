//! The writer: one thread, one transaction for all waiting calls, one commit, then the answers.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidewire_core::event::{Ephemeral, Event, Position};
use tidewire_core::id::Ids;
use tidewire_core::store::{Follower, Lifecycle};
use tidewire_core::time::Clock;
use tidewire_core::{Error, Id, Result, Timestamp};

use crate::answer::{Call, Pending, Reply};
use crate::claims::{Kept, Parked};
use crate::control::PURGE_AT_ONCE;
use crate::counts::Counts;
use crate::dispatch::Dispatch;
use crate::failpoint::{self, Point};
use crate::inbox::Inbox;
use crate::key_rates::KeyRates;
use crate::lease::Leases;
use crate::meter::Metering;
use crate::names::Names;
use crate::recent::Recent;
use crate::rows::{JobRow, NameId, NameKind, Rows, Seq};

/// The most calls in one transaction. More gain little and make the first wait for the last.
const MAX_BATCH: usize = 1_024;

/// How often expired keys and old jobs are forgotten.
const PURGE_EVERY: Duration = Duration::from_secs(60);

/// How soon a purge that left something goes on: other calls have their turns between.
const PURGE_AGAIN: Duration = Duration::from_millis(100);

/// The outer error is a fault of the medium and ends the writer; the inner one refuses the call.
pub(crate) type Outcome<T> = Result<Result<T>>;

/// What is told when the medium failed and the writer has stopped.
pub(crate) type OnFatal = Box<dyn FnOnce(&Error) + Send>;

/// Everything the writer owns. Never shared, never locked.
pub(crate) struct Writer<R: Rows> {
    pub(crate) rows: R,
    pub(crate) inbox: Arc<Inbox<Call<R>>>,
    clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn Ids>,
    pub(crate) names: Names,
    pub(crate) dispatch: Dispatch,
    pub(crate) leases: Leases,
    pub(crate) parked: VecDeque<Parked>,
    /// The turn that last looked for claims nobody waits for.
    pub(crate) weeded: u64,
    /// The time of this turn.
    pub(crate) now: Timestamp,
    /// The time of the last event, so that times never decrease along a log.
    pub(crate) last_event: Timestamp,
    pub(crate) heads: HashMap<NameId, Position>,
    /// The head of the log across tenants.
    pub(crate) across: Position,
    /// Tenants whose head moved in this turn.
    pub(crate) moved: Vec<NameId>,
    /// Jobs enqueued in this turn and not yet written: one that is leased in the same turn is written once.
    pub(crate) fresh: Vec<JobRow>,
    pub(crate) recent: Recent,
    pub(crate) fresh_ids: HashMap<(NameId, Id), Seq>,
    pub(crate) next_seq: Seq,
    /// When the next scheduled job is due, if there is one.
    pub(crate) next_due: Option<Timestamp>,
    /// When the next waiting job expires, if one does.
    pub(crate) next_expiry: Option<Timestamp>,
    pub(crate) counts: Counts,
    pub(crate) metering: Metering,
    /// Whether a queue bounds the waiting jobs of a tenant.
    pub(crate) bounds_backlogs: bool,
    /// How far the keys of a queue have been looked through for jobs that may go on.
    pub(crate) loose_keys: BTreeMap<NameId, (NameId, String)>,
    /// The rates of keys, by queue and tenant.
    pub(crate) key_rates: KeyRates,
    pub(crate) lifecycle: Option<Arc<dyn Lifecycle>>,
    /// How many schedules tenants have, as far as that was asked.
    pub(crate) schedule_counts: HashMap<NameId, u64>,
    /// What is only delivered of what followed from the lives of jobs in this turn.
    pub(crate) told: Vec<Ephemeral>,
    /// Leases of this process that were asked to stop in this turn.
    pub(crate) stopped: Vec<Box<str>>,
    /// The earliest next slot of the schedules that were put in this turn.
    pub(crate) scheduled: Option<Timestamp>,
    /// When a queue that is at its rate may go on.
    pub(crate) held_until: Option<Timestamp>,
    /// Completed jobs that are kept by count, oldest first.
    pub(crate) completed: HashMap<NameId, VecDeque<Kept>>,
    /// Jobs leased in this turn.
    pub(crate) claimed: Vec<Seq>,
    pub(crate) batch: u64,
    /// The turn that last changed many jobs.
    pub(crate) bulked: u64,
    /// Whether the leases of the process before were looked at.
    is_recovered: bool,
    next_purge: Timestamp,
    /// Events of this turn, for the followers.
    pub(crate) events: Vec<Arc<Event>>,
    followers: Vec<Arc<dyn Follower>>,
    pub(crate) answers: Vec<Pending>,
    closing: Vec<Reply<()>>,
}

impl<R: Rows> Writer<R> {
    /// Opens the writer on `rows` and finds the heads. Leases of the process before are looked at when a call comes that needs it.
    pub(crate) fn open(rows: R, inbox: Arc<Inbox<Call<R>>>, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Result<Self> {
        let now = clock.now();
        let mut writer = Self {
            rows,
            inbox,
            clock,
            ids,
            names: Names::default(),
            dispatch: Dispatch::default(),
            leases: Leases::default(),
            parked: VecDeque::new(),
            weeded: 0,
            now,
            last_event: Timestamp::default(),
            heads: HashMap::new(),
            across: Position::default(),
            moved: Vec::new(),
            fresh: Vec::new(),
            recent: Recent::default(),
            fresh_ids: HashMap::new(),
            next_seq: 1,
            next_due: None,
            next_expiry: None,
            counts: Counts::default(),
            metering: Metering::default(),
            bounds_backlogs: false,
            loose_keys: BTreeMap::new(),
            key_rates: KeyRates::default(),
            lifecycle: None,
            schedule_counts: HashMap::new(),
            told: Vec::new(),
            stopped: Vec::new(),
            scheduled: None,
            held_until: None,
            completed: HashMap::new(),
            claimed: Vec::new(),
            batch: 1,
            bulked: 0,
            is_recovered: false,
            next_purge: now + PURGE_EVERY,
            events: Vec::new(),
            followers: Vec::new(),
            answers: Vec::new(),
            closing: Vec::new(),
        };
        writer.rows.begin()?;
        writer.next_seq = writer.rows.last_seq()? + 1;
        writer.last_event = writer.rows.last_time()?;
        writer.across = writer.rows.last_across()?;
        for lane in writer.rows.lanes()? {
            writer.dispatch.push_unread(lane);
        }
        writer.next_due = writer.rows.next_due()?;
        writer.next_expiry = writer.rows.next_expiry()?;
        writer.rows.commit()?;
        Ok(writer)
    }

    /// Runs until the store is closed, or until the medium fails or a follower panics: then `on_fatal` is told.
    pub(crate) fn run(self, on_fatal: OnFatal) {
        let inbox = self.inbox.clone();
        let ended = catch_unwind(AssertUnwindSafe(|| self.turns()));
        let Err(error) = ended.unwrap_or_else(|panic| Err(panicked("the writer panicked", &*panic))) else { return };
        tracing::error!(%error, "the store failed and takes no more calls");
        inbox.abandon();
        on_fatal(&error);
    }

    fn turns(mut self) -> Result<()> {
        let mut batch = Vec::new();
        while self.inbox.take(&mut batch, MAX_BATCH, self.timeout()) {
            if let Err(error) = self.turn(&mut batch) {
                // Dropping the replies with the writer answers every caller of this turn, and those that wait, with `unavailable`.
                self.rows.rollback();
                return Err(error);
            }
        }
        let Self { rows, closing, .. } = self;
        drop(rows);
        for reply in closing {
            drop(reply.send(Ok(())));
        }
        Ok(())
    }

    fn turn(&mut self, batch: &mut Vec<Call<R>>) -> Result<()> {
        let now = self.clock.now();
        if now < self.now {
            self.set_back(self.now.since(now));
        }
        self.now = now;
        let (begun, calls) = (Instant::now(), batch.len());
        self.rows.begin()?;
        for call in batch.drain(..) {
            self.apply(call)?;
        }
        self.expire_leases()?;
        self.expire_waiting()?;
        self.promote_due()?;
        self.free_keys()?;
        self.lease_out()?;
        self.write_fresh()?;
        self.write_claims()?;
        self.purge()?;
        self.write_counts()?;
        for tenant in self.moved.drain(..) {
            let head = self.heads.get(&tenant).copied().unwrap_or_default();
            self.rows.set_head(tenant, head)?;
        }
        failpoint::reach(Point::BeforeCommit);
        let ending = Instant::now();
        self.rows.commit()?;
        failpoint::reach(Point::AfterCommit);
        self.metering.turned(begun, calls, ending, &self.answers, self.events.len());
        self.metering.leases(self.leases.len());

        if !self.events.is_empty() {
            self.followers.iter().for_each(|follower| follower.durable(&self.events));
        }
        let unwanted: Vec<_> = self.answers.drain(..).filter_map(Pending::send).flatten().collect();
        if !unwanted.is_empty() {
            // Closed means that the leases end with the process or by themselves.
            drop(self.inbox.send(Call::Release(unwanted)));
        }
        if !self.events.is_empty() {
            for follower in &self.followers {
                follower.committed(&self.events);
            }
            self.events.clear();
        }
        if let Some(lifecycle) = self.lifecycle.as_ref().filter(|_| !self.told.is_empty()) {
            lifecycle.committed(&self.told);
            self.told.clear();
        }
        if !self.stopped.is_empty() {
            for follower in &self.followers {
                follower.cancelled(&self.stopped);
            }
            self.stopped.clear();
        }
        if let Some(next) = self.scheduled.take() {
            for follower in &self.followers {
                follower.scheduled(next);
            }
        }
        Ok(())
    }

    fn apply(&mut self, call: Call<R>) -> Result<()> {
        if !self.is_recovered && !matches!(call, Call::Follow(_) | Call::Observe(_) | Call::Limit(..)) {
            self.recover()?;
        }
        let answer = match call {
            Call::Commit(commit, reply) => Pending::Committed(reply, self.commit(commit)?),
            Call::With(work, reply) => {
                // The work may read jobs that this turn has not written yet.
                self.write_fresh()?;
                Pending::Committed(reply, self.commit_with(work)?)
            }
            Call::Claim(claim, reply) => return self.park(claim, reply),
            Call::Settle(settle, reply) => Pending::Settled(reply, self.settle(settle)?),
            Call::Renew { tenant, id, lease, extend, reply } => {
                Pending::Renewed(reply, self.renew(tenant.as_ref(), &id, &lease, extend)?)
            }
            Call::Control { tenant, id, control, reply } => Pending::Job(reply, self.control(&tenant, &id, &control)?),
            Call::Operate(operation) => return self.operate(operation),
            Call::Limit(limits, reply) => {
                self.limit_queues(limits)?;
                self.recover()?;
                Pending::Done(reply)
            }
            Call::Fire(fire, reply) => Pending::Fired(reply, self.fire(fire)?),
            Call::Leased { tenant, id, lease, reply } => {
                drop(reply.send(self.leased(tenant.as_ref(), &id, &lease)));
                return Ok(());
            }
            Call::Observe(lifecycle) => {
                self.lifecycle = Some(lifecycle);
                return Ok(());
            }
            Call::Slots(tenant, reply) => {
                let slots = match self.rows.find_name(NameKind::Tenant, tenant.as_str())? {
                    Some(tenant) => self.rows.slots(tenant)?,
                    None => Vec::new(),
                };
                drop(reply.send(Ok(slots.into_iter().collect())));
                return Ok(());
            }
            Call::PutSession { tenant, sid, state, until, reply } => {
                let tenant = self.names.tenant(&mut self.rows, &tenant)?;
                self.rows.put_session(tenant, &sid, &state, until)?;
                Pending::Done(reply)
            }
            Call::DeleteSession { tenant, sid, reply } => {
                let tenant = self.names.tenant(&mut self.rows, &tenant)?;
                self.rows.delete_session(tenant, &sid)?;
                Pending::Done(reply)
            }
            Call::Release(tokens) => return self.release(tokens),
            Call::Follow(follower) => {
                self.followers.push(follower);
                return Ok(());
            }
            Call::Close(reply) => {
                self.inbox.close();
                self.closing.push(reply);
                return Ok(());
            }
        };
        self.answers.push(answer);
        Ok(())
    }

    /// Gives back the leases of the process before, once: after the limits are known, which say how many lost workers are too many,
    /// and after somebody listens to what becomes of jobs; and before anything else happens.
    fn recover(&mut self) -> Result<()> {
        if !self.is_recovered {
            self.is_recovered = true;
            self.recover_claims()?;
        }
        Ok(())
    }

    /// The clock was set back. What lasts for a while lasts as long as before; what is due at a time waits for that time.
    fn set_back(&mut self, by: Duration) {
        self.leases.pull(by);
        for parked in &mut self.parked {
            parked.deadline = parked.deadline - by;
        }
        self.next_purge = self.next_purge - by;
    }

    /// How long the writer may sleep when nobody calls.
    fn timeout(&self) -> Option<Duration> {
        let deadlines = self.parked.iter().map(|parked| parked.deadline);
        if !self.loose_keys.is_empty() {
            return Some(Duration::ZERO);
        }
        let timers = [self.leases.next_end(), self.next_due, self.next_expiry, self.held_until, Some(self.next_purge)];
        let next = timers.into_iter().flatten().chain(deadlines).min()?;
        Some(next.since(self.clock.now()))
    }

    fn purge(&mut self) -> Result<()> {
        if self.now < self.next_purge {
            return Ok(());
        }
        let is_more = self.rows.purge(self.now, PURGE_AT_ONCE)? | self.purge_jobs()?;
        self.next_purge = self.now + if is_more { PURGE_AGAIN } else { PURGE_EVERY };
        Ok(())
    }
}

/// A panic as an error, with what it said.
pub(crate) fn panicked(what: &str, panic: &(dyn Any + Send)) -> Error {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Error::internal(what, said.unwrap_or("no message"))
}
