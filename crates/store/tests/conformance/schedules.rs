//! Schedules: each slot fires once, ever.

use tidewire_core::commit::{Commit, Enqueue, ScheduleWrite};
use tidewire_core::job::State;
use tidewire_core::schedule::{Missed, Overlap, Reached, Spec, Timing};
use tidewire_core::store::{Claim, Fire, Fired};
use tidewire_core::{TenantId, Timestamp};

use crate::world::{HOUR, SECOND, START, World, any, done, id, tenant, within};

every_engine![
    a_slot_fires_once,
    an_overlapping_slot_is_skipped,
    an_overlapping_slot_waits_its_turn,
    an_overlapping_slot_runs_beside,
    two_slots_in_one_turn_overlap_all_the_same,
    a_slot_can_be_passed_over,
    slots_of_different_schedules_do_not_touch,
    a_job_that_is_gone_does_not_overlap,
    it_ends_with_its_limit,
    while_the_app_has_it_paused_its_slots_are_passed_over,
];

fn slot(number: u32) -> Timestamp {
    START + HOUR * number
}

fn fire_of(world: &World, number: u32, overlap: Overlap) -> Fire {
    let job = Enqueue { id: id(&format!("run-{number}")), given_id: true, ..world.job("poll") };
    Fire {
        tenant: tenant("a"),
        key: "poll".into(),
        slot: slot(number),
        overlap,
        job: Some(job),
        limit: None,
        stored: None,
    }
}

async fn fire(world: &World, fire: Fire) -> Fired {
    within(world.store.fire(fire)).await.expect("fire")
}

fn enqueued(number: u32) -> Fired {
    Fired::Enqueued(id(&format!("run-{number}")))
}

async fn last_slot(world: &World, tenant: &TenantId, key: &str) -> Option<Timestamp> {
    reached(world, tenant, key).await.map(|reached| reached.last)
}

async fn reached(world: &World, tenant: &TenantId, key: &str) -> Option<Reached> {
    within(world.store.slots(tenant)).await.expect("slots").get(key).cloned()
}

async fn a_slot_fires_once(world: World) {
    assert_eq!(last_slot(&world, &tenant("a"), "poll").await, None);
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Allow)).await, enqueued(2));
    assert_eq!(last_slot(&world, &tenant("a"), "poll").await, Some(slot(2)));
    // Again, an earlier one, and one that another node asks for in the same moment.
    for number in [2, 1] {
        assert_eq!(fire(&world, fire_of(&world, number, Overlap::Allow)).await, Fired::Stale);
    }
    let hold = world.hold().await;
    let nodes: Vec<_> = (0..3).map(|_| world.store.fire(fire_of(&world, 3, Overlap::Allow))).collect();
    drop(hold);
    let mut fired = Vec::new();
    for node in nodes {
        fired.push(within(node).await.expect("fire"));
    }
    assert_eq!(fired, [enqueued(3), Fired::Stale, Fired::Stale]);
    let leased = world.claim(any()).await;
    assert_eq!(leased.len(), 2);
    for leased in &leased {
        world.settle(leased, done()).await;
    }
    assert_eq!(fire(&world, fire_of(&world, 3, Overlap::Allow)).await, Fired::Stale);
}

async fn an_overlapping_slot_is_skipped(world: World) {
    assert_eq!(fire(&world, fire_of(&world, 1, Overlap::Skip)).await, enqueued(1));
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Skip)).await, Fired::Overlapped);
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Skip)).await, Fired::Stale, "it is lost");
    let leased = world.claim_one().await;
    assert_eq!(fire(&world, fire_of(&world, 3, Overlap::Skip)).await, Fired::Overlapped, "while it runs, too");
    world.settle(&leased, done()).await;
    assert_eq!(fire(&world, fire_of(&world, 4, Overlap::Skip)).await, enqueued(4));
    assert!(!world.is_kept(&tenant("a"), &id("run-2")).await);
}

