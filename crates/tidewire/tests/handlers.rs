//! What handlers may ask for, and what stands around their runs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire::JobState::{Completed, Dead, Failed, Scheduled};
use tidewire::store::LogQuery;
use tidewire::testing::{TestApp, TestBuilder};
use tidewire::{
    App, Attempt, Events, Fatal, FromContext, HandlerError, HandlerResult, Heard, JobContext, Middleware, NewEvent,
    NewJob, Next, Request, State, Tenant, TenantId, Verdict, assert_published, done, done_with, fail, refute_published,
    retry, retry_in,
};

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[events."order.placed"]
[events."order.packed"]

[queues.packing]
attempts = 2
backoff = { kind = "fixed", base = "1h" }

[jobs.pack]
queue = "packing"

[queues.narrow]
backlog = 1

[jobs.crate]
queue = "narrow"
"#;

#[derive(Serialize, Deserialize, tidewire::Job)]
struct Pack {
    order: String,
}

struct Shelf(&'static str);

/// What happened, in order.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn tell(&self, what: impl Into<String>) {
        self.0.lock().expect("no panic holds it").push(what.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().expect("no panic holds it").clone()
    }
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

    fn test(&self) -> TestBuilder {
        TestApp::new(self.dir.path())
    }

    async fn pack(&self, app: &App) {
        app.enqueue(&self.tenant, &Pack { order: "o1".to_owned() }).await.expect("enqueued");
    }
}

async fn pack(
    job: Pack,
    cx: JobContext,
    shelf: State<Shelf>,
    tenant: Tenant,
    attempt: Attempt,
    log: Events,
) -> HandlerResult {
    let events = log.read(LogQuery { limit: 10, ..LogQuery::default() }).await?;
    assert!(!cx.is_cancelled());
    let Attempt { number, of } = attempt;
    done_with(json!([job.order, shelf.0.0, tenant.as_str(), number, of, attempt.is_last(), events.len()]))
}

