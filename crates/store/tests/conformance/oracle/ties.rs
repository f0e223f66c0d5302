//! What ties jobs together: unique keys, who waits for whom.

use tidewire_core::Timestamp;
use tidewire_core::job::{Conflict, OnConflict, State};

use super::flows::Flow;
use super::machine::{Machine, Written};
use super::program::New;
use crate::world::SECOND;

/// Who has a unique key, and for how long whatever becomes of it.
pub(super) struct Holder {
    tenant: usize,
    kind: usize,
    key: u8,
    job: usize,
    until: Option<Timestamp>,
}

pub(super) struct Edge {
    pub(super) child: usize,
    pub(super) parent: usize,
    ignores_failure: bool,
    has_ended: bool,
}

/// A job of a commit with its name and whom it waits for, by name.
pub(super) struct Asked<'a> {
    pub(super) name: String,
    pub(super) new: &'a New,
    pub(super) after: Vec<(String, bool)>,
    pub(super) compensates: Option<String>,
}

/// For how long a job of a type keeps others out, whatever becomes of it.
pub(super) const WINDOW_SECONDS: [Option<u32>; 3] = [None, Some(15), Some(30)];

/// Whether a job of a type keeps others out only while it waits.
pub(super) const ONLY_WAITING: [bool; 3] = [false, true, false];

impl Machine {
    pub(super) fn index(&self, tenant: usize, name: &str) -> Option<usize> {
        self.jobs.iter().position(|job| job.tenant == tenant && job.name == name && !job.is_forgotten)
    }

