//! The model: what the contracts say of jobs, leases and positions, without engines, transactions or windows.

use std::collections::BTreeMap;
use std::time::Duration;

use tidewire_core::Timestamp;
use tidewire_core::job::State;
use tidewire_core::store::Control;

use super::{End, NewEvent, NewJob};
use crate::world::{BACKOFF, SECOND};

/// The most jobs that run at once.
pub(super) const GLOBAL: usize = 5;

#[derive(Default)]
pub(super) struct Machine {
    pub(super) now: Timestamp,
    /// In order of arrival.
    pub(super) jobs: Vec<Modelled>,
    pub(super) heads: [u64; 2],
    versions: BTreeMap<(usize, u8), u64>,
    /// Position of each event with a given id.
    events: BTreeMap<(usize, u8), u64>,
    given_jobs: BTreeMap<(usize, u8), usize>,
}

pub(super) struct Modelled {
    pub(super) tenant: usize,
    pub(super) name: String,
    pub(super) kind: usize,
    pub(super) priority: u8,
    pub(super) state: State,
    pub(super) attempt: u16,
    pub(super) attempts: u16,
    pub(super) run_at: Timestamp,
    /// The number of every run that failed.
    pub(super) failed: Vec<u16>,
    held: Option<Held>,
}

#[derive(Clone)]
struct Held {
    lease: usize,
    until: Timestamp,
    local: bool,
    cancelled: bool,
}

/// What became of one event or job of a commit.
#[derive(Debug, PartialEq)]
pub(super) enum Written {
    Event { position: u64, deduplicated: bool },
    Job { name: String, state: State, deduplicated: bool },
}

