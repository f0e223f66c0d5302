//! Unique keys: who keeps whom out, what becomes of the later one, and when the key is free again.

use tidewire_core::commit::{After, Enqueue, Enqueued};
use tidewire_core::job::{Conflict, OnConflict, Rare, State, States, Unique, Verdict};
use tidewire_core::store::{Claim, Control, Leased, QueueLimits};
use tidewire_core::{Id, Json, TenantId};

use crate::world::{BACKOFF, HOUR, MINUTE, SECOND, World, any, commit, done, job_ids, retry, tenant, within};

every_engine![
    each_policy_does_what_it_says_in_each_state,
    a_replaced_job_has_the_data_priority_and_time_of_the_later_one,
    an_extended_job_keeps_its_data,
    a_replaced_job_is_leased_once_and_at_its_new_priority,
    one_that_was_replaced_superseded_or_extended_is_leased_right_in_the_same_turn,
    a_key_meets_itself_in_one_commit,
    behind_a_running_one_there_is_one_follow_up_with_the_newest_data,
    a_superseded_run_is_told_to_stop_and_the_new_one_waits_for_its_end,
    a_cancelled_follow_up_leaves_the_key_to_the_running_one,
    a_follow_up_that_waits_for_others_too_waits_for_all_of_them,
    a_follow_up_that_waits_for_the_running_one_anyway_waits_for_it_once,
    one_that_waits_for_others_meets_its_key_in_its_own_commit,
    where_only_a_running_one_counts_there_is_still_one_follow_up,
    the_states_say_who_keeps_others_out,
    a_completed_one_keeps_others_out_while_it_is_kept_if_its_states_say_so,
    a_window_throttles,
    a_window_holds_when_its_job_is_forgotten,
    a_forgotten_job_says_how_it_ended_and_its_failure_is_one_for_those_that_wait_for_it,
    a_window_ends_when_somebody_deletes_its_job,
    one_that_adds_no_waiting_job_is_taken_by_a_full_backlog,
    a_later_time_debounces,
    tenants_and_types_have_keys_of_their_own,
];

const POLICIES: [OnConflict; 5] =
    [OnConflict::Keep, OnConflict::Replace, OnConflict::Extend, OnConflict::Latest, OnConflict::Supersede];

fn unique(on_conflict: OnConflict) -> Unique {
    Unique { key: "k".into(), states: States::UNFINISHED, window: None, on_conflict }
}

fn states(text: &str) -> States {
    serde_json::from_str(text).expect("states")
}

/// A job of type `work` with `n` as its data.
fn asked(world: &World, n: u32, unique: Unique) -> Enqueue {
    let data = Json::parse(n.to_string()).expect("json");
    let rare = Some(Box::new(Rare { unique: Some(unique), ..Rare::default() }));
    Enqueue { data, rare, ..world.job("work") }
}

async fn ask(world: &World, tenant: &TenantId, n: u32, on_conflict: OnConflict) -> Enqueued {
    world.enqueue(tenant, vec![asked(world, n, unique(on_conflict))]).await.remove(0)
}

fn of(tenant: &TenantId) -> Claim {
    Claim { tenant: Some(tenant.clone()), kinds: vec!["work".into()], ..any() }
}

fn numbers(leased: &[Leased]) -> Vec<&str> {
    leased.iter().map(|leased| leased.job.data.get()).collect()
}

/// A job of the key that is in `state`.
async fn bring(world: &World, tenant: &TenantId, state: State) -> Id {
    let mut job = Enqueue { attempts: 1, ..asked(world, 1, unique(OnConflict::Keep)) };
    match state {
        State::Scheduled => job.run_at = Some(world.now() + HOUR),
        State::Blocked => {
            let parent = world.enqueue(tenant, vec![world.job("other")]).await.remove(0).id;
            job.after = vec![After { id: parent, ignores_failure: false }];
        }
        _ => {}
    }
    let id = world.enqueue(tenant, vec![job]).await.remove(0).id;
    let end = match state {
        State::Scheduled | State::Pending | State::Blocked => None,
        State::Cancelled => {
            world.control(tenant, &id, Control::Cancel).await.expect("cancel");
            None
        }
        State::Processing => {
            assert_eq!(world.claim(of(tenant)).await.len(), 1);
            None
        }
        State::Completed => Some(done()),
        State::Failed => Some(Verdict::Fail { error: "no".to_owned() }),
        State::Dead => Some(retry("boom")),
    };
    if let Some(verdict) = end {
        let leased = world.claim(of(tenant)).await;
        world.settle(&leased[0], verdict).await;
    }
    assert_eq!(world.state(tenant, &id).await, state);
    id
}

