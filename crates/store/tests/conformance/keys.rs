//! Keys of jobs: how many of one key run at once, in which order, and how often they start.

use std::time::Duration;

use tidewire_core::TenantId;
use tidewire_core::commit::Enqueue;
use tidewire_core::job::{Rare, State, Verdict};
use tidewire_core::store::{Claim, Control, Leased, QueueLimits};

use crate::world::{BACKOFF, HOUR, LEASE, MINUTE, SECOND, World, any, done, id, job_ids, retry, tenant, within};

every_engine![
    no_more_of_a_key_run_at_once_than_may,
    a_key_holds_back_nobody_else,
    inside_a_key_the_order_is_priority_then_time,
    a_place_of_a_key_is_free_however_the_run_ends,
    a_claim_that_waits_for_a_key_is_woken_when_a_run_of_it_ends,
    the_limit_of_keys_changes_while_it_holds,
    one_that_a_key_holds_back_can_be_cancelled,
    a_long_line_of_one_key_is_passed_over,
    the_rate_of_a_key_paces_its_starts,
    a_paced_job_uses_no_attempt_and_keeps_its_turn,
];

fn limited(per_key: u32) -> QueueLimits {
    QueueLimits { per_key: Some(per_key), ..QueueLimits::default() }
}

fn keyed(world: &World, name: &str, key: &str) -> Enqueue {
    let rare = Some(Box::new(Rare { key: Some(key.into()), ..Rare::default() }));
    Enqueue { id: id(name), given_id: true, rare, ..world.job("work") }
}

async fn fill(world: &World, tenant: &TenantId, names: &[&str], key: &str) {
    world.enqueue(tenant, names.iter().map(|name| keyed(world, name, key)).collect()).await;
}

async fn claim(world: &World) -> Vec<Leased> {
    world.claim(any()).await
}

async fn no_more_of_a_key_run_at_once_than_may(world: World) {
    world.limit(limited(2)).await;
    let a = tenant("a");
    fill(&world, &a, &["1", "2", "3", "4", "5"], "k").await;
    let leased = claim(&world).await;
    assert_eq!(job_ids(&leased), ["1", "2"]);
    assert_eq!(world.state(&a, &id("3")).await, State::Blocked);
    fill(&world, &a, &["6"], "k").await;
    assert!(claim(&world).await.is_empty());
    world.settle(&leased[1], done()).await;
    let next = claim(&world).await;
    assert_eq!((job_ids(&next), next[0].job.attempt), (vec!["3".to_owned()], 1));
    world.settle_all(&[leased[0].clone(), next[0].clone()], &done()).await;
    assert_eq!(job_ids(&claim(&world).await), ["4", "5"]);
}

async fn a_key_holds_back_nobody_else(world: World) {
    world.limit(limited(1)).await;
    let (a, b) = (tenant("a"), tenant("b"));
    fill(&world, &a, &["a1", "a2"], "k").await;
    fill(&world, &a, &["other"], "j").await;
    world.enqueue(&a, vec![Enqueue { id: id("plain"), given_id: true, ..world.job("work") }]).await;
    fill(&world, &b, &["b1", "b2"], "k").await;
    let elsewhere = Enqueue { queue: "free".into(), ..keyed(&world, "elsewhere", "k") };
    world.enqueue(&a, vec![elsewhere]).await;
    let mut leased = job_ids(&claim(&world).await);
    leased.sort_unstable();
    assert_eq!(leased, ["a1", "b1", "elsewhere", "other", "plain"]);
}

async fn inside_a_key_the_order_is_priority_then_time(world: World) {
    world.limit(limited(1)).await;
    let a = tenant("a");
    fill(&world, &a, &["running"], "k").await;
    let mut running = claim(&world).await;
    let with = |name, priority| Enqueue { priority, ..keyed(&world, name, "k") };
    world.enqueue(&a, vec![with("low", 5), with("second", 3), with("third", 3), with("first", 1)]).await;
    assert!(claim(&world).await.is_empty());
    world.advance(SECOND).await;
    fill(&world, &a, &["fourth"], "k").await;
    assert!(claim(&world).await.is_empty());
    for name in ["first", "second", "third", "fourth", "low"] {
        world.settle(&running[0], done()).await;
        running = claim(&world).await;
        assert_eq!(job_ids(&running), [name]);
    }
}

