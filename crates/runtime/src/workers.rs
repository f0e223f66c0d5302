//! In-process workers: for each queue a loop that claims as many jobs as it has free slots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidewire_core::Kind;
use tidewire_core::store::{Claim, Follower, Leased};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::active::Active;
use crate::context::JobContext;
use crate::handlers::Handlers;
use crate::publisher::Publisher;
use crate::run::{AFTER_REFUSAL, perform};
use crate::slots::Slots;

/// The most jobs that one claim asks for.
const CLAIM_AT_ONCE: u32 = 256;

/// How long a claim waits in the store before it is made again.
const CLAIM_WAIT: Duration = Duration::from_secs(30);

/// How one queue is worked on in this process.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// Jobs at once. 0 means none, until [`Workers::resize`] says otherwise.
    pub concurrency: u32,
    /// How many of these are for tenants of which no job runs, while the queue serves several; at most all but one. Absent means 1 from a
    /// concurrency of 8 on, else 0.
    pub reserve: Option<u32>,
    /// The time between telling a run to stop and dropping it.
    pub grace: Duration,
}

/// The running workers of one process.
pub struct Workers {
    stop: CancellationToken,
    loops: TaskTracker,
    runs: TaskTracker,
    /// Ends runs that are still going when the deadline of a stop has passed.
    abort: CancellationToken,
    active: Arc<Active>,
    slots: BTreeMap<Arc<str>, QueueSlots>,
}

/// The slots of one queue.
struct QueueSlots {
    open: Arc<Slots>,
    reserved: Arc<Slots>,
    reserve: Option<u32>,
}

impl QueueSlots {
    fn new(concurrency: u32, reserve: Option<u32>) -> Self {
        let (open, reserved) = split(concurrency, reserve);
        Self { open: Arc::new(Slots::new(open)), reserved: Arc::new(Slots::new(reserved)), reserve }
    }

    fn resize(&self, concurrency: u32) {
        let (open, reserved) = split(concurrency, self.reserve);
        self.open.resize(open);
        self.reserved.resize(reserved);
    }
}

/// How many of the slots anybody may take, and how many are kept.
fn split(concurrency: u32, reserve: Option<u32>) -> (u32, u32) {
    let reserved = reserve.unwrap_or(u32::from(concurrency >= 8)).min(concurrency.saturating_sub(1));
    (concurrency - reserved, reserved)
}

impl Workers {
    /// Starts two loops for each of `queues`: one for the slots that anybody may take, one for those that are kept.
    pub fn start(
        publisher: Arc<Publisher>,
        handlers: Handlers,
        queues: BTreeMap<Arc<str>, QueueOptions>,
        name: Arc<str>,
    ) -> Self {
        let mut workers = Self {
            stop: CancellationToken::new(),
            loops: TaskTracker::new(),
            runs: TaskTracker::new(),
            abort: CancellationToken::new(),
            active: Arc::default(),
            slots: BTreeMap::new(),
        };
        let handlers = Arc::new(handlers);
        let kinds: Vec<Arc<str>> = handlers.kinds().cloned().collect();
        for (queue, QueueOptions { concurrency, reserve, grace }) in queues {
            let all = QueueSlots::new(concurrency, reserve);
            for (slots, reserved) in [(&all.open, false), (&all.reserved, true)] {
                let queue = Queue {
                    publisher: publisher.clone(),
                    handlers: handlers.clone(),
                    kinds: kinds.clone(),
                    name: queue.clone(),
                    worker: name.clone(),
                    slots: slots.clone(),
                    reserved,
                    grace,
                    active: workers.active.clone(),
                    stop: workers.stop.clone(),
                    runs: workers.runs.clone(),
                    abort: workers.abort.clone(),
                };
                workers.loops.spawn(queue.run());
            }
            workers.slots.insert(queue, all);
        }
        workers.loops.close();
        workers
    }

    /// What the store tells of cancelled leases: their runs are asked to stop.
    pub fn follower(&self) -> Arc<dyn Follower> {
        self.active.clone()
    }

    /// Sets how many jobs of a queue run at once in this process, from now on: more begin at once; when it is fewer, running ones
    /// finish and are not replaced. Answers whether this process works on the queue.
    pub fn resize(&self, queue: &str, concurrency: u32) -> bool {
        let slots = self.slots.get(queue);
        if let Some(slots) = slots {
            slots.resize(concurrency);
        }
        slots.is_some()
    }

    /// Stops claiming and tells running jobs, so that long ones can hand back early; lets them finish until `deadline` has passed,
    /// then hands them back with their attempt refunded.
    pub async fn stop(self, deadline: Duration) {
        self.stop.cancel();
        self.active.shut_down();
        self.loops.wait().await;
        self.runs.close();
        if tokio::time::timeout(deadline, self.runs.wait()).await.is_err() {
            self.abort.cancel();
            self.runs.wait().await;
        }
    }
}

/// A loop of one queue.
struct Queue {
    publisher: Arc<Publisher>,
    handlers: Arc<Handlers>,
    kinds: Vec<Arc<str>>,
    name: Arc<str>,
    worker: Arc<str>,
    slots: Arc<Slots>,
    /// Whether its slots are those that are kept.
    reserved: bool,
    grace: Duration,
    active: Arc<Active>,
    stop: CancellationToken,
    runs: TaskTracker,
    abort: CancellationToken,
}

impl Queue {
    async fn run(self) {
        loop {
            let free = tokio::select! {
                free = self.slots.free() => free,
                () = self.stop.cancelled() => return,
            };
            let max = free.min(CLAIM_AT_ONCE);
            let claim = Claim {
                tenant: None,
                queues: vec![self.name.clone()],
                kinds: self.kinds.clone(),
                max,
                // A local lease lasts as long as the process; the run's own timeout ends it earlier.
                lease: Duration::from_secs(3600),
                wait: CLAIM_WAIT,
                worker: self.worker.clone(),
                local: true,
                reserved: self.reserved,
            };
            let claimed = tokio::select! {
                // What a dropped claim was given goes back.
                biased;
                () = self.slots.fewer_than(max) => continue,
                () = self.stop.cancelled() => return,
                claimed = self.publisher.store().claim(claim) => claimed,
            };
            match claimed {
                Ok(jobs) => jobs.into_iter().for_each(|job| self.spawn(job)),
                Err(error) if error.kind() == Kind::Limited => tokio::time::sleep(AFTER_REFUSAL).await,
                Err(error) => {
                    tracing::error!(queue = %self.name, %error, "claiming jobs failed; this queue stops");
                    return;
                }
            }
        }
    }

    fn spawn(&self, leased: Leased) {
        let context = JobContext::new(leased, self.publisher.store().clone(), self.handlers.states().clone());
        let (publisher, handlers, abort) = (self.publisher.clone(), self.handlers.clone(), self.abort.clone());
        let (slots, active, grace) = (self.slots.clone(), self.active.clone(), self.grace);
        slots.take();
        active.begin(&context);
        self.runs.spawn(async move {
            perform(&publisher, &handlers, &context, grace, &abort).await;
            active.end(&context);
            slots.give_back();
        });
    }
}