async fn each_policy_does_what_it_says_in_each_state(world: World) {
    use Conflict::{Extended, Kept, Queued, Replaced, Superseded};
    use State::{Blocked, Cancelled, Pending, Processing};
    for state in State::ALL {
        for policy in POLICIES {
            let own = tenant(&format!("{state}-{policy:?}").to_lowercase());
            let there = bring(&world, &own, state).await;
            let answer = ask(&world, &own, 2, policy).await;
            // What became of the later one, whether it is the one that is there, its state, and the state of the one that is there.
            let (conflict, is_same, its_state, state_there) = match (policy, state) {
                (_, state) if state.is_final() => (None, false, Pending, state),
                (OnConflict::Keep, state) => (Some(Kept), true, state, state),
                (OnConflict::Replace | OnConflict::Extend, Processing) => (Some(Kept), true, Processing, Processing),
                (OnConflict::Latest, Processing) => (Some(Queued), false, Blocked, Processing),
                (OnConflict::Supersede, Processing) => (Some(Superseded), false, Blocked, Processing),
                (OnConflict::Supersede, _) => (Some(Superseded), false, Pending, Cancelled),
                (OnConflict::Extend, Blocked) => (Some(Extended), true, Blocked, Blocked),
                (OnConflict::Extend, _) => (Some(Extended), true, Pending, Pending),
                (_, Blocked) => (Some(Replaced), true, Blocked, Blocked),
                _ => (Some(Replaced), true, Pending, Pending),
            };
            let seen = (answer.conflict, answer.deduplicated, answer.id == there, answer.state);
            assert_eq!(seen, (conflict, is_same, is_same, its_state), "{policy:?} against {state}");
            assert_eq!(world.state(&own, &there).await, state_there, "{policy:?} against {state}");
            assert_eq!(world.state(&own, &answer.id).await, its_state, "{policy:?} against {state}");
        }
    }
}

async fn a_replaced_job_has_the_data_priority_and_time_of_the_later_one(world: World) {
    let a = tenant("a");
    let there = ask(&world, &a, 1, OnConflict::Keep).await.id;
    let later = Enqueue {
        priority: 1,
        run_at: Some(world.now() + MINUTE),
        attempts: 9,
        user_id: Some("ann".into()),
        ..asked(&world, 2, unique(OnConflict::Replace))
    };
    let answer = world.enqueue(&a, vec![later.clone()]).await.remove(0);
    assert_eq!((answer.id, answer.state), (there.clone(), State::Scheduled));
    let (job, _) = world.stored(&a, &there).await;
    assert_eq!((job.data.get(), job.priority, job.attempts), ("2", 1, 9));
    assert_eq!((Some(job.run_at), job.user_id.as_deref()), (later.run_at, Some("ann")));
    assert_eq!(job.created_at, world.now());
}

async fn an_extended_job_keeps_its_data(world: World) {
    let a = tenant("a");
    let there = ask(&world, &a, 1, OnConflict::Keep).await.id;
    let run_at = Some(world.now() + MINUTE);
    let later = Enqueue { priority: 1, run_at, ..asked(&world, 2, unique(OnConflict::Extend)) };
    world.enqueue(&a, vec![later]).await;
    let (job, _) = world.stored(&a, &there).await;
    assert_eq!((job.data.get(), job.priority, job.state), ("1", 3, State::Scheduled));
    assert_eq!(Some(job.run_at), run_at);
    assert!(world.claim(any()).await.is_empty());
    world.advance(MINUTE).await;
    assert_eq!(numbers(&world.claim(any()).await), ["1"]);
}