async fn a_place_of_a_key_is_free_however_the_run_ends(world: World) {
    world.limit(limited(1)).await;
    let a = tenant("a");
    fill(&world, &a, &["1", "2", "3", "4", "5"], "k").await;
    let leased = claim(&world).await.remove(0);
    world.settle(&leased, retry("boom")).await;
    let leased = claim(&world).await.remove(0);
    assert_eq!(leased.job.id, id("2"));
    world.settle(&leased, Verdict::Snooze { delay: HOUR }).await;
    let leased = claim(&world).await.remove(0);
    assert_eq!(leased.job.id, id("3"));
    world.control(&a, &id("3"), Control::Cancel).await.expect("cancel");
    world.settle(&leased, Verdict::Cancel).await;
    let leased = claim(&world).await.remove(0);
    assert_eq!(leased.job.id, id("4"));
    // The worker is lost; the first one is due again by then and stands before the others.
    assert!(LEASE > BACKOFF);
    world.advance(LEASE).await;
    let mut again = claim(&world).await;
    assert_eq!(again.len(), 1);
    for _ in 0..3 {
        world.settle(&again[0], done()).await;
        let next = claim(&world).await;
        assert!(next.len() <= 1);
        again = next;
        if again.is_empty() {
            break;
        }
    }
    for name in ["1", "4", "5"] {
        assert_eq!(world.state(&a, &id(name)).await, State::Completed, "{name}");
    }
}

async fn a_claim_that_waits_for_a_key_is_woken_when_a_run_of_it_ends(world: World) {
    world.limit(limited(1)).await;
    fill(&world, &tenant("a"), &["1", "2"], "k").await;
    let leased = claim(&world).await.remove(0);
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    assert!(!waiting.is_finished());
    world.settle(&leased, done()).await;
    assert_eq!(job_ids(&within(waiting).await.expect("claim")), ["2"]);
}

async fn the_limit_of_keys_changes_while_it_holds(world: World) {
    world.limit(limited(1)).await;
    let names: Vec<String> = (0..600).map(|n| format!("{n:03}")).collect();
    fill(&world, &tenant("a"), &names.iter().map(String::as_str).collect::<Vec<_>>(), "k").await;
    let mut running = claim(&world).await;
    assert_eq!(running.len(), 1);
    world.limit(limited(3)).await;
    let more = world.waiting(Claim { wait: HOUR, ..any() }).await;
    running.extend(within(more).await.expect("claim"));
    while running.len() < 3 {
        running.extend(claim(&world).await);
    }
    assert_eq!(job_ids(&running), ["000", "001", "002"]);
    world.limit(limited(1)).await;
    for leased in running.drain(..2) {
        world.settle(&leased, done()).await;
        assert!(claim(&world).await.is_empty());
    }
    world.settle(&running[0], done()).await;
    assert_eq!(job_ids(&claim(&world).await), ["003"]);
    // Without a limit all of them go on, a part of them in each turn.
    world.limit(QueueLimits::default()).await;
    let mut rest = Vec::new();
    while rest.len() < 596 {
        let waiting = world.waiting(Claim { max: 1_000, wait: HOUR, ..any() }).await;
        rest.extend(job_ids(&within(waiting).await.expect("claim")));
    }
    assert_eq!(rest, names[4..]);
}

async fn one_that_a_key_holds_back_can_be_cancelled(world: World) {
    world.limit(limited(1)).await;
    let a = tenant("a");
    fill(&world, &a, &["1", "2", "3"], "k").await;
    let leased = claim(&world).await.remove(0);
    let cancelled = world.control(&a, &id("2"), Control::Cancel).await.expect("cancel");
    assert_eq!(cancelled.state, State::Cancelled);
    world.settle(&leased, done()).await;
    assert_eq!(job_ids(&claim(&world).await), ["3"]);
}

