//! What operators change about one job: its place, its data, whether it is there at all; and what runs again when one is re-driven.

use tidewire_core::commit::{After, Enqueue};
use tidewire_core::job::{OnConflict, OnFailure, Rare, State, States, Unique, Verdict};
use tidewire_core::store::{Change, Control, Flow, FlowState, Store};
use tidewire_core::{Id, Json};

use crate::world::{HOUR, LEASE, MINUTE, World, any, code, commit, done, id, in_flow, job_ids, tenant, within};

every_engine![
    a_waiting_job_gets_another_priority,
    a_waiting_job_gets_another_time,
    a_waiting_job_gets_other_data,
    what_cannot_be_changed_is_refused,
    a_deleted_job_is_gone_and_never_runs,
    a_deleted_completed_job_is_not_deleted_again,
    who_waits_for_a_deleted_job_is_cancelled,
    a_deleted_job_frees_its_unique_key,
    a_redriven_job_takes_its_unique_key_again,
    a_redriven_job_has_lost_no_worker,
    a_redriven_job_does_not_expire,
    a_flow_goes_on_when_its_jobs_are_redriven,
    a_blocked_job_is_not_promoted_and_says_why,
];

fn priority(priority: u8) -> Control {
    Control::Change(Change { priority: Some(priority), ..Change::default() })
}

async fn named(world: &World, names: &[&str]) {
    let job = |name: &&str| Enqueue { id: id(name), given_id: true, ..world.job("work") };
    world.enqueue(&tenant("a"), names.iter().map(job).collect()).await;
}

async fn order(world: &World) -> String {
    job_ids(&world.claim(any()).await).join(" ")
}

async fn a_waiting_job_gets_another_priority(world: World) {
    let a = tenant("a");
    named(&world, &["one", "two", "three", "four"]).await;
    // A later priority counts too, although the place in the line of the earlier one is still in memory.
    world.control(&a, &id("one"), priority(5)).await.expect("later");
    world.control(&a, &id("three"), priority(1)).await.expect("earlier");
    assert_eq!(order(&world).await, "three two four one");
}

async fn a_waiting_job_gets_another_time(world: World) {
    let a = tenant("a");
    named(&world, &["one", "two"]).await;
    let at = |run_at| Control::Change(Change { run_at: Some(run_at), ..Change::default() });
    let later = world.now() + HOUR;
    let job = world.control(&a, &id("one"), at(later)).await.expect("later");
    assert_eq!((job.state, job.run_at), (State::Scheduled, later));
    assert_eq!(order(&world).await, "two");
    let job = world.control(&a, &id("one"), at(world.now())).await.expect("now");
    assert_eq!((job.state, job.run_at), (State::Pending, world.now()));
    assert_eq!(order(&world).await, "one");
}

async fn a_waiting_job_gets_other_data(world: World) {
    let a = tenant("a");
    named(&world, &["one"]).await;
    let data = Json::parse("{\"n\":2}".to_owned()).expect("json");
    let change = Change { data: Some(data.clone()), ..Change::default() };
    world.control(&a, &id("one"), Control::Change(change)).await.expect("changed");
    assert_eq!(world.claim_one().await.job.data, data);
}

async fn what_cannot_be_changed_is_refused(world: World) {
    let a = tenant("a");
    named(&world, &["one"]).await;
    assert_eq!(code(world.control(&a, &id("one"), priority(0)).await), "job.invalid_option");
    assert_eq!(code(world.control(&a, &id("one"), priority(6)).await), "job.invalid_option");
    let large = Json::parse(format!("\"{}\"", "x".repeat(256 * 1024))).expect("json");
    let change = Control::Change(Change { data: Some(large), ..Change::default() });
    assert_eq!(code(world.control(&a, &id("one"), change).await), "data.too_large");
    let leased = world.claim_one().await;
    assert_eq!(code(world.control(&a, &id("one"), priority(1)).await), "job.wrong_state");
    assert_eq!(code(world.control(&a, &id("one"), Control::Delete).await), "job.wrong_state");
    world.settle(&leased, done()).await;
    assert_eq!(code(world.control(&a, &id("one"), priority(1)).await), "job.wrong_state");
    assert_eq!(code(world.control(&tenant("b"), &id("one"), Control::Delete).await), "job.not_found");
}

