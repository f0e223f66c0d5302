//! In-process handlers through the facade: what they stage, how they end, and what a stop does to them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire::store::{Control, FlowState, JobQuery, LogQuery, Parent};
use tidewire::{
    App, Builder, Error, HandlerError, Id, Job, JobContext, NewEvent, NewFlow, NewJob, Request, Stop, TenantId, done,
    done_with, fail, retry, snooze,
};
use tokio::sync::Notify;

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[rooms]
"shop:{shopId}" = { join = "auto" }

[events."order.placed"]
rooms = ["shop:{shopId}"]
data = { orderId = "string" }

[events."order.packed"]
rooms = ["shop:{shopId}"]

[queues.packing]
concurrency = 2
attempts = 3
backoff = { kind = "fixed", base = "10ms" }
timeout = "5s"

[jobs.pack]
queue = "packing"
data = { orderId = "string" }

[jobs.slow]
queue = "packing"
timeout = "50ms"
attempts = 1
"#;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pack {
    order_id: String,
}

impl Job for Pack {
    const TYPE: &'static str = "pack";
}

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

    fn builder(&self) -> Builder {
        App::builder(self.dir.path()).store("memory:")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("data/tidewire.db")
    }

    fn on_disk(&self) -> Builder {
        App::builder(self.dir.path()).store(format!("sqlite:{}", self.file().display()))
    }

    async fn types(&self, app: &App) -> Vec<String> {
        let query = LogQuery { limit: LogQuery::MAX, ..LogQuery::default() };
        let events = app.store().read(&self.tenant, query).await.expect("the log");
        events.iter().map(|event| event.kind.to_string()).collect()
    }

    /// The job when it has reached a final state.
    async fn ended(&self, app: &App, id: &Id) -> (String, u16, Option<String>) {
        let ended = async {
            loop {
                let (job, _) = app.store().job(&self.tenant, id).await.expect("a store").expect("the job");
                if job.state.is_final() {
                    return (job.state.to_string(), job.attempt, job.error.map(String::from));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the job ends")
    }

    async fn enqueue(&self, app: &App, job: &impl Job) -> Id {
        app.enqueue(&self.tenant, job).await.expect("enqueued").jobs[0].id.clone()
    }
}

fn pack() -> Pack {
    Pack { order_id: "o1".to_owned() }
}

fn packed() -> NewEvent {
    NewEvent::new("order.packed", json!({ "by": "hand" }))
}

#[tokio::test]
async fn what_a_handler_stages_is_there_when_its_job_is_done() {
    let shop = Shop::new();
    let handler = |job: Pack, cx: JobContext| async move {
        cx.publish(packed());
        cx.publish(packed());
        done_with(json!({ "packed": job.order_id }))
    };
    let app = shop.builder().job(handler).build().await.expect("an app");
    let id = shop.enqueue(&app, &pack()).await;
    assert_eq!(shop.ended(&app, &id).await, ("completed".to_owned(), 1, None));
    assert_eq!(shop.types(&app).await, ["order.packed", "order.packed"]);
    let (job, _) = app.store().job(&shop.tenant, &id).await.expect("a store").expect("the job");
    assert_eq!(job.result.expect("a result").get(), r#"{"packed":"o1"}"#);
    app.stop().await;
}

#[tokio::test]
async fn a_handler_that_publishes_two_events_and_then_fails_leaves_none_of_them() {
    for ending in ["error", "panic", "verdict", "fail"] {
        let shop = Shop::new();
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        let handler = move |_: Pack, cx: JobContext| {
            let runs = counted.clone();
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                cx.publish(packed());
                cx.publish(packed());
                match ending {
                    "error" => Err(HandlerError::from(std::io::Error::other("no tape"))),
                    "panic" => panic!("no tape"),
                    "verdict" => retry("no tape"),
                    _ => fail("no tape"),
                }
            }
        };
        let app = shop.builder().job(handler).build().await.expect("an app");
        let id = shop.enqueue(&app, &pack()).await;
        let (state, attempt, error) = shop.ended(&app, &id).await;
        let expected = if ending == "fail" { ("failed", 1) } else { ("dead", 3) };
        assert_eq!((state.as_str(), attempt), expected, "{ending}");
        assert_eq!(runs.load(Ordering::SeqCst), u32::from(attempt), "{ending}: runs are attempts");
        assert!(error.is_some_and(|error| error.contains("no tape")), "{ending}");
        assert!(shop.types(&app).await.is_empty(), "{ending}");
        let (_, failed) = app.store().job(&shop.tenant, &id).await.expect("a store").expect("the job");
        assert_eq!(failed.len(), usize::from(attempt), "{ending}: every failed run is kept");
        app.stop().await;
    }
}

#[tokio::test]
async fn effects_that_the_catalog_refuses_make_the_run_a_failed_one() {
    let shop = Shop::new();
    let handler = |_: Pack, cx: JobContext| async move {
        cx.publish(packed());
        cx.publish(NewEvent::new("order.lost", json!({})));
        done()
    };
    let app = shop.builder().job(handler).build().await.expect("an app");
    let id = shop.enqueue(&app, &pack()).await;
    let (state, _, error) = shop.ended(&app, &id).await;
    assert_eq!(state, "dead");
    assert!(error.is_some_and(|error| error.contains("event.unknown_type")));
    assert!(shop.types(&app).await.is_empty());
    app.stop().await;
}

#[tokio::test]
async fn data_of_another_shape_fails_at_once() {
    let shop = Shop::new();
    let app = shop.builder().job(|_: Slow2, _: JobContext| async { done() }).build().await.expect("an app");
    let job = NewJob::new("slow", json!({ "weight": "heavy" }));
    let id = app.enqueue_job(&shop.tenant, job).await.expect("enqueued").jobs[0].id.clone();
    let (state, attempt, error) = shop.ended(&app, &id).await;
    assert_eq!((state.as_str(), attempt), ("failed", 1));
    assert!(error.is_some_and(|error| error.contains("expected shape")));
    app.stop().await;
}

#[derive(Serialize, Deserialize)]
struct Slow2 {
    weight: u32,
}

impl Job for Slow2 {
    const TYPE: &'static str = "slow";
}

#[tokio::test]
async fn a_snoozed_run_is_not_counted() {
    let shop = Shop::new();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let handler = move |_: Pack, _: JobContext| {
        let nth = counted.fetch_add(1, Ordering::SeqCst);
        async move { if nth < 5 { snooze(Duration::from_millis(1)) } else { done() } }
    };
    let app = shop.builder().job(handler).build().await.expect("an app");
    let id = shop.enqueue(&app, &pack()).await;
    assert_eq!(shop.ended(&app, &id).await, ("completed".to_owned(), 1, None));
    assert_eq!(runs.load(Ordering::SeqCst), 6);
    app.stop().await;
}

#[tokio::test]
async fn a_durable_handler_runs_once_for_each_event() {
    let shop = Shop::new();
    let heard = Arc::new(AtomicU32::new(0));
    let counted = heard.clone();
    let handler = move |cx: JobContext| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            cx.publish(packed());
            done()
        }
    };
    let app = shop.builder().on("order.placed", "packer", handler).build().await.expect("an app");
    for n in 0..20 {
        let mut event = NewEvent::new("order.placed", json!({ "orderId": n.to_string() }));
        event.id = Some(Id::parse(&format!("order-{}", n % 10)).expect("an id"));
        app.commit(&shop.tenant, Request { events: vec![event], ..Request::default() }).await.expect("committed");
    }
    let all_packed = async {
        while shop.types(&app).await.len() < 20 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_packed).await.expect("every order is packed");
    assert_eq!(heard.load(Ordering::SeqCst), 10, "the second event of an id is the same event");
    app.stop().await;
}

