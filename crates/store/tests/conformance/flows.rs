//! Jobs that wait for jobs: order, results, what follows when one does not complete, and what a flow shows of all that.

use tidewire_core::catalog::Keep;
use tidewire_core::commit::{After, Append, Commit, Enqueue, FlowHead};
use tidewire_core::job::{Job, OnConflict, OnFailure, Rare, State, States, Unique, Verdict};
use tidewire_core::store::{Claim, Control, Flow, FlowState, Leased, Parent, QueueLimits};
use tidewire_core::{Id, Json, TenantId};

use crate::world::{HOUR, MINUTE, SECOND, World, any, code, commit, done, id, in_flow, job_ids, retry, tenant, within};

every_engine![
    a_diamond_runs_in_order_and_hands_on_its_results,
    a_job_may_wait_for_what_has_ended,
    results_outlive_the_jobs_they_are_of,
    who_waits_for_an_unknown_job_is_refused,
    a_failure_cancels_a_chain_of_ten_thousand,
    a_failure_that_is_ignored_is_seen,
    a_retry_is_no_failure,
    undoing_goes_from_the_last_to_the_first_completed,
    what_completes_while_the_flow_is_undone_is_undone_too,
    nothing_is_undone_when_all_goes_well,
    an_undo_obeys_its_key,
    a_failed_undo_lets_the_others_go_on,
    what_follows_a_flow_of_ten_thousand_runs_after_all_of_them,
    a_blocked_job_can_be_cancelled,
    a_flow_id_is_taken_once,
    a_member_that_is_there_already_is_waited_for_and_stays_its_own,
    a_member_whose_unique_key_is_taken_is_stood_for_by_the_one_that_has_it,
    a_member_superseded_in_its_own_commit_fails_the_flow,
    effects_may_be_a_flow,
    a_delayed_child_waits_for_both,
    tenants_have_flows_of_their_own,
    a_commit_begins_several_flows,
    a_known_event_begins_no_flow,
];

/// A job of flow `f` that is called by its id.
pub(crate) fn step(world: &World, name: &str, after: &[&str]) -> Enqueue {
    let rare = Rare { flow: Some(id("f")), reference: Some(name.into()), ..Rare::default() };
    let after = after.iter().map(|name| After { id: id(name), ignores_failure: false }).collect();
    Enqueue { id: id(name), given_id: true, rare: Some(Box::new(rare)), after, ..world.job("work") }
}

pub(crate) fn with(mut job: Enqueue, change: impl FnOnce(&mut Rare)) -> Enqueue {
    change(job.rare.as_mut().expect("rare"));
    job
}

fn compensating(world: &World, name: &str, undoes: &str) -> Enqueue {
    with(step(world, name, &[]), |rare| rare.compensates = Some(id(undoes)))
}

fn flow_of(tenant: &TenantId, jobs: Vec<Enqueue>) -> Commit {
    in_flow("f", commit(tenant, Vec::new(), jobs))
}

pub(crate) async fn begin(world: &World, tenant: &TenantId, jobs: Vec<Enqueue>) {
    let committed = world.commit(flow_of(tenant, jobs)).await;
    assert_eq!(committed.flow, Some(id("f")));
}

pub(crate) async fn flow(world: &World, tenant: &TenantId) -> Flow {
    within(world.store.flow(tenant, &id("f"))).await.expect("read").expect("the flow")
}

pub(crate) fn result(text: &str) -> Verdict {
    Verdict::Done { result: Some(Json::parse(text.to_owned()).expect("json")) }
}

pub(crate) fn fail() -> Verdict {
    Verdict::Fail { error: "no".to_owned() }
}

/// The one job that may run, which must be the one named, ends so.
pub(crate) async fn next(world: &World, name: &str, verdict: Verdict) -> Leased {
    let mut leased = world.claim(any()).await;
    assert_eq!(job_ids(&leased), [name]);
    world.settle(&leased[0], verdict).await;
    leased.remove(0)
}

pub(crate) async fn job(world: &World, name: &str) -> Job {
    world.stored(&tenant("a"), &id(name)).await.0
}

pub(crate) fn seen(parents: &[Parent]) -> Vec<(String, State, Option<&str>)> {
    parents.iter().map(|parent| (parent.id.to_string(), parent.state, parent.result.as_ref().map(Json::get))).collect()
}

