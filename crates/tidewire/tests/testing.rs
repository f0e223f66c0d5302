//! The testing kit: a clock that stands still, runs that are asked for, and reports that help.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire::JobState::{Completed, Dead, Scheduled};
use tidewire::testing::{TestApp, TestBuilder, missing_event, missing_job, unwanted_job};
use tidewire::{
    App, Builder, JobContext, NewEvent, NewJob, TenantId, assert_enqueued, assert_published, done, refute_enqueued,
    refute_published, retry, snooze,
};

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[auth.jwt]
algorithms = ["HS256"]

[events."order.packed"]

[queues.packing]
attempts = 3
backoff = { kind = "exponential", base = "1m", factor = 10, cap = "1h" }
concurrency = 1

[queues.rated]
rate = "1/m"

[jobs.pack]
queue = "packing"

[jobs.count]
queue = "packing"

[jobs.mail]
queue = "rated"

[schedules.hourly-count]
job = "count"
cron = "0 * * * *"
missed = "skip"
"#;

#[derive(Serialize, Deserialize, tidewire::Job)]
struct Pack {
    order: u32,
}

#[derive(Serialize, Deserialize, tidewire::Job)]
struct Count {}

#[derive(Serialize, Deserialize, tidewire::Job)]
struct Mail {}

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

    async fn pack(&self, app: &App, order: u32) {
        app.enqueue(&self.tenant, &Pack { order }).await.expect("enqueued");
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn nothing_runs_by_itself_and_a_drain_runs_all_that_is_due() {
    let shop = Shop::new();
    let handler = |job: Pack, cx: JobContext| async move {
        if job.order < 3 {
            cx.enqueue(NewJob::new("pack", json!({ "order": job.order + 1 })));
        }
        done()
    };
    let app = shop.test().job(handler).build().await.expect("an app");
    shop.pack(&app, 1).await;
    assert_enqueued!(app, shop.tenant, "pack", { "order": 1 });
    refute_enqueued!(app, shop.tenant, "pack", { "order": 2 });
    let drained = app.drain().await;
    assert_eq!((drained.count(), drained.states()), (3, vec![Completed; 3]), "also what runs enqueue");
    assert_enqueued!(app, shop.tenant, "pack", { "order": 3 });
    assert_eq!(app.drain().await.count(), 0);
}

#[tokio::test]
async fn retries_come_when_the_clock_gets_there() {
    let shop = Shop::new();
    let mut app = shop.test().job(|_: Pack| async { retry("no tape") }).build().await.expect("an app");
    shop.pack(&app, 1).await;
    assert_eq!(app.drain().await.states(), [Scheduled]);
    assert_eq!(app.advance(Duration::from_secs(59)).await.count(), 0, "the first wait is a minute");
    assert_eq!(app.advance(Duration::from_secs(1)).await.states(), [Scheduled]);
    let begun = app.now();
    assert_eq!(app.advance(HOUR).await.states(), [Dead]);
    assert_eq!(app.now(), begun + HOUR);
    let job = &app.jobs(&shop.tenant).await[0];
    assert_eq!(job.finished_at, Some(begun + Duration::from_secs(600)), "it ran at its own time, not at the end");
}

#[tokio::test]
async fn each_slot_of_a_schedule_fires_at_its_time() {
    let shop = Shop::new();
    let mut app = shop.test().job(|_: Count| async { done() }).build().await.expect("an app");
    let drained = app.advance(HOUR * 24).await;
    // Were the clock to jump, all but the last would be missed slots, which this schedule skips.
    assert_eq!(drained.states(), vec![Completed; 24]);
    let jobs = app.jobs(&TenantId::app()).await;
    assert_eq!(jobs[0].id.to_string(), "hourly-count@2026-01-01T01:00:00Z");
    assert_eq!(jobs.last().expect("jobs").id.to_string(), "hourly-count@2026-01-02T00:00:00Z");
}

#[tokio::test]
async fn a_test_may_start_at_another_time() {
    let shop = Shop::new();
    let start = "2027-03-01T23:30:00Z".parse().expect("a time");
    let mut app = shop.test().start_at(start).job(|_: Count| async { done() }).build().await.expect("an app");
    assert_eq!(app.now(), start);
    assert_eq!(app.advance(HOUR).await.count(), 1);
}

#[tokio::test]
async fn jobs_that_a_rate_holds_back_run_as_the_clock_moves() {
    let shop = Shop::new();
    let mut app = shop.test().job(|_: Mail| async { done() }).build().await.expect("an app");
    for _ in 0..3 {
        app.enqueue(&shop.tenant, &Mail {}).await.expect("enqueued");
    }
    assert_eq!(app.drain().await.count(), 1, "one in a minute");
    assert_eq!(app.advance(Duration::from_secs(600)).await.count(), 2);
}

#[tokio::test]
async fn the_program_and_its_tests_share_what_they_build() {
    fn handlers(builder: Builder) -> Builder {
        builder.state(7_u32).job(|_: Pack, cx: JobContext, by: tidewire::State<u32>| async move {
            cx.publish(NewEvent::new("order.packed", json!({ "by": *by, "at": { "shelf": 1, "row": 2 } })));
            done()
        })
    }
    let shop = Shop::new();
    let app = shop.test().with(handlers).build().await.expect("an app");
    shop.pack(&app, 1).await;
    refute_published!(app, shop.tenant, "order.packed");
    app.drain().await;
    assert_published!(app, shop.tenant, "order.packed", { "by": 7, "at": { "row": 2 } });
    refute_published!(app, shop.tenant, "order.packed", { "by": 8 });
    assert_eq!(app.events(&shop.tenant).await.len(), 1);
}

#[tokio::test]
async fn a_report_says_what_is_there_and_where_it_differs() {
    let shop = Shop::new();
    let app = shop.test().build().await.expect("an app");
    let report = missing_job(&app, &shop.tenant, "pack", json!({})).await.expect("there is none");
    assert_eq!(report, "corner has no job \"pack\" with {}\n  there is none of this type; there is nothing");
    shop.pack(&app, 1).await;
    shop.pack(&app, 2).await;
    let report = missing_job(&app, &shop.tenant, "count", json!({})).await.expect("there is none");
    assert!(report.ends_with("there is none of this type; there is 2 × pack"), "{report}");
    let report = missing_job(&app, &shop.tenant, "pack", json!({ "order": 3 })).await.expect("there is none");
    for said in [
        "corner has no job \"pack\" with {\"order\":3}",
        "there are 2 of this type, the nearest first:",
        "(pending, attempt 0 of 3): {\"order\":1}",
        "data.order: expected 3, found 1",
        "data.order: expected 3, found 2",
    ] {
        assert!(report.contains(said), "{report}");
    }
    let report = unwanted_job(&app, &shop.tenant, "pack", json!({ "order": 2 })).await.expect("there is one");
    assert!(report.starts_with("corner should have no job \"pack\" with {\"order\":2}, and has 1:"), "{report}");
    let other = TenantId::new("market").expect("a tenant");
    assert!(unwanted_job(&app, &other, "pack", json!({})).await.is_none(), "a tenant sees its own jobs only");
    assert!(missing_event(&app, &shop.tenant, "order.packed", json!({})).await.is_some());
}

#[tokio::test]
#[should_panic(expected = "corner has no job \"pack\"")]
async fn an_assertion_fails_where_it_stands() {
    let shop = Shop::new();
    let app = shop.test().build().await.expect("an app");
    assert_enqueued!(app, shop.tenant, "pack", { "order": 1 });
}

#[tokio::test]
#[should_panic(expected = "jobs are still due after 10000 runs")]
async fn a_job_that_never_ends_is_noticed() {
    let shop = Shop::new();
    let app = shop.test().job(|_: Pack| async { snooze(Duration::ZERO) }).build().await.expect("an app");
    shop.pack(&app, 1).await;
    app.drain().await;
}

#[tokio::test]
async fn a_schedule_of_the_app_runs_when_it_is_asked_to() {
    let shop = Shop::new();
    let app = shop.test().job(|_: Count| async { done() }).build().await.expect("an app");
    let ran = app.run_schedule("hourly-count").await.expect("it is there");
    assert_eq!(ran.jobs.len(), 1);
    assert_eq!(app.drain().await.states(), [Completed]);
    let job = app.jobs(&TenantId::app()).await.remove(0);
    assert_eq!((&*job.kind, job.causation_id.as_deref()), ("count", Some("hourly-count")));
    assert_eq!(app.run_schedule("daily-count").await.expect_err("there is none").code(), "schedule.not_found");
}
