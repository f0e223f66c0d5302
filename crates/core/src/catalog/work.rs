//! Resolving what runs in the background: queues, jobs, schedules and caches.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::alerts::alert_on;
use super::load::named_entries;
use super::raw::{Item, Node, Table, join};
use super::realtime::schema;
use super::{AlertOn, App, Cache, JobType, Keep, Per, Queue, ScheduleSpec, UniqueRule};
use crate::job::OnConflict;
use crate::retry::{Backoff, Jitter};
use crate::room::RoomTemplate;
use crate::schedule::{Missed, Overlap, Timing};
use crate::schema::Schema;
use crate::store::{QueueLimits, TenantLimits};
use crate::time::parse_duration;
use crate::{TenantId, Timestamp};

/// The workers that come with Tidewire.
const BUILT_IN_WORKERS: [&str; 8] = ["email", "webhook", "notify", "http", "import", "export", "report", "backup"];

/// The most jobs at once that a number in a catalog may ask for.
const MOST_AT_ONCE: i64 = 100_000;
/// The most waiting jobs of a tenant that a catalog may ask for.
const MOST_WAITING: i64 = 1_000_000_000;
/// The most runs of a job.
const MOST_ATTEMPTS: i64 = 1_000;

pub(super) const PRIORITIES: std::ops::RangeInclusive<i64> = 1..=5;

pub(super) type Queues = BTreeMap<Arc<str>, Queue>;
pub(super) type Jobs = BTreeMap<Arc<str>, JobType>;

/// A queue with every default.
fn default_queue(name: &str) -> Queue {
    let limits = QueueLimits::default();
    Queue {
        name: name.into(),
        concurrency: 10,
        reserve: None,
        global: limits.global,
        per_tenant: limits.per_tenant,
        per_key: limits.per_key,
        rate: limits.rate,
        rate_per_tenant: limits.rate_per_tenant,
        rate_per_key: limits.rate_per_key,
        backlog: limits.backlog,
        aging: limits.aging,
        poison: limits.poison,
        grace: limits.grace,
        weights: BTreeMap::new(),
        attempts: 3,
        backoff: Backoff::default(),
        timeout: Duration::from_secs(60),
        keep_completed: limits.keep_completed,
        keep_cancelled: limits.keep_cancelled,
        keep_dead: limits.keep_dead,
        priority: 3,
        alert: AlertOn::default(),
        description: String::new(),
    }
}

pub(super) fn queues(top: &Table<'_>) -> Queues {
    let mut queues = Queues::new();
    for (name, table) in named_entries(top, "queues") {
        let default = default_queue(name);
        let kept = table.table("keep");
        let keep = |key| kept.as_ref().and_then(|table| keep(table, key));
        let concurrency = table.integer("concurrency", 1..=MOST_AT_ONCE).unwrap_or(default.concurrency);
        let queue = Queue {
            concurrency,
            reserve: table.integer("reserve", 0..=i64::from(concurrency) - 1),
            global: table.integer("global", 1..=MOST_AT_ONCE),
            per_tenant: table.integer("perTenant", 1..=MOST_AT_ONCE),
            per_key: table.integer("perKey", 1..=MOST_AT_ONCE),
            rate: table.parsed("rate", str::parse),
            rate_per_tenant: table.parsed("ratePerTenant", str::parse),
            rate_per_key: table.parsed("ratePerKey", str::parse),
            backlog: table.integer("backlog", 1..=MOST_WAITING),
            aging: table.positive_duration("aging"),
            poison: table.integer("poison", 1..=MOST_ATTEMPTS).unwrap_or(default.poison),
            grace: table.duration("grace").unwrap_or(default.grace),
            weights: weights(&table),
            attempts: table.integer("attempts", 1..=MOST_ATTEMPTS).unwrap_or(default.attempts),
            backoff: backoff(&table).unwrap_or(default.backoff),
            timeout: table.positive_duration("timeout").unwrap_or(default.timeout),
            keep_completed: keep("completed").unwrap_or(default.keep_completed),
            keep_cancelled: kept.as_ref().and_then(keep_cancelled).unwrap_or(default.keep_cancelled),
            keep_dead: keep("dead").unwrap_or(default.keep_dead),
            priority: table.integer("priority", PRIORITIES).unwrap_or(default.priority),
            alert: alert_on(&table).unwrap_or_default(),
            description: table.description(),
            name: default.name,
        };
        kept.into_iter().for_each(Table::finish);
        table.finish();
        queues.insert(queue.name.clone(), queue);
    }
    queues
}

