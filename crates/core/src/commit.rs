//! The commit: what a caller asks for, what is written, and the expansion that leads from one to the other.
//!
//! Expansion happens before anything is written. It checks every event and job against the catalog, resolves rooms, and applies rules
//! and durable handlers, so that everything an event causes is part of the same commit.

mod expand;
mod schedules;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use expand::cycle;
pub use expand::{Expander, Expansion, Origin, Subscription, publication, rule_job};
pub use schedules::{NewSchedule, ScheduleWrite, Scheduled};

use crate::event::{Ephemeral, Position};
use crate::job::{Conflict, OnConflict, OnFailure, Rare, State, States};
use crate::retry::Backoff;
use crate::time::duration_or_millis;
use crate::{Id, Json, TenantId, Timestamp};

/// The most events and jobs that one commit may hold, expansion included.
pub const MAX_OPS: usize = 20_000;
/// The longest text of an event or job beside its data, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 256;
/// The most jobs that one job may name to wait for. The last job of a flow waits for all the others.
pub(crate) const MAX_AFTER: usize = 1_000;
/// The largest data of one event or job, in bytes.
pub const MAX_DATA_BYTES: usize = 256 * 1024;
/// How many causes may follow from each other before the chain is cut: event -> job -> event -> …
pub const MAX_DEPTH: u8 = 16;
/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_TTL: Duration = Duration::from_secs(24 * 3600);

/// An event as a caller asks for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewEvent {
    /// The tenant, where the caller names it here. Expansion refuses any other than the commit's.
    #[serde(default)]
    pub tenant: Option<TenantId>,
    /// Its type, declared in the catalog.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says. Default `{}`.
    #[serde(default = "Json::empty_object")]
    pub data: Json,
    /// Values for room templates that are not in the data.
    #[serde(default)]
    pub params: BTreeMap<String, ParamValue>,
    /// The caller's id; the same id again is the same event.
    #[serde(default)]
    pub id: Option<Id>,
    /// The user it concerns.
    #[serde(default)]
    pub user_id: Option<String>,
    /// What it belongs to.
    #[serde(default)]
    pub correlation_id: Option<String>,
    /// What caused it.
    #[serde(default)]
    pub causation_id: Option<String>,
    /// The aggregate stream; default: the catalog's template.
    #[serde(default)]
    pub stream: Option<String>,
    /// The version that the stream must have before; 0 for a new one.
    #[serde(default)]
    pub expected_version: Option<u64>,
}

impl NewEvent {
    /// An event of `kind` that says `data`.
    pub fn new(kind: impl Into<String>, data: impl Into<Json>) -> Self {
        Self {
            tenant: None,
            kind: kind.into(),
            data: data.into(),
            params: BTreeMap::new(),
            id: None,
            user_id: None,
            correlation_id: None,
            causation_id: None,
            stream: None,
            expected_version: None,
        }
    }

    /// Adds a value for room templates.
    #[must_use]
    pub fn param(mut self, name: &str, value: impl Into<String>) -> Self {
        self.params.insert(name.to_owned(), ParamValue::Text(value.into()));
        self
    }
}

/// A value for a room template.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected text or a whole number")]
pub enum ParamValue {
    /// Text.
    Text(String),
    /// A whole number.
    Number(i64),
}