async fn a_replaced_job_is_leased_once_and_at_its_new_priority(world: World) {
    for (own, from, to, order) in [("down", 1, 5, ["7", "2"]), ("up", 5, 1, ["2", "7"])] {
        let own = tenant(own);
        let with = |n, priority, policy| Enqueue { priority, ..asked(&world, n, unique(policy)) };
        world.enqueue(&own, vec![with(1, from, OnConflict::Keep)]).await;
        world.enqueue(&own, vec![Enqueue { rare: None, ..with(7, 3, OnConflict::Keep) }]).await;
        world.enqueue(&own, vec![with(2, to, OnConflict::Replace)]).await;
        let mut leased = Vec::new();
        for _ in 0..3 {
            leased.extend(world.claim(Claim { max: 1, ..of(&own) }).await);
        }
        assert_eq!(numbers(&leased), order);
    }
}

async fn one_that_was_replaced_superseded_or_extended_is_leased_right_in_the_same_turn(world: World) {
    let later = Some(world.now() + MINUTE);
    for (policy, run_at, expected) in [
        (OnConflict::Keep, None, vec!["1"]),
        (OnConflict::Replace, None, vec!["2"]),
        (OnConflict::Latest, None, vec!["2"]),
        (OnConflict::Supersede, None, vec!["2"]),
        (OnConflict::Extend, later, vec![]),
        (OnConflict::Latest, later, vec![]),
    ] {
        let own = tenant(&format!("{policy:?}{}", expected.len()).to_lowercase());
        let held = world.hold().await;
        let first = world.store.commit(commit(&own, Vec::new(), vec![asked(&world, 1, unique(OnConflict::Keep))]));
        let second = Enqueue { run_at, ..asked(&world, 2, unique(policy)) };
        let second = world.store.commit(commit(&own, Vec::new(), vec![second]));
        let claim = world.store.claim(of(&own));
        drop(held);
        within(first).await.expect("first");
        within(second).await.expect("second");
        assert_eq!(numbers(&within(claim).await.expect("claim")), expected, "{policy:?}");
        assert!(world.claim(of(&own)).await.is_empty(), "{policy:?}");
    }
}

async fn a_key_meets_itself_in_one_commit(world: World) {
    for (policy, conflict, leased) in [
        (OnConflict::Keep, Conflict::Kept, "1"),
        (OnConflict::Replace, Conflict::Replaced, "2"),
        (OnConflict::Extend, Conflict::Extended, "1"),
        (OnConflict::Latest, Conflict::Replaced, "2"),
        (OnConflict::Supersede, Conflict::Superseded, "2"),
    ] {
        let own = tenant(&format!("{policy:?}").to_lowercase());
        let jobs = vec![asked(&world, 1, unique(policy)), asked(&world, 2, unique(policy))];
        let answers = world.enqueue(&own, jobs).await;
        assert_eq!((answers[0].conflict, answers[1].conflict), (None, Some(conflict)), "{policy:?}");
        assert_eq!(answers[0].id == answers[1].id, policy != OnConflict::Supersede);
        assert_eq!(numbers(&world.claim(of(&own)).await), [leased], "{policy:?}");
        assert!(world.claim(of(&own)).await.is_empty(), "{policy:?}");
    }
}

async fn behind_a_running_one_there_is_one_follow_up_with_the_newest_data(world: World) {
    let a = tenant("a");
    ask(&world, &a, 1, OnConflict::Latest).await;
    let running = world.claim_one().await;
    let follow_up = ask(&world, &a, 2, OnConflict::Latest).await;
    assert_eq!(follow_up.conflict, Some(Conflict::Queued));
    for n in 3..=5 {
        let answer = ask(&world, &a, n, OnConflict::Latest).await;
        assert_eq!((answer.id, answer.conflict), (follow_up.id.clone(), Some(Conflict::Replaced)));
    }
    assert!(world.claim(any()).await.is_empty());
    // A retry is not its end.
    assert_eq!(world.settle(&running, retry("boom")).await, State::Scheduled);
    assert!(world.claim(any()).await.is_empty());
    world.advance(BACKOFF).await;
    let again = world.claim(any()).await;
    assert_eq!(numbers(&again), ["1"]);
    world.settle(&again[0], done()).await;
    let next = world.claim(any()).await;
    assert_eq!((job_ids(&next), numbers(&next)), (vec![follow_up.id.to_string()], vec!["5"]));
    assert!(world.claim(any()).await.is_empty());
    // Whoever comes now waits for the follow-up, which is the running one.
    assert_eq!(ask(&world, &a, 6, OnConflict::Latest).await.conflict, Some(Conflict::Queued));
    world.settle(&next[0], Verdict::Fail { error: "no".to_owned() }).await;
    let last = world.claim_one().await;
    assert_eq!(last.job.data.get(), "6");
    world.settle(&last, done()).await;
    assert_eq!(ask(&world, &a, 7, OnConflict::Latest).await.conflict, None);
}

