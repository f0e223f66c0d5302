//! Leasing: claims that wait, leases that end, verdicts that settle them.

use std::sync::Arc;
use std::time::Duration;

use tidewire_core::catalog::Keep;
use tidewire_core::job::{FailedAttempt, Outcome as Fate, Run, State, Verdict};
use tidewire_core::limit::Rate;
use tidewire_core::store::{Claim, Leased, Moment, Parent, QueueLimits, Renewed, Settle, Settled};
use tidewire_core::{Error, Id, Kind, Result, TenantId, Timestamp};

use crate::answer::{Pending, Reply};
use crate::dispatch::{Found, WINDOW, Wanted};
use crate::failpoint::{self, Point};
use crate::lease::{Lease, Token};
use crate::rows::{EndedJob, Holder, JobRow, LaneKey, NameId, Place, Rows, Seq, Taken};
use crate::writer::{Outcome, Writer};

/// How many completed jobs over the number to keep may gather before the oldest are deleted together.
const KEEP_SLACK: usize = 64;

/// The most claims that wait for a job. Each turn looks at them all, and each holds memory.
const MAX_PARKED: usize = 16_384;

/// Why a job was taken back that did not begin in time.
const EXPIRED: &str = "it did not begin before it expired";

/// Why a job is dead whose retry could not begin in time.
const LATE: &str = "no retry may begin any more: retryFor has passed";

/// How many jobs one turn passes over because their keys hold them back; the next turn goes on.
const PASS_AT_ONCE: usize = 1_024;

/// How many tenants a claim takes jobs from when there are more tenants than it takes jobs. Jobs of one tenant that were enqueued
/// together lie together: with 10,000 tenants five in a row cost half of one each of five.
const TENANTS_PER_CLAIM: u32 = 20;

/// How many due jobs one turn makes pending; the next turn goes on.
const PROMOTE_AT_ONCE: usize = 1_024;

/// A final job that is kept for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) job: EndedJob,
    /// Whether something may be kept beside it. Most jobs have nothing, and then nothing is looked for.
    may_have_more: bool,
}

impl Kept {
    /// A job of which no more is known.
    pub(crate) fn unknown(job: EndedJob) -> Self {
        Self { job, may_have_more: true }
    }
}

/// A claim that waits for a job.
pub(crate) struct Parked {
    claim: Claim,
    wanted: Wanted,
    /// When it is answered with nothing.
    pub(crate) deadline: Timestamp,
    reply: Reply<Vec<Leased>>,
}

impl<R: Rows> Writer<R> {
    /// Lets a claim wait; it is looked at in this same turn. Code `store.busy` when too many wait.
    pub(crate) fn park(&mut self, claim: Claim, reply: Reply<Vec<Leased>>) -> Result<()> {
        if self.parked.len() >= MAX_PARKED && self.weeded != self.batch {
            // Once in a turn, so that refusing many stays cheap.
            self.weeded = self.batch;
            self.parked.retain(|parked| !parked.reply.is_closed());
        }
        if self.parked.len() >= MAX_PARKED {
            let detail = format!("{MAX_PARKED} workers already wait for jobs");
            let busy = Error::new(Kind::Limited, "store.busy", detail).with_retry_after(Duration::from_secs(1));
            drop(reply.send(Err(busy)));
            return Ok(());
        }
        let wanted = Wanted {
            tenant: match &claim.tenant {
                Some(tenant) => Some(self.names.tenant(&mut self.rows, tenant)?),
                None => None,
            },
            queues: self.other_names(&claim.queues)?,
            kinds: self.other_names(&claim.kinds)?,
            reserved: claim.reserved,
        };
        let deadline = self.now + claim.wait;
        self.parked.push_back(Parked { claim, wanted, deadline, reply });
        Ok(())
    }

    fn other_names(&mut self, names: &[Arc<str>]) -> Result<Vec<NameId>> {
        names.iter().map(|name| self.names.other(&mut self.rows, name)).collect()
    }

