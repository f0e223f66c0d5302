use tidewire_core::Json;
use tidewire_core::job::{Job, State};
use tidewire_core::retry::Backoff;

use super::*;
use crate::rows::{Bonds, Desk, Ended, EndedJob, Finished, ScheduleRow, Schedules};

const START: Timestamp = Timestamp::from_millis(1_750_000_000_000);
const LIMIT: usize = 10;

/// Fails the test that prepares a statement which reads all of a table that grows. `next_due` alone reads an index from its beginning,
/// and stops at the first entry.
pub(super) fn must_not_scan(connection: &Connection, sql: &str) {
    const GROWING: [&str; 18] = [
        "jobs",
        "j",
        "events",
        "across",
        "e",
        "attempts",
        "claims",
        "dedup",
        "idempotency",
        "sessions",
        "counts",
        "uniques",
        "edges",
        "flows",
        "flow_jobs",
        "logs",
        "schedules",
        "sc",
    ];
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("a plan");
    for index in 1..=statement.parameter_count() {
        statement.raw_bind_parameter(index, 1).expect("bound");
    }
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().expect("a step") {
        let step: String = row.get("detail").expect("text");
        let is_bounded = sql.ends_with("ORDER BY run_at LIMIT 1") && step.ends_with("INDEX jobs_due")
            || sql.ends_with("ORDER BY expires_at LIMIT 1") && step.ends_with("INDEX jobs_expiry")
            // The few records of what is leased right now, read once at the start.
            || sql == "SELECT batch, seqs FROM claims ORDER BY batch";
        let scanned = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
        assert!(is_bounded || scanned.is_none_or(|table| !GROWING.contains(&table)), "{step}: {sql}");
        assert!(!step.contains("TEMP B-TREE"), "{step}: {sql}");
    }
}

fn open() -> (tempfile::TempDir, SqliteRows) {
    let directory = tempfile::tempdir().expect("directory");
    let connection = Connection::open(directory.path().join("tidewire.db")).expect("open");
    super::super::keep_plans(&connection).expect("plans");
    connection.execute_batch(include_str!("../schema.sql")).expect("schema");
    connection.execute_batch(include_str!("../indexes.sql")).expect("indexes");
    let lock = File::create(directory.path().join("lock")).expect("lock");
    (directory, SqliteRows::new(connection, None, lock))
}

fn job(seq: Seq) -> JobRow {
    let job = Job {
        tenant: TenantId::new("a").expect("tenant"),
        id: Id::parse(&format!("j{seq}")).expect("id"),
        kind: "work".into(),
        queue: "q".into(),
        state: State::Pending,
        priority: 3,
        data: Json::empty_object(),
        attempt: 1,
        attempts: 3,
        backoff: Backoff::default(),
        timeout: std::time::Duration::from_secs(60),
        created_at: START,
        run_at: START,
        started_at: None,
        finished_at: None,
        result: None,
        error: None,
        user_id: None,
        correlation_id: None,
        causation_id: None,
        depth: 0,
        rare: None,
        held: None,
    };
    JobRow { seq, keys: Keys { tenant: 1, queue: 1, kind: 1 }, job, holder: None }
}

fn event() -> Arc<Event> {
    Arc::new(Event {
        tenant: TenantId::new("a").expect("tenant"),
        position: Position(1),
        origin: None,
        id: Id::parse("e1").expect("id"),
        kind: "x".into(),
        time: START,
        data: Json::empty_object(),
        rooms: [].into(),
        user_id: None,
        correlation_id: None,
        causation_id: None,
        stream: Some("s".into()),
        version: Some(1),
    })
}

