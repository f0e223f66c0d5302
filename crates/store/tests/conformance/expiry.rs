//! Jobs that end by time: those that did not begin, those that may not be retried any more, runs that last too long; and poison.

use std::time::Duration;

use tidewire_core::commit::{After, Enqueue};
use tidewire_core::job::{OnConflict, Rare, State, States, Unique, Verdict};
use tidewire_core::store::{Change, Claim, Control, QueueLimits};
use tidewire_core::{Id, Timestamp};

use crate::world::{BACKOFF, HOUR, LEASE, MINUTE, SECOND, World, any, code, retry, tenant};

every_engine![
    a_job_that_did_not_begin_in_time_is_taken_back,
    what_waits_for_an_expired_job_is_told,
    a_job_that_has_begun_does_not_expire,
    a_run_that_was_put_off_has_begun,
    a_run_that_was_given_back_untouched_has_not_begun,
    what_a_job_has_until_its_first_run_moves_with_its_due_time,
    an_expired_job_that_is_driven_again_runs,
    no_retry_is_planned_after_the_time_for_retries,
    no_retry_begins_after_the_time_for_retries_however_long_the_line,
    a_run_is_told_when_its_time_is_over_and_ends_after_the_grace,
    a_run_that_times_out_is_tried_again_after_its_backoff,
    a_lease_that_ended_before_its_time_is_lost_and_not_timed_out,
    a_job_that_takes_its_workers_with_it_is_dead,
    a_queue_says_how_many_workers_a_job_may_take,
    a_run_that_fails_is_no_lost_worker,
];

fn rare(rare: Rare) -> Option<Box<Rare>> {
    Some(Box::new(rare))
}

fn expiring(world: &World, at: Timestamp) -> Enqueue {
    Enqueue { rare: rare(Rare { expires_at: Some(at), ..Rare::default() }), ..world.job("work") }
}

async fn enqueue(world: &World, job: Enqueue) -> Id {
    world.enqueue(&tenant("a"), vec![job]).await.remove(0).id
}

async fn a_job_that_did_not_begin_in_time_is_taken_back(world: World) {
    let a = tenant("a");
    let at = world.now() + MINUTE;
    let parent = enqueue(&world, Enqueue { queue: "other".into(), ..world.job("parent") }).await;
    let pending = enqueue(&world, expiring(&world, at)).await;
    let scheduled = enqueue(&world, Enqueue { run_at: Some(at + HOUR), ..expiring(&world, at) }).await;
    let after = vec![After { id: parent, ignores_failure: false }];
    let blocked = enqueue(&world, Enqueue { after, ..expiring(&world, at) }).await;
    let later = enqueue(&world, expiring(&world, at + SECOND)).await;
    world.advance(MINUTE - Duration::from_millis(1)).await;
    assert_eq!(world.state(&a, &pending).await, State::Pending);
    world.advance(Duration::from_millis(1)).await;
    for id in [&pending, &scheduled, &blocked] {
        let (job, failed) = world.stored(&a, id).await;
        assert_eq!((job.state, job.attempt, failed.len()), (State::Cancelled, 0, 0));
        assert_eq!((job.error.as_deref(), job.finished_at), (Some("it did not begin before it expired"), Some(at)));
    }
    assert_eq!(world.state(&a, &later).await, State::Pending);
    assert_eq!(world.claim(Claim { queues: vec!["q".into()], ..any() }).await[0].job.id, later);
}

async fn what_waits_for_an_expired_job_is_told(world: World) {
    let a = tenant("a");
    let parent = enqueue(&world, expiring(&world, world.now() + MINUTE)).await;
    let child = |ignores_failure| {
        let after = vec![After { id: parent.clone(), ignores_failure }];
        Enqueue { after, ..world.job("child") }
    };
    let strict = enqueue(&world, child(false)).await;
    let ignoring = enqueue(&world, child(true)).await;
    world.advance(MINUTE).await;
    assert_eq!(world.state(&a, &strict).await, State::Cancelled);
    assert_eq!(world.state(&a, &ignoring).await, State::Pending);
}

async fn a_job_that_has_begun_does_not_expire(world: World) {
    let a = tenant("a");
    let id = enqueue(&world, expiring(&world, world.now() + SECOND)).await;
    let leased = world.claim_one().await;
    world.advance(SECOND * 2).await;
    assert_eq!(world.state(&a, &id).await, State::Processing);
    world.settle(&leased, retry("boom")).await;
    world.advance(BACKOFF).await;
    assert_eq!(world.claim_one().await.job.attempt, 2);
}

async fn a_run_that_was_put_off_has_begun(world: World) {
    enqueue(&world, expiring(&world, world.now() + SECOND)).await;
    let leased = world.claim_one().await;
    world.settle(&leased, Verdict::Snooze { delay: MINUTE }).await;
    world.advance(MINUTE).await;
    let again = world.claim_one().await;
    assert_eq!((&again.job.id, again.job.attempt), (&leased.job.id, 1));
}

