//! `#[derive(tidewire::Job)]`: what a struct says wins over the catalog for the jobs that are staged from it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire::testing::TestApp;
use tidewire::{App, Backoff, Delay, Jitter, Job, JobContext, JobStates, NewJob, OnConflict, Priority, TenantId, done};

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[queues.email]
attempts = 3
timeout = "60s"

[queues.slow]

[jobs.send-welcome]
queue = "email"
priority = 4
"#;

#[derive(Serialize, Deserialize, tidewire::Job)]
#[job(
    queue = "slow",
    attempts = 7,
    backoff = "exponential(1s, factor 3, cap 1m, jitter 0.5)",
    timeout = "90s",
    ttl = "10m",
    retry_for = "1h",
    priority = 2
)]
struct SendWelcome {
    to: String,
}

#[derive(Serialize, Deserialize, tidewire::Job)]
#[job(type = "send-welcome")]
struct Plain {
    to: u32,
}

#[derive(Serialize, Deserialize, tidewire::Job)]
#[job(type = "send-welcome")]
#[job(backoff = "1s, 10s")]
enum Either {
    This { to: String },
}

/// Near enough to a declared type for a hint.
#[derive(Serialize, Deserialize, tidewire::Job)]
struct SendWelcom {}

fn catalog() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("app.toml"), CATALOG).expect("the catalog");
    dir
}

#[test]
fn the_options_are_staged() {
    let job = SendWelcome { to: "ada".to_owned() }.stage().expect("staged");
    assert_eq!((job.kind.as_str(), job.data.get()), ("send-welcome", r#"{"to":"ada"}"#));
    assert_eq!((job.queue.as_deref(), job.attempts, job.priority), (Some("slow"), Some(7), Some(Priority(2))));
    assert_eq!(job.timeout, Some(Delay(Duration::from_secs(90))));
    assert_eq!(job.ttl, Some(Delay(Duration::from_secs(600))));
    assert_eq!(job.retry_for, Some(Delay(Duration::from_secs(3_600))));
    let (base, cap, jitter) = (Duration::from_secs(1), Duration::from_secs(60), Jitter::Share(0.5));
    assert_eq!(job.backoff, Some(Backoff::Exponential { base, factor: 3.0, cap, jitter }));

    let job = Either::This { to: "ada".to_owned() }.stage().expect("staged");
    let delays = vec![Duration::from_secs(1), Duration::from_secs(10)];
    assert_eq!((job.backoff, job.queue), (Some(Backoff::Delays { delays }), None));
}

/// The macro reads durations with code of its own, as it must not depend on the rest.
#[test]
fn durations_are_those_of_the_catalog() {
    macro_rules! same {
        ($($text:literal),*) => {$({
            #[derive(Serialize, Deserialize, tidewire::Job)]
            #[job(timeout = $text)]
            struct Timed {}
            let catalog: Delay = serde_json::from_value(json!($text)).expect($text);
            assert_eq!(Timed {}.stage().expect("staged").timeout, Some(catalog), $text);
        })*};
    }
    same!("1ms", "0.5s", "90s", "1.5h", "36h", "7d", "3650d");
}

#[tokio::test]
async fn the_struct_wins_for_its_own_jobs_and_the_catalog_for_all_others() {
    let dir = catalog();
    let app = TestApp::new(dir.path()).build().await.expect("an app");
    let tenant = TenantId::new("corner").expect("a tenant");
    app.enqueue(&tenant, &SendWelcome { to: "ada".to_owned() }).await.expect("enqueued");
    app.enqueue(&tenant, &Plain { to: 5 }).await.expect("enqueued");
    app.enqueue_job(&tenant, NewJob::new("send-welcome", json!({}))).await.expect("enqueued");
    let jobs = app.jobs(&tenant).await;
    let options: Vec<_> =
        jobs.iter().map(|job| (&*job.queue, job.attempts, job.priority, job.timeout.as_secs())).collect();
    assert_eq!(options, [("slow", 7, 2, 90), ("email", 3, 4, 60), ("email", 3, 4, 60)]);
}

#[tokio::test]
async fn a_type_that_is_not_declared_is_an_error_of_the_build_with_a_hint() {
    let dir = catalog();
    let built =
        App::builder(dir.path()).store("memory:").job(|_: SendWelcom, _: JobContext| async { done() }).build().await;
    let said = built.err().expect("not declared").to_string();
    assert!(said.contains("\"send-welcom\"") && said.contains("did you mean \"send-welcome\"?"), "{said}");
}

/// One at a time for each address, whatever else is in it.
#[derive(Serialize, Deserialize, tidewire::Job)]
#[job(
    type = "send-welcome",
    key = "{to}",
    unique(key = "welcome-{to}", window = "1h", while = "waiting", on_conflict = "replace")
)]
struct Once {
    to: String,
}

#[test]
fn keys_are_made_of_the_fields_of_the_job() {
    let job = Once { to: "ada@example.com".to_owned() }.stage().expect("staged");
    assert_eq!(job.key.as_deref(), Some("ada@example.com"));
    let unique = job.unique.expect("unique");
    assert_eq!(unique.key.as_deref(), Some("welcome-ada@example.com"));
    assert_eq!(unique.window, Some(Delay(Duration::from_secs(3_600))));
    assert_eq!((unique.states, unique.on_conflict), (Some(JobStates::WAITING), Some(OnConflict::Replace)));
}
