//! Flows: what becomes of one as its jobs end, and what operators do to one.

use tidewire_core::job::{OnFailure, State};
use tidewire_core::store::{FlowControl, FlowState};

use super::machine::Machine;
use super::program::What;

pub(super) struct Flow {
    pub(super) name: String,
    pub(super) tenant: usize,
    pub(super) members: Vec<usize>,
    undoing: bool,
}

impl Flow {
    pub(super) fn new(name: &str, tenant: usize) -> Self {
        Self { name: name.to_owned(), tenant, members: Vec::new(), undoing: false }
    }
}

impl Machine {
    /// Cancels or retries a flow, or says why not.
    pub(super) fn control_flow(&mut self, flow: usize, control: FlowControl) -> Result<(), &'static str> {
        let members = self.flows[flow].members.clone();
        let (mut members, undoing): (Vec<usize>, Vec<usize>) =
            members.into_iter().partition(|job| self.jobs[*job].compensates.is_none());
        match control {
            FlowControl::Cancel => {
                let cancelled = members.into_iter().filter(|job| {
                    let may_end = !self.jobs[*job].is_forgotten && !self.jobs[*job].state.is_final();
                    may_end && self.control(*job, &What::Cancel).is_some()
                });
                if cancelled.count() == 0 {
                    return Err("flow.wrong_state");
                }
                self.seen.insert("flow cancelled");
            }
            FlowControl::Retry => {
                let (dropped, others): (Vec<usize>, Vec<usize>) =
                    undoing.into_iter().partition(|job| self.jobs[*job].state == State::Cancelled);
                if dropped.iter().any(|job| self.jobs[*job].is_forgotten) {
                    return Err("flow.wrong_state");
                }
                if self.flows[flow].undoing && !others.is_empty() {
                    return Err("flow.undone");
                }
                let ended = |job: &usize| self.jobs[*job].state.is_final() && self.jobs[*job].state != State::Completed;
                members.retain(ended);
                let mut keys = Vec::new();
                for job in members.iter().map(|job| (*job, &self.jobs[*job])) {
                    let (index, job) = job;
                    if job.is_forgotten {
                        return Err("flow.wrong_state");
                    }
                    let key = job.unique.map(|(key, _)| (job.kind, key));
                    if self.unique_again(index).is_err() || key.is_some_and(|key| keys.contains(&key)) {
                        return Err("job.unique_taken");
                    }
                    keys.extend(key);
                }
                if members.is_empty() {
                    return Err("flow.wrong_state");
                }
                self.flows[flow].undoing = false;
                for job in dropped {
                    let now = self.jobs[job].run_at;
                    (self.jobs[job].attempt, self.jobs[job].finished_at, self.jobs[job].waits_for) = (0, None, 1);
                    self.edges.retain(|edge| edge.child != job);
                    self.wait(job, State::Blocked, now);
                }
                for job in members {
                    assert!(self.control(job, &What::Redrive).is_some(), "it may take its key");
                }
                self.seen.insert("flow retried");
            }
        }
        Ok(())
    }

    /// A job of a flow has ended. Answers those that end with it.
    pub(super) fn member_ended(&mut self, flow: usize, job: usize) -> Vec<usize> {
        let ended = self.jobs[job].clone();
        let mut stopped = Vec::new();
        if ended.compensates.is_some() || !self.flows[flow].members.contains(&job) {
            return stopped;
        }
        if ended.state != State::Completed && ended.on_failure == OnFailure::Compensate && !self.flows[flow].undoing {
            self.flows[flow].undoing = true;
            for other in self.flows[flow].members.clone() {
                let waits = self.jobs[other].is_waiting() && !self.jobs[other].is_forgotten;
                if waits && self.jobs[other].compensates.is_none() {
                    self.stop(other, State::Cancelled);
                    stopped.push(other);
                }
            }
        }
        if self.flows[flow].undoing {
            self.undo(flow);
        }
        stopped
    }

    /// Whether a job of the flow that undoes none has not ended.
    fn goes_on(&self, flow: usize) -> bool {
        let mut members = self.flows[flow].members.iter().map(|job| &self.jobs[*job]);
        members.any(|job| job.compensates.is_none() && !job.state.is_final())
    }

    /// Lets what undoes completed jobs go on when nothing else of the flow does, the last completed first and one after the other.
    fn undo(&mut self, flow: usize) {
        if self.goes_on(flow) {
            return;
        }
        self.seen.insert("compensated");
        let (mut going, mut order) = (Vec::new(), Vec::new());
        for member in self.flows[flow].members.clone() {
            let job = &self.jobs[member];
            let Some(undone) = job.compensates.filter(|_| !job.state.is_final()) else { continue };
            let is_chained = self.edges.iter().any(|edge| edge.child == member);
            if job.state != State::Blocked || job.waits_for == 0 || is_chained {
                going.push((member, true));
            } else if undone != usize::MAX && self.jobs[undone].state == State::Completed {
                order.push((self.jobs[undone].finished_at, member));
            }
        }
        order.sort_unstable_by(|one, other| other.cmp(one));
        let mut before = going;
        for (_, job) in order {
            if before.is_empty() {
                self.jobs[job].waits_for = 0;
                self.unblock(job);
            } else {
                self.tie(job, &before);
            }
            before = vec![(job, true)];
        }
    }

    /// When all that a flow does has ended, what has nothing to undo is forgotten, or cancelled if the flow may be run again.
    pub(super) fn end_flow(&mut self, flow: usize) {
        if self.goes_on(flow) {
            return;
        }
        let members = self.flows[flow].members.clone();
        let is_undoing = self.flows[flow].undoing;
        // One that was let go, or that somebody ran again, is not dropped any more.
        let is_unneeded = |job: &usize| {
            let undone = self.jobs[*job].compensates.filter(|undone| *undone != usize::MAX);
            let waits = self.jobs[*job].state == State::Blocked && self.jobs[*job].waits_for > 0;
            waits && !(is_undoing && undone.is_some_and(|undone| self.jobs[undone].state == State::Completed))
        };
        let undoes = |job: &&usize| self.jobs[**job].compensates.is_some();
        let is_whole = members.iter().filter(|job| !undoes(job)).all(|job| self.jobs[*job].state == State::Completed);
        let is_undone =
            members.iter().filter(undoes).any(|job| !is_unneeded(job) && self.jobs[*job].state != State::Cancelled);
        let unneeded: Vec<usize> = members.iter().filter(undoes).filter(|job| is_unneeded(job)).copied().collect();
        for job in unneeded {
            if is_whole || is_undone {
                self.flows[flow].members.retain(|member| *member != job);
                self.jobs[job].is_forgotten = true;
            } else {
                self.stop(job, State::Cancelled);
            }
        }
    }

    /// What a flow is shown as.
    pub(super) fn flow_state(&self, flow: usize) -> FlowState {
        let members = || self.flows[flow].members.iter().map(|job| &self.jobs[*job]);
        let is_over = members().all(|job| job.state.is_final());
        let is_broken = |job: &super::machine::Modelled| {
            job.compensates.is_none() && job.state != State::Completed && job.on_failure != OnFailure::Ignore
        };
        match is_over {
            false if self.flows[flow].undoing => FlowState::Undoing,
            false => FlowState::Running,
            true if members().any(is_broken) => FlowState::Failed,
            true => FlowState::Completed,
        }
    }
}