async fn a_superseded_run_is_told_to_stop_and_the_new_one_waits_for_its_end(world: World) {
    let a = tenant("a");
    ask(&world, &a, 1, OnConflict::Supersede).await;
    let running = world.claim_one().await;
    assert!(!world.try_renew(&running, MINUTE).await.expect("renew").cancelled);
    let second = ask(&world, &a, 2, OnConflict::Supersede).await;
    assert!(world.try_renew(&running, MINUTE).await.expect("renew").cancelled);
    // The next one takes the place of the one that waits, and waits in it.
    let third = ask(&world, &a, 3, OnConflict::Supersede).await;
    assert_eq!((third.conflict, third.state), (Some(Conflict::Superseded), State::Blocked));
    let (second, _) = world.stored(&a, &second.id).await;
    assert_eq!(second.state, State::Cancelled);
    assert!(second.error.expect("why").contains(&format!("superseded by job {}", third.id)));
    assert!(world.claim(any()).await.is_empty());
    // It does not come back for a retry.
    assert_eq!(world.settle(&running, retry("stopped")).await, State::Cancelled);
    assert_eq!(numbers(&world.claim(any()).await), ["3"]);
}

async fn a_cancelled_follow_up_leaves_the_key_to_the_running_one(world: World) {
    let a = tenant("a");
    let first = ask(&world, &a, 1, OnConflict::Latest).await.id;
    let running = world.claim_one().await;
    let second = ask(&world, &a, 2, OnConflict::Latest).await.id;
    world.control(&a, &second, Control::Cancel).await.expect("cancel");
    let kept = ask(&world, &a, 3, OnConflict::Keep).await;
    assert_eq!((kept.id, kept.conflict), (first, Some(Conflict::Kept)));
    let third = ask(&world, &a, 4, OnConflict::Latest).await;
    assert_eq!((third.conflict, third.state), (Some(Conflict::Queued), State::Blocked));
    assert!(world.claim(any()).await.is_empty());
    world.settle(&running, done()).await;
    assert_eq!(numbers(&world.claim(any()).await), ["4"]);
}

async fn a_follow_up_that_waits_for_others_too_waits_for_all_of_them(world: World) {
    for (own, running_first) in [("one", true), ("two", false)] {
        let own = tenant(own);
        ask(&world, &own, 1, OnConflict::Latest).await;
        let running = world.claim(of(&own)).await.remove(0);
        let parent = world.enqueue(&own, vec![world.job("other")]).await.remove(0).id;
        let after = vec![After { id: parent, ignores_failure: false }];
        let second = Enqueue { after, ..asked(&world, 2, unique(OnConflict::Latest)) };
        let second = world.enqueue(&own, vec![second]).await.remove(0).id;
        let parent = world.claim(Claim { tenant: Some(own.clone()), ..any() }).await.remove(0);
        let (one, other) = if running_first { (running, parent) } else { (parent, running) };
        world.settle(&one, done()).await;
        assert_eq!(world.state(&own, &second).await, State::Blocked);
        world.settle(&other, done()).await;
        assert_eq!(world.state(&own, &second).await, State::Pending);
    }
}

async fn a_follow_up_that_waits_for_the_running_one_anyway_waits_for_it_once(world: World) {
    let a = tenant("a");
    let first = ask(&world, &a, 1, OnConflict::Latest).await.id;
    let running = world.claim_one().await;
    let after = vec![After { id: first, ignores_failure: true }];
    world.enqueue(&a, vec![Enqueue { after, ..asked(&world, 2, unique(OnConflict::Latest)) }]).await;
    world.settle(&running, done()).await;
    assert_eq!(numbers(&world.claim(any()).await), ["2"]);
}

