//! The store as one process sees it. What was written of sessions without waiting for the answer is gone when the process is killed, unless
//! something else was asked of the store afterwards: it takes its calls in their order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidewire_core::catalog::QueueSettings;
use tidewire_core::commit::{Commit, Committed};
use tidewire_core::event::{Epoch, Event, Position};
use tidewire_core::job::{FailedAttempt, Job, LogLine};
use tidewire_core::schedule::{Reached, Stored};
use tidewire_core::store::{
    Answer, Bulk, Changed, Claim, Commits, Control, Counts, Durability, Fire, Fired, Flow, FlowControl, FlowQuery,
    Follower, JobQuery, Jobs, Leased, Lifecycle, Log, LogQuery, Page, Parent, QueueLimits, QueuePace, QueueTenant,
    Queues, Renewed, ScheduleQuery, Schedules, Sessions, Settle, Settled, Store,
};
use tidewire_core::{Error, Id, Json, Result, TenantId, Timestamp};

pub(crate) struct Forgetful {
    inner: Arc<dyn Store>,
    /// `None` when the process is dead: nothing of it gets to the store any more.
    waiting: Mutex<Option<Vec<Write>>>,
    /// Held while what waits is written, so that who comes second finds it written.
    writing: tokio::sync::Mutex<()>,
}

/// A session's state and until when it is kept; without one it goes.
struct Write {
    tenant: TenantId,
    sid: String,
    state: Option<(String, Timestamp)>,
}

impl Forgetful {
    pub(crate) fn over(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { inner, waiting: Mutex::new(Some(Vec::new())), writing: tokio::sync::Mutex::default() })
    }

    /// The process is killed, and what waits is lost.
    pub(crate) fn kill(&self) {
        *self.waiting.lock() = None;
    }

    /// Writes what waits.
    async fn write(&self) -> Result<()> {
        let _writing = self.writing.lock().await;
        let writes = match &mut *self.waiting.lock() {
            Some(waiting) => std::mem::take(waiting),
            None => return Err(Error::unavailable("the process is dead")),
        };
        for Write { tenant, sid, state } in writes {
            match state {
                Some((state, expires)) => self.inner.put_session(&tenant, &sid, state, expires).await?,
                None => self.inner.delete_session(&tenant, &sid).await?,
            }
        }
        Ok(())
    }

    fn wait(&self, tenant: &TenantId, sid: &str, state: Option<(String, Timestamp)>) -> Answer<'_, ()> {
        if let Some(waiting) = &mut *self.waiting.lock() {
            waiting.push(Write { tenant: tenant.clone(), sid: sid.to_owned(), state });
        }
        Box::pin(self.write())
    }
}

impl Sessions for Forgetful {
    fn put_session(&self, tenant: &TenantId, sid: &str, state: String, expires: Timestamp) -> Answer<'_, ()> {
        self.wait(tenant, sid, Some((state, expires)))
    }

    fn session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, Option<String>> {
        let (tenant, sid) = (tenant.clone(), sid.to_owned());
        Box::pin(async move {
            self.write().await?;
            self.inner.session(&tenant, &sid).await
        })
    }

    fn delete_session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, ()> {
        self.wait(tenant, sid, None)
    }
}

impl Commits for Forgetful {
    fn commit(&self, commit: Commit) -> Answer<'_, Committed> {
        Box::pin(async move {
            self.write().await?;
            self.inner.commit(commit).await
        })
    }
}

/// Methods that are the inner store's.
macro_rules! inner {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $answer:ty)?;)*) => {
        $(fn $name(&self, $($argument: $type),*) $(-> $answer)? {
            self.inner.$name($($argument),*)
        })*
    };
}

impl Store for Forgetful {
    inner! {
        fn durability() -> Durability;
        fn close() -> Answer<'_, ()>;
    }
}

impl Log for Forgetful {
    inner! {
        fn epoch() -> &Epoch;
        fn secret() -> &[u8; 32];
        fn head(tenant: &TenantId) -> Answer<'_, Position>;
        fn read(tenant: &TenantId, query: LogQuery) -> Answer<'_, Vec<Arc<Event>>>;
        fn event(tenant: &TenantId, id: &Id) -> Answer<'_, Option<Arc<Event>>>;
        fn follow(follower: Arc<dyn Follower>);
    }
}

impl Jobs for Forgetful {
    inner! {
        fn observe(lifecycle: Arc<dyn Lifecycle>);
        fn flow(tenant: &TenantId, id: &Id) -> Answer<'_, Option<Flow>>;
        fn flows(query: FlowQuery) -> Answer<'_, Page<Flow>>;
        fn control_flow(tenant: &TenantId, id: &Id, control: FlowControl) -> Answer<'_, ()>;
        fn parents(tenant: &TenantId, id: &Id, cursor: Option<String>, limit: u32) -> Answer<'_, Option<Page<Parent>>>;
        fn limit_queues(limits: BTreeMap<Arc<str>, QueueLimits>) -> Answer<'_, ()>;
        fn claim(claim: Claim) -> Answer<'_, Vec<Leased>>;
        fn settle(settle: Settle) -> Answer<'_, Settled>;
        fn leased(tenant: Option<&TenantId>, id: &Id, lease: &str) -> Answer<'_, Job>;
        fn renew(tenant: Option<&TenantId>, id: &Id, lease: &str, extend: Duration) -> Answer<'_, Renewed>;
        fn job(tenant: &TenantId, id: &Id) -> Answer<'_, Option<(Job, Vec<FailedAttempt>)>>;
        fn jobs(query: JobQuery) -> Answer<'_, Page<Job>>;
        fn control(tenant: &TenantId, id: &Id, control: Control) -> Answer<'_, Job>;
        fn bulk(query: JobQuery, action: Bulk) -> Answer<'_, Changed>;
        fn progress(tenant: Option<&TenantId>, id: &Id, lease: &str, progress: Json) -> Answer<'_, ()>;
        fn log(tenant: Option<&TenantId>, id: &Id, lease: &str, lines: Vec<String>) -> Answer<'_, ()>;
        fn logs(tenant: &TenantId, id: &Id, cursor: Option<String>, limit: u32) -> Answer<'_, Option<Page<LogLine>>>;
        fn counts(tenant: Option<&TenantId>) -> Answer<'_, Counts>;
    }
}

impl Queues for Forgetful {
    inner! {
        fn queue_settings() -> Answer<'_, BTreeMap<Arc<str>, QueueSettings>>;
        fn patch_queue(queue: &str, declared: QueueLimits, patch: Json) -> Answer<'_, QueueSettings>;
        fn oldest_pending(tenant: Option<&TenantId>) -> Answer<'_, BTreeMap<Arc<str>, Timestamp>>;
        fn queue_pace(queue: &str) -> Answer<'_, QueuePace>;
        fn queue_tenants(queue: &str, limit: u32) -> Answer<'_, Vec<QueueTenant>>;
    }
}

impl Schedules for Forgetful {
    inner! {
        fn slots(tenant: &TenantId) -> Answer<'_, BTreeMap<Arc<str>, Reached>>;
        fn tenants(after: Option<&TenantId>, limit: u32) -> Answer<'_, Vec<TenantId>>;
        fn fire(fire: Fire) -> Answer<'_, Fired>;
        fn due(now: Timestamp, limit: u32) -> Answer<'_, Vec<Stored>>;
        fn next_due() -> Answer<'_, Option<Timestamp>>;
        fn schedule(tenant: &TenantId, key: &str, user_id: Option<&str>) -> Answer<'_, Option<Stored>>;
        fn schedules(query: ScheduleQuery) -> Answer<'_, Page<Stored>>;
    }
}