/// `weights = { tenantName = 3 }`
fn weights(table: &Table<'_>) -> BTreeMap<TenantId, u32> {
    let Some(table) = table.table("weights") else { return BTreeMap::new() };
    let weight = |(name, item): &(String, Item)| {
        let wrong = |message: String| table.report.note(item.place, &join(&table.key, name), message);
        let tenant = TenantId::new(name).map_err(|error| wrong(error.detail().to_owned())).ok()?;
        match item.value {
            Node::Integer(weight) if (1..=i64::from(TenantLimits::MAX_WEIGHT)).contains(&weight) => {
                Some((tenant, u32::try_from(weight).ok()?))
            }
            _ => {
                wrong(format!("expected a number from 1 to {}", TenantLimits::MAX_WEIGHT));
                None
            }
        }
    };
    table.all().iter().filter_map(weight).collect()
}

/// `cancelled`, or by its other name `failed`: of what did not complete, dead letters have a rule of their own.
fn keep_cancelled(table: &Table<'_>) -> Option<Keep> {
    let (cancelled, failed) = (keep(table, "cancelled"), keep(table, "failed"));
    if cancelled.is_some() && failed.is_some() {
        table.wrong("failed", "is another name of cancelled, which is there, too; dead letters are kept by dead");
    }
    cancelled.or(failed)
}

/// A count of jobs or an age.
fn keep(table: &Table<'_>, key: &'static str) -> Option<Keep> {
    match table.item(key)?.value {
        Node::Text(_) => table.duration(key).map(Keep::Age),
        Node::Integer(_) => table.integer(key, 0..=i64::from(u32::MAX)).map(Keep::Count),
        _ => {
            table.wrong(key, "expected a count such as 100 or an age such as \"24h\"");
            None
        }
    }
}

/// `backoff = { kind, base, factor?, cap?, jitter? }` or `delays = ["1s", …]`.
fn backoff(table: &Table<'_>) -> Option<Backoff> {
    let delays = table.texts("delays").map(|texts| {
        let mut delays = Vec::new();
        for (place, text) in texts {
            match parse_duration(text) {
                Ok(delay) => delays.push(delay),
                Err(error) => table.report.note(place, &format!("{}.delays", table.key), error.detail()),
            }
        }
        Backoff::Delays { delays }
    });
    let formula = table.table("backoff").and_then(backoff_formula);
    if delays.is_some() && formula.is_some() {
        table.wrong("delays", "expected either backoff or delays");
    }
    let (key, backoff) = match delays {
        Some(delays) => ("delays", delays),
        None => ("backoff", formula?),
    };
    backoff.validate().map_err(|error| table.wrong(key, error.detail())).ok()?;
    Some(backoff)
}

fn backoff_formula(table: Table<'_>) -> Option<Backoff> {
    let exponential = table.one_of("kind", &[("exponential", true), ("fixed", false)]);
    table.require("kind");
    table.require("base");
    let base = table.duration("base");
    let jitter = jitter(&table).unwrap_or_default();
    let backoff = if exponential == Some(false) {
        base.map(|base| Backoff::Fixed { base, jitter })
    } else {
        let factor = table.number("factor").unwrap_or(2.0);
        let cap = table.positive_duration("cap").unwrap_or(Duration::from_secs(300));
        base.map(|base| Backoff::Exponential { base, factor, cap, jitter })
    };
    table.finish();
    exponential.and(backoff)
}

