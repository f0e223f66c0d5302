//! What a queue allows at once and over time.

use std::collections::BTreeMap;

use tidewire_core::commit::Enqueue;
use tidewire_core::job::Verdict;
use tidewire_core::store::{Claim, Control, QueueLimits};

use crate::world::{BACKOFF, HOUR, LEASE, MINUTE, SECOND, World, any, done, retry, tenant, within};

every_engine![
    a_queue_runs_no_more_at_once_than_it_may,
    a_place_is_free_after_every_way_a_run_can_end,
    a_lower_limit_holds_back_what_comes_next,
    a_queue_starts_no_more_per_time_than_it_may,
    a_held_back_job_uses_no_attempt_and_wakes_the_waiting_claim,
    a_full_queue_does_not_hold_back_another,
    a_job_that_was_taken_back_uses_nothing_of_the_rate,
    a_clock_that_steps_back_holds_a_rate_for_no_longer_than_its_period,
];

async fn limit(world: &World, global: Option<u32>, rate: Option<&str>) {
    let limits = QueueLimits { global, rate: rate.map(|rate| rate.parse().expect("rate")), ..QueueLimits::default() };
    within(world.store.limit_queues(BTreeMap::from([("q".into(), limits)]))).await.expect("limits");
}

async fn fill(world: &World, count: usize) {
    world.enqueue(&tenant("a"), (0..count).map(|_| world.job("work")).collect()).await;
}

async fn a_queue_runs_no_more_at_once_than_it_may(world: World) {
    limit(&world, Some(3), None).await;
    fill(&world, 10).await;
    let leased = world.claim(any()).await;
    assert_eq!(leased.len(), 3);
    assert!(world.claim(any()).await.is_empty());
    world.settle(&leased[0], done()).await;
    assert_eq!(world.claim(any()).await.len(), 1);
    assert!(world.claim(any()).await.is_empty());
}

async fn a_place_is_free_after_every_way_a_run_can_end(world: World) {
    limit(&world, Some(1), None).await;
    fill(&world, 20).await;
    let fail = Verdict::Fail { error: String::new() };
    let ends = [done(), retry("boom"), fail, Verdict::Snooze { delay: MINUTE }, Verdict::Release, Verdict::Cancel];
    for end in ends {
        let leased = world.claim(any()).await;
        assert_eq!(leased.len(), 1, "before {end:?}");
        world.settle(&leased[0], end).await;
    }
    // Lost, and dropped.
    assert_eq!(world.claim(any()).await.len(), 1);
    world.advance(LEASE).await;
    drop(world.store.claim(any()));
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    assert_eq!(within(waiting).await.expect("claim").len(), 1);
    assert!(world.claim(any()).await.is_empty());
}

async fn a_lower_limit_holds_back_what_comes_next(world: World) {
    fill(&world, 10).await;
    let leased = world.claim(Claim { max: 4, ..any() }).await;
    limit(&world, Some(3), None).await;
    for leased in &leased[..2] {
        assert!(world.claim(any()).await.is_empty());
        world.settle(leased, done()).await;
    }
    assert_eq!(world.claim(any()).await.len(), 1);
    limit(&world, None, None).await;
    assert_eq!(world.claim(any()).await.len(), 5);
}

async fn a_queue_starts_no_more_per_time_than_it_may(world: World) {
    limit(&world, None, Some("5/m")).await;
    fill(&world, 30).await;
    assert_eq!(world.claim(any()).await.len(), 5);
    assert!(world.claim(any()).await.is_empty());
    world.advance(SECOND * 12).await;
    assert_eq!(world.claim(any()).await.len(), 1);
    world.advance(HOUR).await;
    assert_eq!(world.claim(any()).await.len(), 5);
}

async fn a_held_back_job_uses_no_attempt_and_wakes_the_waiting_claim(world: World) {
    limit(&world, Some(1), Some("2/m")).await;
    fill(&world, 3).await;
    let first = world.claim_one().await;
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.turn().await;
    assert!(!waiting.is_finished());
    world.settle(&first, done()).await;
    let second = within(waiting).await.expect("claim").remove(0);
    assert_eq!(second.job.attempt, 1);
    world.settle(&second, done()).await;
    // Now the rate holds the third back.
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.advance(BACKOFF).await;
    assert!(!waiting.is_finished());
    world.advance(MINUTE).await;
    assert_eq!(within(waiting).await.expect("claim")[0].job.attempt, 1);
}

async fn a_full_queue_does_not_hold_back_another(world: World) {
    limit(&world, Some(1), None).await;
    fill(&world, 5).await;
    world.enqueue(&tenant("a"), (0..5).map(|_| Enqueue { queue: "free".into(), ..world.job("work") }).collect()).await;
    let leased = world.claim(any()).await;
    let in_q = leased.iter().filter(|leased| &*leased.job.queue == "q").count();
    assert_eq!((leased.len(), in_q), (6, 1));
}

async fn a_job_that_was_taken_back_uses_nothing_of_the_rate(world: World) {
    limit(&world, None, Some("2/m")).await;
    let jobs = world.enqueue(&tenant("a"), (0..5).map(|_| world.job("work")).collect()).await;
    for job in &jobs[..3] {
        world.control(&tenant("a"), &job.id, Control::Cancel).await.expect("cancel");
    }
    let leased = world.claim(any()).await;
    assert_eq!(leased.iter().map(|leased| &leased.job.id).collect::<Vec<_>>(), [&jobs[3].id, &jobs[4].id]);
}

async fn a_clock_that_steps_back_holds_a_rate_for_no_longer_than_its_period(world: World) {
    limit(&world, None, Some("5/m")).await;
    fill(&world, 30).await;
    assert_eq!(world.claim(any()).await.len(), 5);
    world.clock.set(world.now() - HOUR);
    assert!(world.claim(any()).await.is_empty());
    world.advance(SECOND * 12).await;
    assert_eq!(world.claim(any()).await.len(), 1);
    world.advance(MINUTE).await;
    assert_eq!(world.claim(any()).await.len(), 5);
}
