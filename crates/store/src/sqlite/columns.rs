//! How values stand in columns.

use std::time::Duration;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, Row};
use tidewire_core::event::{Event, Position};
use tidewire_core::job::{FailedAttempt, Job, State};
use tidewire_core::{Error, Id, Json, Kind, Result, TenantId, Timestamp};

use crate::rows::{Holder, JobRow, Keys};

/// An id as a 16-byte blob when it is a UUID, else as text.
pub(super) struct IdColumn<'a>(pub(super) &'a Id);

impl ToSql for IdColumn<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Id::Uuid(uuid) => ToSqlOutput::Borrowed(ValueRef::Blob(uuid.as_bytes())),
            Id::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        })
    }
}

struct StoredId(Id);

impl FromSql for StoredId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value {
            ValueRef::Blob(bytes) => uuid::Uuid::from_slice(bytes)
                .map(|uuid| Self(Id::Uuid(uuid)))
                .map_err(|error| FromSqlError::Other(Box::new(error))),
            ValueRef::Text(_) => Ok(Self(Id::Text(value.as_str()?.into()))),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => Err(FromSqlError::InvalidType),
        }
    }
}

/// A time in microseconds.
pub(super) struct Micros(pub(super) Timestamp);

impl ToSql for Micros {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Owned(Value::Integer(self.0.as_micros())))
    }
}

impl FromSql for Micros {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(|micros| Self(Timestamp::from_micros(micros)))
    }
}

/// Any fault of SQLite as an error of ours, in words that say what to do where there is something to do.
pub(super) fn fault(error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode;
    let detail = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full",
        Some(ErrorCode::ReadOnly) => "the data directory or database file is read-only",
        Some(ErrorCode::CannotOpen) => "the database file cannot be opened",
        Some(ErrorCode::NotADatabase) => "the file is not a SQLite database",
        Some(ErrorCode::DatabaseCorrupt) => "the database file is damaged",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "the database file is locked by another process",
        Some(ErrorCode::SystemIoFailure) => "reading or writing the database file failed",
        Some(_) | None => "SQLite failed",
    };
    Error::new(Kind::Unavailable, "store.failed", detail).with_source(error)
}

/// The columns of [`event`], for a query that joins `names n` and is about one tenant.
pub(super) const EVENT_COLUMNS: &str = "e.position, e.id, n.name, e.time, e.stream, e.version, e.user_id, e.correlation_id, \
     e.causation_id, e.rooms, e.data";

/// Reads an event from [`EVENT_COLUMNS`].
pub(super) fn event(tenant: &TenantId, row: &Row<'_>) -> rusqlite::Result<Event> {
    let rooms: Vec<Box<str>> = serde_json::from_str(row.get_ref(9)?.as_str()?).map_err(conversion)?;
    Ok(Event {
        tenant: tenant.clone(),
        position: Position(row.get::<_, i64>(0)?.unsigned_abs()),
        origin: None,
        id: row.get::<_, StoredId>(1)?.0,
        kind: row.get_ref(2)?.as_str()?.into(),
        time: row.get::<_, Micros>(3)?.0,
        stream: text(row, 4)?,
        version: row.get::<_, Option<i64>>(5)?.map(i64::unsigned_abs),
        user_id: text(row, 6)?,
        correlation_id: text(row, 7)?,
        causation_id: text(row, 8)?,
        rooms: rooms.into(),
        data: json(row, 10)?,
    })
}

/// The same of the log across tenants, from [`EVENT_COLUMNS`] and then the number there and the tenant's name.
pub(super) fn event_across(row: &Row<'_>) -> rusqlite::Result<Event> {
    let number = Position(row.get::<_, i64>(11)?.unsigned_abs());
    let tenant = TenantId::from_stored(row.get_ref(12)?.as_str()?);
    event(&tenant, row).map(|event| event.across(number))
}

/// The columns of [`job_row`], for a query that joins `names q` and `names n`, and `tenants t`.
pub(super) const JOB_COLUMNS: &str = "j.seq, j.tenant, t.name, j.id, j.type, n.name, j.queue, q.name, j.state, j.priority, \
     j.run_at, j.attempt, j.attempts, j.created_at, j.started_at, j.finished_at, j.nonce, j.lease_until, j.local, j.worker, \
     j.timeout, j.depth, j.backoff, j.user_id, j.correlation_id, j.causation_id, j.data, j.result, j.error, j.cancelled, j.rare";

