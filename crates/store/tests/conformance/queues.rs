//! Queues that are changed while they run, and what is seen of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tidewire_core::Json;
use tidewire_core::catalog::QueueSettings;
use tidewire_core::commit::Enqueue;
use tidewire_core::job::{State, Verdict};
use tidewire_core::store::{Claim, QueueLimits, QueuePace, TenantLimits};

use crate::world::{HOUR, MINUTE, SECOND, World, any, code, commit, done, tenant, within};

every_engine![
    a_limit_is_changed_at_once_and_given_back,
    a_paused_tenant_waits_until_it_goes_on,
    a_claim_that_waits_is_woken_by_a_resumed_queue,
    refused_settings_change_nothing,
    the_oldest_pending_job_is_told,
    it_is_told_how_busy_a_queue_is,
    a_full_backlog_says_when_there_is_room_where_a_rate_tells_it,
    the_tenants_of_a_queue_are_listed_by_what_waits,
];

fn declared() -> QueueLimits {
    QueueLimits { global: Some(1), ..QueueLimits::default() }
}

async fn patch(world: &World, patch: Value) -> tidewire_core::Result<QueueSettings> {
    within(world.store.patch_queue("q", declared(), Json::from(patch))).await
}

async fn fill(world: &World, name: &str, count: usize) {
    world.enqueue(&tenant(name), (0..count).map(|_| world.job("work")).collect()).await;
}

async fn settings(world: &World) -> BTreeMap<String, QueueSettings> {
    let settings = within(world.store.queue_settings()).await.expect("settings");
    settings.into_iter().map(|(queue, settings)| (queue.to_string(), settings)).collect()
}

async fn a_limit_is_changed_at_once_and_given_back(world: World) {
    within(world.store.limit_queues([("q".into(), declared())].into())).await.expect("limits");
    fill(&world, "a", 6).await;
    assert_eq!(world.claim(any()).await.len(), 1);
    let changed = patch(&world, json!({ "global": 3 })).await.expect("settings");
    assert_eq!(changed.global, Some(3));
    let leased = world.claim(any()).await;
    assert_eq!(leased.len(), 2);
    assert_eq!(settings(&world).await, BTreeMap::from([("q".to_owned(), changed)]));
    patch(&world, json!({ "global": null })).await.expect("settings");
    assert!(settings(&world).await.is_empty(), "nothing is changed any more, so nothing is kept");
    for leased in &leased {
        world.settle(leased, done()).await;
        assert!(world.claim(any()).await.is_empty(), "one still runs, as the catalog allows");
    }
}

async fn a_paused_tenant_waits_until_it_goes_on(world: World) {
    fill(&world, "a", 1).await;
    patch(&world, json!({ "tenants": { "a": { "paused": true } } })).await.expect("settings");
    assert!(world.claim(any()).await.is_empty());
    fill(&world, "b", 1).await;
    let leased = world.claim_one().await;
    assert_eq!(leased.job.tenant, tenant("b"));
    world.settle(&leased, done()).await;
    patch(&world, json!({ "tenants": { "a": { "paused": null } } })).await.expect("settings");
    assert_eq!(world.claim_one().await.job.tenant, tenant("a"));
}

async fn a_claim_that_waits_is_woken_by_a_resumed_queue(world: World) {
    patch(&world, json!({ "paused": true })).await.expect("settings");
    fill(&world, "a", 1).await;
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    assert!(!waiting.is_finished());
    patch(&world, json!({ "paused": null })).await.expect("settings");
    assert_eq!(within(waiting).await.expect("joined").len(), 1);
}

async fn refused_settings_change_nothing(world: World) {
    let kept = patch(&world, json!({ "perTenant": 2 })).await.expect("settings");
    for wrong in [json!({ "perTenant": 0 }), json!({ "perTenat": 3 }), json!({ "global": 5, "rate": "often" })] {
        assert_eq!(code(patch(&world, wrong).await), "queue.invalid_settings");
    }
    assert_eq!(settings(&world).await["q"], kept);
}

async fn the_oldest_pending_job_is_told(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    assert!(within(world.store.oldest_pending(None)).await.expect("oldest").is_empty());
    let began = world.now();
    fill(&world, "a", 1).await;
    world.clock.advance(MINUTE);
    fill(&world, "b", 1).await;
    world.enqueue(&b, vec![Enqueue { queue: "other".into(), ..world.job("work") }]).await;
    let oldest = within(world.store.oldest_pending(None)).await.expect("oldest");
    assert_eq!(oldest, BTreeMap::from([("q".into(), began), ("other".into(), began + MINUTE)]));
    let of_b = within(world.store.oldest_pending(Some(&b))).await.expect("oldest");
    assert_eq!(of_b, BTreeMap::from([("q".into(), began + MINUTE), ("other".into(), began + MINUTE)]));
    let leased = world.claim(Claim { queues: vec!["q".into()], max: 1, ..any() }).await;
    assert_eq!(leased[0].job.tenant, a);
    let oldest = within(world.store.oldest_pending(None)).await.expect("oldest");
    assert_eq!(oldest["q"], began + MINUTE);
}

