//! What operators do to flows as a whole: cancel, run again, list.

use tidewire_core::TenantId;
use tidewire_core::job::{OnConflict, OnFailure, State, States, Unique, Verdict};
use tidewire_core::store::{Claim, Control, FlowControl, FlowQuery, FlowState};

use crate::flows::{begin, fail, flow, job, next, result, saga, seen, step, with};
use crate::world::{MINUTE, World, any, code, commit, done, id, in_flow, job_ids, tenant, within};

every_engine![
    a_cancelled_flow_runs_what_comes_at_the_end,
    a_cancelled_flow_undoes_what_it_has_done,
    a_flow_goes_on_where_it_failed,
    who_has_not_begun_waits_again_for_what_is_retried,
    a_flow_that_undid_nothing_is_retried_with_its_undoing,
    what_cannot_be_retried_whole_is_left_as_it_is,
    flows_are_listed_newest_first,
];

async fn control(world: &World, control: FlowControl) -> &'static str {
    match within(world.store.control_flow(&tenant("a"), &id("f"), control)).await {
        Ok(()) => "done",
        Err(refused) => refused.code(),
    }
}

async fn a_cancelled_flow_runs_what_comes_at_the_end(world: World) {
    let a = tenant("a");
    assert_eq!(control(&world, FlowControl::Cancel).await, "flow.not_found");
    let last = step(&world, "finally", &["one", "two", "three"]);
    let mut last = with(last, |rare| rare.finally = true);
    last.after.iter_mut().for_each(|after| after.ignores_failure = true);
    let jobs = vec![step(&world, "one", &[]), step(&world, "two", &["one"]), step(&world, "three", &[]), last];
    begin(&world, &a, jobs).await;
    let leased = world.claim(Claim { max: 1, ..any() }).await;
    assert_eq!(job_ids(&leased), ["one"]);
    assert_eq!(control(&world, FlowControl::Cancel).await, "done");
    // The one that runs is asked to stop and has not ended, so the last one still waits for it.
    assert!(world.try_renew(&leased[0], MINUTE).await.expect("held").cancelled);
    assert_eq!(job(&world, "three").await.state, State::Cancelled);
    assert_eq!((flow(&world, &a).await.state, world.claim(any()).await.len()), (FlowState::Running, 0));
    world.settle(&leased[0], Verdict::Cancel).await;
    assert_eq!(job(&world, "two").await.state, State::Cancelled);
    assert_eq!(control(&world, FlowControl::Cancel).await, "flow.wrong_state", "the last one is left");
    next(&world, "finally", done()).await;
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.failed, shown.unfinished), (FlowState::Failed, 3, 0));
}

async fn a_cancelled_flow_undoes_what_it_has_done(world: World) {
    let a = tenant("a");
    begin(&world, &a, saga(&world)).await;
    next(&world, "a", done()).await;
    next(&world, "b", done()).await;
    assert_eq!(control(&world, FlowControl::Cancel).await, "done");
    assert_eq!(flow(&world, &a).await.state, FlowState::Undoing);
    let undone = world.claim(any()).await;
    assert_eq!(undone.len(), 1);
    world.settle(&undone[0], done()).await;
    assert_eq!(world.claim(any()).await.len(), 1);
    assert_eq!(control(&world, FlowControl::Retry).await, "flow.undone");
}

async fn a_flow_goes_on_where_it_failed(world: World) {
    let a = tenant("a");
    // Each stands before the one that it waits for, and the last one has nothing to do with what fails.
    let jobs = vec![
        step(&world, "three", &["two", "aside"]),
        step(&world, "two", &["one"]),
        step(&world, "one", &[]),
        step(&world, "aside", &[]),
    ];
    begin(&world, &a, jobs).await;
    assert_eq!(control(&world, FlowControl::Retry).await, "flow.wrong_state");
    let leased = world.claim(any()).await;
    assert_eq!(job_ids(&leased), ["one", "aside"]);
    world.settle(&leased[0], fail()).await;
    world.settle(&leased[1], result("1")).await;
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.failed), (FlowState::Failed, 3));
    assert_eq!(control(&world, FlowControl::Retry).await, "done");
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.failed, shown.unfinished), (FlowState::Running, 0, 3));
    next(&world, "one", done()).await;
    next(&world, "two", done()).await;
    let last = next(&world, "three", done()).await;
    assert_eq!(seen(&last.parents)[1], ("aside".to_owned(), State::Completed, Some("1")));
    assert_eq!(flow(&world, &a).await.state, FlowState::Completed);
    assert_eq!(control(&world, FlowControl::Retry).await, "flow.wrong_state");
}

