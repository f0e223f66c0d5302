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
        let mut members = self.flows[flow].members.clone();
        members.retain(|job| self.jobs[*job].compensates.is_none());
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
                if self.flows[flow].undoing {
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
                for job in members {
                    assert!(self.control(job, &What::Redrive).is_some(), "it may take its key");
                }
                self.seen.insert("flow retried");
            }
        }
        Ok(())
    }

    pub(super) fn member_ended(&mut self, flow: usize, job: usize) {
        let ended = self.jobs[job].clone();
        if ended.compensates.is_none() && self.flows[flow].members.contains(&job) {
            if ended.state == State::Completed && self.flows[flow].undoing {
                self.undo(flow, |compensates| compensates == job);
            }
            if ended.state != State::Completed && ended.on_failure == OnFailure::Compensate && !self.flows[flow].undoing
            {
                self.flows[flow].undoing = true;
                self.undo(flow, |_| true);
            }
        }
    }

    /// Lets what undoes completed jobs go on, the last completed first and one after the other.
    fn undo(&mut self, flow: usize, wanted: impl Fn(usize) -> bool) {
        self.seen.insert("compensated");
        let undoes = |member: &usize| {
            let compensates =
                self.jobs[*member].compensates.filter(|undone| *undone != usize::MAX && wanted(*undone))?;
            let undone = &self.jobs[compensates];
            let is_due = undone.state == State::Completed && !self.jobs[*member].state.is_final();
            is_due.then_some((undone.finished_at, *member))
        };
        let mut order: Vec<_> = self.flows[flow].members.iter().filter_map(undoes).collect();
        order.sort_unstable_by(|one, other| other.cmp(one));
        let mut before = None;
        for (_, job) in order {
            match before {
                None => {
                    self.jobs[job].waits_for = 0;
                    self.unblock(job);
                }
                Some(before) => self.tie(job, &[(before, true)]),
            }
            before = Some(job);
        }
    }

    /// When all that a flow does has ended, what has nothing to undo is forgotten.
    pub(super) fn end_flow(&mut self, flow: usize) {
        if self.flows[flow]
            .members
            .iter()
            .any(|job| self.jobs[*job].compensates.is_none() && !self.jobs[*job].state.is_final())
        {
            return;
        }
        let is_needed = |job: &usize| match self.jobs[*job].compensates {
            // One that was let go, or that somebody ran again, is not dropped any more.
            Some(undone) if self.jobs[*job].state == State::Blocked && self.jobs[*job].waits_for > 0 => {
                self.flows[flow].undoing && undone != usize::MAX && self.jobs[undone].state == State::Completed
            }
            _ => true,
        };
        let (kept, dropped): (Vec<usize>, Vec<usize>) = self.flows[flow].members.iter().partition(|job| is_needed(job));
        self.flows[flow].members = kept;
        for job in dropped {
            self.jobs[job].is_forgotten = true;
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