    /// Gives waiting claims what is due, in the order they came, but the slots that are kept for others last.
    pub(crate) fn lease_out(&mut self) -> Result<()> {
        self.held_until = None;
        if self.parked.iter().any(|parked| parked.wanted.reserved) {
            self.parked.make_contiguous().sort_by_key(|parked| parked.wanted.reserved);
        }
        let mut passes = PASS_AT_ONCE;
        for _ in 0..self.parked.len() {
            let Some(parked) = self.parked.pop_front() else { break };
            if parked.reply.is_closed() {
                continue;
            }
            let leased = if self.has_work(&parked.wanted) { self.take(&parked, &mut passes)? } else { Vec::new() };
            if leased.is_empty() && (parked.deadline > self.now || passes == 0) {
                self.parked.push_back(parked);
            } else {
                self.answers.push(Pending::Leased(parked.reply, leased));
            }
        }
        if passes == 0 {
            // A line of many jobs of one key must not keep all other calls waiting.
            self.held_until = Some(self.now);
        }
        Ok(())
    }

    fn has_work(&self, wanted: &Wanted) -> bool {
        match wanted.queues.as_slice() {
            [] => self.dispatch.ready().next().is_some(),
            queues => queues.iter().any(|queue| self.dispatch.is_ready(*queue)),
        }
    }

    fn take(&mut self, parked: &Parked, passes: &mut usize) -> Result<Vec<Leased>> {
        let mut queues = parked.wanted.queues.clone();
        if queues.is_empty() {
            queues = self.dispatch.ready().collect();
        }
        if queues.len() > 1 {
            // Another queue is first each time, so that a long one does not keep the others waiting.
            let turn = usize::try_from(self.batch).unwrap_or(0) % queues.len();
            queues.sort_unstable();
            queues.rotate_left(turn);
        }
        let mut leased = Vec::new();
        for queue in queues {
            let is_crowded = self.dispatch.lanes(queue) > parked.claim.max as usize;
            let in_a_row = if is_crowded { (parked.claim.max / TENANTS_PER_CLAIM).max(1) } else { 1 };
            while leased.len() < parked.claim.max as usize && *passes > 0 && self.dispatch.is_ready(queue) {
                match self.dispatch.next(queue, &parked.wanted, in_a_row, self.now) {
                    Found::Job(place, priority) => match self.lease(place, priority, &parked.claim)? {
                        Some(job) => leased.push(job),
                        None => *passes -= 1,
                    },
                    Found::Refill(lane) => self.refill(lane)?,
                    Found::Held(until) => {
                        self.held_until = self.held_until.into_iter().chain(until).min();
                        break;
                    }
                    Found::Nothing => break,
                }
            }
        }
        Ok(leased)
    }

    fn refill(&mut self, lane: LaneKey) -> Result<()> {
        self.write_fresh()?;
        let places = self.rows.pending(lane, WINDOW)?;
        self.dispatch.refill(lane, places);
        Ok(())
    }

    /// Leases a pending job; nothing when it was taken back since its place was recorded, even if it is pending at another place, or when
    /// its key holds it back.
    fn lease(&mut self, (due, seq): Place, priority: u8, claim: &Claim) -> Result<Option<Leased>> {
        let row = match self.fresh_row(seq) {
            Some(row) => Some(row.clone()),
            None => match self.recent.take(seq) {
                Some(row) => Some(row),
                None => self.rows.job(seq)?,
            },
        };
        let is_there = |row: &JobRow| {
            let job = &row.job;
            (job.state, job.run_at.as_micros(), job.priority) == (State::Pending, due, priority)
        };
        let Some(row) = row.filter(is_there) else { return Ok(None) };
        if row.job.rare.is_some() && self.is_held_back(&row)? {
            return Ok(None);
        }
        self.begin(row, claim).map(Some)
    }