async fn a_diamond_runs_in_order_and_hands_on_its_results(world: World) {
    let a = tenant("a");
    // The children stand before their parents in the call.
    let jobs = vec![
        step(&world, "end", &["left", "right"]),
        step(&world, "left", &["begin"]),
        step(&world, "right", &["begin"]),
        step(&world, "begin", &[]),
    ];
    begin(&world, &a, jobs).await;
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.name.as_deref(), shown.finished_at), (FlowState::Running, Some("flow f"), None));
    assert_eq!(shown.counts, [(State::Blocked, 3), (State::Pending, 1)].into());
    assert_eq!(shown.jobs[0].after, [id("left"), id("right")]);
    next(&world, "begin", result("1")).await;
    let middle = world.claim(any()).await;
    assert_eq!(job_ids(&middle), ["left", "right"]);
    assert_eq!(seen(&middle[0].parents), [("begin".to_owned(), State::Completed, Some("1"))]);
    world.settle(&middle[1], result("3")).await;
    assert!(world.claim(any()).await.is_empty());
    world.settle(&middle[0], result("2")).await;
    let end = next(&world, "end", done()).await;
    let expected =
        [("left".to_owned(), State::Completed, Some("2")), ("right".to_owned(), State::Completed, Some("3"))];
    assert_eq!(seen(&end.parents), expected);
    assert_eq!((end.parents[0].reference.as_deref(), &*end.parents[0].kind), (Some("left"), "work"));
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.finished_at), (FlowState::Completed, Some(world.now())));
    assert_eq!(shown.counts, [(State::Completed, 4)].into());
}

async fn a_job_may_wait_for_what_has_ended(world: World) {
    let a = tenant("a");
    let plain = |name: &str, after: &[&str]| with(step(&world, name, after), |rare| rare.flow = None);
    world.enqueue(&a, vec![plain("good", &[]), plain("bad", &[])]).await;
    let leased = world.claim(any()).await;
    world.settle(&leased[0], result("7")).await;
    world.settle(&leased[1], fail()).await;
    let answers = world.enqueue(&a, vec![plain("one", &["good"]), plain("other", &["good", "bad"])]).await;
    assert_eq!((answers[0].state, answers[1].state), (State::Pending, State::Cancelled));
    assert_eq!(job(&world, "other").await.error.as_deref(), Some("job bad, which it waits for, is failed"));
    let one = next(&world, "one", done()).await;
    assert_eq!(seen(&one.parents), [("good".to_owned(), State::Completed, Some("7"))]);
}

async fn results_outlive_the_jobs_they_are_of(world: World) {
    let a = tenant("a");
    world.limit(QueueLimits { keep_completed: Keep::Count(0), ..QueueLimits::default() }).await;
    begin(&world, &a, vec![step(&world, "one", &[]), step(&world, "two", &["one"])]).await;
    next(&world, "one", result("7")).await;
    assert!(!world.is_kept(&a, &id("one")).await);
    let two = next(&world, "two", done()).await;
    assert_eq!(seen(&two.parents), [("one".to_owned(), State::Completed, Some("7"))]);
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.counts), (FlowState::Completed, [(State::Completed, 2)].into()));
}

async fn who_waits_for_an_unknown_job_is_refused(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    world.enqueue(&b, vec![with(step(&world, "of-another", &[]), |rare| rare.flow = None)]).await;
    for name in ["nobody", "of-another"] {
        let jobs = vec![step(&world, "fine", &[]), step(&world, "lost", &[name])];
        assert_eq!(code(world.try_commit(flow_of(&a, jobs)).await), "job.missing_parent");
    }
    assert!(!world.is_kept(&a, &id("fine")).await);
    assert!(within(world.store.flow(&a, &id("f"))).await.expect("read").is_none());
    assert!(within(world.store.counts(Some(&a))).await.expect("counts").is_empty());
}

async fn a_failure_cancels_a_chain_of_ten_thousand(world: World) {
    let a = tenant("a");
    let names: Vec<String> = (0..10_000).map(|n| format!("{n:05}")).collect();
    let jobs = names.iter().enumerate().map(|(index, name)| match index.checked_sub(1) {
        Some(before) => step(&world, name, &[&names[before]]),
        None => step(&world, name, &[]),
    });
    begin(&world, &a, jobs.collect()).await;
    next(&world, "00000", fail()).await;
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.finished_at), (FlowState::Failed, Some(world.now())));
    assert_eq!(shown.counts, [(State::Cancelled, 9_999), (State::Failed, 1)].into());
    assert_eq!(job(&world, "00001").await.error.as_deref(), Some("job 00000, which it waits for, is failed"));
    assert_eq!(job(&world, "09999").await.error.as_deref(), Some("job 09998, which it waits for, is cancelled"));
}

