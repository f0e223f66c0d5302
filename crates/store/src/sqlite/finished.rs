//! Final jobs in the file.

use rusqlite::{Row, params};
use tidewire_core::{Result, Timestamp};

use super::columns::{Micros, state};
use super::rows::SqliteRows;
use crate::rows::{Ended, EndedJob, Finished, Keys, NameId};

// `state >= 4` and `state >= 5` stand beside the states because SQLite takes a partial index only when its own condition is written out.
impl Finished for SqliteRows {
    fn completed(&mut self, queue: NameId, most: usize) -> Result<Vec<EndedJob>> {
        let sql = "SELECT seq, tenant, type, state FROM jobs WHERE queue = ?1 AND state = 4 AND state >= 4 \
             ORDER BY finished_at DESC, seq DESC LIMIT ?2";
        let mut newest_first = self.all(sql, params![queue, most.cast_signed()], |row| ended_job(queue, row))?;
        newest_first.reverse();
        Ok(newest_first)
    }

    fn ended_queues(&mut self) -> Result<Vec<NameId>> {
        // Steps from queue to queue in the index instead of counting through the jobs of each.
        let sql = "SELECT queue FROM jobs INDEXED BY jobs_final WHERE state >= 4 AND queue > ?1 ORDER BY queue LIMIT 1";
        let mut queues: Vec<NameId> = Vec::new();
        while let Some(next) = self.one(sql, [queues.last().map_or(-1, |last| i64::from(*last))], |row| row.get(0))? {
            queues.push(next);
        }
        Ok(queues)
    }

    fn ended_before(&mut self, queue: NameId, ended: Ended, before: Timestamp, limit: usize) -> Result<Vec<EndedJob>> {
        let states = match ended {
            Ended::Completed => "state = 4",
            Ended::Cancelled => "state = 7",
            Ended::Dead => "state IN (5, 6)",
        };
        let sql = format!(
            "SELECT seq, tenant, type, state FROM jobs INDEXED BY jobs_final \
             WHERE queue = ?1 AND {states} AND state >= 4 AND finished_at < ?2 LIMIT ?3"
        );
        self.all(&sql, params![queue, Micros(before), limit.cast_signed()], |row| ended_job(queue, row))
    }

    fn ended_beyond(&mut self, queue: NameId, ended: Ended, keep: usize, limit: usize) -> Result<Vec<EndedJob>> {
        let (states, is_cancelled) = match ended {
            Ended::Completed => {
                let sql = "SELECT seq, tenant, type, state FROM jobs WHERE queue = ?1 AND state = 4 AND state >= 4 \
                     ORDER BY finished_at DESC, seq DESC LIMIT ?3 OFFSET ?2";
                return self
                    .all(sql, params![queue, keep.cast_signed(), limit.cast_signed()], |row| ended_job(queue, row));
            }
            Ended::Cancelled => ("state = 7", true),
            Ended::Dead => ("state IN (5, 6)", false),
        };
        // The counts say who has too many, so that nobody else's jobs are read.
        let sql = format!(
            "SELECT tenant FROM counts WHERE queue = ?1 AND {states} GROUP BY tenant HAVING sum(n) > ?2 LIMIT ?3"
        );
        let tenants: Vec<NameId> =
            self.all(&sql, params![queue, keep.cast_signed(), limit.cast_signed()], |row| row.get(0))?;
        let sql = "SELECT seq, tenant, type, state FROM jobs INDEXED BY jobs_uncompleted \
             WHERE queue = ?1 AND tenant = ?2 AND (state = 7) = ?3 AND state >= 5 \
             ORDER BY finished_at DESC, seq DESC LIMIT ?5 OFFSET ?4";
        let mut beyond = Vec::new();
        for tenant in tenants {
            let left = limit - beyond.len();
            let bounds = params![queue, tenant, is_cancelled, keep.cast_signed(), left.cast_signed()];
            beyond.extend(self.all(sql, bounds, |row| ended_job(queue, row))?);
            if beyond.len() >= limit {
                break;
            }
        }
        Ok(beyond)
    }
}

fn ended_job(queue: NameId, row: &Row<'_>) -> rusqlite::Result<EndedJob> {
    let keys = Keys { queue, tenant: row.get(1)?, kind: row.get(2)? };
    Ok(EndedJob { seq: row.get(0)?, keys, state: state(row, 3)? })
}
