//! The leases that are held, and when the next of them ends.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use tidewire_core::Timestamp;

use crate::rows::{JobRow, NameId, Seq};

/// How many ends may be out of date beyond twice the leases held, before they are dropped together.
const ENDS_SLACK: usize = 1_024;

/// A job in a worker's hands, as the writer remembers it so that settling needs no read.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// The row as it was leased; it has a holder.
    pub(crate) row: JobRow,
    pub(crate) nonce: u64,
    pub(crate) until: Timestamp,
    /// The batch whose claims record lists it.
    pub(crate) batch: u64,
}

impl Lease {
    /// Whether somebody asked to cancel it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.row.holder.as_ref().is_some_and(|holder| holder.cancelled)
    }

    /// Whether it ends with this process and not by time.
    fn is_local(&self) -> bool {
        self.row.holder.as_ref().is_some_and(|holder| holder.local)
    }
}

/// Every lease by its job.
#[derive(Default)]
pub(crate) struct Leases {
    held: HashMap<Seq, Lease>,
    /// Ends of leases, some of them out of date: renewed or settled since.
    ends: BinaryHeap<Reverse<(Timestamp, Seq)>>,
    /// How many leases of each claims record are still held.
    batches: HashMap<u64, u32>,
    /// How many leases each key of a queue and tenant has.
    keys: HashMap<(NameId, NameId, Box<str>), usize>,
}

impl Leases {
    /// Records a lease.
    pub(crate) fn insert(&mut self, lease: Lease) {
        let seq = lease.row.seq;
        let (until, is_local) = (lease.until, lease.is_local());
        *self.batches.entry(lease.batch).or_default() += 1;
        if let Some(key) = key_of(&lease.row) {
            *self.keys.entry(key).or_default() += 1;
        }
        self.held.insert(seq, lease);
        if !is_local {
            self.push_end(until, seq);
        }
    }

    /// Remembers an end. Those that are out of date are dropped when they are most of what is remembered: a long lease that was
    /// settled at once must not cost memory until its time.
    fn push_end(&mut self, until: Timestamp, seq: Seq) {
        self.ends.push(Reverse((until, seq)));
        if self.ends.len() > 2 * self.held.len() + ENDS_SLACK {
            let remote = self.held.iter().filter(|(_, lease)| !lease.is_local());
            self.ends = remote.map(|(seq, lease)| Reverse((lease.until, *seq))).collect();
        }
    }

    /// How many are held.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// The lease that a token names, if it is still held.
    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut Lease> {
        self.held.get_mut(&token.seq).filter(|lease| lease.nonce == token.nonce)
    }

    /// The lease on a job.
    pub(crate) fn of(&mut self, seq: Seq) -> Option<&mut Lease> {
        self.held.get_mut(&seq)
    }

    /// Ends a lease. The second value is the claims record that has no leases left.
    pub(crate) fn remove(&mut self, seq: Seq) -> Option<(Lease, Option<u64>)> {
        let lease = self.held.remove(&seq)?;
        if let Some(key) = key_of(&lease.row)
            && let Entry::Occupied(mut running) = self.keys.entry(key)
        {
            *running.get_mut() -= 1;
            if *running.get() == 0 {
                running.remove();
            }
        }
        let left = self.batches.get_mut(&lease.batch)?;
        *left -= 1;
        let emptied = *left == 0;
        if emptied {
            self.batches.remove(&lease.batch);
        }
        let batch = lease.batch;
        Some((lease, emptied.then_some(batch)))
    }

    /// How many jobs of a key are leased.
    pub(crate) fn running_of_key(&self, queue: NameId, tenant: NameId, key: &str) -> usize {
        if self.keys.is_empty() { 0 } else { self.keys.get(&(queue, tenant, key.into())).copied().unwrap_or(0) }
    }

    /// Moves the end of a lease.
    pub(crate) fn extend(&mut self, seq: Seq, until: Timestamp) {
        if let Some(lease) = self.held.get_mut(&seq) {
            lease.until = until;
            if let Some(holder) = &mut lease.row.holder {
                holder.until = until;
            }
            if !lease.is_local() {
                self.push_end(until, seq);
            }
        }
    }

    /// The clock was set back: the leases end as much earlier, so that they last as long as they were given for.
    pub(crate) fn pull(&mut self, by: Duration) {
        for lease in self.held.values_mut() {
            lease.until = lease.until - by;
            if let Some(holder) = &mut lease.row.holder {
                holder.until = lease.until;
            }
        }
        let remote = self.held.iter().filter(|(_, lease)| !lease.is_local());
        self.ends = remote.map(|(seq, lease)| Reverse((lease.until, *seq))).collect();
    }

    /// A job whose lease has ended at `now`.
    pub(crate) fn pop_expired(&mut self, now: Timestamp) -> Option<Seq> {
        while let Some(Reverse((until, seq))) = self.ends.peek().copied() {
            if until > now {
                return None;
            }
            self.ends.pop();
            if self.held.get(&seq).is_some_and(|lease| lease.until == until && !lease.is_local()) {
                return Some(seq);
            }
        }
        None
    }

    /// When the next lease may end.
    pub(crate) fn next_end(&self) -> Option<Timestamp> {
        self.ends.peek().map(|Reverse((until, _))| *until)
    }
}

fn key_of(row: &JobRow) -> Option<(NameId, NameId, Box<str>)> {
    Some((row.keys.queue, row.keys.tenant, row.job.key()?.into()))
}

/// A lease as its holder knows it: `SEQ-NONCE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) seq: Seq,
    pub(crate) nonce: u64,
}

impl Token {
    /// The text given to the worker.
    pub(crate) fn encode(self) -> Box<str> {
        format!("{}-{:016x}", self.seq, self.nonce).into()
    }

    /// Reads a token; anything else is simply not a lease that is held.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        let (seq, nonce) = text.split_once('-')?;
        Some(Self { seq: seq.parse().ok()?, nonce: u64::from_str_radix(nonce, 16).ok()? })
    }
}

#[cfg(test)]
mod tests;
