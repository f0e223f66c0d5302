use serde_json::json;

use super::*;
use crate::catalog::parse;
use crate::commit::{Delay, Priority};
use crate::id::UuidV7;
use crate::time::ManualClock;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[rooms]
"shop:{shopId}" = { join = "auto" }
"user:{userId}" = { join = "auto" }
"order:{orderId}" = { join = "request" }

[events."order.placed"]
rooms = ["shop:{shopId}", "order:{orderId}"]
data = { orderId = "string", total = "number?" }

[events."order.billed"]
rooms = ["user:{userId}"]
stream = "order-{orderId}"

[events."order.echo"]
rooms = ["shop:{shopId}"]

[events."cursor.moved"]
rooms = ["shop:{shopId}"]
ephemeral = true

[events."asked"]
reply = true
rooms = []

[queues.work]
attempts = 4

[queues.other]

[jobs.bill]
queue = "work"
priority = 2
delay = "5s"
data = { orderId = "string" }

[jobs.plain]
queue = "work"

[[rules]]
on = "order.placed"
when = "data.total > 10.0"
enqueue = { job = "bill", data = { orderId = "{{ data.orderId }}" }, priority = 1 }

[[rules]]
on = "order.echo"
publish = { type = "order.echo", data = { n = "{{ data.n }}" } }

[[rules]]
on = "cursor.*"
enqueue = { job = "plain", data = { who = "{{ event.userId }}" } }
"#;

fn expander(subscriptions: Vec<Subscription>) -> Expander {
    let clock = Arc::new(ManualClock::new(NOW));
    Expander::new(Arc::new(parse(CATALOG).expect("the catalog")), subscriptions, Arc::new(UuidV7::new(clock, 1)))
}

fn tenant() -> TenantId {
    TenantId::new("corner").expect("a tenant")
}

fn expand(events: Vec<NewEvent>, jobs: Vec<NewJob>) -> Result<crate::commit::Expansion> {
    expander(Vec::new()).expand(&tenant(), Request { events, jobs, ..Request::default() }, &Origin::default(), NOW)
}

fn placed(order: &str, total: f64) -> NewEvent {
    NewEvent::new("order.placed", json!({ "orderId": order, "total": total }))
}

fn refused(events: Vec<NewEvent>, jobs: Vec<NewJob>) -> (&'static str, String) {
    let error = expand(events, jobs).expect_err("refused");
    (error.code(), error.detail().to_owned())
}

#[test]
fn rooms_come_from_the_tenant_the_params_the_data_and_the_user_in_this_order() {
    let rooms = |event: NewEvent| expand(vec![event], Vec::new()).expect("expanded").commit.events[0].rooms.clone();
    assert_eq!(&*rooms(placed("o1", 1.0)), ["shop:corner".into(), "order:o1".into()]);
    assert_eq!(&*rooms(placed("o1", 1.0).param("orderId", "o2")), ["shop:corner".into(), "order:o2".into()]);
    assert_eq!(&*rooms(placed("o1", 1.0).param("shopId", "elsewhere")), ["shop:corner".into(), "order:o1".into()]);
    let mut billed = NewEvent::new("order.billed", json!({ "orderId": "o1" }));
    billed.user_id = Some("ann".to_owned());
    let expansion = expand(vec![billed], Vec::new()).expect("expanded");
    assert_eq!(&*expansion.commit.events[0].rooms, ["user:ann".into()]);
    assert_eq!(expansion.commit.events[0].stream.as_deref(), Some("order-o1"));
}