/// A share of the delay that is taken off, or a duration that is added.
fn jitter(table: &Table<'_>) -> Option<Jitter> {
    match table.item("jitter")?.value {
        Node::Text(_) => table.duration("jitter").map(Jitter::Added),
        _ => table.number("jitter").map(Jitter::Share),
    }
}

pub(super) fn jobs(top: &Table<'_>, queues: &Queues) -> Jobs {
    let mut jobs = Jobs::new();
    for (name, table) in named_entries(top, "jobs") {
        let queue_name = table.required_text("queue").unwrap_or_default();
        let queue = match queues.get(queue_name) {
            Some(queue) => queue.clone(),
            None => {
                if !queue_name.is_empty() {
                    table.unknown("queue", "queue", queue_name, queues.keys().map(|name| &**name));
                }
                default_queue(queue_name)
            }
        };
        let run = table.text("run");
        if let Some(run) = run
            && !BUILT_IN_WORKERS.contains(&run)
        {
            table.unknown("run", "built-in worker", run, BUILT_IN_WORKERS.into_iter());
        }
        let job = JobType {
            name: name.into(),
            queue: queue.name,
            priority: table.integer("priority", PRIORITIES).unwrap_or(queue.priority),
            attempts: table.integer("attempts", 1..=MOST_ATTEMPTS).unwrap_or(queue.attempts),
            backoff: backoff(&table).unwrap_or(queue.backoff),
            timeout: table.positive_duration("timeout").unwrap_or(queue.timeout),
            delay: table.duration("delay"),
            ttl: table.positive_duration("ttl"),
            retry_for: table.positive_duration("retryFor"),
            key: None,
            unique: table.table("unique").and_then(unique),
            alert: alert_on(&table).unwrap_or(queue.alert),
            lifecycle: table.item("lifecycle").is_none() || table.flag("lifecycle"),
            run: run.map(Into::into),
            data: schema(&table, "data"),
            description: table.description(),
        };
        let job = JobType { key: job_key(&table, job.data.as_ref()), ..job };
        table.finish();
        jobs.insert(job.name.clone(), job);
    }
    jobs
}

/// `unique = { key?, while?, window?, onConflict? }`
fn unique(table: Table<'_>) -> Option<UniqueRule> {
    let conflicts = [
        ("keep", OnConflict::Keep),
        ("replace", OnConflict::Replace),
        ("extend", OnConflict::Extend),
        ("latest", OnConflict::Latest),
        ("supersede", OnConflict::Supersede),
    ];
    let states = table.item("while").and_then(|item| {
        let states = serde_json::from_value(item.value.to_json());
        states.map_err(|error| table.wrong("while", error.to_string())).ok()
    });
    let rule = UniqueRule {
        key: table.parsed("key", RoomTemplate::parse),
        states,
        window: table.positive_duration("window"),
        on_conflict: table.one_of("onConflict", &conflicts).unwrap_or_default(),
    };
    table.finish();
    Some(rule)
}

/// `key = "{field}"` over the fields of the data.
fn job_key(table: &Table<'_>, data: Option<&Schema>) -> Option<RoomTemplate> {
    let key = table.parsed("key", RoomTemplate::parse)?;
    for field in key.params() {
        if let Some(data) = data
            && data.field(field).is_none()
        {
            table.unknown("key", "field", field, data.fields());
        }
    }
    Some(key)
}

/// The declared job that `key` names.
pub(super) fn job_named(table: &Table<'_>, key: &'static str, jobs: &Jobs) -> Option<Arc<str>> {
    let name = table.required_text(key)?;
    let job = jobs.get(name).map(|job| job.name.clone());
    if job.is_none() {
        table.unknown(key, "job", name, jobs.keys().map(|name| &**name));
    }
    job
}

