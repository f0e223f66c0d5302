//! Mistakes that real backends made with their queues. Each test is named after one and shows that it cannot be made here.
//!
//! Others of the same origin have their tests elsewhere: a success that an event turns into a failure and an alert that alerts about
//! itself in `lives.rs`, an event handler that runs twice in `app.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidewire::JobState::{Completed, Dead, Failed, Pending, Scheduled};
use tidewire::store::{Claim, Control, JobQuery, Settle};
use tidewire::testing::{TestApp, TestBuilder};
use tidewire::{Delay, Id, NewJob, TenantId, Verdict, done, retry};

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[rooms]
"shop:{shopId}" = { join = "auto" }

[events."shop.alarm"]
rooms = ["shop:{shopId}"]

# Queues without a word about delays or retries, as somebody declares them who only wants a queue.
[queues.email]
[queues.payments]
[queues.documents]
[queues.cleanup]

[jobs.mail]
queue = "email"
[jobs.pay]
queue = "payments"
[jobs.render]
queue = "documents"
[jobs.tidy]
queue = "cleanup"
[jobs.failed-job]
queue = "cleanup"

[alerts]
publish = { type = "shop.alarm", data = { jobId = "{{ job.jobId }}" } }
enqueue = { job = "failed-job", data = { about = "{{ job.jobId }}" } }
"#;

/// The longest wait between two runs by default is five minutes.
const LONG: Duration = Duration::from_secs(3_600);

macro_rules! job {
    ($name:ident, $kind:literal, { $($field:ident: $kind_of:ty),* }) => {
        #[derive(Serialize, Deserialize, tidewire::Job)]
        #[job(type = $kind)]
        struct $name { $($field: $kind_of),* }
    };
}

job!(Mail, "mail", { to: String });
job!(Pay, "pay", {});
job!(Render, "render", {});
job!(Tidy, "tidy", {});

struct Shop {
    dir: tempfile::TempDir,
    tenant: TenantId,
}

impl Shop {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("app.toml"), CATALOG).expect("the catalog");
        Self { dir, tenant: TenantId::new("corner").expect("a tenant") }
    }

    fn test(&self) -> TestBuilder {
        TestApp::new(self.dir.path())
    }

    async fn enqueue(&self, app: &TestApp, job: NewJob) -> Id {
        app.enqueue_job(&self.tenant, job).await.expect("enqueued").jobs[0].id.clone()
    }
}

fn mail() -> NewJob {
    NewJob::new("mail", json!({ "to": "ada@example.com" }))
}

/// A handler that never succeeds, and how often it was called.
fn failing() -> (Arc<AtomicU32>, impl Fn(Mail) -> std::future::Ready<tidewire::HandlerResult> + Clone) {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let handler = move |_: Mail| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(retry("no connection"))
    };
    (runs, handler)
}

