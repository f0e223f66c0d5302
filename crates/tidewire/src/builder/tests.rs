//! Runs that are told to stop, over a store, with workers of a short grace.

use tidewire_core::commit::{NewEvent, NewJob, Request};
use tidewire_core::store::LogQuery;
use tidewire_core::{Id, Json, TenantId};
use tidewire_runtime::{HandlerResult, JobContext, Stop, done, release, retry};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[events."parcel:packed"]

[queues.packing]
attempts = 2
backoff = { kind = "fixed", base = "1h" }
timeout = "1h"

[jobs.pack]
queue = "packing"

[jobs.weigh]
queue = "packing"
timeout = "20ms"
"#;

/// What a run tells the test: its job and its lease.
type Began = UnboundedSender<(Id, Box<str>)>;

struct Line {
    _dir: tempfile::TempDir,
    publisher: Arc<Publisher>,
    workers: Workers,
    began: UnboundedReceiver<(Id, Box<str>)>,
    tenant: TenantId,
}

impl Line {
    /// Workers of one queue whose handler is for the job types `pack` and `weigh`.
    async fn start<Fut>(grace: Duration, handler: fn(JobContext) -> Fut) -> Self
    where
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("app.toml"), CATALOG).expect("the catalog");
        let (send, began) = unbounded_channel();
        let mut builder = Builder::new(dir.path()).store("memory:").state::<Began>(send);
        for kind in ["pack", "weigh"] {
            builder.handlers.on_job(kind, move |_: Json, cx: JobContext, began: tidewire_runtime::State<Began>| {
                began.send((cx.job().id.clone(), cx.lease().into())).expect("the test waits");
                handler(cx)
            });
        }
        let assembled = builder.assemble().await.expect("an app");
        let publisher = assembled.publisher.clone();
        let queues = [("packing".into(), QueueOptions { concurrency: 1, reserve: None, grace })].into();
        let workers = Workers::start(publisher.clone(), assembled.handlers, queues, "test".into());
        Self { _dir: dir, publisher, workers, began, tenant: TenantId::new("corner").expect("a tenant") }
    }

    /// Enqueues a job and waits until it runs.
    async fn run(&mut self, kind: &str) -> (Id, Box<str>) {
        self.enqueue(kind).await;
        self.began().await
    }

    async fn enqueue(&self, kind: &str) -> Id {
        let request = Request { jobs: vec![NewJob::new(kind, Json::empty_object())], ..Request::default() };
        self.publisher.commit(&self.tenant, request, None).await.expect("enqueued").jobs[0].id.clone()
    }

    async fn began(&mut self) -> (Id, Box<str>) {
        let began = tokio::time::timeout(Duration::from_secs(20), self.began.recv());
        began.await.expect("a run begins").expect("workers are there")
    }

    /// The state, attempt and error of a job that has left the worker.
    async fn left(&self, id: &Id) -> (String, u16, String) {
        let left = async {
            loop {
                let (job, _) = self.publisher.store().job(&self.tenant, id).await.expect("a store").expect("the job");
                if job.state != tidewire_core::job::State::Processing {
                    return (job.state.to_string(), job.attempt, job.error.unwrap_or_default().into());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), left).await.expect("the job leaves the worker")
    }

    async fn packed(&self) -> usize {
        self.publisher
            .store()
            .read(&self.tenant, LogQuery { limit: 9, ..LogQuery::default() })
            .await
            .expect("a log")
            .len()
    }
}

fn left(state: &str, attempt: u16, error: &str) -> (String, u16, String) {
    (state.to_owned(), attempt, error.to_owned())
}

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(20);

async fn deaf(_: JobContext) -> HandlerResult {
    std::future::pending().await
}

#[tokio::test]
async fn a_run_that_does_not_listen_is_dropped_after_its_timeout_and_the_grace() {
    let mut line = Line::start(SHORT, deaf).await;
    let (id, _) = line.run("weigh").await;
    assert_eq!(line.left(&id).await, left("scheduled", 1, "timed out after 20ms"));
    line.workers.stop(LONG).await;
}

