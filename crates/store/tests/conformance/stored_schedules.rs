//! Schedules that were made at run time: put, fired once per slot, and ended, all in commits.

use std::sync::{Arc, Mutex};

use tidewire_core::commit::{Commit, Committed, ScheduleWrite};
use tidewire_core::event::{Event, Position};
use tidewire_core::job::State;
use tidewire_core::schedule::{Missed, Overlap, Spec, Stored, Timing};
use tidewire_core::store::{Fire, Fired, Follower, Planned, ScheduleQuery};
use tidewire_core::{Json, Result, TenantId, Timestamp};

use crate::world::{HOUR, MINUTE, SECOND, START, World, any, code, commit, done, tenant, within};

every_engine![
    one_that_is_put_is_due_at_its_next_slot,
    the_same_again_changes_nothing,
    other_fields_keep_what_it_has_done,
    another_timing_begins_anew,
    a_deleted_one_fires_no_more,
    a_slot_fires_once,
    a_slot_of_another_revision_is_stale,
    it_ends_with_its_limit,
    it_fires_within_start_and_end,
    a_time_in_the_past_is_refused_with_all_of_its_commit,
    a_paused_one_rests_and_a_resumed_one_passes_over_what_was_missed,
    one_that_cannot_fire_is_suspended_unless_it_was_changed,
    a_slot_that_waits_is_looked_at_later_and_later,
    users_and_tenants_have_their_own,
    pages_are_in_order_and_whole,
    a_follower_is_told_of_the_next_slot,
    a_tenant_has_no_more_than_it_may,
];

/// Each hour, as `START` is 36 s over a multiple of 4 minutes.
fn hourly() -> Spec {
    Spec {
        job: "work".into(),
        data: Json::empty_object(),
        timing: Timing::every(HOUR).expect("an interval"),
        missed: Missed::Last,
        overlap: Overlap::Skip,
        start: None,
        end: None,
        limit: None,
    }
}

fn slot(number: u32) -> Timestamp {
    let first = hourly().next_after(START).expect("a slot");
    first + HOUR * (number - 1)
}

fn of(key: &str, spec: Spec, paused: bool) -> ScheduleWrite {
    ScheduleWrite::Put { key: key.into(), user_id: None, spec: Box::new(spec), paused }
}

async fn write(world: &World, tenant: &TenantId, write: ScheduleWrite) -> Result<Committed> {
    world.try_commit(Commit { schedules: vec![write], ..Commit::empty(tenant.clone()) }).await
}

/// Puts the schedule `k` of tenant `a` and answers its next slot.
async fn put(world: &World, spec: Spec) -> Option<Timestamp> {
    write(world, &tenant("a"), of("k", spec, false)).await.expect("put").schedules.remove(0).next
}

async fn kept(world: &World, key: &str) -> Option<Stored> {
    within(world.store.schedule(&tenant("a"), key, None)).await.expect("read")
}

async fn k(world: &World) -> Stored {
    kept(world, "k").await.expect("it is kept")
}

async fn due(world: &World, now: Timestamp) -> Vec<Arc<str>> {
    within(world.store.due(now, 100)).await.expect("due").into_iter().map(|schedule| schedule.key).collect()
}

async fn next_due(world: &World) -> Option<Timestamp> {
    within(world.store.next_due()).await.expect("next")
}

/// The slot of a schedule as a scheduler that has read it would fire it.
fn planned(world: &World, schedule: &Stored, slot: Timestamp) -> Fire {
    Fire {
        tenant: schedule.tenant.clone(),
        key: schedule.key.clone(),
        slot,
        overlap: schedule.spec.overlap,
        job: Some(world.job("work")),
        limit: schedule.spec.limit,
        stored: Some(Planned {
            user_id: schedule.user_id.clone(),
            revision: schedule.revision,
            next: schedule.spec.next_after(slot),
        }),
    }
}

async fn fire(world: &World, fire: Fire) -> Fired {
    within(world.store.fire(fire)).await.expect("fire")
}

async fn fire_next(world: &World) -> Fired {
    let schedule = k(world).await;
    fire(world, planned(world, &schedule, schedule.next.expect("a slot"))).await
}

async fn finish_all(world: &World) -> usize {
    let leased = world.claim(any()).await;
    for leased in &leased {
        world.settle(leased, done()).await;
    }
    leased.len()
}

