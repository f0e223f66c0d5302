//! What operators do to one job, and the counts they see.

use tidewire_core::TenantId;
use tidewire_core::commit::Enqueue;
use tidewire_core::job::{Held, Job, State, Verdict};
use tidewire_core::store::{Claim, Control, Counts, JobQuery};

use crate::world::{HOUR, SECOND, World, any, code, done, id, retry, tenant, within};

every_engine![
    a_dead_letter_is_redriven_with_all_its_attempts,
    a_waiting_job_is_cancelled,
    a_scheduled_job_is_promoted,
    a_running_job_shows_who_runs_it,
    the_wrong_state_is_refused_and_nothing_changes,
    an_unknown_job_is_not_found,
    counts_by_queue_state_and_tenant,
];

/// One job in each state, named after it.
async fn one_of_each(world: &World) {
    let a = tenant("a");
    for name in ["completed", "failed", "dead", "cancelled", "processing"] {
        world.enqueue(&a, vec![Enqueue { id: id(name), given_id: true, attempts: 1, ..world.job("work") }]).await;
        let leased = world.claim_one().await;
        let verdict = match name {
            "completed" => done(),
            "failed" => Verdict::Fail { error: "never".to_owned() },
            "dead" => retry("too often"),
            "cancelled" => Verdict::Cancel,
            _ => continue,
        };
        assert_eq!(world.settle(&leased, verdict).await.as_str(), name);
    }
    let later = Some(world.now() + HOUR);
    let scheduled = Enqueue { id: id("scheduled"), given_id: true, run_at: later, ..world.job("work") };
    world.enqueue(&a, vec![scheduled, Enqueue { id: id("pending"), given_id: true, ..world.job("work") }]).await;
}

async fn a_dead_letter_is_redriven_with_all_its_attempts(world: World) {
    let a = tenant("a");
    one_of_each(&world).await;
    world.control(&a, &id("pending"), Control::Cancel).await.expect("cancel");
    for name in ["dead", "failed", "cancelled"] {
        world.clock.advance(SECOND);
        let (before, runs) = world.stored(&a, &id(name)).await;
        let job = world.control(&a, &id(name), Control::Redrive).await.expect("redrive");
        assert_eq!((job.state, job.attempt, job.run_at), (State::Pending, 0, world.now()));
        let leased = world.claim_one().await;
        assert_eq!((&leased.job.id, leased.job.attempt), (&id(name), 1));
        assert_eq!(world.settle(&leased, done()).await, State::Completed);
        let (job, kept) = world.stored(&a, &id(name)).await;
        assert_eq!((kept.len(), job.finished_at), (runs.len(), Some(world.now())), "its history stays");
        assert!(before.finished_at < job.finished_at);
    }
}

async fn a_waiting_job_is_cancelled(world: World) {
    let a = tenant("a");
    one_of_each(&world).await;
    for name in ["scheduled", "pending"] {
        let job = world.control(&a, &id(name), Control::Cancel).await.expect("cancel");
        assert_eq!((job.state, job.finished_at), (State::Cancelled, Some(world.now())));
        assert_eq!(world.state(&a, &id(name)).await, State::Cancelled);
    }
    assert!(world.claim(any()).await.is_empty());
    world.clock.advance(HOUR);
    // Only the lease of the running one has ended meanwhile; it had one attempt.
    assert!(world.claim(any()).await.is_empty());
}

async fn a_scheduled_job_is_promoted(world: World) {
    let a = tenant("a");
    one_of_each(&world).await;
    let job = world.control(&a, &id("scheduled"), Control::Promote).await.expect("promote");
    assert_eq!((job.state, job.run_at, job.attempt), (State::Pending, world.now(), 0));
    let pending = world.control(&a, &id("pending"), Control::Promote).await.expect("it is due already");
    assert_eq!(pending.state, State::Pending);
    assert_eq!(world.claim(any()).await.len(), 2);
    world.clock.advance(HOUR);
    assert!(
        world.claim(Claim { kinds: vec!["other".into()], ..any() }).await.is_empty(),
        "it does not become due twice"
    );
}

