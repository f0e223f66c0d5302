//! Schedules that were made at run time and slots of those of the catalog, on the writer's connection and on the readers'.

use std::sync::Arc;

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tidewire_core::schedule::{Reached, Stored};
use tidewire_core::store::{Page, ScheduleQuery};
use tidewire_core::{Result, TenantId, Timestamp};

use super::columns::{IdColumn, Micros, fault, optional_id, text};
use super::rows::SqliteRows;
use crate::rows::{NameId, SchedulePlace, ScheduleRow, Schedules, after, stored, stored_page};

/// The columns of [`schedule`], for `schedules sc`.
const COLUMNS: &str =
    "sc.revision, sc.spec, sc.paused, sc.error, sc.slot, sc.next_at, sc.last_at, sc.last_job, sc.runs, sc.created_at";

fn schedule(row: &Row<'_>) -> rusqlite::Result<ScheduleRow> {
    let time = |index| Ok::<_, rusqlite::Error>(row.get::<_, Option<Micros>>(index)?.map(|at| at.0));
    Ok(ScheduleRow {
        revision: row.get::<_, i64>(0)?.unsigned_abs(),
        spec: row.get_ref(1)?.as_str()?.into(),
        paused: row.get(2)?,
        error: text(row, 3)?,
        slot: time(4)?,
        next_at: time(5)?,
        last: time(6)?,
        last_job: optional_id(row, 7)?,
        runs: row.get::<_, i64>(8)?.unsigned_abs(),
        created_at: row.get::<_, Micros>(9)?.0,
    })
}

impl Schedules for SqliteRows {
    fn schedule_count(&mut self, tenant: NameId) -> Result<u64> {
        let sql = "SELECT count(*) FROM schedules WHERE tenant = ?1";
        Ok(self.one(sql, params![tenant], |row| row.get::<_, i64>(0))?.unwrap_or_default().unsigned_abs())
    }

    fn schedule(&mut self, tenant: NameId, key: &str, user: &str) -> Result<Option<ScheduleRow>> {
        let sql =
            format!("SELECT {COLUMNS} FROM schedules sc WHERE sc.tenant = ?1 AND sc.key = ?2 AND sc.user_id = ?3");
        self.one(&sql, params![tenant, key, user], schedule)
    }

    fn put_schedule(&mut self, tenant: NameId, key: &str, user: &str, row: &ScheduleRow) -> Result<()> {
        self.run(
            "INSERT OR REPLACE INTO schedules (tenant, key, user_id, revision, spec, paused, error, slot, next_at, last_at, last_job, \
             runs, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            params![
                tenant,
                key,
                user,
                row.revision.cast_signed(),
                &*row.spec,
                row.paused,
                row.error.as_deref(),
                row.slot.map(Micros),
                row.next_at.map(Micros),
                row.last.map(Micros),
                row.last_job.as_ref().map(IdColumn),
                row.runs.cast_signed(),
                Micros(row.created_at),
            ],
        )
        .map(drop)
    }

    fn advance_schedule(&mut self, tenant: NameId, key: &str, user: &str, row: &ScheduleRow) -> Result<()> {
        self.run(
            "UPDATE schedules SET slot = ?4, next_at = ?5, last_at = ?6, last_job = ?7, runs = ?8 \
             WHERE tenant = ?1 AND key = ?2 AND user_id = ?3",
            params![
                tenant,
                key,
                user,
                row.slot.map(Micros),
                row.next_at.map(Micros),
                row.last.map(Micros),
                row.last_job.as_ref().map(IdColumn),
                row.runs.cast_signed(),
            ],
        )
        .map(drop)
    }

    fn delete_schedule(&mut self, tenant: NameId, key: &str, user: &str) -> Result<()> {
        let sql = "DELETE FROM schedules WHERE tenant = ?1 AND key = ?2 AND user_id = ?3";
        self.run(sql, params![tenant, key, user]).map(drop)
    }

    fn slot(&mut self, tenant: NameId, key: &str) -> Result<Option<Reached>> {
        self.one("SELECT slot, job, runs FROM slots WHERE tenant = ?1 AND key = ?2", params![tenant, key], reached)
    }

    fn put_slot(&mut self, tenant: NameId, key: &str, reached: &Reached) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO slots (tenant, key, slot, job, runs) VALUES (?1, ?2, ?3, ?4, ?5)";
        let (last, job) = (Micros(reached.last), reached.last_job.as_ref().map(IdColumn));
        self.run(sql, params![tenant, key, last, job, reached.runs.cast_signed()]).map(drop)
    }

    fn slots(&mut self, tenant: NameId) -> Result<Vec<(Arc<str>, Reached)>> {
        self.all("SELECT slot, job, runs, key FROM slots WHERE tenant = ?1", [tenant], |row| {
            Ok((row.get_ref(3)?.as_str()?.into(), reached(row)?))
        })
    }
}

/// Reads `slot, job, runs`.
fn reached(row: &Row<'_>) -> rusqlite::Result<Reached> {
    let runs = row.get::<_, i64>(2)?.unsigned_abs();
    Ok(Reached { last: row.get::<_, Micros>(0)?.0, last_job: optional_id(row, 1)?, runs })
}