#[test]
fn a_rule_adds_its_job_to_the_same_commit_and_names_its_cause() {
    let commit = expand(vec![placed("o1", 5.0), placed("o2", 50.0)], Vec::new()).expect("expanded").commit;
    assert_eq!((commit.asked_events, commit.asked_jobs, commit.jobs.len()), (2, 0, 1));
    let job = &commit.jobs[0];
    assert_eq!(job.data.get(), r#"{"orderId":"o2"}"#);
    assert_eq!((job.priority, job.attempts, job.run_at), (1, 4, Some(NOW + std::time::Duration::from_secs(5))));
    assert_eq!(job.causation_id.as_deref(), Some(&*commit.events[1].id.to_string()));
    assert_eq!((job.root, job.depth), (Some(1), 1));
}

#[test]
fn a_condition_that_cannot_be_evaluated_is_a_no() {
    let event = NewEvent::new("order.placed", json!({ "orderId": "o1" }));
    assert!(expand(vec![event], Vec::new()).expect("expanded").commit.jobs.is_empty());
}

#[test]
fn a_chain_of_causes_is_cut() {
    let (code, detail) = refused(vec![NewEvent::new("order.echo", json!({ "n": 1 }))], Vec::new());
    assert_eq!(code, "commit.too_deep");
    assert!(detail.contains("order.echo"), "{detail}");
}

#[test]
fn what_a_job_publishes_is_one_cause_deeper_than_the_job() {
    let origin =
        Origin { depth: MAX_DEPTH, cause: Some("j1".into()), correlation_id: Some("c1".into()), ..Origin::default() };
    let request = |event: NewEvent| Request { events: vec![event], ..Request::default() };
    let plain =
        expander(Vec::new()).expand(&tenant(), request(placed("o1", 1.0)), &origin, NOW).expect_err("a rule hears it");
    assert_eq!(plain.code(), "commit.too_deep");
    let quiet = NewEvent::new("order.billed", json!({ "orderId": "o1", "userId": "ann" }));
    let commit = expander(Vec::new()).expand(&tenant(), request(quiet), &origin, NOW).expect("nothing hears it").commit;
    assert_eq!(commit.events[0].causation_id.as_deref(), Some("j1"));
    assert_eq!(commit.events[0].correlation_id.as_deref(), Some("c1"));
}

#[test]
fn an_ephemeral_event_is_not_in_the_commit_but_what_it_causes_is() {
    let mut event = NewEvent::new("cursor.moved", json!({}));
    event.user_id = Some("ann".to_owned());
    let expansion = expand(vec![event], Vec::new()).expect("expanded");
    assert_eq!((expansion.ephemeral.len(), expansion.commit.events.len()), (1, 0));
    assert_eq!(expansion.commit.jobs[0].data.get(), r#"{"who":"ann"}"#);
    let mut versioned = NewEvent::new("cursor.moved", json!({}));
    versioned.expected_version = Some(0);
    assert_eq!(refused(vec![versioned], Vec::new()).0, "event.invalid_data");
}

#[test]
fn a_durable_handler_gets_the_event_and_nobody_else_can_ask_for_its_job() {
    let job = JobType { name: "on:ledger".into(), ..expander(Vec::new()).catalog.jobs["plain"].clone() };
    let on = Pattern::parse("order.*").expect("a pattern");
    let expander = expander(vec![Subscription { on, job }]);
    let events = Request { events: vec![placed("o1", 1.0)], ..Request::default() };
    let commit = expander.expand(&tenant(), events, &Origin::default(), NOW).expect("expanded").commit;
    let data = commit.jobs[0].data.to_value().expect("data");
    assert_eq!((&data["type"], &data["data"]["orderId"]), (&json!("order.placed"), &json!("o1")));
    let forged = Request { jobs: vec![NewJob::new("on:ledger", json!({}))], ..Request::default() };
    let error = expander.expand(&tenant(), forged, &Origin::default(), NOW).expect_err("refused");
    assert_eq!(error.code(), "job.unknown_type");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let event = |kind: &str, data: Value| NewEvent::new(kind, data);
    let job = |change: fn(&mut NewJob)| {
        let mut job = NewJob::new("plain", json!({}));
        change(&mut job);
        job
    };
    for (events, jobs, code, detail) in [
        (vec![event("order.place", json!({}))], vec![], "event.unknown_type", "did you mean \"order.placed\""),
        (
            vec![event("order.placed", json!({ "orderId": 1 }))],
            vec![],
            "event.invalid_data",
            "data.orderId: expected string, got 1",
        ),
        (
            vec![placed("o1", 1.0), event("order.placed", json!({}))],
            vec![],
            "event.invalid_data",
            "events[1].data.orderId: expected string, got nothing",
        ),
        (vec![event("order.billed", json!({ "orderId": "o1" }))], vec![], "event.missing_param", "params.userId"),
        (vec![event("asked", json!({}))], vec![], "event.not_publishable", "in reply"),
        (vec![], vec![NewJob::new("bil", json!({}))], "job.unknown_type", "did you mean \"bill\""),
        (vec![], vec![NewJob::new("bill", json!({}))], "job.invalid_data", "data.orderId"),
        (vec![], vec![job(|job| job.queue = Some("wrk".to_owned()))], "job.unknown_queue", "did you mean \"work\""),
        (vec![], vec![job(|job| job.attempts = Some(0))], "job.invalid_option", "attempts"),
        (
            vec![],
            vec![job(|job| (job.delay, job.run_at) = (Some(Delay(NOW.since(NOW))), Some(NOW)))],
            "job.invalid_option",
            "not both",
        ),
        (vec![], vec![job(|job| job.tenant = TenantId::new("other").ok())], "tenant.mixed", "corner"),
        (vec![], vec![job(|job| job.user_id = Some("x".repeat(300)))], "data.too_large", "userId"),
        (vec![], vec![NewJob::new("plain", json!("x".repeat(MAX_DATA_BYTES)))], "data.too_large", "data"),
    ] {
        let (found, text) = refused(events, jobs);
        assert_eq!(found, code, "{text}");
        assert!(text.contains(detail), "{text:?} should say {detail:?}");
    }
}

#[test]
fn a_job_takes_what_it_does_not_say_from_its_type_and_queue() {
    let mut job = NewJob::new("bill", json!({ "orderId": "o1" }));
    job.queue = Some("other".to_owned());
    job.priority = Some(Priority(5));
    job.delay = Some(Delay(std::time::Duration::ZERO));
    let job = expand(Vec::new(), vec![job]).expect("expanded").commit.jobs.remove(0);
    assert_eq!((&*job.queue, job.priority, job.attempts, job.run_at), ("other", 5, 4, None));
    assert!(!job.given_id);
}

#[test]
fn a_commit_has_a_bound() {
    let jobs = (0..=MAX_OPS).map(|_| NewJob::new("plain", json!({}))).collect();
    assert_eq!(refused(Vec::new(), jobs).0, "commit.too_large");
}

mod waiting;
