//! Changing, deleting and re-driving one job, with everything that is tied to it.

use std::collections::HashSet;

use tidewire_core::commit::MAX_DATA_BYTES;
use tidewire_core::job::{Job, State, States};
use tidewire_core::store::Change;
use tidewire_core::{Error, Kind, Result, Timestamp};

use crate::claims::Kept;
use crate::rows::{EndedJob, JobRow, NameId, Rows, Seq, Taken};
use crate::writer::{Outcome, Writer};

/// By how much the place of a job moves when its priority does: the smallest step of time. A place is told by its time, and the one in
/// the line of the old priority must not be taken for the new one.
const STEP: std::time::Duration = std::time::Duration::from_micros(1);

impl<R: Rows> Writer<R> {
    /// Changes a job that waits. Codes `job.invalid_option`, `data.too_large`.
    pub(crate) fn change(&mut self, old: JobRow, change: &Change) -> Outcome<Job> {
        if let Some(priority) = change.priority
            && !(1..=5).contains(&priority)
        {
            let detail = format!("priority: expected 1 (first) to 5, got {priority}");
            return Ok(Err(Error::invalid("job.invalid_option", detail)));
        }
        if let Some(size) = change.data.as_ref().map(|data| data.get().len()).filter(|size| *size > MAX_DATA_BYTES) {
            let detail = format!("data: expected at most {MAX_DATA_BYTES} bytes, got {size}");
            return Ok(Err(Error::new(Kind::TooLarge, "data.too_large", detail)));
        }
        let job = &old.job;
        let (state, mut run_at) = match (job.state, change.run_at) {
            (state, None) => (state, job.run_at),
            (State::Blocked, Some(run_at)) => (State::Blocked, run_at),
            (_, Some(run_at)) if run_at > self.now => (State::Scheduled, run_at),
            // It is due already and keeps its place in the line.
            (State::Pending, Some(_)) => (State::Pending, job.run_at),
            (_, Some(_)) => (State::Pending, self.now),
        };
        let priority = change.priority.unwrap_or(job.priority);
        if state == State::Pending && priority != job.priority && run_at == job.run_at {
            run_at = run_at - STEP;
        }
        let stays = (state, run_at) == (job.state, job.run_at);
        let changed = self.alter_all(old.seq, |row| {
            row.job.move_to(run_at);
            (row.job.state, row.job.priority) = (state, priority);
            if let Some(data) = &change.data {
                row.job.data = data.clone();
            }
        })?;
        let Some(row) = changed else { return Ok(Ok(old.job)) };
        self.counts.moved(row.keys, Some(old.job.state), Some(state));
        self.expect_expiry(&row.job);
        if !stays {
            self.place(&row);
        }
        if state != State::Pending {
            self.leave_line(&old)?;
        }
        Ok(Ok(row.job))
    }

    /// Forgets a job that does not run. Whoever deletes completed ones says so with [`Writer::unkeep`].
    pub(crate) fn delete(&mut self, row: JobRow) -> Result<Job> {
        let JobRow { seq, keys, .. } = row;
        let mut job = row.job.clone();
        let mut leaves = None;
        if !job.state.is_final()
            && let Some(rare) = &job.rare
        {
            if rare.flow.is_some() || rare.has_dependents {
                self.take_back(row, "it was deleted")?;
                job.state = State::Cancelled;
            } else {
                if let Some(unique) = &rare.unique {
                    let mut gone = row.clone();
                    gone.job.state = State::Cancelled;
                    self.free_unique(&gone, unique)?;
                }
                leaves = Some(row);
            }
        }
        // Following from its end, others may have been enqueued that are not written.
        self.write_fresh()?;
        self.recent.take(seq);
        // Somebody wants it gone, and with it goes what is left of its window.
        let unique = job.rare.as_ref().and_then(|rare| rare.unique.as_ref());
        if let Some(unique) = unique
            && self.rows.unique(keys.tenant, keys.kind, &unique.key)?.is_some_and(|taken| taken.seq == seq)
        {
            self.rows.delete_unique(keys.tenant, keys.kind, &unique.key)?;
        }
        self.forget(Kept::unknown(EndedJob { seq, keys, state: job.state }))?;
        if let Some(row) = leaves {
            self.leave_line(&row)?;
        }
        Ok(job)
    }

    /// Completed jobs of a queue that are gone are not counted as kept any more.
    pub(crate) fn unkeep(&mut self, queue: NameId, gone: &HashSet<Seq>) {
        if let Some(kept) = self.completed.get_mut(&queue) {
            kept.retain(|kept| !gone.contains(&kept.job.seq));
        }
    }

