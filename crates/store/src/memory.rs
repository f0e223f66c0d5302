//! The memory engine: the same writer on maps instead of a file, for tests and simulation.

mod bonds;
mod finished;
mod log;
mod operate;
mod schedules;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::{ArcRwLockWriteGuard, RawRwLock, RwLock};
use tidewire_core::catalog::QueueSettings;
use tidewire_core::event::{Epoch, Event, Position};
use tidewire_core::id::Ids;
use tidewire_core::job::{FailedAttempt, Job, LogLine, MAX_FAILED_ATTEMPTS, State, States};
use tidewire_core::schedule::{Reached, Stored};
use tidewire_core::store::{
    Answer, Counts, Durability, Flow, FlowJob, FlowQuery, JobQuery, LogQuery, Page, Parent, QueueTenant, ScheduleQuery,
    Store,
};
use tidewire_core::time::Clock;
use tidewire_core::{Error, Id, Result, TenantId, Timestamp};
use uuid::Uuid;

use self::bonds::BondTables;
use self::operate::DeskTables;
use crate::embedded::{Embedded, Identity, Reader, Size};
use crate::rows::{
    FlowNumber, Found, JobRow, LaneKey, NameId, NameKind, Place, Rows, Seq, blocking_key, flow_page, numbered_page,
    read_cursor,
};

/// A store that keeps everything in memory and loses it with the process.
pub struct Memory;

impl Memory {
    /// A new, empty store.
    pub fn open(clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Result<Arc<dyn Store>> {
        let epoch = Epoch::from_random(ids.random());
        let identity = Identity { epoch, secret: secret(), durability: Durability::Memory };
        let tables = Arc::new(RwLock::new(Tables::default()));
        let rows = MemoryRows { tables: tables.clone(), turn: None };
        let reader = MemoryReader { tables, clock: clock.clone() };
        Ok(Arc::new(Embedded::start(rows, reader, identity, clock, ids, Box::new(|_| {}))?))
    }
}

/// 32 bytes, 244 bits of them from the operating system: every client sees the epoch, and `Ids` could be told from it.
fn secret() -> [u8; 32] {
    let mut secret = [0; 32];
    for half in secret.as_chunks_mut::<16>().0 {
        *half = Uuid::new_v4().into_bytes();
    }
    secret
}

#[derive(Default)]
struct Tables {
    tenants: HashMap<String, NameId>,
    tenant_names: Vec<String>,
    names: HashMap<String, NameId>,
    other_names: Vec<String>,
    heads: HashMap<NameId, Position>,
    events: BTreeMap<(NameId, Position), Arc<Event>>,
    /// The log across tenants.
    across: Vec<Arc<Event>>,
    event_ids: HashMap<(NameId, Id), Position>,
    streams: HashMap<(NameId, Box<str>), u64>,
    jobs: BTreeMap<Seq, JobRow>,
    job_ids: HashMap<(NameId, Id), Seq>,
    attempts: HashMap<Seq, Vec<FailedAttempt>>,
    claims: BTreeMap<u64, Vec<Seq>>,
    dedup: HashMap<(NameId, String), Timestamp>,
    idempotency: HashMap<(NameId, String), (Vec<u8>, String, Timestamp)>,
    slots: HashMap<(NameId, String), Reached>,
    sessions: HashMap<(TenantId, String), (String, Timestamp)>,
    counts: BTreeMap<(NameId, NameId), [i64; 8]>,
    bonds: BondTables,
    schedules: schedules::ScheduleTable,
    desk: DeskTables,
}

impl Tables {
    fn tenant(&self, tenant: &TenantId) -> Option<NameId> {
        self.tenants.get(tenant.as_str()).copied()
    }

    fn last_across(&self) -> Position {
        self.across.last().map_or(Position::default(), |event| event.position)
    }

    fn jobs_where(&self, wanted: impl Fn(&JobRow) -> bool) -> Vec<&JobRow> {
        self.jobs.values().filter(|row| wanted(row)).collect()
    }

