//! What a store counts.

use tidewire_core::job::{State, Verdict};
use tidewire_core::store::Figures;

use crate::world::{LEASE, MINUTE, SECOND, World, commit, done, retry, tenant, within};

every_engine![writes_are_counted_before_they_are_answered, runs_are_counted_by_how_they_end];

async fn figures(world: &World) -> Figures {
    within(world.store.figures()).await.expect("figures")
}

async fn writes_are_counted_before_they_are_answered(world: World) {
    let before = figures(&world).await;
    world.append(&tenant("a"), vec![world.event("x"), world.event("x")]).await;
    world.append(&tenant("b"), vec![world.event("x")]).await;
    let clash = world.event("x");
    let clash = commit(
        &tenant("a"),
        vec![tidewire_core::commit::Append { expected_version: Some(7), stream: Some("s".into()), ..clash }],
        vec![],
    );
    world.try_commit(clash).await.expect_err("another version");
    let after = figures(&world).await;
    assert_eq!(
        (after.commits - before.commits, after.events - before.events),
        (2, 3),
        "what is refused is not counted"
    );
    assert_eq!((after.logs, after.log_events, after.waiting, after.refused), (2, 3, 0, 0));
    assert!(after.turns - before.turns >= 3 && after.calls - before.calls >= 3);
    assert_eq!((after.turn.count(), after.sync.count()), (after.turns, after.turns));
    assert!(after.turn.sum >= after.sync.sum && !after.turn.sum.is_zero());
}

async fn runs_are_counted_by_how_they_end(world: World) {
    let a = tenant("a");
    for _ in 0..5 {
        world.enqueue_one(&a).await;
    }
    world.advance(SECOND).await;
    assert_eq!(figures(&world).await.leases, 0);
    let runs = [world.claim_one().await, world.claim_one().await, world.claim_one().await, world.claim_one().await];
    let lost = world.claim_one().await;
    assert_eq!(figures(&world).await.leases, 5);
    world.clock.advance(3 * SECOND);
    assert_eq!(world.settle(&runs[0], done()).await, State::Completed);
    assert_eq!(world.settle(&runs[1], retry("later")).await, State::Scheduled);
    assert_eq!(world.settle(&runs[2], Verdict::Fail { error: "never".to_owned() }).await, State::Failed);
    assert_eq!(world.settle(&runs[3], Verdict::Snooze { delay: MINUTE }).await, State::Scheduled);
    world.advance(LEASE).await;
    assert_eq!(world.state(&a, &lost.job.id).await, State::Pending);
    let got = figures(&world).await;
    let queue = &got.queues["q"];
    assert_eq!((got.leases, queue.enqueued, queue.started), (0, 5, 5));
    assert_eq!((queue.completed, queue.failed, queue.dead, queue.cancelled), (1, 1, 0, 0));
    assert_eq!((queue.retried, queue.returned, queue.lost), (2, 1, 1), "the lost one runs again, too");
    assert_eq!((queue.wait.count(), queue.wait.sum), (5, 5 * SECOND));
    assert_eq!((queue.run.count(), queue.run.sum), (5, 4 * 3 * SECOND + 3 * SECOND + LEASE));
}
