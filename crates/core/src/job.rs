//! The job state machine: states, verdicts and the one function that says what follows from a verdict.
//!
//! ```text
//!             enqueue                 due, retry due
//!   ──► scheduled ───────────────► pending ◄──────────── lease lost, released
//!          ▲                          │ claim: attempt + 1
//!          │ retry, snooze            ▼
//!          └────────────────────── processing ──► completed · failed · dead · cancelled
//!
//!   blocked ──► pending when the jobs it waits for have ended, or a place of its key is free
//! ```
//!
//! `attempt` counts the runs that have begun, the running one included. A snoozed or released run is given back.

mod rare;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use rare::{Conflict, OnConflict, OnFailure, Rare, States, Unique};

use crate::retry::Backoff;
use crate::time::duration_text;
use crate::{Error, Id, Json, Result, TenantId, Timestamp};

/// Where a job is in its life. The numbers are stored and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum State {
    /// Due later: a delay, a run time, or waiting for its retry.
    Scheduled = 0,
    /// Due, waiting for a worker.
    Pending = 1,
    /// Leased by a worker.
    Processing = 2,
    /// Waits for other jobs: those it follows, or those of its key that run.
    Blocked = 3,
    /// Done; the result is kept as long as the queue says.
    Completed = 4,
    /// Ended by an error that no retry can mend. A dead letter.
    Failed = 5,
    /// Ended because its attempts were used up. A dead letter.
    Dead = 6,
    /// Taken back.
    Cancelled = 7,
}

impl State {
    /// Every state, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Pending,
        Self::Processing,
        Self::Blocked,
        Self::Completed,
        Self::Failed,
        Self::Dead,
        Self::Cancelled,
    ];

    /// Whether nothing more happens to the job by itself.
    pub fn is_final(self) -> bool {
        self >= Self::Completed
    }

    /// Whether the job is kept for re-drive.
    pub fn is_dead_letter(self) -> bool {
        matches!(self, Self::Failed | Self::Dead)
    }

    /// The state with this stored number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The word of the glossary.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Blocked => "blocked",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            Error::invalid("job.unknown_state", format!("state: expected one of {all}, got {text:?}"))
        })
    }
}

/// A job as it is stored.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// Whose job it is.
    pub tenant: TenantId,
    /// Its id, unique in the tenant.
    pub id: Id,
    /// Its type, as the catalog spells it.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// The queue it waits in.
    pub queue: Arc<str>,
    /// Where it is in its life.
    pub state: State,
    /// 1 (first) to 5.
    pub priority: u8,
    /// What the handler gets.
    pub data: Json,
    /// Runs that have begun.
    pub attempt: u16,
    /// Runs it may have.
    pub attempts: u16,
    /// The waiting times between them.
    pub backoff: Backoff,
    /// The longest run.
    #[serde(with = "duration_text")]
    pub timeout: Duration,
    /// When it was enqueued.
    pub created_at: Timestamp,
    /// When it is or was due.
    pub run_at: Timestamp,
    /// When its last run began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it reached a final state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// What the handler returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// The last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<str>>,
    /// The user it works for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<Box<str>>,
    /// What the caller groups it with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<Box<str>>,
    /// The event, job or schedule slot that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Box<str>>,
    /// How many causes lie between it and the outside.
    #[serde(skip)]
    pub depth: u8,
    /// What few jobs have.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub rare: Option<Box<Rare>>,
    /// Who runs it. Only in what a store shows of a job that is processing.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub held: Option<Box<Held>>,
}

/// Who runs a job at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// What the worker calls itself.
    pub worker: Arc<str>,
    /// When its lease ends unless it is renewed; absent for a handler in the server's own process, which has it as long as that lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<Timestamp>,
    /// Whether somebody asked to cancel the run.
    pub cancel_requested: bool,
}

impl Job {
    /// The rare part, which is there from now on.
    pub fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// The key that it shares the limits of its queue's keys with.
    pub fn key(&self) -> Option<&str> {
        self.rare.as_ref()?.key.as_deref()
    }

    /// Puts its due time elsewhere. What it has until its first run begins moves with it.
    pub fn move_to(&mut self, run_at: Timestamp) {
        let paced = |rare: &&mut Box<Rare>| rare.paced_until == Some(self.run_at);
        let rare = self.rare.as_mut().filter(|rare| !paced(rare));
        if let Some(expires_at) = rare.and_then(|rare| rare.expires_at.as_mut()) {
            *expires_at = run_at + expires_at.since(self.run_at);
        }
        self.run_at = run_at;
    }

    /// When it is taken back if it has not begun by then.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.rare.as_ref()?.expires_at
    }
}

