//! The log and the sessions of a store in a few lines; the rest of the contract is not used by a gateway.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidewire_core::catalog::QueueSettings;
use tidewire_core::commit::{Appended, Commit, Committed};
use tidewire_core::event::{Epoch, Event, Position};
use tidewire_core::job::{FailedAttempt, Job, LogLine};
use tidewire_core::schedule::{Reached, Stored};
use tidewire_core::store::{
    Answer, Bulk, Changed, Claim, Commits, Control, Counts, Durability, Fire, Fired, Flow, FlowControl, FlowQuery,
    Follower, JobQuery, Jobs, Leased, Lifecycle, Log, LogQuery, Page, Parent, QueueLimits, QueuePace, QueueTenant,
    Queues, Renewed, ScheduleQuery, Schedules, Sessions, Settle, Settled, Store,
};
use tidewire_core::time::{Clock, SystemClock};
use tidewire_core::{Error, Id, Json, Kind, TenantId, Timestamp};
use tokio::sync::Semaphore;

type Logs = HashMap<TenantId, Vec<Arc<Event>>>;
type Kept = HashMap<(TenantId, String), (String, Timestamp)>;

pub(crate) struct Fake {
    epoch: Epoch,
    logs: Mutex<Logs>,
    sessions: Mutex<Kept>,
    followers: Mutex<Vec<Arc<dyn Follower>>>,
    /// Reads fail while this is set.
    pub(crate) broken: AtomicBool,
    /// Committed events are not told to the follower while this is set.
    pub(crate) mute: AtomicBool,
    pub(crate) session_writes: AtomicU64,
    /// Nothing of a session is taken while this is set.
    pub(crate) is_full: AtomicBool,
    /// A write of a session is durable when it has had a permit of these.
    pub(crate) syncs: Arc<Semaphore>,
}

impl Fake {
    pub(crate) fn new(epoch: &str) -> Self {
        Self {
            epoch: Epoch::new(epoch).expect("epoch"),
            logs: Mutex::default(),
            sessions: Mutex::default(),
            followers: Mutex::default(),
            broken: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            session_writes: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            syncs: Arc::new(Semaphore::new(1)),
        }
    }

    /// The same data in another process. What the old process still writes as it ends is not seen there.
    pub(crate) fn reopened(&self) -> Self {
        let copy = Self::new(self.epoch.as_str());
        *copy.logs.lock() = self.logs.lock().clone();
        *copy.sessions.lock() = self.sessions.lock().clone();
        copy
    }

    /// What is kept of a session.
    pub(crate) fn kept(&self, tenant: &str, sid: &str) -> Option<String> {
        let key = (TenantId::new(tenant).expect("tenant"), sid.to_owned());
        self.sessions.lock().get(&key).map(|(state, _)| state.clone())
    }

    /// Another incarnation, as after a restore.
    pub(crate) fn restored(&self, epoch: &str) -> Self {
        Self { epoch: Epoch::new(epoch).expect("epoch"), ..self.reopened() }
    }
}

fn unused<T>() -> Answer<'static, T> {
    Box::pin(async { Err(Error::unavailable("not part of this store")) })
}

impl Store for Fake {
    fn durability(&self) -> Durability {
        Durability::Memory
    }
    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

impl Commits for Fake {
    fn commit(&self, commit: Commit) -> Answer<'_, Committed> {
        let mut logs = self.logs.lock();
        let (mut written, mut told) = (Vec::new(), Vec::new());
        for append in commit.events {
            let log = logs.entry(commit.tenant.clone()).or_default();
            let event = Arc::new(Event {
                tenant: commit.tenant.clone(),
                position: Position(log.len() as u64 + 1),
                origin: None,
                id: append.id,
                kind: append.kind,
                time: SystemClock.now(),
                data: append.data,
                rooms: append.rooms,
                user_id: append.user_id,
                correlation_id: append.correlation_id,
                causation_id: append.causation_id,
                stream: append.stream,
                version: None,
            });
            log.push(event.clone());
            written.push(event.clone());
            told.push(event.clone());
            if append.across {
                let log = logs.entry(TenantId::across()).or_default();
                log.push(Arc::new(Event::clone(&event).across(Position(log.len() as u64 + 1))));
                told.extend(log.last().cloned());
            }
        }
        // Told under the lock, so that the follower hears in the order of the log.
        if !self.mute.load(Ordering::SeqCst) {
            self.followers.lock().iter().for_each(|follower| follower.durable(&told));
            self.followers.lock().iter().for_each(|follower| follower.committed(&told));
        }
        let appended = |event: &Arc<Event>| Appended {
            id: event.id.clone(),
            kind: event.kind.clone(),
            position: Some(event.position),
            time: event.time,
            version: None,
            deduplicated: false,
        };
        let committed = Committed { events: written.iter().map(appended).collect(), ..Committed::default() };
        Box::pin(async { Ok(committed) })
    }
}

impl Log for Fake {
    fn epoch(&self) -> &Epoch {
        &self.epoch
    }
    fn secret(&self) -> &[u8; 32] {
        &[7; 32]
    }
    fn head(&self, tenant: &TenantId) -> Answer<'_, Position> {
        let head = self.logs.lock().get(tenant).map_or(0, |log| log.len() as u64);
        Box::pin(async move { Ok(Position(head)) })
    }
    fn read(&self, tenant: &TenantId, query: LogQuery) -> Answer<'_, Vec<Arc<Event>>> {
        let logs = self.logs.lock();
        let log = logs.get(tenant).map_or(&[][..], Vec::as_slice);
        let fits = |event: &&Arc<Event>| {
            event.position > query.after && query.up_to.is_none_or(|up_to| event.position <= up_to)
        };
        let found: Vec<_> = log.iter().filter(fits).take(query.limit as usize).cloned().collect();
        let broken = self.broken.load(Ordering::SeqCst);
        Box::pin(async move {
            tokio::task::yield_now().await;
            if broken { Err(Error::unavailable("the disk is on fire")) } else { Ok(found) }
        })
    }
    fn event(&self, _: &TenantId, _: &Id) -> Answer<'_, Option<Arc<Event>>> {
        unused()
    }
    fn follow(&self, follower: Arc<dyn Follower>) {
        self.followers.lock().push(follower);
    }
}

