//! In-process workers: for each queue a loop that claims as many jobs as it has free slots.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tidewire_core::commit::Origin;
use tidewire_core::job::{Job, Verdict};
use tidewire_core::store::{Claim, Leased, Settle};
use tidewire_core::{Error, Kind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::handler::{Handler, HandlerError, HandlerResult, JobContext, fail};
use crate::publisher::Publisher;

/// The most jobs that one claim asks for.
const CLAIM_AT_ONCE: u32 = 256;

/// How long a claim waits in the store before it is made again.
const CLAIM_WAIT: Duration = Duration::from_secs(30);

/// How long a loop waits after the store refused a claim.
const AFTER_REFUSAL: Duration = Duration::from_millis(500);

/// Handlers by job type.
#[derive(Clone, Default)]
pub struct Handlers(BTreeMap<Arc<str>, Arc<dyn Handler>>);

impl Handlers {
    /// Adds the handler of a job type; a later one replaces an earlier one.
    pub fn add(&mut self, kind: impl Into<Arc<str>>, handler: impl Handler) {
        self.0.insert(kind.into(), Arc::new(handler));
    }

    /// Adds a handler that gets the job's data as `T`. Data of another shape fails the job: no retry would mend it.
    pub fn on<T, F, Fut>(&mut self, kind: impl Into<Arc<str>>, handler: F)
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(T, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.add(kind, move |context: JobContext| {
            let handler = handler.clone();
            async move {
                match context.data::<T>() {
                    Ok(data) => handler(data, context).await,
                    Err(error) => fail(error.detail()),
                }
            }
        });
    }

    /// Whether a type has a handler.
    pub fn contains(&self, kind: &str) -> bool {
        self.0.contains_key(kind)
    }

    /// The types that have handlers.
    pub fn kinds(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }
}

/// The running workers of one process.
pub struct Workers {
    stop: CancellationToken,
    loops: TaskTracker,
    runs: TaskTracker,
    /// Ends runs that are still going when the deadline of a stop has passed.
    abort: CancellationToken,
}

impl Workers {
    /// Starts one loop per queue that has a job type with a handler. `queues` says how many jobs each runs at once.
    pub fn start(
        publisher: Arc<Publisher>,
        handlers: Handlers,
        queues: BTreeMap<Arc<str>, u32>,
        name: Arc<str>,
    ) -> Self {
        let workers = Self {
            stop: CancellationToken::new(),
            loops: TaskTracker::new(),
            runs: TaskTracker::new(),
            abort: CancellationToken::new(),
        };
        let handlers = Arc::new(handlers);
        let kinds: Vec<Arc<str>> = handlers.kinds().cloned().collect();
        for (queue, concurrency) in queues {
            let queue = Queue {
                publisher: publisher.clone(),
                handlers: handlers.clone(),
                kinds: kinds.clone(),
                name: queue,
                worker: name.clone(),
                slots: Arc::new(Semaphore::new(concurrency as usize)),
                stop: workers.stop.clone(),
                runs: workers.runs.clone(),
                abort: workers.abort.clone(),
            };
            workers.loops.spawn(queue.run());
        }
        workers.loops.close();
        workers
    }

    /// Stops claiming, lets running jobs finish until `deadline` has passed, then hands them back with their attempt refunded.
    pub async fn stop(self, deadline: Duration) {
        self.stop.cancel();
        self.loops.wait().await;
        self.runs.close();
        if tokio::time::timeout(deadline, self.runs.wait()).await.is_err() {
            self.abort.cancel();
            self.runs.wait().await;
        }
    }
}

/// The loop of one queue.
struct Queue {
    publisher: Arc<Publisher>,
    handlers: Arc<Handlers>,
    kinds: Vec<Arc<str>>,
    name: Arc<str>,
    worker: Arc<str>,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
    runs: TaskTracker,
    abort: CancellationToken,
}

impl Queue {
    async fn run(self) {
        while let Some(mut permits) = self.free_slots().await {
            let claim = Claim {
                tenant: None,
                queues: vec![self.name.clone()],
                kinds: self.kinds.clone(),
                max: u32::try_from(permits.num_permits()).unwrap_or(1),
                // A local lease lasts as long as the process; the run's own timeout ends it earlier.
                lease: Duration::from_secs(3600),
                wait: CLAIM_WAIT,
                worker: self.worker.clone(),
                local: true,
            };
            let claimed = tokio::select! {
                claimed = self.publisher.store().claim(claim) => claimed,
                () = self.stop.cancelled() => return,
            };
            match claimed {
                Ok(jobs) => {
                    for job in jobs {
                        if let Some(permit) = permits.split(1) {
                            self.spawn(job, permit);
                        }
                    }
                }
                Err(error) if error.kind() == Kind::Limited => tokio::time::sleep(AFTER_REFUSAL).await,
                Err(error) => {
                    tracing::error!(queue = %self.name, %error, "claiming jobs failed; this queue stops");
                    return;
                }
            }
        }
    }

    /// All slots that are free, at least one. Nothing when the workers stop.
    async fn free_slots(&self) -> Option<OwnedSemaphorePermit> {
        let first = tokio::select! {
            permit = self.slots.clone().acquire_owned() => permit.ok()?,
            () = self.stop.cancelled() => return None,
        };
        let more = u32::try_from(self.slots.available_permits()).unwrap_or(0).min(CLAIM_AT_ONCE - 1);
        let mut permits = first;
        if let Ok(rest) = self.slots.clone().try_acquire_many_owned(more) {
            permits.merge(rest);
        }
        Some(permits)
    }

    fn spawn(&self, leased: Leased, permit: OwnedSemaphorePermit) {
        let handler = self.handlers.0.get(&leased.job.kind).cloned();
        let (publisher, abort) = (self.publisher.clone(), self.abort.clone());
        self.runs.spawn(async move {
            let Leased { job, lease, .. } = leased;
            let context = JobContext::new(job, publisher.store().clone());
            let run = run(handler, context.clone());
            let verdict = tokio::select! {
                verdict = run => verdict,
                () = abort.cancelled() => Verdict::Release,
            };
            settle(&publisher, &context, lease, verdict).await;
            drop(permit);
        });
    }
}

/// Runs a handler within the job's timeout. A panic is an error like any other.
async fn run(handler: Option<Arc<dyn Handler>>, context: JobContext) -> Verdict {
    let timeout = context.job().timeout;
    let Some(handler) = handler else {
        // The store only hands out types that were asked for.
        return Verdict::Release;
    };
    let future = match catch_unwind(AssertUnwindSafe(|| handler.run(context))) {
        Ok(future) => future,
        Err(panic) => return panicked(&*panic),
    };
    match tokio::time::timeout(timeout, CatchPanic(future)).await {
        Ok(Ok(answer)) => answer.unwrap_or_else(HandlerError::into_verdict),
        Ok(Err(panic)) => panic,
        Err(_) => {
            let limit = tidewire_core::time::format_duration(timeout);
            Verdict::Retry { error: format!("timed out after {limit}"), delay: None }
        }
    }
}

/// Settles a run with what its handler staged. Effects that are refused make the run a failed one.
async fn settle(publisher: &Publisher, context: &JobContext, lease: Box<str>, verdict: Verdict) {
    let job = context.job();
    let refused = match settle_once(publisher, context, lease.clone(), verdict).await {
        Ok(()) => return,
        Err(error) => error,
    };
    if matches!(refused.kind(), Kind::Unavailable | Kind::Internal) || refused.code() == "job.lease_lost" {
        tracing::warn!(job = %job.id, kind = %job.kind, error = %refused, "the result of a job was not taken");
        return;
    }
    let verdict = Verdict::Retry { error: format!("its effects were refused: {refused}"), delay: None };
    if let Err(error) = settle_once(publisher, context, lease, verdict).await {
        tracing::warn!(job = %job.id, kind = %job.kind, %error, "a failed job could not be settled");
    }
}

async fn settle_once(
    publisher: &Publisher,
    context: &JobContext,
    lease: Box<str>,
    verdict: Verdict,
) -> Result<(), Error> {
    let job = context.job();
    let staged = context.take_staged();
    let (effects, ephemeral) = match verdict {
        Verdict::Done { .. } => publisher.effects(&job.tenant, staged, &origin(job))?,
        _ => (None, Vec::new()),
    };
    let settle = Settle { tenant: None, id: job.id.clone(), lease, verdict, effects };
    let settled = publisher.store().settle(settle).await?;
    publisher.with_ephemeral(settled.effects, &ephemeral);
    Ok(())
}

/// Where the effects of a job come from.
pub(crate) fn origin(job: &Job) -> Origin {
    Origin { depth: job.depth, cause: Some(job.id.to_string().into()), correlation_id: job.correlation_id.clone() }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Verdict {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Verdict::Retry { error: format!("panicked: {}", text.unwrap_or("no message")), delay: None }
}

/// A handler's future whose panic is a verdict.
struct CatchPanic(Pin<Box<dyn Future<Output = HandlerResult> + Send>>);

impl Future for CatchPanic {
    type Output = Result<HandlerResult, Verdict>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(answer)) => Poll::Ready(Ok(answer)),
            Err(panic) => Poll::Ready(Err(panicked(&*panic))),
        }
    }
}