    /// When a job expires, while it waits and has never begun.
    fn expiry(row: &JobRow) -> Option<Timestamp> {
        let waits = row.job.started_at.is_none() && States::WAITING.contains(row.job.state);
        row.job.expires_at().filter(|_| waits)
    }
}

/// The write side. Readers wait from the first write of a turn to its commit, so that they never see half of one.
struct MemoryRows {
    tables: Arc<RwLock<Tables>>,
    turn: Option<ArcRwLockWriteGuard<RawRwLock, Tables>>,
}

impl MemoryRows {
    fn tables(&mut self) -> &mut Tables {
        self.turn.get_or_insert_with(|| self.tables.write_arc())
    }
}

impl Rows for MemoryRows {
    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        self.turn = None;
        Ok(())
    }

    fn rollback(&mut self) {
        self.turn = None;
    }

    // Only engines with a language of their own let callers write beside a commit.
    fn savepoint(&mut self) -> Result<()> {
        Ok(())
    }

    fn release_savepoint(&mut self) -> Result<()> {
        Ok(())
    }

    fn undo_savepoint(&mut self) -> Result<()> {
        Ok(())
    }

    fn find_name(&mut self, kind: NameKind, name: &str) -> Result<Option<NameId>> {
        let tables = self.tables();
        let names = match kind {
            NameKind::Tenant => &tables.tenants,
            NameKind::Other => &tables.names,
        };
        Ok(names.get(name).copied())
    }

    fn name(&mut self, kind: NameKind, id: NameId) -> Result<Option<String>> {
        let tables = self.tables();
        let names = match kind {
            NameKind::Tenant => &tables.tenant_names,
            NameKind::Other => &tables.other_names,
        };
        Ok(names.get(id as usize).cloned())
    }

    fn add_name(&mut self, kind: NameKind, name: &str) -> Result<NameId> {
        let tables = self.tables();
        let (by_name, by_id) = match kind {
            NameKind::Tenant => (&mut tables.tenants, &mut tables.tenant_names),
            NameKind::Other => (&mut tables.names, &mut tables.other_names),
        };
        let id =
            NameId::try_from(by_id.len()).map_err(|error| Error::internal("the store holds too many names", error))?;
        by_id.push(name.to_owned());
        by_name.insert(name.to_owned(), id);
        Ok(id)
    }

    fn head(&mut self, tenant: NameId) -> Result<Position> {
        Ok(self.tables().heads.get(&tenant).copied().unwrap_or_default())
    }

    fn set_head(&mut self, tenant: NameId, head: Position) -> Result<()> {
        self.tables().heads.insert(tenant, head);
        Ok(())
    }

    fn last_time(&mut self) -> Result<Timestamp> {
        Ok(self.tables().events.values().map(|event| event.time).max().unwrap_or_default())
    }

    fn add_event(&mut self, tenant: NameId, _kind: NameId, event: &Arc<Event>) -> Result<()> {
        let tables = self.tables();
        tables.event_ids.insert((tenant, event.id.clone()), event.position);
        if let (Some(stream), Some(version)) = (&event.stream, event.version) {
            tables.streams.insert((tenant, stream.clone()), version);
        }
        tables.events.insert((tenant, event.position), event.clone());
        Ok(())
    }

    fn last_across(&mut self) -> Result<Position> {
        Ok(self.tables().last_across())
    }

    fn add_across(&mut self, _tenant: NameId, event: &Arc<Event>) -> Result<()> {
        self.tables().across.push(event.clone());
        Ok(())
    }

    fn event_by_id(&mut self, tenant: NameId, id: &Id) -> Result<Option<Arc<Event>>> {
        let tables = self.tables();
        let position = tables.event_ids.get(&(tenant, id.clone()));
        Ok(position.and_then(|position| tables.events.get(&(tenant, *position))).cloned())
    }

