//! Enqueuing: the place of a new job, and what becomes of one whose unique key is taken.

use std::collections::HashSet;
use std::time::Duration;

use tidewire_core::commit::{Commit, Enqueue, Enqueued};
use tidewire_core::job::{Conflict, Job, OnConflict, Rare, State, States, Unique};
use tidewire_core::store::Moment;
use tidewire_core::{Error, Id, Kind, Result, TenantId};

use crate::rows::{JobRow, Keys, NameId, Rows, Seq, Taken};
use crate::writer::{Outcome, Writer};

/// What a new job comes upon at its unique key.
enum Contest {
    /// Nobody who keeps it out; perhaps one that was cancelled for it.
    Free(Option<Conflict>),
    /// One behind which it waits.
    Behind(Seq, Conflict),
    /// One that stays in its place.
    Lost(Enqueued),
}

impl<R: Rows> Writer<R> {
    /// Whether the jobs of a commit can be enqueued. Codes `job.missing_parent`, `flow.exists`, `queue.backlog_full`.
    pub(crate) fn check_jobs(&mut self, tenant: NameId, commit: &Commit) -> Outcome<()> {
        for flow in commit.flows.iter().filter(|flow| flow.given_id) {
            if self.rows.flow(tenant, &flow.id)?.is_some() {
                return Ok(Err(Error::conflict("flow.exists", format!("there is a flow {} already", flow.id))));
            }
        }
        if commit.jobs.iter().any(|job| !job.after.is_empty()) {
            let own: HashSet<&Id> = commit.jobs.iter().map(|job| &job.id).collect();
            for after in commit.jobs.iter().flat_map(|job| &job.after) {
                if !own.contains(&after.id) && self.find_job(tenant, &after.id)?.is_none() {
                    let detail = format!("after: there is no job {} and no ref of this name in the call", after.id);
                    return Ok(Err(Error::invalid("job.missing_parent", detail)));
                }
            }
        }
        self.check_backlog(tenant, commit)
    }

    fn check_backlog(&mut self, tenant: NameId, commit: &Commit) -> Outcome<()> {
        if !self.bounds_backlogs {
            return Ok(Ok(()));
        }
        let mut more: Vec<(NameId, i64, u64)> = Vec::new();
        for (index, job) in commit.jobs.iter().enumerate() {
            let queue = self.names.other(&mut self.rows, &job.queue)?;
            let Some(most) = self.backlog_of(queue, &commit.tenant) else { continue };
            if job.given_id && self.find_job(tenant, &job.id)?.is_some() || !self.adds_one(tenant, job)? {
                continue;
            }
            let of_queue = match more.iter().position(|(known, ..)| *known == queue) {
                Some(at) => &mut more[at],
                None => {
                    more.push((queue, self.waiting(queue, tenant)?, most));
                    let last = more.len() - 1;
                    &mut more[last]
                }
            };
            of_queue.1 += 1;
            if of_queue.1.unsigned_abs() > most {
                let detail = format!("queue {:?} holds at most {most} waiting jobs of one tenant", job.queue);
                let full = Error::new(Kind::Limited, "queue.backlog_full", detail);
                let of_call = |jobs: &[Enqueue]| jobs.iter().filter(|other| other.queue == job.queue).count() as u64;
                let excess = of_queue.1.unsigned_abs() + of_call(&commit.jobs[index + 1..]) - most;
                // A call that is too large by itself never fits.
                let may_fit = of_call(&commit.jobs) <= most;
                let after = may_fit.then(|| self.room_after(queue, &commit.tenant, excess)).flatten();
                return Ok(Err(match after {
                    Some(after) => full.with_retry_after(after),
                    None => full,
                }));
            }
        }
        Ok(Ok(()))
    }

    /// The least time until `excess` waiting jobs of a tenant have begun. Only a rate tells it: without one it depends on the workers, and
    /// while the queue or the tenant is paused nobody knows.
    fn room_after(&self, queue: NameId, tenant: &TenantId, excess: u64) -> Option<Duration> {
        let limits = self.dispatch.limits(queue)?;
        let own = limits.tenants.get(tenant);
        if limits.paused || own.is_some_and(|own| own.paused) {
            return None;
        }
        let rates = [limits.rate, own.and_then(|own| own.rate).or(limits.rate_per_tenant)];
        let slowest = rates.into_iter().flatten().map(|rate| rate.per / rate.amount).max()?;
        Some(slowest.saturating_mul(u32::try_from(excess).unwrap_or(u32::MAX)))
    }

    fn backlog_of(&self, queue: NameId, tenant: &TenantId) -> Option<u64> {
        let limits = self.dispatch.limits(queue)?;
        limits.tenants.get(tenant).and_then(|own| own.backlog).or(limits.backlog)
    }

