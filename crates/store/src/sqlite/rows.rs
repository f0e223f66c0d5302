//! The write side: every statement the writer runs, on its one connection.

use std::fs::File;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Params, Row, params};
use tidewire_core::event::{Event, Position};
use tidewire_core::job::{FailedAttempt, Job, MAX_FAILED_ATTEMPTS, States};
use tidewire_core::retry::Backoff;
use tidewire_core::{Error, Id, Result, TenantId, Timestamp};

use super::columns::{EVENT_COLUMNS, IdColumn, JOB_COLUMNS, JOB_TABLES, Micros, event, fault, job_row, state};
use super::fold::Folding;
use crate::rows::{JobRow, Keys, LaneKey, NameId, NameKind, Place, Rows, Seq, blocking_key};

/// How long a flow is shown after its last job has ended.
const KEEP_FLOWS: Duration = Duration::from_secs(30 * 86_400);

/// How many old flows one purge deletes; each may have many jobs.
const PURGE_FLOWS: usize = 100;

/// The writer's connection.
pub(crate) struct SqliteRows {
    /// Ends before the connection is closed, which then folds what is left.
    folding: Option<Folding>,
    pub(super) connection: Connection,
    /// Whether what is written so far is inside `BEGIN`.
    open: bool,
    /// The backoff that was written last and its text: jobs of one type follow each other.
    backoff: (Backoff, String),
    /// Keeps other processes out until the connection is closed.
    _lock: File,
}

impl SqliteRows {
    pub(super) fn new(connection: Connection, folding: Option<Folding>, lock: File) -> Self {
        connection.set_prepared_statement_cache_capacity(64);
        let backoff = Backoff::default();
        let text = serde_json::to_string(&backoff).unwrap_or_default();
        Self { folding, connection, open: false, backoff: (backoff, text), _lock: lock }
    }

    fn remember_backoff(&mut self, backoff: &Backoff) {
        if self.backoff.0 != *backoff {
            self.backoff = (backoff.clone(), serde_json::to_string(backoff).unwrap_or_default());
        }
    }

    fn prepare(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        #[cfg(test)]
        tests::must_not_scan(&self.connection, sql);
        self.connection.prepare_cached(sql)
    }

    pub(super) fn run(&self, sql: &str, params: impl Params) -> Result<usize> {
        self.prepare(sql).and_then(|mut statement| statement.execute(params)).map_err(fault)
    }

    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.prepare(sql).and_then(|mut statement| statement.query_row(params, read).optional()).map_err(fault)
    }

    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.prepare(sql).map_err(fault)?;
        let rows = statement.query_map(params, read).map_err(fault)?;
        rows.collect::<rusqlite::Result<_>>().map_err(fault)
    }
}

/// The column that finds waiting jobs whose time to begin has passed.
fn expiry(job: &Job) -> Option<Micros> {
    let waits = job.started_at.is_none() && States::WAITING.contains(job.state);
    job.expires_at().filter(|_| waits).map(Micros)
}

fn rare(job: &Job) -> Result<Option<String>> {
    let text = job.rare.as_ref().map(serde_json::to_string).transpose();
    text.map_err(|error| Error::internal("the rare part of a job cannot be written", error))
}

impl Rows for SqliteRows {
    fn begin(&mut self) -> Result<()> {
        if let Some(folding) = &mut self.folding {
            folding.tend(&self.connection)?;
        }
        self.run("BEGIN IMMEDIATE", [])?;
        self.open = true;
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        self.run("COMMIT", [])?;
        self.open = false;
        Ok(())
    }

    fn rollback(&mut self) {
        if self.open {
            // The writer ends after this; a rollback that fails leaves the file to SQLite's own recovery.
            drop(self.connection.execute_batch("ROLLBACK"));
            self.open = false;
        }
    }

    fn savepoint(&mut self) -> Result<()> {
        self.run("SAVEPOINT work", []).map(drop)
    }

    fn release_savepoint(&mut self) -> Result<()> {
        self.run("RELEASE work", []).map(drop)
    }

