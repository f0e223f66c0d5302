//! What the writer needs of the place where things are kept.

mod bonds;
mod finished;
mod operate;
mod schedules;

use std::collections::BTreeMap;
use std::sync::Arc;

use tidewire_core::event::{Event, Position};
use tidewire_core::job::{FailedAttempt, Held, Job, State};
use tidewire_core::store::{Flow, FlowQuery, FlowState, JobQuery, Page};
use tidewire_core::{Error, Id, Result, Timestamp};

pub(crate) use bonds::{Bonds, Edge, FlowNumber, FlowRow, Member, Taken};
pub(crate) use finished::{Ended, EndedJob, Finished};
pub(crate) use operate::Desk;
pub(crate) use schedules::{Place as SchedulePlace, Row as ScheduleRow, Schedules, after, stored, stored_page};

/// The number of an interned name: a tenant, or a queue or type.
pub(crate) type NameId = u32;

/// The number of a job, in order of arrival.
pub(crate) type Seq = i64;

/// A row of `jobs`.
#[derive(Clone, Debug)]
pub(crate) struct JobRow {
    pub(crate) seq: Seq,
    pub(crate) keys: Keys,
    pub(crate) job: Job,
    /// Who holds it, while it is processing.
    pub(crate) holder: Option<Holder>,
}

/// The interned names of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Keys {
    pub(crate) tenant: NameId,
    pub(crate) queue: NameId,
    pub(crate) kind: NameId,
}

/// How many bytes of jobs fill a page of a listing, however few jobs they are. The last may go beyond.
pub(crate) const PAGE_BYTES: usize = 4 << 20;

impl JobRow {
    /// The job as it is shown: with who runs it.
    pub(crate) fn shown(self) -> Job {
        let held = self.holder.map(|Holder { worker, until, local, cancelled, .. }| {
            Box::new(Held { worker, lease_until: (!local).then_some(until), cancel_requested: cancelled })
        });
        Job { held, ..self.job }
    }

    /// About how much of a page it is.
    pub(crate) fn page_bytes(&self) -> usize {
        let (job, of) = (&self.job, tidewire_core::Json::get);
        job.data.get().len()
            + job.result.as_ref().map_or(0, |result| of(result).len())
            + job.error.as_deref().map_or(0, str::len)
    }
}

/// Fills a page of at most `limit` jobs and about [`PAGE_BYTES`] from rows in their order, newest first.
pub(crate) fn page<E>(
    rows: impl Iterator<Item = std::result::Result<JobRow, E>>,
    limit: u32,
) -> std::result::Result<Page<Job>, E> {
    let mut items = Vec::new();
    let (mut bytes, mut last) = (0, 0);
    for row in rows {
        let row = row?;
        if items.len() >= limit as usize || bytes >= PAGE_BYTES {
            // There is one more, so the page ends here and another begins after it.
            return Ok(Page { items, next_cursor: Some(last.to_string()) });
        }
        (bytes, last) = (bytes + row.page_bytes(), row.seq);
        items.push(row.shown());
    }
    Ok(Page { items, next_cursor: None })
}

/// Jobs that were found for an operator, the oldest first.
pub(crate) struct Found {
    pub(crate) seqs: Vec<Seq>,
    /// After which the search goes on, if it does.
    pub(crate) next: Option<Seq>,
}

/// Where a page of jobs begins. Code `cursor.invalid`.
pub(crate) fn cursor(query: &JobQuery, first: Seq) -> Result<Seq> {
    read_cursor(query.cursor.as_deref(), first)
}

pub(crate) fn read_cursor(cursor: Option<&str>, first: Seq) -> Result<Seq> {
    let wrong = |_| Error::invalid("cursor.invalid", "cursor: expected a nextCursor of an earlier page");
    cursor.map_or(Ok(first), |cursor| cursor.parse().map_err(wrong))
}

/// A page of what has numbers in its order, one more than fit when there are more.
pub(crate) fn numbered_page<T>(mut items: Vec<(i64, T)>, limit: usize) -> Page<T> {
    let is_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| is_more).map(|(number, _)| number.to_string());
    Page { items: items.into_iter().map(|(_, item)| item).collect(), next_cursor }
}

/// The key that holds a blocked job back, if it is its key.
pub(crate) fn blocking_key(job: &Job) -> Option<&str> {
    let is_tied = job.rare.as_ref().is_some_and(|rare| rare.waits_for > 0);
    job.key().filter(|_| job.state == State::Blocked && !is_tied)
}