async fn an_overlapping_slot_waits_its_turn(world: World) {
    assert_eq!(fire(&world, fire_of(&world, 1, Overlap::Queue)).await, enqueued(1));
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Queue)).await, Fired::Waiting);
    assert_eq!(last_slot(&world, &tenant("a"), "poll").await, Some(slot(1)), "it has not fired");
    let leased = world.claim_one().await;
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Queue)).await, Fired::Waiting);
    world.settle(&leased, done()).await;
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Queue)).await, enqueued(2));
}

async fn an_overlapping_slot_runs_beside(world: World) {
    assert_eq!(fire(&world, fire_of(&world, 1, Overlap::Allow)).await, enqueued(1));
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Allow)).await, enqueued(2));
    assert_eq!(world.claim(any()).await.len(), 2);
}

async fn two_slots_in_one_turn_overlap_all_the_same(world: World) {
    let hold = world.hold().await;
    let unnamed = |number| {
        let fire = fire_of(&world, number, Overlap::Skip);
        Fire { job: Some(world.job("poll")), ..fire }
    };
    let (first, second) = (world.store.fire(unnamed(1)), world.store.fire(unnamed(2)));
    drop(hold);
    assert!(matches!(within(first).await.expect("fire"), Fired::Enqueued(_)));
    assert_eq!(within(second).await.expect("fire"), Fired::Overlapped);
    assert_eq!(world.claim(any()).await.len(), 1);
}

async fn a_slot_can_be_passed_over(world: World) {
    let pass = |number| Fire { job: None, ..fire_of(&world, number, Overlap::Skip) };
    assert_eq!(fire(&world, fire_of(&world, 1, Overlap::Skip)).await, enqueued(1));
    assert_eq!(fire(&world, pass(2)).await, Fired::Skipped);
    assert_eq!(last_slot(&world, &tenant("a"), "poll").await, Some(slot(2)));
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Skip)).await, Fired::Stale);
    assert_eq!(fire(&world, fire_of(&world, 3, Overlap::Skip)).await, Fired::Overlapped, "the first job still waits");
    let leased = world.claim_one().await;
    world.settle(&leased, done()).await;
    assert_eq!(fire(&world, Fire { job: None, ..fire_of(&world, 4, Overlap::Queue) }).await, Fired::Skipped);
    assert_eq!(fire(&world, fire_of(&world, 5, Overlap::Skip)).await, enqueued(5));
}

async fn slots_of_different_schedules_do_not_touch(world: World) {
    let of = |tenant: &TenantId, key: &str| Fire {
        tenant: tenant.clone(),
        key: key.into(),
        ..fire_of(&world, 1, Overlap::Skip)
    };
    let (a, b, app, nobody) = (tenant("a"), tenant("b"), TenantId::app(), tenant("nobody"));
    for (tenant, key) in [(&a, "poll"), (&b, "poll"), (&app, "poll")] {
        assert_eq!(fire(&world, of(tenant, key)).await, enqueued(1));
        assert_eq!(world.state(tenant, &id("run-1")).await, State::Pending);
    }
    let other = Fire { job: Some(world.job("poll")), ..of(&a, "other") };
    assert!(matches!(fire(&world, other).await, Fired::Enqueued(_)));
    for (tenant, expected) in [(&a, &["other", "poll"][..]), (&b, &["poll"]), (&app, &["poll"]), (&nobody, &[])] {
        let slots = within(world.store.slots(tenant)).await.expect("slots");
        assert_eq!(slots.keys().map(|key| &**key).collect::<Vec<_>>(), expected);
        assert!(
            slots.values().all(|reached| reached.last == slot(1) && reached.runs == 1 && reached.last_job.is_some())
        );
    }
    // Whoever was written for is known; who was only asked about is not.
    let asked = Claim { tenant: Some(tenant("asked")), queues: vec!["none".into()], ..any() };
    assert!(world.claim(asked).await.is_empty());
    let first = within(world.store.tenants(None, 2)).await.expect("tenants");
    let rest = within(world.store.tenants(first.last(), 10)).await.expect("tenants");
    assert_eq!((first.len(), rest.len()), (2, 1));
    let known: std::collections::BTreeSet<_> = first.iter().chain(&rest).collect();
    assert_eq!(known, [&a, &b, &app].into());
    assert!(within(world.store.tenants(rest.last(), 10)).await.expect("tenants").is_empty());
    // One that comes later stands behind them.
    fire(&world, of(&nobody, "poll")).await;
    assert_eq!(within(world.store.tenants(rest.last(), 10)).await.expect("tenants"), [nobody]);
}

