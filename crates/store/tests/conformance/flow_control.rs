//! What a queue allows each tenant: limits, rates, pauses, weights; and what aging does to priorities.

use std::collections::BTreeMap;
use std::time::Duration;

use tidewire_core::TenantId;
use tidewire_core::commit::Enqueue;
use tidewire_core::limit::Rate;
use tidewire_core::store::{Claim, Leased, QueueLimits, TenantLimits};

use crate::world::{HOUR, LEASE, MINUTE, SECOND, World, any, done, job_ids, retry, tenant, within};

every_engine![
    a_tenant_runs_no_more_at_once_than_it_may,
    a_tenant_may_have_a_limit_of_its_own,
    a_claim_of_one_tenant_is_bound_by_the_same_limits,
    a_claim_that_waits_for_a_held_tenant_is_woken_when_a_job_ends,
    a_tenant_starts_no_more_per_time_than_it_may,
    a_claim_that_waits_for_a_rate_of_a_tenant_is_woken_in_time,
    a_held_back_job_uses_no_attempt,
    a_paused_queue_starts_nothing_and_lets_run_what_runs,
    a_paused_tenant_does_not_hold_back_others,
    a_change_of_limits_wakes_a_waiting_claim,
    tenants_get_turns_by_their_weights,
    a_claim_that_cannot_serve_every_tenant_takes_some_jobs_of_each_in_a_row,
    who_had_no_work_for_a_while_makes_up_for_nothing,
    an_old_job_of_a_low_priority_comes_before_new_ones_of_a_high_one,
    many_tenants_at_their_limits_are_all_served_in_the_end,
];

async fn limit(world: &World, limits: QueueLimits) {
    within(world.store.limit_queues(BTreeMap::from([("q".into(), limits)]))).await.expect("limits");
}

fn rate(text: &str) -> Option<Rate> {
    Some(text.parse().expect("rate"))
}

fn one_at_once() -> QueueLimits {
    QueueLimits { per_tenant: Some(1), ..QueueLimits::default() }
}

fn only(name: &str, own: TenantLimits) -> BTreeMap<TenantId, TenantLimits> {
    BTreeMap::from([(tenant(name), own)])
}

async fn fill(world: &World, name: &str, count: usize) {
    world.enqueue(&tenant(name), (0..count).map(|_| world.job("work")).collect()).await;
}

fn tenants(leased: &[Leased]) -> String {
    leased.iter().map(|leased| leased.job.tenant.as_str()).collect()
}

async fn claim(world: &World) -> String {
    tenants(&world.claim(any()).await)
}

async fn a_tenant_runs_no_more_at_once_than_it_may(world: World) {
    limit(&world, QueueLimits { per_tenant: Some(2), ..QueueLimits::default() }).await;
    fill(&world, "a", 5).await;
    fill(&world, "b", 1).await;
    let leased = world.claim(any()).await;
    assert_eq!(tenants(&leased), "aba");
    assert_eq!(claim(&world).await, "");
    world.settle(&leased[1], done()).await;
    assert_eq!(claim(&world).await, "", "the place of another is of no use");
    world.settle(&leased[0], retry("boom")).await;
    assert_eq!(claim(&world).await, "a");
    // Lost workers free their places, too; then the failed one is also due again.
    world.advance(LEASE).await;
    assert_eq!(claim(&world).await, "aa");
}

async fn a_tenant_may_have_a_limit_of_its_own(world: World) {
    let own = TenantLimits { at_once: Some(3), ..TenantLimits::default() };
    limit(&world, QueueLimits { tenants: only("b", own), ..one_at_once() }).await;
    fill(&world, "a", 5).await;
    fill(&world, "b", 5).await;
    assert_eq!(claim(&world).await, "abbb");
}

