//! What operators see and do: lists of jobs, changes to one or many, and queues that are changed while they run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Answer, QueueLimits};
use crate::catalog::QueueSettings;
use crate::job::State;
use crate::time::optional_duration_text;
use crate::{Id, Json, TenantId, Timestamp};

/// What an operator does to a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Control {
    /// Runs a dead letter (or a cancelled job) again, with all its attempts. It takes its unique key again, waits again for those of its
    /// parents that have not ended, and its flow is unfinished again.
    Redrive,
    /// Takes it back; a running one is told at its next renewal.
    Cancel,
    /// Makes a scheduled job due now.
    Promote,
    /// Changes a job that waits.
    Change(Change),
    /// Forgets a job that does not run, with its history. Those that wait for it, and its flow, see it cancelled first.
    Delete,
}

/// What is changed about a waiting job; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// 1 (first) to 5.
    pub priority: Option<u8>,
    /// When it is due; a time that has passed means now.
    pub run_at: Option<Timestamp>,
    /// What the handler gets.
    pub data: Option<Json>,
}

/// What is done to every job that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bulk {
    /// Nothing: they are counted.
    Count,
    /// As [`Control::Redrive`].
    Redrive,
    /// As [`Control::Cancel`].
    Cancel,
    /// As [`Control::Promote`].
    Promote,
    /// As [`Control::Delete`].
    Delete,
}

impl Bulk {
    /// The most jobs that one call changes, so that other calls have their turns between.
    pub const MAX: u32 = 500;
}

/// What one call of [`Jobs::bulk`](super::Jobs::bulk) came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// How many jobs were changed, or counted.
    pub changed: u64,
    /// How many matched and could not be changed.
    pub skipped: u64,
    /// Where the next call begins, absent when all have been looked at.
    pub next: Option<String>,
}

/// Which jobs to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct JobQuery {
    /// Only this tenant's; absent for an administrator.
    pub tenant: Option<TenantId>,
    /// Only this queue.
    pub queue: Option<String>,
    /// Only this type.
    pub kind: Option<String>,
    /// Only these states; empty means all.
    pub states: Vec<State>,
    /// Only those whose data or error has this text in it, as it is written in JSON, whatever the case of its ASCII letters.
    pub text: Option<String>,
    /// Only those whose error has this text in it, likewise.
    pub error: Option<String>,
    /// Only those enqueued from this time on.
    pub from: Option<Timestamp>,
    /// Only those enqueued before this time.
    pub to: Option<Timestamp>,
    /// Only those that ended before this time, or that were enqueued before it and have not ended.
    pub untouched_since: Option<Timestamp>,
    /// Only dead letters that failed from this time on.
    pub failed_from: Option<Timestamp>,
    /// Only dead letters that failed before this time.
    pub failed_to: Option<Timestamp>,
    /// Only those that work for this user.
    pub user_id: Option<String>,
    /// Only those with this correlation id.
    pub correlation_id: Option<String>,
    /// Only members of this flow.
    pub flow: Option<Id>,
    /// Only those of this key.
    pub key: Option<String>,
    /// Only these, at most [`JobQuery::MAX`]; empty means all.
    pub ids: Vec<Id>,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// At most this many, bounded by [`JobQuery::MAX`].
    pub limit: u32,
}

impl JobQuery {
    /// The most jobs on one page.
    pub const MAX: u32 = 500;
    /// The most jobs that one page looks at. A page on which few of them match is short, or empty, and has a cursor all the same.
    pub const MAX_LOOKED_AT: u32 = 20_000;
    /// How much data the jobs may have together that one page searches for a text, flow or key; the next one goes on. An engine that keeps
    /// all in memory need not bound it.
    pub const MAX_SEARCHED_BYTES: u64 = 64 << 20;
}

/// A page of a listing.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next one begins, absent on the last.
    pub next_cursor: Option<String>,
}

/// A tenant in a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueTenant {
    /// Whose jobs.
    pub tenant: TenantId,
    /// How many are in each state.
    pub counts: BTreeMap<State, u64>,
}

/// How busy a queue was in the last five minutes, or since the start of the process. Kept in memory alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueuePace {
    /// Jobs that completed.
    pub completed_per_minute: f64,
    /// Jobs that became dead letters.
    pub failed_per_minute: f64,
    /// How long half of the runs at most waited from when they were due until they began, told up to a quarter too long; absent when none
    /// began. Waits beyond an hour are told as one.
    #[serde(with = "optional_duration_text", skip_serializing_if = "Option::is_none")]
    pub wait_p50: Option<Duration>,
    /// How long 99 of 100 runs waited at most, likewise.
    #[serde(with = "optional_duration_text", skip_serializing_if = "Option::is_none")]
    pub wait_p99: Option<Duration>,
}

/// Queues: what was changed about them while they ran, and what waits in them.
pub trait Queues: Send + Sync {
    /// What was changed about each queue, kept over restarts. Apply it with [`QueueSettings::over`].
    fn queue_settings(&self) -> Answer<'_, BTreeMap<Arc<str>, QueueSettings>>;
    /// Applies a merge patch (RFC 7386) to the settings of a queue, keeps them, and enforces them over `declared`, what the catalog
    /// says, from now on. Answers the settings. Code `queue.invalid_settings`, and then nothing is changed.
    fn patch_queue(&self, queue: &str, declared: QueueLimits, patch: Json) -> Answer<'_, QueueSettings>;
    /// Since when the oldest pending job of each queue has been due, of one tenant or of all. It is told from the heads of the lines
    /// that are in memory: a line from which nothing was claimed since the start is not known, and a job that was taken back may
    /// still count while it is the first of its line.
    fn oldest_pending(&self, tenant: Option<&TenantId>) -> Answer<'_, BTreeMap<Arc<str>, Timestamp>>;
    /// How busy a queue is, over all tenants.
    fn queue_pace(&self, queue: &str) -> Answer<'_, QueuePace>;
    /// The tenants with the most waiting jobs in a queue, the first first, at most `limit`.
    fn queue_tenants(&self, queue: &str, limit: u32) -> Answer<'_, Vec<QueueTenant>>;
}
