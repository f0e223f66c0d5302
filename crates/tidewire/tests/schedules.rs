//! Schedules over a store, driven by a virtual clock: once per slot, whoever looks, over switches of the clock and restarts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tidewire_core::catalog::parse;
use tidewire_core::commit::{Delay, Expander, NewJob, NewSchedule, Request};
use tidewire_core::id::UuidV7;
use tidewire_core::job::{Job, Verdict};
use tidewire_core::schedule::{Missed, Overlap, Stored};
use tidewire_core::store::{Claim, JobQuery, ScheduleQuery, Settle, Store};
use tidewire_core::time::{Clock, ManualClock};
use tidewire_core::{TenantId, Timestamp};
use tidewire_runtime::{Clockwork, Publisher};
use tidewire_store::{Memory, Sqlite, SqliteOptions};

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[queues.mail]
keep = { completed = 100000 }

[jobs.digest]
queue = "mail"
data = { userId = "string?" }

[schedules.daily-digest]
job = "digest"
per = "user"
overlap = "allow"
"#;

const SECOND: Duration = Duration::from_secs(1);

fn at(text: &str) -> Timestamp {
    text.parse().expect(text)
}

fn shop() -> TenantId {
    TenantId::new("shop").expect("tenant")
}

struct World {
    clock: Arc<ManualClock>,
    publisher: Arc<Publisher>,
}

impl World {
    fn on(store: Arc<dyn Store>, clock: Arc<ManualClock>, catalog: &str) -> Self {
        let catalog = Arc::new(parse(catalog).expect("the catalog"));
        let ids = Arc::new(UuidV7::new(clock.clone(), 11));
        let publisher = Publisher::new(Arc::new(Expander::new(catalog, Vec::new(), ids)), store, clock.clone());
        Self { clock, publisher: Arc::new(publisher) }
    }

    fn memory(now: &str) -> Self {
        let clock = Arc::new(ManualClock::new(at(now)));
        let store = Memory::open(clock.clone(), Arc::new(UuidV7::new(clock.clone(), 7))).expect("memory");
        Self::on(store, clock, CATALOG)
    }

    /// A store in a file. Not synced: what survives is tested elsewhere.
    fn sqlite(path: &Path, clock: Arc<ManualClock>, catalog: &str) -> Self {
        let on_fatal = Box::new(|error: &tidewire_core::Error| panic!("the store failed: {error}"));
        let options = SqliteOptions { path: path.to_owned(), synced: false, on_fatal };
        let ids = Arc::new(UuidV7::new(clock.clone(), clock.now().as_micros().unsigned_abs()));
        Self::on(Sqlite::open(options, clock.clone(), ids).expect("sqlite").store(), clock, catalog)
    }

    fn clockwork(&self) -> Clockwork {
        Clockwork::new(self.publisher.clone())
    }

    async fn put(&self, schedules: Vec<NewSchedule>) {
        self.put_for(&shop(), schedules).await;
    }

    async fn put_for(&self, tenant: &TenantId, schedules: Vec<NewSchedule>) {
        let request = Request { schedules, ..Request::default() };
        self.publisher.commit(tenant, request, None).await.expect("put");
    }

    /// Makes a tenant known by a job of its own, which no schedule has made.
    async fn know(&self, tenant: &str) {
        let request = Request { jobs: vec![NewJob::new("digest", json!({}))], ..Request::default() };
        let tenant = TenantId::new(tenant).expect("tenant");
        self.publisher.commit(&tenant, request, None).await.expect("committed");
    }

    /// Whose jobs of schedules there are, and why, in order.
    async fn caused(&self) -> Vec<(String, String)> {
        let jobs = self.jobs().await.into_iter();
        let caused = jobs.filter_map(|job| Some((job.tenant.to_string(), job.causation_id?.into())));
        let mut caused: Vec<_> = caused.collect();
        caused.sort();
        caused
    }