async fn who_has_not_begun_waits_again_for_what_is_retried(world: World) {
    let a = tenant("a");
    let ignored = |name: &str| with(step(&world, name, &[]), |rare| rare.on_failure = OnFailure::Ignore);
    let after = |name: &str, before: &[&str]| {
        let mut job = step(&world, name, before);
        job.after.iter_mut().for_each(|after| after.ignores_failure = true);
        job
    };
    // `child` still waits for `slow` when `quick` is retried, `due` waits for nothing more and has not begun.
    let jobs =
        vec![ignored("quick"), step(&world, "slow", &[]), after("child", &["quick", "slow"]), after("due", &["quick"])];
    begin(&world, &a, jobs).await;
    let leased = world.claim(Claim { max: 2, ..any() }).await;
    assert_eq!(job_ids(&leased), ["quick", "slow"]);
    world.settle(&leased[0], fail()).await;
    assert_eq!(job(&world, "due").await.state, State::Pending);
    assert_eq!(control(&world, FlowControl::Retry).await, "done");
    assert_eq!(job(&world, "due").await.state, State::Blocked);
    world.settle(&leased[1], done()).await;
    next(&world, "quick", result("1")).await;
    let leased = world.claim(any()).await;
    assert_eq!(job_ids(&leased), ["child", "due"]);
    assert_eq!(seen(&leased[1].parents), [("quick".to_owned(), State::Completed, Some("1"))]);
    world.settle_all(&leased, &done()).await;
    assert_eq!(flow(&world, &a).await.state, FlowState::Completed);
}

async fn a_flow_that_undid_nothing_is_retried_with_its_undoing(world: World) {
    let a = tenant("a");
    begin(&world, &a, saga(&world)).await;
    next(&world, "a", fail()).await;
    // The one that was to be compensated for never began, and neither did what would undo.
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.counts), (FlowState::Failed, [(State::Failed, 1), (State::Cancelled, 5)].into()));
    assert_eq!(control(&world, FlowControl::Retry).await, "done");
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.counts), (FlowState::Running, [(State::Pending, 1), (State::Blocked, 5)].into()));
    next(&world, "a", done()).await;
    next(&world, "b", fail()).await;
    next(&world, "undo-a", done()).await;
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.jobs.len()), (FlowState::Failed, 4));
    assert_eq!(control(&world, FlowControl::Retry).await, "flow.undone");
}

async fn what_cannot_be_retried_whole_is_left_as_it_is(world: World) {
    let a = tenant("a");
    let own = || Unique { key: "u".into(), states: States::UNFINISHED, window: None, on_conflict: OnConflict::Keep };
    let jobs = vec![step(&world, "one", &[]), with(step(&world, "two", &["one"]), |rare| rare.unique = Some(own()))];
    begin(&world, &a, jobs).await;
    next(&world, "one", fail()).await;
    let other = with(step(&world, "other", &[]), |rare| (rare.flow, rare.unique) = (None, Some(own())));
    world.enqueue(&a, vec![other]).await;
    assert_eq!(control(&world, FlowControl::Retry).await, "job.unique_taken");
    assert_eq!(job(&world, "one").await.state, State::Failed);
    next(&world, "other", done()).await;
    world.control(&a, &id("one"), Control::Delete).await.expect("deleted");
    assert_eq!(control(&world, FlowControl::Retry).await, "flow.wrong_state", "a job of it is gone");
    assert_eq!(job(&world, "two").await.state, State::Cancelled);
}

async fn flows_are_listed_newest_first(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    for (own, name) in [(&a, "f1"), (&b, "f2"), (&a, "f3"), (&a, "f4")] {
        let member = with(step(&world, name, &[]), |rare| rare.flow = Some(id(name)));
        world.commit(in_flow(name, commit(own, Vec::new(), vec![member]))).await;
    }
    let leased = world.claim(Claim { max: 1, ..any() }).await;
    world.settle(&leased[0], done()).await;
    let list = async |tenant: &TenantId, state, name: Option<&str>, limit, cursor: Option<String>| {
        let query = FlowQuery { tenant: tenant.clone(), state, name: name.map(str::to_owned), cursor, limit };
        let page = within(world.store.flows(query)).await.expect("a page");
        assert!(page.items.iter().all(|flow| flow.jobs.is_empty() && flow.counts.is_empty()));
        let ids: Vec<String> = page.items.iter().map(|flow| flow.id.to_string()).collect();
        (ids.join(" "), page.next_cursor)
    };
    let (first, cursor) = list(&a, None, None, 2, None).await;
    assert_eq!(first, "f4 f3");
    assert_eq!(list(&a, None, None, 2, cursor).await, ("f1".to_owned(), None));
    assert_eq!(list(&b, None, None, 2, None).await, ("f2".to_owned(), None));
    assert_eq!(list(&tenant("c"), None, None, 2, None).await, (String::new(), None));
    assert_eq!(list(&a, Some(FlowState::Completed), None, 2, None).await, ("f1".to_owned(), None));
    assert_eq!(list(&a, Some(FlowState::Running), None, 1, None).await.0, "f4");
    assert_eq!(list(&a, None, Some("flow f3"), 9, None).await, ("f3".to_owned(), None));
    let query = FlowQuery { tenant: a.clone(), state: None, name: None, cursor: Some("no".to_owned()), limit: 1 };
    assert_eq!(code(within(world.store.flows(query)).await), "cursor.invalid");
}