async fn one_that_is_put_is_due_at_its_next_slot(world: World) {
    assert_eq!((kept(&world, "k").await, next_due(&world).await), (None, None));
    assert_eq!(put(&world, hourly()).await, Some(slot(1)));
    let kept = k(&world).await;
    assert_eq!((kept.revision, kept.runs, kept.last, kept.next), (1, 0, None, Some(slot(1))));
    assert_eq!((kept.spec.clone(), kept.created_at, kept.state()), (hourly(), START, "active"));
    assert_eq!(next_due(&world).await, Some(slot(1)));
    assert!(due(&world, slot(1) - SECOND).await.is_empty());
    assert_eq!(due(&world, slot(1)).await, ["k".into()]);
    assert!(within(world.store.slots(&tenant("a"))).await.expect("slots").is_empty(), "those are the catalog's");
}

async fn the_same_again_changes_nothing(world: World) {
    put(&world, hourly()).await;
    world.clock.advance(HOUR * 3);
    assert_eq!(put(&world, hourly()).await, Some(slot(1)), "the slot that is due is not lost");
    assert_eq!(k(&world).await.revision, 1);
}

async fn other_fields_keep_what_it_has_done(world: World) {
    put(&world, hourly()).await;
    let Fired::Enqueued(job) = fire_next(&world).await else { panic!("it fires") };
    world.clock.advance(HOUR * 5);
    let other = Spec { job: "other".into(), limit: Some(9), ..hourly() };
    assert_eq!(put(&world, other).await, Some(slot(2)));
    let kept = k(&world).await;
    assert_eq!((kept.revision, kept.runs, kept.last, kept.last_job), (2, 1, Some(slot(1)), Some(job)));
    assert_eq!((&*kept.spec.job, kept.created_at), ("other", START));
}

async fn another_timing_begins_anew(world: World) {
    put(&world, hourly()).await;
    fire_next(&world).await;
    let each_minute = Spec { timing: Timing::every(MINUTE).expect("an interval"), ..hourly() };
    // The clock stands before the slot that has fired, as if it had been set back: nothing up to it fires again.
    assert_eq!(put(&world, each_minute).await, Some(slot(1) + MINUTE));
    let kept = k(&world).await;
    assert_eq!((kept.revision, kept.runs, kept.last), (2, 0, Some(slot(1))));
}

async fn a_deleted_one_fires_no_more(world: World) {
    put(&world, hourly()).await;
    let old = k(&world).await;
    let delete = || ScheduleWrite::Delete { key: "k".into(), user_id: None };
    write(&world, &tenant("a"), delete()).await.expect("deleted");
    assert_eq!((kept(&world, "k").await, next_due(&world).await), (None, None));
    assert_eq!(fire(&world, planned(&world, &old, slot(1))).await, Fired::Stale);
    write(&world, &tenant("a"), delete()).await.expect("again is no mistake");
    // One of the same name that was put later is another one.
    world.clock.set(slot(1) + SECOND);
    put(&world, hourly()).await;
    assert_eq!(fire(&world, planned(&world, &old, slot(1))).await, Fired::Stale);
    assert!(world.claim(any()).await.is_empty());
}

async fn a_slot_fires_once(world: World) {
    put(&world, hourly()).await;
    let schedule = k(&world).await;
    let hold = world.hold().await;
    let nodes: Vec<_> = (0..3).map(|_| world.store.fire(planned(&world, &schedule, slot(1)))).collect();
    drop(hold);
    let mut fired = Vec::new();
    for node in nodes {
        fired.push(within(node).await.expect("fire"));
    }
    assert!(matches!(fired.as_slice(), [Fired::Enqueued(_), Fired::Stale, Fired::Stale]), "{fired:?}");
    let kept = k(&world).await;
    assert_eq!((kept.runs, kept.last, kept.next, kept.revision), (1, Some(slot(1)), Some(slot(2)), 1));
    assert_eq!(next_due(&world).await, Some(slot(2)));
    assert_eq!(finish_all(&world).await, 1);
    // A slot that was passed over is no run, and those before it are gone with it.
    assert_eq!(fire(&world, Fire { job: None, ..planned(&world, &schedule, slot(4)) }).await, Fired::Skipped);
    assert_eq!(fire(&world, planned(&world, &schedule, slot(3))).await, Fired::Stale);
    let kept = k(&world).await;
    assert_eq!((kept.runs, kept.last, kept.next), (1, Some(slot(4)), Some(slot(5))));
    assert!(matches!(fire_next(&world).await, Fired::Enqueued(_)));
    assert_eq!(fire_next(&world).await, Fired::Overlapped, "the job before waits");
    assert_eq!(k(&world).await.runs, 2);
}