    /// Enqueues a job, or finds the one that has its id or its unique key. One that is to be tied to others is blocked until it is.
    pub(crate) fn enqueue(&mut self, tenant: NameId, name: &TenantId, job: Enqueue) -> Result<Enqueued> {
        if job.given_id
            && let Some(seq) = self.find_job(tenant, &job.id)?
            && let Some(known) = self.job_row(seq)?
        {
            let (kind, state) = (known.job.kind, known.job.state);
            return Ok(Enqueued { id: job.id, kind, state, deduplicated: true, conflict: None });
        }
        let keys = Keys {
            tenant,
            queue: self.names.other(&mut self.rows, &job.queue)?,
            kind: self.names.other(&mut self.rows, &job.kind)?,
        };
        let unique = job.rare.as_ref().and_then(|rare| rare.unique.as_ref());
        let (behind, conflict) = match unique {
            None => (None, None),
            Some(unique) => match self.contend(keys, &job, unique)? {
                Contest::Free(conflict) => (None, conflict),
                Contest::Behind(seq, conflict) => (Some(seq), Some(conflict)),
                Contest::Lost(enqueued) => return Ok(enqueued),
            },
        };
        let run_at = job.run_at.filter(|run_at| *run_at > self.now);
        let compensates = job.rare.as_ref().is_some_and(|rare| rare.compensates.is_some());
        let is_tied = !job.after.is_empty();
        let state = match run_at {
            _ if behind.is_some() || compensates || is_tied => State::Blocked,
            Some(_) => State::Scheduled,
            None => State::Pending,
        };
        let seq = self.next_seq;
        self.next_seq += 1;
        if job.given_id || is_tied || job.rare.is_some() {
            self.fresh_ids.insert((tenant, job.id.clone()), seq);
        }
        if let Some(unique) = unique {
            let until = unique.window.map(|window| self.now + window);
            let taken = Taken { seq, id: job.id.clone(), until, ended: None };
            self.rows.put_unique(tenant, keys.kind, &unique.key, &taken)?;
        }
        let enqueued = Enqueued { id: job.id.clone(), kind: job.kind.clone(), state, deduplicated: false, conflict };
        let job = Job {
            tenant: name.clone(),
            id: job.id,
            kind: job.kind,
            queue: job.queue,
            state,
            priority: job.priority,
            data: job.data,
            attempt: 0,
            attempts: job.attempts,
            backoff: job.backoff,
            timeout: job.timeout,
            created_at: self.now,
            run_at: run_at.unwrap_or(self.now),
            started_at: None,
            finished_at: None,
            result: None,
            error: None,
            user_id: job.user_id,
            correlation_id: job.correlation_id,
            causation_id: job.causation_id,
            depth: job.depth,
            rare: job.rare,
            held: None,
        };
        let mut row = JobRow { seq, keys, job, holder: None };
        if compensates || is_tied {
            // It waits for its flow to fail, or to be tied to those it waits for at the end of the commit.
            row.job.rare_mut().waits_for = 1;
        }
        self.counts.moved(keys, None, Some(state));
        self.metering.enqueued(keys.queue, &row.job.queue);
        self.expect_expiry(&row.job);
        self.place(&row);
        let told = self.cares(Moment::Enqueued, &row.job).then(|| row.job.clone());
        self.fresh.push(row);
        if let Some(behind) = behind {
            self.tie(seq, &[(behind, true)])?;
        }
        if let Some(job) = told {
            self.tell(Moment::Enqueued, &job)?;
        }
        Ok(enqueued)
    }

    /// Remembers when a waiting job expires.
    pub(crate) fn expect_expiry(&mut self, job: &Job) {
        if let Some(at) = job.expires_at() {
            self.next_expiry = Some(self.next_expiry.map_or(at, |next| next.min(at)));
        }
    }

    /// Who is at the unique key of a new job, and who of the two stays.
    fn contend(&mut self, keys: Keys, job: &Enqueue, unique: &Unique) -> Result<Contest> {
        let mut superseded = None;
        let (row, waits) = loop {
            let Some(taken) = self.rows.unique(keys.tenant, keys.kind, &unique.key)? else {
                return Ok(Contest::Free(superseded));
            };
            let in_window = taken.until.is_some_and(|until| until > self.now);
            let Some(row) = self.job_row(taken.seq)? else {
                if !in_window || unique.on_conflict == OnConflict::Supersede {
                    return Ok(Contest::Free(superseded));
                }
                // It has ended and is forgotten, but its window is not over.
                let (id, kind, conflict) = (taken.id, job.kind.clone(), Some(Conflict::Kept));
                let state = taken.ended.unwrap_or(State::Completed);
                return Ok(Contest::Lost(Enqueued { id, kind, state, deduplicated: true, conflict }));
            };
            let state = row.job.state;
            if !self.keeps_out(&row, unique, in_window)? {
                return Ok(Contest::Free(superseded));
            }
            let waits = States::WAITING.contains(state);
            match unique.on_conflict {
                OnConflict::Supersede if waits => {
                    // Its key is free now, or again that of the one behind which it waited.
                    self.take_back(row, &format!("superseded by job {}", job.id))?;
                    superseded = Some(Conflict::Superseded);
                }
                OnConflict::Supersede if state == State::Processing => {
                    self.ask_to_stop(taken.seq)?;
                    return Ok(Contest::Behind(taken.seq, Conflict::Superseded));
                }
                OnConflict::Supersede => return Ok(Contest::Free(superseded)),
                OnConflict::Latest if state == State::Processing => {
                    return Ok(Contest::Behind(taken.seq, Conflict::Queued));
                }
                OnConflict::Keep | OnConflict::Replace | OnConflict::Extend | OnConflict::Latest => break (row, waits),
            }
        };
        let conflict = match unique.on_conflict {
            OnConflict::Replace | OnConflict::Latest if waits => Conflict::Replaced,
            OnConflict::Extend if waits => Conflict::Extended,
            OnConflict::Keep
            | OnConflict::Replace
            | OnConflict::Extend
            | OnConflict::Latest
            | OnConflict::Supersede => Conflict::Kept,
        };
        let row = match conflict {
            Conflict::Replaced => self.replace(row, job, true)?,
            Conflict::Extended => self.replace(row, job, false)?,
            Conflict::Kept | Conflict::Queued | Conflict::Superseded => row,
        };
        let Job { id, kind, state, .. } = row.job;
        Ok(Contest::Lost(Enqueued { id, kind, state, deduplicated: true, conflict: Some(conflict) }))
    }

