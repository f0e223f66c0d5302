//! Flows: what becomes of one as its jobs end, and what operators do to one as a whole.

use std::collections::{HashMap, HashSet};

use tidewire_core::job::{Job, OnFailure, State, States};
use tidewire_core::store::{Control, FlowControl};
use tidewire_core::{Error, Id, Result, TenantId};

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
        let members = self.rows.members(flow.number)?;
        let (members, undoing): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| member.compensates.is_none());
        match control {
            FlowControl::Cancel => self.cancel_flow(id, &members),
            FlowControl::Retry => self.retry_flow(id, flow, &members, &undoing),
        }
    }

    /// Takes back what has not ended. The job that comes at the end in any case is left, and so are those that undo others.
    fn cancel_flow(&mut self, id: &Id, members: &[Member]) -> Outcome<()> {
        let mut cancelled = false;
        for member in members {
            // The end of the one before may have ended it, and may have led to jobs that are not written.
            self.write_fresh()?;
            let row = self.rows.job(member.seq)?.filter(|row| !row.job.state.is_final());
            if let Some(row) = row.filter(|row| !is_last(row)) {
                cancelled |= self.control_row(row, &Control::Cancel)?.is_ok();
            }
        }
        match cancelled {
            true => Ok(Ok(())),
            false => {
                Ok(Err(Error::conflict("flow.wrong_state", format!("flow {id} has no job that could be cancelled"))))
            }
        }
    }

    /// Runs again what did not complete. In which order they are told does not matter: who has not begun waits for its parents again.
    fn retry_flow(&mut self, id: &Id, mut flow: FlowRow, members: &[Member], undoing: &[Member]) -> Outcome<()> {
        let conflict = |code, detail: String| Ok(Err(Error::conflict(code, detail)));
        let gone =
            |member: &Member| conflict("flow.wrong_state", format!("job {} of flow {id} is no longer kept", member.id));
        let (mut dropped, mut others) = (Vec::new(), 0);
        for member in undoing {
            match member.ended {
                Some((State::Cancelled, _)) => match self.rows.job(member.seq)? {
                    Some(row) => dropped.push(row),
                    None => return gone(member),
                },
                Some(_) | None => others += 1,
            }
        }
        if flow.undoing && others > 0 {
            return conflict("flow.undone", format!("what flow {id} had done is undone; begin it anew"));
        }
        let mut again = Vec::new();
        let mut unique = HashMap::new();
        for member in members.iter().filter(|member| member.ended.is_some_and(|(state, _)| state != State::Completed)) {
            let Some(row) = self.rows.job(member.seq)? else { return gone(member) };
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
        for row in dropped {
            self.rest(&flow, &row)?;
        }
        flow.undoing = false;
        self.rows.update_flow(&flow)?;
        for seq in again {
            if let Some(row) = self.rows.job(seq)? {
                // Nothing refuses it: that was looked at before the first one was changed.
                drop(self.control_row(row, &Control::Redrive)?);
            }
        }
        Ok(Ok(()))
    }

    /// A compensating job that was dropped waits again for its flow to fail.
    fn rest(&mut self, flow: &FlowRow, row: &JobRow) -> Result<()> {
        self.alter(row.seq, |row| {
            (row.job.state, row.job.attempt) = (State::Blocked, 0);
            (row.job.finished_at, row.job.error) = (None, None);
            let rare = row.job.rare_mut();
            (rare.waits_for, rare.has_parents) = (1, false);
        })?;
        self.counts.moved(row.keys, Some(State::Cancelled), Some(State::Blocked));
        self.rows.reopen_member(flow.number, row.seq)
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

    /// A job of a flow has ended. Answers the jobs that ended because of that, as the flow is to be undone.
    pub(crate) fn member_ended(&mut self, row: &JobRow, id: &Id) -> Result<Vec<JobRow>> {
        let mut stopped = Vec::new();
        let Some(mut flow) = self.rows.flow(row.keys.tenant, id)? else { return Ok(stopped) };
        self.rows.end_member(flow.number, row.seq, row.job.state, row.job.finished_at.unwrap_or(self.now))?;
        let Some(rare) = &row.job.rare else { return Ok(stopped) };
        if rare.compensates.is_none() {
            flow.unfinished = flow.unfinished.saturating_sub(1);
            if row.job.state != State::Completed {
                flow.failed += u32::from(counts_as_failed(&row.job));
                if rare.on_failure == OnFailure::Compensate && !flow.undoing {
                    flow.undoing = true;
                    stopped = self.stop_members(&flow, &row.job)?;
                }
            }
            if flow.undoing && !rare.finally {
                self.undo(&flow)?;
            }
        }
        if flow.unfinished == 0 {
            self.end_flow(&mut flow)?;
        }
        self.rows.update_flow(&flow)?;
        Ok(stopped)
    }

    /// A flow that is to be undone begins nothing more: what waits is cancelled, and only what runs is waited for.
    fn stop_members(&mut self, flow: &FlowRow, because: &Job) -> Result<Vec<JobRow>> {
        let why = format!("its flow is undone, because job {} is {}", because.id, because.state);
        let mut stopped = Vec::new();
        for member in self.rows.members(flow.number)? {
            if member.ended.is_some() || member.compensates.is_some() {
                continue;
            }
            self.write_fresh()?;
            let row = self.rows.job(member.seq)?.filter(|row| States::WAITING.contains(row.job.state));
            if let Some(row) = row.filter(|row| !is_last(row)) {
                stopped.extend(self.stop_waiting(&row, State::Cancelled, &why)?);
            }
        }
        Ok(stopped)
    }

    /// As soon as nothing of the flow runs any more, lets those compensating jobs go on whose job has completed: the last completed
    /// first and one after the other. What comes at the end of the flow waits for the last of them.
    fn undo(&mut self, flow: &FlowRow) -> Result<()> {
        if flow.unfinished > 1 {
            return Ok(());
        }
        let members = self.rows.members(flow.number)?;
        let mut completed = HashMap::new();
        for member in &members {
            if let Some((State::Completed, at)) = member.ended {
                completed.insert(&member.id, at);
            }
        }
        let (mut last, mut going, mut order) = (None, Vec::new(), Vec::new());
        for member in members.iter().filter(|member| member.ended.is_none()) {
            let Some(row) = self.job_row(member.seq)?.filter(|row| !row.job.state.is_final()) else { continue };
            let Some(undone) = &member.compensates else {
                if !is_last(&row) {
                    return Ok(());
                }
                last = Some(member.seq);
                continue;
            };
            let waits = row.job.rare.as_ref().is_some_and(|rare| rare.waits_for > 0 && !rare.has_parents);
            if !waits || row.job.state != State::Blocked {
                going.push(member.seq);
                continue;
            }
            order.extend(completed.get(undone).map(|at| (*at, member.seq)));
        }
        order.sort_unstable_by(|one, other| other.cmp(one));
        let mut before = going;
        for (_, seq) in order {
            match before.is_empty() {
                true => self.let_go(seq)?,
                false => self.tie_behind(seq, &before)?,
            }
            before = vec![seq];
        }
        if let Some(last) = last
            && !before.is_empty()
        {
            self.tie_behind(last, &before)?;
        }
        Ok(())
    }

    /// A job goes on when these have ended, however they do.
    fn tie_behind(&mut self, seq: Seq, before: &[Seq]) -> Result<()> {
        let before: Vec<_> = before.iter().map(|before| (*before, true)).collect();
        self.tie(seq, &before)
    }

    /// A compensating job no longer waits for its flow to fail.
    fn let_go(&mut self, seq: Seq) -> Result<()> {
        self.alter(seq, |row| row.job.rare_mut().waits_for = 0)?;
        self.unblock(seq).map(drop)
    }

    /// All jobs of a flow have ended, but perhaps for those that undo others. Those that have nothing to undo are forgotten, or
    /// cancelled if the flow may be run again.
    pub(crate) fn end_flow(&mut self, flow: &mut FlowRow) -> Result<()> {
        let members = self.rows.members(flow.number)?;
        let has_completed = |member: &Member| member.ended.is_some_and(|(state, _)| state == State::Completed);
        let completed: HashSet<&Id> =
            members.iter().filter(|member| has_completed(member)).map(|member| &member.id).collect();
        let (mut is_whole, mut is_undone, mut is_over) = (true, false, true);
        let mut unneeded = Vec::new();
        for member in &members {
            let Some(undone) = &member.compensates else {
                is_whole &= has_completed(member);
                continue;
            };
            if let Some((state, _)) = member.ended {
                is_undone |= state != State::Cancelled;
                continue;
            }
            self.write_fresh()?;
            let row = self.job_row(member.seq)?;
            // One that somebody ran again is wanted, whatever became of the flow.
            let has_gone_on = row.as_ref().is_some_and(|row| {
                row.job.state != State::Blocked || row.job.rare.as_ref().is_none_or(|rare| rare.waits_for == 0)
            });
            if flow.undoing && completed.contains(undone) || has_gone_on {
                (is_undone, is_over) = (true, false);
            } else {
                unneeded.push((member.seq, row));
            }
        }
        for (seq, row) in unneeded {
            if let Some(row) = row.as_ref().filter(|_| !is_whole && !is_undone) {
                // Nobody is told: it was never more than a possibility.
                self.stop_waiting(row, State::Cancelled, "its flow has ended, and there was nothing to undo")?;
                self.rows.end_member(flow.number, seq, State::Cancelled, self.now)?;
                continue;
            }
            self.rows.delete_member(flow.number, seq)?;
            if let Some(row) = row {
                self.recent.take(seq);
                self.forget(Kept::unknown(EndedJob { seq, keys: row.keys, state: row.job.state }))?;
            }
        }
        if is_over {
            flow.finished_at = Some(self.now);
        }
        Ok(())
    }
}

/// Whether a job comes at the end of its flow, however that ends.
fn is_last(row: &JobRow) -> bool {
    row.job.rare.as_ref().is_some_and(|rare| rare.finally)
}

/// Whether the end of a job that did not complete is one of its flow: not if the flow was told to ignore it.
fn counts_as_failed(job: &Job) -> bool {
    job.rare.as_ref().is_none_or(|rare| rare.on_failure != OnFailure::Ignore)
}