    fn stream_version(&mut self, tenant: NameId, stream: &str) -> Result<u64> {
        Ok(self.tables().streams.get(&(tenant, stream.into())).copied().unwrap_or_default())
    }

    fn last_seq(&mut self) -> Result<Seq> {
        Ok(self.tables().jobs.keys().next_back().copied().unwrap_or_default())
    }

    fn add_job(&mut self, row: &JobRow) -> Result<()> {
        let tables = self.tables();
        tables.job_ids.insert((row.keys.tenant, row.job.id.clone()), row.seq);
        tables.jobs.insert(row.seq, row.clone());
        Ok(())
    }

    fn update_job(&mut self, row: &JobRow) -> Result<()> {
        self.tables().jobs.insert(row.seq, row.clone());
        Ok(())
    }

    fn delete_job(&mut self, seq: Seq) -> Result<()> {
        let tables = self.tables();
        if let Some(row) = tables.jobs.remove(&seq) {
            tables.job_ids.remove(&(row.keys.tenant, row.job.id));
        }
        Ok(())
    }

    fn replace_job(&mut self, row: &JobRow) -> Result<()> {
        self.update_job(row)
    }

    fn delete_beside(&mut self, seq: Seq) -> Result<()> {
        let tables = self.tables();
        tables.attempts.remove(&seq);
        tables.bonds.forget_edges(seq);
        tables.desk.logs.remove(&seq);
        Ok(())
    }

    fn job(&mut self, seq: Seq) -> Result<Option<JobRow>> {
        Ok(self.tables().jobs.get(&seq).cloned())
    }

    fn job_seq(&mut self, tenant: NameId, id: &Id) -> Result<Option<Seq>> {
        Ok(self.tables().job_ids.get(&(tenant, id.clone())).copied())
    }

    fn add_failed_attempt(&mut self, seq: Seq, attempt: &FailedAttempt) -> Result<()> {
        let attempts = self.tables().attempts.entry(seq).or_default();
        attempts.push(attempt.clone());
        attempts.drain(..attempts.len().saturating_sub(MAX_FAILED_ATTEMPTS));
        Ok(())
    }

    fn pending(&mut self, lane: LaneKey, limit: usize) -> Result<Vec<Place>> {
        let in_lane = |row: &JobRow| {
            row.job.state == State::Pending && row.keys == lane.keys && row.job.priority == lane.priority
        };
        let rows = self.tables().jobs_where(in_lane);
        let mut places: Vec<Place> = rows.into_iter().map(|row| (row.job.run_at.as_micros(), row.seq)).collect();
        places.sort_unstable();
        places.truncate(limit);
        Ok(places)
    }

    fn lanes(&mut self) -> Result<Vec<LaneKey>> {
        // A memory store always opens empty.
        Ok(Vec::new())
    }

    fn due(&mut self, now: Timestamp, limit: usize) -> Result<Vec<Seq>> {
        let rows = self.tables().jobs_where(|row| row.job.state == State::Scheduled && row.job.run_at <= now);
        let mut due: Vec<_> = rows.into_iter().map(|row| (row.job.run_at, row.seq)).collect();
        due.sort_unstable();
        Ok(due.into_iter().take(limit).map(|(_, seq)| seq).collect())
    }

    fn next_due(&mut self) -> Result<Option<Timestamp>> {
        let rows = self.tables().jobs_where(|row| row.job.state == State::Scheduled);
        Ok(rows.into_iter().map(|row| row.job.run_at).min())
    }

    fn expired(&mut self, now: Timestamp, limit: usize) -> Result<Vec<Seq>> {
        let rows = self.tables().jobs_where(|row| Tables::expiry(row).is_some_and(|at| at <= now)).into_iter();
        let mut expired: Vec<_> = rows.map(|row| (Tables::expiry(row), row.seq)).collect();
        expired.sort_unstable();
        Ok(expired.into_iter().take(limit).map(|(_, seq)| seq).collect())
    }

