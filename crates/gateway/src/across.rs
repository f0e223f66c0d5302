//! Rooms that span tenants, which have no log: whether a client has missed something of them.
//!
//! What was missed there cannot be given to a client, but it can be told. Each logged event that goes to such a room has a number in this
//! process. The offsets of a socket in such rooms carry the number up to which the client has everything. Who comes back shows it, and has
//! missed nothing of a room whose last event is not later than that. Another process began to count elsewhere, so it knows none of these
//! numbers.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::hub::Rooms;
use crate::session::random;

/// Rooms share so many places. Two in one place make a loss of the one count for the other as well, and never hide one.
const PLACES: usize = 1_024;

/// The numbers of events. Only the relay moves them on, with the table of these rooms locked for as long as it offers one event.
pub(crate) struct Numbers {
    first: u64,
    done: AtomicU64,
    /// The last event of the rooms in each place.
    last: Box<[AtomicU64]>,
    /// The last time that events of any room may have been passed over.
    gap: AtomicU64,
    skipped: AtomicBool,
    hasher: RandomState,
}

impl Numbers {
    pub(crate) fn new() -> Self {
        // From somewhere in 2^48, so that the numbers of two processes do not meet.
        let first = u64::from_be_bytes(random()) >> 16;
        Self {
            first,
            done: AtomicU64::new(first),
            last: (0..PLACES).map(|_| AtomicU64::default()).collect(),
            gap: AtomicU64::default(),
            skipped: AtomicBool::default(),
            hasher: RandomState::new(),
        }
    }

    /// Up to here every event has been offered to all who are in its room.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// The number of an event that is about to be offered to a room.
    pub(crate) fn begin(&self, room: &str) -> u64 {
        let number = self.done() + 1;
        self.last(room).store(number, Ordering::SeqCst);
        number
    }

    /// The number for events that were passed over and may have been for any room.
    pub(crate) fn begin_gap(&self) -> u64 {
        let number = self.done() + 1;
        self.gap.store(number, Ordering::SeqCst);
        number
    }

    pub(crate) fn finish(&self, number: u64) {
        self.done.store(number, Ordering::SeqCst);
    }

    /// An event was passed over that nobody will read from a log. The relay tells of it when it comes to this.
    pub(crate) fn skip(&self) {
        self.skipped.store(true, Ordering::SeqCst);
    }

    /// Whether there was one since this was last asked.
    pub(crate) fn take_skipped(&self) -> bool {
        self.skipped.swap(false, Ordering::SeqCst)
    }

    /// Whether a client that has shown this number has everything of a room.
    pub(crate) fn is_whole(&self, room: &str, seen: Option<u64>) -> bool {
        let last = self.last(room).load(Ordering::SeqCst).max(self.gap.load(Ordering::SeqCst));
        // What is being offered may be with a client already.
        seen.is_some_and(|seen| (self.first..=self.done() + 1).contains(&seen) && last <= seen)
    }

    fn last(&self, room: &str) -> &AtomicU64 {
        &self.last[self.hasher.hash_one(room) as usize % PLACES]
    }
}

/// An event on its way to such a room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbered<'a> {
    pub(crate) room: &'a str,
    pub(crate) number: u64,
}

/// What a socket knows of such rooms.
#[derive(Debug, Default)]
pub(crate) struct Across {
    /// How many of them it is in.
    rooms: usize,
    seen: u64,
    /// Rooms of which an event could not be queued, until the client has been told.
    missed: Vec<Arc<str>>,
}

impl Across {
    pub(crate) fn join(&mut self) {
        self.rooms += 1;
    }

    pub(crate) fn leave(&mut self, room: &str) {
        self.rooms = self.rooms.saturating_sub(1);
        self.missed.retain(|missed| **missed != *room);
    }

    /// What an offset of this socket says; nothing outside such rooms.
    pub(crate) fn seen(&self, numbers: &Numbers) -> Option<u64> {
        if self.rooms == 0 {
            return None;
        }
        Some(if self.missed.is_empty() { self.seen.max(numbers.done()) } else { self.seen })
    }

    /// What the offset of a copy says that is about to be queued, and of what comes after it.
    pub(crate) fn with(&self, number: u64) -> u64 {
        if self.missed.is_empty() { number } else { self.seen }
    }

    /// That copy was queued.
    pub(crate) fn take(&mut self, number: u64) {
        self.seen = self.with(number);
    }

    /// An event of `room` cannot be queued. From now on the offsets stay where they are, until the client has been told.
    pub(crate) fn miss(&mut self, room: &str, numbers: &Numbers) {
        if self.missed.is_empty() {
            self.seen = self.seen.max(numbers.done());
        }
        if !self.missed.iter().any(|missed| **missed == *room) {
            self.missed.push(room.into());
        }
    }

    /// The client has everything up to what it has shown and no further: its offsets stay there until it has been told.
    pub(crate) fn stay_at(&mut self, seen: Option<u64>) {
        self.seen = seen.unwrap_or_default();
    }

    /// The rooms of which the client is to be told now.
    pub(crate) fn missed(&self) -> &[Arc<str>] {
        &self.missed
    }

    pub(crate) fn told(&mut self) {
        self.missed = Vec::new();
    }
}

/// Events were passed over that may have been for any of these rooms: everybody in one is told, and who comes back later, too.
pub(crate) fn tell_gap(numbers: &Numbers, rooms: &parking_lot::RwLock<Rooms>) {
    let table = rooms.read();
    let number = numbers.begin_gap();
    let mut sockets = Vec::new();
    for (room, members) in table.each() {
        members.iter().for_each(|socket| socket.miss(room));
        sockets.extend(members.iter().cloned());
    }
    numbers.finish(number);
    drop(table);
    sockets.iter().for_each(|socket| socket.tell_missed());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_whole_up_to_the_number_that_it_shows() {
        let numbers = Numbers::new();
        let mut socket = Across::default();
        assert_eq!(socket.seen(&numbers), None);
        socket.join();
        let start = socket.seen(&numbers);
        assert!(numbers.is_whole("a", start) && !numbers.is_whole("a", None));
        let number = numbers.begin("a");
        assert!(!numbers.is_whole("a", start));
        socket.take(number);
        assert!(numbers.is_whole("a", socket.seen(&numbers)), "the copy was queued while the event was being offered");
        numbers.finish(number);
        assert!(!Numbers::new().is_whole("b", socket.seen(&numbers)), "another process knows nothing");
        let number = numbers.begin_gap();
        numbers.finish(number);
        assert!(!numbers.is_whole("b", Some(number - 1)) && numbers.is_whole("b", Some(number)));
    }

    #[test]
    fn after_a_miss_the_number_stays_until_the_client_was_told() {
        let numbers = Numbers::new();
        let mut socket = Across::default();
        socket.join();
        let number = numbers.begin("a");
        socket.miss("a", &numbers);
        socket.miss("a", &numbers);
        numbers.finish(number);
        let next = numbers.begin("a");
        socket.take(next);
        numbers.finish(next);
        assert!(!numbers.is_whole("a", socket.seen(&numbers)));
        assert_eq!(socket.missed(), [Arc::from("a")]);
        socket.told();
        assert!(numbers.is_whole("a", socket.seen(&numbers)));
    }
}
