//! In-process workers: for each queue a loop that claims as many jobs as it has free slots.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tidewire_core::commit::Origin;
use tidewire_core::job::{Job, Verdict};
use tidewire_core::store::{Claim, Leased, Settle, Settled};
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
    /// Starts one loop for each of `queues`, which says how many jobs of it run at once in this process.
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
            // A task of its own, so that a panic, in the handler or in what it drops, ends the run and nothing else.
            let mut run = tokio::spawn(run(handler, context.clone()));
            let verdict = tokio::select! {
                ended = &mut run => ended.unwrap_or_else(panicked),
                () = abort.cancelled() => {
                    run.abort();
                    Verdict::Release
                }
            };
            settle(&publisher, &context, lease, verdict).await;
            drop(permit);
        });
    }
}

/// Runs a handler within the job's timeout.
async fn run(handler: Option<Arc<dyn Handler>>, context: JobContext) -> Verdict {
    let timeout = context.job().timeout;
    let Some(handler) = handler else {
        // The store only hands out types that were asked for.
        return Verdict::Release;
    };
    match tokio::time::timeout(timeout, handler.run(context)).await {
        Ok(answer) => answer.unwrap_or_else(HandlerError::into_verdict),
        Err(_) => {
            let limit = tidewire_core::time::format_duration(timeout);
            Verdict::Retry { error: format!("timed out after {limit}"), delay: None }
        }
    }
}

fn panicked(error: tokio::task::JoinError) -> Verdict {
    let text = match error.try_into_panic() {
        Ok(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or("no message").to_owned(),
        },
        Err(_) => "the run was aborted".to_owned(),
    };
    Verdict::Retry { error: format!("panicked: {text}"), delay: None }
}

/// Settles a run with what its handler staged. Effects that are refused make the run a failed one.
async fn settle(publisher: &Publisher, context: &JobContext, lease: Box<str>, verdict: Verdict) {
    let job = context.job();
    let staged = context.take_staged();
    // A condition of the catalog is evaluated here; were it to panic, the lease must not be left behind.
    let expanded = catch_unwind(AssertUnwindSafe(|| match verdict {
        Verdict::Done { .. } => publisher.effects(&job.tenant, staged, &origin(job)),
        _ => Ok((None, Vec::new())),
    }));
    let expanded = expanded.unwrap_or_else(|_| Err(Error::internal("expanding the effects panicked", "panic")));
    let refused = match expanded {
        Ok((effects, ephemeral)) => {
            let settle = Settle { tenant: None, id: job.id.clone(), lease: lease.clone(), verdict, effects };
            match send(publisher, settle).await {
                Ok(settled) => {
                    publisher.with_ephemeral(settled.effects, &ephemeral);
                    return;
                }
                Err(error) => error,
            }
        }
        Err(error) => error,
    };
    if refused.kind() == Kind::Unavailable || refused.code() == "job.lease_lost" {
        tracing::warn!(job = %job.id, kind = %job.kind, error = %refused, "the result of a job was not taken");
        return;
    }
    let verdict = Verdict::Retry { error: format!("its effects were refused: {refused}"), delay: None };
    let settle = Settle { tenant: None, id: job.id.clone(), lease, verdict, effects: None };
    if let Err(error) = send(publisher, settle).await {
        tracing::warn!(job = %job.id, kind = %job.kind, %error, "a failed job could not be settled");
    }
}

/// Settles, however often the store is too busy: a local lease has no end that would give the job back.
async fn send(publisher: &Publisher, settle: Settle) -> Result<Settled, Error> {
    loop {
        match publisher.store().settle(settle.clone()).await {
            Err(error) if error.kind() == Kind::Limited => tokio::time::sleep(AFTER_REFUSAL).await,
            answer => return answer,
        }
    }
}

/// Where the effects of a job come from.
pub(crate) fn origin(job: &Job) -> Origin {
    Origin {
        depth: job.depth,
        cause: Some(job.id.to_string().into()),
        correlation_id: job.correlation_id.clone(),
        system: job.rare.as_ref().is_some_and(|rare| rare.system),
    }
}
