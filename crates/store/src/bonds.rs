//! What ties jobs together: who waits for whom, and what follows when a job has ended.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use tidewire_core::commit::{After, Expansion, FlowHead};
use tidewire_core::job::{Job, State, Unique};
use tidewire_core::store::{Moment, QueueLimits};
use tidewire_core::{Id, Result};

use crate::rows::{Edge, JobRow, NameId, Rows, Seq, Taken};
use crate::writer::Writer;

/// A job of a commit and whom it waits for.
pub(crate) struct Tie {
    /// The id that was asked for.
    pub(crate) asked: Id,
    /// The id of the job that stands for it: its own, or that of one with its unique key.
    pub(crate) id: Id,
    pub(crate) is_new: bool,
    /// The state of the job that stands for it, which may be forgotten.
    pub(crate) state: State,
    pub(crate) after: Vec<After>,
    /// The flow that it belongs to if it is new.
    pub(crate) flow: Option<Id>,
}

/// How many keys one turn looks through for jobs that may go on after a limit was changed; the next turn goes on.
const KEYS_AT_ONCE: usize = 256;

impl<R: Rows> Writer<R> {
    /// Whether somebody wants to know of a moment in the life of a job.
    pub(crate) fn cares(&self, moment: Moment, job: &Job) -> bool {
        let Some(lifecycle) = &self.lifecycle else { return false };
        !job.rare.as_ref().is_some_and(|rare| rare.system) && lifecycle.cares(moment, job)
    }

    /// Commits what follows from a moment in the life of a job.
    pub(crate) fn tell(&mut self, moment: Moment, job: &Job) -> Result<()> {
        if !self.cares(moment, job) {
            return Ok(());
        }
        let Some(lifecycle) = self.lifecycle.clone() else { return Ok(()) };
        for Expansion { commit, ephemeral } in lifecycle.follows(moment, job, self.now) {
            if !commit.is_empty() {
                let tenant = self.names.tenant(&mut self.rows, &commit.tenant)?;
                if self.known(tenant, &commit)?.is_some() {
                    continue;
                }
                self.write(tenant, commit)?;
            }
            self.told.extend(ephemeral);
        }
        Ok(())
    }

    /// Changes what changes over the life of a job that is not final, wherever it is held. Answers the changed row.
    pub(crate) fn alter(&mut self, seq: Seq, change: impl Fn(&mut JobRow)) -> Result<Option<JobRow>> {
        self.alter_with(seq, change, R::update_job)
    }

    /// Changes anything about a job that waits.
    pub(crate) fn alter_all(&mut self, seq: Seq, change: impl Fn(&mut JobRow)) -> Result<Option<JobRow>> {
        self.alter_with(seq, change, R::replace_job)
    }

    fn alter_with(
        &mut self,
        seq: Seq,
        change: impl Fn(&mut JobRow),
        write: fn(&mut R, &JobRow) -> Result<()>,
    ) -> Result<Option<JobRow>> {
        let leased = self.leases.of(seq).map(|lease| {
            change(&mut lease.row);
            lease.row.clone()
        });
        if let Some(row) = self.fresh_row(seq) {
            change(row);
            return Ok(Some(row.clone()));
        }
        let row = match leased {
            Some(row) => row,
            None => {
                let known = self.recent.take(seq);
                let Some(mut row) = known.map_or_else(|| self.rows.job(seq), |row| Ok(Some(row)))? else {
                    return Ok(None);
                };
                change(&mut row);
                row
            }
        };
        write(&mut self.rows, &row)?;
        Ok(Some(row))
    }

