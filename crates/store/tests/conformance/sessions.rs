//! What a socket's session has joined, kept over a restart.

use tidewire_core::TenantId;

use crate::world::{HOUR, MINUTE, SECOND, World, tenant, within};

every_engine![a_session_is_kept_until_it_expires, a_session_is_replaced_and_forgotten, sessions_are_their_tenants_own];

async fn session(world: &World, tenant: &TenantId, sid: &str) -> Option<String> {
    within(world.store.session(tenant, sid)).await.expect("session")
}

async fn put(world: &World, tenant: &TenantId, sid: &str, state: &str) {
    world.store.put_session(tenant, sid, state.to_owned(), world.now() + HOUR);
    // It rides in the next commit.
    world.turn().await;
}

async fn a_session_is_kept_until_it_expires(world: World) {
    let a = tenant("a");
    assert_eq!(session(&world, &a, "s1").await, None);
    put(&world, &a, "s1", "one").await;
    world.clock.advance(HOUR - SECOND);
    assert_eq!(session(&world, &a, "s1").await.as_deref(), Some("one"));
    world.clock.advance(SECOND);
    assert_eq!(session(&world, &a, "s1").await, None);
    world.advance(MINUTE).await;
    world.clock.set(world.now() - HOUR);
    assert_eq!(session(&world, &a, "s1").await, None, "it is not only hidden");
}

async fn a_session_is_replaced_and_forgotten(world: World) {
    let a = tenant("a");
    put(&world, &a, "s1", "one").await;
    put(&world, &a, "s1", "two").await;
    assert_eq!(session(&world, &a, "s1").await.as_deref(), Some("two"));
    world.store.delete_session(&a, "s1");
    world.store.delete_session(&a, "never-seen");
    world.turn().await;
    assert_eq!(session(&world, &a, "s1").await, None);
}

async fn sessions_are_their_tenants_own(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    put(&world, &a, "s1", "of a").await;
    assert_eq!(session(&world, &b, "s1").await, None);
    put(&world, &b, "s1", "of b").await;
    world.store.delete_session(&a, "s1");
    world.turn().await;
    assert_eq!(session(&world, &a, "s1").await, None);
    assert_eq!(session(&world, &b, "s1").await.as_deref(), Some("of b"));
}