    async fn jobs(&self) -> Vec<Job> {
        let mut query = JobQuery { limit: JobQuery::MAX, ..JobQuery::default() };
        let mut jobs = Vec::new();
        loop {
            let page = self.publisher.store().jobs(query.clone()).await.expect("jobs");
            jobs.extend(page.items);
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                return jobs;
            }
        }
    }

    /// The causes of all jobs, in order.
    async fn causes(&self) -> Vec<String> {
        let causes = self.jobs().await.into_iter().filter_map(|job| job.causation_id);
        let mut causes: Vec<String> = causes.map(Into::into).collect();
        causes.sort();
        causes
    }

    async fn stored(&self, key: &str, user: Option<&str>) -> Stored {
        self.publisher.store().schedule(&shop(), key, user).await.expect("read").expect("kept")
    }
}

fn cron(key: &str, pattern: &str, zone: &str) -> NewSchedule {
    NewSchedule {
        cron: Some(pattern.to_owned()),
        timezone: Some(zone.to_owned()),
        overlap: Some(Overlap::Allow),
        ..NewSchedule::new(key, "digest")
    }
}

/// Two schedulers over one store, told the same time at the same moment.
async fn both(one: &mut Clockwork, other: &mut Clockwork, now: Timestamp) -> Option<Timestamp> {
    let (next, others) = tokio::join!(one.tick(now), other.tick(now));
    next.into_iter().chain(others).min()
}

#[tokio::test]
async fn two_schedulers_fire_each_slot_once_over_both_switches_in_three_zones() {
    // Each zone, the hour of its night that a switch skips or repeats, and the days before both switches of 2026.
    let zones = [
        ("Europe/Berlin", "30 2 * * *", ["2026-03-28T00:00:00Z", "2026-10-24T00:00:00Z"]),
        ("America/New_York", "30 1,2 * * *", ["2026-03-07T12:00:00Z", "2026-10-31T12:00:00Z"]),
        ("Australia/Lord_Howe", "45 1 * * *", ["2026-04-04T00:00:00Z", "2026-10-03T00:00:00Z"]),
    ];
    for (zone, nightly, switches) in zones {
        for start in switches {
            let world = World::memory(start);
            world.put(vec![cron("nightly", nightly, zone), cron("quarterly", "*/15 * * * *", zone)]).await;
            let expected = [world.stored("nightly", None).await, world.stored("quarterly", None).await];
            let end = at(start) + SECOND * 2 * 86_400;
            let (mut one, mut other) = (world.clockwork(), world.clockwork());
            // From slot to slot, as a scheduler that sleeps until it is woken by the clock.
            while let Some(next) = both(&mut one, &mut other, world.clock.now()).await.filter(|next| *next <= end) {
                assert!(next > world.clock.now(), "nothing is left behind at {next}");
                world.clock.set(next);
            }
            let slots = |schedule: &Stored| {
                let within = schedule.next_slots(1_000).into_iter().take_while(|slot| *slot <= end);
                within.map(|slot| schedule.cause(slot)).collect::<Vec<_>>()
            };
            let nights = slots(&expected[0]);
            assert_eq!(
                nights.len(),
                2 * nightly.split(' ').nth(1).map_or(0, |hours| hours.split(',').count()),
                "{zone}"
            );
            let quarters = slots(&expected[1]);
            assert_eq!(quarters.len(), 2 * 96, "an interval follows real time in {zone}");
            assert_eq!(world.causes().await, [nights, quarters].concat(), "{zone} {start}");
        }
    }
}

#[tokio::test]
async fn ten_thousand_users_schedules_of_one_second_fire_once_per_slot() {
    let directory = tempfile::tempdir().expect("directory");
    let clock = Arc::new(ManualClock::new(at("2026-05-01T07:59:30Z")));
    let world = World::sqlite(&directory.path().join("t.db"), clock, CATALOG);
    let of_user = |user: u32| NewSchedule {
        key: "daily-digest".to_owned(),
        user_id: Some(format!("u{user:05}")),
        cron: Some("0 8 * * *".to_owned()),
        ..NewSchedule::default()
    };
    world.put((0..10_000).map(of_user).collect()).await;
    let (mut one, mut other) = (world.clockwork(), world.clockwork());
    assert_eq!(both(&mut one, &mut other, world.clock.now()).await, Some(at("2026-05-01T08:00:00Z")));
    for day in 1..=2_usize {
        let slot = at("2026-05-01T08:00:00Z") + SECOND * 86_400 * u32::try_from(day - 1).expect("a day");
        world.clock.set(slot);
        assert_eq!(both(&mut one, &mut other, slot).await, Some(slot + SECOND * 86_400));
        let jobs = world.jobs().await;
        assert_eq!(jobs.len(), 10_000 * day);
        let mut per_user: BTreeMap<String, usize> = BTreeMap::new();
        for job in &jobs {
            let user = job.user_id.as_deref().expect("a user").to_owned();
            assert_eq!(job.data.get(), format!("{{\"userId\":\"{user}\"}}"));
            assert_eq!(job.tenant, shop());
            *per_user.entry(user).or_default() += 1;
        }
        assert!(per_user.len() == 10_000 && per_user.values().all(|runs| *runs == day), "each once per slot");
    }
}