    fn undo_savepoint(&mut self) -> Result<()> {
        self.run("ROLLBACK TO work", [])?;
        self.run("RELEASE work", []).map(drop)
    }

    fn find_name(&mut self, kind: NameKind, name: &str) -> Result<Option<NameId>> {
        let sql = match kind {
            NameKind::Tenant => "SELECT id FROM tenants WHERE name = ?1",
            NameKind::Other => "SELECT id FROM names WHERE name = ?1",
        };
        self.one(sql, [name], |row| row.get(0))
    }

    fn name(&mut self, kind: NameKind, id: NameId) -> Result<Option<String>> {
        let sql = match kind {
            NameKind::Tenant => "SELECT name FROM tenants WHERE id = ?1",
            NameKind::Other => "SELECT name FROM names WHERE id = ?1",
        };
        self.one(sql, [id], |row| row.get(0))
    }

    fn add_name(&mut self, kind: NameKind, name: &str) -> Result<NameId> {
        let sql = match kind {
            NameKind::Tenant => "INSERT INTO tenants (name) VALUES (?1)",
            NameKind::Other => "INSERT INTO names (name) VALUES (?1)",
        };
        self.run(sql, [name])?;
        NameId::try_from(self.connection.last_insert_rowid())
            .map_err(|error| Error::internal("the store holds too many names", error))
    }

    fn head(&mut self, tenant: NameId) -> Result<Position> {
        let head = self.one("SELECT head FROM tenants WHERE id = ?1", [tenant], |row| row.get::<_, i64>(0))?;
        Ok(Position(head.unwrap_or_default().unsigned_abs()))
    }

    fn set_head(&mut self, tenant: NameId, head: Position) -> Result<()> {
        self.run("UPDATE tenants SET head = ?2 WHERE id = ?1", params![tenant, head.0.cast_signed()]).map(drop)
    }

    fn last_time(&mut self) -> Result<Timestamp> {
        // The last event of each tenant is one step into the primary key; the latest of them is the latest of all.
        let sql = "SELECT max((SELECT time FROM events e WHERE e.tenant = t.id ORDER BY position DESC LIMIT 1)) FROM tenants t";
        let time = self.one(sql, [], |row| row.get::<_, Option<Micros>>(0))?;
        Ok(time.flatten().map(|time| time.0).unwrap_or_default())
    }