impl std::fmt::Display for ParamValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// A job as a caller asks for it. Absent values are the job type's.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewJob {
    /// The tenant, where the caller names it here. Expansion refuses any other than the commit's.
    #[serde(default)]
    pub tenant: Option<TenantId>,
    /// Its type, declared in the catalog.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the handler gets. Default `{}`.
    #[serde(default = "Json::empty_object")]
    pub data: Json,
    /// The caller's id; the same id again is the same job.
    #[serde(default)]
    pub id: Option<Id>,
    /// Another queue than the type's.
    #[serde(default)]
    pub queue: Option<String>,
    /// 1 to 5, or `critical high normal low`.
    #[serde(default)]
    pub priority: Option<Priority>,
    /// Waits this long: `"60s"`, or milliseconds.
    #[serde(default)]
    pub delay: Option<Delay>,
    /// Waits until then.
    #[serde(default)]
    pub run_at: Option<Timestamp>,
    /// Runs it may have.
    #[serde(default)]
    pub attempts: Option<u16>,
    /// The waiting times between them.
    #[serde(default)]
    pub backoff: Option<Backoff>,
    /// The longest run.
    #[serde(default)]
    pub timeout: Option<Delay>,
    /// It is taken back if it has not begun after this long.
    #[serde(default)]
    pub ttl: Option<Delay>,
    /// No retry begins later than this after it was enqueued.
    #[serde(default)]
    pub retry_for: Option<Delay>,
    /// Shares the limits of its queue's keys with the tenant's other jobs of this key, 1 to 256 bytes.
    #[serde(default)]
    pub key: Option<String>,
    /// It is the only one of its key.
    #[serde(default)]
    pub unique: Option<NewUnique>,
    /// What the other jobs of the call name it by in `after`.
    #[serde(rename = "ref", default)]
    pub reference: Option<String>,
    /// The jobs it waits for: a `ref` or a given `id` of the same call, or the id of a job that is there.
    #[serde(default)]
    pub after: Vec<String>,
    /// What follows for the jobs that wait for it when it does not complete.
    #[serde(default)]
    pub on_failure: Option<OnFailure>,
    /// Undoes it when its flow fails after it was completed. It has no `ttl` and is not `unique`, whatever its type says.
    #[serde(default)]
    pub compensate: Option<Box<NewJob>>,
    /// The user it works for.
    #[serde(default)]
    pub user_id: Option<String>,
    /// What it belongs to.
    #[serde(default)]
    pub correlation_id: Option<String>,
    /// What caused it.
    #[serde(default)]
    pub causation_id: Option<String>,
}

/// How a job asks to be the only one of its key. Absent values are the job type's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewUnique {
    /// The key, 1 to 256 bytes; default: the job type's template, else the data itself.
    #[serde(default)]
    pub key: Option<String>,
    /// In which states it keeps others out. Default `unfinished`.
    #[serde(rename = "while", default)]
    pub states: Option<States>,
    /// It also keeps others out for this long after it was enqueued.
    #[serde(default)]
    pub window: Option<Delay>,
    /// What becomes of the one that comes later. Default `keep`.
    #[serde(default)]
    pub on_conflict: Option<OnConflict>,
}

impl NewJob {
    /// A job of `kind` with `data`.
    pub fn new(kind: impl Into<String>, data: impl Into<Json>) -> Self {
        Self {
            tenant: None,
            kind: kind.into(),
            data: data.into(),
            id: None,
            queue: None,
            priority: None,
            delay: None,
            run_at: None,
            attempts: None,
            backoff: None,
            timeout: None,
            ttl: None,
            retry_for: None,
            key: None,
            unique: None,
            reference: None,
            after: Vec::new(),
            on_failure: None,
            compensate: None,
            user_id: None,
            correlation_id: None,
            causation_id: None,
        }
    }
}

/// A flow as a caller asks for it: all jobs of the call belong to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewFlow {
    /// The caller's id; one that is taken is refused.
    #[serde(default)]
    pub id: Option<Id>,
    /// For people, at most 256 bytes.
    #[serde(default)]
    pub name: Option<String>,
    /// Runs when all of them have completed.
    #[serde(default)]
    pub then: Option<Box<NewJob>>,
    /// Runs when all of them have ended, however they did.
    #[serde(default)]
    pub finally: Option<Box<NewJob>>,
}

/// A priority by number or name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PriorityText")]
pub struct Priority(pub u8);

#[derive(Deserialize)]
#[serde(untagged, expecting = "priority: expected 1 to 5, critical, high, normal or low")]
enum PriorityText {
    Number(i64),
    Name(String),
}