/// More than one turn passes over, so the claim is answered by a later one and not with nothing.
async fn a_long_line_of_one_key_is_passed_over(world: World) {
    world.limit(limited(1)).await;
    let a = tenant("a");
    let names: Vec<String> = (0..3_000).map(|n| format!("{n:04}")).collect();
    fill(&world, &a, &names.iter().map(String::as_str).collect::<Vec<_>>(), "k").await;
    fill(&world, &a, &["behind"], "j").await;
    assert_eq!(job_ids(&world.claim(Claim { max: 1, ..any() }).await), ["0000"]);
    assert_eq!(job_ids(&world.claim(Claim { max: 1, ..any() }).await), ["behind"]);
    assert!(claim(&world).await.is_empty());
    let counts = within(world.store.counts(Some(&a))).await.expect("counts");
    assert_eq!(counts["q"].get(&State::Blocked), Some(&2_999));
}

async fn the_rate_of_a_key_paces_its_starts(world: World) {
    let rate = "2/m".parse().expect("rate");
    world.limit(QueueLimits { rate_per_key: Some(rate), ..QueueLimits::default() }).await;
    let a = tenant("a");
    fill(&world, &a, &["1", "2", "3", "4", "5"], "k").await;
    fill(&world, &a, &["other"], "j").await;
    let started = claim(&world).await;
    assert_eq!(job_ids(&started), ["1", "2", "other"]);
    // A job that ends frees nothing of a rate.
    world.settle_all(&started, &done()).await;
    assert!(claim(&world).await.is_empty());
    for name in ["3", "4", "5"] {
        world.advance(SECOND * 30 - Duration::from_millis(1)).await;
        assert!(claim(&world).await.is_empty(), "{name}");
        world.advance(Duration::from_millis(1)).await;
        assert_eq!(job_ids(&claim(&world).await), [name]);
    }
}

async fn a_paced_job_uses_no_attempt_and_keeps_its_turn(world: World) {
    let rate = "1/m".parse().expect("rate");
    world.limit(QueueLimits { rate_per_key: Some(rate), ..QueueLimits::default() }).await;
    let a = tenant("a");
    fill(&world, &a, &["1", "2"], "k").await;
    let first = claim(&world).await.remove(0);
    world.settle(&first, done()).await;
    assert!(claim(&world).await.is_empty());
    let (held, _) = world.stored(&a, &id("2")).await;
    assert_eq!((held.state, held.attempt, held.run_at), (State::Scheduled, 0, world.now() + MINUTE));
    // One that comes later is later, whenever the workers ask.
    fill(&world, &a, &["3"], "k").await;
    assert!(claim(&world).await.is_empty());
    world.advance(HOUR).await;
    let leased = claim(&world).await;
    assert_eq!(job_ids(&leased), ["2", "3"]);
    assert!(leased.iter().all(|leased| leased.job.attempt == 1));
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn the_limit_of_a_key_holds_over_a_restart() {
    let disk = crate::disk::Disk::new();
    let a = tenant("a");
    let first = disk.open();
    first.world.limit(limited(1)).await;
    fill(&first.world, &a, &["1", "2", "3"], "k").await;
    let running = claim(&first.world).await.remove(0);
    let left = disk.killed();
    let second = left.open();
    let world = &second.world;
    world.limit(limited(1)).await;
    assert!(claim(world).await.is_empty());
    fill(world, &a, &["4"], "k").await;
    assert!(claim(world).await.is_empty());
    world.settle(&running, done()).await;
    let next = claim(world).await.remove(0);
    assert_eq!(next.job.id, id("2"));
    // The run of this process ends with it, and what its key held back goes on.
    world.settle(&next, done()).await;
    assert_eq!(job_ids(&world.claim(Claim { local: true, ..any() }).await), ["3"]);
    let left = left.killed();
    let third = left.open();
    third.world.limit(limited(2)).await;
    let waiting = third.world.waiting(Claim { wait: HOUR, max: 2, ..any() }).await;
    let mut leased = within(waiting).await.expect("claim");
    leased.extend(claim(&third.world).await);
    assert_eq!(job_ids(&leased), ["3", "4"]);
}
