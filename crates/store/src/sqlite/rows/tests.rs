use tidewire_core::Json;
use tidewire_core::job::{Job, State};
use tidewire_core::retry::Backoff;

use super::*;
use crate::rows::Keys;

const START: Timestamp = Timestamp::from_millis(1_750_000_000_000);
const LIMIT: usize = 10;

/// Fails the test that prepares a statement which reads all of a table that grows. `next_due` alone reads an index from its beginning,
/// and stops at the first entry.
pub(super) fn must_not_scan(connection: &Connection, sql: &str) {
    const GROWING: [&str; 9] = ["jobs", "j", "events", "e", "attempts", "claims", "dedup", "idempotency", "sessions"];
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("a plan");
    for index in 1..=statement.parameter_count() {
        statement.raw_bind_parameter(index, 1).expect("bound");
    }
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().expect("a step") {
        let step: String = row.get("detail").expect("text");
        let is_bounded = sql.ends_with("ORDER BY run_at LIMIT 1") && step.ends_with("INDEX jobs_due")
            // The few records of what is leased right now, read once at the start.
            || sql == "SELECT batch, seqs FROM claims ORDER BY batch";
        let scanned = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
        assert!(is_bounded || scanned.is_none_or(|table| !GROWING.contains(&table)), "{step}: {sql}");
        assert!(!step.contains("TEMP B-TREE") || sql.contains("state IN (5, 6, 7)"), "{step}: {sql}");
    }
}

fn open() -> (tempfile::TempDir, SqliteRows) {
    let directory = tempfile::tempdir().expect("directory");
    let connection = Connection::open(directory.path().join("tidewire.db")).expect("open");
    super::super::keep_plans(&connection).expect("plans");
    connection.execute_batch(include_str!("../schema.sql")).expect("schema");
    connection.execute_batch(include_str!("../indexes.sql")).expect("indexes");
    let lock = File::create(directory.path().join("lock")).expect("lock");
    (directory, SqliteRows::new(connection, lock))
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
    };
    JobRow { seq, keys: Keys { tenant: 1, queue: 1, kind: 1 }, job, holder: None }
}

fn event() -> Arc<Event> {
    Arc::new(Event {
        tenant: TenantId::new("a").expect("tenant"),
        position: Position(1),
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
    assert_eq!((rows.completed(name, LIMIT)?, rows.ended_queues()?), (vec![2], vec![name]));
    let later = Timestamp::from_millis(1_760_000_000_000);
    assert_eq!(rows.ended_before(name, Ended::Completed, later, LIMIT)?, [2]);
    assert_eq!(rows.ended_before(name, Ended::Failed, later, LIMIT)?.len(), 2);
    assert_eq!(rows.ended_beyond(name, Ended::Completed, 0, LIMIT)?, [2]);
    assert_eq!(rows.ended_beyond(name, Ended::Failed, 1, LIMIT)?, [3]);
    assert_eq!(rows.job_seq(tenant, &id)?, Some(1));
    let failed =
        FailedAttempt { attempt: 1, started_at: None, ended_at: START, error: "boom".into(), worker: "w".into() };
    rows.add_failed_attempt(1, &failed)?;
    rows.delete_failed_attempts(1)?;
    rows.delete_job(1)?;
    rows.add_claims(1, &[2])?;
    assert_eq!(rows.claims()?, [(1, vec![2])]);
    rows.delete_claims(1)?;

    rows.put_dedup(tenant, "k", START)?;
    rows.put_idempotent(tenant, "k", &[1], "{}", START)?;
    rows.put_session(tenant, "s1", "{}", START)?;
    rows.put_slot(tenant, "k", START, Some(&id))?;
    assert!(rows.dedup_until(tenant, "k")?.is_some() && rows.idempotent(tenant, "k")?.is_some());
    assert!(rows.slot(tenant, "k")?.is_some() && rows.slots()?.len() == 1);
    assert!(!rows.purge(START, LIMIT)?);
    assert!(rows.dedup_until(tenant, "k")?.is_none() && rows.idempotent(tenant, "k")?.is_none());
    rows.delete_session(tenant, "s1")?;
    rows.commit()
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
