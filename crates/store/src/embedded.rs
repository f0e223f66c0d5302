//! The contracts over a writer and its readers: the same for every embedded engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidewire_core::catalog::QueueSettings;
use tidewire_core::commit::{Commit, Committed};
use tidewire_core::event::{Epoch, Event, Position};
use tidewire_core::id::Ids;
use tidewire_core::job::{FailedAttempt, Job, LogLine, MAX_LOG_LINES};
use tidewire_core::schedule::{Reached, Stored};
use tidewire_core::store::{
    Answer, Bulk, Changed, Claim, Commits, Control, Counts, Durability, Figures, Fire, Fired, Flow, FlowControl,
    FlowQuery, Follower, JobQuery, Jobs, Leased, Lifecycle, Log, LogQuery, Page, Parent, QueueLimits, QueuePace,
    QueueTenant, Queues, Renewed, ScheduleQuery, Schedules, Sessions, Settle, Settled, Store,
};
use tidewire_core::time::Clock;
use tidewire_core::{Error, Id, Json, Result, TenantId, Timestamp};

use crate::answer::{Call, ask, ask_claim};
use crate::inbox::Inbox;
use crate::meter::Meter;
use crate::operate::Operation;
use crate::rows::{Found, Rows};
use crate::writer::{OnFatal, Writer};