async fn one_that_waits_for_others_meets_its_key_in_its_own_commit(world: World) {
    for policy in [OnConflict::Keep, OnConflict::Replace, OnConflict::Extend, OnConflict::Latest] {
        let own = tenant(&format!("{policy:?}").to_lowercase());
        let parent = world.job("other");
        let after = vec![After { id: parent.id.clone(), ignores_failure: false }];
        let parent = Enqueue { given_id: true, ..parent };
        let first = Enqueue { after, ..asked(&world, 1, unique(policy)) };
        let answers = world.enqueue(&own, vec![first, asked(&world, 2, unique(policy)), parent]).await;
        assert_eq!((answers[0].state, &answers[1].id), (State::Blocked, &answers[0].id), "{policy:?}");
        assert!(world.claim(of(&own)).await.is_empty(), "{policy:?}");
        let parent = world.claim(Claim { tenant: Some(own.clone()), ..any() }).await.remove(0);
        world.settle(&parent, done()).await;
        assert_eq!(world.claim(of(&own)).await.len(), 1, "{policy:?}");
    }
    // One that was taken back before it was tied stays so.
    let own = tenant("supersede");
    let first = Enqueue { after: Vec::new(), ..asked(&world, 1, unique(OnConflict::Supersede)) };
    let parent = world.enqueue(&own, vec![world.job("other")]).await.remove(0).id;
    let after = vec![After { id: parent, ignores_failure: true }];
    let jobs = vec![Enqueue { after, ..first }, asked(&world, 2, unique(OnConflict::Supersede))];
    let answers = world.enqueue(&own, jobs).await;
    assert_eq!(world.state(&own, &answers[0].id).await, State::Cancelled);
    let parent = world.claim(Claim { tenant: Some(own.clone()), kinds: vec!["other".into()], ..any() }).await.remove(0);
    world.settle(&parent, done()).await;
    assert_eq!(world.state(&own, &answers[0].id).await, State::Cancelled);
    assert_eq!(numbers(&world.claim(of(&own)).await), ["2"]);
}

async fn where_only_a_running_one_counts_there_is_still_one_follow_up(world: World) {
    let a = tenant("a");
    let rule = || Unique { states: states("[\"processing\"]"), ..unique(OnConflict::Latest) };
    let ask = async |n| world.enqueue(&a, vec![asked(&world, n, rule())]).await.remove(0).conflict;
    assert_eq!(ask(1).await, None);
    let running = world.claim_one().await;
    assert_eq!(ask(2).await, Some(Conflict::Queued));
    assert_eq!(ask(3).await, Some(Conflict::Replaced));
    assert!(world.claim(any()).await.is_empty());
    world.settle(&running, done()).await;
    assert_eq!(numbers(&world.claim(any()).await), ["3"]);
}

async fn the_states_say_who_keeps_others_out(world: World) {
    let a = tenant("a");
    let rule = || Unique { states: States::WAITING, ..unique(OnConflict::Keep) };
    let ask = async |n| world.enqueue(&a, vec![asked(&world, n, rule())]).await.remove(0).conflict;
    assert_eq!(ask(1).await, None);
    assert_eq!(ask(2).await, Some(Conflict::Kept));
    let running = world.claim_one().await;
    assert_eq!(ask(3).await, None);
    // The end of the one whose key it was does not free the key of the other.
    world.settle(&running, done()).await;
    assert_eq!(ask(4).await, Some(Conflict::Kept));
    assert_eq!(numbers(&world.claim(any()).await), ["3"]);
}