    /// Makes a job that was just enqueued wait for others too, each with whether its failure is ignored. One that has nothing left to wait
    /// for goes on at once; one that waits for a failed job is cancelled.
    pub(crate) fn tie(&mut self, child: Seq, after: &[(Seq, bool)]) -> Result<()> {
        self.write_fresh()?;
        if self.job_row(child)?.is_none_or(|row| row.job.state != State::Blocked) {
            // Another job of the same commit has taken its unique key.
            return Ok(());
        }
        let mut failed = None;
        let mut seen: HashSet<Seq> = HashSet::new();
        for (parent, ignores_failure) in after.iter().copied() {
            if parent == child || !seen.insert(parent) {
                continue;
            }
            let Some(row) = self.job_row(parent)? else { continue };
            self.rows.add_edge(Edge { child, parent, ignores_failure })?;
            if !row.job.state.is_final() {
                self.knows_dependents(&row)?;
                continue;
            }
            self.rows.end_edges(parent, &row.job)?;
            if row.job.state != State::Completed && !ignores_failure {
                failed = Some(row.job);
            }
        }
        let waits_for = u16::try_from(self.rows.waited_for(child)?.len()).unwrap_or(u16::MAX);
        let child = self.alter(child, |row| {
            let rare = row.job.rare_mut();
            (rare.waits_for, rare.has_parents) = (waits_for, true);
        })?;
        let Some(child) = child else { return Ok(()) };
        match failed {
            Some(parent) => self.take_back(child, &not_completed(&parent.id, parent.state)),
            None if waits_for == 0 => self.unblock(child.seq).map(drop),
            None => Ok(()),
        }
    }

    /// From now on others wait for a job.
    pub(crate) fn knows_dependents(&mut self, row: &JobRow) -> Result<()> {
        if !row.job.rare.as_ref().is_some_and(|rare| rare.has_dependents) {
            self.alter(row.seq, |row| row.job.rare_mut().has_dependents = true)?;
        }
        Ok(())
    }

    /// A blocked job goes on: it is pending, or scheduled if it was told to run later. Answers which.
    pub(crate) fn unblock(&mut self, seq: Seq) -> Result<Option<State>> {
        let now = self.now;
        let was_blocked = Cell::new(false);
        let row = self.alter(seq, |row| {
            was_blocked.set(row.job.state == State::Blocked);
            if was_blocked.get() {
                row.job.state = if row.job.run_at > now { State::Scheduled } else { State::Pending };
            }
        })?;
        let Some(row) = row.filter(|_| was_blocked.get()) else { return Ok(None) };
        self.counts.moved(row.keys, Some(State::Blocked), Some(row.job.state));
        self.place(&row);
        Ok(Some(row.job.state))
    }

    /// Cancels a job that is not running, and what follows from that.
    pub(crate) fn take_back(&mut self, row: JobRow, why: &str) -> Result<()> {
        self.end_waiting(&row, State::Cancelled, why)
    }

    /// Ends a job that is not running, and what follows from that.
    pub(crate) fn end_waiting(&mut self, row: &JobRow, state: State, why: &str) -> Result<()> {
        if let Some(row) = self.stop_waiting(row, state, why)? {
            self.job_ended(&row)?;
        }
        Ok(())
    }

    pub(crate) fn stop_waiting(&mut self, row: &JobRow, state: State, why: &str) -> Result<Option<JobRow>> {
        let now = self.now;
        let ended = self.alter(row.seq, |row| {
            row.job.state = state;
            row.job.finished_at = Some(now);
            row.job.error = Some(why.into());
        })?;
        self.counts.moved(row.keys, Some(row.job.state), Some(state));
        self.leave_line(row)?;
        Ok(ended)
    }

    /// What follows from a job that has reached a final state: its unique key is free, those that wait for it go on or are cancelled, its
    /// flow is further, and whoever wants to know is told.
    pub(crate) fn job_ended(&mut self, row: &JobRow) -> Result<()> {
        if row.job.rare.is_none() {
            return self.tell(ended_moment(row.job.state), &row.job);
        }
        // A list and not a recursion: a chain of ten thousand jobs may end at once.
        let mut ended = vec![row.clone()];
        while let Some(row) = ended.pop() {
            self.tell(ended_moment(row.job.state), &row.job)?;
            let Some(rare) = &row.job.rare else { continue };
            if let Some(unique) = &rare.unique {
                self.free_unique(&row, unique)?;
            }
            if let Some(flow) = &rare.flow {
                // First, because what comes at the end of a flow may have to wait for more than this job.
                ended.extend(self.member_ended(&row, flow)?);
            }
            if rare.has_dependents {
                self.free_dependents(&row, &mut ended)?;
            }
        }
        Ok(())
    }

