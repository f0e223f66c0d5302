//! Logs of jobs and settings of queues, written and read, and how much there is of everything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use tidewire_core::catalog::QueueSettings;
use tidewire_core::job::LogLine;
use tidewire_core::store::{Page, QueueTenant};
use tidewire_core::{Id, Result, TenantId, Timestamp};

use super::columns::{IdColumn, Micros, conversion, fault, state};
use super::rows::SqliteRows;
use crate::embedded::Size;
use crate::rows::{Desk, NameId, Seq};

impl Desk for SqliteRows {
    fn add_log_line(&mut self, seq: Seq, time: Timestamp, attempt: u16, text: &str) -> Result<()> {
        let sql = "INSERT INTO logs (job, time, attempt, text) VALUES (?1, ?2, ?3, ?4)";
        self.run(sql, params![seq, Micros(time), attempt, text]).map(drop)
    }

    fn trim_log(&mut self, seq: Seq, keep: usize) -> Result<()> {
        let sql = "DELETE FROM logs WHERE job = ?1 AND rowid <= \
             (SELECT rowid FROM logs WHERE job = ?1 ORDER BY rowid DESC LIMIT 1 OFFSET ?2)";
        self.run(sql, params![seq, keep.cast_signed()]).map(drop)
    }

    fn queue_settings(&mut self, queue: NameId) -> Result<Option<String>> {
        self.one("SELECT settings FROM queue_settings WHERE queue = ?1", [queue], |row| row.get(0))
    }

    fn put_queue_settings(&mut self, queue: NameId, settings: Option<&str>) -> Result<()> {
        match settings {
            Some(settings) => {
                let sql = "INSERT OR REPLACE INTO queue_settings (queue, settings) VALUES (?1, ?2)";
                self.run(sql, params![queue, settings]).map(drop)
            }
            None => self.run("DELETE FROM queue_settings WHERE queue = ?1", [queue]).map(drop),
        }
    }
}

/// How many logs and events there are, and how large the files at `path` are.
pub(super) fn size(connection: &Connection, path: &Path) -> Result<Size> {
    let sql = "SELECT count(*), coalesce(sum(head), 0) FROM tenants WHERE head > 0";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let number = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(i64::unsigned_abs);
    let (logs, events) = statement.query_row([], |row| Ok((number(row, 0)?, number(row, 1)?))).map_err(fault)?;
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    // The write-ahead log is there only while the file is open.
    let bytes = [path, Path::new(&wal)].iter().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum();
    Ok(Size { logs, events, bytes: Some(bytes) })
}

/// A page of a job's log.
pub(super) fn job_seq(connection: &Connection, tenant: &TenantId, id: &Id) -> Result<Option<Seq>> {
    let sql = "SELECT seq FROM jobs WHERE tenant = (SELECT id FROM tenants WHERE name = ?1) AND id = ?2";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    statement.query_row(params![tenant.as_str(), IdColumn(id)], |row| row.get(0)).optional().map_err(fault)
}

pub(super) fn logs(
    connection: &Connection,
    tenant: &TenantId,
    id: &Id,
    after: i64,
    limit: usize,
) -> Result<Option<Page<LogLine>>> {
    let Some(seq) = job_seq(connection, tenant, id)? else { return Ok(None) };
    let sql = "SELECT rowid, time, attempt, text FROM logs WHERE job = ?1 AND rowid > ?2 ORDER BY rowid LIMIT ?3";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let lines = statement.query_map(params![seq, after, limit.cast_signed() + 1], |row| {
        let time = row.get::<_, Micros>(1)?.0;
        Ok((row.get(0)?, LogLine { time, attempt: row.get(2)?, text: row.get_ref(3)?.as_str()?.into() }))
    });
    let lines: Vec<(i64, LogLine)> = lines.and_then(Iterator::collect).map_err(fault)?;
    Ok(Some(crate::rows::numbered_page(lines, limit)))
}

/// What was changed about each queue.
pub(super) fn queue_settings(connection: &Connection) -> Result<BTreeMap<Arc<str>, QueueSettings>> {
    let sql = "SELECT n.name, s.settings FROM queue_settings s JOIN names n ON n.id = s.queue";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let rows = statement.query_map([], |row| {
        let settings = serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(conversion)?;
        Ok((Arc::<str>::from(row.get_ref(0)?.as_str()?), settings))
    });
    rows.and_then(Iterator::collect).map_err(fault)
}

/// The tenants with the most waiting jobs in a queue.
pub(super) fn queue_tenants(connection: &Connection, queue: &str, limit: u32) -> Result<Vec<QueueTenant>> {
    let sql = "SELECT t.id, t.name, sum(CASE WHEN c.state IN (0, 1, 3) THEN c.n ELSE 0 END) AS waiting \
         FROM counts c JOIN tenants t ON t.id = c.tenant WHERE c.queue = (SELECT id FROM names WHERE name = ?1) \
         GROUP BY c.tenant HAVING sum(c.n) > 0 ORDER BY waiting DESC, t.name LIMIT ?2";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let tenants = statement.query_map(params![queue, limit], |row| {
        Ok((row.get::<_, NameId>(0)?, TenantId::from_stored(row.get_ref(1)?.as_str()?)))
    });
    let tenants: Vec<_> = tenants.and_then(Iterator::collect).map_err(fault)?;
    let sql =
        "SELECT state, n FROM counts WHERE queue = (SELECT id FROM names WHERE name = ?1) AND tenant = ?2 AND n != 0";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let mut listed = Vec::with_capacity(tenants.len());
    for (id, tenant) in tenants {
        let counts =
            statement.query_map(params![queue, id], |row| Ok((state(row, 0)?, row.get::<_, i64>(1)?.unsigned_abs())));
        listed.push(QueueTenant { tenant, counts: counts.and_then(Iterator::collect).map_err(fault)? });
    }
    Ok(listed)
}