async fn a_run_that_was_given_back_untouched_has_not_begun(world: World) {
    let a = tenant("a");
    let id = enqueue(&world, expiring(&world, world.now() + SECOND)).await;
    let leased = world.claim_one().await;
    world.settle(&leased, Verdict::Release).await;
    assert_eq!(world.stored(&a, &id).await.0.started_at, None);
    world.advance(SECOND).await;
    assert_eq!(world.state(&a, &id).await, State::Cancelled);
    // After a run that failed it is one of its retries, and they do not expire.
    let id = enqueue(&world, expiring(&world, world.now() + SECOND)).await;
    world.settle(&world.claim_one().await, retry("boom")).await;
    world.advance(MINUTE).await;
    world.settle(&world.claim_one().await, Verdict::Release).await;
    world.advance(MINUTE).await;
    assert_eq!(world.state(&a, &id).await, State::Pending);
}

async fn what_a_job_has_until_its_first_run_moves_with_its_due_time(world: World) {
    let a = tenant("a");
    let expires_at = async |id: &Id| world.stored(&a, id).await.0.expires_at();
    let id = enqueue(&world, expiring(&world, world.now() + SECOND)).await;
    let later = Change { run_at: Some(world.now() + MINUTE), ..Change::default() };
    world.control(&a, &id, Control::Change(later)).await.expect("change");
    assert_eq!(expires_at(&id).await, Some(world.now() + MINUTE + SECOND));
    world.advance(SECOND * 2).await;
    assert_eq!(world.state(&a, &id).await, State::Scheduled);
    world.control(&a, &id, Control::Promote).await.expect("promote");
    assert_eq!(expires_at(&id).await, Some(world.now() + SECOND));
    world.advance(SECOND).await;
    assert_eq!(world.state(&a, &id).await, State::Cancelled);

    let unique =
        || Unique { key: "k".into(), states: States::UNFINISHED, window: None, on_conflict: OnConflict::Extend };
    let asked = |seconds: u32| {
        let run_at = world.now() + SECOND * seconds;
        let rare = rare(Rare { unique: Some(unique()), expires_at: Some(run_at + SECOND), ..Rare::default() });
        Enqueue { run_at: Some(run_at), rare, ..world.job("work") }
    };
    let id = enqueue(&world, asked(5)).await;
    enqueue(&world, asked(9)).await;
    assert_eq!(expires_at(&id).await, Some(world.now() + SECOND * 10));
}

async fn an_expired_job_that_is_driven_again_runs(world: World) {
    let id = enqueue(&world, expiring(&world, world.now() + SECOND)).await;
    world.advance(SECOND).await;
    world.control(&tenant("a"), &id, Control::Redrive).await.expect("redrive");
    world.advance(MINUTE).await;
    assert_eq!(world.claim_one().await.job.id, id);
}

async fn no_retry_is_planned_after_the_time_for_retries(world: World) {
    let a = tenant("a");
    let until = Some(world.now() + SECOND * 15);
    let job =
        Enqueue { attempts: 100, rare: rare(Rare { retry_until: until, ..Rare::default() }), ..world.job("work") };
    let id = enqueue(&world, job).await;
    let first = world.claim_one().await;
    assert_eq!(world.settle(&first, retry("one")).await, State::Scheduled);
    world.advance(BACKOFF).await;
    let second = world.claim_one().await;
    assert_eq!(world.settle(&second, retry("two")).await, State::Dead);
    let (job, failed) = world.stored(&a, &id).await;
    assert_eq!((job.attempt, failed.len()), (2, 2));
    assert!(job.error.expect("why").starts_with("two (no retry may begin any more"));
}

async fn no_retry_begins_after_the_time_for_retries_however_long_the_line(world: World) {
    let a = tenant("a");
    let until = Some(world.now() + SECOND * 15);
    let timed = || Enqueue { rare: rare(Rare { retry_until: until, ..Rare::default() }), ..world.job("work") };
    let id = enqueue(&world, timed()).await;
    let first = world.claim_one().await;
    world.settle(&first, retry("boom")).await;
    let never_begun = enqueue(&world, timed()).await;
    world.advance(SECOND * 16).await;
    assert_eq!(world.state(&a, &id).await, State::Pending);
    // A first run is no retry.
    assert_eq!(world.claim(any()).await.iter().map(|leased| &leased.job.id).collect::<Vec<_>>(), [&never_begun]);
    let (job, failed) = world.stored(&a, &id).await;
    assert_eq!((job.state, job.attempt, failed.len()), (State::Dead, 1, 1));
    assert_eq!(job.error.as_deref(), Some("boom (no retry may begin any more: retryFor has passed)"));
    assert_eq!(job.finished_at, Some(world.now()));
}