    pub(crate) fn free_unique(&mut self, row: &JobRow, unique: &Unique) -> Result<()> {
        let (keys, key) = (row.keys, &unique.key);
        let taken = self.rows.unique(keys.tenant, keys.kind, key)?;
        let Some(taken) = taken.filter(|taken| taken.seq == row.seq) else { return Ok(()) };
        if let Some(ahead) = self.ahead(row, unique)? {
            // It never ran. The key is again that of the one behind which it waited.
            let window = ahead.job.rare.as_ref().and_then(|rare| rare.unique.as_ref()?.window);
            let until = window.map(|window| ahead.job.created_at + window);
            let taken = Taken { seq: ahead.seq, id: ahead.job.id, until, ended: None };
            return self.rows.put_unique(keys.tenant, keys.kind, key, &taken);
        }
        if unique.states.contains(row.job.state) {
            // As long as the job is kept. A window that ends before must not free it.
            return self.rows.put_unique(keys.tenant, keys.kind, key, &Taken { until: None, ..taken });
        }
        if taken.until.is_some_and(|until| until > self.now) && row.job.state != State::Cancelled {
            return Ok(());
        }
        self.rows.delete_unique(keys.tenant, keys.kind, key)
    }

    /// The job with the same unique key that must end before this one may begin.
    pub(crate) fn ahead(&mut self, row: &JobRow, unique: &Unique) -> Result<Option<JobRow>> {
        if !row.job.rare.as_ref().is_some_and(|rare| rare.has_parents) {
            return Ok(None);
        }
        for seq in self.rows.waited_for(row.seq)? {
            let Some(parent) = self.job_row(seq)?.filter(|parent| parent.keys.kind == row.keys.kind) else { continue };
            if parent.job.rare.as_ref().and_then(|rare| rare.unique.as_ref()).is_some_and(|own| own.key == unique.key) {
                return Ok(Some(parent));
            }
        }
        Ok(None)
    }

    fn free_dependents(&mut self, parent: &JobRow, ended: &mut Vec<JobRow>) -> Result<()> {
        self.write_fresh()?;
        let edges = self.rows.dependents(parent.seq)?;
        self.rows.end_edges(parent.seq, &parent.job)?;
        for edge in edges {
            let Some(child) = self.job_row(edge.child)?.filter(|child| child.job.state == State::Blocked) else {
                continue;
            };
            if parent.job.state != State::Completed && !edge.ignores_failure {
                ended.extend(self.stop_waiting(
                    &child,
                    State::Cancelled,
                    &not_completed(&parent.job.id, parent.job.state),
                )?);
                continue;
            }
            let child = self.alter(edge.child, |row| {
                let rare = row.job.rare_mut();
                rare.waits_for = rare.waits_for.saturating_sub(1);
            })?;
            if child.is_some_and(|child| child.job.rare.is_some_and(|rare| rare.waits_for == 0)) {
                self.unblock(edge.child)?;
            }
        }
        Ok(())
    }