#[tokio::test]
async fn a_restart_goes_on_where_the_schedule_was() {
    let directory = tempfile::tempdir().expect("directory");
    let (path, clock) = (directory.path().join("t.db"), Arc::new(ManualClock::new(at("2026-05-01T00:10:00Z"))));
    let world = World::sqlite(&path, clock.clone(), CATALOG);
    let of = |key: &str, missed| NewSchedule { missed: Some(missed), ..cron(key, "0 * * * *", "UTC") };
    world.put(vec![of("all", Missed::All), of("last", Missed::Last), of("skip", Missed::Skip)]).await;
    clock.set(at("2026-05-01T01:00:00Z"));
    world.clockwork().tick(clock.now()).await;
    world.publisher.store().close().await.expect("closed");
    drop(world);

    // Off over three slots.
    clock.set(at("2026-05-01T04:30:00Z"));
    let world = World::sqlite(&path, clock.clone(), CATALOG);
    for _ in 0..2 {
        assert_eq!(world.clockwork().tick(clock.now()).await, Some(at("2026-05-01T05:00:00Z")));
    }
    let expected: Vec<String> = [("all", 1), ("all", 2), ("all", 3), ("all", 4), ("last", 1), ("last", 4), ("skip", 1)]
        .map(|(key, hour)| format!("{key}@2026-05-01T0{hour}:00:00Z"))
        .into();
    assert_eq!(world.causes().await, expected);
    assert_eq!(world.stored("skip", None).await.last, Some(at("2026-05-01T04:00:00Z")));
}

#[tokio::test]
async fn a_limit_holds_while_missed_slots_are_made_up_for() {
    let world = World::memory("2026-05-01T00:10:00Z");
    let thrice = NewSchedule { limit: Some(3), missed: Some(Missed::All), ..cron("k", "0 * * * *", "UTC") };
    world.put(vec![thrice]).await;
    world.clock.set(at("2026-05-01T09:30:00Z"));
    assert_eq!(world.clockwork().tick(world.clock.now()).await, None);
    assert_eq!(world.causes().await.len(), 3);
    assert_eq!(world.stored("k", None).await.state(), "ended");
}

#[tokio::test]
async fn a_schedule_whose_job_left_the_catalog_is_paused_and_says_why() {
    let directory = tempfile::tempdir().expect("directory");
    let (path, clock) = (directory.path().join("t.db"), Arc::new(ManualClock::new(at("2026-05-01T00:10:00Z"))));
    let world = World::sqlite(&path, clock.clone(), CATALOG);
    world.put(vec![NewSchedule { every: Some(Delay(SECOND * 60)), ..NewSchedule::new("k", "digest") }]).await;
    world.publisher.store().close().await.expect("closed");
    drop(world);

    let without =
        CATALOG.split("[jobs.digest]").next().expect("a part").to_owned() + "[jobs.other]\nqueue = \"mail\"\n";
    let world = World::sqlite(&path, clock.clone(), &without);
    clock.set(at("2026-05-01T00:11:00Z"));
    assert_eq!(world.clockwork().tick(clock.now()).await, None, "it is not tried over and over");
    let kept = world.stored("k", None).await;
    assert_eq!((kept.state(), kept.runs), ("paused", 0));
    assert!(kept.error.is_some_and(|why| why.contains("job.unknown_type")), "it says why");
    let page = world.publisher.store().schedules(ScheduleQuery { limit: 1, ..ScheduleQuery::default() }).await;
    assert_eq!(page.expect("a page").items.len(), 1, "it is not lost");
}