async fn a_completed_one_keeps_others_out_while_it_is_kept_if_its_states_say_so(world: World) {
    let a = tenant("a");
    world
        .limit(QueueLimits { keep_completed: tidewire_core::catalog::Keep::Age(HOUR), ..QueueLimits::default() })
        .await;
    let states = states("[\"pending\", \"completed\"]");
    let rule = || Unique { states, window: Some(SECOND), ..unique(OnConflict::Keep) };
    let ask = async |n| world.enqueue(&a, vec![asked(&world, n, rule())]).await.remove(0).conflict;
    assert_eq!(ask(1).await, None);
    let running = world.claim_one().await;
    world.settle(&running, done()).await;
    assert_eq!(ask(2).await, Some(Conflict::Kept));
    // Longer than the window, and long enough for a purge.
    world.advance(MINUTE * 2).await;
    assert_eq!(ask(2).await, Some(Conflict::Kept));
    world.advance(HOUR).await;
    assert!(!world.is_kept(&a, &running.job.id).await);
    assert_eq!(ask(3).await, None);
}

async fn a_window_throttles(world: World) {
    let rule = || Unique { window: Some(MINUTE), ..unique(OnConflict::Keep) };
    for state in [State::Completed, State::Failed, State::Dead, State::Cancelled] {
        let own = tenant(state.as_str());
        let ask = async |n| {
            let job = Enqueue { attempts: 1, ..asked(&world, n, rule()) };
            world.enqueue(&own, vec![job]).await.remove(0)
        };
        let first = ask(1).await;
        if state == State::Cancelled {
            world.control(&own, &first.id, Control::Cancel).await.expect("cancel");
            assert_eq!(ask(2).await.conflict, None, "what was taken back keeps nobody out");
            continue;
        }
        let leased = world.claim(of(&own)).await.remove(0);
        let verdict = match state {
            State::Completed => done(),
            State::Failed => Verdict::Fail { error: "no".to_owned() },
            _ => retry("boom"),
        };
        assert_eq!(world.settle(&leased, verdict).await, state);
        world.advance(SECOND * 59).await;
        let kept = ask(2).await;
        assert_eq!((kept.id, kept.conflict, kept.state), (first.id, Some(Conflict::Kept), state));
        world.advance(SECOND).await;
        assert_eq!(ask(3).await.conflict, None);
    }
}

async fn a_window_holds_when_its_job_is_forgotten(world: World) {
    let a = tenant("a");
    world.limit(QueueLimits { keep_completed: tidewire_core::catalog::Keep::Count(0), ..QueueLimits::default() }).await;
    let rule = || Unique { window: Some(MINUTE), ..unique(OnConflict::Keep) };
    let ask = async |n| world.enqueue(&a, vec![asked(&world, n, rule())]).await.remove(0);
    let first = ask(1).await;
    let leased = world.claim_one().await;
    world.settle(&leased, done()).await;
    assert!(!world.is_kept(&a, &first.id).await);
    let kept = ask(2).await;
    assert_eq!((kept.id, kept.conflict, kept.state), (first.id, Some(Conflict::Kept), State::Completed));
    world.advance(MINUTE).await;
    assert_eq!(ask(3).await.conflict, None);
    assert_eq!(numbers(&world.claim(any()).await), ["3"]);
}

async fn a_forgotten_job_says_how_it_ended_and_its_failure_is_one_for_those_that_wait_for_it(world: World) {
    let a = tenant("a");
    let none = tidewire_core::catalog::Keep::Age(SECOND);
    world.limit(QueueLimits { keep_dead: none, ..QueueLimits::default() }).await;
    let rule = || Unique { window: Some(HOUR), ..unique(OnConflict::Keep) };
    let first = world.enqueue(&a, vec![asked(&world, 1, rule())]).await.remove(0);
    world.settle(&world.claim_one().await, Verdict::Fail { error: "no".to_owned() }).await;
    world.advance(MINUTE * 2).await;
    assert!(!world.is_kept(&a, &first.id).await);
    let again = asked(&world, 2, rule());
    let child = |ignores_failure| Enqueue {
        after: vec![After { id: again.id.clone(), ignores_failure }],
        ..world.job("child")
    };
    let (strict, lenient) = (child(false), child(true));
    let [known, strict, lenient] = world.enqueue(&a, vec![again, strict, lenient]).await.try_into().expect("three");
    assert_eq!((known.id, known.state), (first.id, State::Failed));
    assert_eq!((strict.state, lenient.state), (State::Cancelled, State::Pending));
}