    fn next_expiry(&mut self) -> Result<Option<Timestamp>> {
        Ok(self.tables().jobs.values().filter_map(Tables::expiry).min())
    }

    fn blocked_of_key(&mut self, queue: NameId, tenant: NameId, key: &str, limit: usize) -> Result<Vec<Seq>> {
        let of_key =
            |row: &JobRow| (row.keys.queue, row.keys.tenant) == (queue, tenant) && blocking_key(&row.job) == Some(key);
        let rows = self.tables().jobs_where(of_key).into_iter();
        let mut blocked: Vec<_> = rows.map(|row| (row.job.priority, row.job.run_at, row.seq)).collect();
        blocked.sort_unstable();
        Ok(blocked.into_iter().take(limit).map(|(_, _, seq)| seq).collect())
    }

    fn blocked_keys(&mut self, queue: NameId, after: (NameId, &str), limit: usize) -> Result<Vec<(NameId, String)>> {
        let rows = self.tables().jobs_where(|row| row.keys.queue == queue).into_iter();
        let keys = rows.filter_map(|row| Some((row.keys.tenant, blocking_key(&row.job)?.to_owned())));
        let later = keys.filter(|(tenant, key)| (*tenant, key.as_str()) > after);
        Ok(later.collect::<BTreeSet<_>>().into_iter().take(limit).collect())
    }

    fn counts(&mut self, queue: NameId, tenant: NameId) -> Result<[i64; 8]> {
        Ok(self.tables().counts.get(&(queue, tenant)).copied().unwrap_or_default())
    }

    fn add_counts(&mut self, queue: NameId, tenant: NameId, by: &[i64; 8]) -> Result<()> {
        let counts = self.tables().counts.entry((queue, tenant)).or_default();
        counts.iter_mut().zip(by).for_each(|(count, by)| *count += by);
        Ok(())
    }

    fn add_claims(&mut self, batch: u64, seqs: &[Seq]) -> Result<()> {
        self.tables().claims.insert(batch, seqs.to_vec());
        Ok(())
    }

    fn delete_claims(&mut self, batch: u64) -> Result<()> {
        self.tables().claims.remove(&batch);
        Ok(())
    }

    fn claims(&mut self) -> Result<Vec<(u64, Vec<Seq>)>> {
        Ok(self.tables().claims.iter().map(|(batch, seqs)| (*batch, seqs.clone())).collect())
    }

    fn dedup_until(&mut self, tenant: NameId, key: &str) -> Result<Option<Timestamp>> {
        Ok(self.tables().dedup.get(&(tenant, key.to_owned())).copied())
    }

    fn put_dedup(&mut self, tenant: NameId, key: &str, until: Timestamp) -> Result<()> {
        self.tables().dedup.insert((tenant, key.to_owned()), until);
        Ok(())
    }

    fn idempotent(&mut self, tenant: NameId, key: &str) -> Result<Option<(Vec<u8>, String, Timestamp)>> {
        Ok(self.tables().idempotency.get(&(tenant, key.to_owned())).cloned())
    }

    fn put_idempotent(
        &mut self,
        tenant: NameId,
        key: &str,
        digest: &[u8],
        answer: &str,
        until: Timestamp,
    ) -> Result<()> {
        self.tables().idempotency.insert((tenant, key.to_owned()), (digest.to_vec(), answer.to_owned(), until));
        Ok(())
    }

    fn put_session(&mut self, tenant: NameId, sid: &str, state: &str, until: Timestamp) -> Result<()> {
        let tables = self.tables();
        if let Some(name) = tables.tenant_name(tenant) {
            tables.sessions.insert((name, sid.to_owned()), (state.to_owned(), until));
        }
        Ok(())
    }

    fn delete_session(&mut self, tenant: NameId, sid: &str) -> Result<()> {
        let tables = self.tables();
        if let Some(name) = tables.tenant_names.get(tenant as usize) {
            tables.sessions.remove(&(TenantId::from_stored(name), sid.to_owned()));
        }
        Ok(())
    }