#[tokio::test]
async fn no_more_jobs_run_at_once_than_the_queue_allows() {
    let shop = Shop::new();
    let (running, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (now, peak) = (running.clone(), most.clone());
    let handler = move |_: Pack, _: JobContext| {
        let (now, peak) = (now.clone(), peak.clone());
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            done()
        }
    };
    let app = shop.builder().job(handler).build().await.expect("an app");
    let jobs = (0..12).map(|_| pack().stage().expect("staged")).collect();
    let committed = app.commit(&shop.tenant, Request { jobs, ..Request::default() }).await.expect("committed");
    for job in &committed.jobs {
        shop.ended(&app, &job.id).await;
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
    app.stop().await;
}

#[tokio::test]
async fn rows_events_and_jobs_are_one_transaction() {
    let shop = Shop::new();
    let app = shop.on_disk().build().await.expect("an app");
    let create = |sql: &tidewire::rusqlite::Connection, _: &mut Request| {
        sql.execute_batch("CREATE TABLE orders (id TEXT PRIMARY KEY)").map_err(failed)
    };
    app.transaction(&shop.tenant, create).await.expect("a table");
    let place = |id: &'static str, kind: &'static str| {
        move |sql: &tidewire::rusqlite::Connection, request: &mut Request| {
            sql.execute("INSERT INTO orders (id) VALUES (?1)", [id]).map_err(failed)?;
            request.events.push(NewEvent::new(kind, json!({ "orderId": id })));
            request.jobs.push(NewJob::new("pack", json!({ "orderId": id })));
            Ok(id)
        }
    };
    let (id, committed) = app.transaction(&shop.tenant, place("o1", "order.placed")).await.expect("placed");
    assert_eq!((id, committed.events.len(), committed.jobs.len()), ("o1", 1, 1));

    let refused = app.transaction(&shop.tenant, place("o2", "order.unknown")).await.expect_err("not declared");
    assert_eq!(refused.code(), "event.unknown_type");
    let refused = app.transaction(&shop.tenant, place("o1", "order.placed")).await.expect_err("the row exists");
    assert_eq!(refused.code(), "test.sql");

    let count = |sql: &tidewire::rusqlite::Connection, _: &mut Request| {
        sql.query_row("SELECT count(*) FROM orders", [], |row| row.get::<_, i64>(0)).map_err(failed)
    };
    assert_eq!(app.transaction(&shop.tenant, count).await.expect("counted").0, 1);
    assert_eq!(shop.types(&app).await, ["order.placed"]);
    let jobs = app.store().jobs(JobQuery { limit: 10, ..JobQuery::default() }).await.expect("jobs");
    assert_eq!(jobs.items.len(), 1);
    app.stop().await;
}

fn failed(error: tidewire::rusqlite::Error) -> Error {
    Error::invalid("test.sql", error.to_string())
}

#[tokio::test]
async fn a_stop_hands_a_running_job_back_with_its_attempt() {
    let shop = Shop::new();
    let started = Arc::new(Notify::new());
    let (seen, config) = (started.clone(), {
        let mut config = tidewire::Config::default();
        config.http.drain = Duration::from_millis(50);
        config
    });
    let handler = move |_: Pack, _: JobContext| {
        seen.notify_one();
        std::future::pending()
    };
    let store = format!("sqlite:{}", shop.file().display());
    let app = App::builder(shop.dir.path()).config(config).store(&store).job(handler).build().await.expect("an app");
    let id = shop.enqueue(&app, &pack()).await;
    started.notified().await;
    app.stop().await;

    let app = shop.on_disk().job(|_: Pack, _: JobContext| async { done() }).build().await.expect("it opens again");
    assert_eq!(shop.ended(&app, &id).await, ("completed".to_owned(), 1, None));
    let (_, failed) = app.store().job(&shop.tenant, &id).await.expect("a store").expect("the job");
    assert!(failed.is_empty(), "a hand-over is no failure: {failed:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_handler_for_an_undeclared_type_or_event_does_not_start() {
    let shop = Shop::new();
    let unknown = shop.builder().job(|_: Undeclared, _: JobContext| async { done() }).build().await;
    let said = unknown.err().expect("not declared").to_string();
    assert!(said.contains("\"undeclared\"") && said.contains("add [jobs.undeclared] to it"), "{said}");
    let unheard = shop.builder().on("invoice.*", "ledger", || async { done() }).build().await;
    assert!(unheard.err().is_some_and(|error| error.to_string().contains("no such event")));
}

#[derive(Serialize, Deserialize)]
struct Undeclared {}

impl Job for Undeclared {
    const TYPE: &'static str = "undeclared";
}

#[tokio::test]
async fn a_cancel_reaches_the_handler_that_runs() {
    let shop = Shop::new();
    let running = Arc::new(Notify::new());
    let told = running.clone();
    let handler = move |_: Pack, cx: JobContext| {
        let told = told.clone();
        async move {
            told.notify_one();
            assert_eq!(cx.cancelled().await, Stop::Cancelled);
            retry("it was told to stop")
        }
    };
    let app = shop.builder().job(handler).build().await.expect("an app");
    let id = shop.enqueue(&app, &pack()).await;
    running.notified().await;
    app.store().control(&shop.tenant, &id, Control::Cancel).await.expect("cancelled");
    let (state, attempt, _) = shop.ended(&app, &id).await;
    assert_eq!((state.as_str(), attempt), ("cancelled", 1));
    app.stop().await;
}

/// Runs when the packing is done.
#[derive(Serialize, Deserialize, Job)]
#[job(type = "slow")]
struct Ship {}

#[tokio::test]
async fn a_job_that_waited_for_others_reads_what_they_returned() {
    let shop = Shop::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let pack_it = |job: Pack, _: JobContext| async move { done_with(job.order_id) };
    let read = move |_: Ship, cx: JobContext| {
        let kept = kept.clone();
        async move {
            let all = cx.all_parents().await?;
            assert_eq!(cx.parents().len(), Parent::MOST);
            let results = all.iter().map(|parent| parent.result.as_ref().map(|json| json.get().to_owned()));
            kept.lock().expect("a lock").extend(results.flatten());
            done()
        }
    };
    let app = shop.builder().job(pack_it).job(read).build().await.expect("an app");
    let order =
        |name: &str| NewJob { reference: Some(name.to_owned()), ..NewJob::new("pack", json!({ "orderId": name })) };
    // More than the run is told of without asking.
    let names: Vec<String> = (0..Parent::MOST + 100).map(|number| number.to_string()).collect();
    let jobs = names.iter().map(|name| order(name)).collect();
    let flow = NewFlow { then: Some(Box::new(NewJob::new("slow", json!({})))), ..NewFlow::default() };
    let request = Request { jobs, flow: Some(flow), ..Request::default() };
    let id = app.commit(&shop.tenant, request).await.expect("begun").flow.expect("a flow");
    let ended = async {
        while app.store().flow(&shop.tenant, &id).await.expect("a store").expect("the flow").state
            != FlowState::Completed
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the flow ends");
    let results: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    assert_eq!(*seen.lock().expect("a lock"), results);
    app.stop().await;
}

#[tokio::test]
async fn a_flow_of_nothing_is_refused_and_not_dropped() {
    let shop = Shop::new();
    let handler = |_: Pack, cx: JobContext| async move {
        cx.flow(NewFlow::default());
        done()
    };
    let app = shop.builder().job(handler).build().await.expect("an app");
    let id = shop.enqueue(&app, &pack()).await;
    let (state, _, error) = shop.ended(&app, &id).await;
    assert_eq!(state, "dead");
    assert!(error.is_some_and(|error| error.contains("flow: expected at least one job")));
    app.stop().await;
}