async fn a_failure_that_is_ignored_is_seen(world: World) {
    let a = tenant("a");
    let after =
        vec![After { id: id("shaky"), ignores_failure: true }, After { id: id("sound"), ignores_failure: false }];
    let child = Enqueue { after, ..step(&world, "child", &[]) };
    begin(&world, &a, vec![step(&world, "shaky", &[]), step(&world, "sound", &[]), child]).await;
    let leased = world.claim(any()).await;
    world.settle(&leased[0], fail()).await;
    assert_eq!(job(&world, "child").await.state, State::Blocked);
    world.settle(&leased[1], done()).await;
    let child = next(&world, "child", done()).await;
    assert_eq!(
        seen(&child.parents),
        [("shaky".to_owned(), State::Failed, None), ("sound".to_owned(), State::Completed, None)]
    );
    assert_eq!(child.parents[0].error.as_deref(), Some("no"));
}

async fn a_retry_is_no_failure(world: World) {
    let a = tenant("a");
    begin(&world, &a, vec![Enqueue { attempts: 2, ..step(&world, "one", &[]) }, step(&world, "two", &["one"])]).await;
    next(&world, "one", retry("boom")).await;
    assert_eq!(job(&world, "two").await.state, State::Blocked);
    world.advance(MINUTE).await;
    next(&world, "one", retry("boom")).await;
    assert_eq!((job(&world, "one").await.state, job(&world, "two").await.state), (State::Dead, State::Cancelled));
}

pub(crate) fn saga(world: &World) -> Vec<Enqueue> {
    let last = with(step(world, "c", &["b"]), |rare| rare.on_failure = OnFailure::Compensate);
    vec![
        step(world, "a", &[]),
        step(world, "b", &["a"]),
        last,
        compensating(world, "undo-a", "a"),
        compensating(world, "undo-b", "b"),
        compensating(world, "undo-c", "c"),
    ]
}

async fn undoing_goes_from_the_last_to_the_first_completed(world: World) {
    let a = tenant("a");
    begin(&world, &a, saga(&world)).await;
    next(&world, "a", done()).await;
    world.advance(MINUTE).await;
    next(&world, "b", done()).await;
    next(&world, "c", fail()).await;
    assert_eq!(flow(&world, &a).await.state, FlowState::Undoing);
    // What did not complete has nothing to undo.
    assert!(!world.is_kept(&a, &id("undo-c")).await);
    next(&world, "undo-b", done()).await;
    assert_eq!(flow(&world, &a).await.finished_at, None);
    next(&world, "undo-a", done()).await;
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.finished_at), (FlowState::Failed, Some(world.now())));
    assert_eq!(shown.counts, [(State::Completed, 4), (State::Failed, 1)].into());
}

async fn what_completes_while_the_flow_is_undone_is_undone_too(world: World) {
    let a = tenant("a");
    let last = with(step(&world, "last", &["first", "slow", "bad"]), |rare| rare.finally = true);
    let after = last.after.iter().map(|after| After { ignores_failure: true, ..after.clone() }).collect();
    let jobs = vec![
        step(&world, "first", &[]),
        step(&world, "slow", &[]),
        with(step(&world, "bad", &[]), |rare| rare.on_failure = OnFailure::Compensate),
        Enqueue { run_at: Some(world.now() + HOUR), ..step(&world, "aside", &[]) },
        Enqueue { after, ..last },
        compensating(&world, "undo-first", "first"),
        compensating(&world, "undo-slow", "slow"),
    ];
    begin(&world, &a, jobs).await;
    let leased = world.claim(any()).await;
    assert_eq!(job_ids(&leased), ["first", "slow", "bad"]);
    world.settle(&leased[0], done()).await;
    world.settle(&leased[2], fail()).await;
    // One still runs. It may need what the others have done, so nothing is undone before it has ended.
    assert!(world.claim(any()).await.is_empty());
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.counts[&State::Blocked]), (FlowState::Undoing, 3));
    assert_eq!(job(&world, "aside").await.state, State::Cancelled, "nothing new begins");
    world.advance(SECOND).await;
    world.settle(&leased[1], done()).await;
    next(&world, "undo-slow", done()).await;
    next(&world, "undo-first", done()).await;
    assert_eq!(flow(&world, &a).await.state, FlowState::Undoing);
    next(&world, "last", done()).await;
    assert_eq!(flow(&world, &a).await.state, FlowState::Failed);
}

