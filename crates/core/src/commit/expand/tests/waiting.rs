//! What jobs say of their keys, their time and each other.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::Id;
use crate::commit::NewFlow;
use crate::job::{OnConflict, OnFailure, Rare, State, States};

const RULES: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[queues.work]

[jobs.sync]
queue = "work"
key = "{orderId}"
ttl = "10m"
retryFor = "2h"
data = { orderId = "string", note = "string?" }
unique = { key = "sync-{orderId}", while = "waiting", window = "30s", onConflict = "latest" }

[jobs.plain]
queue = "work"

[rooms]
"shop:{shopId}" = { join = "auto" }

[events.placed]
rooms = ["shop:{shopId}"]

[[rules]]
on = "placed"
[rules.flow]
name = "order {{ data.id }}"
when = "data.id != 'dry'"
jobs = [
  { ref = "pay", job = "sync", data = { orderId = "{{ data.id }}" }, onFailure = "compensate" },
  { ref = "ship", job = "plain", after = ["pay"], priority = 1, compensate = { job = "plain", data = { undo = true } } },
]
then = { job = "plain", delay = "5s" }
finally = { job = "plain" }
"#;

fn jobs_of(request: Value) -> Result<crate::commit::Commit> {
    let clock = Arc::new(ManualClock::new(NOW));
    let catalog = Arc::new(parse(RULES).expect("the catalog"));
    let expander = Expander::new(catalog, Vec::new(), Arc::new(UuidV7::new(clock, 1)));
    let request: Request = serde_json::from_value(request).expect("a request");
    expander.expand(&tenant(), request, &Origin::default(), NOW).map(|expansion| expansion.commit)
}

fn rare_of(job: Value) -> Rare {
    let commit = jobs_of(json!({ "jobs": [job] })).expect("expanded");
    commit.jobs[0].rare.as_deref().cloned().unwrap_or_default()
}

fn refused(request: Value) -> (&'static str, String) {
    let error = jobs_of(request).expect_err("refused");
    (error.code(), error.detail().to_owned())
}

fn plain(name: &str, after: &[&str]) -> Value {
    json!({ "type": "plain", "ref": name, "after": after })
}

#[test]
fn a_job_takes_its_keys_and_times_from_its_type() {
    let rare = rare_of(json!({ "type": "sync", "data": { "orderId": "o1" } }));
    assert_eq!(rare.key.as_deref(), Some("o1"));
    assert_eq!(rare.expires_at, Some(NOW + Duration::from_secs(600)));
    assert_eq!(rare.retry_until, Some(NOW + Duration::from_secs(7200)));
    let unique = rare.unique.expect("unique");
    assert_eq!((&*unique.key, unique.states, unique.on_conflict), ("sync-o1", States::WAITING, OnConflict::Latest));
    assert_eq!(unique.window, Some(Duration::from_secs(30)));
}

#[test]
fn what_a_job_says_itself_comes_first_and_the_rest_is_its_type_s() {
    let unique = json!({ "key": "mine", "while": ["completed"] });
    let data = json!({ "orderId": "o1" });
    let rare =
        rare_of(json!({ "type": "sync", "data": data, "key": "k", "ttl": "5s", "retryFor": 1000, "unique": unique }));
    assert_eq!((rare.key.as_deref(), rare.expires_at), (Some("k"), Some(NOW + Duration::from_secs(5))));
    assert_eq!(rare.retry_until, Some(NOW + Duration::from_secs(1)));
    let unique = rare.unique.expect("unique");
    assert!(&*unique.key == "mine" && unique.states.contains(State::Completed));
    assert_eq!((unique.window, unique.on_conflict), (Some(Duration::from_secs(30)), OnConflict::Latest));
}

