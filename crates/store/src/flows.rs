//! Flows: what becomes of one as its jobs end, and what operators do to one as a whole.

use std::collections::{HashMap, HashSet};

use tidewire_core::job::{Job, OnFailure, State};
use tidewire_core::store::{Control, FlowControl};
use tidewire_core::{Error, Id, Result, TenantId, Timestamp};

use crate::claims::Kept;
use crate::rows::{EndedJob, FlowRow, JobRow, Member, Rows, Seq};
use crate::writer::{Outcome, Writer};

impl<R: Rows> Writer<R> {
    /// Does something to all jobs of a flow for which it makes sense, or nothing. Codes `flow.not_found`, `flow.wrong_state`,
    /// `flow.undone`, `job.unique_taken`.
    pub(crate) fn control_flow(&mut self, tenant: &TenantId, id: &Id, control: FlowControl) -> Outcome<()> {
        self.write_fresh()?;
        let tenant = self.names.tenant(&mut self.rows, tenant)?;
        let Some(flow) = self.rows.flow(tenant, id)? else {
            return Ok(Err(Error::not_found("flow.not_found", format!("there is no flow {id}"))));
        };
        let mut members = self.rows.members(flow.number)?;
        members.retain(|member| member.compensates.is_none());
        match control {
            FlowControl::Cancel => self.cancel_flow(id, &members),
            FlowControl::Retry => self.retry_flow(id, &flow, &members),
        }
    }

    /// Takes back what has not ended. The job that comes at the end in any case is left, and so are those that undo others.
    fn cancel_flow(&mut self, id: &Id, members: &[Member]) -> Outcome<()> {
        let mut cancelled = false;
        for member in members {
            // The end of the one before may have ended it, and may have led to jobs that are not written.
            self.write_fresh()?;
            let row = self.rows.job(member.seq)?.filter(|row| !row.job.state.is_final());
            if let Some(row) = row.filter(|row| !row.job.rare.as_ref().is_some_and(|rare| rare.finally)) {
                cancelled |= self.control_row(row, &Control::Cancel)?.is_ok();
            }
        }
        match cancelled {
            true => Ok(Ok(())),
            false => Ok(Err(Error::conflict("flow.wrong_state", format!("all jobs of flow {id} have ended")))),
        }
    }

    /// Runs again what did not complete. In which order they are told does not matter: who has not begun waits for its parents again.
    fn retry_flow(&mut self, id: &Id, flow: &FlowRow, members: &[Member]) -> Outcome<()> {
        let conflict = |code, detail: String| Ok(Err(Error::conflict(code, detail)));
        if flow.undoing {
            return conflict("flow.undone", format!("what flow {id} had done was undone; begin it anew"));
        }
        let mut again = Vec::new();
        let mut unique = HashMap::new();
        for member in members.iter().filter(|member| member.ended.is_some_and(|(state, _)| state != State::Completed)) {
            let Some(row) = self.rows.job(member.seq)? else {
                return conflict("flow.wrong_state", format!("job {} of flow {id} is no longer kept", member.id));
            };
            if let Err(refused) = self.unique_again(&row)? {
                return Ok(Err(refused));
            }
            if let Some(own) = row.job.rare.as_ref().and_then(|rare| rare.unique.as_ref())
                && let Some(other) = unique.insert((row.keys.kind, own.key.clone()), row.job.id.clone())
            {
                let detail = format!("jobs {other} and {} of flow {id} have one unique key", row.job.id);
                return conflict("job.unique_taken", detail);
            }
            again.push(row.seq);
        }
        if again.is_empty() {
            return conflict("flow.wrong_state", format!("flow {id} has no job that failed or was cancelled"));
        }
        for seq in again {
            if let Some(row) = self.rows.job(seq)? {
                // Nothing refuses it: that was looked at before the first one was changed.
                drop(self.control_row(row, &Control::Redrive)?);
            }
        }
        Ok(Ok(()))
    }

    /// The flow of a job that runs again is unfinished again.
    pub(crate) fn rejoin(&mut self, row: &JobRow) -> Result<()> {
        let Some(rare) = &row.job.rare else { return Ok(()) };
        let Some(id) = &rare.flow else { return Ok(()) };
        let Some(mut flow) = self.rows.flow(row.keys.tenant, id)? else { return Ok(()) };
        self.rows.reopen_member(flow.number, row.seq)?;
        if rare.compensates.is_none() {
            flow.unfinished += 1;
            flow.failed = flow.failed.saturating_sub(u32::from(counts_as_failed(&row.job)));
        }
        flow.finished_at = None;
        self.rows.update_flow(&flow)
    }