    /// Ties the jobs of a commit, all of which are enqueued, to those they wait for, and makes their flows of them.
    pub(crate) fn tie_all(&mut self, tenant: NameId, flows: &[FlowHead], ties: &[Tie]) -> Result<()> {
        let mut seqs: HashMap<&Id, Seq> = HashMap::new();
        let mut forgotten: HashMap<&Id, &Tie> = HashMap::new();
        for tie in ties {
            match self.find_job(tenant, &tie.id)? {
                Some(seq) => drop(seqs.insert(&tie.asked, seq)),
                None => drop(forgotten.insert(&tie.asked, tie)),
            }
        }
        // A job with a known id or unique key keeps its own ties and its own flow.
        let new = || ties.iter().filter(|tie| tie.is_new);
        for head in flows {
            let mut flow = self.rows.add_flow(tenant, &head.id, head.name.as_deref(), self.now)?;
            for tie in new().filter(|tie| tie.flow.as_ref() == Some(&head.id)) {
                if let Some(seq) = seqs.get(&tie.asked) {
                    self.join(&mut flow, *seq)?;
                }
            }
            if flow.unfinished == 0 {
                self.end_flow(&mut flow)?;
            }
            self.rows.update_flow(&flow)?;
        }
        for tie in new().filter(|tie| !tie.after.is_empty()) {
            let Some(child) = seqs.get(&tie.asked).copied() else { continue };
            let mut after = Vec::with_capacity(tie.after.len());
            let has_failed = |parent: &After| {
                let gone = forgotten.get(&parent.id).filter(|gone| gone.state != State::Completed);
                gone.filter(|_| !parent.ignores_failure).copied()
            };
            if let Some(gone) = tie.after.iter().find_map(has_failed) {
                self.write_fresh()?;
                if let Some(row) = self.job_row(child)? {
                    self.take_back(row, &not_completed(&gone.id, gone.state))?;
                }
                continue;
            }
            for parent in &tie.after {
                let seq = match seqs.get(&parent.id) {
                    Some(seq) => Some(*seq),
                    None => self.find_job(tenant, &parent.id)?,
                };
                after.extend(seq.map(|seq| (seq, parent.ignores_failure)));
            }
            self.tie(child, &after)?;
        }
        Ok(())
    }

    /// Lets the next blocked jobs of a key go on, as many as its limit allows and at most [`KEYS_AT_ONCE`]. Answers how many.
    pub(crate) fn free_key(&mut self, queue: NameId, tenant: NameId, key: &str) -> Result<usize> {
        self.write_fresh()?;
        let most =
            self.dispatch.limits(queue).and_then(|limits| limits.per_key).map_or(usize::MAX, |most| most as usize);
        let free = most.saturating_sub(self.leases.running_of_key(queue, tenant, key)).min(KEYS_AT_ONCE);
        let (mut let_go, mut due) = (0, 0);
        while due < free && let_go < KEYS_AT_ONCE {
            let blocked = self.rows.blocked_of_key(queue, tenant, key, free - due)?;
            if blocked.is_empty() {
                break;
            }
            for seq in blocked {
                // One that is to run later takes no place until then.
                due += usize::from(self.unblock(seq)? == Some(State::Pending));
                let_go += 1;
            }
        }
        Ok(let_go)
    }

    /// A job has left the line without a run; `row` is as it stood there. It may have been all that the next of its key waited for.
    pub(crate) fn leave_line(&mut self, row: &JobRow) -> Result<()> {
        // Without a limit nobody is held back, but for those that are let go because it was lifted.
        let has_limit = |limits: &QueueLimits| limits.per_key.is_some();
        if row.job.state == State::Pending
            && let Some(key) = row.job.key()
            && self.dispatch.limits(row.keys.queue).is_some_and(has_limit)
        {
            self.free_key(row.keys.queue, row.keys.tenant, key)?;
        }
        Ok(())
    }

    /// Lets jobs go on that their key's limit held back before it was changed, or before a restart. Some in each turn.
    pub(crate) fn free_keys(&mut self) -> Result<()> {
        let Some((queue, (tenant, key))) = self.loose_keys.pop_first() else { return Ok(()) };
        self.write_fresh()?;
        let keys = self.rows.blocked_keys(queue, (tenant, &key), KEYS_AT_ONCE)?;
        let is_all = keys.len() < KEYS_AT_ONCE;
        let mut done = (tenant, key);
        for (tenant, key) in keys {
            if self.free_key(queue, tenant, &key)? >= KEYS_AT_ONCE {
                // It may have more, so it is looked at again.
                self.loose_keys.insert(queue, done);
                return Ok(());
            }
            done = (tenant, key);
        }
        if !is_all {
            self.loose_keys.insert(queue, done);
        }
        Ok(())
    }
}

fn ended_moment(state: State) -> Moment {
    match state {
        State::Completed => Moment::Completed,
        State::Cancelled => Moment::Cancelled,
        _ => Moment::Failed,
    }
}

fn not_completed(id: &Id, state: State) -> String {
    format!("job {id}, which it waits for, is {state}")
}