/// The catalog with `schedules` instead of its own.
fn with(schedules: &str) -> String {
    CATALOG.split("[schedules").next().expect("a part").to_owned() + schedules
}

#[tokio::test]
async fn a_schedule_for_each_tenant_fires_once_per_slot_and_tenant_whoever_looks() {
    let directory = tempfile::tempdir().expect("directory");
    let (path, clock) = (directory.path().join("t.db"), Arc::new(ManualClock::new(at("2026-05-01T00:10:00Z"))));
    let hourly =
        with("[schedules.hourly]\njob = \"digest\"\ncron = \"0 * * * *\"\nper = \"tenant\"\noverlap = \"allow\"\n");
    let world = World::sqlite(&path, clock.clone(), &hourly);
    // More than one page of them.
    let names: Vec<String> = (0..600).map(|n| format!("t{n:03}")).collect();
    for name in &names {
        world.know(name).await;
    }
    let (mut one, mut other) = (world.clockwork(), world.clockwork());
    assert_eq!(both(&mut one, &mut other, clock.now()).await, Some(at("2026-05-01T01:00:00Z")));
    assert!(world.caused().await.is_empty(), "it begins with its next slot");

    clock.set(at("2026-05-01T01:00:00Z"));
    assert_eq!(both(&mut one, &mut other, clock.now()).await, Some(at("2026-05-01T02:00:00Z")));
    let first = "hourly@2026-05-01T01:00:00Z".to_owned();
    let expected: Vec<_> = names.iter().map(|name| (name.clone(), first.clone())).collect();
    assert_eq!(world.caused().await, expected);

    // One that comes later begins with its next slot, also over a restart in which a slot was missed.
    world.know("zoe").await;
    both(&mut one, &mut other, clock.now()).await;
    assert_eq!(world.caused().await, expected);
    world.publisher.store().close().await.expect("closed");
    drop((one, other, world));
    clock.set(at("2026-05-01T03:30:00Z"));
    let world = World::sqlite(&path, clock.clone(), &hourly);
    let (mut one, mut other) = (world.clockwork(), world.clockwork());
    assert_eq!(both(&mut one, &mut other, clock.now()).await, Some(at("2026-05-01T04:00:00Z")));
    let of = |tenant: &str, caused: &[(String, String)]| {
        let own = caused.iter().filter(|(of, _)| of == tenant);
        own.map(|(_, cause)| cause.trim_start_matches("hourly@2026-05-01T").to_owned()).collect::<Vec<_>>()
    };
    let caused = world.caused().await;
    assert_eq!(of("t000", &caused), ["01:00:00Z", "03:00:00Z"], "the last one that was missed");
    assert_eq!(of("zoe", &caused), ["03:00:00Z"]);
    assert_eq!(caused.len(), 600 * 2 + 1);
    assert!(of("$app", &caused).is_empty());
}

#[tokio::test]
async fn a_schedule_for_each_tenant_looks_at_the_unfinished_jobs_of_each_alone() {
    let clock = Arc::new(ManualClock::new(at("2026-05-01T00:10:00Z")));
    let store = Memory::open(clock.clone(), Arc::new(UuidV7::new(clock.clone(), 7))).expect("memory");
    let twice = with("[schedules.hourly]\njob = \"digest\"\nevery = \"1h\"\nper = \"tenant\"\nlimit = 2\n");
    let world = World::on(store, clock.clone(), &twice);
    world.know("ann").await;
    let mut clockwork = world.clockwork();
    clockwork.tick(clock.now()).await;
    clock.set(at("2026-05-01T01:00:00Z"));
    clockwork.tick(clock.now()).await;
    world.know("bob").await;
    clock.set(at("2026-05-01T02:00:00Z"));
    clockwork.tick(clock.now()).await;
    let slots = async |tenant: &str| {
        let own = |(of, cause): &(String, String)| (of == tenant).then(|| cause[18..20].to_owned());
        world.caused().await.iter().filter_map(own).collect::<Vec<_>>()
    };
    assert_eq!((slots("ann").await, slots("bob").await), (vec!["01".to_owned()], vec!["02".to_owned()]));
    let bob = TenantId::new("bob").expect("tenant");
    let reached = world.publisher.store().slots(&bob).await.expect("slots")["hourly"].clone();
    assert_eq!((reached.runs, reached.last), (1, clock.now()));
}

