//! Pending jobs that were written a moment ago: most are leased soon, and then they need not be read again.

use std::collections::HashMap;

use tidewire_core::job::State;

use crate::rows::{JobRow, Seq};

/// How many jobs are remembered. When there are more, it starts over: what is left then waits for long anyway.
const MOST: usize = 8_192;

/// Jobs with more data than this are read again, so that all of them together stay within 32 MiB.
const MAX_DATA_BYTES: usize = 4_096;

/// Rows that are pending on disk exactly as they are here.
#[derive(Default)]
pub(crate) struct Recent {
    rows: HashMap<Seq, JobRow>,
}

impl Recent {
    /// Remembers a row that was just written.
    pub(crate) fn put(&mut self, row: JobRow) {
        if row.job.state != State::Pending || row.job.data.get().len() > MAX_DATA_BYTES {
            return;
        }
        if self.rows.len() >= MOST {
            self.rows.clear();
        }
        self.rows.insert(row.seq, row);
    }

    /// Takes a row out: it is about to change.
    pub(crate) fn take(&mut self, seq: Seq) -> Option<JobRow> {
        self.rows.remove(&seq)
    }
}
