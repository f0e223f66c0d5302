//! Logs of jobs, and settings of queues.

use tidewire_core::{Result, Timestamp};

use super::{NameId, Seq};

/// The part of [`Rows`](super::Rows) that is about logs and settings.
pub(crate) trait Desk {
    fn add_log_line(&mut self, seq: Seq, time: Timestamp, attempt: u16, text: &str) -> Result<()>;
    /// Deletes all but the last `keep` lines of a job's log.
    fn trim_log(&mut self, seq: Seq, keep: usize) -> Result<()>;
    /// What was changed about a queue, as JSON.
    fn queue_settings(&mut self, queue: NameId) -> Result<Option<String>>;
    /// Nothing forgets them.
    fn put_queue_settings(&mut self, queue: NameId, settings: Option<&str>) -> Result<()>;
}
