//! What the writer counts. It alone adds; anybody may read, at any time and without waiting for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidewire_core::Timestamp;
use tidewire_core::job::{Job, State};
use tidewire_core::measure::{Counter, Histogram, LONG, SHORT};
use tidewire_core::store::{Figures, QueueFigures};

use crate::answer::Pending;
use crate::pace::Paces;
use crate::rows::NameId;

/// The numbers themselves.
pub(crate) struct Meter {
    commits: Counter,
    events: Counter,
    turns: Counter,
    calls: Counter,
    leases: Counter,
    turn: Histogram,
    sync: Histogram,
    queues: Mutex<BTreeMap<Arc<str>, Arc<QueueMeter>>>,
}

struct QueueMeter {
    enqueued: Counter,
    started: Counter,
    completed: Counter,
    retried: Counter,
    failed: Counter,
    dead: Counter,
    cancelled: Counter,
    returned: Counter,
    lost: Counter,
    wait: Histogram,
    run: Histogram,
}

impl Meter {
    fn new() -> Self {
        Self {
            commits: Counter::default(),
            events: Counter::default(),
            turns: Counter::default(),
            calls: Counter::default(),
            leases: Counter::default(),
            turn: Histogram::new(SHORT),
            sync: Histogram::new(SHORT),
            queues: Mutex::default(),
        }
    }

    /// What was counted until now. What only the inbox and the rows know is left at 0.
    pub(crate) fn figures(&self) -> Figures {
        let queues = self.queues.lock().iter().map(|(name, queue)| (name.clone(), queue.figures())).collect();
        Figures {
            commits: self.commits.get(),
            events: self.events.get(),
            turns: self.turns.get(),
            calls: self.calls.get(),
            leases: self.leases.get(),
            turn: self.turn.get(),
            sync: self.sync.get(),
            queues,
            ..Figures::default()
        }
    }
}

impl QueueMeter {
    fn new() -> Self {
        Self {
            enqueued: Counter::default(),
            started: Counter::default(),
            completed: Counter::default(),
            retried: Counter::default(),
            failed: Counter::default(),
            dead: Counter::default(),
            cancelled: Counter::default(),
            returned: Counter::default(),
            lost: Counter::default(),
            wait: Histogram::new(LONG),
            run: Histogram::new(LONG),
        }
    }

    fn figures(&self) -> QueueFigures {
        QueueFigures {
            enqueued: self.enqueued.get(),
            started: self.started.get(),
            completed: self.completed.get(),
            retried: self.retried.get(),
            failed: self.failed.get(),
            dead: self.dead.get(),
            cancelled: self.cancelled.get(),
            returned: self.returned.get(),
            lost: self.lost.get(),
            wait: self.wait.get(),
            run: self.run.get(),
        }
    }
}

/// The writer's hand on the meter.
pub(crate) struct Metering {
    pub(crate) meter: Arc<Meter>,
    /// The queues by number. There are few, so they are searched through.
    queues: Vec<(NameId, Arc<QueueMeter>)>,
    /// Of the last minutes alone.
    pub(crate) paces: Paces,
}

impl Default for Metering {
    fn default() -> Self {
        Self { meter: Arc::new(Meter::new()), queues: Vec::new(), paces: Paces::default() }
    }
}

impl Metering {
    /// A turn has been committed: when its calls were taken, how many they were, when its end began.
    pub(crate) fn turned(&self, begun: Instant, calls: usize, ending: Instant, answers: &[Pending], events: usize) {
        let (meter, now) = (&self.meter, Instant::now());
        meter.turns.up();
        meter.calls.add(calls as u64);
        meter.turn.observe(now - begun);
        meter.sync.observe(now - ending);
        meter.events.add(events as u64);
        meter
            .commits
            .add(answers.iter().filter(|answer| matches!(answer, Pending::Committed(_, Ok(_)))).count() as u64);
    }

    /// So many leases are held.
    pub(crate) fn leases(&self, held: usize) {
        self.meter.leases.set(held as u64);
    }

    /// A job was enqueued.
    pub(crate) fn enqueued(&mut self, queue: NameId, name: &Arc<str>) {
        self.queue(queue, name).enqueued.up();
    }

    /// A run begins.
    pub(crate) fn started(&mut self, queue: NameId, job: &Job, now: Timestamp) {
        let wait = now.since(job.run_at);
        self.paces.began(queue, wait, now);
        let metered = self.queue(queue, &job.queue);
        metered.started.up();
        metered.wait.observe(wait);
    }

    /// A run has ended; `job` is as it is now.
    pub(crate) fn ended(&mut self, queue: NameId, job: &Job, has_failed: bool, is_loss: bool, now: Timestamp) {
        self.paces.ended(queue, job.state, now);
        let metered = self.queue(queue, &job.queue);
        match job.state {
            State::Completed => metered.completed.up(),
            State::Failed => metered.failed.up(),
            State::Dead => metered.dead.up(),
            State::Cancelled => metered.cancelled.up(),
            State::Scheduled | State::Pending | State::Blocked | State::Processing if has_failed => {
                metered.retried.up()
            }
            State::Scheduled | State::Pending | State::Blocked | State::Processing => metered.returned.up(),
        }
        if is_loss {
            metered.lost.up();
        }
        metered.run.observe(job.started_at.map_or(Duration::ZERO, |began| now.since(began)));
    }

    fn queue(&mut self, queue: NameId, name: &Arc<str>) -> &QueueMeter {
        let at = match self.queues.iter().position(|(known, _)| *known == queue) {
            Some(at) => at,
            None => {
                let metered =
                    self.meter.queues.lock().entry(name.clone()).or_insert_with(|| Arc::new(QueueMeter::new())).clone();
                self.queues.push((queue, metered));
                self.queues.len() - 1
            }
        };
        &self.queues[at].1
    }
}
