//! How long finished jobs stay.

use std::collections::BTreeMap;
use std::time::Duration;

use tidewire_core::Id;
use tidewire_core::catalog::Keep;
use tidewire_core::job::Verdict;
use tidewire_core::store::{Claim, Leased, QueueLimits, Settle};

use crate::world::{HOUR, MINUTE, SECOND, World, any, done, tenant, within};

every_engine![
    the_last_completed_jobs_are_kept,
    completed_jobs_can_be_forgotten_at_once,
    completed_jobs_are_kept_for_an_age,
    dead_letters_are_kept_by_number,
    dead_letters_are_kept_for_an_age,
    cancelled_jobs_and_dead_letters_have_a_rule_each,
    what_fails_for_one_tenant_pushes_out_no_letter_of_another,
    a_count_after_an_age_counts_what_completed_meanwhile,
    a_queue_that_nobody_set_limits_for_keeps_what_is_usual,
    a_lower_count_deletes_what_is_there_without_another_job,
    a_purge_goes_on_soon_until_everything_old_is_gone,
];

/// How many completed jobs beyond the number to keep an engine may let gather before it deletes them together.
const SLACK: usize = 64;

async fn keep(world: &World, keep_completed: Keep, keep_dead: Keep) {
    let limits = QueueLimits { keep_completed, keep_dead, ..QueueLimits::default() };
    within(world.store.limit_queues(BTreeMap::from([("q".into(), limits)]))).await.expect("limits");
}

async fn run(world: &World, verdict: Verdict) -> Id {
    let job = world.enqueue_one(&tenant("a")).await;
    let leased = world.claim_one().await;
    world.settle(&leased, verdict).await;
    world.clock.advance(SECOND);
    job
}

async fn run_many(world: &World, count: usize, verdict: impl Fn() -> Verdict) -> Vec<Id> {
    let mut jobs = Vec::new();
    for _ in 0..count {
        jobs.push(run(world, verdict()).await);
    }
    jobs
}

/// Which of `jobs` are kept, in their order.
async fn kept(world: &World, jobs: &[Id]) -> Vec<Id> {
    let mut kept = Vec::new();
    for job in jobs {
        if world.is_kept(&tenant("a"), job).await {
            kept.push(job.clone());
        }
    }
    kept
}

fn fail() -> Verdict {
    Verdict::Fail { error: "never".to_owned() }
}

async fn the_last_completed_jobs_are_kept(world: World) {
    keep(&world, Keep::Count(5), Keep::Count(1_000)).await;
    let failed = run(&world, fail()).await;
    let jobs = run_many(&world, 5 + SLACK + 20, done).await;
    let left = kept(&world, &jobs).await;
    assert!((5..=5 + SLACK).contains(&left.len()), "{} are left", left.len());
    assert_eq!(left, jobs[jobs.len() - left.len()..], "the newest are those that are left");
    assert!(world.is_kept(&tenant("a"), &failed).await);
}

async fn completed_jobs_can_be_forgotten_at_once(world: World) {
    keep(&world, Keep::Count(0), Keep::Count(1_000)).await;
    let jobs = run_many(&world, 3, done).await;
    assert!(kept(&world, &jobs).await.is_empty());
    let failed = run(&world, fail()).await;
    assert!(world.is_kept(&tenant("a"), &failed).await);
}

async fn completed_jobs_are_kept_for_an_age(world: World) {
    keep(&world, Keep::Age(HOUR), Keep::Age(HOUR * 48)).await;
    let old = run_many(&world, 3, done).await;
    let failed = run(&world, fail()).await;
    world.advance(HOUR / 2).await;
    let young = run_many(&world, 3, done).await;
    world.advance(HOUR / 2 + MINUTE).await;
    world.turn().await;
    assert!(kept(&world, &old).await.is_empty());
    assert_eq!(kept(&world, &young).await, young);
    assert!(world.is_kept(&tenant("a"), &failed).await);
}

async fn dead_letters_are_kept_by_number(world: World) {
    keep(&world, Keep::Count(1_000), Keep::Count(2)).await;
    let completed = run(&world, done()).await;
    let jobs = run_many(&world, 5, fail).await;
    world.advance(MINUTE).await;
    assert_eq!(kept(&world, &jobs).await, jobs[3..]);
    assert!(world.is_kept(&tenant("a"), &completed).await);
}

async fn dead_letters_are_kept_for_an_age(world: World) {
    keep(&world, Keep::Count(1_000), Keep::Age(HOUR)).await;
    let old = run_many(&world, 2, fail).await;
    world.advance(HOUR).await;
    let young = run_many(&world, 2, fail).await;
    world.advance(MINUTE).await;
    assert!(kept(&world, &old).await.is_empty());
    assert_eq!(kept(&world, &young).await, young);
}