async fn a_running_job_shows_who_runs_it(world: World) {
    let a = tenant("a");
    let remote = world.enqueue_one(&a).await;
    assert_eq!(world.stored(&a, &remote).await.0.held, None);
    let leased = world.claim(Claim { worker: "mailer-1".into(), ..any() }).await.remove(0);
    let shown = |lease_until, cancel_requested| {
        Some(Box::new(Held { worker: "mailer-1".into(), lease_until, cancel_requested }))
    };
    assert_eq!(world.stored(&a, &remote).await.0.held, shown(Some(leased.expires), false));
    world.clock.advance(SECOND);
    let renewed = world.try_renew(&leased, HOUR).await.expect("renewed").expires;
    let asked = world.control(&a, &remote, Control::Cancel).await.expect("asked to stop");
    assert_eq!(asked.held, shown(Some(renewed), true));
    let page = within(world.store.jobs(JobQuery { limit: 10, ..JobQuery::default() })).await.expect("jobs");
    assert_eq!(page.items[0].held, shown(Some(renewed), true));
    world.settle(&leased, done()).await;
    assert_eq!(world.stored(&a, &remote).await.0.held, None);
    // A handler of this process has its job until the process ends, so there is no time to show.
    let local = world.enqueue_one(&a).await;
    world.claim(Claim { worker: "mailer-1".into(), local: true, ..any() }).await;
    assert_eq!(world.stored(&a, &local).await.0.held, shown(None, false));
}

async fn the_wrong_state_is_refused_and_nothing_changes(world: World) {
    let a = tenant("a");
    one_of_each(&world).await;
    let refused = [
        (Control::Redrive, ["completed", "processing", "scheduled", "pending"].as_slice()),
        (Control::Cancel, ["completed", "failed", "dead", "cancelled"].as_slice()),
        (Control::Promote, ["completed", "failed", "dead", "cancelled", "processing"].as_slice()),
    ];
    for (control, names) in refused {
        for name in names {
            let before = text(&world.stored(&a, &id(name)).await.0);
            assert_eq!(
                code(world.control(&a, &id(name), control.clone()).await),
                "job.wrong_state",
                "{control:?} {name}"
            );
            assert_eq!(text(&world.stored(&a, &id(name)).await.0), before);
        }
    }
}

fn text(job: &Job) -> String {
    serde_json::to_string(job).expect("json")
}

async fn an_unknown_job_is_not_found(world: World) {
    one_of_each(&world).await;
    for control in [Control::Redrive, Control::Cancel, Control::Promote] {
        assert_eq!(code(world.control(&tenant("a"), &id("nobody"), control.clone()).await), "job.not_found");
        assert_eq!(code(world.control(&tenant("b"), &id("pending"), control).await), "job.not_found");
    }
}

async fn counts(world: &World, tenant: Option<&TenantId>) -> Counts {
    within(world.store.counts(tenant)).await.expect("counts")
}

async fn counts_by_queue_state_and_tenant(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    assert!(counts(&world, None).await.is_empty());
    one_of_each(&world).await;
    let later = Some(world.now() + HOUR);
    world.enqueue(&b, vec![world.job("x"), Enqueue { run_at: later, queue: "slow".into(), ..world.job("x") }]).await;
    let of = |states: &[(State, u64)]| states.iter().copied().collect::<std::collections::BTreeMap<_, _>>();
    let each = [
        State::Scheduled,
        State::Pending,
        State::Processing,
        State::Completed,
        State::Failed,
        State::Dead,
        State::Cancelled,
    ];
    let of_a = of(&each.map(|state| (state, 1)));
    let slow = of(&[(State::Scheduled, 1)]);
    let mut of_all = of_a.clone();
    of_all.insert(State::Pending, 2);
    assert_eq!(counts(&world, Some(&a)).await, Counts::from([("q".into(), of_a)]));
    let of_b = Counts::from([("q".into(), of(&[(State::Pending, 1)])), ("slow".into(), slow.clone())]);
    assert_eq!(counts(&world, Some(&b)).await, of_b);
    assert_eq!(counts(&world, None).await, Counts::from([("q".into(), of_all), ("slow".into(), slow)]));
    assert!(counts(&world, Some(&tenant("c"))).await.is_empty());
}