impl Machine {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, ..Self::default() }
    }

    /// Whether every expected version holds. What is known already expects nothing.
    pub(super) fn allows(&self, tenant: usize, events: &[NewEvent]) -> bool {
        let mut known = self.events.clone();
        events.iter().all(|event| {
            let is_new = event.given.is_none_or(|given| known.insert((tenant, given), 0).is_none());
            !is_new || event.stream.is_none() || event.expects.is_none_or(|off| off == 0)
        })
    }

    /// The version that `event` expects, `before` being the events before it in the same commit.
    pub(super) fn expected(&self, tenant: usize, before: &[NewEvent], event: &NewEvent) -> Option<u64> {
        let (stream, off) = (event.stream?, event.expects?);
        let mut known = self.events.clone();
        let mut version = self.versions.get(&(tenant, stream)).copied().unwrap_or_default();
        for event in before {
            let is_new = event.given.is_none_or(|given| known.insert((tenant, given), 0).is_none());
            version += u64::from(is_new && event.stream == Some(stream));
        }
        Some(version + off)
    }

    pub(super) fn append(&mut self, tenant: usize, events: &[NewEvent]) -> Vec<Written> {
        let append = |event: &NewEvent| {
            let known = event.given.and_then(|given| self.events.get(&(tenant, given)));
            if let Some(position) = known {
                return Written::Event { position: *position, deduplicated: true };
            }
            self.heads[tenant] += 1;
            let position = self.heads[tenant];
            if let Some(given) = event.given {
                self.events.insert((tenant, given), position);
            }
            if let Some(stream) = event.stream {
                *self.versions.entry((tenant, stream)).or_default() += 1;
            }
            Written::Event { position, deduplicated: false }
        };
        events.iter().map(append).collect()
    }

    pub(super) fn enqueue(&mut self, tenant: usize, job: &NewJob) -> Written {
        if let Some(known) = job.given.and_then(|given| self.given_jobs.get(&(tenant, given))) {
            let known = &self.jobs[*known];
            return Written::Job { name: known.name.clone(), state: known.state, deduplicated: true };
        }
        let index = self.jobs.len();
        let name = match job.given {
            Some(given) => format!("given-{given}"),
            None => format!("job-{index}"),
        };
        if let Some(given) = job.given {
            self.given_jobs.insert((tenant, given), index);
        }
        let state = if job.delay_seconds == 0 { State::Pending } else { State::Scheduled };
        self.jobs.push(Modelled {
            tenant,
            name: name.clone(),
            kind: job.kind,
            priority: job.priority,
            state,
            attempt: 0,
            attempts: job.attempts,
            run_at: self.now + SECOND * job.delay_seconds,
            failed: Vec::new(),
            held: None,
        });
        Written::Job { name, state, deduplicated: false }
    }

    /// What a turn of the writer does by itself.
    pub(super) fn tick(&mut self) {
        let now = self.now;
        for job in &mut self.jobs {
            if job.held.as_ref().is_some_and(|held| !held.local && held.until <= now) {
                job.lose(now);
            }
            if job.state == State::Scheduled && job.run_at <= now {
                job.state = State::Pending;
            }
        }
    }

    /// The jobs that a claim may get, first of all first, and how many of them.
    pub(super) fn claimable(&self, tenant: Option<usize>, kind: Option<usize>, max: u32) -> (Vec<usize>, usize) {
        let wanted = |job: &Modelled| {
            job.state == State::Pending
                && tenant.is_none_or(|tenant| tenant == job.tenant)
                && kind.is_none_or(|kind| kind == job.kind)
        };
        let mut jobs: Vec<usize> = (0..self.jobs.len()).filter(|index| wanted(&self.jobs[*index])).collect();
        jobs.sort_by_key(|index| (self.jobs[*index].priority, self.jobs[*index].run_at, *index));
        let running = self.jobs.iter().filter(|job| job.state == State::Processing).count();
        let count = jobs.len().min(max as usize).min(GLOBAL - running);
        (jobs, count)
    }

    pub(super) fn lease(&mut self, index: usize, lease: usize, until: Timestamp, local: bool) {
        let job = &mut self.jobs[index];
        job.state = State::Processing;
        job.attempt += 1;
        job.held = Some(Held { lease, until, local, cancelled: false });
    }

    /// Whether a lease is still held on a job.
    pub(super) fn holds(&self, index: usize, lease: usize) -> bool {
        self.jobs[index].held.as_ref().is_some_and(|held| held.lease == lease)
    }

    /// Ends a run whose lease is held. Answers the state it reached.
    pub(super) fn settle(&mut self, index: usize, end: &End) -> State {
        let now = self.now;
        let job = &mut self.jobs[index];
        match end {
            End::Done { .. } => job.end(State::Completed),
            End::Cancel => job.end(State::Cancelled),
            End::Fail => {
                job.failed.push(job.attempt);
                job.end(State::Failed);
            }
            End::Retry { delay_seconds } => job.retry(now, delay_seconds.map_or(BACKOFF, |seconds| SECOND * seconds)),
            End::Snooze { delay_seconds } => {
                job.attempt -= 1;
                job.wait(now, SECOND * *delay_seconds);
            }
            End::Release => {
                job.attempt -= 1;
                job.wait(now, Duration::ZERO);
            }
        }
        job.state
    }

    /// Extends a lease that is held. Answers whether the job is cancelled.
    pub(super) fn renew(&mut self, index: usize, until: Timestamp) -> bool {
        let held = self.jobs[index].held.as_mut().expect("held");
        held.until = until;
        held.cancelled
    }

    /// Answers the state that follows, or nothing when the control is refused.
    pub(super) fn control(&mut self, index: usize, control: Control) -> Option<State> {
        let now = self.now;
        let job = &mut self.jobs[index];
        match (control, job.state) {
            (Control::Redrive, State::Failed | State::Dead | State::Cancelled) => {
                job.attempt = 0;
                job.wait(now, Duration::ZERO);
            }
            (Control::Cancel, State::Scheduled | State::Pending) => job.end(State::Cancelled),
            (Control::Cancel, State::Processing) => job.held.as_mut().expect("held").cancelled = true,
            (Control::Promote, State::Scheduled) => job.wait(now, Duration::ZERO),
            (Control::Promote, State::Pending) => {}
            (Control::Redrive | Control::Cancel | Control::Promote | Control::Change(_) | Control::Delete, _) => {
                return None;
            }
        }
        Some(job.state)
    }

    /// The leases that end with the process, by job.
    pub(super) fn local(&self) -> Vec<(usize, usize)> {
        let held = self.jobs.iter().enumerate().filter_map(|(index, job)| Some((index, job.held.as_ref()?)));
        held.filter(|(_, held)| held.local).map(|(index, held)| (index, held.lease)).collect()
    }

    /// What the end of the process does.
    pub(super) fn kill(&mut self) {
        for (index, _) in self.local() {
            self.jobs[index].lose(self.now);
        }
    }
}

impl Modelled {
    fn lose(&mut self, now: Timestamp) {
        self.retry(now, Duration::ZERO);
    }

    fn retry(&mut self, now: Timestamp, delay: Duration) {
        self.failed.push(self.attempt);
        if self.attempt >= self.attempts {
            self.end(State::Dead);
        } else {
            self.wait(now, delay);
        }
    }

    fn wait(&mut self, now: Timestamp, delay: Duration) {
        if self.held.take().is_some_and(|held| held.cancelled) {
            self.state = State::Cancelled;
            return;
        }
        self.state = if delay.is_zero() { State::Pending } else { State::Scheduled };
        self.run_at = now + delay;
    }

    fn end(&mut self, state: State) {
        self.state = state;
        self.held = None;
    }
}