/// Every statement of the writer is prepared here, and each is looked at by [`must_not_scan`].
#[test]
fn no_statement_of_the_writer_reads_a_whole_table() -> Result<()> {
    let (_directory, mut rows) = open();
    let (event, id) = (event(), Id::parse("j1").expect("id"));
    rows.begin()?;
    let tenant = rows.add_name(NameKind::Tenant, "a")?;
    let name = rows.add_name(NameKind::Other, "q")?;
    assert_eq!((rows.find_name(NameKind::Tenant, "a")?, rows.find_name(NameKind::Other, "q")?), (Some(1), Some(1)));
    assert_eq!(rows.name(NameKind::Other, name)?.as_deref(), Some("q"));

    rows.add_event(tenant, name, &event)?;
    rows.set_head(tenant, event.position)?;
    assert_eq!((rows.head(tenant)?, rows.last_time()?), (event.position, START));
    assert!(rows.event_by_id(tenant, &event.id)?.is_some());
    rows.add_across(tenant, &Arc::new(Event::clone(&event).across(Position(7))))?;
    assert_eq!(rows.last_across()?, Position(7));
    assert_eq!(rows.stream_version(tenant, "s")?, 1);

    for seq in 1..=4 {
        rows.add_job(&job(seq))?;
    }
    let lane = LaneKey { keys: job(1).keys, priority: 3 };
    assert_eq!((rows.last_seq()?, rows.pending(lane, LIMIT)?.len(), rows.lanes()?), (4, 4, vec![lane]));
    for (seq, state) in [(1, State::Scheduled), (2, State::Completed), (3, State::Failed), (4, State::Dead)] {
        let mut row = rows.job(seq)?.expect("the job");
        row.job.state = state;
        row.job.finished_at = state.is_final().then_some(START);
        rows.update_job(&row)?;
    }
    assert_eq!((rows.due(START, LIMIT)?, rows.next_due()?), (vec![1], Some(START)));
    let seqs = |jobs: Vec<EndedJob>| jobs.into_iter().map(|job| job.seq).collect::<Vec<_>>();
    assert_eq!((seqs(rows.completed(name, LIMIT)?), rows.ended_queues()?), (vec![2], vec![name]));
    let later = Timestamp::from_millis(1_760_000_000_000);
    assert_eq!(seqs(rows.ended_before(name, Ended::Completed, later, LIMIT)?), [2]);
    assert_eq!(rows.ended_before(name, Ended::Dead, later, LIMIT)?.len(), 2);
    assert!(rows.ended_before(name, Ended::Cancelled, later, LIMIT)?.is_empty());
    rows.add_counts(name, tenant, &[1, 0, 0, 0, 1, 1, 1, 0])?;
    assert_eq!(seqs(rows.ended_beyond(name, Ended::Completed, 0, LIMIT)?), [2]);
    assert_eq!(seqs(rows.ended_beyond(name, Ended::Dead, 1, LIMIT)?), [3]);
    assert!(rows.ended_beyond(name, Ended::Cancelled, 0, LIMIT)?.is_empty());
    assert_eq!(rows.job_seq(tenant, &id)?, Some(1));
    let failed =
        FailedAttempt { attempt: 1, started_at: None, ended_at: START, error: "boom".into(), worker: "w".into() };
    rows.add_failed_attempt(1, &failed)?;
    rows.delete_beside(1)?;
    rows.delete_job(1)?;
    rows.add_claims(1, &[2])?;
    assert_eq!(rows.claims()?, [(1, vec![2])]);
    rows.delete_claims(1)?;

    ties(&mut rows, tenant, name)?;

    let schedule = ScheduleRow {
        revision: 1,
        spec: "{}".into(),
        paused: false,
        error: None,
        slot: Some(START),
        next_at: Some(START),
        last: None,
        last_job: None,
        runs: 0,
        created_at: START,
    };
    rows.put_schedule(tenant, "k", "", &schedule)?;
    rows.advance_schedule(tenant, "k", "", &ScheduleRow { runs: 7, last: Some(START), ..schedule })?;
    assert_eq!(rows.schedule(tenant, "k", "")?.map(|row| (row.runs, row.last)), Some((7, Some(START))));
    rows.delete_schedule(tenant, "k", "")?;
    assert!(rows.schedule(tenant, "k", "")?.is_none());

    rows.put_dedup(tenant, "k", START)?;
    rows.put_idempotent(tenant, "k", &[1], "{}", START)?;
    rows.put_session(tenant, "s1", "{}", START)?;
    rows.put_slot(tenant, "k", &tidewire_core::schedule::Reached { last: START, last_job: Some(id.clone()), runs: 3 })?;
    assert!(rows.dedup_until(tenant, "k")?.is_some() && rows.idempotent(tenant, "k")?.is_some());
    assert!(rows.slot(tenant, "k")?.is_some_and(|reached| reached.runs == 3) && rows.slots(tenant)?.len() == 1);
    assert!(!rows.purge(START, LIMIT)?);
    assert!(rows.dedup_until(tenant, "k")?.is_none() && rows.idempotent(tenant, "k")?.is_none());
    rows.delete_session(tenant, "s1")?;
    rows.commit()
}