/// The read side of an engine.
pub(crate) trait Reader: Send + Sync + 'static {
    fn head(&self, tenant: &TenantId) -> Answer<'_, Position>;
    fn log(&self, tenant: &TenantId, query: LogQuery) -> Answer<'_, Vec<Arc<Event>>>;
    fn event(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Arc<Event>>>;
    fn job(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<(Job, Vec<FailedAttempt>)>>;
    fn jobs(&self, query: JobQuery) -> Answer<'_, Page<Job>>;
    /// The next jobs that match, the oldest first.
    fn find(&self, query: JobQuery) -> Answer<'_, Found>;
    fn logs(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<String>,
        limit: usize,
    ) -> Answer<'_, Option<Page<LogLine>>>;
    fn queue_settings(&self) -> Answer<'_, BTreeMap<Arc<str>, QueueSettings>>;
    fn queue_tenants(&self, queue: &str, limit: u32) -> Answer<'_, Vec<QueueTenant>>;
    fn counts(&self, tenant: Option<&TenantId>) -> Answer<'_, Counts>;
    fn flow(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Flow>>;
    fn flows(&self, query: FlowQuery) -> Answer<'_, Page<Flow>>;
    fn parents(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<String>,
        limit: usize,
    ) -> Answer<'_, Option<Page<Parent>>>;
    fn due(&self, now: Timestamp, limit: u32) -> Answer<'_, Vec<Stored>>;
    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<'_, Vec<TenantId>>;
    fn next_due(&self) -> Answer<'_, Option<Timestamp>>;
    fn schedule(&self, tenant: &TenantId, key: &str, user_id: Option<&str>) -> Answer<'_, Option<Stored>>;
    fn schedules(&self, query: ScheduleQuery) -> Answer<'_, Page<Stored>>;
    fn session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, Option<String>>;
    fn size(&self) -> Answer<'_, Size>;
    fn close(&self);
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    /// Tenants with an event.
    pub(crate) logs: u64,
    /// Events of all of them.
    pub(crate) events: u64,
    /// Bytes on the disk, where there is one.
    pub(crate) bytes: Option<u64>,
}

/// What a store is, beside its rows.
pub(crate) struct Identity {
    pub(crate) epoch: Epoch,
    pub(crate) secret: [u8; 32],
    pub(crate) durability: Durability,
}

/// An embedded store: the writer's inbox and the readers.
pub(crate) struct Embedded<R, Rd> {
    inbox: Arc<Inbox<Call<R>>>,
    reader: Rd,
    identity: Identity,
    meter: Arc<Meter>,
}

impl<R: Rows, Rd: Reader> Embedded<R, Rd> {
    /// Opens the writer on `rows` and starts its thread.
    pub(crate) fn start(
        rows: R,
        reader: Rd,
        identity: Identity,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn Ids>,
        on_fatal: OnFatal,
    ) -> Result<Self> {
        let inbox = Arc::new(Inbox::new());
        let writer = Writer::open(rows, inbox.clone(), clock, ids)?;
        let meter = writer.metering.meter.clone();
        // Not joined: `close` answers when the thread has dropped its rows, and a process that exits needs no more than that.
        std::thread::Builder::new()
            .name("tidewire-writer".to_owned())
            .spawn(move || writer.run(on_fatal))
            .map_err(|error| Error::internal("the writer thread cannot be started", error))?;
        Ok(Self { inbox, reader, identity, meter })
    }

    pub(crate) fn inbox(&self) -> &Arc<Inbox<Call<R>>> {
        &self.inbox
    }

    /// Hands over a call that has no answer. These come while an app starts, when nothing waits, and a closed store has nothing to tell.
    fn tell(&self, call: Call<R>) {
        drop(self.inbox.send(call));
    }
}

impl<R, Rd> Drop for Embedded<R, Rd> {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl<R: Rows, Rd: Reader> Store for Embedded<R, Rd> {
    fn durability(&self) -> Durability {
        self.identity.durability
    }

    fn figures(&self) -> Answer<'_, Figures> {
        Box::pin(async {
            let Size { logs, events: log_events, bytes } = self.reader.size().await?;
            let (waiting, refused) = (self.inbox.len() as u64, self.inbox.refused());
            Ok(Figures { logs, log_events, bytes, waiting, refused, ..self.meter.figures() })
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        self.reader.close();
        ask(&self.inbox, Call::Close)
    }
}

impl<R: Rows, Rd: Reader> Commits for Embedded<R, Rd> {
    fn commit(&self, commit: Commit) -> Answer<'_, Committed> {
        ask(&self.inbox, |reply| Call::Commit(commit, reply))
    }
}

impl<R: Rows, Rd: Reader> Log for Embedded<R, Rd> {
    fn epoch(&self) -> &Epoch {
        &self.identity.epoch
    }

    fn secret(&self) -> &[u8; 32] {
        &self.identity.secret
    }

    fn head(&self, tenant: &TenantId) -> Answer<'_, Position> {
        self.reader.head(tenant)
    }

    fn read(&self, tenant: &TenantId, query: LogQuery) -> Answer<'_, Vec<Arc<Event>>> {
        self.reader.log(tenant, query)
    }

    fn event(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Arc<Event>>> {
        self.reader.event(tenant, id)
    }

    fn follow(&self, follower: Arc<dyn Follower>) {
        self.tell(Call::Follow(follower));
    }
}

impl<R: Rows, Rd: Reader> Jobs for Embedded<R, Rd> {
    fn observe(&self, lifecycle: Arc<dyn Lifecycle>) {
        self.tell(Call::Observe(lifecycle));
    }

    fn flow(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Flow>> {
        self.reader.flow(tenant, id)
    }

    fn flows(&self, query: FlowQuery) -> Answer<'_, Page<Flow>> {
        self.reader.flows(query)
    }

    fn parents(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<String>,
        limit: u32,
    ) -> Answer<'_, Option<Page<Parent>>> {
        self.reader.parents(tenant, id, cursor, (limit as usize).clamp(1, Parent::MOST))
    }

    fn control_flow(&self, tenant: &TenantId, id: &Id, control: FlowControl) -> Answer<'_, ()> {
        let (tenant, id) = (tenant.clone(), id.clone());
        ask(&self.inbox, |reply| Call::Operate(Operation::Flow { tenant, id, control, reply }))
    }

    fn limit_queues(&self, limits: BTreeMap<Arc<str>, QueueLimits>) -> Answer<'_, ()> {
        ask(&self.inbox, |reply| Call::Limit(limits, reply))
    }

    fn claim(&self, claim: Claim) -> Answer<'_, Vec<Leased>> {
        ask_claim(&self.inbox, claim)
    }

    fn settle(&self, settle: Settle) -> Answer<'_, Settled> {
        ask(&self.inbox, |reply| Call::Settle(settle, reply))
    }

    fn leased(&self, tenant: Option<&TenantId>, id: &Id, lease: &str) -> Answer<'_, Job> {
        let (tenant, id, lease) = (tenant.cloned(), id.clone(), lease.into());
        ask(&self.inbox, |reply| Call::Leased { tenant, id, lease, reply })
    }

    fn renew(&self, tenant: Option<&TenantId>, id: &Id, lease: &str, extend: Duration) -> Answer<'_, Renewed> {
        let (tenant, id, lease) = (tenant.cloned(), id.clone(), lease.into());
        ask(&self.inbox, |reply| Call::Renew { tenant, id, lease, extend, reply })
    }

    fn job(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<(Job, Vec<FailedAttempt>)>> {
        self.reader.job(tenant, id)
    }

    fn jobs(&self, query: JobQuery) -> Answer<'_, Page<Job>> {
        self.reader.jobs(query)
    }

    fn control(&self, tenant: &TenantId, id: &Id, control: Control) -> Answer<'_, Job> {
        let (tenant, id) = (tenant.clone(), id.clone());
        ask(&self.inbox, |reply| Call::Control { tenant, id, control, reply })
    }

    fn bulk(&self, mut query: JobQuery, action: Bulk) -> Answer<'_, Changed> {
        query.limit = query.limit.clamp(1, Bulk::MAX);
        Box::pin(async move {
            // Found beside the writer, so that searching keeps nobody waiting; what has changed since is left as it is.
            let states = query.states.clone();
            let Found { seqs, next } = self.reader.find(query).await?;
            let next = next.map(|next| next.to_string());
            if action == Bulk::Count || seqs.is_empty() {
                return Ok(Changed { changed: seqs.len() as u64, skipped: 0, next });
            }
            let bulk = |reply| Call::Operate(Operation::Bulk { seqs, states, action, reply });
            Ok(Changed { next, ..ask(&self.inbox, bulk).await? })
        })
    }

    fn progress(&self, tenant: Option<&TenantId>, id: &Id, lease: &str, progress: Json) -> Answer<'_, ()> {
        let (tenant, id, lease) = (tenant.cloned(), id.clone(), lease.into());
        ask(&self.inbox, |reply| Call::Operate(Operation::Progress { tenant, id, lease, progress, reply }))
    }

    fn log(&self, tenant: Option<&TenantId>, id: &Id, lease: &str, lines: Vec<String>) -> Answer<'_, ()> {
        let (tenant, id, lease) = (tenant.cloned(), id.clone(), lease.into());
        ask(&self.inbox, |reply| Call::Operate(Operation::Log { tenant, id, lease, lines, reply }))
    }

    fn logs(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<String>,
        limit: u32,
    ) -> Answer<'_, Option<Page<LogLine>>> {
        self.reader.logs(tenant, id, cursor, (limit as usize).clamp(1, MAX_LOG_LINES))
    }

    fn counts(&self, tenant: Option<&TenantId>) -> Answer<'_, Counts> {
        self.reader.counts(tenant)
    }
}

