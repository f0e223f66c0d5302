//! What a run tells while it runs: how far it is, and lines for its job's log.

use std::sync::{Arc, Mutex};

use tidewire_core::Json;
use tidewire_core::commit::{Commit, Expansion};
use tidewire_core::event::{Ephemeral, Event};
use tidewire_core::job::{Job, LogLine, MAX_LOG_BYTES, MAX_LOG_LINES, MAX_PROGRESS_BYTES};
use tidewire_core::store::{Control, Follower, Leased, Lifecycle, Moment};
use tidewire_core::{Id, Result, Timestamp};

use crate::world::{LEASE, SECOND, World, any, code, commit, done, retry, tenant, within};

every_engine![
    progress_is_kept_with_the_job,
    progress_is_told,
    what_is_only_delivered_of_a_life_leaves_when_it_is_durable_and_once_per_dedup_key,
    who_lost_the_lease_tells_nothing,
    a_log_is_read_page_by_page,
    a_log_keeps_its_last_lines,
    a_log_goes_with_its_job,
];

fn percent(number: usize) -> Json {
    Json::parse(format!("{{\"percent\":{number}}}")).expect("json")
}

async fn progress(world: &World, leased: &Leased, progress: Json) -> Result<()> {
    within(world.store.progress(None, &leased.job.id, &leased.lease, progress)).await
}

async fn log(world: &World, leased: &Leased, lines: &[&str]) -> Result<()> {
    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
    within(world.store.log(None, &leased.job.id, &leased.lease, lines)).await
}

async fn lines(world: &World, job: &Id) -> Vec<LogLine> {
    let page = within(world.store.logs(&tenant("a"), job, None, u32::MAX)).await.expect("read").expect("the job");
    assert_eq!(page.next_cursor, None);
    page.items
}

async fn progress_is_kept_with_the_job(world: World) {
    let a = tenant("a");
    let job = world.enqueue_one(&a).await;
    let leased = world.claim_one().await;
    for number in [10, 70] {
        progress(&world, &leased, percent(number)).await.expect("told");
        let shown = world.stored(&a, &job).await.0.rare.expect("rare").progress;
        assert_eq!(shown, Some(percent(number)));
    }
    let large = Json::parse(format!("\"{}\"", "x".repeat(MAX_PROGRESS_BYTES - 1))).expect("json");
    assert_eq!(code(progress(&world, &leased, large).await), "data.too_large");
    world.settle(&leased, done()).await;
    assert_eq!(world.stored(&a, &job).await.0.rare.expect("rare").progress, Some(percent(70)));
}

#[derive(Default)]
struct Told(Mutex<Vec<Json>>);

impl Lifecycle for Told {
    fn cares(&self, moment: Moment, _: &Job) -> bool {
        moment == Moment::Progress
    }
    fn follows(&self, _: Moment, job: &Job, _: Timestamp) -> Vec<Expansion> {
        self.0.lock().expect("told").extend(job.rare.as_ref().and_then(|rare| rare.progress.clone()));
        Vec::new()
    }
    fn committed(&self, _: &[Ephemeral]) {}
}

/// Writes down what it is asked and told, in order.
#[derive(Default)]
struct Order(Mutex<Vec<String>>);

impl Order {
    fn note(&self, what: &str) {
        self.0.lock().expect("noted").push(what.to_owned());
    }
}

impl Lifecycle for Order {
    fn cares(&self, moment: Moment, _: &Job) -> bool {
        moment == Moment::Enqueued || moment == Moment::Completed
    }
    fn follows(&self, moment: Moment, job: &Job, now: Timestamp) -> Vec<Expansion> {
        self.note(&format!("asked about {moment:?}"));
        let tenant = job.tenant.clone();
        let (rooms, data) = (Vec::new().into(), Json::empty_object());
        let id = job.id.clone();
        let ephemeral = Ephemeral { tenant, id, kind: "job.x".into(), time: now, data, rooms, user_id: None };
        let dedup = (moment == Moment::Completed).then(|| ("once".to_owned(), SECOND * 60));
        let commit = Commit { dedup, ..Commit::empty(job.tenant.clone()) };
        vec![Expansion { commit, ephemeral: vec![ephemeral] }]
    }
    fn committed(&self, ephemeral: &[Ephemeral]) {
        self.note(&format!("told {}", ephemeral.len()));
    }
}

impl Follower for Order {
    fn committed(&self, events: &[Arc<Event>]) {
        self.note(&format!("{} durable", events.len()));
    }
}