/// The joins that [`JOB_COLUMNS`] needs.
pub(super) const JOB_TABLES: &str =
    "jobs j JOIN tenants t ON t.id = j.tenant JOIN names n ON n.id = j.type JOIN names q ON q.id = j.queue";

/// Reads a job from [`JOB_COLUMNS`].
pub(super) fn job_row(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    let holder = match row.get::<_, Option<i64>>(16)? {
        Some(nonce) => Some(Holder {
            nonce: nonce.cast_unsigned(),
            until: row.get::<_, Micros>(17)?.0,
            local: row.get(18)?,
            worker: row.get_ref(19)?.as_str()?.into(),
            cancelled: row.get(29)?,
        }),
        None => None,
    };
    let job = Job {
        tenant: TenantId::from_stored(row.get_ref(2)?.as_str()?),
        id: row.get::<_, StoredId>(3)?.0,
        kind: row.get_ref(5)?.as_str()?.into(),
        queue: row.get_ref(7)?.as_str()?.into(),
        state: state(row, 8)?,
        priority: row.get(9)?,
        run_at: row.get::<_, Micros>(10)?.0,
        attempt: row.get(11)?,
        attempts: row.get(12)?,
        created_at: row.get::<_, Micros>(13)?.0,
        started_at: row.get::<_, Option<Micros>>(14)?.map(|at| at.0),
        finished_at: row.get::<_, Option<Micros>>(15)?.map(|at| at.0),
        timeout: Duration::from_micros(row.get::<_, i64>(20)?.unsigned_abs()),
        depth: row.get(21)?,
        backoff: serde_json::from_str(row.get_ref(22)?.as_str()?).map_err(conversion)?,
        user_id: text(row, 23)?,
        correlation_id: text(row, 24)?,
        causation_id: text(row, 25)?,
        data: json(row, 26)?,
        result: row.get_ref(27)?.as_str_or_null()?.map(parse).transpose()?,
        error: text(row, 28)?,
        rare: row.get_ref(30)?.as_str_or_null()?.map(serde_json::from_str).transpose().map_err(conversion)?,
        held: None,
    };
    Ok(JobRow {
        seq: row.get(0)?,
        keys: Keys { tenant: row.get(1)?, kind: row.get(4)?, queue: row.get(6)? },
        job,
        holder,
    })
}

/// The state in a column.
pub(super) fn state(row: &Row<'_>, index: usize) -> rusqlite::Result<State> {
    let number: u8 = row.get(index)?;
    State::from_number(number).ok_or_else(|| conversion(format!("job state {number}")))
}

/// Reads a failed run from `attempt, started_at, ended_at, error, worker`.
pub(super) fn failed_attempt(row: &Row<'_>) -> rusqlite::Result<FailedAttempt> {
    Ok(FailedAttempt {
        attempt: row.get(0)?,
        started_at: row.get::<_, Option<Micros>>(1)?.map(|at| at.0),
        ended_at: row.get::<_, Micros>(2)?.0,
        error: row.get_ref(3)?.as_str()?.into(),
        worker: row.get_ref(4)?.as_str()?.into(),
    })
}

/// The id in a column that may be null.
pub(super) fn optional_id(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Id>> {
    Ok(row.get::<_, Option<StoredId>>(index)?.map(|id| id.0))
}

pub(super) fn text(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Box<str>>> {
    Ok(row.get_ref(index)?.as_str_or_null()?.map(Into::into))
}

fn json(row: &Row<'_>, index: usize) -> rusqlite::Result<Json> {
    parse(row.get_ref(index)?.as_str()?)
}

pub(super) fn parse(text: &str) -> rusqlite::Result<Json> {
    Json::parse(text.to_owned()).map_err(conversion)
}

pub(super) fn conversion(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
}

/// One value of the table `meta`.
pub(super) fn meta<T: FromSql>(connection: &Connection, key: &str) -> Result<Option<T>> {
    use rusqlite::OptionalExtension;
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional().map_err(fault)
}