    /// Whether a job that was next may not begin: its time to begin has passed, or its key is at a limit. Then it is where it belongs.
    fn is_held_back(&mut self, row: &JobRow) -> Result<bool> {
        let (keys, job) = (row.keys, &row.job);
        if job.started_at.is_none() && job.expires_at().is_some_and(|at| at <= self.now) {
            self.take_back(row.clone(), EXPIRED)?;
            return Ok(true);
        }
        let retry_until = job.rare.as_ref().and_then(|rare| rare.retry_until).filter(|_| job.attempt > 0);
        if retry_until.is_some_and(|until| until < self.now) {
            let error = job.error.as_ref().map_or_else(|| LATE.to_owned(), |error| format!("{error} ({LATE})"));
            self.end_waiting(row, State::Dead, &error)?;
            return Ok(true);
        }
        let (Some(key), Some(limits)) = (job.key(), self.dispatch.limits(keys.queue)) else { return Ok(false) };
        let (per_key, rate) = (limits.per_key, limits.rate_per_key);
        let (state, run_at) =
            if per_key.is_some_and(|most| self.leases.running_of_key(keys.queue, keys.tenant, key) >= most as usize) {
                (State::Blocked, job.run_at)
            } else if let Some(at) = rate.and_then(|rate| self.pace(row, key, rate)) {
                (State::Scheduled, at)
            } else {
                return Ok(false);
            };
        let changed = self.alter(row.seq, |row| {
            (row.job.state, row.job.run_at) = (state, run_at);
            row.job.rare_mut().paced_until = (state == State::Scheduled).then_some(run_at);
        })?;
        if let Some(changed) = changed {
            self.counts.moved(keys, Some(State::Pending), Some(state));
            self.place(&changed);
        }
        self.leave_line(row)?;
        Ok(true)
    }

    /// When the rate of its key lets a job start, if that is not now. Its start is reserved then, so that it need not ask again.
    fn pace(&mut self, row: &JobRow, key: &str, rate: Rate) -> Option<Timestamp> {
        if row.job.rare.as_ref().is_some_and(|rare| rare.paced_until == Some(row.job.run_at)) {
            return None;
        }
        let at = self.key_rates.reserve((row.keys.queue, row.keys.tenant, key), rate, self.now);
        (at > self.now).then_some(at)
    }

    /// Begins a run.
    fn begin(&mut self, mut row: JobRow, claim: &Claim) -> Result<Leased> {
        let nonce = self.ids.random();
        let mut until = self.now + claim.lease;
        row.job.state = State::Processing;
        row.job.attempt += 1;
        row.job.started_at = Some(self.now);
        if !claim.local {
            until = until.min(self.hard_end(&row));
        }
        row.holder = Some(Holder { nonce, until, local: claim.local, worker: claim.worker.clone(), cancelled: false });
        self.counts.moved(row.keys, Some(State::Pending), Some(State::Processing));
        self.metering.started(row.keys.queue, &row.job, self.now);
        let parents = match row.job.rare.as_ref().is_some_and(|rare| rare.has_parents) {
            true => self.rows.parents(row.seq, Parent::MOST)?,
            false => Vec::new(),
        };
        match self.fresh_row(row.seq) {
            Some(fresh) => {
                let job = &mut fresh.job;
                (job.state, job.attempt, job.started_at) = (row.job.state, row.job.attempt, row.job.started_at);
                fresh.holder.clone_from(&row.holder);
            }
            None => self.rows.update_job(&row)?,
        }
        failpoint::reach(Point::DuringClaim);
        let lease = Token { seq: row.seq, nonce }.encode();
        let leased = Leased { job: row.job.clone(), lease, expires: until, parents };
        self.dispatch.started(row.keys.queue, row.keys.tenant, self.now);
        self.claimed.push(row.seq);
        self.leases.insert(Lease { row, nonce, until, batch: self.batch });
        Ok(leased)
    }

    /// When a remote run ends whatever its worker says.
    fn hard_end(&self, row: &JobRow) -> Timestamp {
        let grace =
            self.dispatch.limits(row.keys.queue).map_or_else(|| QueueLimits::default().grace, |limits| limits.grace);
        row.job.started_at.unwrap_or(self.now) + row.job.timeout + grace
    }

    /// Writes which jobs this turn leased.
    pub(crate) fn write_claims(&mut self) -> Result<()> {
        if !self.claimed.is_empty() {
            self.rows.add_claims(self.batch, &self.claimed)?;
            self.claimed.clear();
        }
        self.batch += 1;
        Ok(())
    }

