//! Leasing: claims that wait, leases that end, verdicts that settle them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidewire_core::catalog::Keep;
use tidewire_core::job::{FailedAttempt, Outcome as Fate, Run, State, Verdict};
use tidewire_core::store::{Claim, Leased, Renewed, Settle, Settled};
use tidewire_core::{Error, Id, Kind, Result, TenantId, Timestamp};

use crate::answer::{Pending, Reply};
use crate::dispatch::{Found, WINDOW, Wanted};
use crate::lease::{Lease, Token};
use crate::rows::{Holder, JobRow, LaneKey, NameId, Place, Rows, Seq};
use crate::writer::{Outcome, Writer};

/// How many completed jobs over the number to keep may gather before the oldest are deleted together.
const KEEP_SLACK: usize = 64;

/// The most claims that wait for a job. Each turn looks at them all, and each holds memory.
const MAX_PARKED: usize = 16_384;

/// How many due jobs one turn makes pending; the next turn goes on.
const PROMOTE_AT_ONCE: usize = 1_024;

/// A final job that is kept for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) seq: Seq,
    /// Whether failed runs may be kept with it. Most jobs have none, and then nothing is looked for.
    may_have_failed: bool,
}

impl Kept {
    fn new(row: &JobRow) -> Self {
        Self { seq: row.seq, may_have_failed: row.job.error.is_some() }
    }

