//! What the oracle found wrong, one test each.

use tidewire_core::Id;
use tidewire_core::commit::{After, Enqueue};
use tidewire_core::job::{OnConflict, OnFailure, Rare, State, States, Unique, Verdict};
use tidewire_core::store::{Change, Control, Flow, FlowState, QueueLimits};

use crate::world::{HOUR, SECOND, World, any, commit, done, id, in_flow, job_ids, tenant, within};

every_engine![
    who_was_tied_to_what_had_ended_and_waits_for_it_again_goes_on,
    the_next_of_a_key_goes_on_when_the_one_before_it_is_cancelled,
    the_next_of_a_key_goes_on_when_the_one_before_it_is_deleted,
    the_next_of_a_key_goes_on_when_the_one_before_it_expires,
    the_next_of_a_key_goes_on_when_the_one_before_it_is_put_off,
    the_next_of_a_key_goes_on_when_the_one_before_it_gets_another_key,
    the_next_of_a_key_is_not_kept_by_one_that_is_due_later,
    a_job_that_expires_with_the_one_it_waits_for_ends_once,
    a_flow_whose_only_failure_was_ignored_has_completed,
    a_compensating_job_that_somebody_ran_again_is_neither_dropped_nor_counted_twice,
];

fn rare(world: &World, name: &str, rare: Rare) -> Enqueue {
    Enqueue { id: id(name), given_id: true, rare: Some(Box::new(rare)), ..world.job("work") }
}

fn keyed(world: &World, name: &str) -> Enqueue {
    rare(world, name, Rare { key: Some("k".into()), ..Rare::default() })
}

/// Jobs `1`, `2` and `3` of a key with one place: the first has run, the second is next and the third waits for a place.
async fn three_of_a_key(world: &World, second: Enqueue) {
    world.limit(QueueLimits { per_key: Some(1), ..QueueLimits::default() }).await;
    world.enqueue(&tenant("a"), vec![keyed(world, "1"), second, keyed(world, "3")]).await;
    let first = world.claim(any()).await;
    assert_eq!(job_ids(&first), ["1"]);
    world.settle(&first[0], done()).await;
    assert_eq!(world.state(&tenant("a"), &id("2")).await, State::Pending);
    assert_eq!(world.state(&tenant("a"), &id("3")).await, State::Blocked);
}

/// Nothing of the key runs, so the third may.
async fn third_runs(world: &World) {
    assert_eq!(job_ids(&world.claim(any()).await), ["3"]);
}

async fn the_next_of_a_key_goes_on_when_the_one_before_it_is_cancelled(world: World) {
    three_of_a_key(&world, keyed(&world, "2")).await;
    world.control(&tenant("a"), &id("2"), Control::Cancel).await.expect("cancel");
    third_runs(&world).await;
}

async fn the_next_of_a_key_goes_on_when_the_one_before_it_is_deleted(world: World) {
    three_of_a_key(&world, keyed(&world, "2")).await;
    world.control(&tenant("a"), &id("2"), Control::Delete).await.expect("delete");
    third_runs(&world).await;
}

async fn the_next_of_a_key_goes_on_when_the_one_before_it_expires(world: World) {
    let expires_at = Some(world.now() + SECOND);
    let second = rare(&world, "2", Rare { key: Some("k".into()), expires_at, ..Rare::default() });
    three_of_a_key(&world, second).await;
    world.advance(SECOND).await;
    third_runs(&world).await;
}

async fn the_next_of_a_key_goes_on_when_the_one_before_it_is_put_off(world: World) {
    three_of_a_key(&world, keyed(&world, "2")).await;
    let later = Change { run_at: Some(world.now() + HOUR), ..Change::default() };
    world.control(&tenant("a"), &id("2"), Control::Change(later)).await.expect("change");
    third_runs(&world).await;
}

async fn the_next_of_a_key_goes_on_when_the_one_before_it_gets_another_key(world: World) {
    let unique = |on_conflict| Some(Unique { key: "u".into(), states: States::UNFINISHED, window: None, on_conflict });
    let second = rare(&world, "2", Rare { key: Some("k".into()), unique: unique(OnConflict::Keep), ..Rare::default() });
    three_of_a_key(&world, second).await;
    let without = Rare { unique: unique(OnConflict::Replace), ..Rare::default() };
    let answer = world.enqueue(&tenant("a"), vec![rare(&world, "4", without)]).await;
    assert_eq!(answer[0].id, id("2"));
    assert_eq!(job_ids(&world.claim(any()).await), ["2", "3"]);
}

async fn the_next_of_a_key_is_not_kept_by_one_that_is_due_later(world: World) {
    let a = tenant("a");
    world.limit(QueueLimits { per_key: Some(1), ..QueueLimits::default() }).await;
    let of = |name: &str, priority| Enqueue { priority, ..keyed(&world, name) };
    world.enqueue(&a, vec![of("1", 2), of("2", 1), of("3", 3)]).await;
    // The second, of the best priority, is the first to run.
    let running = world.claim(any()).await;
    assert_eq!(job_ids(&running), ["2"]);
    let later = Change { run_at: Some(world.now() + HOUR), ..Change::default() };
    world.control(&a, &id("1"), Control::Change(later)).await.expect("change");
    assert_eq!(world.state(&a, &id("1")).await, State::Blocked);
    world.settle(&running[0], done()).await;
    assert_eq!(world.state(&a, &id("1")).await, State::Scheduled);
    third_runs(&world).await;
}

