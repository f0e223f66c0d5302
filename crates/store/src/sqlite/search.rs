//! Lists of jobs. A page looks at so many jobs and no more, so that a search in ten million of them is many short reads and not a long
//! one.

use rusqlite::types::ToSql;
use rusqlite::{Connection, params, params_from_iter};
use tidewire_core::job::Job;
use tidewire_core::store::{JobQuery, Page};
use tidewire_core::{Id, Json, Result};

use super::columns::{JOB_COLUMNS, Micros, fault, job_row};
use crate::rows::{Found, Seq, cursor, page};

/// How many jobs are looked at before it is seen how much data they have together.
const CHUNK: u32 = 256;

/// The joins that [`JOB_COLUMNS`] needs.
const TABLES: &str =
    "CROSS JOIN tenants t ON t.id = j.tenant JOIN names n ON n.id = j.type JOIN names q ON q.id = j.queue";

/// A page of jobs, the newest first.
pub(super) fn jobs(connection: &Connection, query: &JobQuery) -> Result<Page<Job>> {
    let before = cursor(query, Seq::MAX)?;
    let limit = query.limit.clamp(1, JobQuery::MAX);
    let mut wanted = Conditions::of(query);
    let end = wanted.look_at(connection, query, before, Order::NewestFirst)?;
    wanted.add("j.seq < ?", Some(before));
    wanted.add("j.seq >= ?", end);
    let (source, conditions) = (source(query), &wanted.sql);
    let sql = format!("SELECT {JOB_COLUMNS} FROM {source} {TABLES} WHERE TRUE{conditions} ORDER BY j.seq DESC LIMIT ?");
    wanted.values.push(Box::new(limit + 1));
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let rows = statement.query_map(params_from_iter(&wanted.values), job_row).map_err(fault)?;
    let found = page(rows, limit).map_err(fault)?;
    Ok(Page { next_cursor: found.next_cursor.or_else(|| end.map(|end| end.to_string())), ..found })
}

/// The numbers of the next jobs, the oldest first.
pub(super) fn find(connection: &Connection, query: &JobQuery) -> Result<Found> {
    let after = cursor(query, 0)?;
    let limit = query.limit.clamp(1, JobQuery::MAX);
    let mut wanted = Conditions::of(query);
    let end = wanted.look_at(connection, query, after, Order::OldestFirst)?;
    wanted.add("j.seq > ?", Some(after));
    wanted.add("j.seq <= ?", end);
    let (source, conditions) = (source(query), &wanted.sql);
    let sql = format!("SELECT j.seq FROM {source} WHERE TRUE{conditions} ORDER BY j.seq LIMIT ?");
    wanted.values.push(Box::new(limit));
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let seqs = statement.query_map(params_from_iter(&wanted.values), |row| row.get(0));
    let seqs: Vec<Seq> = seqs.and_then(Iterator::collect).map_err(fault)?;
    let next = if seqs.len() >= limit as usize { seqs.last().copied() } else { end };
    Ok(Found { seqs, next })
}

/// The jobs in their order, or by their ids where these are named.
fn source(query: &JobQuery) -> &'static str {
    if query.ids.is_empty() { "jobs j NOT INDEXED" } else { "jobs j" }
}

#[derive(Clone, Copy)]
enum Order {
    NewestFirst,
    OldestFirst,
}

/// The conditions of a query in SQL, with their values.
#[derive(Default)]
struct Conditions {
    sql: String,
    values: Vec<Box<dyn ToSql>>,
}

