//! Lists of jobs, logs of jobs and settings of queues, in maps.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tidewire_core::catalog::QueueSettings;
use tidewire_core::job::{Job, LogLine, State, States};
use tidewire_core::store::{JobQuery, Page, QueueTenant};
use tidewire_core::{Error, Id, Json, Result, TenantId, Timestamp};

use super::{MemoryRows, Tables};
use crate::embedded::Size;
use crate::rows::{Desk, Found, JobRow, NameId, Seq, cursor, numbered_page, page, read_cursor};

/// The tables of this part.
#[derive(Default)]
pub(super) struct DeskTables {
    /// Lines with their numbers.
    pub(super) logs: HashMap<Seq, Vec<(i64, LogLine)>>,
    lines: i64,
    settings: BTreeMap<NameId, String>,
}

impl Tables {
    pub(super) fn size(&self) -> Size {
        let heads = self.heads.values().filter(|head| head.0 > 0);
        let (logs, events) = heads.fold((0, 0), |(logs, events), head| (logs + 1, events + head.0));
        Size { logs, events, bytes: None }
    }
}

impl Desk for MemoryRows {
    fn add_log_line(&mut self, seq: Seq, time: Timestamp, attempt: u16, text: &str) -> Result<()> {
        let desk = &mut self.tables().desk;
        desk.lines += 1;
        desk.logs.entry(seq).or_default().push((desk.lines, LogLine { time, attempt, text: text.into() }));
        Ok(())
    }

    fn trim_log(&mut self, seq: Seq, keep: usize) -> Result<()> {
        if let Some(log) = self.tables().desk.logs.get_mut(&seq) {
            log.drain(..log.len().saturating_sub(keep));
        }
        Ok(())
    }

    fn queue_settings(&mut self, queue: NameId) -> Result<Option<String>> {
        Ok(self.tables().desk.settings.get(&queue).cloned())
    }

    fn put_queue_settings(&mut self, queue: NameId, settings: Option<&str>) -> Result<()> {
        let kept = &mut self.tables().desk.settings;
        match settings {
            Some(settings) => drop(kept.insert(queue, settings.to_owned())),
            None => drop(kept.remove(&queue)),
        }
        Ok(())
    }
}

impl Tables {
    /// A page of jobs, the newest first.
    pub(super) fn jobs_page(&self, query: &JobQuery) -> Result<Page<Job>> {
        let before = cursor(query, Seq::MAX)?;
        let rows = || self.jobs.range(..before).rev().map(|(_, row)| row);
        let end = rows().nth(most_looked_at(query) - 1).map(|row| row.seq);
        let looked_at = rows().take(most_looked_at(query));
        let matching = looked_at.filter(|row| matches(query, row)).cloned().map(Ok::<_, Error>);
        let found = page(matching, query.limit.clamp(1, JobQuery::MAX))?;
        let next_cursor = found.next_cursor.or_else(|| end.map(|end| end.to_string()));
        Ok(Page { next_cursor, ..found })
    }

    /// The numbers of the next jobs, the oldest first.
    pub(super) fn find(&self, query: &JobQuery) -> Result<Found> {
        let after = cursor(query, 0)?;
        let limit = query.limit.clamp(1, JobQuery::MAX) as usize;
        let rows = || self.jobs.range(after + 1..).map(|(_, row)| row);
        let looked_at = rows().take(most_looked_at(query));
        let seqs: Vec<Seq> = looked_at.filter(|row| matches(query, row)).map(|row| row.seq).take(limit).collect();
        let end = rows().nth(most_looked_at(query) - 1).map(|row| row.seq);
        let next = if seqs.len() >= limit { seqs.last().copied() } else { end };
        Ok(Found { seqs, next })
    }