async fn nothing_is_undone_when_all_goes_well(world: World) {
    let a = tenant("a");
    begin(&world, &a, saga(&world)).await;
    for name in ["a", "b", "c"] {
        next(&world, name, done()).await;
    }
    assert!(world.claim(any()).await.is_empty());
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.counts), (FlowState::Completed, [(State::Completed, 3)].into()));
    let counts = within(world.store.counts(Some(&a))).await.expect("counts");
    assert_eq!(counts["q"], [(State::Completed, 3)].into());
}

async fn an_undo_obeys_its_key(world: World) {
    let a = tenant("a");
    world.limit(QueueLimits { per_key: Some(1), ..QueueLimits::default() }).await;
    let mut jobs = saga(&world);
    jobs.drain(4..);
    jobs[3] = with(jobs[3].clone(), |rare| rare.key = Some("k".into()));
    begin(&world, &a, jobs).await;
    let other = with(step(&world, "other", &[]), |rare| (rare.flow, rare.key) = (None, Some("k".into())));
    world.enqueue(&a, vec![Enqueue { priority: 1, ..other }]).await;
    let leased = world.claim(any()).await;
    assert_eq!(job_ids(&leased), ["other", "a"]);
    world.settle(&leased[1], done()).await;
    next(&world, "b", done()).await;
    next(&world, "c", fail()).await;
    // It may go on, but its key is at the limit.
    assert!(world.claim(any()).await.is_empty());
    assert_eq!(job(&world, "undo-a").await.state, State::Blocked);
    world.settle(&leased[0], done()).await;
    next(&world, "undo-a", done()).await;
    assert_eq!(flow(&world, &a).await.state, FlowState::Failed);
}

async fn a_failed_undo_lets_the_others_go_on(world: World) {
    let a = tenant("a");
    begin(&world, &a, saga(&world)).await;
    next(&world, "a", done()).await;
    world.advance(MINUTE).await;
    next(&world, "b", done()).await;
    next(&world, "c", fail()).await;
    next(&world, "undo-b", fail()).await;
    next(&world, "undo-a", done()).await;
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.counts[&State::Failed]), (FlowState::Failed, 2));
}

async fn what_follows_a_flow_of_ten_thousand_runs_after_all_of_them(world: World) {
    let a = tenant("a");
    world.limit(QueueLimits { keep_completed: Keep::Count(100), ..QueueLimits::default() }).await;
    let names: Vec<String> = (0..10_000).map(|n| format!("{n:05}")).collect();
    let after = |ignores_failure| names.iter().map(|name| After { id: id(name), ignores_failure }).collect();
    let mut jobs: Vec<Enqueue> = names.iter().map(|name| step(&world, name, &[])).collect();
    jobs.push(Enqueue { after: after(false), ..step(&world, "then", &[]) });
    jobs.push(Enqueue { after: after(true), ..step(&world, "finally", &[]) });
    begin(&world, &a, jobs).await;
    for round in 0..10 {
        let leased = world.claim(Claim { max: 1_000, ..any() }).await;
        assert_eq!(leased.len(), 1_000);
        let last = if round == 9 { &leased[..999] } else { &leased[..] };
        world.settle_all(last, &result("1")).await;
        if round == 9 {
            assert!(world.claim(any()).await.is_empty());
            assert_eq!(job(&world, "then").await.state, State::Blocked);
            world.settle(&leased[999], fail()).await;
        }
    }
    assert_eq!(job(&world, "then").await.state, State::Cancelled);
    let finally = next(&world, "finally", done()).await;
    assert_eq!(finally.parents.len(), Parent::MOST);
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.jobs.len()), (FlowState::Failed, Flow::MOST_JOBS));
    assert_eq!(shown.counts, [(State::Completed, 10_000), (State::Failed, 1), (State::Cancelled, 1)].into());
}

async fn a_blocked_job_can_be_cancelled(world: World) {
    let a = tenant("a");
    let jobs = vec![step(&world, "one", &[]), step(&world, "two", &["one"]), step(&world, "three", &["two"])];
    begin(&world, &a, jobs).await;
    world.control(&a, &id("two"), Control::Cancel).await.expect("cancel");
    assert_eq!(job(&world, "three").await.state, State::Cancelled);
    assert_eq!(code(world.control(&a, &id("three"), Control::Promote).await), "job.wrong_state");
    assert_eq!(flow(&world, &a).await.state, FlowState::Running);
    next(&world, "one", done()).await;
    assert!(world.claim(any()).await.is_empty());
    assert_eq!(flow(&world, &a).await.state, FlowState::Failed);
}