async fn cancelled_jobs_and_dead_letters_have_a_rule_each(world: World) {
    let rules = [
        (Keep::Count(1), Keep::Age(HOUR), [2..3, 0..3]),
        (Keep::Age(SECOND), Keep::Count(2), [0..0, 1..3]),
        (Keep::Count(2), Keep::Count(0), [1..3, 0..0]),
    ];
    for (keep_cancelled, keep_dead, [cancelled_left, dead_left]) in rules {
        world.limit(QueueLimits { keep_cancelled, keep_dead, ..QueueLimits::default() }).await;
        let dead = run_many(&world, 3, fail).await;
        let cancelled = run_many(&world, 3, || Verdict::Cancel).await;
        world.advance(MINUTE).await;
        assert_eq!(kept(&world, &cancelled).await, cancelled[cancelled_left], "{keep_cancelled:?}");
        assert_eq!(kept(&world, &dead).await, dead[dead_left], "{keep_dead:?}");
        world.advance(HOUR).await;
    }
}

async fn what_fails_for_one_tenant_pushes_out_no_letter_of_another(world: World) {
    let keep = Keep::Count(2);
    world.limit(QueueLimits { keep_cancelled: keep, keep_dead: keep, ..QueueLimits::default() }).await;
    let quiet = tenant("quiet");
    let mut own = Vec::new();
    for verdict in [fail(), Verdict::Cancel] {
        let job = world.enqueue_one(&quiet).await;
        world.settle(&world.claim_one().await, verdict).await;
        own.push(job);
    }
    let loud = run_many(&world, 5, fail).await;
    let taken_back = run_many(&world, 5, || Verdict::Cancel).await;
    world.advance(MINUTE).await;
    assert_eq!(kept(&world, &loud).await, loud[3..]);
    assert_eq!(kept(&world, &taken_back).await, taken_back[3..]);
    for job in own {
        assert!(world.is_kept(&quiet, &job).await);
    }
}

async fn a_count_after_an_age_counts_what_completed_meanwhile(world: World) {
    keep(&world, Keep::Count(2), Keep::Count(1_000)).await;
    keep(&world, Keep::Age(HOUR), Keep::Count(1_000)).await;
    let jobs = run_many(&world, 10, done).await;
    keep(&world, Keep::Count(2), Keep::Count(1_000)).await;
    run_many(&world, 2 + SLACK, done).await;
    assert!(kept(&world, &jobs).await.is_empty());
}

/// Runs many jobs at once. All of them end at the same time.
async fn run_at_once(world: &World, count: usize, verdict: impl Fn() -> Verdict) {
    world.enqueue(&tenant("a"), (0..count).map(|_| world.job("work")).collect()).await;
    let leased = world.claim(Claim { max: u32::MAX, ..any() }).await;
    assert_eq!(leased.len(), count);
    let settled: Vec<_> = leased
        .into_iter()
        .map(|Leased { job, lease, .. }| {
            world.store.settle(Settle { tenant: None, id: job.id, lease, verdict: verdict(), effects: None })
        })
        .collect();
    for settled in settled {
        within(settled).await.expect("settled");
    }
}

async fn left(world: &World) -> u64 {
    let counts = within(world.store.counts(None)).await.expect("counts");
    counts.values().flat_map(BTreeMap::values).sum()
}

async fn a_queue_that_nobody_set_limits_for_keeps_what_is_usual(world: World) {
    const DAY: Duration = Duration::from_secs(86_400);
    run_at_once(&world, 20, fail).await;
    run_at_once(&world, 1_050, done).await;
    world.advance(MINUTE).await;
    run_at_once(&world, 5, || Verdict::Cancel).await;
    assert_eq!(left(&world).await, 20 + 1_000 + 5);
    world.advance(DAY * 29).await;
    assert_eq!(left(&world).await, 20 + 1_000 + 5);
    world.advance(DAY * 60).await;
    assert_eq!(left(&world).await, 20 + 1_000);
    world.advance(DAY).await;
    assert_eq!(left(&world).await, 1_000);
}

async fn a_lower_count_deletes_what_is_there_without_another_job(world: World) {
    run_at_once(&world, 500, done).await;
    keep(&world, Keep::Count(100), Keep::Count(1_000)).await;
    world.advance(MINUTE).await;
    assert_eq!(left(&world).await, 100);
}

/// One purge is bounded, so that other calls do not wait for it; what it leaves does not wait for the next minute.
async fn a_purge_goes_on_soon_until_everything_old_is_gone(world: World) {
    let a = tenant("a");
    world.limit(QueueLimits { keep_cancelled: Keep::Age(HOUR), ..QueueLimits::default() }).await;
    run_at_once(&world, 6_000, || Verdict::Cancel).await;
    let expires = world.now() + HOUR;
    for number in 0..6_000 {
        drop(world.store.put_session(&a, &format!("s{number}"), String::new(), expires));
    }
    world.advance(HOUR + MINUTE).await;
    let after_one = left(&world).await;
    assert!((1..6_000).contains(&after_one), "{after_one} are left");
    world.advance(Duration::from_millis(100)).await;
    assert_eq!(left(&world).await, 0);
    // Sessions that have expired are hidden; the clock before shows whether they are gone.
    world.clock.set(expires - MINUTE);
    for number in 0..6_000 {
        let session = within(world.store.session(&a, &format!("s{number}"))).await.expect("session");
        assert_eq!(session, None);
    }
}
