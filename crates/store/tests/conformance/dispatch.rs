//! Which job is next, and claims that wait for one.

use std::collections::HashSet;
use std::time::Duration;

use tidewire_core::Kind;
use tidewire_core::commit::Enqueue;
use tidewire_core::job::{Job, State, Verdict};
use tidewire_core::store::{Claim, Control};

use crate::world::{BACKOFF, HOUR, MINUTE, SECOND, World, any, code, commit, done, id, job_ids, retry, tenant, within};

every_engine![
    the_first_priority_comes_first,
    inside_a_priority_the_first_in_is_the_first_out,
    a_retried_job_waits_behind_those_that_were_due_before,
    tenants_take_turns,
    a_long_line_of_one_type_does_not_starve_a_tenant_of_another_type,
    a_tenant_that_comes_later_does_not_wait_behind_a_long_line,
    a_worker_gets_only_its_types,
    a_worker_gets_only_its_queues,
    a_bound_worker_gets_only_its_tenant,
    no_more_than_asked_for,
    a_claim_that_does_not_wait_is_answered_at_once,
    a_claim_waits_no_longer_than_it_said,
    a_waiting_claim_is_woken_by_a_commit,
    a_waiting_claim_is_woken_by_a_due_job,
    a_waiting_claim_is_woken_by_a_retry,
    a_waiting_claim_is_woken_by_an_operator,
    a_waiting_claim_is_woken_by_a_lost_worker,
    waiting_claims_are_served_in_the_order_they_came,
    a_waiting_claim_is_not_woken_by_what_it_does_not_want,
    a_claim_dropped_while_it_waits_takes_nothing,
    a_claim_dropped_after_it_was_answered_gives_back,
    two_thousand_jobs_come_out_complete_and_in_order,
    jobs_taken_back_behind_the_window_do_not_come_out,
    many_lanes_beyond_the_window_come_out_complete,
    a_redriven_job_is_due_when_it_was_redriven,
    only_so_many_claims_wait,
];

/// A job with a name, so that an order reads well.
fn named(world: &World, kind: &str, name: &str) -> Enqueue {
    Enqueue { id: id(name), given_id: true, ..world.job(kind) }
}

/// Everything that is due, one claim after the other.
async fn drain(world: &World, claim: Claim) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let leased = world.claim(Claim { max: 1, ..claim.clone() }).await;
        if leased.is_empty() {
            return names;
        }
        names.extend(job_ids(&leased));
    }
}

async fn the_first_priority_comes_first(world: World) {
    let a = tenant("a");
    for (name, priority) in [("p4", 4), ("p1", 1), ("p5", 5), ("p3", 3), ("p2", 2), ("p1-again", 1)] {
        // Types do not matter for the order.
        let kind = if priority % 2 == 0 { "even" } else { "odd" };
        world.enqueue(&a, vec![Enqueue { priority, ..named(&world, kind, name) }]).await;
        world.clock.advance(SECOND);
    }
    assert_eq!(drain(&world, any()).await, ["p1", "p1-again", "p2", "p3", "p4", "p5"]);
}

async fn inside_a_priority_the_first_in_is_the_first_out(world: World) {
    let a = tenant("a");
    let names: Vec<String> = (0..30).map(|number| format!("j{number}")).collect();
    let jobs = names.iter().enumerate().map(|(n, name)| named(&world, ["x", "y", "z"][n % 3], name)).collect();
    world.enqueue(&a, jobs).await;
    assert_eq!(job_ids(&world.claim(any()).await), names);
}

async fn a_retried_job_waits_behind_those_that_were_due_before(world: World) {
    let a = tenant("a");
    world.enqueue(&a, vec![named(&world, "x", "first")]).await;
    let first = world.claim_one().await;
    world.clock.advance(SECOND);
    world.enqueue(&a, vec![named(&world, "x", "second")]).await;
    world.clock.advance(SECOND);
    world.settle(&first, Verdict::Retry { error: String::new(), delay: Some(Duration::ZERO) }).await;
    world.clock.advance(SECOND);
    world.enqueue(&a, vec![named(&world, "x", "third")]).await;
    assert_eq!(drain(&world, any()).await, ["second", "first", "third"]);
}