async fn a_flow_id_is_taken_once(world: World) {
    let a = tenant("a");
    begin(&world, &a, vec![step(&world, "one", &[])]).await;
    let again = flow_of(&a, vec![step(&world, "two", &[])]);
    assert_eq!(code(world.try_commit(again).await), "flow.exists");
    assert!(!world.is_kept(&a, &id("two")).await);
    assert_eq!(flow(&world, &a).await.jobs.len(), 1);
}

async fn a_member_that_is_there_already_is_waited_for_and_stays_its_own(world: World) {
    let a = tenant("a");
    world.enqueue(&a, vec![with(step(&world, "there", &[]), |rare| rare.flow = None)]).await;
    let jobs = vec![step(&world, "there", &["child"]), step(&world, "child", &["there"])];
    let committed = world.commit(flow_of(&a, jobs)).await;
    assert_eq!((committed.jobs[0].deduplicated, committed.jobs[1].state), (true, State::Blocked));
    assert_eq!(flow(&world, &a).await.jobs.len(), 1);
    next(&world, "there", done()).await;
    next(&world, "child", done()).await;
    assert_eq!(flow(&world, &a).await.state, FlowState::Completed);
}

fn unique(on_conflict: OnConflict) -> Option<Unique> {
    Some(Unique { key: "k".into(), states: States::UNFINISHED, window: None, on_conflict })
}

async fn a_member_whose_unique_key_is_taken_is_stood_for_by_the_one_that_has_it(world: World) {
    let a = tenant("a");
    let keyed = |name: &str| with(step(&world, name, &[]), |rare| rare.unique = unique(OnConflict::Keep));
    world.enqueue(&a, vec![with(keyed("there"), |rare| rare.flow = None)]).await;
    let committed = world.commit(flow_of(&a, vec![keyed("asked"), step(&world, "child", &["asked"])])).await;
    assert_eq!(committed.jobs[0].id, id("there"));
    assert!(!world.is_kept(&a, &id("asked")).await);
    next(&world, "there", result("7")).await;
    let child = next(&world, "child", done()).await;
    assert_eq!(seen(&child.parents), [("there".to_owned(), State::Completed, Some("7"))]);
}

async fn a_member_superseded_in_its_own_commit_fails_the_flow(world: World) {
    let a = tenant("a");
    let keyed = |name: &str| with(step(&world, name, &[]), |rare| rare.unique = unique(OnConflict::Supersede));
    begin(&world, &a, vec![keyed("one"), keyed("two"), step(&world, "child", &["one"])]).await;
    assert_eq!(job(&world, "child").await.state, State::Cancelled);
    next(&world, "two", done()).await;
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.counts), (FlowState::Failed, [(State::Completed, 1), (State::Cancelled, 2)].into()));
}

async fn effects_may_be_a_flow(world: World) {
    let a = tenant("a");
    world.enqueue(&a, vec![with(step(&world, "maker", &[]), |rare| rare.flow = None)]).await;
    let maker = world.claim_one().await;
    // The job itself may be waited for: it has ended by then.
    let effects = flow_of(&a, vec![step(&world, "one", &["maker"]), step(&world, "two", &["one"])]);
    let settled = world.try_settle(&maker, result("7"), Some(effects)).await.expect("settle");
    assert_eq!(settled.effects.flow, Some(id("f")));
    assert_eq!((settled.effects.jobs[0].state, settled.effects.jobs[1].state), (State::Pending, State::Blocked));
    let one = next(&world, "one", done()).await;
    assert_eq!(seen(&one.parents), [("maker".to_owned(), State::Completed, Some("7"))]);
    next(&world, "two", done()).await;
    assert_eq!(flow(&world, &a).await.state, FlowState::Completed);
}

async fn a_delayed_child_waits_for_both(world: World) {
    let a = tenant("a");
    let later = Enqueue { run_at: Some(world.now() + HOUR), ..step(&world, "two", &["one"]) };
    begin(&world, &a, vec![step(&world, "one", &[]), later]).await;
    next(&world, "one", done()).await;
    assert_eq!(job(&world, "two").await.state, State::Scheduled);
    world.advance(HOUR).await;
    next(&world, "two", done()).await;
}