impl<R: Rows, Rd: Reader> Queues for Embedded<R, Rd> {
    fn queue_settings(&self) -> Answer<'_, BTreeMap<Arc<str>, QueueSettings>> {
        self.reader.queue_settings()
    }

    fn patch_queue(&self, queue: &str, declared: QueueLimits, patch: Json) -> Answer<'_, QueueSettings> {
        let queue = queue.into();
        ask(&self.inbox, |reply| Call::Operate(Operation::PatchQueue { queue, declared, patch, reply }))
    }

    fn oldest_pending(&self, tenant: Option<&TenantId>) -> Answer<'_, BTreeMap<Arc<str>, Timestamp>> {
        let tenant = tenant.cloned();
        ask(&self.inbox, |reply| Call::Operate(Operation::Oldest { tenant, reply }))
    }

    fn queue_pace(&self, queue: &str) -> Answer<'_, QueuePace> {
        let queue = queue.into();
        ask(&self.inbox, |reply| Call::Operate(Operation::Pace { queue, reply }))
    }

    fn queue_tenants(&self, queue: &str, limit: u32) -> Answer<'_, Vec<QueueTenant>> {
        self.reader.queue_tenants(queue, limit)
    }
}

impl<R: Rows, Rd: Reader> Schedules for Embedded<R, Rd> {
    fn slots(&self, tenant: &TenantId) -> Answer<'_, BTreeMap<Arc<str>, Reached>> {
        let tenant = tenant.clone();
        ask(&self.inbox, |reply| Call::Slots(tenant, reply))
    }

    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<'_, Vec<TenantId>> {
        self.reader.tenants(after, limit)
    }

    fn fire(&self, fire: Fire) -> Answer<'_, Fired> {
        ask(&self.inbox, |reply| Call::Fire(fire, reply))
    }

    fn due(&self, now: Timestamp, limit: u32) -> Answer<'_, Vec<Stored>> {
        self.reader.due(now, limit)
    }

    fn next_due(&self) -> Answer<'_, Option<Timestamp>> {
        self.reader.next_due()
    }

    fn schedule(&self, tenant: &TenantId, key: &str, user_id: Option<&str>) -> Answer<'_, Option<Stored>> {
        self.reader.schedule(tenant, key, user_id)
    }

    fn schedules(&self, query: ScheduleQuery) -> Answer<'_, Page<Stored>> {
        self.reader.schedules(query)
    }
}

impl<R: Rows, Rd: Reader> Sessions for Embedded<R, Rd> {
    fn put_session(&self, tenant: &TenantId, sid: &str, state: String, expires: Timestamp) -> Answer<'_, ()> {
        let (tenant, sid) = (tenant.clone(), sid.to_owned());
        ask(&self.inbox, |reply| Call::PutSession { tenant, sid, state, until: expires, reply })
    }

    fn session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, Option<String>> {
        self.reader.session(tenant, sid)
    }

    fn delete_session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, ()> {
        let (tenant, sid) = (tenant.clone(), sid.to_owned());
        ask(&self.inbox, |reply| Call::DeleteSession { tenant, sid, reply })
    }
}