/// Unique keys, keys, counts, edges and flows.
fn ties(rows: &mut SqliteRows, tenant: NameId, name: NameId) -> Result<()> {
    let mut blocked = job(10);
    blocked.job.state = State::Blocked;
    (blocked.job.attempt, blocked.job.started_at) = (0, None);
    let rare = blocked.job.rare_mut();
    (rare.key, rare.expires_at) = (Some("k".into()), Some(START));
    rows.add_job(&blocked)?;
    assert_eq!(rows.blocked_of_key(1, 1, "k", LIMIT)?, [10]);
    assert_eq!(rows.blocked_keys(1, (0, ""), LIMIT)?, [(1, "k".to_owned())]);
    assert_eq!((rows.expired(START, LIMIT)?, rows.next_expiry()?), (vec![10], Some(START)));
    rows.replace_job(&blocked)?;

    rows.add_counts(name, tenant, &[0, 1, 0, 0, 2, 0, 0, 0])?;
    rows.add_counts(name, tenant, &[0, 1, 0, 0, -1, 0, 0, 0])?;
    assert_eq!(rows.counts(name, tenant)?, [1, 2, 0, 0, 2, 1, 1, 0]);

    rows.put_unique(tenant, name, "u", &crate::rows::Taken { seq: 10, id: Id::parse("u")?, until: None, ended: None })?;
    rows.waited_for(10)?;
    assert_eq!(rows.unique(tenant, name, "u")?.map(|taken| taken.seq), Some(10));
    rows.delete_unique(tenant, name, "u")?;

    rows.add_edge(crate::rows::Edge { child: 10, parent: 2, ignores_failure: false })?;
    assert_eq!(rows.dependents(2)?.len(), 1);
    rows.end_edges(2, &job(2).job)?;
    assert_eq!((rows.dependents(2)?.len(), rows.parents(10, LIMIT)?.len()), (0, 1));

    let id = Id::parse("f")?;
    let mut flow = rows.add_flow(tenant, &id, None, START)?;
    let member = crate::rows::Member {
        seq: 10,
        id: id.clone(),
        reference: None,
        kind: "q".into(),
        compensates: None,
        ended: None,
    };
    rows.add_member(flow.number, &member)?;
    rows.end_member(flow.number, 10, State::Completed, START)?;
    assert_eq!(rows.members(flow.number)?.len(), 1);
    flow.finished_at = Some(START);
    rows.update_flow(&flow)?;
    assert_eq!(rows.flow(tenant, &id)?.and_then(|flow| flow.finished_at), Some(START));
    rows.reopen_member(flow.number, 10)?;
    assert!(rows.members(flow.number)?[0].ended.is_none());
    rows.delete_member(flow.number, 10)?;

    assert_eq!(rows.parents_of(10)?, [2]);
    rows.reopen_edge(10, 2)?;
    assert_eq!((rows.dependents(2)?.len(), rows.parents(10, LIMIT)?.len()), (1, 0));

    for text in ["one", "two", "three"] {
        rows.add_log_line(10, START, 1, text)?;
    }
    rows.trim_log(10, 2)?;
    let left: i64 = rows.connection.query_row("SELECT count(*) FROM logs", [], |row| row.get(0)).expect("count");
    assert_eq!(left, 2);
    rows.put_queue_settings(name, Some("{}"))?;
    assert_eq!(rows.queue_settings(name)?.as_deref(), Some("{}"));
    rows.put_queue_settings(name, None)?;
    assert_eq!(rows.queue_settings(name)?, None);
    Ok(())
}

#[test]
fn a_purge_stops_at_its_limit_and_says_so() -> Result<()> {
    let (_directory, mut rows) = open();
    let keys: Vec<String> = (0..25).map(|number| number.to_string()).collect();
    for key in &keys {
        rows.put_dedup(1, key, START)?;
        rows.put_idempotent(1, key, &[1], "{}", START)?;
        rows.put_session(1, key, "{}", START)?;
    }
    rows.put_dedup(1, "young", START + std::time::Duration::from_secs(1))?;
    let left = |rows: &SqliteRows| -> Vec<i64> {
        let count = |table| rows.connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0));
        ["dedup", "idempotency", "sessions"].map(|table| count(table).expect("count")).to_vec()
    };
    let mut purges = Vec::new();
    for _ in 0..3 {
        purges.push((rows.purge(START, LIMIT)?, left(&rows)));
    }
    assert_eq!(purges, [(true, vec![16, 15, 15]), (true, vec![6, 5, 5]), (false, vec![1, 0, 0])]);
    Ok(())
}