/// A retry was written as `scheduled`, and the poll looked for `pending` alone.
#[tokio::test]
async fn a_retry_that_is_never_polled() {
    let shop = Shop::new();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let handler = move |_: Mail| {
        let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        async move { if is_first { retry("no connection") } else { done() } }
    };
    let mut app = shop.test().job(handler).build().await.expect("an app");
    shop.enqueue(&app, mail()).await;
    assert_eq!(app.drain().await.states(), [Scheduled]);
    assert_eq!(app.advance(LONG).await.states(), [Completed]);
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

/// The attempts were counted in the table and compared with a stale copy in memory.
#[tokio::test]
async fn one_run_more_than_attempts_allow() {
    for attempts in [1, 2, 3, 7] {
        let shop = Shop::new();
        let (runs, handler) = failing();
        let mut app = shop.test().job(handler).build().await.expect("an app");
        let id = shop.enqueue(&app, NewJob { attempts: Some(attempts), ..mail() }).await;
        app.drain().await;
        app.advance(LONG).await;
        let (job, failed) = app.store().job(&shop.tenant, &id).await.expect("a store").expect("the job");
        let counted = (runs.load(Ordering::SeqCst), u32::from(job.attempt), failed.len() as u32, job.state);
        let attempts = u32::from(attempts);
        assert_eq!(counted, (attempts, attempts, attempts, Dead), "{attempts} attempts");
    }
}

/// Delays needed a process of their own, which ran for two queues only; the option `delay` was declared and not read.
#[tokio::test]
async fn a_delay_that_only_some_queues_know() {
    const DAY: Duration = Duration::from_secs(86_400);
    let shop = Shop::new();
    let mut app = shop
        .test()
        .job(|_: Mail| async { done() })
        .job(|_: Pay| async { done() })
        .job(|_: Render| async { done() })
        .job(|_: Tidy| async { done() })
        .build()
        .await
        .expect("an app");
    let start = app.now();
    for (kind, data) in
        [("mail", json!({ "to": "ada" })), ("pay", json!({})), ("render", json!({})), ("tidy", json!({}))]
    {
        let job = NewJob { delay: Some(Delay(DAY)), ..NewJob::new(kind, data) };
        shop.enqueue(&app, job).await;
    }
    assert_eq!(app.advance(DAY - Duration::from_secs(1)).await.count(), 0, "none is early");
    assert_eq!(app.advance(Duration::from_secs(1)).await.states(), [Completed; 4], "none is late");
    for job in app.jobs(&shop.tenant).await {
        assert_eq!(job.started_at, Some(start + DAY), "{}", job.kind);
    }
}

/// A process that had no worker for a type took the job, failed it and used up its attempts, while another process had the worker.
#[tokio::test]
async fn a_process_that_fails_the_types_of_others() {
    let shop = Shop::new();
    let mut app = shop.test().job(|_: Tidy| async { done() }).build().await.expect("an app");
    // Of one queue, and the type that nobody here knows comes first.
    let theirs = shop.enqueue(&app, NewJob { queue: Some("cleanup".to_owned()), ..mail() }).await;
    let ours = shop.enqueue(&app, NewJob::new("tidy", json!({}))).await;
    assert_eq!(app.drain().await.states(), [Completed]);
    assert_eq!(app.advance(LONG).await.count(), 0);
    let of = async |id: &Id| app.store().job(&shop.tenant, id).await.expect("a store").expect("the job");
    assert_eq!(of(&ours).await.0.state, Completed);
    let (waiting, failed) = of(&theirs).await;
    assert_eq!((waiting.state, waiting.attempt, failed.len()), (Pending, 0, 0));

    let claim = Claim {
        tenant: None,
        queues: Vec::new(),
        kinds: vec!["mail".into()],
        max: 10,
        lease: LONG,
        wait: Duration::ZERO,
        worker: "another process".into(),
        local: false,
        reserved: false,
    };
    let leased = app.store().claim(claim).await.expect("leased");
    assert_eq!(leased.iter().map(|leased| (&leased.job.id, leased.job.attempt)).collect::<Vec<_>>(), [(&theirs, 1)]);
    let settle = Settle {
        tenant: None,
        id: theirs.clone(),
        lease: leased[0].lease.clone(),
        verdict: Verdict::Done { result: None },
        effects: None,
    };
    assert_eq!(app.store().settle(settle).await.expect("settled").state, Completed);
}

/// The record of a failed job held the wrapper of the dead-letter queue in place of what the job was given.
#[tokio::test]
async fn a_dead_letter_without_its_payload() {
    let shop = Shop::new();
    let (_, handler) = failing();
    let mut app = shop.test().job(handler).build().await.expect("an app");
    let payload = json!({ "to": "ada@example.com", "attachment": { "type": "Buffer", "data": [0, 255] }, "n": 1.5 });
    let id = shop.enqueue(&app, NewJob::new("mail", payload.clone())).await;
    app.drain().await;
    app.advance(LONG).await;
    let query = JobQuery { tenant: Some(shop.tenant.clone()), states: vec![Dead], limit: 10, ..JobQuery::default() };
    let dead = app.store().jobs(query).await.expect("jobs").items;
    assert_eq!(dead.iter().map(|job| &job.id).collect::<Vec<_>>(), [&id]);
    assert_eq!(dead[0].data.to_value().expect("data"), payload);
    assert_eq!((&*dead[0].kind, &*dead[0].queue, dead[0].error.as_deref()), ("mail", "email", Some("no connection")));
    // What tells of it is another job, with data of its own.
    let told =
        app.jobs(&shop.tenant).await.into_iter().find(|job| &*job.kind == "failed-job").expect("somebody is told");
    assert_eq!(told.data.to_value().expect("data"), json!({ "about": id.to_string() }));

    let again = app.store().control(&shop.tenant, &id, Control::Redrive).await.expect("it runs again");
    assert_eq!(again.data.to_value().expect("data"), payload);
}

/// Data of the wrong shape was tried again and again, and what was behind it waited.
#[tokio::test]
async fn a_poisoned_payload_that_is_retried_and_blocks_its_queue() {
    let shop = Shop::new();
    let app = shop.test().job(|_: Mail| async { done() }).build().await.expect("an app");
    let poisoned: Vec<Value> = vec![json!({ "to": 7 }), json!({}), json!({ "to": { "type": "Buffer", "data": [1] } })];
    let mut ids = Vec::new();
    for data in &poisoned {
        ids.push(shop.enqueue(&app, NewJob::new("mail", data.clone())).await);
    }
    let good = shop.enqueue(&app, mail()).await;
    let drained = app.drain().await;
    assert_eq!(
        drained.states().into_iter().filter(|state| *state == Completed).count(),
        1,
        "what is behind runs at once"
    );
    for (id, data) in ids.iter().zip(&poisoned) {
        let (job, failed) = app.store().job(&shop.tenant, id).await.expect("a store").expect("the job");
        assert_eq!((job.state, job.attempt, failed.len()), (Failed, 1, 1), "{data}");
        assert!(job.error.is_some_and(|error| error.contains("expected shape")), "{data}: the reason is kept");
        assert_eq!(job.data.to_value().expect("data"), *data);
    }
    let (job, _) = app.store().job(&shop.tenant, &good).await.expect("a store").expect("the job");
    assert_eq!((job.state, job.attempt), (Completed, 1));
}