/// A flow as operators see it, without its jobs.
pub(crate) fn shown_flow(row: &FlowRow, id: Id, name: Option<Box<str>>, created_at: Timestamp) -> Flow {
    let state = match (row.finished_at, row.failed) {
        (None, _) if row.undoing => FlowState::Undoing,
        (None, _) => FlowState::Running,
        (Some(_), 0) => FlowState::Completed,
        (Some(_), _) => FlowState::Failed,
    };
    Flow {
        id,
        name,
        created_at,
        finished_at: row.finished_at,
        state,
        unfinished: row.unfinished,
        failed: row.failed,
        counts: BTreeMap::new(),
        jobs: Vec::new(),
    }
}

/// Fills a page with the flows that are wanted, from those of the tenant with their numbers, newest first.
pub(crate) fn flow_page<E>(
    flows: impl Iterator<Item = std::result::Result<(FlowNumber, Flow), E>>,
    query: &FlowQuery,
) -> std::result::Result<Page<Flow>, E> {
    let limit = query.limit.clamp(1, FlowQuery::MAX) as usize;
    let (mut items, mut last) = (Vec::new(), 0);
    for (looked_at, flow) in flows.enumerate() {
        let (number, flow) = flow?;
        if items.len() >= limit || looked_at >= FlowQuery::MAX_LOOKED_AT as usize {
            // There is one more, so the page ends here and another begins after it.
            return Ok(Page { items, next_cursor: Some(last.to_string()) });
        }
        last = number;
        let is_named = query.name.is_none() || query.name.as_deref() == flow.name.as_deref();
        if is_named && query.state.is_none_or(|state| state == flow.state) {
            items.push(flow);
        }
    }
    Ok(Page { items, next_cursor: None })
}

/// Who holds a lease.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    /// Fences the lease: a settle must name it.
    pub(crate) nonce: u64,
    /// When the lease ends; local leases end with the process.
    pub(crate) until: Timestamp,
    pub(crate) local: bool,
    pub(crate) worker: Arc<str>,
    /// Somebody asked to cancel the run; a restart must not forget it.
    pub(crate) cancelled: bool,
}

/// The place of a pending job in its lane: due time, then arrival.
pub(crate) type Place = (i64, Seq);

/// Where the pending jobs of one queue, type, priority and tenant wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey {
    pub(crate) keys: Keys,
    pub(crate) priority: u8,
}

/// Kinds of interned names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum NameKind {
    Tenant,
    Other,
}

