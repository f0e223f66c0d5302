//! Leases that end, are renewed, or are lost.

use tidewire_core::job::{State, Verdict};
use tidewire_core::store::{Claim, Control, Leased};

use crate::world::{HOUR, LEASE, MINUTE, SECOND, World, any, code, commit, done, retry, tenant, within};

every_engine![
    a_lease_says_when_it_ends,
    a_job_whose_lease_ended_runs_again,
    a_job_that_is_lost_every_time_is_dead_with_every_run_listed,
    a_lost_lease_settles_nothing_and_writes_nothing,
    a_lost_lease_is_not_renewed,
    a_lease_tells_its_job_while_it_is_held,
    a_renewed_lease_holds_longer,
    a_lease_can_be_renewed_again_and_again,
    a_renewal_can_shorten_a_lease,
    a_clock_that_steps_back_makes_no_lease_and_no_wait_longer,
    a_renewal_tells_that_it_is_no_longer_wanted,
    a_cancelled_run_does_not_come_back,
    a_cancelled_run_that_finished_is_completed,
    a_worker_of_this_process_holds_its_job_until_the_process_ends,
    the_end_of_an_earlier_lease_does_not_end_a_local_one,
];

async fn running(world: &World) -> Leased {
    world.enqueue_one(&tenant("a")).await;
    world.claim_one().await
}

async fn a_clock_that_steps_back_makes_no_lease_and_no_wait_longer(world: World) {
    let leased = running(&world).await;
    let waiting = world.waiting(Claim { wait: LEASE * 2, ..any() }).await;
    let back = world.now() - HOUR;
    world.clock.set(back);
    world.turn().await;
    world.advance(LEASE).await;
    let again = within(waiting).await.expect("claim");
    assert_eq!((&again[0].job.id, again[0].job.attempt), (&leased.job.id, 2));
    let waiting = world.waiting(Claim { wait: MINUTE, ..any() }).await;
    world.clock.set(back - HOUR);
    world.turn().await;
    world.try_renew(&again[0], HOUR).await.expect("renew");
    world.advance(MINUTE).await;
    assert!(within(waiting).await.expect("claim").is_empty());
}

async fn a_lease_says_when_it_ends(world: World) {
    let leased = running(&world).await;
    assert_eq!(leased.expires, world.now() + LEASE);
    world.advance(SECOND).await;
    let renewed = world.try_renew(&leased, MINUTE).await.expect("renew");
    assert_eq!((renewed.expires, renewed.cancelled), (world.now() + MINUTE, false));
}

async fn a_job_whose_lease_ended_runs_again(world: World) {
    let leased = running(&world).await;
    world.advance(LEASE - SECOND).await;
    assert_eq!(world.state(&tenant("a"), &leased.job.id).await, State::Processing);
    assert!(world.claim(any()).await.is_empty());
    world.advance(SECOND).await;
    let (job, failed) = world.stored(&tenant("a"), &leased.job.id).await;
    assert_eq!((job.state, job.attempt, job.run_at), (State::Pending, 1, world.now()));
    assert_eq!((failed.len(), failed[0].attempt, &*failed[0].worker), (1, 1, "worker-1"));
    assert_eq!((failed[0].started_at, failed[0].ended_at), (leased.job.started_at, world.now()));
    let again = world.claim_one().await;
    assert_eq!((again.job.attempt, &again.job.id), (2, &leased.job.id));
    assert_ne!(again.lease, leased.lease);
}

async fn a_job_that_is_lost_every_time_is_dead_with_every_run_listed(world: World) {
    let a = tenant("a");
    let job = world.enqueue_one(&a).await;
    for run in 1..=3 {
        let worker = format!("worker-{run}");
        let leased = world.claim(Claim { worker: worker.into(), ..any() }).await;
        assert_eq!(leased[0].job.attempt, run);
        world.advance(LEASE).await;
    }
    assert!(world.claim(any()).await.is_empty());
    let (job, failed) = world.stored(&a, &job).await;
    assert_eq!((job.state, job.attempt), (State::Dead, 3));
    let runs: Vec<_> = failed.iter().map(|run| (run.attempt, &*run.worker)).collect();
    assert_eq!(runs, [(1, "worker-1"), (2, "worker-2"), (3, "worker-3")]);
}

async fn a_lost_lease_settles_nothing_and_writes_nothing(world: World) {
    let a = tenant("a");
    let lost = running(&world).await;
    world.advance(LEASE).await;
    let effects = || Some(commit(&a, vec![world.event("late")], vec![world.job("late")]));
    // Nobody has it yet, then somebody else does, then that one is done: never the first worker again.
    assert_eq!(code(world.try_settle(&lost, done(), effects()).await), "job.lease_lost");
    let held = world.claim_one().await;
    assert_eq!(code(world.try_settle(&lost, done(), effects()).await), "job.lease_lost");
    assert_eq!(code(world.try_settle(&lost, Verdict::Fail { error: "late".to_owned() }, None).await), "job.lease_lost");
    assert_eq!(world.state(&a, &lost.job.id).await, State::Processing);
    assert_eq!(world.settle(&held, done()).await, State::Completed);
    assert_eq!(code(world.try_settle(&lost, retry("late"), effects()).await), "job.lease_lost");
    let (job, failed) = world.stored(&a, &lost.job.id).await;
    assert_eq!((job.state, job.attempt, failed.len()), (State::Completed, 2, 1));
    assert_eq!(world.head(&a).await, 0);
    assert!(world.claim(any()).await.is_empty());
}

