//! Final jobs in maps.

use std::collections::{BTreeSet, HashMap};

use tidewire_core::{Result, Timestamp};

use super::{MemoryRows, Tables};
use crate::rows::{Ended, EndedJob, Finished, JobRow, NameId};

impl Tables {
    /// The final jobs of a queue with when they ended, oldest first.
    fn ended(&self, queue: NameId, ended: Ended) -> Vec<(Timestamp, EndedJob)> {
        let wanted = |row: &JobRow| row.keys.queue == queue && Ended::of(row.job.state) == Some(ended);
        let rows = self.jobs_where(wanted).into_iter();
        let job = |row: &JobRow| EndedJob { seq: row.seq, keys: row.keys, state: row.job.state };
        let mut ended: Vec<_> = rows.filter_map(|row| Some((row.job.finished_at?, job(row)))).collect();
        ended.sort_unstable_by_key(|(at, job)| (*at, job.seq));
        ended
    }
}

impl Finished for MemoryRows {
    fn completed(&mut self, queue: NameId, most: usize) -> Result<Vec<EndedJob>> {
        let mut done = self.tables().ended(queue, Ended::Completed);
        done.drain(..done.len().saturating_sub(most));
        Ok(done.into_iter().map(|(_, job)| job).collect())
    }

    fn ended_queues(&mut self) -> Result<Vec<NameId>> {
        let rows = self.tables().jobs_where(|row| row.job.state.is_final());
        Ok(rows.into_iter().map(|row| row.keys.queue).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn ended_before(&mut self, queue: NameId, ended: Ended, before: Timestamp, limit: usize) -> Result<Vec<EndedJob>> {
        let ended = self.tables().ended(queue, ended).into_iter();
        Ok(ended.take_while(|(at, _)| *at < before).take(limit).map(|(_, job)| job).collect())
    }

    fn ended_beyond(&mut self, queue: NameId, ended: Ended, keep: usize, limit: usize) -> Result<Vec<EndedJob>> {
        let newest_first = self.tables().ended(queue, ended).into_iter().rev().map(|(_, job)| job);
        let mut seen: HashMap<Option<NameId>, usize> = HashMap::new();
        let is_beyond = |job: &EndedJob| {
            let seen = seen.entry((ended != Ended::Completed).then_some(job.keys.tenant)).or_default();
            *seen += 1;
            *seen > keep
        };
        Ok(newest_first.filter(is_beyond).take(limit).collect())
    }
}