    /// Whether the job that has a unique key keeps a new one out.
    fn keeps_out(&mut self, row: &JobRow, unique: &Unique, in_window: bool) -> Result<bool> {
        let state = row.job.state;
        // One that waits behind a running one keeps others out as that one does.
        Ok(unique.states.contains(state)
            || in_window && state != State::Cancelled
            || self.ahead(row, unique)?.is_some())
    }

    /// Whether there is one more waiting job when a new one comes to its unique key: not if it is dropped, or takes the place of one.
    fn adds_one(&mut self, tenant: NameId, job: &Enqueue) -> Result<bool> {
        let Some(unique) = job.rare.as_ref().and_then(|rare| rare.unique.as_ref()) else { return Ok(true) };
        let kind = self.names.other(&mut self.rows, &job.kind)?;
        let Some(taken) = self.rows.unique(tenant, kind, &unique.key)? else { return Ok(true) };
        let in_window = taken.until.is_some_and(|until| until > self.now);
        let Some(row) = self.job_row(taken.seq)? else {
            return Ok(!in_window || unique.on_conflict == OnConflict::Supersede);
        };
        if !self.keeps_out(&row, unique, in_window)? {
            return Ok(true);
        }
        Ok(match unique.on_conflict {
            OnConflict::Keep | OnConflict::Replace | OnConflict::Extend => false,
            OnConflict::Latest => row.job.state == State::Processing,
            OnConflict::Supersede => !States::WAITING.contains(row.job.state),
        })
    }

    /// Gives a waiting job the time of a later one, and its content, too, if `whole`.
    fn replace(&mut self, old: JobRow, new: &Enqueue, whole: bool) -> Result<JobRow> {
        let run_at = new.run_at.filter(|run_at| *run_at > self.now);
        let is_tied = old.job.rare.as_ref().is_some_and(|rare| rare.waits_for > 0);
        let (state, run_at) = match run_at {
            _ if is_tied => (State::Blocked, run_at.unwrap_or(old.job.run_at)),
            Some(run_at) => (State::Scheduled, run_at),
            // It is due already and keeps its place in the line.
            None if old.job.run_at <= self.now => (State::Pending, old.job.run_at),
            None => (State::Pending, self.now),
        };
        let changed = self.alter_all(old.seq, |row| {
            let job = &mut row.job;
            job.move_to(run_at);
            job.state = state;
            if whole {
                job.data = new.data.clone();
                (job.priority, job.attempts, job.timeout) = (new.priority, new.attempts, new.timeout);
                job.backoff = new.backoff.clone();
                job.user_id.clone_from(&new.user_id);
                job.correlation_id.clone_from(&new.correlation_id);
                job.causation_id.clone_from(&new.causation_id);
                job.rare = merged(job.rare.take(), new.rare.as_deref());
            }
        })?;
        let Some(row) = changed else { return Ok(old) };
        let stays =
            (old.job.state, old.job.run_at, old.job.priority) == (row.job.state, row.job.run_at, row.job.priority);
        self.counts.moved(row.keys, Some(old.job.state), Some(row.job.state));
        self.expect_expiry(&row.job);
        if !stays {
            self.place(&row);
        }
        if row.job.state != State::Pending || row.job.key() != old.job.key() {
            self.leave_line(&old)?;
        }
        Ok(row)
    }
}

/// The rare part of a job that was replaced: what ties it to others stays, the rest is that of the later one.
fn merged(old: Option<Box<Rare>>, new: Option<&Rare>) -> Option<Box<Rare>> {
    let old = old.map(|old| *old).unwrap_or_default();
    let new = new.cloned().unwrap_or_default();
    Some(Box::new(Rare {
        flow: old.flow,
        reference: old.reference,
        waits_for: old.waits_for,
        on_failure: old.on_failure,
        compensates: old.compensates,
        finally: old.finally,
        has_parents: old.has_parents,
        has_dependents: old.has_dependents,
        has_log: old.has_log,
        lost: old.lost,
        ..new
    }))
}