    /// A page of a job's log.
    pub(super) fn logs(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Option<Page<LogLine>>> {
        let after = read_cursor(cursor, 0)?;
        let Some(seq) = self.tenant(tenant).and_then(|tenant| self.job_ids.get(&(tenant, id.clone()))) else {
            return Ok(None);
        };
        let lines = self.desk.logs.get(seq).into_iter().flatten().filter(|(number, _)| *number > after);
        Ok(Some(numbered_page(lines.take(limit + 1).cloned().collect(), limit)))
    }

    /// What was changed about each queue.
    pub(super) fn all_queue_settings(&self) -> Result<BTreeMap<Arc<str>, QueueSettings>> {
        let mut all = BTreeMap::new();
        for (queue, settings) in &self.desk.settings {
            let Some(name) = self.other_names.get(*queue as usize) else { continue };
            let settings = serde_json::from_str(settings)
                .map_err(|error| Error::internal("the kept settings of a queue cannot be read", error))?;
            all.insert(name.as_str().into(), settings);
        }
        Ok(all)
    }

    /// The tenants with the most waiting jobs in a queue.
    pub(super) fn queue_tenants(&self, queue: &str, limit: usize) -> Vec<QueueTenant> {
        let Some(queue) = self.names.get(queue) else { return Vec::new() };
        let mut tenants = Vec::new();
        for (_, (tenant, counts)) in
            self.counts.iter().filter(|((of, _), _)| of == queue).map(|(key, counts)| (key.0, (key.1, counts)))
        {
            let Some(name) = self.tenant_names.get(tenant as usize) else { continue };
            let by_state = State::ALL.into_iter().zip(counts.iter().map(|count| count.unsigned_abs()));
            let counts: BTreeMap<State, u64> = by_state.filter(|(_, count)| *count > 0).collect();
            if !counts.is_empty() {
                tenants.push(QueueTenant { tenant: TenantId::from_stored(name), counts });
            }
        }
        let waiting = |counts: &BTreeMap<State, u64>| -> u64 {
            counts.iter().filter(|(state, _)| States::WAITING.contains(**state)).map(|(_, count)| count).sum()
        };
        tenants.sort_by_key(|of| (Reverse(waiting(&of.counts)), of.tenant.clone()));
        tenants.truncate(limit);
        tenants
    }
}

fn most_looked_at(query: &JobQuery) -> usize {
    // Named jobs are not searched for.
    if query.ids.is_empty() { JobQuery::MAX_LOOKED_AT as usize } else { usize::MAX }
}

fn matches(query: &JobQuery, row: &JobRow) -> bool {
    let job = &row.job;
    let rare = job.rare.as_deref();
    let error = job.error.as_deref().unwrap_or_default();
    let failed_at = job.finished_at.filter(|_| job.state.is_dead_letter());
    query.tenant.as_ref().is_none_or(|tenant| *tenant == job.tenant)
        && query.queue.as_ref().is_none_or(|queue| **queue == *job.queue)
        && query.kind.as_ref().is_none_or(|kind| **kind == *job.kind)
        && (query.states.is_empty() || query.states.contains(&job.state))
        && query.text.as_ref().is_none_or(|text| {
            let escaped = Json::in_ascii(text).is_some_and(|text| has(job.data.get(), &text));
            has(job.data.get(), text) || escaped || has(error, text)
        })
        && query.error.as_ref().is_none_or(|text| job.error.is_some() && has(error, text))
        && query.from.is_none_or(|from| job.created_at >= from)
        && query.to.is_none_or(|to| job.created_at < to)
        && query.untouched_since.is_none_or(|since| job.finished_at.unwrap_or(job.created_at) < since)
        && query.failed_from.is_none_or(|from| failed_at.is_some_and(|at| at >= from))
        && query.failed_to.is_none_or(|to| failed_at.is_some_and(|at| at < to))
        && query.user_id.as_ref().is_none_or(|user| job.user_id.as_deref() == Some(user))
        && query.correlation_id.as_ref().is_none_or(|id| job.correlation_id.as_deref() == Some(id))
        && query.flow.as_ref().is_none_or(|flow| rare.is_some_and(|rare| rare.flow.as_ref() == Some(flow)))
        && query.key.as_ref().is_none_or(|key| job.key() == Some(key))
        && (query.ids.is_empty() || query.ids.contains(&job.id))
}

fn has(text: &str, part: &str) -> bool {
    text.to_ascii_lowercase().contains(&part.to_ascii_lowercase())
}
