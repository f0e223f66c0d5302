//! The atomic unit: all or nothing, versions, and the four ways of saying a thing twice.

use tidewire_core::commit::{Append, Commit, Enqueue, IDEMPOTENCY_TTL, Idempotency};
use tidewire_core::event::Position;
use tidewire_core::job::State;
use tidewire_core::store::JobQuery;
use tidewire_core::{Json, TenantId};

use crate::world::{HOUR, MINUTE, SECOND, World, any, code, commit, done, id, tenant, within};

every_engine![
    events_and_jobs_come_together,
    versions_count_each_stream,
    a_version_conflict_leaves_nothing,
    an_expected_version_counts_the_events_before_it_in_the_commit,
    an_event_that_is_not_written_counts_for_no_version,
    an_event_id_is_written_once,
    what_rules_made_of_a_known_event_is_not_written_again,
    a_job_id_is_written_once,
    a_job_id_twice_in_one_commit_is_one_job,
    the_same_job_id_in_two_commits_of_one_turn_is_one_job,
    an_idempotency_key_gives_the_same_answer,
    an_idempotency_key_with_another_body_is_refused,
    an_idempotency_key_is_forgotten_after_a_day,
    a_dedup_key_is_written_once_while_it_is_remembered,
    a_job_reads_as_it_was_enqueued,
    jobs_are_listed_newest_first_in_pages,
    a_page_of_large_jobs_is_short,
];

fn keyed(commit: Commit, key: &str, digest: &[u8]) -> Commit {
    Commit { idempotency: Some(Idempotency { key: key.to_owned(), digest: digest.to_vec() }), ..commit }
}

fn once(commit: Commit, key: &str) -> Commit {
    Commit { dedup: Some((key.to_owned(), MINUTE)), ..commit }
}

fn given(world: &World, kind: &str, name: &str) -> Enqueue {
    Enqueue { id: id(name), given_id: true, ..world.job(kind) }
}

async fn job_count(world: &World, tenant: &TenantId) -> usize {
    let query = JobQuery { tenant: Some(tenant.clone()), limit: JobQuery::MAX, ..JobQuery::default() };
    within(world.store.jobs(query)).await.expect("jobs").items.len()
}

async fn events_and_jobs_come_together(world: World) {
    let a = tenant("a");
    let mut asked =
        commit(&a, vec![world.event("asked"), world.event("caused")], vec![world.job("asked"), world.job("caused")]);
    (asked.asked_events, asked.asked_jobs) = (1, 1);
    asked.events[1].root = Some(0);
    asked.jobs[1].root = Some(0);
    let committed = world.commit(asked).await;
    assert_eq!((&*committed.events[0].kind, committed.events.len()), ("asked", 1));
    assert_eq!((&*committed.jobs[0].kind, committed.jobs.len()), ("asked", 1));
    assert_eq!((&*committed.caused.events[0].kind, committed.caused.events.len()), ("caused", 1));
    assert_eq!((&*committed.caused.jobs[0].kind, committed.caused.jobs.len()), ("caused", 1));
    assert_eq!(world.head(&a).await, 2);
    assert_eq!(world.claim(any()).await.len(), 2);
}

async fn versions_count_each_stream(world: World) {
    let a = tenant("a");
    let of = |stream: &str| Append { stream: Some(stream.into()), ..world.event("x") };
    let first = world.commit(commit(&a, vec![of("s1"), of("s2"), of("s1"), world.event("x")], Vec::new())).await;
    let second = world.commit(commit(&a, vec![of("s1")], Vec::new())).await;
    let versions: Vec<_> = first.events.iter().chain(&second.events).map(|event| event.version).collect();
    assert_eq!(versions, [Some(1), Some(1), Some(2), None, Some(3)]);
}

async fn a_version_conflict_leaves_nothing(world: World) {
    let a = tenant("a");
    let of = |expected| Append { stream: Some("s".into()), expected_version: Some(expected), ..world.event("x") };
    world.append(&a, vec![of(0)]).await;
    for expected in [0, 2] {
        let refused = commit(&a, vec![world.event("beside"), of(expected)], vec![given(&world, "beside", "j1")]);
        let refused = keyed(once(refused, "d1"), "k1", b"1");
        assert_eq!(code(world.try_commit(refused).await), "event.version_conflict");
    }
    assert_eq!((world.head(&a).await, job_count(&world, &a).await), (1, 0));
    // Neither key was taken.
    let committed = world.commit(keyed(once(commit(&a, vec![of(1)], Vec::new()), "d1"), "k1", b"2")).await;
    assert_eq!((committed.events[0].position, committed.events[0].version), (Some(Position(2)), Some(2)));
    assert!(!committed.deduplicated);
}