async fn a_deleted_job_is_gone_and_never_runs(world: World) {
    let a = tenant("a");
    named(&world, &["pending", "failed"]).await;
    let later = Some(world.now() + HOUR);
    world.enqueue(&a, vec![Enqueue { id: id("later"), given_id: true, run_at: later, ..world.job("work") }]).await;
    world.control(&a, &id("pending"), Control::Delete).await.expect("deleted");
    let leased = world.claim_one().await;
    assert_eq!(leased.job.id, id("failed"));
    world.settle(&leased, Verdict::Fail { error: "never".to_owned() }).await;
    for name in ["failed", "later"] {
        world.control(&a, &id(name), Control::Delete).await.expect("deleted");
        assert!(!world.is_kept(&a, &id(name)).await);
    }
    world.advance(HOUR).await;
    assert_eq!(order(&world).await, "");
    let counts = within(world.store.counts(None)).await.expect("counts");
    assert!(counts.values().flat_map(|states| states.values()).all(|count| *count == 0), "{counts:?}");
    // The id is free again.
    named(&world, &["failed"]).await;
    assert_eq!(order(&world).await, "failed");
}

async fn a_deleted_completed_job_is_not_deleted_again(world: World) {
    let a = tenant("a");
    let limits = tidewire_core::store::QueueLimits {
        keep_completed: tidewire_core::catalog::Keep::Count(2),
        ..Default::default()
    };
    within(world.store.limit_queues([("q".into(), limits)].into())).await.expect("limits");
    named(&world, &["first"]).await;
    world.settle(&world.claim_one().await, done()).await;
    world.control(&a, &id("first"), Control::Delete).await.expect("deleted");
    // More than are kept, so that the kept ones are gone through.
    for _ in 0..80 {
        world.enqueue_one(&a).await;
        world.settle(&world.claim_one().await, done()).await;
    }
    world.advance(MINUTE).await;
    let counts = within(world.store.counts(Some(&a))).await.expect("counts");
    assert_eq!(counts["q"][&State::Completed], 2, "a job that was counted off twice would be missing");
}

fn after(name: &str) -> Vec<After> {
    vec![After { id: id(name), ignores_failure: false }]
}

/// A flow of `one`, then `two`, then `three`.
async fn flow(world: &World) {
    let member = |name: &str, before: Option<&str>| Enqueue {
        id: id(name),
        given_id: true,
        after: before.map(after).unwrap_or_default(),
        attempts: 1,
        rare: Some(Box::new(Rare { flow: Some(id("f")), on_failure: OnFailure::Fail, ..Rare::default() })),
        ..world.job("work")
    };
    let jobs = vec![member("one", None), member("two", Some("one")), member("three", Some("two"))];
    world.commit(in_flow("f", commit(&tenant("a"), Vec::new(), jobs))).await;
}

async fn shown(store: &dyn Store) -> Flow {
    within(store.flow(&tenant("a"), &id("f"))).await.expect("read").expect("the flow is kept")
}

async fn state(world: &World, name: &str) -> State {
    world.state(&tenant("a"), &id(name)).await
}

async fn who_waits_for_a_deleted_job_is_cancelled(world: World) {
    let a = tenant("a");
    flow(&world).await;
    world.control(&a, &id("one"), Control::Delete).await.expect("deleted");
    assert!(!world.is_kept(&a, &id("one")).await);
    assert_eq!((state(&world, "two").await, state(&world, "three").await), (State::Cancelled, State::Cancelled));
    let flow = shown(&*world.store).await;
    assert_eq!((flow.state, flow.finished_at), (FlowState::Failed, Some(world.now())));
    assert_eq!(flow.counts[&State::Cancelled], 3, "the flow remembers the one that is gone");
}

/// A job that is the only one of its key.
async fn only(world: &World, name: &str) -> Id {
    let unique = Unique { key: "k".into(), states: States::UNFINISHED, window: None, on_conflict: OnConflict::Keep };
    let rare = Some(Box::new(Rare { unique: Some(unique), ..Rare::default() }));
    let job = Enqueue { id: id(name), given_id: true, rare, ..world.job("work") };
    world.enqueue(&tenant("a"), vec![job]).await.remove(0).id
}