async fn a_claim_of_one_tenant_is_bound_by_the_same_limits(world: World) {
    limit(&world, one_at_once()).await;
    fill(&world, "a", 3).await;
    fill(&world, "b", 3).await;
    let of = |name| Claim { tenant: Some(tenant(name)), ..any() };
    let leased = world.claim(of("a")).await;
    assert_eq!(tenants(&leased), "a");
    assert_eq!(tenants(&world.claim(of("a")).await), "");
    assert_eq!(claim(&world).await, "b");
    world.settle(&leased[0], done()).await;
    assert_eq!(tenants(&world.claim(of("a")).await), "a");
}

async fn a_claim_that_waits_for_a_held_tenant_is_woken_when_a_job_ends(world: World) {
    limit(&world, one_at_once()).await;
    fill(&world, "a", 2).await;
    let first = world.claim_one().await;
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.turn().await;
    assert!(!waiting.is_finished());
    world.settle(&first, done()).await;
    assert_eq!(tenants(&within(waiting).await.expect("claim")), "a");
}

async fn a_tenant_starts_no_more_per_time_than_it_may(world: World) {
    let own = TenantLimits { rate: rate("3/m"), ..TenantLimits::default() };
    limit(&world, QueueLimits { rate_per_tenant: rate("2/m"), tenants: only("b", own), ..QueueLimits::default() })
        .await;
    fill(&world, "a", 10).await;
    fill(&world, "b", 10).await;
    for leased in world.claim(any()).await {
        // A job that ends frees nothing of a rate.
        world.settle(&leased, done()).await;
    }
    assert_eq!(claim(&world).await, "");
    world.advance(SECOND * 20).await;
    assert_eq!(claim(&world).await, "b");
    world.advance(SECOND * 10).await;
    assert_eq!(claim(&world).await, "a");
    world.advance(HOUR).await;
    let mut started: Vec<char> = claim(&world).await.chars().collect();
    started.sort_unstable();
    // The leases of an hour ago have ended, and their jobs are behind the same rates.
    assert_eq!(String::from_iter(started), "aabbb");
}

async fn a_claim_that_waits_for_a_rate_of_a_tenant_is_woken_in_time(world: World) {
    limit(&world, QueueLimits { rate_per_tenant: rate("1/m"), ..QueueLimits::default() }).await;
    fill(&world, "a", 2).await;
    let first = world.claim_one().await;
    world.settle(&first, done()).await;
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.advance(MINUTE - Duration::from_millis(1)).await;
    assert!(!waiting.is_finished());
    world.advance(Duration::from_millis(1)).await;
    assert_eq!(tenants(&within(waiting).await.expect("claim")), "a");
}

async fn a_held_back_job_uses_no_attempt(world: World) {
    limit(&world, one_at_once()).await;
    fill(&world, "a", 2).await;
    let first = world.claim_one().await;
    for _ in 0..5 {
        assert_eq!(claim(&world).await, "");
    }
    world.settle(&first, done()).await;
    assert_eq!(world.claim_one().await.job.attempt, 1);
}

async fn a_paused_queue_starts_nothing_and_lets_run_what_runs(world: World) {
    fill(&world, "a", 3).await;
    let running = world.claim_one().await;
    limit(&world, QueueLimits { paused: true, ..QueueLimits::default() }).await;
    assert_eq!(claim(&world).await, "");
    assert_eq!(tenants(&world.claim(Claim { tenant: Some(tenant("a")), ..any() }).await), "");
    world.settle(&running, done()).await;
    fill(&world, "b", 1).await;
    world.enqueue(&tenant("c"), vec![Enqueue { queue: "free".into(), ..world.job("work") }]).await;
    assert_eq!(claim(&world).await, "c", "another queue goes on");
    limit(&world, QueueLimits::default()).await;
    assert_eq!(claim(&world).await, "aba");
}

async fn a_paused_tenant_does_not_hold_back_others(world: World) {
    let own = TenantLimits { paused: true, ..TenantLimits::default() };
    limit(&world, QueueLimits { tenants: only("a", own), ..QueueLimits::default() }).await;
    fill(&world, "a", 2).await;
    fill(&world, "b", 2).await;
    assert_eq!(claim(&world).await, "bb");
    assert_eq!(tenants(&world.claim(Claim { tenant: Some(tenant("a")), ..any() }).await), "");
    limit(&world, QueueLimits::default()).await;
    assert_eq!(claim(&world).await, "aa");
}