async fn an_expected_version_counts_the_events_before_it_in_the_commit(world: World) {
    let a = tenant("a");
    let of = |expected| Append { stream: Some("s".into()), expected_version: expected, ..world.event("x") };
    let events = vec![of(Some(0)), of(None), of(Some(2))];
    assert_eq!(world.append(&a, events).await.len(), 3);
    assert_eq!(
        code(world.try_commit(commit(&a, vec![of(Some(3)), of(Some(3))], Vec::new())).await),
        "event.version_conflict"
    );
    assert_eq!(world.head(&a).await, 3);
}

async fn an_event_that_is_not_written_counts_for_no_version(world: World) {
    let a = tenant("a");
    let of = |expected| Append { stream: Some("s".into()), expected_version: expected, ..world.event("x") };
    let given = || Append { id: id("e1"), given_id: true, ..of(None) };
    // The id twice in one commit, and what followed from the second of them.
    let mut asked = commit(&a, vec![given(), given(), of(Some(1)), Append { root: Some(1), ..of(None) }], Vec::new());
    asked.asked_events = 3;
    let first = world.commit(asked).await;
    assert_eq!(first.events.iter().map(|event| event.version).collect::<Vec<_>>(), [Some(1), Some(1), Some(2)]);
    assert!(first.events[1].deduplicated && first.caused.events.is_empty());
    // The id of an earlier commit, the version it once expected long gone.
    let again = Append { expected_version: Some(0), ..given() };
    let again = world.commit(commit(&a, vec![again, of(Some(2))], Vec::new())).await;
    assert_eq!((again.events[0].version, again.events[1].version), (Some(1), Some(3)));
}

async fn an_event_id_is_written_once(world: World) {
    let a = tenant("a");
    let event = Append { id: id("e1"), given_id: true, stream: Some("s".into()), ..world.event("first") };
    let first = world.commit(commit(&a, vec![event.clone()], Vec::new())).await.events.remove(0);
    world.clock.advance(SECOND);
    // Another type and an expected version that no longer holds: it is the same event all the same.
    let again = Append { expected_version: Some(0), ..Append { kind: "second".into(), ..event.clone() } };
    let again = world.commit(commit(&a, vec![again, world.event("beside"), event], Vec::new())).await.events;
    for repeated in [&again[0], &again[2]] {
        assert!(repeated.deduplicated);
        assert_eq!((&repeated.id, &*repeated.kind, repeated.time), (&first.id, "first", first.time));
        assert_eq!((repeated.position, repeated.version), (Some(Position(1)), Some(1)));
    }
    assert_eq!((again[1].position, again[1].deduplicated), (Some(Position(2)), false));
    assert_eq!(world.head(&a).await, 2);
}

async fn what_rules_made_of_a_known_event_is_not_written_again(world: World) {
    let a = tenant("a");
    let publish = || {
        let known = Append { id: id("known"), given_id: true, ..world.event("known") };
        let other = world.event("other");
        let mut asked = commit(
            &a,
            vec![
                known,
                other,
                Append { root: Some(0), ..world.event("of known") },
                Append { root: Some(1), ..world.event("of other") },
            ],
            vec![
                world.job("asked"),
                Enqueue { root: Some(0), ..world.job("of known") },
                Enqueue { root: Some(1), ..world.job("of other") },
            ],
        );
        (asked.asked_events, asked.asked_jobs) = (2, 1);
        asked
    };
    let first = world.commit(publish()).await;
    assert_eq!((first.caused.events.len(), first.caused.jobs.len()), (2, 2));
    let second = world.commit(publish()).await;
    assert!(second.events[0].deduplicated && !second.events[1].deduplicated);
    assert_eq!(second.caused.events.iter().map(|event| &*event.kind).collect::<Vec<_>>(), ["of other"]);
    assert_eq!(second.caused.jobs.iter().map(|job| &*job.kind).collect::<Vec<_>>(), ["of other"]);
    assert_eq!((world.head(&a).await, job_count(&world, &a).await), (4 + 2, 3 + 2));
}

async fn a_job_id_is_written_once(world: World) {
    let a = tenant("a");
    assert!(!world.enqueue(&a, vec![given(&world, "first", "j1")]).await[0].deduplicated);
    let again = world.enqueue(&a, vec![given(&world, "second", "j1"), world.job("beside")]).await;
    assert_eq!((again[0].deduplicated, &*again[0].kind, again[0].state), (true, "first", State::Pending));
    assert!(!again[1].deduplicated);
    let leased = world.claim(any()).await;
    assert_eq!(leased.len(), 2);
    for leased in &leased {
        world.settle(leased, done()).await;
    }
    // The answer shows the state that it has reached; it does not run again.
    let after = world.enqueue(&a, vec![given(&world, "third", "j1")]).await;
    assert_eq!((after[0].deduplicated, after[0].state), (true, State::Completed));
    assert!(world.claim(any()).await.is_empty());
}