async fn tenants_take_turns(world: World) {
    for (name, count) in [("a", 6), ("b", 2), ("c", 3)] {
        let jobs = (0..count).map(|number| named(&world, "x", &format!("{name}{number}"))).collect();
        world.enqueue(&tenant(name), jobs).await;
    }
    let order = drain(&world, any()).await;
    assert_eq!(order, ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "c2", "a3", "a4", "a5"]);
}

async fn a_long_line_of_one_type_does_not_starve_a_tenant_of_another_type(world: World) {
    let jobs = (0..50).map(|number| named(&world, "import", &format!("a{number}"))).collect();
    world.enqueue(&tenant("a"), jobs).await;
    world.clock.advance(SECOND);
    world.enqueue(&tenant("b"), vec![named(&world, "email", "b0"), named(&world, "import", "b1")]).await;
    world.enqueue(&tenant("c"), vec![named(&world, "email", "c0")]).await;
    let order = drain(&world, any()).await;
    for late in ["b0", "b1", "c0"] {
        let place = order.iter().position(|name| name == late).expect("it comes");
        assert!(place < 8, "{late} came as number {place}: {order:?}");
    }
    assert_eq!(order.len(), 53);
}

async fn a_tenant_that_comes_later_does_not_wait_behind_a_long_line(world: World) {
    let jobs = (0..600).map(|number| named(&world, "x", &format!("a{number}"))).collect();
    world.enqueue(&tenant("a"), jobs).await;
    assert_eq!(world.claim(any()).await.len(), 100);
    world.enqueue(&tenant("b"), vec![named(&world, "x", "b0")]).await;
    let next = job_ids(&world.claim(Claim { max: 3, ..any() }).await);
    assert!(next.contains(&"b0".to_owned()), "{next:?}");
}

async fn a_worker_gets_only_its_types(world: World) {
    let a = tenant("a");
    let jobs = ["x", "y", "z", "x"].iter().zip(["x1", "y1", "z1", "x2"]).map(|(kind, name)| named(&world, kind, name));
    world.enqueue(&a, jobs.collect()).await;
    let kinds = |kinds: &[&str]| Claim { kinds: kinds.iter().map(|kind| (*kind).into()).collect(), ..any() };
    assert_eq!(job_ids(&world.claim(kinds(&["y", "z"])).await), ["y1", "z1"]);
    assert!(world.claim(kinds(&["y", "never-seen"])).await.is_empty());
    assert_eq!(job_ids(&world.claim(kinds(&[])).await), ["x1", "x2"]);
}

async fn a_worker_gets_only_its_queues(world: World) {
    let a = tenant("a");
    for queue in ["mail", "slow", "q"] {
        world.enqueue(&a, vec![Enqueue { queue: queue.into(), ..named(&world, "x", queue) }]).await;
    }
    let queues = |queues: &[&str]| Claim { queues: queues.iter().map(|queue| (*queue).into()).collect(), ..any() };
    assert_eq!(job_ids(&world.claim(queues(&["slow"])).await), ["slow"]);
    let mut rest = job_ids(&world.claim(queues(&["slow", "mail", "q"])).await);
    rest.sort();
    assert_eq!(rest, ["mail", "q"]);
}

async fn a_bound_worker_gets_only_its_tenant(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    world.enqueue(&a, vec![named(&world, "x", "a0"), Enqueue { priority: 1, ..named(&world, "x", "a1") }]).await;
    world.enqueue(&b, vec![named(&world, "x", "b0")]).await;
    let bound = |name| Claim { tenant: Some(tenant(name)), ..any() };
    assert_eq!(job_ids(&world.claim(bound("b")).await), ["b0"]);
    assert!(world.claim(bound("b")).await.is_empty());
    assert!(world.claim(bound("never-seen")).await.is_empty());
    assert_eq!(job_ids(&world.claim(bound("a")).await), ["a1", "a0"]);
}

