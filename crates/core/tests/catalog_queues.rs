//! What a queue of the catalog asks a store to enforce, and the key of a job.

use std::collections::BTreeMap;
use std::time::Duration;

use tidewire_core::TenantId;
use tidewire_core::catalog::{Catalog, Keep, LoadError, parse};
use tidewire_core::store::{QueueLimits, TenantLimits};

fn with_app(rest: &str) -> Result<Catalog, LoadError> {
    parse(&format!("[app]\nname = \"demo\"\ntenant = \"portId\"\n{rest}"))
}

#[test]
fn a_queue_that_says_nothing_limits_nothing() {
    let catalog = with_app("[queues.q]\n").expect("catalog");
    assert_eq!(catalog.queues["q"].limits(), QueueLimits::default());
}

#[test]
fn every_limit_of_a_queue_reaches_the_store() {
    let catalog = with_app(
        r#"[queues.q]
global = 50
perTenant = 5
perKey = 1
rate = "100/s"
ratePerTenant = "10/s"
ratePerKey = "1/s"
backlog = 1000000
aging = "5m"
poison = 7
grace = "0s"
keep = { completed = 5, cancelled = 7, dead = "24h" }
weights = { acme = 3, "marina:bay" = 1000 }
"#,
    )
    .expect("catalog");
    let rate = |text: &str| Some(text.parse().expect("rate"));
    let weight = |name: &str, weight| {
        let own = TenantLimits { weight: Some(weight), ..TenantLimits::default() };
        (TenantId::new(name).expect("tenant"), own)
    };
    let expected = QueueLimits {
        global: Some(50),
        per_tenant: Some(5),
        per_key: Some(1),
        rate: rate("100/s"),
        rate_per_tenant: rate("10/s"),
        rate_per_key: rate("1/s"),
        backlog: Some(1_000_000),
        aging: Some(Duration::from_secs(300)),
        paused: false,
        poison: 7,
        grace: Duration::ZERO,
        keep_completed: Keep::Count(5),
        keep_cancelled: Keep::Count(7),
        keep_dead: Keep::Age(Duration::from_secs(86_400)),
        tenants: BTreeMap::from([weight("acme", 3), weight("marina:bay", 1_000)]),
    };
    assert_eq!(catalog.queues["q"].limits(), expected);
}

#[test]
fn a_job_has_a_key_over_the_fields_of_its_data() {
    let catalog = with_app(
        "[queues.q]\n[jobs.a]\nqueue = \"q\"\n[jobs.b]\nqueue = \"q\"\nkey = \"{documentId}\"\n\
         data = { documentId = \"string\" }\n[jobs.c]\nqueue = \"q\"\nkey = \"doc:{anything}\"\n",
    )
    .expect("catalog");
    let key = |job: &str| catalog.jobs[job].key.as_ref().map(|key| key.source().to_owned());
    assert_eq!(
        (key("a"), key("b").as_deref(), key("c").as_deref()),
        (None, Some("{documentId}"), Some("doc:{anything}"))
    );
}

#[test]
fn what_cannot_be_a_limit_is_reported_with_its_line() {
    let problems = with_app(
        r#"[queues.q]
perTenant = 0
ratePerTenant = "often"
backlog = 0
aging = "0s"
poison = 0
weights = { acme = 0, "no tenant" = 1, b = "3" }
[jobs.j]
queue = "q"
key = "{documentid}"
data = { documentId = "string" }
"#,
    )
    .expect_err("problems")
    .problems;
    let found: Vec<(usize, &str)> = problems.iter().map(|problem| (problem.line, problem.key.as_str())).collect();
    assert_eq!(
        found,
        [
            (5, "queues.q.perTenant"),
            (6, "queues.q.ratePerTenant"),
            (7, "queues.q.backlog"),
            (8, "queues.q.aging"),
            (9, "queues.q.poison"),
            (10, "queues.q.weights.acme"),
            (10, "queues.q.weights.\"no tenant\""),
            (10, "queues.q.weights.b"),
            (13, "jobs.j.key"),
        ]
    );
    assert_eq!(problems.last().and_then(|problem| problem.suggestion.as_deref()), Some("documentId"));
}