    /// Runs an ended job again. Code `job.unique_taken`.
    pub(crate) fn redrive(&mut self, mut row: JobRow) -> Outcome<Job> {
        let until = match self.unique_again(&row)? {
            Ok(until) => until,
            Err(refused) => return Ok(Err(refused)),
        };
        if let Some(unique) = row.job.rare.as_ref().and_then(|rare| rare.unique.as_ref()) {
            let taken = Taken { seq: row.seq, id: row.job.id.clone(), until, ended: None };
            self.rows.put_unique(row.keys.tenant, row.keys.kind, &unique.key, &taken)?;
        }
        let before = row.job.state;
        let waits_for = self.wait_again(&row)?;
        let job = &mut row.job;
        job.state = if waits_for > 0 { State::Blocked } else { State::Pending };
        (job.attempt, job.run_at, job.finished_at) = (0, self.now, None);
        if let Some(rare) = &mut job.rare {
            (rare.waits_for, rare.lost) = (waits_for, 0);
            (rare.progress, rare.paced_until) = (None, None);
            // Both were counted from when it was enqueued. Somebody wants it now.
            rare.expires_at = None;
            rare.retry_until = rare.retry_until.map(|until| self.now + until.since(job.created_at));
        }
        self.rows.update_job(&row)?;
        self.counts.moved(row.keys, Some(before), Some(row.job.state));
        self.rejoin(&row)?;
        self.place(&row);
        self.hold_back(&row)?;
        Ok(Ok(row.job))
    }

    /// Whether a job that is the only one of its key, if it has one, may take it again, and until when its window lasts. Code
    /// `job.unique_taken`.
    pub(crate) fn unique_again(&mut self, row: &JobRow) -> Outcome<Option<Timestamp>> {
        let Some(unique) = row.job.rare.as_ref().and_then(|rare| rare.unique.as_ref()) else { return Ok(Ok(None)) };
        let keys = row.keys;
        let taken = self.rows.unique(keys.tenant, keys.kind, &unique.key)?;
        let mut until = unique.window.map(|window| row.job.created_at + window).filter(|until| *until > self.now);
        if let Some(taken) = taken {
            if taken.seq == row.seq {
                until = taken.until;
            } else if let Some(other) = self.job_row(taken.seq)? {
                let state = other.job.state;
                let in_window = taken.until.is_some_and(|until| until > self.now) && state != State::Cancelled;
                if unique.states.contains(state) || in_window {
                    let (id, other) = (&row.job.id, &other.job.id);
                    let detail =
                        format!("job {id} cannot run again: job {other}, which is {state}, has its unique key");
                    return Ok(Err(Error::conflict("job.unique_taken", detail)));
                }
            }
        }
        Ok(Ok(until))
    }

    /// Those that waited for a job and have not begun wait for it again.
    fn hold_back(&mut self, parent: &JobRow) -> Result<()> {
        let mut is_waited_for = false;
        for child in self.rows.children_of(parent.seq)? {
            let Some(old) = self.rows.job(child)? else { continue };
            if !States::WAITING.contains(old.job.state) || old.job.attempt > 0 {
                continue;
            }
            is_waited_for = true;
            self.rows.reopen_edge(child, parent.seq)?;
            self.alter(child, |row| {
                row.job.state = State::Blocked;
                let rare = row.job.rare_mut();
                rare.waits_for = rare.waits_for.saturating_add(1);
            })?;
            self.counts.moved(old.keys, Some(old.job.state), Some(State::Blocked));
            self.leave_line(&old)?;
        }
        if is_waited_for {
            // It may have ended before any of them was tied to it, and know of nobody.
            self.knows_dependents(parent)?;
        }
        Ok(())
    }

    /// Ties a job again to those it waited for, as they are now. Answers how many of them have not ended.
    fn wait_again(&mut self, row: &JobRow) -> Result<u16> {
        if !row.job.rare.as_ref().is_some_and(|rare| rare.has_parents) {
            return Ok(0);
        }
        let mut waits_for: u16 = 0;
        for parent in self.rows.parents_of(row.seq)? {
            // Of one that is forgotten, the edge remembers how it ended.
            let Some(parent) = self.job_row(parent)? else { continue };
            self.rows.reopen_edge(row.seq, parent.seq)?;
            if parent.job.state.is_final() {
                self.rows.end_edges(parent.seq, &parent.job)?;
            } else {
                waits_for = waits_for.saturating_add(1);
                // It had ended when this one was tied to it, and knew of nobody.
                self.knows_dependents(&parent)?;
            }
        }
        Ok(waits_for)
    }
}