async fn no_more_than_asked_for(world: World) {
    let a = tenant("a");
    world.enqueue(&a, (0..10).map(|_| world.job("x")).collect()).await;
    let mut sizes = Vec::new();
    for max in [3, 1, 5, 5] {
        sizes.push(world.claim(Claim { max, ..any() }).await.len());
    }
    assert_eq!(sizes, [3, 1, 5, 1]);
}

async fn a_claim_that_does_not_wait_is_answered_at_once(world: World) {
    assert!(world.claim(any()).await.is_empty());
    let a = tenant("a");
    world.enqueue(&a, vec![Enqueue { run_at: Some(world.now() + SECOND), ..world.job("x") }]).await;
    assert!(world.claim(any()).await.is_empty());
}

async fn a_claim_waits_no_longer_than_it_said(world: World) {
    let waiting = world.waiting(Claim { wait: MINUTE, ..any() }).await;
    world.advance(MINUTE - SECOND).await;
    assert!(!waiting.is_finished());
    world.advance(SECOND).await;
    assert!(within(waiting).await.expect("claim").is_empty());
    // It took its interest with it.
    world.enqueue(&tenant("a"), vec![world.job("x")]).await;
    assert_eq!(world.claim(any()).await.len(), 1);
}

async fn a_waiting_claim_is_woken_by_a_commit(world: World) {
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.enqueue(&tenant("a"), vec![named(&world, "x", "j1"), named(&world, "x", "j2")]).await;
    let leased = within(waiting).await.expect("claim");
    assert_eq!(job_ids(&leased), ["j1", "j2"]);
    assert_eq!((leased[0].job.state, leased[0].job.attempt), (State::Processing, 1));
    assert_eq!(world.state(&tenant("a"), &id("j1")).await, State::Processing);
    assert_eq!(world.settle(&leased[0], done()).await, State::Completed);
}

async fn a_waiting_claim_is_woken_by_a_due_job(world: World) {
    let due = world.now() + MINUTE;
    world.enqueue(&tenant("a"), vec![Enqueue { run_at: Some(due), ..named(&world, "x", "j1") }]).await;
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.advance(MINUTE - SECOND).await;
    assert!(!waiting.is_finished());
    world.advance(SECOND).await;
    let leased = within(waiting).await.expect("claim");
    assert_eq!((job_ids(&leased), leased[0].job.run_at), (vec!["j1".to_owned()], due));
}

async fn a_waiting_claim_is_woken_by_a_retry(world: World) {
    world.enqueue_one(&tenant("a")).await;
    let first = world.claim_one().await;
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    assert_eq!(world.settle(&first, retry("boom")).await, State::Scheduled);
    world.advance(BACKOFF).await;
    let leased = within(waiting).await.expect("claim");
    assert_eq!((&leased[0].job.id, leased[0].job.attempt), (&first.job.id, 2));
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    assert_eq!(world.settle(&leased[0], Verdict::Release).await, State::Pending);
    assert_eq!(within(waiting).await.expect("claim")[0].job.attempt, 2);
}

async fn a_waiting_claim_is_woken_by_an_operator(world: World) {
    let a = tenant("a");
    world.enqueue(&a, vec![Enqueue { run_at: Some(world.now() + HOUR), ..named(&world, "x", "j1") }]).await;
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.control(&a, &id("j1"), Control::Promote).await.expect("promote");
    let leased = within(waiting).await.expect("claim");
    assert_eq!(world.settle(&leased[0], Verdict::Fail { error: "no".to_owned() }).await, State::Failed);
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.control(&a, &id("j1"), Control::Redrive).await.expect("redrive");
    assert_eq!(job_ids(&within(waiting).await.expect("claim")), ["j1"]);
}