async fn a_window_ends_when_somebody_deletes_its_job(world: World) {
    let a = tenant("a");
    let rule = || Unique { window: Some(HOUR), ..unique(OnConflict::Keep) };
    for end in [done(), Verdict::Fail { error: "no".to_owned() }] {
        let first = world.enqueue(&a, vec![asked(&world, 1, rule())]).await.remove(0);
        assert_eq!(first.conflict, None, "after {end:?}");
        world.settle(&world.claim_one().await, end).await;
        world.control(&a, &first.id, Control::Delete).await.expect("delete");
    }
    assert_eq!(world.enqueue(&a, vec![asked(&world, 1, rule())]).await[0].conflict, None);
}

async fn one_that_adds_no_waiting_job_is_taken_by_a_full_backlog(world: World) {
    let a = tenant("a");
    let bring =
        async |on_conflict| world.try_commit(commit(&a, Vec::new(), vec![asked(&world, 2, unique(on_conflict))])).await;
    world.limit(QueueLimits { backlog: Some(1), ..QueueLimits::default() }).await;
    ask(&world, &a, 1, OnConflict::Keep).await;
    for policy in POLICIES {
        assert_eq!(bring(policy).await.map(|_| ()).map_err(|error| error.code()), Ok(()), "{policy:?} while one waits");
    }
    let running = world.claim_one().await;
    assert_eq!(bring(OnConflict::Latest).await.expect("there is place").jobs[0].conflict, Some(Conflict::Queued));
    for policy in POLICIES {
        assert!(bring(policy).await.is_ok(), "{policy:?} while one waits behind the running one");
    }
    world.settle(&running, done()).await;
    let other = Unique { key: "other".into(), ..unique(OnConflict::Keep) };
    let refused = world.try_commit(commit(&a, Vec::new(), vec![asked(&world, 3, other)])).await;
    assert_eq!(crate::world::code(refused), "queue.backlog_full");
}

async fn a_later_time_debounces(world: World) {
    for (policy, last) in [(OnConflict::Extend, "1"), (OnConflict::Latest, "4"), (OnConflict::Replace, "4")] {
        let own = tenant(&format!("{policy:?}").to_lowercase());
        for n in 1..=4 {
            let run_at = Some(world.now() + SECOND * 10);
            world.enqueue(&own, vec![Enqueue { run_at, ..asked(&world, n, unique(policy)) }]).await;
            world.advance(SECOND * 9).await;
            assert!(world.claim(of(&own)).await.is_empty(), "{policy:?}");
        }
        world.advance(SECOND).await;
        assert_eq!(numbers(&world.claim(of(&own)).await), [last]);
    }
}

async fn tenants_and_types_have_keys_of_their_own(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    assert_eq!(ask(&world, &a, 1, OnConflict::Keep).await.conflict, None);
    assert_eq!(ask(&world, &b, 1, OnConflict::Supersede).await.conflict, None);
    let other = Enqueue { kind: "other".into(), ..asked(&world, 1, unique(OnConflict::Supersede)) };
    assert_eq!(world.enqueue(&a, vec![other]).await[0].conflict, None);
    assert_eq!(world.claim(any()).await.len(), 3);
    assert_eq!(ask(&world, &b, 2, OnConflict::Keep).await.conflict, Some(Conflict::Kept));
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_key_outlives_the_process() {
    let disk = crate::disk::Disk::new();
    let a = tenant("a");
    let first = disk.open();
    ask(&first.world, &a, 1, OnConflict::Latest).await;
    let running = first.world.claim_one().await;
    let follow_up = ask(&first.world, &a, 2, OnConflict::Latest).await.id;
    let left = disk.killed();
    let second = left.open();
    let world = &second.world;
    assert!(world.claim(any()).await.is_empty());
    let answer = ask(world, &a, 3, OnConflict::Latest).await;
    assert_eq!((answer.id, answer.conflict), (follow_up.clone(), Some(Conflict::Replaced)));
    world.control(&a, &follow_up, Control::Cancel).await.expect("cancel");
    assert_eq!(ask(world, &a, 4, OnConflict::Keep).await.id, running.job.id);
    assert_eq!(ask(world, &a, 5, OnConflict::Latest).await.conflict, Some(Conflict::Queued));
    world.settle(&running, done()).await;
    assert_eq!(numbers(&world.claim(any()).await), ["5"]);
}