async fn a_deleted_job_frees_its_unique_key(world: World) {
    only(&world, "one").await;
    assert_eq!(only(&world, "two").await, id("one"), "the key is taken");
    world.control(&tenant("a"), &id("one"), Control::Delete).await.expect("deleted");
    assert_eq!(only(&world, "three").await, id("three"));
}

async fn a_redriven_job_takes_its_unique_key_again(world: World) {
    let a = tenant("a");
    only(&world, "one").await;
    world.settle(&world.claim_one().await, Verdict::Fail { error: "never".to_owned() }).await;
    assert_eq!(only(&world, "two").await, id("two"), "a dead letter keeps nobody out");
    let refused = world.control(&a, &id("one"), Control::Redrive).await.expect_err("the key is taken");
    assert_eq!(refused.code(), "job.unique_taken");
    assert!(refused.detail().contains("job two, which is pending"), "{refused}");
    assert_eq!(state(&world, "one").await, State::Failed);
    world.settle(&world.claim_one().await, done()).await;
    world.control(&a, &id("one"), Control::Redrive).await.expect("the key is free");
    assert_eq!(only(&world, "three").await, id("one"), "the key is taken again");
}

async fn a_redriven_job_has_lost_no_worker(world: World) {
    let a = tenant("a");
    let job = world.enqueue(&a, vec![Enqueue { attempts: 100, ..world.job("work") }]).await.remove(0).id;
    for _ in 0..2 {
        for _ in 0..3 {
            assert_ne!(world.state(&a, &job).await, State::Dead);
            world.claim_one().await;
            world.advance(LEASE).await;
        }
        assert_eq!(world.state(&a, &job).await, State::Dead);
        world.control(&a, &job, Control::Redrive).await.expect("redrive");
    }
}

async fn a_redriven_job_does_not_expire(world: World) {
    let a = tenant("a");
    let rare = Some(Box::new(Rare { expires_at: Some(world.now() + MINUTE), ..Rare::default() }));
    let job = world.enqueue(&a, vec![Enqueue { rare, ..world.job("work") }]).await.remove(0).id;
    world.advance(HOUR).await;
    assert_eq!(world.state(&a, &job).await, State::Cancelled);
    world.control(&a, &job, Control::Redrive).await.expect("redrive");
    world.turn().await;
    assert_eq!(world.claim_one().await.job.id, job);
}

async fn a_flow_goes_on_when_its_jobs_are_redriven(world: World) {
    let a = tenant("a");
    flow(&world).await;
    world.settle(&world.claim_one().await, Verdict::Fail { error: "never".to_owned() }).await;
    assert_eq!(shown(&*world.store).await.state, FlowState::Failed);
    assert_eq!(state(&world, "three").await, State::Cancelled);

    world.control(&a, &id("one"), Control::Redrive).await.expect("redrive");
    let running = shown(&*world.store).await;
    assert_eq!((running.state, running.finished_at, running.counts[&State::Pending]), (FlowState::Running, None, 1));
    // Those that waited for it wait again, in whatever order they are asked for.
    let three = world.control(&a, &id("three"), Control::Redrive).await.expect("redrive");
    assert_eq!(three.state, State::Pending, "nobody has asked for the one before it");
    world.control(&a, &id("three"), Control::Cancel).await.expect("cancel");
    for name in ["two", "three"] {
        let job = world.control(&a, &id(name), Control::Redrive).await.expect("redrive");
        assert_eq!(job.state, State::Blocked);
    }
    for name in ["one", "two", "three"] {
        let leased = world.claim_one().await;
        assert_eq!(leased.job.id, id(name));
        let ended: Vec<State> = leased.parents.iter().map(|parent| parent.state).collect();
        assert!(ended.iter().all(|state| *state == State::Completed), "{ended:?}");
        assert_eq!(ended.len(), usize::from(name != "one"));
        world.settle(&leased, done()).await;
    }
    let flow = shown(&*world.store).await;
    assert_eq!((flow.state, flow.finished_at), (FlowState::Completed, Some(world.now())));
}

async fn a_blocked_job_is_not_promoted_and_says_why(world: World) {
    flow(&world).await;
    let refused = world.control(&tenant("a"), &id("two"), Control::Promote).await.expect_err("it waits");
    assert_eq!(refused.code(), "job.wrong_state");
    assert!(refused.detail().contains("it waits for 1 other jobs"), "{refused}");
}
