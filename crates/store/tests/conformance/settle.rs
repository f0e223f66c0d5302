//! The end of a run: what each verdict does, and what is committed with it.

use std::time::Duration;

use tidewire_core::Json;
use tidewire_core::commit::{Append, Commit, Enqueue, Idempotency};
use tidewire_core::event::Position;
use tidewire_core::job::{FailedAttempt, MAX_ERROR_BYTES, MAX_FAILED_ATTEMPTS, State, Verdict};
use tidewire_core::store::{Claim, Control, Leased, Settle};

use crate::world::{BACKOFF, MINUTE, SECOND, World, any, code, commit, done, id, retry, tenant, within};

every_engine![
    done_completes_and_keeps_the_result,
    retry_waits_the_backoff_and_counts,
    retry_waits_what_the_handler_says,
    retry_without_a_delay_is_due_at_once,
    the_last_retry_is_dead_with_every_run_listed,
    fail_is_final_at_once,
    snooze_gives_the_attempt_back,
    release_gives_the_attempt_back_at_once,
    cancel_ends_it_without_an_error,
    who_completes_has_no_error_and_keeps_its_failed_runs,
    the_error_text_is_bounded,
    the_last_failed_runs_are_kept_with_their_numbers,
    a_lease_settles_once,
    a_lease_that_was_never_given_settles_nothing,
    effects_commit_with_the_completion,
    refused_effects_leave_the_job_in_its_workers_hands,
    effects_are_written_only_when_it_is_done,
    effects_of_another_tenant_are_refused,
    effects_with_known_keys_are_not_written_twice,
    effects_under_a_reused_idempotency_key_are_refused,
];

async fn running(world: &World) -> Leased {
    world.enqueue_one(&tenant("a")).await;
    world.clock.advance(SECOND);
    let leased = world.claim_one().await;
    assert_eq!((leased.job.state, leased.job.attempt), (State::Processing, 1));
    assert_eq!(leased.job.started_at, Some(world.now()));
    world.clock.advance(SECOND);
    leased
}