/// The followers hear of a turn only when it is durable, so what comes behind them does, too.
async fn what_is_only_delivered_of_a_life_leaves_when_it_is_durable_and_once_per_dedup_key(world: World) {
    let a = tenant("a");
    let order = Arc::new(Order::default());
    world.store.observe(order.clone());
    world.store.follow(order.clone());
    world.commit(commit(&a, vec![world.event("x")], vec![world.job("work"), world.job("work")])).await;
    let leased = world.claim(any()).await;
    for leased in &leased {
        world.settle(leased, done()).await;
    }
    world.turn().await;
    let expected = [
        "asked about Enqueued",
        "asked about Enqueued",
        "1 durable",
        "told 2",
        "asked about Completed",
        "told 1",
        "asked about Completed",
    ];
    assert_eq!(*order.0.lock().expect("noted"), expected);
}

async fn progress_is_told(world: World) {
    let told = Arc::new(Told::default());
    world.store.observe(told.clone());
    world.enqueue_one(&tenant("a")).await;
    let leased = world.claim_one().await;
    progress(&world, &leased, percent(10)).await.expect("told");
    progress(&world, &leased, percent(20)).await.expect("told");
    assert_eq!(*told.0.lock().expect("told"), [percent(10), percent(20)]);
}

async fn who_lost_the_lease_tells_nothing(world: World) {
    let job = world.enqueue_one(&tenant("a")).await;
    let lost = world.claim_one().await;
    world.advance(LEASE).await;
    let held = world.claim_one().await;
    assert_eq!(code(progress(&world, &lost, percent(1)).await), "job.lease_lost");
    assert_eq!(code(log(&world, &lost, &["late"]).await), "job.lease_lost");
    let other = within(world.store.progress(Some(&tenant("b")), &job, &held.lease, percent(1))).await;
    assert_eq!(code(other), "job.lease_lost");
    assert_eq!(lines(&world, &job).await.len(), 0);
    assert_eq!(world.stored(&tenant("a"), &job).await.0.rare.expect("a worker was lost").progress, None);
}

async fn a_log_is_read_page_by_page(world: World) {
    let a = tenant("a");
    let job = world.enqueue_one(&a).await;
    let leased = world.claim_one().await;
    log(&world, &leased, &["one", "two"]).await.expect("kept");
    world.settle(&leased, retry("boom")).await;
    world.advance(crate::world::BACKOFF).await;
    let leased = world.claim_one().await;
    log(&world, &leased, &["three", "four", "five"]).await.expect("kept");
    let (mut read, mut cursor) = (Vec::new(), None);
    loop {
        let page = within(world.store.logs(&a, &job, cursor, 2)).await.expect("read").expect("the job");
        read.extend(page.items.into_iter().map(|line| (line.attempt, line.text.into_string(), line.time)));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    let (then, now) = (crate::world::START, world.now());
    let expected = [(1, "one", then), (1, "two", then), (2, "three", now), (2, "four", now), (2, "five", now)];
    assert_eq!(read, expected.map(|(attempt, text, time)| (attempt, text.to_owned(), time)));
    assert!(world.stored(&a, &job).await.0.rare.expect("rare").has_log);
    assert!(within(world.store.logs(&tenant("b"), &job, None, 10)).await.expect("read").is_none());
    assert_eq!(code(within(world.store.logs(&a, &job, Some("x".to_owned()), 10)).await), "cursor.invalid");
}

async fn a_log_keeps_its_last_lines(world: World) {
    let job = world.enqueue_one(&tenant("a")).await;
    let leased = world.claim_one().await;
    log(&world, &leased, &["first", &"é".repeat(MAX_LOG_BYTES)]).await.expect("kept");
    assert_eq!(lines(&world, &job).await[1].text.len(), MAX_LOG_BYTES);
    let many: Vec<String> = (0..MAX_LOG_LINES + 5).map(|number| number.to_string()).collect();
    log(&world, &leased, &many.iter().map(String::as_str).collect::<Vec<_>>()).await.expect("kept");
    log(&world, &leased, &["last"]).await.expect("kept");
    let kept = lines(&world, &job).await;
    assert_eq!((kept.len(), &*kept[0].text, &*kept[MAX_LOG_LINES - 1].text), (MAX_LOG_LINES, "6", "last"));
}

async fn a_log_goes_with_its_job(world: World) {
    let a = tenant("a");
    let job = world.enqueue_one(&a).await;
    let leased = world.claim_one().await;
    log(&world, &leased, &["one"]).await.expect("kept");
    world.settle(&leased, done()).await;
    world.control(&a, &job, Control::Delete).await.expect("deleted");
    assert!(within(world.store.logs(&a, &job, None, 10)).await.expect("read").is_none());
}