#[tokio::test]
async fn an_answer_within_the_grace_counts() {
    let finishes = |cx: JobContext| async move {
        assert_eq!((cx.cancelled().await, cx.stopping()), (Stop::TimedOut, Some(Stop::TimedOut)));
        cx.publish(NewEvent::new("parcel:packed", Json::empty_object()));
        done()
    };
    let mut line = Line::start(LONG, finishes).await;
    let (id, _) = line.run("weigh").await;
    assert_eq!(line.left(&id).await, left("completed", 1, ""));
    assert_eq!(line.packed().await, 1);

    let mut line = Line::start(LONG, |cx: JobContext| async move {
        cx.cancelled().await;
        retry("half weighed")
    })
    .await;
    let (id, _) = line.run("weigh").await;
    assert_eq!(line.left(&id).await, left("scheduled", 1, "half weighed"));
}

#[tokio::test]
async fn a_cancelled_run_is_told_and_only_that_one() {
    let mut line = Line::start(LONG, |cx: JobContext| async move {
        assert!(!cx.is_cancelled());
        match cx.cancelled().await {
            Stop::Cancelled => tidewire_runtime::cancel(),
            other => retry(format!("{other:?}")),
        }
    })
    .await;
    assert!(line.workers.resize("packing", 2));
    let (id, lease) = line.run("pack").await;
    let (other, _) = line.run("pack").await;
    line.workers.follower().cancelled(&[lease]);
    assert_eq!(line.left(&id).await, left("cancelled", 1, ""));
    let (job, _) = line.publisher.store().job(&line.tenant, &other).await.expect("a store").expect("the job");
    assert_eq!(job.state.to_string(), "processing");
    line.workers.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_cancelled_run_that_does_not_listen_is_dropped_after_the_grace() {
    let mut line = Line::start(SHORT, deaf).await;
    let (id, lease) = line.run("pack").await;
    line.workers.follower().cancelled(&[lease]);
    assert_eq!(line.left(&id).await, left("cancelled", 1, ""));
}

#[tokio::test]
async fn a_stop_tells_runs_at_once_so_that_they_can_hand_back_early() {
    let mut line = Line::start(LONG, |cx: JobContext| async move {
        match cx.cancelled().await {
            Stop::Shutdown => release(),
            other => retry(format!("{other:?}")),
        }
    })
    .await;
    let (id, _) = line.run("pack").await;
    let Line { publisher, workers, tenant, .. } = line;
    // Far longer than the test may take: nothing but the sign ends the run.
    workers.stop(LONG).await;
    let (job, failed) = publisher.store().job(&tenant, &id).await.expect("a store").expect("the job");
    assert_eq!((job.state.to_string().as_str(), job.attempt, failed.len()), ("pending", 0, 0));
}

#[tokio::test]
async fn a_queue_grows_at_once_and_shrinks_as_runs_end() {
    let mut line = Line::start(SHORT, |cx: JobContext| async move {
        cx.cancelled().await;
        done()
    })
    .await;
    let (first, first_lease) = line.run("pack").await;
    for _ in 0..3 {
        line.enqueue("pack").await;
    }
    assert!(line.began.try_recv().is_err(), "the queue allows one");
    line.workers.resize("packing", 3);
    let (second, second_lease) = line.began().await;
    let (third, third_lease) = line.began().await;

    line.workers.resize("packing", 1);
    line.workers.follower().cancelled(&[first_lease, second_lease]);
    line.left(&first).await;
    line.left(&second).await;
    assert!(line.began.try_recv().is_err(), "one still runs, and one is allowed");
    line.workers.follower().cancelled(&[third_lease]);
    line.left(&third).await;
    line.began().await;
    assert!(!line.workers.resize("painting", 1), "nobody works on this queue here");
}

#[tokio::test]
async fn an_idle_queue_shrinks_at_once() {
    let mut line = Line::start(SHORT, deaf).await;
    line.workers.resize("packing", 0);
    let id = line.enqueue("pack").await;
    // A claim that waited with a slot gives back what it is given in that moment.
    assert_eq!(line.left(&id).await, left("pending", 0, ""));
    assert!(line.began.try_recv().is_err(), "no job runs");
    line.workers.resize("packing", 1);
    line.began().await;
}