async fn a_change_of_limits_wakes_a_waiting_claim(world: World) {
    limit(&world, QueueLimits { paused: true, ..QueueLimits::default() }).await;
    fill(&world, "a", 1).await;
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.turn().await;
    assert!(!waiting.is_finished());
    limit(&world, QueueLimits::default()).await;
    assert_eq!(tenants(&within(waiting).await.expect("claim")), "a");
}

async fn tenants_get_turns_by_their_weights(world: World) {
    let own = TenantLimits { weight: Some(3), ..TenantLimits::default() };
    limit(&world, QueueLimits { tenants: only("a", own), ..QueueLimits::default() }).await;
    // More than an engine keeps at hand.
    fill(&world, "a", 600).await;
    fill(&world, "b", 600).await;
    for _ in 0..20 {
        let leased = world.claim(Claim { max: 40, ..any() }).await;
        assert_eq!(tenants(&leased).matches('a').count(), if leased.len() == 40 { 30 } else { 0 });
    }
}

async fn a_claim_that_cannot_serve_every_tenant_takes_some_jobs_of_each_in_a_row(world: World) {
    let names: Vec<String> = (10..60).map(|n| format!("t{n}")).collect();
    for name in &names {
        fill(&world, name, 3).await;
    }
    let claim = async |max| tenants(&world.claim(Claim { max, ..any() }).await);
    let pairs: String = names[..20].iter().map(|name| name.repeat(2)).collect();
    assert_eq!(claim(40).await, pairs);
    assert_eq!(claim(30).await, names[20..].concat(), "in one turn of 30 there is no place for two of each");
    assert_eq!(claim(50).await, format!("{}{}", names[20..].concat(), names[..20].concat()), "all can be served");
}

async fn who_had_no_work_for_a_while_makes_up_for_nothing(world: World) {
    fill(&world, "a", 100).await;
    fill(&world, "b", 100).await;
    fill(&world, "c", 1).await;
    assert_eq!(tenants(&world.claim(Claim { max: 60, ..any() }).await).matches('c').count(), 1);
    fill(&world, "c", 30).await;
    let next = tenants(&world.claim(Claim { max: 30, ..any() }).await);
    let counts = ['a', 'b', 'c'].map(|name| next.matches(name).count());
    assert!(counts[2] <= 10 && counts.iter().all(|count| (9..=11).contains(count)), "{next}");
}

async fn an_old_job_of_a_low_priority_comes_before_new_ones_of_a_high_one(world: World) {
    limit(&world, QueueLimits { aging: Some(MINUTE), ..QueueLimits::default() }).await;
    let named = |name: &str, priority| Enqueue {
        id: tidewire_core::Id::parse(name).expect("id"),
        given_id: true,
        priority,
        ..world.job("work")
    };
    let a = tenant("a");
    world.enqueue(&a, vec![named("low", 4)]).await;
    world.advance(MINUTE).await;
    world.enqueue(&a, vec![named("normal", 3), named("high", 2)]).await;
    // The old one counts as 3 and is older than the new one of 3.
    assert_eq!(job_ids(&world.claim(Claim { max: 2, ..any() }).await), ["high", "low"]);
    world.advance(MINUTE * 2).await;
    world.enqueue(&a, vec![named("first", 1)]).await;
    assert_eq!(job_ids(&world.claim(Claim { max: 2, ..any() }).await)[..2], ["normal", "first"]);
}

async fn many_tenants_at_their_limits_are_all_served_in_the_end(world: World) {
    limit(&world, one_at_once()).await;
    for number in 0..50 {
        fill(&world, &format!("t{number}"), 4).await;
    }
    for _ in 0..4 {
        let leased = world.claim(any()).await;
        assert_eq!(leased.len(), 50);
        assert_eq!(claim(&world).await, "");
        for leased in leased {
            world.settle(&leased, done()).await;
        }
    }
    limit(&world, QueueLimits::default()).await;
    assert_eq!(claim(&world).await, "");
}
