//! What operators do: change one job, set limits, and forget what is old.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidewire_core::catalog::Keep;
use tidewire_core::job::{Job, State};
use tidewire_core::store::{Control, QueueLimits};
use tidewire_core::{Error, Id, Result, TenantId};

use crate::claims::Kept;
use crate::rows::{NameId, Rows};
use crate::writer::{Outcome, Writer};

/// How many old jobs one purge deletes per queue; the next one goes on.
const PURGE_AT_ONCE: usize = 5_000;

impl<R: Rows> Writer<R> {
    /// Changes one job.
    pub(crate) fn control(&mut self, tenant: &TenantId, id: &Id, control: Control) -> Outcome<Job> {
        self.write_fresh()?;
        let owner = self.names.tenant(&mut self.rows, tenant)?;
        let not_found = || Error::not_found("job.not_found", format!("there is no job {id}"));
        let Some(seq) = self.rows.job_seq(owner, id)? else { return Ok(Err(not_found())) };
        self.recent.take(seq);
        let Some(mut row) = self.rows.job(seq)? else { return Ok(Err(not_found())) };
        let state = row.job.state;
        match (control, state) {
            (Control::Redrive, State::Failed | State::Dead | State::Cancelled) => {
                row.job.state = State::Pending;
                row.job.attempt = 0;
                row.job.run_at = self.now;
                row.job.finished_at = None;
            }
            (Control::Cancel, State::Scheduled | State::Pending | State::Blocked) => {
                row.job.state = State::Cancelled;
                row.job.finished_at = Some(self.now);
            }
            (Control::Cancel, State::Processing) => {
                if let Some(lease) = self.leases.of(seq) {
                    if let Some(holder) = &mut lease.row.holder {
                        holder.cancelled = true;
                    }
                    self.rows.update_job(&lease.row)?;
                }
                return Ok(Ok(row.job));
            }
            (Control::Promote, State::Scheduled) => {
                row.job.state = State::Pending;
                row.job.run_at = self.now;
            }
            (Control::Promote, State::Pending) => return Ok(Ok(row.job)),
            (Control::Redrive | Control::Promote | Control::Cancel, _) => {
                let (verb, from) = match control {
                    Control::Redrive => ("retried", "failed, dead or cancelled"),
                    Control::Cancel => ("cancelled", "scheduled, pending, blocked or processing"),
                    Control::Promote => ("promoted", "scheduled"),
                };
                let detail = format!("job {id} is {state}; only a job that is {from} can be {verb}");
                return Ok(Err(Error::conflict("job.wrong_state", detail)));
            }
        }
        self.rows.update_job(&row)?;
        self.place(&row)?;
        Ok(Ok(row.job))
    }

    /// Sets what is enforced for each queue, and finds the completed jobs it keeps by count.
    pub(crate) fn limit_queues(&mut self, limits: BTreeMap<Arc<str>, QueueLimits>) -> Result<()> {
        for (queue, limits) in limits {
            let queue = self.names.other(&mut self.rows, &queue)?;
            match limits.keep_completed {
                Keep::Age(_) => drop(self.completed.remove(&queue)),
                Keep::Count(_) if self.completed.contains_key(&queue) => {}
                Keep::Count(_) => {
                    let kept = self.rows.completed(queue)?;
                    self.completed.insert(queue, kept.into_iter().map(Kept::unknown).collect());
                }
            }
            self.dispatch.limit(queue, limits);
        }
        Ok(())
    }

    /// Deletes final jobs that are older than their queue keeps them.
    pub(crate) fn purge_jobs(&mut self) -> Result<()> {
        for (queue, limits) in self.dispatch.limited() {
            let mut old = self.older(queue, true, limits.keep_completed)?;
            old.extend(match limits.keep_failed {
                Keep::Count(keep) => self.rows.dead_beyond(queue, keep as usize, PURGE_AT_ONCE)?,
                Keep::Age(_) => self.older(queue, false, limits.keep_failed)?,
            });
            for seq in old {
                self.forget(Kept::unknown(seq))?;
            }
        }
        Ok(())
    }

    fn older(&mut self, queue: NameId, completed: bool, keep: Keep) -> Result<Vec<i64>> {
        match keep {
            Keep::Age(age) => self.rows.ended_before(queue, completed, self.now - age, PURGE_AT_ONCE),
            Keep::Count(_) => Ok(Vec::new()),
        }
    }
}