async fn a_job_that_is_gone_does_not_overlap(world: World) {
    let limits = tidewire_core::store::QueueLimits {
        keep_completed: tidewire_core::catalog::Keep::Count(0),
        keep_dead: tidewire_core::catalog::Keep::Count(0),
        ..tidewire_core::store::QueueLimits::default()
    };
    within(world.store.limit_queues([("q".into(), limits)].into())).await.expect("limits");
    assert_eq!(fire(&world, fire_of(&world, 1, Overlap::Queue)).await, enqueued(1));
    let leased = world.claim_one().await;
    world.settle(&leased, done()).await;
    world.clock.advance(SECOND);
    assert!(!world.is_kept(&tenant("a"), &id("run-1")).await);
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Queue)).await, enqueued(2));
}

async fn it_ends_with_its_limit(world: World) {
    let twice = |number| Fire { limit: Some(2), ..fire_of(&world, number, Overlap::Allow) };
    assert_eq!(fire(&world, Fire { job: None, ..twice(1) }).await, Fired::Skipped, "which is no run");
    assert_eq!(fire(&world, twice(2)).await, enqueued(2));
    assert_eq!(fire(&world, twice(2)).await, Fired::Stale);
    assert_eq!(fire(&world, twice(3)).await, enqueued(3));
    assert_eq!(fire(&world, twice(4)).await, Fired::Ended);
    let reached = reached(&world, &tenant("a"), "poll").await.expect("it fired");
    assert_eq!((reached.last, reached.last_job, reached.runs), (slot(3), Some(id("run-3")), 2));
    let more = Fire { limit: Some(3), ..twice(4) };
    assert_eq!(fire(&world, more).await, enqueued(4), "a larger limit lets it go on");
}

async fn while_the_app_has_it_paused_its_slots_are_passed_over(world: World) {
    let spec = Spec {
        job: "poll".into(),
        data: tidewire_core::Json::empty_object(),
        timing: Timing::every(HOUR).expect("an interval"),
        missed: Missed::All,
        overlap: Overlap::Queue,
        start: None,
        end: None,
        limit: None,
    };
    let put = |paused| ScheduleWrite::Put { key: "poll".into(), user_id: None, spec: Box::new(spec.clone()), paused };
    let write = async |tenant: TenantId, write| {
        let commit = Commit { schedules: vec![write], ..Commit::empty(tenant) };
        world.try_commit(commit).await.expect("written");
    };
    let of_app = |number| Fire { tenant: TenantId::app(), ..fire_of(&world, number, Overlap::Queue) };
    write(tenant("a"), put(true)).await;
    assert_eq!(fire(&world, of_app(1)).await, enqueued(1), "what a tenant calls the same is another one");
    assert_eq!(fire(&world, of_app(2)).await, Fired::Waiting);
    write(TenantId::app(), put(true)).await;
    assert_eq!(fire(&world, of_app(2)).await, Fired::Skipped, "also one that waits");
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Allow)).await, Fired::Skipped, "for every tenant");
    let job = within(world.store.slots(&TenantId::app())).await.expect("slots")["poll"].last_job.clone();
    assert_eq!(job, Some(id("run-1")), "the last one that ran");
    write(TenantId::app(), ScheduleWrite::Delete { key: "poll".into(), user_id: None }).await;
    assert_eq!(fire(&world, fire_of(&world, 2, Overlap::Allow)).await, Fired::Stale);
    assert_eq!(fire(&world, fire_of(&world, 3, Overlap::Allow)).await, enqueued(3));
}