async fn tenants_have_flows_of_their_own(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    for own in [&a, &b] {
        begin(&world, own, vec![step(&world, "one", &[]), step(&world, "two", &["one"])]).await;
    }
    let of = |tenant: &TenantId| Claim { tenant: Some(tenant.clone()), ..any() };
    let leased = world.claim(of(&a)).await;
    world.settle(&leased[0], fail()).await;
    assert_eq!((flow(&world, &a).await.state, flow(&world, &b).await.state), (FlowState::Failed, FlowState::Running));
    let mut leased = world.claim(any()).await;
    assert_eq!((job_ids(&leased), &leased[0].job.tenant), (vec!["one".to_owned()], &b));
    world.settle(&leased.remove(0), done()).await;
    assert_eq!(job_ids(&world.claim(of(&a)).await), Vec::<String>::new());
    assert_eq!(job_ids(&world.claim(of(&b)).await), ["two"]);
    let nobody: Option<Flow> =
        within(world.store.flow(&tenant("c"), &Id::parse("f").expect("id"))).await.expect("read");
    assert!(nobody.is_none());
}

/// Jobs of two flows in one commit, of which the caller asked for the first.
fn two_flows(world: &World, tenant: &TenantId) -> Commit {
    let mut jobs = vec![step(world, "one", &[]), step(world, "two", &["one"])];
    jobs.push(with(step(world, "other", &[]), |rare| rare.flow = Some(id("g"))));
    let mut commit = in_flow("f", commit(tenant, Vec::new(), jobs));
    commit.asked_jobs = 2;
    commit.flows.push(FlowHead { id: id("g"), given_id: false, name: None, root: None });
    commit
}

async fn a_commit_begins_several_flows(world: World) {
    let a = tenant("a");
    let committed = world.commit(two_flows(&world, &a)).await;
    assert_eq!((committed.flow, committed.caused.flows), (Some(id("f")), vec![id("g")]));
    let other = within(world.store.flow(&a, &id("g"))).await.expect("read").expect("the other flow");
    assert_eq!((other.unfinished, other.jobs.len()), (1, 1));
    assert_eq!(flow(&world, &a).await.unfinished, 2);
    let leased = world.claim(any()).await;
    assert_eq!(job_ids(&leased), ["one", "other"]);
    world.settle(&leased[1], fail()).await;
    let other = within(world.store.flow(&a, &id("g"))).await.expect("read").expect("the other flow");
    assert_eq!((other.state, flow(&world, &a).await.state), (FlowState::Failed, FlowState::Running));
}

async fn a_known_event_begins_no_flow(world: World) {
    let a = tenant("a");
    let told = Append { given_id: true, ..world.event("told") };
    let mut commit = two_flows(&world, &a);
    (commit.events, commit.asked_events) = (vec![told], 1);
    (commit.asked_jobs, commit.asked_flows) = (0, 0);
    commit.jobs.iter_mut().for_each(|job| job.root = Some(0));
    commit.flows.iter_mut().for_each(|flow| flow.root = Some(0));
    let first = world.commit(commit.clone()).await;
    assert_eq!((first.flow, first.caused.flows.len(), first.caused.jobs.len()), (None, 2, 3));
    assert_eq!(first.caused.jobs[1].state, State::Blocked);
    for flow in &mut commit.flows {
        (flow.id, flow.given_id) = (id("another"), false);
    }
    let again = world.commit(commit).await;
    assert!(again.events[0].deduplicated && again.caused.flows.is_empty() && again.caused.jobs.is_empty());
    assert!(within(world.store.flow(&a, &id("another"))).await.expect("read").is_none());
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_flow_goes_on_after_a_restart() {
    let a = tenant("a");
    let mut disk = crate::disk::Disk::new();
    let opened = disk.open();
    begin(&opened.world, &a, saga(&opened.world)).await;
    next(&opened.world, "a", result("7")).await;
    opened.world.advance(MINUTE).await;
    drop(opened);
    for (name, verdict) in [("b", done()), ("c", fail()), ("undo-b", done()), ("undo-a", done())] {
        disk = disk.killed();
        let opened = disk.open();
        let leased = next(&opened.world, name, verdict).await;
        if name == "b" {
            assert_eq!(seen(&leased.parents), [("a".to_owned(), State::Completed, Some("7"))]);
        }
    }
    disk = disk.killed();
    let world = disk.open().world;
    assert!(world.claim(any()).await.is_empty());
    let shown = flow(&world, &a).await;
    assert_eq!((shown.state, shown.counts), (FlowState::Failed, [(State::Completed, 4), (State::Failed, 1)].into()));
}