async fn a_waiting_claim_is_woken_by_a_lost_worker(world: World) {
    world.enqueue_one(&tenant("a")).await;
    let first = world.claim_one().await;
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    world.advance(MINUTE).await;
    let leased = within(waiting).await.expect("claim");
    assert_eq!((&leased[0].job.id, leased[0].job.attempt), (&first.job.id, 2));
}

async fn waiting_claims_are_served_in_the_order_they_came(world: World) {
    let claim = || Claim { wait: HOUR, max: 1, ..any() };
    let (first, second, third) =
        (world.waiting(claim()).await, world.waiting(claim()).await, world.waiting(claim()).await);
    for (name, waiting) in [("j1", first), ("j2", second), ("j3", third)] {
        world.enqueue(&tenant("a"), vec![named(&world, "x", name)]).await;
        assert_eq!(job_ids(&within(waiting).await.expect("claim")), [name]);
    }
}

async fn a_waiting_claim_is_not_woken_by_what_it_does_not_want(world: World) {
    let wanted =
        Claim { wait: HOUR, tenant: Some(tenant("b")), kinds: vec!["y".into()], queues: vec!["q".into()], ..any() };
    let waiting = world.waiting(wanted).await;
    world.enqueue(&tenant("a"), vec![named(&world, "y", "tenant")]).await;
    world.enqueue(&tenant("b"), vec![named(&world, "x", "type")]).await;
    world.enqueue(&tenant("b"), vec![Enqueue { queue: "slow".into(), ..named(&world, "y", "queue") }]).await;
    world.turn().await;
    assert!(!waiting.is_finished());
    world.enqueue(&tenant("b"), vec![named(&world, "y", "it")]).await;
    assert_eq!(job_ids(&within(waiting).await.expect("claim")), ["it"]);
}

async fn a_claim_dropped_while_it_waits_takes_nothing(world: World) {
    let waiting = world.waiting(Claim { wait: HOUR, ..any() }).await;
    waiting.abort();
    assert!(waiting.await.expect_err("dropped").is_cancelled());
    world.enqueue_one(&tenant("a")).await;
    assert_eq!(world.claim_one().await.job.attempt, 1);
}

/// The answer is on its way, but nobody looks at it: the job comes back with its attempt, however far the answer had got.
async fn a_claim_dropped_after_it_was_answered_gives_back(world: World) {
    let a = tenant("a");
    for round in 0..20 {
        world.enqueue(&a, vec![named(&world, "x", &format!("j{round}"))]).await;
        let unwanted = world.store.claim(Claim { local: round % 2 == 0, worker: "gone".into(), ..any() });
        if round % 4 < 2 {
            // The writer has answered by now; the answer was not looked at.
            world.turn().await;
        }
        drop(unwanted);
        let leased = world.waiting(Claim { wait: HOUR, ..any() }).await;
        let leased = within(leased).await.expect("claim");
        assert_eq!((leased.len(), leased[0].job.attempt), (1, 1), "round {round}");
        world.settle(&leased[0], done()).await;
        assert!(world.stored(&a, &leased[0].job.id).await.1.is_empty(), "a run that never began did not fail");
    }
}

async fn two_thousand_jobs_come_out_complete_and_in_order(world: World) {
    let a = tenant("a");
    let begin = world.now();
    // Scattered, and the same every time. Each lane has far more than an engine keeps at hand.
    let scatter = |number: u32| number.wrapping_mul(7919) % 1009;
    let asked = |number: u32| {
        let delay = if number % 4 == 3 { scatter(number + 3) } else { 0 };
        (scatter(number) as u8 % 2 + 1, begin + SECOND * delay)
    };
    for chunk in 0..4 {
        let job = |number| {
            let (priority, run_at) = asked(number);
            Enqueue { priority, run_at: Some(run_at), ..named(&world, "x", &format!("j{number}")) }
        };
        world.enqueue(&a, (chunk * 500..(chunk + 1) * 500).map(job).collect()).await;
    }
    let number = |job: &Job| job.id.to_string()[1..].parse::<u32>().expect("number");
    let mut waiting: HashSet<u32> = (0..2_000).collect();
    // What is due is taken while more becomes due: windows drain, are filled from behind and pushed into from the front.
    while !waiting.is_empty() {
        let due = |number: &u32| asked(*number).1 <= world.now();
        let mut expected: Vec<u32> = waiting.iter().copied().filter(due).collect();
        expected.sort_unstable_by_key(|number| (asked(*number), *number));
        expected.truncate(17);
        let leased = world.claim(Claim { max: 17, ..any() }).await;
        assert_eq!(leased.iter().map(|leased| number(&leased.job)).collect::<Vec<_>>(), expected);
        for leased in leased {
            waiting.remove(&number(&leased.job));
            world.settle(&leased, done()).await;
        }
        world.clock.advance(SECOND * 7);
    }
}