    /// Ends a run and writes its effects, or refuses both.
    pub(crate) fn settle(&mut self, settle: Settle) -> Outcome<Settled> {
        let Settle { tenant, id, lease, verdict, effects } = settle;
        let Some(seq) = self.held(tenant.as_ref(), &id, &lease) else { return Ok(Err(lease_lost(&id))) };
        let effects = effects.filter(|_| matches!(verdict, Verdict::Done { .. }));
        let Some((tenant, owner)) =
            self.leases.of(seq).map(|lease| (lease.row.keys.tenant, lease.row.job.tenant.clone()))
        else {
            return Ok(Err(lease_lost(&id)));
        };
        if let Some(effects) = &effects {
            if effects.tenant != owner {
                let detail = format!("the effects of job {id} belong to its own tenant");
                return Ok(Err(Error::invalid("tenant.unknown", detail)));
            }
            if let Err(refused) = self.check_effects(tenant, effects)? {
                return Ok(Err(refused));
            }
        }
        let random = self.ids.random();
        let state = self.finish(seq, |run, now| run.settle(verdict, now, random))?;
        let effects = self.write_effects(tenant, effects)?;
        Ok(Ok(Settled { state, effects }))
    }

    pub(crate) fn held(&mut self, tenant: Option<&TenantId>, id: &Id, lease: &str) -> Option<Seq> {
        let token = Token::decode(lease)?;
        let held = self.leases.get_mut(token)?;
        let job = &held.row.job;
        (job.id == *id && tenant.is_none_or(|tenant| *tenant == job.tenant)).then_some(token.seq)
    }

    /// The job that a lease is on.
    pub(crate) fn leased(
        &mut self,
        tenant: Option<&TenantId>,
        id: &Id,
        lease: &str,
    ) -> Result<tidewire_core::job::Job> {
        let held = self.held(tenant, id, lease).and_then(|seq| self.leases.of(seq));
        held.map(|lease| lease.row.job.clone()).ok_or_else(|| lease_lost(id))
    }

    /// Extends a lease.
    pub(crate) fn renew(
        &mut self,
        tenant: Option<&TenantId>,
        id: &Id,
        lease: &str,
        extend: Duration,
    ) -> Outcome<Renewed> {
        let Some(seq) = self.held(tenant, id, lease) else { return Ok(Err(lease_lost(id))) };
        let Some(row) = self.leases.of(seq).map(|lease| lease.row.clone()) else { return Ok(Err(lease_lost(id))) };
        // A run in this process is ended by the process, which knows its timeout.
        let is_local = row.holder.as_ref().is_some_and(|holder| holder.local);
        let asked = self.now + extend;
        let until = if is_local { asked } else { asked.min(self.hard_end(&row)) };
        self.leases.extend(seq, until);
        let Some(lease) = self.leases.of(seq) else { return Ok(Err(lease_lost(id))) };
        // A restart must still know that the worker is there.
        self.rows.update_job(&lease.row)?;
        let timed_out = row.job.started_at.is_some_and(|began| self.now >= began + row.job.timeout);
        Ok(Ok(Renewed { expires: until, cancelled: lease.is_cancelled(), timed_out }))
    }

    /// Ends the lease of a job and writes what follows. Answers the state it reached.
    fn finish(&mut self, seq: Seq, fate: impl FnOnce(&Run, Timestamp) -> Fate) -> Result<State> {
        let Some((lease, emptied)) = self.leases.remove(seq) else { return Ok(State::Cancelled) };
        if let Some(batch) = emptied {
            self.rows.delete_claims(batch)?;
        }
        let mut row = lease.row;
        self.dispatch.ended(row.keys.queue, row.keys.tenant);
        let fate = fate(&Run::of(&row.job), self.now);
        let state = self.write_fate(&mut row, fate)?;
        if let Some(key) = row.job.key() {
            self.free_key(row.keys.queue, row.keys.tenant, key)?;
        }
        Ok(state)
    }