/// The write side of an engine, used by its writer thread alone. Any error is a fault of the medium and ends the writer.
///
/// Reads see what was written before in the same transaction.
pub(crate) trait Rows: Bonds + Desk + Finished + Schedules + Send + 'static {
    fn begin(&mut self) -> Result<()>;
    fn commit(&mut self) -> Result<()>;
    /// Drops what was written since `begin`.
    fn rollback(&mut self);
    /// Begins a part that can be undone alone.
    fn savepoint(&mut self) -> Result<()>;
    fn release_savepoint(&mut self) -> Result<()>;
    fn undo_savepoint(&mut self) -> Result<()>;

    fn find_name(&mut self, kind: NameKind, name: &str) -> Result<Option<NameId>>;
    fn name(&mut self, kind: NameKind, id: NameId) -> Result<Option<String>>;
    fn add_name(&mut self, kind: NameKind, name: &str) -> Result<NameId>;

    fn head(&mut self, tenant: NameId) -> Result<Position>;
    fn set_head(&mut self, tenant: NameId, head: Position) -> Result<()>;
    fn last_time(&mut self) -> Result<Timestamp>;
    fn add_event(&mut self, tenant: NameId, kind: NameId, event: &Arc<Event>) -> Result<()>;
    fn last_across(&mut self) -> Result<Position>;
    /// Enters an event of `tenant` in the log across tenants.
    fn add_across(&mut self, tenant: NameId, event: &Arc<Event>) -> Result<()>;
    fn event_by_id(&mut self, tenant: NameId, id: &Id) -> Result<Option<Arc<Event>>>;
    fn stream_version(&mut self, tenant: NameId, stream: &str) -> Result<u64>;

    fn last_seq(&mut self) -> Result<Seq>;
    fn add_job(&mut self, row: &JobRow) -> Result<()>;
    /// Writes what changes over a job's life: state, times, attempt, holder, result, error, priority.
    fn update_job(&mut self, row: &JobRow) -> Result<()>;
    /// Writes everything about a job that is there, its data too.
    fn replace_job(&mut self, row: &JobRow) -> Result<()>;
    /// Deletes a job about which nothing else is kept.
    fn delete_job(&mut self, seq: Seq) -> Result<()>;
    /// Deletes what is kept beside a job: its failed runs, its log, and for whom it waited.
    fn delete_beside(&mut self, seq: Seq) -> Result<()>;
    fn job(&mut self, seq: Seq) -> Result<Option<JobRow>>;
    fn job_seq(&mut self, tenant: NameId, id: &Id) -> Result<Option<Seq>>;
    /// Adds a failed run, and forgets all but the last [`MAX_FAILED_ATTEMPTS`](tidewire_core::job::MAX_FAILED_ATTEMPTS).
    fn add_failed_attempt(&mut self, seq: Seq, attempt: &FailedAttempt) -> Result<()>;
    /// The first pending jobs of a lane, by place.
    fn pending(&mut self, lane: LaneKey, limit: usize) -> Result<Vec<Place>>;
    /// Every lane that has pending jobs.
    fn lanes(&mut self) -> Result<Vec<LaneKey>>;
    /// Scheduled jobs that are due at `now`, earliest first.
    fn due(&mut self, now: Timestamp, limit: usize) -> Result<Vec<Seq>>;
    /// When the next scheduled job is due.
    fn next_due(&mut self) -> Result<Option<Timestamp>>;
    /// Jobs whose time to begin has passed at `now`, earliest first.
    fn expired(&mut self, now: Timestamp, limit: usize) -> Result<Vec<Seq>>;
    /// When the next waiting job expires.
    fn next_expiry(&mut self) -> Result<Option<Timestamp>>;
    /// The blocked jobs of a key, the next first.
    fn blocked_of_key(&mut self, queue: NameId, tenant: NameId, key: &str, limit: usize) -> Result<Vec<Seq>>;
    /// Keys of a queue that have blocked jobs, in order after the one given.
    fn blocked_keys(&mut self, queue: NameId, after: (NameId, &str), limit: usize) -> Result<Vec<(NameId, String)>>;
    /// How many jobs a tenant has in a queue, by state.
    fn counts(&mut self, queue: NameId, tenant: NameId) -> Result<[i64; 8]>;
    /// Adds to these numbers.
    fn add_counts(&mut self, queue: NameId, tenant: NameId, by: &[i64; 8]) -> Result<()>;

    /// Remembers which jobs a batch leased, so that a restart finds them without an index.
    fn add_claims(&mut self, batch: u64, seqs: &[Seq]) -> Result<()>;
    fn delete_claims(&mut self, batch: u64) -> Result<()>;
    fn claims(&mut self) -> Result<Vec<(u64, Vec<Seq>)>>;

    /// A remembered key of a tenant that has not expired.
    fn dedup_until(&mut self, tenant: NameId, key: &str) -> Result<Option<Timestamp>>;
    fn put_dedup(&mut self, tenant: NameId, key: &str, until: Timestamp) -> Result<()>;
    /// The digest and answer kept for an idempotency key, and until when.
    fn idempotent(&mut self, tenant: NameId, key: &str) -> Result<Option<(Vec<u8>, String, Timestamp)>>;
    fn put_idempotent(
        &mut self,
        tenant: NameId,
        key: &str,
        digest: &[u8],
        answer: &str,
        until: Timestamp,
    ) -> Result<()>;
    fn put_session(&mut self, tenant: NameId, sid: &str, state: &str, until: Timestamp) -> Result<()>;
    fn delete_session(&mut self, tenant: NameId, sid: &str) -> Result<()>;
    /// Forgets keys and sessions that have expired, and flows that ended long ago, at most `limit` of each kind. Answers whether more
    /// may be left.
    fn purge(&mut self, now: Timestamp, limit: usize) -> Result<bool>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_flows_looks_at_so_many_and_no_more() {
        let flow = |number: FlowNumber| {
            let row = FlowRow { number, unfinished: 1, failed: 0, undoing: false, finished_at: None };
            let id = Id::parse(&number.to_string()).expect("an id");
            Ok::<_, ()>((number, shown_flow(&row, id, None, Timestamp::default())))
        };
        let most = FlowNumber::from(FlowQuery::MAX_LOOKED_AT);
        let tenant = tidewire_core::TenantId::new("a").expect("a tenant");
        let query = FlowQuery { tenant, state: Some(FlowState::Failed), name: None, cursor: None, limit: 1 };
        let looked_at = std::cell::Cell::new(0);
        let newest_first = (1..=most + 100).rev().inspect(|_| looked_at.set(looked_at.get() + 1));
        let page = flow_page(newest_first.map(flow), &query).expect("a page");
        assert_eq!((page.items.len(), page.next_cursor.as_deref()), (0, Some("101")));
        assert_eq!(looked_at.get(), most + 1);
    }
}