async fn a_lost_lease_is_not_renewed(world: World) {
    let lost = running(&world).await;
    world.advance(LEASE).await;
    assert_eq!(code(world.try_renew(&lost, MINUTE).await), "job.lease_lost");
    let held = world.claim_one().await;
    assert_eq!(code(world.try_renew(&lost, MINUTE).await), "job.lease_lost");
    let foreign = world.store.renew(Some(&tenant("b")), &held.job.id, &held.lease, HOUR);
    assert_eq!(code(foreign.await), "job.lease_lost");
    assert!(world.try_renew(&held, MINUTE).await.is_ok());
}

async fn a_lease_tells_its_job_while_it_is_held(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    let leased = running(&world).await;
    let ask = async |tenant| within(world.store.leased(tenant, &leased.job.id, &leased.lease)).await;
    for tenant in [None, Some(&a)] {
        let job = ask(tenant).await.expect("held");
        assert_eq!((&job.id, &job.tenant, job.state, job.attempt), (&leased.job.id, &a, State::Processing, 1));
    }
    assert_eq!(code(ask(Some(&b)).await), "job.lease_lost");
    assert_eq!(code(within(world.store.leased(None, &leased.job.id, "1-00")).await), "job.lease_lost");
    world.advance(LEASE).await;
    assert_eq!(code(ask(None).await), "job.lease_lost");
}

async fn a_renewed_lease_holds_longer(world: World) {
    let leased = running(&world).await;
    world.advance(LEASE - SECOND).await;
    world.try_renew(&leased, LEASE).await.expect("renew");
    world.advance(LEASE - SECOND).await;
    assert_eq!(world.state(&tenant("a"), &leased.job.id).await, State::Processing);
    world.advance(SECOND).await;
    assert_eq!(world.state(&tenant("a"), &leased.job.id).await, State::Pending);
}

async fn a_lease_can_be_renewed_again_and_again(world: World) {
    let leased = running(&world).await;
    for _ in 0..200 {
        world.clock.advance(LEASE - SECOND);
        world.try_renew(&leased, LEASE).await.expect("renew");
        world.turn().await;
    }
    assert_eq!(world.settle(&leased, done()).await, State::Completed);
    assert!(world.stored(&tenant("a"), &leased.job.id).await.1.is_empty());
}

async fn a_renewal_can_shorten_a_lease(world: World) {
    let leased = running(&world).await;
    world.try_renew(&leased, SECOND).await.expect("renew");
    world.advance(SECOND).await;
    assert_eq!(world.state(&tenant("a"), &leased.job.id).await, State::Pending);
    // The end it had at first means nothing for the run that follows.
    let again = world.claim(Claim { lease: HOUR, ..any() }).await.remove(0);
    world.advance(LEASE).await;
    assert_eq!(world.settle(&again, done()).await, State::Completed);
}

async fn a_renewal_tells_that_it_is_no_longer_wanted(world: World) {
    let leased = running(&world).await;
    assert!(!world.try_renew(&leased, LEASE).await.expect("renew").cancelled);
    let job = world.control(&tenant("a"), &leased.job.id, Control::Cancel).await.expect("cancel");
    assert_eq!(job.state, State::Processing);
    assert!(world.try_renew(&leased, LEASE).await.expect("renew").cancelled);
    assert_eq!(world.settle(&leased, Verdict::Cancel).await, State::Cancelled);
}

async fn a_cancelled_run_does_not_come_back(world: World) {
    let a = tenant("a");
    world.enqueue(&a, (0..4).map(|_| world.job("work")).collect()).await;
    let leased = world.claim(any()).await;
    for leased in &leased {
        world.control(&a, &leased.job.id, Control::Cancel).await.expect("cancel");
    }
    assert_eq!(world.settle(&leased[0], retry("stopped")).await, State::Cancelled);
    assert_eq!(world.settle(&leased[1], Verdict::Release).await, State::Cancelled);
    assert_eq!(world.settle(&leased[2], Verdict::Snooze { delay: SECOND }).await, State::Cancelled);
    world.advance(HOUR).await;
    for leased in &leased {
        assert_eq!(world.state(&a, &leased.job.id).await, State::Cancelled);
    }
    assert!(world.claim(any()).await.is_empty());
    // Its next life is not told of the old wish.
    world.control(&a, &leased[0].job.id, Control::Redrive).await.expect("redrive");
    let again = world.claim_one().await;
    assert!(!world.try_renew(&again, LEASE).await.expect("renew").cancelled);
    assert_eq!(world.settle(&again, retry("again")).await, State::Scheduled);
}

async fn a_cancelled_run_that_finished_is_completed(world: World) {
    let leased = running(&world).await;
    world.control(&tenant("a"), &leased.job.id, Control::Cancel).await.expect("cancel");
    assert_eq!(world.settle(&leased, done()).await, State::Completed);
}

async fn a_worker_of_this_process_holds_its_job_until_the_process_ends(world: World) {
    world.enqueue_one(&tenant("a")).await;
    let leased = world.claim(Claim { local: true, ..any() }).await.remove(0);
    world.advance(HOUR).await;
    assert_eq!(world.state(&tenant("a"), &leased.job.id).await, State::Processing);
    // It asks whether the job is still wanted; that does not make the lease one that ends.
    assert!(!world.try_renew(&leased, SECOND).await.expect("renew").cancelled);
    world.advance(HOUR).await;
    assert_eq!(world.settle(&leased, done()).await, State::Completed);
}

async fn the_end_of_an_earlier_lease_does_not_end_a_local_one(world: World) {
    world.enqueue_one(&tenant("a")).await;
    let remote = world.claim_one().await;
    world.settle(&remote, Verdict::Release).await;
    let local = world.claim(Claim { local: true, ..any() }).await.remove(0);
    assert_eq!(local.expires, remote.expires);
    world.advance(LEASE).await;
    assert_eq!(world.settle(&local, done()).await, State::Completed);
}
