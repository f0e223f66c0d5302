//! Finding jobs, and doing the same to all that are found.

use tidewire_core::commit::Enqueue;
use tidewire_core::job::{Rare, State, Verdict};
use tidewire_core::store::{Bulk, Changed, Claim, Control, JobQuery, QueueLimits};
use tidewire_core::{Id, Json};

use crate::world::{HOUR, MINUTE, World, any, done, id, job_ids, retry, tenant, within};

every_engine![
    jobs_are_found_by_what_is_in_them,
    jobs_are_found_by_time_flow_key_and_id,
    jobs_are_found_by_user_and_correlation,
    dead_letters_are_found_by_when_they_failed,
    a_page_looks_at_so_many_jobs_and_no_more,
    dead_letters_are_redriven_by_their_error,
    many_jobs_are_changed_in_slices,
    waiting_jobs_are_deleted_with_nothing_left_behind,
    running_jobs_are_asked_to_stop,
    what_has_changed_since_it_was_found_is_left,
    counting_changes_nothing,
];

fn query() -> JobQuery {
    JobQuery { limit: JobQuery::MAX, ..JobQuery::default() }
}

async fn found(world: &World, query: JobQuery) -> String {
    let page = within(world.store.jobs(query)).await.expect("jobs");
    page.items.iter().map(|job| job.id.to_string()).collect::<Vec<_>>().join(" ")
}

fn with_data(world: &World, name: &str, data: &str) -> Enqueue {
    let data = Json::parse(data.to_owned()).expect("json");
    Enqueue { id: id(name), given_id: true, data, ..world.job("work") }
}

/// Does it to all, slice by slice.
async fn bulk(world: &World, query: JobQuery, action: Bulk) -> Changed {
    let mut all = Changed::default();
    let mut query = query;
    loop {
        let slice = within(world.store.bulk(query.clone(), action)).await.expect("bulk");
        all.changed += slice.changed;
        all.skipped += slice.skipped;
        query.cursor = slice.next;
        if query.cursor.is_none() {
            return all;
        }
    }
}

/// A slice that is done beside the test, and has begun when this returns.
async fn begin(world: &World, query: JobQuery, action: Bulk) -> tokio::task::JoinHandle<Changed> {
    let store = world.store.clone();
    let slice = tokio::spawn(async move { store.bulk(query, action).await.expect("bulk") });
    tokio::task::yield_now().await;
    slice
}

fn changed(changed: u64) -> Changed {
    Changed { changed, ..Changed::default() }
}