/// A line that a run wrote to its job's log.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// When it was written.
    pub time: Timestamp,
    /// During which run.
    pub attempt: u16,
    /// What it says, at most [`MAX_LOG_BYTES`].
    pub text: Box<str>,
}

/// The most lines that are kept with a job; older ones go.
pub const MAX_LOG_LINES: usize = 1_000;
/// The longest line of a job's log, in bytes.
pub const MAX_LOG_BYTES: usize = 2 * 1024;
/// The largest progress of a job, in bytes.
pub const MAX_PROGRESS_BYTES: usize = 4 * 1024;

/// The most failed runs that are kept with a job; older ones go.
pub const MAX_FAILED_ATTEMPTS: usize = 100;
/// The longest error text that is kept with a job, in bytes.
pub const MAX_ERROR_BYTES: usize = 8 * 1024;

/// One run that did not end in `completed`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedAttempt {
    /// Which run, 1 is the first.
    pub attempt: u16,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Why it ended.
    pub error: Box<str>,
    /// Who ran it.
    pub worker: Box<str>,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is done; processing -> completed.
    Done {
        /// What is kept as the job's result.
        result: Option<Json>,
    },
    /// It failed and may work later; processing -> scheduled while attempts are left, else dead.
    Retry {
        /// What went wrong.
        error: String,
        /// Instead of the job's backoff.
        delay: Option<Duration>,
    },
    /// It failed and will always fail; processing -> failed.
    Fail {
        /// What went wrong.
        error: String,
    },
    /// Not now; processing -> scheduled, the attempt is given back.
    Snooze {
        /// How long to wait.
        delay: Duration,
    },
    /// The worker stops and hands it back; processing -> pending, the attempt is given back.
    Release,
    /// It is no longer wanted; processing -> cancelled.
    Cancel,
}

/// What a verdict does to a running job.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The state it goes to.
    pub state: State,
    /// The runs that count from now on.
    pub attempt: u16,
    /// When it is due again, for `scheduled` and `pending`.
    pub run_at: Option<Timestamp>,
    /// The result to keep.
    pub result: Option<Json>,
    /// The error to keep.
    pub error: Option<Box<str>>,
    /// Whether a worker was lost with it.
    pub is_loss: bool,
    /// Whether it is as if the job had never begun.
    pub is_undone: bool,
}

/// What decides the fate of a running job.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The number of this run, 1 is the first.
    pub attempt: u16,
    /// Runs it may have.
    pub attempts: u16,
    /// The waiting times between them.
    pub backoff: &'a Backoff,
    /// No run begins after this.
    pub retry_until: Option<Timestamp>,
    /// How many workers were lost with it before this run.
    pub lost: u16,
}

impl<'a> Run<'a> {
    /// The present run of `job`.
    pub fn of(job: &'a Job) -> Self {
        let rare = job.rare.as_deref();
        Self {
            attempt: job.attempt,
            attempts: job.attempts,
            backoff: &job.backoff,
            retry_until: rare.and_then(|rare| rare.retry_until),
            lost: rare.map_or(0, |rare| rare.lost),
        }
    }

    /// What follows from `verdict` at `now`. `random` is 64 random bits for the jitter.
    pub fn settle(&self, verdict: Verdict, now: Timestamp, random: u64) -> Outcome {
        let outcome = |state, attempt| Outcome {
            state,
            attempt,
            run_at: None,
            result: None,
            error: None,
            is_loss: false,
            is_undone: false,
        };
        match verdict {
            Verdict::Done { result } => Outcome { result, ..outcome(State::Completed, self.attempt) },
            Verdict::Fail { error } => Outcome { error: Some(cut(error)), ..outcome(State::Failed, self.attempt) },
            Verdict::Cancel => outcome(State::Cancelled, self.attempt),
            Verdict::Retry { error, .. } if self.attempt >= self.attempts => {
                Outcome { error: Some(cut(error)), ..outcome(State::Dead, self.attempt) }
            }
            Verdict::Retry { error, delay } => {
                let delay = delay.unwrap_or_else(|| self.backoff.delay(self.attempt, random));
                if self.retry_until.is_some_and(|until| now + delay > until) {
                    let error = format!("{error} (no retry may begin any more: retryFor has passed)");
                    return Outcome { error: Some(cut(error)), ..outcome(State::Dead, self.attempt) };
                }
                Outcome { error: Some(cut(error)), ..Self::wait(delay, self.attempt, now) }
            }
            Verdict::Snooze { delay } => Self::wait(delay, self.attempt.saturating_sub(1), now),
            Verdict::Release => {
                let is_undone = self.attempt <= 1;
                Outcome { is_undone, ..Self::wait(Duration::ZERO, self.attempt.saturating_sub(1), now) }
            }
        }
    }