pub(super) fn schedules(top: &Table<'_>, app: &App, jobs: &Jobs) -> BTreeMap<Arc<str>, ScheduleSpec> {
    let mut schedules = BTreeMap::new();
    for (name, table) in named_entries(top, "schedules") {
        let job = job_named(&table, "job", jobs);
        let (timing, per) = timing(&table, app);
        let time = |key| table.parsed(key, Timestamp::from_str);
        let (start, end, limit) = (time("start"), time("end"), table.integer("limit", 1..=i64::MAX));
        if start.zip(end).is_some_and(|(start, end)| end < start) {
            table.wrong("end", "expected no earlier time than start");
        }
        let missed = [("skip", Missed::Skip), ("last", Missed::Last), ("all", Missed::All)];
        let overlap = [("allow", Overlap::Allow), ("skip", Overlap::Skip), ("queue", Overlap::Queue)];
        let (missed, overlap) = (table.one_of("missed", &missed), table.one_of("overlap", &overlap));
        if (per, overlap) == (Per::Tenant, Some(Overlap::Queue)) {
            table.wrong("overlap", "expected allow or skip; with per = \"tenant\" a slot waits for nobody");
        }
        let data = match table.item("data") {
            Some(Item { value: Node::Table(fields), .. }) => {
                fields.iter().map(|(key, item)| (key.clone(), item.value.to_json())).collect()
            }
            Some(_) => {
                table.wrong("data", "expected a table");
                serde_json::Map::new()
            }
            None => serde_json::Map::new(),
        };
        let description = table.description();
        table.finish();
        if let Some(job) = job {
            let schedule = ScheduleSpec {
                name: name.into(),
                job,
                per,
                timing,
                start,
                end,
                limit,
                missed: missed.unwrap_or_default(),
                overlap: overlap.unwrap_or_default(),
                data: serde_json::Value::Object(data).into(),
                description,
            };
            schedules.insert(schedule.name.clone(), schedule);
        }
    }
    schedules
}

/// Exactly one of `cron`, `every`, `at` and `per = "user"`.
fn timing(table: &Table<'_>, app: &App) -> (Option<Timing>, Per) {
    let zone = table.text("timezone");
    let cron = table.parsed("cron", |expr| Timing::cron(expr, zone.unwrap_or(&app.timezone)));
    let every = table.parsed("every", |text| Timing::every(parse_duration(text)?));
    let at = table.parsed("at", |text| Timestamp::from_str(text).map(Timing::Once));
    let per = table.one_of("per", &[("user", Per::User), ("tenant", Per::Tenant)]).unwrap_or(Per::App);
    let is_time = |key: &&str| ["cron", "every", "at"].contains(key) || (*key == "per" && per == Per::User);
    let given: Vec<&str> = table.all().iter().map(|(key, _)| key.as_str()).filter(is_time).collect();
    match given.as_slice() {
        [_] => {}
        [] => table.report.note(table.place, &table.key, "expected one of cron, every, at or per = \"user\""),
        [_, second, ..] => table.wrong(second, "expected only one of cron, every, at and per = \"user\""),
    }
    if zone.is_some() && !given.contains(&"cron") {
        table.wrong("timezone", "only a cron has a time zone");
    }
    for key in ["start", "end", "limit"] {
        if per == Per::User && table.all().iter().any(|(given, _)| given == key) {
            table.wrong(key, "with per = \"user\" each user says so");
        }
    }
    (cron.or(every).or(at), per)
}

pub(super) fn caches(top: &Table<'_>) -> BTreeMap<Arc<str>, Cache> {
    let mut caches = BTreeMap::new();
    for (name, table) in named_entries(top, "caches") {
        table.require("ttl");
        let cache = Cache {
            ttl: table.positive_duration("ttl").unwrap_or(Duration::from_secs(60)),
            stale: table.duration("stale"),
            key: table.text("key").map(str::to_owned),
            description: table.description(),
        };
        table.finish();
        caches.insert(name.into(), cache);
    }
    caches
}
