//! A schedule that was made at run time, and what a store knows of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Missed, Overlap, Timing};
use crate::{Id, Json, TenantId, Timestamp};

/// The smallest step of a timestamp.
const TICK: std::time::Duration = std::time::Duration::from_micros(1);

/// What a schedule that was made at run time does and when. Checked by the expansion; a store keeps it as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// The job type that each slot enqueues.
    pub job: Arc<str>,
    /// The data of the job.
    pub data: Json,
    /// When.
    pub timing: Timing,
    /// What happens to slots that passed while nothing ran.
    pub missed: Missed,
    /// What happens when the job of the slot before is unfinished.
    pub overlap: Overlap,
    /// No slot is earlier.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub start: Option<Timestamp>,
    /// No slot is later.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end: Option<Timestamp>,
    /// It ends with so many runs, at least 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit: Option<u64>,
}

/// How far a schedule of the catalog has got.
#[derive(Clone, Debug, PartialEq)]
pub struct Reached {
    /// The last slot that fired or was passed over.
    pub last: Timestamp,
    /// The job of the last slot that ran.
    pub last_job: Option<Id>,
    /// How many jobs its slots have enqueued.
    pub runs: u64,
}

impl Spec {
    /// The first slot strictly after `after` and within start and end; `None` when there is none.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let after = self.start.map_or(after, |start| after.max(start - TICK));
        self.timing.next_after(after).filter(|slot| self.end.is_none_or(|end| *slot <= end))
    }

    /// Whether both have the same slots, their limits aside.
    pub fn has_slots_of(&self, other: &Self) -> bool {
        (&self.timing, self.start, self.end) == (&other.timing, other.start, other.end)
    }

    /// Whether so many runs are all it may have.
    pub fn is_used_up(&self, runs: u64) -> bool {
        self.limit.is_some_and(|limit| runs >= limit)
    }
}

/// A schedule of a tenant, or of one of its users, as a store has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name, 1 to 128 printable characters; unique with the user.
    pub key: Arc<str>,
    /// The user it belongs to.
    pub user_id: Option<Box<str>>,
    /// What it does and when.
    pub spec: Spec,
    /// Whether it fires nothing until somebody resumes it. Slots that pass meanwhile are passed over.
    pub paused: bool,
    /// Why it was paused by itself.
    pub error: Option<Box<str>>,
    /// Grows with every change; a slot fires only for the revision that it was planned for.
    pub revision: u64,
    /// How many jobs its slots have enqueued since its timing was set.
    pub runs: u64,
    /// The last slot that fired or was passed over.
    pub last: Option<Timestamp>,
    /// The job of the last slot that ran.
    pub last_job: Option<Id>,
    /// The next slot; absent when it is paused or has ended.
    pub next: Option<Timestamp>,
    /// Whether the next slot was on time and waits for the job of the slot before.
    pub is_waiting: bool,
    /// When it was first put.
    pub created_at: Timestamp,
}

impl Stored {
    /// `active`, `paused`, or `ended` when it has no further slot. An ended one stays listed until it is deleted or put again.
    pub fn state(&self) -> &'static str {
        match self.next {
            Some(_) => "active",
            None if self.paused => "paused",
            None => "ended",
        }
    }

    /// The next slots, at most `count` and no more than its limit allows.
    pub fn next_slots(&self, count: usize) -> Vec<Timestamp> {
        let left = self.spec.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.runs));
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(count);
        std::iter::successors(self.next, |slot| self.spec.next_after(*slot)).take(count).collect()
    }

    /// What its jobs name as their cause: `KEY@TIME`, or `KEY/USER@TIME`.
    pub fn cause(&self, slot: Timestamp) -> String {
        match &self.user_id {
            Some(user) => format!("{}/{user}@{slot}", self.key),
            None => format!("{}@{slot}", self.key),
        }
    }
}