async fn a_slot_of_another_revision_is_stale(world: World) {
    put(&world, hourly()).await;
    let old = k(&world).await;
    put(&world, Spec { job: "other".into(), ..hourly() }).await;
    assert_eq!(fire(&world, planned(&world, &old, slot(1))).await, Fired::Stale);
    assert_eq!(k(&world).await.next, Some(slot(1)));
    assert!(matches!(fire_next(&world).await, Fired::Enqueued(_)));
}

async fn it_ends_with_its_limit(world: World) {
    let twice = Spec { limit: Some(2), overlap: Overlap::Allow, ..hourly() };
    put(&world, twice.clone()).await;
    fire_next(&world).await;
    let before = k(&world).await;
    assert_eq!(before.next_slots(5), [slot(2)]);
    fire_next(&world).await;
    let ended = k(&world).await;
    assert_eq!((ended.runs, ended.next, ended.state()), (2, None, "ended"));
    assert_eq!(next_due(&world).await, None);
    assert_eq!(fire(&world, planned(&world, &before, slot(3))).await, Fired::Stale);
    assert_eq!(finish_all(&world).await, 2);
    world.clock.set(slot(2));
    put(&world, Spec { limit: Some(3), ..twice.clone() }).await;
    assert_eq!(k(&world).await.next, Some(slot(3)), "a larger limit lets it go on");
    put(&world, Spec { limit: Some(1), ..twice }).await;
    assert_eq!(k(&world).await.state(), "ended");
}

async fn it_fires_within_start_and_end(world: World) {
    let between = Spec { start: Some(slot(3)), end: Some(slot(4)), overlap: Overlap::Allow, ..hourly() };
    assert_eq!(put(&world, between.clone()).await, Some(slot(3)), "also the slot at the start itself");
    fire_next(&world).await;
    assert_eq!(k(&world).await.next, Some(slot(4)), "and the one at the end itself");
    fire_next(&world).await;
    assert_eq!(k(&world).await.state(), "ended");
    world.clock.set(slot(9));
    assert_eq!(put(&world, Spec { job: "other".into(), ..between.clone() }).await, None, "an ended one may be put");
    let over = Spec { end: Some(slot(5)), ..between };
    assert_eq!(code(write(&world, &tenant("a"), of("k", over, false)).await), "schedule.never_fires");
}

async fn a_time_in_the_past_is_refused_with_all_of_its_commit(world: World) {
    let a = tenant("a");
    let once = |at| Spec { timing: Timing::Once(at), ..hourly() };
    let with_event = |write: ScheduleWrite| Commit {
        schedules: vec![of("fine", hourly(), false), write],
        ..commit(&a, vec![world.event("x")], vec![world.job("work")])
    };
    for at in [START, START - HOUR] {
        let refused = world.try_commit(with_event(of("k", once(at), false))).await;
        assert_eq!(code(refused), "schedule.in_the_past");
    }
    assert_eq!((world.head(&a).await, kept(&world, "fine").await), (0, None));
    assert!(world.claim(any()).await.is_empty());

    let committed = world.commit(with_event(of("k", once(slot(1)), false))).await;
    assert_eq!(committed.events[0].position, Some(Position(1)));
    let next: Vec<_> = committed.schedules.iter().map(|schedule| (&*schedule.key, schedule.next)).collect();
    assert_eq!(next, [("fine", Some(slot(1))), ("k", Some(slot(1)))]);
    finish_all(&world).await;
    fire_next(&world).await;
    assert_eq!(k(&world).await.state(), "ended");
    world.clock.set(slot(2));
    assert_eq!(put(&world, once(slot(1))).await, None, "the same again is no mistake, and does not fire again");
    assert_eq!(k(&world).await.state(), "ended");
}

async fn a_paused_one_rests_and_a_resumed_one_passes_over_what_was_missed(world: World) {
    put(&world, hourly()).await;
    let active = k(&world).await;
    write(&world, &tenant("a"), of("k", hourly(), true)).await.expect("paused");
    let paused = k(&world).await;
    assert_eq!((paused.next, paused.state(), next_due(&world).await), (None, "paused", None));
    assert_eq!(fire(&world, planned(&world, &active, slot(1))).await, Fired::Stale);
    assert_eq!(fire(&world, planned(&world, &paused, slot(1))).await, Fired::Stale);
    world.clock.set(slot(3));
    assert_eq!(put(&world, hourly()).await, Some(slot(4)));
}