#[tokio::test]
async fn a_schedule_of_the_catalog_begins_ends_and_has_a_limit() {
    let catalog = with(
        r#"
[schedules.once]
job = "digest"
at = "2026-05-01T02:30:00Z"

[schedules.thrice]
job = "digest"
cron = "0 * * * *"
limit = 3
overlap = "allow"

[schedules.season]
job = "digest"
cron = "0 * * * *"
start = "2026-05-01T03:00:00Z"
end = "2026-05-01T04:00:00Z"
overlap = "allow"
"#,
    );
    let directory = tempfile::tempdir().expect("directory");
    let (path, clock) = (directory.path().join("t.db"), Arc::new(ManualClock::new(at("2026-05-01T00:10:00Z"))));
    let mut world = World::sqlite(&path, clock.clone(), &catalog);
    let (mut one, mut other) = (world.clockwork(), world.clockwork());
    let mut moments = 0;
    while let Some(next) = both(&mut one, &mut other, clock.now()).await {
        clock.set(next);
        moments += 1;
        if moments == 3 {
            // What has run is not forgotten by a restart.
            world.publisher.store().close().await.expect("closed");
            drop((one, other, world));
            world = World::sqlite(&path, clock.clone(), &catalog);
            (one, other) = (world.clockwork(), world.clockwork());
        }
        assert!(moments < 9, "it ends");
    }
    let at_hours = |key: &str, hours: &[&str]| -> Vec<String> {
        hours.iter().map(|hour| format!("{key}@2026-05-01T{hour}:00Z")).collect()
    };
    let expected = [
        at_hours("once", &["02:30"]),
        at_hours("season", &["03:00", "04:00"]),
        at_hours("thrice", &["01:00", "02:00", "03:00"]),
    ];
    assert_eq!(world.causes().await, expected.concat());
}

#[tokio::test]
async fn what_an_operator_paused_stays_paused_over_a_restart_and_a_new_catalog() {
    let directory = tempfile::tempdir().expect("directory");
    let (path, clock) = (directory.path().join("t.db"), Arc::new(ManualClock::new(at("2026-05-01T00:10:00Z"))));
    let hourly = with("[schedules.hourly]\njob = \"digest\"\ncron = \"0 * * * *\"\nmissed = \"all\"\n");
    let world = World::sqlite(&path, clock.clone(), &hourly);
    world.clockwork().tick(clock.now()).await;
    let paused = |paused| NewSchedule { key: "hourly".to_owned(), paused, ..NewSchedule::default() };
    world.put_for(&TenantId::app(), vec![paused(true)]).await;
    let other_time = Request { schedules: vec![cron("hourly", "5 * * * *", "UTC")], ..Request::default() };
    let refused = world.publisher.commit(&TenantId::app(), other_time, None).await;
    assert_eq!(refused.expect_err("the catalog's").code(), "schedule.declared");
    world.publisher.store().close().await.expect("closed");
    drop(world);

    clock.set(at("2026-05-01T03:00:00Z"));
    let world = World::sqlite(&path, clock.clone(), &hourly.replace("0 * * * *", "*/30 * * * *"));
    assert_eq!(world.clockwork().tick(clock.now()).await, Some(at("2026-05-01T03:30:00Z")));
    assert!(world.causes().await.is_empty());
    world.put_for(&TenantId::app(), vec![paused(false)]).await;
    clock.set(at("2026-05-01T03:30:00Z"));
    world.clockwork().tick(clock.now()).await;
    assert_eq!(world.causes().await, ["hourly@2026-05-01T03:30:00Z"], "what passed meanwhile is gone");
}