async fn a_job_id_twice_in_one_commit_is_one_job(world: World) {
    let a = tenant("a");
    let jobs = vec![given(&world, "first", "j1"), given(&world, "other", "j2"), given(&world, "second", "j1")];
    let answer = world.enqueue(&a, jobs).await;
    assert_eq!(answer.iter().map(|job| job.deduplicated).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(&*answer[2].kind, "first");
    assert_eq!((world.claim(any()).await.len(), job_count(&world, &a).await), (2, 2));
}

async fn the_same_job_id_in_two_commits_of_one_turn_is_one_job(world: World) {
    let a = tenant("a");
    let hold = world.hold().await;
    let answers: Vec<_> =
        (0..4).map(|_| world.store.commit(commit(&a, Vec::new(), vec![given(&world, "work", "j1")]))).collect();
    drop(hold);
    let mut deduplicated = Vec::new();
    for answer in answers {
        deduplicated.push(within(answer).await.expect("commit").jobs[0].deduplicated);
    }
    assert_eq!(deduplicated, [false, true, true, true]);
    assert_eq!(world.claim(any()).await.len(), 1);
}

async fn an_idempotency_key_gives_the_same_answer(world: World) {
    let a = tenant("a");
    let ask = || keyed(commit(&a, vec![world.event("x")], vec![world.job("work")]), "k1", b"body");
    let first = world.commit(ask()).await;
    world.append(&a, vec![world.event("between")]).await;
    world.clock.advance(HOUR);
    let again = world.commit(ask()).await;
    let text = |committed| serde_json::to_string(committed).expect("json");
    assert_eq!(text(&first), text(&again));
    assert_eq!((world.head(&a).await, job_count(&world, &a).await), (2, 1));
}

async fn an_idempotency_key_with_another_body_is_refused(world: World) {
    let a = tenant("a");
    world.commit(keyed(commit(&a, vec![world.event("x")], Vec::new()), "k1", b"one")).await;
    let other = keyed(commit(&a, vec![world.event("y")], vec![world.job("work")]), "k1", b"two");
    assert_eq!(code(world.try_commit(other).await), "idempotency.key_reused");
    assert_eq!((world.head(&a).await, job_count(&world, &a).await), (1, 0));
}

async fn an_idempotency_key_is_forgotten_after_a_day(world: World) {
    let a = tenant("a");
    let ask = |digest: &[u8]| keyed(commit(&a, vec![world.event("x")], Vec::new()), "k1", digest);
    world.commit(ask(b"one")).await;
    world.clock.advance(IDEMPOTENCY_TTL - SECOND);
    assert_eq!(code(world.try_commit(ask(b"two")).await), "idempotency.key_reused");
    world.clock.advance(SECOND);
    assert_eq!(world.commit(ask(b"two")).await.events[0].position, Some(Position(2)));
    assert_eq!(code(world.try_commit(ask(b"one")).await), "idempotency.key_reused");
}

async fn a_dedup_key_is_written_once_while_it_is_remembered(world: World) {
    let a = tenant("a");
    let ask = |key| once(commit(&a, vec![world.event("x")], vec![world.job("work")]), key);
    assert!(!world.commit(ask("d1")).await.deduplicated);
    let again = world.commit(ask("d1")).await;
    assert!(again.deduplicated && again.events.is_empty() && again.jobs.is_empty());
    assert!(!world.commit(ask("d2")).await.deduplicated);
    assert_eq!((world.head(&a).await, job_count(&world, &a).await), (2, 2));
    world.clock.advance(MINUTE - SECOND);
    assert!(world.commit(ask("d1")).await.deduplicated);
    world.clock.advance(SECOND);
    assert!(!world.commit(ask("d1")).await.deduplicated);
    assert_eq!((world.head(&a).await, job_count(&world, &a).await), (3, 3));
}

async fn a_job_reads_as_it_was_enqueued(world: World) {
    let a = tenant("a");
    let asked = Enqueue {
        queue: "mail".into(),
        priority: 2,
        data: Json::parse(r#"{"to": "ä@example"}"#.to_owned()).expect("json"),
        run_at: Some(world.now() + HOUR),
        attempts: 7,
        user_id: Some("u1".into()),
        correlation_id: Some("c1".into()),
        causation_id: Some("c0".into()),
        depth: 4,
        ..given(&world, "send", "j1")
    };
    assert_eq!(world.enqueue(&a, vec![asked.clone()]).await[0].state, State::Scheduled);
    let (job, failed) = world.stored(&a, &id("j1")).await;
    assert!(failed.is_empty());
    assert_eq!((&job.tenant, &job.id, &job.kind, &job.queue), (&a, &asked.id, &asked.kind, &asked.queue));
    assert_eq!((job.state, job.priority, &job.data), (State::Scheduled, 2, &asked.data));
    assert_eq!((job.attempt, job.attempts, &job.backoff, job.timeout), (0, 7, &asked.backoff, asked.timeout));
    assert_eq!((job.created_at, Some(job.run_at)), (world.now(), asked.run_at));
    assert_eq!((job.started_at, job.finished_at), (None, None));
    assert!(job.result.is_none() && job.error.is_none());
    assert_eq!((&job.user_id, &job.correlation_id), (&asked.user_id, &asked.correlation_id));
    assert_eq!((&job.causation_id, job.depth), (&asked.causation_id, 4));
    // A time in the past is now.
    let late = Enqueue { run_at: Some(world.now() - HOUR), ..given(&world, "send", "j2") };
    assert_eq!(world.enqueue(&a, vec![late]).await[0].state, State::Pending);
    assert_eq!(world.stored(&a, &id("j2")).await.0.run_at, world.now());
}

/// However few they are: a listing of large jobs must not fill the memory of the server.
async fn a_page_of_large_jobs_is_short(world: World) {
    let a = tenant("a");
    let data = Json::parse(format!("{{\"text\":\"{}\"}}", "x".repeat(1 << 20))).expect("json");
    let jobs = (0..11).map(|n| Enqueue { data: data.clone(), ..given(&world, "large", &format!("j{n:02}")) });
    world.enqueue(&a, jobs.collect()).await;
    let (mut names, mut sizes, mut cursor) = (Vec::new(), Vec::new(), None);
    loop {
        let query = JobQuery { tenant: Some(a.clone()), cursor, limit: 500, ..JobQuery::default() };
        let page = within(world.store.jobs(query)).await.expect("jobs");
        sizes.push(page.items.len());
        names.extend(page.items.iter().map(|job| job.id.to_string()));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [4, 4, 3]);
    assert_eq!(names, (0..11).rev().map(|n| format!("j{n:02}")).collect::<Vec<_>>());
}

async fn jobs_are_listed_newest_first_in_pages(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    for number in 0..25 {
        let queue = if number % 5 == 0 { "slow" } else { "q" };
        let job = Enqueue {
            queue: queue.into(),
            ..given(&world, if number % 2 == 0 { "even" } else { "odd" }, &format!("j{number}"))
        };
        world.enqueue(if number % 4 == 0 { &b } else { &a }, vec![job]).await;
    }
    let list = async |query: JobQuery| {
        let (mut names, mut cursor) = (Vec::new(), None);
        loop {
            let page = within(world.store.jobs(JobQuery { cursor, limit: 7, ..query.clone() })).await.expect("jobs");
            names.extend(page.items.iter().map(|job| job.id.to_string()));
            assert!(page.items.len() == 7 || page.next_cursor.is_none());
            cursor = page.next_cursor;
            if cursor.is_none() {
                return names;
            }
        }
    };
    let expected = |wanted: &dyn Fn(u32) -> bool| -> Vec<String> {
        (0..25).rev().filter(|number| wanted(*number)).map(|number| format!("j{number}")).collect()
    };
    assert_eq!(list(JobQuery::default()).await, expected(&|_| true));
    assert_eq!(list(JobQuery { tenant: Some(a.clone()), ..JobQuery::default() }).await, expected(&|n| n % 4 != 0));
    assert_eq!(
        list(JobQuery { queue: Some("slow".to_owned()), ..JobQuery::default() }).await,
        expected(&|n| n % 5 == 0)
    );
    let odd = JobQuery { kind: Some("odd".to_owned()), tenant: Some(a), ..JobQuery::default() };
    assert_eq!(list(odd).await, expected(&|n| n % 2 == 1));
    let finished = JobQuery { states: vec![State::Completed, State::Dead], ..JobQuery::default() };
    assert!(list(finished).await.is_empty());
    let both = JobQuery { states: vec![State::Completed, State::Pending], ..JobQuery::default() };
    assert_eq!(list(both).await.len(), 25);
    let bad = JobQuery { cursor: Some("no cursor".to_owned()), ..JobQuery::default() };
    assert_eq!(code(within(world.store.jobs(bad)).await), "cursor.invalid");
}