fn short(world: &World) -> Enqueue {
    Enqueue { timeout: MINUTE, ..world.job("work") }
}

async fn a_run_is_told_when_its_time_is_over_and_ends_after_the_grace(world: World) {
    let a = tenant("a");
    world.limit(QueueLimits { grace: SECOND * 5, ..QueueLimits::default() }).await;
    let id = enqueue(&world, short(&world)).await;
    let leased = world.claim(Claim { lease: HOUR, ..any() }).await.remove(0);
    let end = world.now() + MINUTE + SECOND * 5;
    assert_eq!(leased.expires, end, "no lease is longer");
    world.advance(MINUTE - Duration::from_millis(1)).await;
    let renewed = world.try_renew(&leased, HOUR).await.expect("renew");
    assert_eq!((renewed.expires, renewed.timed_out, renewed.cancelled), (end, false, false));
    world.advance(Duration::from_millis(1)).await;
    let renewed = world.try_renew(&leased, HOUR).await.expect("renew");
    assert_eq!((renewed.expires, renewed.timed_out), (end, true));
    world.advance(SECOND * 5).await;
    assert_eq!(code(world.try_renew(&leased, HOUR).await), "job.lease_lost");
    let (job, failed) = world.stored(&a, &id).await;
    assert_eq!((job.state, job.error.as_deref()), (State::Scheduled, Some("timed out after 1m")));
    assert_eq!((failed.len(), failed[0].ended_at), (1, end));
}

async fn a_run_that_times_out_is_tried_again_after_its_backoff(world: World) {
    world.limit(QueueLimits { grace: Duration::ZERO, poison: 1, ..QueueLimits::default() }).await;
    let id = enqueue(&world, short(&world)).await;
    for attempt in 1..=3 {
        let leased = world.claim(Claim { lease: HOUR, ..any() }).await.remove(0);
        assert_eq!(leased.job.attempt, attempt);
        world.advance(MINUTE).await;
        assert!(world.claim(any()).await.is_empty());
        world.advance(BACKOFF).await;
    }
    let (job, _) = world.stored(&tenant("a"), &id).await;
    // Its attempts are used up; it is no poison.
    assert_eq!((job.state, job.error.as_deref()), (State::Dead, Some("timed out after 1m")));
}

async fn a_lease_that_ended_before_its_time_is_lost_and_not_timed_out(world: World) {
    let id = enqueue(&world, short(&world)).await;
    world.claim_one().await;
    // The worker was gone after 30 s. Nobody looked for an hour.
    assert!(LEASE < MINUTE);
    world.advance(HOUR).await;
    let (job, failed) = world.stored(&tenant("a"), &id).await;
    assert_eq!((job.state, &*failed[0].error), (State::Pending, "the lease ended without a result"));
    assert_eq!(job.rare.expect("rare").lost, 1);
}

async fn a_job_that_takes_its_workers_with_it_is_dead(world: World) {
    let a = tenant("a");
    let id = enqueue(&world, Enqueue { attempts: 100, ..world.job("work") }).await;
    for attempt in 1..=3 {
        assert_eq!(world.claim_one().await.job.attempt, attempt);
        world.advance(LEASE).await;
    }
    let (job, failed) = world.stored(&a, &id).await;
    assert_eq!((job.state, job.attempt, failed.len()), (State::Dead, 3, 3));
    assert!(job.error.expect("why").contains("3 workers were lost with this job"));
    // Driven again it has all its lives again.
    world.control(&a, &id, Control::Redrive).await.expect("redrive");
    world.claim_one().await;
    world.advance(LEASE).await;
    assert_eq!(world.state(&a, &id).await, State::Pending);
}

async fn a_queue_says_how_many_workers_a_job_may_take(world: World) {
    world.limit(QueueLimits { poison: 1, ..QueueLimits::default() }).await;
    let id = enqueue(&world, world.job("work")).await;
    world.claim_one().await;
    world.advance(LEASE).await;
    assert_eq!(world.state(&tenant("a"), &id).await, State::Dead);
}

async fn a_run_that_fails_is_no_lost_worker(world: World) {
    world.limit(QueueLimits { poison: 2, ..QueueLimits::default() }).await;
    let id = enqueue(&world, Enqueue { attempts: 100, ..world.job("work") }).await;
    for _ in 0..5 {
        let leased = world.claim_one().await;
        world.settle(&leased, Verdict::Retry { error: "boom".to_owned(), delay: Some(Duration::ZERO) }).await;
    }
    world.claim_one().await;
    world.advance(LEASE).await;
    assert_eq!(world.state(&tenant("a"), &id).await, State::Pending);
    world.claim_one().await;
    world.advance(LEASE).await;
    assert_eq!(world.state(&tenant("a"), &id).await, State::Dead);
}
