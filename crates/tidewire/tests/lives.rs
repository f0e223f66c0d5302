//! What follows from the lives of jobs: events, alerts, and the end of every loop.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidewire::store::{JobQuery, LogQuery};
use tidewire::{App, Job, JobContext, NewJob, Request, TenantId, done_with, fail, retry};

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[rooms]
"shop:{shopId}" = { join = "auto" }
"user:{userId}" = { join = "auto" }

[events."job.enqueued"]
rooms = ["shop:{shopId}"]
data = { jobId = "string", type = "string" }
[events."job.retrying"]
rooms = ["shop:{shopId}"]
[events."job.completed"]
rooms = ["user:{userId}"]
[events."job.failed"]
rooms = ["shop:{shopId}"]
[events."shop.alarm"]
rooms = ["shop:{shopId}"]
data = { queueName = "string", jobId = "string", error = "string" }

[queues.work]
attempts = 2
backoff = { kind = "fixed", base = "1ms" }
[queues.backups]
attempts = 2
backoff = { kind = "fixed", base = "1ms" }
alert = "first"

[jobs.good]
queue = "work"
[jobs.bad]
queue = "work"
[jobs.quiet]
queue = "work"
alert = "never"
lifecycle = false
[jobs.backup]
queue = "backups"
[jobs.tell-admin]
queue = "work"

[alerts]
dedupe = "1h"
publish = { type = "shop.alarm", data = { queueName = "{{ job.queue }}", jobId = "{{ job.jobId }}", error = "{{ job.error }}" } }
enqueue = { job = "tell-admin", data = { about = "{{ job.jobId }}" } }

# Hears of every end of a job: without a guard it would go on for ever.
[[rules]]
on = "job.*"
enqueue = { job = "good", data = {} }
"#;

macro_rules! job {
    ($name:ident, $kind:literal) => {
        #[derive(Serialize, Deserialize)]
        struct $name {}

        impl Job for $name {
            const TYPE: &'static str = $kind;
        }
    };
}

job!(Good, "good");
job!(Bad, "bad");
job!(Quiet, "quiet");
job!(Backup, "backup");
job!(TellAdmin, "tell-admin");

struct Shop {
    _dir: tempfile::TempDir,
    app: App,
    tenant: TenantId,
}

impl Shop {
    async fn open() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("app.toml"), CATALOG).expect("the catalog");
        let app = App::builder(dir.path())
            .store("memory:")
            .job(|_: Good, _: JobContext| async { done_with(json!({ "n": 1 })) })
            .job(|_: Bad, _: JobContext| async { retry("no way") })
            .job(|_: Quiet, _: JobContext| async { retry("no way") })
            .job(|_: Backup, _: JobContext| async { retry("the disk is full") })
            .job(|_: TellAdmin, _: JobContext| async { fail("nobody listens") })
            .build()
            .await
            .expect("an app");
        Self { _dir: dir, app, tenant: TenantId::new("corner").expect("a tenant") }
    }

    /// Runs these jobs, each with what they lead to, until nothing is left to run.
    async fn run(&self, jobs: Vec<NewJob>) -> Vec<(String, Value)> {
        self.app.commit(&self.tenant, Request { jobs, ..Request::default() }).await.expect("enqueued");
        let idle = async {
            while self
                .app
                .store()
                .counts(None)
                .await
                .expect("counts")
                .values()
                .flatten()
                .any(|(state, _)| !state.is_final())
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), idle).await.expect("it comes to rest");
        let query = LogQuery { limit: LogQuery::MAX, ..LogQuery::default() };
        let events = self.app.store().read(&self.tenant, query).await.expect("the log");
        events.iter().map(|event| (event.kind.to_string(), event.data.to_value().expect("data"))).collect()
    }

    async fn jobs(&self, kind: &str) -> usize {
        let query = JobQuery { kind: Some(kind.to_owned()), limit: 100, ..JobQuery::default() };
        self.app.store().jobs(query).await.expect("jobs").items.len()
    }
}

fn types(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(kind, _)| kind.as_str()).collect()
}

fn job(kind: &str) -> NewJob {
    NewJob::new(kind, json!({}))
}

#[tokio::test]
async fn the_life_of_a_job_is_told_by_the_events_that_the_catalog_declares() {
    let shop = Shop::open().await;
    let events = shop.run(vec![NewJob { user_id: Some("u1".to_owned()), ..job("good") }]).await;
    assert_eq!(types(&events), ["job.enqueued", "job.completed"]);
    let mut fields: Vec<&str> = events[0].1.as_object().expect("fields").keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["jobId", "type"], "only what is declared");
    assert_eq!((&events[1].1["result"], &events[1].1["state"]), (&json!({ "n": 1 }), &json!("completed")));
    assert!(events[1].1["duration"].is_u64());
}

#[tokio::test]
async fn an_event_that_cannot_be_made_changes_nothing_about_the_job() {
    let shop = Shop::open().await;
    // Its room needs a user, and this job has none.
    let events = shop.run(vec![job("good")]).await;
    assert_eq!(types(&events), ["job.enqueued"]);
    let counts = shop.app.store().counts(None).await.expect("counts");
    assert_eq!(counts["work"].keys().map(|state| state.as_str()).collect::<Vec<_>>(), ["completed"]);
}

#[tokio::test]
async fn a_dead_letter_raises_one_alert_however_many_follow() {
    let shop = Shop::open().await;
    let events = shop.run((0..20).map(|_| job("bad")).collect()).await;
    let count = |name: &str| types(&events).iter().filter(|kind| **kind == name).count();
    assert_eq!((count("job.retrying"), count("job.failed"), count("shop.alarm")), (20, 20, 1));
    let alarm = &events.iter().find(|(kind, _)| kind == "shop.alarm").expect("the alarm").1;
    assert_eq!((&alarm["queueName"], &alarm["error"]), (&json!("work"), &json!("no way")));
    assert_eq!(shop.jobs("tell-admin").await, 1);
}

#[tokio::test]
async fn an_alert_that_fails_raises_none() {
    let shop = Shop::open().await;
    let events = shop.run(vec![job("bad")]).await;
    let admins = JobQuery { kind: Some("tell-admin".to_owned()), limit: 10, ..JobQuery::default() };
    let admins = shop.app.store().jobs(admins).await.expect("jobs").items;
    assert_eq!(admins.iter().map(|job| job.state.as_str()).collect::<Vec<_>>(), ["failed"]);
    assert_eq!(types(&events).iter().filter(|kind| **kind == "shop.alarm").count(), 1);
}

#[tokio::test]
async fn a_rule_on_the_lives_of_jobs_does_not_go_on_for_ever() {
    let shop = Shop::open().await;
    let events = shop.run(vec![NewJob { user_id: Some("u1".to_owned()), ..job("good") }]).await;
    assert_eq!(types(&events), ["job.enqueued", "job.completed"]);
    // One for each of the two events, and none for the lives of these.
    assert_eq!(shop.jobs("good").await, 3);
}

#[tokio::test]
async fn some_queues_alert_at_the_first_failure_and_some_jobs_never() {
    let shop = Shop::open().await;
    let events = shop.run(vec![job("backup")]).await;
    let kinds = types(&events);
    let place = |name: &str| kinds.iter().position(|kind| *kind == name);
    assert!(place("shop.alarm") < place("job.failed"), "{kinds:?}");
    assert_eq!(shop.run(vec![job("quiet")]).await.len(), events.len());
}