async fn jobs_are_found_by_what_is_in_them(world: World) {
    let a = tenant("a");
    let job = |name, data| with_data(&world, name, data);
    let jobs = vec![job("one", r#"{"to":"Ada@x"}"#), job("two", r#"{"off":"100%"}"#), job("three", r#"{"a_b":1}"#)];
    let raw = job("four", r#"{"to":"Grüße 🌊"}"#);
    let escaped = job("five", r#"{"to":"Gr\u00fc\u00DFe \ud83c\udf0a"}"#);
    world.enqueue(&a, jobs).await;
    let leased = world.claim_one().await;
    world.settle(&leased, Verdict::Fail { error: "SMTP said 550".to_owned() }).await;
    let text = |text: &str| JobQuery { text: Some(text.to_owned()), ..query() };
    assert_eq!(found(&world, text("ADA@")).await, "one");
    assert_eq!(found(&world, text("smtp")).await, "one");
    assert_eq!(found(&world, text("100%")).await, "two");
    assert_eq!(found(&world, text("a_b")).await, "three", "no letter stands for any other");
    assert_eq!(found(&world, text("%")).await, "two");
    assert_eq!(found(&world, text("\\")).await, "");
    world.enqueue(&a, vec![raw, escaped]).await;
    assert_eq!(found(&world, text("Grüße 🌊")).await, "five four", "however the client wrote it");
    let error = |text: &str| JobQuery { error: Some(text.to_owned()), ..query() };
    assert_eq!(found(&world, error("said 5")).await, "one");
    assert_eq!(found(&world, error("ada")).await, "");
    assert_eq!(found(&world, JobQuery { tenant: Some(tenant("b")), ..text("ada") }).await, "");
}

async fn jobs_are_found_by_time_flow_key_and_id(world: World) {
    let a = tenant("a");
    let began = world.now();
    let rare = Rare { key: Some("k1".into()), flow: Some(id("f1")), ..Rare::default() };
    world.enqueue(&a, vec![Enqueue { rare: Some(Box::new(rare)), ..with_data(&world, "one", "{}") }]).await;
    world.clock.advance(MINUTE);
    world.enqueue(&a, vec![with_data(&world, "two", "{}")]).await;
    world.settle(&world.claim_one().await, done()).await;
    world.clock.advance(MINUTE);
    world.enqueue(&a, vec![with_data(&world, "three", "{}")]).await;
    let all = query;
    assert_eq!(found(&world, all()).await, "three two one");
    assert_eq!(found(&world, JobQuery { from: Some(began + MINUTE), ..all() }).await, "three two");
    assert_eq!(found(&world, JobQuery { to: Some(began + MINUTE), ..all() }).await, "one");
    let untouched = |since| JobQuery { untouched_since: Some(since), ..query() };
    assert_eq!(found(&world, untouched(began + MINUTE)).await, "", "the first one ended then");
    assert_eq!(found(&world, untouched(world.now())).await, "two one");
    assert_eq!(found(&world, JobQuery { flow: Some(id("f1")), ..all() }).await, "one");
    assert_eq!(found(&world, JobQuery { key: Some("k1".to_owned()), ..all() }).await, "one");
    assert_eq!(found(&world, JobQuery { key: Some("k".to_owned()), ..all() }).await, "");
    let ids = vec![id("one"), id("three"), id("nobody")];
    assert_eq!(found(&world, JobQuery { ids, tenant: Some(a), ..all() }).await, "three one");
}

async fn jobs_are_found_by_user_and_correlation(world: World) {
    let job = |name: &str, user: Option<&str>, correlation: Option<&str>| Enqueue {
        user_id: user.map(Into::into),
        correlation_id: correlation.map(Into::into),
        ..with_data(&world, name, "{}")
    };
    let jobs = vec![job("one", Some("ada"), Some("c1")), job("two", Some("bob"), Some("c1")), job("three", None, None)];
    world.enqueue(&tenant("a"), jobs).await;
    let of = |user: &str| JobQuery { user_id: Some(user.to_owned()), ..query() };
    assert_eq!(found(&world, of("ada")).await, "one");
    assert_eq!(found(&world, of("Ada")).await, "", "exactly this user");
    let of_call = |id: &str| JobQuery { correlation_id: Some(id.to_owned()), ..query() };
    assert_eq!(found(&world, of_call("c1")).await, "two one");
    assert_eq!(found(&world, JobQuery { correlation_id: Some("c1".to_owned()), ..of("bob") }).await, "two");
}

async fn dead_letters_are_found_by_when_they_failed(world: World) {
    let a = tenant("a");
    // All are enqueued at one time and end one minute apart.
    let ends = [
        ("dead", retry("gone")),
        ("failed", Verdict::Fail { error: "never".to_owned() }),
        ("cancelled", Verdict::Cancel),
        ("completed", done()),
    ];
    let jobs = ends.iter().map(|(name, _)| Enqueue { attempts: 1, ..with_data(&world, name, "{}") });
    world.enqueue(&a, jobs.chain([with_data(&world, "waits", "{}")]).collect()).await;
    let began = world.now();
    for (_, verdict) in ends {
        world.clock.advance(MINUTE);
        world.settle(&world.claim_one().await, verdict).await;
    }
    let failed = |from, to| JobQuery { failed_from: from, failed_to: to, ..query() };
    assert_eq!(found(&world, failed(Some(began), None)).await, "failed dead", "nothing else has failed");
    assert_eq!(found(&world, failed(Some(began + MINUTE * 2), None)).await, "failed");
    assert_eq!(found(&world, failed(None, Some(began + MINUTE * 2))).await, "dead");
    assert_eq!(found(&world, failed(Some(began), Some(began + MINUTE))).await, "");
    assert_eq!(bulk(&world, failed(Some(began + MINUTE * 2), None), Bulk::Redrive).await, changed(1));
    assert_eq!(world.state(&a, &id("failed")).await, State::Pending);
    assert_eq!(world.state(&a, &id("dead")).await, State::Dead);
}

async fn a_page_looks_at_so_many_jobs_and_no_more(world: World) {
    let a = tenant("a");
    let most = JobQuery::MAX_LOOKED_AT as usize;
    world.enqueue(&a, vec![with_data(&world, "needle", r#""needle""#)]).await;
    let later = Some(world.now() + HOUR);
    let hay = |_| Enqueue { run_at: later, ..world.job("work") };
    world.enqueue(&a, (0..most).map(hay).collect()).await;
    for sought in
        [JobQuery { text: Some("needle".to_owned()), ..query() }, JobQuery { states: vec![State::Pending], ..query() }]
    {
        let first = within(world.store.jobs(sought.clone())).await.expect("jobs");
        assert!(first.items.is_empty());
        let cursor = first.next_cursor;
        assert!(cursor.is_some(), "there is more to look at");
        let second = within(world.store.jobs(JobQuery { cursor, ..sought })).await.expect("jobs");
        assert_eq!((second.items.len(), second.next_cursor), (1, None));
    }
    // A page without conditions is full as ever.
    assert_eq!(within(world.store.jobs(query())).await.expect("jobs").items.len(), JobQuery::MAX as usize);
}

/// What is read from a disk is bounded by bytes, too.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_page_searches_so_much_data_and_no_more() {
    let world = World::sqlite();
    let a = tenant("a");
    world.enqueue(&a, vec![with_data(&world, "needle", r#""needle""#)]).await;
    let large = format!("\"{}\"", "x".repeat(256 * 1024 - 2));
    let most = usize::try_from(JobQuery::MAX_SEARCHED_BYTES).expect("size") / large.len();
    for part in 0..8 {
        let hay = |number| with_data(&world, &format!("hay-{part}-{number}"), &large);
        world.enqueue(&a, (0..most / 8).map(hay).collect()).await;
    }
    let sought = JobQuery { text: Some("needle".to_owned()), ..query() };
    let first = within(world.store.jobs(sought.clone())).await.expect("jobs");
    assert!(first.items.is_empty());
    let cursor = first.next_cursor;
    assert!(cursor.is_some(), "there is more to search");
    let second = within(world.store.jobs(JobQuery { cursor, ..sought })).await.expect("jobs");
    assert_eq!((second.items.len(), second.next_cursor), (1, None));
}

async fn fail(world: &World, name: &str, error: &str) {
    world.enqueue(&tenant("a"), vec![with_data(world, name, "{}")]).await;
    world.settle(&world.claim_one().await, Verdict::Fail { error: error.to_owned() }).await;
}

async fn dead_letters_are_redriven_by_their_error(world: World) {
    for (name, error) in [("one", "timeout"), ("two", "no such user"), ("three", "Timeout")] {
        fail(&world, name, error).await;
    }
    let failed = JobQuery { states: vec![State::Failed, State::Dead], ..query() };
    let timeouts = JobQuery { error: Some("timeout".to_owned()), ..failed.clone() };
    assert_eq!(bulk(&world, timeouts, Bulk::Redrive).await, changed(2));
    assert_eq!(job_ids(&world.claim(any()).await), ["one", "three"], "in the order they came");
    assert_eq!(found(&world, failed).await, "two");
}

async fn many_jobs_are_changed_in_slices(world: World) {
    let a = tenant("a");
    let many = Bulk::MAX as usize + 20;
    world.enqueue(&a, (0..many).map(|_| world.job("work")).collect()).await;
    let slice = within(world.store.bulk(query(), Bulk::Cancel)).await.expect("bulk");
    assert_eq!((slice.changed, slice.next.is_some()), (u64::from(Bulk::MAX), true));
    let rest = JobQuery { cursor: slice.next, ..query() };
    assert_eq!(bulk(&world, rest, Bulk::Cancel).await, changed(20));
    // Two that come in one turn are both done.
    let gate = world.hold().await;
    let one = begin(&world, query(), Bulk::Redrive).await;
    let other = begin(&world, query(), Bulk::Redrive).await;
    drop(gate);
    let (one, other) = (within(one).await.expect("joined"), within(other).await.expect("joined"));
    assert_eq!(one.changed + other.changed, u64::from(Bulk::MAX));
    assert_eq!(one.skipped + other.skipped, u64::from(Bulk::MAX));
}

async fn waiting_jobs_are_deleted_with_nothing_left_behind(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    let later = Some(world.now() + HOUR);
    let scheduled = Enqueue { run_at: later, ..world.job("work") };
    world.enqueue(&a, vec![world.job("work"), scheduled, world.job("work")]).await;
    let other: Id = world.enqueue_one(&b).await;
    let waiting = JobQuery { tenant: Some(a.clone()), states: vec![State::Pending], ..query() };
    assert_eq!(bulk(&world, waiting, Bulk::Delete).await, changed(2));
    assert_eq!(job_ids(&world.claim(any()).await), [other.to_string()]);
    let counts = within(world.store.counts(Some(&a))).await.expect("counts");
    assert_eq!((counts["q"].get(&State::Pending), counts["q"][&State::Scheduled]), (None, 1));
    let scheduled = JobQuery { tenant: Some(a), states: vec![State::Scheduled], ..query() };
    assert_eq!(bulk(&world, scheduled.clone(), Bulk::Promote).await, changed(1));
    assert_eq!(world.claim(any()).await.len(), 1);
}

async fn running_jobs_are_asked_to_stop(world: World) {
    let job = world.enqueue_one(&tenant("a")).await;
    let leased = world.claim_one().await;
    let running = JobQuery { states: vec![State::Processing], ..query() };
    assert_eq!(bulk(&world, running.clone(), Bulk::Delete).await, Changed { skipped: 1, ..Changed::default() });
    assert_eq!(bulk(&world, running, Bulk::Cancel).await, changed(1));
    assert!(world.try_renew(&leased, MINUTE).await.expect("renewed").cancelled);
    assert_eq!(world.settle(&leased, Verdict::Release).await, State::Cancelled);
    assert_eq!(world.state(&tenant("a"), &job).await, State::Cancelled);
}

async fn what_has_changed_since_it_was_found_is_left(world: World) {
    fail(&world, "one", "boom").await;
    let failed = JobQuery { states: vec![State::Failed], ..query() };
    let gate = world.hold().await;
    let (a, one) = (tenant("a"), id("one"));
    let first = world.store.control(&a, &one, Control::Redrive);
    // With the engine that reads at once it is found now, before it is re-driven.
    let second = begin(&world, failed, Bulk::Delete).await;
    drop(gate);
    within(first).await.expect("redriven");
    assert_eq!(within(second).await.expect("joined").changed, 0);
    assert_eq!(world.claim(Claim { max: 1, ..any() }).await.len(), 1);
}

async fn counting_changes_nothing(world: World) {
    within(world.store.limit_queues([("q".into(), QueueLimits::default())].into())).await.expect("limits");
    fail(&world, "one", "boom").await;
    fail(&world, "two", "bang").await;
    let failed = JobQuery { states: vec![State::Failed], ..query() };
    assert_eq!(bulk(&world, failed.clone(), Bulk::Count).await, changed(2));
    assert_eq!(
        bulk(&world, JobQuery { error: Some("bang".to_owned()), ..failed.clone() }, Bulk::Count).await,
        changed(1)
    );
    assert_eq!(found(&world, failed).await, "two one");
}
