//! Whether something is there that contains what a test expects, and a report when it is not as expected.

use std::collections::BTreeMap;

use serde_json::Value;
use tidewire_core::{Json, TenantId};

use super::TestApp;

/// How many others a report shows.
const SHOWN: usize = 5;

/// Something that was enqueued or published.
struct Found {
    kind: String,
    /// One line for people.
    name: String,
    data: Value,
}

/// A report when `tenant` has no job of type `kind` whose data contains `expected`.
pub async fn missing_job(app: &TestApp, tenant: &TenantId, kind: &str, expected: Value) -> Option<String> {
    missing("job", tenant, kind, &expected, jobs(app, tenant).await)
}

/// A report when `tenant` has such a job.
pub async fn unwanted_job(app: &TestApp, tenant: &TenantId, kind: &str, expected: Value) -> Option<String> {
    unwanted("job", tenant, kind, &expected, jobs(app, tenant).await)
}

/// A report when the log of `tenant` has no event of type `kind` whose data contains `expected`.
pub async fn missing_event(app: &TestApp, tenant: &TenantId, kind: &str, expected: Value) -> Option<String> {
    missing("event", tenant, kind, &expected, events(app, tenant).await)
}

/// A report when the log has such an event.
pub async fn unwanted_event(app: &TestApp, tenant: &TenantId, kind: &str, expected: Value) -> Option<String> {
    unwanted("event", tenant, kind, &expected, events(app, tenant).await)
}

async fn jobs(app: &TestApp, tenant: &TenantId) -> Vec<Found> {
    let jobs = app.jobs(tenant).await.into_iter();
    jobs.map(|job| Found {
        name: format!("{} ({}, attempt {} of {})", job.id, job.state, job.attempt, job.attempts),
        kind: job.kind.to_string(),
        data: value(&job.data),
    })
    .collect()
}

async fn events(app: &TestApp, tenant: &TenantId) -> Vec<Found> {
    let events = app.events(tenant).await;
    let found = events.iter().map(|event| Found {
        name: format!("position {}", event.position),
        kind: event.kind.to_string(),
        data: value(&event.data),
    });
    found.collect()
}

fn value(data: &Json) -> Value {
    data.to_value().unwrap_or_default()
}

fn missing(what: &str, tenant: &TenantId, kind: &str, expected: &Value, found: Vec<Found>) -> Option<String> {
    let (alike, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| found.kind == kind);
    let mut alike: Vec<_> = alike.iter().map(|found| (differences(expected, &found.data), found)).collect();
    if alike.iter().any(|(differences, _)| differences.is_empty()) {
        return None;
    }
    let mut report = format!("{tenant} has no {what} {kind:?} with {expected}");
    if alike.is_empty() {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        others.iter().for_each(|found| *kinds.entry(&found.kind).or_default() += 1);
        let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
        let there = if kinds.is_empty() { "nothing".to_owned() } else { kinds.join(", ") };
        line(&mut report, &format!("there is none of this type; there is {there}"));
        return Some(report);
    }
    alike.sort_by_key(|(differences, _)| differences.len());
    line(&mut report, &format!("there are {} of this type, the nearest first:", alike.len()));
    for (differences, found) in alike.iter().take(SHOWN) {
        line(&mut report, &format!("{}: {}", found.name, found.data));
        differences.iter().for_each(|difference| line(&mut report, &format!("  {difference}")));
    }
    Some(report)
}

fn unwanted(what: &str, tenant: &TenantId, kind: &str, expected: &Value, found: Vec<Found>) -> Option<String> {
    let there: Vec<_> =
        found.iter().filter(|found| found.kind == kind && differences(expected, &found.data).is_empty()).collect();
    if there.is_empty() {
        return None;
    }
    let mut report = format!("{tenant} should have no {what} {kind:?} with {expected}, and has {}:", there.len());
    there.iter().take(SHOWN).for_each(|found| line(&mut report, &format!("{}: {}", found.name, found.data)));
    Some(report)
}

fn line(report: &mut String, text: &str) {
    report.push_str("\n  ");
    report.push_str(text);
}

/// Where `found` does not contain `expected`: objects may have more fields, everything else is equal.
fn differences(expected: &Value, found: &Value) -> Vec<String> {
    let mut differences = Vec::new();
    compare(expected, found, "data", &mut differences);
    differences
}

fn compare(expected: &Value, found: &Value, path: &str, differences: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (name, expected) in expected {
                let path = format!("{path}.{name}");
                match found.get(name) {
                    Some(found) => compare(expected, found, &path, differences),
                    None => differences.push(format!("{path}: expected {expected}, there is no such field")),
                }
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                compare(expected, found, &format!("{path}[{index}]"), differences);
            }
        }
        _ if expected == found => {}
        _ => differences.push(format!("{path}: expected {expected}, found {found}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn data_contains_what_is_expected_of_it() {
        let found = json!({ "to": "ada", "tags": ["a", { "b": 1, "c": 2 }], "at": null });
        for contained in
            [json!({}), json!({ "to": "ada" }), json!({ "tags": ["a", { "b": 1 }] }), json!({ "at": null })]
        {
            assert_eq!(differences(&contained, &found), Vec::<String>::new(), "{contained}");
        }
        for (expected, said) in [
            (json!({ "to": "bob" }), "data.to: expected \"bob\", found \"ada\""),
            (json!({ "cc": 1 }), "data.cc: expected 1, there is no such field"),
            (json!({ "tags": ["a"] }), "data.tags: expected [\"a\"], found [\"a\",{\"b\":1,\"c\":2}]"),
            (json!({ "tags": ["a", { "b": 3 }] }), "data.tags[1].b: expected 3, found 1"),
            (json!("ada"), "data: expected \"ada\", found "),
        ] {
            let differences = differences(&expected, &found);
            assert!(differences.len() == 1 && differences[0].starts_with(said), "{differences:?}");
        }
    }
}
