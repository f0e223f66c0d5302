//! One run of a job as its handler sees it: the job, where effects are staged, and the sign to stop.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tidewire_core::commit::{NewEvent, NewFlow, NewJob, NewSchedule, Request};
use tidewire_core::event::Event;
use tidewire_core::job::Job;
use tidewire_core::store::{Leased, LogQuery, Parent, Store};
use tidewire_core::{Json, Result, TenantId};
use tokio::sync::Notify;

use crate::extract::{Context, States};

/// Why a run is asked to stop. It is dropped when it goes on: after the queue's grace, or at a shutdown after the deadline of the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Somebody cancelled the job. Whatever the run answers, the job does not run again.
    Cancelled,
    /// The job's `timeout` has passed. An answer within the grace still counts.
    TimedOut,
    /// The process stops. [`release`](crate::release) hands the job on with its attempt refunded.
    Shutdown,
}

/// One run of a job: what it is about, and where its effects are staged. Cheap to clone; all clones are the same run.
///
/// What a handler stages is committed together with the job's completion, or not at all: a handler that publishes two events and
/// then fails leaves none of them.
#[derive(Clone)]
pub struct JobContext(Arc<Run>);

struct Run {
    job: Job,
    lease: Box<str>,
    parents: Vec<Parent>,
    store: Arc<dyn Store>,
    states: Arc<States>,
    staged: Mutex<Request>,
    /// Why the run is asked to stop, once it is. The first reason stays.
    stop: OnceLock<Stop>,
    told: Notify,
}

impl JobContext {
    /// A context for the run of a job that was just leased.
    pub(crate) fn new(leased: Leased, store: Arc<dyn Store>, states: Arc<States>) -> Self {
        let Leased { job, lease, parents, .. } = leased;
        let (staged, stop, told) = Default::default();
        Self(Arc::new(Run { job, lease, parents, store, states, staged, stop, told }))
    }

    /// The job, its `attempt` counting this run.
    pub fn job(&self) -> &Job {
        &self.0.job
    }

    /// The token of this run's lease. It is void when the run has ended.
    pub fn lease(&self) -> &str {
        &self.0.lease
    }

    /// The jobs it waited for and what they returned, the first [`Parent::MOST`]; see [`all_parents`](Self::all_parents).
    pub fn parents(&self) -> &[Parent] {
        &self.0.parents
    }

    /// All jobs it waited for, however many: read from the store where [`parents`](Self::parents) does not have them all.
    pub async fn all_parents(&self) -> Result<Vec<Parent>> {
        if self.0.parents.len() < Parent::MOST {
            return Ok(self.0.parents.clone());
        }
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.0.store.parents(self.tenant(), &self.0.job.id, cursor, Parent::MOST as u32).await?;
            let Some(page) = page else { return Ok(all) };
            all.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// Whose job it is; everything staged belongs to the same tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.0.job.tenant
    }

    /// The job's data as `T`. Data of another shape is an error that no retry mends, so `?` in a handler is not enough: a handler
    /// that takes the data as its first argument fails the job.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T> {
        self.0.job.data.to()
    }

    /// Events of the job's tenant, ascending by position.
    pub async fn events(&self, query: LogQuery) -> Result<Vec<Arc<Event>>> {
        self.0.store.read(self.tenant(), query).await
    }

    /// Keeps how far the run is: any JSON of at most [`MAX_PROGRESS_BYTES`](tidewire_core::job::MAX_PROGRESS_BYTES), in the place of what
    /// was told before. Not staged: it is there when this returns, whatever becomes of the run, and `job.progress` is told if the catalog
    /// declares it. Codes `data.too_large`; `job.lease_lost` when the run has ended.
    pub async fn progress(&self, progress: impl Into<Json>) -> Result<()> {
        self.0.store.progress(Some(self.tenant()), &self.0.job.id, self.lease(), progress.into()).await
    }

    /// Adds a line to the job's log, cut at [`MAX_LOG_BYTES`](tidewire_core::job::MAX_LOG_BYTES); the last
    /// [`MAX_LOG_LINES`](tidewire_core::job::MAX_LOG_LINES) are kept. Not staged: it is there when this returns, also that of a run that
    /// fails. Code `job.lease_lost` when the run has ended.
    pub async fn log(&self, line: impl Into<String>) -> Result<()> {
        self.0.store.log(Some(self.tenant()), &self.0.job.id, self.lease(), vec![line.into()]).await
    }

    /// Stages an event.
    pub fn publish(&self, event: NewEvent) {
        self.0.staged.lock().events.push(event);
    }

    /// Stages a job.
    pub fn enqueue(&self, job: NewJob) {
        self.0.staged.lock().jobs.push(job);
    }

    /// Stages a schedule of the job's tenant, to be put or deleted.
    pub fn schedule(&self, schedule: NewSchedule) {
        self.0.staged.lock().schedules.push(schedule);
    }

    /// Stages a flow: all jobs that this run stages belong to it. The last call counts.
    pub fn flow(&self, flow: NewFlow) {
        self.0.staged.lock().flow = Some(flow);
    }

    /// Ends when the run is asked to stop, and says why; never, if it is not. At once when it was asked before.
    ///
    /// A run that takes long waits for this beside its work, puts things in order and answers. One that does not is dropped at its
    /// next `.await` after the grace.
    pub fn cancelled(&self) -> impl Future<Output = Stop> + Send + use<> {
        let cx = self.clone();
        async move {
            loop {
                let mut told = pin!(cx.0.told.notified());
                // From here on no sign is missed, so the look at the reason comes after it.
                told.as_mut().enable();
                if let Some(stop) = cx.stopping() {
                    return stop;
                }
                told.await;
            }
        }
    }

    /// Whether the run is asked to stop, for whatever reason.
    pub fn is_cancelled(&self) -> bool {
        self.stopping().is_some()
    }

    /// Why the run is asked to stop, if it is.
    pub fn stopping(&self) -> Option<Stop> {
        self.0.stop.get().copied()
    }

    /// Asks the run to stop. The first reason stays.
    pub(crate) fn stop(&self, why: Stop) {
        if self.0.stop.set(why).is_ok() {
            self.0.told.notify_waiters();
        }
    }

    /// Takes what was staged.
    pub(crate) fn take_staged(&self) -> Request {
        std::mem::take(&mut *self.0.staged.lock())
    }
}

impl Context for JobContext {
    fn tenant(&self) -> &TenantId {
        self.tenant()
    }

    fn states(&self) -> &States {
        &self.0.states
    }

    fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }
}
