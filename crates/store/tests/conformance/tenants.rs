//! Two tenants with equal ids everywhere: neither ever sees or touches the other.

use std::time::Duration;

use tidewire_core::TenantId;
use tidewire_core::commit::{Append, Commit, Enqueue, Idempotency};
use tidewire_core::event::Position;
use tidewire_core::job::State;
use tidewire_core::store::{Claim, Control, JobQuery, LogQuery, Settle};

use crate::world::{HOUR, World, any, code, commit, done, id, tenant, within};

every_engine![
    equal_ids_and_keys_are_different_things,
    a_bound_worker_cannot_touch_the_others_lease,
    an_operator_of_one_tenant_cannot_touch_the_others_job,
    reads_show_one_tenant,
];

/// The same commit for whoever it is, with an id or a key wherever there can be one.
fn same(world: &World, tenant: &TenantId) -> Commit {
    let event = Append {
        id: id("e1"),
        given_id: true,
        stream: Some("s1".into()),
        expected_version: Some(0),
        ..world.event("x")
    };
    let event = Append { user_id: Some("u1".into()), ..event };
    let job = Enqueue { id: id("j1"), given_id: true, ..world.job("x") };
    Commit {
        dedup: Some(("d1".to_owned(), HOUR)),
        idempotency: Some(Idempotency { key: "k1".to_owned(), digest: tenant.as_str().as_bytes().to_vec() }),
        ..commit(tenant, vec![event], vec![job])
    }
}

async fn both(world: &World) -> (TenantId, TenantId) {
    let (a, b) = (tenant("a"), tenant("b"));
    for tenant in [&a, &b] {
        let committed = world.commit(same(world, tenant)).await;
        assert!(!committed.deduplicated && !committed.events[0].deduplicated && !committed.jobs[0].deduplicated);
        assert_eq!((committed.events[0].position, committed.events[0].version), (Some(Position(1)), Some(1)));
    }
    (a, b)
}

async fn equal_ids_and_keys_are_different_things(world: World) {
    let (a, b) = both(&world).await;
    // Again, each gets its own answer.
    for tenant in [&a, &b] {
        assert_eq!(world.commit(same(&world, tenant)).await.events[0].position, Some(Position(1)));
        assert_eq!(world.head(tenant).await, 1);
    }
    let leased = world.claim(any()).await;
    assert_eq!(leased.len(), 2);
    for leased in &leased {
        assert_eq!(leased.job.id, id("j1"));
    }
    world.settle(&leased[0], done()).await;
    assert_eq!(world.state(&leased[0].job.tenant, &id("j1")).await, State::Completed);
    assert_eq!(world.state(&leased[1].job.tenant, &id("j1")).await, State::Processing);
}

async fn a_bound_worker_cannot_touch_the_others_lease(world: World) {
    let (a, b) = both(&world).await;
    let of = |tenant: &TenantId| Claim { tenant: Some(tenant.clone()), ..any() };
    let (of_a, of_b) = (world.claim(of(&a)).await.remove(0), world.claim(of(&b)).await.remove(0));
    assert_eq!((&of_a.job.tenant, &of_b.job.tenant), (&a, &b));
    // The ids are equal; only the lease and the tenant tell them apart.
    for (bound, lease) in [(&a, &of_b.lease), (&b, &of_a.lease)] {
        let settle =
            Settle { tenant: Some(bound.clone()), id: id("j1"), lease: lease.clone(), verdict: done(), effects: None };
        assert_eq!(code(within(world.store.settle(settle)).await), "job.lease_lost");
        let renewed = within(world.store.renew(Some(bound), &id("j1"), lease, Duration::from_secs(600))).await;
        assert_eq!(code(renewed), "job.lease_lost");
    }
    for (bound, lease) in [(&a, &of_a.lease), (&b, &of_b.lease)] {
        let settle =
            Settle { tenant: Some(bound.clone()), id: id("j1"), lease: lease.clone(), verdict: done(), effects: None };
        assert_eq!(within(world.store.settle(settle)).await.expect("settle").state, State::Completed);
    }
}

async fn an_operator_of_one_tenant_cannot_touch_the_others_job(world: World) {
    let (a, b) = both(&world).await;
    world.enqueue(&b, vec![Enqueue { id: id("only-b"), given_id: true, ..world.job("x") }]).await;
    assert_eq!(code(world.control(&a, &id("only-b"), Control::Cancel).await), "job.not_found");
    world.control(&a, &id("j1"), Control::Cancel).await.expect("cancel");
    assert_eq!(
        (world.state(&a, &id("j1")).await, world.state(&b, &id("j1")).await),
        (State::Cancelled, State::Pending)
    );
}

async fn reads_show_one_tenant(world: World) {
    let (a, b) = both(&world).await;
    world.append(&b, vec![Append { id: id("only-b"), given_id: true, ..world.event("x") }]).await;
    assert!(within(world.store.event(&a, &id("only-b"))).await.expect("read").is_none());
    assert_eq!(within(world.store.event(&b, &id("only-b"))).await.expect("read").expect("it is there").tenant, b);
    for (tenant, events) in [(&a, 1), (&b, 2)] {
        let log = world.log(tenant).await;
        assert_eq!((log.len(), log.iter().all(|event| event.tenant == *tenant)), (events, true));
        let user =
            LogQuery { user: Some("u1".to_owned()), stream: Some("s1".to_owned()), limit: 9, ..LogQuery::default() };
        assert_eq!(within(world.store.read(tenant, user)).await.expect("read").len(), 1);
        let jobs = JobQuery { tenant: Some(tenant.clone()), limit: 9, ..JobQuery::default() };
        let jobs = within(world.store.jobs(jobs)).await.expect("jobs").items;
        assert_eq!((jobs.len(), &jobs[0].tenant), (1, tenant));
    }
}
