//! The read side: a few connections of its own, so that reading never waits for writing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::types::ToSql;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use tidewire_core::event::{Event, Position};
use tidewire_core::job::{FailedAttempt, Job};
use tidewire_core::store::{Counts, LogQuery};
use tidewire_core::{Error, Id, Result, TenantId, Timestamp};
use tokio::sync::Semaphore;

use super::columns::{
    EVENT_COLUMNS, IdColumn, JOB_COLUMNS, JOB_TABLES, Micros, event, event_across, failed_attempt, fault, job_row,
    state,
};
use crate::inbox::closed;

/// How many reads run at once; more wait.
const CONNECTIONS: usize = 4;

/// The readers of one database file.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), idle: Mutex::new(Vec::new()), permits: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    /// The database file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a read off the async threads. One whose caller has gone still counts for the bound until it has ended.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| closed())?;
        let readers = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let idle = readers.idle.lock().pop();
            let connection = match idle {
                Some(connection) => connection,
                None => open(&readers.path)?,
            };
            let answer = read(&connection);
            let mut idle = readers.idle.lock();
            if !readers.permits.is_closed() {
                idle.push(connection);
            }
            drop(idle);
            drop(permit);
            answer
        });
        task.await.map_err(|error| Error::internal("a read of the store did not finish", error))?
    }

    /// Refuses reads from now on and closes the connections; those in use are closed when their reads end.
    pub(super) fn close(&self) {
        self.permits.close();
        self.idle.lock().clear();
    }
}

fn open(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(fault)?;
    connection.set_prepared_statement_cache_capacity(32);
    super::keep_plans(&connection)?;
    Ok(connection)
}

pub(super) fn head(connection: &Connection, tenant: &TenantId) -> Result<Position> {
    let head = if *tenant == TenantId::across() {
        let mut statement = connection.prepare_cached("SELECT max(number) FROM across").map_err(fault)?;
        statement.query_row([], |row| row.get::<_, Option<i64>>(0)).map_err(fault)?
    } else {
        let mut statement = connection.prepare_cached("SELECT head FROM tenants WHERE name = ?1").map_err(fault)?;
        statement.query_row([tenant.as_str()], |row| row.get::<_, i64>(0)).optional().map_err(fault)?
    };
    Ok(Position(head.unwrap_or_default().unsigned_abs()))
}

pub(super) fn log(connection: &Connection, tenant: &TenantId, query: &LogQuery) -> Result<Vec<Arc<Event>>> {
    let up_to = query.up_to.map_or(i64::MAX, |position| i64::try_from(position.0).unwrap_or(i64::MAX));
    let (from, to) = (query.from.map(Micros), query.to.map(Micros));
    let limit = query.limit.clamp(1, LogQuery::MAX);
    let is_across = *tenant == TenantId::across();
    let (mut sql, place) = if is_across {
        let sql = format!(
            "SELECT {EVENT_COLUMNS}, a.number, t.name FROM across a JOIN tenants t ON t.id = a.tenant \
             JOIN events e ON e.tenant = a.tenant AND e.position = a.position JOIN names n ON n.id = e.type \
             WHERE a.number > :after AND a.number <= :up_to"
        );
        (sql, "a.number")
    } else {
        let sql = format!(
            "SELECT {EVENT_COLUMNS} FROM events e JOIN names n ON n.id = e.type \
             WHERE e.tenant = (SELECT id FROM tenants WHERE name = :tenant) AND e.position > :after AND e.position <= :up_to"
        );
        (sql, "e.position")
    };
    let after = i64::try_from(query.after.0).unwrap_or(i64::MAX);
    let name = tenant.as_str();
    let mut params: Vec<(&str, &dyn ToSql)> = vec![(":after", &after), (":up_to", &up_to), (":limit", &limit)];
    if !is_across {
        params.push((":tenant", &name));
    }
    let filters: [(&str, &str, Option<&dyn ToSql>); 5] = [
        (" AND n.name = :kind", ":kind", query.kind.as_ref().map(|kind| kind as _)),
        (" AND e.stream = :stream", ":stream", query.stream.as_ref().map(|stream| stream as _)),
        (" AND e.user_id = :user", ":user", query.user.as_ref().map(|user| user as _)),
        (" AND e.time >= :from", ":from", from.as_ref().map(|from| from as _)),
        (" AND e.time < :to", ":to", to.as_ref().map(|to| to as _)),
    ];
    for (clause, name, value) in filters {
        if let Some(value) = value {
            sql.push_str(clause);
            params.push((name, value));
        }
    }
    sql.push_str(&format!(" ORDER BY {place} LIMIT :limit"));
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let read = |row: &rusqlite::Row<'_>| if is_across { event_across(row) } else { event(tenant, row) };
    let rows = statement.query_map(params.as_slice(), |row| read(row).map(Arc::new)).map_err(fault)?;
    let (mut events, mut bytes) = (Vec::new(), 0);
    for event in rows {
        let event = event.map_err(fault)?;
        bytes += event.data.get().len();
        events.push(event);
        if bytes >= LogQuery::MAX_BYTES {
            break;
        }
    }
    Ok(events)
}

