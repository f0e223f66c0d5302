//! The lives of jobs as the documents tell them, over plain lists.

use std::collections::BTreeSet;
use std::time::Duration;

use tidewire_core::Timestamp;
use tidewire_core::job::{Conflict, OnConflict, OnFailure, State};
use tidewire_core::schedule::Overlap;
use tidewire_core::store::{Fired, QueueLimits};

use super::flows::Flow;
use super::line::Line;
use super::program::{Bounds, End, Limits, New, What};
use super::ties::{Edge, Holder};
use crate::world::SECOND;

pub(super) struct Machine {
    pub(super) now: Timestamp,
    /// In order of arrival.
    pub(super) jobs: Vec<Modelled>,
    pub(super) bounds: Bounds,
    pub(super) line: Line,
    pub(super) holders: Vec<Holder>,
    pub(super) edges: Vec<Edge>,
    pub(super) flows: Vec<Flow>,
    slots: Vec<((usize, u8), Timestamp, Option<usize>)>,
    /// What happened in the program, for the tally of all.
    pub(super) seen: BTreeSet<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) struct Modelled {
    pub(super) name: String,
    pub(super) tenant: usize,
    pub(super) kind: usize,
    pub(super) priority: u8,
    pub(super) state: State,
    pub(super) attempt: u16,
    pub(super) attempts: u16,
    backoff: u8,
    timeout: Duration,
    pub(super) created_at: Timestamp,
    pub(super) run_at: Timestamp,
    started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) key: Option<u8>,
    pub(super) unique: Option<(u8, OnConflict)>,
    expires_at: Option<Timestamp>,
    retry_until: Option<Timestamp>,
    paced_until: Option<Timestamp>,
    lost: u16,
    /// How many jobs it waits for, as it was told.
    pub(super) waits_for: usize,
    pub(super) on_failure: OnFailure,
    pub(super) flow: Option<usize>,
    pub(super) compensates: Option<usize>,
    /// The number of every run that failed.
    pub(super) failed: Vec<u16>,
    pub(super) held: Option<Held>,
    /// Whether nothing is kept of it but what others remember.
    pub(super) is_forgotten: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Held {
    lease: usize,
    pub(super) until: Timestamp,
    cancelled: bool,
}

/// What became of a job that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) is_known: bool,
    pub(super) conflict: Option<Conflict>,
}

impl Modelled {
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Scheduled | State::Pending | State::Blocked)
    }

    /// Gives it what a new job asks for, and leaves what it has lived through and what ties it to others.
    pub(super) fn ask(&mut self, new: &New, now: Timestamp) {
        let run_at = now + SECOND * new.delay_seconds;
        (self.priority, self.attempts, self.backoff) = (new.priority, new.attempts, new.backoff);
        self.timeout = SECOND * new.timeout_seconds;
        (self.key, self.unique, self.paced_until) = (new.key, new.unique, None);
        self.expires_at = new.ttl_seconds.map(|ttl| run_at + SECOND * ttl);
        self.retry_until = new.retry_for_seconds.map(|time| now + SECOND * time);
    }

    /// What it has until its first run moves with its due time.
    pub(super) fn move_to(&mut self, run_at: Timestamp) {
        if self.paced_until != Some(self.run_at) {
            self.expires_at = self.expires_at.map(|at| run_at + at.since(self.run_at));
        }
    }

    /// What it waits after its present run.
    fn delay(&self) -> Duration {
        let doubled = 2_u32.pow(u32::from(self.attempt) - 1);
        match self.backoff {
            0 => SECOND * 10,
            1 => (SECOND * 2 * doubled).min(SECOND * 7),
            _ => SECOND * [3, 1, 20][usize::from(self.attempt - 1).min(2)],
        }
    }

    fn hard_end(&self) -> Timestamp {
        self.started_at.expect("it runs") + self.timeout + QueueLimits::default().grace
    }
}

