//! Flows as operators see them and what they do to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::job::State;
use crate::{Id, TenantId, Timestamp};

/// A flow: jobs that wait for each other, and how far they are.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// Its id.
    pub id: Id,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    /// When it began.
    pub created_at: Timestamp,
    /// When the last of its jobs ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// How far it is.
    pub state: FlowState,
    /// How many of its jobs have not ended, those that undo others not counted.
    pub unfinished: u32,
    /// How many of its jobs ended and did not complete, but for those whose failure is ignored.
    pub failed: u32,
    /// How many of its jobs are in each state. Empty in a list.
    pub counts: BTreeMap<State, u64>,
    /// Its jobs in the order they were given, at most [`Flow::MOST_JOBS`]. Empty in a list.
    pub jobs: Vec<FlowJob>,
}

impl Flow {
    /// The most jobs that are listed with a flow.
    pub const MOST_JOBS: usize = 10_000;
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// Some of its jobs have not ended.
    Running,
    /// What it has done is being undone.
    Undoing,
    /// All have ended and completed, or their failure was ignored.
    Completed,
    /// All have ended and some did not complete.
    Failed,
}

/// A job of a flow.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowJob {
    /// Its id.
    pub id: Id,
    /// What the flow calls it.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<Box<str>>,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// Where it is in its life.
    pub state: State,
    /// The ids of the jobs it waits for or waited for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Id>,
    /// The job that it undoes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compensates: Option<Id>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// What an operator does to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowControl {
    /// Takes back the jobs that have not ended, as [`Control::Cancel`](super::Control::Cancel). The one that comes at the end in any
    /// case runs, and what the flow has done is undone if one of them is declared so.
    Cancel,
    /// Runs the jobs again that did not complete, as [`Control::Redrive`](super::Control::Redrive), each after those that it waits
    /// for.
    Retry,
}

/// Which flows to list, newest first.
#[derive(Clone, Debug)]
pub struct FlowQuery {
    /// Whose.
    pub tenant: TenantId,
    /// Only those in this state.
    pub state: Option<FlowState>,
    /// Only those of this name.
    pub name: Option<String>,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// At most this many, bounded by [`FlowQuery::MAX`].
    pub limit: u32,
}

impl FlowQuery {
    /// The most flows on one page.
    pub const MAX: u32 = 500;

    /// How many flows one page looks at; the next one goes on.
    pub const MAX_LOOKED_AT: u32 = 20_000;
}