    /// A new job is part of a flow.
    pub(crate) fn join(&mut self, flow: &mut FlowRow, seq: Seq) -> Result<()> {
        let Some(row) = self.job_row(seq)? else { return Ok(()) };
        let rare = row.job.rare.as_deref();
        let compensates = rare.and_then(|rare| rare.compensates.clone());
        let member = Member {
            seq,
            id: row.job.id.clone(),
            reference: rare.and_then(|rare| rare.reference.clone()),
            kind: row.job.kind.clone(),
            compensates: compensates.clone(),
            ended: None,
        };
        self.rows.add_member(flow.number, &member)?;
        if row.job.state.is_final() {
            // Another job of the same commit has taken its unique key.
            self.rows.end_member(flow.number, seq, row.job.state, row.job.finished_at.unwrap_or(self.now))?;
            flow.failed += u32::from(counts_as_failed(&row.job));
        } else if compensates.is_none() {
            flow.unfinished += 1;
        }
        Ok(())
    }

    /// A job of a flow has ended.
    pub(crate) fn member_ended(&mut self, row: &JobRow, id: &Id) -> Result<()> {
        let Some(mut flow) = self.rows.flow(row.keys.tenant, id)? else { return Ok(()) };
        self.rows.end_member(flow.number, row.seq, row.job.state, row.job.finished_at.unwrap_or(self.now))?;
        let Some(rare) = &row.job.rare else { return Ok(()) };
        if rare.compensates.is_none() {
            flow.unfinished = flow.unfinished.saturating_sub(1);
            if row.job.state == State::Completed {
                if flow.undoing {
                    self.undo(&flow, |member| member.compensates.as_ref() == Some(&row.job.id))?;
                }
            } else {
                flow.failed += u32::from(counts_as_failed(&row.job));
                if rare.on_failure == OnFailure::Compensate && !flow.undoing {
                    flow.undoing = true;
                    self.undo(&flow, |_| true)?;
                }
            }
        }
        if flow.unfinished == 0 {
            self.end_flow(&mut flow)?;
        }
        self.rows.update_flow(&flow)
    }

    /// Lets those compensating jobs go on whose job has completed, the last completed first and one after the other.
    fn undo(&mut self, flow: &FlowRow, wanted: impl Fn(&Member) -> bool) -> Result<()> {
        let members = self.rows.members(flow.number)?;
        let completed: HashMap<&Id, Timestamp> = members
            .iter()
            .filter_map(|member| match member.ended {
                Some((State::Completed, at)) => Some((&member.id, at)),
                _ => None,
            })
            .collect();
        let undoes = |member: &Member| Some((*completed.get(member.compensates.as_ref()?)?, member.seq));
        let mut order: Vec<(Timestamp, Seq)> =
            members.iter().filter(|member| member.ended.is_none() && wanted(member)).filter_map(undoes).collect();
        order.sort_unstable_by(|one, other| other.cmp(one));
        let mut before: Option<Seq> = None;
        for (_, seq) in order {
            match before {
                None => self.let_go(seq)?,
                Some(before) => self.tie(seq, &[(before, true)])?,
            }
            before = Some(seq);
        }
        Ok(())
    }

    /// A compensating job no longer waits for its flow to fail.
    fn let_go(&mut self, seq: Seq) -> Result<()> {
        self.alter(seq, |row| row.job.rare_mut().waits_for = 0)?;
        self.unblock(seq).map(drop)
    }

    /// All jobs of a flow have ended, but perhaps for those that undo others. Those that have nothing to undo are forgotten.
    pub(crate) fn end_flow(&mut self, flow: &mut FlowRow) -> Result<()> {
        let members = self.rows.members(flow.number)?;
        let has_completed = |member: &&Member| member.ended.is_some_and(|(state, _)| state == State::Completed);
        let completed: HashSet<&Id> = members.iter().filter(has_completed).map(|member| &member.id).collect();
        let mut is_undoing = false;
        for member in members.iter().filter(|member| member.ended.is_none()) {
            let Some(undone) = &member.compensates else { continue };
            self.write_fresh()?;
            let row = self.job_row(member.seq)?;
            // One that somebody ran again is wanted, whatever became of the flow.
            let has_gone_on = row.as_ref().is_some_and(|row| {
                row.job.state != State::Blocked || row.job.rare.as_ref().is_none_or(|rare| rare.waits_for == 0)
            });
            if flow.undoing && completed.contains(undone) || has_gone_on {
                is_undoing = true;
                continue;
            }
            self.rows.delete_member(flow.number, member.seq)?;
            if let Some(row) = row {
                self.recent.take(member.seq);
                self.forget(Kept::unknown(EndedJob { seq: row.seq, keys: row.keys, state: row.job.state }))?;
            }
        }
        if !is_undoing {
            flow.finished_at = Some(self.now);
        }
        Ok(())
    }
}

/// Whether the end of a job that did not complete is one of its flow: not if the flow was told to ignore it.
fn counts_as_failed(job: &Job) -> bool {
    job.rare.as_ref().is_none_or(|rare| rare.on_failure != OnFailure::Ignore)
}