    fn purge(&mut self, now: Timestamp, limit: usize) -> Result<bool> {
        let tables = self.tables();
        let forgotten = [
            tables.dedup.extract_if(|_, until| *until <= now).take(limit).count(),
            tables.idempotency.extract_if(|_, (_, _, until)| *until <= now).take(limit).count(),
            tables.sessions.extract_if(|_, (_, until)| *until <= now).take(limit).count(),
        ];
        let Tables { bonds, jobs, .. } = tables;
        bonds.uniques.retain(|_, taken| {
            let is_unfinished = jobs.get(&taken.seq).is_some_and(|row| !row.job.state.is_final());
            is_unfinished || taken.until.is_none_or(|until| until > now)
        });
        Ok(forgotten.into_iter().any(|count| count >= limit))
    }
}

/// The read side.
struct MemoryReader {
    tables: Arc<RwLock<Tables>>,
    clock: Arc<dyn Clock>,
}

fn ready<T: Send + 'static>(answer: Result<T>) -> Answer<'static, T> {
    Box::pin(std::future::ready(answer))
}

impl Reader for MemoryReader {
    fn size(&self) -> Answer<'_, Size> {
        ready(Ok(self.tables.read().size()))
    }
    fn head(&self, tenant: &TenantId) -> Answer<'_, Position> {
        let tables = self.tables.read();
        if *tenant == TenantId::across() {
            return ready(Ok(tables.last_across()));
        }
        let head = tables.tenant(tenant).and_then(|tenant| tables.heads.get(&tenant).copied());
        ready(Ok(head.unwrap_or_default()))
    }

    fn log(&self, tenant: &TenantId, query: LogQuery) -> Answer<'_, Vec<Arc<Event>>> {
        ready(Ok(log::page(&self.tables.read(), tenant, &query)))
    }

    fn event(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Arc<Event>>> {
        let tables = self.tables.read();
        let event = tables.tenant(tenant).and_then(|tenant| {
            let position = tables.event_ids.get(&(tenant, id.clone()))?;
            tables.events.get(&(tenant, *position)).cloned()
        });
        ready(Ok(event))
    }

    fn job(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<(Job, Vec<FailedAttempt>)>> {
        let tables = self.tables.read();
        let job = tables.tenant(tenant).and_then(|tenant| {
            let seq = tables.job_ids.get(&(tenant, id.clone()))?;
            let attempts = tables.attempts.get(seq).cloned().unwrap_or_default();
            Some((tables.jobs.get(seq)?.clone().shown(), attempts))
        });
        ready(Ok(job))
    }

    fn jobs(&self, query: JobQuery) -> Answer<'_, Page<Job>> {
        ready(self.tables.read().jobs_page(&query))
    }

    fn find(&self, query: JobQuery) -> Answer<'_, Found> {
        ready(self.tables.read().find(&query))
    }

    fn logs(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<String>,
        limit: usize,
    ) -> Answer<'_, Option<Page<LogLine>>> {
        ready(self.tables.read().logs(tenant, id, cursor.as_deref(), limit))
    }

    fn queue_settings(&self) -> Answer<'_, BTreeMap<Arc<str>, QueueSettings>> {
        ready(self.tables.read().all_queue_settings())
    }

    fn queue_tenants(&self, queue: &str, limit: u32) -> Answer<'_, Vec<QueueTenant>> {
        ready(Ok(self.tables.read().queue_tenants(queue, limit as usize)))
    }

    fn counts(&self, tenant: Option<&TenantId>) -> Answer<'_, Counts> {
        let tables = self.tables.read();
        let tenant = tenant.map(|tenant| tables.tenant(tenant));
        let mut counts = Counts::new();
        for ((queue, _), by_state) in
            tables.counts.iter().filter(|((_, of), _)| tenant.is_none_or(|id| id == Some(*of)))
        {
            let Some(queue) = tables.other_names.get(*queue as usize) else { continue };
            for (state, count) in State::ALL.into_iter().zip(by_state).filter(|(_, count)| **count != 0) {
                let queue = counts.entry(queue.as_str().into()).or_default();
                *queue.entry(state).or_default() += count.unsigned_abs();
            }
        }
        ready(Ok(counts))
    }

    fn flow(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Flow>> {
        let tables = self.tables.read();
        let Some(flow) = tables.tenant(tenant).and_then(|tenant| tables.bonds.flow(tenant, id)) else {
            return ready(Ok(None));
        };
        let mut counts = BTreeMap::new();
        let mut jobs = Vec::new();
        for member in flow.members.values() {
            let now = || tables.jobs.get(&member.seq).map_or(State::Cancelled, |row| row.job.state);
            let state = member.ended.map_or_else(now, |(state, _)| state);
            *counts.entry(state).or_default() += 1;
            let after = tables.bonds.before(member.seq).filter_map(|seq| Some(flow.members.get(&seq)?.id.clone()));
            jobs.push(FlowJob {
                id: member.id.clone(),
                reference: member.reference.clone(),
                kind: member.kind.clone(),
                state,
                after: after.collect(),
                compensates: member.compensates.clone(),
                finished_at: member.ended.map(|(_, at)| at),
            });
        }
        jobs.truncate(Flow::MOST_JOBS);
        ready(Ok(Some(Flow { counts, jobs, ..flow.shown() })))
    }

    fn parents(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<String>,
        limit: usize,
    ) -> Answer<'_, Option<Page<Parent>>> {
        let tables = self.tables.read();
        let page = read_cursor(cursor.as_deref(), 0).map(|after| {
            let child = *tables.job_ids.get(&(tables.tenant(tenant)?, id.clone()))?;
            let parents = tables.bonds.ended_parents(child).filter(|(parent, _)| *parent > after);
            let some = parents.take(limit + 1).map(|(parent, ended)| (parent, ended.clone())).collect();
            Some(numbered_page(some, limit))
        });
        ready(page)
    }

    fn flows(&self, query: FlowQuery) -> Answer<'_, Page<Flow>> {
        let tables = self.tables.read();
        let flows = read_cursor(query.cursor.as_deref(), FlowNumber::MAX).and_then(|before| {
            let tenant = tables.tenant(&query.tenant);
            let own = (1..).zip(&tables.bonds.flows).filter(|(_, flow)| tenant == Some(flow.tenant));
            let own: Vec<_> = own.filter(|(number, _)| *number < before).collect();
            flow_page(own.into_iter().rev().map(|(number, flow)| Ok((number, flow.shown()))), &query)
        });
        ready(flows)
    }

    fn due(&self, now: Timestamp, limit: u32) -> Answer<'_, Vec<Stored>> {
        ready(Ok(self.tables.read().due_schedules(now, limit)))
    }

    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<'_, Vec<TenantId>> {
        ready(Ok(self.tables.read().tenants_after(after, limit)))
    }

    fn next_due(&self) -> Answer<'_, Option<Timestamp>> {
        ready(Ok(self.tables.read().next_schedule()))
    }

    fn schedule(&self, tenant: &TenantId, key: &str, user_id: Option<&str>) -> Answer<'_, Option<Stored>> {
        ready(Ok(self.tables.read().schedule(tenant, key, user_id.unwrap_or_default())))
    }

    fn schedules(&self, query: ScheduleQuery) -> Answer<'_, Page<Stored>> {
        ready(self.tables.read().schedule_page(&query))
    }

    fn session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, Option<String>> {
        let tables = self.tables.read();
        let kept = tables.sessions.get(&(tenant.clone(), sid.to_owned()));
        let now = self.clock.now();
        ready(Ok(kept.filter(|(_, until)| *until > now).map(|(state, _)| state.clone())))
    }

    fn close(&self) {}
}

#[cfg(test)]
mod tests;