    fn write_fate(&mut self, row: &mut JobRow, fate: Fate) -> Result<State> {
        let holder = row.holder.take();
        let cancelled = holder.as_ref().is_some_and(|holder| holder.cancelled);
        if let Some(error) = &fate.error {
            let attempt = FailedAttempt {
                attempt: row.job.attempt,
                started_at: row.job.started_at,
                ended_at: self.now,
                error: error.clone(),
                worker: holder.map(|holder| (&*holder.worker).into()).unwrap_or_default(),
            };
            self.rows.add_failed_attempt(row.seq, &attempt)?;
        }
        // Somebody took it back while it ran: it does not come back for another run.
        row.job.state = if cancelled && !fate.state.is_final() { State::Cancelled } else { fate.state };
        row.job.attempt = fate.attempt;
        row.job.run_at = fate.run_at.unwrap_or(row.job.run_at);
        if fate.is_undone {
            row.job.started_at = None;
        }
        row.job.result = fate.result;
        let has_failed = fate.error.is_some();
        // The last error stays while it runs again; a run that has completed has none.
        let last_error = fate.error.or(row.job.error.take());
        let may_have_more = last_error.is_some() || row.job.rare.is_some();
        row.job.error = last_error.filter(|_| row.job.state != State::Completed);
        if fate.is_loss {
            row.job.rare_mut().lost += 1;
        }
        self.counts.moved(row.keys, Some(State::Processing), Some(row.job.state));
        self.metering.ended(row.keys.queue, &row.job, has_failed, fate.is_loss, self.now);
        if !row.job.state.is_final() {
            self.rows.update_job(row)?;
            self.expect_expiry(&row.job);
            self.place(row);
            if has_failed {
                self.tell(Moment::Retrying, &row.job)?;
            }
            return Ok(row.job.state);
        }
        row.job.finished_at = Some(self.now);
        let ended = EndedJob { seq: row.seq, keys: row.keys, state: row.job.state };
        let kept = Kept { job: ended, may_have_more };
        if row.job.state == State::Completed && self.keeps_no_completed(row.keys.queue) {
            self.job_ended(row)?;
            self.forget(kept)?;
            return Ok(State::Completed);
        }
        self.rows.update_job(row)?;
        if row.job.state == State::Completed {
            self.keep_completed(row.keys.queue, kept)?;
        }
        self.job_ended(row)?;
        Ok(row.job.state)
    }

    /// Puts a written job where its state belongs: a lane or the timer.
    pub(crate) fn place(&mut self, row: &JobRow) {
        match row.job.state {
            State::Pending => {
                let lane = LaneKey { keys: row.keys, priority: row.job.priority };
                self.dispatch.push(lane, (row.job.run_at.as_micros(), row.seq));
            }
            State::Scheduled => {
                self.next_due = Some(self.next_due.map_or(row.job.run_at, |next| next.min(row.job.run_at)));
            }
            State::Processing | State::Blocked | State::Completed | State::Failed | State::Dead | State::Cancelled => {}
        }
    }

    fn keeps_no_completed(&self, queue: NameId) -> bool {
        self.dispatch.limits(queue).is_some_and(|limits| limits.keep_completed == Keep::Count(0))
    }

    fn keep_completed(&mut self, queue: NameId, job: Kept) -> Result<()> {
        let Some(Keep::Count(keep)) = self.dispatch.limits(queue).map(|limits| limits.keep_completed) else {
            return Ok(());
        };
        let kept = self.completed.entry(queue).or_default();
        kept.push_back(job);
        if kept.len() > keep as usize + KEEP_SLACK {
            let old: Vec<Kept> = kept.drain(..kept.len() - keep as usize).collect();
            for job in old {
                self.forget(job)?;
            }
        }
        Ok(())
    }

    /// Deletes a job with everything that is kept about it.
    pub(crate) fn forget(&mut self, Kept { job, may_have_more }: Kept) -> Result<()> {
        if may_have_more {
            self.forget_unique(job)?;
            self.rows.delete_beside(job.seq)?;
        }
        self.counts.moved(job.keys, Some(job.state), None);
        self.rows.delete_job(job.seq)
    }

