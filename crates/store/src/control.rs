//! What operators do: change one job, set limits, and forget what is old.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tidewire_core::catalog::Keep;
use tidewire_core::job::{Job, State};
use tidewire_core::store::{Control, QueueLimits};
use tidewire_core::{Error, Id, Result, TenantId};

use crate::claims::Kept;
use crate::lease::Token;
use crate::rows::{Ended, JobRow, Rows, Seq};
use crate::writer::{Outcome, Writer};

/// How many old jobs one purge deletes per queue, and how many expired keys of each kind; the next one goes on, and soon.
pub(crate) const PURGE_AT_ONCE: usize = 5_000;

impl<R: Rows> Writer<R> {
    /// Changes one job.
    pub(crate) fn control(&mut self, tenant: &TenantId, id: &Id, control: &Control) -> Outcome<Job> {
        self.write_fresh()?;
        let owner = self.names.tenant(&mut self.rows, tenant)?;
        let not_found = || Error::not_found("job.not_found", format!("there is no job {id}"));
        let Some(seq) = self.rows.job_seq(owner, id)? else { return Ok(Err(not_found())) };
        let Some(row) = self.rows.job(seq)? else { return Ok(Err(not_found())) };
        let keys = row.keys;
        let done = self.control_row(row, control)?;
        if matches!((control, &done), (Control::Delete, Ok(_))) {
            self.unkeep(keys.queue, &HashSet::from([seq]));
        }
        Ok(done)
    }

    /// Changes a job that is written.
    pub(crate) fn control_row(&mut self, mut row: JobRow, control: &Control) -> Outcome<Job> {
        let (seq, state) = (row.seq, row.job.state);
        self.recent.take(seq);
        match (control, state) {
            (Control::Redrive, State::Failed | State::Dead | State::Cancelled) => return self.redrive(row),
            (Control::Change(change), State::Scheduled | State::Pending | State::Blocked) => {
                return self.change(row, change);
            }
            (Control::Delete, State::Processing) => {}
            (Control::Delete, _) => return self.delete(row).map(Ok),
            (Control::Cancel, State::Scheduled | State::Pending | State::Blocked) => {
                let before = row.clone();
                row.job.state = State::Cancelled;
                row.job.finished_at = Some(self.now);
                self.rows.update_job(&row)?;
                self.counts.moved(row.keys, Some(state), Some(State::Cancelled));
                self.leave_line(&before)?;
                self.job_ended(&row)?;
                return Ok(Ok(row.job));
            }
            (Control::Cancel, State::Processing) => {
                self.ask_to_stop(seq)?;
                let asked = self.leases.of(seq).map(|lease| lease.row.clone());
                return Ok(Ok(asked.unwrap_or(row).shown()));
            }
            (Control::Promote, State::Scheduled) => {
                row.job.state = State::Pending;
                row.job.move_to(self.now);
            }
            (Control::Promote, State::Pending) => return Ok(Ok(row.job)),
            (Control::Redrive | Control::Promote | Control::Cancel | Control::Change(_), _) => {}
        }
        if row.job.state == state {
            return Ok(Err(wrong_state(&row.job, control)));
        }
        self.rows.update_job(&row)?;
        self.counts.moved(row.keys, Some(state), Some(row.job.state));
        self.expect_expiry(&row.job);
        self.place(&row);
        Ok(Ok(row.job))
    }

    /// Asks the run of a job to stop: a worker in this process is told after the commit, others by their next renewal.
    pub(crate) fn ask_to_stop(&mut self, seq: Seq) -> Result<()> {
        self.write_fresh()?;
        let Some(lease) = self.leases.of(seq) else { return Ok(()) };
        let Some(holder) = &mut lease.row.holder else { return Ok(()) };
        holder.cancelled = true;
        if holder.local {
            self.stopped.push(Token { seq, nonce: lease.nonce }.encode());
        }
        self.rows.update_job(&lease.row)
    }