#[test]
fn without_a_key_equal_data_are_the_key_however_they_are_written() {
    let key = |data: &str| {
        let job = format!(r#"{{"type": "plain", "data": {data}, "unique": {{}}}}"#);
        rare_of(serde_json::from_str(&job).expect("json")).unique.expect("unique").key
    };
    assert_eq!(key(r#"{"a": 1, "b": [2]}"#), key(r#"{"b":[2],"a":1}"#));
    assert_ne!(key(r#"{"a": 1}"#), key(r#"{"a": 2}"#));
    let unique = rare_of(json!({ "type": "plain", "unique": {} })).unique.expect("unique");
    assert_eq!((unique.states, unique.on_conflict, unique.window), (States::UNFINISHED, OnConflict::Keep, None));
}

#[test]
fn a_delayed_job_expires_that_long_after_it_is_due() {
    let rare = rare_of(json!({ "type": "plain", "delay": "1m", "ttl": "10s" }));
    assert_eq!(rare.expires_at, Some(NOW + Duration::from_secs(70)));
}

#[test]
fn references_are_ids_in_whatever_order_and_so_are_given_ids() {
    let jobs = json!([plain("last", &["first", "named"]), plain("first", &[]), { "type": "plain", "id": "named" }]);
    let commit = jobs_of(json!({ "jobs": jobs })).expect("expanded");
    let after: Vec<&Id> = commit.jobs[0].after.iter().map(|after| &after.id).collect();
    assert_eq!(after, [&commit.jobs[1].id, &commit.jobs[2].id]);
    assert!(commit.flows.is_empty());
}

#[test]
fn who_ignores_a_failure_is_said_by_the_job_that_fails() {
    let shaky = json!({ "type": "plain", "ref": "shaky", "onFailure": "ignore" });
    let commit = jobs_of(json!({ "jobs": [shaky, plain("sound", &[]), plain("end", &["shaky", "sound"])] }));
    let after = commit.expect("expanded").jobs[2].after.clone();
    assert_eq!(after.iter().map(|after| after.ignores_failure).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_flow_adds_its_undoing_and_what_comes_last() {
    let step = json!({ "type": "sync", "ref": "a", "data": { "orderId": "o1" },
        "compensate": { "type": "sync", "data": { "orderId": "o1", "note": "undo" } } });
    let flow = json!({ "id": "f", "name": "order", "then": { "type": "plain" }, "finally": { "type": "plain" } });
    let commit = jobs_of(json!({ "jobs": [step, plain("b", &["a"])], "flow": flow })).expect("expanded");
    assert_eq!((commit.flows.len(), commit.asked_flows), (1, 1));
    let head = &commit.flows[0];
    assert_eq!((head.id.to_string().as_str(), head.given_id, head.name.as_deref()), ("f", true, Some("order")));
    assert_eq!((commit.asked_jobs, commit.jobs.len()), (2, 5));
    assert!(commit.jobs.iter().all(|job| job.rare.as_ref().and_then(|rare| rare.flow.as_ref()) == Some(&head.id)));
    let [step, other, undo, then, finally] = &commit.jobs[..] else { panic!("five jobs") };
    let rare = undo.rare.as_deref().expect("rare");
    assert_eq!(rare.compensates.as_ref(), Some(&step.id));
    // Nobody knows when it will be needed, so it waits as long as it takes and gives way to nobody.
    assert_eq!((rare.expires_at, rare.unique.as_ref()), (None, None));
    for (last, ignores_failure) in [(then, false), (finally, true)] {
        let after: Vec<_> = last.after.iter().map(|after| (&after.id, after.ignores_failure)).collect();
        assert_eq!(after, [(&step.id, ignores_failure), (&other.id, ignores_failure)]);
    }
}

#[test]
fn a_rule_begins_a_flow_beside_the_one_that_was_asked_for() {
    let placed = |id: &str| json!({ "type": "placed", "data": { "id": id } });
    let commit = jobs_of(
        json!({ "events": [placed("o1"), placed("dry"), placed("o2")], "jobs": [plain("own", &[])], "flow": {} }),
    );
    let commit = commit.expect("expanded");
    assert_eq!((commit.asked_flows, commit.asked_jobs, commit.jobs.len()), (1, 1, 11));
    let heads: Vec<_> = commit.flows.iter().map(|flow| (flow.name.as_deref(), flow.root)).collect();
    assert_eq!(heads, [(None, None), (Some("order o1"), Some(0)), (Some("order o2"), Some(2))]);
    let flow_of = |job: &Enqueue| job.rare.as_ref().and_then(|rare| rare.flow.clone());
    assert_eq!(flow_of(&commit.jobs[0]).as_ref(), Some(&commit.flows[0].id));
    let [pay, ship, undo, then, finally] = &commit.jobs[1..6] else { panic!("five jobs") };
    assert!(
        commit.jobs[1..6].iter().all(|job| flow_of(job).as_ref() == Some(&commit.flows[1].id) && job.root == Some(0))
    );
    assert!(
        commit.jobs[6..].iter().all(|job| flow_of(job).as_ref() == Some(&commit.flows[2].id) && job.root == Some(2))
    );
    assert_eq!((pay.data.get(), ship.priority, undo.data.get()), (r#"{"orderId":"o1"}"#, 1, r#"{"undo":true}"#));
    assert_eq!(pay.rare.as_ref().map(|rare| rare.on_failure), Some(OnFailure::Compensate));
    assert_eq!(ship.after.iter().map(|after| &after.id).collect::<Vec<_>>(), [&pay.id]);
    assert_eq!(undo.rare.as_ref().and_then(|rare| rare.compensates.as_ref()), Some(&ship.id));
    assert_eq!((then.run_at, then.after.len()), (Some(NOW + Duration::from_secs(5)), 2));
    assert!(finally.rare.as_ref().is_some_and(|rare| rare.finally));
    // The event is the cause of all of them.
    assert_eq!(pay.causation_id, Some(commit.events[0].id.to_string().into()));
}

#[test]
fn what_comes_when_all_have_completed_ignores_what_the_flow_ignores() {
    let ignored = json!({ "type": "plain", "ref": "a", "onFailure": "ignore" });
    let flow = json!({ "then": { "type": "plain" } });
    let commit = jobs_of(json!({ "jobs": [ignored, plain("b", &[])], "flow": flow })).expect("expanded");
    let ignores: Vec<bool> = commit.jobs[2].after.iter().map(|after| after.ignores_failure).collect();
    assert_eq!(ignores, [true, false]);
}

/// Two jobs of one unique key, the first of which waits through another for the second.
fn one_of_a_key(conflict: &str) -> Value {
    let unique = json!({ "key": "u", "onConflict": conflict });
    json!([
        { "type": "plain", "ref": "first", "after": ["between"], "unique": unique },
        { "type": "plain", "ref": "between", "after": ["second"] },
        { "type": "plain", "ref": "second", "unique": unique }
    ])
}

#[test]
fn jobs_of_one_unique_key_may_wait_for_each_other_where_they_do_not_become_one() {
    jobs_of(json!({ "jobs": one_of_a_key("supersede") })).expect("the second takes the place of the first");
    let mut running = one_of_a_key("keep");
    running[2]["unique"]["while"] = json!(["processing"]);
    jobs_of(json!({ "jobs": running })).expect("the second is enqueued beside the first, which waits");
    let mut known = one_of_a_key("keep");
    known[0]["after"] = json!([]);
    known[2]["after"] = json!(["first"]);
    jobs_of(json!({ "jobs": known })).expect("what is merged into another waits for nobody");
}

#[test]
fn what_is_wrong_with_a_flow_is_said() {
    let with = |more: Value| {
        let mut job = json!({ "type": "plain" });
        job.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        job
    };
    let by_id = |id: &str, after: &str| json!({ "type": "plain", "id": id, "after": [after] });
    let undo = json!({ "type": "plain", "after": ["a"] });
    let one_of_a_key = |conflict: &str| json!({ "jobs": one_of_a_key(conflict) });
    for (request, code, detail) in [
        (
            json!({ "jobs": [plain("a", &["b"]), plain("b", &["c"]), plain("c", &["a"])] }),
            "flow.cycle",
            "a after b after c after a",
        ),
        (json!({ "jobs": [plain("a", &["a"])] }), "flow.cycle", "a after a"),
        (json!({ "jobs": [by_id("x", "y"), by_id("y", "x")] }), "flow.cycle", "x after y after x"),
        (json!({ "jobs": [by_id("x", "x")] }), "flow.cycle", "x after x"),
        (one_of_a_key("keep"), "flow.cycle", "first after between after first"),
        (one_of_a_key("latest"), "flow.cycle", "first after between after first"),
        (json!({ "jobs": [plain("a", &[]), plain("a", &[])] }), "flow.duplicate_ref", "jobs[0] has the ref \"a\", too"),
        (json!({ "jobs": [], "flow": {} }), "job.invalid_option", "at least one job"),
        (json!({ "jobs": [plain("a", &[])], "flow": { "name": "n".repeat(257) } }), "data.too_large", "name"),
        (json!({ "jobs": [with(json!({ "compensate": { "type": "plain" } }))] }), "job.invalid_option", "of a flow"),
        (json!({ "jobs": [with(json!({ "onFailure": "compensate" }))] }), "job.invalid_option", "of a flow"),
        (
            json!({ "jobs": [plain("a", &[]), with(json!({ "compensate": undo }))], "flow": {} }),
            "job.invalid_option",
            "no after",
        ),
        (json!({ "jobs": [plain("a", &[])], "flow": { "then": { "type": "plian" } } }), "job.unknown_type", "plain"),
        (json!({ "jobs": [with(json!({ "key": "" }))] }), "job.invalid_option", "key: expected 1 to 256 bytes"),
        (json!({ "jobs": [with(json!({ "ttl": 0 }))] }), "job.invalid_option", "ttl: expected more than 0"),
        (json!({ "jobs": [with(json!({ "retryFor": 0 }))] }), "job.invalid_option", "retryFor: expected more than 0"),
        (
            json!({ "jobs": [with(json!({ "unique": { "key": "x".repeat(257) } }))] }),
            "job.invalid_option",
            "unique.key",
        ),
        (
            json!({ "jobs": [with(json!({ "unique": {}, "data": "x".repeat(300) }))] }),
            "job.invalid_option",
            "as none is given",
        ),
        (json!({ "jobs": [with(json!({ "after": vec!["a"; 1_001] }))] }), "job.invalid_option", "at most 1000 jobs"),
        (json!({ "jobs": [with(json!({ "after": ["not an id"] }))] }), "id.invalid", "id"),
    ] {
        let (found, text) = refused(request);
        assert_eq!(found, code, "{text}");
        assert!(text.contains(detail), "{text:?} should say {detail:?}");
    }
}

#[test]
fn a_flow_of_ten_thousand_in_a_chain_is_expanded() {
    let names: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let jobs: Vec<NewJob> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let mut job = NewJob::new("plain", json!({}));
            job.reference = Some(format!("r{name}"));
            job.after = index.checked_sub(1).map(|before| format!("r{before}")).into_iter().collect();
            job.on_failure = Some(OnFailure::Compensate);
            job
        })
        .collect();
    let flow = Some(NewFlow { finally: Some(Box::new(NewJob::new("plain", json!({})))), ..NewFlow::default() });
    let expansion = expander(Vec::new())
        .expand(&tenant(), Request { jobs, flow, ..Request::default() }, &Origin::default(), NOW)
        .expect("expanded");
    assert_eq!(expansion.commit.jobs.len(), 10_001);
    assert_eq!(expansion.commit.jobs[10_000].after.len(), 10_000);
}