    /// A job that is about to be forgotten has its unique key no longer, but for its window.
    fn forget_unique(&mut self, job: EndedJob) -> Result<()> {
        let row = self.rows.job(job.seq)?;
        let Some(unique) = row.and_then(|row| row.job.rare?.unique) else { return Ok(()) };
        let (tenant, kind) = (job.keys.tenant, job.keys.kind);
        match self.rows.unique(tenant, kind, &unique.key)? {
            Some(taken) if taken.seq == job.seq => {
                if job.state == State::Cancelled || taken.until.is_none_or(|until| until <= self.now) {
                    return self.rows.delete_unique(tenant, kind, &unique.key);
                }
                self.rows.put_unique(tenant, kind, &unique.key, &Taken { ended: Some(job.state), ..taken })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Gives back the jobs of workers that did not renew.
    pub(crate) fn expire_leases(&mut self) -> Result<()> {
        while let Some(seq) = self.leases.pop_expired(self.now) {
            let Some((row, until)) = self.leases.of(seq).map(|lease| (lease.row.clone(), lease.until)) else {
                continue;
            };
            // A lease that ended before was lost, however late that is seen.
            if until >= self.hard_end(&row) {
                let limit = tidewire_core::time::format_duration(row.job.timeout);
                let random = self.ids.random();
                let timed_out = Verdict::Retry { error: format!("timed out after {limit}"), delay: None };
                self.finish(seq, |run, now| run.settle(timed_out, now, random))?;
            } else {
                self.lose(seq, "the lease ended without a result")?;
            }
        }
        Ok(())
    }

    /// The worker of a run is gone.
    fn lose(&mut self, seq: Seq, why: &str) -> Result<()> {
        let Some(lease) = self.leases.of(seq) else { return Ok(()) };
        let queue = lease.row.keys.queue;
        let poison = self.poison(queue);
        self.finish(seq, |run, now| run.lose(why.to_owned(), now, poison)).map(drop)
    }

    fn poison(&self, queue: NameId) -> u16 {
        self.dispatch.limits(queue).map_or_else(|| QueueLimits::default().poison, |limits| limits.poison)
    }

    /// Gives back jobs that nobody received.
    pub(crate) fn release(&mut self, tokens: Vec<Token>) -> Result<()> {
        for token in tokens {
            if self.leases.get_mut(token).is_some() {
                self.finish(token.seq, |run, now| run.settle(Verdict::Release, now, 0))?;
            }
        }
        Ok(())
    }

    /// Makes scheduled jobs pending whose time has come.
    pub(crate) fn promote_due(&mut self) -> Result<()> {
        if self.next_due.is_none_or(|due| due > self.now) {
            return Ok(());
        }
        self.write_fresh()?;
        for seq in self.rows.due(self.now, PROMOTE_AT_ONCE)? {
            if let Some(mut row) = self.rows.job(seq)? {
                row.job.state = State::Pending;
                self.counts.moved(row.keys, Some(State::Scheduled), Some(State::Pending));
                self.rows.update_job(&row)?;
                self.place(&row);
            }
        }
        self.next_due = self.rows.next_due()?;
        Ok(())
    }

    /// Takes waiting jobs back whose time to begin has passed.
    pub(crate) fn expire_waiting(&mut self) -> Result<()> {
        if self.next_expiry.is_none_or(|at| at > self.now) {
            return Ok(());
        }
        self.write_fresh()?;
        for seq in self.rows.expired(self.now, PROMOTE_AT_ONCE)? {
            // One that waited for another of them may have ended with it.
            if let Some(row) = self.job_row(seq)?.filter(|row| !row.job.state.is_final()) {
                self.take_back(row, EXPIRED)?;
            }
        }
        self.next_expiry = self.rows.next_expiry()?;
        Ok(())
    }

    /// Finds the leases of the process before: those of its own workers are lost, those of others go on until they end.
    pub(crate) fn recover_claims(&mut self) -> Result<()> {
        for (batch, seqs) in self.rows.claims()? {
            self.batch = self.batch.max(batch + 1);
            let mut held = 0;
            for seq in seqs {
                let Some(mut row) = self.rows.job(seq)?.filter(|row| row.job.state == State::Processing) else {
                    continue;
                };
                let Some(holder) = row.holder.clone() else { continue };
                if self.leases.of(seq).is_some() {
                    // An older record that is still needed for another job lists it, too.
                    continue;
                }
                if holder.local || holder.until <= self.now {
                    let why = match holder.local {
                        true => "the process ended during the run",
                        false => "the lease ended without a result",
                    };
                    let poison = self.poison(row.keys.queue);
                    let fate = Run::of(&row.job).lose(why.to_owned(), self.now, poison);
                    self.write_fate(&mut row, fate)?;
                } else {
                    held += 1;
                    self.dispatch.started(row.keys.queue, row.keys.tenant, self.now);
                    let Holder { nonce, until, .. } = holder;
                    self.leases.insert(Lease { row, nonce, until, batch });
                }
            }
            if held == 0 {
                self.rows.delete_claims(batch)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn lease_lost(id: &Id) -> Error {
    Error::conflict("job.lease_lost", format!("the lease on job {id} is no longer held; its result was not taken"))
}