pub(super) fn event_by_id(connection: &Connection, tenant: &TenantId, id: &Id) -> Result<Option<Arc<Event>>> {
    let sql = format!(
        "SELECT {EVENT_COLUMNS} FROM events e JOIN names n ON n.id = e.type \
         WHERE e.tenant = (SELECT id FROM tenants WHERE name = ?1) AND e.id = ?2"
    );
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let read = |row: &rusqlite::Row<'_>| event(tenant, row).map(Arc::new);
    statement.query_row(params![tenant.as_str(), IdColumn(id)], read).optional().map_err(fault)
}

pub(super) fn job(connection: &Connection, tenant: &TenantId, id: &Id) -> Result<Option<(Job, Vec<FailedAttempt>)>> {
    let sql = format!("SELECT {JOB_COLUMNS} FROM {JOB_TABLES} WHERE t.name = ?1 AND j.id = ?2");
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let row = statement.query_row(params![tenant.as_str(), IdColumn(id)], job_row).optional().map_err(fault)?;
    let Some(row) = row else { return Ok(None) };
    let sql = "SELECT attempt, started_at, ended_at, error, worker FROM attempts WHERE job = ?1 ORDER BY rowid";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let attempts = statement.query_map([row.seq], failed_attempt).map_err(fault)?;
    Ok(Some((row.shown(), attempts.collect::<rusqlite::Result<_>>().map_err(fault)?)))
}

/// Jobs by queue and state.
pub(super) fn counts(connection: &Connection, tenant: Option<&TenantId>) -> Result<Counts> {
    let (of, tenant) = match tenant {
        Some(tenant) => ("WHERE c.tenant = (SELECT id FROM tenants WHERE name = ?1)", vec![tenant.as_str()]),
        None => ("", Vec::new()),
    };
    let sql = format!(
        "SELECT q.name, c.state, sum(c.n) FROM counts c JOIN names q ON q.id = c.queue {of} GROUP BY c.queue, c.state HAVING sum(c.n) <> 0"
    );
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let rows = statement
        .query_map(rusqlite::params_from_iter(&tenant), |row| {
            Ok((Arc::<str>::from(row.get_ref(0)?.as_str()?), state(row, 1)?, row.get::<_, i64>(2)?))
        })
        .map_err(fault)?;
    let mut counts = Counts::new();
    for row in rows {
        let (queue, state, count) = row.map_err(fault)?;
        counts.entry(queue).or_default().insert(state, count.unsigned_abs());
    }
    Ok(counts)
}

pub(super) fn session(connection: &Connection, tenant: &TenantId, sid: &str, now: Timestamp) -> Result<Option<String>> {
    let sql = "SELECT state FROM sessions WHERE tenant = (SELECT id FROM tenants WHERE name = ?1) AND sid = ?2 AND until > ?3";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    statement.query_row(params![tenant.as_str(), sid, Micros(now)], |row| row.get(0)).optional().map_err(fault)
}

#[cfg(test)]
mod tests;