    /// Enqueues the jobs of a commit, the first `asked` of which are answered, and ties them.
    pub(super) fn commit(
        &mut self,
        tenant: usize,
        jobs: &[Asked<'_>],
        flow: Option<&str>,
        asked: usize,
    ) -> Vec<Written> {
        let flow = flow.map(|name| {
            self.flows.push(Flow::new(name, tenant));
            self.flows.len() - 1
        });
        let mut stands_for: Vec<(String, usize)> = Vec::new();
        let mut answers = Vec::new();
        for job in jobs {
            let undone = job.compensates.as_ref().map(|name| {
                let own = stands_for.iter().find(|(asked, _)| asked == name).expect("asked before");
                // One that was merged into another is not undone: nothing of this flow has done it.
                if self.jobs[own.1].name == *name { own.1 } else { usize::MAX }
            });
            let (index, written) = self.enqueue(tenant, job, flow, undone);
            stands_for.push((job.name.clone(), index));
            answers.push(written);
        }
        let is_new = |at: &usize| !answers[*at].is_known;
        if let Some(flow) = flow {
            let new = (0..jobs.len()).filter(is_new).map(|at| stands_for[at].1);
            self.flows[flow].members = new.collect();
            self.end_flow(flow);
        }
        for at in (0..jobs.len()).filter(is_new) {
            let stand_in = |name: &String| {
                let own = stands_for.iter().find(|(asked, _)| asked == name).map(|(_, index)| *index);
                own.or_else(|| self.index(tenant, name))
            };
            let after: Vec<(usize, bool)> =
                jobs[at].after.iter().filter_map(|(name, ignores)| Some((stand_in(name)?, *ignores))).collect();
            if !after.is_empty() {
                self.tie(stands_for[at].1, &after);
            }
        }
        if flow.is_some() || jobs.iter().any(|job| !job.after.is_empty()) {
            for (at, answer) in answers.iter_mut().enumerate().filter(|(_, answer)| answer.state == State::Blocked) {
                answer.state = self.jobs[stands_for[at].1].state;
            }
        }
        answers.truncate(asked);
        answers
    }

    fn enqueue(
        &mut self,
        tenant: usize,
        asked: &Asked<'_>,
        flow: Option<usize>,
        undone: Option<usize>,
    ) -> (usize, Written) {
        let new = asked.new;
        let (mut behind, mut conflict) = (None, None);
        if let Some((key, policy)) = new.unique {
            match self.contend(tenant, new, key, policy) {
                Contest::Free(so) => conflict = so,
                Contest::Behind(job, so) => (behind, conflict) = (Some(job), Some(so)),
                Contest::Lost(job, so) => {
                    self.seen.insert(word(so));
                    let (name, state) = (self.jobs[job].name.clone(), self.jobs[job].state);
                    return (job, Written { name, state, is_known: true, conflict: Some(so) });
                }
            }
        }
        if let Some(conflict) = conflict {
            self.seen.insert(word(conflict));
        }
        let waits = undone.is_some() || !asked.after.is_empty();
        let state = match new.delay_seconds {
            _ if waits || behind.is_some() => State::Blocked,
            0 => State::Pending,
            _ => State::Scheduled,
        };
        let index = self.add(&asked.name, tenant, new, state);
        (self.jobs[index].flow, self.jobs[index].compensates) = (flow, undone);
        self.jobs[index].waits_for = usize::from(waits);
        if let Some((key, _)) = new.unique {
            let until = WINDOW_SECONDS[new.kind].map(|seconds| self.now + SECOND * seconds);
            self.take_key(Holder { tenant, kind: new.kind, key, job: index, until });
        }
        if state == State::Pending {
            self.line_up(index);
        }
        if let Some(behind) = behind {
            self.tie(index, &[(behind, true)]);
        }
        (index, Written { name: asked.name.clone(), state, is_known: false, conflict })
    }

    fn holder(&self, tenant: usize, kind: usize, key: u8) -> Option<usize> {
        self.holders.iter().position(|holder| (holder.tenant, holder.kind, holder.key) == (tenant, kind, key))
    }

    fn take_key(&mut self, holder: Holder) {
        if let Some(old) = self.holder(holder.tenant, holder.kind, holder.key) {
            self.holders.remove(old);
        }
        self.holders.push(holder);
    }

    fn keeps_out(kind: usize, state: State) -> bool {
        !(state.is_final() || ONLY_WAITING[kind] && state == State::Processing)
    }

    fn contend(&mut self, tenant: usize, new: &New, key: u8, policy: OnConflict) -> Contest {
        let mut superseded = None;
        loop {
            let Some(at) = self.holder(tenant, new.kind, key) else { return Contest::Free(superseded) };
            let job = self.holders[at].job;
            let in_window = self.holders[at].until.is_some_and(|until| until > self.now);
            let state = self.jobs[job].state;
            let waits_behind = !self.jobs[job].is_forgotten && self.ahead(job).is_some();
            let keeps_out = if self.jobs[job].is_forgotten {
                in_window
            } else {
                Self::keeps_out(new.kind, state) || in_window && state != State::Cancelled || waits_behind
            };
            if !keeps_out {
                return Contest::Free(superseded);
            }
            let waits = self.jobs[job].is_waiting() && !self.jobs[job].is_forgotten;
            let runs = state == State::Processing;
            match policy {
                OnConflict::Supersede if waits => {
                    self.end_waiting(job, State::Cancelled);
                    superseded = Some(Conflict::Superseded);
                }
                OnConflict::Supersede if runs => {
                    self.ask_to_stop(job);
                    return Contest::Behind(job, Conflict::Superseded);
                }
                OnConflict::Supersede => return Contest::Free(superseded),
                OnConflict::Latest if runs => return Contest::Behind(job, Conflict::Queued),
                OnConflict::Replace | OnConflict::Latest if waits => {
                    self.replace(job, new, true);
                    return Contest::Lost(job, Conflict::Replaced);
                }
                OnConflict::Extend if waits => {
                    self.replace(job, new, false);
                    return Contest::Lost(job, Conflict::Extended);
                }
                OnConflict::Keep | OnConflict::Replace | OnConflict::Latest | OnConflict::Extend => {
                    return Contest::Lost(job, Conflict::Kept);
                }
            }
        }
    }

    fn replace(&mut self, job: usize, new: &New, is_whole: bool) {
        let (now, old) = (self.now, self.jobs[job].clone());
        if is_whole {
            self.jobs[job].ask(new, now);
        }
        let asked = now + SECOND * new.delay_seconds;
        let (state, run_at) = if old.waits_for > 0 {
            (State::Blocked, if asked > now { asked } else { old.run_at })
        } else if asked > now {
            (State::Scheduled, asked)
        } else {
            (State::Pending, old.run_at.min(now))
        };
        if !is_whole {
            self.jobs[job].move_to(run_at);
        }
        // The next of its old key goes on if it leaves the line, whatever its key is now.
        let changed = std::mem::replace(&mut self.jobs[job].key, old.key);
        let (new_key, changed) = (changed, &self.jobs[job]);
        // In the line of another priority it has another place, at the same time.
        let moves = changed.priority != old.priority && (state, run_at) == (old.state, old.run_at);
        self.wait(job, state, run_at);
        self.jobs[job].key = new_key;
        if moves && state == State::Pending {
            self.line_up(job);
        }
        if (old.state, state) == (State::Pending, State::Pending) && new_key != old.key {
            self.leave_key(job, old.key);
        }
    }

    /// The job of the same unique key behind which one waits.
    fn ahead(&self, job: usize) -> Option<usize> {
        let own = &self.jobs[job];
        let open = self.edges.iter().filter(|edge| edge.child == job && !edge.has_ended).map(|edge| edge.parent);
        open.filter(|parent| {
            let parent = &self.jobs[*parent];
            let key = |unique: &(u8, OnConflict)| unique.0;
            parent.kind == own.kind
                && own.unique.is_some()
                && parent.unique.as_ref().map(key) == own.unique.as_ref().map(key)
        })
        .min()
    }

    /// A job has ended: its unique key is free unless its window or the one before it keeps it.
    fn free_key_of(&mut self, job: usize) {
        let Some((key, _)) = self.jobs[job].unique else { return };
        let (tenant, kind) = (self.jobs[job].tenant, self.jobs[job].kind);
        let Some(at) = self.holder(tenant, kind, key).filter(|at| self.holders[*at].job == job) else { return };
        if let Some(ahead) = self.ahead(job) {
            let until = WINDOW_SECONDS[kind].map(|seconds| self.jobs[ahead].created_at + SECOND * seconds);
            self.take_key(Holder { tenant, kind, key, job: ahead, until });
        } else if self.holders[at].until.is_none_or(|until| until <= self.now)
            || self.jobs[job].state == State::Cancelled
        {
            self.holders.remove(at);
        }
    }

    /// Until when the window of an ended job keeps others out when it takes its unique key again; an error when another keeps it out.
    pub(super) fn unique_again(&self, job: usize) -> Result<Option<Timestamp>, ()> {
        let Some((key, _)) = self.jobs[job].unique else { return Ok(None) };
        let (tenant, kind, now) = (self.jobs[job].tenant, self.jobs[job].kind, self.now);
        let own = WINDOW_SECONDS[kind].map(|seconds| self.jobs[job].created_at + SECOND * seconds);
        let mut until = own.filter(|until| *until > now);
        if let Some(at) = self.holder(tenant, kind, key) {
            let (other, held) = (self.holders[at].job, self.holders[at].until);
            let state = self.jobs[other].state;
            if other == job {
                until = held;
            } else if !self.jobs[other].is_forgotten {
                let in_window = held.is_some_and(|held| held > now) && state != State::Cancelled;
                if Self::keeps_out(kind, state) || in_window {
                    return Err(());
                }
            }
        }
        Ok(until)
    }

    /// An ended job takes its unique key again, unless another keeps it out.
    pub(super) fn retake_unique(&mut self, job: usize) -> bool {
        let Ok(until) = self.unique_again(job) else { return false };
        if let Some((key, _)) = self.jobs[job].unique {
            self.take_key(Holder { tenant: self.jobs[job].tenant, kind: self.jobs[job].kind, key, job, until });
        }
        true
    }

    /// Makes a blocked job wait for others too.
    pub(super) fn tie(&mut self, child: usize, after: &[(usize, bool)]) {
        if self.jobs[child].state != State::Blocked {
            return;
        }
        let mut has_failed = false;
        for (parent, ignores_failure) in after.iter().copied() {
            let is_known = |edge: &Edge| (edge.child, edge.parent) == (child, parent);
            if parent == child || self.jobs[parent].is_forgotten || self.edges.iter().any(is_known) {
                continue;
            }
            let state = self.jobs[parent].state;
            self.edges.push(Edge { child, parent, ignores_failure, has_ended: state.is_final() });
            has_failed |= state.is_final() && state != State::Completed && !ignores_failure;
        }
        self.jobs[child].waits_for = self.edges.iter().filter(|edge| edge.child == child && !edge.has_ended).count();
        if has_failed {
            self.end_waiting(child, State::Cancelled);
        } else if self.jobs[child].waits_for == 0 {
            self.unblock(child);
        }
    }

    /// Ties a job again to those it waited for. Answers how many have not ended.
    pub(super) fn wait_again(&mut self, child: usize) -> usize {
        for edge in self.edges.iter_mut().filter(|edge| edge.child == child) {
            let parent = &self.jobs[edge.parent];
            edge.has_ended = parent.is_forgotten || parent.state.is_final();
        }
        self.edges.iter().filter(|edge| edge.child == child && !edge.has_ended).count()
    }

    /// Those that waited for a job that runs again wait for it again, unless they have begun.
    pub(super) fn hold_back(&mut self, parent: usize) {
        let children: Vec<usize> =
            self.edges.iter().filter(|edge| edge.parent == parent).map(|edge| edge.child).collect();
        for child in children {
            let job = &self.jobs[child];
            if !job.is_waiting() || job.is_forgotten || job.attempt > 0 {
                continue;
            }
            let run_at = job.run_at;
            let is_it = |edge: &&mut Edge| (edge.child, edge.parent) == (child, parent);
            self.edges.iter_mut().find(is_it).expect("an edge").has_ended = false;
            self.jobs[child].waits_for += 1;
            self.wait(child, State::Blocked, run_at);
        }
    }

    /// Ends a job that is not running, and what follows.
    pub(super) fn end_waiting(&mut self, job: usize, state: State) {
        self.stop(job, state);
        self.ended(job);
    }

    pub(super) fn stop(&mut self, job: usize, state: State) {
        let was_in_line = self.jobs[job].state == State::Pending;
        (self.jobs[job].state, self.jobs[job].finished_at) = (state, Some(self.now));
        if was_in_line {
            self.leave_key(job, self.jobs[job].key);
        }
    }

    /// What follows from the end of a job, for those that wait for it and for its flow.
    pub(super) fn ended(&mut self, job: usize) {
        let (mut ended, mut flows) = (vec![job], Vec::new());
        while let Some(job) = ended.pop() {
            self.free_key_of(job);
            if let Some(flow) = self.jobs[job].flow {
                ended.extend(self.member_ended(flow, job));
                flows.push(flow);
            }
            let mut open: Vec<usize> = (0..self.edges.len())
                .filter(|at| self.edges[*at].parent == job && !self.edges[*at].has_ended)
                .collect();
            open.sort_by_key(|at| self.edges[*at].child);
            for at in &open {
                self.edges[*at].has_ended = true;
            }
            for at in open {
                let child = self.edges[at].child;
                if self.jobs[child].state != State::Blocked || self.jobs[child].is_forgotten {
                    continue;
                }
                if self.jobs[job].state != State::Completed && !self.edges[at].ignores_failure {
                    self.stop(child, State::Cancelled);
                    ended.push(child);
                    continue;
                }
                self.jobs[child].waits_for -= 1;
                if self.jobs[child].waits_for == 0 {
                    self.unblock(child);
                }
            }
        }
        flows.into_iter().for_each(|flow| self.end_flow(flow));
    }

    /// Forgets a job that does not run. Others see it cancelled first.
    pub(super) fn delete(&mut self, job: usize) {
        let is_tied =
            self.jobs[job].flow.is_some() || self.edges.iter().any(|edge| edge.parent == job && !edge.has_ended);
        if !self.jobs[job].state.is_final() {
            if is_tied {
                self.end_waiting(job, State::Cancelled);
            } else {
                self.stop(job, State::Cancelled);
                self.free_key_of(job);
            }
        }
        if let Some((key, _)) = self.jobs[job].unique
            && let Some(at) = self.holder(self.jobs[job].tenant, self.jobs[job].kind, key)
            && self.holders[at].job == job
        {
            self.holders.remove(at);
        }
        self.jobs[job].is_forgotten = true;
        self.edges.retain(|edge| edge.child != job);
        self.seen.insert("deleted");
    }
}

/// What a new job comes upon at its unique key.
enum Contest {
    Free(Option<Conflict>),
    Behind(usize, Conflict),
    Lost(usize, Conflict),
}

fn word(conflict: Conflict) -> &'static str {
    match conflict {
        Conflict::Kept => "kept",
        Conflict::Replaced => "replaced",
        Conflict::Extended => "extended",
        Conflict::Queued => "queued",
        Conflict::Superseded => "superseded",
    }
}