async fn jobs_taken_back_behind_the_window_do_not_come_out(world: World) {
    let a = tenant("a");
    world.enqueue(&a, (0..700).map(|number| named(&world, "x", &format!("j{number}"))).collect()).await;
    for number in (0..700).filter(|number| number % 3 != 0) {
        world.control(&a, &id(&format!("j{number}")), Control::Cancel).await.expect("cancel");
    }
    let expected: Vec<_> = (0..700).step_by(3).map(|number| format!("j{number}")).collect();
    assert_eq!(drain(&world, any()).await, expected);
}

async fn many_lanes_beyond_the_window_come_out_complete(world: World) {
    let mut total = 0;
    for name in ["a", "b", "c"] {
        for kind in ["x", "y"] {
            let jobs = (0..300_u32).map(|number| Enqueue { priority: number as u8 % 2 + 1, ..world.job(kind) });
            total += world.enqueue(&tenant(name), jobs.collect()).await.len();
        }
    }
    let mut seen = HashSet::new();
    let mut last = 0;
    loop {
        let leased = world.claim(Claim { max: 50, ..any() }).await;
        let per_tenant = |name| leased.iter().filter(|leased| leased.job.tenant == tenant(name)).count();
        let counts = ["a", "b", "c"].map(per_tenant);
        assert!(counts.iter().max().expect("three") - counts.iter().min().expect("three") <= 1, "{counts:?}");
        for leased in &leased {
            assert!(leased.job.priority >= last);
            last = leased.job.priority;
            assert!(seen.insert((leased.job.tenant.clone(), leased.job.id.clone())));
        }
        if leased.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), total);
}

async fn a_redriven_job_is_due_when_it_was_redriven(world: World) {
    let a = tenant("a");
    world.enqueue(&a, vec![named(&world, "x", "first")]).await;
    world.clock.advance(SECOND);
    world.commit(commit(&a, Vec::new(), vec![named(&world, "x", "second")])).await;
    world.control(&a, &id("first"), Control::Cancel).await.expect("cancel");
    world.clock.advance(SECOND);
    world.control(&a, &id("first"), Control::Redrive).await.expect("redrive");
    assert_eq!(drain(&world, any()).await, ["second", "first"]);
}

async fn only_so_many_claims_wait(world: World) {
    const MOST: usize = 16_384;
    let claim = || world.store.claim(Claim { wait: HOUR, ..any() });
    let mut waiting: Vec<_> = (0..MOST).map(|_| claim()).collect();
    let refused = within(claim()).await.expect_err("one too many");
    assert_eq!((refused.code(), refused.kind(), refused.is_retryable()), ("store.busy", Kind::Limited, true));
    // Those that wait are served as ever, and make room.
    let first = waiting.remove(0);
    world.enqueue_one(&tenant("a")).await;
    assert_eq!(within(first).await.expect("served").len(), 1);
    waiting.push(claim());
    assert_eq!(code(within(claim()).await), "store.busy");
    // Nobody waits for these any more: they hold no place, even before a turn has looked at them.
    world.append(&tenant("a"), vec![world.event("the turn before has ended")]).await;
    drop(waiting);
    assert!(within(world.store.claim(any())).await.expect("there is room").is_empty());
}