impl TryFrom<PriorityText> for Priority {
    type Error = String;
    fn try_from(text: PriorityText) -> Result<Self, String> {
        match text {
            PriorityText::Number(number @ 1..=5) => Ok(Self(number as u8)),
            PriorityText::Number(number) => Err(format!("priority: expected 1 (first) to 5, got {number}")),
            PriorityText::Name(name) => match name.as_str() {
                "critical" => Ok(Self(1)),
                "high" => Ok(Self(2)),
                "normal" => Ok(Self(3)),
                "low" => Ok(Self(4)),
                _ => Err(format!("priority: expected 1 to 5, critical, high, normal or low, got {name:?}")),
            },
        }
    }
}

/// A duration in a request: `"60s"`, or a number of milliseconds; at most ten years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Delay(#[serde(with = "duration_or_millis")] pub Duration);

/// A key that is remembered for a while: while it is, the whole commit is not written again.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dedup {
    /// 1 to 256 bytes.
    pub key: String,
    /// How long it is remembered.
    pub ttl: Delay,
}

/// The atomic unit as a caller asks for it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// Events, logged in this order.
    #[serde(default)]
    pub events: Vec<NewEvent>,
    /// Jobs, enqueued in this order.
    #[serde(default)]
    pub jobs: Vec<NewJob>,
    /// Makes one flow of the jobs.
    #[serde(default)]
    pub flow: Option<NewFlow>,
    /// Schedules to put or delete, each at most once.
    #[serde(default)]
    pub schedules: Vec<NewSchedule>,
    /// Written once per key.
    #[serde(default)]
    pub dedup: Option<Dedup>,
}

impl Request {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.jobs.is_empty()
            && self.flow.is_none()
            && self.schedules.is_empty()
            && self.dedup.is_none()
    }
}

/// The same request again gets the same answer.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The caller's key, 1 to 256 bytes.
    pub key: String,
    /// A digest of the request; another digest under the same key is refused.
    pub digest: Vec<u8>,
}

/// An event to append.
#[derive(Clone, Debug)]
pub struct Append {
    /// Its id.
    pub id: Id,
    /// Whether the caller chose the id, so that it may exist already.
    pub given_id: bool,
    /// Its type.
    pub kind: Arc<str>,
    /// What it says.
    pub data: Json,
    /// The rooms it goes to.
    pub rooms: Arc<[Box<str>]>,
    /// Some of these span tenants.
    pub across: bool,
    /// The user it concerns.
    pub user_id: Option<Box<str>>,
    /// What it belongs to.
    pub correlation_id: Option<Box<str>>,
    /// What caused it.
    pub causation_id: Option<Box<str>>,
    /// Its aggregate stream.
    pub stream: Option<Box<str>>,
    /// The version that the stream must have before.
    pub expected_version: Option<u64>,
    /// The asked-for event that it follows from, by index; absent when it was asked for itself.
    pub root: Option<usize>,
}

/// A job to enqueue.
#[derive(Clone, Debug)]
pub struct Enqueue {
    /// Its id.
    pub id: Id,
    /// Whether the caller chose the id, so that it may exist already.
    pub given_id: bool,
    /// Its type.
    pub kind: Arc<str>,
    /// The queue it waits in.
    pub queue: Arc<str>,
    /// 1 (first) to 5.
    pub priority: u8,
    /// What the handler gets.
    pub data: Json,
    /// When it is due; absent means now.
    pub run_at: Option<Timestamp>,
    /// Runs it may have.
    pub attempts: u16,
    /// The waiting times between them.
    pub backoff: Backoff,
    /// The longest run.
    pub timeout: Duration,
    /// The user it works for.
    pub user_id: Option<Box<str>>,
    /// What it belongs to.
    pub correlation_id: Option<Box<str>>,
    /// What caused it.
    pub causation_id: Option<Box<str>>,
    /// How many causes lie between it and the outside.
    pub depth: u8,
    /// What few jobs have.
    pub rare: Option<Box<Rare>>,
    /// The jobs it waits for.
    pub after: Vec<After>,
    /// The asked-for event that it follows from, by index; absent when it was asked for itself.
    pub root: Option<usize>,
}

/// A job that another waits for.
#[derive(Clone, Debug)]
pub struct After {
    /// Its id. Either it is part of the same commit or it is there.
    pub id: Id,
    /// Whether it is waited for only until it has ended, however it does.
    pub ignores_failure: bool,
}