impl Machine {
    pub(super) fn new(now: Timestamp, bounds: Bounds) -> Self {
        Self {
            now,
            bounds,
            jobs: Vec::new(),
            line: Line::default(),
            holders: Vec::new(),
            edges: Vec::new(),
            flows: Vec::new(),
            slots: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    /// A job that stands nowhere yet.
    pub(super) fn add(&mut self, name: &str, tenant: usize, new: &New, state: State) -> usize {
        let mut job = Modelled {
            name: name.to_owned(),
            tenant,
            kind: new.kind,
            priority: 0,
            state,
            attempt: 0,
            attempts: 0,
            backoff: 0,
            timeout: Duration::ZERO,
            created_at: self.now,
            run_at: self.now + SECOND * new.delay_seconds,
            started_at: None,
            finished_at: None,
            key: None,
            unique: None,
            expires_at: None,
            retry_until: None,
            paced_until: None,
            lost: 0,
            waits_for: 0,
            on_failure: new.on_failure,
            flow: None,
            compensates: None,
            failed: Vec::new(),
            held: None,
            is_forgotten: false,
        };
        job.ask(new, self.now);
        self.jobs.push(job);
        self.jobs.len() - 1
    }

    /// Moves a job to another waiting state and time. One that leaves the line makes room for the next of its key.
    pub(super) fn wait(&mut self, job: usize, state: State, run_at: Timestamp) {
        let was = (self.jobs[job].state, self.jobs[job].run_at);
        (self.jobs[job].state, self.jobs[job].run_at) = (state, run_at);
        if state == State::Pending && was != (state, run_at) {
            self.line_up(job);
        }
        if was.0 == State::Pending && state != State::Pending {
            self.leave_key(job, self.jobs[job].key);
        }
    }

    /// What a turn does by itself.
    pub(super) fn tick(&mut self) {
        let now = self.now;
        let held = |job: &Modelled| job.held.as_ref().map(|held| held.until).filter(|until| *until <= now);
        while let Some((until, job)) = self.first(held) {
            if until >= self.jobs[job].hard_end() {
                self.seen.insert("timed out");
                self.finish(job, &End::Retry { delay_seconds: None });
            } else {
                self.lose(job);
            }
        }
        let expired = |job: &Modelled| {
            let waits = job.is_waiting() && job.started_at.is_none() && !job.is_forgotten;
            job.expires_at.filter(|at| waits && *at <= now)
        };
        while let Some((_, job)) = self.first(expired) {
            self.seen.insert("expired");
            self.end_waiting(job, State::Cancelled);
        }
        let due = |job: &Modelled| {
            (job.state == State::Scheduled && !job.is_forgotten && job.run_at <= now).then_some(job.run_at)
        };
        while let Some((_, job)) = self.first(due) {
            self.jobs[job].state = State::Pending;
            self.line_up(job);
        }
    }

    fn first(&self, time: impl Fn(&Modelled) -> Option<Timestamp>) -> Option<(Timestamp, usize)> {
        self.jobs.iter().enumerate().filter_map(|(index, job)| Some((time(job)?, index))).min()
    }

    /// The jobs that a claim gets, in order.
    pub(super) fn claim(&mut self, wanted: Option<usize>, kind: Option<usize>, max: u32) -> Vec<usize> {
        let mut begun = Vec::new();
        while begun.len() < max as usize {
            let Some(place) = self.next(wanted, kind) else { break };
            let job = &self.jobs[place.job];
            let is_there = (job.state, job.run_at, job.priority) == (State::Pending, place.due, place.priority);
            if is_there && !job.is_forgotten && !self.is_held_back(place.job) {
                let job = &mut self.jobs[place.job];
                job.state = State::Processing;
                job.attempt += 1;
                job.started_at = Some(self.now);
                let tenant = job.tenant;
                self.count_start(tenant);
                begun.push(place.job);
            } else if !is_there {
                self.seen.insert("stale");
            }
        }
        begun
    }

    fn is_held_back(&mut self, index: usize) -> bool {
        let job = &self.jobs[index];
        if job.attempt > 0 && job.retry_until.is_some_and(|until| until < self.now) {
            self.seen.insert("late");
            self.end_waiting(index, State::Dead);
            return true;
        }
        let Some(key) = job.key else { return false };
        let (tenant, run_at) = (job.tenant, job.run_at);
        if self.bounds.limits.per_key.is_some_and(|most| self.running_of_key(tenant, key) >= most) {
            self.seen.insert("held by its key");
            self.jobs[index].paced_until = None;
            self.wait(index, State::Blocked, run_at);
            return true;
        }
        if self.jobs[index].paced_until == Some(run_at) {
            return false;
        }
        let Some(at) = self.reserve(tenant, key) else { return false };
        self.seen.insert("paced");
        self.jobs[index].paced_until = Some(at);
        self.wait(index, State::Scheduled, at);
        true
    }

    /// A lease on a job that was just claimed. Answers when it ends.
    pub(super) fn hold(&mut self, job: usize, lease: usize, length: Duration) -> Timestamp {
        let until = (self.now + length).min(self.jobs[job].hard_end());
        self.jobs[job].held = Some(Held { lease, until, cancelled: false });
        until
    }

    pub(super) fn holds(&self, job: usize, lease: usize) -> bool {
        self.jobs[job].held.as_ref().is_some_and(|held| held.lease == lease)
    }

    /// Extends a lease that is held: when it ends, whether somebody cancelled the job, and whether its time is over.
    pub(super) fn renew(&mut self, job: usize, extend: Duration) -> (Timestamp, bool, bool) {
        let until = (self.now + extend).min(self.jobs[job].hard_end());
        let timed_out = self.now >= self.jobs[job].started_at.expect("it runs") + self.jobs[job].timeout;
        let held = self.jobs[job].held.as_mut().expect("held");
        held.until = until;
        (until, held.cancelled, timed_out)
    }

    /// Ends a run whose lease is held. Answers the state it reached.
    pub(super) fn settle(&mut self, job: usize, end: &End) -> State {
        self.finish(job, end);
        self.jobs[job].state
    }

    fn lose(&mut self, index: usize) {
        self.seen.insert("lost");
        self.jobs[index].lost += 1;
        if self.jobs[index].lost >= QueueLimits::default().poison {
            self.seen.insert("poison");
            let attempt = self.jobs[index].attempt;
            self.jobs[index].failed.push(attempt);
            self.release(index, State::Dead, None);
        } else {
            self.finish(index, &End::Retry { delay_seconds: Some(0) });
        }
    }

    fn finish(&mut self, index: usize, end: &End) {
        let (now, job) = (self.now, &mut self.jobs[index]);
        let (state, delay) = match end {
            End::Done => (State::Completed, None),
            End::Cancel => (State::Cancelled, None),
            End::Fail => (State::Failed, None),
            End::Retry { delay_seconds } => {
                let delay = delay_seconds.map_or_else(|| job.delay(), |seconds| SECOND * seconds);
                let is_late = job.retry_until.is_some_and(|until| now + delay > until);
                if job.attempt >= job.attempts || is_late {
                    (State::Dead, None)
                } else {
                    (State::Scheduled, Some(delay))
                }
            }
            End::Snooze { delay_seconds } => (State::Scheduled, Some(SECOND * *delay_seconds)),
            End::Release => (State::Scheduled, Some(Duration::ZERO)),
        };
        match end {
            End::Fail | End::Retry { .. } => job.failed.push(job.attempt),
            End::Snooze { .. } | End::Release => job.attempt -= 1,
            End::Done | End::Cancel => {}
        }
        if matches!(end, End::Release) && job.attempt == 0 {
            job.started_at = None;
        }
        self.release(index, state, delay);
    }

    /// Ends a lease and puts the job where it belongs: at its end, or in the line after a delay.
    fn release(&mut self, index: usize, state: State, delay: Option<Duration>) {
        let held = self.jobs[index].held.take().expect("held");
        match delay {
            Some(delay) if !held.cancelled => {
                let state = if delay.is_zero() { State::Pending } else { State::Scheduled };
                self.wait(index, state, self.now + delay);
            }
            _ => {
                // Somebody took it back while it ran: it does not run again.
                self.jobs[index].run_at = delay.map_or(self.jobs[index].run_at, |delay| self.now + delay);
                self.jobs[index].state = if delay.is_some() { State::Cancelled } else { state };
                self.jobs[index].finished_at = Some(self.now);
                self.ended(index);
            }
        }
        self.leave_key(index, self.jobs[index].key);
    }

    /// The state that follows, or nothing when the control is refused.
    pub(super) fn control(&mut self, index: usize, what: &What) -> Option<State> {
        let now = self.now;
        let (state, run_at) = (self.jobs[index].state, self.jobs[index].run_at);
        match (what, state) {
            (What::Redrive, State::Failed | State::Dead | State::Cancelled) => {
                if !self.redrive(index) {
                    return None;
                }
            }
            (What::Cancel, State::Scheduled | State::Pending | State::Blocked) => {
                self.end_waiting(index, State::Cancelled);
            }
            (What::Cancel, State::Processing) => self.ask_to_stop(index),
            (What::Promote, State::Scheduled) => self.put_off(index, State::Pending, now),
            (What::Promote, State::Pending) => {}
            (What::Delete, state) if state != State::Processing => self.delete(index),
            (What::Priority(priority), State::Scheduled | State::Pending | State::Blocked) => {
                let moves = *priority != self.jobs[index].priority && state == State::Pending;
                self.jobs[index].priority = *priority;
                // Its place in the line of the old priority must not be taken for the new one.
                let run_at = if moves { run_at - Duration::from_micros(1) } else { run_at };
                self.wait(index, state, run_at);
            }
            (What::Delay(seconds), State::Blocked) => self.put_off(index, state, now + SECOND * *seconds),
            (What::Delay(0), State::Pending) => {}
            (What::Delay(0), State::Scheduled) => self.put_off(index, State::Pending, now),
            (What::Delay(seconds), State::Scheduled | State::Pending) => {
                self.put_off(index, State::Scheduled, now + SECOND * *seconds);
            }
            (What::Redrive | What::Cancel | What::Promote | What::Delete | What::Priority(_) | What::Delay(_), _) => {
                return None;
            }
        }
        Some(self.jobs[index].state)
    }

    /// Somebody gave it another due time.
    fn put_off(&mut self, index: usize, state: State, run_at: Timestamp) {
        self.jobs[index].move_to(run_at);
        self.wait(index, state, run_at);
    }

    pub(super) fn ask_to_stop(&mut self, index: usize) {
        self.jobs[index].held.as_mut().expect("held").cancelled = true;
    }

    /// Runs an ended job again. Whether its unique key lets it.
    fn redrive(&mut self, index: usize) -> bool {
        if !self.retake_unique(index) {
            return false;
        }
        let waits_for = self.wait_again(index);
        let now = self.now;
        let job = &mut self.jobs[index];
        job.retry_until = job.retry_until.map(|until| now + until.since(job.created_at));
        (job.attempt, job.finished_at, job.lost, job.waits_for) = (0, None, 0, waits_for);
        (job.expires_at, job.paced_until) = (None, None);
        self.wait(index, if waits_for > 0 { State::Blocked } else { State::Pending }, now);
        self.hold_back(index);
        self.seen.insert("redriven");
        true
    }

    /// Fires a slot.
    pub(super) fn fire(
        &mut self,
        tenant: usize,
        key: u8,
        slot: Timestamp,
        overlap: Overlap,
        name: &str,
        new: &New,
    ) -> Fired {
        let known = self.slots.iter().position(|(of, ..)| *of == (tenant, key));
        let (last, last_job) = known.map_or((None, None), |at| (Some(self.slots[at].1), self.slots[at].2));
        if last.is_some_and(|last| last >= slot) {
            return Fired::Stale;
        }
        let is_unfinished =
            last_job.is_some_and(|job| !self.jobs[job].state.is_final() && !self.jobs[job].is_forgotten);
        let fired = match overlap {
            Overlap::Queue if is_unfinished => {
                self.seen.insert("waiting");
                return Fired::Waiting;
            }
            Overlap::Skip if is_unfinished => (Fired::Overlapped, last_job),
            Overlap::Skip | Overlap::Queue | Overlap::Allow => {
                let job = self.add(name, tenant, new, State::Pending);
                self.line_up(job);
                (Fired::Enqueued(crate::world::id(name)), Some(job))
            }
        };
        self.slots.retain(|(of, ..)| *of != (tenant, key));
        self.slots.push(((tenant, key), slot, fired.1));
        self.seen.insert(if fired.0 == Fired::Overlapped { "overlapped" } else { "fired" });
        fired.0
    }

    /// Other limits: keys that were full may have places now.
    pub(super) fn limit(&mut self, limits: &Limits) {
        self.bounds.limits = limits.clone();
        for (tenant, key) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
            if let Some(of) = self.jobs.iter().position(|job| job.tenant == tenant) {
                self.leave_key(of, Some(key));
            }
        }
    }

    /// A job of a key no longer runs or stands in the line: as many of those that the key holds back go on as have a place.
    pub(super) fn leave_key(&mut self, of: usize, key: Option<u8>) {
        let (tenant, Some(key)) = (self.jobs[of].tenant, key) else { return };
        let most = self.bounds.limits.per_key.unwrap_or(u32::MAX);
        let mut places = most.saturating_sub(self.running_of_key(tenant, key));
        while places > 0 {
            let is_held = |job: &Modelled| {
                (job.tenant, job.key, job.state, job.waits_for) == (tenant, Some(key), State::Blocked, 0)
                    && !job.is_forgotten
            };
            let held = (0..self.jobs.len()).filter(|job| is_held(&self.jobs[*job]));
            let Some(next) = held.min_by_key(|job| (self.jobs[*job].priority, self.jobs[*job].run_at, *job)) else {
                return;
            };
            self.unblock(next);
            places -= u32::from(self.jobs[next].state == State::Pending);
        }
    }

    pub(super) fn unblock(&mut self, job: usize) {
        let run_at = self.jobs[job].run_at;
        self.wait(job, if run_at > self.now { State::Scheduled } else { State::Pending }, run_at);
    }
}
