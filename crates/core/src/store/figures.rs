//! What a store can be asked about itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::measure::Distribution;

/// What a store has counted since it was opened, and what it holds now.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Commits that were written, those of job handlers and schedules not counted.
    pub commits: u64,
    /// Events that were written.
    pub events: u64,
    /// Transactions: each holds all calls that waited.
    pub turns: u64,
    /// Calls that those transactions took.
    pub calls: u64,
    /// Calls refused because too many waited, code `store.busy`.
    pub refused: u64,
    /// Calls that wait now.
    pub waiting: u64,
    /// How long each transaction took, from the moment its calls were taken until it was committed.
    pub turn: Distribution,
    /// How much of that its end took: the write to the log file and the sync.
    pub sync: Distribution,
    /// Tenants with an event.
    pub logs: u64,
    /// Events in all logs now.
    pub log_events: u64,
    /// Bytes of the database and its write-ahead log on the disk; nothing when there is no disk.
    pub bytes: Option<u64>,
    /// Jobs in the hands of workers now.
    pub leases: u64,
    /// Each queue that had a job since the store was opened.
    pub queues: BTreeMap<Arc<str>, QueueFigures>,
}

/// What has happened in a queue since the store was opened.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueFigures {
    /// Jobs that were enqueued, those not counted that were merged into another or known by their id.
    pub enqueued: u64,
    /// Runs that began.
    pub started: u64,
    /// Runs after which the job was completed.
    pub completed: u64,
    /// Runs that failed and are followed by another.
    pub retried: u64,
    /// Runs that failed for good: an error that no retry mends.
    pub failed: u64,
    /// Runs that failed and were the last.
    pub dead: u64,
    /// Runs of jobs that were cancelled meanwhile.
    pub cancelled: u64,
    /// Runs that were given back without an error: snoozed, or handed back at a stop.
    pub returned: u64,
    /// Of all these, runs whose worker was lost: it did not renew its lease.
    pub lost: u64,
    /// How long jobs waited from when they were due until a run began.
    pub wait: Distribution,
    /// How long runs took.
    pub run: Distribution,
}
