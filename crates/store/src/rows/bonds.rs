//! What ties jobs together: unique keys, who waits for whom, and flows.

use std::sync::Arc;

use tidewire_core::job::{Job, State};
use tidewire_core::store::Parent;
use tidewire_core::{Id, Result, Timestamp};

use super::{NameId, Seq};

/// What is known of a unique key: the job that has it, and until when it keeps others out although it has ended or is forgotten.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) seq: Seq,
    pub(crate) id: Id,
    pub(crate) until: Option<Timestamp>,
    /// How the job ended, as soon as it is forgotten.
    pub(crate) ended: Option<State>,
}

/// A job that waits for another one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge {
    pub(crate) child: Seq,
    pub(crate) parent: Seq,
    pub(crate) ignores_failure: bool,
}

/// The number of a flow.
pub(crate) type FlowNumber = i64;

/// A row of `flows`.
#[derive(Clone, Debug)]
pub(crate) struct FlowRow {
    pub(crate) number: FlowNumber,
    /// Members that have not ended, those that undo others not counted.
    pub(crate) unfinished: u32,
    /// Members that ended and did not complete.
    pub(crate) failed: u32,
    /// Whether what it has completed is being undone.
    pub(crate) undoing: bool,
    pub(crate) finished_at: Option<Timestamp>,
}

/// A job of a flow, as the flow remembers it beyond the job's own life.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) seq: Seq,
    pub(crate) id: Id,
    pub(crate) reference: Option<Box<str>>,
    pub(crate) kind: Arc<str>,
    /// The job that it undoes.
    pub(crate) compensates: Option<Id>,
    /// How and when it ended.
    pub(crate) ended: Option<(State, Timestamp)>,
}

/// The part of [`Rows`](super::Rows) that is about ties between jobs.
pub(crate) trait Bonds {
    /// Who has a unique key.
    fn unique(&mut self, tenant: NameId, kind: NameId, key: &str) -> Result<Option<Taken>>;
    fn put_unique(&mut self, tenant: NameId, kind: NameId, key: &str, taken: &Taken) -> Result<()>;
    fn delete_unique(&mut self, tenant: NameId, kind: NameId, key: &str) -> Result<()>;

    fn add_edge(&mut self, edge: Edge) -> Result<()>;
    /// Who waits for a job that has not ended.
    fn dependents(&mut self, parent: Seq) -> Result<Vec<Edge>>;
    /// For whom a job waits: those that have not ended.
    fn waited_for(&mut self, child: Seq) -> Result<Vec<Seq>>;
    /// Writes on every edge that leads from a job how it ended.
    fn end_edges(&mut self, parent: Seq, outcome: &Job) -> Result<()>;
    /// Everybody that a job waits or waited for.
    fn parents_of(&mut self, child: Seq) -> Result<Vec<Seq>>;
    /// Everybody that waits or waited for a job.
    fn children_of(&mut self, parent: Seq) -> Result<Vec<Seq>>;
    /// Forgets how a job ended that another one waited for: it has not.
    fn reopen_edge(&mut self, child: Seq, parent: Seq) -> Result<()>;
    /// The jobs that a job waited for and how they ended, the first `limit`.
    fn parents(&mut self, child: Seq, limit: usize) -> Result<Vec<Parent>>;

    fn flow(&mut self, tenant: NameId, id: &Id) -> Result<Option<FlowRow>>;
    fn add_flow(&mut self, tenant: NameId, id: &Id, name: Option<&str>, at: Timestamp) -> Result<FlowRow>;
    fn update_flow(&mut self, flow: &FlowRow) -> Result<()>;
    fn add_member(&mut self, flow: FlowNumber, member: &Member) -> Result<()>;
    fn end_member(&mut self, flow: FlowNumber, seq: Seq, state: State, at: Timestamp) -> Result<()>;
    /// A member that had ended goes on.
    fn reopen_member(&mut self, flow: FlowNumber, seq: Seq) -> Result<()>;
    fn delete_member(&mut self, flow: FlowNumber, seq: Seq) -> Result<()>;
    fn members(&mut self, flow: FlowNumber) -> Result<Vec<Member>>;
}