async fn one_that_cannot_fire_is_suspended_unless_it_was_changed(world: World) {
    put(&world, hourly()).await;
    let suspend =
        |revision| ScheduleWrite::Suspend { key: "k".into(), user_id: None, revision, why: "no such job".into() };
    put(&world, Spec { job: "other".into(), ..hourly() }).await;
    write(&world, &tenant("a"), suspend(1)).await.expect("too late");
    assert_eq!(k(&world).await.state(), "active");
    write(&world, &tenant("a"), suspend(2)).await.expect("suspended");
    let kept = k(&world).await;
    assert_eq!((kept.state(), kept.error.as_deref(), kept.revision), ("paused", Some("no such job"), 3));
    put(&world, hourly()).await;
    let kept = k(&world).await;
    assert_eq!((kept.state(), kept.error), ("active", None));
}

async fn a_slot_that_waits_is_looked_at_later_and_later(world: World) {
    put(&world, Spec { overlap: Overlap::Queue, ..hourly() }).await;
    fire_next(&world).await;
    let mut waited = Vec::new();
    for late in [SECOND, MINUTE, HOUR] {
        world.clock.set(slot(2) + late);
        assert_eq!(fire_next(&world).await, Fired::Waiting);
        let kept = k(&world).await;
        assert_eq!((kept.next, kept.is_waiting, kept.last, kept.runs), (Some(slot(2)), true, Some(slot(1)), 1));
        let next = next_due(&world).await.expect("it is looked at again");
        assert!(due(&world, next - SECOND / 2).await.is_empty() && due(&world, next).await.len() == 1);
        waited.push(next.since(world.now()).as_millis());
    }
    assert_eq!(waited, [1_000, 7_500, 30_000]);
    finish_all(&world).await;
    assert!(matches!(fire_next(&world).await, Fired::Enqueued(_)));
    let kept = k(&world).await;
    assert_eq!((kept.last, kept.next, kept.is_waiting), (Some(slot(2)), Some(slot(3)), false));
}

async fn users_and_tenants_have_their_own(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    let of_user = |user: &str| ScheduleWrite::Put {
        key: "k".into(),
        user_id: Some(user.into()),
        spec: Box::new(hourly()),
        paused: false,
    };
    put(&world, hourly()).await;
    write(&world, &a, of_user("u1")).await.expect("put");
    let committed = write(&world, &b, of_user("u1")).await.expect("put");
    assert_eq!(committed.schedules[0].user_id.as_deref(), Some("u1"));
    let read = |tenant: TenantId, user: Option<&'static str>| {
        let store = world.store.clone();
        async move { within(store.schedule(&tenant, "k", user)).await.expect("read") }
    };
    let of_a = read(a.clone(), Some("u1")).await.expect("kept");
    assert_eq!((of_a.tenant.as_str(), of_a.user_id.as_deref()), ("a", Some("u1")));
    assert!(read(b.clone(), None).await.is_none() && read(a.clone(), Some("u2")).await.is_none());
    let Fired::Enqueued(job) = fire(&world, planned(&world, &of_a, slot(1))).await else { panic!("it fires") };
    assert_eq!(world.state(&a, &job).await, State::Pending);
    let runs = [(a.clone(), None, 0), (a.clone(), Some("u1"), 1), (b.clone(), Some("u1"), 0)];
    for (tenant, user, expected) in runs {
        assert_eq!(read(tenant, user).await.map(|kept| kept.runs), Some(expected));
    }
    write(&world, &a, ScheduleWrite::Delete { key: "k".into(), user_id: Some("u1".into()) }).await.expect("deleted");
    assert!(read(a.clone(), Some("u1")).await.is_none());
    assert!(read(a, None).await.is_some() && read(b, Some("u1")).await.is_some());
}

