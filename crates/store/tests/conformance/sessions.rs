//! What a socket's session has joined, kept over a restart.

use tidewire_core::{Kind, TenantId};

use crate::world::{HOUR, MINUTE, SECOND, START, World, code, tenant, within};

every_engine![
    a_session_is_kept_until_it_expires,
    a_session_is_replaced_and_forgotten,
    a_session_is_not_kept_when_too_many_calls_wait,
    sessions_are_their_tenants_own,
];

async fn session(world: &World, tenant: &TenantId, sid: &str) -> Option<String> {
    within(world.store.session(tenant, sid)).await.expect("session")
}

async fn put(world: &World, tenant: &TenantId, sid: &str, state: &str) {
    within(world.store.put_session(tenant, sid, state.to_owned(), world.now() + HOUR)).await.expect("kept");
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
    for sid in ["s1", "never-seen"] {
        within(world.store.delete_session(&a, sid)).await.expect("forgotten");
    }
    assert_eq!(session(&world, &a, "s1").await, None);
}

async fn a_session_is_not_kept_when_too_many_calls_wait(world: World) {
    let a = tenant("a");
    let put = |state: &str| world.store.put_session(&a, "s1", state.to_owned(), START + HOUR);
    let held = world.hold().await;
    let mut waiting: Vec<_> = (0..65_536).map(|number| put(&number.to_string())).collect();
    let refused = within(put("one too many")).await.expect_err("refused");
    assert_eq!((refused.code(), refused.kind()), ("store.busy", Kind::Limited));
    assert_eq!(code(within(world.store.delete_session(&a, "s1")).await), "store.busy");
    drop(held);
    within(waiting.swap_remove(65_535)).await.expect("kept");
    assert_eq!(session(&world, &a, "s1").await.as_deref(), Some("65535"));
    within(put("again")).await.expect("there is room");
}

async fn sessions_are_their_tenants_own(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    put(&world, &a, "s1", "of a").await;
    assert_eq!(session(&world, &b, "s1").await, None);
    put(&world, &b, "s1", "of b").await;
    within(world.store.delete_session(&a, "s1")).await.expect("forgotten");
    assert_eq!(session(&world, &a, "s1").await, None);
    assert_eq!(session(&world, &b, "s1").await.as_deref(), Some("of b"));
}