impl Sessions for Fake {
    fn put_session(&self, tenant: &TenantId, sid: &str, state: String, expires: Timestamp) -> Answer<'_, ()> {
        if self.is_full.load(Ordering::SeqCst) {
            return Box::pin(async { Err(Error::new(Kind::Limited, "store.busy", "65536 calls already wait")) });
        }
        self.session_writes.fetch_add(1, Ordering::SeqCst);
        self.sessions.lock().insert((tenant.clone(), sid.to_owned()), (state, expires));
        Box::pin(async {
            drop(self.syncs.acquire().await.expect("never closed"));
            Ok(())
        })
    }
    fn session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, Option<String>> {
        let kept = self.sessions.lock().get(&(tenant.clone(), sid.to_owned())).cloned();
        Box::pin(async move { Ok(kept.filter(|(_, expires)| *expires > SystemClock.now()).map(|(state, _)| state)) })
    }
    fn delete_session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, ()> {
        self.sessions.lock().remove(&(tenant.clone(), sid.to_owned()));
        Box::pin(async { Ok(()) })
    }
}

impl Jobs for Fake {
    fn observe(&self, _: Arc<dyn Lifecycle>) {}
    fn flow(&self, _: &TenantId, _: &Id) -> Answer<'_, Option<Flow>> {
        unused()
    }
    fn flows(&self, _: FlowQuery) -> Answer<'_, Page<Flow>> {
        unused()
    }
    fn control_flow(&self, _: &TenantId, _: &Id, _: FlowControl) -> Answer<'_, ()> {
        unused()
    }
    fn parents(&self, _: &TenantId, _: &Id, _: Option<String>, _: u32) -> Answer<'_, Option<Page<Parent>>> {
        unused()
    }
    fn limit_queues(&self, _: BTreeMap<Arc<str>, QueueLimits>) -> Answer<'_, ()> {
        unused()
    }
    fn claim(&self, _: Claim) -> Answer<'_, Vec<Leased>> {
        unused()
    }
    fn settle(&self, _: Settle) -> Answer<'_, Settled> {
        unused()
    }
    fn leased(&self, _: Option<&TenantId>, _: &Id, _: &str) -> Answer<'_, Job> {
        unused()
    }
    fn renew(&self, _: Option<&TenantId>, _: &Id, _: &str, _: Duration) -> Answer<'_, Renewed> {
        unused()
    }
    fn job(&self, _: &TenantId, _: &Id) -> Answer<'_, Option<(Job, Vec<FailedAttempt>)>> {
        unused()
    }
    fn jobs(&self, _: JobQuery) -> Answer<'_, Page<Job>> {
        unused()
    }
    fn control(&self, _: &TenantId, _: &Id, _: Control) -> Answer<'_, Job> {
        unused()
    }
    fn counts(&self, _: Option<&TenantId>) -> Answer<'_, Counts> {
        unused()
    }
    fn bulk(&self, _: JobQuery, _: Bulk) -> Answer<'_, Changed> {
        unused()
    }
    fn progress(&self, _: Option<&TenantId>, _: &Id, _: &str, _: Json) -> Answer<'_, ()> {
        unused()
    }
    fn log(&self, _: Option<&TenantId>, _: &Id, _: &str, _: Vec<String>) -> Answer<'_, ()> {
        unused()
    }
    fn logs(&self, _: &TenantId, _: &Id, _: Option<String>, _: u32) -> Answer<'_, Option<Page<LogLine>>> {
        unused()
    }
}

impl Queues for Fake {
    fn queue_settings(&self) -> Answer<'_, BTreeMap<Arc<str>, QueueSettings>> {
        unused()
    }
    fn patch_queue(&self, _: &str, _: QueueLimits, _: Json) -> Answer<'_, QueueSettings> {
        unused()
    }
    fn oldest_pending(&self, _: Option<&TenantId>) -> Answer<'_, BTreeMap<Arc<str>, Timestamp>> {
        unused()
    }
    fn queue_pace(&self, _: &str) -> Answer<'_, QueuePace> {
        unused()
    }
    fn queue_tenants(&self, _: &str, _: u32) -> Answer<'_, Vec<QueueTenant>> {
        unused()
    }
}

impl Schedules for Fake {
    fn slots(&self, _: &TenantId) -> Answer<'_, BTreeMap<Arc<str>, Reached>> {
        unused()
    }
    fn tenants(&self, _: Option<&TenantId>, _: u32) -> Answer<'_, Vec<TenantId>> {
        unused()
    }
    fn fire(&self, _: Fire) -> Answer<'_, Fired> {
        unused()
    }
    fn due(&self, _: Timestamp, _: u32) -> Answer<'_, Vec<Stored>> {
        unused()
    }
    fn next_due(&self) -> Answer<'_, Option<Timestamp>> {
        unused()
    }
    fn schedule(&self, _: &TenantId, _: &str, _: Option<&str>) -> Answer<'_, Option<Stored>> {
        unused()
    }
    fn schedules(&self, _: ScheduleQuery) -> Answer<'_, Page<Stored>> {
        unused()
    }
}
