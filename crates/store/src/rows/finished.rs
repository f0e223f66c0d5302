//! Final jobs: how long they are kept goes by how they ended.

use tidewire_core::job::State;
use tidewire_core::{Result, Timestamp};

use super::{Keys, NameId, Seq};

/// How a final job ended, as far as keeping it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Completed,
    Cancelled,
    /// Failed or dead.
    Dead,
}

impl Ended {
    /// How a job in this state has ended, if it has.
    pub(crate) fn of(state: State) -> Option<Self> {
        match state {
            State::Completed => Some(Self::Completed),
            State::Cancelled => Some(Self::Cancelled),
            State::Failed | State::Dead => Some(Self::Dead),
            State::Scheduled | State::Pending | State::Processing | State::Blocked => None,
        }
    }
}

/// A final job that is to be forgotten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndedJob {
    pub(crate) seq: Seq,
    pub(crate) keys: Keys,
    pub(crate) state: State,
}

/// The part of [`Rows`](super::Rows) that is about final jobs.
pub(crate) trait Finished {
    /// The completed jobs of a queue, at most the newest `most`, oldest first.
    fn completed(&mut self, queue: NameId, most: usize) -> Result<Vec<EndedJob>>;
    /// Every queue that has final jobs.
    fn ended_queues(&mut self) -> Result<Vec<NameId>>;
    /// Final jobs of a queue that ended before a time.
    fn ended_before(&mut self, queue: NameId, ended: Ended, before: Timestamp, limit: usize) -> Result<Vec<EndedJob>>;
    /// Final jobs of a queue beyond the newest `keep`: of all tenants together for completed ones, of each tenant for the others, so
    /// that what fails for one pushes out nothing of another. It may go by the counts that were written last.
    fn ended_beyond(&mut self, queue: NameId, ended: Ended, keep: usize, limit: usize) -> Result<Vec<EndedJob>>;
}
