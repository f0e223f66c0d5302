//! One tenant in a queue: its lanes, and what holds it back.

use std::collections::VecDeque;

use tidewire_core::Timestamp;
use tidewire_core::limit::{Rate, RateState};

use super::WINDOW;
use super::order::Turn;
use crate::rows::{NameId, Place};

/// One tenant in a queue.
#[derive(Default)]
pub(super) struct Tenant {
    /// Its lanes by priority and type. Few, so a sorted list.
    lanes: Vec<Lane>,
    /// Where it stands at each priority that it has lanes of.
    pub(super) turns: [Turn; 5],
    pub(super) running: u32,
    pub(super) rate: RateState,
    /// When the rate has surely forgotten the last start.
    pub(super) fresh_from: Timestamp,
    /// Why it is out of the order, if it is.
    pub(super) held: Option<Hold>,
}

/// Why a tenant with work gets no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Somebody paused it.
    Paused,
    /// As many of its jobs run as may.
    AtOnce,
    /// Its rate allows the next start then.
    Rate(Timestamp),
}

/// What is enforced for one tenant, with the queue's values where it has none.
pub(super) struct Bounds {
    /// At least 1.
    pub(super) weight: u32,
    pub(super) at_once: Option<u32>,
    pub(super) rate: Option<Rate>,
    pub(super) paused: bool,
}

/// The first places of one lane.
pub(super) struct Lane {
    pub(super) priority: u8,
    pub(super) kind: NameId,
    window: VecDeque<Place>,
    /// Whether the window holds every pending job of the lane.
    complete: bool,
}

impl Tenant {
    /// What keeps it from starting a job now.
    pub(super) fn held_by(&mut self, bounds: &Bounds, now: Timestamp) -> Option<Hold> {
        if bounds.paused {
            return Some(Hold::Paused);
        }
        if bounds.at_once.is_some_and(|most| self.running >= most) {
            return Some(Hold::AtOnce);
        }
        let mut looked_at = self.rate;
        let at = bounds.rate?.take(&mut looked_at, now).err()?;
        // It took nothing, but it knows when the clock was set back.
        self.rate = looked_at;
        Some(Hold::Rate(at))
    }

    /// The lane of this name and whether it is new. A new one is empty; `complete` says whether that is all of it.
    pub(super) fn lane(&mut self, priority: u8, kind: NameId, complete: bool) -> (&mut Lane, bool) {
        match self.find(priority, kind) {
            Ok(at) => (&mut self.lanes[at], false),
            Err(at) => {
                self.lanes.insert(at, Lane { priority, kind, window: VecDeque::new(), complete });
                (&mut self.lanes[at], true)
            }
        }
    }

    /// The lane of this name, if it is there.
    pub(super) fn known(&mut self, priority: u8, kind: NameId) -> Option<&mut Lane> {
        let at = self.find(priority, kind).ok()?;
        self.lanes.get_mut(at)
    }

    /// Every lane.
    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// The lanes of one priority.
    pub(super) fn lanes_of(&self, priority: u8) -> &[Lane] {
        let from = self.lanes.partition_point(|lane| lane.priority < priority);
        let to = self.lanes.partition_point(|lane| lane.priority <= priority);
        &self.lanes[from..to]
    }

    /// Of the lanes of these types at a priority the one whose head is oldest, and how old it is. A lane whose window has drained is
    /// before all others: only its rows know how old its head is.
    pub(super) fn oldest(&self, priority: u8, kinds: &[NameId]) -> Option<(Option<Place>, NameId)> {
        let wanted = self.lanes_of(priority).iter().filter(|lane| kinds.is_empty() || kinds.contains(&lane.kind));
        wanted.map(|lane| (lane.head(), lane.kind)).min()
    }

    pub(super) fn remove(&mut self, priority: u8, kind: NameId) {
        if let Ok(at) = self.find(priority, kind) {
            self.lanes.remove(at);
        }
    }

    fn find(&self, priority: u8, kind: NameId) -> Result<usize, usize> {
        self.lanes.binary_search_by_key(&(priority, kind), |lane| (lane.priority, lane.kind))
    }

    /// Whether nothing would be lost by forgetting it.
    pub(super) fn is_idle(&self, now: Timestamp) -> bool {
        self.lanes.is_empty() && self.running == 0 && self.fresh_from <= now
    }
}

impl Lane {
    /// The first place, unless the window has drained.
    pub(super) fn head(&self) -> Option<Place> {
        self.window.front().copied()
    }

    /// Whether it has no more pending jobs.
    pub(super) fn is_over(&self) -> bool {
        self.window.is_empty() && self.complete
    }

    pub(super) fn pop(&mut self) -> Option<Place> {
        self.window.pop_front()
    }

    /// Takes a place into the window, or leaves it to the disk when it belongs behind the window.
    pub(super) fn push(&mut self, place: Place) {
        let is_before = self.window.back().is_some_and(|last| place < *last);
        if !self.complete && !is_before {
            return;
        }
        if self.window.len() >= WINDOW {
            self.complete = false;
            if !is_before {
                return;
            }
            // First out and then in, so that the memory of the window does not double.
            self.window.pop_back();
        }
        if is_before {
            let at = self.window.partition_point(|known| *known < place);
            self.window.insert(at, place);
        } else {
            self.window.push_back(place);
        }
    }

    /// Takes what was read from disk: the first places, at most [`WINDOW`].
    pub(super) fn refill(&mut self, places: Vec<Place>) {
        self.complete = places.len() < WINDOW;
        self.window = places.into();
    }

    #[cfg(test)]
    pub(super) fn window_capacity(&self) -> usize {
        self.window.capacity()
    }
}
