//! How many jobs there are, by queue, tenant and state. What a turn changed is written once, at its end, so that counting ten million
//! jobs costs as little as counting ten.

use std::collections::HashMap;

use tidewire_core::Result;
use tidewire_core::job::{State, States};

use crate::rows::{Keys, NameId, Rows};
use crate::writer::Writer;

/// A tenant in a queue.
type Line = (NameId, NameId);

/// The changes of a turn, and the numbers that limits are compared with.
#[derive(Default)]
pub(crate) struct Counts {
    /// What changed and is not written.
    changed: HashMap<Line, [i64; 8]>,
    /// Waiting jobs of the lines that have a bound, from the first time they were asked for.
    waiting: HashMap<Line, i64>,
}

impl Counts {
    /// A job went from one state to another; none before it was enqueued and after it was forgotten.
    pub(crate) fn moved(&mut self, keys: Keys, from: Option<State>, to: Option<State>) {
        if from == to {
            return;
        }
        let line = (keys.queue, keys.tenant);
        let changed = self.changed.entry(line).or_default();
        for (state, by) in [(from, -1), (to, 1)] {
            let Some(state) = state else { continue };
            changed[state as usize] += by;
            if States::WAITING.contains(state)
                && let Some(waiting) = self.waiting.get_mut(&line)
            {
                *waiting += by;
            }
        }
    }
}

impl<R: Rows> Writer<R> {
    /// How many jobs of a tenant wait in a queue.
    pub(crate) fn waiting(&mut self, queue: NameId, tenant: NameId) -> Result<i64> {
        let line = (queue, tenant);
        if let Some(waiting) = self.counts.waiting.get(&line) {
            return Ok(*waiting);
        }
        let mut counts = self.rows.counts(queue, tenant)?;
        if let Some(changed) = self.counts.changed.get(&line) {
            counts.iter_mut().zip(changed).for_each(|(count, by)| *count += by);
        }
        let waits = State::ALL.into_iter().filter(|state| States::WAITING.contains(*state));
        let waiting = waits.map(|state| counts[state as usize]).sum();
        self.counts.waiting.insert(line, waiting);
        Ok(waiting)
    }

    /// Writes what this turn changed.
    pub(crate) fn write_counts(&mut self) -> Result<()> {
        for ((queue, tenant), by) in self.counts.changed.drain() {
            if by != [0; 8] {
                self.rows.add_counts(queue, tenant, &by)?;
            }
        }
        Ok(())
    }
}