    /// Sets what is enforced for each queue, and finds the completed jobs it keeps by count.
    pub(crate) fn limit_queues(&mut self, limits: BTreeMap<Arc<str>, QueueLimits>) -> Result<()> {
        for (queue, limits) in limits {
            let queue = self.names.other(&mut self.rows, &queue)?;
            match limits.keep_completed {
                Keep::Age(_) => drop(self.completed.remove(&queue)),
                Keep::Count(_) if self.completed.contains_key(&queue) => {}
                Keep::Count(keep) => {
                    // Older ones are the purge's, so that neither memory nor a turn grows with what there is.
                    let kept = self.rows.completed(queue, keep as usize)?;
                    self.completed.insert(queue, kept.into_iter().map(Kept::unknown).collect());
                }
            }
            self.bounds_backlogs |=
                limits.backlog.is_some() || limits.tenants.values().any(|own| own.backlog.is_some());
            self.loose_keys.insert(queue, Default::default());
            let mut tenants = HashMap::new();
            for (tenant, limits) in &limits.tenants {
                tenants.insert(self.names.tenant(&mut self.rows, tenant)?, limits.clone());
            }
            self.dispatch.limit(queue, limits, tenants);
        }
        Ok(())
    }

    /// Deletes final jobs that are older than their queue keeps them. Answers whether more may be left.
    ///
    /// Goes by the queues that have such jobs: one that left the catalog, or that nobody set limits for, keeps what is usual.
    pub(crate) fn purge_jobs(&mut self) -> Result<bool> {
        let usual = QueueLimits::default();
        let mut is_more = false;
        for queue in self.rows.ended_queues()? {
            let limits = self.dispatch.limits(queue).unwrap_or(&usual);
            let keeps = [
                (Ended::Completed, limits.keep_completed),
                (Ended::Cancelled, limits.keep_cancelled),
                (Ended::Dead, limits.keep_dead),
            ];
            for (ended, keep) in keeps {
                let old = match keep {
                    Keep::Age(age) => self.rows.ended_before(queue, ended, self.now - age, PURGE_AT_ONCE)?,
                    Keep::Count(keep) => self.rows.ended_beyond(queue, ended, keep as usize, PURGE_AT_ONCE)?,
                };
                is_more |= old.len() >= PURGE_AT_ONCE;
                if ended == Ended::Completed
                    && !old.is_empty()
                    && let Some(kept) = self.completed.get_mut(&queue)
                {
                    let gone: HashSet<Seq> = old.iter().map(|job| job.seq).collect();
                    kept.retain(|kept| !gone.contains(&kept.job.seq));
                }
                for job in old {
                    self.forget(Kept::unknown(job))?;
                }
            }
        }
        Ok(is_more)
    }
}

/// Why a job cannot be changed so.
fn wrong_state(job: &Job, control: &Control) -> Error {
    let (verb, from) = match control {
        Control::Redrive => ("retried", "failed, dead or cancelled"),
        Control::Cancel => ("cancelled", "scheduled, pending, blocked or processing"),
        Control::Promote => ("promoted", "scheduled"),
        Control::Change(_) => ("changed", "scheduled, pending or blocked"),
        Control::Delete => ("deleted", "not processing"),
    };
    let rare = job.rare.as_deref();
    let why = match rare {
        _ if job.state != State::Blocked => String::new(),
        Some(rare) if rare.waits_for > 0 => format!(", because it waits for {} other jobs", rare.waits_for),
        Some(rare) if rare.compensates.is_some() => ", because it runs only when its flow is undone".to_owned(),
        Some(_) | None => ", because as many jobs of its key run as may".to_owned(),
    };
    let (id, state) = (&job.id, job.state);
    let detail = format!("job {id} is {state}{why}; only a job that is {from} can be {verb}");
    Error::conflict("job.wrong_state", detail)
}