    fn add_event(&mut self, tenant: NameId, kind: NameId, event: &Arc<Event>) -> Result<()> {
        let rooms = serde_json::to_string(&*event.rooms).unwrap_or_default();
        self.run(
            "INSERT INTO events (tenant, position, id, type, time, stream, version, user_id, correlation_id, causation_id, rooms, data) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            params![
                tenant,
                event.position.0.cast_signed(),
                IdColumn(&event.id),
                kind,
                Micros(event.time),
                event.stream.as_deref(),
                event.version.map(u64::cast_signed),
                event.user_id.as_deref(),
                event.correlation_id.as_deref(),
                event.causation_id.as_deref(),
                rooms,
                event.data.get(),
            ],
        )
        .map(drop)
    }

    fn last_across(&mut self) -> Result<Position> {
        let number = self.one("SELECT max(number) FROM across", [], |row| row.get::<_, Option<i64>>(0))?;
        Ok(Position(number.flatten().unwrap_or_default().unsigned_abs()))
    }

    fn add_across(&mut self, tenant: NameId, event: &Arc<Event>) -> Result<()> {
        let Some((_, position)) = &event.origin else { return Ok(()) };
        let row = params![event.position.0.cast_signed(), tenant, position.0.cast_signed()];
        self.run("INSERT INTO across (number, tenant, position) VALUES (?1, ?2, ?3)", row).map(drop)
    }

    fn event_by_id(&mut self, tenant: NameId, id: &Id) -> Result<Option<Arc<Event>>> {
        let Some(name) = self.name(NameKind::Tenant, tenant)? else { return Ok(None) };
        let name = TenantId::from_stored(&name);
        let sql = format!(
            "SELECT {EVENT_COLUMNS} FROM events e JOIN names n ON n.id = e.type WHERE e.tenant = ?1 AND e.id = ?2"
        );
        Ok(self.one(&sql, params![tenant, IdColumn(id)], |row| event(&name, row))?.map(Arc::new))
    }

    fn stream_version(&mut self, tenant: NameId, stream: &str) -> Result<u64> {
        let sql = "SELECT max(version) FROM events WHERE tenant = ?1 AND stream = ?2";
        let version = self.one(sql, params![tenant, stream], |row| row.get::<_, Option<i64>>(0))?;
        Ok(version.flatten().unwrap_or_default().unsigned_abs())
    }

    fn last_seq(&mut self) -> Result<Seq> {
        Ok(self.one("SELECT max(seq) FROM jobs", [], |row| row.get::<_, Option<Seq>>(0))?.flatten().unwrap_or_default())
    }

    fn add_job(&mut self, row: &JobRow) -> Result<()> {
        self.remember_backoff(&row.job.backoff);
        let (job, holder) = (&row.job, row.holder.as_ref());
        self.run(
            "INSERT INTO jobs (seq, tenant, id, type, queue, state, priority, run_at, attempt, attempts, created_at, started_at, \
             finished_at, nonce, lease_until, local, worker, timeout, depth, backoff, user_id, correlation_id, causation_id, data, \
             cancelled, expires_at, key, rare) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, \
             ?25, ?26, ?27, ?28)",
            params![
                row.seq,
                row.keys.tenant,
                IdColumn(&job.id),
                row.keys.kind,
                row.keys.queue,
                job.state as u8,
                job.priority,
                Micros(job.run_at),
                job.attempt,
                job.attempts,
                Micros(job.created_at),
                job.started_at.map(Micros),
                job.finished_at.map(Micros),
                holder.map(|holder| holder.nonce.cast_signed()),
                holder.map(|holder| Micros(holder.until)),
                holder.map(|holder| holder.local),
                holder.map(|holder| &*holder.worker),
                i64::try_from(job.timeout.as_micros()).unwrap_or(i64::MAX),
                job.depth,
                self.backoff.1,
                job.user_id.as_deref(),
                job.correlation_id.as_deref(),
                job.causation_id.as_deref(),
                job.data.get(),
                holder.map(|holder| holder.cancelled),
                expiry(job),
                blocking_key(job),
                rare(job)?,
            ],
        )
        .map(drop)
    }

    fn update_job(&mut self, row: &JobRow) -> Result<()> {
        let (job, holder) = (&row.job, row.holder.as_ref());
        self.run(
            "UPDATE jobs SET state = ?2, run_at = ?3, attempt = ?4, started_at = ?5, finished_at = ?6, nonce = ?7, lease_until = ?8, \
             local = ?9, worker = ?10, result = ?11, error = ?12, cancelled = ?13 WHERE seq = ?1",
            params![
                row.seq,
                job.state as u8,
                Micros(job.run_at),
                job.attempt,
                job.started_at.map(Micros),
                job.finished_at.map(Micros),
                holder.map(|holder| holder.nonce.cast_signed()),
                holder.map(|holder| Micros(holder.until)),
                holder.map(|holder| holder.local),
                holder.map(|holder| &*holder.worker),
                job.result.as_ref().map(tidewire_core::Json::get),
                job.error.as_deref(),
                holder.map(|holder| holder.cancelled),
            ],
        )?;
        // Most jobs have none of these, and then their columns stay as they are.
        if job.rare.is_some() {
            let sql = "UPDATE jobs SET expires_at = ?2, key = ?3, rare = ?4 WHERE seq = ?1";
            self.run(sql, params![row.seq, expiry(job), blocking_key(job), rare(job)?])?;
        }
        Ok(())
    }

    fn replace_job(&mut self, row: &JobRow) -> Result<()> {
        self.remember_backoff(&row.job.backoff);
        let job = &row.job;
        self.run(
            "UPDATE jobs SET priority = ?2, attempts = ?3, timeout = ?4, backoff = ?5, user_id = ?6, correlation_id = ?7, \
             causation_id = ?8, data = ?9 WHERE seq = ?1",
            params![
                row.seq,
                job.priority,
                job.attempts,
                i64::try_from(job.timeout.as_micros()).unwrap_or(i64::MAX),
                self.backoff.1,
                job.user_id.as_deref(),
                job.correlation_id.as_deref(),
                job.causation_id.as_deref(),
                job.data.get(),
            ],
        )?;
        self.update_job(row)
    }

    fn delete_job(&mut self, seq: Seq) -> Result<()> {
        self.run("DELETE FROM jobs WHERE seq = ?1", [seq]).map(drop)
    }

    fn delete_beside(&mut self, seq: Seq) -> Result<()> {
        self.run("DELETE FROM attempts WHERE job = ?1", [seq])?;
        self.run("DELETE FROM logs WHERE job = ?1", [seq])?;
        self.run("DELETE FROM edges WHERE child = ?1", [seq]).map(drop)
    }

    fn job(&mut self, seq: Seq) -> Result<Option<JobRow>> {
        static SQL: LazyLock<String> =
            LazyLock::new(|| format!("SELECT {JOB_COLUMNS} FROM {JOB_TABLES} WHERE j.seq = ?1"));
        self.one(&SQL, [seq], job_row)
    }

    fn job_seq(&mut self, tenant: NameId, id: &Id) -> Result<Option<Seq>> {
        self.one("SELECT seq FROM jobs WHERE tenant = ?1 AND id = ?2", params![tenant, IdColumn(id)], |row| row.get(0))
    }

    fn add_failed_attempt(&mut self, seq: Seq, attempt: &FailedAttempt) -> Result<()> {
        self.run(
            "INSERT INTO attempts (job, ended_at, attempt, started_at, error, worker) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                seq,
                Micros(attempt.ended_at),
                attempt.attempt,
                attempt.started_at.map(Micros),
                &*attempt.error,
                &*attempt.worker
            ],
        )?;
        let sql = "DELETE FROM attempts WHERE job = ?1 AND rowid <= \
             (SELECT rowid FROM attempts WHERE job = ?1 ORDER BY rowid DESC LIMIT 1 OFFSET ?2)";
        self.run(sql, params![seq, MAX_FAILED_ATTEMPTS.cast_signed()]).map(drop)
    }

    fn pending(&mut self, lane: LaneKey, limit: usize) -> Result<Vec<Place>> {
        self.all(
            "SELECT run_at, seq FROM jobs WHERE state = 1 AND queue = ?1 AND type = ?2 AND priority = ?3 AND tenant = ?4 \
             ORDER BY run_at, seq LIMIT ?5",
            params![lane.keys.queue, lane.keys.kind, lane.priority, lane.keys.tenant, limit.cast_signed()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    fn lanes(&mut self) -> Result<Vec<LaneKey>> {
        // Steps from lane to lane in the index instead of counting through the jobs of each.
        let mut lanes: Vec<LaneKey> = Vec::new();
        let read = |row: &Row<'_>| {
            let keys = Keys { queue: row.get(0)?, kind: row.get(1)?, tenant: row.get(3)? };
            Ok(LaneKey { keys, priority: row.get(2)? })
        };
        loop {
            let last = lanes.last().map_or((-1, 0, 0, 0), |lane| {
                (i64::from(lane.keys.queue), lane.keys.kind, lane.priority, lane.keys.tenant)
            });
            let next = self.one(
                "SELECT queue, type, priority, tenant FROM jobs INDEXED BY jobs_pending \
                 WHERE state = 1 AND (queue, type, priority, tenant) > (?1, ?2, ?3, ?4) \
                 ORDER BY queue, type, priority, tenant LIMIT 1",
                last,
                read,
            )?;
            match next {
                Some(lane) => lanes.push(lane),
                None => return Ok(lanes),
            }
        }
    }

    fn due(&mut self, now: Timestamp, limit: usize) -> Result<Vec<Seq>> {
        let sql = "SELECT seq FROM jobs WHERE state = 0 AND run_at <= ?1 ORDER BY run_at, seq LIMIT ?2";
        self.all(sql, params![Micros(now), limit.cast_signed()], |row| row.get(0))
    }

    fn next_due(&mut self) -> Result<Option<Timestamp>> {
        let sql = "SELECT run_at FROM jobs WHERE state = 0 ORDER BY run_at LIMIT 1";
        Ok(self.one(sql, [], |row| row.get::<_, Micros>(0))?.map(|due| due.0))
    }

    fn expired(&mut self, now: Timestamp, limit: usize) -> Result<Vec<Seq>> {
        let sql = "SELECT seq FROM jobs WHERE expires_at IS NOT NULL AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2";
        self.all(sql, params![Micros(now), limit.cast_signed()], |row| row.get(0))
    }

    fn next_expiry(&mut self) -> Result<Option<Timestamp>> {
        let sql = "SELECT expires_at FROM jobs WHERE expires_at IS NOT NULL ORDER BY expires_at LIMIT 1";
        Ok(self.one(sql, [], |row| row.get::<_, Micros>(0))?.map(|at| at.0))
    }

    fn blocked_of_key(&mut self, queue: NameId, tenant: NameId, key: &str, limit: usize) -> Result<Vec<Seq>> {
        let sql = "SELECT seq FROM jobs WHERE queue = ?1 AND tenant = ?2 AND key = ?3 AND state = 3 AND key IS NOT NULL \
             ORDER BY priority, run_at LIMIT ?4";
        self.all(sql, params![queue, tenant, key, limit.cast_signed()], |row| row.get(0))
    }

    fn blocked_keys(&mut self, queue: NameId, after: (NameId, &str), limit: usize) -> Result<Vec<(NameId, String)>> {
        // Steps from key to key in the index instead of reading the jobs of each.
        let sql = "SELECT tenant, key FROM jobs INDEXED BY jobs_key WHERE state = 3 AND key IS NOT NULL AND queue = ?1 \
             AND (tenant, key) > (?2, ?3) ORDER BY tenant, key LIMIT 1";
        let mut keys: Vec<(NameId, String)> = Vec::new();
        while keys.len() < limit {
            let (tenant, key) = keys.last().map_or(after, |(tenant, key)| (*tenant, key.as_str()));
            match self.one(sql, params![queue, tenant, key], |row| Ok((row.get(0)?, row.get(1)?)))? {
                Some(next) => keys.push(next),
                None => break,
            }
        }
        Ok(keys)
    }

    fn counts(&mut self, queue: NameId, tenant: NameId) -> Result<[i64; 8]> {
        let mut counts = [0; 8];
        let sql = "SELECT state, n FROM counts WHERE queue = ?1 AND tenant = ?2";
        for (state, n) in self.all(sql, params![queue, tenant], |row| Ok((state(row, 0)?, row.get(1)?)))? {
            counts[state as usize] = n;
        }
        Ok(counts)
    }

    fn add_counts(&mut self, queue: NameId, tenant: NameId, by: &[i64; 8]) -> Result<()> {
        for (state, by) in by.iter().enumerate().filter(|(_, by)| **by != 0) {
            self.run(
                "INSERT INTO counts (queue, tenant, state, n) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (queue, tenant, state) DO UPDATE SET n = n + excluded.n",
                params![queue, tenant, state.cast_signed(), by],
            )?;
        }
        Ok(())
    }

    fn add_claims(&mut self, batch: u64, seqs: &[Seq]) -> Result<()> {
        let bytes: Vec<u8> = seqs.iter().flat_map(|seq| seq.to_le_bytes()).collect();
        self.run("INSERT INTO claims (batch, seqs) VALUES (?1, ?2)", params![batch.cast_signed(), bytes]).map(drop)
    }

    fn delete_claims(&mut self, batch: u64) -> Result<()> {
        self.run("DELETE FROM claims WHERE batch = ?1", [batch.cast_signed()]).map(drop)
    }

    fn claims(&mut self) -> Result<Vec<(u64, Vec<Seq>)>> {
        self.all("SELECT batch, seqs FROM claims ORDER BY batch", [], |row| {
            let (seqs, _) = row.get_ref(1)?.as_blob()?.as_chunks::<8>();
            Ok((row.get::<_, i64>(0)?.unsigned_abs(), seqs.iter().map(|seq| Seq::from_le_bytes(*seq)).collect()))
        })
    }

    fn dedup_until(&mut self, tenant: NameId, key: &str) -> Result<Option<Timestamp>> {
        let sql = "SELECT until FROM dedup WHERE tenant = ?1 AND key = ?2";
        Ok(self.one(sql, params![tenant, key], |row| row.get::<_, Micros>(0))?.map(|until| until.0))
    }

    fn put_dedup(&mut self, tenant: NameId, key: &str, until: Timestamp) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO dedup (tenant, key, until) VALUES (?1, ?2, ?3)";
        self.run(sql, params![tenant, key, Micros(until)]).map(drop)
    }

    fn idempotent(&mut self, tenant: NameId, key: &str) -> Result<Option<(Vec<u8>, String, Timestamp)>> {
        let sql = "SELECT digest, answer, until FROM idempotency WHERE tenant = ?1 AND key = ?2";
        self.one(sql, params![tenant, key], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, Micros>(2)?.0)))
    }

    fn put_idempotent(
        &mut self,
        tenant: NameId,
        key: &str,
        digest: &[u8],
        answer: &str,
        until: Timestamp,
    ) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO idempotency (tenant, key, digest, answer, until) VALUES (?1, ?2, ?3, ?4, ?5)";
        self.run(sql, params![tenant, key, digest, answer, Micros(until)]).map(drop)
    }

    fn put_session(&mut self, tenant: NameId, sid: &str, state: &str, until: Timestamp) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO sessions (tenant, sid, state, until) VALUES (?1, ?2, ?3, ?4)";
        self.run(sql, params![tenant, sid, state, Micros(until)]).map(drop)
    }

    fn delete_session(&mut self, tenant: NameId, sid: &str) -> Result<()> {
        self.run("DELETE FROM sessions WHERE tenant = ?1 AND sid = ?2", params![tenant, sid]).map(drop)
    }

    fn purge(&mut self, now: Timestamp, limit: usize) -> Result<bool> {
        let mut is_more = false;
        for sql in [
            "DELETE FROM dedup WHERE (tenant, key) IN (SELECT tenant, key FROM dedup WHERE until <= ?1 LIMIT ?2)",
            "DELETE FROM idempotency WHERE (tenant, key) IN \
             (SELECT tenant, key FROM idempotency WHERE until <= ?1 LIMIT ?2)",
            "DELETE FROM uniques WHERE (tenant, type, key) IN \
             (SELECT tenant, type, key FROM uniques WHERE until IS NOT NULL AND until <= ?1 AND \
             NOT EXISTS (SELECT 1 FROM jobs WHERE seq = job AND state < 4) LIMIT ?2)",
            "DELETE FROM sessions WHERE (tenant, sid) IN (SELECT tenant, sid FROM sessions WHERE until <= ?1 LIMIT ?2)",
        ] {
            is_more |= self.run(sql, params![Micros(now), limit.cast_signed()])? >= limit;
        }
        let sql = "SELECT number FROM flows WHERE finished_at IS NOT NULL AND finished_at <= ?1 LIMIT ?2";
        let old: Vec<i64> =
            self.all(sql, params![Micros(now - KEEP_FLOWS), PURGE_FLOWS.cast_signed()], |row| row.get(0))?;
        for flow in &old {
            self.run("DELETE FROM flow_jobs WHERE flow = ?1", [flow])?;
            self.run("DELETE FROM flows WHERE number = ?1", [flow])?;
        }
        Ok(is_more || old.len() >= PURGE_FLOWS)
    }
}

#[cfg(test)]
mod tests;