fn member(world: &World, name: &str, change: impl FnOnce(&mut Rare)) -> Enqueue {
    let mut own = Rare { flow: Some(id("f")), ..Rare::default() };
    change(&mut own);
    rare(world, name, own)
}

async fn begin(world: &World, jobs: Vec<Enqueue>) {
    world.commit(in_flow("f", commit(&tenant("a"), Vec::new(), jobs))).await;
}

async fn flow(world: &World) -> Flow {
    within(world.store.flow(&tenant("a"), &id("f"))).await.expect("read").expect("the flow")
}

async fn a_job_that_expires_with_the_one_it_waits_for_ends_once(world: World) {
    let expires_at = Some(world.now() + SECOND);
    let after = |name: &str| vec![After { id: id(name), ignores_failure: false }];
    let other = member(&world, "other", |_| {});
    let parent = member(&world, "parent", |rare| rare.expires_at = expires_at);
    let child = Enqueue { after: after("parent"), ..member(&world, "child", |rare| rare.expires_at = expires_at) };
    begin(&world, vec![other, parent, child]).await;
    world.advance(SECOND).await;
    let child = world.stored(&tenant("a"), &id("child")).await.0;
    assert_eq!(child.error.as_deref(), Some("job parent, which it waits for, is cancelled"));
    assert_eq!(flow(&world).await.state, FlowState::Running, "one of its jobs has not ended");
}

async fn a_flow_whose_only_failure_was_ignored_has_completed(world: World) {
    let ignored = member(&world, "ignored", |rare| rare.on_failure = OnFailure::Ignore);
    let after = vec![After { id: id("ignored"), ignores_failure: true }];
    begin(&world, vec![ignored, Enqueue { after, ..member(&world, "end", |_| {}) }]).await;
    let fail = || Verdict::Fail { error: "no".to_owned() };
    world.settle(&world.claim_one().await, fail()).await;
    world.settle(&world.claim_one().await, done()).await;
    assert_eq!(flow(&world).await.state, FlowState::Completed);
    // Run again it is unfinished again, and what comes of that is ignored, too.
    world.control(&tenant("a"), &id("ignored"), Control::Redrive).await.expect("redrive");
    assert_eq!(flow(&world).await.state, FlowState::Running);
    world.settle(&world.claim_one().await, fail()).await;
    assert_eq!(flow(&world).await.state, FlowState::Completed);
}

async fn a_compensating_job_that_somebody_ran_again_is_neither_dropped_nor_counted_twice(world: World) {
    let a = tenant("a");
    let undo = id("undo");
    let bad = member(&world, "bad", |rare| rare.on_failure = OnFailure::Compensate);
    let jobs =
        vec![bad, member(&world, "good", |_| {}), member(&world, "undo", |rare| rare.compensates = Some(id("good")))];
    begin(&world, jobs).await;
    let control = async |control: Control, of: &Id| world.control(&a, of, control).await.expect("control");
    control(Control::Cancel, &undo).await;
    control(Control::Redrive, &undo).await;
    let leased = world.claim(any()).await;
    assert_eq!(job_ids(&leased), ["bad", "good", "undo"]);
    world.settle(&leased[0], Verdict::Fail { error: "no".to_owned() }).await;
    world.settle(&leased[1], done()).await;
    let counts = within(world.store.counts(None)).await.expect("counts");
    let expected = [(State::Processing, 1), (State::Completed, 1), (State::Failed, 1)];
    assert_eq!(counts["q"], expected.into(), "the run that goes on is still one");
    world.settle(&leased[2], done()).await;
    assert_eq!(flow(&world).await.state, FlowState::Failed);
    assert_eq!(flow(&world).await.counts, [(State::Completed, 2), (State::Failed, 1)].into());
}

async fn who_was_tied_to_what_had_ended_and_waits_for_it_again_goes_on(world: World) {
    let a = tenant("a");
    let parent = world.enqueue_one(&a).await;
    world.settle(&world.claim_one().await, Verdict::Fail { error: "no".to_owned() }).await;
    let after = vec![After { id: parent.clone(), ignores_failure: false }];
    let child = world.enqueue(&a, vec![Enqueue { after, ..world.job("work") }]).await.remove(0);
    assert_eq!(child.state, State::Cancelled);
    for id in [&parent, &child.id] {
        world.control(&a, id, Control::Redrive).await.expect("redrive");
    }
    assert_eq!(world.state(&a, &child.id).await, State::Blocked);
    let leased = world.claim_one().await;
    assert_eq!(leased.job.id, parent);
    world.settle(&leased, done()).await;
    assert_eq!(world.claim_one().await.job.id, child.id);
}