    /// A job of which only the number is known.
    pub(crate) fn unknown(seq: Seq) -> Self {
        Self { seq, may_have_failed: true }
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
        };
        let deadline = self.now + claim.wait;
        self.parked.push_back(Parked { claim, wanted, deadline, reply });
        Ok(())
    }

    fn other_names(&mut self, names: &[Arc<str>]) -> Result<Vec<NameId>> {
        names.iter().map(|name| self.names.other(&mut self.rows, name)).collect()
    }

    /// Gives waiting claims what is due, in the order they came.
    pub(crate) fn lease_out(&mut self) -> Result<()> {
        self.held_until = None;
        for _ in 0..self.parked.len() {
            let Some(parked) = self.parked.pop_front() else { break };
            if parked.reply.is_closed() {
                continue;
            }
            let leased = if self.has_work(&parked.wanted) { self.take(&parked)? } else { Vec::new() };
            if leased.is_empty() && parked.deadline > self.now {
                self.parked.push_back(parked);
            } else {
                self.answers.push(Pending::Leased(parked.reply, leased));
            }
        }
        Ok(())
    }

    fn has_work(&self, wanted: &Wanted) -> bool {
        match wanted.queues.as_slice() {
            [] => self.dispatch.ready().next().is_some(),
            queues => queues.iter().any(|queue| self.dispatch.is_ready(*queue)),
        }
    }

    fn take(&mut self, parked: &Parked) -> Result<Vec<Leased>> {
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
            while leased.len() < parked.claim.max as usize && self.dispatch.is_ready(queue) {
                match self.dispatch.next(queue, &parked.wanted, self.now) {
                    Found::Job(place) => leased.extend(self.lease(place, &parked.claim)?),
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

    /// Leases a pending job; nothing when it was taken back since its place was recorded, even if it is pending at another place.
    fn lease(&mut self, (due, seq): Place, claim: &Claim) -> Result<Option<Leased>> {
        let nonce = self.ids.random();
        let until = self.now + claim.lease;
        let holder = Holder { nonce, until, local: claim.local, worker: claim.worker.clone(), cancelled: false };
        let now = self.now;
        let begin = |row: &mut JobRow| {
            row.job.state = State::Processing;
            row.job.attempt += 1;
            row.job.started_at = Some(now);
            row.holder = Some(holder);
        };
        let row = match self.fresh_row(seq) {
            Some(row) => {
                begin(row);
                row.clone()
            }
            None => {
                let is_there = |row: &JobRow| row.job.state == State::Pending && row.job.run_at.as_micros() == due;
                let row = match self.recent.take(seq) {
                    Some(row) => Some(row),
                    None => self.rows.job(seq)?,
                };
                let Some(mut row) = row.filter(is_there) else { return Ok(None) };
                begin(&mut row);
                self.rows.update_job(&row)?;
                row
            }
        };
        let leased = Leased { job: row.job.clone(), lease: Token { seq, nonce }.encode(), expires: until };
        self.dispatch.started(row.keys.queue, row.keys.tenant, self.now);
        self.claimed.push(seq);
        self.leases.insert(Lease { row, nonce, until, batch: self.batch });
        Ok(Some(leased))
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

    fn held(&mut self, tenant: Option<&TenantId>, id: &Id, lease: &str) -> Option<Seq> {
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
        let until = self.now + extend;
        self.leases.extend(seq, until);
        let Some(lease) = self.leases.of(seq) else { return Ok(Err(lease_lost(id))) };
        // A restart must still know that the worker is there.
        self.rows.update_job(&lease.row)?;
        Ok(Ok(Renewed { expires: until, cancelled: lease.is_cancelled() }))
    }

    /// Ends the lease of a job and writes what follows. Answers the state it reached.
    fn finish(&mut self, seq: Seq, fate: impl FnOnce(&Run, Timestamp) -> Fate) -> Result<State> {
        let Some((lease, emptied)) = self.leases.remove(seq) else { return Ok(State::Cancelled) };
        if let Some(batch) = emptied {
            self.rows.delete_claims(batch)?;
        }
        let mut row = lease.row;
        self.dispatch.ended(row.keys.queue, row.keys.tenant);
        let run = Run { attempt: row.job.attempt, attempts: row.job.attempts, backoff: row.job.backoff.clone() };
        let fate = fate(&run, self.now);
        self.write_fate(&mut row, fate)
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
        row.job.result = fate.result;
        row.job.error = fate.error.or(row.job.error.take());
        if row.job.state.is_final() {
            row.job.finished_at = Some(self.now);
        }
        if row.job.state == State::Completed && self.keeps_no_completed(row.keys.queue) {
            self.forget(Kept::new(row))?;
            return Ok(State::Completed);
        }
        self.rows.update_job(row)?;
        self.place(row)?;
        Ok(row.job.state)
    }

    /// Puts a written job where its state belongs: a lane, the timer, or the kept ones.
    pub(crate) fn place(&mut self, row: &JobRow) -> Result<()> {
        match row.job.state {
            State::Pending => {
                let lane = LaneKey { keys: row.keys, priority: row.job.priority };
                self.dispatch.push(lane, (row.job.run_at.as_micros(), row.seq));
            }
            State::Scheduled => {
                self.next_due = Some(self.next_due.map_or(row.job.run_at, |next| next.min(row.job.run_at)));
            }
            State::Completed => self.keep_completed(row.keys.queue, Kept::new(row))?,
            State::Processing | State::Blocked | State::Failed | State::Dead | State::Cancelled => {}
        }
        Ok(())
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
    pub(crate) fn forget(&mut self, job: Kept) -> Result<()> {
        if job.may_have_failed {
            self.rows.delete_failed_attempts(job.seq)?;
        }
        self.rows.delete_job(job.seq)
    }

    /// Gives back the jobs of workers that did not renew.
    pub(crate) fn expire_leases(&mut self) -> Result<()> {
        while let Some(seq) = self.leases.pop_expired(self.now) {
            self.finish(seq, |run, now| run.lose("the lease ended without a result".to_owned(), now))?;
        }
        Ok(())
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
                self.rows.update_job(&row)?;
                self.place(&row)?;
            }
        }
        self.next_due = self.rows.next_due()?;
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
                    let run =
                        Run { attempt: row.job.attempt, attempts: row.job.attempts, backoff: row.job.backoff.clone() };
                    let why = if holder.local {
                        "the process ended during the run"
                    } else {
                        "the lease ended without a result"
                    };
                    let fate = run.lose(why.to_owned(), self.now);
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

    /// How many jobs run, by queue.
    pub(crate) fn running(&mut self, tenant: Option<&TenantId>) -> Result<BTreeMap<Arc<str>, u64>> {
        let mut running = BTreeMap::new();
        let Some(tenant) = tenant else {
            for (queue, count) in self.dispatch.running().filter(|(_, count)| *count > 0).collect::<Vec<_>>() {
                running.insert(self.names.other_name(&mut self.rows, queue)?, u64::from(count));
            }
            return Ok(running);
        };
        for row in self.leases.rows().filter(|row| row.job.tenant == *tenant) {
            *running.entry(row.job.queue.clone()).or_default() += 1;
        }
        Ok(running)
    }
}

fn lease_lost(id: &Id) -> Error {
    Error::conflict("job.lease_lost", format!("the lease on job {id} is no longer held; its result was not taken"))
}