    /// What follows when the worker was lost: the run counts, and the job is due at once while it has runs left. A job that has
    /// taken `poison` workers with it is dead whatever it has left: it may be what ends them.
    pub fn lose(&self, error: String, now: Timestamp, poison: u16) -> Outcome {
        let outcome = if self.lost + 1 >= poison {
            let error = format!("{error}; {poison} workers were lost with this job, so it is not given to another");
            Outcome { state: State::Dead, ..self.settle(Verdict::Fail { error }, now, 0) }
        } else {
            self.settle(Verdict::Retry { error, delay: Some(Duration::ZERO) }, now, 0)
        };
        Outcome { is_loss: true, ..outcome }
    }

    fn wait(delay: Duration, attempt: u16, now: Timestamp) -> Outcome {
        let state = if delay.is_zero() { State::Pending } else { State::Scheduled };
        let run_at = Some(now + delay);
        Outcome { state, attempt, run_at, result: None, error: None, is_loss: false, is_undone: false }
    }
}

/// Cuts an error text to [`MAX_ERROR_BYTES`] at a character boundary.
fn cut(mut error: String) -> Box<str> {
    error.truncate(error.floor_char_boundary(MAX_ERROR_BYTES));
    error.into_boxed_str()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    static BACKOFF: LazyLock<Backoff> = LazyLock::new(Backoff::default);

    fn run(attempt: u16) -> Run<'static> {
        Run { attempt, attempts: 3, backoff: &BACKOFF, retry_until: None, lost: 0 }
    }

    fn retry() -> Verdict {
        Verdict::Retry { error: "boom".to_owned(), delay: None }
    }

    #[test]
    fn a_job_runs_exactly_as_often_as_it_may() {
        assert_eq!(run(1).settle(retry(), NOW, 0).state, State::Scheduled);
        assert_eq!(run(2).settle(retry(), NOW, 0).state, State::Scheduled);
        let last = run(3).settle(retry(), NOW, 0);
        assert_eq!((last.state, last.attempt, last.run_at), (State::Dead, 3, None));
    }

    #[test]
    fn a_retry_waits_its_backoff_or_what_the_handler_says() {
        assert_eq!(run(2).settle(retry(), NOW, 0).run_at, Some(NOW + Duration::from_secs(2)));
        let told = Verdict::Retry { error: String::new(), delay: Some(Duration::from_secs(9)) };
        assert_eq!(run(2).settle(told, NOW, 0).run_at, Some(NOW + Duration::from_secs(9)));
    }

    #[test]
    fn snooze_and_release_give_the_attempt_back() {
        let snoozed = run(3).settle(Verdict::Snooze { delay: Duration::from_secs(5) }, NOW, 0);
        assert_eq!((snoozed.state, snoozed.attempt), (State::Scheduled, 2));
        let released = run(1).settle(Verdict::Release, NOW, 0);
        assert_eq!((released.state, released.attempt, released.run_at), (State::Pending, 0, Some(NOW)));
    }

    #[test]
    fn a_lost_worker_costs_an_attempt() {
        assert_eq!(run(1).lose("lost".to_owned(), NOW, 9).state, State::Pending);
        assert_eq!(run(3).lose("lost".to_owned(), NOW, 9).state, State::Dead);
    }

    #[test]
    fn a_job_that_takes_its_workers_with_it_is_dead_before_its_attempts_are_used_up() {
        let many = |lost| Run { attempts: 100, lost, ..run(2) };
        assert_eq!(many(1).lose("lost".to_owned(), NOW, 3).state, State::Pending);
        let dead = many(2).lose("lost".to_owned(), NOW, 3);
        assert_eq!(dead.state, State::Dead);
        assert!(dead.error.expect("why").contains("3 workers were lost"));
    }

    #[test]
    fn no_retry_begins_after_the_time_for_retries() {
        let until = |seconds| Run { retry_until: Some(NOW + Duration::from_secs(seconds)), ..run(2) };
        assert_eq!(until(2).settle(retry(), NOW, 0).state, State::Scheduled);
        assert_eq!(until(1).settle(retry(), NOW, 0).state, State::Dead);
    }

    #[test]
    fn a_failure_is_final_at_once_and_its_text_is_bounded() {
        let failed = run(1).settle(Verdict::Fail { error: "é".repeat(10_000) }, NOW, 0);
        assert_eq!(failed.state, State::Failed);
        assert!(failed.error.expect("error").len() <= MAX_ERROR_BYTES);
    }

    #[test]
    fn states_read_as_written_and_keep_their_numbers() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
            assert_eq!(State::from_number(number as u8), Some(state));
            assert_eq!(state.as_str().parse::<State>().expect("state"), state);
        }
        assert_eq!("active".parse::<State>().expect_err("unknown").code(), "job.unknown_state");
    }
}