async fn the_tenants_of_a_queue_are_listed_by_what_waits(world: World) {
    for (name, count) in [("a", 1), ("b", 3), ("c", 2)] {
        fill(&world, name, count).await;
    }
    let later = Some(world.now() + HOUR);
    let scheduled = |_| Enqueue { run_at: later, ..world.job("work") };
    world.enqueue(&tenant("c"), (0..2).map(scheduled).collect()).await;
    world.enqueue(&tenant("d"), vec![Enqueue { queue: "other".into(), ..world.job("work") }]).await;
    let listed = within(world.store.queue_tenants("q", 2)).await.expect("tenants");
    let names: Vec<&str> = listed.iter().map(|of| of.tenant.as_str()).collect();
    assert_eq!(names, ["c", "b"]);
    assert_eq!(listed[0].counts, BTreeMap::from([(State::Scheduled, 2), (State::Pending, 2)]));
    assert!(within(world.store.queue_tenants("nowhere", 2)).await.expect("tenants").is_empty());
    world.claim(any()).await;
    let listed = within(world.store.queue_tenants("q", 2)).await.expect("tenants");
    let names: Vec<&str> = listed.iter().map(|of| of.tenant.as_str()).collect();
    assert_eq!(names, ["c", "a"], "what runs does not wait");
}

async fn it_is_told_how_busy_a_queue_is(world: World) {
    let pace = async |queue: &str| within(world.store.queue_pace(queue)).await.expect("pace");
    assert_eq!(pace("q").await, QueuePace::default());
    fill(&world, "a", 4).await;
    world.advance(SECOND).await;
    let leased = world.claim(any()).await;
    world.settle_all(&leased[..3], &done()).await;
    world.settle_all(&leased[3..], &Verdict::Fail { error: "no".to_owned() }).await;
    let busy = pace("q").await;
    assert_eq!((busy.completed_per_minute, busy.failed_per_minute), (3.0, 1.0));
    let wait = busy.wait_p99.expect("four waited");
    assert!(wait >= SECOND && wait <= SECOND * 5 / 4, "{wait:?}");
    assert_eq!(busy.wait_p50, busy.wait_p99);
    assert_eq!(pace("other").await, QueuePace::default());
    world.advance(SECOND * 600).await;
    assert_eq!(pace("q").await, QueuePace::default());
}

async fn a_full_backlog_says_when_there_is_room_where_a_rate_tells_it(world: World) {
    let a = tenant("a");
    let full = |rate: Option<&str>, own: TenantLimits, paused| QueueLimits {
        backlog: Some(4),
        rate: rate.map(|rate| rate.parse().expect("rate")),
        paused,
        tenants: [(a.clone(), own)].into(),
        ..QueueLimits::default()
    };
    let own = |rate: Option<&str>, paused| TenantLimits {
        rate: rate.map(|rate| rate.parse().expect("rate")),
        paused,
        ..TenantLimits::default()
    };
    fill(&world, "a", 3).await;
    let asked = async |limits: QueueLimits, count: usize| {
        world.limit(limits).await;
        let jobs = (0..count).map(|_| world.job("work")).collect();
        let refused = world.try_commit(commit(&a, Vec::new(), jobs)).await.expect_err("full");
        assert_eq!(refused.code(), "queue.backlog_full");
        refused.retry_after()
    };
    // There is room for one of three.
    let after = async |limits: QueueLimits| asked(limits, 3).await;
    assert_eq!(after(full(None, own(None, false), false)).await, None, "it depends on the workers");
    assert_eq!(after(full(Some("2/s"), own(None, false), false)).await, Some(SECOND));
    assert_eq!(after(full(Some("2/s"), own(Some("10/m"), false), false)).await, Some(SECOND * 12), "the slower one");
    assert_eq!(asked(full(Some("2/s"), own(None, false), false), 5).await, None, "so many never fit");
    assert_eq!(after(full(Some("2/s"), own(None, false), true)).await, None, "nobody knows when it goes on");
    assert_eq!(after(full(Some("2/s"), own(None, true), false)).await, None);
    world.limit(QueueLimits::default()).await;
    assert_eq!(world.claim(any()).await.len(), 3, "nothing of a refused call is there");
}