/// Tenants by their numbers, which grow. One that was only asked about has a number, too, but neither an event, a job, a slot nor a schedule.
pub(super) fn tenants(connection: &Connection, after: Option<&TenantId>, limit: u32) -> Result<Vec<TenantId>> {
    let sql = "SELECT name FROM tenants t WHERE id > coalesce((SELECT id FROM tenants WHERE name = ?1), 0) \
               AND (head > 0 OR EXISTS (SELECT 1 FROM jobs WHERE tenant = t.id) OR EXISTS (SELECT 1 FROM slots WHERE tenant = t.id) \
               OR EXISTS (SELECT 1 FROM schedules WHERE tenant = t.id)) ORDER BY id LIMIT ?2";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let name = |row: &Row<'_>| Ok(TenantId::from_stored(row.get_ref(0)?.as_str()?));
    let names = statement.query_map(params![after.map(TenantId::as_str), limit], name).map_err(fault)?;
    names.collect::<rusqlite::Result<_>>().map_err(fault)
}

/// Reads `COLUMNS, sc.tenant, sc.key, sc.user_id, t.name`.
fn placed(row: &Row<'_>) -> rusqlite::Result<(SchedulePlace, TenantId, ScheduleRow)> {
    let tenant = TenantId::from_stored(row.get_ref(13)?.as_str()?);
    Ok(((row.get(10)?, row.get(11)?, row.get(12)?), tenant, schedule(row)?))
}

const PLACED: &str = "sc.tenant, sc.key, sc.user_id, t.name FROM schedules sc JOIN tenants t ON t.id = sc.tenant";

pub(super) fn due(connection: &Connection, now: Timestamp, limit: u32) -> Result<Vec<Stored>> {
    let sql = format!(
        "SELECT {COLUMNS}, {PLACED} WHERE sc.next_at IS NOT NULL AND sc.next_at <= ?1 ORDER BY sc.next_at LIMIT ?2"
    );
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let rows = statement.query_map(params![Micros(now), limit], placed).map_err(fault)?;
    let rows: Vec<_> = rows.collect::<rusqlite::Result<_>>().map_err(fault)?;
    Ok(rows.into_iter().filter_map(|((_, key, user), tenant, row)| stored(tenant, &key, &user, row)).collect())
}

pub(super) fn next_due(connection: &Connection) -> Result<Option<Timestamp>> {
    let sql = "SELECT next_at FROM schedules WHERE next_at IS NOT NULL ORDER BY next_at LIMIT 1";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    statement.query_row([], |row| Ok(row.get::<_, Micros>(0)?.0)).optional().map_err(fault)
}

pub(super) fn one(connection: &Connection, tenant: TenantId, key: &str, user: &str) -> Result<Option<Stored>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM schedules sc \
         WHERE sc.tenant = (SELECT id FROM tenants WHERE name = ?1) AND sc.key = ?2 AND sc.user_id = ?3"
    );
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let row = statement.query_row(params![tenant.as_str(), key, user], schedule).optional().map_err(fault)?;
    Ok(row.and_then(|row| stored(tenant, key, user, row)))
}

pub(super) fn page(connection: &Connection, query: &ScheduleQuery) -> Result<Page<Stored>> {
    let limit = query.limit.clamp(1, ScheduleQuery::MAX);
    let more = limit + 1;
    let after = after(query.cursor.as_deref())?;
    let tenant = query.tenant.as_ref().map(TenantId::as_str);
    let mut sql = format!("SELECT {COLUMNS}, {PLACED} WHERE TRUE");
    let mut params: Vec<(&str, &dyn ToSql)> = vec![(":limit", &more)];
    if let Some((tenant, key, user)) = &after {
        sql.push_str(" AND (sc.tenant, sc.key, sc.user_id) > (:after_tenant, :after_key, :after_user)");
        params.extend([(":after_tenant", tenant as &dyn ToSql), (":after_key", key), (":after_user", user)]);
    }
    if let Some(tenant) = &tenant {
        sql.push_str(" AND sc.tenant = (SELECT id FROM tenants WHERE name = :tenant)");
        params.push((":tenant", tenant));
    }
    if let Some(key) = &query.key {
        sql.push_str(" AND sc.key = :key");
        params.push((":key", key));
    }
    if let Some(user) = &query.user_id {
        sql.push_str(" AND sc.user_id = :user");
        params.push((":user", user));
    }
    sql.push_str(" ORDER BY sc.tenant, sc.key, sc.user_id LIMIT :limit");
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let rows = statement.query_map(params.as_slice(), placed).map_err(fault)?;
    let rows = rows.collect::<rusqlite::Result<_>>().map_err(fault)?;
    Ok(stored_page(rows, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plan of a statement of the readers, a line per step.
    fn plan(connection: &Connection, sql: &str) -> String {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("a plan");
        for index in 1..=statement.parameter_count() {
            statement.raw_bind_parameter(index, 1).expect("bound");
        }
        let mut rows = statement.raw_query();
        let mut steps = Vec::new();
        while let Some(row) = rows.next().expect("a step") {
            steps.push(row.get::<_, String>("detail").expect("text"));
        }
        steps.join("\n")
    }

    #[test]
    fn only_what_is_due_is_read_and_by_the_index() {
        let connection = Connection::open_in_memory().expect("open");
        connection.execute_batch(include_str!("schema.sql")).expect("schema");
        let due = format!(
            "SELECT {COLUMNS}, {PLACED} WHERE sc.next_at IS NOT NULL AND sc.next_at <= ?1 ORDER BY sc.next_at LIMIT ?2"
        );
        let plan = plan(&connection, &due);
        assert!(plan.contains("SEARCH sc USING INDEX schedules_next") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}