/// A flow to begin with a commit.
#[derive(Clone, Debug)]
pub struct FlowHead {
    /// Its id.
    pub id: Id,
    /// Whether the caller chose the id, so that it may exist already.
    pub given_id: bool,
    /// For people.
    pub name: Option<Box<str>>,
    /// The asked-for event that it follows from, by index; absent when it was asked for itself.
    pub root: Option<usize>,
}

/// The atomic unit as a store writes it: checked, expanded, complete.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Whose it is.
    pub tenant: TenantId,
    /// Events to append, in order.
    pub events: Vec<Append>,
    /// Jobs to enqueue, in order.
    pub jobs: Vec<Enqueue>,
    /// How many events, from the front, the caller asked for; the rest follows from rules.
    pub asked_events: usize,
    /// How many jobs, from the front, the caller asked for.
    pub asked_jobs: usize,
    /// The flows that those of the jobs belong to that say so.
    pub flows: Vec<FlowHead>,
    /// How many flows, from the front, the caller asked for: one or none.
    pub asked_flows: usize,
    /// What to do to schedules; no two of these are about the same one.
    pub schedules: Vec<ScheduleWrite>,
    /// The most schedules that the tenant may have when another one is put; absent for no bound.
    pub most_schedules: Option<u32>,
    /// Written once per key.
    pub dedup: Option<(String, Duration)>,
    /// The same request again gets the same answer.
    pub idempotency: Option<Idempotency>,
}

impl Commit {
    /// One of `tenant` in which there is nothing yet.
    pub fn empty(tenant: TenantId) -> Self {
        Self {
            tenant,
            events: Vec::new(),
            jobs: Vec::new(),
            asked_events: 0,
            asked_jobs: 0,
            flows: Vec::new(),
            asked_flows: 0,
            schedules: Vec::new(),
            most_schedules: None,
            dedup: None,
            idempotency: None,
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.jobs.is_empty()
            && self.schedules.is_empty()
            && self.dedup.is_none()
            && self.idempotency.is_none()
    }
}

/// An event as it was appended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Appended {
    /// Its id.
    pub id: Id,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// Its place in the tenant's log; absent for ephemeral events, which are not logged.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub position: Option<Position>,
    /// When it was committed.
    pub time: Timestamp,
    /// Its version in its stream.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<u64>,
    /// Whether it was there before.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub deduplicated: bool,
}

/// A job as it was enqueued.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enqueued {
    /// Its id.
    pub id: Id,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// Its state at that moment.
    pub state: State,
    /// Whether it was there before.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub deduplicated: bool,
    /// What became of it because its unique key was taken.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub conflict: Option<Conflict>,
}

/// What a commit wrote: what was asked for first, then what followed from it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Committed {
    /// The events that were asked for.
    pub events: Vec<Appended>,
    /// The jobs that were asked for.
    pub jobs: Vec<Enqueued>,
    /// The flow that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub flow: Option<Id>,
    /// The schedules that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub schedules: Vec<Scheduled>,
    /// What rules and handlers added.
    #[serde(skip_serializing_if = "Caused::is_empty", default)]
    pub caused: Caused,
    /// Whether this is the kept answer to an earlier request of the same idempotency key.
    #[serde(skip)]
    pub replayed: bool,
    /// Whether the dedup key was known and nothing was written.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub deduplicated: bool,
}

/// What rules and handlers added to a commit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Caused {
    /// Events published by rules.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub events: Vec<Appended>,
    /// Jobs enqueued by rules and durable handlers, and by flows of their own accord.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub jobs: Vec<Enqueued>,
    /// Flows begun by rules.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub flows: Vec<Id>,
}

impl Caused {
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.jobs.is_empty() && self.flows.is_empty()
    }
}

/// The answer to a commit of nothing but ephemeral events.
pub fn appended_ephemeral(event: &Ephemeral) -> Appended {
    Appended {
        id: event.id.clone(),
        kind: event.kind.clone(),
        position: None,
        time: event.time,
        version: None,
        deduplicated: false,
    }
}