async fn done_completes_and_keeps_the_result(world: World) {
    let leased = running(&world).await;
    let result = Json::parse(r#"{"sent": 1}"#.to_owned()).expect("json");
    assert_eq!(world.settle(&leased, Verdict::Done { result: Some(result.clone()) }).await, State::Completed);
    let (job, failed) = world.stored(&tenant("a"), &leased.job.id).await;
    assert_eq!((job.state, job.attempt, job.finished_at), (State::Completed, 1, Some(world.now())));
    assert_eq!((job.result, job.error), (Some(result), None));
    assert!(failed.is_empty());
}

async fn retry_waits_the_backoff_and_counts(world: World) {
    let leased = running(&world).await;
    assert_eq!(world.settle(&leased, retry("boom")).await, State::Scheduled);
    let (job, failed) = world.stored(&tenant("a"), &leased.job.id).await;
    assert_eq!((job.state, job.attempt, job.run_at), (State::Scheduled, 1, world.now() + BACKOFF));
    assert_eq!((job.error.as_deref(), job.finished_at), (Some("boom"), None));
    assert_eq!((failed.len(), failed[0].attempt, &*failed[0].error, &*failed[0].worker), (1, 1, "boom", "worker-1"));
    assert_eq!((failed[0].started_at, failed[0].ended_at), (leased.job.started_at, world.now()));
    world.clock.advance(BACKOFF - SECOND);
    assert!(world.claim(any()).await.is_empty());
    world.clock.advance(SECOND);
    assert_eq!(world.claim_one().await.job.attempt, 2);
}

async fn retry_waits_what_the_handler_says(world: World) {
    let leased = running(&world).await;
    let verdict = Verdict::Retry { error: "later".to_owned(), delay: Some(MINUTE) };
    assert_eq!(world.settle(&leased, verdict).await, State::Scheduled);
    assert_eq!(world.stored(&tenant("a"), &leased.job.id).await.0.run_at, world.now() + MINUTE);
}

async fn retry_without_a_delay_is_due_at_once(world: World) {
    let leased = running(&world).await;
    let verdict = Verdict::Retry { error: "now".to_owned(), delay: Some(Duration::ZERO) };
    assert_eq!(world.settle(&leased, verdict).await, State::Pending);
    assert_eq!(world.claim_one().await.job.attempt, 2);
}

async fn the_last_retry_is_dead_with_every_run_listed(world: World) {
    let a = tenant("a");
    let job = world.enqueue_one(&a).await;
    for run in 1..=3_u16 {
        let leased = world.claim_one().await;
        assert_eq!((leased.job.attempt, &leased.job.id), (run, &job));
        let state = world.settle(&leased, retry(&format!("boom {run}"))).await;
        assert_eq!(state, if run < 3 { State::Scheduled } else { State::Dead });
        world.clock.advance(MINUTE);
    }
    assert!(world.claim(any()).await.is_empty());
    let (job, failed) = world.stored(&a, &job).await;
    assert_eq!((job.state, job.attempt, job.error.as_deref()), (State::Dead, 3, Some("boom 3")));
    assert!(job.finished_at.is_some());
    let runs: Vec<_> = failed.iter().map(|run| (run.attempt, run.error.to_string())).collect();
    assert_eq!(runs, [(1, "boom 1".to_owned()), (2, "boom 2".to_owned()), (3, "boom 3".to_owned())]);
}

async fn fail_is_final_at_once(world: World) {
    let leased = running(&world).await;
    assert_eq!(world.settle(&leased, Verdict::Fail { error: "never".to_owned() }).await, State::Failed);
    let (job, failed) = world.stored(&tenant("a"), &leased.job.id).await;
    assert_eq!((job.state, job.attempt, job.error.as_deref()), (State::Failed, 1, Some("never")));
    assert_eq!((job.finished_at, failed.len()), (Some(world.now()), 1));
    world.advance(MINUTE).await;
    assert!(world.claim(any()).await.is_empty());
}

async fn snooze_gives_the_attempt_back(world: World) {
    let first = running(&world).await;
    for _ in 0..5 {
        let leased = if world.state(&tenant("a"), &first.job.id).await == State::Processing {
            first.clone()
        } else {
            world.claim_one().await
        };
        assert_eq!(leased.job.attempt, 1);
        assert_eq!(world.settle(&leased, Verdict::Snooze { delay: MINUTE }).await, State::Scheduled);
        let (job, failed) = world.stored(&tenant("a"), &first.job.id).await;
        assert_eq!((job.attempt, job.run_at, failed.len()), (0, world.now() + MINUTE, 0));
        world.clock.advance(MINUTE);
    }
}

async fn release_gives_the_attempt_back_at_once(world: World) {
    let leased = running(&world).await;
    assert_eq!(world.settle(&leased, Verdict::Release).await, State::Pending);
    let (job, failed) = world.stored(&tenant("a"), &leased.job.id).await;
    assert_eq!((job.attempt, job.run_at, failed.len()), (0, world.now(), 0));
    let again = world.claim_one().await;
    assert_eq!(again.job.attempt, 1);
    assert_ne!(again.lease, leased.lease);
}

async fn cancel_ends_it_without_an_error(world: World) {
    let leased = running(&world).await;
    assert_eq!(world.settle(&leased, Verdict::Cancel).await, State::Cancelled);
    let (job, failed) = world.stored(&tenant("a"), &leased.job.id).await;
    assert_eq!((job.state, job.attempt, job.error, failed.len()), (State::Cancelled, 1, None, 0));
    assert_eq!(job.finished_at, Some(world.now()));
}

async fn who_completes_has_no_error_and_keeps_its_failed_runs(world: World) {
    let a = tenant("a");
    let leased = running(&world).await;
    world.settle(&leased, Verdict::Retry { error: "not yet".to_owned(), delay: Some(Duration::ZERO) }).await;
    let again = world.claim_one().await;
    assert_eq!(again.job.error.as_deref(), Some("not yet"), "a handler sees why it runs again");
    world.settle(&again, done()).await;
    let (job, failed) = world.stored(&a, &leased.job.id).await;
    assert_eq!((job.state, job.attempt, job.error, failed.len()), (State::Completed, 2, None, 1));
}

async fn the_error_text_is_bounded(world: World) {
    let leased = running(&world).await;
    world.settle(&leased, retry(&"é".repeat(MAX_ERROR_BYTES))).await;
    let (job, failed) = world.stored(&tenant("a"), &leased.job.id).await;
    assert!(job.error.expect("error").len() <= MAX_ERROR_BYTES);
    assert!(failed[0].error.len() <= MAX_ERROR_BYTES);
}

async fn the_last_failed_runs_are_kept_with_their_numbers(world: World) {
    let a = tenant("a");
    let most = u16::try_from(MAX_FAILED_ATTEMPTS).expect("few");
    let at_once = || Verdict::Retry { error: "boom".to_owned(), delay: Some(Duration::ZERO) };
    let (job, other) = (Enqueue { attempts: most + 30, ..world.job("work") }, world.job("other"));
    let [job, other] = world.enqueue(&a, vec![job, other]).await.try_into().expect("two");
    let (of_job, of_other) =
        (Claim { kinds: vec!["work".into()], ..any() }, Claim { kinds: vec!["other".into()], ..any() });
    world.settle(&world.claim(of_other).await[0], at_once()).await;
    for _ in 0..most + 30 {
        world.settle(&world.claim(of_job.clone()).await[0], at_once()).await;
    }
    let numbers = |runs: Vec<FailedAttempt>| runs.iter().map(|run| run.attempt).collect::<Vec<_>>();
    let (dead, runs) = world.stored(&a, &job.id).await;
    assert_eq!((dead.state, dead.attempt), (State::Dead, most + 30));
    assert_eq!(numbers(runs), (31..=most + 30).collect::<Vec<_>>());
    // Those of a job that is re-driven count with those before, and no other job loses any.
    world.control(&a, &job.id, Control::Redrive).await.expect("redriven");
    world.settle(&world.claim(of_job).await[0], at_once()).await;
    let runs = numbers(world.stored(&a, &job.id).await.1);
    assert_eq!((runs.len(), runs[0], runs[runs.len() - 1]), (MAX_FAILED_ATTEMPTS, 32, 1));
    assert_eq!(numbers(world.stored(&a, &other.id).await.1), [1]);
}

async fn a_lease_settles_once(world: World) {
    let leased = running(&world).await;
    world.settle(&leased, done()).await;
    for verdict in [done(), retry("late"), Verdict::Release] {
        let effects = commit(&tenant("a"), vec![world.event("late")], vec![world.job("late")]);
        assert_eq!(code(world.try_settle(&leased, verdict, Some(effects)).await), "job.lease_lost");
    }
    assert_eq!(world.state(&tenant("a"), &leased.job.id).await, State::Completed);
    assert_eq!(world.head(&tenant("a")).await, 0);
    assert!(world.claim(any()).await.is_empty());
}

async fn a_lease_that_was_never_given_settles_nothing(world: World) {
    let leased = running(&world).await;
    let other = world.enqueue_one(&tenant("a")).await;
    let (job, lease) = (&leased.job.id, &*leased.lease);
    let (seq, nonce) = lease.split_once('-').expect("seq and nonce");
    let guesses = [
        (None, job, String::new()),
        (None, job, "no lease".to_owned()),
        (None, job, format!("{seq}-{:016x}", 7)),
        (None, job, format!("99-{nonce}")),
        (None, &other, lease.to_owned()),
        (Some(tenant("b")), job, lease.to_owned()),
    ];
    for (tenant, id, lease) in guesses {
        let settle = Settle { tenant, id: id.clone(), lease: lease.clone().into(), verdict: done(), effects: None };
        assert_eq!(code(within(world.store.settle(settle)).await), "job.lease_lost", "{lease:?}");
    }
    let settle =
        Settle { tenant: Some(tenant("a")), id: job.clone(), lease: lease.into(), verdict: done(), effects: None };
    assert_eq!(within(world.store.settle(settle)).await.expect("it was held all along").state, State::Completed);
}

fn effects(world: &World) -> Commit {
    let event = Append { stream: Some("s".into()), expected_version: Some(0), ..world.event("shipped") };
    commit(&tenant("a"), vec![event], vec![Enqueue { id: id("next"), given_id: true, ..world.job("next") }])
}

async fn effects_commit_with_the_completion(world: World) {
    let leased = running(&world).await;
    let settled = world.try_settle(&leased, done(), Some(effects(&world))).await.expect("settle");
    assert_eq!(settled.state, State::Completed);
    assert_eq!((settled.effects.events[0].position, settled.effects.events[0].version), (Some(Position(1)), Some(1)));
    assert_eq!((&settled.effects.jobs[0].id, settled.effects.jobs[0].state), (&id("next"), State::Pending));
    assert_eq!(world.log(&tenant("a")).await[0].id, settled.effects.events[0].id);
    assert_eq!(world.claim_one().await.job.id, id("next"));
}

async fn refused_effects_leave_the_job_in_its_workers_hands(world: World) {
    let a = tenant("a");
    let leased = running(&world).await;
    world.append(&a, vec![Append { stream: Some("s".into()), ..world.event("meanwhile") }]).await;
    assert_eq!(code(world.try_settle(&leased, done(), Some(effects(&world))).await), "event.version_conflict");
    let (job, failed) = world.stored(&a, &leased.job.id).await;
    assert_eq!((job.state, job.attempt, failed.len()), (State::Processing, 1, 0));
    assert_eq!(world.head(&a).await, 1);
    assert!(!world.is_kept(&a, &id("next")).await);
    assert!(world.claim(any()).await.is_empty());
    // The worker still has it and can do better.
    assert!(!world.try_renew(&leased, MINUTE).await.expect("renew").cancelled);
    assert_eq!(world.settle(&leased, retry("conflict")).await, State::Scheduled);
}

async fn effects_are_written_only_when_it_is_done(world: World) {
    let a = tenant("a");
    world.enqueue(&a, (0..5).map(|_| world.job("work")).collect()).await;
    let fail = Verdict::Fail { error: String::new() };
    let verdicts = [retry("boom"), fail, Verdict::Snooze { delay: MINUTE }, Verdict::Cancel, Verdict::Release];
    for (leased, verdict) in world.claim(any()).await.iter().zip(verdicts) {
        let settled = world.try_settle(leased, verdict, Some(effects(&world))).await.expect("settle");
        assert!(settled.effects.events.is_empty() && settled.effects.jobs.is_empty());
    }
    assert_eq!(world.head(&a).await, 0);
    assert!(!world.is_kept(&a, &id("next")).await);
}

async fn effects_of_another_tenant_are_refused(world: World) {
    let leased = running(&world).await;
    let foreign = commit(&tenant("b"), vec![world.event("x")], vec![world.job("x")]);
    assert_eq!(code(world.try_settle(&leased, done(), Some(foreign)).await), "tenant.unknown");
    assert_eq!((world.head(&tenant("b")).await, world.head(&tenant("a")).await), (0, 0));
    assert_eq!(world.settle(&leased, done()).await, State::Completed);
}

async fn effects_with_known_keys_are_not_written_twice(world: World) {
    let a = tenant("a");
    world.enqueue(&a, vec![world.job("work"), world.job("work")]).await;
    let effects = || {
        let event = Append { id: id("e1"), given_id: true, ..world.event("x") };
        let job = Enqueue { id: id("j1"), given_id: true, run_at: Some(world.now() + MINUTE), ..world.job("x") };
        commit(&a, vec![event], vec![job])
    };
    let once = || Commit { dedup: Some(("d1".to_owned(), MINUTE)), ..commit(&a, vec![world.event("y")], Vec::new()) };
    let leased = world.claim(any()).await;
    world.commit(effects()).await;
    world.commit(once()).await;
    let settled = world.try_settle(&leased[0], done(), Some(effects())).await.expect("settle");
    assert!(settled.effects.events[0].deduplicated && settled.effects.jobs[0].deduplicated);
    let settled = world.try_settle(&leased[1], done(), Some(once())).await.expect("settle");
    assert!(settled.effects.deduplicated && settled.effects.events.is_empty());
    assert_eq!((settled.state, world.head(&a).await), (State::Completed, 2));
}

async fn effects_under_a_reused_idempotency_key_are_refused(world: World) {
    let a = tenant("a");
    let keyed = |digest: &[u8]| Commit {
        idempotency: Some(Idempotency { key: "k1".to_owned(), digest: digest.to_vec() }),
        ..commit(&a, vec![world.event("x")], Vec::new())
    };
    world.commit(keyed(b"one")).await;
    let leased = running(&world).await;
    let refused = world.try_settle(&leased, done(), Some(keyed(b"two"))).await;
    assert_eq!((code(refused), world.head(&a).await), ("idempotency.key_reused", 1));
    let settled = world.try_settle(&leased, done(), Some(keyed(b"one"))).await.expect("settle");
    assert_eq!((settled.effects.events[0].position, world.head(&a).await), (Some(Position(1)), 1));
}