async fn pages_are_in_order_and_whole(world: World) {
    let put = |key: &str, user: Option<&str>| ScheduleWrite::Put {
        key: key.into(),
        user_id: user.map(Into::into),
        spec: Box::new(hourly()),
        paused: false,
    };
    for name in ["a", "b"] {
        let writes = [put("x", None), put("y.1", Some("u1")), put("y.1", Some("u2")), put("z", Some("u1"))];
        let schedules = writes.into();
        world.commit(Commit { schedules, ..Commit::empty(tenant(name)) }).await;
    }
    let list = |query: ScheduleQuery| {
        let store = world.store.clone();
        async move {
            let (mut found, mut cursor) = (Vec::new(), None);
            loop {
                let query = ScheduleQuery { cursor: cursor.take(), limit: 3, ..query.clone() };
                let page = within(store.schedules(query)).await.expect("a page");
                assert!(page.items.len() <= 3);
                let shown = |kept: Stored| format!("{} {}/{}", kept.tenant, kept.key, kept.user_id.unwrap_or_default());
                found.extend(page.items.into_iter().map(shown));
                cursor = page.next_cursor;
                if cursor.is_none() {
                    return found;
                }
            }
        }
    };
    let of_a = ScheduleQuery { tenant: Some(tenant("a")), ..ScheduleQuery::default() };
    assert_eq!(list(of_a.clone()).await, ["a x/", "a y.1/u1", "a y.1/u2", "a z/u1"]);
    assert_eq!(list(ScheduleQuery::default()).await.len(), 8);
    assert_eq!(list(ScheduleQuery { key: Some("y.1".into()), ..of_a.clone() }).await, ["a y.1/u1", "a y.1/u2"]);
    assert_eq!(list(ScheduleQuery { user_id: Some("u1".into()), ..of_a }).await, ["a y.1/u1", "a z/u1"]);
    let of_nobody = ScheduleQuery { tenant: Some(tenant("c")), ..ScheduleQuery::default() };
    assert!(list(of_nobody).await.is_empty());
    let bad = ScheduleQuery { cursor: Some("x".to_owned()), ..ScheduleQuery::default() };
    assert_eq!(code(within(world.store.schedules(bad)).await), "cursor.invalid");
}

/// Remembers what it was told.
#[derive(Default)]
struct Told(Mutex<Vec<Timestamp>>);

impl Follower for Told {
    fn committed(&self, _events: &[Arc<Event>]) {}

    fn scheduled(&self, next: Timestamp) {
        self.0.lock().expect("told").push(next);
    }
}

async fn a_follower_is_told_of_the_next_slot(world: World) {
    let told = Arc::new(Told::default());
    world.store.follow(told.clone());
    put(&world, hourly()).await;
    put(&world, hourly()).await;
    write(&world, &tenant("a"), of("k", hourly(), true)).await.expect("paused");
    let soon = Spec { timing: Timing::Once(START + SECOND), ..hourly() };
    let both = vec![of("later", hourly(), false), of("soon", soon, false)];
    world.commit(Commit { schedules: both, ..Commit::empty(tenant("a")) }).await;
    world.turn().await;
    assert_eq!(*told.0.lock().expect("told"), [slot(1), START + SECOND]);
}

async fn a_tenant_has_no_more_than_it_may(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    let bounded = async |tenant: &TenantId, schedules: Vec<ScheduleWrite>| {
        let most_schedules = Some(3);
        world.try_commit(Commit { schedules, most_schedules, ..Commit::empty(tenant.clone()) }).await
    };
    let new = |key: &str| of(key, hourly(), false);
    let delete = |key: &str| ScheduleWrite::Delete { key: key.into(), user_id: None };
    bounded(&a, vec![new("1"), new("2")]).await.expect("two of three");
    assert_eq!(code(bounded(&a, vec![new("3"), new("4")]).await), "schedule.too_many");
    assert!(kept(&world, "3").await.is_none(), "all or nothing");
    let of_user =
        ScheduleWrite::Put { key: "1".into(), user_id: Some("u".into()), spec: Box::new(hourly()), paused: false };
    bounded(&a, vec![of_user]).await.expect("three, with that of a user");
    assert_eq!(code(bounded(&a, vec![new("3")]).await), "schedule.too_many");
    bounded(&a, vec![of("1", hourly(), true)]).await.expect("it is there already");
    bounded(&a, vec![delete("2"), delete("nobody"), new("3")]).await.expect("one for one");
    assert_eq!(code(bounded(&a, vec![delete("2"), new("4")]).await), "schedule.too_many");
    bounded(&b, vec![new("1")]).await.expect("others have their own");
    bounded(&a, vec![delete("3")]).await.expect("deleted");
    bounded(&a, vec![new("4")]).await.expect("there is room again");
    // Who has more than a new bound allows keeps them.
    world.commit(Commit { schedules: vec![new("5")], ..Commit::empty(a.clone()) }).await;
    bounded(&a, vec![of("5", hourly(), true)]).await.expect("changed");
}