impl Conditions {
    fn of(query: &JobQuery) -> Self {
        let mut all = Self::default();
        let tenant = query.tenant.as_ref().map(|tenant| tenant.as_str().to_owned());
        all.add("j.tenant = (SELECT id FROM tenants WHERE name = ?)", tenant);
        all.add("j.queue = (SELECT id FROM names WHERE name = ?)", query.queue.clone());
        all.add("j.type = (SELECT id FROM names WHERE name = ?)", query.kind.clone());
        if !query.states.is_empty() {
            let states: Vec<String> = query.states.iter().map(|state| (*state as u8).to_string()).collect();
            all.sql.push_str(&format!(" AND j.state IN ({})", states.join(",")));
        }
        if let Some(text) = query.text.as_deref() {
            all.sql.push_str(" AND (j.data LIKE ? ESCAPE '\\' OR j.error LIKE ? ESCAPE '\\'");
            all.values.push(Box::new(pattern(text)));
            all.values.push(Box::new(pattern(text)));
            // Data is kept as it was sent, and many clients send JSON in ASCII.
            if let Some(escaped) = Json::in_ascii(text) {
                all.sql.push_str(" OR j.data LIKE ? ESCAPE '\\'");
                all.values.push(Box::new(pattern(&escaped)));
            }
            all.sql.push(')');
        }
        all.add("j.error LIKE ? ESCAPE '\\'", query.error.as_deref().map(pattern));
        all.add("j.created_at >= ?", query.from.map(Micros));
        all.add("j.created_at < ?", query.to.map(Micros));
        all.add("coalesce(j.finished_at, j.created_at) < ?", query.untouched_since.map(Micros));
        if query.failed_from.is_some() || query.failed_to.is_some() {
            all.sql.push_str(" AND j.state IN (5, 6)");
        }
        all.add("j.finished_at >= ?", query.failed_from.map(Micros));
        all.add("j.finished_at < ?", query.failed_to.map(Micros));
        all.add("j.user_id = ?", query.user_id.clone());
        all.add("j.correlation_id = ?", query.correlation_id.clone());
        all.add("json_extract(j.rare, '$.flow') = ?", query.flow.as_ref().map(ToString::to_string));
        all.add("json_extract(j.rare, '$.key') = ?", query.key.clone());
        if !query.ids.is_empty() {
            all.sql.push_str(&format!(" AND j.id IN ({})", vec!["?"; query.ids.len()].join(",")));
            all.values.extend(query.ids.iter().map(owned));
        }
        all
    }

    fn add(&mut self, condition: &str, value: Option<impl ToSql + 'static>) {
        if let Some(value) = value {
            self.sql.push_str(" AND ");
            self.sql.push_str(condition);
            self.values.push(Box::new(value));
        }
    }

    /// The last job that a page looks at, unless it may look at all that are left.
    fn look_at(&self, connection: &Connection, query: &JobQuery, from: Seq, order: Order) -> Result<Option<Seq>> {
        if self.sql.is_empty() || !query.ids.is_empty() {
            return Ok(None);
        }
        // Errors, flows and keys stand behind the data, so the data is gone through for them, too. Its length in bytes stands in the head
        // of the row, so nothing long is read here.
        let JobQuery { text, error, flow, key, .. } = query;
        let is_search = text.is_some() || error.is_some() || flow.is_some() || key.is_some();
        let bytes = if is_search { "octet_length(data)" } else { "0" };
        let sql = match order {
            Order::NewestFirst => format!(
                "SELECT count(*), min(seq), sum(bytes) FROM \
                 (SELECT seq, {bytes} AS bytes FROM jobs WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2)"
            ),
            Order::OldestFirst => format!(
                "SELECT count(*), max(seq), sum(bytes) FROM \
                 (SELECT seq, {bytes} AS bytes FROM jobs WHERE seq > ?1 ORDER BY seq LIMIT ?2)"
            ),
        };
        let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
        let most = if is_search { CHUNK } else { JobQuery::MAX_LOOKED_AT };
        let (mut end, mut looked_at, mut searched) = (from, 0, 0);
        loop {
            let chunk = most.min(JobQuery::MAX_LOOKED_AT - looked_at);
            let read = |row: &rusqlite::Row<'_>| {
                Ok((row.get::<_, u32>(0)?, row.get::<_, Option<Seq>>(1)?, row.get::<_, Option<i64>>(2)?))
            };
            let (count, last, bytes) = statement.query_row(params![end, chunk], read).map_err(fault)?;
            if count < chunk {
                return Ok(None);
            }
            end = last.unwrap_or(end);
            looked_at += count;
            searched += bytes.unwrap_or_default().unsigned_abs();
            if looked_at >= JobQuery::MAX_LOOKED_AT || searched >= JobQuery::MAX_SEARCHED_BYTES {
                return Ok(Some(end));
            }
        }
    }
}

/// A text as a part of what `LIKE` matches, which tells no ASCII letter from its capital.
fn pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

fn owned(id: &Id) -> Box<dyn ToSql> {
    match id {
        Id::Uuid(uuid) => Box::new(uuid.as_bytes().to_vec()),
        Id::Text(text) => Box::new(text.to_string()),
    }
}