#[tokio::test]
async fn a_plain_function_gets_what_it_asks_for() {
    let shop = Shop::new();
    let app = shop.test().state(Shelf("left")).job(pack).build().await.expect("an app");
    let placed = NewEvent::new("order.placed", json!({}));
    app.commit(&shop.tenant, Request { events: vec![placed], ..Request::default() }).await.expect("committed");
    shop.pack(&app).await;
    assert_eq!(app.drain().await.states(), [Completed]);
    let result = app.jobs(&shop.tenant).await[0].result.clone().expect("a result");
    assert_eq!(result.get(), r#"["o1","left","corner",1,2,false,1]"#);
}

#[tokio::test]
async fn a_state_that_nobody_gave_is_an_error_of_the_build() {
    let shop = Shop::new();
    let built = App::builder(shop.dir.path()).store("memory:").job(pack).build().await;
    let said = built.err().expect("a missing state").to_string();
    assert!(said.contains("handlers::Shelf") && said.contains("(handler.missing_state)"), "{said}");
    let hears = |_: State<Shelf>| async { done() };
    let built = App::builder(shop.dir.path()).store("memory:").on("order.*", "shelves", hears).build().await;
    assert!(built.err().expect("a missing state").to_string().contains("handler.missing_state"));
}

#[tokio::test]
async fn a_durable_handler_gets_the_event_as_a_type() {
    #[derive(Deserialize)]
    struct Placed {
        total: u32,
    }
    let shop = Shop::new();
    let hears = |event: Heard<Placed>, cx: JobContext| async move {
        cx.publish(NewEvent::new(
            "order.packed",
            json!({ "of": event.id, "total": event.data.total, "by": event.user_id }),
        ));
        done()
    };
    let app = shop.test().on("order.placed", "packer", hears).build().await.expect("an app");
    let mut placed = NewEvent::new("order.placed", json!({ "total": 12 }));
    placed.user_id = Some("ann".to_owned());
    placed.id = Some(tidewire::Id::parse("e1").expect("an id"));
    let wrong = NewEvent::new("order.placed", json!({ "total": "twelve" }));
    app.commit(&shop.tenant, Request { events: vec![placed, wrong], ..Request::default() }).await.expect("committed");
    assert_eq!(app.drain().await.states(), [Completed, Failed], "data of another shape is final");
    assert_published!(app, shop.tenant, "order.packed", { "of": "e1", "total": 12, "by": "ann" });
}

#[tokio::test]
async fn an_argument_of_ones_own_can_end_the_run() {
    struct Never;
    impl FromContext for Never {
        fn from_context(_: &JobContext) -> Result<Self, HandlerError> {
            Err(std::io::Error::other("not today").into())
        }
    }
    let shop = Shop::new();
    let app = shop.test().job(|_: Pack, _: Never| async { panic!("it is not called") }).build().await.expect("an app");
    shop.pack(&app).await;
    assert_eq!(app.drain().await.states(), [Scheduled]);
    assert_eq!(app.jobs(&shop.tenant).await[0].error.as_deref(), Some("not today"));
}

/// Tells what it sees, under a name.
struct Telling(&'static str, Told);

impl Middleware for Telling {
    async fn run(&self, cx: JobContext, next: Next) -> HandlerResult {
        let Self(name, told) = self;
        told.tell(format!("{name}: {} begins", cx.job().kind));
        let answer = next.run(cx).await;
        told.tell(match &answer {
            Ok(Verdict::Done { .. }) => format!("{name}: done"),
            Ok(other) => format!("{name}: {other:?}"),
            Err(error) => format!("{name}: {}, final: {}", error.message(), error.is_final()),
        });
        answer
    }
}

#[tokio::test]
async fn middleware_stands_around_every_run_in_the_order_it_was_added() {
    let (shop, told) = (Shop::new(), Told::default());
    let inner = told.clone();
    let handler = move |_: Pack, attempt: Attempt| {
        inner.tell("the handler");
        async move { if attempt.is_last() { fail("no tape") } else { Err(std::io::Error::other("later").into()) } }
    };
    let (outside, inside) = (Telling("outside", told.clone()), Telling("inside", told.clone()));
    let mut app = shop.test().layer(outside).layer(inside).job(handler).build().await.expect("an app");
    shop.pack(&app).await;
    app.drain().await;
    let expected = [
        "outside: pack begins",
        "inside: pack begins",
        "the handler",
        "inside: later, final: false",
        "outside: later, final: false",
    ];
    assert_eq!(told.all(), expected);
    app.advance(std::time::Duration::from_secs(3600)).await;
    assert_eq!(told.all().last().map(String::as_str), Some("outside: no tape, final: true"));
}

#[tokio::test]
async fn middleware_can_answer_instead_of_the_handler() {
    let shop = Shop::new();
    let guard = |cx: JobContext, next: Next| async move {
        match cx.tenant().as_str() {
            "corner" => fail("the trial is over"),
            _ => next.run(cx).await,
        }
    };
    let app = shop.test().layer(guard).job(|_: Pack| async { done() }).build().await.expect("an app");
    shop.pack(&app).await;
    app.enqueue(&TenantId::new("market").expect("a tenant"), &Pack { order: "o2".to_owned() }).await.expect("enqueued");
    let drained = app.drain().await;
    let mut states: Vec<_> = drained.runs.iter().map(|run| (run.tenant.as_str(), run.state)).collect();
    states.sort();
    assert_eq!(states, [("corner", Failed), ("market", Completed)]);
}

#[tokio::test]
async fn middleware_that_turns_done_into_another_verdict_drops_the_effects() {
    let shop = Shop::new();
    let doubt = |cx: JobContext, next: Next| async move {
        next.run(cx).await?;
        retry("look again")
    };
    let packs = |_: Pack, cx: JobContext| async move {
        cx.publish(NewEvent::new("order.packed", json!({})));
        done()
    };
    let app = shop.test().layer(doubt).job(packs).build().await.expect("an app");
    shop.pack(&app).await;
    assert_eq!(app.drain().await.states(), [Scheduled]);
    refute_published!(app, shop.tenant, "order.packed");
}

#[tokio::test]
async fn a_handler_says_when_to_try_again_and_its_attempts_still_count() {
    let shop = Shop::new();
    let again = |_: Pack| async { retry_in(Duration::from_secs(300), "the scales are in use") };
    let mut app = shop.test().job(again).build().await.expect("an app");
    shop.pack(&app).await;
    assert_eq!(app.drain().await.states(), [Scheduled]);
    let job = app.jobs(&shop.tenant).await.remove(0);
    assert_eq!((job.attempt, job.error.as_deref()), (1, Some("the scales are in use")));
    assert_eq!(job.run_at, app.now() + Duration::from_secs(300), "and not in an hour, as the queue says");
    assert_eq!(app.advance(Duration::from_secs(300)).await.states(), [Dead], "the second of two attempts");
}

#[tokio::test]
async fn a_fatal_error_is_never_tried_again_and_any_other_is() {
    let shop = Shop::new();
    let reads = |job: Pack| async move {
        let number: u32 = job.order.parse().fatal()?;
        let checked: Result<u32, HandlerError> = number.checked_sub(1).ok_or(std::fmt::Error).map_err(Into::into);
        checked?;
        done()
    };
    let app = shop.test().job(reads).build().await.expect("an app");
    shop.pack(&app).await;
    assert_eq!(app.drain().await.states(), [Failed]);
    let job = app.jobs(&shop.tenant).await.remove(0);
    assert_eq!(job.error.as_deref(), Some("invalid digit found in string"));
    app.enqueue(&shop.tenant, &Pack { order: "0".to_owned() }).await.expect("enqueued");
    assert_eq!(app.drain().await.states(), [Scheduled]);
    let twice = |_: Pack| async { fail("no").fatal() };
    let app = shop.test().job(twice).build().await.expect("an app");
    shop.pack(&app).await;
    assert_eq!(app.drain().await.states(), [Failed]);
}

#[tokio::test]
async fn a_panic_in_middleware_ends_the_run_and_nothing_else() {
    let shop = Shop::new();
    let layer = |cx: JobContext, next: Next| async move {
        assert!(cx.job().data.get() != "{}", "no data");
        next.run(cx).await
    };
    let app = shop.test().layer(layer).job(|_: tidewire_pack::Any| async { done() }).build().await.expect("an app");
    app.enqueue_job(&shop.tenant, NewJob::new("pack", json!({}))).await.expect("enqueued");
    shop.pack(&app).await;
    assert_eq!(app.drain().await.states(), [Scheduled, Completed]);
    assert!(
        app.jobs(&shop.tenant).await[0].error.as_deref().is_some_and(|error| error.starts_with("panicked: no data"))
    );
}

mod tidewire_pack {
    use serde::{Deserialize, Serialize};

    /// Any data will do.
    #[derive(Serialize, Deserialize, tidewire::Job)]
    #[job(type = "pack")]
    pub(super) struct Any {
        order: Option<String>,
    }
}

#[tokio::test]
async fn a_run_tells_of_its_progress_and_writes_its_log_whatever_becomes_of_it() {
    let shop = Shop::new();
    let told = Told::default();
    let builder = shop.test().state(told.clone()).job(|_: Pack, cx: JobContext, told: State<Told>| async move {
        cx.progress(json!({ "done": 1, "of": 3 })).await?;
        cx.progress(json!({ "done": 2, "of": 3 })).await?;
        cx.log("found a box").await?;
        cx.log(format!("attempt {}", cx.job().attempt)).await?;
        let huge = cx.progress(json!("x".repeat(5_000))).await.expect_err("too large");
        told.tell(huge.code());
        retry("no tape")
    });
    let app = builder.build().await.expect("an app");
    shop.pack(&app).await;
    assert_eq!(app.drain().await.states(), [Scheduled]);
    assert_eq!(told.all(), ["data.too_large"]);
    let id = app.jobs(&shop.tenant).await.remove(0).id;
    let progress = app.progress(&shop.tenant, &id).await.expect("it told");
    assert_eq!(progress.get(), r#"{"done":2,"of":3}"#);
    let lines = app.logs(&shop.tenant, &id).await;
    let lines: Vec<_> = lines.iter().map(|line| (line.attempt, &*line.text)).collect();
    assert_eq!(lines, [(1, "found a box"), (1, "attempt 1")]);
    let nobody = tidewire::Id::parse("nobody").expect("an id");
    assert!(app.progress(&shop.tenant, &nobody).await.is_none() && app.logs(&shop.tenant, &nobody).await.is_empty());
}

#[tokio::test]
async fn a_run_that_has_ended_tells_nothing_more() {
    let shop = Shop::new();
    let kept = Arc::new(Mutex::new(None));
    let keeping = kept.clone();
    let builder = shop.test().job(move |_: Pack, cx: JobContext| {
        *keeping.lock().expect("no panic holds it") = Some(cx);
        async { done() }
    });
    let app = builder.build().await.expect("an app");
    shop.pack(&app).await;
    app.drain().await;
    let cx = kept.lock().expect("no panic holds it").take().expect("it ran");
    assert_eq!(cx.progress(json!(1)).await.expect_err("over").code(), "job.lease_lost");
    assert_eq!(cx.log("late").await.expect_err("over").code(), "job.lease_lost");
}

#[tokio::test]
async fn effects_that_find_a_backlog_full_make_the_run_a_failed_one_and_do_not_wait_for_room() {
    let shop = Shop::new();
    let builder = shop.test().job(|_: Pack, cx: JobContext| async move {
        cx.enqueue(NewJob::new("crate", json!({})));
        cx.enqueue(NewJob::new("crate", json!({})));
        done()
    });
    let app = builder.build().await.expect("an app");
    shop.pack(&app).await;
    assert_eq!(app.drain().await.states(), [Scheduled]);
    let job = app.jobs(&shop.tenant).await.remove(0);
    assert!(job.error.expect("why").starts_with("its effects were refused: "));
    assert_eq!(app.jobs(&shop.tenant).await.len(), 1, "none of them is there");
}