#[tokio::test]
async fn the_app_has_schedules_that_operators_made_and_they_give_way_to_the_catalog() {
    let directory = tempfile::tempdir().expect("directory");
    let (path, clock) = (directory.path().join("t.db"), Arc::new(ManualClock::new(at("2026-05-01T00:10:00Z"))));
    let world = World::sqlite(&path, clock.clone(), &with(""));
    world.put_for(&TenantId::app(), vec![cron("hourly", "0 * * * *", "UTC")]).await;
    clock.set(at("2026-05-01T01:00:00Z"));
    world.clockwork().tick(clock.now()).await;
    assert_eq!(world.caused().await, [("$app".to_owned(), "hourly@2026-05-01T01:00:00Z".to_owned())]);
    world.publisher.store().close().await.expect("closed");
    drop(world);

    let declared = with("[schedules.hourly]\njob = \"digest\"\ncron = \"30 * * * *\"\noverlap = \"allow\"\n");
    let world = World::sqlite(&path, clock.clone(), &declared);
    let mut clockwork = world.clockwork();
    while let Some(next) = clockwork.tick(clock.now()).await.filter(|next| *next < at("2026-05-01T02:10:00Z")) {
        clock.set(next);
    }
    let causes = world.causes().await;
    assert_eq!(causes, ["hourly@2026-05-01T01:00:00Z", "hourly@2026-05-01T01:30:00Z"]);
}

#[tokio::test]
async fn of_missed_slots_that_wait_for_a_job_only_the_last_runs() {
    let clock = Arc::new(ManualClock::new(at("2026-05-01T00:10:00Z")));
    let store = Memory::open(clock.clone(), Arc::new(UuidV7::new(clock.clone(), 7))).expect("memory");
    let hourly = with("[schedules.hourly]\njob = \"digest\"\ncron = \"0 * * * *\"\noverlap = \"queue\"\n");
    let world = World::on(store, clock.clone(), &hourly);
    let mut clockwork = world.clockwork();
    clockwork.tick(clock.now()).await;
    clock.set(at("2026-05-01T01:00:00Z"));
    clockwork.tick(clock.now()).await;
    let claim = Claim {
        tenant: None,
        queues: Vec::new(),
        kinds: Vec::new(),
        max: 1,
        lease: SECOND * 86_400,
        wait: Duration::ZERO,
        worker: "worker".into(),
        // A run of another process would end with its timeout.
        local: true,
        reserved: false,
    };
    let leased = world.publisher.store().claim(claim).await.expect("leased").remove(0);
    // Nothing ran for hours, and the job is still at it: each look finds the same slot waiting.
    for second in 0..5 {
        clock.set(at("2026-05-01T06:10:00Z") + SECOND * second);
        clockwork.tick(clock.now()).await;
    }
    let verdict = Verdict::Done { result: None };
    let settle = Settle { tenant: None, id: leased.job.id, lease: leased.lease, verdict, effects: None };
    world.publisher.store().settle(settle).await.expect("settled");
    for second in 5..10 {
        clock.set(at("2026-05-01T06:10:00Z") + SECOND * second);
        clockwork.tick(clock.now()).await;
    }
    assert_eq!(world.causes().await, ["hourly@2026-05-01T01:00:00Z", "hourly@2026-05-01T06:00:00Z"]);
}

#[tokio::test]
async fn a_tenants_own_schedule_gives_way_to_one_of_the_catalog_for_each_tenant() {
    let directory = tempfile::tempdir().expect("directory");
    let (path, clock) = (directory.path().join("t.db"), Arc::new(ManualClock::new(at("2026-05-01T00:10:00Z"))));
    let world = World::sqlite(&path, clock.clone(), &with(""));
    world.put(vec![cron("hourly", "0 * * * *", "UTC")]).await;
    clock.set(at("2026-05-01T01:00:00Z"));
    world.clockwork().tick(clock.now()).await;
    world.publisher.store().close().await.expect("closed");
    drop(world);

    let declared =
        "[schedules.hourly]\njob = \"digest\"\ncron = \"30 * * * *\"\nper = \"tenant\"\noverlap = \"allow\"\n";
    let world = World::sqlite(&path, clock.clone(), &with(declared));
    let mut clockwork = world.clockwork();
    while let Some(next) = clockwork.tick(clock.now()).await.filter(|next| *next < at("2026-05-01T02:10:00Z")) {
        clock.set(next);
    }
    assert_eq!(world.causes().await, ["hourly@2026-05-01T01:00:00Z", "hourly@2026-05-01T01:30:00Z"]);
}
